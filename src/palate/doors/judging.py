"""How a tuned model is judged: looked at on the way, compared with its base in the end, and what of it is written.

Judging is of one kind everywhere: fixed prompts, fixed noise, the recipe's scorers.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from palate import plugins, views
from palate.config import ConfigError, EvaluationSettings
from palate.doors import judges, lookup
from palate.doors.asked import IMPLICIT, WORLD
from palate.doors.guarding import Guarding
from palate.evaluation import card, comparison, grids, report, verdict
from palate.evaluation import compare as comparing
from palate.evaluation.win_rate import WinRate
from palate.models import rates
from palate.models.diffusion import DiffusionPolicy
from palate.prompts import rows_by_prompt
from palate.training import adapters
from palate.training.logs import Progress


def sampler_of(policy: DiffusionPolicy, model: str, wanted: Any) -> dict[str, Any]:
    """The sampling settings of a recipe's section, filled up with the model's own."""
    return lookup.settings_of(
        model,
        policy,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        eta=wanted.eta,
    )


class Watch:
    """Fixed prompts from fixed noise, scored, and their grid in samples/; a few, since it is done often.

    note: is told what takes long. weights: of the scores in the reward, None for 1 each. rewards: scorers that are
    trained on; where the guard may stop the run, the others are its judges held out, and the best weights by them are
    kept (`keeps_best`). looks: how many there will be.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        model: str,
        wanted: EvaluationSettings,
        folder: Path,
        beside: Path | None = None,
        note: Callable[[str], None] = lambda message: None,
        weights: Mapping[str, float] | None = None,
        rewards: Sequence[str] = (),
        looks: int = 11,
    ) -> None:
        self._policy, self._folder, self._note, self._weights = policy, folder, note, weights
        self._prompts, self._scorer = judged_on(wanted, beside)[:32], _judges(wanted, rewards)
        self.keeps_best = wanted.guard == "stop"
        self._how: dict[str, Any] = {
            "n": 2 if self.keeps_best else 1,  # diversity is of two candidates of a prompt
            "seed": wanted.seed,
            "settings": sampler_of(policy, model, wanted) | {"batch_size": wanted.batch_size},
        }
        self._guard = Guarding(folder / "evaluations", trained_on_by(self._scorer, rewards), looks)

    def __call__(self, step: int) -> Mapping[str, float]:
        self._note(f"evaluating: {len(self._prompts) * self._how['n']} samples")
        arm = comparing.run_arm(self._policy, self._prompts, self._scorer, **self._how)
        (self._folder / "samples").mkdir(exist_ok=True)
        shown = [grids.still(medium) for medium in arm.media[:: self._how["n"]]]
        grids.grid(shown, columns=8, scale=2).save(self._folder / "samples" / f"step_{step:06d}.png")
        scores = {"reward": arm.reward(self._weights or dict.fromkeys(arm.scores, 1.0)), **arm.scores}
        known = {name: values[np.isfinite(values)] for name, values in scores.items()}
        found = {f"evaluation/{name}": float(values.mean()) for name, values in known.items() if len(values)}
        return found | (self._guard.look(step, arm) if self.keeps_best else {})


watch = Watch


def trained_on_by(scorer: lookup.Weighted, rewards: Sequence[str]) -> Callable[[str], bool]:
    """Whether a score of a scorer that has been asked is one of these scorers', which training rewards."""
    named = [lookup.split_scorer(name) for name in rewards]
    return lambda score: among(scorer.origins[score], named)


def among(origin: tuple[str, str], specified: Sequence[tuple[str, str]]) -> bool:
    """Whether (scorer, dimension) is one of these scorers', or the dimension of one that they name, however written."""
    return any(part in ("", origin[1]) and identity(origin[0]) == identity(whole) for whole, part in specified)


_HOW = ("device", "dtype", "frames")  # options that leave a judge the one it is


def identity(scorer: str) -> tuple[str, ...]:
    """By what a scorer is known however its name is written: the plugin, what it is made of, by default if it does not
    say, and the options that make another judge of it."""
    if scorer.startswith((IMPLICIT, WORLD)):
        kind, _, place = scorer.partition(":")
        return kind, _resolved(place) if scorer.startswith(IMPLICIT) else place
    read = judges.parse(scorer)
    options = {name: value for name, value in read.options.items() if name not in _HOW}
    try:
        plugin = plugins.find("scorers", read.plugin)
    except plugins.PluginError:  # what a model was trained on need not be installed here
        return (scorer,)
    made_by = getattr(plugin, "load", None)
    takes = list(inspect.signature(made_by).parameters.values()) if made_by else []
    place = read.where
    if takes:
        usual = takes[0].default
        place = options.pop(takes[0].name, place) or (usual if isinstance(usual, str) else "")
    known_by = getattr(plugin, "canonical", _resolved)
    return read.plugin, known_by(place), *sorted(f"{name}:{value}" for name, value in options.items())


