"""`palate project`: known pairs, sensitive comparisons and raters by commands, also beside a running studio."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from palate import kinds, project, webm
from palate.cli import main
from palate.datasets import parquet
from palate.doors import awaited, giving, labelling
from palate.doors.hands import KNOWN
from palate.project import ProjectSettings
from palate.records import Medium, Sample, Vote
from palate.store import Store
from palate.studio import reach
from palate.studio.joining import TokenFile
from tests.store.make import TIME, filled, png
from tests.test_clips import encoded


def palate(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    return left.value.code or 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pairs, of which c0 to c5 are asked overall and for their style."""
    monkeypatch.delenv(project.DATABASE, raising=False)
    place = tmp_path / "p"
    project.create(place, ProjectSettings(questions={"overall": "Better?", "style": "Nicer?"}))
    with Store.open(place) as store:
        filled(store, 6)
    return place


def known_of(folder: Path) -> dict[str, tuple[str, str]]:
    with Store.open(folder, write=False) as store:
        return {made.id: (made.expected, made.dimension) for made in store.comparisons() if made.expected}


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_known_pairs_of_a_table(folder, tmp_path, capsys, ending):
    (tmp_path / "good.png").write_bytes(png(901))
    (tmp_path / "noise.png").write_bytes(png(902))
    (tmp_path / "tale.txt").write_text("Once.")
    with Store.open(folder, write=False) as store:
        hashed = Path(next(s.medium.path for s in store.samples() if s.id == "s6")).stem
    rows = [
        {"comparison": "c0", "expected": "s1", "dimension": "style"},
        {"a": "s2", "b": "s3", "expected": "a"},  # c1, by its samples
        {"prompt": "prompt 3", "a": "s7", "b": hashed, "expected": hashed},
        {"prompt": "a red cat", "a": "good.png", "b": "noise.png", "expected": "good.png"},
        {"prompt": "a tale", "a": "tale.txt", "b": "good.png", "expected": "b"},
    ]
    file = table(tmp_path / f"known{ending}", rows)
    assert palate("project", "known", folder, file) == 0
    assert "5 known pairs in" in (said := capsys.readouterr().out) and "(2 new, 3 changed)" in said
    found = known_of(folder)
    assert {found[name] for name in ("c0", "c1", "c3")} == {("s1", "style"), ("s2", "overall"), ("s6", "overall")}
    with Store.open(folder, write=False) as store:
        new = [made for made in store.comparisons() if made.prompt == "a red cat"]
        media = {made.id: store.read_media(made.medium) for made in store.samples()}
        assert media[new[0].expected] == png(901) and new[0].wanted == 3
    assert palate("project", "known", folder, file) == 0
    assert "(0 new, 0 changed)" in capsys.readouterr().out
    assert palate("project", "known", folder, file, "--unmark") == 0
    assert known_of(folder) == {}


def media_of(folder: Path, source: str) -> list[Medium]:
    with Store.open(folder, write=False) as store:
        return [
            Medium(s.medium.type, (folder / s.medium.path).read_bytes()) for s in store.samples() if s.source == source
        ]


