"""One patient's chart, to read; a tab a part, and only the parts the actor may see."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from babel import Locale
from flask import request, url_for
from flask_appbuilder import expose
from flask_babel import format_decimal, get_locale, gettext, lazy_gettext

from app import guard
from app.actor import current
from app.errors import NotFound
from app.services import clinical, emergencies
from models.clinical import AllergyIntolerance, Observation
from models.patients import Patient, PatientIdentifier
from views.base import Page, day, open_to, words
from views.branches import all_branches
from views.emergencies import of_patient
from views.home import remember
from views.people import GENDERS, IDENTIFIERS, SEXES, age, born, name_of, phones
from views.speech import spoken_number

LABELS = {
    "overview": lazy_gettext("Overview"),
    "conditions": lazy_gettext("Conditions"),
    "allergies": lazy_gettext("Allergies"),
    "medications": lazy_gettext("Medications"),
    "observations": lazy_gettext("Observations"),
    "visits": lazy_gettext("Visits"),
    "immunisations": lazy_gettext("Immunisations"),
    "procedures": lazy_gettext("Procedures"),
    "reports": lazy_gettext("Reports"),
    "documents": lazy_gettext("Documents"),
}
EMPTY = {
    "conditions": lazy_gettext("No conditions are recorded."),
    "allergies": lazy_gettext("No allergies are recorded."),
    "medications": lazy_gettext("No medicines are recorded."),
    "observations": lazy_gettext("Nothing has been measured yet."),
    "visits": lazy_gettext("No visits yet."),
    "immunisations": lazy_gettext("No immunisations are recorded."),
    "procedures": lazy_gettext("No procedures are recorded."),
    "reports": lazy_gettext("No reports yet."),
    "documents": lazy_gettext("No documents yet."),
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
OVERVIEW = ("conditions", "medications", "observations", "visits", "immunisations", "documents")


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
        if tab not in LABELS or (tab in hidden and tab not in parts):
            raise NotFound
        known = clinical.part(session, "allergies", patient_id) if counts.get("allergies") else []
        if current().patient_id is None:
            remember(patient_id)
        context: dict[str, Any] = {"rows": [], "groups": [], "overview": []}
        if tab == "overview":
            context["overview"] = [
                _compact(
                    part,
                    clinical.part(session, part, patient_id, limit=12 if part == "observations" else 5)
                    if counts[part]
                    else [],
                    patient_id,
                )
                for part in OVERVIEW
                if part in parts
            ]
        elif tab == "observations":
            context["groups"] = observation_groups(clinical.part(session, tab, patient_id))
        elif tab == "allergies":
            guard.require("read", "AllergyIntolerance")
            context["rows"] = [allergy(row) for row in known]
        else:
            context["rows"] = [ROWS[tab](row) for row in clinical.part(session, tab, patient_id)]
        return self.render(
            "patients/chart.html",
            page_title=name_of(patient),
            patient=banner(patient, pictured=bool(counts.get("photo"))),
            allergies=_allergies(patient, known, "allergies" in parts),
            tabs=[
                {
                    "key": key,
                    "label": LABELS[key],
                    "href": url_for("Chart.open", patient_id=patient_id, tab=key if key != "overview" else None),
                    "count": counts.get(key),
                    "current": key == tab,
                }
                for key in ("overview", *parts)
            ],
            tab=tab,
            empty=EMPTY.get(tab, ""),
            cut=clinical.LONGEST_PART if counts.get(tab, 0) > clinical.LONGEST_PART else 0,
            can_edit=current().may("update", "Patient"),
            edit_href=url_for("Correction.ask", patient_id=patient_id),
            registered="registered" in request.args,
            hidden=[LABELS[part] for part in hidden],
            emergency_href=url_for("Emergency.ask", patient_id=patient_id) if emergencies.may_break() else None,
            glass_broken=of_patient(patient_id) if tab == "overview" else [],
            **context,
        )


def banner(patient: Patient, *, pictured: bool) -> dict[str, Any]:
    """Who this is, in one line or two; the photo itself is not loaded for it."""
    numbers = []
    if current().may("read", "PatientIdentifier"):
        numbers = [
            {"system": number_of(number), "value": number.value, "use": number.use} for number in patient.identifiers
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


NUMBERS = {
    "MR": lazy_gettext("Number elsewhere"),
    "SS": lazy_gettext("Social security number"),
    "DL": lazy_gettext("Driving licence"),
    "PPN": lazy_gettext("Passport"),
    "NI": lazy_gettext("National identity number"),
}
"""http://terminology.hl7.org/CodeSystem/v2-0203, in the hospital's words."""


