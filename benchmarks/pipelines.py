"""Which of diffusers' pipelines are served, found by trying: the sweep that writes docs/pipelines.json and .md.

    python -m benchmarks.pipelines --processes 2            # all tiny builds, about 3 s each and core
    python -m benchmarks.pipelines --only 'Flux*'           # some, with the reasons, in place of their old rows
    python -m benchmarks.pipelines --check --processes 2    # writes nothing; fails if what held no longer does

Every build of tests/pipelines goes through the contract of tests/contracts/pipelines.py.
Nothing here is written by hand: a class is in the table because a tiny build of it was examined.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLE, PAGE = ROOT / "docs" / "pipelines.json", ROOT / "docs" / "pipelines.md"
Entry = dict[str, Any]


def examined(name: str) -> tuple[str, Entry]:
    """One build through the contract, as plain values."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from tests.contracts import pipelines

    torch.set_num_threads(1)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = pipelines.examine(name)
        except ImportError as error:
            return name, {"stages": {"load": {"holds": False, "note": f"not built: {pipelines.first_line(error)}"}}}
    stages = {stage: {"holds": held.holds, "note": held.note} for stage, held in made.found.items()}
    return name, {**made.facts, "stages": stages}


def sweep(names: list[str], processes: int, kept: dict[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """Results as they come; those in `kept` are not made again."""
    todo = [name for name in names if name not in kept]
    yield from ((name, kept[name]) for name in names if name in kept)
    if processes == 1:
        yield from map(examined, todo)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(examined, todo)


# --- what a result means ----------------------------------------------------------------------------------------------


def holds(entry: Entry, *stages: str) -> bool:
    return all(entry["stages"].get(stage, {}).get("holds", False) for stage in stages)


def served(entry: Entry) -> bool:
    """Replay and rollout: with guidance off or on, its own call under our scheduler, one online step."""
    replays = holds(entry, "replay off") or holds(entry, "replay on")
    return replays and holds(entry, "load", "rollout", "online")


def whole(entry: Entry) -> bool:
    """The full contract: the codec, an offline step and the adapter, too."""
    return served(entry) and holds(entry, "codec", "offline", "adapter")


def losses(before: dict[str, Entry], now: dict[str, Entry]) -> list[str]:
    """What held and no longer does, of the builds examined, and what is served and broken."""
    broken = [
        f"{name}: {stage}: {held['note']}"
        for name, entry in now.items()
        for stage, held in entry["stages"].items()
        if "BROKEN" in held["note"] and not holds(before.get(name, {"stages": {}}), stage)
    ]
    return broken + [
        f"{name}: {stage} held, and no longer does ({now[name]['stages'].get(stage, {}).get('note', 'not reached')})"
        for name, entry in before.items()
        if name in now
        for stage in entry["stages"]
        if holds(entry, stage) and not holds(now[name], stage)
    ]


# --- the page ---------------------------------------------------------------------------------------------------------

COLUMNS = ("replay off", "replay on", "rollout", "online", "codec", "offline", "adapter")


def counts(found: dict[str, Entry]) -> str:
    """The summary of a sweep."""
    classes = {name.partition(" ")[0] for name in found}
    loaded = {name: entry for name, entry in found.items() if holds(entry, "load")}
    guided = [name for name, entry in loaded.items() if holds(entry, "replay on")]
    off = [name for name, entry in loaded.items() if not holds(entry, "replay on")]
    reached = [name for name, entry in found.items() if served(entry)]
    full = [name for name, entry in found.items() if whole(entry)]
    return (
        f"{len(found)} builds of {len(classes)} classes: {len(guided)} replay bit for bit with guidance on, "
        f"{len(off)} more with guidance off only, {len(found) - len(loaded)} are refused. "
        f"{len(reached)} ({len({n.partition(' ')[0] for n in reached})} classes) meet the contract of replay and "
        f"rollout, {len(full)} ({len({n.partition(' ')[0] for n in full})} classes) the whole contract."
    )


def page(found: dict[str, Entry], versions: str) -> str:
    """docs/pipelines.md."""
    loaded = {name: entry for name, entry in sorted(found.items()) if holds(entry, "load")}
    refused = {name: entry for name, entry in sorted(found.items()) if not holds(entry, "load")}
    lines = [
        "# Which pipelines work",
        "",
        "Written by `python -m benchmarks.pipelines`; do not edit. Tiny random builds of diffusers' own classes, on "
        f"the CPU in float32 ({versions}).",
        "",
        counts(found),
        "",
        "A pipeline that is not here may work as well: nothing in Palate knows a class by name. Loading it is the "
        "test, and one that cannot be replayed is refused with the reason.",
        "",
        "- **replay off / on**: predictions without and with guidance are, bit for bit, what the pipeline's own call "
        "hands its scheduler, at other prompts, noise and times.",
        "- **rollout**: the pipeline's own call under the stochastic scheduler; log-densities computed anew give a "
        "ratio of exactly 1.",
        "- **online / offline**: one step of DDPO on own samples, one of Diffusion-DPO on encoded media, changes the "
        "adapter and nothing else.",
        "- **codec**: media are encoded to the latents that the pipeline's own decoding makes them of.",
        "- **adapter**: the exported adapter, loaded by plain diffusers, gives the same medium bit for bit (`peft`: "
        "the class has no loader of its own in diffusers, and `peft` loads it).",
        "",
        "| pipeline | makes | predicts | clock | guidance | " + " | ".join(COLUMNS) + " |",
        "|---" * (5 + len(COLUMNS)) + "|",
    ]
    notes: list[str] = []
    for name, entry in loaded.items():
        cells = [mark(entry, stage) for stage in COLUMNS]
        facts = [entry.get("media", ""), entry["prediction"], entry["clock"], entry["guidance"] or "none"]
        lines.append(f"| {name} | " + " | ".join(facts + cells) + " |")
        notes += reasons(name, entry)
    lines += ["", "## What does not hold, and why", "", *notes]
    lines += ["", "## Refused", "", "| pipeline | why |", "|---|---|"]
    lines += [f"| {name} | {told(entry['stages']['load']['note'])} |" for name, entry in refused.items()]
    return "\n".join(lines) + "\n"


def mark(entry: Entry, stage: str) -> str:
    if not holds(entry, stage):
        return "-"
    return entry["stages"][stage]["note"] or "yes"


def reasons(name: str, entry: Entry) -> list[str]:
    """One line for each reason why stages do not hold."""
    by_reason: dict[str, list[str]] = {}
    for stage, held in entry["stages"].items():
        if not held["holds"]:
            by_reason.setdefault(told(held["note"]), []).append(stage)
    return [f"- {name}: {', '.join(stages)}: {reason}" for reason, stages in by_reason.items()]


def told(note: str) -> str:
    """A reason without the class's name in front, and without what a table cannot hold."""
    head, _, rest = note.partition(": ")
    reason = rest if head.endswith("Pipeline") and " " not in head else note
    for advice in (". It cannot be trained on", ". Sample and train with", " (tried "):  # the same for all
        reason = reason.partition(advice)[0]
    return reason.replace("|", "\\|")


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="builds of this name, or whose name begins so before a `*`")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if what held no longer does")
    parser.add_argument("--resume", type=Path, help="a JSON file where results are kept as they come")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    from tests import pipelines

    wanted = chosen.only or ["*"]
    names = [n for n in sorted(pipelines.places())
             if any(n == w or (w.endswith("*") and n.startswith(w[:-1])) for w in wanted)]  # fmt: skip
    kept = json.loads(chosen.resume.read_text()) if chosen.resume and chosen.resume.exists() else {}
    found: dict[str, Entry] = {}
    for name, entry in sweep(names, chosen.processes, kept):
        found[name] = entry
        said = "  ".join(f"{stage}: {mark(entry, stage)}" for stage in COLUMNS)
        print(f"[{len(found)}/{len(names)}] {name}  {said}", flush=True)
        if chosen.only:
            print("\n".join(reasons(name, entry)), flush=True)
        if chosen.resume:
            chosen.resume.write_text(json.dumps(found, indent=1))
    before = json.loads(TABLE.read_text())["pipelines"] if TABLE.exists() else {}
    lost = losses(before, found)
    print("\n".join([counts(found), *lost]))
    if not chosen.check:
        write({name: entry for name, entry in (before | found).items() if name in pipelines.places()})
    return 1 if lost else 0


def write(found: dict[str, Entry]) -> None:
    """The table, for machines and for people."""
    import diffusers
    import torch

    versions = f"diffusers {diffusers.__version__}, torch {torch.__version__.partition('+')[0]}"
    held = {"versions": versions, "pipelines": dict(sorted(found.items()))}
    TABLE.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(found, versions))


if __name__ == "__main__":
    raise SystemExit(main())
