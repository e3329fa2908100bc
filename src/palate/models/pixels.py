"""Pictures as vision towers see them: resized, cut or padded to a square, scaled and normalised.

By Pillow alone, so that a score does not depend on which image back end happens to be installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Triple = tuple[float, float, float]
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, as OpenAI published them
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Pixels:
    """Pictures -> [n, 3, size, size] float32.

    fit: `crop`, the shorter side becomes `resize` and the middle is kept; `pad`, the longer side does and the rest is
    black; `stretch`, both do. By bicubic resampling unless `resample` says otherwise. half_even: the first row and
    column kept are round(margin / 2), half to even, as torchvision's CenterCrop has it, rather than margin // 2, as
    transformers does: one pixel further for margins of 3, 7, 11 ...
    """

    size: int
    resize: int
    fit: Literal["crop", "pad", "stretch"] = "crop"
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    resample: int = Image.Resampling.BICUBIC
    half_even: bool = False

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        arrays = np.stack([np.asarray(self._square(picture.convert("RGB")), np.float32) for picture in pictures])
        normal = (arrays / 255 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(0, 3, 1, 2)))

    def _square(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        if self.fit == "stretch":
            return picture.resize((self.size, self.size), self.resample)
        if self.fit == "pad":
            scale = self.resize / max(width, height)
            width, height = max(1, round(width * scale)), max(1, round(height * scale))
        else:
            short = min(width, height)
            width, height = int(self.resize * width / short), int(self.resize * height / short)
        resized = picture.resize((width, height), self.resample)
        left, top = self._half(width - self.size), self._half(height - self.size)
        return resized.crop((left, top, left + self.size, top + self.size))  # beyond its edges it is black

    def _half(self, extra: int) -> int:
        if extra < 0:
            return -(-extra // 2)
        return round(extra / 2) if self.half_even else extra // 2


def of_folder(where: str, size: int) -> Pixels:
    """As a folder's (or hub id's) preprocessor_config.json says, as CLIP does where it says nothing.

    size: of the pictures that the tower takes. Raises ValueError for a config of another kind.
    """
    held = _config(where)
    if held is None:
        return Pixels(size, size)
    crop, resize = _edge(held.get("crop_size", size)), held.get("size", size)
    stretched = isinstance(resize, Mapping) and "height" in resize
    if not held.get("do_center_crop", True) and not stretched:
        raise ValueError(f"{where}: its preprocessor_config.json keeps pictures oblong, which no square tower takes")
    return Pixels(
        _edge(resize) if stretched else crop,
        _edge(resize),
        "stretch" if stretched else "crop",
        _triple(held.get("image_mean", CLIP_MEAN)),
        _triple(held.get("image_std", CLIP_STD)),
        int(held.get("resample", Image.Resampling.BICUBIC)),
    )


def _config(where: str) -> dict[str, Any] | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    name = "preprocessor_config.json"
    path = Path(where) / name
    if not Path(where).exists():
        try:
            path = Path(hf_hub_download(where, name))
        except RemoteEntryNotFoundError:  # it has none; one that cannot be reached may well have
            return None
    if not path.is_file():
        return None
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return held


def _edge(size: Any) -> int:
    if isinstance(size, Mapping):
        edges = set(size.values())
        if len(edges) != 1:
            raise ValueError(f"preprocessor_config.json wants pictures of {dict(size)}, which is not square")
        return int(edges.pop())
    return int(size)


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return float(red), float(green), float(blue)
