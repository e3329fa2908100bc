"""Media to latents in the path's coordinates, by what undoes the pipeline's own decoding; no family is known here.

What a pipeline makes of a clean latent x0 before it asks its autoencoder (unpacking, permuting, scaling, centring) is
learned by value: every element of z, the autoencoder's latent, is one element of x0, scaled and shifted. Which one, it
says itself, when x0 counts its own elements digit by digit; by how much, x0 = 0 and x0 = 1 say. The result must rebuild
z for an x0 of noise; a pipeline that does anything else is refused.

Shapes: n media; one medium's x0 [...], and its z [R, ...], R rows of the autoencoder (frames, where it takes pictures).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from palate.models.probe import leaves, rebuild, swapped

AUTOENCODERS = ("vae", "movq", "vqvae")
_BASE = 256  # of the digits in which x0 counts: exact in float32 after any scaling
_MANY = 1024.0  # the size of x0 that scales are measured at
_EIGHT_BITS = 2 / 255 + 1e-3  # of media from -1 to 1, as files hold them
_CLOSE = 1e-4  # of a rebuilt z, relative to its size where that exceeds 1


def autoencoder(pipeline: Any) -> str | None:
    """What the pipeline calls its autoencoder; None without one."""
    found = (name for name in AUTOENCODERS if hasattr(getattr(pipeline, name, None), "decode"))
    return next(found, None)


def media_of(output: Any) -> list[Any]:
    """The media of a pipeline's output, one each, whatever it calls them: pictures, frames of a video, waveforms."""
    for name in ("images", "frames", "audios"):
        if hasattr(output, name):
            return list(getattr(output, name))
    return list(output[0])


@dataclass(frozen=True)
class Codec:
    """media -> x0 [n, ...]: the mode of the posterior, scaled and packed as the pipeline's decoding undoes it.

    index: for each element of a medium's z, which element of x0; None for the same order. scale, shift: z = scale x0 +
    shift, for each element of z, or [1, C, 1, ...] where they are a channel's.
    """

    vae: Any
    processor: Any
    shape: tuple[int, ...]
    z_shape: tuple[int, ...]
    index: Tensor | None
    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def encode(self, media: Sequence[Any]) -> Tensor:
        """x0 [n, ...]. Raises ValueError for media of another size, where latents are packed."""
        pixels = self.pixels(media).to(self.vae.device, self.vae.dtype)
        z = latent_of(self.vae.encode(pixels)).float()
        scale, shift = self.scale.to(z.device), self.shift.to(z.device)
        if self.index is None:
            return (z - shift) / scale
        if z.shape[1:] != self.z_shape[1:] or len(z) != len(media) * self.z_shape[0]:
            raise ValueError(
                f"media of {len(media)} give latents {tuple(z.shape)}, where the model's are {self.z_shape} each: "
                "bring all media to the size and length the model makes"
            )
        x0 = torch.empty(len(media), self.index.numel(), device=z.device)
        x0[:, self.index.to(z.device)] = (z.reshape(len(media), -1) - shift) / scale
        return x0.view(len(media), *self.shape)

    def pixels(self, media: Sequence[Any]) -> Tensor:
        """What the autoencoder encodes: pictures [n, 3, H, W] (or with one frame), videos [n, 3, F, H, W] (or their
        frames as rows), waveforms [n, C, L]."""
        first = media[0]
        if isinstance(first, Image.Image):
            made: Any = self.processor.preprocess(list(media))
            made = made[0] if isinstance(made, tuple) else made
            return made.unsqueeze(2) if len(self.z_shape) == 5 else made
        if isinstance(first, Tensor | np.ndarray) and first.ndim < 3:
            return torch.stack([torch.as_tensor(medium) for medium in media])
        frames = [frame for medium in media for frame in _pictures(medium)]
        made = self.processor.preprocess(frames)
        if len(self.z_shape) < 5:
            return made
        return made.unflatten(0, (len(media), -1)).transpose(1, 2)


def _pictures(video: Any) -> list[Image.Image]:
    """Frames as pictures; arrays [F, H, W, 3] in 0 to 1 are rounded to 8 bits, as files hold them."""
    if all(isinstance(frame, Image.Image) for frame in video):
        return list(video)
    array = np.asarray(video, dtype=np.float32)
    return [Image.fromarray(frame) for frame in (array.clip(0, 1) * 255).round().astype(np.uint8)]


