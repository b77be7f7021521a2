"""The value of a table's cell. Spreadsheet programs change what is typed: they write numbers with decimal commas and in
exponents, make dates of strengths, and translate TRUE. What can be read in one way only is read; all else is refused.
"""

from __future__ import annotations

import re
from typing import Any

from composers.shown import shown
from pipelines.errors import RequestError
from studio.batch.prompts import plain_wanted
from studio.batch.values import REAL, WHOLE
from studio.drafts.fields import of_kind
from studio.drafts.flags import parse_lora

LONGEST_NUMBER = 2_000
"""Most characters of a cell in which commas and spaces are looked at; a longer one is judged as it is."""
AS_TEXT = "format its column as text, and write it again"

_ALTERNATIVES = tuple(field.name for field in of_kind("scheduler", "method", "choice", "pair", "truth"))
_TRUTHS = tuple(field.name for field in of_kind("truth"))
_TRUE = "true", "wahr", "vrai", "vero", "verdadero", "verdadeiro", "waar", "prawda", "sant", "sand", "tosi", "igaz",\
        "pravda", "истина", "doğru"  # fmt: skip
_FALSE = "false", "falsch", "faux", "falso", "onwaar", "fałsz", "falskt", "falsk", "usann", "epätosi", "hamis",\
         "nepravda", "ложь", "yanl\u0131\u015f"  # fmt: skip
_FAILED = re.compile(r"#[A-ZÄÖÜ/0 ]{1,12}[!?]|#(?:N/A|NV|N/D)", re.IGNORECASE)
_TEXT = re.compile(r'="((?:[^"]|"")*)"')
"""A formula that is a text: so that Excel leaves all digits as they are."""
_DATE = re.compile(
    r"\d{1,4}[-./ ]+[^\W\d_]{3,9}\.?(?:[-./ ]+\d{2,4})?|[^\W\d_]{3,9}\.?[-./ ]+\d{1,4}"
    r"|\d{1,4}([-./])\d{1,2}\1\d{1,4}(?:[ T]\d.*)?"
)
_EXPONENT = re.compile(r"\d[eE][+-]?\d")
_WIDE = re.compile(r"(?<=\d)[\u00a0\u202f\u2009'\u2019](?=\d{3}(?!\d))")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_DOTTED = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+")
_BOTH = re.compile(r"([+-]?[1-9]\d{0,2}(?:\.\d{3})+),(\d+)")
_COMMA = re.compile(r"(?<![\d.])(?<!\d,)(\d+),(\d+(?:[eE][+-]?\d+)?)(?![\d.]|,\d)")
_WHOLE_COMMA = re.compile(r"[+-]?\d+,\d+")


def value_of(key: str, text: str, *, decimal_comma: bool) -> Any:
    """The value of a cell. Numbers stay text, since they may be ranges; `|` separates alternatives.

    key: the field. decimal_comma: whether a comma between digits can only be a decimal one. Raises RequestError for
    what a spreadsheet program has made of a value, and for what can be read in two ways.
    """
    if said := _TEXT.fullmatch(text):
        text = said[1].replace('""', '"')
    if _FAILED.fullmatch(text):
        raise RequestError(f"{key}: {shown(text)} is a formula that failed; {AS_TEXT}")
    if key == "adapters":
        mixes = [_mix(part) for part in text.split("|")]
        return mixes[0] if len(mixes) == 1 else {"any": mixes}
    if key in _TRUTHS:
        text = "|".join(map(_truth, text.split("|")))
    if "|" in text and (key == "model" or key in _ALTERNATIVES):
        return [part.strip() for part in text.split("|")]
    return _number(key, text, decimal_comma) if key in (*WHOLE, *REAL) else text


def _mix(text: str) -> list[dict[str, Any]]:
    """The adapters of a text such as 'fox=0.8; owl=0.5:0.2'; each is written as for --lora, or with decimal commas."""
    plain = re.sub(r"(?<=[=:])(\s*[+-]?\d{1,20}),(?=\d)", r"\1.", text)
    return [plain_wanted(parse_lora(part.strip())) for part in plain.split(";") if part.strip()]


def _truth(text: str) -> str:
    word = text.strip().casefold()
    return "true" if word in _TRUE else "false" if word in _FALSE else text


def _number(key: str, text: str, decimal_comma: bool) -> str:
    """The numbers of a cell, with decimal points. Raises RequestError."""
    if len(text) > LONGEST_NUMBER:
        return text
    said = _WIDE.sub("", text.replace("\u2212", "-").replace("\u2013", "-")).replace("\u00a0", " ").strip()
    if _DATE.fullmatch(said):
        raise RequestError(f"{key}: {shown(text)} is a date that a spreadsheet program made; {AS_TEXT}")
    whole = key in WHOLE
    if whole and _EXPONENT.search(said):
        raise RequestError(
            f"{key}: {shown(text)} has lost its last digits in a spreadsheet program; {AS_TEXT}"
        )
    if _GROUPED.fullmatch(said) and not (
        decimal_comma and not whole and said.count(",") == 1 and "." not in said
    ):
        plain = said.replace(",", "")
        raise RequestError(
            f"{key}: {shown(text)} may be one number or several; write {plain}, or {said.replace(',', ', ')}"
        )
    if _DOTTED.fullmatch(said) and (whole or decimal_comma):
        raise RequestError(
            f"{key}: {shown(text)} may be {said.replace('.', '')} or less; write it without a dot"
        )
    if whole:
        return _whole(key, text, said) if decimal_comma else said
    if decimal_comma:
        return _COMMA.sub(r"\1.\2", _BOTH.sub(lambda match: f"{match[1].replace('.', '')}.{match[2]}", said))
    if _WHOLE_COMMA.fullmatch(said):
        one, two = said.replace(",", "."), said.replace(",", ", ")
        raise RequestError(f"{key}: {shown(text)} may be one number or two; write {one}, or {two}")
    return said


def _whole(key: str, text: str, said: str) -> str:
    if not _WHOLE_COMMA.fullmatch(said):
        return said
    before, _, after = said.partition(",")
    if after.strip("0"):
        raise RequestError(
            f"{key}: {shown(text)} may be one number or two; write {before}, or {before}, {after}"
        )
    return before
