"""Tables as spreadsheet programs write them: read as they are meant, or refused with what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import SetupError, StudioError
from studio.batch.cells import value_of
from studio.batch.jobfile import read_jobs
from studio.batch.plan import Ground, plan
from studio.batch.problems import Problems
from studio.batch.tables import decoded
from studio.batch.values import numbers
from studio.batch.variants import Wildcards

from ...budget import cheap

JOB = {"prompt": "a fox, red", "seed": "7", "guidance_scale": "3.5"}


def fields(path: Path, data: bytes | str) -> list[dict[str, Any]]:
    """The jobs of a file without mistakes."""
    found, messages, _ = read(path, data)
    assert not messages, messages
    return found


def read(path: Path, data: bytes | str) -> tuple[list[dict[str, Any]], list[str], tuple[str, ...]]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    problems = Problems()
    jobs = read_jobs(path, problems)
    return [dict(entry.fields) for entry in jobs.entries], problems.messages, jobs.notes


GERMAN = 'prompt;seed;guidance_scale\r\n"a fox, red";7;3,5\r\n'
TABS = "prompt\tseed\tguidance_scale\na fox, red\t7\t3,5\n"
TABLES = {
    "Excel in Germany": ("a.csv", GERMAN),
    "its line that names the separator": ("a.csv", f"sep=;\r\n{GERMAN}"),
    "that line in quotes": ("a.csv", f'"sep=;"\r\n{GERMAN}'),
    "a line that names tabs": ("a.csv", f"sep=\t\n{TABS}"),
    "a line that names another sign": ("a.csv", "sep=|\nprompt|seed|guidance_scale\na fox, red|7|3.5\n"),
    "a byte order mark": ("a.csv", b"\xef\xbb\xbf" + GERMAN.encode()),
    "Excel's Unicode text": ("a.txt.csv", TABS.encode("utf-16")),
    "big-endian": ("a.csv", b"\xfe\xff" + GERMAN.encode("utf-16-be")),
    "UTF-16 without a mark": ("a.csv", GERMAN.encode("utf-16-le")),
    "Excel in England": ("a.csv", 'prompt,seed,guidance_scale\r\n"a fox, red",7,3.5\r\n'),
    "line ends of an old Mac": ("a.csv", GERMAN.replace("\r\n", "\r")),
    "Google Sheets, tabs": ("a.tsv", TABS.replace("3,5", "3.5")),
    "tabs under the name of commas": ("a.csv", TABS),
    "the ending .tab": ("a.tab", TABS),
    "Excel's Unicode text under its own ending": ("a.txt", TABS.encode("utf-16")),
    "Excel's text with tabs": ("a.txt", TABS.encode("cp1250")),
    "semicolons under the ending of prompts": ("a.txt", GERMAN),
    "formulas that are texts": ("a.csv", 'prompt,seed,guidance_scale\n"=""a fox, red""","=""7""",3.5\n'),
    "commas under the name of tabs": ("a.tsv", 'prompt,seed,guidance_scale\n"a fox, red",7,3.5\n'),
    "LibreOffice, all texts in quotes": ("a.csv", '"prompt";"seed";"guidance_scale"\n"a fox, red";7;3,5\n'),
    "empty columns and rows at the end": ("a.csv", f"{GERMAN.replace(chr(13), ';;')};;;;\n;;\n\n"),
    "capitals and spaces in headings": ("a.csv", 'Prompt; SEED ;Guidance\u00a0scale\n"a fox, red";7;3,5\n'),
    "non-breaking spaces": ("a.csv", 'prompt;seed;guidance_scale\n\u00a0a fox, red\u00a0;\u00a07;3,5\u00a0\n'),
    "an empty first row": ("a.csv", f";;\n{GERMAN}"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "data"), TABLES.values(), ids=TABLES)
def test_a_table_is_read_whichever_program_wrote_it(tmp_path: Path, name: str, data: bytes | str) -> None:
    assert fields(tmp_path / name, data) == [JOB]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("prompt\na fox, red\nan owl\n", ["a fox, red", "an owl"]),
        ('prompt\n"a fox, red"\n', ["a fox, red"]),
        ("prompt\na fox; red, and so on\n", ["a fox; red, and so on"]),
        ("prompt;\na fox, red;\n", ["a fox, red"]),
        ('prompt\n"a\nfox"\n', ["a\nfox"]),
    ],
)
def test_a_table_of_one_column(tmp_path: Path, text: str, prompts: list[str]) -> None:
    assert [job["prompt"] for job in fields(tmp_path / "a.csv", text)] == prompts


