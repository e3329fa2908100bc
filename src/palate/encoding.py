"""Preferences as training takes them: read, decoded, and turned into latents and conditions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from palate.config import ConfigError
from palate.datasets import parquet
from palate.media import DatasetError, MediaError, decode
from palate.models.diffusion import DiffusionPolicy, check_prediction_kind
from palate.records import Preference
from palate.training.logs import Progress
from palate.training.processes import join
from palate.training.sources import PreferenceRow


def encode(
    policy: DiffusionPolicy, rows: Sequence[tuple[Preference, Sequence[Any]]], batch_size: int = 8
) -> list[PreferenceRow]:
    """Preferences with their decoded media, as latents and conditions. A medium that is None is masked."""
    encoded = []
    bar = Progress(len(rows), 0, shown=join(policy.device).first, what="encoded")
    with contextlib.closing(bar):
        for row, media in rows:
            encoded.append(_encoded(policy, row, media, batch_size))
            bar.advance(1)
    return encoded


def _encoded(policy: DiffusionPolicy, row: Preference, media: Sequence[Any], batch_size: int) -> PreferenceRow:
    there = [medium for medium in media if medium is not None]
    latents = torch.cat([policy.encode(there[i : i + batch_size]) for i in range(0, len(there), batch_size)]).cpu()
    if latents.shape[1:] != policy.latent_shape:
        sizes = sorted({medium.size for medium in there})
        raise ConfigError(
            f"{row.where or row.id}: pictures of {sizes} give latents {tuple(latents.shape[1:])}, but the model "
            f"draws {tuple(policy.latent_shape)}: bring all pictures to the size the model draws"
        )
    x0 = torch.zeros(len(media), *latents.shape[1:])
    mask = torch.tensor([medium is not None for medium in media])
    x0[mask] = latents
    finite = x0.flatten(1).isfinite().all(1)
    x0[~finite] = 0
    return PreferenceRow(
        id=row.id,
        prompt=row.prompt,
        x0=x0,
        cond=policy.condition([row.prompt]).to("cpu"),
        prefer=torch.tensor(row.prefer),
        votes=torch.tensor(row.votes) if row.votes else torch.ones(len(media), len(media)),
        scores=torch.tensor(row.scores) if row.scores else torch.full((len(media), 0), torch.nan),
        mask=mask & finite,
        weight=row.weight,
    )


def read_preferences(folder: str | Path, max_bad_fraction: float) -> list[tuple[Preference, list[Any]]]:
    """Rows and their pictures. Raises DatasetError, naming the first, if more than that share cannot be read."""
    checked = parquet.validate(folder, max_bad_fraction)
    if not checked.ok:
        bad = [f"{where}: {reason}" for where, reason in (*checked.bad_rows, *checked.bad_media)]
        found = [*checked.problems, *bad]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        mend = "mend or remove them, or allow more by data.max_bad_fraction"
        raise DatasetError(f"{folder}: {found[0] if found else checked}{more}; {mend}")
    rows = []
    for row in parquet.read(folder):
        pictures = []
        for medium, exists in zip(row.media, row.mask, strict=True):
            try:
                pictures.append(decode(medium, folder) if medium is not None and exists else None)
            except MediaError:
                pictures.append(None)  # counted by validate, within the stated share
        if any(picture is not None for picture in pictures):
            rows.append((row, pictures))
    return rows


def check_kind(policy: DiffusionPolicy, rows: Sequence[tuple[Preference, Sequence[Any]]], n: int = 16) -> None:
    """Refuses a model whose stated kind of prediction is not the one it was trained for, judged on some pictures."""
    shown = [(medium, row.prompt) for row, media in rows for medium in media if medium is not None][:n]
    check_prediction_kind(policy, [medium for medium, _ in shown], [prompt for _, prompt in shown])
