"""What is kept on disk is whole or not there, is found again, and never outgrows its budget while it can be helped."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from pathlib import Path

import pytest
import torch

from palate.durable import StorageError
from palate.models.contracts import Condition
from palate.training import stored
from palate.training.cache import PRIVATE, CacheError, TensorCache, narrowed
from tests.training import forks


@pytest.fixture
def cache(tmp_path):
    with TensorCache(tmp_path / "cache", budget=1e9, memory=0) as made:
        yield made


def name(number: int) -> str:
    return f"{number:064x}"


def test_an_entry_comes_back_as_it_went_in(cache):
    tensors = {"x0": torch.randn(4, 2, 2), "flags": torch.tensor([True, False])}
    assert not cache.holds(name(1)) and cache.size(name(1)) == 0
    size = cache.put(name(1), tensors, {"kind": "a"})
    found, facts = cache.entry(name(1))
    assert facts == {"kind": "a"} and all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert cache.holds(name(1)) and cache.size(name(1)) == size == cache.used()


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "another"])
def test_a_damaged_entry_is_found_and_not_held(cache, damage):
    cache.put(name(1), {"x0": torch.arange(64.0)})
    path = cache.folder / "00" / f"{name(1)}.safetensors"
    whole = path.read_bytes()
    flipped = bytes([*whole[:-5], whole[-5] ^ 1, *whole[-4:]])
    other = whole.replace(b'"facts":"{}"', b'"facts":"[]"')
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "flipped": flipped, "another": other}[damage])
    with pytest.raises(CacheError, match="run the same command again"):
        cache.get(name(1))
    assert not cache.holds(name(1)) and not path.exists()
    cache.put(name(1), {"x0": torch.arange(64.0)})
    assert torch.equal(cache.get(name(1))["x0"], torch.arange(64.0))


def test_what_was_not_used_the_longest_goes_first_and_what_this_run_used_never(tmp_path):
    with TensorCache(tmp_path) as before:
        sizes = [before.put(name(number), {"x0": torch.zeros(1000)}) for number in range(6)]
    for number in range(6):
        age = time.time() - 1000 + 100 * (number if number != 0 else 3.5)  # of which 1 is the oldest, then 2 and 3
        os.utime(tmp_path / "00" / f"{name(number)}.safetensors", (age, age))
    with TensorCache(tmp_path, budget=3 * sizes[0]) as cache:
        assert cache.holds(name(1))  # used now, the oldest though it was
        assert cache.evict() == 3 * sizes[0]
        assert [number for number in range(6) if cache.holds(name(number))] == [1, 4, 5]
        cache.evict(room=10**9)
        assert [number for number in range(6) if cache.holds(name(number))] == [1, 4, 5]  # all are used now


def test_nothing_is_evicted_under_another_run(tmp_path):
    with TensorCache(tmp_path) as old:
        old.put(name(1), {"x0": torch.zeros(1000)})
    past = time.time() - 1000
    os.utime(tmp_path / "00" / f"{name(1)}.safetensors", (past, past))
    with TensorCache(tmp_path, budget=0) as cache:
        with TensorCache(tmp_path):
            assert cache.evict() == 0
        assert cache.evict() > 0


def aged(folder, key: str) -> None:
    """Makes an entry one that was not used for long."""
    past = time.time() - 1000
    os.utime(folder / key[:2] / f"{key}.safetensors", (past, past))


def test_the_processes_of_a_run_are_not_in_the_way_of_the_one_that_evicts(tmp_path):
    with TensorCache(tmp_path, budget=0) as first, TensorCache(tmp_path, budget=0, guard=False) as second:
        first.put(name(1), {"x0": torch.zeros(1000)})
        aged(tmp_path, name(1))
        assert second.evict() == 0 and first.evict() > 0


def test_a_run_that_would_evict_never_lets_go_of_what_it_uses(tmp_path, monkeypatch):
    """A lock is dropped before it is exchanged for a stricter one: another run must not get in between."""
    with TensorCache(tmp_path, budget=0) as one, TensorCache(tmp_path, budget=0) as other:
        one.put(name(1), {"x0": torch.zeros(1000)})
        aged(tmp_path, name(1))  # used by one, long ago, as runs of many hours do
        real, asked = fcntl.flock, []

        def flock(file, how):
            if how & fcntl.LOCK_EX and Path(file.name).name == "cache.lock" and not asked:
                asked.append(file)
                real(file, fcntl.LOCK_UN)  # as the kernel does first
                other._opened += 1000
                assert other.evict() == 0
            real(file, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        one.evict()
        assert asked and one.holds(name(1))


def test_a_disk_without_locks_is_no_error_and_loses_nothing(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with TensorCache(tmp_path, budget=0) as cache:
        cache.put(name(1), {"x0": torch.zeros(1000)})
        aged(tmp_path, name(1))
        assert cache.evict() == 0 and cache.get(name(1))["x0"].shape == (1000,)


@pytest.fixture
def place():
    """A folder that other users can reach, as those of pytest's cannot be."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def somebody():
    """Runs work as another user, who may read what is there and write what he is let; tests run as root or nobody."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")

    def run(work) -> None:
        def as_another():
            os.setgid(65534)
            os.setuid(65534)
            work()

        assert forks.in_child(as_another) == 0

    return run


@pytest.mark.parametrize("shared", [True, False])
def test_a_cache_of_several_users(place, somebody, shared):
    """What one made the other uses; where the folder is open to all he adds to it and evicts, else he is told."""
    folder = place / "cache"
    folder.mkdir()
    folder.chmod(0o777 if shared else 0o755)
    with TensorCache(folder) as mine:
        mine.put(name(1), {"x0": torch.zeros(1000)})
        mine.put(name(2), {"x0": torch.ones(1000)})
    aged(folder, name(1))
    aged(folder, name(2))

    def work():
        with TensorCache(folder, budget=0) as cache:
            assert cache.holds(name(1)) and cache.get(name(1))["x0"].sum() == 0
            if shared:
                cache.put(name(3), {"x0": torch.zeros(9)})
                assert cache.evict() > 0 and cache.holds(name(1)) and not cache.holds(name(2))
            else:
                assert cache.evict() == 0 and cache.holds(name(2))
                with pytest.raises(StorageError, match=r"no permission to write .*choose another folder"):
                    cache.put(name(3), {"x0": torch.zeros(9)})

    somebody(work)


def test_what_a_killed_run_left_half_written_is_cleared_away(cache):
    cache.put(name(1), {"x0": torch.zeros(3)})
    half, fresh = (cache.folder / "00" / f"{number}{PRIVATE}" for number in (7, 8))
    half.write_bytes(b"half")
    fresh.write_bytes(b"being written")
    os.utime(half, (0, 0))
    assert cache.used() == cache.size(name(1))
    assert not half.exists() and fresh.exists()


def test_entries_take_half_the_room_where_that_loses_nothing():
    exact, not_exact = torch.randn(9).bfloat16().float(), torch.randn(9)
    assert narrowed(exact).dtype == torch.bfloat16 and torch.equal(narrowed(exact).float(), exact)
    assert narrowed(torch.tensor([1 + 2**-9])).dtype == torch.float16
    assert narrowed(not_exact) is not_exact and narrowed(torch.tensor([torch.nan])).dtype == torch.float32
    assert narrowed(torch.arange(3)).dtype == torch.int64


def test_a_condition_comes_back_with_all_that_is_shared(cache):
    rows = {"cond/states": torch.randn(1, 3, 4).bfloat16().float(), "cond/mask": torch.ones(1, 3, dtype=torch.bool)}
    shared = {
        "cond/ids": torch.arange(6).view(3, 2), "cond/sizes": [(1, 2, 3)], "cond/flag": True, "cond/none": None,
        "cond/kw": {"scale": 1.5, "name": "x"}, "cond/dtype": torch.float16, "cond/pair": (1, 2),
    }  # fmt: skip
    stored.save_condition(cache, name(2), Condition(rows, shared))
    found = stored.load_condition(cache, name(2))
    assert found.key == Condition(rows, shared).key
    assert all(torch.equal(found.rows[key], rows[key]) and found.rows[key].dtype == rows[key].dtype for key in rows)
    assert torch.equal(found.shared.pop("cond/ids"), shared.pop("cond/ids")) and found.shared == shared
    with pytest.raises(CacheError, match=r"conditions cannot be kept on disk: shared.cond/odd: a object"):
        stored.save_condition(cache, name(3), Condition(rows, {"cond/odd": object()}))


@pytest.mark.parametrize("how", ["full", "forbidden"])
def test_a_disk_that_takes_no_index_is_told_in_one_line_and_what_was_there_stays(tmp_path, how):
    line = stored.Line("x", "a cat", ["0"], "1", "2", "3", [[None]], [], [[]], 1.0)
    stored.write_lines(tmp_path / "rows.jsonl", [line])
    stored.write_lines(tmp_path / "part", [line, None] * 99)
    before = (tmp_path / "rows.jsonl").read_bytes()
    for work in (
        lambda: stored.write_lines(tmp_path / "rows.jsonl", [line] * 99),
        lambda: stored.merge([tmp_path / "part"], tmp_path / "rows.jsonl"),
    ):
        aside = tmp_path / "rows.jsonl.partial"
        aside.symlink_to("/dev/full") if how == "full" else aside.mkdir()
        said = (
            "disk full: .*rows.jsonl .*make room" if how == "full" else "rows.jsonl could not be written: .*directory"
        )
        with pytest.raises(StorageError, match=said):
            work()
        assert (tmp_path / "rows.jsonl").read_bytes() == before and (tmp_path / "part").is_file()
        if how == "forbidden":
            aside.rmdir()


def test_what_fails_while_an_index_is_written_is_not_blamed_on_the_disk(tmp_path):
    def lines():
        yield None
        raise ConnectionResetError("the hub hung up")

    with pytest.raises(ConnectionResetError):
        stored.write_lines(tmp_path / "rows.jsonl", lines())
    assert not list(tmp_path.iterdir())