def _resolved(place: str) -> str:
    return str(Path(place).resolve()) if place and Path(place).exists() else place


def check(wanted: EvaluationSettings, beside: Path | None, rewards: Sequence[str]) -> None:
    """Raises ConfigError, before anything is sampled, for judges or prompts that cannot be judged by or on."""
    _judges(wanted, rewards).check(judged_on(wanted, beside))


def _judges(wanted: EvaluationSettings, rewards: Sequence[str]) -> lookup.Weighted:
    scorer = lookup.weighted(wanted.scorers)
    check_alone(scorer)
    if wanted.guard == "stop" and not _held_out(wanted.scorers, rewards):
        raise ConfigError(
            f"evaluation.guard: stop needs a judge held out, and all of {', '.join(wanted.scorers)} is trained on: add "
            "another to evaluation.scorers"
        )
    return scorer


def _held_out(scorers: Iterable[str], rewards: Sequence[str]) -> bool:
    """Whether a score is left that training does not reward, as far as scorers tell what they give."""
    named = [lookup.split_scorer(name) for name in rewards]
    asked = [lookup.split_scorer(name) for name in scorers]
    given = {
        (name, one)
        for name, part in asked
        for one in ([part] if part else getattr(lookup.find_scorer(name), "dimensions", ()) or [""])
    }
    return any(not among(origin, named) for origin in given)


def check_alone(scorer: lookup.Weighted) -> None:
    """Raises ConfigError for judges whose scores of one model cannot be held against those of another."""
    if scorer.groupwise:
        raise ConfigError(
            f"{scorer.groupwise[0]} scores candidates of one call against each other, and here each model is scored by "
            "itself: use it in `palate dataset synthesize`, in data.relabel or to score a project, and another to judge"
        )


def whole_prompts(prompts: Sequence[str], most: int) -> Iterator[list[int]]:
    """Rows of one call after the other for judges that compare candidates: no prompt is in two calls.

    A call holds so many rows at most, or, where a prompt has more, that prompt alone.
    """
    groups = rows_by_prompt(prompts)
    rows: list[int] = []
    for group in groups.values():
        if rows and len(rows) + len(group) > most:
            yield rows
            rows = []
        rows = [*rows, *group]
    if rows:
        yield rows


def tally_of(scorer: Any) -> dict[str, int]:
    """What a judge of pairs has counted of itself so far; nothing of a scorer that does not."""
    tally = getattr(scorer, "tally", None)
    return {} if tally is None else asdict(tally)


def tally_since(scorer: Any, before: Mapping[str, int]) -> dict[str, int]:
    """What it has counted since `tally_of` said that."""
    return {what: n - before[what] for what, n in tally_of(scorer).items()}


def tell_tally(tally: Mapping[str, Any]) -> None:
    """Prints how often the order, and not the candidates, decided; nothing where no pair was judged."""
    if not tally.get("pairs"):
        return
    said = (
        f"  of {tally['pairs']:,} pairs shown both ways round {tally['swayed']:,} were decided by the order alone, "
        f"{tally['silent']:,} by no answer"
    )
    if tally["of"]:
        said += f"; {tally['first'] / tally['of']:.1%} of {tally['of']:,} answers were for the candidate shown first"
    print(said)


