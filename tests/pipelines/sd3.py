"""Stable Diffusion 3, and with perturbed attention."""

from __future__ import annotations

from typing import Any

import diffusers

from tests import zoo
from tests.pipelines import parts

CALL = {"max_sequence_length": 32}


def plain() -> tuple[Any, dict[str, Any]]:
    return zoo.sd3.__wrapped__(), CALL


def pag() -> tuple[Any, dict[str, Any]]:
    base, _ = plain()
    used = {name: part for name, part in base.components.items() if name not in ("image_encoder", "feature_extractor")}
    pipeline = diffusers.StableDiffusion3PAGPipeline(**used, pag_applied_layers="blocks.0")
    return parts.finish(pipeline), CALL


BUILDS = {"StableDiffusion3Pipeline": plain, "StableDiffusion3PAGPipeline": pag}
