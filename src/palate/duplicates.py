"""Pictures that look alike: a 64-bit difference hash of each with nine colours, and who has a twin.

A picture scaled, recompressed or slightly changed keeps nearly all bits and its colours; two different pictures share
about half the bits. Hashes of flat pictures have few bits to tell them apart by, see `telling`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DISTANCE = 3  # bits in which near duplicates may differ
TINT = 24  # of 255: by how much the mean colour of a ninth of the picture may
COLOURS = 27  # bytes: nine colours
_BANDS = 4  # with at most 3 bits different, one of four bands of 16 bits is the same
_MOST = 20_000  # of one band's bucket that are compared with each other
_FEW = 2**12  # pairs that are compared without looking for bands
_FEWEST_BITS = 8

Places = NDArray[np.int64]
_BITS = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(1, dtype=np.uint8)


@dataclass(frozen=True)
class Looks:
    """hashes: [n] uint64, of `dhash`. colours: [n, 27] uint8, of `colours`."""

    hashes: NDArray[np.uint64]
    colours: NDArray[np.uint8]

    def __getitem__(self, at: NDArray[Any] | slice) -> Looks:
        """Those at some places."""
        return Looks(self.hashes[at], self.colours[at])


def dhash(picture: Image.Image) -> int:
    """The difference hash of a picture: at 9 x 8 grey pixels, whether each is brighter than its left neighbour."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BILINEAR), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def colours(picture: Image.Image) -> bytes:
    """The mean colours of the ninths of a picture: a hash of grey does not tell red from green."""
    return picture.convert("RGB").resize((3, 3), Image.Resampling.BOX).tobytes()


def telling(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which hashes tell pictures apart: those of nearly flat pictures are all alike."""
    ones = _ones(hashes)
    return (ones >= _FEWEST_BITS) & (ones <= 64 - _FEWEST_BITS)


def twins(looks: Looks, others: Looks | None = None) -> Places:
    """For each picture [n] the place of one of the others that looks like it, -1 if there is none: [n].

    others: [m]; by default the pictures themselves, none of them counted as its own twin. Time grows as n + m, unless
    thousands share a quarter of their bits.
    """
    own = others is None
    among = looks if others is None else others
    found = np.full(len(looks.hashes), -1, np.int64)
    if not len(looks.hashes) or not len(among.hashes):
        return found
    if len(looks.hashes) * len(among.hashes) <= _FEW:
        _match(found, looks, among, np.arange(len(looks.hashes)), np.arange(len(among.hashes)), own)
        return found
    for band in range(_BANDS):
        shift = np.uint64(16 * band)
        key, other_key = (((v.hashes >> shift) & np.uint64(0xFFFF)).astype(np.int64) for v in (looks, among))
        left, right = np.lexsort((looks.hashes, key)), np.lexsort((among.hashes, other_key))
        values, starts = np.unique(key[left], return_index=True)
        ends = np.append(starts[1:], len(left))
        first, last = (np.searchsorted(other_key[right], values, side) for side in ("left", "right"))
        for start, end, low, high in zip(starts, ends, first, last, strict=True):
            if high - low > (1 if own else 0):
                _match(found, looks, among, left[start:end], right[low:high], own)
    return found


def _match(found: Places, looks: Looks, among: Looks, left: Places, right: Places, own: bool) -> None:
    """Fills in twins of those in one bucket that have none yet."""
    left = left[found[left] < 0]
    step = max(1, 2**18 // min(len(right), _MOST))
    for start in range(0, len(left), step):
        mine = left[start : start + step]
        part = right
        if len(right) > _MOST:  # sorted by value: the nearest neighbours in it
            middle = int(np.searchsorted(among.hashes[right], looks.hashes[mine[0]]))
            part = right[max(0, middle - _MOST // 2) : middle + _MOST // 2]
        i, j = np.nonzero(_ones(looks.hashes[mine][:, None] ^ among.hashes[part][None]) <= DISTANCE)
        tint = np.abs(looks.colours[mine[i]].astype(np.int16) - among.colours[part[j]]).max(1, initial=0)
        near = (tint <= TINT) & (mine[i] != part[j] if own else True)
        found[mine[i[near]]] = part[j[near]]


def _ones(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """How many bits are set."""
    words = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    counted: NDArray[np.uint8] = _BITS[words].sum(-1, dtype=np.uint8)
    return counted
