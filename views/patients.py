"""Finding, registering and reading patients."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, time
from typing import Any, ClassVar

from babel import Locale
from flask import Response, jsonify, make_response, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import get_locale, gettext, lazy_gettext
from werkzeug.utils import secure_filename
from wtforms import BooleanField, FileField, Form, RadioField, SelectField, StringField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import Length

from app import guard
from app.actor import current
from app.errors import Invalid, NotFound, PossibleDuplicate, Refusal
from app.services import emergencies, merging, patients
from app.services.words import birth_date
from models.patients import Patient
from views.base import CommandView, Page, RecordInterface, RecordView, branch_zone, open_to
from views.branches import all_branches
from views.emergencies import offered as emergency_offered
from views.people import GENDERS, IDENTIFIERS, SEXES, age, born, in_short, name_of, phones, unshown

LANGUAGES = ("", "ar", "de", "en", "es", "fr", "hi", "it", "pl", "pt", "ro", "ru", "tr", "uk", "ur", "vi", "zh")
PHOTOS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}


class Finder(Page):
    """One box that finds a patient."""

    route_base = "/patients"
    default_view = "find"

    @expose("/")
    @open_to("read", "Patient")
    def find(self) -> str:
        """The box and what it found."""
        return self.render(
            "patients/find.html",
            page_title=gettext("Patients"),
            can_register=current().may("create", "Patient"),
            **self._found(),
        )

    @expose("/find.json")
    @open_to("read", "Patient")
    def find_json(self) -> Response:
        """The same, while it is typed."""
        return jsonify(**self._found())

    def _found(self) -> dict[str, Any]:
        asked = request.args.get("q", "").strip()
        if not asked or current().patient_id is not None:
            return {"q": asked, "results": [], "more": False, "meant": [], "outside": []}
        found = patients.find(guard.session(), asked[:100])
        return {
            "q": asked,
            "results": [in_short(patient) for patient in found.patients],
            "more": found.more,
            "meant": list(found.meant),
            "outside": [url_for("Emergency.ask", patient_id=key) for key in emergencies.by_number(asked[:100])],
        }

    @expose("/alike.json", methods=["POST"])
    @open_to("create", "Patient")
    def alike(self) -> Response:
        """Patients very like the one being registered, while they are being typed."""
        form = RegistrationForm(request.form)
        try:
            told = demographics(form).cleaned(region())
            numbers = identifiers(form)
        except Refusal:
            return jsonify(duplicates=[])
        return jsonify(duplicates=alike(told, numbers, request.form.get("exclude", "")))

    @expose("/<int:patient_id>/photo")
    @open_to("read", "Patient")
    def photo(self, patient_id: int) -> Response:
        """A patient's photo. Raises NotFound where there is none."""
        patient = guard.session().get(Patient, patient_id)
        image = patient.photo if patient else None
        if not image:
            raise NotFound
        kind = next((mime for start, mime in PHOTOS.items() if image.startswith(start)), "application/octet-stream")
        response = make_response(image)
        response.headers["Content-Type"] = kind
        response.headers["Content-Disposition"] = f"inline; filename={secure_filename('photo')}"
        return response


def offered(words: Mapping[str, Any]) -> list[SelectChoice]:
    """Codes and what they are called, as a field offers them."""
    return [SelectChoice(code, word) for code, word in words.items()]


