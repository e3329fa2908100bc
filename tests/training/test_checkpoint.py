"""Checkpoints are whole or not there, hold anything a run needs, execute nothing, and say what is wrong with them."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palate import durable
from palate.training import checkpoint
from tests.training import forks, tiny

PARTS = {"weights": {"a": torch.arange(6.0).view(2, 3)}, "trainer": {"step": 3, "note": "x", "nothing": None}}


def saved(root: Path, *steps: int, keep: int = 9) -> list[Path]:
    return [checkpoint.save(root, step, PARTS, keep=keep) for step in steps]


# --- what they hold ---------------------------------------------------------------------------------------------------


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
@settings(max_examples=150, deadline=None)
def test_plain_values_come_back_as_they_were(tree):
    tensors: dict[str, torch.Tensor] = {}
    back = checkpoint.unpack(json.loads(json.dumps(checkpoint.pack(tree, tensors))), tensors)
    assert back == tree and repr(back) == repr(tree)


def test_tensors_come_back_bit_for_bit(tmp_path):
    shared = torch.randn(4, 3)
    tree = {
        "a.b": shared,
        "a": {"b": shared[1:], "deep": [(shared.T, torch.tensor(2.5)), {7: torch.tensor([True])}]},
        "half": torch.randn(3).bfloat16(),
        "random": torch.get_rng_state(),
        "empty": torch.zeros(0, 4),
        "odd": [math.inf, -0.0, 1e-323, 2**70, torch.bfloat16],
    }
    back = checkpoint.load(checkpoint.save(tmp_path, 1, {"all": tree}, keep=1)).parts["all"]
    flat, flat_back = {}, {}
    assert json.dumps(checkpoint.pack(tree, flat)) == json.dumps(checkpoint.pack(back, flat_back))
    assert all(torch.equal(flat[n], flat_back[n]) and flat[n].dtype == flat_back[n].dtype for n in flat)
    assert isinstance(back["a"]["deep"][0], tuple) and back["odd"][4] is torch.bfloat16


def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"values\.rewards\.1: a set cannot be kept"):
        checkpoint.save(tmp_path, 1, {"algorithm": {"values": {"rewards": [1, {2}]}}}, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_pickled(tmp_path):
    run = tiny.online(tmp_path)
    run.run()
    suffixes = {path.suffix for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}
    package = Path(checkpoint.__file__).parent
    text = "".join(path.read_text() for path in package.glob("*.py"))
    assert not any(word in text for word in ("import pickle", "torch.load", "torch.save", "allow_pickle"))


# --- durability -------------------------------------------------------------------------------------------------------


def test_files_are_synced_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, rename = durable.fsync, Path.rename
    monkeypatch.setattr(durable, "fsync", lambda path: (events.append(f"sync {path.name}"), fsync(path)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (events.append(f"rename {b.name}"), rename(a, b))[1])
    saved(tmp_path / "checkpoints", 5)
    aside = f"palate-tmp-step-00000005-{os.getpid()}"
    files = ["manifest.json", "state.json", "weights.safetensors"]
    assert events == [*(f"sync {name}" for name in files), f"sync {aside}", "rename step-00000005", "sync checkpoints"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_kernel_sees_the_same_order(tmp_path):
    script = (
        "import sys, torch; from pathlib import Path; from palate.training import checkpoint;"
        "checkpoint.save(Path(sys.argv[1]), 5, {'weights': {'a': torch.ones(3)}}, keep=1)"
    )
    trace = tmp_path / "trace"
    python = shutil.which("python", path=str(Path(os.sys.executable).parent))
    watched = "trace=fsync,rename,renameat,renameat2"
    subprocess.run(
        ["strace", "-f", "-y", "-e", watched, "-o", trace, python, "-c", script, tmp_path],
        check=True,
        capture_output=True,
    )  # fmt: skip
    calls = [line for line in trace.read_text().splitlines() if "step-00000005" in line or f"<{tmp_path}>" in line]
    kinds = ["rename" if "rename" in line else "sync" for line in calls if 'weights.safetensors")' not in line]
    assert kinds == ["sync"] * 4 + ["rename", "sync"]  # safetensors itself renames the file it wrote, before that


def test_retention_keeps_the_newest_by_number(tmp_path):
    saved(tmp_path, 9, 10, 100, keep=2)
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["step-00000010", "step-00000100"]


def test_a_checkpoint_is_replaced_only_by_a_durable_one(tmp_path):
    """Saving a step that stands there damaged works, and at every moment a valid checkpoint exists."""
    _, newest = saved(tmp_path, 1, 2)
    (newest / "state.json").write_text("{")
    real, valid = Path.rename, []

    def watched(self, target):
        valid.append(sum(_valid(folder) for folder in checkpoint.folders(tmp_path)))
        return real(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", watched)
        saved(tmp_path, 2, keep=1)
    assert min(valid) >= 1 and checkpoint.newest(tmp_path) == newest
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def _valid(folder: Path) -> bool:
    try:
        return checkpoint.verify(folder) > 0
    except checkpoint.CheckpointError:
        return False


def test_only_what_a_crash_left_behind_is_swept(tmp_path):
    """A run's folder may be the user's own, by `output=.`."""
    mine = ["tmp-notes", "tmp-step-00000005-123", "tmp-removed-photos", "palate-tmpl", "checkpoints/tmp-mine"]
    for name in mine:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "precious.txt").write_text("mine")
    left = ["palate-tmp-adapter-99", "checkpoints/palate-tmp-removed-step-00000001"]
    for name in left:
        (tmp_path / name).mkdir(parents=True)
    tiny.offline(tmp_path).run()
    assert all((tmp_path / name / "precious.txt").is_file() for name in mine)
    assert not any((tmp_path / name).exists() for name in left)


def test_every_folder_that_is_not_whole_has_a_name_that_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: None)  # as if killed before each removal
    (one, two) = saved(tmp_path, 1, 2)
    durable.remove_folder(one)
    saved(tmp_path, 2)
    with pytest.raises(KeyError), durable.written_aside(two):
        raise KeyError
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 4
    durable.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [two]


# --- damage -----------------------------------------------------------------------------------------------------------


def damages(folder: Path, seed: int):
    """Every file of a checkpoint cut, flipped, emptied or deleted at a seeded place."""
    draw = random.Random(seed)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        place = draw.randrange(len(whole))
        yield f"{path.name} cut", path, whole[:place]
        yield (
            f"{path.name} flipped",
            path,
            whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :],
        )
        yield f"{path.name} emptied", path, b""
        yield f"{path.name} deleted", path, None


def test_all_damage_is_found_named_and_passed_over(tmp_path):
    older, newest = saved(tmp_path, 1, 2)
    count = 0
    for seed in range(6):
        for what, path, content in damages(newest, seed):
            whole = path.read_bytes()
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
            if what != "manifest.json flipped" or not _valid(newest):  # a flipped space of JSON is no damage
                said: list[str] = []
                assert checkpoint.newest(tmp_path, said.append) == older, what
                assert len(said) == 1 and "step-00000002" in said[0] and "continuing from step-00000001" in said[0]
                with pytest.raises(checkpoint.CheckpointError, match="step-00000002"):
                    checkpoint.load(newest)
                count += 1
            path.write_bytes(whole)
    assert count >= 66
    assert checkpoint.newest(tmp_path, pytest.fail) == newest


def test_files_of_two_steps_swapped_are_found(tmp_path):
    one = checkpoint.save(tmp_path, 1, {"weights": {"a": torch.zeros(3)}}, keep=9)
    two = checkpoint.save(tmp_path, 2, {"weights": {"a": torch.ones(3)}}, keep=9)
    shutil.copy(one / "weights.safetensors", two / "weights.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match=r"content of weights\.safetensors has changed"):
        checkpoint.load(two)
    shutil.rmtree(two)
    one.rename(two)
    with pytest.raises(checkpoint.CheckpointError, match="manifest is of step 1"):
        checkpoint.load(two)


def test_no_valid_checkpoint_left_is_an_error_and_none_at_all_is_a_start(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    (only,) = saved(tmp_path, 1)
    (only / "state.json").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="no valid checkpoint is left"):
        checkpoint.newest(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path / "step-00000007")


def test_a_later_format_is_refused_by_number(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    (folder,) = saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(checkpoint.CheckpointError, match=f"format {checkpoint.FORMAT + 1}, this version reads"):
        checkpoint.load(folder)


def test_a_run_falls_back_says_so_and_ends_the_same(tmp_path, capfd):
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    tiny.offline(whole).run()
    tiny.offline(hurt).run()
    newest = checkpoint.folders(hurt / "checkpoints")[-1]
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    again = tiny.offline(hurt)
    again._progress = True
    again.run()
    assert "step-00000006 is damaged: weights.safetensors has" in capfd.readouterr().err
    names = forks.fingerprint(whole).keys() - {"folders"}
    assert {n: forks.fingerprint(hurt)[n] for n in names} == {n: forks.fingerprint(whole)[n] for n in names}
    assert (hurt / "checkpoints" / "aside-step-00000006").is_dir()


# --- a disk that does not want ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """4 MiB, if this user may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder]).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_costs_no_good_checkpoint(small_disk):
    good = checkpoint.save(small_disk, 1, PARTS, keep=2)
    big = {"weights": {"a": torch.zeros(2**20 + 1)}}
    with pytest.raises(
        durable.StorageError, match=r"disk full: .* needs 4,194,308 bytes and has [\d,]+ free"
    ) as refused:
        checkpoint.save(small_disk, 2, big, keep=2)
    assert "\n" not in str(refused.value)
    assert checkpoint.newest(small_disk, pytest.fail) == good
    assert [path.name for path in small_disk.iterdir()] == ["step-00000001"]


