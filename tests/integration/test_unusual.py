"""What in the trail is worth a question, each reason at its boundary, and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from app import guard, policy, trail
from app.actor import Actor, Origin
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.services import unusual
from jobs import trail as drainer
from jobs.unusual import find
from models.audit import UnusualAccess
from models.base import now
from tests import factories
from tests.conftest import Browser, TrailLines, csrf_of
from tests.factories import Hospital

Acting = Callable[[str], AbstractContextManager[Any]]
ClientAs = Callable[[str], Browser]
pytestmark = pytest.mark.usefixtures("asked_nothing")

TODAY = datetime.combine((now() - timedelta(days=1)).date(), datetime.min.time(), UTC) + timedelta(hours=12)
"""Noon of yesterday."""


def sql(*statements: str, **values: Any) -> list[Any]:
    """Something done or asked past the application, as the owner of the database would."""
    with guard.engine().begin() as connection:
        for statement in statements:
            found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


def past_the_trigger(statement: str) -> None:
    sql(
        "ALTER TABLE unusual_access DISABLE TRIGGER unusual_access_is_final",
        statement,
        "ALTER TABLE unusual_access ENABLE TRIGGER unusual_access_is_final",
    )


@pytest.fixture
def asked_nothing(database: Any) -> Iterator[None]:
    """Nobody has opened anything yet, and nothing was found."""
    drainer.drain()
    find()
    past_the_trigger("DELETE FROM unusual_access")
    sql(
        "ALTER TABLE audit_event DISABLE TRIGGER USER",
        "DELETE FROM audit_event",
        "DELETE FROM unusual_day",
        "ALTER TABLE audit_event ENABLE TRIGGER USER",
    )
    yield
    past_the_trigger("DELETE FROM unusual_access")


class Ward:
    """A place where people open records, at any time one likes."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital = hospital

    def opens(
        self,
        username: str,
        *patients: int,
        at: datetime = TODAY,
        roles: tuple[str, ...] | None = None,
        kinds: tuple[str, ...] = ("Patient", "PatientIdentifier", "Observation"),
        purpose: str = "TREAT",
        action: str = "R",
        outcome: int = 0,
        arrives: bool = True,
    ) -> None:
        """Somebody opens the records of patients, by their place in the hospital; the lines are stored."""
        role = factories.PEOPLE[username][0]
        actor = Actor(
            username,
            roles or (str(role),),
            policy.NOTHING,
            user_id=self.hospital.accounts[username],
            branch_id=None,
            purpose=purpose,
            origin=Origin("web"),
        )
        lines = []
        for place in patients:
            key = self.hospital.patients[place] if place < len(self.hospital.patients) else place
            entities = [
                {"type": kind, "ids": [key * 10, key * 10 + 1][: 1 if kind == "Patient" else 2]} for kind in kinds
            ]
            line = trail.event(action, "read", patient_id=key, entities=entities, outcome=outcome)
            lines.append({**line, "recorded": at.isoformat()})
        trail.the_trail().write(actor, lines)
        if arrives:
            drainer.drain()

    def found(self, *reasons: str) -> list[tuple[str, int | None, str]]:
        """What there is to ask: (user name, place of the patient, reason)."""
        find()
        names = {key: name for name, key in self.hospital.accounts.items()}
        places = {key: place for place, key in enumerate(self.hospital.patients)}
        rows = sql("SELECT * FROM unusual_access ORDER BY user_id, patient_id, reason")
        return [
            (names[row["user_id"]], places.get(row["patient_id"]), row["reason"])
            for row in rows
            if not reasons or row["reason"] in reasons
        ]


@pytest.fixture
def ward(hospital: Hospital) -> Ward:
    return Ward(hospital)


@pytest.fixture
def changed(hospital: Hospital) -> Iterator[Callable[[str, str], None]]:
    """Change rows for one test: (do, undo)."""
    undo: list[str] = []

    def change(do: str, back: str) -> None:
        sql(do)
        undo.append(back)

    yield change
    for statement in reversed(undo):
        sql(statement)


# ---- the reasons ---------------------------------------------------------------------------------------------------


