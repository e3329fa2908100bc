"""Encoded rows that lie on disk: an index with a line a row, and the cache that holds what the lines name.

A line says what is known of a row (`Line`); its latents and its condition are read when they are needed. Memory holds
eight bytes a row and each different prompt once, however many rows there are.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palate import randomness
from palate.durable import StorageError, explained
from palate.models.contracts import Condition
from palate.models.trimming import Pairs, padded, trimmed
from palate.training.cache import CacheError, TensorCache, narrowed
from palate.training.checkpoint import pack, unpack
from palate.training.sources import PreferenceRow

Table = list[list[float | None]]  # null for NaN


@dataclass(frozen=True)
class Line:
    """A row without its tensors. media: K cache keys, null where there is none. cond, null: the cache keys of the
    prompt and of the empty one at the row's size.

    content: a digest of the media themselves, whatever encodes them. prefer, votes: [K, K]; scores: [K, D].
    """

    id: str
    prompt: str
    media: list[str | None]
    cond: str
    null: str
    content: str
    prefer: Table
    votes: Table
    scores: Table
    weight: float

    @property
    def fact(self) -> int:
        """A number made of all that is known of the row, of its media too."""
        return randomness.key(*(value for name, value in asdict(self).items() if name not in ("media", "cond", "null")))


def table(values: Iterable[Iterable[float]]) -> Table:
    return [[None if value != value else float(value) for value in row] for row in values]


def write_lines(path: Path, lines: Iterable[Line | None]) -> None:
    """An index, or a process's part of one, where a row that was left out is an empty line. Whole or not at all.

    Raises StorageError, one line, for a disk that is full or forbidden.
    """
    with write_whole(path) as write:
        for line in lines:
            write(("" if line is None else json.dumps(asdict(line), separators=(",", ":"))) + "\n")


def merge(parts: Sequence[Path], path: Path) -> None:
    """One index of the parts that as many processes wrote of every n-th row; the parts are removed.

    Raises StorageError, one line, for a disk that is full or forbidden.
    """
    with contextlib.ExitStack() as opened, write_whole(path, sum(part.stat().st_size for part in parts)) as write:
        files = [opened.enter_context(part.open(encoding="utf-8")) for part in parts]
        for lines in zip_longest(*files, fillvalue="\n"):
            for line in lines:
                if line != "\n":
                    write(line)
    for part in parts:
        part.unlink()


@contextlib.contextmanager
def write_whole(path: Path, needs: int = 0) -> Iterator[Callable[[str], None]]:
    """What writes a text file that is there whole and durable when the block ends well, and not at all if it does not.

    Only what the disk says of this file becomes a StorageError: the lines may come from where other things fail.
    """

    @contextlib.contextmanager
    def storing() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(explained(error, path, needs) or str(error)) from error

    def write(text: str) -> None:
        with storing():
            file.write(text)

    aside = path.with_name(f"{path.name}.partial")
    with storing():
        aside.parent.mkdir(parents=True, exist_ok=True)
        file = aside.open("w", encoding="utf-8")
    try:
        yield write
        with storing():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what is buffered may not fit either
            file.close()
        aside.unlink(missing_ok=True)
        raise


class StoredRows(Sequence[PreferenceRow]):
    """The rows of an index, read one by one."""

    def __init__(self, path: Path, cache: TensorCache) -> None:
        self.path, self.cache = path, cache
        self._text = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        self._ends = _ends(path)
        self._nulls: dict[str, Condition] = {}  # one a size

    def __len__(self) -> int:
        return len(self._ends)

    def line(self, index: int) -> Line:
        begin = int(self._ends[index - 1]) if index else 0
        return Line(**json.loads(self._text[begin : int(self._ends[index])].tobytes()))

    def lines(self) -> Iterator[Line]:
        """All of them, in order."""
        with self.path.open("rb") as file:
            for text in file:
                yield Line(**json.loads(text))

    @cached_property
    def prompts(self) -> list[str]:
        """Of all rows; one that comes often is held once."""
        known: dict[str, str] = {}
        return [known.setdefault(line.prompt, line.prompt) for line in self.lines()]

    def facts(self) -> Tensor:
        """[n], a number made of all that is known of each row, its media included."""
        return torch.tensor([line.fact for line in self.lines()], dtype=torch.int64)

    def labels(self, index: int) -> PreferenceRow:
        """The row without its media and with an empty condition: what can be known without reading any."""
        line = self.line(index)
        return self._row(line, torch.zeros(len(line.media), 0), Condition({}))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        line = self.line(index % len(self))
        found = [None if key is None else self.cache.get(key)["x0"].float() for key in line.media]
        shape = next(latent.shape for latent in found if latent is not None)
        x0 = torch.stack([torch.zeros(shape) if latent is None else latent for latent in found])
        finite = x0.flatten(1).isfinite().all(1)
        x0[~finite] = 0
        row = self._row(line, x0, load_condition(self.cache, line.cond))
        return replace(row, mask=row.mask & finite, null=self._null(line.null))

    def _null(self, key: str) -> Condition:
        if key not in self._nulls:
            self._nulls[key] = load_condition(self.cache, key)
        return self._nulls[key]

    def _row(self, line: Line, x0: Tensor, cond: Condition) -> PreferenceRow:
        k = len(line.media)
        return PreferenceRow(
            id=line.id,
            prompt=line.prompt,
            x0=x0,
            cond=cond,
            prefer=_tensor(line.prefer, k, k),
            votes=_tensor(line.votes, k, k) if line.votes else torch.ones(k, k),
            scores=_tensor(line.scores, k, 0),
            mask=torch.tensor([key is not None for key in line.media]),
            weight=line.weight,
        )


def _ends(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each line ends."""
    ends, at = [np.zeros(0, np.int64)], 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + at + 1)
            at += len(block)
    return np.concatenate(ends)


def _tensor(values: Table, height: int, width: int) -> Tensor:
    if not values or not values[0]:
        return torch.full((height, width), torch.nan)
    return torch.tensor([[torch.nan if value is None else value for value in row] for row in values])


# --- conditions as entries --------------------------------------------------------------------------------------------


def save_condition(cache: TensorCache, key: str, cond: Condition, trims: Pairs | None = None) -> int:
    """Stores one row's condition and returns its bytes. trims: embeddings to be kept without what a mask hides.

    Raises CacheError if it holds what no file can.
    """
    cond = trimmed(cond, trims or {})
    tensors = dict[str, Tensor]()
    try:
        packed = pack({"rows": dict(cond.rows), "shared": dict(cond.shared), "trims": trims or {}}, tensors)
    except TypeError as error:
        raise CacheError(f"the model's conditions cannot be kept on disk: {error}") from None
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()}
    return cache.put(key, {name: narrowed(value) for name, value in tensors.items()}, {"cond": packed, "as": dtypes})


def load_condition(cache: TensorCache, key: str) -> Condition:
    """What `save_condition` stored, on the CPU."""
    kept, facts = cache.entry(key)
    tree = unpack(facts["cond"], {name: value.to(getattr(torch, facts["as"][name])) for name, value in kept.items()})
    return padded(Condition(tree["rows"], tree["shared"]), tree["trims"])