def test_a_disk_that_fills_while_writing_is_one_line_too(small_disk, monkeypatch):
    good = checkpoint.save(small_disk, 1, PARTS, keep=2)
    monkeypatch.setattr(durable, "require_space", lambda folder, needs: None)
    with pytest.raises(
        durable.StorageError, match=r"disk full: .*step-00000002 could not be written \(5,000,000 bytes needed"
    ):
        checkpoint.save(small_disk, 2, {"weights": {"a": torch.zeros(1_250_000)}}, keep=2)
    assert checkpoint.newest(small_disk, pytest.fail) == good
    assert [path.name for path in small_disk.iterdir()] == ["step-00000001"]
    checkpoint.save(small_disk, 2, PARTS, keep=2)  # with room again


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_any_error_of_the_disk_is_one_line_and_leaves_no_half(tmp_path, monkeypatch, number):
    good = checkpoint.save(tmp_path, 1, PARTS, keep=2)
    words = {errno.ENOSPC: "disk full", errno.EACCES: "no permission", errno.EROFS: "no permission"}

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(durable, "fsync", fail)
    with pytest.raises(durable.StorageError, match=words.get(number, "could not be written")) as error:
        checkpoint.save(tmp_path, 2, PARTS, keep=2)
    assert "\n" not in str(error.value) and "step-00000002" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"] and _valid(good)


