"""Visits over REST: free times, booking, moving and every step of a visit's day; the pages' scripts use the same."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

import msgspec
from flask import request
from flask_appbuilder import expose
from flask_appbuilder.security.decorators import protect
from werkzeug.wrappers import Response

from app import guard
from app.actor import current
from app.errors import Invalid, RequestRepeated, SlotTaken
from app.services import free_times, scheduling, series
from app.services.clock import believable, spoken_instant
from app.services.free_times import FreeTime
from app.services.scheduling import Asked
from models import organization
from models import scheduling as tables
from models.base import now
from models.scheduling import Appointment, VisitType
from views.api import RecordApi, body_of, resource_api, sent
from views.base import PERMISSION_OF, RecordInterface
from views.branches import all_branches, zone_of

LONGEST_VIEW = timedelta(days=45)
"""Of the calendar, in one question."""
MOST_FREE = 50
TRIES = 3
SCOPE: dict[str, Any] = {"enum": ["one", "following", "all"]}
"""Which visits of a series are meant."""

BOOKING: dict[str, Any] = {
    "type": "object",
    "required": ["patient_id", "practitioner_id", "visit_type_id", "start"],
    "additionalProperties": False,
    "properties": {
        **{name: {"type": "integer"} for name in ("patient_id", "practitioner_id", "visit_type_id")},
        **{name: {"type": ["integer", "null"]} for name in ("room_id", "branch_id", "minutes")},
        "start": {"type": "string"},
        "equipment_ids": {"type": "array", "maxItems": 10, "items": {"type": "integer"}},
        "reason": {"type": "string"},
        "override_reason": {"type": "string"},
        "walk_in": {"type": "boolean"},
    },
}
MOVING: dict[str, Any] = {
    "type": "object",
    "required": ["start"],
    "additionalProperties": False,
    "properties": {
        "start": {"type": "string"},
        **{name: {"type": ["integer", "null"]} for name in ("minutes", "practitioner_id", "room_id", "version")},
        "override_reason": {"type": "string"},
        "scope": SCOPE,
    },
}
CANCELLING: dict[str, Any] = {
    "type": "object",
    "required": ["reason"],
    "additionalProperties": False,
    "properties": {"reason": {"type": "string"}, "version": {"type": ["integer", "null"]}, "scope": SCOPE},
}


# ---- as JSON -----------------------------------------------------------------------------------------------------


def here(when: datetime | None, branch_id: int) -> str | None:
    """An instant by the clock of a branch, with its offset."""
    return None if when is None else when.astimezone(zone_of(branch_id)).isoformat()


def card(visit: Appointment) -> dict[str, Any]:
    """A visit as calendars and boards show it; what the actor is not shown is null."""
    hidden = current().rights.hidden("Appointment")
    return {
        "id": visit.id,
        "version": visit.version,
        "status": visit.status,
        "start": here(visit.start_at, visit.branch_id),
        "end": here(visit.end_at, visit.branch_id),
        "minutes": round((visit.end_at - visit.start_at).total_seconds() / 60),
        "branch_id": visit.branch_id,
        "patient_id": visit.patient_id,
        "patient": str(visit.patient) if visit.patient else None,
        "patient_mrn": visit.patient.mrn if visit.patient else None,
        "practitioner_id": visit.practitioner_id,
        "practitioner": str(visit.practitioner),
        "room_id": visit.room_id,
        "room": str(visit.room) if visit.room else None,
        "equipment_ids": visit.equipment_ids,
        "visit_type_id": visit.visit_type_id,
        "visit_type": str(visit.visit_type),
        "reason": None if "reason" in hidden else visit.reason,
        "walk_in": visit.walk_in,
        "queue_number": visit.queue_number,
        "series_id": visit.series_id,
        "arrived_at": here(visit.arrived_at, visit.branch_id),
        "checked_in_at": here(visit.checked_in_at, visit.branch_id),
        "confirmed_at": here(visit.confirmed_at, visit.branch_id),
        "cancelation_reason": visit.cancelation_reason,
        "encounter_id": visit.encounter_id,
        "moved_from_id": visit.moved_from_id,
    }


def free_card(free: FreeTime) -> dict[str, Any]:
    """A free time, with the names of what it takes."""
    session = guard.session()
    room = session.get(organization.Room, free.room_id) if free.room_id else None
    return {
        "start": here(free.start_at, free.branch_id),
        "end": here(free.end_at, free.branch_id),
        "practitioner_id": free.practitioner_id,
        "practitioner": str(session.get(organization.Practitioner, free.practitioner_id)),
        "branch_id": free.branch_id,
        "branch": str(all_branches().get(free.branch_id, "")),
        "room_id": free.room_id,
        "room": str(room) if room else None,
        "equipment_ids": [free.equipment_id] if free.equipment_id else [],
    }


def taken(asked: Asked, refusal: SlotTaken, *, besides: Collection[int] = ()) -> Response:
    """The answer to a time that is not free: what clashes, by name, and three other times."""
    session = guard.session()
    branch_id = asked.branch_id or current().branch_id or 0
    return sent(
        {
            "error": type(refusal).__name__,
            "message": str(refusal),
            "field": refusal.field,
            "conflicts": [
                {
                    "kind": each.kind,
                    "id": each.id,
                    "name": each.name,
                    "from": here(each.since, branch_id),
                    "to": here(each.until, branch_id),
                }
                for each in scheduling.what_clashes(session, asked, besides=besides)
            ],
            "alternatives": [free_card(each) for each in scheduling.alternatives(session, asked)],
        },
        refusal.status,
    )


def moved_together(old: Appointment, start: datetime, body: dict[str, Any]) -> Response:
    """Move several visits of a series, and answer with them; 409 with what stands in each one's way. Raises Invalid."""
    if body.get("minutes") is not None:
        raise Invalid("How long visits last is changed one by one.", field="minutes")
    said: dict[str, Any] = {
        "wall": start.astimezone(zone_of(old.branch_id)).replace(tzinfo=None),
        **{name: body.get(name) for name in ("practitioner_id", "room_id")},
        "override_reason": body.get("override_reason", ""),
    }
    try:
        with guard.unit_of_work() as session:
            found = series.change(session, old.id, body["scope"], **said, version=body.get("version"))
            keys = [visit.id for visit in found]
    except SlotTaken as refusal:
        plan = series.plan_change(guard.session(), old.id, body["scope"], **said)
        told = [
            {
                "id": each.visit.id,
                "start": here(each.occurrence.start_at, old.branch_id),
                "obstacle": each.occurrence.obstacle,
            }
            for each in plan
        ]
        answer = {"error": type(refusal).__name__, "message": str(refusal), "field": refusal.field, "visits": told}
        return sent(answer, refusal.status)
    visits = [scheduling.show(guard.session(), key) for key in keys]
    new = next((visit for visit in visits if visit.moved_from_id == old.id), visits[0])
    return sent({"id": new.id, "result": card(new), "visits": [card(visit) for visit in visits]})


