"""What a FHIR R4 resource amounts to in our tables: plain values and named references. Reads and writes nothing.

No sentence raised here carries a value of the resource, only the name of the element that is at fault.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, tzinfo
from decimal import Decimal
from enum import StrEnum
from functools import cache
from html.parser import HTMLParser
from typing import Any

from app.errors import Invalid
from app.services import words
from models.base import Record, now
from models.clinical import (
    AllergyIntolerance,
    Condition,
    DocumentReference,
    Encounter,
    Immunization,
    Observation,
    Procedure,
)
from models.codes import (
    AdministrativeGender,
    AllergyClinicalStatus,
    AllergyCriticality,
    AllergyType,
    AllergyVerificationStatus,
    ConditionClinicalStatus,
    ConditionVerificationStatus,
    DiagnosticReportStatus,
    DocumentReferenceStatus,
    EncounterStatus,
    EventStatus,
    IdentifierUse,
    MedicationRequestStatus,
    ObservationStatus,
    SexForClinicalUse,
)
from models.lab import DiagnosticReport
from models.organization import Organization, Practitioner
from models.patients import Patient
from models.prescriptions import MedicationRequest

Json = dict[str, Any]

LONGEST_CODE = 250
"""Letters of a code or its system; longer ones would not fit an index entry and are no codes."""
NAMELESS = "(no name)"
UNSAID = "(not stated)"
"""Where FHIR lets the code itself be missing."""
PRACTITIONERS = ("Practitioner", "PractitionerRole")
SUBJECTS = ("Patient", "Group", "Device", "Location", "Organization", "Practitioner", "Medication", "Substance")
"""What the subject of some resource may be; only those about a patient belong into a chart."""


# ---- references ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Whom or what an element points at: by address, by a place in the same resource, or by an identifier."""

    element: str
    types: tuple[str, ...]
    """What it may be, the likelier first."""
    address: str = ""
    """As it stands in the resource: urn:uuid:..., Type/id, http://.../Type/id, Type?identifier=..., #contained."""
    identifier: tuple[str, str] | None = None
    display: str = ""

    @property
    def contained(self) -> bool:
        """It points at something inside the same resource."""
        return self.address.startswith("#")

    def keys(self) -> list[tuple[str, str]]:
        """The (type, id) it can mean at its source, without a look at the bundle it came in."""
        if not self.address or self.contained or "?" in self.address:
            return []
        if self.address.startswith("urn:"):
            return [(kind, self.address.rpartition(":")[2]) for kind in self.types]
        parts = self.address.partition("/_history/")[0].split("/")
        if len(parts) >= 2 and parts[-2] in self.types:
            return [(parts[-2], parts[-1])]
        return []

    def search(self) -> tuple[str, str, str] | None:
        """For one by identifier: (type, system, value)."""
        if self.identifier is not None and not self.address:
            return self.types[0], *self.identifier
        kind, question, token = self.address.rpartition("/")[2].partition("?identifier=")
        if not question or kind not in self.types:
            return None
        system, _, value = token.partition("&")[0].rpartition("|")
        return kind, system, value

    @property
    def elsewhere(self) -> bool:
        """It says itself that it points at a type which `types` does not have."""
        if not self.address or self.contained or self.address.startswith("urn:"):
            return False
        if "?" in self.address:
            return self.search() is None
        return not self.keys()


def reference(resource: Json, element: str, *types: str) -> Reference | None:
    """The reference in an element, or in the first of its repetitions; None where there is none."""
    value = resource.get(element)
    found = value[0] if isinstance(value, list) and value else value
    return points_at(found, element, *types)


def points_at(found: Any, element: str, *types: str) -> Reference | None:
    """A FHIR Reference as ours. Raises Invalid where it is none."""
    if not found:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("reference", ""), str):
        raise Invalid(f"{element} is no reference")
    token = found.get("identifier")
    identifier = None
    if isinstance(token, dict) and token.get("value"):
        identifier = str(token.get("system") or ""), str(token["value"])
    address = found.get("reference", "")
    if not address and identifier is None:
        return None
    kind = found.get("type")
    wanted = (kind, *(t for t in types if t != kind)) if kind in types else types
    return Reference(element, wanted, address, identifier, str(found.get("display") or ""))


# ---- the pieces resources are made of --------------------------------------------------------------------------


def rows(resource: Json, element: str) -> list[Json]:
    """The repetitions of an element, each an object. Raises Invalid where they are not."""
    value = resource.get(element) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Invalid(f"{element} is not a list of objects")
    return value


def row(resource: Json, element: str) -> Json:
    """An element that is an object; empty where it is missing. Raises Invalid where it is something else."""
    value = resource.get(element) or {}
    if not isinstance(value, dict):
        raise Invalid(f"{element} is not an object")
    return value


def string(resource: Json, element: str) -> str:
    """An element that is text; empty where it is missing. Raises Invalid where it is something else."""
    value = resource.get(element)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Invalid(f"{element} is not text")
    return value


def truth(resource: Json, element: str, default: bool | None = None) -> Any:
    """An element that is true or false. Raises Invalid where it is something else."""
    value = resource.get(element, default)
    if value is not None and not isinstance(value, bool):
        raise Invalid(f"{element} is neither true nor false")
    return value


