"""The laboratory: catalogue, specimens, verified results and their history, critical results, HL7 messages"""

import importlib

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

merge = importlib.import_module("models.migrations.versions.0009_merge")

MOVED = (*("specimen", "observation_history", "critical_result", "critical_attempt", "hl7_message", "hl7_result"),)
"""What goes with the patient when two records become one."""
STAYS = {
    ("patient_proposal", "patient_id"): "says which record another system meant",
    ("patient_proposal", "other_id"): "says which record another system meant",
}
PATIENTS_LIST = (
    "CREATE OR REPLACE FUNCTION wb_of_patients() RETURNS TABLE (of_table text, of_column text, stays text)"
    " LANGUAGE sql IMMUTABLE AS $$ {0} $$"
)
KEPT = {
    "specimen": "",
    "observation_history": "",
    "critical_result": "",
    "critical_attempt": "",
    "observation": " AND OLD.verified_at IS NOT NULL",
}
"""What was taken, found or told of one patient, and never becomes another's by hand."""

RULES = r"""
-- What a result was before it was changed, and that what somebody has verified is corrected, never overwritten.
CREATE FUNCTION wb_result_history() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  was jsonb;
BEGIN
  IF TG_OP = 'DELETE' THEN
    RAISE EXCEPTION 'a result is withdrawn, never deleted'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'observation_is_kept';
  END IF;
  IF OLD.verified_at IS NOT NULL AND (OLD.value_quantity, OLD.value_text, OLD.value_code, OLD.value_unit, OLD.comparator,
        OLD.interpretation, OLD.off_scale, OLD.reference_range, OLD.component, OLD.code)
      IS DISTINCT FROM (NEW.value_quantity, NEW.value_text, NEW.value_code, NEW.value_unit, NEW.comparator,
        NEW.interpretation, NEW.off_scale, NEW.reference_range, NEW.component, NEW.code)
      AND NEW.status NOT IN ('amended', 'corrected') THEN
    RAISE EXCEPTION 'a verified result is corrected, not overwritten'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'observation_is_verified';
  END IF;
  IF OLD.status = 'entered-in-error' AND NEW.status <> OLD.status THEN
    RAISE EXCEPTION 'what was withdrawn stays so'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'observation_is_withdrawn';
  END IF;
  SELECT jsonb_object_agg(b.key, b.value) INTO was
  FROM jsonb_each(to_jsonb(OLD) - ARRAY['version', 'updated_at', 'read_at', 'patient_id']) AS b
  WHERE b.value IS DISTINCT FROM to_jsonb(NEW) -> b.key;
  IF was IS NOT NULL THEN
    INSERT INTO observation_history (observation_id, patient_id, category, was)
    VALUES (OLD.id, OLD.patient_id, OLD.category, was);
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER observation_has_history BEFORE UPDATE OR DELETE ON observation
  FOR EACH ROW EXECUTE FUNCTION wb_result_history();

CREATE FUNCTION wb_attempt_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' OR (to_jsonb(OLD) - ARRAY['version', 'updated_at', 'patient_id'])
      IS DISTINCT FROM (to_jsonb(NEW) - ARRAY['version', 'updated_at', 'patient_id']) THEN
    RAISE EXCEPTION 'what was tried stays written down' USING ERRCODE = 'restrict_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER critical_attempt_is_final BEFORE UPDATE OR DELETE ON critical_attempt
  FOR EACH ROW EXECUTE FUNCTION wb_attempt_is_final();

CREATE FUNCTION wb_critical_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' OR (OLD.observation_id, OLD.flag, OLD.value, OLD.raised_at)
      IS DISTINCT FROM (NEW.observation_id, NEW.flag, NEW.value, NEW.raised_at)
      OR OLD.acknowledged_at IS NOT NULL AND (OLD.acknowledged_at, OLD.acknowledged_by_id)
        IS DISTINCT FROM (NEW.acknowledged_at, NEW.acknowledged_by_id) THEN
    RAISE EXCEPTION 'what somebody was told stays written down'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'critical_result_is_final';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER critical_result_is_final BEFORE UPDATE OR DELETE ON critical_result
  FOR EACH ROW EXECUTE FUNCTION wb_critical_is_final();

-- A message stays as it came.
CREATE FUNCTION wb_message_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' OR (OLD.raw, OLD.digest, OLD.sender, OLD.control_id, OLD.received_at)
      IS DISTINCT FROM (NEW.raw, NEW.digest, NEW.sender, NEW.control_id, NEW.received_at) THEN
    RAISE EXCEPTION 'a message stays as it came' USING ERRCODE = 'restrict_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER hl7_message_is_final BEFORE UPDATE OR DELETE ON hl7_message
  FOR EACH ROW EXECUTE FUNCTION wb_message_is_final();

-- They act as the owner, so nobody else hangs them on a table.
REVOKE ALL ON FUNCTION wb_result_history() FROM PUBLIC;
"""

