"""What a recipe would take, before anything is downloaded or loaded: peak memory and time of a step.

    palate doctor recipe.yaml

The model is built from its configs alone (`models.hollow`), its own call is followed to its denoiser, and a pass
forward and back is followed operation by operation, so that what is kept for the backward pass is counted and not
guessed. Time is counted operations over the rate of a large matrix product on this machine: a bound from below, which
convolutions, memory traffic and small shapes exceed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from palate import config, plugins
from palate.config import ConfigError, Recipe
from palate.doors import assembly
from palate.models import hollow, hub
from palate.models.identity import parts
from palate.models.loading import call_defaults, resolve_model
from palate.models.probe import call_parameters, denoisers
from palate.models.schedules import schedule_of
from palate.training import adapters, optimisation

GIB = 2**30
_TRIALS: dict[str, dict[str, Any]] = {  # what may cut memory, as overrides, in the order they are shown
    "training.gradient_checkpointing=true": {"training": {"gradient_checkpointing": True}},
    "training.micro_batch_size=1": {"training": {"micro_batch_size": 1}},
    "training.optimiser=adamw_8bit": {"training": {"optimiser": "adamw_8bit"}},
    "data.reference_draws=4": {"data": {"reference_draws": 4}},
    "model.lora={rank: 16}": {"model": {"lora": {"rank": 16}}},
}


@dataclass
class Estimate:
    """lines: what takes how many bytes while training. encoding: bytes of all parts together, as they are loaded.

    flops: of an optimiser step, the reference's passes included. rows: of the network in one pass.
    """

    lines: dict[str, int]
    encoding: int
    flops: int
    rows: int

    @property
    def training(self) -> int:
        """Bytes at most while training."""
        return sum(self.lines.values())

    @property
    def peak(self) -> int:
        return max(self.training, self.encoding)


@dataclass
class Hollows:
    """Hollow pipelines, built once for each set of trained weights."""

    made: dict[str, Any] = field(default_factory=dict)
    mode: Any = field(default_factory=hollow.fake_mode)

    def get(self, recipe: Recipe) -> Any:
        """The recipe's model with what it trains trainable, all of it hollow."""
        key = repr((recipe.model.name, recipe.model.dtype, recipe.model.lora))
        if key not in self.made:
            pipeline = hollow.hollow(resolve_model(recipe.model.name), getattr(torch, recipe.model.dtype))
            policy = _policy(pipeline)
            if recipe.model.lora is None:
                adapters.train_all(policy)
            else:
                adapters.add_lora(policy, recipe.model.lora)
            self.made[key] = hollow.placed(pipeline, self.mode)
        return self.made[key]

    def policy(self, recipe: Recipe) -> Any:
        """As much of the recipe's policy as algorithms look at to say whether they can train it.

        Raises NotHere where its scheduler is one that Palate does not know.
        """
        pipeline = self.get(recipe)
        try:
            path = schedule_of(pipeline.scheduler).path
        except ValueError as error:
            raise hollow.NotHere(f"{recipe.model.name}: {error}") from None
        return SimpleNamespace(**vars(_policy(pipeline)), path=path)


def _policy(pipeline: Any) -> Any:
    """As much of a policy as adapters look at."""
    modules = denoisers(pipeline)
    return SimpleNamespace(modules=modules, module=next(iter(modules.values())), pipeline=None)


