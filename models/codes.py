"""Value sets. Each names the system it is taken from; nothing here is ours unless it says so."""

from __future__ import annotations

from enum import StrEnum


class AdministrativeGender(StrEnum):
    """http://hl7.org/fhir/administrative-gender"""

    MALE = "male"
    FEMALE = "female"
    OTHER = "other"
    UNKNOWN = "unknown"


class SexForClinicalUse(StrEnum):
    """http://terminology.hl7.org/CodeSystem/sex-parameter-for-clinical-use, shortened to its stem."""

    MALE = "male-typical"
    FEMALE = "female-typical"
    SPECIFIED = "specified"
    UNKNOWN = "unknown"


class IdentifierUse(StrEnum):
    """http://hl7.org/fhir/identifier-use"""

    USUAL = "usual"
    OFFICIAL = "official"
    TEMP = "temp"
    SECONDARY = "secondary"
    OLD = "old"


class LinkType(StrEnum):
    """http://hl7.org/fhir/link-type"""

    REPLACED_BY = "replaced-by"
    REPLACES = "replaces"
    REFER = "refer"
    SEEALSO = "seealso"


class EncounterStatus(StrEnum):
    """http://hl7.org/fhir/encounter-status (R4)"""

    PLANNED = "planned"
    ARRIVED = "arrived"
    TRIAGED = "triaged"
    IN_PROGRESS = "in-progress"
    ONLEAVE = "onleave"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"
    UNKNOWN = "unknown"


class UnusualReason(StrEnum):
    """Why a look into a record is worth a question. Ours."""

    OWN = "own"
    """Their own record."""
    FAMILY = "family"
    """A patient of their own family name."""
    CONFIDENTIAL = "confidential"
    """A patient who is marked confidential."""
    NO_CARE = "no-care"
    """A patient they have no part in the care of."""
    VOLUME = "volume"
    """Far more patients in a day than is usual for them."""


class Explanation(StrEnum):
    """What the question came to. Ours."""

    EXPLAINED = "explained"
    NOT_EXPLAINED = "not-explained"


class ConditionClinicalStatus(StrEnum):
    """http://terminology.hl7.org/CodeSystem/condition-clinical"""

    ACTIVE = "active"
    RECURRENCE = "recurrence"
    RELAPSE = "relapse"
    INACTIVE = "inactive"
    REMISSION = "remission"
    RESOLVED = "resolved"


class ConditionVerificationStatus(StrEnum):
    """http://terminology.hl7.org/CodeSystem/condition-ver-status"""

    UNCONFIRMED = "unconfirmed"
    PROVISIONAL = "provisional"
    DIFFERENTIAL = "differential"
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    ENTERED_IN_ERROR = "entered-in-error"


class AllergyClinicalStatus(StrEnum):
    """http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical"""

    ACTIVE = "active"
    INACTIVE = "inactive"
    RESOLVED = "resolved"


class AllergyVerificationStatus(StrEnum):
    """http://terminology.hl7.org/CodeSystem/allergyintolerance-verification (R4)"""

    UNCONFIRMED = "unconfirmed"
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    ENTERED_IN_ERROR = "entered-in-error"


class AllergyType(StrEnum):
    """http://hl7.org/fhir/allergy-intolerance-type"""

    ALLERGY = "allergy"
    INTOLERANCE = "intolerance"


class AllergyCriticality(StrEnum):
    """http://hl7.org/fhir/allergy-intolerance-criticality: the potential of future harm."""

    LOW = "low"
    HIGH = "high"
    UNABLE_TO_ASSESS = "unable-to-assess"


class ObservationStatus(StrEnum):
    """http://hl7.org/fhir/observation-status"""

    REGISTERED = "registered"
    PRELIMINARY = "preliminary"
    FINAL = "final"
    AMENDED = "amended"
    CORRECTED = "corrected"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"
    UNKNOWN = "unknown"


LABORATORY = "laboratory"
"""http://terminology.hl7.org/CodeSystem/observation-category, of results."""
LABORATORY_REPORTS = ("LAB", LABORATORY)
"""http://terminology.hl7.org/CodeSystem/v2-0074 of reports, and what many send instead."""
STANDING = (ObservationStatus.FINAL, ObservationStatus.AMENDED, ObservationStatus.CORRECTED)
"""What somebody has verified and nobody has withdrawn."""


class DiagnosticReportStatus(StrEnum):
    """http://hl7.org/fhir/diagnostic-report-status"""

    REGISTERED = "registered"
    PARTIAL = "partial"
    PRELIMINARY = "preliminary"
    FINAL = "final"
    AMENDED = "amended"
    CORRECTED = "corrected"
    APPENDED = "appended"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"
    UNKNOWN = "unknown"


