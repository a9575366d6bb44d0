"""A merge of two patients knows every column that names one: a new one that nobody thought of fails here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine, make_url, text

from views import merging

NAMING = text(
    "SELECT t.relname AS of_table, a.attname AS of_column FROM pg_constraint c"
    " JOIN pg_class t ON t.oid = c.conrelid"
    " JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey)"
    " WHERE c.contype = 'f' AND c.confrelid = 'patient'::regclass AND c.conparentid = 0"
)
TOGETHER = text(
    "SELECT c.conname, c.condeferrable FROM pg_constraint c WHERE c.contype = 'f' AND EXISTS ("
    " SELECT FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey) AND a.attname = 'patient_id')"
    " AND c.confrelid <> 'patient'::regclass"
)
KNOWN = text("SELECT of_table, of_column, stays FROM wb_of_patients()")


@pytest.fixture
def database_of_its_own(fresh_database: object, migrated: str) -> Iterator[Connection]:
    engine = create_engine(fresh_database(make_url(migrated).database))  # type: ignore[operator]
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def unknown(c: Connection) -> set[tuple[str, str]]:
    """Columns that name a patient and are not in the list, and those of the list that are not there."""
    there = {(row.of_table, row.of_column) for row in c.execute(NAMING)}
    known = {(row.of_table, row.of_column) for row in c.execute(KNOWN)}
    return there ^ known


def test_the_merge_knows_every_column_that_names_a_patient(database_of_its_own: Connection) -> None:
    c = database_of_its_own
    assert unknown(c) == set(), "say in wb_of_patients whether it moves with a merge, or why it stays"
    c.execute(text("CREATE TABLE extra (id bigint PRIMARY KEY, whose bigint REFERENCES patient)"))
    assert unknown(c) == {("extra", "whose")}, "the search finds nothing"


def test_what_stays_says_why_and_what_moves_is_called_something(database_of_its_own: Connection) -> None:
    listed = database_of_its_own.execute(KNOWN).all()
    for row in listed:
        assert row.stays is None or len(row.stays) > 20, row
        assert row.stays is not None or row.of_table in merging.TABLES, f"{row.of_table} has no name on the page"
        assert row.stays is not None or row.of_column == "patient_id", "parting goes by patient_id"
    assert sum(row.stays is None for row in listed) > 15


def test_keys_that_hold_two_rows_to_one_patient_can_wait(database_of_its_own: Connection) -> None:
    keys = database_of_its_own.execute(TOGETHER).all()
    assert len(keys) > 10
    assert [key.conname for key in keys if not key.condeferrable] == [], "make it DEFERRABLE, or nothing can be moved"


def test_nothing_that_moves_can_be_written_into_a_merged_record(database_of_its_own: Connection) -> None:
    guarded = set(
        database_of_its_own.execute(
            text(
                "SELECT t.relname FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid"
                " WHERE g.tgfoid = 'wb_record_in_use'::regproc AND NOT g.tgisinternal"
            )
        ).scalars()
    )
    moved = {row.of_table for row in database_of_its_own.execute(KNOWN) if row.stays is None}
    assert moved | {"patient_identifier"} == guarded
