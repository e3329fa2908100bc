"""A process that votes and may be killed at a chosen point: `python -m tests.store.voter FOLDER RATER N [POINT]`.

It says `asked K` before and `acked K` after each vote. POINT is `V:statement:S` (before the S-th statement of vote V),
`V:commit` (before its commit) or `V:committed` (after it, before anyone is told); `open:S` is the S-th of opening.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import sqlalchemy as sa

from palate.store import Store


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """Counts what happens within a vote and ends the process at the point."""

    def __init__(self, point: str) -> None:
        vote, _, self.where = point.partition(":")
        self.vote, self.at = vote, ""
        self.count = 0
        sa.event.listen(sa.Engine, "before_cursor_execute", self.statement)
        sa.event.listen(sa.Engine, "commit", self.commit)

    def begin(self, vote: str) -> None:
        self.at, self.count = vote, 0

    def statement(self, *_: Any) -> None:
        self.count += 1
        if self.at == self.vote and self.where in (f"statement:{self.count}", str(self.count)):
            die()

    def commit(self, connection: Any) -> None:
        if self.at == self.vote and self.where == "commit":
            die()
        if self.at == self.vote and self.where == "committed":
            connection.connection.dbapi_connection.commit()
            die()


def main(folder: str, rater: str, n: str, point: str = "") -> None:
    killer = Killer(point)
    killer.begin("open")
    with Store.open(folder) as store:
        waiting = tuple(store.lease(rater, 1)) if int(n) else ()
        for number in range(int(n)):
            killer.begin("")
            print(f"asked {number} {waiting[0].id}", flush=True)
            killer.begin(str(number))
            waiting = store.answer(rater, waiting[0].id, f"key {number}", {"overall": "left"}, n=1).leases
            killer.begin("")
            print(f"acked {number}", flush=True)
            if not waiting:
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
