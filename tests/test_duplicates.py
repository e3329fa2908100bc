"""Pictures that look alike, held against comparing every one with every other."""

from __future__ import annotations

import io
import time

import numpy as np
from PIL import Image

from palate.duplicates import DISTANCE, Looks, colours, dhash, telling, twins


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


def looks(hashes, tints=0):
    return Looks(hashes, np.broadcast_to(np.asarray(tints, np.uint8), (27, len(hashes))).T)


def everyone(hashes, others):
    return [[j for j, b in enumerate(others) if bits(int(a), int(b)) <= DISTANCE] for a in hashes]


def test_twins_are_all_found():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for i in range(0, 120, 3):  # twins at 0 to 4 bits
        flipped = np.bitwise_or.reduce(np.uint64(1) << rng.permutation(64)[: i % 5].astype(np.uint64), initial=0)
        hashes[i + 1] = hashes[i] ^ np.uint64(flipped)
    found = twins(looks(hashes))
    for i, near in enumerate(everyone(hashes, hashes)):
        near.remove(i)
        assert (found[i] in near) if near else found[i] == -1
    across = twins(looks(hashes[:100]), looks(hashes[100:]))
    for i, near in enumerate(everyone(hashes[:100], hashes[100:])):
        assert (across[i] in near) if near else across[i] == -1
    assert twins(looks(hashes[:0])).shape == (0,) and (twins(looks(hashes[:1])) == -1).all()


def test_another_colour_is_another_picture():
    red, green = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    red.paste((200, 0, 0), (20, 20, 40, 44))
    green.paste((0, 102, 0), (20, 20, 40, 44))  # as bright
    assert bits(dhash(red), dhash(green)) == 0
    hashes = np.array([dhash(red), dhash(green), dhash(red)], np.uint64)
    tints = np.array([list(colours(p)) for p in (red, green, red.resize((50, 50)))], np.uint8)
    assert twins(Looks(hashes, tints)).tolist() == [2, -1, 0]


def test_many_alike_are_no_trouble():
    start = time.perf_counter()
    crowd = np.random.default_rng(0).integers(0, 2**12, 60_000, dtype=np.uint64)  # flat pictures share three bands
    assert (twins(looks(np.append(crowd, np.uint64(2**64 - 1)))) >= 0).sum() == 60_000
    assert time.perf_counter() - start < 20


def test_flat_pictures_tell_nothing():
    flat = dhash(Image.new("RGB", (64, 64), "white"))
    assert telling(np.array([flat, 2**64 - 1, 0x0F0F0F0F0F0F0F0F], np.uint64)).tolist() == [False, False, True]
