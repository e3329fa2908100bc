"""Winners and losers in folders, or side by side."""

from __future__ import annotations

import pytest

from palate import datasets, media
from palate.media import DatasetError
from tests.datasets.make import known, save


def test_two_parallel_folders(tmp_path):
    for i, name in enumerate(("a", "b", "c")):
        save(tmp_path / "chosen" / f"{name}.png", 2 * i)
        save(tmp_path / "rejected" / f"{name}.jpg", 2 * i + 1)
    (tmp_path / "chosen" / "a.txt").write_text("a red star\n")
    (tmp_path / "b.txt").write_text("a blue\nsquare")
    reader = datasets.open(tmp_path)
    rows = list(reader)
    assert reader.format == "folders" and reader.number == 3 and reader.root == tmp_path
    assert [row.prompt for row in rows] == ["a red star", "a blue square"]
    assert [medium.path for medium in rows[0].media] == ["chosen/a.png", "rejected/a.jpg"]
    assert known(rows[0]) == {(0, 1): 1.0} and rows[0].media[1].type == "image/jpeg"
    assert media.decode(rows[1].media[1], reader.root).size == (32, 24)
    assert reader.flaws.total == 1 and "prompt" in str(reader.flaws)


def test_suffixes_and_ties(tmp_path):
    for name in ("star_w.png", "star_l.png", "ring_e1.png", "ring_e2.png", "lone_w.png", "odd_w.png", "odd_e1.png"):
        save(tmp_path / name)
    (tmp_path / "prompts.csv").write_text('name,prompt\nstar,"a star, red"\nring_e1.png,a ring\nlone,x\nodd,x\n')
    reader = datasets.open(tmp_path)
    rows = {row.prompt: row for row in reader}
    assert known(rows["a star, red"]) == {(0, 1): 1.0} and known(rows["a ring"]) == {(0, 1): 0.5}
    assert reader.flaws.counts == {"bad media": 1, "without a partner": 1}
    (lone,) = reader.flaws.first["without a partner"]
    assert (lone.where, lone.reason) == ("lone_w.png", "lone_l.png is missing")


def test_a_picture_without_a_partner_says_which_file_is_missing(tmp_path):
    for name in ("chosen/3.png", "rejected/4.png"):
        save(tmp_path / name)
    reader = datasets.open(tmp_path)
    assert not list(reader)
    flaws = reader.flaws.first["without a partner"]
    assert [(flaw.where, flaw.reason) for flaw in flaws] == [
        ("chosen/3.png", "rejected/3.png is missing"),
        ("rejected/4.png", "chosen/4.png is missing"),
    ]


def test_two_of_one_name_on_a_side_are_a_flaw(tmp_path):
    for name in ("chosen/a.png", "chosen/a.jpg", "rejected/a.png", "chosen/b.png", "rejected/b.png"):
        save(tmp_path / name)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    reader = datasets.open(tmp_path)
    assert [row.prompt for row in reader] == ["b"] and "several endings" in reader.flaws.first["bad media"][0].reason


def test_prompts_that_cannot_be_read(tmp_path):
    for name in ("star_w.png", "star_l.png"):
        save(tmp_path / name)
    (tmp_path / "star.txt").write_bytes(b"\xff\xfe\xfa")
    reader = datasets.open(tmp_path)
    assert not list(reader) and reader.flaws.total == 1
    (flaw,) = reader.flaws.first["bad prompt"]
    assert flaw.reason.endswith("star.txt is not UTF-8 text; save it as UTF-8")
    (tmp_path / "prompts.jsonl").write_text('{"name": 3}\n')
    with pytest.raises(DatasetError, match=r"prompts.jsonl line 1: must have `name` and `prompt`"):
        list(reader)


@pytest.mark.parametrize("format", ["folders", "parquet"])
def test_a_split_of_what_has_none_is_refused(tmp_path, format):
    for side in ("chosen", "rejected"):
        save(tmp_path / side / "a.png")
    (tmp_path / "a.txt").write_text("a star")
    rows = list(datasets.open(tmp_path))
    datasets.write(tmp_path / "own", rows, "parquet", media_root=tmp_path)
    with pytest.raises(DatasetError, match=r"has no split.*'test'"):
        list(datasets.open(tmp_path if format == "folders" else tmp_path / "own", split="test"))


def test_what_is_no_data_set_says_so(tmp_path):
    with pytest.raises(DatasetError, match=r" is empty: put the data there, or give another folder"):
        datasets.open(tmp_path)
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(DatasetError, match=r"holds no table, .*which no format knows .*folders.*by --format"):
        datasets.open(tmp_path)
    with pytest.raises(DatasetError, match="no such file or folder, and it is no hub id"):
        datasets.open(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no such file or folder"):
        datasets.open("own", format="parquet")