def judge(
    policy: DiffusionPolicy,
    model: str,
    wanted: EvaluationSettings,
    folder: Path,
    trained_on: Sequence[str],
    beside: Path | None = None,
    adapter: str | None = None,
    rewards: Sequence[str] = (),
    **how: Any,
) -> dict[str, Any]:
    """The tuned policy against the model it began from, each pair from one noise, as `result.json` holds it.

    trained_on: the training's prompts; how many of those judged on are among them is told with the verdict.
    beside: the folder of the recipe, where a file of prompts may lie. adapter: a LoRA that is part of the base.
    rewards: scorers that were trained on; the guard looks whether the others fell. how: as in `summary`.
    """
    prompts = judged_on(wanted, beside)
    scorer = lookup.weighted(wanted.scorers)
    check_alone(scorer)
    settings = sampler_of(policy, model, wanted) | {"batch_size": wanted.batch_size}
    with contextlib.closing(Progress(2 * len(prompts) * wanted.n, 0, what="sample")) as bar:
        run_arm = partial(comparing.run_arm, n=wanted.n, seed=wanted.seed, settings=settings, progress=bar.advance)
        tuned = run_arm(policy, prompts, scorer)
        with base_of(policy, model, adapter) as untouched:
            base = run_arm(untouched, prompts, scorer)
    known = {"prompts_trained_on": len(views.overlap(prompts, trained_on))}
    roles = {name: verdict.REWARD for name in base.scores if trained_on_by(scorer, rewards)(name)}
    (beside_it,) = verdict.beside(["base", "tuned"], [base, tuned], {"tuned": roles})["against_first"]
    return summary(base, tuned, folder, **how) | known | {"against_base": beside_it}


def judged_on(wanted: EvaluationSettings, beside: Path | None) -> list[str]:
    return lookup.read_prompts(wanted.prompts, beside)[: wanted.max_prompts]


@contextlib.contextmanager
def base_of(policy: DiffusionPolicy, model: str, adapter: str | None = None) -> Iterator[DiffusionPolicy]:
    """The model as it was before training: the adapter off, or, fully fine-tuned, loaded once more."""
    if adapters.has_adapter(policy):
        with adapters.without_adapter(policy):
            yield policy
    else:
        how = {
            "device": policy.device,
            "dtype": policy.pipeline.dtype,
            "call": {**policy.call, rates.ASKED: policy.frame_rate},
        }
        yield lookup.load_base(model, adapter, fuse=True, **how)


def summary(
    base: comparing.Arm,
    tuned: comparing.Arm,
    folder: Path,
    *,
    weights: Mapping[str, float] | None = None,
    by: str = "reward",
    show: int = 16,
    apart: bool = False,
) -> dict[str, Any]:
    """The verdict as `result.json` holds it: win rate of tuned over base with its interval, and every dimension.

    weights: of the scores in the reward, None for 1 each. by: who judges so, in the report. show: pairs of samples that
    are written to the folder's samples/, as they come: a page that chose its pictures could show anything.
    apart: nothing is added up, each score has its own verdict; of several none is the one win rate.
    """
    judged = comparing.judge(base, tuned, None if apart else weights or dict.fromkeys(base.scores, 1.0))
    wins = {by: judged.verdict} if judged.verdict else {name: found.wins for name, found in judged.dimensions.items()}
    return {
        **(headline(next(iter(wins.values()))) if len(wins) == 1 else {}),
        "base": {name: found.b.mean for name, found in judged.dimensions.items()},
        "tuned": {name: found.a.mean for name, found in judged.dimensions.items()},
        "wins": {judge: asdict(verdict) for judge, verdict in wins.items()},
        "dimensions": {name: asdict(found) for name, found in judged.dimensions.items()},
        "pairs": grids.write_pairs(folder / "samples", base.prompts[:show], base.media[:show], tuned.media[:show]),
    }


def headline(verdict: WinRate) -> dict[str, Any]:
    """The one verdict of a result, where there is but one."""
    return {
        "win_rate": verdict.rate,
        "win_rate_ci95": list(verdict.ci95),
        "ties": verdict.ties,
        "pairs_judged": verdict.n,
        "prompts_judged": verdict.n_prompts,
    }


def publish(folder: Path, facts: Mapping[str, Any]) -> None:
    """result.json, the card of a run's weights, and the report of all that the folder holds."""
    write_json(folder / "result.json", facts)
    _tell(folder)


def mend(folder: Path) -> None:
    """The card and report of a finished folder that was stopped between its result and its report."""
    if not (folder / "report.html").is_file():
        _tell(folder)


def _tell(folder: Path) -> None:
    for weights in (folder / "adapter", folder / "model"):
        if weights.is_dir() and (folder / "config.yaml").is_file():
            card.write(folder, weights)
    write_report(folder, folder / "report.html")


def write_report(folder: Path, path: Path) -> None:
    """The page of a run's folder, or of a comparison's."""
    held = folder / "result.json"
    if held.is_file() and comparison.is_comparison(report.read_object(held)):
        comparison.write(folder, path)
    else:
        report.write(report.from_run(folder), path)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(json.dumps(_finite(facts), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON has no word for: an interval of a single prompt is endless."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
