"""The same web server with a trail that writes nothing: what recording costs is the difference. For the bench only."""

from __future__ import annotations

import os
import sys
from typing import Any

import run
from app import trail

APPLICATION = "tests.bench.unrecorded:application()"


def application() -> Any:
    """What gunicorn serves."""
    trail.Trail.write = lambda self, actor, events: None  # type: ignore[method-assign]
    return run.application()


def main() -> int:
    """`run.py serve`, with the name of the application replaced at the last moment."""
    execute = os.execve

    def replaced(program: str, command: list[str], environment: dict[str, str]) -> None:
        execute(program, [APPLICATION if part == "run:application()" else part for part in command], environment)

    os.execve = replaced  # type: ignore[assignment]
    return run.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
