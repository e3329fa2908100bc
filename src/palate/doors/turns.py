"""What all rounds share: whom they ask about what, what is noted of each, and how a run of them is concluded."""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from palate import randomness
from palate.config import ConfigError, RoundsRecipe
from palate.doors import asking, assembly, awaited, blind, judging, lineage, lookup
from palate.doors.run import local_places
from palate.evaluation import report
from palate.models.contracts import Media
from palate.store import Store
from palate.training.export import export
from palate.training.offline import Offline
from palate.training.online import Online
from palate.training.trainer import Result

OVER = "round.json"
COMING = "come by themselves. Keep this page open."
FIRST = f"The pictures are being prepared; they {COMING}"
Tell = Callable[[str], object]  # what raters read who have nothing to judge; nothing where no more is to come


class Turns(ABC):
    """The rounds of one recipe in a folder that is theirs alone; how they learn is a subclass's."""

    def __init__(
        self,
        recipe: RoundsRecipe,
        algorithm: Any,
        options: Any,
        folder: Path,
        beside: Path,
        store: Store,
        ask: asking.Asker,
        tell: Tell,
    ) -> None:
        self.recipe, self.algorithm, self.options, self.folder, self.beside = recipe, algorithm, options, folder, beside
        self.store, self.ask, self.tell = store, ask, tell
        self.wanted, self.seed = recipe.rounds, recipe.training.seed
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

    @abstractmethod
    def learn(self) -> None:
        """All rounds, from where they were left."""

    def _show(self, index: int, prompts: Sequence[str], media: Sequence[Media]) -> list[str]:
        """Adds a round's samples to the project, to be compared; their ids."""
        source = f"{self.recipe.model.name}, {self.folder.resolve().name} before round {index + 1}"
        ids = asking.add(self.store, prompts, media, source, self.seed)
        asking.show(self.store, prompts, ids, self.name(index), wanted=self.wanted.votes, pairs=self.wanted.pairs)
        return ids

    def _tell_draws(self, index: int, n: int) -> None:
        """Says at the terminal and on the raters' pages that a round's samples are being drawn."""
        say(f"round {index + 1} of {self.wanted.n}: drawing {n} samples")
        self.tell(f"Round {index + 1} of {self.wanted.n} is being drawn; the pictures {COMING}")

    def _ask(self, index: int) -> None:
        """Waits for a round's votes. Its raters read what comes next, while others judge and while it is learnt."""
        this, after = f"Round {index + 1} of {self.wanted.n}", f"Then the next pictures {COMING}"
        last = index + 1 == self.wanted.n and not self.wanted.verdict
        self.tell("" if last else f"{this}: when everybody has answered, the model learns from it. {after}")
        self.ask(self.store, self.name(index))
        self.tell("" if last else f"{this} is being learnt, which takes a while. {after}")

    def _ask_last(self, store: Store, batch: str) -> None:
        """Waits for the votes of the verdict, after which nothing more is to come."""
        self.tell("")
        self.ask(store, batch)

    def _remember(self, source: Offline | Online, result: Result) -> None:
        self.learnt = {"trained_on": assembly.trained_on(source), "warnings": list(result.warnings)}

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
            self.tell(f"The last pictures are being drawn; they {COMING}")
            said = blind.verdict(
                self.policy,
                self.recipe.model,
                self.store,
                self._ask_last,
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
