"""The trail, for the privacy officer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from flask import request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext

from app import guard, policy
from app.services import audit
from models.audit import AuditEvent
from models.base import now
from models.codes import PurposeOfUse, RowScope
from models.patients import Patient
from views.base import Page, branch_zone, open_to, words
from views.branches import all_branches
from views.people import name_of
from views.roles import DEEDS, FIELDS_IN_SHORT, KINDS, SCOPES, role_word, thing
from views.speech import spoken_day

ACTIONS = {
    "R": lazy_gettext("Saw"),
    "E": lazy_gettext("Searched or signed in"),
    "C": lazy_gettext("Wrote"),
    "U": lazy_gettext("Changed"),
    "D": lazy_gettext("Removed"),
}
OUTCOMES = {
    "0": lazy_gettext("Granted"),
    "4": lazy_gettext("Refused"),
    "8": lazy_gettext("Failed"),
    "12": lazy_gettext("Broken"),
}
PURPOSES: dict[str, Any] = {
    PurposeOfUse.TREAT: lazy_gettext("Treatment"),
    PurposeOfUse.BTG: lazy_gettext("Emergency access"),
    PurposeOfUse.ETREAT: lazy_gettext("Emergency treatment"),
    PurposeOfUse.HOPERAT: lazy_gettext("Hospital operations"),
    PurposeOfUse.PATRQT: lazy_gettext("The patient asked"),
    PurposeOfUse.HSYSADMIN: lazy_gettext("Administration"),
}
TRIED = {
    "read": lazy_gettext("Wanted to see"),
    "create": lazy_gettext("Wanted to add"),
    "update": lazy_gettext("Wanted to change"),
    "delete": lazy_gettext("Wanted to remove"),
    "sign-in": lazy_gettext("Tried to sign in"),
}
"""What was done, where it was refused."""
REFUSALS = {
    "Forbidden": lazy_gettext("the role does not allow it"),
    "OutsideRows": lazy_gettext("the patient was not among theirs"),
    "OwnRoles": lazy_gettext("nobody changes their own rights"),
    "LookingOnly": lazy_gettext("they were looking as another role"),
    "NotInUse": lazy_gettext("the role is not in use"),
    "SecondFactorOwed": lazy_gettext("the second step at sign-in was not set up"),
    "NotSignedIn": lazy_gettext("the sign-in did not hold"),
    "TooManyTries": lazy_gettext("there were too many tries"),
}
"""The names of refusals in words."""
PERIODS: dict[str, tuple[Any, int | None]] = {
    "30": (lazy_gettext("30 days"), 30),
    "365": (lazy_gettext("1 year"), 365),
    "all": (lazy_gettext("All there is"), None),
}
BEGINNING = date(2000, 1, 1)
"""Before any line of any trail."""
SUBTYPES = {
    "export": lazy_gettext("Downloaded"),
    "check": lazy_gettext("Checked the trail"),
    "110122": lazy_gettext("Signed in"),
    "110123": lazy_gettext("Signed out"),
    "search": lazy_gettext("Found by searching"),
    "view-as began": lazy_gettext("Began to look as a role"),
    "view-as ended": lazy_gettext("Stopped looking as a role"),
    "view-as": lazy_gettext("Tried to look as a role"),
    "make-feed": lazy_gettext("Made a calendar address"),
    "end-feed": lazy_gettext("Ended a calendar address"),
}
SPOKEN = {
    "Patient": lazy_gettext("registration"),
    "PatientIdentifier": lazy_gettext("numbers"),
    "Encounter": lazy_gettext("visits"),
    "Appointment": lazy_gettext("appointments"),
    "WaitlistEntry": lazy_gettext("places on the waiting list"),
    "Communication": lazy_gettext("messages to the patient"),
    "Condition": lazy_gettext("conditions"),
    "AllergyIntolerance": lazy_gettext("allergies"),
    "Observation": lazy_gettext("observations"),
    "Procedure": lazy_gettext("procedures"),
    "Immunization": lazy_gettext("immunisations"),
    "DiagnosticReport": lazy_gettext("reports"),
    "MedicationRequest": lazy_gettext("medications"),
    "MedicationDispense": lazy_gettext("medicines handed out"),
    "DetectedIssue": lazy_gettext("warnings about medicines"),
    "ServiceRequest": lazy_gettext("orders"),
    "Specimen": lazy_gettext("specimens"),
    "CriticalResult": lazy_gettext("critical results"),
    "LabTest": lazy_gettext("tests of the laboratory"),
    "LabPanel": lazy_gettext("panels of the laboratory"),
    "ReferenceRange": lazy_gettext("reference ranges"),
    "UnitConversion": lazy_gettext("conversions of units"),
    "OnCall": lazy_gettext("who is on call"),
    "Hl7Message": lazy_gettext("messages of other systems"),
    "PatientProposal": lazy_gettext("proposed changes"),
    "DocumentReference": lazy_gettext("documents"),
    "ClinicalNote": lazy_gettext("notes"),
    "SourceResource": lazy_gettext("received records"),
    "AuditEvent": lazy_gettext("the trail"),
    "PatientLink": lazy_gettext("possible duplicates"),
    "PatientMerge": lazy_gettext("merged records"),
    "User": lazy_gettext("account"),
    "Role": lazy_gettext("role"),
    "RoleGrant": lazy_gettext("role"),
    "RoleSetting": lazy_gettext("role"),
    "Credential": lazy_gettext("sign-in"),
    "EmergencyAccess": lazy_gettext("emergency access"),
    "UnusualAccess": lazy_gettext("unusual access"),
    "AuditQuarantine": lazy_gettext("an entry in quarantine"),
}
CHANGED = {
    "active": lazy_gettext("may sign in"),
    "email": lazy_gettext("e-mail"),
    "first_name": lazy_gettext("first name"),
    "last_name": lazy_gettext("last name"),
    "name": lazy_gettext("name"),
    "username": lazy_gettext("user name"),
    "password": lazy_gettext("password"),
    "roles": lazy_gettext("roles"),
    "groups": lazy_gettext("groups"),
    "user": lazy_gettext("held by"),
    "users": lazy_gettext("held by"),
    "permissions": lazy_gettext("may"),
    "rows": lazy_gettext("which ones"),
    "kinds": lazy_gettext("only kinds"),
    "masked": lazy_gettext("hidden"),
    "resource": lazy_gettext("on"),
    "second_factor": lazy_gettext("second factor"),
    "retired_at": lazy_gettext("retired"),
    "totp_secret": lazy_gettext("second factor"),
    "totp_confirmed_at": lazy_gettext("second factor confirmed"),
    "recovery_codes": lazy_gettext("recovery codes"),
    "password_changed_at": lazy_gettext("password set"),
}
"""The fields of accounts and roles, in words."""
HELD = ("roles", "groups", "permissions", "user", "users")
"""Those of which the trail has what was lost and what was gained."""


class TrailView(Page):
    """Who saw what, when, from where."""

    route_base = "/trail"
    default_view = "list"

    @expose("/")
    @open_to("read", "AuditEvent")
    def list(self) -> str:
        """A page of the trail."""
        asked = question()
        answer = audit.search(guard.session(), asked)
        older = None
        if answer.more:
            last = answer.events[-1]
            older = _address(before=f"{last.recorded.isoformat()}~{last.id}")
        facts = all_branches()
        state = audit.standing(guard.session())
        drain = {"waiting": state.stream, "oldest": "", "drained_at": words(state.drained_at)}
        return self.render(
            "audit/trail.html",
            page_title=gettext("Who saw what"),
            rows=[row(event, answer.patients, facts) for event in answer.events],
            older_href=older,
            newest_href=_address(before=None),
            asked=request.args,
            actions=list(ACTIONS.items()),
            purposes=list(PURPOSES.items()),
            outcomes=list(OUTCOMES.items()),
            all_branches=[(facts.id, facts.name) for facts in facts.values()],
            drain=drain,
            **meant(asked, answer),
            **files(),
        )

    @expose("/patients/<int:patient_id>/")
    @open_to("read", "AuditEvent")
    def patient(self, patient_id: int) -> str:
        """Who saw one patient's record. Raises NotFound."""
        period = request.args.get("period", "")
        period = period if period in PERIODS else "30"
        days = PERIODS[period][1]
        first = today() - timedelta(days=days) if days else BEGINNING
        found = audit.who_saw(guard.session(), patient_id, beginning_of(first))
        facts, known = all_branches(), {found.patient.id: found.patient}
        asked: dict[str, Any] = {"of": patient_id, "from": first.isoformat()}
        last = found.events[-1] if found.more else None
        return self.render(
            "audit/patient.html",
            page_title=gettext("Who saw this patient"),
            patient={"name": name_of(found.patient), "mrn": found.patient.mrn},
            chart_href=url_for("Chart.open", patient_id=patient_id),
            periods=[
                {"label": label, "href": url_for("TrailView.patient", patient_id=patient_id, period=key), "key": key}
                for key, (label, _) in PERIODS.items()
            ],
            period=period,
            lookers=[looker(each, facts) for each in found.lookers],
            cut=audit.SUMMED if found.cut else 0,
            rows=[row(event, known, facts) for event in found.events],
            of_one=True,
            older_href=url_for("TrailView.list", before=f"{last.recorded.isoformat()}~{last.id}", **asked)
            if last
            else None,
            **files(**asked),
        )

    @expose("/people/<int:user_id>/")
    @open_to("read", "AuditEvent")
    def person(self, user_id: int) -> str:
        """What one person saw on one day."""
        on = _date("day") or today()
        tomorrow = on + timedelta(days=1)
        found = audit.day_of(guard.session(), user_id, beginning_of(on), beginning_of(tomorrow))
        facts = all_branches()
        asked: dict[str, Any] = {"who": user_id, "from": on.isoformat(), "to": on.isoformat()}

        def other_day(day: date) -> str:
            return url_for("TrailView.person", user_id=user_id, day=day.isoformat())

        return self.render(
            "audit/person.html",
            page_title=gettext("What this person saw"),
            name=found.name,
            roles=", ".join(held(role) for role in found.roles),
            day=on.isoformat(),
            spoken=spoken_day(on),
            is_today=on == today(),
            earlier_href=other_day(on - timedelta(days=1)),
            later_href=other_day(tomorrow) if on < today() else None,
            today_href=url_for("TrailView.person", user_id=user_id),
            list_href=url_for("TrailView.list", **asked),
            hours=hours(found.hours, beginning_of(on)),
            seen=[doings(each, found.patients.get(key), key) for key, each in found.seen],
            refused=[row(event, found.patients, facts) for event in found.refused],
            others=[row(event, found.patients, facts) for event in found.others],
            cut=audit.SUMMED if found.cut else 0,
            **files(**asked),
        )


