"""What is printed: nothing is fetched, values are values, letters are right or refused by name."""

from __future__ import annotations

import base64
import io
import sys
import threading
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jinja2
import pytest
import zxingcpp
from PIL import Image

from app import documents
from app.errors import Unprintable
from tests.dispensary import pictures, squares, text_of


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine, and the addresses that were asked of it."""
    asked: list[str] = []

    class Listen(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"body { color: red }")

        def log_message(self, *_: object) -> None:
            return None

    server = HTTPServer(("127.0.0.1", 0), Listen)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


PAGES = (
    '<img src="{url}/image.png">',
    '<style>@import url("{url}/sheet.css");</style>',
    '<link rel="stylesheet" href="{url}/linked.css">',
    '<style>body {{ background-image: url("{url}/back.png") }}</style>',
    '<style>@page {{ background-image: url("{url}/page.pdf") }}</style>',
    '<style>@font-face {{ font-family: x; src: url("{url}/font.ttf") }} p {{ font-family: x }}</style>',
    '<table background="{url}/table.png"><tr><td>a</td></tr></table>',
    '<p style="list-style-image: url({url}/dot.png); background: url({url}/p.png)">a</p>',
    '<iframe src="{url}/frame"></iframe><object data="{url}/object"></object><embed src="{url}/embed">',
    '<base href="{url}/"><img src="based.png">',
    '<pdf:watermark src="{url}/mark.png"/>',
)


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_fetched_over_the_network(page: str, listener: tuple[str, list[str]]) -> None:
    url, asked = listener
    printed = documents.pdf(f"<html><body><p>Words</p>{page.format(url=url)}</body></html>", language="en")
    assert "Words" in text_of(printed)
    assert asked == []


OPENED: list[str] = []
"""Every file this process opens, and every address it connects to, once somebody listens."""
_listening: list[bool] = []


def _listen(event: str, told: tuple[object, ...]) -> None:
    if _listening and event in ("open", "socket.connect", "socket.getaddrinfo"):
        OPENED.append(f"{event} {told}")


sys.addaudithook(_listen)


@pytest.mark.parametrize("page", PAGES)
def test_no_file_of_this_machine_is_read(page: str, tmp_path: Path) -> None:
    names = (
        "image.png",
        "sheet.css",
        "linked.css",
        "back.png",
        "page.pdf",
        "font.ttf",
        "table.png",
        "dot.png",
        "p.png",
    )
    for name in (*names, "frame", "object", "embed", "based.png", "mark.png"):
        (tmp_path / name).write_bytes(b"secret")
    documents.pdf("<p>fonts are loaded</p>", language="en")
    OPENED.clear()
    _listening.append(True)
    try:
        for address in (tmp_path.as_uri(), str(tmp_path)):
            documents.pdf(f"<html><body><p>Words</p>{page.format(url=address)}</body></html>", language="en")
        assert [line for line in OPENED if str(tmp_path) in line or "socket" in line] == []
        (tmp_path / "image.png").read_bytes()
        assert any(str(tmp_path) in line for line in OPENED), "nobody listens"
    finally:
        _listening.clear()


@pytest.mark.parametrize(
    "page",
    [
        '<img src="file:///etc/passwd">',
        '<img src="/etc/passwd">',
        '<style>@import "file:///etc/passwd";</style>',
        '<img src="../../../../etc/passwd">',
        '<img src="ftp://127.0.0.1/x.png">',
    ],
)
def test_addresses_of_files_leave_nothing_on_the_paper(page: str) -> None:
    assert "root" not in text_of(documents.pdf(f"<p>Words</p>{page}", language="en"))


def test_a_picture_within_the_page_is_printed() -> None:
    square = documents.qr("within")
    assert squares(documents.pdf(f'<img src="{square}" style="width: 30mm">', language="en")) == ["within"]


def test_values_are_escaped_by_the_templates(listener: tuple[str, list[str]]) -> None:
    url, asked = listener
    page = jinja2.Environment(autoescape=True).from_string("<p>{{ value }}</p>")
    value = f'<img src="{url}/x.png"><pdf:nextpage/><b>bold</b>'
    printed = documents.pdf(page.render(value=value), language="en")
    assert "<pdf:nextpage/><b>bold</b>" in "".join(text_of(printed).split("\r\n")).replace("\n", "")
    assert len(pictures(printed, 30)) == 1
    assert asked == []


@pytest.mark.parametrize(
    "name", ["Łucja Żółć", "Nguyễn Thị Ánh Đặng", "Ωμέγα", "Жук", "Ærøskøbing Þór", "Nguye\u0302\u0303n"]
)
def test_names_print_in_the_letters_they_are_written_in(name: str) -> None:
    printed = text_of(documents.pdf(f"<p>{name} <b>{name}</b></p>", language="en"))
    assert printed.count(unicodedata.normalize("NFC", name)) == 2


def test_arabic_is_joined_and_runs_from_right_to_left() -> None:
    """Joined letters are other glyphs than single ones, and the first word stands at the right edge."""
    printed = documents.pdf("<p>محمد mg</p>", language="ar")
    assert "محمد" in text_of(printed)
    joined, loose = (
        pictures(documents.pdf(f"<p>{word}</p>", language="ar"), 100)[0].crop((400, 0, 830, 200)).tobytes()
        for word in ("محمد", " ".join("محمد"))
    )
    assert joined != loose
    right, left = (pictures(documents.pdf("<p>محمد</p>", language=language), 60)[0] for language in ("ar", "en"))
    assert ink(right)[0] > right.width / 2
    assert ink(left)[2] < left.width / 2


def ink(picture: Image.Image) -> tuple[int, int, int, int]:
    """Where something is printed: left, top, right, bottom."""
    box = picture.convert("L").point(lambda dot: 255 if dot < 128 else 0).getbbox()
    assert box is not None, "the page is empty"
    return box


def test_right_to_left_tables_begin_at_the_right() -> None:
    page = "<table><tr><td>AAAA</td><td>.</td></tr></table>"
    left, right = (ink(pictures(documents.pdf(page, language=language), 60)[0]) for language in ("en", "ar"))
    assert left[0] < 100 < right[2]
    assert right[2] > 400


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("अमित", "अ"),
        ("漢字", "漢"),
        ("ภาษา", "ภ"),
        ("👍", "👍"),
        ("x\u0331", "\u0331"),
        ("a\u202eb", "\u202e"),
        ("שלום", "ש"),
        ("ݜ", "ݜ"),
    ],
)
def test_a_letter_that_would_not_print_rightly_is_named(text: str, character: str) -> None:
    with pytest.raises(Unprintable) as refused:
        documents.pdf(f"<p>Anna {text}</p>", language="en")
    assert refused.value.status == 422
    assert f"U+{ord(refused.value.character):04X}" in str(refused.value)
    assert refused.value.character in text
    assert refused.value.character == character or character not in text


def test_vowel_signs_of_arabic_do_not_stop_a_paper() -> None:
    assert "يوميا" in text_of(documents.pdf("<p>يومياً</p>", language="ar"))


def test_what_a_style_adds_is_looked_at_as_well() -> None:
    for page in ("<style>p:before { content: '漢' }</style><p>fine</p>", "<p style='font-family: Courier'>漢</p>"):
        with pytest.raises(Unprintable):
            documents.pdf(page, language="en")


def test_a_family_that_is_not_ours_prints_in_ours() -> None:
    assert "Żółć" in text_of(documents.pdf("<p style='font-family: Helvetica'>Żółć</p>", language="en"))


def test_pages_are_numbered() -> None:
    page = (
        "<html><head><style>@page { size: a4; margin: 20mm; @frame foot { -pdf-frame-content: foot; bottom: 5mm;"
        " left: 20mm; width: 100mm; height: 8mm; } }</style></head><body>"
        "<p>one</p><pdf:nextpage/><p>two</p><div id='foot'>Page <pdf:pagenumber/> of <pdf:pagecount/></div></body></html>"
    )
    printed = text_of(documents.pdf(page, language="en"))
    assert "Page 1 of 2" in printed
    assert "Page 2 of 2" in printed


def test_several_are_printed_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: documents.pdf(f"<p><b>Żółć</b> number {n}</p>", language="en"), range(8)))
    for number, printed in enumerate(made):
        assert f"number {number}" in text_of(printed)


def test_a_square_holds_what_was_said() -> None:
    told = "https://hospital.example.org/rx/" + "a" * 120
    picture = Image.open(io.BytesIO(base64.b64decode(documents.qr(told).partition(",")[2])))
    assert [found.text for found in zxingcpp.read_barcodes(picture)] == [told]
