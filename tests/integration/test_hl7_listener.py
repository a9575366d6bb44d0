"""The listener as a process of its own, over real sockets: what it answers, what it survives, and what a kill costs."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

import jobs.hl7
from models.clinical import Observation
from models.hl7 import Hl7Message, Hl7Result
from ops.servers import Servers
from tests import factories
from tests.integration.test_hl7 import SHARED, message, potassium, rows

PROJECT = Path(__file__).resolve().parents[2]


class Listener:
    """The listener as a process, started when somebody asks for it and again after it was killed."""

    def __init__(self, environment: dict[str, str], *words: str) -> None:
        self.environment = environment
        self.words = words
        self.process: subprocess.Popen[str] | None = None
        self._port = 0

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def port(self) -> int:
        if not self.alive:
            self.process = subprocess.Popen(
                [sys.executable, "run.py", "hl7-listen", "--port", "0", *self.words],
                cwd=PROJECT,
                env=self.environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self.process.stdout is not None
            said = self.process.stdout.readline()
            self.process.stdout.close()
            found = re.search(r":(\d+)$", said.strip())
            assert found, said
            self._port = int(found[1])
        return self._port

    def kill(self) -> None:
        """As if the power went."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        if self.process is not None and self.alive:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)


@pytest.fixture(scope="module")
def environment(database: Any, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database.url,
        "REDIS_URL": servers.redis_url,
        "TRAIL_REDIS_URL": servers.trail_redis_url,
        "WARDBOOK_HOME": str(tmp_path_factory.mktemp("listener")),
        "WARDBOOK_SECRET_KEY": "listener-" * 6,
        "WARDBOOK_LOG_LEVEL": "ERROR",
    }


@pytest.fixture(scope="module")
def listener(environment: dict[str, str]) -> Iterator[Listener]:
    running = Listener(environment)
    yield running
    running.stop()


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


def kept_with(error: str) -> list[dict[str, Any]]:
    """The dead letters that say what is wrong with them in these words."""
    return rows(Hl7Message, Hl7Message.error.contains(error))


def test_it_answers_each_message_and_survives_what_is_none(
    listener: Listener, database: Any, dial: Callable[[int], Line]
) -> None:
    mrn = mrn_of(database)
    port = listener.port
    line = dial(port)
    assert b"MSA|AA|L1" in line.send(message(mrn, potassium("4.2"), number="L1", filler="L-1"))
    assert b"MSA|AE|" in line.send(b"garbage")
    assert b"MSA|AE|" in line.send(b"")
    line.socket.sendall(b"no frame at all\x1c\r")
    assert b"MSA|AE|" in line.answer()
    both = b"".join(
        b"\x0b" + message(mrn, potassium("4.3"), number=f"L2{nth}", filler=f"L-2{nth}") + b"\x1c\r" for nth in range(3)
    )
    for part in (both[:40], both[40:41], both[41:]):
        line.socket.sendall(part)
    assert [b"MSA|AA|L2%d" % nth in line.answer() for nth in range(3)] == [True] * 3
    half = dial(port)
    half.socket.sendall(b"\x0bMSH|^~\\&|half")
    half.close()
    assert b"MSA|AA|L3" in dial(port).send(message(mrn, potassium("4.4"), number="L3", filler="L-3"))
    assert listener.alive


def test_what_does_not_end_is_answered_and_its_beginning_is_kept(
    listener: Listener, dial: Callable[[int], Line]
) -> None:
    long = dial(listener.port)
    with suppress(ConnectionError):  # it hangs up before all of it is sent
        long.socket.sendall(b"\x0bMSH|endless|" + b"x" * 10_000_000)
    with suppress(ConnectionError):
        assert b"too long" in long.answer()
    (row,) = kept_with("too long")
    assert row["state"] == "dead"
    assert bytes(row["raw"]).startswith(b"MSH|endless|")
    assert listener.alive


def test_somebody_who_says_nothing_or_very_slowly_keeps_nobody_waiting(
    listener: Listener, database: Any, dial: Callable[[int], Line]
) -> None:
    mrn, port = mrn_of(database), listener.port
    raw = message(mrn, potassium("4.1"), number="SLOW", filler="SLOW")
    silent = [dial(port) for _ in range(20)]
    slow = dial(port)
    for nth, letter in enumerate(b"\x0b" + raw + b"\x1c\r"):
        slow.socket.sendall(bytes([letter]))
        if nth % 100 == 0:
            number = f"FAST{nth}"
            assert f"MSA|AA|{number}".encode() in dial(port).send(
                message(mrn, potassium("4.2"), number=number, filler=number)
            )
    assert b"MSA|AA|SLOW" in slow.answer()
    assert len(silent) == 20


