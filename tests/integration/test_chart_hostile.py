"""The chart under attack: plain SQL, two at once, what a role is not shown, templates, and dangers that have to be said."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient
from sqlalchemy import make_url

from app import guard
from app.actor import service
from app.errors import Forbidden, Invalid, NotFound, Refusal, SchemaUnsupported, Unsafe
from app.policy import Role, may
from app.services import (
    accounts,
    dispensing,
    dosage,
    drug_safety,
    formulary,
    note_shape,
    note_templates,
    notes,
    organization,
    patients,
    prescriptions,
)
from app.services.dosage import Dosage
from app.services.drug_safety import Allergy, Dose, Issue, Medicine, Part, assess
from app.services.prescriptions import Line, Override
from jobs.demo import FORMULARY
from models.base import now
from models.clinical import AllergyIntolerance, Encounter
from models.codes import RowScope
from models.migrations import grant
from models.notes import ClinicalNote, NoteTemplate
from models.organization import Branch, Practitioner
from models.prescriptions import DetectedIssue, Medication, MedicationDispense, MedicationRequest, Prescription
from tests import factories
from tests.conftest import Browser, Database, TrailLines, csrf_of
from tests.factories import Hospital, number_of, stored

Acting = Callable[[str], Any]
ApiAs = Callable[[str], FlaskClient]
ClientAs = Callable[[str], Browser]
SOAP = {"subjective": "Coughs since Monday", "assessment": "Bronchitis", "plan": "Rest"}
AMOXICILLIN, PARACETAMOL = "Amoxicillin 500 mg capsule", "Paracetamol 500 mg tablet"
WARFARIN, IBUPROFEN = "Warfarin Sodium 5 MG Oral Tablet", "Ibuprofen 400 mg tablet"
API = "/api/v1/medication_request/"


@pytest.fixture(scope="module")
def people(database: Database) -> Hospital:
    """The hospital with a second doctor, one of the other branch, and one in training."""
    hospital: Hospital = database.hospital
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for username, branch in (("second", 0), ("elsewhere", 1), ("trainee", 0)):
            account = accounts.open_account(
                session,
                username=username,
                password=factories.PASSWORD,
                first_name="Sam",
                last_name=username.capitalize(),
                email=f"{username}@example.org",
                roles=[Role.DOCTOR],
            )
            home = session.get_one(Branch, hospital.branches[branch])
            person = organization.employ(
                session, family=username.capitalize(), given="Sam", home_branch=home, user_id=account.id
            )
            hospital.accounts[username], hospital.staff[username] = account.id, person.id
        session.get_one(Practitioner, hospital.staff["trainee"]).supervised_by_id = hospital.staff["doctor"]
    return hospital


@pytest.fixture(scope="module")
def medicines(people: Hospital) -> dict[str, int]:
    """The demo's formulary, by name."""
    with guard.acting_as(service("formulary")), guard.unit_of_work() as session:
        formulary.take_in(session, FORMULARY.read_bytes())
        return {each.display: each.id for each in formulary.find(session, "", limit=500)}


@pytest.fixture(scope="module")
def doors(database: Database, people: Hospital) -> Iterator[dict[str, str]]:
    """The database as its owner, and as the account the application has in production."""
    owner = make_url(database.url).set(drivername="postgresql")
    role = f"wb_hostile_{owner.database}"
    account = owner.set(username=role, password="hostile")
    with psycopg.connect(owner.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hostile'".encode())
        grant(database.url, account.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))
        yield {
            "owner": owner.render_as_string(hide_password=False),
            "application": account.render_as_string(hide_password=False),
        }
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


_born = itertools.count(1)


@pytest.fixture
def patient(people: Hospital) -> int:
    """Somebody new, asked about allergies: there are none."""
    return new_patient(people)


def new_patient(people: Hospital, **more: Any) -> int:
    number = next(_born)
    told = factories.told(f"Hostile{number}", f"Patient{number}", birth_date=date(1970, 1, 1) + timedelta(days=number))
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        found = patients.register(session, told, region="ES", insist=True)
        for name, value in {"no_known_allergies": True, **more}.items():
            setattr(found, name, value)
        session.flush()
        return int(found.id)


