"""The front desk: who is expected today, who waits and how long, and everything done to a visit on its day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from flask import flash, g, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext
from sqlalchemy import select
from sqlalchemy.orm import joinedload
from wtforms import Form, HiddenField, SelectField, StringField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import InputRequired, Length

from app import guard
from app.actor import current
from app.errors import Invalid, NotFound, Refusal
from app.services import clinical, desk, patients, scheduling, unreached
from app.services.clock import day_of
from app.services.schedules import everybodys_hours
from app.services.words import fold
from models.base import now
from models.codes import AppointmentStatus, CancelationReason
from models.organization import Practitioner
from models.scheduling import Appointment, VisitType
from views.base import Page, explain, open_to
from views.branches import BranchFacts, all_branches
from views.people import BECAUSE, TOLD_AT_THE_DESK, age, in_short, name_of
from views.speech import spoken_day

S = AppointmentStatus
LONG_WAIT = 30
"""Minutes after which waiting is long."""
SOON = timedelta(minutes=60)
FEW = 6
"""Of those expected, who is expected soon is shown at once, and some at least."""
LATE = 10
"""Minutes after which somebody who is expected is late."""
STEPS: dict[str, tuple[Callable[..., Appointment], Any]] = {
    "arrive": (scheduling.arrive, lazy_gettext("%(name)s is here: number %(number)s.")),
    "undo": (scheduling.undo_arrival, lazy_gettext("%(name)s is expected again.")),
    "check-in": (scheduling.check_in, lazy_gettext("%(name)s is checked in.")),
    "seen": (scheduling.fulfil, lazy_gettext("%(name)s was seen.")),
    "missed": (scheduling.miss, lazy_gettext("%(name)s did not come.")),
    "left": (scheduling.cancel, lazy_gettext("The visit of %(name)s is called off.")),
}
"""What is done to a visit on its day, by the word in the address, and what is said then."""
UNTIL_NOW = (S.PROPOSED, S.WAITLIST, S.ENTERED_IN_ERROR)
"""States in which nobody is expected."""


# ---- the board ---------------------------------------------------------------------------------------------------


@dataclass
class Board:
    """A day of a branch, sorted by where everybody is."""

    expected: list[dict[str, Any]] = field(default_factory=list)
    later: list[dict[str, Any]] = field(default_factory=list)
    """Expected too, but not soon."""
    waiting: list[dict[str, Any]] = field(default_factory=list)
    inside: list[dict[str, Any]] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    gone: list[dict[str, Any]] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    """Minutes everybody waited who is not waiting any more."""
    hidden: int = 0
    """Visits that do not fit what is looked for."""

    @property
    def whole(self) -> bool:
        """Whether there is anybody at all."""
        return bool(self.expected or self.later or self.waiting or self.inside or self.seen or self.gone)

    @property
    def counts(self) -> list[dict[str, Any]]:
        """The numbers on top."""
        middle = round(median(self.waits)) if self.waits else None
        return [
            {"title": gettext("Expected"), "value": len(self.expected) + len(self.later), "tone": "plain"},
            {"title": gettext("Waiting"), "value": len(self.waiting), "tone": "accent"},
            {"title": gettext("Checked in"), "value": len(self.inside), "tone": "plain"},
            {"title": gettext("Seen"), "value": len(self.seen), "tone": "plain"},
            {"title": gettext("Missed or left"), "value": len(self.gone), "tone": "plain"},
            {
                "title": gettext("Typical wait so far"),
                "value": gettext("%(count)s min", count=middle) if middle is not None else "—",
                "tone": "warn" if middle is not None and middle > LONG_WAIT else "plain",
            },
        ]


def here() -> BranchFacts | None:
    """The branch whose desk this is: the one the person works at now."""
    return all_branches().get(current().branch_id or 0)


def today_at(branch: BranchFacts) -> list[Appointment]:
    """Every visit of a branch's day, by its clock."""
    opens, closes = day_of(now().astimezone(branch.zone).date(), branch.zone)
    found = scheduling.between(guard.session(), opens, closes, branch_ids=[branch.id])
    return [visit for visit in found if visit.status not in UNTIL_NOW and not was_moved(visit)]


def was_moved(visit: Appointment) -> bool:
    """Whether another visit stands for this one: moving calls off without a reason."""
    return visit.status == S.CANCELLED and visit.cancelation_reason is None


