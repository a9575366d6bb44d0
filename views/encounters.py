"""Visits under way and what is written in them: vital signs, diagnoses, allergies, procedures, vaccines, orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any, ClassVar

from flask import flash, jsonify, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext
from werkzeug.wrappers import Response
from wtforms import BooleanField, DateField, DateTimeLocalField, Form, RadioField, SelectField, StringField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import Optional

from app import guard
from app.actor import current
from app.errors import DraftsLeft, Invalid, NotFound, Refusal
from app.services import clinical, codes, drug_safety, encounters
from app.services.clinical import DIAGNOSIS, PROBLEM, VITALS, Reaction
from app.services.clock import instant
from models.clinical import Encounter
from models.codes import EncounterStatus
from models.patients import Patient
from views.base import CommandView, Page, branch_zone, open_to, signed_in, words
from views.chart import (
    CATEGORIES,
    CLASSES,
    ICONS,
    LABELS,
    ORDERED,
    PRIORITIES,
    ROWS,
    allergies_in_words,
    allergy,
    led,
    measured,
    origin,
    place_of,
    short,
    steps_of,
    ways_to_write,
)
from views.people import GENDERS, age, born, name_of

S = EncounterStatus


def offered(named: Mapping[str, Any]) -> list[SelectChoice]:
    """Codes and what they are called, as a field offers them."""
    return [SelectChoice(code, word) for code, word in named.items()]


def strip(patient: Patient) -> dict[str, Any]:
    """Whose it is, with the allergies, on top of every form."""
    told: dict[str, Any] = {"state": "hidden", "entries": []}
    if current().may("read", "AllergyIntolerance"):
        known = clinical.part(guard.session(), "allergies", patient.id)
        told = allergies_in_words(patient, known, True)
    return {
        "id": patient.id,
        "name": name_of(patient),
        "birth": born(patient),
        "age": age(patient),
        "gender_word": str(GENDERS.get(patient.gender, "")),
        "mrn": patient.mrn,
        "href": url_for("Chart.open", patient_id=patient.id),
        "allergies": told,
    }


def number(text: str | None) -> int | None:
    """A row's number from the address line or a form; None for nothing and nonsense."""
    return int(text) if text and text.isdecimal() and len(text) < 19 else None


def told_instant(wall: datetime | None, field: str) -> datetime | None:
    """A time by the branch's clock as an instant; of an hour that comes twice, the first. Raises Invalid."""
    return instant(wall, branch_zone(), second=False, field=field) if wall is not None else None


# ---- forms -------------------------------------------------------------------------------------------------------


class EntryForm(Form):
    """What every entry asks."""

    encounter = SelectField(lazy_gettext("Visit"), choices=[], validate_choice=False)


class EntryView(CommandView):
    """A form that adds something to a chart."""

    template = "encounters/form.html"
    default_view = "ask"
    tab: ClassVar[str] = "overview"
    """The part of the chart it belongs to."""
    saved: ClassVar[Any] = lazy_gettext("Saved.")

    @expose("/", methods=["GET", "POST"])
    def ask(self, patient_id: int) -> Any:
        """The form."""
        return super().ask(patient_id=patient_id)

    def prefill(self, **route: Any) -> Form:
        form = self.form_class()
        if "encounter" in form:
            named = number(request.args.get("encounter"))
            here = encounters.here_for(guard.session(), route["patient_id"]) if self._sees_visits() else None
            form["encounter"].data = str(named or (here.id if here else ""))
        return form

    @staticmethod
    def _sees_visits() -> bool:
        return current().may("read", "Encounter")

    def encounter_of(self, form: Form) -> int | None:
        """The visit that was chosen."""
        return number(form["encounter"].data)

    def after(self, result: Any, **route: Any) -> str:
        del result
        flash(self.saved, "success")
        visit = number(request.form.get("encounter"))
        if visit is not None and request.args.get("back") == "visit":
            return url_for("Encounters.show", encounter_id=visit)
        return url_for("Chart.open", patient_id=route["patient_id"])

    def _page(self, form: Form, sentence: str | None, refusal: Refusal | None = None, **route: Any) -> str:
        del refusal
        session = guard.session()
        patient = clinical.open_chart(session, route["patient_id"])
        if "encounter" in form:
            visits = list(encounters.open_of(session, patient.id)) if self._sees_visits() else []
            chosen = number(form["encounter"].data)
            if chosen and all(visit.id != chosen for visit in visits) and self._sees_visits():
                named = session.get(Encounter, chosen)
                if named is not None and named.patient_id == patient.id:
                    visits.append(named)
            form["encounter"].choices = [
                *(SelectChoice(str(visit.id), visit_words(visit)) for visit in visits),
                SelectChoice("", gettext("None")),
            ]
        return self.render(
            self.template,
            page_title=self.title,
            title=self.title,
            form=form,
            patient=strip(patient),
            action_label=self.action_label,
            refusal=sentence,
            back_href=url_for("Chart.open", patient_id=patient.id),
            **self.more(form),
        )

    def more(self, form: Form) -> dict[str, Any]:
        """What a page of its own needs besides."""
        del form
        return {}


