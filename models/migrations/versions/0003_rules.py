"""What the database keeps up by itself: last visits, name words, the policy's number, an append-only trail"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

POLICY_TABLES = (
    "ab_role",
    "ab_user_role",
    "ab_permission_view",
    "ab_permission_view_role",
    "ab_group_role",
    "ab_user_group",
)

RULES = r"""
CREATE FUNCTION wb_last_visit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE patient SET last_visit_at = NEW.started_at, last_visit_place_id = NEW.service_provider_id
  WHERE id = NEW.patient_id AND NEW.started_at IS NOT NULL
    AND NEW.status IN ('arrived', 'triaged', 'in-progress', 'onleave', 'finished')
    AND (last_visit_at IS NULL OR last_visit_at <= NEW.started_at);
  RETURN NULL;
END $$;
CREATE TRIGGER encounter_last_visit AFTER INSERT OR UPDATE ON encounter
  FOR EACH ROW EXECUTE FUNCTION wb_last_visit();

CREATE FUNCTION wb_name_tokens() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO name_token (token)
  SELECT DISTINCT t FROM regexp_split_to_table(NEW.search_name, '[^[:alnum:]]+') AS t
  WHERE length(t) > 2 AND t !~ '[0-9]'
    AND NOT EXISTS (SELECT FROM name_token WHERE token = t)
  ORDER BY t
  ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;
CREATE TRIGGER patient_name_tokens AFTER INSERT OR UPDATE OF family, second_family, given, name_in_use, other_names
  ON patient FOR EACH ROW EXECUTE FUNCTION wb_name_tokens();

INSERT INTO policy_version (id, number) VALUES (1, 1);
CREATE FUNCTION wb_policy_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE policy_version SET number = number + 1 WHERE id = 1;
  RETURN NULL;
END $$;

INSERT INTO audit_drain (id, drained_at, events) VALUES (1, now(), 0);
CREATE FUNCTION wb_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the trail is never rewritten' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER audit_event_is_final BEFORE UPDATE OR DELETE ON audit_event
  FOR EACH ROW EXECUTE FUNCTION wb_refuse();
CREATE TRIGGER audit_event_is_kept BEFORE TRUNCATE ON audit_event
  FOR EACH STATEMENT EXECUTE FUNCTION wb_refuse();

CREATE TABLE audit_event_default PARTITION OF audit_event DEFAULT;

CREATE FUNCTION wb_audit_partitions(months int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  first date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
  month date;
BEGIN
  FOR i IN 0..months LOOP
    month := first + make_interval(months => i);
    IF to_regclass(format('audit_event_%s', to_char(month, 'YYYYMM'))) IS NULL THEN
    -- Lines of a coming month in the default partition, from a clock that was wrong, keep only that month there.
    BEGIN
      EXECUTE format('CREATE TABLE audit_event_%s PARTITION OF audit_event FOR VALUES FROM (%L) TO (%L)',
        to_char(month, 'YYYYMM'), month::text || ' 00:00:00+00', (month + interval '1 month')::date::text || ' 00:00:00+00');
    EXCEPTION WHEN check_violation THEN
      RAISE WARNING 'the default partition holds lines of %', to_char(month, 'YYYY-MM');
    END;
    END IF;
  END LOOP;
END $$;
SELECT wb_audit_partitions(2);
"""


def upgrade() -> None:
    op.execute(RULES)
    for table in POLICY_TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_policy AFTER INSERT OR UPDATE OR DELETE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION wb_policy_changed()"
        )


def downgrade() -> None:
    for table in POLICY_TABLES:
        op.execute(f"DROP TRIGGER {table}_policy ON {table}")
    op.execute("DROP FUNCTION wb_audit_partitions(int)")
    op.execute("DROP TRIGGER audit_event_is_kept ON audit_event")
    op.execute("DROP TRIGGER audit_event_is_final ON audit_event")
    op.execute("DROP FUNCTION wb_refuse()")
    op.execute("DROP FUNCTION wb_policy_changed()")
    op.execute("DROP TRIGGER patient_name_tokens ON patient")
    op.execute("DROP FUNCTION wb_name_tokens()")
    op.execute("DROP TRIGGER encounter_last_visit ON encounter")
    op.execute("DROP FUNCTION wb_last_visit()")
