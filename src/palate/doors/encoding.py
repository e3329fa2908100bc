"""Preferences as training takes them: read as a stream, decoded, and turned into latents and conditions.

`stored` leaves them on disk: a cache of latents and conditions that all runs share, and an index of the rows. `encode`
gives them at once, for a few.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from palate import datasets, durable, views
from palate.config import ConfigError
from palate.media import PICTURE_FORMATS, DatasetError, MediaError, decode, medium_bytes
from palate.models import geometry, identity, trimming
from palate.models.diffusion import DiffusionPolicy, check_prediction_kind
from palate.models.geometry import Size
from palate.models.identity import codec_identity, prompt_identity
from palate.records import Medium, Preference
from palate.training.cache import TensorCache, narrowed
from palate.training.logs import Progress
from palate.training.processes import Processes, join
from palate.training.sources import PreferenceRow
from palate.training.stored import Line, StoredRows, merge, save_condition, table, write_lines

INDEX = "rows.jsonl"  # in a run's folder: what it was trained on, row by row, without the media
Change = Callable[[Preference, Sequence[Any]], Preference]  # of a row, given its decoded media


# --- at once ----------------------------------------------------------------------------------------------------------


def encode(
    policy: DiffusionPolicy, rows: Sequence[tuple[Preference, Sequence[Any]]], batch_size: int = 8
) -> list[PreferenceRow]:
    """Preferences with their decoded media, as latents and conditions. A medium that is None is masked."""
    encoded = []
    bar = Progress(len(rows), 0, shown=join(policy.device).first, what="encoded")
    with contextlib.closing(bar):
        for row, media in rows:
            encoded.append(_encoded(policy, row, media, batch_size))
            bar.advance(1)
    return encoded


def _encoded(policy: DiffusionPolicy, row: Preference, media: Sequence[Any], batch_size: int) -> PreferenceRow:
    there = [medium for medium in media if medium is not None]
    latents = torch.cat([latents_of(policy, there[i : i + batch_size], row) for i in range(0, len(there), batch_size)])
    x0 = torch.zeros(len(media), *latents.shape[1:])
    mask = torch.tensor([medium is not None for medium in media])
    x0[mask] = latents
    finite = x0.flatten(1).isfinite().all(1)
    x0[~finite] = 0
    return PreferenceRow(
        id=row.id,
        prompt=row.prompt,
        x0=x0,
        cond=policy.condition([row.prompt]).to("cpu"),
        prefer=torch.tensor(row.prefer),
        votes=torch.tensor(row.votes) if row.votes else torch.ones(len(media), len(media)),
        scores=torch.tensor(row.scores) if row.scores else torch.full((len(media), 0), torch.nan),
        mask=mask & finite,
        weight=row.weight,
    )


def latents_of(policy: DiffusionPolicy, media: Sequence[Any], row: Preference) -> torch.Tensor:
    """x0 [n, ...] of a row's media, on the CPU. Raises ConfigError if the model draws another shape."""
    latents = policy.encode(media).cpu()
    if latents.shape[1:] != policy.latent_shape:
        sizes = sorted({medium.size for medium in media})
        raise ConfigError(
            f"{row.where or row.id}: pictures of {sizes} give latents {tuple(latents.shape[1:])}, but the model "
            f"draws {tuple(policy.latent_shape)}: bring all pictures to the size the model draws"
        )
    return latents


def read_preferences(folder: str | Path, max_bad_fraction: float) -> list[tuple[Preference, list[Any]]]:
    """Rows and their pictures, all at once. Raises DatasetError, as `Census.check` does."""
    reader = datasets.open(folder)
    census, rows = Census(max_bad_fraction, str(folder)), []
    for row in reader:
        media = [_decoded(medium, reader.root, row, census) for medium in _there(row)]
        if any(medium is not None for medium in media):
            rows.append((row, media))
    census.check(reader.flaws)
    return rows


def _there(row: Preference) -> Iterator[Medium | None]:
    return (medium if exists else None for medium, exists in zip(row.media, row.mask, strict=True))


