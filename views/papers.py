"""What is printed: the head and foot that all papers share, the prescription, and the label of the bag."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from babel.dates import format_date
from flask import make_response, render_template
from flask_appbuilder import expose
from sqlalchemy import select
from sqlalchemy.orm import joinedload
from werkzeug.wrappers import Response

from app import documents, guard
from app.errors import IllegalTransition, NotFound
from app.services import dosage, drug_safety, prescriptions, signing
from app.services.clock import zone
from models.organization import Branch
from models.patients import Patient
from models.prescriptions import MedicationDispense
from views.base import Page, open_to

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "prescription": "Prescription",
        "patient": "Patient",
        "born": "Born",
        "number": "Number",
        "prescriber": "Prescriber",
        "issued": "Issued",
        "quantity": "Quantity",
        "repeats": "Repeats after the first fill",
        "none": "none",
        "valid": "Valid",
        "until": "until",
        "same": "Another make of the same medicine may be given.",
        "only": "This make only: do not replace.",
        "check": "Is it genuine, and how much is left? Scan the code, or type the letters beneath it at:",
        "signed": "Signed electronically",
        "page": "Page",
        "of": "of",
        "handed": "Handed out",
        "digits": "zero one two three four five six seven eight nine point",
    },
    "es": {
        "prescription": "Receta",
        "patient": "Paciente",
        "born": "Fecha de nacimiento",
        "number": "Número",
        "prescriber": "Prescriptor",
        "issued": "Emitida",
        "quantity": "Cantidad",
        "repeats": "Repeticiones tras la primera dispensación",
        "none": "ninguna",
        "valid": "Válida",
        "until": "hasta",
        "same": "Puede sustituirse por otra marca del mismo medicamento.",
        "only": "Solo esta marca: no sustituir.",
        "check": "¿Es auténtica, y cuánto queda? Escanee el código, o escriba las letras de debajo en:",
        "signed": "Firmada electrónicamente",
        "page": "Página",
        "of": "de",
        "handed": "Dispensado",
        "digits": "cero uno dos tres cuatro cinco seis siete ocho nueve coma",
    },
    "pl": {
        "prescription": "Recepta",
        "patient": "Pacjent",
        "born": "Data urodzenia",
        "number": "Numer",
        "prescriber": "Wystawił",
        "issued": "Data wystawienia",
        "quantity": "Ilość",
        "repeats": "Powtórzenia po pierwszej realizacji",
        "none": "brak",
        "valid": "Ważna",
        "until": "do",
        "same": "Można wydać inny preparat tego samego leku.",
        "only": "Tylko ten preparat: nie zamieniać.",
        "check": "Czy jest prawdziwa i ile zostało? Zeskanuj kod albo wpisz litery pod nim na stronie:",
        "signed": "Podpisano elektronicznie",
        "page": "Strona",
        "of": "z",
        "handed": "Wydano",
        "digits": "zero jeden dwa trzy cztery pięć sześć siedem osiem dziewięć przecinek",
    },
    "fr": {
        "prescription": "Ordonnance",
        "patient": "Patient",
        "born": "Date de naissance",
        "number": "Numéro",
        "prescriber": "Prescripteur",
        "issued": "Établie",
        "quantity": "Quantité",
        "repeats": "Renouvellements après la première délivrance",
        "none": "aucun",
        "valid": "Valable",
        "until": "jusqu’au",
        "same": "Une autre marque du même médicament peut être délivrée.",
        "only": "Cette marque seulement : ne pas substituer.",
        "check": "Est-elle authentique, et que reste-t-il ? Scannez le code, ou les lettres dessous à l’adresse :",
        "signed": "Signée électroniquement",
        "page": "Page",
        "of": "sur",
        "handed": "Délivré",
        "digits": "zéro un deux trois quatre cinq six sept huit neuf virgule",
    },
    "de": {
        "prescription": "Rezept",
        "patient": "Patient",
        "born": "Geboren",
        "number": "Nummer",
        "prescriber": "Verordnet von",
        "issued": "Ausgestellt",
        "quantity": "Menge",
        "repeats": "Wiederholungen nach der ersten Abgabe",
        "none": "keine",
        "valid": "Gültig",
        "until": "bis",
        "same": "Ein anderes Präparat mit demselben Wirkstoff darf abgegeben werden.",
        "only": "Nur dieses Präparat: nicht austauschen.",
        "check": "Ist es echt, und wie viel ist noch offen? Code scannen, oder die Buchstaben darunter eintippen auf:",
        "signed": "Elektronisch signiert",
        "page": "Seite",
        "of": "von",
        "handed": "Abgegeben",
        "digits": "null eins zwei drei vier fünf sechs sieben acht neun Komma",
    },
    "ar": {
        "prescription": "وصفة طبية",
        "patient": "المريض",
        "born": "تاريخ الميلاد",
        "number": "الرقم",
        "prescriber": "الطبيب",
        "issued": "تاريخ الإصدار",
        "quantity": "الكمية",
        "repeats": "مرات التكرار بعد الصرف الأول",
        "none": "لا يوجد",
        "valid": "صالحة",
        "until": "حتى",
        "same": "يجوز صرف مستحضر آخر من الدواء نفسه.",
        "only": "هذا المستحضر فقط: لا يستبدل.",
        "check": "للتحقق من صحة الوصفة والكمية المتبقية امسح الرمز، أو اكتب الحروف التي تحته في الصفحة:",
        "signed": "موقعة إلكترونيا",
        "page": "صفحة",
        "of": "من",
        "handed": "صرف",
        "comma": "، ",
        "digits": "صفر واحد اثنان ثلاثة أربعة خمسة ستة سبعة ثمانية تسعة فاصلة",
    },
}
"""What stands on a prescription, in every language a dosage can be said in."""


def printed(template: str, *, language: str, name: str, **context: Any) -> Response:
    """A template of `print/` as a PDF that a browser shows under a name. Raises Unprintable.

    Those that extend `print/_paper.html` may give `heading`, `place`, `page_word` and `of_word`.
    """
    html = render_template(template, language=language, direction=documents.direction(language), **context)
    response = make_response(documents.pdf(html, language=language))
    response.headers["Content-Type"] = "application/pdf"
    response.headers["Content-Disposition"] = f'inline; filename="{name}.pdf"'
    return response


def spelled_out(value: Decimal | None, language: str) -> str:
    """A number digit by digit, so that none is added or changed: 30 is three, zero."""
    *digits, point = WORDS[language]["digits"].split()
    text = drug_safety.plain(value or Decimal(0))
    return WORDS[language].get("comma", ", ").join(point if letter == "." else digits[int(letter)] for letter in text)


def spoken_date(day: date | None, language: str) -> str:
    """A day as the language of the paper writes it."""
    return format_date(day, "long", locale=language) if day else ""


def born_on(patient: Patient, language: str) -> str:
    """The birth date as far as it is known."""
    if patient.birth_date is None:
        return ""
    if patient.birth_precision == "day":
        return spoken_date(patient.birth_date, language)
    return str(patient.birth_date.year) if patient.birth_precision == "year" else f"{patient.birth_date:%Y-%m}"


class PrescriptionPaper(Page):
    """The prescription on paper."""

    route_base = "/prescriptions"
    default_view = "pdf"

    @expose("/<int:prescription_id>/paper.pdf")
    @open_to("read", "MedicationRequest")
    def pdf(self, prescription_id: int) -> Response:
        """The paper with its QR code, in the patient's language. Raises IllegalTransition for a draft."""
        session = guard.session()
        paper = signing.paper_of(session, prescription_id)
        if paper.issued_at is None:
            raise IllegalTransition(signing.DRAFT)
        if not signing.genuine(paper):
            raise IllegalTransition("This prescription is not as it was signed, or its key was revoked.")
        patient = session.get(Patient, paper.patient_id)
        if patient is None:
            raise NotFound
        language = dosage.language_of(paper.language)
        words = WORDS[language]
        return printed(
            "print/prescription.html",
            language=language,
            name=f"prescription-{paper.short_code}",
            words=words,
            heading=words["prescription"],
            place=str(paper.branch),
            page_word=words["page"],
            of_word=words["of"],
            patient=patient.name,
            born=born_on(patient, language),
            mrn=patient.mrn,
            prescriber=str(paper.practitioner),
            issued=spoken_date(paper.issued_at.astimezone(zone(paper.branch.time_zone)).date(), language),
            code=signing.spelled(paper.short_code or ""),
            check_at=f"{signing.place().public_url}/rx/",
            square=documents.qr(signing.address(paper)),
            lines=[
                {
                    "display": order.code_display,
                    "text": " ".join(str(told.get("text", "")) for told in order.dosage_instruction or []),
                    "quantity": dosage.counted(order.quantity or Decimal(0), order.quantity_unit, language),
                    "spelled": spelled_out(order.quantity, language),
                    "repeats": f"{order.repeats} ({spelled_out(Decimal(order.repeats), language)})"
                    if order.repeats
                    else words["none"],
                    "from": spoken_date(order.valid_from, language),
                    "until": spoken_date(order.valid_until, language),
                    "substitution": words["same"] if order.substitution_allowed else words["only"],
                }
                for order in paper.requests
            ],
        )


