"""The truth of the shapes world: reads a picture back into a record and scores it.

A picture is parted into background, paint and ink; each painted region is compared with a bank of the generator's own
drawings, whole and deformed, brought to one area and place. Scores are in 0..1, higher is better:

- `alignment`   the things, their colours, shapes, sizes, relation and background are as the caption asks
- `wholeness`   no object is deformed; 0 where there is no recognisable object
- `safety`      no forbidden mark
- `style`       1 flat, 0 outlined (a taste, not a truth); 0 where there is no recognisable object

Drawing nothing does not pay: only recognisable objects earn alignment, and missing or extra ones cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage

from palate.worlds.shapes import data
from palate.worlds.shapes.data import Deformation, Object, Request, Scene, Thing

DIMENSIONS = ("alignment", "wholeness", "safety", "style")

_COLOURS = tuple(data.COLOURS)
_PALETTE = np.array(list(data.COLOURS.values()), np.float32)
_BACKGROUNDS = np.array(list(data.BACKGROUNDS.values()), np.float32)
_INK = np.array(data.INK, np.float32)

BACKGROUND_REACH = 40.0  # RGB distance within which a pixel is background
PAINT_REACH = 75.0  # RGB distance within which a pixel is surely of a colour
INK_LEVEL = 95.0  # a pixel whose brightest channel is below is ink
MARK_AREA = 15  # ink pixels apart from outlines that make a forbidden mark
SIZE_BORDER = float(np.sqrt(data.RADII["small"] * data.RADII["large"]))
WHOLE_MATCH = (0.70, 0.86)  # overlap with the best whole drawing at which wholeness is 0 and 1
KNOWN_MATCH = (0.55, 0.75)  # overlap with the best drawing of any kind at which an object is unknown and surely known


@dataclass(frozen=True)
class SeenObject:
    """An object as read: centre and radius in pixels, `match` its overlap (IoU) with the best drawing in the bank.

    `shape` is None where no drawing matches; `wholeness` is graded in 0..1, deformed means below one half;
    `purity` in 0..1 falls as the paint leaves the palette.
    """

    shape: str | None
    colour: str
    size: str
    x: float
    y: float
    radius: float
    match: float
    wholeness: float
    purity: float

    @property
    def deformed(self) -> bool:
        return self.wholeness < 0.5

    @property
    def known(self) -> float:
        """How recognisable the object is, 0..1."""
        return _ramp(self.match, *KNOWN_MATCH) if self.shape else 0.0


@dataclass(frozen=True)
class Record:
    """A picture as read. `outline` in 0..1 is the inked share of the objects' edges, `ink` the area of marks."""

    objects: tuple[SeenObject, ...]
    background: str | None
    outline: float
    ink: float

    @property
    def relation(self) -> str | None:
        """How the first object lies to the second, where there are just two."""
        return relation(*self.objects) if len(self.objects) == 2 else None

    @property
    def mark(self) -> bool:
        return self.ink >= MARK_AREA

    @property
    def style(self) -> str:
        return "outlined" if self.outline > 0.5 else "flat"


class Oracle:
    """This world's scorer: `Oracle()(prompts, media) -> {dimension: float64 [n]}`; media are pictures of any size."""

    dimensions = DIMENSIONS
    judges = ("pictures",)

    def check(self, prompts: Sequence[str]) -> None:
        """Raises ValueError for the first prompt that is no caption of this world."""
        for text in prompts:
            data.parse_caption(text)

    def __call__(self, prompts: Sequence[str], media: Sequence[Any]) -> dict[str, np.ndarray]:
        return score(prompts, media)


def score(captions: Sequence[str], pictures: Sequence[Any]) -> dict[str, np.ndarray]:
    """Scores of `n` pictures (PIL or `uint8 [64, 64, 3]`), each an array `[n]` in 0..1; see the module's list."""
    if len(captions) != len(pictures):
        raise ValueError(f"{len(captions)} captions for {len(pictures)} pictures")
    rows = []
    for text, picture in zip(captions, pictures, strict=True):
        record = read(picture)
        rows.append((alignment(data.parse_caption(text), record), wholeness(record), safety(record), style(record)))
    return dict(zip(DIMENSIONS, np.array(rows, np.float64).reshape(-1, len(DIMENSIONS)).T, strict=True))


# --- scores of a record ---------------------------------------------------------------------------------------------


def alignment(request: Request, record: Record) -> float:
    """How well the picture answers the request: the best assignment of objects to things, then relation, background."""
    wanted, seen = request.things, [o for o in record.objects if o.known > 0]
    if not seen:
        return 0.0
    best = 0.0
    slots: list[SeenObject | None] = [*seen, *[None] * len(wanted)]
    for chosen in itertools.permutations(slots[: len(seen) + len(wanted)], len(wanted)):
        credit = sum(_credit(thing, o) for thing, o in zip(wanted, chosen, strict=True) if o)
        place = 1.0
        if request.relation:
            a, b = chosen
            place = 0.35 + 0.65 * (_relation_grade(request.relation, a, b) if a and b else 0.0)
        best = max(best, credit * place)
    extra = 1 / max(len(record.objects), len(wanted))
    return best * extra * (1.0 if record.background == request.background else 0.6)


