"""Preferences as training takes them: read as a stream, decoded, and turned into latents and conditions.

`stored` leaves them on disk: a cache of latents and conditions that all runs share, and an index of the rows. `encode`
gives them at once, for a few.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from palate import datasets, views
from palate.config import ConfigError
from palate.doors import standing
from palate.doors.encoder import Census, Change, Encoder, decoded, latents_of, media_of
from palate.media import MediaError
from palate.models import geometry
from palate.models.diffusion import DiffusionPolicy, check_prediction_kind
from palate.models.geometry import Size
from palate.records import Preference
from palate.training.cache import TensorCache
from palate.training.logs import Progress
from palate.training.processes import Processes, join
from palate.training.sources import PreferenceRow
from palate.training.stored import Line, StoredRows, merge, write_lines

INDEX = "rows.jsonl"  # in a run's folder: what it was trained on, row by row, without the media


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


def read_preferences(folder: str | Path, max_bad_fraction: float) -> list[tuple[Preference, list[Any]]]:
    """Rows and their pictures, all at once. Raises DatasetError, as `Census.check` does."""
    reader = datasets.open(folder)
    census, rows = Census(max_bad_fraction, str(folder)), []
    for row in reader:
        media = [decoded(medium, reader.root, row, census) for medium in media_of(row)]
        if any(medium is not None for medium in media):
            rows.append((row, media))
    census.check(reader.flaws)
    return rows


def check_kind(policy: DiffusionPolicy, rows: Sequence[tuple[Preference, Sequence[Any]]], n: int = 16) -> str:
    """Refuses a model whose stated kind of prediction is plainly not the one it was trained for, by some pictures.

    Returns what to warn of where they do not tell, "" where all is well.
    """
    there = ((medium, row.prompt) for row, media in rows for medium in media if medium is not None)
    shown, form = list[tuple[Any, str]](), geometry.form_of(policy)
    for medium, prompt in islice(there, n):
        with contextlib.suppress(MediaError):  # one that is too short is counted when it is encoded
            shown.append((geometry.fitted(medium, form), prompt))
    return check_prediction_kind(policy, [medium for medium, _ in shown], [prompt for _, prompt in shown])


def sample_of(reader: datasets.Reader, n: int = 16) -> list[tuple[Preference, list[Any]]]:
    """The first rows and their pictures, for a look at the model."""
    ignored = Census(1.0, "")
    return [(row, [decoded(m, reader.root, row, ignored) for m in media_of(row)]) for row in islice(reader, n)]


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
    had encoded is there. Where nothing has changed since the rows were listed, no medium is read again.
    dimension: of the preferences. change: of each row before it is used. sizes: buckets, of which each row is brought
    to one; none for the one size that the model draws.
    Raises DatasetError for more unreadable media or rows than allowed; StorageError where they do not fit.
    """
    processes = processes or join(policy.device)
    encoder = Encoder(policy, cache, reader, Census(max_bad_fraction, reader.source.name), change, sizes)
    index, digest, known = folder / INDEX, None, change is None or hasattr(change, "made_by")
    if processes.first and known:
        how = {"bad": max_bad_fraction, "dimension": dimension, "sizes": sizes, "by": getattr(change, "made_by", None)}
        digest = standing.made_of(reader, policy, encoder.codec, encoder.words, form=encoder.form.name, **how)
    if (found := standing.standing(index, digest, cache, processes)) is not None:
        rows, met = found
        encoder.see(met)
        if processes.first:
            print(f"{len(rows)} rows stand as they were listed in {index}: their media are not read again")
        return rows
    parts = [folder / f"{INDEX}.part-{rank}" for rank in range(processes.world)]
    number = reader.number
    bar = Progress(number or 0, 0, shown=processes.first, what="encoded" if number else "encoded rows")

    with contextlib.closing(bar):
        made, head = _lines(encoder, reader, dimension, processes, bar), []
        if processes.first:
            head = list(_until_one(made))
        processes.wait()  # until room was made: what another process finds in the cache then stays there
        write_lines(parts[processes.rank], chain(head, made))
    encoder.census.check(reader.flaws)
    met = encoder.met_by_all(processes)  # when all have written theirs
    encoder.see(met)  # a row is trained on by any process, whichever encoded it
    if processes.first:
        standing.forget(index)
        merge(parts, index)
        standing.note(index, digest, met)
        cache.evict()
        for said in encoder.said():
            print(said)
    processes.wait()
    return StoredRows(index, cache)


def _lines(
    encoder: Encoder, reader: datasets.Reader, dimension: str, processes: Processes, bar: Progress
) -> Iterator[Line | None]:
    """This process's share of the rows, encoded; None for one that cannot be used."""
    for place, row in enumerate(reader):
        if place % processes.world == processes.rank:
            judged = views.preference_of(row, dimension)
            line = encoder.line(judged, place) if judged else None
            if line is not None and encoder.rows == 1:
                encoder.check_room(line, reader.number, processes)
            yield line
        bar.advance(1)


def _until_one(lines: Iterator[Line | None]) -> Iterator[Line | None]:
    """The lines as far as the first of a row that can be used."""
    for line in lines:
        yield line
        if line is not None:
            return


def sizes_of(policy: DiffusionPolicy, wanted: str | Sequence[Sequence[int]] | None) -> list[Size]:
    """The buckets of `data.buckets`: none, a list of (height, width), or many of the area that the policy draws.

    Raises ConfigError for a model that draws no pictures.
    """
    if not wanted:
        return []
    if not isinstance(wanted, str):
        return [(height, width) for height, width in wanted]
    form = geometry.form_of(policy)
    if form.kind != "pictures" or form.size is None:
        raise ConfigError("data.buckets: this model draws no pictures; leave it out")
    return geometry.buckets(form.size[0] * form.size[1])
