"""Branches, rooms and staff, on generated screens."""

from __future__ import annotations

from typing import Any, ClassVar
from zoneinfo import available_timezones

from babel.numbers import list_currencies
from flask_babel import lazy_gettext
from wtforms import BooleanField, IntegerField, SelectField, StringField
from wtforms.validators import InputRequired, Length, NumberRange

from app.services import organization
from models.organization import Branch, Organization, Practitioner, Room
from views import branches
from views.base import RecordInterface, RecordView

NAME = [InputRequired(), Length(max=200)]


class OrganizationView(RecordView):
    """The chain and the organizations met in records from outside."""

    datamodel = RecordInterface(Organization)
    route_base = "/organizations"
    create = organization.found_organization
    update = organization.change_organization
    list_title = lazy_gettext("Organizations")
    intro = lazy_gettext("The chain, its branches, and whoever sent us records.")
    add_title = lazy_gettext("New organization")
    add_label = lazy_gettext("New organization")
    list_columns: ClassVar[list[str]] = ["name", "active"]
    show_columns: ClassVar[list[str]] = ["name", "active", "created_at"]
    add_columns: ClassVar[list[str]] = ["name"]
    edit_columns: ClassVar[list[str]] = ["name", "active"]
    search_columns: ClassVar[list[str]] = ["name", "active"]
    label_columns: ClassVar[dict[str, Any]] = {
        "name": lazy_gettext("Name"),
        "active": lazy_gettext("Active"),
        "created_at": lazy_gettext("Written down"),
    }
    validators_columns: ClassVar[dict[str, Any]] = {"name": NAME}
    base_order = ("name", "asc")


def _branch_change(session: Any, *args: Any, **values: Any) -> Any:
    branches.forget()
    return organization.change_branch(session, *args, **values)


def _branch_open(session: Any, **values: Any) -> Any:
    branches.forget()
    return organization.open_branch(session, **values)


class BranchView(RecordView):
    """The hospitals of the chain."""

    datamodel = RecordInterface(Branch)
    route_base = "/branches"
    create = _branch_open
    update = _branch_change
    list_title = lazy_gettext("Branches")
    intro = lazy_gettext("The hospitals of the chain, each with its own clock, currency and languages.")
    add_title = lazy_gettext("New branch")
    add_label = lazy_gettext("New branch")
    list_columns: ClassVar[list[str]] = ["organization", "code", "time_zone", "currency", "languages", "active"]
    order_columns: ClassVar[list[str]] = ["code", "time_zone", "currency"]
    show_columns: ClassVar[list[str]] = ["organization", "code", "time_zone", "currency", "languages", "active"]
    add_columns: ClassVar[list[str]] = ["name", "code", "time_zone", "currency", "languages", "country", "active"]
    edit_columns: ClassVar[list[str]] = add_columns
    search_columns: ClassVar[list[str]] = ["code", "time_zone", "active"]
    label_columns: ClassVar[dict[str, Any]] = {
        "organization": lazy_gettext("Name"),
        "name": lazy_gettext("Name"),
        "code": lazy_gettext("Short code"),
        "time_zone": lazy_gettext("Time zone"),
        "currency": lazy_gettext("Currency"),
        "languages": lazy_gettext("Languages"),
        "country": lazy_gettext("Country"),
        "active": lazy_gettext("Active"),
    }
    description_columns: ClassVar[dict[str, Any]] = {
        "code": lazy_gettext("Capital letters and digits, such as MAD."),
        "languages": lazy_gettext("Codes, the branch's own first, such as es en."),
    }
    base_order = ("id", "asc")
    _fields: ClassVar[dict[str, Any]] = {
        "name": StringField(lazy_gettext("Name"), NAME),
        "code": StringField(
            lazy_gettext("Short code"),
            [InputRequired(), Length(max=12)],
            description=lazy_gettext("Capital letters and digits, such as MAD."),
        ),
        "time_zone": SelectField(
            lazy_gettext("Time zone"), choices=sorted(z for z in available_timezones() if "/" in z and "Etc/" not in z)
        ),
        "currency": SelectField(lazy_gettext("Currency"), choices=sorted(c for c in list_currencies() if c.isalpha())),
        "languages": StringField(
            lazy_gettext("Languages"),
            [InputRequired()],
            description=lazy_gettext("Codes, the branch's own first, such as es en."),
        ),
        "country": StringField(
            lazy_gettext("Country"), [Length(max=2)], description=lazy_gettext("Two letters, such as ES.")
        ),
        "active": BooleanField(lazy_gettext("Active"), default=True),
    }
    add_form_extra_fields = _fields
    edit_form_extra_fields = _fields

    def prefill_form(self, form: Any, pk: Any) -> None:
        """The name stands with the organization; the languages are a list."""
        branch = self._get(str(pk))
        form.name.data = branch.organization.name
        form.languages.data = " ".join(branch.languages)
        if branch.organization.address:
            form.country.data = str(branch.organization.address[0].get("country", ""))


