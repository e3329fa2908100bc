"""People at the labelling page, over HTTP, as many as threads: they do what the page does and note what they saw."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palate.studio.context import cookie_name
from palate.studio.guard import csrf_of

DROP_EVERY, AHEAD, PATIENCE_S = 50, 4, 60.0


@dataclass
class Run:
    """What the raters saw. acked: keys of each rater in order. answers, leases, media: seconds that each took.

    kills: when, and when the first vote that was sent after it was in; 0 until then.
    """

    acked: dict[str, list[str]] = field(default_factory=dict)
    answers: list[float] = field(default_factory=list)
    leases: list[float] = field(default_factory=list)
    media: list[float] = field(default_factory=list)
    retries: int = 0
    dropped: int = 0
    late: int = 0
    kills: list[tuple[float, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def number(self) -> int:
        return sum(map(len, self.acked.values()))


class Server:
    """`palate label` in a process of its own, which can be killed and started again on its port.

    starting, serving: seconds of the processor, of each life of the server.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.starting: list[float] = []
        self.serving: list[float] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "palate", "label", "--project", str(self.folder), "--port", str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=log)

    def kill(self) -> None:
        self.serving.append(self._used() - self.starting[-1])
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    def wait(self) -> None:
        """Until it answers, but not for ever."""
        for _ in range(600):
            with contextlib.suppress(OSError, http.client.HTTPException):
                asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                with contextlib.closing(asked):
                    asked.request("GET", "/join")
                    if asked.getresponse().status == 200:
                        self.starting.append(self._used())
                        return
            time.sleep(0.05)
        raise RuntimeError(f"the studio does not start; see {self.folder / 'server.log'}")

    def _used(self) -> float:
        """Seconds of the processor so far, as Linux tells them."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Line:
    """A connection to the server that is kept, and made again when it breaks. sent: when the last request went out."""

    def __init__(self, server: Server, headers: dict[str, str], run: Run) -> None:
        self.server, self.headers, self.run_of = server, headers, run
        self.connection: http.client.HTTPConnection | None = None
        self.sent = 0.0

    def send(self, method: str, path: str, body: Any = None) -> http.client.HTTPConnection:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        self.sent = time.monotonic()
        self.connection.request(method, path, None if body is None else json.dumps(body), self.headers)
        return self.connection

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def ask(self, method: str, path: str, body: Any = None) -> bytes:
        """The reply, however often it takes."""
        until, pause = time.monotonic() + PATIENCE_S, 0.05
        while True:
            try:
                with contextlib.closing(self.send(method, path, body).getresponse()) as reply:
                    content = reply.read()
                if reply.status == 200:
                    return content
                if reply.status < 500:
                    raise RuntimeError(f"{path}: {reply.status} {content[:200]!r}")
                said: object = f"{reply.status} {content[:200]!r}"
            except (OSError, http.client.HTTPException) as error:
                said = error
            self.close()
            if time.monotonic() > until:
                raise RuntimeError(f"{path}: no answer in {PATIENCE_S} s: {said}")
            self.run_of.retries += 1
            time.sleep(pause)
            pause = min(2 * pause, 0.5)


class Loader(threading.Thread):
    """Loads pictures ahead, one after the other, as they are named."""

    def __init__(self, line: Line) -> None:
        super().__init__(daemon=True)
        self.line = line
        self.error: BaseException | None = None
        self._named: queue.SimpleQueue[tuple[list[str], threading.Event]] = queue.SimpleQueue()

    def load(self, names: list[str]) -> threading.Event:
        """Set once all of them are there."""
        there = threading.Event()
        self._named.put((names, there))
        return there

    def run(self) -> None:
        try:
            while (asked := self._named.get())[0]:
                for name in asked[0]:
                    begun = time.perf_counter()
                    if not self.line.ask("GET", f"/media/{name}").startswith(b"\x89PNG"):
                        raise RuntimeError(f"{name} is no picture")
                    self.line.run_of.media.append(time.perf_counter() - begun)
                asked[1].set()
        except BaseException as error:
            self.error = error
        finally:
            self.line.close()


class Person(threading.Thread):
    """One rater: thinks, answers, is told what comes next; sends an answer again until told what became of it."""

    def __init__(self, server: Server, rater: str, token: str, think: float, run: Run) -> None:
        super().__init__(daemon=True)
        self.rater, self.think, self.run_of = rater, think, run
        cookie = {"cookie": f"{cookie_name(server.folder)}={token}"}
        posting = {"x-csrf": csrf_of(token), "origin": f"http://127.0.0.1:{server.port}"}
        self.line = Line(server, cookie | posting | {"content-type": "application/json"}, run)
        self.loader = Loader(Line(server, cookie, run))
        self.error: BaseException | None = None
        self.waiting: list[tuple[str, threading.Event]] = []  # leases, and whether their pictures are there
        self.told: set[str] = set()

    def run(self) -> None:
        self.loader.start()
        try:
            self._label()
        except BaseException as error:
            self.error = error
        finally:
            self.line.close()
            self.loader.load([])  # it ends

    def _label(self) -> None:
        number = 0
        while self.waiting or self._ask():
            lease, there = self.waiting.pop(0)
            if not there.wait(PATIENCE_S):
                raise self.loader.error or RuntimeError(f"a picture did not come in {PATIENCE_S} s")
            time.sleep(self.think)
            number += 1
            self._answer(lease, f"{self.rater[-8:]}-{number:06d}", number % DROP_EVERY == 0)

    def _ask(self) -> bool:
        """At the start, and when a reply told of nothing more: whether there is something."""
        begun = time.perf_counter()
        self._take(json.loads(self.line.ask("POST", "/api/lease", {"n": AHEAD}))["leases"])
        self.run_of.leases.append(time.perf_counter() - begun)
        return bool(self.waiting)

    def _take(self, leases: list[dict[str, Any]]) -> None:
        for lease in leases:
            if lease["id"] not in self.told:
                self.told.add(lease["id"])
                self.waiting.append((lease["id"], self.loader.load([medium["id"] for medium in lease["media"]])))

    def _answer(self, lease: str, key: str, drop: bool) -> None:
        body = {"lease": lease, "key": key, "answers": {"overall": "left"}, "seconds": self.think, "n": AHEAD}
        if drop:  # sends, and hangs up before the reply
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.line.send("POST", "/api/answer", body)
            self.line.close()
            self.run_of.dropped += 1
        begun = time.perf_counter()
        reply = json.loads(self.line.ask("POST", "/api/answer", body))
        with self.run_of.lock:
            self.run_of.answers.append(time.perf_counter() - begun)
            if reply["status"] in ("saved", "known"):
                self.run_of.acked.setdefault(self.rater, []).append(key)
                self._first_after_kill()
            else:
                self.run_of.late += 1
        self._take(reply["leases"])

    def _first_after_kill(self) -> None:
        if self.run_of.kills and self.run_of.kills[-1][1] == 0 and self.line.sent > self.run_of.kills[-1][0]:
            at, _ = self.run_of.kills[-1]
            self.run_of.kills[-1] = (at, time.monotonic())
