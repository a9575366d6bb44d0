"""The Merkle tree against RFC 6962's own definition, and notes against their format."""

from __future__ import annotations

import base64
import hashlib
import stat
import threading
from pathlib import Path

import pytest

from app import tree
from app.tree import Checkpoint, Frontier


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, as it stands there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


@pytest.mark.parametrize("size", [*range(70), 127, 128, 129, 255, 256, 1000])
def test_the_root_is_that_of_the_standard(size: int) -> None:
    lines = [f"line {number}".encode() for number in range(size)]
    frontier = Frontier()
    for line in lines:
        frontier.add(tree.leaf_of(line))
        frontier = Frontier.from_bytes(frontier.size, frontier.to_bytes())
    assert (frontier.size, frontier.root()) == (size, mth(lines))


def test_a_frontier_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="peaks"):
        Frontier.from_bytes(3, b"\0" * 32)
    with pytest.raises(ValueError, match="piece"):
        Frontier.from_bytes(1, b"\0" * 31)


@pytest.fixture
def signer(tmp_path: Path) -> tree.Signer:
    return tree.key_at(tmp_path / "key.pem")


def test_a_note_has_the_shape_of_c2sp_and_says_what_was_signed(signer: tree.Signer) -> None:
    said = Checkpoint(17, hashlib.sha256(b"x").digest())
    note = signer.note(said)
    origin, size, root, blank, signature, end = note.split("\n")
    assert (origin, size, blank, end) == ("wardbook.trail", "17", "", "")
    assert base64.b64decode(root) == said.root
    assert signature.startswith("— wardbook.trail ")
    assert len(base64.b64decode(signature.rsplit(" ", 1)[1])) == 4 + 64
    assert signer.read(note) == said
    name, key_id, key = signer.text.split("+", 2)
    raw = base64.b64decode(key)
    assert hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4].hex() == key_id


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note.replace("\n17\n", "\n18\n"),
        lambda note: note.replace("wardbook.trail\n17", "another.trail\n17"),
        lambda note: note[: note.index("—")],
        lambda note: note.replace("— wardbook.trail", "— somebody.else"),
        lambda note: note.replace("\n17\n", "\n-17\n"),
        lambda _note: "",
    ],
)
def test_a_spoilt_note_is_refused(signer: tree.Signer, spoil: object) -> None:
    note = signer.note(Checkpoint(17, b"r" * 32))
    with pytest.raises(ValueError, match=r"checkpoint|signature"):
        signer.read(spoil(note))  # type: ignore[operator]


def test_a_note_of_another_key_is_refused(signer: tree.Signer, tmp_path: Path) -> None:
    other = tree.key_at(tmp_path / "other.pem")
    with pytest.raises(ValueError, match="signature"):
        signer.read(other.note(Checkpoint(1, b"r" * 32)))


def test_the_key_is_made_once_and_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key.pem"
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(tree.key_at(path).text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["key.pem"]


def test_the_witness_s_file_only_grows_and_a_torn_end_is_left_out(tmp_path: Path, signer: tree.Signer) -> None:
    witness = tree.FileWitness(tmp_path / "far" / "witness")
    assert list(witness.notes()) == []
    notes = [signer.note(Checkpoint(size, bytes([size]) * 32)) for size in (1, 2, 3)]
    for note in notes:
        witness.take(note)
    with witness.path.open("a") as file:
        file.write(notes[0][:30])
    witness.take(notes[1])
    assert list(witness.notes()) == [*notes, notes[1]]


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("file:/var/log/witness", tree.FileWitness),
        ("syslog://127.0.0.1:514", tree.SyslogWitness),
        ("smtp://127.0.0.1:25/notary@example.org", tree.MailWitness),
    ],
)
def test_a_witness_by_its_address(address: str, kind: type) -> None:
    witness = tree.witness_at(address)
    assert isinstance(witness, kind)
    if isinstance(witness, tree.SyslogWitness):
        witness.sender.close()


@pytest.mark.parametrize("address", ["", "witness.log", "file:", "http://x.example/", "smtp://host/nobody", "syslog:"])
def test_what_is_no_witness_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="no witness"):
        tree.witness_at(address)
