"""Each public format as its authors lay it out, in miniature and by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palate import datasets, media
from palate.media import DatasetError
from palate.records import Aspect, Medium, Preference
from palate.views import preference_of
from tests.datasets.make import known, picture, png, save

NAN = math.nan


def read(path: Path, expected: str, **options: Any) -> tuple[list[Preference], datasets.Reader]:
    """All rows, by the format that sniffing finds."""
    reader = datasets.open(path, **options)
    assert reader.format == expected
    return list(reader), reader


def write_json(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- Pick-a-Pic -------------------------------------------------------------------------------------------------------


def pick(i: int, label_0: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "are_different": True,
        "best_image_uid": "x",
        "caption": f"prompt {i}",
        "has_label": True,
        "image_0_uid": f"{i}-0",
        "image_0_url": "https://example.org/0.png",
        "image_1_uid": f"{i}-1",
        "image_1_url": "https://example.org/1.png",
        "jpg_0": picture(2 * i, "JPEG"),
        "jpg_1": picture(2 * i + 1, "JPEG"),
        "label_0": label_0,
        "label_1": None if label_0 is None else 1 - label_0,
        "model_0": "sdxl",
        "model_1": "dreamlike",
        "ranking_id": i,
        "user_id": 7,
        **changes,
    }


def test_pickapic(tmp_path):
    raw = [pick(0, 1.0), pick(1, 0.0), pick(2, 0.5), pick(3, 0.5, has_label=False), pick(4, None)]
    raw += [pick(5, 1.0, label_1=1.0), pick(6, 1.0, jpg_0=b"", jpg_1=None), pick(7, 1.0, jpg_1=None)]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(raw[:4]), tmp_path / "data" / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(raw[4:]), tmp_path / "data" / "train-00001-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(raw[:1]), tmp_path / "data" / "validation_unique-00000-of-00001.parquet")
    rows, reader = read(tmp_path, "pickapic")
    assert [(row.prompt, known(row)[0, 1]) for row in rows] == [("prompt 0", 1.0), ("prompt 1", 0.0), ("prompt 2", 0.5)]
    assert rows[0].sources == ("sdxl", "dreamlike") and rows[0].media[0].type == "image/jpeg"
    assert rows[1].media[1].bytes == raw[1]["jpg_1"] and reader.number == 8
    assert reader.flaws.counts == {"bad label_0": 1, "bad jpg_0": 1, "bad jpg_1": 1}
    assert reader.flaws.first["bad label_0"][0].where == "train-00001-of-00002.parquet row 1"
    assert len(read(tmp_path, "pickapic", split="validation_unique")[0]) == 1
    with pytest.raises(DatasetError, match="has no split 'test'; it has train, validation_unique"):
        datasets.open(tmp_path, split="test")


def test_pickapic_written(tmp_path):
    paths = [Medium("image/png", path=str(save(tmp_path / f"{i}.png", i).name)) for i in range(3)]
    row = Preference(
        "a star",
        paths,
        [[NAN, 0.75, NAN], [0.25, NAN, 0.5], [NAN, 0.5, NAN]],
        votes=[[0, 4, 0], [4, 0, 2], [0, 2, 0]],
        sources=("x", "y", ""),
        weight=0.25,
        scores=[[1], [NAN], [2]],
        dimensions=["style"],
    )
    made = datasets.write(tmp_path / "out" / "p.parquet", [row], "pickapic", media_root=tmp_path)
    assert made.rows == 2 and made.left_out == {"rows' scores": 1}
    table = pq.read_table(tmp_path / "out" / "p.parquet").to_pylist()
    assert [(raw["label_0"], raw["label_1"], raw["caption"]) for raw in table] == [
        (1, 0, "a star"),
        (0.5, 0.5, "a star"),
    ]
    assert table[0]["best_image_uid"] == table[0]["image_0_uid"] != table[0]["image_1_uid"] == table[1]["image_0_uid"]
    rows, _ = read(tmp_path / "out" / "p.parquet", "pickapic")
    assert [known(r)[0, 1] for r in rows] == [0.75, 0.5] and rows[0].votes[0][1] == 4 and rows[0].sources == ("x", "y")
    assert [row.weight for row in rows] == [0.25, 0.25]
    with pytest.raises(FileExistsError, match="there already"):
        datasets.write(tmp_path / "out" / "p.parquet", [row], "pickapic")
    text = Preference("p", (Medium("text/plain", b"a"), Medium("text/plain", b"b")), [[NAN, 1], [0, NAN]])
    with pytest.raises(DatasetError, match="type text/plain; Pick-a-Pic's are pictures"):
        datasets.write(tmp_path / "texts.parquet", [text], "pickapic")
    assert not list(tmp_path.glob("texts*"))
    with pytest.raises(DatasetError, match=r"end in \.parquet"):
        datasets.write(tmp_path / "out" / "folder", [row], "pickapic")


# --- HPD --------------------------------------------------------------------------------------------------------------


def test_hpdv2(tmp_path):
    for i in range(4):
        save(tmp_path / "train" / f"{i}.jpg", i)
        save(tmp_path / "test" / f"{i}.jpg", i + 4)
    train = [
        {"prompt": "a", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1]},
        {"prompt": "b", "file_path": ["2.jpg", "3.jpg"], "human_preference": [1, 0], "user_hash": "u"},
        {"prompt": "c", "file_path": ["2.jpg", "3.jpg"], "human_preference": [1]},
    ]
    people = [{"rank": rank, "user_hash": str(i)} for i, rank in enumerate(([1, 2, 3], [2, 1, 3], [1, 2, 2]))]
    paths = ["0.jpg", "1.jpg", "2.jpg"]
    test = [
        {"prompt": "d", "image_path": paths, "rank": [1, 2, 3], "raw_annotations": people},
        {"prompt": "e", "image_path": paths, "rank": [2, 1, 2]},
        {"prompt": "f", "image_path": paths, "rank": [1, 2, 3], "raw_annotations": [{"rank": [3, 2, 1]}]},
    ]
    write_json(tmp_path / "train.json", train)
    write_json(tmp_path / "test.json", test)
    rows, reader = read(tmp_path, "hpdv2")
    assert [known(row)[0, 1] for row in rows] == [0.0, 1.0] and reader.flaws.counts == {"bad human_preference": 1}
    assert media.decode(rows[0].media[1], reader.root).size == (32, 24) and rows[0].media[1].path == "train/1.jpg"
    ranked, reader = read(tmp_path, "hpdv2", split="test")
    assert known(ranked[0]) == pytest.approx({(0, 1): 2 / 3, (0, 2): 1.0, (1, 2): 2.5 / 3})
    assert ranked[0].votes[0][1] == 3
    assert known(ranked[1]) == {(0, 1): 0.0, (0, 2): 0.5, (1, 2): 1.0}
    assert known(ranked[2]) == {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 1.0}  # what is no rank of the pictures is not taken
    assert media.decode(ranked[0].media[0], reader.root)


def test_hpdv3(tmp_path):
    save(tmp_path / "images" / "a.png", 1)
    save(tmp_path / "images" / "b.png", 2)
    both = {"prompt": "p", "path1": "images/a.png", "path2": "images/b.png"}
    raw = [
        {**both, "choice_dist": [12, 4], "confidence": 0.97, "model1": "flux", "model2": "infinity"},
        {**both, "choice_dist": [4, 12], "confidence": None},  # path1 is the preferred one whatever the order
        {**both, "confidence": 2.0},
        {**both, "choice_dist": None},
        {**both, "choice_dist": [3]},
    ]
    rows, reader = read(write_json(tmp_path / "train.json", raw), "hpdv3")
    assert [known(row)[0, 1] for row in rows] == [0.75, 0.75, 1.0] and rows[0].votes[0][1] == 16
    assert [row.weight for row in rows] == [0.97, 1.0, 1.0] and rows[0].sources == ("flux", "infinity")
    assert reader.flaws.counts == {"bad confidence": 1, "bad choice_dist": 1}
    assert media.decode(rows[0].media[0], reader.root)


# --- ImageRewardDB ----------------------------------------------------------------------------------------------------


def rated(group: str, i: int, rank: int, **changes: Any) -> dict[str, Any]:
    ratings = {"overall_rating": 8 - rank, "image_text_alignment_rating": 5, "fidelity_rating": rank}
    return {
        "image_path": f"images/train/train_1/{i}.png",
        "prompt_id": group,
        "prompt": f"prompt {group}",
        "classification": "People",
        "image_amount_in_total": 3,
        "rank": rank,
        **ratings,
        **changes,
    }


def test_imagerewarddb(tmp_path):
    raw = [rated("g", 0, 2), rated("g", 1, 1), rated("g", 2, 2), rated("h", 3, 1), rated("h", 4, 2)]
    raw += [rated("k", 5, 1), rated("k", 6, 2, prompt="another")]
    for i in range(7):
        save(tmp_path / "train_1" / f"{i}.png", i)
    rows, reader = read(write_json(tmp_path / "train_1" / "train_1.json", raw), "imagerewarddb")
    assert [len(row) for row in rows] == [3, 2] and reader.flaws.counts == {"bad prompt": 1}
    assert known(rows[0]) == {(0, 1): 0.0, (0, 2): 0.5, (1, 2): 1.0}
    assert rows[0].dimensions[0] == "overall_rating" and rows[0].scores[1] == (7.0, 5.0, 1.0)
    assert media.decode(rows[1].media[1], reader.root)
    for row, path in zip(raw, tmp_path.glob("train_1/*.png"), strict=True):  # the hub's zips, unpacked where they say
        save(tmp_path / row["image_path"]).write_bytes(path.read_bytes())
    moved, reader = read(write_json(tmp_path / "train.json", raw), "imagerewarddb")
    assert moved[0].media[0].path == "images/train/train_1/0.png" and media.decode(moved[0].media[0], reader.root)


def test_imagerewarddb_from_the_hub(tmp_path):
    image = [{"bytes": picture(i), "path": None} for i in range(3)]
    lists = {name: [1, 2, 3] for name in ("overall_rating", "image_text_alignment_rating", "fidelity_rating")}
    group = {"prompt_id": "g", "prompt": "p", "classification": "x", "image": image, "rank": [1, 3, 2], **lists}
    pq.write_table(pa.Table.from_pylist([group]), tmp_path / "group.parquet")
    (row,), _ = read(tmp_path / "group.parquet", "imagerewarddb")
    assert known(row) == {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 0.0} and row.scores[2] == (3.0, 3.0, 3.0)
    pair = {"prompt_id": "g", "prompt": "p", "img_better": image[0], "img_worse": image[1]}
    pq.write_table(pa.Table.from_pylist([pair]), tmp_path / "pair.parquet")
    (row,), _ = read(tmp_path / "pair.parquet", "imagerewarddb")
    assert known(row) == {(0, 1): 1.0} and row.media[1].bytes == picture(1)


# --- D3PO -------------------------------------------------------------------------------------------------------------


def test_d3po_json(tmp_path):
    for i in range(9):
        save(tmp_path / "images" / f"{i:05}.png", i)
    write_json(tmp_path / "prompt.json", ["1 hand", "2 hands", "3 hands"])
    write_json(tmp_path / "json" / "anna.json", [[1, 0, -1], [0, 0, 0], [1, 1], [1, 0, 0]])
    write_json(tmp_path / "json" / "bert.json", [[0, 1, -1], [0, 1, 0]])
    (tmp_path / "sample.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # never opened
    rows, reader = read(tmp_path, "d3po_json")
    assert [row.prompt for row in rows] == ["1 hand", "2 hands"]
    assert known(rows[0]) == {(0, 1): 0.5, (0, 2): 1.0, (1, 2): 1.0} and rows[0].votes[0][1] == 2
    assert known(rows[1]) == {(0, 1): 0.25, (0, 2): 0.5, (1, 2): 0.75} and rows[1].scores == ((0.0,), (0.5,), (0.0,))
    assert [medium.path for medium in rows[1].media] == ["images/00003.png", "images/00004.png", "images/00005.png"]
    assert reader.flaws.counts == {"bad prefer": 1, "bad prompt": 1}  # two labels of three; no such prompt
    assert media.decode(rows[1].media[2], reader.root)


@pytest.mark.parametrize(("labels", "p"), [([1, 0], 1.0), ([0, 1], 0.0), ([0, 0], 0.5)])
def test_d3po_pairs(tmp_path, labels, p):
    (tmp_path / "images").mkdir()
    write_json(tmp_path / "prompt.json", ["1 hand"])
    write_json(tmp_path / "feedback.json", [labels])
    assert known(read(tmp_path, "d3po_json")[0][0]) == {(0, 1): p}


# --- VideoGen-RewardBench ---------------------------------------------------------------------------------------------


def test_videogen_rewardbench(tmp_path):
    names = ["path_A", "path_B", "A_model", "B_model", "prompt", "VQ", "MQ", "TA", "Overall", "fps_A", "MOS_A_VQ"]
    with (tmp_path / "videogen-rewardbench.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*names, "MOS_B_VQ"], restval="")
        table.writeheader()
        row = {"path_A": "videos/a.mp4", "path_B": "videos/b.mp4", "prompt": "a cat, running", "A_model": "pika"}
        table.writerow({**row, "VQ": "A", "MQ": "same", "TA": "B", "Overall": "A", "MOS_A_VQ": "4.5", "MOS_B_VQ": 3})
        table.writerow({**row, "VQ": "invalid", "MQ": "B", "TA": "A", "Overall": ""})
        table.writerow({**row, "VQ": "invalid", "MQ": "", "TA": "", "Overall": ""})
        table.writerow({**row, "VQ": "C", "Overall": "A"})
    rows, reader = read(tmp_path, "videogen_rewardbench")
    assert len(rows) == 2 and reader.flaws.counts == {"bad VQ": 1}
    assert known(rows[0]) == {(0, 1): 1.0} and rows[0].media[0].type == "video/mp4" and rows[0].sources == ("pika", "")
    assert [(a.dimension, a.prefer[0][1]) for a in rows[0].aspects] == [("VQ", 1.0), ("MQ", 0.5), ("TA", 0.0)]
    assert rows[0].dimensions == ("VQ",) and [s[0] for s in rows[0].scores] == [4.5, 3.0]
    assert known(rows[1]) == {} and [a.dimension for a in rows[1].aspects] == ["MQ", "TA"]
    about = preference_of(rows[1], "TA")
    assert about is not None and known(about) == {(0, 1): 1.0}


# --- texts ------------------------------------------------------------------------------------------------------------


def test_trl_pairs_there_and_back(tmp_path):
    raw = [
        {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven.", "score_chosen": 4.0, "score_rejected": 1},
        {"prompt": "Again.", "chosen": "Blau…", "rejected": "", "score_chosen": None, "score_rejected": None},
        {"prompt": "No.", "chosen": "x", "rejected": "y", "images": ["a.png"]},
        {"prompt": "No.", "chosen": "x", "rejected": 3},
    ]
    rows, reader = read(write_jsonl(tmp_path / "train.jsonl", raw), "trl")
    assert [row.prompt for row in rows] == ["Name a colour.", "Again."] and reader.flaws.total == 2
    assert rows[1].media[0].bytes == "Blau…".encode() and rows[0].media[0].type == "text/plain"
    assert rows[0].dimensions == ("score",) and rows[0].scores == ((4.0,), (1.0,))
    assert datasets.write(tmp_path / "out.jsonl", rows, "trl").rows == 2
    again, _ = read(tmp_path / "out.jsonl", "trl")
    assert [(r.prompt, r.media, str(r.scores)) for r in again] == [(r.prompt, r.media, str(r.scores)) for r in rows]


def test_trl_conversations_and_implicit_prompts(tmp_path):
    asked = [{"role": "user", "content": "Name a colour."}]
    good, bad = [{"role": "assistant", "content": "Red."}], [{"role": "assistant", "content": "Seven."}]
    (row,), _ = read(write_jsonl(tmp_path / "a.jsonl", [{"prompt": asked, "chosen": good, "rejected": bad}]), "trl")
    (same,), _ = read(write_jsonl(tmp_path / "b.jsonl", [{"chosen": asked + good, "rejected": asked + bad}]), "trl")
    assert row.media == same.media and row.prompt == same.prompt and json.loads(row.prompt) == asked
    (text,), _ = read(
        write_jsonl(tmp_path / "c.jsonl", [{"chosen": "Q: 1+1? A: two", "rejected": "Q: 1+1? A: ten"}]), "trl"
    )
    assert text.prompt == "Q: 1+1? A: " and [m.bytes for m in text.media] == [b"two", b"ten"]
    tie = Preference("p", row.media, [[NAN, 0.5], [0.5, NAN]])
    soft = Preference(row.prompt, row.media, [[NAN, 0.2], [0.8, NAN]], votes=[[0, 5], [5, 0]], weight=3.0)
    aspect = Preference("p", row.media, [[NAN, NAN], [NAN, NAN]], aspects=[Aspect("TA", [[NAN, 1], [0, NAN]])])
    made = datasets.write(tmp_path / "out.jsonl", [tie, soft, aspect], "trl")
    assert made.rows == 1 and made.left_out == {"ties": 1, "rows that compare nothing": 1, "rows' aspects": 1}
    (again,), _ = read(tmp_path / "out.jsonl", "trl")
    assert again.media == row.media[::-1] and known(again) == {(0, 1): 0.8} and again.votes[0][1] == 5
    assert again.weight == 3.0
    mixed, _ = read(write_jsonl(tmp_path / "m.jsonl", [{"prompt": "[1]", "chosen": good, "rejected": bad}]), "trl")
    datasets.write(tmp_path / "mixed.jsonl", mixed, "trl")
    assert read(tmp_path / "mixed.jsonl", "trl")[0][0].prompt == "[1]"
    with pytest.raises(DatasetError, match="holds a image/png; TRL's pairs are texts"):
        (tmp_path / "out.jsonl").unlink()
        datasets.write(tmp_path / "out.jsonl", [picture_pair()], "trl")
    assert not (tmp_path / "out.jsonl").exists()


def picture_pair() -> Preference:
    return Preference("p", (png(1), png(2)), [[NAN, 1.0], [0.0, NAN]])


def test_trl_unpaired(tmp_path):
    raw = [{"prompt": "p", "completion": "good", "label": True}, {"prompt": "p", "completion": "bad", "label": False}]
    rows, _ = read(write_jsonl(tmp_path / "kto.jsonl", raw), "trl")
    assert [row.scores for row in rows] == [((1.0,),), ((0.0,),)] and len(rows[0]) == 1


# --- Flow-Factory -----------------------------------------------------------------------------------------------------


def test_flow_factory_there_and_back(tmp_path):
    rows = [
        Preference("soft", (png(1), png(2)), [[NAN, 0.25], [0.75, NAN]], votes=[[0, 4], [4, 0]], seeds=(3, None)),
        Preference("tie", (png(1), png(2)), [[NAN, 0.5], [0.5, NAN]]),
        Preference("hard", (png(3), png(1)), [[NAN, 1.0], [0.0, NAN]], weight=2.0, sources=("sdxl", "")),
    ]
    made = datasets.write(tmp_path, rows, "flow_factory")
    assert made.rows == 2 and made.left_out == {"ties": 1} and len(list((tmp_path / "media").iterdir())) == 3
    again, reader = read(tmp_path, "flow_factory")
    assert [medium.type for medium in again[0].media] == ["image/png"] * 2
    assert known(again[0]) == {(0, 1): 0.75} and again[0].votes[0][1] == 4 and again[0].seeds == (None, 3)
    assert again[1].weight == 2.0 and again[1].sources == ("sdxl", "")
    assert media.medium_bytes(again[0].media[0], reader.root) == png(2).bytes


def test_flow_factory_refuses_what_a_row_cannot_hold(tmp_path):
    side = {"media": [{"type": "image", "path": "a.png"}]}
    good = {
        "schema_version": 2,
        "input": {"prompt": "p", "media": []},
        "supervision": {"type": "preference", "chosen": side, "rejected": side},
    }
    raw = [
        good,
        {**good, "schema_version": 1},
        {**good, "input": {"prompt": "p", "media": side["media"]}},
        {**good, "supervision": {"type": "demonstration", "target": side}},
        {**good, "supervision": {**good["supervision"], "chosen": {"media": []}}},
        {
            **good,
            "supervision": {
                "type": "preference",
                "chosen": {"media": [{"type": "video", "path": "a.png"}]},
                "rejected": side,
            },
        },
        {**good, "input": "p"},
    ]
    rows, reader = read(write_jsonl(tmp_path / "train.jsonl", raw), "flow_factory")
    assert len(rows) == 1 and reader.flaws.total == 6


# --- one's own tables -------------------------------------------------------------------------------------------------


def test_table_csv(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    (tmp_path / "chosen.csv").write_text("prompt,chosen,rejected\nstar,a.png,b.png\n")
    rows, reader = read(tmp_path / "chosen.csv", "table")
    assert known(rows[0]) == {(0, 1): 1.0} and media.decode(rows[0].media[0], reader.root)
    lines = [
        "prompt,image_a,image_b,winner,votes,weight,source_a",
        "x,a.png,b.png,b,3,0.5,sdxl",
        "x,a.png,b.png,TIE,,,",
    ]
    lines += ["x,a.png,b.png,,,,", "x,a.png,b.png,left,,,", "x,a.png,b.png,a,1,1,s,too,many", "x,,b.png,a,,,"]
    (tmp_path / "winner.csv").write_text("\n".join(lines))
    rows, reader = read(tmp_path / "winner.csv", "table")
    assert [known(row)[0, 1] for row in rows] == [0.0, 0.5] and rows[0].votes[0][1] == 3
    assert rows[0].weight == 0.5 and rows[0].sources == ("sdxl", "")
    assert reader.flaws.counts == {"bad winner": 1, "ragged row": 1, "bad image_a": 1}
    (tmp_path / "p.csv").write_text("prompt,path_0,path_1,preference\nx,a.png,b.png,0.8\nx,a.png,b.png,8\n")
    rows, reader = read(tmp_path / "p.csv", "table")
    assert [known(row)[0, 1] for row in rows] == [0.8] and reader.flaws.total == 1


def test_table_lists(tmp_path):
    base = {"prompt": "p", "media": ["a.png", "b.png", "https://example.org/c.png"]}
    three = {**base, "media": ["a.png", "b.png", "c.png"]}
    raw = [
        {**three, "scores": [1.0, 3.0, 3.0], "sources": ["x", "y", "z"], "seeds": [1, 2, None]},
        {**three, "ranks": [1, 2, 2]},
        {**three, "prefer": [[None, 0.9, None], [0.1, None, None], [None, None, None]]},
        {**three, "ranks": [1, 2]},
        {**base, "ranks": [1, 2, 3]},
        ["no", "row"],
    ]
    rows, reader = read(write_jsonl(tmp_path / "t.jsonl", raw), "table")
    assert known(rows[0]) == {(0, 1): 0.0, (0, 2): 0.0, (1, 2): 0.5} and rows[0].seeds == (1, 2, None)
    assert rows[0].scores == ((1.0,), (3.0,), (3.0,)) and known(rows[1]) == {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 0.5}
    assert known(rows[2]) == {(0, 1): 0.9} and reader.flaws.total == 3
    assert "URL" in reader.flaws.first["bad media"][0].reason


def test_table_of_ranks_alone(tmp_path):
    raw = [{"prompt": "p", "media": ["a.png", "b.png"], "ranks": ranks} for ranks in ([1, 2], [1, 1])]
    rows, reader = read(write_jsonl(tmp_path / "t.jsonl", [*raw, {**raw[0], "scores": [3, 4]}]), "table")
    assert [known(row)[0, 1] for row in rows] == [1.0, 0.5, 1.0] and not reader.flaws.total
    assert rows[2].scores == ((3.0,), (4.0,))  # the first row has none


def test_what_cannot_be_written_or_found_says_so(tmp_path):
    with pytest.raises(
        DatasetError, match="hpdv2 can only be read; written can be parquet, flow_factory, pickapic, trl"
    ):
        datasets.write(tmp_path / "x", [], "hpdv2")
    (tmp_path / "t.csv").write_text("who,what\n1,2\n")
    with pytest.raises(
        DatasetError, match=r"the columns who, what, which no format knows .*no 'prompt' and no 'chosen'"
    ):
        datasets.open(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="unknown data format 'hpdv4'; did you mean 'hpdv3'"):
        datasets.open(tmp_path / "t.csv", format="hpdv4")
