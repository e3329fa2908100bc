"""The model card of a finished run: what it was made of and by, what came out, how to load it, on whose terms.

    write(run, run / "adapter")       # README.md and result.json beside the weights

It is written for others to read: of the recipe only what is public (`palate.privacy`) is told, and every number stands
beside the key of `result.json`, the run's own, whose public part lies next to the card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from palate.privacy import Private

CARD, FACTS = "README.md", "result.json"
_WEIGHTS = "pytorch_lora_weights.safetensors"
WITHHELD, HERE = "(withheld)", "(a local file or folder)"
_PLACES = {"model.name", "model.adapter", "data.path", "rollout.prompts", "evaluation.prompts"}  # files or folders
_OF_THIS_MACHINE = {"output", "device", "cache", "cache_gb", "card"}
_PUBLIC_FACTS = (
    "method", "seed", "step", "steps", "ended", "weights", "warnings", "trained_on", "prompts_trained_on",
    "win_rate", "win_rate_ci95", "ties", "pairs_judged", "prompts_judged", "base", "tuned", "wins", "dimensions",
    "seconds", "peak_memory_gb", "versions",
)  # fmt: skip
_DIGEST = re.compile("[0-9a-f]{64}")
_KINDS = {"adapter": "A LoRA", "finetune": "All weights of the denoiser", "merge": "A LoRA added into the weights"}


def write(run: Path, folder: Path, *, merged: bool = False) -> Path:
    """README.md and result.json of a run into the folder of its weights. Returns the card's path."""
    card, facts = make(run, folder, merged=merged)
    for name, text in ((FACTS, json.dumps(facts, indent=2) + "\n"), (CARD, card)):
        aside = folder / f"{name}.partial"
        aside.write_text(text, encoding="utf-8")
        aside.replace(folder / name)
    return folder / CARD


def make(run: Path, folder: Path, *, merged: bool = False) -> tuple[str, dict[str, Any]]:
    """The card's text and the facts it tells. folder: where the weights lie; merged: the adapter is in them."""
    held, found = run / "config.yaml", run / "result.json"
    recipe = yaml.safe_load(held.read_text(encoding="utf-8")) or {}
    result = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    private = Private.of([recipe, str(run.resolve()), str(folder.resolve())])
    for place in result.get("local", ()):  # it may look like the name of something on a hub
        section, _, key = place.partition(".")
        recipe[section][key] = HERE
    facts = _public({key: result[key] for key in _PUBLIC_FACTS if key in result}, private, free=True)
    lora = (folder / _WEIGHTS).is_file()
    kind = "adapter" if lora else "merge" if merged else "finetune"
    parts = [
        _front(recipe, facts, kind, private),
        _title(recipe, facts, kind, private),
        _loading(recipe, folder, kind, private),
        _data(recipe, facts, private),
        _numbers(facts),
        _recipe(recipe, private),
        _terms(recipe, private),
    ]
    return "\n".join(part for part in parts if part), facts


# --- what is public ---------------------------------------------------------------------------------------------------


def _public(tree: Any, private: Private, at: str = "", *, free: bool = False) -> Any:
    """The tree without what is private. Texts must be plain names, or, `free`, are scrubbed. at: its dotted place."""
    if isinstance(tree, Mapping):
        names = {name: _text(str(name), private, "", free) for name in tree if name not in _OF_THIS_MACHINE}
        return {
            shown: _public(tree[name], private, f"{at}.{name}".strip("."), free=free) for name, shown in names.items()
        }
    if isinstance(tree, list | tuple):
        if at.rpartition(".")[2] == "prompts":
            return f"({len(tree)} prompts)"
        return [_public(item, private, free=free) for item in tree]
    return _text(tree, private, at, free) if isinstance(tree, str) else tree


def _text(text: str, private: Private, at: str, free: bool) -> str:
    if at == "trained_on.sha256" and _DIGEST.fullmatch(text):
        return text
    if free:
        return private.scrub(text)
    return private.name(text, place=at in _PLACES) or (HERE if at in _PLACES else WITHHELD)


