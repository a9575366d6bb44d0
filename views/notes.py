"""Notes: writing, signing, adding to, comparing, finding and printing them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from typing import Any

from flask import current_app, flash, jsonify, make_response, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import get_locale, gettext, lazy_gettext
from werkzeug.wrappers import Response

from app import documents, guard
from app.actor import current
from app.errors import NoteBroken, Refusal
from app.services import clinical, note_shape, note_templates, notes
from app.services.note_shape import Field, Kind
from models.base import now
from models.codes import CompositionStatus, Confidentiality
from models.notes import ClinicalNote
from models.patients import Patient
from views.base import Page, branch_zone, open_to, words
from views.branches import all_branches
from views.chart import unit
from views.people import age, born, name_of

LEVELS = {
    Confidentiality.NORMAL: lazy_gettext("Everybody who may read notes"),
    Confidentiality.RESTRICTED: lazy_gettext("Only those who take part in the care"),
    Confidentiality.VERY_RESTRICTED: lazy_gettext("Only those who sign it"),
}
STATES = {
    CompositionStatus.PRELIMINARY: (lazy_gettext("Draft"), "warn", "edit"),
    CompositionStatus.FINAL: (lazy_gettext("Signed"), "ok", "check"),
    CompositionStatus.AMENDED: (lazy_gettext("Signed, new version"), "ok", "check"),
    CompositionStatus.ENTERED_IN_ERROR: (lazy_gettext("Withdrawn"), "danger", "close"),
}


class Notes(Page):
    """Everything that is done with notes."""

    route_base = ""
    default_view = "mine"

    # ---- of a patient

    @expose("/patients/<int:patient_id>/notes/")
    @open_to("read", "ClinicalNote")
    def list(self, patient_id: int) -> str:
        """A patient's notes, or those of them that have some words."""
        session, asked = guard.session(), request.args.get("q", "").strip()
        patient = clinical.open_chart(session, patient_id)
        hits = notes.search(session, asked, patient_id=patient_id) if asked else []
        found = [] if asked else notes.of_patient(session, patient_id)
        return self.render(
            "notes/list.html",
            page_title=gettext("Notes of %(name)s", name=name_of(patient)),
            patient=strip(patient),
            asked=asked,
            hits=[told_hit(hit) for hit in hits],
            rows=in_order(found),
            cut=notes.LONGEST_LIST if len(found) == notes.LONGEST_LIST else 0,
            write_href=write_href(patient_id),
        )

    @expose("/patients/<int:patient_id>/notes/new", methods=["GET", "POST"])
    @open_to("create", "ClinicalNote")
    def write(self, patient_id: int) -> Any:
        """Choose a template, and begin."""
        session = guard.session()
        patient = clinical.open_chart(session, patient_id)
        sentence, status = None, 200
        encounter = request.values.get("encounter", "")
        if request.method == "POST":
            try:
                with guard.unit_of_work() as work:
                    note = notes.begin(
                        work,
                        patient_id=patient_id,
                        template=request.form.get("template", ""),
                        encounter_id=_number(encounter),
                    )
                return redirect(url_for("Notes.edit", note_id=note.id))
            except Refusal as refusal:
                sentence, status = str(refusal), refusal.status
        return (
            self.render(
                "notes/choose.html",
                page_title=gettext("Write a note"),
                patient=strip(patient),
                templates=[
                    {
                        "key": template.key,
                        "name": template.name,
                        "fields": ", ".join(field.label for field in note_shape.fields(template.schema)),
                    }
                    for template in note_templates.templates(session)
                    if template.key != note_templates.ADDENDUM
                ],
                encounter=encounter if encounter.isdecimal() else "",
                refusal=sentence,
            ),
            status,
        )

    # ---- one note

    @expose("/notes/<int:note_id>/")
    @open_to("read", "ClinicalNote")
    def show(self, note_id: int) -> Any:
        """A note as it is read."""
        return self._show(note_id)

    def _show(self, note_id: int, sentence: str | None = None, status: int = 200, reason: str = "") -> Any:
        session = guard.session()
        note = notes.open_note(session, note_id)
        family = notes.versions(session, note)
        newer = next((v for v in reversed(family) if v.signed_at and v.replaces_id and v.id > note.id), None)
        return (
            self.render(
                "notes/show.html",
                page_title=note.title,
                note=told(note),
                patient=strip(note.patient),
                body=read_out(note),
                addenda=[{**told(one), "body": read_out(one)} for one in notes.addenda(session, note)],
                versions=[told(version) for version in family] if len(family) > 1 else [],
                diffs=[
                    {
                        "href": url_for("Notes.diff", note_id=after.id, older=before.id),
                        "label": gettext("Version %(old)s to %(new)s", old=number, new=number + 1),
                    }
                    for number, (before, after) in enumerate(pairwise(family), 1)
                ],
                newer_href=url_for("Notes.show", note_id=newer.id) if newer else None,
                acts=acts(note, family),
                refusal=sentence,
                reason=reason,
            ),
            status,
        )

    @expose("/notes/<int:note_id>/edit", methods=["GET", "POST"])
    @open_to("update", "ClinicalNote")
    def edit(self, note_id: int) -> Any:
        """The form of a draft; saving keeps it, signing asks once more."""
        note = notes.open_note(guard.session(), note_id)
        if not writable(note):
            return redirect(url_for("Notes.show", note_id=note_id))
        if request.method != "POST":
            return self._form(note, values_of(note))
        shape = shape_of(note)
        try:
            saved = self._save(note_id, shape)
        except Refusal as refusal:
            faults = refusal.faults if isinstance(refusal, NoteBroken) else {}
            again = notes.open_note(guard.session(), note_id)  # a refusal rolls back, and forgets what was loaded
            page = self._form(again, typed(shape), faults=faults, sentence=str(refusal), status=refusal.status)
            return page, refusal.status
        if request.form.get("do") != "sign":
            flash(gettext("The draft is saved."), "success")
            return redirect(url_for("Notes.edit", note_id=note_id))
        return self._missing(saved) or redirect(url_for("Notes.sign", note_id=note_id))

    @expose("/notes/<int:note_id>/draft.json", methods=["POST"])
    @open_to("update", "ClinicalNote")
    def autosave(self, note_id: int) -> Response:
        """Keep a draft while it is written. A refusal says why, and nothing is kept."""
        note = notes.open_note(guard.session(), note_id)
        saved = self._save(note_id, shape_of(note))
        here = now().astimezone(branch_zone())
        return jsonify({"version": saved.version, "said": gettext("Saved %(time)s", time=f"{here:%H:%M}")})

    def _save(self, note_id: int, shape: Sequence[Field]) -> ClinicalNote:
        content = content_of(shape)
        with guard.unit_of_work() as session:
            return notes.save_draft(
                session,
                note_id,
                version=_number(request.form.get("version", "")) or 0,
                content=content,
                title=request.form.get("title", ""),
                confidentiality=request.form.get("confidentiality", Confidentiality.NORMAL),
            )

    def _missing(self, note: ClinicalNote) -> Any:
        """The form again, where something that has to be there is missing; None where nothing is."""
        template = note.template
        faults = note_shape.faults(template.schema, note.content, draft=False) if template else {}
        if not faults:
            return None
        sentence = gettext("The draft is saved. It cannot be signed yet.")
        return self._form(note, values_of(note), faults=faults, sentence=sentence), 422

    def _form(
        self,
        note: ClinicalNote,
        values: Mapping[str, Any],
        *,
        faults: Mapping[str, str] | None = None,
        sentence: str | None = None,
        status: int = 200,
    ) -> str:
        shape = shape_of(note)
        sent = request.form if request.method == "POST" and "title" in request.form else {}
        return self.render(
            "notes/edit.html",
            page_title=note.title,
            note=told(note),
            title=sent.get("title", note.title),
            level=sent.get("confidentiality", note.confidentiality),
            version=note.version if status != 409 else sent.get("version", ""),
            conflict=status == 409,
            patient=strip(note.patient),
            shape=shape,
            values=values,
            faults=faults or {},
            wrong=[
                {"path": field.path, "label": field.label, "sentence": gettext(faults[field.path])}
                for field in note_shape.every(tuple(shape))
                if faults and field.path in faults
            ],
            levels=LEVELS.items(),
            refusal=sentence,
        )

    @expose("/notes/<int:note_id>/sign", methods=["GET", "POST"])
    @open_to("update", "ClinicalNote")
    def sign(self, note_id: int) -> Any:
        """Look at it once more, and sign."""
        note = notes.open_note(guard.session(), note_id)
        if not writable(note):
            if request.method != "POST":
                return redirect(url_for("Notes.show", note_id=note_id))
        elif missing := self._missing(note):
            return missing
        sentence, status = None, 200
        if request.method == "POST":
            try:
                with guard.unit_of_work() as session:
                    notes.sign(session, note_id, version=_number(request.form.get("version", "")) or 0)
                flash(gettext("The note is signed."), "success")
                return redirect(url_for("Notes.show", note_id=note_id))
            except Refusal as refusal:
                note = notes.open_note(guard.session(), note_id)
                if not writable(note):
                    return self._show(note_id, str(refusal), refusal.status)
                sentence, status = str(refusal), refusal.status
        supervised = note.author.supervised_by_id is not None
        return (
            self.render(
                "notes/sign.html",
                page_title=gettext("Sign the note"),
                note=told(note),
                patient=strip(note.patient),
                body=read_out(note),
                version=note.version,
                supervised=supervised,
                refusal=sentence,
            ),
            status,
        )

    @expose("/notes/<int:note_id>/cosign", methods=["POST"])
    @open_to("update", "ClinicalNote")
    def cosign(self, note_id: int) -> Any:
        """Sign a note of somebody in training as well."""
        try:
            with guard.unit_of_work() as session:
                notes.cosign(session, note_id)
        except Refusal as refusal:
            return self._refused(note_id, refusal)
        flash(gettext("The note is signed by you as well."), "success")
        return redirect(url_for("Notes.show", note_id=note_id))

    @expose("/notes/<int:note_id>/addendum", methods=["POST"])
    @open_to("create", "ClinicalNote")
    def addendum(self, note_id: int) -> Any:
        """Begin an addendum."""
        try:
            with guard.unit_of_work() as session:
                added = notes.addendum(session, note_id)
        except Refusal as refusal:
            return self._refused(note_id, refusal)
        return redirect(url_for("Notes.edit", note_id=added.id))

    @expose("/notes/<int:note_id>/amend", methods=["POST"])
    @open_to("create", "ClinicalNote")
    def amend(self, note_id: int) -> Any:
        """Begin a new version."""
        try:
            with guard.unit_of_work() as session:
                version = notes.amend(session, note_id)
        except Refusal as refusal:
            return self._refused(note_id, refusal)
        return redirect(url_for("Notes.edit", note_id=version.id))

    @expose("/notes/<int:note_id>/withdraw", methods=["POST"])
    @open_to("update", "ClinicalNote")
    def withdraw(self, note_id: int) -> Any:
        """Take a note back."""
        reason = request.form.get("reason", "")
        try:
            with guard.unit_of_work() as session:
                notes.withdraw(session, note_id, reason=reason)
        except Refusal as refusal:
            return self._refused(note_id, refusal, reason)
        flash(gettext("The note is withdrawn."), "success")
        return redirect(url_for("Notes.show", note_id=note_id))

    def _refused(self, note_id: int, refusal: Refusal, reason: str = "") -> Any:
        """The note with the reason why not; or the refusal alone, where the note itself is not open."""
        if refusal.status == 404:
            raise refusal
        return self._show(note_id, str(refusal), refusal.status, reason)

    @expose("/notes/<int:note_id>/versions/<int:older>")
    @open_to("read", "ClinicalNote")
    def diff(self, note_id: int, older: int) -> str:
        """What changed from one version to another."""
        before, after, changes = notes.diff(guard.session(), older, note_id)
        return self.render(
            "notes/diff.html",
            page_title=gettext("What changed"),
            patient=strip(after.patient),
            before=told(before),
            after=told(after),
            changes=[
                {
                    "label": gettext(change.label),
                    "parts": [(kind, _level_word(change.label, text)) for kind, text in change.parts],
                    "changed": change.changed,
                }
                for change in changes
            ],
        )

    @expose("/notes/<int:note_id>/note.pdf")
    @open_to("read", "ClinicalNote")
    def pdf(self, note_id: int) -> Any:
        """A signed note on paper, with its SHA-256. A draft is refused."""
        note = notes.printable(guard.session(), note_id)
        html = self.render(
            "notes/print.html",
            note=told(note),
            patient=strip(note.patient),
            body=read_out(note),
            addenda=[
                {**told(one), "body": read_out(one)} for one in notes.addenda(guard.session(), note) if one.signed_at
            ],
            printed=words(now()),
            printed_by=current().name,
            language=str(get_locale() or "en"),
        )
        response = make_response(documents.pdf(html, language=str(get_locale() or "en")))
        response.headers["Content-Type"] = "application/pdf"
        response.headers["Content-Disposition"] = f'inline; filename="note-{note.id}.pdf"'
        return response

    # ---- one's own, and all of them

    @expose("/notes/")
    @open_to("create", "ClinicalNote")
    def mine(self) -> str:
        """What waits for the actor's signature."""
        waiting = notes.unsigned_for(guard.session())
        late = {note.id for note in waiting.late}
        return self.render(
            "notes/mine.html",
            page_title=gettext("My notes"),
            drafts=[{**told(note), "late": note.id in late, **whose(note)} for note in waiting.drafts],
            late=len(late),
            cosign=[{**told(note), **whose(note)} for note in waiting.cosign],
        )

    @expose("/notes/find")
    @open_to("read", "ClinicalNote")
    def find(self) -> str:
        """Notes with some words, of whichever patient."""
        asked = request.args.get("q", "").strip()
        hits = notes.search(guard.session(), asked) if asked else []
        return self.render(
            "notes/find.html",
            page_title=gettext("Find notes"),
            asked=asked,
            hits=[{**told_hit(hit), **whose(hit.note)} for hit in hits],
            most=notes.LONGEST_FIND if len(hits) == notes.LONGEST_FIND else 0,
        )


