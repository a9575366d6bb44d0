"""HL7 v2 as plain values: who it is about, which results it has, what it proposes. Nothing here knows the database."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any

import hl7

CHARSETS = {
    "": "utf-8",
    "ASCII": "ascii",
    "UNICODE": "utf-8",
    "UNICODE UTF-8": "utf-8",
    **{f"8859/{nth}": f"iso8859-{nth}" for nth in range(1, 16) if nth != 12},
    "ISO IR87": "iso2022_jp",
    "GB 18030-2000": "gb18030",
    "BIG-5": "big5",
}
"""Table 0211, MSH-18."""
START, END = b"\x0b", b"\x1c\r"
"""How a message begins and ends on the wire (MLLP)."""
MOST = 1_000_000
"""Bytes of one message at most."""


class Unreadable(ValueError):
    """What came is no HL7 v2 message; `code` is of table 0357."""

    def __init__(self, sentence: str, code: str = "207") -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Person:
    """Who a message says it is about (PID)."""

    identifiers: tuple[tuple[str, str, str], ...] = ()
    """Value, assigning authority, type of each; CX of PID-3, PID-2 and PID-4."""
    family: str = ""
    given: str = ""
    born: date | None = None
    sex: str = ""
    """Table 0001."""
    phones: tuple[str, ...] = ()
    address: tuple[str, ...] = ()
    """XAD: street, further, town, region, postal code, country; empty where it is not said."""

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it, for somebody to match by hand."""
        return {
            "identifiers": [list(each) for each in self.identifiers],
            "family": self.family,
            "given": self.given,
            "born": self.born.isoformat() if self.born else None,
            "sex": self.sex,
            "phones": list(self.phones),
            "address": list(self.address),
        }


@dataclass(frozen=True)
class Result:
    """An OBX, with what its OBR and its NTEs say."""

    position: int
    """Which OBX of the message, from 1."""
    status: str
    """Table 0085, OBX-11."""
    kind: str
    """Table 0125, OBX-2."""
    code: str
    code_display: str
    code_system: str
    sub_id: str
    values: tuple[str, ...]
    """OBX-5, each repetition, unescaped; components of coded ones by ^."""
    unit: str
    reference: str
    interpretation: str
    """Table 0078, OBX-8, the first of them."""
    observed_at: datetime | None
    order: str
    """What tells the order from others: OBR-3, or else OBR-2."""
    placer: str
    """OBR-2: our own number of the specimen, where we ordered it."""
    panel: str
    panel_display: str
    panel_status: str
    """Table 0123, OBR-25."""
    note: str = ""


@dataclass(frozen=True)
class Message:
    """A message that could be read."""

    sender: str
    control_id: str
    kind: str
    """MSH-9 as ORU^R01."""
    version: str
    person: Person | None
    results: tuple[Result, ...] = ()
    given_up: tuple[tuple[str, str, str], ...] = ()
    """MRG-1: identifiers of the record that is to be given up."""
    stray: int = 0
    """OBX that stand beneath no OBR."""
    tree: Any = field(default=None, compare=False, repr=False)
    """As the hl7 package has it."""


# ---- from bytes --------------------------------------------------------------------------------------------------


def messages_in(raw: bytes) -> Iterator[bytes]:
    """The messages of a file or a batch, in order: by MLLP's frames, or by the lines that begin with MSH."""
    if START in raw:
        for part in raw.split(START)[1:]:
            yield part.split(END[:1])[0].strip(b"\r\n")
        return
    lines, found = re.split(rb"\r\n|\r|\n", raw), list[bytes]()
    for one in lines:
        if one.startswith(b"MSH") and found:
            yield b"\r".join(found)
            found = []
        if one.startswith((b"FHS", b"BHS", b"BTS", b"FTS")):
            continue
        if one.strip() and (found or one.startswith(b"MSH")):
            found.append(one)
        elif one.strip():
            yield one  # something before the first message: not to be dropped in silence
    if found:
        yield b"\r".join(found)


