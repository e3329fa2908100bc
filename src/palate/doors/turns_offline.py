"""Rounds of an offline method: votes are preference data; each round trains from where the last one ended."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from palate import durable, randomness, sampling
from palate.config import ConfigError
from palate.datasets import parquet
from palate.doors import assembly, awaited, encoding, judging
from palate.doors.turns import OVER, Turns, say
from palate.training import adapters
from palate.training.logs import Progress
from palate.training.sources import PreferenceRow

WEIGHTS = "weights.safetensors"  # of a round: the policy when it was over, to the last bit


class Offline(Turns):
    """Draws with the policy as it is, asks, and trains on what was said so far."""

    def learn(self) -> None:
        self._check_encodes()
        evaluate = self._evaluation()
        for index in range(self.wanted.n):
            place = self.folder / "rounds" / f"{index:03d}"
            if (place / OVER).is_file():
                continue
            self._take_up(index)
            if index == 0:
                self._note(0, evaluate(0))
            self._draw(index, place)
            self._ask(index)
            facts = self._train(index, place)
            self._note(index + 1, {**facts, **evaluate(index + 1)})
            judging.write_json(place / OVER, {**facts, **self.learnt})
        self._take_up(self.wanted.n)

    def _check_encodes(self) -> None:
        """Raises ConfigError for a model whose media cannot be learnt from, before anybody is asked about them."""
        blank = torch.zeros(1, *self.policy.latent_shape, device=self.policy.device)
        try:
            self.policy.encode(self.policy.decode(blank))
        except ValueError as error:
            name = self.recipe.algorithm.name
            raise ConfigError(f"{name} learns from stored media, but {error}: an online method (d3po) can") from None

    def _take_up(self, index: int) -> None:
        """Puts the weights into the policy that the round before left."""
        if index == 0:
            return
        saved = load_file(self.folder / "rounds" / f"{index - 1:03d}" / WEIGHTS)
        with torch.no_grad():
            for name, weight in adapters.trainable(self.policy).items():
                weight.copy_(saved[name])

    def _draw(self, index: int, place: Path) -> None:
        """k candidates of each of the round's prompts, shown as pairs; drawn once, whatever stops the run later."""
        drawn = place / "drawn.json"
        if drawn.is_file():
            return
        prompts = [prompt for prompt in self.asked_in(index) for _ in range(self.wanted.k)]
        ids = [f"{index}/{i // self.wanted.k}/{i % self.wanted.k}" for i in range(len(prompts))]
        self._tell_draws(index, len(prompts))
        seed = randomness.key(self.seed, "round", index)
        how = self.sampler | {"batch_size": self.wanted.batch_size}
        with contextlib.closing(Progress(len(prompts), 0, what="sample")) as bar:
            media = sampling.sample(self.policy, prompts, ids, seed=seed, progress=bar.advance, **how)
        shown = self._show(index, prompts, media)
        place.mkdir(parents=True, exist_ok=True)
        judging.write_json(drawn, {"samples": shown})

    def _train(self, index: int, place: Path) -> dict[str, float]:
        """Trains on the votes of this round, or of all so far; returns what there was to learn from."""
        self._preferences(index, place / "preferences")
        there = (place / "preferences").is_dir()
        stored = encoding.read_preferences(place / "preferences", 0.0) if there else []
        sure = [np.abs(np.nan_to_num(np.asarray(row.prefer), nan=0.5) - 0.5) > 0 for row, _ in stored]
        decided = sum(int(pairs.sum()) // 2 for pairs in sure)
        if decided:
            self._fit(index, place, encoding.encode(self.policy, stored))
        else:
            say(f"round {index + 1}: nobody preferred either sample of any pair; nothing is learnt from it")
        weights = {name: weight.detach().contiguous() for name, weight in adapters.trainable(self.policy).items()}
        aside = place / f"{WEIGHTS}.partial"
        save_file(weights, aside)
        durable.fsync(aside)
        aside.replace(place / WEIGHTS)
        return {"round/decided": float(decided), "round/prompts": float(len(stored))}

    def _fit(self, index: int, place: Path, rows: Sequence[PreferenceRow]) -> None:
        settings, options = self.recipe.training, self.options
        reference = assembly.reference_for(self.policy, self.algorithm, options)
        if reference is not None and self.wanted.reference == "previous":
            reference = adapters.reference_of(self.policy, "start")
        source = assembly.offline_source(self.policy, rows, self.algorithm, options, settings, 0.0)
        result = assembly.fit(
            self.policy,
            self.algorithm,
            options,
            source,
            settings,
            place / "training",
            reference=reference,
            starts_at_reference=index == 0 or self.wanted.reference == "previous",
        )
        self._remember(source, result)

    def _preferences(self, index: int, folder: Path) -> None:
        """What people said, written down once: votes that come later belong to a later round. Nothing if they compared
        nothing."""
        if (folder / "manifest.json").is_file():
            return
        first = 0 if self.wanted.learn_from == "all" else index
        if rows := awaited.preferences(self.store, [self.name(i) for i in range(first, index + 1)]):
            parquet.write(folder, rows)