class RegistrationForm(Form):
    """What is asked at the desk; only a name is a must, and not even that for an unknown person."""

    family = StringField(lazy_gettext("Family name"), [Length(max=200)])
    second_family = StringField(lazy_gettext("Second family name"), [Length(max=200)])
    given = StringField(lazy_gettext("Given names"), [Length(max=200)])
    prefix = StringField(lazy_gettext("Title"), [Length(max=40)])
    name_in_use = StringField(lazy_gettext("Wants to be called"), [Length(max=100)])
    birth_date = StringField(
        lazy_gettext("Birth date"),
        [Length(max=30)],
        description=lazy_gettext("5 Mar 1970, 05/03/1970 or just 1970"),
    )
    gender = RadioField(lazy_gettext("Gender"), choices=offered(GENDERS), default="unknown")
    sex_for_clinical_use = SelectField(
        lazy_gettext("Sex for clinical use"),
        choices=offered(SEXES),
        default="unknown",
        description=lazy_gettext("Which reference ranges and checks apply; not always the same as gender."),
    )
    phone = StringField(lazy_gettext("Phone"), [Length(max=40)])
    email = StringField(lazy_gettext("E-mail"), [Length(max=200)])
    address_line = StringField(lazy_gettext("Street and number"), [Length(max=200)])
    city = StringField(lazy_gettext("Town"), [Length(max=100)])
    postal_code = StringField(lazy_gettext("Postal code"), [Length(max=20)])
    country = SelectField(lazy_gettext("Country"), choices=[])
    identifier_system = SelectField(lazy_gettext("Another number"), choices=offered(IDENTIFIERS))
    identifier_value = StringField(lazy_gettext("Number"), [Length(max=100)])
    language = SelectField(lazy_gettext("Speaks"), choices=[])
    kin_name = StringField(lazy_gettext("Next of kin"), [Length(max=200)])
    kin_relationship = StringField(lazy_gettext("Relationship"), [Length(max=60)])
    kin_phone = StringField(lazy_gettext("Phone of next of kin"), [Length(max=40)])
    photo = FileField(lazy_gettext("Photo"), description=lazy_gettext("JPEG or PNG, up to 2 MB."))
    temporary = BooleanField(lazy_gettext("Identity unknown"))
    confidential = BooleanField(
        lazy_gettext("This record is confidential"),
        description=lazy_gettext(
            "For colleagues, people who are well known and people in danger: whoever opens it is asked why."
        ),
    )
    deceased = BooleanField(lazy_gettext("Has died"))
    deceased_on = StringField(lazy_gettext("Date of death"), [Length(max=30)])
    active = BooleanField(lazy_gettext("This record is in use"))
    action: ClassVar[str] = "create"
    """What the form is for, as the policy calls it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        unwritten = unwritable(self.action)
        for name in [name for field, names in ASKED.items() if field in unwritten for name in names]:
            del self[name]
        locale = get_locale() or Locale("en")
        countries = sorted(
            ((code, name) for code, name in locale.territories.items() if len(code) == 2 and code.isalpha()),
            key=lambda pair: pair[1],
        )
        if "country" in self:
            self.country.choices = offered({"": "", **dict(countries)})
        if "language" in self:
            named = {code: locale.languages.get(code, "") if code else "" for code in LANGUAGES}
            self.language.choices = offered(named)

    def said(self, name: str) -> str:
        """What was typed into a field; nothing where the actor is not asked for it."""
        return (self[name].data or "") if name in self else ""


class CorrectionForm(RegistrationForm):
    """The same for a patient who is registered."""

    action = "update"


ASKED = {
    "telecom": ("phone", "email"),
    "address": ("address_line", "city", "postal_code", "country"),
    "contact": ("kin_name", "kin_relationship", "kin_phone"),
    "languages": ("language",),
    "photo": ("photo",),
    "identifiers": ("identifier_system", "identifier_value"),
}
"""What of a patient each field of the form is about; the other fields are kept from nobody."""


def unwritable(action: str) -> frozenset[str]:
    """What of a patient the actor is not asked for: what they are not shown, or cannot write."""
    rights = current().rights
    kept = rights.hidden("Patient") | rights.hidden("Patient", action)
    knows = rights.may("read", "PatientIdentifier") and "value" not in rights.hidden("PatientIdentifier")
    return kept if knows and rights.may("create", "PatientIdentifier") else kept | {"identifiers"}


def region() -> str | None:
    """The country phone numbers without a country code are of: the branch's."""
    facts = all_branches().get(current().branch_id or 0)
    return facts.country or None if facts else None


def demographics(form: RegistrationForm) -> patients.Demographics:
    """What the form says of a person. Raises Invalid, naming the field."""
    born_on, precision = birth_date(form.birth_date.data or "")
    telecom = []
    if form.said("phone").strip():
        telecom.append({"system": "phone", "value": form.said("phone"), "use": "mobile"})
    if form.said("email").strip():
        if "@" not in form.said("email"):
            raise Invalid(gettext("Please check the e-mail address."), field="email")
        telecom.append({"system": "email", "value": form.said("email").strip()})
    address = {
        "line": [form.said("address_line").strip()] if form.said("address_line") else [],
        "city": form.said("city").strip(),
        "postalCode": form.said("postal_code").strip(),
        "country": form.said("country"),
    }
    kin = {
        "name": {"text": form.said("kin_name").strip()},
        "relationship": [{"text": form.said("kin_relationship").strip()}],
        "telecom": [{"system": "phone", "value": form.said("kin_phone").strip()}] if form.said("kin_phone") else [],
    }
    return patients.Demographics(
        family=form.family.data or "",
        second_family=form.second_family.data or "",
        given=form.given.data or "",
        prefix=form.prefix.data or "",
        name_in_use=form.name_in_use.data or "",
        birth_date=born_on,
        birth_precision=precision,
        gender=form.gender.data or "unknown",
        sex_for_clinical_use=form.sex_for_clinical_use.data or "unknown",
        telecom=telecom,
        address=[address] if any(address.values()) else [],
        contact=[kin] if form.said("kin_name") else [],
        languages=[form.said("language")] if form.said("language") else [],
        photo=photo(form),
        temporary=bool(form.temporary.data),
        confidential=bool(form.confidential.data),
    )