def decoded(raw: bytes) -> str:
    """A message as text, by the character set that MSH-18 names. Raises Unreadable where it does not hold."""
    if len(raw) > MOST:
        raise Unreadable("The message is too long.")
    head = re.split(rb"[\r\n]", raw, maxsplit=1)[0]
    if not head.startswith(b"MSH") or len(head) < 8:
        raise Unreadable("The message does not begin with MSH.")
    parts = head.split(head[3:4])
    named = parts[17].split(head[5:6])[0].decode("ascii", "replace").strip().upper() if len(parts) > 17 else ""
    charset = CHARSETS.get(named)
    if charset is None:
        raise Unreadable("The character set in MSH-18 is not known.")
    for attempt in dict.fromkeys((charset, "utf-8", *(["iso8859-1"] if named == "" else []))):
        try:
            text = raw.decode(attempt)
        except UnicodeDecodeError:
            continue
        if "\x00" in text:
            raise Unreadable("The message holds characters that no message has.")
        return re.sub(r"\r\n|\n", "\r", text)
    raise Unreadable("The characters are not of the set that MSH-18 names.")


def read(raw: bytes, where: tzinfo = UTC) -> Message:
    """A message as plain values; times without an offset are of the clock `where`. Raises Unreadable."""
    text = decoded(raw)
    try:
        tree = hl7.parse(text)
        head = tree.segment("MSH")
        kind = tree_text(tree, head, 9).split("^")
    except (hl7.HL7Exception, IndexError, KeyError, AttributeError, ValueError) as error:
        raise Unreadable("The message cannot be read.") from error
    if not kind[0]:
        raise Unreadable("MSH-9 does not say what kind of message it is.", "101")
    results, stray = _results(tree, where)
    merges = _segments(tree, "MRG")
    return Message(
        sender="|".join(component(tree, head, nth) for nth in (3, 4)),
        control_id=component(tree, head, 10),
        kind="^".join(part for part in kind[:2] if part),
        version=component(tree, head, 12),
        person=_person(tree, _segments(tree, "PID")),
        results=tuple(results),
        given_up=_identifiers(tree, merges[0], (1,)) if merges else (),
        stray=stray,
        tree=tree,
    )


def _segments(tree: Any, name: str) -> list[Any]:
    return [segment for segment in tree if str(segment[0]) == name]


def tree_text(tree: Any, segment: Any, nth: int) -> str:
    """A field as it stands, still escaped; empty where the segment ends before it."""
    return str(segment[nth]) if nth < len(segment) else ""


def repetitions(tree: Any, segment: Any, nth: int) -> list[list[str]]:
    """A field's repetitions, each as its components, unescaped."""
    if nth >= len(segment) or not str(segment[nth]):
        return []
    found = []
    for repetition in segment[nth]:
        parts = [str(repetition)] if isinstance(repetition, str) else [str(part) for part in repetition]
        found.append([unescaped(tree, part).strip() for part in parts])
    return found


def unescaped(tree: Any, text: str) -> str:
    """A text with its escapes undone, once; one that is none, or that nobody knows, stays as it is."""
    mark = str(tree.esc)
    if mark not in text:
        return text
    plain = {"F": tree.separators[1], "S": tree.separators[3], "R": tree.separators[2], "T": tree.separators[4]}
    known = {**plain, "E": mark, ".br": "\n", ".sp": "\n", "H": "", "N": ""}

    def undone(found: re.Match[str]) -> str:
        if found[1].startswith("X") and re.fullmatch(r"X(?:[0-9A-Fa-f]{2})+", found[1]):
            sent = bytes.fromhex(found[1][1:])
            try:
                return sent.decode()
            except UnicodeDecodeError:
                return sent.decode("iso8859-1")
        return str(known.get(found[1], found[0]))

    return re.sub(f"{re.escape(mark)}([^{re.escape(mark)}]*){re.escape(mark)}", undone, text)


