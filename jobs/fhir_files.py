"""Files of FHIR JSON as a stream of resources, in memory of a few entries however long the file is.

Transaction, document, batch and collection Bundles, NDJSON, and single resources are all the same to the reader: JSON
values one after another, of which a Bundle's are taken entry by entry. Numbers keep the digits they came with.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NoReturn

BLOCK = 256 * 1024
LARGEST = 32 * 1024 * 1024
"""Letters one resource may have; the reader's memory is a small multiple of it."""
SUFFIXES = (".json", ".ndjson", ".jsonl")
LINES = (".ndjson", ".jsonl")
SHELL = {"resourceType", "type", "entry", "total", "link"}
"""What a Bundle says about its own transport; whatever else it says is kept like a resource."""


@dataclass(frozen=True)
class Received:
    """What stood at one place of one file; `resource` may be anything JSON can say."""

    file: str
    place: str
    resource: Any
    full_url: str = ""


class Broken(Exception):
    """The file cannot be read on from `place`."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason


def _no_number(_text: str) -> NoReturn:
    raise ValueError("JSON knows no such number")


_decode = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number).raw_decode
_blank = re.compile(r"[ \t\r\n]*")


class _Text:
    """A window over the text of a file, which moves on as values are taken from it."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], object]) -> None:
        self.file = file
        self.advance = advance
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.at = 0
        self.lines = 1
        self.column = 1
        self.ended = False

    def place(self, at: int | None = None) -> str:
        """Line and column of a position in the window."""
        at = self.at if at is None else at
        newline = self.text.rfind("\n", 0, at)
        column = at - newline if newline >= 0 else self.column + at
        return f"line {self.lines + self.text.count(chr(10), 0, at)}, column {column}"

    def more(self) -> bool:
        """Read on, at least doubling what is left in the window; False at the end. Raises Broken."""
        if self.ended:
            return False
        newline = self.text.rfind("\n", 0, self.at)
        self.lines += self.text.count("\n", 0, self.at)
        self.column = self.at - newline if newline >= 0 else self.column + self.at
        self.text = self.text[self.at :]
        self.at = 0
        block = self.file.read(max(BLOCK, len(self.text)))
        self.advance(len(block))
        self.ended = not block
        try:
            self.text += self.decoder.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            raise Broken(self.place(), "this is not UTF-8") from error
        return not self.ended

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            self.at = _blank.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, character: str) -> None:
        """Step over a character that has to be there. Raises Broken."""
        if self.peek() != character:
            raise Broken(
                self.place(), f"broken JSON: {character} expected" if self.peek() else "the file ends too early"
            )
        self.at += 1

    def value(self) -> Any:
        """The next JSON value. Raises Broken where there is none, or it is too large to be held."""
        self.peek()
        last: tuple[int, str] | None = None
        while True:
            try:
                found, end = _decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # Where the text was merely cut off, the error moves with the end of the window.
                seen = error.pos - self.at, error.msg
                broken = seen == last and not error.msg.startswith("Unterminated string")
                last = seen
                if not broken and len(self.text) - self.at > LARGEST:
                    raise Broken(self.place(), f"one resource has more than {LARGEST:,} letters") from error
                place = self.place(error.pos)
                cut_off = error.msg.startswith("Unterminated string") or not set('}],:"') & set(self.text[error.pos :])
                if broken or not self.more():
                    early = cut_off and not broken
                    raise Broken(place, "the file ends too early" if early else f"broken JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise Broken(self.place(), "broken JSON: a number or a nesting that cannot be") from error
            else:
                if end == len(self.text) and not self.ended and not isinstance(found, str | dict | list):
                    self.more()
                    continue
                self.at = end
                return found

    def next_line(self) -> bool:
        """Leave the present line; False at the end."""
        while (newline := self.text.find("\n", self.at)) < 0:
            self.at = len(self.text)
            if not self.more():
                return False
        self.at = newline + 1
        return True


def received(
    path: Path, name: str, advance: Callable[[int], object], refuse: Callable[[Broken], object]
) -> Iterator[Received]:
    """Whatever a file holds, in its order. `advance` hears of the bytes read, `refuse` of what could not be.

    A broken line of NDJSON costs that line, a broken Bundle everything behind the break.
    """
    by_line = path.suffix.lower() in LINES
    with path.open("rb") as file:
        text = _Text(file, advance)
        while True:
            line = ""
            try:
                if not text.peek():
                    return
                if by_line:
                    line = text.place().partition(",")[0]
                    yield from _flat(text.value(), name, line)
                else:
                    yield from _document(text, name)
            except Broken as broken:
                refuse(Broken(line or broken.place, broken.reason))
                if not by_line or not text.next_line():
                    return


def _document(text: _Text, name: str) -> Iterator[Received]:
    """One JSON value: a Bundle entry by entry, then what the Bundle says itself; any other resource whole."""
    place = text.place()
    if text.peek() != "{":
        yield Received(name, place, text.value())
        return
    text.take("{")
    shell: dict[str, Any] = {}
    first = True
    while text.peek() != "}":
        if not first:
            text.take(",")
        first = False
        key = text.value()
        text.take(":")
        if key == "entry" and text.peek() == "[" and shell.get("resourceType") in (None, "Bundle"):
            yield from _entries(text, name, shell)
        else:
            shell[str(key)] = text.value()
    text.take("}")
    yield from _flat(shell, name, place)


def _entries(text: _Text, name: str, shell: dict[str, Any]) -> Iterator[Received]:
    """The entries of a Bundle. What looks like none, in what may be none (a List has them too), stays in the shell."""
    text.take("[")
    number = 0
    while text.peek() != "]":
        if number:
            text.take(",")
        entry = text.value()
        number += 1
        if "resourceType" in shell or (isinstance(entry, dict) and {"resource", "fullUrl", "request"} & set(entry)):
            yield from _entry(entry, name, f"entry {number}")
        else:
            shell.setdefault("entry", []).append(entry)
    text.take("]")


def _entry(entry: Any, name: str, place: str) -> Iterator[Received]:
    """What an entry holds, with its full URL."""
    entry = entry if isinstance(entry, dict) else {}
    full_url = entry.get("fullUrl")
    yield from _flat(entry.get("resource"), name, place, full_url if isinstance(full_url, str) else "")


def _flat(resource: Any, name: str, place: str, full_url: str = "") -> Iterator[Received]:
    """A resource that was read whole; a Bundle among them is unpacked."""
    if not isinstance(resource, dict) or resource.get("resourceType") != "Bundle":
        yield Received(name, place, resource, full_url)
        return
    entries = resource.get("entry")
    for number, entry in enumerate(entries if isinstance(entries, list) else [], 1):
        yield from _entry(entry, name, f"{place}, entry {number}")
    if set(resource) - SHELL:
        yield Received(name, place, {key: value for key, value in resource.items() if key != "entry"}, full_url)


_kind = re.compile(rb'"resourceType"\s*:\s*"([A-Za-z]+)"')


def first_type(path: Path) -> str:
    """The type of the first resource of a file that is no Bundle; empty where none is seen near its beginning."""
    with path.open("rb") as file:
        kinds = _kind.findall(file.read(BLOCK))
    return next((kind.decode() for kind in kinds if kind != b"Bundle"), "")


def files_of(paths: list[str]) -> list[Path]:
    """The files themselves, and those in directories below that end like FHIR JSON, in order of name.

    Raises OSError for what is not there or cannot be opened.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        else:
            path.open("rb").close()
            found.append(path)
    return list(dict.fromkeys(found))


__all__ = ["Broken", "Received", "files_of", "first_type", "received"]
