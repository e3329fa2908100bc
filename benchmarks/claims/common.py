"""Arms of a claim: each runs once, leaves one JSON file, and is skipped the next time.

A claim is a grid of (arm, seed). `run_arms` does what is missing until the minutes are used up and says what is left;
the same command goes on. Evaluation prompts and seeds are the same for all arms of a seed, so that arms are paired.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palate import config, plugins
from palate.config import LoraSettings, ModelSettings, TrainingSettings
from palate.doors import assembly, demo, lookup
from palate.evaluation import compare as comparing
from palate.models.diffusion import DiffusionPolicy
from palate.training.sources import PreferenceRow
from palate.training.trainer import Result
from palate.worlds import shapes

RESULTS = Path(__file__).parent.parent / "results"
WORLD = "world:shapes"


@dataclass(frozen=True)
class Tier:
    """How much a budget buys. samples: judged per arm and seed. seeds: those reported; tuning has its own."""

    name: str
    seeds: tuple[int, ...]
    samples: int
    tuning_samples: int
    device: str


CPU = Tier("cpu", (101, 102, 103), 320, 300, "cpu")
FULL = Tier("full", (101, 102, 103, 104, 105), 1024, 512, "auto")
TUNING_SEED = 7  # never reported


def few_seeds(tier: Tier) -> tuple[int, ...]:
    """Two in the cpu tier, for claims of so many arms that three take longer than its hour; else all."""
    return tier.seeds[:2] if tier.name == "cpu" else tier.seeds


def arguments(description: str | None) -> argparse.Namespace:
    """--budget, --minutes of this call, --processes side by side, --table to print what there is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=("cpu", "full"), default="cpu")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no arm after so many minutes")
    parser.add_argument("--processes", type=int, help="arms side by side, a thread each; 2 for the cpu tier, else 1")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)  # phase, number and count of a process
    return parser.parse_args()


@dataclass(frozen=True)
class Claim:
    """A claim's name and the settings that all of its arms share: arms made with other ones do not count."""

    name: str
    settings: Mapping[str, Any]
    world: str = WORLD

    def stamp(self) -> str:
        """What every arm rests on: the base's weights, its sampler and the claim's settings."""
        sampler = lookup.world(self.world).sampling_defaults()
        facts = json.dumps({"settings": self.settings, "sampler": sampler}, sort_keys=True)
        return hashlib.sha256((_weights(self.world) + facts).encode()).hexdigest()[:16]


@cache
def _weights(world: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(lookup.world(world).weights_dir().rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def arm_file(claim: Claim, tier: Tier, arm: str, seed: int) -> Path:
    return RESULTS / claim.name / tier.name / f"{arm}-seed{seed}.json"


def load_arm(claim: Claim, tier: Tier, arm: str, seed: int) -> dict[str, Any] | None:
    """What an arm left, or None if it has not run."""
    path = arm_file(claim, tier, arm, seed)
    found = json.loads(path.read_text()) if path.is_file() else None
    return found if found and found.get("stamp") == claim.stamp() else None


def run_arms(
    claim: Claim, tier: Tier, arms: Sequence[tuple[str, int, Callable[[], dict[str, Any]]]], end: float
) -> int:
    """Runs what is missing before the clock reads `end`; returns how many are still missing."""
    missing = [arm for arm in arms if load_arm(claim, tier, arm[0], arm[1]) is None]
    for done, (name, seed, action) in enumerate(missing):
        if time.monotonic() >= end:
            print(f"{len(missing) - done} arms left; the same command goes on", flush=True)
            return len(missing) - done
        began = time.perf_counter()
        facts = action()
        facts |= {"seconds": round(time.perf_counter() - began, 1), "machine": machine(tier), "stamp": claim.stamp()}
        path = arm_file(claim, tier, name, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{claim.name} {name} seed {seed}: {facts.get('summary', '')} ({facts['seconds']:.0f} s)", flush=True)
    return 0


Arms = list[tuple[str, int, Callable[[], dict[str, Any]]]]


def main(
    claim: Claim,
    description: str | None,
    tuning: Callable[[Tier], Arms],
    reported: Callable[[Tier], Arms],
    show: Callable[[Tier], None],
) -> None:
    """A claim as a command: first the arms that tune, when all of these are there the reported ones; then the table."""
    given = arguments(description)
    tier = {"cpu": CPU, "full": FULL}[given.budget]
    phases = {"tuning": tuning, "reported": reported}
    end = time.monotonic() + 60 * given.minutes
    if given.part:
        phase, number, count = given.part[0], int(given.part[1]), int(given.part[2])
        run_arms(claim, tier, phases[phase](tier)[number::count], end)
        return
    processes = given.processes or (2 if tier is CPU else 1)
    for name, arms in phases.items() if not given.table else ():
        if processes == 1:
            run_arms(claim, tier, arms(tier), end)
        else:
            side_by_side(given.budget, name, processes, end)
        if any(load_arm(claim, tier, arm, seed) is None for arm, seed, _ in arms(tier)):
            break
    show(tier)


def side_by_side(budget: str, phase: str, processes: int, end: float) -> None:
    """This very command in several processes, each with its share of the arms and one thread."""
    left = (end - time.monotonic()) / 60
    command = [sys.executable, "-m", _module(), "--budget", budget, "--minutes", f"{left:.3f}", "--part", phase]
    single = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*command, str(i), str(processes)], env=single) for i in range(processes)]
    failed = [child for child in running if child.wait()]
    if failed:
        raise SystemExit(f"{len(failed)} of {processes} processes failed; what they said is above")


