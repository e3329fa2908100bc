"""Randomness as an argument: every random row has its own generator, keyed by what the row is.

A row keyed by (seed, id, visit) gets the same numbers at any batch size, in any order, on any rank, in any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def key(*parts: object) -> int:
    """A 63-bit seed from anything that prints the same everywhere: integers and strings."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `key(*parts)`; CPU, so that every device draws the same numbers."""
    return torch.Generator().manual_seed(key(*parts))


def generators(seed: int, ids: Iterable[object], *parts: object) -> list[torch.Generator]:
    """One generator a row."""
    return [generator(seed, row, *parts) for row in ids]


def normal(shape: Sequence[int], rows: Sequence[torch.Generator]) -> Tensor:
    """Standard normal numbers [n, *shape], each row from its own generator."""
    out = torch.empty(len(rows), *shape)
    for row, source in zip(out, rows, strict=True):
        row.normal_(generator=source)
    return out
