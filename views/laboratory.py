"""The laboratory's bench: what is ordered, taken, received, entered, verified and released, and ordering it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from flask import flash, jsonify, redirect, render_template, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext, ngettext
from wtforms import Form, HiddenField, RadioField, SelectMultipleField, TextAreaField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import InputRequired, Length

from app import documents, guard
from app.actor import current
from app.errors import NotFound, Refusal
from app.services import clinical, lab
from app.services.lab import Standing, Step
from app.services.words import fold
from models.clinical import Observation
from models.codes import AnswerKind, ObservationStatus, RequestPriority, RequestStatus, SpecimenRejection
from models.lab import LabTest, ObservationHistory, ServiceRequest, Specimen
from models.patients import Patient
from views.base import Page, branch_zone, open_to, words
from views.branches import all_branches
from views.desk import choose_patient, number_of
from views.people import age, born, in_short, name_of

STEPS = {
    Step.COLLECT: lazy_gettext("Collect"),
    Step.RECEIVE: lazy_gettext("Receive"),
    Step.ENTER: lazy_gettext("Enter results"),
    Step.VERIFY: lazy_gettext("Verify"),
    Step.RELEASE: lazy_gettext("Release"),
    Step.DONE: lazy_gettext("Done"),
}
"""What is next for an order, as it stands on the button."""
URGENCIES = {
    RequestPriority.STAT: lazy_gettext("Immediately"),
    RequestPriority.ASAP: lazy_gettext("As soon as possible"),
    RequestPriority.URGENT: lazy_gettext("Urgent"),
    RequestPriority.ROUTINE: lazy_gettext("Routine"),
}
TONES = {RequestPriority.STAT: "danger", RequestPriority.ASAP: "warn", RequestPriority.URGENT: "warn"}
SPECIMENS = {
    "BLD": lazy_gettext("Blood"),
    "SER": lazy_gettext("Serum"),
    "PLAS": lazy_gettext("Plasma"),
    "UR": lazy_gettext("Urine"),
    "CSF": lazy_gettext("Cerebrospinal fluid"),
    "STL": lazy_gettext("Stool"),
    "SPT": lazy_gettext("Sputum"),
    "SWA": lazy_gettext("Swab"),
    "TISS": lazy_gettext("Tissue"),
}
REJECTIONS = {
    SpecimenRejection.HEMOLYSIS: lazy_gettext("Haemolysed"),
    SpecimenRejection.CLOTTED: lazy_gettext("Clotted"),
    SpecimenRejection.QUANTITY: lazy_gettext("Too little"),
    SpecimenRejection.LABEL: lazy_gettext("Label missing or not readable"),
    SpecimenRejection.IDENTIFICATION: lazy_gettext("Not certain whose it is"),
    SpecimenRejection.CONTAINER: lazy_gettext("Wrong or broken container"),
    SpecimenRejection.CONTAMINATED: lazy_gettext("Contaminated"),
    SpecimenRejection.EXPIRED: lazy_gettext("Too old"),
    SpecimenRejection.MISSING: lazy_gettext("Never arrived"),
}
FLAGS = {
    "N": lazy_gettext("normal"),
    "L": lazy_gettext("low"),
    "LL": lazy_gettext("critically low"),
    "H": lazy_gettext("high"),
    "HH": lazy_gettext("critically high"),
    "A": lazy_gettext("abnormal"),
    "AA": lazy_gettext("critically abnormal"),
}
STATES = {
    ObservationStatus.PRELIMINARY: lazy_gettext("Entered"),
    ObservationStatus.FINAL: lazy_gettext("Verified"),
    ObservationStatus.AMENDED: lazy_gettext("Amended"),
    ObservationStatus.CORRECTED: lazy_gettext("Corrected"),
    ObservationStatus.CANCELLED: lazy_gettext("Cancelled"),
    ObservationStatus.ENTERED_IN_ERROR: lazy_gettext("Withdrawn"),
}
MOST_ROWS = 200
"""Rows of a worklist at most: more are for another test, or for later."""


# ---- in words ----------------------------------------------------------------------------------------------------


def specimen_word(code: str) -> str:
    """A kind of specimen."""
    return str(SPECIMENS.get(code, code or gettext("Specimen")))


def written(result: Observation | None) -> str:
    """A result as it would be typed."""
    if result is None:
        return ""
    if result.value_quantity is not None:
        return f"{result.comparator}{result.value_quantity:f}"
    return result.value_text or ""


def value_of(result: Observation) -> str:
    """A result with its unit."""
    return f"{written(result)} {result.value_unit or ''}".strip() or "—"


def range_of(ranges: Sequence[dict[str, Any]]) -> str:
    """What is normal, as it was when the result was flagged."""
    if not ranges:
        return ""
    low, high = (ranges[0].get(side, {}).get("value") for side in ("low", "high"))
    if low is not None and high is not None:
        return f"{low} – {high}"
    return f"≥ {low}" if low is not None else f"≤ {high}" if high is not None else ""


def flag_of(result: Observation) -> dict[str, Any] | None:
    """How a result is flagged; None where nobody has said what is normal."""
    code = result.interpretation
    if code is None:
        return None
    icons = {"H": "arrow-up", "HH": "arrow-up", "L": "arrow-down", "LL": "arrow-down", "N": "check"}
    tone = "danger" if len(code) == 2 else "ok" if code == "N" else "warn"
    return {"code": code, "word": str(FLAGS.get(code, code)), "tone": tone, "icon": icons.get(code, "warn")}


def result_line(result: Observation) -> dict[str, Any]:
    """A result, with everything somebody has to know who enters or verifies it."""
    return {
        "id": result.id,
        "version": result.version,
        "value": value_of(result),
        "written": written(result),
        "flag": flag_of(result),
        "off_scale": result.off_scale,
        "range": range_of(result.reference_range),
        "delta": result.delta,
        "held": bool(result.held),
        "state": str(STATES.get(ObservationStatus(result.status), result.status)),
        "status": result.status,
        "note": result.note,
        "own": result.recorder_id is not None and result.recorder_id == current().practitioner_id,
        "verified": result.verified_at is not None,
        "released": words(result.released_at) if result.released_at else "",
        "before": before_of(result) if result.held else "",
    }


def before_of(result: Observation) -> str:
    """The number before one that is held for differing from it, and when that was."""
    last = lab.last_before(guard.session(), result)
    return gettext("%(value)s, %(when)s", value=value_of(last), when=words(last.effective_at)) if last else ""


def who(patient: Patient | None) -> dict[str, Any]:
    """Whose it is, in a line."""
    if patient is None:
        return {"id": 0, "name": gettext("Name not shown"), "mrn": "", "birth": "", "age": ""}
    return {
        "id": patient.id,
        "name": name_of(patient),
        "mrn": patient.mrn,
        "birth": born(patient),
        "age": age(patient),
    }


def order_line(standing: Standing) -> dict[str, Any]:
    """An order in a list."""
    order = standing.request
    priority = RequestPriority(order.priority)
    return {
        "id": order.id,
        "name": order.code_display,
        "patient": who(order.patient),
        "urgency": str(URGENCIES[priority]),
        "tone": TONES.get(priority, ""),
        "step": standing.step.value,
        "next": str(STEPS[standing.step]),
        "href": next_href(standing),
        "order_href": url_for("Laboratory.show", request_id=order.id),
        "specimen": order.specimen.accession if order.specimen else "",
        "ordered": words(order.authored_at),
        "by": order.requester.name if order.requester else "",
        "branch": str(all_branches().get(order.branch_id or 0, "")),
        "tests": len(standing.lines),
        "entered": standing.entered,
        "unverified": len(standing.unverified),
        "unreleased": len(standing.unreleased),
        "note": order.note or "",
        "kinds": ", ".join(dict.fromkeys(specimen_word(test.specimen_type) for test, _ in standing.lines)),
    }


def next_href(standing: Standing) -> str:
    """Where the next step of an order is done."""
    order = standing.request
    if standing.step == Step.COLLECT:
        return url_for("Laboratory.collect", patient=order.patient_id)
    if standing.step == Step.RECEIVE and order.specimen is not None:
        return url_for("Laboratory.receive", number=order.specimen.accession)
    return url_for("Laboratory.show", request_id=order.id)


def here() -> int | None:
    """The branch whose work is shown: the one asked for, or the one the person works at; None for every branch."""
    asked = request.values.get("branch", "")
    return None if asked == "all" else number_of(asked) or current().branch_id


def tried(work: Callable[[Any], Any]) -> Refusal | None:
    """Do something in a unit of work of its own; gives why not, where it is not done."""
    try:
        with guard.unit_of_work() as session:
            work(session)
    except NotFound:
        raise
    except Refusal as refusal:
        return refusal
    return None


# ---- the bench ---------------------------------------------------------------------------------------------------


WAYS = (
    (lazy_gettext("Open orders"), "Laboratory.orders", "update"),
    (lazy_gettext("Collect"), "Laboratory.collect", "create"),
    (lazy_gettext("Receive"), "Laboratory.receive", "update"),
    (lazy_gettext("Enter results"), "Laboratory.worklist", "update"),
    (lazy_gettext("Verify"), "Laboratory.unverified", "update"),
)
"""The pages of the bench, and what they ask for: whoever cares for a patient takes specimens, the rest is its own."""


class Laboratory(Page):
    """Orders on their way through the laboratory."""

    route_base = "/laboratory"
    default_view = "orders"

    def bench(self, template: str, **context: Any) -> str:
        """A page of the bench, with the ways between them."""
        branches = all_branches()
        chosen = here()
        return self.render(
            template,
            ways=[
                (str(label), url_for(endpoint), request.endpoint == endpoint)
                for label, endpoint, right in WAYS
                if current().may(right, "Specimen")
            ],
            places=[(str(facts.id), facts.name) for facts in branches.values()],
            place="all" if chosen is None else str(chosen),
            **context,
        )

    @expose("/")
    @open_to("update", "Specimen")
    def orders(self) -> str:
        """Everything that is not done, the urgent first, each with what is next for it."""
        session = guard.session()
        asked, looked_for = request.args.get("step", ""), request.args.get("q", "").strip()[:100]
        if looked_for:
            guard.searching("ServiceRequest by name")
        found = lab.standings(session, lab.open_orders(session, branch_id=here()))
        lines, counts = [order_line(standing) for standing in found], dict.fromkeys(Step, 0)
        for standing in found:
            counts[standing.step] += 1
        names = fold(looked_for).split()
        shown = [
            line
            for line in lines
            if (not asked or line["step"] == asked)
            and all(
                name in fold(f"{line['patient']['name']} {line['patient']['mrn']} {line['name']}")
                or name.upper() == line["specimen"]
                for name in names
            )
        ]
        return self.bench(
            "lab/orders.html",
            page_title=gettext("Laboratory"),
            lines=shown,
            any_line=bool(lines),
            steps=[(step.value, str(STEPS[step]), counts[step]) for step in Step if step != Step.DONE],
            step=asked,
            q=looked_for,
            may_order=current().may("create", "ServiceRequest"),
        )

    # ---- specimens -----------------------------------------------------------------------------------------------

    @expose("/collect/", methods=["GET", "POST"])
    @open_to("create", "Specimen")
    def collect(self) -> Any:
        """Whose specimens are to be taken, and of one patient: for which orders; then their labels."""
        patient_id, refusal = number_of(request.values.get("patient")), None
        ticked = {number_of(each) for each in request.form.getlist("order")}
        if request.method == "POST":
            try:
                with guard.unit_of_work() as session:
                    taken = [specimen.id for specimen in lab.collect(session, ticked)]
                return redirect(url_for("Laboratory.labels", specimen=taken))
            except Refusal as refused:
                refusal = refused
        session = guard.session()
        open_now = lab.open_orders(session, branch_id=None if patient_id else here(), patient_id=patient_id or None)
        waiting = [each for each in lab.standings(session, open_now) if each.step == Step.COLLECT]
        people: dict[int, list[dict[str, Any]]] = {}
        for standing in waiting:
            people.setdefault(standing.request.patient_id, []).append(order_line(standing))
        patient = clinical.open_chart(session, patient_id) if patient_id else None
        page = self.bench(
            "lab/collect.html",
            page_title=gettext("Collect specimens"),
            patient=in_short(patient) if patient else None,
            lines=people.get(patient_id, []),
            people=list(people.values()),
            ticked=ticked or None,
            refusal=str(refusal) if refusal else None,
        )
        return page, refusal.status if refusal else 200

    @expose("/labels/")
    @open_to("read", "Specimen")
    def labels(self) -> str:
        """Labels to print, one for each specimen."""
        asked = [number_of(each) for each in request.args.getlist("specimen")][:50]
        found = lab.labelled(guard.session(), asked)
        if not found:
            raise NotFound
        zone = branch_zone()
        return self.render(
            "lab/labels.html",
            page_title=gettext("Labels"),
            labels=[
                {
                    "number": specimen.accession,
                    "code": documents.qr(specimen.accession),
                    "patient": who(specimen.patient),
                    "kind": specimen_word(specimen.type_code),
                    "taken": f"{specimen.collected_at.astimezone(zone):%Y-%m-%d %H:%M}",
                    "what": ", ".join(order.code_display for order in specimen.requests),
                }
                for specimen in found
            ],
            patient_id=found[0].patient_id,
        )

    @expose("/receive/", methods=["GET", "POST"])
    @open_to("update", "Specimen")
    def receive(self) -> Any:
        """Scan a number and the specimen is here; or say what is wrong with it."""
        refusal, number = None, request.values.get("number", "").strip()[:40]
        rejects = request.form.get("word") == "reject"
        if request.method == "POST":
            try:
                with guard.unit_of_work() as session:
                    if rejects:
                        reason, note = request.form.get("reason", ""), request.form.get("note", "")
                        taken = lab.reject(session, number, reason=reason, note=note)
                    else:
                        taken = lab.receive(session, number)
                    patient_id, accession = taken.patient_id, taken.accession
                if rejects:
                    flash(
                        gettext("%(number)s is rejected. Its orders wait for a new specimen.", number=accession), "info"
                    )
                    return redirect(url_for("Laboratory.collect", patient=patient_id))
                flash(gettext("%(number)s is received.", number=accession), "success")
                return redirect(url_for("Laboratory.receive"))
            except Refusal as refused:
                refusal = refused
        session, branch_id = guard.session(), here() or 0
        sentence = str(refusal) if refusal else None
        if isinstance(refusal, NotFound):
            sentence = gettext("No specimen has this number.")
        page = self.bench(
            "lab/receive.html",
            page_title=gettext("Receive specimens"),
            number=number,
            refusal=sentence,
            field=refusal.field if refusal else None,
            rejects=rejects and refusal is not None,
            reason=request.form.get("reason", ""),
            note=request.form.get("note", ""),
            reasons=[(code.value, str(word)) for code, word in REJECTIONS.items()],
            coming=[specimen_line(each) for each in lab.on_the_way(session, branch_id)],
            received=[specimen_line(each) for each in lab.lately_received(session, branch_id)],
        )
        return page, refusal.status if refusal else 200

    # ---- results -------------------------------------------------------------------------------------------------

    @expose("/worklist/", methods=["GET", "POST"])
    @open_to("update", "Specimen")
    def worklist(self) -> Any:
        """A grid of everything that can be entered; each row is saved by itself, whatever becomes of the others."""
        guard.require("create", "Observation")
        errors: dict[str, str] = {}
        saved, typed = 0, {}
        if request.method == "POST":
            typed = {name[6:]: said for name, said in request.form.items() if name.startswith("value-")}
            for key, said in typed.items():
                if said.strip() == request.form.get(f"was-{key}", "").strip():
                    continue
                refusal = entered(key, said, request.form.get(f"seen-{key}"))
                if refusal is None:
                    saved += 1
                else:
                    errors[key] = str(refusal)
            if not errors:
                flash(ngettext("%(num)s result saved.", "%(num)s results saved.", saved), "success")
                return redirect(url_for("Laboratory.worklist", **asked_for("test", "number", "branch")))
        session = guard.session()
        rows, more = self._rows(lab.standings(session, lab.open_orders(session, branch_id=here())))
        tests = sorted({(row["test_id"], row["test"]) for row in rows}, key=lambda each: str(each[1]))
        only, number = number_of(request.values.get("test")), request.values.get("number", "").strip().upper()[:40]
        rows = [row for row in rows if (not only or row["test_id"] == only) and number in ("", row["specimen"])]
        for row in rows:
            row["error"] = errors.get(row["key"])
            if row["error"]:
                row["typed"] = typed[row["key"]]
        page = self.bench(
            "lab/worklist.html",
            page_title=gettext("Enter results"),
            rows=rows,
            more=more,
            tests=tests,
            only=only,
            number=number,
            saved=saved,
            refused=len(errors),
        )
        return page, 422 if errors else 200

    def _rows(self, found: Iterable[Standing]) -> tuple[list[dict[str, Any]], bool]:
        """Rows of the grid, and whether there are more than it shows."""
        rows = []
        for standing in found:
            order, specimen = standing.request, standing.request.specimen
            if specimen is None or specimen.received_at is None:
                continue
            for test, result in standing.lines:
                if result is None or result.verified_at is None:
                    rows.append(entry(order, specimen, test, result))
        return rows[:MOST_ROWS], len(rows) > MOST_ROWS

    @expose("/worklist/row", methods=["POST"])
    @open_to("update", "Specimen")
    def row(self) -> Any:
        """Save one row of the grid for a page that is open; gives what is to be shown of it."""
        guard.require("create", "Observation")
        key = request.form.get("key", "")
        refusal = entered(key, request.form.get("value", ""), request.form.get("seen"))
        if refusal is not None:
            return jsonify(error=str(refusal)), refusal.status
        request_id, test_id = parts(key)
        standing = lab.standing_of(guard.session(), request_id)
        result = next(result for test, result in standing.lines if test.id == test_id and result is not None)
        line = result_line(result)
        state = render_template("lab/_state.html", line=line)
        return jsonify(version=line["version"], value=line["written"], range=line["range"], state=state)

    @expose("/orders/<int:request_id>/")
    @open_to("read", "ServiceRequest")
    def show(self, request_id: int) -> str:
        """One order: every test of it, its result, what became of it, and what can be done."""
        return self._order(request_id)

    def _order(self, request_id: int, refusal: Refusal | None = None, at: str = "") -> str:
        session = guard.session()
        standing = lab.standing_of(session, request_id)
        order, specimen = standing.request, standing.request.specimen
        may_enter = current().may("create", "Observation") and current().may("update", "Specimen")
        ready = order.status == RequestStatus.ACTIVE and specimen is not None and specimen.received_at is not None
        gone = lab.withdrawn(session, request_id)
        changes = lab.history(session, [r.id for _, r in standing.lines if r is not None] + [r.id for r in gone])
        lines = []
        for test, result in standing.lines:
            line = entry(order, specimen, test, result)
            line["may_enter"] = may_enter and ready and (result is None or result.verified_at is None)
            line["history"] = changes_of(changes.get(result.id, [])) if result else []
            line["entered_by"] = result.recorder.name if result is not None and result.recorder else ""
            line["verified_by"] = result.verified_by.name if result is not None and result.verified_by else ""
            line["verified_when"] = words(result.verified_at) if result is not None and result.verified_at else ""
            lines.append(line)
        return self.bench(
            "lab/result.html",
            page_title=order.code_display,
            order=order_line(standing),
            active=order.status == RequestStatus.ACTIVE,
            status=order.status,
            status_reason=order.status_reason,
            lines=lines,
            gone=[
                {
                    "name": each.code_display,
                    **result_line(each),
                    "history": changes_of(changes.get(each.id, [])),
                }
                for each in gone
            ],
            specimen=specimen_line(specimen, order.patient, [order]) if specimen else None,
            may_change=may_enter and current().may("update", "Observation"),
            may_release=current().may("create", "DiagnosticReport") and bool(standing.unreleased),
            whole=not standing.unverified and standing.entered == len(standing.lines),
            may_revoke=current().may("create", "ServiceRequest")
            and not any(result is not None and result.verified_at is not None for _, result in standing.lines),
            me=current().practitioner_id,
            refusal=str(refusal) if refusal else None,
            at=at,
            typed=request.form,
        )

    def _done(self, request_id: int, work: Callable[[Any], Any], said: str, at: str = "") -> Any:
        """Do something to an order and show it again, with the refusal and what was typed where it is refused."""
        refusal = tried(work)
        if refusal is not None:
            return self._order(request_id, refusal, at), refusal.status
        flash(said, "success")
        return redirect(url_for("Laboratory.show", request_id=request_id))

    @expose("/orders/<int:request_id>/enter/<int:test_id>", methods=["POST"])
    @open_to("create", "Observation")
    def enter(self, request_id: int, test_id: int) -> Any:
        """Enter one result."""
        value, unit, seen = (request.form.get(name, "") for name in ("value", "unit", "seen"))
        note = request.form.get("note", "")
        return self._done(
            request_id,
            lambda session: lab.enter(
                session, request_id, test_id, value, unit=unit.strip(), note=note, seen=version_of(seen)
            ),
            gettext("Entered. Somebody else verifies it."),
            f"enter-{test_id}",
        )

    @expose("/orders/<int:request_id>/release", methods=["POST"])
    @open_to("create", "DiagnosticReport")
    def release(self, request_id: int) -> Any:
        """Let those who ordered it see what is verified."""
        return self._done(request_id, lambda session: lab.release(session, request_id), gettext("Released."))

    @expose("/orders/<int:request_id>/revoke", methods=["POST"])
    @open_to("create", "ServiceRequest")
    def revoke(self, request_id: int) -> Any:
        """Call an order off."""
        reason = request.form.get("reason", "")
        return self._done(
            request_id,
            lambda session: lab.revoke(session, request_id, reason=reason),
            gettext("The order is called off."),
            "revoke",
        )

    @expose("/orders/<int:request_id>/results/<int:result_id>/<word>", methods=["POST"])
    @open_to("update", "Observation")
    def change(self, request_id: int, result_id: int, word: str) -> Any:
        """Verify, correct or withdraw one result of an order."""
        form = request.form
        if result_id not in {result.id for _, result in lab.standing_of(guard.session(), request_id).lines if result}:
            raise NotFound
        ways: dict[str, tuple[Callable[[Any], Any], str]] = {
            "verify": (
                lambda session: lab.verify(
                    session, result_id, despite=form.get("despite", ""), seen=version_of(form.get("seen"))
                ),
                gettext("Verified."),
            ),
            "correct": (
                lambda session: lab.correct(session, result_id, form.get("value", ""), reason=form.get("reason", "")),
                gettext("Corrected. Somebody else verifies it; until then nobody reads it."),
            ),
            "withdraw": (
                lambda session: lab.withdraw(session, result_id, reason=form.get("reason", "")),
                gettext("Withdrawn. It stays readable below, and counts for nothing."),
            ),
        }
        if word not in ways:
            raise NotFound
        work, said = ways[word]
        return self._done(request_id, work, said, f"{word}-{result_id}")

    @expose("/verify/", methods=["GET", "POST"])
    @open_to("update", "Specimen")
    def unverified(self) -> Any:
        """What others have entered: look, tick, and say that it is right; held ones with a reason."""
        guard.require("update", "Observation")
        errors: dict[int, str] = {}
        ticked = {number_of(each) for each in request.form.getlist("ok")}
        releases = request.method != "POST" or "release" in request.form
        if request.method == "POST":
            done, out = self._verify(ticked, errors, releases)
            if done:
                said = ngettext("%(num)s result verified.", "%(num)s results verified.", done)
                if out:
                    said += " " + ngettext("%(num)s order released.", "%(num)s orders released.", out)
                flash(said, "success")
            if not errors and ticked:
                return redirect(url_for("Laboratory.unverified"))
        session = guard.session()
        found = lab.unverified(session)
        lines = [
            {
                **result_line(each),
                "name": each.code_display,
                "patient": who(each.patient),
                "order_id": each.service_request_id,
                "href": url_for("Laboratory.show", request_id=each.service_request_id),
                "by": each.recorder.name if each.recorder else gettext("an instrument"),
                "when": words(each.updated_at),
                "error": errors.get(each.id),
                "despite": request.form.get(f"despite-{each.id}", ""),
            }
            for each in found
        ]
        nothing = request.method == "POST" and not ticked
        page = self.bench(
            "lab/verify.html",
            page_title=gettext("Verify results"),
            lines=[line for line in lines if not line["own"]],
            own=[line for line in lines if line["own"]],
            ticked=ticked,
            releases=releases,
            refused=len(errors),
            nothing=nothing,
        )
        return page, 422 if errors or nothing else 200

    def _verify(self, ticked: Iterable[int], errors: dict[int, str], releases: bool) -> tuple[int, int]:
        """Verify what is ticked, each by itself, and release the orders that are whole; gives how many of both."""
        orders: dict[int, None] = {}
        done = out = 0

        def checked(key: int, session: Any) -> None:
            result = lab.verify(
                session,
                key,
                despite=request.form.get(f"despite-{key}", ""),
                seen=version_of(request.form.get(f"seen-{key}")),
            )
            orders[result.service_request_id or 0] = None

        for key in sorted(ticked):
            refusal = tried(partial(checked, key))
            if refusal is None:
                done += 1
            else:
                errors[key] = str(refusal)
        if releases and current().may("create", "DiagnosticReport"):
            for order_id in orders:
                whole = lab.standing_of(guard.session(), order_id).step == Step.RELEASE
                if whole and tried(partial(lab.release, request_id=order_id)) is None:
                    out += 1
        return done, out


def specimen_line(
    specimen: Specimen, patient: Patient | None = None, requests: Sequence[ServiceRequest] | None = None
) -> dict[str, Any]:
    """A specimen in a list."""
    orders = specimen.requests if requests is None else requests
    return {
        "number": specimen.accession,
        "kind": specimen_word(specimen.type_code),
        "patient": who(patient or specimen.patient),
        "what": ", ".join(order.code_display for order in orders),
        "taken": words(specimen.collected_at),
        "received": words(specimen.received_at) if specimen.received_at else "",
        "label_href": url_for("Laboratory.labels", specimen=specimen.id),
    }


def entry(
    order: ServiceRequest, specimen: Specimen | None, test: LabTest, result: Observation | None
) -> dict[str, Any]:
    """A test of an order, to be entered."""
    return {
        "key": f"{order.id}-{test.id}",
        "order_id": order.id,
        "test_id": test.id,
        "test": test.name,
        "unit": test.unit,
        "kind": test.kind,
        "answers": [answer["display"] for answer in test.answers] if test.kind == AnswerKind.CODED else [],
        "patient": who(order.patient),
        "specimen": specimen.accession if specimen else "",
        "href": url_for("Laboratory.show", request_id=order.id),
        "tone": TONES.get(RequestPriority(order.priority), ""),
        "urgency": str(URGENCIES[RequestPriority(order.priority)]),
        "typed": written(result),
        "seen": result.version if result else 0,
        "line": result_line(result) if result else None,
        "error": None,
    }


def changes_of(changes: Iterable[ObservationHistory]) -> list[dict[str, str]]:
    """What a result was before each change that somebody asks about; verifying and releasing change no value."""
    found = [change_line(change) for change in changes]
    return [line for line in found if line["value"] or line["state"] or line["note"]]


def change_line(change: ObservationHistory) -> dict[str, str]:
    """What a result was before a change, of what a person asks for."""
    was = change.was
    value = ""
    if "value_quantity" in was or "value_text" in was or "comparator" in was:
        number = was.get("value_quantity")
        value = f"{was.get('comparator') or ''}{number if number is not None else was.get('value_text') or ''}"
    state, flag = was.get("status"), was.get("interpretation")
    return {
        "until": words(change.until_at),
        "value": value,
        "flag": str(FLAGS.get(str(flag), "")) if flag else "",
        "state": str(STATES.get(ObservationStatus(state), state)) if state else "",
        "note": str(was.get("note") or ""),
    }


def version_of(said: str | None) -> int | None:
    """The version a page had before it; None where it did not say."""
    return number_of(said) if said else None


def parts(key: str) -> tuple[int, int]:
    """The order and the test of a row."""
    order, _, test = key.partition("-")
    return number_of(order), number_of(test)


def entered(key: str, value: str, seen: str | None) -> Refusal | None:
    """Enter the result of one row; gives why not, where it is refused."""
    request_id, test_id = parts(key)
    try:
        return tried(lambda session: lab.enter(session, request_id, test_id, value, seen=version_of(seen)))
    except NotFound as gone:
        return gone


def asked_for(*names: str) -> dict[str, Any]:
    """What of the address is to be kept."""
    return {name: value for name in names if (value := request.values.get(name, "").strip())}


# ---- ordering ----------------------------------------------------------------------------------------------------


def offered_here() -> dict[str, list[SelectChoice]]:
    """What can be ordered: panels with what is in them, then single tests."""
    panels, tests = lab.offered(guard.session())
    return {
        str(gettext("Panels")): [
            SelectChoice(
                f"p{panel.id}",
                gettext(
                    "Panel %(name)s: %(tests)s",
                    name=panel.name,
                    tests=", ".join(test.abbreviation or test.name for test in panel.tests),
                ),
            )
            for panel in panels
        ],
        str(gettext("Single tests")): [
            SelectChoice(f"t{test.id}", f"{test.name} ({test.abbreviation})" if test.abbreviation else test.name)
            for test in tests
        ],
    }


class OrderForm(Form):
    """What is asked of the laboratory."""

    what = SelectMultipleField(
        lazy_gettext("What is to be measured"),
        [InputRequired(lazy_gettext("Please choose a test or a panel."))],
        choices=offered_here,
    )
    priority = RadioField(
        lazy_gettext("How soon"),
        choices=[SelectChoice(code.value, word) for code, word in reversed(list(URGENCIES.items()))],
        default=RequestPriority.ROUTINE.value,
    )
    note = TextAreaField(
        lazy_gettext("What the laboratory should know"),
        [Length(max=1000)],
        description=lazy_gettext("Such as a medicine that changes the result. Leave it empty if there is nothing."),
        render_kw={"rows": 2},
    )
    encounter = HiddenField()


class Ordering(Page):
    """Ordering from the laboratory for one patient."""

    route_base = "/laboratory/order"
    default_view = "find"

    @expose("/")
    @open_to("create", "ServiceRequest")
    def find(self) -> Any:
        """For whom."""
        return choose_patient(
            self,
            title=gettext("Order from the laboratory"),
            back=(url_for("Laboratory.orders"), gettext("Laboratory")),
            onwards=lambda patient_id: url_for("Ordering.ask", patient_id=patient_id),
        )

    @expose("/<int:patient_id>/", methods=["GET", "POST"])
    @open_to("create", "ServiceRequest")
    def ask(self, patient_id: int) -> Any:
        """What, how soon, and what the laboratory should know."""
        form = OrderForm(request.form if request.method == "POST" else request.args)
        refusal, status = None, 200
        if request.method == "POST":
            status, refusal = 422, gettext("Please check the fields marked below.")
            if form.validate():
                found = tried(lambda session: ordered(session, patient_id, form))
                if found is None:
                    count = len(form.what.data or [])
                    flash(
                        ngettext(
                            "%(num)s order sent to the laboratory.", "%(num)s orders sent to the laboratory.", count
                        ),
                        "success",
                    )
                    return redirect(url_for("Ordering.ask", patient_id=patient_id))
                refusal, status = str(found), found.status
        session = guard.session()
        patient = clinical.open_chart(session, patient_id)
        under_way = lab.standings(session, lab.open_orders(session, patient_id=patient_id))
        page = self.render(
            "lab/order.html",
            page_title=gettext("Order from the laboratory"),
            form=form,
            refusal=refusal,
            patient=in_short(patient),
            any_offer=any(form.what.choices.values()) if isinstance(form.what.choices, dict) else True,
            lines=[order_line(standing) for standing in under_way],
        )
        return page, status


def ordered(session: Any, patient_id: int, form: OrderForm) -> None:
    """Order everything that was chosen, or nothing of it."""
    for each in dict.fromkeys(form.what.data or []):
        key = number_of(each[1:])
        lab.order(
            session,
            patient_id=patient_id,
            test_id=key if each.startswith("t") else None,
            panel_id=key if each.startswith("p") else None,
            encounter_id=number_of(form.encounter.data) or None,
            priority=form.priority.data or RequestPriority.ROUTINE,
            note=form.note.data or "",
        )


def register(builder: Any) -> None:
    """The bench and the ordering page."""
    for view in (Laboratory, Ordering):
        builder.add_view_no_menu(view)
