"""The shapes world's second model, `world:shapes-flow`: rectified flow, a transformer, a `StableDiffusion3Pipeline`.

Pictures, captions, oracle and annotators are the world's own; `build` has the model's parts. Its folder holds no T5:
with plain diffusers, load it with `text_encoder_3=None, tokenizer_3=None`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from palate.worlds.shapes import category, prompts, scorer

__all__ = ["call_defaults", "category", "prompts", "sampling_defaults", "scorer", "weights_dir", "world"]


def weights_dir() -> Path:
    """The folder of the shipped `StableDiffusion3Pipeline`; `world.json` lies beside the pipeline's files."""
    return Path(__file__).parent / "weights"


def world() -> dict[str, Any]:
    """The model's record: `sampling` settings, how it was trained, and how it was measured to draw."""
    return json.loads((weights_dir() / "world.json").read_text())


def sampling_defaults() -> dict[str, Any]:
    """The settings the model is shipped and measured with: `num_inference_steps`, `eta`, `guidance_scale`."""
    return dict(world()["sampling"])


def call_defaults() -> dict[str, Any]:
    """Arguments of every call of its pipeline. Where there is no T5 the pipeline gives the denoiser 256 zero tokens, or
    as many as it is told: none is as good and takes a quarter of the time."""
    return {"max_sequence_length": 0}
