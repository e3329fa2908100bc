"""HTTP as the studio speaks it: connections that say nothing, or a letter now and then, are closed in bounded time,
and heads of requests are of bounded size.

uvicorn closes a connection that rests after an answer, but waits for ever for the first request, for the end of one
that has begun, and for whoever takes nothing of an answer; of httptools, which reads requests faster than h11, it takes
heads of any size. Bodies have limits of their own (`guard.BODY_SECONDS`, `guard.MAX_BODY`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REST_SECONDS = 15  # without a request after an answer
HEAD_SECONDS = 30.0  # from a connection's start, or its last answer, until the next request's head is there
MAX_HEAD = 32 * 1024  # bytes of a request beside its body, as far as it came before it is whole
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
    """HTTP/1.1 by uvicorn, with an end to waiting."""

    _head = 0  # bytes of the request that comes in, its body apart

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = self._joined = Joined(transport, self.loop)  # type: ignore[assignment]
        self._since, self._taken = self.loop.time(), 0
        self._look = self.loop.call_later(HEAD_SECONDS, self._look_again)

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head <= MAX_HEAD or self.transport.is_closing():
            return
        if self._answering():
            self.transport.abort()
        else:
            self.send_400_response("The head of the request is too large.")

    def on_body(self, body: bytes) -> None:
        self._head -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head = 0
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
