"""What roles may do: one grid a role, a look at what changes, and roles that are made, copied, retired."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from flask import flash, request, url_for
from flask import redirect as go_to
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext, ngettext
from wtforms import Form, SelectField, StringField
from wtforms.validators import DataRequired, Length

from app import guard, policy
from app.actor import current
from app.errors import Invalid, NotFound, Refusal
from app.policy import Grant
from app.services import roles
from app.services.roles import Change, RoleLine, Sheet
from models.base import now
from models.codes import RowScope
from views.base import CommandView, Page, open_to

# ---- words -------------------------------------------------------------------------------------------------------

GROUPS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (lazy_gettext("Patients"), ("Patient", "PatientIdentifier", "PatientLink", "PatientMerge")),
    (lazy_gettext("Chart"), policy.CLINICAL),
    (lazy_gettext("Notes"), policy.NOTES),
    (lazy_gettext("Visits"), ("Appointment", "WaitlistEntry", "Communication", "ScheduleOverride")),
    (lazy_gettext("Hospital"), (*policy.REFERENCE, "Figure")),
    (lazy_gettext("Messages of other systems"), ("Hl7Message", "PatientProposal")),
    (lazy_gettext("Privacy"), ("EmergencyAccess", "UnusualAccess", "AuditEvent")),
    (lazy_gettext("Access"), ("User", "Role")),
)
"""The resources as the hospital would sort them."""
THINGS: dict[str, Any] = {
    "Patient": lazy_gettext("patients"),
    "PatientIdentifier": lazy_gettext("numbers of other systems"),
    "PatientLink": lazy_gettext("possible duplicates"),
    "PatientMerge": lazy_gettext("merged records"),
    "Encounter": lazy_gettext("visits"),
    "Condition": lazy_gettext("conditions"),
    "AllergyIntolerance": lazy_gettext("allergies"),
    "Observation": lazy_gettext("observations"),
    "Procedure": lazy_gettext("procedures"),
    "Immunization": lazy_gettext("immunisations"),
    "DiagnosticReport": lazy_gettext("lab and imaging reports"),
    "MedicationRequest": lazy_gettext("medications"),
    "ServiceRequest": lazy_gettext("orders of tests, images and referrals"),
    "MedicationDispense": lazy_gettext("medicines handed out"),
    "DetectedIssue": lazy_gettext("warnings about medicines"),
    "ClinicalNote": lazy_gettext("clinical notes"),
    "DocumentReference": lazy_gettext("documents"),
    "SourceResource": lazy_gettext("records as they were received"),
    "Organization": lazy_gettext("organizations"),
    "Branch": lazy_gettext("branches"),
    "Practitioner": lazy_gettext("staff"),
    "Room": lazy_gettext("rooms"),
    "VisitType": lazy_gettext("kinds of visits"),
    "Equipment": lazy_gettext("equipment"),
    "WorkingHours": lazy_gettext("working hours"),
    "ScheduleException": lazy_gettext("leave, holidays and extra sessions"),
    "SlotOffer": lazy_gettext("freed times on offer"),
    "NoteTemplate": lazy_gettext("templates of notes"),
    "Medication": lazy_gettext("the formulary"),
    "SigningKey": lazy_gettext("keys prescriptions are signed with"),
    "LabTest": lazy_gettext("tests of the laboratory"),
    "LabPanel": lazy_gettext("panels of the laboratory"),
    "ReferenceRange": lazy_gettext("reference ranges"),
    "UnitConversion": lazy_gettext("conversions of units"),
    "OnCall": lazy_gettext("who is on call"),
    "Specimen": lazy_gettext("specimens"),
    "CriticalResult": lazy_gettext("critical results"),
    "Hl7Message": lazy_gettext("messages of other systems"),
    "PatientProposal": lazy_gettext("changes of patients other systems propose"),
    "Appointment": lazy_gettext("appointments"),
    "WaitlistEntry": lazy_gettext("the waiting list"),
    "Communication": lazy_gettext("messages to patients"),
    "ScheduleOverride": lazy_gettext("appointments outside working hours"),
    "Figure": lazy_gettext("figures on the start page"),
    "EmergencyAccess": lazy_gettext("emergency accesses"),
    "UnusualAccess": lazy_gettext("unusual access"),
    "AuditEvent": lazy_gettext("who saw what"),
    "User": lazy_gettext("accounts"),
    "Role": lazy_gettext("roles"),
}
EXPLAINED: dict[str, Any] = {
    "PatientMerge": lazy_gettext("Bringing two records of one person together; changing is undoing that"),
    "Patient": lazy_gettext("Name, birth date, address, contacts"),
    "PatientIdentifier": lazy_gettext("Passport, insurance, other hospitals"),
    "Observation": lazy_gettext("Vital signs, laboratory values"),
    "SourceResource": lazy_gettext("As another hospital sent them"),
    "DetectedIssue": lazy_gettext("And why a medicine was given all the same"),
    "Medication": lazy_gettext("Which medicines there are"),
    "Appointment": lazy_gettext("Booking, moving, calling off, arrivals"),
    "Communication": lazy_gettext("That they were reminded, and when"),
    "ScheduleOverride": lazy_gettext("Also in the past; a reason is asked for each time"),
    "EmergencyAccess": lazy_gettext("Opening a chart in an emergency; changing is reviewing"),
    "UnusualAccess": lazy_gettext("Looks into records that are worth a question; changing is reviewing"),
    "AuditEvent": lazy_gettext("The trail of every look into a record"),
}
DEEDS: dict[str, Any] = {
    "read": lazy_gettext("See"),
    "create": lazy_gettext("Add"),
    "update": lazy_gettext("Change"),
    "delete": lazy_gettext("Remove"),
}
SCOPES: dict[str, Any] = {
    RowScope.CHAIN: lazy_gettext("Whole chain"),
    RowScope.OWN_BRANCH: lazy_gettext("Own branch"),
    RowScope.CARE_TEAM: lazy_gettext("Patients in their care"),
    RowScope.OWN: lazy_gettext("What they made themselves"),
    RowScope.SELF: lazy_gettext("Their own record"),
}
OF_ROWS: dict[str, Any] = {
    RowScope.CHAIN: lazy_gettext("of the whole chain"),
    RowScope.OWN_BRANCH: lazy_gettext("of their own branch"),
    RowScope.CARE_TEAM: lazy_gettext("of patients in their care"),
    RowScope.OWN: lazy_gettext("that they made themselves"),
    RowScope.SELF: lazy_gettext("of their own record"),
}
"""The same within a sentence."""
KINDS: dict[str, Any] = {
    "vital-signs": lazy_gettext("Vital signs"),
    "laboratory": lazy_gettext("Laboratory"),
    "LAB": lazy_gettext("Reports of the laboratory"),
    "social-history": lazy_gettext("Social history"),
    "survey": lazy_gettext("Surveys"),
    "exam": lazy_gettext("Examination"),
    "imaging": lazy_gettext("Imaging"),
    "procedure": lazy_gettext("Procedures"),
    "therapy": lazy_gettext("Therapy"),
    "registrations": lazy_gettext("Registrations"),
    "unidentified": lazy_gettext("Patients without a known identity"),
    "visits": lazy_gettext("Visits"),
    "staff": lazy_gettext("Staff"),
    "rooms": lazy_gettext("Rooms"),
    "looks": lazy_gettext("Looks into records"),
    "refusals": lazy_gettext("Refusals"),
}
FIELDS: dict[tuple[str, str], Any] = {
    ("Patient", "telecom"): lazy_gettext("the phone numbers and e-mail of patients"),
    ("Patient", "address"): lazy_gettext("the address of patients"),
    ("Patient", "contact"): lazy_gettext("the next of kin of patients"),
    ("Patient", "photo"): lazy_gettext("the photo of patients"),
    ("Patient", "search_phone"): lazy_gettext("patients when searching by phone number"),
    ("Patient", "marital_status"): lazy_gettext("the marital status of patients"),
    ("Patient", "languages"): lazy_gettext("the languages of patients"),
    ("Patient", "other_names"): lazy_gettext("the other names of patients"),
    ("PatientIdentifier", "value"): lazy_gettext("the number itself, of numbers of other systems"),
    ("Encounter", "reason"): lazy_gettext("the reason of visits"),
    ("Encounter", "type_display"): lazy_gettext("the type of visits"),
    ("Appointment", "reason"): lazy_gettext("the reason of appointments"),
    ("WaitlistEntry", "note"): lazy_gettext("the note on the waiting list"),
    ("Procedure", "reason"): lazy_gettext("the reason of procedures"),
    ("ServiceRequest", "note"): lazy_gettext("the note of orders"),
    ("DiagnosticReport", "presented_form"): lazy_gettext("the document of lab and imaging reports"),
    ("DiagnosticReport", "conclusion"): lazy_gettext("the conclusion of lab and imaging reports"),
    ("MedicationRequest", "dosage_instruction"): lazy_gettext("the dosage of medications"),
    ("AllergyIntolerance", "reaction"): lazy_gettext("the reaction to allergies"),
    ("EmergencyAccess", "justification"): lazy_gettext("the justification of emergency accesses"),
    ("EmergencyAccess", "review_note"): lazy_gettext("the reviewer's note on emergency accesses"),
    ("AuditEvent", "address"): lazy_gettext("the network address in the trail"),
    ("AuditEvent", "user_agent"): lazy_gettext("the browser in the trail"),
    ("AuditEvent", "session_id"): lazy_gettext("the session in the trail"),
}
"""A field that can be hidden, as it is spoken of in a sentence."""
FIELDS_IN_SHORT: dict[str, Any] = {
    "telecom": lazy_gettext("Phone and e-mail"),
    "address": lazy_gettext("Address"),
    "contact": lazy_gettext("Next of kin"),
    "photo": lazy_gettext("Photo"),
    "search_phone": lazy_gettext("Finding by phone number"),
    "marital_status": lazy_gettext("Marital status"),
    "languages": lazy_gettext("Languages"),
    "other_names": lazy_gettext("Other names"),
    "value": lazy_gettext("The number itself"),
    "reason": lazy_gettext("Reason"),
    "type_display": lazy_gettext("Type"),
    "presented_form": lazy_gettext("The document"),
    "conclusion": lazy_gettext("Conclusion"),
    "dosage_instruction": lazy_gettext("Dosage"),
    "reaction": lazy_gettext("Reaction"),
    "justification": lazy_gettext("Justification"),
    "review_note": lazy_gettext("Reviewer's note"),
    "note": lazy_gettext("Note"),
    "user_agent": lazy_gettext("Browser"),
    "session_id": lazy_gettext("Session"),
    "AuditEvent.address": lazy_gettext("Network address"),
}
"""The same beside a box to tick."""


def role_word(name: str) -> str:
    """The hospital's word for a role."""
    return str(gettext(policy.SPOKEN[name]) if name in policy.SPOKEN else name)


