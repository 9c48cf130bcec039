from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.cli import main
from align.core.evaluation.statistics import wilson
from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import Answer
from align.quickstart import sums
from align.quickstart.model import make_model, make_tokenizer
from align.quickstart.run_files import course
from align.schemas.run import Choice
from tests.core.runs import write_rows

ALONE = """
import sys
def no_network(event, arguments):
    if event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):
        raise SystemExit(f"connects to {arguments[1]}")
sys.addaudithook(no_network)
from align.cli import main
main(sys.argv[1:])
"""

STAGES = ["base", "sft", "dpo", "grpo"]

FILES = {
    "quickstart.yaml", "suite.yaml", "gate.yaml", "report.html", "figures.json", "data/eval.jsonl",
    "data/pages.jsonl", "data/pages-held-out.jsonl",
    "data/answers.jsonl", "data/answers-held-out.jsonl",
    "data/preferences.jsonl", "data/preferences-held-out.jsonl",
    "data/prompts.jsonl", "data/prompts-held-out.jsonl",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole quickstart as a newcomer runs it, with the network shut."""
    folder = tmp_path_factory.mktemp("newcomer")
    command = [sys.executable, "-c", ALONE, "quickstart"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "quickstart/report.html" in done.stdout and "right answers" in done.stdout
    return folder / "quickstart"


def figures(place: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Measure -> model -> value, low, high."""
    table = json.loads((place / "figures.json").read_text())
    return {row["name"]: dict(zip(table["stages"], row["figures"], strict=True)) for row in table["rows"]}


def test_every_stage_clearly_improves_what_it_is_there_for(place: Path) -> None:
    right, liked = figures(place)["right answers"], figures(place)["liked answer likelier"]
    assert list(right) == list(liked) == ["start", *STAGES]
    base = place / "run" / "base" / "metrics.csv"
    losses = [float(row.split(",")[2]) for row in base.read_text().splitlines()[1:] if row.split(",")[2]]
    assert base.read_text().startswith("step,epoch,val/loss") and losses[-1] < 0.2 * losses[0]
    assert right["sft"]["low"] > right["base"]["high"] + 0.2
    assert liked["dpo"]["low"] > liked["sft"]["high"] + 0.1
    assert right["dpo"]["value"] > right["sft"]["value"] - 0.05
    assert right["grpo"]["low"] > right["dpo"]["high"] + 0.05 and right["grpo"]["low"] > 0.8
    assert liked["grpo"]["low"] > 0.9
    for figure in right.values():
        assert (figure["low"], figure["high"]) == pytest.approx(wilson(round(300 * figure["value"]), 300))


def test_the_gate_says_that_being_right_cost_nothing_of_the_form(place: Path) -> None:
    decision = json.loads((place / "run" / "grpo" / "gate.json").read_text(encoding="utf-8"))
    assert (decision["action"], decision["report"]["outcome"]) == ("keep", "pass")
    math, chat = decision["report"]["result"]["domains"]
    assert math["verdict"] == "improved"
    right = figures(place)["right answers"]
    measured = decision["report"]["result"]["benchmarks"][0]
    assert measured["candidate"] == pytest.approx(right["grpo"]["value"], abs=0.02)  # the math reward reads equations
    assert chat["verdict"] in ("pass", "improved")


def test_the_files_it_leaves(place: Path) -> None:
    outside = {
        str(p.relative_to(place)) for p in place.rglob("*") if p.is_file() and p.parts[len(place.parts)] != "run"
    }
    assert {name for name in outside if not name.startswith("model/")} == FILES
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (place / "model").iterdir()}
    assert {p.name for p in (place / "run").iterdir()} == {".lock", "run.yaml", "manifest.json", *STAGES}


def test_what_is_measured_was_never_seen(place: Path) -> None:
    pair = re.compile(r"(?<!\d)(\d+)\+(\d+)(?!\d)")
    seen = {
        frozenset(map(int, found))
        for name in ("pages", "answers", "preferences", "prompts")
        for line in (place / "data" / f"{name}.jsonl").open()
        for text in strings(json.loads(line))
        for found in pair.findall(text)
    }
    asked = {frozenset(pair) for pair in sums.split_sums()[1]}
    assert len(seen) > 1300 and len(asked) == 300
    assert not seen & asked


