"""The chart: encounters' states, notes that stay signed, medicines, prescriptions and dispenses, orders"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

RULES = r"""
-- Every function says where its tables are: a temporary one of the same name comes first where nothing is said.

-- ---- encounters

CREATE FUNCTION wb_encounter_states() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF OLD.status IN ('finished', 'cancelled', 'entered-in-error') AND NEW.status <> 'entered-in-error' THEN
    RAISE EXCEPTION 'an encounter that is over does not begin again'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'encounter_is_final';
  END IF;
  INSERT INTO encounter_history (encounter_id, patient_id, status) VALUES (OLD.id, OLD.patient_id, OLD.status);
  RETURN NULL;
END $$;
CREATE TRIGGER encounter_has_history AFTER UPDATE OF status ON encounter FOR EACH ROW
  WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION wb_encounter_states();

-- ---- notes

CREATE FUNCTION wb_template_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' OR (OLD.id, OLD.fhir_id, OLD.key, OLD.edition, OLD.name, OLD.kind, OLD.schema)
      IS DISTINCT FROM (NEW.id, NEW.fhir_id, NEW.key, NEW.edition, NEW.name, NEW.kind, NEW.schema) THEN
    RAISE EXCEPTION 'an edition of a template never changes'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'note_template_is_final';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER note_template_is_final BEFORE UPDATE OR DELETE ON note_template
  FOR EACH ROW EXECUTE FUNCTION wb_template_is_final();

-- The dictionary of a language (BCP 47), and none where PostgreSQL has none for it.
CREATE FUNCTION wb_dictionary(language text) RETURNS regconfig LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE lower(split_part(language, '-', 1))
    WHEN 'ar' THEN 'pg_catalog.arabic'::regconfig WHEN 'ca' THEN 'pg_catalog.catalan'::regconfig
    WHEN 'da' THEN 'pg_catalog.danish'::regconfig WHEN 'de' THEN 'pg_catalog.german'::regconfig
    WHEN 'el' THEN 'pg_catalog.greek'::regconfig WHEN 'en' THEN 'pg_catalog.english'::regconfig
    WHEN 'es' THEN 'pg_catalog.spanish'::regconfig WHEN 'eu' THEN 'pg_catalog.basque'::regconfig
    WHEN 'fi' THEN 'pg_catalog.finnish'::regconfig WHEN 'fr' THEN 'pg_catalog.french'::regconfig
    WHEN 'ga' THEN 'pg_catalog.irish'::regconfig WHEN 'hi' THEN 'pg_catalog.hindi'::regconfig
    WHEN 'hu' THEN 'pg_catalog.hungarian'::regconfig WHEN 'id' THEN 'pg_catalog.indonesian'::regconfig
    WHEN 'it' THEN 'pg_catalog.italian'::regconfig WHEN 'lt' THEN 'pg_catalog.lithuanian'::regconfig
    WHEN 'ne' THEN 'pg_catalog.nepali'::regconfig WHEN 'nl' THEN 'pg_catalog.dutch'::regconfig
    WHEN 'no' THEN 'pg_catalog.norwegian'::regconfig WHEN 'nb' THEN 'pg_catalog.norwegian'::regconfig
    WHEN 'pt' THEN 'pg_catalog.portuguese'::regconfig WHEN 'ro' THEN 'pg_catalog.romanian'::regconfig
    WHEN 'ru' THEN 'pg_catalog.russian'::regconfig WHEN 'sr' THEN 'pg_catalog.serbian'::regconfig
    WHEN 'sv' THEN 'pg_catalog.swedish'::regconfig WHEN 'ta' THEN 'pg_catalog.tamil'::regconfig
    WHEN 'tr' THEN 'pg_catalog.turkish'::regconfig WHEN 'yi' THEN 'pg_catalog.yiddish'::regconfig
    ELSE 'pg_catalog.simple'::regconfig END
$$;

-- Words as written and as the note's language bends them, so that each is found by whoever asks in another language.
CREATE FUNCTION wb_note_words() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  NEW.search := to_tsvector('simple', NEW.title) || jsonb_to_tsvector('simple', NEW.content, '["string"]')
    || to_tsvector(wb_dictionary(NEW.language), NEW.title)
    || jsonb_to_tsvector(wb_dictionary(NEW.language), NEW.content, '["string"]');
  RETURN NEW;
END $$;
CREATE TRIGGER clinical_note_words BEFORE INSERT OR UPDATE OF title, content, language ON clinical_note
  FOR EACH ROW EXECUTE FUNCTION wb_note_words();

-- A row goes to another patient only where two records of one person become one, which the owner's functions alone do:
-- the setting is anybody's to make.
CREATE FUNCTION wb_goes_with_patient() RETURNS text[] LANGUAGE sql STABLE
  SET search_path = pg_catalog, public, pg_temp AS $$
  SELECT CASE WHEN current_setting('wardbook.merging', true) = 'yes' AND current_user =
    (SELECT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = 'clinical_note')
    THEN ARRAY['patient_id'] ELSE ARRAY[]::text[] END
$$;

-- What is signed stays as it was signed, whoever asks; and what is withdrawn stays withdrawn.  It may be co-signed once,
-- withdrawn once, and go with its patient's other records where two records of one person become one.
CREATE FUNCTION wb_note_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  before jsonb;
  after jsonb;
  free text[] := ARRAY['version', 'updated_at', 'search'];