def visit_words(visit: Encounter) -> str:
    """A visit in a list to choose from."""
    kind = visit.type_display or str(CLASSES.get(visit.class_code, gettext("Visit")))
    return ", ".join(part for part in (kind, words(visit.started_at), place_of_known(visit)) if part)


def place_of_known(visit: Encounter) -> str:
    """Where a visit takes place, if that is one of our branches."""
    return place_of(visit, {}) if visit.branch_id is not None else ""


BEGINS: dict[str, Any] = {
    S.IN_PROGRESS: lazy_gettext("The patient is with me"),
    S.ARRIVED: lazy_gettext("The patient is waiting"),
    S.PLANNED: lazy_gettext("The patient is expected"),
}


class VisitForm(Form):
    """A visit nobody booked."""

    status = RadioField(lazy_gettext("Now"), choices=offered(BEGINS), default=S.IN_PROGRESS.value)
    class_code = RadioField(
        lazy_gettext("Kind"),
        choices=offered({code: CLASSES[code] for code in encounters.CLASSES}),
        default="AMB",
    )
    planned_at = DateTimeLocalField(
        lazy_gettext("Expected at"), [Optional()], format="%Y-%m-%dT%H:%M", description=lazy_gettext("Only if expected")
    )
    type_display = StringField(lazy_gettext("What for"), description=lazy_gettext("Such as Check-up or Wound care"))
    reason = StringField(lazy_gettext("Reason"), description=lazy_gettext("In the patient's words"))


class OpenVisit(EntryView):
    """Opening a visit without an appointment."""

    route_base = "/patients/<int:patient_id>/visits/new"
    form_class = VisitForm
    title = lazy_gettext("Open a visit")
    action_label = lazy_gettext("Open")
    policy = ("create", "Encounter")

    def prefill(self, **route: Any) -> Form:
        del route
        form = VisitForm()
        if not current().may("update", "Encounter"):
            form.status.data = S.ARRIVED.value  # who cannot go on with it opens it for who can
        return form

    def carry_out(self, session: Any, form: Form, **route: Any) -> Encounter:
        assert isinstance(form, VisitForm)
        return encounters.open_directly(
            session,
            patient_id=route["patient_id"],
            class_code=form.class_code.data or "",
            status=form.status.data or "",
            planned_at=told_instant(form.planned_at.data, "planned_at"),
            type_display=form.type_display.data or "",
            reason=form.reason.data or "",
        )

    def after(self, result: Encounter, **_route: Any) -> str:
        flash(gettext("The visit is open."), "success")
        return url_for("Encounters.show", encounter_id=result.id)


