"""Data that anyone may have written: whatever it holds, it is told as a flaw or an error of ours, and nothing runs."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from palate import checking, datasets, media, plugins
from palate.media import MediaError
from palate.reading import Source
from palate.records import Medium, Preference
from palate.tables import Flaw
from tests.datasets.make import picture, png

# --- rows -------------------------------------------------------------------------------------------------------------

COLUMNS = {
    "pickapic": ["caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label", "model_0", "votes", "preference"],
    "hpdv2": ["prompt", "file_path", "human_preference", "image_path", "rank", "raw_annotations"],
    "hpdv3": ["prompt", "path1", "path2", "choice_dist", "confidence", "model1"],
    "imagerewarddb": [
        "prompt_id",
        "prompt",
        "rank",
        "overall_rating",
        "image",
        "image_path",
        "img_better",
        "img_worse",
    ],
    "videogen_rewardbench": ["path_A", "path_B", "prompt", "VQ", "MQ", "Overall", "A_model", "MOS_A_VQ"],
    "trl": ["prompt", "chosen", "rejected", "completion", "label", "score_chosen", "preference", "images"],
    "flow_factory": ["schema_version", "input", "supervision", "metadata"],
    "table": ["prompt", "media", "ranks", "scores", "prefer", "a", "b", "winner", "preference", "weight", "seeds"],
}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
LIKELY = st.sampled_from(["a", "A", "x.png", "../x.png", "/etc/passwd", "http://x/y", 2, 1.0, 0.5, [1, 0], [0.5, "b"]])
VALUES = st.recursive(
    SCALARS | LIKELY,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "media", "prompt", "path", "rank", "role", "bytes"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)


class Fixed(Source):
    """A source of rows that are given."""

    def raw(self) -> Iterator[tuple[str, dict | Flaw]]:
        yield from ((f"row {i}", raw) for i, raw in enumerate(self.__dict__["given"]))


@pytest.mark.parametrize("examples", [40, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_any_row_is_read_or_is_a_flaw(name, examples):
    format = plugins.find("datasets", name)
    rows = st.lists(st.dictionaries(st.sampled_from(COLUMNS[name]), VALUES, max_size=9), min_size=1, max_size=3)

    @settings(max_examples=examples, deadline=None, database=None)
    @given(rows)
    def run(raw):
        source = Fixed("memory")
        source.__dict__["given"] = raw
        assert isinstance(format.sniff(source), bool)
        for row in format.rows(source):
            assert isinstance(row, Preference | Flaw)
            if isinstance(row, Flaw):
                assert row.reason and "\n" not in row.reason

    run()


def test_every_format_is_tried():
    assert {*COLUMNS, "parquet", "folders", "d3po_json"} == set(datasets.formats())


# --- pictures ---------------------------------------------------------------------------------------------------------


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb(width: int, height: int, depth: int = 1) -> bytes:
    """A PNG of few bytes that unfolds into as many pixels as it says."""
    row = bytes(1 + -(-width * depth // 8))
    packer, packed = zlib.compressobj(1), b""
    for _ in range(height):
        packed += packer.compress(row)
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed + packer.flush()) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG with a comment of 256 MB, well packed."""
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(256)) + packer.flush()
    whole = picture(0)
    return whole[:33] + chunk(b"zTXt", b"Comment\0\0" + packed) + whole[33:]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for its memory")
@pytest.mark.parametrize(
    "make", [lambda: bomb(50_000, 50_000), lambda: bomb(10_000, 10_000), lambda: bomb(9000, 9000), text_bomb]
)
def test_bombs_do_not_go_off(make):
    content = make()
    assert len(content) < 2e6
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory counts from here
    before = resident()
    try:
        media.decode(Medium("image/png", content))
    except MediaError as error:
        assert error.kind in ("too many pixels", "damaged")
    assert resident() - before < 100


def resident() -> float:
    """The highest so far, in megabytes."""
    return float(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_paths_that_cannot_be_followed_are_bad_media(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path in ("loop/a.png", "loop", "a" * 5000 + ".png", "\ud800.png", "a\0.png"):
        with pytest.raises(MediaError):
            media.decode(Medium("image/png", path=path), tmp_path)


def test_odd_pictures_are_pictures():
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    grey = np.asarray(media.decode(Medium("image/png", encoded(Image.fromarray(ramp), "PNG"))))
    assert np.abs(grey[..., 0].ravel().astype(int) - np.arange(256)).max() <= 1  # 16 bits
    ink = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert media.decode(Medium("image/jpeg", ink)).getpixel((0, 0)) == (255, 0, 0)
    frames = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in (200, 100)]
    moving = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert media.decode(Medium("image/png", moving)).getpixel((0, 0)) == (200, 0, 0)
    palette = encoded(Image.new("P", (4, 4), 0), "PNG", transparency=0)
    assert media.decode(Medium("image/png", palette)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM", "ICO", "PDF", "EPS"])
def test_other_decoders_are_not_reached(kind):
    content = encoded(Image.new("RGB", (16, 16)), kind)
    with pytest.raises(MediaError):
        media.decode(Medium("image/png", content))


@settings(max_examples=150, deadline=None, database=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
def test_mutated_pictures_are_decoded_or_refused(kind, data):
    content = bytearray(picture(3, kind))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        assert media.check(Medium("image/png", bytes(content[:cut]))) is not None
    except MediaError as error:
        assert error.kind in ("empty", "damaged", "not PNG, JPEG or WebP", "too many pixels")


def test_bad_pictures_are_counted_exactly(tmp_path):
    whole = picture(1, size=(64, 64))
    bad = [whole[: len(whole) * i // 10] for i in range(10)] + [b"<html>", bomb(9000, 9000)]

    def rows() -> Iterator[Preference]:
        for i in range(10 * len(bad)):
            both = png(i), Medium("image/png", whole if i % 10 else bad[i // 10])
            yield Preference(f"p{i}", both, ((math.nan, 1.0), (0.0, math.nan)))

    datasets.write(tmp_path, rows(), "parquet")
    found = checking.check(datasets.open(tmp_path))
    assert found.bad_media.total == len(bad) and not found.good
    assert sum(1 for _ in islice(datasets.open(tmp_path), 1000)) == 120
