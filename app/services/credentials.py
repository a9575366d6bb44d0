"""Credentials: passwords and the second step, how either is proved, and how often somebody may try."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import threading
import time
import unicodedata
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyotp
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flask_appbuilder.security.sqla.models import Role, User
from limits import RateLimitItem, parse_many
from limits.storage import storage_from_string
from limits.strategies import MovingWindowRateLimiter
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified
from werkzeug.security import check_password_hash
from zxcvbn import zxcvbn

from app import guard
from app.actor import current, service
from app.errors import Conflict, Forbidden, Invalid, NotSignedIn, OutOfService, TooManyTries
from models.access import Credential, RoleSetting
from models.base import now

UNKNOWN = "This name and password do not belong together. Please try again."
WRONG_CODE = "This is not the code of this moment, or it was used already. Please wait for the next one and try again."

# ---- passwords ---------------------------------------------------------------------------------------------------

SHORTEST, LONGEST = 12, 128
LOOKED_AT = 72
"""Characters a guesser is let loose on: one that cannot be guessed so far cannot be guessed with more."""
GUESSABLE_BELOW = 3
"""zxcvbn's score of what takes more than 10^8 tries (0 to 4)."""
OURS = ("wardbook", "hospital")
OF_ITS_OWN = 4
"""Letters a password has besides what is known of its owner: zxcvbn thinks well of three known words in a row."""
_hasher = PasswordHasher(time_cost=3, memory_cost=32 * 1024, parallelism=1)
"""Argon2id with 32 MiB: a sixteenth of a second, above OWASP's least (19 MiB and two rounds)."""
_at_once = threading.BoundedSemaphore(4)
"""So many at a time, so that a flood of sign-ins does not eat the memory."""
_guessing = threading.Lock()
"""zxcvbn keeps the words of one question where another thread's would find them."""
NOBODYS = "$argon2id$v=19$m=32768,t=3,p=1$Qjhkfnrz43FQZ4UjqQTgxA$ngxjBml8g5UAJm/nycsjyF5Rrz7LCROv126m49BPe4Q"
"""What a password is held against where there is no account, so that it takes as long."""


def hashed(password: str) -> str:
    """The Argon2id hash of a password, in the usual notation."""
    with _at_once:
        return _hasher.hash(_plain(password))


def holds(kept: str | None, password: str) -> bool:
    """Whether a password is the one that was hashed; older hashes of Werkzeug's count as well."""
    if kept and not kept.startswith("$argon2"):
        with _at_once:
            return check_password_hash(kept, password)
    with _at_once:
        try:
            _hasher.verify(kept or NOBODYS, _plain(password))
        except (Argon2Error, InvalidHashError):
            return False
    return bool(kept)


def outdated(kept: str) -> bool:
    """Whether a hash was made in a weaker way than we would now."""
    return not kept.startswith("$argon2") or _hasher.check_needs_rehash(kept)


def _plain(password: str) -> str:
    """The same password from every keyboard (NIST SP 800-63B, 5.1.1.2: normalised)."""
    return unicodedata.normalize("NFKC", speakable(password))


