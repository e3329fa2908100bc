"""A claim whose arms do nothing, to run the command of a claim as a command: python -m tests.toy_claim FOLDER ..."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from benchmarks.claims import common

CLAIM = common.Claim("toy", {})


def arm(value: int) -> dict[str, int]:
    return {"value": value, "process": os.getpid()}


def tuning(tier: common.Tier) -> common.Arms:
    return [(f"tune-{i}", 0, partial(arm, i)) for i in range(3)]


def reported(tier: common.Tier) -> common.Arms:
    """Raises unless all arms that tune are there, in whatever process."""
    tuned = [common.load_arm(CLAIM, tier, name, seed) for name, seed, _ in tuning(tier)]
    if not all(tuned):
        raise AssertionError("reported before it was tuned")
    return [("arm", seed, partial(arm, seed)) for seed in range(2)]


def show(tier: common.Tier) -> None:
    found = [common.load_arm(CLAIM, tier, "arm", seed) for seed in range(2)]
    print("values", [one and one["value"] for one in found], "processes", len({one["process"] for one in found if one}))


if __name__ == "__main__":
    common.RESULTS = Path(os.environ["TOY_RESULTS"])
    sys.exit(common.main(CLAIM, __doc__, tuning, reported, show))
