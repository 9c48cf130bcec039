"""What rewards, samples and made rows show of an answer whose beginning the chat template wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from align.cli import main
from align.core.generation.generator_base import TurnReader
from align.core.inference.probe_models import LocalProbeModel
from align.core.training.launch import train
from align.core.training.sample_log import read_samples
from align.schemas.records import Record
from align.schemas.run import Run
from tests.tiny import CHAT_TEMPLATE, save_tiny, tiny_tokenizer

ASKED = [{"role": "user", "content": "What is 2+2?"}]
LATER = [{"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "4"}, *ASKED]
HEADER = "<|im_start|>assistant\\n"
EMPTY = "{%- if message.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
"""What a template puts before the words of an assistant who thinks nothing."""


def record(messages: Any = ASKED, **kwargs: Any) -> Record:
    return Record("prompt", "rows.jsonl:1", prompt=messages, chat_template_kwargs=kwargs)


def chatml(opening: str, before_words: str = "") -> str:
    """A template with more after its header: in the generation prompt, and before an assistant's own words."""
    body = f"'<|im_start|>' + message.role + '\\n' }}}}{before_words}{{{{- message.content + '<|im_end|>\\n'"
    return (
        f"{{%- for message in messages %}}{{{{- {body} }}}}{{% endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{- '{HEADER}' + {opening!r} }}}}{{% endif %}}"
    )


@pytest.mark.parametrize("messages", [ASKED, LATER], ids=["first", "later"])
@pytest.mark.parametrize(
    ("opening", "before_words", "expected"),
    [
        ("", "", ""),
        ("<think>\n", "", "<think>\n"),
        ("<think>", "", "<think>"),
        ("<think>\n", EMPTY, "<think>\n"),  # of both, only the empty thought is closed
        ("<think>", EMPTY, "<think>"),
        ("<reasoning>\nLet me see. ", EMPTY, "<reasoning>\nLet me see. "),
        ("[THINK]", "", "[THINK]"),
        ("Sure, ", "", "Sure, "),
        ("<|channel|>analysis<|message|>", "", "<|channel|>analysis<|message|>"),
        ("<|channel|>analysis<|message|>", "{{- '<|channel|>final<|message|>' }}", "<|channel|>analysis<|message|>"),
        ("", "{{- '<|channel|>final<|message|>' }}", ""),
        ("", EMPTY, ""),
        ("<think>\n\n</think>\n\n", EMPTY, ""),  # nothing is left open: what is sampled is the whole answer
        ("<think>\n\n</think>\n\n", "", ""),
        ("<think></think>", "{{- '<think></think>' if message.role == 'assistant' else '' }}", ""),
        ("<think>", "{{- '</think>' if message.role == 'assistant' else '' }}", "<think>"),  # DeepSeek V3.1
        ("</think>", "{{- '</think>' if message.role == 'assistant' else '' }}", ""),
    ],
)
def test_the_opening_of_an_answer(messages: Any, opening: str, before_words: str, expected: str) -> None:
    assert TurnReader(tiny_tokenizer(chatml(opening, before_words))).opening(record(messages)) == expected


def test_a_string_is_continued_and_opens_nothing() -> None:
    assert TurnReader(tiny_tokenizer(chatml("<think>\n"))).opening(record("The sea <think>\n")) == ""


