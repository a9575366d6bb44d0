"""What roles amount to, alone and together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from app import policy
from app.actor import Actor, nobody, service
from app.policy import (
    MATRIX,
    NARRATIVE,
    NOTES,
    NOTHING,
    RESOURCES,
    Grant,
    Reach,
    Rights,
    Role,
    as_role,
    combine,
    may,
    shipped,
)
from models.access import EmergencyAccess
from models.clinical import Observation
from models.codes import RowScope
from models.figures import Figure
from models.organization import Branch, Organization
from models.patients import Patient

ALL = {resource: Grant(frozenset(possible)) for resource, possible in policy.POSSIBLE.items()}
"""Everything that can be ticked, ticked."""
OWN_BRANCH, SELF = Reach(frozenset({RowScope.OWN_BRANCH})), Reach(frozenset({RowScope.SELF}))


def rights(*roles: str, **more: Mapping[str, Grant]) -> Rights:
    """What the shipped roles, and further ones with these grants, amount to together."""
    return combine({**{role: MATRIX[role] for role in roles}, **more})


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
    everything = rights(role, ticked=ALL)
    assert not [pair for pair in everything.actions if pair[1] in NOTES]
    assert everything.hidden("DiagnosticReport") >= set(NARRATIVE)
    assert both.hidden("DiagnosticReport") >= set(NARRATIVE)


@pytest.mark.parametrize("action", ["create", "update", "delete"])
def test_each_way_of_configuring_roles_bars_from_notes(action: str) -> None:
    own = rights(x={"Role": may(action), "ClinicalNote": may("read"), "DiagnosticReport": may("read")})
    assert own.actions == {(action, "Role"), ("read", "DiagnosticReport")}
    assert own.hidden("DiagnosticReport") == set(NARRATIVE)
    assert rights(x={"Role": may("read"), "ClinicalNote": may("read")}).may("read", "ClinicalNote")


def test_nobody_is_shipped_with_the_right_to_remove_a_record() -> None:
    nobodys = {"User", "Role", "WorkingHours", "ScheduleException"}
    for role, grants in MATRIX.items():
        removable = {resource for resource, grant in grants.items() if "delete" in grant.actions}
        assert removable <= nobodys, role
    assert {resource for resource, possible in policy.POSSIBLE.items() if "delete" in possible} == nobodys


def test_what_cannot_be_done_at_all_is_not_granted_by_ticking_it() -> None:
    own = rights(x={"AuditEvent": may("read create update delete"), "Patient": may("delete"), "Figure": may("update")})
    assert own.actions == {("read", "AuditEvent")}


def test_nobody_writes_the_trail() -> None:
    for grants in (*MATRIX.values(), *policy.SERVICES.values()):
        assert "AuditEvent" not in grants or grants["AuditEvent"].actions == {"read"}


def test_the_rows_of_two_roles_add_up() -> None:
    vital, laboratory = Reach(kinds=frozenset({"vital-signs"})), Reach(kinds=frozenset({"laboratory"}))
    pair = ("read", "Observation")
    assert rights(Role.NURSE).reach[pair] == (vital,)
    assert rights(Role.LAB_TECHNICIAN).reach[pair] == (laboratory,)
    assert set(rights(Role.NURSE, Role.LAB_TECHNICIAN).reach[pair]) == {vital, laboratory}
    assert pair not in rights(Role.NURSE, Role.DOCTOR).reach
    assert rights(Role.NURSE, Role.PATIENT).reach[pair] == (vital,)


def test_an_action_reaches_only_the_rows_of_the_roles_that_grant_it() -> None:
    """Seeing the chain by one role and changing one's own branch by another is not changing the chain."""
    own = rights(reader={"Patient": may("read")}, changer={"Patient": may("read update", rows=RowScope.OWN_BRANCH)})
    assert ("read", "Patient") not in own.reach
    assert own.reach["update", "Patient"] == (OWN_BRANCH,)


def test_a_note_is_changed_by_whoever_wrote_it() -> None:
    assert ("read", "ClinicalNote") not in rights(Role.DOCTOR).reach
    assert rights(Role.DOCTOR).reach["update", "ClinicalNote"] == (policy.MADE,)
    narrow = rights(x={"ClinicalNote": may("update", rows=RowScope.OWN_BRANCH)})
    assert narrow.reach["update", "ClinicalNote"] == (Reach(frozenset({RowScope.OWN, RowScope.OWN_BRANCH})),)


def test_a_field_is_masked_only_where_every_role_masks_it() -> None:
    assert rights(Role.RECEPTIONIST).hidden("Encounter") == {"reason"}
    assert not rights(Role.RECEPTIONIST, Role.BILLING_CLERK).hidden("Encounter")
    assert rights(Role.RECEPTIONIST, Role.PHARMACIST).hidden("Encounter") == {"reason"}
    assert rights(Role.PRIVACY_OFFICER).hidden("Patient") == set(policy.CONTACT)
    assert not rights(Role.PRIVACY_OFFICER, Role.PHARMACIST).hidden("Patient")
    assert rights(Role.LAB_TECHNICIAN).hidden("PatientIdentifier") == {"value"}


def test_a_field_one_role_may_see_is_not_thereby_changed_by_another() -> None:
    own = rights(seer={"Patient": may("read")}, changer={"Patient": may("read update", masked=["telecom"])})
    assert not own.hidden("Patient")
    assert own.hidden("Patient", "update") == {"telecom"}


