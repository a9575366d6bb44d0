"""The trail watched: how it stands, whether it is whole, who is alarmed, and what it costs when all is well."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from rq import SimpleWorker
from rq.serializers import JSONSerializer
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from app import guard, trail, tree
from app.actor import service
from app.errors import Conflict, Forbidden
from app.services import checks
from jobs import base
from jobs import trail as drainer
from jobs.relay import relay
from jobs.verify import check, daily
from models.audit import AuditCheck
from models.base import now
from ops.servers import Servers
from tests import factories
from tests.conftest import Browser, Database, csrf_of
from views.watch import watchman

Acting = Callable[[str], AbstractContextManager[Any]]
ClientAs = Callable[[str], Browser]
PROJECT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("watched")


def sql(*statements: str, **values: Any) -> list[Any]:
    """Something done or asked past the application, as the owner of the database would."""
    with guard.engine().begin() as connection:
        for statement in statements:
            found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


@pytest.fixture(scope="module")
def sealed(seal: Path, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A key and a witness of this module's own, as the database is its own."""
    folder = tmp_path_factory.mktemp("watch")
    tree.connect(folder / "key.pem", f"file:{folder / 'witness'}")
    yield folder
    tree.connect(seal / "key.pem", f"file:{seal / 'witness'}")


@pytest.fixture
def watched(sealed: Path, database: Database) -> Iterator[None]:
    """All is well, nobody has checked anything, and nobody remembers otherwise."""
    drainer.drain()
    forget()
    watchman.forget()
    yield
    forget()
    watchman.forget()


def forget() -> None:
    sql(
        "ALTER TABLE audit_check DISABLE TRIGGER USER",
        "DELETE FROM audit_check",
        "DELETE FROM event_outbox",
        "ALTER TABLE audit_check ENABLE TRIGGER USER",
        "DELETE FROM audit_quarantine",
    )


def tamper(statement: str) -> None:
    sql("ALTER TABLE audit_event DISABLE TRIGGER USER", statement, "ALTER TABLE audit_event ENABLE TRIGGER USER")


def asked(client: Browser, since: str = "") -> Any:
    """Press the button on the page."""
    token = csrf_of(client.page("/watch/"))
    return client.post("/watch/check", data={"csrf_token": token, "since": since})


def stored() -> list[Any]:
    return sql("SELECT * FROM audit_check ORDER BY id")


def run() -> Any:
    """Have the check done that waits; gives it."""
    check(stored()[-1]["id"])
    return stored()[-1]


ALTERED = (
    "UPDATE audit_event SET agent_name = agent_name || 'x' WHERE id = (SELECT min(id::text)::uuid FROM audit_event)"
)
MENDED = "UPDATE audit_event SET agent_name = rtrim(agent_name, 'x') WHERE agent_name LIKE '%x'"


# ---- the page ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("username", factories.PEOPLE)
def test_the_page_is_open_to_whoever_reads_the_trail(client_as: ClientAs, username: str) -> None:
    client, may = client_as(username), username in ("admin", "privacy")
    for path in ("/watch/", "/watch/now.json"):
        assert client.get(path).status_code == (200 if may else 403)
    assert ('href="/watch/"' in client.page("/")) == may
    if not may:
        token = csrf_of(client.page("/me/"))
        assert client.post("/watch/check", data={"csrf_token": token}).status_code == 403
        assert stored() == []


def test_the_page_says_how_the_trail_stands(client_as: ClientAs, servers: Servers) -> None:
    client = client_as("privacy")
    drainer.drain()
    trail.the_trail().write(service("checks"), [trail.event("R", "read") for _ in range(3)])
    page = client.page("/watch/")
    assert re.search(r'data-now-of="stream">[1-9]', page)
    assert "Everything is stored in time." in page
    drainer.drain()
    last = sql("SELECT tree_size, note FROM audit_batch ORDER BY seq DESC LIMIT 1")[0]
    page = client.page("/watch/").replace(",", "")
    assert f'data-now-of="size">{last["tree_size"]}<' in page
    assert last["note"].split("\n")[2] in page
    assert "python run.py audit key" in page
    assert "a file that is only added to" in page
    assert "72 whole months stay" in page
    told = client.get("/watch/now.json").get_json()
    assert told["alarm"] == ""
    assert told["check"] is None
    assert told["told"]["quarantine"] == "0"