def _given(recipe: Mapping[str, Any], section: str, key: str) -> Any:
    return (recipe.get(section) or {}).get(key)


def _stated(recipe: Mapping[str, Any], key: str, private: Private) -> str:
    """What the recipe's `card` says, scrubbed, in one line; empty if nothing."""
    return " ".join(private.scrub(str(_given(recipe, "card", key) or "")).split())


def _base(recipe: Mapping[str, Any], private: Private) -> str | None:
    """The base model's public name; None for one that is only known here."""
    return private.name(str(_given(recipe, "model", "name") or ""), place=True)


def _method(recipe: Mapping[str, Any], facts: Mapping[str, Any], private: Private) -> str:
    name = str(_given(recipe, "algorithm", "name") or facts.get("method", ""))
    return private.name(name) or WITHHELD


# --- the card's parts -------------------------------------------------------------------------------------------------


def _front(recipe: Mapping[str, Any], facts: Mapping[str, Any], kind: str, private: Private) -> str:
    """The front matter that model hubs read."""
    base, license = _base(recipe, private), _stated(recipe, "license", private)
    front: dict[str, Any] = {"library_name": "diffusers"}
    if base and not base.startswith("world:"):
        front |= {"base_model": base, "base_model_relation": kind}
    front |= {"license": license} if license else {"license": "other", "license_name": "not-stated"}
    if link := _stated(recipe, "license_link", private):
        front["license_link"] = link
    method = _method(recipe, facts, private)
    front["tags"] = ["palate", *(["lora"] if kind == "adapter" else []), *([] if method == WITHHELD else [method])]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _title(recipe: Mapping[str, Any], facts: Mapping[str, Any], kind: str, private: Private) -> str:
    base, method = _base(recipe, private) or "a model without a public name", _method(recipe, facts, private)
    title = f"{base[:1].upper()}{base[1:]}" if " " in base else base
    lines = [f"# {title}, aligned by {method}", "", f"{_KINDS[kind]} of {base}, trained with Palate by `{method}`."]
    if facts.get("weights"):
        lines.append(f"Weights of the run: {facts['weights']}.")
    if description := _stated(recipe, "description", private):
        lines += ["", description]
    return "\n".join([*lines, ""])


def _loading(recipe: Mapping[str, Any], folder: Path, kind: str, private: Private) -> str:
    """The lines that load it with plain diffusers."""
    base = _base(recipe, private) or "the base model"
    code = ["from diffusers import DiffusionPipeline", ""]
    if kind != "adapter":
        code.append('pipeline = DiffusionPipeline.from_pretrained("this folder")')
        return _code("## How to load it", code)
    place = f'"{base}"'
    if base.startswith("world:"):
        code.insert(1, "from palate.models.diffusion import resolve_model")
        place = f"resolve_model({place})"
    code.append(f"pipeline = DiffusionPipeline.from_pretrained({place})")
    below = sorted((path.parent.name for path in folder.glob("base*/*.safetensors")), key=lambda n: (len(n), n))
    names = [*below, "aligned"]
    for name in names:
        inside = "" if name == "aligned" else name
        code.append(f"pipeline.load_lora_weights({_arguments(name, inside)})")
        for part in _experts(folder / inside):
            code.append(f"pipeline.{part}.load_lora_adapter({_arguments(name, f'{inside}/{part}'.strip('/'))})")
    said = ""
    if below:
        code.append(f"pipeline.set_adapters({json.dumps(names)})")
        several = f"the LoRAs in `{'/`, `'.join(below)}/`, which are part of its base"
        said = f"\nIt was trained on top of {several}: without them it is another model.\n"
    hint = "`this folder` is where this card lies: a path, or the name of its repository.\n"
    return f"{_code('## How to load it', code)}\n{hint}{said}"


def _arguments(name: str, inside: str) -> str:
    """Of the call that loads an adapter from the card's folder, or one inside it; the folder may lie on a hub.

    By the file's path in it: diffusers takes `subfolder` of a local folder for nothing where the file is in both.
    """
    file = f"{inside}/{_WEIGHTS}".strip("/")
    return f'"this folder", weight_name="{file}", adapter_name="{name}"'


