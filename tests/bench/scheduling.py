"""The figures of scheduling: bookings under contention, and the search for a free time in a busy chain."""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from models.base import now
from tests.bench.house import House, Web, open_web
from tests.bench.rounds import percentile

DOCTORS = 50
ROOMS = 60
DAYS = 91
LOAD = 0.7
CLIENTS = 16

MADE = """
INSERT INTO practitioner (family, given, prefix, qualification, identifier, telecom, active, home_branch_id, fhir_id,
  version, created_at, updated_at)
SELECT 'Busy ' || n, '', 'Dr', '', '[]', '[]', true, n % {branches} + 1, gen_random_uuid(), 1, now(), now()
FROM generate_series(1, {doctors}) AS n;
INSERT INTO room (branch_id, name, capacity, active, fhir_id, version, created_at, updated_at)
SELECT n % {branches} + 1, 'Busy ' || n, 1, true, gen_random_uuid(), 1, now(), now()
FROM generate_series(1, {rooms}) AS n;
INSERT INTO visit_type (name, minutes, buffer_before, buffer_after, needs_room, active, fhir_id, version, created_at,
  updated_at)
VALUES ('Bench, 20 minutes', 20, 0, 0, true, true, gen_random_uuid(), 1, now(), now()),
  ('Bench, 2 hours', 120, 0, 10, true, true, gen_random_uuid(), 1, now(), now());
INSERT INTO working_hours (practitioner_id, branch_id, weekday, starts, ends, valid_from, fhir_id, version, created_at,
  updated_at)
SELECT id, home_branch_id, w, '09:00', '17:00', '2020-01-01', gen_random_uuid(), 1, now(), now()
FROM practitioner, generate_series(1, 5) AS w WHERE family LIKE 'Busy %';
INSERT INTO appointment (status, branch_id, visit_type_id, practitioner_id, room_id, equipment_ids, start_at, end_at,
  patient_id, uid, fhir_id, version, created_at, updated_at)
SELECT 'booked', s.branch, (SELECT min(id) FROM visit_type WHERE name LIKE 'Bench%'), s.doctor,
  r.id, '{{}}', s.start, s.start + interval '20 minutes', s.patient, gen_random_uuid(), gen_random_uuid(), 1, now(), now()
FROM (
  SELECT p.id AS doctor, p.home_branch_id AS branch, d + time '09:00' + q * interval '20 minutes' AS start,
    row_number() OVER (PARTITION BY d, q, p.home_branch_id ORDER BY random()) AS nth,
    (row_number() OVER (PARTITION BY d, q ORDER BY random()) + q * 60) % {patients} + 1 AS patient
  FROM practitioner p, generate_series(current_date + 1, current_date + {days}, interval '1 day') AS d,
    generate_series(0, 23) AS q
  WHERE p.family LIKE 'Busy %' AND extract(isodow FROM d) < 6 AND random() < {load}
) AS s JOIN (
  SELECT id, branch_id, row_number() OVER (PARTITION BY branch_id ORDER BY id) AS nth FROM room WHERE name LIKE 'Busy %'
) AS r ON r.branch_id = s.branch AND r.nth = s.nth
"""


def made(house: House, database: str, patients: int) -> int:
    """Fifty doctors, sixty rooms and three months of their visits; gives how many visits."""
    with house.connect(database) as connection:
        (branches,) = connection.execute("SELECT count(*) FROM branch").fetchone() or (1,)
        statement = MADE.format(
            branches=branches, doctors=DOCTORS, rooms=ROOMS, days=DAYS, load=LOAD, patients=min(patients, 5000)
        )
        for part in statement.split(";\n"):
            count = connection.execute(part.encode()).rowcount
    with house.connect(database) as connection:
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")
    return count


def asked(web: Web, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any, float]:
    """One request on a connection of its own thread: status, answer, seconds."""
    if not hasattr(_mine, "connection"):
        _mine.connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
    headers = {**web.headers(rest=True), "Content-Type": "application/json"}
    begun = time.perf_counter()
    _mine.connection.request("GET" if body is None else "POST", path, json.dumps(body) if body else None, headers)
    answer = _mine.connection.getresponse()
    told = json.loads(answer.read())
    return answer.status, told, time.perf_counter() - begun


_mine = threading.local()


