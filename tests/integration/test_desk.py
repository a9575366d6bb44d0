"""The front desk: the board of a day, every step of a visit on it, walk-ins, the waiting room, and the setup pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from flask import Flask
from sqlalchemy import select, text

from app import guard
from app.actor import service
from app.policy import may
from app.services import schedules, scheduling, waitlist
from app.services.words import spoken_phone
from models.base import now
from models.clinical import Encounter
from models.organization import Branch
from models.scheduling import (
    Appointment,
    Communication,
    ScheduleException,
    SlotOfferInvitation,
    VisitType,
    WaitlistEntry,
    WorkingHours,
)
from tests import factories
from tests.conftest import Browser, Database, csrf_of, filled
from tests.factories import Hospital
from views import branches

ClientAs = Callable[[str], Browser]
DESK = "/desk/"


def noon() -> str:
    """A time zone in which it is about noon, so that no test of a day fails at the end of one."""
    ahead = 12 - now().hour
    return f"Etc/GMT{-ahead:+d}"  # POSIX counts westwards


@pytest.fixture(scope="module")
def kind(database: Database, app: Flask) -> int:
    """A kind of visit, doctors who work around the clock, and a branch where it is noon; gives the kind's number."""
    del app
    hospital: Hospital = database.hospital
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        branch = session.get(Branch, hospital.branches[0])
        assert branch is not None
        branch.time_zone = noon()
        visit = schedules.offer_kind(session, name="Follow-up", minutes=20, needs_room=False)
        for username in ("doctor", "nurse"):
            for weekday in range(1, 8):
                for opens, closes in ((0, 12), (12, 0)):
                    hours = WorkingHours(practitioner_id=hospital.staff[username], branch_id=hospital.branches[0])
                    hours.weekday, hours.starts, hours.ends = weekday, time(opens), time(closes)
                    hours.valid_from = date(2020, 1, 1)
                    session.add(hours)
        number = visit.id
    branches.forget()
    return int(number)


@pytest.fixture(autouse=True)
def empty(kind: int) -> Iterator[None]:
    """Each test has a day of its own."""
    yield
    guard.session.remove()
    with guard.engine().begin() as connection:
        connection.execute(
            text(
                "TRUNCATE appointment, appointment_series, communication, queue_number, schedule_exception, waitlist_entry, slot_offer CASCADE"
            )
        )


@pytest.fixture
def booked(hospital: Hospital, kind: int) -> Callable[..., int]:
    """Book a visit so many minutes from now: `booked(-5, patient=2)`."""

    def book(minutes: int, *, patient: int = 1, username: str = "doctor", status: str = "booked", **more: Any) -> int:
        start = now().replace(second=0, microsecond=0) + timedelta(minutes=minutes)
        with guard.acting_as(service("demo")), guard.unit_of_work() as session:
            visit = Appointment(
                patient_id=hospital.patients[patient],
                branch_id=hospital.branches[0],
                visit_type_id=kind,
                practitioner_id=hospital.staff[username],
                start_at=start,
                end_at=start + timedelta(minutes=20),
                status=status,
                **more,
            )
            session.add(visit)
            session.flush()
            return int(visit.id)

    return book


def step(desk: Browser, visit: int, word: str, **fields: str) -> Any:
    """Press one of the buttons of a card."""
    return desk.post(f"/desk/{visit}/{word}", data={"csrf_token": csrf_of(desk.page("/me/")), **fields})


def state(visit: int) -> tuple[str, int | None]:
    row = factories.stored(Appointment, visit)
    return row["status"], row["queue_number"]


def column(page: str, title: str) -> str:
    """What stands in one column of the board."""
    found = re.search(rf'aria-labelledby="{title}-title">(.*?)</section>', page, re.DOTALL)
    assert found, f"there is no column {title}"
    return found[1]


# ---- the day -----------------------------------------------------------------------------------------------------


def test_a_day_at_the_desk(client_as: ClientAs, booked: Callable[..., int]) -> None:
    desk, visit = client_as("reception"), booked(-5)
    assert "Vandersloot" in column(desk.page(DESK), "expected")
    assert step(desk, visit, "arrive").status_code == 302
    assert state(visit) == ("arrived", 1)
    page = desk.page(DESK)
    assert "number 1" in page
    assert "Vandersloot" in column(page, "waiting")
    assert "waits 0 min" in page
    assert step(desk, visit, "undo").status_code == 302
    assert state(visit)[0] == "booked"
    step(desk, visit, "arrive")
    assert state(visit) == ("arrived", 1), "whoever comes back keeps the number"
    before = factories.number_of(Encounter)
    assert step(desk, visit, "check-in").status_code == 302
    assert factories.number_of(Encounter) == before + 1
    page = desk.page(DESK)
    assert f"/patients/{factories.stored(Appointment, visit)['patient_id']}/" in column(page, "inside")
    assert step(desk, visit, "seen").status_code == 302
    assert state(visit)[0] == "fulfilled"
    assert "seen until" in desk.page(DESK)


def test_somebody_who_waits_long_stands_out_and_the_wait_so_far_is_told(
    client_as: ClientAs, booked: Callable[..., int]
) -> None:
    long = now() - timedelta(minutes=31)
    booked(-35, patient=1, status="arrived", queue_number=7, arrived_at=long)
    booked(-70, patient=2, status="arrived", queue_number=8, arrived_at=now() - timedelta(minutes=30, seconds=5))
    since = now() - timedelta(minutes=100)
    booked(-100, patient=3, status="checked-in", arrived_at=since, checked_in_at=since + timedelta(minutes=12))
    page = client_as("reception").page(DESK)
    waiting = column(page, "waiting")
    assert waiting.index("waits 31 min") < waiting.index("waits 30 min"), "whoever came first is first"
    assert waiting.count("is-long") == 1
    assert re.search(r'tile-value">12 min', page)