def strings(resource: Json, element: str) -> list[str]:
    """The repetitions of an element that is text (a null holds the place of an extension)."""
    value = resource.get(element) or []
    if not isinstance(value, list) or not all(item is None or isinstance(item, str) for item in value):
        raise Invalid(f"{element} is not a list of texts")
    return [item for item in value if item]


def codings(concept: Json, element: str) -> list[Json]:
    """The codings of a CodeableConcept. Raises Invalid for a code that could be none."""
    found = rows(concept, "coding")
    for coding in found:
        if any(len(string(coding, part)) > LONGEST_CODE for part in ("system", "code")):
            raise Invalid(f"{element} has a code of more than {LONGEST_CODE} letters")
    return found


def first_code(concept: Json, element: str) -> str | None:
    """The code of the first coding that has one."""
    return next((coding["code"] for coding in codings(concept, element) if coding.get("code")), None)


def spoken(concept: Json) -> str:
    """What a CodeableConcept says to a reader: its text, or a coding's display, or a code."""
    coding = rows(concept, "coding")
    choices = [string(concept, "text"), *(string(c, "display") for c in coding), *(string(c, "code") for c in coding)]
    return next((choice for choice in choices if choice), "")


def coded(concept: Json, element: str, unsaid: str = "") -> Json:
    """The three columns of `Coded`. Raises Invalid where neither the concept nor `unsaid` says anything."""
    coding = next(iter(codings(concept, element)), {})
    display = spoken(concept) or unsaid
    if not display:
        raise Invalid(f"{element} is missing")
    return {"code_system": coding.get("system"), "code": coding.get("code"), "code_display": display}


def first_concept(resource: Json, element: str) -> Json:
    """The first repetition of a CodeableConcept; empty where there is none."""
    return next(iter(rows(resource, element)), {})


@cache
def _codes(codes: type[StrEnum]) -> dict[str, str]:
    return {code.value: code.value for code in codes}


def one_of(codes: type[StrEnum], value: str | None, element: str, default: StrEnum | None = None) -> Any:
    """A code of a value set. Raises Invalid for another, or for none where there is no default."""
    if not value:
        if default is None:
            raise Invalid(f"{element} is missing")
        return str(default)
    try:
        return _codes(codes)[value]
    except KeyError:
        raise Invalid(f"{element} is not one of the codes it can have") from None


def one_or_none(codes: type[StrEnum], value: str | None, element: str) -> Any:
    """A code of a value set, or None where there is none. Raises Invalid for another."""
    return one_of(codes, value, element) if value else None


PARTIAL = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?\Z")


def day(text: str, element: str) -> tuple[date, str]:
    """The first day of a FHIR date, and how much of it is known. Raises Invalid."""
    match = PARTIAL.match(text)
    if not match:
        raise Invalid(f"{element} is not a date")
    try:
        first = date(int(match[1]), int(match[2] or 1), int(match[3] or 1))
    except ValueError as error:
        raise Invalid(f"{element} is not a date") from error
    return first, "day" if match[3] else "month" if match[2] else "year"


def instant(resource: Json, element: str, zone: tzinfo) -> datetime | None:
    """A FHIR dateTime, aware; a date alone is its first moment in `zone`. Raises Invalid."""
    text = string(resource, element)
    if not text:
        return None
    if PARTIAL.match(text):
        first, _ = day(text, element)
        return datetime(first.year, first.month, first.day, tzinfo=zone)
    try:
        # A leap second (:60) is a FHIR time and no Python time.
        moment = datetime.fromisoformat(f"{text[:17]}59{text[19:]}" if text[17:19] == "60" else text)
        if moment.tzinfo is None or "T" not in text:
            raise Invalid(f"{element} has a time without a time zone")
        moment.timestamp()
    except (ValueError, OverflowError) as error:
        raise Invalid(f"{element} is not a date") from error
    return moment


def when(resource: Json, stem: str, zone: tzinfo) -> tuple[datetime | None, datetime | None]:
    """When something was, from `stem`DateTime, Period, Instant or Timing: beginning, and end where there is one."""
    if period := row(resource, f"{stem}Period"):
        return instant(period, "start", zone) or instant(period, "end", zone), instant(period, "end", zone)
    if timing := row(resource, f"{stem}Timing"):
        first = next(iter(strings(timing, "event")), "")
        return instant({f"{stem}Timing": first}, f"{stem}Timing", zone), None
    for kind in ("DateTime", "Instant"):
        if found := instant(resource, f"{stem}{kind}", zone):
            return found, None
    return None, None


def extension(element: Json, *endings: str) -> Json:
    """The first extension whose URL ends in one of these; empty where there is none."""
    for found in rows(element, "extension"):
        if string(found, "url").endswith(endings):
            return found
    return {}