def thing(resource: str) -> str:
    """A resource within a sentence."""
    return str(THINGS.get(resource, resource))


def heading(resource: str) -> str:
    """A resource at the head of a row."""
    word = thing(resource)
    return word[:1].upper() + word[1:]


def holders_word(count: int) -> str:
    """How many people hold a role."""
    return str(ngettext("%(num)s person", "%(num)s people", count)) if count else gettext("nobody")


# ---- what a change means, in sentences ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """A difference in sentences, by what it means for those who hold the role."""

    gains: list[str]
    loses: list[str]
    other: list[str]


def tell(before: Sheet, changes: Iterable[Change]) -> Told:
    """What changes of a role mean, as a head nurse would say it."""
    told = Told([], [], [])
    who = role_word(before.name)
    for change in changes:
        granted = bool(before.grants.get(change.resource, Grant()).actions)
        _SENTENCES.get(change.what, _of_action)(told, who, change, granted)
    return told


def _of_action(told: Told, who: str, change: Change, _granted: bool) -> None:
    said = {"who": who, "what": thing(change.resource)}
    gained = {
        "read": gettext("%(who)s may now see %(what)s.", **said),
        "create": gettext("%(who)s may now add %(what)s.", **said),
        "update": gettext("%(who)s may now change %(what)s.", **said),
        "delete": gettext("%(who)s may now remove %(what)s.", **said),
    }
    lost = {
        "read": gettext("%(who)s may no longer see %(what)s.", **said),
        "create": gettext("%(who)s may no longer add %(what)s.", **said),
        "update": gettext("%(who)s may no longer change %(what)s.", **said),
        "delete": gettext("%(who)s may no longer remove %(what)s.", **said),
    }
    (told.gains if change.after else told.loses).append((gained if change.after else lost)[change.what])


