"""Keys, seals, and the page that tells a genuine paper from every other."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import guard
from app.actor import service
from app.errors import Forbidden, IllegalTransition, Invalid, KeyAway, NotFound
from app.services import credentials, signing
from app.services.signing import ALPHABET, Standing
from models.prescriptions import MedicationRequest, Prescription, SigningKey
from tests import factories
from tests.dispensary import Paper, beside, issue, medicines, yesterday
from tests.factories import Hospital, stored


@pytest.fixture(scope="module")
def medicine(database: Any) -> int:
    return medicines()[0]


@pytest.fixture
def paper(hospital: Hospital, medicine: int) -> Paper:
    return issue(hospital, medicine, repeats=1)


def verdict(said: str) -> signing.Verdict:
    with guard.acting_as(service("prescription-check")):
        return signing.check(guard.session(), said)


def keep(action: Callable[[Any], Any]) -> Any:
    """Do something about keys as the application does."""
    with guard.acting_as(service("setup")), guard.unit_of_work() as session:
        return action(session)


def token_of(paper: Paper) -> str:
    return paper.address.rpartition("/")[2]


def test_a_sealed_paper_is_genuine_by_its_square_and_by_its_code(paper: Paper, hospital: Hospital) -> None:
    for said in (paper.address, token_of(paper), paper.code, signing.spelled(paper.code), paper.code.lower()):
        found = verdict(said)
        assert found.standing == Standing.VALID, said
        assert [(str(left.quantity), left.unit) for left in found.left] == [("42", "{tbl}")]
        assert "Doctor" in found.prescriber or found.prescriber


def test_the_address_holds_nothing_of_the_patient(paper: Paper, hospital: Hospital) -> None:
    row = stored(Prescription, paper.id)
    assert len(paper.address) < 170
    for word in (str(row["patient_id"]), "Loratadine", str(paper.id) + "."):
        assert f"/{word}" not in paper.address
    assert paper.address.startswith("http://localhost/rx/")


@pytest.mark.parametrize("part", [0, 1, 2])
def test_every_letter_of_the_address_counts(paper: Paper, part: int) -> None:
    parts = token_of(paper).split(".")
    for at in (0, len(parts[part]) // 2, len(parts[part]) - 1):
        for other in "AB9":
            if parts[part][at] == other:
                continue
            changed = list(parts)
            changed[part] = parts[part][:at] + other + parts[part][at + 1 :]
            assert verdict(".".join(changed)) is signing.NOT_GENUINE


@pytest.mark.parametrize("said", [".", "a.b.c", "x" * 5000, "é" * 12, "../../etc", "a/b.c/d"])
def test_nonsense_is_not_genuine(said: str, database: Any) -> None:
    assert verdict(said) is signing.NOT_GENUINE


@pytest.mark.parametrize("said", ["", "abc", "http://localhost/rx/", "UUUUUUUUUUUU", "7K3M Q9RT 2XB"])
def test_what_is_no_code_is_told(said: str, database: Any) -> None:
    with pytest.raises(Invalid) as refused:
        verdict(said)
    assert refused.value.field == "code"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE medication_request SET quantity = 210 WHERE id = %s",
        "UPDATE medication_request SET repeats = 9 WHERE id = %s",
        "UPDATE medication_request SET valid_until = valid_until + 1 WHERE id = %s",
        'UPDATE medication_request SET dosage_instruction = \'[{"text": "Take 9"}]\' WHERE id = %s',
        "UPDATE medication_request SET substitution_allowed = false WHERE id = %s",
        "UPDATE medication_request SET code_display = 'Morphine' WHERE id = %s",
        "UPDATE medication_request SET prescription_id = NULL WHERE id = %s",
        "UPDATE prescription p SET short_code = '000000000000' FROM medication_request r WHERE r.prescription_id = p.id AND r.id = %s",
        "UPDATE prescription p SET issued_at = issued_at - interval '1 day' FROM medication_request r WHERE r.prescription_id = p.id AND r.id = %s",
    ],
)
def test_rows_that_were_altered_beneath_are_not_genuine(change: str, paper: Paper) -> None:
    assert verdict(paper.address).standing == Standing.VALID
    beside(change, paper.orders[0])
    assert verdict(paper.address) is signing.NOT_GENUINE


def test_another_order_on_a_paper_makes_it_worthless(hospital: Hospital, medicine: int) -> None:
    one, other = issue(hospital, medicine), issue(hospital, medicine)
    beside("UPDATE medication_request SET prescription_id = %s WHERE id = %s", one.id, other.orders[0])
    assert verdict(one.address) is signing.NOT_GENUINE
    assert verdict(other.address) is signing.NOT_GENUINE


def test_a_paper_of_another_key_is_not_genuine(paper: Paper, hospital: Hospital, medicine: int) -> None:
    keep(signing.rotate)
    other = issue(hospital, medicine)
    swapped = token_of(paper).split(".")
    swapped[1] = token_of(other).split(".")[1]
    assert verdict(".".join(swapped)) is signing.NOT_GENUINE


def test_a_retired_key_still_holds_and_a_revoked_one_does_not(paper: Paper, hospital: Hospital, medicine: int) -> None:
    kid = token_of(paper).split(".")[1]
    new = keep(lambda session: signing.rotate(session).kid)
    assert new != kid
    assert verdict(paper.address).standing == Standing.VALID
    later = issue(hospital, medicine)
    assert f".{new}." in later.address
    with pytest.raises(Invalid):
        keep(lambda session: signing.revoke(session, kid, reason=" "))
    with pytest.raises(NotFound):
        keep(lambda session: signing.revoke(session, "NOSUCHKE", reason="lost"))
    keep(lambda session: signing.revoke(session, kid, reason="The machine was stolen"))
    assert verdict(paper.address) is signing.NOT_GENUINE
    assert verdict(paper.code) is signing.NOT_GENUINE
    assert verdict(later.address).standing == Standing.VALID
    with pytest.raises(IllegalTransition):
        keep(lambda session: signing.revoke(session, kid, reason="once more"))


def test_after_the_current_key_is_revoked_the_next_paper_has_a_new_one(hospital: Hospital, medicine: int) -> None:
    first = issue(hospital, medicine)
    kid = token_of(first).split(".")[1]
    keep(lambda session: signing.revoke(session, kid, reason="Lost"))
    signing.discard(kid)
    second = issue(hospital, medicine)
    assert token_of(second).split(".")[1] != kid
    assert verdict(second.address).standing == Standing.VALID


def test_a_key_whose_file_is_away_signs_nothing(hospital: Hospital, medicine: int) -> None:
    kid = token_of(issue(hospital, medicine)).split(".")[1]
    file = signing.place().folder / f"{kid}.pem"
    away = file.rename(file.with_suffix(".away"))
    before = factories.number_of(Prescription)
    try:
        with pytest.raises(KeyAway):
            issue(hospital, medicine)
    finally:
        away.rename(file)
    assert factories.number_of(Prescription) == before


def test_private_halves_are_files_nobody_else_reads(paper: Paper) -> None:
    kid = token_of(paper).split(".")[1]
    file = signing.place().folder / f"{kid}.pem"
    assert file.stat().st_mode & 0o777 == 0o600
    assert signing.place().folder.stat().st_mode & 0o077 == 0
    assert b"PRIVATE" not in bytes(str(stored(SigningKey, 1)), "utf-8")


def test_first_papers_at_once_agree_on_one_key(hospital: Hospital, medicine: int) -> None:
    keep(lambda session: signing.revoke(session, signing.current_key(session).kid, reason="To begin anew"))
    done: list[Paper] = []
    start = threading.Barrier(4)

    def one() -> None:
        start.wait()
        try:
            done.append(issue(hospital, medicine))
        finally:
            guard.session.remove()

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert len({token_of(paper).split(".")[1] for paper in done}) == 1
    assert factories.number_of(SigningKey, SigningKey.retired_at.is_(None)) == 1
    assert {verdict(paper.address).standing for paper in done} == {Standing.VALID}


def test_only_administrators_keep_keys(hospital: Hospital, acting: Any) -> None:
    before = factories.number_of(SigningKey)
    for username in ("doctor", "pharmacist", "nurse"):
        with acting(username), pytest.raises(Forbidden), guard.unit_of_work() as session:
            signing.rotate(session)
    assert factories.number_of(SigningKey) == before


def test_a_paper_is_sealed_once(paper: Paper, hospital: Hospital, acting: Any) -> None:
    before = stored(Prescription, paper.id)
    with acting("doctor"), pytest.raises(IllegalTransition), guard.unit_of_work() as session:
        signing.seal(session, session.get_one(Prescription, paper.id))
    assert stored(Prescription, paper.id) == before


# ---- short codes ---------------------------------------------------------------------------------------------------


def test_one_wrong_letter_of_a_code_is_told(paper: Paper) -> None:
    for at in range(signing.CODE_LETTERS):
        for other in ALPHABET:
            if other != paper.code[at]:
                with pytest.raises(Invalid):
                    signing.code_in(paper.code[:at] + other + paper.code[at + 1 :])


def test_letters_that_look_alike_are_the_same() -> None:
    letters = "0110ABCDEFG"
    code = letters + signing._check_letter(letters)
    assert signing.code_in(f"oiLO-abcd-efg{code[-1]}") == code


def test_a_code_of_nobody_is_not_genuine(database: Any) -> None:
    assert verdict(signing._new_code()) is signing.NOT_GENUINE


def test_codes_are_not_alike(database: Any) -> None:
    made = {signing._new_code() for _ in range(500)}
    assert len(made) == 500
    assert all(signing.code_in(code) == code for code in made)


# ---- how it stands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "standing"),
    [
        ("cancelled", Standing.CANCELLED),
        ("stopped", Standing.CANCELLED),
        ("entered-in-error", Standing.CANCELLED),
        ("completed", Standing.DISPENSED),
        ("on-hold", Standing.ON_HOLD),
        ("active", Standing.VALID),
    ],
)
def test_the_state_of_a_paper(status: str, standing: Standing, paper: Paper) -> None:
    beside("UPDATE medication_request SET status = %s WHERE id = %s", status, paper.orders[0])
    found = verdict(paper.address)
    assert found.standing == standing
    assert (found.left[0].quantity > 0) == (status in ("active", "on-hold"))


def test_a_paper_of_the_past_has_expired(hospital: Hospital, medicine: int) -> None:
    old = issue(hospital, medicine, valid_from=yesterday(), valid_until=yesterday())
    found = verdict(old.address)
    assert found.standing == Standing.EXPIRED
    assert found.left[0].quantity == 0


def test_one_of_two_orders_dispensed_is_partly(hospital: Hospital, medicine: int) -> None:
    two = issue(hospital, medicine, lines=2)
    beside("UPDATE medication_request SET dispensed = quantity, status = 'completed' WHERE id = %s", two.orders[0])
    found = verdict(two.address)
    assert found.standing == Standing.PARTLY
    assert [int(left.quantity) for left in found.left] == [0, 21]


# ---- the page ------------------------------------------------------------------------------------------------------


def path_of(paper: Paper) -> str:
    return f"/rx/{token_of(paper)}"


def test_anybody_with_the_paper_is_told_little(
    paper: Paper, browser: Callable[[], FlaskClient], trail_lines: Any, hospital: Hospital
) -> None:
    trail_lines.forget()
    page = browser().get(path_of(paper))
    assert page.status_code == 200
    for word in ("Valid", "42 tablets", "Prescriber"):
        assert word in page.text
    patient = hospital.patients[4]
    for word in ("Loratadine", factories.NAMES[4][0], factories.NAMES[4][1] + " ", "mrn"):
        assert word not in page.text
    assert 'name="robots" content="noindex"' in page.text
    assert 'name="referrer" content="no-referrer"' in page.text
    assert page.headers["Cache-Control"] == "no-store"
    lines = [event for event in trail_lines.events() if event["patient_id"] == patient]
    assert lines, "the trail does not know that a paper was looked at"
    assert "prescription-check" in str(trail_lines.entries())
    assert "10.9." in str(trail_lines.entries()), "from where is not in the trail"


def test_the_unknown_and_the_forged_look_alike(
    paper: Paper, browser: Callable[[], FlaskClient], trail_lines: Any
) -> None:
    parts = token_of(paper).split(".")
    forged = f"/rx/{parts[0]}.{parts[1]}.{'A' * 86}"
    unknown = f"/rx/{'A' * 22}.{parts[1]}.{parts[2]}"
    answers = [browser().get(address) for address in (forged, unknown, f"/rx/{signing._new_code()}")]
    bodies = [answer.text.split("<main")[1].split("</main>")[0] for answer in answers]
    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert "Not genuine" in bodies[0]
    assert bodies[0] == bodies[1] == bodies[2]
    assert "Prescriber" not in bodies[0]
    assert str(trail_lines.events()).count("NotFound") == 3, "the trail does not know that forgeries were looked up"


def test_a_code_is_typed_and_a_typo_is_told(paper: Paper, browser: Callable[[], FlaskClient]) -> None:
    client = browser()
    page = client.get("/rx/").text
    assert "Check a prescription" in page
    assert "Valid" in client.post("/rx/", data={"code": signing.spelled(paper.code)}).text
    other = "1" if paper.code[3] != "1" else "2"
    wrong = client.post("/rx/", data={"code": paper.code[:3] + other + paper.code[4:]})
    assert wrong.status_code == 422
    assert "not as on the paper" in wrong.text
    assert paper.code[:3] + other in wrong.text


def test_whoever_guesses_is_stopped(paper: Paper, browser: Callable[[], FlaskClient]) -> None:
    client = browser()
    answers = [client.get(f"/rx/{signing._new_code()}").status_code for _ in range(31)]
    assert answers[:30] == [404] * 30
    assert answers[30] == 429
    refused = client.get(path_of(paper))
    assert refused.status_code == 429
    assert "Retry-After" in refused.headers
    assert "Prescriber" not in refused.text
    assert browser().get(path_of(paper)).status_code == 200
    assert credentials.OF_LINKS


def test_administrators_see_and_change_keys(paper: Paper, client_as: Callable[[str], Any]) -> None:
    client = client_as("admin")
    page = client.page("/signing-keys/")
    kid = token_of(paper).split(".")[1]
    assert kid in page
    assert "PRIVATE" not in page
    token = factories_csrf(page)
    short = client.post(f"/signing-keys/{kid}/revoke", data={"csrf_token": token, "reason": "x"})
    assert short.status_code == 422
    assert stored_key(kid)["revoked_at"] is None
    done = client.post(f"/signing-keys/{kid}/revoke", data={"csrf_token": token, "reason": "Stolen machine"})
    assert done.status_code == 302
    assert stored_key(kid)["revoked_reason"] == "Stolen machine"
    assert not (signing.place().folder / f"{kid}.pem").exists()
    before = factories.number_of(SigningKey)
    assert client.post("/signing-keys/rotate", data={"csrf_token": token}).status_code == 302
    assert factories.number_of(SigningKey) == before + 1
    for username in ("doctor", "pharmacist"):
        assert client_as(username).get("/signing-keys/").status_code == 403


def stored_key(kid: str) -> Any:
    from sqlalchemy import select

    with guard.engine().connect() as connection:
        table = SigningKey.__table__
        return connection.execute(select(table).where(table.c.kid == kid)).mappings().one()


def factories_csrf(page: str) -> str:
    from tests.conftest import csrf_of

    return csrf_of(page)


def test_two_processes_make_their_folder_and_keys_side_by_side(tmp_path: Path) -> None:
    """A folder that is not there yet, and two who want it at once."""
    code = (
        "import sys, pathlib\n"
        "from app.services import signing\n"
        "signing.connect(pathlib.Path(sys.argv[1]), 'http://localhost')\n"
        "class Session:\n"
        "    def add(self, key): print(key.kid)\n"
        "    def flush(self): pass\n"
        "signing._make(Session())\n"
    )
    folder = tmp_path / "new" / "keys"
    made = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    kids = {process.communicate(timeout=100)[0].strip() for process in made}
    assert [process.returncode for process in made] == [0, 0]
    assert {file.stem for file in folder.iterdir()} == kids
    assert len(kids) == 2


def test_nobody_can_draw_a_request_into_the_sealed_paper(paper: Paper) -> None:
    """What is sealed cannot be changed by the application's own account either."""
    import psycopg

    address = guard.engine().url.set(drivername="postgresql").render_as_string(hide_password=False)
    for statement in (
        "UPDATE prescription SET short_code = 'X' WHERE id = %s",
        "UPDATE prescription SET signature = '' WHERE id = %s",
    ):
        with psycopg.connect(address) as connection, pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(statement.encode(), [paper.id])
    assert stored(MedicationRequest, paper.orders[0])["prescription_id"] == paper.id
