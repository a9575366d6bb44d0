"""Two records become one and part again: every row, every lock, and two who merge at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, select, text
from sqlalchemy.orm import joinedload

from app import errors, guard, policy
from app.actor import service
from app.services import audit, clinical, merging, notes, patients, signing
from app.services.emergencies import break_glass
from models.base import now
from models.clinical import Encounter, Observation
from models.hl7 import Hl7Message, Hl7Result
from models.imports import SourceResource
from models.lab import CriticalAttempt, CriticalResult, ServiceRequest, Specimen
from models.migrations import grant
from models.notes import ClinicalNote
from models.organization import Branch
from models.patients import Patient, PatientIdentifier, PatientLink, PatientMerge
from models.prescriptions import DetectedIssue, Medication, MedicationDispense, MedicationRequest, Prescription
from models.scheduling import (
    Appointment,
    AppointmentSeries,
    Communication,
    SlotOffer,
    SlotOfferInvitation,
    WaitlistEntry,
)
from tests import dispensary, factories
from tests.conftest import csrf_of
from tests.factories import WHEN, Hospital

LATER = datetime(2031, 3, 5, 9, 0, tzinfo=UTC)


@contextmanager
def owner() -> Iterator[Any]:
    """The database past the gate, committed at the end."""
    with guard.engine().begin() as connection:
        yield connection


def everything(*whose: int) -> dict[str, list[str]]:
    """Every row of every table that moves, of these patients, as JSON; and the patients with their numbers and links."""
    found: dict[str, list[str]] = {}
    with owner() as c:
        parts = c.execute(text("SELECT of_table, of_column FROM wb_of_patients() WHERE stays IS NULL")).all()
        parts = [*parts, ("patient_identifier", "patient_id"), ("patient_link", "patient_id"), ("patient", "id")]
        for table, column in parts:
            rows = c.execute(
                text(f"SELECT to_jsonb(t) AS row FROM {table} t WHERE {column} = ANY(:whose) ORDER BY id"),
                {"whose": list(whose)},
            )
            found[table] = [json.dumps(row.row, sort_keys=True) for row in rows]
    return found


def still(state: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same without what counts changes of the two patients themselves."""
    drop = ("version", "updated_at")
    kept = [json.dumps({k: v for k, v in json.loads(row).items() if k not in drop}) for row in state["patient"]]
    return {**state, "patient": kept}


def counts(whose: int) -> dict[str, int]:
    with owner() as c:
        rows = c.execute(text("SELECT of_table, of_column, number FROM wb_rows_of_patient(:w)"), {"w": whose}).all()
        return {f"{row.of_table}.{row.of_column}": row.number for row in rows}


def registered(hospital: Hospital, family: str, given: str = "Test", branch: int = 0, **more: Any) -> int:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        identifiers = more.pop("identifiers", ())
        patient = patients.register(
            session,
            factories.told(family, given, **more),
            identifiers=identifiers,
            branch_id=hospital.branches[branch],
            insist=True,
        )
        return patient.id


@pytest.fixture
def pair(hospital: Hospital) -> tuple[int, int]:
    """Two records of one person, the second one mistyped."""
    born = date(1971, 2, 3)
    phone = [{"system": "phone", "value": "+34911555777"}]
    number = next(_numbers)
    return (
        registered(hospital, f"Twofold{number}", "Anna", birth_date=born, telecom=phone, gender="female"),
        registered(
            hospital,
            f"Twofould{number}",
            "Ana",
            branch=1,
            birth_date=born,
            gender="female",
            identifiers=[("passport", f"TWICE{number}")],
            address=[{"city": "Lugo"}],
        ),
    )


_numbers = iter(range(1000, 10_000))


def of_laboratory(session: Any, patient_id: int, order: ServiceRequest, branch_id: int, result_id: int) -> None:
    """A specimen, a result as it was before, somebody who was told of it, and the message of another system."""
    specimen = Specimen(
        patient_id=patient_id,
        accession=f"S{next(_numbers):08d}",
        type_code="SER",
        branch_id=branch_id,
        collected_at=WHEN,
    )
    critical = CriticalResult(
        patient_id=patient_id, observation_id=result_id, flag="HH", value="93", raised_at=WHEN, branch_id=branch_id
    )
    message = Hl7Message(
        patient_id=patient_id,
        state="stored",
        acknowledgement="AA",
        received_at=WHEN,
        digest=str(patient_id).encode(),
        raw=b"MSH",
        results=[Hl7Result(position=1, outcome="refused", reason="No value.", patient_id=patient_id)],
    )
    session.add_all([specimen, critical, message])
    session.flush()
    session.get_one(Observation, result_id).note = "Looked at again"
    order.specimen_id = specimen.id
    session.add(
        CriticalAttempt(patient_id=patient_id, critical_result_id=critical.id, outcome="not-reached", attempted_at=WHEN)
    )
    session.flush()


