"""The shipped access matrix: resource x role -> actions, rows and masked fields.

The actions are only the defaults: they are seeded once into Flask-AppBuilder's role and permission tables, where an
administrator edits them. What stands under NEVER holds whatever those tables say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, false, select

from models.codes import PurposeOfUse
from models.patients import Patient

if TYPE_CHECKING:
    from app.actor import Actor


class Role(StrEnum):
    """Who a person is to the hospital. These come with the product; an administrator may add others."""

    ADMIN = "Admin"
    DOCTOR = "Doctor"
    NURSE = "Nurse"
    RECEPTIONIST = "Receptionist"
    LAB_TECHNICIAN = "LabTechnician"
    PHARMACIST = "Pharmacist"
    BILLING_CLERK = "BillingClerk"
    PRIVACY_OFFICER = "PrivacyOfficer"
    PATIENT = "Patient"


SPOKEN: dict[str, str] = {
    Role.ADMIN: "Administrator",
    Role.DOCTOR: "Doctor",
    Role.NURSE: "Nurse",
    Role.RECEPTIONIST: "Receptionist",
    Role.LAB_TECHNICIAN: "Laboratory",
    Role.PHARMACIST: "Pharmacist",
    Role.BILLING_CLERK: "Billing",
    Role.PRIVACY_OFFICER: "Privacy officer",
    Role.PATIENT: "Patient",
}
"""The hospital's words for the roles."""

PURPOSE: dict[str, PurposeOfUse] = {
    Role.ADMIN: PurposeOfUse.HSYSADMIN,
    Role.PRIVACY_OFFICER: PurposeOfUse.HOPERAT,
    Role.BILLING_CLERK: PurposeOfUse.HOPERAT,
    Role.RECEPTIONIST: PurposeOfUse.HOPERAT,
    Role.PATIENT: PurposeOfUse.PATRQT,
}
"""Why a role looks at records, where it says nothing else; everybody else treats."""

# ---- rows ------------------------------------------------------------------------------------------------------

Scope = Callable[[Any, "Actor"], "ColumnElement[bool] | None"]
"""A predicate on one resource for one actor; None where every row is open."""


def chain(_model: Any, _actor: Actor) -> None:
    """Every row of the chain."""


def self_only(model: Any, actor: Actor) -> ColumnElement[bool]:
    """Only what belongs to the patient who is signed in."""
    if model.patient_key is None or actor.patient_id is None:
        return false()
    return getattr(model, model.patient_key) == actor.patient_id  # type: ignore[no-any-return]


def vital_signs(model: Any, _actor: Actor) -> ColumnElement[bool]:
    """Only observations that are vital signs."""
    return model.category == "vital-signs"  # type: ignore[no-any-return]


def laboratory(model: Any, _actor: Actor) -> ColumnElement[bool]:
    """Only observations and reports of the laboratory."""
    return model.category == "laboratory"  # type: ignore[no-any-return]


def own_branch(model: Any, actor: Actor) -> ColumnElement[bool]:
    """Only patients registered at a branch the actor works at, and what belongs to them."""
    patients = select(Patient.id).where(Patient.registered_at_id.in_(actor.branch_ids)).scalar_subquery()
    if model.patient_key is None:
        return false()
    return getattr(model, model.patient_key).in_(patients)  # type: ignore[no-any-return]


WIDTH: tuple[Scope, ...] = (self_only, vital_signs, laboratory, own_branch, chain)
"""From narrow to wide: of a person's several roles the widest scope counts."""

# ---- the matrix ------------------------------------------------------------------------------------------------

ACTIONS = ("read", "create", "update", "delete")


@dataclass(frozen=True)
class Grant:
    """What one role may do with one resource."""

    actions: frozenset[str]
    rows: Scope = chain
    masked: frozenset[str] = frozenset()


def may(actions: str, rows: Scope = chain, masked: Iterable[str] = ()) -> Grant:
    """`may("read update", masked=["address"])`, as the matrix below writes it."""
    return Grant(frozenset(actions.split()), rows, frozenset(masked))


REFERENCE = ("Organization", "Branch", "Practitioner", "Room")
"""About the hospital and nobody's record: seeing them is not recorded, changing them is."""
CLINICAL = (
    "Encounter",
    "Condition",
    "AllergyIntolerance",
    "Observation",
    "Procedure",
    "Immunization",
    "DiagnosticReport",
    "MedicationRequest",
)
NOTES = ("ClinicalNote", "DocumentReference", "SourceResource")
"""What clinicians wrote in words, wherever it is kept."""
RESOURCES = (
    *REFERENCE,
    "Patient",
    "PatientIdentifier",
    "PatientLink",
    *CLINICAL,
    *NOTES,
    "AuditEvent",
    "User",
    "Role",
)

NARRATIVE = ("presented_form", "conclusion")
CONTACT = ("telecom", "address", "contact", "photo", "search_phone")

_reference = {name: may("read") for name in REFERENCE}
_index = {"Patient": may("read"), "PatientIdentifier": may("read")}