GONE = """
DROP TRIGGER hl7_message_is_final ON hl7_message;
DROP FUNCTION wb_message_is_final();
DROP TRIGGER critical_result_is_final ON critical_result;
DROP FUNCTION wb_critical_is_final();
DROP TRIGGER critical_attempt_is_final ON critical_attempt;
DROP FUNCTION wb_attempt_is_final();
DROP TRIGGER observation_has_history ON observation;
DROP FUNCTION wb_result_history();
"""

PATIENTS_SEE = (
    "DO $do$ BEGIN EXECUTE replace(pg_get_functiondef('wb_policy_holds'::regproc), $a${0}$a$, $b${1}$b$); END $do$"
)
BEFORE = "'SigningKey')"
NOW = "'SigningKey', 'LabTest', 'LabPanel', 'ReferenceRange', 'UnitConversion', 'OnCall')"
"""What of a hospital is nobody's record, as the rule knows it that keeps patients to their own."""
CHECKS = {
    "observation": {
        "observation_comparator": "comparator IN ('', '<', '<=', '>', '>=')",
        "observation_marks": "off_scale IN ('<', '>') AND delta IN ('U', 'D')",
        "observation_verified_by_another": "(verified_at IS NULL) = (verified_by_id IS NULL)"
        " AND (verified_by_id IS NULL OR verified_by_id IS DISTINCT FROM recorder_id)",
        "observation_released_verified": "released_at IS NULL OR verified_at IS NOT NULL",
    },
    "service_request": {"service_request_test_or_panel": "test_id IS NULL OR panel_id IS NULL"},
}


