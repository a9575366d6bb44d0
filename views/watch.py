"""Watching the trail: how it stands, whether it is whole, what alarms, and access that is unusual."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import structlog
from flask import current_app, flash, g, jsonify, redirect, request, url_for
from flask_appbuilder import expose
from flask_appbuilder.security.sqla.models import User
from flask_babel import format_decimal, format_timedelta, gettext, lazy_gettext, ngettext
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.wrappers import Response

from app import guard, policy, tree
from app.actor import acting, current, nobody
from app.errors import Invalid, Refusal
from app.services import audit, checks, unusual
from models.audit import AuditCheck, UnusualAccess
from models.codes import Explanation, UnusualReason
from models.patients import Patient
from views.audit import SPOKEN, beginning_of, today
from views.base import Page, branch_zone, open_to, words
from views.people import name_of
from views.speech import spoken_day

log = structlog.get_logger(__name__)

# ---- how the trail stands ------------------------------------------------------------------------------------------

WITNESSES = {
    "file": lazy_gettext("a file that is only added to"),
    "syslog": lazy_gettext("a syslog server"),
    "smtp": lazy_gettext("a mailbox"),
}
UNITS = ("B", "kB", "MB", "GB")


class Watch(Page):
    """How the trail stands, and whether it is whole."""

    route_base = "/watch"
    default_view = "show"

    @expose("/")
    @open_to("read", "AuditEvent")
    def show(self) -> str:
        """The status page."""
        return self._page()

    @expose("/now.json")
    @open_to("read", "AuditEvent")
    def now(self) -> Response:
        """What changes on the page, in words; asking for it is nobody's work, so it keeps no session open."""
        g.by_itself = True
        db = guard.session()
        told, check = stands(audit.standing(db)), checks.under_way(db)
        running = progress(check) if check else None
        return jsonify({"told": told["told"], "alarm": told["alarm"], "check": running})

    @expose("/check", methods=["POST"])
    @open_to("read", "AuditEvent")
    def check(self) -> Any:
        """Have the trail looked through, all of it or what was stored since a day."""
        said = request.form.get("since", "").strip()
        try:
            since = _day(said)
            if said and since is None:
                raise Invalid(gettext("Please check the day."), field="since")
            with guard.unit_of_work() as session:
                checks.ask(session, beginning_of(since) if since else None)
        except Refusal as refusal:
            if refusal.status >= 500 or refusal.status == 403:
                raise
            guard.session.rollback()
            return self._page(refusal=refusal, since=said), refusal.status
        flash(gettext("The trail is being checked. You can leave this page."), "success")
        return redirect(url_for("Watch.show", _anchor="checks"))

    def _page(self, refusal: Refusal | None = None, since: str = "") -> str:
        db = guard.session()
        standing, last = audit.standing(db), checks.last_checks(db)
        running = next((each for each in last if checks.lives(each)), None)
        overdue, gone = checks.overdue(db, current_app.config["TRAIL_MONTHS"]), checks.archives(db)
        broken = checks.fault(db)
        return self.render(
            "watch/trail.html",
            page_title=gettext("The trail"),
            now_href=url_for("Watch.now"),
            **stands(standing),
            hours=hours(checks.stored_by_hour(db)),
            running=progress(running) if running else None,
            fault=broken.sentence if broken else "",
            earlier=[finished(each) for each in last if each is not running],
            refusal=str(refusal) if refusal else "",
            since=since,
            today=today().isoformat(),
            quarantined=quarantined(db) if standing.quarantine else [],
            opens=checks.opens(),
            checkpoint=checkpoint(standing),
            key=public_key(),
            witness=WITNESSES.get(current_app.config["TRAIL_WITNESS"].partition(":")[0], ""),
            months=current_app.config["TRAIL_MONTHS"],
            overdue=[{"month": f"{month:%Y-%m}"} for month in overdue],
            archives=[
                {
                    "month": f"{each.month:%Y-%m}",
                    "lines": format_decimal(each.lines),
                    "file": each.file,
                    "when": words(each.archived_at),
                    "by": each.archived_by,
                }
                for each in gone
            ],
        )


def stands(standing: audit.Standing) -> dict[str, Any]:
    """How the trail stands in words, each under the name its place on the page has."""
    oldest = standing.oldest_seconds
    told = {
        "stream": format_decimal(standing.stream) if standing.stream is not None else gettext("not known"),
        "oldest": gettext("not known")
        if oldest is None
        else ago(oldest)
        if oldest and (standing.stream or standing.spool_files or standing.outbox)
        else gettext("none waits"),
        "spool": gettext("empty")
        if not standing.spool_files
        else ngettext("%(num)s file", "%(num)s files", standing.spool_files) + f", {size(standing.spool_bytes)}",
        "outbox": format_decimal(standing.outbox),
        "quarantine": format_decimal(standing.quarantine),
        "astray": format_decimal(standing.astray),
        "drained_at": words(standing.drained_at),
        "drained": format_decimal(standing.drained),
        "batch": format_decimal(standing.batch),
        "stored_at": words(standing.stored_at),
        "size": format_decimal(standing.size),
    }
    return {
        "told": told,
        "alarm": late(standing),
        "trouble": {"quarantine": bool(standing.quarantine), "astray": bool(standing.astray)},
    }


