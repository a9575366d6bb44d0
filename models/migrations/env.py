"""What Alembic runs: one database, our metadata, a lock so that two starts at once do not migrate twice."""

from typing import Any

from alembic import context
from sqlalchemy import create_engine, text

import models  # noqa: F401  (fills the metadata)
from models.base import metadata


def ours(shape: Any, name: str | None, kind: str, reflected: bool, _compared: Any) -> bool:
    """Leave out views, and the monthly partitions, which the drainer makes, with what hangs on them."""
    if kind == "table" and shape.info.get("view"):
        return False
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
