"""Facts for tests of the store."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from palate.records import Comparison, Medium, Sample
from palate.store import Store

TIME = "2026-11-21T12:00:00.000+00:00"


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(number: int, **changes: Any) -> Sample:
    given: dict[str, Any] = {"prompt": f"prompt {number // 2}", "source": f"model {number % 2}", "seed": number}
    medium = Medium("image/png", png(number))
    return Sample(**{"id": f"s{number}", "medium": medium, "time": TIME, **given, **changes})


def pair(number: int, wanted: int = 3, **changes: Any) -> Comparison:
    shown = (f"s{2 * number}", f"s{2 * number + 1}")
    given = {"id": f"c{number}", "prompt": f"prompt {number}", "samples": shown, "wanted": wanted, "time": TIME}
    return Comparison(**(given | changes))


def filled(store: Store, pairs: int, wanted: int = 3, **changes: Any) -> Store:
    """The store with so many pairs to be judged."""
    store.add_samples(sample(number) for number in range(2 * pairs))
    store.add_comparisons(pair(number, wanted, **changes) for number in range(pairs))
    return store


# What takes a database back a schema, the latest step first.
STEPS_BACK = {
    "0002": ("DROP INDEX leases_of_comparison", "ALTER TABLE raters DROP COLUMN answered"),
    "0001": ("DROP TABLE amendments",),
}


def go_back(store: Store, version: str) -> None:
    """Gives an open store's database the schema of before."""
    for step in (step for step in STEPS_BACK if step >= version):
        for said in (*STEPS_BACK[step], f"UPDATE alembic_version SET version_num = '{step}'"):
            store._database.write(lambda connection, said=said: connection.exec_driver_sql(said))
