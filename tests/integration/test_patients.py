"""Registering people once, and finding them again: the services, on a real database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from typing import Any

import pytest
from sqlalchemy import func, select, text

from app import guard
from app.errors import Conflict, DuplicateIdentifier, Forbidden, Invalid, PossibleDuplicate
from app.services import clinical, patients
from app.services.words import fold
from models.audit import EventOutbox
from models.patients import NameToken, Patient, PatientIdentifier
from tests import factories
from tests.conftest import spoken
from tests.factories import Hospital, told

Acting = Callable[[str], AbstractContextManager[Any]]


def names(found: patients.Found) -> list[str]:
    return [f"{patient.family}, {patient.given}" for patient in found.patients]


# ---- registering -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("savepoint")
def test_a_registration_is_a_patient_a_number_an_event_and_a_line(acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        with guard.unit_of_work() as session:
            patient = patients.register(session, told("Nueva", "Ana"), identifiers=[("passport", "NEW1")])
        assert patients.is_mrn(patient.mrn)
        assert patient.registered_at_id == hospital.branches[0]
        connection = session.connection()
        assert [
            number.value
            for number in session.scalars(select(PatientIdentifier).where(PatientIdentifier.patient_id == patient.id))
        ] == ["NEW1"]
        outbox = connection.execute(
            select(EventOutbox.name).where(EventOutbox.payload["patient_id"].as_integer() == patient.id)
        ).all()
        assert outbox == [("PatientRegistered",)]
        lines = (
            connection.execute(
                text("SELECT event FROM audit_outbox WHERE event::text LIKE :p"),
                {"p": f'%"p": {patient.id},%'},
            )
            .scalars()
            .all()
        )
        events = [event for line in lines for event in spoken(line)["events"]]
        assert {event["action"] for event in events} == {"C"}
        assert {entity["type"] for event in events for entity in event["entities"]} == {"Patient", "PatientIdentifier"}
        assert "Nueva" not in str(lines)


@pytest.mark.usefixtures("savepoint")
@pytest.mark.parametrize(
    ("who", "system", "value"),
    [("same number", "passport", "PASS0003"), ("same number at another letter case", "passport", "PASS0003")],
)
def test_a_number_belongs_to_one_person(who: str, system: str, value: str, acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        before = guard.session().scalar(select(func.count()).select_from(Patient))
        with pytest.raises(DuplicateIdentifier) as refused, guard.unit_of_work() as session:
            patients.register(session, told("Copy", "Cat"), identifiers=[(system, value)], insist=True)
        assert refused.value.field == "identifier"
        assert guard.session().scalar(select(func.count()).select_from(Patient)) == before


@pytest.mark.usefixtures("savepoint")
def test_the_same_number_of_another_system_is_another_number(acting: Acting, hospital: Hospital) -> None:
    with acting("reception"), guard.unit_of_work() as session:
        patient = patients.register(
            session, told("Other", "System"), identifiers=[("national-id", "PASS0003")], insist=True
        )
        assert patient.id


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"family": "", "given": ""}, "family"),
        ({"family": "x" * 201}, "family"),
        ({"given": "a\x00b"}, "given"),
        ({"prefix": "x" * 41}, "prefix"),
        ({"birth_date": date(2199, 1, 1)}, "birth_date"),
        ({"birth_date": date(1700, 1, 1)}, "birth_date"),
        ({"gender": "x"}, "gender"),
        ({"sex_for_clinical_use": "x"}, "sex_for_clinical_use"),
        ({"telecom": [{"system": "phone", "value": "x"}]}, "phone"),
        ({"photo": b"x" * 2_000_001}, "photo"),
        ({"multiple_birth_order": 0}, "multiple_birth_order"),
    ],
)
def test_what_does_not_hold_names_its_field_and_leaves_nothing(
    wrong: dict[str, Any], field: str, acting: Acting, hospital: Hospital
) -> None:
    before = factories.number_of(Patient)
    with acting("reception"):
        with pytest.raises(Invalid) as refused, guard.unit_of_work() as session:
            patients.register(session, told(**{"family": "Wrong", **wrong}), insist=True)
        assert refused.value.field == field
    assert factories.number_of(Patient) == before


@pytest.mark.usefixtures("savepoint")
def test_somebody_alike_has_to_be_insisted_on(acting: Acting, hospital: Hospital) -> None:
    twin = told("Vandersloot", "Xerxes", birth_date=date(1982, 11, 30))
    with acting("reception"):
        with pytest.raises(PossibleDuplicate), guard.unit_of_work() as session:
            patients.register(session, twin)
        with guard.unit_of_work() as session:
            assert patients.register(session, twin, insist=True).id


@pytest.mark.usefixtures("savepoint")
@pytest.mark.parametrize(
    ("described", "like", "least"),
    [
        ({"family": "Vandersloot", "given": "Xerxes", "birth_date": date(1982, 11, 30)}, 1, 0.99),
        ({"family": "Xerxes", "given": "Vandersloot", "birth_date": date(1982, 11, 30)}, 1, 0.9),
        ({"family": "Vanderslot", "given": "Xerxes", "birth_date": date(1982, 11, 30)}, 1, 0.9),
        ({"family": "vandersloot", "given": "xerxes"}, 1, 0.9),
        ({"family": "Muller", "given": "Annchen", "birth_date": date(1955, 7, 19)}, 3, 0.9),
        ({"family": "Quartermain", "given": "Zinnia", "birth_date": date(1970, 5, 3)}, 0, 0.8),
        ({"family": "Somebody", "given": "Else", "identifiers": [("passport", "PASS0005")]}, 5, 1.0),
    ],
)
def test_who_is_taken_for_whom(
    described: dict[str, Any], like: int, least: float, acting: Acting, hospital: Hospital
) -> None:
    with acting("reception"):
        found = patients.likely_duplicates(guard.session(), **described)
        assert found[0].patient.id == hospital.patients[like]
        assert least <= found[0].score <= 1.0
        assert found[0].reasons


@pytest.mark.usefixtures("savepoint")
@pytest.mark.parametrize(
    "described",
    [
        {},
        {"family": "Vandersloot", "given": "Bartholomew", "birth_date": date(2010, 1, 1)},
        {"family": "Entirely", "given": "Different", "birth_date": date(1982, 11, 30)},
        {"family": "X"},
        {"phones": ["123"]},
    ],
)
def test_who_is_taken_for_nobody(described: dict[str, Any], acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        assert patients.likely_duplicates(guard.session(), **described) == []


@pytest.mark.usefixtures("savepoint")
def test_the_one_being_corrected_is_no_duplicate_of_themselves(acting: Acting, hospital: Hospital) -> None:
    key = hospital.patients[1]
    with acting("reception"):
        found = patients.likely_duplicates(
            guard.session(), family="Vandersloot", given="Xerxes", birth_date=date(1982, 11, 30), exclude_id=key
        )
        assert key not in [like.patient.id for like in found]


# ---- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("W10000017", None),
        ("W1", False),
        ("", False),
        ("X10000017", False),
        ("W1000001x", False),
        ("W" + "1" * 50, None),
    ],
)
def test_a_number_has_its_check_digit(text: str, true: bool | None) -> None:
    if true is not None:
        assert patients.is_mrn(text) is true
    else:
        others = [patients.is_mrn(text[:-1] + digit) for digit in "0123456789"]
        assert others.count(True) == 1, "exactly one last digit is right"


def test_fifty_at_once_get_fifty_numbers(acting: Acting, hospital: Hospital) -> None:
    """Ten people at ten desks register five each at the same moment."""
    given: list[str] = []
    failed: list[Exception] = []
    ready = threading.Barrier(10)

    def register(number: int) -> None:
        try:
            ready.wait(20)
            for again in range(5):
                with acting("reception"), guard.unit_of_work() as session:
                    patient = patients.register(session, told(f"Rush{number}", f"N{again}"), insist=True)
                    given.append(patient.mrn)
        except Exception as error:  # noqa: BLE001  (whatever it is, the test shows it)
            failed.append(error)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(given) == len(set(given)) == 50
    assert all(patients.is_mrn(number) for number in given)


def test_of_many_at_once_with_one_passport_one_is_registered(acting: Acting, hospital: Hospital) -> None:
    before = factories.number_of(Patient)
    outcomes: list[str] = []
    ready = threading.Barrier(6)

    def register(number: int) -> None:
        with acting("reception"):
            ready.wait(20)
            try:
                with guard.unit_of_work() as session:
                    patients.register(
                        session, told("Race", f"N{number}"), identifiers=[("passport", "RACE1")], insist=True
                    )
                outcomes.append("registered")
            except DuplicateIdentifier:
                outcomes.append("refused")

    threads = [threading.Thread(target=register, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 5 + ["registered"]
    assert factories.number_of(PatientIdentifier, PatientIdentifier.value == "RACE1") == 1
    assert factories.number_of(Patient) == before + 1


def test_of_two_corrections_at_once_one_is_told(acting: Acting, hospital: Hospital) -> None:
    key = hospital.patients[11]
    outcomes: list[str] = []
    both_have_read = threading.Barrier(2)

    def correct(given: str) -> None:
        with acting("reception"):
            try:
                with guard.unit_of_work() as session:
                    patient = clinical.open_chart(session, key)
                    both_have_read.wait(20)
                    patients.change(session, patient, told("Tanaka", given))
                outcomes.append(given)
            except Conflict as error:
                outcomes.append(f"{type(error).__name__} {error.status}")

    threads = [threading.Thread(target=correct, args=(given,)) for given in ("One", "Two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[0] == "Conflict 409"
    assert factories.stored(Patient, key)["given"] == sorted(outcomes)[1]


# ---- changing ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("savepoint")
def test_a_correction_writes_only_what_is_new(acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        patient = clinical.open_chart(guard.session(), hospital.patients[4])
        version = patient.version
        same = {name: getattr(patient, name) for name in patients.Demographics.__dataclass_fields__ if name != "photo"}
        with guard.unit_of_work() as session:
            patients.change(session, patient, patients.Demographics(**same))
        assert patient.version == version
        with guard.unit_of_work() as session:
            patients.change(
                session,
                patient,
                patients.Demographics(**{**same, "given": "Shivaun"}),
                identifiers=[("passport", "PASS0004")],
            )
        assert (patient.version, patient.given) == (version + 1, "Shivaun")
        assert len(clinical.open_chart(guard.session(), patient.id).identifiers) == 1


@pytest.mark.usefixtures("savepoint")
def test_a_correction_is_refused_to_those_who_only_read(acting: Acting, hospital: Hospital) -> None:
    with acting("lab"):
        patient = clinical.open_chart(guard.session(), hospital.patients[4])
        given = patient.given
        with pytest.raises(Forbidden), guard.unit_of_work() as session:
            patients.change(session, patient, told(patient.family, "Changed"))
        assert clinical.open_chart(guard.session(), hospital.patients[4]).given == given


# ---- finding -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("savepoint")
@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("vandersloot", 1),
        ("Vander", 1),
        ("xerxes VANDERSLOOT", 1),
        ("sloot", 1),
        ("jesus medina", 2),
        ("muller", 3),
        ("MÜLLER", 3),
        ("ännchen", 3),
        ("obrien", 4),
        ("o'brien", 4),
        ("siobhan", 4),
        ("oster", 5),
        ("lucja", 6),
        ("Łucja", 6),
        ("nguyen", 7),
        ("thi hoa", 7),
        ("fitzgerald jones", 9),
        ("Fitzgerald-Jones", 9),
        ("30/11/1982", 1),
        ("1982-11-30", 1),
        ("Nov 1982", 1),
        ("vandersloot 1982", 1),
        ("PASS0001", 1),
        ("pass0001", 1),
        ("34911234568", 1),
        ("911 234 568", 1),
        ("234568", 1),
        ("vandersloor", 1),
        ("quatermain", 0),
        ("  vandersloot   xerxes ", 1),
    ],
)
def test_a_person_is_found_by_whatever_is_known(text: str, number: int, acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        found = patients.find(guard.session(), text)
        assert hospital.patients[number] in [patient.id for patient in found.patients], names(found)
        assert len(found.patients) <= 3, names(found)


@pytest.mark.usefixtures("savepoint")
def test_a_person_is_found_by_their_number(acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        mrn = clinical.open_chart(guard.session(), hospital.patients[1]).mrn
        for text in (mrn, mrn.lower(), f" {mrn} ", mrn[1:]):
            assert [patient.id for patient in patients.find(guard.session(), text).patients] == [hospital.patients[1]]


@pytest.mark.usefixtures("savepoint")
@pytest.mark.parametrize(
    "text", ["", "  ", "%", "_", "zzzzzz", "\\", "30/11/1983", "999999999", "PASS9999", "qqq www", "' OR 1=1 --"]
)
def test_nobody_is_found_by_what_is_nobodys(text: str, acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        assert names(patients.find(guard.session(), text)) == []


@pytest.mark.usefixtures("savepoint")
def test_what_was_meant_is_said(acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        assert patients.find(guard.session(), "vandersloor").meant == ("vandersloot",)
        assert patients.find(guard.session(), "vandersloot").meant == ()


@pytest.mark.usefixtures("savepoint")
def test_more_than_asked_for_is_said_to_be_there(acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        with guard.unit_of_work() as session:
            for number in range(6):
                patients.register(session, told("Manyone", f"N{number}"), insist=True)
        found = patients.find(guard.session(), "manyone", limit=5)
        assert (len(found.patients), found.more) == (5, True)
        found = patients.find(guard.session(), "manyone", limit=6)
        assert (len(found.patients), found.more) == (6, False)


@pytest.mark.usefixtures("savepoint")
def test_those_who_may_not_know_numbers_and_phones_find_nobody_by_them(acting: Acting, hospital: Hospital) -> None:
    with acting("privacy"):
        assert names(patients.find(guard.session(), "PASS0001")) == []
        try:
            assert names(patients.find(guard.session(), "34911234568")) == []
        except Forbidden:
            guard.session().rollback()
        assert names(patients.find(guard.session(), "vandersloot")) == ["Vandersloot, Xerxes"]


@pytest.mark.usefixtures("savepoint")
@pytest.mark.parametrize(
    "name", ["Müller", "ØSTER", "Łucja", "Nguyễn", "Straße", "Æsop", "O'Brien", "Đặng", "İpek", "Şahin", "Ħal"]
)
def test_the_database_folds_names_as_python_does(name: str, acting: Acting, hospital: Hospital) -> None:
    with guard.engine().connect() as connection:
        assert connection.scalar(select(func.wb_fold(name))) == fold(name)


@pytest.mark.usefixtures("savepoint")
def test_the_words_of_names_are_kept_for_the_mistyped(acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        tokens = {known.token for known in guard.session().scalars(select(NameToken))}
    assert {"vandersloot", "muller", "siobhan"} <= tokens
    assert not [token for token in tokens if any(letter.isdigit() for letter in token)]
