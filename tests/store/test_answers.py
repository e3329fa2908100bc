"""An answer that brings the next leases along, the count of answers that stand, and raters that are kept in memory."""

from __future__ import annotations

import random

import pytest
import sqlalchemy as sa

from palate import project
from palate.store import Store, StoreError, schema, sessions
from tests.store.make import filled, go_back, pair

LEFT = {"overall": "left"}


def counted(store: Store, rater: str) -> int:
    """The answers that stand, counted one by one."""
    table = schema.answers
    query = sa.select(sa.func.count()).where(table.c.rater == rater, table.c.kind == "answer", sa.not_(table.c.undone))
    with store._database.read() as connection:
        return connection.scalar(query)


def test_an_answer_brings_what_a_lease_would(opened):
    store = filled(opened(known_share=0, repeat_share=0), 6, 2)
    rater, _ = store.add_rater("ada")
    first, second, third = store.lease(rater, 3)
    saved = store.answer(rater, first.id, "k1", LEFT, n=3)
    (fourth,) = saved.leases
    assert (saved.status, saved.done, fourth.comparison.id) == ("saved", 1, "c3")
    assert store.lease(rater, 3) == [second, third, fourth]
    known = store.answer(rater, first.id, "k1", LEFT, n=3)  # its reply was lost
    assert (known.status, known.done, known.leases) == ("known", 1, (second, third, fourth))
    late = store.answer(rater, first.id, "other tab", LEFT, n=4)
    assert (late.status, late.done, [lease.comparison.id for lease in late.leases]) == ("late", 1, ["c4"])
    alone = store.answer(rater, second.id, "k2", LEFT)
    assert (alone.status, alone.done, alone.leases) == ("saved", 2, ())
    skipped = store.answer(rater, third.id, "k3", {"overall": "skip"}, n=16)
    assert skipped.done == 3 and [lease.comparison.id for lease in skipped.leases] == ["c5"]  # all that is left
    assert [lease.comparison.id for lease in store.held(rater)] == ["c3", "c4", "c5"]


def test_an_answer_finds_what_others_let_go(opened):
    store = filled(opened(lease_minutes=10), 2, 1)
    (ada, _), (bo, _) = store.add_rater("ada"), store.add_rater("bo")
    (mine,) = store.lease(ada, 1, now=1000.0)
    store.lease(bo, 1, now=1001.0)
    receipt = store.answer(ada, mine.id, "k1", LEFT, now=1610.0, n=2)  # nobody was given its place: it counts
    assert (receipt.status, receipt.leases) == ("saved", ())  # what bo held is free from now on
    (found,) = store.answer(ada, mine.id, "k1", LEFT, now=1610.5, n=2).leases
    assert found.comparison.id == "c1"


def test_who_asks_to_be_spared_is_told_of_nothing_sensitive(opened):
    store = filled(opened(known_share=0, repeat_share=0), 4, 2)
    store.add_comparisons(pair(number, 2, id=f"c{number} again", sensitive=True) for number in range(4))
    rater, _ = store.add_rater("ada")
    held = store.lease(rater, 6)
    assert [lease.comparison.sensitive for lease in held] == [False] * 4 + [True] * 2
    store.set_preference(rater, opted_out=True)
    receipt = store.answer(rater, held[0].id, "k1", LEFT, n=4)
    assert list(receipt.leases) == held[1:4] == store.lease(rater, 4)
    store.set_preference(rater, opted_out=False)
    assert list(store.answer(rater, held[1].id, "k2", LEFT, n=4).leases) == held[2:6]


def test_the_count_is_of_answers_that_stand(opened):
    store = filled(opened(), 6, 2)
    rater, _ = store.add_rater("ada")
    for number, lease in enumerate(store.lease(rater, 4)):
        said = {"overall": "skip" if number == 1 else "left"}
        for _ in range(2):
            assert store.answer(rater, lease.id, f"k{number}", said).done == number + 1
    assert [store.undo(rater, "u1").done for _ in range(2)] == [3, 3]
    assert store.undo(rater, "u2").done == 2 == store.answered(rater) == counted(store, rater)
    assert store.answered("nobody") == 0
    bo, _ = store.add_rater("bo")
    assert store.undo(bo, "u1").done == 0
    store.erase(rater, votes=True)
    assert store.answered(rater) == counted(store, rater) == 0


def test_a_project_of_before_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.delenv(project.DATABASE, raising=False)
    with Store.open(tmp_path / "p", create=True) as store:
        rater, _ = filled(store, 3).add_rater("ada")
        for number, lease in enumerate(store.lease(rater, 3)):
            store.answer(rater, lease.id, f"k{number}", LEFT)
        store.undo(rater, "u")
        go_back(store, "0002")
    with Store.open(tmp_path / "p") as store:
        assert store.answered(rater) == 2


