"""What a run writes down: metrics.jsonl without clock values, timing.jsonl with them, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_KEY_NUMBERS = ("loss", "reward/accuracy", "reward/margin", "kl", "validation/loss")
_SAMPLES = "samples/"  # mean scores of a round's samples: they stand until the next round's
_TIMED = 3  # updates whose time is known before any time left is told
_QUIET_S = 10.0  # seconds between progress lines when the output is no terminal


class Logs:
    """The files of one run; made by the first process only. Rows after `offset` belong to steps that never were."""

    def __init__(self, folder: Path, *, step: int = 0, offset: int = 0, tensorboard: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        path.touch()
        if path.stat().st_size < offset:
            raise ValueError(f"{path} is shorter than at the last checkpoint: it was edited, or belongs to another run")
        os.truncate(path, offset)
        self._metrics: IO[str] = path.open("a")
        self._timing: IO[str] = (folder / "timing.jsonl").open("a")
        self._board = _tensorboard(folder / "tensorboard", step) if tensorboard else None

    def write(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """One row of each file."""
        self._metrics.write(json.dumps({"step": step, **metrics}) + "\n")
        clock = {"step": step, "seconds": round(seconds, 6), "time": round(time.time(), 3)}
        self._timing.write(json.dumps(clock) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def sync(self) -> int:
        """Makes the rows durable and returns how many bytes of metrics.jsonl there are."""
        for file in (self._metrics, self._timing):
            file.flush()
            os.fsync(file.fileno())
        return os.fstat(self._metrics.fileno()).st_size

    def close(self) -> None:
        self._metrics.close()
        self._timing.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


class Progress:
    """A bar with the time left and the key numbers on a terminal, plain lines elsewhere, nothing if not shown."""

    def __init__(self, total: int, step: int, *, shown: bool = True, what: str = "step") -> None:
        """total: 0 where nobody knows it. what: is counted, and named in front of the count."""
        self._total, self._first, self._said = total, step, 0.0
        self._what, self._done = what, step
        self._timed: tuple[int, float] | None = None  # the count and the time from which on the pace is taken
        self._seen = 0  # updates since
        self._samples: dict[str, float] = {}
        self._bar: Any = None
        self._shown = shown
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            left, numbers = TextColumn("{task.fields[left]}"), TextColumn("{task.description}")
            columns = (what, BarColumn(), MofNCompleteColumn(), left, numbers)
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=total or None, completed=step, left="")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """After a step."""
        self._done = step
        self._samples |= {name: value for name, value in metrics.items() if name.startswith(_SAMPLES)}
        shown = {name: metrics[name] for name in _KEY_NUMBERS if name in metrics} | self._samples
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        now = time.monotonic()
        left = self._left(step, now)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=numbers, left=left)
        elif self._shown and (now - self._said >= _QUIET_S or step == self._total):
            self._said = now
            print(
                "  ".join(filter(None, (self._counted(step), numbers, left))),
                file=sys.stderr,
                flush=True,
            )

    def _counted(self, step: int) -> str:
        return f"{self._what} {step}/{self._total}" if self._total else f"{self._what} {step}"

    def _left(self, step: int, now: float) -> str:
        """The time left by the pace since the first step, which loads and compiles and is no measure; "" at first."""
        if self._timed is None:
            self._timed = (step, now) if step > self._first else None
            return ""
        self._seen += 1
        begun, start = self._timed
        if self._seen < _TIMED or step <= begun or step >= self._total:
            return ""
        return f"{_clock((now - start) / (step - begun) * (self._total - step))} left"

    def advance(self, more: int) -> None:
        """So many more are done."""
        self.update(self._done + more, {})

    def note(self, message: str) -> None:
        """What is being done that will take a while, in the place of the key numbers until the next step."""
        if self._bar is not None:
            self._bar.update(self._task, description=message)
        elif self._shown and time.monotonic() - self._said >= _QUIET_S:
            self._said = time.monotonic()
            print(f"{self._counted(self._done)}  {message}", file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """A line for the user, above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        elif self._shown:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
