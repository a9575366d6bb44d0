"""The laboratory's catalogue in a person's hands: tests, ranges, conversions and panels, added, changed and retired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext
from wtforms import (
    BooleanField,
    DateField,
    DecimalField,
    Form,
    HiddenField,
    IntegerField,
    SelectField,
    SelectMultipleField,
    StringField,
)
from wtforms.validators import InputRequired, Length, NumberRange, Optional

from app import guard
from app.errors import NotFound, Refusal
from app.services import catalogue
from models.codes import AnswerKind
from models.lab import LabPanel
from views.base import Page, explain, open_to
from views.catalogue import AGES, SEXES
from views.laboratory import SPECIMENS

NEEDED = InputRequired(lazy_gettext("This is needed."))
KINDS = {
    AnswerKind.NUMERIC: lazy_gettext("A number"),
    AnswerKind.CODED: lazy_gettext("One of some answers"),
    AnswerKind.TEXT: lazy_gettext("Words"),
}
ANY = ("", lazy_gettext("Any"))


def _units() -> list[tuple[str, Any]]:
    return [("", lazy_gettext("no limit")), *AGES.items()]


class TestForm(Form):
    """A test of the catalogue."""

    __test__ = False  # pytest takes it for one of its own

    version = HiddenField()
    name = StringField(lazy_gettext("Name"), [NEEDED, Length(max=120)])
    code = StringField(
        lazy_gettext("Code"),
        [NEEDED, Length(max=40)],
        description=lazy_gettext("LOINC, or your own where it has none."),
    )
    abbreviation = StringField(lazy_gettext("Abbreviation"), [Length(max=20)])
    method = StringField(lazy_gettext("Method"), [Length(max=80)])
    kind = SelectField(lazy_gettext("Its result is"), choices=[*KINDS.items()])
    specimen_type = SelectField(lazy_gettext("Specimen"), choices=[("", lazy_gettext("not said")), *SPECIMENS.items()])
    unit = StringField(lazy_gettext("Unit"), [Length(max=40)], description=lazy_gettext("As UCUM writes it: mmol/L"))
    decimals = IntegerField(lazy_gettext("Decimals"), [Optional(), NumberRange(0, 6)])
    plausible_low = DecimalField(lazy_gettext("Nobody is below"), [Optional()], places=None)
    plausible_high = DecimalField(lazy_gettext("Nobody is above"), [Optional()], places=None)
    reporting_low = DecimalField(lazy_gettext("The instrument reads from"), [Optional()], places=None)
    reporting_high = DecimalField(lazy_gettext("The instrument reads to"), [Optional()], places=None)
    delta_amount = DecimalField(lazy_gettext("Check a change of more than"), [Optional(), NumberRange(0)], places=None)
    delta_share = DecimalField(
        lazy_gettext("or of more than this share"),
        [Optional(), NumberRange(0)],
        places=None,
        description=lazy_gettext("0.5 is half of the value before."),
    )
    delta_days = IntegerField(lazy_gettext("within days"), [Optional(), NumberRange(1, 3650)], default=30)
    release_hours = IntegerField(
        lazy_gettext("Patients see it after hours"), [Optional(), NumberRange(0, 8760)], default=0
    )
    sensitive = BooleanField(
        lazy_gettext("Somebody tells the patient first"),
        description=lazy_gettext("The portal never shows it by itself."),
    )
    active = BooleanField(lazy_gettext("It is offered"), default=True)


class RangeForm(Form):
    """A range, and whom it is for."""

    sex = SelectField(lazy_gettext("Sex"), choices=[ANY, *SEXES.items()])
    since_age = IntegerField(lazy_gettext("From the age of"), [Optional(), NumberRange(0, 200)])
    since_unit = SelectField(lazy_gettext("counted in"), choices=_units())
    until_age = IntegerField(lazy_gettext("Below the age of"), [Optional(), NumberRange(1, 200)])
    until_unit = SelectField(lazy_gettext("counted in"), choices=_units())
    pregnant = SelectField(
        lazy_gettext("Pregnant"), choices=[ANY, ("yes", lazy_gettext("Yes")), ("no", lazy_gettext("No"))]
    )
    low = DecimalField(lazy_gettext("Normal from"), [Optional()], places=None)
    high = DecimalField(lazy_gettext("Normal to"), [Optional()], places=None)
    critical_low = DecimalField(lazy_gettext("Critical at or below"), [Optional()], places=None)
    critical_high = DecimalField(lazy_gettext("Critical at or above"), [Optional()], places=None)
    valid_from = DateField(lazy_gettext("Counts from"), [NEEDED])
    valid_until = DateField(lazy_gettext("to, with that day"), [Optional()])
    source = StringField(lazy_gettext("Source"), [NEEDED, Length(max=200)])


class EndForm(Form):
    """The last day of a range."""

    valid_until = DateField(lazy_gettext("The last day it counts"), [NEEDED])


class ConversionForm(Form):
    """By what a value in one unit becomes one in another."""

    source = StringField(lazy_gettext("From the unit"), [NEEDED, Length(max=40)])
    target = StringField(lazy_gettext("To the unit"), [NEEDED, Length(max=40)])
    factor = DecimalField(lazy_gettext("multiply by"), [NEEDED], places=None)


class PanelForm(Form):
    """Tests that are ordered together."""

    name = StringField(lazy_gettext("Name"), [NEEDED, Length(max=120)])
    code = StringField(lazy_gettext("Code"), [NEEDED, Length(max=40)])
    tests = SelectMultipleField(lazy_gettext("Tests"), coerce=int)
    active = BooleanField(lazy_gettext("It is offered"), default=True)


def _sent() -> Any:
    """What was filled in; None before, so that a form shows what is there, its ticks as well."""
    return request.form if request.method == "POST" else None


def _given(form: Form, *names: str) -> dict[str, Any]:
    """What a form says, None where it is blank."""
    return {name: None if (data := form[name].data) == "" else data for name in names}


class CatalogueEdit(Page):
    """Changes of the catalogue."""

    route_base = "/laboratory/catalogue/edit"
    default_view = "panels"

    def _form(self, form: Form, title: str, back: str, work: Callable[[Any], str]) -> Any:
        """Show a form, or do what it says and go where that leads; a refusal keeps it as it was filled in."""
        refusal, status = None, 200
        if request.method == "POST":
            refusal, status = gettext("Please check the fields marked below."), 422
            if form.validate():
                try:
                    with guard.unit_of_work() as session:
                        leads = work(session)
                    flash(gettext("The catalogue has it."), "success")
                    return redirect(leads)
                except Refusal as refused:
                    if refused.status in (403, 404):
                        raise
                    refusal, status = explain(refused, form), refused.status
        page = self.render(
            "lab/catalogue_form.html", page_title=title, back=back, form=form, refusal=refusal, told=None
        )
        return page, status

    @expose("/test/", methods=["GET", "POST"])
    @open_to("create", "LabTest")
    def add(self) -> Any:
        """A test that was not there."""
        form = TestForm(_sent())

        def work(session: Any) -> str:
            told = {**_given(form, *catalogue.TEST)}
            told = {name: value for name, value in told.items() if value is not None}
            return url_for("Catalogue.show", test_id=catalogue.add_test(session, **told).id)

        return self._form(form, gettext("Add a test"), url_for("Catalogue.list"), work)

    @expose("/test/<int:test_id>/", methods=["GET", "POST"])
    @open_to("update", "LabTest")
    def change(self, test_id: int) -> Any:
        """What is known of a test, set right; without the tick it is offered no longer."""
        test = catalogue.show(guard.session(), test_id)
        form = TestForm(_sent(), obj=test)

        def work(session: Any) -> str:
            told = _given(form, *catalogue.TEST)
            for name in ("method", "abbreviation", "unit", "specimen_type"):
                told[name] = told[name] or ""
            told["delta_days"], told["release_hours"] = told["delta_days"] or 30, told["release_hours"] or 0
            said = request.form.get("version", "")
            seen = int(said) if said.isdigit() else None
            catalogue.change_test(session, test_id, version=seen, **told)
            return url_for("Catalogue.show", test_id=test_id)

        title = gettext("Change %(name)s", name=test.name)
        return self._form(form, title, url_for("Catalogue.show", test_id=test_id), work)

    @expose("/test/<int:test_id>/range/", methods=["GET", "POST"])
    @open_to("create", "ReferenceRange")
    def add_range(self, test_id: int) -> Any:
        """A range for people that have none yet."""
        test = catalogue.show(guard.session(), test_id)
        form = RangeForm(_sent())

        def work(session: Any) -> str:
            told = _given(form, *catalogue.WHOM, *catalogue.LIMITS, "valid_from", "valid_until", "source")
            told["pregnant"] = {"yes": True, "no": False}.get(told["pregnant"] or "")
            told["source"] = told["source"] or ""
            catalogue.add_range(session, test_id, **told)
            return url_for("Catalogue.show", test_id=test_id)

        title = gettext("Add a range of %(name)s", name=test.name)
        return self._form(form, title, url_for("Catalogue.show", test_id=test_id), work)

    @expose("/test/<int:test_id>/range/<int:range_id>/end", methods=["GET", "POST"])
    @open_to("update", "ReferenceRange")
    def end_range(self, test_id: int, range_id: int) -> Any:
        """A range that counts no longer from a day on, with nothing in its place."""
        test = catalogue.show(guard.session(), test_id)
        if range_id not in {row.id for row in test.ranges}:
            raise NotFound
        form = EndForm(_sent())

        def work(session: Any) -> str:
            assert form.valid_until.data is not None
            catalogue.end_range(session, range_id, last_day=form.valid_until.data)
            return url_for("Catalogue.show", test_id=test_id)

        title = gettext("End a range of %(name)s", name=test.name)
        return self._form(form, title, url_for("Catalogue.show", test_id=test_id), work)

    @expose("/test/<int:test_id>/conversion/", methods=["GET", "POST"])
    @open_to("create", "UnitConversion")
    def add_conversion(self, test_id: int) -> Any:
        """What a value in another unit is in the one of the test."""
        test = catalogue.show(guard.session(), test_id)
        form = ConversionForm(_sent(), data={"target": test.unit})

        def work(session: Any) -> str:
            assert form.factor.data is not None
            catalogue.add_conversion(
                session,
                test_id,
                source=(form.source.data or "").strip(),
                target=(form.target.data or "").strip(),
                factor=form.factor.data,
            )
            return url_for("Catalogue.show", test_id=test_id)

        title = gettext("Add a conversion of %(name)s", name=test.name)
        return self._form(form, title, url_for("Catalogue.show", test_id=test_id), work)

    @expose("/panels/")
    @open_to("read", "LabPanel")
    def panels(self) -> str:
        """The panels, and what is in them."""
        return self.render(
            "lab/catalogue_panels.html",
            page_title=gettext("Panels"),
            panels=catalogue.panels(guard.session()),
        )

    @expose("/panel/", methods=["GET", "POST"])
    @open_to("create", "LabPanel")
    def add_panel(self) -> Any:
        """A panel that was not there."""
        return self._panel(None)

    @expose("/panel/<int:panel_id>/", methods=["GET", "POST"])
    @open_to("update", "LabPanel")
    def change_panel(self, panel_id: int) -> Any:
        """What a panel is made of."""
        return self._panel(catalogue.panel(guard.session(), panel_id))

    def _panel(self, panel: LabPanel | None) -> Any:
        offered = catalogue.find(guard.session(), retired=panel is not None)
        known = (
            {"tests": [test.id for test in panel.tests], "name": panel.name, "code": panel.code, "active": panel.active}
            if panel
            else {}
        )
        form = PanelForm(_sent(), data=known)
        if panel is not None:
            del form.code
        form.tests.choices = [(test.id, f"{test.name} ({test.code})") for test in offered]

        def work(session: Any) -> str:
            code = panel.code if panel else (form.code.data or "").strip()
            if panel is None:
                catalogue.free_code(session, code)
            wanted = set(form.tests.data or ())
            before = [test.id for test in panel.tests if test.id in wanted] if panel else []
            catalogue.set_panel(
                session,
                code=code,
                name=form.name.data or "",
                test_ids=[*before, *(each for each in form.tests.data or () if each not in before)],
                active=bool(form.active.data),
            )
            return url_for("CatalogueEdit.panels")

        title = gettext("Change %(name)s", name=panel.name) if panel else gettext("Add a panel")
        return self._form(form, title, url_for("CatalogueEdit.panels"), work)


def register(builder: Any) -> None:
    """The pages that change the catalogue."""
    builder.add_view_no_menu(CatalogueEdit)