class _Words(HTMLParser):
    """The text of a narrative, a line for every block."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """A new block is a new line; a cell of a table stands apart from the last."""
        self.silent += tag in ("script", "style")
        self.parts.append(
            "\t" if tag in ("td", "th") else "\n" if tag not in ("b", "i", "a", "span", "em", "strong") else ""
        )

    def handle_endtag(self, tag: str) -> None:
        """Whatever was not to be read has come to its end."""
        self.silent -= tag in ("script", "style") and self.silent > 0

    def handle_data(self, data: str) -> None:
        """Words between the tags."""
        if not self.silent:
            self.parts.append(re.sub(r"\s+", " ", data))


def plain(markup: str) -> str:
    """The words of an XHTML narrative without its tags."""
    reader = _Words()
    reader.feed(markup)
    reader.close()
    lines = (re.sub(r"[ \t]*\t[ \t]*", "\t", line).strip() for line in "".join(reader.parts).splitlines())
    return "\n".join(line for line in lines if line)


# ---- what a resource becomes -----------------------------------------------------------------------------------


@dataclass
class Reading:
    """A resource as columns and references, and what of it no column holds."""

    model: type[Record]
    values: Json
    references: dict[str, Reference] = field(default_factory=dict)
    """Column -> what it points at; `patient_id` is always among them where the table has it."""
    identifiers: list[Json] = field(default_factory=list)
    """For a patient: rows of PatientIdentifier."""
    left: list[str] = field(default_factory=list)
    """Elements only kept as received."""


class NotForTheChart(Exception):
    """A resource of a type that has a table, which says of itself that it is no plain row of it; kept as received."""


@dataclass(frozen=True)
class Shape:
    """How one resource type is read, and which of its elements are read completely."""

    read: Callable[[Json, tzinfo], Reading]
    elements: frozenset[str]


def person_name(name: Json) -> Json:
    """A HumanName as family, second family and given names; the Spanish pair is told apart where it says so itself."""
    family = string(name, "family")
    second = ""
    parts = row(name, "_family")
    father, mother = extension(parts, "humanname-fathers-family"), extension(parts, "humanname-mothers-family")
    if father and mother:
        family, second = string(father, "valueString"), string(mother, "valueString")
    given = " ".join(strings(name, "given"))
    if not family and not given:
        family = string(name, "text")
    return {
        "family": words.line(family, field="name.family"),
        "second_family": words.line(second, field="name.family"),
        "given": words.line(given, field="name.given"),
        "prefix": words.line(" ".join(strings(name, "prefix")), field="name.prefix", longest=100),
    }


def chosen_name(names: list[Json]) -> Json:
    """The name a person is filed under: the official one, or the first that is not a former one."""
    current = [name for name in names if name.get("use") not in ("old", "maiden", "nickname")] or names
    return next((name for name in current if name.get("use") == "official"), current[0] if current else {})


REGIONS = {"usa": "US", "united states": "US", "united states of america": "US", "españa": "ES", "spain": "ES"}


def region(addresses: list[Json]) -> str:
    """The country telephone numbers without a country code are of (ISO 3166): that of the first address, or the US."""
    for address in addresses:
        country = string(address, "country").strip()
        if len(country) == 2 and country.isalpha():
            return country.upper()
        if country.lower() in REGIONS:
            return REGIONS[country.lower()]
    return "US"


def telecom(resource: Json, country: str) -> list[Json]:
    """The ContactPoints of a resource that have a value, telephone numbers in E.164 where they can be."""
    points = []
    for point in rows(resource, "telecom"):
        value = string(point, "value")
        if not value:
            continue
        if point.get("system") in ("phone", "sms", "fax"):
            try:
                value = words.phone(value, country)
            except Invalid:
                value = string(point, "value")
        points.append({**point, "value": value})
    return points


SEX = {"M": SexForClinicalUse.MALE, "F": SexForClinicalUse.FEMALE}


def sex_for_clinical_use(resource: Json) -> str:
    """From HL7's extension of that name, or US Core's birth sex; never guessed from the gender."""
    said = row(extension(resource, "patient-sexParameterForClinicalUse"), "valueCodeableConcept")
    if not said:
        for part in rows(extension(resource, "patient-sexParameterForClinicalUse"), "extension"):
            said = said or row(part, "valueCodeableConcept")
    code = first_code(said, "extension")
    if code in set(SexForClinicalUse):
        return str(code)
    birth = string(extension(resource, "us-core-birthsex"), "valueCode")
    return SEX.get(birth, SexForClinicalUse.UNKNOWN)


def patient_identifiers(resource: Json, today: date) -> list[Json]:
    """Rows of PatientIdentifier, each number once; a number without a system has an empty one."""
    found: dict[tuple[str, str], Json] = {}
    for token in rows(resource, "identifier"):
        value = string(token, "value").strip()
        system = string(token, "system").strip()
        if not value:
            continue
        if len(value) > 100 or len(system) > LONGEST_CODE:
            raise Invalid("identifier is longer than a number can be")
        use = string(token, "use")
        ended = string(row(token, "period"), "end")
        if ended and day(ended[:10], "identifier.period")[0] < today:
            use = IdentifierUse.OLD
        found.setdefault(
            (system, value),
            {
                "system": system,
                "value": value,
                "use": one_of(IdentifierUse, use, "identifier.use", IdentifierUse.SECONDARY),
                "type_code": first_code(row(token, "type"), "identifier.type"),
            },
        )
    return list(found.values())


def patient(resource: Json, zone: tzinfo) -> Reading:
    """Patient -> patient."""
    left: list[str] = []
    names = rows(resource, "name")
    chosen = chosen_name(names)
    values = person_name(chosen)
    unnamed = not (values["family"] or values["given"])
    if unnamed:
        values["family"] = NAMELESS
    if any(string(name, "use") == "usual" for name in names) or any(name.get("use") == "nickname" for name in names):
        called = next((n for n in names if n.get("use") in ("nickname", "usual")), {})
        name_in_use = " ".join(strings(called, "given")[:1]) if called is not chosen else ""
    else:
        name_in_use = ""
    if any(strings(name, "suffix") for name in [chosen]):
        left.append("name.suffix")
    born, precision = None, "day"
    if text := string(resource, "birthDate"):
        born, precision = day(text, "birthDate")
        if born <= date(1850, 1, 1):
            raise Invalid("birthDate is not believable")
    died = instant(resource, "deceasedDateTime", zone)
    order = resource.get("multipleBirthInteger")
    if order is not None and (not isinstance(order, int) or not 1 <= order <= 12):
        raise Invalid("multipleBirthInteger is not believable")
    if truth(resource, "multipleBirthBoolean"):
        left.append("multipleBirthBoolean")
    addresses = rows(resource, "address")
    country = region(addresses)
    spoken_in = sorted(rows(resource, "communication"), key=lambda item: item.get("preferred") is not True)
    languages = [code for item in spoken_in if (code := first_code(row(item, "language"), "communication"))]
    photo = None
    for picture in rows(resource, "photo"):
        if photo is None and string(picture, "data"):
            photo = decoded(picture, "photo")
        else:
            left.append("photo")
    values |= {
        "name_in_use": words.line(name_in_use, field="name"),
        "other_names": [name for name in names if name is not chosen],
        "birth_date": born,
        "birth_precision": precision,
        "gender": one_of(AdministrativeGender, string(resource, "gender"), "gender", AdministrativeGender.UNKNOWN),
        "sex_for_clinical_use": sex_for_clinical_use(resource),
        "multiple_birth_order": order,
        "deceased_at": died,
        "deceased": died is not None or bool(truth(resource, "deceasedBoolean")),
        "active": truth(resource, "active", True),
        "temporary": unnamed,
        "telecom": telecom(resource, country),
        "address": addresses,
        "contact": [{**person, "telecom": telecom(person, country)} for person in rows(resource, "contact")],
        "languages": list(dict.fromkeys(languages)),
        "marital_status": first_code(row(resource, "maritalStatus"), "maritalStatus"),
    }
    if photo is not None:
        values["photo"] = photo
    today = datetime.now(zone).date()
    return Reading(Patient, values, identifiers=patient_identifiers(resource, today), left=left)


def organization(resource: Json, zone: tzinfo) -> Reading:
    """Organization -> organization."""
    values = {
        "name": words.line(
            string(resource, "name") or next(iter(strings(resource, "alias")), "") or NAMELESS, field="name"
        ),
        "active": truth(resource, "active", True),
        "telecom": telecom(resource, region(rows(resource, "address"))),
        "address": rows(resource, "address"),
    }
    part_of = reference(resource, "partOf", "Organization")
    return Reading(Organization, values, {"part_of_id": part_of} if part_of else {})


def practitioner(resource: Json, zone: tzinfo) -> Reading:
    """Practitioner -> practitioner."""
    names = rows(resource, "name")
    name = person_name(chosen_name(names))
    skill = next(iter(rows(resource, "qualification")), {})
    values = {
        "family": " ".join(part for part in (name["family"], name["second_family"]) if part)
        or name["given"]
        or NAMELESS,
        "given": name["given"] if name["family"] else "",
        "prefix": name["prefix"],
        "gender": one_or_none(AdministrativeGender, string(resource, "gender"), "gender"),
        "qualification": spoken(row(skill, "code")),
        "identifier": rows(resource, "identifier"),
        "telecom": telecom(resource, region(rows(resource, "address"))),
        "active": truth(resource, "active", True),
    }
    return Reading(Practitioner, values, left=["name"] * (len(names) > 1))


def about(resource: Json, element: str = "subject", *, encounter: str = "encounter") -> dict[str, Reference]:
    """The patient, and the encounter of a resource in the patient's chart.

    Raises NotForTheChart where it is not about a patient but about a group, a place or a device, or about nobody.
    """
    who = reference(resource, element, "Patient")
    if who is None or (who.elsewhere and not who.search()):
        raise NotForTheChart
    references = {"patient_id": who}
    if met := reference(resource, encounter, "Encounter"):
        references["encounter_id"] = met
    return references


def reasons(resource: Json) -> str:
    """Why, in words, from reasonCode and the displays of reasonReference."""
    said = [spoken(concept) for concept in rows(resource, "reasonCode")]
    said += [string(item, "display") for item in rows(resource, "reasonReference")]
    return "; ".join(dict.fromkeys(part for part in said if part))


def without_display(resource: Json, element: str) -> list[str]:
    """The element's name where some of its references cannot be told in words."""
    return [element] * any(not string(item, "display") for item in rows(resource, element))