class VitalsForm(EntryForm):
    """Vital signs, as they are read off."""

    systolic = StringField(lazy_gettext("Blood pressure"), description="mmHg", render_kw={"inputmode": "numeric"})
    diastolic = StringField(lazy_gettext("Lower number"), description="mmHg", render_kw={"inputmode": "numeric"})
    pulse = StringField(lazy_gettext("Heart rate"), description="/min", render_kw={"inputmode": "numeric"})
    respiration = StringField(lazy_gettext("Respiratory rate"), description="/min", render_kw={"inputmode": "numeric"})
    temperature = StringField(lazy_gettext("Temperature"), description="°C", render_kw={"inputmode": "decimal"})
    saturation = StringField(lazy_gettext("Oxygen saturation"), description="%", render_kw={"inputmode": "numeric"})
    weight = StringField(lazy_gettext("Weight"), description="kg", render_kw={"inputmode": "decimal"})
    height = StringField(lazy_gettext("Height"), description="cm", render_kw={"inputmode": "decimal"})
    at = DateTimeLocalField(
        lazy_gettext("When"), [Optional()], format="%Y-%m-%dT%H:%M", description=lazy_gettext("Left empty: now")
    )


class VitalSigns(EntryView):
    """Taking vital signs."""

    route_base = "/patients/<int:patient_id>/vitals/new"
    form_class = VitalsForm
    title = lazy_gettext("Vital signs")
    policy = ("create", "Observation")
    template = "encounters/vitals.html"
    saved = lazy_gettext("The vital signs are written down.")

    def carry_out(self, session: Any, form: Form, **route: Any) -> Any:
        assert isinstance(form, VitalsForm)
        return clinical.measure(
            session,
            patient_id=route["patient_id"],
            values={name: form[name].data or "" for name in VITALS},
            encounter_id=self.encounter_of(form),
            at=told_instant(form.at.data, "at"),
        )


SURE = {
    "confirmed": lazy_gettext("Confirmed"),
    "provisional": lazy_gettext("Provisional"),
    "differential": lazy_gettext("One of several"),
}


LISTS = {
    PROBLEM: lazy_gettext("On the list of problems"),
    DIAGNOSIS: lazy_gettext("As a diagnosis of this visit"),
}


class DiagnosisForm(EntryForm):
    """A condition."""

    q = StringField(lazy_gettext("Diagnosis"))
    code = StringField(lazy_gettext("Code"))
    category = RadioField(
        lazy_gettext("Write it"),
        choices=offered(
            {PROBLEM: lazy_gettext("On the list of problems"), DIAGNOSIS: lazy_gettext("As a diagnosis of this visit")}
        ),
        default=PROBLEM,
    )
    verification = RadioField(lazy_gettext("How sure"), choices=offered(SURE), default="confirmed")
    onset_on = DateField(lazy_gettext("Since"), [Optional()])
    abated_on = DateField(lazy_gettext("Until"), [Optional()], description=lazy_gettext("Only if it is over"))


class Diagnosis(EntryView):
    """Writing down a condition, found in ICD-10-CM."""

    route_base = "/patients/<int:patient_id>/conditions/new"
    form_class = DiagnosisForm
    title = lazy_gettext("Add a condition")
    policy = ("create", "Condition")
    template = "encounters/diagnosis.html"
    saved = lazy_gettext("The condition is written down.")

    @expose("/", methods=["GET", "POST"])
    def ask(self, patient_id: int) -> Any:
        """The form; its search works by sending it as well."""
        signed_in()
        guard.require(*self.policy)
        codes.warm()
        if request.method == "POST" and request.form.get("do") == "find":
            form = DiagnosisForm(request.form)
            form.code.data = ""
            return self._page(form, None, patient_id=patient_id)
        return super().ask(patient_id)

    def prefill(self, **route: Any) -> Form:
        form = super().prefill(**route)
        if form["encounter"].data:
            form["category"].data = DIAGNOSIS
        return form

    def carry_out(self, session: Any, form: Form, **route: Any) -> Any:
        assert isinstance(form, DiagnosisForm)
        try:
            return clinical.diagnose(
                session,
                patient_id=route["patient_id"],
                code=form.code.data or form.q.data or "",
                category=form.category.data or "",
                verification=form.verification.data or "",
                encounter_id=self.encounter_of(form),
                onset_on=form.onset_on.data,
                abated_on=form.abated_on.data,
            )
        except Refusal as refusal:
            if refusal.field == "code":
                refusal.field = "q"
            raise

    def more(self, form: Form) -> dict[str, Any]:
        chosen = form["code"].data or ""
        asked = (form["q"].data or "").strip()
        found = codes.find_diagnoses(asked) if asked else []
        if chosen and all(each.code != chosen for each in found) and chosen in codes.diagnoses():
            found.insert(0, codes.diagnoses()[chosen])
        return {"found": found, "chosen": chosen, "asked": asked}