def test_an_ordinary_look_is_nobodys_question(ward: Ward) -> None:
    ward.opens("reception", 0, 1, 2, 3)
    assert ward.found() == []


@pytest.mark.parametrize(
    ("name", "family", "second", "same"),
    [
        ("Reception", "Reception", "", True),
        ("Reception", "", "Reception", True),
        ("Réception", "RECEPTION", "", True),
        ("Reception", "Receptions", "", False),
        ("Reception", "Reception Smith", "", False),
        ("Recep", "Reception", "", False),
        ("Müller", "Muller", "", True),
    ],
)
def test_the_same_family_name(
    ward: Ward, hospital: Hospital, changed: Any, name: str, family: str, second: str, same: bool
) -> None:
    user, patient = hospital.accounts["reception"], hospital.patients[5]
    changed(
        f"UPDATE ab_user SET last_name = '{name}' WHERE id = {user}",
        f"UPDATE ab_user SET last_name = 'Reception' WHERE id = {user}",
    )
    changed(
        f"UPDATE practitioner SET family = '{name}' WHERE user_id = {user}",
        f"UPDATE practitioner SET family = 'Reception' WHERE user_id = {user}",
    )
    changed(
        f"UPDATE patient SET family = '{family}', second_family = '{second}' WHERE id = {patient}",
        f"UPDATE patient SET family = 'Øster', second_family = '' WHERE id = {patient}",
    )
    ward.opens("reception", 5, 6)
    assert ward.found() == ([("reception", 5, "family")] if same else [])


def test_their_own_record_with_a_staff_role(ward: Ward, hospital: Hospital, changed: Any) -> None:
    patient, user = hospital.patients[4], hospital.accounts["billing"]
    changed(
        f"UPDATE patient SET user_id = {user}, family = 'Clerk' WHERE id = {patient}",
        f"UPDATE patient SET user_id = NULL, family = 'O''Brien' WHERE id = {patient}",
    )
    ward.opens("billing", 4)
    ward.opens("patient", 0)
    assert ward.found() == [("billing", 4, "own")]


def test_a_patient_with_a_staff_role_is_asked(ward: Ward) -> None:
    ward.opens("patient", 0, roles=("Patient",))
    assert ward.found() == []
    ward.opens("patient", 0, roles=("Patient", "Receptionist"))
    assert ward.found() == [("patient", 0, "own")]


def test_a_confidential_record(ward: Ward, hospital: Hospital, changed: Any) -> None:
    ward.opens("reception", 7)
    assert ward.found() == []
    key = hospital.patients[7]
    changed(
        f"UPDATE patient SET confidential = true WHERE id = {key}",
        f"UPDATE patient SET confidential = false WHERE id = {key}",
    )
    ward.opens("reception", 7, 8)
    assert ward.found() == [("reception", 7, "confidential")]


def visit(patient: int, *, branch: int | None = None, practitioner: int | None = None, days: float = 0.0) -> str:
    """A visit that ended so many days before the look; negative: that began so many days after it."""
    ended = TODAY - timedelta(days=days)
    began = ended - timedelta(hours=1) if days >= 0 else ended
    values = f"{patient}, {branch or 'NULL'}, {practitioner or 'NULL'}, '{began}', '{max(began, ended)}'"
    return (
        "INSERT INTO encounter (fhir_id, version, created_at, updated_at, status, class_code, type_display, reason, "
        "patient_id, branch_id, practitioner_id, started_at, ended_at) "
        f"VALUES (gen_random_uuid(), 1, now(), now(), 'finished', 'AMB', '', '', {values})"
    )


@pytest.fixture
def stranger(hospital: Hospital, changed: Any) -> int:
    """A patient of long ago, registered at the other branch, whom nobody here has seen."""
    key, other = hospital.patients[9], hospital.branches[1]
    changed(
        f"UPDATE patient SET created_at = '2020-01-01Z', registered_at_id = {other} WHERE id = {key}",
        f"UPDATE patient SET created_at = now() WHERE id = {key}",
    )
    return key


CARE = [("no-care", True)]


