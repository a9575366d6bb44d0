"""Paper: a PDF from a page of HTML, and QR codes. Printing fetches nothing, and prints no empty boxes."""

from __future__ import annotations

import base64
import io
import logging
import re
import threading
import unicodedata
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import arabic_reshaper
import fontpkg
import qrcode
import qrcode.image.pil
from arabic_reshaper.letters import LETTERS_ARABIC
from fontTools.ttLib import TTFont as FontFile
from fontTools.varLib import instancer
from reportlab.lib.fonts import addMapping
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from xhtml2pdf import default as xhtml2pdf_default
from xhtml2pdf.config.resources import ResourceAccessPolicy
from xhtml2pdf.document import pisaDocument

from app.errors import Unprintable

FAMILIES = {"wardbook": "Noto Sans", "wardbook-arabic": "Noto Sans Arabic"}
"""The families a page is printed in, each for the letters the one before it has not."""
BOLD = 700
POSTSCRIPT_NAME = 6
RIGHT_TO_LEFT = frozenset({"ar", "arc", "ckb", "dv", "fa", "he", "ks", "ps", "sd", "ug", "ur", "yi"})
"""Languages (ISO 639) that are written from right to left."""
FONTS = f"* {{ font-family: {', '.join(FAMILIES)} !important; }}"
BORN_JOINED = frozenset(range(0x064B, 0x0653)) | {0x0670, 0x0640}
"""Vowel signs of Arabic, which print and everyday writing leave out, and the stroke that makes a word longer."""
ARABIC = re.compile(r"[\u0600-\u06ff\u0750-\u077f\u0870-\u08ff\ufb50-\ufdff\ufe70-\ufeff]+")
UNSHAPED = ("DEVANAGARI", "VEDIC")
"""Scripts our fonts have letters of, and the printer does not put together rightly."""
SILENT = frozenset({"style", "script"})
_fonts = threading.Lock()
logging.getLogger("xhtml2pdf").setLevel(logging.CRITICAL)  # its warnings quote the page


def direction(language: str) -> str:
    """`rtl` or `ltr`: how a language (BCP 47) is written."""
    return "rtl" if language.replace("_", "-").split("-")[0].lower() in RIGHT_TO_LEFT else "ltr"


def pdf(html: str, *, language: str) -> bytes:
    """A page of HTML as a PDF, in our fonts and the direction of its language (BCP 47).

    Whatever the page names outside itself is left out: only `data:` addresses are read. Raises Unprintable, naming the
    character, for one that no font of ours has or that would not be joined rightly.
    """
    page = unicodedata.normalize("NFC", html)
    _load_fonts()
    for character in _letters(page):
        _check(character)
    for word in _arabic(page):
        _check_joined(word)
    out = io.BytesIO()
    done = pisaDocument(
        _told(page, language),
        out,
        encoding="utf-8",
        default_css=f"{xhtml2pdf_default.DEFAULT_CSS}\n{FONTS}",
        link_callback=_only_within,
        resource_policy=ResourceAccessPolicy.server(None, allow_remote=False),
    )
    for character in done._glyph_warned:  # where the printer looked further than we did
        raise Unprintable(character)
    if done.err:
        raise ValueError("the page could not be printed")
    return out.getvalue()