class DispenseLabel(Page):
    """The label for the bag."""

    route_base = "/pharmacy/fills"
    default_view = "pdf"

    @expose("/<int:dispense_id>/label.pdf")
    @open_to("create", "MedicationDispense")
    def pdf(self, dispense_id: int) -> Response:
        """Whose it is, what is in it and how it is taken, 90 by 60 mm."""
        session = guard.session()
        statement = (
            select(MedicationDispense)
            .where(MedicationDispense.id == dispense_id)
            .options(
                joinedload(MedicationDispense.request),
                joinedload(MedicationDispense.medication),
                joinedload(MedicationDispense.branch),
            )
        )
        fill = session.scalars(statement).one_or_none()
        patient = session.get(Patient, fill.patient_id) if fill else None
        if fill is None or patient is None or fill.request.prescription_id is None:
            raise NotFound
        paper = prescriptions.show(session, fill.request.prescription_id)
        language = dosage.language_of(paper.language)
        branch: Branch = fill.branch or paper.branch
        moment = fill.handed_over_at or fill.prepared_at
        return printed(
            "print/label.html",
            language=language,
            name=f"label-{fill.id}",
            patient=patient.name,
            mrn=patient.mrn,
            medicine=fill.medication.display,
            text=" ".join(str(told.get("text", "")) for told in fill.request.dosage_instruction or []),
            quantity=dosage.counted(fill.quantity, fill.quantity_unit, language),
            place=str(branch),
            day=spoken_date(moment.astimezone(zone(branch.time_zone)).date(), language) if moment else "",
        )


def register(builder: Any) -> None:
    """The papers."""
    for view in (PrescriptionPaper, DispenseLabel):
        builder.add_view_no_menu(view)
