"""How much candidates of one prompt differ from each other, and how far a model has drifted from its base.

Distances are Euclidean between embeddings, `(media) -> [n, d]`. The one that needs no download is `pixels`: pictures
brought to 16 x 16, so that a distance is the root mean square difference of colour, 0 the same, 1 black against white.
It sees layout and colour, not meaning; whoever has an encoder passes it instead.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from palate.evaluation.win_rate import Interval, Mean, mean, ratio
from palate.prompts import rows_by_prompt

Array = NDArray[np.float64]
Embed = Callable[[Sequence[Any]], ArrayLike]
SIDE = 16


@dataclass(frozen=True)
class Diversity:
    """Of the base and the tuned model: mean distance between two candidates of a prompt; their ratio, tuned to base.

    drift: mean distance of a tuned sample from the base's of the same noise. In `base` one reads how much that is: as
    far apart as two draws of the base are.
    """

    base: Mean
    tuned: Mean
    ratio: float
    ratio_ci95: Interval
    drift: Mean


def pixels(media: Sequence[Any]) -> Array:
    """[n, 768] of pictures, or of videos by the mean over their frames. Raises TypeError for other media."""
    rows = []
    for medium in media:
        frames = medium if isinstance(medium, list | tuple) else [medium]
        if not frames or not all(isinstance(frame, Image.Image) for frame in frames):
            raise TypeError(f"pixels are of pictures and videos, not of {type(medium).__name__}")
        small = [np.asarray(f.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) for f in frames]
        rows.append(np.mean(small, axis=0).ravel() / 255)
    return np.stack(rows) / np.sqrt(SIDE * SIDE * 3)


def spread(embedded: ArrayLike, prompts: Sequence[Hashable]) -> tuple[Array, list[Hashable]]:
    """Each prompt's mean distance between two of its candidates, [n_prompts], and the prompts, in order of coming.

    Prompts with one candidate have none and are left out.
    """
    vectors = np.asarray(embedded, np.float64)
    rows = rows_by_prompt(prompts)
    found = {prompt: _spread(vectors[own]) for prompt, own in rows.items() if len(own) > 1}
    return np.array(list(found.values()), np.float64), list(found)


def compare(
    base: Sequence[Any], tuned: Sequence[Any], prompts: Sequence[Hashable], *, embed: Embed = pixels, seed: int = 0
) -> Diversity | None:
    """Paired media [n], several of each prompt; None where no prompt has two candidates."""
    before, after = np.asarray(embed(base), np.float64), np.asarray(embed(tuned), np.float64)
    of_base, names = spread(before, prompts)
    of_tuned, _ = spread(after, prompts)
    if not names:
        return None
    share, ends = ratio(of_tuned, of_base, seed=seed)
    away = np.sqrt(np.square(after - before).sum(-1))
    return Diversity(
        mean(of_base, names, seed=seed), mean(of_tuned, names, seed=seed), share, ends, mean(away, prompts, seed=seed)
    )


def _spread(vectors: Array) -> float:
    i, j = np.triu_indices(len(vectors), 1)
    return float(np.sqrt(np.square(vectors[i] - vectors[j]).sum(-1)).mean())
