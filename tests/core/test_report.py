"""The report: geometry by hand, hostile text in every field, half-finished runs, and a real browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from align.core.report import Answer, Figure, Row, Sample, Table, print_table, write_report
from align.core.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, chart, smooth, thin, ticks
from align.core.report.facts import chosen
from align.core.report.page import Bar, _bars
from align.core.report.read import read_run
from align.core.report.text import number, visible
from align.core.strictyaml import write as to_yaml
from align.core.train.launch import train
from align.schemas.errors import AlignError
from align.schemas.run import Choice
from tests.core.runs import run_for, write_rows

SECTIONS = ["trained", "change", "curves", "samples", "next"]

PAYLOADS = [
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</textarea></noscript></template><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "` onmouseover=alert(1) `",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><style>@import 'http://evil.example/x.css'</style>",
    "<a href=javascript:alert(1)>x</a>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<link rel=stylesheet href=http://evil.example>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<base href=http://evil.example/>",
    "<object data=data:text/html,x>",
    "<form action=http://evil.example><button>go</button></form>",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script><![CDATA[",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "<\x00script>alert(1)</script>",
    "<scr\u200bipt>",
    "{{ 7 * 7 }}{% raw %}",
    "${7*7}<%= 7*7 %>",
    "\ud83d<script>lone surrogate</script>",
    "\u202egnp.exe\u2066<b>",
    "\x1b[2J\x1b]0;title\x07<i>",
    "\u2028<u>\u2029",
    "[red]markup[/red]</dd></dl></article></section></body></html>",
]


METRICS = "step,epoch,loss,{0},val/loss,val/{0}/loss\n1,0,2,5,,\n2,0,1,6,,\n2,0,,,1.5,1.75\n3,1,,,1.25,1\n"


def write_run(directory: Path, text: str = "plain", stages: Sequence[str] = ("sft",), metrics: str = METRICS) -> Path:
    """A run directory with ``text`` in every place that holds text, as ``align train`` would have left it."""
    said = text.replace("\ud83d", "")  # which no run file may hold
    settings = [
        {
            "name": stage,
            "model": {"path": said, "chat_template": said},
            "data": {"train": [{"path": said}], "validation": [{"path": said, "name": said}], "allow": [said]},
            "algorithm": {"type": said, "beta": said, "nested": {"deep": [said]}},
            "train": {"batch_size": 8},
            "seed": 0,
        }
        for stage in stages
    ]
    directory.mkdir(parents=True)
    (directory / "run.yaml").write_text(to_yaml({"output": "out", "stages": settings}))
    noted = {stage: {"steps": 3, "data": text, "world_size": 1} for stage in stages}
    facts = {"stages": noted, "versions": {text: text}, "python": text, "started": text, "command": [text]}
    (directory / "manifest.json").write_text(json.dumps(facts))
    for stage in stages:
        (directory / stage).mkdir()
        report = {"sources": [{"path": text, "rows": 3, "form": text}], "bad": 1}
        (directory / stage / "data_report.json").write_text(json.dumps(report))
        column = "".join(c for c in text if c.isprintable() and c not in ',"\ud83d')
        (directory / stage / "metrics.csv").write_text(metrics.format(column))
        (directory / stage / "done.json").write_text("{}")
    return directory


def measures(text: str = "plain") -> dict[str, Any]:
    figures = (Figure(0.2, 0.1, 0.3), Figure(0.9, 0.8, 0.95))
    answers = (Answer(text, text, True), Answer(text, text, False), Answer(text, text))
    return {"table": Table((text, text), (Row(text, figures, note=text),)), "samples": [Sample(text, answers, text)]}


class Shape(HTMLParser):
    """The tags with their attributes' names and inert values, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.ends: list[str] = []
        self.values: dict[str, list[str]] = {}
        self.text: list[str] = []
        self.declarations: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        for name, value in attrs:
            self.values.setdefault(name, []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self.ends.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.declarations.append(data)

    def unknown_decl(self, data: str) -> None:
        self.declarations.append(data)


def page_of(directory: Path, title: str = "title", **shown: Any) -> str:
    path = directory / "report.html"
    write_report(directory, path, title=title, **shown)
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- geometry


def test_the_coordinates_of_a_known_curve() -> None:
    # The plot is 48..312 wide and 158..20 high (downwards). Values 0..1 get the ticks 0, 0.5 and 1.
    assert (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM) == (48, 312, 158)
    drawn = chart([(0, 0.0), (10, 1.0)], [(5, 0.5)])
    assert drawn is not None
    assert drawn.smooth == "M48.0,158.0L312.0,20.0"
    assert drawn.raw == ""  # too short to smooth: drawn once
    assert (drawn.held_out, drawn.marks) == ("M180.0,89.0", [(180.0, 89.0)])
    assert drawn.y_ticks == [(158.0, "0"), (89.0, "0.5"), (20.0, "1")]
    assert drawn.x_ticks == [(48.0, "0"), (180.0, "5"), (312.0, "10")]
    assert drawn.summary == "0.5"
    assert [(stop.left, stop.width, stop.text) for stop in drawn.stops] == [
        (48.0, 132.0, "step 0: 0"),
        (180.0, 132.0, "step 10: 1, held out 0.5 at 5"),
    ]


def test_a_value_that_is_not_finite_breaks_the_line_and_is_counted() -> None:
    drawn = chart([(0, 0.0), (1, 1.0), (2, math.nan), (3, math.inf), (4, 1.0)], [])
    assert drawn is not None
    assert drawn.smooth == "M48.0,158.0L114.0,20.0M312.0,20.0"
    assert drawn.summary == "0 → 1, 2 not finite"
    assert "step 2: NaN" in [stop.text for stop in drawn.stops]
    assert chart([(0, math.nan)], []) is None
    assert chart([], []) is None


def test_what_is_only_rounding_beside_the_rest_is_told_as_zero() -> None:
    drawn = chart([], [(0, -2.9e-8), (1, 1.31)])
    assert drawn is not None and drawn.ends == ("0", "1.31")


def test_ticks_by_hand() -> None:
    assert ticks(0, 1, 4) == [0, 0.5, 1]  # a quarter is more than 0.2
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(-3, 17, 4) == [-5, 0, 5, 10, 15, 20]
    assert ticks(5, 5, 4) == [2, 4, 6, 8]  # a flat line gets half its size on either side: 2.5..7.5
    assert ticks(0, 0, 4) == [-0.5, 0, 0.5]


def test_smoothing_by_hand() -> None:
    # n = 8: a = 1/2, so the third mean is (4 + 2/2 + 0/4) / (1 + 1/2 + 1/4) = 20/7.
    course = smooth([(0, 0.0), (1, 2.0), (2, 4.0), *[(x, 4.0) for x in range(3, 8)]])
    assert [y for _, y in course[:3]] == pytest.approx([0, 4 / 3, 20 / 7])
    assert smooth([(0, 1.0), (1, 9.0)]) == [(0, 1.0), (1, 9.0)]


def test_thinning_means_neighbours() -> None:
    assert thin([(0, 1.0), (1, 3.0), (2, 5.0), (3, 6.0), (4, 9.0)], 3) == [(1, 2.0), (3, 5.5), (4, 9.0)]


@given(
    st.lists(st.floats(), max_size=60),
    st.lists(st.floats(), max_size=10),
    st.integers(0, 10**6),
)
def test_any_numbers_stay_inside_the_picture(training: list[float], held_out: list[float], start: int) -> None:
    drawn = chart(list(enumerate(training, start)), list(enumerate(held_out, start)))
    if drawn is None:
        return
    written = " ".join([drawn.raw, drawn.smooth, drawn.held_out])
    places = [float(n) for n in re.findall(r"-?[\d.]+", written)]
    places += [y for _, y in drawn.marks] + [y for stop in drawn.stops for dot in stop.dots for y in dot]
    assert all(0 <= place <= WIDTH for place in places)
    assert "nan" not in written and "inf" not in written


def test_interval_bars_by_hand() -> None:
    share = Row("", (Figure(0.25, 0.2, 0.4), None, Figure(math.nan), Figure(0.5)))
    assert _bars(share) == [Bar(0.2, 0.4, 0.25), None, None, Bar(0.5, 0.5, 0.5)]
    # 2..6 gets the ticks 2, 3, ... 6: four of one.
    assert _bars(Row("", (Figure(3, 2, 4), Figure(5, 4, 6)), unit="number")) == [Bar(0, 0.5, 0.25), Bar(0.5, 1, 0.75)]


def test_numbers_are_short() -> None:
    values = [0, 1, -0.5, 3.14159, 999.7, 12_345, 2_500_000, 4e-5, -2.98e-7, 1e12, math.nan, -math.inf]
    written = ["0", "1", "−0.5", "3.14", "1000", "12.3k", "2.5M", "4e-5", "−2.98e-7", "1e12", "NaN", "−∞"]
    assert list(map(number, values)) == written


def test_a_verdict_needs_intervals_that_do_not_meet() -> None:
    low, middle, high = Figure(0.2, 0.1, 0.3), Figure(0.35, 0.25, 0.45), Figure(0.9, 0.8, 0.95)
    assert Row("", (low, middle, high)).verdict == "better"
    assert Row("", (high, low)).verdict == "worse"
    assert Row("", (high, low), better="lower").verdict == "better"
    assert Row("", (low, high), better="lower").verdict == "worse"
    assert Row("", (low, middle)).verdict == "unclear"
    assert Row("", (low, Figure(0.9))).verdict == Row("", (low, None)).verdict == "untested"


def test_a_table_has_a_figure_for_every_stage() -> None:
    with pytest.raises(ValueError, match="accuracy: 1 figures for 2 stages"):
        Table(("base", "sft"), (Row("accuracy", (None,)),))


# ------------------------------------------------------------------------------------------------ hostile text


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_hostile_text_in_every_field_stays_text(payload: str, tmp_path: Path) -> None:
    plain = Shape(page_of(write_run(tmp_path / "plain"), "plain", **measures()))
    hostile = Shape(page_of(write_run(tmp_path / "hostile", payload), payload, **measures(payload)))
    assert hostile.tags == plain.tags
    assert hostile.ends == plain.ends
    assert hostile.declarations == plain.declarations == []
    for name in ("href", "src", "http-equiv", "content", "class", "id"):
        assert hostile.values.get(name) == plain.values.get(name)
    shown = "".join(hostile.text)
    assert shown.count(visible(payload)) >= 15  # and it is shown as it is
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\u200b]", shown)