# ---- the form ------------------------------------------------------------------------------------------------------


def shape_of(note: ClinicalNote) -> tuple[Field, ...]:
    """The fields of a note's template; none for what was not written here."""
    return note_shape.fields(note.template.schema) if note.template else ()


def values_of(note: ClinicalNote) -> dict[str, Any]:
    """What the fields of a note's form hold, by path."""
    return {field.path: note_shape.value_at(note.content, field.path) for field in note_shape.every(shape_of(note))}


def typed(shape: Sequence[Field]) -> dict[str, Any]:
    """What was typed, by path, as it was typed."""
    return {
        field.path: _yes_or_no(request.form.get(name, ""))
        if field.kind is Kind.BOOLEAN
        else request.form.getlist(name)
        if field.kind is Kind.SEVERAL
        else request.form.get(name, "")
        for field in note_shape.every(tuple(shape))
        for name in (f"f.{field.path}",)
    }


def content_of(shape: Sequence[Field]) -> dict[str, Any]:
    """What was typed as a note's content. Raises NoteBroken for what is no number where one is asked for."""
    values, faults = typed(shape), {}
    content: dict[str, Any] = {}
    for field in note_shape.every(tuple(shape)):
        value = values[field.path]
        if field.kind in (Kind.NUMBER, Kind.INTEGER):
            value = _reckoned(str(value), whole=field.kind is Kind.INTEGER)
            if isinstance(value, str) and value:
                faults[field.path] = (
                    "This has to be a whole number." if field.kind is Kind.INTEGER else "This has to be a number."
                )
        section, _, key = field.path.rpartition(".")
        (content.setdefault(section, {}) if section else content)[key] = value
    if faults:
        named = [field.label for field in note_shape.every(tuple(shape)) if field.path in faults]
        raise NoteBroken(gettext("Please look at: %(fields)s.", fields=", ".join(named)), faults=faults)
    return content


