"""Access: rows and masks of roles, credentials, emergency access, figures, and what no administrator can grant away"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

RULES = r"""
-- An account has a credential from the beginning; what ends its sessions raises the credential's generation.
INSERT INTO credential (user_id) SELECT id FROM ab_user;
CREATE FUNCTION wb_credential() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO credential (user_id, password_changed_at) VALUES (NEW.id, now());
  RETURN NULL;
END $$;
CREATE TRIGGER ab_user_credential AFTER INSERT ON ab_user FOR EACH ROW EXECUTE FUNCTION wb_credential();

CREATE FUNCTION wb_account_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE credential SET generation = generation + 1,
    password_changed_at = CASE WHEN OLD.password IS DISTINCT FROM NEW.password THEN now() ELSE password_changed_at END
  WHERE user_id = NEW.id;
  RETURN NULL;
END $$;
CREATE TRIGGER ab_user_generation AFTER UPDATE ON ab_user FOR EACH ROW
  WHEN (OLD.password IS DISTINCT FROM NEW.password OR OLD.active IS DISTINCT FROM NEW.active)
  EXECUTE FUNCTION wb_account_changed();

CREATE FUNCTION wb_roles_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE credential SET generation = generation + 1 WHERE user_id = coalesce(NEW.user_id, OLD.user_id);
  RETURN NULL;
END $$;
CREATE TRIGGER ab_user_role_generation AFTER INSERT OR UPDATE OR DELETE ON ab_user_role
  FOR EACH ROW EXECUTE FUNCTION wb_roles_changed();
CREATE TRIGGER ab_user_group_generation AFTER INSERT OR UPDATE OR DELETE ON ab_user_group
  FOR EACH ROW EXECUTE FUNCTION wb_roles_changed();

-- What holds whatever the tables of roles say; looked at when a change of them is committed.  Every change of them
-- has updated the one row of policy_version first, so two of them never look at once.
CREATE VIEW role_power AS
  SELECT r.id AS role_id, r.name,
    coalesce(bool_or(p.name IN ('can_create', 'can_update', 'can_delete') AND m.name = 'Role'), false) AS configures,
    coalesce(bool_or(p.name = 'can_update' AND m.name = 'Role'), false) AS changes_roles,
    coalesce(bool_or(p.name = 'can_update' AND m.name = 'User'), false) AS changes_accounts,
    coalesce(bool_or(m.name IN ('ClinicalNote', 'DocumentReference', 'SourceResource')), false) AS notes
  FROM ab_role r
  LEFT JOIN role_setting s ON s.role_id = r.id
  LEFT JOIN ab_permission_view_role pvr ON pvr.role_id = r.id
  LEFT JOIN ab_permission_view pv ON pv.id = pvr.permission_view_id
  LEFT JOIN ab_permission p ON p.id = pv.permission_id
  LEFT JOIN ab_view_menu m ON m.id = pv.view_menu_id
  WHERE s.retired_at IS NULL
  GROUP BY r.id, r.name;

CREATE VIEW account_power AS
  SELECT u.id AS user_id, u.first_name || ' ' || u.last_name AS name,
    bool_or(w.configures) AS configures, bool_or(w.changes_accounts) AS changes_accounts, bool_or(w.notes) AS notes,
    bool_or(w.changes_roles) AND bool_or(w.changes_accounts) AS administers
  FROM ab_user u
  JOIN (SELECT user_id, role_id FROM ab_user_role
        UNION SELECT ug.user_id, gr.role_id FROM ab_user_group ug JOIN ab_group_role gr USING (group_id)) held
    ON held.user_id = u.id
  JOIN role_power w ON w.role_id = held.role_id
  WHERE u.active
  GROUP BY u.id;

