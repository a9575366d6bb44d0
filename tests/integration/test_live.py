"""The live feed over real web processes, a real worker and a real scheduler: who is told of what, and who no longer.

Two web processes share the servers, each with a port of its own, so that it is known which one a page is connected to.
Sockets are told in the order of the stream, so a test that nothing came waits for a later pointer that does.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from queue import Empty, Queue
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis
import requests
import socketio
from flask_appbuilder.security.sqla.models import User
from sqlalchemy import func, select, update

from app import events, guard, policy
from app.actor import nobody, service
from app.policy import may
from app.services import emergencies, feed
from app.services.scheduling import Asked, book
from models.access import EmergencyAccess
from models.base import now
from models.codes import RowScope
from models.scheduling import Appointment, VisitType, WorkingHours
from ops.servers import Servers
from tests.bench.house import House, Web, open_web
from tests.conftest import csrf_of
from tests.factories import PASSWORD, Hospital, acting
from tests.live import LIMIT, eventually, two_processes

HANDSHAKE = "/socket.io/?EIO=4&transport=websocket"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
KEYS = {"event", "resource", "id", "branch_id", "version"}


class Desk:
    """A browser somebody has signed in with, by plain HTTP."""

    def __init__(self, port: int, username: str | None = None) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.http = requests.Session()
        if username is not None:
            page = self.http.get(f"{self.base}/login/").text
            form = {"username": username, "password": PASSWORD, "csrf_token": csrf_of(page)}
            answer = self.http.post(f"{self.base}/login/", data=form, allow_redirects=False)
            assert answer.status_code == 302, "the sign-in was refused"

    @property
    def cookie(self) -> str:
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.http.cookies)

    def post(self, path: str, **body: Any) -> requests.Response:
        """Send JSON as a page's script does."""
        token = csrf_of(self.http.get(f"{self.base}/").text)
        return self.http.post(f"{self.base}{path}", json=body, headers={"X-CSRFToken": token})

    def sign_out(self) -> None:
        self.http.get(f"{self.base}/logout/")


class Screen:
    """An open page: its connection, and what it was told."""

    def __init__(self, port: int, cookie: str, **headers: str) -> None:
        self.told: Queue[dict[str, Any]] = Queue()
        self.caught_up: Queue[dict[str, Any]] = Queue()
        self.client = socketio.Client(reconnection=False)
        self.client.on("pointer", self.told.put)
        self.client.on("caught-up", self.caught_up.put)
        self.client.connect(
            f"http://127.0.0.1:{port}", headers={"Cookie": cookie, **headers}, transports=["websocket"], wait_timeout=20
        )

    def follow(self, since: str | None = None, branches: Any = None) -> dict[str, Any]:
        """Begin to be told; gives what was missed."""
        self.client.emit("follow", {"since": since, "branches": branches})
        return self.caught_up.get(timeout=LIMIT)

    def next(self) -> dict[str, Any]:
        return self.told.get(timeout=LIMIT)

    def nothing_more(self) -> bool:
        """Whether there is nothing that has not been looked at."""
        with contextlib.suppress(Empty):
            return not self.told.get_nowait()
        return True

    def ended(self) -> bool:
        return eventually(lambda: not self.client.connected)


@dataclass
class Place:
    """The hospital, its two web processes, and what can be booked in it."""

    hospital: Hospital
    redis: redis.Redis
    webs: list[Web]
    visit: int
    screens: list[Screen] = field(default_factory=list)
    days: Iterator[int] = field(default_factory=lambda: iter(range(20, 700)))

    def desk(self, username: str | None = None, nth: int = 0) -> Desk:
        return Desk(self.webs[nth].port, username)

    def screen(self, desk: Desk, nth: int = 1) -> Screen:
        """A page of somebody's browser, connected to the other process unless said otherwise."""
        made = Screen(self.webs[nth].port, desk.cookie)
        self.screens.append(made)
        return made

    def asked(self, branch: int = 0, patient: int = 2) -> dict[str, Any]:
        """A visit at a time no other test uses."""
        start = datetime.combine(now().date() + timedelta(days=next(self.days)), time_of_day(15), tzinfo=UTC)
        return {
            "patient_id": self.hospital.patients[patient],
            "practitioner_id": self.hospital.staff["doctor"],
            "visit_type_id": self.visit,
            "branch_id": self.hospital.branches[branch],
            "start": start.isoformat(),
        }

    def booked(self, desk: Desk, **more: Any) -> dict[str, Any]:
        """A visit booked through HTTP."""
        answer = desk.post("/api/v1/appointment/", **self.asked(**more))
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()["result"]
        return found


