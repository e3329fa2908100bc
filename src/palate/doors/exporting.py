"""`palate export`: a finished run's weights with their card, as they are or added into the base, for others to load."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from palate import durable
from palate.config import ConfigError
from palate.doors import asked, lookup
from palate.evaluation import card
from palate.models.diffusion import DiffusionPolicy
from palate.training import loras
from palate.training.export import save_pipeline

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def export(run: str | Path, out: str | Path | None = None, *, merge: bool = False) -> Path:
    """Writes a finished run's weights and card to a folder of their own, whole or not at all. Returns the folder.

    merge: a pipeline folder with the adapter added into the weights, computed in float32 and stored in the recipe's
    `model.dtype`: with float32 its pictures differ from the adapter's by rounding alone. out: the run's `export/`, or
    its `merged/`, by default.
    Raises ConfigError for what is no finished run and for a folder that is not empty.
    """
    run = Path(run)
    asked.run(run, finished=True)
    final = Path(out) if out else run / ("merged" if merge else "export")
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ConfigError(f"{final} is there already: choose another --out, or take it away")
    whole = run / "model"
    with durable.written_aside(final) as folder:
        if merge and not whole.is_dir():
            _merge(run, folder)
        else:
            shutil.copytree(whole if whole.is_dir() else run / "adapter", folder, dirs_exist_ok=True)
        card.write(run, folder, merged=merge and not whole.is_dir())
    print(f"{final}: {card.CARD} says how it is loaded")
    return final


def _merge(run: Path, folder: Path) -> None:
    """The run's base with all that was trained on top of it, as one pipeline."""
    base = str(lookup.base_of(run))

    def prepare(pipeline: object) -> None:
        loras.load_run(pipeline, run)
        loras.fuse(pipeline)

    settings = lookup.recipe_of(run)["model"]
    pipeline = DiffusionPolicy.load(base, prepare=prepare, call=settings.get("call")).pipeline
    if dtype := _DTYPES.get(settings.get("dtype", "")):
        pipeline.to(dtype)
    save_pipeline(pipeline, folder)
