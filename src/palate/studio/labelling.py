"""The labelling page and what it asks for: leases, answers, undo; what it shows is in `palate.studio.showing`."""

from __future__ import annotations

import hashlib
import shlex
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import Field

from palate.store import Rater
from palate.strict import Strict
from palate.studio.context import HERE, Studio
from palate.studio.showing import Showing

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
    n: int = Field(0, ge=0, le=16)  # how many leases the page wants to know of in reply


class Undo(Strict):
    key: Key


class Preference(Strict):
    blur: bool | None = None
    opted_out: bool | None = None


def routes(studio: Studio) -> APIRouter:
    router, store = APIRouter(), studio.store
    showing = Showing(studio)

    def standing(done: int) -> dict[str, Any]:
        """How many answers the rater gave, known and repeated ones too, what is to come, how much of all is done."""
        note = studio.note() if studio.note else ""
        return {"done": done, "note": note, "whole": studio.share.get()}

    @router.post("/api/answer")
    def answer(given: Answer, request: Request) -> Response:
        """The most frequent request by far: what became of the answer, and in the same transaction what comes next."""
        rater: Rater = request.state.rater
        receipt = store.answer(rater.id, given.lease, given.key, given.answers, given.seconds, given.reason, n=given.n)
        studio.share.add(receipt.status == "saved")
        leases = [showing.lease(one, rater) for one in receipt.leases]
        return JSONResponse({"status": receipt.status, "leases": leases, **standing(receipt.done)})

    # As frequent as answers: nothing stands between, and what was told of a moment ago is neither looked up nor read.
    router.add_route("/media/{sha256}", showing.medium, methods=["GET"])

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
        person["folder"] = shlex.quote(store.folder.resolve().name) if studio.note is None else ""
        return studio.page("label.html", request, page=page, modules=MODULES, **person)

    @router.post("/api/lease")
    def lease(asked: Ask, request: Request) -> Response:
        # Looked up anew: a page asks when the rater's preferences changed, be it by another process.
        rater: Rater = store.rater_of(request.state.token) or request.state.rater
        leases = [showing.lease(one, rater) for one in store.lease(rater.id, asked.n)]
        return JSONResponse({"leases": leases, "progress": standing(store.answered(rater.id))})

    @router.post("/api/undo")
    def undo(asked: Undo, request: Request) -> Response:
        rater: Rater = request.state.rater
        receipt = store.undo(rater.id, asked.key)
        studio.share.add(-(receipt.status == "saved"))
        held = store.held(rater.id) if receipt.status in ("saved", "known") else []
        again = next((showing.lease(one, rater) for one in held if one.id == receipt.lease), None)
        return JSONResponse({"status": receipt.status, "lease": again, "progress": standing(receipt.done)})

    @router.post("/api/preference")
    def preference(asked: Preference, request: Request) -> dict[str, bool]:
        store.set_preference(request.state.rater.id, blur=asked.blur, opted_out=asked.opted_out)
        return {"ok": True}

    return router
