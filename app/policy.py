"""The shipped access matrix: resource x role -> actions, rows and masked fields.

These are only the defaults: actions are seeded once into Flask-AppBuilder's role and permission tables, rows and masks
into `role_grant` beside them, where an administrator edits them. What an administrator cannot grant away stands at the
end, and holds whatever those tables say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, select
from sqlalchemy.dialects.postgresql import array

from models.base import now
from models.clinical import Encounter, Observation
from models.codes import LABORATORY, LABORATORY_REPORTS, STANDING, Confidentiality, PurposeOfUse, RowScope
from models.hl7 import Hl7Message, Hl7Result
from models.lab import CriticalAttempt, CriticalResult, DiagnosticReport, ObservationHistory
from models.notes import ClinicalNote
from models.patients import Patient
from models.scheduling import BLOCKING, Appointment, WaitlistEntry

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

CARED_FOR_DAYS = 90
"""A visit this recent makes a patient one of the practitioner's own."""


def _no_further(_model: Any, _actor: Actor) -> None:
    """Every row of the chain."""


def _own_branch(model: Any, actor: Actor) -> ColumnElement[bool]:
    """Patients registered at a branch the actor works at, seen there or expected there, and what belongs to them."""
    if model.patient_key is None:
        return model.branch_id.in_(actor.branch_ids) if hasattr(model, "branch_id") else false()
    # Asked patient by patient: a list of everybody the branch has seen grows with the years, and is made for each page.
    key, patient, visit = getattr(model, model.patient_key), Patient.__table__.alias(), Encounter.__table__.alias()
    seen = select(visit.c.id).where(visit.c.patient_id == key, visit.c.branch_id.in_(actor.branch_ids))
    promised = Appointment.__table__.alias()
    coming = select(promised.c.id).where(
        promised.c.patient_id == key, promised.c.branch_id.in_(actor.branch_ids), promised.c.status.in_(BLOCKING)
    )
    if model is Patient:
        registered: ColumnElement[bool] = model.registered_at_id.in_(actor.branch_ids)
    else:
        here = select(patient.c.id).where(patient.c.id == key, patient.c.registered_at_id.in_(actor.branch_ids))
        registered = here.correlate_except(patient).exists()
    parts = [registered, seen.correlate_except(visit).exists(), coming.correlate_except(promised).exists()]
    if model in (Appointment, WaitlistEntry):
        parts.append(model.branch_id.in_(actor.branch_ids))  # or nobody could call off what made the patient theirs
    return or_(*parts)


def _care_team(model: Any, actor: Actor) -> ColumnElement[bool]:
    """Patients the actor saw in the last 90 days, has a visit open with or expects, and what belongs to them."""
    if model.patient_key is None or actor.practitioner_id is None:
        return false()
    visit = Encounter.__table__
    cared_for = select(visit.c.patient_id).where(
        visit.c.practitioner_id == actor.practitioner_id,
        or_(visit.c.ended_at.is_(None), visit.c.ended_at > now() - timedelta(days=CARED_FOR_DAYS)),
    )
    promised = Appointment.__table__
    expected = select(promised.c.patient_id).where(
        promised.c.practitioner_id == actor.practitioner_id,
        promised.c.status.in_(BLOCKING),
        promised.c.end_at > now() - timedelta(days=CARED_FOR_DAYS),
    )
    key = getattr(model, model.patient_key)
    parts = [key.in_(cared_for.scalar_subquery()), key.in_(expected.scalar_subquery())]
    if model is Appointment:
        since = now() - timedelta(days=CARED_FOR_DAYS)
        parts.append(and_(model.practitioner_id == actor.practitioner_id, model.end_at > since))
    return or_(*parts)


def _own(model: Any, actor: Actor) -> ColumnElement[bool]:
    """What the actor made themselves."""
    if model is ClinicalNote:
        return _signs(actor)
    if not hasattr(model, "user_id") or actor.user_id is None:
        return false()
    return model.user_id == actor.user_id  # type: ignore[no-any-return]


