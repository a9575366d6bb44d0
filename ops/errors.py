"""Everything that can keep Wardbook from starting, as one sentence a newcomer can act on."""

import errno
from pathlib import Path


class CannotStart(Exception):
    """Wardbook cannot start or go on; the text is one sentence with the remedy."""


class Stopped(BaseException):
    """Somebody asked us to stop (Ctrl-C, SIGTERM, a closed terminal). Not an error, so no handler of errors eats it."""


def sentence(error: OSError, where: Path) -> str:
    """Say what an operating-system error means for whoever typed the command."""
    place = error.filename or where
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full ({place}). Free some space and start again."
    if error.errno == errno.EROFS:
        return f"{place} is on a read-only disk. Set WARDBOOK_HOME to a folder you may write to."
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"You may not write to {place}. "
            "Run as the account that owns it, or set WARDBOOK_HOME to a folder of your own."
        )
    return f"{error.strerror or error} ({place})."
