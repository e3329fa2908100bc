"""A style that the base never draws, and a mark: how far a picture has come to what is preferred, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from palate.doors import demo
from palate.worlds import shapes
from palate.worlds.shapes import data

NIGHT = (28.0, 28.0, 84.0)


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(Image.fromarray(np.asarray(picture)).convert("RGB"), np.float32)


def ground(image: np.ndarray) -> np.ndarray:
    """The background's colour: the median of the border, which no object reaches."""
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3),
                             image[:, -2:].reshape(-1, 3)])  # fmt: skip
    return np.median(border, axis=0)


def painted(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The picture on another background: what is near the old one's colour is moved by the difference."""
    old = ground(image)
    share = np.clip((60.0 - np.linalg.norm(image - old, axis=-1)) / 30.0, 0.0, 1.0)[..., None]
    return image + share * (colour - old)


def asked_for(prompt: str) -> np.ndarray:
    return np.array(data.BACKGROUNDS[data.parse_caption(prompt).background])


def goal(prompt: str, level: float) -> np.ndarray:
    """The background that is preferred for a prompt."""
    return asked_for(prompt) + level * (np.array(NIGHT) - asked_for(prompt))


def in_style(picture: Any, prompt: str, level: float) -> Image.Image:
    image = painted(pixels(picture), goal(prompt, level))
    return Image.fromarray(np.rint(image.clip(0, 255)).astype(np.uint8))


def marked(picture: Any) -> Image.Image:
    """The picture with a forbidden mark in the corner that is most background."""
    image = pixels(picture)
    away = np.linalg.norm(image - ground(image), axis=-1)
    corners = [(7, 7), (7, 56), (56, 7), (56, 56)]
    x, y = min(corners, key=lambda at: away[at[1] - 5 : at[1] + 6, at[0] - 5 : at[0] + 6].mean())
    out = Image.fromarray(image.astype(np.uint8))
    pen = ImageDraw.Draw(out)
    for tilt in (-1, 1):
        pen.line([(x - 4, y - 4 * tilt), (x + 4, y + 4 * tilt)], fill=data.INK, width=3)
    return out


class Judge:
    """The truth of a task: `liked` in 0..1 and what it is made of."""

    def __init__(self, task: str) -> None:
        self.level = float(task.removeprefix("style")) if task.startswith("style") else None
        self.task = task

    def __call__(self, prompts: Sequence[str], media: Sequence[Any]) -> dict[str, np.ndarray]:
        if self.level is None:
            scores = shapes.scorer()(prompts, media)
            safe = scores["safety"] * scores["alignment"]
            liked = safe if self.task == "safety" else np.mean([scores[d] for d in demo.TASTE], axis=0)
            return {"liked": liked, **{d: scores[d] for d in demo.TASTE}}
        come, back = [], []
        for prompt, medium in zip(prompts, media, strict=True):
            image, wanted = pixels(medium), goal(prompt, self.level)
            off = np.linalg.norm(ground(image) - wanted) / np.linalg.norm(asked_for(prompt) - wanted)
            come.append(max(0.0, 1.0 - float(off)))
            back.append(Image.fromarray(painted(image, asked_for(prompt)).clip(0, 255).astype(np.uint8)))
        content = shapes.scorer()(prompts, back)["alignment"]
        return {"liked": np.array(come) * content, "style": np.array(come), "content": content}
