"""Every format says what the advice says, obeys nobody whose words it shows, and keeps its bytes.

The golden files: ``ALIGN_GOLDEN=write pytest tests/advisor/test_render.py`` writes them anew; look at the difference.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.advisor.render import FORMATS, BriefFile, Format, render
from align.advisor.render.html_page import shares
from align.advisor.render.outline import UNDERSTOOD, MemoryBar, correction, heading, outline, readings
from align.advisor.render.source_location import Region
from align.schemas.advice import Advice, Quote, Range
from tests.advisor.advices import BRIEF, everywhere, full, insufficient
from tests.core.report.test_report_hostile import PAYLOADS
from tests.core.reports import Shape

GOLDEN = Path(__file__).parent / "golden"
SUFFIX = {"text": "txt", "json": "json", "markdown": "md", "html": "html", "sarif": "sarif", "github": "github"}
FILE = BriefFile("brief.md", "---\ntried: []\n---\n" + BRIEF, 18)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["full", "insufficient"])
def test_golden(name: str, format: Format) -> None:
    advice = {"full": full, "insufficient": insufficient}[name]()
    shown = render(advice, format, brief=FILE)
    file = GOLDEN / f"{name}.{SUFFIX[format]}"
    if os.environ.get("ALIGN_GOLDEN") == "write":
        file.write_text(shown)
    assert shown == file.read_text()


def test_json_is_the_advice_itself() -> None:
    shown = render(full(), "json")
    assert Advice.model_validate_json(shown) == full()
    assert json.loads(shown)["schema"] == "align.advice/1"


@pytest.mark.parametrize("format", ["text", "markdown", "html"])
def test_everything_in_the_outline_is_shown(format: Format) -> None:
    shown = render(full(), format)
    said = " ".join(Shape(shown).text) if format == "html" else shown.replace("\\", "")
    flat = " ".join(said.split())
    assert UNDERSTOOD in flat and correction(full()) in flat and "confidence high (0.96)" in flat
    assert "knowledge, scorer, model" in flat, "goal too, which is asked about"
    for reading in readings(full()):
        assert reading.topic in flat
        for entry in reading.entries:
            for words in (entry.text, *entry.code, *(quote.quote for quote in entry.quotes)):
                assert words in flat, words
    for section in outline(full()):
        assert section.title in flat
        for item in section.items:
            for words in (item.mark, item.text, *item.more, *item.code, *(quote.quote for quote in item.quotes)):
                assert words in flat, words


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_terminal_is_kept_to_and_commands_stay_whole(width: int) -> None:
    shown = render(full(), "text", width=width).splitlines()
    commands = [code for section in outline(full()) for item in section.items for code in item.code]
    assert all(any(line.strip().endswith(code) for line in shown) for code in commands)
    prose = [line for line in shown if not any(code in line for code in commands)]
    assert max(map(len, prose)) <= min(width, 100)
    assert not any("\x1b" in line for line in shown)
    assert "\x1b[" in render(full(), "text", width=width, colour=True)


def test_a_pipe_gets_whole_sentences() -> None:
    shown = render(full(), "text", width=None).splitlines()
    for section in outline(full()):
        for item in section.items:
            assert all(any(words in line for line in shown) for words in (item.text, *item.more, *item.code))


def test_a_long_quote_is_cut_in_the_terminal_only() -> None:
    long = "so many words " * 20 + "end"
    advised = full()
    first = advised.understood[0].quotes[0].model_copy(update={"quote": long})
    facts = [advised.understood[0].model_copy(update={"quotes": [first]}), *advised.understood[1:]]
    advised = advised.model_copy(update={"understood": facts})
    shown = render(advised, "text", width=100)
    assert "“so many words" in shown and "…”" in shown and "words end" not in shown
    assert f"“{long}”" in render(advised, "text", width=None).splitlines()[1]
    assert long in render(advised, "markdown") and long in render(advised, "html")


@pytest.mark.parametrize("format", ["text", "markdown", "html"])
def test_the_reading_is_shown_before_the_answer(format: Format) -> None:
    shown = render(full(), format).partition("</title>")[2] if format == "html" else render(full(), format)
    places = [shown.index(words) for words in (UNDERSTOOD, "Misread?", heading(full()), "Or read otherwise", "Why")]
    assert places == sorted(places)


def test_insufficient_advice_asks_first() -> None:
    assert [section.id for section in outline(insufficient())] == ["missing"]
    assert render(insufficient(), "text").index("What data is there?") < 500


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_hostile_words_stay_words(payload: str) -> None:
    payload = payload.replace("\ud83d", "")  # which no advice can hold
    plain, hostile = Shape(render(everywhere("plain"), "html")), Shape(render(everywhere(payload), "html"))
    assert (hostile.tags, hostile.ends) == (plain.tags, plain.ends)
    assert hostile.declarations == plain.declarations == []
    for name in ("href", "src", "http-equiv", "content", "class", "id"):
        assert hostile.values.get(name) == plain.values.get(name)
    for format in FORMATS:
        if format != "json":  # where they are escaped, as JSON has it
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2066]", render(everywhere(payload), format))


def test_a_page_runs_and_loads_nothing() -> None:
    page = render(full(), "html")
    assert "<script" not in page and "http://" not in page and "https://" not in page
    assert "default-src 'none'; style-src 'sha256-" in page


def test_no_line_of_the_brief_is_a_command_of_the_workflow() -> None:
    shown = render(everywhere("100%\n::error file=x::fake\r\n::set-env name=A::b"), "github")
    assert len(shown.splitlines()) == len(render(everywhere("plain"), "github").splitlines())
    assert "100%25%0A::error" in shown
    assert all(re.match(r"::(notice|warning|error) title=", line) for line in shown.splitlines())


def test_markdown_means_itself() -> None:
    shown = render(everywhere("# *bold* [a](b) <b> `code` 1. @you"), "markdown")
    assert r"\# \*bold\* \[a\](b) \<b\> \`code\` 1. \@you" in shown
    assert "`` # *bold* [a](b) <b> `code` 1. @you ``" not in shown  # spaces only where a backtick is at the edge
    assert "``# *bold* [a](b) <b> `code` 1. @you``" in shown
    listed = render(everywhere("1. x"), "markdown")
    assert "- 1\\. x" in listed and "- 1. x" not in listed


def test_sarif_has_what_the_standard_requires() -> None:
    for advice in (full(), insufficient()):
        log = json.loads(render(advice, "sarif", brief=FILE))
        assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
        (run,) = log["runs"]
        rules = run["tool"]["driver"]["rules"]
        assert run["tool"]["driver"]["name"] and len({rule["id"] for rule in rules}) == len(rules)
        for result in run["results"]:
            assert result["message"]["text"] and result["level"] in ("error", "warning", "note")
            assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
            (location,) = result["locations"]
            region = location["physicalLocation"]["region"]
            assert 1 <= region["startLine"] <= region["endLine"] and region["startColumn"] >= 1
    assert "locations" not in json.loads(render(full(), "sarif"))["runs"][0]["results"][0]


def test_findings_point_at_the_words() -> None:
    (said,) = [q for reason in full().reasons for q in reason.quotes if q.span]
    assert FILE.region(said) == Region(5, 11, 5, 31)  # "There are 27 mandatory ...", the second line of the words
    assert FILE.text.splitlines()[4][10:30] == said.quote
    two = Quote(fact="", quote="", span=(BRIEF.index("our own form"), BRIEF.index("There are") + 5), source="")
    assert FILE.region(two) == Region(4, 71, 5, 6)


def test_a_form_is_pointed_at_by_line_or_by_words() -> None:
    form = BriefFile("brief.yaml", "tried: []\r\nrequested: dpo\r\n")
    assert form.region(Quote(fact="", quote="", source="brief.yaml line 2")) == Region(2, 1, 2, 15)
    assert form.region(Quote(fact="", quote="dpo", span=(0, 3), source="description")) == Region(2, 12, 2, 15)
    assert form.region(Quote(fact="", quote="nowhere", source="answers")) is None
    assert form.first([Quote(fact="", quote="", source="brief.yaml line 99")]) == Region(1, 1, 1, 1)


@given(st.text(max_size=60), st.integers(0, 80), st.integers(0, 80))
def test_any_span_has_a_place_in_the_file(text: str, start: int, end: int) -> None:
    place = BriefFile("x", text, 0).region(Quote(fact="", quote="", span=(start, max(start, end)), source=""))
    lines = text.split("\n")
    assert place is not None and place.line <= place.end_line <= len(lines)
    assert place.column <= len(lines[place.line - 1]) + 1 and place.end_column <= len(lines[place.end_line - 1]) + 1


def test_bars_share_the_width_by_what_there_is() -> None:
    assert shares(MemoryBar({"a": 20.0, "none": 0.0, "b": 20.0}, 40.0, 80.0)) == [(0.0, 100.0), (100.0, 100.0)]
    assert shares(MemoryBar({"a": 60.0, "b": 60.0}, 120.0, 80.0)) == [(0.0, 300.0), (300.0, 100.0)]


def test_rendering_imports_no_torch() -> None:
    check = "import sys; from align.advisor.render import render; from tests.advisor.advices import full\n"
    check += "[render(full(), f) for f in ('text', 'json', 'markdown', 'html', 'sarif', 'github')]\n"
    check += "print([name for name in ('torch', 'numpy', 'transformers', 'align.core') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_same_is_said_once() -> None:
    advised = full()
    twice = advised.model_copy(update={"conflicts": advised.conflicts * 2})
    assert outline(twice) == outline(advised)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.05, 0.1, "3 to 6 minutes"), (1.5, 4, "1.5 to 4 hours"), (60, 72, "2.5 to 3 days"), (0, 0.01, "under a minute")],
)
def test_time_has_the_unit_that_suits_it(low: float, high: float, said: str) -> None:
    advised = full()
    assert advised.estimate is not None
    estimate = advised.estimate.model_copy(update={"wall_hours": Range(low=low, high=high)})
    shown = outline(advised.model_copy(update={"estimate": estimate}))
    assert said in [item.text for section in shown for item in section.items]


@pytest.mark.parametrize("format", ["text", "markdown", "html"])
def test_a_setting_can_be_copied_into_a_shell(format: Format) -> None:
    advised = full()
    fact = advised.understood[0].model_copy(update={"setting": "hardware.gpu=RTX 4090"})
    shown = render(advised.model_copy(update={"understood": [fact]}), format).replace("&#39;", "'")
    assert "'hardware.gpu=RTX 4090'" in shown


def test_facts_that_rest_on_the_same_words_are_one_entry() -> None:
    (behaviour, data, hardware) = readings(full())
    assert [entry.text for entry in data.entries] == ["labelled examples, 14,000 rows"]
    assert data.entries[0].code == ("data.0.kind=sft_pairs", "data.0.rows=14000")
    assert [len(each.entries) for each in (behaviour, hardware)] == [2, 1]
    advised = full()
    two = advised.understood[2].model_copy(update={"quotes": [*advised.understood[2].quotes, QUOTED]})
    facts = [*advised.understood[:2], two, *advised.understood[3:]]
    entry = readings(advised.model_copy(update={"understood": facts}))[1].entries[0]
    assert [quote.quote for quote in entry.quotes] == ["14,000 letters", "a second mention"]


QUOTED = Quote(fact="data.sft_pairs = true", quote="a second mention", source="description")


@pytest.mark.parametrize("format", ["text", "markdown", "html"])
def test_a_guess_looks_like_one(format: Format) -> None:
    shown = render(full(), format)
    assert shown.count("perhaps: ") == 1 and "perhaps: prompting was tried" in shown


def test_a_guess_is_not_put_together_with_what_is_sure() -> None:
    words = [{"fact": "", "quote": "14,000 letters", "span": None, "source": "description"}]
    facts = [
        {"topic": "data", "setting": f"data.0.rows={rows}", "text": f"{rows} rows", "quotes": words, "guess": guess}
        for rows, guess in ((1, False), (2, True), (3, True))
    ]
    advised = Advice.model_validate(full().model_dump(by_alias=True) | {"understood": facts})
    assert [entry.text for entry in readings(advised)[0].entries] == ["1 rows", "perhaps: 2 rows, 3 rows"]


@pytest.mark.parametrize("format", ["text", "markdown", "html"])
def test_a_reading_that_only_lacks_facts_has_no_empty_condition(format: Format) -> None:
    other = {"primary": "rag", "probability": 0.2, "facts": [], "settings": [], "question": "Is it so?"}
    advised = Advice.model_validate(full().model_dump(by_alias=True) | {"other_readings": [other]})
    (item,) = next(section for section in outline(advised) if section.id == "otherwise-read").items
    assert item.text == "probability 0.20"
    assert "if (" not in render(advised, format)
