"""Merging records: who may be registered twice, the two side by side, what became of it, and parting them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext

from app import guard
from app.actor import current
from app.errors import NotFound, Refusal, Replaced, Unconfirmed
from app.services import merging, patients
from app.services.words import spoken_phone
from models.base import now
from models.patients import Patient, PatientMerge
from models.prescriptions import MedicationRequest
from models.scheduling import Appointment
from views.base import Page, open_to, words
from views.branches import all_branches, zone_of
from views.errors import answer
from views.patients import untold_reasons
from views.people import GENDERS, SEXES, born, in_short, name_of
from views.speech import spoken_day

FIELDS = {
    "name": lazy_gettext("Name"),
    "name_in_use": lazy_gettext("Wants to be called"),
    "other_names": lazy_gettext("Further names"),
    "birth_date": lazy_gettext("Born"),
    "gender": lazy_gettext("Gender"),
    "sex_for_clinical_use": lazy_gettext("Sex for clinical use"),
    "multiple_birth_order": lazy_gettext("Order of birth of twins"),
    "deceased": lazy_gettext("Living or deceased"),
    "telecom": lazy_gettext("Phone and e-mail"),
    "address": lazy_gettext("Address"),
    "contact": lazy_gettext("Next of kin"),
    "languages": lazy_gettext("Speaks"),
    "marital_status": lazy_gettext("Marital status"),
    "photo": lazy_gettext("Photo"),
}
TABLES = {
    "encounter": lazy_gettext("Visits"),
    "encounter_history": lazy_gettext("Steps of visits"),
    "condition": lazy_gettext("Conditions"),
    "allergy_intolerance": lazy_gettext("Allergies"),
    "observation": lazy_gettext("Measurements and results"),
    "procedure": lazy_gettext("Procedures"),
    "immunization": lazy_gettext("Immunisations"),
    "document_reference": lazy_gettext("Documents"),
    "clinical_note": lazy_gettext("Notes"),
    "diagnostic_report": lazy_gettext("Reports"),
    "specimen": lazy_gettext("Specimens"),
    "observation_history": lazy_gettext("Earlier values of results"),
    "critical_result": lazy_gettext("Critical results"),
    "critical_attempt": lazy_gettext("Calls about critical results"),
    "hl7_message": lazy_gettext("Messages from other systems"),
    "hl7_result": lazy_gettext("Results in messages from other systems"),
    "patient_proposal": lazy_gettext("Proposals of other systems"),
    "service_request": lazy_gettext("Orders of tests, images and referrals"),
    "prescription": lazy_gettext("Prescriptions"),
    "medication_request": lazy_gettext("Medicines"),
    "medication_dispense": lazy_gettext("Medicines handed out"),
    "detected_issue": lazy_gettext("Warnings about medicines"),
    "appointment": lazy_gettext("Appointments"),
    "appointment_history": lazy_gettext("Steps of appointments"),
    "appointment_series": lazy_gettext("Series of appointments"),
    "waitlist_entry": lazy_gettext("Places on the waiting list"),
    "slot_offer_invitation": lazy_gettext("Times offered"),
    "communication": lazy_gettext("Messages"),
    "source_resource": lazy_gettext("Received records"),
    "patient_identifier": lazy_gettext("Numbers"),
}
"""What is in a record, by the table it is kept in."""
WARNINGS = {
    "deceased": lazy_gettext("One of the two has died, and the other one has not."),
    "sex": lazy_gettext("They are not of the same sex."),
    "born": lazy_gettext("They were born more than a year apart."),
    "different": lazy_gettext("Somebody looked at both before, and said that they are two people."),
}


def said(patient: Patient, field: str) -> str:
    """What a record says of a person in a field, in words."""
    if field == "name":
        return name_of(patient)
    if field == "birth_date":
        return born(patient)
    if field == "gender":
        return str(GENDERS.get(patient.gender, patient.gender))
    if field == "sex_for_clinical_use":
        return str(SEXES.get(patient.sex_for_clinical_use, patient.sex_for_clinical_use))
    if field == "deceased":
        if not patient.deceased:
            return str(gettext("Living"))
        died = patient.deceased_at
        return str(gettext("Died %(day)s", day=spoken_day(died.date())) if died else gettext("Deceased"))
    if field == "telecom":
        return ", ".join(_reached(point) for point in patient.telecom or []) or "—"
    if field == "address":
        return "; ".join(filter(None, map(_address, patient.address or []))) or "—"
    if field in ("contact", "other_names"):
        return "; ".join(filter(None, (_person(one) for one in getattr(patient, field) or []))) or "—"
    if field == "photo":
        return str(gettext("Photo")) if patient.photo else "—"
    return str(words(getattr(patient, field)))


def _reached(point: dict[str, Any]) -> str:
    value = str(point.get("value", ""))
    return spoken_phone(value) if point.get("system") == "phone" else value


def _address(place: dict[str, Any]) -> str:
    parts = [*(place.get("line") or []), place.get("postalCode"), place.get("city"), place.get("country")]
    return ", ".join(str(part) for part in parts if part)


def _person(one: dict[str, Any]) -> str:
    """A further name, or a next of kin with phone numbers."""
    name = one.get("name") if isinstance(one.get("name"), dict) else one
    assert isinstance(name, dict)
    text = name.get("text") or " ".join([*map(str, name.get("given") or []), str(name.get("family") or "")]).strip()
    numbers = [_reached(point) for point in one.get("telecom") or []]
    return ", ".join(part for part in (str(text), *numbers) if part)


def short(patient: Patient) -> dict[str, Any]:
    """A record as the head of its column."""
    photo = url_for("Finder.photo", patient_id=patient.id) if patient.photo else None
    return {**in_short(patient), "photo_href": photo}


def about(visit: Appointment) -> str:
    """A visit in a line: when by its branch's clock, where, with whom."""
    start = visit.start_at.astimezone(zone_of(visit.branch_id))
    place = all_branches().get(visit.branch_id)
    return f"{spoken_day(start)}, {start:%H:%M}, {place.name if place else ''}, {visit.practitioner}"


