"""The start page: today, the search box, and what waits, each according to what the person may do."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

from flask import current_app, g, request, session, url_for
from flask_appbuilder import IndexView, expose
from flask_babel import format_date, format_decimal, get_locale, gettext, lazy_gettext
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app import guard, policy
from app.actor import Actor, current
from app.services import emergencies, patients, waiting
from app.services.figures import Figures, figures
from models.patients import Patient
from views import watch
from views.base import branch_zone, open_to_all
from views.branches import all_branches
from views.people import born, name_of
from views.speech import spoken_day


class Home(IndexView):
    """Where everybody begins."""

    route_base = ""
    default_view = "index"

    @expose("/")
    @open_to_all
    def index(self) -> Any:
        """The start page of whoever is signed in."""
        actor = current()
        told = figures(guard.session())
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
            cards=cards(told),
            visits=visits_by_day(told),
            waits=[*waits(), *unidentified(told)],
            recent=recent(),
        )


CARDS: tuple[tuple[str, Any, int, Any, str, str, str], ...] = (
    ("registrations", lazy_gettext("Registered"), 7, lazy_gettext("in 7 days"), "PatientList.list", "people", "accent"),
    ("visits", lazy_gettext("Visits"), 30, lazy_gettext("in 30 days"), "", "calendar", "plain"),
    (
        "staff",
        lazy_gettext("People at work"),
        0,
        lazy_gettext("with an account"),
        "PractitionerView.list",
        "staff",
        "plain",
    ),
    ("rooms", lazy_gettext("Rooms"), 0, lazy_gettext("in use"), "RoomView.list", "room", "plain"),
    ("looks", lazy_gettext("Looks into records"), 0, lazy_gettext("in 24 hours"), "TrailView.list", "trail", "accent"),
    ("refusals", lazy_gettext("Refusals"), 0, lazy_gettext("in 24 hours"), "TrailView.list", "shield", "warn"),
)
"""Figure, title, days (0 for all there are), when, where it leads, icon, tone."""


def cards(told: Figures) -> list[dict[str, Any]]:
    """The numbers a role wants to see first; none of them names anybody."""
    found = []
    for kind, title, days, when, endpoint, icon, tone in CARDS:
        if kind not in told.kinds:
            continue
        value = told.total(kind, since=told_days(told, days)[0] if days else None)
        where = gettext("every branch") if kind in told.of_the_chain else gettext("your branches")
        asked: dict[str, Any] = {"outcome": "4"} if kind == "refusals" else {}
        found.append(
            {
                "title": title,
                "value": gettext("%(most)s +", most=format_decimal(MOST)) if value > MOST else format_decimal(value),
                "hint": f"{when}, {where}",
                "href": url_for(endpoint, **asked) if endpoint and current().may(*NEEDED[endpoint]) else None,
                "icon": icon,
                "tone": tone,
            }
        )
    return found


def told_days(told: Figures, count: int) -> list[date]:
    """The last days there are figures of, today among them; a branch may be a day ahead of this one."""
    counted = (row.day for row in told.rows if row.name in ("visits", "registrations"))
    last = max([datetime.now(branch_zone()).date(), *counted])
    return [last - timedelta(days=ago) for ago in reversed(range(count))]


def visits_by_day(told: Figures) -> dict[str, Any] | None:
    """Visits a day over 30 days, at the actor's branch and at every branch as far as they are told of it."""
    if "visits" not in told.kinds:
        return None
    days = told_days(told, 30)
    here = all_branches().get(current().branch_id or 0)
    lines = []
    if here is not None:
        lines.append({"name": here.name, "counts": told.by_day("visits", days, branch_id=here.id)})
    if "visits" in told.of_the_chain:
        lines.append({"name": gettext("Every branch"), "counts": told.by_day("visits", days)})
    elif here is None or len(current().branch_ids) > 1:
        lines.append({"name": gettext("Your branches"), "counts": told.by_day("visits", days)})
    return {"days": [{"day": spoken_day(day), "short": format_date(day, "d MMM")} for day in days], "lines": lines}