class Icd(Page):
    """The codes themselves."""

    route_base = "/codes"
    default_view = "find"

    @expose("/icd-10.json")
    @open_to("create", "Condition")
    def find(self) -> Response:
        """The likeliest diagnoses for what was typed."""
        found = codes.find_diagnoses(request.args.get("q", ""))
        return jsonify(found=[{"code": each.code, "display": each.display} for each in found])


TYPES = {
    "allergy": lazy_gettext("Allergy"),
    "intolerance": lazy_gettext("Intolerance"),
    "": lazy_gettext("Not known"),
}
RISKS = {
    "high": lazy_gettext("High: could be fatal"),
    "low": lazy_gettext("Low"),
    "unable-to-assess": lazy_gettext("Cannot be said"),
    "": lazy_gettext("Not asked"),
}
SEVERITIES = {
    "": lazy_gettext("Not known"),
    "mild": lazy_gettext("Mild"),
    "moderate": lazy_gettext("Moderate"),
    "severe": lazy_gettext("Severe"),
}
TOLD = {"unconfirmed": lazy_gettext("The patient says so"), "confirmed": lazy_gettext("It is certain")}


class AllergyForm(EntryForm):
    """An allergy or intolerance."""

    substance = StringField(
        lazy_gettext("To what"), description=lazy_gettext("One substance or group, such as penicillin or peanut")
    )
    category = RadioField(lazy_gettext("Kind"), choices=offered(CATEGORIES), default="medication")
    type = RadioField(lazy_gettext("What it is"), choices=offered(TYPES), default="allergy")
    criticality = RadioField(lazy_gettext("Risk if it is given again"), choices=offered(RISKS), default="")
    verification = RadioField(lazy_gettext("How sure"), choices=offered(TOLD), default="unconfirmed")
    reaction = StringField(lazy_gettext("What happened"), description=lazy_gettext("Such as hives"))
    severity = SelectField(lazy_gettext("How bad it was"), choices=offered(SEVERITIES))
    reaction2 = StringField(lazy_gettext("And what else"))
    severity2 = SelectField(lazy_gettext("How bad that was"), choices=offered(SEVERITIES))


class AllergyEntry(EntryView):
    """Writing down an allergy."""

    route_base = "/patients/<int:patient_id>/allergies/new"
    form_class = AllergyForm
    title = lazy_gettext("Add an allergy")
    policy = ("create", "AllergyIntolerance")
    template = "encounters/allergy.html"
    saved = lazy_gettext("The allergy is on the list.")

    def carry_out(self, session: Any, form: Form, **route: Any) -> Any:
        assert isinstance(form, AllergyForm)
        return clinical.list_allergy(
            session,
            patient_id=route["patient_id"],
            substance=form.substance.data or "",
            type=form.type.data or None,
            category=[form.category.data] if form.category.data else [],
            criticality=form.criticality.data or None,
            verification=form.verification.data or "",
            reactions=[
                Reaction(form.reaction.data or "", form.severity.data or ""),
                Reaction(form.reaction2.data or "", form.severity2.data or ""),
            ],
            encounter_id=self.encounter_of(form),
        )

    def more(self, form: Form) -> dict[str, Any]:
        known = drug_safety.knowledge()
        text = form["substance"].data or ""
        drug = (form["category"].data or "") == "medication"
        return {
            "substances": sorted({*known.substances, *known.classes}),
            "unknown": bool(text) and drug and not known.named(text),
        }