def counted(counts: Sequence[merging.Count]) -> list[dict[str, Any]]:
    """The tables in which there is something of either, the most first."""
    rows = [
        {
            "label": str(TABLES.get(one.table, one.table.replace("_", " "))),
            "survivor": one.survivor,
            "loser": one.loser,
            "both": one.survivor + one.loser,
        }
        for one in counts
        if one.stays is None and one.survivor + one.loser
    ]
    return sorted(rows, key=lambda row: (-int(row["loser"]), -int(row["both"]), str(row["label"])))


class Merging(Page):
    """Two records that may be one person's."""

    route_base = "/patients"
    default_view = "merges"

    @expose("/<int:patient_id>/alike/")
    @open_to("create", "PatientMerge")
    def alike(self, patient_id: int) -> str:
        """The records most like one, to compare it with, and a search for another."""
        session = guard.session()
        patient = session.get(Patient, patient_id)
        if patient is None:
            raise NotFound
        if patient.replaced_by_id is not None:
            raise Replaced
        asked = request.args.get("q", "").strip()[:100]
        untold = untold_reasons()
        found = patients.find(session, asked).patients if asked else []
        return self.render(
            "patients/merge_alike.html",
            page_title=gettext("Registered twice?"),
            patient=in_short(patient),
            q=asked,
            candidates=[
                {
                    **in_short(like.patient),
                    "score": round(like.score * 100),
                    "reasons": [gettext(reason) for reason in like.reasons if reason not in untold],
                    "compare_href": compare_href(patient, like.patient),
                }
                for like in merging.candidates(session, patient_id)
            ],
            found=[
                {**in_short(one), "compare_href": compare_href(patient, one)} for one in found if one.id != patient_id
            ],
        )

    @expose("/<int:patient_id>/merge/<int:other_id>/", methods=["GET", "POST"])
    @open_to("create", "PatientMerge")
    def compare(self, patient_id: int, other_id: int) -> Any:
        """Both side by side, what merging them comes to; and, when it is confirmed, the merge."""
        if request.method != "POST":
            return self._page(patient_id, other_id)
        if request.form.get("sure") != "1":
            sentence = gettext("Tick that the two are one person, at the end of the page.")
            return self._page(patient_id, other_id, sentence=sentence, field="sure"), 422
        try:
            with guard.unit_of_work() as session:
                made = merging.merge(
                    session,
                    patient_id,
                    other_id,
                    reason=request.form.get("reason", ""),
                    taken=[name for name in merging.FIELDS if request.form.get(f"of_{name}") == "loser"],
                    counts=request.form.get("counts", ""),
                    confirmed=request.form.getlist("confirmed"),
                )
        except (NotFound, Replaced):
            raise
        except Refusal as refusal:
            return self._page(patient_id, other_id, refusal=refusal), refusal.status
        flash(gettext("The two records are one now."), "success")
        return redirect(url_for("Merging.merged", merge_id=made.id))

    def _page(
        self,
        patient_id: int,
        other_id: int,
        *,
        refusal: Refusal | None = None,
        sentence: str | None = None,
        field: str | None = None,
    ) -> str:
        return self.render(
            "patients/merge.html",
            page_title=gettext("One person?"),
            **comparison(patient_id, other_id, refusal=refusal, sentence=sentence, field=field),
        )

    @expose("/merges/")
    @open_to("read", "PatientMerge")
    def merges(self) -> str:
        """What was merged, the newest first."""
        return self.render(
            "patients/merges.html",
            page_title=gettext("Merged records"),
            merges=[told(made) for made in merging.merges(guard.session())],
        )

    @expose("/merges/<int:merge_id>/")
    @open_to("read", "PatientMerge")
    def merged(self, merge_id: int) -> str:
        """One merge: what moved, and a way to undo it."""
        return self._merged(merge_id)

    @expose("/merges/<int:merge_id>/undo", methods=["POST"])
    @open_to("update", "PatientMerge")
    def undo(self, merge_id: int) -> Any:
        """Part the two again."""
        try:
            with guard.unit_of_work() as session:
                merging.undo(session, merge_id, reason=request.form.get("reason", ""))
        except NotFound:
            raise
        except Refusal as refusal:
            return self._merged(merge_id, gettext(str(refusal))), refusal.status
        flash(gettext("They are two records again."), "success")
        return redirect(url_for("Merging.merged", merge_id=merge_id))

    def _merged(self, merge_id: int, refusal: str | None = None) -> str:
        session = guard.session()
        made = merging.opened(session, merge_id)
        moved = merging.moved(session, merge_id)
        rows = [
            {"label": str(TABLES[table]), "count": count, "followed": followed}
            for table, (count, followed) in moved.items()
            if table in TABLES and not (made.undone_at and table == "patient_identifier")  # those were taken away
        ]
        return self.render(
            "patients/merged.html",
            page_title=gettext("Merged records"),
            merge=told(made),
            rows=sorted(rows, key=lambda row: (-int(str(row["count"])), str(row["label"]))),
            followed=sum(followed for _, followed in moved.values()),
            taken=[str(FIELDS[name]) for name in merging.taken_over(session, merge_id)],
            refusal=refusal,
            reason=request.form.get("reason", ""),
        )


