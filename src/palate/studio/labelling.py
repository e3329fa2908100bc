"""The labelling page and what it asks for: leases, media, answers, undo.

Raters learn the prompt, the media and nothing else: no id of a sample or comparison, no source, seed or file name, and
not which comparisons are known or repeated. Media are named by their content's hash, and only those of comparisons that
the rater was given are served.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from palate.media import MediaError
from palate.records import Medium
from palate.store import Lease, Rater
from palate.strict import Strict
from palate.studio.context import HERE, Studio
from palate.studio.files import CHUNK, NoRange, View, range_of

KINDS = {"image": "picture", "video": "video", "audio": "sound", "text": "text"}
Key = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[0-9A-Za-z_-]+$")]
Choice = Literal["left", "right", "tie", "both_bad", "skip"]
Group = Annotated[list[Annotated[int, Field(ge=0, lt=8)]], Field(max_length=8)]
MODULES = [path.name for path in sorted((HERE / "static").glob("*.js")) if path.stem not in ("join", "admin", "label")]

MOST_TOLD = 100_000  # raters and media that need not be looked up


class Ask(Strict):
    n: int = Field(ge=1, le=16)


class Answer(Strict):
    lease: str = Field(min_length=1, max_length=64)
    key: Key
    answers: dict[str, Choice | Annotated[list[Group], Field(max_length=8)]] = Field(min_length=1, max_length=8)
    seconds: float | None = Field(None, ge=0, le=7 * 86400)
    reason: Literal["", "broken", "unsafe", "cannot judge"] = ""
    n: int = Field(0, ge=0, le=16)  # how many leases the page wants to know of in reply


class Undo(Strict):
    key: Key


class Preference(Strict):
    blur: bool | None = None
    opted_out: bool | None = None


def routes(studio: Studio) -> APIRouter:
    router, store = APIRouter(), studio.store
    told: set[tuple[str, str]] = set()  # of raters and the media that they were given

    def standing(done: int) -> dict[str, Any]:
        """How many answers the rater gave, known and repeated ones too, and how much of the whole is done."""
        whole = studio.progress.get()
        return {"done": done, "whole": whole.votes / whole.wanted if whole.wanted else 0.0}

    @router.post("/api/answer")
    def answer(given: Answer, request: Request) -> Response:
        """The most frequent request by far: what became of the answer, and in the same transaction what comes next."""
        rater: Rater = request.state.rater
        receipt = store.answer(rater.id, given.lease, given.key, given.answers, given.seconds, given.reason, n=given.n)
        leases = [shown(one, rater) for one in receipt.leases]
        return JSONResponse({"status": receipt.status, "leases": leases, **standing(receipt.done)})

    async def medium(request: Request) -> Response:
        sha256, rater, wanted = request.path_params["sha256"], request.state.rater, request.headers.get("range")
        view = studio.views.at_hand(sha256) if (rater.id, sha256) in told else None
        return sent(view, wanted) if view else await run_in_threadpool(looked_up, sha256, rater, wanted)

    def looked_up(sha256: str, rater: Rater, wanted: str | None) -> Response:
        found = store.media_file(sha256, None if rater.role == "admin" else rater.id)
        if found is None:
            raise HTTPException(404)
        try:
            return sent(studio.views.of(sha256, *found), wanted)
        except (OSError, MediaError):  # to a rater the same as none; they can skip it as broken
            raise HTTPException(404) from None

    # As frequent as answers: nothing stands between, and what was told of a moment ago is neither looked up nor read.
    router.add_route("/media/{sha256}", medium, methods=["GET"])

    @router.get("/")
    def label_page(request: Request) -> HTMLResponse:
        rater: Rater = request.state.rater
        page = {
            "space": hashlib.sha256(b"space " + request.state.token.encode()).hexdigest()[:12],
            "kind": studio.settings.kind,
            "locked": studio.settings.locked_until_loaded,
            "skip": studio.settings.choices.skip,
            "questions": [{"dimension": name, "text": text} for name, text in studio.settings.questions.items()],
        }
        person: dict[str, Any] = {"rater": rater.name, "blur": rater.blur, "opted_out": rater.opted_out}
        return studio.page("label.html", request, page=page, modules=MODULES, **person)

    @router.post("/api/lease")
    def lease(asked: Ask, request: Request) -> Response:
        # Looked up anew: a page asks when the rater's preferences changed, be it by another process.
        rater: Rater = store.rater_of(request.state.token) or request.state.rater
        leases = [shown(one, rater) for one in store.lease(rater.id, asked.n)]
        return JSONResponse({"leases": leases, "progress": standing(store.answered(rater.id))})

    @router.post("/api/undo")
    def undo(asked: Undo, request: Request) -> Response:
        rater: Rater = request.state.rater
        receipt = store.undo(rater.id, asked.key)
        held = store.held(rater.id) if receipt.status in ("saved", "known") else []
        again = next((shown(one, rater) for one in held if one.id == receipt.lease), None)
        return JSONResponse({"status": receipt.status, "lease": again, "progress": standing(receipt.done)})

    @router.post("/api/preference")
    def preference(asked: Preference, request: Request) -> dict[str, bool]:
        store.set_preference(request.state.rater.id, blur=asked.blur, opted_out=asked.opted_out)
        return {"ok": True}

    def shown(lease: Lease, rater: Rater) -> dict[str, Any]:
        """A lease as its rater may know it, its media at hand: how long one takes to be fetched tells nothing of it."""
        comparison = lease.comparison
        if len(told) > MOST_TOLD:
            told.clear()  # from then on the database says it again
        for sample in lease.samples:
            with contextlib.suppress(OSError, MediaError):  # what cannot be shown is told when it is asked for
                studio.views.of(named(sample.medium), store.folder / (sample.medium.path or ""), sample.medium.type)
                told.add((rater.id, named(sample.medium)))
        return {
            "id": lease.id,
            "prompt": comparison.prompt,
            "media": [
                {"id": named(sample.medium), "kind": KINDS[sample.medium.type.split("/")[0]]}
                for sample in lease.samples
            ],
            "veiled": rater.blur or (comparison.sensitive and studio.settings.blur),
            "seconds": max(0.0, lease.expires - time.time()),
        }

    return router


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
