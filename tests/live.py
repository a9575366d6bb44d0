"""Wardbook as it is run, for tests that need the real socket: two web processes, a worker and a scheduler."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from ops.processes import Process
from ops.servers import Servers
from tests.bench.house import PROJECT, House, Web, open_web
from tests.conftest import Database

LIMIT = 40.0
"""Seconds after which a test that waits has failed; nothing is said about how fast anything is."""


def eventually(happened: Callable[[], Any]) -> bool:
    """Whether something comes to be true."""
    deadline = time.monotonic() + LIMIT
    while not (found := happened()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(found)


@dataclass(frozen=True)
class Running:
    """What runs: each web process has a port of its own, so that it is known which one somebody is connected to."""

    redis: redis.Redis
    webs: list[Web]


@contextlib.contextmanager
def two_processes(servers: Servers, database: Database) -> Iterator[Running]:
    """Two web processes over a module's database, with a worker and a scheduler that hand on what they do."""
    home = Path(tempfile.mkdtemp(prefix="wardbook-test-"))
    house = House(home, servers, [])
    queue = servers.redis_url.rpartition("/")[0] + "/7"
    client = redis.Redis.from_url(queue)
    client.flushdb()
    name = database.url.rpartition("/")[2]
    more = {"DATABASE_URL": database.url, "WARDBOOK_OWNER_URL": "", "REDIS_URL": queue}
    try:
        with contextlib.ExitStack() as stack:
            webs = [stack.enter_context(open_web(house, name, workers=1, **more)) for _ in range(2)]
            for command in ("worker", "scheduler"):
                process = Process(
                    name=command,
                    command=[sys.executable, "run.py", command],
                    log=home / "log" / f"{command}.log",
                    environment={**house.environment(name), **more},
                    directory=str(PROJECT),
                    patience=15.0,
                )
                process.start()
                stack.callback(process.stop)
            yield Running(client, webs)
    finally:
        client.close()
        shutil.rmtree(home, ignore_errors=True)