def comparison(
    patient_id: int,
    other_id: int,
    *,
    refusal: Refusal | None = None,
    sentence: str | None = None,
    field: str | None = None,
    href: Callable[[Patient, Patient], str] | None = None,
) -> dict[str, Any]:
    """Two records side by side, for the page that asks whether they are one; `href` leads to the same two swapped."""
    looked = merging.preview(guard.session(), patient_id, other_id)
    href = href or compare_href
    survivor, loser = looked.survivor, looked.loser
    sent = request.form
    chosen = {
        f.name: sent.get(f"of_{f.name}", "survivor") if sent else "loser" if f.of_loser else "survivor"
        for f in looked.fields
    }
    better = merging.survivor_of(survivor, loser)
    return {
        "survivor": short(survivor),
        "loser": short(loser),
        "better_href": href(loser, survivor) if better.id == loser.id else None,
        "swap_href": href(loser, survivor),
        "fields": [
            {
                "name": f.name,
                "label": FIELDS[f.name],
                "differs": f.differs,
                "shown": f.shown,
                "survivor": said(survivor, f.name),
                "loser": said(loser, f.name),
                "chosen": chosen[f.name],
            }
            for f in looked.fields
            if f.differs or f.name in ("name", "birth_date", "gender")
        ],
        "allergies": _sides(looked.allergies, survivor, loser, lambda row: row.code_display),
        "orders": _sides(looked.orders, survivor, loser, _order),
        "counts": counted(looked.counts),
        "total": sum(one.loser for one in looked.counts if one.stays is None),
        "warnings": [{"name": name, "text": WARNINGS[name]} for name in looked.warnings],
        "unconfirmed": refusal.warnings if isinstance(refusal, Unconfirmed) else (),
        "clashes": [(about(a), about(b)) for a, b in looked.clashes],
        "account": looked.account,
        "digest": looked.digest,
        "days": merging.UNDONE_WITHIN.days,
        "sent": sent,
        "confirmed": sent.getlist("confirmed"),
        "refusal": sentence or (gettext(str(refusal)) if refusal else None),
        "field": field or (refusal.field if refusal else None),
    }


