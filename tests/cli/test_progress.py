"""Long work shows that it goes on: a bar on a terminal, lines elsewhere, nothing with --quiet or --json."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from align.cli import main
from align.core.config import run_file as runfile
from align.core.util import progress
from align.core.util.progress import Work, interval, showing, track, working
from tests.core.runs import run_for, write_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece of work says at once what it is, and each part of it is told."""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)


def align(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def run_file(model: Path, algorithm: str, **laid_over: object) -> Path:
    rows = write_rows(algorithm, Path("rows.jsonl").absolute())
    file = Path("run.yaml")
    file.write_text(runfile.dump(run_for(algorithm, model, rows, Path("run").absolute(), **laid_over)))
    return file


# One piece of work


def test_a_line_says_how_far_it_is() -> None:
    work = Work("tokenising rows", 40_000, shown=False)
    with work:
        assert work.line() == "tokenising rows: 0 of 40,000 (0 %)"
        work.update(10_000, "2 bad")
        assert re.fullmatch(r"tokenising rows: 10,000 of 40,000 \(25 %\), \d:\d\d:\d\d left, 2 bad", work.line())
        work.advance(30_000)
        assert work.line() == "tokenising rows: 40,000 of 40,000 (100 %)"
    assert Work("loading the model").line() == "loading the model ..."
    assert Work("reading x", 12.5, unit="MB").line() == "reading x: 0 of 12 MB (0 %)"


@pytest.mark.parametrize(("spent", "seconds"), [(0, 10), (200, 10), (400, 20), (3600, 180), (6000, 300), (10**6, 300)])
def test_lines_become_rarer(spent: float, seconds: float) -> None:
    """At least 10 s apart, then a twentieth of what is spent, at most five minutes."""
    assert interval(spent) == seconds


def test_work_that_hangs_in_its_first_part_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    heard = threading.Event()
    monkeypatch.setattr(progress, "say", lambda line: (said.append(line), heard.set()))
    with working("loading the model", shown=True, patience=0.01):
        assert heard.wait(60)
    assert said == ["loading the model ..."]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with showing(True):
        assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
        with working("loading"):
            pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("impatient")
def test_a_library_call_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2], "counting")) == [1, 2]
    assert capsys.readouterr() == ("", "")
    with showing(True):
        list(track([1, 2], "counting"))
        with showing(False):
            list(track([1, 2], "not this"))
    told = capsys.readouterr()
    assert told.out == "" and told.err.splitlines()[:2] == [
        "counting: 0 of 2 (0 %)",
        "counting: 1 of 2 (50 %), 0:00:00 left",
    ]
    assert told.err.splitlines()[-1] == "counting: 2 done in 0:00:00" and "not this" not in told.err


# Training

STEP = re.compile(r"^only: step (\d+)/18  loss \d+\.\d{4}  [\d,]+ tok/s  \d:\d\d:\d\d left$", re.MULTILINE)


def test_training_off_a_terminal_prints_lines_for_a_log(tiny_model_dir: Path) -> None:
    """18 steps: the first, the last, one for each tenth of the way, and one for each evaluation."""
    done = align("train", run_file(tiny_model_dir, "sft"))
    assert done.exit_code == 0, done.output
    steps = [int(step) for step in STEP.findall(done.stderr)]
    assert steps[0] == 1 and steps[-1] == 18 and len(steps) >= 10 and steps == sorted(set(steps))
    evaluated = re.findall(r"^only: step (\d+)/18  held-out loss \d+\.\d{4}$", done.stderr, re.MULTILINE)
    assert evaluated == ["0", "5", "10", "15", "18"]
    assert "only: training, 18 steps\n" in done.stderr
    assert "step" not in done.stdout.splitlines()[0] and "tok/s" not in done.stdout


def test_learning_from_rewards_shows_the_reward(tiny_model_dir: Path) -> None:
    done = align("train", run_file(tiny_model_dir, "grpo", train={"max_steps": 2}))
    assert done.exit_code == 0, done.output
    assert re.search(
        r"^only: step 2/2  reward -?\d\.\d{4}  loss -?\d\.\d{4}  [\d,]+ tok/s  0:00:00 left$", done.stderr, re.M
    )
    assert "held-out reward" in done.stderr


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("check", [(), ("--check",)])
def test_a_quiet_run_is_quiet(tiny_model_dir: Path, check: tuple[str, ...]) -> None:
    file = run_file(tiny_model_dir, "dpo", train={"max_steps": 2})
    loud, quiet = align("train", file, "output=loud", *check), align("train", file, "output=quiet", "--quiet", *check)
    assert loud.exit_code == quiet.exit_code == 0, loud.output + quiet.output
    assert quiet.stderr == ""
    written = [] if check else ["writing the model to "]
    for said in ("loading the model", "tokenising rows", "reference log-probabilities", *written):
        assert said in loud.stderr, loud.stderr
    if check:
        assert quiet.stdout == loud.stdout
    else:
        assert quiet.stdout.splitlines() == loud.stdout.replace("loud", "quiet").splitlines()[:1]


def test_on_a_terminal_there_is_a_bar_and_its_last_state_stays(tiny_model_dir: Path) -> None:
    file = run_file(tiny_model_dir, "sft", train={"max_steps": 3})
    master, terminal = os.openpty()
    command = [sys.executable, "-W", "ignore", "-m", "align", "train", str(file)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment, text=True)
    os.close(terminal)
    seen = bytearray()
    while True:
        try:
            some = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not some:
            break
        seen += some
    out, _ = started.communicate(timeout=120)
    os.close(master)
    shown = seen.decode(errors="replace")
    assert started.returncode == 0, shown
    assert "loading PyTorch" in shown and "━" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"only: 3 of 3 \(100 %\), loss \d+\.\d{4}  [\d,]+ tok/s", plain, re.MULTILINE)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is given back"
    assert "\x1b" not in out and out.startswith("only: ")


