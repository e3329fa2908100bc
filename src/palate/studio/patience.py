"""HTTP as the studio speaks it: connections that say nothing, or a letter now and then, are closed in bounded time,
and heads of requests are of bounded size.

uvicorn closes a connection that rests after an answer, but waits for ever for the first request, for the end of one
that has begun, and for whoever takes nothing of an answer. With httptools, which reads requests faster than h11, it
takes heads of any size, any number of requests before the first is answered, trailers as headers, and a body behind a
wish for another protocol as the next request. Bodies have limits of their own (`guard.BODY_SECONDS`, `guard.MAX_BODY`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REST_SECONDS = 15  # without a request after an answer
HEAD_SECONDS = 30.0  # from a connection's start, or its last answer, until the next request's head is there
MAX_HEAD = 32 * 1024  # bytes of a request beside its body
TAKE_SECONDS = 30.0  # in which something of an answer must be taken, be it little


class Joined:
    """A transport that sends what is written in one turn of the loop at once.

    The head of an answer and its body go out together: with each of two the loop would let go of the interpreter, and
    wait for a thread to give it back.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held, self._written = b"", 0

    def write(self, data: bytes) -> None:
        if data and not self._held:
            self._loop.call_soon(self._flush)
        self._held += data

    @property
    def taken(self) -> int:
        """Bytes that the other side, or the system on its behalf, took so far."""
        return self._written - self._transport.get_write_buffer_size()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._written += len(held)
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Patient(HttpToolsProtocol):
    """HTTP/1.1 by uvicorn, with an end to waiting, and one request at a time."""

    _come = 0  # bytes of a request that is not there wholly, its body apart
    _told = 0  # bytes of a request's address and headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = self._joined = Joined(transport, self.loop)  # type: ignore[assignment]
        self._since, self._taken = self.loop.time(), 0
        self._look = self.loop.call_later(HEAD_SECONDS, self._look_again)

    def data_received(self, data: bytes) -> None:
        self._come += len(data)
        super().data_received(data)
        if self._come <= MAX_HEAD or self.transport.is_closing():
            return
        if self._answering():
            self.transport.abort()
        else:
            self.send_400_response("The head of the request is too large.")

    # What these raise is answered by 400, and the connection closed.

    def on_message_begin(self) -> None:
        if self._answering():  # browsers and proxies wait for an answer; who does not would have us keep what waits
            self.transport.abort()
            raise ValueError("a request before the one before it was answered")
        self._told = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._tell(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._tell(len(name) + len(value))
        super().on_header(name, value)

    def _tell(self, size: int) -> None:
        self._told += size
        if self._told > MAX_HEAD:
            raise ValueError("the head of the request is too large")

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and {b"content-length", b"transfer-encoding"} & {
            name for name, _ in self.headers
        }:
            raise ValueError("a body with a wish for another protocol, which the parser takes for a request")
        super().on_headers_complete()
        self.headers = []  # the request has its own; what still comes are trailers, which nobody reads

    def on_body(self, body: bytes) -> None:
        self._come -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._come = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def _look_again(self) -> None:
        """Whether the connection has anything to wait for; looked at when it may have waited long enough."""
        untaken = self.transport.get_write_buffer_size() > 0
        if untaken or self._answering():
            left = 0.0 if untaken and self._joined.taken == self._taken else TAKE_SECONDS
            self._since, self._taken = self.loop.time(), self._joined.taken
        else:
            left = self._since + HEAD_SECONDS - self.loop.time()
        if left <= 0:
            self.transport.abort()
        else:
            self._look = self.loop.call_later(left, self._look_again)

    def _answering(self) -> bool:
        """Whether a request's head is there and its answer is not made, or not wholly."""
        cycle: Any = self.cycle
        return not (cycle is None or cycle.response_complete)