def told_of(card: dict[str, Any]) -> dict[str, Any]:
    """What a pointer to a visit says, but for the id of its event."""
    return {"resource": "Appointment", "id": card["id"], "branch_id": card["branch_id"], "version": card["version"]}


def without_event(pointer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in pointer.items() if name != "event"}


@pytest.fixture(scope="module")
def place(servers: Servers, database: Any) -> Iterator[Place]:
    """Two web processes of one place each, a worker and a scheduler."""
    hospital: Hospital = database.hospital
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visit = VisitType(name="Follow-up", minutes=30, needs_room=False)
        session.add(visit)
        for branch in hospital.branches:
            for weekday in range(1, 8):
                hours = {"practitioner_id": hospital.staff["doctor"], "branch_id": branch, "weekday": weekday}
                session.add(
                    WorkingHours(**hours, starts=time_of_day(8), ends=time_of_day(20), valid_from=date(2020, 1, 1))
                )
        session.flush()
        visit_id = visit.id
    with two_processes(servers, database) as running:
        yield Place(hospital, running.redis, running.webs, visit_id)


@pytest.fixture(autouse=True)
def closed_after(place: Place) -> Iterator[None]:
    """No page stays open after its test."""
    yield
    for screen in place.screens:
        screen.client.disconnect()
    place.screens.clear()


# ---- told --------------------------------------------------------------------------------------------------------


def test_a_booking_at_one_process_reaches_the_pages_of_the_other(place: Place) -> None:
    desk = place.desk("reception")
    near, far = place.screen(desk, 0), place.screen(desk, 1)
    for screen in (near, far):
        assert screen.follow()["reset"], "whoever knows of no event fetches everything"
    card = place.booked(desk)
    pointer = far.next()
    assert set(pointer) == KEYS
    assert without_event(pointer) == told_of(card)
    assert near.next() == pointer
    changed = desk.post(f"/api/v1/appointment/{card['id']}/cancel", reason="pat").json()["result"]
    assert without_event(far.next()) == told_of(changed)
    assert changed["version"] > card["version"]


def test_what_was_rolled_back_is_not_told(place: Place) -> None:
    desk = place.desk("reception")
    screen = place.screen(desk)
    screen.follow()
    asked = place.asked()
    asked["start_at"] = datetime.fromisoformat(asked.pop("start"))
    who = acting(place.hospital.accounts["reception"])
    with who, pytest.raises(ZeroDivisionError), guard.unit_of_work() as session:
        lost = book(session, Asked(**asked)).id
        raise ZeroDivisionError
    refused = desk.post("/api/v1/appointment/", **{**place.asked(), "patient_id": 10**9})
    assert refused.status_code == 422
    card = place.booked(desk)
    pointer = screen.next()
    assert (pointer["id"], lost) == (card["id"], pointer["id"] - 1)
    assert screen.nothing_more()


