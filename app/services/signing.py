"""Keys that prescriptions are signed with, the seal on each paper, and whether a paper somebody holds is genuine.

The private half of a key is a file; the public half is a row, so that what was signed holds when a key is retired.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload, selectinload

from app import guard
from app.actor import current, service
from app.errors import Conflict, IllegalTransition, Invalid, KeyAway, NotFound, OutOfService
from app.services.clock import zone
from app.services.words import line
from models.base import now
from models.codes import MedicationRequestStatus
from models.organization import Branch
from models.prescriptions import MedicationRequest, Prescription, SigningKey

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: no letter is taken for another."""
SAME = str.maketrans({"O": "0", "I": "1", "L": "1"})
CODE_LETTERS = 12
"""Of a short code; the last one checks the others."""
TOKEN = re.compile(r"([A-Za-z0-9_-]{22})\.([0-9A-Z]{8})\.([A-Za-z0-9_-]{86})")
FARTHEST = 300
"""Letters of an address or a code at most: ours have half of that."""
S = MedicationRequestStatus


class Standing(StrEnum):
    """How it stands with a paper."""

    VALID = "valid"
    PARTLY = "partly dispensed"
    DISPENSED = "dispensed"
    ON_HOLD = "on hold"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    NOT_GENUINE = "not genuine"


@dataclass(frozen=True)
class Left:
    """How much of an order may still be handed out, in its unit (UCUM), and until which day."""

    quantity: Decimal
    unit: str
    until: date | None


@dataclass(frozen=True)
class Verdict:
    """What a stranger who holds a paper is told: no name of the patient, no medicine."""

    standing: Standing
    prescriber: str = ""
    issued_on: date | None = None
    """By the clock of the branch."""
    left: tuple[Left, ...] = ()
    """Order by order, as on the paper."""


NOT_GENUINE = Verdict(Standing.NOT_GENUINE)

# ---- what this process is told -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where the private halves of keys are, and how addresses in QR codes begin."""

    folder: Path
    public_url: str


_place: Place | None = None


def connect(folder: Path, public_url: str) -> None:
    """Tell this process where its keys are and how the addresses it prints begin."""
    global _place
    _place = Place(folder, public_url.rstrip("/"))


def place() -> Place:
    """What `connect` was told. Raises OutOfService where nothing was."""
    if _place is None:
        raise OutOfService
    return _place


# ---- keys ----------------------------------------------------------------------------------------------------------


def keys(session: Session) -> list[SigningKey]:
    """Every key there ever was, the newest first."""
    guard.require("update", "SigningKey")
    return list(session.scalars(select(SigningKey).order_by(SigningKey.id.desc())))


def current_key(session: Session) -> SigningKey:
    """The key papers are signed with now, made where there is none. It is not retired while the transaction lasts."""
    found = _standing_key(session)
    return found if found is not None else _first(session)


def _standing_key(session: Session) -> SigningKey | None:
    statement = select(SigningKey).where(SigningKey.retired_at.is_(None)).with_for_update(read=True)
    return session.scalars(statement.execution_options(populate_existing=True)).one_or_none()


def _first(session: Session) -> SigningKey:
    """The first key, or the one somebody else made meanwhile: the database lets only one be the current one."""
    session.flush()
    with guard.acting_as(replace(service("setup"), origin=current().origin)):
        try:
            with session.begin_nested():
                return _make(session)
        except IntegrityError:
            found = _standing_key(session)
            if found is None:
                raise OutOfService from None
            return found