def _module() -> str:
    """The command's own dotted name."""
    spec = sys.modules["__main__"].__spec__
    assert spec, "start a claim as a module: python -m benchmarks.claims.<name>"
    return spec.name


def machine(tier: Tier) -> str:
    """The kind of device the tier runs on."""
    if tier.device == "cpu" or not torch.cuda.is_available():
        return f"{platform.machine()}, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name()


# --- models and pictures ----------------------------------------------------------------------------------------------


def fresh(tier: Tier, seed: int, rank: int = 16, world: str = WORLD) -> DiffusionPolicy:
    """The world's model with a new adapter."""
    return lookup.load_policy(ModelSettings(name=world, device=tier.device, lora=LoraSettings(rank=rank)), seed)


def align(
    tier: Tier,
    seed: int,
    method: str,
    options: Mapping[str, Any],
    rows: Sequence[PreferenceRow],
    rate: float,
    *,
    steps: int,
    batch_size: int = 8,
    world: str = WORLD,
) -> tuple[DiffusionPolicy, Result]:
    """A new adapter trained by an offline method on all the rows: ten steps of warm-up, then linearly to nothing."""
    policy, algorithm = fresh(tier, seed, world=world), plugins.find("algorithms", method)
    chosen = config.section(options, algorithm.Config, "algorithm")
    settings = TrainingSettings(
        max_steps=steps, batch_size=batch_size, learning_rate=rate, warmup_steps=10, lr_schedule="linear", seed=seed,
        weight_decay=0.0, checkpoint_every=1_000_000,
    )  # fmt: skip
    source = assembly.offline_source(policy, rows, algorithm, chosen, settings, 0.0)
    reference = assembly.reference_for(policy, algorithm, chosen)
    with tempfile.TemporaryDirectory() as folder:
        result = assembly.fit(
            policy, algorithm, chosen, source, settings, folder, reference=reference, tensorboard=False, progress=False
        )
    return policy, result


def row(
    policy: DiffusionPolicy, prompt: str, x0: torch.Tensor, prefer: np.ndarray, scores: np.ndarray
) -> PreferenceRow:
    """One prompt's candidates with latents x0 [K, ...], prefer [K, K] and scores [K, D], as if they had been stored."""
    k = len(x0)
    return PreferenceRow(
        id=prompt,
        prompt=prompt,
        x0=x0,
        cond=policy.condition([prompt]),
        prefer=torch.from_numpy(prefer).float(),
        votes=torch.ones(k, k),
        scores=torch.from_numpy(scores).float(),
        mask=torch.ones(k, dtype=torch.bool),
    )


def evaluation_prompts(n: int, seed: int) -> list[str]:
    """n prompts the model was never trained on, in the order of the seed."""
    return demo.some(shapes.prompts("eval"), n, seed)


def evaluate(policy: DiffusionPolicy, scorer: Any, n: int, seed: int, world: str = WORLD) -> comparing.Arm:
    """n unseen prompts, one picture each, from noise that depends on the seed alone."""
    prompts = evaluation_prompts(n, seed)
    return comparing.run_arm(
        policy, prompts, scorer, n=1, seed=seed + 900_000, settings=lookup.settings_of(world, policy)
    )


def scores_of(arm: comparing.Arm) -> dict[str, list[float]]:
    """Scores as they are stored."""
    return {name: [round(float(value), 5) for value in values] for name, values in arm.scores.items()}


def drift(policy: DiffusionPolicy, n: int = 128, seed: int = 5) -> float:
    """How far the tuned network's predictions are from the base's: MEAN squared difference at random t, as a share of
    the base's own denoising error there. Pictures are the generator's, so that all arms share them."""
    from palate.likelihood import denoising
    from palate.models.contracts import Draw
    from palate.training import adapters
    from palate.worlds.shapes import data

    scenes, pictures = data.dataset(n, seed, "eval")
    from PIL import Image

    x0 = policy.encode([Image.fromarray(picture) for picture in pictures])
    cond = policy.condition([data.caption(scene) for scene in scenes])
    source = torch.Generator().manual_seed(seed)
    t, noise = policy.path.sample_t(n, source), torch.randn(x0.shape, generator=source).to(x0)
    t = t.to(x0.device)
    with torch.no_grad():
        x_t = policy.path.add_noise(x0, noise, t)
        tuned = policy.predict(x_t, t, cond)
        with adapters.without_adapter(policy):
            base = policy.predict(x_t, t, cond)
            error = -denoising(policy, x0[:, None], cond, Draw(t, noise, t < 0))
    return float((tuned - base).pow(2).mean() / error.mean())