def standing(form: RegistrationForm, told: patients.Demographics) -> patients.Demographics:
    """What only the form for changes asks: whether the person lives, and the record is in use. Raises Invalid."""
    told.active = bool(form.active.data)
    told.deceased = bool(form.deceased.data)
    died_on, _ = birth_date(form.deceased_on.data or "", field="deceased_on")
    told.deceased_at = datetime.combine(died_on, time(), branch_zone()) if died_on else None
    return told


def photo(form: RegistrationForm) -> bytes | None:
    """The picture sent along, or None. Raises Invalid for anything that is no JPEG or PNG."""
    sent: Any = form["photo"].data if "photo" in form else None
    image = sent.read() if hasattr(sent, "read") else b""
    if not image:
        return None
    sent.seek(0)
    if not any(image.startswith(start) for start in PHOTOS):
        raise Invalid(gettext("A photo has to be a JPEG or PNG picture."), field="photo")
    return bytes(image)


def identifiers(form: RegistrationForm) -> list[tuple[str, str]]:
    """The number of another system, if one was told; an old branch number is that branch's own."""
    system, value = form.said("identifier_system"), form.said("identifier_value").strip()
    if not system and not value:
        return []
    if system == "branch":
        facts = all_branches().get(current().branch_id or 0)
        system = f"branch:{facts.code}" if facts else "branch"
    return [(system, value)]


def alike(told: patients.Demographics, numbers: list[tuple[str, str]], exclude: str = "") -> list[dict[str, Any]]:
    """Those registered already who may be the same person, as the warning shows them."""
    likenesses = patients.likely_duplicates(
        guard.session(),
        family=told.family,
        second_family=told.second_family,
        given=told.given,
        birth_date=told.birth_date if told.birth_precision == "day" else None,
        phones=[point["value"] for point in told.telecom if point["system"] == "phone"],
        identifiers=numbers,
        exclude_id=int(exclude) if exclude.isdecimal() else None,
    )
    return [
        {**in_short(like.patient), "score": round(like.score * 100), "reasons": [gettext(r) for r in like.reasons]}
        for like in likenesses
    ]


class Registration(CommandView):
    """Giving a person a record, after a look at those who may be the same."""

    route_base = "/patients/register"
    form_class = RegistrationForm
    template = "patients/register.html"
    title = lazy_gettext("Register a patient")
    policy = ("create", "Patient")

    @expose("/", methods=["GET", "POST"])
    def ask(self) -> Any:
        """The form."""
        return super().ask()

    def carry_out(self, session: Any, form: Form, **_route: Any) -> Patient:
        assert isinstance(form, RegistrationForm)
        return patients.register(
            session,
            demographics(form),
            identifiers=identifiers(form),
            region=region(),
            insist=request.form.get("insist") == "1",
        )

    def after(self, result: Patient, **_route: Any) -> str:
        return url_for("Chart.open", patient_id=result.id, registered=1)

    def prefill(self, **_route: Any) -> Form:
        facts = all_branches().get(current().branch_id or 0)
        return RegistrationForm(request.args, country=facts.country if facts else "")

    def _page(self, form: Form, sentence: str | None, refusal: Refusal | None = None, **route: Any) -> str:
        found: list[dict[str, Any]] = []
        if isinstance(refusal, PossibleDuplicate):
            assert isinstance(form, RegistrationForm)
            found = alike(demographics(form).cleaned(region()), identifiers(form))
        offer_href = None
        try:
            editing: Any = self._editing(**route)
        except NotFound:
            if request.method != "POST":
                raise
            editing, offer_href = {"version": request.form.get("version")}, emergency_offered(route["patient_id"])
        return self.render(
            self.template,
            page_title=self.title,
            title=self.title,
            form=form,
            refusal=sentence,
            duplicates=found,
            editing=editing,
            offer_href=offer_href,
            cancel_href=self._back(**route),
        )

    def _editing(self, **_route: Any) -> Patient | None:
        return None

    def _back(self, **_route: Any) -> str:
        return url_for("Finder.find")