def do(service_function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    with guard.unit_of_work() as session:
        made = service_function(session, *arguments, **more)
    if isinstance(made, ClinicalNote):
        guard.session().expunge(made)
    return made


def drafted(patient_id: int, content: dict[str, Any] | None = None, **more: Any) -> ClinicalNote:
    note = do(notes.begin, patient_id=patient_id, template="soap")
    kept: ClinicalNote = do(notes.save_draft, note.id, version=note.version, content=content or SOAP, **more)
    return kept


def signed(patient_id: int, content: dict[str, Any] | None = None, **more: Any) -> ClinicalNote:
    draft = drafted(patient_id, content, **more)
    note: ClinicalNote = do(notes.sign, draft.id, version=draft.version)
    return note


def line(medicines: dict[str, int], name: str, **change: Any) -> Line:
    unit = "{cap}" if "capsule" in name else "{tbl}"
    return replace(Line(medicines[name], Dosage(Decimal(1), unit, "BID", days=7)), **change)


def prescribed(patient_id: int, *lines: Line, overrides: Sequence[Override] = ()) -> Prescription:
    paper: Prescription = do(prescriptions.prescribe, patient_id=patient_id, lines=lines, overrides=overrides)
    return paper


def orders_of(paper: Prescription) -> list[int]:
    with guard.acting_as(service("demo")):
        found = guard.session().query(MedicationRequest).filter_by(prescription_id=paper.id)
        return [order.id for order in found.order_by(MedicationRequest.id)]


def written() -> list[int]:
    return [number_of(model) for model in (Prescription, MedicationRequest, DetectedIssue)]


# ---- plain SQL -----------------------------------------------------------------------------------------------------


@contextmanager
def as_account(address: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(address) as connection:
        connection.cursor_factory = psycopg.ClientCursor
        yield connection


REFUSED = (psycopg.errors.CheckViolation, psycopg.errors.InsufficientPrivilege, psycopg.errors.ForeignKeyViolation)
MERGING = "SET wardbook.merging = 'yes';"
ON_NOTES = {
    "a false list of tables": (
        "CREATE TEMP TABLE pg_tables AS SELECT 'public'::name AS schemaname, t AS tablename, current_user AS tableowner"
        " FROM unnest(ARRAY['clinical_note', 'patient']) AS t;"
        + MERGING
        + "UPDATE public.clinical_note SET patient_id = %(other)s WHERE id = %(signed)s"
    ),
    "a false note that was signed": (
        "CREATE TEMP TABLE clinical_note AS SELECT * FROM public.clinical_note;"
        "UPDATE pg_temp.clinical_note SET status = 'final';"
        "INSERT INTO public.clinical_note (fhir_id, version, created_at, updated_at, patient_id, status, title, author_id,"
        " content, written_at, addendum_to_id) SELECT gen_random_uuid(), 1, now(), now(), patient_id, 'preliminary', 'x',"
        " author_id, '{}', now(), id FROM public.clinical_note WHERE id = %(draft)s"
    ),
    "written over": (
        'INSERT INTO clinical_note SELECT (jsonb_populate_record(n, \'{"title": "Other"}\')).* FROM clinical_note n'
        " WHERE id = %(signed)s ON CONFLICT (id) DO UPDATE SET title = excluded.title"
    ),
    "another number": "UPDATE clinical_note SET id = id + 100000 WHERE id = %(signed)s",
    "templates change places": "UPDATE note_template SET id = id - 1",
    "a template's name": "UPDATE note_template SET name = 'Other' WHERE key = 'soap'",
}


OWNERS = {"a false list of tables", "nothing was dispensed, said by a trigger"}
"""What an owner needs no trick for: they move rows as merging does, and hang triggers on their tables."""


def tried(attempts: dict[str, str]) -> list[tuple[str, str]]:
    """Who tries what."""
    return [
        (attempt, account)
        for attempt in attempts
        for account in ("owner", "application")
        if account == "application" or attempt not in OWNERS
    ]


@pytest.mark.parametrize(("attempt", "account"), tried(ON_NOTES))
def test_sql_does_not_get_round_the_lock_of_notes(
    people: Hospital, acting: Acting, doors: dict[str, str], patient: int, attempt: str, account: str
) -> None:
    with acting("doctor"):
        note, draft = signed(patient), drafted(patient)
    before = stored(ClinicalNote, note.id), stored(ClinicalNote, draft.id), number_of(ClinicalNote)
    template = stored(NoteTemplate, note.template_id)
    values = {"signed": note.id, "draft": draft.id, "other": people.patients[0]}
    with as_account(doors[account]) as connection:
        with pytest.raises(REFUSED):
            connection.execute(ON_NOTES[attempt].encode(), values)
        connection.rollback()
    assert (stored(ClinicalNote, note.id), stored(ClinicalNote, draft.id), number_of(ClinicalNote)) == before
    assert stored(NoteTemplate, note.template_id) == template


COPY = (
    "INSERT INTO medication_request SELECT (jsonb_populate_record(r, jsonb_build_object('id', r.id + 100000, 'fhir_id',"
    " gen_random_uuid(), 'dispensed', 0))).* FROM medication_request r WHERE id = %(order)s"
)
ON_PAPERS = {
    "a false list of tables": (
        "CREATE TEMP TABLE pg_tables AS SELECT 'public'::name AS schemaname, t AS tablename, current_user AS tableowner"
        " FROM unnest(ARRAY['clinical_note', 'patient']) AS t;" + MERGING + "SET CONSTRAINTS ALL DEFERRED;"
        "UPDATE public.prescription SET patient_id = %(other)s WHERE id = %(paper)s"
    ),
    "nothing was dispensed": "UPDATE medication_request SET dispensed = 0 WHERE id = %(order)s",
    "all was dispensed": "UPDATE medication_request SET dispensed = 2 * quantity WHERE id = %(order)s",
    "nothing was dispensed, said by a trigger": (
        "CREATE TEMP TABLE t (x int);"
        "CREATE FUNCTION pg_temp.undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE public.medication_request SET dispensed = 0; RETURN NULL; END $$;"
        "CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION pg_temp.undo();"
        "INSERT INTO t VALUES (1)"
    ),
    "another quantity": "UPDATE medication_request SET quantity = 1000 WHERE id = %(order)s",
    "another day": "UPDATE medication_request SET authored_at = authored_at - interval '1 year' WHERE id = %(order)s",
    "another reason": "UPDATE medication_request SET reason = 'Other' WHERE id = %(order)s",
    "another number": "UPDATE medication_request SET id = id + 100000 WHERE id = %(free)s",
    "one more on the paper": COPY,
    "one from elsewhere onto the paper": (
        "UPDATE medication_request SET prescription_id = (SELECT prescription_id FROM medication_request"
        " WHERE id = %(order)s) WHERE id = %(loose)s"
    ),
    "another visit": (
        "UPDATE prescription SET encounter_id = (SELECT id FROM encounter WHERE patient_id = %(patient)s LIMIT 1)"
        " WHERE id = %(paper)s"
    ),
    "another patient": (
        "SET CONSTRAINTS ALL DEFERRED; UPDATE prescription SET patient_id = %(other)s WHERE id = %(paper)s;"
        "UPDATE medication_request SET patient_id = %(other)s WHERE prescription_id = %(paper)s"
    ),
    "the paper is gone": "DELETE FROM prescription WHERE id = %(paper)s",
    "an order is gone": "DELETE FROM medication_request WHERE id = %(free)s",
    "cancelled, and goes on": (
        "UPDATE medication_request SET status = 'cancelled' WHERE id = %(free)s;"
        "UPDATE medication_request SET status = 'active' WHERE id = %(free)s"
    ),
    "somebody else handed it out": "UPDATE medication_dispense SET performer_id = %(doctor)s WHERE id = %(fill)s",
    "handed out at another time": "UPDATE medication_dispense SET handed_over_at = prepared_at + interval '1 day'"
    " WHERE id = %(fill)s",
    "handed out elsewhere": "UPDATE medication_dispense SET branch_id = NULL WHERE id = %(fill)s",
    "less was handed out": "UPDATE medication_dispense SET quantity = 1 WHERE id = %(fill)s",
    "it was not completed": "UPDATE medication_dispense SET status = 'preparation' WHERE id = %(fill)s",
    "two at once": (
        "INSERT INTO medication_dispense (fhir_id, version, created_at, updated_at, patient_id, status,"
        " medication_request_id, medication_id, quantity, quantity_unit, already, prepared_at, handed_over_at)"
        " SELECT gen_random_uuid(), 1, now(), now(), patient_id, 'completed', id, medication_id, 1, quantity_unit, 0,"
        " now(), now() FROM medication_request, generate_series(1, 2) WHERE id = %(free)s"
    ),
    "another warning": "UPDATE detected_issue SET detail = 'Nothing' WHERE id = %(issue)s",
    "a warning of another branch": "UPDATE detected_issue SET branch_id = NULL WHERE id = %(issue)s",
    "a warning of a dispense": "UPDATE detected_issue SET medication_dispense_id = %(fill)s WHERE id = %(issue)s",
    "no warning": "DELETE FROM detected_issue WHERE id = %(issue)s",
    "a key of our own": "UPDATE signing_key SET public_key = sha256('mine')",
    "a key's name": "UPDATE signing_key SET kid = 'ZZZZZZZZ'",
    "a revoked key holds again": (
        "UPDATE signing_key SET revoked_at = now(), revoked_reason = 'Stolen';"
        "UPDATE signing_key SET revoked_at = NULL, revoked_reason = ''"
    ),
}


@pytest.fixture(scope="module")
def attacked(people: Hospital, medicines: dict[str, int]) -> dict[str, int]:
    """A paper of two orders, one of them partly handed out and written against a warning; and an order of elsewhere."""
    whose = new_patient(people, no_known_allergies=None)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.add(
            AllergyIntolerance(
                patient_id=whose,
                clinical_status="active",
                verification_status="confirmed",
                type="allergy",
                criticality="high",
                code_display="Penicillin",
            )
        )
        loose = MedicationRequest(
            patient_id=whose, status="active", authored_at=now(), code_display="Loratadine 10 mg", dosage_instruction=[]
        )
        visit = Encounter(
            patient_id=whose,
            status="finished",
            class_code="AMB",
            started_at=now(),
            ended_at=now(),
            branch_id=people.branches[0],
        )
        session.add_all([loose, visit])
        session.flush()
        loose_id = loose.id
    with factories.acting(people.accounts["doctor"]):
        wanted = [line(medicines, AMOXICILLIN, repeats=1), line(medicines, PARACETAMOL)]
        (issue,) = [
            each
            for each in prescriptions.preview(guard.session(), patient_id=whose, lines=wanted)
            if isinstance(each, Issue) and each.blocks
        ]
        paper = prescribed(whose, *wanted, overrides=[Override(issue.key, "2", "Took it in May")])
    order, free = orders_of(paper)
    with factories.acting(people.accounts["doctor"]):
        kept = prescriptions.issues_of(guard.session(), prescriptions.show(guard.session(), paper.id))
    with factories.acting(people.accounts["pharmacist"]):
        key = next(each.key for each in dispensing.against(guard.session(), with_medicine(order)) if each.blocks)
        fill = do(
            dispensing.dispense,
            order,
            quantity=Decimal(14),
            already=Decimal(0),
            overrides=[Override(key, "2", "Asked the doctor")],
        )
    return {
        "patient": whose,
        "other": people.patients[0],
        "paper": paper.id,
        "order": order,
        "free": free,
        "loose": loose_id,
        "fill": fill.id,
        "issue": kept[0].id,
        "doctor": people.staff["doctor"],
    }


def with_medicine(order_id: int) -> MedicationRequest:
    order = guard.session().get_one(MedicationRequest, order_id)
    guard.session().refresh(order, ["medication"])
    return order


def as_it_is(attacked: dict[str, int]) -> list[Any]:
    rows = [stored(MedicationRequest, attacked[name]) for name in ("order", "free", "loose")]
    rows += [stored(Prescription, attacked["paper"]), stored(MedicationDispense, attacked["fill"])]
    return [*rows, stored(DetectedIssue, attacked["issue"]), *written(), number_of(MedicationDispense)]


@pytest.mark.parametrize(("attempt", "account"), tried(ON_PAPERS))
def test_sql_does_not_get_round_the_lock_of_papers(
    attacked: dict[str, int], doors: dict[str, str], attempt: str, account: str
) -> None:
    before = as_it_is(attacked)
    with as_account(doors[account]) as connection:
        with pytest.raises(REFUSED):
            connection.execute(ON_PAPERS[attempt].encode(), attacked)
            connection.commit()
        connection.rollback()
    assert as_it_is(attacked) == before


def test_a_dispense_that_is_not_written_counts_nothing(attacked: dict[str, int], doors: dict[str, str]) -> None:
    before = as_it_is(attacked)
    with as_account(doors["application"]) as connection:
        connection.execute(
            b"INSERT INTO medication_dispense (id, fhir_id, version, created_at, updated_at, patient_id, status,"
            b" medication_request_id, medication_id, quantity, quantity_unit, already, prepared_at, handed_over_at)"
            b" SELECT %(fill)s, gen_random_uuid(), 1, now(), now(), patient_id, 'completed', id, medication_id, 1,"
            b" quantity_unit, 0, now(), now() FROM medication_request WHERE id = %(free)s ON CONFLICT (id) DO NOTHING",
            attacked,
        )
    assert as_it_is(attacked) == before


def test_sql_gives_those_who_configure_roles_no_notes(people: Hospital, doors: dict[str, str]) -> None:
    def granted_to_admin() -> int:
        with as_account(doors["owner"]) as connection:
            found = connection.execute(
                "SELECT count(*) FROM ab_permission_view_role a JOIN ab_role r ON r.id = a.role_id"
                " JOIN ab_permission_view v ON v.id = a.permission_view_id JOIN ab_view_menu m ON m.id = v.view_menu_id"
                " WHERE r.name = 'Admin' AND m.name = 'ClinicalNote'"
            ).fetchone()
            return int(found[0]) if found else -1

    assert granted_to_admin() == 0
    with as_account(doors["application"]) as connection:
        connection.execute("CREATE TEMP TABLE role_power AS SELECT * FROM public.role_power WHERE false")
        connection.execute("CREATE TEMP TABLE account_power AS SELECT * FROM public.account_power WHERE administers")
        connection.execute("UPDATE pg_temp.account_power SET notes = false")
        connection.execute(
            "INSERT INTO public.ab_permission_view_role (id, permission_view_id, role_id)"
            " SELECT 999999, v.id, r.id FROM public.ab_permission_view v"
            " JOIN public.ab_permission p ON p.id = v.permission_id JOIN public.ab_view_menu m ON m.id = v.view_menu_id,"
            " public.ab_role r WHERE p.name = 'can_read' AND m.name = 'ClinicalNote' AND r.name = 'Admin'"
        )
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.commit()
    assert granted_to_admin() == 0


# ---- two at once ---------------------------------------------------------------------------------------------------


def at_once(*tries: Callable[[], Any]) -> list[Any]:
    """What each of some attempts that begin together comes to, a refusal as itself."""
    gate = threading.Barrier(len(tries))
    found: list[Any] = [None] * len(tries)

    def go(number: int) -> None:
        gate.wait()
        try:
            found[number] = tries[number]() or True
        except Refusal as refusal:
            found[number] = refusal

    threads = [threading.Thread(target=go, args=(number,)) for number in range(len(tries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def by(people: Hospital, username: str, what: Callable[..., Any], *arguments: Any, **more: Any) -> Callable[[], Any]:
    def go() -> Any:
        with factories.acting(people.accounts[username]):
            do(what, *arguments, **more)

    return go


def test_what_does_not_go_together_is_not_prescribed_at_once_either(
    people: Hospital, medicines: dict[str, int], patient: int
) -> None:
    before = written()
    found = at_once(
        *(
            by(people, username, prescriptions.prescribe, patient_id=patient, lines=[line(medicines, name)])
            for username, name in (("doctor", WARFARIN), ("second", IBUPROFEN), ("doctor", IBUPROFEN))
        )
    )
    assert [isinstance(each, Unsafe) for each in found].count(True) >= 1
    with guard.acting_as(service("demo")):
        taken = {row.code_display for row in guard.session().query(MedicationRequest).filter_by(patient_id=patient)}
    assert len(taken) == 1, "warfarin or ibuprofen, and not both"
    assert written() != before


def test_a_form_that_is_sent_twice_is_one_paper(people: Hospital, medicines: dict[str, int], patient: int) -> None:
    wanted = [line(medicines, PARACETAMOL), line(medicines, IBUPROFEN)]
    send = by(people, "doctor", prescriptions.prescribe, patient_id=patient, lines=wanted)
    assert at_once(send, send, send) == [True] * 3
    assert number_of(Prescription, Prescription.patient_id == patient) == 1
    assert number_of(MedicationRequest, MedicationRequest.patient_id == patient) == 2
    with factories.acting(people.accounts["doctor"]):
        prescribed(patient, line(medicines, PARACETAMOL, repeats=1))
    with factories.acting(people.accounts["second"]):
        prescribed(patient, *wanted)
    assert number_of(Prescription, Prescription.patient_id == patient) == 3, "what differs is another paper"


def test_a_note_is_signed_amended_and_withdrawn_once_whoever_comes_first(people: Hospital, patient: int) -> None:
    with factories.acting(people.accounts["doctor"]):
        draft, whole = drafted(patient), signed(patient)
    sign = by(people, "doctor", notes.sign, draft.id, version=draft.version)
    save = by(people, "doctor", notes.save_draft, draft.id, version=draft.version, content={**SOAP, "plan": "Surgery"})
    found = at_once(sign, save, sign)
    assert sum(each is True for each in found) == 1, found
    row = stored(ClinicalNote, draft.id)
    assert (row["signed_at"] is not None) == (row["content"] == SOAP), "what was signed is what was seen"
    amend = by(people, "doctor", notes.amend, whole.id)
    found = at_once(amend, amend, amend)
    assert sum(each is True for each in found) == 1, found
    assert number_of(ClinicalNote, ClinicalNote.replaces_id == whole.id) == 1


def test_a_note_that_is_withdrawn_while_it_is_cosigned_is_one_of_both(people: Hospital, patient: int) -> None:
    with factories.acting(people.accounts["trainee"]):
        note = signed(patient)
    found = at_once(
        by(people, "doctor", notes.cosign, note.id),
        by(people, "trainee", notes.withdraw, note.id, reason="Of somebody else"),
        by(people, "doctor", notes.cosign, note.id),
    )
    assert all(each is True or isinstance(each, Refusal) for each in found), found
    row = stored(ClinicalNote, note.id)
    assert row["cosigned_at"] is not None or row["status"] == "entered-in-error"
    assert row["digest"] == note.digest


# ---- what a role is not shown ---------------------------------------------------------------------------------------


@pytest.fixture
def allergic(people: Hospital) -> int:
    """Somebody with an allergy that nothing but a past reaction makes serious."""
    whose = new_patient(people, no_known_allergies=None)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.add(
            AllergyIntolerance(
                patient_id=whose,
                clinical_status="active",
                verification_status="confirmed",
                code_display="Penicillin",
                reaction=[{"manifestation": "Anaphylaxis", "severity": "severe"}],
            )
        )
    return whose


@pytest.mark.parametrize("how", ["no right", "another's patient", "no reaction"])
def test_what_is_not_shown_is_not_passed_over(
    people: Hospital,
    acting: Acting,
    granted: Callable[..., None],
    medicines: dict[str, int],
    allergic: int,
    how: str,
) -> None:
    grants = {
        "no right": None,
        "another's patient": may("read", rows=RowScope.CARE_TEAM),
        "no reaction": may("read", masked=["reaction"]),
    }
    granted("Doctor", AllergyIntolerance=grants[how])
    before = written()
    with acting("doctor"), pytest.raises(Unsafe) as refusal:
        prescribed(allergic, line(medicines, AMOXICILLIN))
    assert written() == before
    (issue,) = [each for each in refusal.value.issues if isinstance(each, Issue) and each.blocks]
    assert "NOT CHECKED" in issue.detail
    with acting("doctor"):
        paper = prescribed(allergic, line(medicines, AMOXICILLIN), overrides=[Override(issue.key, "2", "Asked them")])
    rows = [stored(DetectedIssue, number) for number in issues_on(orders_of(paper))]
    assert [(row["severity"], row["mitigation_note"]) for row in rows if row["mitigation"]] == [("high", "Asked them")]


def issues_on(orders: list[int]) -> list[int]:
    with guard.acting_as(service("demo")):
        found = guard.session().query(DetectedIssue).filter(DetectedIssue.medication_request_id.in_(orders))
        return [each.id for each in found]


def test_orders_that_are_not_shown_are_not_passed_over(
    people: Hospital, acting: Acting, granted: Callable[..., None], medicines: dict[str, int], patient: int
) -> None:
    granted("Pharmacist", MedicationRequest=None)
    with acting("pharmacist"):
        medicine = guard.session().get_one(Medication, medicines[IBUPROFEN])
        (issue,) = drug_safety.check(guard.session(), patient, [medicine])
    assert (issue.code, issue.severity, issue.checked) == ("DRG", "high", False)


def test_a_dose_that_is_not_shown_is_said_to_be_unchecked(
    people: Hospital, acting: Acting, granted: Callable[..., None], medicines: dict[str, int], patient: int
) -> None:
    granted("Pharmacist", MedicationRequest=may("read", masked=["dosage_instruction"]))
    with acting("doctor"):
        paper = prescribed(patient, line(medicines, PARACETAMOL))
    (order,) = orders_of(paper)
    with acting("pharmacist"):
        (issue,) = dispensing.against(guard.session(), with_medicine(order))
    assert (issue.code, issue.checked) == ("DOSEH", False)


def test_a_doctor_of_another_branch_prescribes_only_where_the_role_reaches(
    people: Hospital, acting: Acting, granted: Callable[..., None], medicines: dict[str, int], patient: int
) -> None:
    for scope in (RowScope.OWN_BRANCH, RowScope.CARE_TEAM):
        granted("Doctor", MedicationRequest=may("read create update", rows=scope))
        before = written()
        told: list[Override] = []
        with acting("elsewhere"), pytest.raises(Unsafe) as hidden:
            prescribed(patient, line(medicines, PARACETAMOL))
        told = [Override(each.key, "2", "Asked them") for each in hidden.value.issues if isinstance(each, Issue)]
        with acting("elsewhere"), pytest.raises(Forbidden):
            prescribed(patient, line(medicines, PARACETAMOL), overrides=told)
        assert written() == before, scope


@pytest.mark.parametrize("username", ["patient", "nurse", "reception", "billing"])
def test_papers_and_warnings_of_others_are_closed(
    people: Hospital, client_as: ClientAs, api_as: ApiAs, attacked: dict[str, int], username: str
) -> None:
    client, program = client_as(username), api_as(username)
    reads = username == "nurse"
    assert client.get(f"/prescriptions/{attacked['paper']}/").status_code == (
        200 if reads else 404 if username == "patient" else 403
    )
    assert client.get("/overrides/").status_code == client.get("/overrides/overrides.csv").status_code == 403
    assert program.get(f"/api/v1/detected_issue/{attacked['issue']}").status_code == 403
    before = as_it_is(attacked)
    for verb in ("stop", "hold", "cancel", "withdraw"):
        assert (
            program.post(f"/prescriptions/orders/{attacked['free']}/{verb}/", data={"reason": "Mine"}).status_code
            >= 400
        )
    assert as_it_is(attacked) == before


def test_a_reason_of_nothing_is_none(
    people: Hospital, acting: Acting, medicines: dict[str, int], attacked: dict[str, int]
) -> None:
    before = written()
    with acting("doctor"):
        wanted = [line(medicines, AMOXICILLIN)]
        found = prescriptions.preview(guard.session(), patient_id=attacked["patient"], lines=wanted)
        for reason in ("...", "\u200b\u200b\u200b\u200b", "- - -", "\u2800" * 5):
            with pytest.raises(Unsafe):
                prescribed(attacked["patient"], *wanted, overrides=[Override(each.key, "2", reason) for each in found])
    assert written() == before


def test_the_page_says_that_the_list_is_not_open(
    people: Hospital, client_as: ClientAs, granted: Callable[..., None], allergic: int
) -> None:
    granted("Doctor", AllergyIntolerance=None)
    page = client_as("doctor").page(f"/prescribing/{allergic}/")
    assert "not open to you" in page
    assert "Nobody has asked" not in page
    assert "Penicillin" not in page


# ---- dangers that have to be said -----------------------------------------------------------------------------------


def of(*names: str, **more: Any) -> Medicine:
    return Medicine(" / ".join(names), tuple(Part(name, Decimal(100), "mg") for name in names), "{tbl}", **more)


@pytest.mark.parametrize(
    ("text", "medicine"),
    [
        ("PCN", "flucloxacillin"),
        ("pcn - hives", "amoxicillin"),
        ("Augmentin", "amoxicillin"),
        ("co-amoxiclav", "clavulanic acid"),
        ("Amoxil", "ampicillin"),
        ("alérgico a la PENICILINA", "piperacillin"),
        ("Bactrim DS", "sulfamethoxazole"),
        ("Septrin", "trimethoprim"),
        ("Sulfas", "sulfadiazine"),
        ("Keflex", "cefalexin"),
        ("AAS", "ibuprofen"),
        ("Advil/Motrin", "naproxen"),
        ("пенициллин", "benzylpenicillin"),
        ("No known drug allergies except penicillin", "amoxicillin"),
        ("No known food allergies. Allergic to penicillin", "amoxicillin"),
        ("NKDA but penicillin rash as a child", "amoxicillin"),
    ],
)
def test_an_allergy_is_known_by_what_people_write(text: str, medicine: str) -> None:
    issues = assess([of(medicine)], allergies=[Allergy(text, criticality="high")], state="listed")
    assert [issue.code for issue in issues if issue.blocks] == ["DALG"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No known drug allergies", []),
        ("No known allergy (situation)", []),
        ("NKDA.", []),
        ("Sin alergias conocidas", []),
        ("No known food allergies", ["nobody has asked"]),
        ("No known drug allergies but Zyxolin", ["Zyxolin"]),
    ],
)
def test_only_who_says_there_is_none_says_there_is_none(text: str, said: list[str]) -> None:
    issues = assess([of("amoxicillin")], allergies=[Allergy(text)], state="listed")
    assert len(issues) == len(said)
    assert all("NOT CHECKED" in issue.detail and word in issue.detail for issue, word in zip(issues, said, strict=True))


def test_two_anticoagulants_are_too_many() -> None:
    issues = assess([of("enoxaparin")], taken=[of("apixaban", against="order 1")])
    assert [(issue.code, issue.severity) for issue in issues] == [("DRG", "high")]


def test_a_child_is_not_given_more_than_an_adult_and_is_not_passed_over() -> None:
    much = Medicine("P", (Part("paracetamol", Decimal(500), "mg"),), "{tbl}", Dose(Decimal(3), "{tbl}", Decimal(2)))
    issues = assess([much], adult=False)
    assert [(issue.checked, issue.severity) for issue in issues] == [(True, "high"), (False, "moderate")]
    unranged = of("amoxicillin", dose=Dose(Decimal(1), "{tbl}", Decimal(3)))
    assert [issue.checked for issue in assess([unranged], adult=False)] == [False]
    assert [issue.checked for issue in assess([much], adult=None)] == [True, False], "nor whose age nobody knows"


@pytest.mark.parametrize("unit", ["mL", "g", "[iU]"])
def test_a_dose_that_cannot_be_reckoned_is_said_to_be_unchecked(unit: str) -> None:
    both = of("paracetamol", "codeine", dose=Dose(Decimal(40), unit, Decimal(4)))
    (issue,) = assess([both])
    assert (issue.checked, "paracetamol" in issue.detail) == (False, True)


def test_what_was_handed_out_for_long_is_taken_for_long(
    people: Hospital, acting: Acting, medicines: dict[str, int], patient: int, doors: dict[str, str]
) -> None:
    long = line(medicines, WARFARIN, dosage=Dosage(Decimal(1), "{tbl}", "QD", days=90))
    with acting("doctor"):
        paper = prescribed(patient, long)
    (order,) = orders_of(paper)
    with acting("pharmacist"):
        do(dispensing.dispense, order, quantity=Decimal(90), already=Decimal(0))
    assert stored(MedicationRequest, order)["status"] == "completed"
    for days, taken in ((60, True), (100, False)):
        with as_account(doors["owner"]) as connection:
            connection.execute("ALTER TABLE medication_request DISABLE TRIGGER USER")
            connection.execute(
                b"UPDATE medication_request SET valid_from = current_date - %(days)s, valid_until = current_date - %(days)s"
                b" + 30, updated_at = now() - make_interval(days => %(days)s) WHERE id = %(id)s",
                {"days": days, "id": order},
            )
            connection.execute("ALTER TABLE medication_request ENABLE TRIGGER USER")
        with acting("doctor"):
            found = prescriptions.preview(guard.session(), patient_id=patient, lines=[line(medicines, IBUPROFEN)])
        assert [issue.code for issue in found if issue.blocks] == (["DRG"] if taken else []), days


def test_an_order_nobody_knows_the_state_of_counts(
    people: Hospital, acting: Acting, medicines: dict[str, int], patient: int
) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.add(
            MedicationRequest(
                patient_id=patient,
                status="unknown",
                authored_at=now(),
                code_display="Warfarin 5 MG",
                dosage_instruction=[],
            )
        )
    with acting("doctor"), pytest.raises(Unsafe):
        prescribed(patient, line(medicines, IBUPROFEN))


# ---- over REST -----------------------------------------------------------------------------------------------------


def test_numbers_that_are_none_are_refused(api_as: ApiAs, medicines: dict[str, int], patient: int) -> None:
    program, before = api_as("doctor"), written()
    good = {"medication_id": medicines[PARACETAMOL], "dose": {"value": 1, "unit": "{tbl}", "timing": "BID", "days": 7}}
    raw = json.dumps({"patient_id": patient, "lines": [good]})
    for old, new in (
        ('"value": 1,', '"value": NaN,'),
        ('"value": 1,', '"value": 1e400,'),
        ('"value": 1,', '"value": -1,'),
        ('"value": 1,', '"value": 0,'),
        ('"value": 1,', '"value": true,'),
        ('"value": 1,', '"value": "1,000",'),
        ('"value": 1,', '"value": "1e400",'),
        ('"value": 1,', '"value": [1],'),
        ('"days": 7', '"days": 1e300'),
        ('"days": 7', '"days": -7'),
        ('"days": 7', '"start": "2026-01-01", "stop": "9999-12-31"'),
        ('"days": 7', '"stop": "2020-01-01"'),
    ):
        assert old in raw
        for address in (API, f"{API}check"):
            answer = program.post(address, data=raw.replace(old, new), content_type="application/json")
            unseen = address != API and "2020" in new  # a look says what stands against it, not until when
            assert answer.status_code == (200 if unseen else 422), (new, address, answer.text)
    for name, value in (("repeats", 1e20), ("repeats", -1), ("quantity", "NaN"), ("quantity", 1e300)):
        told = {"patient_id": patient, "lines": [{**good, name: value}]}
        assert program.post(API, json=told).status_code == 422, name
    for whose in (10**30, 1e300, -1, 0):
        assert program.post(API, json={"patient_id": whose, "lines": [good]}).status_code in (404, 422), whose
    assert written() == before


def test_visits_of_others_and_of_other_branches_give_nothing_away(
    people: Hospital, api_as: ApiAs, medicines: dict[str, int], patient: int
) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visits = [
            Encounter(patient_id=whose, status="in-progress", class_code="AMB", started_at=now(), branch_id=branch)
            for whose, branch in ((patient, people.branches[0]), (people.patients[0], people.branches[1]))
        ]
        session.add_all(visits)
        session.flush()
        away, others = (visit.id for visit in visits)
    program = api_as("elsewhere")
    lines = [
        {"medication_id": medicines[PARACETAMOL], "dose": {"value": 1, "unit": "{tbl}", "timing": "BID", "days": 7}}
    ]
    before = written()
    told = {"patient_id": patient, "lines": lines}
    assert program.post(API, json={**told, "encounter_id": others}).status_code == 422
    assert written() == before
    answer = program.post(API, json={**told, "encounter_id": away})
    assert answer.status_code == 201
    paper = stored(Prescription, answer.get_json()["id"])
    assert (paper["encounter_id"], paper["branch_id"]) == (away, people.branches[1]), "in one's own branch's name"


def test_a_browser_needs_a_token_to_prescribe(client_as: ClientAs, medicines: dict[str, int], patient: int) -> None:
    client, before = client_as("doctor"), written()
    told = {
        "patient_id": patient,
        "lines": [
            {"medication_id": medicines[PARACETAMOL], "dose": {"value": 1, "unit": "{tbl}", "timing": "BID", "days": 7}}
        ],
    }
    assert client.post(API, json=told).status_code in (400, 403)
    assert client.post(f"/prescribing/{patient}/", data={"do": "issue", "line": "0"}).status_code in (400, 403)
    assert written() == before


def test_the_trail_knows_who_overrode_and_nothing_of_what(
    people: Hospital, acting: Acting, medicines: dict[str, int], attacked: dict[str, int], trail_lines: TrailLines
) -> None:
    with acting("doctor"):
        wanted = [line(medicines, AMOXICILLIN)]
        found = prescriptions.preview(guard.session(), patient_id=attacked["patient"], lines=wanted)
        told = [Override(each.key, "2", "SECRET-REASON") for each in found]
        prescribed(attacked["patient"], *wanted, overrides=told)
    events = [event for event in trail_lines.events() if event["patient_id"] == attacked["patient"]]
    said = json.dumps(events, default=str)
    assert "AllergyIntolerance" in said
    assert not [word for word in ("SECRET-REASON", "Penicillin", "penicillin", "Amoxicillin") if word in said]


# ---- notes and their templates --------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found}}
    return found


@pytest.mark.parametrize(
    "schema",
    [
        nested(100),
        nested(400),
        nested(5000),
        {"type": "object", "properties": {"a": {"type": "string", "title": "a\x00b"}}},
        {"type": "object", "properties": {"a": {"type": "string", "title": "a\ud800b"}}},
        {"type": "object", "properties": {"a": {"type": "string", "enum": ["yes "]}}},
        {"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"type": "object", "$defs": {"a": {"$ref": "#"}}, "properties": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "object", "$dynamicRef": "#meta", "properties": {"a": {"type": "string"}}},
        {
            "type": "object",
            "patternProperties": {"(a+)+$": {"type": "string"}},
            "properties": {"a": {"type": "string"}},
        },
    ],
)
def test_a_template_is_no_way_in(acting: Acting, people: Hospital, schema: Any) -> None:
    before = number_of(NoteTemplate)
    with acting("admin"), pytest.raises(SchemaUnsupported):
        do(note_templates.save_template, name="Hostile", kind="free", schema=schema)
    assert number_of(NoteTemplate) == before


def test_a_choice_is_the_same_in_the_template_and_in_the_note() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "enum": ["Ure\u0301tre"]}}}
    shape = note_shape.checked(schema)
    assert note_shape.faults(shape, note_shape.cleaned({"a": "Ure\u0301tre"}), draft=False) == {}


def test_names_with_markup_are_text(people: Hospital, acting: Acting, client_as: ClientAs, patient: int) -> None:
    script = "<script>alert(1)</script>"
    schema = {"type": "object", "properties": {"a": {"type": "string", "title": script, "description": script}}}
    with acting("admin"):
        do(note_templates.save_template, name=script, kind="free", schema=schema)
        key = next(each.key for each in note_templates.newest(guard.session()) if each.name == script)
    client = client_as("doctor")
    choose = client.page(f"/patients/{patient}/notes/new")
    token = csrf_of(choose)
    answer = client.post(f"/patients/{patient}/notes/new", data={"csrf_token": token, "template": key})
    form = client.page(answer.headers["Location"])
    assert "&lt;script&gt;alert(1)" in form
    assert script not in choose + form + client_as("admin").page("/note-templates/")


def test_long_notes_are_compared_and_found_without_end_of_work(people: Hospital, acting: Acting, patient: int) -> None:
    old, new = "a b a c. " * 20_000, "b a c a. " * 20_000
    parts = notes.between(old, new)
    assert "".join(text for kind, text in parts if kind != "new") == old
    assert "".join(text for kind, text in parts if kind != "gone") == new
    with acting("doctor"):
        signed(patient, {**SOAP, "plan": ("zug zag " * 20_000) + "needle"})
        (hit,) = notes.search(guard.session(), "needle or zzz", patient_id=patient)
        assert [hit.snippet[start : start + length] for start, length in hit.marks] == ["needle"]


def test_an_addendum_is_as_closed_as_its_note(people: Hospital, acting: Acting, patient: int) -> None:
    with acting("doctor"):
        note = signed(patient, confidentiality="V", title="HIV counselling")
        added = do(notes.addendum, note.id)
        assert added.confidentiality == "V"
        for level in "NR":
            with pytest.raises(Invalid) as refusal:
                do(notes.save_draft, added.id, version=added.version, content={"text": "x"}, confidentiality=level)
            assert refusal.value.field == "confidentiality"
    assert stored(ClinicalNote, added.id)["confidentiality"] == "V"
    with acting("second"):
        assert not notes.of_patient(guard.session(), patient)
        assert not notes.search(guard.session(), "HIV")
        with pytest.raises(NotFound):
            notes.open_note(guard.session(), added.id)


def test_rest_tells_nothing_of_notes_that_are_closed(
    people: Hospital, acting: Acting, api_as: ApiAs, patient: int, trail_lines: TrailLines
) -> None:
    with acting("doctor"):
        note = signed(patient, confidentiality="V", title="ORACLE")
    program = api_as("second")
    for column, value in (("title", "ORACLE"), ("digest", note.digest), ("patient_id", patient), ("id", note.id)):
        asked = f"(filters:!((col:{column},opr:eq,value:{value if isinstance(value, int) else repr(value)})))"
        answer = program.get(f"/api/v1/clinical_note/?q={asked}")
        assert answer.status_code == 200, column
        assert (answer.get_json()["count"], answer.get_json()["result"]) == (0, []), column
    assert program.get(f"/api/v1/clinical_note/{note.id}").status_code == 404
    for method in (program.post, program.put, program.delete):
        assert method(f"/api/v1/clinical_note/{note.id}", json={"title": "x"}).status_code == 405
    assert "ORACLE" not in json.dumps(trail_lines.events(), default=str)


def test_a_trainee_does_not_get_round_the_second_signature(
    people: Hospital, acting: Acting, client_as: ClientAs, patient: int
) -> None:
    with acting("trainee"):
        note = signed(patient)
        added = do(notes.addendum, note.id)
        kept = do(notes.save_draft, added.id, version=added.version, content={"text": "More"})
        do(notes.sign, kept.id, version=kept.version)
        newer = do(notes.amend, note.id)
        do(notes.sign, newer.id, version=newer.version)
    for number in (note.id, added.id, newer.id):
        row = stored(ClinicalNote, number)
        assert (row["cosigner_id"], row["cosigned_at"]) == (people.staff["doctor"], None)
    with acting("trainee"), pytest.raises(Refusal), guard.unit_of_work() as session:
        session.get_one(Practitioner, people.staff["trainee"]).supervised_by_id = None
    assert stored(Practitioner, people.staff["trainee"])["supervised_by_id"] == people.staff["doctor"]
    client = client_as("trainee")
    token = csrf_of(client.page(f"/notes/{note.id}/"))
    answer = client.post(f"/notes/{note.id}/cosign", data={"csrf_token": token})
    assert answer.status_code == 403
    assert stored(ClinicalNote, note.id)["cosigned_at"] is None


def test_whoever_configures_roles_gives_themselves_no_notes(people: Hospital, granted: Callable[..., None]) -> None:
    with pytest.raises(Refusal, match="must not see clinical notes"):
        granted("Admin", ClinicalNote=may("read"))


@pytest.mark.parametrize(
    ("text", "taken"),
    [("1,000", None), ("12,500", None), ("2.000", None), ("0,125", "0.125"), ("1,5", "1.5"), ("1.125", "1.125")],
)
def test_a_thousand_is_not_one(text: str, taken: str | None) -> None:
    if taken is None:
        with pytest.raises(Invalid):
            dosage.number(text, field="dose")
    else:
        assert dosage.number(text, field="dose") == Decimal(taken)
