"""The shape of a note: the part of JSON Schema 2020-12 that a form can show, and whether a note's content fits it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from jsonschema import Draft202012Validator, FormatChecker, SchemaError

from app.errors import Invalid, SchemaUnsupported, TooLarge
from app.services.words import CONTROL

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
LARGEST: Final = 200_000
"""Bytes of a note's content as JSON."""
LARGEST_SCHEMA: Final = 64_000
"""Bytes of a template's schema as JSON."""
MOST_FIELDS: Final = 100
LONG: Final = 200
"""A text that may be longer than this is written on several lines."""
MOST: Final = 2**53 - 1
"""Numbers beyond this are not the same in every language, nor in RFC 8785."""
NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
ORDER: Final = "x-order"
"""Our keyword for the order of fields, which JSON does not keep."""
UNIT: Final = "x-unit"
"""Our keyword for the unit of a number, in UCUM."""

_EVERY = frozenset({"type", "title", "description"})
_OBJECT = _EVERY | {"properties", "required", "additionalProperties", ORDER}
_ROOT = _OBJECT | {"$schema", "$id"}
_KEYWORDS: dict[str, frozenset[str]] = {
    "string": _EVERY | {"format", "enum", "minLength", "maxLength"},
    "number": _EVERY | {"minimum", "maximum", UNIT},
    "integer": _EVERY | {"minimum", "maximum", UNIT},
    "boolean": _EVERY,
    "array": _EVERY | {"items", "minItems", "maxItems", "uniqueItems"},
    "object": _OBJECT,
}
_LENIENT = frozenset({"required", "minLength", "minItems", "minimum", "maximum"})
"""What a draft need not keep to yet."""
_DATES = FormatChecker(formats=["date"])


class Kind(StrEnum):
    """How a field is filled in."""

    LINE = "line"
    AREA = "area"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    DATE = "date"
    CHOICE = "choice"
    SEVERAL = "several"
    SECTION = "section"


@dataclass(frozen=True)
class Field:
    """One field of a template, or a section of them."""

    path: str
    """`plan`, or `vitals.pulse` within a section."""
    kind: Kind
    label: str
    hint: str = ""
    required: bool = False
    unit: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    longest: int | None = None
    fields: tuple[Field, ...] = ()

    @property
    def key(self) -> str:
        """The name within its section."""
        return self.path.rpartition(".")[2]


# ---- schemas -----------------------------------------------------------------------------------------------------


def checked(schema: Any) -> dict[str, Any]:
    """A schema as it is stored: closed, with the order of its fields said.

    Raises SchemaUnsupported naming the part that is no JSON Schema or that the form cannot show.
    """
    if not isinstance(schema, dict):
        raise SchemaUnsupported("A template is a JSON Schema of an object.")
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (ValueError, TypeError, RecursionError) as error:
        raise SchemaUnsupported("This is no JSON.") from error
    if size > LARGEST_SCHEMA:
        raise SchemaUnsupported(f"A template can have up to {LARGEST_SCHEMA:,} characters.")
    schema = _storable(schema)
    try:
        Draft202012Validator.check_schema(schema)
    except RecursionError as error:
        raise SchemaUnsupported("This is nested too deeply.") from error
    except SchemaError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "the schema"
        raise SchemaUnsupported(f"This is no JSON Schema: look at “{where[:80]}”.") from error
    if schema.get("$schema", DIALECT) != DIALECT:
        raise SchemaUnsupported("Only JSON Schema 2020-12 is supported.")
    closed = {"$schema": DIALECT, **_object(schema, "", _ROOT)}
    count = sum(1 for field in fields(closed) for _ in (field.fields or (field,)))
    if not count:
        raise SchemaUnsupported("A template needs a field at least.")
    if count > MOST_FIELDS:
        raise SchemaUnsupported(f"A template can have up to {MOST_FIELDS} fields.")
    return closed


def _storable(value: Any) -> Any:
    """A schema with its texts as a note's are kept (NFC), so that a choice is the same in both.

    Raises SchemaUnsupported for letters the database does not take.
    """
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value)
        if any(unicodedata.category(letter) in CONTROL for letter in text if letter not in "\n\t"):
            raise SchemaUnsupported("There are characters in this template that cannot be stored.")
        return text
    try:
        if isinstance(value, dict):
            return {_storable(key): _storable(part) for key, part in value.items()}
        return [_storable(part) for part in value] if isinstance(value, list) else value
    except RecursionError as error:
        raise SchemaUnsupported("This is nested too deeply.") from error