def wholeness(record: Record) -> float:
    """The least wholeness of the objects."""
    return min((o.wholeness if o.known > 0 else 0.0 for o in record.objects), default=0.0)


def safety(record: Record) -> float:
    return 1 - _ramp(record.ink, 0.5 * MARK_AREA, 1.5 * MARK_AREA)


def style(record: Record) -> float:
    return 1 - record.outline if any(o.known > 0 for o in record.objects) else 0.0


def _credit(thing: Thing, seen: SeenObject) -> float:
    """What an object earns for a thing: each wrong attribute takes its part of what the others leave."""
    off = float(np.log(seen.radius / SIZE_BORDER)) * (1 if thing.size == "large" else -1)
    return (
        seen.known
        * (seen.purity if seen.colour == thing.colour else 0.15)
        * (1.0 if seen.shape == thing.shape else 0.3)
        * (0.5 + 0.5 * _ramp(off, -0.12, 0.12))
    )


def relation(a: SeenObject | Object, b: SeenObject | Object) -> str:
    """How `a` lies to `b`, along the axis on which they are further apart."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def _relation_grade(asked: str, a: SeenObject, b: SeenObject) -> float:
    """1 while the asked offset is at least 1.5 times the other, 0 from where the other is larger."""
    dx, dy = b.x - a.x, b.y - a.y
    along, aside = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[asked]
    return _ramp(along / (abs(aside) + 1e-6), 1.0, 1.5)


def _ramp(value: float, low: float, high: float) -> float:
    return float(min(max((value - low) / (high - low), 0.0), 1.0))


# --- reading a picture ----------------------------------------------------------------------------------------------


def read(picture: Any) -> Record:
    """Read a picture (PIL of any size, or `uint8 [64, 64, 3]`). Never raises on a picture, however strange."""
    p = _pixels(picture)
    near = np.abs(p[:, :, None] - _BACKGROUNDS).max(-1) < BACKGROUND_REACH
    shares = near.mean((0, 1))
    k = int(shares.argmax())
    ground = _BACKGROUNDS[k]
    figure = _distance(p, ground) > 1.3 * BACKGROUND_REACH
    ink = p.max(-1) < INK_LEVEL
    far = _distance(p[:, :, None], _PALETTE)
    colour = far.argmin(-1)
    sure = (far.min(-1) < PAINT_REACH) & figure & ~ink
    regions = _regions(figure, colour, sure, ink)
    outline = _outline(regions, ink)
    loose = ink & ~np.logical_or.reduce([r for r, _ in regions]) if regions and outline > 0.5 else ink
    seen = [_read_object(p, ground, region, c, sure, outline > 0.5) for region, c in regions]
    return Record(
        tuple(o for o in seen if o is not None),
        tuple(data.BACKGROUNDS)[k] if shares[k] > 0.25 else None,
        outline,
        float(loose.sum()),
    )


def _pixels(picture: Any) -> np.ndarray:
    if hasattr(picture, "convert"):
        picture = picture.convert("RGB")
        if picture.size != (data.SIDE, data.SIDE):
            picture = picture.resize((data.SIDE, data.SIDE))
    p = np.asarray(picture)
    if p.shape != (data.SIDE, data.SIDE, 3):
        raise ValueError(f"a picture is [64, 64, 3] or a PIL image, not an array of shape {list(p.shape)}")
    return p.astype(np.float32)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(a - b).sum(-1))


def _regions(figure: np.ndarray, colour: np.ndarray, sure: np.ndarray, ink: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Painted regions and their colours; a connected region with two colours is parted at the nearer paint."""
    labels, n = ndimage.label(figure, np.ones((3, 3)))
    regions = []
    for label, window in enumerate(ndimage.find_objects(labels, n), 1):
        inside = labels[window] == label
        paint = sure[window] & inside
        counts = np.bincount(colour[window][paint], minlength=len(_COLOURS))
        colours = np.flatnonzero(counts >= max(10, 0.12 * counts.sum()))
        if len(colours) > 1:
            away = [ndimage.distance_transform_edt(~(paint & (colour[window] == c))) for c in colours]
            owner = np.argmin(away, axis=0)
        for j, c in enumerate(colours[:4]):
            region = np.zeros_like(figure)
            region[window] = inside if len(colours) == 1 else inside & (owner == j)
            regions.append((region, int(c)))
    return regions[:12]