def encounter(resource: Json, zone: tzinfo) -> Reading:
    """Encounter -> encounter."""
    references = about(resource)
    kind = row(resource, "class")
    if not string(kind, "code"):
        raise Invalid("class is missing")
    period = row(resource, "period")
    begun, ended = instant(period, "start", zone), instant(period, "end", zone)
    if ended and not begun:
        begun = ended
    if begun and ended and ended < begun:
        raise Invalid("period ends before it starts")
    taking_part = rows(resource, "participant")
    left = ["participant"] * (len(taking_part) > 1)
    for part in taking_part:
        person = points_at(part.get("individual"), "participant", *PRACTITIONERS)
        if person and not person.elsewhere:
            references["practitioner_id"] = person
            break
    types = rows(resource, "type")
    if provider := reference(resource, "serviceProvider", "Organization"):
        references["service_provider_id"] = provider
    values = {
        "status": one_of(EncounterStatus, string(resource, "status"), "status"),
        "class_code": string(kind, "code"),
        "type_code": first_code(first_concept(resource, "type"), "type"),
        "type_display": spoken(first_concept(resource, "type")),
        "reason": reasons(resource),
        "started_at": begun,
        "ended_at": ended,
    }
    left += ["type"] * (len(types) > 1)
    return Reading(Encounter, values, references, left=left + without_display(resource, "reasonReference"))


