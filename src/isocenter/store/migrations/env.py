"""Alembic's entry: the connection is the caller's own, and so is the transaction."""

from __future__ import annotations

from alembic import context

from isocenter.store.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=False)
context.run_migrations()