def upgrade() -> None:
    op.create_unique_constraint("service_request_of_patient", "service_request", ["id", "patient_id"])
    op.create_table(
        "lab_panel",
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("code_system", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 120", name="lab_panel_name_length"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("code"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_table(
        "lab_test",
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("code_system", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("abbreviation", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("specimen_type", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("unit", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("decimals", sa.SmallInteger(), nullable=True),
        sa.Column("method", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("answers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("plausible_low", sa.Numeric(), nullable=True),
        sa.Column("plausible_high", sa.Numeric(), nullable=True),
        sa.Column("reporting_low", sa.Numeric(), nullable=True),
        sa.Column("reporting_high", sa.Numeric(), nullable=True),
        sa.Column("delta_amount", sa.Numeric(), nullable=True),
        sa.Column("delta_share", sa.Numeric(), nullable=True),
        sa.Column("delta_days", sa.Integer(), server_default=sa.text("30"), nullable=False),
        sa.Column("sensitive", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("release_hours", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind <> 'numeric' OR decimals BETWEEN 0 AND 6", name="lab_test_decimals"),
        sa.CheckConstraint("kind IN ('numeric', 'coded', 'text')", name="lab_test_kind"),
        sa.CheckConstraint("delta_days BETWEEN 1 AND 3650", name="lab_test_delta_days"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 120", name="lab_test_name_length"),
        sa.CheckConstraint("plausible_low < plausible_high", name="lab_test_plausible"),
        sa.CheckConstraint("release_hours BETWEEN 0 AND 8760", name="lab_test_release_hours"),
        sa.CheckConstraint("reporting_low < reporting_high", name="lab_test_reporting"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("code", "method", name="lab_test_code"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_table(
        "lab_panel_test",
        sa.Column("panel_id", sa.BigInteger(), nullable=False),
        sa.Column("test_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.ForeignKeyConstraint(["panel_id"], ["lab_panel.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["test_id"],
            ["lab_test.id"],
        ),
        sa.PrimaryKeyConstraint("panel_id", "test_id"),
    )
    op.create_table(
        "reference_range",
        sa.Column("test_id", sa.BigInteger(), nullable=False),
        sa.Column("sex", sa.String(), nullable=True),
        sa.Column("since_age", sa.Integer(), nullable=True),
        sa.Column("since_unit", sa.String(length=2), nullable=True),
        sa.Column("until_age", sa.Integer(), nullable=True),
        sa.Column("until_unit", sa.String(length=2), nullable=True),
        sa.Column("pregnant", sa.Boolean(), nullable=True),
        sa.Column("low", sa.Numeric(), nullable=True),
        sa.Column("high", sa.Numeric(), nullable=True),
        sa.Column("critical_low", sa.Numeric(), nullable=True),
        sa.Column("critical_high", sa.Numeric(), nullable=True),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("valid_until", sa.Date(), nullable=True),
        sa.Column("source", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("sex IN ('male-typical', 'female-typical')", name="reference_range_sex"),
        sa.CheckConstraint(
            "since_unit IN ('d', 'wk', 'mo', 'a') AND until_unit IN ('d', 'wk', 'mo', 'a')",
            name="reference_range_age_units",
        ),
        sa.CheckConstraint("(since_age IS NULL) = (since_unit IS NULL)", name="reference_range_since"),
        sa.CheckConstraint("(until_age IS NULL) = (until_unit IS NULL)", name="reference_range_until"),
        sa.CheckConstraint("critical_low < critical_high", name="reference_range_critical_order"),
        sa.CheckConstraint("critical_low <= low AND critical_high >= high", name="reference_range_critical_outside"),
        sa.CheckConstraint("low <= high", name="reference_range_order"),
        sa.CheckConstraint("since_age >= 0 AND until_age > 0", name="reference_range_ages"),
        sa.CheckConstraint("valid_until >= valid_from", name="reference_range_valid"),
        sa.ForeignKeyConstraint(
            ["test_id"],
            ["lab_test.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_reference_range_test_id"), "reference_range", ["test_id"], unique=False)
    op.create_table(
        "unit_conversion",
        sa.Column("test_id", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("factor", sa.Numeric(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("factor > 0 AND source <> target", name="unit_conversion_factor"),
        sa.ForeignKeyConstraint(
            ["test_id"],
            ["lab_test.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
        sa.UniqueConstraint("test_id", "source", "target", name="unit_conversion_once"),
    )
    op.create_index(op.f("ix_unit_conversion_test_id"), "unit_conversion", ["test_id"], unique=False)
    op.create_table(
        "hl7_message",
        sa.Column("sender", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("control_id", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("kind", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("acknowledgement", sa.String(), nullable=False),
        sa.Column("error", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=True),
        sa.Column("named", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by_id", sa.Integer(), nullable=True),
        sa.Column("decision", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("acknowledgement IN ('AA', 'AE', 'AR')", name="hl7_message_acknowledgement"),
        sa.CheckConstraint(
            "state IN ('stored', 'unmatched', 'proposed', 'dead', 'dismissed')", name="hl7_message_state"
        ),
        sa.ForeignKeyConstraint(
            ["decided_by_id"],
            ["ab_user.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(
        "hl7_message_once",
        "hl7_message",
        ["sender", "control_id"],
        unique=True,
        postgresql_where=sa.text("control_id <> ''"),
    )
    op.create_index(
        "hl7_message_unnumbered",
        "hl7_message",
        ["digest"],
        unique=False,
        postgresql_where=sa.text("control_id = ''"),
    )
    op.create_index(
        "hl7_message_waiting",
        "hl7_message",
        ["received_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('unmatched', 'dead')"),
    )
    op.create_index(op.f("ix_hl7_message_patient_id"), "hl7_message", ["patient_id"], unique=False)
    op.create_table(
        "on_call",
        sa.Column("branch_id", sa.BigInteger(), nullable=False),
        sa.Column("practitioner_id", sa.BigInteger(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("ends_at > starts_at", name="on_call_ends_after_start"),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_on_call_practitioner_id"), "on_call", ["practitioner_id"], unique=False)
    op.create_index("on_call_at", "on_call", ["branch_id", "starts_at"], unique=False)
    op.create_table(
        "specimen",
        sa.Column("accession", sa.String(length=16), nullable=False),
        sa.Column("type_code", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("branch_id", sa.BigInteger(), nullable=False),
        sa.Column("collected_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("collector_id", sa.BigInteger(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("receiver_id", sa.BigInteger(), nullable=True),
        sa.Column("rejection", sa.String(), nullable=True),
        sa.Column("rejection_note", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(status = 'unsatisfactory') = (rejection IS NOT NULL)", name="specimen_rejected_with_reason"
        ),
        sa.CheckConstraint(
            "rejection IN ('EX', 'QS', 'RB', 'RC', 'RE', 'RH', 'RM', 'R', 'RD')", name="specimen_rejection"
        ),
        sa.CheckConstraint(
            "status IN ('available', 'unavailable', 'unsatisfactory', 'entered-in-error')", name="specimen_status"
        ),
        sa.CheckConstraint("received_at >= collected_at", name="specimen_received_after_collected"),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["collector_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["receiver_id"],
            ["practitioner.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("accession"),
        sa.UniqueConstraint("fhir_id"),
        sa.UniqueConstraint("id", "patient_id", name="specimen_of_patient"),
    )
    op.create_index(op.f("ix_specimen_branch_id"), "specimen", ["branch_id"], unique=False)
    op.create_index(op.f("ix_specimen_patient_id"), "specimen", ["patient_id"], unique=False)
    op.create_table(
        "patient_proposal",
        sa.Column("message_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=True),
        sa.Column("other_id", sa.BigInteger(), nullable=True),
        sa.Column("wanted", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by_id", sa.Integer(), nullable=True),
        sa.Column("decision", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(state = 'open') = (decided_at IS NULL)", name="patient_proposal_decided"),
        sa.CheckConstraint("kind IN ('register', 'update', 'merge')", name="patient_proposal_kind"),
        sa.CheckConstraint("state IN ('open', 'accepted', 'dismissed')", name="patient_proposal_state"),
        sa.ForeignKeyConstraint(
            ["decided_by_id"],
            ["ab_user.id"],
        ),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["hl7_message.id"],
        ),
        sa.ForeignKeyConstraint(
            ["other_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_patient_proposal_message_id"), "patient_proposal", ["message_id"], unique=False)
    op.create_index(op.f("ix_patient_proposal_other_id"), "patient_proposal", ["other_id"], unique=False)
    op.create_index(op.f("ix_patient_proposal_patient_id"), "patient_proposal", ["patient_id"], unique=False)
    op.create_index(
        "patient_proposal_open",
        "patient_proposal",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "critical_result",
        sa.Column("observation_id", sa.BigInteger(), nullable=False),
        sa.Column("flag", sa.String(length=2), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("branch_id", sa.BigInteger(), nullable=True),
        sa.Column("target_id", sa.BigInteger(), nullable=True),
        sa.Column("escalated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_by_id", sa.BigInteger(), nullable=True),
        sa.Column("read_back", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("flag IN ('LL', 'HH', 'AA')", name="critical_result_is_critical"),
        sa.CheckConstraint(
            "(acknowledged_at IS NULL) = (acknowledged_by_id IS NULL)", name="critical_result_acknowledged_by_somebody"
        ),
        sa.CheckConstraint("acknowledged_at IS NULL OR read_back", name="critical_result_read_back"),
        sa.ForeignKeyConstraint(
            ["acknowledged_by_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["observation_id"],
            ["observation.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["target_id"],
            ["practitioner.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(
        "critical_result_open",
        "critical_result",
        ["raised_at"],
        unique=False,
        postgresql_where=sa.text("acknowledged_at IS NULL"),
    )
    op.create_index(
        "critical_result_once",
        "critical_result",
        ["observation_id", "value"],
        unique=True,
        postgresql_where=sa.text("acknowledged_at IS NULL"),
    )
    op.create_index(op.f("ix_critical_result_branch_id"), "critical_result", ["branch_id"], unique=False)
    op.create_index(op.f("ix_critical_result_patient_id"), "critical_result", ["patient_id"], unique=False)
    op.create_index(op.f("ix_critical_result_target_id"), "critical_result", ["target_id"], unique=False)
    op.create_table(
        "hl7_result",
        sa.Column("message_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("order_number", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("code", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("sub_id", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("observation_id", sa.BigInteger(), nullable=True),
        sa.Column("patient_id", sa.BigInteger(), nullable=True),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(outcome = 'stored') = (observation_id IS NOT NULL)", name="hl7_result_stored_somewhere"),
        sa.CheckConstraint("outcome <> 'refused' OR reason <> ''", name="hl7_result_refused_with_reason"),
        sa.CheckConstraint("outcome IN ('stored', 'waiting', 'refused')", name="hl7_result_outcome"),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["hl7_message.id"],
        ),
        sa.ForeignKeyConstraint(
            ["observation_id"],
            ["observation.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(
        "hl7_result_same",
        "hl7_result",
        ["patient_id", "order_number", "code"],
        unique=False,
        postgresql_where=sa.text("outcome = 'stored'"),
    )
    op.create_index("hl7_result_of_message", "hl7_result", ["message_id", "position"], unique=True)
    op.create_index(op.f("ix_hl7_result_observation_id"), "hl7_result", ["observation_id"], unique=False)
    op.create_index(op.f("ix_hl7_result_patient_id"), "hl7_result", ["patient_id"], unique=False)
    op.create_table(
        "observation_history",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("observation_id", sa.BigInteger(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("was", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("until_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["observation_id"],
            ["observation.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        op.f("ix_observation_history_observation_id"), "observation_history", ["observation_id"], unique=False
    )
    op.create_index(op.f("ix_observation_history_patient_id"), "observation_history", ["patient_id"], unique=False)
    op.create_table(
        "critical_attempt",
        sa.Column("critical_result_id", sa.BigInteger(), nullable=False),
        sa.Column("caller_id", sa.BigInteger(), nullable=True),
        sa.Column("recipient_id", sa.BigInteger(), nullable=True),
        sa.Column("recipient_name", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("attempted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('confirmed', 'reached-no-readback', 'not-reached')", name="critical_attempt_outcome"
        ),
        sa.ForeignKeyConstraint(
            ["caller_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["critical_result_id"],
            ["critical_result.id"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["recipient_id"],
            ["practitioner.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(
        op.f("ix_critical_attempt_critical_result_id"), "critical_attempt", ["critical_result_id"], unique=False
    )
    op.create_index(op.f("ix_critical_attempt_patient_id"), "critical_attempt", ["patient_id"], unique=False)
    op.add_column("observation", sa.Column("service_request_id", sa.BigInteger(), nullable=True))
    op.add_column("observation", sa.Column("specimen_id", sa.BigInteger(), nullable=True))
    op.add_column("observation", sa.Column("test_id", sa.BigInteger(), nullable=True))
    op.add_column(
        "observation", sa.Column("comparator", sa.String(length=2), server_default=sa.text("''"), nullable=False)
    )
    op.add_column("observation", sa.Column("off_scale", sa.String(length=1), nullable=True))
    op.add_column("observation", sa.Column("delta", sa.String(length=1), nullable=True))
    op.add_column("observation", sa.Column("rules", sa.SmallInteger(), nullable=True))
    op.add_column("observation", sa.Column("held", sa.String(), server_default=sa.text("''"), nullable=False))
    op.add_column("observation", sa.Column("note", sa.String(), server_default=sa.text("''"), nullable=False))
    op.add_column("observation", sa.Column("verified_by_id", sa.BigInteger(), nullable=True))
    op.add_column("observation", sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("observation", sa.Column("released_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("observation", sa.Column("portal_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("observation", sa.Column("read_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(op.f("ix_observation_service_request_id"), "observation", ["service_request_id"], unique=False)
    op.create_index(op.f("ix_observation_specimen_id"), "observation", ["specimen_id"], unique=False)
    op.create_foreign_key(
        "observation_request_same_patient",
        "observation",
        "service_request",
        ["service_request_id", "patient_id"],
        ["id", "patient_id"],
        use_alter=True,
        deferrable=True,
    )
    op.create_foreign_key(None, "observation", "practitioner", ["verified_by_id"], ["id"])
    op.create_foreign_key(None, "observation", "lab_test", ["test_id"], ["id"])
    op.create_foreign_key(
        "observation_specimen_same_patient",
        "observation",
        "specimen",
        ["specimen_id", "patient_id"],
        ["id", "patient_id"],
        use_alter=True,
        deferrable=True,
    )
    op.add_column("service_request", sa.Column("test_id", sa.BigInteger(), nullable=True))
    op.add_column("service_request", sa.Column("panel_id", sa.BigInteger(), nullable=True))
    op.add_column("service_request", sa.Column("specimen_id", sa.BigInteger(), nullable=True))
    op.add_column("service_request", sa.Column("released_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(op.f("ix_service_request_specimen_id"), "service_request", ["specimen_id"], unique=False)
    op.create_index(
        "service_request_open",
        "service_request",
        ["authored_at"],
        unique=False,
        postgresql_where=sa.text("status = 'active'"),
    )
    op.create_foreign_key(None, "service_request", "lab_panel", ["panel_id"], ["id"])
    op.create_foreign_key(None, "service_request", "lab_test", ["test_id"], ["id"])
    op.create_foreign_key(
        "service_request_specimen_same_patient",
        "service_request",
        "specimen",
        ["specimen_id", "patient_id"],
        ["id", "patient_id"],
        deferrable=True,
    )

    op.add_column("diagnostic_report", sa.Column("portal_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("diagnostic_report", sa.Column("service_request_id", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_diagnostic_report_service_request_id"), "diagnostic_report", ["service_request_id"])
    op.create_foreign_key(
        "diagnostic_report_request_same_patient",
        "diagnostic_report",
        "service_request",
        ["service_request_id", "patient_id"],
        ["id", "patient_id"],
        deferrable=True,
    )
    # What is here already was out before there was a laboratory.
    for table in ("observation", "diagnostic_report"):
        op.execute(
            f"UPDATE {table} SET portal_at = least(coalesce(issued_at, created_at), created_at) "
            "WHERE category IN ('laboratory', 'LAB')"
        )

    for table, rules in CHECKS.items():
        for name, condition in rules.items():
            op.create_check_constraint(name, table, condition)
    op.execute("CREATE SEQUENCE accession_number START 100001")
    op.execute(RULES)
    op.execute(PATIENTS_SEE.format(BEFORE, NOW))
    op.execute(
        PATIENTS_LIST.format(
            merge.LIST
            + "".join(f",\n    ('{table}', 'patient_id', NULL)" for table in MOVED)
            + "".join(f",\n    ('{table}', '{column}', '{why}')" for (table, column), why in STAYS.items())
        )
    )
    for table in MOVED:
        op.execute(
            f"CREATE TRIGGER {table}_of_record_in_use BEFORE INSERT OR UPDATE OF patient_id ON {table} "
            "FOR EACH ROW WHEN (NEW.patient_id IS NOT NULL) EXECUTE FUNCTION wb_record_in_use()"
        )
    for table, when in KEPT.items():
        op.execute(
            f"CREATE TRIGGER {table}_stays_with_patient BEFORE UPDATE OF patient_id ON {table} "
            f"FOR EACH ROW WHEN (OLD.patient_id <> NEW.patient_id{when}) EXECUTE FUNCTION wb_stays_with_patient()"
        )


def downgrade() -> None:
    op.execute("DROP TRIGGER observation_stays_with_patient ON observation")
    op.execute(PATIENTS_LIST.format(merge.LIST))
    op.execute(PATIENTS_SEE.format(NOW, BEFORE))
    op.execute(GONE)
    op.execute("DROP SEQUENCE accession_number")
    for table, rules in CHECKS.items():
        for name in rules:
            op.drop_constraint(name, table)
    op.drop_constraint("diagnostic_report_request_same_patient", "diagnostic_report", type_="foreignkey")
    op.drop_index(op.f("ix_diagnostic_report_service_request_id"), table_name="diagnostic_report")
    op.drop_column("diagnostic_report", "service_request_id")
    op.drop_column("diagnostic_report", "portal_at")
    op.drop_constraint("service_request_specimen_same_patient", "service_request", type_="foreignkey")
    op.drop_index("service_request_open", table_name="service_request", postgresql_where=sa.text("status = 'active'"))
    op.drop_index(op.f("ix_service_request_specimen_id"), table_name="service_request")
    op.drop_column("service_request", "released_at")
    op.drop_column("service_request", "specimen_id")
    op.drop_column("service_request", "panel_id")
    op.drop_column("service_request", "test_id")
    op.drop_constraint("observation_specimen_same_patient", "observation", type_="foreignkey")
    op.drop_constraint("observation_request_same_patient", "observation", type_="foreignkey")
    op.drop_index(op.f("ix_observation_specimen_id"), table_name="observation")
    op.drop_index(op.f("ix_observation_service_request_id"), table_name="observation")
    op.drop_column("observation", "read_at")
    op.drop_column("observation", "portal_at")
    op.drop_column("observation", "released_at")
    op.drop_column("observation", "verified_at")
    op.drop_column("observation", "verified_by_id")
    op.drop_column("observation", "note")
    op.drop_column("observation", "held")
    op.drop_column("observation", "rules")
    op.drop_column("observation", "delta")
    op.drop_column("observation", "off_scale")
    op.drop_column("observation", "comparator")
    op.drop_column("observation", "test_id")
    op.drop_column("observation", "specimen_id")
    op.drop_column("observation", "service_request_id")
    op.drop_index(op.f("ix_critical_attempt_patient_id"), table_name="critical_attempt")
    op.drop_index(op.f("ix_critical_attempt_critical_result_id"), table_name="critical_attempt")
    op.drop_table("critical_attempt")
    op.drop_index(op.f("ix_observation_history_patient_id"), table_name="observation_history")
    op.drop_index(op.f("ix_observation_history_observation_id"), table_name="observation_history")
    op.drop_table("observation_history")
    op.drop_index(op.f("ix_hl7_result_patient_id"), table_name="hl7_result")
    op.drop_index(op.f("ix_hl7_result_observation_id"), table_name="hl7_result")
    op.drop_index("hl7_result_of_message", table_name="hl7_result")
    op.drop_table("hl7_result")
    op.drop_index(op.f("ix_critical_result_target_id"), table_name="critical_result")
    op.drop_index(op.f("ix_critical_result_patient_id"), table_name="critical_result")
    op.drop_index(op.f("ix_critical_result_branch_id"), table_name="critical_result")
    op.drop_index(
        "critical_result_open", table_name="critical_result", postgresql_where=sa.text("acknowledged_at IS NULL")
    )
    op.drop_index(
        "critical_result_once", table_name="critical_result", postgresql_where=sa.text("acknowledged_at IS NULL")
    )
    op.drop_table("critical_result")
    op.drop_index("patient_proposal_open", table_name="patient_proposal", postgresql_where=sa.text("state = 'open'"))
    op.drop_index(op.f("ix_patient_proposal_patient_id"), table_name="patient_proposal")
    op.drop_index(op.f("ix_patient_proposal_other_id"), table_name="patient_proposal")
    op.drop_index(op.f("ix_patient_proposal_message_id"), table_name="patient_proposal")
    op.drop_table("patient_proposal")
    op.drop_index(op.f("ix_specimen_patient_id"), table_name="specimen")
    op.drop_index(op.f("ix_specimen_branch_id"), table_name="specimen")
    op.drop_table("specimen")
    op.drop_index("on_call_at", table_name="on_call")
    op.drop_index(op.f("ix_on_call_practitioner_id"), table_name="on_call")
    op.drop_table("on_call")
    op.drop_index(op.f("ix_hl7_message_patient_id"), table_name="hl7_message")
    op.drop_index(
        "hl7_message_waiting", table_name="hl7_message", postgresql_where=sa.text("state IN ('unmatched', 'dead')")
    )
    op.drop_index("hl7_message_once", table_name="hl7_message", postgresql_where=sa.text("control_id <> ''"))
    op.drop_table("hl7_message")
    op.drop_index(op.f("ix_unit_conversion_test_id"), table_name="unit_conversion")
    op.drop_table("unit_conversion")
    op.drop_index(op.f("ix_reference_range_test_id"), table_name="reference_range")
    op.drop_table("reference_range")
    op.drop_table("lab_panel_test")
    op.drop_table("lab_test")
    op.drop_table("lab_panel")
    op.drop_constraint("service_request_of_patient", "service_request", type_="unique")
