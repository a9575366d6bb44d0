"""What every test shares: servers, and the rule that on CI nothing is skipped."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from ops.servers import Servers, embedded

MAY_BE_SKIPPED = "needs the shared data"


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """PostgreSQL, the queue's Redis and the trail's Redis, started at the first test that asks.

    Throw-away ones on free ports, or those DATABASE_URL, REDIS_URL and TRAIL_REDIS_URL name.
    """
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI a skipped test is a failed one: it has to run somewhere."""
    report = yield
    if report.skipped and os.environ.get("WARDBOOK_CI") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(MAY_BE_SKIPPED):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, and nothing may be skipped here: {reason}"
    return report
