"""Preference data on disk: what is written comes back, and whatever is wrong is said with its place."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from palate import checking, datasets, media
from palate.datasets import parquet
from palate.media import DatasetError, MediaError
from palate.records import Aspect, Medium, Preference, RecordError

NAN = math.nan


def picture(colour: str = "red", kind: str = "PNG", size: tuple[int, int] = (8, 6), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **options)
    return out.getvalue()


def png(content: bytes) -> Medium:
    return Medium("image/png", content)


def row(i: int, **changes: Any) -> Preference:
    given = {
        "prompt": f"prompt {i}",
        "media": [png(picture()), Medium("image/jpeg", picture("blue", "JPEG"))],
        "prefer": [[NAN, 0.75], [0.25, NAN]],
        "votes": [[0, 4], [4, 0]],
        "scores": [[1.0, NAN], [0.5, i]],
        "dimensions": ["style", "match"],
        "weight": 2.0,
        "sources": ["sdxl", ""],
        "seeds": [i, None],
    }
    return Preference(**{**given, **changes})


def check(folder: Path, max_bad: float = 0.0) -> checking.Findings:
    return checking.check(datasets.open(folder, "parquet"), max_bad=max_bad)


def test_round_trip(tmp_path: Path) -> None:
    gone = row(1, media=[png(picture()), None], mask=[True, False], prefer=[[NAN] * 2] * 2, votes=[[0, 0], [0, 0]])
    rows = [row(0), gone, row(2)]
    written = parquet.write(tmp_path / "pairs", iter(rows))
    assert (
        written.rows == 3
        and written.dimensions == ("style", "match")
        and written == parquet.manifest(tmp_path / "pairs")
    )
    read = list(parquet.read(tmp_path / "pairs"))
    assert [repr(r).split("where")[0] for r in read] == [repr(r).split("where")[0] for r in rows]  # NaN != NaN
    assert [r.media for r in read] == [r.media for r in rows] and read[2].where == "part-00000.parquet row 2"
    shown = read[1].media
    assert shown[1] is None and shown[0] is not None and media.decode(shown[0]).getpixel((0, 0)) == (255, 0, 0)
    found = check(tmp_path / "pairs")
    assert found.good and (found.rows, found.prompts, found.media, found.pairs, found.ties) == (3, 3, 5, 2, 0)
    assert "3 rows" in str(found)


def test_aspects_and_all_else_survive(tmp_path: Path) -> None:
    three = [png(picture(colour)) for colour in ("red", "green", "blue")]
    prefer = [[NAN, 0.9, 0.5], [0.1, NAN, NAN], [0.5, NAN, NAN]]
    votes = [[0, 10, 2], [10, 0, 0], [2, 0, 0]]
    motion = Aspect("MQ", [[NAN, 0.25, NAN], [0.75, NAN, NAN], [NAN] * 3], [[0, 4, 0], [4, 0, 0], [0, 0, 0]])
    rows = [
        row(0, media=three, prefer=prefer, votes=votes, scores=[[1, 2], [3, 4], [NAN, 6]], sources=["a", "b", ""],
            seeds=[1, 2, None], weight=0.5, aspects=[motion, Aspect("TA", [[NAN] * 3] * 3)]),
        row(1),
    ]  # fmt: skip
    parquet.write(tmp_path, rows)
    read = list(datasets.open(tmp_path))
    assert [repr(r).split("where")[0] for r in read] == [repr(r).split("where")[0] for r in rows]
    assert read[0].aspects[0].votes[0][1] == 4 and read[1].aspects == ()


def test_version_1_is_still_read(folder: Path) -> None:
    replace_shard(folder, table(folder).drop_columns(["aspects"]))
    edit_manifest(folder, version=1)
    assert len(list(parquet.read(folder))) == 5 and check(folder).good


def test_a_reader_goes_on_after_a_bad_row(folder: Path) -> None:
    raw = table(folder).to_pylist()
    raw[2]["prefer"] = [[None, 1.0], [1.0, None]]
    replace_shard(folder, pa.Table.from_pylist(raw, parquet.SCHEMA))
    reader = datasets.open(folder)
    assert [r.prompt for r in reader] == [f"prompt {i}" for i in (0, 1, 3, 4)] and reader.number == 5
    assert reader.flaws.first["bad prefer"][0].where == "part-00000.parquet row 2"
    assert "1 x bad prefer (first: part-00000.parquet row 2)" in str(reader.flaws)
    reader = datasets.open(folder, limit=2)
    assert len(list(reader)) == len(list(reader)) == reader.number == 2


def test_same_rows_same_hash(tmp_path: Path) -> None:
    one, two, three = (
        parquet.write(tmp_path / name, [row(0, weight=weight)]) for name, weight in (("a", 1.0), ("b", 1.0), ("c", 3.0))
    )
    assert one.hash == two.hash != three.hash


def test_many_rows_go_into_shards_and_are_read_lazily(tmp_path: Path) -> None:
    def noisy() -> Iterator[Preference]:
        for i in range(1000):
            yield row(i)

    size = sum(len(m.bytes or b"") for m in row(0).media if m)
    made = parquet.write(tmp_path, noisy(), shard_bytes=size * 300)
    assert [s["rows"] for s in made.shards] == [300, 300, 300, 100]
    read = parquet.read(tmp_path)
    assert isinstance(read, Iterator) and next(read).prompt == "prompt 0"
    assert [r.prompt for r in read][-1] == "prompt 999"


def test_no_rows(tmp_path: Path) -> None:
    assert parquet.write(tmp_path, []).rows == 0
    assert list(parquet.read(tmp_path)) == [] and check(tmp_path).reasons == ["there are no rows"]


@pytest.mark.parametrize("shard_bytes", [50_000, parquet.SHARD_BYTES])
def test_writing_is_all_or_nothing(tmp_path: Path, shard_bytes: int) -> None:
    def breaks() -> Iterator[Preference]:
        yield from (row(i) for i in range(600))
        raise RuntimeError("the scorer died")

    with pytest.raises(RuntimeError, match="scorer"):
        parquet.write(tmp_path, breaks(), shard_bytes=shard_bytes)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DatasetError, match="cut off"):
        parquet.read(tmp_path)
    parquet.write(tmp_path, [row(7)])  # what was left of the first attempt is cleared away
    assert [r.prompt for r in parquet.read(tmp_path)] == ["prompt 7"] and len(list(tmp_path.glob("part-*"))) == 1
    with pytest.raises(FileExistsError, match="choose another"):
        parquet.write(tmp_path, [row(8)])


def test_rows_must_agree_on_dimensions(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="row 1: field `dimensions`"):
        parquet.write(tmp_path, [row(0), row(1, dimensions=["match", "style"])])


# --- media ------------------------------------------------------------------------------------------------------------


def test_paths_are_embedded_or_kept(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(picture("green"))
    by_path = row(0, media=[Medium("image/png", path="media/a.png"), png(picture())])
    with pytest.raises(DatasetError, match="media_root"):
        parquet.write(tmp_path / "out", [by_path])
    parquet.write(tmp_path / "out", [by_path], media_root=tmp_path)
    (embedded,) = parquet.read(tmp_path / "out")
    assert embedded.media[0] == png(picture("green"))
    parquet.write(tmp_path, [by_path], keep_paths=True)
    (kept,) = parquet.read(tmp_path)
    assert kept.media[0] == by_path.media[0] and kept.id == by_path.id
    assert check(tmp_path).good
    (tmp_path / "media" / "a.png").unlink()
    found = check(tmp_path, 0.1)
    assert not found.good and "media/a.png cannot be read" in found.bad_media.first["missing"][0].reason


@pytest.mark.parametrize(
    "path", ["../secret.png", "media/../../secret.png", "link/secret.png", "C:\\x.png", "a\0b", "/"]
)
def test_paths_may_not_leave_the_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    home = tmp_path / "pairs"
    home.mkdir()
    (home / "link").symlink_to(tmp_path)
    for wrong in (path, str(tmp_path / "secret.png")):
        with pytest.raises(MediaError, match="leaves the data's folder"):
            media.decode(Medium("image/png", path=wrong), home)
        with pytest.raises(MediaError, match="leaves"):
            parquet.write(home, [row(0, media=[Medium("image/png", path=wrong), png(picture())])], keep_paths=True)


def test_decoding() -> None:
    assert media.decode(Medium("image/webp", picture("blue", "WEBP", lossless=True))).getpixel((0, 0)) == (0, 0, 255)
    out = io.BytesIO()
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(out, "PNG")
    assert media.decode(png(out.getvalue())).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    assert media.decode(Medium("image/jpeg", picture("red", "JPEG", exif=exif))).size == (6, 8)
    grey = io.BytesIO()
    Image.new("L", (2, 2), 7).save(grey, "PNG")
    assert media.decode(png(grey.getvalue())).mode == "RGB"


def corrupt_crc() -> bytes:
    content = bytearray(picture())
    content[content.index(b"IDAT") + 6] ^= 0xFF
    return bytes(content)


def bomb() -> bytes:
    """A PNG that claims 20,000 x 20,000 pixels."""
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


BAD = {
    "empty": b"",
    "text": b"<html>404</html>",
    "truncated": picture(size=(64, 64))[:-40],
    "flipped": corrupt_crc(),
    "bomb": bomb(),
    "gif": picture(kind="GIF"),
    "ppm": picture(kind="PPM"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_corrupt_pictures_are_found_and_named(tmp_path: Path, name: str) -> None:
    rows = [row(i) for i in range(40)]
    rows[17] = row(17, media=[png(picture()), png(BAD[name])])
    parquet.write(tmp_path, rows)
    read = list(parquet.read(tmp_path))  # one bad picture does not end the stream
    assert len(read) == 40
    with pytest.raises(MediaError):
        media.decode(read[17].media[1], tmp_path)
    found = check(tmp_path)
    (flaws,) = found.bad_media.first.values()
    assert [flaw.where for flaw in flaws] == ["part-00000.parquet row 17, candidate 1"]
    assert not found.good and check(tmp_path, 0.02).good  # 1 of 80
    assert "row 17" in str(found)


def test_other_refusals_of_media() -> None:
    with pytest.raises(MediaError, match="48 pixels"):
        media.decode(png(picture()), max_pixels=47)
    with pytest.raises(MediaError, match="only pictures"):
        media.decode(Medium("video/mp4", b"x"))
    with pytest.raises(MediaError, match="root="):
        media.decode(Medium("image/png", path="a.png"))


# --- damaged folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parquet.write(tmp_path, [row(i) for i in range(5)])
    return tmp_path


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_shard(folder: Path, table: pa.Table) -> None:
    """Put another table in the place of the first shard, with a manifest that agrees."""
    path = folder / "part-00000.parquet"
    pq.write_table(table, path)
    shard = {"file": path.name, "rows": table.num_rows, "bytes": path.stat().st_size, "sha256": parquet._sha256(path)}
    edit_manifest(folder, shards=[shard], hash=parquet._hash([shard], ["style", "match"]))


def table(folder: Path) -> pa.Table:
    return pq.read_table(folder / "part-00000.parquet")


def test_truncated_shard(folder: Path) -> None:
    path = folder / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"part-00000\.parquet has \d+ bytes, manifest.json says"):
        parquet.read(folder)
    shard = {**parquet.manifest(folder).shards[0], "bytes": path.stat().st_size}
    edit_manifest(folder, shards=[shard])
    with pytest.raises(DatasetError, match=r"part-00000\.parquet cannot be read .* copy it again"):
        parquet.read(folder)
    found = check(folder)
    assert not found.good and "part-00000.parquet" in found.problems[0]


def test_flipped_bytes_in_a_shard(folder: Path) -> None:
    path = folder / "part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[40:80] = bytes(40)
    path.write_bytes(bytes(content))
    assert not check(folder).good
    with pytest.raises((DatasetError, RecordError), match=r"part-00000\.parquet"):
        list(parquet.read(folder))


def test_missing_pieces(folder: Path) -> None:
    (folder / "part-00000.parquet").rename(folder / "elsewhere")
    with pytest.raises(DatasetError, match=r"part-00000\.parquet is missing"):
        parquet.read(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DatasetError, match=r"manifest\.json is missing"):
        parquet.read(folder)
    assert "missing" in check(folder).problems[0]


def test_wrong_manifests(folder: Path) -> None:
    good = json.loads((folder / "manifest.json").read_text())
    for changes, message in (
        ({"version": 99}, "version 99"),
        ({"format": "lance"}, "lance"),
        ({"shards": [{**good["shards"][0], "file": "../part-00000.parquet"}]}, "plain file name"),
        ({"shards": [{"file": "part-00000.parquet"}]}, "cannot be read"),
        ({"shards": [{**good["shards"][0], "rows": 4}]}, "5 rows, manifest.json says 4"),
    ):
        edit_manifest(folder, **{**good, **changes})
        with pytest.raises(DatasetError, match=message):
            parquet.read(folder)
    edit_manifest(folder, **{**good, "dimensions": ["match", "style"]})
    assert "its own hash" in check(folder).problems[0]
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        parquet.read(folder)


def test_wrong_columns_are_named(folder: Path) -> None:
    good = table(folder)
    weights = pa.array(["a lot"] * 5)
    cases = [
        (good.drop_columns(["prefer", "prompt"]), "lacks prompt, prefer"),
        (good.append_column("label_0", weights), "unknown label_0"),
        (good.set_column(7, "weight", weights), "weight as text, not number"),
        (good.set_column(4, "prefer", pa.array([[0.5]] * 5)), "prefer as list<number>, not list<list<number>>"),
    ]
    for wrong, message in cases:
        replace_shard(folder, wrong)
        with pytest.raises(DatasetError, match=message):
            parquet.read(folder)


def test_other_writers_may_choose_other_widths_and_leave_columns_out(folder: Path) -> None:
    good = table(folder)
    narrow = pa.table(
        {
            "prompt": good["prompt"].cast(pa.large_string()),
            "media": good["media"],
            "prefer": good["prefer"].cast(pa.list_(pa.list_(pa.float32()))),
            "scores": good["scores"],
        }
    )
    replace_shard(folder, narrow)
    rows = list(parquet.read(folder))
    assert rows[3].prefer[0][1] == 0.75 and rows[3].mask == (True, True) and rows[3].seeds == (None, None)


def test_wrong_rows_are_named(folder: Path) -> None:
    raw = table(folder).to_pylist()
    raw[2]["prefer"] = [[None, 1.0], [1.0, None]]
    raw[3]["prompt"] = None
    raw[4]["media"][1] = {"bytes": None, "path": None, "type": "image/png"}
    replace_shard(folder, pa.Table.from_pylist(raw, parquet.SCHEMA))
    with pytest.raises(RecordError, match=r"part-00000\.parquet row 2: field `prefer`"):
        list(parquet.read(folder))
    found = check(folder, 0.5)
    assert {kind: flaws[0].where for kind, flaws in found.bad_rows.first.items()} == {
        f"bad {name}": f"part-00000.parquet row {i}" for i, name in ((2, "prefer"), (3, "prompt"), (4, "media"))
    }
    assert not found.good and found.rows == 2  # 3 of 5 are bad


def test_duplicates_are_counted(tmp_path: Path) -> None:
    parquet.write(tmp_path, [row(0), row(0), row(1)])
    assert check(tmp_path).duplicate_ids == 1