class MedicationRequestStatus(StrEnum):
    """http://hl7.org/fhir/CodeSystem/medicationrequest-status (R4)"""

    ACTIVE = "active"
    ON_HOLD = "on-hold"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    ENTERED_IN_ERROR = "entered-in-error"
    STOPPED = "stopped"
    DRAFT = "draft"
    UNKNOWN = "unknown"


class EventStatus(StrEnum):
    """http://hl7.org/fhir/event-status, as Procedure and Immunization use it."""

    PREPARATION = "preparation"
    IN_PROGRESS = "in-progress"
    NOT_DONE = "not-done"
    ON_HOLD = "on-hold"
    STOPPED = "stopped"
    COMPLETED = "completed"
    ENTERED_IN_ERROR = "entered-in-error"
    UNKNOWN = "unknown"


class DocumentReferenceStatus(StrEnum):
    """http://hl7.org/fhir/document-reference-status"""

    CURRENT = "current"
    SUPERSEDED = "superseded"
    ENTERED_IN_ERROR = "entered-in-error"


class PurposeOfUse(StrEnum):
    """http://terminology.hl7.org/CodeSystem/v3-ActReason, the purposes we serve."""

    TREAT = "TREAT"
    ETREAT = "ETREAT"
    BTG = "BTG"
    HOPERAT = "HOPERAT"
    HSYSADMIN = "HSYSADMIN"
    PATRQT = "PATRQT"


class EmergencyReason(StrEnum):
    """http://terminology.hl7.org/CodeSystem/v3-ActReason: why somebody breaks the glass."""

    ETREAT = "ETREAT"
    COC = "COC"
    PATRQT = "PATRQT"
    BTG = "BTG"


class Finding(StrEnum):
    """What a review of an emergency access came to; ours."""

    JUSTIFIED = "justified"
    UNJUSTIFIED = "unjustified"


class AppointmentStatus(StrEnum):
    """http://hl7.org/fhir/appointmentstatus (R4)"""

    PROPOSED = "proposed"
    PENDING = "pending"
    BOOKED = "booked"
    ARRIVED = "arrived"
    CHECKED_IN = "checked-in"
    FULFILLED = "fulfilled"
    CANCELLED = "cancelled"
    NOSHOW = "noshow"
    ENTERED_IN_ERROR = "entered-in-error"
    WAITLIST = "waitlist"


class CancelationReason(StrEnum):
    """http://terminology.hl7.org/CodeSystem/appointment-cancellation-reason, the reasons we offer."""

    PATIENT = "pat"
    PATIENT_REMINDER = "pat-crs"
    PATIENT_PORTAL = "pat-cpp"
    PATIENT_BETTER = "pat-fb"
    PATIENT_TRANSPORT = "pat-lt"
    PATIENT_DECEASED = "pat-dec"
    PRACTITIONER = "prov"
    PRACTITIONER_AWAY = "prov-pers"
    ROOM = "oth-room"
    EQUIPMENT = "maint"
    INTERPRETER = "oth-int"
    WEATHER = "oth-weath"
    ERROR = "oth-err"
    OTHER = "other"


class ScheduleChange(StrEnum):
    """What sets a day apart from the weekly hours; ours."""

    LEAVE = "leave"
    HOLIDAY = "holiday"
    EXTRA = "extra"


class WaitlistStatus(StrEnum):
    """Where somebody on the waiting list stands; ours."""

    WAITING = "waiting"
    BOOKED = "booked"
    WITHDRAWN = "withdrawn"


class OfferStatus(StrEnum):
    """What became of a freed time that was offered; ours."""

    OPEN = "open"
    TAKEN = "taken"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class CompositionStatus(StrEnum):
    """http://hl7.org/fhir/composition-status"""

    PRELIMINARY = "preliminary"
    FINAL = "final"
    AMENDED = "amended"
    ENTERED_IN_ERROR = "entered-in-error"


class Confidentiality(StrEnum):
    """http://terminology.hl7.org/CodeSystem/v3-Confidentiality, the levels we serve."""

    NORMAL = "N"
    RESTRICTED = "R"
    """For those who take part in the care."""
    VERY_RESTRICTED = "V"
    """For whoever signed it alone."""


class NoteKind(StrEnum):
    """What a note is for; ours, each with its LOINC document type in app/services/notes.py."""

    PROGRESS = "progress"
    ADMISSION = "admission"
    DISCHARGE = "discharge"
    PROCEDURE = "procedure"
    FREE = "free"
    ADDENDUM = "addendum"