@pytest.mark.parametrize(
    ("where", "days", "asked"),
    [
        ("", 0, True),
        ("own branch", 1, False),
        ("own branch", 89.9, False),
        ("own branch", 90.1, True),
        ("own branch", -89.9, False),
        ("own branch", -90.1, True),
        ("other branch", 1, True),
        ("seen by them elsewhere", 1, False),
        ("seen by them elsewhere", 90.1, True),
    ],
)
def test_no_part_in_the_care(
    ward: Ward, hospital: Hospital, changed: Any, stranger: int, where: str, days: float, asked: bool
) -> None:
    here, there = hospital.branches
    more = {
        "own branch": {"branch": here},
        "other branch": {"branch": there},
        "seen by them elsewhere": {"branch": there, "practitioner": hospital.staff["nurse"]},
    }
    if where:
        changed(visit(stranger, days=days, **more[where]), f"DELETE FROM encounter WHERE patient_id = {stranger}")
    ward.opens("nurse", 9)
    assert ward.found() == ([("nurse", 9, "no-care")] if asked else [])


def test_a_visit_that_goes_on_is_care_and_one_that_was_called_off_is_not(
    ward: Ward, hospital: Hospital, changed: Any, stranger: int
) -> None:
    changed(
        visit(stranger, branch=hospital.branches[0], days=200), f"DELETE FROM encounter WHERE patient_id = {stranger}"
    )
    going_on = "UPDATE encounter SET ended_at = NULL, status = 'in-progress' WHERE patient_id = "
    sql(
        "ALTER TABLE encounter DISABLE TRIGGER USER",
        f"{going_on}{stranger}",
        "ALTER TABLE encounter ENABLE TRIGGER USER",
    )
    ward.opens("nurse", 9)
    assert ward.found() == []
    sql(f"UPDATE encounter SET status = 'cancelled' WHERE patient_id = {stranger}")
    ward.opens("nurse", 9)
    assert ward.found() == [("nurse", 9, "no-care")]


def test_whoever_was_just_registered_here_has_no_visit_yet(
    ward: Ward, hospital: Hospital, changed: Any, stranger: int
) -> None:
    here = hospital.branches[0]
    sql(f"UPDATE patient SET registered_at_id = {here}, created_at = :when WHERE id = {stranger}", when=TODAY)
    changed("SELECT 1", f"UPDATE patient SET registered_at_id = {hospital.branches[1]} WHERE id = {stranger}")
    ward.opens("nurse", 9)
    assert ward.found() == []
    sql(f"UPDATE patient SET created_at = '{TODAY - timedelta(days=91)}' WHERE id = {stranger}")
    ward.opens("nurse", 9)
    assert ward.found() == [("nurse", 9, "no-care")]


def test_only_those_who_care_are_asked_for_their_part_in_it(ward: Ward, stranger: int) -> None:
    for username in ("reception", "billing", "lab", "privacy", "admin"):
        ward.opens(username, 9)
    ward.opens("nurse", 9, roles=("Nurse", "Receptionist"))
    ward.opens("nurse", 9, purpose="BTG")
    assert ward.found() == []
    ward.opens("pharmacist", 9)
    assert ward.found() == [("pharmacist", 9, "no-care")]


def days_of(ward: Ward, *counts: int, username: str = "reception") -> None:
    """Working days before today, the last first, with so many patients each."""
    for ago, count in enumerate(counts, start=1):
        ward.opens(username, *range(1000, 1000 + count), at=TODAY - timedelta(days=ago), arrives=False)
    drainer.drain()
    find()
    past_the_trigger("DELETE FROM unusual_access")


