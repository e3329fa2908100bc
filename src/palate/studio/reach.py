"""A studio that is running, asked by its owner's commands: SQLite has one writer, and while it runs that is the studio.

It notes in the project's folder where it listens. A command goes there as an admin, by a token of the owner's file; so
whoever may read that file, and nobody else, changes a project beside its studio.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from palate import durable
from palate.store import Store
from palate.studio.guard import csrf_of
from palate.studio.joining import TokenFile, cookie_name

FILE = "studio.json"  # while a studio runs: its process and its address
SECONDS = 60.0


class ReachError(ValueError):
    """The studio cannot be asked, or refused; the message is one line and says what to do."""


@contextlib.contextmanager
def announced(folder: Path, base: str) -> Iterator[None]:
    """Notes, as long as the block, that this process serves the project at an address."""
    path = folder / FILE
    durable.write_bytes(path, json.dumps({"process": os.getpid(), "base": base}).encode() + b"\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Desk:
    """A running studio and an admin's way into it. base: such as http://127.0.0.1:8765."""

    base: str
    cookie: str
    token: str

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the studio replies. Raises ReachError if it does not answer or refuses."""
        place = urlsplit(self.base)
        headers = {
            "host": place.netloc,
            "cookie": f"{self.cookie}={self.token}",
            "origin": self.base,
            "x-csrf": csrf_of(self.token),
            "content-type": "application/json",
        }
        try:
            with contextlib.closing(http.client.HTTPConnection(place.netloc, timeout=SECONDS)) as connection:
                connection.request("POST", path, json.dumps(body), headers)
                reply = connection.getresponse()
                said = json.loads(reply.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ReachError(
                f"the studio at {self.base} does not answer ({error}): stop it by Ctrl-C and run this command again"
            ) from None
        if reply.status != 200:
            raise ReachError(f"the studio at {self.base} refused: {said.get('error', reply.status)}")
        return said


def address(folder: Path) -> str | None:
    """Where the studio is that has a project open for writing; None if what has it open is none.

    The note of a studio that was killed is not believed: it must be of the process that holds the project's lock, so
    that a token goes nowhere else.
    """
    try:
        noted = json.loads((folder / FILE).read_bytes())
        base, process = str(noted["base"]), str(noted["process"])
        holder = (folder / durable.LOCK).read_text().strip()
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is another's
        return None
    return base if process == holder else None


def desk(store: Store) -> Desk | None:
    """The studio that has a project open for writing, as `address` finds it.

    store: of the project, open for reading. Raises ReachError without an admin's valid token.
    """
    if (base := address(store.folder)) is None:
        return None
    for _, role, token in TokenFile(store.folder).read():
        if role == "admin" and (rater := store.rater_of(token)) is not None and rater.role == "admin":
            return Desk(base, cookie_name(store.folder), token)
    raise ReachError(
        f"{TokenFile(store.folder).path} holds no valid link of an admin: stop the studio and start it again, which "
        "makes one"
    )