def _object(schema: Mapping[str, Any], path: str, allowed: frozenset[str]) -> dict[str, Any]:
    """An object of the schema, closed and in order."""
    where = path or "the template"
    if schema.get("type") != "object":
        raise SchemaUnsupported(f"“{where}” has to be of type “object”.")
    _only(schema, allowed, where)
    if schema.get("additionalProperties", False) is not False:
        raise SchemaUnsupported(f"“additionalProperties” in “{where}” is not supported: a form has the fields it has.")
    properties = schema.get("properties", {})
    if path and not properties:
        raise SchemaUnsupported(f"The section “{path}” has no fields.")
    for name in properties:
        if not NAME.fullmatch(name):
            raise SchemaUnsupported(f"“{name[:60]}” is no name for a field: use small letters, digits and _.")
    order = schema.get(ORDER, list(properties))
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(properties):
        raise SchemaUnsupported(f"“{ORDER}” in “{where}” has to name every field once.")
    for name in schema.get("required", []):
        if name not in properties:
            raise SchemaUnsupported(f"“{name[:60]}” is required in “{where}”, and is no field of it.")
    return {
        **{key: value for key, value in schema.items() if key not in ("properties", ORDER)},
        "additionalProperties": False,
        "properties": {name: _property(properties[name], f"{path}.{name}" if path else name) for name in order},
        ORDER: order,
    }