def filled(hospital: Hospital, patient_id: int) -> dict[str, int]:
    """A row in every table for a patient, signed notes among them."""
    at = LATER + timedelta(days=10 * next(_numbers))
    doctor, branch_id = hospital.staff["doctor"], hospital.branches[0]
    rows: dict[str, int] = {}
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        branch = session.get_one(Branch, branch_id)
        rows |= factories.chart(session, patient_id, branch, doctor)
        visit = session.get_one(Encounter, rows["Encounter"])
        visit.status = "entered-in-error"
        session.flush()
        open_visit = Encounter(
            patient_id=patient_id,
            status="in-progress",
            class_code="AMB",
            started_at=WHEN + timedelta(days=1),
            branch_id=branch_id,
            service_provider_id=branch.organization_id,
            practitioner_id=doctor,
        )
        session.add(open_visit)
        session.flush()
        rows["open"] = open_visit.id
        medicine = session.scalars(select(Medication).where(Medication.code == "merge")).one_or_none()
        if medicine is None:
            medicine = Medication(code_system="test", code="merge", display="Merge 5 MG Oral Tablet", unit="{tbl}")
            session.add(medicine)
        paper = Prescription(
            patient_id=patient_id,
            encounter_id=open_visit.id,
            practitioner_id=doctor,
            branch_id=branch_id,
            language="en",
        )
        session.add(paper)
        session.flush()
        order = MedicationRequest(
            patient_id=patient_id,
            encounter_id=open_visit.id,
            prescription_id=paper.id,
            medication_id=medicine.id,
            status="active",
            code_display="Merge 5 MG",
            requester_id=doctor,
            quantity=Decimal(10),
            quantity_unit="{tbl}",
            repeats=1,
            valid_from=date(2026, 1, 1),
            valid_until=date(2040, 1, 1),
        )
        test = ServiceRequest(
            patient_id=patient_id,
            encounter_id=open_visit.id,
            code_display="Blood count",
            authored_at=WHEN,
            requester_id=doctor,
        )
        session.add_all([order, test])
        session.flush()
        dispense = MedicationDispense(
            patient_id=patient_id,
            medication_request_id=order.id,
            medication_id=medicine.id,
            quantity=Decimal(10),
            quantity_unit="{tbl}",
            already=Decimal(0),
            handed_over_at=WHEN,
            performer_id=hospital.staff["pharmacist"],
        )
        session.add(dispense)
        session.flush()
        session.add(
            DetectedIssue(
                patient_id=patient_id,
                medication_request_id=order.id,
                medication_dispense_id=dispense.id,
                code="DRG",
                severity="low",
                detail="Something",
                identified_at=WHEN,
            )
        )
        rows |= {"order": order.id, "paper": paper.id, "dispense": dispense.id, "test": test.id}
        of_laboratory(session, patient_id, test, branch_id, rows["laboratory"])
        kind = session.scalars(select(factories.VisitType)).first()
        if kind is None:
            kind = factories.VisitType(name="Merge visit", minutes=30, needs_room=False)
            session.add(kind)
            session.flush()
        series = AppointmentSeries(
            patient_id=patient_id, rule="FREQ=DAILY;COUNT=1", time_zone="UTC", starts_on=at.replace(tzinfo=None)
        )
        session.add(series)
        session.flush()
        booked = Appointment(
            patient_id=patient_id,
            branch_id=branch_id,
            visit_type_id=kind.id,
            practitioner_id=doctor,
            start_at=at,
            end_at=at + timedelta(minutes=30),
            series_id=series.id,
        )
        over = Appointment(
            patient_id=patient_id,
            branch_id=branch_id,
            visit_type_id=kind.id,
            practitioner_id=doctor,
            start_at=at + timedelta(days=1),
            end_at=at + timedelta(days=1, minutes=30),
            encounter_id=open_visit.id,
        )
        session.add_all([booked, over])
        session.flush()
        over.status = "fulfilled"
        entry = WaitlistEntry(
            patient_id=patient_id,
            branch_id=branch_id,
            visit_type_id=kind.id,
            earliest_on=at.date(),
            appointment_id=booked.id,
        )
        offer = SlotOffer(
            branch_id=branch_id,
            visit_type_id=kind.id,
            practitioner_id=doctor,
            start_at=at + timedelta(days=2),
            end_at=at + timedelta(days=2, minutes=30),
            until_at=at,
            status="expired",
        )
        session.add_all([entry, offer])
        session.flush()
        invitation = SlotOfferInvitation(patient_id=patient_id, offer_id=offer.id, entry_id=entry.id)
        session.add_all(
            [
                invitation,
                Communication(
                    patient_id=patient_id, appointment_id=booked.id, kind="booked", medium="email", sent_at=at
                ),
            ]
        )
        session.flush()
        sent = SourceResource(
            patient_id=patient_id,
            source="elsewhere",
            resource_type="Patient",
            source_id=f"p{patient_id}",
            record_id=patient_id,
            digest=b"0" * 32,
            content={},
        )
        session.add(sent)
        session.flush()
        rows |= {"booked": booked.id, "over": over.id, "sent": sent.id}
    signed = (
        "INSERT INTO clinical_note (patient_id, encounter_id, title, author_id, written_at, content, status, signed_at,"
        " signed_for, digest, addendum_to_id, language, fhir_id, version, created_at, updated_at)"
        " SELECT id, :visit, 'Signed', :doctor, :at, '{\"text\": \"stays\"}', 'final', :at, fhir_id, repeat('a', 64), :to,"
        " 'en', gen_random_uuid(), 1, :at, :at FROM patient WHERE id = :patient RETURNING id"
    )
    with owner() as c:
        said: dict[str, Any] = {"visit": rows["open"], "doctor": doctor, "at": WHEN, "patient": patient_id}
        rows["note"] = c.execute(text(signed), {**said, "to": None}).scalar_one()
        rows["addendum"] = c.execute(text(signed), {**said, "to": rows["note"]}).scalar_one()
    return rows


def merged(survivor: int, loser: int, *, who: Any = None, taken: Any = (), **more: Any) -> int:
    """Look at both, then merge them, as whoever is acting."""
    with guard.unit_of_work() as session:
        looked = merging.preview(session, survivor, loser)
        made = merging.merge(
            session,
            survivor,
            loser,
            **{"reason": "the same person", "taken": taken, "counts": looked.digest, **more},
        )
        return made.id


