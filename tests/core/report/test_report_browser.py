"""The report of a real run, in a real browser."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from align.core.config.yaml_loader import write
from align.core.report import write_report
from align.core.report.facts import chosen
from align.core.report.gate_view import GateFlip, GateUnit, GateView
from align.core.report.page import render
from align.core.report.read import read_run
from align.core.report.serve import ReportServer
from align.core.training.launch import train
from align.core.training.sample_log import write_samples
from align.schemas.run import Choice
from align.schemas.text import number
from tests.core.reports import SECTIONS, measures, write_run
from tests.core.runs import run_for, write_rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH (.ci/browser installs it)")
HOSTILE = "<script>document.title = 'pwned'</script><img src=x onerror=\"document.title = 'pwned'\">"


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


def stored(number_of: int, step: int) -> dict[str, Any]:
    text = HOSTILE if number_of == 0 else f"answer {number_of} of {step}"
    return {
        "source": f"rows.jsonl:{number_of}",
        "group": number_of,
        "prompt": json.dumps([{"role": "user", "content": f"question {number_of % 7}"}]),
        "completion": text,
        "length": number_of % 50,
        "finish": "length" if number_of % 10 == 0 else "stop",
        "reward": None if number_of == 1 else number_of / 100,
        "parts": {"exact": number_of / 100},
        "outcomes": {},
        "gold": None,
    }


def sampled(directory: Path, phases: int = 3, each: int = 30) -> Path:
    """A run whose stage learned from rewards, with its completions."""
    metrics = "step,epoch,loss,reward,kl,val/reward\n0,0,,,,0.2\n"
    metrics += "".join(f"{step},0,0.1,{step / 10},0.01,\n" for step in range(1, 11)) + "10,1,,,,0.8\n"
    run = write_run(directory, stages=("one",), metrics=metrics)
    file = run / "run.yaml"
    file.write_text(file.read_text() + "    rollout: {rewards: [{type: exact}]}\n")
    (run / "one" / "samples").mkdir()
    for phase in range(phases):
        rows = [stored(i, phase + 1) for i in range(each)]
        write_samples(run / "one" / "samples" / f"phase-{phase + 1:06d}.parquet", rows)
    return run


GATE = GateView(
    "regressed",
    "models/base",
    "runs/first",
    domains=(
        GateUnit("chat", "pass", 0.01, -0.01, 0.03, 0.02, "gating", rows=800),
        GateUnit("maths", "regressed", -0.06, -0.09, -0.03, 0.02, "gating", blocking=True),
    ),
    evals=(GateUnit("gsm8k", "regressed", -0.06, -0.09, -0.03, None, "watch", 0.5, 0.44, 1319, 20, 99),),
    flips=(
        GateFlip("gsm8k", -1.0, f"What is 1+1? {HOSTILE}", "2", "2", HOSTILE),
        GateFlip("gsm8k", 1.0, "2+2?", "", "5", "4"),
    ),
    checks=(("length of outputs", "1.4; at least 0.8 and at most 1.25", False),),
    warnings=("length of outputs: 1.4",),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """A page in the browser, with what it printed and requested."""

    def __init__(self, browser: Browser, address: str, width: int = 1280, dark: bool = False, **options: Any) -> None:
        size = {"width": width, "height": 900}
        scheme = "dark" if dark else "light"
        self.context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce", **options)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        if address != "about:blank":
            expect(self.page.locator("html")).to_have_class("scripted")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def figure(page: Page, title: str) -> Locator:
    return page.locator("figure").filter(has=page.get_by_text(title, exact=True))


def test_a_real_run_is_told_as_it_was(real: Path) -> None:
    page = (real / "report.html").read_text()
    facts = read_run(real)
    assert dict(chosen(facts.stages[0])) == {
        "algorithm.beta": "0.3",
        "data.validation_fraction": "0.2",
        "data.dataset_num_proc": "1",
        "optimizer.learning_rate": "0.001",
        "schedule.type": "cosine",
        "schedule.warmup_steps": "0.1",
        "train.num_train_epochs": "3.0",
        "train.batch_size": "8",
        "train.micro_batch_size": "3",
        "validation.eval_steps": "5",
        "checkpoint.save_steps": "2",
    }
    steps = facts.manifest["stages"]["only"]["steps"]
    losses = facts.stages[0].curves["val/loss"]
    assert f'<dd dir="auto">{steps} steps of 8 examples</dd>' in page and "48 conversational preference rows" in page
    assert f"<bdi>loss</bdi></span> <small>{number(losses[0][1])} → {number(losses[-1][1])}</small>" in page
    for name in ("rewards/accuracies", "rewards/margins", "grad_norm", "learning_rate"):
        assert f"<code>{name}</code>" in page


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (390, False)])
def test_in_a_browser(real: Path, browser: Browser, width: int, dark: bool) -> None:
    with Opened(browser, (real / "report.html").as_uri(), width, dark) as opened:
        page = opened.page
        page.locator("#curves figure").first.scroll_into_view_if_needed()
        page.wait_for_selector("#curves figure path.line")
        seen = page.eval_on_selector_all("main > section", "all => all.map(s => [s.id, s.checkVisibility()])")
        assert seen == [[name, True] for name in SECTIONS]
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) == 0  # nothing sticks out
        light_page, light_ink = "rgb(247, 247, 245)", "rgb(27, 29, 34)"
        body = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
        assert (body[0] == light_page, body[1] == light_ink) == (not dark, not dark)
        assert opened.messages == []  # neither errors nor refusals by the policy
        assert opened.requests == [(real / "report.html").as_uri()]


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_accessible(tmp_path: Path, browser: Browser, width: int, dark: bool) -> None:
    """axe-core finds nothing: landmarks, names, labels, contrast, focus."""
    from axe_playwright_python.sync_playwright import Axe  # reads its script in the locale's encoding

    sampled(tmp_path / "a" / "run")
    write_report(tmp_path / "a" / "run", tmp_path / "page.html", gate=GATE, **measures())
    # The page's own policy would refuse the checker's script: the browser is told to leave it out.
    with Opened(browser, (tmp_path / "page.html").as_uri(), width, dark, bypass_csp=True) as opened:
        opened.page.wait_for_selector("#browser article")
        opened.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        found = Axe().run(opened.page).response["violations"]
        assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_values_have_room_beside_long_names(tmp_path: Path, browser: Browser, width: int) -> None:
    """At 1280 px three cards stand side by side, and the longest key left its value the room of two letters."""
    longest = {"max_completion_length": 8, "repetition_penalty": 1.1}
    reward = {"type": "grpo", "beta": 0.1, "importance_sampling_level": "sequence"}
    stages = [
        {
            "name": name,
            "model": {"path": "base"},
            "data": {"train": [{"path": "rows.jsonl"}]},
            "algorithm": reward,
            "rollout": {"rewards": [{"type": "reward_model"}], "sampling": longest},
            "train": {"batch_size": 8},
            "seed": 0,
        }
        for name in ("one", "two", "three", "four")
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(write({"output": "run", "stages": stages}))
    write_report(tmp_path / "run", tmp_path / "page.html", title="Four stages")
    with Opened(browser, (tmp_path / "page.html").as_uri(), width) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        boxes = opened.page.eval_on_selector_all(
            ".settings dd", "all => all.map(dd => dd.getBoundingClientRect()).map(box => [box.width, box.height])"
        )
        nine = opened.page.evaluate(
            "(() => { const box = document.createElement('span'); box.textContent = '0'.repeat(9);"
            "document.querySelector('.settings dd').append(box); return box.getBoundingClientRect().width; })()"
        )
    assert len(boxes) >= 16 and min(width for width, _ in boxes) + 1 > nine > 50
    assert max(height for _, height in boxes) < 60, "no value is broken letter by letter"


@needs_browser
def test_the_policy_stops_a_script_that_got_in(real: Path, tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    inside = "<script>document.body.id = 'pwned'</script><p onclick='x' style='color: red'>"
    page.write_text((real / "report.html").read_text().replace("</body>", inside + "</body>"))
    with Opened(browser, page.as_uri()) as opened:
        assert len(opened.messages) >= 2 and opened.page.evaluate("document.body.id") == ""


@needs_browser
def test_a_curve_stands_where_its_numbers_say_smooths_and_zooms(tmp_path: Path, browser: Browser) -> None:
    metrics = "step,epoch,learning_rate,loss\n" + "".join(f"{x},0,{x / 10},{x % 2}\n" for x in range(11))
    write_report(write_run(tmp_path / "run", metrics=metrics), tmp_path / "page.html")
    with Opened(browser, (tmp_path / "page.html").as_uri()) as opened:
        page = opened.page
        rate = figure(page, "learning rate").locator("svg")
        rate.scroll_into_view_if_needed()
        # The plot is 46..350 wide and 176..10 high (downwards); the values 0..1 get the ticks 0, 0.5 and 1.
        line = rate.locator("path.line").get_attribute("d") or ""
        assert line.startswith("M46.0,176.0L76.4,159.4") and line.endswith("L350.0,10.0")
        assert rate.locator("path.raw").count() == 0  # it is set, not measured: not smoothed
        loss = figure(page, "loss").locator("svg")
        assert loss.locator("path.raw").count() == 1
        page.locator("#smooth").fill("0")
        assert loss.locator("path.raw").count() == 0
        rate.focus()
        for key in ("Home", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        output = figure(page, "learning rate").locator("output")
        assert output.text_content() == "step 2: 0.2"
        page.keyboard.press("+")
        page.wait_for_selector(".unzoom:not([hidden])")
        assert rate.locator("path.line").get_attribute("d") != line
        page.keyboard.press("0")
        assert rate.locator("path.line").get_attribute("d") == line
        box = rate.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 50)
        page.mouse.up()
        assert page.locator(".unzoom").is_visible() and rate.locator("path.line").get_attribute("d") != line
        page.locator(".unzoom").click()
        assert rate.locator("path.line").get_attribute("d") == line
        assert opened.messages == []


@needs_browser
def test_smoothing_by_hand(tmp_path: Path, browser: Browser) -> None:
    write_report(write_run(tmp_path / "run"), tmp_path / "page.html")
    with Opened(browser, (tmp_path / "page.html").as_uri()) as opened:
        # w = 1/2, so the third mean is (4 + 2/2 + 0/4) / (1 + 1/2 + 1/4) = 20/7; what is not finite counts nowhere.
        assert opened.page.evaluate("smoothed([0, 2, 4], 0.5)") == pytest.approx([0, 4 / 3, 20 / 7])
        assert opened.page.evaluate("smoothed([1, null, 3], 0.5)") == pytest.approx([1, None, 7 / 3])
        values = [0, 1, -0.5, 3.14159, 999.7, 12_345, 2_500_000, 4e-5, -2.98e-7]
        written = ["0", "1", "−0.5", "3.14", "1000", "12.3k", "2.5M", "4e-5", "−2.98e-7"]
        assert opened.page.evaluate("values => values.map(short)", values) == written == list(map(number, values))


@needs_browser
def test_samples_are_searched_filtered_and_stay_text(tmp_path: Path, browser: Browser) -> None:
    sampled(tmp_path / "run")
    write_report(tmp_path / "run", tmp_path / "page.html", title="Samples")
    with Opened(browser, (tmp_path / "page.html").as_uri()) as opened:
        page = opened.page
        page.wait_for_selector("#browser article")
        cards, found = page.locator("#browser article"), page.locator("#browser .found")
        assert (cards.count(), found.text_content()) == (20, "90 completions")
        page.locator("#browser .more").click()
        assert cards.count() == 40
        page.fill("[name=from]", "2")
        page.fill("[name=to]", "2")
        expect(found).to_have_text("30 completions of 90")
        page.select_option("[name=kind]", "cut")
        expect(found).to_have_text("3 completions of 90")
        page.click("[type=reset]")
        page.fill("[name=search]", "ONERROR=")
        expect(found).to_have_text("3 completions of 90")
        assert cards.first.locator(".answer p").text_content() == HOSTILE
        assert cards.first.locator("mark").text_content() == "onerror="
        page.click("[type=reset]")
        page.select_option("[name=order]", "best")
        expect(cards.first.locator(".scores")).to_contain_text("0.29")
        cards.first.get_by_role("button", name="All answers to this prompt").click()
        expect(found).to_have_text("15 completions of 90")
        assert page.title() == "Samples" and opened.messages == [] and len(opened.requests) == 1


@needs_browser
def test_held_out_answers_are_found_by_step_and_by_prompt(tmp_path: Path, browser: Browser) -> None:
    run = sampled(tmp_path / "run", phases=1, each=10)
    for step in (0, 8):
        rows = [stored(i, step) for i in range(2)]
        write_samples(run / "one" / "samples" / f"held-out-{step:06d}.parquet", rows)
    write_report(run, tmp_path / "page.html")
    with Opened(browser, (tmp_path / "page.html").as_uri()) as opened:
        page = opened.page
        page.wait_for_selector("#browser article")
        cards, found = page.locator("#browser article"), page.locator("#browser .found")
        page.select_option("[name=rows]", "held")
        page.select_option("[name=order]", "first")
        expect(found).to_have_text("4 completions of 14")
        titles = page.locator("#browser article h3")
        assert titles.all_inner_texts() == [f"one · step {step} · held out" for step in (0, 0, 8, 8)]
        # The same prompt at both steps, and in the phase (numbers 0 and 7 put the same question).
        cards.first.get_by_role("button", name="All answers to this prompt").click()
        expect(found).to_have_text("4 completions of 14")
        assert titles.all_inner_texts()[0] == "one · step 0 · held out"
        page.click("[type=reset]")
        page.select_option("[name=rows]", "train")
        expect(found).to_have_text("10 completions of 14")
        sides = page.locator("#samples > article").first.locator(".answer h4").all_inner_texts()
        assert [side.partition(" · reward")[0] for side in sides] == ["one · step 0", "one · step 8"]
        assert page.title() != "pwned" and opened.messages == []


@needs_browser
def test_a_gate_comes_first_with_its_flips(tmp_path: Path, browser: Browser) -> None:
    write_report(write_run(tmp_path / "run"), tmp_path / "page.html", title="Gate", gate=GATE)
    with Opened(browser, (tmp_path / "page.html").as_uri()) as opened:
        page = opened.page
        assert page.locator(".verdict").text_content() == "regressed"
        rows = page.locator(".forest tbody tr")
        assert [row.split()[0] for row in rows.all_inner_texts()] == ["chat", "maths", "gsm8k"]
        plot = rows.nth(1).locator("svg")
        assert plot.get_attribute("aria-label") == "−6.0, interval −9.0 to −3.0, margin −2.0"
        # Further down is worse: the interval lies left of the margin, and the margin left of zero.
        ends = [
            float(plot.locator(place).get_attribute(end) or "")
            for place, end in ((".reach", "x2"), (".margin", "x1"), (".zero", "x1"))
        ]
        assert ends == sorted(ends)
        flips = page.locator("#flips article")
        assert flips.count() == 2
        page.select_option("[name=side]", "lost")
        expect(flips).to_have_count(1)
        assert HOSTILE in flips.first.locator(".answers").inner_text()
        assert page.title() == "Gate" and opened.messages == []


@needs_browser
def test_runs_lie_over_each_other(tmp_path: Path, browser: Browser) -> None:
    runs = [write_run(tmp_path / name) for name in ("first", "second")]
    write_report(runs, tmp_path / "page.html")
    with Opened(browser, (tmp_path / "page.html").as_uri()) as opened:
        page = opened.page
        assert page.title() == "first and second"
        loss = figure(page, "loss").locator("svg")
        loss.scroll_into_view_if_needed()
        assert loss.locator("path.line").count() == 4  # training and held out, of two runs
        page.get_by_role("checkbox", name="second").uncheck()
        assert loss.locator("path.line").count() == 2
        assert opened.messages == []


@needs_browser
def test_ten_thousand_rows_open_in_a_second(tmp_path: Path, browser: Browser) -> None:
    run = sampled(tmp_path / "run", phases=20, each=500)
    write_report(run, tmp_path / "page.html")
    took = []
    for _ in range(3):  # the best of three: other work on the machine is not the page's
        with Opened(browser, "about:blank") as opened:
            began = time.monotonic()
            opened.page.goto((tmp_path / "page.html").as_uri())
            opened.page.wait_for_selector("#browser article")
            took.append(time.monotonic() - began)
            assert opened.page.locator("#browser .found").text_content() == "10,000 completions"
    assert min(took) < 1, took


@needs_browser
def test_a_served_page_follows_its_run(tmp_path: Path, browser: Browser) -> None:
    run = write_run(tmp_path / "run", metrics="step,epoch,loss\n1,0,3\n")
    server = ReportServer([run], lambda version: render([run], "Live", live=version))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with Opened(browser, server.url) as opened:
            page = opened.page
            page.wait_for_selector("figure small:text('3')")
            with open(run / "sft" / "metrics.csv", "a") as file:
                file.write("2,0,1.5\n")
            page.wait_for_selector("figure small:text('3 → 1.5')", timeout=20_000)
            assert (page.locator("#live").text_content() or "").startswith("live")
            assert opened.messages == [] and {url.rsplit("/", 1)[0] + "/" for url in opened.requests} == {server.url}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