def _experts(folder: Path) -> list[str]:
    """Folders of further denoisers in an adapter's folder."""
    found = (path.parent.name for path in folder.glob(f"*/{_WEIGHTS}"))
    return sorted(name for name in found if not name.startswith("base"))


def _code(title: str, lines: list[str], language: str = "python") -> str:
    return "\n".join([title, "", f"```{language}", *lines, "```", ""])


def _data(recipe: Mapping[str, Any], facts: Mapping[str, Any], private: Private) -> str:
    """What it was trained on: where from, how much, and by what it can be told from other data."""
    lines = ["## What it was trained on", ""]
    if stated := _stated(recipe, "data", private):
        lines += [stated, ""]
    path, prompts = _given(recipe, "data", "path"), _given(recipe, "rollout", "prompts")
    if path is not None:
        lines.append(f"- preferences: {_text(str(path), private, 'data.path', False)}")
    if prompts is not None:
        lines.append(f"- its own samples of the prompts: {_public(prompts, private, 'rollout.prompts')}")
        rewards = _public(_given(recipe, "rollout", "scorers") or {}, private)
        lines.append("- rewarded by: " + ", ".join(f"{weight:g} x {name}" for name, weight in rewards.items()))
    for key, value in (facts.get("trained_on") or {}).items():
        lines.append(f"- {key}: {value} (`{FACTS}: trained_on.{key}`)")
    return "\n".join([*lines, ""]) if lines[2:] else ""


def _numbers(facts: Mapping[str, Any]) -> str:
    """Each number with the key of the file it comes from."""
    rows = [f"| {name} | {value} | `{FACTS}: {key}` |" for name, value, key in _rows(facts)]
    if not rows:
        return "## Numbers\n\nIt was not judged: the recipe has no `evaluation`.\n"
    lines = ["## Numbers", "", "| what | value | where from |", "| --- | --- | --- |", *rows]
    known = facts.get("prompts_trained_on")
    if known:
        lines += ["", f"It was trained on {known} of the prompts that it is judged on: the numbers may flatter it."]
    lines += [f"\n{str(warning)[:1].upper()}{str(warning)[1:]}." for warning in facts.get("warnings", ())]
    return "\n".join([*lines, ""])


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for judge, won in (facts.get("wins") or {}).items():
        if "rate" in won:
            low, high = won.get("ci95") or (None, None)
            between = "" if low is None else f" (95% interval {low:.3f} to {high:.3f})"
            yield f"wins over the base by {judge}, ties half", f"{won['rate']:.3f}{between}", f"wins.{judge}.rate"
            yield f"pairs judged by {judge}", str(won.get("n")), f"wins.{judge}.n"
            yield f"ties by {judge}", f"{won.get('ties', 0):.3f}", f"wins.{judge}.ties"
    for side, whose in (("base", "base model"), ("tuned", "this model")):
        for name, value in (facts.get(side) or {}).items():
            yield f"mean {name}, {whose}", "unknown" if value is None else f"{value:.4g}", f"{side}.{name}"
    for key in ("step", "steps", "seed"):
        if key in facts:
            yield {"step": "optimiser steps", "steps": "optimiser steps", "seed": "seed"}[key], str(facts[key]), key


def _recipe(recipe: Mapping[str, Any], private: Private) -> str:
    told = _public(recipe, private)
    return _code("## Recipe", yaml.safe_dump(told, sort_keys=False, allow_unicode=True).splitlines(), "yaml")


def _terms(recipe: Mapping[str, Any], private: Private) -> str:
    license = _stated(recipe, "license", private)
    if license:
        said = f"{license}, as whoever trained it says. The terms of the base model and of the data hold as well."
    else:
        said = (
            "Nobody has stated one (`card.license` of the recipe). What is made from a model and data is bound by "
            "their terms: find them out before you pass it on."
        )
    return f"## Licence\n\n{said}\n"
