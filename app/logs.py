"""What goes to the log: structured lines without clinical content, the same in every process."""

from __future__ import annotations

import logging
from contextlib import suppress

import structlog


class Lines(structlog.PrintLogger):
    """Writes lines. One the disk has no place for is lost, and nothing but it: what it was about goes on."""

    def msg(self, message: str) -> None:
        """Write one line."""
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def speak(level: str) -> None:
    """Structured lines on standard error, one event each."""
    logging.basicConfig(level=level, format="%(levelname)s %(name)s %(message)s")
    for noisy in ("flask_appbuilder", "werkzeug"):
        logging.getLogger(noisy).setLevel("ERROR")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=lambda *_: Lines(),
        cache_logger_on_first_use=False,
    )
