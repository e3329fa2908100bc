"""The sizes pictures come in, buckets of equal area and other aspect ratios; and the form of videos and sounds.

What a denoiser is told of a size (SDXL's size ids, position ids of transformers) comes from the pipeline's own call at
that size, proven as at load: `DiffusionPolicy.at`. A picture is resized to cover its bucket and cropped in the middle,
never flipped. A video keeps its speed: it is cut to the frames that the model draws, at the model's rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from palate import kinds
from palate.media import MediaError
from palate.wire import Video, Waveform

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


@dataclass(frozen=True)
class Form:
    """What a policy draws. size: of its pictures, or of its videos' frames. length: frames, or samples of a sound; 0
    for pictures. rate: frames or samples a second, 0 if nobody says it. channels: of a sound."""

    kind: kinds.Kind
    size: Size | None = None
    length: int = 0
    rate: float = 0.0
    channels: int = 0

    @property
    def name(self) -> str:
        """By which media fitted to it are known; empty for pictures, whose size says all."""
        return "" if self.kind == "pictures" else f"{self.size} {self.length} {self.rate:g} {self.channels}"


def form_of(policy: Any) -> Form:
    """The form of the media that a policy draws, found by decoding one."""
    (made,) = policy.decode(torch.zeros(1, *policy.latent_shape, device=policy.device))
    kind = kinds.kind_of(made)
    if kind == "pictures":
        return Form(kind, (made.height, made.width))
    if kind == "videos":
        frames = kinds.frames_of(made)
        return Form(kind, (frames[0].height, frames[0].width), len(frames), float(getattr(made, "rate", 0)))
    sound = np.atleast_2d(made)
    return Form(kind, None, sound.shape[-1], float(getattr(made, "rate", 0)), len(sound))


def fitted(medium: Any, form: Form, size: Size | None = None) -> Any:
    """A medium in the form that a model draws; itself, if it has it or is of another kind. size: a picture's bucket.

    Raises MediaError for a video that is too short.
    """
    if isinstance(medium, Image.Image):
        return _covering(medium, size or form.size) if form.kind == "pictures" else medium
    if isinstance(medium, Video) and form.kind == "videos":
        frames = [_covering(frame, form.size) for frame in _in_time(medium, form)]
        return Video(frames, form.rate or medium.rate)
    if isinstance(medium, Waveform) and form.kind == "sounds":
        return _sounding(medium, form)
    return medium


def _covering(picture: Image.Image, size: Size | None) -> Image.Image:
    """Resized to cover the size and cropped in the middle."""
    if size is None or picture.size == (size[1], size[0]):
        return picture
    return ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)


def _in_time(video: Video, form: Form) -> list[Image.Image]:
    """As many frames as the model draws: those that its rate shows, or, of a shorter video that has as many, some from
    its first to its last."""
    there, wanted = len(video), form.length
    if there == wanted:
        return list(video)
    shown = [int(i * video.rate / form.rate + 1e-6) if form.rate else i for i in range(wanted)]
    if shown[-1] >= there:
        if there < wanted:
            raise MediaError(
                f"a video of {there} frames at {video.rate:g} a second is shorter than the {wanted} at {form.rate:g} "
                "that the model draws",
                "too short",
            )
        shown = [round(i * (there - 1) / max(wanted - 1, 1)) for i in range(wanted)]
    return [video[place] for place in shown]


def _sounding(sound: Waveform, form: Form) -> Waveform:
    """[C, L] at the model's rate and with its channels: its beginning, or silence after its end."""
    from scipy.signal import resample_poly

    array = np.atleast_2d(np.asarray(sound, np.float32))
    if len(array) != form.channels:
        array = np.repeat(array.mean(0, keepdims=True), form.channels, 0)
    if sound.rate and form.rate and sound.rate != form.rate:
        common = math.gcd(sound.rate, int(form.rate))
        array = resample_poly(array, int(form.rate) // common, sound.rate // common, axis=-1)
    array = np.pad(array[:, : form.length], [(0, 0), (0, max(0, form.length - array.shape[-1]))])
    made = array.astype(np.float32).view(Waveform)
    made.rate = int(form.rate) or sound.rate
    return made
