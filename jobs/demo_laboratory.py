"""The demo's laboratory: a day of orders, at every stage between the doctor and the result, made by its people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.services import lab
from jobs.demo_notes import acting
from models.lab import LabPanel, LabTest, ServiceRequest
from models.patients import Patient

RENAL: Final = {"2823-3": "4.3", "2951-2": "140", "14682-9": "81", "22664-7": "5.2"}
BLOOD: Final = {"718-7": "112", "789-8": "4.1", "4544-3": "0.36", "777-3": "402", "6690-2": "11.8"}
LIPIDS: Final = {"14647-2": "5.9", "14927-8": "2.4", "14646-4": "1.1", "39469-2": "3.7"}
STAGES: Final = ("ordered", "collected", "received", "entered", "verified", "released")


def write(session: Session, patients: Sequence[Patient]) -> int:
    """Order, take, measure and release in the transaction under way; gives how many orders there are."""
    session.flush()
    tests = {test.code: test for test in session.scalars(select(LabTest))}
    panels = {panel.code: panel.id for panel in session.scalars(select(LabPanel))}
    wanted: list[tuple[int, str, str, dict[str, str], str]] = [
        (0, "24331-1", "released", LIPIDS, "routine"),
        (1, "2823-3", "released", {"2823-3": "6.9"}, "stat"),
        (2, "22664-7", "entered", {"22664-7": "7.9"}, "routine"),
        (3, "57021-8", "entered", BLOOD, "urgent"),
        (4, "2951-2", "verified", {"2951-2": "138"}, "routine"),
        (5, "14682-9", "received", {}, "routine"),
        (6, "57021-8", "collected", {}, "asap"),
        (7, "2823-3", "ordered", {}, "routine"),
        (8, "24331-1", "ordered", {}, "urgent"),
    ]
    made: list[tuple[ServiceRequest, str, dict[str, str]]] = []
    with acting(session, "doctor"):
        for place, code, stage, values, priority in wanted:
            if place < len(patients) and (code in panels or code in tests):
                order = lab.order(
                    session,
                    patient_id=patients[place].id,
                    panel_id=panels.get(code),
                    test_id=None if code in panels else tests[code].id,
                    priority=priority,
                )
                made.append((order, stage, values))
    at = STAGES.index
    with acting(session, "nurse"):
        for order, stage, _ in made:
            if at(stage) >= at("collected"):
                lab.collect(session, [order.id])
    results = []
    with acting(session, "lab"):
        for order, stage, values in made:
            if at(stage) >= at("received"):
                lab.receive(session, lab.labelled(session, [order.specimen_id or 0])[0].accession)
            of_order = {test.code: test.id for test in lab.tests_of(session, order)}
            for code, value in values.items():
                if code in of_order:
                    results.append((order, stage, lab.enter(session, order.id, of_order[code], value)))
    with acting(session, "lab2"):
        for _, stage, result in results:
            if at(stage) >= at("verified"):
                lab.verify(session, result.id, despite="Looked at the blood film as well." if result.held else "")
        for order, stage, _ in made:
            waiting = any(of is order and result.released_at is None for of, _, result in results)
            if stage == "released" and waiting:
                lab.release(session, order.id)
    return len(made)
