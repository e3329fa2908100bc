"""How much slower is a step than the model passes it cannot avoid?

    python -m benchmarks.speed [--batches 8 32] [--repeats 15] [--out benchmarks/results/speed.json]

overhead ratio = median time of Palate's step / median time of the bare passes: the same peft-wrapped module, the same
trainable weights, guidance, backward, clipping and fused AdamW, the same shapes, measured in turn in one process.
A rollout is held against the plain pipeline call. The row "passes" counts network rows per pair and step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from palate import assembly, lookup, plugins, randomness, sampling
from palate.config import ModelSettings, TrainingSettings
from palate.models.contracts import Draw, PreferenceBatch, TransitionBatch, select
from palate.models.diffusion import DiffusionPolicy
from palate.training import adapters
from palate.training.sources import Feed
from palate.training.trainer import Trainer
from palate.worlds import shapes

SETTINGS = {"learning_rate": 1e-5, "weight_decay": 0.0, "checkpoint_every": 10_000}
GUIDED = shapes.sampling_defaults() | {"guidance_scale": 2.0}  # the world ships without, most models do not
STEPS = 3  # trainer steps behind each repeat; the first is left out


class Same:
    """A source that gives the same rows again and again."""

    def __init__(self, batch: Any, draw: Draw | None) -> None:
        self.batch, self.draw = batch, draw

    def check(self, lacking: Any) -> list[str]:
        return []

    def next(self, state: Any) -> Feed:
        return Feed(lambda: iter([(self.batch, self.draw)]))

    def validation(self) -> None:
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        pass


def fresh() -> DiffusionPolicy:
    return lookup.load_policy(ModelSettings(name="world:shapes", device="cpu"))


def pairs(policy: DiffusionPolicy, n: int) -> tuple[PreferenceBatch, Draw]:
    """n pairs of random latents, and a draw."""
    source = randomness.generator("speed", n)
    prompts = shapes.prompts("train")[:n]
    shape = policy.latent_shape
    prefer = torch.tensor([[torch.nan, 1.0], [0.0, torch.nan]]).expand(n, 2, 2)
    batch = PreferenceBatch(
        ids=prompts,
        visits=torch.zeros(n, dtype=torch.long),
        x0=torch.randn(n, 2, *shape, generator=source),
        mask=torch.ones(n, 2, dtype=torch.bool),
        cond=policy.condition(prompts),
        null=policy.condition([""]),
        prefer=prefer,
        votes=torch.ones(n, 2, 2),
        scores=torch.zeros(n, 2, 0),
        weight=torch.ones(n),
    )
    draw = Draw(policy.path.sample_t(n, source), torch.randn(n, *shape, generator=source), torch.zeros(n) > 0)
    return batch, draw


def transitions(policy: DiffusionPolicy, name: str, n: int, k: int) -> TransitionBatch:
    """n rows of k candidates each of a real rollout."""
    algorithm = plugins.find("algorithms", name)
    config = algorithm.Config()
    prompts = [prompt for prompt in shapes.prompts("train")[:4] for _ in range(2)]
    made = sampling.rollout(policy, prompts, [str(i) for i in range(8)], seed=0, **GUIDED)
    feedback = {"reward": torch.arange(8.0)}
    batch = algorithm.prepare(made, feedback, algorithm.init(policy, config), config)
    return select(batch, torch.arange(n) % len(batch))


def bare_step(policy: DiffusionPolicy, forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """The passes of `forward`, backward, clipping and a fused AdamW step, and nothing else."""
    weights = list(adapters.trainable(policy).values())
    optimiser = torch.optim.AdamW(weights, lr=SETTINGS["learning_rate"], weight_decay=0.0, fused=True)

    def step() -> None:
        forward().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


def raw_pass(policy: DiffusionPolicy, rows: int) -> Callable[[], torch.Tensor]:
    """One call of the bare network on `rows` rows."""
    x, t = torch.randn(rows, *policy.latent_shape), torch.randint(0, 1000, (rows,))
    states = policy.pipeline.encode_prompt(["a small red star on white"], "cpu", 1, False)[0].expand(rows, -1, -1)
    module = policy.module
    return lambda: module(x, t, states).sample.square().mean()


def trainer_seconds(policy: DiffusionPolicy, name: str, batch: Any, draw: Draw | None, **options: Any) -> list[float]:
    """Seconds of single trainer steps, as timing.jsonl has them, the first left out."""
    algorithm = plugins.find("algorithms", name)
    config = algorithm.Config(**options)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingSettings(max_steps=STEPS, **SETTINGS)
        reference = assembly.reference_for(policy, algorithm, config)
        Trainer(
            policy, algorithm, config, Same(batch, draw), settings, folder, reference=reference,
            starts_at_reference=False, tensorboard=False, progress=False,
        ).run()  # fmt: skip
        rows = [json.loads(line) for line in (Path(folder) / "timing.jsonl").read_text().splitlines()]
    return [row["seconds"] for row in rows if row["step"] > 1]


def seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(name: str, ours: Callable[[], list[float]], bare: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Medians of both, taken in turn, and their ratio."""
    ours(), bare()
    mine, floor = [], []
    for _ in range(repeats):
        mine += ours()
        floor += [seconds(bare) for _ in range(STEPS - 1)]
    a, b = statistics.median(mine), statistics.median(floor)
    row = {"what": name, "seconds": round(a, 4), "passes_seconds": round(b, 4), "ratio": round(a / b, 3)}
    print(f"{name:34} {a:8.3f} s   passes {b:8.3f} s   ratio {a / b:.3f}", flush=True)
    return row


