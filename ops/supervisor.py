"""Keeps the processes of one Wardbook running, and ends all of them when it is told to."""

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ops.errors import CannotStart, Stopped
from ops.processes import Process, die_with_parent
from ops.servers import Server

BACK_OFF = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before each restart in a row; after the last we give up
STEADY_SECONDS = 60.0  # who has run this long begins a new row
READY_SECONDS = 120.0


@contextlib.contextmanager
def stoppable(*, hurry: Callable[[], None]) -> Iterator[None]:
    """Turn the first request to stop into Stopped; later ones call `hurry`, so that no clean-up is cut short."""
    asked = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            hurry()
        else:
            asked = True
            raise Stopped

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@dataclass
class Watched:
    """A process or server, and how often in a row it has died."""

    name: str
    alive: Callable[[], bool]
    start: Callable[[], None]
    last_words: Callable[[], str]
    log: Path
    deaths: int = 0
    started_at: float = field(default_factory=time.monotonic)
    restart_at: float | None = None

    @classmethod
    def process(cls, process: Process) -> "Watched":
        return cls(process.name, lambda: process.alive, process.start, process.reason, process.log)

    @classmethod
    def server(cls, server: Server) -> "Watched":
        return cls(server.title, lambda: server.alive, server.start, server.last_words, server.log)

    def look(self, now: float, say: Callable[[str], None]) -> None:
        """Notice a death, or restart when it is time. Raises CannotStart when it has died too often."""
        if self.restart_at is not None:
            if now >= self.restart_at:
                self.restart_at = None
                self.started_at = now
                self.start()
            return
        if self.alive():
            return
        if now - self.started_at > STEADY_SECONDS:
            self.deaths = 0
        self.deaths += 1
        why = self.last_words()
        if self.deaths > len(BACK_OFF):
            raise CannotStart(
                f"{self.name} ended {self.deaths} times in a row, so this is no accident"
                f"{f': {why}' if why else ''} (more in {self.log})."
            )
        wait = BACK_OFF[self.deaths - 1]
        self.restart_at = now + wait
        say(f"{self.name} ended unexpectedly; starting it again in {wait:g} s ({self.log})")


def watch(watched: Sequence[Watched], say: Callable[[str], None]) -> None:
    """Look after them until Stopped is raised by a signal, or CannotStart by one that keeps dying."""
    while True:
        now = time.monotonic()
        for one in watched:
            one.look(now, say)
        time.sleep(0.2)


def stop_all(processes: Sequence[Process]) -> None:
    """Ask all of them at once, then wait for each; one that does not listen is killed."""
    for process in processes:
        process.ask_to_stop()
    deadline = time.monotonic() + max((process.patience for process in processes), default=0.0)
    for process in processes:
        process.stop(max(deadline - time.monotonic(), 0.1))


def kill_all(processes: Sequence[Process]) -> None:
    """End all of them at once: somebody pressed Ctrl-C twice."""
    for process in processes:
        process.kill()


def run_step(command: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
    """Run one of our commands to its end on the same terminal. Raises CannotStart, which it has explained itself."""
    step = subprocess.Popen(
        command,
        env=environment,
        cwd=directory,
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509
    )
    try:
        status = step.wait()
    except BaseException:
        step.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            step.wait(10)
        step.kill()
        step.wait()
        raise
    if status:
        raise CannotStart("")


def check_port(host: str, port: int) -> None:
    """Raise CannotStart, with the remedy, if the web server could not listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise CannotStart(f"HOST is {host!r}, which is no address of this machine.") from error
    except PermissionError as error:
        raise CannotStart(f"Port {port} is kept for root: choose one above 1023, for example PORT=8080.") from error
    except OSError as error:
        raise CannotStart(
            f"Port {port} of {host} is taken by another program: stop it, or choose another, for example "
            f"`PORT={port + 1 if port < 65535 else 8080} make run`."
        ) from error


def wait_for_web(web: Process, host: str, port: int) -> None:
    """Wait until the web server answers /healthz. Raises CannotStart with the reason if it ends instead."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if not web.alive:
            why = web.reason() or f"it said nothing and left with status {web.exit_status}"
            raise CannotStart(f"The web server does not start: {why} (more in {web.log}).")
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status < 400:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise CannotStart(f"The web server did not answer within {READY_SECONDS:.0f} s (see {web.log}).")


def python(*arguments: str) -> list[str]:
    """The command that runs `arguments` with the Python we run on."""
    return [sys.executable, *arguments]


def follow_make(environment: Mapping[str, str]) -> None:
    """Stop when the `make` that started us is killed, rather than run on unseen."""
    if "MAKELEVEL" in environment:
        die_with_parent(signal.SIGTERM)
