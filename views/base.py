"""What every screen stands on: the actor bound to the request, refusals as answers, and one generated screen.

Flask-AppBuilder's faults are answered here once; each answer has a test in tests/integration/test_framework_faults.py.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from typing import Any, ClassVar
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import structlog
from flask import abort, flash, redirect, request, url_for
from flask_appbuilder import ModelView, expose, has_access
from flask_appbuilder.baseviews import BaseView
from flask_appbuilder.exceptions import FABException
from flask_appbuilder.models.filters import Filters
from flask_appbuilder.models.sqla.interface import SQLAInterface
from flask_appbuilder.urltools import get_filter_args, get_order_args
from flask_babel import gettext, lazy_gettext
from sqlalchemy import func, select
from sqlalchemy.orm import selectinload
from werkzeug.wrappers import Response
from wtforms import Form

from app import guard
from app.actor import current
from app.errors import Invalid, NotFound, Refusal
from models.base import Protected, Record
from views.speech import spoken_day

log = structlog.get_logger(__name__)

LONGEST_PAGE = 100
LONGEST_CHOICE = 200
"""Rows a drop-down is offered at most; more than that wants a search box of its own."""
COUNTED = 1000
"""Lists are counted up to here; beyond, a total costs more than it tells."""

PERMISSION_OF = {
    "list": "read",
    "show": "read",
    "get": "read",
    "get_list": "read",
    "info": "read",
    "search": "read",
    "download": "read",
    "add": "create",
    "post": "create",
    "edit": "update",
    "put": "update",
    "delete": "delete",
    "action": "delete",
    "action_post": "delete",
}
"""Every screen's and every API's method, as the action the access matrix knows."""


class RecordInterface(SQLAInterface):
    """Flask-AppBuilder's door to a table, made to load whole objects through the gate, and never all of them."""

    eager: tuple[str, ...] = ()

    def _options(self) -> list[Any]:
        return [selectinload(getattr(self.obj, name)) for name in self.eager]

    def query(
        self,
        filters: Any = None,
        order_column: str = "",
        order_direction: str = "",
        page: int | None = None,
        page_size: int | None = None,
        select_columns: Any = None,
        outer_default_load: bool = False,
    ) -> tuple[int, list[Any]]:
        """At most a page of rows, and their number up to COUNTED."""
        matching = self.session.query(self.obj)
        matching = self.apply_filters(matching, filters)
        key = self.get_pk()
        few = matching.with_entities(key).order_by(None).limit(COUNTED + 1).subquery()
        count = self.session.scalar(select(func.count()).select_from(few))
        size = min(page_size or LONGEST_CHOICE, LONGEST_CHOICE)
        ordered = self.apply_order_by(matching, order_column, order_direction, add_pk=True)
        # Beyond the last page is the last page: a number of rows is only told with rows, which are recorded.
        within = min(page or 0, max(count - 1, 0) // size)
        rows = self.apply_pagination(ordered.options(*self._options()), within, size).all()
        return count, rows

    def get(self, id: Any, filters: Any = None, select_columns: Any = None, outer_default_load: bool = False) -> Any:
        """One row by key, or None; a key that is no number is nobody's."""
        try:
            number = int(id)
        except (TypeError, ValueError):
            return None
        if not 0 < number < 2**63:
            return None
        matching = self.apply_filters(self.session.query(self.obj), filters)
        return matching.filter(self.get_pk() == number).options(*self._options()).one_or_none()

    def get_related_obj(self, col_name: str, value: Any) -> Any:
        """The row a relation is to be narrowed by. Raises Invalid where there is none."""
        number = int(value) if str(value).isdecimal() and len(str(value)) < 19 else 0
        row = self.session.get(self.get_related_model(col_name), number) if number else None
        if row is None:
            raise Invalid(gettext("This list cannot be narrowed that way."))
        return row


class OwnFilters:
    """Gives each request filters of its own.

    Flask-AppBuilder keeps one object a view, so that under threads one request was given another one's filters and
    with them another patient's rows.
    """

    _shared_filters: Any = None

    @property
    def _filters(self) -> Any:
        if self._shared_filters is None:
            return None
        mine = copy.copy(self._shared_filters)
        mine.clear_filters()
        return mine

    @_filters.setter
    def _filters(self, value: Any) -> None:
        self._shared_filters = value

    def _with_own(self, filters: Any) -> Any:
        """What was asked for and what the view itself asks for, together."""
        joined = copy.copy(filters)
        joined.filters = filters.filters + self._base_filters.filters  # type: ignore[attr-defined]
        joined.values = filters.values + self._base_filters.values  # type: ignore[attr-defined]
        return joined


# ---- words -------------------------------------------------------------------------------------------------------


def branch_zone() -> ZoneInfo:
    """The clock of the branch the actor works at; UTC where there is none."""
    from views.branches import zone_of

    return zone_of(current().branch_id)


def words(value: Any) -> Any:
    """A value as a person reads it."""
    if value is None or value == "":
        return "—"
    if value is True:
        return gettext("Yes")
    if value is False:
        return gettext("No")
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        here = aware.astimezone(branch_zone())
        return f"{spoken_day(here)}, {here:%H:%M}"
    if isinstance(value, date):
        return spoken_day(value)
    if isinstance(value, list | tuple):
        return ", ".join(str(words(item)) for item in value) or "—"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {words(item)}" for key, item in value.items())
    return str(value)


def day(value: datetime | None) -> str:
    """The day of an instant, by the branch's clock."""
    return str(words(value.astimezone(branch_zone()).date())) if value else "—"


# ---- screens -----------------------------------------------------------------------------------------------------


class Page(BaseView):
    """A page of our own. Each method says with `open_to` what it takes to open it."""

    def render(self, template: str, **context: Any) -> str:
        return str(self.render_template(template, **context))


def open_to(action: str, resource: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Open a page only to actors who are granted the action; others are refused, and the refusal is recorded."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        def opened(self: Any, *args: Any, **kwargs: Any) -> Any:
            signed_in()
            guard.require(action, resource)
            return method(self, *args, **kwargs)

        opened.__name__ = method.__name__
        opened.__doc__ = method.__doc__
        opened.__dict__.update(method.__dict__)
        opened.policy = (action, resource)  # type: ignore[attr-defined]
        return opened

    return decorate


def open_to_all(method: Callable[..., Any]) -> Callable[..., Any]:
    """Open a page to whoever is signed in; the gate still decides about every row on it."""

    def opened(self: Any, *args: Any, **kwargs: Any) -> Any:
        signed_in()
        return method(self, *args, **kwargs)

    opened.__name__ = method.__name__
    opened.__doc__ = method.__doc__
    opened.__dict__.update(method.__dict__)
    opened.policy = ("signed in", "")  # type: ignore[attr-defined]
    return opened


class SignInFirst(Exception):
    """Nobody is signed in: a browser is sent to the sign-in page."""


def signed_in() -> None:
    """Raises SignInFirst where nobody is."""
    if current().user_id is None:
        raise SignInFirst


class RecordView(OwnFilters, ModelView):
    """A generated list, show page and forms over one resource; whatever is saved goes through a service."""

    create: ClassVar[Callable[..., Any] | None] = None
    """The service that makes a row: (session, **values) -> row. Without one there is no form to add."""
    update: ClassVar[Callable[..., Any] | None] = None
    """The service that changes a row: (session, row, **values). Without one there is no form to edit."""
    remove: ClassVar[Callable[..., Any] | None] = None
    """The service that removes a row: (session, row)."""
    intro: Any = ""
    empty: Any = lazy_gettext("Nothing here yet.")
    add_label: Any = lazy_gettext("Add")
    method_permission_name: ClassVar[dict[str, str]] = PERMISSION_OF
    base_permissions: ClassVar[list[str]] = ["can_read", "can_create", "can_update", "can_delete"]
    page_size = 25
    list_template = "list.html"
    show_template = "show.html"
    form_template = "form.html"

    def __init__(self, **kwargs: Any) -> None:
        self.class_permission_name = self.datamodel.obj.__name__
        super().__init__(**kwargs)
        self.datamodel.eager = tuple(
            name
            for name in {*self.list_columns, *self.show_columns, *self.edit_columns}
            if self.datamodel.is_relation(name)
        )

    # What the page needs to know of the row's looks; a view may say more.

    def title_of(self, item: Any) -> str:
        """What a row is called."""
        return str(item)

    def value_of(self, item: Any, column: str) -> Any:
        """A cell or field, in words."""
        value = getattr(item, column)
        return words(value() if callable(value) else value)

    def _address(self, **changed: Any) -> str:
        arguments = {**request.args.to_dict(flat=True), **changed}
        return f"{request.path}?{urlencode({k: v for k, v in arguments.items() if v is not None})}"

    @expose("/list/")
    @has_access
    def list(self) -> str:
        """Rows, a page at a time."""
        name = type(self).__name__
        order_column, direction = get_order_args().get(name, self.base_order or ("", ""))
        if order_column not in {*self.order_columns, (self.base_order or ("",))[0], ""}:
            order_column, direction = self.base_order or ("", "")
        page = _number(request.args.get(f"page_{name}"), 0, 10_000)
        size = _number(request.args.get(f"psize_{name}"), self.page_size, LONGEST_PAGE) or self.page_size
        filters = self._filters
        try:
            get_filter_args(filters)
        except IndexError as error:  # the address names a kind of filter the column does not have
            raise Invalid(gettext("This list cannot be narrowed that way.")) from error
        told = zip(filters.filters, map(_plain, filters.filters, filters.values), strict=True)
        said = [(each, value) for each, value in told if _says(value)]
        filters.filters, filters.values = [each for each, _ in said], [value for _, value in said]
        joined = self._with_own(filters)
        try:
            count, rows = self.datamodel.query(joined, order_column, direction, page=page, page_size=size)
        except FABException as error:
            raise Invalid(gettext("This list cannot be narrowed that way.")) from error
        page = min(page, max(count - 1, 0) // size)
        self.seen(rows)
        if joined.filters:
            guard.searching(f"{self.class_permission_name} by " + ", ".join(f.column_name for f in filters.filters))
        columns = []
        for key in self.list_columns:
            towards = "desc" if (order_column, direction) == (key, "asc") else "asc"
            columns.append(
                {
                    "key": key,
                    "label": str(self.label_columns.get(key, key)),
                    "sorted": direction if key == order_column else None,
                    "sort_href": self._address(**{f"_oc_{name}": key, f"_od_{name}": towards, f"page_{name}": None})
                    if key in self.order_columns
                    else None,
                }
            )
        may_edit = self.update is not None and current().may("update", self.class_permission_name)
        return self._render(
            self.list_template,
            title=self.list_title,
            intro=self.intro,
            columns=columns,
            rows=[
                {
                    "href": self.row_href(item),
                    "edit_href": url_for(f"{self.endpoint}.edit", pk=item.id) if may_edit else None,
                    "cells": [self.value_of(item, key) for key in self.list_columns],
                }
                for item in rows
            ],
            count=count,
            counted=COUNTED,
            page=page,
            page_size=size,
            pages=-(-count // size),
            first=page * size + 1 if rows else 0,
            last=page * size + len(rows),
            prev_href=self._address(**{f"page_{name}": page - 1}) if page else None,
            next_href=self._address(**{f"page_{name}": page + 1}) if count > (page + 1) * size else None,
            filters=self._filter_fields(filters),
            add_href=self.add_href(),
            add_label=self.add_label,
            empty=self.empty,
        )

    def row_href(self, item: Any) -> str:
        """Where a row leads."""
        return url_for(f"{self.endpoint}.show", pk=item.id)

    def add_href(self) -> str | None:
        """Where a row is added, if the actor may."""
        may_add = self.create is not None and current().may("create", self.class_permission_name)
        return url_for(f"{self.endpoint}.add") if may_add else None

    def _filter_fields(self, filters: Filters) -> Iterable[dict[str, Any]]:
        """One field a search column, with the filter that suits it first."""
        for column in self.search_columns:
            kinds = filters.get_search_filters().get(column)
            if not kinds:
                continue
            if self.datamodel.is_boolean(column):
                kind, choices = "select", [("", gettext("All")), ("true", gettext("Yes")), ("false", gettext("No"))]
                index = next(i for i, f in enumerate(kinds) if f.arg_name == "eq")
            elif self.datamodel.is_relation(column):
                related = self.datamodel.get_related_interface(column)
                kind, index = "select", 0
                choices = [("", gettext("All")), *((str(item.id), str(item)) for item in related.query()[1])]
            else:
                kind, choices = "text", []
                index = next((i for i, f in enumerate(kinds) if f.arg_name == "ct"), 0)
            name = f"_flt_{index}_{column}"
            yield {
                "name": name,
                "label": self.label_columns.get(column, column),
                "kind": kind,
                "value": request.args.get(name, ""),
                "choices": choices,
            }

    @expose("/show/<pk>", methods=["GET"])
    @has_access
    def show(self, pk: str) -> str:
        """One row."""
        item = self._get(pk)
        self.seen([item])
        fieldsets = self.show_fieldsets or [(None, {"fields": self.show_columns})]
        may_edit = self.update is not None and current().may("update", self.class_permission_name)
        may_remove = self.remove is not None and current().may("delete", self.class_permission_name)
        return self._render(
            self.show_template,
            title=self.title_of(item),
            groups=[
                {
                    "title": title,
                    "fields": [
                        {"label": self.label_columns.get(name, name), "value": self.value_of(item, name)}
                        for name in group["fields"]
                    ],
                }
                for title, group in fieldsets
            ],
            edit_href=url_for(f"{self.endpoint}.edit", pk=pk) if may_edit else None,
            delete_href=url_for(f"{self.endpoint}.delete", pk=pk) if may_remove else None,
            back_href=url_for(f"{self.endpoint}.list"),
            actions=self.actions_for(item),
            related=[],
        )

    def actions_for(self, _item: Any) -> Iterable[dict[str, str]]:
        """Further things to do with a row: {label, href}."""
        return []

    def _get(self, pk: str) -> Any:
        item = self.datamodel.get(pk, self._base_filters)
        if item is None:
            raise guard.refuse("read", self.class_permission_name, NotFound)
        return item

    def seen(self, rows: Iterable[Any]) -> None:
        """Note for the trail what is shown of tables that do not do so by themselves: accounts and roles."""
        if not issubclass(self.datamodel.obj, Protected):
            for row in rows:
                guard.shown(self.class_permission_name, row.id)

    @expose("/add", methods=["GET", "POST"])
    @has_access
    def add(self) -> Any:
        """A form; what it makes is made by `create`."""
        service = type(self).create
        if service is None:
            abort(404)
        form = self.add_form.refresh()

        def save(session: Any) -> Any:
            return service(session, **self.values(form))

        return self._save(form, save, title=self.add_title, label=gettext("Save"))

    @expose("/edit/<pk>", methods=["GET", "POST"])
    @has_access
    def edit(self, pk: str) -> Any:
        """A form; what it changes is changed by `update`, unless somebody else was first."""
        service = type(self).update
        if service is None:
            abort(404)
        item = self._get(pk)
        form = self.edit_form.refresh(request.form) if request.method == "POST" else self.edit_form.refresh(obj=item)
        form._id = item.id
        if request.method != "POST":
            self.prefill_form(form, item.id)

        def save(session: Any) -> Any:
            if isinstance(item, Record):
                seen = request.form.get("version")
                if seen is not None and seen != str(item.version):
                    from app.errors import Conflict

                    raise Conflict
            service(session, item, **self.values(form))
            return item

        return self._save(form, save, title=self.title_of(item), label=gettext("Save changes"), item=item)

    def values(self, form: Form) -> dict[str, Any]:
        """What the form says, by column."""
        return {name: value for name, value in form.data.items() if name not in ("csrf_token", "version")}

    def _save(self, form: Form, save: Callable[[Any], Any], *, title: Any, label: str, item: Any = None) -> Any:
        """Show the form, or save it: all in one unit of work, and a refusal keeps what was typed."""
        sentence: str | None = None
        status = 200
        # What the page shows of the row is read before the attempt: a refused one rolls the session back.
        version = getattr(item, "version", None)
        cancel = url_for(f"{self.endpoint}.show", pk=item.id) if item is not None else url_for(f"{self.endpoint}.list")
        if request.method == "POST":
            if form.validate():
                try:
                    with guard.unit_of_work() as session:
                        saved = save(session)
                    flash(gettext("Saved."), "success")
                    return redirect(url_for(f"{self.endpoint}.show", pk=saved.id))
                except Refusal as refusal:
                    sentence, status = explain(refusal, form), refusal.status
            else:
                sentence, status = gettext("Please check the fields marked below."), 422
        fieldsets = (self.edit_fieldsets if item is not None else self.add_fieldsets) or [
            (None, {"fields": self.edit_columns if item is not None else self.add_columns})
        ]
        page = self._render(
            self.form_template,
            title=title,
            form=form,
            fieldsets=[(heading, group["fields"]) for heading, group in fieldsets],
            action_label=label,
            cancel_href=cancel,
            refusal=sentence,
            version=version,
        )
        return page, status

    @expose("/delete/<pk>", methods=["POST"])
    @has_access
    def delete(self, pk: str) -> Response:
        """Remove a row, where the resource allows that at all."""
        service = type(self).remove
        if service is None:
            abort(404)
        item = self._get(pk)
        with guard.unit_of_work() as session:
            service(session, item)
        flash(gettext("Removed."), "success")
        return redirect(url_for(f"{self.endpoint}.list"))

    # Flask-AppBuilder's bulk actions fetch by key past every filter; nothing here uses them.
    exclude_route_methods: ClassVar[set[str]] = {"action", "action_post", "download"}

    def _render(self, template: str, **context: Any) -> str:
        return str(self.render_template(template, **context))


def _plain(asked: Any, value: Any) -> Any:
    """What a filter asks for; of a yes-or-no column a truth value, where the framework leaves the text it came as."""
    if not asked.datamodel.is_boolean(asked.column_name):
        return value
    text = str(value[0] if isinstance(value, list | tuple) else value)
    return {"true": True, "false": False}.get(text.lower(), "")


def _says(value: Any) -> bool:
    """Whether a filter was filled in; a form sends its empty fields too."""
    return any(str(part).strip() for part in (value if isinstance(value, list | tuple) else [value]))


def _number(text: str | None, otherwise: int, most: int) -> int:
    """A number from the address line, kept within bounds; nonsense counts as not said."""
    return min(int(text), most) if text and text.isdecimal() and len(text) < 9 else otherwise


def explain(refusal: Refusal, form: Form) -> str:
    """Put a refusal beside the field it belongs to, and give the sentence for the top of the form."""
    if refusal.field and refusal.field in form:
        field = form[refusal.field]
        field.errors = [*field.errors, str(refusal)]
        return str(gettext("Please check the fields marked below."))
    return str(refusal)


class CommandView(Page, ABC):
    """One form that is one service: `form_class` asked, `carry_out` done in a unit of work, then on to `after`."""

    form_class: ClassVar[type[Form]]
    template = "form.html"
    title: Any = ""
    action_label: Any = lazy_gettext("Save")
    policy: ClassVar[tuple[str, str]]
    default_view = "ask"

    @abstractmethod
    def carry_out(self, session: Any, form: Form, **route: Any) -> Any:
        """Call the service; may raise any Refusal."""

    @abstractmethod
    def after(self, result: Any, **route: Any) -> str:
        """Where to go when it is done."""

    def prefill(self, **_route: Any) -> Form:
        """The form as it is first shown."""
        return self.form_class(request.args)

    def ask(self, **route: Any) -> Any:
        """Show the form, or carry it out."""
        signed_in()
        guard.require(*self.policy)
        if request.method != "POST":
            return self._page(self.prefill(**route), None, **route)
        form = self.form_class(_submitted())
        if not form.validate():
            return self._page(form, gettext("Please check the fields marked below."), **route), 422
        try:
            with guard.unit_of_work() as session:
                result = self.carry_out(session, form, **route)
        except Refusal as refusal:
            return self._page(form, explain(refusal, form), refusal=refusal, **route), refusal.status
        return redirect(self.after(result, **route))

    def _page(self, form: Form, sentence: str | None, refusal: Refusal | None = None, **route: Any) -> str:
        del refusal, route
        return self.render(self.template, title=self.title, form=form, action_label=self.action_label, refusal=sentence)


def _submitted() -> Any:
    """Fields and files of the request together, as WTForms wants them."""
    from werkzeug.datastructures import CombinedMultiDict

    return CombinedMultiDict([request.files, request.form])


__all__ = [
    "CommandView",
    "OwnFilters",
    "Page",
    "RecordInterface",
    "RecordView",
    "SignInFirst",
    "day",
    "explain",
    "open_to",
    "open_to_all",
    "signed_in",
    "words",
]