BEGIN
  IF TG_OP = 'DELETE' OR TG_OP = 'TRUNCATE' THEN
    RAISE EXCEPTION 'a note is withdrawn, never deleted'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'clinical_note_is_kept';
  END IF;
  IF OLD.signed_at IS NULL AND OLD.status <> 'entered-in-error' THEN
    RETURN NEW;
  END IF;
  IF OLD.signed_at IS NOT NULL AND OLD.cosigner_id IS NOT NULL AND OLD.cosigned_at IS NULL
      AND OLD.status <> 'entered-in-error' THEN
    free := free || 'cosigned_at'::text;
  END IF;
  IF OLD.status <> 'entered-in-error' AND NEW.status = 'entered-in-error' THEN
    free := free || ARRAY['status', 'withdrawn_at', 'withdrawn_reason'];
  END IF;
  free := free || wb_goes_with_patient();
  before := to_jsonb(OLD) - free;
  after := to_jsonb(NEW) - free;
  IF before IS DISTINCT FROM after OR OLD.search IS DISTINCT FROM NEW.search THEN
    RAISE EXCEPTION 'a signed note does not change'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'clinical_note_is_final';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER clinical_note_is_final BEFORE UPDATE OR DELETE ON clinical_note
  FOR EACH ROW EXECUTE FUNCTION wb_note_is_final();
CREATE TRIGGER clinical_note_is_kept BEFORE TRUNCATE ON clinical_note
  FOR EACH STATEMENT EXECUTE FUNCTION wb_note_is_final();

-- Only what is signed and still stands is added to or replaced.
CREATE FUNCTION wb_note_origin() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  PERFORM FROM clinical_note
    WHERE id = coalesce(NEW.replaces_id, NEW.addendum_to_id) AND status IN ('final', 'amended') FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'only a signed note is added to'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'clinical_note_origin_signed';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER clinical_note_origin BEFORE INSERT ON clinical_note FOR EACH ROW
  WHEN (NEW.replaces_id IS NOT NULL OR NEW.addendum_to_id IS NOT NULL) EXECUTE FUNCTION wb_note_origin();

-- ---- medicines

CREATE FUNCTION wb_medication_words() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  NEW.search := wb_fold(NEW.display || ' ' || coalesce(
    (SELECT string_agg(i ->> 'name', ' ') FROM jsonb_array_elements(NEW.ingredient) AS i), ''));
  RETURN NEW;
END $$;
CREATE TRIGGER medication_words BEFORE INSERT OR UPDATE ON medication
  FOR EACH ROW EXECUTE FUNCTION wb_medication_words();

-- What was issued on a paper stays as it was signed; it may be held, stopped, dispensed, and go with its patient.  How
-- much of it was dispensed is counted by the database alone.
CREATE FUNCTION wb_order_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  free text[] := ARRAY['version', 'updated_at', 'status', 'status_reason', 'ended_at', 'dispensed'] || wb_goes_with_patient();
BEGIN
  IF TG_OP = 'DELETE' THEN
    RAISE EXCEPTION 'an order is cancelled, never deleted'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'medication_request_is_kept';
  END IF;
  IF OLD.dispensed IS DISTINCT FROM NEW.dispensed AND (pg_trigger_depth() < 2
      OR current_user <> (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID)) THEN
    RAISE EXCEPTION 'what was dispensed is counted by the dispenses'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'medication_request_is_final';
  END IF;
  IF OLD.prescription_id IS NOT NULL AND OLD.status <> 'draft' AND (
      to_jsonb(OLD) - free IS DISTINCT FROM to_jsonb(NEW) - free
      OR NEW.status = 'draft'
      OR OLD.status IN ('cancelled', 'stopped', 'entered-in-error') AND NEW.status NOT IN (OLD.status, 'entered-in-error'))
  THEN
    RAISE EXCEPTION 'an order that was issued does not change'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'medication_request_is_final';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER medication_request_is_final BEFORE UPDATE OR DELETE ON medication_request
  FOR EACH ROW EXECUTE FUNCTION wb_order_is_final();

-- Nothing comes onto a paper once it is signed.
CREATE FUNCTION wb_paper_is_open() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  PERFORM FROM prescription WHERE id = NEW.prescription_id AND issued_at IS NOT NULL FOR KEY SHARE;
  IF FOUND THEN
    RAISE EXCEPTION 'this prescription was issued without it'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'prescription_is_final';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER medication_request_on_open_paper BEFORE INSERT ON medication_request FOR EACH ROW
  WHEN (NEW.prescription_id IS NOT NULL) EXECUTE FUNCTION wb_paper_is_open();
CREATE TRIGGER medication_request_onto_open_paper BEFORE UPDATE OF prescription_id, status ON medication_request
  FOR EACH ROW WHEN (NEW.prescription_id IS NOT NULL AND (OLD.prescription_id IS DISTINCT FROM NEW.prescription_id
    OR OLD.status = 'draft' AND NEW.status <> 'draft')) EXECUTE FUNCTION wb_paper_is_open();