def test_missed_only_when_it_was_due(client_as: ClientAs, booked: Callable[..., int]) -> None:
    desk, due, coming = client_as("reception"), booked(-15), booked(30, patient=2)
    page = column(desk.page(DESK), "expected")
    assert f"/desk/{due}/missed" in page
    assert f"/desk/{coming}/missed" not in page
    assert "15 min late" in page
    answer = step(desk, coming, "missed")
    assert answer.status_code == 409
    assert "still to come" in answer.text
    assert state(coming)[0] == "booked"
    assert step(desk, due, "missed").status_code == 302
    assert state(due)[0] == "noshow"


def test_leaving_wants_a_reason_of_the_list(client_as: ClientAs, booked: Callable[..., int]) -> None:
    desk, visit = client_as("reception"), booked(-5)
    step(desk, visit, "arrive")
    assert step(desk, visit, "left", reason="bored").status_code == 422
    assert state(visit)[0] == "arrived"
    assert step(desk, visit, "left", reason="pat-lt").status_code == 302
    row = factories.stored(Appointment, visit)
    assert (row["status"], row["cancelation_reason"]) == ("cancelled", "pat-lt")
    assert "The patient has no transport" in desk.page(DESK)


def test_a_step_too_far_keeps_the_board_and_says_why(client_as: ClientAs, booked: Callable[..., int]) -> None:
    desk, visit = client_as("reception"), booked(-5)
    answer = step(desk, visit, "seen")
    assert answer.status_code == 409
    assert "has moved on" in answer.text
    assert "Vandersloot" in answer.text
    assert state(visit)[0] == "booked"
    assert step(desk, 10**6, "arrive").status_code == 404


def test_a_script_is_given_the_board_alone(client_as: ClientAs, booked: Callable[..., int]) -> None:
    desk, visit = client_as("reception"), booked(-5)
    token = csrf_of(desk.page("/me/"))
    answer = desk.post(f"/desk/{visit}/arrive", data={"csrf_token": token}, headers={"X-Wardbook": "board"})
    assert answer.status_code == 200
    assert "<html" not in answer.text
    assert "Vandersloot" in column(answer.text, "waiting")
    alone = desk.page("/desk/now.html")
    assert "<html" not in alone
    assert "Vandersloot" in column(alone, "waiting")


def test_the_board_is_narrowed_by_doctor_and_by_name(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital
) -> None:
    booked(10, patient=1)
    booked(10, patient=3, username="nurse")
    desk = client_as("reception")
    page = desk.page(f"{DESK}?doctor={hospital.staff['nurse']}")
    assert "Müller" in page
    assert "Vandersloot" not in page
    page = desk.page(f"{DESK}?q=muller")
    assert "Müller" in page
    assert "Vandersloot" not in page
    assert "1 other visits" in page
    page = desk.page(f"{DESK}?q=nobody")
    assert "Nobody on the board fits" in page


def test_another_day_another_branch_and_what_was_moved_are_not_on_it(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital
) -> None:
    booked(60 * 24, patient=1)
    booked(10, patient=2, status="cancelled")  # moving calls off without a reason
    booked(10, patient=3, status="entered-in-error")
    page = client_as("reception").page(DESK)
    assert "Nobody is expected today" in page
    for name in ("Vandersloot", "Medina", "Müller"):
        assert name not in page


@pytest.mark.parametrize("username", ["lab", "pharmacist", "billing", "privacy", "patient"])
def test_who_does_no_desk_work_opens_nothing_and_changes_nothing(
    username: str, client_as: ClientAs, booked: Callable[..., int]
) -> None:
    visit, somebody = booked(-5), client_as(username)
    token = csrf_of(somebody.page("/me/"))
    for address in (DESK, "/desk/now.html", "/desk/board/", "/desk/walk-in/"):
        assert somebody.get(address).status_code == 403, address
    assert somebody.post(f"/desk/{visit}/arrive", data={"csrf_token": token}).status_code == 403
    walk_in = {"csrf_token": token, "patient": "1", "visit_type": "1"}
    assert somebody.post("/desk/walk-in/", data=walk_in).status_code == 403
    assert state(visit)[0] == "booked"
    assert factories.number_of(Appointment) == 1


def test_without_a_token_nothing_is_done(client_as: ClientAs, booked: Callable[..., int]) -> None:
    visit = booked(-5)
    assert client_as("reception").post(f"/desk/{visit}/arrive").status_code in (400, 403)
    assert state(visit)[0] == "booked"


def test_the_waiting_room_shows_numbers_and_rooms_and_nobody(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital
) -> None:
    booked(-30, patient=1, status="arrived", queue_number=41, arrived_at=now())
    booked(-60, patient=2, status="checked-in", queue_number=42, arrived_at=now(), checked_in_at=now())
    page = client_as("reception").page(f"/desk/board/?branch={hospital.branches[0]}")
    assert ">41<" in page
    assert ">42<" in page
    for name in ("Vandersloot", "Medina", "Doctor"):
        assert name not in page
    assert client_as("reception").get("/desk/board/?branch=99999").status_code == 404


