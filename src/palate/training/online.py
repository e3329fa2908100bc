"""The policy's own samples, scored, as a source of batches: round by round."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palate import randomness, sampling
from palate.models.contracts import Condition, Kernel, Rollout, Scorer, State, TransitionBatch, select
from palate.training.processes import Processes, Sums
from palate.training.sources import Feed, Lacking, Micro, SourceError, changed, to_device

_EMPTY_ROUNDS = 10  # rounds in a row that gave nothing to learn from before a run gives up
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
        self.prompts = list(dict.fromkeys(prompts))
        self._rollout, self._scorer, self._prepare, self._kernel = rollout, scorer, prepare, kernel
        self._k, self._per_round, self._rounds, self._seed = k, prompts_per_round, rounds, seed
        self._batch_size, self._micro = batch_size, micro_batch_size or batch_size
        self._inner_epochs, self._on_round, self._context = inner_epochs, on_round, context
        self._device, self._processes = torch.device(device), processes or Processes()
        self.round, self.epoch, self.cursor = 0, 0, 0
        self.note: Callable[[str], None] = lambda message: None
        self._made_of = randomness.key(*self.prompts)
        self._batch: TransitionBatch | None = None
        if prompts_per_round > len(self.prompts):
            raise SourceError(
                f"prompts_per_round is {prompts_per_round} but there are {len(self.prompts)} different prompts: "
                "lower it, and raise k for more candidates of each"
            )
        if prompts_per_round * k < self._processes.world:
            world = self._processes.world
            raise SourceError(f"a round of {prompts_per_round * k} samples cannot be shared by {world} processes")

    def check(self, lacking: Lacking) -> list[str]:
        """There are no rows yet; rounds that teach nothing are counted as they come."""
        return []

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
        picked = torch.randperm(len(self.prompts), generator=randomness.generator(self._seed, "prompts", self.round))
        order = picked[: self._per_round].sort().values.tolist()
        prompts = [self.prompts[i] for i in order for _ in range(self._k)]
        ids = [f"{self.round}/{i}/{candidate}" for i in order for candidate in range(self._k)]
        made, feedback = self._scored(prompts, ids)
        made, scores, failed = sampling.usable(made, feedback)
        batch = self._prepare(made, scores, state)
        metrics: Sums = {"round/failed": (float(failed), 1.0)}
        for name, values in scores.items():
            known = values[values.isfinite()]
            metrics[f"samples/{name}"] = (float(known.sum()), float(len(known)))
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
        of = "" if self._rounds is None else f" of {self._rounds}"
        self.note(f"sampling round {self.round + 1}{of}: {total} samples")
        with torch.no_grad(), self._context():
            seed = randomness.key(self._seed, "round", self.round)
            made = self._rollout(mine, [ids[i] for i in index.tolist()], seed=seed)
        self.note(f"scoring round {self.round + 1}{of}")
        with self._processes.together():
            raw = self._scorer(mine, made.media)
        scores = {name: torch.as_tensor(values, dtype=torch.double).cpu() for name, values in sorted(raw.items())}
        for name, values in scores.items():
            if values.shape != (len(mine),):
                raise SourceError(f"scorer returned {tuple(values.shape)} values of {name!r} for {len(mine)} samples")

        if made.cond.parts and self._processes.world > 1:
            raise SourceError(
                "prompts of different lengths, which this model does not pad, cannot be shared by several processes: "
                "use one process, or prompts of one length (in the model's own tokens)"
            )

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
            batch["cond"] = self._batch.cond.state()
        return {
            "made_of": self._made_of, "round": self.round, "epoch": self.epoch, "cursor": self.cursor, "batch": batch
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["made_of"] != self._made_of:
            raise changed("prompts")
        self.round, self.epoch, self.cursor = state["round"], state["epoch"], state["cursor"]
        saved, self._batch = state["batch"], None
        if saved is not None:
            self._batch = TransitionBatch(**{**saved, "cond": Condition.restored(saved["cond"])}, kernel=self._kernel)
