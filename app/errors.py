"""Every refusal by name. Nothing else may reach a person, and no sentence here carries anybody's record."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import ClassVar

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm.exc import StaleDataError


class Refusal(Exception):
    """Something that will not be done, with a sentence for the person who asked and an HTTP status."""

    status: ClassVar[int] = 422
    sentence: ClassVar[str] = "This cannot be done."

    def __init__(self, sentence: str | None = None, *, field: str | None = None) -> None:
        super().__init__(sentence or self.sentence)
        self.field = field
        """The form field the sentence belongs to, where there is one."""

    def __str__(self) -> str:
        return str(self.args[0])


class NotSignedIn(Refusal):
    """There is no actor: nobody in particular may see nothing at all."""

    status = 401
    sentence = "Please sign in first."


class CodeNeeded(NotSignedIn):
    """The password holds, and the account signs in with a code as well."""

    sentence = 'This account signs in with a code as well. Send it as "code", with the name and password.'


class TooManyTries(Refusal):
    """Somebody has tried too often; nothing was looked at."""

    status = 429
    sentence = "There were too many tries. Please wait a little and try again."

    def __init__(self, sentence: str | None = None, *, seconds: int = 60, first: bool = True) -> None:
        super().__init__(sentence)
        self.seconds = seconds
        """How long it takes until the next try is looked at."""
        self.first = first
        """Whether this is the first refusal since the door was shut, which is the one that is recorded."""


class Forbidden(Refusal):
    """The policy does not grant this."""

    status = 403
    sentence = "Your role does not allow this. If you need it for your work, ask your administrator."


class OwnRoles(Forbidden):
    """Nobody gives themselves rights."""

    sentence = "Nobody changes their own roles, or gives more to a role they hold. Another administrator can do this."


class LookingOnly(Forbidden):
    """Somebody looks at the house as a role, and sent a change."""

    sentence = "You are looking at Wardbook as another role. Nothing can be changed until you go back to your own view."


class NotInUse(Forbidden):
    """There is no such role, or it is retired."""

    sentence = "This role is not in use, so there is nothing to look at."


class OutsideRows(Forbidden):
    """The patient is not among the actor's, who may open the record by emergency access."""

    sentence = "This patient is not among yours."


class SecondFactorOwed(Forbidden):
    """A role of the account asks for a second step that has not been set up."""

    sentence = "Your role asks for a second step at sign-in. Please set it up first, on the page of your account."


class NotFound(Refusal):
    """There is no such row, or none this actor may know of."""

    status = 404
    sentence = "There is no such record, or it is not open to you."


class LinkUnknown(NotFound):
    """A link that nobody was sent, or that was changed on the way."""

    sentence = "This link is not one of ours. Please use the one in your newest message, or call us."


class LinkOver(Refusal):
    """A link that was good once; why it is not any more is told to nobody."""

    status = 410
    sentence = "This link is no longer good. Please use the one in your newest message, or call us."


class Ungated(Refusal):
    """A statement the gate cannot vouch for: raw text, loose columns, a bulk write. Always a fault of ours."""

    status = 500
    sentence = "This request was stopped because it could not be checked. It has been noted."


class NotRecorded(Refusal):
    """The trail could not take the line, so the record is not shown."""

    status = 503
    sentence = (
        "The record cannot be shown right now because the access log cannot be written. Please try again shortly."
    )


class OutOfService(Refusal):
    """The database or the queue does not answer."""

    status = 503
    sentence = "Wardbook cannot reach its database right now. Nothing was lost; please try again in a moment."


class Invalid(Refusal):
    """What was typed or sent does not hold; `field` says where."""

    status = 422
    sentence = "Please check what you entered."


class Separated(Refusal):
    """What no administrator can grant away."""

    status = 403
    sentence = "This would undo a separation that keeps records safe."


class Conflict(Refusal):
    """Somebody else changed the same thing first."""

    status = 409
    sentence = "Somebody else changed this record in the meantime. Look at it again, then repeat your change."


class UnderWay(Conflict):
    """The trail is being checked already; two checks at once would only slow each other down."""

    sentence = "The trail is being checked already. Wait until that is done, then ask again."


