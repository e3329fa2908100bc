"""Commands on a project: candidates in, scores in, preference data out; each again does what is missing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from palate import project
from palate.cli import main
from palate.config import ConfigError
from palate.datasets import parquet
from palate.doors import giving, projects
from palate.project import ProjectSettings
from palate.records import Medium, Score, Vote
from palate.store import Store, StoreError
from tests import zoo
from tests.store.make import TIME, filled


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "sd15"
    zoo.build("sd15").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red cat\na blue dog\n")
    return path


def test_candidates_scores_and_data(model, prompts, tmp_path, capsys):
    folder, how = tmp_path / "p", {"seed": 3, "num_inference_steps": 2, "guidance_scale": 1.0}
    projects.sample(model, prompts, folder=folder, k=2, **how)
    assert "4 candidates" in capsys.readouterr().out
    projects.sample(model, prompts, folder=folder, k=3, batch="more", **how)
    projects.sample(model, prompts, folder=folder, k=3, batch="more", **how)
    said = capsys.readouterr().out.splitlines()
    assert "(2 new), 6 comparisons (6 new)" in said[0] and "(0 new), 6 comparisons (0 new)" in said[2]
    with Store.open(folder, write=False) as store:
        samples = list(store.samples())
        assert len(samples) == 6 and {made.source for made in samples} == {model}
        assert len(list(store.samples(batch="more"))) == 2
        assert all(len(shown.samples) == 2 and shown.wanted == 3 for shown in store.comparisons())
    for _ in range(2):
        projects.score(folder, ["jpeg_size"], batch_size=4)
    said = capsys.readouterr().out
    assert "(6 new)" in said and "(0 new)" in said
    giving.export(folder, tmp_path / "data", giving.How(by="scores", dimension="jpeg_size"))
    rows = list(parquet.read(tmp_path / "data"))
    assert [(row.prompt, len(row), row.dimensions) for row in rows] == [
        ("a red cat", 3, ("jpeg_size",)),
        ("a blue dog", 3, ("jpeg_size",)),
    ]


def test_rankings_show_several(model, prompts, tmp_path):
    project.create(tmp_path / "p", ProjectSettings(kind="ranking", show=3, votes_per_comparison=2))
    how = {"seed": 3, "num_inference_steps": 1, "guidance_scale": 1.0}
    projects.sample(model, prompts, folder=tmp_path / "p", k=4, **how)
    with Store.open(tmp_path / "p", write=False) as store:
        assert [(len(c.samples), c.wanted) for c in store.comparisons()] == [(2, 2)] * 4
        assert len({name for c in store.comparisons() for name in c.samples}) == 8  # the fourth of each, too


@pytest.mark.parametrize(
    ("n", "show", "sizes"), [(1, 4, []), (2, 2, [2]), (3, 2, [2, 2]), (9, 4, [3, 3, 3]), (8, 8, [8]), (9, 2, [2] * 5)]
)
def test_every_candidate_is_shown_beside_another(n, show, sizes):
    media = {f"s{i}": Medium("image/png", bytes([i])) for i in range(n)}
    shown = list(projects._comparisons("p", list(media), media, ProjectSettings(kind="ranking", show=show), None, ""))
    assert [len(one.samples) for one in shown] == sizes
    assert {name for one in shown for name in one.samples} == (set(media) if sizes else set())


def told(folder: Path, pairs: int = 4) -> Store:
    """A project in which three people said something of each pair, and one of the style of every other pair."""
    project.create(folder, ProjectSettings(questions={"overall": "Better?", "style": "Nicer?"}))
    store = filled(Store.open(folder), pairs)
    said = [("ada", "a", "overall"), ("bo", "a", "overall"), ("cy", "b", "overall"), ("ada", "tie", "style")]
    store.add_votes(
        Vote(f"{n} {who} {asked}", f"s{2 * n}", f"s{2 * n + 1}", choice, who, TIME, asked, comparison=f"c{n}")
        for n in range(pairs)
        for who, choice, asked in (said if n % 2 else said[:3])
    )
    return store


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_snapshot_gives_the_same_bytes_while_votes_come_in(tmp_path, capsys):
    with told(tmp_path / "p") as store:
        giving.export(tmp_path / "p", tmp_path / "first")  # another reader, while this one may write
        taken = json.loads((tmp_path / "first" / "snapshot.json").read_text())["snapshot"]
        assert f"snapshot {taken}" in capsys.readouterr().out
        store.add_votes([Vote("late", "s0", "s1", "b", "di", TIME, comparison="c0")])
        store.add_scores([Score("s0", "size", 1.0, "judge", TIME)])
        giving.export(tmp_path / "p", tmp_path / "again", snapshot=taken)
        giving.export(tmp_path / "p", tmp_path / "later")
    assert digests(tmp_path / "first") == digests(tmp_path / "again") != digests(tmp_path / "later")
    rows = list(parquet.read(tmp_path / "first"))
    assert [row.prefer[0][1] for row in rows] == [2 / 3] * 4 and rows[0].votes[0][1] == 3
    assert [[aspect.dimension for aspect in row.aspects] for row in rows] == [[], ["style"], [], ["style"]]
    assert next(iter(parquet.read(tmp_path / "later"))).votes[0][1] == 4


def test_labels_and_a_split(tmp_path):
    told(tmp_path / "p").close()
    how = giving.How(labels="majority", at_least=3, held_out=0.25)
    giving.export(tmp_path / "p", tmp_path / "data", how, name="end")
    parts = {part: list(parquet.read(tmp_path / "data" / part)) for part in ("train", "validation")}
    assert [len(rows) for rows in parts.values()] == [3, 1]
    assert {row.prefer[0][1] for rows in parts.values() for row in rows} == {1.0}
    assert len({row.prompt for rows in parts.values() for row in rows}) == 4


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    told(tmp_path / "p").close()
    with pytest.raises(ConfigError, match="nothing was said of 'mood'"):
        giving.export(tmp_path / "p", tmp_path / "out", giving.How(dimension="mood"))
    with pytest.raises(StoreError, match="'gone' is none of this project"):
        giving.export(tmp_path / "p", tmp_path / "out", snapshot="gone")
    with pytest.raises(SystemExit) as left:
        main(["dataset", "export", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert left.value.code == 1 and "is no project" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_scorer_that_gives_too_little_is_refused(tmp_path, monkeypatch):
    told(tmp_path / "p").close()
    monkeypatch.setattr(projects.lookup, "find_scorer", lambda name: lambda prompts, media: {"x": [1.0]})
    monkeypatch.setattr(projects.matching, "judged_by", lambda name: ())
    with pytest.raises(ConfigError, match=r"gave \(1,\) scores of x for 8 samples"):
        projects.score(tmp_path / "p", ["one"])


def test_a_plan(tmp_path, capsys):
    told(tmp_path / "p").close()
    main_of = ["label", "--plan", "--project", str(tmp_path / "p"), "--within", "0.1"]
    with pytest.raises(SystemExit) as left:
        main(main_of)
    said = capsys.readouterr().out
    assert left.value.code == 0 and "3 votes each" in said and "as assumed" in said