# What a finished run says


def summary(model: Path, algorithm: str, **laid_over: object) -> list[str]:
    done = align("train", run_file(model, algorithm, **laid_over))
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_a_finished_run_says_what_improved_and_what_to_do_next(tiny_model_dir: Path) -> None:
    first, change, _, *following = summary(tiny_model_dir, "sft")
    export = Path("run/only/export").absolute()
    assert first.startswith(f"only: {export}  loss ")
    rows = Path("run/only/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/loss")
    losses = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert change == (
        f"    held-out loss improved: {losses[0]:.3g} before, {losses[-1]:.3g} after step 18 (lower is better)"
    )
    assert f'ask it    align sample {export} "YOUR PROMPT"' in following
    assert f'compare   align sample {tiny_model_dir} "YOUR PROMPT"' in following
    assert f"serve     vllm serve {export}" in following


def test_a_run_without_held_out_rows_does_not_claim_to_have_improved(tiny_model_dir: Path) -> None:
    data = {"train": [{"path": str(write_rows("sft", Path("r.jsonl").absolute()))}], "dataset_num_proc": 1}
    file = run_file(tiny_model_dir, "sft")
    run = runfile.load(file)
    stage = run.stages[0].model_copy(
        update={"data": run.stages[0].data.model_copy(update={"validation_fraction": 0.0})}
    )
    file.write_text(runfile.dump(run.model_copy(update={"stages": [stage]})))
    done = align("train", file)
    assert data and done.exit_code == 0, done.output
    change = done.stdout.splitlines()[1]
    assert "improved" not in change and "on what it learned from" in change and "data.validation_fraction" in change


def test_without_a_log_no_change_is_claimed(tiny_model_dir: Path) -> None:
    first, change, *following = summary(tiny_model_dir, "sft", loggers=[], train={"max_steps": 2})
    assert first.startswith("only: ") and "without the logger csv" in change
    assert "metrics.csv" not in "".join(following)


def test_a_change_for_the_worse_is_called_so(tiny_model_dir: Path) -> None:
    change = summary(tiny_model_dir, "sft", optimizer={"learning_rate": 5.0}, train={"max_steps": 5})[1]
    assert "held-out loss got worse" in change


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ("grpo", ["held-out reward", "(higher is better)", "align sample"]),
        ("best_of_n", ["made rows, learned nothing", "data: {train: "]),
        ("reward_model", ["held-out", "rewards: [{type: reward_model, path: "]),
    ],
)
def test_every_kind_of_stage_says_what_its_export_is_for(
    tiny_model_dir: Path, algorithm: str, words: list[str]
) -> None:
    limits = {"batch_size": 16} if algorithm == "best_of_n" else {"max_steps": 2}
    said = "\n".join(summary(tiny_model_dir, algorithm, train=limits))
    assert [word for word in words if word not in said] == [], said


# The other commands


def commands(model: Path) -> dict[str, tuple[list[object], str]]:
    """Command lines that take long on large files, and what each says meanwhile."""
    chats, prompts = write_rows("sft", Path("chats.jsonl")), write_rows("grpo", Path("prompts.jsonl"))
    answered = Path("answered.jsonl")
    answered.write_text(
        "".join(
            json.dumps({"prompt": f"{n}?", "completions": ["1", "22"], "completion": "1", "solution": "1"}) + "\n"
            for n in range(9)
        )
    )
    length = "length:shape=target,target=2,unit=characters"
    return {
        "data check": (["data", "check", chats], "reading chats.jsonl: "),
        "data show": (["data", "show", chats, "--model", model], "reading chats.jsonl: "),
        "data label": (["data", "label", answered, "OUT", "--reward", length], "judging prompts: 8 of 9"),
        "reward score": (["reward", "score", "math", answered], "scoring lines: "),
        "reward audit": (["reward", "audit", "math", answered], "scoring lines: "),
        "sample": (["sample", model, prompts, "--max-completion-length", 2], "answering prompts: "),
        "estimate": (["estimate", run_file(model, "sft"), "--calibrate"], "only: measured steps: "),
        "advise": (
            ["advise", "--text", "It must keep 27 rules.", "--data", chats, "--exit-zero"],
            "reading chats.jsonl: ",
        ),
    }


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "name", ["data check", "data show", "data label", "reward score", "reward audit", "sample", "estimate", "advise"]
)
def test_long_work_shows_lines_on_stderr_unless_it_is_to_be_quiet(tiny_model_dir: Path, name: str) -> None:
    words, said = commands(tiny_model_dir)[name]

    def run(*more: str) -> Result:
        number = len(list(Path().glob("out-*")))
        Path(f"out-{number}").mkdir()
        return align(*(f"out-{number}/pairs.jsonl" if word == "OUT" else word for word in words), *more)

    loud, quiet = run(), run("--quiet")
    assert loud.exit_code == quiet.exit_code and loud.exit_code in (0, 1), loud.output
    assert said in loud.stderr and said not in loud.stdout
    assert not re.search(r"(\.\.\.|\d %\)|done in .*)$", quiet.stderr, re.MULTILINE), quiet.stderr
    if name in ("data check", "data show", "sample"):
        assert quiet.stdout == loud.stdout
    form = {"estimate": ["--format", "json"], "advise": ["--format", "json"]}.get(name, ["--json"])
    if name not in ("data show", "sample"):
        printed = run(*form)
        assert said not in printed.output and printed.stderr == ""
        for document in printed.stdout.splitlines() if name == "reward score" else [printed.stdout]:
            json.loads(document)
