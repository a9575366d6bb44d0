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
from models.patients import Patient
from views.base import Page, branch_zone, open_to, words
from views.branches import all_branches
from views.people import name_of

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
}


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
    return audit.Question(
        patient=text.get("patient", "")[:100],
        person=text.get("person", "")[:100],
        branch_id=int(text["branch"]) if text.get("branch", "").isdigit() else None,
        action=text.get("action", "") if text.get("action", "") in ACTIONS else "",
        outcome=int(text["outcome"]) if text.get("outcome", "") in OUTCOMES else None,
        since=day("from"),
        until=until + timedelta(days=1) if until else None,
        before=before,
    )


def row(event: AuditEvent, known: dict[int, Patient], facts: dict[int, Any]) -> dict[str, Any]:
    """A line of the trail in words."""
    patient = known.get(event.patient_id or 0)
    branch = facts.get(event.branch_id or 0)
    return {
        "when": words(event.recorded),
        "who": event.agent_name or gettext("Nobody signed in"),
        "roles": ", ".join(gettext(policy.SPOKEN.get(role, role.removeprefix("service:"))) for role in event.roles),
        "action_word": SUBTYPES.get(event.subtype) or ACTIONS.get(event.action, event.action),
        "what": "; ".join(told(entity) for entity in event.entities) or (event.query or ""),
        "query": event.query,
        "patient": name_of(patient) if patient else (f"#{event.patient_id}" if event.patient_id else "—"),
        "mrn": patient.mrn if patient else "",
        "patient_href": url_for("TrailView.list", patient=patient.mrn) if patient else None,
        "branch": branch.name if branch else "",
        "purpose": event.purpose,
        "outcome": event.outcome,
        "outcome_word": OUTCOMES.get(str(event.outcome), str(event.outcome)),
        "reason": event.reason or "",
        "address": event.address or "",
        "channel": event.channel,
    }


def told(entity: dict[str, Any]) -> str:
    """What was seen or changed: the kind, how many, and which fields by name."""
    kind = str(SPOKEN.get(entity.get("type", ""), entity.get("type", "")))
    count = len(entity.get("ids") or [])
    text = f"{kind} ({count})" if count > 1 else kind
    fields = entity.get("fields")
    return f"{text}: {', '.join(fields)}" if fields else text


def register(builder: Any) -> None:
    """The trail."""
    builder.add_view_no_menu(TrailView)
