"""What a run works with: models by name, prompts as files hold them, scorers by name and weight."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from palate import plugins, sampling
from palate import prompts as prompt_files
from palate.config import ConfigError, ModelSettings, section
from palate.doors import asked, judges
from palate.doors.asked import IMPLICIT, WORLD
from palate.doors.asked import prompt_lines as prompt_lines
from palate.implicit_reward import ImplicitReward
from palate.models.contracts import Scorer
from palate.models.diffusion import DiffusionPolicy, resolve_model
from palate.prompts import Prompt
from palate.training import adapters, hooks, loras


def world(name: str) -> Any:
    """The module of `world:<name>`. Raises PluginError, with the worlds there are, for another name."""
    return plugins.world(name)


def pick_device(device: str = "auto") -> str:
    """The best there is for `auto`; under torchrun each process takes the card of its local rank."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def load_policy(settings: ModelSettings, seed: int = 0) -> DiffusionPolicy:
    """The model of a recipe with what is to be trained made trainable."""
    full = settings.lora is None
    dtype, device = getattr(torch, settings.dtype), pick_device(settings.device)
    how = {"dtype": dtype, "device": device, "call": settings.call}
    policy = load_base(settings.name, settings.adapter, fuse=full, **how)
    if settings.lora is None:
        adapters.train_all(policy)
    else:
        adapters.add_lora(policy, settings.lora, seed=seed)
    return policy


def load_base(model: str, adapter: str | None = None, *, fuse: bool = False, **how: Any) -> DiffusionPolicy:
    """A model with a LoRA of the user's own, which stays beside its weights or, fused, is added into them.

    Raises ConfigError for a run whose base is another model, AdapterError for what is no LoRA of this one.
    """
    if adapter is None:
        return DiffusionPolicy.load(model, **how)
    check_adapter(model, adapter)
    sources = loras.lineage(adapter)

    def prepare(pipeline: Any) -> Collection[str]:
        loras.load(pipeline, sources)
        return loras.fuse(pipeline) if fuse else ()

    return DiffusionPolicy.load(model, prepare=prepare, **how)


def check_adapter(model: str, adapter: str) -> None:
    """Raises ConfigError, without loading anything, for a LoRA that is not there or a run on another model."""
    owner, slash, name = adapter.partition("/")
    on_hub = bool(slash) and "/" not in name and not owner.startswith((".", "~")) and owner and not Path(owner).is_dir()
    if not Path(adapter).exists() and not on_hub:  # a slip in a local path must not go to the network
        raise ConfigError(f"model.adapter is {adapter}, and there is no such file or folder; mend the path")
    if (base := base_of(Path(adapter))) not in (None, model):
        raise ConfigError(f"model.adapter is {adapter}, a run on {base}, and model.name is {model}: they must agree")


def load_arm(model: str, call: Mapping[str, Any] | None = None) -> DiffusionPolicy:
    """A model to look at: a hub id, a folder, `world:<name>`, or a run's folder (its base with its adapter).

    call: arguments of each call of its pipeline, over those of the run's recipe.
    """
    check_arm(model)
    run = Path(model)
    base = base_of(run)
    if base is None:
        return DiffusionPolicy.load(model, device=pick_device(), call=call)
    how: dict[str, Any] = {
        "device": pick_device(),
        "call": {**(recipe_of(run)["model"].get("call") or {}), **(call or {})},
    }
    if (run / "model").is_dir():
        return DiffusionPolicy.load(run / "model", **how)
    return DiffusionPolicy.load(base, prepare=partial(loras.load_run, run=run), **how)


def check_arm(model: str) -> None:
    """Raises, without loading anything, for a model that is not there, or a run's folder that holds none yet."""
    run = Path(model)
    if base_of(run) is None:
        resolve_model(model)
    else:
        asked.run(run, finished=True)


def base_of(run: Path) -> str | None:
    """The model that a run's folder, or the demo's, began from; None if it is no run's folder."""
    if not (run / "config.yaml").is_file():
        return None
    try:
        return str(recipe_of(run)["model"]["name"])
    except (KeyError, TypeError):
        held = run / "config.yaml"
        raise ConfigError(f"{held} does not say which model the run began from: it is no run's folder") from None


def recipe_of(run: Path) -> Any:
    """The recipe that a run's folder holds, unchecked."""
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def settings_of(model: str, policy: DiffusionPolicy, **wanted: Any) -> dict[str, Any]:
    """Sampling settings: what is asked for, else what the world ships, else the pipeline's own defaults.

    A guidance scale of exactly 1 is guidance off.
    """
    model = base_of(Path(model)) or model
    own = dict(policy.default_settings)
    if model.startswith(WORLD):
        own |= world(model).sampling_defaults()
    own |= {name: value for name, value in wanted.items() if value is not None}
    own.setdefault("eta", 0.0)
    return own | {"guidance_scale": sampling.guidance(own["guidance_scale"])}


def read_prompts(prompts: str | Path | Sequence[str], base: Path | None = None) -> list[str]:
    """Distinct prompts in order: a list, a file as `palate.prompts` reads, or `world:<name>[:train|:eval]`.

    base: another folder to look for the file in. Raises ConfigError naming the file, and the line that is no text.
    """
    return [prompt.text for prompt in prompt_rows(prompts, base)]


