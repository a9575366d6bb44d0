"""The pages of the trail: what is asked is what is shown, nobody sees more of it than they may, and files hold the same."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from fhir.resources.R4B.auditevent import AuditEvent as R4AuditEvent
from sqlalchemy import event, text
from uuid_utils.compat import uuid7

from app import guard, policy, trail
from app.errors import NotRecorded, TooManyLines
from app.policy import may
from app.services import audit
from jobs import trail as drainer
from models.base import now
from models.codes import PurposeOfUse, RowScope
from ops.servers import Servers, free_port
from tests import factories
from tests.conftest import Browser, Database, TrailLines
from tests.factories import Hospital
from views.audit import PURPOSES
from views.audit_files import plain

ClientAs = Callable[[str], Browser]
MADRID_DAY = "2026-03-29"
"""The day of 23 hours in Madrid, where the privacy officer works."""

_requests = count()


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


def line(name: str, recorded: datetime | None = None, **values: Any) -> str:
    """A line in the trail, by somebody of that name a minute ago; gives its id."""
    said: dict[str, Any] = {
        "id": str(uuid7()),
        "recorded": recorded or now() - timedelta(minutes=1),
        "type": "rest",
        "subtype": "read",
        "action": "R",
        "outcome": 0,
        "user_id": None,
        "agent_name": name,
        "roles": ["Doctor"],
        "branch_id": 1,
        "purpose": "TREAT",
        "channel": "web",
        "address": "203.0.113.9",
        "user_agent": "Firefox/140",
        "session_id": "5e55",
        "request_id": f"request-{next(_requests)}",
        "patient_id": None,
        "entities": [],
        "query": None,
        "reason": None,
        "batch_seq": 0,
        "leaf_no": 0,
        **values,
    }
    said["entities"] = json.dumps(said["entities"])
    columns = ", ".join(said)
    taken = ", ".join(
        {"entities": "cast(:entities AS json)", "address": "cast(:address AS inet)"}.get(c, f":{c}") for c in said
    )
    sql(f"INSERT INTO audit_event ({columns}) VALUES ({taken})", **said)
    return str(said["id"])


def saw(*kinds: str) -> list[dict[str, Any]]:
    """What was returned: one row of each kind."""
    return [{"type": kind, "ids": [7]} for kind in kinds]


def words(page: str) -> str:
    """A page as it reads."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def table(page: str) -> str:
    """The lines of a page, as they read."""
    found = re.search(r"<tbody>.*</tbody>", page, re.DOTALL)
    return words(found[0]) if found else ""


def mrn_of(patient_id: int) -> str:
    return str(sql("SELECT mrn FROM patient WHERE id = :p", p=patient_id)[0]["mrn"])


