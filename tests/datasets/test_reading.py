"""Raw rows of tables and of the hub: streamed, and what is damaged is said with its place."""

from __future__ import annotations

import json
import sys
from itertools import islice

import datasets as library
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palate import datasets, tables
from palate.media import DatasetError
from palate.reading import Source
from palate.tables import Flaw, json_array, table_rows
from tests.datasets.make import known, picture


@pytest.mark.parametrize("pad", ["", " ", "\n\n"])
def test_a_json_list_is_read_by_pieces(tmp_path, pad):
    rows = [{"n": i, "text": "][{}," * (i % 7), "more": [1, {"a": None}]} for i in range(3000)]
    rows[1500]["text"] = "ü" * 200_000  # longer than a piece
    path = tmp_path / "a.json"
    path.write_text(pad + "[" + pad + f"{pad},{pad}".join(json.dumps(row) for row in rows) + pad + "]" + pad)
    assert list(json_array(path)) == rows
    path.write_text(f"[{pad}]")
    assert list(json_array(path)) == []
    path.write_text("[1, 23, 456]")
    assert list(json_array(path)) == [1, 23, 456]


@pytest.mark.parametrize("text", ['{"a": 1}', "", "x"])
def test_what_is_no_json_list(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DatasetError, match="is no JSON list"):
        list(json_array(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, {"a":', '[{"a": 1} {"a": 2}]', '[{"a": 1}, nonsense]', '[{"a": 1}', "[1,]"]
)
def test_a_damaged_json_list(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DatasetError, match=r"a\.json is not valid JSON"):
        list(table_rows(tmp_path / "a.json"))


@pytest.mark.parametrize("content", [b'["a\xff", "b"]', b"[" + b'{"a":' * 200_000], ids=["not UTF-8", "nested"])
def test_a_json_list_that_python_cannot_hold(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.json cannot be read .*copy it again"):
        list(json_array(tmp_path / "a.json"))


def test_a_damaged_shard_has_no_known_number_of_rows(tmp_path):
    pictures = {"jpg_0": picture(0), "jpg_1": picture(1), "label_0": 1.0, "label_1": 0.0}
    pq.write_table(pa.Table.from_pylist([{"caption": "p", **pictures}]), tmp_path / "train-0.parquet")
    (tmp_path / "train-1.parquet").write_bytes(b"cut off")
    reader = datasets.open(tmp_path)
    assert reader.number is None
    with pytest.raises(DatasetError, match=r"train-1\.parquet cannot be read"):
        list(reader)


def test_an_endless_json_row_is_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROW_CHARS", 1000)
    (tmp_path / "a.json").write_text('["' + "x" * 200_000)
    with pytest.raises(DatasetError, match="is not valid JSON, or was cut off"):
        list(json_array(tmp_path / "a.json"))
    (tmp_path / "a.jsonl").write_text('{"a": "' + "x" * 5000 + '"}\n')
    with pytest.raises(DatasetError, match="line of more than 1000 bytes"):
        list(table_rows(tmp_path / "a.jsonl"))


def test_bad_lines_do_not_end_a_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n\xff\xfe\n' + b"[" * 100_000 + b'\n[1]\n{"a": 2}')
    found = list(table_rows(path))
    assert [raw for _, raw in found if not isinstance(raw, Flaw)] == [{"a": 1}, {"a": 2}]
    assert [raw.where for _, raw in found if isinstance(raw, Flaw)] == [f"a.jsonl line {i}" for i in (3, 4, 5, 6)]


def test_damaged_tables_name_the_file(tmp_path):
    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-9])
    (tmp_path / "b.csv").write_bytes(b"a,b\n1,\xff\n")
    (tmp_path / "c.csv").write_text('a,b\n1,"' + "x" * 200_000)
    (tmp_path / "d.xls").write_text("")
    (tmp_path / "e.arrow").write_bytes(b"nonsense")
    for name in ("a.parquet", "b.csv", "c.csv", "d.xls", "e.arrow", "missing.jsonl"):
        with pytest.raises(DatasetError, match=name):
            list(table_rows(tmp_path / name))


def test_times_are_left_out(tmp_path):
    late = pa.array([2**62 + 1], pa.timestamp("ns"))  # Python's own times end before, and have no nanoseconds
    pq.write_table(
        pa.table({"a": [1], "created_at": late, "day": pa.array([2**30], pa.date32())}), tmp_path / "a.parquet"
    )
    assert list(table_rows(tmp_path / "a.parquet")) == [("a.parquet row 0", {"a": 1})]


def test_text_that_is_none_does_not_end_a_parquet(tmp_path):
    raw = pa.array([b"one", b"\xff\xfe", b"three"] * 20, pa.binary())
    words = pa.StringArray.from_buffers(60, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"a": words, "n": list(range(60))}), tmp_path / "a.parquet")
    found = [raw for _, raw in table_rows(tmp_path / "a.parquet")]
    assert [raw["n"] for raw in found if isinstance(raw, dict)] == [n for n in range(60) if n % 3 != 1]
    assert [flaw.where for flaw in found if isinstance(flaw, Flaw)] == [f"a.parquet row {n}" for n in range(1, 60, 3)]