def _self(model: Any, actor: Actor) -> ColumnElement[bool]:
    """Only what belongs to the patient who is signed in."""
    if model.patient_key is None or actor.patient_id is None:
        return false()
    mine: ColumnElement[bool] = getattr(model, model.patient_key) == actor.patient_id
    told = _told_to_patients(model)
    return mine if told is None else and_(mine, told)


def _told_to_patients(model: Any) -> ColumnElement[bool] | None:
    """The laboratory's results and reports that are out for those they are about; None for a model of other things."""
    if model is Observation:
        out = and_(model.status.in_(STANDING), model.portal_at <= now())
    elif model is DiagnosticReport:
        return or_(model.category.not_in(LABORATORY_REPORTS), model.portal_at <= now())
    elif model is ObservationHistory:
        out = false()
    elif model in (CriticalResult, CriticalAttempt, Hl7Message, Hl7Result):
        return false()  # each of them says a value, and none knows from when on it is told
    else:
        return None
    return or_(model.category != LABORATORY, out)


def _released(model: Any, actor: Actor) -> ColumnElement[bool] | None:
    """The results that have left the laboratory; None where the actor is the laboratory, which receives specimens."""
    if actor.may("update", "Specimen"):
        return None
    result = Observation.__table__
    out = or_(result.c.test_id.is_(None), result.c.released_at.is_not(None))
    if model is Observation:
        return or_(model.test_id.is_(None), model.released_at.is_not(None))
    released = select(result.c.id).where(result.c.id == model.observation_id, out)
    elsewhere = select(result.c.id).where(result.c.id == model.observation_id, result.c.test_id.is_(None))
    foreign = elsewhere.correlate_except(result).exists()
    # What was entered and put right before anybody else saw it stays within the laboratory as well.
    was_out = or_(
        func.jsonb_extract_path_text(model.was, "released_at").is_not(None),
        not_(func.jsonb_exists_any(model.was, array(SAID))),
        foreign,
    )
    return or_(model.category != LABORATORY, and_(released.correlate_except(result).exists(), was_out))


SAID = (
    *("value_quantity", "value_text", "value_code", "value_unit"),
    *("comparator", "interpretation", "off_scale", "delta"),
)
"""What a result says."""


def _signs(actor: Actor) -> ColumnElement[bool]:
    """The notes the actor wrote or is to sign as well."""
    if actor.practitioner_id is None:
        return false()
    return or_(ClinicalNote.author_id == actor.practitioner_id, ClinicalNote.cosigner_id == actor.practitioner_id)


def _unsealed(actor: Actor) -> ColumnElement[bool]:
    """The notes their confidentiality leaves open to the actor, whatever its roles: restricted ones to whoever takes
    part in the care, very restricted ones to those who signed them, and both by emergency access."""
    theirs = or_(_signs(actor), ClinicalNote.patient_id.in_(actor.emergencies)) if actor.emergencies else _signs(actor)
    return or_(
        ClinicalNote.confidentiality == Confidentiality.NORMAL,
        theirs,
        and_(ClinicalNote.confidentiality == Confidentiality.RESTRICTED, _care_team(ClinicalNote, actor)),
    )


PREDICATES: dict[RowScope, Callable[[Any, Actor], ColumnElement[bool] | None]] = {
    RowScope.CHAIN: _no_further,
    RowScope.OWN_BRANCH: _own_branch,
    RowScope.CARE_TEAM: _care_team,
    RowScope.OWN: _own,
    RowScope.SELF: _self,
}
"""Each row scope as a condition on a resource's rows for an actor; None where every row is open."""
OF_THE_PATIENT = frozenset({RowScope.OWN_BRANCH, RowScope.CARE_TEAM})
"""Scopes that ask whose patient it is; emergency access to one patient stands in for them."""


