"""Reading results: the table over time, the course of a test, one result, an order's report on screen and paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any

from flask import current_app, flash, g, jsonify, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext, ngettext
from werkzeug.wrappers import Response
from wtforms import DateField, Form, IntegerField
from wtforms.validators import InputRequired, NumberRange

from app import guard
from app.actor import acting, current
from app.errors import NotFound, Refusal
from app.services import clinical, lab, results, turnaround, waiting
from app.services.results import Was
from app.services.turnaround import Turnaround
from models.base import now
from models.clinical import Observation
from models.codes import ObservationStatus
from models.organization import Practitioner
from models.patients import Patient
from views.base import Page, branch_zone, explain, open_to, words
from views.branches import all_branches
from views.chart import unit
from views.desk import number_of
from views.laboratory import FLAGS, specimen_word, who
from views.papers import printed
from views.people import born, name_of
from views.plots import FOOT, HIGH, LEFT, RIGHT, TOP, WIDE, ticks
from views.speech import spoken_day

STATES = {
    ObservationStatus.REGISTERED: lazy_gettext("Not there yet"),
    ObservationStatus.PRELIMINARY: lazy_gettext("Preliminary"),
    ObservationStatus.AMENDED: lazy_gettext("Amended"),
    ObservationStatus.CORRECTED: lazy_gettext("Corrected"),
    ObservationStatus.CANCELLED: lazy_gettext("Cancelled"),
    ObservationStatus.ENTERED_IN_ERROR: lazy_gettext("Withdrawn"),
}
"""What a result is besides final."""
SYMBOLS = {"L": "↓", "LL": "↓↓", "H": "↑", "HH": "↑↑", "A": "!", "AA": "!!", "POS": "+"}
"""What stands beside a flagged value for those who do not see its colour."""


# ---- in words ----------------------------------------------------------------------------------------------------


def value_of(state: Mapping[str, Any]) -> str:
    """A value as it was reported, with its comparator and without its unit."""
    number = state.get("value_quantity")
    if number is not None:
        return f"{state.get('comparator') or ''}{Decimal(str(number)):f}"
    return str(state.get("value_text") or "—")


def range_of(ranges: Sequence[Mapping[str, Any]] | None) -> str:
    """What was normal when the result was flagged."""
    for reference in ranges or []:
        low, high = (reference.get(side, {}).get("value") for side in ("low", "high"))
        if low is not None and high is not None:
            return f"{low} – {high}"
        if low is not None or high is not None:
            return f"≥ {low}" if low is not None else f"≤ {high}"
        if reference.get("text"):
            return str(reference["text"])
    return ""


def limits_of(result: Observation) -> tuple[float | None, float | None]:
    """The ends of what was normal, as numbers."""
    reference = (result.reference_range or [{}])[0]
    found: list[float | None] = []
    for side in ("low", "high"):
        try:
            found.append(float(reference.get(side, {}).get("value")))
        except (TypeError, ValueError):
            found.append(None)
    return found[0], found[1]


def flag_of(code: str | None) -> dict[str, Any] | None:
    """A flag by its letters, a symbol, a word and a tone; None where nobody has said what is normal."""
    if code is None:
        return None
    tone = "danger" if len(code) == 2 else "ok" if code == "N" else "warn"
    word = gettext("positive") if code == "POS" else str(FLAGS.get(code, code))
    return {"code": code, "word": word, "tone": tone, "symbol": SYMBOLS.get(code, "")}


def told(result: Observation) -> dict[str, Any]:
    """A result with everything that has to be read along with it."""
    state = {column: getattr(result, column) for column in ("value_quantity", "value_text", "comparator")}
    return {
        "id": result.id,
        "version": result.version,
        "name": result.code_display,
        "code": result.code,
        "value": value_of(state),
        "unit": unit(result.value_unit),
        "flag": flag_of(result.interpretation),
        "off_scale": result.off_scale,
        "delta": result.delta,
        "range": range_of(result.reference_range),
        "state": str(STATES.get(ObservationStatus(result.status), "")),
        "void": result.status == ObservationStatus.ENTERED_IN_ERROR,
        "note": result.note,
        "when": words(results.when(result)),
        "out": words(results.out_at(result)),
        "unread": result.read_at is None,
        "href": url_for("Results.show", observation_id=result.id),
        "was": "",
    }


def what_it_was(session: Any, found: Iterable[Observation]) -> dict[int, list[Was]]:
    """By result, what it was each time before; asked only of those that were changed after they were out."""
    changed = [each for each in found if each.status != ObservationStatus.FINAL]
    if not changed:
        return {}
    history = lab.history(session, [each.id for each in changed])
    return {each.id: results.earlier(each, history.get(each.id, [])) for each in changed}


def said_before(was: Sequence[Was], result: Observation | None = None) -> str:
    """What a result said before it was changed last; nothing where it says the same now, as a withdrawn one does."""
    if not was or (result is not None and results.told_of(was[0].state) == lab.told(result)):
        return ""
    state = was[0].state
    flag = flag_of(state.get("interpretation"))
    said = f"{value_of(state)} {unit(state.get('value_unit'))}".strip()
    return f"{said} {flag['code']} {flag['word']}" if flag else said


# ---- the course of a test ----------------------------------------------------------------------------------------


def drawing(
    found: Sequence[Observation], critical: Mapping[int, tuple[Decimal | None, Decimal | None]]
) -> dict[str, Any] | None:
    """Where each number of a test goes, with what was normal and critical at its time; None without two numbers.

    A value below or above what the instrument tells apart is drawn as an arrow from where that ends.
    """
    drawn = [
        each for each in found if each.value_quantity is not None and each.status != ObservationStatus.ENTERED_IN_ERROR
    ]
    if len(drawn) < 2:
        return None
    values = [float(each.value_quantity or 0) for each in drawn]
    bands = [limits_of(each) for each in drawn]
    edges = [edge for band in bands for edge in band if edge is not None]
    marks = ticks(min([*values, *edges]), max([*values, *edges]))
    low, high = marks[0], marks[-1]
    times = [results.when(each).timestamp() for each in drawn]
    start, long = times[0], (times[-1] - times[0]) or 1

    def across(t: float) -> float:
        return round(LEFT + 6 + (t - start) / long * (WIDE - LEFT - RIGHT - 12), 1)

    def down(v: float) -> float:
        return round(TOP + (high - min(max(v, low), high)) / (high - low) * (HIGH - TOP - FOOT), 1)

    xs = [across(t) for t in times]
    parts, lines = [], []
    for nth, each in enumerate(drawn):
        left = float(LEFT) if nth == 0 else (xs[nth - 1] + xs[nth]) / 2
        right = float(WIDE - RIGHT) if nth == len(drawn) - 1 else (xs[nth] + xs[nth + 1]) / 2
        x, width = round(left, 1), round(right - left, 1)
        if bands[nth] != (None, None):
            below, above = bands[nth]
            top, bottom = down(high if above is None else above), down(low if below is None else below)
            parts.append({"x": x, "width": width, "y": top, "height": round(max(bottom - top, 0.5), 1)})
        lines += [
            {"x1": x, "x2": round(right, 1), "y": down(float(limit))}
            for limit in critical.get(each.id, ())
            if limit is not None and low <= float(limit) <= high
        ]
    zone = branch_zone()
    days = [spoken_day(results.when(each).astimezone(zone).date()) for each in (drawn[0], drawn[-1])]
    return {
        "width": WIDE,
        "height": HIGH,
        "left": LEFT,
        "right": WIDE - RIGHT,
        "marks": [{"y": down(mark), "label": f"{mark:g}"} for mark in marks],
        "ends": days if days[0] != days[1] else days[:1],
        "bands": parts,
        "criticals": lines,
        "line": list(zip(xs, (down(value) for value in values), strict=True)),
        "points": [
            {
                "x": x,
                "y": down(value),
                "toward": each.comparator[:1],
                "tone": (flag_of(each.interpretation) or {}).get("tone", ""),
            }
            for x, value, each in zip(xs, values, drawn, strict=True)
        ],
    }


# ---- pages -------------------------------------------------------------------------------------------------------


def _patient(session: Any, patient_id: int) -> Patient:
    return clinical.open_chart(session, patient_id)


def _moment(text: str) -> datetime | None:
    """A moment of the address line; nonsense counts as not said."""
    try:
        found = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def ordering(patient: Patient) -> str | None:
    """Where something more is ordered, for those who may."""
    if not current().may("create", "ServiceRequest") or current().practitioner_id is None or not patient.active:
        return None
    return url_for("Ordering.ask", patient_id=patient.id)


def table_rows(page: results.Page, order: Sequence[str], was: Mapping[int, list[Was]]) -> list[dict[str, Any]]:
    """A row a test and unit, with a cell a time; what is normal stands beside a value where it is not the row's."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for each in page.results:
        line = told(each)
        line["was"] = said_before(was.get(each.id, []), each)
        key = (each.code or each.code_display, line["unit"])
        row = rows.setdefault(
            key,
            {
                "name": each.code_display,
                "unit": line["unit"],
                "range": line["range"],
                "code": each.code,
                "cells": {moment: [] for moment in page.times},
            },
        )
        line["other_range"] = line["range"] if line["range"] != row["range"] else ""
        row["cells"][results.when(each)].append(line)
    place = {code: nth for nth, code in enumerate(order)}
    return sorted(rows.values(), key=lambda row: (place.get(row["code"] or "", len(place)), row["name"], row["unit"]))


