"""REST under /api/v1, on Flask-AppBuilder's ModelRestApi: the same matrix, gate and services as the pages."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar

import jsonschema
import msgspec
import prison
from flask import request
from flask_appbuilder import ModelRestApi, expose
from flask_appbuilder import api as stock
from flask_appbuilder.exceptions import FABException
from flask_appbuilder.models.sqla.filters import set_value_to_type
from flask_appbuilder.security.decorators import protect
from jsonschema.validators import validator_for
from sqlalchemy.exc import StatementError
from werkzeug.wrappers import Response

from app import guard
from app.actor import current
from app.errors import Conflict, Forbidden, Invalid, NotFound, NotSignedIn, PossibleDuplicate, Refusal, from_database
from app.services import patients
from app.services.words import birth_date
from models import clinical, lab, notes, organization, prescriptions
from models.audit import AuditEvent
from models.base import Protected
from models.patients import Patient
from views.base import PERMISSION_OF, OwnFilters, RecordInterface
from views.patients import region

_validators: dict[int, Any] = {}


def validate(instance: Any, schema: dict[str, Any]) -> None:
    """Check a query against Flask-AppBuilder's schema, without checking the schema itself on every call."""
    validator = _validators.get(id(schema))
    if validator is None:
        kind = validator_for(schema)
        kind.check_schema(schema)
        validator = _validators[id(schema)] = kind(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(instance))
    if error is not None:
        raise error


class _OnceCheckedSchemas:
    """jsonschema as Flask-AppBuilder uses it: half of a list call's time went into checking its own schema again."""

    ValidationError = jsonschema.ValidationError
    validate = staticmethod(validate)


stock.jsonschema = _OnceCheckedSchemas


class _Rison:
    """prison as Flask-AppBuilder uses it: some texts that are no Rison ran out of its parser in other ways."""

    decoder = prison.decoder

    @staticmethod
    def loads(text: str) -> Any:
        try:
            return prison.loads(text)
        except (IndexError, RecursionError, ValueError, TypeError) as error:
            raise prison.decoder.ParserException from error


stock.prison = _Rison


