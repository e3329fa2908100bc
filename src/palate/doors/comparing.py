"""`palate compare`: two or more models on the same prompts from the same noise, judged by scorers.

What is drawn and scored is kept in the folder as it comes (`palate.doors.drawn`): stopped at any point, the same
command goes on.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from palate import durable
from palate.config import ConfigError
from palate.doors import drawing, drawn, fingerprints, judging, lineage, lookup, matching
from palate.evaluation import compare as comparing
from palate.evaluation import report, verdict, win_rate
from palate.prompts import Prompt

COMPARISON = "comparison.json"  # what a comparison's folder was made of
DRAWN = "drawn"  # what the models made, and its scores
SHOWN = 24  # prompts that the page shows, the first ones: a page that chose its pictures could show anything


def compare(
    models: Sequence[str],
    *,
    prompts: str | Path,
    scorers: Sequence[str],
    held_out: Sequence[str] = (),
    n: int,
    out: Path,
    seed: int,
    call: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    **asked: Any,
) -> Path:
    """Each model against each other, the first the one to beat: result.json and report.html in out. Again: what is
    missing, or printed.

    scorers: names, whose scores are judged one by one, or `name=weight`, whose weighted sum is. held_out: further
    scorers, kept apart: never added up. call, asked: as of `drawing.ordered`. Raises ConfigError for fewer than two
    models, one twice, models of several kinds of media or judges of others, a judge given twice, or a folder that holds
    another comparison (of other weights, too), or any other result.
    """
    if len(models) < 2 or (len(set(models)) < len(models) and len(models) > 2):
        raise ConfigError(f"palate compare takes two models or more, each once; got {', '.join(models)}")
    rows = lookup.prompt_rows(prompts)
    texts = [row.text for row in rows]
    made_of = made_by(models, texts, n=n, seed=seed, call=call or {}, asked=asked)
    made_of |= {"scorers": list(scorers), "held_out": list(held_out)}
    with durable.locked(out):
        if compared(out, made_of):
            print(f"{out} is finished")
        else:
            names = [*_weights(scorers)[0], *_weights(held_out)[0]]
            kind = matching.check_models(names, models)
            judges = Judges(scorers, held_out)
            judges.scorer.check(texts)
            drawing.same_folder(out / COMPARISON, made_of, "comparisons")
            plan = drawn.Plan(models, texts, n, seed, names, kind, call or {}, asked, batch_size)
            arms, settings = drawn.arms(plan, judges.scorer, out / DRAWN)
            facts = told_of(models, prompts, len(texts), seed, judges.told) | {"sampling": settings}
            judging.publish(out, facts | judged(models, arms, rows, n, judges, out))
        tell(out)
    return out


def made_by(
    models: Sequence[str], texts: Sequence[str], *, n: int, seed: int, call: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """By what a comparison is known again: its models, their weights, prompts, seeds, and the sampler's settings."""
    known: dict[str, Any] = {"models": list(models)}
    known |= {"weights": {model: fingerprints.of_model(model) for model in models}}
    known |= {"seed": seed, "n": n, "prompts_sha256": drawing.digest(texts), **drawing.sampler(**asked)}
    return known | ({"call": dict(call)} if call else {})


def told_of(models: Sequence[str], prompts: str | Path, number: int, seed: int, judges: str) -> dict[str, Any]:
    """What result.json says first of a comparison."""
    return {
        "title": f"{models[-1]} against {models[0]}" if len(models) == 2 else f"{len(models)} models compared",
        "seed": seed,
        "data": {"models": ", ".join(models), "prompts": f"{prompts} ({number})", "judged by": judges},
        "versions": report.versions(),
    }