class Period(Form):
    """The days of a report, and within how many hours a result should be out."""

    since = DateField(lazy_gettext("From"), [InputRequired(lazy_gettext("Please choose a day."))])
    until = DateField(lazy_gettext("To"), [InputRequired(lazy_gettext("Please choose a day."))])
    target = IntegerField(
        lazy_gettext("Target in hours"),
        [InputRequired(lazy_gettext("Please give the target in hours.")), NumberRange(1, 10_000)],
    )


def spent(hours: float) -> str:
    """A time in hours, or in minutes where it is less than one."""
    return str(gettext("%(n)s min", n=round(hours * 60)) if hours < 1 else gettext("%(n)s h", n=f"{hours:.1f}"))


class Results(Page):
    """What the laboratory found."""

    route_base = "/results"
    default_view = "inbox"

    @expose("/patients/<int:patient_id>/")
    @open_to("read", "Observation")
    def table(self, patient_id: int) -> str:
        """Tests as rows, times of collection as columns, the newest first."""
        session = guard.session()
        results.may_read()
        patient = _patient(session, patient_id)
        panels = results.panels(session)
        chosen = number_of(request.args.get("panel", ""))
        codes = results.codes_of(session, chosen) if chosen else None
        asked = request.args.get("before", "")
        page = results.cumulative(session, patient_id, codes=codes, before=_moment(asked))
        if not page.results:
            guard.asked_about(patient_id)
        zone = branch_zone()
        was = what_it_was(session, page.results)
        here: dict[str, Any] = {"patient_id": patient_id, "panel": chosen or None}
        return self.render(
            "results/table.html",
            page_title=gettext("Results of %(name)s", name=name_of(patient)),
            patient=who(patient),
            chart_href=url_for("Chart.open", patient_id=patient_id),
            order_href=ordering(patient),
            panels=[(panel.id, panel.name) for panel in panels],
            panel=chosen,
            times=[
                {"at": at, "day": spoken_day(at.astimezone(zone).date()), "clock": f"{at.astimezone(zone):%H:%M}"}
                for at in page.times
            ],
            rows=table_rows(page, codes or [], was),
            newest_href=url_for("Results.table", **here) if asked else None,
            earlier_href=url_for("Results.table", **here, before=page.earlier.isoformat()) if page.earlier else None,
        )

    @expose("/patients/<int:patient_id>/course/")
    @open_to("read", "Observation")
    def course(self, patient_id: int) -> str:
        """One test over time, drawn and in a table. Raises NotFound."""
        session = guard.session()
        results.may_read()
        patient = _patient(session, patient_id)
        found = results.course(session, patient_id, request.args.get("test", "")[:100])
        newest = found[-1]
        of_unit = [each for each in found if each.value_unit == newest.value_unit]
        was = what_it_was(session, found)
        return self.render(
            "results/course.html",
            page_title=newest.code_display,
            patient=who(patient),
            back_href=url_for("Results.table", patient_id=patient_id),
            unit=unit(newest.value_unit),
            plot=drawing(of_unit, results.critical_limits(session, patient, of_unit)),
            lines=[{**told(each), "was": said_before(was.get(each.id, []), each)} for each in reversed(found)],
        )

    @expose("/<int:observation_id>/")
    @open_to("read", "Observation")
    def show(self, observation_id: int) -> Any:
        """One result: what it was held against, how it came about, and what it was before."""
        session = guard.session()
        result = results.show(session, observation_id)
        order = results.order_of(session, result.service_request_id)
        specimen = results.specimen_of(session, result)
        changes = lab.history(session, [result.id])
        before = results.earlier(result, changes.get(result.id, []))
        named = {key for key in (each.by_id for each in before) if key is not None}
        people = {key: session.get(Practitioner, key) for key in named} if current().may("read", "Practitioner") else {}
        limits = results.critical_limits(session, result.patient, [result]).get(result.id) if result.patient else None
        page = self.render(
            "results/show.html",
            page_title=result.code_display,
            one={**told(result), "was": said_before(before, result)},
            patient=who(result.patient),
            table_href=url_for("Results.table", patient_id=result.patient_id),
            course_href=url_for("Results.course", patient_id=result.patient_id, test=result.code)
            if result.value_quantity is not None and result.code
            else None,
            critical=critical_words(limits),
            rules=result.rules,
            entered_by=result.recorder.name if result.recorder else "",
            verified_by=result.verified_by.name if result.verified_by else "",
            verified=words(result.verified_at) if result.verified_at else "",
            read=words(result.read_at) if result.read_at else "",
            specimen={
                "number": specimen.accession,
                "kind": specimen_word(specimen.type_code),
                "collected": words(specimen.collected_at),
                "received": words(specimen.received_at) if specimen.received_at else "",
            }
            if specimen
            else None,
            order={
                "name": order.code_display,
                "by": order.requester.name if order.requester else "",
                "when": words(order.authored_at),
                "href": url_for("Results.order", request_id=order.id),
            }
            if order
            else None,
            before=[
                {
                    "said": said_before([each]),
                    "until": words(each.until_at),
                    "why": each.why,
                    "by": person.name if (person := people.get(each.by_id or 0)) else "",
                    "range": range_of(each.state.get("reference_range")),
                }
                for each in before
            ],
        )
        self.read_by_orderer(order, [result])
        return page

    @expose("/orders/<int:request_id>/")
    @open_to("read", "ServiceRequest")
    def order(self, request_id: int) -> str:
        """What was released of an order."""
        session = guard.session()
        found = results.report(session, request_id)
        was = what_it_was(session, found.results)
        order = found.order
        page = self.render(
            "results/order.html",
            page_title=order.code_display,
            patient=who(order.patient),
            order={
                "name": order.code_display,
                "by": order.requester.name if order.requester else "",
                "when": words(order.authored_at),
                "branch": str(all_branches().get(order.branch_id or 0, "")),
                "specimen": specimen_number(order),
            },
            lines=[{**told(each), "was": said_before(was.get(each.id, []), each)} for each in found.results],
            missing=found.missing,
            reported=[words(each.issued_at) for each in found.reports if each.issued_at],
            table_href=url_for("Results.table", patient_id=order.patient_id),
            bench_href=url_for("Laboratory.show", request_id=order.id),
            pdf_href=url_for("Results.pdf", request_id=order.id) if found.results else None,
            order_href=ordering(order.patient) if order.patient else None,
            mine=order.requester_id == current().practitioner_id,
        )
        self.read_by_orderer(order, found.results)
        return page

    def read_by_orderer(self, order: Any, shown: Iterable[Observation]) -> None:
        """What was before whoever ordered it is read; nobody else's look marks it."""
        unread = [(each.id, each.version) for each in shown if each.read_at is None]
        mine = order is not None and order.requester_id == current().practitioner_id
        if unread and mine and results.reads_results(current()):
            with guard.unit_of_work() as session:
                results.seen(session, unread)

    @expose("/orders/<int:request_id>/report.pdf")
    @open_to("read", "ServiceRequest")
    def pdf(self, request_id: int) -> Response:
        """The same on paper. Raises NotFound where nothing of it was released."""
        session = guard.session()
        found = results.report(session, request_id)
        order = found.order
        patient = order.patient
        if not found.results or patient is None:
            raise NotFound
        was = what_it_was(session, found.results)
        branch = all_branches().get(order.branch_id or 0)
        response = printed(
            "print/results.html",
            language="en",
            name=f"results-{order.id}",
            heading=gettext("Laboratory report"),
            place=branch.name if branch else "Wardbook",
            patient=name_of(patient),
            mrn=patient.mrn,
            born=born(patient),
            order=order.code_display,
            by=order.requester.name if order.requester else "",
            ordered=words(order.authored_at),
            specimen=specimen_number(order),
            collected=words(results.when(found.results[0])),
            printed_at=words(datetime.now(branch_zone())),
            missing=found.missing,
            lines=[
                {
                    **told(each),
                    "was": said_before(was.get(each.id, []), each),
                    "by": each.verified_by.name if each.verified_by else "",
                }
                for each in found.results
            ],
        )
        self.read_by_orderer(order, found.results)
        return response

    # ---- the inbox ----

    @expose("/")
    @open_to("create", "ServiceRequest")
    def inbox(self) -> str:
        """Results of the person's orders that they have not read, the critical and abnormal first."""
        session = guard.session()
        people = results.colleagues(session)
        asked = number_of(request.args.get("of", "")) or None
        fresh, whole = results.inbox(session, whose=asked)
        was = what_it_was(session, [each for one in fresh for each in one.results])
        return self.render(
            "results/inbox.html",
            page_title=gettext("New results"),
            people=[(each.id, each.name) for each in people],
            of=asked,
            of_name=next((each.name for each in people if each.id == asked), ""),
            whole=whole,
            cards=[
                {
                    "id": one.order.id,
                    "name": one.order.code_display,
                    "rank": one.rank,
                    "patient": who(one.order.patient),
                    "ordered": words(one.order.authored_at),
                    "href": url_for("Results.order", request_id=one.order.id),
                    "lines": [{**told(each), "was": said_before(was.get(each.id, []), each)} for each in one.results],
                    "shown": " ".join(f"{each.id}.{each.version}" for each in one.results),
                }
                for one in fresh
            ],
        )

    @expose("/seen", methods=["POST"])
    @open_to("update", "Observation")
    def seen(self) -> Any:
        """Mark what was on the screen as read."""
        pairs = [each.partition(".") for each in request.form.get("shown", "").split()[: results.INBOX]]
        with guard.unit_of_work() as session:
            count = results.seen(session, [(number_of(one), number_of(version)) for one, _, version in pairs])
        if count:
            flash(ngettext("%(num)s result marked as read.", "%(num)s results marked as read.", count), "success")
        else:
            flash(gettext("These results have changed or were read meanwhile. Look at them again."), "warning")
        return redirect(url_for("Results.inbox", of=number_of(request.form.get("of", "")) or None))

    @expose("/count")
    @open_to("create", "ServiceRequest")
    def count(self) -> Any:
        """How many are unread, for a page that is open already; asking for it is nobody's work."""
        g.by_itself = True
        try:
            return jsonify(count=waiting.counts(guard.session()).get("results", 0))
        except Refusal:
            return jsonify(count=0)