class RecordApi(OwnFilters, ModelRestApi):
    """A resource over REST; only the columns it names ever leave."""

    version = "v1"
    resource_name: str | None = None
    allow_browser_login = True
    csrf_exempt = False
    method_permission_name: ClassVar[dict[str, str]] = PERMISSION_OF
    base_permissions: ClassVar[list[str]] = ["can_read", "can_create", "can_update", "can_delete"]
    include_route_methods: ClassVar[set[str]] = {"get", "get_list", "info"}
    columns: ClassVar[tuple[str, ...]] = ()
    newest_first = ""
    """The column rows come by, the newest first, where nothing else is asked; otherwise they come by number."""
    max_page_size = 100
    page_size = 25

    def __init__(self) -> None:
        self.class_permission_name = self.datamodel.obj.__name__
        self.resource_name = self.resource_name or re.sub(r"(?<!^)(?=[A-Z])", "_", self.datamodel.obj.__name__).lower()
        names = list(self.columns)
        plain = [name for name in names if name not in DOCUMENTS]
        self.list_columns = self.show_columns = names
        self.add_columns = self.edit_columns = [name for name in plain if name not in ("id", "fhir_id", "version")]
        self.search_columns = [name for name in names if filterable(self.datamodel.obj, name)]
        self.order_columns = list(self.search_columns)
        super().__init__()

    @expose("/", methods=["GET"])
    @protect()
    @stock.rison(stock.get_list_schema)
    def get_list(self, **kwargs: Any) -> Response:
        """Rows, a page at a time.
        ---
        get:
          description: Rows by filters, order and page; at most 100 at once.
          parameters:
          - in: query
            name: q
            content:
              application/json:
                schema:
                  $ref: '#/components/schemas/get_list_schema'
          responses:
            200:
              description: "`count` (up to 1001: beyond that it is not counted), `ids` and `result`"
            400:
              $ref: '#/components/responses/400'
            401:
              $ref: '#/components/responses/401'
            403:
              $ref: '#/components/responses/403'
        """
        asked = kwargs["rison"]
        self._nothing_hidden(asked)
        filters = self._filters
        try:
            filters.rest_add_filters(asked.get("filters", []))
            for each, value in zip(filters.filters, filters.values, strict=True):
                if value is None or set_value_to_type(self.datamodel, each.column_name, value) is None:
                    raise Invalid("This value does not fit the column.")
                if each.column_name == "patient_id" and each.arg_name == "eq":
                    guard.asked_about(int(value))
        except FABException as error:
            raise Invalid("This column cannot be filtered that way.") from error
        order = asked.get("order_column") or self.newest_first or "id"
        direction = asked.get("order_direction", "desc" if order == self.newest_first else "asc")
        if order not in {"id", self.newest_first, *self.order_columns}:
            raise Invalid("This column cannot be sorted by.")
        size = asked.get("page_size") or self.page_size
        size = self.max_page_size if size < 0 else min(size, self.max_page_size)
        columns = [name for name in asked.get("columns") or self.columns if name in self.columns]
        if filters.filters:
            guard.searching(f"{self.class_permission_name} by " + ", ".join(f.column_name for f in filters.filters))
        joined = self._with_own(filters)
        page = max(asked.get("page", 0), 0)
        try:
            count, rows = self.datamodel.query(joined, order, direction, page=page, page_size=size)
        except StatementError as error:
            guard.session.rollback()
            raise from_database(error) or Invalid("This column cannot be filtered or sorted that way.") from error
        return sent({"count": count, "ids": [row.id for row in rows], "result": [plain(row, columns) for row in rows]})

    def _nothing_hidden(self, asked: dict[str, Any]) -> None:
        """Raises Forbidden where rows are to be filtered or sorted by what the actor is not shown."""
        named = {str(each.get("col")) for each in asked.get("filters", [])} | {str(asked.get("order_column"))}
        if found := named & current().rights.hidden(self.class_permission_name):
            raise guard.refuse("read", f"{self.class_permission_name}.{min(found)}")

    @expose("/<pk>", methods=["GET"])
    @protect()
    def get(self, pk: str) -> Response:
        """One row.
        ---
        get:
          description: One row by its number.
          parameters:
          - in: path
            name: pk
            schema:
              type: integer
          responses:
            200:
              description: "`id` and `result`"
            401:
              $ref: '#/components/responses/401'
            403:
              $ref: '#/components/responses/403'
            404:
              $ref: '#/components/responses/404'
        """
        item = self.item(pk)
        return sent({"id": item.id, "result": plain(item, self.columns)})

    def item(self, pk: str) -> Any:
        """The row of that number. Raises NotFound."""
        item = self.datamodel.get(pk, self._base_filters)
        if item is None:
            raise guard.refuse("read", self.class_permission_name, NotFound)
        return item

    def response_401(self) -> Any:
        raise NotSignedIn

    def response_403(self) -> Any:
        raise Forbidden if current().user_id is not None else NotSignedIn


DOCUMENTS = {
    *["telecom", "address", "contact", "other_names", "reaction", "component", "reference_range", "presented_form"],
    *["dosage_instruction", "identifier", "entities", "content"],
}
"""Columns of free shape."""
PLAIN = {"String", "Text", "Integer", "BigInteger", "SmallInteger", "Boolean", "Date", "DateTime", "Numeric"}


def filterable(model: Any, name: str) -> bool:
    """Whether a column holds one plain value, by which rows can be filtered and sorted."""
    return type(model.__table__.c[name].type).__name__ in PLAIN


def _address(value: Any) -> str:
    """A network address of the trail, which JSON has no type for. Raises TypeError for anything else."""
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    raise TypeError(type(value).__name__)


encode = msgspec.json.Encoder(enc_hook=_address).encode


