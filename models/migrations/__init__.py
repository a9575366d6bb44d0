"""The schema, one file a change; Flask-AppBuilder's own tables are in it too."""

from __future__ import annotations

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import create_engine, make_url

HERE = Path(__file__).parent


def configuration(database_url: str) -> Config:
    """Alembic's configuration for one database; there is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = database_url
    return config


def migrate(database_url: str, revision: str = "head") -> None:
    """Bring a database up to `revision`."""
    command.upgrade(configuration(database_url), revision)


def unmigrate(database_url: str, revision: str = "base") -> None:
    """Take a database down to `revision`. Loses what the newer tables hold."""
    command.downgrade(configuration(database_url), revision)


ADDED_TO = ("audit_event", "audit_batch", "audit_quarantine")
"""Tables the application may read and add to, and nothing else."""
READ_ONLY = (
    *("alembic_version", "audit_archive", "booking", "appointment_history", "encounter_history"),
    "patient_merge_row",
    "observation_history",
)
"""Tables it may only read: what changes them runs as the owner, or is a trigger."""
CALLED = ("wb_merge_patients(bigint)", "wb_unmerge_patients(bigint)")
"""Functions that act as the owner, and are for the application alone to call."""
TAKEN_FROM = (
    *("event_outbox", "practitioner_branch", "role_grant", "role_setting", "credential"),
    *("visit_type_practitioner", "visit_type_room", "visit_type_equipment", "working_hours", "schedule_exception"),
    *("calendar_feed", "queue_number", "lab_panel_test"),
)
"""Tables it may take rows from, besides Flask-AppBuilder's: no record of a patient is among them."""


def grant(owner_url: str, database_url: str) -> None:
    """Give the application's own role what it needs of the owner's tables: no DDL, no change of the trail, no deletion.

    Does nothing where the application is the owner itself.
    """
    owner, name = make_url(owner_url), make_url(database_url).username
    if name is None or name == owner.username:
        return
    role = sql.Identifier(name)
    plain = owner.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        tables = [
            row[0]
            for row in connection.execute(
                "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition"
            )
        ]
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(role))
        connection.execute(sql.SQL("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {}").format(role))
        for called in CALLED:
            connection.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(called), role))
        connection.execute(sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(role))
        for table in tables:
            rights = "SELECT, INSERT, UPDATE"
            if table in ADDED_TO:
                rights = "SELECT, INSERT"
            elif table in READ_ONLY:
                rights = "SELECT"
            elif table == "audit_outbox":
                rights = "SELECT, INSERT, DELETE"
            elif table in TAKEN_FROM or table.startswith("ab_"):
                rights = "SELECT, INSERT, UPDATE, DELETE"
            statement = sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(rights), sql.Identifier(table), role)
            connection.execute(statement)


def pending(database_url: str) -> bool:
    """Whether the database is behind the newest migration."""
    engine = create_engine(database_url)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return current != ScriptDirectory.from_config(configuration(database_url)).get_current_head()