class Judges:
    """The scorers of a comparison and what they are to the models. Raises ConfigError for what cannot be."""

    def __init__(self, scorers: Sequence[str], held_out: Sequence[str]) -> None:
        weights, self.added_up = _weights(scorers)
        kept, weighed = _weights(held_out)
        if weighed:
            raise ConfigError(f"--held-out-scorer {' '.join(held_out)}: judges held out are not added up; no weights")
        self._held_out = [lookup.split_scorer(name) for name in kept]
        if twice := sorted(name for name in weights if judging.among(lookup.split_scorer(name), self._held_out)):
            raise ConfigError(f"{twice[0]} is given as --scorer and as --held-out-scorer: choose one")
        self.scorer = lookup.weighted(weights | kept)
        judging.check_alone(self.scorer)
        summed = " + ".join(f"{weight:g} x {name}" for name, weight in weights.items())
        apart = ", ".join(kept)
        self.told = (summed if self.added_up else ", ".join(weights)) + (f"; held out: {apart}" if apart else "")

    def held_out(self, score: str) -> bool:
        """Whether a score is of a judge held out, once the scorer has been asked."""
        return judging.among(self.scorer.origins[score], self._held_out)

    def of_training(self, score: str, rewards: Sequence[tuple[str, str]]) -> bool:
        return judging.among(self.scorer.origins[score], rewards)


def judged(
    models: Sequence[str], arms: Sequence[comparing.Arm], rows: Sequence[Prompt], n: int, judges: Judges, out: Path
) -> dict[str, Any]:
    """All that result.json says of the models."""
    names = list(arms[0].scores)
    taught = {model: [lookup.split_scorer(name) for name in lineage.rewards(model)] for model in models}
    roles = {
        model: {name: verdict.REWARD for name in names if judges.of_training(name, taught[model])} for model in models
    }
    rewards = {name for own in roles.values() for name in own}
    kinds = {name: verdict.HELD_OUT for name in names if judges.held_out(name)} | dict.fromkeys(rewards, verdict.REWARD)
    facts: dict[str, Any] = {"models": list(models), "warnings": _warnings(models, roles, judges)}
    apart = [name for name in names if judges.held_out(name)]
    weights = {name: 1.0 for name in names if name not in apart}
    if judges.added_up:
        for arm in arms:
            arm.scores["reward"] = arm.reward(weights)
    seen = ["reward", *apart] if judges.added_up else names
    categories = [row.category for row in rows for _ in range(n)]
    outcomes = verdict.by_scores(arms, seen, categories)
    facts |= verdict.numbers(models, outcomes, kinds) | verdict.beside(models, arms, roles)
    facts["judges"] = [{"name": name, "role": kinds.get(name, verdict.JUDGE)} for name in seen]
    facts["means"] = {name: [_mean(arm, name) for arm in arms] for name in seen}
    facts["warnings"] += [
        f"{name} could judge nothing that {model} made"
        for name, means in facts["means"].items()
        for model, found in zip(models, means, strict=True)
        if found is None
    ]
    facts["shown"] = _shown(arms, rows, n, out / "samples")
    return facts | (_of_two(arms, weights, judges.added_up, facts) if len(models) == 2 else {})


def _mean(arm: comparing.Arm, score: str) -> dict[str, Any] | None:
    """None where nothing is known."""
    values = arm.scores[score]
    return None if np.isnan(values).all() else asdict(win_rate.mean(values, arm.prompts))