class DuplicateIdentifier(Refusal):
    """The same number of the same system already belongs to another patient."""

    status = 409
    sentence = "This identifier already belongs to another patient."


class PossibleDuplicate(Refusal):
    """Somebody very like this is registered already; the caller may look, and insist."""

    status = 409
    sentence = "There are patients very like this one. Please look before registering a second record."


class SlotTaken(Refusal):
    """The doctor, the room, a piece of equipment or the patient is not free at that time."""

    status = 409
    sentence = "That time is taken."


class OutsideHours(Refusal):
    """The doctor does not work then, or the time has passed; a role may be given to book it all the same."""

    sentence = "The doctor does not work at that time."


class NotAtBranch(Refusal):
    """The doctor has no hours at this branch and does not belong to it."""

    sentence = "This doctor does not work at this branch."


class IllegalTransition(Refusal):
    """A visit cannot go from the state it is in to the one asked for."""

    status = 409
    sentence = "This visit has moved on in the meantime. Look at it again."


class OfferOver(Refusal):
    """An offered time was taken by somebody else, or is not held any longer."""

    status = 409
    sentence = "This time is not on offer any more: somebody else was quicker, or it ran out."


class KeyReused(Refusal):
    """An Idempotency-Key was sent again with another request."""

    sentence = "This Idempotency-Key was used for another request already."


class RequestRepeated(Conflict):
    """The same request, by its Idempotency-Key, is being worked on."""

    sentence = "This request is being worked on already. Ask again in a moment."


class TooLarge(Refusal):
    """More was sent than is taken at once."""

    status = 413
    sentence = "This is too large to be taken at once."


class TooManyLines(Refusal):
    """More lines of the trail were asked for than one file holds."""

    status = 422
    sentence = (
        "That is more than 200,000 lines, and one file holds no more than that. "
        "Choose fewer days, one person or one patient, and take the rest in further files."
    )


class NoteSigned(Conflict):
    """What is signed is not written in again."""

    sentence = "This note is signed and does not change any more. Add an addendum, or write a new version."


class NotAuthor(Forbidden):
    """Somebody else's note."""

    sentence = "Only who wrote a note changes, signs or withdraws it. You can add an addendum of your own."


class NotAClinician(Forbidden):
    """An account that is nobody of the staff writes nothing into a record."""

    sentence = "Your account is not linked to a member of staff, so there is nobody to sign as. Ask your administrator."


class SchemaUnsupported(Invalid):
    """A template of notes that is no JSON Schema, or has a part that no form can show."""

    def __init__(self, sentence: str | None = None) -> None:
        super().__init__(sentence, field="schema")


