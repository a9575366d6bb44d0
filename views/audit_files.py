"""The trail as files: CSV for spreadsheets, FHIR AuditEvent (R4, after IHE BALP) for other systems."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from flask import Response, current_app, request
from flask_appbuilder import expose
from flask_babel import force_locale, get_locale, gettext, lazy_gettext

from app import guard, policy
from app.actor import current
from app.services import audit
from models.audit import AuditEvent
from models.base import now
from models.patients import Patient
from views.audit import OUTCOMES, PURPOSES, REFUSALS, changes_of, done, held, question, told
from views.base import Page, branch_zone, open_to
from views.branches import all_branches
from views.people import name_of

Known = dict[int, Patient | None]
Writer = Callable[[Sequence[AuditEvent], Known, bool], bytes]
"""Lines as a piece of a file, with the patients they are about, and whether it is the first piece."""
KEPT = 5_000
"""Patients whose names are kept at hand while a file is written."""


class TrailFiles(Page):
    """The lines of a question, to be taken along."""

    route_base = "/trail"
    default_view = "csv"

    @expose("/export.csv")
    @open_to("read", "AuditEvent")
    def csv(self) -> Response:
        """For a spreadsheet. Raises TooManyLines."""
        return _file("csv", "text/csv", Sheet())

    @expose("/export.ndjson")
    @open_to("read", "AuditEvent")
    def fhir(self) -> Response:
        """For another system: one FHIR AuditEvent a line. Raises TooManyLines."""
        return _file("ndjson", "application/fhir+ndjson", Events(request.url_root))


def _file(kind: str, media: str, write: Writer) -> Response:
    """The lines of the question in the address, piece by piece. Its being taken is in the trail before it leaves."""
    export = audit.export(guard.session(), question(), kind)
    pieces = _pieces(export, write)
    answer = Response(chain([next(pieces)], pieces), content_type=f"{media}; charset=utf-8")
    today = f"{now().astimezone(branch_zone()):%Y-%m-%d}"
    answer.headers["Content-Disposition"] = f'attachment; filename="trail-{today}.{kind}"'
    return answer


def _pieces(export: audit.Export, write: Writer) -> Iterator[bytes]:
    """The file, FILE_PAGE lines at a time: each piece is in the trail as seen before it leaves, and nothing is held."""
    house, actor, locale = current_app._get_current_object(), current(), get_locale()  # type: ignore[attr-defined]
    known: Known = {}
    last, left, first = None, export.count, True
    while left > 0 or first:
        with house.app_context(), force_locale(locale), guard.acting_as(actor):
            session = guard.session()
            lines = audit.export_page(session, export, min(left, audit.FILE_PAGE), last) if left else []
            new = [line for line in lines if line.patient_id not in known]
            if len(known) > KEPT:
                known, new = {}, list(lines)
            known |= dict.fromkeys([line.patient_id for line in new if line.patient_id is not None])
            known |= audit.patients_of(session, new)
            piece = write(lines, known, first)
            if lines:
                last = (lines[-1].recorded, lines[-1].id)
        yield piece
        left, first = left - len(lines) if lines else 0, False


# ---- a spreadsheet -------------------------------------------------------------------------------------------------

_reckons = r"=+\-@\uff1d\uff0b\uff0d\uff20"
FORMULA = re.compile(rf'^(?=[{_reckons}\t\r\n])|([;,|\t\r\n][\s"]*)(?=[{_reckons}])')
"""Where a spreadsheet would take a cell for a formula, which a name or a browser may be: at its beginning, and behind
what elsewhere parts one cell from the next.
"""


def plain(value: Any) -> str:
    """A cell that no spreadsheet reckons with."""
    return "" if value is None else FORMULA.sub(r"\1'", str(value))


class Sheet:
    """Lines as CSV (RFC 4180, with the mark by which spreadsheets know UTF-8)."""

    def __init__(self) -> None:
        self.zone: ZoneInfo = branch_zone()
        self.branches = all_branches()
        hidden = current().rights.hidden("AuditEvent")
        self.columns = [(name, cell) for name, field, cell in COLUMNS if field not in hidden]

    def __call__(self, lines: Sequence[AuditEvent], known: Known, first: bool) -> bytes:
        """A piece of the file."""
        text = io.StringIO(newline="")
        rows = csv.writer(text)
        if first:
            text.write("\ufeff")
            rows.writerow([str(name) for name, _ in self.columns])
        for line in lines:
            patient = known.get(line.patient_id or 0)
            rows.writerow([plain(cell(self, line, patient)) for _, cell in self.columns])
        return text.getvalue().encode()


Cell = Callable[[Sheet, AuditEvent, Patient | None], Any]
COLUMNS: tuple[tuple[Any, str, Cell], ...] = (
    (
        lazy_gettext("When"),
        "recorded",
        lambda sheet, line, _: line.recorded.astimezone(sheet.zone).isoformat(" ", "seconds"),
    ),
    (lazy_gettext("Who"), "agent_name", lambda _s, line, _: line.agent_name or gettext("Nobody signed in")),
    (lazy_gettext("Account"), "user_id", lambda _s, line, _: line.user_id),
    (lazy_gettext("Roles"), "roles", lambda _s, line, _: ", ".join(held(role) for role in line.roles)),
    (lazy_gettext("Branch"), "branch_id", lambda sheet, line, _: sheet.branches.get(line.branch_id or 0, "")),
    (lazy_gettext("What was done"), "action", lambda _s, line, _: done(line)),
    (
        lazy_gettext("What"),
        "entities",
        lambda _s, line, _: "; ".join(dict.fromkeys(told(entity) for entity in line.entities)) or line.query,
    ),
    (
        lazy_gettext("Changes"),
        "entities",
        lambda _s, line, _: "; ".join(
            f"{change['field']}: {change['old']} > {change['new']}"
            for entity in line.entities
            for change in changes_of(entity)
        ),
    ),
    (lazy_gettext("Outcome"), "outcome", lambda _s, line, _: OUTCOMES.get(str(line.outcome), line.outcome)),
    (lazy_gettext("Reason"), "reason", lambda _s, line, _: REFUSALS.get(line.reason or "", line.reason)),
    (lazy_gettext("Why"), "purpose", lambda _s, line, _: PURPOSES.get(line.purpose, line.purpose)),
    (lazy_gettext("Patient"), "patient_id", lambda _s, _l, patient: name_of(patient) if patient else ""),
    (
        lazy_gettext("Number"),
        "patient_id",
        lambda _s, line, patient: patient.mrn if patient else f"#{line.patient_id}" if line.patient_id else "",
    ),
    (lazy_gettext("Through"), "channel", lambda _s, line, _: line.channel),
    (lazy_gettext("Network address"), "address", lambda _s, line, _: line.address),
    (lazy_gettext("Browser"), "user_agent", lambda _s, line, _: line.user_agent),
    (lazy_gettext("Session"), "session_id", lambda _s, line, _: line.session_id),
    (lazy_gettext("Request"), "request_id", lambda _s, line, _: line.request_id),
    (lazy_gettext("Line"), "id", lambda _s, line, _: line.id),
)
"""The head of a column, the field it is of, and how it is filled. A field kept from a role has no column."""

# ---- FHIR ----------------------------------------------------------------------------------------------------------

DICOM = "http://dicom.nema.org/resources/ontology/DCM"
EVENT = "http://terminology.hl7.org/CodeSystem/audit-event-type"
INTERACTION = "http://hl7.org/fhir/restful-interaction"
ENTITY = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
PART = "http://terminology.hl7.org/CodeSystem/object-role"
REASONS = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
SOURCE = "http://terminology.hl7.org/CodeSystem/security-source-type"
BALP = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"
ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"

DICOM_WORDS = {"110114": "User Authentication", "110122": "Login", "110123": "Logout", "110106": "Export"}
INTERACTIONS = {"read", "search", "create", "update", "delete"}
PERSON = {"system": ENTITY, "code": "1", "display": "Person"}
OBJECT = {"system": ENTITY, "code": "2", "display": "System Object"}
PATIENT = {"system": PART, "code": "1", "display": "Patient"}
RESOURCE = {"system": PART, "code": "4", "display": "Domain Resource"}
QUERY = {"system": PART, "code": "24", "display": "Query"}
OF_FHIR = {*policy.CLINICAL, "Patient", "DocumentReference", "AuditEvent", "Organization", "Practitioner"}
"""Our resources that FHIR knows by the same name."""


class Events:
    """Lines as FHIR AuditEvent, one JSON object a line.

    Records go by the number they have here, since that is what the trail holds: an identifier in a system below the
    address of this house. Patients whom the actor may see go by their FHIR id and chain-wide number.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self.branches = all_branches()
        self.hidden = current().rights.hidden("AuditEvent")
        self.encode = msgspec.json.Encoder().encode

    def __call__(self, lines: Sequence[AuditEvent], known: Known, first: bool) -> bytes:
        """A piece of the file."""
        del first
        return b"".join(self.encode(self.resource(line, known.get(line.patient_id or 0))) + b"\n" for line in lines)

    def resource(self, line: AuditEvent, patient: Patient | None) -> dict[str, Any]:
        """One line."""
        found: dict[str, Any] = {
            "resourceType": "AuditEvent",
            "id": str(line.id),
            "type": self._type(line),
            "subtype": [self._subtype(line)],
            "action": line.action,
            "recorded": line.recorded.astimezone(UTC).isoformat(),
            "outcome": str(line.outcome),
            "purposeOfEvent": [{"coding": [{"system": REASONS, "code": line.purpose}]}],
            "agent": self._agents(line),
            "source": self._source(line),
        }
        if line.reason:
            found["outcomeDesc"] = line.reason
        if entities := self._entities(line, patient):
            found["entity"] = entities
        return found

    @staticmethod
    def _type(line: AuditEvent) -> dict[str, str]:
        code = "110106" if line.subtype == "export" else line.type
        if code in DICOM_WORDS:
            return {"system": DICOM, "code": code, "display": DICOM_WORDS[code]}
        return {"system": EVENT, "code": "rest", "display": "RESTful Operation"}

    def _subtype(self, line: AuditEvent) -> dict[str, str]:
        if line.subtype in DICOM_WORDS:
            return {"system": DICOM, "code": line.subtype, "display": DICOM_WORDS[line.subtype]}
        if line.subtype in INTERACTIONS:
            return {"system": INTERACTION, "code": line.subtype, "display": line.subtype}
        return {"system": f"{self.base}trail/subtypes", "code": line.subtype.replace(" ", "-")}

    def _agents(self, line: AuditEvent) -> list[dict[str, Any]]:
        who: dict[str, Any] = {}
        if line.user_id is not None:
            who["identifier"] = {"system": f"{self.base}accounts", "value": str(line.user_id)}
        if line.agent_name:
            who["display"] = line.agent_name
        person: dict[str, Any] = {
            "type": {"coding": [{"system": PARTICIPATION, "code": "IRCP", "display": "information recipient"}]},
            "requestor": True,
        }
        if who:
            person["who"] = who
        if line.roles:
            person["role"] = [{"coding": [{"system": f"{self.base}roles", "code": role}]} for role in line.roles]
        if "address" in self.hidden:
            masked = {"extension": [{"url": ABSENT, "valueCode": "masked"}]}
            person["network"] = {"_address": masked, "type": "2"}
        elif line.address:
            person["network"] = {"address": str(line.address), "type": "2"}
        agents = [person]
        if line.user_agent:
            source = {"system": DICOM, "code": "110153", "display": "Source Role ID"}
            agents.append({"type": {"coding": [source]}, "who": {"display": line.user_agent}, "requestor": False})
        return agents

    def _source(self, line: AuditEvent) -> dict[str, Any]:
        observer = {"identifier": {"system": "urn:ietf:rfc:3986", "value": self.base}, "display": "Wardbook"}
        source: dict[str, Any] = {
            "observer": observer,
            "type": [{"system": SOURCE, "code": "4", "display": "Application Server"}],
        }
        if branch := self.branches.get(line.branch_id or 0):
            source["site"] = branch.name
        return source

    def _entities(self, line: AuditEvent, patient: Patient | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if line.patient_id is not None:
            what: dict[str, Any] = {"type": "Patient", "identifier": self._number("Patient", line.patient_id)}
            if patient is not None:
                what |= {
                    "reference": f"Patient/{patient.fhir_id}",
                    "identifier": {"system": f"{self.base}mrn", "value": patient.mrn},
                }
            found.append({"what": what, "type": PERSON, "role": PATIENT})
        for entity in line.entities:
            found += self._of_entity(entity)
        if line.query:
            said = base64.b64encode(line.query.encode()).decode()
            found.append({"type": OBJECT, "role": QUERY, "query": said})
        if line.request_id:
            what = {"identifier": {"system": f"{self.base}requests", "value": line.request_id}}
            asked: dict[str, Any] = {"what": what, "type": {"system": BALP, "code": "XrequestId"}}
            if line.session_id:
                asked["detail"] = [{"type": "session", "valueString": line.session_id}]
            found.append(asked)
        return found

    def _of_entity(self, entity: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of one kind, each by itself; what was said of them together stands with every one."""
        kind = str(entity.get("type", ""))
        more: dict[str, Any] = {}
        details = [
            {"type": name, "valueString": _text(value)}
            for name, value in entity.items()
            if name not in ("type", "ids", "of", "old", "new") and _text(value)
        ]
        for side in ("old", "new"):
            values = entity.get(side) or {}
            details += [
                {"type": f"{side} {name}", "valueString": text}
                for name, value in values.items()
                if (text := _text(value))
            ]
        if details:
            more["detail"] = details
        if entity.get("of"):
            more["name"] = str(entity["of"])
        named = {"type": kind} if kind in OF_FHIR else {"display": kind}
        whats = [
            {"reference": f"AuditEvent/{key}", **named}
            if kind == "AuditEvent"
            else {**named, "identifier": self._number(kind, key)}
            for key in entity.get("ids") or ()
        ]
        return [{"what": what, "type": OBJECT, "role": RESOURCE, **more} for what in whats or [named] if kind]

    def _number(self, kind: str, key: Any) -> dict[str, str]:
        return {"system": f"{self.base}rows/{kind}", "value": str(key)}


def _text(value: Any) -> str:
    """A value of the trail's JSON as one line of text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


__all__ = ["Events", "Sheet", "TrailFiles", "plain"]
