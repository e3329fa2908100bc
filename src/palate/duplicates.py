"""Pictures that look alike: a 64-bit difference hash of each, and who has a twin within a few bits.

A picture scaled, recompressed or slightly changed keeps nearly all bits; two different pictures share about half.
Hashes of flat pictures have few bits to tell them apart by, see `telling`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DISTANCE = 3  # bits in which near duplicates may differ
_BANDS = 4  # with at most 3 bits different, one of four bands of 16 bits is the same
_MOST = 20_000  # of one band's bucket that are compared with each other
_FEWEST_BITS = 8

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
_BITS = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(1, dtype=np.uint8)


def dhash(picture: Image.Image) -> int:
    """The difference hash of a picture: at 9 x 8 grey pixels, whether each is brighter than its left neighbour."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BILINEAR), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def telling(hashes: Hashes) -> NDArray[np.bool_]:
    """Which hashes tell pictures apart: those of nearly flat pictures are all alike."""
    ones = _ones(hashes)
    return (ones >= _FEWEST_BITS) & (ones <= 64 - _FEWEST_BITS)


def twins(hashes: Hashes, others: Hashes | None = None, distance: int = DISTANCE) -> Places:
    """For each hash [n] the place of one of the others within so many bits, -1 if there is none: [n].

    others: [m]; by default the hashes themselves, each of them not counted as its own twin. Time grows as n + m, unless
    thousands share a quarter of their bits.
    """
    if distance >= _BANDS:
        raise ValueError(f"distance must be below {_BANDS}, got {distance}")
    own = others is None
    among = hashes if others is None else others
    found = np.full(len(hashes), -1, np.int64)
    if not len(hashes) or not len(among):
        return found
    for band in range(_BANDS):
        shift = np.uint64(16 * band)
        key, other_key = (((values >> shift) & np.uint64(0xFFFF)).astype(np.int64) for values in (hashes, among))
        left, right = np.lexsort((hashes, key)), np.lexsort((among, other_key))
        values, starts = np.unique(key[left], return_index=True)
        ends = np.append(starts[1:], len(left))
        first, last = (np.searchsorted(other_key[right], values, side) for side in ("left", "right"))
        for start, end, low, high in zip(starts, ends, first, last, strict=True):
            if high - low > (1 if own else 0):
                _match(found, hashes, among, left[start:end], right[low:high], own, distance)
    return found


def _match(found: Places, hashes: Hashes, among: Hashes, left: Places, right: Places, own: bool, distance: int) -> None:
    """Fills in twins of those in one bucket that have none yet."""
    left = left[found[left] < 0]
    step = max(1, 2**20 // min(len(right), _MOST))
    for start in range(0, len(left), step):
        mine = left[start : start + step]
        part = right
        if len(right) > _MOST:  # sorted by value: the nearest neighbours in it
            middle = int(np.searchsorted(among[right], hashes[mine[0]]))
            part = right[max(0, middle - _MOST // 2) : middle + _MOST // 2]
        near = _ones(hashes[mine][:, None] ^ among[part][None]) <= distance
        if own:
            near &= mine[:, None] != part[None]
        hit = near.any(1)
        found[mine[hit]] = part[near[hit].argmax(1)]


def _ones(values: Hashes) -> NDArray[np.uint8]:
    """How many bits are set."""
    words = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    counted: NDArray[np.uint8] = _BITS[words].sum(-1, dtype=np.uint8)
    return counted