@pytest.mark.parametrize("messages", [ASKED, LATER], ids=["first", "later"])
@pytest.mark.parametrize(
    ("name", "thinks", "expected"),
    [
        ("deepseek_r1_distill", None, "<think>\n"),
        ("deepseekv3", None, "<think>\n"),
        ("nemotron_3_nano", None, "<think>\n"),
        ("nemotron_3_nano", False, ""),
        ("qwen3_5_think", None, "<think>\n"),
        ("qwen3_6", False, ""),
        ("qwen3_5_nothink", True, "<think>\n"),
        ("qwen3", None, ""),
        ("qwen3", False, ""),
        ("glm4moe", False, ""),
        *((name, None, "") for name in ("gemma", "gemma3", "gptoss", "llama3", "llama3_1", "phi3", "lfm2", "cohere2")),
    ],
)
def test_real_templates(messages: Any, name: str, thinks: bool | None, expected: str) -> None:
    tokenizer = tiny_tokenizer((files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8"))
    kwargs = {} if thinks is None else {"enable_thinking": thinks}
    assert TurnReader(tokenizer).opening(record(messages, **kwargs)) == expected


class TestText:
    def test_it_is_the_opening_and_what_was_sampled_without_control_tokens(self) -> None:
        tokenizer = tiny_tokenizer(chatml("<think>\n"))
        sampled = tokenizer("two and two</think>\n4<|im_end|>")["input_ids"]
        turns = TurnReader(tokenizer)
        assert turns.text(sampled, turns.opening(record())) == "<think>\ntwo and two</think>\n4"
        assert turns.text(sampled) == "two and two</think>\n4"

    def test_tags_are_shown_where_they_are_special_tokens_too(self) -> None:
        tokenizer = tiny_tokenizer(chatml("<think>\n"))
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<|end|>"]})
        sampled = tokenizer("two</think>4<|end|><|im_end|>")["input_ids"]
        turns = TurnReader(tokenizer)
        assert turns.text(sampled, turns.opening(record())) == "<think>\ntwo</think>4"

    def test_control_tokens_of_an_opening_are_left_out_as_those_of_the_answer_are(self) -> None:
        tokenizer = tiny_tokenizer(chatml("<|channel|>analysis<|message|>"))
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>", "<|message|>"]})
        sampled = tokenizer("two<|channel|>final<|message|>4")["input_ids"]
        turns = TurnReader(tokenizer)
        assert turns.text(sampled, turns.opening(record())) == "analysistwofinal4"


@pytest.fixture
def thinker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose template opens a thought; a reward that pays for seeing it, and by the length of the answer."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    template = CHAT_TEMPLATE.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")
    tiny_tokenizer(template).save_pretrained(tmp_path / "model")
    rows = [{"prompt": [{"role": "user", "content": f"the sea {i}"}]} for i in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(
        "def opens(completions, completion_ids):\n"
        "    texts = [messages[0]['content'] for messages in completions]\n"
        "    return [text.startswith('<think>\\n') + sum(ids) / 1e9 for text, ids in zip(texts, completion_ids)]\n"
    )
    return tmp_path


def contents(rows: Sequence[dict[str, Any]], key: str) -> list[str]:
    return [row[key][0]["content"] for row in rows]


def test_an_online_stage(thinker: Path) -> None:
    """The reward, the samples that are kept and the rows that are made."""
    stage = {
        "name": "pick",
        "model": {"path": "model"},
        "data": {"train": "prompts.jsonl", "dataset_num_proc": 1},
        "algorithm": {"type": "best_of_n", "num_generations": 4},
        "train": {"batch_size": 16},
        "rollout": {
            "rewards": [
                {"type": "python", "file": "mine.py", "function": "opens"},
                {"type": "format", "search": True, "regex": r"\A<think>\n", "weight": 0},
            ],
            "sampling": {"max_completion_length": 24, "stop": ["e"]},
        },
    }
    (result,) = train(Run.model_validate({"output": "run", "stages": [stage]}), progress=False)
    assert result.metrics["rewards/python/mean"] == pytest.approx(1, abs=1e-3)
    assert result.metrics["rewards/format/mean"] == 1
    samples = read_samples(thinker / "run" / "pick" / "samples" / "phase-000001.parquet")
    assert len(samples) == 16 and all(row["completion"].startswith("<think>\n") for row in samples)
    made = [json.loads(line) for line in (result.export / "rows.jsonl").read_text().splitlines()]
    assert made and all(text.startswith("<think>\n") for text in contents(made, "completion"))


def test_commands(thinker: Path) -> None:
    asked = ["model", "prompts.jsonl", "--max-completion-length", "5", "--reward", "mine.py:opens", "-n", "2"]
    sampled = [json.loads(line) for line in CliRunner().invoke(main, ["sample", *asked]).stdout.splitlines()]
    assert len(sampled) == 8 and all(text.startswith("<think>\n") for text in contents(sampled, "completion"))
    assert all(row["reward"] > 0.9 for row in sampled)

    shown = CliRunner().invoke(main, ["sample", "model", "the sea 0", "--max-completion-length", "5", "--greedy"])
    assert shown.stdout.startswith("<think>\n") and shown.stdout.count("<think>") == 1

    label = [
        "data",
        "label",
        "prompts.jsonl",
        "labelled.jsonl",
        "--model",
        "model",
        "-n",
        "4",
        "--max-completion-length",
        "5",
    ]
    done = CliRunner().invoke(main, [*label, "--reward", "mine.py:opens"])
    assert done.exit_code == 0, done.output
    labelled = [json.loads(line) for line in Path("labelled.jsonl").read_text().splitlines()]
    assert labelled and all(
        text.startswith("<think>\n") for key in ("chosen", "rejected") for text in contents(labelled, key)
    )

    audit = [
        "reward",
        "audit",
        "mine.py:opens",
        "prompts.jsonl",
        "--model",
        "model",
        "--max-completion-length",
        "5",
        "-n",
        "2",
    ]
    done = CliRunner().invoke(main, [*audit, "--json"])
    assert json.loads(done.stdout)["difficulty"]["mean"] == pytest.approx(1, abs=1e-3), done.output


def test_evaluation(thinker: Path) -> None:
    (text,) = LocalProbeModel.load("model").answers([ASKED], max_new_tokens=5)
    assert text.startswith("<think>\n")