def _of_rows(told: Told, who: str, change: Change, granted: bool) -> None:
    old, new = str(change.before), str(change.after)
    said = {"who": who, "what": thing(change.resource), "rows": OF_ROWS[new], "before": OF_ROWS[old]}
    if not granted:
        told.gains.append(gettext("%(who)s sees %(what)s only %(rows)s.", **said))
    elif new == RowScope.CHAIN:
        told.gains.append(gettext("%(who)s sees %(what)s %(rows)s. Before: only %(before)s.", **said))
    elif old == RowScope.CHAIN:
        told.loses.append(gettext("%(who)s sees %(what)s only %(rows)s. Before: %(before)s.", **said))
    else:
        told.other.append(gettext("%(who)s sees %(what)s only %(rows)s. Before: only %(before)s.", **said))


def _of_kinds(told: Told, who: str, change: Change, granted: bool) -> None:
    old, new = _kinds(change.before), _kinds(change.after)
    said = {"who": who, "what": thing(change.resource), "kinds": _listed(new), "before": _listed(old)}
    if not granted:
        told.gains.append(gettext("Of %(what)s %(who)s sees only: %(kinds)s.", **said))
    elif not new:
        told.gains.append(gettext("Of %(what)s %(who)s sees every kind. Before only: %(before)s.", **said))
    elif not old:
        told.loses.append(gettext("Of %(what)s %(who)s sees only: %(kinds)s. Before: every kind.", **said))
    else:
        if more := new - old:
            told.gains.append(gettext("Of %(what)s %(who)s now sees: %(kinds)s.", **said | {"kinds": _listed(more)}))
        if less := old - new:
            told.loses.append(
                gettext("Of %(what)s %(who)s no longer sees: %(kinds)s.", **said | {"kinds": _listed(less)})
            )


