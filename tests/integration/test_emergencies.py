"""Emergency access: who is offered it, what it opens and what not, how it ends, and who looks at it afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from app import guard, policy
from app.actor import Origin, current, nobody
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.policy import Grant, may
from app.services import clinical, emergencies, patients, roles
from jobs import emergencies as escalation
from jobs import trail as drainer
from models.access import EmergencyAccess
from models.base import now
from models.clinical import Observation
from models.codes import RowScope
from models.patients import Patient
from tests import factories
from tests.conftest import Browser, TrailLines, csrf_of, filled
from tests.factories import Hospital
from views.emergencies import not_found

Acting = Callable[[str], AbstractContextManager[Any]]
ClientAs = Callable[[str], Browser]
pytestmark = pytest.mark.usefixtures("closed_again")

WHY = "Found unconscious at the entrance"
OF_PATIENTS = tuple(name for name in policy.RESOURCES if RowScope.CARE_TEAM in policy.scopes_of(name))
CHART = tuple(name for name in OF_PATIENTS if name != "EmergencyAccess")


def sql(*statements: str, **values: Any) -> list[Any]:
    """Something done or asked past the application, as an administrator of the database would."""
    with guard.engine().begin() as connection:
        for statement in statements:
            found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


def past_the_trigger(statement: str, **values: Any) -> None:
    """A change of emergency accesses that the database refuses otherwise: tests make time pass by it."""
    sql(
        "ALTER TABLE emergency_access DISABLE TRIGGER emergency_access_is_final",
        *(statement.split(";")),
        "ALTER TABLE emergency_access ENABLE TRIGGER emergency_access_is_final",
        **values,
    )


def shifted(access_id: int, earlier: timedelta) -> None:
    """As if it had begun that much earlier."""
    past_the_trigger(
        "UPDATE emergency_access SET started_at = started_at - :by, ends_at = ends_at - :by WHERE id = :id",
        by=earlier,
        id=access_id,
    )


def rewrite(name: str, grants: dict[str, Grant]) -> None:
    """Have a role grant this and no more, as the shipped administrator would."""
    key = sql("SELECT id FROM ab_role WHERE name = :name", name=name)[0]["id"]
    admin = sql("SELECT id FROM ab_user WHERE username = 'admin'")[0]["id"]
    with factories.acting(admin), guard.unit_of_work() as session:
        before = roles.sheet_of(session, key)
        if dict(before.grants) != grants:
            after = replace(before, grants=grants)
            roles.change_role(session, after, seen=before.digest, reason="for a test")


def narrow(name: str, rows: RowScope, **more: Grant | None) -> None:
    """Have a shipped role reach the records of some patients only; `more` says some resources otherwise."""
    shipped = policy.MATRIX[name]
    grants = {
        resource: replace(grant, rows=rows) if resource in CHART else grant for resource, grant in shipped.items()
    }
    rewrite(name, {resource: grant for resource, grant in {**grants, **more}.items() if grant is not None})


@pytest.fixture
def closed_again(database: Any) -> Iterator[None]:
    """Nurses see their own branch only; afterwards roles are as shipped, and nobody has broken any glass."""
    narrow("Nurse", RowScope.OWN_BRANCH)
    yield
    for name, grants in policy.MATRIX.items():
        if name != "Admin":
            rewrite(name, grants)
    past_the_trigger("DELETE FROM emergency_access")


def broken(username: str, patient_id: int, hospital: Hospital, reason: str = "ETREAT") -> int:
    """Somebody breaks the glass; gives the number of the access."""
    with factories.acting(hospital.accounts[username]), guard.unit_of_work() as session:
        return emergencies.break_glass(session, patient_id=patient_id, reason=reason, justification=WHY).id


def asked(client: Browser, path: str, **said: str) -> Any:
    """Ask for emergency access through the form that a refused page shows."""
    page = client.get(path)
    assert page.status_code == 403
    form = filled(page.text)
    number = path.split("/")[2]
    return client.post(
        f"/patients/{number}/emergency/", data={**form, "reason": "ETREAT", "justification": WHY, **said}
    )


def accesses() -> int:
    return factories.number_of(EmergencyAccess)


IDENTIFYING = ("Vandersloot", "Xerxes", "PASS0001", "1982", "Secret Street", "+34", "W10")


# ---- the path ------------------------------------------------------------------------------------------------------


def test_from_the_refusal_to_the_record_and_out_again(
    client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    nurse, number = client_as("nurse"), hospital.patients[1]
    path = f"/patients/{number}/"
    trail_lines.forget()
    page = nurse.get(f"{path}?tab=visits")
    assert page.status_code == 403
    assert "This patient is not among yours" in page.text
    for word in IDENTIFYING:
        assert word not in page.text
    refusals = [line for line in trail_lines.events() if line["outcome"] == 4]
    assert [(line["patient_id"], line["reason"]) for line in refusals] == [(number, "OutsideRows")]
    assert not [line for line in trail_lines.events() if line["patient_id"] == number and line["outcome"] == 0]

    answer = asked(nurse, f"{path}?tab=visits")
    assert answer.status_code == 302
    assert answer.headers["Location"] == f"{path}?tab=visits"
    stored = sql("SELECT * FROM emergency_access")[0]
    assert (stored["user_id"], stored["patient_id"]) == (hospital.accounts["nurse"], number)
    assert stored["ends_at"] - stored["started_at"] == timedelta(minutes=60)
    assert (stored["reason"], stored["justification"]) == ("ETREAT", WHY)

    for opened in (f"{path}?tab=visits", f"{path}?tab=allergies", path, f"{path}edit/"):
        shown = nurse.page(opened)
        assert "Vandersloot" in shown
        assert "Emergency access until " in shown
    assert nurse.get(f"/patients/{hospital.patients[3]}/").status_code == 403
    assert "Emergency access until" not in nurse.page(f"/patients/{hospital.patients[0]}/")
    assert "Emergency access until" not in nurse.page("/")

    ended = nurse.post(f"{path}emergency/end", data={"csrf_token": csrf_of(nurse.page(path))})
    assert ended.status_code == 302
    assert "Emergency access has ended" in nurse.page("/")
    assert nurse.get(path).status_code == 403
    assert sql("SELECT ends_at <= now() AS over FROM emergency_access")[0]["over"]
    again = nurse.post(f"{path}emergency/end", data={"csrf_token": csrf_of(nurse.get(path).text)})
    assert again.status_code == 302
    assert "had ended already" in nurse.page("/")


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("x" * 14, False),
        ("x" * 15, True),
        (" " * 30, False),
        ("   " + "x" * 14 + "   ", False),
        ("a" + " " * 20 + "b", False),
        ("\u200b" * 20, False),
        ("x" * 1001, False),
        ("", False),
        ("bleeding, alone", True),
        ("Überdosis 药物过量了", True),
    ],
)
def test_fifteen_letters_are_a_reason(client_as: ClientAs, hospital: Hospital, said: str, taken: bool) -> None:
    nurse, path = client_as("nurse"), f"/patients/{hospital.patients[1]}/"
    answer = asked(nurse, path, justification=said, reason="COC")
    assert answer.status_code == (302 if taken else 422)
    assert accesses() == int(taken)
    assert nurse.get(path).status_code == (200 if taken else 403)
    if not taken:
        assert 'id="justification-error"' in answer.text
        assert 'value="COC" required checked' in answer.text
        for word in IDENTIFYING:
            assert word not in answer.text


@pytest.mark.parametrize("reason", ["", "TREAT", "HMARKT", "etreat"])
def test_the_reason_is_one_of_four(client_as: ClientAs, hospital: Hospital, reason: str) -> None:
    answer = asked(client_as("nurse"), f"/patients/{hospital.patients[1]}/", reason=reason)
    assert answer.status_code == 422
    assert WHY in answer.text
    assert accesses() == 0
    with pytest.raises(Invalid), factories.acting(hospital.accounts["nurse"]), guard.unit_of_work() as session:
        emergencies.break_glass(session, patient_id=hospital.patients[1], reason=reason, justification=WHY)
    assert accesses() == 0


@pytest.mark.parametrize("onwards", ["//evil.example/", "https://evil.example/", "/patients/1/../../trail/", "/trail/"])
def test_one_lands_at_a_page_of_that_patient_only(client_as: ClientAs, hospital: Hospital, onwards: str) -> None:
    path = f"/patients/{hospital.patients[3]}/"
    answer = asked(client_as("nurse"), path, next=onwards)
    assert (answer.status_code, answer.headers["Location"]) == (302, path)


def test_the_form_without_its_token_opens_nothing(client_as: ClientAs, hospital: Hospital) -> None:
    nurse, path = client_as("nurse"), f"/patients/{hospital.patients[1]}/"
    answer = nurse.post(f"{path}emergency/", data={"reason": "ETREAT", "justification": WHY})
    assert answer.status_code == 400
    assert accesses() == 0


def test_one_who_is_open_already_needs_none(client_as: ClientAs, hospital: Hospital) -> None:
    nurse, path = client_as("nurse"), f"/patients/{hospital.patients[0]}/"
    assert nurse.get(f"{path}emergency/").headers["Location"] == path
    form = filled(nurse.get(f"/patients/{hospital.patients[1]}/").text)
    answer = nurse.post(f"{path}emergency/", data={**form, "reason": "ETREAT", "justification": WHY})
    assert answer.status_code == 409
    assert "open to you already" in answer.text
    assert accesses() == 0


# ---- who is offered it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("username", ["reception", "lab", "pharmacist", "billing", "patient"])
def test_without_the_right_a_patient_out_of_reach_is_nobody(
    username: str, client_as: ClientAs, hospital: Hospital
) -> None:
    if username != "patient":
        narrow(factories.PEOPLE[username][0], RowScope.CARE_TEAM)
    client, number, nobodys = client_as(username), hospital.patients[3], 10**9
    for page in ("", "?tab=visits", "photo", "emergency/"):
        outside, missing = client.get(f"/patients/{number}/{page}"), client.get(f"/patients/{nobodys}/{page}")
        assert outside.status_code == missing.status_code == 404
        assert "mergency access" not in outside.text
    token = csrf_of(client.page("/me/"))
    for key in (number, nobodys):
        sent = {"csrf_token": token, "reason": "ETREAT", "justification": WHY}
        assert client.post(f"/patients/{key}/emergency/", data=sent).status_code == 404
        assert client.post(f"/patients/{key}/emergency/end", data=sent).status_code == 403
    assert accesses() == 0


def test_a_number_nobody_has_is_not_found(client_as: ClientAs, trail_lines: TrailLines) -> None:
    nurse = client_as("nurse")
    trail_lines.forget()
    for page in ("", "edit/", "photo", "emergency/"):
        assert nurse.get(f"/patients/{10**9}/{page}").status_code == 404
    assert [line for line in trail_lines.events() if line["outcome"]] == []


@pytest.mark.parametrize("username", ["reception", "admin", "privacy"])
def test_nobody_else_breaks_the_glass_through_the_service(username: str, acting: Acting, hospital: Hospital) -> None:
    with acting(username), pytest.raises(Forbidden), guard.unit_of_work() as session:
        emergencies.break_glass(session, patient_id=hospital.patients[1], reason="BTG", justification=WHY)
    assert accesses() == 0


def test_who_looks_as_a_role_is_offered_nothing(hospital: Hospital) -> None:
    with guard.acting_as(nobody()):
        as_nurse = guard.who_is(hospital.accounts["admin"], Origin(channel="web"), viewing_as="Nurse")
    assert as_nurse is not None
    with guard.acting_as(as_nurse):
        assert not emergencies.may_break()
        with pytest.raises(Forbidden), guard.unit_of_work() as session:
            emergencies.break_glass(session, patient_id=hospital.patients[1], reason="BTG", justification=WHY)
    assert accesses() == 0


def test_programs_are_refused_and_offered_nothing(api_as: Callable[[str], FlaskClient], hospital: Hospital) -> None:
    nurse, number = api_as("nurse"), hospital.patients[1]
    answer = nurse.get(f"/api/v1/patient/{number}")
    assert (answer.status_code, answer.get_json()["error"]) == (404, "NotFound")
    broken("nurse", number, hospital)
    assert nurse.get(f"/api/v1/patient/{number}").get_json()["result"]["family"] == "Vandersloot"
    with factories.acting(hospital.accounts["nurse"]):
        assert emergencies.end(number)
    assert nurse.get(f"/api/v1/patient/{number}").status_code == 404


@pytest.mark.parametrize(
    ("path", "status"), [("/api/v1/anything", 404), ("/patients/x.json", 404), ("/patients/x", 403)]
)
def test_only_a_page_makes_the_offer(path: str, status: int, app: Any, acting: Acting, hospital: Hospital) -> None:
    with app.test_request_context(path) as context, acting("nurse"):
        context.request.view_args = {"patient_id": hospital.patients[1]}
        assert app.make_response(not_found(NotFound())).status_code == status


def test_rest_knows_no_emergency_access(app: Any, api_as: Callable[[str], FlaskClient], hospital: Hospital) -> None:
    broken("nurse", hospital.patients[1], hospital)
    assert [rule.rule for rule in app.url_map.iter_rules() if "emergenc" in rule.rule and "/api/" in rule.rule] == []
    for username in ("nurse", "privacy", "admin"):
        client = api_as(username)
        for method in ("get", "post", "put", "delete"):
            for path in ("emergency_access/", "emergencyaccess/", "emergency_access/1"):
                assert getattr(client, method)(f"/api/v1/{path}", json={}).status_code == 404
        assert WHY not in client.get("/api/v1/patient/").text
    assert accesses() == 1


# ---- the patient finder --------------------------------------------------------------------------------------------


def test_an_exact_number_leads_to_the_offer_and_says_nothing_else(
    client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    nurse, number = client_as("nurse"), hospital.patients[1]
    mrn = sql("SELECT mrn FROM patient WHERE id = :id", id=number)[0]["mrn"]
    for typed in (mrn, mrn.lower(), f" {mrn} ", "PASS0001", "pass0001"):
        trail_lines.forget()
        page = nurse.page("/patients/", query_string={"q": typed})
        assert "This number belongs to a patient outside your patients" in page
        assert f"/patients/{number}/emergency/" in page
        for word in ("Vandersloot", "Xerxes", "1982", "Secret Street"):
            assert word not in page
        found = nurse.get("/patients/find.json", query_string={"q": typed}).get_json()
        assert found["results"] == []
        assert found["outside"] == [f"/patients/{number}/emergency/"]
        refusals = [line for line in trail_lines.events() if line["outcome"] == 4]
        assert {line["patient_id"] for line in refusals} == {number}
    offer = nurse.page(f"/patients/{number}/emergency/")
    for word in IDENTIFYING:
        assert word not in offer


@pytest.mark.parametrize("typed", ["Vandersloot", "PASS000", "PASS00011", "30 Nov 1982", "911234568", "W1000", "", "1"])
def test_anything_but_an_exact_number_finds_nobody(typed: str, client_as: ClientAs, trail_lines: TrailLines) -> None:
    nurse = client_as("nurse")
    trail_lines.forget()
    found = nurse.get("/patients/find.json", query_string={"q": typed}).get_json()
    assert found["outside"] == []
    assert "Vandersloot, Xerxes" not in [one["name"] for one in found["results"]]
    assert [line for line in trail_lines.events() if line["outcome"]] == []


def test_a_number_is_no_lead_for_those_it_is_kept_from(client_as: ClientAs, hospital: Hospital) -> None:
    """Neither without the right, nor by numbers one is not shown, nor for those one sees anyway."""
    narrow("Receptionist", RowScope.CARE_TEAM)
    rewritten = {"PatientIdentifier": may("read", rows=RowScope.OWN_BRANCH, masked=["value"])}
    nurse, mrn = client_as("nurse"), sql("SELECT mrn FROM patient WHERE id = :i", i=hospital.patients[1])[0]["mrn"]
    for username, typed in (("reception", mrn), ("lab", mrn), ("doctor", mrn), ("patient", mrn)):
        found = client_as(username).get("/patients/find.json", query_string={"q": typed}).get_json()
        assert found["outside"] == []
    narrow("Nurse", RowScope.OWN_BRANCH, **rewritten)
    assert nurse.get("/patients/find.json", query_string={"q": "PASS0001"}).get_json()["outside"] == []
    assert nurse.get("/patients/find.json", query_string={"q": mrn}).get_json()["outside"] != []


# ---- what it opens -------------------------------------------------------------------------------------------------


def test_looks_and_changes_carry_the_purpose_and_only_of_that_patient(
    acting: Acting, hospital: Hospital, trail_lines: TrailLines
) -> None:
    opened, own = hospital.patients[1], hospital.patients[0]
    broken("nurse", opened, hospital)
    drainer.drain()
    trail_lines.forget()
    with acting("nurse") as nurse:
        assert nurse.emergencies == (opened,)
        session = guard.session()
        assert {row.patient_id for row in session.scalars(select(Observation))} == {opened, own}
    purposes = {entry["patient_id"]: entry.get("purpose") for entry in trail_lines.events()}
    assert purposes == {opened: "BTG", own: None}
    assert {entry["agent"]["purpose"] for entry in trail_lines.entries()} == {"TREAT"}

    with acting("nurse"), guard.unit_of_work() as session:
        for key in (opened, own):
            session.get_one(Patient, key).name_in_use = "Somebody"
    drainer.drain()
    changed = sql(
        "SELECT patient_id, purpose FROM audit_event WHERE action = 'U' AND user_id = :u",
        u=hospital.accounts["nurse"],
    )
    assert {(line["patient_id"], line["purpose"]) for line in changed} == {(opened, "BTG"), (own, "TREAT")}


def test_another_patient_stays_closed_in_the_same_breath(acting: Acting, hospital: Hospital) -> None:
    broken("nurse", hospital.patients[3], hospital)
    with acting("nurse"):
        session = guard.session()
        seen = {patient.id for patient in session.scalars(select(Patient))}
        assert seen == {*hospital.patients[0::2], hospital.patients[3]}
        with pytest.raises(NotFound):
            clinical.open_chart(session, hospital.patients[1])


def test_kinds_actions_and_masks_are_not_lifted(client_as: ClientAs, hospital: Hospital) -> None:
    shipped = policy.MATRIX["Nurse"]
    masked = replace(shipped["Encounter"], rows=RowScope.OWN_BRANCH, masked=frozenset({"reason"}))
    narrow("Nurse", RowScope.OWN_BRANCH, Encounter=masked)
    nurse, path = client_as("nurse"), f"/patients/{hospital.patients[1]}/"
    broken("nurse", hospital.patients[1], hospital)
    measured = nurse.page(f"{path}?tab=observations")
    assert "Heart rate" in measured
    assert "Haemoglobin" not in measured
    visits = nurse.page(f"{path}?tab=visits")
    assert "Check-up" in visits
    assert factories.REASON not in visits
    for tab in ("conditions", "documents", "reports", "procedures"):
        answer = nurse.get(f"{path}?tab={tab}")
        assert answer.status_code == 403
        assert "mergency access to" not in answer.text
    with factories.acting(hospital.accounts["nurse"]):
        laboratory = guard.session().get(Observation, hospital.rows["laboratory"])
        assert laboratory is None


def test_where_only_parts_are_closed_the_chart_says_so(client_as: ClientAs, hospital: Hospital) -> None:
    """Otherwise an empty list of allergies would say that nobody has asked."""
    shipped = policy.MATRIX["Nurse"]
    closed = {name: replace(shipped[name], rows=RowScope.OWN_BRANCH) for name in ("AllergyIntolerance", "Encounter")}
    rewrite("Nurse", {**shipped, **closed})
    nurse, path = client_as("nurse"), f"/patients/{hospital.patients[1]}/"
    page = nurse.page(path)
    assert "Vandersloot" in page
    assert "Not all of this record is open to you" in page
    assert "Closed: Allergies, Visits." in page
    assert "Nobody has asked about allergies" not in page
    assert "tab=medications" in page
    assert "tab=allergies" not in page
    assert asked(nurse, f"{path}?tab=allergies").status_code == 302
    page = nurse.page(f"{path}?tab=allergies")
    assert "Penicillin" in page
    assert "Not all of this record" not in page
    assert "Not all of this record" not in nurse.page(f"/patients/{hospital.patients[0]}/")


def test_parts_are_closed_to_those_without_the_right_too_but_nothing_is_offered(
    client_as: ClientAs, hospital: Hospital
) -> None:
    rewrite("Pharmacist", {**policy.MATRIX["Pharmacist"], "AllergyIntolerance": may("read", rows=RowScope.CARE_TEAM)})
    pharmacist, path = client_as("pharmacist"), f"/patients/{hospital.patients[1]}/"
    page = pharmacist.page(path)
    assert "Closed: Allergies." in page
    assert "emergency access" not in page
    assert pharmacist.get(f"{path}?tab=allergies").status_code == 404


def test_nothing_is_closed_where_a_second_role_opens_it(acting: Acting, hospital: Hospital) -> None:
    """Roles add up: laboratory results are open by the one role, vital signs closed by the other."""
    with acting("nurse") as nurse:
        number = hospital.patients[1]
        rights = policy.combine({"Nurse": {"Patient": may("read"), "Observation": may("read", kinds=["laboratory"])}})
        reach = {
            ("read", "Observation"): (
                policy.Reach(frozenset({RowScope.OWN_BRANCH}), frozenset({"vital-signs"})),
                policy.Reach(frozenset(), frozenset({"laboratory"})),
            )
        }
        with guard.acting_as(replace(nurse, rights=replace(rights, reach=reach))):
            assert emergencies.closed(number) == {"Observation"}
        wider = {("read", "Observation"): (*reach["read", "Observation"], policy.Reach(frozenset({RowScope.SELF})))}
        with guard.acting_as(replace(nurse, patient_id=number, rights=replace(rights, reach=wider))):
            assert emergencies.closed(number) == frozenset()
        own = {("read", "Patient"): (policy.Reach(frozenset({RowScope.OWN_BRANCH, RowScope.SELF})),)}
        with guard.acting_as(replace(nurse, rights=replace(rights, reach=own))):
            assert emergencies.closed(number) == frozenset(), "emergency access would not open it"


# ---- while it lasts ------------------------------------------------------------------------------------------------


def test_of_two_at_once_one_is_given(client_as: ClientAs, hospital: Hospital) -> None:
    path = f"/patients/{hospital.patients[1]}/"
    windows = [client_as("nurse") for _ in range(2)]
    forms = [{**filled(one.get(path).text), "reason": "ETREAT", "justification": WHY} for one in windows]
    answers: list[int] = []
    start = threading.Barrier(2)

    def press(number: int) -> None:
        start.wait()
        answers.append(windows[number].post(f"{path}emergency/", data=forms[number]).status_code)

    threads = [threading.Thread(target=press, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [302, 409]
    assert accesses() == 1


def test_two_held_up_at_the_same_row_do_not_both_pass(hospital: Hospital) -> None:
    """The second waits for the first, and then sees it."""
    outcomes: list[str] = []

    def press() -> None:
        try:
            broken("nurse", hospital.patients[1], hospital)
        except Conflict:
            outcomes.append("refused")
        else:
            outcomes.append("given")

    with guard.engine().begin() as connection:
        connection.execute(text("SELECT id FROM ab_user WHERE id = :id FOR UPDATE"), {"id": hospital.accounts["nurse"]})
        threads = [threading.Thread(target=press) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            waiting = sql("SELECT count(*) AS n FROM pg_locks WHERE NOT granted")[0]["n"]
            if waiting >= 3 or outcomes:
                break
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["given", "refused", "refused"]
    assert accesses() == 1


def test_two_patients_at_once_are_two_accesses(acting: Acting, hospital: Hospital) -> None:
    broken("nurse", hospital.patients[1], hospital)
    broken("nurse", hospital.patients[3], hospital)
    with acting("nurse") as nurse:
        assert set(nurse.emergencies) == {hospital.patients[1], hospital.patients[3]}
        assert emergencies.end(hospital.patients[1])
    with acting("nurse") as nurse:
        assert nurse.emergencies == (hospital.patients[3],)


def test_a_second_one_while_it_lasts_is_refused_and_changes_nothing(client_as: ClientAs, hospital: Hospital) -> None:
    access = broken("nurse", hospital.patients[1], hospital)
    before = factories.stored(EmergencyAccess, access)
    nurse, path = client_as("nurse"), f"/patients/{hospital.patients[1]}/"
    form = filled(nurse.get(f"/patients/{hospital.patients[3]}/").text)
    answer = nurse.post(f"{path}emergency/", data={**form, "reason": "BTG", "justification": WHY})
    assert answer.status_code == 409
    assert "You have emergency access to this patient already" in answer.text
    assert factories.stored(EmergencyAccess, access) == before
    assert accesses() == 1


def test_when_the_hour_is_over_the_next_click_is_refused(
    client_as: ClientAs, api_as: Callable[[str], FlaskClient], hospital: Hospital, trail_lines: TrailLines
) -> None:
    number, path = hospital.patients[1], f"/patients/{hospital.patients[1]}/"
    access = broken("nurse", number, hospital)
    nurse, program = client_as("nurse"), api_as("nurse")
    form = filled(nurse.page(f"{path}edit/"))
    before = factories.stored(Patient, number)
    shifted(access, timedelta(minutes=59, seconds=30))
    assert nurse.get(path).status_code == 200
    shifted(access, timedelta(seconds=31))

    assert nurse.get(path).status_code == 403
    trail_lines.forget()
    typed = nurse.post(f"{path}edit/", data={**form, "name_in_use": "Typed-by-hand"})
    assert [line["patient_id"] for line in trail_lines.events() if line["outcome"] == 4] == [number]
    assert typed.status_code == 404
    assert "Typed-by-hand" in typed.text
    assert "Nothing was saved; what you typed is still here" in typed.text
    assert f"{path}emergency/" in typed.text
    assert program.get(f"/api/v1/patient/{number}").status_code == 404
    sent = program.put(f"/api/v1/patient/{number}", json={"name_in_use": "Sent", "version": before["version"]})
    assert sent.status_code == 404
    assert factories.stored(Patient, number) == before

    assert asked(nurse, path).status_code == 302
    again = nurse.post(f"{path}edit/", data={**filled(typed.text), "name_in_use": "Typed-by-hand"})
    assert again.status_code == 302
    assert factories.stored(Patient, number)["name_in_use"] == "Typed-by-hand"
    assert accesses() == 2


def test_a_refused_form_is_kept_for_those_who_are_offered_nothing_too(client_as: ClientAs, hospital: Hospital) -> None:
    desk, number = client_as("reception"), hospital.patients[1]
    form = filled(desk.page(f"/patients/{number}/edit/"))
    narrow("Receptionist", RowScope.CARE_TEAM)
    kept = desk.post(f"/patients/{number}/edit/", data={**form, "name_in_use": "Typed-by-hand"})
    assert kept.status_code == 404
    assert "Typed-by-hand" in kept.text
    assert "mergency access" not in kept.text


def test_a_role_narrowed_meanwhile_counts_at_once(client_as: ClientAs, hospital: Hospital) -> None:
    nurse, path = client_as("nurse"), f"/patients/{hospital.patients[1]}/"
    broken("nurse", hospital.patients[1], hospital)
    assert "Penicillin" in nurse.page(f"{path}?tab=allergies")
    narrow("Nurse", RowScope.CARE_TEAM, AllergyIntolerance=None)
    assert "Vandersloot" in nurse.page(path), "whose patient it is does not matter while it lasts"
    assert nurse.get(f"{path}?tab=allergies").status_code == 403
    assert nurse.get(f"/patients/{hospital.patients[0]}/").status_code == 403


def test_the_right_to_it_taken_away_ends_it(client_as: ClientAs, acting: Acting, hospital: Hospital) -> None:
    nurse, path = client_as("nurse"), f"/patients/{hospital.patients[1]}/"
    broken("nurse", hospital.patients[1], hospital)
    assert nurse.get(path).status_code == 200
    narrow("Nurse", RowScope.OWN_BRANCH, EmergencyAccess=None)
    answer = nurse.get(path)
    assert answer.status_code == 404
    assert "mergency access" not in answer.text
    with acting("nurse") as who:
        assert who.emergencies == ()
    narrow("Nurse", RowScope.OWN_BRANCH, EmergencyAccess=may("read", rows=RowScope.OWN))
    assert nurse.get(path).status_code == 404


def test_a_closed_account_has_none(client_as: ClientAs, hospital: Hospital) -> None:
    nurse, path = client_as("nurse"), f"/patients/{hospital.patients[1]}/"
    broken("nurse", hospital.patients[1], hospital)
    sql("UPDATE ab_user SET active = false WHERE username = 'nurse'")
    try:
        answer = nurse.get(path)
        assert answer.status_code == 302
        assert "/login/" in answer.headers["Location"]
    finally:
        sql("UPDATE ab_user SET active = true WHERE username = 'nurse'")


def test_nobody_ends_another_ones(client_as: ClientAs, acting: Acting, hospital: Hospital) -> None:
    broken("nurse", hospital.patients[1], hospital)
    before = sql("SELECT ends_at FROM emergency_access")
    with acting("doctor"):
        assert not emergencies.end(hospital.patients[1])
    assert sql("SELECT ends_at FROM emergency_access") == before
    assert client_as("nurse").get(f"/patients/{hospital.patients[1]}/").status_code == 200


# ---- who is told ---------------------------------------------------------------------------------------------------


def test_the_chart_says_who_opened_it(client_as: ClientAs, hospital: Hospital) -> None:
    broken("nurse", hospital.patients[1], hospital)
    path = f"/patients/{hospital.patients[1]}/"
    for username in ("nurse", "admin"):
        page = client_as(username).page(path)
        assert "Opened by emergency access" in page
        assert "Nora Nurse" in page
        assert "Awaiting review" in page
        assert WHY not in page
    assert "Opened by emergency access" not in client_as("doctor").page(path), "doctors know of their own only"
    assert "Opened by emergency access" not in client_as("pharmacist").page(path)
    assert "Opened by emergency access" not in client_as("admin").page(f"/patients/{hospital.patients[0]}/")


def test_the_list_shows_each_what_their_role_shows_them(client_as: ClientAs, hospital: Hospital) -> None:
    broken("nurse", hospital.patients[1], hospital)
    officer = client_as("privacy").page("/emergencies/")
    for word in (
        "Vandersloot",
        "Nora Nurse",
        "Nurse, Hospital Norte",
        WHY,
        "Treatment cannot wait",
        "Was it justified",
    ):
        assert word in officer
    admin = client_as("admin").page("/emergencies/")
    assert "Nora Nurse" in admin
    assert WHY not in admin
    assert "Was it justified" not in admin
    assert WHY in client_as("nurse").page("/emergencies/")
    assert "Nora Nurse" not in client_as("doctor").page("/emergencies/")
    for username in ("reception", "lab", "pharmacist", "billing", "patient"):
        assert client_as(username).get("/emergencies/").status_code == 403
    assert 'href="/emergencies/"' in client_as("privacy").page("/")
    assert 'href="/emergencies/"' not in client_as("nurse").page("/")


def test_it_lands_with_the_privacy_officer_at_once(client_as: ClientAs, hospital: Hospital) -> None:
    officer, admin = client_as("privacy"), client_as("admin")
    assert "wait for review" not in officer.page("/")
    assert "Nothing waits for a review" in officer.page("/emergencies/")
    broken("nurse", hospital.patients[1], hospital)
    assert "Emergency accesses wait for review" in officer.page("/")
    for client in (admin, client_as("nurse"), client_as("doctor")):
        assert "wait for review" not in client.page("/")


def test_the_review_says_what_was_opened_and_changed(client_as: ClientAs, acting: Acting, hospital: Hospital) -> None:
    opened, own = hospital.patients[1], hospital.patients[0]
    with acting("nurse"):
        guard.session().get(Patient, own)
    broken("nurse", opened, hospital)
    nurse = client_as("nurse")
    nurse.page(f"/patients/{opened}/?tab=visits")
    nurse.page(f"/patients/{own}/?tab=medications")
    with acting("nurse"), guard.unit_of_work() as session:
        session.get_one(Patient, opened).name_in_use = "Somebody else"
    with acting("nurse"):
        emergencies.end(opened)
    rewrite("Nurse", policy.MATRIX["Nurse"])
    nurse.page(f"/patients/{opened}/?tab=medications")  # one of theirs by now: no emergency, though hardly later
    drainer.drain()
    page = client_as("privacy").page("/emergencies/")
    assert "registration, numbers, visits, allergies" in page
    assert "medications" not in page
    assert "<dt>Changed</dt><dd>registration</dd>" in page
    assert factories.REASON not in page


def test_the_oldest_come_first_and_the_overdue_are_marked(client_as: ClientAs, hospital: Hospital) -> None:
    first = broken("nurse", hospital.patients[1], hospital)
    second = broken("nurse", hospital.patients[3], hospital)
    shifted(second, timedelta(hours=72, minutes=1))
    shifted(first, timedelta(hours=71))
    page = client_as("privacy").page("/emergencies/")
    assert page.index(f'id="access-{second}"') < page.index(f'id="access-{first}"')
    assert page.count("Overdue: waits for 3 days") == 1


# ---- reviewing -----------------------------------------------------------------------------------------------------


def over(hospital: Hospital, number: int = 1) -> int:
    """An emergency access whose hour is over."""
    access = broken("nurse", hospital.patients[number], hospital)
    shifted(access, timedelta(hours=2))
    return access


def test_a_review_is_saved_with_its_line_in_the_trail(client_as: ClientAs, hospital: Hospital) -> None:
    access, officer = over(hospital), client_as("privacy")
    form = {"csrf_token": csrf_of(officer.page("/emergencies/")), "finding": "justified", "note": ""}
    drainer.drain()
    assert officer.post(f"/emergencies/{access}/review", data=form).status_code == 302
    stored = factories.stored(EmergencyAccess, access)
    assert (stored["finding"], stored["reviewed_by_id"]) == ("justified", hospital.accounts["privacy"])
    drainer.drain()
    line = sql(
        "SELECT patient_id, entities FROM audit_event WHERE action = 'U' AND user_id = :u ORDER BY recorded DESC",
        u=hospital.accounts["privacy"],
    )[0]
    assert line["patient_id"] == hospital.patients[1]
    assert line["entities"][0]["type"] == "EmergencyAccess"
    assert "finding" in line["entities"][0]["fields"]
    page = officer.page("/emergencies/")
    assert "Nothing waits for a review" in page
    assert "Priya Privacy" in page
    assert "wait for review" not in officer.page("/")
    shown = client_as("nurse").page("/emergencies/")
    assert "Priya Privacy" in shown


@pytest.mark.parametrize(
    ("said", "status", "field"),
    [
        ({"finding": "", "note": "x" * 20}, 422, "finding"),
        ({"finding": "perhaps", "note": "x" * 20}, 422, "finding"),
        ({"finding": "unjustified", "note": "x" * 14}, 422, "note"),
        ({"finding": "unjustified", "note": "   " * 9}, 422, "note"),
        ({"finding": "justified", "note": "x" * 1001}, 422, "note"),
    ],
)
def test_a_review_that_does_not_hold_is_refused_and_kept(
    said: dict[str, str], status: int, field: str, client_as: ClientAs, hospital: Hospital
) -> None:
    access, officer = over(hospital), client_as("privacy")
    before = factories.stored(EmergencyAccess, access)
    token = csrf_of(officer.page("/emergencies/"))
    answer = officer.post(f"/emergencies/{access}/review", data={"csrf_token": token, **said})
    assert answer.status_code == status
    assert f'id="{field}-{access}-error"' in answer.text
    if said["note"].strip():
        assert said["note"] in answer.text
    assert factories.stored(EmergencyAccess, access) == before


def test_not_justified_with_fifteen_letters_is_a_finding(acting: Acting, hospital: Hospital) -> None:
    access = over(hospital)
    with acting("privacy"), guard.unit_of_work() as session:
        emergencies.review(session, access, finding="unjustified", note=" " + "x" * 15 + " ")
    stored = factories.stored(EmergencyAccess, access)
    assert (stored["finding"], stored["review_note"]) == ("unjustified", "x" * 15)


def test_one_that_still_runs_can_only_be_found_not_justified_which_ends_it(
    client_as: ClientAs, acting: Acting, hospital: Hospital
) -> None:
    access = broken("nurse", hospital.patients[1], hospital)
    with acting("privacy"), pytest.raises(Conflict), guard.unit_of_work() as session:
        emergencies.review(session, access, finding="justified", note="")
    assert factories.stored(EmergencyAccess, access)["reviewed_at"] is None
    nurse = client_as("nurse")
    assert nurse.get(f"/patients/{hospital.patients[1]}/").status_code == 200
    with acting("privacy"), guard.unit_of_work() as session:
        emergencies.review(session, access, finding="unjustified", note="Nobody knows this patient")
    assert nurse.get(f"/patients/{hospital.patients[1]}/").status_code == 403


@pytest.mark.parametrize("username", ["admin", "doctor", "nurse", "reception", "patient"])
def test_nobody_reviews_without_the_right(
    username: str, client_as: ClientAs, acting: Acting, hospital: Hospital
) -> None:
    access = over(hospital)
    before = factories.stored(EmergencyAccess, access)
    client = client_as(username)
    token = csrf_of(client.page("/me/"))
    sent = {"csrf_token": token, "finding": "justified"}
    assert client.post(f"/emergencies/{access}/review", data=sent).status_code == 403
    with acting(username), pytest.raises(Forbidden), guard.unit_of_work() as session:
        emergencies.review(session, access, finding="justified", note="")
    assert factories.stored(EmergencyAccess, access) == before


def test_nobody_reviews_their_own(hospital: Hospital, client_as: ClientAs, trail_lines: TrailLines) -> None:
    """A privacy officer who is a nurse as well; and the database says the same."""
    access = over(hospital)
    before = factories.stored(EmergencyAccess, access)
    role = sql("SELECT id FROM ab_role WHERE name = 'PrivacyOfficer'")[0]["id"]
    nurse = hospital.accounts["nurse"]
    sql("INSERT INTO ab_user_role (user_id, role_id) VALUES (:u, :r)", u=nurse, r=role)
    try:
        client = client_as("nurse")
        page = client.page("/emergencies/")
        assert "This was you" in page
        assert "Was it justified" not in page
        sent = {"csrf_token": csrf_of(client.page("/me/")), "finding": "justified"}
        trail_lines.forget()
        answer = client.post(f"/emergencies/{access}/review", data=sent)
        assert answer.status_code == 403
        refusals = [line["subtype"] for line in trail_lines.events() if line["outcome"] == 4]
        assert refusals == ["update"]
        assert "Nobody reviews their own" in answer.text
        with factories.acting(nurse), pytest.raises(Forbidden), guard.unit_of_work() as session:
            emergencies.review(session, access, finding="justified", note="")
    finally:
        sql("DELETE FROM ab_user_role WHERE user_id = :u AND role_id = :r", u=nurse, r=role)
    with pytest.raises(IntegrityError):
        sql(
            "UPDATE emergency_access SET reviewed_at = now(), reviewed_by_id = user_id, finding = 'justified'"
            " WHERE id = :id",
            id=access,
        )
    assert factories.stored(EmergencyAccess, access) == before


def test_a_review_is_not_done_twice(acting: Acting, client_as: ClientAs, hospital: Hospital) -> None:
    access, officer = over(hospital), client_as("privacy")
    token = csrf_of(officer.page("/emergencies/"))
    with acting("privacy"), guard.unit_of_work() as session:
        emergencies.review(session, access, finding="justified", note="Seen")
    before = factories.stored(EmergencyAccess, access)
    sent = {"csrf_token": token, "finding": "unjustified", "note": "On second thoughts it was not"}
    answer = officer.post(f"/emergencies/{access}/review", data=sent)
    assert answer.status_code == 409
    assert "Somebody else has reviewed this in the meantime" in answer.text
    assert factories.stored(EmergencyAccess, access) == before
    assert officer.post("/emergencies/999999/review", data=sent).status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        "patient_id = patient_id - 1",
        "user_id = user_id + 1",
        "reason = 'COC'",
        "justification = 'Something else altogether'",
        "started_at = started_at - interval '1 minute'",
        "ends_at = ends_at + interval '1 second'",
        "finding = 'unjustified'",
        "review_note = 'Something else altogether'",
    ],
)
def test_what_was_said_is_never_rewritten(change: str, acting: Acting, hospital: Hospital) -> None:
    access = over(hospital)
    if change.startswith(("finding", "review_note")):
        with acting("privacy"), guard.unit_of_work() as session:
            emergencies.review(session, access, finding="justified", note="")
    before = factories.stored(EmergencyAccess, access)
    with pytest.raises(DBAPIError, match="never rewritten"):
        sql(f"UPDATE emergency_access SET {change} WHERE id = {access}")
    with pytest.raises(DBAPIError, match="never rewritten"):
        sql(f"DELETE FROM emergency_access WHERE id = {access}")
    assert factories.stored(EmergencyAccess, access) == before


def test_the_reviewed_ones_are_found_by_finding_and_period(
    client_as: ClientAs, acting: Acting, hospital: Hospital
) -> None:
    good, bad = over(hospital, 1), over(hospital, 3)
    shifted(good, timedelta(days=10))
    with acting("privacy"), guard.unit_of_work() as session:
        emergencies.review(session, good, finding="justified", note="")
        emergencies.review(session, bad, finding="unjustified", note="No reason was given")
    officer = client_as("privacy")
    week = f"{now() - timedelta(days=7):%Y-%m-%d}"
    for query, found in (
        ({}, {"Vandersloot", "Müller"}),
        ({"finding": "justified"}, {"Vandersloot"}),
        ({"finding": "unjustified"}, {"Müller"}),
        ({"from": week}, {"Müller"}),
        ({"to": week}, {"Vandersloot"}),
        ({"from": "2001-01-01", "to": "2001-02-01"}, set()),
        ({"finding": "nonsense", "from": "31/31", "page": "-1"}, {"Vandersloot", "Müller"}),
    ):
        page = officer.page("/emergencies/", query_string=query)
        assert {name for name in ("Vandersloot", "Müller") if name in page} == found, query
        assert ("No review fits" in page) == (not found)


# ---- what happens by itself ----------------------------------------------------------------------------------------


def test_after_seventy_two_hours_administrators_hear_of_it(
    client_as: ClientAs, acting: Acting, hospital: Hospital
) -> None:
    access, admin, officer = broken("nurse", hospital.patients[1], hospital), client_as("admin"), client_as("privacy")
    shifted(access, timedelta(hours=71, minutes=59))
    escalation.escalate()
    assert factories.stored(EmergencyAccess, access)["escalated_at"] is None
    assert "wait for review" not in admin.page("/")
    shifted(access, timedelta(minutes=2))
    escalation.escalate()
    escalated = factories.stored(EmergencyAccess, access)
    assert escalated["escalated_at"] is not None
    escalation.escalate()
    assert factories.stored(EmergencyAccess, access) == escalated
    start = admin.page("/")
    assert "Emergency accesses wait for review" in start
    assert "for more than 72 hours" in start
    assert "1 of them for more than 72 hours" in officer.page("/")
    assert "wait for review" not in client_as("nurse").page("/"), "it was hers, and is not hers to review"
    assert WHY not in admin.page("/emergencies/")
    with acting("privacy"), guard.unit_of_work() as session:
        emergencies.review(session, access, finding="justified", note="")
    assert "wait for review" not in admin.page("/")
    assert "wait for review" not in officer.page("/")


def test_two_clocks_at_once_mark_it_once(hospital: Hospital) -> None:
    access = broken("nurse", hospital.patients[1], hospital)
    shifted(access, timedelta(hours=80))
    with guard.engine().begin() as connection:
        connection.execute(text("SELECT id FROM emergency_access WHERE id = :id FOR UPDATE"), {"id": access})
        escalation.escalate()
        assert factories.stored(EmergencyAccess, access)["escalated_at"] is None, "it is left to whoever holds it"
    threads = [threading.Thread(target=escalation.escalate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert factories.stored(EmergencyAccess, access)["version"] == 2


def test_one_that_was_reviewed_in_time_is_not_escalated(acting: Acting, hospital: Hospital) -> None:
    access = over(hospital)
    with acting("privacy"), guard.unit_of_work() as session:
        emergencies.review(session, access, finding="justified", note="")
    shifted(access, timedelta(hours=90))
    escalation.escalate()
    assert factories.stored(EmergencyAccess, access)["escalated_at"] is None


# ---- patients ------------------------------------------------------------------------------------------------------


def test_patients_are_not_told_here_yet(client_as: ClientAs, acting: Acting, hospital: Hospital) -> None:
    narrow("Doctor", RowScope.CARE_TEAM)
    sql("UPDATE encounter SET practitioner_id = NULL WHERE patient_id = :p", p=hospital.patients[0])
    broken("doctor", hospital.patients[0], hospital)
    patient = client_as("patient")
    assert "mergency access" not in patient.page(f"/patients/{hospital.patients[0]}/")
    with acting("patient"), pytest.raises(Forbidden):
        guard.session().scalars(select(EmergencyAccess)).all()


def test_a_search_finds_whom_it_opened(client_as: ClientAs, acting: Acting, hospital: Hospital) -> None:
    broken("nurse", hospital.patients[1], hospital)
    with acting("nurse"):
        assert [p.id for p in patients.find(guard.session(), "Vandersloot").patients] == [hospital.patients[1]]
        assert current().purpose_with(hospital.patients[1]) == "BTG"
    found = client_as("nurse").get("/patients/find.json", query_string={"q": "PASS0001"}).get_json()
    assert [one["name"] for one in found["results"]] == ["Vandersloot, Xerxes"]
    assert found["outside"] == []