def test_a_stage_that_is_no_directory_of_the_run_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    file = run / "run.yaml"
    file.write_text(file.read_text().replace("name: sft", "name: ../elsewhere"))
    with pytest.raises(AlignError, match=r"a stage named '\.\./elsewhere'"):
        page_of(run)


def test_the_page_forbids_and_fetches_nothing(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"), **measures())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    style = re.search(r"<style>(.*)</style>", page, re.DOTALL)
    assert policy and style
    known = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'sha256-{known}'; img-src data:; base-uri 'none'; form-action 'none'"
    assert policy[1] == allowed
    shape = Shape(page)
    assert {tag for tag, _ in shape.tags}.isdisjoint(
        {"script", "img", "iframe", "object", "embed", "form", "a", "base"}
    )
    assert not [name for name in shape.values if name.startswith("on") or name in ("src", "style", "srcset", "action")]
    assert shape.values["href"] == ["data:,"]
    assert not re.search(r"https?://|url\(|@import", page)


def test_unseen_characters_are_seen() -> None:
    assert visible("a\x1b[31m\u202eb\r\nc\td\r") == "a⟨U+001B⟩[31m⟨U+202E⟩b\nc\td⟨U+000D⟩"
    assert visible("\ud800\ufeff\U000e0041") == "⟨U+D800⟩⟨U+FEFF⟩⟨U+E0041⟩"
    assert visible("שלום 👩‍🔬 نمی‌خواهم") == "שלום 👩‍🔬 نمی‌خواهم"


# ---------------------------------------------------------------------------------------------- runs of all kinds


def test_structure(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", stages=("sft", "dpo")), "A title", **measures())
    shape = Shape(page)
    assert re.findall(r'<section id="(\w+)">', page) == SECTIONS
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "What was trained",
        "Before and after",
        "Curves",
        "Sample answers",
        "How to go on",
    ]
    assert re.findall(r"<h1[^>]*>(.*)</h1>", page) == re.findall(r"<title>(A title)</title>", page) == ["A title"]
    assert [tag for tag, _ in shape.tags].count("figure") == 2 * 3  # loss, a named held-out loss, one more
    void = {"meta", "link", "line", "circle", "path", "rect"}
    opened = sorted(tag for tag, _ in shape.tags if tag not in void)
    assert opened == sorted(tag for tag in shape.ends if tag not in void)
    assert "20.0 %" in page and "80.0 to 95.0 %" in page and "Better, beyond chance." in page


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("step,epoch,loss\n", "Nothing was logged yet."),
        ("step,epoch,loss\n1,0,nan\n2,0,inf\n", "Nothing was logged yet."),
        ("step,epoch,loss\n1,0,nan\n2,0,3\n3,0,2\n", "3 → 2, 1 not finite"),
        ("step,epoch,loss\n1,0,3\n2,0,2\n3,0,1", "3 → 2"),  # the last line was not finished
    ],
)
def test_metrics_that_are_missing_or_no_numbers(metrics: str, said: str, tmp_path: Path) -> None:
    assert said in page_of(write_run(tmp_path / "run", metrics=metrics))


