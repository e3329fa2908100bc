"""Alembic's hook: runs the steps on the connection it is given, inside the transaction that is open on it."""

from __future__ import annotations

from alembic import context

from palate.store.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True, render_as_batch=True)
context.run_migrations()
