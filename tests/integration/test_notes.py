"""Notes: signed for good, whoever asks; what is refused leaves everything as it was."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pypdf import PdfReader
from sqlalchemy import make_url

from app import guard
from app.actor import service
from app.errors import (
    Conflict,
    Forbidden,
    IllegalTransition,
    Invalid,
    NotAClinician,
    NotAuthor,
    NoteBroken,
    NoteSigned,
    NotFound,
    SchemaUnsupported,
    TooLarge,
    Unsigned,
)
from app.policy import Role
from app.services import accounts, emergencies, note_shape, note_templates, notes, organization
from models.base import now
from models.clinical import Encounter
from models.codes import NoteKind, RowScope
from models.migrations import grant
from models.notes import ClinicalNote, NoteTemplate
from models.organization import Branch, Practitioner
from models.patients import Patient
from ops.servers import Servers
from tests import factories
from tests.conftest import Browser, Database, TrailLines
from tests.factories import Hospital, number_of, stored

Acting = Callable[[str], Any]
ClientAs = Callable[[str], Browser]
SOAP = {"subjective": "Coughs since Monday", "assessment": "Bronchitis", "plan": "Rest, fluids"}
SCRIPT = "<script>alert('note')</script>"


@pytest.fixture(scope="module")
def people(database: Database) -> Hospital:
    """The hospital with a second doctor, and one in training under the first."""
    hospital: Hospital = database.hospital
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        branch = session.get_one(Branch, hospital.branches[0])
        for username, given in (("second", "Simon"), ("trainee", "Tina")):
            account = accounts.open_account(
                session,
                username=username,
                password=factories.PASSWORD,
                first_name=given,
                last_name=username.capitalize(),
                email=f"{username}@example.org",
                roles=[Role.DOCTOR],
            )
            person = organization.employ(
                session, family=username.capitalize(), given=given, home_branch=branch, user_id=account.id
            )
            hospital.accounts[username], hospital.staff[username] = account.id, person.id
        session.get_one(Practitioner, hospital.staff["trainee"]).supervised_by_id = hospital.staff["doctor"]
    return hospital


def do(service_function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """One service in one unit of work; a note it gives stays as it was then, whatever comes after."""
    with guard.unit_of_work() as session:
        made = service_function(session, *arguments, **more)
    if isinstance(made, ClinicalNote):
        guard.session().expunge(made)
    return made


def begun(patient_id: int, template: str = "soap", **more: Any) -> ClinicalNote:
    note: ClinicalNote = do(notes.begin, patient_id=patient_id, template=template, **more)
    return note


def saved(note: ClinicalNote, content: dict[str, Any] | None = None, **more: Any) -> ClinicalNote:
    kept: ClinicalNote = do(notes.save_draft, note.id, version=note.version, content=content or SOAP, **more)
    return kept


def signed(patient_id: int, content: dict[str, Any] | None = None, **more: Any) -> ClinicalNote:
    """A signed note of whoever acts."""
    draft = saved(begun(patient_id), content, **more)
    note: ClinicalNote = do(notes.sign, draft.id, version=draft.version)
    return note


# ---- templates -----------------------------------------------------------------------------------------------------


def test_the_shipped_templates_are_planted_once(people: Hospital) -> None:
    before = number_of(NoteTemplate)
    note_templates.plant()
    assert number_of(NoteTemplate) == before == len(note_templates.SHIPPED) == len(NoteKind)
    with guard.acting_as(service("note-check")):
        assert {template.kind for template in note_templates.templates(guard.session())} == set(note_templates.LOINC)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ([], "object"),
        ({"type": "object", "properties": {"a": {"type": "strung"}}}, "properties.a.type"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.org/x"}}}, "“a” has no type"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+"}}}, "“pattern” in “a”"),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "uri"}}}, "format “uri” in “a”"),
        ({"type": "object", "properties": {"a": {"type": "string", "enum": [1]}}}, "choices of “a”"),
        ({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}}}, "“items” in “a”"),
        ({"type": "object", "properties": {"a": {"type": "number", "maximum": 10**20}}}, "“maximum” in “a”"),
        ({"type": "object", "properties": {"Größe": {"type": "string"}}}, "“Größe” is no name"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]}, "“b” is required"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "allOf": []}, "no JSON Schema"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{}]}, "“anyOf” in “the template”"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True}, "“additionalP"),
        (
            {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "object"}}}}},
            "“a.b” is a section within a section",
        ),
        ({"type": "object", "properties": {}}, "needs a field"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}, "2020-12"),
        ({"type": "object", "properties": {f"f{n}": {"type": "string"} for n in range(101)}}, "up to 100 fields"),
    ],
)
def test_what_a_form_cannot_show_is_refused_by_name(people: Hospital, acting: Acting, schema: Any, named: str) -> None:
    before = number_of(NoteTemplate)
    with acting("admin"), pytest.raises(SchemaUnsupported) as refusal:
        do(note_templates.save_template, name="Bad", kind="free", schema=schema)
    assert named in str(refusal.value)
    assert refusal.value.field == "schema"
    assert number_of(NoteTemplate) == before


def test_a_change_of_a_template_is_a_new_edition_and_notes_keep_theirs(people: Hospital, acting: Acting) -> None:
    shape = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "string"}}, "required": ["b"]}
    with acting("admin"):
        first = do(note_templates.save_template, name="Wound", kind="free", schema=shape)
    assert [field.path for field in note_shape.fields(stored(NoteTemplate, first.id)["schema"])] == ["b", "a"]
    with acting("doctor"):
        note = begun(people.patients[2], "wound")
    with acting("admin"):
        shape["properties"] = {"c": {"type": "string"}}
        shape["required"] = []
        second = do(note_templates.save_template, name="Wound", kind="free", schema=shape, key="wound", seen=1)
        with pytest.raises(Conflict):
            do(note_templates.save_template, name="Wound", kind="free", schema=shape, key="wound", seen=1)
        assert (second.edition, stored(NoteTemplate, first.id)["active"]) == (2, False)
    with acting("doctor"):
        assert saved(note, {"b": "Clean"}).template_id == first.id
        assert begun(people.patients[2], "wound").template_id == second.id
    with acting("admin"):
        do(note_templates.retire, "wound")
        with pytest.raises(Invalid):
            do(note_templates.retire, note_templates.ADDENDUM)
    with acting("doctor"), pytest.raises(NotFound):
        begun(people.patients[2], "wound")


def test_only_administrators_make_templates(people: Hospital, acting: Acting) -> None:
    before = number_of(NoteTemplate)
    shape = {"type": "object", "properties": {"a": {"type": "string"}}}
    with acting("doctor"), pytest.raises(Forbidden):
        do(note_templates.save_template, name="Mine", kind="free", schema=shape)
    assert number_of(NoteTemplate) == before


# ---- writing and signing -------------------------------------------------------------------------------------------


def test_a_note_is_written_saved_and_signed(people: Hospital, acting: Acting) -> None:
    with acting("doctor"):
        draft = begun(people.patients[2])
        assert (draft.status, draft.author_id, draft.branch_id) == (
            "preliminary",
            people.staff["doctor"],
            people.branches[0],
        )
        part = saved(draft, {"subjective": "Coughs\r\nat night  ", "plan": ""})
        assert part.content == {"subjective": "Coughs\nat night"}
        whole = saved(part, SOAP, title="Cough")
        final = do(notes.sign, whole.id, version=whole.version)
    row = stored(ClinicalNote, final.id)
    assert (row["status"], row["title"], row["content"]) == ("final", "Cough", SOAP)
    assert re.fullmatch("[0-9a-f]{64}", row["digest"])
    assert row["signed_for"] == stored(Patient, people.patients[2])["fhir_id"]
    assert row["signed_at"] - now() < timedelta(minutes=1)


def test_the_visit_that_is_open_goes_with_the_note_and_another_patients_does_not(
    people: Hospital, acting: Acting
) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visits = [
            Encounter(
                patient_id=people.patients[number],
                status="in-progress",
                class_code="AMB",
                started_at=now(),
                branch_id=people.branches[0],
                practitioner_id=people.staff["doctor"],
            )
            for number in (4, 5)
        ]
        session.add_all(visits)
        session.flush()
        keys = [visit.id for visit in visits]
    with acting("doctor"):
        assert begun(people.patients[4]).encounter_id == keys[0]
        before = number_of(ClinicalNote)
        with pytest.raises(Invalid) as refusal:
            begun(people.patients[4], encounter_id=keys[1])
        assert refusal.value.field == "encounter"
        assert number_of(ClinicalNote) == before
    with acting("second"):
        assert begun(people.patients[4]).encounter_id is None


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ({"subjective": "a", "other": "b"}, ""),
        ({"subjective": ["a"]}, "subjective"),
        ({"subjective": 5}, "subjective"),
        ({"subjective": {"deep": {"deeper": {"deepest": {"end": 1}}}}}, None),
        ({"subjective": "a\x00b"}, None),
        ({"subjective": float("inf")}, None),
        ({"subjective": "x" * 1_000_000}, None),
    ],
)
def test_a_draft_of_another_shape_is_refused(
    people: Hospital, acting: Acting, content: dict[str, Any], wrong: str | None
) -> None:
    with acting("doctor"):
        draft = begun(people.patients[2])
        with pytest.raises((NoteBroken, Invalid, TooLarge)) as refusal:
            saved(draft, content)
    if wrong is not None:
        assert list(refusal.value.faults) == [wrong]  # type: ignore[union-attr]
    assert (stored(ClinicalNote, draft.id)["content"], stored(ClinicalNote, draft.id)["version"]) == ({}, draft.version)


def test_what_is_missing_keeps_a_note_from_being_signed_and_is_named(people: Hospital, acting: Acting) -> None:
    with acting("doctor"):
        draft = saved(begun(people.patients[2]), {"subjective": "Coughs", "plan": "   "})
        with pytest.raises(NoteBroken) as refusal:
            do(notes.sign, draft.id, version=draft.version)
        assert str(refusal.value) == "Please look at: Assessment, Plan."
        assert set(refusal.value.faults) == {"assessment", "plan"}
        assert stored(ClinicalNote, draft.id)["status"] == "preliminary"
        number = saved(begun(people.patients[2], "admission"), {"complaint": "x", "examination": {"pulse": 900}})
        with pytest.raises(NoteBroken) as bounds:
            do(notes.sign, number.id, version=number.version)
        assert bounds.value.faults["examination.pulse"] == "This has to be 350 or less."


def test_a_stale_draft_is_not_saved_nor_signed(people: Hospital, acting: Acting) -> None:
    with acting("doctor"):
        draft = begun(people.patients[2])
        seen = draft.version
        saved(draft, SOAP)
        for attempt in (
            lambda: do(notes.save_draft, draft.id, version=seen, content={"plan": "Another window"}),
            lambda: do(notes.sign, draft.id, version=seen),
        ):
            with pytest.raises(Conflict):
                attempt()
    assert stored(ClinicalNote, draft.id)["content"] == SOAP
    assert stored(ClinicalNote, draft.id)["signed_at"] is None


def test_nobody_else_writes_signs_or_withdraws_it_nor_does_anybody_sign_it_twice(
    people: Hospital, acting: Acting
) -> None:
    with acting("doctor"):
        draft = saved(begun(people.patients[2]))
    with acting("second"):
        for attempt in (
            lambda: saved(draft, {"plan": "Mine"}),
            lambda: do(notes.sign, draft.id, version=draft.version),
            lambda: do(notes.withdraw, draft.id, reason="Not what I think"),
        ):
            with pytest.raises(NotAuthor):
                attempt()
    assert stored(ClinicalNote, draft.id)["content"] == SOAP
    assert stored(ClinicalNote, draft.id)["status"] == "preliminary"
    with acting("doctor"):
        do(notes.sign, draft.id, version=draft.version)
        once = stored(ClinicalNote, draft.id)
        with pytest.raises(NoteSigned):
            do(notes.sign, draft.id, version=once["version"])
        with pytest.raises(NoteSigned):
            do(notes.save_draft, draft.id, version=once["version"], content={"plan": "Later"})
    assert stored(ClinicalNote, draft.id) == once


def test_a_signed_note_is_held_against_our_own_code_too(people: Hospital, acting: Acting) -> None:
    with acting("doctor"):
        note = signed(people.patients[2])
        before = stored(ClinicalNote, note.id)
        with pytest.raises(NoteSigned), guard.unit_of_work() as session:
            session.get_one(ClinicalNote, note.id).content = {"subjective": "Never coughed"}
    assert stored(ClinicalNote, note.id) == before


def test_who_is_nobody_of_the_staff_signs_nothing(people: Hospital, acting: Acting) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        key = accounts.open_account(
            session,
            username="locum",
            password=factories.PASSWORD,
            first_name="Lou",
            last_name="Locum",
            email="locum@example.org",
            roles=[Role.DOCTOR],
        ).id
    before = number_of(ClinicalNote)
    with factories.acting(key), pytest.raises(NotAClinician):
        begun(people.patients[2])
    assert number_of(ClinicalNote) == before


# ---- in training ---------------------------------------------------------------------------------------------------


def test_a_trainees_note_is_signed_by_the_supervisor_as_well_and_by_nobody_else(
    people: Hospital, acting: Acting
) -> None:
    with acting("trainee"):
        note = signed(people.patients[2])
        assert note.cosigner_id == people.staff["doctor"]
        with pytest.raises(notes.NotTheCosigner):
            do(notes.cosign, note.id)
    with acting("second"), pytest.raises(notes.NotTheCosigner):
        do(notes.cosign, note.id)
    assert stored(ClinicalNote, note.id)["cosigned_at"] is None
    with acting("doctor"):
        assert note.id in [one.id for one in notes.unsigned_for(guard.session()).cosign]
        do(notes.cosign, note.id)
        once = stored(ClinicalNote, note.id)
        assert once["cosigned_at"] is not None
        with pytest.raises(NoteSigned):
            do(notes.cosign, note.id)
        assert stored(ClinicalNote, note.id) == once
        assert note.id not in [one.id for one in notes.unsigned_for(guard.session()).cosign]
    assert notes.check_all(lambda _done, _total: None).broken is None, "the co-signature stands beside the digest"


def test_a_draft_waits_longer_than_a_day(people: Hospital, acting: Acting) -> None:
    with acting("second"):
        draft = begun(people.patients[2])
        assert notes.waiting_count(guard.session()) == 0
        with guard.unit_of_work() as session:
            session.get_one(ClinicalNote, draft.id).written_at = now() - timedelta(hours=25)
        assert notes.waiting_count(guard.session()) == 1
        waiting = notes.unsigned_for(guard.session())
        assert [note.id for note in waiting.late] == [draft.id]
        do(notes.withdraw, draft.id, reason="Written for another patient")
        assert notes.waiting_count(guard.session()) == 0


# ---- addenda, versions, withdrawing --------------------------------------------------------------------------------


def test_an_addendum_is_a_signed_row_of_its_own_and_leaves_the_note(people: Hospital, acting: Acting) -> None:
    with acting("doctor"):
        note = signed(people.patients[2])
        before = stored(ClinicalNote, note.id)
    with acting("second"):
        added = do(notes.addendum, note.id)
        assert (added.addendum_to_id, added.author_id) == (note.id, people.staff["second"])
        added = saved(added, {"text": "The culture was negative"})
        do(notes.sign, added.id, version=added.version)
        again = do(notes.addendum, added.id)
        assert again.addendum_to_id == note.id, "what is added to an addendum is added to its note"
        assert [one.id for one in notes.addenda(guard.session(), notes.open_note(guard.session(), note.id))] == [
            added.id,
            again.id,
        ]
        draft = begun(people.patients[2])
        with pytest.raises(Unsigned):
            do(notes.addendum, draft.id)
    assert stored(ClinicalNote, note.id) == before
    assert stored(ClinicalNote, added.id)["digest"] not in (None, before["digest"])


def test_a_new_version_replaces_and_the_difference_is_told_word_by_word(people: Hospital, acting: Acting) -> None:
    with acting("doctor"):
        first = signed(people.patients[2])
        before = stored(ClinicalNote, first.id)
        second = do(notes.amend, first.id)
        assert second.content == SOAP
        with pytest.raises(Conflict):
            do(notes.amend, first.id)
        second = saved(second, {**SOAP, "plan": "Rest, antibiotics", "objective": "Fever"}, confidentiality="R")
        second = do(notes.sign, second.id, version=second.version)
        assert (second.status, stored(ClinicalNote, first.id)) == ("amended", before)
        _, _, changes = notes.diff(guard.session(), first.id, second.id)
        told = {change.label: change.parts for change in changes}
        assert told["Plan"] == (("same", "Rest, "), ("gone", "fluids"), ("new", "antibiotics"))
        assert told["Objective"] == (("new", "Fever"),)
        assert told["Who may read it"] == (("gone", "N"), ("new", "R"))
        assert told["Subjective"] == (("same", SOAP["subjective"]),)
        other = signed(people.patients[2])
        with pytest.raises(NotFound):
            notes.diff(guard.session(), other.id, second.id)
        assert [one.id for one in notes.versions(guard.session(), first)] == [first.id, second.id]
    with acting("second"), pytest.raises(NotAuthor):
        do(notes.amend, other.id)


def test_a_new_version_that_is_given_up_leaves_room_for_another(people: Hospital, acting: Acting) -> None:
    with acting("doctor"):
        first = signed(people.patients[2])
        second = do(notes.amend, first.id)
        do(notes.withdraw, second.id, reason="Changed my mind")
        third = do(notes.amend, first.id)
        assert [one.id for one in notes.versions(guard.session(), first)] == [first.id, third.id]


def test_a_note_is_withdrawn_once_with_a_reason_and_stays(people: Hospital, acting: Acting) -> None:
    with acting("doctor"):
        note = signed(people.patients[2])
        with pytest.raises(Invalid) as refusal:
            do(notes.withdraw, note.id, reason="no")
        assert refusal.value.field == "reason"
        assert stored(ClinicalNote, note.id)["status"] == "final"
        do(notes.withdraw, note.id, reason="Written for another patient")
        once = stored(ClinicalNote, note.id)
        assert (once["status"], once["content"]) == ("entered-in-error", SOAP)
        for attempt in (
            lambda: do(notes.withdraw, note.id, reason="Once more"),
            lambda: do(notes.addendum, note.id),
            lambda: do(notes.amend, note.id),
        ):
            with pytest.raises(IllegalTransition):
                attempt()
    assert stored(ClinicalNote, note.id) == once


# ---- what the database holds ---------------------------------------------------------------------------------------

HOSTILE = {
    "content": 'UPDATE clinical_note SET content = \'{"subjective": "Nothing"}\' WHERE id = %(id)s',
    "title": "UPDATE clinical_note SET title = 'Other' WHERE id = %(id)s",
    "author": "UPDATE clinical_note SET author_id = %(other)s WHERE id = %(id)s",
    "unsign": "UPDATE clinical_note SET status = 'preliminary', signed_at = NULL WHERE id = %(id)s",
    "digest": "UPDATE clinical_note SET digest = repeat('0', 64) WHERE id = %(id)s",
    "patient": "UPDATE clinical_note SET patient_id = patient_id + 1, encounter_id = NULL WHERE id = %(id)s",
    "patient, as if merging": (
        "SELECT set_config('wardbook.merging', 'yes', true);"
        "UPDATE clinical_note SET content = '{}', patient_id = patient_id + 1 WHERE id = %(id)s"
    ),
    "level": "UPDATE clinical_note SET confidentiality = 'V' WHERE id = %(id)s",
    "cosign without being asked": (
        "UPDATE clinical_note SET cosigner_id = %(other)s, cosigned_at = now() WHERE id = %(id)s"
    ),
    "withdraw and rewrite": (
        "UPDATE clinical_note SET status = 'entered-in-error', withdrawn_at = now(), withdrawn_reason = 'x', "
        "content = '{}' WHERE id = %(id)s"
    ),
    "delete": "DELETE FROM clinical_note WHERE id = %(id)s",
    "truncate": "TRUNCATE clinical_note CASCADE",
    "replace the words": "UPDATE clinical_note SET search = to_tsvector('simple', 'other') WHERE id = %(id)s",
}


@pytest.fixture(scope="module")
def doors(database: Database, people: Hospital) -> Iterator[dict[str, str]]:
    """The database as its owner, and as the account the application has in production."""
    owner = make_url(database.url).set(drivername="postgresql")
    role = f"wb_notes_{owner.database}"
    account = owner.set(username=role, password="notes")
    with psycopg.connect(owner.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'notes'".encode())
        grant(database.url, account.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))
        yield {
            "owner": owner.render_as_string(hide_password=False),
            "application": account.render_as_string(hide_password=False),
        }
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


@contextmanager
def as_account(address: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(address) as connection, psycopg.ClientCursor(connection):
        connection.cursor_factory = psycopg.ClientCursor
        yield connection


@pytest.mark.parametrize("account", ["owner", "application"])
@pytest.mark.parametrize("attempt", HOSTILE)
def test_sql_does_not_change_a_signed_note(
    people: Hospital, acting: Acting, doors: dict[str, str], account: str, attempt: str
) -> None:
    with acting("doctor"):
        note = signed(people.patients[2])
    before, count = stored(ClinicalNote, note.id), number_of(ClinicalNote)
    with as_account(doors[account]) as connection:
        with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.InsufficientPrivilege)):
            connection.execute(HOSTILE[attempt].encode(), {"id": note.id, "other": people.staff["second"]})
        connection.rollback()
    assert stored(ClinicalNote, note.id) == before
    assert number_of(ClinicalNote) == count
    assert notes.check_all(lambda _done, _total: None).broken is None


@pytest.mark.parametrize("account", ["owner", "application"])
def test_sql_cosigns_and_withdraws_once(people: Hospital, acting: Acting, doors: dict[str, str], account: str) -> None:
    with acting("trainee"):
        note = signed(people.patients[2])
    cosign = b"UPDATE clinical_note SET cosigned_at = now() WHERE id = %(id)s"
    withdraw = (
        b"UPDATE clinical_note SET status = 'entered-in-error', withdrawn_at = now(), withdrawn_reason = 'Wrong' "
        b"WHERE id = %(id)s"
    )
    for statement in (cosign, withdraw):
        with as_account(doors[account]) as connection:
            connection.execute(statement, {"id": note.id})
        once = stored(ClinicalNote, note.id)
        with as_account(doors[account]) as connection, pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(
                statement.replace(b"'Wrong'", b"'Other'").replace(b"now()", b"now() + interval '1 day'"),
                {"id": note.id},
            )
        assert stored(ClinicalNote, note.id) == once


@pytest.mark.parametrize("account", ["owner", "application"])
def test_sql_lets_nobody_cosign_their_own(
    people: Hospital, acting: Acting, doors: dict[str, str], account: str
) -> None:
    with acting("doctor"):
        draft = saved(begun(people.patients[2]))
    before = stored(ClinicalNote, draft.id)
    with as_account(doors[account]) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            b"UPDATE clinical_note SET status = 'final', signed_at = now(), digest = 'x', signed_for = fhir_id, "
            b"cosigner_id = author_id, cosigned_at = now() WHERE id = %(id)s",
            {"id": draft.id},
        )
    assert stored(ClinicalNote, draft.id) == before


def test_the_check_names_the_first_note_that_was_changed_beneath_the_lock(
    people: Hospital,
    acting: Acting,
    doors: dict[str, str],
    trail_lines: TrailLines,
    database: Database,
    servers: Servers,
    tmp_path: Path,
) -> None:
    with acting("doctor"):
        note, later = signed(people.patients[2]), signed(people.patients[3])
    told: list[tuple[int, int]] = []
    whole = notes.check_all(lambda done, total: told.append((done, total)), batch=3)
    assert whole.broken is None
    assert told[-1] == (whole.notes, whole.notes)
    assert len(told) > 1
    lines = [event for event in trail_lines.events() if event["patient_id"] == people.patients[3]]
    assert lines, "what the check looked at is in the trail"
    statement = b'UPDATE clinical_note SET content = content || \'{"plan": "Surgery"}\' WHERE id = %(id)s'
    with as_account(doors["owner"]) as connection:
        connection.execute(b"ALTER TABLE clinical_note DISABLE TRIGGER USER")
        connection.execute(statement, {"id": note.id})
        connection.execute(statement, {"id": later.id})
        connection.execute(b"ALTER TABLE clinical_note ENABLE TRIGGER USER")
    try:
        found = notes.check_all(lambda _done, _total: None)
        assert (found.broken, found.title) == (note.id, note.title)
        assert found.notes < whole.notes
        assert command(database.url, servers, tmp_path) == (1, True)
    finally:
        with as_account(doors["owner"]) as connection:
            connection.execute(b"ALTER TABLE clinical_note DISABLE TRIGGER USER")
            connection.execute(
                b"UPDATE clinical_note SET content = jsonb_set(content, '{plan}', '\"Rest, fluids\"') "
                b"WHERE id = ANY(%(ids)s)",
                {"ids": [note.id, later.id]},
            )
            connection.execute(b"ALTER TABLE clinical_note ENABLE TRIGGER USER")
    assert command(database.url, servers, tmp_path) == (0, False)


def command(url: str, servers: Servers, home: Path) -> tuple[int, bool]:
    """What `run.py notes check` ends with, and whether it names a note."""
    settings = {
        "DATABASE_URL": url,
        "REDIS_URL": servers.redis_url,
        "TRAIL_REDIS_URL": servers.trail_redis_url,
        "WARDBOOK_HOME": str(home),
        "WARDBOOK_SECRET_KEY": "for tests only, and long enough to be one",
    }
    done = subprocess.run(
        [sys.executable, "run.py", "notes", "check"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, "NOT AS SIGNED: note" in done.stderr


def test_the_digest_does_not_hang_on_the_order_of_keys_nor_on_the_time_zone() -> None:
    template = NoteTemplate(key="k", edition=1)
    author = Practitioner(fhir_id="a")
    one, other = (
        ClinicalNote(
            title="T",
            content=content,
            written_at=datetime(2026, 3, 5, 9, 30, tzinfo=UTC).astimezone(zone),
            signed_at=datetime(2026, 3, 5, 9, 31, tzinfo=UTC),
            confidentiality="N",
            language="en",
        )
        for content, zone in (
            ({"a": 1, "b": {"c": "ü", "d": 5.0}}, UTC),
            ({"b": {"d": 5, "c": "ü"}, "a": 1.0}, datetime.now().astimezone().tzinfo),
        )
    )
    digest = notes.digest_of(one, author, template)
    assert digest == notes.digest_of(other, author, template)
    other.title = "t"
    assert digest != notes.digest_of(other, author, template)


# ---- who may read what ---------------------------------------------------------------------------------------------


def test_confidential_notes_are_open_to_the_care_and_to_whoever_signs(
    people: Hospital, acting: Acting, granted: Callable[..., None]
) -> None:
    patient = people.patients[6]
    with acting("doctor"):
        found = {level: signed(patient, confidentiality=level).id for level in "NRV"}
    with acting("second"):
        assert [note.id for note in notes.of_patient(guard.session(), patient)] == [found["N"]]
        assert [hit.note.id for hit in notes.search(guard.session(), "Bronchitis", patient_id=patient)] == [found["N"]]
        for level in "RV":
            with pytest.raises(NotFound):
                notes.open_note(guard.session(), found[level])
            with pytest.raises(NotFound):
                do(notes.addendum, found[level])
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.add(
            Encounter(
                patient_id=patient,
                status="finished",
                class_code="AMB",
                started_at=now(),
                ended_at=now(),
                branch_id=people.branches[0],
                practitioner_id=people.staff["second"],
            )
        )
    with acting("second"):
        seen = {note.id for note in notes.of_patient(guard.session(), patient)}
        assert seen == {found["N"], found["R"]}


def test_emergency_access_opens_confidential_notes(
    people: Hospital, acting: Acting, granted: Callable[..., None]
) -> None:
    from app.policy import MATRIX, may

    patient = people.patients[7]
    with acting("doctor"):
        found = {level: signed(patient, confidentiality=level).id for level in "RV"}
    doctor = MATRIX[Role.DOCTOR]
    granted(
        "Doctor",
        **{
            name: may(" ".join(sorted(grant.actions)), rows=RowScope.CARE_TEAM)
            for name, grant in doctor.items()
            if name in ("Patient", "ClinicalNote", "Encounter")
        },
    )
    with acting("second"):
        assert not notes.of_patient(guard.session(), patient)
        do(emergencies.break_glass, patient_id=patient, reason="ETREAT", justification="Found on the street")
    with acting("second"):
        assert {note.id for note in notes.of_patient(guard.session(), patient)} == set(found.values())


@pytest.mark.parametrize("username", [name for name in factories.PEOPLE if name != "doctor"])
def test_nobody_but_clinicians_sees_a_note(
    username: str, people: Hospital, client_as: ClientAs, acting: Acting
) -> None:
    with acting("doctor"):
        note = signed(people.patients[0], {**SOAP, "plan": "SECRET-PLAN"})
    client = client_as(username)
    for path in (
        f"/patients/{people.patients[0]}/notes/",
        f"/patients/{people.patients[0]}/notes/new",
        f"/notes/{note.id}/",
        f"/notes/{note.id}/edit",
        f"/notes/{note.id}/sign",
        f"/notes/{note.id}/note.pdf",
        f"/notes/{note.id}/versions/{note.id}",
        "/notes/",
        "/notes/find?q=SECRET",
    ):
        answer = client.get(path)
        assert answer.status_code == 403, path
        assert "SECRET-PLAN" not in answer.text
        assert "Bronchitis" not in answer.text


# ---- searching -----------------------------------------------------------------------------------------------------


def test_words_are_found_as_written_and_as_the_language_bends_them(
    people: Hospital, acting: Acting, trail_lines: TrailLines
) -> None:
    patient = people.patients[8]
    with acting("doctor"):
        spanish = signed(patient, {**SOAP, "subjective": "Le duelen los riñones desde el lunes"})

        def ids(asked: str) -> list[int]:
            return [hit.note.id for hit in notes.search(guard.session(), asked, patient_id=patient)]

        assert ids("riñones") == ids("riñón") == ids("duele") == [spanish.id]
        assert ids('"los riñones"') == [spanish.id]
        assert ids('"lunes riñones"') == ids("riñones -lunes") == ids("hígado") == []
        assert ids("hígado or lunes") == [spanish.id]
        trail_lines.forget()
        for nonsense in ("'; DROP TABLE patient; --", "& | ! ( :*", '"', "-", "\x00", "a" * 5000, "   "):
            assert ids(nonsense) == []
        hit = notes.search(guard.session(), "riñones", patient_id=patient)[0]
        start, length = hit.marks[0]
        assert hit.snippet[start : start + length] == "riñones"
    last = trail_lines.events()[-1]
    assert last["query"] == "ClinicalNote by words"
    assert "riñones" not in json.dumps(trail_lines.entries(), default=str, ensure_ascii=False)


# ---- pages ---------------------------------------------------------------------------------------------------------


def page_of(client: Browser, patient_id: int, template: str = "soap") -> str:
    """Begin a note through the pages; gives the address of its form."""
    answer = client.submit(f"/patients/{patient_id}/notes/new", {"template": template})
    assert answer.status_code == 302
    address: str = answer.headers["Location"]
    assert address.endswith("/edit")
    return address


def key_of(address: str) -> int:
    return int(re.findall(r"/notes/(\d+)/", address)[0])


def test_a_note_goes_through_the_pages(people: Hospital, client_as: ClientAs) -> None:
    client = client_as("doctor")
    address = page_of(client, people.patients[9])
    key = key_of(address)
    fields = {f"f.{name}": text for name, text in SOAP.items()}
    kept = client.submit(address, {**fields, "do": "save"})
    assert (kept.status_code, kept.headers["Location"]) == (302, address)
    asked = client.submit(address, {**fields, "title": f"Cough {SCRIPT}", "do": "sign"})
    assert asked.headers["Location"] == f"/notes/{key}/sign"
    done = client.submit(f"/notes/{key}/sign")
    assert done.headers["Location"] == f"/notes/{key}/"
    page = client.page(f"/notes/{key}/")
    assert stored(ClinicalNote, key)["digest"] in page
    assert "Coughs since Monday" in page
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    listing = client.page(f"/patients/{people.patients[9]}/notes/")
    assert SCRIPT not in listing
    assert "Dora Doctor" in listing
    assert "Hospital Norte" in listing
    assert "Cough" in client.page(f"/patients/{people.patients[9]}/notes/?q=monday")
    assert "No note has these words" in client.page(f"/patients/{people.patients[9]}/notes/?q=liver")
    assert client.get(address).status_code == 302, "the form of a signed note leads to the note"


def test_content_is_text_wherever_it_is_shown(people: Hospital, client_as: ClientAs) -> None:
    client = client_as("doctor")
    address = page_of(client, people.patients[9])
    key = key_of(address)
    fields = {f"f.{name}": f"{text} {SCRIPT} {{{{ 7*7 }}}}" for name, text in SOAP.items()}
    client.submit(address, {**fields, "do": "sign"})
    for path in (address, f"/notes/{key}/sign"):
        assert SCRIPT not in client.page(path), path
    client.submit(f"/notes/{key}/sign")
    client.post(f"/notes/{key}/amend", data={"csrf_token": csrf(client, key)})
    with guard.acting_as(service("note-check")):
        newer = guard.session().query(ClinicalNote).filter(ClinicalNote.replaces_id == key).one().id
    for path in (
        f"/notes/{key}/",
        f"/patients/{people.patients[9]}/notes/?q=coughs",
        "/notes/find?q=coughs",
        f"/notes/{newer}/versions/{key}",
        f"/notes/{newer}/edit",
    ):
        page = client.page(path)
        assert SCRIPT not in page, path
        assert " 49" not in page, path


def csrf(client: Browser, key: int) -> str:
    return str(re.findall(r'name="csrf-token" content="([^"]+)"', client.page(f"/notes/{key}/"))[0])


def test_autosave_keeps_tells_and_refuses(people: Hospital, client_as: ClientAs) -> None:
    from tests.conftest import filled

    client = client_as("doctor")
    address = page_of(client, people.patients[9], "admission")
    key, form = key_of(address), filled(client.page(address))
    draft = f"/notes/{key}/draft.json"
    answer = client.post(draft, data={**form, "f.complaint": "Pain", "f.examination.temperature": "38,5"})
    assert answer.status_code == 200, answer.text
    body = answer.get_json()
    assert re.fullmatch(r"Saved \d\d:\d\d", body["said"])
    assert stored(ClinicalNote, key)["content"] == {"complaint": "Pain", "examination": {"temperature": 38.5}}
    stale = client.post(draft, data={**form, "f.complaint": "Another window"})
    assert (stale.status_code, stale.get_json()["error"]) == (409, "Conflict")
    form["version"] = body["version"]
    wrong = client.post(draft, data={**form, "f.examination.pulse": "fast"})
    assert (wrong.status_code, wrong.get_json()["message"]) == (422, "Please look at: Heart rate.")
    large = client.post(draft, data={**form, "f.history": "x" * 1_000_000})
    assert large.status_code == 413
    middling = client.post(draft, data={**form, "f.history": "x" * 300_000})
    assert (middling.status_code, middling.get_json()["error"]) == (413, "TooLarge")
    assert client.post(draft, data={"f.complaint": "No token"}).status_code == 400
    assert stored(ClinicalNote, key)["content"] == {"complaint": "Pain", "examination": {"temperature": 38.5}}
    other = client_as("second")
    form["csrf_token"] = filled(other.page(f"/patients/{people.patients[9]}/notes/new"))["csrf_token"]
    assert other.post(draft, data={**form, "f.complaint": "Not mine"}).status_code == 403
    assert stored(ClinicalNote, key)["version"] == body["version"]


def test_a_conflict_in_the_form_loses_no_text(people: Hospital, client_as: ClientAs) -> None:
    from tests.conftest import filled

    client = client_as("doctor")
    address = page_of(client, people.patients[9])
    form = filled(client.page(address))
    assert client.post(address, data={**form, "f.plan": "First window"}).status_code == 302
    answer = client.post(address, data={**form, "f.plan": "Second window"})
    assert answer.status_code == 409
    assert "Second window" in answer.text
    assert "changed in another window" in answer.text
    again = client.post(address, data={**filled(answer.text), "f.plan": "Second window"})
    assert again.status_code == 409, "what was not seen is not overwritten by sending it once more"
    assert stored(ClinicalNote, key_of(address))["content"] == {"plan": "First window"}


def test_signing_an_incomplete_note_shows_what_is_missing(people: Hospital, client_as: ClientAs) -> None:
    client = client_as("doctor")
    address = page_of(client, people.patients[9])
    answer = client.submit(address, {"f.subjective": "Coughs", "do": "sign"})
    assert answer.status_code == 422
    assert re.search(r'<a href="#f-plan">Plan</a>: Please fill this in', answer.text)
    assert "Coughs" in answer.text
    assert client.get(f"/notes/{key_of(address)}/sign").status_code == 422
    assert stored(ClinicalNote, key_of(address))["signed_at"] is None


def test_a_draft_has_no_pdf_and_a_signed_note_has(people: Hospital, client_as: ClientAs, acting: Acting) -> None:
    client = client_as("doctor")
    with acting("doctor"):
        draft, note = saved(begun(people.patients[2])), signed(people.patients[2])
    answer = client.get(f"/notes/{draft.id}/note.pdf")
    assert answer.status_code == 409
    assert "A draft is not printed" in answer.text
    paper = client.get(f"/notes/{note.id}/note.pdf")
    assert (paper.status_code, paper.mimetype) == (200, "application/pdf")
    words = "".join(page.extract_text() for page in PdfReader(io.BytesIO(paper.data)).pages)
    assert "Coughs since Monday" in words
    assert stored(ClinicalNote, note.id)["digest"] in re.sub(r"\s", "", words)


def test_second_thoughts_are_refused_on_the_page_too(people: Hospital, client_as: ClientAs, acting: Acting) -> None:
    with acting("doctor"):
        note = signed(people.patients[2])
    client, other = client_as("doctor"), client_as("second")
    before = stored(ClinicalNote, note.id)
    token = csrf(client, note.id)
    for path, status in ((f"/notes/{note.id}/sign", 409), (f"/notes/{note.id}/cosign", 403)):
        answer = client.post(path, data={"csrf_token": token, "version": note.version})
        assert answer.status_code == status, path
        assert "Coughs since Monday" in answer.text
    token = csrf(other, note.id)
    for path in (f"/notes/{note.id}/sign", f"/notes/{note.id}/withdraw", f"/notes/{note.id}/amend"):
        answer = other.post(path, data={"csrf_token": token, "version": note.version, "reason": "Not my opinion"})
        assert answer.status_code == 403, path
    assert stored(ClinicalNote, note.id) == before
    gone = client.post(f"/notes/{note.id}/withdraw", data={"csrf_token": csrf(client, note.id), "reason": "x"})
    assert gone.status_code == 422
    client.post(f"/notes/{note.id}/withdraw", data={"csrf_token": csrf(client, note.id), "reason": "Wrong patient"})
    page = client.page(f"/notes/{note.id}/")
    assert "Wrong patient" in page
    assert "note-struck" in page
    assert "Coughs since Monday" in page


def test_what_waits_is_listed_and_counted_in_the_navigation(
    people: Hospital, client_as: ClientAs, acting: Acting
) -> None:
    with acting("trainee"):
        note = signed(people.patients[10], title="Ward round")
    client = client_as("doctor")
    page = client.page("/notes/")
    assert "Ward round" in page
    with acting("doctor"):
        count = notes.waiting_count(guard.session())
    assert re.search(rf'<span>My notes</span> <span class="count">{count}</span>', client.page("/"))
    client.post(f"/notes/{note.id}/cosign", data={"csrf_token": csrf(client, note.id)})
    assert stored(ClinicalNote, note.id)["cosigned_at"] is not None
    with acting("doctor"):
        assert notes.waiting_count(guard.session()) == count - 1


def test_a_template_is_made_and_changed_without_code(people: Hospital, client_as: ClientAs) -> None:
    client = client_as("admin")
    lines = {
        "name": "Dressing",
        "kind": "procedure",
        "label-0": "Wound",
        "kind-0": "area",
        "required-0": "on",
        "order-0": "2",
        "label-1": "Look",
        "kind-1": "choice",
        "choices-1": "Clean\nInfected\n",
        "order-1": "1",
        "label-2": "Size",
        "kind-2": "number",
        "unit-2": "cm",
        "maximum-2": "40",
        "section-2": "Measured",
    }
    preview = client.submit("/note-templates/new", {**lines, "do": "preview"})
    assert preview.status_code == 200
    assert "shape-preview" in preview.text
    before = number_of(NoteTemplate)
    bad = client.submit("/note-templates/new", {**lines, "choices-1": "", "do": "save"})
    assert bad.status_code == 422
    assert "needs choices" in bad.text
    assert number_of(NoteTemplate) == before
    answer = client.submit("/note-templates/new", {**lines, "do": "save"})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/note-templates/of/dressing")
    with guard.acting_as(service("note-check")):
        shape = note_shape.fields(note_templates.current_edition(guard.session(), "dressing").schema)
    assert [(f.path, f.kind, f.required) for f in shape] == [
        ("look", "choice", False),
        ("wound", "area", True),
        ("measured", "section", False),
    ]
    assert [(f.path, f.unit, f.maximum) for f in shape[2].fields] == [("measured.size", "cm", 40)]
    again = client.submit(
        "/note-templates/of/dressing", {"label-0": "Looks", "choices-0": "Clean\nInfected", "do": "save"}
    )
    assert again.status_code == 302
    with guard.acting_as(service("note-check")):
        template = note_templates.current_edition(guard.session(), "dressing")
    assert template.edition == 2
    assert note_shape.fields(template.schema)[0].label == "Looks"
    assert note_shape.fields(template.schema)[0].path == "look", "a field keeps its name when it is called another way"
    stale = client.submit("/note-templates/of/dressing", {"seen": "1", "choices-0": "Clean", "do": "save"})
    assert stale.status_code == 409
    expert = client.submit(
        "/note-templates/of/dressing?as=json", {"as": "json", "schema": '{"type": "object", "oneOf": []}', "do": "save"}
    )
    assert expert.status_code == 422
    assert "oneOf" in expert.text
    client.post("/note-templates/of/dressing/retire", data={"csrf_token": csrf_of_page(expert.text)})
    page = client.page("/note-templates/")
    assert "Retired" in page
    assert client_as("doctor").get("/note-templates/").status_code == 403


def csrf_of_page(page: str) -> str:
    return str(re.findall(r'name="csrf-token" content="([^"]+)"', page)[0])
