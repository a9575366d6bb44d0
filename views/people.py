"""A patient in words, the same on every page."""

from __future__ import annotations

from datetime import date
from typing import Any

from babel.dates import get_month_names
from flask import url_for
from flask_babel import get_locale, gettext, lazy_gettext
from markupsafe import Markup
from sqlalchemy import inspect

from app.services.words import spoken_phone, today
from models.codes import CancelationReason
from models.patients import Patient
from views.base import words
from views.speech import spoken_day

GENDERS = {
    "female": lazy_gettext("Female"),
    "male": lazy_gettext("Male"),
    "other": lazy_gettext("Other"),
    "unknown": lazy_gettext("Not known"),
}
SEXES = {
    "female-typical": lazy_gettext("Female reference ranges"),
    "male-typical": lazy_gettext("Male reference ranges"),
    "specified": lazy_gettext("See the notes"),
    "unknown": lazy_gettext("Not known"),
}

IDENTIFIERS = {
    "": lazy_gettext("No other number"),
    "national-id": lazy_gettext("National identity number"),
    "passport": lazy_gettext("Passport"),
    "driving-licence": lazy_gettext("Driving licence"),
    "insurance": lazy_gettext("Insurance number"),
    "http://hl7.org/fhir/sid/us-ssn": lazy_gettext("Social security number (US)"),
    "branch": lazy_gettext("Old number at this branch"),
}
NUMBERS = {**IDENTIFIERS, "mrn": lazy_gettext("Earlier number")}
"""Kinds of numbers, those among them that nobody types in: that of a record merged into this one."""
BECAUSE: dict[str, Any] = {
    CancelationReason.PATIENT: lazy_gettext("The patient called it off, or left"),
    CancelationReason.PATIENT_REMINDER: lazy_gettext("The patient called it off when reminded"),
    CancelationReason.PATIENT_PORTAL: lazy_gettext("The patient called it off online"),
    CancelationReason.PATIENT_BETTER: lazy_gettext("The patient feels better"),
    CancelationReason.PATIENT_TRANSPORT: lazy_gettext("The patient has no transport"),
    CancelationReason.PATIENT_DECEASED: lazy_gettext("The patient has died"),
    CancelationReason.PRACTITIONER: lazy_gettext("The doctor called it off"),
    CancelationReason.PRACTITIONER_AWAY: lazy_gettext("The doctor is ill or away"),
    CancelationReason.ROOM: lazy_gettext("The room cannot be used"),
    CancelationReason.EQUIPMENT: lazy_gettext("The equipment is out of order"),
    CancelationReason.INTERPRETER: lazy_gettext("There is no interpreter"),
    CancelationReason.WEATHER: lazy_gettext("The weather"),
    CancelationReason.ERROR: lazy_gettext("Booked by mistake"),
    CancelationReason.OTHER: lazy_gettext("Another reason"),
}
"""Why a visit does not take place."""
TOLD_AT_THE_DESK = [
    (code, word)
    for code, word in BECAUSE.items()
    if code not in (CancelationReason.PATIENT_REMINDER, CancelationReason.PATIENT_PORTAL)
]
"""Those of them that somebody at a desk chooses; the others are what links and portals write."""


def name_of(patient: Patient) -> str:
    """Family name first, and what the person wants to be called."""
    return patient.name or str(gettext("Name not shown"))


def born(patient: Patient) -> str:
    """The birth date as far as it is known."""
    if patient.birth_date is None:
        return str(gettext("birth date not known"))
    if patient.birth_precision == "year":
        return str(patient.birth_date.year)
    if patient.birth_precision == "month":
        months = get_month_names("wide", locale=get_locale() or "en")
        return f"{months[patient.birth_date.month]} {patient.birth_date.year}"
    return spoken_day(patient.birth_date)


def age(patient: Patient, on: date | None = None) -> str:
    """Completed years, months under two years, days under two months; about, where the date is partial."""
    if patient.birth_date is None:
        return ""
    until = patient.deceased_at.date() if patient.deceased_at else on or today()
    start = patient.birth_date
    months = (until.year - start.year) * 12 + until.month - start.month - (until.day < start.day)
    if patient.birth_precision != "day":
        return str(gettext("about %(count)s y", count=max(until.year - start.year, 0)))
    if months >= 24:
        return str(gettext("%(count)s y", count=months // 12))
    if months >= 2:
        return str(gettext("%(count)s mo", count=months))
    return str(gettext("%(count)s d", count=max((until - start).days, 0)))


def unshown() -> Markup:
    """Instead of a value the actor's role is given a record without; a dash would say that there is none."""
    return Markup('<span class="unshown">{}</span>').format(gettext("not shown to your role"))


def phones(patient: Patient) -> list[str]:
    """Phone numbers as they are read out."""
    return [spoken_phone(str(p.get("value", ""))) for p in patient.telecom or [] if p.get("system") == "phone"]


def in_short(patient: Patient) -> dict[str, Any]:
    """A line in a list of patients."""
    numbers = phones(patient)
    place = None
    if "last_visit_place" not in inspect(patient).unloaded:
        place = patient.last_visit_place
    return {
        "id": patient.id,
        "name": name_of(patient),
        "name_in_use": patient.name_in_use,
        "mrn": patient.mrn,
        "birth": born(patient),
        "age": age(patient),
        "gender_word": str(GENDERS.get(patient.gender, "")),
        "phone": numbers[0] if numbers else "",
        "branch": place.name if place else "",
        "last_visit": words(patient.last_visit_at) if patient.last_visit_at else None,
        "href": url_for("Chart.open", patient_id=patient.id),
        "deceased": patient.deceased,
        "temporary": patient.temporary,
        "active": patient.active,
    }