# ---- what was asked ------------------------------------------------------------------------------------------------


def today() -> date:
    """The day it is at the branch the actor works at."""
    return now().astimezone(branch_zone()).date()


def beginning_of(day: date) -> datetime:
    """The first instant of a day at the branch the actor works at."""
    return datetime.combine(day, time(), branch_zone())


def _date(name: str) -> date | None:
    """A day from the address line; None where it is none."""
    try:
        asked = datetime.fromisoformat(request.args.get(name, "")).date()
    except ValueError:
        return None
    return asked if 1900 <= asked.year <= 2200 else None


def _number(name: str) -> int | None:
    """A number from the address line; None where it is none."""
    text = request.args.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def _address(**changed: Any) -> str:
    """This page with other arguments; None takes one away."""
    arguments = {name: value for name, value in {**request.args.to_dict(), **changed}.items() if value is not None}
    return f"{request.path}?{urlencode(arguments)}" if arguments else request.path


def question() -> audit.Question:
    """What the page was asked; nonsense counts as not asked."""
    text = request.args
    before = None
    if "~" in text.get("before", ""):
        when, key = text["before"].split("~", 1)
        try:
            before = (datetime.fromisoformat(when), UUID(key))
        except ValueError:
            before = None
        if before and before[0].tzinfo is None:
            before = None
    since, until, role = _date("from"), _date("to"), _number("role")
    return audit.Question(
        patient=text.get("patient", "")[:100].strip(),
        patient_id=_number("of"),
        person=text.get("person", "")[:100].strip(),
        user_id=_number("who"),
        by_name=text.get("by") == "name",
        branch_id=_number("branch"),
        action=text.get("action", "") if text.get("action", "") in ACTIONS else "",
        purpose=text.get("purpose", "") if text.get("purpose", "") in set(PurposeOfUse) else "",
        outcome=int(text["outcome"]) if text.get("outcome", "") in OUTCOMES else None,
        since=beginning_of(since) if since else None,
        until=beginning_of(until + timedelta(days=1)) if until else None,
        role_id=role if role is not None and role < 2**31 else None,
        before=before,
    )


