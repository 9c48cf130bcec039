"""Benchmarks that read an answer from generated text, on models of known score: right, wrong, refusing, empty."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align import AlignError
from align.plugins.evals.static.aime import final_integer
from align.plugins.evals.static.gpqa import answer_line
from align.plugins.evals.static.mmlu_pro import official_letter
from align.testing import ScriptedModel, run_eval
from tests.plugins.evals import static_rows
from tests.plugins.evals.static_rows import IFEVAL, IFEVAL_RIGHT, write

REFUSAL = "I am sorry, but I cannot help with that."


@pytest.fixture(scope="module")
def punkt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sentence splitter of our own for NLTK, which has none in its package."""
    import nltk
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    directory = tmp_path_factory.mktemp("nltk")
    nltk.data.path.insert(0, str(directory))
    target = directory / "tokenizers" / "punkt_tab" / "english"
    target.mkdir(parents=True)
    trainer = PunktTrainer()
    trainer.train("Mr. Smith went home. He slept. It was cold, e.g. in the house. He woke up.", finalize=True)
    save_punkt_params(trainer.get_params(), str(target))
    yield directory
    nltk.data.path.remove(str(directory))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Settings of each benchmark on rows of our own."""

    def file(name: str) -> str:
        return write(tmp_path / f"{name}.jsonl", getattr(static_rows, name.upper()))

    return {
        "mmlu_pro": {"data": file("mmlu_pro"), "shots": file("mmlu_pro_shots")},
        "gpqa": {"data": file("gpqa")},
        "gsm8k": {"data": file("gsm8k"), "shots": file("gsm8k_shots")},
        "aime": {"data": file("aime_2025")},
        "math": {"data": file("math")},
        "ifeval": {"data": file("ifeval")},
    }


def text_of(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def sum_of(text: str) -> int:
    """Solve the last sum in a text."""
    return 2 * int(re.findall(r"(\d+)\+\d+", text)[-1])


def solved_mmlu_pro(prompt: Any) -> str:
    question = text_of(prompt).rpartition("Question:")[2]
    letter = re.findall(rf"([A-J])\. {sum_of(question)}\n", question)[0]
    return f"I add. So the answer is ({letter})."


def solved_gpqa(prompt: Any) -> str:
    letter = re.findall(r"([A-D])\) the right one", text_of(prompt))[0]
    return f"It is clear.\n**Answer: {letter}**"


def solved_gsm8k(prompt: Any) -> str:
    count = int(re.findall(r"has (\d+) apples", text_of(prompt))[-1])
    return f" {count}+{count}={2 * count}.\n#### {2 * count:,}"


def solved_math(prompt: Any) -> str:
    answers = {
        "half": r"\boxed{0.5}",
        "Solve": r"\boxed{2^{1/2}}",
        "2+3": r"\boxed{5}",
        "point": r"\boxed{(3,\pi/2)}",
    }
    return next(answer for part, answer in answers.items() if part in text_of(prompt).partition("\n\n")[0])


def solved_ifeval(prompt: Any) -> str:
    return next(IFEVAL_RIGHT[row["key"]] for row in IFEVAL if row["prompt"] == text_of(prompt))  # type: ignore[index]


SOLVED: dict[str, Callable[[Any], str]] = {
    "mmlu_pro": solved_mmlu_pro,
    "gpqa": solved_gpqa,
    "gsm8k": solved_gsm8k,
    "aime": lambda prompt: rf"So \boxed{{{sum_of(text_of(prompt))}}}",
    "math": solved_math,
    "ifeval": solved_ifeval,
}


@pytest.mark.parametrize("name", SOLVED)
def test_a_perfect_model_scores_one(name: str, files: dict[str, Any], punkt: Path) -> None:
    rows, metrics = run_eval(name, files[name], ScriptedModel(lambda prompt, seed: SOLVED[name](prompt)))
    assert metrics["score"] == 1.0
    assert all(row.valid for row in rows)
    if name == "ifeval":
        levels = ("prompt_strict", "inst_strict", "prompt_loose", "inst_loose")
        assert metrics == {"score": 1.0, **dict.fromkeys(levels, 1.0)}


@pytest.mark.parametrize("name", ["mmlu_pro", "gpqa", "gsm8k", "aime", "math"])
@pytest.mark.parametrize("text", [REFUSAL, "", "   \n"])
def test_a_model_that_gives_no_answer_scores_zero_and_its_rows_are_not_valid(
    name: str, text: str, files: dict[str, Any]
) -> None:
    rows, metrics = run_eval(name, files[name], ScriptedModel(lambda prompt, seed: text))
    if name == "mmlu_pro" and text == REFUSAL:
        assert {row.extracted for row in rows} == {"I"}  # the official third rule reads any letter that stands alone
        assert metrics["score"] == 0.0
    else:
        assert metrics["score"] == 0.0
        assert not any(row.valid for row in rows)
        assert all(row.error for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mmlu_pro", "The answer is (J)."),
        ("gsm8k", "#### 7"),
        ("aime", r"\boxed{999}"),
        ("math", r"\boxed{17}"),
    ],
)
def test_a_wrong_model_scores_zero_with_valid_rows(name: str, text: str, files: dict[str, Any]) -> None:
    rows, metrics = run_eval(name, files[name], ScriptedModel(lambda prompt, seed: text))
    assert metrics["score"] == 0.0
    assert all(row.valid for row in rows)


def test_always_the_first_letter_scores_its_share(files: dict[str, Any]) -> None:
    model = ScriptedModel(lambda prompt, seed: "Answer: A")
    assert run_eval("gpqa", {**files["gpqa"], "permutations": 24}, model)[1]["score"] == 0.25
    first = ScriptedModel(lambda prompt, seed: "the answer is (A)")
    assert run_eval("mmlu_pro", files["mmlu_pro"], first)[1]["score"] == 2 / 8


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("the answer is (C). No, the answer is (D).", "C"),
        ("Answer: B", "B"),
        ("answer:   (B)", None),
        ("Therefore B.\nIt must be C", "C"),
        ("It is x.", None),
        ("", None),
    ],
)
def test_the_official_rules_of_mmlu_pro(text: str, letter: str | None) -> None:
    found = official_letter(text)
    assert found == (letter or ("B" if "(B)" in text else None))


def test_the_variants_of_mmlu_pro_read_differently(files: dict[str, Any]) -> None:
    model = ScriptedModel(lambda prompt, seed: "Answer: " + solved_mmlu_pro(prompt)[-3])
    assert run_eval("mmlu_pro", files["mmlu_pro"], model)[1]["score"] == 1.0
    rows, metrics = run_eval("mmlu_pro", {**files["mmlu_pro"], "variant": "lm-eval"}, model)
    assert metrics["score"] == 0.0
    assert not any(row.valid for row in rows)
    solved = ScriptedModel(lambda prompt, seed: solved_mmlu_pro(prompt))
    assert run_eval("mmlu_pro", {**files["mmlu_pro"], "variant": "lm-eval"}, solved)[1]["score"] == 1.0


def test_the_prompt_of_mmlu_pro_drops_padding_and_can_drop_examples(files: dict[str, Any]) -> None:
    model = ScriptedModel(lambda prompt, seed: solved_mmlu_pro(prompt))
    run_eval("mmlu_pro", files["mmlu_pro"], model, n=1)
    (query,) = model.asked
    shots = [text_of(each).count("Question:") - 1 for each in (query.prompt, *query.shorter)]  # type: ignore[union-attr]
    assert shots == [5, 4, 3, 2, 1, 0]
    assert "N/A" not in text_of(query.prompt)  # type: ignore[union-attr]
    settings = query.sampling  # type: ignore[union-attr]
    assert (settings.temperature, settings.max_completion_length, settings.stop) == (0, 2048, ["Question:"])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: C", "C"),
        ("**Answer:** (B)", "B"),
        (r"the final answer is $\boxed{D}$", "D"),
        (r"Answer: $\text{A}$", "A"),
        ("Answer: A. On reflection:\nAnswer: B", "B"),
        ("The answer is a matter of taste", None),
        ("Answer: E", None),
        ("Answers Differ", None),
    ],
)
def test_the_answer_line_of_gpqa(text: str, letter: str | None) -> None:
    assert answer_line(text) == letter


def test_gsm8k_reports_the_strict_reading_too(files: dict[str, Any]) -> None:
    model = ScriptedModel(lambda prompt, seed: solved_gsm8k(prompt).replace("####", "So it is"))
    rows, metrics = run_eval("gsm8k", files["gsm8k"], model)
    assert metrics == {"score": 1.0, "strict": 0.0}
    prompt = rows[0].prompts[0]
    assert prompt.startswith("Question: Bob counts to 10.\nAnswer: That is 10.\n#### 10\n\nQuestion: Bob counts to 11.")
    assert prompt.count("Question:") == 6


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{073}",
        r"\boxed{73.0}",
        "The answer is 73.",
        "**73**",
        r"\boxed{m+n=73}",
        r"\boxed{\text{73}}",
        "73",
        "$73$",
        r"\boxed{72}. No: \boxed{73}",
        "**Answer:** 73",
        r"The answer is $\boxed{73}$.",
        r"\boxed{73^\circ}",
        r"\boxed 73",
        r"The answer is \(73\).",
        r"In 1999 it was so. \boxed{\mathbf{73}}",
    ],
)
def test_integers_that_aime_reads(text: str) -> None:
    assert final_integer(text) == 73


@pytest.mark.parametrize(
    "text", ["The answer is 73.5", r"\boxed{\frac{1}{2}}", r"\boxed{73", "In 1999 there were 30", "", r"\boxed{x} 73"]
)
def test_texts_without_an_integer_for_aime(text: str) -> None:
    assert final_integer(text) is None


def test_what_lm_eval_marks_right_on_aime_is_right_here() -> None:
    from lm_eval.tasks.aime.utils import process_results

    texts = ["73", "$73$", "so $x = 73$", r"\boxed{73}", r"$\boxed{73}$", r"\fbox{73}", r"\boxed 73", "it is $73$ then"]
    marked = [text for text in texts if process_results({"answer": 73}, [text])["exact_match"]]
    assert len(marked) >= 6
    assert [final_integer(text) for text in marked] == [73] * len(marked)


def test_aime_reads_both_years(files: dict[str, Any], tmp_path: Path) -> None:
    settings = {"data": write(tmp_path / "2024.jsonl", static_rows.AIME_2024)}
    model = ScriptedModel(lambda prompt, seed: SOLVED["aime"](prompt))
    rows, metrics = run_eval("aime", settings, model)
    assert metrics == {"score": 1.0}
    assert {row.item_id for row in rows} == {row["ID"] for row in static_rows.AIME_2024}


def test_samples_of_aime(files: dict[str, Any]) -> None:
    """Problem 1: right, right, wrong. 36: wrong twice, right. 100: three different answers. 200: never an answer."""
    drawn = {"1+": ["2", "2", "5"], "36+": ["7", "7", "72"], "100+": ["200", "1", "2"], "200+": [None, None, None]}
    turn: dict[str, int] = {}

    def answer(prompt: Any, seed: int) -> str:
        (key,) = re.findall(r"Find (\d+\+)", text_of(prompt))
        turn[key] = turn.get(key, -1) + 1
        number = drawn[key][turn[key]]
        return REFUSAL if number is None else rf"\boxed{{{number}}}"

    rows, metrics = run_eval("aime", files["aime"], ScriptedModel(answer), samples=3)
    assert metrics == pytest.approx(
        {"score": 4 / 12, "avg@3": 4 / 12, "pass@3": 3 / 4, "maj@3": (1 + 0 + 1 / 3 + 0) / 4}
    )
    assert sum(not row.valid for row in rows) == 3


def test_math_reads_both_published_forms(tmp_path: Path) -> None:
    settings = {"data": write(tmp_path / "math_500.jsonl", static_rows.MATH_500)}
    rows, metrics = run_eval("math", settings, ScriptedModel(lambda prompt, seed: solved_math(prompt)))
    assert metrics["score"] == 1.0
    assert {row.tags[0] for row in rows} == {"Algebra", "X"}


def test_math_refuses_an_answer_that_cannot_be_read(tmp_path: Path) -> None:
    rows = [{"problem": "p", "solution": "x" * 20_001, "unique_id": "u1"}]
    with pytest.raises(AlignError, match="math: item u1"):
        run_eval("math", {"data": write(tmp_path / "m.jsonl", rows)}, ScriptedModel(lambda p, s: ""))


def test_ifeval_counts_instructions_and_prompts(files: dict[str, Any], punkt: Path) -> None:
    def answer(prompt: Any, seed: int) -> str:
        text = solved_ifeval(prompt)
        if "commas" in text_of(prompt):
            return text.replace("sea", "lake")  # one of two
        if "lower case" in text_of(prompt):
            return f"Here it is, as you wanted:\n{text}"  # none, but for the first line
        return text

    rows, metrics = run_eval("ifeval", files["ifeval"], ScriptedModel(answer))
    by_key = {row.item_id: row for row in rows}
    assert by_key["1000"].metrics["inst_strict"] == 0.5
    assert by_key["1002"].metrics["inst_strict"] == 0.0
    assert by_key["1002"].metrics["prompt_loose"] == 1.0
    assert metrics == pytest.approx(
        {
            "score": 2 / 4,
            "prompt_strict": 2 / 4,
            "inst_strict": (1 + 1 + 0 + 1) / 7,
            "prompt_loose": 3 / 4,
            "inst_loose": (1 + 1 + 3 + 1) / 7,
        }
    )
    instructions = run_eval("ifeval_instructions", files["ifeval"], ScriptedModel(answer))[1]
    assert instructions["score"] == metrics["inst_strict"]


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_completion_follows_no_instruction(text: str, files: dict[str, Any], punkt: Path) -> None:
    rows, metrics = run_eval("ifeval", files["ifeval"], ScriptedModel(lambda prompt, seed: text))
    assert set(metrics.values()) == {0.0}
    assert not any(row.valid for row in rows)


def test_ifeval_gives_the_same_verdicts_every_time_and_leaves_the_generators_alone(tmp_path: Path, punkt: Path) -> None:
    """A missing argument is drawn by the checker, and langdetect draws too: this text is Finnish or Polish to it."""
    rows = [
        {
            "key": n,
            "prompt": f"Write {n}.",
            "instruction_id_list": ["length_constraints:number_words", "language:response_language"],
            "kwargs": [{"num_words": None}, {"language": "fi"}],
        }
        for n in range(4)
    ]
    settings = {"data": write(tmp_path / "ifeval.jsonl", rows)}
    model = ScriptedModel(lambda prompt, seed: "kaikki pojat tak")
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    found = {str(run_eval("ifeval", settings, model)[0]) for _ in range(5)}
    assert len(found) == 1
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index, union-attr]


def test_ifeval_without_the_sentence_splitter_stops_before_anything_is_measured(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(AlignError, match=r"needs NLTK's punkt_tab.*\n    python -m nltk.downloader punkt_tab"):
        run_eval("ifeval", files["ifeval"], ScriptedModel(lambda prompt, seed: ""))


def test_ifeval_names_an_instruction_without_a_checker(tmp_path: Path, punkt: Path) -> None:
    rows = [{"key": 7, "prompt": "p", "instruction_id_list": ["rhyme:all"], "kwargs": [None]}]
    with pytest.raises(AlignError, match="item 7: no checker for the instruction 'rhyme:all'"):
        run_eval("ifeval", {"data": write(tmp_path / "i.jsonl", rows)}, ScriptedModel(lambda p, s: ""))


def test_a_missing_package_is_named_with_its_extra(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from align.plugins.evals.static import lm_eval_task

    monkeypatch.setattr(lm_eval_task, "find_spec", lambda name: None)
    with pytest.raises(AlignError, match=r"needs lm_eval\n    pip install 'align-llm\[eval\]'"):
        run_eval("gsm8k", files["gsm8k"], ScriptedModel(lambda p, s: ""))


def test_sampling_of_the_suite_replaces_the_protocols(files: dict[str, Any]) -> None:
    model = ScriptedModel(lambda prompt, seed: "")
    run_eval("aime", {**files["aime"], "sampling": {"temperature": 1.0, "max_completion_length": 64}}, model, n=1)
    sampling = model.asked[0].sampling  # type: ignore[union-attr]
    assert (sampling.temperature, sampling.top_p, sampling.max_completion_length) == (1.0, 0.95, 64)


def test_math_without_boxes(files: dict[str, Any]) -> None:
    model = ScriptedModel(lambda prompt, seed: re.sub(r"\\boxed{(.*)}", r"The answer is $\1$.", solved_math(prompt)))
    assert run_eval("math", files["math"], model)[1]["score"] == 0.0
    assert run_eval("math", {**files["math"], "boxed": False}, model)[1]["score"] == 1.0
