"""Scheduling: when people work, what kinds of visits there are, who is promised whose time."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    Date,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Time,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSTZRANGE, ExcludeConstraint, Range
from sqlalchemy.orm import Mapped, mapped_column, relationship
from uuid_utils.compat import uuid7

from models.base import InPatientCompartment, Model, Protected, Record, now
from models.clinical import Encounter
from models.codes import (
    AppointmentStatus,
    CancelationReason,
    OfferStatus,
    ScheduleChange,
    WaitlistStatus,
    check,
)
from models.organization import Branch, Practitioner, Room

BLOCKING = frozenset(
    {
        AppointmentStatus.PENDING,
        AppointmentStatus.BOOKED,
        AppointmentStatus.ARRIVED,
        AppointmentStatus.CHECKED_IN,
        AppointmentStatus.FULFILLED,
    }
)
"""States in which a visit holds its resources."""
TRANSITIONS: dict[AppointmentStatus, frozenset[AppointmentStatus]] = {
    AppointmentStatus.PROPOSED: frozenset(
        {AppointmentStatus.PENDING, AppointmentStatus.BOOKED, AppointmentStatus.CANCELLED}
    ),
    AppointmentStatus.WAITLIST: frozenset({AppointmentStatus.BOOKED, AppointmentStatus.CANCELLED}),
    AppointmentStatus.PENDING: frozenset({AppointmentStatus.BOOKED, AppointmentStatus.CANCELLED}),
    AppointmentStatus.BOOKED: frozenset(
        {AppointmentStatus.ARRIVED, AppointmentStatus.NOSHOW, AppointmentStatus.CANCELLED}
    ),
    AppointmentStatus.ARRIVED: frozenset(
        {AppointmentStatus.CHECKED_IN, AppointmentStatus.CANCELLED, AppointmentStatus.BOOKED}
    ),
    AppointmentStatus.CHECKED_IN: frozenset({AppointmentStatus.FULFILLED}),
    AppointmentStatus.FULFILLED: frozenset(),
    AppointmentStatus.CANCELLED: frozenset(),
    AppointmentStatus.NOSHOW: frozenset(),
    AppointmentStatus.ENTERED_IN_ERROR: frozenset(),
}
"""Where a visit may go from each state; entered-in-error is reached from any of them."""
LONGEST = timedelta(hours=12)


class Equipment(Record):
    """Something a visit needs besides a room, of which there are few (FHIR Device)."""

    __tablename__ = "equipment"
    __table_args__ = (
        UniqueConstraint("branch_id", "name"),
        CheckConstraint("length(name) BETWEEN 1 AND 80", name="equipment_name_length"),
    )

    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"), index=True)
    name: Mapped[str]
    kind: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """What it is, such as Ultrasound."""
    active: Mapped[bool] = mapped_column(default=True)
    branch: Mapped[Branch] = relationship(lazy="joined", innerjoin=True)

    def __str__(self) -> str:
        return self.name


class VisitTypePractitioner(Model):
    """Who does a kind of visit."""

    __tablename__ = "visit_type_practitioner"

    visit_type_id: Mapped[int] = mapped_column(ForeignKey("visit_type.id", ondelete="CASCADE"), primary_key=True)
    practitioner_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"), primary_key=True, index=True)


class VisitTypeRoom(Model):
    """Where a kind of visit takes place."""

    __tablename__ = "visit_type_room"

    visit_type_id: Mapped[int] = mapped_column(ForeignKey("visit_type.id", ondelete="CASCADE"), primary_key=True)
    room_id: Mapped[int] = mapped_column(ForeignKey("room.id"), primary_key=True, index=True)


class VisitTypeEquipment(Model):
    """What a kind of visit needs one of."""

    __tablename__ = "visit_type_equipment"

    visit_type_id: Mapped[int] = mapped_column(ForeignKey("visit_type.id", ondelete="CASCADE"), primary_key=True)
    equipment_id: Mapped[int] = mapped_column(ForeignKey("equipment.id"), primary_key=True, index=True)


class VisitType(Record):
    """A kind of visit that can be booked (FHIR HealthcareService)."""

    __tablename__ = "visit_type"
    __table_args__ = (
        UniqueConstraint("name"),
        CheckConstraint("length(name) BETWEEN 1 AND 80", name="visit_type_name_length"),
        CheckConstraint("minutes BETWEEN 5 AND 720", name="visit_type_minutes"),
        CheckConstraint(
            "buffer_before BETWEEN 0 AND 120 AND buffer_after BETWEEN 0 AND 120", name="visit_type_buffers"
        ),
    )

    name: Mapped[str]
    minutes: Mapped[int]
    buffer_before: Mapped[int] = mapped_column(default=0)
    """Minutes its doctor, room and equipment are kept free before it."""
    buffer_after: Mapped[int] = mapped_column(default=0)
    """The same after it."""
    needs_room: Mapped[bool] = mapped_column(default=True)
    active: Mapped[bool] = mapped_column(default=True)
    practitioners: Mapped[list[Practitioner]] = relationship(secondary="visit_type_practitioner", lazy="raise_on_sql")
    """Whoever does it; empty for everybody with working hours."""
    rooms: Mapped[list[Room]] = relationship(secondary="visit_type_room", lazy="raise_on_sql")
    """Where it takes place; empty for every room of the branch."""
    equipment: Mapped[list[Equipment]] = relationship(secondary="visit_type_equipment", lazy="raise_on_sql")
    """What it needs one of; empty for nothing."""

    def __str__(self) -> str:
        return self.name


class WorkingHours(Record):
    """When somebody works at a branch, week by week, by the branch's clock (FHIR PractitionerRole.availableTime)."""

    __tablename__ = "working_hours"
    __table_args__ = (
        CheckConstraint("weekday BETWEEN 1 AND 7", name="working_hours_weekday"),
        CheckConstraint("starts <> ends", name="working_hours_not_empty"),
        CheckConstraint("valid_until IS NULL OR valid_until >= valid_from", name="working_hours_valid"),
        Index("working_hours_of", "practitioner_id", "weekday"),
    )

    practitioner_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"))
    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"), index=True)
    weekday: Mapped[int] = mapped_column(SmallInteger)
    """ISO 8601: 1 is Monday."""
    starts: Mapped[time] = mapped_column(Time)
    ends: Mapped[time] = mapped_column(Time)
    """On the next day where it is not after `starts`."""
    valid_from: Mapped[date] = mapped_column(Date)
    valid_until: Mapped[date | None] = mapped_column(Date)
    practitioner: Mapped[Practitioner] = relationship(lazy="raise_on_sql")
    branch: Mapped[Branch] = relationship(lazy="raise_on_sql")