def spreadsheet(body: bytes) -> list[dict[str, str]]:
    """The rows of a CSV file, by the heads of its columns."""
    return list(csv.DictReader(io.StringIO(body.decode("utf-8-sig"), newline="")))


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that are asked of the database meanwhile."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        asked.append(statement)

    event.listen(guard.engine(), "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(guard.engine(), "before_cursor_execute", note)


# ---- searching -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(database: Database) -> Hospital:
    """Lines that differ in one thing each, by people whose names say in which."""
    h = database.hospital
    ago = now() - timedelta(minutes=2)
    line("Mark Plain", ago)
    line("Mark Patient", ago, patient_id=h.patients[2], entities=saw("Encounter"))
    line("Mark Doctor", ago, user_id=h.accounts["doctor"])
    line("Mark Nurse", ago, user_id=h.accounts["nurse"])
    line("Mark South", ago, branch_id=h.branches[1])
    line("Mark Changed", ago, action="U", subtype="update")
    line("Mark Glass", ago, purpose="BTG", patient_id=h.patients[4])
    line("Mark Office", ago, purpose="HOPERAT")
    line("Mark Refused", ago, outcome=4, reason="Forbidden", entities=[{"type": "ClinicalNote"}])
    line("Mark Old", now() - timedelta(days=40))
    line("import", ago, roles=["service:import"], query="Mark Service")
    return h


MARKS = ("Plain", "Patient", "Doctor", "Nurse", "South", "Changed", "Glass", "Office", "Refused", "Old", "Service")
NEW = set(MARKS) - {"Old"}
FILTERS: dict[str, tuple[str, set[str]]] = {
    "nothing": ("", NEW),
    "a patient by number": ("patient={mrn}", {"Patient"}),
    "a patient by name": ("patient=medina jesus", {"Patient"}),
    "exactly a patient": ("of={patient}", {"Patient"}),
    "a patient nobody has": ("of=999999999", set()),
    "a patient no number can be": ("of=9999999999999999999999", NEW),
    "a person by name": ("person=dora", {"Doctor"}),
    "a person by both names, in any order": ("person=DOCTOR dora", {"Doctor"}),
    "a person by user name": ("person=nurse", {"Nurse"}),
    "exactly a person": ("who={nurse}", {"Nurse"}),
    "a person of no account": ("who=999999999", set()),
    "a number beyond accounts": ("who=99999999999", set()),
    "a service": ("person=import", {"Service"}),
    "a name no account has": ("person=mark off", {"Office"}),
    "a name in the lines, where accounts have it as well": ("person=doctor&by=name", {"Doctor"}),
    "a branch": ("branch={south}", {"South"}),
    "an action": ("action=U", {"Changed"}),
    "a purpose": ("purpose=HOPERAT", {"Office"}),
    "emergency access": ("purpose=BTG", {"Glass"}),
    "an unknown purpose": ("purpose=FUN", NEW),
    "an outcome": ("outcome=4", {"Refused"}),
    "from a day on": ("from={long_ago}", set(MARKS)),
    "until a day": ("to={a_month_ago}", {"Old"}),
    "between days": ("from={long_ago}&to={a_month_ago}", {"Old"}),
    "a day nobody came": ("from=2020-02-02&to=2020-02-02", set()),
    "two things at once": ("of={glass}&purpose=BTG", {"Glass"}),
    "two things that are never together": ("of={patient}&purpose=BTG", set()),
    "a person and a patient": ("who={nurse}&of={patient}", set()),
}


@pytest.mark.parametrize("name", FILTERS)
def test_what_is_asked_is_what_is_shown(name: str, client_as: ClientAs, planted: Hospital) -> None:
    query, wanted = FILTERS[name]
    asked = query.format(
        mrn=mrn_of(planted.patients[2]),
        patient=planted.patients[2],
        glass=planted.patients[4],
        nurse=planted.accounts["nurse"],
        south=planted.branches[1],
        long_ago=f"{now() - timedelta(days=50):%Y-%m-%d}",
        a_month_ago=f"{now() - timedelta(days=35):%Y-%m-%d}",
    )
    client = client_as("privacy")
    shown = table(client.page(f"/trail/?{asked}"))
    found = {mark for mark in MARKS if f"Mark {mark}" in shown}
    if "Service" in wanted:
        assert "Mark Service" in shown
    assert found == wanted
    rows = spreadsheet(client.get(f"/trail/export.csv?{asked}").data)
    held = {mark for mark in MARKS if any(f"Mark {mark}" in (row["Who"], row["What"]) for row in rows)}
    assert held == wanted, "the file holds what the page shows"


def test_the_words_for_purposes_are_the_hospitals_own(client_as: ClientAs, planted: Hospital) -> None:
    page = client_as("privacy").page("/trail/?purpose=BTG")
    assert '<option value="BTG" selected>Emergency access</option>' in page
    assert "Emergency access" in table(page)
    assert "Broke the glass" not in page
    assert set(PURPOSES) == set(PurposeOfUse), "every purpose has a word"


def test_one_of_several_people_is_chosen_exactly(client_as: ClientAs, planted: Hospital) -> None:
    client = client_as("privacy")
    page = client.page("/trail/?person=nor&from=2026-01-01")  # Nora Nurse, and no other
    assert f'href="/trail/?from=2026-01-01&amp;who={planted.accounts["nurse"]}"' in page
    assert "Only this person:" in page
    chosen = client.page(f"/trail/?who={planted.accounts['nurse']}")
    assert f'<input type="hidden" name="who" value="{planted.accounts["nurse"]}">' in chosen
    assert "Nora Nurse" in words(chosen)
    assert 'name="person"' not in chosen
    assert "No account goes by that" in client.page("/trail/?person=mark off")


def test_a_name_stands_for_a_few_accounts_at_most_and_staff_come_first(
    client_as: ClientAs, planted: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "NAMED", 2)
    page = words(client_as("privacy").page("/trail/?person=a"))
    assert "More than 2 go by that" in page
    assert "Agnes Admin" in page


def test_an_account_of_a_patient_is_named_to_those_who_may_see_the_patient_only(
    client_as: ClientAs, granted: Any, planted: Hospital
) -> None:
    account = planted.accounts["patient"]
    client = client_as("privacy")
    for address in ("/trail/?person=quartermain", f"/trail/?who={account}", f"/trail/people/{account}/"):
        assert "Zinnia Quartermain" in client.page(address), address
    granted("PrivacyOfficer", Patient=None)
    for address in ("/trail/?person=quartermain", f"/trail/?who={account}", f"/trail/people/{account}/"):
        assert "Zinnia" not in client.page(address), address
    assert "No account goes by that" in client.page("/trail/?person=quartermain")


def test_the_days_are_those_of_the_branch(client_as: ClientAs, hospital: Hospital) -> None:
    """29 March 2026 in Madrid begins at 23:00 and ends at 22:00, by Greenwich."""
    user = hospital.accounts["pharmacist"]
    for name, moment in {
        "Day Before": datetime(2026, 3, 28, 22, 59, 59, 999999, tzinfo=UTC),
        "Day First": datetime(2026, 3, 28, 23, tzinfo=UTC),
        "Day Last": datetime(2026, 3, 29, 21, 59, 59, 999999, tzinfo=UTC),
        "Day After": datetime(2026, 3, 29, 22, tzinfo=UTC),
    }.items():
        line(name, moment, user_id=user, patient_id=hospital.patients[0], entities=saw("Patient"))
    client = client_as("privacy")
    for address in (
        f"/trail/?from={MADRID_DAY}&to={MADRID_DAY}",
        f"/trail/?who={user}&from={MADRID_DAY}&to={MADRID_DAY}",
    ):
        shown = table(client.page(address))
        assert [name for name in ("Before", "First", "Last", "After") if f"Day {name}" in shown] == ["First", "Last"]
    day = client.page(f"/trail/people/{user}/?day={MADRID_DAY}")
    assert "What Day Last saw" in words(day)
    assert "00:00" in table(day)
    assert "2 looks into records over the day" in day
    plot = re.search(r'<svg class="bars".*?</svg>', day, re.DOTALL)
    assert plot is not None
    assert plot[0].count("<rect") == 2
    hours = re.findall(r'<th scope="row">(\d\d:\d\d)</th><td class="num">(\d+)</td>', day)
    assert hours == [("00:00", "1"), ("23:00", "1")], "the hour that was left out did not move the others"


@pytest.mark.parametrize("narrowed", ["", "&of={patient}"], ids=["everything", "one patient"])
def test_nothing_is_left_out_or_shown_twice_while_lines_arrive(
    narrowed: str, client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    """Three at every instant, seconds to days apart, so that pages end within an instant and within every step."""
    patient, branch = hospital.patients[7], 4343 if narrowed else 4242
    instants = [now() - timedelta(seconds=4**step + 90) for step in range(10)]
    instants += [now() - timedelta(days=3, seconds=7 * step + 90) for step in range(40)]
    made = {line("Paged", when, branch_id=branch, patient_id=patient): when for when in instants for _ in range(3)}
    client = client_as("privacy")
    address: str | None = f"/trail/?branch={branch}&from=2026-01-01{narrowed.format(patient=patient)}"
    keys: list[str] = []
    pages = 0
    while address:
        trail_lines.forget()
        page = client.page(address)
        keys += shown(trail_lines)[: audit.PAGE]  # one more is looked for, to know whether there is more
        pages += 1
        line("Paged, and late", branch_id=branch, patient_id=patient)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        address = older[1].replace("&amp;", "&") if older else None
    assert pages == 3
    assert len(keys) == len(set(keys))
    assert set(keys) == set(made)
    order = [(made[key], key) for key in keys]
    assert order == sorted(order, reverse=True)


def shown(lines: TrailLines) -> list[str]:
    """The ids of the lines of the trail that were shown, in order, as the trail itself has it."""
    return [
        key
        for each in lines.events()
        for entity in each["entities"]
        if entity["type"] == "AuditEvent"
        for key in entity.get("ids", [])
    ]


def test_the_pages_ask_a_bounded_number_of_things(client_as: ClientAs, hospital: Hospital) -> None:
    """However many lines there are, and however far apart."""
    user, patient = hospital.accounts["lab"], hospital.patients[8]
    client = client_as("privacy")
    pages = (
        f"/trail/patients/{patient}/?period=all",
        f"/trail/people/{user}/",
        "/trail/?outcome=12",
        f"/trail/?of={patient}",
    )
    for address in pages:
        client.page(address)
    few: dict[str, int] = {}
    for times in (1, 60):
        for number in range(times):
            line(
                "Luis Laboratory",
                user_id=user,
                patient_id=patient,
                entities=saw("Observation"),
                branch_id=1 + number % 2,
            )
        for address in pages:
            with counted() as asked:
                client.page(address)
            # Branches are kept for half a minute, so now and then somebody reads them anew.
            asked = [statement for statement in asked if "organization" not in statement]
            of_lines = [statement for statement in asked if "FROM audit_event " in statement]
            assert len(of_lines) <= (5 if "outcome" in address else 1), address
            assert len(asked) <= few.setdefault(address, len(asked)), address
            assert all("audit_event.recorded >= " in statement for statement in of_lines), (
                "every question has a bound in time"
            )
    assert max(few.values()) <= 16


# ---- who saw this patient, and what this person saw ----------------------------------------------------------------


def test_who_saw_a_patient_is_summed_up_by_person(client_as: ClientAs, hospital: Hospital) -> None:
    patient, h = hospital.patients[5], hospital
    doctor, nurse = h.accounts["doctor"], h.accounts["nurse"]
    of: dict[str, Any] = {"patient_id": patient}
    line(
        "Dora Doctor", now() - timedelta(days=3), user_id=doctor, **of, entities=[{"type": "Encounter", "ids": [1, 2]}]
    )
    line(
        "Dora Doctor", now() - timedelta(days=2), user_id=doctor, **of, entities=[{"type": "Encounter", "ids": [2, 3]}]
    )
    line(
        "Dora Doctor",
        now() - timedelta(days=2),
        user_id=doctor,
        **of,
        action="U",
        subtype="update",
        entities=saw("Condition"),
    )
    line(
        "Nora Nurse",
        user_id=nurse,
        **of,
        purpose="BTG",
        roles=["Nurse"],
        branch_id=h.branches[1],
        entities=saw("Patient"),
    )
    line(
        "import",
        now() - timedelta(days=90),
        **of,
        roles=["service:import"],
        action="C",
        subtype="create",
        entities=saw("Procedure"),
    )
    line("Dora Doctor", user_id=doctor, patient_id=h.patients[6], entities=saw("Immunization"))
    client = client_as("privacy")
    page = client.page(f"/trail/patients/{patient}/")
    summary, lines = re.findall(r"<tbody>.*?</tbody>", page, re.DOTALL)
    rows = [words(row) for row in summary.split("<tr")[1:]]
    assert len(rows) == 2
    assert "Nora Nurse" in rows[0], "the last one first"
    assert "Emergency access" in rows[0]
    assert "Southern General" in rows[0]
    assert "Treatment" not in rows[0]
    assert "Doctor · Hospital Norte" in rows[1]
    assert " 3 " in rows[1]
    assert "visits (3)" in rows[1]
    assert "Changed: conditions" in rows[1]
    assert "Treatment" in rows[1]
    assert "Emergency access" not in rows[1]
    assert words(lines).count("Dora Doctor") == 3
    assert "immunisations" not in page
    assert f'href="/trail/people/{doctor}/?day=' in page
    assert "procedures" not in page
    everything = words(client.page(f"/trail/patients/{patient}/?period=all"))
    assert "import" in everything
    assert "Changed: procedures" in everything
    for link in (f"/trail/export.csv?of={patient}", f"/trail/export.ndjson?of={patient}"):
        assert link in page


def test_a_patient_whom_nobody_saw(client_as: ClientAs, hospital: Hospital) -> None:
    client = client_as("privacy")
    page = client.page(f"/trail/patients/{hospital.patients[9]}/")
    assert "Nobody looked into this record" in page
    assert "Look through all there is" in page
    for nobody in (999_999_999, 2**70, 0):
        assert client.get(f"/trail/patients/{nobody}/").status_code == 404


def test_a_summary_of_too_many_lines_says_so(
    client_as: ClientAs, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, user = hospital.patients[10], hospital.accounts["billing"]
    for _ in range(5):
        line("Bill Billing", user_id=user, patient_id=patient, entities=saw("Encounter"))
    monkeypatch.setattr(audit, "SUMMED", 3)
    client = client_as("privacy")
    assert "The newest 3 are counted" in client.page(f"/trail/patients/{patient}/")
    assert "The newest 3 are." in client.page(f"/trail/people/{user}/")


def test_what_a_person_saw_on_a_day(client_as: ClientAs, hospital: Hospital) -> None:
    user, h = hospital.accounts["reception"], hospital
    day = datetime(2026, 5, 4, 8, 15, tzinfo=UTC)  # 10:15 in Madrid
    of: dict[str, Any] = {"user_id": user, "roles": ["Receptionist"], "purpose": "HOPERAT"}
    line("Rosa Reception", day, **of, type="110114", subtype="110122", action="E")
    line("Rosa Reception", day, **of, patient_id=h.patients[0], entities=saw("Patient"))
    line("Rosa Reception", day + timedelta(hours=2), **of, patient_id=h.patients[0], entities=saw("Encounter"))
    line("Rosa Reception", day + timedelta(hours=2), **of, patient_id=h.patients[1], entities=saw("Patient"))
    line(
        "Rosa Reception",
        day + timedelta(hours=3),
        **of,
        outcome=4,
        reason="Forbidden",
        entities=[{"type": "ClinicalNote"}],
    )
    line("Rosa Reception", day - timedelta(days=1), **of, patient_id=h.patients[2], entities=saw("Patient"))
    page = client_as("privacy").page(f"/trail/people/{user}/?day=2026-05-04")
    said = words(page)
    assert "What Rosa Reception saw" in said
    assert "Receptionist · 4 May 2026" in said
    assert "Medina" not in said
    rows = [words(row) for row in table_rows(page)]
    assert len(rows) == 2
    assert "14:15" not in rows[0]
    assert "12:15" in rows[0]
    assert "Vandersloot" in rows[0]
    assert "10:15" in rows[1]
    assert "12:15" in rows[1]
    assert "visits" in rows[1]
    assert "registration" in rows[1]
    assert "Wanted to see: notes" in said
    assert "the role does not allow it" in said
    assert "Signed in" in said
    assert "3 looks into records over the day, at most 2 in one hour, from 12:00 on" in page
    assert "day=2026-05-03" in page
    assert "day=2026-05-05" in page
    assert "Nothing on this day" in client_as("privacy").page(f"/trail/people/{user}/?day=2026-05-09")
    assert client_as("privacy").get(f"/trail/people/{2**70}/?day=nonsense").status_code == 200


def table_rows(page: str) -> list[str]:
    """The rows of the first table with patients in it."""
    found = re.search(r"Patients, the last one first.*?<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert found is not None
    return found[1].split("<tr>")[1:]


def test_the_chart_leads_to_it_for_those_who_may(client_as: ClientAs, hospital: Hospital) -> None:
    patient = hospital.patients[1]
    link = f'href="/trail/patients/{patient}/"'
    for username in ("admin", "privacy"):
        assert link in client_as(username).page(f"/patients/{patient}/"), username
    for username in ("doctor", "nurse", "reception"):
        assert link not in client_as(username).page(f"/patients/{patient}/"), username


# ---- who may -------------------------------------------------------------------------------------------------------

ADDRESSES = (
    "/trail/",
    "/trail/patients/{patient}/",
    "/trail/people/{user}/",
    "/trail/export.csv",
    "/trail/export.ndjson",
)


@pytest.mark.parametrize("username", ["nurse", "doctor", "patient", "reception", "lab"])
def test_nobody_else_opens_any_of_it_and_trying_is_a_line(
    username: str, client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    client = client_as(username)
    line("Sentinel Somebody", patient_id=hospital.patients[0], user_id=hospital.accounts["doctor"])
    for address in ADDRESSES:
        trail_lines.forget()
        answer = client.get(address.format(patient=hospital.patients[0], user=hospital.accounts["doctor"]))
        assert answer.status_code == 403, address
        assert "Sentinel Somebody" not in answer.text
        (entry,) = trail_lines.entries()
        assert entry["agent"]["user_id"] == hospital.accounts[username]
        (refusal,) = entry["events"]
        assert (refusal["subtype"], refusal["outcome"], refusal["reason"]) == ("read", 4, "Forbidden")
        assert refusal["entities"] == [{"type": "AuditEvent"}]


def test_only_lines_of_the_own_branch_are_shown_summed_up_and_taken_along(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    granted("PrivacyOfficer", AuditEvent=may("read", rows=RowScope.OWN_BRANCH))
    here, there = hospital.branches
    patient, user = hospital.patients[11], hospital.accounts["nurse"]
    for branch in (here, there):
        of: dict[str, Any] = {"patient_id": patient, "branch_id": branch}
        line(
            f"Rows {branch}",
            user_id=user if branch == there else hospital.accounts["doctor"],
            **of,
            entities=saw("Patient"),
        )
    client = client_as("privacy")
    for address in (
        "/trail/",
        f"/trail/patients/{patient}/",
        f"/trail/export.csv?of={patient}",
        f"/trail/export.ndjson?of={patient}",
    ):
        said = client.page(address)
        assert f"Rows {here}" in said, address
        assert f"Rows {there}" not in said, address
    assert "Tanaka" not in client.page(f"/trail/people/{user}/")


def test_who_may_not_see_the_patient_is_not_told_who_did(client_as: ClientAs, granted: Any, hospital: Hospital) -> None:
    granted("PrivacyOfficer", Patient=may("read", rows=RowScope.OWN_BRANCH))
    mine, theirs = hospital.patients[0], hospital.patients[3]
    line("Told Nobody", patient_id=theirs, user_id=hospital.accounts["lab"], entities=saw("Patient"))
    client = client_as("privacy")
    assert client.get(f"/trail/patients/{mine}/").status_code == 200
    answer = client.get(f"/trail/patients/{theirs}/")
    assert answer.status_code == 404
    assert "Told Nobody" not in answer.text
    row = next(row for row in spreadsheet(client.get("/trail/export.csv").data) if row["Who"] == "Told Nobody")
    assert (row["Patient"], row["Number"]) == ("", f"#{theirs}")
    sent = client.get("/trail/export.ndjson").text
    assert "Müller" not in sent
    granted("PrivacyOfficer", Patient=None)
    assert client.get(f"/trail/patients/{mine}/").status_code == 403


def test_masked_fields_are_in_no_page_and_no_file(client_as: ClientAs, granted: Any, hospital: Hospital) -> None:
    of: dict[str, Any] = {"address": "198.51.100.77", "user_agent": "Masked Browser", "session_id": "masked-session"}
    line(
        "Masked Person",
        user_id=hospital.accounts["admin"],
        patient_id=hospital.patients[0],
        entities=saw("Patient"),
        **of,
    )
    client = client_as("privacy")
    addresses = [address.format(patient=hospital.patients[0], user=hospital.accounts["admin"]) for address in ADDRESSES]
    everything = "".join(client.page(address) for address in addresses)
    assert all(value in everything for value in of.values())
    granted("PrivacyOfficer", AuditEvent=may("read", masked=["address", "user_agent", "session_id"]))
    for address in addresses:
        said = client.page(address)
        assert "Masked Person" in said or "people" in address, address
        assert not [value for value in of.values() if value in said], address
    heads = spreadsheet(client.get("/trail/export.csv").data)[0]
    assert not {"Network address", "Browser", "Session"} & set(heads), "an empty cell would say that there was none"
    found = next(
        each for each in resources(client.get("/trail/export.ndjson").data) if "Masked Person" in json.dumps(each)
    )
    network = found["agent"][0]["network"]
    assert network["_address"]["extension"][0]["valueCode"] == "masked"
    assert "address" not in network


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_is_a_formula(first: str) -> None:
    assert plain(f"{first}1+1") == f"'{first}1+1"


@pytest.mark.parametrize("value", ["", "a=b", "a,b", 'say "hi"', "Ñandú", "12", " =1", "’=1"])
def test_other_cells_stay_as_they_are(value: str) -> None:
    assert plain(value) == value


NASTY = (
    '=HYPERLINK("http://evil.example","x")',
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    'a "quoted", and\r\nbroken name',
    "Ñ 漢 ق",
)


def test_a_spreadsheet_opens_safely_whatever_people_call_themselves(client_as: ClientAs, hospital: Hospital) -> None:
    for number, name in enumerate(NASTY):
        line(name, now() - timedelta(seconds=90 + number), branch_id=7171, user_agent=name)
    answer = client_as("privacy").get("/trail/export.csv?branch=7171")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert re.fullmatch(r'attachment; filename="trail-\d{4}-\d\d-\d\d\.csv"', answer.headers["Content-Disposition"])
    assert answer.data.startswith(b"\xef\xbb\xbf"), "or a spreadsheet takes it for Latin"
    rows = spreadsheet(answer.data)
    assert [row["Who"] for row in rows] == [plain(name) for name in NASTY]
    assert [row["Browser"] for row in rows] == [plain(name) for name in NASTY]
    for row in csv.reader(io.StringIO(answer.data.decode("utf-8-sig"), newline="")):
        assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        assert len(row) == len(rows[0])


def resources(body: bytes) -> list[dict[str, Any]]:
    """The lines of an NDJSON file, each held against FHIR's own structure."""
    assert body.endswith(b"\n") or not body
    found = [json.loads(each) for each in body.splitlines()]
    for each in found:
        R4AuditEvent.model_validate(each)
    return found


def test_every_kind_of_line_is_an_audit_event_of_fhir(client_as: ClientAs, hospital: Hospital) -> None:
    h, here = hospital, {"branch_id": 8181}
    user, patient = h.accounts["doctor"], h.patients[0]
    role = {
        "type": "Role",
        "ids": [3],
        "of": "Nurse",
        "fields": ["permissions"],
        "old": {"permissions": []},
        "new": {"permissions": ["can read on Condition"]},
    }
    kinds: list[dict[str, Any]] = [
        {
            "user_id": user,
            "patient_id": patient,
            "entities": [{"type": "Observation", "ids": [1, 2]}, *saw("ClinicalNote")],
        },
        {
            "user_id": user,
            "patient_id": patient,
            "action": "E",
            "subtype": "search",
            "query": "patients by name",
            "purpose": "BTG",
        },
        {"type": "110114", "subtype": "110122", "action": "E", "user_id": user},
        {"type": "110114", "subtype": "110122", "action": "E", "outcome": 4, "reason": "NotSignedIn", "agent_name": ""},
        {
            "outcome": 4,
            "reason": "Forbidden",
            "entities": [{"type": "ClinicalNote"}],
            "address": None,
            "user_agent": None,
        },
        {"action": "U", "subtype": "update", "entities": [role], "reason": "Asked for by the ward"},
        {
            "action": "R",
            "subtype": "export",
            "entities": [{"type": "AuditEvent", "lines": 3, "as": "csv"}],
            "query": "the trail by time",
        },
        {"action": "E", "subtype": "view-as", "entities": [{"type": "Role", "of": "Nurse"}], "reason": "began"},
        {
            "subtype": "search",
            "action": "E",
            "entities": [{"type": "AuditEvent", "ids": ["019e0000-0000-7000-8000-000000000001"]}],
        },
        {"roles": [], "session_id": None, "request_id": None, "channel": "job", "agent_name": "import"},
    ]
    for number, values in enumerate(kinds):
        line("Dora Doctor", now() - timedelta(seconds=90 + number), **{**here, **values})
    answer = client_as("privacy").get("/trail/export.ndjson?branch=8181")
    assert answer.headers["Content-Type"] == "application/fhir+ndjson; charset=utf-8"
    found = resources(answer.data)
    assert len(found) == len(kinds)
    read, search, sign_in, failed, refused, changed, export, _, listed, job = found
    assert (read["type"]["code"], read["subtype"][0]["code"], read["action"], read["outcome"]) == (
        "rest",
        "read",
        "R",
        "0",
    )
    assert read["recorded"].endswith("+00:00")
    assert read["purposeOfEvent"][0]["coding"][0]["code"] == "TREAT"
    assert search["purposeOfEvent"][0]["coding"][0]["code"] == "BTG"
    person, browser = read["agent"]
    assert person["requestor"] is True
    assert person["who"] == {
        "identifier": {"system": "http://localhost/accounts", "value": str(user)},
        "display": "Dora Doctor",
    }
    assert person["network"] == {"address": "203.0.113.9", "type": "2"}
    assert person["role"][0]["coding"][0]["code"] == "Doctor"
    assert browser["requestor"] is False
    assert read["source"]["observer"]["display"] == "Wardbook"
    of_patient, *data, asked = read["entity"]
    whose = sql("SELECT fhir_id, mrn FROM patient WHERE id = :p", p=patient)[0]
    assert of_patient["what"]["reference"] == f"Patient/{whose['fhir_id']}"
    assert of_patient["what"]["identifier"]["value"] == whose["mrn"]
    assert (of_patient["type"]["code"], of_patient["role"]["code"]) == ("1", "1")
    assert [(each["type"]["code"], each["role"]["code"]) for each in data] == [("2", "4")] * 3
    assert [each["what"]["identifier"]["value"] for each in data] == ["1", "2", "7"]
    assert asked["type"]["code"] == "XrequestId"
    assert asked["what"]["identifier"]["value"].startswith("request-")
    query = next(each for each in search["entity"] if "query" in each)
    assert base64.b64decode(query["query"]) == b"patients by name"
    assert query["role"]["code"] == "24"
    assert (sign_in["type"]["code"], sign_in["subtype"][0]["code"]) == ("110114", "110122")
    assert (failed["outcome"], failed["outcomeDesc"]) == ("4", "NotSignedIn")
    assert "who" not in failed["agent"][0]
    assert len(refused["agent"]) == 1
    assert "network" not in refused["agent"][0]
    details = {each["type"]: each.get("valueString") for each in changed["entity"][0]["detail"]}
    assert details == {"fields": "permissions", "new permissions": "can read on Condition"}
    assert changed["entity"][0]["name"] == "Nurse"
    assert export["type"]["code"] == "110106"
    assert listed["entity"][0]["what"]["reference"] == "AuditEvent/019e0000-0000-7000-8000-000000000001"
    assert "entity" not in job
    assert "Quartermain" not in answer.text, "a number says enough"


def test_a_file_is_a_line_of_its_own_before_it_leaves_and_its_reading_besides(
    client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    patient = hospital.patients[6]
    made = {line("Exported", now() - timedelta(seconds=90 + n), branch_id=9191, patient_id=patient) for n in range(4)}
    client = client_as("privacy")
    for kind in ("csv", "ndjson"):
        trail_lines.forget()
        body = client.get(f"/trail/export.{kind}?branch=9191&patient={mrn_of(patient)}").data
        assert body.count(b"Exported") == 4
        (own,) = [each for each in trail_lines.events() if each["subtype"] == "export"]
        assert own["entities"] == [{"type": "AuditEvent", "lines": 4, "as": kind}]
        assert (own["action"], own["outcome"], own["query"]) == ("R", 0, "the trail by time, patient, branch")
        assert set(shown(trail_lines)) == made
        assert any(each["patient_id"] == patient for each in trail_lines.events()), "whose name is in the file was seen"
        assert trail_lines.entries()[0]["agent"]["user_id"] == hospital.accounts["privacy"]
    drainer.drain()
    assert "Downloaded 4 lines of the trail as NDJSON" in words(client.page("/trail/"))


def test_a_file_holds_what_was_there_when_it_was_asked_for_each_line_once(
    client_as: ClientAs, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FILE_PAGE", 7)
    made = {
        line(
            "Piece by piece",
            now() - timedelta(hours=6 * (number // 2), minutes=2),
            branch_id=6161,
            patient_id=hospital.patients[number % 3],
        )
        for number in range(45)
    }
    answer = client_as("privacy").get("/trail/export.ndjson?branch=6161")
    pieces = answer.iter_encoded()
    got = [next(pieces)]
    assert got[0].count(b"\n") == 7, "a piece at a time"
    newest = sql("SELECT coalesce(max(seq), 0) AS seq FROM audit_batch")[0]["seq"]
    for ago in (1, 60):
        line("Too late", now() - timedelta(hours=ago), branch_id=6161, batch_seq=newest + 1)
    got += pieces
    assert len(got) == 7
    found = resources(b"".join(got))
    assert {each["id"] for each in found} == made
    assert len(found) == len(made)
    assert [each["recorded"] for each in found] == sorted((each["recorded"] for each in found), reverse=True)


def test_too_many_lines_for_one_file_are_refused_in_a_sentence(
    client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        line("Many", branch_id=5151)
    monkeypatch.setattr(audit, "LONGEST_FILE", 3)
    client = client_as("privacy")
    trail_lines.forget()
    for kind in ("csv", "ndjson"):
        answer = client.get(f"/trail/export.{kind}?branch=5151")
        assert answer.status_code == 422
        assert str(TooManyLines()) in words(answer.text)
        assert "Many" not in words(answer.text).replace("too many", "")
    assert not [each for each in trail_lines.events() if each["subtype"] == "export"]
    monkeypatch.setattr(audit, "LONGEST_FILE", 4)
    assert client.get("/trail/export.csv?branch=5151").data.count(b"Many") == 4


def test_what_cannot_be_recorded_does_not_leave_not_even_in_the_middle(
    client_as: ClientAs,
    hospital: Hospital,
    servers: Servers,
    spool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "FILE_PAGE", 2)
    for number in range(6):
        line(f"Unrecorded {number}", now() - timedelta(minutes=number + 1), branch_id=3131)
    client = client_as("privacy")
    answer = client.get("/trail/export.csv?branch=3131")
    pieces = answer.iter_encoded()
    assert b"Unrecorded 1" in next(pieces)
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    trail.connect(f"redis://127.0.0.1:{free_port()}/0", blocked / "spool")
    try:
        with pytest.raises(NotRecorded):
            next(pieces)
        refused = client.get("/trail/export.csv?branch=3131")
        assert refused.status_code == 503
        assert "Unrecorded" not in refused.text
    finally:
        trail.connect(servers.trail_redis_url, spool)


def test_an_empty_file_has_its_heads(client_as: ClientAs) -> None:
    client = client_as("privacy")
    body = client.get("/trail/export.csv?branch=999999").data
    assert spreadsheet(body) == []
    assert b"Who" in body
    assert client.get("/trail/export.ndjson?branch=999999").data == b""


def test_nothing_clinical_and_nothing_that_was_typed_is_in_any_of_it(
    client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    doctor = client_as("doctor")
    for tab in ("overview", "documents", "reports", "visits", "allergies"):
        doctor.page(f"/patients/{hospital.patients[1]}/?tab={tab}")
    doctor.page("/patients/?q=xerxes+vandersloot")
    client = client_as("privacy")
    drainer.drain()
    typed = "/trail/?patient=vandersloot+xerxes&person=zzyzx"
    trail_lines.forget()
    for address in (typed, typed.replace("/?", "/export.csv?"), typed.replace("/?", "/export.ndjson?")):
        client.get(address)
    said = msgspec.json.encode(trail_lines.entries()).decode().lower()
    assert "the trail by time, patient, person" in said
    assert not [word for word in ("vandersloot", "xerxes", "zzyzx") if word in said]
    patient, user = hospital.patients[1], hospital.accounts["doctor"]
    for address in (
        f"/trail/?of={patient}",
        f"/trail/patients/{patient}/",
        f"/trail/people/{user}/",
        f"/trail/export.csv?of={patient}",
        f"/trail/export.ndjson?of={patient}",
    ):
        page = client.page(address)
        assert "Dora Doctor" in page, address
        for word in (
            factories.NOTE,
            factories.DOCUMENT,
            factories.REPORT,
            factories.CONCLUSION,
            factories.REASON,
            "Penicillin",
            "Diabetes",
            factories.PHONE,
        ):
            assert word not in page, f"{address} shows {word}"


def test_the_links_to_files_ask_the_same_question(client_as: ClientAs, planted: Hospital) -> None:
    page = client_as("privacy").page(f"/trail/?purpose=BTG&of={planted.patients[4]}&before=x")
    link = re.search(r'href="(/trail/export\.csv\?[^"]+)"', page)
    assert link is not None
    assert parse_qs(urlsplit(link[1].replace("&amp;", "&")).query) == {
        "purpose": ["BTG"],
        "of": [str(planted.patients[4])],
    }


def test_a_service_is_named_as_the_policy_names_it() -> None:
    assert all(name == name.lower() for name in policy.SERVICES), "a name typed in any case is found"
