"""Pictures to latents in the path's coordinates, by what undoes the pipeline's own decoding.

A pipeline's decoding is listened to once: what latent its autoencoder is given for a known x0. Of the ways to go from
an autoencoder's latent z to x0 below, the one that undoes it is taken; a new family is a line in one of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def scalings(vae: Any) -> dict[str, Map]:
    """z to normalised z: how an autoencoder's config says its latents are centred and scaled."""
    config = vae.config
    scale, shift = getattr(config, "scaling_factor", None) or 1.0, getattr(config, "shift_factor", None) or 0.0
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    found: dict[str, Map] = {"scale and shift": lambda z: (z - shift) * scale, "none": lambda z: z}
    if mean is not None and std is not None:
        m, s = torch.tensor(mean), torch.tensor(std)

        def spread(values: Tensor, z: Tensor) -> Tensor:
            return values.to(z).view(1, -1, *[1] * (z.dim() - 2))

        found["per channel"] = lambda z: (z - spread(m, z)) / spread(s, z)
        found["per channel and scale"] = lambda z: (z - spread(m, z)) * scale / spread(s, z)
    return found


def packings(vae: Any) -> dict[str, Map]:
    """Normalised z [n, C, H, W] to x0: as it is, or 2 x 2 patches as tokens (Flux and its kin)."""

    def tokens(z: Tensor) -> Tensor:
        n, c, h, w = z.shape
        return z.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)

    return {"none": lambda z: z, "2 x 2 tokens": tokens}


@dataclass(frozen=True)
class Codec:
    """media -> x0 [n, ...]: the mode of the posterior, scaled and packed."""

    vae: Any
    processor: Any
    scaling: str
    packing: str

    @torch.no_grad()
    def encode(self, media: Sequence[Any]) -> Tensor:
        pixels = self.processor.preprocess(list(media)).to(self.vae.device, self.vae.dtype)
        encoded = self.vae.encode(pixels)
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return packings(self.vae)[self.packing](scalings(self.vae)[self.scaling](z))


def find_codec(pipeline: Any, x0: Tensor, z: Tensor) -> Codec:
    """The codec that takes z, what the autoencoder was given to decode x0, back to x0. Raises ValueError if none."""
    vae, processor = getattr(pipeline, "vae", None), getattr(pipeline, "image_processor", None)
    if vae is None or processor is None or not hasattr(vae, "encode"):
        raise ValueError(f"{type(pipeline).__name__} has no autoencoder of pictures; its media cannot be encoded")
    for (scaling, scale), (packing, pack) in product(scalings(vae).items(), packings(vae).items()):
        try:
            made = pack(scale(z))
        except (RuntimeError, ValueError):  # shapes this packing is not for
            continue
        if made.shape == x0.shape and torch.allclose(made.float(), x0.float(), rtol=1e-2, atol=1e-3):
            return Codec(vae, processor, scaling, packing)
    raise ValueError(
        f"{type(pipeline).__name__} decodes latents {tuple(x0.shape[1:])} in a way that is not known; add its scaling "
        "or packing to palate/models/codecs.py"
    )
