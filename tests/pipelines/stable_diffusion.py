"""Stable Diffusion 1 and 2, SDXL and what is made of them: v-prediction, turbo, latent consistency, EDM, PAG.

Schedulers and their settings are those of runwayml/stable-diffusion-v1-5, sdxl-base-1.0, sdxl-turbo, LCM_Dreamshaper_v7
and playground-v2.5.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo
from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]


def epsilon() -> Build:
    return zoo.sd15.__wrapped__(), {}


def v_zero_snr() -> Build:
    return zoo.sd_v_zero_snr.__wrapped__(), {}


def pag() -> Build:
    """Perturbed attention in the middle block, as the class does by default."""
    base, _ = epsilon()
    return _as(diffusers.StableDiffusionPAGPipeline, base, pag_applied_layers="mid"), {}


def xl() -> Build:
    return zoo.sdxl.__wrapped__(), {}


def xl_turbo() -> Build:
    """Distilled: ancestral Euler over trailing steps, made for one to four of them without guidance."""
    pipeline, _ = xl()
    pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler(
        **zoo.NOISE_TABLE, steps_offset=1, timestep_spacing="trailing"
    )
    return pipeline, {}


def xl_edm() -> Build:
    """Playground v2.5: Karras' preconditioning in the scheduler, latents with a mean and scale per channel."""
    pipeline, _ = xl()
    pipeline.scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_max=80.0, sigma_min=0.002, sigma_data=0.5)
    pipeline.vae.register_to_config(
        latents_mean=[-1.6574, 1.886, -1.383, 2.5155],
        latents_std=[8.4927, 5.9022, 6.5498, 5.2299],
        scaling_factor=0.5,
    )
    return pipeline, {}


def xl_pag() -> Build:
    base, _ = xl()
    return _as(diffusers.StableDiffusionXLPAGPipeline, base, pag_applied_layers="mid", add_watermarker=False), {}


def latent_consistency() -> Build:
    """LCM: guidance is an embedding of the clock, the scheduler jumps to x0 and back."""
    base, _ = epsilon()
    torch.manual_seed(20)
    scheduler = diffusers.LCMScheduler(
        **zoo.NOISE_TABLE, clip_sample=False, set_alpha_to_one=True, original_inference_steps=50
    )
    unet = diffusers.UNet2DConditionModel.from_config(base.unet.config, time_cond_proj_dim=8)
    return _as(diffusers.LatentConsistencyModelPipeline, base, unet=unet, scheduler=scheduler), {}


def _as(kind: Any, base: Any, **options: Any) -> Any:
    """A pipeline of another class over the parts of `base`."""
    return parts.finish(kind(**{**base.components, "image_encoder": None, **_unchecked(kind), **options}))


def _unchecked(kind: Any) -> dict[str, Any]:
    known = kind.__init__.__code__.co_varnames
    return {"requires_safety_checker": False} if "requires_safety_checker" in known else {}


BUILDS = {
    "StableDiffusionPipeline": epsilon,
    "StableDiffusionPipeline (v)": v_zero_snr,
    "StableDiffusionPAGPipeline": pag,
    "StableDiffusionXLPipeline": xl,
    "StableDiffusionXLPipeline (turbo)": xl_turbo,
    "StableDiffusionXLPipeline (EDM)": xl_edm,
    "StableDiffusionXLPAGPipeline": xl_pag,
    "LatentConsistencyModelPipeline": latent_consistency,
}