def latent_of(encoded: Any) -> Tensor:
    """The latent that an autoencoder's `encode` returns: the mode of a posterior, or the latent itself."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    for name in ("latent", "latents"):
        if hasattr(encoded, name):
            return getattr(encoded, name)
    return encoded[0]


Decode = Callable[[Tensor], Any]


def find_codec(pipeline: Any, decode: Decode, shape: tuple[int, ...], device: torch.device) -> Codec:
    """The codec that undoes `decode`, the pipeline's own way from x0 [1, *shape] to a medium.

    Raises ValueError where latents are altered in another way than by moving, scaling and shifting their elements.
    """
    kind, name = type(pipeline).__name__, autoencoder(pipeline)
    if name is None or not hasattr(getattr(pipeline, name), "encode"):
        raise ValueError(f"{kind} has no autoencoder that encodes; its media cannot be encoded")
    vae = getattr(pipeline, name)
    if "vocoder" in pipeline.components and not hasattr(pipeline, "video_processor"):
        raise ValueError(f"{kind} makes sound by a vocoder, which nothing undoes; its media cannot be encoded")
    listener = _Listener(pipeline, name, decode, device)
    zeros = listener(torch.zeros(1, *shape))
    count = int(np.prod(shape))
    if zeros.numel() != count:
        raise ValueError(f"{kind} decodes latents {shape} as {tuple(zeros.shape)}: some are dropped or repeated")
    shift = zeros.flatten()
    scale = (listener(torch.full((1, *shape), _MANY)).flatten() - shift) / _MANY
    index = torch.zeros(count, dtype=torch.long)
    position, place = torch.arange(count), 1
    while place < count:
        digits = (position // place) % _BASE
        read = (listener((digits / _BASE).view(1, *shape).float()).flatten() - shift) / scale * _BASE
        if bool(read.isfinite().all()):
            index += place * read.round().long()
        place *= _BASE
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    z = listener(noise).flatten()
    known = bool(scale.all()) and torch.equal(index.sort().values, position)
    if not known or float(((scale * noise.flatten()[index] + shift - z).abs() / z.abs().clamp(min=1)).max()) > _CLOSE:
        raise ValueError(f"{kind} alters latents {shape} before decoding them in a way that is not known; "
                         "its media cannot be encoded")  # fmt: skip
    processor = getattr(pipeline, "video_processor", None) or getattr(pipeline, "image_processor", None)
    processor = processor or VaeImageProcessor(do_resize=False)  # for pictures of pipelines that bring none
    made = Codec(vae, processor, shape, tuple(zeros.shape), index, scale, shift)
    try:
        off = listener.after_decoding(noise, made.pixels)
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{kind}: its media cannot be brought back to what its {name} encodes ({error})") from error
    if not off <= _EIGHT_BITS:
        raise ValueError(f"{kind} alters media after decoding them (by {off:.2g}); they cannot be encoded")
    return _by_channel(made) or made


def _by_channel(codec: Codec) -> Codec | None:
    """The same for media of any size, where nothing is moved and a channel has one scale and shift."""
    assert codec.index is not None
    if codec.z_shape != (1, *codec.shape) or not torch.equal(codec.index, torch.arange(len(codec.index))):
        return None
    scale, shift = (values.view(codec.shape[0], -1) for values in (codec.scale, codec.shift))
    if not torch.allclose(scale, scale[:, :1], rtol=1e-5) or not torch.allclose(shift, shift[:, :1], atol=1e-5):
        return None
    wide = (1, codec.shape[0], *[1] * (len(codec.shape) - 1))
    return Codec(codec.vae, codec.processor, codec.shape, codec.z_shape, None,
                 scale.mean(1).view(wide), shift.mean(1).view(wide))  # fmt: skip


class _Listener:
    """x0 -> what the autoencoder is given to decode it, [R, ...]; it really decodes once, then answers with zeros.

    The pipeline is told that its autoencoder computes in float32, so that constants come through unrounded.
    """

    def __init__(self, pipeline: Any, name: str, decode: Decode, device: torch.device):
        self._pipeline, self._name, self._decode, self._device = pipeline, name, decode, device
        self._vae = getattr(pipeline, name)
        self._answers: dict[tuple[int, ...], Any] = {}

    def __call__(self, x0: Tensor) -> Tensor:
        given: list[Tensor] = []
        vae, kind = copy.copy(self._vae), type(self._vae)
        vae.__class__ = type(kind.__name__, (kind,), {"dtype": torch.float32, "__module__": kind.__module__})

        def listen(z: Tensor, *args: Any, **kwargs: Any) -> Any:
            given.append(z.detach().float().cpu())
            shape = tuple(z.shape)
            if shape not in self._answers:
                weight = next(self._vae.parameters())
                answer = type(self._vae).decode(self._vae, z.to(weight.dtype), *args, **kwargs)
                self._answers[shape] = answer
                return answer
            return rebuild(self._answers[shape], lambda _, v: torch.zeros_like(v) if isinstance(v, Tensor) else v)

        with swapped(vae, decode=listen), swapped(self._pipeline, **{self._name: vae}):
            self._output = self._decode(x0.to(self._device))
        if not given:
            raise ValueError(f"{type(self._pipeline).__name__} does not decode by its {self._name}")
        return torch.cat(given)

    def after_decoding(self, x0: Tensor, pixels: Callable[[Sequence[Any]], Tensor]) -> float:
        """How far the media of x0 [1, ...], encoded, would be from what the autoencoder really decoded."""
        self._answers.clear()
        self(x0)
        media = media_of(self._output)
        shown = torch.cat([tensor_of(answer) for answer in self._answers.values()]).float().cpu()
        seen = pixels(media).float().cpu()
        if not isinstance(media[0], Tensor | np.ndarray):
            shown = shown.clamp(-1, 1)
        if shown.shape != seen.shape and shown.dim() > 2 and shown.transpose(1, 2).shape == seen.shape:
            shown = shown.transpose(1, 2)  # frames first, as some autoencoders decode
        return float((shown - seen).abs().max()) if shown.shape == seen.shape else torch.inf


def tensor_of(output: Any) -> Tensor:
    """The first tensor in what a module returns."""
    return next(value for _, value in leaves(output) if isinstance(value, Tensor))