def qr(text: str) -> str:
    """A QR code of a text, as the `data:` address of a PNG with the quiet zone around it."""
    code = qrcode.QRCode(error_correction=qrcode.constants.ERROR_CORRECT_M, box_size=8, border=4)
    code.add_data(text)
    code.make(fit=True)
    out = io.BytesIO()
    code.make_image(image_factory=qrcode.image.pil.PilImage).save(out, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


# ---- what a page holds --------------------------------------------------------------------------------------------


class _Texts(HTMLParser):
    """The texts of a page that are printed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.within: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SILENT:
            self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.within and self.within[-1] == tag:
            self.within.pop()

    def handle_data(self, data: str) -> None:
        if not self.within:
            self.found.append(data)


def _texts(page: str) -> list[str]:
    reader = _Texts()
    reader.feed(page)
    reader.close()
    return reader.found


def _letters(page: str) -> Iterator[str]:
    """Each character that is printed, once, in the order in which they come."""
    return iter(dict.fromkeys("".join(_texts(page))))


def _arabic(page: str) -> list[str]:
    return list(dict.fromkeys(run for text in _texts(page) for run in ARABIC.findall(text)))


def _check(character: str) -> None:
    """Raises Unprintable for a character that no font has, or that has to be set on the one before it."""
    point = ord(character)
    if character in " \t\n\r\f\N{NO-BREAK SPACE}" or point in BORN_JOINED:
        return
    unshaped = unicodedata.name(character, "").startswith(UNSHAPED)
    if unshaped or unicodedata.category(character)[0] in "MC" or not any(point in has for has in _coverage().values()):
        raise Unprintable(character)


def _check_joined(word: str) -> None:
    """Raises Unprintable for an Arabic letter whose joined forms are not known, or not in the font."""
    has = _coverage()["wardbook-arabic"] | _coverage()["wardbook"]
    for character in word:
        if unicodedata.category(character) == "Lo" and ord(character) < 0xFB50 and character not in LETTERS_ARABIC:
            raise Unprintable(character)
    for character, form in zip(word, _plain(word), strict=False):
        if ord(form) not in has:
            raise Unprintable(character)


def _plain(word: str) -> str:
    """A word joined, letter for letter."""
    return str(_reshaper().reshape(word))


@cache
def _reshaper() -> Any:
    return arabic_reshaper.ArabicReshaper(configuration={"support_ligatures": False, "delete_harakat": False})


def _told(page: str, language: str) -> bytes:
    """The page with its language and its direction where the printer looks for them."""
    tag = re.sub(r"[^A-Za-z0-9-]", "", language)
    said = f'<pdf:language name="{tag}"/>' + ('<pdf:language name="arabic"/>' if direction(language) == "rtl" else "")
    told, found = re.subn(r"(<body\b[^>]*>)", rf"\1{said}", page, count=1, flags=re.IGNORECASE)
    return (told if found else said + page).encode()


def _only_within(address: str, _relative: str | None = None) -> str:
    """What the page says it wants, where that is in the page itself; nothing otherwise."""
    return address if address.startswith("data:") else ""


# ---- fonts --------------------------------------------------------------------------------------------------------


def _load_fonts() -> None:
    """Make the fonts known to the printer, once a process."""
    with _fonts:
        _coverage()


@cache
def _coverage() -> dict[str, frozenset[int]]:
    """The fonts, registered, and which characters each has."""
    known = {}
    for name, family in FAMILIES.items():
        source = Path(fontpkg.path(family))
        regular = TTFont(name, str(source))
        pdfmetrics.registerFont(regular)
        pdfmetrics.registerFont(TTFont(f"{name}-bold", _bold(source)))
        for italic in (0, 1):
            addMapping(name, 0, italic, name)
            addMapping(name, 1, italic, f"{name}-bold")
        xhtml2pdf_default.DEFAULT_FONT[name] = name
        known[name] = frozenset(regular.face.charToGlyph)
    for named in xhtml2pdf_default.DEFAULT_FONT.keys() - FAMILIES.keys():
        xhtml2pdf_default.DEFAULT_FONT[named] = "wardbook"  # the printer's own fonts lack most letters
    return known


def _bold(source: Path) -> io.BytesIO:
    """The bold cut of a variable font, without the tables the printer does not look at."""
    font = FontFile(source)
    for table in ("GSUB", "GPOS", "GDEF", "HVAR", "MVAR", "STAT"):
        if table in font:
            del font[table]
    cut = instancer.instantiateVariableFont(font, {"wght": BOLD, "wdth": 100}, inplace=True)
    for record in cut["name"].names:
        if record.nameID == POSTSCRIPT_NAME:  # by which the printer tells fonts apart
            record.string = f"{record.toUnicode()}Bold"
    out = io.BytesIO()
    cut.save(out)
    out.seek(0)
    return out