class ScheduleException(Record):
    """A stretch of time that is not as the weekly hours have it: leave, a holiday, an extra session."""

    __tablename__ = "schedule_exception"
    __table_args__ = (
        CheckConstraint(check("kind", ScheduleChange), name="schedule_exception_kind"),
        CheckConstraint("ends_at > starts_at", name="schedule_exception_ends_after_start"),
        CheckConstraint(
            "CASE kind WHEN 'leave' THEN practitioner_id IS NOT NULL"
            " WHEN 'extra' THEN practitioner_id IS NOT NULL AND branch_id IS NOT NULL"
            " ELSE practitioner_id IS NULL AND branch_id IS NOT NULL END",
            name="schedule_exception_whose",
        ),
        Index("schedule_exception_of", "practitioner_id", "starts_at"),
        Index("schedule_exception_at", "branch_id", "starts_at"),
    )

    kind: Mapped[str]
    practitioner_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    branch_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"))
    """Where; None for leave from every branch."""
    starts_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    ends_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    note: Mapped[str] = mapped_column(default="")
    practitioner: Mapped[Practitioner | None] = relationship(lazy="raise_on_sql")
    branch: Mapped[Branch | None] = relationship(lazy="raise_on_sql")


class AppointmentSeries(InPatientCompartment, Record):
    """Visits that come again and again, by one rule and the branch's clock."""

    __tablename__ = "appointment_series"

    rule: Mapped[str]
    """RFC 5545 RRULE, in local time."""
    time_zone: Mapped[str]
    """IANA name."""
    starts_on: Mapped[datetime] = mapped_column(DateTime)
    """The first one, by the clock on the wall."""

    @classmethod
    def resource(cls) -> str:
        return "Appointment"


