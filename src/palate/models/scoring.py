"""What judges share: media as single pictures, batches, and numbers that are numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from palate.models.contracts import Media

Precision = Literal["float32", "float16", "bfloat16"]
Judge = Callable[[list[str], list[Any]], Tensor]  # prompts [n], single pictures or sounds [n] -> scores [n]

_log = logging.getLogger("palate")


class PictureJudge:
    """A scorer `{name: [n]}` of pictures, and of videos by the mean over at most `frames` of their frames.

    judge: prompts [n] and pictures [n] -> scores [n], which is all that such scorers differ in.
    """

    judges = ("pictures", "videos")

    def __init__(
        self, name: str, judge: Judge, batch_size: int = 32, frames: int = 16, *, reads_prompts: bool = True
    ) -> None:
        self.dimensions, self.reads_prompts = (name,), reads_prompts
        self._name, self._judge, self._batch_size, self._frames = name, judge, batch_size, frames

    def __call__(self, prompts: Sequence[str], media: Sequence[Media]) -> dict[str, np.ndarray]:
        parts = frames(self._name, media, self._frames)
        return score(self._name, prompts, media, parts, self._judge, self._batch_size)


def score(
    name: str, prompts: Sequence[str], media: Sequence[Media], parts: Sequence[Sequence[Any]], judge: Judge, size: int
) -> dict[str, np.ndarray]:
    """`{name: [n]}`, float64: a medium's score is the mean over its parts (frames, windows), judged `size` at a time.

    Raises ValueError naming the row for a score that is not finite: weights or a precision that overflow.
    """
    if len(prompts) != len(media):
        raise ValueError(f"{name}: {len(prompts)} prompts for {len(media)} media")
    flat = [(row, part) for row, some in enumerate(parts) for part in some]
    rows = np.array([row for row, _ in flat], np.int64)
    scores = np.zeros(len(flat))
    for start in range(0, len(flat), size):
        some = flat[start : start + size]
        with torch.no_grad():
            given = judge([prompts[row] for row, _ in some], [part for _, part in some])
        scores[start : start + len(some)] = given.double().cpu().numpy()
    if bad := sorted({int(row) for row in rows[~np.isfinite(scores)]}):
        raise ValueError(
            f"{name} gave no finite score for {len(bad)} of {len(media)} media, row {bad[0]} first (prompt "
            f"{prompts[bad[0]]!r:.80}): its weights are broken, or its precision is too low (dtype:float32)"
        )
    sums = np.bincount(rows, weights=scores, minlength=len(media))
    return {name: sums / np.bincount(rows, minlength=len(media)) if len(media) else np.zeros(0)}


def frames(name: str, media: Sequence[Media], most: int) -> list[list[Image.Image]]:
    """Each medium as pictures: itself, or at most `most` frames of a video, evenly spaced with both ends.

    A video is a list of pictures, or an array [F, H, W, 3] of bytes or of 0 to 1. Raises ValueError naming the row.
    """
    return [_frames(name, row, medium, most) for row, medium in enumerate(media)]


def _frames(name: str, row: int, medium: Media, most: int) -> list[Image.Image]:
    if isinstance(medium, Image.Image):
        return [medium]
    if isinstance(medium, np.ndarray | Tensor) and medium.ndim == 4 and medium.shape[-1] == 3 and len(medium):
        picked = np.asarray(medium[_evenly(len(medium), most)])
        if picked.dtype != np.uint8:
            picked = (picked.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)
        return [Image.fromarray(frame) for frame in picked]
    if isinstance(medium, list | tuple) and medium and all(isinstance(frame, Image.Image) for frame in medium):
        return [medium[place] for place in _evenly(len(medium), most)]
    raise ValueError(f"{name} judges pictures and videos, and row {row} is a {type(medium).__name__}")


def _evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(place) for place in np.linspace(0, count - 1, most)] if most > 1 else [count // 2]


class Words:
    """Prompts as tokens [n, limit], cut at `limit`; the first time any is cut, it is said."""

    def __init__(self, name: str, tokenizer: Any, limit: int) -> None:
        self._name, self._tokenizer, self._limit, self._said = name, tokenizer, limit, False

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, padded to the limit, so that no prompt's batch changes its shape."""
        if not self._said:
            self._tell(prompts)
        made = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self._limit, return_tensors="pt"
        )
        return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}

    def _tell(self, prompts: Sequence[str]) -> None:
        longer = self._tokenizer(list(prompts), truncation=True, max_length=self._limit + 1)["input_ids"]
        cut = [prompt for prompt, tokens in zip(prompts, longer, strict=True) if len(tokens) > self._limit]
        if cut:
            self._said = True
            _log.warning(
                "%s reads %d tokens of a prompt; longer ones are cut: %.60r...", self._name, self._limit, cut[0]
            )


def distinct(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The distinct prompts in order, and of which of them each row is."""
    known = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(known), [known[prompt] for prompt in prompts]


def settle(module: Any, device: str, dtype: Precision) -> Any:
    """The module in eval mode, frozen, on its device and in its precision."""
    return module.to(device=device, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