@pytest.mark.parametrize(
    ("before", "today", "asked"),
    [
        ((10, 10, 10, 10, 10), 30, False),
        ((10, 10, 10, 10, 10), 31, True),
        ((11, 11, 11, 11, 11), 33, False),
        ((11, 11, 11, 11, 11), 34, True),
        ((1, 1, 1, 1, 1), 30, False),
        ((1, 1, 1, 1), 40, False),
        ((1, 1, 1, 1, 1), 31, True),
        ((5, 60, 12, 7, 20), 36, False),
        ((5, 60, 12, 7, 20), 37, True),
    ],
)
def test_far_more_patients_than_is_usual_for_them(ward: Ward, before: tuple[int, ...], today: int, asked: bool) -> None:
    days_of(ward, *before)
    ward.opens("reception", *range(1000, 1000 + today))
    assert ward.found("volume") == ([("reception", None, "volume")] if asked else [])
    if asked:
        (row,) = sql("SELECT patients, lines, usual, day FROM unusual_access WHERE reason = 'volume'")
        assert (row["patients"], row["lines"]) == (today, today)
        assert row["usual"] == sorted(before)[len(before) // 2]
        assert row["day"] == TODAY.date()


# ---- what is no look -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"action": "E"},
        {"action": "U"},
        {"outcome": 4},
        {"kinds": ("Patient",)},
        {"at": now() - timedelta(days=61)},
    ],
    ids=["a search", "a change", "a refusal", "a list", "long ago"],
)
def test_what_is_no_look_into_a_record_is_not_asked(ward: Ward, stranger: int, more: dict[str, Any]) -> None:
    ward.opens("nurse", 9, **more)
    assert ward.found() == []
    ward.opens("nurse", 9)
    assert ward.found() == [("nurse", 9, "no-care")]


def test_a_real_chart_is_a_look_and_a_search_is_not(
    client_as: ClientAs, ward: Ward, hospital: Hospital, stranger: int
) -> None:
    client = client_as("nurse")
    assert "Fitzgerald" in client.page("/patients/?q=Fitzgerald")
    drainer.drain()
    assert ward.found() == []
    client.page(f"/patients/{stranger}/")
    client.page("/")
    drainer.drain()
    assert ward.found() == [("nurse", 9, "no-care")]
    assert sql("SELECT lines FROM unusual_access")[0]["lines"] == 1


# ---- again, and late -----------------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    return [dict(row) for row in sql("SELECT * FROM unusual_access ORDER BY id")]


def test_twice_is_once(ward: Ward, stranger: int) -> None:
    ward.opens("nurse", 9)
    ward.found()
    first = rows()
    find()
    assert rows() == first
    sql("UPDATE unusual_scan SET batch = 0")
    find()
    assert rows() == first


def test_the_day_goes_on(ward: Ward, stranger: int) -> None:
    ward.opens("nurse", 9)
    ward.found()
    ward.opens("nurse", 9, at=TODAY + timedelta(hours=3), kinds=("Patient", "Condition"))
    ward.found()
    (row,) = rows()
    assert row["lines"] == 2
    assert (row["first_at"], row["last_at"]) == (TODAY, TODAY + timedelta(hours=3))
    assert row["seen"] == {"Patient": 1, "PatientIdentifier": 2, "Observation": 2, "Condition": 2}


def test_a_line_that_comes_late_is_found(ward: Ward, stranger: int) -> None:
    """It was in the spool of a machine that was away; lines of a later hour were looked through long ago."""
    ward.opens("nurse", 9)
    ward.found()
    ward.opens("nurse", 9, at=TODAY - timedelta(hours=5))
    ward.opens("doctor", 9, at=TODAY - timedelta(days=20))
    assert ward.found() == [("nurse", 9, "no-care"), ("doctor", 9, "no-care")]
    assert [(row["lines"], row["day"]) for row in rows()] == [
        (2, TODAY.date()),
        (1, TODAY.date() - timedelta(days=20)),
    ]


def test_the_day_is_that_of_the_branch(ward: Ward, hospital: Hospital, stranger: int) -> None:
    """One in the morning in Madrid is the day before in New York."""
    late = datetime.combine(TODAY.date(), datetime.min.time(), UTC) + timedelta(hours=1)
    for branch in hospital.branches:
        line = trail.event(
            "R", "read", patient_id=stranger, entities=[{"type": "Patient", "ids": [1]}, {"type": "Room", "ids": [1]}]
        )
        who = Actor(
            "Nora", ("Nurse",), policy.NOTHING, user_id=hospital.accounts["nurse"], branch_id=branch, origin=Origin()
        )
        trail.the_trail().write(who, [{**line, "recorded": late.isoformat()}])
    drainer.drain()
    find()
    assert {(row["day"], row["lines"]) for row in rows()} == {
        (late.date(), 1),
        (late.date() - timedelta(days=1), 1),
    }


