"""A PostgreSQL for the tests: one server a session, in a temporary folder, with fsync on."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest


def found() -> Path | None:
    """The folder of PostgreSQL's server programs: Debian's, or that of the path's initdb; None without them."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if debian:
        return debian[-1].parent
    path = shutil.which("initdb")
    return Path(path).resolve().parent if path else None


def programs() -> Path:
    """`found`; skips the test without them, but in CI fails."""
    if (folder := found()) is not None:
        return folder
    message = "PostgreSQL's server programs are not installed (Debian: apt install postgresql)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class Server:
    """A running server."""

    def __init__(self, folder: Path, bin: Path) -> None:
        self.folder, self.bin = folder, bin
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def run(self, *command: str | Path, check: bool = True) -> None:
        """As the user postgres where we are root, whom the server refuses."""
        words = [str(word) for word in command]
        if os.geteuid() == 0:
            words = ["runuser", "-u", "postgres", "--", *words]
        done = subprocess.run(words, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.stderr or done.stdout}"

    def start(self, *settings: str) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k '' " + " ".join(f"-c {s}" for s in settings)
        log = self.folder / "log"
        self.run(self.bin / "pg_ctl", "-D", self.folder / "data", "-l", log, "-w", "-o", options, "start")

    def stop(self, how: str = "fast") -> None:
        self.run(self.bin / "pg_ctl", "-D", self.folder / "data", "-m", how, "-w", "stop", check=False)

    def url(self) -> str:
        """Of a schema of its own, which is as good as an empty database and made in no time."""
        import psycopg

        name, whole = f"palate_{uuid.uuid4().hex[:12]}", f"postgresql://palate@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(whole, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{whole}?options=-csearch_path%3D{name}"


@contextlib.contextmanager
def server(*, in_memory: bool = True) -> Iterator[Server]:
    """in_memory: a sync costs nothing there, and that it is asked for is what is tested."""
    bin = programs()
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="palate-pg-", dir=memory if in_memory and memory.is_dir() else None))
    made = Server(folder, bin)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    made.run(bin / "initdb", "-D", folder / "data", "-U", "palate", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
    try:
        made.start()
        yield made
    finally:
        made.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
