"""Child processes that share the parent's imports: what a run does when it is killed is seen from outside."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a forked child and returns its exit status: minus the signal that killed it, 1 for an error."""
    return wait(start(work))


def start(work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(run: Path) -> dict[str, object]:
    """Everything a finished run leaves that is promised to be the same to the bit, by name and hash."""
    newest = max((run / "checkpoints").glob("step-*"))
    files = json.loads((newest / "manifest.json").read_text())["files"]
    return {
        "step": newest.name,
        **files,
        "metrics": (run / "metrics.jsonl").read_text(),
        "adapter": (run / "adapter" / "pytorch_lora_weights.safetensors").read_bytes(),
        "folders": sorted(path.name for path in (run / "checkpoints").iterdir()),
    }
