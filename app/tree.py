"""The trail's Merkle tree (RFC 6962), its signed checkpoints (C2SP tlog-checkpoint, Ed25519), and their witness.

Every batch of lines adds leaves to one tree and ends with a signed checkpoint of it.  The key is a file outside the
database, and a copy of every checkpoint goes to a witness outside of it: only there a cut-off end is seen, or a trail
written anew by somebody who has the key.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import logging.handlers
import os
import smtplib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from email.message import EmailMessage
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import unquote, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

HASH = 32
"""Bytes of a SHA-256."""
ORIGIN = "wardbook.trail"
"""What a checkpoint calls this log, and its signer."""
ED25519 = b"\x01"
"""C2SP signed-note: the kind of signature."""
SIGNED = len(f"— {ORIGIN} ") + 4 * -(-68 // 3)
"""Characters of the line with the signature: 4 bytes of the key's id and 64 of the signature, in base64."""


# ---- the tree ----------------------------------------------------------------------------------------------------


def leaf_of(canonical: bytes) -> bytes:
    """The hash of one line (RFC 6962, 2.1)."""
    return hashlib.sha256(b"\x00" + canonical).digest()


def parent_of(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees side by side."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass
class Frontier:
    """The right-hand edge of a tree: all it takes to go on with it. `peaks` are its perfect subtrees, large first."""

    size: int = 0
    peaks: list[bytes] = field(default_factory=list)

    def add(self, leaf: bytes) -> None:
        """One leaf more."""
        before = self.size
        while before & 1:
            leaf = parent_of(self.peaks.pop(), leaf)
            before >>= 1
        self.peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The hash of the whole tree; that of nothing for an empty one."""
        if not self.peaks:
            return hashlib.sha256().digest()
        found = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            found = parent_of(peak, found)
        return found

    def to_bytes(self) -> bytes:
        """The peaks one after the other, as a batch keeps them."""
        return b"".join(self.peaks)

    @classmethod
    def from_bytes(cls, size: int, kept: bytes) -> Frontier:
        """The edge of a tree of `size` leaves. Raises ValueError where the peaks do not fit the size."""
        peaks = list(split(kept))
        if len(peaks) != size.bit_count():
            raise ValueError("the peaks do not fit the size of the tree")
        return cls(size, peaks)


def split(hashes: bytes) -> Iterator[bytes]:
    """Hashes written one after the other. Raises ValueError where there is a piece of one."""
    if len(hashes) % HASH:
        raise ValueError("a piece of a hash")
    return (hashes[at : at + HASH] for at in range(0, len(hashes), HASH))


# ---- checkpoints -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """What a note says: a tree of so many leaves had this root."""

    size: int
    root: bytes


def text_of(checkpoint: Checkpoint) -> str:
    """The part of a note that is signed (https://c2sp.org/tlog-checkpoint)."""
    return f"{ORIGIN}\n{checkpoint.size}\n{base64.b64encode(checkpoint.root).decode()}\n"


def text_of_archive(month: date, lines: int, digest: bytes, places: Iterable[tuple[int, int]]) -> str:
    """What is signed of an archive: its month, how many lines it has, its SHA-256, and their places in the tree."""
    ranges = ",".join(f"{first}-{end}" for first, end in sorted(places))
    return f"{ORIGIN}/archive\n{month:%Y-%m}\n{lines}\n{digest.hex()}\n{ranges}\n"


class Verifier:
    """Whoever knows the public key can check a note."""

    def __init__(self, public: Ed25519PublicKey) -> None:
        self.public = public
        raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_id = hashlib.sha256(ORIGIN.encode() + b"\n" + ED25519 + raw).digest()[:4]
        self.text = f"{ORIGIN}+{self.key_id.hex()}+{base64.b64encode(ED25519 + raw).decode()}"
        """The key as it is passed on (C2SP signed-note verifier key)."""

    def read(self, note: str) -> Checkpoint:
        """What a note says. Raises ValueError where it is none of ours, or its signature does not hold."""
        lines = self.opened(note).split("\n")
        if len(lines) != 4 or lines[0] != ORIGIN or not lines[1].isdigit():
            raise ValueError("not a checkpoint of this trail")
        return Checkpoint(int(lines[1]), base64.b64decode(lines[2], validate=True))

    def opened(self, note: str) -> str:
        """The text that is signed in a note. Raises ValueError where the signature does not hold."""
        text, _, signatures = note.partition("\n\n")
        for line in signatures.splitlines():
            name, _, encoded = line.removeprefix("— ").partition(" ")
            try:
                signature = base64.b64decode(encoded, validate=True)
                if name == ORIGIN and signature[:4] == self.key_id:
                    self.public.verify(signature[4:], (text + "\n").encode())
                    return text + "\n"
            except (InvalidSignature, ValueError):
                continue
        raise ValueError("the signature does not hold")


class Signer(Verifier):
    """Whoever has the key can sign."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        super().__init__(private.public_key())
        self.private = private

    def note(self, checkpoint: Checkpoint) -> str:
        """A signed checkpoint."""
        return self.signed(text_of(checkpoint))

    def signed(self, text: str) -> str:
        """A text of lines as a note (C2SP signed-note)."""
        signature = base64.b64encode(self.key_id + self.private.sign(text.encode())).decode()
        return f"{text}\n— {ORIGIN} {signature}\n"


def key_at(path: Path) -> Signer:
    """The key in a file, made with the first use of it. Raises ValueError where it is no Ed25519 key."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with NamedTemporaryFile(dir=path.parent) as whole, suppress(FileExistsError):
            whole.write(made)
            whole.flush()
            os.fsync(whole.fileno())
            os.link(whole.name, path)  # two first starts at once agree on one key
    private = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(private, Ed25519PrivateKey):
        raise ValueError(f"{path} holds no Ed25519 key")
    return Signer(private)


# ---- the witness -------------------------------------------------------------------------------------------------


class Witness(ABC):
    """Where checkpoints go besides the database."""

    @abstractmethod
    def take(self, note: str) -> None:
        """Keep a note. Raises OSError where it cannot."""

    def notes(self) -> Iterable[str]:
        """The notes that can be read back here."""
        return ()


class FileWitness(Witness):
    """An append-only file; best on another machine's disk, or with the system's append-only attribute."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self, note: str) -> None:
        """Append the note and have it on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + note)  # a note that was torn ends here
            file.flush()
            os.fsync(file.fileno())

    def notes(self) -> Iterable[str]:
        """Every note, the oldest first; one that was torn while it was written is left out."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            lines: list[str] = []
            for line in file:
                if line == f"{ORIGIN}\n":
                    lines = []
                lines.append(line)
                if line.startswith("— "):
                    if len(line.rstrip("\n")) >= SIGNED:
                        yield "".join(lines)
                    lines = []


class SyslogWitness(Witness):
    """A syslog server: one message a note, as one line."""

    def __init__(self, host: str, port: int) -> None:
        self.sender = logging.handlers.SysLogHandler((host, port), facility="authpriv")

    def take(self, note: str) -> None:
        """Send the note."""
        record = logging.LogRecord(ORIGIN, logging.INFO, "", 0, f"{ORIGIN}: " + note.replace("\n", " | "), None, None)
        self.sender.emit(record)


EVERY_MAIL = 3600.0
"""Seconds between two mails: each checkpoint speaks for all before it."""


class MailWitness(Witness):
    """A mailbox: the newest checkpoint, once an hour."""

    def __init__(self, address: str, host: str, port: int) -> None:
        self.address, self.host, self.port = address, host, port
        self.next = 0.0

    def take(self, note: str) -> None:
        """Mail the note, unless one was mailed within the hour."""
        if time.monotonic() < self.next:
            return
        message = EmailMessage()
        message["From"] = message["To"] = self.address
        message["Subject"] = "Wardbook trail checkpoint"
        message.set_content(note)
        try:
            with smtplib.SMTP(self.host, self.port, timeout=10) as server:
                server.send_message(message)
        except smtplib.SMTPException as error:
            raise OSError(str(error)) from error
        self.next = time.monotonic() + EVERY_MAIL


def witness_at(address: str) -> Witness:
    """A witness by its address: `file:/path`, `syslog://host:514`, `smtp://host:25/mailbox@example.org`.

    Raises ValueError for any other.
    """
    parts = urlsplit(address)
    if parts.scheme == "file" and parts.path:
        return FileWitness(Path(unquote(parts.path)))
    if parts.scheme == "syslog" and parts.hostname:
        return SyslogWitness(parts.hostname, parts.port or 514)
    if parts.scheme == "smtp" and parts.hostname and "@" in parts.path:
        return MailWitness(unquote(parts.path.lstrip("/")), parts.hostname, parts.port or 25)
    raise ValueError(f"{address!r} is no witness: use file:/path, syslog://host:port or smtp://host:port/mailbox")


# ---- of this process ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seal:
    """What a process needs to end a batch: the key, and the witness."""

    signer: Signer
    witness: Witness


_seal: Seal | None = None


def connect(key: Path, witness: str) -> Seal:
    """Open the key and the witness of this process, for whoever moves lines or checks them. Raises ValueError."""
    global _seal
    _seal = Seal(key_at(key), witness_at(witness))
    return _seal


def the_seal() -> Seal:
    """The key and the witness of this process. Raises RuntimeError where they were never opened."""
    if _seal is None:
        raise RuntimeError("this process has no key to the trail")
    return _seal