@dataclass(frozen=True)
class Reach:
    """Rows that satisfy all of some scopes and are of certain kinds (the resource's `kind_key`); None for any kind."""

    scopes: frozenset[RowScope] = frozenset()
    kinds: frozenset[str] | None = None

    def condition(self, model: Any, actor: Actor) -> ColumnElement[bool] | None:
        """As a condition on the resource's rows; None where every row is open."""
        parts: list[ColumnElement[bool]] = []
        for scope in sorted(self.scopes):
            part = PREDICATES[scope](model, actor)
            if part is not None:
                if scope in OF_THE_PATIENT and actor.emergencies and model.patient_key is not None:
                    part = or_(part, getattr(model, model.patient_key).in_(actor.emergencies))
                parts.append(part)
        if self.kinds is not None:
            parts.append(getattr(model, model.kind_key).in_(sorted(self.kinds)) if model.kind_key else false())
        return and_(*parts) if parts else None

    def __and__(self, other: Reach) -> Reach:
        kinds = other.kinds if self.kinds is None else self.kinds if other.kinds is None else self.kinds & other.kinds
        return Reach(self.scopes | other.scopes, kinds)


EVERYTHING = Reach()

# ---- the matrix ------------------------------------------------------------------------------------------------

ACTIONS = ("read", "create", "update", "delete")


@dataclass(frozen=True)
class Grant:
    """What one role may do with one resource, with which rows, and without which fields."""

    actions: frozenset[str] = frozenset()
    rows: RowScope = RowScope.CHAIN
    kinds: frozenset[str] = frozenset()
    """Empty for every kind."""
    masked: frozenset[str] = frozenset()

    @property
    def reach(self) -> Reach:
        """Its rows, as one alternative of what a person may reach."""
        return Reach(frozenset({self.rows} - {RowScope.CHAIN}), self.kinds or None)


def may(actions: str, rows: RowScope = RowScope.CHAIN, kinds: Iterable[str] = (), masked: Iterable[str] = ()) -> Grant:
    """`may("read update", masked=["address"])`, as the matrix below writes it."""
    return Grant(frozenset(actions.split()), rows, frozenset(kinds), frozenset(masked))


REFERENCE = (
    *("Organization", "Branch", "Practitioner", "Room"),
    *("VisitType", "Equipment", "WorkingHours", "ScheduleException", "SlotOffer"),
    *("NoteTemplate", "Medication", "SigningKey"),
    *("LabTest", "LabPanel", "ReferenceRange", "UnitConversion", "OnCall"),
)
"""About the hospital and nobody's record: seeing them is not recorded, changing them is."""
CLINICAL = (
    "Encounter",
    "Condition",
    "AllergyIntolerance",
    "Observation",
    "Procedure",
    "Immunization",
    "DiagnosticReport",
    "ServiceRequest",
    "Specimen",
    "CriticalResult",
    "MedicationRequest",
    "MedicationDispense",
    "DetectedIssue",
)
NOTES = ("ClinicalNote", "DocumentReference", "SourceResource")
"""What clinicians wrote in words, wherever it is kept."""
RESOURCES = (
    *REFERENCE,
    "Patient",
    "PatientIdentifier",
    "PatientLink",
    "PatientMerge",
    *CLINICAL,
    *NOTES,
    "Appointment",
    "WaitlistEntry",
    "Communication",
    "ScheduleOverride",
    "Hl7Message",
    "PatientProposal",
    "EmergencyAccess",
    "UnusualAccess",
    "AuditEvent",
    "Figure",
    "User",
    "Role",
)
POSSIBLE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(RESOURCES, ("read", "create", "update")),
    **dict.fromkeys(("WorkingHours", "ScheduleException"), ACTIONS),
    "Communication": ("read", "create", "update"),
    "ScheduleOverride": ("create",),
    "UnusualAccess": ("read", "update"),
    "AuditEvent": ("read",),
    "Figure": ("read",),
    "User": ACTIONS,
    "Role": ACTIONS,
}
"""What can be done with a resource at all: no record is ever deleted, and nobody writes the trail."""
UNRECORDED = (*REFERENCE, "Figure")
"""Seeing these is not recorded: they are about nobody."""