def test_a_nurse_of_one_branch_is_not_told_of_the_other(place: Place, granted: Callable[..., None]) -> None:
    granted("Nurse", Appointment=may("read create update", rows=RowScope.OWN_BRANCH))
    desk, nurse = place.desk("reception"), place.desk("nurse")
    everywhere, screen = place.screen(desk), place.screen(nurse)
    everywhere.follow()
    screen.follow()
    there, here = place.booked(desk, branch=1, patient=3), place.booked(desk, branch=0)
    assert [everywhere.next()["id"] for _ in range(2)] == [there["id"], here["id"]]
    assert screen.next()["id"] == here["id"]
    asking = place.screen(nurse)
    asking.follow(branches=place.hospital.branches)
    there, here = place.booked(desk, branch=1, patient=3), place.booked(desk, branch=0)
    assert asking.next()["id"] == here["id"]
    assert asking.nothing_more()


def test_a_page_is_told_of_the_branches_it_asks_for(place: Place) -> None:
    desk = place.desk("reception")
    screen = place.screen(desk)
    screen.follow(branches=[place.hospital.branches[1]])
    place.booked(desk, branch=0)
    there = place.booked(desk, branch=1)
    assert screen.next()["id"] == there["id"]
    screen.follow(branches=[place.hospital.branches[0]])
    place.booked(desk, branch=1)
    here = place.booked(desk, branch=0)
    assert screen.next()["id"] == here["id"]
    everywhere = place.screen(desk)
    everywhere.follow()
    for nonsense in ("all", [True], ["1"], {"branch": 1}, [10**30]):
        assert not screen.follow(since=feed.last(place.redis), branches=nonsense)["reset"]
        card = place.booked(desk, branch=0)
        assert everywhere.next()["id"] == card["id"]
    assert screen.nothing_more()
    screen.follow()
    last = place.booked(desk)
    assert screen.next()["id"] == last["id"]


def test_a_doctor_limited_to_their_patients_is_told_of_their_own_visits(
    place: Place, granted: Callable[..., None]
) -> None:
    granted("Doctor", Appointment=may("read", rows=RowScope.CARE_TEAM))
    granted("Nurse", Appointment=may("read", rows=RowScope.CARE_TEAM))
    desk = place.desk("reception")
    doctor, nurse = place.screen(place.desk("doctor")), place.screen(place.desk("nurse"))
    doctor.follow()
    nurse.follow()
    card = place.booked(desk)
    assert doctor.next()["id"] == card["id"]
    assert nurse.nothing_more()


def test_a_patient_is_told_of_their_own_visits_only(place: Place) -> None:
    desk = place.desk("reception")
    screen = place.screen(place.desk("patient"))
    screen.follow(branches=place.hospital.branches)
    place.booked(desk)
    own = place.booked(desk, patient=0)
    assert screen.next()["id"] == own["id"]
    assert screen.nothing_more()


# ---- what was missed ---------------------------------------------------------------------------------------------


def test_a_page_that_was_away_is_told_exactly_what_it_missed(place: Place, granted: Callable[..., None]) -> None:
    granted("Nurse", Appointment=may("read", rows=RowScope.OWN_BRANCH))
    desk, nurse = place.desk("reception"), place.desk("nurse")
    screen = place.screen(nurse)
    screen.follow()
    place.booked(desk)
    seen = screen.next()
    screen.client.disconnect()
    missed = [place.booked(desk)["id"], place.booked(desk)["id"]]
    place.booked(desk, branch=1, patient=3)
    watching = place.screen(desk)
    watching.follow()
    marker = place.booked(desk, branch=1, patient=3)
    while watching.next()["id"] != marker["id"]:
        pass
    for nth in (0, 1):
        back = place.screen(nurse, nth)
        answer = back.follow(since=seen["event"])
        assert [pointer["id"] for pointer in answer["missed"]] == missed
        assert all(set(pointer) == KEYS for pointer in answer["missed"])
        assert not answer["reset"]
        assert back.follow(since=answer["last"]) == {
            "last": answer["last"],
            "missed": [],
            "reset": False,
            "visits": True,
        }
        assert back.nothing_more()


