"""Reads tables of text as spreadsheet programs write them: Excel, LibreOffice, Google Sheets.

Commas, semicolons or tabs between the cells; `sep=;` in the first line; UTF-8, UTF-16 or, told in a note, Windows-1252;
quotes; empty rows and columns at the end. What the cells mean stands in `studio.batch.cells`.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from composers.shown import shown
from pipelines.errors import RequestError

SPREADSHEETS = ".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".fods", ".numbers", ".gsheet"
"""Endings of spreadsheet programs' own files."""
AS_CSV = "it is a spreadsheet program's own file; save it as CSV (UTF-8), and give that"
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
MOST_COLUMNS = 1_000
"""Most columns of a table; those without a heading must be empty."""
MOST_CELLS = 20_000
"""Most cells of one row, empty ones included: Excel has 16384 columns."""
GUESSED_FROM = 2**16
"""Characters at the beginning of a text from which it is found out what stands between the cells."""
LOOKED_AT = 200
"""Rows that are looked at to find the header, and what stands between the cells."""

_OWN_FILES = b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""How the files of Excel and LibreOffice begin."""
_BYTE_ORDER = (
    (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
)  # fmt: skip
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w"\n])"?[ \t,;]*(?:\n|$)', re.IGNORECASE)


def is_spreadsheet(data: bytes) -> bool:
    """Whether a file's bytes begin as those of Excel's and LibreOffice's own files do."""
    return data.startswith(_OWN_FILES)


def decoded(data: bytes) -> tuple[str, str]:
    """The text of a table's or prompt file's bytes, and a note, "" if there is none. Raises UnicodeDecodeError."""
    text, note = _text(data)
    return text.removeprefix("\ufeff"), note


def _text(data: bytes) -> tuple[str, str]:
    for mark, encoding in _BYTE_ORDER:
        if data.startswith(mark):
            return data.decode(encoding), ""
    head = data[:1000]
    if b"\0" in head and not _is_utf8(data):  # UTF-16 without a mark: every second byte of plain letters is 0
        little = head[1::2].count(0) >= head[0::2].count(0)
        return data.decode("utf-16-le" if little else "utf-16-be"), ""
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        note = "it is not UTF-8, so it was read as Windows-1252; if letters are wrong, save it as CSV UTF-8"
        return data.decode("cp1252"), note


def _is_utf8(data: bytes) -> bool:
    """Whether bytes with NULs among them are UTF-8. UTF-16 is full of control characters where it can be read so."""
    head = data[:1000]
    if sum(byte < 32 and byte not in b"\t\n\r" for byte in head) * 8 > len(head):
        return False
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class Row:
    """One row of a table. line: where it ends, from 1. cells: heading -> its text, without empty ones. trouble: what
    is wrong with it, or ""."""

    line: int
    cells: dict[str, str]
    trouble: str = ""


@dataclass(frozen=True)
class Table:
    """A table. separator: what stands between its cells. header: line and headings; without those of empty columns at
    the end. skipped: lines before its text."""

    separator: str
    header: tuple[int, tuple[str, ...]]
    text: str
    skipped: int
    quoted: bool = True

    @property
    def decimal_comma(self) -> bool:
        """Whether a comma between digits is a decimal one: commas do not stand between the cells."""
        return self.separator != ","

    def rows(self) -> Iterator[Row]:
        """The rows below the header that are not empty. Raises RequestError for a text that is no table."""
        headings = self.header[1]
        for line, row in _rows(self.text, self.separator, self.quoted):
            if not row or line + self.skipped == self.header[0]:
                continue
            cells = [cell.strip() for cell in row]
            while len(cells) > len(headings) and not cells[-1]:
                cells.pop()
            stray = next((cell for cell, name in zip(cells, headings, strict=False) if cell and not name), "")
            trouble = ""
            if len(cells) > len(headings):
                trouble = (
                    f"{len(cells)} cells under {len(headings)} headings; put cells with "
                    f"{SEPARATORS.get(self.separator, shown(self.separator))} in quotes"
                )
            elif stray:
                trouble = f"the cell {shown(stray)} stands under no heading; give its column one, or empty it"
            found = {name: cell for name, cell in zip(headings, cells, strict=False) if name and cell}
            yield Row(line + self.skipped, found, trouble)