def test_a_long_table_of_one_column(tmp_path: Path) -> None:
    rows = ["a fox, red", *[f'"{"long, " * 200}"'] * 100, "an owl, white"]
    found = fields(tmp_path / "a.csv", "\n".join(["prompt", *rows]))
    assert (len(found), found[0]["prompt"], found[-1]["prompt"]) == (102, rows[0], rows[-1])


def test_a_table_wider_than_any_is_refused_soon(tmp_path: Path) -> None:
    for data in ("prompt" + ";" * 100_000, "prompt;seed\na;" + ";" * 100_000):
        with cheap():
            _, messages, _ = read(tmp_path / "a.csv", data)
        assert re.search(r"cells are more than a table has|unknown field 'prompt;;", messages[0])


def test_headings_have_the_names_that_lines_of_prompts_take(tmp_path: Path) -> None:
    assert fields(tmp_path / "a.csv", "Prompt,CFG scale,sampler_name,negative\na fox,5,Euler a,fog\n") == [
        {"prompt": "a fox", "guidance_scale": "5", "scheduler": "Euler a", "negative_prompt": "fog"}
    ]
    assert fields(tmp_path / "a.txt", "a fox --cfg_scale 5 --sampler_name Euler a --negative fog\n") == [
        {"prompt": "a fox", "guidance_scale": "5", "scheduler": "Euler a", "negative_prompt": "fog"}
    ]


def test_lines_of_prompts_with_tabs_and_commas_stay_prompts(tmp_path: Path) -> None:
    for line in ("prompt", "seed, prompt of a fox", "a fox\tred", "prompt, steps, a fox"):
        assert fields(tmp_path / "a.txt", f"{line}\nan owl") == [{"prompt": line}, {"prompt": "an owl"}]
    _, messages, _ = read(tmp_path / "a.txt", "prompt\tseed\tremark\na fox\t7\tx")
    assert "unknown field 'remark'" in messages[0]


def test_a_table_names_loras_and_sizes_as_lines_of_prompts_do(tmp_path: Path) -> None:
    text = "Prompt;LoRA;Size;Denoising strength\na fox;owl=0,5;512 \u00d7 768;0,6\n"
    assert fields(tmp_path / "a.csv", text) == [
        {"prompt": "a fox", "adapters": [{"adapter": "owl", "weight": 0.5}], "width": "512", "height": "768",
         "strength": "0.6"}]  # fmt: skip
    for wrong, said in (
        ("prompt,size,width\na,8x8,8", "line 1: size holds width too; keep one of the columns"),
        ("prompt,size\na,8", "line 2: size '8': it must be WxH in pixels"),
    ):
        assert said in read(tmp_path / "a.csv", wrong)[1][0]


@pytest.mark.parametrize("text", ["prompt,seed\na \0fox,7\n", "prompt,seed\nein \0Füchslein,7\n"])
def test_a_nul_in_utf_8_stays_where_it_is(tmp_path: Path, text: str) -> None:
    assert decoded(text.encode()) == (text, "")
    (tmp_path / "a.csv").write_bytes(text.encode())
    jobs = read_jobs(tmp_path / "a.csv", problems := Problems())
    plan(jobs, Ground("m", {}, Wildcards(None)), problems)
    assert "holds a NUL character; take it out" in problems.messages[0]


