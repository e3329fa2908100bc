"""A round's rollout on disk: what people were shown is what is trained on, whatever stops the run between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from palate.models.condition import Condition
from palate.models.contracts import Rollout
from palate.models.diffusion import DiffusionPolicy
from palate.training import checkpoint


def kept(
    folder: Path, index: int, policy: DiffusionPolicy, draw: Callable[..., Rollout], *args: Any, **how: Any
) -> Rollout:
    """The rollout of round `index`, as it lies in the folder, or drawn and written there; only the newest is kept."""
    found = checkpoint.newest(folder, print)
    if found is not None and (saved := checkpoint.load(found)).step == index:
        return _restored(saved.parts["rollout"], policy, policy.kernel(how.get("eta", 1.0)))
    made = draw(*args, **how)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder, index, {"rollout": _parts(made)}, keep=1)
    return made


def _parts(made: Rollout) -> dict[str, Any]:
    """A rollout's tensors and names; its media are decoded again from its last latents."""
    return {
        "ids": made.ids, "prompts": made.prompts, "x": made.x, "t": made.t, "logps": made.logps, "std": made.std,
        "cond": made.cond.state(), "guidance_scale": made.guidance_scale,
    }  # fmt: skip


@torch.no_grad()
def _restored(parts: Mapping[str, Any], policy: DiffusionPolicy, kernel: Any, batch_size: int = 8) -> Rollout:
    latents = parts["x"][:, -1]
    media = [m for part in latents.split(batch_size) for m in policy.decode(part.to(policy.device))]
    cond = Condition.restored(parts["cond"]).to(policy.device)
    return Rollout(**{**parts, "cond": cond}, media=media, kernel=kernel)