# ---- the review ----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(ward: Ward, stranger: int) -> int:
    """One thing to ask of the nurse."""
    ward.opens("nurse", 9)
    ward.found()
    return int(rows()[0]["id"])


@pytest.mark.parametrize("username", [name for name in factories.PEOPLE if name != "privacy"])
def test_nobody_else_sees_it(acting: Acting, client_as: ClientAs, username: str, asked: int) -> None:
    client = client_as(username)
    assert client.get("/unusual/").status_code == 403
    token = csrf_of(client.page("/me/"))
    sent = client.post("/unusual/review", data={"csrf_token": token, "which": asked, "finding": "explained"})
    assert sent.status_code == 403
    assert "Unusual access" not in client.page("/")
    with acting(username), pytest.raises(Forbidden):
        guard.session().scalars(select(UnusualAccess)).all()
    assert rows()[0]["finding"] is None


def test_the_privacy_officer_reviews_it(
    client_as: ClientAs, hospital: Hospital, asked: int, trail_lines: TrailLines
) -> None:
    client = client_as("privacy")
    assert re.search(r'big-count">1</span>\s*<span class="row-text"><b>Unusual access', client.page("/"))
    trail_lines.forget()
    page = client.page("/unusual/")
    for word in ("Nora Nurse", "Fitzgerald-Jones, Persephone", "No part in the care", "observations (2)", "1 time"):
        assert word in page, word
    assert f"who={hospital.accounts['nurse']}" in page
    assert "There are more than" not in page
    assert hospital.patients[9] in {line["patient_id"] for line in trail_lines.events()}
    link = re.search(r'href="(/trail/\?[^"]+)"', page)
    assert link
    assert "Fitzgerald-Jones" in client.page(link[1].replace("&amp;", "&"))

    refused = client.post(
        "/unusual/review",
        data={
            "csrf_token": csrf_of(page),
            "of": hospital.accounts["nurse"],
            "which": asked,
            "finding": "not-explained",
            "note": "too short",
        },
    )
    assert refused.status_code == 422
    assert "15 letters or more what was not explained" in refused.text
    assert "too short</textarea>" in refused.text
    assert rows()[0]["finding"] is None

    said = {"csrf_token": csrf_of(page), "which": asked, "finding": "explained", "note": "Stood in for a colleague"}
    assert client.post("/unusual/review", data=said).status_code == 302
    (row,) = rows()
    assert (row["finding"], row["review_note"]) == ("explained", "Stood in for a colleague")
    assert row["reviewed_by_id"] == hospital.accounts["privacy"]
    after = client.page("/unusual/")
    assert "Nothing is to be looked at" in after
    assert "Stood in for a colleague" in after
    assert "Unusual access to be" not in client.page("/")
    again = client.post("/unusual/review", data={**said, "finding": "not-explained", "note": "It was not that at all"})
    assert again.status_code == 409
    assert rows() == [row]
    drainer.drain()
    assert sql(
        "SELECT 1 FROM audit_event WHERE action = 'U' AND patient_id = :p AND entities::text LIKE '%UnusualAccess%'",
        p=hospital.patients[9],
    )


def test_filters(client_as: ClientAs, ward: Ward, hospital: Hospital, asked: int) -> None:
    client, who = client_as("privacy"), hospital.accounts["nurse"]
    day = TODAY.date().isoformat()
    for query, there in (
        ("reason=no-care", True),
        ("reason=own", False),
        (f"who={who}", True),
        (f"who={who + 1}", False),
        (f"from={day}&to={day}", True),
        (f"to={date(2020, 1, 1)}", False),
        ("reason=nonsense&who=x&from=never&page=-1", True),
    ):
        page = client.page(f"/unusual/?{query}")
        assert ("Fitzgerald-Jones" in page) == there, query
        assert ("Nothing fits" in page) != there, query


def review(session: Any, *keys: int, finding: str = "explained", note: str = "") -> Any:
    return unusual.review(session, keys, finding=finding, note=note)


