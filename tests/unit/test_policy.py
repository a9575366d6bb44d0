"""What roles amount to, alone and together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app import policy
from app.actor import Actor, nobody, service
from app.policy import MATRIX, NARRATIVE, NOTES, NOTHING, RESOURCES, Rights, Role, combine, shipped
from models.clinical import Observation
from models.organization import Branch
from models.patients import Patient

ALL = frozenset((action, resource) for action in policy.ACTIONS for resource in RESOURCES)


def rights(*roles: str, **more: set[tuple[str, str]]) -> Rights:
    """What the shipped roles, and further ones with these pairs, amount to together."""
    granted = {role: shipped(MATRIX[role]) for role in roles}
    return combine({**granted, **{name: frozenset(pairs) for name, pairs in more.items()}})


def test_no_role_is_no_right() -> None:
    assert combine({}) == NOTHING
    assert not NOTHING.may("read", "Patient")
    assert not nobody().may("read", "Organization")


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("resource", RESOURCES)
def test_a_shipped_role_may_what_the_matrix_says(role: Role, resource: str) -> None:
    grant = MATRIX[role].get(resource)
    for action in policy.ACTIONS:
        assert rights(role).may(action, resource) == (grant is not None and action in grant.actions)


@pytest.mark.parametrize("role", Role)
def test_whoever_configures_roles_reads_no_notes(role: Role) -> None:
    both = rights(Role.ADMIN, role)
    assert not [pair for pair in both.actions if pair[1] in NOTES]
    everything = rights(role, ticked=set(ALL))
    assert not [pair for pair in everything.actions if pair[1] in NOTES]
    assert everything.masked["DiagnosticReport"] >= set(NARRATIVE)
    assert both.masked["DiagnosticReport"] >= set(NARRATIVE)


def test_nobody_is_shipped_with_the_right_to_remove_a_record() -> None:
    for role, grants in MATRIX.items():
        removable = {resource for resource, grant in grants.items() if "delete" in grant.actions}
        assert removable <= {"User", "Role"}, role


def test_nobody_writes_the_trail() -> None:
    for grants in (*MATRIX.values(), *policy.SERVICES.values()):
        assert "AuditEvent" not in grants or grants["AuditEvent"].actions == {"read"}


def test_of_two_roles_the_wider_rows_count() -> None:
    assert rights(Role.NURSE).rows["Observation"] is policy.vital_signs
    assert rights(Role.LAB_TECHNICIAN).rows["Observation"] is policy.laboratory
    assert "Observation" not in rights(Role.NURSE, Role.DOCTOR).rows
    assert rights(Role.NURSE, Role.PATIENT).rows["Observation"] is policy.vital_signs


def test_a_field_is_masked_only_where_every_role_masks_it() -> None:
    assert rights(Role.RECEPTIONIST).masked == {"Encounter": {"reason"}}
    assert "Encounter" not in rights(Role.RECEPTIONIST, Role.BILLING_CLERK).masked
    assert rights(Role.RECEPTIONIST, Role.PHARMACIST).masked["Encounter"] == {"reason"}
    assert rights(Role.PRIVACY_OFFICER).masked["Patient"] == set(policy.CONTACT)
    assert "Patient" not in rights(Role.PRIVACY_OFFICER, Role.PHARMACIST).masked


def test_a_role_of_the_hospital_s_own_sees_no_narrative() -> None:
    own = rights(volunteer={("read", "DiagnosticReport"), ("read", "Patient")})
    assert own.masked == {"DiagnosticReport": set(NARRATIVE)}
    assert own.rows == {}


def test_what_is_ticked_for_patients_is_only_ever_their_own() -> None:
    for further in ({}, {"volunteer": set()}, {"volunteer": {("read", "Room")}}):
        granted = {
            Role.PATIENT: shipped(MATRIX[Role.PATIENT]) | {("read", "Observation"), ("read", "DiagnosticReport")}
        }
        both = combine({**granted, **{name: frozenset(pairs) for name, pairs in further.items()}})
        for resource in ("Patient", "Observation", "DiagnosticReport", "Encounter"):
            assert both.rows[resource] is policy.self_only


def test_a_patient_without_a_record_sees_nothing() -> None:
    lost = Actor(name="x", roles=("Patient",), rights=rights(Role.PATIENT))
    assert str(policy.self_only(Patient, lost)) == "false"
    assert str(policy.self_only(Branch, replace(lost, patient_id=7))) == "false"
    assert "patient.id = " in str(policy.self_only(Patient, replace(lost, patient_id=7)))
    assert "observation.patient_id = " in str(policy.self_only(Observation, replace(lost, patient_id=7)))


def test_own_branch_is_a_row_scope_that_reads_as_a_sentence() -> None:
    here = Actor(name="x", roles=(), rights=NOTHING, branch_ids=(3,))
    assert "registered_at_id IN" in str(policy.own_branch(Observation, here))
    assert str(policy.own_branch(Branch, here)) == "false"


def test_every_service_has_a_policy_of_its_own_and_no_other_exists() -> None:
    for name in policy.SERVICES:
        assert service(name).rights.actions == shipped(policy.SERVICES[name])
        assert service(name).user_id is None
    with pytest.raises(KeyError):
        service("anybody")
    assert service("setup").rights.actions == frozenset()
