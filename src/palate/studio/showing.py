"""What raters are shown: a lease as they may know it, and its media, of which they see no others.

Raters learn the prompt, the media and nothing else: no id of a sample or comparison, no source, seed or file name, and
not which comparisons are known or repeated. Media are named by their content's hash, and only those of comparisons that
the rater was given are served.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from palate.media import MediaError
from palate.records import Medium
from palate.store import Lease, Rater
from palate.studio.context import Studio
from palate.studio.files import CHUNK, NoRange, View, range_of

KINDS = {"image": "picture", "video": "video", "audio": "sound", "text": "text"}
MOST_TOLD = 100_000  # raters and media that need not be looked up


class Showing:
    """What this studio's raters were told of lately is served without being looked up again."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._told: set[tuple[str, str]] = set()  # of raters and the media that they were given

    def lease(self, lease: Lease, rater: Rater) -> dict[str, Any]:
        """A lease as its rater may know it, its media at hand: how long one takes to be fetched tells nothing of it."""
        comparison = lease.comparison
        if len(self._told) > MOST_TOLD:
            self._told.clear()  # from then on the database says it again
        for sample in lease.samples:
            with contextlib.suppress(OSError, MediaError):  # what cannot be shown is told when it is asked for
                self._studio.views.of(
                    named(sample.medium), self._studio.store.folder / (sample.medium.path or ""), sample.medium.type
                )
                self._told.add((rater.id, named(sample.medium)))
        return {
            "id": lease.id,
            "prompt": comparison.prompt,
            "media": [
                {"id": named(sample.medium), "kind": KINDS[sample.medium.type.split("/")[0]]}
                for sample in lease.samples
            ],
            "veiled": rater.blur or (comparison.sensitive and self._studio.settings.blur),
            "seconds": max(0.0, lease.expires - time.time()),
        }

    async def medium(self, request: Request) -> Response:
        sha256, rater, wanted = request.path_params["sha256"], request.state.rater, request.headers.get("range")
        view = self._studio.views.at_hand(sha256) if (rater.id, sha256) in self._told else None
        return sent(view, wanted) if view else await run_in_threadpool(self._looked_up, sha256, rater, wanted)

    def _looked_up(self, sha256: str, rater: Rater, wanted: str | None) -> Response:
        found = self._studio.store.media_file(sha256, None if rater.role == "admin" else rater.id)
        if found is None:
            raise HTTPException(404)
        try:
            return sent(self._studio.views.of(sha256, *found), wanted)
        except (OSError, MediaError):  # to a rater the same as none; they can skip it as broken
            raise HTTPException(404) from None


def named(medium: Medium) -> str:
    """A medium's hash, by which the page asks for it."""
    return (medium.path or "").rpartition("/")[2].partition(".")[0]


def sent(view: View, wanted: str | None) -> Response:
    """A medium or a range of it."""
    headers = {"cache-control": "private, max-age=86400, immutable", "accept-ranges": "bytes"}
    media_type = "text/plain; charset=utf-8" if view.type == "text/plain" else view.type
    try:
        part = range_of(wanted, view.size)
    except NoRange:
        return JSONResponse({"error": "no such range"}, 416, headers={"content-range": f"bytes */{view.size}"})
    start, end = part or (0, view.size)
    headers["content-length"] = str(end - start)
    if part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{view.size}"
    status = 206 if part else 200
    if view.data is not None or end - start <= CHUNK:  # most pictures: a stream would change threads piece by piece
        return Response(b"".join(view.read(start, end)), status, headers=headers, media_type=media_type)
    return StreamingResponse(view.read(start, end), status, headers=headers, media_type=media_type)