def board_of(branch: BranchFacts, *, doctor: int = 0, looked_for: str = "") -> Board:
    """The board of a branch's day, of one doctor and of people by name where asked for."""
    board, moment = Board(), now()
    words = fold(looked_for).split()
    for visit in today_at(branch):
        name = fold(f"{name_of(visit.patient)} {visit.patient.mrn}") if visit.patient else ""
        if visit.arrived_at and visit.checked_in_at:
            board.waits.append(minutes_between(visit.arrived_at, visit.checked_in_at))
        if (doctor and visit.practitioner_id != doctor) or not all(word in name for word in words):
            board.hidden += 1
            continue
        card = card_of(visit, branch, moment)
        if visit.status in (S.BOOKED, S.PENDING):
            soon = words or visit.start_at < moment + SOON or len(board.expected) < FEW
            (board.expected if soon else board.later).append(card)
        elif visit.status == S.ARRIVED:
            board.waiting.append(card)
        elif visit.status == S.CHECKED_IN:
            board.inside.append(card)
        elif visit.status == S.FULFILLED:
            board.seen.append(card)
        else:
            board.gone.append(card)
    board.waiting.sort(key=lambda card: card["arrived"])
    board.inside.sort(key=lambda card: card["checked_in"])
    return board


def minutes_between(since: datetime, until: datetime) -> int:
    """Full minutes, none below zero."""
    return max(int((until - since).total_seconds() // 60), 0)


def clock(when: datetime | None, branch: BranchFacts) -> str:
    """The time of an instant on the wall of a branch."""
    return f"{when.astimezone(branch.zone):%H:%M}" if when else ""


def card_of(visit: Appointment, branch: BranchFacts, moment: datetime) -> dict[str, Any]:
    """A visit on the board."""
    hidden = current().rights.hidden("Appointment")
    waited = minutes_between(visit.arrived_at, visit.checked_in_at or moment) if visit.arrived_at else 0
    behind = minutes_between(visit.start_at, moment)
    left = visit.status == S.CANCELLED and visit.arrived_at is not None
    states = {
        S.NOSHOW: gettext("Missed"),
        S.CANCELLED: gettext("Left") if left else gettext("Called off"),
        S.FULFILLED: gettext("Seen"),
    }
    because = BECAUSE.get(visit.cancelation_reason or "")
    return {
        "id": visit.id,
        "name": name_of(visit.patient) if visit.patient else gettext("Name not shown"),
        "age": age(visit.patient) if visit.patient else "",
        "mrn": visit.patient.mrn if visit.patient else "",
        "href": url_for("Chart.open", patient_id=visit.patient_id),
        "visit_href": url_for("Visits.show", appointment_id=visit.id),
        "start": clock(visit.start_at, branch),
        "doctor": visit.practitioner.name,
        "kind": visit.visit_type.name,
        "room": visit.room.name if visit.room else "",
        "reason": "" if "reason" in hidden else visit.reason or "",
        "walk_in": visit.walk_in,
        "confirmed": visit.confirmed_at is not None and visit.status == S.BOOKED,
        "number": visit.queue_number,
        "arrived": visit.arrived_at or visit.start_at,
        "arrived_clock": clock(visit.arrived_at, branch),
        "since": visit.arrived_at.isoformat() if visit.arrived_at else "",
        "checked_in": visit.checked_in_at or visit.start_at,
        "checked_in_clock": clock(visit.checked_in_at, branch),
        "ended_clock": clock(visit.ended_at, branch),
        "waited": waited,
        "long": waited > LONG_WAIT,
        "late": behind if visit.status == S.BOOKED and visit.start_at < moment and behind >= LATE else 0,
        "due": visit.start_at <= moment,
        "state": states.get(AppointmentStatus(visit.status), ""),
        "because": str(because) if because and visit.status == S.CANCELLED else "",
    }


class Desk(Page):
    """Today's board of one branch, and what is done on it."""

    route_base = "/desk"
    default_view = "today"

    @expose("/")
    @open_to("update", "Appointment")
    def today(self) -> str:
        """The board with everything around it."""
        branch = here()
        if branch is None:
            return self.render("desk/nowhere.html", page_title=gettext("Front desk"))
        return self._board("desk/today.html", branch)

    @expose("/now.html")
    @open_to("update", "Appointment")
    def now(self) -> str:
        """The board alone, for a page that is open already; asking for it is nobody's work."""
        g.by_itself = True
        branch = here()
        if branch is None:
            raise NotFound
        return self._board("desk/_board.html", branch)

    def _board(self, template: str, branch: BranchFacts, refusal: str | None = None, said: str | None = None) -> str:
        doctor, looked_for = number_of(request.values.get("doctor")), request.values.get("q", "").strip()[:100]
        if looked_for:
            guard.searching("Appointment by name")
        board = board_of(branch, doctor=doctor, looked_for=looked_for)
        today = now().astimezone(branch.zone)
        return self.render(
            template,
            page_title=gettext("Front desk"),
            board=board,
            branch_facts=branch,
            day=spoken_day(today.date()),
            clock=f"{today:%H:%M}",
            doctors=doctors_of(branch),
            doctor=doctor,
            q=looked_for,
            reasons=TOLD_AT_THE_DESK,
            refusal=refusal,
            said=said,
            long_wait=LONG_WAIT,
            may_walk_in=current().may("create", "Appointment"),
            may_check_in=current().may("create", "Encounter"),
            not_reached=not_reached_at(branch) if template == "desk/today.html" else None,
        )

    @expose("/<int:visit_id>/<word>", methods=["POST"])
    @open_to("update", "Appointment")
    def step(self, visit_id: int, word: str) -> Any:
        """Do something to a visit, and show the board again; a script is given the board alone."""
        if word not in STEPS:
            raise NotFound
        service, sentence = STEPS[word]
        branch, alone = here(), request.headers.get("X-Wardbook") == "board"
        more = {"reason": request.form.get("reason", CancelationReason.PATIENT.value)} if word == "left" else {}
        try:
            with guard.unit_of_work() as session:
                service(session, visit_id, **more)
            visit = scheduling.show(guard.session(), visit_id)
        except Refusal as refusal:
            if branch is None or refusal.status == 404:
                raise
            guard.session.rollback()
            page = self._board("desk/_board.html" if alone else "desk/today.html", branch, refusal=str(refusal))
            return page, refusal.status
        name = name_of(visit.patient) if visit.patient else gettext("The patient")
        said = gettext(sentence, name=name, number=visit.queue_number or "")
        if alone and branch is not None:
            return self._board("desk/_board.html", branch, said=said)
        flash(said, "success")
        kept: dict[str, Any] = {key: value for key in ("doctor", "q") if (value := request.form.get(key, "").strip())}
        return redirect(url_for("Desk.today", **kept))

    @expose("/board/")
    @open_to("update", "Appointment")
    def board(self) -> str:
        """For a screen in the waiting room: numbers and rooms, and nobody's name."""
        g.by_itself = bool(request.args.get("alone"))
        branch = all_branches().get(number_of(request.args.get("branch")) or current().branch_id or 0)
        if branch is None:
            raise NotFound
        opens, closes = day_of(now().astimezone(branch.zone).date(), branch.zone)
        called, waiting = [], []
        found = select(Appointment).where(
            Appointment.branch_id == branch.id,
            Appointment.start_at >= opens,
            Appointment.start_at < closes,
            Appointment.status.in_((S.ARRIVED, S.CHECKED_IN)),
        )
        for visit in guard.session().scalars(found.options(joinedload(Appointment.room))):
            line = {"number": visit.queue_number, "room": visit.room.name if visit.room else ""}
            if visit.status == S.CHECKED_IN and visit.queue_number:
                called.append((visit.checked_in_at or visit.start_at, line))
            elif visit.queue_number:
                waiting.append((visit.arrived_at or visit.start_at, line))
        newest = sorted(called, key=lambda each: each[0], reverse=True)
        return self.render(
            "desk/_screen.html" if request.args.get("alone") else "desk/screen.html",
            page_title=gettext("Waiting room"),
            branch_facts=branch,
            clock=f"{now().astimezone(branch.zone):%H:%M}",
            called=[line for _, line in newest][:8],
            waiting=[line["number"] for _, line in sorted(waiting, key=lambda each: each[0])][:40],
        )


def not_reached_at(branch: BranchFacts) -> int | None:
    """How many patients no message has reached; None for somebody who may not know."""
    needed = ("Patient", "Communication", "WaitlistEntry", "SlotOffer")
    return unreached.count(guard.session(), branch.id) if all(current().may("read", each) for each in needed) else None


def number_of(said: str | None) -> int:
    """The number in a text; 0 where there is none."""
    return int(said) if said and said.isdecimal() and len(said) < 19 else 0


def doctors_of(branch: BranchFacts) -> list[Practitioner]:
    """Whoever sees patients at a branch, by name: for the boxes that choose one."""
    session = guard.session()
    today = now().astimezone(branch.zone).date()
    keys = {row.practitioner_id for row in everybodys_hours(session, today) if row.branch_id == branch.id}
    if not keys:
        return []
    found = select(Practitioner).where(Practitioner.id.in_(keys), Practitioner.active)
    return list(session.scalars(found.order_by(Practitioner.family, Practitioner.given)))


def kinds_of_visits() -> list[VisitType]:
    """What can be booked, by name."""
    return list(guard.session().scalars(select(VisitType).where(VisitType.active).order_by(VisitType.name)))


# ---- somebody walks in -------------------------------------------------------------------------------------------


def offered_kinds() -> list[SelectChoice]:
    """The kinds of visits, as a field offers them."""
    return [
        SelectChoice(str(kind.id), gettext("%(kind)s, %(count)s min", kind=kind.name, count=kind.minutes))
        for kind in kinds_of_visits()
    ]


def offered_doctors(nobody: str) -> list[SelectChoice]:
    """Whoever sees patients here, as a field offers them; `nobody` is what it says for none in particular."""
    branch = here()
    people = doctors_of(branch) if branch else []
    return [
        SelectChoice("", nobody),
        *(SelectChoice(str(person.id), f"{person.name}, {person.qualification}".strip(", ")) for person in people),
    ]


def choose_patient(page: Page, *, title: str, back: tuple[str, str], onwards: Callable[[int], str]) -> Any:
    """The page that finds a patient for something; one who is found alone is chosen at once."""
    asked = request.args.get("q", "").strip()[:100]
    found = patients.find(guard.session(), asked) if asked else None
    if found is not None and len(found.patients) == 1 and not found.meant:
        return redirect(onwards(found.patients[0].id))
    return page.render(
        "desk/find.html",
        page_title=title,
        title=title,
        back=back,
        q=asked,
        results=[{**in_short(patient), "href": onwards(patient.id)} for patient in (found.patients if found else [])],
        more=bool(found and found.more),
        meant=list(found.meant) if found else [],
        can_register=current().may("create", "Patient"),
    )


class WalkInForm(Form):
    """Who came without a visit, for what, and to whom."""

    patient = HiddenField(lazy_gettext("Patient"), [InputRequired(lazy_gettext("Please choose the patient."))])
    visit_type = SelectField(
        lazy_gettext("What for"),
        [InputRequired(lazy_gettext("Please choose a kind of visit."))],
        choices=offered_kinds,
    )
    practitioner = SelectField(
        lazy_gettext("With whom"), choices=lambda: offered_doctors(gettext("Whoever is free first"))
    )
    reason = StringField(
        lazy_gettext("What the patient says"), [Length(max=500)], description=lazy_gettext("In a few words, if at all.")
    )


class WalkIn(Page):
    """Somebody came without a visit: find them, and give them the next free time and a number."""

    route_base = "/desk/walk-in"
    default_view = "ask"

    @expose("/", methods=["GET"])
    @open_to("create", "Appointment")
    def ask(self) -> Any:
        """First who it is, then what for."""
        branch = here()
        if branch is None:
            return self.render("desk/nowhere.html", page_title=gettext("Front desk"))
        chosen = number_of(request.args.get("patient"))
        if chosen:
            return self._form(WalkInForm(request.args), branch)
        return choose_patient(
            self,
            title=gettext("Walk-in"),
            back=(url_for("Desk.today"), gettext("Front desk")),
            onwards=lambda patient_id: url_for("WalkIn.ask", patient=patient_id),
        )

    @expose("/", methods=["POST"])
    @open_to("create", "Appointment")
    def save(self) -> Any:
        """Book, arrive and number, all or nothing; a refusal keeps what was typed."""
        branch = here()
        if branch is None:
            raise Invalid(gettext("Please choose a branch."), field="branch")
        form = WalkInForm(request.form)
        if not form.validate():
            return self._form(form, branch, gettext("Please check the fields marked below.")), 422
        try:
            visit = desk.walk_in(
                patient_id=number_of(form.patient.data),
                visit_type_id=number_of(form.visit_type.data),
                practitioner_id=number_of(form.practitioner.data) or None,
                branch_id=branch.id,
                reason=form.reason.data or "",
            )
            visit = scheduling.show(guard.session(), visit.id)
        except Refusal as refusal:
            guard.session.rollback()
            sentence = explain(refusal, form)
            return self._form(form, branch, sentence), refusal.status
        flash(
            gettext(
                "Number %(number)s: %(name)s at %(time)s with %(doctor)s%(room)s.",
                number=visit.queue_number,
                name=name_of(visit.patient) if visit.patient else "",
                time=clock(visit.start_at, branch),
                doctor=visit.practitioner.name,
                room=f", {visit.room.name}" if visit.room else "",
            ),
            "success",
        )
        return redirect(url_for("Desk.today"))

    def _form(self, form: WalkInForm, branch: BranchFacts, refusal: str | None = None) -> str:
        patient = clinical.open_chart(guard.session(), number_of(form.patient.data))
        return self.render(
            "desk/walk_in.html",
            page_title=gettext("Walk-in"),
            form=form,
            refusal=refusal,
            patient=in_short(patient),
            any_kind=bool(form.visit_type.choices),
            branch_facts=branch,
        )


def register(builder: Any) -> None:
    """The desk's pages."""
    for view in (Desk, WalkIn):
        builder.add_view_no_menu(view)
