"""Stage `vae`: the autoencoder is fitted to drawn pictures; both models use it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from palate.worlds.shapes import build, data
from palate.worlds.shapes.pretrain.course import Course, Plan

PLAN = Plan(steps=7_000, minutes=20, batch=16, peak_rate=2e-3, pictures=24_000, seed=11)
KL_WEIGHT = 1e-4  # on the mean KL per latent dimension; tiny: it only keeps the latents from drifting


def to_tensor(pictures: np.ndarray) -> Tensor:
    """`uint8 [n, 64, 64, 3]` to floats in -1..1, `[n, 3, 64, 64]`."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensors: Tensor) -> np.ndarray:
    """The inverse of `to_tensor`."""
    return ((tensors + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def reconstruction_loss(output: Tensor, picture: Tensor) -> Tensor:
    """Absolute error, weighted up to sevenfold at edges and in the ink and paint that a mean would neglect."""
    background = picture.flatten(2).median(dim=2).values[..., None, None]
    drawn = ((picture - background).abs().amax(1, keepdim=True) > 0.1).float()
    edge = F.max_pool2d(picture, 3, 1, 1) + F.max_pool2d(-picture, 3, 1, 1)
    weight = 1 + 2 * drawn + 4 * edge.amax(1, keepdim=True).clamp(0, 1)
    return ((output - picture).abs() * weight).mean() + 2 * ((output - picture).square() * weight).mean()


def train(plan: Plan, work: Path, resume: bool) -> build.AutoencoderKL:
    """The autoencoder after this stage, its latents of mean 0 and deviation 1 in every channel."""
    torch.manual_seed(plan.seed)
    vae = build.build_vae()
    course = Course("vae", plan, {"vae": vae}, work, weight_decay=0.0)
    if resume:
        course.resume()
    _, pictures = data.dataset(plan.pictures, plan.seed)
    for rng in course.steps():
        picture = to_tensor(pictures[rng.integers(len(pictures), size=plan.batch)])
        torch.manual_seed(int(rng.integers(2**31)))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(picture).latent_dist
            output = vae.decode(posterior.sample()).sample
        error = reconstruction_loss(output.float(), picture)
        course.update(error + KL_WEIGHT * posterior.kl().float().mean() / posterior.mean[0].numel())
        if course.step % 100 == 0:
            print(f"vae step {course.step} error {error.item():.4f} std {posterior.mean.std().item():.2f}", flush=True)
        if course.step % 300 == 299:
            course.save()
    course.save()
    standardise(vae, to_tensor(pictures[:2048]))
    return vae


@torch.no_grad()
def standardise(vae: build.AutoencoderKL, pictures: Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1, by folding the shift and scale into the 1 x 1 convolutions."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(64)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    inward, outward = vae.quant_conv, vae.post_quant_conv
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= deviation[None, :, None, None]
    inward.bias[: len(mean)] -= mean
    inward.weight[: len(mean)] /= deviation[:, None, None, None]
    inward.bias[: len(mean)] /= deviation
    inward.bias[len(mean) :] -= 2 * deviation.log()


@torch.no_grad()
def encode_dataset(vae: build.AutoencoderKL, pictures: int, seed: int, work: Path) -> dict[str, Tensor]:
    """Of n training pictures latent `mean` and `deviation` `fp16 [n, 16, 8, 8]` and token `ids` `[n, 24]`, cached."""
    file = work / "latents.safetensors"
    if file.exists():
        return load_file(file)
    scenes, drawn = data.dataset(pictures, seed)
    vae.eval()
    means, deviations = [], []
    for start in range(0, len(drawn), 64):
        posterior = vae.encode(to_tensor(drawn[start : start + 64])).latent_dist
        means.append(posterior.mean.half().contiguous())
        deviations.append(posterior.std.half().contiguous())
    ids = build.tokenise([data.caption(scene) for scene in scenes])
    cached = {"mean": torch.cat(means), "deviation": torch.cat(deviations), "ids": ids}
    work.mkdir(parents=True, exist_ok=True)
    save_file(cached, file)
    return cached