NARRATIVE = ("presented_form", "conclusion")
CONTACT = ("telecom", "address", "contact", "photo", "search_phone")

MASKABLE: dict[str, tuple[str, ...]] = {
    "Patient": (*CONTACT, "marital_status", "languages", "other_names"),
    "PatientIdentifier": ("value",),
    "Encounter": ("reason", "type_display"),
    "Appointment": ("reason",),
    "WaitlistEntry": ("note",),
    "Procedure": ("reason",),
    "DiagnosticReport": NARRATIVE,
    "MedicationRequest": ("dosage_instruction",),
    "ServiceRequest": ("note",),
    "AllergyIntolerance": ("reaction",),
    "EmergencyAccess": ("justification", "review_note"),
    "AuditEvent": ("address", "user_agent", "session_id"),
}
"""The fields a role may be given a resource without; whatever shows them can do with nothing."""
KINDS: dict[str, tuple[str, ...]] = {
    "Observation": ("vital-signs", "laboratory", "social-history", "survey", "exam", "imaging", "procedure", "therapy"),
    "DiagnosticReport": ("LAB", "laboratory", "imaging"),
    "Figure": ("registrations", "unidentified", "visits", "staff", "rooms", "looks", "refusals"),
}
"""The kinds a role may be limited to, by the resource's `kind_key`."""

_reference = {name: may("read") for name in REFERENCE}
_desk_work = {
    "Appointment": may("read create update"),
    "WaitlistEntry": may("read create update"),
    "Communication": may("read"),
    "SlotOffer": may("read create update"),
    "ScheduleException": may("read create update delete"),
    "Encounter": may("read create"),
}
"""What the desk does with visits: the encounter is opened by checking somebody in."""
_index = {"Patient": may("read"), "PatientIdentifier": may("read")}
_visits = {"Figure": may("read", kinds=["visits"])}
_desk = {"Figure": may("read", kinds=["visits", "registrations", "unidentified"])}
_glass = {"EmergencyAccess": may("read create", rows=RowScope.OWN)}