def searched(web: Web, questions: dict[str, str], turns: int) -> dict[str, list[float]]:
    """How long the search for a free time takes, by kind of question, taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in questions}
    for _ in range(turns):
        for name, query in questions.items():
            status, told, seconds = asked(web, f"/api/v1/appointment/free?{query}")
            assert status == 200, told
            taken[name].append(seconds)
    return taken


def crowded(web: Web, house: House, database: str, seconds: float) -> tuple[Counter[int], float]:
    """Sixteen desks that all book the next free twenty minutes of the same five doctors, and what they are answered."""
    with house.connect(database) as connection:
        doctors = [
            row[0]
            for row in connection.execute(
                "SELECT id FROM practitioner WHERE family LIKE 'Busy %' AND home_branch_id = 1 ORDER BY id LIMIT 5"
            ).fetchall()
        ]
        (kind,) = connection.execute("SELECT min(id) FROM visit_type WHERE name LIKE 'Bench%'").fetchone() or (0,)
        patients = [row[0] for row in connection.execute("SELECT id FROM patient ORDER BY id LIMIT 5000").fetchall()]
    monday = now().date() + timedelta(days=400 - (now().date() + timedelta(days=400)).weekday())
    first = datetime(monday.year, monday.month, monday.day, 9, tzinfo=UTC)
    times = [first + timedelta(days=day, minutes=20 * q) for day in range(5) for q in range(20)]
    found, lock, over = Counter[int](), threading.Lock(), time.monotonic() + seconds

    def desk(nth: int) -> None:
        turn = 0
        while time.monotonic() < over:
            turn += 1
            status, _, _ = asked(
                web,
                "/api/v1/appointment/",
                {
                    "patient_id": patients[(nth * 300 + turn) % len(patients)],
                    "practitioner_id": doctors[turn % len(doctors)],
                    "visit_type_id": kind,
                    "branch_id": 1,
                    "start": times[turn // len(doctors) % len(times)].isoformat(),
                },
            )
            with lock:
                found[status] += 1

    begun = time.monotonic()
    desks = [threading.Thread(target=desk, args=(nth,)) for nth in range(CLIENTS)]
    for each in desks:
        each.start()
    for each in desks:
        each.join()
    return found, time.monotonic() - begun


def measure(house: House, database: str, patients: int, quick: bool) -> list[str]:
    """The report's lines."""
    visits = made(house, database, patients)
    with house.connect(database) as connection:
        short, long = (
            connection.execute("SELECT id FROM visit_type WHERE name = %s", [name]).fetchone() or (0,)
            for name in ("Bench, 20 minutes", "Bench, 2 hours")
        )
        (doctor,) = connection.execute("SELECT min(id) FROM practitioner WHERE family LIKE 'Busy %'").fetchone() or (0,)
    questions = {
        "20 minutes, anybody anywhere": f"visit_type_id={short[0]}",
        "20 minutes, one branch": f"visit_type_id={short[0]}&branch_id=1",
        "20 minutes, one doctor": f"visit_type_id={short[0]}&practitioner_id={doctor}",
        "20 minutes, a patient's own visits kept free": f"visit_type_id={short[0]}&patient_id=7",
        "2 hours, anybody anywhere": f"visit_type_id={long[0]}",
        "8 hours, which there is nowhere before the last day": f"visit_type_id={short[0]}&minutes=470",
    }
    with open_web(house, database) as web:
        searched(web, questions, 3)
        taken = searched(web, questions, 10 if quick else 60)
        answers, elapsed = crowded(web, house, database, 3 if quick else 15)
    lines = ["", f"### Finding a time: {DOCTORS} doctors, {ROOMS} rooms, {visits:,} visits in three months", ""]
    lines += ["| asked for, over HTTP, 1 client | p50 ms | p95 |", "|---|---|---|"]
    for name, seconds in taken.items():
        lines.append(f"| {name} | {statistics.median(seconds) * 1000:.1f} | {percentile(seconds, 0.95):.1f} |")
    booked, refused = answers[201], answers[409]
    lines += [
        "",
        f"{CLIENTS} desks at once on the same five doctors: {booked / elapsed:.0f} bookings and {refused / elapsed:.0f} "
        f"refusals with three alternatives each a second; {sum(answers.values()) - booked - refused} other answers.",
    ]
    return lines
