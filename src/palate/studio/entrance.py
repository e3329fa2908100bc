"""Coming in, going out, and what to read first."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import Field

from palate import project
from palate.strict import Strict
from palate.studio.context import Studio
from palate.studio.joining import COOKIE_SECONDS

Block = tuple[str, str | list[str]]


class Join(Strict):
    token: str = Field(min_length=1, max_length=256)


def routes(studio: Studio) -> APIRouter:
    router = APIRouter()

    @router.get("/join")
    def join_page() -> HTMLResponse:
        return studio.page(
            "join.html", says="You need a join link", more="Open the link that you were sent: it ends in # and a code."
        )

    @router.post("/api/join")
    def join(asked: Join, request: Request) -> Response:
        address = request.client.host if request.client else "?"
        if studio.guesses.too_many(address):
            return JSONResponse({"error": "too many attempts; wait a minute"}, 429, headers={"retry-after": "60"})
        rater = studio.store.rater_of(asked.token)
        if rater is None:
            studio.guesses.failed(address)
            return JSONResponse({"error": "this link is not valid"}, 401)
        fresh = studio.store.answered(rater.id) == 0  # an admin's, too: who judges alone comes in as one
        reply = JSONResponse({"to": "/instructions" if fresh else "/"})
        reply.set_cookie(
            studio.cookie,
            asked.token,
            max_age=COOKIE_SECONDS,
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return reply

    @router.post("/api/leave")
    def leave() -> Response:
        reply = JSONResponse({"ok": True})
        reply.delete_cookie(studio.cookie, path="/", httponly=True, samesite="strict")
        return reply

    @router.get("/instructions")
    def instructions(request: Request) -> HTMLResponse:
        text = project.instructions(studio.store.folder)
        questions = list(studio.settings.questions.values())
        return studio.page("instructions.html", request, blocks=list(blocks(text)), questions=questions)

    return router


def blocks(text: str) -> Iterator[Block]:
    """Headings, lists and paragraphs of a Markdown text as (kind, words), words as they are: markup in them is text."""
    for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip()):
        lines = [line.rstrip() for line in part.split("\n")]
        if heading := re.match(r"#{1,6}\s+(.*)", lines[0]):
            yield "heading", heading[1]
            lines = lines[1:]
        for kind, mark in (("list", r"\s*[-*+]\s+"), ("numbers", r"\s*\d+[.)]\s+")):
            if lines and re.match(mark, lines[0]):
                joined = re.sub(r"\n(?!" + mark + r")\s*", " ", "\n".join(lines))
                yield kind, [re.sub(mark, "", item, count=1) for item in joined.split("\n")]
                lines = []
        if lines:
            yield "paragraph", " ".join(lines)