def _of_masks(told: Told, who: str, change: Change, granted: bool) -> None:
    old, new = _kinds(change.before), _kinds(change.after)
    for name in sorted(new - old):
        what = FIELDS.get((change.resource, name), name)
        if granted:
            told.loses.append(gettext("%(who)s no longer sees %(what)s.", who=who, what=what))
        else:
            told.gains.append(gettext("%(who)s does not see %(what)s.", who=who, what=what))
    for name in sorted(old - new):
        what = FIELDS.get((change.resource, name), name)
        told.gains.append(gettext("%(who)s now sees %(what)s.", who=who, what=what))


def _of_second_factor(told: Told, who: str, change: Change, _granted: bool) -> None:
    if change.after:
        told.other.append(gettext("%(who)s has to sign in with a code as well.", who=who))
    else:
        told.other.append(gettext("%(who)s no longer has to sign in with a code.", who=who))


_SENTENCES = {"rows": _of_rows, "kinds": _of_kinds, "masked": _of_masks, "second_factor": _of_second_factor}


def _kinds(value: object) -> frozenset[str]:
    assert isinstance(value, frozenset)
    return value


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(sorted(str(KINDS.get(kind, kind)).lower() for kind in kinds))


# ---- the ticks of the grid -----------------------------------------------------------------------------------------


