"""Merging: two records of one person become one, row for row, and can be parted again for 30 days"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

MOVED = (
    *("encounter", "encounter_history", "condition", "allergy_intolerance", "observation", "procedure"),
    *("immunization", "document_reference", "clinical_note", "diagnostic_report", "service_request", "prescription"),
    *("medication_request", "medication_dispense", "detected_issue", "appointment_series", "appointment"),
    *("appointment_history", "waitlist_entry", "slot_offer_invitation", "communication", "source_resource"),
)
"""What goes with the patient, by `patient_id`."""
STAYS = {
    ("booking", "patient_id"): "kept by the database for the visits, and follows them",
    ("patient", "replaced_by_id"): "says which record took the place of which",
    ("patient_identifier", "patient_id"): "is copied to the other record as an old number, so that both are found",
    ("patient_link", "patient_id"): "says what two records are to each other",
    ("patient_link", "other_id"): "says what two records are to each other",
    ("patient_merge", "survivor_id"): "says which records were merged",
    ("patient_merge", "loser_id"): "says which records were merged",
    ("emergency_access", "patient_id"): "was given for that record, and is reviewed by the trail, which is never moved",
    ("unusual_access", "patient_id"): "was found in the trail of that record, which is never moved",
}
"""What does not, and why."""
PAPERS = ("prescription", "medication_request", "medication_dispense", "detected_issue")
"""What was issued or decided for one patient, and never becomes another's by hand."""
TOGETHER = {
    "clinical_note": (
        *("clinical_note_encounter_same_patient", "clinical_note_replaces_same_patient"),
        "clinical_note_addendum_same_patient",
    ),
    "medication_request": (
        "medication_request_encounter_same_patient",
        "medication_request_prescription_same_patient",
    ),
    "medication_dispense": ("medication_dispense_request_same_patient",),
    "detected_issue": ("detected_issue_request_same_patient",),
    **{
        table: (f"{table}_encounter_same_patient",)
        for table in (
            *("condition", "allergy_intolerance", "observation", "procedure", "immunization", "document_reference"),
            *("diagnostic_report", "service_request", "prescription", "appointment"),
        )
    },
}
"""Keys by which a row and what it hangs on are one patient's; they may wait until both have moved."""

LIST = "VALUES\n" + ",\n".join(
    [
        *(f"    ('{table}', 'patient_id', NULL)" for table in MOVED),
        *(f"    ('{table}', '{column}', '{why}')" for (table, column), why in STAYS.items()),
    ]
)