MATRIX: dict[str, dict[str, Grant]] = {
    Role.ADMIN: {
        **{name: may("read create update") for name in REFERENCE},
        "WorkingHours": may("read create update delete"),
        "ScheduleException": may("read create update delete"),
        **{name: may("read") for name in CLINICAL},
        "Appointment": may("read create update"),
        "WaitlistEntry": may("read"),
        "Communication": may("read"),
        "ScheduleOverride": may("create"),
        "DiagnosticReport": may("read", masked=NARRATIVE),
        "Patient": may("read create update"),
        "PatientIdentifier": may("read create update"),
        "PatientLink": may("read update"),
        "PatientMerge": may("read create update"),
        "PatientProposal": may("read update"),
        "EmergencyAccess": may("read", masked=["justification", "review_note"]),
        "AuditEvent": may("read"),
        "Figure": may("read"),
        "User": may("read create update delete"),
        "Role": may("read create update delete"),
    },
    Role.DOCTOR: {
        **_reference,
        **_desk_work,
        **{name: may("read create update") for name in CLINICAL},
        "MedicationDispense": may("read"),
        "Specimen": may("read create"),
        "CriticalResult": may("read update"),
        "ScheduleOverride": may("create"),
        "Patient": may("read create update"),
        "PatientIdentifier": may("read create update"),
        "ClinicalNote": may("read create update"),
        "DocumentReference": may("read create"),
        "SourceResource": may("read"),
        **_glass,
        **_visits,
    },
    Role.NURSE: {
        **_reference,
        "Patient": may("read create update"),
        "PatientIdentifier": may("read create update"),
        **_desk_work,
        "AllergyIntolerance": may("read create update"),
        "Observation": may("read create update", kinds=["vital-signs"]),
        "MedicationRequest": may("read"),
        "MedicationDispense": may("read"),
        "ServiceRequest": may("read update"),
        "Specimen": may("read create"),
        "Immunization": may("read"),
        **_glass,
        **_desk,
    },
    Role.RECEPTIONIST: {
        **_reference,
        "Patient": may("read create update"),
        "PatientIdentifier": may("read create update"),
        "PatientLink": may("read update"),
        "PatientMerge": may("read create update"),
        "PatientProposal": may("read update"),
        **_desk_work,
        "Encounter": may("read create", masked=["reason"]),
        **_desk,
    },
    Role.LAB_TECHNICIAN: {
        **_reference,
        "Patient": may("read"),
        "PatientIdentifier": may("read", masked=["value"]),
        "Observation": may("read create update", kinds=["laboratory"]),
        "DiagnosticReport": may("read create update", kinds=["LAB", "laboratory"], masked=["presented_form"]),
        "ServiceRequest": may("read update"),
        "Specimen": may("read create update"),
        "CriticalResult": may("read create update"),
        **{name: may("read create update") for name in ("LabTest", "LabPanel", "ReferenceRange", "UnitConversion")},
        "OnCall": may("read create update"),
        "Hl7Message": may("read create update"),
    },
    Role.PHARMACIST: {
        **_reference,
        "Patient": may("read"),
        "PatientIdentifier": may("read", masked=["value"]),
        "AllergyIntolerance": may("read"),
        "MedicationRequest": may("read"),
        "MedicationDispense": may("read create update"),
        "DetectedIssue": may("read create"),
        "Medication": may("read create update"),
    },
    Role.BILLING_CLERK: {
        **_reference,
        **_index,
        "Encounter": may("read"),
        "Appointment": may("read", masked=["reason"]),
        **_visits,
    },
    Role.PRIVACY_OFFICER: {
        **_reference,
        "Patient": may("read", masked=CONTACT),
        "EmergencyAccess": may("read update"),
        "UnusualAccess": may("read update"),
        "AuditEvent": may("read"),
        "Figure": may("read", kinds=["looks", "refusals"]),
    },
    Role.PATIENT: {
        # Why a doctor is away is the staff's affair.
        **{name: grant for name, grant in _reference.items() if name != "ScheduleException"},
        "Patient": may("read", rows=RowScope.SELF),
        "PatientIdentifier": may("read", rows=RowScope.SELF),
        "Encounter": may("read", rows=RowScope.SELF),
        "Appointment": may("read", rows=RowScope.SELF),
        "WaitlistEntry": may("read", rows=RowScope.SELF),
        "AllergyIntolerance": may("read", rows=RowScope.SELF),
        "MedicationRequest": may("read", rows=RowScope.SELF),
        "MedicationDispense": may("read", rows=RowScope.SELF),
        "Immunization": may("read", rows=RowScope.SELF),
    },
}