def test_what_nobody_has_said_for_a_role_keeps_the_narrative_back() -> None:
    assert policy.stored("DiagnosticReport", None, None, None).masked == set(NARRATIVE)
    assert policy.stored("Patient", None, None, None) == Grant()
    assert policy.stored("DiagnosticReport", "own_branch", [], ["conclusion"]) == may(
        "", rows=RowScope.OWN_BRANCH, masked=["conclusion"]
    )


def test_what_is_ticked_for_patients_is_only_ever_their_own() -> None:
    further: list[dict[str, Mapping[str, Grant]]] = [{}, {"volunteer": {}}, {"volunteer": {"Room": may("read")}}]
    for more in further:
        ticked = {**MATRIX[Role.PATIENT], "Observation": may("read"), "DiagnosticReport": may("read update")}
        both = combine({Role.PATIENT: ticked, **more})
        for resource in ("Patient", "Observation", "DiagnosticReport", "Encounter"):
            assert both.reach["read", resource] == (SELF,)
        assert both.reach["update", "DiagnosticReport"] == (SELF,)


# ---- looking at the house as a role --------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_as_a_role_one_only_reads_and_never_a_note(role: Role) -> None:
    seen = as_role(rights(role), rights(Role.ADMIN))
    assert {action for action, _ in seen.actions} <= {"read"}
    assert not {resource for _, resource in seen.actions} & set(NOTES)
    assert seen.actions <= rights(role).actions
    if seen.may("read", "DiagnosticReport"):
        assert seen.hidden("DiagnosticReport") >= set(NARRATIVE)


def test_as_a_role_nobody_sees_more_than_they_do_themselves() -> None:
    own = rights(x={"Role": may("update"), "Patient": may("read", rows=RowScope.OWN_BRANCH, masked=["telecom"])})
    seen = as_role(rights(Role.DOCTOR), own)
    assert seen.actions == {("read", "Patient")}
    assert seen.reach["read", "Patient"] == (OWN_BRANCH,)
    assert seen.hidden("Patient") == {"telecom"}
    narrowed = as_role(rights(x={"Patient": may("read", rows=RowScope.CARE_TEAM)}), own)
    assert narrowed.reach["read", "Patient"] == (Reach(frozenset({RowScope.OWN_BRANCH, RowScope.CARE_TEAM})),)
    kinds = as_role(rights(Role.NURSE), rights(x={"Role": may("update"), "Observation": may("read", kinds=["exam"])}))
    assert kinds.reach["read", "Observation"] == (Reach(kinds=frozenset()),)


# ---- rows ----------------------------------------------------------------------------------------------------------


def shown(scope: RowScope, model: Any, **who: Any) -> str:
    """A scope as SQL, for somebody."""
    return str(Reach(frozenset({scope})).condition(model, Actor(name="x", roles=(), rights=NOTHING, **who)))


def test_a_patient_without_a_record_sees_nothing() -> None:
    assert shown(RowScope.SELF, Patient) == "false"
    assert shown(RowScope.SELF, Branch, patient_id=7) == "false"
    assert "patient.id = " in shown(RowScope.SELF, Patient, patient_id=7)
    assert "observation.patient_id = " in shown(RowScope.SELF, Observation, patient_id=7)


def test_rows_of_nobody_in_particular() -> None:
    assert "registered_at_id IN" in shown(RowScope.OWN_BRANCH, Observation, branch_ids=(3,))
    assert "figure.branch_id IN" in shown(RowScope.OWN_BRANCH, Figure, branch_ids=(3,))
    assert shown(RowScope.OWN_BRANCH, Organization, branch_ids=(3,)) == "false"
    assert shown(RowScope.CARE_TEAM, Patient) == "false"
    assert shown(RowScope.CARE_TEAM, Branch, practitioner_id=3) == "false"
    assert shown(RowScope.OWN, Patient, user_id=None) == "false"


def test_emergency_access_stands_in_for_whose_patient_it_is_and_for_nothing_else() -> None:
    glass = {"branch_ids": (3,), "practitioner_id": 4, "emergencies": (9,), "user_id": 1}
    assert "patient.id IN" in shown(RowScope.CARE_TEAM, Patient, **glass).split(" OR ")[-1]
    assert "patient_id IN" in shown(RowScope.OWN_BRANCH, Observation, **glass).split(" OR ")[-1]
    assert "patient_id IN" not in shown(RowScope.SELF, Observation, patient_id=7, **glass)
    assert "IN" not in shown(RowScope.OWN, EmergencyAccess, **glass)
    who = Actor(name="x", roles=(), rights=NOTHING, branch_ids=(3,), emergencies=(9,))
    both = Reach(frozenset({RowScope.OWN_BRANCH}), frozenset({"vital-signs"})).condition(Observation, who)
    assert " AND observation.category IN" in str(both)


def test_every_service_has_a_policy_of_its_own_and_no_other_exists() -> None:
    for name in policy.SERVICES:
        assert service(name).rights.actions == shipped(policy.SERVICES[name])
        assert service(name).user_id is None
    with pytest.raises(KeyError):
        service("anybody")
    for grants in policy.SERVICES.values():
        assert not (policy.CONFIGURES & shipped(grants) and set(grants) & set(NOTES))