RULES = (
    r"""
-- Every column that names a patient: what does not move with a merge says why it stays.
CREATE FUNCTION wb_of_patients() RETURNS TABLE (of_table text, of_column text, stays text)
LANGUAGE sql IMMUTABLE AS $$
  """
    + LIST
    + r"""
$$;

-- Whether rows are being moved by the one function that may: the setting alone is anybody's to make.
CREATE FUNCTION wb_merging() RETURNS boolean LANGUAGE sql STABLE
  SET search_path = pg_catalog, public, pg_temp AS $$
  SELECT coalesce(current_setting('wardbook.merging', true), '') = 'yes'
    AND current_user = (SELECT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = 'patient')
$$;

-- Nothing is written into a record that another one has replaced.  Whoever writes while two are being merged waits here.
CREATE FUNCTION wb_record_in_use() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  survivor bigint;
BEGIN
  SELECT replaced_by_id INTO survivor FROM patient WHERE id = NEW.patient_id FOR KEY SHARE;
  IF survivor IS NOT NULL THEN
    RAISE EXCEPTION 'this record was merged into another'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'patient_is_replaced';
  END IF;
  RETURN NEW;
END $$;

CREATE FUNCTION wb_replaced_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF NOT wb_merging() THEN
    RAISE EXCEPTION 'this record was merged into another'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'patient_is_replaced';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER patient_is_replaced BEFORE UPDATE ON patient FOR EACH ROW
  WHEN (OLD.replaced_by_id IS NOT NULL OR NEW.replaced_by_id IS NOT NULL) EXECUTE FUNCTION wb_replaced_is_final();
CREATE TRIGGER patient_begins_in_use BEFORE INSERT ON patient FOR EACH ROW
  WHEN (NEW.replaced_by_id IS NOT NULL) EXECUTE FUNCTION wb_replaced_is_final();

CREATE FUNCTION wb_stays_with_patient() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF NOT wb_merging() THEN
    RAISE EXCEPTION 'what was issued for one patient is no other one''s'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'row_stays_with_patient';
  END IF;
  RETURN NEW;
END $$;

CREATE FUNCTION wb_merge_is_final() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  free text[] := ARRAY['version', 'updated_at'];
BEGIN
  IF TG_OP = 'UPDATE' AND OLD.undone_at IS NULL THEN
    free := free || ARRAY['undone_at', 'undone_by_id', 'undone_reason'];
  END IF;
  IF TG_OP = 'DELETE' OR to_jsonb(OLD) - free IS DISTINCT FROM to_jsonb(NEW) - free THEN
    RAISE EXCEPTION 'what was merged is undone once, and otherwise stays'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'patient_merge_is_final';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER patient_merge_is_final BEFORE UPDATE OR DELETE ON patient_merge
  FOR EACH ROW EXECUTE FUNCTION wb_merge_is_final();

-- How many rows of each table name a patient, and the newest of them; nothing of what they say.
CREATE FUNCTION wb_rows_of_patient(whose bigint) RETURNS TABLE (of_table text, of_column text, number bigint, newest bigint)
LANGUAGE plpgsql STABLE AS $$
DECLARE
  part record;
BEGIN
  FOR part IN SELECT * FROM wb_of_patients() LOOP
    RETURN QUERY EXECUTE format('SELECT %L, %L, count(*), max(id)::bigint FROM %I WHERE %I = $1',
      part.of_table, part.of_column, part.of_table, part.of_column) USING whose;
  END LOOP;
END $$;

-- One after the other, as whoever books takes them: two that meet would wait for each other.
CREATE FUNCTION wb_hold_visits(whose bigint, next bigint) RETURNS void LANGUAGE sql AS $$
  SELECT wb_hold(ARRAY(
    SELECT DISTINCT resource FROM appointment AS a
    CROSS JOIN LATERAL unnest(wb_resources(a.practitioner_id, a.room_id, a.equipment_ids, next)) AS resource
    WHERE a.patient_id = whose AND wb_blocks(a.status)))
$$;

-- Move everything of the one record to the other, as the row of patient_merge says that was written just before.
CREATE FUNCTION wb_merge_patients(merge bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET wardbook.merging = 'yes' AS $$
DECLARE
  it patient_merge;
  part record;
BEGIN
  SELECT * INTO STRICT it FROM patient_merge WHERE id = merge;
  PERFORM FROM patient WHERE id IN (it.survivor_id, it.loser_id) ORDER BY id FOR UPDATE;
  IF it.undone_at IS NOT NULL
      OR EXISTS (SELECT FROM patient WHERE id IN (it.survivor_id, it.loser_id) AND replaced_by_id IS NOT NULL) THEN
    RAISE EXCEPTION 'this record was merged into another'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'patient_is_replaced';
  END IF;
  IF (SELECT count(user_id) FROM patient WHERE id IN (it.survivor_id, it.loser_id)) > 1 THEN
    RAISE EXCEPTION 'both have an account'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'patient_merge_two_accounts';
  END IF;
  PERFORM wb_hold_visits(it.loser_id, it.survivor_id);
  SET CONSTRAINTS ALL DEFERRED;
  FOR part IN SELECT * FROM wb_of_patients() WHERE stays IS NULL LOOP
    EXECUTE format('WITH moved AS (UPDATE %1$I SET %2$I = $1 WHERE %2$I = $2 RETURNING id)
      INSERT INTO patient_merge_row (merge_id, table_name, row_id) SELECT $3, %1$L, id FROM moved',
      part.of_table, part.of_column) USING it.survivor_id, it.loser_id, merge;
  END LOOP;
  UPDATE source_resource SET record_id = it.survivor_id
    WHERE resource_type = 'Patient' AND record_id = it.loser_id AND patient_id = it.survivor_id;
  WITH numbers AS (
    SELECT DISTINCT ON (n.system, n.value) n.system, n.value, n.type_code FROM (
      SELECT system, value, type_code FROM patient_identifier WHERE patient_id = it.loser_id
      UNION ALL SELECT 'mrn', mrn, 'MR' FROM patient WHERE id = it.loser_id
    ) AS n
    WHERE NOT EXISTS (SELECT FROM patient_identifier k
      WHERE k.patient_id = it.survivor_id AND k.system = n.system AND k.value = n.value)
    ORDER BY n.system, n.value
  ), made AS (
    INSERT INTO patient_identifier (patient_id, system, value, use, type_code, fhir_id, version, created_at, updated_at)
    SELECT it.survivor_id, system, value, 'old', type_code, gen_random_uuid(), 1, now(), now() FROM numbers
    RETURNING id
  )
  INSERT INTO patient_merge_row (merge_id, table_name, row_id) SELECT merge, 'patient_identifier', id FROM made;
  WITH made AS (
    INSERT INTO patient_link
      (patient_id, other_id, type, score, reasons, reviewed_at, fhir_id, version, created_at, updated_at)
    VALUES
      (it.survivor_id, it.loser_id, 'replaces', 1, '{}', now(), gen_random_uuid(), 1, now(), now()),
      (it.loser_id, it.survivor_id, 'replaced-by', 1, '{}', now(), gen_random_uuid(), 1, now(), now())
    RETURNING id
  )
  INSERT INTO patient_merge_row (merge_id, table_name, row_id) SELECT merge, 'patient_link', id FROM made;
  UPDATE patient SET replaced_by_id = it.survivor_id, active = false, user_id = NULL, version = version + 1,
    updated_at = now() WHERE id = it.loser_id;
  UPDATE patient SET user_id = coalesce(it.account_id, user_id), version = version + 1, updated_at = now()
    WHERE id = it.survivor_id;
  SET CONSTRAINTS ALL IMMEDIATE;
END $$;

-- Part them again, row for row.  What was written since stays with the survivor, but for what hangs on a row that goes
-- back, or on which such a row hangs: a result stays with its visit, a dispense with its order.
CREATE FUNCTION wb_unmerge_patients(merge bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET wardbook.merging = 'yes' AS $$
DECLARE
  it patient_merge;
  part record;
  added bigint;
  count bigint;
  older boolean;
BEGIN
  SELECT * INTO STRICT it FROM patient_merge WHERE id = merge;
  PERFORM FROM patient WHERE id IN (it.survivor_id, it.loser_id) ORDER BY id FOR UPDATE;
  IF EXISTS (SELECT FROM patient WHERE id = it.survivor_id AND replaced_by_id IS NOT NULL) THEN
    RAISE EXCEPTION 'the survivor was merged into another since'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'patient_merge_undone_in_order';
  END IF;
  IF it.undone_at IS NULL
      OR NOT EXISTS (SELECT FROM patient WHERE id = it.loser_id AND replaced_by_id = it.survivor_id) THEN
    RAISE EXCEPTION 'this is undone already'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'patient_merge_is_final';
  END IF;
  LOOP
    added := 0;
    FOR part IN
      SELECT child.relname AS child, via.attname AS via, parent.relname AS parent
      FROM pg_constraint c
      CROSS JOIN LATERAL unnest(c.conkey, c.confkey) AS k (child, parent)
      JOIN pg_attribute via ON via.attrelid = c.conrelid AND via.attnum = k.child
      JOIN pg_attribute key ON key.attrelid = c.confrelid AND key.attnum = k.parent AND key.attname = 'id'
      JOIN pg_class child ON child.oid = c.conrelid
      JOIN pg_class parent ON parent.oid = c.confrelid
      WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace
        AND child.relname IN (SELECT of_table FROM wb_of_patients() WHERE stays IS NULL)
        AND parent.relname IN (SELECT of_table FROM wb_of_patients() WHERE stays IS NULL)
      UNION SELECT 'encounter_history', 'encounter_id', 'encounter'
    LOOP
      EXECUTE format('INSERT INTO patient_merge_row (merge_id, table_name, row_id, followed)
        SELECT $1, %1$L, c.id, true FROM %1$I c WHERE c.patient_id = $2 AND c.%2$I IN
          (SELECT row_id FROM patient_merge_row WHERE merge_id = $1 AND table_name = %3$L)
        ON CONFLICT DO NOTHING', part.child, part.via, part.parent) USING merge, it.survivor_id;
      GET DIAGNOSTICS count = ROW_COUNT;
      added := added + count;
      EXECUTE format('INSERT INTO patient_merge_row (merge_id, table_name, row_id, followed)
        SELECT $1, %3$L, p.id, true FROM %3$I p WHERE p.patient_id = $2 AND p.id IN
          (SELECT c.%2$I FROM %1$I c JOIN patient_merge_row r ON r.row_id = c.id
            WHERE r.merge_id = $1 AND r.table_name = %1$L)
        ON CONFLICT DO NOTHING', part.child, part.via, part.parent) USING merge, it.survivor_id;
      GET DIAGNOSTICS count = ROW_COUNT;
      added := added + count;
    END LOOP;
    EXIT WHEN added = 0;
  END LOOP;
  FOR part IN
    SELECT p.of_table FROM wb_of_patients() p
    JOIN pg_attribute a ON a.attrelid = format('public.%I', p.of_table)::regclass AND a.attname = 'created_at'
    WHERE p.stays IS NULL AND NOT a.attisdropped
  LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM %1$I t JOIN patient_merge_row r ON r.row_id = t.id
      WHERE r.merge_id = $1 AND r.table_name = %1$L AND r.followed AND t.created_at <= $2)', part.of_table)
      INTO older USING merge, it.merged_at;
    IF older THEN
      RAISE EXCEPTION 'what was written since belongs to both'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'patient_merge_untangled';
    END IF;
  END LOOP;
  UPDATE patient SET replaced_by_id = NULL, active = it.loser_was_active, version = version + 1, updated_at = now()
    WHERE id = it.loser_id;
  IF it.account_id IS NOT NULL AND EXISTS (
      SELECT FROM patient WHERE id = it.survivor_id AND user_id = it.account_id) THEN
    UPDATE patient SET user_id = NULL WHERE id = it.survivor_id;
    UPDATE patient SET user_id = it.account_id WHERE id = it.loser_id;
  END IF;
  PERFORM wb_hold_visits(it.survivor_id, it.loser_id);
  SET CONSTRAINTS ALL DEFERRED;
  FOR part IN SELECT * FROM wb_of_patients() WHERE stays IS NULL LOOP
    EXECUTE format('UPDATE %1$I SET %2$I = $1 WHERE %2$I = $2 AND id IN
      (SELECT row_id FROM patient_merge_row WHERE merge_id = $3 AND table_name = %1$L)',
      part.of_table, part.of_column) USING it.loser_id, it.survivor_id, merge;
  END LOOP;
  UPDATE source_resource SET record_id = it.loser_id
    WHERE resource_type = 'Patient' AND record_id = it.survivor_id AND patient_id = it.loser_id;
  DELETE FROM patient_identifier WHERE id IN
    (SELECT row_id FROM patient_merge_row WHERE merge_id = merge AND table_name = 'patient_identifier');
  DELETE FROM patient_link WHERE id IN
    (SELECT row_id FROM patient_merge_row WHERE merge_id = merge AND table_name = 'patient_link');
  UPDATE patient SET (last_visit_at, last_visit_place_id) = (
      SELECT started_at, service_provider_id FROM encounter
      WHERE patient_id = it.survivor_id AND started_at IS NOT NULL
        AND status IN ('arrived', 'triaged', 'in-progress', 'onleave', 'finished')
      ORDER BY started_at DESC, id DESC LIMIT 1),
    version = version + 1, updated_at = now()
  WHERE id = it.survivor_id;
  SET CONSTRAINTS ALL IMMEDIATE;
END $$;
REVOKE ALL ON FUNCTION wb_merge_patients(bigint), wb_unmerge_patients(bigint) FROM PUBLIC;
"""
)

