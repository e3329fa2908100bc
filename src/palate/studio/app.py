"""The studio as an ASGI app over an open store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from palate.store import Store, StoreError, StoreFull, StoreUnavailable
from palate.studio import dashboard, download, entrance, labelling, upkeep
from palate.studio.context import HERE, Export, Studio, WinRates
from palate.studio.guard import UNAVAILABLE, Guard

TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


def create(
    store: Store,
    *,
    hosts: Iterable[str] = (),
    win_rates: WinRates | None = None,
    export: Export | None = None,
    note: Callable[[], str] | None = None,
) -> FastAPI:
    """The app. The store stays the caller's, open for writing as long as the app runs.

    hosts: names beside those of the loopback under which it may be reached. win_rates, export: for the dashboard.
    note: see `Studio`.
    """
    studio = Studio(store, win_rates, export, note)
    app = FastAPI(title="Palate studio", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.studio = studio
    for part in (labelling, entrance, dashboard, upkeep, download):  # the first is looked through first
        app.include_router(part.routes(studio))
    _static(app)
    _errors(app)
    app.add_middleware(
        Guard,
        rater_of=store.rater_of,
        rater_lately_of=store.rater_lately_of,
        hosts=hosts,
        cookie=studio.cookie,
        refused_page=lambda: studio.page(
            "join.html",
            status=401,
            says="You need a join link",
            more="Whoever runs this study has sent you one, or can. Open it, and this browser is let in.",
        ),
    )
    return app


def _static(app: FastAPI) -> None:
    """The package's own files, read once: no name that is asked for is ever looked up on the disk."""
    files = {path.name: path.read_bytes() for path in sorted((HERE / "static").iterdir()) if path.suffix in TYPES}
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:20]}"' for name, content in files.items()}

    @app.get("/static/{name}", name="static")
    async def static(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        headers = {"cache-control": "no-cache", "etag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], headers=headers, media_type=TYPES["." + name.rpartition(".")[2]])


def _errors(app: FastAPI) -> None:
    """Errors as one sentence of ours: nothing of what was sent, and no path, comes back in one."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        places = {str(problem["loc"][-1]) for problem in error.errors() if problem["type"] != "extra_forbidden"}
        known = sorted(
            places & {"n", "lease", "key", "answers", "seconds", "reason", "token", "name", "role", "rater", "votes"}
        )
        return JSONResponse({"error": f"the request cannot be understood{': ' * bool(known)}{', '.join(known)}"}, 422)

    @app.exception_handler(StoreFull)
    async def full(_: Request, error: StoreFull) -> JSONResponse:
        return JSONResponse({"error": "the disk of the studio is full; nothing was stored"}, 507)

    @app.exception_handler(StoreUnavailable)
    async def unavailable(_: Request, error: StoreUnavailable) -> JSONResponse:
        return JSONResponse({"error": UNAVAILABLE}, 503)  # which a page sends again; its message names the database

    @app.exception_handler(StoreError)
    async def refused(_: Request, error: StoreError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        what = {404: "there is no such thing here", 405: "this method is not used here"}
        words = what.get(error.status_code, "this cannot be done")
        return JSONResponse({"error": words}, error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the studio failed; its log says how"}, 500)