@pytest.mark.parametrize("prompt", ["a fox", "лиса в лесу " * 90, "αλεπού " * 90, "狐" * 600, "きつね"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_in_any_script(prompt: str, encoding: str) -> None:
    text = f"prompt;seed\n{prompt.strip()};7\n"
    assert decoded(text.encode(encoding)) == (text, "")


def test_empty_rows_after_the_table_are_no_jobs(tmp_path: Path) -> None:
    assert fields(tmp_path / "a.csv", GERMAN + ";;\r\n" * 20_000) == [JOB]


def test_quotes_in_tabs_of_google_sheets_are_letters(tmp_path: Path) -> None:
    assert fields(tmp_path / "a.tsv", 'prompt\tseed\n"red" fox\t7\na "hat"\t8\n') == [
        {"prompt": '"red" fox', "seed": "7"}, {"prompt": 'a "hat"', "seed": "8"}]  # fmt: skip
    assert fields(tmp_path / "b.tsv", 'prompt\tseed\n"a\tred ""fox"""\t7\n') == [
        {"prompt": 'a\tred "fox"', "seed": "7"}]  # fmt: skip


def test_windows_letters_are_read_and_told(tmp_path: Path) -> None:
    jobs, messages, notes = read(
        tmp_path / "a.csv", "prompt;seed\nein Füchslein \u20ac rot;7\n".encode("cp1252")
    )
    assert (jobs, messages) == ([{"prompt": "ein Füchslein \u20ac rot", "seed": "7"}], [])
    assert notes == (
        "a.csv: it is not UTF-8, so it was read as Windows-1252; if letters are wrong, save it as CSV UTF-8",
    )
    assert read(tmp_path / "a.txt", "ein Füchslein\n".encode("cp1252"))[2]
    assert not read(tmp_path / "b.csv", "prompt\nein Füchslein\n")[2]
    with pytest.raises(SetupError, match="save it as UTF-8 text"):
        read(tmp_path / "c.csv", b"prompt\na \x81 fox\n")


@pytest.mark.parametrize("name", ["a.xlsx", "a.XLS", "a.ods", "a.csv", "a.tsv", "a.txt"])
def test_a_spreadsheet_programs_own_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    for data in (b"PK\x03\x04rest", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1rest"):
        with pytest.raises(
            SetupError, match=rf"{name}: it is a spreadsheet program's own file; save it as CSV"
        ):
            read(tmp_path / name, data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,seed\na,1,2", "line 2: 3 cells under 2 headings; put cells with commas in quotes"),
        ("prompt;seed\na;1;2", "line 2: 3 cells under 2 headings; put cells with semicolons in quotes"),
        ("prompt;;seed\na;b;1", "line 2: the cell 'b' stands under no heading"),
        ("prompt;seed;seed\na;1;2", "the heading 'seed' stands twice"),
        ("Prompt;prompt\na;b", "the heading 'prompt' stands twice"),
        ("prompt;sede\na;1", "unknown field 'sede'; did you mean 'seed'?"),
        ("prompt,cfg_scale,Guidance\na,1,2",
         "the heading 'guidance_scale' stands twice, as 'cfg_scale' and 'Guidance'; keep one"),
        ("My jobs of May\nprompt,seed\na,1",
         "line 1: 'My jobs of May' stands above the headings, which are in line 2; take out what is above them"),
        ("sep=;\nMy jobs;;\n;;\nprompt;seed\na;1", "line 2: 'My jobs' stands above the headings, which are in line 4"),
        ('"Jobs, of May"\nprompt\na', "line 1: 'Jobs, of May' stands above the headings, which are in line 2"),
        ("sep=;\nprompt;seed\na;1;2", "line 3: 3 cells"),
        ('prompt;seed\n"a;1', "not valid CSV"),
        ("prompt;seed\na;4,29E+09", "line 2: seed: '4,29E+09' has lost its last digits in a spreadsheet program"),
        ("prompt,seed\na,4.29E+09", "line 2: seed: '4.29E+09' has lost its last digits in a spreadsheet program"),
        ("prompt,guidance_scale\na,1-Jan", "guidance_scale: '1-Jan' is a date that a spreadsheet program made"),
        ("prompt,seed\na,#NAME?", "seed: '#NAME?' is a formula that failed"),
        (";".join(f"h{n}" for n in range(1200)), "headings are more than"),
    ],
)  # fmt: skip
def test_a_table_that_means_nothing_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    _, messages, _ = read(tmp_path / "a.csv", text)
    assert said in messages[0]
    assert len(messages[0]) < 1000


@pytest.mark.parametrize(
    ("key", "text", "decimal_comma", "value"),
    [
        ("guidance_scale", "3,5", True, "3.5"),
        ("guidance_scale", "0,5-1,0 (+0,25)", True, "0.5-1.0 (+0.25)"),
        ("guidance_scale", "1,5, 2,5, 3", True, "1.5, 2.5, 3"),
        ("guidance_scale", "1,00E+01", True, "1.00E+01"),
        ("guidance_scale", "1.024,5", True, "1024.5"),
        ("guidance_scale", "0.125", True, "0.125"),
        ("guidance_scale", "1, 3, 5-7", False, "1, 3, 5-7"),
        ("guidance_scale", "\u22121", False, "-1"),
        ("seed", "1, 3, 5-7", True, "1, 3, 5-7"),
        ("seed", "1,2", False, "1,2"),
        ("seed", "1,2,3", True, "1,2,3"),
        ("seed", "4\u202f294\u00a0967\u00a0295", True, "4294967295"),
        ("seed", "18446744073709551615", False, "18446744073709551615"),
        ("steps", "20,0", True, "20"),
        ("seed", "-1", True, "-1"),
        ("seed", "1\u20135", False, "1-5"),
        ("name", "3,5", True, "3,5"),
        ("prompt", "1-Jan", True, "1-Jan"),
        ("crop", "1024,768", True, "1024,768"),
        ("scheduler", "Euler|DDIM", False, ["Euler", "DDIM"]),
        ("adapters", "fox=0,8; owl=0,5:0,25", False,
         [{"adapter": "fox", "weight": 0.8}, {"adapter": "owl", "weight": 0.5, "text_weight": 0.25}]),
    ],
)  # fmt: skip
def test_cells(key: str, text: str, decimal_comma: bool, value: object) -> None:
    assert value_of(key, text, decimal_comma=decimal_comma) == value


@pytest.mark.parametrize(
    ("key", "text", "decimal_comma", "said"),
    [
        ("guidance_scale", "3,5", False, "may be one number or two; write 3.5, or 3, 5"),
        ("guidance_scale", "1,024", False, "may be one number or several; write 1024, or 1, 024"),
        ("guidance_scale", "1.500", True, "may be 1500 or less; write it without a dot"),
        ("width", "1,024", False, "write 1024, or 1, 024"),
        ("width", "1,024", True, "write 1024, or 1, 024"),
        ("width", "1.024", False, "may be 1024 or less"),
        ("steps", "1,5", True, "may be one number or two; write 1, or 1, 5"),
        *[("seed", said, True, "has lost its last digits")
          for said in ("4.29E+09", "4,29E+09", "1,00E+05", "1E5", "1.5e+3", "4,29497E+09")],
        *[("guidance_scale", said, True, "is a date")
          for said in ("1-Jan", "01. Jan", "1. Jan.", "Jan-01", "01.Mrz", "5-févr.", "1 mai 2026", "2026-01-05",
                       "01.05.2026", "1/5/26", "2026-01-05 00:00:00", "Mai 05")],
        *[("prompt", said, True, "is a formula that failed") for said in ("#NAME?", "#WERT!", "#DIV/0!", "#N/A")],
    ],
)  # fmt: skip
def test_what_a_spreadsheet_program_has_changed_is_refused(
    key: str, text: str, decimal_comma: bool, said: str
) -> None:
    with pytest.raises(StudioError) as error:
        value_of(key, text, decimal_comma=decimal_comma)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{key}: ")


def test_truths_of_other_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.batch.cells._TRUTHS", ("odd",))
    for yes, no in (("TRUE", "FALSE"), ("WAHR", "FALSCH"), ("VRAI", "FAUX"), ("Verdadero", "Falso")):
        assert value_of("odd", yes, decimal_comma=False) == "true"
        assert value_of("odd", no, decimal_comma=False) == "false"


def test_numbers_of_any_text_are_read_at_their_scale(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="lost its last digits; write all of them"):
        numbers("4.29E+09", whole=True)
    jobs, messages, _ = read(tmp_path / "a.jsonl", json.dumps({"prompt": "a", "seed": "1e3"}))
    assert (jobs[0]["seed"], messages) == ("1e3", [])


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"\xff\xfe\x00", b"\0" * 50, b"a\0b\0", b"\xff\xfe\x00\xd8" * 9]
)
def test_whatever_the_bytes_are_there_is_a_text_or_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    try:
        assert isinstance(decoded(data)[0], str)
    except (StudioError, UnicodeDecodeError):
        with pytest.raises(StudioError):
            read(tmp_path / "a.csv", data)
