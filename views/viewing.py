"""Looking at the house as a role: whoever configures roles sees what a role is shown, and changes nothing meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flask import redirect, request, session, url_for
from flask_appbuilder import expose
from flask_babel import gettext

from app import guard, trail
from app.actor import Actor, acting, current
from app.errors import LookingOnly, NotInUse
from app.services import roles
from models.codes import PurposeOfUse
from views.base import Page, open_to, open_to_all
from views.roles import role_word
from views.security import bears_token

STILL_OPEN = {"Viewing.end", "SignInView.logout", "BranchChoice.choose", "LocaleView.index"}
"""What may be sent while somebody looks as a role."""
CHANGES_NOTHING = {"GET", "HEAD", "OPTIONS"}


class Viewing(Page):
    """Taking on the view of a role, and giving it back."""

    route_base = "/view-as"
    default_view = "choose"

    @expose("/", methods=["GET", "POST"])
    @open_to("update", "Role")
    def choose(self) -> Any:
        """The roles in use; the one sent as `role` is looked as from here on. Raises NotInUse for any other."""
        known = {role.name: role for role in roles.all_roles(guard.session()) if not role.retired}
        if request.method == "POST":
            chosen = known.get(request.form.get("role", ""))
            if bears_token(request):
                raise guard.refuse("view-as", "Role")
            if chosen is None:
                raise guard.refuse("view-as", "Role", NotInUse)
            note(replace(current(), viewing_as=chosen.name, purpose=PurposeOfUse.HSYSADMIN), "began")
            session["view_as"] = chosen.name
            return redirect(url_for("Home.index"))
        return self.render(
            "viewing.html",
            page_title=gettext("Look as a role"),
            roles=[
                {"name": role.name, "spoken": role_word(role.name), "holders": role.holders} for role in known.values()
            ],
        )

    @expose("/end", methods=["POST"])
    @open_to_all
    def end(self) -> Any:
        """Back to one's own view."""
        actor = current()
        if actor.viewing_as is not None:
            note(actor, "ended")
            session.pop("view_as")
        own = guard.who_is(actor.user_id, actor.origin) if actor.user_id is not None else None
        may_choose = own is not None and own.may("update", "Role")
        return redirect(url_for("Viewing.choose" if may_choose else "Home.index"))


def note(actor: Actor, what: str) -> None:
    """A line in the trail for the beginning and the end of looking as a role, durable before either happens."""
    entities = [{"type": "Role", "of": actor.viewing_as}]
    trail.the_trail().write(actor, [trail.event("E", "view-as", entities=entities, reason=what)])


def only_look() -> None:
    """Before each request: who looks as a role changes nothing, and goes on for as long as both may be.

    Raises LookingOnly for whatever is sent; a call with a token of its own has nothing to do with it.
    """
    at_work = acting()
    if at_work is None or "view_as" not in session or bears_token(request):
        return
    actor = at_work.actor
    if actor.user_id is None:
        return
    if actor.viewing_as is None or actor.owes_second_factor:
        _end_by_itself(actor, actor)  # a person who owes a second factor was given no rights yet
    elif not actor.rights.actions and not roles.in_use(guard.session(), actor.viewing_as):
        own = guard.who_is(actor.user_id, actor.origin)
        _end_by_itself(actor, own or actor)
    if request.method not in CHANGES_NOTHING and request.endpoint not in STILL_OPEN:
        raise guard.refuse("update", request.endpoint or "", LookingOnly)


def _end_by_itself(actor: Actor, own: Actor) -> None:
    """The role is retired, or the person configures roles no more: they go on as themselves."""
    note(replace(actor, viewing_as=str(session["view_as"])), "ended")
    session.pop("view_as")
    guard.become(guard.at_branch(replace(own, viewing_as=None), session.get("branch_id")))


def register(builder: Any) -> None:
    """One page."""
    builder.add_view_no_menu(Viewing)