def meant(asked: audit.Question, answer: audit.Answer) -> dict[str, Any]:
    """Who the words of a question were taken for, and the way to exactly one of them."""
    found = answer.asked
    people = [
        {
            "name": person.name,
            "roles": ", ".join(role_word(role) for role in person.roles),
            "href": url_for("TrailView.person", user_id=person.user_id),
            "only_href": _address(who=person.user_id, person=None, by=None, before=None),
        }
        for person in found.people
    ]
    patients = [
        {"name": name_of(patient), "mrn": patient.mrn, "href": url_for("TrailView.patient", patient_id=patient.id)}
        for patient in found.patients
    ]
    chosen = next((person["name"] for person in people), gettext("Account %(number)s", number=asked.user_id))
    patient = answer.patients.get(asked.patient_id or 0)
    return {
        "people": people if asked.user_id is None else [],
        "patients": patients,
        "person_chosen": {"name": chosen, "href": url_for("TrailView.person", user_id=asked.user_id)}
        if asked.user_id is not None
        else None,
        "patient_chosen": {
            "name": f"{name_of(patient)}, {patient.mrn}" if patient else f"#{asked.patient_id}",
            "href": url_for("TrailView.patient", patient_id=asked.patient_id),
        }
        if asked.patient_id is not None
        else None,
        "anybody_href": _address(who=None, before=None),
        "any_patient_href": _address(of=None, before=None),
        "by_name": found.by_name,
        "by_name_href": _address(by="name", before=None) if asked.person and not asked.by_name else None,
        "by_account_href": _address(by=None, before=None) if asked.by_name else None,
        "vague": audit.NAMED if found.vague else 0,
        "looked_back": audit.LOOK_BACK.days if asked.since is None else 0,
    }


