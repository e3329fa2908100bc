"""Who judges what: exactly as many distinct raters as wanted, nobody twice, nothing lost, sides as they were shown."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter

import pytest
import sqlalchemy as sa

from palate import project
from palate.project import ChoiceSettings, ProjectSettings
from palate.records import Comparison, Vote
from palate.store import Lease, Store, StoreError, leases, medium, schema
from tests.store.make import TIME, filled, pair, sample

LEFT = {"overall": "left"}


def test_an_answer_is_turned_as_it_was_shown(opened):
    store = filled(opened(choices={"both_bad": False}), 16, 1)
    rater, _ = store.add_rater("ada")
    leases = store.lease(rater, 16)
    assert (
        len({tuple(s.id for s in lease.samples) == lease.comparison.samples for lease in leases}) == 2
    )  # sides differ
    for number, lease in enumerate(leases[:4]):
        said = ("left", "right", "tie")[number % 3]
        assert store.answer(rater, lease.id, f"k{number}", {"overall": said}, seconds=number / 2).status == "saved"
        vote = list(store.votes())[-1]
        left, right = (s.id for s in lease.samples)
        assert {vote.a, vote.b} == set(lease.comparison.samples) == {left, right}
        assert (vote.left, vote.source, vote.comparison) == (left, rater, lease.comparison.id)
        assert vote.seconds == number / 2 and not vote.repeat
        assert {"a": vote.a, "b": vote.b}.get(vote.choice) == {"left": left, "right": right}.get(said)
    assert store.progress().done == 4


def test_a_ranking_is_read_as_it_was_shown(opened):
    store = opened(kind="ranking", show=4)
    store.add_samples(sample(number, prompt="p") for number in range(4))
    store.add_comparisons([Comparison("c", "p", ("s0", "s1", "s2", "s3"), 1)])
    rater, _ = store.add_rater("ada")
    (lease,) = store.lease(rater)
    for wrong in ([[0, 1]], [[0, 1], [1, 2, 3]], [[0, 1, 2, 4]]):
        with pytest.raises(StoreError, match="place each of 0 to 3"):
            store.answer(rater, lease.id, "k", {"overall": wrong})
    store.answer(rater, lease.id, "k", {"overall": [[2], [0, 3], [1]]})
    shown = [s.id for s in lease.samples]
    (ranking,) = store.rankings()
    assert ranking.groups == ((shown[2],), (shown[0], shown[3]), (shown[1],)) and ranking.shown == tuple(shown)


def test_none_of_several_is_any_good(opened):
    store = opened(kind="ranking", show=3, questions={"overall": "Best?", "style": "Nicest?"})
    store.add_samples(sample(number, prompt="p") for number in range(3))
    store.add_comparisons([Comparison("c", "p", ("s0", "s1", "s2"), 1)])
    rater, _ = store.add_rater("ada")
    (lease,) = store.lease(rater)
    said = {"overall": "both_bad", "style": [[0], [1], [2]]}
    assert store.answer(rater, lease.id, "k", said).status == "saved"
    pairs = [(vote.a, vote.b) for vote in store.votes("overall")]
    assert sorted(pairs) == [("s0", "s1"), ("s0", "s2"), ("s1", "s2")]
    assert {vote.choice for vote in store.votes()} == {"both_bad"} and len(list(store.rankings("style"))) == 1
    assert (store.progress().votes, store.progress().done) == (1, 1)
    assert store.undo(rater, "u").status == "saved"
    assert not list(store.votes()) and not list(store.rankings()) and store.progress().votes == 0


def test_that_none_is_any_good_is_an_answer_only_where_it_is_one(opened):
    store = opened(kind="ranking", show=3, choices=ChoiceSettings(both_bad=False))
    store.add_samples(sample(number, prompt="p") for number in range(3))
    store.add_comparisons([Comparison("c", "p", ("s0", "s1", "s2"), 1)])
    rater, _ = store.add_rater("ada")
    with pytest.raises(StoreError, match="'both_bad' is no answer here"):
        store.answer(rater, store.lease(rater)[0].id, "k", {"overall": "both_bad"})


def test_one_answer_says_something_to_each_question_or_nothing_is_stored(opened):
    store = filled(opened(questions={"overall": "Better?", "style": "Nicer?"}), 1)
    rater, _ = store.add_rater("ada")
    (lease,) = store.lease(rater)
    for wrong, said in (
        ({"overall": "left"}, "each of overall, style; it has overall"),
        ({"overall": "left", "style": "up"}, "style: 'up' is no answer"),
        ({"overall": "left", "style": [[0], [1]]}, "ranking is no answer"),
    ):
        with pytest.raises(StoreError, match=said):
            store.answer(rater, lease.id, "k", wrong)
    with pytest.raises(StoreError, match="needs a key"):
        store.answer(rater, lease.id, "", {"overall": "left", "style": "tie"})
    assert not list(store.votes())
    store.answer(rater, lease.id, "k", {"overall": "left", "style": "skip"})
    assert {vote.dimension for vote in store.votes()} == {"overall", "style"}
    assert store.progress().votes == 1


def test_a_key_counts_once(opened):
    store = filled(opened(), 3)
    rater, _ = store.add_rater("ada")
    first, second = store.lease(rater)
    assert [store.answer(rater, first.id, "k", LEFT).status for _ in range(3)] == ["saved", "known", "known"]
    assert store.answer(rater, first.id, "other tab", LEFT).status == "late"
    with pytest.raises(StoreError, match="belongs to another answer"):
        store.answer(rater, second.id, "k", LEFT)
    other, _ = store.add_rater("bo")
    with pytest.raises(StoreError, match="not this rater's"):
        store.answer(other, second.id, "k", LEFT)
    assert store.answer(other, store.lease(other, 1)[0].id, "k", LEFT).status == "saved"  # keys are each rater's own
    assert len(list(store.votes())) == 2


def test_a_key_sent_many_times_at_once_counts_once(opened):
    store = filled(opened(), 1)
    rater, _ = store.add_rater("ada")
    (lease,) = store.lease(rater)
    said: list[str] = []
    together(8, lambda _: said.append(store.answer(rater, lease.id, "k", LEFT).status))
    assert sorted(said) == ["known"] * 7 + ["saved"] and len(list(store.votes())) == 1


def test_asking_again_gives_the_same_leases(opened):
    store = filled(opened(), 4)
    rater, _ = store.add_rater("ada")
    first = store.lease(rater, 2)
    assert store.lease(rater, 2) == first and store.lease(rater, 1) == first[:1]
    assert store.lease(rater, 3)[:2] == first


def test_leases_that_run_out_go_to_others(opened):
    store = filled(opened(lease_minutes=10), 1, 1)
    (ada, _), (bo, _) = store.add_rater("ada"), store.add_rater("bo")
    (gone,) = store.lease(ada, now=1000.0)
    assert store.lease(bo, now=1000.0 + 599) == []
    (taken,) = store.lease(bo, now=1000.0 + 601)
    assert taken.comparison == gone.comparison
    assert store.answer(ada, gone.id, "k", LEFT, now=1602.0).status == "late"
    assert store.answer(bo, taken.id, "k", LEFT, now=1602.0).status == "saved"
    assert [vote.source for vote in store.votes()] == [bo]


def test_a_late_answer_counts_while_its_place_is_free(opened):
    store = filled(opened(lease_minutes=10), 1, 2)
    (ada, _), (bo, _) = store.add_rater("ada"), store.add_rater("bo")
    (old,) = store.lease(ada, now=1000.0)
    (again,) = store.lease(ada, now=2000.0)  # the same rater, after the end: another lease of the same comparison
    assert old.id != again.id
    assert store.answer(ada, old.id, "k", LEFT, now=2001.0).status == "saved"
    assert store.answer(ada, again.id, "k2", LEFT, now=2001.0).status == "late"
    (other,) = store.lease(bo, now=2002.0)
    store.lease(bo, now=9000.0)
    assert store.answer(bo, other.id, "k", LEFT, now=9001.0).status == "saved"
    assert Counter(vote.source for vote in store.votes()) == {ada: 1, bo: 1}
    assert store.progress().done == 1


def test_a_skip_leaves_the_place_to_others(opened):
    store = filled(opened(), 1, 1)
    (ada, _), (bo, _) = store.add_rater("ada"), store.add_rater("bo")
    (lease,) = store.lease(ada)
    assert store.lease(bo) == []
    store.answer(ada, lease.id, "k", {"overall": "skip"}, reason="broken")
    assert store.lease(ada) == []  # not asked again
    (theirs,) = store.lease(bo)
    store.answer(bo, theirs.id, "k", LEFT)
    assert next((v.choice, v.reason) for v in store.votes()) == ("skip", "broken") and store.progress().votes == 1
    assert store.undo(ada, "u").status == "late"  # its place is another's
    assert store.undo(ada, "u").status == "known" and store.lease(ada) == []
    assert [vote.choice for vote in store.votes()] != ["skip"] and len(list(store.votes())) == 1  # but it is taken back
    assert store.undo(ada, "u2").status == "nothing" and store.progress().votes == 1


def test_what_is_broken_may_be_skipped_where_skips_are_not_asked_for(opened):
    store = filled(opened(choices={"skip": False}), 1)
    rater, _ = store.add_rater("ada")
    (lease,) = store.lease(rater)
    with pytest.raises(StoreError, match="'skip' is no answer here"):
        store.answer(rater, lease.id, "k", {"overall": "skip"}, reason="cannot judge")
    assert store.answer(rater, lease.id, "k", {"overall": "skip"}, reason="broken").status == "saved"


def test_a_skip_whose_place_is_gone_does_not_stand_before_earlier_answers(opened):
    store = filled(opened(), 2, 1)
    (ada, _), (bo, _) = store.add_rater("ada"), store.add_rater("bo")
    first, second = store.lease(ada)
    store.answer(ada, first.id, "k1", LEFT)
    store.answer(ada, second.id, "k2", {"overall": "skip"})
    store.lease(bo)
    assert [store.undo(ada, f"u{number}").status for number in range(2)] == ["late", "saved"]
    assert [lease.id for lease in store.lease(ada)] == [first.id] and not list(store.votes())


def test_a_repeat_that_ran_out_is_answered_once(opened):
    store = filled(opened(known_share=0, repeat_share=0.5), 60, 1)
    rater, _ = store.add_rater("ada")
    at, number = 1000.0, 0
    while not (lease := store.lease(rater, 1, now=at)[0]).repeat:
        store.answer(rater, lease.id, f"k{(number := number + 1)}", LEFT, now=at)
    again = lease
    while again.id == lease.id or not (again.repeat and again.comparison == lease.comparison):
        at += 601 if again.id == lease.id else 0
        again = store.lease(rater, 1, now=at)[0]
        if not again.repeat:
            store.answer(rater, again.id, f"k{(number := number + 1)}", LEFT, now=at)
    assert store.answer(rater, lease.id, "old", LEFT, now=at).status == "saved"
    assert store.answer(rater, again.id, "new", LEFT, now=at).status == "late"
    assert sum(vote.repeat for vote in store.votes()) == 1


def test_what_comes_next_is_found_by_index(tmp_path, monkeypatch):
    """A rater's past is looked up comparison by comparison, and nobody reads the open leases of all, in SQLite."""
    monkeypatch.delenv(project.DATABASE, raising=False)
    with Store.open(tmp_path / "p", create=True) as store, store._database.read() as connection:
        held = "leases_of_rater (rater=? AND"
        for query, index in (
            (leases._ORDINARY, "leases_once (rater=? AND"),
            (leases._HELD, held),
            (leases._HELD_UNSPARED, held),
            (medium._GIVEN, "leases_of_comparison (comparison=?"),
        ):
            given = query.params(rater_of="ada", spared=False, now_of=1.0, rater="ada", sha256="0")
            sql = given.compile(connection)
            plan = connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {sql}", tuple(sql.params[n] for n in sql.positiontup)
            )
            steps = [row.detail for row in plan if "leases" in row.detail]
            assert len(steps) == 1 and f"INDEX {index}" in steps[0], steps


