"""One self-contained HTML page about a run: is the tuned model better, how does it look, how did it get there.

    write(from_run("runs/shapes_dpo"), "report.html")

Nothing is loaded from elsewhere: pictures are data URIs, videos and sounds files of the run's folder, charts inline
SVG, styles in the page. Prompts and names come from outside and are escaped. The page has no script.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import yaml

from palate.evaluation import curves, exhibits
from palate.evaluation.charts import Chart, number, svg
from palate.evaluation.exhibits import Exhibit, ReportError
from palate.evaluation.win_rate import Comparison, Mean, WinRate

MAX_GRIDS = 6


@dataclass(frozen=True)
class Pair:
    """One prompt from the same seed, before and after."""

    prompt: str
    base: Exhibit
    tuned: Exhibit


@dataclass(frozen=True)
class ReportData:
    """All that the page shows; an empty part is left out of it.

    wins: for each judge, how often the tuned model beats the base. dimensions: tuned (a) against base (b).
    grids: named pictures through training. caution: what speaks against the verdict. data, seeds, versions, config:
    what to know to do it again.
    """

    title: str
    wins: dict[str, WinRate] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    dimensions: dict[str, Comparison] = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)
    grids: list[tuple[str, Exhibit]] = field(default_factory=list)
    summary: str = ""
    caution: str = ""
    data: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    config: str = ""


# --- the page ---------------------------------------------------------------------------------------------------------


def write(report: ReportData, path: str | Path) -> None:
    """Writes the page, whole or not at all."""
    write_page(render(report, Path(path).parent), Path(path))


def write_page(html: str, path: Path) -> None:
    """Writes a page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    aside.write_text(html, encoding="utf-8")
    aside.replace(path)


def render(report: ReportData, beside: Path = Path()) -> str:
    """The page as text. beside: the folder that it will lie in."""
    template = environment(beside).get_template("report.html.j2")
    return template.render(
        report=report, verdicts=[(judge, *verdict(judge, won)) for judge, won in report.wins.items()]
    )