# ---- walk-ins ----------------------------------------------------------------------------------------------------


def test_a_walk_in_gets_the_next_free_time_and_a_number(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    desk = client_as("reception")
    answer = desk.get("/desk/walk-in/?q=Vandersloot")
    assert answer.status_code == 302, "one who is found alone is chosen"
    assert answer.headers["Location"].endswith(f"patient={hospital.patients[1]}")
    answer = desk.submit(answer.headers["Location"], {"visit_type": str(kind), "reason": "Sore throat"})
    assert answer.status_code == 302
    with guard.acting_as(service("demo")):
        visit = guard.session().scalars(select(Appointment)).one()
    assert (visit.status, visit.walk_in, visit.queue_number, visit.reason) == ("arrived", True, 1, "Sore throat")
    assert now() - timedelta(minutes=1) < visit.start_at <= now() + timedelta(minutes=20)
    page = desk.page(DESK)
    assert "Number 1: Vandersloot" in page
    assert "Walk-in" in column(page, "waiting")


def test_a_walk_in_to_a_chosen_doctor_waits_for_that_one(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    booked(0, patient=2, username="nurse")
    booked(20, patient=3, username="nurse")
    path = f"/desk/walk-in/?patient={hospital.patients[1]}"
    chosen = {"visit_type": str(kind), "practitioner": str(hospital.staff["nurse"])}
    assert client_as("reception").submit(path, chosen).status_code == 302
    with guard.acting_as(service("demo")):
        visit = guard.session().scalars(select(Appointment).where(Appointment.walk_in)).one()
    assert visit.practitioner_id == hospital.staff["nurse"]
    assert visit.start_at >= now() + timedelta(minutes=39)


def test_a_walk_in_nobody_is_free_for_is_refused_and_the_form_kept(
    client_as: ClientAs, hospital: Hospital, kind: int
) -> None:
    path = f"/desk/walk-in/?patient={hospital.patients[1]}"
    chosen = {"visit_type": str(kind), "practitioner": str(hospital.staff["lab"]), "reason": "Typed already"}
    desk = client_as("reception")
    assert desk.submit(path, chosen).status_code == 422
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        schedules.set_exception(
            session,
            kind="holiday",
            practitioner_id=None,
            branch_id=hospital.branches[0],
            starts_at=now() - timedelta(hours=1),
            ends_at=now() + timedelta(days=2),
        )
    answer = desk.submit(path, {**chosen, "practitioner": ""})
    assert answer.status_code == 409
    assert "Nobody is free for this today" in answer.text
    assert "Typed already" in answer.text
    assert factories.number_of(Appointment) == 0


def test_a_walk_in_of_nobody_is_nobody(client_as: ClientAs, kind: int) -> None:
    desk = client_as("reception")
    assert desk.get("/desk/walk-in/?patient=999999").status_code == 404
    answer = desk.submit("/desk/walk-in/?patient=1", {"patient": "999999", "visit_type": str(kind)})
    assert answer.status_code in (404, 422)
    assert factories.number_of(Appointment) == 0


# ---- hours, leave, kinds -----------------------------------------------------------------------------------------


def test_a_week_is_looked_at_and_then_saved(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital
) -> None:
    admin, lab = client_as("admin"), hospital.staff["lab"]
    path = f"/hours/{lab}/?branch={hospital.branches[0]}"
    fields = {"day1-starts": ["8", "16.00"], "day1-ends": ["13:30", "1900"]}
    before = factories.number_of(WorkingHours)
    look = admin.submit(path, {**fields, "step": "look"})
    assert look.status_code == 200
    assert "Monday 08:00 to 13:30" in look.text
    assert factories.number_of(WorkingHours) == before
    assert admin.submit(path, {**fields, "step": "save"}).status_code == 302
    assert factories.number_of(WorkingHours) == before + 2
    page = admin.page(path)
    assert 'value="13:30"' in page
    assert "08:00-13:30, 16:00-19:00" in admin.page("/hours/")
    for bad, sentence in (
        ({"day2-starts": ["8"], "day2-ends": [""]}, "give both times"),
        ({"valid_from": ""}, "the day"),
    ):
        answer = admin.submit(path, {**bad, "step": "save"})
        assert answer.status_code == 422
        assert sentence in answer.text
    assert factories.number_of(WorkingHours) == before + 2


def test_hours_that_leave_visits_outside_are_saved_only_after_a_look(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital
) -> None:
    admin, visit = client_as("admin"), booked(60 * 24)
    path = f"/hours/{hospital.staff['doctor']}/?branch={hospital.branches[0]}"
    with guard.acting_as(service("demo")):
        before = len(guard.session().scalars(select(WorkingHours).where(WorkingHours.valid_until.is_(None))).all())
    nothing = {f"day{day}-{end}": "" for day in range(1, 8) for end in ("starts", "ends")}
    answer = admin.submit(path, {**nothing, "step": "save"})
    assert answer.status_code == 409
    assert "One booked visit would then be outside" in answer.text
    assert "Vandersloot" in answer.text
    with guard.acting_as(service("demo")):
        again = guard.session().scalars(select(WorkingHours).where(WorkingHours.valid_until.is_(None))).all()
        assert len(again) == before
    form = {"csrf_token": csrf_of(answer.text), "branch": str(hospital.branches[0]), "seen": "0", "step": "save"}
    form["valid_from"] = (now() + timedelta(days=1)).date().isoformat()
    assert admin.post(path, data=form).status_code == 409, "what was looked at is not what is there"
    assert state(visit)[0] == "booked"


def test_only_who_may_changes_hours(client_as: ClientAs, hospital: Hospital) -> None:
    desk, path = client_as("reception"), f"/hours/{hospital.staff['lab']}/"
    before = factories.number_of(WorkingHours)
    assert "Whoever runs the hospital" in desk.page(path)
    token = csrf_of(desk.page("/me/"))
    answer = desk.post(path, data={"csrf_token": token, "branch": str(hospital.branches[0]), "step": "save"})
    assert answer.status_code == 403
    assert factories.number_of(WorkingHours) == before
    assert desk.get("/hours/999999/").status_code == 404


def leave(hospital: Hospital, **more: str) -> dict[str, str]:
    return {
        "kind": "leave",
        "practitioner": str(hospital.staff["doctor"]),
        "branch": str(hospital.branches[1]),
        "starts_on": "2027-05-03",
        **more,
    }


def one_exception() -> Any:
    with guard.acting_as(service("demo")):
        return guard.session().scalars(select(ScheduleException)).one()


def test_leave_is_of_whole_days_by_the_clock_of_its_branch(client_as: ClientAs, hospital: Hospital) -> None:
    desk = client_as("reception")
    assert desk.submit("/leave/new/", leave(hospital, ends_on="2027-05-05", note="Congress")).status_code == 302
    row, york = one_exception(), ZoneInfo("America/New_York")
    assert row.starts_at == datetime(2027, 5, 3, tzinfo=york)
    assert row.ends_at == datetime(2027, 5, 6, tzinfo=york)
    page = desk.page("/leave/")
    assert "3 May 2027 to 5 May 2027" in page
    path = f"/leave/{row.id}/"
    assert desk.submit(f"{path}edit/", {"ends_on": "2027-05-04"}).status_code == 302
    assert one_exception().ends_at == datetime(2027, 5, 5, tzinfo=york)
    assert desk.post(f"{path}lift", data={"csrf_token": csrf_of(desk.page(path))}).status_code == 302
    assert factories.number_of(ScheduleException) == 0


def test_an_hour_that_is_not_there_is_refused_and_a_doubled_one_asked_about(
    client_as: ClientAs, hospital: Hospital
) -> None:
    desk = client_as("reception")
    gone = leave(hospital, kind="extra", starts_on="2027-03-14", starts_time="02:30", ends_time="12:00")
    answer = desk.submit("/leave/new/", gone)
    assert answer.status_code == 422
    assert "does not exist that day" in answer.text
    twice = leave(hospital, kind="extra", starts_on="2027-11-07", starts_time="01:30", ends_time="12:00")
    answer = desk.submit("/leave/new/", twice)
    assert answer.status_code == 422
    assert "comes twice" in answer.text
    assert "Which of the two hours it begins in" in answer.text
    assert factories.number_of(ScheduleException) == 0
    assert desk.submit("/leave/new/", {**twice, "starts_which": "second"}).status_code == 302
    assert one_exception().starts_at.isoformat().startswith("2027-11-07T06:30")


@pytest.mark.parametrize(
    "bad",
    [
        {"starts_on": ""},
        {"starts_on": "31/02/2027"},
        {"ends_on": "2027-05-02"},
        {"practitioner": ""},
        {"kind": "rain"},
        {"kind": "holiday", "branch": ""},
        {"note": "x" * 201},
        {"practitioner": "999999"},
    ],
)
def test_leave_that_cannot_be_is_refused_and_what_was_typed_stays(
    bad: dict[str, str], client_as: ClientAs, hospital: Hospital
) -> None:
    answer = client_as("reception").submit("/leave/new/", leave(hospital, **{"note": "Typed already", **bad}))
    assert answer.status_code == 422
    assert "note" in bad or "Typed already" in answer.text
    assert factories.number_of(ScheduleException) == 0


def test_leave_over_visits_names_them(client_as: ClientAs, booked: Callable[..., int], hospital: Hospital) -> None:
    booked(60 * 26)
    tomorrow = (now() + timedelta(hours=26)).date()
    fields = leave(hospital, branch="", starts_on=(tomorrow - timedelta(days=1)).isoformat())
    desk = client_as("reception")
    answer = desk.submit("/leave/new/", {**fields, "ends_on": (tomorrow + timedelta(days=1)).isoformat()})
    assert answer.status_code == 302
    page = desk.page(answer.headers["Location"])
    assert "1 visit is booked in this time" in page
    assert "Vandersloot" in page
    assert "1 visit to move" in desk.page("/leave/")


def test_kinds_and_equipment_are_kept_by_who_runs_the_hospital(client_as: ClientAs, hospital: Hospital) -> None:
    admin = client_as("admin")
    answer = admin.submit("/equipment/add", {"branch": str(hospital.branches[0]), "name": "Scanner", "kind": "CT"})
    assert answer.status_code == 302
    told = {"name": "CT", "minutes": "30", "buffer_after": "10", "practitioners": [str(hospital.staff["doctor"])]}
    answer = admin.submit("/visit-types/add", told)
    assert answer.status_code == 302
    page = admin.page(answer.headers["Location"])
    assert "Dora Doctor" in page
    assert "Every room of the branch" in page
    assert admin.submit("/visit-types/add", told).status_code == 409
    assert admin.submit("/visit-types/add", {**told, "name": "MR", "minutes": "1000"}).status_code == 422
    with guard.acting_as(service("demo")):
        assert {kind.name for kind in guard.session().scalars(select(VisitType))} == {"Follow-up", "CT"}
    assert client_as("reception").get("/visit-types/add").status_code in (302, 403)


# ---- the waiting list --------------------------------------------------------------------------------------------


def waits(desk: Browser, hospital: Hospital, kind: int, patient: int, **more: str) -> Any:
    """Put a patient on the waiting list, through the form."""
    path = f"/waitlist/new/?patient={hospital.patients[patient]}"
    return desk.submit(path, {"visit_type": str(kind), **more})


def freed(visit: int) -> list[int]:
    """Call a visit off and offer its time, as the job does; gives the numbers of the invitations."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        gone = scheduling.cancel(session, visit, reason="pat")
        offer = waitlist.offer_freed(session, gone)
        assert offer is not None
        return [each.id for each in waitlist.invitations(session, offer.id)]


def answer(desk: Browser, invitation: int, word: str) -> Any:
    token = csrf_of(desk.page("/me/"))
    return desk.post(f"/waitlist/offer/{invitation}/{word}", data={"csrf_token": token})


def test_the_list_is_by_urgency_and_somebody_is_taken_off(client_as: ClientAs, hospital: Hospital, kind: int) -> None:
    desk = client_as("reception")
    assert "Nobody waits" in desk.page("/waitlist/")
    assert desk.get("/waitlist/new/?q=Vandersloot").headers["Location"].endswith(f"patient={hospital.patients[1]}")
    assert waits(desk, hospital, kind, 1, note="Mornings").status_code == 302
    assert waits(desk, hospital, kind, 2, priority="1").status_code == 302
    page = desk.page("/waitlist/")
    assert page.index("Medina") < page.index("Vandersloot")
    assert "Mornings" in page
    with guard.acting_as(service("demo")):
        first = guard.session().scalars(select(WaitlistEntry).order_by(WaitlistEntry.priority)).first()
    assert first is not None
    token = csrf_of(desk.page("/me/"))
    assert desk.post(f"/waitlist/{first.id}/withdraw", data={"csrf_token": token}).status_code == 302
    assert "Medina" not in desk.page("/waitlist/")
    assert factories.stored(WaitlistEntry, first.id)["status"] == "withdrawn"


@pytest.mark.parametrize(
    "bad",
    [
        {"earliest_on": "2031-05-05", "latest_on": "2031-05-04"},
        {"latest_on": "2020-01-01"},
        {"latest_on": "soon"},
        {"priority": "0"},
        {"visit_type": "999999"},
        {"note": "x" * 301},
    ],
)
def test_who_cannot_wait_is_refused_and_what_was_typed_stays(
    bad: dict[str, str], client_as: ClientAs, hospital: Hospital, kind: int
) -> None:
    refused = waits(client_as("reception"), hospital, kind, 1, **{"note": "Typed already", **bad})
    assert refused.status_code == 422
    assert "note" in bad or "Typed already" in refused.text
    assert factories.number_of(WaitlistEntry) == 0


def test_the_first_who_takes_it_has_it(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    desk, visit = client_as("reception"), booked(120, patient=3)
    for patient in (1, 2):
        waits(desk, hospital, kind, patient)
    first, second = freed(visit)
    page = desk.page("/waitlist/")
    assert "On offer now" in page
    assert re.search(r"held until \d\d:\d\d, 1\d min left", page)
    assert answer(desk, first, "accept").status_code == 302
    assert "Booked: Vandersloot" in desk.page("/waitlist/")
    late = answer(desk, second, "accept")
    assert late.status_code == 409
    assert "not on offer any more" in late.text
    with guard.acting_as(service("demo")):
        taken = guard.session().scalars(select(Appointment).where(Appointment.status == "booked")).all()
    assert [each.patient_id for each in taken] == [hospital.patients[1]]
    assert answer(desk, 999999, "accept").status_code == 404


def test_an_offer_everybody_declines_is_over(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    desk, visit = client_as("reception"), booked(120, patient=3)
    waits(desk, hospital, kind, 1)
    (only,) = freed(visit)
    assert answer(desk, only, "decline").status_code == 302
    page = desk.page("/waitlist/")
    assert "On offer now" not in page
    assert "Vandersloot" in page, "whoever declines a time still waits"
    assert answer(desk, only, "decline").status_code == 409


@pytest.mark.parametrize("username", ["lab", "billing", "privacy", "patient"])
def test_the_waiting_list_is_the_desks(
    username: str, client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    waits(client_as("reception"), hospital, kind, 1)
    (only,) = freed(booked(120, patient=3))
    somebody = client_as(username)
    assert somebody.get("/waitlist/").status_code == 403
    assert somebody.get("/waitlist/new/").status_code == 403
    for word in ("accept", "decline"):
        assert answer(somebody, only, word).status_code == 403
    assert factories.stored(SlotOfferInvitation, only)["answer"] is None
    assert factories.number_of(Appointment, Appointment.status == "booked") == 0


# ---- repeated visits ---------------------------------------------------------------------------------------------


def every_week(hospital: Hospital, kind: int, **more: Any) -> dict[str, Any]:
    day = (now() + timedelta(days=7)).astimezone(ZoneInfo(noon())).date()
    return {
        "visit_type": str(kind),
        "practitioner": str(hospital.staff["doctor"]),
        "day": day.isoformat(),
        "time": "10:00",
        "frequency": "weekly",
        "count": "3",
        **more,
    }


def test_a_series_is_looked_at_and_only_what_was_ticked_is_booked(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    desk, path = client_as("reception"), f"/series/new/?patient={hospital.patients[1]}"
    told = every_week(hospital, kind)
    second = datetime.combine(date.fromisoformat(told["day"]) + timedelta(days=7), time(10), tzinfo=ZoneInfo(noon()))
    booked(round((second - now()).total_seconds() / 60), patient=4)
    before = factories.number_of(Appointment)
    look = desk.submit(path, {**told, "step": "look"})
    assert look.status_code == 200
    assert "2 of 3 can be booked" in look.text
    assert re.search(r"Dora Doctor is taken from \d\d:\d\d to 10:\d\d\.", look.text)
    assert factories.number_of(Appointment) == before
    form = {**filled(look.text), "step": "book"}
    assert desk.post("/series/new/", data={**form, "take": []}).status_code == 422
    assert desk.post("/series/new/", data={**form, "take": ["1"], "time": "11:00"}).status_code == 409
    assert desk.post("/series/new/", data={**form, "take": ["1", "2", "3"]}).status_code == 409
    assert factories.number_of(Appointment) == before, "all or nothing"
    assert desk.post("/series/new/", data={**form, "take": ["1", "3"]}).status_code == 302
    assert factories.number_of(Appointment, Appointment.series_id.is_not(None)) == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"count": ""},
        {"count": "3", "until": "2099-01-01"},
        {"count": "999"},
        {"interval": "0"},
        {"frequency": "hourly"},
        {"day": ""},
        {"time": "late"},
        {"practitioner": ""},
        {"count": "", "until": "2020-01-01"},
    ],
)
def test_a_series_that_cannot_be_is_refused(
    bad: dict[str, str], client_as: ClientAs, hospital: Hospital, kind: int
) -> None:
    path = f"/series/new/?patient={hospital.patients[1]}"
    told = every_week(hospital, kind, reason="Typed already", **bad)
    refused = client_as("reception").submit(path, {**told, "step": "look"})
    assert refused.status_code == 422
    assert "Typed already" in refused.text
    assert factories.number_of(Appointment) == 0


# ---- several of a series at once ---------------------------------------------------------------------------------


def a_series(desk: Browser, hospital: Hospital, kind: int) -> list[int]:
    """Three visits of the second patient, booked through the form; their numbers in order."""
    path = f"/series/new/?patient={hospital.patients[1]}"
    look = desk.submit(path, {**every_week(hospital, kind), "step": "look"})
    booked_now = {**filled(look.text), "step": "book", "take": ["1", "2", "3"]}
    assert desk.post("/series/new/", data=booked_now).status_code == 302
    return coming()


def coming() -> list[int]:
    """The visits that are booked, in order."""
    with guard.engine().connect() as connection:
        query = text("SELECT id FROM appointment WHERE status = 'booked' ORDER BY start_at")
        return list(connection.execute(query).scalars())


def starts() -> list[datetime]:
    return [factories.stored(Appointment, key)["start_at"] for key in coming()]


def moved_by(hospital: Hospital, kind: int, days: int, at: str) -> dict[str, str]:
    first = date.fromisoformat(every_week(hospital, kind)["day"])
    return {"day": (first + timedelta(days=days)).isoformat(), "time": at}


def test_several_of_a_series_are_moved_once_each_was_looked_at(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    desk = client_as("reception")
    first, second, third = a_series(desk, hospital, kind)
    path, before = f"/series/visit/{second}/", starts()
    assert path in desk.page(f"/appointments/{second}/")
    new = factories.stored(Appointment, third)["start_at"] + timedelta(days=1, hours=2)
    booked(round((new - now()).total_seconds() / 60), patient=4)
    told = {"scope": "following", **moved_by(hospital, kind, 8, "12:00")}
    look = desk.submit(path, {**told, "step": "look"})
    assert look.status_code == 200
    assert "1 of 2 can be moved" in look.text
    assert re.search(r"Dora Doctor is taken from \d\d:\d\d to \d\d:\d\d\.", look.text)
    assert "This and the following (2)" in look.text
    assert starts()[:2] == before[:2]
    form = {**filled(look.text), "step": "do"}
    for change, status in (
        ({"take": []}, 422),
        ({"take": [str(second)], "time": "13:00"}, 409),
        ({"take": [str(second)], "scope": "all"}, 409),
        ({"take": [str(second), str(third)]}, 409),
    ):
        answer = desk.post(path, data={**form, **change})
        assert answer.status_code == status, change
        assert moved_by(hospital, kind, 8, "")["day"] in answer.text, "what was typed stays"
        assert {first, second, third} <= set(coming())
    answer = desk.post(path, data={**form, "take": [str(second)]})
    assert answer.status_code == 302
    (moved,) = set(coming()) - {first, second, third} - {row["id"] for row in others(4, hospital)}
    assert answer.headers["Location"] == f"/appointments/{moved}/"
    assert factories.stored(Appointment, moved)["start_at"] == before[1] + timedelta(days=1, hours=2)
    assert factories.stored(Appointment, second)["status"] == "cancelled"
    assert {first, third} <= set(coming())


def others(patient: int, hospital: Hospital) -> list[Any]:
    with guard.engine().connect() as connection:
        query = text("SELECT id FROM appointment WHERE patient_id = :patient")
        return list(connection.execute(query, {"patient": hospital.patients[patient]}).mappings())


def test_several_of_a_series_are_called_off_with_a_reason(client_as: ClientAs, hospital: Hospital, kind: int) -> None:
    desk = client_as("reception")
    first, second, third = a_series(desk, hospital, kind)
    path = f"/series/visit/{second}/"
    look = desk.submit(path, {"what": "off", "scope": "following", "reason": "prov-pers", "step": "look"})
    assert "These 2 visits would be called off" in look.text
    assert coming() == [first, second, third]
    form = {**filled(look.text), "step": "do"}
    assert desk.post(path, data={**form, "reason": "bored"}).status_code == 422
    assert desk.post(path, data={**form, "scope": "all"}).status_code == 409
    assert coming() == [first, second, third]
    with guard.engine().begin() as connection:  # somebody else was there meanwhile
        connection.execute(text("UPDATE appointment SET version = version + 1 WHERE id = :id"), {"id": third})
    assert desk.post(path, data=form).status_code == 409
    assert coming() == [first, second, third]
    again = desk.submit(path, {"what": "off", "scope": "following", "reason": "prov-pers", "step": "look"})
    assert desk.post(path, data={**filled(again.text), "step": "do"}).status_code == 302
    assert coming() == [first]
    assert {factories.stored(Appointment, key)["cancelation_reason"] for key in (second, third)} == {"prov-pers"}
    assert "The doctor is ill or away" in desk.page(f"/appointments/{second}/")


@pytest.mark.parametrize(
    "bad", [{"day": ""}, {"time": "late"}, {"scope": "some"}, {"what": "burn"}, {"room": "999999"}]
)
def test_a_change_that_cannot_be_is_refused_and_what_was_typed_stays(
    bad: dict[str, str], client_as: ClientAs, hospital: Hospital, kind: int
) -> None:
    desk = client_as("reception")
    before = a_series(desk, hospital, kind)
    told = {"scope": "all", "override_reason": "Typed already", **moved_by(hospital, kind, 1, "11:00"), **bad}
    refused = desk.submit(f"/series/visit/{before[0]}/", {**told, "step": "look"})
    assert refused.status_code == 422
    assert "Typed already" in refused.text
    assert coming() == before


def test_who_does_no_desk_work_changes_no_series_and_one_alone_has_no_such_page(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    desk = client_as("reception")
    before = a_series(desk, hospital, kind)
    path = f"/series/visit/{before[0]}/"
    form = filled(desk.page(path))
    for username in ("billing", "patient", "lab"):
        somebody = client_as(username)
        token = csrf_of(somebody.page("/me/"))
        assert somebody.get(path).status_code == 403
        sent = {**form, "csrf_token": token, "what": "off", "scope": "all", "reason": "pat", "step": "do"}
        assert somebody.post(path, data=sent).status_code == 403
    assert coming() == before
    alone = booked(60 * 24, patient=3)
    assert desk.get(f"/series/visit/{alone}/").headers["Location"] == f"/appointments/{alone}/"
    assert "/series/visit/" not in desk.page(f"/appointments/{alone}/")


# ---- whom no message reaches -------------------------------------------------------------------------------------

NOT_REACHED = "/desk/not-reached/"


@pytest.fixture
def contacts(hospital: Hospital) -> Iterator[Callable[[int, str], None]]:
    """Set what contact points a patient has, as JSON; afterwards they are as before."""
    with guard.engine().connect() as connection:
        rows = connection.execute(text("SELECT id, telecom::text FROM patient")).all()

    def put(patient: int, telecom: str) -> None:
        with guard.engine().begin() as database:
            said = {"telecom": telecom, "id": hospital.patients[patient]}
            database.execute(text("UPDATE patient SET telecom = CAST(:telecom AS jsonb) WHERE id = :id"), said)

    yield put
    for key, telecom in rows:
        put(hospital.patients.index(key), telecom)


def failed(hospital: Hospital, visit: int, kind: str = "reminder", medium: str = "sms", *, sent: bool = False) -> None:
    """A message about a visit that was given up, or has left."""
    row = factories.stored(Appointment, visit)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        said = Communication(patient_id=row["patient_id"], appointment_id=visit, kind=kind, wave=48, medium=medium)
        said.sent_at, said.failed_at = (now(), None) if sent else (None, now())
        session.add(said)


def listed(desk: Browser) -> list[str]:
    """Who is on the list, by family name, and as many as the desk says."""
    names = re.findall(r'class="desk-name"[^>]*>([^,<]+),', desk.page(NOT_REACHED))
    said = re.search(r'href="/desk/not-reached/">.*?<span class="count">(\d+)</span>', desk.page(DESK), re.DOTALL)
    assert said is not None
    assert int(said[1]) == len(names)
    return names


def test_who_has_neither_phone_nor_e_mail_is_on_the_list_until_they_have(
    client_as: ClientAs, booked: Callable[..., int], contacts: Callable[[int, str], None], hospital: Hospital
) -> None:
    desk = client_as("reception")
    assert "All is well" in desk.page(NOT_REACHED)
    booked(60 * 30, patient=3)
    booked(60 * 31, patient=4)
    booked(60 * 24 * 9, patient=5)
    contacts(3, "[]")
    contacts(5, "[]")
    assert listed(desk) == ["Müller"]
    page = desk.page(NOT_REACHED)
    assert "No phone number and no e-mail address" in page
    assert f"/patients/{hospital.patients[3]}/edit/" in page
    contacts(3, '[{"system": "email", "value": "m@example.org"}]')
    assert listed(desk) == []


def test_a_message_that_failed_for_good_is_told_by_phone(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital
) -> None:
    desk = client_as("reception")
    first, second, third, fourth = (booked(60 * 30 + 30 * n, patient=3 + n) for n in range(4))
    failed(hospital, first)
    failed(hospital, second)  # by SMS, and the e-mail left
    failed(hospital, second, medium="email", sent=True)
    failed(hospital, third, "booked")  # long ago, and the reminder left
    failed(hospital, third, sent=True)
    failed(hospital, fourth, "cancelled")
    for reason, names in (("pat", ["Müller"]), ("prov", ["Müller", "Kowalska"])):
        with guard.engine().begin() as connection:
            off = "UPDATE appointment SET status = 'cancelled', cancelation_reason = :why WHERE id = :id"
            connection.execute(text(off), {"why": reason, "id": fourth})
        assert listed(desk) == names
    page = desk.page(NOT_REACHED)
    assert "The reminder could not be delivered" in page
    assert spoken_phone("+34911234570") in page
    token = csrf_of(desk.page("/me/"))
    assert desk.post(f"/desk/not-reached/{first}/told", data={"csrf_token": token}).status_code == 302
    assert factories.stored(Appointment, first)["confirmed_at"] is not None
    assert listed(desk) == ["Kowalska"]
    again = desk.post(f"/desk/not-reached/{fourth}/told", data={"csrf_token": token})
    assert again.status_code == 409
    assert factories.stored(Appointment, fourth)["confirmed_at"] is None


def test_who_was_not_reached_by_an_offer_is_called_while_it_is_held(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    desk = client_as("reception")
    waits(desk, hospital, kind, 3)
    (invitation,) = freed(booked(120, patient=2))
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        said = Communication(patient_id=hospital.patients[3], invitation_id=invitation, kind="offer", medium="sms")
        said.failed_at = now()
        session.add(said)
    assert listed(desk) == ["Müller"]
    assert "The offer of this time could not be delivered" in desk.page(NOT_REACHED)
    assert answer(desk, invitation, "accept").status_code == 302
    assert listed(desk) == []


@pytest.mark.parametrize("username", ["lab", "pharmacist", "billing", "privacy", "patient"])
def test_who_was_not_reached_is_the_desks_to_know(
    username: str, client_as: ClientAs, booked: Callable[..., int], hospital: Hospital
) -> None:
    visit, somebody = booked(60 * 30, patient=3), client_as(username)
    failed(hospital, visit)
    token = csrf_of(somebody.page("/me/"))
    assert somebody.get(NOT_REACHED).status_code == 403
    assert somebody.post(f"/desk/not-reached/{visit}/told", data={"csrf_token": token}).status_code == 403
    assert factories.stored(Appointment, visit)["confirmed_at"] is None


def test_whose_role_shows_no_phones_is_not_told_who_has_none(
    client_as: ClientAs,
    booked: Callable[..., int],
    contacts: Callable[[int, str], None],
    hospital: Hospital,
    granted: Callable[..., None],
) -> None:
    missing, visit = booked(60 * 30, patient=3), booked(60 * 31, patient=4)
    contacts(3, "[]")
    failed(hospital, visit)
    granted("Receptionist", Patient=may("read update", masked=["telecom"]))
    desk = client_as("reception")
    assert listed(desk) == ["O&#39;Brien"]
    page = desk.page(NOT_REACHED)
    assert f"/appointments/{missing}/" not in page
    assert "not shown to your role" in page
    assert spoken_phone("+34911234571") not in page
    granted("Receptionist", Communication=None)
    desk = client_as("reception")
    assert desk.get(NOT_REACHED).status_code == 403
    assert "not-reached" not in desk.page(DESK)


def test_counting_who_was_not_reached_is_no_look_at_a_record(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, trail_lines: Any
) -> None:
    failed(hospital, booked(60 * 30, patient=3))
    desk = client_as("reception")
    trail_lines.forget()
    assert 'class="count">1</span>' in desk.page(DESK)
    assert not [line for line in trail_lines.events() if line["patient_id"] == hospital.patients[3]]
    assert listed(desk) == ["Müller"]
    assert [line for line in trail_lines.events() if line["patient_id"] == hospital.patients[3]]


def test_who_declined_and_then_calls_has_the_time_while_it_is_free(
    client_as: ClientAs, booked: Callable[..., int], hospital: Hospital, kind: int
) -> None:
    desk = client_as("reception")
    waits(desk, hospital, kind, 1)
    visit = booked(120, patient=3)
    (only,) = freed(visit)
    assert answer(desk, only, "decline").status_code == 302
    page = desk.page("/waitlist/")
    assert "Let pass:" in page
    assert f"/waitlist/offer/{only}/after-all" in page
    taken = booked(120, patient=4)
    late = answer(desk, only, "after-all")
    assert late.status_code == 409
    assert "Somebody else has this time" in late.text
    assert coming() == [taken]
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        scheduling.cancel(session, taken, reason="pat")
    assert answer(desk, only, "after-all").status_code == 302
    assert [factories.stored(Appointment, key)["patient_id"] for key in coming()] == [hospital.patients[1]]
    assert "Let pass:" not in desk.page("/waitlist/")