def test_undo_takes_the_latest_answer_back(opened):
    store = filled(opened(), 3)
    rater, _ = store.add_rater("ada")
    first, second = store.lease(rater)
    store.answer(rater, first.id, "k1", LEFT)
    store.answer(rater, second.id, "k2", LEFT)
    assert [store.undo(rater, "u1").status for _ in range(2)] == ["saved", "known"]
    assert [vote.comparison for vote in store.votes()] == [first.comparison.id]
    assert store.lease(rater)[0].id == second.id  # it is shown again, sides as before
    assert store.answer(rater, second.id, "k3", {"overall": "right"}).status == "saved"
    assert [store.undo(rater, f"u{number}").status for number in (2, 3, 4)] == ["saved", "saved", "nothing"]
    assert not list(store.votes()) and len(list(store.votes(retracted=True))) == 3
    assert store.answer(rater, second.id, "k2", LEFT).status == "known"  # what was taken back does not come back
    assert not list(store.votes())


def test_known_pairs_and_repeats_are_mixed_in(opened, drawn_alike):
    store = filled(opened(known_share=0.2, repeat_share=0.2), 24, 2)
    store.add_comparisons(pair(number, 1, id=f"known {number}", expected=f"s{2 * number}") for number in range(4))
    raters = [store.add_rater(name)[0] for name in ("ada", "bo")]
    for rater in raters:
        shown: dict[str, list[str]] = {}
        for number in range(60):
            leases = store.lease(rater, 1)
            if not leases:
                break
            (lease,) = leases
            order = [s.id for s in lease.samples]
            if lease.repeat:
                assert order == shown[lease.comparison.id][::-1]
            else:
                assert lease.comparison.id not in shown
                shown[lease.comparison.id] = order
            store.answer(rater, lease.id, f"k{number}", LEFT)
        mine = [vote for vote in store.votes() if vote.source == rater]
        assert len({vote.comparison for vote in mine if not vote.repeat}) == len([v for v in mine if not v.repeat])
        assert 1 <= sum(vote.comparison.startswith("known") for vote in mine) <= 4
        assert 1 <= sum(vote.repeat for vote in mine) <= 20
    progress = store.progress()
    assert (progress.comparisons, progress.done, progress.wanted, progress.votes) == (24, 24, 48, 48)