def test_who_was_away_too_long_fetches_everything(place: Place) -> None:
    desk = place.desk("reception")
    screen = place.screen(desk)
    known = screen.follow()["last"]
    for since in ("1-0", "999999999999999-0", "nonsense", 7, "", "0-0"):
        answer = screen.follow(since=since)
        assert (answer["reset"], answer["missed"]) == (True, []), since
    assert not screen.follow(since=known)["reset"]
    for number in range(feed.MOST_MISSED + 1):
        feed.append(place.redis, feed.Pointer("Appointment", number, place.hospital.branches[0], 1))
    while screen.next()["id"] != feed.MOST_MISSED:
        pass
    assert screen.follow(since=known)["reset"]


def test_the_stream_is_bounded(place: Place) -> None:
    for number in range(feed.KEPT + 1000):
        feed.append(place.redis, feed.Pointer("Appointment", number, 0, 1))
    assert place.redis.xlen(feed.STREAM) < feed.KEPT + 1000


def test_what_came_while_redis_was_away_is_told_when_it_is_back(place: Place) -> None:
    """The process's own connection is cut in the middle of its waiting."""
    desk = place.desk("reception")
    screen = place.screen(desk)
    screen.follow()
    place.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    card = place.booked(desk)
    assert screen.next()["id"] == card["id"]


# ---- who is let in, and for how long -----------------------------------------------------------------------------


def refused(port: int, cookie: str, **headers: str) -> int:
    """The status a handshake is refused with."""
    told = {**UPGRADE, "Cookie": cookie, **headers}
    with requests.get(f"http://127.0.0.1:{port}{HANDSHAKE}", headers=told, timeout=20, stream=True) as answer:
        return answer.status_code


def test_nobody_is_let_in_without_a_session(place: Place) -> None:
    port = place.webs[0].port
    desk = place.desk("reception")
    assert refused(port, desk.cookie) == 101
    assert refused(port, "") == 401
    assert refused(port, "wardbook=" + "a" * 43) == 401
    body = {"username": "reception", "password": PASSWORD, "provider": "db", "refresh": False}
    token = requests.post(f"{desk.base}/api/v1/security/login", json=body, timeout=20).json()["access_token"]
    assert refused(port, "", Authorization=f"Bearer {token}") == 401
    assert refused(port, desk.cookie, Origin="https://elsewhere.example") == 400
    assert refused(port, desk.cookie, Origin=desk.base) == 101
    assert refused(port, desk.cookie, Upgrade="h2c") == 400
    polling = desk.http.get(f"{desk.base}/socket.io/?EIO=4&transport=polling")
    assert polling.status_code == 400
    desk.sign_out()
    assert refused(port, desk.cookie) == 401
    with pytest.raises(socketio.exceptions.ConnectionError):
        place.screen(place.desk())


def test_whose_role_sees_no_visits_is_not_let_in(place: Place) -> None:
    lab = place.desk("lab")
    assert refused(place.webs[0].port, lab.cookie) == 403


def test_the_handshake_keeps_no_session_open(place: Place) -> None:
    desk = place.desk("reception")
    screen = place.screen(desk)
    screen.follow()
    (key,) = [key for key in place.redis.keys("session:*") if key.decode().partition(":")[2] in desk.cookie]
    place.redis.expire(key, 300)
    place.screen(desk).follow()
    screen.follow()
    assert 0 < int(place.redis.ttl(key)) <= 300
    place.redis.delete(key)
    assert screen.ended()
    assert refused(place.webs[0].port, desk.cookie) == 401


def test_signing_out_ends_the_feed_of_that_session_only(place: Place) -> None:
    desk, other = place.desk("reception"), place.desk("reception", 1)
    screens, stays = [place.screen(desk, nth) for nth in (0, 1)], place.screen(other)
    for screen in (*screens, stays):
        screen.follow()
    desk.sign_out()
    assert all(screen.ended() for screen in screens)
    card = place.booked(other)
    assert stays.next()["id"] == card["id"]
    assert all(screen.nothing_more() for screen in screens)


