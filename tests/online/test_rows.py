"""Rows that best_of_n makes are rows that the next stage learns from: whatever was sampled, by one definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.core.data.encode import Encoder
from align.core.data.template_checks import TokenizationSettings
from align.core.online.phases import Collector
from align.core.plugin_system.registry import registry
from align.core.training.launch import train
from align.core.training.row_stage import Acceptance
from align.schemas.errors import AlignError
from align.schemas.run import Choice, Data, Run
from tests.online.probes import python
from tests.tiny import tiny_tokenizer

ASKED = [{"role": "user", "content": "What is 2+2?"}]


def answered(text: Any, prompt: Any = ASKED) -> dict[str, Any]:
    said = [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
    return {"prompt": prompt, "completion": said}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (answered("4"), ""),
        (answered("4 <|im_start|>"), "special-token-unclear"),
        (answered("\U0001f600 \u4e2d"), ""),
        (answered("4", "2+2 is"), ""),
        ({"prompt": ASKED, "chosen": answered("4")["completion"], "rejected": answered("5")["completion"]}, ""),
        (answered(""), "empty"),
        (answered(" \n\t"), "empty"),
        (answered(None), "null"),
        (answered("", "2+2 is"), "empty"),
        (answered("\ud800"), "bad-unicode"),
        (answered("a " * 200), "truncation"),
        (answered("\nab", "the cat sat on the\n"), ""),
        ({"prompt": "p", "chosen": "4", "rejected": "4"}, "same-answers"),
        ({"prompt": [], "completion": "4"}, "empty"),
    ],
)  # fmt: skip
def test_one_definition(row: dict[str, Any], kind: str) -> None:
    settings = TokenizationSettings.of(
        registry.build("algorithm", Choice(type="sft")), Data(train=["x"], max_length=128)
    )
    fault = Acceptance(Encoder(tiny_tokenizer()), settings).fault(row)
    assert fault.partition(":")[0] == kind, fault


COMPLETIONS = ["", "  \n", "five", "a b c d e f g h i j " * 8, "\ufffd4", "four<|im_end|>"]
"""The completions of every prompt, in turn; the reward pays the first most."""


@pytest.fixture
def fixed_completions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replace what the sampler generates; the rest of the pipeline is as it is."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    original = Collector.sample

    def sample_with_completions(self: Collector, *arguments: Any) -> Any:
        generate = self.generator.generate

        def completions(requests: Any, *args: Any, **kwargs: Any) -> Any:
            groups = generate(requests, *args, **kwargs)
            tokenizer = self.handle.tokenizer
            for samples in groups:
                for i, sample in enumerate(samples):
                    ids = tokenizer(COMPLETIONS[i % len(COMPLETIONS)] + "<|im_end|>")["input_ids"]
                    tokens = np.array(ids, np.int32)
                    samples[i] = type(sample)(tokens, np.zeros(len(tokens), np.float32), "stop")
            return groups

        monkeypatch.setattr(self.generator, "generate", completions)
        try:
            return original(self, *arguments)
        finally:
            monkeypatch.setattr(self.generator, "generate", generate)

    monkeypatch.setattr(Collector, "sample", sample_with_completions)


def pipeline(tiny_model_dir: Path, place: Path, make: str, then: str, conversational: bool) -> Run:
    rows = [{"prompt": [{"role": "user", "content": f"q {i}"}] if conversational else f"the sea {i}"} for i in range(4)]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pick = {
        "name": "pick",
        "model": {"path": str(tiny_model_dir)},
        "data": {"train": str(place / "prompts.jsonl"), "dataset_num_proc": 1},
        "algorithm": {"type": "best_of_n", "num_generations": 6, "make": make},
        "train": {"batch_size": 24},
        "rollout": {"rewards": [python("first_most")], "sampling": {"max_completion_length": 200}},
    }
    learn = {
        "name": "learn",
        "model": {"path": str(tiny_model_dir)},
        "data": {"train": "stage:pick", "dataset_num_proc": 1, "max_length": 80},
        "algorithm": then,
        "train": {"batch_size": 4, "max_steps": 1},
    }
    return Run.model_validate({"output": str(place / "run"), "stages": [pick, learn]})


@pytest.mark.parametrize("conversational", [True, False], ids=["messages", "strings"])
@pytest.mark.parametrize(("make", "then"), [("completions", "sft"), ("pairs", "dpo")])
@pytest.mark.usefixtures("fixed_completions")
def test_the_next_stage_takes_them(
    tiny_model_dir: Path, tmp_path: Path, capfd: Any, make: str, then: str, conversational: bool
) -> None:
    """The best answers are empty and blank, another is too long for the stage that reads them: none becomes a row."""
    train(pipeline(tiny_model_dir, tmp_path, make, then, conversational), progress=False)
    text = (tmp_path / "run" / "pick" / "export" / "rows.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    best = [row["completion" if make == "completions" else "chosen"] for row in rows]
    said = "five"
    assert best == ([[{"role": "assistant", "content": said}]] if conversational else [said]) * 4
    told = capfd.readouterr().err
    assert "pick: left out 12 answers that cannot be learned from: 8 empty, 4 truncation" in told


@pytest.mark.usefixtures("fixed_completions")
def test_where_nothing_can_be_learned_it_says_why(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "COMPLETIONS", ["", " "])
    with pytest.raises(AlignError, match=r"made no row: .*24 empty"):
        train(pipeline(tiny_model_dir, tmp_path, "completions", "sft", True), progress=False)