def parted(merge_id: int) -> None:
    with guard.unit_of_work() as session:
        merging.undo(session, merge_id, reason="two people after all")


# ---- everything moves, and everything comes back -------------------------------------------------------------------


def test_every_row_moves_and_comes_back_as_it_was(hospital: Hospital, pair: Any, acting: Any) -> None:
    survivor, loser = pair
    filled(hospital, survivor)
    rows = filled(hospital, loser)
    before, of_both = everything(survivor, loser), (counts(survivor), counts(loser))
    with owner() as c:
        named = {row[0] for row in c.execute(text("SELECT of_table FROM wb_of_patients() WHERE stays IS NULL"))}
        note = c.execute(
            text("SELECT to_jsonb(n) - 'patient_id' FROM clinical_note n WHERE id = :i"), {"i": rows["note"]}
        )
        signed = note.scalar_one()
    assert all(of_both[1][f"{table}.patient_id"] for table in named), "a table of the list has no row in this test"
    with acting("reception"):
        merge_id = merged(survivor, loser)
        sums = merging.moved(guard.session(), merge_id)
    after = counts(loser)
    assert {table: n for table, n in after.items() if n and table.split(".")[0] in named} == {}
    for table in named:
        key = f"{table}.patient_id"
        assert counts(survivor)[key] == of_both[0][key] + of_both[1][key], table
        assert sums[table] == (of_both[1][key], 0)
    assert counts(survivor)["booking.patient_id"] == of_both[0]["booking.patient_id"] + of_both[1]["booking.patient_id"]
    with owner() as c:
        moved = c.execute(
            text("SELECT to_jsonb(n) - 'patient_id' FROM clinical_note n WHERE id = :i"), {"i": rows["note"]}
        ).scalar_one()
        assert moved == signed, "the note itself has changed, not only whose it is"
    assert factories.stored(Patient, loser)["active"] is False
    assert factories.stored(Patient, loser)["replaced_by_id"] == survivor
    assert factories.stored(SourceResource, rows["sent"])["record_id"] == survivor, "what is sent again would miss it"
    with acting("admin"):
        parted(merge_id)
    assert still(everything(survivor, loser)) == still(before)
    assert counts(loser)["booking.patient_id"] == of_both[1]["booking.patient_id"]
    with owner() as c:
        assert c.execute(text("SELECT count(*) FROM patient_merge_row WHERE followed")).scalar_one() == 0


def test_what_is_written_after_the_merge_stays_but_for_what_hangs_on_a_row_that_goes_back(
    hospital: Hospital, pair: Any, acting: Any
) -> None:
    survivor, loser = pair
    rows = filled(hospital, loser)
    with acting("reception"):
        merge_id = merged(survivor, loser)
    doctor = hospital.staff["doctor"]
    vital = {"status": "final", "code_display": "Pulse", "category": "vital-signs", "value_quantity": 60}
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        free = Observation(patient_id=survivor, **vital)
        in_moved = Observation(patient_id=survivor, encounter_id=rows["open"], **vital)
        own = Encounter(patient_id=survivor, status="arrived", class_code="AMB", practitioner_id=doctor)
        session.add_all([free, in_moved, own])
        session.flush()
        given = MedicationDispense(
            patient_id=survivor,
            medication_request_id=rows["order"],
            medication_id=session.get_one(MedicationRequest, rows["order"]).medication_id,
            quantity=Decimal(10),
            quantity_unit="{tbl}",
            already=Decimal(10),
            handed_over_at=now(),
        )
        checked_in = session.get_one(Appointment, rows["booked"])
        checked_in.status, checked_in.encounter_id = "arrived", own.id
        session.add(given)
        session.flush()
        keys = free.id, in_moved.id, own.id, given.id
    with acting("reception"):
        parted(merge_id)
        sums = merging.moved(guard.session(), merge_id)
    whose = [
        factories.stored(kind, key)["patient_id"]
        for kind, key in zip((Observation, Observation, Encounter, MedicationDispense), keys, strict=True)
    ]
    assert whose == [survivor, loser, loser, loser]
    assert sums["observation"][1] == sums["encounter"][1] == sums["medication_dispense"][1] == 1


def test_what_hangs_on_both_is_not_torn_apart(hospital: Hospital, pair: Any, acting: Any) -> None:
    survivor, loser = pair
    rows, own = filled(hospital, loser), filled(hospital, survivor)
    with acting("reception"):
        merge_id = merged(survivor, loser)
    with owner() as c:
        c.execute(
            text("UPDATE service_request SET encounter_id = :v WHERE id = :t"), {"v": own["open"], "t": rows["test"]}
        )
    before = everything(survivor, loser)
    with acting("reception"), pytest.raises(errors.Tangled):
        parted(merge_id)
    assert everything(survivor, loser) == before
    assert factories.stored(PatientMerge, merge_id)["undone_at"] is None


