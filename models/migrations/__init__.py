"""The schema, one file a change; Flask-AppBuilder's own tables are in it too."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

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


def pending(database_url: str) -> bool:
    """Whether the database is behind the newest migration."""
    engine = create_engine(database_url)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return current != ScriptDirectory.from_config(configuration(database_url)).get_current_head()
