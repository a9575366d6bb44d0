"""What a hostile round against scheduling tried and found, so that it stays found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import redis
from flask.testing import FlaskClient
from psycopg import errors, sql
from sqlalchemy import make_url

from app import guard
from app.actor import service
from app.errors import IllegalTransition, Invalid, SlotTaken
from app.policy import may
from app.services import feed, schedules, scheduling
from models import migrations
from models.base import now
from models.clinical import Encounter
from models.codes import RowScope
from models.organization import Branch
from models.scheduling import Appointment, Equipment
from ops.servers import Servers
from tests import factories
from tests.conftest import Browser, csrf_of
from tests.factories import Hospital, Practice, open_practice
from tests.integration.test_scheduling import asked, at_once, bookings, everything, refused, stored
from views.appointments import STEPS

ApiAs = Callable[[str], FlaskClient]
ClientAs = Callable[[str], Browser]
Clerk = Callable[..., Any]
API = "/api/v1/appointment/"
REASON = "SENTINEL cough"


@pytest.fixture(scope="module")
def practice(database: Any) -> Practice:
    return open_practice(database.hospital)


@pytest.fixture(scope="module")
def elsewhere(database: Any, practice: Practice) -> Practice:
    """The other branch, where the nurse does not work and the doctor does."""
    assert practice.branch == database.hospital.branches[0]
    return open_practice(database.hospital, ["doctor"], branch=1)


_days = iter(range(20, 700))


@pytest.fixture
def day(practice: Practice) -> date:
    """A day of the future that no other test uses."""
    return now().astimezone(practice.clock).date() + timedelta(days=next(_days))


@pytest.fixture
def clerk(hospital: Hospital) -> Clerk:
    """Do something as the reception in a unit of work of its own: `clerk(scheduling.cancel, 5, reason="pat")`."""

    def do(what: Callable[..., Any], *args: Any, **named: Any) -> Any:
        with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
            return what(session, *args, **named)

    return do


def wish(practice: Practice, start: datetime, **more: Any) -> dict[str, Any]:
    """A visit with the doctor by the third patient, as a program asks for it."""
    return {
        "patient_id": practice.patients[2],
        "practitioner_id": practice.people[0],
        "visit_type_id": practice.visit,
        "branch_id": practice.branch,
        "start": start.isoformat(),
        "reason": REASON,
        **more,
    }


def made(client: FlaskClient, asked: dict[str, Any], **headers: str) -> int:
    """The number of a visit that is booked."""
    answer = client.post(API, json=asked, headers=headers)
    assert answer.status_code == 201, answer.text
    return int(answer.get_json()["id"])


# ---- whoever has the application's account for the database --------------------------------------------------------

ACCOUNT = "wb_test_scheduling"
WRITTEN = """
    INSERT INTO appointment (fhir_id, version, created_at, updated_at, status, branch_id, visit_type_id,
      practitioner_id, patient_id, start_at, end_at, uid)
    VALUES (gen_random_uuid(), 1, now(), now(), 'booked', %(branch)s, %(kind)s, %(doctor)s, %(patient)s, %(start)s,
      %(start)s::timestamptz + interval '30 minutes', gen_random_uuid())
    RETURNING id