def estimate(recipe: Recipe, hollows: Hollows | None = None) -> Estimate:
    """Raises hollow.NotHere where the model's configs are not on this disk, or its code cannot be followed."""
    hollows = hollows or Hollows()
    algorithm = plugins.find("algorithms", recipe.algorithm.name)
    pipeline, training = hollows.get(recipe), recipe.training
    draws = recipe.data.reference_draws if recipe.data else 0
    asks_reference = algorithm.NEEDS.reference == "frozen" and not draws
    rows, micros = _rows(recipe, algorithm)
    asked = hollow.denoiser_call(pipeline, ["a picture of a red circle"] * rows, _settings(recipe, pipeline))
    module, policy = getattr(pipeline, asked.name), _policy(pipeline)
    trained = list(adapters.trainable(policy).values())
    weights = [weight for part in policy.modules.values() for weight in part.parameters()]
    with _recomputing(module, training.gradient_checkpointing):
        work = _step(module, asked.arguments, recipe, asks_reference)
        gradients = []
        if micros > 1:  # then those of the micro-batches before are there from the first
            with hollows.mode:
                for weight in trained:
                    weight.grad = torch.zeros_like(weight)
            gradients = [weight.grad for weight in trained if weight.grad is not None]
        peak, flops = hollow.followed(work, [*weights, *module.buffers(), *gradients], hollows.mode)
        if micros == 1:
            peak -= _bytes(weight.grad for weight in trained if weight.grad is not None)
    for weight in trained:
        weight.grad = None
    size, count = _bytes(trained), sum(weight.numel() for weight in trained)
    full = recipe.model.lora is None
    lines = {
        "denoiser": _bytes(weights) - (0 if full else size),
        "adapter": 0 if full else size,
        "gradients": size,
        "optimiser": count * (2 if training.optimiser == "adamw_8bit" else 8),
        "moving average": size if training.ema_decay else 0,
        "best weights so far": size if training.early_stopping else 0,
        "reference": size if full and asks_reference else 0,
        "activations": max(0, peak),
    }
    whole = sum(_bytes(getattr(pipeline, name).parameters()) for name in parts(pipeline))
    if recipe.data is None:  # sampling needs them in every round
        lines["autoencoder and text encoders"] = whole
    encoding = whole + lines["denoiser"] + lines["adapter"]
    return Estimate({name: took for name, took in lines.items() if took}, encoding, flops * micros, rows)


def cheaper(recipe: Recipe, now: Estimate, hollows: Hollows) -> Iterator[tuple[str, Estimate]]:
    """Overrides that take less while training, and what is then taken."""
    for override, changes in _TRIALS.items():
        raw = recipe.model_dump(mode="json")
        adapted = "model" in changes and recipe.model.lora is not None
        if adapted or any(raw.get(section) is None for section in changes):
            continue
        for section, values in changes.items():
            raw[section] |= values
        try:
            other = estimate(Recipe.model_validate(raw), hollows)
        except (ValueError, hollow.NotHere, adapters.AdapterError):
            continue  # not for this recipe
        if other.training < 0.98 * now.training:
            yield override, other


def of_recipe(path: str | Path, overrides: Sequence[str] = (), *, fetch: bool = False) -> None:
    """Prints what the recipe at `path` would take. fetch: get a hub model's configs first, no weights.

    Raises ConfigError for a recipe that is none, and for a model that cannot be looked at without its weights.
    """
    recipe = config.load(path, overrides, Recipe)
    algorithm = plugins.find("algorithms", recipe.algorithm.name)
    options = config.section(recipe.algorithm.options, algorithm.Config, "algorithm", path)
    try:
        if fetch:
            fetch_configs(recipe.model.name)
        hollows = Hollows()
        assembly.check_fits(hollows.policy(recipe), algorithm, options, path)
        show(recipe, hollows=hollows)
    except (hollow.NotHere, adapters.AdapterError, FileNotFoundError) as error:
        command = " ".join(["palate doctor", str(path), *overrides, "--fetch-configs"])
        absent = isinstance(error, hollow.NotHere) and not hollow.on_disk(recipe.model.name) and not fetch
        mend = f": get its configs, without weights, by `{command}`" if absent else ""
        raise ConfigError(f"{path}: {error}{mend}") from None


