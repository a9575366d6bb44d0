"""One process we start and are sure to end: it dies with us, and its last words are kept in a log file."""

import contextlib
import ctypes
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LOG_BYTES = 10_000_000
_TELLING = re.compile(r"^([A-Za-z_.]+(Error|Exception|Refused|CannotStart)\b|FATAL:|.*\bFATAL: )")
LINUX = sys.platform.startswith("linux")
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if LINUX else None


@dataclass(frozen=True)
class Account:
    """The operating-system account a process runs as, when that is not ours."""

    name: str
    uid: int
    gid: int

    @classmethod
    def of(cls, uid: int) -> "Account":
        """The account with this number. Raises KeyError if the system does not know it."""
        entry = pwd.getpwuid(uid)
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel to send this process `signal_number` when its parent ends (Linux; elsewhere nothing)."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def _dying_with(parent: int, signal_number: int) -> Callable[[], None]:
    def before_exec() -> None:
        die_with_parent(signal_number)
        if os.getppid() != parent:  # the parent ended between fork and prctl
            os._exit(1)

    return before_exec


def run_as(
    account: Account | None, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a short command to its end, as `account` where given, from the root folder; output is kept, not shown."""
    return subprocess.run(
        command,
        cwd="/",
        env=environment,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


@dataclass
class Process:
    """A long-lived child. Start it from the main thread: the kernel ties its life to the starting thread."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    account: Account | None = None
    directory: str = "/"
    stop_signal: signal.Signals = signal.SIGTERM
    patience: float = 30.0
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _log_start: int = field(default=0, init=False)

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches us alone and we end things in order."""
        self._kill_group()  # what a dead predecessor had forked would still hold its port
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._popen = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=self.environment,
                user=self.account.uid if self.account else None,
                group=self.account.gid if self.account else None,
                extra_groups=[] if self.account else None,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Only system calls happen there, so that a thread holding a lock at the fork does no harm.
                preexec_fn=_dying_with(os.getpid(), self.stop_signal),  # noqa: PLW1509
            )

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen else None

    @property
    def exit_status(self) -> int | None:
        """None while it runs (or was never started)."""
        return self._popen.poll() if self._popen else None

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def last_words(self, lines: int = 3) -> str:
        """The end of what it wrote since it was last started."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_start, self.log.stat().st_size - 8192))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])

    def reason(self) -> str:
        """Why it ended, as far as it said: the last exception or fatal line, else its last line."""
        words = self.last_words(60).splitlines()
        telling = [line.strip() for line in words if _TELLING.search(line)]
        return (telling or words or [""])[-1].strip()

    def ask_to_stop(self) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(self.stop_signal)

    def stop(self, patience: float | None = None) -> None:
        """Ask it to end, wait, then insist; whatever it had forked in its session ends too."""
        if self._popen is None:
            return
        self.ask_to_stop()
        try:
            self._popen.wait(self.patience if patience is None else patience)
        except subprocess.TimeoutExpired:
            self._kill_group()
            self._popen.wait()
        self._kill_group()

    def kill(self) -> None:
        """End it at once."""
        self._kill_group()

    def _kill_group(self) -> None:
        # A group id is not given out again while one of its members lives, so this can only meet our own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._popen is not None:
                os.killpg(self._popen.pid, signal.SIGKILL)


def command_of(pid: int) -> str | None:
    """The command line of a running process, or None if there is none (or it is a zombie)."""
    if LINUX:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") or None
        except OSError:
            return None
    shown = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return shown or None


def end(pid: int, first: signal.Signals, patience: float = 20.0) -> None:
    """End a process that is not our child: `first`, and SIGKILL if it still stands after `patience` seconds."""
    for signal_number, seconds in ((first, patience), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if command_of(pid) is None:
                return
            time.sleep(0.05)


def marked(mark: str) -> list[int]:
    """The processes, ours excepted, that carry `mark` (NAME=value) in the environment they were started with."""
    wanted = mark.encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:  # ended meanwhile, or another account's
            continue
    return found
