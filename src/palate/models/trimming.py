"""Embeddings without what a mask hides: most of a prompt's 300 or 512 tokens are padding, and need not be kept on disk.

What is hidden is left out only where that is proven: with zeros in its place the model must predict the same bits. Many
models attend to their padding; their embeddings stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from palate.models.contracts import Condition
from palate.models.loading import quietly

Pairs = dict[str, str]  # an embedding's entry and that of the mask that hides parts of it


def kept(mask: Tensor) -> Tensor:
    """[L], which tokens a mask of one row shows: ones among zeros, or zeros among large negative numbers."""
    flat = mask.flatten().float()
    return flat == flat.max()


@torch.no_grad()
def learned(policy: Any, prompts: Sequence[str]) -> Pairs:
    """Which embeddings [1, L, E] of these prompts, of different lengths, can be trimmed by which mask [1, L]."""
    with quietly():  # that a prompt of ours is too long for a model is nothing to tell its user
        conditions = [policy.condition([prompt]) for prompt in prompts]
    first: Mapping[str, Tensor] = conditions[0].rows
    found: Pairs = {}
    for name, value in first.items():
        if value.dim() != 3 or not value.is_floating_point():
            continue
        for mask, hides in first.items():
            if mask != name and hides.numel() == value.shape[1] and _proven(policy, conditions, name, mask):
                found[name] = mask
                break
    return found


def _proven(policy: Any, conditions: Sequence[Condition], name: str, mask: str) -> bool:
    """Whether each prompt's prediction is the same with zeros where the mask hides, and the mask hides anything."""
    hidden = 0
    for cond in conditions:
        shown = kept(cond.rows[mask])
        if cond.rows[name].shape[1] != len(shown):
            return False
        hidden += int((~shown).sum())
        blank = replace(cond, rows={**cond.rows, name: cond.rows[name] * shown[None, :, None].to(cond.rows[name])})
        x_t = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
        for seed in range(2):
            t = policy.path.sample_t(1, torch.Generator().manual_seed(seed)).to(policy.device)
            if not torch.equal(policy.predict(x_t, t, cond), policy.predict(x_t, t, blank)):
                return False
    return hidden > 0


def trimmed(cond: Condition, pairs: Pairs) -> Condition:
    """One row without what is hidden of it."""
    rows = {name: cond.rows[name][:, kept(cond.rows[mask])] for name, mask in pairs.items()}
    return replace(cond, rows={**cond.rows, **rows})


def padded(cond: Condition, pairs: Pairs) -> Condition:
    """A trimmed row in its old length, zeros in the place of what was hidden."""
    rows = {}
    for name, mask in pairs.items():
        shown, value = kept(cond.rows[mask]), cond.rows[name]
        whole = value.new_zeros(1, len(shown), value.shape[2])
        whole[:, shown] = value
        rows[name] = whole
    return replace(cond, rows={**cond.rows, **rows})
