"""Are votes kept when many people label at once and the server is killed under them?

    python -m benchmarks.studio_load [--raters 50] [--votes 200] [--overlap 5] [--kills 2] [--think 1.0] [--check]
                                     [--database sqlite] [--jpeg 768 [--cold]]
                                     [--out benchmarks/results/studio_load.json]

Starts `palate label` on a project of raters * votes / overlap pairs and lets so many raters label all of them: once
with the think time between votes, once flat out. They do what the page does: one request an answer, whose reply tells
the pairs that come next, and beside it, over another connection, both pictures of each pair, which must be there before
it is judged. Every 50th reply is thrown away and the vote sent again under its key; the server is killed by SIGKILL at
equal shares of the votes and started again. Then the database is read: each vote that was acknowledged must be there
once, each pair have exactly `overlap` distinct raters, each rater's votes stand in the order they were given. A table,
and JSON.

Held to: acknowledged lost 0, duplicates 0, late 0, every pair its raters; p95 of an answer under 200 ms with think
time; 150 votes a second flat out; after a kill the first vote that was sent after it is in within 5 s; replies were
dropped. With --jpeg the pictures are foreign, JPEGs of so many pixels a side, which the studio encodes anew from its
start on; the raters come when it has, or with --cold at once. The processor's time a vote is the server's, pictures and
their encoding included and its starts apart. PostgreSQL's server programs, which Debian keeps in /usr/lib/postgresql
and others on the path, are needed for its half.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.studio_crowd import Person, Run, Server
from palate import project
from palate.durable import ASIDE
from palate.project import ProjectSettings
from palate.records import Comparison, Medium, Sample, now
from palate.store import Store
from palate.studio.context import VIEWS
from tests.store import servers

P95_MS, VOTES_PER_S, RESTART_S = 200.0, 150.0, 5.0


def made(folder: Path, pairs: int, overlap: int, raters: int, jpeg: int = 0) -> list[tuple[str, str]]:
    """A project of so many pairs; raters' ids and tokens. jpeg: the side of pictures that are no PNGs, in pixels."""
    project.create(folder, ProjectSettings(votes_per_comparison=overlap, known_share=0, repeat_share=0))
    at = now()
    with Store.open(folder) as store:
        store.add_samples(
            Sample(f"s{n}", f"prompt {n // 2}", _jpeg(n, jpeg) if jpeg else _png(n), "model", at)
            for n in range(2 * pairs)
        )
        shown = ((f"s{2 * n}", f"s{2 * n + 1}") for n in range(pairs))
        store.add_comparisons(
            Comparison(f"c{n}", f"prompt {n}", pair, overlap, time=at) for n, pair in enumerate(shown)
        )
        return [store.add_rater(f"rater {number}") for number in range(raters)]


def _png(number: int) -> Medium:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, 200)).save(buffer, "PNG")
    return Medium("image/png", buffer.getvalue())


def _jpeg(number: int, side: int) -> Medium:
    """As costly to encode as a photograph: soft colours with noise."""
    rng, buffer = np.random.default_rng(number), io.BytesIO()
    soft = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(soft, np.int16) + rng.integers(-6, 7, (side, side, 3), dtype=np.int16)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return Medium("image/jpeg", buffer.getvalue())


def measure(
    folder: Path,
    *,
    raters: int,
    votes: int,
    overlap: int,
    kills: int,
    think: float,
    jpeg: int = 0,
    cold: bool = False,
    **env: str,
) -> dict[str, Any]:
    """One run on a new project; env: of the server, such as the database's URL."""
    os.environ.update(env)
    pairs = raters * votes // overlap
    people = made(folder, pairs, overlap, raters, jpeg)
    total = pairs * overlap
    server, run = Server(folder, dict(os.environ)), Run()
    begun = time.monotonic()
    server.wait()
    starting = time.monotonic() - begun
    try:
        encoding = 0.0 if cold or not jpeg else encoded(folder, 2 * pairs)
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
        "encoding_s": encoding,
        "start_cpu_s": server.starting,
        "restart_to_first_vote_s": [back - at for at, back in run.kills],
        "seconds": wall,
    }


def encoded(folder: Path, pictures: int) -> float:
    """Seconds until the studio has encoded so many pictures, of at most 10 each."""
    begun = time.monotonic()
    while len([path for path in folder.glob(f"{VIEWS}/*/*") if not path.name.startswith(ASIDE)]) < pictures:
        if time.monotonic() - begun > 10 * pictures:
            raise RuntimeError(f"the studio does not encode its pictures; see {folder / 'server.log'}")
        time.sleep(0.5)
    return time.monotonic() - begun


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
    parser.add_argument("--jpeg", type=int, default=0, help="side of foreign pictures, in pixels")
    parser.add_argument("--cold", action="store_true", help="raters come before foreign pictures are encoded")
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
                size = {name: getattr(asked, name) for name in ("raters", "votes", "overlap", "kills", "jpeg", "cold")}
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
        f"{run['cpu_ms_per_vote']:.1f} ms of the server's processor each; "
        + (f"{run['jpeg']} pixels a side, encoded in {run['encoding_s']:.0f} s; " if run["jpeg"] else "")
        + f"kill to first vote {restarts or '-'} s; "
        f"{run['late']} late, {run['replies_dropped']} replies dropped, {run['retries']} retries"
        + (f"; NOT HELD: {'; '.join(run['failures'])}" if run["failures"] else "")
    )


if __name__ == "__main__":
    sys.exit(main())
