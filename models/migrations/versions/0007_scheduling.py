"""Scheduling: hours, kinds of visits, appointments that cannot overlap, waiting list, calendar feeds"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


RULES = r"""
CREATE FUNCTION wb_blocks(status text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT status IN ('pending', 'booked', 'arrived', 'checked-in', 'fulfilled')
$$;

-- Two exclusion constraints that meet wait for each other; so whoever books takes the resources one after the other.
CREATE FUNCTION wb_hold(resources bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  number int;
BEGIN
  FOR number IN SELECT DISTINCT hashint8(r) FROM unnest(resources) AS r WHERE r IS NOT NULL ORDER BY 1 LOOP
    PERFORM pg_advisory_xact_lock(7270071, number);
  END LOOP;
END $$;

CREATE FUNCTION wb_resources(practitioner bigint, room bigint, equipment bigint[], patient bigint) RETURNS bigint[]
LANGUAGE sql IMMUTABLE AS $$
  SELECT array_remove(ARRAY[practitioner * 4, room * 4 + 1, patient * 4 + 3], NULL)
    || ARRAY(SELECT DISTINCT e * 4 + 2 FROM unnest(equipment) AS e)
$$;

CREATE FUNCTION wb_equipment_of_branch(equipment bigint[], branch bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM unnest(equipment) AS e WHERE NOT EXISTS
      (SELECT FROM equipment q WHERE q.id = e AND q.branch_id = branch)) THEN
    RAISE EXCEPTION 'equipment of another branch'
      USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'appointment_equipment_of_branch';
  END IF;
END $$;

-- A time on offer that has run out keeps nobody from booking it, whether or not a job has come by.  Whoever holds the
-- offer just now is answering it or letting it go; to wait for them here could mean that both wait.
CREATE FUNCTION wb_let_go(resources bigint[], whole tstzrange) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE slot_offer SET status = 'expired', version = version + 1, updated_at = now()
  WHERE id IN (
    SELECT o.id FROM slot_offer o WHERE o.status = 'open' AND o.until_at <= now() AND EXISTS (
      SELECT FROM booking b WHERE b.offer_id = o.id AND b.blocking AND b.period && whole AND b.resource = ANY(resources))
    FOR UPDATE SKIP LOCKED);
END $$;

-- Whoever books has them act as the owner: no name in them may mean a temporary table of theirs (pg_temp comes last,
-- or it would come first), and nobody hangs them on one (the rights are taken away at the end).
CREATE FUNCTION wb_book_appointment() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  whole tstzrange := tstzrange(NEW.start_at - make_interval(mins => NEW.buffer_before),
                               NEW.end_at + make_interval(mins => NEW.buffer_after));
BEGIN
  IF TG_OP = 'UPDATE' AND wb_blocks(OLD.status) = wb_blocks(NEW.status)
    AND (OLD.branch_id, OLD.practitioner_id, OLD.room_id, OLD.equipment_ids, OLD.patient_id, OLD.start_at, OLD.end_at,
         OLD.buffer_before, OLD.buffer_after)
      IS NOT DISTINCT FROM (NEW.branch_id, NEW.practitioner_id, NEW.room_id, NEW.equipment_ids, NEW.patient_id,
         NEW.start_at, NEW.end_at, NEW.buffer_before, NEW.buffer_after) THEN
    RETURN NULL;
  END IF;
  IF wb_blocks(NEW.status) THEN  -- what was used may have gone to another branch by the time a visit is called off
    PERFORM wb_equipment_of_branch(NEW.equipment_ids, NEW.branch_id);
    PERFORM wb_hold(wb_resources(NEW.practitioner_id, NEW.room_id, NEW.equipment_ids, NEW.patient_id));
    PERFORM wb_let_go(wb_resources(NEW.practitioner_id, NEW.room_id, NEW.equipment_ids, NULL), whole);
  END IF;
  DELETE FROM booking WHERE appointment_id = NEW.id;
  INSERT INTO booking (appointment_id, practitioner_id, room_id, equipment_id, patient_id, period, blocking)
  SELECT NEW.id, practitioner, room, equipment, patient, period, wb_blocks(NEW.status) FROM (
    SELECT NEW.practitioner_id AS practitioner, NULL::bigint AS room, NULL::bigint AS equipment, NULL::bigint AS patient,
      whole AS period
    UNION ALL SELECT NULL, NEW.room_id, NULL, NULL, whole WHERE NEW.room_id IS NOT NULL
    UNION ALL SELECT DISTINCT NULL::bigint, NULL::bigint, e, NULL::bigint, whole FROM unnest(NEW.equipment_ids) AS e
    UNION ALL SELECT NULL, NULL, NULL, NEW.patient_id, tstzrange(NEW.start_at, NEW.end_at)
  ) AS wanted;
  RETURN NULL;
END $$;
CREATE TRIGGER appointment_books AFTER INSERT OR UPDATE ON appointment
  FOR EACH ROW EXECUTE FUNCTION wb_book_appointment();

CREATE FUNCTION wb_book_offer() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  whole tstzrange := tstzrange(NEW.start_at - make_interval(mins => NEW.buffer_before),
                               NEW.end_at + make_interval(mins => NEW.buffer_after));
BEGIN
  IF NEW.status = 'open' THEN
    PERFORM wb_equipment_of_branch(NEW.equipment_ids, NEW.branch_id);
  END IF;
  IF NEW.status = 'open' AND NEW.until_at > now() THEN
    PERFORM wb_hold(wb_resources(NEW.practitioner_id, NEW.room_id, NEW.equipment_ids, NULL));
    PERFORM wb_let_go(wb_resources(NEW.practitioner_id, NEW.room_id, NEW.equipment_ids, NULL), whole);
  END IF;
  DELETE FROM booking WHERE offer_id = NEW.id;
  INSERT INTO booking (offer_id, practitioner_id, room_id, equipment_id, period, blocking)
  SELECT NEW.id, practitioner, room, equipment, whole, NEW.status = 'open' FROM (
    SELECT NEW.practitioner_id AS practitioner, NULL::bigint AS room, NULL::bigint AS equipment
    UNION ALL SELECT NULL, NEW.room_id, NULL WHERE NEW.room_id IS NOT NULL
    UNION ALL SELECT DISTINCT NULL::bigint, NULL::bigint, e FROM unnest(NEW.equipment_ids) AS e
  ) AS wanted;
  RETURN NULL;
END $$;
CREATE TRIGGER slot_offer_books AFTER INSERT OR UPDATE ON slot_offer
  FOR EACH ROW EXECUTE FUNCTION wb_book_offer();

CREATE FUNCTION wb_appointment_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF OLD.status IN ('fulfilled', 'cancelled', 'noshow', 'entered-in-error')
    AND (NEW.status NOT IN (OLD.status, 'entered-in-error')
      OR (OLD.patient_id, OLD.practitioner_id, OLD.start_at, OLD.end_at)
        IS DISTINCT FROM (NEW.patient_id, NEW.practitioner_id, NEW.start_at, NEW.end_at)) THEN
    RAISE EXCEPTION 'a visit that is over does not change'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'appointment_is_final';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER appointment_is_final BEFORE UPDATE ON appointment
  FOR EACH ROW EXECUTE FUNCTION wb_appointment_is_final();

CREATE FUNCTION wb_appointment_history() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF TG_OP = 'INSERT' OR (OLD.status, OLD.start_at, OLD.end_at, OLD.practitioner_id, OLD.room_id, OLD.cancelation_reason)
    IS DISTINCT FROM (NEW.status, NEW.start_at, NEW.end_at, NEW.practitioner_id, NEW.room_id, NEW.cancelation_reason)
  THEN
    INSERT INTO appointment_history
      (appointment_id, patient_id, status, start_at, end_at, practitioner_id, room_id, cancelation_reason, changed_by_id)
    VALUES (NEW.id, NEW.patient_id, NEW.status, NEW.start_at, NEW.end_at, NEW.practitioner_id, NEW.room_id,
      NEW.cancelation_reason, NEW.changed_by_id);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER appointment_has_history AFTER INSERT OR UPDATE ON appointment
  FOR EACH ROW EXECUTE FUNCTION wb_appointment_history();
CREATE FUNCTION wb_history_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the history of a visit is never rewritten' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER appointment_history_is_kept BEFORE UPDATE OR DELETE ON appointment_history
  FOR EACH ROW EXECUTE FUNCTION wb_history_is_kept();

-- When somebody works at a branch: the weekly hours by its clock, less holidays, with extra sessions, less leave.
CREATE FUNCTION wb_working(who bigint, place bigint, since timestamptz, until timestamptz) RETURNS tstzmultirange
LANGUAGE sql STABLE AS $$
  SELECT ((coalesce(hours.open, '{}') - coalesce(others.holidays, '{}')) + coalesce(others.extra, '{}')
      - coalesce(others.leave, '{}')) * tstzmultirange(tstzrange(since, until))
  FROM (
    -- Where clocks go forward, 02:30 to 03:00 ends before it begins, and is nothing.
    SELECT range_agg(tstzrange(shift.starts_at, greatest(shift.starts_at, shift.ends_at))) AS open
    FROM branch b
    CROSS JOIN generate_series((since AT TIME ZONE b.time_zone)::date - 1, (until AT TIME ZONE b.time_zone)::date,
      interval '1 day') AS day
    JOIN working_hours h ON h.practitioner_id = who AND h.branch_id = place AND h.weekday = extract(isodow FROM day)
      AND day >= h.valid_from AND (h.valid_until IS NULL OR day <= h.valid_until)
    CROSS JOIN LATERAL (
      SELECT (day::date + h.starts) AT TIME ZONE b.time_zone AS starts_at,
        (day::date + (h.ends <= h.starts)::int + h.ends) AT TIME ZONE b.time_zone AS ends_at
    ) AS shift
    WHERE b.id = place
  ) AS hours CROSS JOIN (
    SELECT range_agg(tstzrange(starts_at, ends_at)) FILTER (WHERE kind = 'holiday') AS holidays,
      range_agg(tstzrange(starts_at, ends_at)) FILTER (WHERE kind = 'extra') AS extra,
      range_agg(tstzrange(starts_at, ends_at)) FILTER (WHERE kind = 'leave') AS leave
    FROM schedule_exception
    WHERE starts_at < until AND ends_at > since
      AND (practitioner_id = who AND (branch_id IS NULL OR branch_id = place)
        OR practitioner_id IS NULL AND branch_id = place)
  ) AS others
$$;

CREATE FUNCTION wb_free_rooms(visit bigint, place bigint, wanted tstzrange) RETURNS SETOF bigint
LANGUAGE sql STABLE AS $$
  SELECT r.id FROM room r
  WHERE r.branch_id = place AND r.active
    AND (NOT EXISTS (SELECT FROM visit_type_room v WHERE v.visit_type_id = visit)
      OR EXISTS (SELECT FROM visit_type_room v WHERE v.visit_type_id = visit AND v.room_id = r.id))
    AND NOT EXISTS (SELECT FROM booking b WHERE b.blocking AND b.resource = r.id * 4 + 1 AND b.period && wanted
      AND (b.offer_id IS NULL OR EXISTS (SELECT FROM slot_offer o WHERE o.id = b.offer_id AND o.until_at > now())))
  ORDER BY r.id
$$;

CREATE FUNCTION wb_free_equipment(visit bigint, place bigint, wanted tstzrange) RETURNS SETOF bigint
LANGUAGE sql STABLE AS $$
  SELECT e.id FROM equipment e JOIN visit_type_equipment v ON v.equipment_id = e.id AND v.visit_type_id = visit
  WHERE e.branch_id = place AND e.active
    AND NOT EXISTS (SELECT FROM booking b WHERE b.blocking AND b.resource = e.id * 4 + 2 AND b.period && wanted
      AND (b.offer_id IS NULL OR EXISTS (SELECT FROM slot_offer o WHERE o.id = b.offer_id AND o.until_at > now())))
  ORDER BY e.id
$$;

-- The first free times of a kind of visit, looking further and further ahead until there are enough;
-- `past_start`, `past_person` and `past_place` page on.
CREATE FUNCTION wb_free_times(
  visit bigint, length int, places bigint[], people bigint[], wanted_room bigint, whom bigint,
  origin timestamptz, until timestamptz, past_start timestamptz, past_person bigint, past_place bigint,
  most int
) RETURNS TABLE (start_at timestamptz, end_at timestamptz, practitioner_id bigint, branch_id bigint, room_id bigint,
  equipment_id bigint)
LANGUAGE plpgsql STABLE AS $$
DECLARE
  kind visit_type;
  span interval := make_interval(mins => length);
  lead interval;
  tail interval;
  step interval;
  needs_equipment boolean := EXISTS (SELECT FROM visit_type_equipment v WHERE v.visit_type_id = visit);
  chosen_people boolean := EXISTS (SELECT FROM visit_type_practitioner v WHERE v.visit_type_id = visit);
  opens timestamptz := origin;
  closes timestamptz;
  ahead interval := '1 day';
  got int;
BEGIN
  SELECT * INTO STRICT kind FROM visit_type WHERE id = visit;
  lead := make_interval(mins => kind.buffer_before);
  tail := make_interval(mins => kind.buffer_after);
  step := lead + span + tail;
  WHILE opens < until AND most > 0 LOOP
    closes := least(opens + ahead, until);
    IF past_start IS NULL OR closes > past_start THEN
      RETURN QUERY
      SELECT s.at, s.at + span, s.person, s.place, room.id, thing.id
      FROM (
        SELECT w.person, w.place, at
        FROM (
          SELECT p.id AS person, b.id AS place
          FROM practitioner p CROSS JOIN LATERAL (
            SELECT h.branch_id AS id FROM working_hours h
            WHERE h.practitioner_id = p.id AND h.branch_id = ANY(places)
            UNION
            SELECT e.branch_id FROM schedule_exception e
            WHERE e.practitioner_id = p.id AND e.kind = 'extra' AND e.branch_id = ANY(places)
              AND e.starts_at < closes + step AND e.ends_at > opens
          ) AS b
          WHERE p.active AND (people IS NULL OR p.id = ANY(people))
            AND (NOT chosen_people OR EXISTS (
              SELECT FROM visit_type_practitioner v WHERE v.visit_type_id = visit AND v.practitioner_id = p.id))
        ) AS w
        CROSS JOIN LATERAL unnest(
          wb_working(w.person, w.place, opens - lead, closes + span + tail) - coalesce((
            SELECT range_agg(b.period) FROM booking b
            WHERE b.blocking AND b.resource = w.person * 4
              AND b.period && tstzrange(opens - lead, closes + span + tail)
              AND (b.offer_id IS NULL OR EXISTS (
                SELECT FROM slot_offer o WHERE o.id = b.offer_id AND o.until_at > now()))
          ), '{}')) AS open
        CROSS JOIN LATERAL generate_series(
          to_timestamp(ceil(extract(epoch FROM greatest(lower(open) + lead, opens)) / 300) * 300),
          upper(open) - span - tail, step) AS at
        WHERE at < closes AND (past_start IS NULL OR (at, w.person, w.place) > (past_start, past_person, past_place))
          AND (whom IS NULL OR NOT EXISTS (
            SELECT FROM booking b WHERE b.blocking AND b.resource = whom * 4 + 3 AND b.period && tstzrange(at, at + span)))
        ORDER BY at, w.person, w.place
      ) AS s
      LEFT JOIN LATERAL (
        SELECT r AS id FROM wb_free_rooms(visit, s.place, tstzrange(s.at - lead, s.at + span + tail)) AS r
        WHERE wanted_room IS NULL OR r = wanted_room LIMIT 1
      ) AS room ON kind.needs_room
      LEFT JOIN LATERAL (
        SELECT e AS id FROM wb_free_equipment(visit, s.place, tstzrange(s.at - lead, s.at + span + tail)) AS e LIMIT 1
      ) AS thing ON needs_equipment
      WHERE (NOT kind.needs_room OR room.id IS NOT NULL) AND (NOT needs_equipment OR thing.id IS NOT NULL)
      ORDER BY s.at, s.person, s.place
      LIMIT most;
      GET DIAGNOSTICS got = ROW_COUNT;
      most := most - got;
    END IF;
    opens := closes;
    ahead := least(2 * ahead, interval '32 days');
  END LOOP;
END $$;

REVOKE ALL ON FUNCTION wb_book_appointment(), wb_book_offer(), wb_appointment_history() FROM PUBLIC;
"""


PATIENTS_SEE = (
    "DO $do$ BEGIN EXECUTE replace(pg_get_functiondef('wb_policy_holds'::regproc), $a${0}$a$, $b${1}$b$); END $do$"
)
BEFORE = "'Room')"
NOW = "'Room', 'VisitType', 'Equipment', 'WorkingHours', 'ScheduleException', 'SlotOffer')"
"""What of a hospital is nobody's record, as the rule knows it that keeps patients to their own."""
FUNCTIONS = (
    "wb_free_times",
    "wb_free_equipment",
    "wb_free_rooms",
    "wb_working",
    "wb_history_is_kept",
    "wb_appointment_history",
    "wb_appointment_is_final",
    "wb_let_go",
    "wb_book_offer",
    "wb_book_appointment",
    "wb_equipment_of_branch",
    "wb_resources",
    "wb_hold",
    "wb_blocks",
)


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
    op.create_unique_constraint("room_of_branch", "room", ["id", "branch_id"])
    op.create_table(
        "visit_type",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("minutes", sa.Integer(), nullable=False),
        sa.Column("buffer_before", sa.Integer(), nullable=False),
        sa.Column("buffer_after", sa.Integer(), nullable=False),
        sa.Column("needs_room", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "buffer_before BETWEEN 0 AND 120 AND buffer_after BETWEEN 0 AND 120", name="visit_type_buffers"
        ),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 80", name="visit_type_name_length"),
        sa.CheckConstraint("minutes BETWEEN 5 AND 720", name="visit_type_minutes"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "equipment",
        sa.Column("branch_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 80", name="equipment_name_length"),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("branch_id", "name"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_equipment_branch_id"), "equipment", ["branch_id"], unique=False)
    op.create_table(
        "queue_number",
        sa.Column("branch_id", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("last", sa.SmallInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.PrimaryKeyConstraint("branch_id", "day"),
    )
    op.create_table(
        "appointment_series",
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("time_zone", sa.String(), nullable=False),
        sa.Column("starts_on", sa.DateTime(), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_appointment_series_patient_id"), "appointment_series", ["patient_id"], unique=False)
    op.create_table(
        "calendar_feed",
        sa.Column("practitioner_id", sa.BigInteger(), nullable=False),
        sa.Column("token_digest", sa.LargeBinary(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.PrimaryKeyConstraint("practitioner_id"),
        sa.UniqueConstraint("token_digest"),
    )
    op.create_table(
        "schedule_exception",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("practitioner_id", sa.BigInteger(), nullable=True),
        sa.Column("branch_id", sa.BigInteger(), nullable=True),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "CASE kind WHEN 'leave' THEN practitioner_id IS NOT NULL WHEN 'extra' THEN practitioner_id IS NOT NULL AND branch_id IS NOT NULL ELSE practitioner_id IS NULL AND branch_id IS NOT NULL END",
            name="schedule_exception_whose",
        ),
        sa.CheckConstraint("kind IN ('leave', 'holiday', 'extra')", name="schedule_exception_kind"),
        sa.CheckConstraint("ends_at > starts_at", name="schedule_exception_ends_after_start"),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index("schedule_exception_at", "schedule_exception", ["branch_id", "starts_at"], unique=False)
    op.create_index("schedule_exception_of", "schedule_exception", ["practitioner_id", "starts_at"], unique=False)
    op.create_table(
        "slot_offer",
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("branch_id", sa.BigInteger(), nullable=False),
        sa.Column("visit_type_id", sa.BigInteger(), nullable=False),
        sa.Column("practitioner_id", sa.BigInteger(), nullable=False),
        sa.Column("room_id", sa.BigInteger(), nullable=True),
        sa.Column("equipment_ids", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("start_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("buffer_before", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("buffer_after", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("until_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('open', 'taken', 'expired', 'withdrawn')", name="slot_offer_status"),
        sa.CheckConstraint("end_at > start_at", name="slot_offer_ends_after_start"),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["room_id", "branch_id"], ["room.id", "room.branch_id"], name="slot_offer_room_of_branch"
        ),
        sa.ForeignKeyConstraint(
            ["visit_type_id"],
            ["visit_type.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(
        "slot_offer_open", "slot_offer", ["until_at"], unique=False, postgresql_where=sa.text("status = 'open'")
    )
    op.create_table(
        "visit_type_equipment",
        sa.Column("visit_type_id", sa.BigInteger(), nullable=False),
        sa.Column("equipment_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["equipment_id"],
            ["equipment.id"],
        ),
        sa.ForeignKeyConstraint(["visit_type_id"], ["visit_type.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("visit_type_id", "equipment_id"),
    )
    op.create_index(
        op.f("ix_visit_type_equipment_equipment_id"), "visit_type_equipment", ["equipment_id"], unique=False
    )
    op.create_table(
        "visit_type_practitioner",
        sa.Column("visit_type_id", sa.BigInteger(), nullable=False),
        sa.Column("practitioner_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(["visit_type_id"], ["visit_type.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("visit_type_id", "practitioner_id"),
    )
    op.create_index(
        op.f("ix_visit_type_practitioner_practitioner_id"), "visit_type_practitioner", ["practitioner_id"], unique=False
    )
    op.create_table(
        "visit_type_room",
        sa.Column("visit_type_id", sa.BigInteger(), nullable=False),
        sa.Column("room_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["room_id"],
            ["room.id"],
        ),
        sa.ForeignKeyConstraint(["visit_type_id"], ["visit_type.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("visit_type_id", "room_id"),
    )
    op.create_index(op.f("ix_visit_type_room_room_id"), "visit_type_room", ["room_id"], unique=False)
    op.create_table(
        "working_hours",
        sa.Column("practitioner_id", sa.BigInteger(), nullable=False),
        sa.Column("branch_id", sa.BigInteger(), nullable=False),
        sa.Column("weekday", sa.SmallInteger(), nullable=False),
        sa.Column("starts", sa.Time(), nullable=False),
        sa.Column("ends", sa.Time(), nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("valid_until", sa.Date(), nullable=True),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("starts <> ends", name="working_hours_not_empty"),
        sa.CheckConstraint("valid_until IS NULL OR valid_until >= valid_from", name="working_hours_valid"),
        sa.CheckConstraint("weekday BETWEEN 1 AND 7", name="working_hours_weekday"),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_working_hours_branch_id"), "working_hours", ["branch_id"], unique=False)
    op.create_index("working_hours_of", "working_hours", ["practitioner_id", "weekday"], unique=False)
    op.create_table(
        "appointment",
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("branch_id", sa.BigInteger(), nullable=False),
        sa.Column("visit_type_id", sa.BigInteger(), nullable=False),
        sa.Column("practitioner_id", sa.BigInteger(), nullable=False),
        sa.Column("room_id", sa.BigInteger(), nullable=True),
        sa.Column("equipment_ids", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("start_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("buffer_before", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("buffer_after", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("reason", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("walk_in", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("override_reason", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("cancelation_reason", sa.String(), nullable=True),
        sa.Column("series_id", sa.BigInteger(), nullable=True),
        sa.Column("moved_from_id", sa.BigInteger(), nullable=True),
        sa.Column("uid", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("queue_number", sa.SmallInteger(), nullable=True),
        sa.Column("arrived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("checked_in_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("encounter_id", sa.BigInteger(), nullable=True),
        sa.Column("created_by_id", sa.Integer(), nullable=True),
        sa.Column("changed_by_id", sa.Integer(), nullable=True),
        sa.Column("request_key", sa.String(), nullable=True),
        sa.Column("request_digest", sa.LargeBinary(), nullable=True),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "cancelation_reason IN ('pat', 'pat-crs', 'pat-cpp', 'pat-fb', 'pat-lt', 'pat-dec', 'prov', 'prov-pers', 'oth-room', 'maint', 'oth-int', 'oth-weath', 'oth-err', 'other')",
            name="appointment_cancelation_reason",
        ),
        sa.CheckConstraint("cancelation_reason IS NULL OR status IN ('cancelled', 'noshow')", name="appointment_app_4"),
        sa.CheckConstraint("end_at - start_at <= interval '12 hours'", name="appointment_not_too_long"),
        sa.CheckConstraint(
            "status IN ('proposed', 'pending', 'booked', 'arrived', 'checked-in', 'fulfilled', 'cancelled', 'noshow', 'entered-in-error', 'waitlist')",
            name="appointment_status",
        ),
        sa.CheckConstraint(
            "buffer_before BETWEEN 0 AND 120 AND buffer_after BETWEEN 0 AND 120", name="appointment_buffers"
        ),
        sa.CheckConstraint("end_at > start_at", name="appointment_ends_after_start"),
        sa.CheckConstraint("length(reason) <= 500 AND length(override_reason) <= 500", name="appointment_texts"),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["changed_by_id"],
            ["ab_user.id"],
        ),
        sa.ForeignKeyConstraint(
            ["created_by_id"],
            ["ab_user.id"],
        ),
        sa.ForeignKeyConstraint(
            ["encounter_id", "patient_id"],
            ["encounter.id", "encounter.patient_id"],
            name="appointment_encounter_same_patient",
        ),
        sa.ForeignKeyConstraint(
            ["moved_from_id"],
            ["appointment.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["room_id", "branch_id"], ["room.id", "room.branch_id"], name="appointment_room_of_branch"
        ),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["appointment_series.id"],
        ),
        sa.ForeignKeyConstraint(
            ["visit_type_id"],
            ["visit_type.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("created_by_id", "request_key", name="appointment_request_once"),
        sa.UniqueConstraint("encounter_id"),
        sa.UniqueConstraint("fhir_id"),
        sa.UniqueConstraint("moved_from_id"),
    )
    op.create_index(
        "appointment_ends", "appointment", ["end_at"], unique=False, postgresql_where=sa.text("status = 'booked'")
    )
    op.create_index("appointment_of_branch", "appointment", ["branch_id", "start_at"], unique=False)
    op.create_index("appointment_of_patient", "appointment", ["patient_id", "start_at"], unique=False)
    op.create_index("appointment_of_practitioner", "appointment", ["practitioner_id", "start_at"], unique=False)
    op.create_index(op.f("ix_appointment_patient_id"), "appointment", ["patient_id"], unique=False)
    op.create_index(op.f("ix_appointment_room_id"), "appointment", ["room_id"], unique=False)
    op.create_index(op.f("ix_appointment_series_id"), "appointment", ["series_id"], unique=False)
    op.create_index(op.f("ix_appointment_uid"), "appointment", ["uid"], unique=False)
    op.create_index(op.f("ix_appointment_visit_type_id"), "appointment", ["visit_type_id"], unique=False)
    op.create_table(
        "appointment_history",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("appointment_id", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("start_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("practitioner_id", sa.BigInteger(), nullable=False),
        sa.Column("room_id", sa.BigInteger(), nullable=True),
        sa.Column("cancelation_reason", sa.String(), nullable=True),
        sa.Column("changed_by_id", sa.Integer(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appointment_id"],
            ["appointment.id"],
        ),
        sa.ForeignKeyConstraint(
            ["changed_by_id"],
            ["ab_user.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["room_id"],
            ["room.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("appointment_history_of", "appointment_history", ["appointment_id", "id"], unique=False)
    op.create_index(op.f("ix_appointment_history_patient_id"), "appointment_history", ["patient_id"], unique=False)
    op.create_table(
        "booking",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("appointment_id", sa.BigInteger(), nullable=True),
        sa.Column("offer_id", sa.BigInteger(), nullable=True),
        sa.Column("practitioner_id", sa.BigInteger(), nullable=True),
        sa.Column("room_id", sa.BigInteger(), nullable=True),
        sa.Column("equipment_id", sa.BigInteger(), nullable=True),
        sa.Column("patient_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "resource",
            sa.BigInteger(),
            sa.Computed(
                "coalesce(practitioner_id * 4, room_id * 4 + 1, equipment_id * 4 + 2, patient_id * 4 + 3)",
                persisted=True,
            ),
            nullable=False,
        ),
        sa.Column("period", postgresql.TSTZRANGE(), nullable=False),
        sa.Column("blocking", sa.Boolean(), nullable=False),
        postgresql.ExcludeConstraint(
            (sa.column("resource"), "="),
            (sa.column("period"), "&&"),
            where=sa.text("blocking"),
            using="gist",
            name="booking_no_overlap",
        ),
        sa.CheckConstraint("NOT isempty(period)", name="booking_not_empty"),
        sa.CheckConstraint("num_nonnulls(appointment_id, offer_id) = 1", name="booking_one_cause"),
        sa.CheckConstraint(
            "num_nonnulls(practitioner_id, room_id, equipment_id, patient_id) = 1", name="booking_one_resource"
        ),
        sa.ForeignKeyConstraint(
            ["appointment_id"],
            ["appointment.id"],
        ),
        sa.ForeignKeyConstraint(
            ["equipment_id"],
            ["equipment.id"],
        ),
        sa.ForeignKeyConstraint(
            ["offer_id"],
            ["slot_offer.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["room_id"],
            ["room.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("booking_of_appointment", "booking", ["appointment_id"], unique=False)
    op.create_index("booking_of_offer", "booking", ["offer_id"], unique=False)
    op.create_table(
        "waitlist_entry",
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("branch_id", sa.BigInteger(), nullable=False),
        sa.Column("visit_type_id", sa.BigInteger(), nullable=False),
        sa.Column("practitioner_id", sa.BigInteger(), nullable=True),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("earliest_on", sa.Date(), nullable=False),
        sa.Column("latest_on", sa.Date(), nullable=True),
        sa.Column("appointment_id", sa.BigInteger(), nullable=True),
        sa.Column("note", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('waiting', 'booked', 'withdrawn')", name="waitlist_entry_status"),
        sa.CheckConstraint("latest_on IS NULL OR latest_on >= earliest_on", name="waitlist_entry_days"),
        sa.CheckConstraint("priority BETWEEN 1 AND 9", name="waitlist_entry_priority"),
        sa.ForeignKeyConstraint(
            ["appointment_id"],
            ["appointment.id"],
        ),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["visit_type_id"],
            ["visit_type.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_waitlist_entry_branch_id"), "waitlist_entry", ["branch_id"], unique=False)
    op.create_index(op.f("ix_waitlist_entry_patient_id"), "waitlist_entry", ["patient_id"], unique=False)
    op.create_index(
        "waitlist_entry_ranked",
        "waitlist_entry",
        ["visit_type_id", "priority", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'waiting'"),
    )
    op.create_table(
        "slot_offer_invitation",
        sa.Column("offer_id", sa.BigInteger(), nullable=False),
        sa.Column("entry_id", sa.BigInteger(), nullable=False),
        sa.Column("answer", sa.String(), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("answer IN ('accepted', 'declined', 'late')", name="slot_offer_invitation_answer"),
        sa.ForeignKeyConstraint(
            ["entry_id"],
            ["waitlist_entry.id"],
        ),
        sa.ForeignKeyConstraint(
            ["offer_id"],
            ["slot_offer.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
        sa.UniqueConstraint("offer_id", "entry_id", name="slot_offer_invitation_once"),
    )
    op.create_index(op.f("ix_slot_offer_invitation_entry_id"), "slot_offer_invitation", ["entry_id"], unique=False)
    op.create_index(op.f("ix_slot_offer_invitation_offer_id"), "slot_offer_invitation", ["offer_id"], unique=False)
    op.create_index(op.f("ix_slot_offer_invitation_patient_id"), "slot_offer_invitation", ["patient_id"], unique=False)
    op.create_table(
        "communication",
        sa.Column("appointment_id", sa.BigInteger(), nullable=True),
        sa.Column("invitation_id", sa.BigInteger(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("wave", sa.SmallInteger(), nullable=False),
        sa.Column("medium", sa.String(), nullable=False),
        sa.Column("again_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "kind IN ('booked', 'moved', 'cancelled', 'reminder', 'offer', 'late')", name="communication_kind"
        ),
        sa.CheckConstraint("medium IN ('email', 'sms')", name="communication_medium"),
        sa.CheckConstraint("num_nonnulls(appointment_id, invitation_id) = 1", name="communication_about"),
        sa.CheckConstraint("sent_at IS NULL OR failed_at IS NULL", name="communication_sent_or_given_up"),
        sa.ForeignKeyConstraint(
            ["appointment_id"],
            ["appointment.id"],
        ),
        sa.ForeignKeyConstraint(
            ["invitation_id"],
            ["slot_offer_invitation.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "appointment_id",
            "invitation_id",
            "kind",
            "wave",
            "medium",
            name="communication_once",
            postgresql_nulls_not_distinct=True,
        ),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_communication_patient_id"), "communication", ["patient_id"], unique=False)
    op.create_index(
        "communication_open",
        "communication",
        ["again_at"],
        unique=False,
        postgresql_where=sa.text("sent_at IS NULL AND failed_at IS NULL"),
    )
    op.execute(RULES)
    op.execute(PATIENTS_SEE.format(BEFORE, NOW))


def downgrade() -> None:
    op.execute(PATIENTS_SEE.format(NOW, BEFORE))
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function} CASCADE")
    op.drop_index(
        "communication_open",
        table_name="communication",
        postgresql_where=sa.text("sent_at IS NULL AND failed_at IS NULL"),
    )
    op.drop_index(op.f("ix_communication_patient_id"), table_name="communication")
    op.drop_table("communication")
    op.drop_index(op.f("ix_slot_offer_invitation_patient_id"), table_name="slot_offer_invitation")
    op.drop_index(op.f("ix_slot_offer_invitation_offer_id"), table_name="slot_offer_invitation")
    op.drop_index(op.f("ix_slot_offer_invitation_entry_id"), table_name="slot_offer_invitation")
    op.drop_table("slot_offer_invitation")
    op.drop_index("waitlist_entry_ranked", table_name="waitlist_entry", postgresql_where=sa.text("status = 'waiting'"))
    op.drop_index(op.f("ix_waitlist_entry_patient_id"), table_name="waitlist_entry")
    op.drop_index(op.f("ix_waitlist_entry_branch_id"), table_name="waitlist_entry")
    op.drop_table("waitlist_entry")
    op.drop_index("booking_of_offer", table_name="booking")
    op.drop_index("booking_of_appointment", table_name="booking")
    op.drop_table("booking")
    op.drop_index(op.f("ix_appointment_history_patient_id"), table_name="appointment_history")
    op.drop_index("appointment_history_of", table_name="appointment_history")
    op.drop_table("appointment_history")
    op.drop_index(op.f("ix_appointment_visit_type_id"), table_name="appointment")
    op.drop_index(op.f("ix_appointment_uid"), table_name="appointment")
    op.drop_index(op.f("ix_appointment_series_id"), table_name="appointment")
    op.drop_index(op.f("ix_appointment_room_id"), table_name="appointment")
    op.drop_index(op.f("ix_appointment_patient_id"), table_name="appointment")
    op.drop_index("appointment_of_practitioner", table_name="appointment")
    op.drop_index("appointment_of_patient", table_name="appointment")
    op.drop_index("appointment_of_branch", table_name="appointment")
    op.drop_index("appointment_ends", table_name="appointment", postgresql_where=sa.text("status = 'booked'"))
    op.drop_table("appointment")
    op.drop_index("working_hours_of", table_name="working_hours")
    op.drop_index(op.f("ix_working_hours_branch_id"), table_name="working_hours")
    op.drop_table("working_hours")
    op.drop_index(op.f("ix_visit_type_room_room_id"), table_name="visit_type_room")
    op.drop_table("visit_type_room")
    op.drop_index(op.f("ix_visit_type_practitioner_practitioner_id"), table_name="visit_type_practitioner")
    op.drop_table("visit_type_practitioner")
    op.drop_index(op.f("ix_visit_type_equipment_equipment_id"), table_name="visit_type_equipment")
    op.drop_table("visit_type_equipment")
    op.drop_index("slot_offer_open", table_name="slot_offer", postgresql_where=sa.text("status = 'open'"))
    op.drop_table("slot_offer")
    op.drop_index("schedule_exception_of", table_name="schedule_exception")
    op.drop_index("schedule_exception_at", table_name="schedule_exception")
    op.drop_table("schedule_exception")
    op.drop_table("calendar_feed")
    op.drop_index(op.f("ix_appointment_series_patient_id"), table_name="appointment_series")
    op.drop_table("appointment_series")
    op.drop_table("queue_number")
    op.drop_index(op.f("ix_equipment_branch_id"), table_name="equipment")
    op.drop_table("equipment")
    op.drop_table("visit_type")
    op.drop_constraint("room_of_branch", "room", type_="unique")
