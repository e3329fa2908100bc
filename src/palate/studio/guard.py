"""What stands before every route: host, origin, size, session, role and CSRF, and headers on every answer.

It closes all that is not on a list: a route that nobody thought about needs a session, one below `/admin` an admin's.
State changes only by POST, of JSON, from a page of ours, with a token that only such a page can read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response

from palate.store import StoreUnavailable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/join", "/api/join")  # and the files below /static/, which are the same for everybody
ADMIN = "/admin"
UNAVAILABLE = "the studio cannot reach its database at this moment; try again"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY = 64 * 1024  # bytes; the longest honest answer has a few hundred
BODY_SECONDS = 20.0  # for all of a body to arrive
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def csrf_of(token: str) -> str:
    """What a page must send along with a state change; it follows from the session and says nothing about it."""
    return hmac.new(token.encode(), b"palate csrf", hashlib.sha256).hexdigest()


class Guard:
    """ASGI middleware. rater_of: token -> who it belongs to (with `role`) or None; called in a thread.

    rater_lately_of: the same from memory, None for whoever is not in it; what it knows may be a moment old.
    hosts: names under which the studio may be reached. refused_page: what a browser without a session is shown.
    What is let through finds `rater`, `token` and `csrf` in its request's state.
    """

    def __init__(
        self,
        app: App,
        *,
        rater_of: Callable[[str], Any],
        rater_lately_of: Callable[[str], Any],
        hosts: Iterable[str],
        cookie: str,
        refused_page: Callable[[], Response],
    ) -> None:
        self.app, self.cookie, self.refused_page = app, cookie, refused_page
        self.rater_of, self.rater_lately_of = rater_of, rater_lately_of
        self.hosts = LOOPBACK | {host.lower().strip("[]") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # there are none
        else:
            guarded = _with_headers(send)
            refusal = await self._refusal(scope)
            if refusal is None and scope["method"] == "POST":
                try:
                    async with asyncio.timeout(BODY_SECONDS):
                        receive = _replayed(await _body(receive))
                except (TooLarge, TimeoutError) as error:
                    large = isinstance(error, TooLarge)
                    refusal = _said("the request is too large", 413) if large else _said("too slow", 408)
            if refusal is None:
                await self.app(scope, receive, guarded)
            else:
                await refusal(scope, receive, guarded)

    async def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that must go no further; None for one that may, whose state is filled."""
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        if _hostname(headers.get("host", "")) not in self.hosts or len(headers.getlist("host")) != 1:
            return _said("this studio does not answer to that name; see --name in docs/labelling.md", 403)
        if method not in ("GET", "HEAD", "POST"):
            return _said("this method is not used here", 405)
        if method == "POST" and (why := _foreign(headers)):
            return _said(why, 403)
        if path in OPEN or path.startswith("/static/"):
            return None
        token = self._token(headers)
        try:
            rater = (self.rater_lately_of(token) or await run_in_threadpool(self.rater_of, token)) if token else None
        except StoreUnavailable:
            return _said(UNAVAILABLE, 503)
        if rater is None:
            wants_page = method == "GET" and "text/html" in headers.get("accept", "")
            return self.refused_page() if wants_page else _said("no session: open your join link", 401)
        if (path == ADMIN or path.startswith(ADMIN + "/")) and rater.role != "admin":
            return _said("for admins only", 403)
        csrf = csrf_of(token)
        if method == "POST" and not hmac.compare_digest(headers.get("x-csrf", "").encode(), csrf.encode()):
            return _said("the page is stale: reload it", 403)
        scope.setdefault("state", {}).update(rater=rater, token=token, csrf=csrf)
        return None

    def _token(self, headers: Headers) -> str:
        """The session's token; empty if there is none. Cookies of others may hold anything, and are not looked at."""
        for part in headers.get("cookie", "").split(";"):
            name, _, value = part.partition("=")
            if name.strip() == self.cookie:
                return value.strip() if len(value) <= 256 else ""
        return ""


class TooLarge(Exception):
    """A body has more than MAX_BODY bytes."""


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise TooLarge
        if not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


def _hostname(host: str) -> str:
    """The name of a Host header without its port; `?` for one that is none."""
    try:
        parts = urlsplit(f"//{host}")
        plain = parts.port != 0 and not parts.username and not parts.path
        return parts.hostname if parts.hostname and plain else "?"
    except ValueError:  # of a port that is none, too
        return "?"


def _foreign(headers: Headers) -> str:
    """Why a POST cannot be from a page of ours; empty if it can."""
    try:
        origin = urlsplit(headers.get("origin", ""))
    except ValueError:
        return "the request has no origin that can be read"
    if origin.scheme not in ("http", "https") or origin.netloc.lower() != headers.get("host", "").lower():
        return "the request comes from another site"
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return "the request comes from another site"
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return "only JSON is taken"
    return ""


def _said(why: str, status: int) -> Response:
    return JSONResponse({"error": why}, status)


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sent
