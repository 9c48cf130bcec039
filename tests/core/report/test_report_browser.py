"""The report of a real run, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from align.core.config.yaml_loader import write
from align.core.report import write_report
from align.core.report.facts import chosen
from align.core.report.read import read_run
from align.core.training.launch import train
from align.schemas.run import Choice
from align.schemas.text import number
from tests.core.reports import SECTIONS, measures
from tests.core.runs import run_for, write_rows


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
const said = {seen, wide: root.scrollWidth - root.clientWidth, width: innerWidth,
  page: body.backgroundColor, ink: body.color};
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


VALUES = """<script>
const cells = [...document.querySelectorAll('.settings dd')].map(dd => dd.getBoundingClientRect());
const box = document.createElement('span');
box.textContent = '0'.repeat(9);
document.querySelector('.settings dd').append(box);
const said = {narrowest: Math.min(...cells.map(c => c.width)), nine: box.getBoundingClientRect().width,
  tallest: Math.max(...cells.map(c => c.height)), cells: cells.length};
document.body.append('PROBE' + JSON.stringify(said) + 'EBORP');
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
@pytest.mark.parametrize("width", [1280, 500])
def test_values_have_room_beside_long_names(tmp_path: Path, width: int) -> None:
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
    page = (tmp_path / "page.html").read_text()
    copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", VALUES)
    (tmp_path / "copy.html").write_text(copy)
    found = re.search(
        r"PROBE(\{.*\})EBORP", browse(tmp_path / "copy.html", tmp_path, width, False, "--dump-dom").stdout
    )
    assert found
    said = json.loads(found[1])
    assert said["cells"] >= 16 and said["narrowest"] + 1 > said["nine"] > 50
    assert said["tallest"] < 60, "no value is broken letter by letter"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")
def test_the_policy_stops_a_script_that_got_in(real: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    inside = "<script>document.body.id = 'pwned'</script><p onclick='x' style='color: red'>"
    page.write_text((real / "report.html").read_text().replace("</body>", inside + "</body>"))
    done = browse(page, tmp_path, 1400, False, "--dump-dom")
    assert "CONSOLE" in done.stderr and 'id="pwned"' not in done.stdout