def test_the_nearest_to_be_done_comes_first(opened):
    store = filled(opened(known_share=0, repeat_share=0), 5, 2)
    (ada, _), (bo, _) = store.add_rater("ada"), store.add_rater("bo")
    mine = [lease.comparison.id for lease in store.lease(ada, 2)]
    assert mine == ["c0", "c1"]
    assert [lease.comparison.id for lease in store.lease(bo, 3)] == ["c0", "c1", "c2"]


def test_who_opts_out_is_spared(opened):
    store = filled(opened(), 2, sensitive=True)
    rater, token = store.add_rater("ada")
    store.set_preference(rater, opted_out=True, blur=True)
    assert store.rater_of(token).opted_out and store.rater_of(token).blur
    assert store.lease(rater) == []
    store.set_preference(rater, opted_out=False)
    assert len(store.lease(rater)) == 2


def test_only_what_was_shown_may_be_seen(opened):
    store = filled(opened(), 2)
    rater, _ = store.add_rater("ada")
    (lease,) = store.lease(rater, 1)
    shown = {sample.id for sample in lease.samples}
    for found in store.samples():
        file = store.media_file(found.medium.path.split("/")[-1].removesuffix(".png"), rater)
        assert file == ((store.folder / found.medium.path, "image/png") if found.id in shown else None)