class ProcedureForm(EntryForm):
    """Something that was done."""

    what = StringField(lazy_gettext("What was done"))
    reason = StringField(lazy_gettext("Why"))
    at = DateTimeLocalField(
        lazy_gettext("When"), [Optional()], format="%Y-%m-%dT%H:%M", description=lazy_gettext("Left empty: now")
    )
    code = StringField(lazy_gettext("SNOMED CT code"), description=lazy_gettext("If you know it"))


class ProcedureEntry(EntryView):
    """Writing down a procedure."""

    route_base = "/patients/<int:patient_id>/procedures/new"
    form_class = ProcedureForm
    title = lazy_gettext("Add a procedure")
    policy = ("create", "Procedure")
    saved = lazy_gettext("The procedure is written down.")

    def carry_out(self, session: Any, form: Form, **route: Any) -> Any:
        assert isinstance(form, ProcedureForm)
        return clinical.record_procedure(
            session,
            patient_id=route["patient_id"],
            what=form.what.data or "",
            code=form.code.data or "",
            reason=form.reason.data or "",
            at=told_instant(form.at.data, "at"),
            encounter_id=self.encounter_of(form),
        )


class ImmunisationForm(EntryForm):
    """A vaccine that was given."""

    code = SelectField(
        lazy_gettext("Vaccine"), choices=offered({"": lazy_gettext("Another one, in words"), **codes.VACCINES})
    )
    vaccine = StringField(lazy_gettext("In words"), description=lazy_gettext("Only if it is not in the list"))
    lot_number = StringField(lazy_gettext("Lot number"))
    at = DateTimeLocalField(
        lazy_gettext("When"), [Optional()], format="%Y-%m-%dT%H:%M", description=lazy_gettext("Left empty: now")
    )
    elsewhere = BooleanField(lazy_gettext("Given elsewhere, as the patient tells"))


class ImmunisationEntry(EntryView):
    """Writing down a vaccine."""

    route_base = "/patients/<int:patient_id>/immunisations/new"
    form_class = ImmunisationForm
    title = lazy_gettext("Add an immunisation")
    policy = ("create", "Immunization")
    saved = lazy_gettext("The immunisation is written down.")

    def carry_out(self, session: Any, form: Form, **route: Any) -> Any:
        assert isinstance(form, ImmunisationForm)
        return clinical.immunise(
            session,
            patient_id=route["patient_id"],
            code=form.code.data or "",
            vaccine=form.vaccine.data or "",
            lot_number=form.lot_number.data or "",
            at=told_instant(form.at.data, "at"),
            elsewhere=bool(form.elsewhere.data),
            encounter_id=self.encounter_of(form),
        )


ASKED = {name: ORDERED[name] for name in clinical.ORDER_CATEGORIES}
"""What is ordered here; tests have a page of their own, with the laboratory's catalogue."""


class OrderForm(EntryForm):
    """Something that is to be done by others."""

    category = RadioField(lazy_gettext("Kind"), choices=offered(ASKED), default="imaging")
    what = StringField(lazy_gettext("What is to be done"), description=lazy_gettext("Such as X-ray of the chest"))
    priority = RadioField(lazy_gettext("Urgency"), choices=offered(PRIORITIES), default="routine")
    note = StringField(lazy_gettext("For whoever does it"))
    code = StringField(lazy_gettext("LOINC code"), description=lazy_gettext("If you know it"))


class OrderEntry(EntryView):
    """Placing an order."""

    route_base = "/patients/<int:patient_id>/orders/new"
    form_class = OrderForm
    title = lazy_gettext("Order")
    action_label = lazy_gettext("Order")
    policy = ("create", "ServiceRequest")
    saved = lazy_gettext("Ordered.")

    def carry_out(self, session: Any, form: Form, **route: Any) -> Any:
        assert isinstance(form, OrderForm)
        return clinical.order(
            session,
            patient_id=route["patient_id"],
            what=form.what.data or "",
            category=form.category.data or "",
            priority=form.priority.data or "",
            code=form.code.data or "",
            note=form.note.data or "",
            encounter_id=self.encounter_of(form),
        )


# ---- one entry ---------------------------------------------------------------------------------------------------