def test_nobody_reviews_what_they_looked_at_themselves(
    acting: Acting, client_as: ClientAs, ward: Ward, hospital: Hospital, changed: Any, asked: int
) -> None:
    key = hospital.patients[7]
    changed(
        f"UPDATE patient SET confidential = true WHERE id = {key}",
        f"UPDATE patient SET confidential = false WHERE id = {key}",
    )
    ward.opens("privacy", 7)
    assert ("privacy", 7, "confidential") in ward.found()
    own = next(row["id"] for row in rows() if row["user_id"] == hospital.accounts["privacy"])
    page = client_as("privacy").page("/unusual/")
    assert "This was you" in page
    assert f'id="which-{asked}"' in page
    assert f'id="which-{own}"' not in page
    before = rows()
    with acting("privacy"), pytest.raises(Forbidden, match="themselves"), guard.unit_of_work() as session:
        review(session, asked, own)
    assert rows() == before
    with pytest.raises(DBAPIError, match="reviewed_by_another"):
        sql(
            f"UPDATE unusual_access SET reviewed_by_id = user_id, reviewed_at = now(), finding = 'explained' WHERE id = {own}"
        )


@pytest.mark.parametrize(
    ("keys", "more", "refusal"),
    [
        ((), {}, Invalid),
        (("asked", 999_999), {}, NotFound),
        (("asked",), {"finding": ""}, Invalid),
        (("asked",), {"finding": "justified"}, Invalid),
        (("asked",), {"finding": "not-explained", "note": " " * 20 + "x" * 14}, Invalid),
        (("asked",), {"note": "x" * 1001}, Invalid),
    ],
)
def test_a_review_says_something(
    acting: Acting, asked: int, keys: tuple[Any, ...], more: dict[str, Any], refusal: type[Exception]
) -> None:
    before = rows()
    with acting("privacy"), pytest.raises(refusal), guard.unit_of_work() as session:
        review(session, *(asked if key == "asked" else key for key in keys), **more)
    assert rows() == before


def test_what_was_said_stays_and_what_comes_after_is_told(
    acting: Acting, client_as: ClientAs, ward: Ward, asked: int
) -> None:
    with acting("privacy"), guard.unit_of_work() as session:
        review(session, asked, finding="not-explained", note="She could not say why at all")
    for statement in (
        "UPDATE unusual_access SET finding = 'explained'",
        "UPDATE unusual_access SET review_note = ''",
        "UPDATE unusual_access SET reviewed_at = NULL, reviewed_by_id = NULL, finding = NULL",
        "UPDATE unusual_access SET user_id = 1",
        "DELETE FROM unusual_access",
    ):
        with pytest.raises(DBAPIError, match="never rewritten"):
            sql(statement)
    client = client_as("privacy")
    assert "Opened again since" not in client.page("/unusual/")
    past_the_trigger(f"UPDATE unusual_access SET reviewed_at = '{TODAY + timedelta(minutes=5)}'")
    ward.opens("nurse", 9, at=TODAY + timedelta(minutes=10))
    ward.found()
    (row,) = rows()
    assert (row["lines"], row["finding"]) == (2, "not-explained")
    assert "Opened again since" in client.page("/unusual/")
    with acting("privacy"), pytest.raises(Conflict), guard.unit_of_work() as session:
        review(session, asked)


def test_the_confidential_mark_is_set_at_registration_and_shown_on_the_chart(
    client_as: ClientAs, hospital: Hospital
) -> None:
    client, key = client_as("reception"), hospital.patients[8]
    assert client.submit(f"/patients/{key}/edit/", {"confidential": "y"}).status_code == 302
    try:
        assert sql(f"SELECT confidential FROM patient WHERE id = {key}")[0]["confidential"]
        assert "Confidential</span>" in client.page(f"/patients/{key}/")
        assert client.submit(f"/patients/{key}/edit/").status_code == 302
        assert sql(f"SELECT confidential FROM patient WHERE id = {key}")[0]["confidential"]
    finally:
        sql(f"UPDATE patient SET confidential = false WHERE id = {key}")
