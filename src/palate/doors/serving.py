"""`palate serve-scorer`: any scorer behind the protocol of `docs/http_scorers.md`, for this machine.

Made for environments that hold a scorer's own package and little else: fastapi, uvicorn, numpy and Pillow beside it,
and of Palate no torch unless the scorer needs it.
"""

from __future__ import annotations

import hmac
import json
import math
import os
import secrets
import socket
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fastapi
import numpy as np
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image

from palate import __version__, durable, remote, wire
from palate.doors import judges

PROTOCOL = "palate-scorer/1"
MAX_ITEMS = 256  # samples in one request
MAX_BODY_BYTES = 128 * 2**20
MAX_PROMPT = 100_000  # characters
LOOPBACK = "127.0.0.1"
_GOLDEN = ("a red circle", "a blue square")  # whose scores tell one judge from another
_ASKED = 3  # times, since a judge that samples may say the same thing twice
_STEADY = 0.1  # of what passes for one scorer: how far these may lie apart


class ServingError(ValueError):
    """A scorer cannot be served; one line with the mend."""


class _Refused(Exception):
    """A request that is answered by a status and one line."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


def serve(name: str, port: int, token_file: Path | None = None) -> None:
    """Serves a scorer on 127.0.0.1 until it is stopped. port: 0 for any that is free.

    Raises PluginError for a scorer that there is not, ServingError for a port that is taken.
    """
    import uvicorn

    scorer, token = find(name), token_of(token_file or default_token_file())
    app = create(scorer, name, token)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((LOOPBACK, port))
        except OSError as error:
            raise ServingError(f"port {port} cannot be had ({error.strerror}): give another --port") from None
        listening.listen()
        address = f"{LOOPBACK}:{listening.getsockname()[1]}"
        print(f"{name} is served as the scorer  http:{address}#{app.state.fingerprint}", flush=True)
        print(f"its token is in {token_file or default_token_file()}; Ctrl-C ends it", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


def find(name: str) -> Any:
    """A scorer by its name. Those of worlds and runs need Palate whole; the others only what they import themselves."""
    if name.startswith(("world:", "implicit:")):
        from palate.doors import lookup

        return lookup.find_scorer(name)
    return judges.load(name, _pick_device)


def _pick_device(wanted: str) -> str:
    from palate.doors import lookup  # only for scorers that run on a device, and so bring torch

    return lookup.pick_device(wanted)


def default_token_file() -> Path:
    """Where clients of the same user find the token, too."""
    return remote.config_folder() / "scorer.token"


def token_of(path: Path) -> str:
    """The token in a file, which is made, for its owner alone, where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _held(path)
    except OSError as error:
        raise ServingError(f"{path} cannot be written ({error.strerror}): give another --token-file") from None
    with os.fdopen(descriptor, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
        file.flush()
        os.fsync(descriptor)
    durable.fsync(path.parent)
    return token


def _held(path: Path) -> str:
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < 16:
        raise ServingError(f"{path} holds no token: remove it, and a new one is made")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ServingError(f"{path} can be read by others than you: `chmod 600 {path}`")
    return token


def create(scorer: Any, name: str, token: str) -> fastapi.FastAPI:
    """The application: GET /health and POST /score, both with the token alone."""
    app = fastapi.FastAPI(title="palate scorer", docs_url=None, redoc_url=None, openapi_url=None)
    asked = threading.Lock()  # one batch at a time: a model has one device
    dimensions = list(getattr(scorer, "dimensions", ()))
    app.state.fingerprint = fingerprint(scorer, name)

    @app.middleware("http")
    async def guarded(request: fastapi.Request, proceed: Callable[[fastapi.Request], Any]) -> fastapi.Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {token}".encode()):
            return JSONResponse({"error": "give the token: Authorization: Bearer ..."}, 401)
        answer: fastapi.Response = await proceed(request)
        return answer

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "name": name,
            "version": __version__,
            "dimensions": dimensions,
            "groupwise": bool(getattr(scorer, "groupwise", False)),
            "judges": list(getattr(scorer, "judges", ())),
            "fingerprint": app.state.fingerprint,
            "max_items": MAX_ITEMS,
            "max_bytes": MAX_BODY_BYTES,
        }

    @app.post("/score")
    async def score(request: fastapi.Request) -> JSONResponse:
        try:
            ids, prompts, media = await run_in_threadpool(_read, await _body(request))
            scores = await run_in_threadpool(_scored, scorer, asked, prompts, media)
        except _Refused as refused:
            return JSONResponse({"error": str(refused)}, refused.status)
        return JSONResponse({"ids": ids, "scores": scores, "fingerprint": app.state.fingerprint})

    return app


