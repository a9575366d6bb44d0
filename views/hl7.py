"""Messages from other systems: what waits for a person, what could not be read, and what is said of who somebody is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from flask import flash, jsonify, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext

from app import guard
from app.actor import Actor, current, service
from app.errors import NotFound, PossibleDuplicate, Refusal, TooManyLines
from app.services import hl7_intake, hl7_proposals, hl7_reading, merging, patients
from app.services.hl7_reading import Unreadable
from app.services.words import spoken_phone
from models.codes import Hl7Outcome, Hl7State, ProposalKind, ProposalState
from models.hl7 import Hl7Message, Hl7Result, PatientProposal
from models.patients import Patient
from views.base import Page, open_to, words
from views.desk import number_of
from views.laboratory import FLAGS
from views.merging import comparison, said
from views.patients import region
from views.people import GENDERS, in_short
from views.speech import spoken_day

STATES = {
    Hl7State.UNMATCHED: lazy_gettext("To match"),
    Hl7State.DEAD: lazy_gettext("Not understood"),
    Hl7State.STORED: lazy_gettext("Stored"),
    Hl7State.PROPOSED: lazy_gettext("Proposals"),
    Hl7State.DISMISSED: lazy_gettext("Dismissed"),
}
OUTCOMES = {
    Hl7Outcome.STORED: lazy_gettext("Stored"),
    Hl7Outcome.WAITING: lazy_gettext("Waiting"),
    Hl7Outcome.REFUSED: lazy_gettext("Refused"),
}
TONES = {Hl7Outcome.STORED: "ok", Hl7Outcome.WAITING: "warn", Hl7Outcome.REFUSED: "danger"}
EMPTY = {
    Hl7State.UNMATCHED: (
        lazy_gettext("Nothing waits to be matched"),
        lazy_gettext("Results of somebody who could not be told for certain appear here."),
    ),
    Hl7State.DEAD: (
        lazy_gettext("Every message was understood"),
        lazy_gettext("What another system sends and nobody can read appears here, with what is wrong."),
    ),
}
KINDS = {
    ProposalKind.REGISTER: lazy_gettext("New patient"),
    ProposalKind.UPDATE: lazy_gettext("Change"),
    ProposalKind.MERGE: lazy_gettext("Two records of one person"),
}
FIELDS = {
    "name": lazy_gettext("Name"),
    "birth_date": lazy_gettext("Born"),
    "gender": lazy_gettext("Gender"),
    "telecom": lazy_gettext("Phone and e-mail"),
    "address": lazy_gettext("Address"),
    "numbers": lazy_gettext("Numbers"),
}
DECISIONS = {
    "matched by hand": lazy_gettext("matched by hand"),
    "tried again": lazy_gettext("tried again"),
    "registered": lazy_gettext("registered"),
    "merged": lazy_gettext("merged"),
}
AT_ONCE = 100
"""Messages of a file that are taken in before the page says how far it is."""
MOST = 2000
"""Messages of a file that are taken in by the page; more than that is for the command."""
LONGEST_RAW = 20_000


# ---- in words ----------------------------------------------------------------------------------------------------


def person(named: dict[str, Any]) -> dict[str, Any]:
    """Who a message says it is about."""
    born = date.fromisoformat(named["born"]) if named.get("born") else None
    gender = hl7_proposals.GENDERS.get(named.get("sex", ""))
    return {
        "name": ", ".join(part for part in (named.get("family"), named.get("given")) if part)
        or gettext("Nobody is named"),
        "birth": spoken_day(born) if born else gettext("birth date not said"),
        "gender": str(GENDERS[gender]) if gender else "",
        "numbers": [
            f"{value} ({authority or kind})" if authority or kind else value
            for value, authority, kind in named.get("identifiers", [])
        ],
        "phones": [spoken_phone(each) for each in named.get("phones", [])],
        "address": ", ".join(part for part in named.get("address", []) if part),
    }


def line_of(kept: Hl7Message) -> dict[str, Any]:
    """A message in a list."""
    return {
        "id": kept.id,
        "href": url_for("Messages.show", message_id=kept.id),
        "kind": kept.kind or gettext("not readable"),
        "sender": kept.sender.replace("|", " ").strip() or gettext("sender not known"),
        "number": kept.control_id,
        "when": words(kept.received_at),
        "person": person(kept.named or {}),
        "error": kept.error,
        "state": kept.state,
        "state_word": str(STATES[Hl7State(kept.state)]),
        "patient": in_short(kept.patient) if kept.patient is not None else None,
    }


def decided(row: Hl7Message | PatientProposal) -> str:
    """Who decided what, and when; empty where nobody has."""
    if row.decided_at is None:
        return ""
    by = f"{row.decided_by.first_name} {row.decided_by.last_name}" if row.decided_by else gettext("Wardbook itself")
    what = str(DECISIONS.get(row.decision, row.decision))
    return str(gettext("%(name)s, %(when)s: %(what)s", name=by, when=words(row.decided_at), what=what))


def lines_of(kept: Hl7Message) -> list[dict[str, Any]]:
    """Each result of a message, with what became of it."""
    try:
        sent = {result.position: result for result in hl7_reading.read(kept.raw).results}
    except Unreadable:
        sent = {}
    return [_line(each, sent.get(each.position)) for each in kept.results]


def _line(row: Hl7Result, result: hl7_reading.Result | None) -> dict[str, Any]:
    outcome = Hl7Outcome(row.outcome)
    flag = result.interpretation if result else ""
    return {
        "position": row.position,
        "name": result.code_display if result else row.code,
        "code": row.code,
        "order": row.order_number,
        "value": ", ".join(each.replace("^", " ").strip() for each in result.values)[:300] if result else "",
        "unit": result.unit if result else "",
        "flag": f"{flag} {FLAGS.get(flag, '')}".strip(),
        "status": result.status if result else "",
        "outcome": str(OUTCOMES[outcome]),
        "tone": TONES[outcome],
        "reason": row.reason,
    }


def shown_raw(raw: bytes) -> str:
    """A message as it came, a segment a line; what no screen shows stands as its number."""
    text = raw[:LONGEST_RAW].replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() or letter == "\n" else f"\\x{ord(letter):02x}" for letter in text)


def counted(told: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The balance in words."""
    return {
        "messages": [(str(STATES[state]), told["messages"].get(state, 0)) for state in Hl7State],
        "results": [(str(OUTCOMES[outcome]), told["results"].get(outcome, 0)) for outcome in Hl7Outcome],
        "sent": sum(told["results"].values()),
    }


