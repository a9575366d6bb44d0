"""Sessions on the server: kept in Redis, listed by account, and ended for good."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from typing import Any

import msgspec
from flask import Flask, Request, current_app, g, request, session
from flask_babel import gettext
from flask_session.base import Serializer, ServerSideSession
from flask_session.redis import RedisSessionInterface
from msgspec import DecodeError

PREFIX = "session:"
LIST = "sessions:{}"
"""The hash of an account's sessions: digest of the session's number -> Noted."""


class JsonSerializer(Serializer):
    """Sessions as JSON: a translated flash becomes plain text (Flask-Session's own breaks on it after the commit)."""

    def encode(self, session: Any) -> bytes:
        return msgspec.json.encode(dict(session), enc_hook=str)

    def decode(self, serialized_data: bytes) -> dict[str, Any]:
        try:
            decoded = msgspec.json.decode(serialized_data)
        except DecodeError:  # not written by us: nobody's
            return {}
        return decoded if isinstance(decoded, dict) else {}


class Sessions(RedisSessionInterface):
    """Flask-Session's, but for this: a session that was ended is not written back by a request still under way."""

    def __init__(self, app: Flask, client: Any) -> None:
        super().__init__(app, client, PREFIX, permanent=True)
        self.serializer = JsonSerializer()

    def open_session(self, app: Flask, request: Request) -> Any:
        opened = super().open_session(app, request)
        opened.found = opened.sid if opened.sid == request.cookies.get(app.config["SESSION_COOKIE_NAME"]) else None
        return opened

    def should_set_storage(self, app: Flask, session: ServerSideSession) -> bool:
        """Whether the session is written, and lives on for that: not where the page asked all by itself."""
        return session.modified or (super().should_set_storage(app, session) and "by_itself" not in g)

    def _upsert_session(self, session_lifetime: Any, session: ServerSideSession, store_id: str) -> None:
        found = session.sid == getattr(session, "found", None)
        value = self.serializer.encode(session)
        self.client.set(store_id, value, ex=int(session_lifetime.total_seconds()), xx=found)


class Noted(msgspec.Struct):
    """What is kept of a session beside it."""

    key: str
    since: int
    address: str
    agent: str


@dataclass(frozen=True)
class Sitting:
    """One session of an account, as it is shown."""

    digest: str
    since: float
    """Seconds since the epoch."""
    used: float
    """Seconds since the epoch."""
    address: str
    browser: str
    here: bool


def redis() -> Any:
    """Where sessions are kept."""
    return current_app.config["SESSION_REDIS"]


def digest_of(sid: Any) -> str:
    """The name of a session that gives nobody the session: in the trail, and in the list of one's own."""
    return hashlib.sha256(str(sid).encode()).hexdigest()[:16]


def this() -> str:
    """The digest of the session of this request."""
    return digest_of(getattr(session, "sid", ""))


def renumber() -> None:
    """Give the session of this request another number; the old one opens nothing any more."""
    current_app.session_interface.regenerate(session)  # type: ignore[attr-defined]


def note(user_id: int) -> None:
    """Put the session of this request into the list of an account."""
    noted = Noted(
        PREFIX + str(session.sid),  # type: ignore[attr-defined]
        int(session["since"]),
        request.remote_addr or "",
        (request.headers.get("User-Agent") or "")[:300],
    )
    name = LIST.format(user_id)
    redis().hset(name, this(), msgspec.json.encode(noted))
    redis().expire(name, int(current_app.config["SESSION_HOURS"] * 3600))


def of(user_id: int) -> list[Sitting]:
    """The sessions of an account that are alive, the one used last first; those that are not vanish from the list."""
    name, idle = LIST.format(user_id), current_app.permanent_session_lifetime.total_seconds()
    noted = {digest.decode(): msgspec.json.decode(kept, type=Noted) for digest, kept in redis().hgetall(name).items()}
    ask = redis().pipeline(transaction=False)
    for kept in noted.values():
        ask.ttl(kept.key)
    sittings, gone, moment = [], [], time.time()
    for (digest, kept), left in zip(noted.items(), ask.execute(), strict=True):
        here = digest == this()
        if left < 0 and not here:
            if kept.since < moment - 60:  # one that is just being begun is not there yet
                gone.append(digest)
            continue
        used = moment if here else moment - max(0.0, idle - left)
        sittings.append(Sitting(digest, kept.since, used, kept.address, browser(kept.agent), here))
    if gone:
        redis().hdel(name, *gone)
    return sorted(sittings, key=lambda sitting: (not sitting.here, -sitting.used))


def end(user_id: int, *digests: str) -> int:
    """End some sessions of an account; gives how many there were."""
    name = LIST.format(user_id)
    if not digests:
        return 0
    kept = [found for found in redis().hmget(name, digests) if found]
    keys = [msgspec.json.decode(found, type=Noted).key for found in kept]
    redis().hdel(name, *digests)
    return int(redis().delete(*keys)) if keys else 0


def end_all(user_id: int, *, but: str | None = None) -> int:
    """End every session of an account, or every one but one; gives how many there were."""
    return end(user_id, *(d.decode() for d in redis().hkeys(LIST.format(user_id)) if d.decode() != but))


BROWSERS = (
    ("Edg", "Edge"),
    ("OPR", "Opera"),
    ("SamsungBrowser", "Samsung Internet"),
    ("Firefox", "Firefox"),
    ("FxiOS", "Firefox"),
    ("CriOS", "Chrome"),
    ("Chrome", "Chrome"),
    ("Safari", "Safari"),
)
SYSTEMS = (
    ("Windows", "Windows"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("CrOS", "Chromebook"),
    ("Mac OS", "Mac"),
    ("Linux", "Linux"),
)


def browser(agent: str) -> str:
    """A browser in plain words, from how it names itself."""
    program = next((word for mark, word in BROWSERS if re.search(rf"\b{mark}[A-Za-z]*/", agent)), None)
    system = next((word for mark, word in SYSTEMS if mark in agent), None)
    if program and system:
        return str(gettext("%(program)s on %(system)s", program=program, system=system))
    return program or system or str(gettext("A browser"))
