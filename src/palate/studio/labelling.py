"""The labelling page and what it asks for: leases, media, answers, undo.

Raters learn the prompt, the media and nothing else: no id of a sample or comparison, no source, seed or file name, and
not which comparisons are known or repeated. Media are named by their content's hash, and only those of comparisons that
the rater was given are served.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from palate.media import MediaError
from palate.store import Lease, Rater
from palate.strict import Strict
from palate.studio.context import HERE, Studio
from palate.studio.files import NoRange, View, range_of

KINDS = {"image": "picture", "video": "video", "audio": "sound", "text": "text"}
Key = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[0-9A-Za-z_-]+$")]
Choice = Literal["left", "right", "tie", "both_bad", "skip"]
Group = Annotated[list[Annotated[int, Field(ge=0, lt=8)]], Field(max_length=8)]
MODULES = [path.name for path in sorted((HERE / "static").glob("*.js")) if path.stem not in ("join", "admin", "label")]


class Ask(Strict):
    n: int = Field(ge=1, le=16)


class Answer(Strict):
    lease: str = Field(min_length=1, max_length=64)
    key: Key
    answers: dict[str, Choice | Annotated[list[Group], Field(max_length=8)]] = Field(min_length=1, max_length=8)
    seconds: float | None = Field(None, ge=0, le=7 * 86400)
    reason: Literal["", "broken", "unsafe", "cannot judge"] = ""


class Undo(Strict):
    key: Key


class Preference(Strict):
    blur: bool | None = None
    opted_out: bool | None = None


def routes(studio: Studio) -> APIRouter:
    router, store = APIRouter(), studio.store

    def standing(rater: Rater) -> dict[str, Any]:
        """How many answers the rater gave, known and repeated ones too, and how much of the whole is done."""
        whole = studio.progress.get()
        return {"done": store.answered(rater.id), "whole": whole.votes / whole.wanted if whole.wanted else 0.0}

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
    def lease(asked: Ask, request: Request) -> dict[str, Any]:
        rater: Rater = request.state.rater
        # What a rater held when they asked to be spared runs out by itself; until then it is beside what they see.
        spared = sum(spares(rater, one) for one in store.held(rater.id)) if rater.opted_out else 0
        leases = [one for one in store.lease(rater.id, asked.n + spared) if not spares(rater, one)]
        return {"leases": [shown(one, rater) for one in leases[: asked.n]], "progress": standing(rater)}

    @router.post("/api/answer")
    def answer(given: Answer, request: Request) -> dict[str, Any]:
        rater: Rater = request.state.rater
        receipt = store.answer(rater.id, given.lease, given.key, given.answers, given.seconds, given.reason)
        return {"status": receipt.status, "done": store.answered(rater.id)}

    @router.post("/api/undo")
    def undo(asked: Undo, request: Request) -> dict[str, Any]:
        rater: Rater = request.state.rater
        receipt = store.undo(rater.id, asked.key)
        held = store.held(rater.id) if receipt.status in ("saved", "known") else []
        again = next((shown(one, rater) for one in held if one.id == receipt.lease), None)
        return {"status": receipt.status, "lease": again, "progress": standing(rater)}

    @router.post("/api/preference")
    def preference(asked: Preference, request: Request) -> dict[str, bool]:
        store.set_preference(request.state.rater.id, blur=asked.blur, opted_out=asked.opted_out)
        return {"ok": True}

    @router.get("/media/{sha256}")
    def medium(sha256: str, request: Request) -> Response:
        rater: Rater = request.state.rater
        if len(sha256) != 64 or not (rater.role == "admin" or store.may_see(rater.id, sha256)):
            raise HTTPException(404)
        found = store.media_file(sha256)
        if found is None:
            raise HTTPException(404)
        try:
            return sent(studio.views.of(sha256, *found), request.headers.get("range"))
        except (OSError, MediaError):  # to a rater the same as none; they can skip it as broken
            raise HTTPException(404) from None

    def shown(lease: Lease, rater: Rater) -> dict[str, Any]:
        """A lease as its rater may know it."""
        comparison = lease.comparison
        return {
            "id": lease.id,
            "prompt": comparison.prompt,
            "media": [
                {"id": PurePosixPath(sample.medium.path or "").stem, "kind": KINDS[sample.medium.type.split("/")[0]]}
                for sample in lease.samples
            ],
            "veiled": rater.blur or (comparison.sensitive and studio.settings.blur),
            "seconds": max(0.0, lease.expires - time.time()),
        }

    return router


def spares(rater: Rater, lease: Lease) -> bool:
    return rater.opted_out and lease.comparison.sensitive


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
    if view.data is not None:
        return Response(view.data[start:end], status, headers=headers, media_type=media_type)
    return StreamingResponse(view.read(start, end), status, headers=headers, media_type=media_type)