# ---- as it was asked ---------------------------------------------------------------------------------------------


def numbers(name: str) -> list[int]:
    """The ids a query names, as often as it does. Raises Invalid."""
    found = request.args.getlist(name)
    if any(not each.isdecimal() or len(each) > 18 for each in found) or len(found) > 500:
        raise Invalid("This is no number of ours.", field=name)
    return [int(each) for each in found]


def number(name: str) -> int | None:
    """The one id a query names, if it does."""
    found = numbers(name)
    return found[0] if found else None


def when(name: str) -> datetime | None:
    """The instant a query names, if it does; a plus sign may have become a space on the way."""
    text = request.args.get(name)
    return spoken_instant(text.replace(" ", "+"), field=name) if text else None


def asked_of(body: dict[str, Any]) -> Asked:
    """What a body wants booked."""
    return Asked(
        patient_id=body["patient_id"],
        visit_type_id=body["visit_type_id"],
        practitioner_id=body["practitioner_id"],
        start_at=spoken_instant(body["start"]),
        minutes=body.get("minutes"),
        room_id=body.get("room_id"),
        equipment_ids=tuple(body.get("equipment_ids", [])),
        branch_id=body.get("branch_id"),
        reason=body.get("reason", ""),
        override_reason=body.get("override_reason", ""),
        walk_in=body.get("walk_in", False),
    )


def booked(asked: Asked, key: str | None) -> int:
    """Book it, once for one key however many ask at the same moment; gives the number of the visit."""
    for attempt in range(TRIES):
        try:
            with guard.unit_of_work() as session:
                return scheduling.book(session, asked, key=key).id
        except RequestRepeated:
            if attempt == TRIES - 1:
                raise
    raise RequestRepeated


