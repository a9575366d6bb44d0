"""What Alembic runs: one database, our metadata, a lock so that two starts at once do not migrate twice."""

from typing import Any

from alembic import context
from sqlalchemy import create_engine, text

import models  # noqa: F401  (fills the metadata)
from models.base import metadata


def ours(_object: Any, name: str | None, kind: str, reflected: bool, _compared: Any) -> bool:
    """Leave out the monthly partitions, which the drainer makes, and what hangs on them."""
    return not (kind == "table" and reflected and str(name).startswith("audit_event_"))


engine = create_engine(context.config.attributes["database_url"])
with engine.connect() as connection:
    connection.execute(text("SELECT pg_advisory_lock(727001)"))
    connection.commit()
    try:
        context.configure(connection=connection, target_metadata=metadata, include_object=ours, compare_type=True)
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(727001)"))
        connection.commit()
engine.dispose()