def _reckoned(text: str, *, whole: bool) -> int | float | str:
    """A number as people write it, with a point or a comma; the text itself where it is none."""
    plain = text.strip().replace(",", ".").replace("−", "-")
    if re.fullmatch(r"[+-]?\d{1,15}", plain):
        return int(plain)
    if not whole and re.fullmatch(r"[+-]?\d{1,15}\.\d{1,10}", plain):
        return float(plain)
    return plain


def _yes_or_no(text: str) -> bool | None:
    return {"yes": True, "no": False}.get(text)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


# ---- in words ------------------------------------------------------------------------------------------------------


def strip(patient: Patient | None) -> dict[str, Any]:
    """Whose note it is."""
    if patient is None:
        return {"id": None, "name": gettext("Patient not shown"), "href": None, "notes_href": None}
    return {
        "id": patient.id,
        "name": name_of(patient),
        "mrn": patient.mrn,
        "birth": born(patient),
        "age": age(patient),
        "href": url_for("Chart.open", patient_id=patient.id),
        "notes_href": url_for("Notes.list", patient_id=patient.id),
    }


def whose(note: ClinicalNote) -> dict[str, Any]:
    """The patient of a note in a list of several patients'."""
    return {"patient": strip(note.patient)}


def writable(note: ClinicalNote) -> bool:
    """Whether the actor writes on in a note: a draft of theirs that has a form."""
    mine = note.author_id == current().practitioner_id
    return mine and note.status == CompositionStatus.PRELIMINARY and note.template_id is not None