def prompt_rows(prompts: str | Path | Sequence[str], base: Path | None = None) -> list[Prompt]:
    """As `read_prompts`, with the category of each where its file or world tells one."""
    return prompt_files.distinct(prompt_lines(prompts, base))


@cache
def find_scorer(name: str) -> Scorer:
    """A scorer by its name as `judges` reads it, `world:<name>`, or `implicit:<run>`, the reward a tuned model stands
    for; loaded and checked once, since some are large."""
    if name.startswith(IMPLICIT):
        return implicit_reward(name.removeprefix(IMPLICIT))
    if name.startswith(WORLD):
        scorer: Scorer = world(name).scorer()
        return scorer
    found: Scorer = judges.load(name, pick_device)
    return found


def implicit_reward(model: str) -> ImplicitReward:
    """A run's model against the base it began from. Raises ConfigError for what is no run's folder."""
    run, base = Path(model), base_of(Path(model))
    if base is None:
        raise ConfigError(f"{IMPLICIT}{model}: {model} is no run's folder: give one that `palate train` made")
    algorithm, options = method_of(run)
    policy, own = load_arm(model), recipe_of(run)["model"]
    times = hooks.times(algorithm, options, policy.path)
    if not (run / "model").is_dir():
        return ImplicitReward(policy, times=times)  # the base is the same weights without the adapter
    how = {"device": pick_device(), "call": own.get("call")}
    return ImplicitReward(policy, load_base(base, own.get("adapter"), fuse=True, **how), times=times)


def method_of(run: Path) -> tuple[Any, Any]:
    """The algorithm of a run's folder, or the demo's, and its options.

    Raises PluginError for one that is not installed any more, ConfigError for options that it does not have.
    """
    recipe = recipe_of(run)
    held = recipe.get("algorithm") or {"name": recipe.get("method"), **(recipe.get("plan") or {}).get("options", {})}
    name = held.pop("name", None)
    if not name:
        raise ConfigError(f"{run / 'config.yaml'} does not say by which algorithm the run was trained")
    algorithm = plugins.find("algorithms", name)
    return algorithm, section(held, algorithm.Config, "algorithm", run / "config.yaml")


def split_scorer(name: str) -> tuple[str, str]:
    """A scorer's name, and the one dimension of it that is asked for; "" for all."""
    return (name, "") if name.startswith(IMPLICIT) else judges.split(name)


def weighted(scorers: Mapping[str, float]) -> Weighted:
    """The scorers of a recipe, by name and weight, as one."""
    return Weighted(scorers)


class Weighted:
    """One scorer of several, each score times its weight.

    `{"jpeg_size": -1, "world:shapes/alignment": 1}`: behind a slash stands one dimension of a scorer that gives
    several; where a slash is part of its name, `http:127.0.0.1:8765,dimension:quality`. Each is asked once. A score is
    called as its dimension is; with its scorer before it where that name is taken, as `reward`, the sum's, always is.
    origins: of each score given so far, its scorer and the dimension there.
    """

    def __init__(self, scorers: Mapping[str, float]) -> None:
        self._weights: dict[str, dict[str, float]] = {}
        self.origins: dict[str, tuple[str, str]] = {}
        for name, weight in scorers.items():
            whole, dimension = split_scorer(name)
            self._weights.setdefault(whole, {})[dimension] = weight
        self._found = {name: find_scorer(name) for name in self._weights}

    @property
    def groupwise(self) -> list[str]:
        """Those whose scores say something among the candidates of one call only."""
        return [name for name, scorer in self._found.items() if getattr(scorer, "groupwise", False)]

    @property
    def fingerprints(self) -> dict[str, str]:
        """By which those are known again that run elsewhere, where another may answer tomorrow."""
        told = {name: getattr(scorer, "fingerprint", None) for name, scorer in self._found.items()}
        return {name: value for name, value in told.items() if isinstance(value, str)}

    def check(self, prompts: Sequence[str]) -> None:
        """Raises ConfigError for prompts or dimensions that a scorer is known not to judge: before any sampling."""
        for name, scorer in self._found.items():
            if given := getattr(scorer, "dimensions", ()):
                self._check_dimensions(name, given)
            try:
                getattr(scorer, "check", lambda _: None)(prompts)
            except ValueError as error:
                raise ConfigError(f"{name} cannot judge these prompts: {error}") from None

    def _check_dimensions(self, name: str, given: Collection[str]) -> None:
        unknown = sorted(set(self._weights[name]) - set(given) - {""})
        if unknown:
            raise ConfigError(f"{name} gives no score {unknown[0]!r}; it gives {', '.join(sorted(given))}")

    def __call__(self, prompts: Sequence[str], media: Sequence[Any]) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for name, weights in self._weights.items():
            scores = self._found[name](prompts, media)
            self._check_dimensions(name, scores.keys())
            for dimension, values in scores.items():
                weight = weights.get(dimension, weights.get(""))
                if weight is not None:
                    key = f"{name}.{dimension}" if dimension in out or dimension == "reward" else dimension
                    self.origins[key] = name, dimension
                    out[key] = weight * np.asarray(values, float)
        return out