def whole_number(pk: str) -> int:
    """The number in an address; one that is none is nobody's."""
    return int(pk) if pk.isdecimal() and len(pk) < 19 else 0


def cursor_of(free: FreeTime, origin: datetime) -> str:
    """Where a page of free times ended."""
    place = (origin, free.start_at, free.practitioner_id, free.branch_id)
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def past(cursor: str) -> tuple[datetime, FreeTime]:
    """Where the search began, and the last time of the page before. Raises Invalid."""
    try:
        origin, start, person, branch = msgspec.json.decode(
            base64.urlsafe_b64decode(cursor), type=tuple[datetime, datetime, int, int]
        )
    except ValueError as error:
        raise Invalid("This page of free times cannot be read. Search again.", field="after") from error
    if any(each.tzinfo is None or not believable(each) for each in (origin, start)):
        raise Invalid("This page of free times cannot be read. Search again.", field="after")
    return origin, FreeTime(start, start, person, branch, None, None)


# ---- the resource ------------------------------------------------------------------------------------------------

STEPS: dict[str, Callable[..., Appointment]] = {
    "arrive": scheduling.arrive,
    "undo-arrival": scheduling.undo_arrival,
    "check-in": scheduling.check_in,
    "fulfil": scheduling.fulfil,
    "no-show": scheduling.miss,
    "withdraw": scheduling.withdraw,
}
"""What happens to a visit on its day, by the word in the address."""