@dataclass
class Ticks:
    """What is ticked and chosen on the page: of a role as it is, or as somebody sent it."""

    may: set[str]
    """action:resource"""
    rows: dict[str, str]
    kinds: set[str]
    """resource:kind; all kinds of a resource are every kind."""
    masked: set[str]
    """resource:field"""
    second_factor: bool
    seen: str
    reason: str = ""

    @classmethod
    def of(cls, sheet: Sheet) -> Ticks:
        """The ticks of a role as it is; of what is not granted, those it would begin with."""
        ticks = cls(set(), {}, set(), set(), sheet.second_factor, sheet.digest)
        patient = sheet.name == policy.Role.PATIENT
        for resource in policy.RESOURCES:
            grant = sheet.grants.get(resource) or policy.UNSAID.get(resource, Grant())
            ticks.may |= {f"{action}:{resource}" for action in grant.actions}
            ticks.rows[resource] = RowScope.SELF if patient and resource in roles.OF_PATIENTS else grant.rows
            ticks.kinds |= {f"{resource}:{kind}" for kind in grant.kinds or policy.KINDS.get(resource, ())}
            ticks.masked |= {f"{resource}:{name}" for name in grant.masked}
        return ticks

    @classmethod
    def sent(cls, form: Any) -> Ticks:
        """The ticks somebody sent, whatever they are."""
        return cls(
            set(form.getlist("may")),
            {resource: form[f"rows:{resource}"] for resource in policy.RESOURCES if f"rows:{resource}" in form},
            set(form.getlist("kind")),
            set(form.getlist("mask")),
            form.get("second_factor") == "y",
            form.get("seen", ""),
            form.get("reason", ""),
        )

    def fields(self) -> Iterator[tuple[str, str]]:
        """The same as hidden fields of the page that asks whether it is meant."""
        yield "seen", self.seen
        if self.second_factor:
            yield "second_factor", "y"
        for resource, rows in self.rows.items():
            yield f"rows:{resource}", rows
        for name, values in (("may", self.may), ("kind", self.kinds), ("mask", self.masked)):
            for value in sorted(values):
                yield name, value

    def sheet(self, role: Sheet) -> Sheet:
        """What the ticks make of a role. Raises Invalid for what the page never offered, and for a kind of nothing."""
        offered = {f"{action}:{resource}" for resource, actions in policy.POSSIBLE.items() for action in actions}
        kinds = {f"{resource}:{kind}" for resource, names in policy.KINDS.items() for kind in names}
        fields = {f"{resource}:{name}" for resource, names in policy.MASKABLE.items() for name in names}
        if not (self.may <= offered and self.kinds <= kinds and self.masked <= fields):
            raise Invalid(roles.OUTGROWN)
        grants = {}
        for resource, possible in policy.POSSIBLE.items():
            actions = frozenset(action for action in possible if f"{action}:{resource}" in self.may)
            if not actions:
                continue
            among = policy.KINDS.get(resource, ())
            chosen = frozenset(kind for kind in among if f"{resource}:{kind}" in self.kinds)
            if among and not chosen:
                sentence = gettext(
                    "Tick at least one kind of %(what)s, or take away what may be done with them.", what=thing(resource)
                )
                raise Invalid(sentence)
            grants[resource] = Grant(
                actions,
                self._rows(role, resource),
                chosen if len(chosen) < len(among) else frozenset(),
                frozenset(name for name in policy.MASKABLE.get(resource, ()) if f"{resource}:{name}" in self.masked),
            )
        return Sheet(role.id, role.name, role.retired, self.second_factor, grants)

    def _rows(self, role: Sheet, resource: str) -> RowScope:
        own = role.name == policy.Role.PATIENT and resource in roles.OF_PATIENTS
        usual = RowScope.SELF if own else policy.scopes_of(resource)[0]
        try:
            return RowScope(self.rows.get(resource, usual))
        except ValueError as error:
            raise Invalid(roles.OUTGROWN) from error


def grid(ticks: Ticks, stored: Ticks, role: Sheet) -> list[dict[str, Any]]:
    """The rows of the grid in their groups: what is ticked, what it was, what can be chosen, and what never can."""
    return [
        {"label": str(label), "rows": [_row(resource, ticks, stored, role) for resource in resources]}
        for label, resources in GROUPS
    ]