SERVICES: dict[str, dict[str, Grant]] = {
    "setup": {
        **{name: may("read create update") for name in ("User", "Role", "NoteTemplate", "SigningKey")},
    },
    "demo": {
        name: may("read create update")
        for name in RESOURCES
        if name
        not in ("AuditEvent", "ClinicalNote", "EmergencyAccess", "Figure", "Role", "ScheduleOverride", "UnusualAccess")
    }
    | {"ScheduleOverride": may("create")},
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
    "sign-in": {"User": may("read update")},
    "calendar": {**{name: may("read") for name in REFERENCE}, "Appointment": may("read")},
    "reminders": {
        **{name: may("read") for name in REFERENCE},
        "Patient": may("read"),
        "Appointment": may("read update"),
        "WaitlistEntry": may("read"),
        "Communication": may("read create update"),
    },
    "waitlist": {
        **{name: may("read") for name in REFERENCE},
        "Patient": may("read"),
        "Appointment": may("read create update"),
        "WaitlistEntry": may("read create update"),
        "SlotOffer": may("read create update"),
    },
    "emergencies": {**_index, "EmergencyAccess": may("read update")},
    "checks": {"AuditEvent": may("read")},
    "formulary": {"Medication": may("read create update")},
    "prescription-check": {
        **{name: may("read") for name in ("Practitioner", "Branch", "Organization", "Medication", "SigningKey")},
        "MedicationRequest": may("read"),
    },
    "critical": {
        **{name: may("read") for name in ("Branch", "Organization", "Practitioner", "OnCall")},
        "CriticalResult": may("read create update"),
    },
    "results": {"ServiceRequest": may("read")},
    "hl7": {
        **{name: may("read") for name in REFERENCE},
        **{name: may("read") for name in ("Patient", "PatientIdentifier", "ServiceRequest", "Specimen")},
        **{name: may("read create update") for name in ("Observation", "DiagnosticReport", "Hl7Message")},
        "CriticalResult": may("read create"),
        "PatientProposal": may("read create"),
    },
    "note-check": {
        **{name: may("read") for name in ("Practitioner", "Branch", "Organization", "NoteTemplate")},
        "Patient": may("read"),
        "ClinicalNote": may("read"),
    },
}
"""What the application does by itself, each under a name and a policy of its own."""

# ---- what an administrator cannot grant away --------------------------------------------------------------------

CONFIGURES = frozenset({("create", "Role"), ("update", "Role"), ("delete", "Role")})
"""Whoever holds one of these has nothing at all on NOTES, nor a report's narrative. The database holds it too."""
AUTHORED = frozenset({("create", "ClinicalNote"), ("update", "ClinicalNote"), ("create", "EmergencyAccess")})
"""Done only to one's own: nobody writes a note for another or signs it, nor breaks the glass for somebody else."""
MADE = Reach(frozenset({RowScope.OWN}))
UNSAID: dict[str, Grant] = {
    "DiagnosticReport": may("", masked=NARRATIVE),
    "EmergencyAccess": may("", rows=RowScope.OWN),
}
"""The rows and masks of a resource that nobody has said for a role; elsewhere every row and every field."""


def scopes_of(resource: str) -> tuple[RowScope, ...]:
    """The row scopes that mean something for a resource."""
    if resource in (*REFERENCE, "ScheduleOverride", "UnusualAccess", "User", "Role"):
        return (RowScope.CHAIN,)
    if resource in ("AuditEvent", "Figure"):
        return (RowScope.CHAIN, RowScope.OWN_BRANCH)
    own = (RowScope.OWN,) if resource in ("ClinicalNote", "EmergencyAccess") else ()
    return (RowScope.CHAIN, RowScope.OWN_BRANCH, RowScope.CARE_TEAM, *own, RowScope.SELF)


def stored(resource: str, rows: str | None, kinds: Iterable[str] | None, masked: Iterable[str] | None) -> Grant:
    """The rows and masks of a resource as `role_grant` has them, with no action yet; UNSAID where it has none."""
    if rows is None:
        return UNSAID.get(resource, Grant())
    return Grant(frozenset(), RowScope(rows), frozenset(kinds or ()), frozenset(masked or ()))


@dataclass(frozen=True)
class Rights:
    """What a set of roles amounts to."""

    actions: frozenset[tuple[str, str]]
    reach: Mapping[tuple[str, str], tuple[Reach, ...]] = field(default_factory=dict)
    """The rows of an (action, resource), as alternatives; what is not named is open to its last row."""
    masked: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    """The fields kept back from an (action, resource)."""

    def may(self, action: str, resource: str) -> bool:
        """Whether the action on the resource is granted, for some row at least."""
        return (action, resource) in self.actions

    def hidden(self, resource: str, action: str = "read") -> frozenset[str]:
        """The fields of a resource that are kept back."""
        return self.masked.get((action, resource), frozenset())

    def condition(self, action: str, model: Any, actor: Actor) -> ColumnElement[bool] | None:
        """The rows of a model an actor with these rights reaches; None for all of them."""
        within = self._reached(action, model, actor)
        if actor.of_the_house:
            return within
        kept: ColumnElement[bool] | None = None
        if model is ClinicalNote:
            kept = _unsealed(actor)
        elif model in (Observation, ObservationHistory):
            kept = _released(model, actor)
        found = [each for each in (within, kept) if each is not None]
        return and_(*found) if found else None

    def _reached(self, action: str, model: Any, actor: Actor) -> ColumnElement[bool] | None:
        """The rows the roles reach; None for all of them."""
        alternatives = self.reach.get((action, model.resource()))
        if alternatives is None:
            return None
        conditions = [reach.condition(model, actor) for reach in alternatives]
        found = [condition for condition in conditions if condition is not None]
        return or_(*found) if len(found) == len(conditions) else None