def component(tree: Any, segment: Any, nth: int, of: int = 1) -> str:
    """One component of a field's first repetition, unescaped."""
    found = repetitions(tree, segment, nth)
    return found[0][of - 1] if found and len(found[0]) >= of else ""


def _identifiers(tree: Any, segment: Any, fields: Sequence[int]) -> tuple[tuple[str, str, str], ...]:
    found = []
    for nth in fields:
        for parts in repetitions(tree, segment, nth):
            value, _, _, authority, kind = [*parts, "", "", "", "", ""][:5]
            if value:
                found.append((value, authority.split("&")[0], kind))
    return tuple(dict.fromkeys(found))


def _person(tree: Any, found: list[Any]) -> Person | None:
    if not found:
        return None
    segment = found[0]
    name = [*(repetitions(tree, segment, 5) or [[""]])[0], "", ""]
    address = (repetitions(tree, segment, 11) or [[]])[0]
    moment = instant(component(tree, segment, 7), UTC)
    return Person(
        identifiers=_identifiers(tree, segment, (3, 2, 4)),
        family=name[0].split("&")[0],
        given=name[1],
        born=moment.date() if moment else None,
        sex=component(tree, segment, 8).upper(),
        phones=tuple(parts[0] for parts in repetitions(tree, segment, 13) if parts and parts[0]),
        address=tuple(part.split("&")[0] for part in address[:6]),
    )


def _results(tree: Any, where: tzinfo) -> tuple[list[Result], int]:
    """Every OBX beneath its OBR, with the notes that follow it, and how many stand beneath none."""
    found: list[Result] = []
    order: Any = None
    stray = position = 0
    notes: list[str] = []
    for segment in tree:
        name = str(segment[0])
        if name == "OBR":
            order = segment
        elif name == "OBX":
            position += 1
            if order is None:
                stray += 1
                continue
            found.append(_result(tree, segment, order, position, where))
        elif name == "NTE" and found:
            notes = [" ".join(parts) for parts in repetitions(tree, segment, 3)]
            last = found[-1]
            found[-1] = Result(**{**last.__dict__, "note": "\n".join(part for part in (last.note, *notes) if part)})
    return found, stray


def _result(tree: Any, segment: Any, order: Any, position: int, where: tzinfo) -> Result:
    observed = instant(component(tree, segment, 14), where) or instant(component(tree, order, 7), where)
    return Result(
        position=position,
        status=component(tree, segment, 11).upper()[:1],
        kind=component(tree, segment, 2),
        code=component(tree, segment, 3),
        code_display=component(tree, segment, 3, 2) or component(tree, segment, 3),
        code_system=component(tree, segment, 3, 3),
        sub_id=tree_text(tree, segment, 4),
        values=tuple("^".join(parts).rstrip("^") for parts in repetitions(tree, segment, 5)),
        unit=component(tree, segment, 6),
        reference=unescaped(tree, tree_text(tree, segment, 7)),
        interpretation=component(tree, segment, 8),
        observed_at=observed,
        order=component(tree, order, 3) or component(tree, order, 2),
        placer=component(tree, order, 2),
        panel=component(tree, order, 4),
        panel_display=component(tree, order, 4, 2) or component(tree, order, 4),
        panel_status=component(tree, order, 25).upper()[:1],
    )


MOMENT = re.compile(r"(\d{4})(\d{2})?(\d{2})?(?:(\d{2})(\d{2})?(\d{2})?(?:\.\d+)?)?([+-]\d{4})?")


def instant(text: str, where: tzinfo) -> datetime | None:
    """A TS or DTM; what is not said of it is the first there is. None for what is no time."""
    found = MOMENT.fullmatch(text.strip())
    if found is None or text.startswith("0000"):
        return None
    year, month, day, hour, minute, second = (int(part) if part else 0 for part in found.groups()[:6])
    try:
        moment = datetime(year, month or 1, day or 1, hour, minute, min(second, 59), tzinfo=where)
        return datetime.strptime(f"{moment:%Y%m%d%H%M%S}{found[7]}", "%Y%m%d%H%M%S%z") if found[7] else moment
    except ValueError:
        return None


