"""What this installation can do: versions, devices, memory, and traps known to break it. A plain table."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

CORE = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "pillow", "pyarrow", "pydantic")
EXTRAS = {
    "torchvision": "not needed",
    "tensorboard": "curves while training",
    "bitsandbytes": "8-bit optimiser: palate[bnb]",
    "ray": "sampling beyond one machine",
    "sentencepiece": "T5 tokenizers of SD3 and Flux",
    "ftfy": "prompt cleaning of Wan",
}
GIB = 2**30


class Line(NamedTuple):
    """One row of the table; trouble: what to do about it, empty if all is well."""

    name: str
    value: str
    trouble: str = ""


def main(write: Callable[[str], None] = print) -> bool:
    """Prints the table, and below it what is wrong; returns whether nothing is."""
    lines = list(examine())
    width = max(len(line.name) for line in lines)
    for line in lines:
        write(f"{'!' if line.trouble else ' '} {line.name:<{width}}  {line.value}")
    troubles = [line for line in lines if line.trouble]
    write("")
    for line in troubles:
        write(f"! {line.name}: {line.trouble}")
    write("all is well" if not troubles else f"{len(troubles)} to mend")
    return not troubles


def examine() -> Iterator[Line]:
    """All rows, in the order of the table."""
    from palate import __version__

    yield Line("palate", __version__)
    yield Line("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _packages()
    yield from _machine()
    if find_spec("torch") is not None:
        yield from _devices()
    yield from _traps()


def _packages() -> Iterator[Line]:
    for name in CORE:
        found = _version(name)
        yield Line(name, found or "missing", "" if found else f"pip install {name}")
    for name, use in EXTRAS.items():
        yield Line(name, _version(name) or f"not installed ({use})")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> Iterator[Line]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Line("processor cores", str(cores))
    memory = _memory()
    if memory is not None:
        little = "the demo needs about 2 GiB; close other programs" if memory < 2 * GIB else ""
        yield Line("memory", f"{memory / GIB:.1f} GiB in all", little)
    free = shutil.disk_usage(Path.cwd()).free
    yield Line("free disk here", f"{free / GIB:.1f} GiB", "checkpoints need room; free some" if free < GIB else "")


def _memory() -> int | None:
    """Bytes of main memory this process may use: the machine's, or its container's limit if lower."""
    try:
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(most, int(text)) if text.isdigit() else most


def _devices() -> Iterator[Line]:
    import torch

    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    trouble = f"more threads than cores slows training; set OMP_NUM_THREADS={cores}" if threads > cores else ""
    yield Line("torch threads", str(threads), trouble)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties: Any = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Line(f"cuda:{index}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, {bf16}")
    if torch.backends.mps.is_available():
        yield Line("mps", "available")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        yield Line("accelerator", "none: the demo and world:shapes run well, large models do not")
    yield Line("matrix product", f"{_product_ms():.1f} ms for 512 x 512 on the processor")


def _product_ms() -> float:
    """Milliseconds of one float32 product on the processor, the best of five."""
    import torch

    a = torch.ones(512, 512)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


# --- traps ------------------------------------------------------------------------------------------------------------


def _traps() -> Iterator[Line]:
    """Combinations that are known to fail far from their cause."""
    torch, torchvision = _version("torch") or "", _version("torchvision")
    if torchvision is not None:
        yield Line("torchvision fits torch", torchvision, _torchvision_trouble(torch, torchvision))
    if torch and _older(torch, (2, 10)):
        yield Line("torch is recent", torch, "palate needs torch 2.10 or later: pip install -U torch")
    pillow = _version("pillow") or ""
    if pillow and _older(pillow, (12, 2)):
        yield Line("pillow is recent", pillow, "older ones have known holes in reading files: pip install -U pillow")
    import sqlite3

    if sqlite3.sqlite_version_info < (3, 35):
        yield Line("sqlite", sqlite3.sqlite_version, "3.35 or later is needed; use a newer Python build")


def _torchvision_trouble(torch: str, torchvision: str) -> str:
    """A torchvision built for another torch fails on import and takes transformers down with it."""
    build, other = torch.partition("+")[2] or "cuda", torchvision.partition("+")[2] or "cuda"
    if ("cpu" in build) != ("cpu" in other):
        return f"built for {other}, but torch is built for {build}: importing transformers fails; uninstall torchvision"
    return ""


def _older(found: str, least: tuple[int, int]) -> bool:
    numbers = [int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit()]
    return tuple(numbers) < least