def _of_two(
    arms: Sequence[comparing.Arm], weights: Mapping[str, float], added_up: bool, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The same for two models in the words of a training run's result.json."""
    base, tuned = ({k: v for k, v in arm.scores.items() if k != "reward" or not added_up} for arm in arms)
    pair = [comparing.Arm(arm.prompts, arm.media, own) for arm, own in zip(arms, (base, tuned), strict=True)]
    found = comparing.judge(pair[0], pair[1], weights if added_up else None)
    keys = win_rate.WinRate.__dataclass_fields__
    wins = {v["judge"]: {key: v[key] for key in keys} for v in facts["verdicts"]}
    return {
        **(judging.headline(win_rate.WinRate(**next(iter(wins.values())))) if len(wins) == 1 else {}),
        "base": {name: entry.b.mean for name, entry in found.dimensions.items()},
        "tuned": {name: entry.a.mean for name, entry in found.dimensions.items()},
        "wins": wins,
        "dimensions": {name: asdict(entry) for name, entry in found.dimensions.items()},
        "pairs": [{"prompt": s["prompt"], "base": s["files"][0], "tuned": s["files"][1]} for s in facts["shown"]],
    }


def _warnings(models: Sequence[str], roles: Mapping[str, Mapping[str, str]], judges: Judges) -> list[str]:
    said = []
    for model in models:
        trained = [name for name in roles[model] if judges.held_out(name)]
        if trained:
            said.append(f"{model} was trained on {', '.join(trained)}, which is therefore no judge held out")
        elif roles[model]:
            said.append(f"{model} was trained on {', '.join(roles[model])}: that it wins by them shows little else")
    return said


def _shown(arms: Sequence[comparing.Arm], rows: Sequence[Prompt], n: int, folder: Path) -> list[dict[str, Any]]:
    """Keeps the first candidate of the first prompts where the page looks, and says which file is what."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("base", "tuned") if len(arms) == 2 else tuple(f"model_{i}" for i in range(len(arms)))
    shown = []
    for number, row in enumerate(rows[:SHOWN]):
        held = [drawn.file_of(arm, number * n) for arm in arms]
        files = [f"{name}_{number:03d}{path.suffix}" for name, path in zip(names, held, strict=True)]
        for file, path in zip(files, held, strict=True):
            shutil.copyfile(path, folder / file)
        shown.append({"prompt": row.text, "category": row.category, "files": files})
    return shown


def _weights(scorers: Sequence[str]) -> tuple[dict[str, float], bool]:
    """Weights by scorer, 1 each where none is given, and whether they were given. Raises ConfigError."""
    weights: dict[str, float] = {}
    for text in scorers:
        name, equals, number = text.partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise ConfigError(f"--scorer {text}: {number!r} is not a number")
        if name in weights:
            raise ConfigError(f"--scorer {name} is given twice")
        weights[name] = weight
    given = {"=" in text for text in scorers}
    if len(given) > 1:
        raise ConfigError(f"--scorer {' '.join(scorers)}: give each scorer a weight or none")
    return weights, given == {True}


def compared(out: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether the folder holds this comparison's result. Raises ConfigError if it holds another, or a run's."""
    held = out / COMPARISON
    if not (out / "result.json").is_file():
        return False
    if not held.is_file():
        raise ConfigError(f"{out} holds another result; choose another --out")
    drawing.same_folder(held, made_of, "comparisons")
    return True


# --- on the terminal --------------------------------------------------------------------------------------------------


def tell(out: Path) -> None:
    """The verdicts of a comparison as a table, what speaks against them, and where its page is."""
    facts = json.loads((out / "result.json").read_text(encoding="utf-8"))
    several = len(facts["models"]) > 2
    head = [*(["who", "against"] if several else []), "judge", "wins", "95% interval", "ties", "without", "p", "pairs"]
    rows = [[*([v["b"], v["a"]] if several else []), *_cells(v)] for v in facts["verdicts"]]
    if not several:
        print(f"{facts['models'][1]} against {facts['models'][0]}, judged by {facts['data']['judged by']}")
    _print_table([head, *rows])
    for entry in facts.get("against_first", ()):
        if entry["guard"] and entry["guard"]["alarm"]:
            print(f"warning: {entry['model']}: {entry['guard']['says']}")
    for warning in facts.get("warnings", ()):
        print(f"warning: {warning}")
    print(out / "report.html")


def _cells(v: Mapping[str, Any]) -> list[str]:
    """A verdict's cells; p is Holm's, of the sign test."""
    low, high = v["ci95"]
    return [
        v["judge"] if v["role"] == verdict.JUDGE else f"{v['judge']} ({v['role']})",
        f"{v['rate']:.1%}",
        "one prompt: none" if low is None else f"{low:.1%} to {high:.1%}",
        f"{v['ties']:.0%}",
        "" if v["decided"] is None else f"{v['decided']:.1%}",
        f"{v['p_holm']:.3f}" if v["p_holm"] >= 0.001 else "<0.001",
        str(v["n"]),
    ]


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
