"""Facts come in once, stay as they are, and are given in order of arrival."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from palate import project
from palate.media import MediaError
from palate.project import ProjectSettings
from palate.records import Comparison, Medium, Ranking, Retraction, Sample, Score, Vote
from palate.store import Store, StoreError
from palate.strict import ConfigError
from tests.store.make import TIME, filled, pair, png, sample

VOTE = Vote("v1", "s0", "s1", "tie", "ada", TIME, "style", "c0", "s1", 2.5, "", True)


def test_facts_come_back_as_they_went_in(opened):
    store = opened()
    samples = [sample(0, prompt="p"), sample(1, prompt="p", seed=None), sample(2, prompt="ü☃", seed=2**63 - 1)]
    facts = {
        "scores": [Score("s0", "style", 0.1 + 0.2, "judge", TIME), Score("s1", "style", math.nan, "judge", TIME)],
        "votes": [VOTE, Vote("v2", "s1", "s0", "skip", "bo", TIME, reason="broken")],
        "rankings": [Ranking("r1", (("s1",), ("s0", "s2")), "ada", TIME, shown=("s2", "s0", "s1"), seconds=0.1)],
        "comparisons": [Comparison("c0", "p", ("s0", "s1"), 2, "round 1", "s1", "style", TIME, True)],
    }
    assert store.add_samples(samples, batch="round 1") == 3
    for name, records in facts.items():
        assert getattr(store, f"add_{name}")(records) == len(records)
        assert getattr(store, f"add_{name}")(records) == 0
    assert store.add_samples(samples, batch="round 2") == 0
    for name, records in facts.items():
        assert repr(list(getattr(store, name)())) == repr(records)  # repr: NaN equals itself there
    found = list(store.samples())
    assert [dataclasses.replace(s, medium=samples[i].medium) for i, s in enumerate(found)] == samples
    assert [store.read_media(s.medium) for s in found] == [png(0), png(1), png(2)]
    assert [s.id for s in store.samples(batch="round 1", prompt="p")] == ["s0", "s1"]
    assert not list(store.samples(batch="round 2"))
    assert [v.id for v in store.votes("overall")] == ["v2"]
    store.add_retractions([Retraction("x", "v1", "ada", TIME), Retraction("y", "r1", "ada", TIME)])
    assert [v.id for v in store.votes()] == ["v2"] and not list(store.rankings())
    assert len(list(store.votes(retracted=True))) == 2 and len(list(store.retractions())) == 2


def test_another_content_under_a_known_id_is_refused(opened):
    store = filled(opened(), 2)
    store.add_votes([VOTE])
    store.add_scores([Score("s0", "style", 1.0, "judge", TIME)])
    for add, record, said in (
        (store.add_samples, sample(1, seed=9), r"samples: s1 is known with another content \(seed 1 -> 9\)"),
        (store.add_samples, sample(1, medium=Medium("image/png", png(7))), "samples: s1 .*medium"),
        (store.add_votes, dataclasses.replace(VOTE, choice="a"), r"votes: v1 .*choice 'tie' -> 'a'"),
        (store.add_scores, Score("s0", "style", 2.0, "judge", TIME), r"scores: s0 of judge of style .*1.0 -> 2.0"),
        (store.add_comparisons, pair(0, 5), "comparisons: c0 .*wanted 3 -> 5"),
    ):
        with pytest.raises(StoreError, match=said):
            add([record])
    with pytest.raises(StoreError, match=r"v9 .*choice"):  # within one call, too: nothing of it is stored
        store.add_votes([dataclasses.replace(VOTE, id="v9"), dataclasses.replace(VOTE, id="v9", choice="b")])
    assert [v.id for v in store.votes()] == ["v1"]


def test_facts_about_what_is_not_there_are_refused(opened):
    store = filled(opened(), 2)
    for add, record, said in (
        (store.add_votes, dataclasses.replace(VOTE, b="gone", left=""), "a vote about sample 'gone'"),
        (store.add_scores, Score("gone", "style", 1.0, "judge", TIME), "a score about sample 'gone'"),
        (
            store.add_comparisons,
            Comparison("c9", "prompt 0", ("s0", "s2"), 1),
            "'c9': sample 's2' is of another prompt",
        ),
        (store.add_comparisons, Comparison("c9", "prompt 0", ("s0", "gone"), 1), "'gone' is not in the project"),
        (store.add_retractions, Retraction("x", "gone", "ada", TIME), "retraction of 'gone'"),
        (store.add_samples, sample(9, prompt="nul \0"), "'s9': prompt holds a letter that is none"),
        (store.add_samples, sample(9, id="s" * 501), "id has 501 letters"),
        (store.add_samples, sample(9, medium=Medium("image/png", path="media/../../x")), "'s9': .*not of this project"),
    ):
        with pytest.raises(StoreError, match=said):
            add([record])


def test_media_are_kept_once_by_content(opened):
    store = opened()
    kept = store.add_media(png(3), "image/png")
    assert store.add_media(png(3), "image/png") == kept
    files = [path for path in (store.folder / "media").rglob("*") if path.is_file()]
    assert [store.folder / kept.path] == files and files[0].stem in kept.path
    assert store.media_file(files[0].stem) == (files[0], "image/png")
    for wrong in ("", "../../etc/passwd", files[0].stem.upper(), files[0].stem[:-1] + "g", "0" * 64):
        assert store.media_file(wrong) is None
    (store.folder / kept.path).write_bytes(png(4))
    with pytest.raises(StoreError, match="is not what it was"):
        store.read_media(kept)


@pytest.mark.parametrize(
    ("content", "type", "said"),
    ids=lambda value: value if isinstance(value, str) else "",
    argvalues=[
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", "svg.* are not shown"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", "first bytes show"),
        (b"<script>alert(1)</script>", "text/html", "text/html are not shown"),
        (png(1)[:-30], "image/png", "damaged|readable"),
        (png(1), "image/jpeg", "first bytes show image/png"),
        (b"", "audio/wav", "first bytes show"),
        (b"\xff", "text/plain", "UTF-8"),
        (b"a" * (2**20 + 1), "text/plain", "at most 1,048,576"),
    ],
)
def test_other_media_are_refused(opened, content, type, said):
    store = opened()
    with pytest.raises(MediaError, match=said):
        store.add_media(content, type)
    with pytest.raises(MediaError, match="sample 's0'"):
        store.add_samples([sample(0, medium=Medium(type, content))])
    assert not list(store.samples()) and not list(store.folder.glob("media/*/*"))


def test_media_other_than_pictures(opened):
    store = opened()
    for content, type in ((b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"), ("a text, ü".encode(), "text/plain")):
        assert store.read_media(store.add_media(content, type)) == content


def test_many_facts_are_given_in_order_of_arrival(opened):
    store = opened()
    store.add_samples([sample(0), sample(1)])
    votes = [Vote(f"v{number}", "s0", "s1", "a", "ada", TIME) for number in range(1203)]
    assert store.add_votes(iter(votes)) == 1203
    reading = store.votes()
    assert next(reading) == votes[0]
    store.add_votes([Vote("late", "s0", "s1", "a", "ada", TIME)])
    assert [votes[0], *reading] == votes  # what comes while one reads is not in it


def test_facts_are_never_changed(opened):
    """All that the store says to the database over a day's work, but for an erasure, leaves facts as they are."""
    said: list[str] = []

    def heard(_connection, _cursor, statement, *_rest):
        said.append(statement)

    store = filled(opened(known_share=0.3, repeat_share=0.3), 14)
    store.add_comparisons([pair(0, id="known", expected="s0")])
    changing = re.compile(r"\b(UPDATE|DELETE FROM)\s+\"?(\w+)")
    sa.event.listen(sa.Engine, "before_cursor_execute", heard)
    try:
        rater, _ = store.add_rater("ada")
        number = 0
        while leased := store.lease(rater):
            number += 1
            choice = "skip" if number % 5 == 0 else "left"
            assert store.answer(rater, leased[0].id, f"k{number}", {"overall": choice}).status == "saved"
            if number % 4 == 0 and number < 30:
                store.undo(rater, f"u{number}")
        store.snapshot("end")
        store.progress()
        changed = {found[2] for statement in said for found in changing.finditer(statement)}
        assert changed == {"leases", "places", "raters", "answers"}
        said.clear()
        store.erase(rater, votes=True)
        deleted = {found[2] for statement in said for found in changing.finditer(statement) if found[1] != "UPDATE"}
        assert deleted == {"answers", "votes", "retractions"}  # there are no rankings
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", heard)