class TurnaroundReport(Page):
    """How long results take."""

    route_base = "/laboratory/turnaround"
    default_view = "show"

    @expose("/")
    @open_to("update", "LabTest")
    def show(self) -> Any:
        """By test and branch, from the order to the release, over some days."""
        zone = branch_zone()
        today = now().astimezone(zone).date()
        form = Period(request.args, since=today - timedelta(days=29), until=today, target=24)
        found: Sequence[Turnaround] = []
        refusal, status = None, 200
        try:
            if (request.args and not form.validate()) or not (form.since.data and form.until.data and form.target.data):
                refusal, status = gettext("Please check the fields marked below."), 422
            else:
                opens = datetime.combine(form.since.data, time(), tzinfo=zone)
                closes = datetime.combine(form.until.data + timedelta(days=1), time(), tzinfo=zone)
                found = turnaround.report(guard.session(), opens, closes, target_hours=form.target.data)
        except Refusal as refused:
            if refused.status == 403:
                raise
            refusal, status = explain(refused, form), refused.status
        longest = max((each.whole.nine for each in found if each.whole), default=0) or 1
        page = self.render(
            "results/turnaround.html",
            page_title=gettext("How long results take"),
            form=form,
            refusal=refusal,
            few=turnaround.FEW,
            lines=[
                {
                    "name": each.name,
                    "branch": str(all_branches().get(each.branch_id or 0, gettext("No branch"))),
                    "number": each.number,
                    "late": f"{each.late} ({round(100 * each.late / each.number)} %)" if each.late is not None else "",
                    "stages": [(spent(one.half), spent(one.nine)) for one in each.stages],
                    "half": spent(each.whole.half) if each.whole else "",
                    "nine": spent(each.whole.nine) if each.whole else "",
                    "bar": (round(100 * each.whole.half / longest, 1), round(100 * each.whole.nine / longest, 1))
                    if each.whole
                    else None,
                }
                for each in found
            ],
        )
        return page, status


def specimen_number(order: Any) -> str:
    """The number of an order's specimen, as far as it is told."""
    specimen = order.__dict__.get("specimen")
    return f"{specimen.accession} ({specimen_word(specimen.type_code)})" if specimen is not None else ""


def critical_words(limits: tuple[Decimal | None, Decimal | None] | None) -> str:
    """From when on a value was critical."""
    low, high = limits or (None, None)
    parts = [f"≤ {low}" if low is not None else "", f"≥ {high}" if high is not None else ""]
    return str(gettext(" or ")).join(part for part in parts if part)


def listens() -> bool:
    """Whether results come to whoever is signed in, so that their pages listen for them."""
    at_work = acting()
    return at_work is not None and results.reads_results(at_work.actor)


def register(builder: Any) -> None:
    """The pages, and the count in the navigation."""
    for view in (Results, TurnaroundReport):
        builder.add_view_no_menu(view)
    current_app.jinja_env.globals.update(results_listen=listens)