async def _body(request: fastapi.Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _Refused(415, f"send application/json, not {kind!r:.60}")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise _Refused(413, f"a request may have {MAX_BODY_BYTES} bytes at most: send fewer samples at once")
    return bytes(content)


def _read(body: bytes) -> tuple[list[str], list[str], list[Any]]:
    """ids, prompts and decoded media of a request."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise _Refused(400, "the request is no JSON") from None
    if not isinstance(asked, dict) or asked.get("protocol") != PROTOCOL:
        raise _Refused(400, f"the request's `protocol` must be {PROTOCOL!r}")
    ids: Any = asked.get("ids")
    prompts: Any = asked.get("prompts")
    media: Any = asked.get("media")
    for name, value in (("ids", ids), ("prompts", prompts)):
        if not isinstance(value, list) or not all(isinstance(text, str) and len(text) <= MAX_PROMPT for text in value):
            raise _Refused(422, f"`{name}` must be a list of texts")
    if not isinstance(media, list) or not len(ids) == len(prompts) == len(media):
        raise _Refused(422, "`ids`, `prompts` and `media` must be lists of one length")
    if not 0 < len(ids) <= MAX_ITEMS or len(set(ids)) != len(ids):
        raise _Refused(422, f"a request holds 1 to {MAX_ITEMS} samples, each with an id of its own")
    return ids, prompts, _decoded(media)


def _decoded(entries: Sequence[Any]) -> list[Any]:
    media: list[Any] = []
    left = wire.MAX_PIXELS_AT_ONCE
    for entry in entries:
        try:
            media.append(wire.decode(entry))
        except wire.WireError as error:
            raise _Refused(422, str(error)) from None
        left -= wire.pixels(media[-1])
        if left < 0:
            raise _Refused(413, f"a request may show {wire.MAX_PIXELS_AT_ONCE:,} pixels: send fewer samples at once")
    return media


def _scored(scorer: Any, asked: threading.Lock, prompts: list[str], media: list[Any]) -> dict[str, list[float | None]]:
    """What the scorer gives, null for what is not finite."""
    try:
        with asked:
            return _plain(scorer(prompts, media), len(prompts))
    except ValueError as error:
        raise _Refused(422, f"it cannot judge this: {error}"[:500]) from None
    except Exception as error:
        traceback.print_exc()  # here, for whoever serves; the other side learns the kind alone
        raise _Refused(500, f"the scorer failed with {type(error).__name__}") from None


def _plain(scores: Mapping[str, Any], n: int) -> dict[str, list[float | None]]:
    plain: dict[str, list[float | None]] = {}
    for name, values in scores.items():
        values = values.detach().cpu().float() if hasattr(values, "detach") else values
        numbers = np.asarray(values, np.float64)
        if numbers.shape != (n,):
            raise TypeError(f"the scorer gave {numbers.shape} values of {name!r} for {n} samples")
        plain[name] = [float(value) if math.isfinite(value) else None for value in numbers]
    return plain


def fingerprint(scorer: Any, name: str) -> str:
    """By which a scorer is known again: its name, its dimensions, and its scores of a few fixed pictures, so that other
    weights under the same name show; for `wire.same_scorer`, which allows for rounding.

    Without the scores where it does not judge pictures, where it compares the candidates of a call (`groupwise`), and
    where it says another thing when asked again.
    """
    facts: dict[str, Any] = {"name": name, "dimensions": sorted(getattr(scorer, "dimensions", ()))}
    if getattr(scorer, "groupwise", False):
        return wire.fingerprint(facts)
    pictures = _golden()
    prompts = [_GOLDEN[i % len(_GOLDEN)] for i in range(len(pictures))]
    try:
        asked = [_plain(scorer(prompts, pictures), len(pictures)) for _ in range(_ASKED)]
    except Exception as error:  # scorers of sounds, texts or a world's own captions refuse as they like
        return wire.fingerprint(facts | {"golden": type(error).__name__})
    facts["golden"] = sorted(asked[0])
    first, *others = (np.array([scores[d] for d in sorted(scores)], np.float64) for scores in asked)
    steady = all(wire.near(first, other, _STEADY * wire.SAME) for other in others)
    return wire.fingerprint(facts, first if steady else None)


def _golden() -> Sequence[Image.Image]:
    """`wire.GOLDEN` pictures: slopes and grain, the same everywhere."""
    y, x = np.mgrid[0:64, 0:64].astype(np.float64)
    planes = (x, y, (x * 7 + y * 13) % 64, (x * x + y * y) % 97 * 0.66)
    return [
        Image.fromarray(np.stack([np.roll(plane, 8 * c, c % 2) * 4 for c in range(3)], -1).clip(0, 255).astype("uint8"))
        for plane in planes
    ]