@pytest.mark.parametrize(("codec", "ending"), [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mpeg4", "mov")])
def test_videos_of_known_pairs_come_in_as_palate_writes_them(folder, tmp_path, codec, ending):
    (tmp_path / f"fine.{ending}").write_bytes(encoded(12, codec=codec, container=ending))
    (tmp_path / f"poor.{ending}").write_bytes(encoded(9, codec=codec, container=ending))
    row = {"prompt": "a dog runs", "a": f"fine.{ending}", "b": f"poor.{ending}", "expected": "a"}
    file = table(tmp_path / "known.jsonl", [row])
    assert palate("project", "known", folder, file) == 0
    found = media_of(folder, KNOWN)
    assert sorted(webm.measure(made.bytes)[1] for made in found) == [9, 12]  # which it reads of its own make alone
    assert {made.type for made in found} == {"video/webm"}
    levels = [np.asarray(frame).mean() for frame in kinds.read(max(found, key=lambda made: len(made.bytes)))]
    assert np.allclose(levels, [20 + 10 * n for n in range(12)], atol=4)
    assert palate("project", "known", folder, file) == 0  # again: the same
    assert len(media_of(folder, KNOWN)) == 2


@pytest.mark.parametrize(("codec", "kind"), [("libx264", "mp4"), ("libvpx-vp9", "webm")])
def test_videos_of_known_pairs_stay_as_they_are_beside_such(folder, tmp_path, codec, kind):
    theirs, mine = (encoded(frames, codec=codec, container=kind) for frames in (12, 9))
    with Store.open(folder) as store:
        store.add_samples([Sample("v", "a dog runs", Medium(f"video/{kind}", theirs), "model", TIME)])
    (tmp_path / f"mine.{kind}").write_bytes(mine)
    row = {"prompt": "a dog runs", "a": "v", "b": f"mine.{kind}", "expected": "a"}
    assert palate("project", "known", folder, table(tmp_path / "known.jsonl", [row])) == 0
    assert [made.bytes for made in media_of(folder, KNOWN)] == [mine]


def test_a_known_pair_that_came_in_otherwise_is_known_again_and_shows_nothing(folder, tmp_path, capsys):
    video = encoded(9)
    with Store.open(folder) as store:  # as it lay in the file, before
        store.add_samples([Sample("old", "a dog runs", Medium("video/mp4", video), KNOWN, TIME)])
    (tmp_path / "old.mp4").write_bytes(video)
    (tmp_path / "new.mp4").write_bytes(encoded(12))
    row = {"prompt": "a dog runs", "a": "old.mp4", "b": "new.mp4", "expected": "a"}
    file = table(tmp_path / "known.jsonl", [row])
    assert palate("project", "known", folder, file) == 0
    assert sorted(made.type for made in media_of(folder, KNOWN)) == ["video/mp4", "video/webm"]
    assert ("old", "overall") in known_of(folder).values()
    assert palate("project", "known", folder, file, "--unmark") == 0
    assert known_of(folder) == {} and len(media_of(folder, KNOWN)) == 2


def test_a_damaged_video_of_a_known_pair_is_told(folder, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(encoded()[:200])
    (tmp_path / "b.mp4").write_bytes(encoded(9))
    row = {"prompt": "a dog runs", "a": "a.mp4", "b": "b.mp4", "expected": "b"}
    assert palate("project", "known", folder, table(tmp_path / "known.jsonl", [row])) == 1
    assert re.search(r"known.jsonl line 1: 'a.mp4' cannot be shown: .+\n$", capsys.readouterr().err)
    assert media_of(folder, KNOWN) == []


def test_one_known_pair_and_how_raters_did(folder, capsys):
    with Store.open(folder) as store:
        ada, _ = store.add_rater("Ada")
        store.add_votes(
            Vote(f"{asked} {n}", f"s{2 * n}", f"s{2 * n + 1}", choice, ada, TIME, asked, comparison=f"c{n}")
            for n, asked, choice in ((0, "overall", "b"), (0, "style", "a"), (1, "overall", "a"), (2, "style", "b"))
        )
    assert palate("project", "known", folder, "--comparison", "c0", "--expected", "s0", "--dimension", "style") == 0
    assert palate("project", "known", folder, "--comparison", "c1", "--expected", "s3") == 0
    capsys.readouterr()
    assert palate("label", "--plan", "--project", folder) == 0
    said = capsys.readouterr().out
    assert "2 known pairs, 1 of 2 (50%) of the answers right" in said and "  Ada: 1 of 2 (50%)" in said
    assert palate("project", "raters", folder) == 0
    assert ada in (line := capsys.readouterr().out.splitlines()[1]) and "1 of 2 (50%)" in line


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"comparison": "c9", "expected": "s0"}, "the project holds no comparison 'c9'"),
        ({"comparison": "c0", "expected": "s5"}, "expected 's5' is none of the samples, s0, s1"),
        ({"comparison": "c0"}, "no expected: say which sample wins"),
        ({"comparison": "c0", "expected": "s0", "dimension": "mood"}, "'mood' is none of the project's, overall"),
        ({"comparison": "c0", "a": "s0", "b": "s1", "expected": "s0"}, "name either the comparison, or the two"),
        ({"expected": "s0"}, "name either the comparison, or the two samples"),
        ({"a": "s0", "expected": "s0"}, "name both a and b"),
        ({"a": "s0", "b": "s0", "expected": "a"}, "are the same sample"),
        ({"a": "s0", "b": "s2", "expected": "a"}, "sample 's2' is of the prompt 'prompt 1', not 'prompt 0'"),
        ({"a": "gone.png", "b": "s1", "prompt": "prompt 0", "expected": "a"}, "'gone.png' is no sample of the project"),
        ({"a": "x.png", "b": "s1", "prompt": "prompt 0", "expected": "a"}, "'x.png' cannot be shown: media of type"),
        ({"a": "../known.csv", "b": "s1", "prompt": "p", "expected": "a"}, "leaves the data's folder"),
        ({"a": "gone.png", "b": "more.png", "expected": "a"}, "no prompt: it may be left out"),
        ({"comparision": "c0", "expected": "s0"}, "'comparision' is not known; a row may have comparison, prompt"),
        ({"comparison": "c0", "expected": 3}, "expected must be a text, got 3"),
    ],
)
def test_a_row_that_cannot_be_is_named_and_nothing_changes(folder, tmp_path, capsys, row, said):
    (tmp_path / "x.png").write_bytes(b"GIF89a not a picture")
    file = table(tmp_path / "known.jsonl", [{"comparison": "c5", "expected": "s10"}, row])
    assert palate("project", "known", folder, file) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "known.jsonl line 2" in error
    assert re.search(said, error), error
    assert known_of(folder) == {}


