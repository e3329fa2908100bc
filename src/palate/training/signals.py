"""SIGTERM and Ctrl-C ask a run to stop after its step; asked a second time, it exits at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

EXIT_INTERRUPTED = 75  # "try again": the same command continues
_HEARD = b"\nstopping after this step, or the evaluation in progress, and saving; again to exit at once, unsaved\n"


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: object) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        with contextlib.suppress(OSError):
            os.write(2, _HEARD)  # print might be in the middle of a line, and cannot be entered twice


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Handlers for the length of the block; outside the main thread, where there can be none, nothing is heard."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