def as_service() -> Actor:
    """Who takes messages in on behalf of whoever is signed in: matching knows numbers that not everybody is shown."""
    here = current()
    return replace(service("hl7", channel=here.origin.channel), name=f"hl7 ({here.name})", origin=here.origin)


# ---- messages ----------------------------------------------------------------------------------------------------


class Messages(Page):
    """Messages from other systems."""

    route_base = "/laboratory/messages"
    default_view = "list"

    @expose("/")
    @open_to("read", "Hl7Message")
    def list(self) -> str:
        """The messages in a state; first those that wait."""
        asked = request.args.get("state", "")
        state = Hl7State(asked) if asked in set(Hl7State) else Hl7State.UNMATCHED
        session = guard.session()
        told = hl7_intake.balance(session)
        found = hl7_intake.waiting(session, state)
        title, hint = EMPTY.get(state, (lazy_gettext("No message"), lazy_gettext("Nothing stands like this.")))
        return self.render(
            "hl7/messages.html",
            page_title=gettext("Messages from other systems"),
            ways=[
                (str(word), url_for("Messages.list", state=each.value), each == state, told["messages"].get(each, 0))
                for each, word in STATES.items()
            ],
            state=state.value,
            lines=[line_of(each) for each in found],
            most=hl7_intake.MOST if len(found) == hl7_intake.MOST else 0,
            balance=counted(told),
            empty_title=title,
            empty_hint=hint,
            may_upload=current().may("create", "Hl7Message"),
        )

    @expose("/<int:message_id>/")
    @open_to("read", "Hl7Message")
    def show(self, message_id: int) -> str:
        """A message, each of its results, and what became of them."""
        return self._page(message_id)

    def _page(self, message_id: int, *, sentence: str = "", field: str = "") -> str:
        kept = hl7_intake.show(guard.session(), message_id)
        may = current().may("update", "Hl7Message")
        lines = lines_of(kept)
        left = any(each.outcome == Hl7Outcome.REFUSED for each in kept.results)
        return self.render(
            "hl7/message.html",
            page_title=gettext("Message"),
            one=line_of(kept),
            lines=lines,
            counts=[(str(word), sum(each.outcome == key for each in kept.results)) for key, word in OUTCOMES.items()],
            decided=decided(kept),
            raw=shown_raw(kept.raw) if may else None,
            cut=len(kept.raw) > LONGEST_RAW,
            answer=kept.acknowledgement,
            may_match=may and kept.state == Hl7State.UNMATCHED,
            may_retry=may and (kept.state == Hl7State.DEAD or (kept.state == Hl7State.STORED and left)),
            may_dismiss=may and kept.state in (Hl7State.UNMATCHED, Hl7State.DEAD),
            reason=request.form.get("reason", ""),
            sentence=sentence,
            field=field,
        )

    @expose("/<int:message_id>/match/")
    @open_to("update", "Hl7Message")
    def match(self, message_id: int) -> Any:
        """Who it may be, side by side with what the message says; nobody is chosen beforehand."""
        return self._match(message_id)

    def _match(self, message_id: int, sentence: str = "") -> Any:
        session = guard.session()
        kept = hl7_intake.show(session, message_id)
        if kept.state != Hl7State.UNMATCHED:
            return redirect(url_for("Messages.show", message_id=message_id))
        asked = request.args.get("q", "").strip()[:100]
        key = number_of(request.args.get("patient")) or number_of(request.form.get("patient"))
        chosen = session.get(Patient, key) if key else None
        found = patients.find(session, asked).patients if asked else []
        return self.render(
            "hl7/match.html",
            page_title=gettext("Whose results are these?"),
            one=line_of(kept),
            lines=lines_of(kept),
            why=next((each.reason for each in kept.results if each.reason), ""),
            candidates=[
                {**in_short(like.patient), "reasons": [gettext(reason) for reason in like.reasons]}
                for like in hl7_intake.candidates(session, kept.named or {})
            ],
            found=[in_short(each) for each in found],
            q=asked,
            chosen=in_short(chosen) if chosen is not None else None,
            sides=beside(kept.named or {}, chosen) if chosen is not None else [],
            sentence=sentence,
        )

    @expose("/<int:message_id>/assign", methods=["POST"])
    @open_to("update", "Hl7Message")
    def assign(self, message_id: int) -> Any:
        """Say whose it is, and store its results."""
        if request.form.get("sure") != "1":
            return self._match(message_id, gettext("Tick that the results are this patient's.")), 422

        def work(session: Any) -> None:
            hl7_intake.assign(session, message_id, number_of(request.form.get("patient")))

        refused = tried(work)
        if refused is not None:
            return self._match(message_id, str(refused)), refused.status
        flash(gettext("The results are in this patient's record."), "success")
        return redirect(url_for("Messages.show", message_id=message_id))

    @expose("/<int:message_id>/again", methods=["POST"])
    @open_to("update", "Hl7Message")
    def again(self, message_id: int) -> Any:
        """Try what could not be taken in once more."""
        by = current().user_id
        with guard.acting_as(as_service()):
            refused = tried(lambda session: hl7_intake.reread(session, message_id, by=by))
        guard.session.remove()  # what was loaded before the service changed it
        if refused is not None:
            return self._page(message_id, sentence=str(refused)), refused.status
        flash(gettext("Read again."), "success")
        return redirect(url_for("Messages.show", message_id=message_id))

    @expose("/<int:message_id>/dismiss", methods=["POST"])
    @open_to("update", "Hl7Message")
    def dismiss(self, message_id: int) -> Any:
        """Say that it is nobody's here, or not to be mended."""
        reason = request.form.get("reason", "")
        refused = tried(lambda session: hl7_intake.dismiss(session, message_id, reason=reason))
        if refused is not None:
            return self._page(message_id, sentence=str(refused), field=refused.field or ""), refused.status
        flash(gettext("Dismissed. It stays in the list of dismissed messages."), "success")
        return redirect(url_for("Messages.list"))

    @expose("/upload/", methods=["GET", "POST"])
    @open_to("create", "Hl7Message")
    def upload(self) -> Any:
        """Take the messages of files in; the page's script asks part by part, and says how far it is."""
        part_by_part = "begin" in request.form
        begin = number_of(request.form.get("begin"))
        told: Sequence[dict[str, Any]] = []
        sentence, status, total = "", 200, 0
        if request.method == "POST":
            raws = [sent.read() for sent in request.files.getlist("files") if sent.filename]
            parts = [part for raw in raws for part in hl7_reading.messages_in(raw)]
            total = len(parts)
            if not parts:
                sentence, status = gettext("There is no message in it. Choose a file of HL7 v2 messages."), 422
            elif total > MOST:
                sentence = gettext("That is more than %(count)s messages. Use the command for such files.", count=MOST)
                status = TooManyLines.status
            else:
                with guard.acting_as(as_service()):
                    told = [
                        taken(nth, part)
                        for nth, part in enumerate(parts, 1)
                        if not part_by_part or begin < nth <= begin + AT_ONCE
                    ]
        if part_by_part:
            return jsonify({"total": total, "lines": told, "sentence": sentence}), status
        return self.render(
            "hl7/upload.html",
            page_title=gettext("Messages from a file"),
            told=told,
            sentence=sentence,
            done=request.method == "POST" and not sentence,
        ), status