def _decoded(medium: Medium | None, root: Path | None, row: Preference, census: Census) -> Any:
    if medium is None:
        return None
    census.media += 1
    try:
        return decode(medium, root)
    except MediaError as error:
        census.bad.append(f"{row.where or row.id}: {error}")
        return None


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


def check_kind(policy: DiffusionPolicy, rows: Sequence[tuple[Preference, Sequence[Any]]], n: int = 16) -> None:
    """Refuses a model whose stated kind of prediction is not the one it was trained for, judged on some pictures."""
    shown = [(medium, row.prompt) for row, media in rows for medium in media if medium is not None][:n]
    if (size := geometry.size_of(policy)) is not None:
        shown = [(geometry.fitted(medium, size), prompt) for medium, prompt in shown]
    check_prediction_kind(policy, [medium for medium, _ in shown], [prompt for _, prompt in shown])


def sample_of(reader: datasets.Reader, n: int = 16) -> list[tuple[Preference, list[Any]]]:
    """The first rows and their pictures, for a look at the model."""
    ignored = Census(1.0, "")
    return [(row, [_decoded(m, reader.root, row, ignored) for m in _there(row)]) for row in islice(reader, n)]


# --- on disk ----------------------------------------------------------------------------------------------------------


def stored(
    policy: DiffusionPolicy,
    reader: datasets.Reader,
    cache: TensorCache,
    folder: Path,
    *,
    max_bad_fraction: float,
    dimension: str = views.OVERALL,
    change: Change | None = None,
    sizes: Sequence[Size] = (),
    processes: Processes | None = None,
) -> StoredRows:
    """The reader's rows with all that they need in the cache, and their index in the run's folder.

    Each process encodes its share of the rows. What the cache holds is not encoded again, and what a killed process
    had encoded is there. dimension: of the preferences. change: of each row before it is used, given its media.
    sizes: buckets, of which each row is brought to one; none for the one size that the model draws.
    Raises DatasetError for more unreadable media or rows than allowed; StorageError where they do not fit.
    """
    processes = processes or join(policy.device)
    encoder = Encoder(policy, cache, reader, Census(max_bad_fraction, reader.source.name), change, sizes)
    parts = [folder / f"{INDEX}.part-{rank}" for rank in range(processes.world)]
    number = reader.number
    bar = Progress(number or 0, 0, shown=processes.first, what="encoded" if number else "encoded rows")

    def lines() -> Iterator[Line | None]:
        for place, row in enumerate(reader):
            if place % processes.world == processes.rank:
                judged = views.preference_of(row, dimension)
                line = encoder.line(judged) if judged else None
                if line is not None and encoder.rows == 1:
                    encoder.check_room(line, number, processes)
                yield line
            bar.advance(1)

    with contextlib.closing(bar):
        made, head = lines(), []
        if processes.first:
            head = list(_until_one(made))
        processes.wait()  # until room was made: what another process finds in the cache then stays there
        write_lines(parts[processes.rank], chain(head, made))
    encoder.census.check(reader.flaws)
    processes.wait()  # until all have written theirs
    if processes.first:
        merge(parts, folder / INDEX)
        cache.evict()
        for said in encoder.said():
            print(said)
    processes.wait()
    return StoredRows(folder / INDEX, cache)


def _until_one(lines: Iterator[Line | None]) -> Iterator[Line | None]:
    """The lines as far as the first of a row that can be used."""
    for line in lines:
        yield line
        if line is not None:
            return


@dataclass(frozen=True)
class _Found:
    """A medium that was read. size: of a picture, as it stands upright."""

    content: Medium
    digest: bytes
    size: Size | None
    decoded: Any


def _measured(content: bytes) -> Size | None:
    """Height and width of a picture as it stands upright, without decoding it; None for what is none."""
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
            lying = picture.getexif().get(0x0112, 1) >= 5  # its orientation
            return (picture.width, picture.height) if lying else (picture.height, picture.width)
    except Exception:  # damaged data raise nearly anything; decoding says what is wrong
        return None


