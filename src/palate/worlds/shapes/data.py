"""Pictures of one or two simple objects, with captions and with flaws that no caption asks for.

A *request* is what a caption says: things (size, colour, shape), how the first lies to the second, and the background.
A *scene* is a request drawn once: places, a drawing style, and perhaps a flaw (a deformed object, a forbidden mark).
Everything is a pure function of a seed.

    >>> caption(sample_scene(np.random.default_rng(0)))      # doctest: +SKIP
    'a small red star left of a large blue circle on white'

Pictures are `uint8 [64, 64, 3]`; lengths are in pixels, x to the right, y down, pixel centres at half-integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from palate.worlds.shapes.language import SHAPES, Request, Thing, captions, parse_caption, requests, split

__all__ = [
    "SHAPES",
    "Request",
    "Thing",
    "captions",
    "parse_caption",
    "requests",
    "split",
]  # captions' half of the world

SIDE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 42),
    "yellow": (244, 200, 20),
    "green": (36, 156, 58),
    "cyan": (40, 188, 214),
    "blue": (40, 70, 206),
    "purple": (158, 46, 190),
}
RADII: dict[str, float] = {"small": 7.0, "large": 12.0}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "grey": (184, 184, 184),
    "cream": (240, 220, 172),
}
STYLES = ("flat", "outlined")
INK = (24, 24, 24)

SINGLE_SHARE = 0.3
GAP = 4.5  # least distance between two objects along the axis of their relation
MARGIN = 2.5  # least distance of an object from the border
PLACE_TRIES = 1000
MARK_REACH = 4.0  # half the side of the forbidden mark

# Each shape's half-extents in radii: left and right, up, down from its centre.
_EXTENT = {
    "circle": (1.0, 1.0, 1.0),
    "square": (0.88, 0.88, 0.88),
    "triangle": (1.04, 1.2, 0.6),
    "star": (1.1, 1.16, 0.94),
}


@dataclass(frozen=True)
class Deformation:
    """How an object is spoilt: squashed to half its width along `angle` (radians), or bitten at that side."""

    kind: Literal["squash", "bite"]
    angle: float


@dataclass(frozen=True)
class Object:
    """A drawn object: its centre `(x, y)` and `radius` in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    deformation: Deformation | None = None

    @property
    def deformed(self) -> bool:
        return self.deformation is not None

    @property
    def thing(self) -> Thing:
        return Thing(self.size, self.colour, self.shape)


@dataclass(frozen=True)
class Scene:
    """A picture's full record. `mark` is the centre of the forbidden mark, or None."""

    objects: tuple[Object, ...]
    relation: str | None
    background: str
    style: str
    mark: tuple[float, float] | None

    @property
    def request(self) -> Request:
        return Request(tuple(o.thing for o in self.objects), self.relation, self.background)


@dataclass(frozen=True)
class Flaws:
    """Shares of pictures with a forbidden mark, with one deformed object, and drawn with outlines."""

    mark: float = 0.20
    deformed: float = 0.15
    outlined: float = 0.50


def caption(scene: Scene) -> str:
    """The caption of a scene; flaws and style are never mentioned."""
    return str(scene.request)


# --- scenes ---------------------------------------------------------------------------------------------------------


def sample_scene(rng: np.random.Generator, flaws: Flaws | None = None, request: Request | None = None) -> Scene:
    """Draw a scene: of `request`, or of a random one (`SINGLE_SHARE` of those have one object)."""
    flaws = flaws or Flaws()
    if request is None:
        request = _sample_request(rng, None)
    style = "outlined" if rng.random() < flaws.outlined else "flat"
    marked, spoilt = rng.random() < flaws.mark, rng.random() < flaws.deformed
    while True:  # the largest of two large stars do not fit side by side: draw the radii again as well
        radii = [RADII[thing.size] + rng.uniform(-0.4, 0.4) for thing in request.things]
        centres = _place(rng, request, radii)
        mark = _place_mark(rng, request.things, radii, centres) if centres and marked else None
        if centres and (mark or not marked):
            break
    which = rng.integers(len(radii)) if spoilt else None
    objects = tuple(
        Object(t.shape, t.colour, t.size, x, y, r, _deformation(rng) if i == which else None)
        for i, (t, r, (x, y)) in enumerate(zip(request.things, radii, centres, strict=True))
    )
    return Scene(objects, request.relation, request.background, style, mark)


