"""Who is on call: asked when whoever ordered a critical result does not answer."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import format_datetime, gettext, lazy_gettext
from sqlalchemy import select
from wtforms import DateTimeLocalField, Form, SelectField
from wtforms.validators import InputRequired

from app import guard
from app.actor import current
from app.errors import Refusal
from app.services import on_call
from models.lab import OnCall
from models.organization import Branch, Practitioner
from views.base import Page, explain, open_to

NEEDED = InputRequired(lazy_gettext("This is needed."))
AT = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]


class Duty(Form):
    """Somebody on call at a branch, from when to when by its clock."""

    branch = SelectField(lazy_gettext("Branch"), coerce=int)
    practitioner = SelectField(lazy_gettext("Who"), coerce=int)
    starts_at = DateTimeLocalField(lazy_gettext("From"), [NEEDED], format=AT)
    ends_at = DateTimeLocalField(lazy_gettext("To"), [NEEDED], format=AT)


def _span(row: OnCall) -> str:
    zone = ZoneInfo(row.branch.time_zone)
    ends = (format_datetime(at.astimezone(zone), "short", rebase=False) for at in (row.starts_at, row.ends_at))
    return " – ".join(ends)


class Duties(Page):
    """Who is on call."""

    route_base = "/laboratory/on-call"
    default_view = "list"

    @expose("/")
    @open_to("read", "OnCall")
    def list(self) -> str:
        """Who is and will be on call, at every branch."""
        moment = datetime.now(ZoneInfo("UTC"))
        return self.render(
            "lab/on_call.html",
            page_title=gettext("On call"),
            lines=[(row, _span(row), row.starts_at <= moment) for row in on_call.coming(guard.session())],
        )

    @expose("/add/", methods=["GET", "POST"])
    @open_to("create", "OnCall")
    def add(self) -> Any:
        """Say who is on call."""
        session = guard.session()
        form = Duty(request.form, data={"branch": current().branch_id})
        branches = session.scalars(select(Branch).where(Branch.active).order_by(Branch.id)).all()
        people = session.scalars(
            select(Practitioner)
            .where(Practitioner.active, Practitioner.user_id.is_not(None))
            .order_by(Practitioner.family, Practitioner.given)
        ).all()
        form.branch.choices = [(each.id, str(each)) for each in branches]
        form.practitioner.choices = [(each.id, each.name) for each in people]
        refusal, status = None, 200
        if request.method == "POST":
            refusal, status = gettext("Please check the fields marked below."), 422
            if form.validate():
                zone = ZoneInfo(next(each.time_zone for each in branches if each.id == form.branch.data))
                try:
                    with guard.unit_of_work() as work:
                        on_call.begin(
                            work,
                            branch_id=form.branch.data,
                            practitioner_id=form.practitioner.data,
                            starts_at=form.starts_at.data.replace(tzinfo=zone),
                            ends_at=form.ends_at.data.replace(tzinfo=zone),
                        )
                    flash(gettext("Written down."), "success")
                    return redirect(url_for("Duties.list"))
                except Refusal as refused:
                    if refused.status in (403, 404):
                        raise
                    refusal, status = explain(refused, form), refused.status
        page = self.render(
            "lab/catalogue_form.html",
            page_title=gettext("Who is on call"),
            back=url_for("Duties.list"),
            form=form,
            refusal=refusal,
            told=None,
        )
        return page, status

    @expose("/<int:on_call_id>/end", methods=["POST"])
    @open_to("update", "OnCall")
    def end(self, on_call_id: int) -> Any:
        """Let it end now."""
        with guard.unit_of_work() as session:
            on_call.end(session, on_call_id)
        flash(gettext("Ended."), "success")
        return redirect(url_for("Duties.list"))


def register(builder: Any) -> None:
    """The pages of who is on call."""
    builder.add_view_no_menu(Duties)
