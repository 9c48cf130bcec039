"""``reward_model``: the scores of align's own exports and of any classifier, however they are batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from align.core.data.batch import collate
from align.core.data.datasets import make_examples
from align.core.data.encode import Encoder
from align.core.data.template_checks import TokenizationSettings
from align.core.models.load_and_export import build_policy, export
from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import Answer, RewardContext, Score
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Adapter, Choice, Model
from tests.tiny import save_tiny, tiny_model

WORDS = ["the", "cat", "sat", "on", "mat", "and", "dog", "sea", "is", "wide", "blue", "cold", "sum", "of", "two", "no"]
TRAINED = TokenizationSettings(("preference",), False, True, 512, "error", frozenset())


@pytest.fixture(scope="module", params=["full", "lora"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A reward model's export, and the policy and tokenizer that it was made of."""
    directory = tmp_path_factory.mktemp(request.param)
    base = save_tiny(directory / "base")
    adapter = Adapter(r=4) if request.param == "lora" else None
    policy, tokenizer = build_policy(Model(path=str(base), adapter=adapter), "reward", seed=3, dropout=False)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        for parameter in policy.parameters():
            if parameter.requires_grad:  # as if trained: an adapter's B is zero at first
                parameter.add_(0.05 * torch.randn_like(parameter))
    export(policy, tokenizer, directory / "export")
    return directory / "export", policy.eval(), tokenizer


def opened(path: Path, tmp_path: Path, **settings: Any) -> Any:
    reward = registry.build("reward", Choice(type="reward_model", settings={"path": str(path), **settings}))
    reward.open(RewardContext(tmp_path))
    return reward


def pairs(chat: bool) -> list[tuple[Any, Any]]:
    """Prompts and answers of very different lengths, so that padding has something to spoil."""
    made: list[tuple[Any, Any]] = []
    for i, size in enumerate((1, 17, 3, 9, 1, 12)):
        prompt, said = " ".join(WORDS[: 1 + i]), " " + " ".join(WORDS[i : i + size])
        user, assistant = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": said}]
        made.append((user, assistant) if chat else (prompt, said))
    return made


def answers(of: list[tuple[Any, Any]]) -> list[Answer]:
    return [Answer(p, c, c if isinstance(c, str) else c[0]["content"]) for p, c in of]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("tokens", [16384, 30])
def test_an_export_scores_as_the_policy_on_its_training_tokens(
    exported: Any, tmp_path: Path, chat: bool, layout: str, tokens: int
) -> None:
    """The policy sees the pairs as the chosen answers of preference rows, each alone in its row."""
    directory, policy, tokenizer = exported
    expected = []
    for prompt, completion in pairs(chat):
        other = "no" if isinstance(prompt, str) else [{"role": "assistant", "content": "no"}]
        record = Record("preference", "r", prompt=prompt, chosen=completion, rejected=other)
        ((example,), _) = make_examples(record, Encoder(tokenizer), TRAINED)
        with torch.no_grad():
            expected.append(float(policy(collate([example], "padded", 0)).score_B[0]))
    reward = opened(directory, tmp_path, layout=layout, batch_tokens=tokens)
    said = reward.score(answers(pairs(chat)))
    assert [s.value for s in said] == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.01
    assert reward._network._layout == f"{layout}_shared"


@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_what_transformers_says(exported: Any, tmp_path: Path, side: str) -> None:
    """Whatever side the tokenizer pads on: transformers one by one, this reward all together."""
    directory = exported[0]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.padding_side = side
    copy = tmp_path / "copy"
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    expected = []
    for prompt, completion in pairs(True):
        ids = tokenizer.apply_chat_template(prompt + completion, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            expected.append(float(model(ids).logits[0, 0]))
    reward = opened(copy, tmp_path)
    assert [s.value for s in reward.score(answers(pairs(True)))] == pytest.approx(expected, abs=1e-5)


def test_a_score_does_not_depend_on_what_is_scored_with_it(exported: Any, tmp_path: Path) -> None:
    reward, asked = opened(exported[0], tmp_path), answers(pairs(True))
    together = [s.value for s in reward.score(asked)]
    assert [reward.score([one])[0].value for one in asked] == pytest.approx(together, abs=1e-5)
    assert [s.value for s in reward.score(asked[::-1])][::-1] == pytest.approx(together, abs=1e-5)
    assert list(reward.score([])) == []
    reward.close()
    reward.close()


def test_what_it_cannot_read_gets_no_score_and_costs_the_others_none(exported: Any, tmp_path: Path) -> None:
    reward, (good, *_) = opened(exported[0], tmp_path, max_length=60), answers(pairs(True))
    long = Answer("a", " the" * 80, " the" * 80)
    mixed = Answer([{"role": "user", "content": "a"}], "b", "b")
    spoken = Answer([{"role": "user", "content": "a"}], [{"role": "assistant", "content": "<|im_end|>"}], "<|im_end|>")
    said: list[Score] = list(reward.score([long, good, mixed, spoken]))
    assert [s.outcome for s in said] == ["error", "scored", "error", "scored"]
    assert "the model reads 1 to 60" in said[0].why


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    save_tiny(tmp_path / "language")
    with pytest.raises(AlignError, match="holds LlamaForCausalLM, whose scores would be random"):
        opened(tmp_path / "language", tmp_path)


def test_two_labels_are_not_one_score(tmp_path: Path) -> None:
    save_tiny(tmp_path / "m")
    config = tiny_model().config
    config.num_labels = 2
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "m")
    with pytest.raises(AlignError):
        opened(tmp_path / "m", tmp_path)