# ---- values ------------------------------------------------------------------------------------------------------

EXACT = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,10})?(?:[eE][+-]?\d{1,2})?")
COMPARED = re.compile(r"(<=|>=|<|>)\s*(.+)")


def number(text: str) -> tuple[str, Decimal] | None:
    """An NM, or an SN of one number: its comparator and the number; None for anything else, such as 1:128 or 3-5."""
    parts = text.split("^")
    if len(parts) == 1:
        found = COMPARED.fullmatch(text.strip())
        mark, digits = (found[1], found[2]) if found else ("", text.strip())
    else:
        mark, digits = parts[0].strip() or "", parts[1].strip()
        if any(part.strip() for part in parts[2:]) or mark not in ("", "=", "<", "<=", ">", ">="):
            return None
        mark = "" if mark == "=" else mark
    if not EXACT.fullmatch(digits.strip()):
        return None
    try:
        return mark, Decimal(digits.strip())
    except InvalidOperation:
        return None


REFERENCE = re.compile(r"\[?\s*([+-]?\d+(?:\.\d+)?)\s*(?:-|to)\s*([+-]?\d+(?:\.\d+)?)\s*\]?")
ONE_SIDED = re.compile(r"\[?\s*(<=|>=|<|>)\s*([+-]?\d+(?:\.\d+)?)\s*\]?")


def reference(text: str, unit: str) -> dict[str, Any] | None:
    """OBX-7 as FHIR's referenceRange: lo-hi, <hi, >lo; other words as they are; None for none."""
    stripped = text.strip()
    if not stripped or not stripped.strip("[] "):
        return None
    found: dict[str, Any] = {"text": stripped}
    if match := REFERENCE.fullmatch(stripped):
        found |= {"low": {"value": match[1], "unit": unit}, "high": {"value": match[2], "unit": unit}}
    elif match := ONE_SIDED.fullmatch(stripped):
        found |= {"high" if match[1].startswith("<") else "low": {"value": match[2], "unit": unit}}
    return found


# ---- answering ---------------------------------------------------------------------------------------------------

ERRORS = {
    "100": "Segment sequence error",
    "101": "Required field missing",
    "103": "Table value not found",
    "200": "Unsupported message type",
    "204": "Unknown key identifier",
    "207": "Application internal error",
}
"""Table 0357."""


def acknowledge(message: Message | None, code: str, error: str = "", reason: str = "207") -> bytes:
    """The answer to a message, AA, AE or AR, with what is wrong in ERR; also to one that could not be read."""
    moment = f"{datetime.now(UTC):%Y%m%d%H%M%S}+0000"
    trigger = message.kind.partition("^")[2] if message else ""
    sender = message.sender.split("|") if message else ["", ""]
    version = message.version if message and message.version else "2.5"
    kind = f"ACK^{trigger}^ACK" if trigger else "ACK"
    answered = message.control_id if message else ""
    head = ["MSH", "^~\\&", "WARDBOOK", "", *map(escape, sender), moment, "", kind, _number(), "P", escape(version)]
    lines = ["|".join(head), f"MSA|{code}|{escape(answered)}"]
    if error:
        lines.append(f"ERR|||{reason}^{ERRORS.get(reason, ERRORS['207'])}^HL70357|E||||{escape(error)}")
    return ("\r".join(lines) + "\r").encode("utf-8", "replace")


def _number() -> str:
    return str(hl7.generate_message_control_id())


def escape(text: str) -> str:
    """A text as a field may hold it."""
    for letter, code in (("\\", "\\E\\"), ("|", "\\F\\"), ("^", "\\S\\"), ("&", "\\T\\"), ("~", "\\R\\")):
        text = text.replace(letter, code)
    return re.sub(r"[\r\n]+", " ", text)


__all__ = ["Message", "Person", "Result", "Unreadable", "acknowledge", "messages_in", "read"]
