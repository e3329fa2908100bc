"""Servers of this very process for tests: one that answers as a script says, and one that serves an application."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answer:
    """status, body and headers of a reply; `raw`, if given, is what is written to the socket instead of all that."""

    def __init__(self, body: Any = None, status: int = 200, raw: Callable[[Any], None] | None = None, **headers: str):
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.raw = status, raw
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Scripted:
    """requests: (method, path, headers, JSON or None) as they came. Replies by `reply(request) -> Answer`."""

    def __init__(self, url: str) -> None:
        self.url, self.requests = url, []
        self.reply: Callable[[tuple[str, str, dict[str, str], Any]], Answer] = lambda request: Answer({}, 404)


@contextlib.contextmanager
def scripted() -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self):
            size = int(self.headers.get("content-length", 0))
            asked = json.loads(self.rfile.read(size)) if size else None
            request = (self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, asked)
            server.requests.append(request)
            answer = server.reply(request)
            with contextlib.suppress(OSError):
                if answer.raw is not None:
                    answer.raw(self)
                    return
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

        do_GET = do_POST = answer

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request, client_address):
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    server = Scripted(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """An ASGI application on a port of its own; its address."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
