"""HL7 v2 in: how many messages a second the listener takes in, each answered once it is stored."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import psutil

from tests.bench.house import PROJECT, House, spent

PROCESSES = 2
"""Listeners that share the port: as many as the machine has cores."""
LINES = 8
"""Other systems that send at one time, each waiting for its answer before it sends on."""
EACH = (1, 5)
"""Results of a message."""


@dataclass(frozen=True)
class Taken:
    """A round of messages of so many results."""

    results: int
    messages: int
    seconds: float
    listeners: float
    """Seconds of CPU of the listeners."""
    servers: float
    """Seconds of CPU of PostgreSQL and both Valkeys."""

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds


def people(house: House, database: str, count: int) -> list[tuple[str, str, str]]:
    """The number, name and birth date of some patients."""
    asked = "SELECT mrn, family, birth_date FROM patient WHERE active AND birth_date IS NOT NULL ORDER BY id LIMIT %s"
    with house.connect(database) as connection:
        return [(mrn, family, f"{born:%Y%m%d}") for mrn, family, born in connection.execute(asked, (count,))]


def message(number: str, person: tuple[str, str, str], results: int) -> bytes:
    """A message of so many numbers about somebody, in its frame."""
    mrn, family, born = person
    lines = [
        f"MSH|^~\\&|BENCH|X|WB|H|20260301120000||ORU^R01|{number}|P|2.5||||||UNICODE UTF-8",
        f"PID|1||{mrn}^^^WARDBOOK^MR||{family}^X||{born}|M",
        f"OBR|1||{number}|24326-1^Electrolytes^LN|||20260301080000|||||||||||||||||F",
    ]
    lines += [f"OBX|{nth}|NM|2823-{nth}^Test {nth}^LN||4.{nth}|mmol/L|3.5-5.1||||F" for nth in range(1, results + 1)]
    return b"\x0b" + "\r".join(lines).encode() + b"\x1c\r"


def send(port: int, messages: list[bytes], wrong: list[bytes]) -> None:
    """One line: each message, and the answer to it."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        for raw in messages:
            line.sendall(raw)
            heard = b""
            while not heard.endswith(b"\x1c\r"):
                heard += line.recv(65536)
            if b"MSA|AA" not in heard:
                wrong.append(heard)


def measure(house: House, database: str, messages: int) -> list[Taken]:
    """A round for each of EACH. Raises RuntimeError where a message is not stored."""
    started: list[subprocess.Popen[str]] = []
    port = 0
    try:
        for _ in range(PROCESSES):
            words = ["hl7-listen", "--port", str(port)]
            environment = house.environment(database)
            process = subprocess.Popen(
                [sys.executable, "run.py", *words], cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True
            )
            started.append(process)
            assert process.stdout is not None
            found = re.search(r":(\d+)$", process.stdout.readline().strip())
            if found is None:
                raise RuntimeError("The listener did not start.")
            port = int(found[1])
        whose = people(house, database, 500)
        with house.connect(database) as connection:  # as in a house whose catalogue nobody has changed just now
            for table in ("lab_test", "reference_range", "unit_conversion"):
                connection.execute(f"UPDATE {table} SET updated_at = now() - interval '1 day'".encode())
        rounds = [_round(house, started, port, whose, EACH[-1], 400, "warm")]
        rounds += [_round(house, started, port, whose, results, messages, f"r{results}") for results in EACH]
    finally:
        for process in started:
            process.terminate()
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()
    return rounds[1:]


def _round(
    house: House,
    listeners: list[subprocess.Popen[str]],
    port: int,
    whose: list[tuple[str, str, str]],
    results: int,
    messages: int,
    name: str,
) -> Taken:
    made = [message(f"{name}-{nth}", whose[nth % len(whose)], results) for nth in range(messages)]
    wrong: list[bytes] = []
    lines = [threading.Thread(target=send, args=(port, made[nth::LINES], wrong)) for nth in range(LINES)]
    ours = [psutil.Process(process.pid) for process in listeners]
    postmaster = psutil.Process(house.postmaster)
    # The listeners' connections stay open, so that none of these processes ends within the round.
    theirs = [postmaster, *postmaster.children(recursive=True), *map(psutil.Process, house.caches)]
    before = spent(ours), spent(theirs)
    begun = time.perf_counter()
    for line in lines:
        line.start()
    for line in lines:
        line.join()
    seconds = time.perf_counter() - begun
    if wrong:
        raise RuntimeError(f"Not stored: {wrong[0][:500]!r}")
    return Taken(results, messages, seconds, spent(ours) - before[0], spent(theirs) - before[1])


def report(rounds: list[Taken]) -> list[str]:
    """The table."""
    lines = [
        "",
        f"### HL7 v2 in ({PROCESSES} listeners, {LINES} lines)",
        "",
        "| results of a message | messages/s | results/s | ms CPU listener | ms CPU database and trail |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {each.results} | **{each.rate:.0f}** | {each.rate * each.results:.0f}"
        f" | {each.listeners / each.messages * 1000:.1f} | {each.servers / each.messages * 1000:.1f} |"
        for each in rounds
    ]


__all__ = ["Taken", "measure", "report"]