def test_the_public_key_is_shown_where_there_is_a_way_to_it(app: Flask, client_as: ClientAs, sealed: Path) -> None:
    client, before = client_as("admin"), app.config["TRAIL_KEY"]
    try:
        app.config["TRAIL_KEY"] = sealed / "key.pem"
        page = client.page("/watch/")
        assert tree.key_at(sealed / "key.pem").text in html.unescape(page)
        assert "audit key" not in page
        assert "PRIVATE" not in page
    finally:
        app.config["TRAIL_KEY"] = before


def test_lines_stored_are_plotted_hour_by_hour(client_as: ClientAs) -> None:
    client = client_as("privacy")
    client.page("/")
    drainer.drain()
    total = sql("SELECT sum(n) AS n FROM audit_batch WHERE stored_at > now() - interval '23 hours'")[0]["n"]
    page = client.page("/watch/").replace(",", "")
    assert f'aria-label="{total} lines stored in 24 hours' in page
    body = re.search(r"<tbody>.*?</tbody>", page, re.S)
    assert body
    numbers = [int(n) for n in re.findall(r'<td class="num">(\d+)</td>', body[0])]
    assert (len(numbers), sum(numbers)) == (24, total)


def test_asking_how_it_stands_is_nobodys_work(client_as: ClientAs, servers: Servers, trail_lines: Any) -> None:
    client = client_as("privacy")
    client.page("/watch/")
    store = redis.Redis.from_url(servers.redis_url)
    number = client.get_cookie("wardbook")
    assert number is not None
    store.expire(f"session:{number.value}", 100)
    trail_lines.forget()
    for _ in range(2):
        assert client.get("/watch/now.json").status_code == 200
    assert 0 < store.ttl(f"session:{number.value}") <= 100
    assert trail_lines.entries() == []
    client.page("/me/")
    assert store.ttl(f"session:{number.value}") > 100


def test_what_is_in_quarantine_is_listed_and_shown_only_to_whoever_asks(client_as: ClientAs, trail_lines: Any) -> None:
    trail.the_trail().redis.xadd(trail.STREAM, {"e": b'{"agent": <script>nonsense</script>'})
    drainer.drain()
    (entry,) = sql("SELECT id, payload FROM audit_quarantine")
    client = client_as("privacy")
    trail_lines.forget()
    page = client.page("/watch/")
    assert "DecodeError" in page
    assert "nonsense" not in page
    assert 'data-now-of="quarantine" class="is-trouble">1<' in page
    assert not [line for line in trail_lines.events() if line["action"] == "R"]
    shown = client.page(f"/watch/?open={entry['id']}")
    assert "&lt;script&gt;nonsense" in shown
    (line,) = [line for line in trail_lines.events() if line["entities"]]
    assert line["entities"] == [{"type": "AuditQuarantine", "ids": [entry["id"]]}]
    assert "nonsense" not in client.page("/watch/?open=999999")


def test_months_that_may_go_are_named_with_the_command(client_as: ClientAs) -> None:
    sql("CREATE TABLE audit_event_201905 PARTITION OF audit_event FOR VALUES FROM ('2019-05-01Z') TO ('2019-06-01Z')")
    sql(
        "INSERT INTO audit_archive (month, file, sha256, lines, leaves, archived_by, note) "
        "VALUES ('2018-02-01', 'wardbook-trail-2018-02.txt.gz', 'x', 7, '{}', 'somebody', '')"
    )
    try:
        page = client_as("privacy").page("/watch/")
        assert "python run.py audit archive 2019-05 --to FOLDER" in page
        assert f"archive {now():%Y-%m}" not in page
        assert "wardbook-trail-2018-02.txt.gz" in page
    finally:
        sql(
            "DROP TABLE audit_event_201905",
            "ALTER TABLE audit_archive DISABLE TRIGGER USER",
            "DELETE FROM audit_archive",
            "ALTER TABLE audit_archive ENABLE TRIGGER USER",
        )
    assert "audit archive" not in client_as("privacy").page("/watch/")