def test_what_was_signed_still_holds(hospital: Hospital, acting: Any) -> None:
    """The digest of a note and the signature of a prescription, before, between and after."""
    loser = hospital.patients[5]
    survivor = registered(hospital, "Signatory", birth_date=date(1949, 6, 6), gender="female")
    with acting("doctor"), guard.unit_of_work() as session:
        draft = notes.begin(session, patient_id=loser, template="soap")
        written = {"subjective": "Tired", "assessment": "Signed before", "plan": "Rest"}
        draft = notes.save_draft(session, draft.id, content=written, version=draft.version)
        note = notes.sign(session, draft.id, version=draft.version).id
    paper = dispensary.issue(hospital, dispensary.medicines()[0], patient=5)

    def holds(whose: int) -> None:
        with guard.acting_as(service("note-check")):
            with_both = [joinedload(ClinicalNote.author), joinedload(ClinicalNote.template)]
            kept = guard.session().get_one(ClinicalNote, note, options=with_both)
            assert kept.digest == notes.digest_of(kept, kept.author, kept.template)
        with guard.acting_as(service("prescription-check")):
            assert signing.find(guard.session(), paper.code) is not None
        assert factories.stored(ClinicalNote, note)["patient_id"] == whose
        assert factories.stored(Prescription, paper.id)["patient_id"] == whose

    holds(loser)
    with acting("reception"):
        merge_id = merged(survivor, loser)
    holds(survivor)
    with acting("doctor"):
        assert [found.id for found in notes.of_patient(guard.session(), survivor)] == [note]
    with acting("reception"):
        parted(merge_id)
    holds(loser)


def test_demographics_are_taken_over_and_put_back_if_nobody_changed_them(
    hospital: Hospital, pair: Any, acting: Any
) -> None:
    survivor, loser = pair
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        other = session.get_one(Patient, loser)
        other.photo, other.confidential, other.no_known_allergies = b"\x89PNG\r\n\x1a\n...", True, True
    before = factories.stored(Patient, survivor)
    with acting("reception"):
        looked = merging.preview(guard.session(), survivor, loser)
        differing = {field.name for field in looked.fields if field.differs}
        assert {"name", "address", "telecom", "photo"} <= differing
        assert "birth_date" not in differing
        assert {field.name for field in looked.fields if field.of_loser} == {"address", "photo"}
        merge_id = merged(survivor, loser, taken=["name", "address", "photo"])
        assert merging.taken_over(guard.session(), merge_id) == ["name", "address", "photo"]
    between, theirs = factories.stored(Patient, survivor), factories.stored(Patient, loser)
    for column in ("family", "given", "address", "photo", "confidential", "no_known_allergies"):
        assert between[column] == theirs[column] != before[column]
    assert between["telecom"] == before["telecom"]
    with acting("reception"), guard.unit_of_work() as session:
        session.get_one(Patient, survivor).address = [{"city": "Ourense"}]
    with acting("reception"):
        parted(merge_id)
    end = factories.stored(Patient, survivor)
    for column in ("family", "given", "photo", "confidential", "no_known_allergies", "telecom"):
        assert end[column] == before[column], column
    assert end["address"] == [{"city": "Ourense"}], "changed since the merge, so it is left"


def test_old_numbers_find_the_survivor(hospital: Hospital, pair: Any, acting: Any, api_as: Any, client_as: Any) -> None:
    survivor, loser = pair
    filled(hospital, loser)
    old, new = factories.stored(Patient, loser), factories.stored(Patient, survivor)
    passport = factories.stored(PatientIdentifier, _passport(loser))["value"]
    with acting("reception"):
        merge_id = merged(survivor, loser)
        for asked in (old["mrn"], passport, f"{old['family']}", old["mrn"].lower()):
            found = patients.find(guard.session(), asked)
            assert [patient.id for patient in found.patients] == [survivor], asked
        alike = patients.likely_duplicates(guard.session(), identifiers=[("passport", passport)])
        assert [like.patient.id for like in alike] == [survivor]
    with owner() as c:
        kept = c.execute(
            text("SELECT system, value, use FROM patient_identifier WHERE patient_id = :s ORDER BY 1"), {"s": survivor}
        ).all()
        links = c.execute(
            text(
                "SELECT patient_id, type, other_id FROM patient_link WHERE type LIKE 'repl%' AND :s IN (patient_id, other_id)"
            ),
            {"s": survivor},
        ).all()
    assert [tuple(row) for row in kept] == [("mrn", old["mrn"], "old"), ("passport", passport, "old")]
    assert {tuple(row) for row in links} == {(survivor, "replaces", loser), (loser, "replaced-by", survivor)}
    client = client_as("reception")
    answer = client.get(f"/patients/{loser}/")
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith(f"/patients/{survivor}/")
    assert old["mrn"] in client.page(answer.headers["Location"])
    api = api_as("reception")
    said = api.get(f"/api/v1/patient/{loser}").get_json()["result"]
    assert (said["active"], said["replaced_by_id"]) == (False, survivor)
    result = api.get(f"/api/v1/patient/search?text={old['mrn']}").get_json()["result"]
    assert [row["mrn"] for row in result] == [new["mrn"]]
    again = {"family": "Nobody", "given": "Else", "identifiers": [{"system": "passport", "value": passport}]}
    assert api.post("/api/v1/patient/", json=again).status_code == 409
    with acting("reception"):
        parted(merge_id)
        assert [p.id for p in patients.find(guard.session(), old["mrn"]).patients] == [loser]


def _passport(patient_id: int) -> int:
    with owner() as c:
        found = c.execute(text("SELECT id FROM patient_identifier WHERE patient_id = :p"), {"p": patient_id})
        return int(found.scalar_one())


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_nothing_is_written_into_a_record_that_was_merged(
    hospital: Hospital, pair: Any, acting: Any, api_as: Any
) -> None:
    survivor, loser = pair
    with acting("reception"):
        merged(survivor, loser)
    with acting("doctor"), pytest.raises(errors.Replaced), guard.unit_of_work() as session:
        clinical.enter(
            session, Observation(patient_id=loser, status="final", code_display="Pulse", category="vital-signs")
        )
    with acting("reception"), pytest.raises(errors.Replaced), guard.unit_of_work() as session:
        session.get_one(Patient, loser).active = True
    with acting("reception"), pytest.raises(errors.Replaced), guard.unit_of_work() as session:
        session.get_one(Patient, survivor).replaced_by_id = loser
    assert api_as("reception").put(f"/api/v1/patient/{loser}", json={"given": "Back"}).status_code == 409
    assert counts(loser)["observation.patient_id"] == 0
    assert factories.stored(Patient, loser)["active"] is False
    assert factories.stored(Patient, survivor)["active"] is True