def test_closing_an_account_ends_its_feed(place: Place) -> None:
    desk = place.desk("nurse")
    screen = place.screen(desk)
    screen.follow()
    with acting(place.hospital.accounts["admin"]), guard.unit_of_work() as session:
        session.get(User, place.hospital.accounts["nurse"]).active = False
    try:
        assert screen.ended()
        assert refused(place.webs[0].port, desk.cookie) == 401
    finally:
        with acting(place.hospital.accounts["admin"]), guard.unit_of_work() as session:
            session.get(User, place.hospital.accounts["nurse"]).active = True


def test_what_a_role_may_see_decides_anew_when_it_changes(place: Place, granted: Callable[..., None]) -> None:
    desk, nurse = place.desk("reception"), place.desk("nurse")
    screen = place.screen(nurse)
    screen.follow()
    there = place.booked(desk, branch=1, patient=3)
    assert screen.next()["id"] == there["id"]
    granted("Nurse", Appointment=may("read", rows=RowScope.OWN_BRANCH))
    assert screen.ended()
    screen = place.screen(nurse)
    screen.follow(branches=place.hospital.branches)
    place.booked(desk, branch=1, patient=3)
    here = place.booked(desk)
    assert screen.next()["id"] == here["id"]
    granted("Nurse", Appointment=None)
    assert screen.ended()
    assert refused(place.webs[0].port, nurse.cookie) == 403


def test_an_emergency_lasts_as_long_in_the_feed_as_anywhere(place: Place, granted: Callable[..., None]) -> None:
    narrow = may("read", rows=RowScope.OWN_BRANCH)
    granted("Nurse", Appointment=narrow, Patient=narrow)
    desk, nurse = place.desk("reception"), place.desk("nurse")
    before = place.screen(nurse)
    before.follow()
    with acting(place.hospital.accounts["nurse"]), guard.unit_of_work() as session:
        access = emergencies.break_glass(
            session, patient_id=place.hospital.patients[3], reason="ETREAT", justification="Found in the corridor"
        )
        number = access.id
    assert before.ended(), "rights have grown"
    screen = place.screen(nurse)
    screen.follow()
    theirs = place.booked(desk, branch=1, patient=3)
    assert screen.next()["id"] == theirs["id"]
    with guard.engine().begin() as connection:
        table = EmergencyAccess.__table__
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # past the triggers that keep it
        connection.execute(
            update(table)
            .where(table.c.id == number)
            .values({name: table.c[name] - timedelta(minutes=60) for name in ("started_at", "ends_at")})
        )
    assert screen.ended()
    after = place.screen(nurse)
    after.follow()
    place.booked(desk, branch=1, patient=3)
    here = place.booked(desk)
    assert after.next()["id"] == here["id"]


def test_one_account_leaves_room_for_the_others(place: Place) -> None:
    desk, port = place.desk("reception"), place.webs[0].port
    screens = [place.screen(desk, 0) for _ in range(20)]
    assert refused(port, desk.cookie) == 503
    assert refused(port, place.desk("doctor").cookie) == 101
    screens[0].client.disconnect()
    assert eventually(lambda: refused(port, desk.cookie) == 101)


# ---- what a connection costs -------------------------------------------------------------------------------------


