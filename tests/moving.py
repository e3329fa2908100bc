"""Models of videos and sounds as commands take them: folders of runs, whose recipes say how small they draw."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from tests import pipelines

FRAME_RATE = 8


def run_of(build: str, folder: Path, *, seed: int | None = None, **call) -> str:
    """A run's folder around a tiny pipeline, fully trained so to speak. seed: of weights of its own."""
    pipeline, tiny = pipelines.build(build)
    if seed is not None:
        torch.manual_seed(seed)
        trained = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet
        for weight in trained.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    pipeline.save_pretrained(folder / "model")
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"name": str(folder / "model"), "call": tiny | call}}))
    return str(folder)