def _row(resource: str, ticks: Ticks, stored: Ticks, role: Sheet) -> dict[str, Any]:
    patient = role.name == policy.Role.PATIENT
    offered = policy.POSSIBLE[resource]
    closed = patient and resource not in (*policy.REFERENCE, *roles.OF_PATIENTS)
    scopes = policy.scopes_of(resource)
    own = patient and resource in roles.OF_PATIENTS
    never = ""
    if resource in policy.NOTES and not patient:
        never = gettext("Never together with configuring roles")
    elif resource == "Role":
        never = gettext("Never together with notes")
    if closed:
        never = gettext("Never for patients")
    configures = any(f"{action}:{name}" in ticks.may for action, name in policy.CONFIGURES)
    return {
        "resource": resource,
        "label": heading(resource),
        "explained": EXPLAINED.get(resource, ""),
        "never": never,
        "ticks": [
            {
                "value": value,
                "label": DEEDS[action],
                "possible": action in offered and (not closed or value in ticks.may | stored.may),
                "locked": action in offered and closed,
                "on": value in ticks.may,
                "was": value in stored.may,
                "power": "notes"
                if resource in policy.NOTES
                else "configures"
                if (action, resource) in policy.CONFIGURES
                else "",
            }
            for action in policy.ACTIONS
            for value in (f"{action}:{resource}",)
        ],
        "scopes": [(str(scope), SCOPES[scope]) for scope in scopes],
        "rows": ticks.rows.get(resource, scopes[0]),
        "rows_were": stored.rows[resource],
        "fixed": SCOPES[RowScope.SELF] if own else "",
        "open": len(scopes) > 1 and not own and not closed,
        "kinds": [
            (f"{resource}:{kind}", KINDS.get(kind, kind), f"{resource}:{kind}" in ticks.kinds, value in stored.kinds)
            for kind in (() if closed else policy.KINDS.get(resource, ()))
            for value in (f"{resource}:{kind}",)
        ],
        "fields": [
            (
                value,
                FIELDS_IN_SHORT.get(f"{resource}.{name}", FIELDS_IN_SHORT.get(name, name)),
                value in ticks.masked,
                value in stored.masked,
                resource == "DiagnosticReport" and configures,
            )
            for name in (() if closed else policy.MASKABLE.get(resource, ()))
            for value in (f"{resource}:{name}",)
        ],
    }


# ---- the pages ---------------------------------------------------------------------------------------------------