CREATE FUNCTION wb_paper_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  free text[] := ARRAY['version', 'updated_at'] || wb_goes_with_patient();
BEGIN
  IF OLD.issued_at IS NOT NULL
      AND (TG_OP = 'DELETE' OR to_jsonb(OLD) - free IS DISTINCT FROM to_jsonb(NEW) - free) THEN
    RAISE EXCEPTION 'a prescription that was issued does not change'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'prescription_is_final';
  END IF;
  RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER prescription_is_final BEFORE UPDATE OR DELETE ON prescription
  FOR EACH ROW EXECUTE FUNCTION wb_paper_is_final();

-- A key that was retired or revoked stays so, and none becomes another.
CREATE FUNCTION wb_key_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF TG_OP = 'DELETE' OR (OLD.id, OLD.kid, OLD.public_key) IS DISTINCT FROM (NEW.id, NEW.kid, NEW.public_key)
      OR OLD.retired_at IS NOT NULL AND OLD.retired_at IS DISTINCT FROM NEW.retired_at
      OR OLD.revoked_at IS NOT NULL AND (OLD.revoked_at, OLD.revoked_reason)
        IS DISTINCT FROM (NEW.revoked_at, NEW.revoked_reason) THEN
    RAISE EXCEPTION 'a key that papers are signed with stays what it is'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'signing_key_is_final';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER signing_key_is_final BEFORE UPDATE OR DELETE ON signing_key
  FOR EACH ROW EXECUTE FUNCTION wb_key_is_final();

