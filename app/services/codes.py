"""Codes that are chosen from: ICD-10-CM for diagnoses, CVX for vaccines; LOINC and SNOMED CT by their check digits."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stdnum import luhn, verhoeff

from app.errors import Invalid, OutOfService
from app.services.words import fold

ICD_10_CM: Final = "http://hl7.org/fhir/sid/icd-10-cm"
CVX: Final = "http://hl7.org/fhir/sid/cvx"
LOINC: Final = "http://loinc.org"
SNOMED_CT: Final = "http://snomed.info/sct"
BEST: Final = 20
"""Codes a search offers at most."""
PLAIN: Final = frozenset(
    {
        *("unspecified", "uncomplicated", "without", "complications", "not", "otherwise", "specified", "as", "or"),
        *("acute", "chronic", "site", "organism", "initial", "encounter", "for", "closed"),
    }
)
"""Words that make a diagnosis no less usual."""
RARE: Final = "OPQVWXYZ"
"""Chapters that are seldom meant by a plain word: birth, causes from outside, and what is no illness."""
HOUSE: Final = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A complete code of ICD-10-CM; `search` has its text and its other names, folded."""

    code: str
    display: str
    search: str


_diagnoses: dict[str, Diagnosis] = {}
_groups: frozenset[str] = frozenset()
_reading = threading.Lock()


def warm() -> None:
    """Begin to read ICD-10-CM, for somebody who is about to search it; reading takes two seconds once a process."""
    if not _diagnoses and not _reading.locked():
        threading.Thread(target=diagnoses, daemon=True).start()


def diagnoses() -> dict[str, Diagnosis]:
    """Every complete code of ICD-10-CM, read at the first question.

    The package builds a tree of 180 MB to tell them, so a process of its own reads it and ends. Raises OutOfService.
    """
    global _groups
    with _reading:
        if not _diagnoses:
            try:
                told = subprocess.run(
                    [sys.executable, "-m", "app.services.codes"], cwd=HOUSE, capture_output=True, check=True, timeout=60
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise OutOfService("The list of diagnoses cannot be read right now. Please try again.") from error
            groups = []
            found = {}
            for row in told.stdout.decode().strip().split("\n"):
                code, display, names = row.split("\t")
                if display:
                    found[code] = Diagnosis(code, display, fold(f"{display} {names}"))
                else:
                    groups.append(code)
            _groups = frozenset(groups)
            _diagnoses.update(found)
    return _diagnoses


def diagnosis(code: str) -> Diagnosis:
    """A diagnosis by its code, with or without its point. Raises Invalid for one that does not exist, or is a group."""
    plain = re.sub(r"[\s.]", "", code).upper()
    written = f"{plain[:3]}.{plain[3:]}" if len(plain) > 3 else plain
    known = diagnoses()
    if written in known:
        return known[written]
    if written in _groups:
        raise Invalid(f"{written} is a group of codes. Please choose one of those in it.", field="code")
    raise Invalid("There is no such code in ICD-10-CM. Please search for it.", field="code")


def find_diagnoses(text: str, limit: int = BEST) -> list[Diagnosis]:
    """The likeliest diagnoses for the beginning of a code, or for words that all occur in the text or other names."""
    asked = text.strip()[:100]
    if re.fullmatch(r"[A-Za-z]\d[0-9A-Za-z]?(\.?[0-9A-Za-z]{0,4})?", asked):
        begins = asked.replace(".", "").upper()
        hits = [each for each in diagnoses().values() if each.code.replace(".", "").startswith(begins)]
        return hits[:limit]
    words = fold(asked).split()
    if not words or max(map(len, words)) < 2:
        return []
    found = [each for each in diagnoses().values() if all(word in each.search for word in words)]
    starts = [re.compile(rf"\b{re.escape(word)}") for word in words]

    def unlikely(each: Diagnosis) -> tuple[bool, bool, bool, bool, int, int, str]:
        shown = fold(each.display)
        further = [
            word for word in re.findall(r"\w+", shown) if word not in PLAIN and not word.startswith(tuple(words))
        ]
        return (
            not all(start.search(shown) for start in starts),
            not all(start.search(each.search) for start in starts),
            each.code[0] in RARE,
            len(each.code) > 3,
            len(further),
            len(shown),
            each.code,
        )

    return sorted(found, key=unlikely)[:limit]


VACCINES: Final[dict[str, str]] = {
    "03": "MMR (measles, mumps, rubella)",
    "08": "Hepatitis B, child",
    "10": "Polio, inactivated (IPV)",
    "18": "Rabies",
    "19": "Tuberculosis (BCG)",
    "20": "DTaP (diphtheria, tetanus, pertussis), child",
    "21": "Varicella",
    "33": "Pneumococcal polysaccharide (PPSV23)",
    "37": "Yellow fever",
    "43": "Hepatitis B, adult",
    "48": "Haemophilus influenzae type b (Hib)",
    "52": "Hepatitis A, adult",
    "83": "Hepatitis A, child",
    "88": "Influenza",
    "101": "Typhoid, injected",
    "104": "Hepatitis A and B",
    "113": "Td (tetanus, diphtheria), adult",
    "114": "Meningococcal A, C, Y, W (MCV4P)",
    "115": "Tdap (tetanus, diphtheria, pertussis), adult",
    "119": "Rotavirus",
    "133": "Pneumococcal conjugate (PCV13)",
    "134": "Japanese encephalitis",
    "140": "Influenza, seasonal, injected",
    "165": "HPV, 9 types",
    "187": "Zoster, recombinant",
    "213": "COVID-19",
}
"""CVX (https://www2.cdc.gov/vaccines/iis/iisstandards/vaccines.asp?rpt=cvx): the vaccines a hospital gives most."""


def vaccine(code: str) -> str:
    """What a CVX code is called. Raises Invalid for one that is not offered."""
    if code not in VACCINES:
        raise Invalid("There is no such vaccine in the list. Choose one, or write it in words.", field="code")
    return VACCINES[code]


def loinc(code: str) -> str:
    """A LOINC code as it is stored. Raises Invalid where its check digit does not hold."""
    plain = code.strip()
    if not re.fullmatch(r"\d{1,7}-\d", plain) or not luhn.is_valid(plain.replace("-", "")):
        raise Invalid("There is no such LOINC code: its check digit is wrong.", field="code")
    return plain


def snomed(code: str) -> str:
    """A SNOMED CT concept as it is stored. Raises Invalid where its check digit does not hold."""
    plain = code.strip()
    if not re.fullmatch(r"[1-9]\d{5,17}", plain) or plain[-3] != "0" or not verhoeff.is_valid(plain):
        raise Invalid("There is no such SNOMED CT code: its check digit is wrong.", field="code")
    return plain


def _tell() -> None:
    """Write every code of the package to the standard output: code, text (none for a group), other names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package reads its files in a way that is going out of use
        import simple_icd_10_cm as book

    for code in book.get_all_codes(True):
        if not book.is_chapter_or_block(code) or book.is_category_or_subcategory(code):
            whole = book.is_leaf(code)
            texts = (book.get_description(code), " ".join(book.get_inclusion_term(code))) if whole else ("", "")
            sys.stdout.write("\t".join((code, *(" ".join(text.split()) for text in texts))) + "\n")


if __name__ == "__main__":
    _tell()
