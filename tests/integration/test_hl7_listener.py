"""The listener as a process of its own, over real sockets: what it answers, what it survives, and what a kill costs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from models.clinical import Observation
from models.hl7 import Hl7Message, Hl7Result
from ops.servers import Servers
from tests import factories
from tests.integration.test_hl7 import SHARED, message, potassium

PROJECT = Path(__file__).resolve().parents[2]


@contextmanager
def listening(environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The listener on a free port."""
    process = subprocess.Popen(
        [sys.executable, "run.py", "hl7-listen", "--port", "0"],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r":(\d+)$", said.strip())
        assert found, said
        yield process, int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def environment(database: Any, servers: Servers, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database.url,
        "REDIS_URL": servers.redis_url,
        "TRAIL_REDIS_URL": servers.trail_redis_url,
        "WARDBOOK_HOME": str(tmp_path),
        "WARDBOOK_SECRET_KEY": "listener-" * 6,
        "WARDBOOK_LOG_LEVEL": "ERROR",
    }


class Line:
    """A connection of another system."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.heard = b""

    def send(self, raw: bytes) -> bytes:
        """The answer to a message; empty where the line is cut."""
        self.socket.sendall(b"\x0b" + raw + b"\x1c\r")
        return self.answer()

    def answer(self) -> bytes:
        while b"\x1c\r" not in self.heard:
            more = self.socket.recv(65536)
            if not more:
                return b""
            self.heard += more
        one, self.heard = self.heard.split(b"\x1c\r", 1)
        return one.lstrip(b"\x0b")

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def dial() -> Iterator[Callable[[int], Line]]:
    """Connect to a port; hung up when the test is over."""
    lines: list[Line] = []

    def connect(port: int) -> Line:
        lines.append(Line(port))
        return lines[-1]

    yield connect
    for line in lines:
        line.close()


def mrn_of(database: Any) -> str:
    from models.patients import Patient

    return str(factories.stored(Patient, database.hospital.patients[2])["mrn"])


def test_it_answers_each_message_and_survives_what_is_none(
    environment: dict[str, str], database: Any, dial: Callable[[int], Line]
) -> None:
    mrn = mrn_of(database)
    with listening(environment) as (process, port):
        line = dial(port)
        assert b"MSA|AA|L1" in line.send(message(mrn, potassium("4.2"), number="L1", filler="L-1"))
        assert b"MSA|AE|" in line.send(b"garbage")
        assert b"MSA|AE|" in line.send(b"")
        line.socket.sendall(b"no frame at all\x1c\r")
        assert b"MSA|AE|" in line.answer()
        both = b"".join(
            b"\x0b" + message(mrn, potassium("4.3"), number=f"L2{nth}", filler=f"L-2{nth}") + b"\x1c\r"
            for nth in range(3)
        )
        for part in (both[:40], both[40:41], both[41:]):
            line.socket.sendall(part)
        assert [b"MSA|AA|L2%d" % nth in line.answer() for nth in range(3)] == [True] * 3
        half = dial(port)
        half.socket.sendall(b"\x0bMSH|^~\\&|half")
        half.close()
        long = dial(port)
        long.socket.sendall(b"\x0bMSH|" + b"x" * 1_200_000)
        assert b"too long" in long.answer()
        assert b"MSA|AA|L3" in dial(port).send(message(mrn, potassium("4.4"), number="L3", filler="L-3"))
        assert process.poll() is None


@pytest.mark.parametrize("after", [7, 60])
def test_killed_in_the_middle_and_sent_again_it_ends_the_same(
    environment: dict[str, str], database: Any, dial: Callable[[int], Line], after: int
) -> None:
    mrn = mrn_of(database)
    sent = [
        message(mrn, potassium(str(Decimal(nth) / 10 + 3)), number=f"K{after}-{nth}", filler=f"K{after}-{nth}")
        for nth in range(120)
    ]
    before = (factories.number_of(Hl7Message), factories.number_of(Hl7Result), factories.number_of(Observation))
    with listening(environment) as (process, port):
        line = dial(port)
        for raw in sent[:after]:
            assert b"MSA|AA" in line.send(raw)
        for raw in sent[after:]:
            line.socket.sendall(b"\x0b" + raw + b"\x1c\r")
        process.kill()
        process.wait(30)
    with listening(environment) as (_, port):
        line = dial(port)
        assert all(b"MSA|AA" in line.send(raw) for raw in sent)
    now = (factories.number_of(Hl7Message), factories.number_of(Hl7Result), factories.number_of(Observation))
    assert [later - earlier for later, earlier in zip(now, before, strict=True)] == [120, 120, 120]


def test_the_shared_stream_is_taken_in_by_the_command_and_balances(environment: dict[str, str], database: Any) -> None:
    if not SHARED.is_dir():
        pytest.skip("the shared HL7 messages are not here")

    def command(*words: str) -> str:
        answer = subprocess.run(
            [sys.executable, "run.py", *words],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not answer.stderr or "Traceback" not in answer.stderr, answer.stderr
        return answer.stdout

    stream = str(SHARED / "simhospital")
    told = command("hl7-import", stream)
    assert sum(int(line.split()[0]) for line in told.splitlines()) == 245
    balance = command("hl7-balance")
    found = dict(reversed(line.split()) for line in balance.splitlines())
    assert int(found["results"]) == factories.number_of(Hl7Result)
    again = command("hl7-import", stream)
    assert "245  here already" in again
    assert command("hl7-balance") == balance
