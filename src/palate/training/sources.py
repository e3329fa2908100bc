"""Where batches come from: stored preferences (offline) or the policy's own scored samples (online).

A source yields one `Feed` per optimiser step: this process's share of the global batch, cut into micro-batches. Which
rows, in which order, with which draws depends on the seed alone, never on the batch size, the process or the past:
what a checkpoint must hold is a cursor, and online the round's samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from palate import randomness, sampling
from palate.models.contracts import (
    Condition,
    Draw,
    Kernel,
    Path,
    PreferenceBatch,
    Rollout,
    Scorer,
    State,
    TransitionBatch,
    select,
)
from palate.training.processes import Processes, Sums

Batch = PreferenceBatch | TransitionBatch
Micro = tuple[Batch, Draw | None]
_EMPTY_ROUNDS = 10  # rounds in a row that gave nothing to learn from before a run gives up


class SourceError(ValueError):
    """There is nothing to train on; the message says why and what to do."""


@dataclass(frozen=True)
class Feed:
    """One optimiser step's rows: `micros()` gives them anew each time it is called, already on the model's device."""

    micros: Callable[[], Iterator[Micro]]
    metrics: Sums = field(default_factory=dict)


class Source(Protocol):
    """What the trainer asks of a source."""

    def next(self, state: State) -> Feed | None:
        """The next optimiser step's rows, None when there are no more."""
        ...

    def validation(self) -> Feed | None:
        """Rows kept aside, the same each time; None if there are none."""
        ...

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


# --- draws and devices ------------------------------------------------------------------------------------------------


def draws(
    ids: Sequence[str],
    visits: Sequence[int] | Tensor,
    seed: int,
    path: Path,
    latent_shape: Sequence[int],
    drop_probability: float = 0.0,
) -> Draw:
    """t [B], noise [B, ...] and drop [B], each row from its own generator keyed by (seed, id, visit)."""
    times, drop = [], []
    noise = torch.empty(len(ids), *latent_shape)
    for row, (sample, visit) in enumerate(zip(ids, visits, strict=True)):
        generator = randomness.generator(seed, sample, int(visit))
        times.append(path.sample_t(1, generator))
        noise[row].normal_(generator=generator)
        drop.append(torch.rand((), generator=generator) < drop_probability)
    return Draw(torch.cat(times), noise, torch.stack(drop))


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


# --- offline ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt's K candidates, encoded. id: its draws' key. cond: one row. Shapes as in PreferenceBatch, without B."""

    id: str
    prompt: str
    x0: Tensor
    cond: Condition
    prefer: Tensor
    votes: Tensor
    scores: Tensor
    mask: Tensor
    weight: float = 1.0

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for rows that can be stacked."""
        return (tuple(self.x0.shape[1:]), self.scores.shape[-1], *self.cond.key)


def _padded(tensor: Tensor, k: int, axes: int, fill: float) -> Tensor:
    """The first `axes` axes, each of length K, filled up to k."""
    out = tensor.new_full((*[k] * axes, *tensor.shape[axes:]), fill)
    out[tuple(slice(n) for n in tensor.shape[:axes])] = tensor
    return out


def collate(rows: Sequence[PreferenceRow], visits: Sequence[int], null: Condition) -> PreferenceBatch:
    """One batch of rows that agree in `key`; fewer than K candidates are filled up and masked."""
    k = max(len(row.x0) for row in rows)
    return PreferenceBatch(
        ids=[row.id for row in rows],
        visits=torch.tensor(list(visits)),
        x0=torch.stack([_padded(row.x0, k, 1, 0.0) for row in rows]),
        mask=torch.stack([_padded(row.mask, k, 1, False) for row in rows]),
        cond=Condition.cat([row.cond for row in rows]),
        null=null,
        prefer=torch.stack([_padded(row.prefer, k, 2, torch.nan) for row in rows]),
        votes=torch.stack([_padded(row.votes, k, 2, 0.0) for row in rows]),
        scores=torch.stack([_padded(row.scores, k, 1, torch.nan) for row in rows]),
        weight=torch.tensor([row.weight for row in rows]),
    )


def _check_same(before: int, now: int, what: str) -> None:
    """Rows added or taken away would be shuffled, and kept aside, in another way than the run began with."""
    if before != now:
        raise SourceError(
            f"the {what} are not those the run began with: put them back to go on, or begin anew in another output"
        )


def held_out(prompts: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and rows kept aside, by prompt: no prompt is in both. Any share above 0 keeps one prompt."""
    unique = sorted(set(prompts), key=lambda prompt: (randomness.key(seed, "held out", prompt), prompt))
    count = min(max(round(share * len(unique)), 1), len(unique) - 1) if share > 0 else 0
    aside = set(unique[:count])
    rows = range(len(prompts))
    return [row for row in rows if prompts[row] not in aside], [row for row in rows if prompts[row] in aside]