def show(recipe: Recipe, write: Callable[[str], None] = print, hollows: Hollows | None = None) -> None:
    """Prints the table of a recipe's estimate, and what would cut it."""
    hollows = hollows or Hollows()
    found = estimate(recipe, hollows)
    width = max(map(len, found.lines)) + 2
    write(f"{recipe.model.name}, {recipe.algorithm.name}: {found.rows} network rows in a pass")
    for name, took in found.lines.items():
        write(f"  {name:<{width}} {size_of(took)}")
    write(f"  {'while training':<{width}} {size_of(found.training)}")
    write(f"  {'while loading':<{width}} {size_of(found.encoding)}, with autoencoder and text encoders")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matmul_rate(device, recipe)
    least = f"{found.flops / rate:.3g} s or more at the {rate / 1e12:.3g} TFLOP/s of {device.type} here"
    write(f"a step: {found.flops / 1e12:.3g} TFLOP, {least}")
    if torch.cuda.is_available() and found.peak > (there := torch.cuda.get_device_properties(0).total_memory):
        write(f"! that is more than the {there / GIB:.0f} GiB of {torch.cuda.get_device_name(0)}")
    print("looking for what would take less ...", file=sys.stderr, flush=True)
    for override, other in cheaper(recipe, found, hollows):
        more = other.flops / found.flops - 1
        write(f"  {override:<38} {size_of(other.training)} while training, {more:+.0%} operations")


def size_of(count: int) -> str:
    """Bytes in the unit that shows them, in columns."""
    return f"{count / GIB:9.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:9.2f} MiB"


def matmul_rate(device: torch.device, recipe: Recipe) -> float:
    """Floating-point operations a second of a large matrix product in the precision of the passes, the best of five."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.training.mixed_precision)
    n = 4096 if device.type == "cuda" else 768
    a = torch.ones(n, n, device=device, dtype=half or getattr(torch, recipe.model.dtype))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def fetch_configs(name: str) -> None:
    """Gets a hub model's configs, tokenizers and scheduler, and none of its weights.

    Raises FileNotFoundError, one line, where they cannot be had.
    """
    from huggingface_hub import snapshot_download

    if Path(resolve_model(name)).is_dir() or not hub.reached(name):
        return
    wanted = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]
    try:
        snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*.index.json", "*/*.index.json"])
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"{name}: its configs cannot be got from the hub ({reason})") from None


def _rows(recipe: Recipe, algorithm: Any) -> tuple[int, int]:
    """Network rows of one pass, and how many passes an optimiser step has."""
    training = recipe.training
    micro = training.micro_batch_size or training.batch_size
    k = recipe.rollout.k if recipe.rollout and algorithm.NEEDS.k is None else algorithm.NEEDS.k or 2
    guided = 2 if recipe.rollout and (recipe.rollout.guidance_scale or 2.0) != 1.0 else 1
    return micro * k * guided, training.batch_size // micro


def _settings(recipe: Recipe, pipeline: Any) -> dict[str, Any]:
    off = {"guidance_scale": 1.0} if "guidance_scale" in call_parameters(pipeline) else {}
    return {**off, **call_defaults(recipe.model.name), **recipe.model.call}


def _step(module: nn.Module, arguments: Mapping[str, Any], recipe: Recipe, asks_reference: bool) -> Callable[[], None]:
    """The passes of one micro-batch."""

    def error() -> Any:
        with optimisation.autocast(recipe.training, torch.device("cpu")):
            out = module(**arguments)
            raw = out[0] if isinstance(out, tuple | list) else next(iter(out.values()))
            raw = torch.stack(list(raw)) if isinstance(raw, list) else raw
            return raw.float().square().flatten(1).mean(1)

    def work() -> None:
        loss = error().sum()
        if asks_reference:
            with torch.no_grad():
                error()
        loss.backward()

    return work


@contextlib.contextmanager
def _recomputing(module: nn.Module, on: bool) -> Iterator[None]:
    """Gradient checkpointing within the block, where it is asked for."""
    if on:
        adapters.recompute_activations(module)
    try:
        yield
    finally:
        off = getattr(module, "disable_gradient_checkpointing", None)
        if on and callable(off):
            off()


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