def sizes_of(policy: DiffusionPolicy, wanted: str | Sequence[Sequence[int]] | None) -> list[Size]:
    """The buckets of `data.buckets`: none, a list of (height, width), or many of the area that the policy draws.

    Raises ConfigError for a model that draws no pictures.
    """
    if not wanted:
        return []
    if not isinstance(wanted, str):
        return [(height, width) for height, width in wanted]
    if (drawn := geometry.size_of(policy)) is None:
        raise ConfigError("data.buckets: this model draws no pictures; leave it out")
    return geometry.buckets(drawn[0] * drawn[1])


class Encoder:
    """Rows into entries of a cache. census: of the media. rows: so far. resized: pictures that were not as drawn."""

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
        self.census, self.rows, self.resized, self._bytes = census, 0, 0, 0
        self._codec, self._words = codec_identity(policy), prompt_identity(policy)
        self._alone = policy.device.type == "cpu"  # there the bits of a latent must not depend on its neighbours
        self.drawn = geometry.size_of(policy)
        self._sizes = list(sizes) or ([self.drawn] if self.drawn else [])
        self._views: dict[Size | None, DiffusionPolicy] = {None: policy, self.drawn: policy}
        self._nulls: dict[str, str] = {}

    def line(self, row: Preference) -> Line | None:
        """The row's entries made, where the cache lacks them; None if none of its media can be read."""
        found = [self._read(medium, row, self._change is not None) for medium in _there(row)]
        if self._change is not None:
            row = self._change(row, [None if one is None else one.decoded for one in found])
        sizes = [one.size for one in found if one is not None and one.size is not None]
        size = geometry.nearest(sizes, self._sizes) if sizes and self._sizes else None
        view = self._view(size)
        where = identity.geometry(view)
        keys = [None if one is None else _key(self._codec, where, one.digest.hex()) for one in found]
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

    def _read(self, medium: Medium | None, row: Preference, whole: bool) -> _Found | None:
        """A medium, decoded if `whole`; None, and counted, where it cannot be read."""
        if medium is None:
            return None
        self.census.media += 1
        with self._counted(row):
            content = Medium(medium.type, bytes=medium_bytes(medium, self._reader.root))
            digest = hashlib.sha256(content.bytes or b"").digest()
            decoded = decode(content) if whole else None
            return _Found(content, digest, _measured(content.bytes or b""), decoded)
        return None

    @contextlib.contextmanager
    def _counted(self, row: Preference) -> Iterator[None]:
        """A medium that cannot be read is counted; so many of them end it."""
        try:
            yield
        except MediaError as error:
            self.census.bad.append(f"{row.where or row.id}: {error}")
            number = self._reader.number
            self.census.check(expected=number and number * len(row.media))

    def _view(self, size: Size | None) -> DiffusionPolicy:
        """The policy at a size, which is learned and proven once."""
        if size not in self._views:
            assert size is not None
            self._views[size] = self._policy.at(height=size[0], width=size[1])
        return self._views[size]

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
            if key in missing or self._cache.holds(key):
                continue
            good[place] = None
            with self._counted(row):
                medium = one.decoded if one.decoded is not None else decode(one.content)
                missing[key] = geometry.fitted(medium, size) if size else medium
                good[place] = key
        parts = [[medium] for medium in missing.values()] if self._alone else [list(missing.values())]
        latents = [latent for part in parts if part for latent in latents_of(view, part, row)]
        for key, latent in zip(missing, latents, strict=True):
            self._bytes += self._cache.put(key, {"x0": narrowed(latent)})
        return good

    def _condition(self, view: DiffusionPolicy, where: str, prompt: str) -> str:
        key = _key(self._words, where, prompt)
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
        if self.resized:
            to = "their buckets" if len(self._sizes) > 1 else f"{self._sizes[0][1]} x {self._sizes[0][0]}"
            told.append(f"{self.resized} pictures were resized and cropped to {to} (data.buckets chooses the sizes)")
        return told


def _key(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
