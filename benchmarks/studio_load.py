"""Are votes kept when many people label at once and the server is killed under them?

    python -m benchmarks.studio_load [--raters 50] [--votes 200] [--overlap 5] [--kills 2] [--think 1.0] [--check]
                                     [--database sqlite] [--out benchmarks/results/studio_load.json]

Starts `palate label` on a project of raters * votes / overlap pairs and lets so many raters label all of them: once
with the think time between votes, once flat out. They do what the page does: one request an answer, whose reply tells
the pairs that come next, and beside it, over another connection, both pictures of each pair, which must be there before
it is judged. Every 50th reply is thrown away and the vote sent again under its key; the server is killed by SIGKILL at
equal shares of the votes and started again. Then the database is read: each vote that was acknowledged must be there
once, each pair have exactly `overlap` distinct raters, each rater's votes stand in the order they were given. A table,
and JSON.

Held to: acknowledged lost 0, duplicates 0, late 0, every pair its raters; p95 of an answer under 200 ms with think
time; 150 votes a second flat out; after a kill the first vote that was sent after it is in within 5 s; replies were
dropped. The processor's time a vote is the server's, pictures included and its starts apart. PostgreSQL's server
programs, which Debian keeps in /usr/lib/postgresql and others on the path, are needed for its half.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import platform
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from palate import project
from palate.project import ProjectSettings
from palate.records import Comparison, Medium, Sample, now
from palate.store import Store
from palate.studio.context import cookie_name
from palate.studio.guard import csrf_of
from tests.store import servers

DROP_EVERY, AHEAD, PATIENCE_S = 50, 4, 60.0
P95_MS, VOTES_PER_S, RESTART_S = 200.0, 150.0, 5.0


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


def made(folder: Path, pairs: int, overlap: int, raters: int) -> list[tuple[str, str]]:
    """A project of so many pairs; raters' ids and tokens."""
    project.create(folder, ProjectSettings(votes_per_comparison=overlap, known_share=0, repeat_share=0))
    at = now()
    with Store.open(folder) as store:
        store.add_samples(
            Sample(f"s{n}", f"prompt {n // 2}", Medium("image/png", _png(n)), "model", at) for n in range(2 * pairs)
        )
        shown = ((f"s{2 * n}", f"s{2 * n + 1}") for n in range(pairs))
        store.add_comparisons(
            Comparison(f"c{n}", f"prompt {n}", pair, overlap, time=at) for n, pair in enumerate(shown)
        )
        return [store.add_rater(f"rater {number}") for number in range(raters)]


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def measure(
    folder: Path, *, raters: int, votes: int, overlap: int, kills: int, think: float, **env: str
) -> dict[str, Any]:
    """One run on a new project; env: of the server, such as the database's URL."""
    os.environ.update(env)
    pairs = raters * votes // overlap
    people = made(folder, pairs, overlap, raters)
    total = pairs * overlap
    server, run = Server(folder, dict(os.environ)), Run()
    begun = time.monotonic()
    server.wait()
    starting = time.monotonic() - begun
    try:
        threads = [Person(server, rater, token, think, run) for rater, token in people]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for kill in range(1, kills + 1):
            while run.number < total * kill // (kills + 1) and any(thread.is_alive() for thread in threads):
                time.sleep(0.01)
            server.kill()
            with run.lock:
                run.kills.append((time.monotonic(), 0.0))
            server.start()
            server.wait()
        for thread in threads:
            thread.join()
        wall = time.monotonic() - begun
        server.kill()
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
    errors = [thread.error for thread in threads if thread.error]
    if errors:
        raise RuntimeError(f"{len(errors)} raters stopped: {errors[0]}")
    down = sum(max(back - at, 0.0) for at, back in run.kills)
    return {
        **held(folder, run, pairs, overlap),
        "acked": run.number,
        "wanted": total,
        "late": run.late,
        "replies_dropped": run.dropped,
        "retries": run.retries,
        "answer_ms": _quantiles(run.answers),
        "lease_ms": _quantiles(run.leases),
        "media_ms": _quantiles(run.media),
        "media": len(run.media),
        "votes_per_s": run.number / (wall - down),
        "cpu_ms_per_vote": 1000 * sum(server.serving) / max(run.number, 1),
        "start_s": starting,
        "start_cpu_s": server.starting,
        "restart_to_first_vote_s": [back - at for at, back in run.kills],
        "seconds": wall,
    }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    return {name: float(np.quantile(seconds, q) * 1000) for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


def held(folder: Path, run: Run, pairs: int, overlap: int) -> dict[str, int]:
    """What the database has against what was acknowledged."""
    with Store.open(folder) as store:
        votes = list(store.votes())
    stored: dict[str, list[str]] = {}
    for vote in votes:
        stored.setdefault(vote.source, []).append(vote.id.split("/")[1])
    lost = sum(key not in set(stored.get(rater, ())) for rater, keys in run.acked.items() for key in keys)
    twice = Counter((vote.source, vote.comparison) for vote in votes)
    raters: dict[str, set[str]] = {}
    for vote in votes:
        raters.setdefault(vote.comparison, set()).add(vote.source)
    ordered = sum(keys == sorted(keys) for keys in stored.values())
    return {
        "acked_lost": lost,
        "duplicates": sum(count - 1 for count in twice.values()),
        "pairs": pairs,
        "pairs_with_exactly_k": sum(len(who) == overlap for who in raters.values()),
        "never_acked_but_stored": len(votes) - run.number,
        "raters_out_of_order": len(stored) - ordered,
    }


@contextlib.contextmanager
def databases(kind: str) -> Iterator[dict[str, str]]:
    """The environment that names the database; a PostgreSQL of its own, on disk, for as long as it takes."""
    if kind == "sqlite":
        yield {}
        return
    with servers.server(in_memory=False) as running:
        yield {project.DATABASE: running.url()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--overlap", type=int, default=5)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--think", type=float, action="append", help="seconds; default: 1 and 0")
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"], help="default: both")
    parser.add_argument("--check", action="store_true", help="fail where a figure is not held")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    os.environ.pop(project.DATABASE, None)
    found: list[dict[str, Any]] = []
    kinds = asked.database or ["sqlite", "postgresql"]
    if "postgresql" in kinds and servers.found() is None:
        if asked.database:
            parser.error("PostgreSQL's server programs are not installed (Debian: apt install postgresql)")
        kinds.remove("postgresql")
        print("postgresql is left out: its server programs are not installed")
    for kind in kinds:
        for think in asked.think or [1.0, 0.0]:
            with tempfile.TemporaryDirectory() as folder, databases(kind) as environment:
                size = {"raters": asked.raters, "votes": asked.votes, "overlap": asked.overlap, "kills": asked.kills}
                figures = measure(Path(folder) / "project", think=think, **size, **environment)
                os.environ.pop(project.DATABASE, None)
            found.append({"database": kind, "think_s": think, **size, **figures, "failures": failures(think, figures)})
            print(line(found[-1]), flush=True)
            if asked.out:  # after each: the whole takes ten minutes
                facts = {"machine": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                asked.out.write_text(json.dumps({**facts, "runs": found}, indent=1) + "\n")
    return int(asked.check and any(run["failures"] for run in found))


def failures(think: float, figures: dict[str, Any]) -> list[str]:
    """Which of the figures do not hold."""
    checks = {
        "acknowledged votes were lost": figures["acked_lost"] == 0,
        "votes were counted twice": figures["duplicates"] == 0,
        "pairs lack raters or have too many": figures["pairs_with_exactly_k"] == figures["pairs"],
        "a rater's votes are out of order": figures["raters_out_of_order"] == 0,
        "answers came too late": figures["late"] == 0,
        "no reply was dropped, so that this shows less than it says": not figures["restart_to_first_vote_s"]
        or figures["replies_dropped"] > 0,
        f"p95 of an answer above {P95_MS:.0f} ms": think == 0 or figures["answer_ms"]["p95"] < P95_MS,
        f"fewer than {VOTES_PER_S:.0f} votes a second": think > 0 or figures["votes_per_s"] >= VOTES_PER_S,
        f"first vote {RESTART_S:.0f} s or more after a kill": all(
            0 < s < RESTART_S for s in figures["restart_to_first_vote_s"]
        ),
    }
    return [said for said, holds in checks.items() if not holds]


def line(run: dict[str, Any]) -> str:
    restarts = ", ".join(f"{s:.1f}" for s in run["restart_to_first_vote_s"])
    return (
        f"{run['database']:10} think {run['think_s']:.1f} s: acked {run['acked']}, lost {run['acked_lost']}, "
        f"twice {run['duplicates']}, pairs with exactly {run['overlap']} raters {run['pairs_with_exactly_k']} of "
        f"{run['pairs']}; answer p50 {run['answer_ms']['p50']:.0f} p95 {run['answer_ms']['p95']:.0f} ms, "
        f"picture p95 {run['media_ms']['p95']:.0f} ms, {run['votes_per_s']:.0f} votes/s, "
        f"{run['cpu_ms_per_vote']:.1f} ms of the server's processor each; kill to first vote {restarts or '-'} s; "
        f"{run['late']} late, {run['replies_dropped']} replies dropped, {run['retries']} retries"
        + (f"; NOT HELD: {'; '.join(run['failures'])}" if run["failures"] else "")
    )


if __name__ == "__main__":
    sys.exit(main())
