"""The calendar's pages without a script: who may open them, what they show, what a refused form keeps."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from flask import Flask
from sqlalchemy import event

from app import guard
from app.actor import service
from models.base import now
from models.organization import Room
from models.scheduling import Appointment, VisitType, WorkingHours
from tests import factories
from tests.conftest import Browser, Forms, csrf_of
from tests.factories import Hospital
from views import packages

ClientAs = Callable[[str], Browser]
MADRID = ZoneInfo("Europe/Madrid")


@dataclass
class Practice:
    """What can be booked at the first branch; two doctors work there from 8 to 18 every day."""

    branch: int
    other_branch: int
    doctor: int
    nurse: int
    room: int
    visit: int
    patients: list[int]
    desk: int
    """The account of the receptionist."""


def opened(hospital: Hospital) -> Practice:
    """A practice with a kind of visit that takes half an hour and needs a room, of which there are two."""
    branch, other = hospital.branches
    people = [hospital.staff["doctor"], hospital.staff["nurse"]]
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visit = VisitType(name="Follow-up", minutes=30, needs_room=True)
        room = Room(branch_id=branch, name="Consulting 1")
        session.add_all([visit, room])
        for person in people:
            for weekday in range(1, 8):
                hours = {"practitioner_id": person, "branch_id": branch, "weekday": weekday}
                session.add(WorkingHours(**hours, starts=time(8), ends=time(18), valid_from=date(2020, 1, 1)))
        session.flush()
        return Practice(branch, other, *people, room.id, visit.id, hospital.patients, hospital.accounts["reception"])


@pytest.fixture(scope="module")
def practice(database: Any) -> Practice:
    return opened(database.hospital)


_days = iter(range(20, 300))


@pytest.fixture
def day() -> date:
    """A day of the future that no other test uses."""
    return now().astimezone(MADRID).date() + timedelta(days=next(_days))


def typed(practice: Practice, day: date, at: str = "09:00", **more: Any) -> dict[str, Any]:
    """What somebody at the desk types to book a visit."""
    return {
        "patient_id": practice.patients[2],
        "who": "medina",
        "visit_type": practice.visit,
        "practitioner": practice.doctor,
        "room": practice.room,
        "branch": practice.branch,
        "day": day.isoformat(),
        "time": at,
        "minutes": "",
        "reason": "Cough since Monday",
        "save": "1",
        **more,
    }


def book(desk: Browser, practice: Practice, day: date, at: str = "09:00", **more: Any) -> int:
    """Book through the form; gives the number of the visit."""
    answer = desk.submit("/calendar/new/", typed(practice, day, at, **more))
    assert answer.status_code == 302, answer.text
    found = re.fullmatch(r"/appointments/(\d+)/", answer.headers["Location"])
    assert found is not None
    return int(found[1])


def listed(page: str) -> str:
    """The list of a calendar page."""
    return page[page.index("data-cal-list>") : page.index("data-cal-empty")]


def settings_of(page: str) -> dict[str, Any]:
    """What the page tells its script."""
    found = re.search(r'data-settings="([^"]*)"', page)
    assert found is not None
    said: dict[str, Any] = json.loads(html.unescape(found[1]))
    return said


def fields_of(page: str, name: str) -> dict[str, Any]:
    """The form that has a field of that name."""
    return next(form for form in Forms(page).forms if name in form)


def pressed(page: str, name: str) -> list[str]:
    """The values of the buttons of one name, in order."""
    return [html.unescape(value) for value in re.findall(rf'<button[^>]* name="{name}" value="([^"]+)"', page)]


def visits() -> int:
    return factories.number_of(Appointment)


# ---- who ---------------------------------------------------------------------------------------------------------


def test_whoever_reads_visits_opens_the_calendar_and_nobody_else(
    client_as: ClientAs,
    browser: Callable[[], Browser],
    granted: Callable[..., None],
    hospital: Hospital,
    practice: Practice,
) -> None:
    assert browser().get("/calendar/").headers["Location"].startswith("/login/")
    desk = client_as("reception").page("/calendar/")
    assert 'href="/calendar/" aria-current="page"' in desk
    assert "New appointment" in desk
    # A pharmacist or a clerk may look at visits, or not; whoever may not book is shown no way to.
    for username in ("billing", "privacy", "pharmacist", "lab"):
        client = client_as(username)
        with factories.acting(hospital.accounts[username]) as actor:
            may_read, may_book = actor.may("read", "Appointment"), actor.may("create", "Appointment")
        answer = client.get("/calendar/")
        assert answer.status_code == (200 if may_read else 403), username
        assert client.get("/calendar/new/").status_code == (200 if may_book else 403), username
        assert may_book or "New appointment" not in answer.text
    granted("Receptionist", Appointment=None)
    assert client_as("reception").get("/calendar/").status_code == 403


def test_who_may_only_look_changes_nothing_by_any_address(
    client_as: ClientAs, granted: Callable[..., None], practice: Practice, day: date
) -> None:
    from app.policy import may

    number = book(client_as("reception"), practice, day)
    before = factories.stored(Appointment, number)
    granted("Receptionist", Appointment=may("read"))
    looker = client_as("reception")
    page = looker.page(f"/appointments/{number}/")
    assert "Call it off" not in page
    assert "Medina" in page
    token = csrf_of(page)
    for path, data in (
        (f"/appointments/{number}/move", {"day": day.isoformat(), "time": "11:00"}),
        (f"/appointments/{number}/call-off", {"reason": "pat"}),
        (f"/appointments/{number}/withdraw", {}),
        ("/calendar/new/", typed(practice, day, "12:00")),
    ):
        answer = looker.post(path, data={**data, "csrf_token": token})
        assert answer.status_code == 403, path
    assert factories.stored(Appointment, number) == before
    assert factories.number_of(Appointment, Appointment.moved_from_id == number) == 0


def test_a_patient_sees_their_own_visits_and_no_others(client_as: ClientAs, practice: Practice, day: date) -> None:
    desk = client_as("reception")
    own = book(desk, practice, day, patient_id=practice.patients[0])
    other = book(desk, practice, day, "10:00", patient_id=practice.patients[1])
    patient = client_as("patient")
    page = listed(patient.page(f"/calendar/?view=list&date={day}&branch={practice.branch}"))
    assert "Quartermain" in page
    assert "Vandersloot" not in page
    assert patient.get(f"/appointments/{own}/").status_code == 200
    assert patient.get(f"/appointments/{other}/").status_code == 404
    month = patient.page(f"/calendar/?view=month&date={day}&branch={practice.branch}")
    assert "<b>1</b> visits" in month
    assert "<b>2</b> visits" not in month


def test_what_a_role_is_not_shown_is_said_to_be_so(client_as: ClientAs, practice: Practice, day: date) -> None:
    number = book(client_as("reception"), practice, day)
    assert "Cough since Monday" in client_as("reception").page(f"/appointments/{number}/")
    clerk = client_as("billing").get(f"/appointments/{number}/")
    assert clerk.status_code == 200
    assert "Cough since Monday" not in clerk.text
    assert "not shown to your role" in clerk.text


# ---- looking -----------------------------------------------------------------------------------------------------


def test_the_day_is_a_list_by_doctor_or_by_room_narrowed_by_the_address(
    client_as: ClientAs, practice: Practice, day: date
) -> None:
    desk = client_as("reception")
    book(desk, practice, day, "09:00")
    book(desk, practice, day, "09:00", practitioner=practice.nurse, room="", patient_id=practice.patients[3])
    address = f"/calendar/?date={day}&branch={practice.branch}"
    page = listed(desk.page(address))
    assert page.index("Dora Doctor <span") < page.index("Medina, Jesús") < page.index("Müller")
    assert "<time>09:00</time><span>–09:30</span>" in page
    rooms = listed(desk.page(f"{address}&by=room"))
    assert re.search(r"<h3>Consulting 1 <span", rooms)
    narrowed = listed(desk.page(f"{address}&doctor={practice.nurse}"))
    assert "Müller" in narrowed
    assert "Medina" not in narrowed
    for chosen in (f"room={practice.room}", f"type={practice.visit}&doctor={practice.doctor}"):
        page = listed(desk.page(f"{address}&{chosen}"))
        assert "Medina" in page
        assert "Müller" not in page
    assert "No visits" in desk.page(f"/calendar/?date={day + timedelta(days=1)}&branch={practice.branch}")


def test_the_hours_and_columns_told_to_the_script_are_the_branchs(
    client_as: ClientAs, practice: Practice, day: date
) -> None:
    told = settings_of(client_as("reception").page(f"/calendar/?date={day}&branch={practice.branch}"))
    assert {column["id"] for column in told["columns"]} == {practice.doctor, practice.nurse}
    assert {"id": practice.doctor, "start": f"{day}T08:00", "end": f"{day}T18:00"} in told["hours"]
    assert datetime.fromisoformat(told["from"]) == datetime.combine(day, time(), tzinfo=MADRID)
    assert told["zone"] == "Europe/Madrid"
    week = settings_of(client_as("reception").page(f"/calendar/?view=week&date={day}&branch={practice.branch}"))
    assert week["days"] == 7
    assert date.fromisoformat(week["date"]).weekday() == 0


def test_a_month_counts_visits_and_names_nobody(
    client_as: ClientAs, practice: Practice, day: date, trail_lines: Any
) -> None:
    desk = client_as("reception")
    for at in ("09:00", "10:00", "11:00"):
        number = book(desk, practice, day, at)
    call_off(desk, number)
    trail_lines.forget()
    page = desk.page(f"/calendar/?view=month&date={day}&branch={practice.branch}&doctor={practice.doctor}")
    assert re.search(rf'href="[^"]*date={day}[^"]*"[^>]*aria-label="[^"]*: 2 visits', page)
    assert "Medina" not in page
    assert not [line for line in trail_lines.events() if line["patient_id"] is not None]


def call_off(desk: Browser, number: int, reason: str = "pat") -> Any:
    token = csrf_of(desk.page(f"/appointments/{number}/"))
    return desk.post(f"/appointments/{number}/call-off", data={"csrf_token": token, "reason": reason})


def test_called_off_visits_are_hidden_until_asked_for(client_as: ClientAs, practice: Practice, day: date) -> None:
    desk = client_as("reception")
    number = book(desk, practice, day)
    assert call_off(desk, number).status_code == 302
    address = f"/calendar/?date={day}&branch={practice.branch}"
    assert f"/appointments/{number}/" not in desk.page(address)
    page = desk.page(f"{address}&off=1")
    assert f"/appointments/{number}/" in page
    assert "Called off" in page
    assert "The patient called it off, or left" in desk.page(f"/appointments/{number}/")


@pytest.mark.parametrize(
    "query",
    [
        "date=nonsense",
        "date=9999-12-31",
        "date=0001-01-01&view=month",
        "view=year&by=colour",
        "branch=999999&doctor=abc&room=-1&type=99999999999999999999",
        "doctor=1&doctor=2&doctor=3",
    ],
)
def test_an_address_that_makes_no_sense_shows_a_calendar_all_the_same(
    client_as: ClientAs, practice: Practice, query: str
) -> None:
    page = client_as("reception").page(f"/calendar/?{query}")
    assert "<h1>Calendar</h1>" in page


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements that are asked of the database meanwhile."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        asked.append(statement)

    event.listen(guard.engine(), "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(guard.engine(), "before_cursor_execute", note)


def test_a_day_costs_as_many_statements_with_two_visits_as_with_ten(
    client_as: ClientAs, practice: Practice, day: date
) -> None:
    desk = client_as("reception")
    counts = []
    for hours in (("08:00", "08:30"), ("09:00", "09:30", "10:00", "10:30", "11:00", "11:30", "12:00", "12:30")):
        for at in hours:
            book(desk, practice, day, at)
        address = f"/calendar/?date={day}&branch={practice.branch}"
        desk.page(address)
        with statements() as asked:
            desk.page(address)
        counts.append(len(asked))
    assert counts[0] == counts[1]
    assert counts[0] <= 14, "\n".join(asked)
    query = {"from": f"{day}T00:00:00Z", "to": f"{day}T23:00:00Z", "branch_id": practice.branch}
    with statements() as asked:
        answer = desk.get("/api/v1/appointment/between", query_string=query)
    assert len(answer.get_json()["result"]) == 10
    assert len(asked) <= 5, "\n".join(asked)


# ---- booking -----------------------------------------------------------------------------------------------------


def test_a_visit_is_booked_by_the_form_and_once_however_often_it_is_sent(
    client_as: ClientAs, practice: Practice, day: date
) -> None:
    desk = client_as("reception")
    data = {**fields_of(desk.page("/calendar/new/"), "visit_type"), **typed(practice, day)}
    before = visits()
    first, again = (desk.post("/calendar/new/", data=data) for _ in range(2))
    assert first.status_code == again.status_code == 302
    assert first.headers["Location"] == again.headers["Location"]
    assert visits() == before + 1
    page = desk.page(first.headers["Location"])
    assert "Booked: Medina, Jesús" in page
    assert "09:00–09:30" in page
    row = factories.stored(Appointment, int(first.headers["Location"].split("/")[2]))
    assert row["start_at"] == datetime.combine(day, time(9), tzinfo=MADRID)
    assert (row["reason"], row["room_id"]) == ("Cough since Monday", practice.room)


@pytest.mark.parametrize(
    ("changed", "field", "says"),
    [
        ({"patient_id": "", "who": ""}, "who", "say who the visit is for"),
        ({"patient_id": "", "who": "zzzzqqqq"}, "who", "Nobody found"),
        ({"patient_id": "", "who": "medina"}, "who", "choose the patient from the list"),
        ({"patient_id": "999999999"}, "who", "not open to you"),
        ({"visit_type": ""}, "visit_type", "choose a kind of visit"),
        ({"visit_type": "nonsense"}, "visit_type", "choose a kind of visit"),
        ({"practitioner": ""}, "practitioner", "choose a doctor"),
        ({"day": ""}, "day", "say which day"),
        ({"day": "31/02/2027"}, "day", "say which day"),
        ({"time": ""}, "time", "at what time"),
        ({"time": "25:00"}, "time", "at what time"),
        ({"minutes": "2"}, "minutes", "5 minutes to 12 hours"),
        ({"minutes": "many"}, "minutes", "Not a valid integer"),
        ({"day": str(now().date() - timedelta(days=7))}, "time", "has passed"),
        ({"time": "20:00"}, "time", "does not work at that time"),
        ({"day": "2087-01-06"}, "time", "two years ahead"),
    ],
)
def test_a_refused_form_names_the_field_and_keeps_what_was_typed(
    client_as: ClientAs, practice: Practice, day: date, changed: dict[str, Any], field: str, says: str
) -> None:
    desk = client_as("reception")
    data = {**typed(practice, day), **changed}
    before = visits()
    answer = desk.submit("/calendar/new/", data)
    assert answer.status_code == 422
    assert says in answer.text
    assert re.search(rf'id="{field}-error"', answer.text), f"{field} is not marked"
    kept = fields_of(answer.text, "visit_type")
    for name in ("reason", "day", "time", "minutes"):
        assert kept[name] == str(data[name]), name
    assert visits() == before


def test_names_that_fit_are_offered_to_choose_from(client_as: ClientAs, practice: Practice, day: date) -> None:
    desk = client_as("reception")
    answer = desk.submit("/calendar/new/", typed(practice, day, patient_id=""))
    assert f'type="radio" name="patient_id" value="{practice.patients[2]}"' in answer.text
    chosen = {**fields_of(answer.text, "visit_type"), "patient_id": practice.patients[2], "save": "1"}
    assert desk.post("/calendar/new/", data=chosen).status_code == 302


def test_the_form_opens_for_the_patient_of_a_chart(client_as: ClientAs, practice: Practice) -> None:
    desk = client_as("reception")
    assert f"/calendar/new/?patient_id={practice.patients[2]}" in desk.page(f"/patients/{practice.patients[2]}/")
    page = desk.page(f"/calendar/new/?patient_id={practice.patients[2]}&start=2027-03-01T09:30:00%2B01:00")
    assert "Medina, Jesús" in page
    kept = fields_of(page, "visit_type")
    assert (kept["patient_id"], kept["day"], kept["time"]) == (str(practice.patients[2]), "2027-03-01", "09:30")


def test_a_taken_time_is_told_by_name_with_three_others_of_which_one_press_books(
    client_as: ClientAs, practice: Practice, day: date
) -> None:
    desk = client_as("reception")
    book(desk, practice, day)
    before = visits()
    answer = desk.submit("/calendar/new/", typed(practice, day, "09:15", patient_id=practice.patients[3]))
    assert answer.status_code == 409
    assert "Dora Doctor is taken from 09:00 to 09:30." in answer.text
    assert "Consulting 1 is taken from 09:00 to 09:30." in answer.text
    assert visits() == before
    others = pressed(answer.text, "take")
    assert len(others) == 3
    data = {**fields_of(answer.text, "visit_type"), "take": others[0]}
    assert data["reason"] == "Cough since Monday"
    taken = desk.post("/calendar/new/", data=data)
    assert taken.status_code == 302
    row = factories.stored(Appointment, int(taken.headers["Location"].split("/")[2]))
    assert row["start_at"] == datetime.combine(day, time(9, 30), tzinfo=MADRID)
    assert row["reason"] == "Cough since Monday"


def test_free_times_are_found_and_fill_the_form_in(client_as: ClientAs, practice: Practice, day: date) -> None:
    desk = client_as("reception")
    book(desk, practice, day, "08:00")
    asked = typed(practice, day, "", find="1")
    del asked["save"]
    answer = desk.submit("/calendar/new/", asked)
    assert answer.status_code == 200
    offered = pressed(answer.text, "pick")
    assert len(offered) == 6
    assert offered[0].startswith(
        datetime.combine(day, time(8, 30), tzinfo=MADRID).astimezone(ZoneInfo("UTC")).isoformat()
    )
    picked = desk.post("/calendar/new/", data={**fields_of(answer.text, "visit_type"), "pick": offered[0]})
    kept = fields_of(picked.text, "visit_type")
    assert (kept["day"], kept["time"], kept["practitioner"]) == (day.isoformat(), "08:30", str(practice.doctor))
    later = desk.post(
        "/calendar/new/", data={**fields_of(answer.text, "visit_type"), "more": pressed(answer.text, "more")[0]}
    )
    assert not set(pressed(later.text, "pick")) & set(offered)
    broken = desk.post("/calendar/new/", data={**fields_of(answer.text, "visit_type"), "pick": "nonsense"})
    assert broken.status_code == 422


def test_outside_hours_asks_for_a_reason_where_the_role_allows_it(
    client_as: ClientAs, practice: Practice, day: date
) -> None:
    doctor = client_as("doctor")
    answer = doctor.submit("/calendar/new/", typed(practice, day, "20:00"))
    assert answer.status_code == 422
    assert "say why" in answer.text
    kept = fields_of(answer.text, "visit_type")
    assert kept["override_reason"] == ""
    booked = doctor.post("/calendar/new/", data={**kept, "override_reason": "An emergency", "save": "1"})
    assert booked.status_code == 302
    assert "An emergency" in doctor.page(booked.headers["Location"])


def test_an_hour_that_is_left_out_is_refused_and_one_that_comes_twice_is_asked_about(
    client_as: ClientAs, practice: Practice
) -> None:
    doctor = client_as("doctor")
    missing = doctor.submit("/calendar/new/", typed(practice, date(2027, 3, 28), "02:30", override_reason="Night"))
    assert missing.status_code == 422
    assert "does not exist that day" in missing.text
    starts = []
    for more in ({}, {"second": "y"}):
        night = typed(practice, date(2027, 10, 31), "02:30", override_reason="Night", minutes="20", **more)
        answer = doctor.submit("/calendar/new/", night)
        assert answer.status_code == 302, answer.text
        starts.append(factories.stored(Appointment, int(answer.headers["Location"].split("/")[2]))["start_at"])
    assert starts[1] - starts[0] == timedelta(hours=1)
    assert (
        "comes twice"
        in doctor.submit(
            "/calendar/new/", typed(practice, date(2027, 10, 31), "02:30", override_reason="", save="1")
        ).text
    )


# ---- one visit ---------------------------------------------------------------------------------------------------


def test_a_visit_moves_by_its_form_and_a_refused_move_leaves_it(
    client_as: ClientAs, practice: Practice, day: date
) -> None:
    desk = client_as("reception")
    number = book(desk, practice, day)
    book(desk, practice, day, "10:00", patient_id=practice.patients[3])
    form = fields_of(desk.page(f"/appointments/{number}/"), "day")
    assert (form["day"], form["time"], form["minutes"]) == (day.isoformat(), "09:00", "30")
    before = factories.stored(Appointment, number)
    refused = desk.post(f"/appointments/{number}/move", data={**form, "time": "10:15"})
    assert refused.status_code == 409
    assert "That time is taken." in refused.text
    assert "Dora Doctor is taken from 10:00 to 10:30." in refused.text
    assert len(pressed(refused.text, "take")) == 3
    assert fields_of(refused.text, "day")["time"] == "10:15"
    assert factories.stored(Appointment, number) == before
    broken = desk.post(f"/appointments/{number}/move", data={**form, "time": "late"})
    assert broken.status_code == 422
    assert factories.stored(Appointment, number) == before
    moved = desk.post(f"/appointments/{number}/move", data={**form, "take": pressed(refused.text, "take")[0]})
    assert moved.status_code == 302
    new = int(moved.headers["Location"].split("/")[2])
    assert factories.stored(Appointment, new)["moved_from_id"] == number
    assert f"/appointments/{new}/" in desk.page(f"/appointments/{number}/")
    stale = desk.post(f"/appointments/{number}/move", data={**form, "time": "15:00"})
    assert stale.status_code == 409
    assert factories.number_of(Appointment, Appointment.moved_from_id == number) == 1


def test_what_somebody_else_changed_first_is_not_moved(client_as: ClientAs, practice: Practice, day: date) -> None:
    desk = client_as("reception")
    number = book(desk, practice, day)
    form = fields_of(desk.page(f"/appointments/{number}/"), "day")
    answer = desk.post(f"/appointments/{number}/move", data={**form, "time": "11:00", "version": "99"})
    assert answer.status_code == 409
    assert "moved on" in answer.text
    assert factories.stored(Appointment, number)["status"] == "booked"


def test_the_steps_of_a_day_are_buttons_and_the_history_tells_them(client_as: ClientAs, practice: Practice) -> None:
    desk = client_as("doctor")
    today = now().astimezone(MADRID)
    number = book(desk, practice, today.date(), f"{today:%H:%M}", override_reason="Came in", minutes="5")
    address = f"/appointments/{number}/"
    for step, word in (("arrive", "Here"), ("undo-arrival", "Booked"), ("check-in", "Checked in"), ("fulfil", "Seen")):
        page = desk.page(address)
        assert f'action="{address}{step}"' in page, step
        done = desk.post(f"{address}{step}", data={"csrf_token": csrf_of(page)})
        assert done.status_code == 302
        assert word in desk.page(address)
    page = desk.page(address)
    assert "Call it off" not in page
    assert factories.stored(Appointment, number)["encounter_id"] is not None
    again = desk.post(f"{address}arrive", data={"csrf_token": csrf_of(page)})
    assert again.status_code == 409
    assert "moved on" in again.text
    assert factories.stored(Appointment, number)["status"] == "fulfilled"
    told = re.findall(r"<li><span class=\"tag tag-\w+\">.*?</svg>([^<]+)</span>", page)
    assert [told[0], told[-1]] == ["Booked", "Seen"]
    assert desk.post(f"{address}dance", data={"csrf_token": csrf_of(page)}).status_code == 404
    assert desk.get("/appointments/999999999/").status_code == 404
    refused = desk.post(f"{address}call-off", data={"csrf_token": csrf_of(page), "reason": "bored"})
    assert refused.status_code == 422


# ---- front-end packages -------------------------------------------------------------------------------------------


def test_listed_packages_are_served_for_ever_and_nothing_else_is(app: Flask, browser: Callable[[], Browser]) -> None:
    client = browser()
    with app.test_request_context():
        addresses = {name: app.jinja_env.globals["package"](name) for name in packages.LISTED}  # type: ignore[operator]
        with pytest.raises(KeyError):
            app.jinja_env.globals["package"]("socket.io-client/package.json")  # type: ignore[operator]
    for name, address in addresses.items():
        answer = client.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["Cache-Control"]
        assert "max-age=31536000" in answer.headers["Cache-Control"]
        assert answer.data == (packages.INSTALLED / name).read_bytes()
        assert "Set-Cookie" not in answer.headers
    digest = next(iter(addresses.values())).split("/")[2]
    for path in (
        f"/packages/{digest}/socket.io-client/package.json",
        f"/packages/{digest}/../package.json",
        f"/packages/{digest}/%2e%2e/run.py",
        "/packages/0000000000000000/socket.io-client/dist/socket.io.min.js",
    ):
        assert client.get(path).status_code == 404, path


def test_the_lock_file_names_no_address(app: Flask) -> None:
    del app
    text = (packages.INSTALLED.parent / "package-lock.json").read_text()
    lock = json.loads(text)
    assert "://" not in text
    assert all("integrity" in entry for name, entry in lock["packages"].items() if name)
