"""Whether this process is alive, and whether it can do its work."""

from __future__ import annotations

from typing import Any

import redis
from flask import Blueprint, current_app, jsonify
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app import guard, trail
from app.errors import Refusal

health = Blueprint("health", __name__)


@health.get("/healthz")
def healthz() -> Any:
    """Alive."""
    return jsonify(status="ok")


@health.get("/readyz")
def readyz() -> Any:
    """Ready: database, sessions and trail all answer; otherwise 503 and which of them does not."""
    checks = {"database": _database, "sessions": _sessions, "trail": _trail}
    state = {name: check() for name, check in checks.items()}
    ready = all(word == "ok" for word in state.values())
    return jsonify(status="ready" if ready else "not ready", **state), 200 if ready else 503


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
