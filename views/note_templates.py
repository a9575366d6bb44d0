"""The templates of notes, for administrators: fields in a table, or as JSON Schema for whoever knows it."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext

from app import guard
from app.errors import Refusal, SchemaUnsupported
from app.services import note_shape, note_templates
from app.services.note_shape import NAME, ORDER, UNIT, Field, Kind
from models.codes import NoteKind
from models.notes import NoteTemplate
from views.base import Page, open_to, words

KINDS = {
    NoteKind.PROGRESS: lazy_gettext("Progress"),
    NoteKind.ADMISSION: lazy_gettext("Admission"),
    NoteKind.DISCHARGE: lazy_gettext("Discharge"),
    NoteKind.PROCEDURE: lazy_gettext("Procedure"),
    NoteKind.FREE: lazy_gettext("Anything"),
    NoteKind.ADDENDUM: lazy_gettext("Addendum"),
}
FIELDS = {
    Kind.LINE: lazy_gettext("One line"),
    Kind.AREA: lazy_gettext("Several lines"),
    Kind.NUMBER: lazy_gettext("Number"),
    Kind.INTEGER: lazy_gettext("Whole number"),
    Kind.BOOLEAN: lazy_gettext("Yes or no"),
    Kind.DATE: lazy_gettext("Day"),
    Kind.CHOICE: lazy_gettext("One of a list"),
    Kind.SEVERAL: lazy_gettext("Several of a list"),
}
BLANK = 3
"""Empty lines at the end of the table."""
TYPES: dict[str, dict[str, Any]] = {
    Kind.LINE: {"type": "string"},
    Kind.AREA: {"type": "string", "format": "textarea"},
    Kind.NUMBER: {"type": "number"},
    Kind.INTEGER: {"type": "integer"},
    Kind.BOOLEAN: {"type": "boolean"},
    Kind.DATE: {"type": "string", "format": "date"},
    Kind.CHOICE: {"type": "string"},
    Kind.SEVERAL: {"type": "array", "uniqueItems": True},
}
KEPT = {
    Kind.LINE: ("minLength", "maxLength"),
    Kind.AREA: ("minLength", "maxLength"),
    Kind.SEVERAL: ("minItems", "maxItems"),
}
"""What an expert may have said of a field, which the table does not show and keeps."""


class NoteTemplates(Page):
    """Templates and their editions."""

    route_base = "/note-templates"
    default_view = "list"

    @expose("/")
    @open_to("update", "NoteTemplate")
    def list(self) -> str:
        """Every template in its newest edition."""
        return self.render(
            "notes/templates.html",
            page_title=gettext("Note templates"),
            templates=[
                {
                    "name": template.name,
                    "kind": KINDS[NoteKind(template.kind)],
                    "edition": template.edition,
                    "changed": words(template.created_at),
                    "active": template.active,
                    "fields": ", ".join(field.label for field in note_shape.fields(template.schema)),
                    "href": url_for("NoteTemplates.edit", key=template.key),
                }
                for template in note_templates.newest(guard.session())
            ],
        )

    @expose("/new", methods=["GET", "POST"])
    @open_to("update", "NoteTemplate")
    def new(self) -> Any:
        """A new template."""
        return self._form(None)

    @expose("/of/<key>", methods=["GET", "POST"])
    @open_to("update", "NoteTemplate")
    def edit(self, key: str) -> Any:
        """A new edition of a template, from one of its editions (`edition`), the newest where none is named."""
        editions = note_templates.editions(guard.session(), key)
        wanted = request.args.get("edition", "")
        chosen = next((one for one in editions if str(one.edition) == wanted), editions[0])
        return self._form(chosen, [*editions])

    @expose("/of/<key>/retire", methods=["POST"])
    @open_to("update", "NoteTemplate")
    def retire(self, key: str) -> Any:
        """Write no new notes with a template."""
        try:
            with guard.unit_of_work() as session:
                note_templates.retire(session, key)
        except Refusal as refusal:
            if refusal.status == 404:
                raise
            flash(gettext(str(refusal)), "warning")
            return redirect(url_for("NoteTemplates.edit", key=key))
        flash(gettext("The template is retired. Notes that were written with it stay."), "success")
        return redirect(url_for("NoteTemplates.list"))

    def _form(self, template: NoteTemplate | None, editions: Any = ()) -> Any:
        newest = editions[0].edition if editions else 0
        old = template.schema if template else {}
        told = [
            {
                "edition": one.edition,
                "when": words(one.created_at),
                "name": one.name,
                "active": one.active,
                "chosen": template is not None and one.edition == template.edition,
                "href": url_for("NoteTemplates.edit", key=one.key, edition=one.edition),
            }
            for one in editions
        ]
        key = template.key if template else ""
        name = request.form.get("name", template.name if template else "")
        kind = request.form.get("kind", template.kind if template else NoteKind.FREE)
        expert = request.values.get("as") == "json"
        do = request.form.get("do", "")
        sentence, status, schema, fault = None, 200, old, ""
        if request.method == "POST":
            try:
                schema = read_json(request.form.get("schema", "")) if expert else schema_from(old)
                if do in ("json", "table"):
                    expert = do == "json"
                checked = note_shape.checked(schema) if schema.get("properties") or do == "save" else schema
                if do == "save":
                    with guard.unit_of_work() as session:
                        saved = note_templates.save_template(
                            session,
                            name=name,
                            kind=kind,
                            schema=schema,
                            key=key,
                            seen=int(request.form["seen"]) if request.form.get("seen", "").isdecimal() else None,
                        )
                    flash(gettext("Edition %(number)s is saved, and in use.", number=saved.edition), "success")
                    return redirect(url_for("NoteTemplates.edit", key=saved.key))
                schema = checked
            except Refusal as refusal:
                sentence, status, fault = gettext(str(refusal)), refusal.status, refusal.field or ""
        return (
            self.render(
                "notes/template.html",
                page_title=name or gettext("New template"),
                key=key,
                name=name,
                kind=kind,
                kinds=KINDS.items(),
                field_kinds=FIELDS.items(),
                expert=expert,
                json=request.form.get("schema")
                if expert and do not in ("json", "table") and request.form.get("schema")
                else json.dumps(schema, indent=2, ensure_ascii=False),
                rows=lines(schema, sentence) if not expert else [],
                preview=note_shape.fields(schema) if do == "preview" and not sentence else (),
                seen=request.form.get("seen", newest),
                editions=told,
                retirable=bool(key) and key != note_templates.ADDENDUM and any(one["active"] for one in told),
                retire_href=url_for("NoteTemplates.retire", key=key) if key else None,
                action=url_for("NoteTemplates.edit", key=key) if key else url_for("NoteTemplates.new"),
                refusal=sentence,
                fault=fault,
            ),
            status,
        )


# ---- the table -----------------------------------------------------------------------------------------------------


def read_json(text: str) -> dict[str, Any]:
    """A schema as it was typed. Raises SchemaUnsupported saying where it is no JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 0)
        raise SchemaUnsupported(gettext("This is no JSON: look at line %(line)s.", line=line)) from error
    if not isinstance(found, dict):
        raise SchemaUnsupported("A template is a JSON Schema of an object.")
    return found