class NoteBroken(Invalid):
    """A note that does not fit its template."""

    sentence = "Something in this note is missing, or does not fit."

    def __init__(self, sentence: str | None = None, *, faults: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.faults = dict(faults or {})
        """What is wrong, by field (app/services/note_shape.py)."""


class Unsigned(IllegalTransition):
    """What is asked of a signed note, of one that is not."""

    sentence = "This note is not signed yet."


class DraftsLeft(Conflict):
    """A visit is to be finished, and a note of it is still a draft; who wrote it may insist."""

    sentence = "A note of this visit is not signed yet. Sign it first, or finish the visit all the same."


class Replaced(Conflict):
    """A record that was merged into another one: nothing is written there any more."""

    sentence = "This record was merged into another one. Open that one and go on there."


class SameRecord(Invalid):
    """Both are one and the same record."""

    sentence = "These two are one record already. Choose another one to merge it with."


class TwoAccounts(Conflict):
    """Both records have an account of the portal, and one person signs in to one."""

    sentence = "Both have an account to sign in with. Ask your administrator to close one of the two first."


class VisitsClash(Conflict):
    """Visits of both overlap, and nobody is in two places at once."""

    sentence = "Both have visits at the same time. Move or call off one of them first."

    def __init__(self, visits: Sequence[tuple[object, object]] = ()) -> None:
        super().__init__()
        self.visits = tuple(visits)
        """The pairs that overlap, as far as the actor may see them."""


class Unconfirmed(Invalid):
    """Something speaks against the two being one person, and nobody has said that they are all the same."""

    sentence = "Something speaks against the two being one person. Look at it, and confirm it, before you merge them."

    def __init__(self, warnings: Sequence[str] = ()) -> None:
        super().__init__(field="confirmed")
        self.warnings = tuple(warnings)


class LookedAtAnother(Conflict):
    """One of the records has changed since somebody looked at the two side by side."""

    sentence = "Something was written in one of the two records meanwhile. Look at both once more, then merge them."


class UndoOver(Conflict):
    """The time in which a merge can be undone is over."""

    sentence = "This was merged too long ago: it could be undone for 30 days."


class Undone(Conflict):
    """A merge that was undone already."""

    sentence = "This was undone already."


class MergedOn(Conflict):
    """The record that stayed was itself merged into another one since."""

    sentence = "The record that stayed was merged into another one since. Undo that first."


class Tangled(Conflict):
    """What was written since the merge refers to both records."""

    sentence = "What was written since belongs to both records, so they cannot be parted. Enter it anew in one first."


class SecondPerson(Forbidden):
    """Who entered a result does not verify it."""

    sentence = "Somebody else has to verify this: nobody verifies what they entered themselves."


class Held(IllegalTransition):
    """A result waits for somebody to say why it is right all the same."""

    sentence = "This result differs a lot from the one before. Check it, then say why it is right."


class AlreadyDispensed(Conflict):
    """Somebody has dispensed it, or some of it, or it is over."""

    sentence = "Some of this was handed out meanwhile. Please look again."


class Unsafe(Invalid):
    """Something stands against a medicine, and nobody has said why it is to be given all the same."""

    sentence = "Something serious stands against this medicine. Choose another, or say why it is given all the same."

    def __init__(self, sentence: str | None = None, *, issues: Sequence[object] = ()) -> None:
        super().__init__(sentence, field="override")
        self.issues = tuple(issues)
        """What stands against it, as app/services/drug_safety.py found it."""


class KeyAway(OutOfService):
    """The private half of the key that prescriptions are signed with is not on this machine."""

    sentence = "The key that prescriptions are signed with is not on this machine. Ask your administrator for another."


class NotDispensable(Conflict):
    """An order that nothing is handed out on: the sentence says why."""


class Unprintable(Refusal):
    """A character that would not be printed, or not rightly; nothing is printed then."""

    def __init__(self, character: str) -> None:
        name = unicodedata.name(character, "no name")
        super().__init__(
            f"This cannot be printed: no font here sets the character {character!r} (U+{ord(character):04X}, {name}). "
            "Enter it in another script beside it, or write it by hand."
        )
        self.character = character


CONSTRAINTS: dict[str, tuple[type[Refusal], str, str | None]] = {
    "patient_is_replaced": (Replaced, Replaced.sentence, None),
    "patient_merge_once": (Replaced, Replaced.sentence, None),
    "patient_merge_two": (SameRecord, SameRecord.sentence, None),
    "patient_merge_reason": (Invalid, "Please say in a few words why, in up to 500 letters.", "reason"),
    "patient_merge_two_accounts": (TwoAccounts, TwoAccounts.sentence, None),
    "patient_merge_is_final": (Undone, Undone.sentence, None),
    "patient_merge_undone_in_time": (UndoOver, UndoOver.sentence, None),
    "patient_merge_undone_in_order": (MergedOn, MergedOn.sentence, None),
    "patient_merge_untangled": (Tangled, Tangled.sentence, None),
    "row_stays_with_patient": (Conflict, "What was issued for one patient is no other one's.", None),
    "patient_identifier_once": (DuplicateIdentifier, DuplicateIdentifier.sentence, "identifier"),
    "patient_name_length": (Invalid, "A name can have up to 200 letters.", "family"),
    "patient_has_a_name": (Invalid, "Please enter a family name or a given name.", "family"),
    "patient_birth_date_believable": (Invalid, "Please check the birth date.", "birth_date"),
    "patient_multiple_birth_order": (Invalid, "Please check the birth order.", "multiple_birth_order"),
    "patient_gender": (Invalid, "Please choose one of the genders offered.", "gender"),
    "branch_code_key": (Conflict, "Another branch has this code already.", "code"),
    "branch_code_shape": (Invalid, "A code is 2 to 12 capital letters or digits.", "code"),
    "branch_organization_id_key": (Conflict, "This organization is a branch already.", "organization"),
    "room_branch_id_name_key": (Conflict, "This branch has a room of that name already.", "name"),
    "room_name_length": (Invalid, "A name has 1 to 80 letters.", "name"),
    "room_capacity_positive": (Invalid, "A room has place for at least one.", "capacity"),
    "organization_name_length": (Invalid, "A name has 1 to 200 letters.", "name"),
    "practitioner_user_id_key": (Conflict, "This account belongs to another person already.", "user"),
    "practitioner_user_has_home": (Invalid, "Somebody who signs in needs a home branch.", "home_branch"),
    "observation_is_verified": (IllegalTransition, "A verified result is corrected, not overwritten.", None),
    "observation_is_kept": (IllegalTransition, "Results are withdrawn, never deleted.", None),
    "observation_is_withdrawn": (IllegalTransition, "This result was withdrawn.", None),
    "observation_verified_by_another": (SecondPerson, SecondPerson.sentence, None),
    "hl7_message_once": (RequestRepeated, RequestRepeated.sentence, None),
    "critical_result_is_final": (Conflict, "Somebody has confirmed this already.", None),
    "encounter_is_final": (IllegalTransition, "This visit is over already.", None),
    "note_template_is_final": (Conflict, "An edition of a template never changes. Save a new one.", None),
    "note_template_current": (Conflict, "Somebody has changed this template meanwhile.", None),
    "note_template_edition": (Conflict, "Somebody has changed this template meanwhile.", None),
    "clinical_note_is_final": (NoteSigned, NoteSigned.sentence, None),
    "clinical_note_is_kept": (NoteSigned, "Notes are withdrawn, never deleted.", None),
    "clinical_note_origin_signed": (IllegalTransition, "Only a signed note is added to or replaced.", None),
    "clinical_note_replaced_once": (Conflict, "There is a new version of this note already.", None),
    "clinical_note_cosigned_by_another": (Forbidden, "Nobody signs their own note a second time.", None),
    "medication_code": (Conflict, "There is a medicine of that code already.", "code"),
    "medication_request_is_final": (IllegalTransition, "A prescription that was issued does not change.", None),
    "medication_request_is_kept": (IllegalTransition, "Orders are cancelled, never deleted.", None),
    "medication_request_quantity": (Invalid, "Please say how much is to be handed out.", "quantity"),
    "medication_request_repeats": (Invalid, "A prescription is repeated 0 to 99 times.", "repeats"),
    "medication_request_valid": (Invalid, "It cannot end before it begins.", "valid_until"),
    "medication_request_dispensed_at_most": (AlreadyDispensed, AlreadyDispensed.sentence, "quantity"),
    "prescription_is_final": (IllegalTransition, "A prescription that was issued does not change.", None),
    "signing_key_is_final": (IllegalTransition, "A key that was retired or revoked stays so.", None),
    "medication_dispense_of_active": (AlreadyDispensed, "This prescription is not to be dispensed any more.", None),
    "medication_dispense_once": (AlreadyDispensed, AlreadyDispensed.sentence, None),
    "medication_dispense_unit": (Invalid, "The prescription is counted in another unit.", "quantity_unit"),
    "medication_dispense_of_one_fill": (AlreadyDispensed, "That is more than is left of this fill.", "quantity"),
    "medication_dispense_quantity": (Invalid, "Please say how much was handed out.", "quantity"),
    "medication_dispense_is_final": (IllegalTransition, IllegalTransition.sentence, None),
    "medication_dispense_mdd_1": (Invalid, "It cannot be handed over before it was prepared.", "handed_over_at"),
    "detected_issue_high_is_overridden": (
        Invalid,
        "This warning is serious: choose why it is done all the same, and say it in a few words.",
        "mitigation",
    ),
    "encounter_ends_after_start": (Invalid, "A visit cannot end before it starts.", "ended_at"),
    "booking_no_overlap": (SlotTaken, SlotTaken.sentence, "start"),
    "appointment_request_once": (RequestRepeated, RequestRepeated.sentence, None),
    "appointment_is_final": (IllegalTransition, IllegalTransition.sentence, None),
    "appointment_moved_from_id_key": (IllegalTransition, IllegalTransition.sentence, None),
    "appointment_ends_after_start": (Invalid, "A visit ends after it begins.", "end"),
    "appointment_not_too_long": (Invalid, "A visit lasts 12 hours at most.", "end"),
    "appointment_room_of_branch": (Invalid, "This room belongs to another branch.", "room"),
    "appointment_equipment_of_branch": (Invalid, "This equipment belongs to another branch.", "equipment"),
    "appointment_texts": (Invalid, "Please say it in 500 letters or fewer.", "reason"),
    "visit_type_name_key": (Conflict, "There is a kind of visit of that name already.", "name"),
    "visit_type_name_length": (Invalid, "A name has 1 to 80 letters.", "name"),
    "visit_type_minutes": (Invalid, "A visit lasts 5 minutes to 12 hours.", "minutes"),
    "visit_type_buffers": (Invalid, "At most two hours can be kept free.", "buffer_after"),
    "equipment_branch_id_name_key": (Conflict, "This branch has equipment of that name already.", "name"),
    "equipment_name_length": (Invalid, "A name has 1 to 80 letters.", "name"),
    "working_hours_not_empty": (Invalid, "Working hours end at another time than they begin.", "ends"),
    "working_hours_valid": (Invalid, "The last day cannot lie before the first.", "valid_until"),
    "schedule_exception_ends_after_start": (Invalid, "It has to end after it begins.", "ends_at"),
    "schedule_exception_whose": (
        Invalid,
        "Leave is somebody's, a holiday is a branch's, and an extra session is somebody's at a branch.",
        "kind",
    ),
    "waitlist_entry_days": (Invalid, "The last day cannot lie before the first.", "latest_on"),
    "policy_roles_or_notes": (
        Separated,
        "Whoever configures roles must not see clinical notes, or nothing would be safe. Give one or the other.",
        None,
    ),
    "policy_one_person_both": (
        Separated,
        "Somebody would configure roles and see clinical notes at once, through two roles together.",
        None,
    ),
    "policy_last_administrator": (
        Separated,
        "Somebody has to remain who can configure roles and accounts. Give that to another person first.",
        None,
    ),
    "policy_patient_rows": (
        Separated,
        "Patients see their own records only. This cannot be changed.",
        None,
    ),
    "emergency_access_justified": (
        Invalid,
        "Please say why in 15 letters or more, so that it can be reviewed.",
        "justification",
    ),
    "emergency_access_reviewed_by_another": (Forbidden, "Nobody reviews their own emergency access.", None),
    "unusual_access_reviewed_by_another": (
        Forbidden,
        "Nobody reviews what they looked at themselves. Somebody else does.",
        None,
    ),
    "audit_check_one": (UnderWay, UnderWay.sentence, None),
    "ab_user_username_key": (Conflict, "This user name is taken.", "username"),
    "ab_user_email_key": (Conflict, "This e-mail address is taken.", "email"),
}
"""What a broken constraint of the database means to a person."""


def from_database(error: Exception) -> Refusal | None:
    """The refusal a database error amounts to; None where it is no refusal but a fault."""
    if isinstance(error, StaleDataError):
        return Conflict()
    if isinstance(error, IntegrityError):
        name = getattr(getattr(error.orig, "diag", None), "constraint_name", None) or ""
        if name in CONSTRAINTS:
            kind, sentence, field = CONSTRAINTS[name]
            named = error.orig.diag.message_detail if kind is Separated else None  # type: ignore[union-attr]
            return kind(f"{sentence} ({named})" if named else sentence, field=field)
        state = getattr(error.orig, "sqlstate", "")
        if state == "23503":
            return Conflict("Other records still refer to this one, or it refers to one that is gone.")
        if state == "23505":
            return Conflict("There is one like this already.")
        return Invalid()
    if isinstance(error, DBAPIError):
        if error.connection_invalidated or type(error).__name__ in {"OperationalError", "InterfaceError"}:
            return OutOfService()
        if type(error).__name__ == "DataError":
            return Invalid("Something you entered is too long, or not of the right kind.")
    return None