def dataset(
    n: int, seed: int, side: str | None = "train", flaws: Flaws | None = None
) -> tuple[list[Scene], np.ndarray]:
    """`n` scenes of one split and their pictures, `uint8 [n, 64, 64, 3]`."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, flaws, _sample_request(rng, side)) for _ in range(n)]
    return scenes, render_batch(scenes)


def _sample_request(rng: np.random.Generator, side: str | None) -> Request:
    pool = requests(side, 1 if rng.random() < SINGLE_SHARE else 2)
    return pool[rng.integers(len(pool))]


def _deformation(rng: np.random.Generator) -> Deformation:
    return Deformation("squash" if rng.random() < 0.5 else "bite", float(rng.uniform(0, 2 * np.pi)))


def _box(thing: Thing, radius: float) -> tuple[float, float, float]:
    across, up, down = _EXTENT[thing.shape]
    return across * radius, up * radius, down * radius


def _place(rng: np.random.Generator, request: Request, radii: list[float]) -> list[tuple[float, float]]:
    """Centres inside the picture; along the relation's axis the boxes are apart and the offset dominates twofold.

    Empty if `PLACE_TRIES` random places did not do.
    """
    boxes = [_box(thing, radius) for thing, radius in zip(request.things, radii, strict=True)]
    for _ in range(PLACE_TRIES):
        centres = [
            (
                float(rng.uniform(MARGIN + across, SIDE - MARGIN - across)),
                float(rng.uniform(MARGIN + up, SIDE - MARGIN - down)),
            )
            for across, up, down in boxes
        ]
        if request.relation is None:
            return centres
        first, second = (0, 1) if request.relation in ("left of", "above") else (1, 0)
        dx, dy = (centres[second][k] - centres[first][k] for k in (0, 1))
        if request.relation in ("left of", "right of"):
            clear, along, aside = dx - boxes[first][0] - boxes[second][0], dx, abs(dy)
        else:
            clear, along, aside = dy - boxes[first][2] - boxes[second][1], dy, abs(dx)
        if clear >= GAP and along >= 2 * aside:
            return centres
    return []


def _place_mark(
    rng: np.random.Generator, things: Sequence[Thing], radii: Sequence[float], centres: Sequence[tuple[float, float]]
) -> tuple[float, float] | None:
    """A place near a random corner that is clear of all objects, or None."""
    inset = float(rng.uniform(6.5, 8.0))
    corners = [(x, y) for x in (inset, SIDE - inset) for y in (inset, SIDE - inset)]
    for k in rng.permutation(4):
        x, y = corners[k]
        reach = MARK_REACH + 3.5
        if all(
            abs(x - cx) >= across + reach or y - cy >= down + reach or cy - y >= up + reach
            for (cx, cy), (across, up, down) in zip(centres, map(_box, things, radii), strict=True)
        ):
            return x, y
    return None


# --- drawing --------------------------------------------------------------------------------------------------------


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene, `uint8 [64, 64, 3]`."""
    return render_batch([scene])[0]


def render_batch(scenes: Sequence[Scene]) -> np.ndarray:
    """The pictures of `n` scenes, `uint8 [n, 64, 64, 3]`, anti-aliased by signed distance."""
    pictures = np.empty((len(scenes), SIDE, SIDE, 3), np.uint8)
    for start in range(0, len(scenes), 64):
        pictures[start : start + 64] = _render_chunk(scenes[start : start + 64])
    return pictures


def _render_chunk(scenes: Sequence[Scene]) -> np.ndarray:
    grid = np.arange(SIDE, dtype=np.float32) + 0.5
    canvas = np.empty((len(scenes), SIDE, SIDE, 3), np.float32)
    canvas[:] = np.array([BACKGROUNDS[s.background] for s in scenes], np.float32)[:, None, None]
    for k in range(2):
        for shape in SHAPES:
            rows = [i for i, s in enumerate(scenes) if len(s.objects) > k and s.objects[k].shape == shape]
            if rows:
                drawn = [scenes[i].objects[k] for i in rows]
                fill = np.array([COLOURS[o.colour] for o in drawn], np.float32)[:, None, None]
                outlined = np.array([scenes[i].style == "outlined" for i in rows])
                canvas[rows] = _paint(canvas[rows], distance(shape, drawn, grid), fill, outlined)
    for i, scene in enumerate(scenes):
        if scene.mark is not None:
            cover = _coverage(_cross_distance(grid - scene.mark[0], (grid - scene.mark[1])[:, None]))[..., None]
            canvas[i] += cover * (np.array(INK, np.float32) - canvas[i])
    return np.rint(canvas).astype(np.uint8)