def dpo(batch_size: int, repeats: int) -> dict[str, Any]:
    policy = fresh()
    batch, draw = pairs(policy, batch_size)
    passed = raw_pass(policy, 2 * batch_size)

    def forward() -> torch.Tensor:
        with torch.no_grad(), adapters.without_adapter(policy):
            passed()
        return passed()

    ours = partial(trainer_seconds, policy, "diffusion_dpo", batch, draw)
    return measure(f"diffusion_dpo, {batch_size} pairs", ours, bare_step(policy, forward), repeats)


def online(name: str, k: int, batch_size: int, repeats: int) -> dict[str, Any]:
    policy = fresh()
    batch = transitions(policy, name, batch_size, k)
    passed = raw_pass(policy, 2 * k * batch_size)  # twice for the guidance inside the policy
    ours = partial(trainer_seconds, policy, name, batch, None)
    return measure(f"{name}, {batch_size} x {k} transitions", ours, bare_step(policy, passed), repeats)


def rollout(batch_size: int, repeats: int) -> dict[str, Any]:
    """A recorded stochastic rollout against the plain pipeline call with the same sampler."""
    policy, settings = fresh(), GUIDED
    prompts, ids = shapes.prompts("train")[:batch_size], [str(i) for i in range(batch_size)]
    pipeline = DiffusionPolicy.load("world:shapes").pipeline
    adapters_on = lookup.load_policy(ModelSettings(name="world:shapes", device="cpu")).module
    pipeline.unet = adapters_on
    generators = [torch.Generator().manual_seed(i) for i in range(batch_size)]

    def ours() -> list[float]:
        return [seconds(lambda: sampling.rollout(policy, prompts, ids, seed=0, batch_size=batch_size, **settings))]

    with torch.no_grad():
        return measure(
            f"rollout, {batch_size} pictures",
            ours,
            lambda: pipeline(prompts, generator=generators, **settings),
            repeats,
        )


PASSES = """network rows per pair and step          Palate                        official code
diffusion_dpo   policy 2 + reference 2, in 2 calls            policy 2 + reference 2, in 2 calls
d3po (guided)   policy 4, reference 0, in 1 call per group    policy 4 + reference 4, in 4 calls per pair
d3po, k = 4     8 rows serve all 6 pairs: 1.3                 8 per pair"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for batch in arguments.batches:
        rows.append(dpo(batch, arguments.repeats))
        rows.append(online("d3po", 2, batch, arguments.repeats))
        rows.append(online("ddpo", 1, batch, arguments.repeats))
        rows.append(rollout(batch, max(3, arguments.repeats // 3)))
    print(PASSES)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "torch": torch.__version__}
        arguments.out.write_text(json.dumps({**facts, "repeats": arguments.repeats, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