def speakable(text: str) -> str:
    """A text without the halves of letters that JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _rest(password: str, known: Iterable[str]) -> str:
    """The letters and digits of a password that are not words anybody knows of its owner."""
    rest = password.lower()
    for word in sorted((word.lower() for word in known if len(word) > 2), key=len, reverse=True):
        rest = rest.replace(word, "")
    return "".join(filter(str.isalnum, rest))


def check(password: str, about: Iterable[str] = (), *, old: str | None = None) -> None:
    """Whether a password may be somebody's: `about` is what is known of them, `old` the hash of the one they have.

    Raises Invalid, with a sentence that says what is wrong.  There are no rules of composition (NIST SP 800-63B).
    """
    plain = _plain(password)
    if len(plain) < SHORTEST:
        raise Invalid(f"A password has {SHORTEST} characters or more. A few words in a row do well.", field="password")
    if len(plain) > LONGEST:
        raise Invalid(f"A password has {LONGEST} characters at most.", field="password")
    if any(unicodedata.category(letter) == "Cc" for letter in plain):
        raise Invalid("This password holds a character that cannot be typed.", field="password")
    known = [*OURS, *(word for text in about for word in (text, *re.split(r"\W+", text)) if word)]
    with _guessing:
        found: dict[str, Any] = zxcvbn(plain[:LOOKED_AT], user_inputs=known)
    if found["score"] < GUESSABLE_BELOW or len(_rest(plain, known)) < OF_ITS_OWN:
        raise Invalid(
            "This password can be guessed too easily. Use a few words that have nothing to do with each other, "
            "nor with you.",
            field="password",
        )
    if old and holds(old, password):
        raise Invalid("This is the password you have already. Please choose another one.", field="password")


# ---- what this process is told -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keeper:
    """The key second factors are kept under, and the place where tries are counted."""

    cipher: Fernet
    tries: MovingWindowRateLimiter
    redis: Any


_keeper: Keeper | None = None


def connect(redis_url: str, secret_key: str) -> None:
    """Open this process's counter of tries and derive its key; done once, before anybody signs in."""
    global _keeper
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"wardbook second factor").derive(secret_key.encode())
    address = f"redis+{redis_url}" if redis_url.startswith("unix://") else redis_url
    storage: Any = storage_from_string(address, socket_timeout=2, socket_connect_timeout=2)
    _keeper = Keeper(Fernet(urlsafe_b64encode(key)), MovingWindowRateLimiter(storage), storage.storage)


def keeper() -> Keeper:
    """What `connect` opened. Raises OutOfService where nothing was."""
    if _keeper is None:
        raise OutOfService
    return _keeper


# ---- how often somebody may try ------------------------------------------------------------------------------------

OF_AN_ACCOUNT = parse_many("5 per 1 minute; 10 per 15 minute; 20 per 1 hour")
"""Counted before a password or code is looked at, and forgotten when it holds."""
OF_A_CODE = (*OF_AN_ACCOUNT, *parse_many("40 per 1 day"))
"""Whoever guesses codes has the password already."""
OF_AN_ADDRESS = parse_many("30 per 1 minute; 100 per 1 hour; 300 per 1 day")
"""Failures only: all the desks of a hospital may have one address."""

OF_LINKS = parse_many("30 per 1 minute; 300 per 1 hour")
"""Failures only, by address: links and feeds that nobody was given."""


def _begin(key: str, windows: Iterable[RateLimitItem]) -> None:
    """Count a try before anything is looked at. Raises TooManyTries, also for an address that failed too often."""
    tries = keeper().tries
    address = _network()
    for window in OF_AN_ADDRESS:
        if not tries.test(window, "address", address):
            raise _locked(f"address:{address}", window, "address", address)
    for window in windows:
        if not tries.hit(window, key):
            raise _locked(key, window, key)


def _locked(key: str, window: RateLimitItem, *counted: str) -> TooManyTries:
    opens = keeper().tries.get_window_stats(window, *counted).reset_time
    seconds = max(1, int(opens - time.time()) + 1)
    first = bool(keeper().redis.set(f"locked:{key}", "1", nx=True, ex=seconds))
    return TooManyTries(
        f"There were too many tries. For safety nothing is looked at for {_wait(seconds)}; please try again then.",
        seconds=seconds,
        first=first,
    )


