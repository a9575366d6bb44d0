"""Whether this process is alive, and whether it can do its work."""

from __future__ import annotations

import hmac
from typing import Any

import redis
from flask import Blueprint, current_app, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.wrappers import Response

from app import guard, trail
from app.actor import nobody
from app.errors import Refusal
from app.services import audit

health = Blueprint("health", __name__)


@health.get("/healthz")
def healthz() -> Any:
    """Alive."""
    return jsonify(status="ok")


@health.get("/readyz")
def readyz() -> Any:
    """Ready: database, sessions and trail all answer; otherwise 503 and which of them does not.

    How the trail stands is told along with it to whoever is told it by /metrics; a trail that is late is an alarm, and
    no reason to turn people away.
    """
    checks = {"database": _database, "sessions": _sessions, "trail": _trail}
    state: dict[str, Any] = {name: check() for name, check in checks.items()}
    ready = all(word == "ok" for word in state.values())
    if ready and _told():
        standing = _standing()
        state["trail_stands"] = {name: getattr(standing, name) for name, _ in TOLD} | {"late": standing.late}
    return jsonify(status="ready" if ready else "not ready", **state), 200 if ready else 503


TOLD = (
    ("stream", "Entries of the trail in Redis that are not stored yet"),
    ("oldest_seconds", "Age of the oldest line that is not stored yet, in seconds"),
    ("spool_files", "Files in the spool of this machine"),
    ("spool_bytes", "Bytes in the spool of this machine"),
    ("outbox", "Changes whose line is not stored yet"),
    ("quarantine", "Entries nobody could make out"),
    ("astray", "Lines of a month there is no partition for"),
    ("drained", "Lines stored since the house was founded"),
    ("batch", "Number of the last batch"),
    ("size", "Leaves of the trail's tree"),
)
"""What is told of the trail, by its name in app.services.audit.Standing."""


UNSENT = text(
    "SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0) FROM communication"
    " WHERE sent_at IS NULL AND failed_at IS NULL"
)


@health.get("/metrics")
def metrics() -> Response:
    """How the trail and the messages stand, for Prometheus; 403 from elsewhere without WARDBOOK_METRICS_TOKEN."""
    if not _told():
        return Response("The figures of this installation are not open to you.\n", 403, content_type="text/plain")
    registry = CollectorRegistry()
    standing = _standing()
    for name, about in TOLD:
        value = getattr(standing, name)
        if value is not None:
            Gauge(f"wardbook_trail_{name}", about, registry=registry).set(value)
    Gauge("wardbook_trail_redis_up", "Whether the trail's Redis answers", registry=registry).set(
        standing.stream is not None
    )
    Gauge("wardbook_trail_drained_at_seconds", "When the drainer last ran", registry=registry).set(
        standing.drained_at.timestamp()
    )
    with guard.engine().connect() as connection:
        waiting, oldest = connection.execute(UNSENT).one()
    Gauge("wardbook_messages_waiting", "Messages to patients that have not left yet", registry=registry).set(waiting)
    Gauge("wardbook_messages_oldest_seconds", "Age of the oldest of them, in seconds", registry=registry).set(oldest)
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _told() -> bool:
    """Whether whoever asks is told the figures: they have the token, or where there is none, they ask from here."""
    token = current_app.config["METRICS_TOKEN"]
    if not token:
        return request.remote_addr in ("127.0.0.1", "::1")
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(given.encode(), token.encode())


def _standing() -> audit.Standing:
    with guard.acting_as(nobody()):
        return audit.standing(guard.session())


def _database() -> str:
    try:
        with guard.engine().connect() as connection:
            connection.execute(text("SELECT number FROM policy_version"))
    except (SQLAlchemyError, Refusal):
        return "does not answer, or is not migrated"
    return "ok"


def _sessions() -> str:
    try:
        current_app.config["SESSION_REDIS"].ping()
    except redis.RedisError:
        return "does not answer"
    return "ok"


def _trail() -> str:
    try:
        weaknesses = trail.the_trail().weaknesses()
    except redis.RedisError:
        return "does not answer"
    return "; ".join(weaknesses) or "ok"


def register(builder: Any) -> None:
    """Two addresses open to everybody, which say nothing about anybody."""
    del builder
    current_app.register_blueprint(health)
