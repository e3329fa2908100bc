"""The shapes world: captioned pictures of simple objects whose truth is known, and a small model that draws them.

data         the generator: scenes, captions, pictures, the split into train and eval captions
oracle       reads a picture and scores it
checks       is each thing there that was asked for: strictly, as GenEval asks
annotators   simulated people with known tastes and noise
pretrain     trains the shipped model: python -m palate.worlds.shapes.pretrain
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def weights_dir() -> Path:
    """The folder of the shipped `StableDiffusionPipeline`; `world.json` lies beside the pipeline's files."""
    return Path(__file__).parent / "weights"


def world() -> dict[str, Any]:
    """The model's record: `sampling` settings, how it was trained, and how it was measured to draw."""
    return json.loads((weights_dir() / "world.json").read_text())


def sampling_defaults() -> dict[str, Any]:
    """The settings the model is shipped and measured with: `num_inference_steps`, `eta`, `guidance_scale`."""
    return dict(world()["sampling"])


def prompts(split: str = "train", n: int | None = None, seed: int = 0) -> list[str]:
    """`n` distinct captions (None: all) of `train` (the model saw them) or `eval` (it did not), in a seeded order."""
    from palate.worlds.shapes import data

    return data.captions(len(data.requests(split)) if n is None else n, seed, split)


def category(prompt: str) -> str:
    """What kind of caption it is: `one thing`, `left or right`, `above or below`."""
    from palate.worlds.shapes import checks

    return checks.category(prompt)


def scorer() -> Callable[..., dict[str, Any]]:
    """The world's scorer, `(prompts, media) -> {dimension: [n]}`."""
    from palate.worlds.shapes.oracle import Oracle

    return Oracle()