-- Who dispenses takes the order first; what is left is counted in the order itself, so two never give the last one.
CREATE FUNCTION wb_takes(status text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
  SELECT status NOT IN ('cancelled', 'entered-in-error', 'declined')
$$;
-- The order is held before the row is written, and counted in afterwards: a row that is not written after all, for there
-- is one of its number, counts nothing.
CREATE FUNCTION wb_hold_order() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  PERFORM FROM medication_request WHERE id = NEW.medication_request_id FOR UPDATE;
  RETURN NEW;
END $$;
CREATE TRIGGER medication_dispense_holds BEFORE INSERT OR UPDATE OF status ON medication_dispense
  FOR EACH ROW EXECUTE FUNCTION wb_hold_order();
CREATE FUNCTION wb_dispense() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  wanted medication_request;
  change numeric := 0;
  given numeric;
  free text[] := ARRAY['version', 'updated_at', 'patient_id', 'status', 'status_reason'];
BEGIN
  IF TG_OP = 'DELETE' THEN
    RAISE EXCEPTION 'a dispense is taken back, never deleted'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'medication_dispense_is_kept';
  END IF;
  IF TG_OP = 'UPDATE' AND OLD.handed_over_at IS NULL AND NEW.status = 'completed' THEN
    free := free || 'handed_over_at'::text;
  END IF;
  IF TG_OP = 'UPDATE' AND (to_jsonb(OLD) - free IS DISTINCT FROM to_jsonb(NEW) - free
      OR NOT wb_takes(OLD.status) AND NEW.status <> OLD.status
      OR OLD.status = 'completed' AND NEW.status NOT IN ('completed', 'entered-in-error')) THEN
    RAISE EXCEPTION 'a dispense does not become another'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'medication_dispense_is_final';
  END IF;
  IF TG_OP = 'UPDATE' AND wb_takes(OLD.status) = wb_takes(NEW.status) THEN
    RETURN NEW;
  END IF;
  SELECT * INTO wanted FROM medication_request WHERE id = NEW.medication_request_id FOR UPDATE;
  IF TG_OP = 'INSERT' AND wb_takes(NEW.status) THEN
    IF wanted.status IS DISTINCT FROM 'active' THEN
      RAISE EXCEPTION 'this order is not to be dispensed'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'medication_dispense_of_active';
    END IF;
    IF NEW.already <> wanted.dispensed THEN
      RAISE EXCEPTION 'some of it was dispensed meanwhile'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'medication_dispense_once';
    END IF;
    IF NEW.quantity_unit <> wanted.quantity_unit THEN
      RAISE EXCEPTION 'the order is counted in another unit'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'medication_dispense_unit';
    END IF;
    -- A fill is finished before the next is begun.
    IF NEW.quantity > wanted.quantity - mod(wanted.dispensed, wanted.quantity) THEN
      RAISE EXCEPTION 'that is more than is left of this fill'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'medication_dispense_of_one_fill';
    END IF;
    change := NEW.quantity;
  ELSIF TG_OP = 'UPDATE' THEN
    change := -NEW.quantity;
  END IF;
  given := wanted.dispensed + change;
  UPDATE medication_request SET dispensed = given, version = version + 1, updated_at = now(),
    status = CASE WHEN given >= quantity * (repeats + 1) AND status = 'active' THEN 'completed'
      WHEN change < 0 AND status = 'completed' THEN 'active' ELSE status END
  WHERE id = wanted.id;
  RETURN NEW;
END $$;
CREATE TRIGGER medication_dispense_counts AFTER INSERT OR UPDATE OR DELETE ON medication_dispense
  FOR EACH ROW EXECUTE FUNCTION wb_dispense();

CREATE FUNCTION wb_issue_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  free text[] := ARRAY['version', 'updated_at', 'patient_id'];
BEGIN
  IF TG_OP = 'DELETE' OR to_jsonb(OLD) - free IS DISTINCT FROM to_jsonb(NEW) - free THEN
    RAISE EXCEPTION 'what was overridden stays so'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'detected_issue_is_final';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER detected_issue_is_final BEFORE UPDATE OR DELETE ON detected_issue
  FOR EACH ROW EXECUTE FUNCTION wb_issue_is_final();

-- They act as the owner, so nobody else hangs them on a table.
REVOKE ALL ON FUNCTION wb_encounter_states(), wb_dispense() FROM PUBLIC;
"""

GONE = """
DROP TRIGGER detected_issue_is_final ON detected_issue;
DROP FUNCTION wb_issue_is_final();
DROP TRIGGER medication_dispense_counts ON medication_dispense;
DROP FUNCTION wb_dispense();
DROP TRIGGER medication_dispense_holds ON medication_dispense;
DROP FUNCTION wb_hold_order();
DROP TRIGGER signing_key_is_final ON signing_key;
DROP FUNCTION wb_key_is_final();
DROP FUNCTION wb_takes(text);
DROP TRIGGER prescription_is_final ON prescription;
DROP FUNCTION wb_paper_is_final();
DROP TRIGGER medication_request_onto_open_paper ON medication_request;
DROP TRIGGER medication_request_on_open_paper ON medication_request;
DROP FUNCTION wb_paper_is_open();
DROP TRIGGER medication_request_is_final ON medication_request;
DROP FUNCTION wb_order_is_final();
DROP TRIGGER medication_words ON medication;
DROP FUNCTION wb_medication_words();
DROP TRIGGER clinical_note_origin ON clinical_note;
DROP FUNCTION wb_note_origin();
DROP TRIGGER clinical_note_is_kept ON clinical_note;
DROP TRIGGER clinical_note_is_final ON clinical_note;
DROP FUNCTION wb_note_is_final();
DROP FUNCTION wb_goes_with_patient();
DROP TRIGGER clinical_note_words ON clinical_note;
DROP FUNCTION wb_note_words();
DROP FUNCTION wb_dictionary(text);
DROP TRIGGER note_template_is_final ON note_template;
DROP FUNCTION wb_template_is_final();
DROP TRIGGER encounter_has_history ON encounter;
DROP FUNCTION wb_encounter_states();
"""

PATIENTS_SEE = (
    "DO $do$ BEGIN EXECUTE replace(pg_get_functiondef('wb_policy_holds'::regproc), $a${0}$a$, $b${1}$b$); END $do$"
)
OLDER = (
    *("wb_policy_holds", "wb_policy_changed", "wb_refuse", "wb_credential", "wb_account_changed", "wb_roles_changed"),
    *("wb_last_visit", "wb_name_tokens", "wb_emergency_is_final", "wb_unusual_is_final", "wb_history_is_kept"),
    "wb_appointment_is_final",
)
"""Rules of before that did not say where their tables are."""
BEFORE = "'SlotOffer')"
NOW = "'SlotOffer', 'NoteTemplate', 'Medication', 'SigningKey')"
"""What of a hospital is nobody's record, as the rule knows it that keeps patients to their own."""
CHECKS = {
    "clinical_note": {
        "clinical_note_confidentiality": "confidentiality IN ('N', 'R', 'V')",
        "clinical_note_signed": "status NOT IN ('final', 'amended')"
        " OR signed_at IS NOT NULL AND digest IS NOT NULL AND signed_for IS NOT NULL",
        "clinical_note_draft_unsigned": "status <> 'preliminary' OR signed_at IS NULL",
        "clinical_note_cosigned_by_another": "cosigned_at IS NULL"
        " OR signed_at IS NOT NULL AND cosigner_id IS NOT NULL AND cosigner_id <> author_id",
        "clinical_note_withdrawn_with_reason": "(status = 'entered-in-error') = (withdrawn_at IS NOT NULL)"
        " AND (withdrawn_at IS NULL) = (withdrawn_reason = '')",
        "clinical_note_one_origin": "replaces_id IS NULL OR addendum_to_id IS NULL",
    },
    "medication_request": {
        "medication_request_quantity": "quantity > 0",
        "medication_request_repeats": "repeats BETWEEN 0 AND 99",
        "medication_request_dispensed_some": "dispensed >= 0",
        "medication_request_dispensed_at_most": "dispensed <= coalesce(quantity * (repeats + 1), 0)",
        "medication_request_valid": "valid_until >= valid_from",
        "medication_request_whole": "prescription_id IS NULL OR medication_id IS NOT NULL AND quantity IS NOT NULL"
        " AND quantity_unit <> '' AND valid_until IS NOT NULL AND requester_id IS NOT NULL",
    },
    "practitioner": {"practitioner_supervised_by_another": "supervised_by_id <> id"},
}


def upgrade() -> None:
    op.create_unique_constraint("medication_request_of_patient", "medication_request", ["id", "patient_id"])
    op.create_table(
        "medication",
        sa.Column("code_system", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("display", sa.String(), nullable=False),
        sa.Column("dose_form", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("unit", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("ingredient", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("search", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(display) BETWEEN 1 AND 300", name="medication_display_length"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("code_system", "code", name="medication_code"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(
        "medication_alike",
        "medication",
        ["search"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"search": "gin_trgm_ops"},
    )
    op.create_table(
        "note_template",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("edition", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("schema", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "kind IN ('progress', 'admission', 'discharge', 'procedure', 'free', 'addendum')", name="note_template_kind"
        ),
        sa.CheckConstraint("edition > 0", name="note_template_edition_positive"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 80", name="note_template_name_length"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
        sa.UniqueConstraint("key", "edition", name="note_template_edition"),
    )
    op.create_index("note_template_current", "note_template", ["key"], unique=True, postgresql_where=sa.text("active"))
    op.create_table(
        "signing_key",
        sa.Column("kid", sa.String(length=16), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_reason", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(revoked_at IS NULL) = (revoked_reason = '')", name="signing_key_revoked_with_reason"),
        sa.CheckConstraint("octet_length(public_key) = 32", name="signing_key_size"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
        sa.UniqueConstraint("kid"),
    )
    op.create_index(
        "signing_key_current",
        "signing_key",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.create_table(
        "encounter_history",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("encounter_id", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("until_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_encounter_history_encounter_id"), "encounter_history", ["encounter_id"], unique=False)
    op.create_index(op.f("ix_encounter_history_patient_id"), "encounter_history", ["patient_id"], unique=False)
    op.create_table(
        "prescription",
        sa.Column("practitioner_id", sa.BigInteger(), nullable=False),
        sa.Column("branch_id", sa.BigInteger(), nullable=False),
        sa.Column("language", sa.String(), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("short_code", sa.String(length=16), nullable=True),
        sa.Column("signing_key_id", sa.BigInteger(), nullable=True),
        sa.Column("signature", sa.LargeBinary(), nullable=True),
        sa.Column("encounter_id", sa.BigInteger(), nullable=True),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(issued_at IS NULL) = (short_code IS NULL) AND (issued_at IS NULL) = (signature IS NULL) AND (issued_at IS NULL) = (signing_key_id IS NULL)",
            name="prescription_issued_signed",
        ),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["encounter_id", "patient_id"],
            ["encounter.id", "encounter.patient_id"],
            name="prescription_encounter_same_patient",
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["practitioner_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["signing_key_id"],
            ["signing_key.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
        sa.UniqueConstraint("id", "patient_id", name="prescription_of_patient"),
        sa.UniqueConstraint("short_code"),
    )
    op.create_index(op.f("ix_prescription_encounter_id"), "prescription", ["encounter_id"], unique=False)
    op.create_index(op.f("ix_prescription_patient_id"), "prescription", ["patient_id"], unique=False)
    op.create_index(op.f("ix_prescription_practitioner_id"), "prescription", ["practitioner_id"], unique=False)
    op.create_table(
        "service_request",
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("intent", sa.String(), server_default=sa.text("'order'"), nullable=False),
        sa.Column("priority", sa.String(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("authored_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("requester_id", sa.BigInteger(), nullable=False),
        sa.Column("branch_id", sa.BigInteger(), nullable=True),
        sa.Column("note", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("status_reason", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("encounter_id", sa.BigInteger(), nullable=True),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("code_system", sa.String(), nullable=True),
        sa.Column("code", sa.String(), nullable=True),
        sa.Column("code_display", sa.String(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("priority IN ('routine', 'urgent', 'asap', 'stat')", name="service_request_priority"),
        sa.CheckConstraint(
            "status IN ('draft', 'active', 'on-hold', 'revoked', 'completed', 'entered-in-error', 'unknown')",
            name="service_request_status",
        ),
        sa.CheckConstraint("length(note) <= 1000", name="service_request_note_length"),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["encounter_id", "patient_id"],
            ["encounter.id", "encounter.patient_id"],
            name="service_request_encounter_same_patient",
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["requester_id"],
            ["practitioner.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_service_request_code"), "service_request", ["code"], unique=False)
    op.create_index(op.f("ix_service_request_encounter_id"), "service_request", ["encounter_id"], unique=False)
    op.create_index(op.f("ix_service_request_patient_id"), "service_request", ["patient_id"], unique=False)
    op.create_index(op.f("ix_service_request_requester_id"), "service_request", ["requester_id"], unique=False)
    op.create_index("service_request_newest", "service_request", ["patient_id", "authored_at"], unique=False)
    op.create_table(
        "medication_dispense",
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("medication_request_id", sa.BigInteger(), nullable=False),
        sa.Column("medication_id", sa.BigInteger(), nullable=False),
        sa.Column("quantity", sa.Numeric(), nullable=False),
        sa.Column("quantity_unit", sa.String(), nullable=False),
        sa.Column("already", sa.Numeric(), nullable=False),
        sa.Column("prepared_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("handed_over_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("performer_id", sa.BigInteger(), nullable=True),
        sa.Column("branch_id", sa.BigInteger(), nullable=True),
        sa.Column("status_reason", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "status <> 'completed' OR handed_over_at IS NOT NULL", name="medication_dispense_handed_over"
        ),
        sa.CheckConstraint(
            "status IN ('preparation', 'in-progress', 'cancelled', 'on-hold', 'completed', 'entered-in-error', 'stopped', 'declined', 'unknown')",
            name="medication_dispense_status",
        ),
        sa.CheckConstraint("handed_over_at >= prepared_at", name="medication_dispense_mdd_1"),
        sa.CheckConstraint("quantity > 0", name="medication_dispense_quantity"),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["medication_id"],
            ["medication.id"],
        ),
        sa.ForeignKeyConstraint(
            ["medication_request_id", "patient_id"],
            ["medication_request.id", "medication_request.patient_id"],
            name="medication_dispense_request_same_patient",
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.ForeignKeyConstraint(
            ["performer_id"],
            ["practitioner.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index(op.f("ix_medication_dispense_branch_id"), "medication_dispense", ["branch_id"], unique=False)
    op.create_index(op.f("ix_medication_dispense_patient_id"), "medication_dispense", ["patient_id"], unique=False)
    op.create_index("medication_dispense_of_request", "medication_dispense", ["medication_request_id"], unique=False)
    op.create_table(
        "detected_issue",
        sa.Column("medication_request_id", sa.BigInteger(), nullable=False),
        sa.Column("medication_dispense_id", sa.BigInteger(), nullable=True),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("severity", sa.String(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("reference", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("identified_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("mitigation", sa.String(), nullable=True),
        sa.Column("mitigation_note", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("author_id", sa.BigInteger(), nullable=True),
        sa.Column("branch_id", sa.BigInteger(), nullable=True),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("code IN ('DALG', 'DINT', 'DRG', 'DUPTHPY', 'DOSEH', 'DOSEL')", name="detected_issue_code"),
        sa.CheckConstraint("mitigation IN ('1', '2', '3', '4', '5', '7', '8', '9')", name="detected_issue_mitigation"),
        sa.CheckConstraint(
            "severity <> 'high' OR mitigation IS NOT NULL AND length(trim(mitigation_note)) >= 3",
            name="detected_issue_high_is_overridden",
        ),
        sa.CheckConstraint("severity IN ('high', 'moderate', 'low')", name="detected_issue_severity"),
        sa.ForeignKeyConstraint(
            ["author_id"],
            ["practitioner.id"],
        ),
        sa.ForeignKeyConstraint(
            ["branch_id"],
            ["branch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["medication_dispense_id"],
            ["medication_dispense.id"],
        ),
        sa.ForeignKeyConstraint(
            ["medication_request_id", "patient_id"],
            ["medication_request.id", "medication_request.patient_id"],
            name="detected_issue_request_same_patient",
        ),
        sa.ForeignKeyConstraint(
            ["patient_id"],
            ["patient.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index("detected_issue_of_request", "detected_issue", ["medication_request_id"], unique=False)
    op.create_index(
        "detected_issue_overrides",
        "detected_issue",
        ["identified_at"],
        unique=False,
        postgresql_where=sa.text("mitigation IS NOT NULL"),
    )
    op.create_index(op.f("ix_detected_issue_author_id"), "detected_issue", ["author_id"], unique=False)
    op.create_index(
        op.f("ix_detected_issue_medication_dispense_id"), "detected_issue", ["medication_dispense_id"], unique=False
    )
    op.create_index(op.f("ix_detected_issue_patient_id"), "detected_issue", ["patient_id"], unique=False)
    op.add_column("allergy_intolerance", sa.Column("branch_id", sa.BigInteger(), nullable=True))
    op.add_column("allergy_intolerance", sa.Column("recorder_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(None, "allergy_intolerance", "branch", ["branch_id"], ["id"])
    op.create_foreign_key(None, "allergy_intolerance", "practitioner", ["recorder_id"], ["id"])
    op.add_column("clinical_note", sa.Column("template_id", sa.BigInteger(), nullable=True))
    op.add_column("clinical_note", sa.Column("branch_id", sa.BigInteger(), nullable=True))
    op.add_column("clinical_note", sa.Column("language", sa.String(), server_default=sa.text("''"), nullable=False))
    op.add_column(
        "clinical_note", sa.Column("confidentiality", sa.String(), server_default=sa.text("'N'"), nullable=False)
    )
    op.add_column("clinical_note", sa.Column("replaces_id", sa.BigInteger(), nullable=True))
    op.add_column("clinical_note", sa.Column("addendum_to_id", sa.BigInteger(), nullable=True))
    op.add_column("clinical_note", sa.Column("signed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("clinical_note", sa.Column("signed_for", sa.Uuid(), nullable=True))
    op.add_column("clinical_note", sa.Column("digest", sa.String(), nullable=True))
    op.add_column("clinical_note", sa.Column("cosigner_id", sa.BigInteger(), nullable=True))
    op.add_column("clinical_note", sa.Column("cosigned_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("clinical_note", sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "clinical_note", sa.Column("withdrawn_reason", sa.Text(), server_default=sa.text("''"), nullable=False)
    )
    op.add_column("clinical_note", sa.Column("search", postgresql.TSVECTOR(), nullable=True))
    op.create_index(
        "clinical_note_addenda",
        "clinical_note",
        ["addendum_to_id"],
        unique=False,
        postgresql_where=sa.text("addendum_to_id IS NOT NULL"),
    )
    op.create_index(
        "clinical_note_drafts",
        "clinical_note",
        ["author_id", "written_at"],
        unique=False,
        postgresql_where=sa.text("status = 'preliminary'"),
    )
    op.create_index("clinical_note_newest", "clinical_note", ["patient_id", "written_at"], unique=False)
    op.create_unique_constraint("clinical_note_of_patient", "clinical_note", ["id", "patient_id"])
    op.create_index(
        "clinical_note_replaced_once",
        "clinical_note",
        ["replaces_id"],
        unique=True,
        postgresql_where=sa.text("status <> 'entered-in-error'"),
    )
    op.create_index("clinical_note_search", "clinical_note", ["search"], unique=False, postgresql_using="gin")
    op.create_index(
        "clinical_note_to_cosign",
        "clinical_note",
        ["cosigner_id"],
        unique=False,
        postgresql_where=sa.text("cosigned_at IS NULL AND signed_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_clinical_note_template_id"), "clinical_note", ["template_id"], unique=False)
    op.create_foreign_key(
        "clinical_note_replaces_same_patient",
        "clinical_note",
        "clinical_note",
        ["replaces_id", "patient_id"],
        ["id", "patient_id"],
    )
    op.create_foreign_key(None, "clinical_note", "practitioner", ["cosigner_id"], ["id"])
    op.create_foreign_key(
        "clinical_note_addendum_same_patient",
        "clinical_note",
        "clinical_note",
        ["addendum_to_id", "patient_id"],
        ["id", "patient_id"],
    )
    op.create_foreign_key(None, "clinical_note", "note_template", ["template_id"], ["id"])
    op.create_foreign_key(None, "clinical_note", "branch", ["branch_id"], ["id"])
    op.add_column("condition", sa.Column("branch_id", sa.BigInteger(), nullable=True))
    op.add_column("condition", sa.Column("recorder_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(None, "condition", "practitioner", ["recorder_id"], ["id"])
    op.create_foreign_key(None, "condition", "branch", ["branch_id"], ["id"])
    op.add_column("immunization", sa.Column("branch_id", sa.BigInteger(), nullable=True))
    op.add_column("immunization", sa.Column("recorder_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(None, "immunization", "branch", ["branch_id"], ["id"])
    op.create_foreign_key(None, "immunization", "practitioner", ["recorder_id"], ["id"])
    op.add_column("medication_request", sa.Column("branch_id", sa.BigInteger(), nullable=True))
    op.add_column("medication_request", sa.Column("prescription_id", sa.BigInteger(), nullable=True))
    op.add_column("medication_request", sa.Column("medication_id", sa.BigInteger(), nullable=True))
    op.add_column("medication_request", sa.Column("quantity", sa.Numeric(), nullable=True))
    op.add_column(
        "medication_request", sa.Column("quantity_unit", sa.String(), server_default=sa.text("''"), nullable=False)
    )
    op.add_column("medication_request", sa.Column("repeats", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("medication_request", sa.Column("valid_from", sa.Date(), nullable=True))
    op.add_column("medication_request", sa.Column("valid_until", sa.Date(), nullable=True))
    op.add_column(
        "medication_request",
        sa.Column("substitution_allowed", sa.Boolean(), server_default=sa.text("true"), nullable=False),
    )
    op.add_column(
        "medication_request", sa.Column("dispensed", sa.Numeric(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column(
        "medication_request", sa.Column("status_reason", sa.String(), server_default=sa.text("''"), nullable=False)
    )
    op.add_column("medication_request", sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(op.f("ix_medication_request_medication_id"), "medication_request", ["medication_id"], unique=False)
    op.create_index("medication_request_of_prescription", "medication_request", ["prescription_id"], unique=False)
    op.create_foreign_key(
        "medication_request_prescription_same_patient",
        "medication_request",
        "prescription",
        ["prescription_id", "patient_id"],
        ["id", "patient_id"],
    )
    op.create_foreign_key(None, "medication_request", "medication", ["medication_id"], ["id"])
    op.create_foreign_key(None, "medication_request", "branch", ["branch_id"], ["id"])
    op.add_column("observation", sa.Column("branch_id", sa.BigInteger(), nullable=True))
    op.add_column("observation", sa.Column("recorder_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(None, "observation", "practitioner", ["recorder_id"], ["id"])
    op.create_foreign_key(None, "observation", "branch", ["branch_id"], ["id"])
    op.add_column("practitioner", sa.Column("supervised_by_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(None, "practitioner", "practitioner", ["supervised_by_id"], ["id"])
    op.add_column("procedure", sa.Column("branch_id", sa.BigInteger(), nullable=True))
    op.add_column("procedure", sa.Column("recorder_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(None, "procedure", "branch", ["branch_id"], ["id"])
    op.create_foreign_key(None, "procedure", "practitioner", ["recorder_id"], ["id"])

    for table, rules in CHECKS.items():
        for name, condition in rules.items():
            op.create_check_constraint(name, table, condition)
    op.execute(RULES)
    for name in OLDER:
        op.execute(f"ALTER FUNCTION {name}() SET search_path = pg_catalog, public, pg_temp")
    op.execute(PATIENTS_SEE.format(BEFORE, NOW))


def downgrade() -> None:
    op.execute(PATIENTS_SEE.format(NOW, BEFORE))
    for name in OLDER:
        op.execute(f"ALTER FUNCTION {name}() RESET search_path")
    op.execute(GONE)
    for table, rules in CHECKS.items():
        for name in rules:
            op.drop_constraint(name, table)
    op.drop_column("procedure", "recorder_id")
    op.drop_column("procedure", "branch_id")
    op.drop_column("practitioner", "supervised_by_id")
    op.drop_column("observation", "recorder_id")
    op.drop_column("observation", "branch_id")
    op.drop_constraint("medication_request_prescription_same_patient", "medication_request", type_="foreignkey")
    op.drop_index("medication_request_of_prescription", table_name="medication_request")
    op.drop_index(op.f("ix_medication_request_medication_id"), table_name="medication_request")
    op.drop_column("medication_request", "ended_at")
    op.drop_column("medication_request", "status_reason")
    op.drop_column("medication_request", "dispensed")
    op.drop_column("medication_request", "substitution_allowed")
    op.drop_column("medication_request", "valid_until")
    op.drop_column("medication_request", "valid_from")
    op.drop_column("medication_request", "repeats")
    op.drop_column("medication_request", "quantity_unit")
    op.drop_column("medication_request", "quantity")
    op.drop_column("medication_request", "medication_id")
    op.drop_column("medication_request", "prescription_id")
    op.drop_column("medication_request", "branch_id")
    op.drop_column("immunization", "recorder_id")
    op.drop_column("immunization", "branch_id")
    op.drop_column("condition", "recorder_id")
    op.drop_column("condition", "branch_id")
    op.drop_constraint("clinical_note_addendum_same_patient", "clinical_note", type_="foreignkey")
    op.drop_constraint("clinical_note_replaces_same_patient", "clinical_note", type_="foreignkey")
    op.drop_index(op.f("ix_clinical_note_template_id"), table_name="clinical_note")
    op.drop_index(
        "clinical_note_to_cosign",
        table_name="clinical_note",
        postgresql_where=sa.text("cosigned_at IS NULL AND signed_at IS NOT NULL"),
    )
    op.drop_index("clinical_note_search", table_name="clinical_note", postgresql_using="gin")
    op.drop_index(
        "clinical_note_replaced_once",
        table_name="clinical_note",
        postgresql_where=sa.text("status <> 'entered-in-error'"),
    )
    op.drop_constraint("clinical_note_of_patient", "clinical_note", type_="unique")
    op.drop_index("clinical_note_newest", table_name="clinical_note")
    op.drop_index(
        "clinical_note_drafts", table_name="clinical_note", postgresql_where=sa.text("status = 'preliminary'")
    )
    op.drop_index(
        "clinical_note_addenda", table_name="clinical_note", postgresql_where=sa.text("addendum_to_id IS NOT NULL")
    )
    op.drop_column("clinical_note", "search")
    op.drop_column("clinical_note", "withdrawn_reason")
    op.drop_column("clinical_note", "withdrawn_at")
    op.drop_column("clinical_note", "cosigned_at")
    op.drop_column("clinical_note", "cosigner_id")
    op.drop_column("clinical_note", "digest")
    op.drop_column("clinical_note", "signed_for")
    op.drop_column("clinical_note", "signed_at")
    op.drop_column("clinical_note", "addendum_to_id")
    op.drop_column("clinical_note", "replaces_id")
    op.drop_column("clinical_note", "confidentiality")
    op.drop_column("clinical_note", "language")
    op.drop_column("clinical_note", "branch_id")
    op.drop_column("clinical_note", "template_id")
    op.drop_column("allergy_intolerance", "recorder_id")
    op.drop_column("allergy_intolerance", "branch_id")
    op.drop_index(op.f("ix_detected_issue_patient_id"), table_name="detected_issue")
    op.drop_index(op.f("ix_detected_issue_medication_dispense_id"), table_name="detected_issue")
    op.drop_index(op.f("ix_detected_issue_author_id"), table_name="detected_issue")
    op.drop_index(
        "detected_issue_overrides", table_name="detected_issue", postgresql_where=sa.text("mitigation IS NOT NULL")
    )
    op.drop_index("detected_issue_of_request", table_name="detected_issue")
    op.drop_table("detected_issue")
    op.drop_index("medication_dispense_of_request", table_name="medication_dispense")
    op.drop_index(op.f("ix_medication_dispense_patient_id"), table_name="medication_dispense")
    op.drop_index(op.f("ix_medication_dispense_branch_id"), table_name="medication_dispense")
    op.drop_table("medication_dispense")
    op.drop_index("service_request_newest", table_name="service_request")
    op.drop_index(op.f("ix_service_request_requester_id"), table_name="service_request")
    op.drop_index(op.f("ix_service_request_patient_id"), table_name="service_request")
    op.drop_index(op.f("ix_service_request_encounter_id"), table_name="service_request")
    op.drop_index(op.f("ix_service_request_code"), table_name="service_request")
    op.drop_table("service_request")
    op.drop_index(op.f("ix_prescription_practitioner_id"), table_name="prescription")
    op.drop_index(op.f("ix_prescription_patient_id"), table_name="prescription")
    op.drop_index(op.f("ix_prescription_encounter_id"), table_name="prescription")
    op.drop_table("prescription")
    op.drop_index(op.f("ix_encounter_history_patient_id"), table_name="encounter_history")
    op.drop_index(op.f("ix_encounter_history_encounter_id"), table_name="encounter_history")
    op.drop_table("encounter_history")
    op.drop_index("signing_key_current", table_name="signing_key", postgresql_where=sa.text("retired_at IS NULL"))
    op.drop_table("signing_key")
    op.drop_index("note_template_current", table_name="note_template", postgresql_where=sa.text("active"))
    op.drop_table("note_template")
    op.drop_index(
        "medication_alike", table_name="medication", postgresql_using="gin", postgresql_ops={"search": "gin_trgm_ops"}
    )
    op.drop_table("medication")
    op.drop_constraint("medication_request_of_patient", "medication_request", type_="unique")