class Correction(Registration):
    """Setting right who a patient is."""

    route_base = "/patients/<int:patient_id>/edit"
    form_class = CorrectionForm
    title = lazy_gettext("Change who this is")
    policy = ("update", "Patient")

    @expose("/", methods=["GET", "POST"])
    def ask(self, patient_id: int) -> Any:
        """The form, filled with what is known."""
        return CommandView.ask(self, patient_id=patient_id)

    def carry_out(self, session: Any, form: Form, **route: Any) -> Patient:
        assert isinstance(form, RegistrationForm)
        patient = self._editing(**route)
        seen = request.form.get("version")
        if seen and seen != str(patient.version):
            from app.errors import Conflict

            raise Conflict
        told = standing(form, demographics(form))
        if told.deceased_at and patient.deceased_at and told.deceased_at.date() == patient.deceased_at.date():
            told.deceased_at = patient.deceased_at
        told.other_names = patient.other_names
        told.multiple_birth_order = patient.multiple_birth_order
        told.marital_status = patient.marital_status
        told.languages = list(dict.fromkeys([*told.languages, *patient.languages[1:]]))
        told.telecom = _kept(told.telecom, patient.telecom)
        told.address = [*_on_top(told.address, patient.address), *patient.address[1:]]
        told.contact = [*told.contact, *patient.contact[1:]]
        for name in unwritable("update").intersection(patients.Demographics.__dataclass_fields__) - {"photo"}:
            setattr(told, name, getattr(patient, name))
        return patients.change(session, patient, told, identifiers=identifiers(form), region=region())

    def after(self, result: Patient, **_route: Any) -> str:
        return url_for("Chart.open", patient_id=result.id)

    def _editing(self, **route: Any) -> Patient:
        from app.services import clinical

        return clinical.open_chart(guard.session(), route["patient_id"])

    def _back(self, **route: Any) -> str:
        return url_for("Chart.open", patient_id=route["patient_id"])

    def prefill(self, **route: Any) -> Form:
        patient = self._editing(**route)
        place: dict[str, Any] = patient.address[0] if patient.address else {}
        kin: dict[str, Any] = patient.contact[0] if patient.contact else {}
        relationships = kin.get("relationship") or [{}]
        known = {
            **{name: getattr(patient, name) for name in ("family", "second_family", "given", "prefix", "name_in_use")},
            "birth_date": _typed(patient),
            "gender": patient.gender,
            "sex_for_clinical_use": patient.sex_for_clinical_use,
            "phone": _first(patient.telecom, "phone"),
            "email": _first(patient.telecom, "email"),
            "address_line": " ".join(place.get("line") or []),
            "city": place.get("city", ""),
            "postal_code": place.get("postalCode", ""),
            "country": place.get("country", "") if len(str(place.get("country", ""))) == 2 else "",
            "language": (patient.languages[0] if patient.languages else "")[:2],
            "kin_name": (kin.get("name") or {}).get("text", ""),
            "kin_relationship": relationships[0].get("text", ""),
            "kin_phone": _first(kin.get("telecom") or [], "phone"),
            "temporary": patient.temporary,
            "confidential": patient.confidential,
            "active": patient.active,
            "deceased": patient.deceased,
            "deceased_on": patient.deceased_at.strftime("%d/%m/%Y") if patient.deceased_at else "",
        }
        return CorrectionForm(data=known)  # as keywords, a patient's `prefix` would become WTForms' own


def _typed(patient: Patient) -> str:
    """The birth date as one would type it, in any language."""
    if patient.birth_date is None:
        return ""
    return patient.birth_date.strftime({"year": "%Y", "month": "%Y-%m", "day": "%d/%m/%Y"}[patient.birth_precision])


def _first(points: list[dict[str, Any]], system: str) -> str:
    return next((str(point.get("value", "")) for point in points or [] if point.get("system") == system), "")


