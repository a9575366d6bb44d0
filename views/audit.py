"""The trail, for the privacy officer."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from flask import request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext

from app import guard, policy
from app.services import audit
from models.audit import AuditEvent
from models.codes import RowScope
from models.patients import Patient
from views.base import Page, branch_zone, open_to, words
from views.branches import all_branches
from views.people import name_of
from views.roles import DEEDS, FIELDS_IN_SHORT, KINDS, SCOPES, role_word, thing

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
SUBTYPES = {
    "110122": lazy_gettext("Signed in"),
    "110123": lazy_gettext("Signed out"),
    "search": lazy_gettext("Found by searching"),
    "view-as began": lazy_gettext("Began to look as a role"),
    "view-as ended": lazy_gettext("Stopped looking as a role"),
    "view-as": lazy_gettext("Tried to look as a role"),
}
SPOKEN = {
    "Patient": lazy_gettext("registration"),
    "PatientIdentifier": lazy_gettext("numbers"),
    "Encounter": lazy_gettext("visits"),
    "Condition": lazy_gettext("conditions"),
    "AllergyIntolerance": lazy_gettext("allergies"),
    "Observation": lazy_gettext("observations"),
    "Procedure": lazy_gettext("procedures"),
    "Immunization": lazy_gettext("immunisations"),
    "DiagnosticReport": lazy_gettext("reports"),
    "MedicationRequest": lazy_gettext("medications"),
    "DocumentReference": lazy_gettext("documents"),
    "ClinicalNote": lazy_gettext("notes"),
    "SourceResource": lazy_gettext("received records"),
    "AuditEvent": lazy_gettext("the trail"),
    "PatientLink": lazy_gettext("possible duplicates"),
    "User": lazy_gettext("account"),
    "Role": lazy_gettext("role"),
    "RoleGrant": lazy_gettext("role"),
    "RoleSetting": lazy_gettext("role"),
    "Credential": lazy_gettext("sign-in"),
    "EmergencyAccess": lazy_gettext("emergency access"),
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
            arguments = {**request.args.to_dict(), "before": f"{last.recorded.isoformat()}~{last.id}"}
            older = f"{url_for('TrailView.list')}?{urlencode(arguments)}"
        facts = all_branches()
        state = audit.drain(guard.session())
        drain = {"waiting": state.waiting, "oldest": "", "drained_at": words(state.drained_at)}
        return self.render(
            "audit/trail.html",
            page_title=gettext("Who saw what"),
            rows=[row(event, answer.patients, facts) for event in answer.events],
            older_href=older,
            newest_href=url_for("TrailView.list"),
            asked=request.args,
            actions=list(ACTIONS.items()),
            outcomes=list(OUTCOMES.items()),
            all_branches=[(facts.id, facts.name) for facts in facts.values()],
            drain=drain,
        )


def question() -> audit.Question:
    """What the page was asked; nonsense counts as not asked."""
    text = request.args
    zone = branch_zone()

    def day(name: str) -> datetime | None:
        try:
            asked = datetime.fromisoformat(text.get(name, "")).date()
        except ValueError:
            return None
        return datetime.combine(asked, time(), zone) if 1900 <= asked.year <= 2200 else None

    before = None
    if "~" in text.get("before", ""):
        when, key = text["before"].split("~", 1)
        try:
            before = (datetime.fromisoformat(when), UUID(key))
        except ValueError:
            before = None
    until = day("to")
    role = text.get("role", "")
    return audit.Question(
        patient=text.get("patient", "")[:100],
        person=text.get("person", "")[:100],
        branch_id=int(text["branch"]) if text.get("branch", "").isdigit() else None,
        action=text.get("action", "") if text.get("action", "") in ACTIONS else "",
        outcome=int(text["outcome"]) if text.get("outcome", "") in OUTCOMES else None,
        since=day("from"),
        until=until + timedelta(days=1) if until else None,
        role_id=int(role) if role.isdigit() and len(role) < 10 else None,
        before=before,
    )


def row(event: AuditEvent, known: dict[int, Patient], facts: dict[int, Any]) -> dict[str, Any]:
    """A line of the trail in words."""
    patient = known.get(event.patient_id or 0)
    branch = facts.get(event.branch_id or 0)
    return {
        "when": words(event.recorded),
        "who": event.agent_name or gettext("Nobody signed in"),
        "roles": ", ".join(held(role) for role in event.roles),
        "action_word": SUBTYPES.get(f"{event.subtype} {event.reason}")
        or SUBTYPES.get(event.subtype)
        or ACTIONS.get(event.action, event.action),
        "what": "; ".join(dict.fromkeys(told(entity) for entity in event.entities)) or (event.query or ""),
        "query": event.query,
        "patient": name_of(patient) if patient else (f"#{event.patient_id}" if event.patient_id else "—"),
        "mrn": patient.mrn if patient else "",
        "patient_href": url_for("TrailView.list", patient=patient.mrn) if patient else None,
        "branch": branch.name if branch else "",
        "purpose": event.purpose,
        "outcome": event.outcome,
        "outcome_word": OUTCOMES.get(str(event.outcome), str(event.outcome)),
        "reason": (event.reason or "") if event.outcome == 0 and event.subtype != "view-as" else "",
        "changes": [change for entity in event.entities for change in changes_of(entity)],
        "address": event.address or "",
        "channel": event.channel,
    }


def held(role: str) -> str:
    """A role as the trail writes it, in words; with `as:` it was looked as, and not held."""
    if role.startswith("as:"):
        return str(gettext("looking as %(role)s", role=role_word(role.removeprefix("as:"))))
    return str(gettext(policy.SPOKEN.get(role, role.removeprefix("service:"))))


def told(entity: dict[str, Any]) -> str:
    """What was seen or changed: the kind, how many, and which fields by name."""
    kind = str(SPOKEN.get(entity.get("type", ""), entity.get("type", "")))
    count = len(entity.get("ids") or [])
    text = f"{kind} ({count})" if count > 1 else kind
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
    """The trail."""
    builder.add_view_no_menu(TrailView)
