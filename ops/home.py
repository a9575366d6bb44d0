"""The home folder: who holds it, what runs there, and what secrets it keeps."""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ops.errors import CannotStart
from ops.processes import LINUX, end, marked
from ops.servers import Say, Servers, embedded, make_home

WAIT_SECONDS = 120.0
RUN = "run"
MARK = "WARDBOOK_MARK"


@dataclass(frozen=True)
class Running:
    """What the holder of a home tells the other commands."""

    pid: int
    command: str
    address: str
    servers: Servers


class HomeTaken(CannotStart):
    """Another command holds this home; `running` says which, once it has said so itself."""

    def __init__(self, home: Path, running: Running | None) -> None:
        self.running = running
        if running is None:
            text = f"Another Wardbook is just starting in {home}: wait for it, or set WARDBOOK_HOME to another folder."
        elif running.command == RUN:
            text = f"Wardbook is already running at {running.address} (process {running.pid}); stop that one first."
        else:
            text = f"`run.py {running.command}` (process {running.pid}) is at work in {home}: wait until it has ended."
        super().__init__(text)


class Hold:
    """The right to run servers in a home, kept by a lock the system lets go when we end, however we end."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def environment(self) -> dict[str, str]:
        """What everything started in this home carries, so that a killed run's children are known.

        SPT_NOENV keeps setproctitle from overwriting it.
        """
        status = self.home.stat()
        return {MARK: f"{status.st_dev:x}-{status.st_ino:x}", "SPT_NOENV": "1", "PYTHONUNBUFFERED": "1"}

    def publish(self, running: Running) -> None:
        """Tell the other commands what runs; the file holds passwords and is ours alone."""
        _write_private(self.home / "runtime.json", json.dumps(dataclasses.asdict(running), indent=2))

    def end_strays(self, say: Say) -> None:
        """End the processes, servers excepted, an earlier run in this home left behind."""
        strays = marked(f"{MARK}={self.environment[MARK]}") if LINUX else []
        if strays:
            say("Ending what a killed run left behind")
        for pid in strays:
            with contextlib.suppress(PermissionError):
                end(pid, signal.SIGTERM, patience=5.0)


@contextlib.contextmanager
def held(home: Path) -> Iterator[Hold]:
    """Hold the home as long as the block lasts. Raises HomeTaken."""
    make_home(home)
    with (home / "lock").open("a") as lock:
        for _ in range(20):  # a reader holds it for a moment
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        else:
            raise HomeTaken(home, _published(home))
        published = home / "runtime.json"
        published.unlink(missing_ok=True)
        try:
            yield Hold(home)
        finally:
            published.unlink(missing_ok=True)


def running(home: Path) -> Running | None:
    """What runs in this home now, or None. A command that is still starting is waited for."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with (home / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
        except FileNotFoundError:
            return None
        except BlockingIOError:
            if found := _published(home):
                return found
        if time.monotonic() > deadline:
            raise HomeTaken(home, None)
        time.sleep(0.1)


@contextlib.contextmanager
def connected(home: Path, named: Servers, command: str, say: Say) -> Iterator[Servers]:
    """The servers a command works with: those it was told, else those running in `home`, else its own while it lasts.

    Where another short command has servers of its own there, wait for it to end. Raises CannotStart.
    """
    if named.database_url and named.redis_url and named.trail_redis_url:
        yield named
        return
    deadline = time.monotonic() + WAIT_SECONDS
    waiting = False
    while True:
        other = running(home)
        if other and other.command == RUN:
            yield _first(named, other.servers)
            return
        if other is None:
            with contextlib.ExitStack() as stack:
                try:
                    hold = stack.enter_context(held(home))
                except HomeTaken:
                    continue
                hold.end_strays(say)
                own = stack.enter_context(
                    embedded(
                        home,
                        need_database=not named.database_url,
                        need_redis=not named.redis_url,
                        need_trail=not named.trail_redis_url,
                        say=say,
                    )
                )
                servers = _first(named, own)
                hold.publish(Running(os.getpid(), command, "", servers))
                yield servers
                return
        if time.monotonic() > deadline:
            raise HomeTaken(home, other)
        if not waiting:
            waiting = True
            say(f"Waiting for `run.py {other.command}` (process {other.pid}) to end")
        time.sleep(0.2)


def kept_secret(path: Path) -> str:
    """A random key, made once and readable by its owner only."""
    if not path.exists():
        _write_private(path, secrets.token_hex(32))
    if path.stat().st_mode & 0o077:
        raise CannotStart(f"Others can read {path}: close it with `chmod 600`, or delete it to get a new key.")
    return path.read_text().strip()


def _write_private(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    unfinished.replace(path)


def _published(home: Path) -> Running | None:
    try:
        told = json.loads((home / "runtime.json").read_text())
        return Running(told["pid"], told["command"], told["address"], Servers(**told["servers"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _first(named: Servers, other: Servers) -> Servers:
    return Servers(
        named.database_url or other.database_url,
        named.redis_url or other.redis_url,
        named.trail_redis_url or other.trail_redis_url,
        named.owner_url or ("" if named.database_url else other.owner_url),
    )