class Offline:
    """Stored preferences, shuffled anew each epoch by (seed, epoch); every row comes once an epoch over all processes.

    The last batch of an epoch may be smaller. A row's visit is the epoch.
    """

    def __init__(
        self,
        rows: Sequence[PreferenceRow],
        null: Condition,
        path: Path,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        drop_probability: float = 0.0,
        held_out_share: float = 0.0,
        validation_visits: int = 4,
        epochs: int | None = None,
        prompts: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        processes: Processes | None = None,
    ) -> None:
        """rows: read one by one as they are needed. prompts: of all rows, so that the split need not read them.

        validation_visits: draws behind each validation row; more of them make its loss less noisy.
        """
        self._rows, self._null, self._path = rows, null, path
        self._batch_size, self._micro = batch_size, micro_batch_size or batch_size
        self._seed, self._drop, self._epochs = seed, drop_probability, epochs
        self._device, self._processes = torch.device(device), processes or Processes()
        names = list(prompts) if prompts is not None else [row.prompt for row in rows]
        self.train_rows, self.validation_rows = held_out(names, held_out_share, seed)
        self._validation_visits, self._made_of = validation_visits, randomness.key(*names)
        self.epoch, self.cursor = 0, 0
        self._shuffled: tuple[int, Tensor] | None = None
        if not self.train_rows:
            raise SourceError("there are no preferences to train on: the data is empty")

    def next(self, state: State) -> Feed | None:
        if self._epochs is not None and self.epoch >= self._epochs:
            return None
        index = self._processes.mine(self._order()[self.cursor : self.cursor + self._batch_size])
        chosen = [(self.train_rows[i], self.epoch) for i in index.tolist()]
        self.cursor += self._batch_size
        if self.cursor >= len(self.train_rows):
            self.epoch, self.cursor = self.epoch + 1, 0
        return Feed(lambda: self._micros(chosen, self._drop, ""))

    def _order(self) -> Tensor:
        """The epoch's permutation of the rows, made once."""
        if self._shuffled is None or self._shuffled[0] != self.epoch:
            generator = randomness.generator(self._seed, "order", self.epoch)
            self._shuffled = (self.epoch, torch.randperm(len(self.train_rows), generator=generator))
        return self._shuffled[1]

    def validation(self) -> Feed | None:
        if not self.validation_rows:
            return None
        pairs = [(row, visit) for row in self.validation_rows for visit in range(self._validation_visits)]
        mine = pairs[self._processes.rank :: self._processes.world]
        return Feed(lambda: self._micros(mine, 0.0, "validation/"))

    def _micros(self, chosen: Sequence[tuple[int, int]], drop: float, salt: str) -> Iterator[Micro]:
        """Micro-batches of (row, visit), in order; rows that cannot be stacked go into different ones."""
        waiting: dict[Any, list[tuple[PreferenceRow, int]]] = {}
        for index, visit in chosen:
            row = self._rows[index]
            group = waiting.setdefault(row.key, [])
            group.append((row, visit))
            if len(group) == self._micro:
                yield self._micro_batch(waiting.pop(row.key), drop, salt)
        for group in waiting.values():
            yield self._micro_batch(group, drop, salt)

    def _micro_batch(self, group: Sequence[tuple[PreferenceRow, int]], drop: float, salt: str) -> Micro:
        batch = collate([row for row, _ in group], [visit for _, visit in group], self._null)
        names = [f"{salt}{name}" for name in batch.ids]
        draw = draws(names, batch.visits, self._seed, self._path, batch.x0.shape[2:], drop)
        return to_device(batch, self._device), to_device(draw, self._device)

    def state(self) -> dict[str, Any]:
        return {"made_of": self._made_of, "epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: Mapping[str, Any]) -> None:
        _check_same(state["made_of"], self._made_of, "preferences")
        self.epoch, self.cursor = state["epoch"], state["cursor"]


# --- online -----------------------------------------------------------------------------------------------------------

Prepare = Callable[[Rollout, Mapping[str, Tensor], State], TransitionBatch]


class Online:
    """Rounds: sample with the current policy, score, let the algorithm prepare transitions, train on them, repeat.

    A round's samples are made by all processes together and known to all, so that statistics over a round do not
    depend on how many there are. They are part of the state: a run killed within a round goes on with them.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        rollout: Callable[..., Rollout],
        scorer: Scorer,
        prepare: Prepare,
        kernel: Kernel,
        *,
        k: int,
        prompts_per_round: int,
        batch_size: int,
        micro_batch_size: int | None = None,
        inner_epochs: int = 1,
        rounds: int | None = None,
        seed: int = 0,
        on_round: Callable[[int], None] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        device: torch.device | str = "cpu",
        processes: Processes | None = None,
    ) -> None:
        """rollout(prompts, ids, seed=...) samples; kernel is its transition, for a restored round; on_round(index) is
        called before each round's sampling (`Reference.begin_round`); context is entered around sampling (autocast,
        so that it runs as training does).
        """
        self._prompts = list(dict.fromkeys(prompts))
        self._rollout, self._scorer, self._prepare, self._kernel = rollout, scorer, prepare, kernel
        self._k, self._per_round, self._rounds, self._seed = k, prompts_per_round, rounds, seed
        self._batch_size, self._micro = batch_size, micro_batch_size or batch_size
        self._inner_epochs, self._on_round, self._context = inner_epochs, on_round, context
        self._device, self._processes = torch.device(device), processes or Processes()
        self.round, self.epoch, self.cursor = 0, 0, 0
        self._made_of = randomness.key(*self._prompts)
        self._batch: TransitionBatch | None = None
        if prompts_per_round > len(self._prompts):
            raise SourceError(
                f"prompts_per_round is {prompts_per_round} but there are {len(self._prompts)} different prompts: "
                "lower it, and raise k for more candidates of each"
            )
        if prompts_per_round * k < self._processes.world:
            world = self._processes.world
            raise SourceError(f"a round of {prompts_per_round * k} samples cannot be shared by {world} processes")

    def next(self, state: State) -> Feed | None:
        metrics: Sums = {}
        for _ in range(_EMPTY_ROUNDS):
            if self._batch is not None:
                return self._step(self._batch, metrics)
            if self._rounds is not None and self.round >= self._rounds:
                return None
            metrics = self._begin_round(state)
        raise SourceError(
            f"{_EMPTY_ROUNDS} rounds in a row gave nothing to learn from: every sample scored the same or failed to be "
            "scored; look at the scorer, and at the samples"
        )

    def _step(self, batch: TransitionBatch, metrics: Sums) -> Feed:
        """The next rows of the round, in an order keyed by (seed, round, inner epoch)."""
        key = randomness.generator(self._seed, "transitions", self.round, self.epoch)
        order = torch.randperm(len(batch), generator=key)
        index = self._processes.mine(order[self.cursor : self.cursor + self._batch_size])
        metrics = metrics | {"round": (float(self.round), 1.0)}
        self.cursor += self._batch_size
        if self.cursor >= len(batch):
            self.epoch, self.cursor = self.epoch + 1, 0
        if self.epoch >= self._inner_epochs:
            self.round, self.epoch, self._batch = self.round + 1, 0, None

        def micros() -> Iterator[Micro]:
            for rows in index.split(self._micro) if len(index) else ():
                yield to_device(select(batch, rows), self._device), None

        return Feed(micros, metrics)

    def _begin_round(self, state: State) -> Sums:
        """Samples, scores and prepares a round; leaves no batch, and counts the round, if nothing came of it."""
        if self._on_round:
            self._on_round(self.round)
        picked = torch.randperm(len(self._prompts), generator=randomness.generator(self._seed, "prompts", self.round))
        order = picked[: self._per_round].sort().values.tolist()
        prompts = [self._prompts[i] for i in order for _ in range(self._k)]
        ids = [f"{self.round}/{i}/{candidate}" for i in order for candidate in range(self._k)]
        made, feedback = self._scored(prompts, ids)
        made, scores, failed = sampling.usable(made, feedback)
        batch = self._prepare(made, scores, state)
        metrics: Sums = {"samples/failed": (float(failed), 1.0)}
        for name, values in scores.items():
            known = values[values.isfinite()]
            metrics[f"reward/{name}"] = (float(known.sum()), float(len(known)))
        if len(batch):
            self._batch = batch
        else:
            self.round += 1
        return metrics

    def _scored(self, prompts: list[str], ids: list[str]) -> tuple[Rollout, dict[str, Tensor]]:
        """All samples of a round with their scores; each process makes, and scores, its share."""
        total = len(ids)
        index = self._processes.mine(torch.arange(total))
        mine = [prompts[i] for i in index.tolist()]
        with torch.no_grad(), self._context():
            seed = randomness.key(self._seed, "round", self.round)
            made = self._rollout(mine, [ids[i] for i in index.tolist()], seed=seed)
        raw = self._scorer(mine, made.media)
        scores = {name: torch.as_tensor(values, dtype=torch.double).cpu() for name, values in sorted(raw.items())}
        for name, values in scores.items():
            if values.shape != (len(mine),):
                raise SourceError(f"scorer returned {tuple(values.shape)} values of {name!r} for {len(mine)} samples")

        def collect(rows: Tensor) -> Tensor:
            return self._processes.collect(rows.cpu(), index, total, self._device)

        rows = {name: collect(value) for name, value in sorted(made.cond.rows.items())}
        whole: dict[str, Any] = {
            "ids": ids,
            "prompts": prompts,
            "x": collect(made.x),
            "logps": collect(made.logps),
            "media": [],
        }
        cond = replace(made.cond.to("cpu"), rows=rows)
        made = replace(made, **whole, t=made.t.cpu(), std=made.std.cpu(), cond=cond)
        return made, {name: collect(values) for name, values in scores.items()}

    def validation(self) -> Feed | None:
        return None

    def state(self) -> dict[str, Any]:
        batch = None
        if self._batch is not None:
            batch = {item.name: getattr(self._batch, item.name) for item in dataclasses.fields(self._batch)}
            del batch["kernel"]
            batch["cond"] = {"rows": dict(self._batch.cond.rows), "shared": dict(self._batch.cond.shared)}
        return {
            "made_of": self._made_of, "round": self.round, "epoch": self.epoch, "cursor": self.cursor, "batch": batch
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        _check_same(state["made_of"], self._made_of, "prompts")
        self.round, self.epoch, self.cursor = state["round"], state["epoch"], state["cursor"]
        saved, self._batch = state["batch"], None
        if saved is not None:
            self._batch = TransitionBatch(**{**saved, "cond": Condition(**saved["cond"])}, kernel=self._kernel)