def compare_href(survivor: Patient, loser: Patient) -> str:
    """Where two are looked at side by side, the one that stays named first."""
    return url_for("Merging.compare", patient_id=survivor.id, other_id=loser.id)


def told(made: PatientMerge) -> dict[str, Any]:
    """A merge in words."""
    return {
        "id": made.id,
        "href": url_for("Merging.merged", merge_id=made.id),
        "survivor": in_short(made.survivor),
        "loser": in_short(made.loser),
        "at": words(made.merged_at),
        "by": _account(made.merged_by),
        "reason": made.reason,
        "until": words(made.undo_until),
        "undone_at": words(made.undone_at) if made.undone_at else None,
        "undone_by": _account(made.undone_by),
        "undone_reason": made.undone_reason,
        "open": made.undone_at is None and made.undo_until > now() and current().may("update", "PatientMerge"),
        "over": made.undone_at is None and made.undo_until <= now(),
    }


def _account(user: Any) -> str:
    return f"{user.first_name} {user.last_name}" if user is not None else str(gettext("Wardbook itself"))


def _order(row: Any) -> str:
    kind = gettext("medicine") if isinstance(row, MedicationRequest) else gettext("test, image or referral")
    return f"{row.code_display} ({kind})"


def _sides(found: Any, survivor: Patient, loser: Patient, word: Any) -> dict[str, list[str]] | None:
    """What both records have of something; None where the actor is not shown it."""
    if found is None:
        return None
    return {"survivor": [word(row) for row in found[survivor.id]], "loser": [word(row) for row in found[loser.id]]}


def to_survivor(error: Replaced) -> Any:
    """Whoever opens a page of a record that was merged comes to that page of the record that took its place."""
    guard.session.rollback()
    old = (request.view_args or {}).get("patient_id")
    machine = request.path.startswith("/api/") or request.path.endswith(".json")
    if request.method == "GET" and old is not None and not machine and current().may("read", "Patient"):
        session = guard.session()
        before = session.get(Patient, old)
        after = patients.standing(session, [before]) if before is not None else []
        if before is not None and after and after[0].id != before.id:
            text = gettext("%(number)s is an old number of this patient: two records were merged.", number=before.mrn)
            flash(text, "info")
            arguments = {**(request.view_args or {}), **request.args.to_dict(), "patient_id": after[0].id}
            return redirect(url_for(str(request.endpoint), **arguments))
        if not after:
            return answer(NotFound())
    return answer(error)


def register(builder: Any) -> None:
    """Merging."""
    builder.add_view_no_menu(Merging)
    builder.app.register_error_handler(Replaced, to_survivor)
