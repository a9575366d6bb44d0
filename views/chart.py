"""One patient's chart: an overview, a timeline, and a tab a part; only what the actor may see is loaded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import Any

from babel import Locale
from flask import request, url_for
from flask_appbuilder import expose
from flask_babel import format_decimal, get_locale, gettext, lazy_gettext

from app import guard
from app.actor import current
from app.errors import NotFound
from app.services import clinical, emergencies, encounters
from app.services.clinical import Cursor, Moment
from app.services.clock import day_of
from models.base import now
from models.clinical import AllergyIntolerance, Encounter, Observation
from models.codes import LABORATORY, EncounterStatus
from models.patients import Patient, PatientIdentifier
from views.base import Page, branch_zone, day, open_to, words
from views.branches import all_branches
from views.emergencies import of_patient
from views.home import remember
from views.people import GENDERS, NUMBERS, SEXES, age, born, name_of, phones
from views.plots import plot
from views.speech import spoken_day, spoken_number

LABELS = {
    "overview": lazy_gettext("Overview"),
    "timeline": lazy_gettext("Timeline"),
    "notes": lazy_gettext("Notes"),
    "conditions": lazy_gettext("Conditions"),
    "allergies": lazy_gettext("Allergies"),
    "medications": lazy_gettext("Medications"),
    "observations": lazy_gettext("Observations"),
    "visits": lazy_gettext("Visits"),
    "immunisations": lazy_gettext("Immunisations"),
    "procedures": lazy_gettext("Procedures"),
    "orders": lazy_gettext("Orders"),
    "reports": lazy_gettext("Reports"),
    "documents": lazy_gettext("Documents"),
    "dispenses": lazy_gettext("Handed out"),
}
EMPTY = {
    "conditions": lazy_gettext("No conditions are recorded."),
    "allergies": lazy_gettext("No allergies are recorded."),
    "medications": lazy_gettext("No medicines are recorded."),
    "observations": lazy_gettext("Nothing has been measured yet."),
    "visits": lazy_gettext("No visits yet."),
    "immunisations": lazy_gettext("No immunisations are recorded."),
    "procedures": lazy_gettext("No procedures are recorded."),
    "notes": lazy_gettext("No notes yet."),
    "orders": lazy_gettext("Nothing has been ordered yet."),
    "reports": lazy_gettext("No reports yet."),
    "documents": lazy_gettext("No documents yet."),
}
ICONS = {
    "visits": "visit",
    "notes": "note",
    "conditions": "condition",
    "allergies": "allergy",
    "medications": "pill",
    "dispenses": "pill",
    "orders": "lab",
    "observations": "trace",
    "reports": "lab",
    "procedures": "check",
    "immunisations": "syringe",
    "documents": "document",
}
CLASSES = {
    "AMB": lazy_gettext("Outpatient"),
    "EMER": lazy_gettext("Emergency"),
    "IMP": lazy_gettext("Inpatient"),
    "ACUTE": lazy_gettext("Inpatient, acute"),
    "SS": lazy_gettext("Short stay"),
    "OBSENC": lazy_gettext("Observation"),
    "VR": lazy_gettext("Video or phone"),
    "HH": lazy_gettext("At home"),
}
FLAGS = {
    "L": lazy_gettext("low"),
    "LL": lazy_gettext("critically low"),
    "H": lazy_gettext("high"),
    "HH": lazy_gettext("critically high"),
    "A": lazy_gettext("abnormal"),
    "AA": lazy_gettext("critically abnormal"),
    "POS": lazy_gettext("positive"),
}
"""Interpretations worth a word; N and an absent one are not."""
OVERVIEW = ("conditions", "medications", "allergies", "orders", "visits", "immunisations", "documents")
"""Parts of which the first rows are on the overview; vital signs, results and notes are beside them."""
PLACES = (
    *("conditions", "medications", "allergies", "vitals", "notes", "results", "orders", "visits"),
    *("immunisations", "documents"),
)
"""The panels of the overview in their order."""


class Chart(Page):
    """The chart."""

    route_base = "/patients"
    default_view = "open"

    @expose("/<int:patient_id>/")
    @open_to("read", "Patient")
    def open(self, patient_id: int) -> str:
        """Banner, tabs, and the part that is open. Raises NotFound."""
        session = guard.session()
        patient = clinical.open_chart(session, patient_id)
        counts = clinical.sizes(session, patient_id)
        closed = emergencies.closed(patient_id, opened=True)
        hidden = [part for part in clinical.readable() if clinical.CHART[part][0].resource() in closed]
        parts = [part for part in clinical.readable() if part not in hidden or counts[part]]
        tab = request.args.get("tab", "overview")
        if tab not in {"overview", "timeline", *clinical.CHART} or (tab in hidden and tab not in parts):
            raise NotFound
        known = clinical.part(session, "allergies", patient_id) if counts.get("allergies") else []
        if current().patient_id is None:
            remember(patient_id)
        under_way = encounters.open_of(session, patient_id) if counts.get("visits") else []
        writes = ways_to_write(patient, under_way[0] if under_way else None)
        context: dict[str, Any] = {"rows": [], "groups": [], "overview": [], "timeline": None}
        if tab == "overview":
            context["overview"] = overview(patient_id, parts, counts, known, writes)
        elif tab == "timeline":
            context["timeline"] = timeline(patient_id, parts)
        elif tab == "observations":
            found = clinical.part(session, tab, patient_id)
            context["groups"] = observation_groups(found, clinical.providers(session, found))
        elif tab == "allergies":
            guard.require("read", "AllergyIntolerance")
            told = clinical.providers(session, known)
            context["rows"] = [{**allergy(row), **origin(row, told), **led(tab, row)} for row in known]
        else:
            found = clinical.part(session, tab, patient_id)
            told = clinical.providers(session, found)
            context["rows"] = [{**ROWS[tab](row), **origin(row, told), **led(tab, row)} for row in found]
        return self.render(
            "patients/chart.html",
            page_title=name_of(patient),
            patient=banner(patient, pictured=bool(counts.get("photo"))),
            allergies=allergies_in_words(patient, known, "allergies" in parts),
            tabs=tabs(patient_id, tab, parts, counts),
            tab=tab,
            empty=EMPTY.get(tab, ""),
            cut=clinical.LONGEST_PART if counts.get(tab, 0) > clinical.LONGEST_PART else 0,
            can_edit=current().may("update", "Patient"),
            edit_href=url_for("Correction.ask", patient_id=patient_id),
            registered="registered" in request.args,
            hidden=[LABELS[part] for part in hidden],
            emergency_href=url_for("Emergency.ask", patient_id=patient_id) if emergencies.may_break() else None,
            glass_broken=of_patient(patient_id) if tab == "overview" else [],
            visits=[visit_bar(visit) for visit in under_way],
            writes=writes,
            may_say_none=writes.get("allergies") is not None,
            plot=plot,
            **context,
        )


def tabs(patient_id: int, current_tab: str, parts: Sequence[str], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The parts of the record, as the row of tabs has them; notes are on pages of their own."""
    shown: list[tuple[str, str]] = [
        (key, url_for("Chart.open", patient_id=patient_id, tab=key if key != "overview" else None))
        for key in ("overview", "timeline", *parts)
    ]
    if current().may("read", "ClinicalNote"):
        shown.insert(2, ("notes", url_for("Notes.list", patient_id=patient_id)))
    return [
        {"key": key, "label": LABELS[key], "href": href, "count": counts.get(key), "current": key == current_tab}
        for key, href in shown
    ]