class Appointment(InPatientCompartment, Record):
    """A promise of somebody's time to a patient (FHIR Appointment).

    The database keeps a booking for the doctor, the room, each piece of equipment and the patient while the state
    blocks them, so two that overlap cannot both be there, whoever writes them.
    """

    __tablename__ = "appointment"
    __table_args__ = (
        CheckConstraint(check("status", AppointmentStatus), name="appointment_status"),
        CheckConstraint("end_at > start_at", name="appointment_ends_after_start"),
        CheckConstraint("end_at - start_at <= interval '12 hours'", name="appointment_not_too_long"),
        CheckConstraint(
            "buffer_before BETWEEN 0 AND 120 AND buffer_after BETWEEN 0 AND 120", name="appointment_buffers"
        ),
        CheckConstraint(check("cancelation_reason", CancelationReason), name="appointment_cancelation_reason"),
        CheckConstraint("cancelation_reason IS NULL OR status IN ('cancelled', 'noshow')", name="appointment_app_4"),
        CheckConstraint("length(reason) <= 500 AND length(override_reason) <= 500", name="appointment_texts"),
        ForeignKeyConstraint(
            ["room_id", "branch_id"], ["room.id", "room.branch_id"], name="appointment_room_of_branch"
        ),
        ForeignKeyConstraint(
            ["encounter_id", "patient_id"],
            ["encounter.id", "encounter.patient_id"],
            name="appointment_encounter_same_patient",
            deferrable=True,
        ),
        UniqueConstraint("created_by_id", "request_key", name="appointment_request_once"),
        Index("appointment_of_branch", "branch_id", "start_at"),
        Index("appointment_of_practitioner", "practitioner_id", "start_at"),
        Index("appointment_of_patient", "patient_id", "start_at"),
        Index("appointment_ends", "end_at", postgresql_where=text("status = 'booked'")),
    )

    status: Mapped[str] = mapped_column(default=AppointmentStatus.BOOKED)
    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"))
    visit_type_id: Mapped[int] = mapped_column(ForeignKey("visit_type.id"), index=True)
    practitioner_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"))
    room_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    equipment_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), default=list, server_default=text("'{}'"))
    start_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    end_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    buffer_before: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    """Minutes the doctor, the room and the equipment are kept free before it."""
    buffer_after: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    reason: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """What the patient comes for, as told at the desk."""
    walk_in: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    override_reason: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """Why it is outside working hours, or was written after it began."""
    cancelation_reason: Mapped[str | None]
    series_id: Mapped[int | None] = mapped_column(ForeignKey("appointment_series.id"), index=True)
    moved_from_id: Mapped[int | None] = mapped_column(ForeignKey("appointment.id"), unique=True)
    """The cancelled visit this one stands for: moving is cancelling one and booking another."""
    uid: Mapped[UUID] = mapped_column(Uuid, default=uuid7, index=True)
    """What calendars know it by (RFC 5545 UID), the same however often it is moved."""
    sequence: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    """RFC 5545 SEQUENCE: how often it was moved or called off."""
    queue_number: Mapped[int | None] = mapped_column(SmallInteger)
    """The number by which the waiting patient is called, of the branch's day."""
    arrived_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    checked_in_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When it was fulfilled, called off or missed."""
    confirmed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When the patient said that they will come."""
    encounter_id: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    """The visit as it happened, from check-in on."""
    created_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    changed_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    request_key: Mapped[str | None]
    """The Idempotency-Key it was asked for by."""
    request_digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    branch: Mapped[Branch] = relationship(lazy="raise_on_sql")
    visit_type: Mapped[VisitType] = relationship(lazy="raise_on_sql")
    practitioner: Mapped[Practitioner] = relationship(lazy="raise_on_sql")
    room: Mapped[Room | None] = relationship(
        primaryjoin="foreign(Appointment.room_id) == Room.id", lazy="raise_on_sql", viewonly=True
    )
    encounter: Mapped[Encounter | None] = relationship(
        primaryjoin="foreign(Appointment.encounter_id) == Encounter.id", lazy="raise_on_sql", viewonly=True
    )
    series: Mapped[AppointmentSeries | None] = relationship(lazy="raise_on_sql")