def files(**asked: Any) -> dict[str, str]:
    """Where the lines of a question are to be had as files; of this page's, where none is named."""
    arguments: dict[str, Any] = asked or {k: v for k, v in request.args.to_dict().items() if k != "before"}
    return {
        "csv_href": url_for("TrailFiles.csv", **arguments),
        "fhir_href": url_for("TrailFiles.fhir", **arguments),
    }


# ---- in words ------------------------------------------------------------------------------------------------------


def row(event: AuditEvent, known: dict[int, Patient], facts: dict[int, Any]) -> dict[str, Any]:
    """A line of the trail in words."""
    patient = known.get(event.patient_id or 0)
    branch = facts.get(event.branch_id or 0)
    here = event.recorded.astimezone(branch_zone())
    reason = event.reason or ""
    if event.outcome != 0:
        reason = str(REFUSALS.get(reason, ""))
    elif event.subtype == "view-as":
        reason = ""
    return {
        "when": words(event.recorded),
        "clock": f"{here:%H:%M}",
        "who": event.agent_name or gettext("Nobody signed in"),
        "who_href": url_for("TrailView.person", user_id=event.user_id, day=here.date().isoformat())
        if event.user_id is not None
        else None,
        "roles": ", ".join(held(role) for role in event.roles),
        "action_word": done(event),
        "what": "; ".join(dict.fromkeys(told(entity) for entity in event.entities)) or (event.query or ""),
        "query": event.query,
        "patient": name_of(patient) if patient else (f"#{event.patient_id}" if event.patient_id else "—"),
        "mrn": patient.mrn if patient else "",
        "patient_href": url_for("TrailView.patient", patient_id=patient.id) if patient else None,
        "branch": branch.name if branch else "",
        "purpose": event.purpose,
        "purpose_word": "" if event.purpose == PurposeOfUse.TREAT else PURPOSES.get(event.purpose, event.purpose),
        "emergency": event.purpose == PurposeOfUse.BTG,
        "outcome": event.outcome,
        "outcome_word": OUTCOMES.get(str(event.outcome), str(event.outcome)),
        "reason": reason,
        "changes": [change for entity in event.entities for change in changes_of(entity)],
        "address": event.address or "",
        "channel": event.channel,
    }