class RequestStatus(StrEnum):
    """http://hl7.org/fhir/request-status"""

    DRAFT = "draft"
    ACTIVE = "active"
    ON_HOLD = "on-hold"
    REVOKED = "revoked"
    COMPLETED = "completed"
    ENTERED_IN_ERROR = "entered-in-error"
    UNKNOWN = "unknown"


class RequestPriority(StrEnum):
    """http://hl7.org/fhir/request-priority"""

    ROUTINE = "routine"
    URGENT = "urgent"
    ASAP = "asap"
    STAT = "stat"


class MedicationDispenseStatus(StrEnum):
    """http://terminology.hl7.org/CodeSystem/medicationdispense-status (R4)"""

    PREPARATION = "preparation"
    IN_PROGRESS = "in-progress"
    CANCELLED = "cancelled"
    ON_HOLD = "on-hold"
    COMPLETED = "completed"
    ENTERED_IN_ERROR = "entered-in-error"
    STOPPED = "stopped"
    DECLINED = "declined"
    UNKNOWN = "unknown"


class DetectedIssueCode(StrEnum):
    """http://terminology.hl7.org/CodeSystem/v3-ActCode: what may stand against a medicine."""

    DRUG_ALLERGY = "DALG"
    DRUG_INTOLERANCE = "DINT"
    INTERACTION = "DRG"
    DUPLICATE_THERAPY = "DUPTHPY"
    HIGH_DOSE = "DOSEH"
    LOW_DOSE = "DOSEL"


class DetectedIssueSeverity(StrEnum):
    """http://hl7.org/fhir/detectedissue-severity"""

    HIGH = "high"
    MODERATE = "moderate"
    LOW = "low"


class DetectedIssueMitigation(StrEnum):
    """http://terminology.hl7.org/CodeSystem/v3-ActCode: why a medicine is given all the same."""

    THERAPY_APPROPRIATE = "1"
    ASSESSED_PATIENT = "2"
    PATIENT_EXPLANATION = "3"
    CONSULTED_SOURCE = "4"
    CONSULTED_PRESCRIBER = "5"
    NO_LONGER_ACTIVE = "7"
    OTHER_ACTION = "8"
    MONITORING = "9"


class AnswerKind(StrEnum):
    """What a test is answered with; http://hl7.org/fhir/permitted-data-type, by the hospital's names."""

    NUMERIC = "numeric"
    CODED = "coded"
    TEXT = "text"


class SpecimenStatus(StrEnum):
    """http://hl7.org/fhir/specimen-status"""

    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"
    UNSATISFACTORY = "unsatisfactory"
    ENTERED_IN_ERROR = "entered-in-error"


class SpecimenRejection(StrEnum):
    """http://terminology.hl7.org/CodeSystem/v2-0490: why a specimen is not looked at."""

    EXPIRED = "EX"
    QUANTITY = "QS"
    LABEL = "RB"
    CLOTTED = "RC"
    CONTAINER = "RE"
    HEMOLYSIS = "RH"
    MISSING = "RM"
    CONTAMINATED = "R"
    IDENTIFICATION = "RD"


class AttemptOutcome(StrEnum):
    """What became of a try to tell somebody of a critical result; ours."""

    CONFIRMED = "confirmed"
    NO_READ_BACK = "reached-no-readback"
    NOT_REACHED = "not-reached"


class Hl7State(StrEnum):
    """Where a message from another system stands; ours."""

    STORED = "stored"
    UNMATCHED = "unmatched"
    PROPOSED = "proposed"
    DEAD = "dead"
    DISMISSED = "dismissed"


class Hl7Outcome(StrEnum):
    """What became of a result in a message; ours."""

    STORED = "stored"
    WAITING = "waiting"
    REFUSED = "refused"


class ProposalKind(StrEnum):
    """What another system proposes about who somebody is; ours."""

    REGISTER = "register"
    UPDATE = "update"
    MERGE = "merge"


class ProposalState(StrEnum):
    """What became of a proposal; ours."""

    OPEN = "open"
    ACCEPTED = "accepted"
    DISMISSED = "dismissed"


class RowScope(StrEnum):
    """Which rows a role sees; ours."""

    CHAIN = "chain"
    OWN_BRANCH = "own_branch"
    CARE_TEAM = "care_team"
    OWN = "own"
    SELF = "self"


def check(column: str, codes: type[StrEnum]) -> str:
    """The SQL condition that a column holds one of a value set's codes."""
    return f"{column} IN ({', '.join(repr(code.value) for code in codes)})"
