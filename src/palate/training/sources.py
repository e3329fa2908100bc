"""What a source of batches is, and what one is made of: encoded rows, their draws, batches on the model's device.

A source yields one `Feed` per optimiser step: this process's share of the global batch, cut into micro-batches. Which
rows, in which order, with which draws depends on the seed alone, never on the batch size, the process or the past:
what a checkpoint must hold is a cursor, and online the round's samples. There are two: stored preferences (`offline`)
and the policy's own scored samples (`online`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from palate import randomness
from palate.models.contracts import Condition, Draw, Path, PreferenceBatch, State, TransitionBatch
from palate.training.processes import Sums

Batch = PreferenceBatch | TransitionBatch
Micro = tuple[Batch, Draw | None]
Lacking = Callable[[PreferenceBatch], str]  # why none of the rows teaches anything; empty if one does


class SourceError(ValueError):
    """There is nothing to train on; the message says why and what to do."""


@dataclass(frozen=True)
class Feed:
    """One optimiser step's rows: `micros()` gives them anew each time it is called, already on the model's device."""

    micros: Callable[[], Iterator[Micro]]
    metrics: Sums = field(default_factory=dict)


class Source(Protocol):
    """What the trainer asks of a source. note: where it may say what takes long."""

    note: Callable[[str], None]

    def check(self, lacking: Lacking) -> list[str]:
        """Raises SourceError if no row to train on teaches anything; returns what to warn of in those kept aside."""
        ...

    def next(self, state: State) -> Feed | None:
        """The next optimiser step's rows, None when there are no more."""
        ...

    def validation(self) -> Feed | None:
        """Rows kept aside, the same each time; None if there are none."""
        ...

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


def changed(what: str, how: str = "") -> SourceError:
    """For a run that would go on with other data: shuffled and kept aside in another way, or saying something else."""
    begun = f"the {what} are not those the run began with" + (f" ({how})" if how else "")
    return SourceError(f"{begun}: put them back to go on, or begin anew in another output")


# --- rows, draws, devices ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt's K candidates, encoded. id: its draws' key. cond: one row. Shapes as in PreferenceBatch, without B.

    null: the empty prompt's condition at the size of this row; None where all rows have the same.
    """

    id: str
    prompt: str
    x0: Tensor
    cond: Condition
    prefer: Tensor
    votes: Tensor
    scores: Tensor
    mask: Tensor
    weight: float = 1.0
    null: Condition | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for rows that can be stacked."""
        sized = self.null.key if self.null is not None else ()
        return (tuple(self.x0.shape[1:]), self.scores.shape[-1], *self.cond.key, *sized)


def _padded(tensor: Tensor, k: int, axes: int, fill: float) -> Tensor:
    """The first `axes` axes, each of length K, filled up to k."""
    out = tensor.new_full((*[k] * axes, *tensor.shape[axes:]), fill)
    out[tuple(slice(n) for n in tensor.shape[:axes])] = tensor
    return out


def collate(rows: Sequence[PreferenceRow], visits: Sequence[int], null: Condition) -> PreferenceBatch:
    """One batch of rows that agree in `key`; fewer than K candidates are filled up and masked. null: of all rows that
    bring none of their own.
    """
    k = max(len(row.x0) for row in rows)
    return PreferenceBatch(
        ids=[row.id for row in rows],
        visits=torch.tensor(list(visits)),
        x0=torch.stack([_padded(row.x0, k, 1, 0.0) for row in rows]),
        mask=torch.stack([_padded(row.mask, k, 1, False) for row in rows]),
        cond=Condition.cat([row.cond for row in rows]),
        null=rows[0].null if rows[0].null is not None else null,
        prefer=torch.stack([_padded(row.prefer, k, 2, torch.nan) for row in rows]),
        votes=torch.stack([_padded(row.votes, k, 2, 0.0) for row in rows]),
        scores=torch.stack([_padded(row.scores, k, 1, torch.nan) for row in rows]),
        weight=torch.tensor([row.weight for row in rows]),
    )


@dataclass(frozen=True)
class Drawing:
    """How rows come by the randomness of a step: each from its own generator, keyed by (seed, id, visit).

    drop: share of the prompts emptied. times: another density of t than the path's own, `times(n, generator) -> [n]`.
    shared_noise: one noise for all K of a prompt, else one each. visits: how many draws a row has, which then come
    again in turn, so that what depends on them alone can be computed once; None for another one every time.
    """

    seed: int
    path: Path
    drop: float = 0.0
    times: Callable[[int, torch.Generator], Tensor] | None = None
    shared_noise: bool = True
    visits: int | None = None

    def __call__(self, ids: Sequence[str], visits: Sequence[int] | Tensor, shape: Sequence[int]) -> Draw:
        """t [B], noise [B, ...] or [B, K, ...], drop [B]; shape: of a row's candidates, [K, ...]."""
        sample_t = self.times or self.path.sample_t
        times, drop = [], []
        noise = torch.empty(len(ids), *(shape[1:] if self.shared_noise else shape))
        for row, (sample, visit) in enumerate(zip(ids, visits, strict=True)):
            key = (self.seed, sample, self.visit(int(visit)))
            generator = randomness.generator(*key)
            times.append(sample_t(1, generator))
            if self.shared_noise:
                noise[row].normal_(generator=generator)
            else:
                for k in range(shape[0]):  # of its own, so that filling up to K changes no other
                    noise[row, k].normal_(generator=randomness.generator(*key, k))
            drop.append(torch.rand((), generator=generator) < self.drop)
        return Draw(torch.cat(times), noise, torch.stack(drop))

    def visit(self, visit: int) -> int:
        """Which of its draws a row gets on a visit."""
        return visit if self.visits is None else visit % self.visits


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch, draw or condition on a device; of a round's trajectories only those its rows point to are moved."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, TransitionBatch):
        used, candidate = batch.candidate.unique(return_inverse=True)
        kept: dict[str, Any] = {"x": batch.x[used], "old_logps": batch.old_logps[used], "cond": batch.cond[used]}
        batch = replace(batch, **kept, candidate=candidate)
    moved = {}
    for item in dataclasses.fields(batch):
        value = getattr(batch, item.name)
        moved[item.name] = value.to(device) if isinstance(value, Tensor | Condition) else value
    return replace(batch, **moved)
