"""Stored preferences as a source of batches, with a share of the prompts kept aside for validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from palate import randomness, views
from palate.models.contracts import Condition, Draw, PreferenceBatch, State
from palate.training.processes import Processes
from palate.training.sources import (
    Drawing,
    Feed,
    Lacking,
    Micro,
    PreferenceRow,
    SourceError,
    changed,
    collate,
    to_device,
)

SURVEYED = 256  # rows that are looked at before training
FEW = 10  # held-out prompts below which their mean loss is mostly chance
Known = tuple[PreferenceBatch, Draw]
Chosen = list[tuple[int, int]]  # rows by place, and the visit of each
_SKETCH = 8  # numbers that stand for a row's latents
_ROUNDING = 0.1  # of a row's size: another device or thread count encodes a medium a little differently


class KnownErrors(Protocol):
    """The reference's log-likelihoods by (row, draw): see `palate.training.known`."""

    def get(self, salt: str, places: Chosen, k: int) -> Tensor:
        """[B, k], NaN where there is no candidate."""
        ...


class Offline:
    """Stored preferences, shuffled anew each epoch by (seed, epoch); every row comes once an epoch over all processes.

    The last batch of an epoch may be smaller. A row's visit is the epoch.
    """

    def __init__(
        self,
        rows: Sequence[PreferenceRow],
        null: Condition,
        drawing: Drawing,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        held_out_share: float = 0.0,
        validation_visits: int = 4,
        epochs: int | None = None,
        prompts: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        processes: Processes | None = None,
    ) -> None:
        """rows: read one by one as they are needed. prompts: of all rows, so that the split need not read them.
        Rows that lie elsewhere may offer `facts() -> [n]`, numbers made of all that is known of each, so that telling
        them from others reads no latents, and `labels(index)`, a row without its media.
        drawing: the randomness of a row, whose seed is also that of the order and the split.

        validation_visits: draws behind each validation row; more of them make its loss less noisy.
        """
        self._rows, self._null, self._drawing = rows, null, drawing
        self._batch_size, self._micro = batch_size, micro_batch_size or batch_size
        self._epochs = epochs
        self._device, self.processes = torch.device(device), processes or Processes()
        self._labels: Callable[[int], PreferenceRow] = getattr(rows, "labels", rows.__getitem__)
        self.prompts = list(prompts) if prompts is not None else [row.prompt for row in rows]
        self.train_rows, self.validation_rows = views.held_out(self.prompts, held_out_share, drawing.seed)
        self._validation_visits = validation_visits
        self.epoch, self.cursor = 0, 0
        self.note: Callable[[str], None] = lambda message: None  # nothing here takes long
        self.known: KnownErrors | None = None  # of the reference, where they were computed beforehand
        self._shuffled: tuple[int, Tensor] | None = None
        if not self.train_rows:
            raise SourceError("there are no preferences to train on: the data is empty")

    def check(self, lacking: Lacking) -> list[str]:
        """As in `Source`; reads rows no further than to the first that teaches something, and all that are held out."""

        def lacks(index: int) -> str:
            row = self._labels(index)
            return lacking(collate([row], [0], self._null)) if row.weight > 0 else "they all weigh 0"

        if all(reason := lacks(index) for index in self.train_rows):
            raise SourceError(f"there is nothing to learn from these {len(self.train_rows)} rows: {reason}")
        if not self.validation_rows:
            return []
        reasons = {index: lacks(index) for index in self.validation_rows}
        judging = {views.folded(self.prompts[index]) for index, reason in reasons.items() if not reason}
        mend = "hold out more (data.held_out)"
        if not judging:
            return [
                f"none of the {len(reasons)} held-out rows has anything to say, so there is no held-out loss: "
                f"{next(iter(reasons.values()))}; or {mend}"
            ]
        some = f"{len(judging)} prompt{'s' * (len(judging) > 1)}"
        few = f"the held-out loss is of only {some}, fewer than {FEW}, and mostly chance; {mend}"
        return [few] if len(judging) < FEW else []

    def next(self, state: State) -> Feed | None:
        if self._epochs is not None and self.epoch >= self._epochs:
            return None
        chosen = self._step(self.epoch, self.cursor)
        self.cursor += self._batch_size
        if self.cursor >= len(self.train_rows):
            self.epoch, self.cursor = self.epoch + 1, 0
        return Feed(lambda: self._micros(chosen, ""))

    def _step(self, epoch: int, cursor: int) -> Chosen:
        """This process's rows of an optimiser step."""
        index = self.processes.mine(self._order(epoch)[cursor : cursor + self._batch_size])
        return [(self.train_rows[i], epoch) for i in index.tolist()]

    def _order(self, epoch: int) -> Tensor:
        """The epoch's permutation of the rows, made once."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            generator = randomness.generator(self._drawing.seed, "order", epoch)
            self._shuffled = (epoch, torch.randperm(len(self.train_rows), generator=generator))
        return self._shuffled[1]

    def validation(self) -> Feed | None:
        if not self.validation_rows:
            return None
        return Feed(lambda: self._micros(self._aside(), "validation/"))

    def _aside(self) -> Chosen:
        """This process's held-out rows."""
        pairs = [(row, visit) for row in self.validation_rows for visit in range(self._validation_visits)]
        return pairs[self.processes.rank :: self.processes.world]

    def survey(self) -> Iterator[Micro]:
        """Some rows to be trained on, once each with a draw of their own: the same for every process."""
        return self._micros(self._surveyed(), "survey/")

    def _surveyed(self) -> Chosen:
        generator = randomness.generator(self._drawing.seed, "survey")
        index = torch.randperm(len(self.train_rows), generator=generator)[:SURVEYED]
        return [(self.train_rows[i], 0) for i in index.tolist()]

    def recurring(self) -> Iterator[tuple[str, Chosen]]:
        """All (row, visit) of this process that come again and again, in the batches in which they first come.

        The name before each says which draws they get.
        """
        yield "survey/", self._surveyed()
        if held_out := self._aside():
            yield "validation/", held_out
        for epoch in range(self.draws()):
            for cursor in range(0, len(self.train_rows), self._batch_size):
                if chosen := self._step(epoch, cursor):
                    yield "", chosen

    def draws(self, salt: str = "") -> int:
        """How many draws a row has under a name. Raises SourceError if each visit in training has one of its own."""
        if salt:
            return {"survey/": 1, "validation/": self._validation_visits}[salt]
        if self._drawing.visits is None:
            raise SourceError("every visit has a draw of its own, so that nothing can be computed beforehand")
        return self._drawing.visits

    @property
    def drop(self) -> float:
        """The share of the prompts that training empties."""
        return self._drawing.drop

    def _micros(self, chosen: Chosen, salt: str) -> Iterator[Micro]:
        return (micro for _, micro in self.placed(chosen, salt))

    def placed(self, chosen: Chosen, salt: str) -> Iterator[tuple[Chosen, Known]]:
        """Micro-batches of (row, visit), in order, and which these are; rows that cannot be stacked go into different
        ones. salt: names the draws; only those of training empty prompts.
        """
        drawing = replace(self._drawing, drop=0.0, visits=None) if salt else self._drawing
        waiting: dict[Any, tuple[list[tuple[int, int]], list[PreferenceRow]]] = {}
        for place in chosen:
            row = self._rows[place[0]]
            places, rows = waiting.setdefault(row.key, ([], []))
            places.append(place)
            rows.append(row)
            if len(rows) == self._micro:
                yield self._micro_batch(*waiting.pop(row.key), drawing, salt)
        for places, rows in waiting.values():
            yield self._micro_batch(places, rows, drawing, salt)

    def _micro_batch(
        self, places: Chosen, rows: Sequence[PreferenceRow], drawing: Drawing, salt: str
    ) -> tuple[Chosen, Known]:
        batch = collate(rows, [visit for _, visit in places], self._null)
        draw = drawing([f"{salt}{name}" for name in batch.ids], batch.visits, batch.x0.shape[1:])
        if self.known is not None:
            batch = replace(batch, ref_logps=self.known.get(salt, self._again(places, salt), batch.x0.shape[1]))
        return places, (to_device(batch, self._device), to_device(draw, self._device))

    def _again(self, places: Chosen, salt: str) -> Chosen:
        """By row and draw: visits of training come again in turn."""
        return places if salt else [(row, self._drawing.visit(visit)) for row, visit in places]

    @cached_property
    def made_of(self) -> dict[str, Tensor]:
        """By which a run that goes on knows its rows again: facts [n] exactly, latents [n, 9] to rounding.

        Where facts are made of the media themselves, no latents [n, 0] are looked at.
        """
        if callable(known := getattr(self._rows, "facts", None)):
            return {"facts": known(), "latents": torch.zeros(len(self.prompts), 0)}
        held = [(facts(row), sketch(row.x0)) for row in (self._rows[index] for index in range(len(self.prompts)))]
        return {"facts": torch.tensor([one for one, _ in held]), "latents": torch.stack([one for _, one in held])}

    def _check_same(self, before: Mapping[str, Tensor]) -> None:
        now = self.made_of
        was, number = len(before["facts"]), len(self.prompts)
        if was != number:
            raise changed("preferences", f"{was} rows then, {number} now")
        other = (before["facts"] != now["facts"]) | ((before["latents"] - now["latents"]).abs() > _ROUNDING).any(1)
        if bool(other.any()):
            first = self.prompts[int(other.nonzero()[0])]
            raise changed("preferences", f"{int(other.sum())} of {number} rows differ, first that of {first!r}")

    def state(self) -> dict[str, Any]:
        return {"made_of": self.made_of, "epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._check_same(state["made_of"])
        self.epoch, self.cursor = state["epoch"], state["cursor"]


# --- what a row holds -------------------------------------------------------------------------------------------------


def facts(row: PreferenceRow) -> int:
    """A number made of all that is known of a row but its media."""
    known = (row.prefer, row.votes, row.scores, row.mask)
    return randomness.key(row.id, row.prompt, row.weight, *(tensor.tolist() for tensor in known))


def sketch(x0: Tensor) -> Tensor:
    """[9] of latents [K, ...]: their size, as a logarithm, and sums under random signs, in units of it.

    Other media move some of them by far more than what the same media differ by on another device.
    """
    flat = x0.flatten().double()
    flat = torch.where(flat.isfinite(), flat, 0.0)
    size = flat.square().mean().sqrt().clamp(min=1e-30)
    sums = (flat / size).float() @ _signs(len(flat)) / len(flat) ** 0.5
    return torch.cat([size.log()[None].float(), sums])


@lru_cache(8)
def _signs(number: int) -> Tensor:
    """[number, 8] of +1 and -1, always the same."""
    return 2.0 * torch.randint(2, (number, _SKETCH), generator=randomness.generator("sketch", number)) - 1
