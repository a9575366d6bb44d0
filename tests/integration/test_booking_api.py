"""Booking over REST: what is answered, and what happens when many desks ask at the same moment."""

from __future__ import annotations

import http.client
import json
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from app import guard
from app.actor import service
from app.services import series
from app.services.scheduling import Asked
from app.services.series import Rule
from models.base import now
from models.organization import Room
from models.scheduling import Equipment, ScheduleException, VisitType, WorkingHours
from tests import factories
from tests.bench.house import Web, furnish, open_house, open_web
from tests.factories import Hospital

ApiAs = Callable[[str], FlaskClient]
API = "/api/v1/appointment/"
MADRID = ZoneInfo("Europe/Madrid")


@dataclass
class Practice:
    """What can be booked."""

    visit: int
    scan: int
    rooms: list[int]
    scanner: int
    doctor: int
    nurse: int
    branch: int
    patients: list[int]


def opened(branch: int, people: list[int], patients: list[int]) -> Practice:
    """A practice that is open from 8 to 18 every day: a kind of visit, one with a scanner, two rooms."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visit = VisitType(name="Follow-up", minutes=30, needs_room=False)
        scan = VisitType(name="Scan", minutes=30, buffer_after=10, needs_room=True)
        rooms = [Room(branch_id=branch, name=f"Scan {number}") for number in (1, 2)]
        scanner = Equipment(branch_id=branch, name="Scanner")
        session.add_all([visit, *rooms, scanner])
        scan.equipment, scan.rooms = [scanner], rooms
        session.add(scan)
        for person in people:
            for weekday in range(1, 8):
                hours = WorkingHours(
                    practitioner_id=person, branch_id=branch, weekday=weekday, starts=time(8), ends=time(18)
                )
                hours.valid_from = date(2020, 1, 1)
                session.add(hours)
        session.flush()
        return Practice(
            visit.id, scan.id, [room.id for room in rooms], scanner.id, people[0], people[1], branch, patients
        )


@pytest.fixture(scope="module")
def practice(database: Any) -> Practice:
    hospital: Hospital = database.hospital
    people = [hospital.staff["doctor"], hospital.staff["nurse"]]
    return opened(hospital.branches[0], people, hospital.patients)


_days = iter(range(20, 700))


@pytest.fixture
def day() -> date:
    """A day of the future that no other test uses."""
    return now().date() + timedelta(days=next(_days))


def at(day: date, hour: int, minute: int = 0) -> str:
    return datetime.combine(day, time(hour, minute), tzinfo=MADRID).isoformat()


def asking(practice: Practice, start: str, **more: Any) -> dict[str, Any]:
    return {
        "patient_id": practice.patients[2],
        "practitioner_id": practice.doctor,
        "visit_type_id": practice.visit,
        "start": start,
        **more,
    }


def booked(client: FlaskClient, asked: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = client.post(API, json=asked, headers=headers)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.get_json()["result"]
    return found


def of_day(client: FlaskClient, day: date) -> list[dict[str, Any]]:
    asked = {"from": at(day, 0), "to": at(day + timedelta(days=1), 0)}
    found: list[dict[str, Any]] = client.get(f"{API}between", query_string=asked).get_json()["result"]
    return found


def test_a_visit_is_booked_shown_and_told_of(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk = api_as("reception")
    card = booked(desk, asking(practice, at(day, 9), reason="Cough"))
    assert (card["start"], card["end"], card["minutes"]) == (at(day, 9), at(day, 9, 30), 30)
    assert (card["status"], card["reason"], card["branch_id"]) == ("booked", "Cough", practice.branch)
    assert desk.get(f"{API}{card['id']}").get_json()["result"] == card
    assert of_day(desk, day) == [card]
    assert [row["status"] for row in desk.get(f"{API}{card['id']}/history").get_json()["result"]] == ["booked"]


def test_a_taken_time_names_who_and_three_others(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk = api_as("reception")
    first = booked(desk, asking(practice, at(day, 9)))
    answer = desk.post(API, json=asking(practice, at(day, 9, 15), patient_id=practice.patients[3]))
    assert answer.status_code == 409
    told = answer.get_json()
    assert [(each["kind"], each["id"]) for each in told["conflicts"]] == [("practitioner", practice.doctor)]
    assert told["conflicts"][0]["name"]
    assert (told["conflicts"][0]["from"], told["conflicts"][0]["to"]) == (at(day, 9), at(day, 9, 30))
    assert len(told["alternatives"]) == 3
    assert told["alternatives"][0]["start"] == at(day, 9, 30)
    for other in told["alternatives"]:
        asked = asking(practice, other["start"], patient_id=practice.patients[3])
        card = booked(desk, {**asked, "practitioner_id": other["practitioner_id"]})
        assert desk.post(f"{API}{card['id']}/cancel", json={"reason": "pat"}).status_code == 200
    assert first in of_day(desk, day)


def test_touching_is_not_overlapping(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk = api_as("reception")
    booked(desk, asking(practice, at(day, 10)))
    booked(desk, asking(practice, at(day, 10, 30)))
    assert len(of_day(desk, day)) == 2


def test_room_and_equipment_are_found_and_kept_free_afterwards(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk = api_as("reception")
    card = booked(desk, asking(practice, at(day, 11), visit_type_id=practice.scan))
    assert card["room_id"] in practice.rooms
    assert card["equipment_ids"] == [practice.scanner]
    other = asking(
        practice,
        at(day, 11, 30),
        visit_type_id=practice.scan,
        practitioner_id=practice.nurse,
        patient_id=practice.patients[4],
    )
    answer = desk.post(API, json=other)
    assert answer.status_code == 409  # the scanner is cleaned for ten minutes
    booked(desk, {**other, "start": at(day, 11, 40)})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"start": "2027-05-01T09:00:00"}, "start"),
        ({"start": "tomorrow"}, "start"),
        ({"start": "9999-12-31T23:59:59+00:00"}, "start"),
        ({"minutes": 0}, "minutes"),
        ({"minutes": 24 * 60}, "minutes"),
        ({"minutes": -30}, "minutes"),
        ({"patient_id": 999_999}, "patient"),
        ({"patient_id": 2**70}, "patient"),
        ({"practitioner_id": 999_999}, "practitioner"),
        ({"room_id": 999_999}, "room"),
        ({"visit_type_id": 999_999}, "visit_type"),
        ({"branch_id": 999_999}, "branch"),
        ({"equipment_ids": [999_999]}, "equipment"),
        ({"reason": "x" * 501}, "reason"),
        ({"colour": "red"}, None),
        ({"start": 5}, "start"),
    ],
)
def test_bad_input_is_refused_by_name_and_nothing_is_booked(
    api_as: ApiAs, practice: Practice, day: date, change: dict[str, Any], field: str | None
) -> None:
    desk = api_as("reception")
    answer = desk.post(API, json=asking(practice, at(day, 9)) | change)
    assert answer.status_code == 422, answer.text
    assert answer.get_json().get("field") == field
    assert of_day(desk, day) == []


def test_the_past_and_the_night_ask_for_a_right_and_a_reason(api_as: ApiAs, practice: Practice, day: date) -> None:
    night = asking(practice, at(day, 22))
    answer = api_as("reception").post(API, json={**night, "override_reason": "Emergency"})
    assert (answer.status_code, answer.get_json()["error"]) == (422, "OutsideHours")
    doctor = api_as("doctor")
    answer = doctor.post(API, json=night)
    assert (answer.status_code, answer.get_json()["field"]) == (422, "override_reason")
    assert of_day(doctor, day) == []
    booked(doctor, {**night, "override_reason": "Emergency"})
    yesterday = datetime.combine(now().date() - timedelta(days=1), time(9), tzinfo=MADRID).isoformat()
    answer = doctor.post(API, json=asking(practice, yesterday))
    assert (answer.status_code, answer.get_json()["error"]) == (422, "OutsideHours")


def test_somebody_of_another_branch_is_not_booked_here(
    api_as: ApiAs, practice: Practice, hospital: Hospital, day: date
) -> None:
    lab = asking(practice, at(day, 9), practitioner_id=hospital.staff["lab"], branch_id=hospital.branches[1])
    answer = api_as("doctor").post(API, json={**lab, "override_reason": "As agreed"})
    assert (answer.status_code, answer.get_json()["error"]) == (422, "NotAtBranch")


def test_a_visit_is_moved_and_a_refused_move_leaves_it(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk = api_as("reception")
    first = booked(desk, asking(practice, at(day, 9), reason="Cough"))
    booked(desk, asking(practice, at(day, 12), patient_id=practice.patients[3]))
    answer = desk.post(f"{API}{first['id']}/reschedule", json={"start": at(day, 12, 15)})
    assert answer.status_code == 409
    assert answer.get_json()["conflicts"][0]["kind"] == "practitioner"
    assert desk.get(f"{API}{first['id']}").get_json()["result"] == first
    answer = desk.post(f"{API}{first['id']}/reschedule", json={"start": at(day, 9, 15), "version": first["version"]})
    assert answer.status_code == 200, answer.text
    new = answer.get_json()["result"]
    assert (new["start"], new["moved_from_id"], new["reason"]) == (at(day, 9, 15), first["id"], "Cough")
    assert desk.get(f"{API}{first['id']}").get_json()["result"]["status"] == "cancelled"
    again = desk.post(f"{API}{first['id']}/reschedule", json={"start": at(day, 14)})
    assert (again.status_code, again.get_json()["error"]) == (409, "IllegalTransition")


def test_a_visit_goes_through_its_day(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk = api_as("doctor")
    soon = (now() + timedelta(minutes=5)).replace(second=0, microsecond=0)
    asked = asking(practice, soon.isoformat(), patient_id=practice.patients[5], override_reason="Walked in")
    card = booked(desk, {**asked, "walk_in": True})
    steps = [("arrive", "arrived"), ("undo-arrival", "booked"), ("arrive", "arrived"), ("check-in", "checked-in")]
    for word, status in (*steps, ("fulfil", "fulfilled")):
        answer = desk.post(f"{API}{card['id']}/{word}")
        assert answer.status_code == 200, answer.text
        assert answer.get_json()["result"]["status"] == status
    done = answer.get_json()["result"]
    assert done["queue_number"] >= 1
    assert done["encounter_id"]
    for word in ("arrive", "no-show", "fulfil", "check-in"):
        assert desk.post(f"{API}{card['id']}/{word}").status_code == 409
    assert desk.post(f"{API}{card['id']}/cancel", json={"reason": "pat"}).status_code == 409
    later = booked(desk, asking(practice, at(day, 9)))
    assert desk.post(f"{API}{later['id']}/no-show").status_code == 409
    assert desk.post(f"{API}{later['id']}/cancel", json={"reason": "boredom"}).status_code == 422
    answer = desk.post(f"{API}{later['id']}/cancel", json={"reason": "pat"})
    assert answer.get_json()["result"]["cancelation_reason"] == "pat"
    booked(desk, asking(practice, at(day, 9)))


def test_a_request_with_a_key_books_once(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk = api_as("reception")
    asked, key = asking(practice, at(day, 9)), {"Idempotency-Key": f"desk-{day}"}
    assert booked(desk, asked, **key) == booked(desk, asked, **key)
    answer = desk.post(API, json={**asked, "start": at(day, 15)}, headers=key)
    assert (answer.status_code, answer.get_json()["error"]) == (422, "KeyReused")
    assert len(of_day(desk, day)) == 1


def test_free_times_come_in_pages_without_gaps_or_doubles(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk = api_as("reception")
    booked(desk, asking(practice, at(day, 9)))
    asked = {
        "visit_type_id": practice.visit,
        "branch_id": practice.branch,
        "practitioner_id": [practice.doctor, practice.nurse],
        "from": at(day, 8),
        "until": at(day, 18),
        "limit": 7,
    }
    found: list[tuple[str, int]] = []
    after: dict[str, str] = {}
    while True:
        told = desk.get(f"{API}free", query_string={**asked, **after}).get_json()
        found += [(each["start"], each["practitioner_id"]) for each in told["result"]]
        if told["next"] is None:
            break
        after = {"after": told["next"]}
    wanted = {
        (at(day, 8 + half // 2, half % 2 * 30), person)
        for half in range(20)
        for person in (practice.doctor, practice.nurse)
    } - {(at(day, 9), practice.doctor)}
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert found == sorted(found, key=lambda each: (datetime.fromisoformat(each[0]), each[1]))
    assert desk.get(f"{API}free", query_string={**asked, "after": "nonsense"}).status_code == 422


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_same_hours_at_two_branches_are_neither_skipped_nor_doubled(
    api_as: ApiAs, practice: Practice, hospital: Hospital, day: date, size: int
) -> None:
    """Somebody who could see patients at either branch; a page may end between the two."""
    person = hospital.staff["lab"]
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for branch in hospital.branches:
            extra = ScheduleException(kind="extra", practitioner_id=person, branch_id=branch)
            extra.starts_at = datetime.combine(day, time(9), tzinfo=MADRID)
            extra.ends_at = extra.starts_at + timedelta(hours=2)
            session.add(extra)
    asked = {
        "visit_type_id": practice.visit,
        "branch_id": hospital.branches,
        "practitioner_id": person,
        "from": at(day, 9),
        "until": at(day, 11),
        "limit": size,
    }
    desk, found, after = api_as("reception"), [], {}
    while True:
        told = desk.get(f"{API}free", query_string={**asked, **after}).get_json()
        found += [(datetime.fromisoformat(each["start"]), each["branch_id"]) for each in told["result"]]
        if told["next"] is None:
            break
        after = {"after": told["next"]}
    begins = datetime.combine(day, time(9), tzinfo=MADRID)
    assert found == [
        (begins + half * timedelta(minutes=30), branch) for half in range(4) for branch in hospital.branches
    ]


@pytest.fixture
def no_series_stays(database: Any) -> Iterator[None]:
    """A series reaches into the days of other tests."""
    yield
    with guard.engine().begin() as connection:
        connection.execute(
            text("UPDATE appointment SET status = 'cancelled' WHERE series_id IS NOT NULL AND status = 'booked'")
        )


def series_of(practice: Practice, hospital: Hospital, day: date, count: int = 3) -> list[dict[str, Any]]:
    """The visits of a weekly series at nine, in order."""
    asked = Asked(
        practice.patients[2],
        practice.visit,
        practice.doctor,
        datetime.combine(day, time(9), tzinfo=MADRID),
        branch_id=practice.branch,
    )
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        number = series.book_series(session, asked, Rule("weekly", count=count)).id
    return visits_of(number)


def visits_of(number: int) -> list[dict[str, Any]]:
    query = text("SELECT * FROM appointment WHERE series_id = :number AND status = 'booked' ORDER BY start_at")
    with guard.engine().connect() as connection:
        return [dict(row) for row in connection.execute(query, {"number": number}).mappings()]


def test_several_of_a_series_are_moved_and_called_off_together(
    api_as: ApiAs, practice: Practice, hospital: Hospital, day: date, no_series_stays: None
) -> None:
    desk, (first, second, third) = api_as("reception"), series_of(practice, hospital, day)
    blocker = booked(desk, asking(practice, at(day + timedelta(days=15), 11), patient_id=practice.patients[4]))
    body = {"start": at(day + timedelta(days=8), 11), "scope": "following", "version": second["version"]}
    answer = desk.post(f"{API}{second['id']}/reschedule", json=body)
    assert answer.status_code == 409
    told = answer.get_json()
    assert [(each["id"], bool(each["obstacle"])) for each in told["visits"]] == [
        (second["id"], False),
        (third["id"], True),
    ]
    assert visits_of(first["series_id"]) == [first, second, third]
    assert desk.post(f"{API}{blocker['id']}/cancel", json={"reason": "pat"}).status_code == 200
    for bad, status in (({"version": 99}, 409), ({"minutes": 45}, 422), ({"scope": "some"}, 422)):
        assert desk.post(f"{API}{second['id']}/reschedule", json={**body, **bad}).status_code == status
    assert visits_of(first["series_id"]) == [first, second, third]
    moved = desk.post(f"{API}{second['id']}/reschedule", json=body).get_json()
    assert [each["start"] for each in moved["visits"]] == [at(day + timedelta(days=days), 11) for days in (8, 15)]
    assert moved["result"]["moved_from_id"] == second["id"]
    assert visits_of(first["series_id"]) == [first]
    answer = desk.post(f"{API}{moved['id']}/cancel", json={"reason": "prov", "scope": "all"})
    assert answer.status_code == 200
    assert visits_of(moved["result"]["series_id"]) == []
    assert visits_of(first["series_id"]) == [first]


@pytest.mark.parametrize("username", ["billing", "patient"])
def test_who_may_only_look_changes_no_series(
    api_as: ApiAs, practice: Practice, hospital: Hospital, day: date, no_series_stays: None, username: str
) -> None:
    before = series_of(practice, hospital, day)
    for verb, body in (("reschedule", {"start": at(day, 15)}), ("cancel", {"reason": "pat"})):
        answer = api_as(username).post(f"{API}{before[0]['id']}/{verb}", json={**body, "scope": "all"})
        assert answer.status_code in (403, 404)
    assert visits_of(before[0]["series_id"]) == before


@pytest.mark.parametrize("username", ["lab", "pharmacist", "privacy", "patient"])
def test_who_may_not_book_is_refused(api_as: ApiAs, practice: Practice, day: date, username: str) -> None:
    client = api_as(username)
    assert client.post(API, json=asking(practice, at(day, 9))).status_code == 403
    assert of_day(api_as("reception"), day) == []


def test_a_patient_sees_their_own_visits_only(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk, patient = api_as("reception"), api_as("patient")
    mine = booked(desk, asking(practice, at(day, 9), patient_id=practice.patients[0]))
    other = booked(desk, asking(practice, at(day, 10), patient_id=practice.patients[1]))
    assert [each["id"] for each in of_day(patient, day)] == [mine["id"]]
    assert patient.get(f"{API}{other['id']}").status_code == 404
    assert patient.post(f"{API}{mine['id']}/cancel", json={"reason": "pat"}).status_code == 403
    assert api_as("billing").get(f"{API}{mine['id']}").get_json()["result"]["reason"] is None


def test_free_times_do_not_tell_when_somebody_else_is_busy(api_as: ApiAs, practice: Practice, day: date) -> None:
    desk, patient = api_as("reception"), api_as("patient")
    booked(desk, asking(practice, at(day, 9), patient_id=practice.patients[1]))
    booked(desk, asking(practice, at(day, 10), patient_id=practice.patients[0]))
    asked = {
        "visit_type_id": practice.visit,
        "branch_id": practice.branch,
        "practitioner_id": practice.nurse,
        "from": at(day, 9),
        "until": at(day, 11),
    }

    def free(client: FlaskClient, whose: int) -> Any:
        return client.get(f"{API}free", query_string={**asked, "patient_id": whose})

    refused = free(patient, practice.patients[1])
    assert (refused.status_code, refused.get_json()["field"]) == (422, "patient_id")
    assert "result" not in refused.get_json()
    assert free(desk, 999_999).status_code == 422
    kept = [each["start"] for each in free(patient, practice.patients[0]).get_json()["result"]]
    assert at(day, 10) not in kept
    assert at(day, 9) in kept
    assert at(day, 9) not in [each["start"] for each in free(desk, practice.patients[1]).get_json()["result"]]


# ---- many at the same moment -------------------------------------------------------------------------------------

CROWD = 50


@pytest.fixture(scope="module")
def house(seal: Path) -> Iterator[tuple[Web, Practice]]:
    """Two web processes of their own over one database."""
    home = Path(tempfile.mkdtemp(prefix="wardbook-test-"))
    home.chmod(0o711)
    try:
        with open_house(home) as whole:
            furnish(whole, 2 * CROWD, "wardbook")
            guard.connect(whole.url("wardbook"))
            with whole.connect("wardbook") as database:
                people = [row[0] for row in database.execute("SELECT id FROM practitioner ORDER BY id").fetchall()]
                patients = [row[0] for row in database.execute("SELECT id FROM patient ORDER BY id").fetchall()]
                database.execute(
                    "INSERT INTO practitioner (family, given, prefix, qualification, identifier, telecom, active,"
                    " home_branch_id, fhir_id, version, created_at, updated_at)"
                    " SELECT 'Crowd ' || n, '', '', '', '[]', '[]', true, 1, gen_random_uuid(), 1, now(), now()"
                    f" FROM generate_series(1, {CROWD}) AS n"
                )
                database.execute(
                    "INSERT INTO room (branch_id, name, capacity, active, fhir_id, version, created_at, updated_at)"
                    " SELECT 1, 'Crowd ' || n, 1, true, gen_random_uuid(), 1, now(), now()"
                    f" FROM generate_series(1, {CROWD}) AS n"
                )
                crowd = [
                    row[0]
                    for row in database.execute(
                        "SELECT id FROM practitioner WHERE family LIKE 'Crowd%' ORDER BY id"
                    ).fetchall()
                ]
                rooms = [
                    row[0]
                    for row in database.execute("SELECT id FROM room WHERE name LIKE 'Crowd%' ORDER BY id").fetchall()
                ]
            found = opened(1, [people[0], *crowd], patients)
            with guard.acting_as(service("demo")), guard.unit_of_work() as session:
                scan = session.get(VisitType, found.scan)
                assert scan is not None
                kinds = VisitType(name="Anywhere", minutes=30, needs_room=False)
                session.add(kinds)
                session.flush()
                found.visit = kinds.id
            found.rooms = rooms
            guard.session.remove()
            guard.engine().dispose()
            with open_web(whole, "wardbook", workers=2) as web:
                web.crowd = crowd  # type: ignore[attr-defined]
                yield web, found
    finally:
        shutil.rmtree(home, ignore_errors=True)


def at_once(web: Web, bodies: list[dict[str, Any]]) -> Counter[int]:
    """Everybody asks at the same moment, each on a connection of their own; how many answers there were of a kind."""
    headers = {**web.headers(rest=True), "Content-Type": "application/json"}
    ready, found, lock = threading.Barrier(len(bodies)), Counter[int](), threading.Lock()

    def ask(body: dict[str, Any]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
        connection.connect()
        ready.wait()
        connection.request("POST", API, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        with lock:
            found[answer.status] += 1
        connection.close()

    threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("shared", ["practitioner", "room", "equipment", "patient"])
def test_fifty_at_once_for_one_time(house: tuple[Web, Practice], shared: str) -> None:
    """Overlapping, not equal, times; everything but one resource is each one's own."""
    web, practice = house
    crowd: list[int] = web.crowd  # type: ignore[attr-defined]
    day = now().date() + timedelta(days=30 + ["practitioner", "room", "equipment", "patient"].index(shared))
    bodies = []
    for nth in range(CROWD):
        body = {
            "patient_id": practice.patients[0 if shared == "patient" else nth],
            "practitioner_id": crowd[0 if shared == "practitioner" else nth],
            "visit_type_id": practice.visit,
            "branch_id": 1,
            "start": (datetime.combine(day, time(10), tzinfo=UTC) + timedelta(minutes=nth % 5 * 5)).isoformat(),
        }
        if shared == "room":
            body["room_id"] = practice.rooms[0]
        elif shared != "equipment":
            body["room_id"] = practice.rooms[nth]
        if shared == "equipment":
            body["equipment_ids"] = [practice.scanner]
        bodies.append(body)
    assert at_once(web, bodies) == {201: 1, 409: CROWD - 1}


