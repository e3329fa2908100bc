"""The commands of `palate dataset`, typed as a user types them."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from palate import cli, datasets
from palate.records import Medium, Preference
from tests.datasets.make import known, png, save
from tests.datasets.test_formats import write_jsonl

NAN = math.nan


def palate(*arguments):
    """The exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return left.value.code or 0


@pytest.fixture
def table(tmp_path):
    """Ten pairs of one's own, of which a picture of the last is missing."""
    for i in range(19):
        save(tmp_path / "in" / f"{i}.png", i)
    rows = [
        {"prompt": f"p{i // 2}", "a": f"{2 * i}.png", "b": f"{2 * i + 1}.png", "winner": "ab"[i % 2]} for i in range(10)
    ]
    return write_jsonl(tmp_path / "in" / "train.jsonl", rows)


def test_no_torch_is_loaded():
    code = "import sys, palate.doors.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check(table, capsys):
    assert palate("dataset", "check", table) == 1
    said = capsys.readouterr().out
    assert "10 rows of 5 prompts" in said and "train.jsonl line 10, candidate 1 (19.png): 19.png cannot be read" in said
    assert "not good: 1 of 20 media are bad, more than 1.00%" in said
    assert palate("dataset", "check", table.parent, "--max-bad", "0.05", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["good"] and found["bad_media"]["kinds"]["missing"]["first"][0]["where"].startswith(
        "train.jsonl line 10"
    )


def test_check_against_another_split(table, capsys):
    shared = {"prompt": "P0", "a": "17.png", "b": "18.png", "winner": "a"}
    write_jsonl(table.with_name("test.jsonl"), [shared])
    for other in ("test", table.with_name("test.jsonl")):
        assert palate("dataset", "check", table.parent, "--max-bad", "0.1", "--against", other) == 1
        assert "1 prompts are also in" in capsys.readouterr().out


def test_check_against_a_folder_beside(table, monkeypatch, capsys):
    monkeypatch.chdir(table.parent.parent)
    assert palate("dataset", "check", "in", "--max-bad", "0.1", "--against", "in") == 1
    assert "5 prompts are also in in" in capsys.readouterr().out


def test_import(table, tmp_path, capsys):
    out = tmp_path / "own"
    assert palate("dataset", "import", table, out) == 1
    said = capsys.readouterr().err
    assert "1 of 20 media are bad, more than 1.00%" in said and "--max-bad" in said and "train.jsonl line 10" in said
    assert not (out / "manifest.json").exists()
    assert palate("dataset", "import", table, out, "--max-bad", "0.05") == 0
    assert "9 parquet rows of" in capsys.readouterr().out
    rows = list(datasets.open(out))
    assert [known(row)[0, 1] for row in rows] == [1.0, 0.0] * 4 + [1.0] and rows[1].media == (png(2), png(3))
    assert palate("dataset", "import", table, out) == 1 and "already holds" in capsys.readouterr().err
    assert palate("dataset", "check", out) == 0


def test_import_some_and_merged(table, tmp_path):
    assert palate("dataset", "import", table, tmp_path / "own", "--limit", 3, "--merge", "--split", "train") == 0
    rows = list(datasets.open(tmp_path / "own"))
    assert [len(row) for row in rows] == [4, 2] and known(rows[0]) == {(0, 1): 1.0, (2, 3): 0.0}


def test_convert(table, tmp_path, capsys):
    assert palate("dataset", "convert", table, tmp_path / "p.parquet", "--to", "pickapic", "--limit", 4) == 0
    assert "4 pickapic rows of" in capsys.readouterr().out
    assert palate("dataset", "convert", tmp_path / "p.parquet", tmp_path / "ff", "--to", "flow_factory") == 0
    again = datasets.open(tmp_path / "ff")
    assert again.format == "flow_factory" and [known(row)[0, 1] for row in again] == [1.0] * 4
    assert palate("dataset", "convert", table, tmp_path / "x", "--to", "hpdv2", "--limit", 1) == 1
    assert "hpdv2 can only be read" in capsys.readouterr().err


def test_a_candidate_that_is_lost_is_masked(tmp_path):
    three = (png(0), Medium("image/png", b"broken"), png(2))
    prefer = [[NAN, 1, 0.75], [0, NAN, NAN], [0.25, NAN, NAN]]
    datasets.write(
        tmp_path / "in", [Preference("p", three, prefer, scores=[[1], [2], [3]], dimensions=["s"])], "parquet"
    )
    assert palate("dataset", "import", tmp_path / "in", tmp_path / "out", "--max-bad", "0.5") == 0
    (row,) = datasets.open(tmp_path / "out")
    assert row.mask == (True, False, True) and known(row) == {(0, 2): 0.75} and math.isnan(row.scores[1][0])


def test_what_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source, message in ((tmp_path / "nowhere", "no such file"), ("owner/name", "install the extra")):
        assert palate("dataset", "check", source) == 1
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
