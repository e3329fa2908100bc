"""Media of a project: files named by their content, looked at once when they come in."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import sqlalchemy as sa

from palate import durable, media
from palate.media import MediaError
from palate.records import Medium, now
from palate.store import facts, schema
from palate.store.errors import StoreError

MAX_TEXT_BYTES = 2**20


def checked(content: bytes, type: str) -> Medium:
    """The medium, if it may be shown to people. Raises MediaError for other types, what is not of its type, damage."""
    if type not in facts.ENDINGS:
        raise MediaError(f"media of type {type} are not shown; they may be {', '.join(facts.ENDINGS)}", "other type")
    most = MAX_TEXT_BYTES if type == "text/plain" else media.MAX_MEDIUM_BYTES
    if len(content) > most:
        raise MediaError(f"it has {len(content):,} bytes, at most {most:,}", "too large")
    medium = Medium(type, content)
    if type != "text/plain" and (shown := media.type_of_bytes(content)) != type:
        raise MediaError(f"said to be {type}, its first bytes show {shown}", "wrong type")
    media.check(medium)
    return medium


def keep(folder: Path, content: bytes, type: str) -> tuple[str, str]:
    """Writes the file unless it is there; its hash and path below the folder. On disk when this returns."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = facts.media_path(sha256, type)
    full = folder / path
    if not full.is_file() or full.stat().st_size != len(content):
        durable.make_folder(full.parent)
        durable.write_bytes(full, content)
    return sha256, path


def note(connection: sa.Connection, sha256: str, type: str, size: int) -> None:
    """Lists a medium whose file is on disk. Raises StoreError if the same bytes are known as another type."""
    known = connection.scalar(sa.select(schema.media.c.type).where(schema.media.c.sha256 == sha256))
    if known is None:
        connection.execute(sa.insert(schema.media).values(sha256=sha256, type=type, size=size, time=now()))
    elif known != type:
        raise StoreError(f"medium {sha256[:12]}... is known as {known}, not {type}: give it that type")


def find(connection: sa.Connection, sha256: str) -> tuple[str, str] | None:
    """Path below the folder and type of what the database lists under that hash, whatever else is asked for."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return None
    kind = connection.scalar(sa.select(schema.media.c.type).where(schema.media.c.sha256 == sha256))
    return None if kind is None else (facts.media_path(sha256, kind), kind)


_GIVEN = (
    sa.select(schema.media.c.type)
    .select_from(schema.samples)
    .join(schema.media, schema.media.c.sha256 == schema.samples.c.medium)
    .join(schema.shown, schema.shown.c.sample == schema.samples.c.id)
    .join(schema.leases, schema.leases.c.comparison == schema.shown.c.comparison)
    # The empty text keeps SQLite to the leases of these few comparisons: else it goes through all that the rater had.
    .where(
        schema.samples.c.medium == sa.bindparam("sha256"),
        schema.leases.c.rater.concat(sa.literal_column("''")) == sa.bindparam("rater"),
    )
    .limit(1)
)


def given(connection: sa.Connection, sha256: str, rater: str) -> tuple[str, str] | None:
    """`find` of a medium that is part of a comparison that the rater was given; None for any other."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return None
    kind = connection.scalar(_GIVEN, {"sha256": sha256, "rater": rater})
    return None if kind is None else (facts.media_path(sha256, kind), kind)


def to_show(connection: sa.Connection) -> list[tuple[str, str, str]]:
    """Hash, path below the folder and type of the media of comparisons that wait, in the order that those come in."""
    places, samples, shown = schema.places, schema.samples, schema.shown
    query = (
        sa.select(samples.c.medium, schema.media.c.type)
        .select_from(places)
        .join(shown, shown.c.comparison == places.c.comparison)
        .join(samples, samples.c.id == shown.c.sample)
        .join(schema.media, schema.media.c.sha256 == samples.c.medium)
        .where(sa.or_(places.c.known, places.c.free > 0))
        .order_by(places.c.free, places.c.seq)
    )
    types = {row.medium: row.type for row in connection.execute(query)}  # each once, where it comes first
    return [(sha256, facts.media_path(sha256, type), type) for sha256, type in types.items()]


def hash_of(medium: Medium) -> str:
    """The content's hash that a medium's path in the project is named by. Raises StoreError for another path."""
    found = re.fullmatch(r"media/([0-9a-f]{2})/(([0-9a-f]{64})\.[a-z0-9]+)", medium.path or "")
    if found is None or not found[3].startswith(found[1]):
        raise StoreError(f"medium {medium.path!r} is not of this project: give its bytes, or what add_media returned")
    return found[3]


def read(folder: Path, medium: Medium) -> bytes:
    """The bytes of a medium. Raises StoreError if its file is gone or is not what it was."""
    if medium.bytes is not None:
        return medium.bytes
    sha256 = hash_of(medium)
    path = folder / facts.media_path(sha256, medium.type)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); put it back from a copy of the project") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StoreError(f"{path} is not what it was when it came in; put it back from a copy of the project")
    return content


def sweep(folder: Path) -> None:
    """Removes files that a crash left unfinished. Only for the process that alone writes."""
    for path in folder.glob(f"media/*/{durable.ASIDE}*"):
        path.unlink(missing_ok=True)
