"""Every setting of Wardbook, read once from the environment; `Settings` is the list, with one line on each."""

import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parseaddr
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

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
    owner_url: str = _setting(
        "WARDBOOK_OWNER_URL",
        "",
        "The same database as its owner, for migrations and archives; empty: DATABASE_URL",
        secret=True,
    )
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
    threads: int = _setting("WARDBOOK_THREADS", 16, "Requests one web process answers at once")
    sockets: int = _setting(
        "WARDBOOK_SOCKETS", 200, "Open pages one web process keeps up to date; each takes a thread besides those"
    )
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
    trail_key: Path = _setting(
        "WARDBOOK_TRAIL_KEY", None, "Ed25519 key the trail is signed with, made at first use; empty: home/trail.key"
    )
    prescription_keys: Path = _setting(
        "WARDBOOK_PRESCRIPTION_KEYS",
        None,
        "Folder for the keys prescriptions are signed with, shared by all web machines; empty: home/keys",
    )
    trail_months: int = _setting(
        "WARDBOOK_TRAIL_MONTHS", 72, "Whole months of the trail that stay in the database; older ones may be archived"
    )
    trail_witness: str = _setting(
        "WARDBOOK_TRAIL_WITNESS",
        "",
        "Where checkpoints go besides the database: file:/path, syslog://host:port, smtp://host:port/mailbox; "
        "empty: a file in home",
    )
    log_level: str = _setting("WARDBOOK_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR")
    metrics_token: str = _setting(
        "WARDBOOK_METRICS_TOKEN", "", "What /metrics asks of whoever scrapes it; empty: this machine only", secret=True
    )
    idle_minutes: int = _setting("WARDBOOK_IDLE_MINUTES", 15, "Minutes without a click until a session ends")
    session_hours: int = _setting("WARDBOOK_SESSION_HOURS", 12, "Hours until a session ends in any case")
    oidc_issuer: str = _setting(
        "WARDBOOK_OIDC_ISSUER", "", "OpenID provider people may sign in with as well; empty: none"
    )
    oidc_client_id: str = _setting("WARDBOOK_OIDC_CLIENT_ID", "", "What the provider calls this installation")
    oidc_client_secret: str = _setting("WARDBOOK_OIDC_CLIENT_SECRET", "", "What proves it to the provider", secret=True)
    oidc_name: str = _setting("WARDBOOK_OIDC_NAME", "the hospital's account", "What people call that account")
    default_language: str = _setting("WARDBOOK_LANGUAGE", "en", "Language of a visitor who has chosen none")
    smtp: str = _setting(
        "WARDBOOK_SMTP",
        "",
        "Takes e-mail to patients: smtp://user:password@host:587, or smtps://; empty: files in home/outbox",
        secret=True,
    )
    mail_from: str = _setting(
        "WARDBOOK_MAIL_FROM", "", 'Who patients\' e-mail is from, such as "Hospital Norte <visits@example.org>"'
    )
    sms_url: str = _setting(
        "WARDBOOK_SMS_URL", "", "Gateway that takes SMS as JSON, by POST; empty: files in home/outbox"
    )
    sms_token: str = _setting("WARDBOOK_SMS_TOKEN", "", "Bearer token the gateway asks for", secret=True)
    reminder_hours: str = _setting(
        "WARDBOOK_REMINDER_HOURS", "48,2", "Hours before a visit at which its patient is reminded; 0 for never"
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings. Raises ConfigurationError at the first value that makes no sense."""
        texts = {field.name: environ.get(field.metadata["variable"], "").strip() for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {name: text for name, text in texts.items() if text}
        _choose(given, "environment", ENVIRONMENTS)
        _read_flag(given, "debug")
        given["home"] = Path(given.get("home", PROJECT / "var")).expanduser().absolute()
        given["spool_directory"] = Path(given.get("spool_directory", given["home"] / "spool")).expanduser().absolute()
        given["trail_key"] = Path(given.get("trail_key", given["home"] / "trail.key")).expanduser().absolute()
        given["prescription_keys"] = (
            Path(given.get("prescription_keys", given["home"] / "keys")).expanduser().absolute()
        )
        given.setdefault("trail_witness", f"file:{quote(str(given['home'] / 'trail.witness'))}")
        if not given["trail_witness"].startswith(("file:/", "syslog://", "smtp://")):
            raise ConfigurationError(
                "WARDBOOK_TRAIL_WITNESS must look like file:/path, syslog://host:514 or smtp://host:25/mailbox@example.org."
            )
        for name in ("database_url", "owner_url"):
            if name in given:
                given[name] = _postgres_url(given[name], _variable(name))
        for name in ("redis_url", "trail_redis_url"):
            _check_redis_url(given, name)
        for name, low, high in (
            ("port", 1, 65535),
            ("workers", 1, 64),
            ("threads", 1, 1024),
            ("sockets", 1, 4096),
            ("trusted_proxies", 0, 8),
            ("idle_minutes", 1, 24 * 60),
            ("trail_months", 1, 1200),
            ("session_hours", 1, 24 * 7),
        ):
            _read_number(given, name, low, high)
        if "log_level" in given:
            given["log_level"] = given["log_level"].upper()
        _choose(given, "log_level", LOG_LEVELS)
        if (url := given.get("public_url")) is not None:
            if not url.startswith(("http://", "https://")):
                raise ConfigurationError(f"WARDBOOK_URL is {url!r} and must begin with http:// or https://.")
            given["public_url"] = url.rstrip("/")
        _check_oidc(given)
        _check_messages(given)
        settings = cls(**given)
        if not settings.public_url:
            shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "[::]") else settings.host  # noqa: S104
            settings = dataclasses.replace(settings, public_url=f"http://{shown}:{settings.port}")
        return settings

    @property
    def production(self) -> bool:
        return self.environment == "production"

    @property
    def reminders(self) -> tuple[int, ...]:
        """The hours of `reminder_hours`; none for never."""
        return tuple(sorted({int(text) for text in self.reminder_hours.split(",")} - {0}))

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
        if not _private(self.public_url) or (self.public_url.startswith("http://") and not _loopback(self.host)):
            reasons.append(
                "WARDBOOK_URL does not begin with https://, so passwords would cross the network in the open: "
                "put a server with a certificate in front and set WARDBOOK_URL to its https:// address."
            )
        if self.oidc_issuer and not _private(self.oidc_issuer):
            reasons.append("WARDBOOK_OIDC_ISSUER does not begin with https://: use the provider's https:// address.")
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


def _loopback(host: str) -> bool:
    """Whether a host is this machine, which nobody listens in on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _private(url: str) -> bool:
    """Whether what is sent to an address stays between the two."""
    return url.startswith("https://") or _loopback(urlsplit(url).hostname or "")


def _check_oidc(given: dict[str, Any]) -> None:
    """Raises ConfigurationError where an OpenID provider is named by halves."""
    names = ("oidc_issuer", "oidc_client_id", "oidc_client_secret")
    missing = [_variable(name) for name in names if name not in given]
    if missing and len(missing) < len(names):
        there = next(_variable(name) for name in names if name in given)
        raise ConfigurationError(f"{there} is set, so {' and '.join(missing)} must be set as well.")
    issuer = given.get("oidc_issuer", "https://")
    if not issuer.startswith(("http://", "https://")):
        raise ConfigurationError(f"WARDBOOK_OIDC_ISSUER is {issuer!r} and must begin with https://.")


def _check_messages(given: dict[str, Any]) -> None:
    """Raises ConfigurationError where messages to patients could not be sent, or would cross a network in the open."""
    smtp = urlsplit(given.get("smtp", ""))
    if "smtp" in given and (smtp.scheme not in ("smtp", "smtps") or not smtp.hostname):
        raise ConfigurationError("WARDBOOK_SMTP must look like smtp://user:password@host:587 or smtps://host:465.")
    address = parseaddr(given.get("mail_from", ""))[1]
    if "mail_from" in given and not re.fullmatch(r"[^@\s]+@[^@\s]+", address):
        raise ConfigurationError('WARDBOOK_MAIL_FROM must look like "Hospital Norte <visits@example.org>".')
    if "smtp" in given and "mail_from" not in given:
        raise ConfigurationError("WARDBOOK_SMTP is set, so WARDBOOK_MAIL_FROM must be set as well.")
    url = given.get("sms_url", "https://")
    if not url.startswith(("http://", "https://")) or not _private(url):
        raise ConfigurationError("WARDBOOK_SMS_URL must begin with https://: patients' numbers are sent there.")
    hours = given.get("reminder_hours", "0").replace(" ", "").split(",")
    if not all(text.isascii() and text.isdigit() and int(text) <= 24 * 28 for text in hours) or len(hours) > 5:
        raise ConfigurationError("WARDBOOK_REMINDER_HOURS must be up to five numbers of hours such as 48,2.")


def _postgres_url(url: str, variable: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ConfigurationError(
            f"{variable} must look like postgresql://user:password@host:5432/wardbook; only PostgreSQL will do."
        )
    return f"postgresql+psycopg://{rest}"


def _check_redis_url(given: dict[str, Any], name: str) -> None:
    if name in given and not given[name].startswith(("redis://", "rediss://", "unix://")):
        raise ConfigurationError(f"{_variable(name)} must look like redis://:password@host:6379/0.")