def late(standing: audit.Standing) -> str:
    """What is wrong with the way into the table, in a sentence; empty where all is well."""
    if standing.stream is None:
        return str(
            gettext("The trail's own Redis does not answer. Lines are kept in files on this machine until it does.")
        )
    if standing.late:
        return str(
            gettext(
                "Lines are not stored in time: the oldest has waited for %(time)s. Is the worker running?",
                time=ago(standing.oldest_seconds or 0.0),
            )
        )
    return ""


def ago(seconds: float) -> str:
    """A time that has passed."""
    return str(format_timedelta(timedelta(seconds=max(1, round(seconds))), threshold=1.2))


def size(count: int) -> str:
    """Bytes, as people say it."""
    amount, unit = float(count), 0
    while amount >= 1000 and unit < len(UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{format_decimal(round(amount, 1) if unit else count)} {UNITS[unit]}"


def hours(stored: Sequence[tuple[datetime, int]]) -> dict[str, Any]:
    """The lines stored in each hour, for the plot and its table."""
    zone = branch_zone()
    counts = [count for _, count in stored]
    return {
        "counts": counts,
        "total": format_decimal(sum(counts)),
        "most": format_decimal(max(counts)),
        "now": format_decimal(counts[-1]),
        "rows": [
            {"clock": f"{began.astimezone(zone):%H:%M}", "count": format_decimal(count)}
            for began, count in reversed(stored)
        ],
        "marks": [f"{began.astimezone(zone):%H:%M}" for began, _ in stored[::6]],
    }


def asked_for(check: AuditCheck) -> str:
    """What a check looks at."""
    if check.since is None:
        return str(gettext("The whole trail"))
    return str(gettext("What was stored since %(when)s", when=words(check.since)))


def progress(check: AuditCheck) -> dict[str, Any]:
    """A check that goes on."""
    if check.beat_at is None:
        text = gettext("It waits for the worker to begin.")
    elif not check.total:
        text = gettext("It is being begun.")
    else:
        text = gettext(
            "%(done)s of %(total)s lines, %(percent)s %%",
            done=format_decimal(check.done),
            total=format_decimal(check.total),
            percent=check.done * 100 // check.total,
        )
    return {"what": asked_for(check), "text": text, "done": check.done, "total": check.total}


def finished(check: AuditCheck) -> dict[str, Any]:
    """A check that is over, or that nobody is at any more."""
    return {
        "what": asked_for(check),
        "when": words(check.asked_at),
        "by": called(check.asked_by) if check.asked_by_id is not None else gettext("By the clock"),
        "took": ago((check.finished_at - check.asked_at).total_seconds())
        if check.finished_at and check.whole is not None
        else "",
        "whole": check.whole,
        "sentence": check.sentence or checks.STOPPED,
    }


def called(user: User | None) -> str:
    """An account's person."""
    return f"{user.first_name} {user.last_name}" if user else gettext("Somebody")


def quarantined(db: Any) -> list[dict[str, Any]]:
    """The entries nobody could make out; what one holds only where it was asked for, which is recorded."""
    wanted = request.args.get("open", "")
    return [
        {
            "id": each.id,
            "when": words(each.found_at),
            "source": each.source,
            "reason": each.reason,
            "size": size(len(each.payload.encode())),
            "payload": checks.opened(each) if str(each.id) == wanted else None,
            "href": url_for("Watch.show", open=each.id, _anchor=f"quarantine-{each.id}"),
        }
        for each in checks.quarantined(db)
    ]


def checkpoint(standing: audit.Standing) -> dict[str, str] | None:
    """The last checkpoint: the note as it was signed, and the root in it."""
    parts = standing.note.split("\n")
    return {"note": standing.note.strip(), "root": parts[2]} if len(parts) > 2 else None


def public_key() -> str:
    """The key checkpoints are checked with; empty where this process has no way to it."""
    path = current_app.config["TRAIL_KEY"]
    try:
        return tree.key_at(path).text if path.exists() else ""
    except (OSError, ValueError):
        return ""


# ---- the alarm on every page ---------------------------------------------------------------------------------------

KEPT = 10.0
"""Seconds an answer holds in this process."""


class Watchman:
    """Whether something is wrong with the trail: asked of the database seldom, and by one thread at a time."""

    def __init__(self) -> None:
        self.asking = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Ask anew at the next page."""
        self.until, self.said = 0.0, ("", "")

    def look(self) -> tuple[str, str]:
        """What is wrong with the way into the table, and what the last check found; empty where all is well."""
        if time.monotonic() >= self.until and self.asking.acquire(blocking=False):
            try:
                with guard.acting_as(nobody()):
                    db = guard.session()
                    broken = checks.fault(db)
                    self.said = late(audit.standing(db)), broken.sentence if broken else ""
            except (SQLAlchemyError, Refusal) as error:
                log.warning("watch.cannot_look", error=type(error).__name__)
            finally:
                self.until = time.monotonic() + KEPT
                self.asking.release()
        return self.said


watchman = Watchman()


def alarms() -> list[str]:
    """What administrators and privacy officers are told on every page, whatever they came for."""
    at_work = acting()
    if at_work is None or at_work.actor.user_id is None or not at_work.actor.may("read", "AuditEvent"):
        return []
    if request.path == url_for("Watch.show"):  # which says it itself, and at length
        return []
    behind, broken = watchman.look()
    found = [behind] if behind else []
    if broken:
        found.append(gettext("The trail is not whole: %(sentence)s", sentence=broken))
    return found


# ---- unusual access ------------------------------------------------------------------------------------------------

REASONS = {
    UnusualReason.OWN: lazy_gettext("Own record"),
    UnusualReason.FAMILY: lazy_gettext("Same family name"),
    UnusualReason.CONFIDENTIAL: lazy_gettext("Confidential record"),
    UnusualReason.NO_CARE: lazy_gettext("No part in the care"),
    UnusualReason.VOLUME: lazy_gettext("Far more than usual"),
}
WHY = {
    UnusualReason.OWN: lazy_gettext("Opened their own record with a staff role"),
    UnusualReason.FAMILY: lazy_gettext("Opened the record of a patient with the same family name"),
    UnusualReason.CONFIDENTIAL: lazy_gettext("Opened a record that is marked confidential"),
    UnusualReason.NO_CARE: lazy_gettext(
        "Opened the record of a patient who was not seen by them, nor at a branch of theirs, in the 90 days around it"
    ),
}
FINDINGS = {
    Explanation.EXPLAINED: lazy_gettext("Explained"),
    Explanation.NOT_EXPLAINED: lazy_gettext("Not explained"),
}


class Unusual(Page):
    """Looks into records that are worth a question, and what the questions came to."""

    route_base = "/unusual"
    default_view = "list"

    @expose("/")
    @open_to("read", "UnusualAccess")
    def list(self) -> str:
        """Those that wait, a person at a time, and those that were reviewed."""
        return self._page()

    @expose("/review", methods=["POST"])
    @open_to("update", "UnusualAccess")
    def review(self) -> Any:
        """Say of what was ticked whether it was explained."""
        said = request.form.getlist("which")
        keys = [int(key) for key in said if key.isascii() and key.isdecimal() and len(key) < 19]
        finding, note = request.form.get("finding", ""), request.form.get("note", "")
        try:
            with guard.unit_of_work() as session:
                done = unusual.review(session, keys, finding=finding, note=note)
        except Refusal as refusal:
            if refusal.status >= 500:
                raise
            guard.session.rollback()
            tried = {"keys": set(keys), "finding": finding, "note": note, "of": _number(request.form.get("of", ""))}
            return self._page(refusal, tried), refusal.status
        flash(
            ngettext("The review is saved.", "%(num)s reviews are saved.", len(done)),
            "success",
        )
        return redirect(url_for("Unusual.list"))

    def _page(self, refusal: Refusal | None = None, tried: dict[str, Any] | None = None) -> str:
        db, asked = guard.session(), question()
        waiting, more = unusual.awaiting(db, asked)
        done, older = unusual.reviewed(db, asked)
        known = unusual.patients_of(db, [*waiting, *done])
        people: dict[int, dict[str, Any]] = {}
        for each in waiting:
            person = people.setdefault(each.user_id, person_of(each))
            person["rows"].append(told_of(each, known))

        def address(page: int) -> str:
            arguments: dict[str, Any] = {**request.args.to_dict(), "page": str(page)}
            return url_for("Unusual.list", **arguments)

        return self.render(
            "watch/unusual.html",
            page_title=gettext("Unusual access"),
            people=list(people.values()),
            more=unusual.MOST if more else 0,
            done=[{**person_of(each), "row": told_of(each, known)} for each in done],
            older_href=address(asked.page + 1) if older else None,
            newer_href=address(asked.page - 1) if asked.page else None,
            reasons=list(REASONS.items()),
            findings=list(FINDINGS.items()),
            asked=asked,
            args=request.args,
            reviews=current().may("update", "UnusualAccess"),
            refusal=str(refusal) if refusal else "",
            refused=(refusal.field or "") if refusal else "",
            tried=tried or {"keys": set(), "finding": "", "note": "", "of": None},
        )


def question() -> unusual.Asked:
    """What the page was asked; nonsense counts as not asked."""
    text = request.args
    since, until = _day(text.get("from", "")), _day(text.get("to", ""))
    reason, finding, page = text.get("reason", ""), text.get("finding", ""), _number(text.get("page", ""))
    user_id = _number(text.get("who", ""))
    return unusual.Asked(
        reason=reason if reason in set(UnusualReason) else "",
        user_id=user_id if user_id is None or user_id < 2**31 else 0,
        finding=finding if finding in set(Explanation) else "",
        since=beginning_of(since) if since else None,
        until=beginning_of(until + timedelta(days=1)) if until else None,
        page=page if page is not None and page < 10_000 else 0,
    )


def _day(said: str) -> date | None:
    """A day as a browser sends it; None where it is none."""
    try:
        found = date.fromisoformat(said)
    except ValueError:
        return None
    return found if 1900 <= found.year <= 2200 else None


def _number(said: str) -> int | None:
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 19 else None


def person_of(each: UnusualAccess) -> dict[str, Any]:
    """Whoever looked, in words."""
    return {
        "id": each.user_id,
        "name": called(each.user),
        "roles": ", ".join(gettext(policy.SPOKEN.get(role.name, role.name)) for role in each.user.roles),
        "own": each.user_id == current().user_id,
        "rows": [],
    }


def told_of(each: UnusualAccess, known: dict[int, Patient]) -> dict[str, Any]:
    """What was unusual, in words."""
    patient = known.get(each.patient_id or 0)
    zone = branch_zone()
    first, last = each.first_at.astimezone(zone), each.last_at.astimezone(zone)
    trail = None
    if current().may("read", "AuditEvent"):
        of: dict[str, Any] = {"from": first.date().isoformat(), "to": last.date().isoformat(), "who": each.user_id}
        if each.patient_id:
            of["of"] = each.patient_id
        trail = url_for("TrailView.list", **of)
    return {
        "id": each.id,
        "reason": REASONS[UnusualReason(each.reason)],
        "tone": "danger" if each.reason in (UnusualReason.OWN, UnusualReason.VOLUME) else "warn",
        "why": gettext(
            "Opened the records of %(patients)s patients in a day; usual for them are %(usual)s",
            patients=format_decimal(each.patients),
            usual=format_decimal(each.usual),
        )
        if each.reason == UnusualReason.VOLUME
        else WHY[UnusualReason(each.reason)],
        "patient": (name_of(patient) if patient else gettext("A patient who is not among yours"))
        if each.patient_id
        else "",
        "mrn": patient.mrn if patient else "",
        "day": spoken_day(each.day),
        "clock": f"{first:%H:%M}" if f"{first:%H:%M}" == f"{last:%H:%M}" else f"{first:%H:%M} – {last:%H:%M}",
        "lines": ngettext("%(num)s time", "%(num)s times", each.lines),
        "seen": seen(each.seen),
        "trail_href": trail,
        "finding": FINDINGS[Explanation(each.finding)] if each.finding else "",
        "explained": each.finding == Explanation.EXPLAINED,
        "note": each.review_note,
        "reviewed": words(each.reviewed_at) if each.reviewed_at else "",
        "reviewed_by": called(each.reviewed_by) if each.reviewed_at else "",
        "again": each.reviewed_at is not None and each.last_at > each.reviewed_at,
    }


def seen(kinds: dict[str, int]) -> str:
    """Kinds of record and how many of each, such as "registration, visits (3)"."""
    order = [*policy.RESOURCES]
    found = sorted(kinds.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))
    return ", ".join(
        f"{SPOKEN.get(name, name)} ({count})" if count > 1 else str(SPOKEN.get(name, name)) for name, count in found
    )


def waits() -> list[dict[str, Any]]:
    """Unusual access somebody has to look at, for the start page."""
    if not current().may("update", "UnusualAccess") or not current().may("read", "UnusualAccess"):
        return []
    count = unusual.waiting(guard.session())
    if not count:
        return []
    return [
        {
            "title": gettext("Unusual access to be looked at"),
            "hint": gettext("Say of each whether it was explained"),
            "href": url_for("Unusual.list"),
            "count": count,
        }
    ]


def register(builder: Any) -> None:
    """The two pages, and the alarm for every other."""
    builder.add_view_no_menu(Watch)
    builder.add_view_no_menu(Unusual)
    current_app.jinja_env.globals["trail_alarms"] = alarms
