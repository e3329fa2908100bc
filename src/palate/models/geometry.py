"""The sizes pictures come in: buckets of equal area and other aspect ratios.

What a denoiser is told of a size (SDXL's size ids, position ids of transformers) comes from the pipeline's own call at
that size, proven as at load: `DiffusionPolicy.at`. A picture is resized to cover its bucket and cropped in the middle,
never flipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageOps

STEP = 64  # pixels between sizes of buckets: latents and patches of all known models divide it
WIDEST = 2.0  # aspect ratio of the widest bucket; the highest is its inverse

Size = tuple[int, int]  # height and width in pixels


def buckets(area: int, step: int = STEP, widest: float = WIDEST) -> list[Size]:
    """For each height the widest size of at most that area in pixels, sides multiples of `step`, as for SDXL."""
    found = []
    for height in range(step, math.isqrt(round(area * widest)) + 1, step):
        width = area // height // step * step
        if width and 1 / widest <= width / height <= widest:
            found.append((height, width))
    return found


def nearest(pictures: Sequence[Size], sizes: Sequence[Size]) -> Size:
    """The bucket of one prompt's candidates: of the aspect ratio nearest to their mean one, as a logarithm."""
    mean = sum(math.log(width / height) for height, width in pictures) / len(pictures)
    return min(sizes, key=lambda size: (abs(math.log(size[1] / size[0]) - mean), -size[0] * size[1]))


def fitted(picture: Any, size: Size) -> Any:
    """The picture resized to cover the size and cropped in the middle; itself, if it has that size."""
    if not isinstance(picture, Image.Image) or picture.size == (size[1], size[0]):
        return picture
    return ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)


def size_of(policy: Any) -> Size | None:
    """Height and width of the pictures a policy draws; None if it draws no pictures."""
    (made,) = policy.decode(torch.zeros(1, *policy.latent_shape, device=policy.device))
    return (made.height, made.width) if isinstance(made, Image.Image) else None
