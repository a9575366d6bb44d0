"""What every test shares: servers, a small hospital, ways to come in, and the rule that on CI nothing is skipped."""

import atexit
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import make_url

from ops.servers import Servers, embedded

MAY_BE_SKIPPED = "needs the shared data"
KEYS = Path(tempfile.mkdtemp(prefix="wardbook-keys-"))
"""Where this run's keys for prescriptions are; every application and database of it shares them."""
atexit.register(shutil.rmtree, KEYS, ignore_errors=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """PostgreSQL, the queue's Redis and the trail's Redis, started at the first test that asks.

    Throw-away ones on free ports, or those DATABASE_URL, REDIS_URL and TRAIL_REDIS_URL name.
    """
    named = Servers(*(os.environ.get(name, "") for name in ("DATABASE_URL", "REDIS_URL", "TRAIL_REDIS_URL")))
    home = Path(tempfile.mkdtemp(prefix="wardbook-test-"))
    home.chmod(0o711)  # the servers of a root-run suite have an account of their own
    try:
        with embedded(
            home,
            need_database=not named.database_url,
            need_redis=not named.redis_url,
            need_trail=not named.trail_redis_url,
            durable=False,
        ) as own:
            yield Servers(
                named.database_url or own.owner_url,
                named.redis_url or own.redis_url,
                named.trail_redis_url or own.trail_redis_url,
            )
    finally:
        shutil.rmtree(home, ignore_errors=True)


# ---- the hospital ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Database:
    """A database of its own with the small hospital in it."""

    url: str
    hospital: Any


def _command(url: str, statement: str) -> None:
    """One statement on the server's own database, outside any transaction."""
    maintenance = make_url(url).set(drivername="postgresql", database="postgres")
    with psycopg.connect(maintenance.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(statement.encode())


_numbers = itertools.count()


@pytest.fixture(scope="session")
def fresh_database(servers: Servers) -> Iterator[Callable[..., str]]:
    """Gives the address of a new database, empty or a copy of another; all of them are dropped at the end."""
    made: list[str] = []

    def make(template: str = "template0") -> str:
        name = f"wb_test_{os.getpid()}_{next(_numbers)}"
        _command(servers.database_url, f"CREATE DATABASE {name} TEMPLATE {template}")
        made.append(name)
        return make_url(servers.database_url).set(database=name).render_as_string(hide_password=False)

    yield make
    for name in made:
        _command(servers.database_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


@pytest.fixture(scope="session", autouse=True)
def seal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the key and the witness of the trail, which this process is connected to."""
    from app import tree
    from app.services import signing

    folder = tmp_path_factory.mktemp("seal")
    tree.connect(folder / "key.pem", f"file:{folder / 'witness'}")
    signing.connect(KEYS, "http://localhost")
    return folder


@pytest.fixture(scope="session")
def migrated(fresh_database: Callable[..., str]) -> str:
    """A database at the newest schema, with nothing in it; only to be copied."""
    from models.migrations import migrate

    url = fresh_database()
    migrate(url)
    return url


@pytest.fixture(scope="session")
def template(servers: Servers, fresh_database: Callable[..., str], migrated: str, spool: Path) -> Database:
    """The small hospital, made once; only to be copied."""
    from app import guard, trail
    from app.services.accounts import seed
    from app.services.note_templates import plant
    from tests import factories

    url = fresh_database(make_url(migrated).database)
    guard.connect(url)
    trail.connect(servers.trail_redis_url, spool)
    seed()
    plant()
    hospital = factories.build()
    guard.engine().dispose()
    return Database(url, hospital)


@pytest.fixture(scope="module")
def database(
    servers: Servers, fresh_database: Callable[..., str], template: Database, spool: Path
) -> Iterator[Database]:
    """This module's own copy of the hospital, with the gate and the trail connected to it."""
    from app import guard, trail

    url = fresh_database(make_url(template.url).database)
    guard.connect(url)
    trail.connect(servers.trail_redis_url, spool)
    yield Database(url, deepcopy(template.hospital))  # a module may add people of its own
    guard.session.remove()
    guard.engine().dispose()


@pytest.fixture
def hospital(database: Database) -> Any:
    """What is in the hospital, by number (tests.factories.Hospital)."""
    return database.hospital


@pytest.fixture
def acting(hospital: Any) -> Callable[[str], AbstractContextManager[Any]]:
    """Act as one of the people by user name: `with acting("nurse"): ...`, with their session in guard.session()."""
    from tests import factories

    return lambda username: factories.acting(hospital.accounts[username])


@pytest.fixture
def savepoint(database: Database) -> Iterator[None]:
    """Whatever a test commits is undone after it: every session works in one outer transaction."""
    from app import guard

    guard.session.remove()
    with guard.engine().connect() as connection, connection.begin() as outer:
        guard.session.configure(bind=connection, join_transaction_mode="create_savepoint")
        try:
            yield
        finally:
            guard.session.remove()
            outer.rollback()
            guard.session.configure(bind=guard.engine(), join_transaction_mode="conditional_savepoint")


@pytest.fixture
def granted(hospital: Any) -> Iterator[Callable[..., None]]:
    """Change what a shipped role grants for one test: `granted("Nurse", Patient=may("read", rows=...), Room=None)`."""
    from app import policy
    from tests import factories

    touched: set[str] = set()

    def change(name: str, **grants: Any) -> None:
        touched.add(name)
        said = {**policy.MATRIX[name], **grants}
        factories.rewrite(hospital, name, {resource: grant for resource, grant in said.items() if grant is not None})

    yield change
    for name in touched:
        factories.rewrite(hospital, name, policy.MATRIX[name])


# ---- the application, and ways to come in ------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What `views.create_app` wants to know."""

    database_url: str
    redis_url: str
    trail_redis_url: str
    spool_directory: Path
    secret_key: str = "for tests only, and long enough to be one"
    production: bool = False
    environment: str = "demo"
    debug: bool = False
    threads: int = 8
    sockets: int = 8
    trusted_proxies: int = 0
    metrics_token: str = ""
    trail_key: Path = Path("/nowhere/trail.key")
    trail_witness: str = "file:/nowhere/trail.witness"
    trail_months: int = 72
    prescription_keys: Path = KEYS
    idle_minutes: int = 15
    session_hours: int = 12
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_client_secret: str = ""
    oidc_name: str = "the hospital's account"
    default_language: str = "en"
    log_level: str = "INFO"
    public_url: str = "http://localhost"
    mail_from: str = ""


@pytest.fixture(scope="module")
def app(servers: Servers, database: Database, spool: Path) -> Flask:
    """The application as it is served: CSRF, limits and error pages are all on."""
    from app import guard
    from views import branches, create_app

    guard.session.remove()
    guard.engine().dispose()  # the application opens one of its own
    redis.Redis.from_url(servers.redis_url).flushdb()
    branches.forget()
    return create_app(Settings(database.url, servers.redis_url, servers.trail_redis_url, spool))


class Forms(HTMLParser):
    """What a browser would send for the forms of a page if nobody typed anything."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.forms: list[dict[str, Any]] = []
        self.select: str | None = None
        self.several = False
        self.feed(page)

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        said = dict(pairs)
        name = said.get("name") or ""
        if tag == "form":
            self.forms.append({})
        elif not self.forms:
            return
        elif tag == "input" and name and said.get("type") != "file":
            if said.get("type") not in ("checkbox", "radio") or "checked" in said:
                self.forms[-1][name] = said.get("value") or ""
        elif tag == "textarea" and name:
            self.forms[-1][name] = ""
        elif tag == "select":
            self.select, self.several = name, "multiple" in said
        elif tag == "option" and self.select:
            value, form = said.get("value") or "", self.forms[-1]
            if self.several and "selected" in said:
                form.setdefault(self.select, []).append(value)
            elif not self.several and (self.select not in form or "selected" in said):
                form[self.select] = value

    def handle_endtag(self, tag: str) -> None:
        if tag == "select":
            self.select = None


def filled(page: str) -> dict[str, Any]:
    """The fields of a page's longest form that is sent. Raises AssertionError where there is none."""
    forms = [form for form in Forms(page).forms if "csrf_token" in form]
    assert forms, "there is no form with a CSRF token in this page"
    return max(forms, key=len)


def csrf_of(page: str) -> str:
    """The token in a page's form. Raises AssertionError where there is none."""
    return str(filled(page)["csrf_token"])


class Browser(FlaskClient):
    """A browser: keeps cookies, and sends the forms it was shown."""

    def page(self, path: str, **options: Any) -> str:
        """What a page says. Raises AssertionError where it is not shown."""
        answer = self.get(path, **options)
        assert answer.status_code == 200, f"{path} answered {answer.status_code}"
        return answer.text

    def submit(self, path: str, fields: dict[str, Any] | None = None, **options: Any) -> Any:
        """Open the form at a path, fill it in and send it, with whatever it was prefilled with."""
        data = {**filled(self.get(path).text), **(fields or {})}
        return self.post(path, data=data, **options)


@pytest.fixture
def browser(app: Flask) -> Callable[[], Browser]:
    """A new browser nobody has signed in with, at an address of its own (sign-ins are counted by address)."""

    def new() -> Browser:
        number = next(_numbers)
        client = Browser(app, app.response_class, use_cookies=True)
        client.environ_base["REMOTE_ADDR"] = f"10.9.{number // 250}.{number % 250 + 1}"
        return client

    return new


@pytest.fixture
def client_as(browser: Callable[[], Browser]) -> Callable[[str], Browser]:
    """A browser somebody has signed in with, through the form."""
    from tests.factories import PASSWORD

    def sign_in(username: str, password: str = PASSWORD) -> Browser:
        client = browser()
        answer = client.submit("/login/", {"username": username, "password": password})
        assert answer.status_code == 302, "the sign-in was refused"
        return client

    return sign_in


@pytest.fixture
def token_for(browser: Callable[[], Browser]) -> Callable[..., str]:
    """A token as programs get it: `token_for("doctor")`, or `token_for("doctor", "refresh_token")`."""
    from tests.factories import PASSWORD

    def get(username: str, kind: str = "access_token", password: str = PASSWORD) -> str:
        body = {"username": username, "password": password, "provider": "db", "refresh": True}
        answer = browser().post("/api/v1/security/login", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.get_json()[kind])

    return get


@pytest.fixture
def api_as(browser: Callable[[], Browser], token_for: Callable[..., str]) -> Callable[[str], FlaskClient]:
    """A program that carries somebody's token."""

    def carry(username: str) -> FlaskClient:
        client = browser()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token_for(username)}"
        return client

    return carry


def spoken(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry on its way into the trail under its full names."""
    from app import trail

    def part(found: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
        return {name: found.get(short) for name, short in names.items()}

    return {"agent": part(entry["agent"], trail.AGENT), "events": [part(line, trail.LINE) for line in entry["events"]]}


class TrailLines:
    """The write-ahead stream, from the moment the test began."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)
        self.forget()

    def forget(self) -> None:
        """Count from here on."""
        last = self.redis.xrevrange("audit:v1", count=1)
        self.since = b"(" + last[0][0] if last else b"-"

    def entries(self) -> list[dict[str, Any]]:
        """What was added since: {"agent": ..., "events": [...]} each, one a request."""
        return [spoken(msgspec.json.decode(fields[b"e"])) for _, fields in self.redis.xrange("audit:v1", self.since)]

    def events(self) -> list[dict[str, Any]]:
        """The lines in them."""
        return [event for entry in self.entries() for event in entry["events"]]


@pytest.fixture
def trail_lines(servers: Servers) -> TrailLines:
    """Lines of the trail, from the moment the test began."""
    return TrailLines(servers.trail_redis_url)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI a skipped test is a failed one: it has to run somewhere."""
    report = yield
    if report.skipped and os.environ.get("WARDBOOK_CI") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(MAY_BE_SKIPPED):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, and nothing may be skipped here: {reason}"
    return report