def _kept(told: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The form holds the first phone and the first e-mail; the further ones stay as they were."""
    first = {point.get("system"): point for point in reversed(before)}
    kept = [{**first.get(point["system"], point), "value": point["value"]} for point in told]
    skipped = set()
    for point in before:
        system = point.get("system")
        if system in ("phone", "email") and system not in skipped:
            skipped.add(system)
            continue
        kept.append(point)
    return kept


def _on_top(told: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An address as the form has it, with whatever more was known of it before; what was empty stays away."""
    known = before[0] if before else {}
    return [{k: v for k, v in {**known, **place}.items() if v or k in known} for place in told]


class PatientList(RecordView):
    """The index as a generated list, for looking through rather than looking up."""

    datamodel = RecordInterface(Patient)
    route_base = "/patients/all"
    list_title = lazy_gettext("All patients")
    intro = lazy_gettext("Every patient who is open to you. To find one person, use the search box.")
    empty = lazy_gettext("No patient is here yet.")
    add_label = lazy_gettext("Register a patient")
    list_columns: ClassVar[list[str]] = ["name", "mrn", "birth_date", "gender", "telecom", "last_visit_at"]
    show_columns: ClassVar[list[str]] = ["name", "mrn", "birth_date", "gender"]
    edit_columns: ClassVar[list[str]] = ["family"]
    add_columns: ClassVar[list[str]] = ["family"]
    order_columns: ClassVar[list[str]] = ["mrn", "birth_date", "last_visit_at"]
    search_columns: ClassVar[list[str]] = ["mrn", "family", "given", "gender", "active", "temporary"]
    label_columns: ClassVar[dict[str, Any]] = {
        "name": lazy_gettext("Name"),
        "family": lazy_gettext("Family name"),
        "given": lazy_gettext("Given names"),
        "mrn": lazy_gettext("Number"),
        "birth_date": lazy_gettext("Born"),
        "gender": lazy_gettext("Gender"),
        "telecom": lazy_gettext("Phone"),
        "active": lazy_gettext("Active"),
        "temporary": lazy_gettext("Identity unknown"),
        "last_visit_at": lazy_gettext("Last visit"),
    }
    base_order = ("sort_name", "asc")
    exclude_route_methods: ClassVar[set[str]] = {"action", "action_post", "download", "add", "edit", "delete", "show"}

    def value_of(self, item: Patient, column: str) -> Any:
        if column == "name":
            return name_of(item)
        if column == "birth_date":
            return f"{born(item)} · {age(item)}" if item.birth_date else "—"
        if column == "gender":
            return str(GENDERS.get(item.gender, item.gender))
        if column == "telecom":
            hidden = "telecom" in current().rights.hidden("Patient")
            return unshown() if hidden else next(iter(phones(item)), "—")
        return super().value_of(item, column)

    def row_href(self, item: Any) -> str:
        return url_for("Chart.open", patient_id=item.id)

    def add_href(self) -> str | None:
        return url_for("Registration.ask") if current().may("create", "Patient") else None


def untold_reasons() -> set[str]:
    """What two records are alike in without the actor being shown it."""
    hidden = current().rights.hidden
    untold = {"same phone"} if "telecom" in hidden("Patient") else set()
    return untold | ({"same identifier"} if "value" in hidden("PatientIdentifier") else set())


def _compare_href(one: Patient, other: Patient) -> str | None:
    """Where two are looked at side by side, the one that had better stay named first; None where one may not merge."""
    if not current().may("create", "PatientMerge"):
        return None
    stays = merging.survivor_of(one, other)
    return url_for("Merging.compare", patient_id=stays.id, other_id=other.id if stays is one else one.id)


class Duplicates(Page):
    """Pairs of records that may be one person, waiting for somebody's judgement."""

    route_base = "/patients/duplicates"
    default_view = "list"

    @expose("/")
    @open_to("update", "PatientLink")
    def list(self) -> str:
        """The pairs, the likeliest first."""
        pairs = patients.possible_duplicates(guard.session())
        untold = untold_reasons()
        return self.render(
            "patients/duplicates.html",
            page_title=gettext("Possible duplicates"),
            pairs=[
                {
                    "id": pair.id,
                    "one": in_short(pair.patient),
                    "other": in_short(pair.other),
                    "score": round(pair.score * 100),
                    "reasons": [gettext(reason) for reason in pair.reasons if reason not in untold],
                    "compare_href": _compare_href(pair.patient, pair.other),
                }
                for pair in pairs
            ],
        )

    @expose("/<int:link_id>/different", methods=["POST"])
    @open_to("update", "PatientLink")
    def different(self, link_id: int) -> Any:
        """Two people after all."""
        with guard.unit_of_work() as session:
            patients.are_different(session, patients.pair(session, link_id))
        return redirect(url_for("Duplicates.list"))


def register(builder: Any) -> None:
    """Patients."""
    from views.chart import Chart

    for view in (Finder, Registration, Correction, PatientList, Duplicates, Chart):
        builder.add_view_no_menu(view)