def read_table(text: str, names: Mapping[str, str], separator: str = ",") -> Table | None:
    """The table of a text; None for an empty one. separator: what stands between the cells where the text does not show
    it. names: the headings that mean something, each with its field's own name; in the text they may have capitals and
    spaces.

    Raises RequestError for a text that is no table, too many columns, a heading that stands twice, and a title above
    the headings.
    """
    skipped = 0
    if stated := _SEPARATOR_LINE.match(text):
        text, skipped, separator = text[stated.end() :], 1, stated[1]
    else:
        separator = _separator(text[:GUESSED_FROM], names, separator)
    quoted = separator != "\t" or _is_sound(text)
    line, row = _first(text, separator, quoted)
    if not row:
        return None
    while row and not row[-1].strip():
        row.pop()
    if len(row) > MOST_COLUMNS:
        raise RequestError(f"{len(row)} headings are more than a job has fields; split it")
    headings = tuple(_heading(cell, names) for cell in row)
    if not names.keys() & headings and (below := _headings_below(text[:GUESSED_FROM], names)):
        raise RequestError(
            f"line {line + skipped}: {shown(row[0])} stands above the headings, which are in line {below + skipped}; "
            "take out what is above them"
        )
    twice = [name for name, count in Counter(headings).items() if name and count > 1]
    if twice:
        written = [shown(cell.strip()) for cell, name in zip(row, headings, strict=True) if name == twice[0]]
        told = f", as {' and '.join(written)}" if len(set(written)) > 1 else ""
        raise RequestError(f"the heading {shown(twice[0])} stands twice{told}; keep one")
    return Table(separator, (line + skipped, headings), text, skipped, quoted)


def is_table(text: str, names: Mapping[str, str]) -> bool:
    """Whether a text of prompts is a table: its first row holds the heading `prompt` and another one. Between commas
    nothing else may stand there, since prompts have commas too. names: as in `read_table`."""
    if _SEPARATOR_LINE.match(text):
        return True
    for separator in SEPARATORS:
        cells = [_heading(cell, names) for cell in _guessed(text[:GUESSED_FROM], separator) if cell.strip()]
        known = sum(cell in names for cell in cells)
        if "prompt" in cells and known > 1 and (separator != "," or known == len(cells)):
            return True
    return False


def _rows(text: str, separator: str, quoted: bool = True) -> Iterator[tuple[int, list[str]]]:
    """The rows, each with the line in which it ends; [] for a row of empty cells. Raises RequestError."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        strict=True,
        skipinitialspace=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    try:
        for row in reader:
            if len(row) > MOST_CELLS:
                raise RequestError(
                    f"line {reader.line_num}: {len(row)} cells are more than a table has; split it"
                )
            yield reader.line_num, row if any(cell.strip() for cell in row) else []
    except csv.Error as error:
        raise RequestError(
            f"line {reader.line_num}: it is not valid CSV ({error}); check the quotes"
        ) from error


def _separator(text: str, names: Mapping[str, str], usual: str) -> str:
    """What stands between the cells: that which splits the first row into most known headings. Where there is one
    heading alone, that which splits no row; where there is none, that which makes most cells."""
    likely = tuple(dict.fromkeys((usual, *SEPARATORS)))
    firsts = {one: _guessed(text, one) for one in likely}
    known = {one: sum(_heading(cell, names) in names for cell in firsts[one]) for one in likely}
    most = max(known.values())
    best = [one for one in likely if known[one] == most]
    if most == 1 and all(len(firsts[one]) == 1 for one in best):
        return next((one for one in best if _is_one_column(text, one)), usual)
    return best[0] if most else max(likely, key=lambda one: len(firsts[one]))


def _first(text: str, separator: str, quoted: bool) -> tuple[int, list[str]]:
    """The header and its line; (0, []) where the first rows are empty. Raises RequestError."""
    rows = islice(_rows(text, separator, quoted), LOOKED_AT)
    return next(((line, row) for line, row in rows if row), (0, []))


def _guessed(text: str, separator: str) -> list[str]:
    try:
        return _first(text, separator, quoted=True)[1]
    except RequestError:
        return []


def _headings_below(text: str, names: Mapping[str, str]) -> int:
    """The line of the first row whose cells are all known headings; 0 where there is none. text: may end within a
    row."""
    lines = []
    for separator in SEPARATORS:
        with suppress(RequestError):
            for line, row in islice(_rows(text, separator), LOOKED_AT):
                if row and all(_heading(cell, names) in names for cell in row if cell.strip()):
                    lines.append(line)
                    break
    return min(lines, default=0)


def _is_one_column(text: str, separator: str) -> bool:
    """Whether no row has a second cell. text: may end within a row."""
    seen = 0
    try:
        for _, row in islice(_rows(text, separator), LOOKED_AT):
            if any(cell.strip() for cell in row[1:]):
                return False
            seen += bool(row)
    except RequestError:
        return seen > 1
    return True


def _is_sound(text: str) -> bool:
    """Whether a tab-separated text follows the rules of quotes. Google Sheets writes quotes as they are."""
    try:
        for _ in _rows(text, "\t"):
            pass
    except RequestError:
        return False
    return True


def _heading(cell: str, names: Mapping[str, str]) -> str:
    """A heading as the name of a field, where it is one of its names but for capitals, spaces and hyphens."""
    name = "_".join(cell.casefold().replace("-", " ").split())
    return names.get(name, cell.strip())