def test_a_time_beyond_pythons_does_not_end_a_parquet(tmp_path):
    times = pa.array([{"at": 1}, {"at": 10**13}], pa.struct({"at": pa.timestamp("s")}))
    pq.write_table(pa.table({"a": [1, 2], "more": times}), tmp_path / "a.parquet")
    first, second = (raw for _, raw in table_rows(tmp_path / "a.parquet"))
    assert first["a"] == 1 and isinstance(second, Flaw) and second.kind == "beyond Python"


def test_parquet_that_unfolds_is_read_row_by_row_or_refused(tmp_path, monkeypatch):
    bomb = pa.DictionaryArray.from_arrays(pa.array([0] * 20, pa.int32()), pa.array([bytes(8 * 2**20)]))
    pq.write_table(pa.table({"a": bomb.cast(pa.binary())}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 4e6
    with pq.ParquetFile(tmp_path / "a.parquet") as table:
        assert max(batch.nbytes for batch in tables.parquet_batches(table)) < 80e6
    assert sum(len(raw["a"]) for _, raw in table_rows(tmp_path / "a.parquet")) == 20 * 8 * 2**20
    monkeypatch.setattr(tables, "MAX_GROUP_BYTES", 2**20)
    with pytest.raises(DatasetError, match=r"a\.parquet has a row group of \d+ bytes, more than 1048576: split it"):
        list(table_rows(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"a": [[0] * 5000]}), tmp_path / "b.parquet")
    monkeypatch.setattr(tables, "MAX_GROUP_VALUES", 4000)
    with pytest.raises(DatasetError, match=r"b\.parquet has a row group with 5000 values in a column: split it"):
        list(table_rows(tmp_path / "b.parquet"))


def test_arrow_files_of_datasets(tmp_path):
    library.Dataset.from_list([{"a": i} for i in range(40)]).save_to_disk(tmp_path / "saved")
    source = Source(str(tmp_path / "saved"))
    assert [raw["a"] for _, raw in source.raw() if isinstance(raw, dict)] == list(range(40)) and source.number is None


def test_splits_by_file_names(tmp_path):
    for name in ("train-00000-of-00001", "test", "validation_unique-0", "dataset_info"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"name": name}) + "\n")
    names = {
        split: Source(str(tmp_path), split).first["name"] for split in (None, "train", "test", "validation_unique")
    }
    assert names == {
        None: "train-00000-of-00001",
        "train": "train-00000-of-00001",
        "test": "test",
        "validation_unique": "validation_unique-0",
    }
    (tmp_path / "train-00000-of-00001.jsonl").unlink()
    with pytest.raises(DatasetError, match="has the splits test, validation_unique: say which"):
        _ = Source(str(tmp_path)).first


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`owner/picks`, served by `datasets` from parquet on this disk; the network is never asked."""
    image = {"bytes": picture(1), "path": "x.png"}
    rows = [
        {"caption": f"p{i}", "jpg_0": picture(i), "jpg_1": image, "label_0": 1.0, "label_1": 0.0, "more": [image] * 2}
        for i in range(30)
    ]
    features = library.Features(
        {name: library.Value("float64") for name in ("label_0", "label_1")}
        | {"caption": library.Value("string"), "jpg_0": library.Value("binary"), "jpg_1": library.Image()}
        | {"more": library.List(library.Image())}
    )
    library.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "picks.parquet"))
    real, asked = library.load_dataset, []

    def load(repository, **options):
        asked.append((repository, options))
        if repository != "owner/picks":
            raise ConnectionError("there is no network")
        return real(
            "parquet", data_files=str(tmp_path / "picks.parquet"), split="train", streaming=options["streaming"]
        )

    monkeypatch.setattr(library, "load_dataset", load)
    return asked


def test_a_hub_id_is_streamed_undecoded(hub):
    reader = datasets.open("owner/picks:small@v2", split="validation")
    assert reader.format == "pickapic" and reader.root is None and reader.number is None
    rows = list(islice(reader, 3))
    assert [row.prompt for row in rows] == ["p0", "p1", "p2"] and known(rows[0]) == {(0, 1): 1.0}
    assert [medium.bytes for medium in rows[2].media] == [picture(2), picture(1)]
    assert rows[2].where == "owner/picks row 2"
    assert reader.source.first["more"][1]["bytes"] == picture(1)  # also those in lists
    assert hub[0] == ("owner/picks", {"streaming": True, "split": "validation", "name": "small", "revision": "v2"})


def test_what_the_hub_does_not_have(hub, monkeypatch):
    with pytest.raises(DatasetError, match=r"owner/other: there is no such file or folder, and the hub .*no network"):
        datasets.open("owner/other")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"install the extra: pip install 'palate\[hub\]'"):
        datasets.open("owner/picks")