def test_refusals_by_name(hospital: Hospital, pair: Any, acting: Any) -> None:
    survivor, loser = pair
    third = registered(hospital, "Thirdling", birth_date=date(1971, 2, 3), gender="female")
    with acting("reception"):
        with pytest.raises(errors.SameRecord):
            merged(survivor, survivor)
        with pytest.raises(errors.NotFound):
            merged(survivor, 2**40)
        with pytest.raises(errors.LookedAtAnother):
            merged(survivor, loser, counts="0" * 64)
        with pytest.raises(errors.Invalid, match="why"):
            merged(survivor, loser, reason=" ")
        with pytest.raises(errors.Invalid, match="take over"):
            merged(survivor, loser, taken=["mrn"])
        assert factories.number_of(PatientMerge, PatientMerge.loser_id == loser) == 0
        first = merged(survivor, loser)
        for one, other in ((survivor, loser), (loser, survivor), (third, loser), (loser, third)):
            with pytest.raises(errors.Replaced):
                merged(one, other)
        second = merged(third, survivor)
        with pytest.raises(errors.MergedOn):
            parted(first)
        assert {p.id for p in patients.find(guard.session(), factories.stored(Patient, loser)["mrn"]).patients} == {
            third
        }
        parted(second)
        parted(first)
        with pytest.raises(errors.Undone):
            parted(first)
        with pytest.raises(errors.NotFound):
            parted(2**40)


def test_after_thirty_days_it_stays(hospital: Hospital, pair: Any, acting: Any) -> None:
    survivor, loser = pair
    with acting("reception"):
        merge_id = merged(survivor, loser)
    with owner() as c:
        c.execute(text("ALTER TABLE patient_merge DISABLE TRIGGER patient_merge_is_final"))
        c.execute(
            text("UPDATE patient_merge SET undo_until = now() - interval '1 second' WHERE id = :m"), {"m": merge_id}
        )
        c.execute(text("ALTER TABLE patient_merge ENABLE TRIGGER patient_merge_is_final"))
    with acting("reception"), pytest.raises(errors.UndoOver):
        parted(merge_id)
    with pytest.raises(Exception, match="patient_merge_undone_in_time"), owner() as c:
        c.execute(
            text("UPDATE patient_merge SET undone_at = now(), undone_reason = 'x' WHERE id = :m"), {"m": merge_id}
        )
    assert factories.stored(Patient, loser)["replaced_by_id"] == survivor


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"deceased": True}, "deceased"),
        ({"gender": "male"}, "sex"),
        ({"birth_date": date(1950, 1, 1)}, "born"),
    ],
)
def test_what_speaks_against_it_is_confirmed_by_name(
    change: dict[str, Any], warning: str, hospital: Hospital, pair: Any, acting: Any
) -> None:
    survivor, loser = pair
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for name, value in change.items():
            setattr(session.get_one(Patient, loser), name, value)
    with acting("reception"):
        with pytest.raises(errors.Unconfirmed) as refused:
            merged(survivor, loser)
        assert refused.value.warnings == (warning,)
        assert factories.stored(Patient, loser)["replaced_by_id"] is None
        merged(survivor, loser, confirmed=[warning])
    assert factories.stored(Patient, loser)["replaced_by_id"] == survivor


def test_a_pair_somebody_said_is_two_people_is_confirmed_too(hospital: Hospital, pair: Any, acting: Any) -> None:
    survivor, loser = pair
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.add(PatientLink(patient_id=survivor, other_id=loser, score=0.9, reasons=[], reviewed_at=now()))
    with acting("reception"):
        with pytest.raises(errors.Unconfirmed) as refused:
            merged(survivor, loser)
        assert refused.value.warnings == ("different",)
        merge_id = merged(survivor, loser, confirmed=["different"])
        parted(merge_id)
    with owner() as c:
        kept = c.execute(
            text("SELECT type FROM patient_link WHERE patient_id = :s AND other_id = :l"), {"s": survivor, "l": loser}
        ).all()
    assert [row.type for row in kept] == ["seealso"]


def test_visits_at_the_same_time_refuse_the_merge_and_are_named(hospital: Hospital, pair: Any, acting: Any) -> None:
    survivor, loser = pair
    rows = filled(hospital, loser)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        booked = session.get_one(Appointment, rows["booked"])
        kind, at = booked.visit_type_id, booked.start_at
        other = Appointment(
            patient_id=survivor,
            branch_id=hospital.branches[0],
            visit_type_id=kind,
            practitioner_id=hospital.staff["nurse"],
            start_at=at + timedelta(minutes=10),
            end_at=at + timedelta(minutes=40),
        )
        session.add(other)
        session.flush()
        clash = other.id
    before = everything(survivor, loser)
    with acting("reception"):
        with pytest.raises(errors.VisitsClash) as refused:
            merged(survivor, loser)
        assert [(a.id, b.id) for a, b in refused.value.visits] == [(clash, rows["booked"])]
    assert everything(survivor, loser) == before