def condition(resource: Json, zone: tzinfo) -> Reading:
    """Condition -> condition; con-5 holds, and a missing clinical status stays missing."""
    clinical = first_code(row(resource, "clinicalStatus"), "clinicalStatus")
    verification = first_code(row(resource, "verificationStatus"), "verificationStatus")
    values = coded(row(resource, "code"), "code", UNSAID) | {
        "clinical_status": one_or_none(ConditionClinicalStatus, clinical, "clinicalStatus"),
        "verification_status": one_or_none(ConditionVerificationStatus, verification, "verificationStatus"),
        "category": first_code(first_concept(resource, "category"), "category") or "",
        "onset_at": when(resource, "onset", zone)[0],
        "abatement_at": when(resource, "abatement", zone)[0],
        "recorded_at": instant(resource, "recordedDate", zone),
    }
    if clinical and verification == ConditionVerificationStatus.ENTERED_IN_ERROR:
        raise Invalid("clinicalStatus and entered-in-error exclude each other (con-5)")
    return Reading(Condition, values, about(resource))


CATEGORIES = ("food", "medication", "environment", "biologic")


def allergy_intolerance(resource: Json, zone: tzinfo) -> Reading:
    """AllergyIntolerance -> allergy_intolerance; ait-1 and ait-2 hold."""
    clinical = first_code(row(resource, "clinicalStatus"), "clinicalStatus")
    verification = first_code(row(resource, "verificationStatus"), "verificationStatus")
    in_error = verification == AllergyVerificationStatus.ENTERED_IN_ERROR
    if clinical and in_error:
        raise Invalid("clinicalStatus and entered-in-error exclude each other (ait-2)")
    if not clinical and not in_error:
        raise Invalid("clinicalStatus is missing (ait-1)")
    category = strings(resource, "category")
    if not set(category) <= set(CATEGORIES):
        raise Invalid("category is not one of the codes it can have")
    reaction = rows(resource, "reaction")
    concept = row(resource, "code")
    if not concept and reaction:
        concept = next((row(item, "substance") for item in reaction if row(item, "substance")), {})
    values = coded(concept, "code", UNSAID) | {
        "clinical_status": one_or_none(AllergyClinicalStatus, clinical, "clinicalStatus"),
        "verification_status": one_or_none(AllergyVerificationStatus, verification, "verificationStatus"),
        "type": one_or_none(AllergyType, string(resource, "type"), "type"),
        "category": category,
        "criticality": one_or_none(AllergyCriticality, string(resource, "criticality"), "criticality"),
        "reaction": reaction,
        "onset_at": when(resource, "onset", zone)[0],
        "recorded_at": instant(resource, "recordedDate", zone),
    }
    return Reading(AllergyIntolerance, values, about(resource, "patient"))


def amount(quantity: Json) -> str:
    """A Quantity as it is read out: comparator, number, unit."""
    number = quantity.get("value")
    unit = string(quantity, "unit") or string(quantity, "code")
    return " ".join(
        part for part in (f"{string(quantity, 'comparator')}{number}" if number is not None else "", unit) if part
    )