# ---- a check -------------------------------------------------------------------------------------------------------


def test_a_check_goes_from_the_button_through_the_workers_to_the_page(
    client_as: ClientAs, servers: Servers, trail_lines: Any, hospital: Any
) -> None:
    client = client_as("privacy")
    drainer.drain()
    assert asked(client).status_code == 302
    (line,) = [line for line in trail_lines.events() if line["subtype"] == "check"]
    assert (line["outcome"], line["query"]) == (0, "all of the trail")
    assert client.get("/watch/now.json").get_json()["check"]["text"] == "It waits for the worker to begin."
    assert "data-now-check hidden" not in client.page("/watch/")

    base.load()
    connection = base.connect(servers.redis_url.rpartition("/")[0] + "/6")
    connection.flushdb()
    relay()
    for name in ("events", "checks"):
        worker = SimpleWorker(
            [base.queue_named(name)], connection=connection, job_class=base.Work, serializer=JSONSerializer
        )
        worker.work(burst=True, logging_level="WARNING")
    (done,) = stored()
    assert done["whole"] is True
    assert done["asked_by_id"] == hospital.accounts["privacy"]
    assert done["done"] == done["total"] > 0
    page = client.page("/watch/")
    assert "as they were written" in page
    assert "The whole trail" in page
    assert "Priya Privacy" in page
    assert "data-now-check hidden" in page
    answers = [entry for entry in trail_lines.entries() if entry["agent"]["agent_name"] == "checks"]
    assert [line["outcome"] for entry in answers for line in entry["events"]] == [0]
    drainer.drain()
    assert "Checked the trail" in client.page("/trail/")


def test_only_what_was_stored_since_a_day(client_as: ClientAs) -> None:
    client = client_as("admin")
    day = f"{now() + timedelta(days=2):%Y-%m-%d}"
    assert asked(client, day).status_code == 302
    done = run()
    assert (done["whole"], done["total"]) == (True, 0)
    assert "What was stored since" in client.page("/watch/")
    refused = asked(client, "yesterday")
    assert refused.status_code == 422
    assert "Please check the day." in refused.text
    assert len(stored()) == 1


def test_two_at_once_are_refused(client_as: ClientAs, acting: Acting) -> None:
    assert asked(client_as("privacy")).status_code == 302
    before = stored()
    refused = asked(client_as("admin"))
    assert refused.status_code == 409
    assert "is being checked already" in refused.text
    assert stored() == before


def test_of_two_who_ask_in_the_same_moment_one_is_refused(acting: Acting) -> None:
    start, answers = threading.Barrier(2), []

    def ask() -> None:
        try:
            with acting("admin"), guard.unit_of_work() as session:
                start.wait()
                checks.ask(session, None)
                answers.append("asked")
                time.sleep(0.2)
        except Conflict:
            answers.append("refused")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored()) == 1
    assert "refused" in answers


def test_nobody_else_has_the_trail_checked(acting: Acting) -> None:
    with acting("doctor"), pytest.raises(Forbidden), guard.unit_of_work() as session:
        checks.ask(session, None)
    assert stored() == []


def test_what_a_check_came_to_stays(client_as: ClientAs) -> None:
    asked(client_as("privacy"))
    before = run()
    for statement in ("UPDATE audit_check SET whole = NOT whole", "DELETE FROM audit_check"):
        with pytest.raises(DBAPIError, match="never rewritten"):
            sql(statement)
    check(before["id"])
    assert stored() == [before]
    check(999_999)


def test_a_check_that_cannot_be_brought_to_its_end_says_so(client_as: ClientAs, monkeypatch: Any) -> None:
    client = client_as("privacy")
    asked(client)
    monkeypatch.setattr("jobs.verify.TOTAL", "SELECT nothing")
    done = run()
    assert done["whole"] is None
    page = client.page("/watch/")
    assert "No finding" in page
    assert "not whole" not in page
    monkeypatch.undo()
    assert asked(client).status_code == 302
    assert run()["whole"] is True