def unidentified(told: Figures) -> list[dict[str, Any]]:
    """Patients somebody has to find out about, as far as the list it leads to can show them."""
    actor = current()
    if "unidentified" not in told.kinds or not (actor.may("update", "Patient") and actor.may("read", "Patient")):
        return []
    narrow = ("read", "Patient") in actor.rights.reach
    unknown = told.total("unidentified", branches=actor.branch_ids if narrow else None)
    if not unknown:
        return []
    return [
        {
            "title": gettext("Patients without a known identity"),
            "hint": gettext("Complete their registration when you know who they are"),
            "href": url_for("PatientList.list", _flt_0_temporary="true"),
            "count": unknown,
        }
    ]


def waits() -> list[dict[str, Any]]:
    """What somebody has to decide."""
    actor = current()
    db = guard.session()
    found: list[dict[str, Any]] = []
    if actor.may("update", "PatientLink") and actor.may("read", "PatientLink") and actor.may("read", "Patient"):
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
    return [*found, *unreviewed(), *watch.waits()]


def unreviewed() -> list[dict[str, Any]]:
    """Emergency accesses to be reviewed: at once for the privacy officer, after 72 hours for administrators as well."""
    actor = current()
    reviews, administers = actor.may("update", "EmergencyAccess"), actor.may("update", "Role")
    if not actor.may("read", "EmergencyAccess") or not (reviews or administers):
        return []
    everything, late = emergencies.waiting(guard.session())
    hint = gettext("%(count)s of them for more than 72 hours", count=late) if late else gettext("The oldest first")
    if not reviews:
        everything, hint = late, gettext("for more than 72 hours; the privacy officer reviews them")
    if not everything:
        return []
    title = gettext("Emergency accesses wait for review")
    return [{"title": title, "hint": hint, "href": url_for("Emergencies.list"), "count": everything}]


def recent() -> list[dict[str, Any]]:
    """The patients this person opened last, loaded through the gate like any other."""
    if not current().may("read", "Patient") or current().viewing_as:
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
    """Put a patient at the head of those opened last; what is looked at as a role is not the person's own work."""
    if current().viewing_as:
        return
    keys = [key for key in session.get("recent", []) if key != patient_id]
    session["recent"] = [patient_id, *keys][:8]


