"""The first model's own: a UNet that predicts the noise, told by one text model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from palate.worlds.shapes import build
from palate.worlds.shapes.pretrain.course import Plan
from palate.worlds.shapes.pretrain.denoiser import Kind
from palate.worlds.shapes.pretrain.text import Layout

TEXT_PLAN = Plan(steps=1_000, minutes=3, batch=128, peak_rate=1e-3, pictures=0, seed=13)
PLAN = Plan(steps=10_000, minutes=38, batch=64, peak_rate=1e-3, pictures=60_000, seed=12)
SAMPLING = {"num_inference_steps": 8, "eta": 1.0, "guidance_scale": 1.0}


def read(text: nn.Module, ids: Tensor) -> tuple[Tensor]:
    """The text model's last states [n, 24, 128] of token ids [n, 24]."""
    return (text(ids).last_hidden_state,)


def build_reader() -> Layout:
    torch.manual_seed(TEXT_PLAN.seed)
    return Layout(build.build_text_encoder(build.build_tokenizer()), build.TEXT_WIDTH, read)


def noise_loss(predicted: Tensor, noise: Tensor, alphas: Tensor, most: float = 5.0, boost: float = 8.0) -> Tensor:
    """Mean squared error of the noise, weighted so that no range of noise levels drowns the others.

    At little noise by min-SNR (SNR at most `most`); at much noise, where the places of things are decided, by the
    error of v, 1 / alpha-bar, up to `boost`.
    """
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=most) / snr * (1 / alphas).clamp(max=boost)
    return ((predicted - noise).square().mean((1, 2, 3)) * weights).mean()


def loss(unet: nn.Module, given: tuple[Tensor, ...], latents: Tensor, rng: np.random.Generator) -> Tensor:
    """The noise loss of latents [n, 16, 8, 8] at drawn times; given: states [n, 24, 128]."""
    (states,) = given
    alphas = build.build_scheduler().alphas_cumprod
    latents = latents.to(memory_format=torch.channels_last)
    t, noise = torch.randint(len(alphas), (len(latents),)), torch.randn_like(latents)
    level = alphas[t][:, None, None, None]
    noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
    return noise_loss(unet(noisy, t, states).sample, noise, alphas[t])


def build_network() -> nn.Module:
    return build.build_unet().to(memory_format=torch.channels_last)


def pipeline(vae: build.AutoencoderKL, unet: nn.Module, text: nn.Module) -> build.StableDiffusionPipeline:
    return build.build_pipeline(vae, unet, text, build.build_tokenizer())


KIND = Kind(
    name="unet",
    tokens=build.MAX_TOKENS,
    text_plan=TEXT_PLAN,
    plan=PLAN,
    reader=build_reader,
    read=read,
    network=build_network,
    loss=loss,
    pipeline=pipeline,
    sampling=SAMPLING,
    call={},
)