def done(event: AuditEvent) -> Any:
    """What was done, or tried, in words."""
    if event.outcome == 4 and event.subtype in TRIED:
        return TRIED[event.subtype]
    return (
        SUBTYPES.get(f"{event.subtype} {event.reason}")
        or SUBTYPES.get(event.subtype)
        or ACTIONS.get(event.action, event.action)
    )


def looker(each: audit.Looker, facts: dict[int, Any]) -> dict[str, Any]:
    """What one person did with a patient's record, in words."""
    return {
        "name": each.name or gettext("Nobody signed in"),
        "href": url_for(
            "TrailView.person", user_id=each.user_id, day=each.last.astimezone(branch_zone()).date().isoformat()
        )
        if each.user_id is not None
        else None,
        "roles": ", ".join(held(role) for role in each.roles),
        "branches": ", ".join(facts[key].name for key in each.branches if key in facts),
        "first": words(each.first),
        "last": words(each.last),
        "times": each.times,
        **_doings(each),
    }


def doings(each: audit.Doings, patient: Patient | None, key: int) -> dict[str, Any]:
    """What somebody did with one patient's record on a day, in words."""
    zone = branch_zone()
    first, last = (f"{when.astimezone(zone):%H:%M}" for when in (each.first, each.last))
    return {
        "clock": first if first == last else f"{first} – {last}",
        "times": each.times,
        "patient": name_of(patient) if patient else f"#{key}",
        "mrn": patient.mrn if patient else "",
        "href": url_for("TrailView.patient", patient_id=key) if patient else None,
        **_doings(each),
    }


def _doings(each: audit.Doings) -> dict[str, Any]:
    others = [purpose for purpose in each.purposes if purpose != PurposeOfUse.BTG]
    return {
        "seen": kinds_of(each.seen),
        "changed": kinds_of(each.changed),
        "refused": each.refused,
        "emergency": each.emergency,
        "purposes": ", ".join(str(PURPOSES.get(purpose, purpose)) for purpose in others),
    }


def kinds_of(found: dict[str, set[Any]]) -> str:
    """Kinds of record and how many of each, such as "registration, visits (3)"."""
    return ", ".join(told({"type": kind, "ids": sorted(keys)}) for kind, keys in found.items())