def _on_day(text: str) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise Invalid(gettext("Write the day like 2026-11-30."), field="abated_on") from error


Verb = Callable[[Any, int], Any]
VERBS: dict[str, dict[str, tuple[Any, Verb]]] = {
    "conditions": {
        "resolve": (
            lazy_gettext("It is over"),
            lambda session, key: clinical.resolve(session, key, on=_on_day(request.form.get("abated_on", ""))),
        ),
        "reactivate": (lazy_gettext("The patient has it again"), clinical.reactivate),
        "refute": (lazy_gettext("Ruled out"), clinical.refute),
    },
    "allergies": {
        "confirm": (lazy_gettext("Confirm"), clinical.confirm_allergy),
        "refute": (lazy_gettext("Ruled out"), clinical.refute_allergy),
        "resolve": (lazy_gettext("The patient bears it again"), clinical.resolve_allergy),
    },
    "orders": {
        "revoke": (
            lazy_gettext("Call the order off"),
            lambda session, key: clinical.revoke(session, key, reason=request.form.get("reason", "")),
        )
    },
}
"""What is done with an entry, by kind and word of the address; withdrawing is done with every one."""


def verbs_of(kind: str, row: Any) -> list[dict[str, Any]]:
    """What the actor may do with an entry as it stands."""
    if not current().may("update", row.resource()) or current().viewing_as or current().practitioner_id is None:
        return []
    if clinical.withdrawn(row) or (kind == "observations" and row.category != "vital-signs"):
        return []
    open_ones: set[str] = set()
    if kind == "conditions":
        active = row.clinical_status in clinical.CURRENT
        open_ones = {"resolve", "refute"} if active else {"reactivate"}
    elif kind == "allergies":
        active = row.clinical_status == "active"
        open_ones = {"resolve", "refute"} if active else {"confirm"}
        if active and row.verification_status != "confirmed":
            open_ones.add("confirm")
    elif kind == "orders" and row.status in ("draft", "active", "on-hold"):
        open_ones = {"revoke"}
    found = [{"verb": verb, "label": label} for verb, (label, _) in VERBS.get(kind, {}).items() if verb in open_ones]
    return [*found, {"verb": "withdraw", "label": gettext("Written by mistake")}]


class Entries(Page):
    """One entry of a chart, and what can be done with it."""

    route_base = ""
    default_view = "show"

    @expose("/entries/<kind>/<int:entry_id>/")
    @open_to("read", "Patient")
    def show(self, kind: str, entry_id: int) -> str:
        """What it says, where and by whom it was written."""
        return self._page(kind, entry_id)

    @expose("/entries/<kind>/<int:entry_id>/<verb>", methods=["POST"])
    @open_to("read", "Patient")
    def act(self, kind: str, entry_id: int, verb: str) -> Any:
        """Do something with it."""
        known = VERBS.get(kind, {})
        if kind not in clinical.ENTRIES or (verb != "withdraw" and verb not in known):
            raise NotFound
        try:
            with guard.unit_of_work() as session:
                if verb == "withdraw":
                    row = clinical.withdraw(session, kind, entry_id)
                else:
                    row = known[verb][1](session, entry_id)
        except NotFound:
            raise
        except Refusal as refusal:
            return self._page(kind, entry_id, str(refusal)), refusal.status
        flash(gettext("Saved."), "success")
        tab = kind if kind != "observations" else "observations"
        return redirect(url_for("Chart.open", patient_id=row.patient_id, tab=tab))

    def _page(self, kind: str, entry_id: int, sentence: str | None = None) -> str:
        session = guard.session()
        row = clinical.entry(session, kind, entry_id)
        told = clinical.providers(session, [row])
        return self.render(
            "encounters/entry.html",
            page_title=row.code_display,
            title=row.code_display,
            kind=LABELS[kind],
            patient=strip(row.patient),
            facts=facts_of(kind, row, origin(row, told)),
            void=clinical.withdrawn(row),
            action=lambda verb: url_for("Entries.act", kind=kind, entry_id=entry_id, verb=verb),
            verbs=verbs_of(kind, row),
            refusal=sentence,
            typed=request.form,
            visit_href=url_for("Encounters.show", encounter_id=row.encounter_id)
            if row.encounter_id and current().may("read", "Encounter")
            else None,
            back_href=url_for("Chart.open", patient_id=row.patient_id, tab=kind),
        )

    @expose("/patients/<int:patient_id>/allergies/none", methods=["POST"])
    @open_to("create", "AllergyIntolerance")
    def no_known_allergies(self, patient_id: int) -> Any:
        """The patient was asked and knows of none; or that is taken back."""
        known = "take_back" not in request.form
        try:
            with guard.unit_of_work() as session:
                clinical.say_no_known_allergies(session, patient_id, known=known)
        except NotFound:
            raise
        except Refusal as refusal:
            flash(str(refusal), "danger")
            return redirect(url_for("Chart.open", patient_id=patient_id, tab="allergies"))
        flash(gettext("No known allergies.") if known else gettext("Nobody has asked about allergies."), "success")
        return redirect(url_for("Chart.open", patient_id=patient_id))


