"""Every command of docs/datasets.md, typed in order beside data laid out as the page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import datasets as library
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palate import cli, datasets
from tests.datasets.make import save
from tests.datasets.test_formats import pick, rated, write_json, write_jsonl

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
COMMANDS = re.findall(r"^    palate (dataset .+)$", PAGE.read_text("utf-8"), re.MULTILINE)


def lay_out(data: Path) -> None:
    """data/ as the page has it; pictures are numbered so that no two splits share one."""
    fresh = iter(range(10_000))

    def pictures(folder: str, *names: str) -> None:
        for name in names:
            save(data / folder / name, next(fresh))

    (data / "pickapic" / "data").mkdir(parents=True)
    for split, numbers in (("train", range(6)), ("validation_unique", range(10, 13))):
        table = pa.Table.from_pylist([pick(i, (1.0, 0.0, 0.5)[i % 3]) for i in numbers])
        pq.write_table(table, data / "pickapic" / "data" / f"{split}-00000-of-00001.parquet")
    pictures("hpdv2/train", "a.jpg", "b.jpg")
    pictures("hpdv2/test", "a.jpg", "b.jpg", "c.jpg")
    pair = {"prompt": "a cat", "file_path": ["a.jpg", "b.jpg"], "human_preference": [1, 0]}
    write_json(data / "hpdv2" / "train.json", [pair])
    ranked = {"prompt": "a dog", "image_path": ["a.jpg", "b.jpg", "c.jpg"], "rank": [2, 1, 3]}
    write_json(
        data / "hpdv2" / "test.json", [{**ranked, "raw_annotations": [{"rank": [2, 1, 3]}, {"rank": [1, 2, 3]}]}]
    )
    pictures("hpdv3/images", "a.jpg", "b.jpg")
    both = {"prompt": "p", "path1": "images/a.jpg", "path2": "images/b.jpg", "model1": "x", "model2": "y"}
    write_json(data / "hpdv3" / "train.json", [{**both, "choice_dist": [12, 4], "confidence": 0.97}])
    pictures("imagereward/train_1", "0.png", "1.png")
    write_json(data / "imagereward" / "train_1" / "train_1.json", [rated("g", 0, 1), rated("g", 1, 2)])
    pictures("d3po/images", *(f"{i:05}.png" for i in range(6)))
    write_json(data / "d3po" / "prompt.json", ["1 hand", "2 hands"])
    write_json(data / "d3po" / "json" / "anna.json", [[1, 0, 0], [0, 1, 0]])
    pictures("folders", "chosen/0001.png", "rejected/0001.png")
    (data / "folders" / "chosen" / "0001.txt").write_text("a star")
    pictures("suffixes", "0001_w.png", "0001_l.png")
    (data / "suffixes" / "prompts.csv").write_text("name,prompt\n0001,a star\n")
    pictures("table", "a.png", "b.png")
    (data / "table" / "votes.csv").write_text("prompt,a,b,winner\nstar,a.png,b.png,tie\n")
    (data / "videogen" / "videos").mkdir(parents=True)
    for name in "ab":
        (data / "videogen" / "videos" / f"{name}.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + name.encode())
    header, row = "path_A,path_B,prompt,VQ,MQ,TA,Overall", "videos/a.mp4,videos/b.mp4,a cat,A,same,B,A"
    (data / "videogen" / "videogen-rewardbench.csv").write_text(f"{header}\n{row}\n")
    (data / "trl").mkdir()
    write_jsonl(data / "trl" / "train.jsonl", [{"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."}])


@pytest.fixture
def here(tmp_path, monkeypatch):
    lay_out(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    real, picks = library.load_dataset, str(tmp_path / "data" / "pickapic" / "data" / "train-00000-of-00001.parquet")

    def load(repository, split, streaming, **options):
        assert repository == "yuvalkirstain/pickapic_v2" and split == "validation" and streaming
        return real("parquet", data_files=picks, split="train", streaming=True)

    monkeypatch.setattr(library, "load_dataset", load)
    return tmp_path


def test_the_commands_of_the_page(here, capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as left:
            cli.main(shlex.split(command))
        said = capsys.readouterr()
        assert not left.value.code, f"palate {command}: {said.out}{said.err}"
    assert len(COMMANDS) > 15
    assert len(list(datasets.open("data/picks"))) == len(list(datasets.open("data/own"))) == 6
    assert [row.votes[0][1] for row in datasets.open("data/hpdv2-test")] == [2]


def test_the_page_names_every_format_and_what_it_writes():
    table = dict(re.findall(r"^\| `(\w+)` \| yes \|( yes)? +\|", PAGE.read_text("utf-8"), re.MULTILINE))
    assert set(table) == set(datasets.formats())
    for name, written in table.items():
        assert bool(written) == hasattr(datasets.plugins.find("datasets", name), "write"), name


def test_the_numbers_of_the_page():
    found = json.loads((PAGE.parents[1] / "benchmarks" / "results" / "streaming.json").read_text())
    told = " ".join(PAGE.read_text("utf-8").split())
    assert f"{found['rows']:,} rows of Pick-a-Pic ({found['megabytes']} MB)" in told
    assert f"by {found['growth_mb']:.0f} MB" in told and f"after {found['first_batch_s']:.2f} s" in told