def _wait(seconds: int) -> str:
    """How long that is, as one says it."""
    if seconds < 90:
        return f"{seconds} seconds"
    minutes = -(-seconds // 60)
    return f"{minutes} minutes" if minutes < 90 else f"{-(-minutes // 60)} hours"


def _failed() -> None:
    """Count a failure of the address."""
    for window in OF_AN_ADDRESS:
        keeper().tries.hit(window, "address", _network())


def _held(key: str, windows: Iterable[RateLimitItem]) -> None:
    """Forget the tries before the one that held."""
    for window in windows:
        keeper().tries.clear(window, key)


def _network() -> str:
    """Where the actor comes from: an IPv4 address, or what one subscriber has of IPv6."""
    try:
        address = ipaddress.ip_address(current().origin.address or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _keys(user_id: int) -> list[tuple[str, tuple[RateLimitItem, ...]]]:
    return [(f"password:{user_id}", (*OF_AN_ACCOUNT,)), (f"code:{user_id}", (*OF_A_CODE,))]


def may_try_links() -> None:
    """Raises TooManyTries where too many addresses nobody was given were tried from here.

    Counted apart from signing in: an old calendar that keeps asking locks nobody out of the house it asks from.
    """
    for window in OF_LINKS:
        if not keeper().tries.test(window, "links", _network()):
            raise _locked(f"links:{_network()}", window, "links", _network())


def wrong_link() -> None:
    """Count an address that nobody was given, or that is no longer good."""
    for window in OF_LINKS:
        keeper().tries.hit(window, "links", _network())


def locked_for(user_id: int) -> int:
    """Seconds until the next try on an account is looked at; 0 where it is not locked."""
    tries = keeper().tries
    waits = [
        stats.reset_time - time.time()
        for key, windows in _keys(user_id)
        for window in windows
        if (stats := tries.get_window_stats(window, key)).remaining <= 0
    ]
    return max((max(1, int(wait) + 1) for wait in waits), default=0)


def unlock(user_id: int) -> None:
    """Forget every try on an account. Who may do so is the caller's question."""
    for key, windows in _keys(user_id):
        _held(key, windows)
        keeper().redis.delete(f"locked:{key}")


# ---- proving who one is ----------------------------------------------------------------------------------------------


@contextmanager
def _signing_in() -> Iterator[Session]:
    """A unit of work of the sign-in itself, on behalf of whoever is at the door."""
    at_the_door = replace(service("sign-in"), origin=current().origin)
    with guard.acting_as(at_the_door), guard.unit_of_work() as session:
        yield session


def named(session: Session, name: str, by: tuple[str, ...] = ("username", "email")) -> User | None:
    """The account somebody means by a user name or an e-mail address, in whatever letters."""
    said = speakable(name).strip().lower()
    if not said or "\x00" in said or len(said) > 320:
        return None
    found = session.scalars(select(User).where(or_(*(func.lower(getattr(User, each)) == said for each in by)))).all()
    return min(found, key=lambda user: (user.username.lower() != said, user.id), default=None)


def with_password(session: Session, name: str, password: str) -> User:
    """The open account a name and password belong to.

    Raises TooManyTries before anything is looked at, and NotSignedIn, which does not say why: there is no such
    account, it is closed, or the password is another one; all of which take the same time.
    """
    user = named(session, name)
    key = f"password:{user.id}" if user else f"name:{_digest(speakable(name).strip().lower())}"
    _begin(key, OF_AN_ACCOUNT)
    right = 0 < len(password) <= 4 * LONGEST and holds(user.password if user else None, password)
    if user is None or not user.active or not right:
        _failed()
        _note_failure(user.id if user else None)
        raise NotSignedIn(UNKNOWN)
    _held(key, OF_AN_ACCOUNT)
    if outdated(str(user.password)):
        _rehash(user.id, password)
    return user


def _note_failure(user_id: int | None) -> None:
    """Count a failed try; where there is no account something is written as well, so that it takes as long."""
    with _signing_in() as session:
        user = (
            session.get(User, user_id) if user_id else session.scalars(select(User).order_by(User.id).limit(1)).first()
        )
        if user is None:
            return
        if user_id:
            user.fail_login_count = (user.fail_login_count or 0) + 1
        else:
            flag_modified(user, "fail_login_count")


def _rehash(user_id: int, password: str) -> None:
    """Keep the same password in today's way; sessions go on, for nothing has changed for anybody."""
    with _signing_in() as session:
        user = session.scalars(select(User).where(User.id == user_id).with_for_update()).one()
        credential = _credential(session, user_id)
        guard.because("The same password, hashed in today's way.")
        user.password = hashed(password)
        session.flush()
        for name in ("generation", "password_changed_at"):  # the trigger took it for another password
            flag_modified(credential, name)


def confirm_password(session: Session, password: str) -> User:
    """The account of the actor, who says their password once more. Raises TooManyTries and Invalid."""
    user = session.get(User, current().user_id) if current().user_id else None
    if user is None:
        raise NotSignedIn
    _begin(f"password:{user.id}", OF_AN_ACCOUNT)
    if not holds(user.password, password):
        _failed()
        raise Invalid("This is not your password.", field="current")
    _held(f"password:{user.id}", OF_AN_ACCOUNT)
    return user


def entered(user_id: int) -> None:
    """Note that somebody has signed in."""
    with _signing_in() as session:
        user = session.get(User, user_id)
        assert user is not None
        user.login_count = (user.login_count or 0) + 1
        user.last_login = now().replace(tzinfo=None)
        user.fail_login_count = 0


# ---- the second step -------------------------------------------------------------------------------------------------

RECOVERY_CODES = 10
ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
"""Letters and digits that are not taken for one another."""
STEP = 30
"""Seconds a code lasts (RFC 6238); the one before and the one after are taken too."""


def _credential(session: Session, user_id: int) -> Credential:
    """The credential of an account, held until the unit of work ends."""
    return session.scalars(
        select(Credential)
        .where(Credential.user_id == user_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()


def _mine(session: Session) -> Credential:
    user_id = current().user_id
    if user_id is None:
        raise NotSignedIn
    return _credential(session, user_id)


def _secret(credential: Credential) -> str | None:
    """The secret of a second factor. Raises OutOfService where it was kept under another key."""
    if credential.totp_secret is None:
        return None
    try:
        return keeper().cipher.decrypt(credential.totp_secret).decode()
    except InvalidToken as error:
        raise OutOfService(
            "The second step of this account cannot be read with this installation's key. Ask your administrator."
        ) from error


def _step_of(secret: str, code: str) -> int | None:
    """The time step a code belongs to, if it is one around this moment."""
    at = int(time.time()) // STEP
    totp = pyotp.TOTP(secret)
    for step in (at, at - 1, at + 1):
        if hmac.compare_digest(totp.generate_otp(step), code):
            return step
    return None


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _written(code: str) -> str:
    """A code as it is compared: however it was spaced, in small letters."""
    return "".join(letter for letter in code.lower() if letter.isalnum())[:64]


def with_code(user_id: int, code: str) -> None:
    """Take the code of the moment, or a recovery code, each only once.

    Raises TooManyTries before anything is looked at, and NotSignedIn.
    """
    key = f"code:{user_id}"
    _begin(key, OF_A_CODE)
    with _signing_in() as session:
        taken = _take(_credential(session, user_id), _written(code))
    if not taken:
        _failed()
        raise NotSignedIn(WRONG_CODE)
    _held(key, OF_A_CODE)


def _take(credential: Credential, code: str) -> bool:
    """Whether a code is good; it is not a second time.  The credential is held, so of two at once one is too late."""
    secret = _secret(credential)
    if secret is None or credential.totp_confirmed_at is None:
        return False
    if code.isdigit() and len(code) == 6:
        step = _step_of(secret, code)
        if step is None or step <= credential.totp_step:
            return False
        credential.totp_step = step
        return True
    digest = _digest(code)
    left = [kept for kept in credential.recovery_codes if not hmac.compare_digest(kept, digest)]
    if len(left) == len(credential.recovery_codes):
        return False
    guard.because("A recovery code was used to sign in.")
    credential.recovery_codes = left
    return True


@dataclass(frozen=True)
class SecondFactor:
    """How it stands with the second step of an account."""

    secret: str | None
    """In Base32, while it waits for its first code; None before and after."""
    since: datetime | None
    codes_left: int


def second_factor(session: Session) -> SecondFactor:
    """How it stands with the actor's own."""
    credential = session.get(Credential, current().user_id)
    if credential is None:
        raise NotSignedIn
    since = credential.totp_confirmed_at
    return SecondFactor(None if since else _secret(credential), since, len(credential.recovery_codes))


def address_of(secret: str, username: str) -> str:
    """The otpauth address an authenticator reads from the square."""
    return pyotp.TOTP(secret).provisioning_uri(name=username, issuer_name="Wardbook")


def begin_second_factor(session: Session) -> None:
    """Make a new secret for the actor; it counts for nothing until a code proves it. Raises Conflict."""
    credential = _mine(session)
    if credential.totp_confirmed_at is not None:
        raise Conflict("The second step is set up already. Turn it off first if you have a new phone.")
    guard.because("A second step is being set up.")
    credential.totp_secret = keeper().cipher.encrypt(pyotp.random_base32().encode())


def prove_second_factor(session: Session, code: str) -> list[str]:
    """A first code proves the secret, and the second step counts from now on. Gives the recovery codes, once.

    Raises TooManyTries, Invalid and Conflict.
    """
    key = f"code:{current().user_id}"
    _begin(key, OF_A_CODE)
    credential = _mine(session)
    secret = _secret(credential)
    if secret is None or credential.totp_confirmed_at is not None:
        raise Conflict("There is nothing to confirm. Please open the page again.")
    step = _step_of(secret, _written(code))
    if step is None:
        raise Invalid("This is not the code of this moment. Please wait for the next one and try again.", field="code")
    _held(key, OF_A_CODE)
    guard.because("The second step was set up.")
    credential.generation += 1  # whoever is in by the password alone, in another session or by a token, is out
    credential.totp_confirmed_at = now()
    credential.totp_step = step
    return _new_codes(credential)


def renew_recovery_codes(session: Session, password: str) -> list[str]:
    """New recovery codes for the actor; the old ones count for nothing. Raises Invalid, Conflict, TooManyTries."""
    confirm_password(session, password)
    credential = _mine(session)
    if credential.totp_confirmed_at is None:
        raise Conflict("There is no second step. Please set it up first.")
    guard.because("New recovery codes were made.")
    return _new_codes(credential)


def _new_codes(credential: Credential) -> list[str]:
    codes = ["".join(secrets.choice(ALPHABET) for _ in range(16)) for _ in range(RECOVERY_CODES)]
    credential.recovery_codes = [_digest(code) for code in codes]
    return ["-".join(code[at : at + 4] for at in range(0, 16, 4)) for code in codes]


def demanded(session: Session) -> bool:
    """Whether a role of the actor asks for a second step."""
    return (
        session.scalars(
            select(RoleSetting)
            .join(Role, Role.id == RoleSetting.role_id)
            .where(Role.name.in_(current().roles), RoleSetting.second_factor)
            .limit(1)
        ).first()
        is not None
    )


def turn_off_second_factor(session: Session, password: str) -> None:
    """The actor signs in with a password only again. Raises Forbidden where a role asks for more, Invalid."""
    if demanded(session):
        raise guard.refuse("update", "User.totp_secret", StepDemanded)
    confirm_password(session, password)
    guard.because("The second step was turned off.")
    _forget(_mine(session))


class StepDemanded(Forbidden):
    """A role of the account asks for the second step."""

    sentence = "Your role asks for the second step, so it stays. With a new phone, ask an administrator to reset it."


def _forget(credential: Credential) -> None:
    credential.totp_secret = None
    credential.totp_confirmed_at = None
    credential.recovery_codes = []


# ---- what others do to an account ------------------------------------------------------------------------------------


def state_of(session: Session, user_id: int) -> Credential:
    """The credential of an account for whoever may read accounts. Raises Forbidden."""
    guard.require("read", "User")
    return session.scalars(select(Credential).where(Credential.user_id == user_id)).one()


def end_sessions(session: Session, user_id: int) -> None:
    """Whatever was signed in to an account so far has ended with its next request. Who may is the caller's question."""
    credential = _credential(session, user_id)
    credential.generation += 1


def has_second_factor(session: Session, user_id: int) -> bool:
    """Whether an account has a second step, or one is being set up."""
    return _credential(session, user_id).totp_secret is not None


def remove_second_factor(session: Session, user_id: int) -> None:
    """Take the second step from an account, and end its sessions. Raises Forbidden by the gate, and Conflict."""
    credential = _credential(session, user_id)
    if credential.totp_secret is None:
        raise Conflict("This account has no second step.")
    _forget(credential)
    credential.generation += 1


__all__ = [
    "SecondFactor",
    "StepDemanded",
    "address_of",
    "begin_second_factor",
    "check",
    "confirm_password",
    "connect",
    "demanded",
    "end_sessions",
    "entered",
    "has_second_factor",
    "hashed",
    "holds",
    "locked_for",
    "may_try_links",
    "named",
    "outdated",
    "prove_second_factor",
    "remove_second_factor",
    "renew_recovery_codes",
    "second_factor",
    "speakable",
    "state_of",
    "turn_off_second_factor",
    "unlock",
    "with_code",
    "with_password",
    "wrong_link",
]
