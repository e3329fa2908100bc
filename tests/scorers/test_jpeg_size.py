"""The size of a picture as a JPEG, against bytes that Pillow wrote here."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from palate.scorers import jpeg_size

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
FLAT = Image.new("RGB", NOISE.size, (90, 120, 40))


def encoded(picture: Image.Image, path, **how) -> bytes:
    picture.save(path, **how)
    return path.read_bytes()


def size(picture: Image.Image, **options) -> float:
    (found,) = jpeg_size.load(**options)(["a prompt"], [picture])["jpeg_size"]
    return float(found)


@pytest.mark.parametrize("picture", [NOISE, FLAT], ids=["noise", "flat"])
def test_it_is_the_length_of_the_file_in_thousands_of_bytes_at_quality_95(picture, tmp_path):
    content = encoded(picture, tmp_path / "it.jpg", quality=95)
    assert Image.open(io.BytesIO(content)).format == "JPEG"
    assert size(picture) == len(content) / 1000


@pytest.mark.parametrize("quality", [10, 50, 100])
def test_the_quality_is_an_option(quality, tmp_path):
    assert (
        size(NOISE) != size(NOISE, quality=quality) == len(encoded(NOISE, tmp_path / "it.jpg", quality=quality)) / 1000
    )


def test_noise_is_larger_than_something_smooth_and_that_larger_than_one_colour():
    slope = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))).convert("RGB")
    sizes = jpeg_size.load()(["x"] * 3, [FLAT, slope, NOISE])["jpeg_size"]
    assert sizes.shape == (3,) and sizes.dtype == np.float64 and (np.diff(sizes) > 0).all()
    assert size(NOISE, quality=10) < size(NOISE, quality=50) < size(NOISE)


def test_a_picture_with_transparency_or_a_palette_is_what_its_colours_are():
    assert size(FLAT.convert("RGBA")) == size(FLAT) == size(FLAT.convert("P", palette=Image.Palette.ADAPTIVE))