def lines(schema: dict[str, Any], sentence: str | None) -> list[dict[str, Any]]:
    """The table's lines: what was typed where that was refused, else the fields of a schema; some empty ones after."""
    if request.method == "POST" and sentence and request.values.get("as") != "json":
        found = typed()
    else:
        found = []
        for field in note_shape.fields(schema):
            for part in field.fields or (field,):
                found.append(line_of(part, field.label if field.fields else ""))
    more = 2 * BLANK if request.form.get("do") == "more" else BLANK
    blank = {"key": "", "label": "", "kind": Kind.AREA, "section": "", "required": False, "hint": "", "choices": ""}
    blank |= {"unit": "", "minimum": "", "maximum": ""}
    return [{**line, "order": place} for place, line in enumerate([*found, *([blank] * more)], 1)]


def line_of(field: Field, section: str) -> dict[str, Any]:
    """A field as a line of the table."""
    return {
        "key": field.path,
        "label": field.label,
        "kind": field.kind,
        "section": section,
        "required": field.required,
        "hint": field.hint,
        "choices": "\n".join(field.choices),
        "unit": field.unit,
        "minimum": "" if field.minimum is None else f"{field.minimum:g}",
        "maximum": "" if field.maximum is None else f"{field.maximum:g}",
    }


def typed() -> list[dict[str, Any]]:
    """The lines as they were typed, in the order asked for; those without a label are left out."""
    found: list[tuple[float, int, dict[str, Any]]] = []
    names = ("key", "label", "kind", "section", "hint", "choices", "unit", "minimum", "maximum")
    for place in range(note_shape.MOST_FIELDS + 2 * BLANK):
        if f"label-{place}" not in request.form:
            break
        line: dict[str, Any] = {name: request.form.get(f"{name}-{place}", "").strip() for name in names}
        line["required"] = f"required-{place}" in request.form
        order = request.form.get(f"order-{place}", "").replace(",", ".")
        if line["label"] and f"remove-{place}" not in request.form:
            where = float(order) if re.fullmatch(r"\d{1,4}(\.\d)?", order) else float(place + 1)
            found.append((where, place, line))
    return [line for _, _, line in sorted(found, key=lambda one: one[:2])]