def sent(body: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(encode(body), status, mimetype="application/json")


def plain(item: Any, columns: Any) -> dict[str, Any]:
    """A row as JSON's plain values; what the actor is not shown is null, and not the empty list the gate left."""
    hidden = current().rights.hidden(item.resource())
    return {name: None if name in hidden else getattr(item, name) for name in columns}


PATIENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{
            name: {"type": "string", "maxLength": 20_000}
            for name in ("family", "second_family", "given", "prefix", "name_in_use", "birth_date", "gender")
        },
        "sex_for_clinical_use": {"type": "string"},
        "telecom": {
            "type": "array",
            "maxItems": 20,
            "items": {
                "type": "object",
                "required": ["system", "value"],
                "properties": {
                    "system": {"enum": ["phone", "fax", "email", "pager", "url", "sms", "other"]},
                    "value": {"type": "string", "maxLength": 200},
                    "use": {"enum": ["home", "work", "temp", "old", "mobile"]},
                },
                "additionalProperties": False,
            },
        },
        "address": {"type": "array", "maxItems": 20, "items": {"type": "object"}},
        "contact": {"type": "array", "maxItems": 20, "items": {"type": "object"}},
        "languages": {"type": "array", "maxItems": 20, "items": {"type": "string", "maxLength": 20}},
        "identifiers": {
            "type": "array",
            "maxItems": 20,
            "items": {
                "type": "object",
                "required": ["system", "value"],
                "properties": {"system": {"type": "string"}, "value": {"type": "string"}},
                "additionalProperties": False,
            },
        },
        "temporary": {"type": "boolean"},
        "insist": {"type": "boolean", "description": "Register although somebody alike is registered"},
        "version": {"type": "integer", "description": "The version the change was made on"},
    },
}


def body_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The request's JSON object, of a shape. Raises Invalid for anything else, naming the field."""
    if not request.is_json:
        raise Invalid("Send JSON, with the content type application/json.")
    try:
        told = request.get_json(silent=True)
    except RecursionError as error:
        raise Invalid("This is nested too deeply.") from error
    if not isinstance(told, dict):
        raise Invalid("This is no JSON object.")
    try:
        validate(told, schema)
    except jsonschema.ValidationError as error:
        missing = [name for name in schema.get("required", []) if name not in told]
        field = str(error.path[0]) if error.path else next(iter(missing), None)
        raise Invalid("This does not have the shape the API describes.", field=field) from error
    return told


def told_of(body: dict[str, Any], before: Patient | None = None) -> patients.Demographics:
    """Demographics from a body, on top of what is known already. Raises Invalid."""
    names = patients.Demographics.__dataclass_fields__
    known = {name: getattr(before, name) for name in names if name != "photo"} if before is not None else {}
    said = {name: value for name, value in body.items() if name in names}
    if "birth_date" in said:
        said["birth_date"], said["birth_precision"] = birth_date(said["birth_date"])
    return patients.Demographics(**{**known, **said})