KILLED = """
import sys
from pathlib import Path
from app import guard, trail, tree
guard.connect(sys.argv[1]); trail.connect(sys.argv[2], Path(sys.argv[3]))
tree.connect(Path(sys.argv[4]) / "key.pem", "file:" + sys.argv[4] + "/witness")
from jobs.verify import check
check(int(sys.argv[5]))
"""


def test_a_check_that_was_killed_can_be_started_again(
    client_as: ClientAs, servers: Servers, database: Database, sealed: Path, tmp_path: Path
) -> None:
    client = client_as("privacy")
    drainer.drain()
    asked(client)
    (waits,) = stored()
    with guard.engine().connect() as connection, connection.begin() as held:
        connection.execute(text("LOCK TABLE audit_event IN ACCESS EXCLUSIVE MODE"))
        worker = subprocess.Popen(
            [
                *(sys.executable, "-c", KILLED, database.url, servers.trail_redis_url, str(tmp_path), str(sealed)),
                str(waits["id"]),
            ],
            cwd=PROJECT,
        )
        deadline = time.monotonic() + 60
        while stored()[0]["beat_at"] is None and time.monotonic() < deadline:
            time.sleep(0.05)
        worker.kill()
        worker.wait()
        held.rollback()
    (begun,) = stored()
    assert begun["beat_at"] is not None
    assert begun["finished_at"] is None
    assert asked(client).status_code == 409
    sql("UPDATE audit_check SET beat_at = now() - interval '3 minutes'")
    page = client.page("/watch/")
    assert "It was stopped before its end" in page
    assert "data-now-check hidden" in page
    assert asked(client).status_code == 302
    first, second = stored()
    assert (first["whole"], first["sentence"]) == (None, checks.STOPPED)
    assert first["finished_at"] is not None
    assert run()["whole"] is True
    assert stored()[1]["id"] == second["id"]


def test_a_check_nobody_begins_is_given_up(client_as: ClientAs) -> None:
    client = client_as("privacy")
    asked(client)
    sql("UPDATE audit_check SET asked_at = now() - interval '9 minutes'")
    assert asked(client).status_code == 409
    sql("UPDATE audit_check SET asked_at = now() - interval '11 minutes'")
    assert asked(client).status_code == 302
    late, new = stored()
    check(late["id"])
    assert stored()[0]["whole"] is None
    check(new["id"])
    assert stored()[1]["whole"] is True


# ---- by the clock --------------------------------------------------------------------------------------------------


def grow_older(days: float) -> None:
    """Every check was asked for so much earlier."""
    sql(
        "ALTER TABLE audit_check DISABLE TRIGGER USER",
        f"UPDATE audit_check SET asked_at = asked_at - interval '{days} days'",
        "ALTER TABLE audit_check ENABLE TRIGGER USER",
    )


def test_once_a_day_what_is_new_is_checked_and_once_a_week_everything() -> None:
    assert sql("SELECT 1 FROM audit_batch")
    daily()
    assert stored() == []  # the trail is not a day old
    with guard.acting_as(service("checks")), guard.unit_of_work() as session:
        session.add(AuditCheck(asked_at=now() - timedelta(hours=20)))
    check(stored()[0]["id"])
    daily()
    assert len(stored()) == 1
    grow_older(0.5)
    daily()
    first, second = stored()
    assert (second["since"], second["whole"], second["asked_by_id"]) == (first["asked_at"], True, None)
    daily()
    assert len(stored()) == 2
    grow_older(7)
    daily()
    daily()
    assert len(stored()) == 3
    assert (stored()[2]["since"], stored()[2]["whole"]) == (None, True)


# ---- the alarm -----------------------------------------------------------------------------------------------------


BEHIND = "Lines are not stored in time"


def alarmed(client: Browser, path: str = "/") -> str:
    """What a page is headed by."""
    watchman.forget()
    return " ".join(re.findall(r'<div class="alarm" role="note">.*?</div>', client.page(path), re.S))


