"""The head of the aesthetic predictor and of ImageReward: five linear layers of one embedding, without activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from palate.models import pretrained

WIDTHS = (1024, 128, 64, 16, 1)
PLACES = (0, 2, 4, 6, 7)  # of the layers in the published `nn.Sequential`, whose dropouts hold no weights


def head(state: Mapping[str, Tensor], judge: str, source: str) -> nn.Sequential:
    """d -> 1024 -> 128 -> 64 -> 16 -> 1 with the weights `layers.0.weight`, `layers.0.bias`, `layers.2.weight` ...

    Raises PretrainedError naming a weight that is missing, of another shape, or one too many.
    """
    first = state.get("layers.0.weight")
    if first is None or first.dim() != 2:
        raise pretrained.PretrainedError(f"{judge}: {source} has no head: it lacks weight layers.0.weight")
    layers: list[Any] = []
    width = first.shape[1]
    for wide in WIDTHS:
        layers.append(nn.Linear(width, wide))
        width = wide
    made = nn.Sequential(*layers)
    names = {f"layers.{place}.{kind}": f"{i}.{kind}" for i, place in enumerate(PLACES) for kind in ("weight", "bias")}
    if lacking := [name for name in names if name not in state]:
        raise pretrained.PretrainedError(f"{judge}: {source} lacks weight {lacking[0]} of the head of five layers")
    pretrained.fill(made, {names.get(name, name): tensor for name, tensor in state.items()}, judge, source)
    return made
