"""Every setting of Wardbook, read once from the environment; `Settings` is the list, with one line on each."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PROJECT: Final = Path(__file__).resolve().parent
ENVIRONMENTS: Final = ("demo", "production")
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
SECRET_KEY_LENGTH: Final = 32


class ConfigurationError(Exception):
    """A setting Wardbook cannot work with; the text is one sentence naming it and the remedy."""


def _setting(variable: str, default: Any, about: str, *, secret: bool = False) -> Any:
    return dataclasses.field(
        default=default, repr=not secret, metadata={"variable": variable, "about": about, "secret": secret}
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What this installation is told from outside.  An empty address means: bring a server of our own."""

    environment: str = _setting("WARDBOOK_ENV", "demo", "demo (made-up patients, known passwords) or production")
    debug: bool = _setting("WARDBOOK_DEBUG", False, "Show errors in the browser; never in production")
    home: Path = _setting("WARDBOOK_HOME", PROJECT / "var", "Folder for the database, logs, secrets and spool")
    database_url: str = _setting("DATABASE_URL", "", "PostgreSQL 18 or newer; empty: embedded", secret=True)
    redis_url: str = _setting("REDIS_URL", "", "Queues, sessions, cache and events; empty: embedded", secret=True)
    trail_redis_url: str = _setting(
        "TRAIL_REDIS_URL",
        "",
        "The audit trail's own server, syncing every write; empty: embedded",
        secret=True,
    )
    host: str = _setting("HOST", "127.0.0.1", "Address the web server listens on")
    port: int = _setting("PORT", 8080, "Port the web server listens on")
    public_url: str = _setting("WARDBOOK_URL", "", "Address people type, for links and QR codes; empty: host and port")
    workers: int = _setting("WARDBOOK_WORKERS", 2, "Web processes")
    threads: int = _setting("WARDBOOK_THREADS", 16, "Threads of one web process; an open socket keeps one")
    trusted_proxies: int = _setting(
        "WARDBOOK_TRUSTED_PROXIES", 0, "Proxies of ours in front, whose X-Forwarded headers are believed"
    )
    secret_key: str = _setting(
        "WARDBOOK_SECRET_KEY",
        "",
        "Signs sessions and tokens; empty in a demo: made once, kept in home",
        secret=True,
    )
    spool_directory: Path = _setting("WARDBOOK_SPOOL", None, "Files on their way in or out; empty: home/spool")
    log_level: str = _setting("WARDBOOK_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR")
    idle_minutes: int = _setting("WARDBOOK_IDLE_MINUTES", 15, "Minutes without a click until a session ends")
    default_language: str = _setting("WARDBOOK_LANGUAGE", "en", "Language of a visitor who has chosen none")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings. Raises ConfigurationError at the first value that makes no sense."""
        texts = {field.name: environ.get(field.metadata["variable"], "").strip() for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {name: text for name, text in texts.items() if text}
        _choose(given, "environment", ENVIRONMENTS)
        _read_flag(given, "debug")
        given["home"] = Path(given.get("home", PROJECT / "var")).expanduser().absolute()
        given["spool_directory"] = Path(given.get("spool_directory", given["home"] / "spool")).expanduser().absolute()
        if "database_url" in given:
            given["database_url"] = _postgres_url(given["database_url"])
        for name in ("redis_url", "trail_redis_url"):
            _check_redis_url(given, name)
        for name, low, high in (
            ("port", 1, 65535),
            ("workers", 1, 64),
            ("threads", 1, 1024),
            ("trusted_proxies", 0, 8),
            ("idle_minutes", 1, 24 * 60),
        ):
            _read_number(given, name, low, high)
        if "log_level" in given:
            given["log_level"] = given["log_level"].upper()
        _choose(given, "log_level", LOG_LEVELS)
        if (url := given.get("public_url")) is not None:
            if not url.startswith(("http://", "https://")):
                raise ConfigurationError(f"WARDBOOK_URL is {url!r} and must begin with http:// or https://.")
            given["public_url"] = url.rstrip("/")
        settings = cls(**given)
        if not settings.public_url:
            shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "[::]") else settings.host  # noqa: S104
            settings = dataclasses.replace(settings, public_url=f"http://{shown}:{settings.port}")
        return settings

    @property
    def production(self) -> bool:
        return self.environment == "production"

    def refusals(self) -> list[str]:
        """Why these settings may not go into production, one sentence each; a demo may run with all of them."""
        if not self.production:
            return []
        reasons = []
        if self.debug:
            reasons.append("WARDBOOK_DEBUG is on, which shows patients' records in error pages: unset it.")
        if not self.secret_key:
            reasons.append(
                "WARDBOOK_SECRET_KEY is not set: give production a key of its own, "
                "for example from `python3 -c 'import secrets; print(secrets.token_hex(32))'`."
            )
        elif len(self.secret_key) < SECRET_KEY_LENGTH or len(set(self.secret_key)) < 10:
            reasons.append(
                f"WARDBOOK_SECRET_KEY can be guessed: use {SECRET_KEY_LENGTH} or more random characters, "
                "for example from `python3 -c 'import secrets; print(secrets.token_hex(32))'`."
            )
        return reasons

    def to_environment(self) -> dict[str, str]:
        """The variables that make `from_environment` in another process give these very settings."""
        return {field.metadata["variable"]: _as_text(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _as_text(value: object) -> str:
    return ("1" if value else "") if isinstance(value, bool) else str(value)


def _variable(name: str) -> str:
    variable: str = Settings.__dataclass_fields__[name].metadata["variable"]
    return variable


def _choose(given: dict[str, Any], name: str, allowed: tuple[str, ...]) -> None:
    if name in given and given[name] not in allowed:
        raise ConfigurationError(f"{_variable(name)} is {given[name]!r} and must be one of {', '.join(allowed)}.")


def _read_flag(given: dict[str, Any], name: str) -> None:
    if name not in given:
        return
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    if given[name].lower() not in words:
        raise ConfigurationError(f"{_variable(name)} is {given[name]!r} and must be 1 or 0.")
    given[name] = words[given[name].lower()]


def _read_number(given: dict[str, Any], name: str, low: int, high: int) -> None:
    if name not in given:
        return
    text = given[name]
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise ConfigurationError(f"{_variable(name)} is {text!r} and must be a whole number from {low} to {high}.")
    given[name] = int(text)


def _postgres_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ConfigurationError(
            "DATABASE_URL must look like postgresql://user:password@host:5432/wardbook; only PostgreSQL will do."
        )
    return f"postgresql+psycopg://{rest}"


def _check_redis_url(given: dict[str, Any], name: str) -> None:
    if name in given and not given[name].startswith(("redis://", "rediss://", "unix://")):
        raise ConfigurationError(f"{_variable(name)} must look like redis://:password@host:6379/0.")