class PatientApi(RecordApi):
    """The patient index."""

    datamodel = RecordInterface(Patient)
    resource_name = "patient"
    include_route_methods: ClassVar[set[str]] = {"get", "get_list", "info", "search", "post", "put"}
    columns = (
        *(
            "id",
            "fhir_id",
            "version",
            "mrn",
            "family",
            "second_family",
            "given",
            "prefix",
            "name_in_use",
            "other_names",
        ),
        *("birth_date", "birth_precision", "gender", "sex_for_clinical_use", "deceased", "deceased_at", "active"),
        *("temporary", "telecom", "address", "contact", "languages", "registered_at_id", "last_visit_at"),
        "replaced_by_id",
    )

    @expose("/search", methods=["GET"])
    @protect()
    def search(self) -> Response:
        """Patients by any part of a name, number, phone or birth date.
        ---
        get:
          description: The search box over REST; mistyped names are found too, and `meant` says what was looked for.
          parameters:
          - in: query
            name: text
            required: true
            schema:
              type: string
          - in: query
            name: limit
            schema:
              type: integer
              maximum: 100
          responses:
            200:
              description: "`result`, `more` and `meant`"
            401:
              $ref: '#/components/responses/401'
            403:
              $ref: '#/components/responses/403'
        """
        limit = request.args.get("limit", "25")
        size = min(max(int(limit), 1), 100) if limit.isdecimal() and len(limit) < 5 else 25
        found = patients.find(guard.session(), request.args.get("text", "")[:100], limit=size)
        rows = [plain(patient, self.columns) for patient in found.patients]
        return sent({"result": rows, "more": found.more, "meant": found.meant})

    @expose("/", methods=["POST"])
    @protect()
    def post(self) -> Response:
        """Register a patient.
        ---
        post:
          description: 201 with the row; 409 where somebody alike is registered and `insist` is not said.
          requestBody:
            required: true
            content:
              application/json:
                schema:
                  type: object
          responses:
            201:
              description: The row
            401:
              $ref: '#/components/responses/401'
            403:
              $ref: '#/components/responses/403'
            422:
              $ref: '#/components/responses/422'
        """
        body = body_of(PATIENT_SCHEMA)
        told = told_of(body)
        try:
            with guard.unit_of_work() as session:
                patient = patients.register(
                    session,
                    told,
                    identifiers=[(i["system"], i["value"]) for i in body.get("identifiers", [])],
                    region=region(),
                    insist=body.get("insist", False),
                )
        except PossibleDuplicate as refusal:
            return self._possible_duplicate(told, refusal)
        return sent({"id": patient.id, "result": plain(patient, self.columns)}, 201)

    def _possible_duplicate(self, told: patients.Demographics, refusal: Refusal) -> Response:
        likenesses = patients.likely_duplicates(
            guard.session(),
            family=told.family,
            given=told.given,
            second_family=told.second_family,
            birth_date=told.birth_date if told.birth_precision == "day" else None,
            phones=[point["value"] for point in told.telecom if point.get("system") == "phone"],
        )
        return sent(
            {
                "error": type(refusal).__name__,
                "message": str(refusal),
                "duplicates": [
                    {"id": like.patient.id, "mrn": like.patient.mrn, "score": like.score, "reasons": like.reasons}
                    for like in likenesses
                ],
            },
            refusal.status,
        )

    @expose("/<pk>", methods=["PUT"])
    @protect()
    def put(self, pk: str) -> Response:
        """Set a patient right.
        ---
        put:
          description: Changes what the body names; `version` refuses a change made on an older row.
          parameters:
          - in: path
            name: pk
            schema:
              type: integer
          requestBody:
            required: true
            content:
              application/json:
                schema:
                  type: object
          responses:
            200:
              description: The row
            401:
              $ref: '#/components/responses/401'
            404:
              $ref: '#/components/responses/404'
            422:
              $ref: '#/components/responses/422'
        """
        from app.services import clinical as charts

        body = body_of(PATIENT_SCHEMA)
        number = self.item(pk).id
        with guard.unit_of_work() as session:
            patient = charts.open_chart(session, number)
            if "version" in body and body["version"] != patient.version:
                raise Conflict
            given = [(i["system"], i["value"]) for i in body.get("identifiers", [])]
            patients.change(session, patient, told_of(body, patient), identifiers=given, region=region())
        return sent({"id": patient.id, "result": plain(patient, self.columns)})


class AuditEventApi(RecordApi):
    """The trail."""

    datamodel = RecordInterface(AuditEvent)
    include_route_methods: ClassVar[set[str]] = {"get_list", "info"}
    newest_first = "recorded"
    columns = (
        *("id", "recorded", "type", "subtype", "action", "outcome", "user_id", "agent_name", "roles", "branch_id"),
        *("purpose", "channel", "address", "user_agent", "session_id", "request_id", "patient_id", "entities", "query"),
        "reason",
    )


