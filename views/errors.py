"""Refusals and faults as answers: a page for people, JSON for programs, the details only in the log."""

from __future__ import annotations

from typing import Any

import structlog
from flask import Flask, g, jsonify, make_response, redirect, render_template, request, url_for
from flask.globals import request_ctx
from flask.sessions import NullSession, SecureCookieSession
from flask_babel import gettext
from flask_limiter.errors import RateLimitExceeded
from flask_wtf.csrf import CSRFError
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException, InternalServerError
from werkzeug.wrappers import Response

from app import guard
from app.actor import acting
from app.errors import (
    Forbidden,
    NotFound,
    NotSignedIn,
    OutOfService,
    Refusal,
    TooLarge,
    TooManyTries,
    Ungated,
    from_database,
)
from views.base import SignInFirst

log = structlog.get_logger(__name__)

TITLES = {
    400: "That could not be understood",
    401: "Please sign in",
    403: "Not open to you",
    404: "Nothing here",
    405: "Not possible here",
    409: "Somebody was faster",
    413: "Too large",
    415: "That could not be understood",
    422: "Please check what you entered",
    429: "A little slower, please",
    500: "Something went wrong",
    503: "Back in a moment",
}
SENTENCES = {
    400: "The request was incomplete. Go back and try again.",
    404: NotFound.sentence,
    405: "This page does not take that kind of request.",
    413: TooLarge.sentence,
    429: "There were too many tries from here. Please wait a minute and try again.",
    500: "This is our fault, not yours. Nothing was saved. It has been noted under the number below.",
}


class BadRequest(Refusal):
    """What came could not be read at all."""

    status = 400
    sentence = SENTENCES[400]


def answer(error: Refusal | HTTPException) -> Response:
    """The answer a refusal amounts to."""
    if isinstance(error, Refusal):
        status, sentence, field = error.status, str(error), error.field
        name = type(error).__name__
    else:
        status = error.code or 500
        sentence, field = SENTENCES.get(status, SENTENCES[500] if status >= 500 else SENTENCES[400]), None
        if status == 403:
            sentence = Forbidden.sentence
        name = type(error).__name__
    sentence = gettext(sentence)
    if (status >= 400 and request.path.startswith("/api/")) or request.path.endswith(".json"):
        body: dict[str, Any] = {"error": name, "message": sentence, "request_id": g.get("request_id")}
        if field:
            body["field"] = field
        response = make_response(jsonify(body), status)
    else:
        suggestions = [(gettext("Start page"), "/")]
        if status in (404, 403):
            suggestions.append((gettext("Find a patient"), "/patients/"))
        response = make_response(
            render_template(
                "error.html",
                status=status,
                title=gettext(TITLES.get(status, TITLES[500])),
                sentence=sentence,
                suggestions=suggestions,
                reference=g.get("request_id"),
                bare=status == 503,
            ),
            status,
        )
    if status == 503:
        response.headers["Retry-After"] = "5"
    if isinstance(error, TooManyTries):
        response.headers["Retry-After"] = str(error.seconds)
    return response


def refused(refusal: Refusal) -> Response:
    """A refusal nobody nearer has answered."""
    guard.session.rollback()
    log.info("refused", error=type(refusal).__name__, endpoint=request.endpoint)
    return answer(refusal)


def to_sign_in(_error: SignInFirst) -> Any:
    """Send a browser to the sign-in page and back afterwards."""
    if request.path.startswith("/api/") or request.path.endswith(".json"):
        return answer(NotSignedIn())
    return redirect(url_for("SignInView.login", next=request.full_path.rstrip("?")))


def forged(_error: CSRFError) -> Response:
    """A form without its token: an old page, or somebody else's."""
    at_work = acting()
    if at_work is not None:
        at_work.seen.refused.append((request.method, request.endpoint or "", "CSRFError"))
    return answer(
        BadRequest(gettext("This page was open for too long. Go back, reload it, and send the form once more."))
    )


def broken(error: Exception) -> Response:
    """A fault: what it means if we know, and otherwise a number to ask about. Never its text."""
    original = getattr(error, "original_exception", None) or error
    _without_session()
    refusal: Refusal | None = None
    if isinstance(original, Refusal):
        refusal = original
    elif isinstance(original, SQLAlchemyError):
        refusal = from_database(original)
        guard.session.rollback()
    elif isinstance(original, RedisError):
        refusal = OutOfService()
    log.error(
        "fault",
        error=type(original).__name__,
        endpoint=request.endpoint,
        request_id=g.get("request_id"),
        where=_where(original),
    )
    return answer(refusal or InternalServerError())


class Unkept(NullSession):
    """A session for one answer, kept nowhere."""

    __setitem__ = SecureCookieSession.__setitem__  # type: ignore[assignment]
    __delitem__ = SecureCookieSession.__delitem__  # type: ignore[assignment]
    clear = SecureCookieSession.clear  # type: ignore[assignment]
    pop = SecureCookieSession.pop
    popitem = SecureCookieSession.popitem  # type: ignore[assignment]
    update = SecureCookieSession.update  # type: ignore[assignment]
    setdefault = SecureCookieSession.setdefault


def _without_session() -> None:
    """Let the answer be made where the session could not even be opened, as when its Redis is away."""
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    if context._session is None:
        context._session = Unkept()


def _where(error: BaseException) -> list[str]:
    """File and line of the last frames, without any value."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/', 2)[-1]}:{trace.tb_lineno}:{code.co_name}")
        trace = trace.tb_next
    return frames[-8:]


def http(error: HTTPException) -> Any:
    """What Werkzeug refuses by itself; a fault before the request was under way comes by here too."""
    if getattr(error, "original_exception", None) is not None:
        return broken(error)
    if error.code is None or error.code < 400:
        return error
    return answer(error)


def register(app: Flask) -> None:
    """Answer everything that can go wrong."""
    app.register_error_handler(Refusal, refused)
    app.register_error_handler(SignInFirst, to_sign_in)
    app.register_error_handler(CSRFError, forged)
    app.register_error_handler(RateLimitExceeded, http)
    app.register_error_handler(HTTPException, http)
    app.register_error_handler(SQLAlchemyError, broken)
    app.register_error_handler(RedisError, broken)
    app.register_error_handler(Exception, broken)
    _ = Ungated