def test_a_reader_reads_while_another_writes(opened):
    store = filled(opened(), 1)
    with Store.open(store.folder, write=False) as reader:
        assert [s.id for s in reader.samples()] == ["s0", "s1"]
        store.add_samples([sample(2)])
        assert len(list(reader.samples())) == 3
        assert reader.snapshot().id == store.snapshot().id
        with pytest.raises(StoreError, match="reading only"):
            reader.add_samples([sample(3)])
        with pytest.raises(StoreError, match="reading only"):
            reader.snapshot("name")


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_project_is_made_once(tmp_path: Path):
    made = project.create(tmp_path / "p", ProjectSettings(title="Mine"))
    assert project.create(tmp_path / "p") == made == project.read(tmp_path / "p") and made.id
    assert "What to do" in project.instructions(tmp_path / "p")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds thesis.tex and is no project"):
        project.create(tmp_path / "other")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "palate-tmp-0123").write_text("id: half of")
    assert project.create(tmp_path / "killed").id
    with pytest.raises(ConfigError, match=r"no project\.yaml"):
        Store.open(tmp_path / "nowhere")


def test_a_password_is_neither_written_nor_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="leave it out") as caught:
        ProjectSettings(database="postgresql://ada:secret@host/db")
    path = tmp_path / "p" / "project.yaml"
    project.create(tmp_path / "p")
    path.write_text(path.read_text().replace("database: null", "database: postgresql://ada:secret@host/db"))
    with pytest.raises(ConfigError, match=r"project.yaml line \d+.*PGPASSWORD") as caught:
        Store.open(tmp_path / "p")
    assert "secret" not in str(caught.value)
    path.write_text(path.read_text().replace("ada:secret@host", "ada@127.0.0.1:1"))
    monkeypatch.setenv(project.DATABASE, "postgresql://ada:secret@127.0.0.1:1/db")
    with pytest.raises(StoreError, match=r"postgresql://ada@127.0.0.1:1/db cannot be used") as told:
        Store.open(tmp_path / "p")
    assert "secret" not in str(told.value)
    monkeypatch.setenv(project.DATABASE, "mysql://ada:secret@host/db")
    with pytest.raises(StoreError, match="is no PostgreSQL") as told:
        Store.open(tmp_path / "p")
    assert "secret" not in str(told.value)


def test_a_reader_of_an_empty_folder_is_told(tmp_path: Path):
    project.create(tmp_path / "p")
    with pytest.raises(StoreError, match=r"holds no palate\.db yet"):
        Store.open(tmp_path / "p", write=False)
    assert not (tmp_path / "p" / "palate.db").exists()


def test_a_sample_needs_a_medium_of_the_project(opened):
    store = opened()
    kept = store.add_media(png(0), "image/png")
    assert store.add_samples([Sample("s0", "p", kept, "m", TIME)]) == 1
    lost = Medium("image/png", path=kept.path.replace(kept.path[9:12], "abc"))
    with pytest.raises(StoreError, match="not of this project"):
        store.add_samples([Sample("s1", "p", lost, "m", TIME)])