NOTHING = Rights(frozenset())


def combine(granted: Mapping[str, Mapping[str, Grant]]) -> Rights:
    """The rights of a person who holds these roles, each with its grants by resource.

    Actions add up; each action reaches the rows of every role that grants it, and a field of it is kept back only
    where every such role keeps it back. The Patient role reaches the patient's own record, whatever it was given.
    """
    actions: set[tuple[str, str]] = set()
    reach: dict[tuple[str, str], list[Reach]] = {}
    masked: dict[tuple[str, str], frozenset[str]] = {}
    for role, grants in granted.items():
        for resource, given in grants.items():
            grant = given
            if role == Role.PATIENT and resource not in REFERENCE:
                grant = replace(grant, rows=RowScope.SELF)
            for action in grant.actions.intersection(POSSIBLE[resource]):
                pair = (action, resource)
                reach.setdefault(pair, []).append(grant.reach & MADE if pair in AUTHORED else grant.reach)
                masked[pair] = masked[pair] & grant.masked if pair in actions else grant.masked
                actions.add(pair)
    if CONFIGURES & actions:
        actions = {pair for pair in actions if pair[1] not in NOTES}
        for pair in actions:
            if pair[1] == "DiagnosticReport":
                masked[pair] = masked[pair].union(NARRATIVE)
    return _rights(actions, reach, masked)


def _rights(
    actions: set[tuple[str, str]],
    reach: Mapping[tuple[str, str], Iterable[Reach]],
    masked: Mapping[tuple[str, str], frozenset[str]],
) -> Rights:
    """Rights without what says nothing: a reach that is everything, a mask of no field."""
    alternatives = {pair: tuple(dict.fromkeys(reach[pair])) for pair in actions}
    return Rights(
        frozenset(actions),
        {pair: found for pair, found in alternatives.items() if EVERYTHING not in found},
        {pair: fields for pair, fields in masked.items() if fields and pair in actions},
    )


def as_role(role: Rights, own: Rights) -> Rights:
    """What somebody with rights of their own is shown when they look at the house as a role.

    Only reading, only what they may read themselves, and never a note.
    """
    actions = {pair for pair in role.actions & own.actions if pair[0] == "read" and pair[1] not in NOTES}
    masked = {pair: role.hidden(pair[1]) | own.hidden(pair[1]) for pair in actions}
    if ("read", "DiagnosticReport") in actions:
        masked["read", "DiagnosticReport"] |= frozenset(NARRATIVE)
    alone = (EVERYTHING,)
    return _rights(
        actions,
        {
            pair: [mine & theirs for mine in own.reach.get(pair, alone) for theirs in role.reach.get(pair, alone)]
            for pair in actions
        },
        masked,
    )


def shipped(grants: Mapping[str, Grant]) -> frozenset[tuple[str, str]]:
    """A column of the matrix as (action, resource) pairs."""
    return frozenset((action, resource) for resource, grant in grants.items() for action in grant.actions)


def service_rights(name: str) -> Rights:
    """The rights of a service by name. Raises KeyError for one without a policy of its own."""
    return combine({f"service:{name}": SERVICES[name]})
