"""Pictures that look alike, held against comparing every one with every other."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from palate.duplicates import DISTANCE, dhash, telling, twins


def photo(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC)


def bits(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def test_the_hash_by_hand():
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))
    assert dhash(Image.fromarray(ramp)) == 2**64 - 1 and dhash(Image.fromarray(ramp[:, ::-1].copy())) == 0
    ramp[0, 1] = 0  # the first pixel is no brighter than its left neighbour
    assert dhash(Image.fromarray(ramp)) == 2**63 - 1


def test_changes_that_keep_a_picture_and_pictures_that_differ():
    for seed in range(20):
        picture, out = photo(seed), io.BytesIO()
        picture.save(out, "JPEG", quality=60)
        assert bits(dhash(picture), dhash(Image.open(io.BytesIO(out.getvalue())))) <= DISTANCE
        assert bits(dhash(picture), dhash(picture.resize((64, 53)))) <= DISTANCE
        assert bits(dhash(picture), dhash(photo(seed + 100))) > 10


def everyone(hashes, others):
    return [[j for j, b in enumerate(others) if bits(int(a), int(b)) <= DISTANCE] for a in hashes]


def test_twins_are_all_found():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for i in range(0, 120, 3):  # twins at 0 to 4 bits
        flipped = np.bitwise_or.reduce(np.uint64(1) << rng.permutation(64)[: i % 5].astype(np.uint64), initial=0)
        hashes[i + 1] = hashes[i] ^ np.uint64(flipped)
    found = twins(hashes)
    for i, near in enumerate(everyone(hashes, hashes)):
        near.remove(i)
        assert (found[i] in near) if near else found[i] == -1
    across = twins(hashes[:100], hashes[100:])
    for i, near in enumerate(everyone(hashes[:100], hashes[100:])):
        assert (across[i] in near) if near else across[i] == -1
    assert twins(hashes[:0]).shape == (0,) and (twins(hashes[:1]) == -1).all()
    with pytest.raises(ValueError, match="below 4"):
        twins(hashes, distance=4)


def test_many_alike_are_no_trouble():
    start = time.perf_counter()
    crowd = np.random.default_rng(0).integers(0, 2**12, 60_000, dtype=np.uint64)  # flat pictures share three bands
    assert (twins(np.concatenate([crowd, np.array([2**64 - 1], np.uint64)])) >= 0).sum() == 60_000
    assert time.perf_counter() - start < 20


def test_flat_pictures_tell_nothing():
    flat = dhash(Image.new("RGB", (64, 64), "white"))
    assert telling(np.array([flat, 2**64 - 1, 0x0F0F0F0F0F0F0F0F], np.uint64)).tolist() == [False, False, True]
