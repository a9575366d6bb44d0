"""Unusual access: every hour the new lines of the trail are looked through for what is worth a question.

It goes by the number of the batch and not by the time of the line, for lines may come late and batches never do.  For
every person and day that new lines are about, the day is reckoned anew from the trail, so it may be done twice.

It passes beside the gate: it reads millions of lines, and shows none of them to anybody.
"""

from __future__ import annotations

import time
from datetime import timedelta

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.exc import InterfaceError, OperationalError

from app import guard
from app.policy import CARED_FOR_DAYS, Role
from jobs.base import every, job
from models.base import now

log = structlog.get_logger(__name__)

SLICE = 100_000
"""Lines looked through in one transaction, at least a batch."""
BUDGET = 60.0
"""Seconds one run goes on; the next one continues."""
LOOK_BACK = timedelta(days=60)
"""Lines older than this when they are looked through are nobody's question any more."""
MANY = 30
"""So many patients in a day are never unusual."""
TIMES = 3
"""So many times the person's own norm are."""
WORKING_DAYS = 30
"""Days with looks into records that the norm is the median of."""
FEWEST_DAYS = 5
"""Somebody with fewer of them has no norm yet."""
ASKED_FOR_CARE = (Role.DOCTOR, Role.NURSE, Role.PHARMACIST)
"""Who opens records because of care, and so has a part in it."""
CHAIN_WIDE = (Role.RECEPTIONIST, Role.BILLING_CLERK, Role.LAB_TECHNICIAN)
"""Who deals with every patient by nature; one who is both is not asked."""

LOCK = 0x5761726462_02
NEXT = text(
    """
    SELECT max(seq) FROM (
      SELECT seq, sum(n) OVER (ORDER BY seq) - n AS before FROM audit_batch WHERE seq > :from ORDER BY seq LIMIT 20000
    ) following WHERE before < :slice
    """
)
_A_LOOK = """
    e.action = 'R' AND e.outcome = 0 AND e.patient_id IS NOT NULL AND e.user_id IS NOT NULL AND e.roles <> '{Patient}'
"""
"""A record was opened by somebody else than its patient; what a search lists is no look into a record."""
_MORE_THAN_A_NAME = """
    EXISTS (SELECT FROM json_array_elements(e.entities) shown WHERE shown ->> 'type' <> 'Patient')
"""
"""Lists of patients, and those one opened lately, show a row of the registration and nothing else."""
_DAY = "(e.recorded AT TIME ZONE coalesce(b.time_zone, 'UTC'))::date"
_AROUND = """
    e.recorded >= (t.day::timestamp AT TIME ZONE 'UTC') - interval '14 hours'
    AND e.recorded < (t.day::timestamp AT TIME ZONE 'UTC') + interval '36 hours'
"""
"""The day by any clock on earth."""
LOOKED = text(
    f"""
    CREATE TEMP TABLE looked ON COMMIT DROP AS
    WITH touched AS MATERIALIZED (
      SELECT DISTINCT e.user_id, {_DAY} AS day
      FROM audit_event e LEFT JOIN branch b ON b.id = e.branch_id
      WHERE e.batch_seq > :from AND e.batch_seq <= :to AND e.recorded > :since AND {_A_LOOK}
    )
    SELECT e.user_id, e.patient_id, t.day, e.recorded, e.entities,
      e.purpose <> 'BTG' AND e.roles && CAST(:asked AS text[]) AND NOT e.roles && CAST(:chain AS text[]) AS for_care
    FROM touched t JOIN audit_event e ON e.user_id = t.user_id AND {_AROUND} LEFT JOIN branch b ON b.id = e.branch_id
    WHERE e.recorded > :since AND e.batch_seq <= :to AND {_DAY} = t.day AND {_A_LOOK} AND {_MORE_THAN_A_NAME}
    """  # noqa: S608
)
BY_INDEX = text("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off")
"""A person's day is looked up by person and time: a plan that reads months of the trail for one hour would never do."""
AS_USUAL = text("SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET LOCAL enable_seqscan = on")
COUNTED = text(
    """
    INSERT INTO unusual_day AS was (user_id, day, patients)
    SELECT user_id, day, count(DISTINCT patient_id) FROM looked WHERE user_id IN (SELECT id FROM ab_user)
    GROUP BY user_id, day
    ON CONFLICT (user_id, day) DO UPDATE SET patients = EXCLUDED.patients WHERE was.patients <> EXCLUDED.patients
    """
)
FIND = text(
    """
    INSERT INTO unusual_access AS was
      (user_id, patient_id, day, reason, lines, first_at, last_at, seen, patients, usual)
    WITH looks AS MATERIALIZED (
      SELECT user_id, patient_id, day, count(*) AS lines, min(recorded) AS first_at, max(recorded) AS last_at,
        min(recorded) FILTER (WHERE for_care) AS care_from, max(recorded) FILTER (WHERE for_care) AS care_until
      FROM looked GROUP BY user_id, patient_id, day
    ), readers AS MATERIALIZED (
      SELECT u.id AS user_id, pr.id AS practitioner_id,
        array_remove(ARRAY[wb_fold(btrim(u.last_name)), wb_fold(btrim(pr.family))], '') AS families,
        array(SELECT pr.home_branch_id UNION SELECT branch_id FROM practitioner_branch f
              WHERE f.practitioner_id = pr.id) AS branches
      FROM ab_user u LEFT JOIN practitioner pr ON pr.user_id = u.id
      WHERE u.id IN (SELECT user_id FROM looks)
    ), days AS (
      SELECT user_id, day, count(*) AS patients, sum(lines) AS lines, min(first_at) AS first_at,
        max(last_at) AS last_at
      FROM looks GROUP BY user_id, day HAVING count(*) > :many
    ), found AS (
      SELECT l.user_id, l.patient_id, l.day, why.reason, l.lines, l.first_at, l.last_at,
        NULL::bigint AS patients, NULL::float AS usual
      FROM looks l JOIN readers r USING (user_id) JOIN patient p ON p.id = l.patient_id
      CROSS JOIN LATERAL (VALUES
        ('own', p.user_id = l.user_id),
        ('family', p.user_id IS DISTINCT FROM l.user_id
          AND r.families && ARRAY[wb_fold(btrim(p.family)), wb_fold(btrim(p.second_family))]),
        ('confidential', p.confidential AND p.user_id IS DISTINCT FROM l.user_id),
        ('no-care', l.care_from IS NOT NULL AND p.user_id IS DISTINCT FROM l.user_id
          AND NOT (p.registered_at_id = ANY(r.branches)
            AND p.created_at BETWEEN l.care_from - :days AND l.care_until + :days)
          AND NOT EXISTS (
            SELECT FROM encounter v WHERE v.patient_id = l.patient_id
              AND v.status NOT IN ('cancelled', 'entered-in-error')
              AND (v.branch_id = ANY(r.branches) OR v.practitioner_id = r.practitioner_id)
              AND coalesce(v.started_at, v.created_at) <= l.care_until + :days
              AND coalesce(v.ended_at, 'infinity') >= l.care_from - :days))
      ) AS why (reason, holds)
      WHERE why.holds
      UNION ALL
      SELECT d.user_id, NULL, d.day, 'volume', d.lines, d.first_at, d.last_at, d.patients, norm.usual
      FROM days d CROSS JOIN LATERAL (
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY patients) AS usual, count(*) AS days FROM (
          SELECT k.patients FROM unusual_day k WHERE k.user_id = d.user_id AND k.day < d.day
          ORDER BY k.day DESC LIMIT :working_days
        ) working
      ) norm
      WHERE norm.days >= :fewest_days AND d.patients > :times * norm.usual
    )
    SELECT f.user_id, f.patient_id, f.day, f.reason, f.lines, f.first_at, f.last_at, kinds.seen, f.patients, f.usual
    FROM found f CROSS JOIN LATERAL (
      SELECT coalesce(jsonb_object_agg(type, shown), '{}') AS seen FROM (
        SELECT entity ->> 'type' AS type, count(DISTINCT shown.id) AS shown
        FROM looked k CROSS JOIN LATERAL json_array_elements(k.entities) entity
        CROSS JOIN LATERAL json_array_elements_text(coalesce(entity -> 'ids', '[]')) shown (id)
        WHERE k.user_id = f.user_id AND k.day = f.day AND (f.patient_id IS NULL OR k.patient_id = f.patient_id)
        GROUP BY 1
      ) counted
    ) kinds
    ON CONFLICT ON CONSTRAINT unusual_access_once DO UPDATE
    SET lines = EXCLUDED.lines, first_at = EXCLUDED.first_at, last_at = EXCLUDED.last_at, seen = EXCLUDED.seen,
      patients = EXCLUDED.patients, usual = EXCLUDED.usual
    WHERE (was.lines, was.first_at, was.last_at) IS DISTINCT FROM (EXCLUDED.lines, EXCLUDED.first_at, EXCLUDED.last_at)
    """
)
"""What was found is reckoned anew as the day goes on; what somebody has said of it stays as it was said."""


