"""What a denoiser is told about its prompts: rows that can be indexed, stacked, cached, whatever their lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told about B prompts, row by row.

    rows: entries that carry the batch, `{"cond/encoder_hidden_states": [B, L, E], "uncond/...": ...}`; the prefix names
        the guidance branch and the rest the path of the denoiser's argument.
    shared: entries that are the same for every row (image shapes, position ids, flags).
    parts: empty where all rows have the same lengths. Else conditions that do not stack, and `rows` says which row of
        which part each of the B is: `{"part": [B], "row": [B]}`; such rows go through the denoiser part by part.

    Rows can be indexed, stacked and cached. Conditions whose `key` agrees (same arguments and lengths) are one tensor.
    """

    rows: Mapping[str, Tensor]
    shared: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Condition, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.rows.values()))) if self.rows else 0

    def __getitem__(self, index: Any) -> Condition:
        """Rows by slice, list or index tensor [n]; an int gives a condition of one row."""
        index = slice(index, index + 1) if isinstance(index, int) else index
        if not self.parts:
            return replace(self, rows={name: value[index] for name, value in self.rows.items()})
        index = index.cpu() if isinstance(index, Tensor) else index
        part, row = self.rows["part"][index], self.rows["row"][index]
        used = part.unique().tolist()
        if len(used) == 1:
            return self.parts[used[0]][row]
        return replace(self, rows={"part": part, "row": row})

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Equal for conditions whose rows can be stacked."""
        if self.parts:
            return ("mixed", *sorted(part.key for part in self.parts))
        shapes = tuple(sorted((name, tuple(value.shape[1:]), str(value.dtype)) for name, value in self.rows.items()))
        return (*shapes, *sorted((name, identity(value)) for name, value in self.shared.items()))

    @property
    def guided(self) -> bool:
        """Whether the rows hold an unconditional branch, so that a guidance scale can be asked for."""
        if self.parts:
            return all(part.guided for part in self.parts)
        return any(name.startswith("uncond/") for name in (*self.rows, *self.shared))

    def state(self) -> dict[str, Any]:
        """As plain values and tensors, for a checkpoint."""
        return {
            "rows": dict(self.rows),
            "shared": dict(self.shared),
            "parts": [part.state() for part in self.parts],
        }

    @staticmethod
    def restored(state: Mapping[str, Any]) -> Condition:
        parts = tuple(Condition.restored(part) for part in state.get("parts", ()))
        return Condition(state["rows"], state["shared"], parts)

    def to(self, device: torch.device | str) -> Condition:
        if self.parts:
            return replace(self, parts=tuple(part.to(device) for part in self.parts))
        shared = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.shared.items()}
        return Condition({name: value.to(device) for name, value in self.rows.items()}, shared)

    def where(self, mask: Tensor, other: Condition) -> Condition:
        """Rows of `other` (one row, or as many as self) where mask [B] is true, self's own elsewhere."""
        if not bool(mask.any()):
            return self
        if self.parts or other.parts or not _alike(self, other):
            theirs = other[[0] * len(self)] if len(other) == 1 else other
            return Condition.cat([(theirs if m else self)[row] for row, m in enumerate(mask.tolist())])

        def pick(mine: Tensor, theirs: Tensor) -> Tensor:
            keep = mask.view(-1, *[1] * (mine.dim() - 1)).to(mine.device)
            return torch.where(keep, theirs.expand_as(mine), mine)

        return replace(self, rows={name: pick(value, other.rows[name]) for name, value in self.rows.items()})

    def only(self, prefix: str) -> Condition:
        """The entries whose names begin so."""
        if self.parts:
            return replace(self, parts=tuple(part.only(prefix) for part in self.parts))
        rows = {name: value for name, value in self.rows.items() if name.startswith(prefix)}
        return Condition(rows, {name: value for name, value in self.shared.items() if name.startswith(prefix)})

    def groups(self) -> list[tuple[Tensor, Condition]]:
        """The rows [n] of each part and their condition, one tensor each; a single group where all rows stack."""
        if not self.parts:
            return [(torch.arange(len(self)), self)]
        part, row = self.rows["part"], self.rows["row"]
        found = [(index, (part == index).nonzero()[:, 0]) for index in part.unique().tolist()]
        return [(where, self.parts[index][row[where]]) for index, where in found]

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """One condition of all rows in order: of parts, where the keys differ."""
        first = conditions[0]
        if not any(condition.parts or condition.key != first.key for condition in conditions):
            return replace(first, rows={name: torch.cat([c.rows[name] for c in conditions]) for name in first.rows})
        held: dict[Any, list[Condition]] = {}
        total, places = 0, list[tuple[Any, Tensor, Tensor]]()
        for condition in conditions:
            for where, group in condition.groups():
                begun = sum(len(other) for other in held.get(group.key, []))
                held.setdefault(group.key, []).append(group)
                places.append((group.key, total + where, begun + torch.arange(len(group))))
            total += len(condition)
        part, row = torch.empty(total, dtype=torch.long), torch.empty(total, dtype=torch.long)
        order = {key: index for index, key in enumerate(held)}
        for key, where, rows in places:
            part[where], row[where] = order[key], rows
        return Condition({"part": part, "row": row}, parts=tuple(Condition.cat(group) for group in held.values()))


def _alike(a: Condition, b: Condition) -> bool:
    """Whether rows of one may stand among the other's: entries of the same names and shapes."""

    def shapes(entries: Mapping[str, Any], first: int) -> dict[str, Any]:
        return {name: value.shape[first:] if isinstance(value, Tensor) else None for name, value in entries.items()}

    return shapes(a.rows, 1) == shapes(b.rows, 1) and shapes(a.shared, 0) == shapes(b.shared, 0)


def identity(value: Any) -> Any:
    """Equal for shared entries of equal value; of a tensor its shape, kind and a digest."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{tuple(value.shape)} {value.dtype} {hashlib.blake2b(raw, digest_size=8).hexdigest()}"
    if isinstance(value, Mapping):
        return repr({name: identity(item) for name, item in value.items()})
    if isinstance(value, list | tuple):
        return repr([identity(item) for item in value])
    return repr(value)
