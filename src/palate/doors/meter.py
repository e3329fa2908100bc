"""How long a command took and how much memory it held, over all invocations on its folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from palate.doors import judging
from palate.memory import peak_bytes


class Meter:
    """Seconds and memory of all invocations on a folder, kept in its meter.json; what a kill cut off is missing."""

    def __init__(self, folder: Path) -> None:
        self._path, self._began = folder / "meter.json", time.perf_counter()
        held = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
        self._seconds, self._peak = held.get("seconds", 0.0), held.get("peak_memory_gb", 0.0)

    @property
    def seconds(self) -> float:
        """So far, in all."""
        return float(self._seconds + time.perf_counter() - self._began)

    @property
    def peak_memory_gb(self) -> float:
        """The most main memory that a process held, in GB of 10^9 bytes."""
        return float(max(self._peak, peak_bytes() / 1e9))

    def keep(self) -> None:
        judging.write_json(self._path, {"seconds": self.seconds, "peak_memory_gb": self.peak_memory_gb})


@contextlib.contextmanager
def metered(folder: Path) -> Iterator[Meter]:
    """A meter that is kept however the block ends."""
    meter = Meter(folder)
    try:
        yield meter
    finally:
        meter.keep()