def test_the_database_refuses_visits_that_the_person_is_not_shown(
    hospital: Hospital, pair: Any, acting: Any, granted: Any
) -> None:
    survivor, loser = pair
    granted("Receptionist", Appointment=None, WaitlistEntry=None)
    rows = filled(hospital, loser)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        booked = session.get_one(Appointment, rows["booked"])
        session.add(
            Appointment(
                patient_id=survivor,
                branch_id=hospital.branches[0],
                visit_type_id=booked.visit_type_id,
                practitioner_id=hospital.staff["nurse"],
                start_at=booked.start_at,
                end_at=booked.start_at + timedelta(minutes=15),
            )
        )
    before = everything(survivor, loser)
    with acting("reception"), pytest.raises(errors.VisitsClash) as refused:
        merged(survivor, loser)
    assert refused.value.visits == ()
    assert everything(survivor, loser) == before


def test_two_portal_accounts_refuse_the_merge_and_one_comes_along(hospital: Hospital, acting: Any) -> None:
    account = hospital.accounts["patient"]
    survivor = registered(hospital, "Quartermain", "Zinnia", birth_date=date(1970, 3, 5), gender="female")
    loser = hospital.patients[0]
    with owner() as c:
        c.execute(
            text("UPDATE patient SET user_id = :u WHERE id = :s"), {"u": hospital.accounts["billing"], "s": survivor}
        )
    with acting("reception"), pytest.raises(errors.TwoAccounts):
        merged(survivor, loser)
    with owner() as c:
        c.execute(text("UPDATE patient SET user_id = NULL WHERE id = :s"), {"s": survivor})
    with acting("reception"):
        assert merging.preview(guard.session(), survivor, loser).account
        merge_id = merged(survivor, loser)
    assert factories.stored(Patient, survivor)["user_id"] == account
    with acting("patient") as who:
        assert who.patient_id == survivor
        assert guard.session.get(Patient, loser) is None
    with acting("reception"):
        parted(merge_id)
    assert factories.stored(Patient, loser)["user_id"] == account
    assert factories.stored(Patient, survivor)["user_id"] is None


# ---- who may -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("username", ["nurse", "doctor", "lab", "pharmacist", "billing", "privacy", "patient"])
def test_others_may_not(username: str, hospital: Hospital, pair: Any, acting: Any) -> None:
    survivor, loser = pair
    with acting("reception"):
        digest = merging.preview(guard.session(), survivor, loser).digest
    with acting(username):
        with pytest.raises(errors.Forbidden):
            merging.preview(guard.session(), survivor, loser)
        with pytest.raises(errors.Forbidden), guard.unit_of_work() as session:
            merging.merge(session, survivor, loser, reason="mine", taken=[], counts=digest)
    assert factories.stored(Patient, loser)["replaced_by_id"] is None
    with acting("admin"):
        merge_id = merged(survivor, loser)
    with acting(username), pytest.raises(errors.Forbidden):
        parted(merge_id)
    assert factories.stored(PatientMerge, merge_id)["undone_at"] is None


@pytest.mark.parametrize("narrow", ["Patient", "PatientMerge"])
def test_both_are_patients_of_whoever_merges(
    narrow: str, hospital: Hospital, pair: Any, acting: Any, granted: Any
) -> None:
    survivor, loser = pair  # of two branches
    actions = "read create update"
    granted(
        "Nurse", **{"PatientMerge": policy.may(actions), narrow: policy.may(actions, rows=policy.RowScope.OWN_BRANCH)}
    )
    with acting("reception"):
        digest = merging.preview(guard.session(), survivor, loser).digest
    with acting("nurse"), pytest.raises((errors.Forbidden, errors.NotFound)), guard.unit_of_work() as session:
        merging.merge(session, survivor, loser, reason="mine", taken=[], counts=digest)
    with acting("nurse"), pytest.raises((errors.Forbidden, errors.NotFound)), guard.unit_of_work() as session:
        merging.merge(session, loser, survivor, reason="mine", taken=[], counts=digest)
    assert factories.number_of(PatientMerge, PatientMerge.loser_id.in_(pair)) == 0


def test_what_is_not_shown_is_not_taken_over(hospital: Hospital, pair: Any, acting: Any, granted: Any) -> None:
    survivor, loser = pair
    granted("Receptionist", Patient=policy.may("read create update", masked=["address"]))
    before = factories.stored(Patient, survivor)
    with acting("reception"):
        fields = {field.name: field for field in merging.preview(guard.session(), survivor, loser).fields}
        assert not fields["address"].shown
        with pytest.raises(errors.Forbidden):
            merged(survivor, loser, taken=["address"])
        merged(survivor, loser, taken=["name"])
    assert factories.stored(Patient, survivor)["address"] == before["address"]


