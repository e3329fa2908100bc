"""Who may come in: join links, the cookie, a limit on guesses, and the owner's file of links.

A token stands in the fragment of a join link, which browsers do not send: it is in no log and no referrer. The page at
`/join` posts it once and gets a cookie that scripts cannot read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from palate.store import Store

try:
    import fcntl
except ImportError:  # Windows has no POSIX locks: there, one process at a time is to write the file
    fcntl = None  # type: ignore[assignment]

COOKIE_SECONDS = 30 * 24 * 3600
FILE = "tokens"
_WRITING = threading.Lock()


def cookie_name(folder: Path) -> str:
    """A name of the project's own: browsers do not keep cookies of different ports apart."""
    return "palate-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]


def join_link(base: str, token: str) -> str:
    """base: such as http://127.0.0.1:8765."""
    return f"{base}/join#{token}"


def shut_out(store: Store, rater: str) -> None:
    """Their link lets nobody in any more, and leaves the owner's file; what they said stays. Raises StoreError."""
    store.revoke(rater)
    TokenFile(store.folder).keep(lambda token: store.rater_of(token) is not None)


def forget(store: Store, rater: str, votes: bool) -> int:
    """Erases who a rater was, in the owner's file too, and with `votes` all they said; how many facts went."""
    removed = store.erase(rater, votes)
    TokenFile(store.folder).keep(lambda token: store.rater_of(token) is not None)
    return removed


class Guesses:
    """Failed attempts to join, by address: after `most` within `seconds` the address has to wait.

    A studio in a lecture hall is reached from one address by many, so that only failures count.
    """

    def __init__(self, most: int = 10, seconds: float = 60.0, addresses: int = 10_000) -> None:
        self.most, self.seconds, self.addresses = most, seconds, addresses
        self._failed: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def too_many(self, address: str, now: float | None = None) -> bool:
        now = time.monotonic() if now is None else now
        with self._lock:
            recent = [at for at in self._failed.get(address, ()) if now - at < self.seconds]
            if recent:
                self._failed[address] = recent
            else:
                self._failed.pop(address, None)
            return len(recent) >= self.most

    def failed(self, address: str, now: float | None = None) -> None:
        with self._lock:
            attempts = self._failed.setdefault(address, [])
            attempts.append(time.monotonic() if now is None else now)
            del attempts[: -self.most]
            self._failed.move_to_end(address)
            while len(self._failed) > self.addresses:
                self._failed.popitem(last=False)


class TokenFile:
    """The owner's copy of the tokens, `name role token` a line, mode 0600. The store holds only hashes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def read(self) -> list[tuple[str, str, str]]:
        """(name, role, token) of each line; none if there is no file."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        rows = [line.rsplit("\t", 2) for line in lines if line and not line.startswith("#")]
        return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]

    def add(self, name: str, role: str, token: str) -> None:
        """Raises OSError if the file cannot be written."""
        with self._alone():
            self._write([*self.read(), (" ".join(name.split()), role, token)])

    def keep(self, valid: Callable[[str], bool]) -> None:
        """Drops the lines of tokens that are not valid any more."""
        with self._alone():
            rows = self.read()
            if (kept := [row for row in rows if valid(row[2])]) != rows:
                self._write(kept)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the file from reading to writing, against other threads, and other processes that lock the folder."""
        with _WRITING, contextlib.ExitStack() as held:
            if fcntl is not None:
                folder = os.open(self.path.parent, os.O_RDONLY)
                held.callback(os.close, folder)
                with contextlib.suppress(OSError):  # of a file system without locks
                    fcntl.flock(folder, fcntl.LOCK_EX)
            yield

    def _write(self, rows: list[tuple[str, str, str]]) -> None:
        aside = self.path.with_name(FILE + ".partial")
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("# Whoever has a token can vote in its name. name, role, token\n")
            file.writelines("\t".join(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)
