"""`palate rounds`: draw, ask, learn, and again (D3PO's loop with people, arXiv:2311.13231 section 5; for any method).

    runs/taste/                  the run: config.yaml, metrics.jsonl (a row a round), samples/, adapter/, report.html
      rounds/000/preferences/    what was said until then, as preference data
      rounds/000/training/       an ordinary run's folder: its checkpoints, metrics, adapter
      rounds/000/round.json      the round is over

An offline method trains on the votes, round by round, each from where the last one ended. An online method (D3PO, DDPO)
trains on the trajectories of what was drawn, with people's votes as its reward. Stopped at any point, the same command
goes on: drawings are kept, votes are in the project, training has its checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from palate import config, durable, plugins, randomness, sampling
from palate.config import AlgorithmSettings, ConfigError, RolloutSettings, RoundsRecipe
from palate.datasets import parquet
from palate.doors import asking, assembly, awaited, blind, encoding, judging, lineage, lookup, matching, trajectories
from palate.doors.run import local_places
from palate.evaluation import report
from palate.models.contracts import Media, Rollout
from palate.store import Store
from palate.training import adapters
from palate.training.export import export
from palate.training.logs import Progress
from palate.training.offline import Offline
from palate.training.online import Online
from palate.training.sources import PreferenceRow
from palate.training.trainer import Result

WEIGHTS = "weights.safetensors"  # of a round: the policy when it was over, to the last bit
OVER = "round.json"


def rounds(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """All rounds of a recipe, the comparison with the base, and the report. Returns the run's folder.

    The same command again goes on where it was stopped; a finished run says so. Raises ConfigError for a folder that
    was begun with another recipe, StorageError for one in use.
    """
    recipe = config.load(path, overrides, RoundsRecipe)
    algorithm = plugins.find("algorithms", recipe.algorithm.name)
    options = config.section(recipe.algorithm.options, algorithm.Config, "algorithm", path)
    resolved = {"name": recipe.algorithm.name, **options.model_dump(mode="json")}
    recipe = recipe.model_copy(update={"algorithm": AlgorithmSettings.model_validate(resolved)})
    folder = Path(recipe.output)
    with durable.locked(folder):
        if _finished(folder, recipe):
            judging.mend(folder)
            print(f"{folder} is finished; its report is {folder / 'report.html'}")
            return folder
        _check_kinds(recipe)
        config.dump(recipe, folder / "config.yaml")
        with Store.open(Path(recipe.rounds.project), create=True) as store, _asker(recipe, store) as ask:
            run = _Run(recipe, algorithm, options, folder, Path(path).parent, store, ask)
            run.offline() if algorithm.NEEDS.source == "offline" else run.online()
            run.conclude()
    return folder


def _finished(folder: Path, recipe: RoundsRecipe) -> bool:
    held = folder / "config.yaml"
    if not held.is_file() or not ((folder / "rounds").is_dir() or (folder / "result.json").is_file()):
        return False
    if changes := config.difference(config.load(held, (), RoundsRecipe), recipe):
        raise ConfigError(f"{folder} was begun with another recipe: {'; '.join(changes)}; choose another output")
    return (folder / "result.json").is_file()


def _check_kinds(recipe: RoundsRecipe) -> None:
    """Raises ConfigError for a scorer that judges other media than the model makes: before either is loaded."""
    scorers = [*(recipe.rounds.scorers or ()), *(recipe.evaluation.scorers if recipe.evaluation else ())]
    matching.check_models(scorers, [recipe.model.name])


@contextlib.contextmanager
def _asker(recipe: RoundsRecipe, store: Store) -> Iterator[asking.Asker]:
    """Who votes. The studio is open as long as the block, also while the model trains."""
    wanted = recipe.rounds
    if wanted.people == "studio":
        from palate.doors.labelling import open_studio

        with open_studio(store, port=wanted.port) as studio:
            yield studio.wait
        return
    assert wanted.scorers
    scorer = lookup.weighted(wanted.scorers)
    if wanted.people == "scorers":
        yield asking.Judged(scorer)
    else:
        yield asking.Simulated(scorer, wanted.temperature, recipe.training.seed)


class _Run:
    """The rounds of one recipe in a folder that is theirs alone."""

    def __init__(
        self,
        recipe: RoundsRecipe,
        algorithm: Any,
        options: Any,
        folder: Path,
        beside: Path,
        store: Store,
        ask: asking.Asker,
    ) -> None:
        self.recipe, self.algorithm, self.options, self.folder, self.beside = recipe, algorithm, options, folder, beside
        self.store, self.ask, self.wanted, self.seed = store, ask, recipe.rounds, recipe.training.seed
        self.prompts = list(dict.fromkeys(lookup.read_prompts(self.wanted.prompts, beside)))
        if self.wanted.prompts_per_round > len(self.prompts) - self.wanted.verdict:
            kept = f", {self.wanted.verdict} of them kept for the verdict" if self.wanted.verdict else ""
            raise ConfigError(
                f"rounds.prompts_per_round is {self.wanted.prompts_per_round} but there are {len(self.prompts)} "
                f"different prompts{kept}: lower it, and raise k or pairs for more votes"
            )
        self._order = sorted(self.prompts, key=lambda prompt: randomness.key(self.seed, "round's prompt", prompt))
        if self.wanted.scorers:
            lookup.weighted(self.wanted.scorers).check(self.prompts)
        self.taught_by = lineage.of_recipe(recipe.model_dump(), beside)
        if recipe.evaluation:
            judging.check(recipe.evaluation, beside, self.taught_by)
        self.policy = lookup.load_policy(recipe.model, self.seed)
        self.sampler = judging.sampler_of(self.policy, recipe.model.name, self.wanted)
        self.learnt: dict[str, Any] = {}  # of the last training: what it was on, and its warnings

    @cached_property
    def run(self) -> str:
        """The run's name in the project, which other runs, of other folders of that name, may use, too."""
        path = self.folder / "rounds" / "name.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            judging.write_json(path, {"name": f"{self.folder.resolve().name}-{secrets.token_hex(4)}"})
        return str(json.loads(path.read_text(encoding="utf-8"))["name"])

    def name(self, index: int) -> str:
        """The batch of a round's comparisons in the project."""
        return f"{self.run}/{index:03d}"

    def asked_in(self, index: int) -> list[str]:
        """A round's prompts: the next of their keyed order, which begins again when it is used up."""
        order = self._order[self.wanted.verdict :]
        start = index * self.wanted.prompts_per_round
        return [order[i % len(order)] for i in range(start, start + self.wanted.prompts_per_round)]

    # --- offline methods: votes are preference data -------------------------------------------------------------------

    def offline(self) -> None:
        """Each round: draw with the policy as it is, ask, train on what was said so far."""
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
            self.ask(self.store, self.name(index))
            facts = self._learn(index, place)
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
        say(f"round {index + 1} of {self.wanted.n}: drawing {len(prompts)} samples")
        seed = randomness.key(self.seed, "round", index)
        how = self.sampler | {"batch_size": self.wanted.batch_size}
        with contextlib.closing(Progress(len(prompts), 0, what="sample")) as bar:
            media = sampling.sample(self.policy, prompts, ids, seed=seed, progress=bar.advance, **how)
        shown = self._show(index, prompts, media)
        place.mkdir(parents=True, exist_ok=True)
        judging.write_json(drawn, {"samples": shown})

    def _show(self, index: int, prompts: Sequence[str], media: Sequence[Media]) -> list[str]:
        """Adds a round's samples to the project, to be compared; their ids."""
        source = f"{self.recipe.model.name}, {self.folder.resolve().name} before round {index + 1}"
        ids = asking.add(self.store, prompts, media, source, self.seed)
        asking.show(self.store, prompts, ids, self.name(index), wanted=self.wanted.votes, pairs=self.wanted.pairs)
        return ids

    def _learn(self, index: int, place: Path) -> dict[str, float]:
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

    def _remember(self, source: Offline | Online, result: Result) -> None:
        self.learnt = {"trained_on": assembly.trained_on(source), "warnings": list(result.warnings)}

    def _preferences(self, index: int, folder: Path) -> None:
        """What people said, written down once: votes that come later belong to a later round. Nothing if they compared
        nothing."""
        if (folder / "manifest.json").is_file():
            return
        first = 0 if self.wanted.learn_from == "all" else index
        if rows := awaited.preferences(self.store, [self.name(i) for i in range(first, index + 1)]):
            parquet.write(folder, rows)

    # --- online methods: votes are the reward of the samples' own trajectories ----------------------------------------

    def online(self) -> None:
        """One training whose samples people compare: the trainer's rounds are the rounds."""
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
        self.ask(self.store, self.name(index))
        return {"people": asking.win_shares(self.store, self.name(index), ids)}

    def _kept(self, draw: Callable[..., Rollout], *args: Any, **how: Any) -> Rollout:
        """A round's trajectories, drawn once: what people were shown is what is trained on, whatever stops the run."""
        index = self.source.round
        return trajectories.kept(
            self.folder / "rounds", index, self.policy, partial(self._said, index, draw), *args, **how
        )

    def _said(self, index: int, draw: Callable[..., Rollout], *args: Any, **how: Any) -> Rollout:
        say(f"round {index + 1} of {self.wanted.n}: drawing {len(args[0])} samples")
        return draw(*args, **how)

    # --- judging ------------------------------------------------------------------------------------------------------

    def _evaluation(self) -> Callable[[int], Mapping[str, float]]:
        wanted = self.recipe.evaluation
        if wanted is None:
            return lambda step: {}
        return judging.watch(
            self.policy, self.recipe.model.name, wanted, self.folder, self.beside, say, rewards=self.taught_by
        )

    def _note(self, index: int, facts: Mapping[str, float]) -> None:
        """A row of the run's own metrics, whose steps are rounds."""
        path = self.folder / "metrics.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [row for row in rows if json.loads(row)["step"] < index]
        aside = path.with_name("metrics.jsonl.partial")
        aside.write_text("".join(f"{row}\n" for row in [*kept, json.dumps({"step": index, **facts})]), encoding="utf-8")
        aside.replace(path)

    def conclude(self) -> None:
        """The adapter of the whole run, result.json, and the report."""
        export(self.policy, self.folder)
        offline = self.algorithm.NEEDS.source == "offline"
        asked = [prompt for index in range(self.wanted.n) for prompt in self.asked_in(index)]
        trained_on = asked if offline else self._order[self.wanted.verdict :]
        counted = [vote for index in range(self.wanted.n) for vote, _ in awaited.votes_of(self.store, self.name(index))]
        facts: dict[str, Any] = {
            "title": f"{self.recipe.algorithm.name} on {self.recipe.model.name}, with people",
            "method": f"{self.recipe.algorithm.name}, {self.wanted.n} rounds",
            "seed": self.seed,
            "rounds": self.wanted.n,
            "votes": len(counted),
            "people": _people(len({vote.source for vote in counted})),
            **self._learnt_last(),
            "local": local_places(self.recipe, self.beside),
            "versions": report.versions(),
        }
        if self.recipe.evaluation:
            model = self.recipe.model
            facts |= judging.judge(
                self.policy,
                model.name,
                self.recipe.evaluation,
                self.folder,
                trained_on,
                self.beside,
                model.adapter,
                rewards=self.taught_by,
            )
        if self.wanted.verdict:
            said = blind.verdict(
                self.policy,
                self.recipe.model,
                self.store,
                self.ask,
                self._order[: self.wanted.verdict],
                self.run,
                self.folder,
                seed=self.seed,
                wanted=self.wanted.votes,
                sampler=self.sampler | {"batch_size": self.wanted.batch_size},
            )
            facts |= said | {"wins": said.get("wins", {}) | facts.get("wins", {})}
        judging.publish(self.folder, facts)
        say(f"done: {self.folder / 'report.html'}")

    def _learnt_last(self) -> dict[str, Any]:
        """What the weights were trained on: of the last round that learnt, also if that was before this start."""
        for index in reversed(range(self.wanted.n)):
            path = self.folder / "rounds" / f"{index:03d}" / OVER
            told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else self.learnt
            if "trained_on" in told:
                return {name: told[name] for name in ("trained_on", "warnings")}
        return {"warnings": []}


def _people(n: int) -> str:
    return "1 person" if n == 1 else f"{n} people"


def say(message: str) -> None:
    print(message, flush=True)
