"""HOW IT IS SHOWN. Imports app and models; holds no rules, and no SQL beyond selecting objects."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import redis
from flask import Flask, g, request, url_for
from flask_appbuilder import AppBuilder
from flask_talisman import Talisman
from werkzeug.middleware.proxy_fix import ProxyFix

from app import guard, trail
from app.logs import speak
from app.services import credentials
from app.services.invitations import connect as connect_links
from app.services.signing import connect as connect_keys
from views import errors, packages, security, sessions, sockets, speech, viewing

HERE = Path(__file__).parent


class Settings(Protocol):
    """What the application is told from outside; `config.py` explains each."""

    @property
    def production(self) -> bool: ...
    @property
    def environment(self) -> str: ...
    @property
    def debug(self) -> bool: ...
    @property
    def database_url(self) -> str: ...
    @property
    def redis_url(self) -> str: ...
    @property
    def trail_redis_url(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def spool_directory(self) -> Path: ...
    @property
    def threads(self) -> int: ...
    @property
    def sockets(self) -> int: ...
    @property
    def trusted_proxies(self) -> int: ...
    @property
    def metrics_token(self) -> str: ...
    @property
    def trail_key(self) -> Path: ...
    @property
    def trail_witness(self) -> str: ...
    @property
    def trail_months(self) -> int: ...
    @property
    def prescription_keys(self) -> Path: ...
    @property
    def idle_minutes(self) -> int: ...
    @property
    def session_hours(self) -> int: ...
    @property
    def oidc_issuer(self) -> str: ...
    @property
    def oidc_client_id(self) -> str: ...
    @property
    def oidc_client_secret(self) -> str: ...
    @property
    def oidc_name(self) -> str: ...
    @property
    def default_language(self) -> str: ...
    @property
    def log_level(self) -> str: ...
    @property
    def public_url(self) -> str: ...
    @property
    def mail_from(self) -> str: ...


def create_app(settings: Settings) -> Flask:
    """The web application, ready to serve.

    Raises RuntimeError, in a sentence, where the trail's Redis could lose what it has acknowledged.
    """
    speak(settings.log_level)
    guard.connect(settings.database_url, pool_size=settings.threads, max_overflow=4, pool_timeout=10)
    weaknesses = trail.connect(settings.trail_redis_url, settings.spool_directory).weaknesses()
    if weaknesses:
        raise RuntimeError("The trail's Redis could lose what it has acknowledged: " + "; ".join(weaknesses) + ".")

    app = Flask("wardbook", static_folder=str(HERE / "static"), template_folder=str(HERE / "templates"))
    app.config.update(configuration(settings))
    app.extensions["live"] = sockets.install(app, threads=settings.threads, most=settings.sockets)
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]

    app.session_interface = sessions.Sessions(app, app.config["SESSION_REDIS"])
    credentials.connect(settings.redis_url, settings.secret_key)
    connect_links(settings.public_url, settings.secret_key, settings.mail_from)
    connect_keys(settings.prescription_keys, settings.public_url)
    app.before_request(number_the_request)
    app.before_request(security.bind)
    app.before_request(viewing.only_look)
    security.CookieOnlyCSRF(app)
    errors.register(app)
    with app.app_context():
        builder = AppBuilder(security_manager_class=security.Security, indexview=_home(), update_perms=False)
        builder.init_app(app, guard.session)
        _register(builder)
    speech.install(app)
    packages.install(app)
    app.teardown_request(security.unbind)
    app.context_processor(spoken)
    app.jinja_env.globals["static"] = static
    app.jinja_env.globals["idle_seconds"] = settings.idle_minutes * 60
    https = settings.public_url.startswith("https://")
    Talisman(
        app,
        force_https=False,
        strict_transport_security=https,
        session_cookie_secure=https,
        session_cookie_samesite="Lax",
        frame_options="DENY",
        referrer_policy="same-origin",
        content_security_policy={
            "default-src": "'self'",
            "connect-src": "'self'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": ["'self'", "data:"],
            "object-src": "'none'",
            "base-uri": "'self'",
            "form-action": "'self'",
            "frame-ancestors": "'none'",
        },
        content_security_policy_nonce_in=["script-src", "style-src"],
    )
    app.after_request(keep_private)
    app.after_request(security.recorded)
    return app


def configuration(settings: Settings) -> dict[str, Any]:
    """Flask's and its extensions' settings, from ours."""
    return {
        "APP_NAME": "Wardbook",
        "SECRET_KEY": settings.secret_key,
        "DEBUG": settings.debug,
        "DEMO": settings.environment == "demo",
        "MAX_CONTENT_LENGTH": 4 * 1024 * 1024,
        "MAX_FORM_MEMORY_SIZE": 1024 * 1024,
        "SQLALCHEMY_DATABASE_URI": settings.database_url,
        "FAB_UPDATE_PERMS": False,
        "FAB_CREATE_DB": False,
        "FAB_API_SWAGGER_UI": True,
        "FAB_API_MAX_PAGE_SIZE": 100,
        "FAB_PASSWORD_COMPLEXITY_ENABLED": False,
        "FAB_SECURITY_SIGNALS_ENABLED": False,
        "LANGUAGES": {"en": {"flag": "gb", "name": "English"}},
        "BABEL_DEFAULT_LOCALE": settings.default_language,
        "BABEL_TRANSLATION_DIRECTORIES": str(HERE.parent / "translations"),
        "SESSION_REDIS": redis.Redis.from_url(settings.redis_url, socket_timeout=2, socket_connect_timeout=2),
        "PERMANENT_SESSION_LIFETIME": timedelta(minutes=settings.idle_minutes),
        "SESSION_HOURS": settings.session_hours,
        # A browser takes a cookie of this name only from https, for this very host and all of it.
        "SESSION_COOKIE_NAME": "__Host-wardbook" if settings.public_url.startswith("https://") else "wardbook",
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "WTF_CSRF_TIME_LIMIT": None,
        "JWT_ACCESS_TOKEN_EXPIRES": timedelta(minutes=15),
        "JWT_REFRESH_TOKEN_EXPIRES": timedelta(hours=settings.session_hours),
        "JWT_SECRET_KEY": hashlib.sha256(f"jwt:{settings.secret_key}".encode()).hexdigest(),
        "JWT_ALGORITHM": "HS256",
        "RATELIMIT_ENABLED": False,  # tries are counted by app/services/credentials.py, for every channel alike
        "AUTH_RATE_LIMITED": False,
        "METRICS_TOKEN": settings.metrics_token,
        "TRAIL_KEY": settings.trail_key,
        "TRAIL_WITNESS": settings.trail_witness,
        "TRAIL_MONTHS": settings.trail_months,
        "OIDC": {
            "issuer": settings.oidc_issuer,
            "client_id": settings.oidc_client_id,
            "client_secret": settings.oidc_client_secret,
            "name": settings.oidc_name,
        }
        if settings.oidc_issuer
        else None,
        "TEMPLATES_AUTO_RELOAD": settings.debug,
    }


def _home() -> Any:
    from views.home import Home

    return Home


def _register(builder: AppBuilder) -> None:
    """Every screen and every resource of the API."""
    from views import (
        accounts,
        api,
        appointments,
        audit,
        calendar,
        catalogue,
        catalogue_edit,
        critical,
        desk,
        emergencies,
        encounters,
        formulary,
        health,
        hl7,
        home,
        invitations,
        laboratory,
        merging,
        note_templates,
        notes,
        on_call,
        organization,
        papers,
        patients,
        pharmacy,
        prescribing,
        results,
        roles,
        scheduling,
        series,
        unreached,
        verify,
        waitlist,
        watch,
    )

    for module in (
        health,
        home,
        accounts,
        patients,
        merging,
        organization,
        audit,
        watch,
        emergencies,
        encounters,
        api,
        appointments,
        calendar,
        invitations,
        desk,
        scheduling,
        series,
        unreached,
        waitlist,
        laboratory,
        catalogue,
        catalogue_edit,
        critical,
        on_call,
        hl7,
        results,
        roles,
        viewing,
        formulary,
        prescribing,
        notes,
        note_templates,
        pharmacy,
        papers,
        verify,
    ):
        module.register(builder)


def number_the_request() -> None:
    """A number by which a request can be asked about."""
    g.request_id = secrets.token_hex(10)


def keep_private(response: Any) -> Any:
    """Pages about people are kept by no cache on the way, nor by the browser."""
    if request.endpoint not in security.UNBOUND:
        response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Request-Id"] = g.get("request_id", "")
    return response


_digests: dict[str, str] = {}


def static(path: str) -> str:
    """The address of a static file, which changes whenever its content does."""
    if path not in _digests:
        file = HERE / "static" / path
        _digests[path] = hashlib.sha256(file.read_bytes()).hexdigest()[:10] if file.exists() else ""
    return url_for("static", filename=path, v=_digests[path])


def spoken() -> dict[str, Any]:
    """What every template may speak of."""
    from views.home import page_context

    return page_context()
