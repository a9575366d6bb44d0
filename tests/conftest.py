"""The servers every test shares: throw-away ones on free ports, or those the environment names."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.servers import Servers, embedded


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """PostgreSQL, the queue's Redis and the trail's Redis, started at the first test that asks."""
    named = Servers(*(os.environ.get(name, "") for name in ("DATABASE_URL", "REDIS_URL", "TRAIL_REDIS_URL")))
    home = Path(tempfile.mkdtemp(prefix="wardbook-test-"))
    home.chmod(0o711)  # the servers of a root-run suite have an account of their own
    try:
        with embedded(
            home,
            need_database=not named.database_url,
            need_redis=not named.redis_url,
            need_trail=not named.trail_redis_url,
            durable=False,
        ) as own:
            yield Servers(
                named.database_url or own.database_url,
                named.redis_url or own.redis_url,
                named.trail_redis_url or own.trail_redis_url,
            )
    finally:
        shutil.rmtree(home, ignore_errors=True)
