"""Rounds of an online method: votes are the reward of the samples' own trajectories."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from palate.config import RolloutSettings
from palate.doors import asking, assembly, judging, trajectories
from palate.doors.turns import Turns
from palate.models.contracts import Media, Rollout


class Online(Turns):
    """One training whose samples people compare: the trainer's rounds are the rounds."""

    def learn(self) -> None:
        prompts = self._order[self.wanted.verdict :]
        rollout = RolloutSettings(
            prompts=prompts,
            scorers={"people": 1.0},
            prompts_per_round=self.wanted.prompts_per_round,
            k=self.wanted.k,
            rounds=self.wanted.n,
            batch_size=self.wanted.batch_size,
            eta=1.0 if self.wanted.eta is None else self.wanted.eta,
        )
        sampler = self.sampler | {"eta": rollout.eta}
        reference = assembly.reference_for(self.policy, self.algorithm, self.options)
        self.source = assembly.online_source(
            self.policy,
            self.algorithm,
            self.options,
            prompts,
            self._votes,
            rollout,
            self.recipe.training,
            sampler,
            reference,
            around=lambda draw: partial(self._kept, draw),
        )
        result = assembly.fit(
            self.policy,
            self.algorithm,
            self.options,
            self.source,
            self.recipe.training,
            self.folder,
            reference=reference,
            evaluate=self._evaluation(),
            locked=True,
        )
        self._remember(self.source, result)

    def _votes(self, prompts: Sequence[str], media: Sequence[Media]) -> Mapping[str, np.ndarray]:
        """The round's samples as people see them: each one's share of the judgements that it was in."""
        index = self.source.round
        shown = self.folder / "rounds" / f"shown-{index:03d}.json"  # whatever another decoding would make of it
        if not shown.is_file():
            judging.write_json(shown, {"samples": self._show(index, prompts, media)})
        ids = json.loads(shown.read_text(encoding="utf-8"))["samples"]
        self._ask(index)
        return {"people": asking.win_shares(self.store, self.name(index), ids)}

    def _kept(self, draw: Callable[..., Rollout], *args: Any, **how: Any) -> Rollout:
        """A round's trajectories, drawn once: what people were shown is what is trained on, whatever stops the run."""
        index = self.source.round
        return trajectories.kept(
            self.folder / "rounds", index, self.policy, partial(self._said, index, draw), *args, **how
        )

    def _said(self, index: int, draw: Callable[..., Rollout], *args: Any, **how: Any) -> Rollout:
        self._tell_draws(index, len(args[0]))
        return draw(*args, **how)
