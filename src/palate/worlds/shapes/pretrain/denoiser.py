"""Stage `denoiser`: the loop over latents that the models share, and the folder it leaves behind."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palate.worlds.shapes import build
from palate.worlds.shapes.pretrain import text, vae
from palate.worlds.shapes.pretrain.course import Course, Plan, history

PROMPT_DROPOUT = 0.1
EMA = 0.999
EXPORT_MINUTES = 8
PICTURES_SEED = 12  # of both models


@dataclass(frozen=True)
class Kind:
    """What is one model's own.

    name: of its denoiser in the pipeline. tokens: of a caption. reader: the text model under the heads that teach it.
    read: what the denoiser is given of captions. network: the denoiser, untrained. loss(denoiser, what `read` gave,
    latents, rng): of a batch. pipeline(autoencoder, denoiser, text model): the whole. sampling: the settings it is
    shipped and measured with. call: further arguments of every call.
    """

    name: str
    tokens: int
    text_plan: Plan
    plan: Plan
    reader: Callable[[], text.Layout]
    read: text.Read
    network: Callable[[], nn.Module]
    loss: Callable[[nn.Module, tuple[Tensor, ...], Tensor, np.random.Generator], Tensor]
    pipeline: Callable[[build.AutoencoderKL, nn.Module, nn.Module], Any]
    sampling: dict[str, float]
    call: dict[str, Any]


def train(
    kind: Kind, autoencoder: build.AutoencoderKL, reader: nn.Module, work: Path, out: Path, *, resume: bool, fast: bool
) -> None:
    """Fit the denoiser; the moving average of its weights is written to `out` now and then, and at the end.

    fast: compile it first, which takes minutes and a C++ compiler, and then halves the time of a step.
    """
    plan = kind.plan
    torch.manual_seed(plan.seed)
    reader.eval().requires_grad_(False)
    network = kind.network()
    course = Course(kind.name, plan, {kind.name: network}, work, weight_decay=1e-2)
    if not (resume and course.resume()):
        course.extra = {k: p.detach().clone() for k, p in course.parameters.items()}
    cached = vae.encode_dataset(autoencoder, plan.pictures, PICTURES_SEED, work)
    scale = 1 / cached["mean"].float().std().item()
    autoencoder.register_to_config(scaling_factor=scale)
    silence = build.tokenise([""], kind.tokens)
    stepped: Any = torch.compile(network, dynamic=False) if fast else network
    saved, running = course.seconds, float("nan")
    for rng in course.steps():
        rows = torch.from_numpy(rng.integers(len(cached["ids"]), size=plan.batch))
        torch.manual_seed(int(rng.integers(2**31)))
        mean, deviation = (cached[k][rows].float() for k in ("mean", "deviation"))
        latents = scale * (mean + deviation * torch.randn_like(mean))
        ids = torch.where(torch.rand(plan.batch, 1) < PROMPT_DROPOUT, silence, cached["ids"][rows, : kind.tokens])
        with torch.no_grad():
            given = kind.read(reader, ids)
        loss = kind.loss(stepped, given, latents, rng)
        course.update(loss)
        average(course.extra, course.parameters, min(EMA, (1 + course.step) / (10 + course.step)))
        running = loss.item() if math.isnan(running) else running + 0.01 * (loss.item() - running)
        if course.step % 100 == 99:
            print(f"{kind.name} step {course.step} loss {running:.4f}", flush=True)
        if course.seconds - saved > 60 * EXPORT_MINUTES:
            saved = course.seconds
            course.save()
            export(kind, autoencoder, reader, course, out)
    course.save()
    export(kind, autoencoder, reader, course, out)


@torch.no_grad()
def average(mean: dict[str, Tensor], parameters: dict[str, nn.Parameter], decay: float) -> None:
    """Move each mean towards its parameter by 1 - decay."""
    torch._foreach_lerp_([mean[k] for k in parameters], list(parameters.values()), 1 - decay)


def export(kind: Kind, autoencoder: build.AutoencoderKL, reader: nn.Module, course: Course, out: Path) -> None:
    """Write the averaged weights as an fp16 pipeline folder, aside first, then in place of the old one."""
    network, decoder, words = kind.network(), build.build_vae(), kind.reader().text
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.copy_(course.extra[f"{kind.name}.{key}"])
    decoder.load_state_dict(autoencoder.state_dict())
    decoder.register_to_config(scaling_factor=autoencoder.config.scaling_factor)
    words.load_state_dict(reader.state_dict())
    pipeline = kind.pipeline(decoder.half().eval(), network.half().eval(), words.half().eval())
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.save_pretrained(aside)
    for config in aside.glob("text_encoder*/config.json"):  # transformers loads in the dtype named here
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    world = {"sampling": kind.sampling, "training": history(course.folder.parent)}
    (aside / "world.json").write_text(json.dumps(world, indent=2) + "\n")
    old = out.with_name(out.name + ".old")
    if out.exists():
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    print(f"{kind.name} step {course.step}: wrote {out}", flush=True)