CREATE FUNCTION wb_policy_holds() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  named text;
BEGIN
  SELECT string_agg(name, ', ') INTO named FROM role_power WHERE configures AND notes;
  IF named IS NOT NULL THEN
    RAISE check_violation USING MESSAGE = 'a role configures roles and reads notes',
      CONSTRAINT = 'policy_roles_or_notes', DETAIL = named;
  END IF;
  SELECT string_agg(name, ', ') INTO named FROM (
    SELECT name FROM account_power WHERE configures AND notes ORDER BY name LIMIT 5) few;
  IF named IS NOT NULL THEN
    RAISE check_violation USING MESSAGE = 'somebody configures roles and reads notes',
      CONSTRAINT = 'policy_one_person_both', DETAIL = named;
  END IF;
  IF EXISTS (SELECT FROM account_power) AND NOT EXISTS (SELECT FROM account_power WHERE administers) THEN
    RAISE check_violation USING MESSAGE = 'nobody is left to configure roles', CONSTRAINT = 'policy_last_administrator';
  END IF;
  IF EXISTS (SELECT FROM role_grant g JOIN ab_role r ON r.id = g.role_id WHERE r.name = 'Patient' AND g.rows <> 'self'
      AND g.resource NOT IN ('Organization', 'Branch', 'Practitioner', 'Room')) THEN
    RAISE check_violation USING MESSAGE = 'patients see their own records', CONSTRAINT = 'policy_patient_rows';
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER policy_holds AFTER UPDATE ON policy_version DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION wb_policy_holds();
CREATE TRIGGER role_grant_policy AFTER INSERT OR UPDATE OR DELETE ON role_grant
  FOR EACH STATEMENT EXECUTE FUNCTION wb_policy_changed();
CREATE TRIGGER role_setting_policy AFTER INSERT OR UPDATE OR DELETE ON role_setting
  FOR EACH STATEMENT EXECUTE FUNCTION wb_policy_changed();
CREATE TRIGGER ab_user_policy AFTER UPDATE OF active OR DELETE ON ab_user
  FOR EACH STATEMENT EXECUTE FUNCTION wb_policy_changed();

-- What a review came to, and what was said when the glass was broken, is not said again differently.
CREATE FUNCTION wb_emergency_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' OR OLD.reviewed_at IS NOT NULL OR NEW.ends_at > OLD.ends_at
    OR (NEW.patient_id, NEW.user_id, NEW.reason, NEW.justification, NEW.started_at)
      IS DISTINCT FROM (OLD.patient_id, OLD.user_id, OLD.reason, OLD.justification, OLD.started_at) THEN
    RAISE EXCEPTION 'an emergency access is never rewritten' USING ERRCODE = 'restrict_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER emergency_access_is_final BEFORE UPDATE OR DELETE ON emergency_access
  FOR EACH ROW EXECUTE FUNCTION wb_emergency_is_final();

-- Counts for dashboards: nobody is named in them.
CREATE VIEW figure AS
  SELECT 'registrations' AS name, coalesce(p.registered_at_id, 0) AS branch_id,
    (p.created_at AT TIME ZONE coalesce(b.time_zone, 'UTC'))::date AS day, count(*) AS count
  FROM patient p LEFT JOIN branch b ON b.id = p.registered_at_id
  WHERE p.created_at >= now() - interval '30 days' GROUP BY 2, 3
  UNION ALL
  SELECT 'unidentified', coalesce(registered_at_id, 0), current_date, count(*)
  FROM patient WHERE temporary AND active GROUP BY 2
  UNION ALL
  SELECT 'visits', coalesce(e.branch_id, 0), (e.started_at AT TIME ZONE coalesce(b.time_zone, 'UTC'))::date, count(*)
  FROM encounter e LEFT JOIN branch b ON b.id = e.branch_id
  WHERE e.started_at >= now() - interval '30 days' AND e.started_at <= now() GROUP BY 2, 3
  UNION ALL
  SELECT 'staff', coalesce(home_branch_id, 0), current_date, count(*)
  FROM practitioner WHERE active AND user_id IS NOT NULL GROUP BY 2
  UNION ALL
  SELECT 'rooms', branch_id, current_date, count(*) FROM room WHERE active GROUP BY 2
  UNION ALL
  SELECT 'looks', coalesce(branch_id, 0), current_date, count(*)
  FROM (SELECT branch_id FROM audit_event WHERE recorded >= now() - interval '24 hours' LIMIT 10001) few GROUP BY 2
  UNION ALL
  SELECT 'refusals', coalesce(branch_id, 0), current_date, count(*)
  FROM (SELECT branch_id FROM audit_event WHERE recorded >= now() - interval '24 hours' AND outcome > 0 LIMIT 10001) few
  GROUP BY 2;