def told(note: ClinicalNote) -> dict[str, Any]:
    """A note's facts in words."""
    word, tone, icon = STATES[CompositionStatus(note.status)]
    branch = all_branches().get(note.branch_id or 0)
    waits = note.cosigner_id is not None and note.cosigned_at is None and note.signed_at is not None
    return {
        "id": note.id,
        "title": note.title,
        "href": url_for("Notes.show", note_id=note.id),
        "edit_href": url_for("Notes.edit", note_id=note.id),
        "state": word,
        "tone": tone,
        "icon": icon,
        "draft": note.status == CompositionStatus.PRELIMINARY,
        "signed": words(note.signed_at) if note.signed_at else "",
        "written": words(note.written_at),
        "author": note.author.name,
        "writable": writable(note),
        "where": branch.name if branch else "",
        "kind": note.template.name if note.template else gettext("Not written here"),
        "edition": note.template.edition if note.template else None,
        "level": LEVELS[Confidentiality(note.confidentiality)],
        "restricted": note.confidentiality != Confidentiality.NORMAL,
        "cosigner": note.cosigner.name if note.cosigner else "",
        "cosigned": words(note.cosigned_at) if note.cosigned_at else "",
        "waits": waits and note.withdrawn_at is None,
        "withdrawn": words(note.withdrawn_at) if note.withdrawn_at else "",
        "why": note.withdrawn_reason,
        "digest": note.digest or "",
        "addendum": note.addendum_to_id is not None,
        "version_of": note.replaces_id is not None,
        "pdf_href": url_for("Notes.pdf", note_id=note.id) if note.signed_at else None,
    }