def observed(resource: Json) -> tuple[Json, list[str]]:
    """What was found, as a number with a UCUM unit or as words, and what of it no column holds.

    "less than 5" is not five: a number with a comparator is kept in words.
    """
    nothing: Json = {"value_quantity": None, "value_unit": None, "value_text": None, "value_code": None}
    element = next((name for name in resource if name.startswith("value")), None)
    if element is None:
        return nothing, []
    value = resource[element]
    if element == "valueQuantity":
        quantity = row(resource, element)
        number = quantity.get("value")
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | Decimal | float)):
            raise Invalid("valueQuantity is not a number")
        if string(quantity, "comparator") or number is None:
            return nothing | {"value_text": amount(quantity) or None}, []
        unit = string(quantity, "code") or string(quantity, "unit") or None
        return nothing | {"value_quantity": Decimal(str(number)), "value_unit": unit}, []
    if element == "valueInteger" and isinstance(value, int) and not isinstance(value, bool):
        return nothing | {"value_quantity": Decimal(value)}, []
    if element == "valueCodeableConcept":
        concept = row(resource, element)
        return nothing | {"value_text": spoken(concept) or None, "value_code": first_code(concept, element)}, []
    if element == "valueBoolean":
        return nothing | {"value_text": "true" if truth(resource, element) else "false"}, []
    if element in ("valueString", "valueDateTime", "valueTime"):
        return nothing | {"value_text": string(resource, element)}, []
    if element == "valueRange":
        bounds = [amount(row(value, bound)) for bound in ("low", "high")]
        return nothing | {"value_text": " – ".join(bounds)}, []
    if element == "valueRatio":
        parts = [amount(row(value, part)) for part in ("numerator", "denominator")]
        return nothing | {"value_text": " : ".join(parts)}, []
    if element == "valuePeriod":
        return nothing | {"value_text": " – ".join(string(value, end) for end in ("start", "end"))}, []
    return nothing, [element]


def observation(resource: Json, zone: tzinfo) -> Reading:
    """Observation -> observation."""
    found, left = observed(resource)
    interpreted = rows(resource, "interpretation")
    values = coded(row(resource, "code"), "code") | {
        "status": one_of(ObservationStatus, string(resource, "status"), "status"),
        "category": first_code(first_concept(resource, "category"), "category") or "",
        "effective_at": when(resource, "effective", zone)[0],
        "issued_at": instant(resource, "issued", zone),
        "portal_at": instant(resource, "issued", zone) or now(),
        **found,
        "interpretation": first_code(interpreted[0], "interpretation") if interpreted else None,
        "reference_range": rows(resource, "referenceRange"),
        "component": rows(resource, "component"),
    }
    left += [name for name in ("category", "interpretation") if len(rows(resource, name)) > 1]
    return Reading(Observation, values, about(resource), left=left)


def procedure(resource: Json, zone: tzinfo) -> Reading:
    """Procedure -> procedure."""
    begun, ended = when(resource, "performed", zone)
    values = coded(row(resource, "code"), "code", UNSAID) | {
        "status": one_of(EventStatus, string(resource, "status"), "status"),
        "performed_at": begun,
        "performed_until": ended,
        "reason": reasons(resource),
    }
    return Reading(Procedure, values, about(resource), left=without_display(resource, "reasonReference"))


class ImmunizationStatus(StrEnum):
    """http://hl7.org/fhir/event-status, the three of it that a vaccination can have."""

    COMPLETED = "completed"
    ENTERED_IN_ERROR = "entered-in-error"
    NOT_DONE = "not-done"


def immunization(resource: Json, zone: tzinfo) -> Reading:
    """Immunization -> immunization."""
    values = coded(row(resource, "vaccineCode"), "vaccineCode") | {
        "status": one_of(ImmunizationStatus, string(resource, "status"), "status"),
        "occurrence_at": when(resource, "occurrence", zone)[0],
        "primary_source": truth(resource, "primarySource"),
        "lot_number": string(resource, "lotNumber") or None,
    }
    return Reading(Immunization, values, about(resource, "patient"))


def diagnostic_report(resource: Json, zone: tzinfo) -> Reading:
    """DiagnosticReport -> diagnostic_report."""
    values = coded(row(resource, "code"), "code") | {
        "status": one_of(DiagnosticReportStatus, string(resource, "status"), "status"),
        "category": first_code(first_concept(resource, "category"), "category") or "",
        "effective_at": when(resource, "effective", zone)[0],
        "issued_at": instant(resource, "issued", zone),
        "portal_at": instant(resource, "issued", zone) or now(),
        "conclusion": string(resource, "conclusion") or None,
        "presented_form": rows(resource, "presentedForm"),
    }
    left = ["category"] * (len(rows(resource, "category")) > 1)
    return Reading(DiagnosticReport, values, about(resource), left=left)


def medication_request(resource: Json, zone: tzinfo) -> Reading:
    """MedicationRequest -> medication_request; an order not to give something is no order to give it."""
    if truth(resource, "doNotPerform"):
        raise NotForTheChart
    references = about(resource)
    named = reference(resource, "medicationReference", "Medication")
    if concept := row(resource, "medicationCodeableConcept"):
        values = coded(concept, "medication")
    elif named is None:
        raise Invalid("medication is missing")
    elif named.contained:
        values = medicine(inside(resource, named), named)
    else:
        references["medication"] = named
        values = {"code_system": None, "code": None, "code_display": named.display}
    requester = reference(resource, "requester", *PRACTITIONERS)
    left = []
    if requester is not None and not requester.elsewhere:
        references["requester_id"] = requester
    elif requester is not None:
        left.append("requester")
    values |= {
        "status": one_of(MedicationRequestStatus, string(resource, "status"), "status"),
        "intent": string(resource, "intent") or "order",
        "authored_at": instant(resource, "authoredOn", zone),
        "dosage_instruction": rows(resource, "dosageInstruction"),
        "reason": reasons(resource),
    }
    left += without_display(resource, "reasonReference")
    return Reading(MedicationRequest, values, references, left=left)