def schema_from(old: dict[str, Any]) -> dict[str, Any]:
    """The schema the table amounts to; names of fields that were there stay. Raises SchemaUnsupported."""
    rooms: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    needed: dict[str, list[str]] = {"": []}
    sections = {
        part.get("title", key): (key, part)
        for key, part in old.get("properties", {}).items()
        if part.get("type") == "object"
    }
    for line in typed():
        before = note_shape_at(old, line["key"])
        home, path = top, ""
        if line["section"]:
            key, told = sections.get(line["section"], ("", {}))
            path = key or name_for(line["section"], {*top, *sections})
            if path not in rooms:
                rooms[path] = {}
                said = {"description": told["description"]} if told.get("description") else {}
                top[path] = {"type": "object", "title": line["section"], **said, "properties": rooms[path]}
                sections.setdefault(line["section"], (path, told))
                needed[path] = []
            home = rooms[path]
        name = line["key"].rpartition(".")[2]
        if not NAME.fullmatch(name) or name in home:
            name = name_for(line["label"], {*home, *(old.get("properties", {}) if not path else {})})
        home[name] = property_of(line, before)
        if line["required"]:
            needed[path].append(name)
    for path, room in rooms.items():
        top[path] |= {"required": needed[path], ORDER: list(room)}
    return {"type": "object", "properties": top, "required": needed[""], ORDER: list(top)}


def note_shape_at(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """The part of a schema that speaks of a field; nothing where there is none."""
    part: Any = schema
    for name in path.split(".") if path else ():
        part = part.get("properties", {}).get(name, {})
    return part if path and isinstance(part, dict) else {}


def property_of(line: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """One line of the table as JSON Schema. Raises SchemaUnsupported for what it does not say."""
    kind = line["kind"] if line["kind"] in TYPES else Kind.LINE
    label = line["label"][:120]
    found: dict[str, Any] = {**TYPES[kind], "title": label}
    if line["hint"]:
        found["description"] = line["hint"][:300]
    if before.get("type") == found["type"]:
        found |= {keyword: before[keyword] for keyword in KEPT.get(Kind(kind), ()) if keyword in before}
    if kind in (Kind.CHOICE, Kind.SEVERAL):
        choices = [*dict.fromkeys(choice.strip() for choice in line["choices"].splitlines() if choice.strip())]
        if not choices:
            raise SchemaUnsupported(gettext("“%(field)s” needs choices, one on each line.", field=label))
        if kind == Kind.CHOICE:
            found["enum"] = choices
        else:
            found["items"] = {"type": "string", "enum": choices}
    if kind in (Kind.NUMBER, Kind.INTEGER):
        if line["unit"]:
            found[UNIT] = line["unit"]
        for bound in ("minimum", "maximum"):
            text = line[bound].replace(",", ".")
            if text and not re.fullmatch(r"-?\d{1,12}(\.\d{1,6})?", text):
                raise SchemaUnsupported(gettext("The bounds of “%(field)s” have to be numbers.", field=label))
            if text:
                found[bound] = float(text) if "." in text else int(text)
    return found


def name_for(label: str, taken: set[str]) -> str:
    """A name for a field that no other has, from what it is called."""
    plain = unicodedata.normalize("NFKD", label.casefold()).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:34]
    if not stem or not stem[0].isalpha():
        stem = f"field_{stem}".rstrip("_")
    return next(name for name in (stem, *(f"{stem}_{n}" for n in range(2, len(taken) + 3))) if name not in taken)


def register(builder: Any) -> None:
    """The pages."""
    builder.add_view_no_menu(NoteTemplates)