"""

GONE = """
DROP VIEW figure;
DROP TRIGGER emergency_access_is_final ON emergency_access;
DROP FUNCTION wb_emergency_is_final();
DROP TRIGGER ab_user_policy ON ab_user;
DROP TRIGGER policy_holds ON policy_version;
DROP FUNCTION wb_policy_holds();
DROP VIEW account_power;
DROP VIEW role_power;
DROP TRIGGER ab_user_group_generation ON ab_user_group;
DROP TRIGGER ab_user_role_generation ON ab_user_role;
DROP FUNCTION wb_roles_changed();
DROP TRIGGER ab_user_generation ON ab_user;
DROP FUNCTION wb_account_changed();
DROP TRIGGER ab_user_credential ON ab_user;
DROP FUNCTION wb_credential();
"""


def upgrade() -> None:
    op.create_table(
        "role_grant",
        sa.Column("role_id", sa.Integer(), nullable=False),
        sa.Column("resource", sa.String(length=64), nullable=False),
        sa.Column("rows", sa.String(length=16), nullable=False),
        sa.Column("kinds", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("masked", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.CheckConstraint("rows IN ('chain', 'own_branch', 'care_team', 'own', 'self')", name="role_grant_rows"),
        sa.ForeignKeyConstraint(["role_id"], ["ab_role.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("role_id", "resource"),
    )
    op.create_table(
        "role_setting",
        sa.Column("role_id", sa.Integer(), nullable=False),
        sa.Column("second_factor", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["role_id"], ["ab_role.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("role_id"),
    )
    op.create_table(
        "credential",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("totp_secret", sa.LargeBinary(), nullable=True),
        sa.Column("totp_confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("totp_step", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("recovery_codes", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("password_changed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["ab_user.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id"),
    )
    op.create_table(
        "emergency_access",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("justification", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reviewed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reviewed_by_id", sa.Integer(), nullable=True),
        sa.Column("finding", sa.String(length=16), nullable=True),
        sa.Column("review_note", sa.Text(), nullable=False),
        sa.Column("escalated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fhir_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("reason IN ('ETREAT', 'COC', 'PATRQT', 'BTG')", name="emergency_access_reason"),
        sa.CheckConstraint("length(trim(justification)) BETWEEN 15 AND 1000", name="emergency_access_justified"),
        sa.CheckConstraint(
            "ends_at > started_at AND ends_at <= started_at + interval '60 minutes'", name="emergency_access_an_hour"
        ),
        sa.CheckConstraint("finding IN ('justified', 'unjustified')", name="emergency_access_finding"),
        sa.CheckConstraint(
            "(reviewed_at IS NULL) = (reviewed_by_id IS NULL) AND (reviewed_at IS NULL) = (finding IS NULL)",
            name="emergency_access_review_whole",
        ),
        sa.CheckConstraint("reviewed_by_id <> user_id", name="emergency_access_reviewed_by_another"),
        sa.ForeignKeyConstraint(["patient_id"], ["patient.id"]),
        sa.ForeignKeyConstraint(["reviewed_by_id"], ["ab_user.id"]),
        sa.ForeignKeyConstraint(["user_id"], ["ab_user.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("fhir_id"),
    )
    op.create_index("ix_emergency_access_patient_id", "emergency_access", ["patient_id"])
    op.create_index("emergency_access_now", "emergency_access", ["user_id", "ends_at"])
    op.create_index(
        "emergency_access_waiting", "emergency_access", ["started_at"], postgresql_where=sa.text("reviewed_at IS NULL")
    )
    op.create_index("patient_by_registration", "patient", ["created_at"])
    op.create_index("encounter_by_start", "encounter", ["started_at"])
    op.execute(RULES)


def downgrade() -> None:
    op.execute(GONE)
    op.drop_index("encounter_by_start", "encounter")
    op.drop_index("patient_by_registration", "patient")
    for table in ("emergency_access", "credential", "role_setting", "role_grant"):
        op.drop_table(table)