@every(seconds=3600)
@job(queue="checks", retry=None, timeout=600)
def find() -> None:
    """Look through the lines that have come since the last time. One at a time; it may be ended anywhere."""
    until = time.monotonic() + BUDGET
    try:
        while time.monotonic() < until:
            with guard.engine().begin() as database:
                if not look_through(database):
                    return
    except (OperationalError, InterfaceError) as error:
        log.warning("unusual.database_away", error=type(error).__name__)


def look_through(database: Connection) -> bool:
    """Look through the next lines, within the caller's transaction; gives whether there were any."""
    if not database.execute(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK}).scalar_one():
        return False
    begun = database.execute(text("SELECT batch FROM unusual_scan WHERE id = 1")).scalar_one()
    following = database.execute(NEXT, {"from": begun, "slice": SLICE}).scalar_one()
    if following is not None:
        window = {"from": begun, "to": following, "since": now() - LOOK_BACK}
        database.execute(BY_INDEX)
        database.execute(LOOKED, {**window, "asked": list(ASKED_FOR_CARE), "chain": list(CHAIN_WIDE)})
        database.execute(AS_USUAL)
        database.execute(text("CREATE INDEX ON looked (user_id, day)"))
        database.execute(text("ANALYZE looked"))
        database.execute(COUNTED)
        database.execute(
            FIND,
            {
                "many": MANY,
                "times": TIMES,
                "working_days": WORKING_DAYS,
                "fewest_days": FEWEST_DAYS,
                "days": timedelta(days=CARED_FOR_DAYS),
            },
        )
        database.execute(text("DROP TABLE looked"))
    moved = text("UPDATE unusual_scan SET batch = :batch, scanned_at = now() WHERE id = 1")
    database.execute(moved, {"batch": begun if following is None else following})
    return following is not None


__all__ = ["find"]
