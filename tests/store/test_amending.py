"""Known pairs and sensitive comparisons that are said to be so later, and back, with raters at work."""

from __future__ import annotations

import pytest

from palate.doors import raters
from palate.doors.hands import hand
from palate.durable import StorageError
from palate.store import Amendment, Store, StoreError, upgrade
from tests.store.make import filled, go_back, pair

LEFT = {"overall": "left"}


def test_what_is_said_of_comparisons_later(opened, drawn_alike):
    store = filled(opened(known_share=0.5, repeat_share=0), 6, 1)
    ada, _ = store.add_rater("ada")
    (first,) = store.lease(ada, 1)
    store.answer(ada, first.id, "k0", LEFT)
    before = store.snapshot()
    assert before.id.count("-") == 7  # nothing is amended: as ids were before there were amendments
    assert store.amend([Amendment("c0", expected="s1"), Amendment("c3", sensitive=True)], "me") == 2
    assert store.amend([Amendment("c0", expected="s1", dimension="overall")], "me") == 0  # it is so already
    now = {made.id: made for made in store.comparisons()}
    assert (now["c0"].expected, now["c0"].sensitive, now["c3"].sensitive) == ("s1", False, True)
    assert not any(made.expected or made.sensitive for made in store.comparisons(snapshot=before))
    assert (store.progress().comparisons, store.progress().votes) == (5, 0)  # the vote on a known pair is none
    assert store.add_comparisons([pair(0, 1), pair(3, 1)]) == 0  # what came in is known again as it came

    bo, _ = store.add_rater("bo")
    store.set_preference(bo, opted_out=True)
    held = store.lease(bo, 5)
    shown = [lease.comparison.id for lease in held]
    assert "c3" not in shown and "c0" in shown  # spared, and tested though its one place was taken
    assert next(lease for lease in held if lease.comparison.id == "c0").comparison.expected == "s1"

    later = store.snapshot()
    assert later.id.count("-") == 8
    assert store.amend([Amendment("c0", expected=""), Amendment("c3", sensitive=False)], "me") == 2
    assert not any(made.expected or made.sensitive for made in store.comparisons())
    assert {made.id for made in store.comparisons(snapshot=store.find_snapshot(later.id)) if made.expected} == {"c0"}
    assert store.find_snapshot(before.id).marks == before.marks
    assert store.progress().votes == 1  # it counts again
    cy, _ = store.add_rater("cy")
    assert "c0" not in [lease.comparison.id for lease in store.lease(cy, 9)]  # and its place is taken


def test_a_known_pair_that_is_none_any_more_wants_those_who_are_missing(opened):
    store = filled(opened(known_share=0, repeat_share=0), 1, 3)
    raters = [store.add_rater(name)[0] for name in ("ada", "bo", "cy", "di")]
    (one,) = store.lease(raters[0], 1)
    store.lease(raters[1], 1)
    store.amend([Amendment("c0", expected="s0")], "me")
    assert store.lease(raters[2], 1) == []  # known pairs come among others only
    assert store.answer(raters[0], one.id, "k", LEFT).status == "saved"
    store.amend([Amendment("c0", expected="")], "me")
    assert len(store.lease(raters[2], 1)) == 1 and store.lease(raters[3], 1) == []


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Amendment("c9", sensitive=True), "comparison 'c9', which the project does not hold"),
        (Amendment("c0", expected="s2"), "comparison 'c0': expected must be one of the samples shown; got 's2'"),
        (Amendment("c0", expected="s0", dimension=""), "comparison 'c0': dimension must be a non-empty text"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(opened, made, said):
    store = filled(opened(), 2)
    with pytest.raises(StoreError, match=said):
        store.amend([Amendment("c1", sensitive=True), made], "me")
    assert not any(one.sensitive or one.expected for one in store.comparisons())


def test_a_project_of_the_first_schema_is_renewed_and_keeps_its_snapshots(opened):
    store = filled(opened(), 2)
    taken, place = store.snapshot("then"), store.folder
    with store._database.read() as connection:
        assert upgrade.version(connection) == upgrade.HEAD
    go_back(store, "0001")
    store.close()
    with Store.open(place) as again:
        with pytest.raises(StoreError, match="'than' is none of this project; those with names are 'then';"):
            again.find_snapshot("than")
        assert again.find_snapshot("then").marks == taken.marks and again.find_snapshot(taken.id).id == taken.id
        assert again.amend([Amendment("c1", expected="s3")], "me") == 1
        assert len(list(again.comparisons(snapshot=taken))) == 2


def test_a_project_on_postgresql_needs_no_studio_to_be_asked(opened, folder, capsys):
    """On SQLite the studio is; here another store only has it open, and that is told."""
    with_it = filled(opened(), 2)
    if folder.kind == "sqlite":
        with pytest.raises(StorageError, match="in use by another process"), hand(with_it.folder):
            pass
        return
    rater, _ = with_it.add_rater("Ada")
    with hand(with_it.folder) as held:
        assert held.studio is None
        assert held.amend([Amendment("c1", sensitive=True)]) == 1
        held.revoke(rater)
    assert [made.sensitive for made in with_it.comparisons()] == [False, True]
    assert [one.revoked for one in with_it.raters()] == [True]
    raters.table(with_it.folder)
    assert "Ada" in capsys.readouterr().out
