"""How much slower is a step than the model passes it cannot avoid?

    python -m benchmarks.speed [--batches 8 32] [--repeats 15] [--out benchmarks/results/speed.json]

overhead ratio = median time of Palate's step / median time of the bare passes: the same peft-wrapped module, the same
trainable weights, guidance, backward, clipping and fused AdamW, the same shapes, measured in turn in one process.
A rollout is held against the plain pipeline call. "cached" reads its rows from disk, none of them kept in memory. A
reference asked beforehand is held against a live one, full fine-tuning both: what the step takes less. The row "passes"
counts network rows per pair and step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from palate import likelihood, plugins, randomness, sampling
from palate.config import ModelSettings, TrainingSettings
from palate.doors import assembly, lookup
from palate.models.contracts import Draw, PreferenceBatch, TransitionBatch, select
from palate.models.diffusion import DiffusionPolicy
from palate.training import adapters
from palate.training.cache import TensorCache
from palate.training.offline import Offline
from palate.training.sources import Drawing, Feed
from palate.training.stored import Line, StoredRows, save_condition, table, write_lines
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
        """Nothing was kept."""


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


def trainer_seconds(
    policy: DiffusionPolicy, name: str, source: Any, *, live: bool = True, **settings: Any
) -> list[float]:
    """Seconds of single trainer steps, as timing.jsonl has them, the first left out. live: with its reference."""
    algorithm = plugins.find("algorithms", name)
    config = algorithm.Config()
    with tempfile.TemporaryDirectory() as folder:
        chosen = TrainingSettings(**{**SETTINGS, "max_steps": STEPS, **settings})
        reference = assembly.reference_for(policy, algorithm, config) if live else None
        Trainer(
            policy, algorithm, config, source, chosen, folder, reference=reference,
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
    print(f"{name:45} {a:8.3f} s   passes {b:8.3f} s   ratio {a / b:.3f}", flush=True)
    return row


def dpo(batch_size: int, repeats: int) -> dict[str, Any]:
    policy = fresh()
    batch, draw = pairs(policy, batch_size)
    passed = raw_pass(policy, 2 * batch_size)

    def forward() -> torch.Tensor:
        with torch.no_grad(), adapters.without_adapter(policy):
            passed()
        return passed()

    ours = partial(trainer_seconds, policy, "diffusion_dpo", Same(batch, draw))
    return measure(f"diffusion_dpo, {batch_size} pairs", ours, bare_step(policy, forward), repeats)


def cached(batch_size: int, repeats: int) -> dict[str, Any]:
    """The same from latents and conditions that lie on disk."""
    policy = fresh()
    passed = raw_pass(policy, 2 * batch_size)

    def forward() -> torch.Tensor:
        with torch.no_grad(), adapters.without_adapter(policy):
            passed()
        return passed()

    with tempfile.TemporaryDirectory() as folder, TensorCache(folder, memory=0) as cache:
        rows = on_disk(policy, cache, Path(folder) / "rows.jsonl", 4 * batch_size)
        drawing = Drawing(0, policy.path, 0.2)
        source = Offline(rows, policy.condition([""]), drawing, batch_size=batch_size, prompts=rows.prompts)
        ours = partial(trainer_seconds, policy, "diffusion_dpo", source)
        return measure(f"diffusion_dpo cached, {batch_size} pairs", ours, bare_step(policy, forward), repeats)


def on_disk(policy: DiffusionPolicy, cache: TensorCache, index: Path, n: int) -> StoredRows:
    """n pairs of random latents as a cache and an index hold them."""
    batch, _ = pairs(policy, n)
    save_condition(cache, "empty", policy.condition([""])[0])
    lines = []
    for row, prompt in enumerate(batch.ids):
        media, cond = [f"{row:04x}{k}" for k in range(2)], f"{row:04x}"
        for key, x0 in zip(media, batch.x0[row], strict=True):
            cache.put(key, {"x0": x0})
        save_condition(cache, cond, batch.cond[row])
        prefer, empty = table(batch.prefer[row].tolist()), [[], []]
        lines.append(Line(prompt, prompt, list(media), cond, "empty", prompt, prefer, [], empty, 1.0))
    write_lines(index, lines)
    return StoredRows(index, cache)


def asked_before(batch_size: int, repeats: int, checkpointing: bool) -> dict[str, Any]:
    """Full fine-tuning with the reference's errors known against the same with a live reference, in turn."""
    policy = lookup.load_policy(ModelSettings(name="world:shapes", device="cpu", lora=None))
    batch, draw = pairs(policy, batch_size)
    known = replace(batch, ref_logps=likelihood.denoising(policy, batch.x0, batch.cond, draw).detach())
    settings = {"gradient_checkpointing": checkpointing}
    ours = partial(trainer_seconds, policy, "diffusion_dpo", Same(known, draw), live=False, **settings)
    live = partial(trainer_seconds, policy, "diffusion_dpo", Same(batch, draw), **settings)
    ours(), live()
    mine, theirs = [], []
    for _ in range(repeats):
        mine += ours()
        theirs += live()
    a, b = statistics.median(mine), statistics.median(theirs)
    name = f"reference draws, {batch_size} pairs" + (", checkpointing" if checkpointing else "")
    print(f"{name:45} {a:8.3f} s   live {b:8.3f} s   saved {1 - a / b:.1%}", flush=True)
    return {"what": name, "seconds": round(a, 4), "live_seconds": round(b, 4), "saved": round(1 - a / b, 3)}


def online(name: str, k: int, batch_size: int, repeats: int) -> dict[str, Any]:
    policy = fresh()
    batch = transitions(policy, name, batch_size, k)
    passed = raw_pass(policy, 2 * k * batch_size)  # twice for the guidance inside the policy
    ours = partial(trainer_seconds, policy, name, Same(batch, None))
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
        rows.append(cached(batch, arguments.repeats))
        rows += [asked_before(batch, arguments.repeats, checkpointing) for checkpointing in (False, True)]
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