class AppointmentHistory(InPatientCompartment, Protected, Model):
    """Every state a visit was in; written by the database, changed by nobody."""

    __tablename__ = "appointment_history"
    __table_args__ = (Index("appointment_history_of", "appointment_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    appointment_id: Mapped[int] = mapped_column(ForeignKey("appointment.id"))
    status: Mapped[str]
    start_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    end_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    practitioner_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"))
    room_id: Mapped[int | None] = mapped_column(ForeignKey("room.id"))
    cancelation_reason: Mapped[str | None]
    changed_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    changed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("now()"))

    @classmethod
    def resource(cls) -> str:
        return "Appointment"


class SlotOffer(Record):
    """A freed time that is held for a while, and offered to those who wait (FHIR Slot, busy-tentative)."""

    __tablename__ = "slot_offer"
    __table_args__ = (
        CheckConstraint(check("status", OfferStatus), name="slot_offer_status"),
        CheckConstraint("end_at > start_at", name="slot_offer_ends_after_start"),
        ForeignKeyConstraint(["room_id", "branch_id"], ["room.id", "room.branch_id"], name="slot_offer_room_of_branch"),
        Index("slot_offer_open", "until_at", postgresql_where=text("status = 'open'")),
    )

    status: Mapped[str] = mapped_column(default=OfferStatus.OPEN)
    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"))
    visit_type_id: Mapped[int] = mapped_column(ForeignKey("visit_type.id"))
    practitioner_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"))
    room_id: Mapped[int | None] = mapped_column(BigInteger)
    equipment_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), default=list, server_default=text("'{}'"))
    start_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    end_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    buffer_before: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    buffer_after: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    until_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    """How long it is held."""
    branch: Mapped[Branch] = relationship(lazy="raise_on_sql")
    visit_type: Mapped[VisitType] = relationship(lazy="raise_on_sql")
    practitioner: Mapped[Practitioner] = relationship(lazy="raise_on_sql")


class WaitlistEntry(InPatientCompartment, Record):
    """Somebody who would come sooner, if a time were free."""

    __tablename__ = "waitlist_entry"
    __table_args__ = (
        CheckConstraint(check("status", WaitlistStatus), name="waitlist_entry_status"),
        CheckConstraint("priority BETWEEN 1 AND 9", name="waitlist_entry_priority"),
        CheckConstraint("latest_on IS NULL OR latest_on >= earliest_on", name="waitlist_entry_days"),
        Index("waitlist_entry_ranked", "visit_type_id", "priority", "id", postgresql_where=text("status = 'waiting'")),
    )

    status: Mapped[str] = mapped_column(default=WaitlistStatus.WAITING)
    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"), index=True)
    visit_type_id: Mapped[int] = mapped_column(ForeignKey("visit_type.id"))
    practitioner_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    """The one doctor they would see; None for any."""
    priority: Mapped[int] = mapped_column(SmallInteger, default=5)
    """RFC 5545: 1 is the highest, 9 the lowest."""
    earliest_on: Mapped[date] = mapped_column(Date)
    latest_on: Mapped[date | None] = mapped_column(Date)
    appointment_id: Mapped[int | None] = mapped_column(ForeignKey("appointment.id"))
    """What they got."""
    note: Mapped[str] = mapped_column(default="", server_default=text("''"))
    branch: Mapped[Branch] = relationship(lazy="raise_on_sql")
    visit_type: Mapped[VisitType] = relationship(lazy="raise_on_sql")
    practitioner: Mapped[Practitioner | None] = relationship(lazy="raise_on_sql")


class SlotOfferInvitation(InPatientCompartment, Record):
    """Somebody on the waiting list who was offered a freed time."""

    __tablename__ = "slot_offer_invitation"
    __table_args__ = (
        UniqueConstraint("offer_id", "entry_id", name="slot_offer_invitation_once"),
        CheckConstraint("answer IN ('accepted', 'declined', 'late')", name="slot_offer_invitation_answer"),
    )

    offer_id: Mapped[int] = mapped_column(ForeignKey("slot_offer.id"), index=True)
    entry_id: Mapped[int] = mapped_column(ForeignKey("waitlist_entry.id"), index=True)
    answer: Mapped[str | None]
    """accepted, declined, or late: the time was taken by somebody else or not held any longer."""
    answered_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    @classmethod
    def resource(cls) -> str:
        return "WaitlistEntry"

    offer: Mapped[SlotOffer] = relationship(lazy="raise_on_sql")
    entry: Mapped[WaitlistEntry] = relationship(lazy="raise_on_sql")