class RoomView(RecordView):
    """Places where patients are seen."""

    datamodel = RecordInterface(Room)
    route_base = "/rooms"
    create = organization.furnish_room
    update = organization.change_room
    list_title = lazy_gettext("Rooms")
    intro = lazy_gettext("Where patients are seen, branch by branch.")
    add_title = lazy_gettext("New room")
    add_label = lazy_gettext("New room")
    list_columns: ClassVar[list[str]] = ["name", "kind", "branch", "capacity", "active"]
    order_columns: ClassVar[list[str]] = ["name", "kind", "capacity"]
    show_columns: ClassVar[list[str]] = ["name", "kind", "branch", "capacity", "active"]
    add_columns: ClassVar[list[str]] = ["branch", "name", "kind", "capacity", "active"]
    edit_columns: ClassVar[list[str]] = add_columns
    search_columns: ClassVar[list[str]] = ["name", "kind", "branch", "active"]
    label_columns: ClassVar[dict[str, Any]] = {
        "name": lazy_gettext("Name"),
        "kind": lazy_gettext("Used for"),
        "branch": lazy_gettext("Branch"),
        "capacity": lazy_gettext("Places"),
        "active": lazy_gettext("In use"),
    }
    _fields: ClassVar[dict[str, Any]] = {
        "capacity": IntegerField(lazy_gettext("Places"), [InputRequired(), NumberRange(1, 999)], default=1),
        "active": BooleanField(lazy_gettext("In use"), default=True),
    }
    add_form_extra_fields = _fields
    edit_form_extra_fields = _fields
    validators_columns: ClassVar[dict[str, Any]] = {"name": [InputRequired(), Length(max=80)]}
    base_order = ("name", "asc")


class PractitionerView(RecordView):
    """Staff of the chain, and clinicians named in records from outside."""

    datamodel = RecordInterface(Practitioner)
    route_base = "/staff"
    create = organization.employ
    update = organization.change_practitioner
    list_title = lazy_gettext("Staff")
    intro = lazy_gettext("Everybody who works here, and outside clinicians named in received records.")
    add_title = lazy_gettext("New member of staff")
    add_label = lazy_gettext("New member of staff")
    list_columns: ClassVar[list[str]] = ["family", "given", "qualification", "home_branch", "active"]
    order_columns: ClassVar[list[str]] = ["family", "given", "qualification"]
    show_columns: ClassVar[list[str]] = [
        "prefix",
        "given",
        "family",
        "qualification",
        "home_branch",
        "branches",
        "active",
    ]
    add_columns: ClassVar[list[str]] = [
        *["family", "given", "prefix", "qualification", "home_branch", "branches", "active"]
    ]
    edit_columns: ClassVar[list[str]] = add_columns
    search_columns: ClassVar[list[str]] = ["family", "given", "qualification", "home_branch", "active"]
    label_columns: ClassVar[dict[str, Any]] = {
        "family": lazy_gettext("Family name"),
        "given": lazy_gettext("Given name"),
        "prefix": lazy_gettext("Title"),
        "qualification": lazy_gettext("Works as"),
        "home_branch": lazy_gettext("Home branch"),
        "branches": lazy_gettext("Further branches"),
        "active": lazy_gettext("Active"),
    }
    add_form_extra_fields: ClassVar[dict[str, Any]] = {"active": BooleanField(lazy_gettext("Active"), default=True)}
    validators_columns: ClassVar[dict[str, Any]] = {"family": NAME}
    base_order = ("family", "asc")

    def title_of(self, item: Practitioner) -> str:
        return item.name


def register(builder: Any) -> None:
    """The hospital's own screens."""
    for view in (OrganizationView, BranchView, RoomView, PractitionerView):
        builder.add_view_no_menu(view)
