"""All that was said so far as one file for admins: a snapshot's data in a zip, the same bytes for the same snapshot.

It is made when it is asked for (a state change: the snapshot is noted), in a file that has no name and so goes with the
studio, whatever becomes of that; then it can be fetched, for a while. Memory holds a piece of it at a time.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from palate import durable
from palate.store import Snapshot
from palate.strict import Strict
from palate.studio.context import Export, Studio

KEPT_SECONDS = 900.0  # how long it can be fetched
CHUNK = 256 * 1024
TIME = (1980, 1, 1, 0, 0, 0)  # of every file in a zip: the earliest that it can say


class Nothing(Strict):
    """A request that says nothing more."""


class Parcel:
    """A file that can be read by many at once, and is gone when it was dropped and nobody reads it any more."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name, self._file = name, file
        self.size = file.seek(0, 2)
        self._lock, self._readers, self._dropped = threading.Lock(), 0, False

    def read(self) -> Iterator[bytes]:
        with self._lock:
            if self._file.closed:
                return
            self._readers += 1
        try:
            for start in range(0, self.size, CHUNK):
                with self._lock:
                    self._file.seek(start)
                    piece = self._file.read(CHUNK)
                yield piece
        finally:
            with self._lock:
                self._readers -= 1
                self._close()

    def drop(self) -> None:
        with self._lock:
            self._dropped = True
            self._close()

    def __del__(self) -> None:
        self._file.close()

    def _close(self) -> None:
        if self._dropped and not self._readers:
            self._file.close()


def routes(studio: Studio) -> APIRouter:
    router, store = APIRouter(prefix="/admin"), studio.store
    durable.sweep(store.folder)  # what a kill left of making one
    making = threading.Lock()
    ready: dict[str, Parcel] = {}  # one at most, by its snapshot

    def forget(parcel: Parcel) -> None:
        if ready.get(parcel.name) is parcel:
            ready.pop(parcel.name, None)
        parcel.drop()

    @router.post("/export")
    def export(_: Nothing) -> Response:
        if studio.export is None:
            raise HTTPException(404)
        if not making.acquire(blocking=False):
            return JSONResponse({"error": "it is being made already; wait a moment"}, 409)
        try:
            taken = store.snapshot()
            if taken.id not in ready:
                for other in list(ready.values()):
                    forget(other)
                parcel = Parcel(taken.id, packed(studio.export, taken, studio))
                ready[taken.id] = parcel
                timer = threading.Timer(KEPT_SECONDS, forget, (parcel,))
                timer.daemon = True
                timer.start()
            made = ready[taken.id]
        except (durable.StorageError, ValueError) as error:  # of the data: there is nothing to be said yet, say
            return JSONResponse({"error": str(error)}, 422)
        finally:
            making.release()
        return JSONResponse({"snapshot": made.name, "bytes": made.size, "link": f"/admin/export/{made.name}"})

    @router.get("/export/{snapshot}")
    def fetch(snapshot: str) -> Response:
        parcel = ready.get(snapshot)
        if parcel is None:
            raise HTTPException(404)
        headers = {
            "content-length": str(parcel.size),
            "content-disposition": f'attachment; filename="palate-{parcel.name}.zip"',
        }
        return StreamingResponse(parcel.read(), headers=headers, media_type="application/zip")

    return router


def packed(export: Export, taken: Snapshot, studio: Studio) -> IO[bytes]:
    """A snapshot's data in a zip, in a file without a name beside the project, where there is room for its media."""
    folder = studio.store.folder
    with tempfile.TemporaryDirectory(prefix=durable.ASIDE, dir=folder) as aside:
        export(studio.store, taken, Path(aside))
        file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # it outlives this
        try:
            pack(Path(aside), file)
        except BaseException as error:
            file.close()
            if (said := durable.explained(error, folder, 0)) is not None:
                raise durable.StorageError(said) from error
            raise
    return file


def pack(folder: Path, file: IO[bytes]) -> None:
    """A folder as a zip, each file removed once it is in: names in order, times and rights of no machine."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), TIME)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, out.open(entry, "w") as target:
                shutil.copyfileobj(source, target, CHUNK)
            path.unlink()
