"""Numbers that take time to find are found seldom, and nobody waits for them twice."""

from __future__ import annotations

import threading

import pytest

from palate.studio import context, dashboard, files
from palate.studio.context import Remembered, Studio

from . import make


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still."""
    at = [100.0]
    monkeypatch.setattr(context.time, "monotonic", lambda: at[0])
    return at


def test_a_number_is_kept_for_its_time(clock):
    found = iter(range(9))
    number = Remembered(lambda: next(found), 10.0)
    assert [number.get(), number.get()] == [0, 0]
    clock[0] += 9.9
    assert number.get() == 0
    clock[0] += 0.2
    assert [number.get(), number.get()] == [1, 1]


def test_a_number_that_took_long_is_kept_for_longer(clock):
    def find() -> float:
        clock[0] += 6.0
        return clock[0]

    number = Remembered(find, 10.0)
    first = number.get()
    clock[0] += 6.0 / context.MOST_BUSY - 0.1
    assert number.get() == first
    clock[0] += 0.2
    assert number.get() > first


def test_while_a_number_is_found_others_see_the_last(clock):
    begun, go_on, found = threading.Event(), threading.Event(), iter("ab")

    def find() -> str:
        if begun.is_set():
            go_on.wait(10)
        return next(found)

    number = Remembered(find, 1.0)
    assert number.get() == "a"
    begun.set()
    clock[0] += 2.0
    seen: list[str] = []
    finding = threading.Thread(target=lambda: seen.append(number.get()))
    finding.start()
    while not number._finding.locked():
        pass
    assert number.get() == "a"
    go_on.set()
    finding.join(10)
    assert seen == ["b"] and number.get() == "b"


def test_a_number_that_cannot_be_found_is_tried_again(clock):
    tried: list[int] = []

    def find() -> int:
        tried.append(1)
        if len(tried) == 1:
            raise OSError("the database is away")
        return 7

    number = Remembered(find, 1.0)
    with pytest.raises(OSError, match="away"):
        number.get()
    assert number.get() == 7


def test_votes_are_read_again_only_when_something_came(tmp_path, monkeypatch):
    with make.project(tmp_path / "p", 4) as store:
        finder, reads = dashboard.Finder(Studio(store)), []
        alpha = dashboard.agreement.alpha
        monkeypatch.setattr(dashboard.agreement, "alpha", lambda *a, **k: reads.append(1) or alpha(*a, **k))
        rater, _ = store.add_rater("Ada")
        (first, second) = store.lease(rater, 2)
        assert [finder.find().progress.votes for _ in range(3)] == [0] * 3 and len(reads) == 1
        store.answer(rater, first.id, "key-1", {"overall": "left"})
        assert [finder.find().progress.votes for _ in range(3)] == [1] * 3 and len(reads) == 2
        store.undo(rater, "undo-1")
        assert finder.find().raters == {} and len(reads) == 3
        store.answer(rater, second.id, "key-2", {"overall": "left"})
        assert set(finder.find().raters) == {rater}
        store.erase(rater, votes=True)
        assert finder.find().raters == {} and len(reads) == 5


def test_pictures_that_are_kept_stay_within_their_bytes(tmp_path):
    views = files.Views(kept_bytes=0)
    for number in range(3):
        path = tmp_path / f"{number}.png"
        path.write_bytes(make.picture(number, text="said by a generator"))
        views.of(str(number), path, "image/png")
    assert list(views._kept) == ["2"] and views._bytes == files._held(views._kept["2"])
    views = files.Views()
    for number in (0, 1, 1):
        views.of(str(number), tmp_path / f"{number}.png", "image/png")
    assert views._bytes == sum(map(files._held, views._kept.values())) > 0


def test_raters_of_rankings_agree_as_their_pairs_do(tmp_path):
    with make.project(tmp_path / "p", 4, show=3, wanted=2, kind="ranking") as store:
        for name in ("ada", "ben"):
            rater, _ = store.add_rater(name)
            for number, lease in enumerate(store.lease(rater, 4)):
                order = sorted(range(3), key=lambda place, shown=lease.samples: shown[place].id)
                if lease.comparison.prompt in ("prompt 0", "prompt 1"):
                    order.reverse()
                said = {"overall": [[place] for place in order]}
                assert store.answer(rater, lease.id, f"key {number}", said).status == "saved"
        alpha = dashboard.find(context.Studio(store)).alphas["overall"]
        assert (alpha.alpha, alpha.pairs, alpha.raters) == (1.0, 12, 2)