def test_the_alarm_comes_when_a_line_is_late_and_goes_when_it_is_stored(client_as: ClientAs) -> None:
    admin, privacy, doctor = client_as("admin"), client_as("privacy"), client_as("doctor")
    drainer.drain()
    assert alarmed(admin) == alarmed(privacy) == ""
    at_work = trail.the_trail()
    for seconds, late in ((40, False), (61, True)):
        at_work.redis.delete(trail.STREAM)
        payload = trail.encode(trail.entry(trail.agent(service("checks")), [trail.event("R", "read")]))
        at_work.redis.xadd(trail.STREAM, {"e": payload}, id=f"{int((time.time() - seconds) * 1000)}-0")
        assert (BEHIND in alarmed(admin)) == late
        assert (BEHIND in alarmed(privacy, "/patients/")) == late
        assert alarmed(doctor) == ""
    assert BEHIND in admin.get("/watch/now.json").get_json()["alarm"]
    assert BEHIND in admin.page("/watch/")
    drainer.drain()
    assert alarmed(admin) == alarmed(privacy) == ""


def test_the_alarm_comes_when_redis_is_away_and_goes_when_it_is_back(
    client_as: ClientAs, servers: Servers, spool: Path
) -> None:
    admin = client_as("admin")
    try:
        trail.connect("redis://127.0.0.1:1/0", spool)
        assert "does not answer" in alarmed(admin)
        page = admin.page("/watch/")
        assert "not known" in page
        assert re.search(r'data-now-of="spool">1 file, \d', page)
    finally:
        trail.the_trail().spool.close()
        trail.connect(servers.trail_redis_url, spool)
    drainer.drain()
    assert alarmed(admin) == ""
    assert sql("SELECT 1 FROM audit_event WHERE agent_name = 'Agnes Admin' LIMIT 1")


def test_a_fault_is_on_the_page_and_on_every_page_until_a_check_finds_all_well(
    client_as: ClientAs, trail_lines: Any
) -> None:
    client, doctor = client_as("privacy"), client_as("doctor")
    drainer.drain()
    tamper(ALTERED)
    try:
        assert asked(client).status_code == 302
        done = run()
        assert done["whole"] is False
        assert "was altered after it was stored" in done["sentence"]
        told = [line for line in trail_lines.events() if line["subtype"] == "check" and line["outcome"]]
        assert [(line["outcome"], line["reason"]) for line in told] == [(8, "altered")]
        assert "The trail is not whole" in alarmed(client, "/patients/")
        assert alarmed(doctor) == ""
        page = client.page("/watch/")
        assert done["sentence"] in page
        assert "Not whole" in page
        assert "Everything is stored in time." not in page
        # What was stored since the day after tomorrow is well, and says nothing of the fault.
        asked(client, f"{now() + timedelta(days=2):%Y-%m-%d}")
        assert run()["whole"] is True
        assert "not whole" in alarmed(client)
    finally:
        tamper(MENDED)
    asked(client)
    assert run()["whole"] is True
    assert alarmed(client) == ""
    assert "Not whole" in client.page("/watch/")  # among the earlier ones, for ever


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """What was asked of the database since the test last cleared it."""
    said: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    event.listen(guard.engine(), "before_cursor_execute", note)
    yield said
    event.remove(guard.engine(), "before_cursor_execute", note)


def about_the_trail(statements: list[str]) -> list[str]:
    return [said for said in statements if re.search(r"audit_(batch|check|drain|outbox|quarantine|astray)", said)]


@pytest.mark.parametrize("path", ["/", "/me/", "/patients/"])
def test_when_all_is_well_no_page_asks_the_database(client_as: ClientAs, statements: list[str], path: str) -> None:
    client, doctor = client_as("admin"), client_as("doctor")
    client.page(path)
    watchman.forget()
    statements.clear()
    client.page(path)
    first = len(statements)
    assert len(about_the_trail(statements)) == 7
    for _ in range(3):
        statements.clear()
        client.page(path)
        assert about_the_trail(statements) == []
        assert len(statements) == first - 7
    watchman.forget()
    statements.clear()
    doctor.page(path)
    assert about_the_trail(statements) == []


def test_a_database_that_does_not_answer_the_alarm_spoils_no_page(client_as: ClientAs) -> None:
    client = client_as("admin")
    sql("ALTER TABLE audit_check RENAME TO audit_check_away")
    try:
        assert alarmed(client) == ""
    finally:
        sql("ALTER TABLE audit_check_away RENAME TO audit_check")
