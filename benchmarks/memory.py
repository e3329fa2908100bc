"""How much memory does training take, mode by mode?

    python -m benchmarks.memory [--pairs 16] [--out benchmarks/results/memory.json]      # world:shapes, this processor
    python -m benchmarks.memory --model sdxl --device cuda --pairs 2                     # random weights of that size

Each mode is a process of its own: a model is loaded, three steps are taken, and the most memory that was ever in use
is told. On a GPU that is `torch.cuda.max_memory_allocated`; on a processor the growth of the largest resident set since
the libraries were loaded. `palate doctor RECIPE` says the same of any recipe beforehand.

`sdxl` and `sd35` are the denoisers of those models, built in code from their published configs with random weights in
bfloat16; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import speed
from palate import likelihood, plugins, randomness
from palate.config import LoraSettings, ModelSettings, TrainingSettings
from palate.doors import assembly, lookup
from palate.memory import peak_bytes
from palate.models.contracts import Condition, Draw, PreferenceBatch
from palate.paths import DDPMPath, FlowPath
from palate.training import adapters
from palate.training.trainer import Trainer


@dataclass(frozen=True)
class Mode:
    """One way to train. known: the reference was asked beforehand. alone: nothing but the denoiser is there."""

    name: str
    lora: bool = True
    known: bool = False
    alone: bool = True
    checkpointing: bool = False
    ema: bool = False
    micro: int | None = None
    optimiser: str = "adamw"


MODES = (
    Mode("LoRA, all of the model there", alone=False),
    Mode("LoRA, cached"),
    Mode("LoRA, cached, reference draws", known=True),
    Mode("LoRA, cached, checkpointing", checkpointing=True),
    Mode("LoRA, cached, micro batch of 1", micro=1),
    Mode("LoRA, cached, moving average", ema=True),
    Mode("full, cached", lora=False),
    Mode("full, cached, reference draws", lora=False, known=True),
    Mode("full, cached, reference draws, checkpointing", lora=False, known=True, checkpointing=True),
    Mode("full, cached, reference draws, 8-bit AdamW", lora=False, known=True, optimiser="adamw_8bit"),
)


# --- models of a size, with random weights ----------------------------------------------------------------------------

SDXL: dict[str, Any] = {  # stable-diffusion-xl-base-1.0, unet/config.json
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35: dict[str, Any] = {  # stable-diffusion-3.5-medium, transformer/config.json
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}


class Bare:
    """A denoiser alone as a policy: what a step of training asks of one, with random latents and conditions."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.module, self.modules = module, {name: module}
        self.latent_shape: tuple[int, ...]
        if name == "unet":
            self.path: Any = DDPMPath(torch.linspace(0.9999, 0.005, 1000, dtype=torch.float64), "epsilon")
            self.latent_shape = (4, 128, 128)
        else:
            self.path, self.latent_shape = FlowPath(), (16, 128, 128)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def condition(self, prompts: list[str], *, guided: bool = False) -> Condition:
        like = next(self.module.parameters())
        if "unet" in self.modules:
            shapes = {"encoder_hidden_states": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)}
        else:
            shapes = {"encoder_hidden_states": (333, 4096), "pooled_projections": (2048,)}
        return Condition({f"cond/{name}": like.new_zeros(len(prompts), *shape) for name, shape in shapes.items()})

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, cond: Condition, guidance_scale: Any = None) -> torch.Tensor:
        rows = {name.removeprefix("cond/"): value for name, value in cond.rows.items()}
        x_t = x_t.to(next(self.module.parameters()).dtype)
        states = rows.pop("encoder_hidden_states")
        if "unet" in self.modules:
            out = self.module(x_t, t, states, added_cond_kwargs=rows, return_dict=False)
        else:
            out = self.module(x_t, states, timestep=1000 * t, return_dict=False, **rows)
        predicted: torch.Tensor = out[0].float()
        return predicted


def built(name: str, device: str, dtype: torch.dtype = torch.bfloat16) -> Bare:
    """The denoiser of `sdxl` or `sd35` with random weights; on the `meta` device with none."""
    import diffusers

    kind = diffusers.UNet2DConditionModel if name == "sdxl" else diffusers.SD3Transformer2DModel
    with torch.device(device):
        module = kind(**(SDXL if name == "sdxl" else SD35)).to(dtype)
    return Bare("unet" if name == "sdxl" else "transformer", module.eval().requires_grad_(False))


# --- one mode ---------------------------------------------------------------------------------------------------------


def policy_of(model: str, mode: Mode, device: str) -> Any:
    """The model with what the mode trains trainable, its other parts there or not."""
    if model == "shapes":
        lora = LoraSettings() if mode.lora else None
        policy = lookup.load_policy(ModelSettings(name="world:shapes", device=device, lora=lora))
        if mode.alone:
            policy.residency.leave()
        return policy
    bare = built(model, device, torch.bfloat16 if mode.lora else torch.float32)
    adapters.add_lora(bare, LoraSettings()) if mode.lora else adapters.train_all(bare)
    return bare


