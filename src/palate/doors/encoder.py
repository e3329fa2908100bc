"""Rows of preferences, one by one, into entries of a cache: what is missing is decoded, fitted and encoded."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from palate import datasets, durable, kinds
from palate.config import ConfigError
from palate.media import PICTURE_FORMATS, DatasetError, MediaError, medium_bytes
from palate.models import geometry, identity, trimming
from palate.models.diffusion import DiffusionPolicy
from palate.models.geometry import Size
from palate.models.identity import codec_identity, prompt_identity
from palate.records import Medium, Preference
from palate.training.cache import TensorCache, narrowed
from palate.training.labels import Shown
from palate.training.processes import Processes
from palate.training.stored import Line, save_condition, table

Change = Callable[[Preference, Shown], Preference]  # of a row, before it is used


class Census:
    """Media seen, and those that cannot be read; how many may be."""

    def __init__(self, max_bad_fraction: float, data: str) -> None:
        self.media, self.bad = 0, list[str]()
        self._allowed, self._data = max_bad_fraction, data

    def check(self, flaws: datasets.Flaws | None = None, expected: int | None = None) -> None:
        """Raises DatasetError, naming the first, if more media or rows cannot be read than may be.

        flaws: rows that a reader left out. expected: media there will be in all, to stop before the last is read.
        """
        rows = flaws.total if flaws else 0
        bad = [
            *(f"{first[0].where}: {first[0].reason}" for first in (flaws.first.values() if flaws else ())),
            *self.bad,
        ]
        if len(self.bad) + rows > self._allowed * max(self.media + rows, expected or 0):
            more = f" (and {len(self.bad) + rows - 1} more)" if len(self.bad) + rows > 1 else ""
            mend = "mend or remove them, or allow more by data.max_bad_fraction"
            raise DatasetError(f"{self._data}: {bad[0]}{more}; {mend}")


def media_of(row: Preference) -> Iterator[Medium | None]:
    return (medium if exists else None for medium, exists in zip(row.media, row.mask, strict=True))


def decoded(medium: Medium | None, root: Path | None, row: Preference, census: Census) -> Any:
    if medium is None:
        return None
    census.media += 1
    try:
        return kinds.read(medium, root)
    except MediaError as error:
        census.bad.append(f"{_named(row, medium)}: {error}")
        return None


def _named(row: Preference, medium: Medium) -> str:
    """Where a medium is: its own file, or which candidate of its row."""
    where = row.where or row.id
    if medium.path:
        return medium.path if medium.path in where else f"{where} ({medium.path})"
    return f"{where}, candidate {next(k for k, other in enumerate(row.media) if other is medium)}"


def latents_of(policy: DiffusionPolicy, media: Sequence[Any], row: Preference) -> torch.Tensor:
    """x0 [n, ...] of a row's media, on the CPU.

    Raises ConfigError if the model draws another shape, or none can be had of its media.
    """
    try:
        latents = policy.encode(media).cpu()
    except ValueError as error:
        raise ConfigError(f"{row.where or row.id}: {error}") from None
    if latents.shape[1:] != policy.latent_shape:
        sizes = ", ".join(sorted({_size(medium) for medium in media}))
        raise ConfigError(
            f"{row.where or row.id}: media of {sizes} give latents {tuple(latents.shape[1:])}, but the model "
            f"draws {tuple(policy.latent_shape)}: bring all media to the size and length that the model draws"
        )
    return latents


def _size(medium: Any) -> str:
    """In words for an error."""
    if isinstance(medium, list):
        return f"{len(medium)} frames of {_size(medium[0])}"
    return " x ".join(map(str, medium.size if isinstance(medium, Image.Image) else getattr(medium, "shape", ())))


@dataclass
class _Found:
    """A medium that was read. size: of a picture, as it stands upright. decoded: where something had to look at it.
    damaged: it was looked at, and cannot be decoded. name: where it is.
    """

    content: Medium
    digest: bytes
    size: Size | None
    name: str
    decoded: Any = None
    damaged: bool = False


def _measured(content: bytes) -> Size | None:
    """Height and width of a picture as it stands upright, without decoding it; None for what is none."""
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
            lying = picture.getexif().get(0x0112, 1) >= 5  # its orientation
            return (picture.width, picture.height) if lying else (picture.height, picture.width)
    except Exception:  # damaged data raise nearly anything; decoding says what is wrong
        return None


class Encoder:
    """Rows into entries of a cache. census: of the media. rows: so far. resized: pictures that were not as drawn;
    reshaped: videos and sounds. met: sizes that rows were brought to. codec, words: what the model encodes media and
    prompts by.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        cache: TensorCache,
        reader: datasets.Reader,
        census: Census,
        change: Change | None,
        sizes: Sequence[Size],
    ) -> None:
        """sizes: buckets that pictures are brought to; none for the one size that the model draws."""
        self._policy, self._cache, self._reader, self._change = policy, cache, reader, change
        self.census, self.rows, self.resized, self.reshaped, self._bytes = census, 0, 0, 0, 0
        self.codec, self.words = codec_identity(policy), prompt_identity(policy)
        self._alone = policy.device.type == "cpu"  # there the bits of a latent must not depend on its neighbours
        self.form = geometry.form_of(policy)
        self.drawn = self.form.size if self.form.kind == "pictures" else None
        self._sizes = list(sizes) or ([self.drawn] if self.drawn else [])
        self._views: dict[Size | None, DiffusionPolicy] = {None: policy, self.drawn: policy}
        self.met: set[Size] = set()
        self._nulls: dict[str, str] = {}

    def line(self, row: Preference, place: int) -> Line | None:
        """The row's entries made, where the cache lacks them; None if none of its media can be read. place: its own."""
        found = [self._read(medium, row) for medium in media_of(row)]
        if self._change is not None:
            content = ["" if one is None else one.digest.hex() for one in found]
            row = self._change(row, Shown(place, content, partial(self._decoded, row, found)))
        sizes = [one.size for one in found if one is not None and one.size is not None]
        size = geometry.nearest(sizes, self._sizes) if sizes and self._sizes else None
        view = self.view(size)
        where = identity.geometry(view)
        form = [self.form.name] if self.form.name else []
        keys = [None if one is None else _key(self.codec, where, *form, one.digest.hex()) for one in found]
        keys = self._encode(view, row, size, keys, found)
        if not any(keys):
            return None
        self.rows += 1
        return Line(
            id=row.id,
            prompt=row.prompt,
            media=keys,
            cond=self._condition(view, where, row.prompt),
            null=self._null(view, where),
            content=hashlib.sha256(b"".join(one.digest if one else b"" for one in found)).hexdigest(),
            prefer=table(row.prefer),
            votes=table(row.votes),
            scores=table(row.scores),
            weight=row.weight,
        )

    def _read(self, medium: Medium | None, row: Preference) -> _Found | None:
        """A medium's bytes and what they are known by; None, and counted, where it cannot be read."""
        if medium is None:
            return None
        self.census.media += 1
        with self._counted(row, name := _named(row, medium)):
            content = Medium(medium.type, bytes=medium_bytes(medium, self._reader.root))
            digest = hashlib.sha256(content.bytes or b"").digest()
            return _Found(content, digest, _measured(content.bytes or b""), name)
        return None

    def _decoded(self, row: Preference, found: Sequence[_Found | None]) -> list[Any]:
        """All media decoded; None, and counted, for one that cannot be."""
        for one in found:
            if one is not None and one.decoded is None:
                one.damaged = True
                with self._counted(row, one.name):
                    one.decoded, one.damaged = kinds.read(one.content), False
        return [None if one is None else one.decoded for one in found]

    @contextlib.contextmanager
    def _counted(self, row: Preference, name: str) -> Iterator[None]:
        """A medium that cannot be read is counted; so many of them end it."""
        try:
            yield
        except MediaError as error:
            self.census.bad.append(f"{name}: {error}")
            number = self._reader.number
            self.census.check(expected=number and number * len(row.media))

    def view(self, size: Size | None) -> DiffusionPolicy:
        """The policy at a size, which is learned and proven once; from then on the policy itself predicts there."""
        if size is not None:
            self.met.add(size)
        if size not in self._views:
            assert size is not None
            self._views[size] = self._policy.at(height=size[0], width=size[1])
        return self._views[size]

    def met_by_all(self, processes: Processes) -> list[Size]:
        """The sizes that any process has met; waits for all of them."""
        names = processes.sums({f"{height} {width}": (1.0, 1.0) for height, width in self.met})
        return sorted((int(height), int(width)) for height, width in map(str.split, names))

    def see(self, sizes: Sequence[Size]) -> None:
        """Learns how the policy draws these sizes, so that it predicts there."""
        for size in sizes:
            self.view(size)

    def _encode(
        self,
        view: DiffusionPolicy,
        row: Preference,
        size: Size | None,
        keys: Sequence[str | None],
        found: Sequence[_Found | None],
    ) -> list[str | None]:
        """Makes the entries of media that the cache lacks. Returns the keys, None for what cannot be decoded."""
        good, missing = list(keys), dict[str, Any]()
        for place, (key, one) in enumerate(zip(keys, found, strict=True)):
            if key is None or one is None:
                continue
            self.resized += size is not None and one.size != size
            if not one.damaged and (key in missing or self._cache.holds(key)):
                continue
            good[place] = None
            if one.damaged:
                continue
            with self._counted(row, one.name):
                medium = one.decoded if one.decoded is not None else kinds.read(one.content)
                missing[key] = geometry.fitted(medium, self.form, size)
                self.reshaped += self.drawn is None and _size(missing[key]) != _size(medium)
                good[place] = key
        parts = [[medium] for medium in missing.values()] if self._alone else [list(missing.values())]
        latents = [latent for part in parts if part for latent in latents_of(view, part, row)]
        for key, latent in zip(missing, latents, strict=True):
            self._bytes += self._cache.put(key, {"x0": narrowed(latent)})
        return good

    def _condition(self, view: DiffusionPolicy, where: str, prompt: str) -> str:
        key = _key(self.words, where, prompt)
        if not self._cache.holds(key):
            self._bytes += save_condition(self._cache, key, view.condition([prompt]), self._trims)
        return key

    def _null(self, view: DiffusionPolicy, where: str) -> str:
        """The empty prompt's entry, looked for once a size: all rows have it, and to look means to read it."""
        if where not in self._nulls:
            self._nulls[where] = self._condition(view, where, "")
        return self._nulls[where]

    @cached_property
    def _trims(self) -> trimming.Pairs:
        """Which embeddings are kept without their padding."""
        return trimming.learned(self._policy, ["a red fish", "a large red fish that swims in a small blue sea"])

    def check_room(self, line: Line, number: int | None, processes: Processes) -> None:
        """Says what all rows will take, by the first; makes room, and refuses if the disk has less than is missing."""
        if not number or not processes.first:
            return
        whole = number * sum(self._cache.size(key) for key in {*line.media, line.cond} if key)
        print(f"latents and conditions of {number} rows: {whole / 2**20:,.1f} MiB or less in {self._cache.folder}")
        if whole > self._cache.budget:
            allowed = f"{self._cache.budget / 2**30:g} GiB of data.cache_gb"
            print(f"warning: that may be more than the {allowed}, which they will then exceed")
        self._cache.evict(self._bytes * number)
        durable.require_space(self._cache.folder, self._bytes * (number - 1))

    def said(self) -> list[str]:
        """What was done to the data that their owner may not expect."""
        flaws = self._reader.flaws
        told = []
        if self.census.bad or flaws.total:
            first = "; ".join([*self.census.bad[:3], *([str(flaws)] if flaws.total else [])])
            told.append(f"left out: {len(self.census.bad)} media, {flaws.total} rows: {first}")
        if self.reshaped:
            told.append(f"{self.reshaped} {self.form.kind} were brought to {self._formed()}, which the model draws")
        if self.resized:
            to = "their buckets" if len(self._sizes) > 1 else f"{self._sizes[0][1]} x {self._sizes[0][0]}"
            told.append(f"{self.resized} pictures were resized and cropped to {to} (data.buckets chooses the sizes)")
        return told

    def _formed(self) -> str:
        form = self.form
        if form.size is None:
            return f"{form.length} samples at {form.rate:g} a second"
        return f"{form.length} frames of {form.size[1]} x {form.size[0]} at {form.rate:g} a second"


def _key(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