def number_of(number: PatientIdentifier) -> str:
    """Whose number it is, in words."""
    if number.type_code in NUMBERS:
        return str(NUMBERS[number.type_code])
    if number.system.startswith("branch:"):
        code = number.system.removeprefix("branch:")
        name = next((facts.name for facts in all_branches().values() if facts.code == code), code)
        return str(gettext("Number at %(branch)s", branch=name))
    return str(IDENTIFIERS.get(number.system, gettext("Number elsewhere")))


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


def _allergies(patient: Patient, known: Sequence[AllergyIntolerance], open_to_actor: bool) -> dict[str, Any]:
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
        "status": row.clinical_status or "",
        "verification": row.verification_status or "",
        "category": ", ".join(row.category or []),
        "when": day(row.recorded_at),
    }


UNITS = str.maketrans({"{": "", "}": "", "[": "", "]": ""})
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
        return f"{spoken_number(row.value_quantity)} {unit(row.value_unit)}".strip()
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


def observation_groups(rows: Sequence[Observation]) -> list[dict[str, Any]]:
    """Observations by what was measured, each with its latest value, its course and its values."""
    by_code: dict[str, list[Observation]] = defaultdict(list)
    for row in rows:
        by_code[row.code or row.code_display].append(row)
    groups = []
    for found in by_code.values():
        latest = found[0]
        points = [
            {"t": int(row.effective_at.timestamp() * 1000), "v": height}
            for row in reversed(found)
            if (height := _height(row)) is not None and row.effective_at is not None
        ]
        groups.append(
            {
                "display": latest.code_display,
                "code": latest.code,
                "category": latest.category,
                "unit": unit(latest.value_unit),
                "latest": measured(latest),
                "when": words(latest.effective_at),
                "flag": latest.interpretation if latest.interpretation in FLAGS else None,
                "flag_word": str(FLAGS.get(latest.interpretation or "", "")),
                "range": _range(latest),
                "points": points if len(points) > 1 else [],
                "values": [{"when": words(row.effective_at), "value": measured(row)} for row in found[:50]],
            }
        )
    return sorted(groups, key=lambda group: (group["category"] != "vital-signs", str(group["display"])))


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
        "status": row.clinical_status or "",
        "onset": day(row.onset_at),
        "abatement": day(row.abatement_at) if row.abatement_at else "",
    }


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
        "place": row.service_provider.name if row.service_provider else "",
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


ROWS = {
    "conditions": _condition,
    "medications": _medication,
    "visits": _visit,
    "immunisations": _immunisation,
    "procedures": _procedure,
    "reports": _report,
    "documents": _document,
}


def _compact(part: str, rows: Sequence[Any], patient_id: int) -> dict[str, Any]:
    """A part of the chart in a few lines."""
    lines: list[dict[str, Any]] = []
    if part == "observations":
        lines = [
            {
                "primary": g["display"],
                "secondary": g["latest"],
                "when": g["when"],
                "flag": g["flag"],
                "flag_word": g["flag_word"],
            }
            for g in observation_groups(rows)
        ][:8]
    else:
        for row in rows:
            told = ROWS[part](row)
            primary = told.get("display") or told.get("type") or told.get("title")
            secondary = told.get("dose") or told.get("place") or told.get("status") or told.get("author") or ""
            when = told.get("when") or told.get("start") or told.get("onset") or told.get("authored") or ""
            lines.append({"primary": primary, "secondary": secondary, "when": when})
    return {
        "title": LABELS[part],
        "href": url_for("Chart.open", patient_id=patient_id, tab=part),
        "rows": lines,
        "empty": EMPTY[part],
    }