def _make(session: Session) -> SigningKey:
    """A new key: the private half in a file nobody else can read, the public half in a row."""
    private = Ed25519PrivateKey.generate()
    kid = "".join(secrets.choice(ALPHABET) for _ in range(8))
    folder = place().folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / f"{kid}.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        os.fsync(file.fileno())
    key = SigningKey(kid=kid, public_key=private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    try:
        session.add(key)
        session.flush()
    except BaseException:
        discard(kid)
        raise
    return key


def discard(kid: str) -> None:
    """Remove the private half of a key from this machine: nothing is signed with it any more."""
    if re.fullmatch(r"[0-9A-Z]{8}", kid):
        (place().folder / f"{kid}.pem").unlink(missing_ok=True)


def _private(key: SigningKey) -> Ed25519PrivateKey:
    """The private half of a key. Raises KeyAway where it is not here."""
    try:
        found = load_pem_private_key((place().folder / f"{key.kid}.pem").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise KeyAway from error
    if not isinstance(found, Ed25519PrivateKey):
        raise KeyAway
    return found


def rotate(session: Session) -> SigningKey:
    """A new key to sign with from now on; what older ones signed still holds."""
    guard.require("update", "SigningKey")
    guard.because("A new key to sign prescriptions with.")
    before = session.scalars(
        select(SigningKey)
        .where(SigningKey.retired_at.is_(None))
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()
    if before is not None:
        before.retired_at = now()
        session.flush()
    try:
        with session.begin_nested():
            return _make(session)
    except IntegrityError as error:
        raise Conflict("Somebody has made a new key meanwhile. Please look again.") from error


def revoke(session: Session, kid: str, *, reason: str) -> SigningKey:
    """Nothing that a key signed holds any longer. Raises Invalid without a reason, NotFound, IllegalTransition."""
    guard.require("update", "SigningKey")
    said = line(reason, field="reason", longest=300)
    if len(said) < 3:
        raise Invalid("Please say why, in a few words.", field="reason")
    key = session.scalars(
        select(SigningKey).where(SigningKey.kid == kid).with_for_update().execution_options(populate_existing=True)
    ).one_or_none()
    if key is None:
        raise NotFound
    if key.revoked_at is not None:
        raise IllegalTransition("This key is revoked already.")
    guard.because("A key that prescriptions were signed with is revoked.")
    moment = now()
    key.revoked_at, key.revoked_reason = moment, said
    key.retired_at = key.retired_at or moment
    session.flush()
    return key


# ---- the seal ------------------------------------------------------------------------------------------------------


def seal(session: Session, prescription: Prescription) -> None:
    """Issue a paper: its moment, its short code and its signature over what its orders say. Raises KeyAway."""
    if prescription.issued_at is not None:
        raise IllegalTransition("This prescription is issued already.")
    session.flush()
    key = current_key(session)
    paper = _whole(session, Prescription.id == prescription.id)
    if paper is None or not paper.requests:
        raise Invalid("There is nothing on this prescription yet.", field="medication")
    code = _new_code()
    moment = now()
    signature = _private(key).sign(_message(paper, key.kid, code, moment.astimezone(UTC).isoformat()))
    paper.issued_at, paper.short_code, paper.signing_key_id, paper.signature = moment, code, key.id, signature
    session.flush()


def _whole(session: Session, condition: Any) -> Prescription | None:
    """A paper as it is in the database, with its orders and its key."""
    statement = (
        select(Prescription)
        .where(condition)
        .options(
            joinedload(Prescription.signing_key),
            joinedload(Prescription.practitioner),
            joinedload(Prescription.branch),
            selectinload(Prescription.requests).joinedload(MedicationRequest.medication),
        )
        .execution_options(populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def paper_of(session: Session, prescription_id: int) -> Prescription:
    """A paper with its orders, their medicines and its key, as it is in the database. Raises NotFound."""
    found = _whole(session, Prescription.id == prescription_id)
    if found is None:
        raise guard.refuse("read", "MedicationRequest", NotFound)
    return found


def _number(value: Decimal | None) -> str:
    return "" if value is None else f"{value.normalize():f}"


def _message(paper: Prescription, kid: str, code: str, issued_at: str) -> bytes:
    """What is signed. The patient is not in it: two records of one person may become one."""
    orders = [
        {
            "id": str(order.fhir_id),
            "medication": order.medication_id,
            "code": [order.code_system or "", order.code or "", order.code_display],
            "quantity": [_number(order.quantity), order.quantity_unit],
            "repeats": order.repeats,
            "valid": [str(order.valid_from), str(order.valid_until)],
            "dosage": order.dosage_instruction,
            "substitution": order.substitution_allowed,
        }
        for order in paper.requests
    ]
    digest = hashlib.sha256(rfc8785.dumps(orders)).hexdigest()
    told = [str(paper.fhir_id), kid, code, issued_at, str(paper.practitioner_id), str(paper.branch_id), digest]
    return "\n".join(["wardbook prescription 1", *told]).encode()


def address(paper: Prescription) -> str:
    """What the QR code of a paper holds. Raises IllegalTransition for a draft."""
    if paper.issued_at is None or paper.signing_key is None or paper.signature is None:
        raise IllegalTransition(DRAFT)
    identity = urlsafe_b64encode(paper.fhir_id.bytes).rstrip(b"=").decode()
    signature = urlsafe_b64encode(paper.signature).rstrip(b"=").decode()
    return f"{place().public_url}/rx/{identity}.{paper.signing_key.kid}.{signature}"


DRAFT = "This prescription is a draft. It is printed once it is issued."

# ---- short codes ---------------------------------------------------------------------------------------------------


def _new_code() -> str:
    letters = "".join(secrets.choice(ALPHABET) for _ in range(CODE_LETTERS - 1))
    return letters + _check_letter(letters)


def _check_letter(letters: str) -> str:
    """Luhn's letter over base 32: it tells a wrong letter and nearly every two that changed places."""
    total = 0
    for place_, letter in enumerate(reversed(letters)):
        value = ALPHABET.index(letter) * (2 - place_ % 2)
        total += value // 32 + value % 32
    return ALPHABET[-total % 32]


def spelled(code: str) -> str:
    """A short code in groups of four, as it is printed."""
    return "-".join(code[at : at + 4] for at in range(0, len(code), 4))


def code_in(text: str) -> str:
    """The short code somebody typed. Raises Invalid where letters are missing or one of them is wrong."""
    letters = re.sub(r"[\s-]", "", text).upper().translate(SAME)
    if len(letters) != CODE_LETTERS or set(letters) - set(ALPHABET):
        raise Invalid("A code has 12 letters and digits, such as 7K3M-Q9RT-2XB5.", field="code")
    if _check_letter(letters[:-1]) != letters[-1]:
        raise Invalid("One of these letters is not as on the paper. Please compare them.", field="code")
    return letters


# ---- whether it is genuine -----------------------------------------------------------------------------------------


@contextmanager
def at_a_paper() -> Iterator[Session]:
    """Look on behalf of whoever holds a paper, as a service; the trail has it with their address."""
    with (
        guard.acting_as(replace(service("prescription-check"), origin=current().origin)),
        guard.unit_of_work() as session,
    ):
        yield session


def check(session: Session, token: str) -> Verdict:
    """How it stands with a paper, by what its QR code holds behind /rx/ or by its short code.

    A forged one and one that nobody ever wrote are the same. Raises Invalid for a short code that was mistyped.
    """
    paper = find(session, token)
    if paper is None:
        guard.refuse("read", "MedicationRequest", NotFound)  # for the trail
        return NOT_GENUINE
    return _verdict(paper)


def find(session: Session, text: str) -> Prescription | None:
    """The genuine paper a scanned address, its last part or a short code belongs to; None for every other.

    Raises Invalid for a short code that was mistyped.
    """
    said = text.strip()
    if len(said) > FARTHEST or not said.isascii():
        return None
    told = said.rpartition("/rx/")[2].strip("/")
    if "." not in told and "/" not in told:
        paper = _whole(session, Prescription.short_code == code_in(told))
        return paper if paper is not None and genuine(paper) else None
    parts = TOKEN.fullmatch(told)
    if parts is None:
        return None
    try:
        identity = UUID(bytes=urlsafe_b64decode(parts[1] + "=="))
        signature = urlsafe_b64decode(parts[3] + "==")
    except ValueError:
        return None
    paper = _whole(session, Prescription.fhir_id == identity)
    if paper is None or paper.signature != signature or paper.signing_key is None or paper.signing_key.kid != parts[2]:
        return None
    # Letters at the end that mean the same bytes are still not what we printed.
    return paper if genuine(paper) and address(paper).endswith(f"/rx/{told}") else None


def genuine(paper: Prescription) -> bool:
    """Whether a paper is as it was issued, by a key that still holds."""
    key = paper.signing_key
    if paper.issued_at is None or paper.signature is None or paper.short_code is None or key is None or key.revoked_at:
        return False
    message = _message(paper, key.kid, paper.short_code, paper.issued_at.astimezone(UTC).isoformat())
    try:
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(paper.signature, message)
    except InvalidSignature:
        return False
    return True


def today_at(branch: Branch) -> date:
    """The day it is at a branch, by this server's clock."""
    return now().astimezone(zone(branch.time_zone)).date()


def standing(orders: Sequence[MedicationRequest], today: date) -> Standing:
    """How it stands with the orders of a genuine paper."""
    wrong = (S.CANCELLED, S.ENTERED_IN_ERROR, S.STOPPED)
    live = [order for order in orders if order.status not in wrong and order.status != S.COMPLETED]
    if not live:
        return Standing.DISPENSED if any(order.status == S.COMPLETED for order in orders) else Standing.CANCELLED
    good = [order for order in live if order.valid_until is None or order.valid_until >= today]
    if not good:
        return Standing.EXPIRED
    if all(order.status == S.ON_HOLD for order in good):
        return Standing.ON_HOLD
    return Standing.PARTLY if any(order.dispensed for order in orders) else Standing.VALID


def left_of(order: MedicationRequest, today: date) -> Decimal:
    """How much of an order may still be handed out today, over all its fills."""
    over = order.status not in (S.ACTIVE, S.ON_HOLD) or (order.valid_until is not None and order.valid_until < today)
    return Decimal(0) if over else (order.quantity or Decimal(0)) * (order.repeats + 1) - order.dispensed


def _verdict(paper: Prescription) -> Verdict:
    assert paper.issued_at is not None
    today = today_at(paper.branch)
    return Verdict(
        standing(paper.requests, today),
        str(paper.practitioner),
        paper.issued_at.astimezone(zone(paper.branch.time_zone)).date(),
        tuple(Left(left_of(order, today), order.quantity_unit, order.valid_until) for order in paper.requests),
    )