def _paint(canvas: np.ndarray, away: np.ndarray, fill: np.ndarray, outlined: np.ndarray) -> np.ndarray:
    """Fill where the distance is negative; an outline is ink from 0.6 px within to 1.5 px beyond the edge."""
    outside = _coverage(away - 1.5 * outlined[:, None, None])[..., None]
    inside = _coverage(away + 0.6 * outlined[:, None, None])[..., None]
    rim = np.where(outlined[:, None, None, None], np.array(INK, np.float32), fill)
    canvas = canvas + outside * (rim - canvas)
    return canvas + inside * (fill - canvas)


def _coverage(away: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - away, 0.0, 1.0)


def distance(shape: str, drawn: Sequence[Object], grid: np.ndarray) -> np.ndarray:
    """Signed distances in pixels, negative inside, `[m, side, side]`, of `m` objects of one shape on a square grid."""
    cx, cy, r = (np.array([getattr(o, a) for o in drawn], np.float32)[:, None, None] for a in ("x", "y", "radius"))
    x, y = (grid[None, None, :] - cx) / r, (grid[None, :, None] - cy) / r
    x, y = np.broadcast_arrays(x, y)
    squashed = [i for i, o in enumerate(drawn) if o.deformation and o.deformation.kind == "squash"]
    bitten = [i for i, o in enumerate(drawn) if o.deformation and o.deformation.kind == "bite"]
    if squashed:
        x, y = x.copy(), y.copy()
        cos, sin = _direction(drawn, squashed)
        along = cos * x[squashed] + sin * y[squashed]
        x[squashed] += along * cos  # twice the distance along the axis: half the width
        y[squashed] += along * sin
    away = _UNIT[shape](x, y)
    if squashed:
        step = float(grid[1] - grid[0])
        slope = np.hypot(*np.gradient(away[squashed] * r[squashed], step, axis=(1, 2)))
        away[squashed] /= np.maximum(slope, 0.5)
    if bitten:
        cos, sin = _direction(drawn, bitten)
        hole = 0.78 - np.hypot(x[bitten] - 0.8 * cos, y[bitten] - 0.8 * sin)
        away[bitten] = np.maximum(away[bitten], hole)
    return away * r


def _direction(drawn: Sequence[Object], rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    angle = np.array([d.angle for i in rows if (d := drawn[i].deformation)], np.float32)[:, None, None]
    return np.cos(angle), np.sin(angle)


# Signed distances of the shapes of radius 1 around (0, 0); areas are alike, so that size does not tell shape.


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1.0


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx, dy = np.abs(x) - 0.88, np.abs(y) - 0.88
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Equilateral, a corner up, circumradius 1.2: fold to one side, then the distance to a segment."""
    half = np.float32(1.2 * np.sqrt(3) / 2)
    x, y = np.abs(x) - half, half / np.float32(np.sqrt(3)) - y
    fold = x + np.float32(np.sqrt(3)) * y > 0
    u = np.where(fold, (x - np.float32(np.sqrt(3)) * y) / 2, x)
    v = np.where(fold, (-np.float32(np.sqrt(3)) * x - y) / 2, y)
    u = u - np.clip(u, -2 * half, 0)
    return -np.hypot(u, v) * np.sign(v)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points, one up: outer radius 1.16, inner 0.54; fold to one tenth, then the distance to a segment."""
    outer, inner, sector = 1.16, 0.54, 2 * np.pi / 5
    rho = np.hypot(x, y)
    phi = np.abs((np.arctan2(x, -y) + sector / 2) % np.float32(sector) - np.float32(sector / 2))
    px, py = rho * np.cos(phi) - np.float32(outer), rho * np.sin(phi)
    ex, ey = np.float32(inner * np.cos(sector / 2) - outer), np.float32(inner * np.sin(sector / 2))
    t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    return np.hypot(px - t * ex, py - t * ey) * np.sign(py * ex * -1 + px * ey)


def _cross_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The forbidden mark: two crossing strokes about 2 px wide from corner to corner of an 8 px square."""
    u, v = np.abs(x + y) / np.float32(np.sqrt(2)), np.abs(x - y) / np.float32(np.sqrt(2))
    reach = np.float32(MARK_REACH * np.sqrt(2) - 1)
    stroke = np.minimum(np.maximum(u, v - reach), np.maximum(v, u - reach))
    return stroke - np.float32(1.1)


_UNIT = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