"""
Intruder = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def account(database: Any) -> Iterator[str]:
    """The address of this database for an account that may what the application may, and owns nothing."""
    owner = make_url(database.url).set(drivername="postgresql").render_as_string(hide_password=False)
    role = sql.Identifier(ACCOUNT)
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'for-tests-only'").format(role))
    theirs = make_url(database.url).set(username=ACCOUNT, password="for-tests-only")
    migrations.grant(database.url, theirs.render_as_string(hide_password=False))
    yield theirs.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture
def intruder(account: str) -> Iterator[Intruder]:
    """A connection of that account; whatever it did is undone."""
    with psycopg.connect(account) as connection:
        yield connection
        connection.rollback()


def written(connection: Intruder, practice: Practice, start: datetime, patient: int = 2) -> int:
    said = {"branch": practice.branch, "kind": practice.visit, "doctor": practice.people[0], "start": start}
    row = connection.execute(WRITTEN, {**said, "patient": practice.patients[patient]}).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE booking SET blocking = false",
        "UPDATE booking SET period = 'empty'",
        "DELETE FROM booking",
        "TRUNCATE booking",
        "INSERT INTO booking (blocking) VALUES (false)",
        "ALTER TABLE booking DROP CONSTRAINT booking_no_overlap",
        "ALTER TABLE appointment DISABLE TRIGGER USER",
        "SET session_replication_role = replica",
        "CREATE OR REPLACE FUNCTION wb_blocks(status text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false'",
        "CREATE RULE none AS ON UPDATE TO appointment DO INSTEAD NOTHING",
        "CREATE TRIGGER none BEFORE INSERT ON booking EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "DELETE FROM appointment",
        "UPDATE appointment SET id = id + 1000000",
        "UPDATE appointment_history SET status = 'noshow'",
        "DELETE FROM appointment_history",
        "INSERT INTO appointment_history (appointment_id) VALUES (1)",
        "DELETE FROM slot_offer",
        "DELETE FROM communication",
    ],
)
def test_the_applications_account_cannot_touch_what_keeps_visits_apart(
    practice: Practice, day: date, intruder: Intruder, statement: str
) -> None:
    written(intruder, practice, practice.at(day, 9))
    with pytest.raises((errors.InsufficientPrivilege, errors.ForeignKeyViolation)):
        intruder.execute(statement.encode())


@pytest.mark.parametrize("final", ["fulfilled", "cancelled", "noshow", "entered-in-error"])
def test_the_applications_account_cannot_open_again_what_is_over(
    practice: Practice, day: date, intruder: Intruder, final: str
) -> None:
    number = written(intruder, practice, practice.at(day, 9))
    intruder.execute("UPDATE appointment SET status = %s WHERE id = %s", [final, number])
    for change in ("status = 'booked'", "start_at = start_at - interval '5 minutes'", "patient_id = 1"):
        with pytest.raises(errors.CheckViolation), intruder.transaction():
            intruder.execute(f"UPDATE appointment SET {change} WHERE id = %s".encode(), [number])


@pytest.mark.parametrize("table", ["booking", "slot_offer", "equipment", "appointment_history"])
def test_a_temporary_table_of_the_same_name_stands_in_for_none_of_ours(
    practice: Practice, day: date, intruder: Intruder, table: str
) -> None:
    """What acts as the owner when a visit is written would write there, and its triggers would act as the owner."""
    start, name = practice.at(day, 9), sql.Identifier(table)
    for statement in (
        "CREATE TEMPORARY TABLE {name} (LIKE public.{name} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING IDENTITY)",
        "GRANT ALL ON pg_temp.{name} TO PUBLIC",
        "CREATE FUNCTION pg_temp.as_the_owner() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN DELETE FROM public.booking; RETURN NULL; END $$",
        "CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON pg_temp.{name} EXECUTE FUNCTION pg_temp.as_the_owner()",
    ):
        intruder.execute(sql.SQL(statement).format(name=name))
    number = written(intruder, practice, start)
    held = "SELECT count(*) FROM public.booking WHERE appointment_id = %s AND blocking"
    assert intruder.execute(held, [number]).fetchone() == (2,)
    kept = "SELECT count(*) FROM public.appointment_history WHERE appointment_id = %s"
    assert intruder.execute(kept, [number]).fetchone() == (1,)
    with pytest.raises(errors.ExclusionViolation):
        written(intruder, practice, start, patient=3)


@pytest.mark.parametrize("function", ["wb_book_appointment", "wb_book_offer", "wb_appointment_history"])
def test_what_acts_as_the_owner_is_hung_on_no_table_of_somebody_elses(intruder: Intruder, function: str) -> None:
    """Or a row written there would let go of the time of a visit that stands."""
    intruder.execute("CREATE TEMPORARY TABLE mine (LIKE appointment)")
    with pytest.raises(errors.InsufficientPrivilege, match=function):
        intruder.execute(
            sql.SQL("CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION {}()").format(
                sql.Identifier(function)
            )
        )


def test_every_function_that_acts_as_the_owner_means_the_owners_tables(intruder: Intruder) -> None:
    """Unless pg_temp is named, and last, it comes first; and a trigger's function is for the owner's tables only."""
    found = intruder.execute(
        "SELECT proname, array_to_string(proconfig, ' ') ~ 'search_path=[^=]*, pg_temp( |$)',"
        " prorettype = 'trigger'::regtype AND has_function_privilege(oid, 'EXECUTE')"
        " FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
    ).fetchall()
    assert len(found) >= 4
    assert [name for name, safe, anybodys in found if not safe or anybodys] == []


# ---- rows that are somebody else's ---------------------------------------------------------------------------------


@pytest.fixture
def theirs(api_as: ApiAs, elsewhere: Practice, day: date) -> int:
    """A visit at the other branch, of a patient who is registered there."""
    return made(api_as("reception"), wish(elsewhere, elsewhere.at(day, 13), patient_id=elsewhere.patients[3]))


@pytest.mark.parametrize("rows", [RowScope.OWN_BRANCH, RowScope.CARE_TEAM])
def test_a_visit_out_of_reach_is_nowhere_and_nothing_is_done_to_it(
    api_as: ApiAs,
    client_as: ClientAs,
    elsewhere: Practice,
    theirs: int,
    day: date,
    granted: Callable[..., None],
    rows: RowScope,
) -> None:
    granted("Nurse", Appointment=may("read create update", rows=rows), Patient=may("read", rows=rows))
    nurse, before = api_as("nurse"), (stored(theirs), everything())
    for path in ("", "/history"):
        assert nurse.get(f"{API}{theirs}{path}").status_code == 404
    later = elsewhere.at(day, 15).isoformat()
    for verb in STEPS:
        assert nurse.post(f"{API}{theirs}/{verb}").status_code == 404, verb
    assert nurse.post(f"{API}{theirs}/cancel", json={"reason": "pat"}).status_code == 404
    assert nurse.post(f"{API}{theirs}/reschedule", json={"start": later}).status_code == 404
    opens, closes = (elsewhere.at(day, hour).isoformat() for hour in (0, 23))
    seen = nurse.get(f"{API}between", query_string={"from": opens, "to": closes, "branch_id": elsewhere.branch})
    assert theirs not in [card["id"] for card in seen.get_json()["result"]]
    page = client_as("nurse")
    token = csrf_of(page.page("/"))
    assert page.get(f"/appointments/{theirs}/").status_code == 404
    assert page.get(f"/appointments/{theirs}/visit.ics").status_code == 404
    for path in ("appointments/{}/move", "appointments/{}/call-off", "appointments/{}/arrive", "desk/{}/left"):
        sent = {"csrf_token": token, "reason": "pat", "day": day.isoformat(), "time": "15:00"}
        assert page.post(f"/{path.format(theirs)}", data=sent).status_code == 404, path
    assert (stored(theirs), everything()) == before


def test_a_patient_out_of_reach_is_not_booked_and_when_they_are_busy_is_not_told(
    api_as: ApiAs, practice: Practice, elsewhere: Practice, day: date, theirs: int, granted: Callable[..., None]
) -> None:
    granted(
        "Nurse",
        Appointment=may("read create update", rows=RowScope.OWN_BRANCH),
        Patient=may("read", rows=RowScope.OWN_BRANCH),
    )
    nurse, before = api_as("nurse"), everything()
    same = {"patient_id": practice.patients[3], "practitioner_id": practice.people[1]}
    for hour in (9, 19):  # free, and while they are at the other branch
        answer = nurse.post(API, json=wish(practice, practice.at(day, hour), **same))
        assert (answer.status_code, answer.get_json()["field"]) == (422, "patient")
    asked = {"visit_type_id": practice.visit, "patient_id": practice.patients[3]}
    assert nurse.get(f"{API}free", query_string=asked).status_code == 422
    assert everything() == before


def test_a_taken_time_says_what_was_asked_for_and_nothing_of_whose_visit_it_is(
    api_as: ApiAs, practice: Practice, day: date
) -> None:
    desk = api_as("reception")
    start = practice.at(day, 9)
    made(desk, wish(practice, start, room_id=practice.rooms[0], equipment_ids=[practice.scanner]))
    answer = api_as("nurse").post(API, json=wish(practice, start, patient_id=practice.patients[5]))
    assert answer.status_code == 409
    assert answer.get_json()["conflicts"] == [
        {
            "kind": "practitioner",
            "id": practice.people[0],
            "name": "Dora Doctor",
            "from": start.isoformat(),
            "to": (start + timedelta(minutes=30)).isoformat(),
        }
    ]
    for word in (REASON, "Medina", "Scan", f'"patient_id":{practice.patients[2]}'):
        assert word not in answer.text


def test_patients_do_nothing_with_their_visits_but_look(
    api_as: ApiAs, client_as: ClientAs, practice: Practice, day: date
) -> None:
    desk = api_as("reception")
    own = made(desk, wish(practice, practice.at(day, 9), patient_id=practice.patients[0]))
    others = made(desk, wish(practice, practice.at(day, 10)))
    patient, page = api_as("patient"), client_as("patient")
    before = everything()
    assert patient.get(f"{API}{own}").status_code == 200
    assert [patient.get(f"{API}{others}{path}").status_code for path in ("", "/history")] == [404, 404]
    later = practice.at(day, 15)
    assert patient.post(API, json=wish(practice, later, patient_id=practice.patients[0])).status_code == 403
    for number in (own, others):
        for verb in STEPS:
            assert patient.post(f"{API}{number}/{verb}").status_code == 403
        assert patient.post(f"{API}{number}/cancel", json={"reason": "pat"}).status_code == 403
        moved = patient.post(f"{API}{number}/reschedule", json={"start": later.isoformat()})
        assert moved.status_code in (403, 404)
    for path in ("/desk/", "/desk/now.html", "/desk/board/", "/waitlist/", "/waitlist/new/", "/series/new/"):
        assert page.get(path).status_code == 403, path
    assert page.get("/calendar/new/").status_code == 403
    for view in ("day", "week", "month", "list"):
        assert "Medina" not in page.page(f"/calendar/?date={day}&view={view}&branch={practice.branch}")
    assert everything() == before


def test_why_a_doctor_is_away_is_no_patients_business(
    client_as: ClientAs, practice: Practice, hospital: Hospital, day: date
) -> None:
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        row = schedules.set_exception(
            session,
            kind="leave",
            practitioner_id=practice.people[1],
            branch_id=None,
            starts_at=practice.at(day, 0),
            ends_at=practice.at(day, 23),
            note="Own surgery",
        ).id
    assert "Own surgery" in client_as("reception").page("/leave/")
    for path in ("/leave/", f"/leave/{row}/"):
        answer = client_as("patient").get(path)
        assert (answer.status_code, "Own surgery" in answer.text) == (403, False)


# ---- what somebody is not shown ------------------------------------------------------------------------------------


def test_who_is_not_shown_the_reason_neither_reads_nor_loses_it(
    api_as: ApiAs, client_as: ClientAs, practice: Practice, hospital: Hospital, day: date, granted: Callable[..., None]
) -> None:
    desk = api_as("reception")
    first = made(desk, wish(practice, practice.at(day, 9)))
    granted("Nurse", Appointment=may("read create update", masked=["reason"]))
    nurse = api_as("nurse")
    answer = nurse.post(f"{API}{first}/reschedule", json={"start": practice.at(day, 10).isoformat()})
    assert (answer.status_code, answer.get_json()["result"]["reason"]) == (200, None)
    moved = answer.get_json()["id"]
    assert stored(moved)["reason"] == REASON
    for path in (f"{API}{moved}", f"{API}{moved}/history", f"{API}?q=(columns:!(reason))"):
        assert REASON not in nurse.get(path).text
    assert REASON not in client_as("nurse").page(f"/appointments/{moved}/")
    for query in ("(filters:!((col:reason,opr:sw,value:S)))", "(order_column:reason,order_direction:asc)"):
        assert nurse.get(f"{API}?q={query}").status_code == 403
    number = booked_now(practice, reason=REASON)
    answer = nurse.post(f"{API}{number}/check-in")
    assert answer.status_code == 200, answer.text
    assert factories.stored(Encounter, answer.get_json()["result"]["encounter_id"])["reason"] == REASON


def booked_now(practice: Practice, **more: Any) -> int:
    """A visit that has just begun, whatever the hour of the day is."""
    said = {"patient_id": practice.patients[6], "override_reason": "Whatever the hour", **more}
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        return scheduling.book(session, asked(practice, now() - timedelta(minutes=10), **said)).id


# ---- forged requests -----------------------------------------------------------------------------------------------


def test_a_session_without_the_pages_token_changes_nothing(
    client_as: ClientAs, api_as: ApiAs, practice: Practice, day: date
) -> None:
    number = made(api_as("reception"), wish(practice, practice.at(day, 9)))
    page, before = client_as("reception"), everything()
    sent: dict[str, Any] = {
        API: wish(practice, practice.at(day, 11)),
        f"{API}{number}/cancel": {"reason": "pat"},
        f"{API}{number}/reschedule": {"start": practice.at(day, 11).isoformat()},
        **{f"{API}{number}/{verb}": {} for verb in STEPS},
    }
    for path, body in sent.items():
        assert page.post(path, json=body).status_code == 400, path
        assert page.post(path, data=str(body), content_type="text/plain").status_code == 400, path
    for path in ("move", "call-off", "arrive", "withdraw"):
        assert page.post(f"/appointments/{number}/{path}", data={"reason": "pat"}).status_code == 400
    for path in (f"/desk/{number}/left", "/calendar/new/", "/series/new/", "/waitlist/new/", "/calendar-feed/open"):
        assert page.post(path, data={"reason": "pat"}).status_code == 400, path
    assert everything() == before


def test_a_key_is_its_senders_and_tells_nobody_else_anything(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk, nurse, key = api_as("reception"), api_as("nurse"), {"Idempotency-Key": f"one-{day}"}
    first = wish(practice, practice.at(day, 9))
    number = made(desk, first, **key)
    answer = nurse.post(API, json=first, headers=key)
    assert (answer.status_code, answer.get_json()["error"]) == (409, "SlotTaken")
    other = made(nurse, wish(practice, practice.at(day, 11)), **key)
    assert other != number
    assert made(desk, first, **key) == number
    assert desk.post(API, json=wish(practice, practice.at(day, 12)), headers=key).status_code == 422
    assert made(nurse, wish(practice, practice.at(day, 11)), **key) == other


# ---- numbers and times that are none -------------------------------------------------------------------------------

DIGITS = "²"
"""Python calls it a digit, and cannot read it as a number."""


@pytest.mark.parametrize("number", [DIGITS, "٣٣٣٣", "-1", "0", "9" * 18, "9" * 40, "1e3", "nan", "1%00"])
def test_a_number_that_is_none_finds_nothing(api_as: ApiAs, number: str) -> None:
    desk = api_as("reception")
    assert desk.get(f"{API}{quote(number, safe='%')}").status_code == 404
    assert desk.post(f"{API}{quote(number, safe='%')}/arrive").status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        {"from": "0001-01-01T00:00:00Z", "to": "0001-01-20T00:00:00Z"},
        {"from": "9999-12-01T00:00:00Z", "to": "9999-12-31T23:59:59Z"},
        {"from": "2026-11-01", "to": "2026-11-02"},
        {"from": "2026-11-02T00:00:00Z", "to": "2026-11-01T00:00:00Z"},
        {"branch_id": DIGITS},
        {"practitioner_id": "-1"},
        {"room_id": "9" * 30},
        {"status": "a\0b"},
    ],
)
def test_a_stretch_of_time_that_is_none_is_refused(api_as: ApiAs, query: dict[str, str]) -> None:
    whole = {"from": "2026-11-01T00:00:00Z", "to": "2026-11-02T00:00:00Z", **query}
    assert api_as("reception").get(f"{API}between", query_string=whole).status_code == 422


@pytest.mark.parametrize(
    "query",
    [
        {"from": "9999-12-31T23:50:00Z"},
        {"until": "0001-01-01T00:00:00Z"},
        {"limit": DIGITS},
        {"minutes": "4"},
        {"minutes": "9" * 18},
        {"patient_id": "9" * 18},
        {"after": "é"},
        {"after": "WyI5OTk5LTEyLTMxVDIzOjU5OjU5WiIsIjI4MDAtMDEtMDFUMDA6MDA6MDBaIiwxLDFd"},
        {
            "after": "WyIyMDI2LTExLTI0VDAwOjAwOjAwWiIsIjIwMjYtMTEtMjRUMDA6MDA6MDBaIiw5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OSwxXQ=="
        },
    ],
)
def test_a_search_that_makes_no_sense_is_refused(api_as: ApiAs, practice: Practice, query: dict[str, str]) -> None:
    asked = {"visit_type_id": practice.visit, **query}
    assert api_as("reception").get(f"{API}free", query_string=asked).status_code == 422


@pytest.mark.parametrize(
    "change",
    [
        {"minutes": float("nan")},
        {"minutes": float("inf")},
        {"minutes": -30},
        {"minutes": 0},
        {"minutes": 1440},
        {"minutes": 721},
        {"patient_id": 1e300},
        {"patient_id": 10**40},
        {"patient_id": -1},
        {"patient_id": True},
        {"practitioner_id": 1.5},
        {"room_id": -5},
        {"branch_id": 2**63},
        {"equipment_ids": [10**30]},
        {"equipment_ids": [-1]},
        {"equipment_ids": list(range(1, 12))},
        {"reason": "a\0b"},
        {"reason": "\ud800"},
        {"reason": "x" * 501},
        {"start": "0001-01-01T00:00:00+23:59"},
        {"start": "9999-12-31T23:59:00-23:59"},
        {"status": "fulfilled"},
        {"created_by_id": 1},
        {"override_reason": 5},
    ],
)
def test_a_wish_that_cannot_be_is_refused(api_as: ApiAs, practice: Practice, day: date, change: dict[str, Any]) -> None:
    before = everything()
    answer = api_as("reception").post(API, json={**wish(practice, practice.at(day, 9)), **change})
    assert answer.status_code == 422, answer.text
    assert everything() == before


def test_equipment_of_another_branch_is_not_lent(
    api_as: ApiAs, practice: Practice, elsewhere: Practice, day: date
) -> None:
    before = everything()
    for more in ({"equipment_ids": [elsewhere.scanner]}, {"room_id": elsewhere.rooms[0]}):
        answer = api_as("reception").post(API, json=wish(practice, practice.at(day, 9), **more))
        assert answer.status_code == 422
        assert "belongs to another branch" in answer.get_json()["message"]
    assert everything() == before


@pytest.mark.parametrize("minutes", [0, -5, 4, 721])
def test_a_visit_is_not_moved_to_a_length_that_cannot_be(
    api_as: ApiAs, practice: Practice, day: date, minutes: int
) -> None:
    desk = api_as("reception")
    number = made(desk, wish(practice, practice.at(day, 9)))
    before = (stored(number), everything())
    asked = {"start": practice.at(day, 10).isoformat(), "minutes": minutes}
    answer = desk.post(f"{API}{number}/reschedule", json=asked)
    assert (answer.status_code, answer.get_json()["field"]) == (422, "minutes")
    assert (stored(number), everything()) == before


@pytest.mark.parametrize("since", ["١-١", "1-1 ", "-1-1", "1", "1-1-1", "9" * 20 + "-0", "9" * 19 + "-0", 1, ["1-1"]])
def test_an_event_nobody_was_told_of_is_answered_with_everything_anew(servers: Servers, since: object) -> None:
    with redis.Redis.from_url(servers.redis_url.rpartition("/")[0] + "/8") as client:
        client.flushdb()
        feed.append(client, feed.Pointer("Appointment", 1, 1, 1))
        assert feed.missed(client, since, feed.last(client)) is None


# ---- at the same moment --------------------------------------------------------------------------------------------


def test_of_many_who_move_or_call_off_one_visit_at_once_one_does(
    practice: Practice, hospital: Hospital, clerk: Clerk, day: date
) -> None:
    number = clerk(scheduling.book, asked(practice, practice.at(day, 9))).id

    def act(nth: int) -> int:
        with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
            if nth % 3 == 0:
                return scheduling.cancel(session, number, reason="pat").id
            return scheduling.move(session, number, start_at=practice.at(day, 10 + nth % 6)).id

    answers = at_once(12, act)
    assert Counter(type(each) for each in answers) == {int: 1, IllegalTransition: 11}
    (done,) = (each for each in answers if isinstance(each, int))
    assert stored(number)["status"] == "cancelled"
    stands = factories.number_of(Appointment, Appointment.moved_from_id == number)
    assert stands == (done != number)
    assert not any(blocks for _, _, blocks in bookings(number).values())


def test_two_visits_moved_onto_one_time_at_once_leave_one_where_it_was(
    practice: Practice, hospital: Hospital, clerk: Clerk, day: date
) -> None:
    numbers = [
        clerk(scheduling.book, asked(practice, practice.at(day, 8 + nth), patient_id=practice.patients[2 + nth])).id
        for nth in range(6)
    ]

    def act(nth: int) -> int:
        with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
            return scheduling.move(session, numbers[nth], start_at=practice.at(day, 16)).id

    answers = at_once(6, act)
    assert Counter(type(each) for each in answers) == {int: 1, SlotTaken: 5}
    states = Counter(stored(number)["status"] for number in numbers)
    assert states == {"cancelled": 1, "booked": 5}


# ---- things that went elsewhere ------------------------------------------------------------------------------------


def moved_away(hospital: Hospital, thing: int, branch: int) -> None:
    """As somebody who runs the hospital does it."""
    with factories.acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
        row = session.get_one(Equipment, thing)
        schedules.change_equipment(session, row, branch=session.get(Branch, branch), name=f"Lent {thing}")


@pytest.fixture
def lent(practice: Practice) -> int:
    """A piece of equipment of this branch."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        thing = Equipment(branch_id=practice.branch, name=f"Lent {next(_days)}")
        session.add(thing)
        session.flush()
        return thing.id