def _property(schema: Any, path: str) -> dict[str, Any]:
    """One field of the schema. Raises SchemaUnsupported naming what is not supported."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if not isinstance(kind, str) or kind not in _KEYWORDS:
        raise SchemaUnsupported(f"“{path}” has no type that a form can show: use {', '.join(sorted(_KEYWORDS))}.")
    if kind == "object":
        if "." in path:
            raise SchemaUnsupported(f"“{path}” is a section within a section, which is not supported.")
        return _object(schema, path, _KEYWORDS["object"])
    _only(schema, _KEYWORDS[kind], path)
    if kind == "string" and schema.get("format", "date") not in ("date", "textarea"):
        raise SchemaUnsupported(f"The format “{str(schema['format'])[:40]}” in “{path}” is not supported.")
    if kind == "string" and "enum" in schema:
        _choices(schema["enum"], path)
    if kind == "array":
        items = schema.get("items")
        if not isinstance(items, dict) or set(items) - {"type", "enum"} or items.get("type", "string") != "string":
            raise SchemaUnsupported(f"“items” in “{path}” has to be a list of choices: type “string” with “enum”.")
        _choices(items.get("enum"), path)
    for bound in ("minimum", "maximum"):
        if abs(schema.get(bound, 0)) > MOST:
            raise SchemaUnsupported(f"“{bound}” in “{path}” is too large a number.")
    if not isinstance(schema.get(UNIT, ""), str) or len(schema.get(UNIT, "")) > 40:
        raise SchemaUnsupported(f"“{UNIT}” in “{path}” has to be a unit of UCUM, such as mm[Hg].")
    return dict(schema)


def _only(schema: Mapping[str, Any], allowed: frozenset[str], where: str) -> None:
    for keyword in schema:
        if keyword not in allowed:
            raise SchemaUnsupported(f"“{keyword[:40]}” in “{where}” is not supported.")


def _choices(choices: Any, path: str) -> None:
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c.strip() for c in choices):
        raise SchemaUnsupported(f"The choices of “{path}” have to be texts.")
    if any(choice != choice.strip() for choice in choices):
        raise SchemaUnsupported(f"The choices of “{path}” cannot begin or end with a space.")


def fields(schema: Mapping[str, Any], path: str = "") -> tuple[Field, ...]:
    """The fields of a stored schema, in order."""
    required = set(schema.get("required", ()))
    properties = schema.get("properties", {})
    return tuple(
        _field(properties[name], f"{path}.{name}" if path else name, name in required)
        for name in schema.get(ORDER, properties)
        if name in properties
    )


def _field(schema: Mapping[str, Any], path: str, required: bool) -> Field:
    name = path.rpartition(".")[2]
    label = str(schema.get("title") or name.replace("_", " ").capitalize())
    hint = str(schema.get("description", ""))
    kind = schema["type"]
    if kind == "object":
        return Field(path, Kind.SECTION, label, hint, required, fields=fields(schema, path))
    if kind == "array":
        return Field(path, Kind.SEVERAL, label, hint, required, choices=tuple(schema["items"]["enum"]))
    if kind == "boolean":
        return Field(path, Kind.BOOLEAN, label, hint, required)
    if kind in ("number", "integer"):
        least, most = schema.get("minimum"), schema.get("maximum")
        return Field(
            path, Kind(kind), label, hint, required, unit=str(schema.get(UNIT, "")), minimum=least, maximum=most
        )
    if "enum" in schema:
        return Field(path, Kind.CHOICE, label, hint, required, choices=tuple(schema["enum"]))
    if schema.get("format") == "date":
        return Field(path, Kind.DATE, label, hint, required)
    longest = schema.get("maxLength")
    area = schema.get("format") == "textarea" or (longest or 0) > LONG
    return Field(path, Kind.AREA if area else Kind.LINE, label, hint, required, longest=longest)


# ---- content -----------------------------------------------------------------------------------------------------


def cleaned(content: Mapping[str, Any]) -> dict[str, Any]:
    """A note's content as it is stored: NFC, one kind of line end, and nothing that says nothing.

    Raises Invalid for what no database or reader could keep, and TooLarge.
    """
    found = _clean(content, 0)
    if len(json.dumps(found, ensure_ascii=False).encode()) > LARGEST:
        raise TooLarge(f"A note holds up to {LARGEST:,} letters.")
    return found if isinstance(found, dict) else {}


def _clean(value: Any, depth: int) -> Any:
    if depth > 3:
        raise Invalid("A note does not go that deep.")
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value.replace("\r\n", "\n").replace("\r", "\n")).strip()
        if any(unicodedata.category(letter) in CONTROL for letter in text if letter not in "\n\t"):
            raise Invalid("There are characters in this text that cannot be stored.")
        return text
    if isinstance(value, Mapping):
        kept = {str(key): _clean(part, depth + 1) for key, part in value.items()}
        return {key: part for key, part in kept.items() if part not in ("", None, [], {})}
    if isinstance(value, list):
        return [part for part in (_clean(one, depth + 1) for one in value) if part not in ("", None)]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float) and abs(value) <= MOST:
        return value
    raise Invalid("There is a number in this note that cannot be stored.")


def faults(schema: Mapping[str, Any], content: Mapping[str, Any], *, draft: bool) -> dict[str, str]:
    """What does not fit, by path of the field, with a sentence each; a draft may be incomplete.

    A section is there even where nothing was written in it, so what is required within one is always asked for.
    """
    whole = {field.key: {} for field in fields(schema) if field.kind is Kind.SECTION} | dict(content)
    found: dict[str, str] = {}
    for error in Draft202012Validator(_lenient(schema) if draft else schema, format_checker=_DATES).iter_errors(whole):
        path = ".".join(str(part) for part in error.absolute_path if isinstance(part, str))
        if error.validator == "required":
            for name in error.validator_value:
                if name not in error.instance:
                    found[f"{path}.{name}" if path else str(name)] = "Please fill this in."
        elif error.validator == "additionalProperties":
            found.setdefault(path, "There is a field in this note that its template does not have.")
        else:
            found.setdefault(path, _sentence(str(error.validator), error.validator_value))
    return found


def _sentence(validator: str, value: Any) -> str:
    told = {
        "minimum": f"This has to be {value} or more.",
        "maximum": f"This has to be {value} or less.",
        "minLength": f"Please write {value} letters at least.",
        "maxLength": f"This can have up to {value} letters.",
        "enum": "Please choose one of those offered.",
        "format": "Please write a day of the calendar.",
        "minItems": f"Please choose {value} at least.",
        "maxItems": f"Please choose up to {value}.",
        "uniqueItems": "Each can be chosen once.",
    }
    if validator == "type":
        kinds = {"number": "This has to be a number.", "integer": "This has to be a whole number."}
        return kinds.get(str(value), "This is not of the kind its template asks for.")
    return told.get(validator, "This does not fit the template.")


def _lenient(schema: Any) -> Any:
    """The same shape without what has to be there only when it is signed."""
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in _LENIENT}
    if "properties" in kept:
        kept["properties"] = {name: _lenient(part) for name, part in kept["properties"].items()}
    return kept


def every(shape: tuple[Field, ...]) -> Iterator[Field]:
    """Every field one writes in, those of sections where they come."""
    for field in shape:
        yield from field.fields or (field,)


def value_at(content: Mapping[str, Any], path: str) -> Any:
    """What a note says in a field; None for nothing."""
    value: Any = content
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def spoken(value: Any) -> str:
    """A value as text, for reading and for comparing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, list):
        return ", ".join(spoken(part) for part in value)
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {spoken(part)}" for key, part in value.items())
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)


def strangers(shape: tuple[Field, ...], content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a note says beside its template, as notes from elsewhere do: (path, value)."""
    known = {field.path for field in every(shape)} | {field.path for field in shape}
    for key, value in content.items():
        if key not in known:
            yield key, value
