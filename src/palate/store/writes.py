"""Statements that are written together and whose results nobody reads.

With PostgreSQL they go out as one, all but the last as its common table expressions, so that a call waits for the
server once and not once for each. SQLite, which answers from within the process, runs one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

Value = Callable[[str], sa.BindParameter[Any]]
Template = Callable[[Value], sa.Insert | sa.Update]  # value: stands for what is given under that name
_TOGETHER = 8  # statements in one, so that few kinds of them are ever made


class Writes:
    """What one call has yet to write. No two may touch the same row: which runs first is the database's to choose."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self._waiting: list[tuple[Template, dict[str, Any]]] = []

    def add(self, template: Template, **values: Any) -> None:
        self._waiting.append((template, values))

    def run(self) -> None:
        """Writes what waits; what is read from now on has it."""
        waiting, self._waiting = self._waiting, []
        step = _TOGETHER if self.connection.dialect.name == "postgresql" else 1
        for start in range(0, len(waiting), step):
            templates, given = zip(*waiting[start : start + step], strict=True)
            named = {_named(place, name): value for place, of in enumerate(given) for name, value in of.items()}
            self.connection.execute(_as_one(templates), named)


def _named(place: int, name: str) -> str:
    return f"w{place}_{name}"


@lru_cache(maxsize=256)  # to make a statement takes longer than to run it
def _as_one(templates: tuple[Template, ...]) -> sa.Insert | sa.Update:
    *before, last = [
        template(lambda name, place=place: sa.bindparam(_named(place, name)))  # type: ignore[misc]
        for place, template in enumerate(templates)
    ]
    return last.add_cte(*(one.cte(f"w{place}") for place, one in enumerate(before))) if before else last


def adding(table: sa.Table, *without: str) -> Template:
    """A new row, all columns given but some."""
    names = [column.name for column in table.columns if column.name not in without]
    return lambda value: sa.insert(table).inline().values({name: value(name) for name in names})