def test_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=("sft", "dpo"))
    shutil.rmtree(run / "dpo")
    (run / "manifest.json").unlink()
    (run / "sft" / "done.json").unlink()
    page = page_of(run)
    assert "<bdi>sft</bdi> <small>unfinished</small>" in page and "<bdi>dpo</bdi> <small>not begun</small>" in page
    assert "run.yaml --resume" in page and "vllm serve" not in page
    assert "No samples were taken." in page


def test_no_run_is_told_to_the_user(tmp_path: Path) -> None:
    with pytest.raises(AlignError, match=r"has no run\.yaml"):
        page_of(tmp_path)


def test_figures_that_are_not_there(tmp_path: Path) -> None:
    figures = (None, Figure(math.nan, math.nan, math.nan), Figure(math.inf))
    rows = (Row("share", figures), Row("number", figures, unit="number"), Row("none", (None,) * 3))
    page = page_of(write_run(tmp_path / "run"), table=Table(("a", "b", "c"), rows))
    assert "NaN" in page and "∞" in page and "nan" not in "".join(Shape(page).text)


def test_the_terminal_table_says_the_same_and_obeys_no_one() -> None:
    table = Table(
        ("base", "[bold]sft[/bold]"),
        (
            Row("right\x1b[2J answers", (Figure(0.25, 0.2, 0.3), Figure(0.9, 0.875, 0.925))),
            Row("perplexity", (None, Figure(3.14159)), unit="number"),
        ),
    )
    text = io.StringIO()
    print_table(table, Console(file=text, width=100, color_system=None))
    lines = [line.split("  ") for line in text.getvalue().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert [line for line in cells if line and "─" not in line[0]] == [
        ["base", "[bold]sft[/bold]"],
        ["right⟨U+001B⟩[2J answers", "25.0 %", "90.0 %"],
        ["20.0 to 30.0 %", "87.5 to 92.5 %"],
        ["perplexity", "–", "3.14"],
    ]


def test_the_report_loads_no_torch() -> None:
    code = "import sys, align.core.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------------- a real run, in a real browser


@pytest.fixture(scope="module")
def real(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("real")
    rows = write_rows("dpo", place / "rows.jsonl")
    run = run_for("dpo", tiny_model_dir, rows, place / "run")
    stage = run.stages[0].model_copy(update={"algorithm": Choice(type="dpo", settings={"beta": 0.3})})
    train(run.model_copy(update={"stages": [stage]}), progress=False)
    shown = measures("<b>dpo</b> " + "long" * 60)
    write_report(place / "run", place / "run" / "report.html", title="A real run", **shown)
    return place / "run"


def test_a_real_run_is_told_as_it_was(real: Path) -> None:
    page = (real / "report.html").read_text()
    facts = read_run(real)
    assert dict(chosen(facts.stages[0])) == {
        "algorithm.beta": "0.3",
        "data.validation_fraction": "0.2",
        "data.workers": "1",
        "optimizer.learning_rate": "0.001",
        "schedule.type": "cosine",
        "schedule.warmup": "0.1",
        "train.epochs": "3.0",
        "train.batch_size": "8",
        "train.micro_batch_size": "3",
        "validation.every": "5",
        "checkpoint.every": "2",
    }
    steps = facts.manifest["stages"]["only"]["steps"]
    losses = facts.stages[0].curves["val/loss"]
    assert f'<dd dir="auto">{steps} of 8 examples</dd>' in page and "48 conversational preference rows" in page
    assert f"loss</bdi> <small>{number(losses[0][1])} → {number(losses[-1][1])}</small>" in page
    for name in ("rewards/accuracies", "rewards/margins", "grad_norm", "learning_rate"):
        assert f"<figcaption><bdi>{name}</bdi>" in page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
PROBE = """<script>
const seen = [...document.querySelectorAll('section')].map(s => {
  const box = s.getBoundingClientRect(), style = getComputedStyle(s);
  return [s.id, s.checkVisibility({opacityProperty: true, visibilityProperty: true}) && box.width > 300
    && box.height > 40];
});
const body = getComputedStyle(document.body), root = document.documentElement;
const said = {seen, wide: root.scrollWidth - root.clientWidth, width: innerWidth, page: body.backgroundColor, ink: body.color};
parent.postMessage(JSON.stringify(said), '*');
</script>"""
# Chromium makes no window narrower than 500: the copy is measured in a frame.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark">
<script>onmessage = event => document.body.append('PROBE' + event.data + 'EBORP')</script>
<body><iframe width={width} height=2400 style="border: 0" src=copy.html></iframe>"""


def browse(page: Path, place: Path, width: int, dark: bool, *what: str) -> subprocess.CompletedProcess[str]:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    profile = place / f"profile-{time.monotonic_ns()}"
    command = [str(CHROMIUM), *QUIET, scheme, f"--user-data-dir={profile}", f"--window-size={width},2400"]
    return subprocess.run([*command, *what, page.as_uri()], capture_output=True, text=True, timeout=90, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (400, False)])
def test_in_a_browser(real: Path, tmp_path: Path, width: int, dark: bool) -> None:
    picture = tmp_path / "page.png"
    done = browse(real / "report.html", tmp_path, width, dark, f"--screenshot={picture}")
    assert "CONSOLE" not in done.stderr  # neither errors nor refusals by the policy
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", head[16:]) == (width, 2400)

    # The page itself runs no script: a copy without its policy measures what is seen.
    page = (real / "report.html").read_text()
    copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", PROBE)
    (tmp_path / "copy.html").write_text(copy)
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width))
    found = re.search(r"PROBE(\{.*\})EBORP", browse(frame, tmp_path, 1500, dark, "--dump-dom").stdout)
    assert found
    said = json.loads(found[1])
    assert said["seen"] == [[name, True] for name in SECTIONS]
    assert (said["width"], said["wide"]) == (width, 0)  # nothing sticks out
    light_page, light_ink = "rgb(247, 247, 245)", "rgb(27, 29, 34)"
    assert (said["page"] == light_page, said["ink"] == light_ink) == (not dark, not dark)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
def test_the_policy_stops_a_script_that_got_in(real: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    inside = "<script>document.body.id = 'pwned'</script><p onclick='x' style='color: red'>"
    page.write_text((real / "report.html").read_text().replace("</body>", inside + "</body>"))
    done = browse(page, tmp_path, 1400, False, "--dump-dom")
    assert "CONSOLE" in done.stderr and 'id="pwned"' not in done.stdout