def rows_of(policy: Any, n: int) -> tuple[PreferenceBatch, Draw]:
    """n pairs of random latents, and a draw."""
    if not isinstance(policy, Bare):
        return speed.pairs(policy, n)
    source, shape, device = randomness.generator("memory", n), policy.latent_shape, policy.device
    batch = PreferenceBatch(
        ids=[str(i) for i in range(n)],
        visits=torch.zeros(n, dtype=torch.long),
        x0=torch.randn(n, 2, *shape, generator=source).to(device),
        mask=torch.ones(n, 2, dtype=torch.bool, device=device),
        cond=policy.condition([""] * n),
        null=policy.condition([""]),
        prefer=torch.tensor([[torch.nan, 1.0], [0.0, torch.nan]], device=device).expand(n, 2, 2),
        votes=torch.ones(n, 2, 2, device=device),
        scores=torch.zeros(n, 2, 0, device=device),
        weight=torch.ones(n, device=device),
    )
    drop = torch.zeros(n, dtype=torch.bool, device=device)
    times = policy.path.sample_t(n, source).to(device)
    return batch, Draw(times, torch.randn(n, *shape, generator=source).to(device), drop)


class Split(speed.Same):
    """The same rows again and again, in micro-batches."""

    def __init__(self, batch: PreferenceBatch, draw: Draw, size: int) -> None:
        super().__init__(batch, draw)
        self._size = size

    def next(self, state: Any) -> Any:
        from palate.models.contracts import select
        from palate.training.sources import Feed

        parts = torch.arange(len(self.batch)).split(self._size)
        draws = [Draw(self.draw.t[p], self.draw.noise[p], self.draw.drop[p]) for p in parts]
        return Feed(lambda: iter([(select(self.batch, p), d) for p, d in zip(parts, draws, strict=True)]))


def used(device: str) -> int:
    """The most bytes in use so far."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return peak_bytes()


def measure(model: str, mode: Mode, pairs: int, device: str) -> int:
    """Most bytes in use by three steps of Diffusion-DPO in this process, over what its libraries take."""
    algorithm = plugins.find("algorithms", "diffusion_dpo")
    lookup.find_scorer("jpeg_size")  # whose libraries all modes load
    before = used(device)
    policy = policy_of(model, mode, device)
    batch, draw = rows_of(policy, pairs)
    if mode.known:
        with torch.no_grad():
            parts = [likelihood.denoising(policy, batch.x0, batch.cond, draw)]
        batch = replace(batch, ref_logps=torch.cat(parts))
    settings = TrainingSettings(
        max_steps=3, batch_size=pairs, micro_batch_size=mode.micro, checkpoint_every=10_000, learning_rate=1e-5,
        gradient_checkpointing=mode.checkpointing, ema_decay=0.99 if mode.ema else None, optimiser=mode.optimiser,
        mixed_precision="bf16" if model != "shapes" else "no",
    )  # fmt: skip
    config = algorithm.Config()
    reference = None if mode.known else assembly.reference_for(policy, algorithm, config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            policy, algorithm, config, Split(batch, draw, mode.micro or pairs), settings, folder, reference=reference,
            starts_at_reference=False, tensorboard=False, progress=False,
        )  # fmt: skip
        trainer.save = lambda: None  # type: ignore[method-assign]  # writing takes memory of its own
        trainer._finish = lambda: None  # type: ignore[method-assign,return-value]
        trainer.run()
    return used(device) - before


# --- all modes --------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]], title: str) -> str:
    """A page of Markdown."""
    lines = [f"# {title}", "", "| mode | peak, MiB |", "|---|---:|"]
    lines += [f"| {row['mode']} | {row['mib']:,.0f} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["shapes", "sdxl", "sd35"], default="shapes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--mode", help="only this one, in this process; prints its bytes")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.mode:
        (mode,) = [mode for mode in MODES if mode.name == asked.mode]
        print(measure(asked.model, mode, asked.pairs, asked.device))
        return
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        command = [sys.executable, "-m", "benchmarks.memory", "--model", asked.model, "--device", asked.device]
        done = subprocess.run(
            [*command, "--pairs", str(asked.pairs), "--mode", mode.name], capture_output=True, text=True
        )
        if done.returncode:
            print(f"{mode.name:48} not measured: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        rows.append({"mode": mode.name, "mib": round(int(done.stdout.splitlines()[-1]) / 2**20, 1)})
        print(f"{mode.name:48} {rows[-1]['mib']:10,.1f} MiB", flush=True)
    if asked.out:
        title = f"Memory of three steps: {asked.model}, {asked.pairs} pairs, {asked.device}"
        facts = {"model": asked.model, "pairs": asked.pairs, "device": asked.device, "machine": platform.machine()}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps({**facts, "torch": torch.__version__, "rows": rows}, indent=2) + "\n")
        asked.out.with_suffix(".md").write_text(table(rows, title))


if __name__ == "__main__":
    main()
