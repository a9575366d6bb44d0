"""The start page: today, the search box, and what waits, each according to what the person may do."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from flask import current_app, request, session, url_for
from flask_appbuilder import IndexView, expose
from flask_babel import format_date, get_locale, gettext
from sqlalchemy import func, select

from app import guard, policy
from app.actor import current
from app.services import patients
from models.audit import AuditEvent
from models.base import now
from models.clinical import Encounter
from models.organization import Practitioner, Room
from models.patients import Patient
from views.base import branch_zone, open_to_all
from views.branches import all_branches
from views.people import born, name_of


class Home(IndexView):
    """Where everybody begins."""

    route_base = ""
    default_view = "index"

    @expose("/")
    @open_to_all
    def index(self) -> Any:
        """The start page of whoever is signed in."""
        actor = current()
        here = datetime.now(branch_zone())
        hour = here.hour
        part = (
            gettext("Good morning")
            if hour < 12
            else gettext("Good afternoon")
            if hour < 18
            else gettext("Good evening")
        )
        return self.render_template(
            "home.html",
            page_title=gettext("Today"),
            greeting=f"{part}, {actor.name.split(' ')[0]}",
            today=format_date(here.date(), "EEEE, d MMMM yyyy"),
            cards=cards(),
            waits=waits(),
            recent=recent(),
        )


def cards() -> list[dict[str, Any]]:
    """The numbers a role wants to see first; none of them names anybody."""
    actor = current()
    db = guard.session()
    found: list[dict[str, Any]] = []

    def count(statement: Any) -> int:
        return db.scalar(statement) or 0

    if actor.may("create", "Patient"):
        since = now() - timedelta(days=7)
        found.append(
            {
                "title": gettext("Registered this week"),
                "value": count(select(func.count()).select_from(Patient).where(Patient.created_at >= since)),
                "hint": gettext("at every branch"),
                "href": url_for("PatientList.list"),
                "icon": "people",
                "tone": "accent",
            }
        )
    if actor.may("read", "Encounter") and actor.patient_id is None:
        since = now() - timedelta(days=30)
        found.append(
            {
                "title": gettext("Visits in 30 days"),
                "value": count(select(func.count()).select_from(Encounter).where(Encounter.started_at >= since)),
                "hint": gettext("at every branch"),
                "href": None,
                "icon": "calendar",
                "tone": "plain",
            }
        )
    if actor.may("update", "Practitioner"):
        found.append(
            {
                "title": gettext("People at work"),
                "value": count(
                    select(func.count())
                    .select_from(Practitioner)
                    .where(Practitioner.user_id.is_not(None), Practitioner.active)
                ),
                "hint": gettext("with an account"),
                "href": url_for("PractitionerView.list"),
                "icon": "staff",
                "tone": "plain",
            }
        )
        found.append(
            {
                "title": gettext("Rooms"),
                "value": count(select(func.count()).select_from(Room).where(Room.active)),
                "hint": gettext("in use"),
                "href": url_for("RoomView.list"),
                "icon": "room",
                "tone": "plain",
            }
        )
    if actor.may("read", "AuditEvent"):
        since = now() - timedelta(hours=24)
        recently = select(AuditEvent.id).where(AuditEvent.recorded >= since)
        found.append(
            {
                "title": gettext("Looks into records"),
                "value": count(select(func.count()).select_from(recently.limit(10_000).subquery())),
                "hint": gettext("in 24 hours"),
                "href": url_for("TrailView.list"),
                "icon": "trail",
                "tone": "accent",
            }
        )
        refused = recently.where(AuditEvent.outcome > 0)
        found.append(
            {
                "title": gettext("Refusals"),
                "value": count(select(func.count()).select_from(refused.limit(10_000).subquery())),
                "hint": gettext("in 24 hours"),
                "href": url_for("TrailView.list", outcome="4"),
                "icon": "shield",
                "tone": "warn",
            }
        )
    return found


def waits() -> list[dict[str, Any]]:
    """What somebody has to decide."""
    actor = current()
    db = guard.session()
    found: list[dict[str, Any]] = []
    if actor.may("update", "PatientLink"):
        pairs = len(patients.possible_duplicates(db, limit=100))
        if pairs:
            found.append(
                {
                    "title": gettext("Possibly registered twice"),
                    "hint": gettext("Look at each pair and say whether it is one person"),
                    "href": url_for("Duplicates.list"),
                    "count": pairs,
                }
            )
    if actor.may("update", "Patient"):
        unknown = db.scalar(select(func.count()).select_from(Patient).where(Patient.temporary, Patient.active)) or 0
        if unknown:
            found.append(
                {
                    "title": gettext("Patients without a known identity"),
                    "hint": gettext("Complete their registration when you know who they are"),
                    "href": url_for("PatientList.list", _flt_0_temporary="true"),
                    "count": unknown,
                }
            )
    return found


def recent() -> list[dict[str, Any]]:
    """The patients this person opened last, loaded through the gate like any other."""
    if not current().may("read", "Patient"):
        return []
    if current().patient_id is not None:
        keys = [current().patient_id]
    else:
        keys = list(session.get("recent", []))[:8]
    if not keys:
        return []
    known = {
        patient.id: patient
        for patient in guard.session().scalars(select(Patient).where(Patient.id.in_([k for k in keys if k])))
    }
    return [
        {
            "id": patient.id,
            "name": name_of(patient),
            "mrn": patient.mrn,
            "birth": born(patient),
            "href": url_for("Chart.open", patient_id=patient.id),
            "when": "",
        }
        for key in keys
        if key and (patient := known.get(key))
    ]


def remember(patient_id: int) -> None:
    """Put a patient at the head of those opened last."""
    keys = [key for key in session.get("recent", []) if key != patient_id]
    session["recent"] = [patient_id, *keys][:8]


NAVIGATION: tuple[tuple[str, str, str, str, tuple[str, str] | None], ...] = (
    ("Today", "Home.index", "home", "", None),
    ("Patients", "Finder.find", "people", "", ("read", "Patient")),
    ("Possible duplicates", "Duplicates.list", "pair", "", ("update", "PatientLink")),
    ("Who saw what", "TrailView.list", "trail", "Privacy", ("read", "AuditEvent")),
    ("Staff", "PractitionerView.list", "staff", "Hospital", ("update", "Practitioner")),
    ("Branches", "BranchView.list", "branch", "Hospital", ("update", "Branch")),
    ("Rooms", "RoomView.list", "room", "Hospital", ("update", "Room")),
    ("Organizations", "OrganizationView.list", "building", "Hospital", ("update", "Organization")),
    ("Accounts", "AccountView.list", "key", "Access", ("read", "User")),
    ("Roles", "RoleView.list", "shield", "Access", ("read", "Role")),
)
"""Label, endpoint, icon, group, and what it takes to see it."""


def page_context() -> dict[str, Any]:
    """What every page may speak of."""
    from app.actor import acting

    at_work = acting()
    actor = at_work.actor if at_work else None
    signed = actor is not None and actor.user_id is not None
    branches = all_branches() if signed and actor is not None and actor.may("read", "Branch") else {}
    mine = actor.branch_ids if actor else ()
    return {
        "actor": actor if signed else None,
        "may": (actor.may if actor else lambda _action, _resource: False),
        "branches": [branches[key] for key in mine if key in branches],
        "branch": branches.get(actor.branch_id) if actor and actor.branch_id else None,
        "spoken_roles": [gettext(policy.SPOKEN.get(role, role)) for role in actor.roles] if actor else [],
        "nav": navigation(actor) if signed else [],
        "demo": current_app.config["DEMO"],
        "get_locale": get_locale,
    }


def navigation(actor: Any) -> list[dict[str, Any]]:
    """The ways a person may go."""
    entries = []
    for text, endpoint, icon, group, needed in NAVIGATION:
        if needed is not None and not actor.may(*needed):
            continue
        if actor.patient_id is not None and endpoint == "Finder.find":
            continue
        href = url_for(endpoint)
        here = request.path == href or (href != "/" and request.path.startswith(href.removesuffix("list/")))
        entries.append(
            {
                "label": gettext(text),
                "href": href,
                "icon": icon,
                "current": here,
                "group": gettext(group) if group else "",
            }
        )
    return entries


def register(builder: Any) -> None:
    """The start page is registered by the builder itself."""
    del builder