class RoleMatrix(Page):
    """What roles may do: a role at a time as a grid, and all of them at a glance."""

    route_base = "/access/roles"
    default_view = "open"

    @expose("/", methods=["GET", "POST"])
    @open_to("read", "Role")
    def open(self) -> Any:
        """The grid of a role; sent back, what it would change; and then the change itself."""
        known = roles.all_roles(guard.session())
        line = _asked(known)
        if request.method != "POST":
            sheet = roles.sheet_of(guard.session(), line.id)
            return self._grid(known, line, sheet, Ticks.of(sheet))
        guard.require("update", "Role")
        before = roles.sheet_of(guard.session(), line.id)
        ticks = Ticks.sent(request.form)
        step = request.form.get("step")
        if step == "back":
            return self._grid(known, line, before, ticks)
        try:
            after = ticks.sheet(before)
            before, changes = roles.compare(guard.session(), after, seen=ticks.seen)
        except Refusal as refusal:
            return self._grid(known, line, before, ticks, refusal), refusal.status
        if step != "save" or request.form.get("reviewed") != after.digest:
            return self._review(line, before, after, changes, ticks)
        try:
            with guard.unit_of_work() as session:
                roles.change_role(session, after, seen=ticks.seen, reason=ticks.reason)
        except Refusal as refusal:
            if refusal.field == "reason":
                return self._review(line, before, after, changes, ticks, str(refusal)), refusal.status
            return self._grid(known, line, before, ticks, refusal), refusal.status
        flash(gettext("Saved. It counts from everybody's next click."), "success")
        return go_to(url_for("RoleMatrix.open", role=line.id))

    def _grid(
        self, known: list[RoleLine], line: RoleLine, sheet: Sheet, ticks: Ticks, refusal: Refusal | None = None
    ) -> str:
        name = role_word(line.name)
        year_ago = (now() - timedelta(days=365)).date().isoformat()
        return self.render(
            "access/roles.html",
            page_title=gettext("What roles may do"),
            roles=[_in_list(each, line.id) for each in known],
            role=_in_list(line, line.id),
            groups=grid(ticks, Ticks.of(sheet), sheet),
            deeds=list(DEEDS.values()),
            ticks=ticks,
            second_factor_was=sheet.second_factor,
            refusal=str(gettext(str(refusal))) if refusal else "",
            stale=refusal is not None and refusal.status == 409,
            mine=line.name in current().roles,
            look_as=line.name,
            editable=current().may("update", "Role"),
            retire_href=_if(line.name not in {*roles.KEPT, *current().roles}, "RetireRole.ask", role_id=line.id),
            copy_href=url_for("NewRole.ask", like=line.id, name=gettext("Copy of %(name)s", name=name)),
            trail_href=f"{url_for('TrailView.list', role=line.id)}&from={year_ago}",
        )

    def _review(
        self,
        line: RoleLine,
        before: Sheet,
        after: Sheet,
        changes: list[Change],
        ticks: Ticks,
        wrong: str = "",
    ) -> str:
        return self.render(
            "access/roles_review.html",
            page_title=gettext("Review changes"),
            role=_in_list(line, line.id),
            told=tell(before, changes),
            fields=list(ticks.fields()),
            reviewed=after.digest,
            reason=ticks.reason,
            wrong=gettext(wrong) if wrong else "",
        )

    @expose("/all/")
    @open_to("read", "Role")
    def all(self) -> str:
        """Every role beside every other, to read only."""
        known = roles.all_roles(guard.session())
        sheets = roles.all_sheets(guard.session())
        return self.render(
            "access/roles_all.html",
            page_title=gettext("All roles at a glance"),
            roles=[_in_list(line, 0) for line in known],
            groups=[
                {
                    "label": str(label),
                    "rows": [
                        {
                            "label": heading(resource),
                            "cells": [_cell(resource, sheets[line.id].grants) for line in known],
                        }
                        for resource in resources
                    ],
                }
                for label, resources in GROUPS
            ],
        )


def _asked(known: list[RoleLine]) -> RoleLine:
    """The role the address names; the first one where it names none. Raises NotFound for one that is not there."""
    asked = request.args.get("role")
    for line in known:
        if asked is None or str(line.id) == asked:
            return line
    raise NotFound


def _in_list(line: RoleLine, shown: int) -> dict[str, Any]:
    return {
        "id": line.id,
        "name": role_word(line.name),
        "holders": line.holders,
        "holders_word": holders_word(line.holders),
        "retired": line.retired,
        "second_factor": line.second_factor,
        "current": line.id == shown,
        "href": url_for("RoleMatrix.open", role=line.id),
    }


def _if(shown: bool, endpoint: str, **values: Any) -> str | None:
    return url_for(endpoint, **values) if shown else None


LETTERS = {"read": "r", "create": "c", "update": "u", "delete": "d"}


def _cell(resource: str, grants: Mapping[str, Grant]) -> dict[str, Any] | None:
    """A cell of the comparison: letters to see, words to hear, and whether there are limits."""
    grant = grants.get(resource)
    if grant is None:
        return None
    limits = []
    if grant.rows != RowScope.CHAIN:
        limits.append(str(SCOPES[grant.rows]))
    if grant.kinds:
        limits.append(gettext("some kinds"))
    if grant.masked:
        limits.append(gettext("some fields hidden"))
    done = [action for action in policy.ACTIONS if action in grant.actions]
    return {
        "letters": "".join(LETTERS[action] for action in done),
        "words": ", ".join(str(DEEDS[action]).lower() for action in done),
        "limits": ", ".join(limits),
    }