def test_many_raters_at_once_get_exactly_the_overlap(opened):
    """20 raters in threads, some of whom vanish for a while: each pair has 3 distinct raters, no more and no less."""
    store = filled(opened(), 40)
    raters = [store.add_rater(f"rater {number}")[0] for number in range(20)]
    seconds = 1000.0

    def work(rater: str) -> None:
        number = 0
        leases = tuple(store.lease(rater, 2, now=seconds))
        while leases:
            number += 1
            if number == 2:
                return  # goes away with two leases open
            said = {"overall": "skip" if rater == raters[0] else "left"}
            receipt = store.answer(rater, leases[0].id, f"k{number}", said, now=seconds, n=2)
            assert receipt.status == "saved"
            leases = union(leases[1:], receipt.leases)

    together(20, lambda number: work(raters[number]))
    assert len(list(store.votes())) < 120
    seconds = 1000.0 + 601

    def finish(rater: str) -> None:
        leases: tuple[Lease, ...] = ()
        for number in range(10, 1000):
            leases = leases or tuple(store.lease(rater, 2, now=seconds))
            if not leases:
                return
            receipt = store.answer(rater, leases[0].id, f"k{number}", LEFT, now=seconds, n=2)
            assert receipt.status == "saved"
            leases = union(leases[1:], receipt.leases)

    together(20, lambda number: finish(raters[number]))
    for rater in raters:
        finish(rater)  # those who were told there is nothing while another held the last
    judged = Counter((v.comparison, v.source) for v in store.votes() if not v.repeat and v.choice != "skip")
    assert set(judged.values()) == {1}
    assert Counter(comparison for comparison, _ in judged) == {f"c{number}": 3 for number in range(40)}
    keys = {rater: [v.id for v in store.votes() if v.source == rater] for rater in raters}
    for rater, ids in keys.items():  # each rater's own order is kept
        numbers = [int(name.split("/")[1][1:]) for name in ids]
        assert numbers == sorted(numbers), rater