def test_the_same_message_over_two_lines_at_once_changes_nothing_more(
    listener: Listener, database: Any, dial: Callable[[int], Line]
) -> None:
    raws = [message(mrn_of(database), potassium("4.2"), number=f"BOTH{nth}", filler=f"BOTH{nth}") for nth in range(10)]
    before = factories.number_of(Observation)
    lines = [dial(listener.port), dial(listener.port)]
    for raw in raws:
        for line in lines:
            line.socket.sendall(b"\x0b" + raw + b"\x1c\r")
    assert all(b"MSA|AA|BOTH" in line.answer() for line in lines for _ in raws)
    assert factories.number_of(Observation) == before + 10


@pytest.mark.parametrize("after", [7, 60])
def test_killed_in_the_middle_and_sent_again_it_ends_the_same(
    listener: Listener, database: Any, dial: Callable[[int], Line], after: int
) -> None:
    mrn = mrn_of(database)
    sent = [
        message(mrn, potassium(str(Decimal(nth) / 10 + 3)), number=f"K{after}-{nth}", filler=f"K{after}-{nth}")
        for nth in range(120)
    ]
    before = (factories.number_of(Hl7Message), factories.number_of(Hl7Result), factories.number_of(Observation))
    line = dial(listener.port)
    for raw in sent[:after]:
        assert b"MSA|AA" in line.send(raw)
    for raw in sent[after:]:
        line.socket.sendall(b"\x0b" + raw + b"\x1c\r")
    listener.kill()
    line = dial(listener.port)
    assert all(b"MSA|AA" in line.send(raw) for raw in sent)
    now = (factories.number_of(Hl7Message), factories.number_of(Hl7Result), factories.number_of(Observation))
    assert [later - earlier for later, earlier in zip(now, before, strict=True)] == [120, 120, 120]


# ---- TLS ---------------------------------------------------------------------------------------------------------


def certified(folder: Path, name: str, signer: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """A key and a certificate for localhost in PEM files, signed by itself or by another; gives both."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    since = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[1].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(since + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .sign(signer[0] if signer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key, certificate


def test_over_tls_it_answers_whoever_has_a_certificate_and_nobody_else(
    environment: dict[str, str], database: Any, tmp_path: Path
) -> None:
    house = certified(tmp_path, "house")
    certified(tmp_path, "sender", house)
    certified(tmp_path, "stranger")
    pem = {name: str(tmp_path / name) for name in ("house.pem", "house.key", "sender.pem", "sender.key")}
    words = ("--certificate", pem["house.pem"], "--key", pem["house.key"], "--authority", pem["house.pem"])
    secured = Listener(environment, *words)

    def answered(name: str | None) -> bytes:
        trust = ssl.create_default_context(cafile=pem["house.pem"])
        if name is not None:
            trust.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        raw = message(mrn_of(database), potassium("4.2"), number=f"TLS-{name}", filler=f"TLS-{name}")
        plain = socket.create_connection(("127.0.0.1", secured.port), timeout=30)
        with plain, trust.wrap_socket(plain, server_hostname="localhost") as line:
            line.sendall(b"\x0b" + raw + b"\x1c\r")
            return line.recv(65536)

    try:
        assert b"MSA|AA|TLS-sender" in answered("sender")
        before = factories.number_of(Hl7Message)
        for name in (None, "stranger"):
            with suppress(ssl.SSLError, ConnectionError):
                assert answered(name) == b""
        with socket.create_connection(("127.0.0.1", secured.port), timeout=30) as plain:
            plain.sendall(b"\x0bMSH|in the clear\x1c\r")
            with suppress(ConnectionError):
                assert b"MSA" not in plain.recv(65536)
        assert factories.number_of(Hl7Message) == before
        assert b"MSA|AA|TLS-sender" in answered("sender")
    finally:
        secured.stop()


# ---- the commands ------------------------------------------------------------------------------------------------


def test_the_shared_stream_is_taken_in_by_the_command_and_balances(
    environment: dict[str, str], database: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the shared data: HL7 messages")

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

    stream = SHARED / "simhospital"
    told = command("hl7-import", str(stream))
    assert sum(int(line.split()[0]) for line in told.splitlines()) == 245
    balance = command("hl7-balance")
    found = dict(reversed(line.split()) for line in balance.splitlines())
    assert int(found["results"]) == factories.number_of(Hl7Result)
    jobs.hl7.take_in([stream])
    assert "245  here already" in capsys.readouterr().out
    jobs.hl7.balance()
    assert capsys.readouterr().out == balance
