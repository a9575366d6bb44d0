"""The laboratory's catalogue: tests and their ranges, to look up, to change, and as CSV in and out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
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


WIDE, HIGH, LEFT, FOOT = 320, 150, 44, 24
"""Of the drawing of a test's ranges, in its own units."""
YEARS = {"d": Decimal(1) / 365, "wk": Decimal(7) / 365, "mo": Decimal(1) / 12, "a": Decimal(1)}
OLDEST = Decimal(90)
"""Years the drawing goes to."""


def bands(rows: Sequence[ReferenceRange]) -> dict[str, Any] | None:
    """Where the ranges that count today lie, over the age; None where no two limits span anything."""
    today = [row for row in rows if catalogue.counts(row)]
    known = [each for row in today for name in catalogue.LIMITS if (each := getattr(row, name)) is not None]
    if not known or min(known) == max(known) == 0:
        return None
    room = (max(known) - min(known)) / 8 or abs(max(known)) / 4
    low, high = max(min(known) - room, Decimal(0) if min(known) >= 0 else min(known) - room), max(known) + room

    def across(age: int | None, unit: str | None, otherwise: Decimal) -> float:
        years = otherwise if age is None else min(age * YEARS[unit or "a"], OLDEST)
        return round(float(LEFT + years / OLDEST * (WIDE - LEFT - 8)), 1)

    def down(value: Decimal) -> float:
        return round(float(8 + (high - value) / (high - low) * (HIGH - 8 - FOOT)), 1)

    found = []
    for row in today:
        left, right = across(row.since_age, row.since_unit, Decimal(0)), across(row.until_age, row.until_unit, OLDEST)
        top, bottom = down(row.high if row.high is not None else high), down(row.low if row.low is not None else low)
        found.append(
            {
                "x": left,
                "width": max(right - left, 1),
                "y": top,
                "height": max(bottom - top, 1),
                "kind": {"male-typical": "male", "female-typical": "female"}.get(row.sex or "", "all"),
                "critical": [down(each) for each in (row.critical_low, row.critical_high) if each is not None],
                "right": right,
                "label": whom(row),
            }
        )
    return {
        "width": WIDE,
        "height": HIGH,
        "foot": HIGH - FOOT,
        "left": LEFT,
        "bands": found,
        "marks": [(down(value), number(value.normalize())) for value in sorted({min(known), max(known)})],
        "ages": [(across(age, "a", OLDEST), str(age)) for age in (0, 18, 45, 65, 90)],
    }


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
            drawn=bands(test.ranges),
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