@pytest.mark.parametrize("step", ["cancel", "miss", "withdraw"])
def test_a_visit_comes_to_its_end_after_what_it_was_booked_with_went_to_another_branch(
    practice: Practice, elsewhere: Practice, hospital: Hospital, clerk: Clerk, lent: int, day: date, step: str
) -> None:
    number = clerk(scheduling.book, asked(practice, practice.at(day, 9), equipment_ids=(lent,))).id
    with guard.engine().begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE appointment SET start_at = start_at - interval '900 days', end_at = end_at - interval '900 days' "
            f"WHERE id = {number}"
        )
    moved_away(hospital, lent, elsewhere.branch)
    more = {"reason": "pat"} if step == "cancel" else {}
    ended = clerk(getattr(scheduling, step), number, **more)
    assert ended.status in ("cancelled", "noshow", "entered-in-error")
    assert not any(blocks for _, _, blocks in bookings(number).values())


def test_what_a_visit_of_now_is_done_with_stays(
    practice: Practice, elsewhere: Practice, hospital: Hospital, clerk: Clerk, lent: int
) -> None:
    nurse, patient = practice.people[1], practice.patients[7]
    number = booked_now(practice, practitioner_id=nurse, patient_id=patient, equipment_ids=(lent,))
    clerk(scheduling.arrive, number)
    with refused(Invalid, "branch"):
        moved_away(hospital, lent, elsewhere.branch)
    assert factories.stored(Equipment, lent)["branch_id"] == practice.branch