def test_the_application_moves_nothing_by_hand(
    hospital: Hospital, pair: Any, database: Any, servers: Any, acting: Any
) -> None:
    """With the setting set and the checks put off, as somebody would who had the application's own account."""
    survivor, loser = pair
    rows = filled(hospital, loser)
    url, name = make_url(database.url), f"wb_merge_{loser}"
    with owner() as c:
        c.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'merge'"))
    try:
        account = url.set(username=name, password="merge")
        grant(database.url, account.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))
        plain = account.set(drivername="postgresql").render_as_string(hide_password=False)
        forbidden = {
            "clinical_note": rows["note"],
            "prescription": rows["paper"],
            "medication_request": rows["order"],
            "medication_dispense": rows["dispense"],
            "appointment": rows["over"],
        }
        for table, key in forbidden.items():
            with psycopg.connect(plain) as c, pytest.raises(psycopg.errors.CheckViolation):
                c.execute("SET wardbook.merging = 'yes'")
                c.execute("SET CONSTRAINTS ALL DEFERRED")
                c.execute(
                    sql.SQL("UPDATE {} SET patient_id = %s WHERE id = %s").format(sql.Identifier(table)),
                    [survivor, key],
                )
        for statement in (
            "UPDATE appointment_history SET patient_id = %s",
            "UPDATE encounter_history SET patient_id = %s",
            "DELETE FROM patient_merge_row WHERE merge_id = %s",
            "DELETE FROM patient_merge WHERE id = %s",
            "UPDATE patient_merge_row SET row_id = %s",
        ):
            with psycopg.connect(plain) as c, pytest.raises(psycopg.errors.InsufficientPrivilege):
                c.execute(statement, [survivor])
        with psycopg.connect(plain) as c, pytest.raises(psycopg.errors.CheckViolation):
            c.execute("SET wardbook.merging = 'yes'")
            c.execute("UPDATE patient SET active = false, replaced_by_id = %s WHERE id = %s", [survivor, loser])
        with psycopg.connect(plain) as c, pytest.raises(psycopg.errors.CheckViolation):
            # Who owns the table is looked up in the catalogue, and not in a table of one's own by that name.
            c.execute("CREATE TEMPORARY TABLE pg_tables (schemaname text, tablename text, tableowner text)")
            c.execute("INSERT INTO pg_tables VALUES ('public', 'patient', current_user)")
            c.execute("SET wardbook.merging = 'yes'")
            c.execute("UPDATE patient SET active = false, replaced_by_id = %s WHERE id = %s", [survivor, loser])
        with psycopg.connect(plain) as c, c.transaction(force_rollback=True):
            c.execute("UPDATE patient SET given = 'works' WHERE id = %s", [loser])
            c.execute(
                "INSERT INTO patient_merge (survivor_id, loser_id, merged_at, reason, undo_until, loser_was_active, taken,"
                " fhir_id, version, created_at, updated_at) VALUES (%s, %s, now(), 'why', now(), true, '{}',"
                " gen_random_uuid(), 1, now(), now())",
                [survivor, loser],
            )
            c.execute("SELECT wb_merge_patients(max(id)) FROM patient_merge")
            assert c.execute("SELECT current_setting('wardbook.merging', true)").fetchone() != ("yes",)
        with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as c:
            assert not c.execute(
                "SELECT has_function_privilege('public', 'wb_merge_patients(bigint)', 'EXECUTE')"
            ).fetchone()[0]  # type: ignore[index]
    finally:
        with owner() as c:
            c.execute(text(f"DROP OWNED BY {name}"))
            c.execute(text(f"DROP ROLE {name}"))


# ---- at the same moment --------------------------------------------------------------------------------------------


def together(*work: Callable[[], None]) -> list[errors.Refusal | None]:
    """Do all of it at once; what each ended in."""
    ready = threading.Barrier(len(work))
    ended: list[errors.Refusal | None] = [None] * len(work)

    def run(number: int, one: Callable[[], None]) -> None:
        ready.wait()
        try:
            one()
        except errors.Refusal as error:
            ended[number] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def test_of_two_merges_of_overlapping_pairs_one_wins(hospital: Hospital, pair: Any, acting: Any) -> None:
    one, other = pair
    third = registered(hospital, "Thirdly", birth_date=date(1971, 2, 3), gender="female")
    filled(hospital, one)
    rounds = [((one, other), (third, one)), ((other, one), (one, other)), ((one, third), (other, third))]
    for pairs in rounds:
        with acting("reception"):
            digests = [merging.preview(guard.session(), *each).digest for each in pairs]

        def work(each: tuple[int, int], digest: str) -> Callable[[], None]:
            def merge() -> None:
                with acting("reception"), guard.unit_of_work() as session:
                    merging.merge(session, *each, reason="both at once", taken=[], counts=digest)

            return merge

        ended = together(*(work(each, digest) for each, digest in zip(pairs, digests, strict=True)))
        won = [error for error in ended if error is None]
        lost = [error for error in ended if error is not None]
        assert len(won) == len(lost) == 1, ended
        assert isinstance(lost[0], errors.Conflict), lost
        live = [m for m in _live() if m.loser_id in (one, other, third)]
        assert len(live) == 1
        with acting("reception"):
            parted(live[0].id)


def _live() -> list[Any]:
    with owner() as c:
        return list(c.execute(text("SELECT id, survivor_id, loser_id FROM patient_merge WHERE undone_at IS NULL")))


def test_who_writes_while_two_are_merged_waits_and_is_told(hospital: Hospital, pair: Any, acting: Any) -> None:
    survivor, loser = pair
    with acting("reception"):
        digest = merging.preview(guard.session(), survivor, loser).digest
    answers: list[errors.Refusal | None] = []

    def write() -> None:
        with acting("doctor"), guard.unit_of_work() as session:
            session.add(Observation(patient_id=loser, status="final", code_display="Late", category="vital-signs"))

    def attempt() -> None:
        try:
            write()
            answers.append(None)
        except errors.Refusal as refusal:
            answers.append(refusal)

    with acting("reception"), guard.unit_of_work() as session:
        merging.merge(session, survivor, loser, reason="slowly", taken=[], counts=digest)
        writer = threading.Thread(target=attempt)
        writer.start()
        _until_somebody_waits()
    writer.join()
    assert [type(answer) for answer in answers] == [errors.Replaced]
    assert counts(loser)["observation.patient_id"] == counts(survivor)["observation.patient_id"] == 0


def _until_somebody_waits() -> None:
    with guard.engine().connect() as c:
        for _ in range(3000):
            waiting = c.execute(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            ).scalar_one()
            c.rollback()
            if waiting:
                return
            threading.Event().wait(0.01)
    raise AssertionError("nobody waits")


# ---- the trail -----------------------------------------------------------------------------------------------------