def environment(beside: Path) -> jinja2.Environment:
    """Templates of pages that lie in a folder, with what they show numbers and media by."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": svg, "exhibit": partial(exhibits.html, beside=beside), "number": number}
    environment.filters |= {"percent": percent, "signed": _signed, "interval": _interval, "tone": tone, "known": _known}
    return environment


def verdict(judge: str, won: WinRate) -> tuple[str, str]:
    """What a win rate means, in words, and its tone: `better`, `worse` or `open`."""
    low, high = won.ci95
    between = f"95% interval {percent(low)} to {percent(high)}" if _known(won.ci95) else "no interval from one prompt"
    share = f"in {percent(won.rate)} of pairs ({between})"
    by = {
        "people": f"People prefer the tuned model {share}.",
        "reward": f"The tuned model has the higher reward {share}.",
    }
    sentence = by.get(judge, f"By {judge}, the tuned model is preferred {share}.")
    meant = tone(won.ci95, 0.5)
    means = {
        "better": "It is better than the base model.",
        "worse": "It is worse than the base model.",
        "open": "This does not show a difference from the base model.",
    }
    return f"{sentence} {means[meant]}", meant


def caution(trained_on: int) -> str:
    """What it means that so many prompts judged on were trained on, and what to do; nothing where none was."""
    if not trained_on:
        return ""
    return (
        f"Trained on {trained_on} of the prompts that it is judged on, so the win rate may flatter the tuned model: "
        "take them out of evaluation.prompts"
    )


def _cautions(facts: Mapping[str, Any]) -> list[str]:
    found = [caution(facts.get("prompts_trained_on", 0)), *facts.get("warnings", ())]
    return [text[:1].upper() + text[1:] for text in found if text]


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def tone(ci95: Sequence[float], even: float = 0.0) -> str:
    """What an interval says against `even`: `better`, `worse` or `open`."""
    return "better" if ci95[0] > even else "worse" if ci95[1] < even else "open"


def _known(ci95: Sequence[float]) -> bool:
    return all(map(math.isfinite, ci95))


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value, 3)


def _interval(ci95: Sequence[float]) -> str:
    return f"{_signed(ci95[0])} to {_signed(ci95[1])}" if _known(ci95) else "unknown"


# --- reading a run folder ---------------------------------------------------------------------------------------------


def from_run(run_dir: str | Path) -> ReportData:
    """What a run folder holds: config.yaml, metrics.jsonl, result.json and samples/*.png, as far as they are there."""
    run = Path(run_dir)
    if not run.is_dir():
        raise ReportError(f"{run} is not a folder; name a run's folder")
    config, metrics, result = run / "config.yaml", run / "metrics.jsonl", run / "result.json"
    if not any(file.exists() for file in (config, metrics, result)):
        raise ReportError(f"{run} is not a run's folder: it has no config.yaml, metrics.jsonl or result.json")
    rows = _rows(metrics) if metrics.exists() else []
    facts = read_object(result) if result.exists() else {}
    text = config.read_text(encoding="utf-8") if config.exists() else ""
    try:
        known = _about_run(yaml.safe_load(text) or {})
        pairs = [_pair(run / "samples", entry) for entry in facts.get("pairs", [])]
        wins = {judge: _win_rate(entry) for judge, entry in facts.get("wins", {}).items()}
        dimensions = {name: _comparison(entry) for name, entry in facts.get("dimensions", {}).items()}
    except yaml.YAMLError as error:
        raise ReportError(f"{config} is not valid YAML: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{run}: config.yaml or result.json is not of this version: {error!r}") from None
    return ReportData(
        title=str(facts.get("title", run.resolve().name)),
        wins=wins,
        pairs=pairs,
        dimensions=dimensions,
        charts=curves.charts(rows, facts.get("start_loss")),
        grids=_grids(run / "samples", {Path(entry[side]).name for entry in facts.get("pairs", []) for side in _SIDES}),
        summary=_summary(rows, facts),
        caution=". ".join(_cautions(facts)),
        config=text,
        data=known.get("data", {}) | _texts(facts.get("data")),
        seeds=known.get("seeds", {}) | _texts(facts.get("seeds")),
        versions=_texts(facts.get("versions")),
    )


_SIDES = ("base", "tuned")


def _texts(entries: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(name): str(entry) for name, entry in (entries or {}).items()}


def read_object(path: Path) -> dict[str, Any]:
    """A file of one JSON object. Raises ReportError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ReportError(f"{path} should hold an object, not a {type(found).__name__}")
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics; a last line cut short by a kill is left out."""
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for count, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if count == len(lines):
                break
            raise ReportError(f"{path} line {count} is not JSON: {error}") from None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _pair(folder: Path, entry: Mapping[str, str]) -> Pair:
    base, tuned = (exhibits.of_file(folder / Path(entry[side]).name) for side in _SIDES)  # never outside of the folder
    return Pair(str(entry["prompt"]), base, tuned)


def _grids(folder: Path, taken: set[str]) -> list[tuple[str, Exhibit]]:
    """The grids of a run, first and last among at most six, evenly chosen."""
    files = [file for file in sorted(folder.glob("*.png")) if file.name not in taken]
    if len(files) > MAX_GRIDS:
        files = [files[round(i * (len(files) - 1) / (MAX_GRIDS - 1))] for i in range(MAX_GRIDS)]
    return [(re.sub(r"_+0*(?=\d)|_+", " ", file.stem), exhibits.of_file(file)) for file in files]


def _win_rate(entry: Mapping[str, Any]) -> WinRate:
    known: dict[str, Any] = {name: math.nan if value is None else value for name, value in entry.items()}
    return WinRate(**known | {name: _ends(entry[name]) for name in entry if name.endswith("95")})


def _mean(entry: Mapping[str, Any]) -> Mean:
    return Mean(**{**entry, "ci95": _ends(entry["ci95"])})


def _comparison(entry: Mapping[str, Any]) -> Comparison:
    return Comparison(_mean(entry["a"]), _mean(entry["b"]), _mean(entry["difference"]), _win_rate(entry["wins"]))


def _ends(ci95: Sequence[float | None]) -> tuple[float, float]:
    """An interval's ends; JSON may hold null where there is none."""
    low, high = ci95
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _summary(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """One line under the title: how far the training went and which weights were exported."""
    if "rounds" in facts:  # whose rows are the rounds
        return f"{facts['rounds']} rounds, {facts['votes']} votes of {facts['people']}"
    parts = [f"{rows[-1]['step']} optimiser steps"] if rows else []
    parts += [f"exported weights: {facts['weights']}"] if "weights" in facts else []
    return "; ".join(parts)


def _about_run(recipe: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What a resolved recipe says of data and seeds."""

    def value(section: str, key: str) -> Any:
        return (recipe.get(section) or {}).get(key)

    named = {
        "data": {
            "model": value("model", "name"),
            "method": value("algorithm", "name"),
            "preferences": value("data", "path"),
            "prompts": value("rollout", "prompts") or value("rounds", "prompts"),
            "people": value("rounds", "people"),
            "rewards": ", ".join(
                f"{weight:g} x {name}" for name, weight in (value("rollout", "scorers") or {}).items()
            ),
            "judged on": value("evaluation", "prompts"),
            "judged by": ", ".join(value("evaluation", "scorers") or ()),
        },
        "seeds": {"training": value("training", "seed"), "evaluation": value("evaluation", "seed")},
    }
    return {
        part: {name: _in_brief(entry) for name, entry in entries.items() if entry not in (None, "")}
        for part, entries in named.items()
    }


def _in_brief(entry: Any) -> str:
    return f"{len(entry)} prompts in the recipe" if isinstance(entry, list) else str(entry)


def versions() -> dict[str, str]:
    """What this run was made with, for the `versions` of its result.json."""
    found = {}
    for name in ("palate", "torch", "diffusers", "transformers", "peft"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