# ---- writing, from here ------------------------------------------------------------------------------------------

WAYS = {
    "conditions": ("Condition", "Diagnosis.ask", lazy_gettext("Add a condition")),
    "allergies": ("AllergyIntolerance", "AllergyEntry.ask", lazy_gettext("Add an allergy")),
    "vitals": ("Observation", "VitalSigns.ask", lazy_gettext("Take vital signs")),
    "medications": ("MedicationRequest", "Prescribing.ask", lazy_gettext("Prescribe")),
    "notes": ("ClinicalNote", "Notes.write", lazy_gettext("Write a note")),
    "orders": ("ServiceRequest", "OrderEntry.ask", lazy_gettext("Order an image or refer")),
    "results": ("ServiceRequest", "Ordering.ask", lazy_gettext("Order tests")),
    "procedures": ("Procedure", "ProcedureEntry.ask", lazy_gettext("Add a procedure")),
    "immunisations": ("Immunization", "ImmunisationEntry.ask", lazy_gettext("Add an immunisation")),
    "visits": ("Encounter", "OpenVisit.ask", lazy_gettext("Open a visit")),
}
"""What may be added to which part: what is created, the page where, what the button says."""


def ways_to_write(patient: Patient, visit: Encounter | None) -> dict[str, dict[str, Any]]:
    """By part, the page where the actor adds to it, in a visit where one is under way; only what they may."""
    if current().practitioner_id is None or current().viewing_as or not patient.active:
        return {}
    found = {}
    for part, (resource, endpoint, label) in WAYS.items():
        if current().may("create", resource):
            address: dict[str, Any] = {"patient_id": patient.id}
            if visit is not None and part != "visits":
                address["encounter"] = visit.id
            found[part] = {"href": url_for(endpoint, **address), "label": label}
    if "vitals" in found:
        found["observations"] = found["vitals"]
    return found