def test_wrong_usage(folder, tmp_path, capsys):
    assert palate("project", "known", folder) == 2
    assert palate("project", "known", folder, tmp_path / "x.csv", "--expected", "s0") == 2
    assert palate("project", "sensitive", folder) == 2
    assert palate("project", "known", folder, tmp_path / "x.csv") == 1
    assert "does not exist" in capsys.readouterr().err
    assert palate("project", "raters", tmp_path) == 1
    assert "is no project" in capsys.readouterr().err


def test_what_is_listed_is_a_table(folder, tmp_path, capsys):
    with_votes(folder)
    assert palate("project", "sensitive", folder, "--comparison", "c2") == 0
    capsys.readouterr()
    assert palate("project", "comparisons", folder) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["comparison"] for row in rows] == [f"c{n}" for n in range(6)]
    assert rows[2]["sensitive"] and rows[2]["samples"] == ["s4", "s5"] and rows[2]["sources"] == ["model 0", "model 1"]
    assert sum(row["judged"] for row in rows) == 2
    assert all((folder / path).is_file() for row in rows for path in row["media"])
    file = table(tmp_path / "some.jsonl", [row | {"expected": row["samples"][1]} for row in rows[:2]])
    assert palate("project", "known", folder, file) == 0
    assert known_of(folder) == {"c0": ("s1", "overall"), "c1": ("s3", "overall")}


def sensitive_of(folder: Path) -> list[str]:
    with Store.open(folder, write=False) as store:
        return [made.id for made in store.comparisons() if made.sensitive]


def test_sensitive_by_id_by_sample_and_by_prompt(folder, tmp_path, capsys):
    (tmp_path / "dark.txt").write_text("Prompt  3\nnowhere\n")
    assert palate("project", "sensitive", folder, "--comparison", "c0", "--sample", "s3") == 0
    assert "2 comparisons of 2 prompts are sensitive (2 changed)" in capsys.readouterr().out
    assert palate("project", "sensitive", folder, "--prompts", tmp_path / "dark.txt") == 0
    assert palate("project", "sensitive", folder, "--like", "*PT 4", "--matching", "t [0-1]$") == 0
    assert "3 comparisons of 3 prompts are sensitive (1 changed)" in capsys.readouterr().out
    assert sensitive_of(folder) == ["c0", "c1", "c3", "c4"]
    assert palate("project", "sensitive", folder, "--matching", "prompt", "--unmark") == 0
    assert sensitive_of(folder) == []
    for wrong, said in (
        (["--comparison", "c9"], "holds no comparison 'c9'"),
        (["--sample", "s99"], "holds no sample 's99'"),
        (["--like", "nothing"], "no comparison of .* is meant: 6 were looked at"),
        (["--matching", "("], "is no regular expression"),
    ):
        capsys.readouterr()
        assert palate("project", "sensitive", folder, *wrong) == 1
        assert re.search(said, capsys.readouterr().err)


# --- raters -----------------------------------------------------------------------------------------------------------


def with_votes(folder: Path) -> dict[str, str]:
    """Ada and Bo judged one pair each; the owner's file has their links. Ids by name."""
    ids = {}
    with Store.open(folder) as store:
        for name, role in (("Ada", "rater"), ("Bo", "rater"), ("Boss", "admin")):
            ids[name], token = store.add_rater(name, role)
            TokenFile(folder).add(name, role, token)
            if role == "rater":
                (lease,) = store.lease(ids[name], 1)
                store.answer(ids[name], lease.id, "key", {"overall": "left", "style": "tie"})
    return ids


def names_in(folder: Path) -> list[str]:
    return [name for name, _, _ in TokenFile(folder).read()]


