"""HL7 v2 over the wire (MLLP) and out of files: read, handed to the service, answered once it is stored."""

from __future__ import annotations

import asyncio
import gc
import signal
import ssl
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
from hl7.mllp import start_hl7_server
from tqdm import tqdm

from app import guard
from app.actor import service
from app.errors import NotRecorded, OutOfService
from app.services import hl7_intake, hl7_reading
from models.codes import Hl7State

log = structlog.get_logger(__name__)

THREADS = 8
"""Messages that are stored at one time; those of one line come one after the other."""
HEAD = 65_536
"""Bytes that are kept of a message that is too long."""
SILENCE = 3600.0
"""Seconds after which a line nobody says anything on is closed."""


def say(text: str) -> None:
    """A line for whoever started the command."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def stored(raw: bytes, channel: str) -> hl7_intake.Answer:
    """Take one message in, as the service that does so. Raises OutOfService, NotRecorded: then it is to come again."""
    with guard.acting_as(service("hl7", channel=channel)):
        return hl7_intake.take_in(raw)


def answered(raw: bytes) -> bytes:
    """The answer to one message; a fault of ours is answered too, and is in the log."""
    try:
        return stored(raw, "hl7").bytes
    except (OutOfService, NotRecorded):
        raise
    except Exception:
        log.exception("hl7.fault", bytes=len(raw))
        return refused(raw, "The message could not be stored. Please send it again later.")


def refused(raw: bytes, sentence: str) -> bytes:
    """Keep what is not even tried, with why, and the answer to it. Raises OutOfService, NotRecorded."""
    with guard.acting_as(service("hl7", channel="hl7")):
        return hl7_intake.refuse(raw, sentence).bytes


class Listener:
    """The lines that are open, and whoever stores what comes over them."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(THREADS, "hl7")
        self.lines: set[asyncio.Task[None]] = set()

    async def talk(self, reader: Any, writer: Any) -> None:
        """One line, until the other side hangs up or the database is away; each message is answered before the next."""
        task = asyncio.current_task()
        assert task is not None
        self.lines.add(task)
        loop = asyncio.get_running_loop()
        try:
            while True:
                raw = await asyncio.wait_for(reader.readuntil(hl7_reading.END), SILENCE)
                raw = raw.removesuffix(hl7_reading.END).rpartition(hl7_reading.START)[2]
                writer.writeblock(await loop.run_in_executor(self.threads, answered, raw))
                await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            pass
        except asyncio.LimitOverrunError:
            await self._too_long(reader, writer)
        except (OutOfService, NotRecorded):
            log.warning("hl7.hung-up")  # unanswered, so that it is sent again
        finally:
            self.lines.discard(task)
            writer.close()

    async def _too_long(self, reader: Any, writer: Any) -> None:
        """Keep the head of a message that does not end, and say so."""
        head = (await reader.read(HEAD)).rpartition(hl7_reading.START)[2]
        sentence = "The message is too long."
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self.threads, refused, head, sentence)
        except (OutOfService, NotRecorded):
            return
        writer.writeblock(answer)

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Answer whoever connects, until the process is told to stop; what is under way is finished first."""
        # Several processes may listen on one port: each takes its share of the lines.
        server = await start_hl7_server(self.talk, host, port, limit=hl7_reading.MOST, ssl=tls, reuse_port=True)
        stopping = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        say(f"listening for HL7 v2 on {host}:{server.sockets[0].getsockname()[1]}")
        await stopping.wait()
        server.close()
        for line in self.lines:
            line.cancel()
        await asyncio.gather(*self.lines, return_exceptions=True)
        self.threads.shutdown()


def listen(host: str, port: int, certificate: Path | None, key: Path | None, authority: Path | None) -> int:
    """Listen for messages until told to stop; with an authority, only to whoever has a certificate of it."""
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        if authority is not None:
            tls.load_verify_locations(authority)
            tls.verify_mode = ssl.CERT_REQUIRED
    gc.freeze()  # what is loaded by now is never garbage, and is not looked through again and again
    asyncio.run(Listener().listen(host, port, tls))
    return 0


# ---- files -------------------------------------------------------------------------------------------------------


def take_in(paths: Iterable[Path]) -> int:
    """Take in every message of some files; the exit status says whether all of them were understood."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    parts = [part for file in files if file.is_file() for part in hl7_reading.messages_in(file.read_bytes())]
    states: Counter[str] = Counter()
    for part in tqdm(parts, unit=" messages", disable=not sys.stderr.isatty()):
        answer = stored(part, "cli")
        states["here already" if answer.repeated else answer.state] += 1
    for state, count in sorted(states.items()):
        say(f"{count:>8}  {state}")
    return 1 if states[Hl7State.DEAD] else 0


def balance() -> int:
    """Print how many messages and results there are by what became of them."""
    with guard.acting_as(service("hl7", channel="cli")):
        told = hl7_intake.balance(guard.session())
    for what, counts in told.items():
        say(f"{sum(counts.values()):>8}  {what}")
        for name, count in sorted(counts.items()):
            say(f"{count:>8}    {name}")
    return 0


__all__ = ["balance", "listen", "take_in"]