def taken(nth: int, raw: bytes) -> dict[str, Any]:
    """What a message of a file came to."""
    answer = hl7_intake.take_in(raw)
    state = Hl7State(answer.state)
    tone = "danger" if answer.code != "AA" else "warn" if state == Hl7State.UNMATCHED else "ok"
    return {
        "nth": nth,
        "answer": answer.code,
        "state": gettext("here already") if answer.repeated else str(STATES[state]),
        "said": answer.error,
        "tone": tone,
        "href": url_for("Messages.show", message_id=answer.message_id) if answer.message_id else "",
    }


def tried(work: Callable[[Any], Any]) -> Refusal | None:
    """Carry something out; gives the refusal where it is one for the page."""
    try:
        with guard.unit_of_work() as session:
            work(session)
    except Refusal as refusal:
        if refusal.status in (403, 404):
            raise
        return refusal
    return None


def beside(named: dict[str, Any], patient: Patient) -> list[dict[str, Any]]:
    """What a message says of a person beside what is known of a patient."""
    hidden = current().rights.hidden("Patient")
    them = person(named)
    pairs = (
        ("name", them["name"], ()),
        ("birth_date", them["birth"], ("birth_date",)),
        ("gender", them["gender"], ("gender",)),
        ("telecom", ", ".join(them["phones"]), ("telecom",)),
        ("address", them["address"], ("address",)),
    )
    rows = [
        {
            "label": str(FIELDS[name]),
            "theirs": theirs or "—",
            "ours": said(patient, name) if hidden.isdisjoint(columns) else gettext("not shown to your role"),
        }
        for name, theirs, columns in pairs
    ]
    rows.append({"label": str(FIELDS["numbers"]), "theirs": ", ".join(them["numbers"]) or "—", "ours": patient.mrn})
    return [{**row, "same": str(row["ours"]).casefold() == str(row["theirs"]).casefold()} for row in rows]