def read_out(note: ClinicalNote) -> list[dict[str, Any]]:
    """What a note says, field by field; an empty field is left out."""
    shape = shape_of(note)
    rows: list[dict[str, Any]] = []
    for field in shape:
        if field.kind is Kind.SECTION:
            inner = [row for part in field.fields if (row := _said(part, note.content))]
            if inner:
                rows.append({"label": field.label, "rows": inner})
        elif row := _said(field, note.content):
            rows.append(row)
    for path, value in note_shape.strangers(shape, note.content):
        rows.append({"label": "" if path == "text" else path, "text": note_shape.spoken(value)})
    return rows


def _said(field: Field, content: Mapping[str, Any]) -> dict[str, Any] | None:
    value = note_shape.value_at(content, field.path)
    if value is None:
        return None
    if field.kind is Kind.DATE:
        try:
            text = str(words(date.fromisoformat(str(value))))
        except ValueError:
            text = str(value)
    else:
        text = gettext(note_shape.spoken(value)) if isinstance(value, bool) else note_shape.spoken(value)
    return {"label": field.label, "text": f"{text} {unit(field.unit)}" if field.unit else text}


def in_order(found: Sequence[ClinicalNote]) -> list[dict[str, Any]]:
    """A patient's notes for a list: each in its newest version, with what was added to it beneath."""
    replaced = {note.replaces_id for note in found if note.replaces_id and note.signed_at and not note.withdrawn_at}
    roots: dict[int, int] = {}
    for note in sorted(found, key=lambda one: one.id):
        roots[note.id] = roots.get(note.replaces_id, note.replaces_id) if note.replaces_id else note.id
    by_id = {note.id: note for note in found}
    rows: list[dict[str, Any]] = []
    under: dict[int, list[dict[str, Any]]] = {}
    for note in found:
        if note.id in replaced:
            continue
        first = by_id.get(roots[note.id])
        parent = first.addendum_to_id if first else None
        if parent in by_id:
            under.setdefault(roots[parent], []).insert(0, told(note))
        else:
            rows.append({**told(note), "root": roots[note.id]})
    for row in rows:
        row["addenda"] = under.get(row["root"], [])
    return rows


def told_hit(hit: notes.Hit) -> dict[str, Any]:
    """A note that was found."""
    return {**told(hit.note), "snippet": hit.snippet, "marks": hit.marks}


def acts(note: ClinicalNote, family: Sequence[ClinicalNote]) -> dict[str, bool]:
    """What the actor can do with a note."""
    me = current().practitioner_id
    may = current().may("update", "ClinicalNote") and me is not None
    own = note.author_id == me
    standing = note.status in notes.STANDING
    replaced = any(v.replaces_id == note.id and not v.withdrawn_at for v in family)
    return {
        "edit": may and writable(note),
        "cosign": may and note.cosigner_id == me and note.cosigned_at is None and standing,
        "addendum": may and standing and current().may("create", "ClinicalNote"),
        "amend": may and own and standing and not replaced and note.template_id is not None,
        "withdraw": may and own and note.status != CompositionStatus.ENTERED_IN_ERROR,
    }


def write_href(patient_id: int) -> str | None:
    """Where a note is begun, for those who write notes."""
    if current().practitioner_id is None or not current().may("create", "ClinicalNote"):
        return None
    return url_for("Notes.write", patient_id=patient_id)


def _level_word(label: str, text: str) -> str:
    known = {str(code): str(word) for code, word in LEVELS.items()}
    return known.get(text, text) if label == "Who may read it" else text


def register(builder: Any) -> None:
    """The pages."""
    builder.add_view_no_menu(Notes)
    current_app.jinja_env.globals["unit_word"] = unit