def test_a_rater_is_kept_for_a_moment_and_forgotten_at_once(opened, monkeypatch):
    store = opened()
    rater, token = store.add_rater("Ada")
    assert store.rater_lately_of(token) is None
    assert store.rater_of(token) == store.rater_lately_of(token)
    store.set_preference(rater, blur=True)
    assert store.rater_lately_of(token) is None
    assert store.rater_of(token).blur and store.rater_lately_of(token).blur
    store.revoke(rater)
    assert store.rater_lately_of(token) is None and store.rater_of(token) is None
    assert store.rater_lately_of(token) is None  # who is let in by nothing is looked up each time
    bo, other = store.add_rater("Bo")
    store.rater_of(other)
    store.erase(bo)
    assert store.rater_lately_of(other) is None and store.rater_of(other) is None


def test_what_another_process_revokes_holds_in_bounded_time(opened, monkeypatch):
    at = 100.0
    monkeypatch.setattr(sessions.time, "monotonic", lambda: at)
    store = opened()
    rater, token = store.add_rater("Ada")
    store.rater_of(token)
    table = schema.raters
    store._database.write(lambda c: c.execute(sa.update(table).where(table.c.id == rater).values(revoked=True)))
    at += sessions.SECONDS - 0.01
    assert store.rater_lately_of(token).id == rater
    at += 0.02
    assert store.rater_lately_of(token) is None and store.rater_of(token) is None
    assert sessions.SECONDS <= 2


def test_a_rater_who_is_revoked_while_looked_up_is_not_kept():
    kept = sessions.Sessions()
    ada = sessions.Rater("rater-1", "Ada", "rater", "2026-11-21T12:00:00+00:00")
    changes = kept.changes
    kept.forget()  # between the reading and the keeping
    kept.keep("token", ada, changes)
    assert kept.get("token") is None
    kept.keep("token", ada, kept.changes)
    assert kept.get("token") == ada and kept.get("other") is None
    expired = sessions.Rater("rater-2", "Bo", "rater", "", expires="2020-01-01T00:00:00+00:00")
    kept.keep("old", expired, kept.changes)
    assert kept.get("old") is None


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_is_leased_along_with_what_is_refused(opened, n):
    store = filled(opened(), 3)
    (ada, _), (bo, _) = store.add_rater("ada"), store.add_rater("bo")
    (lease,) = store.lease(ada, 1)
    with pytest.raises(StoreError, match="not this rater's"):
        store.answer(bo, lease.id, "k", LEFT, n=n)
    assert store.held(bo) == []


def places_are_right(store: Store) -> None:
    """Of each comparison as many places are taken as raters hold or have answered it for the first time."""
    places, leases = schema.places, schema.leases
    taken = sa.select(sa.func.count()).where(
        leases.c.comparison == places.c.comparison, ~leases.c.repeat, leases.c.state.in_(("open", "answered"))
    )
    query = sa.select(places.c.comparison, places.c.free, schema.comparisons.c.wanted, taken.scalar_subquery())
    query = query.join(schema.comparisons, schema.comparisons.c.id == places.c.comparison).where(~places.c.known)
    with store._database.read() as connection:
        for comparison, free, wanted, held in connection.execute(query):
            assert free == wanted - held >= 0, comparison


@pytest.mark.parametrize("n", [0, 1, 3, 16])
def test_places_add_up_whatever_raters_say(opened, n, drawn_alike):
    store = filled(opened(known_share=0.1, repeat_share=0.2), 30, 2)
    store.add_comparisons([pair(0, id="known", expected="s0")])
    rng, raters = random.Random(n), [store.add_rater(name)[0] for name in ("ada", "ben", "cem")]
    said = 0
    for turn in range(150):
        rater = rng.choice(raters)
        if rng.random() < 0.1:
            store.undo(rater, f"undo {turn}", now=float(turn))
        if rng.random() < 0.05:
            store.set_preference(rater, opted_out=rng.random() < 0.5)
        waiting = store.lease(rater, max(n, 1), now=float(turn))
        if not waiting:
            continue
        lease, choice = rng.choice(waiting), rng.choice(("left", "right", "skip"))
        late = 601.0 if rng.random() < 0.1 else 0.0  # its time is over
        for _ in range(2 if rng.random() < 0.2 else 1):  # sent again, at times
            receipt = store.answer(rater, lease.id, f"key {turn}", {"overall": choice}, now=turn + late, n=n)
            assert receipt.status in ("saved", "known", "late")
        said += receipt.status != "late"
        places_are_right(store)
    assert said > 50


def test_who_sends_again_what_they_took_back_holds_no_more_than_they_asked_for(opened):
    store = filled(opened(known_share=0, repeat_share=0), 9)
    rater, _ = store.add_rater("ada")
    lease = store.lease(rater, 2)[0]
    assert store.answer(rater, lease.id, "key", {"overall": "left"}, n=2).status == "saved"
    assert store.undo(rater, "undo").status == "saved"
    held = {one.id for one in store.held(rater)}
    assert lease.id in held and len(held) == 3
    assert store.answer(rater, lease.id, "key", {"overall": "left"}, n=3).status == "known"
    assert {one.id for one in store.held(rater)} == held