# ---- proposals ---------------------------------------------------------------------------------------------------


def proposal_line(proposal: PatientProposal) -> dict[str, Any]:
    """A proposal in a list."""
    return {
        "id": proposal.id,
        "href": url_for("Proposals.show", proposal_id=proposal.id),
        "kind": str(KINDS[ProposalKind(proposal.kind)]),
        "when": words(proposal.created_at),
        "person": person(proposal.wanted),
        "patient": in_short(proposal.patient) if proposal.patient is not None else None,
        "other": in_short(proposal.other) if proposal.other is not None else None,
        "why": proposal.wanted.get("why", ""),
    }


def spoken(name: str, told: dict[str, Any]) -> str:
    """What a proposal says in a field, as it would stand in the record."""
    return said(Patient(**{"other_names": [], "deceased": False, **told}), name)


class Proposals(Page):
    """What other systems say of who somebody is."""

    route_base = "/patients/proposals"
    default_view = "list"

    @expose("/")
    @open_to("read", "PatientProposal")
    def list(self) -> str:
        """What nobody has decided about, the oldest first."""
        return self.render(
            "hl7/proposals.html",
            page_title=gettext("Proposals of other systems"),
            lines=[proposal_line(each) for each in hl7_proposals.opened(guard.session())],
        )

    @expose("/<int:proposal_id>/")
    @open_to("read", "PatientProposal")
    def show(self, proposal_id: int) -> str:
        """One: what is said and what is known, side by side."""
        return self._page(proposal_id)

    def _page(self, proposal_id: int, *, refusal: Refusal | None = None) -> str:
        session = guard.session()
        proposal = hl7_proposals.show(session, proposal_id)
        ours = hl7_proposals.standing(session, proposal.patient)
        merge = proposal.kind == ProposalKind.MERGE
        asked = request.args.get("q", "").strip()[:100]
        searches = proposal.state == ProposalState.OPEN and (ours is None or (merge and proposal.other is None))
        alike = [] if not searches or ours is not None else hl7_intake.candidates(session, proposal.wanted)
        new = [] if merge else hl7_proposals.numbers(proposal.wanted)
        return self.render(
            "hl7/proposal.html",
            page_title=str(KINDS[ProposalKind(proposal.kind)]),
            one=proposal_line(proposal),
            opens=proposal.state == ProposalState.OPEN,
            decided=self._decided(proposal),
            may_decide=current().may("update", "PatientProposal"),
            merge=merge,
            given_up=[value for value, _, _ in proposal.wanted.get("given_up", [])],
            ours=in_short(ours) if ours is not None else None,
            version=ours.version if ours is not None else 0,
            fields=[
                {
                    "name": each.name,
                    "label": str(FIELDS[each.name]),
                    "differs": each.differs,
                    "ours": said(ours, each.name),
                    "theirs": spoken(each.name, each.told),
                }
                for each in hl7_proposals.differences(proposal, ours)
            ]
            if ours is not None and not merge
            else [],
            numbers=[f"{value} ({system})" for system, value in new],
            searches=searches,
            candidates=[{**in_short(each.patient), "reasons": [gettext(r) for r in each.reasons]} for each in alike],
            found=[in_short(each) for each in patients.find(session, asked).patients] if asked and searches else [],
            q=asked,
            merge_href=url_for("Proposals.merge", proposal_id=proposal_id)
            if merge and ours is not None and proposal.other is not None
            else None,
            twice=isinstance(refusal, PossibleDuplicate),
            taken=request.form.getlist("taken"),
            reason=request.form.get("reason", ""),
            sentence=gettext(str(refusal)) if refusal else "",
            field=refusal.field if refusal else "",
        )

    def _decided(self, proposal: PatientProposal) -> str:
        if proposal.state == ProposalState.ACCEPTED and proposal.decision not in DECISIONS:
            names = [str(FIELDS.get(name, name)) for name in proposal.decision.split(", ")]
            by = proposal.decided_by
            by_whom = f"{by.first_name} {by.last_name}" if by else gettext("Wardbook itself")
            sentence = gettext(
                "%(name)s, %(when)s: took over %(what)s",
                name=by_whom,
                when=words(proposal.decided_at),
                what=", ".join(names),
            )
            return str(sentence)
        return decided(proposal)

    def _done(self, proposal_id: int, work: Callable[[Any], Any], sentence: str, href: str | None = None) -> Any:
        refused = tried(work)
        if refused is not None:
            return self._page(proposal_id, refusal=refused), refused.status
        flash(sentence, "success")
        return redirect(href or url_for("Proposals.list"))

    @expose("/<int:proposal_id>/accept", methods=["POST"])
    @open_to("update", "PatientProposal")
    def accept(self, proposal_id: int) -> Any:
        """Take over what is ticked."""

        def work(session: Any) -> None:
            hl7_proposals.accept(
                session,
                proposal_id,
                request.form.getlist("taken"),
                seen=number_of(request.form.get("version")),
                region=region(),
            )

        return self._done(proposal_id, work, gettext("Taken over."))

    @expose("/<int:proposal_id>/register", methods=["POST"])
    @open_to("create", "Patient")
    def register(self, proposal_id: int) -> Any:
        """Register whom it is about, after a look at those who may be the same."""
        insist = request.form.get("insist") == "1"
        return self._done(
            proposal_id,
            lambda session: hl7_proposals.register(session, proposal_id, insist=insist, region=region()),
            gettext("Registered."),
        )

    @expose("/<int:proposal_id>/connect", methods=["POST"])
    @open_to("update", "PatientProposal")
    def connect(self, proposal_id: int) -> Any:
        """Say whom it is about."""
        key, given_up = number_of(request.form.get("patient")), request.form.get("given_up") == "1"
        return self._done(
            proposal_id,
            lambda session: hl7_proposals.connect(session, proposal_id, key, given_up=given_up),
            gettext("Now look at both, and decide."),
            url_for("Proposals.show", proposal_id=proposal_id),
        )

    @expose("/<int:proposal_id>/dismiss", methods=["POST"])
    @open_to("update", "PatientProposal")
    def dismiss(self, proposal_id: int) -> Any:
        """Do nothing about it."""
        reason = request.form.get("reason", "")
        return self._done(
            proposal_id,
            lambda session: hl7_proposals.dismiss(session, proposal_id, reason=reason),
            gettext("Dismissed."),
        )

    @expose("/<int:proposal_id>/merge/", methods=["GET", "POST"])
    @open_to("create", "PatientMerge")
    def merge(self, proposal_id: int) -> Any:
        """Both records side by side; and, when it is confirmed, the merge."""
        proposal = hl7_proposals.show(guard.session(), proposal_id)
        if proposal.patient_id is None or proposal.other_id is None or proposal.state != ProposalState.OPEN:
            raise NotFound
        pair = (proposal.patient_id, proposal.other_id)
        swapped = request.args.get("keep") == "other"
        survivor_id, loser_id = pair[::-1] if swapped else pair
        if request.method != "POST":
            return self._merge(proposal_id, survivor_id, loser_id, swapped)
        if request.form.get("sure") != "1":
            sentence = gettext("Tick that the two are one person, at the end of the page.")
            return self._merge(proposal_id, survivor_id, loser_id, swapped, sentence=sentence, field="sure"), 422
        refused = tried(
            lambda session: hl7_proposals.merge(
                session,
                proposal_id,
                survivor_id,
                loser_id,
                reason=request.form.get("reason", ""),
                taken=[name for name in merging.FIELDS if request.form.get(f"of_{name}") == "loser"],
                counts=request.form.get("counts", ""),
                confirmed=request.form.getlist("confirmed"),
            )
        )
        if refused is not None:
            return self._merge(proposal_id, survivor_id, loser_id, swapped, refusal=refused), refused.status
        flash(gettext("The two records are one now."), "success")
        return redirect(url_for("Proposals.list"))

    def _merge(self, proposal_id: int, survivor_id: int, loser_id: int, swapped: bool, **wrong: Any) -> str:
        def href(_survivor: Patient, _loser: Patient) -> str:
            return url_for("Proposals.merge", proposal_id=proposal_id, keep=None if swapped else "other")

        return self.render(
            "patients/merge.html",
            page_title=gettext("One person?"),
            **comparison(survivor_id, loser_id, href=href, **wrong),
        )


def register(builder: Any) -> None:
    """Messages and proposals."""
    builder.add_view_no_menu(Messages)
    builder.add_view_no_menu(Proposals)