GONE = """
DROP FUNCTION wb_unmerge_patients(bigint);
DROP FUNCTION wb_merge_patients(bigint);
DROP FUNCTION wb_hold_visits(bigint, bigint);
DROP FUNCTION wb_rows_of_patient(bigint);
DROP TRIGGER patient_merge_is_final ON patient_merge;
DROP FUNCTION wb_merge_is_final();
DROP FUNCTION wb_stays_with_patient();
DROP TRIGGER patient_begins_in_use ON patient;
DROP TRIGGER patient_is_replaced ON patient;
DROP FUNCTION wb_replaced_is_final();
DROP FUNCTION wb_record_in_use();
DROP FUNCTION wb_merging();
DROP FUNCTION wb_of_patients();
"""

REWRITTEN = "DO $do$ BEGIN EXECUTE replace(pg_get_functiondef('{0}'::regproc), $a${1}$a$, $b${2}$b$); END $do$"
ONLY_MOVED = {
    "wb_appointment_is_final": (
        "(OLD.patient_id, OLD.practitioner_id, OLD.start_at, OLD.end_at)\n"
        "        IS DISTINCT FROM (NEW.patient_id, NEW.practitioner_id, NEW.start_at, NEW.end_at)",
        "(OLD.practitioner_id, OLD.start_at, OLD.end_at)\n"
        "        IS DISTINCT FROM (NEW.practitioner_id, NEW.start_at, NEW.end_at)\n"
        "        OR OLD.patient_id <> NEW.patient_id AND NOT wb_merging()",
    ),
    "wb_history_is_kept": (
        "BEGIN\n  RAISE EXCEPTION",
        "BEGIN\n"
        "  IF TG_OP = 'UPDATE' AND wb_merging() AND to_jsonb(OLD) - 'patient_id' = to_jsonb(NEW) - 'patient_id' THEN\n"
        "    RETURN NEW;\n"
        "  END IF;\n"
        "  RAISE EXCEPTION",
    ),
}
"""Locks that let a row go with its patient's other records, as it was and is: what stood there, and what stands now."""