NAVIGATION: tuple[tuple[str, str, str, str, tuple[str, str] | None], ...] = (
    ("Today", "Home.index", "home", "", None),
    ("Front desk", "Desk.today", "bell", "", ("update", "Appointment")),
    ("My notes", "Notes.mine", "edit", "", ("create", "ClinicalNote")),
    ("New results", "Results.inbox", "lab", "", ("create", "ServiceRequest")),
    ("Pharmacy", "Pharmacy.find", "scan", "", ("create", "MedicationDispense")),
    ("Patients", "Finder.find", "people", "", ("read", "Patient")),
    ("Calendar", "Calendar.show", "calendar", "", ("read", "Appointment")),
    ("Waiting list", "Waiting.list", "clock", "", ("update", "WaitlistEntry")),
    ("Laboratory", "Laboratory.orders", "lab", "", ("update", "Specimen")),
    ("Take specimens", "Laboratory.collect", "lab", "", ("create", "Specimen")),
    ("Catalogue of tests", "Catalogue.list", "lab", "Hospital", ("update", "LabTest")),
    ("On call", "Duties.list", "bell", "Hospital", ("update", "OnCall")),
    ("Turnaround", "TurnaroundReport.show", "clock", "Hospital", ("update", "LabTest")),
    ("Critical results", "Critical.list", "warn", "", ("update", "CriticalResult")),
    ("Messages", "Messages.list", "document", "", ("update", "Hl7Message")),
    ("Possible duplicates", "Duplicates.list", "pair", "", ("update", "PatientLink")),
    ("Proposals", "Proposals.list", "id", "", ("update", "PatientProposal")),
    ("Medicines", "Medicines.list", "pill", "Medicines", ("update", "Medication")),
    ("Overridden warnings", "Overrides.list", "warn", "Medicines", ("read", "DetectedIssue")),
    ("Who saw what", "TrailView.list", "trail", "Privacy", ("read", "AuditEvent")),
    ("Emergency access", "Emergencies.list", "bell", "Privacy", ("update", "EmergencyAccess")),
    ("Unusual access", "Unusual.list", "eye", "Privacy", ("read", "UnusualAccess")),
    ("The trail", "Watch.show", "trace", "Privacy", ("read", "AuditEvent")),
    ("Staff", "PractitionerView.list", "staff", "Hospital", ("update", "Practitioner")),
    ("Branches", "BranchView.list", "branch", "Hospital", ("update", "Branch")),
    ("Rooms", "RoomView.list", "room", "Hospital", ("update", "Room")),
    ("Kinds of visits", "VisitTypeView.list", "visit", "Hospital", ("update", "VisitType")),
    ("Equipment", "EquipmentView.list", "gear", "Hospital", ("update", "Equipment")),
    ("Note templates", "NoteTemplates.list", "document", "Hospital", ("update", "NoteTemplate")),
    ("Working hours", "Hours.list", "clock", "Hospital", ("update", "Appointment")),
    ("Leave and holidays", "Exceptions.list", "calendar", "Hospital", ("update", "Appointment")),
    ("Organizations", "OrganizationView.list", "building", "Hospital", ("update", "Organization")),
    ("Accounts", "AccountView.list", "key", "Access", ("read", "User")),
    ("What roles may do", "RoleMatrix.open", "shield", "Access", ("read", "Role")),
    ("Signing keys", "SigningKeys.list", "key", "Access", ("update", "SigningKey")),
)
"""Label, endpoint, icon, group, and what it takes to see it."""


NEEDED = {endpoint: needed for _, endpoint, _, _, needed in NAVIGATION if needed is not None} | {
    "PatientList.list": ("read", "Patient")
}
"""What it takes to open a page that a number leads to."""
MOST = 10_000
"""The view counts no further where counting takes long."""


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
        "unseen": (actor.rights.hidden if actor else lambda _resource: frozenset()),
        "searches_phone": actor is not None and searches_phone(actor),
        "viewing_as": gettext(policy.SPOKEN.get(actor.viewing_as, actor.viewing_as))
        if actor and actor.viewing_as
        else None,
        "viewing_portal": actor is not None and actor.viewing_as == policy.Role.PATIENT,
        "demo": current_app.config["DEMO"],
        "get_locale": get_locale,
    }


def searches_phone(actor: Actor) -> bool:
    """Whether the person may look for patients by phone."""
    return actor.rights.hidden("Patient").isdisjoint({"telecom", "search_phone"})


def navigation(actor: Any) -> list[dict[str, Any]]:
    """The ways a person may go."""
    entries = []
    for text, endpoint, icon, group, needed in NAVIGATION:
        if needed is not None and not actor.may(*needed):
            continue
        own_only = actor.patient_id is not None or actor.viewing_as == policy.Role.PATIENT
        if endpoint in ("Finder.find", "Calendar.show") and own_only:
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
                "count": waiting_in(endpoint),
            }
        )
    return entries


COUNTS = {
    "Notes.mine": "notes",
    "Results.inbox": "results",
    "Messages.list": "messages",
    "Proposals.list": "proposals",
}
"""What is counted of the pages something waits on."""


def waiting_in(endpoint: str) -> int:
    """What waits on a page; nothing where the database is away, as every page has a navigation."""
    return waiting_counts().get(COUNTS.get(endpoint, ""), 0)


def waiting_counts() -> dict[str, int]:
    """What waits for the person, by kind; asked for once a page."""
    if "waits" not in g:
        try:
            g.waits = waiting.counts(guard.session())
        except SQLAlchemyError:
            guard.session.rollback()
            g.waits = {}
    return dict(g.waits)


def register(builder: Any) -> None:
    """The start page is registered by the builder itself."""
    del builder