def hours(counts: Sequence[int], start: datetime) -> dict[str, Any] | None:
    """Looks into records hour by hour, for a plot and its table; None where there are none."""
    if not any(counts):
        return None
    zone = branch_zone()
    utc = start.astimezone(UTC)
    clocks = [f"{(utc + timedelta(hours=index)).astimezone(zone):%H:%M}" for index in range(len(counts))]
    most = max(counts)
    return {
        "bars": [
            {"clock": clock, "count": count, "height": max(round(count / most * 100, 1), 3) if count else 0}
            for clock, count in zip(clocks, counts, strict=True)
        ],
        "most": most,
        "busiest": clocks[list(counts).index(most)],
        "total": sum(counts),
    }


def held(role: str) -> str:
    """A role as the trail writes it, in words; with `as:` it was looked as, and not held."""
    if role.startswith("as:"):
        return str(gettext("looking as %(role)s", role=role_word(role.removeprefix("as:"))))
    if role.startswith("service:"):
        return str(gettext("Wardbook itself"))
    return str(gettext(policy.SPOKEN.get(role, role)))


def told(entity: dict[str, Any]) -> str:
    """What was seen or changed: the kind, how many, and which fields by name."""
    kind = str(SPOKEN.get(entity.get("type", ""), entity.get("type", "")))
    count = len(entity.get("ids") or [])
    text = f"{kind} ({count})" if count > 1 else kind
    if "lines" in entity:
        return str(
            gettext("%(count)s lines of the trail as %(kind)s", count=entity["lines"], kind=str(entity["as"]).upper())
        )
    if called := entity.get("of"):
        text = f"{text} {role_word(called) if entity['type'].startswith('Role') else called}"
    fields = entity.get("fields")
    if not fields or entity.get("new"):
        return text
    return f"{text}: {', '.join(str(CHANGED.get(name, name)) for name in fields)}"


def changes_of(entity: dict[str, Any]) -> list[dict[str, Any]]:
    """What a change of an account or role was and is, field by field: of a relation what was lost and gained."""
    new = entity.get("new")
    if not isinstance(new, dict):
        return []
    old = entity.get("old") or {}
    on = entity.get("resource") or new.get("resource")
    made = "fields" not in entity
    found = []
    for name, value in new.items():
        before, after = "" if made else said(name, old.get(name)), said(name, value)
        usual = made and (not value or value == RowScope.CHAIN)
        if name != "resource" and before != after and not usual:
            label = f"{thing(on)}: {CHANGED.get(name, name)}" if on else str(CHANGED.get(name, name))
            found.append({"field": label, "old": before, "new": after, "both": name in HELD})
    return found


def said(name: str, value: Any) -> str:
    """A value of an account or role in words; nothing where there is none."""
    if name == "permissions":
        return ", ".join(sorted(_permission(each) for each in value or []))
    if name in HELD:
        return ", ".join(sorted(role_word(each) for each in value or []))
    if name == "kinds":
        return ", ".join(str(KINDS.get(each, each)).lower() for each in value or []) or str(gettext("every kind"))
    if name == "masked":
        return ", ".join(str(FIELDS_IN_SHORT.get(each, each)).lower() for each in value or []) or str(
            gettext("nothing")
        )
    if name == "rows":
        return str(SCOPES.get(value or "", value or "")).lower()
    if name == "resource":
        return thing(value or "")
    if name == "retired_at":
        return str(gettext("yes") if value else gettext("no"))
    return str(words(value)) if value is not None else ""


def _permission(text: str) -> str:
    """ "can read on Patient" as "see patients"."""
    deed, _, resource = text.removeprefix("can ").partition(" on ")
    return f"{DEEDS.get(deed, deed)} {thing(resource)}".lower() if resource else text


def register(builder: Any) -> None:
    """The trail, and the trail as files."""
    from views.audit_files import TrailFiles

    builder.add_view_no_menu(TrailView)
    builder.add_view_no_menu(TrailFiles)
