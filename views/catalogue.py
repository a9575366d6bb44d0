"""The laboratory's catalogue: tests and their ranges, to look up, to change, and as CSV in and out."""

from __future__ import annotations

import csv
import io
from datetime import date
from typing import Any

from flask import Response, flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext
from wtforms import DateField, DecimalField, FileField, Form, StringField
from wtforms.validators import InputRequired, Length, Optional

from app import guard
from app.actor import current
from app.errors import Invalid, Refusal
from app.services import catalogue
from models.lab import ReferenceRange
from views.audit_files import plain
from views.base import Page, explain, open_to
from views.laboratory import SPECIMENS

MOST = 5 * 1024 * 1024
SEXES = {"male-typical": lazy_gettext("Male"), "female-typical": lazy_gettext("Female")}
AGES = {
    "d": lazy_gettext("days"),
    "wk": lazy_gettext("weeks"),
    "mo": lazy_gettext("months"),
    "a": lazy_gettext("years"),
}


class Limits(Form):
    """Other limits from a day on."""

    since = DateField(lazy_gettext("From"), [InputRequired(lazy_gettext("Please choose a day."))], id="valid_from")
    low = DecimalField(lazy_gettext("Normal from"), [Optional()])
    high = DecimalField(lazy_gettext("Normal to"), [Optional()])
    critical_low = DecimalField(lazy_gettext("Critical at or below"), [Optional()])
    critical_high = DecimalField(lazy_gettext("Critical at or above"), [Optional()])
    source = StringField(lazy_gettext("Source"), [Length(max=200)])


class Upload(Form):
    """A catalogue in a file."""

    file = FileField(lazy_gettext("CSV file"), description=lazy_gettext("UTF-8, with the columns of the download."))


def whom(row: ReferenceRange) -> str:
    """Whom a range is for, in words."""
    parts = [str(SEXES[row.sex])] if row.sex else []
    if row.since_age is not None:
        parts.append(gettext("from %(age)s %(unit)s", age=row.since_age, unit=AGES[row.since_unit or "a"]))
    if row.until_age is not None:
        parts.append(gettext("below %(age)s %(unit)s", age=row.until_age, unit=AGES[row.until_unit or "a"]))
    if row.pregnant is not None:
        parts.append(gettext("pregnant") if row.pregnant else gettext("not pregnant"))
    return ", ".join(parts) or gettext("Everybody")


def number(value: Any) -> str:
    """A limit as it stands in the catalogue."""
    return "" if value is None else format(value, "f")


class Catalogue(Page):
    """The catalogue."""

    route_base = "/laboratory/catalogue"
    default_view = "list"

    @expose("/")
    @open_to("read", "LabTest")
    def list(self) -> str:
        """The tests, by name."""
        text, retired = request.args.get("q", "").strip()[:100], request.args.get("retired") == "yes"
        found = catalogue.find(guard.session(), text, retired=retired)
        return self.render(
            "lab/catalogue.html",
            page_title=gettext("Catalogue of tests"),
            q=text,
            retired=retired,
            may_change=current().may("update", "LabTest"),
            lines=[(test, str(SPECIMENS.get(test.specimen_type, test.specimen_type))) for test in found],
        )

    @expose("/<int:test_id>/")
    @open_to("read", "LabTest")
    def show(self, test_id: int) -> str:
        """A test and its ranges."""
        test = catalogue.show(guard.session(), test_id)
        return self.render(
            "lab/catalogue_test.html",
            page_title=test.name,
            test=test,
            specimen=str(SPECIMENS.get(test.specimen_type, test.specimen_type)),
            may_change=current().may("update", "ReferenceRange"),
            lines=[
                (row, whom(row), [number(getattr(row, name)) for name in catalogue.LIMITS], catalogue.counts(row))
                for row in sorted(test.ranges, key=lambda row: (row.valid_from, row.id), reverse=True)
            ],
        )

    @expose("/range/<int:test_id>/<int:range_id>/", methods=["GET", "POST"])
    @open_to("update", "ReferenceRange")
    def change(self, test_id: int, range_id: int) -> Any:
        """Other limits for the same people from a day on."""
        test = catalogue.show(guard.session(), test_id)
        row = next((row for row in test.ranges if row.id == range_id), None)
        form = Limits(request.form, obj=row)
        refusal, status = None, 200
        if request.method == "POST":
            refusal, status = gettext("Please check the fields marked below."), 422
            if form.validate():
                told = {name: getattr(form, name).data for name in catalogue.LIMITS}
                try:
                    with guard.unit_of_work() as session:
                        since = form.since.data or date.max
                        source = form.source.data or ""
                        catalogue.change_range(session, range_id, since=since, source=source, **told)
                    flash(gettext("The new range counts from that day; the old one ends the day before."), "success")
                    return redirect(url_for("Catalogue.show", test_id=test_id))
                except Refusal as refused:
                    if refused.status in (403, 404):
                        raise
                    refusal, status = explain(refused, form), refused.status
        page = self.render(
            "lab/catalogue_form.html",
            page_title=gettext("Change a range of %(name)s", name=test.name),
            back=url_for("Catalogue.show", test_id=test_id),
            form=form,
            refusal=refusal,
            told=None,
        )
        return page, status

    @expose("/export.csv")
    @open_to("read", "LabTest")
    def export(self) -> Response:
        """All of it as CSV, as the upload takes it."""
        text = io.StringIO(newline="")
        text.write("\ufeff")
        csv.writer(text).writerows([plain(cell) for cell in row] for row in catalogue.rows(guard.session()))
        headers = {"Content-Disposition": "attachment; filename=laboratory.csv"}
        return Response(text.getvalue().encode(), mimetype="text/csv", headers=headers)

    @expose("/upload/", methods=["GET", "POST"])
    @open_to("create", "LabTest")
    def upload(self) -> Any:
        """Take a file, or say first what it would do."""
        form = Upload(request.form)
        refusal, told, status = None, None, 200
        if request.method == "POST":
            given = request.files.get("file")
            content = given.read(MOST + 1) if given else b""
            try:
                if not content or len(content) > MOST:
                    raise Invalid(gettext("Choose a file of at most 5 MB."), field="file")
                with guard.unit_of_work() as session:
                    told = catalogue.bring(session, content, dry_run="try" in request.form)
                if not told.errors and "try" not in request.form:
                    flash(gettext("The catalogue was taken over."), "success")
                    return redirect(url_for("Catalogue.list"))
                status = 422 if told.errors else 200
            except Refusal as refused:
                if refused.status in (403, 404):
                    raise
                refusal, status = explain(refused, form), refused.status
        page = self.render(
            "lab/catalogue_form.html",
            page_title=gettext("Take over a catalogue"),
            back=url_for("Catalogue.list"),
            form=form,
            refusal=refusal,
            told=told,
        )
        return page, status


def register(builder: Any) -> None:
    """The catalogue's pages."""
    builder.add_view_no_menu(Catalogue)