def test_fifty_times_one_key_is_one_visit(house: tuple[Web, Practice]) -> None:
    web, practice = house
    day = now().date() + timedelta(days=40)
    body = {
        "patient_id": practice.patients[0],
        "practitioner_id": web.crowd[0],  # type: ignore[attr-defined]
        "visit_type_id": practice.visit,
        "branch_id": 1,
        "start": datetime.combine(day, time(10), tzinfo=UTC).isoformat(),
    }
    web.sign_in()
    found: list[Any] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
        headers = {**web.headers(rest=True), "Content-Type": "application/json", "Idempotency-Key": "once"}
        connection.request("POST", API, json.dumps(body), headers)
        answer = connection.getresponse()
        found.append((answer.status, json.loads(answer.read()).get("id")))
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in found} == {201}
    assert len({number for _, number in found}) == 1


def test_every_desk_gets_a_room_while_there_is_one(house: tuple[Web, Practice]) -> None:
    """Nobody is told that no room is free because somebody else was choosing at the same moment."""
    web, practice = house
    crowd: list[int] = web.crowd  # type: ignore[attr-defined]
    with web.house.connect("wardbook") as database:
        database.execute(
            "INSERT INTO visit_type (name, minutes, buffer_before, buffer_after, needs_room, active, fhir_id, version,"
            " created_at, updated_at) VALUES ('Any room', 30, 0, 0, true, true, gen_random_uuid(), 1, now(), now())"
        )
        (kind,) = database.execute("SELECT id FROM visit_type WHERE name = 'Any room'").fetchone() or (0,)
    start = datetime.combine(now().date() + timedelta(days=45), time(10), tzinfo=UTC).isoformat()
    bodies = [
        {
            "patient_id": practice.patients[nth],
            "practitioner_id": crowd[nth],
            "visit_type_id": kind,
            "branch_id": 1,
            "start": start,
        }
        for nth in range(30)
    ]
    assert at_once(web, bodies) == {201: 30}
