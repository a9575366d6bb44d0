"""What happens by itself to patients' records: those that may be one person's are brought before a person."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import selectinload

from app import guard
from app.events import PatientRegistered, on
from app.services.patients import likely_duplicates
from jobs.base import acting
from models.codes import LinkType
from models.patients import Patient, PatientLink


@on(PatientRegistered)
@acting("duplicates")
def link_duplicates(event: PatientRegistered) -> None:
    """Link a patient to those very like it, for somebody to review. What has been reviewed is left as it is."""
    with guard.unit_of_work() as session:
        patient = session.scalars(
            select(Patient).where(Patient.id == event.patient_id).options(selectinload(Patient.identifiers))
        ).one_or_none()
        if patient is None or not patient.active or patient.temporary:
            return
        alike = likely_duplicates(
            session,
            family=patient.family,
            second_family=patient.second_family,
            given=patient.given,
            birth_date=patient.birth_date if patient.birth_precision == "day" else None,
            phones=[point["value"] for point in patient.telecom if point.get("system") == "phone"],
            identifiers=[(number.system, number.value) for number in patient.identifiers],
            exclude_id=patient.id,
        )
        links = {
            (link.patient_id, link.other_id): link
            for link in session.scalars(
                select(PatientLink).where(or_(PatientLink.patient_id == patient.id, PatientLink.other_id == patient.id))
            )
        }
        for likeness in alike:
            pair = min(patient.id, likeness.patient.id), max(patient.id, likeness.patient.id)
            link = links.get(pair) or links.get(pair[::-1])
            if link is None:
                session.add(
                    PatientLink(
                        patient_id=pair[0],
                        other_id=pair[1],
                        type=LinkType.SEEALSO,
                        score=likeness.score,
                        reasons=list(likeness.reasons),
                    )
                )
            elif link.reviewed_at is None and link.type == LinkType.SEEALSO:
                link.score, link.reasons = likeness.score, list(likeness.reasons)