def facts_of(kind: str, row: Any, written: Mapping[str, str]) -> list[tuple[str, str]]:
    """What an entry says, as labels and words; what is masked says so by its absence there and elsewhere."""
    hidden = current().rights.hidden(row.resource())
    found: list[tuple[Any, Any]] = []
    if kind == "observations":
        found = [
            (gettext("Value"), measured(row)),
            (gettext("When"), words(row.effective_at)),
            (gettext("State"), row.status if row.status != "final" else ""),
        ]
    elif kind == "allergies":
        said = allergy(row)
        found = [
            (gettext("Kind"), said["category"]),
            (gettext("What it is"), TYPES.get(row.type or "", "")),
            (gettext("Risk"), RISKS.get(row.criticality or "", "")),
            (gettext("How sure"), TOLD.get(row.verification_status or "", "")),
            (gettext("Noted"), said["when"]),
        ]
        if "reaction" not in hidden:
            found.insert(3, (gettext("Reaction"), reactions_of(row)))
    else:
        said = ROWS[kind](row)
        labels = {
            "code": gettext("Code"),
            "sure": gettext("How sure"),
            "list": gettext("List"),
            "category": gettext("Kind"),
            "priority": gettext("Urgency"),
            "onset": gettext("Since"),
            "abatement": gettext("Until"),
            "recorded": gettext("Noted"),
            "when": gettext("When"),
            "reason": gettext("Reason"),
            "note": gettext("For whoever does it"),
        }
        found = [(label, said.get(key)) for key, label in labels.items() if key in said and key not in hidden]
        found.append((gettext("Lot number"), getattr(row, "lot_number", "")))
        found.append((gettext("Why it was called off"), getattr(row, "status_reason", "")))
    found.append((gettext("Written by"), written["origin"]))
    return [(str(label), str(value)) for label, value in found if value and value != "—"]


def reactions_of(row: Any) -> str:
    """What an allergy did, each with how bad it was."""
    said = []
    for each in row.reaction or []:
        shown = ", ".join(
            str(part.get("text") or (part.get("coding") or [{}])[0].get("display", ""))
            for part in each.get("manifestation") or []
        )
        bad = SEVERITIES.get(each.get("severity") or "") if each.get("severity") else None
        said.append(f"{shown} ({bad})" if bad else shown)
    return "; ".join(part for part in said if part)


# ---- a visit -----------------------------------------------------------------------------------------------------

ACTS: dict[str, tuple[Callable[..., Encounter], Any]] = {
    "triage": (encounters.triage, lazy_gettext("Triaged.")),
    "start": (encounters.start, lazy_gettext("The visit is under way.")),
    "leave": (encounters.on_leave, lazy_gettext("On leave.")),
    "finish": (encounters.finish, lazy_gettext("The visit is finished.")),
    "cancel": (encounters.cancel, lazy_gettext("The visit is called off.")),
    "withdraw": (encounters.withdraw, lazy_gettext("Marked as opened by mistake.")),
}
IN_A_VISIT = (
    "observations",
    "conditions",
    "medications",
    "notes",
    "orders",
    "procedures",
    "immunisations",
    "allergies",
)
"""The panels of a visit, in order."""


