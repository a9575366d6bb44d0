"""The medicines that can be prescribed: searched, kept, taken in from a file and given out as one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import Response, flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext
from wtforms import BooleanField, Form, StringField
from wtforms.validators import InputRequired, Length

from app import guard
from app.actor import current
from app.errors import Conflict, Invalid, Refusal
from app.services import formulary
from app.services.formulary import Plan, Told
from models.prescriptions import Medication
from views.base import Page, branch_zone, explain, open_to

SHOWN = 200
CARRIED = 600_000
"""Letters of a file that are carried from the look at it to its being taken in; a longer one is chosen again."""
WHATS = {
    "new": lazy_gettext("New"),
    "changed": lazy_gettext("Changed"),
    "same": lazy_gettext("As it is"),
    "repeated": lazy_gettext("Left out"),
    "wrong": lazy_gettext("Wrong"),
}


class MedicineForm(Form):
    """A medicine."""

    display = StringField(
        lazy_gettext("Name, strength and form"),
        [InputRequired(lazy_gettext("Please say the medicine's name, strength and form.")), Length(max=300)],
        description=lazy_gettext("As it is prescribed: Amoxicillin 500 MG Oral Capsule."),
    )
    ingredients = StringField(
        lazy_gettext("Ingredients"),
        [Length(max=1000)],
        description=lazy_gettext("Such as: amoxicillin 500 mg; clavulanic acid 125 mg. Left empty: as the name says."),
    )
    dose_form = StringField(lazy_gettext("Form"), [Length(max=120)], description=lazy_gettext("Such as Oral Tablet."))
    unit = StringField(
        lazy_gettext("Counted in"),
        [Length(max=40)],
        description=lazy_gettext("UCUM: {tbl} for tablets, {cap} for capsules, {puff}, mL, g."),
    )
    system = StringField(
        lazy_gettext("Code system"),
        [InputRequired(lazy_gettext("Please say the code system.")), Length(max=200)],
        description=lazy_gettext("rxnorm, ours, or the address of another one."),
    )
    code = StringField(lazy_gettext("Code"), [InputRequired(lazy_gettext("Please say the code.")), Length(max=64)])
    active = BooleanField(lazy_gettext("Can be prescribed"))

    def told(self) -> Told:
        """The medicine as the form tells of it."""
        return Told(
            system=self.system.data or "",
            code=self.code.data or "",
            display=self.display.data or "",
            dose_form=self.dose_form.data or "",
            unit=self.unit.data or "",
            ingredients=self.ingredients.data or "",
            active=bool(self.active.data),
        )


def spoken_system(system: str) -> str:
    """A code system by its short name, where it has one."""
    return next((name for name, address in formulary.SYSTEMS.items() if address == system), system)


class Medicines(Page):
    """The formulary."""

    route_base = "/formulary"
    default_view = "list"

    @expose("/")
    @open_to("read", "Medication")
    def list(self) -> str:
        """Medicines by words of their names, retired ones where they are asked for."""
        q, retired = request.args.get("q", "").strip()[:100], request.args.get("retired") == "y"
        found = formulary.find(guard.session(), q, retired=retired, limit=SHOWN + 1)
        return self.render(
            "prescribing/formulary.html",
            page_title=gettext("Medicines"),
            q=q,
            retired=retired,
            more=len(found) > SHOWN,
            shown=SHOWN,
            may_add=current().may("create", "Medication"),
            may_edit=current().may("update", "Medication"),
            medicines=[medicine_line(each) for each in found[:SHOWN]],
        )

    @expose("/new/", methods=["GET", "POST"])
    @open_to("create", "Medication")
    def add(self) -> Any:
        """A new medicine."""
        form = MedicineForm(request.form) if request.method == "POST" else MedicineForm(active=True, system="ours")
        return self._save(form, None)

    @expose("/<int:medication_id>/", methods=["GET", "POST"])
    @open_to("update", "Medication")
    def edit(self, medication_id: int) -> Any:
        """A medicine, to be said otherwise or retired."""
        medication = formulary.get(guard.session(), medication_id)
        if request.method == "POST":
            form = MedicineForm(request.form)
        else:
            form = MedicineForm(
                display=medication.display,
                ingredients=formulary.ingredients_text(medication.ingredient),
                dose_form=medication.dose_form,
                unit=medication.unit,
                system=spoken_system(medication.code_system),
                code=medication.code,
                active=medication.active,
            )
        return self._save(form, medication)

    def _save(self, form: MedicineForm, medication: Medication | None) -> Any:
        sentence, status = None, 200
        title = medication.display if medication else gettext("Add a medicine")
        version = medication.version if medication else None
        if request.method == "POST":
            if not form.validate():
                sentence, status = gettext("Please check the fields marked below."), 422
            else:
                try:
                    with guard.unit_of_work() as session:
                        if medication is None:
                            saved = formulary.add(session, form.told())
                        else:
                            if request.form.get("version") not in (None, str(version)):
                                raise Conflict
                            saved = formulary.change(session, medication, form.told())
                        said = saved.display
                    flash(gettext("%(what)s is saved.", what=said), "success")
                    return redirect(url_for("Medicines.list", q=said[:60], retired="y"))
                except Refusal as refusal:
                    if refusal.status == 403:
                        raise
                    sentence, status = explain(refusal, form), refusal.status
        page = self.render(
            "form.html",
            page_title=title,
            title=title,
            form=form,
            refusal=sentence,
            version=version,
            cancel_href=url_for("Medicines.list"),
        )
        return page, status

    @expose("/<int:medication_id>/retire/", methods=["POST"])
    @open_to("update", "Medication")
    def retire(self, medication_id: int) -> Any:
        """Let a medicine be prescribed no more, or again."""
        active = request.form.get("active") == "y"
        with guard.unit_of_work() as session:
            said = formulary.retire(session, formulary.get(session, medication_id), active=active).display
        sentence = gettext("%(what)s can be prescribed again.") if active else gettext("%(what)s is retired.")
        flash(sentence % {"what": said}, "success")
        return redirect(url_for("Medicines.list", q=request.form.get("q") or None, retired="y"))

    @expose("/import/", methods=["GET", "POST"])
    @open_to("update", "Medication")
    def take_in(self) -> Any:
        """A file: first what it would change, then, if that is meant, the change."""
        if request.method != "POST":
            return self._import(None, None)
        guard.require("create", "Medication")
        file = request.files.get("file")
        content = file.read() if file and file.filename else request.form.get("content", "").encode()
        planned: Plan | None = None
        try:
            if not content:
                raise Invalid(gettext("Please choose a file."), field="file")
            with guard.unit_of_work() as session:
                write = request.form.get("do") == "write"
                planned = (formulary.take_in if write else formulary.plan)(session, content)
        except Refusal as refusal:
            if refusal.status == 403:
                raise
            return self._import(planned, str(refusal)), refusal.status
        if write:
            flash(gettext("The formulary is up to date: %(what)s.", what=str(planned)), "success")
            return redirect(url_for("Medicines.list"))
        return self._import(planned, None, content)

    def _import(self, planned: Plan | None, refusal: str | None, content: bytes = b"") -> str:
        rows = sorted(planned.rows, key=lambda row: row.what != "wrong") if planned else []
        carried = content.decode("utf-8-sig", "replace") if len(content) <= CARRIED else ""
        return self.render(
            "prescribing/import.html",
            page_title=gettext("Take in medicines"),
            refusal=refusal,
            planned=planned,
            carried=carried,
            counts=[(WHATS[what], planned.count(what)) for what in WHATS if planned.count(what)] if planned else [],
            rows=[
                {"number": row.number, "what": row.what, "word": WHATS[row.what], "row": row} for row in rows[:SHOWN]
            ],
            columns=", ".join(formulary.COLUMNS),
            cut=len(rows) > SHOWN,
        )

    @expose("/export.csv")
    @open_to("read", "Medication")
    def export(self) -> Response:
        """The whole formulary, for a spreadsheet."""
        answer = Response(formulary.export(guard.session()), content_type="text/csv; charset=utf-8")
        today = f"{datetime.now(branch_zone()):%Y-%m-%d}"
        answer.headers["Content-Disposition"] = f'attachment; filename="medicines-{today}.csv"'
        return answer


def medicine_line(each: Medication) -> dict[str, Any]:
    """A medicine in a list."""
    return {
        "id": each.id,
        "display": each.display,
        "form": each.dose_form,
        "unit": each.unit,
        "ingredients": formulary.ingredients_text(each.ingredient),
        "system": spoken_system(each.code_system),
        "code": each.code,
        "active": each.active,
    }


def register(builder: Any) -> None:
    """The formulary."""
    builder.add_view_no_menu(Medicines)