def test_raters_who_skip_forget_and_come_late_at_once_get_no_more_than_the_overlap(opened):
    store = filled(opened(known_share=0, repeat_share=0, lease_minutes=1), 6)
    judge(store, [store] * 8)


@pytest.mark.postgres
def test_raters_of_two_studios_of_one_database_get_no_more_than_the_overlap(postgres, tmp_path, monkeypatch):
    monkeypatch.setenv(project.DATABASE, postgres.url())
    project.create(tmp_path / "p", ProjectSettings(known_share=0, repeat_share=0, lease_minutes=1))
    with Store.open(tmp_path / "p") as one, Store.open(tmp_path / "p") as other:
        judge(filled(one, 6), [one, other] * 4)


def judge(store: Store, of: list[Store]) -> None:
    """Raters, each at a store, skip, forget, come late and ask at once."""
    raters, clock = [store.add_rater(f"rater {number}")[0] for number in range(len(of))], itertools.count(1000)

    def work(number: int) -> None:
        chance, rater, held = random.Random(number), raters[number], {}
        for turn in range(25):
            now = next(clock) / 2.0
            held = held or {lease.id: lease for lease in of[number].lease(rater, 4, now=now)}
            if held:
                lease = held.pop(chance.choice(sorted(held)))
                if chance.random() < 0.8:  # else it is forgotten and runs out
                    said = {"overall": "skip" if chance.random() < 0.2 else "left"}
                    given = of[number].answer(rater, lease.id, f"k{turn}", said, now=now, n=4).leases
                    held |= {one.id: one for one in given}

    together(len(of), work)
    judged = Counter((vote.comparison, vote.source) for vote in store.votes() if vote.choice != "skip")
    assert set(judged.values()) == {1} and max(Counter(name for name, _ in judged).values()) <= 3


def test_of_calls_that_share_a_transaction_each_has_its_own_outcome(opened):
    """They wait while one writes; then a wrong one among them fails, and those beside it are kept."""
    store = opened()
    raters, go = schema.raters, threading.Event()
    said: dict[str, str] = {}

    def name(number: int) -> None:
        time.sleep(0.05 * number)  # the first holds the others up
        try:
            store.add_rater(f"rater {number}", "rater", "no time at all" if number == 3 else None)
            said[f"rater {number}"] = "kept"
        except StoreError as error:
            said[f"rater {number}"] = str(error)

    def hold(connection) -> None:
        go.set()
        time.sleep(0.5)

    first = threading.Thread(target=lambda: store._database.write(hold))
    first.start()
    assert go.wait(10)
    together(6, name)
    first.join()
    assert [number for number, words in enumerate(said[f"rater {n}"] for n in range(6)) if words != "kept"] == [3]
    assert "no time at all" in said["rater 3"]
    with store._database.read() as connection:
        kept = connection.scalars(sa.select(raters.c.name).order_by(raters.c.name)).all()
    assert kept == [f"rater {number}" for number in (0, 1, 2, 4, 5)]


