"""Does a data set larger than memory stay on disk while it is read?

    python -m benchmarks.streaming [--rows 200000] [--kilobytes 2] [--check] [--out benchmarks/results/streaming.json]

Writes synthetic Pick-a-Pic shards (real columns, a thousand rows a row group, media that no codec shrinks), then
reads them in a process of its own: seconds to the first batch of 16 decoded pairs, rows a second, and by how much the
process grew (its highest resident memory less what it was before the data were opened). Held to: first batch under
10 s, growth under 300 MB. What is held at once is a row group: pyarrow writes pictures into its dictionary, which has
to be read whole.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from palate.memory import peak_bytes

SHARD_ROWS, GROUP_ROWS, BATCH = 10_000, 1000, 16
FIRST_BATCH_S, GROWTH_MB = 10.0, 300.0


def write(folder: Path, rows: int, kilobytes: float, group_rows: int = GROUP_ROWS, seed: int = 0) -> int:
    """Shards of synthetic judgements; returns the bytes on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(seed)
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(buffer, "JPEG")
    picture = buffer.getvalue()
    for shard, start in enumerate(range(0, rows, SHARD_ROWS)):
        path = folder / f"train-{shard:05}-of-{-(-rows // SHARD_ROWS):05}.parquet"
        writer = None
        end = min(start + SHARD_ROWS, rows)
        for first in range(start, end, group_rows):
            group = range(first, min(first + group_rows, end))
            table = pa.Table.from_pylist([_row(i, picture, source, kilobytes) for i in group])
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    return sum(file.stat().st_size for file in folder.iterdir())


def _row(i: int, picture: bytes, source: random.Random, kilobytes: float) -> dict[str, Any]:
    label = source.choice([0.0, 0.5, 1.0])
    return {
        "caption": f"prompt {i // 3}",
        "has_label": True,
        "jpg_0": picture + source.randbytes(int(kilobytes * 1024)),
        "jpg_1": picture + source.randbytes(int(kilobytes * 1024)),
        "label_0": label,
        "label_1": 1 - label,
        "model_0": "sdxl",
        "model_1": "dreamlike",
    }


def read(folder: Path) -> dict[str, float]:
    """What reading all of it takes, in this process."""
    from palate import datasets, media

    before = peak_bytes() / 2**20
    start = time.perf_counter()
    rows = iter(datasets.open(folder))
    for row in islice(rows, BATCH):
        for medium in row.media:
            assert medium is not None
            media.decode(medium)
    first = time.perf_counter() - start
    count = BATCH + sum(1 for _ in rows)
    seconds = time.perf_counter() - start
    return {
        "rows": count,
        "first_batch_s": round(first, 3),
        "rows_per_s": round(count / seconds, 1),
        "growth_mb": round(peak_bytes() / 2**20 - before, 1),
    }


def check(folder: Path) -> dict[str, float]:
    """What `palate dataset check` of all of it takes, in this process."""
    from palate import checking, datasets

    before = peak_bytes() / 2**20
    start = time.perf_counter()
    found = checking.check(datasets.open(folder))
    seconds = time.perf_counter() - start
    assert found.good, found
    return {
        "check_rows_per_s": round(found.rows / seconds, 1),
        "check_growth_mb": round(peak_bytes() / 2**20 - before, 1),
    }


def apart(what: str, folder: Path) -> dict[str, float]:
    """`read` or `check` in a process of its own."""
    script = f"import json; from benchmarks import streaming as s; print(json.dumps(s.{what}(s.Path({str(folder)!r}))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--kilobytes", type=float, default=2.0, help="of each picture")
    parser.add_argument("--check", action="store_true", help="also check the data, which decodes every picture")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), arguments.rows, arguments.kilobytes)
        found = {"megabytes": round(size / 2**20), **apart("read", Path(folder))}
        found |= apart("check", Path(folder)) if arguments.check else {}
    growth = max(found["growth_mb"], found.get("check_growth_mb", 0.0))
    good = found["first_batch_s"] < FIRST_BATCH_S and growth < GROWTH_MB
    print(
        f"{found['rows']} rows, {found['megabytes']} MB: first batch after {found['first_batch_s']} s, "
        f"{found['rows_per_s']} rows/s, grew by {found['growth_mb']} MB: {'good' if good else 'NOT good'}"
    )
    if arguments.check:
        print(f"check: {found['check_rows_per_s']} rows/s, grew by {found['check_growth_mb']} MB")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"machine": platform.machine(), "python": platform.python_version(), "pyarrow": pa.__version__}
        held_to = {"first_batch_s": FIRST_BATCH_S, "growth_mb": GROWTH_MB}
        arguments.out.write_text(json.dumps({**facts, **found, "held_to": held_to}, indent=2) + "\n")
    sys.exit(not good)


if __name__ == "__main__":
    main()