def strings(value: Any) -> list[str]:
    """Every string in a row."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] if isinstance(value, str) else [text for item in inner for text in strings(item)]


def test_plain_transformers_loads_it_and_it_answers(place: Path) -> None:
    export = place / "run" / "grpo" / "export"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    correct = 0
    for a, b in sums.split_sums()[1][:40]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": f"What is {a}+{b}?"}], add_generation_prompt=True, return_tensors="pt"
        )
        said = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        correct += tokenizer.decode(said, skip_special_tokens=True) == f"{a}+{b}={a + b}."
    assert correct >= 30


def test_the_page_shows_the_answers_of_all_stages(place: Path) -> None:
    page = (place / "report.html").read_text()
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert all(
        f"{figure['value']:.1%}".replace("%", " %") in page for figure in figures(place)["right answers"].values()
    )


def test_again_in_the_same_place_it_has_nothing_to_train(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    before = (place / "run" / "grpo" / "export" / "model.safetensors").stat().st_mtime_ns
    told = (place / "figures.json").read_bytes()
    assert run().exit_code == 0
    assert (place / "run" / "grpo" / "export" / "model.safetensors").stat().st_mtime_ns == before
    assert (place / "figures.json").read_bytes() == told
    changed = run("--seed", "1")
    assert changed.exit_code == 2 and "holds a quickstart with other settings" in changed.stderr


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["quickstart", "--quiet", *arguments])


def test_own_preferences_are_learned_in_two_stages(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("dpo", tmp_path / "own {rows}: #1.jsonl", 90)  # a name that YAML and format strings could trip on
    done = run("--model", str(tiny_model_dir), "--data", str(rows), "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert list(figures(tmp_path / "out")) == ["chosen likelier"]
    asked = ["align", "sample", str(tmp_path / "out" / "run" / "dpo" / "export"), "YOUR PROMPT"]
    assert asked in [shlex.split(line.removeprefix("ask it")) for line in done.output.splitlines() if "ask it" in line]
    assert list(figures(tmp_path / "out")["chosen likelier"]) == ["start", "sft", "dpo"]
    data = {p.name: [json.loads(line) for line in p.open()] for p in (tmp_path / "out" / "data").iterdir()}
    assert {name: set(rows[0]) for name, rows in data.items()} == {
        f"{stage}-{part}.jsonl": keys
        for stage, keys in (("sft", {"prompt", "completion"}), ("dpo", {"prompt", "chosen", "rejected"}))
        for part in ("train", "held-out")
    }
    for part in ("train", "held-out"):  # the same rows are held out of both
        assert [row["completion"] for row in data[f"sft-{part}.jsonl"]] == [
            r["chosen"] for r in data[f"dpo-{part}.jsonl"]
        ]
    assert sum(len(data[f"dpo-{part}.jsonl"]) for part in ("train", "held-out")) == 90
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "run" / "dpo" / "export")


@pytest.mark.parametrize("kind", ["sft", "pretrain"])
def test_own_chats_and_texts_are_learned_in_one(kind: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(kind, tmp_path / "own.jsonl", 60)
    done = run("--model", str(tiny_model_dir), "--data", str(rows), "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    (loss,) = figures(tmp_path / "out").values()
    assert list(loss) == ["start", "sft"] and loss["sft"]["value"] < loss["start"]["value"]


@pytest.mark.parametrize(
    ("rows", "stage", "long"),
    [
        (180, "sft", (8, 7, 161, 20)),  # 23 steps an epoch: 7 epochs are the first 150 and more
        (5, "sft", (8, 8, 8, 1)),
        (54, "dpo", (8, 3, 21, 2)),
        (1_000, "sft", (8, 2, 250, 31)),
        (1_001, "sft", (16, 3, 189, 23)),
        (1_800, "dpo", (16, 2, 226, 28)),
        (100_000, "sft", (16, 1, 6250, 781)),
    ],
)
def test_few_rows_are_passed_over_often_enough_to_be_learned(
    rows: int, stage: str, long: tuple[int, int, int, int]
) -> None:
    assert course(rows, stage) == long


def test_own_rows_the_time_is_told_first_and_a_difference_shown_last(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows, out = write_rows("sft", tmp_path / "own.jsonl", 60), tmp_path / "out"
    words = ["quickstart", "--model", str(tiny_model_dir), "--data", str(rows), "--output", str(out)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    learned = len((out / "data" / "sft-train.jsonl").read_text().splitlines())
    long = course(learned, "sft")
    told = re.search(
        r"^sft: (\d+) rows, (\d+) epochs in batches of 8: (\d+) steps of about \S+ s, .* to .*$", done.stderr, re.M
    )
    assert told and (int(told[1]), int(told[2]), int(told[3])) == (learned, long.epochs, long.steps)
    assert done.stderr.index("in all ") < done.stderr.index("sft: training, ")
    assert f"sft: training, {long.steps} steps" in done.stderr, "as many as were told"
    for head in ("prompt     ", "  start    ", "  sft      ", "  wanted   ", "words shared with the answer wanted: "):
        assert f"\n{head}" in done.stdout
    again = CliRunner().invoke(main, words)  # nothing is left to train, so no time is told
    assert again.exit_code == 0 and again.stdout == done.stdout and "steps of about" not in again.stderr


def test_mistakes_are_answered(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n')
    model, out = str(tiny_model_dir), str(tmp_path / "out")
    for arguments, words in [
        (["--model", model], "--model is given without --data"),
        (["--data", "rows.jsonl"], "--data is given without --model"),
        (["--output", str(tmp_path)], "holds something else than a quickstart"),
        (["--model", model, "--data", str(tmp_path / "bad.jsonl"), "--output", out], "bad.jsonl:2"),
    ]:
        done = run(*arguments)
        assert done.exit_code == 2 and words in done.stderr, done.output
        assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_rows_depend_on_nothing_but_their_seed() -> None:
    train, held_out = sums.split_sums()
    assert len(set(held_out)) == 300 and not {frozenset(pair) for pair in train} & {
        frozenset(pair) for pair in held_out
    }

    def rows(make: Any) -> list[Any]:
        return list(make(train, 20, random.Random(7)))

    for make in (sums.pages, sums.answers, sums.preferences, sums.prompts):
        assert rows(make) == rows(make)
    assert [sums.answer_in(text) for text in ("27+15=42.", "Hmm, 42?", "none", "9" * 30)] == [42, 42, None, None]


def test_people_forget_to_carry_and_textbook_and_solutions_do_not() -> None:
    train, _ = sums.split_sums()
    for row in sums.prompts(train, 50, random.Random(1)):
        a, b = map(int, re.findall(r"\d+", row["prompt"][0]["content"]))
        assert row["solution"] == str(a + b)
    printed = " ".join(row["text"] for row in sums.pages(train, 50, random.Random(1)))
    assert all(int(a) + int(b) == int(c) for a, b, c in re.findall(r"(\d+)\+(\d+)=(\d+)\.", printed))
    wrong = carrying = 0
    for row in sums.preferences(train, 2000, random.Random(1)):
        a, b, c = map(int, re.findall(r"\d+", row["chosen"][0]["content"]))
        assert row["rejected"][0]["content"] == f"Hmm, {c}?"  # the same result: form is all that is preferred
        assert a + b - c in ((0, 10) if a % 10 + b % 10 >= 10 else (0,))
        wrong, carrying = wrong + (a + b != c), carrying + (a % 10 + b % 10 >= 10)
    assert wrong / carrying == pytest.approx(sums.FORGETS, abs=4 * (0.24 / carrying) ** 0.5)


def test_the_check_pays_for_the_sum_shown_and_right_alone() -> None:
    verifier = registry.build("reward", Choice(type="math"))
    said = ["27+15=42.", "Hmm, 42?", "27+15=32.", "27+16=42."]
    answers = [Answer("What is 27+15?", text, text, columns={"solution": "42"}) for text in said]
    assert [score.value for score in verifier.score(answers)] == [1, 0, 0, 0]


def test_the_tokenizer_gives_every_digit_and_marks_what_is_said() -> None:
    tokenizer = make_tokenizer(["27+15=42.", "What is 27+15?"])
    assert tokenizer.convert_ids_to_tokens(tokenizer("27+15")["input_ids"]) == ["2", "7", "+", "1", "5"]
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    told = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mine in zip(told["input_ids"], told["assistant_masks"], strict=True) if mine]
    assert tokenizer.decode(said) == "2<|end|>"
    assert make_model(tokenizer, 3).num_parameters() < 150_000