def test_a_snapshot_reads_the_same_whatever_comes_in(opened):
    """Also what began before it and ends after it is not in it: rows are numbered before they are there."""
    store = filled(opened(), 1)
    taken: list[tuple[object, list[str]]] = []

    def work(number: int) -> None:
        for at in range(12):
            if number == 0:
                snapshot = store.snapshot()
                taken.append((snapshot, [vote.id for vote in store.votes(snapshot=snapshot)]))
            else:
                store.add_votes([Vote(f"{number} {at} {n}", "s0", "s1", "a", "ada", TIME) for n in range(3)])

    together(6, work)
    for snapshot, ids in taken:
        assert [vote.id for vote in store.votes(snapshot=snapshot)] == ids
    assert len({len(ids) for _, ids in taken}) > 1 and len(list(store.votes())) == 180


def union(first: tuple[Lease, ...], second: tuple[Lease, ...]) -> tuple[Lease, ...]:
    """Leases of which each is told once."""
    return tuple({lease.id: lease for lease in (*first, *second)}.values())


def together(n: int, work) -> None:
    """Runs work(0 .. n-1) in threads and raises what one of them raised."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- raters -----------------------------------------------------------------------------------------------------------


def test_a_token_lets_in_until_it_is_revoked_or_expires(opened):
    store = opened()
    ada, token = store.add_rater("Ada", "admin")
    found = store.rater_of(token)
    assert (found.id, found.name, found.role, found.revoked) == (ada, "Ada", "admin", False)
    _, old = store.add_rater("Bo", expires="2020-01-01T00:00:00+00:00")
    for wrong in (old, "", token[:-1], token + "x", "\udcff"):
        assert store.rater_of(wrong) is None
    store.revoke(ada)
    assert store.rater_of(token) is None
    assert {rater.name: rater.revoked for rater in store.raters()} == {"Ada": True, "Bo": False}
    for wrong in ("2027-01-01T00:00:00", "2027-01-01", "tomorrow"):
        with pytest.raises(StoreError, match="no time with an offset"):
            store.add_rater("Cy", expires=wrong)
    with pytest.raises(StoreError, match="role 'king'"):
        store.add_rater("Cy", "king")
    with pytest.raises(StoreError, match="not of this project"):
        store.lease("nobody")


def test_tokens_are_not_stored(opened, folder):
    store: Store = opened()
    _, token = store.add_rater("Ada")
    store.close()
    if folder.kind == "sqlite":
        assert token.encode() not in (store.folder / "palate.db").read_bytes()


def test_who_was_forgotten_is_in_no_file(opened, folder):
    """Beside a reader that has read before, as a studio's are."""
    store = filled(opened(), 4, 1)
    store.raters()
    rater, _ = store.add_rater("Ada Lovelace of Ockham")
    for number in range(3):
        store.answer(rater, store.lease(rater, 1)[0].id, f"peculiar-key-{number}", LEFT)
    store.raters()
    assert store.erase(rater, votes=True) == 3
    assert store.add_rater("Bo")  # and the log goes on
    if folder.kind == "sqlite":
        kept = b"".join(path.read_bytes() for path in store.folder.glob("palate.db*"))
        assert b"Bo" in kept and b"Lovelace" not in kept and b"peculiar-key" not in kept


def test_a_rater_is_forgotten(opened):
    store = filled(opened(), 4, 1)
    (ada, token), (bo, _) = store.add_rater("Ada Lovelace"), store.add_rater("Bo")
    for rater in (ada, bo):
        store.answer(rater, store.lease(rater, 1)[0].id, "k", LEFT)
    store.lease(ada, 1)
    before = store.snapshot("before")
    assert store.erase(bo) == 0
    assert len(list(store.votes())) == 2 and [rater.name for rater in store.raters()] == ["Ada Lovelace"]
    assert store.find_snapshot("before").id == before.id  # what bo said stays, and nobody knows who said it
    assert store.erase(ada, votes=True) == 1
    assert [vote.source for vote in store.votes()] == [bo]
    assert store.rater_of(token) is None and store.raters() == []
    assert (store.progress().votes, store.progress().open) == (1, 0)
    with pytest.raises(StoreError, match=r"holds votes of a rater who was erased.*take a new one"):
        store.find_snapshot("before")
    after = store.snapshot()
    assert after.id != before.id and store.find_snapshot(after.id).marks == after.marks
    cy, _ = store.add_rater("Cy")
    assert len(store.lease(cy, 9)) == 3  # their places are free again
    with pytest.raises(StoreError, match="not of this project"):
        store.erase(ada)