CODED = ("id", "fhir_id", "version", "patient_id", "encounter_id", "code_system", "code", "code_display")
RESOURCES: tuple[tuple[type[Protected], tuple[str, ...]], ...] = (
    (organization.Organization, ("id", "fhir_id", "version", "name", "active", "part_of_id")),
    (organization.Branch, ("id", "fhir_id", "version", "organization_id", "code", "time_zone", "currency", "active")),
    (
        organization.Practitioner,
        ("id", "fhir_id", "version", "family", "given", "prefix", "qualification", "active", "home_branch_id"),
    ),
    (organization.Room, ("id", "fhir_id", "version", "branch_id", "name", "kind", "capacity", "active")),
    (
        clinical.Encounter,
        (
            *("id", "fhir_id", "version", "patient_id", "status", "class_code", "type_code", "type_display", "reason"),
            *("started_at", "ended_at", "branch_id", "service_provider_id", "practitioner_id"),
        ),
    ),
    (
        clinical.Condition,
        (*CODED, "clinical_status", "verification_status", "category", "onset_at", "abatement_at", "recorded_at"),
    ),
    (
        clinical.AllergyIntolerance,
        (
            *CODED,
            "clinical_status",
            "verification_status",
            "type",
            "criticality",
            "reaction",
            "onset_at",
            "recorded_at",
        ),
    ),
    (
        clinical.Observation,
        (
            *(*CODED, "status", "category", "effective_at", "issued_at", "value_quantity", "value_unit", "value_text"),
            *("value_code", "interpretation", "reference_range", "component"),
        ),
    ),
    (clinical.Procedure, (*CODED, "status", "performed_at", "performed_until", "reason")),
    (clinical.Immunization, (*CODED, "status", "occurrence_at", "primary_source", "lot_number")),
    (clinical.DocumentReference, (*CODED, "status", "category", "title", "written_at", "author", "content")),
    (
        notes.ClinicalNote,
        (
            *("id", "fhir_id", "version", "patient_id", "encounter_id", "status", "title", "author_id", "branch_id"),
            *("written_at", "content", "template_id", "confidentiality", "replaces_id", "addendum_to_id"),
            *("signed_at", "digest", "cosigner_id", "cosigned_at", "withdrawn_at", "withdrawn_reason"),
        ),
    ),
    (lab.DiagnosticReport, (*CODED, "status", "category", "effective_at", "issued_at", "conclusion", "presented_form")),
    (
        prescriptions.MedicationDispense,
        (
            *("id", "fhir_id", "version", "patient_id", "medication_request_id", "medication_id", "status"),
            *("status_reason", "quantity", "quantity_unit", "prepared_at", "handed_over_at", "performer_id"),
            "branch_id",
        ),
    ),
    (
        prescriptions.DetectedIssue,
        (
            *("id", "fhir_id", "version", "patient_id", "medication_request_id", "medication_dispense_id", "code"),
            *("severity", "detail", "reference", "identified_at", "mitigation", "mitigation_note", "author_id"),
        ),
    ),
    (
        prescriptions.Medication,
        ("id", "fhir_id", "version", "code_system", "code", "display", "dose_form", "unit", "ingredient", "active"),
    ),
    (
        lab.ServiceRequest,
        (
            *(*CODED, "status", "status_reason", "intent", "priority", "category", "authored_at", "requester_id"),
            *("branch_id", "note"),
        ),
    ),
    (
        lab.LabTest,
        (
            *("id", "fhir_id", "version", "code_system", "code", "name", "abbreviation", "kind", "specimen_type"),
            *("unit", "decimals", "method", "plausible_low", "plausible_high", "reporting_low", "reporting_high"),
            "active",
        ),
    ),
    (lab.LabPanel, ("id", "fhir_id", "version", "code_system", "code", "name", "active")),
    (
        lab.ReferenceRange,
        (
            *("id", "fhir_id", "version", "test_id", "sex", "since_age", "since_unit", "until_age", "until_unit"),
            *("pregnant", "low", "high", "critical_low", "critical_high", "valid_from", "valid_until", "source"),
        ),
    ),
    (lab.UnitConversion, ("id", "fhir_id", "version", "test_id", "source", "target", "factor")),
    (notes.NoteTemplate, ("id", "fhir_id", "version", "key", "edition", "name", "kind", "schema", "active")),
)
"""Every resource that is read over REST, and the columns it shows: named one by one, never taken by default."""


def resource_api(model: Any, columns: tuple[str, ...]) -> type[RecordApi]:
    """The API of a resource that is read only."""
    return type(f"{model.__name__}Api", (RecordApi,), {"datamodel": RecordInterface(model), "columns": columns})


def register(builder: Any) -> None:
    """Every resource."""
    builder.add_api(PatientApi)
    builder.add_api(AuditEventApi)
    for model, columns in RESOURCES:
        builder.add_api(resource_api(model, columns))
