"""How often a collection of vectors in PostgreSQL has changed, counted by the database itself, so that nobody's change is missed.

A trigger counts once for every transaction that changes a collection, and writes the number beside each row that it makes. Whoever
counts holds the collection's row until the transaction ends; so numbers become visible in their order, and all that is newer
than a state that was read has a higher number than that state.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

#: Below the version of any row.
NONE = -1

# A transaction is known by its number and its beginning: a restored database counts transactions anew.
_PREPARE = (
    "CREATE TABLE IF NOT EXISTS isocenter_vector_versions (collection text PRIMARY KEY, number bigint NOT NULL, made_by text NOT NULL)",
    """
CREATE OR REPLACE FUNCTION isocenter_vector_count(whose text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  this text := pg_current_xact_id()::text || ' ' || extract(epoch FROM transaction_timestamp())::text;
  counted bigint;
BEGIN
  SELECT number INTO counted FROM isocenter_vector_versions WHERE collection = whose AND made_by = this;
  IF counted IS NULL THEN
    INSERT INTO isocenter_vector_versions AS known (collection, number, made_by) VALUES (whose, 1, this)
    ON CONFLICT (collection) DO UPDATE SET number = known.number + 1, made_by = this RETURNING number INTO counted;
  END IF;
  RETURN counted;
END $$""",
    """
CREATE OR REPLACE FUNCTION isocenter_vector_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    PERFORM isocenter_vector_count(collection) FROM isocenter_vector_versions;
    RETURN NULL;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    PERFORM isocenter_vector_count(OLD.collection);
  END IF;
  IF TG_OP = 'DELETE' THEN
    RETURN OLD;
  END IF;
  NEW.changed := isocenter_vector_count(NEW.collection);
  RETURN NEW;
END $$""",
)


def prepare(connection: Connection) -> None:
    """Make the counter, where it is not there; only where no other process does so at once."""
    there = "SELECT to_regclass('isocenter_vector_versions') IS NOT NULL AND to_regproc('isocenter_vector_changed') IS NOT NULL"
    if not connection.execute(sa.text(there)).scalar_one():
        for statement in _PREPARE:
            connection.exec_driver_sql(statement)


def watch(connection: Connection, table: str) -> None:
    """Have the database count what changes in a table of vectors (our own name)."""
    there = sa.text("SELECT 1 FROM pg_trigger WHERE tgrelid = CAST(:t AS regclass) AND tgname = :n")
    if connection.execute(there, {"t": table, "n": f"{table}_counts"}).scalar():
        return
    for statement in (
        f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS changed bigint NOT NULL DEFAULT 0",
        f"CREATE INDEX IF NOT EXISTS {table}_changed ON {table} (collection, changed)",
        f"CREATE TRIGGER {table}_counts BEFORE INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION isocenter_vector_changed()",
        f"CREATE TRIGGER {table}_empties AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION isocenter_vector_changed()",
    ):
        connection.execute(sa.text(statement))


def changed(connection: Connection, collection: str) -> None:
    """Count a change that this transaction is about to make, and wait until no other transaction makes one."""
    connection.execute(sa.text("SELECT isocenter_vector_count(:c)"), {"c": collection})


def version(connection: Connection, collection: str) -> int:
    """How often a collection has changed; 0 for one that nobody has."""
    found = connection.execute(sa.text("SELECT number FROM isocenter_vector_versions WHERE collection = :c"), {"c": collection}).scalar()
    return int(found or 0)
