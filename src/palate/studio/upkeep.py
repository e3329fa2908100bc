"""What admins change while raters are at work: who may come in, who is forgotten, what comparisons are.

The dashboard's buttons post here, and so do the owner's commands while the studio runs (`reach`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from palate.store import Amendment
from palate.strict import Strict
from palate.studio.context import Studio
from palate.studio.joining import forget, join_link, shut_out

AT_ONCE = 30  # amendments of one request, whose body is bounded
Id = Annotated[str, Field(min_length=1, max_length=500)]


class Invite(Strict):
    name: str = Field(min_length=1, max_length=80)
    role: Literal["rater", "admin"] = "rater"


class Revoke(Strict):
    rater: str = Field(min_length=1, max_length=64)


class Erase(Strict):
    rater: str = Field(min_length=1, max_length=64)
    votes: bool


class Change(Strict):
    """As `palate.store.Amendment`."""

    comparison: Id
    expected: Annotated[str, Field(max_length=500)] | None = None
    dimension: Id | None = None
    sensitive: bool | None = None


class Amend(Strict):
    amendments: list[Change] = Field(min_length=1, max_length=AT_ONCE)


def routes(studio: Studio) -> APIRouter:
    router, store = APIRouter(prefix="/admin"), studio.store

    @router.post("/raters")
    def invite(asked: Invite) -> dict[str, str]:
        _, token = store.add_rater(asked.name, asked.role)
        studio.tokens.add(asked.name, asked.role, token)
        return {"name": asked.name, "link": join_link("", token)}

    @router.post("/revoke")
    def revoke(asked: Revoke) -> dict[str, bool]:
        shut_out(store, asked.rater)
        return {"ok": True}

    @router.post("/erase")
    def erase(asked: Erase) -> dict[str, int]:
        return {"removed": forget(store, asked.rater, asked.votes)}

    @router.post("/amend")
    def amend(asked: Amend, request: Request) -> dict[str, int]:
        made = (Amendment(**change.model_dump()) for change in asked.amendments)
        return {"changed": store.amend(made, request.state.rater.id)}

    return router