def inside(resource: Json, wanted: Reference) -> Json:
    """The contained resource a reference points at; empty where there is none."""
    return next((found for found in rows(resource, "contained") if found.get("id") == wanted.address[1:]), {})


def medicine(medication: Json, named: Reference) -> Json:
    """A Medication as the three columns of `Coded`: by its code, by what it was called, or by what is in it.

    Raises Invalid where nothing says what it is.
    """
    concept = row(medication, "code")
    parts = [spoken(row(part, "itemCodeableConcept")) for part in rows(medication, "ingredient")]
    return coded(concept, "medication", named.display or ", ".join(part for part in parts if part))


def decoded(attachment: Json, element: str) -> bytes:
    """The bytes of an Attachment. Raises Invalid where its base64 is broken."""
    try:
        return base64.b64decode(re.sub(r"\s", "", string(attachment, "data")), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid(f"{element} is not base64") from error


def readable(attachment: Json) -> str | None:
    """The words of an Attachment that is text; None for one that is not, or is not here."""
    kind, _, parameters = string(attachment, "contentType").partition(";")
    kind = kind.strip().lower()
    if not kind.startswith("text/") or not string(attachment, "data"):
        return None
    charset = re.search(r"charset=\"?([\w-]+)", parameters, re.IGNORECASE)
    try:
        text = decoded(attachment, "content").decode(charset[1] if charset else "utf-8", errors="replace")
    except LookupError:
        return None
    text = text.replace("\0", "")
    return plain(text) if kind == "text/html" else text


def written_by(resource: Json) -> tuple[str, dict[str, Reference]]:
    """The authors of a document: their displays, or the one whose name has to be looked up."""
    said = [string(item, "display") for item in rows(resource, "author")]
    if any(said):
        return "; ".join(part for part in said if part), {}
    author = reference(resource, "author", *PRACTITIONERS, "Organization")
    return "", {"author": author} if author and not author.elsewhere and not author.contained else {}


def document_reference(resource: Json, zone: tzinfo) -> Reading:
    """DocumentReference -> document_reference, its texts readable; what is no text is named and kept as received."""
    attachments = [row(part, "attachment") for part in rows(resource, "content")]
    texts = [text for attachment in attachments if (text := readable(attachment))]
    left = ["content"] * (len(texts) < len(attachments))
    kind = string(attachments[0], "contentType").partition(";")[0].strip().lower() if attachments else ""
    context = row(resource, "context")
    author, references = written_by(resource)
    references |= about(resource)
    if met := reference(context, "encounter", "Encounter"):
        references["encounter_id"] = met
    concept = row(resource, "type") or first_concept(resource, "category")
    title = next((string(a, "title") for a in attachments if string(a, "title")), "") or string(resource, "description")
    values = coded(concept, "type", "Document") | {
        "status": one_of(DocumentReferenceStatus, string(resource, "status"), "status"),
        "category": first_code(first_concept(resource, "category"), "category") or "",
        "title": title,
        "written_at": instant(resource, "date", zone) or instant(row(context, "period"), "start", zone),
        "author": author,
        "content_type": "text/plain" if texts or not kind else kind,
        "content": "\n\n".join(texts),
    }
    left += ["context"] * bool(set(context) - {"encounter", "period"})
    return Reading(DocumentReference, values, references, left=left)


def sections(resource: Json, depth: int = 1) -> Iterator[str]:
    """The sections of a Composition as text: title, narrative, and how many entries stand behind it."""
    for section in rows(resource, "section"):
        title = string(section, "title") or spoken(row(section, "code"))
        if title:
            yield f"{'#' * min(depth, 6)} {title}"
        if narrative := plain(string(row(section, "text"), "div")):
            yield narrative
        elif missing := spoken(row(section, "emptyReason")):
            yield missing
        if entries := rows(section, "entry"):
            yield f"({len(entries)} {'entry' if len(entries) == 1 else 'entries'} in the record)"
        yield from sections(section, depth + 1)


class CompositionStatus(StrEnum):
    """http://hl7.org/fhir/composition-status (R4)"""

    PRELIMINARY = "preliminary"
    FINAL = "final"
    AMENDED = "amended"
    ENTERED_IN_ERROR = "entered-in-error"


def composition(resource: Json, zone: tzinfo) -> Reading:
    """Composition -> document_reference: what a received document says, section by section."""
    status = one_of(CompositionStatus, string(resource, "status"), "status")
    author, references = written_by(resource)
    values = coded(row(resource, "type"), "type") | {
        "status": DocumentReferenceStatus.ENTERED_IN_ERROR.value
        if status == CompositionStatus.ENTERED_IN_ERROR
        else DocumentReferenceStatus.CURRENT.value,
        "category": first_code(first_concept(resource, "category"), "category") or "",
        "title": string(resource, "title"),
        "written_at": instant(resource, "date", zone),
        "author": author,
        "content_type": "text/plain",
        "content": "\n\n".join(sections(resource)),
    }
    return Reading(DocumentReference, values, references | about(resource))


def _shape(read: Callable[[Json, tzinfo], Reading], elements: str) -> Shape:
    return Shape(read, frozenset(elements.split()) | {"resourceType", "id"})


SHAPES: dict[str, Shape] = {
    "Organization": _shape(organization, "active name telecom address partOf"),
    "Practitioner": _shape(practitioner, "active name telecom gender qualification identifier"),
    "Patient": _shape(
        patient,
        "identifier active name telecom gender birthDate deceasedBoolean deceasedDateTime address maritalStatus"
        " multipleBirthBoolean multipleBirthInteger photo contact communication",
    ),
    "Encounter": _shape(
        encounter, "status class type subject participant period reasonCode reasonReference serviceProvider"
    ),
    "Condition": _shape(
        condition,
        "clinicalStatus verificationStatus category code subject encounter onsetDateTime onsetPeriod abatementDateTime"
        " abatementPeriod recordedDate",
    ),
    "AllergyIntolerance": _shape(
        allergy_intolerance,
        "clinicalStatus verificationStatus type category criticality code patient encounter onsetDateTime onsetPeriod"
        " recordedDate reaction",
    ),
    "Observation": _shape(
        observation,
        "status category code subject encounter effectiveDateTime effectivePeriod effectiveInstant effectiveTiming"
        " issued valueQuantity valueCodeableConcept valueString valueBoolean valueInteger valueRange valueRatio"
        " valueTime valueDateTime valuePeriod valueSampledData interpretation referenceRange component",
    ),
    "Procedure": _shape(
        procedure, "status code subject encounter performedDateTime performedPeriod reasonCode reasonReference"
    ),
    "Immunization": _shape(
        immunization, "status vaccineCode patient encounter occurrenceDateTime primarySource lotNumber"
    ),
    "DiagnosticReport": _shape(
        diagnostic_report,
        "status category code subject encounter effectiveDateTime effectivePeriod issued conclusion presentedForm",
    ),
    "MedicationRequest": _shape(
        medication_request,
        "status intent medicationCodeableConcept medicationReference subject encounter authoredOn requester reasonCode"
        " reasonReference dosageInstruction",
    ),
    "DocumentReference": _shape(
        document_reference, "status type category subject date author description content context"
    ),
    "Composition": _shape(composition, "status type category subject encounter date author title section"),
}
"""The types that have a table. What an entry does not name is kept as received and counted."""


def read(resource: Json, zone: tzinfo) -> Reading:
    """A resource as columns and references.

    Raises Invalid, naming the element; NotForTheChart where the resource says itself that it is no plain row.
    """
    shape = SHAPES[resource["resourceType"]]
    if resource.get("modifierExtension"):
        # FHIR R4, 2.4.1: what a modifier extension changes cannot be known, so nothing may be made of the rest.
        raise NotForTheChart
    try:
        reading = shape.read(resource, zone)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise Invalid("it is not shaped as FHIR has it") from error
    left = {name for name in resource if name not in shape.elements}
    left.discard("extension")
    left.update(reading.left)
    for name, value in resource.items():
        concepts = value if isinstance(value, list) else [value]
        if any(isinstance(c, dict) and isinstance(c.get("coding"), list) and len(c["coding"]) > 1 for c in concepts):
            left.add(f"{name}.coding")
    for found in rows(resource, "extension"):
        url = string(found, "url")
        if not url.endswith(("us-core-birthsex", "patient-sexParameterForClinicalUse")):
            left.add(f"extension({url.rstrip('/').rpartition('/')[2]})")
    reading.left = sorted(left)
    return reading


def patients_of(resource: Json) -> Iterator[Reference]:
    """Whom a resource without a table may be about, the likelier first (what we meet of FHIR's patient compartment)."""
    for element in ("patient", "subject", "beneficiary", "for", "individual"):
        wanted = reference(resource, element, *SUBJECTS) if isinstance(resource.get(element), dict | list) else None
        if wanted is None or wanted.elsewhere:
            continue
        if not wanted.contained or any(
            found.get("id") == wanted.address[1:] and found.get("resourceType") == "Patient"
            for found in rows(resource, "contained")
        ):
            yield wanted
    for part in rows(resource, "participant") if resource["resourceType"].startswith("Appointment") else []:
        wanted = points_at(part.get("actor"), "participant", "Patient")
        if wanted is not None and wanted.keys() and not wanted.address.startswith("urn:"):
            yield wanted


def targets_of(resource: Json) -> list[Reference]:
    """What a Provenance speaks of, the first few of it: where a patient is among them, it belongs to that patient."""
    targets = resource.get("target")
    found = targets[:20] if isinstance(targets, list) else []
    wanted = [points_at(target, "target", "Patient") for target in found if isinstance(target, dict)]
    return [target for target in wanted if target is not None and not target.elsewhere and not target.contained]


__all__ = [
    "SHAPES",
    "Json",
    "NotForTheChart",
    "Reading",
    "Reference",
    "medicine",
    "patients_of",
    "points_at",
    "read",
    "targets_of",
]