def test_connections_hold_no_database_connection_and_leave_requests_their_threads(
    servers: Servers, place: Place, database: Any
) -> None:
    """More open pages than the process has threads for requests, and than its pool has connections."""
    home = place.webs[0].house.home
    more = {
        "DATABASE_URL": database.url,
        "WARDBOOK_OWNER_URL": "",
        "REDIS_URL": servers.redis_url.rpartition("/")[0] + "/7",
        "WARDBOOK_THREADS": "2",
        "WARDBOOK_SOCKETS": "12",
    }
    with open_web(House(home, servers, []), database.url.rpartition("/")[2], workers=1, **more) as web:
        desk = Desk(web.port, "reception")
        screens = [Screen(web.port, desk.cookie) for _ in range(12)]
        for screen in screens:
            screen.follow()
        assert refused(web.port, desk.cookie) == 503
        answer = desk.post("/api/v1/appointment/", **place.asked())
        assert answer.status_code == 201
        assert {screen.next()["id"] for screen in screens} == {answer.json()["result"]["id"]}
        master = psutil.Process(web.process.pid)
        (worker,) = master.children()
        postgres = urlsplit(database.url).port
        held = [each for each in worker.net_connections("tcp") if each.raddr and each.raddr.port == postgres]
        assert len(held) <= 6
        screens.pop().client.disconnect()
        upgrade = "".join(f"{name}: {value}\r\n" for name, value in {**UPGRADE, "Cookie": desk.cookie}.items())
        silent: list[socket.socket] = []  # says nothing more, and answers nothing

        def let_in() -> bool:
            silent[:] = [socket.create_connection(("127.0.0.1", web.port))]
            silent[0].sendall(f"GET {HANDSHAKE} HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade}\r\n".encode())
            if silent[0].recv(12) == b"HTTP/1.1 101":
                return True
            silent[0].close()
            return False

        assert eventually(let_in)
        busy = socket.create_connection(("127.0.0.1", web.port))
        busy.sendall(b"GET /healthz HTTP/1.1\r\n")  # a request under way, which the process waits for
        master.terminate()
        assert all(screen.ended() for screen in screens)
        assert worker.status() != psutil.STATUS_ZOMBIE, "connections are let go first, and keep no process waiting"
        busy.close()
        _, alive = psutil.wait_procs([master, worker], timeout=LIMIT)
        assert not alive
        silent[0].close()


def test_a_feed_asks_who_may_be_told_in_one_statement(place: Place) -> None:
    with guard.acting_as(nobody()):
        found = feed.standings(guard.session(), place.hospital.accounts.values())
        assert set(found) == set(place.hospital.accounts.values())
        assert feed.standings(guard.session(), []) == {}


def test_rooms_are_never_wider_than_the_rows(place: Place, granted: Callable[..., None]) -> None:
    """Whatever a role reaches of visits, every visit told to its holder's rooms is one the holder may ask for."""
    desk = place.desk("reception")
    for branch, patient in ((0, 2), (1, 3), (1, 0), (0, 0)):
        place.booked(desk, branch=branch, patient=patient)
    for rows in (RowScope.CHAIN, RowScope.OWN_BRANCH, RowScope.CARE_TEAM, RowScope.SELF):
        for role, username in (("Nurse", "nurse"), ("Doctor", "doctor"), ("Receptionist", "reception")):
            granted(role, Appointment=may("read create update", rows=rows))
            with acting(place.hospital.accounts[username]) as who:
                rooms = feed.rooms_of(who)
                seen = {visit.id for visit in guard.session().scalars(select(Appointment))}
            with guard.acting_as(service("calendar")):
                every = guard.session().scalars(select(Appointment)).all()
            told = {
                visit.id
                for visit in every
                if visit.status == "booked"
                and not rooms.isdisjoint(
                    feed.Pointer(
                        "Appointment", visit.id, visit.branch_id, 1, visit.practitioner_id, visit.patient_id
                    ).rooms()
                )
            }
            assert told <= seen, (role, rows)
            of_visits = {room for room in rooms if not room.startswith("person:")}
            assert bool(of_visits) == (rows != RowScope.SELF)
            granted(role, **policy.MATRIX[role])


def test_every_event_of_a_visit_becomes_a_pointer_once_it_is_handed_over(place: Place) -> None:
    """The outbox is empty again when the page has been told."""
    desk = place.desk("reception")
    screen = place.screen(desk)
    screen.follow()
    card = place.booked(desk)
    assert screen.next()["id"] == card["id"]

    def left() -> int:
        from models.audit import EventOutbox

        with guard.engine().connect() as connection:
            table = EventOutbox.__table__
            count = select(func.count()).select_from(table).where(table.c.name == events.AppointmentChanged.__name__)
            return int(connection.execute(count).scalar_one())

    assert eventually(lambda: left() == 0)