def test_a_run_refuses_a_disk_too_small_for_it_before_the_first_step(tmp_path, monkeypatch):
    run = tiny.offline(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: os.statvfs_result([0] * 10) and _Usage())
    with pytest.raises(durable.StorageError, match=r"needs .* bytes and has 100 free"):
        run.run()
    assert run.step == 0


class _Usage:
    free = 100


def test_a_run_that_meets_a_full_disk_continues_when_there_is_room(tmp_path, monkeypatch):
    tiny.offline(tmp_path / "whole").run()
    real, calls = checkpoint.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(durable.StorageError, match="disk full"):
        tiny.offline(tmp_path / "run").run()
    monkeypatch.undo()
    assert [_valid(folder) for folder in checkpoint.folders(tmp_path / "run" / "checkpoints")] == [True]
    tiny.offline(tmp_path / "run").run()
    assert forks.fingerprint(tmp_path / "run") == forks.fingerprint(tmp_path / "whole")


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_a_second_live_run_is_refused_by_name_and_a_dead_ones_lock_is_void(tmp_path):
    ready, go = os.pipe()
    holder = os.fork()
    if not holder:
        with durable.locked(tmp_path):
            os.write(go, b"x")
            os.read(os.pipe()[0], 1)
    os.read(ready, 1)
    with pytest.raises(durable.StorageError, match=f"{tmp_path} is in use by another run .process {holder}."):
        tiny.offline(tmp_path).run()
    os.kill(holder, 9)
    os.waitpid(holder, 0)
    with durable.locked(tmp_path):
        pass