# ---- making and retiring -------------------------------------------------------------------------------------------

_why = {
    "validators": [DataRequired(lazy_gettext("Please say in a few words why.")), Length(max=300)],
    "description": lazy_gettext("A few words; they are kept with the change."),
    "render_kw": {"maxlength": 300, "autocomplete": "off"},
}


def _to_copy() -> list[tuple[str, str]]:
    """The roles a new one can be a copy of."""
    known = roles.all_roles(guard.session())
    return [
        ("", gettext("Nothing yet")),
        *((str(line.id), gettext("The same as %(name)s", name=role_word(line.name))) for line in known),
    ]


class NewRoleForm(Form):
    """A role's name, and the one it is a copy of."""

    name = StringField(
        lazy_gettext("Name"),
        validators=[DataRequired(lazy_gettext("Please give the role a name."))],
        description=lazy_gettext("As people say it, for example Head nurse."),
        render_kw={"maxlength": roles.LONGEST_NAME, "autocomplete": "off"},
    )
    like = SelectField(lazy_gettext("May do"), choices=_to_copy, default="")
    reason = StringField(lazy_gettext("Why is it needed?"), **_why)


class ReasonForm(Form):
    """Why something is done."""

    reason = StringField(lazy_gettext("Why?"), **_why)


class NewRole(CommandView):
    """A role with nothing granted yet, or a copy of another one."""

    route_base = "/access/roles/new"
    form_class = NewRoleForm
    title = lazy_gettext("New role")
    action_label = lazy_gettext("Make the role")
    policy = ("create", "Role")

    @expose("/", methods=["GET", "POST"])
    def ask(self) -> Any:
        """The form."""
        return super().ask()

    def carry_out(self, session: Any, form: Form, **_route: Any) -> int:
        assert isinstance(form, NewRoleForm)
        like = form.like.data
        made = roles.create_role(
            session, name=form.name.data or "", reason=form.reason.data or "", like=int(like) if like else None
        )
        return int(made.id)

    def after(self, result: int, **_route: Any) -> str:
        flash(gettext("The role is there. Tick what it may do, then give it to people in their accounts."), "success")
        return url_for("RoleMatrix.open", role=result)

    def _page(self, form: Form, sentence: str | None, refusal: Refusal | None = None, **route: Any) -> str:
        del refusal, route
        return self.render(
            self.template,
            title=self.title,
            page_title=self.title,
            form=form,
            action_label=self.action_label,
            refusal=sentence,
            cancel_href=url_for("RoleMatrix.open"),
        )


class RetireRole(CommandView):
    """Taking a role out of use, or back into it."""

    route_base = "/access/roles/<int:role_id>/retire"
    form_class = ReasonForm
    policy = ("update", "Role")

    @expose("/", methods=["GET", "POST"])
    def ask(self, role_id: int) -> Any:
        """The form."""
        return super().ask(role_id=role_id)

    def carry_out(self, session: Any, form: Form, **route: Any) -> int:
        assert isinstance(form, ReasonForm)
        back = request.form.get("back") == "1"
        roles.retire_role(session, route["role_id"], reason=form.reason.data or "", back=back)
        return int(route["role_id"])

    def after(self, result: int, **_route: Any) -> str:
        flash(gettext("Saved. It counts from everybody's next click."), "success")
        return url_for("RoleMatrix.open", role=result)

    def _page(self, form: Form, sentence: str | None, refusal: Refusal | None = None, **route: Any) -> str:
        del refusal
        line = next((line for line in roles.all_roles(guard.session()) if line.id == route["role_id"]), None)
        if line is None:
            raise NotFound
        return self.render("access/roles_retire.html", role=_in_list(line, 0), form=form, refusal=sentence)


def register(builder: Any) -> None:
    """The matrix and what belongs to it."""
    for view in (RoleMatrix, NewRole, RetireRole):
        builder.add_view_no_menu(view)
