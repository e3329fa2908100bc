"""Stable Diffusion 3, and with perturbed attention."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests import zoo
from tests.pipelines import parts

CALL = {"max_sequence_length": 32}


def plain() -> tuple[Any, dict[str, Any]]:
    return zoo.sd3.__wrapped__(), CALL


def three_five() -> tuple[Any, dict[str, Any]]:
    """Stable Diffusion 3.5 medium: a second attention to the picture alone, normalised queries and keys."""
    pipeline, _ = plain()
    torch.manual_seed(23)
    transformer = diffusers.SD3Transformer2DModel.from_config(
        pipeline.transformer.config, qk_norm="rms_norm", dual_attention_layers=(0,)
    )
    pipeline.register_modules(transformer=transformer)
    return parts.finish(pipeline), CALL


def pag() -> tuple[Any, dict[str, Any]]:
    base, _ = plain()
    used = {name: part for name, part in base.components.items() if name not in ("image_encoder", "feature_extractor")}
    pipeline = diffusers.StableDiffusion3PAGPipeline(**used, pag_applied_layers="blocks.0")
    return parts.finish(pipeline), CALL


BUILDS = {
    "StableDiffusion3Pipeline": plain,
    "StableDiffusion3Pipeline (3.5)": three_five,
    "StableDiffusion3PAGPipeline": pag,
}