def upgrade() -> None:
    op.create_table(
        "patient_merge",
        sa.Column("survivor_id", sa.BigInteger(), nullable=False),
        sa.Column("loser_id", sa.BigInteger(), nullable=False),
        sa.Column("merged_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("merged_by_id", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("undo_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("loser_was_active", sa.Boolean(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=True),
        sa.Column("taken", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("undone_by_id", sa.Integer(), nullable=True),
        sa.Column("undone_reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("survivor_id <> loser_id", name="patient_merge_two"),
        sa.CheckConstraint("length(trim(reason)) BETWEEN 3 AND 500", name="patient_merge_reason"),
        sa.CheckConstraint("undone_at <= undo_until", name="patient_merge_undone_in_time"),
        sa.CheckConstraint("(undone_at IS NULL) = (undone_reason = '')", name="patient_merge_undone_with_reason"),
        sa.ForeignKeyConstraint(["survivor_id"], ["patient.id"]),
        sa.ForeignKeyConstraint(["loser_id"], ["patient.id"]),
        sa.ForeignKeyConstraint(["merged_by_id"], ["ab_user.id"]),
        sa.ForeignKeyConstraint(["undone_by_id"], ["ab_user.id"]),
        sa.ForeignKeyConstraint(["account_id"], ["ab_user.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index("patient_merge_of_survivor", "patient_merge", ["survivor_id"])
    op.create_index(
        "patient_merge_once", "patient_merge", ["loser_id"], unique=True, postgresql_where=sa.text("undone_at IS NULL")
    )
    op.create_index("patient_merge_newest", "patient_merge", ["merged_at"])
    op.create_table(
        "patient_merge_row",
        sa.Column("merge_id", sa.BigInteger(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("row_id", sa.BigInteger(), nullable=False),
        sa.Column("followed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["merge_id"], ["patient_merge.id"]),
        sa.PrimaryKeyConstraint("merge_id", "table_name", "row_id"),
    )
    op.add_column("patient", sa.Column("replaced_by_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key(None, "patient", "patient", ["replaced_by_id"], ["id"])
    op.create_check_constraint(
        "patient_replaced_by_another", "patient", "replaced_by_id IS NULL OR replaced_by_id <> id AND NOT active"
    )
    op.create_index(
        "patient_replaced", "patient", ["replaced_by_id"], postgresql_where=sa.text("replaced_by_id IS NOT NULL")
    )
    # A pair that was thought to be one person stays what it was, beside what the two became to each other.
    op.drop_constraint("patient_link_patient_id_other_id_key", "patient_link", type_="unique")
    op.create_unique_constraint("patient_link_once", "patient_link", ["patient_id", "other_id", "type"])
    for table, keys in TOGETHER.items():
        for key in keys:
            op.execute(f"ALTER TABLE {table} ALTER CONSTRAINT {key} DEFERRABLE INITIALLY IMMEDIATE")
    op.execute(RULES)
    for name, (before, after) in ONLY_MOVED.items():
        op.execute(REWRITTEN.format(name, before, after))
    for table in (*MOVED, "patient_identifier"):
        op.execute(
            f"CREATE TRIGGER {table}_of_record_in_use BEFORE INSERT OR UPDATE OF patient_id ON {table} "
            "FOR EACH ROW WHEN (NEW.patient_id IS NOT NULL) EXECUTE FUNCTION wb_record_in_use()"
        )
    for table in PAPERS:
        issued = " AND OLD.prescription_id IS NOT NULL" if table == "medication_request" else ""
        op.execute(
            f"CREATE TRIGGER {table}_stays_with_patient BEFORE UPDATE OF patient_id ON {table} "
            f"FOR EACH ROW WHEN (OLD.patient_id <> NEW.patient_id{issued}) EXECUTE FUNCTION wb_stays_with_patient()"
        )


def downgrade() -> None:
    for table in PAPERS:
        op.execute(f"DROP TRIGGER {table}_stays_with_patient ON {table}")
    for table in (*MOVED, "patient_identifier"):
        op.execute(f"DROP TRIGGER {table}_of_record_in_use ON {table}")
    for name, (before, after) in ONLY_MOVED.items():
        op.execute(REWRITTEN.format(name, after, before))
    op.execute(GONE)
    for table, keys in TOGETHER.items():
        for key in keys:
            op.execute(f"ALTER TABLE {table} ALTER CONSTRAINT {key} NOT DEFERRABLE")
    op.execute("DELETE FROM patient_link WHERE type IN ('replaces', 'replaced-by')")
    op.drop_constraint("patient_link_once", "patient_link", type_="unique")
    op.create_unique_constraint("patient_link_patient_id_other_id_key", "patient_link", ["patient_id", "other_id"])
    op.drop_index("patient_replaced", table_name="patient")
    op.drop_constraint("patient_replaced_by_another", "patient")
    op.drop_column("patient", "replaced_by_id")
    op.drop_table("patient_merge_row")
    op.drop_table("patient_merge")