class Communication(InPatientCompartment, Record):
    """Something said to a patient about a visit or an offer, once (FHIR Communication). Its text is not kept."""

    __tablename__ = "communication"
    __table_args__ = (
        CheckConstraint(
            "kind IN ('booked', 'moved', 'cancelled', 'reminder', 'offer', 'late')", name="communication_kind"
        ),
        CheckConstraint("medium IN ('email', 'sms')", name="communication_medium"),
        CheckConstraint("num_nonnulls(appointment_id, invitation_id) = 1", name="communication_about"),
        CheckConstraint("sent_at IS NULL OR failed_at IS NULL", name="communication_sent_or_given_up"),
        UniqueConstraint(
            *("appointment_id", "invitation_id", "kind", "wave", "medium"),
            name="communication_once",
            postgresql_nulls_not_distinct=True,
        ),
        Index("communication_open", "again_at", postgresql_where=text("sent_at IS NULL AND failed_at IS NULL")),
    )

    appointment_id: Mapped[int | None] = mapped_column(ForeignKey("appointment.id"))
    invitation_id: Mapped[int | None] = mapped_column(ForeignKey("slot_offer_invitation.id"))
    kind: Mapped[str]
    wave: Mapped[int] = mapped_column(SmallInteger, default=0)
    """Hours before the visit, for a reminder; otherwise the visit's sequence."""
    medium: Mapped[str]
    again_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    """When it may be tried, or tried again: whoever tries puts it off first."""
    sent_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """None while it is tried."""
    failed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When it was given up: the address is none, or there was nothing to say any longer."""


class CalendarFeed(Model):
    """The secret address under which a practitioner's own calendar is fetched; only its digest is kept."""

    __tablename__ = "calendar_feed"

    practitioner_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"), primary_key=True)
    token_digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    made_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("now()"))


class Booking(Model):
    """A stretch of one resource's time, kept by the database for a visit or an offer; nobody writes it by hand."""

    __tablename__ = "booking"
    __table_args__ = (
        CheckConstraint(
            "num_nonnulls(practitioner_id, room_id, equipment_id, patient_id) = 1", name="booking_one_resource"
        ),
        CheckConstraint("num_nonnulls(appointment_id, offer_id) = 1", name="booking_one_cause"),
        CheckConstraint("NOT isempty(period)", name="booking_not_empty"),
        ExcludeConstraint(
            ("resource", "="), ("period", "&&"), using="gist", where=text("blocking"), name="booking_no_overlap"
        ),
        Index("booking_of_appointment", "appointment_id"),
        Index("booking_of_offer", "offer_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    appointment_id: Mapped[int | None] = mapped_column(ForeignKey("appointment.id"))
    offer_id: Mapped[int | None] = mapped_column(ForeignKey("slot_offer.id"))
    practitioner_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    room_id: Mapped[int | None] = mapped_column(ForeignKey("room.id"))
    equipment_id: Mapped[int | None] = mapped_column(ForeignKey("equipment.id"))
    patient_id: Mapped[int | None] = mapped_column(ForeignKey("patient.id"))
    resource: Mapped[int] = mapped_column(
        BigInteger,
        Computed(
            "coalesce(practitioner_id * 4, room_id * 4 + 1, equipment_id * 4 + 2, patient_id * 4 + 3)", persisted=True
        ),
    )
    period: Mapped[Range[datetime]] = mapped_column(TSTZRANGE)
    """Half-open, with the buffers; for the patient without them."""
    blocking: Mapped[bool]


class QueueNumber(Model):
    """The last number called up to at a branch on a day."""

    __tablename__ = "queue_number"

    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    last: Mapped[int] = mapped_column(SmallInteger)