MATRIX: dict[str, dict[str, Grant]] = {
    Role.ADMIN: {
        **{name: may("read create update") for name in REFERENCE},
        **{name: may("read") for name in CLINICAL},
        "DiagnosticReport": may("read", masked=NARRATIVE),
        "Patient": may("read create update"),
        "PatientIdentifier": may("read create update"),
        "PatientLink": may("read update"),
        "AuditEvent": may("read"),
        "User": may("read create update delete"),
        "Role": may("read create update delete"),
    },
    Role.DOCTOR: {
        **_reference,
        **{name: may("read create update") for name in CLINICAL},
        "Patient": may("read create update"),
        "PatientIdentifier": may("read create update"),
        "ClinicalNote": may("read create update"),
        "DocumentReference": may("read create"),
        "SourceResource": may("read"),
    },
    Role.NURSE: {
        **_reference,
        "Patient": may("read create update"),
        "PatientIdentifier": may("read create update"),
        "Encounter": may("read"),
        "AllergyIntolerance": may("read create update"),
        "Observation": may("read create update", rows=vital_signs),
        "MedicationRequest": may("read"),
        "Immunization": may("read"),
    },
    Role.RECEPTIONIST: {
        **_reference,
        "Patient": may("read create update"),
        "PatientIdentifier": may("read create update"),
        "PatientLink": may("read update"),
        "Encounter": may("read", masked=["reason"]),
    },
    Role.LAB_TECHNICIAN: {
        **_reference,
        **_index,
        "Observation": may("read", rows=laboratory),
        "DiagnosticReport": may("read", masked=["presented_form"]),
    },
    Role.PHARMACIST: {
        **_reference,
        **_index,
        "AllergyIntolerance": may("read"),
        "MedicationRequest": may("read"),
    },
    Role.BILLING_CLERK: {
        **_reference,
        **_index,
        "Encounter": may("read"),
    },
    Role.PRIVACY_OFFICER: {
        **_reference,
        "Patient": may("read", masked=CONTACT),
        "AuditEvent": may("read"),
    },
    Role.PATIENT: {
        **_reference,
        "Patient": may("read", rows=self_only),
        "PatientIdentifier": may("read", rows=self_only),
        "Encounter": may("read", rows=self_only),
        "AllergyIntolerance": may("read", rows=self_only),
        "MedicationRequest": may("read", rows=self_only),
        "Immunization": may("read", rows=self_only),
    },
}

SERVICES: dict[str, dict[str, Grant]] = {
    "setup": {},
    "demo": {name: may("read create update") for name in RESOURCES if name not in ("AuditEvent", "ClinicalNote")},
    "import": {
        **{name: may("read create update") for name in (*CLINICAL, "DocumentReference", "SourceResource")},
        **{
            name: may("read create update") for name in ("Organization", "Practitioner", "Patient", "PatientIdentifier")
        },
        "Branch": may("read"),
    },
    "duplicates": {
        "Organization": may("read"),
        "Patient": may("read"),
        "PatientIdentifier": may("read"),
        "PatientLink": may("read create update"),
    },
}
"""What the application does by itself, each under a name and a policy of its own."""

# ---- what an administrator cannot grant away --------------------------------------------------------------------

NEVER: tuple[tuple[tuple[str, str], tuple[str, ...]], ...] = ((("update", "Role"), NOTES),)
"""Whoever holds the pair on the left has nothing at all on the resources on the right, nor a report's narrative."""


@dataclass(frozen=True)
class Rights:
    """What a set of roles amounts to."""

    actions: frozenset[tuple[str, str]]
    rows: dict[str, Scope] = field(default_factory=dict)
    masked: dict[str, frozenset[str]] = field(default_factory=dict)

    def may(self, action: str, resource: str) -> bool:
        """Whether the action on the resource is granted, for some row at least."""
        return (action, resource) in self.actions


NOTHING = Rights(frozenset())


def combine(granted: dict[str, frozenset[tuple[str, str]]]) -> Rights:
    """The rights of a person whose roles carry these (action, resource) pairs.

    Actions add up, the widest rows count, a field is masked only where every role that may read it masks it. A role
    the product does not ship is scoped like no shipped one: the whole chain, with nothing masked but the narrative.
    """
    actions = frozenset().union(*granted.values()) if granted else frozenset()
    barred = False
    for holder, taboo in NEVER:
        if holder in actions:
            barred = True
            actions = frozenset(pair for pair in actions if pair[1] not in taboo)
    rows: dict[str, Scope] = {}
    masked: dict[str, frozenset[str]] = {}
    plain, of_nobody = Grant(frozenset()), Grant(frozenset(), self_only, frozenset(NARRATIVE))
    fallback = {"DiagnosticReport": may("", masked=NARRATIVE), "Patient": may("", masked=())}
    for resource in {resource for _, resource in actions}:
        grants = [
            MATRIX.get(role, {}).get(resource) or (of_nobody if role == Role.PATIENT else fallback.get(resource, plain))
            for role, pairs in granted.items()
            if any(pair[1] == resource for pair in pairs)
        ]
        if Role.PATIENT in granted and len(granted) == 1:
            rows[resource] = chain if resource in REFERENCE else self_only
        else:
            rows[resource] = max((grant.rows for grant in grants), key=WIDTH.index)
        hidden = frozenset.intersection(*(grant.masked for grant in grants))
        if barred and resource == "DiagnosticReport":
            hidden = hidden.union(NARRATIVE)
        if hidden:
            masked[resource] = hidden
    return Rights(actions, {k: v for k, v in rows.items() if v is not chain}, masked)


def shipped(grants: dict[str, Grant]) -> frozenset[tuple[str, str]]:
    """A column of the matrix as (action, resource) pairs."""
    return frozenset((action, resource) for resource, grant in grants.items() for action in grant.actions)


def service_rights(name: str) -> Rights:
    """The rights of a service by name. Raises KeyError for one without a policy of its own."""
    return Rights(shipped(SERVICES[name]))
