"""A person's own account: who am I here, and at which branch do I sit."""

from __future__ import annotations

from typing import Any

from flask import redirect, request, session, url_for
from flask_appbuilder import expose

from app import guard
from app.actor import current
from app.errors import Forbidden
from views.base import Page, open_to_all


class MyAccount(Page):
    """What a person may know of their own account."""

    route_base = "/me"
    default_view = "show"

    @expose("/")
    @open_to_all
    def show(self) -> str:
        """Name, roles, branch, password."""
        return self.render("account.html", password_href=url_for("MyPasswordView.this_form_get"))


class BranchChoice(Page):
    """Sitting down at another of one's branches."""

    route_base = "/branch"
    default_view = "choose"

    @expose("/", methods=["POST"])
    @open_to_all
    def choose(self) -> Any:
        """From here on the person works at this branch. Raises Forbidden for one they do not work at."""
        chosen = request.form.get("branch_id", "")
        if not chosen.isdigit() or int(chosen) not in current().branch_ids:
            raise guard.refuse("read", "Branch", Forbidden)
        session["branch_id"] = int(chosen)
        return redirect(url_for("Home.index"))


def register(builder: Any) -> None:
    """Two small pages."""
    builder.add_view_no_menu(MyAccount)
    builder.add_view_no_menu(BranchChoice)
