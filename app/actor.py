"""Who is acting: bound to the thread of control once, at the edge, and asked for by the gate underneath."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from app.errors import NotSignedIn
from app.policy import NOTHING, Rights, service_rights
from models.codes import PurposeOfUse


@dataclass(frozen=True)
class Origin:
    """Where a request came from."""

    channel: str = "cli"
    address: str | None = None
    user_agent: str | None = None
    session_id: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Actor:
    """A person or a service, with what it may do."""

    name: str
    roles: tuple[str, ...]
    rights: Rights
    user_id: int | None = None
    practitioner_id: int | None = None
    patient_id: int | None = None
    branch_id: int | None = None
    branch_ids: tuple[int, ...] = ()
    emergencies: tuple[int, ...] = ()
    """Patients whose glass this person has broken, and the hour is not over (purpose of use BTG)."""
    viewing_as: str | None = None
    """The role whose view of the house an administrator has taken on, to look only."""
    generation: int = 0
    """Sessions and tokens of an earlier generation of the account have ended."""
    second_factor: bool = False
    """Whether the account has one."""
    owes_second_factor: bool = False
    """Whether a role of the account asks for one it does not have yet."""
    purpose: str = PurposeOfUse.TREAT
    origin: Origin = field(default_factory=Origin)

    @property
    def of_the_house(self) -> bool:
        """Whether this is something the application does by itself, and no person."""
        return bool(self.roles) and self.user_id is None

    def may(self, action: str, resource: str) -> bool:
        """Whether the policy grants the action on the resource, for some row at least."""
        return self.rights.may(action, resource)

    def purpose_with(self, patient_id: int | None) -> str:
        """Why the actor deals with a patient: break-the-glass, where that is how they came by the record."""
        return PurposeOfUse.BTG if patient_id in self.emergencies else self.purpose


def service(name: str, channel: str = "job") -> Actor:
    """The actor of something the application does by itself. Raises KeyError for a name without a policy."""
    return Actor(
        name=name,
        roles=(f"service:{name}",),
        rights=service_rights(name),
        purpose=PurposeOfUse.HOPERAT,
        origin=Origin(channel=channel),
    )


def nobody(origin: Origin | None = None) -> Actor:
    """The actor of a request nobody has signed in for: it may do nothing, and its refusals are recorded."""
    return Actor(name="", roles=(), rights=NOTHING, origin=origin or Origin())


class Seen:
    """What one actor has been shown or refused since the last line in the trail."""

    __slots__ = ("loaded", "query", "refused", "unresolved")

    def __init__(self) -> None:
        self.loaded: dict[int | None, dict[str, list[object]]] = {}
        self.unresolved: list[object] = []
        self.refused: list[tuple[str, str, str]] = []
        self.query: str | None = None

    def note(self, resource: str, key: object, patient_id: int | None) -> None:
        """A row came out of the gate."""
        self.loaded.setdefault(patient_id, {}).setdefault(resource, []).append(key)

    def __bool__(self) -> bool:
        return bool(self.loaded or self.refused or self.unresolved or self.query)


@dataclass
class Acting:
    """An actor at work."""

    actor: Actor
    seen: Seen = field(default_factory=Seen)


_acting: ContextVar[Acting | None] = ContextVar("acting", default=None)


def acting() -> Acting | None:
    """The actor at work here, or None."""
    return _acting.get()


def current() -> Actor:
    """The actor at work here. Raises NotSignedIn where there is none."""
    at_work = _acting.get()
    if at_work is None:
        raise NotSignedIn
    return at_work.actor
