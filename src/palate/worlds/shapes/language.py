"""What can be said about the shapes world: the words, the captions and their split into train and eval.

A caption asks for one thing, or for two of different colours and how the first lies to the second:

    a large green square on grey
    a small red star left of a large blue circle on white
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

SIZES = ("small", "large")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = ("left of", "right of", "above", "below")
BACKGROUNDS = ("white", "grey", "cream")

EVAL_SHARE = 0.2

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Thing:
    """An object as a caption names it."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Request:
    """What a caption asks for: one thing, or two and how the first lies to the second."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str

    def __str__(self) -> str:
        first, *rest = map(str, self.things)
        return " ".join([first, *([str(self.relation), *rest] if rest else []), "on", self.background])


def parse_caption(text: str) -> Request:
    """The inverse of `caption`. A caption that is not of this world raises ValueError naming the part."""
    body, found, background = text.strip().rpartition(" on ")
    if not found:
        raise ValueError(f"no background in {text!r}: expected '... on <{'|'.join(BACKGROUNDS)}>'")
    _known("background", background, BACKGROUNDS, text)
    for relation in RELATIONS:
        first, found, second = body.partition(f" {relation} ")
        if found:
            things = (_parse_thing(first, text), _parse_thing(second, text))
            if things[0].colour == things[1].colour:
                raise ValueError(
                    f"two things of one colour ({things[0].colour}) in {text!r}: their colours must differ"
                )
            return Request(things, relation, background)
    return Request((_parse_thing(body, text),), None, background)


def _parse_thing(phrase: str, text: str) -> Thing:
    words = phrase.split(" ")
    if len(words) != 4 or words[0] != "a":
        raise ValueError(
            f"{phrase!r} in {text!r} is not 'a <size> <colour> <shape>' (relations: {', '.join(RELATIONS)})"
        )
    _known("size", words[1], SIZES, text)
    _known("colour", words[2], COLOURS, text)
    _known("shape", words[3], SHAPES, text)
    return Thing(*words[1:])


def _known(part: str, word: str, words: Collection[str], text: str) -> None:
    if word not in words:
        raise ValueError(f"unknown {part} {word!r} in {text!r}: one of {', '.join(words)}")


def split(text: str) -> Literal["train", "eval"]:
    """Which side a caption is on; "A left of B" and "B right of A" say the same and are always together."""
    request = parse_caption(text)
    if request.relation in ("right of", "below"):
        request = Request(request.things[::-1], OPPOSITE[request.relation], request.background)
    digest = hashlib.sha256(str(request).encode()).digest()
    return "eval" if int.from_bytes(digest[:4], "big") < EVAL_SHARE * 2**32 else "train"


@cache
def requests(side: str | None = None, things: int | None = None) -> tuple[Request, ...]:
    """Every request of this world, of one split (`train`, `eval`; None: both), with so many things (None: any)."""
    if side not in (None, "train", "eval"):
        raise ValueError(f"there is no split {side!r}: train or eval")
    nouns = [Thing(*words) for words in itertools.product(SIZES, COLOURS, SHAPES)]
    singles = (Request((noun,), None, background) for noun in nouns for background in BACKGROUNDS)
    doubles = (
        Request(pair, relation, background)
        for pair in itertools.permutations(nouns, 2)
        if pair[0].colour != pair[1].colour
        for relation in RELATIONS
        for background in BACKGROUNDS
    )
    chosen = itertools.chain(singles if things != 2 else (), doubles if things != 1 else ())
    return tuple(r for r in chosen if side is None or split(str(r)) == side)


def captions(n: int, seed: int, side: str | None = None) -> list[str]:
    """`n` distinct captions of one split (None: both), in random order."""
    every = requests(side)
    if n > len(every):
        raise ValueError(f"{n} distinct captions asked for, this world has {len(every)} ({side or 'both splits'})")
    return [str(every[i]) for i in np.random.default_rng(seed).permutation(len(every))[:n]]