def test_the_trail_has_a_line_for_both_and_shows_the_old_ones_with_the_survivor(
    hospital: Hospital, pair: Any, acting: Any
) -> None:
    survivor, loser = pair
    with acting("reception"):
        merge_id = merged(survivor, loser)
    with owner() as c:
        lines = c.execute(
            text(
                "SELECT (event->'events'->0->>'p')::bigint AS whose, event->'events'->0->>'a' AS action,"
                " event->'events'->0->'e'->0->>'type' AS kind FROM audit_outbox"
                " WHERE (event->'events'->0->>'p')::bigint = ANY(:both) ORDER BY id"
            ),
            {"both": [survivor, loser]},
        ).all()
    assert (survivor, "C", "PatientMerge") in [tuple(line) for line in lines]
    assert (loser, "U", "Patient") in [tuple(line) for line in lines]
    with acting("privacy"):
        session = guard.session()
        assert patients.former(session, [survivor]) == [loser]
        narrowed = audit.narrow(session, audit.Question(patient_id=survivor))
        compiled = narrowed.conditions[0].compile(compile_kwargs={"literal_binds": True})
        assert str(loser) in str(compiled)
        assert str(survivor) in str(compiled)
    with acting("reception"):
        parted(merge_id)
    with acting("privacy"):
        assert patients.former(guard.session(), [survivor]) == []


def test_emergency_access_and_what_was_unusual_stay_with_the_record_it_was_about(
    hospital: Hospital, pair: Any, acting: Any, granted: Any
) -> None:
    survivor, loser = pair
    granted("Doctor", **{**policy.MATRIX["Doctor"], "Patient": policy.may("read", rows=policy.RowScope.CARE_TEAM)})
    with acting("doctor"), guard.unit_of_work() as session:
        given = break_glass(session, patient_id=loser, reason="BTG", justification="unconscious in the waiting room")
        key = given.id
    with acting("reception"):
        merged(survivor, loser)
    with owner() as c:
        whose = c.execute(text("SELECT patient_id FROM emergency_access WHERE id = :k"), {"k": key}).scalar_one()
    assert whose == loser


# ---- over the web --------------------------------------------------------------------------------------------------


def test_the_form_keeps_what_was_typed_and_refuses_what_was_not_looked_at(
    hospital: Hospital, pair: Any, client_as: Any
) -> None:
    survivor, loser = pair
    client, path = client_as("reception"), f"/patients/{survivor}/merge/{loser}/"
    said = {"reason": "same passport, shown twice", "of_name": "loser"}
    unsure = client.submit(path, said)
    assert unsure.status_code == 422
    assert "Tick that the two are one person" in unsure.text
    assert "same passport, shown twice" in unsure.text
    stale = client.submit(path, {**said, "sure": "1", "counts": "0" * 64})
    assert stale.status_code == 409
    assert "Look at both once more" in stale.text
    assert "same passport, shown twice" in stale.text
    without = client.submit(path, {"sure": "1", "reason": ""})
    assert (without.status_code, "Please say in a few words why" in without.text) == (422, True)
    assert factories.stored(Patient, loser)["replaced_by_id"] is None
    done = client.submit(path, {**said, "sure": "1"})
    assert done.status_code == 302
    page = client.page(done.headers["Location"])
    assert "same passport, shown twice" in page
    assert factories.stored(Patient, survivor)["family"] == factories.stored(Patient, loser)["family"]
    assert client.get(path).status_code == 409
    undo = {"csrf_token": csrf_of(page), "reason": "two after all"}
    assert client.post(f"{done.headers['Location']}undo", data=undo).status_code == 302
    again = client.post(f"{done.headers['Location']}undo", data=undo)
    assert (again.status_code, "undone already" in again.text) == (409, True)


@pytest.mark.parametrize("username", ["nurse", "doctor", "patient"])
def test_nobody_else_merges_by_sending_the_form(
    username: str, hospital: Hospital, pair: Any, client_as: Any, acting: Any
) -> None:
    survivor, loser = pair
    with acting("reception"):
        digest = merging.preview(guard.session(), survivor, loser).digest
        first = merged(registered(hospital, "Other"), registered(hospital, "Another"))
    client = client_as(username)
    token = csrf_of(client.page("/"))
    form = {"csrf_token": token, "counts": digest, "sure": "1", "reason": "because I say so"}
    assert client.post(f"/patients/{survivor}/merge/{loser}/", data=form).status_code == 403
    assert client.post(f"/patients/merges/{first}/undo", data=form).status_code == 403
    assert client.get("/patients/merges/").status_code == 403
    assert client.get(f"/patients/{survivor}/alike/").status_code == 403
    assert factories.stored(Patient, loser)["replaced_by_id"] is None
    assert factories.stored(PatientMerge, first)["undone_at"] is None


def test_a_page_of_a_merged_record_of_somebody_else_says_nothing(
    hospital: Hospital, pair: Any, client_as: Any, acting: Any, granted: Any
) -> None:
    """Whoever may see the old record only is not told which one took its place."""
    loser, survivor = pair  # the one that is put away is of the nurse's branch, the other is not
    with acting("reception"):
        merged(survivor, loser)
    granted("Nurse", Patient=policy.may("read", rows=policy.RowScope.OWN_BRANCH))
    with acting("nurse"):
        assert guard.session.get(Patient, loser) is not None
        assert patients.find(guard.session(), factories.stored(Patient, loser)["mrn"]).patients == []
    answer = client_as("nurse").get(f"/patients/{loser}/")
    assert answer.status_code == 404
    assert factories.stored(Patient, survivor)["mrn"] not in answer.text