def test_a_rater_is_revoked_and_erased(folder, capsys, monkeypatch):
    ids = with_votes(folder)
    assert palate("project", "revoke", folder, "Bo") == 0
    assert names_in(folder) == ["Ada", "Boss"]
    answers = iter(["n", "y"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert palate("project", "erase", folder, "Ada", "--votes") == 1
    said = capsys.readouterr().out
    assert "2 votes and 0 rankings" in said and "are deleted" in said and "nothing was changed" in said
    with Store.open(folder, write=False) as store:
        assert len(list(store.votes())) == 4
    assert palate("project", "erase", folder, ids["Ada"], "--votes") == 0
    assert "2 facts were deleted" in capsys.readouterr().out
    assert names_in(folder) == ["Boss"]
    assert palate("project", "erase", folder, "Bo", "--yes") == 0
    assert "stay, under" in capsys.readouterr().out
    with Store.open(folder, write=False) as store:
        assert {vote.source for vote in store.votes()} == {ids["Bo"]}
        assert [rater.name for rater in store.raters()] == ["Boss"]
    assert palate("project", "raters", folder) == 0
    assert "no rater of the studio, or erased" in capsys.readouterr().out


def test_who_is_meant_must_be_plain(folder, capsys, monkeypatch):
    with Store.open(folder) as store:
        ids = [store.add_rater("Ada")[0] for _ in range(2)]
    assert palate("project", "erase", folder, "Ada", "--yes") == 1
    error = capsys.readouterr().err
    assert "2 raters are called 'Ada'" in error and all(name in error for name in ids)
    assert palate("project", "revoke", folder, "Eve") == 1
    assert "has no rater 'Eve'; palate project raters" in capsys.readouterr().err

    def closed(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    assert palate("project", "erase", folder, ids[0]) == 1
    assert "nothing was changed" in capsys.readouterr().out


def test_all_of_it_while_the_studio_runs(folder, tmp_path, capsys):
    ids = with_votes(folder)
    with Store.open(folder) as store:
        with labelling.open_studio(store, port=0):
            capsys.readouterr()
            assert palate("project", "known", folder, "--comparison", "c3", "--expected", "s7") == 0
            assert palate("project", "sensitive", folder, "--like", "prompt *") == 0
            assert palate("project", "revoke", folder, "Bo") == 0
            assert palate("project", "erase", folder, "Ada", "--votes", "--yes") == 0
            assert "2 facts were deleted" in capsys.readouterr().out
            assert [made.id for made in store.comparisons() if made.expected] == ["c3"]
            assert all(made.sensitive for made in store.comparisons())
            assert {vote.source for vote in store.votes()} == {ids["Bo"]}
            assert store.lease(ids["Bo"], 1)  # who is revoked cannot come in, and what they hold stays
            assert {"Ada", "Bo"}.isdisjoint(names_in(folder))
            (tmp_path / "good.png").write_bytes(png(901))
            row = {"prompt": "prompt 0", "a": "good.png", "b": "s0", "expected": "a"}
            assert palate("project", "known", folder, table(tmp_path / "known.jsonl", [row])) == 1
            assert "stop that by Ctrl-C" in capsys.readouterr().err
        assert not (folder / reach.FILE).exists()
        assert palate("project", "revoke", folder, "Boss") == 1  # something else than a studio has it open
        assert "in use by another process that writes" in capsys.readouterr().err


def test_the_token_goes_to_the_studio_alone(folder, capsys, monkeypatch):
    """A note that a killed studio left is not believed: its port may be another's by now."""
    with_votes(folder)
    monkeypatch.setattr(reach.Desk, "post", lambda *_: pytest.fail("it was asked"))
    for noted in (json.dumps({"process": 1, "base": "http://127.0.0.1:9"}), "[]", "{", ""):
        (folder / reach.FILE).write_text(noted)
        with Store.open(folder):
            assert palate("project", "revoke", folder, "Ada") == 1
        assert "in use by another process" in capsys.readouterr().err
    TokenFile(folder).path.unlink()
    with Store.open(folder) as store, labelling.open_studio(store, port=0):
        TokenFile(folder).path.unlink()
        assert palate("project", "revoke", folder, "Ada") == 1
        assert "no valid link of an admin" in capsys.readouterr().err


def test_known_pairs_count_for_nothing_else(folder, tmp_path):
    with_votes(folder)
    assert palate("project", "known", folder, "--comparison", "c0", "--expected", "s0") == 0
    with Store.open(folder) as store:
        assert store.progress().votes == 0
        with pytest.raises(ValueError, match="nothing was said"):
            giving.export(folder, tmp_path / "out")
        assert labelling.win_rates_so_far(store) == []
        assert {made.id for made, _ in awaited.missing(store, "")} == {f"c{n}" for n in range(1, 6)}
        assert not list(awaited.votes_of(store, "")) and not awaited.preferences(store, [""])


def test_what_came_in_to_test_raters_is_no_candidate(folder, tmp_path):
    (tmp_path / "good.png").write_bytes(png(901))
    with_votes(folder)
    row = {"prompt": "prompt 0", "a": "good.png", "b": "s1", "expected": "a"}
    assert palate("project", "known", folder, table(tmp_path / "known.jsonl", [row])) == 0
    giving.export(folder, tmp_path / "out")
    assert {len(row) for row in parquet.read(tmp_path / "out")} == {2}
