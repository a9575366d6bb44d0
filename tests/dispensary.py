"""Medicines and issued prescriptions to test with, and what a reader sees on a printed page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pypdfium2
import zxingcpp

from app import guard
from app.actor import service
from app.services import prescriptions, signing
from models.base import now
from models.organization import Branch
from models.patients import Patient
from models.prescriptions import Medication, MedicationRequest, Prescription
from tests import factories
from tests.factories import Hospital

RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
SENTENCE = "Take 1 tablet by mouth 3 times a day for 7 days."


def medicines() -> tuple[int, int, int]:
    """Two makes of one medicine, and another medicine."""
    with guard.acting_as(service("formulary")), guard.unit_of_work() as session:
        rows = [
            Medication(
                code_system=RXNORM,
                code=code,
                display=display,
                dose_form="Oral Tablet",
                unit="{tbl}",
                ingredient=[{"name": name, "value": strength, "unit": "mg"}],
            )
            for code, display, name, strength in (
                ("90001", "Loratadine 10 MG Oral Tablet", "loratadine", 10),
                ("90002", "Loratadine 10 MG Oral Tablet [Clarity]", "loratadine", 10),
                ("90003", "Cetirizine 10 MG Oral Tablet", "cetirizine", 10),
            )
        ]
        session.add_all(rows)
        session.flush()
        first, second, third = (row.id for row in rows)
        return first, second, third


@dataclass(frozen=True)
class Paper:
    """An issued prescription, by number."""

    id: int
    orders: list[int]
    code: str
    address: str


def issue(hospital: Hospital, medication: int, *, patient: int = 4, draft: bool = False, **more: Any) -> Paper:
    """A paper of one order, written and sealed by the doctor. `today` of the branch is the first day."""
    said = {"quantity": Decimal(21), "repeats": 0, "substitution_allowed": True, "language": "en", "lines": 1, **more}
    with factories.acting(hospital.accounts["doctor"]), guard.unit_of_work() as session:
        branch = session.get_one(Branch, hospital.branches[0])
        today = prescriptions.today_at(branch)
        medicine = session.get_one(Medication, medication)
        paper = Prescription(
            patient_id=hospital.patients[patient],
            practitioner_id=hospital.staff["doctor"],
            branch_id=branch.id,
            language=said["language"],
        )
        session.add(paper)
        session.flush()
        orders = [
            MedicationRequest(
                patient_id=paper.patient_id,
                prescription_id=paper.id,
                medication_id=medicine.id,
                code_system=medicine.code_system,
                code=medicine.code,
                code_display=medicine.display,
                status="active",
                authored_at=now(),
                requester_id=paper.practitioner_id,
                branch_id=branch.id,
                dosage_instruction=[{"text": said.get("text", SENTENCE)}],
                quantity=said["quantity"],
                quantity_unit="{tbl}",
                repeats=said["repeats"],
                valid_from=said.get("valid_from", today),
                valid_until=said.get("valid_until", today + timedelta(days=30)),
                substitution_allowed=said["substitution_allowed"],
            )
            for _ in range(said["lines"])
        ]
        session.add_all(orders)
        session.flush()
        if not draft:
            signing.seal(session, paper)
            paper = prescriptions.show(session, paper.id)
            found = signing.find(session, paper.short_code or "")
            assert found is not None, "a paper that was sealed just now is not genuine"
        return Paper(
            paper.id,
            [order.id for order in orders],
            paper.short_code or "",
            "" if draft else signing.address(found),  # type: ignore[possibly-undefined]
        )


def name(hospital: Hospital, patient: int, family: str, given: str) -> None:
    """Give a patient another name."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        row = session.get_one(Patient, hospital.patients[patient])
        row.family, row.given = family, given


def beside(statement: str, *values: Any) -> None:
    """Run a statement as whoever owns the database and turns its triggers off."""
    import psycopg

    address = guard.engine().url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement.encode(), values)


def pictures(pdf: bytes, dots: int = 150) -> list[Any]:
    """The pages of a PDF as a printer of so many dots an inch shows them."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        return [page.render(scale=dots / 72).to_pil() for page in document]
    finally:
        document.close()


def squares(pdf: bytes) -> list[str]:
    """What a QR reader reads from a printed PDF."""
    return [found.text for picture in pictures(pdf) for found in zxingcpp.read_barcodes(picture)]


def text_of(pdf: bytes) -> str:
    """The words of a PDF."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        return "\n".join(page.get_textpage().get_text_range() for page in document)
    finally:
        document.close()


def yesterday() -> date:
    """A day that is over everywhere."""
    return (now() - timedelta(days=2)).date()