class AppointmentApi(RecordApi):
    """Visits to come."""

    datamodel = RecordInterface(Appointment)
    include_route_methods: ClassVar[set[str]] = {
        *("get", "get_list", "info", "between", "free", "post", "reschedule", "cancel", "step", "history"),
    }
    method_permission_name: ClassVar[dict[str, str]] = {
        **PERMISSION_OF,
        **dict.fromkeys(("between", "free", "history"), "read"),
        **dict.fromkeys(("reschedule", "cancel", "step"), "update"),
    }
    columns = (
        *("id", "fhir_id", "version", "patient_id", "status", "branch_id", "visit_type_id", "practitioner_id"),
        *("room_id", "equipment_ids", "start_at", "end_at", "reason", "walk_in", "cancelation_reason", "series_id"),
        *("moved_from_id", "uid", "sequence", "queue_number", "arrived_at", "checked_in_at", "ended_at"),
        *("confirmed_at", "encounter_id"),
    )

    @expose("/<pk>", methods=["GET"])
    @protect()
    def get(self, pk: str) -> Response:
        """One visit.
        ---
        get:
          description: One visit with the names of what it takes, times by the clock of its branch.
          parameters:
          - in: path
            name: pk
            schema:
              type: integer
          responses:
            200:
              description: "`id` and `result`"
            404:
              $ref: '#/components/responses/404'
        """
        visit = scheduling.show(guard.session(), whole_number(pk))
        return sent({"id": visit.id, "result": card(visit)})

    @expose("/between", methods=["GET"])
    @protect()
    def between(self) -> Response:
        """The visits of a stretch of time.
        ---
        get:
          description: At most 45 days; every id can be named several times.
          parameters:
          - {in: query, name: from, required: true, schema: {type: string, format: date-time}}
          - {in: query, name: to, required: true, schema: {type: string, format: date-time}}
          - {in: query, name: branch_id, schema: {type: integer}}
          - {in: query, name: practitioner_id, schema: {type: integer}}
          - {in: query, name: room_id, schema: {type: integer}}
          - {in: query, name: visit_type_id, schema: {type: integer}}
          - {in: query, name: status, schema: {type: string}}
          responses:
            200:
              description: "`result`"
            422:
              $ref: '#/components/responses/422'
        """
        opens, closes = when("from"), when("to")
        if opens is None or closes is None or closes <= opens:
            raise Invalid("Say from when to when.", field="from")
        if closes - opens > LONGEST_VIEW:
            raise Invalid("A calendar shows 45 days at once.", field="to")
        guard.searching("Appointment by time")
        visits = scheduling.between(
            guard.session(),
            opens,
            closes,
            branch_ids=numbers("branch_id"),
            practitioner_ids=numbers("practitioner_id"),
            room_ids=numbers("room_id"),
            visit_type_ids=numbers("visit_type_id"),
            statuses=request.args.getlist("status")[:10],
        )
        return sent({"result": [card(visit) for visit in visits]})

    @expose("/free", methods=["GET"])
    @protect()
    def free(self) -> Response:
        """The first free times for a kind of visit.
        ---
        get:
          description: Across doctors, rooms and branches, in order of time; `next` continues.
          parameters:
          - {in: query, name: visit_type_id, required: true, schema: {type: integer}}
          - {in: query, name: branch_id, schema: {type: integer}}
          - {in: query, name: practitioner_id, schema: {type: integer}}
          - {in: query, name: room_id, schema: {type: integer}}
          - {in: query, name: patient_id, schema: {type: integer}}
          - {in: query, name: minutes, schema: {type: integer}}
          - {in: query, name: from, schema: {type: string, format: date-time}}
          - {in: query, name: until, schema: {type: string, format: date-time}}
          - {in: query, name: after, schema: {type: string}}
          - {in: query, name: limit, schema: {type: integer, maximum: 50}}
          responses:
            200:
              description: "`result` and `next`"
            422:
              $ref: '#/components/responses/422'
        """
        session = guard.session()
        kind = session.get(VisitType, number("visit_type_id") or 0)
        if kind is None or not kind.active:
            raise Invalid("Please choose a kind of visit.", field="visit_type_id")
        minutes = number("minutes")
        if minutes is not None and not 5 <= minutes <= 720:
            raise Invalid("A visit lasts 5 minutes to 12 hours.", field="minutes")
        origin, after = when("from"), None
        if cursor := request.args.get("after"):
            origin, after = past(cursor)
        most = min(max(number("limit") or 20, 1), MOST_FREE)
        begins = free_times.quarter(origin or now())
        found = free_times.first_free(
            session,
            kind,
            branch_ids=numbers("branch_id") or list(all_branches()),
            practitioner_ids=numbers("practitioner_id") or None,
            room_id=number("room_id"),
            patient_id=number("patient_id"),
            minutes=minutes,
            origin=begins,
            until=when("until"),
            after=after,
            most=most,
        )
        following = cursor_of(found[-1], begins) if len(found) == most else None
        return sent({"result": [free_card(each) for each in found], "next": following})

    @expose("/", methods=["POST"])
    @protect()
    def post(self) -> Response:
        """Book a visit.
        ---
        post:
          description: >-
            201 with the visit; 409 with `conflicts` (what is taken, by name) and `alternatives` (three other times).
            The same `Idempotency-Key` books once.
          parameters:
          - {in: header, name: Idempotency-Key, schema: {type: string, maxLength: 255}}
          requestBody:
            required: true
            content:
              application/json:
                schema:
                  type: object
          responses:
            201:
              description: The visit
            409:
              description: "`conflicts` and `alternatives`"
            422:
              $ref: '#/components/responses/422'
        """
        asked = asked_of(body_of(BOOKING))
        try:
            visit_id = booked(asked, request.headers.get("Idempotency-Key"))
        except SlotTaken as refusal:
            return taken(asked, refusal)
        visit = scheduling.show(guard.session(), visit_id)
        return sent({"id": visit.id, "result": card(visit)}, 201)

    @expose("/<pk>/reschedule", methods=["POST"])
    @protect()
    def reschedule(self, pk: str) -> Response:
        """Move a visit.
        ---
        post:
          description: >-
            The visit is called off and booked anew, both or neither; 409 as for booking. With a `scope` of following or
            all, those of its series too: by as many days, to the same time of day, and 409 tells of each in `visits`.
          parameters:
          - {in: path, name: pk, required: true, schema: {type: integer}}
          requestBody:
            required: true
            content:
              application/json:
                schema:
                  type: object
          responses:
            200:
              description: The new visit
            404:
              $ref: '#/components/responses/404'
            409:
              description: "`conflicts` and `alternatives`"
            422:
              $ref: '#/components/responses/422'
        """
        body = body_of(MOVING)
        start, key = spoken_instant(body["start"]), whole_number(pk)
        old = scheduling.show(guard.session(), key)
        if body.get("scope", "one") != "one":
            return moved_together(old, start, body)
        try:
            with guard.unit_of_work() as session:
                new = scheduling.move(
                    session,
                    key,
                    start_at=start,
                    minutes=body.get("minutes"),
                    practitioner_id=body.get("practitioner_id"),
                    room_id=body.get("room_id"),
                    override_reason=body.get("override_reason", ""),
                    version=body.get("version"),
                ).id
        except SlotTaken as refusal:
            asked = Asked(
                patient_id=old.patient_id,
                visit_type_id=old.visit_type_id,
                practitioner_id=body.get("practitioner_id") or old.practitioner_id,
                start_at=start,
                minutes=body.get("minutes") or round((old.end_at - old.start_at).total_seconds() / 60),
                room_id=body.get("room_id") or old.room_id,
                equipment_ids=tuple(old.equipment_ids),
                branch_id=old.branch_id,
            )
            return taken(asked, refusal, besides=[key])
        visit = scheduling.show(guard.session(), new)
        return sent({"id": visit.id, "result": card(visit)})

    @expose("/<pk>/cancel", methods=["POST"])
    @protect()
    def cancel(self, pk: str) -> Response:
        """Call a visit off.
        ---
        post:
          description: >-
            `reason` is a code of http://terminology.hl7.org/CodeSystem/appointment-cancellation-reason. With a `scope`
            of following or all, those of its series too.
          parameters:
          - {in: path, name: pk, required: true, schema: {type: integer}}
          requestBody:
            required: true
            content:
              application/json:
                schema:
                  type: object
          responses:
            200:
              description: The visit
            404:
              $ref: '#/components/responses/404'
            409:
              description: It has moved on
            422:
              $ref: '#/components/responses/422'
        """
        body = body_of(CANCELLING)
        with guard.unit_of_work() as session:
            if (scope := body.get("scope", "one")) == "one":
                scheduling.cancel(session, whole_number(pk), reason=body["reason"], version=body.get("version"))
            else:
                series.call_off(session, whole_number(pk), scope, reason=body["reason"], version=body.get("version"))
        visit = scheduling.show(guard.session(), whole_number(pk))
        return sent({"id": visit.id, "result": card(visit)})

    @expose("/<pk>/arrive", methods=["POST"])
    @expose("/<pk>/undo-arrival", methods=["POST"])
    @expose("/<pk>/check-in", methods=["POST"])
    @expose("/<pk>/fulfil", methods=["POST"])
    @expose("/<pk>/no-show", methods=["POST"])
    @expose("/<pk>/withdraw", methods=["POST"])
    @protect()
    def step(self, pk: str) -> Response:
        """The next step of a visit's day.
        ---
        post:
          description: arrive, undo-arrival, check-in (opens the encounter), fulfil, no-show, withdraw.
          parameters:
          - {in: path, name: pk, required: true, schema: {type: integer}}
          responses:
            200:
              description: The visit
            404:
              $ref: '#/components/responses/404'
            409:
              description: It has moved on
        """
        with guard.unit_of_work() as session:
            STEPS[request.path.rsplit("/", 1)[-1]](session, whole_number(pk))
        visit = scheduling.show(guard.session(), whole_number(pk))
        return sent({"id": visit.id, "result": card(visit)})

    @expose("/<pk>/history", methods=["GET"])
    @protect()
    def history(self, pk: str) -> Response:
        """Every state a visit was in.
        ---
        get:
          description: The oldest first.
          parameters:
          - {in: path, name: pk, required: true, schema: {type: integer}}
          responses:
            200:
              description: "`result`"
            404:
              $ref: '#/components/responses/404'
        """
        visit = scheduling.show(guard.session(), whole_number(pk))
        rows = scheduling.history(guard.session(), visit.id)
        names: Sequence[str] = ("status", "practitioner_id", "room_id", "cancelation_reason", "changed_by_id")
        return sent(
            {
                "result": [
                    {
                        **{name: getattr(row, name) for name in names},
                        "start": here(row.start_at, visit.branch_id),
                        "end": here(row.end_at, visit.branch_id),
                        "changed_at": here(row.changed_at, visit.branch_id),
                    }
                    for row in rows
                ]
            }
        )


READ_ONLY: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (tables.VisitType, ("id", "fhir_id", "version", "name", "minutes", "buffer_before", "buffer_after", "active")),
    (tables.Equipment, ("id", "fhir_id", "version", "branch_id", "name", "kind", "active")),
    (
        tables.WaitlistEntry,
        (
            *("id", "fhir_id", "version", "patient_id", "status", "branch_id", "visit_type_id", "practitioner_id"),
            *("priority", "earliest_on", "latest_on", "appointment_id", "note"),
        ),
    ),
)
"""What else of scheduling is read over REST."""


def register(builder: Any) -> None:
    """Visits, and what they are made of."""
    builder.add_api(AppointmentApi)
    for model, columns in READ_ONLY:
        builder.add_api(resource_api(model, columns))