class Encounters(Page):
    """A visit as it happens."""

    route_base = "/encounters"
    default_view = "show"

    @expose("/<int:encounter_id>/")
    @open_to("read", "Encounter")
    def show(self, encounter_id: int) -> str:
        """What was found, done and written in it, and what can be done next."""
        return self._page(encounter_id)

    @expose("/<int:encounter_id>/<step>", methods=["POST"])
    @open_to("update", "Encounter")
    def step(self, encounter_id: int, step: str) -> Any:
        """Bring it on."""
        if step not in ACTS:
            raise NotFound
        service, said = ACTS[step]
        more = {"insist": True} if step == "finish" and request.form.get("insist") else {}
        try:
            with guard.unit_of_work() as session:
                visit = service(session, encounter_id, **more)
        except NotFound:
            raise
        except Refusal as refusal:
            page = self._page(encounter_id, str(refusal), drafts=isinstance(refusal, DraftsLeft))
            return page, refusal.status
        flash(said, "success")
        if request.form.get("back") == "chart":
            return redirect(url_for("Chart.open", patient_id=visit.patient_id))
        return redirect(url_for("Encounters.show", encounter_id=encounter_id))

    def _page(self, encounter_id: int, sentence: str | None = None, *, drafts: bool = False) -> str:
        session = guard.session()
        visit = encounters.show(session, encounter_id)
        patient = visit.patient
        held = encounters.contents(session, visit)
        told: dict[int, str] = {visit.id: place_of(visit, {})}
        writes = ways_to_write(patient, visit) if visit.status in (S.PLANNED, *encounters.OPEN, S.FINISHED) else {}
        for way in writes.values():
            way["href"] += ("&" if "?" in way["href"] else "?") + "back=visit"
        left = []
        if drafts:
            left = [
                {"title": note.title, "href": url_for("Notes.show", note_id=note.id)}
                for note in encounters.drafts(session, encounter_id)
            ]
        return self.render(
            "encounters/show.html",
            page_title=gettext("Visit of %(name)s", name=name_of(patient)),
            patient=strip(patient),
            visit=visit,
            title=visit.type_display or CLASSES.get(visit.class_code, gettext("Visit")),
            class_word=CLASSES.get(visit.class_code, visit.class_code),
            started=words(visit.started_at),
            ended=words(visit.ended_at) if visit.ended_at else "",
            place=place_of(visit, {}),
            who=visit.practitioner.name if visit.practitioner else "",
            steps=steps_of(visit),
            may_withdraw=current().may("update", "Encounter")
            and not current().viewing_as
            and visit.status != S.ENTERED_IN_ERROR,
            panels=[
                {
                    "name": part,
                    "title": LABELS[part] if part != "observations" else gettext("Vital signs and results"),
                    "icon": ICONS[part],
                    "add": writes.get(part),
                    "rows": [visit_row(part, row, told) for row in held[part]],
                }
                for part in IN_A_VISIT
                if part in held
            ],
            stretches=[
                {"status": stretch.status, "since": words(stretch.since)}
                for stretch in encounters.history(session, visit)
            ],
            refusal=sentence,
            drafts=drafts,
            left=left,
        )


def visit_row(part: str, row: Any, told: Mapping[int, str]) -> dict[str, Any]:
    """A row of a visit in a line or two."""
    where_to = led(part, row)
    if part == "observations":
        said = {"primary": row.code_display, "value": measured(row), "when": words(row.effective_at), "status": ""}
        return {**said, **origin(row, told), **where_to}
    return {**short(part, row), **origin(row, told), **where_to}


def register(builder: Any) -> None:
    """Add the pages."""
    for view in (
        OpenVisit,
        VitalSigns,
        Diagnosis,
        Icd,
        AllergyEntry,
        ProcedureEntry,
        ImmunisationEntry,
        OrderEntry,
        Entries,
        Encounters,
    ):
        builder.add_view_no_menu(view)
