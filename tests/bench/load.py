"""The people at the other end: so many at a time, each asking as soon as it is answered, or so many times a second.

Runs in a process of its own. Reads one JSON job a line and answers one JSON line: {"host", "port", "headers", "paths",
"clients", "seconds", "rate" (questions a second of all together; none: as fast as they are answered)} ->
{"latencies" (s), "elapsed", "wrong" (answers that were not 200), "sample"}.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from typing import Any


class Client:
    """One connection that is kept."""

    def __init__(self, host: str, port: int, headers: dict[str, str]) -> None:
        self.address = (host, port)
        self.head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.socket: socket.socket | None = None
        self.rest = b""

    def ask(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        request = f"GET {path} HTTP/1.1\r\nHost: {self.address[0]}:{self.address[1]}\r\n{self.head}\r\n".encode()
        for attempt in (1, 2):
            try:
                if self.socket is None:
                    self.socket = socket.create_connection(self.address, timeout=60)
                    self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.socket.sendall(request)
                return self._answer(self.socket)
            except ConnectionError:
                self.socket = None  # the server let a kept connection go
                if attempt == 2:
                    raise
        raise AssertionError

    def _answer(self, connection: socket.socket) -> tuple[int, bytes]:
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            more = connection.recv(65536)
            if not more:
                raise ConnectionError
            data += more
        head = data[:end].decode("latin-1").lower()
        length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
        body = data[end + 4 :]
        while len(body) < length:
            more = connection.recv(262144)
            if not more:
                raise ConnectionError
            body += more
        if "\r\nconnection: close" in head:
            connection.close()
            self.socket = None
        return int(head.split(" ", 2)[1]), body


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Ask for `seconds`, or each path once where there are none."""
    latencies: list[float] = []
    wrong: list[str] = []
    start = time.perf_counter()
    until = start + job["seconds"] if job.get("seconds") else None
    paths: list[str] = job["paths"]
    pause = job["clients"] / job["rate"] if job.get("rate") else 0.0

    def work(nth: int) -> None:
        client = Client(job["host"], job["port"], job["headers"])
        mine = paths[nth :: job["clients"]] if until is None else paths
        at = nth * 131
        due = start + pause * nth / job["clients"]
        for turn in range(10**9):
            if until is None:
                if turn == len(mine):
                    return
                path = mine[turn]
            else:
                if time.perf_counter() >= until:
                    return
                path = mine[(at + turn) % len(mine)]
            if pause:
                time.sleep(max(due - time.perf_counter(), 0.0))
                due += pause
            begun = time.perf_counter()
            status, body = client.ask(path)
            latencies.append(time.perf_counter() - begun)
            if status != 200:
                wrong.append(f"{status} {body[:300]!r}")

    threads = [threading.Thread(target=work, args=(nth,)) for nth in range(job["clients"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "latencies": latencies,
        "elapsed": time.perf_counter() - start,
        "wrong": len(wrong),
        "sample": wrong[0] if wrong else "",
    }


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()
