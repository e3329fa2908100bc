"""What a scorer said of a row it says for good: in later starts, under other processes, after a kill."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from palate.durable import StorageError
from palate.records import Medium, Preference
from palate.relabel import Relabel
from palate.training.labels import Labels, Shown

BY = {"coin": 1.0}


class Coin:
    """A scorer that never says the same twice. asked: how many media."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, prompts, media):
        values = [math.sin(7.0 * (self.asked + i)) for i in range(len(media))]
        self.asked += len(media)
        return {"luck": values, "looks": [math.nan if m == "bad" else math.inf for m in media]}


def row(prompt: str = "a cat") -> Preference:
    media = tuple(Medium("image/png", bytes=bytes([i])) for i in range(3))
    return Preference(prompt=prompt, media=media, prefer=[[math.nan] * 3] * 3, id="mine")


def shown(place: int, content=("x", "", "y"), media=("good", None, "bad")) -> Shown:
    return Shown(place, content, lambda: list(media))


def labels(folder, coin, by=BY, rank=0) -> Labels:
    return Labels(Relabel(coin), folder, by, rank)


def test_a_later_start_reads_what_the_first_was_told_and_decodes_nothing(tmp_path):
    coin = Coin()
    with labels(tmp_path, coin) as first:
        made = [first(row(), shown(place)) for place in (0, 1)]  # the same row twice in the data
        assert coin.asked == 4 and made[0] != made[1]
    unseen = Shown(0, ("x", "", "y"), lambda: pytest.fail("a medium was decoded"))
    with labels(tmp_path, coin) as later:
        assert repr([later(row(), unseen), later(row(), shown(1))]) == repr(made)
        assert repr(later(row(), shown(7))) in map(repr, made), "a row that moved keeps its label"
        assert coin.asked == 4
        for other in (shown(0, content=("x", "", "z")), shown(0, content=("x", "y", ""))):
            later(row(), other)
        later(row("a dog"), shown(0))
    assert coin.asked == 10
    with labels(tmp_path, coin, {"coin": 2.0}) as others:
        others(row(), shown(0))
    assert coin.asked == 12


def test_any_process_finds_what_any_other_was_told(tmp_path):
    coin, made = Coin(), {}
    for rank in range(3):
        with labels(tmp_path, coin, rank=rank) as one:
            made |= {place: one(row(f"cat {place}"), shown(place)) for place in range(rank, 9, 3)}
    with labels(tmp_path, coin) as alone:
        assert all(repr(alone(row(f"cat {place}"), shown(place))) == repr(made[place]) for place in range(9))
    assert coin.asked == 18


@pytest.mark.parametrize("cut", [1, 9, 10**6])
def test_after_a_kill_whole_lines_are_there_and_half_a_line_is_not(tmp_path, cut):
    coin = Coin()
    with labels(tmp_path, coin) as first:
        made = first(row(), shown(0))
        first(row("a dog"), shown(1))
    path = tmp_path / "labels-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut] if cut < 10**6 else b"x" * 200_000)
    with labels(tmp_path, coin) as again:
        again(row("a dog"), shown(1))
        assert coin.asked == 6
        assert cut == 10**6 or repr(again(row(), shown(0))) == repr(made)
    with labels(tmp_path, coin) as once_more:
        once_more(row("a dog"), shown(1))
        assert coin.asked == 6 and path.read_bytes().startswith(b"{")


def test_a_full_disk_is_told_in_one_line(tmp_path):
    with labels(tmp_path, Coin()) as kept, Path("/dev/full").open("wb", buffering=0) as full:
        os.dup2(full.fileno(), kept._out.fileno())
        with pytest.raises(StorageError, match=r"disk full: .*labels-0\.jsonl .*make room"):
            kept(row(), shown(0))
        os.dup2(os.open(tmp_path / "elsewhere", os.O_CREAT | os.O_WRONLY), kept._out.fileno())