STEPS: dict[str, tuple[Any, str]] = {
    "triage": (lazy_gettext("Triaged"), "check"),
    "start": (lazy_gettext("Start"), "right"),
    "leave": (lazy_gettext("On leave"), "out"),
    "finish": (lazy_gettext("Finish"), "check"),
    "cancel": (lazy_gettext("Left without being seen"), "close"),
}
"""What is done to a visit, by the word in the address: what the button says, and its icon."""
NEXT: dict[str, tuple[str, ...]] = {
    EncounterStatus.PLANNED: ("start", "cancel"),
    EncounterStatus.ARRIVED: ("start", "triage", "cancel"),
    EncounterStatus.TRIAGED: ("start", "cancel"),
    EncounterStatus.IN_PROGRESS: ("finish", "leave"),
    EncounterStatus.ONLEAVE: ("start", "finish"),
}
"""The steps that are open from each state, the likeliest first."""


def steps_of(visit: Encounter) -> list[dict[str, Any]]:
    """What the actor may do to a visit now."""
    if not current().may("update", "Encounter") or current().viewing_as:
        return []
    found = []
    for step in NEXT.get(visit.status, ()):
        label, icon = STEPS[step]
        if step == "leave" and visit.class_code not in ("IMP", "ACUTE", "SS", "OBSENC"):
            continue  # somebody who came for an hour does not go on leave
        if step == "start" and visit.status == EncounterStatus.ONLEAVE:
            label = gettext("Back from leave")
        if step == "cancel" and visit.status == EncounterStatus.PLANNED:
            label = gettext("Will not take place")
        found.append({"step": step, "label": label, "icon": icon})
    return found


def visit_bar(visit: Encounter) -> dict[str, Any]:
    """A visit that is under way, on top of the chart."""
    return {
        "id": visit.id,
        "title": visit.type_display or CLASSES.get(visit.class_code, gettext("Visit")),
        "status": visit.status,
        "class_word": str(CLASSES.get(visit.class_code, visit.class_code)),
        "since": words(visit.started_at) if visit.started_at else "",
        "place": place_of(visit, {}),
        "who": visit.practitioner.name if visit.practitioner else "",
        "reason": visit.reason or "",
        "href": url_for("Encounters.show", encounter_id=visit.id),
        "steps": steps_of(visit),
    }


# ---- where it was written ----------------------------------------------------------------------------------------


def place_of(row: Any, told: Mapping[int, str]) -> str:
    """The branch an entry was written at; of what came from outside, who provided the visit, as far as it is told."""
    branch_id = getattr(row, "branch_id", None)
    if branch_id is not None:
        branch = all_branches().get(branch_id)
        return branch.name if branch else str(gettext("A branch that is closed"))
    if isinstance(row, Encounter):
        return row.service_provider.name if row.service_provider else ""
    return told.get(getattr(row, "encounter_id", None) or 0, "")


def origin(row: Any, told: Mapping[int, str]) -> dict[str, str]:
    """Where and by whom an entry was written, in words."""
    known = row.__dict__
    person = next((known[name] for name in ("recorder", "requester", "author", "performer") if known.get(name)), None)
    by = person if isinstance(person, str) else person.name if person is not None else ""
    where = place_of(row, told)
    return {"where": where, "origin": " · ".join(part for part in (where, by) if part)}


def sees_results() -> bool:
    """Whether the actor is shown what the laboratory finds, by order."""
    return clinical.sees_kind(LABORATORY) and current().may("read", "ServiceRequest")


def led(part: str, row: Any) -> dict[str, Any]:
    """Where a row leads."""
    href = None
    if part == "visits":
        href = url_for("Encounters.show", encounter_id=row.id)
    elif part == "observations" and row.category == LABORATORY:
        href = url_for("Results.show", observation_id=row.id)
    elif part == "orders" and (row.test_id or row.panel_id) and sees_results():
        href = url_for("Results.order", request_id=row.id)
    elif part == "reports" and row.service_request_id and sees_results():
        href = url_for("Results.order", request_id=row.service_request_id)
    elif part in clinical.ENTRIES:
        href = url_for("Entries.show", kind=part, entry_id=row.id)
    elif part == "notes":
        href = url_for("Notes.show", note_id=row.id)
    elif part == "medications" and row.prescription_id:
        href = url_for("Prescriptions.show", prescription_id=row.prescription_id)
    return {
        "href": href,
        "void": "entered-in-error" in (getattr(row, "verification_status", ""), getattr(row, "status", "")),
    }


# ---- the overview ------------------------------------------------------------------------------------------------


