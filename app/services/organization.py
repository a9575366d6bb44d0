"""The hospital itself: its branches, rooms and staff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zoneinfo import available_timezones

from babel import Locale, UnknownLocaleError
from babel.numbers import list_currencies
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Invalid
from app.services.words import line
from models.organization import Branch, Organization, Practitioner, Room


def found_organization(
    session: Session, *, name: str, part_of: Organization | None = None, active: bool = True
) -> Organization:
    """Write down an organization. Raises Invalid, naming the field."""
    organization = Organization(
        name=_named(name), part_of_id=part_of.id if part_of else None, active=active, telecom=[], address=[]
    )
    session.add(organization)
    session.flush()
    return organization


def change_organization(session: Session, organization: Organization, *, name: str, active: bool = True) -> None:
    """Rename an organization, or say that it is no longer there."""
    del session
    organization.name = _named(name)
    organization.active = active


def open_branch(
    session: Session,
    *,
    name: str,
    code: str,
    time_zone: str,
    currency: str,
    languages: Sequence[str] | str,
    country: str = "",
    active: bool = True,
) -> Branch:
    """Open a hospital of the chain. Raises Invalid, naming the field, and Conflict for a code in use."""
    told = _branch(code, time_zone, currency, languages)
    chain = session.scalars(
        select(Organization).where(Organization.part_of_id.is_(None)).order_by(Organization.id)
    ).first()
    organization = found_organization(session, name=name, part_of=chain)
    organization.address = _address(country)
    branch = Branch(organization_id=organization.id, active=active, **told)
    branch.organization = organization
    session.add(branch)
    session.flush()
    return branch


def change_branch(
    session: Session,
    branch: Branch,
    *,
    name: str,
    code: str,
    time_zone: str,
    currency: str,
    languages: Sequence[str] | str,
    country: str = "",
    active: bool = True,
) -> None:
    """Set a branch right. Raises as `open_branch` does."""
    del session
    for key, value in _branch(code, time_zone, currency, languages).items():
        if getattr(branch, key) != value:
            setattr(branch, key, value)
    branch.active = active
    branch.organization.name = _named(name)
    if country:
        branch.organization.address = _address(country)


def _branch(code: str, time_zone: str, currency: str, languages: Sequence[str] | str) -> dict[str, Any]:
    code = line(code, field="code", longest=12).upper()
    if time_zone not in available_timezones():
        raise Invalid("Please choose a time zone such as Europe/Madrid.", field="time_zone")
    currency = currency.strip().upper()
    if currency not in list_currencies():
        raise Invalid("Please give the currency by its three letters, such as EUR.", field="currency")
    spoken = languages.replace(",", " ").split() if isinstance(languages, str) else list(languages)
    for language in spoken:
        try:
            Locale.parse(language, sep="-")
        except (UnknownLocaleError, ValueError) as error:
            raise Invalid("Please give languages by their codes, such as es or en.", field="languages") from error
    if not spoken:
        raise Invalid("A branch needs a language.", field="languages")
    return {"code": code, "time_zone": time_zone, "currency": currency, "languages": spoken}


def _named(name: str) -> str:
    name = line(name, field="name")
    if not name:
        raise Invalid("Please enter a name.", field="name")
    return name


def _address(country: str) -> list[dict[str, object]]:
    return [{"country": country.upper()}] if country else []


def furnish_room(
    session: Session, *, branch: Branch | None, name: str, kind: str = "", capacity: int | None = 1, active: bool = True
) -> Room:
    """Add a room to a branch. Raises Invalid, and Conflict for a name the branch has already."""
    room = Room(**_room(branch, name, kind, capacity, active))
    session.add(room)
    session.flush()
    return room


def change_room(
    session: Session,
    room: Room,
    *,
    branch: Branch | None,
    name: str,
    kind: str = "",
    capacity: int | None = 1,
    active: bool = True,
) -> None:
    """Set a room right. Raises as `furnish_room` does."""
    del session
    for key, value in _room(branch, name, kind, capacity, active).items():
        setattr(room, key, value)


def _room(branch: Branch | None, name: str, kind: str, capacity: int | None, active: bool) -> dict[str, Any]:
    if branch is None:
        raise Invalid("Please choose the branch.", field="branch")
    if capacity is None or not 0 < capacity < 1000:
        raise Invalid("A room has place for 1 to 999.", field="capacity")
    name = line(name, field="name", longest=80)
    if not name:
        raise Invalid("Please enter a name.", field="name")
    return {
        "branch_id": branch.id,
        "name": name,
        "kind": line(kind, field="kind", longest=80),
        "capacity": capacity,
        "active": active,
    }


def employ(
    session: Session,
    *,
    family: str,
    given: str = "",
    prefix: str = "",
    gender: str | None = None,
    qualification: str = "",
    home_branch: Branch | None = None,
    branches: Sequence[Branch] = (),
    user_id: int | None = None,
    active: bool = True,
) -> Practitioner:
    """Write down a member of staff; `user_id` is the account they sign in with. Raises Invalid and Conflict."""
    told = _practitioner(family, given, prefix, qualification)
    practitioner = Practitioner(
        **told,
        gender=gender or None,
        home_branch_id=home_branch.id if home_branch else None,
        user_id=user_id,
        active=active,
        identifier=[],
        telecom=[],
    )
    practitioner.branches = list(branches)
    session.add(practitioner)
    session.flush()
    return practitioner


def change_practitioner(
    session: Session,
    practitioner: Practitioner,
    *,
    family: str,
    given: str = "",
    prefix: str = "",
    qualification: str = "",
    home_branch: Branch | None = None,
    branches: Sequence[Branch] = (),
    active: bool = True,
) -> None:
    """Set a member of staff right, and where they work."""
    del session
    for key, value in _practitioner(family, given, prefix, qualification).items():
        setattr(practitioner, key, value)
    practitioner.home_branch_id = home_branch.id if home_branch else None
    practitioner.branches = list(branches)
    practitioner.active = active


def _practitioner(family: str, given: str, prefix: str, qualification: str) -> dict[str, str]:
    family = line(family, field="family")
    if not family:
        raise Invalid("Please enter a family name.", field="family")
    return {
        "family": family,
        "given": line(given, field="given"),
        "prefix": line(prefix, field="prefix", longest=40),
        "qualification": line(qualification, field="qualification", longest=120),
    }