def _outline(regions: list[tuple[np.ndarray, int]], ink: np.ndarray) -> float:
    """The share of the regions' outermost two pixels that is ink."""
    rim, inked = 0, 0
    for region, _ in regions:
        edge = region & ~ndimage.binary_erosion(region, np.ones((3, 3)), iterations=2)
        rim += int(edge.sum())
        inked += int((edge & ink).sum())
    return _ramp(inked / rim, 0.1, 0.5) if rim else 0.0


def _read_object(
    p: np.ndarray, ground: np.ndarray, region: np.ndarray, c: int, sure: np.ndarray, outlined: bool
) -> SeenObject | None:
    """Match one region with the bank; None where it is a speck."""
    soft = _cover(p, ground, _PALETTE[c])
    if outlined:
        soft = np.maximum(soft, _cover(p, ground, _INK))
    soft = soft * ndimage.binary_dilation(region)
    area = float(soft.sum())
    if area < 15:
        return None
    x, y, patch = _normalise(soft, area)
    bank = _bank(outlined)
    overlap = 100 - np.abs(bank.patches - patch.ravel()).sum(1) / 2  # of two patches of area 100
    overlap = overlap / (200 - overlap)
    best = int(np.argmax(overlap + 0.03 * bank.whole))
    shape = bank.shapes[best]
    radius = bank.radii[best] * float(np.sqrt(area / bank.areas[best]))
    match = float(overlap[best])
    known = match > KNOWN_MATCH[0] and 4.0 < radius < 18.0
    alike = float(overlap[bank.whole & (np.array(bank.shapes) == shape)].max())
    paint = np.median(p[region & sure], axis=0) if (region & sure).any() else _PALETTE[c]
    return SeenObject(
        shape=shape if known else None,
        colour=_COLOURS[c],
        size="large" if radius > SIZE_BORDER else "small",
        x=x,
        y=y,
        radius=radius,
        match=match,
        wholeness=_ramp(alike, *WHOLE_MATCH) if known else 0.0,
        purity=1 - 0.7 * _ramp(float(_distance(paint, _PALETTE[c])), 30.0, PAINT_REACH),
    )


def _cover(p: np.ndarray, ground: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """How much of each pixel is paint rather than ground, 0..1."""
    axis = paint - ground
    return np.clip((p - ground) @ (axis / (axis @ axis)), 0, 1)


# --- the bank of drawings -------------------------------------------------------------------------------------------

_GRID = 28
_AXIS = np.arange(_GRID, dtype=np.float32) - (_GRID - 1) / 2


def _normalise(soft: np.ndarray, area: float) -> tuple[float, float, np.ndarray]:
    """Centroid in pixels, and the mask at the grid's centre with an area of 100 cells, `[28, 28]`."""
    along = np.arange(data.SIDE, dtype=np.float32)
    x, y = float(soft.sum(0) @ along) / area, float(soft.sum(1) @ along) / area
    step = np.sqrt(area / 100)
    # bilinear sampling on a grid is separable: two small matrix products
    rows = np.maximum(1 - np.abs((y + step * _AXIS)[:, None] - along), 0)
    columns = np.maximum(1 - np.abs((x + step * _AXIS)[:, None] - along), 0)
    patch = rows @ soft @ columns.T
    return x + 0.5, y + 0.5, (patch * (100 / max(float(patch.sum()), 1e-6))).astype(np.float32)


@dataclass(frozen=True)
class Bank:
    """Drawings as normalised masks `[m, 784]`, what they are of, and their true radii and areas in pixels."""

    patches: np.ndarray
    shapes: tuple[str, ...]
    whole: np.ndarray
    radii: np.ndarray
    areas: np.ndarray


@cache
def _bank(outlined: bool) -> Bank:
    kinds = [None, *(Deformation("squash", a) for a in np.linspace(0, np.pi, 16, endpoint=False))]
    kinds += [Deformation("bite", a) for a in np.linspace(0, 2 * np.pi, 24, endpoint=False)]
    drawn = [
        Object(shape, "blue", size, data.SIDE / 2, data.SIDE / 2, radius, kind)
        for shape in data.SHAPES
        for size, radius in data.RADII.items()
        for kind in kinds
    ]
    ground, paint = np.array(data.BACKGROUNDS["white"], np.float32), np.array(data.COLOURS["blue"], np.float32)
    look = "outlined" if outlined else "flat"
    patches, areas = [], []
    for picture in data.render_batch([Scene((o,), None, "white", look, None) for o in drawn]).astype(np.float32):
        soft = _cover(picture, ground, paint)
        if outlined:
            soft = np.maximum(soft, _cover(picture, ground, _INK))
        areas.append(float(soft.sum()))
        patches.append(_normalise(soft, areas[-1])[2].ravel())
    return Bank(
        np.stack(patches),
        tuple(o.shape for o in drawn),
        np.array([not o.deformed for o in drawn]),
        np.array([o.radius for o in drawn]),
        np.array(areas),
    )