def overview(
    patient_id: int,
    parts: Sequence[str],
    counts: Mapping[str, int],
    known: Sequence[AllergyIntolerance],
    writes: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The panels: the first rows of each part, the same few questions however long the record is."""
    session = guard.session()
    found: dict[str, Sequence[Any]] = {}
    for part in OVERVIEW:
        if part in parts:
            found[part] = known[:8] if part == "allergies" else []
            if part != "allergies" and counts[part]:
                found[part] = clinical.part(session, part, patient_id, limit=6 if part == "conditions" else 5)
    for name, kind, limit in (("vitals", "vital-signs", clinical.TREND), ("results", "laboratory", 12)):
        if "observations" in parts and clinical.sees_kind(kind):
            measured_ones = counts["observations"] > 0
            found[name] = clinical.measured_lately(session, patient_id, kind, limit) if measured_ones else []
    if current().may("read", "ClinicalNote"):
        found["notes"] = clinical.latest_notes(session, patient_id) if counts.get("notes") else []
    told = clinical.providers(session, [row for rows in found.values() for row in rows])
    panels = []
    for name in PLACES:
        if name not in found:
            continue
        rows = found[name]
        panel: dict[str, Any] = {
            "name": name,
            "title": PANELS.get(name) or LABELS[name],
            "href": panel_href(name, patient_id),
            "empty": PANEL_EMPTY.get(name) or EMPTY[name],
            "add": writes.get(name),
            "rows": [],
        }
        if name in ("vitals", "results"):
            panel["rows"] = [
                {
                    "primary": group["display"],
                    "value": group["latest"],
                    "when": group["when"],
                    "where": group["where"],
                    "flag": group["flag"],
                    "flag_word": group["flag_word"],
                    "points": group["points"] if name == "vitals" else [],
                }
                for group in observation_groups(rows, told, listed=0)
            ][:8]
        else:
            panel["rows"] = [{**short(name, row), **origin(row, told), **led(name, row)} for row in rows]
        panels.append(panel)
    return panels


PANELS = {"vitals": lazy_gettext("Vital signs"), "results": lazy_gettext("Laboratory")}
PANEL_EMPTY = {
    "vitals": lazy_gettext("No vital signs have been taken yet."),
    "results": lazy_gettext("No results yet."),
}


def panel_href(name: str, patient_id: int) -> str | None:
    """Where all of a panel is."""
    if name == "notes":
        return url_for("Notes.list", patient_id=patient_id)
    if name == "results":
        return url_for("Results.table", patient_id=patient_id)
    tab = "observations" if name == "vitals" else name
    return url_for("Chart.open", patient_id=patient_id, tab=tab)


def short(part: str, row: Any) -> dict[str, Any]:
    """A row of the chart in a line or two."""
    told = ROWS[part](row)
    primary = told.get("display") or told.get("type") or told.get("title") or ""
    state = told.get("status") or ""
    secondary = told.get("dose") or told.get("reaction") or told.get("author") or ""
    when = (
        told.get("when") or told.get("start") or told.get("onset") or told.get("recorded") or told.get("authored") or ""
    )
    return {
        "primary": primary,
        "secondary": secondary,
        "status": state,
        "when": "" if when == "—" else when,
        "high": part == "allergies" and told.get("criticality") == "high",
    }


# ---- the timeline ------------------------------------------------------------------------------------------------


def timeline(patient_id: int, parts: Sequence[str]) -> dict[str, Any]:
    """A page of everything in order of time, by day, as far as it is asked for."""
    session = guard.session()
    offered = [kind for kind in clinical.on_timeline() if kind in parts or kind in ("notes", "dispenses")]
    chosen = [kind for kind in dict.fromkeys(request.args.getlist("kind")) if kind in offered]
    since, until = _asked_day("from"), _asked_day("until")
    zone = branch_zone()
    moments, after = clinical.timeline(
        session,
        patient_id,
        chosen or offered,
        since=day_of(since, zone)[0] if since else None,
        until=day_of(until, zone)[1] if until else None,
        after=_cursor(request.args.get("after", "")),
    )
    told = clinical.providers(session, [moment.row for moment in moments])
    days = []
    for on, of_day in groupby(moments, key=lambda moment: moment.at.astimezone(zone).date()):
        days.append({"day": spoken_day(on), "entries": list(_entries(of_day, told))})
    here: dict[str, Any] = {"patient_id": patient_id, "tab": "timeline"}
    asked: dict[str, Any] = {"kind": chosen or None, "from": since, "until": until}
    today = now().astimezone(zone).date()
    return {
        "days": days,
        "kinds": [{"key": kind, "label": LABELS[kind], "chosen": kind in chosen} for kind in offered],
        "from": since.isoformat() if since else "",
        "until": until.isoformat() if until else "",
        "periods": [
            {
                "label": label,
                "href": url_for("Chart.open", **here, **dict[str, Any](kind=chosen or None, **{"from": start})),
                "current": (since, until) == (start, None),
            }
            for label, start in (
                (gettext("All"), None),
                (gettext("30 days"), today - timedelta(days=30)),
                (gettext("A year"), today - timedelta(days=365)),
            )
        ],
        "asked": bool(chosen or since or until),
        "later_href": url_for("Chart.open", **here, **asked) if request.args.get("after") else None,
        "earlier_href": url_for("Chart.open", **here, **asked, after=_spelled(after)) if after else None,
        "all_href": url_for("Chart.open", **here),
    }


def _entries(moments: Iterable[Moment], told: Mapping[int, str]) -> Iterable[dict[str, Any]]:
    """The entries of a day in words; what was measured at one instant is one entry."""

    def together(moment: Moment) -> tuple[Any, ...]:
        if moment.kind != "observations":
            return (moment.kind, moment.row.id)
        return (moment.kind, moment.at, moment.row.category, moment.row.branch_id, moment.row.status)

    zone = branch_zone()
    for _, found in groupby(moments, key=together):
        alike = list(found)
        kind, row = alike[0].kind, alike[0].row
        if kind == "observations":
            several = PANELS["vitals"] if row.category == "vital-signs" else PANELS["results"]
            said = {
                "primary": several if len(alike) > 1 else row.code_display,
                "secondary": ", ".join(
                    f"{each.row.code_display} {measured(each.row)}" if len(alike) > 1 else measured(each.row)
                    for each in alike
                ),
                "status": "" if row.status == "final" else row.status,
            }
        else:
            said = short(kind, row)
        led_to = led(kind, row)
        if kind == "observations" and len(alike) > 1:
            several_at = url_for("Results.table", patient_id=row.patient_id) if row.category == LABORATORY else None
            led_to = {"href": several_at, "void": led_to["void"]}
        yield {
            **said,
            **origin(row, told),
            **led_to,
            "kind": LABELS[kind],
            "icon": ICONS[kind],
            "time": f"{alike[0].at.astimezone(zone):%H:%M}",
        }


def _asked_day(name: str) -> date | None:
    """A day of the address line; nonsense counts as not said."""
    try:
        found = date.fromisoformat(request.args.get(name, ""))
    except ValueError:
        return None
    return found if 1850 < found.year < 2200 else None


def _spelled(cursor: Cursor) -> str:
    return f"{cursor.at.isoformat()}~{cursor.kind}~{cursor.id}"


def _cursor(text: str) -> Cursor | None:
    """Where a page goes on, as the address line has it; nonsense counts as not said."""
    at, _, rest = text.partition("~")
    kind, _, key = rest.partition("~")
    if kind not in clinical.TIMELINE or not key.isdecimal() or len(key) > 18:
        return None
    try:
        found = datetime.fromisoformat(at.replace(" ", "+"))
    except ValueError:
        return None
    return Cursor(found, kind, int(key)) if found.tzinfo is not None else None


def banner(patient: Patient, *, pictured: bool) -> dict[str, Any]:
    """Who this is, in one line or two; the photo itself is not loaded for it."""
    numbers = []
    if current().may("read", "PatientIdentifier"):
        numbers = [
            {
                "system": number_of(number),
                "value": number.value,
                "use": number.use,
                "branch": number.system.startswith("branch:"),
            }
            for number in patient.identifiers
        ]
    addresses = [
        ", ".join(
            part
            for part in (
                *(a.get("line") or []),
                f"{a.get('postalCode') or ''} {a.get('city') or ''}".strip(),
                a.get("country") or "",
            )
            if part
        )
        for a in patient.address or []
    ]
    sex = patient.sex_for_clinical_use
    return {
        "id": patient.id,
        "name": name_of(patient),
        "name_in_use": patient.name_in_use,
        "other_names": [_human(name) for name in patient.other_names or []],
        "initials": "".join(part[0] for part in (patient.given, patient.family) if part).upper(),
        "mrn": patient.mrn,
        "identifiers": numbers,
        "at_branches": [number for number in numbers if number["branch"]][:3],
        "birth": born(patient),
        "age": age(patient),
        "gender": patient.gender,
        "gender_word": str(GENDERS.get(patient.gender, patient.gender)),
        "sex_word": str(SEXES[sex]) if sex != "unknown" and not sex.startswith(patient.gender) else "",
        "phones": phones(patient),
        "emails": [p.get("value") for p in patient.telecom or [] if p.get("system") == "email"],
        "addresses": [address for address in addresses if address],
        "contacts": [_contact(contact) for contact in patient.contact or []],
        "languages": [spoken_language(code) for code in patient.languages],
        "photo_href": url_for("Finder.photo", patient_id=patient.id) if pictured else None,
        "deceased": patient.deceased,
        "deceased_at": words(patient.deceased_at) if patient.deceased_at else "",
        "active": patient.active,
        "temporary": patient.temporary,
        "confidential": patient.confidential,
        "last_visit": words(patient.last_visit_at) if patient.last_visit_at else None,
    }


BY_TYPE = {
    "MR": lazy_gettext("Number elsewhere"),
    "SS": lazy_gettext("Social security number"),
    "DL": lazy_gettext("Driving licence"),
    "PPN": lazy_gettext("Passport"),
    "NI": lazy_gettext("National identity number"),
}
"""http://terminology.hl7.org/CodeSystem/v2-0203, in the hospital's words."""


def number_of(number: PatientIdentifier) -> str:
    """Whose number it is, in words."""
    if number.type_code in BY_TYPE:
        return str(BY_TYPE[number.type_code])
    if number.system.startswith("branch:"):
        code = number.system.removeprefix("branch:")
        name = next((facts.name for facts in all_branches().values() if facts.code == code), code)
        return str(gettext("Number at %(branch)s", branch=name))
    return str(NUMBERS.get(number.system, gettext("Number elsewhere")))


def spoken_language(code: str) -> str:
    """A language by its name: es is Spanish."""
    locale = get_locale() or Locale("en")
    return str(locale.languages.get(code.split("-", maxsplit=1)[0], code))


def _human(name: dict[str, Any]) -> str:
    return name.get("text") or " ".join([*(name.get("given") or []), name.get("family") or ""]).strip()


def _contact(contact: dict[str, Any]) -> dict[str, str]:
    relationship = (contact.get("relationship") or [{}])[0]
    coding = (relationship.get("coding") or [{}])[0]
    return {
        "name": _human(contact.get("name") or {}),
        "relationship": relationship.get("text") or coding.get("display") or "",
        "phone": next((str(p.get("value")) for p in contact.get("telecom") or [] if p.get("system") == "phone"), ""),
    }


def allergies_in_words(patient: Patient, known: Sequence[AllergyIntolerance], open_to_actor: bool) -> dict[str, Any]:
    if not open_to_actor:
        return {"state": "hidden", "entries": []}
    standing = clinical.standing_allergies(known)
    active = [a for a in standing if a.clinical_status == "active"]
    entries = [allergy(a) for a in active or standing]
    if not active:
        entries = [{**told, "display": f"{told['display']} ({told['status']})"} for told in entries]
    return {"state": clinical.allergy_state(patient, known), "entries": entries}


def allergy(row: AllergyIntolerance) -> dict[str, Any]:
    """An allergy in words."""
    reactions = [
        manifestation.get("text") or (manifestation.get("coding") or [{}])[0].get("display", "")
        for reaction in row.reaction or []
        for manifestation in reaction.get("manifestation") or []
    ]
    return {
        "display": row.code_display,
        "criticality": row.criticality,
        "criticality_word": {"high": gettext("high risk"), "low": gettext("low risk")}.get(row.criticality or "", ""),
        "reaction": ", ".join(word for word in reactions if word),
        "status": row.verification_status
        if row.verification_status in ("refuted", "entered-in-error")
        else row.clinical_status or "",
        "verification": row.verification_status or "",
        "category": ", ".join(str(CATEGORIES.get(each, each)) for each in row.category or []),
        "when": day(row.recorded_at),
    }


CATEGORIES = {
    "medication": lazy_gettext("Medicine"),
    "food": lazy_gettext("Food"),
    "environment": lazy_gettext("Surroundings"),
    "biologic": lazy_gettext("Vaccine or blood product"),
}
"""Kinds of allergies."""
UNITS = str.maketrans({"{": "", "}": "", "[": "", "]": "", "_": " "})
SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
PERIODS = {"h": lazy_gettext("hour"), "d": lazy_gettext("day"), "wk": lazy_gettext("week"), "mo": lazy_gettext("month")}
SYSTOLIC = "8480-6"
"""LOINC: the first of the two numbers of a blood pressure."""


def unit(ucum: str | None) -> str:
    """A UCUM unit as it is written on paper: mm[Hg] is mmHg, 10*3/uL is 10³/µL."""
    text = re.sub(r"10\*(-?\d+)", lambda power: "10" + power[1].translate(SUPERSCRIPT), ucum or "")
    text = re.sub(r"(?<=[a-z])([23])\b", lambda power: power[1].translate(SUPERSCRIPT), text.replace("Cel", "°C"))
    return re.sub(r"\bu(?=[A-Za-z])", "µ", text.translate(UNITS))


def components(row: Observation) -> list[dict[str, Any]]:
    """The quantities of a panel; of a blood pressure the systolic one first, however they were sent."""
    found = [part for part in row.component or [] if "value" in (part.get("valueQuantity") or {})]
    return sorted(found, key=lambda part: (part.get("code", {}).get("coding") or [{}])[0].get("code") != SYSTOLIC)


def measured(row: Observation) -> str:
    """A value with its unit, or what was found in words; the parts of a panel one after the other."""
    if row.value_quantity is not None:
        exact = row.test_id is not None or 0 < abs(row.value_quantity) < 1  # 0.004 is not nothing
        number = f"{row.value_quantity:f}" if row.test_id is not None else f"{float(row.value_quantity):.3g}"
        said = number if exact else spoken_number(row.value_quantity)
        return f"{row.comparator}{said} {unit(row.value_unit)}".strip()
    if row.value_text:
        return row.value_text
    quantities = [part["valueQuantity"] for part in components(row)]
    if not quantities:
        return "—"
    numbers = " / ".join(str(format_decimal(round(float(quantity["value"])))) for quantity in quantities)
    return f"{numbers} {unit(quantities[0].get('code') or quantities[0].get('unit'))}"


def _height(row: Observation) -> float | None:
    """The number a curve is drawn through; of a panel, its first."""
    if row.value_quantity is not None:
        return float(row.value_quantity)
    quantities = components(row)
    return float(quantities[0]["valueQuantity"]["value"]) if quantities else None


def _range(row: Observation) -> str:
    for reference in row.reference_range or []:
        if reference.get("text"):
            return str(reference["text"])
        low, high = (reference.get(end, {}).get("value") for end in ("low", "high"))
        if low is not None and high is not None:
            return f"{low} to {high}"
        if low is not None or high is not None:
            said = gettext("from %(low)s", low=low) if low is not None else gettext("up to %(high)s", high=high)
            return str(said)
    return ""


def observation_groups(
    rows: Sequence[Observation], told: Mapping[int, str], *, listed: int = 50
) -> list[dict[str, Any]]:
    """Observations by what was measured, each with its latest value, its course and the newest `listed` values.

    What was withdrawn is among the values and nowhere else.
    """
    by_code: dict[str, list[Observation]] = defaultdict(list)
    for row in rows:
        by_code[row.code or row.code_display].append(row)
    groups = []
    for found in by_code.values():
        standing = [row for row in found if not clinical.withdrawn(row)]
        latest = standing[0] if standing else found[0]
        points = [
            {"t": int(row.effective_at.timestamp() * 1000), "v": height}
            for row in reversed(standing)
            if (height := _height(row)) is not None and row.effective_at is not None
        ]
        lower = [
            {"t": int(row.effective_at.timestamp() * 1000), "v": float(parts[1]["valueQuantity"]["value"])}
            for row in reversed(standing)
            if row.value_quantity is None and row.effective_at is not None and len(parts := components(row)) == 2
        ]
        several = len(points) > 1
        groups.append(
            {
                "display": latest.code_display,
                "code": latest.code,
                "category": latest.category,
                "href": url_for("Results.course", patient_id=latest.patient_id, test=latest.code)
                if latest.category == LABORATORY and latest.code
                else None,
                "unit": unit(latest.value_unit),
                "latest": measured(latest) if standing else "—",
                "when": words(latest.effective_at),
                "flag": latest.interpretation if latest.interpretation in FLAGS else None,
                "flag_word": str(FLAGS.get(latest.interpretation or "", "")),
                "range": _range(latest),
                "points": points if several else [],
                "lines": [points, lower] if several and len(lower) > 1 else [points] if several else [],
                "limits": _limits(latest),
                **origin(latest, told),
                "values": [
                    {
                        "when": words(row.effective_at),
                        "value": measured(row),
                        **origin(row, told),
                        **led("observations", row),
                    }
                    for row in found[:listed]
                ],
            }
        )
    return sorted(groups, key=lambda group: (group["category"] != "vital-signs", str(group["display"])))


def _limits(row: Observation) -> tuple[float | None, float | None]:
    """Between which values it is normal, where that is told in numbers."""
    for reference in row.reference_range or []:
        low, high = (_as_number(reference.get(end, {}).get("value")) for end in ("low", "high"))
        if low is not None or high is not None:
            return low, high
    return None, None


def _as_number(said: Any) -> float | None:
    """An end of a range, which the laboratory freezes as it is written: 3.50."""
    try:
        return float(said)
    except (TypeError, ValueError):
        return None


def _dose(instructions: Sequence[dict[str, Any]]) -> str:
    said = []
    for dose in instructions or []:
        if dose.get("text"):
            said.append(str(dose["text"]))
            continue
        repeat = (dose.get("timing") or {}).get("repeat") or {}
        quantity = (dose.get("doseAndRate") or [{}])[0].get("doseQuantity") or {}
        parts = []
        if "value" in quantity:
            parts.append(f"{format_decimal(quantity['value'])} {unit(quantity.get('unit'))}".strip())
        if times := repeat.get("frequency"):
            every, period = repeat.get("period", 1), PERIODS.get(repeat.get("periodUnit", "d"), "")
            parts.append(
                gettext("%(n)s times a %(period)s", n=times, period=period)
                if every == 1
                else gettext("%(n)s times in %(every)s %(period)ss", n=times, every=every, period=period)
            )
        if dose.get("asNeededBoolean"):
            parts.append(gettext("as needed"))
        said.append(", ".join(str(part) for part in parts if part))
    return "; ".join(part for part in said if part)


def _condition(row: Any) -> dict[str, Any]:
    return {
        "display": row.code_display,
        "code": row.code,
        "status": row.verification_status
        if row.verification_status in ("refuted", "entered-in-error")
        else row.clinical_status or "",
        "sure": CERTAIN.get(row.verification_status or "", ""),
        "list": gettext("Diagnosis of a visit") if row.category == "encounter-diagnosis" else "",
        "onset": day(row.onset_at) if row.onset_at else "",
        "recorded": day(row.recorded_at) if row.recorded_at else "",
        "abatement": day(row.abatement_at) if row.abatement_at else "",
    }


CERTAIN = {
    "unconfirmed": lazy_gettext("Not confirmed"),
    "provisional": lazy_gettext("Provisional"),
    "differential": lazy_gettext("One of several it may be"),
}
"""How sure it is, where it is not."""


def _medication(row: Any) -> dict[str, Any]:
    return {
        "display": row.code_display,
        "dose": _dose(row.dosage_instruction),
        "status": row.status,
        "authored": day(row.authored_at),
        "prescriber": row.requester.name if row.requester else "",
        "reason": row.reason,
    }


def _visit(row: Any) -> dict[str, Any]:
    return {
        "type": row.type_display or gettext("Visit"),
        "class_word": str(CLASSES.get(row.class_code, row.class_code)),
        "start": words(row.started_at),
        "end": words(row.ended_at) if row.ended_at else "",
        "place": place_of(row, {}),
        "practitioner": row.practitioner.name if row.practitioner else "",
        "reason": row.reason or "",
        "status": row.status,
    }


def _immunisation(row: Any) -> dict[str, Any]:
    return {"display": row.code_display, "when": day(row.occurrence_at), "status": row.status}


def _procedure(row: Any) -> dict[str, Any]:
    return {"display": row.code_display, "when": day(row.performed_at), "status": row.status, "reason": row.reason}


def _report(row: Any) -> dict[str, Any]:
    return {
        "display": row.code_display,
        "when": words(row.effective_at),
        "status": row.status,
        "category": row.category,
    }


def _document(row: Any) -> dict[str, Any]:
    return {
        "title": row.title or row.code_display,
        "when": words(row.written_at),
        "author": row.author,
        "category": row.category,
        "content": row.content,
    }


def _order(row: Any) -> dict[str, Any]:
    return {
        "display": row.code_display,
        "category": str(ORDERED.get(row.category, row.category)),
        "priority": str(PRIORITIES.get(row.priority, row.priority)) if row.priority != "routine" else "",
        "when": words(row.authored_at),
        "status": row.status,
        "note": row.note or "",
    }


ORDERED = {
    "laboratory": lazy_gettext("Laboratory"),
    "imaging": lazy_gettext("Imaging"),
    "referral": lazy_gettext("Referral"),
}
PRIORITIES = {
    "routine": lazy_gettext("Routine"),
    "urgent": lazy_gettext("Urgent"),
    "asap": lazy_gettext("As soon as possible"),
    "stat": lazy_gettext("At once"),
}


def _note(row: Any) -> dict[str, Any]:
    return {"title": row.title, "status": row.status, "when": words(row.written_at)}


def _dispense(row: Any) -> dict[str, Any]:
    amount = f"{spoken_number(row.quantity)} {unit(row.quantity_unit)}".strip()
    return {"display": row.medication.display, "dose": amount, "status": row.status, "when": words(row.handed_over_at)}


ROWS = {
    "conditions": _condition,
    "allergies": allergy,
    "medications": _medication,
    "visits": _visit,
    "immunisations": _immunisation,
    "procedures": _procedure,
    "orders": _order,
    "reports": _report,
    "documents": _document,
    "notes": _note,
    "dispenses": _dispense,
}
"""A row of each part in words."""
