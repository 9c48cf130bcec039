from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.core.data.datasets import tokenize_records
from align.core.evaluation.statistics import wilson
from align.core.inference.probe_models import LocalProbeModel, prefers_chosen
from align.core.models.load_and_export import build_policy
from align.core.plugin_system.registry import registry
from align.schemas.records import Record
from align.schemas.run import Choice, Data, Model, Source


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_score_interval(counts: tuple[int, int]) -> None:
    hits, total = counts
    oracle = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert wilson(hits, total) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_wilson_by_hand_and_its_limits() -> None:
    # n = 10, p = 1, z = 2: centre = (1 + 4/20) / 1.4 = 6/7, half = (2 / 1.4) sqrt(4 / 400) = 1/7
    assert wilson(10, 10, z=2) == pytest.approx((5 / 7, 1))
    for hits, total in [(0, 0), (-1, 3), (4, 3)]:
        with pytest.raises(ValueError, match=f"{hits} of {total}"):
            wilson(hits, total)


def test_answers_do_not_depend_on_the_batch_they_are_in(tiny_model_dir: Path) -> None:
    probed = LocalProbeModel.load(tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    prompts = [
        "The cat",
        [{"role": "user", "content": "What is the sum of two and three?"}],
        "A much longer prompt, this",
    ]
    probed.policy.train()
    together = probed.answers(prompts, max_new_tokens=12)
    assert probed.policy.training
    assert together == [probed.answers([p], max_new_tokens=12)[0] for p in prompts]
    # The oracle: the likeliest token, one after the other.
    for prompt, turn in zip(prompts, together, strict=True):
        text = (
            prompt
            if isinstance(prompt, str)
            else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(12):
            likeliest = model(ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, likeliest], 1)
            if likeliest.item() == tokenizer.eos_token_id:
                break
        assert tokenizer.decode(ids[0, start:], skip_special_tokens=True) == turn


def test_the_likelier_answer_is_found_by_its_sum(tiny_model_dir: Path) -> None:
    policy, tokenizer = build_policy(Model(path=str(tiny_model_dir)), "language", seed=0, dropout=False)
    answers = ["Yes.", "No, that answer is wrong.", "The sea is blue.", "five"]
    records = [
        Record(
            "preference",
            f"rows:{i}{j}",
            prompt=[{"role": "user", "content": "Is it?"}],
            chosen=[{"role": "assistant", "content": answers[i]}],
            rejected=[{"role": "assistant", "content": answers[j]}],
        )
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    dpo = registry.build("algorithm", Choice(type="dpo"))
    data = Data(train=[Source(path="rows")], dataset_num_proc=1)
    found = prefers_chosen(policy, tokenize_records(records, tokenizer, dpo, data).examples, tokenizer.pad_token_id)

    def total(answer: str) -> float:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Is it?"}], add_generation_prompt=True, tokenize=False
        )
        prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]])
        with torch.no_grad():
            logp = policy.unwrapped.eval()(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        return float(logp[len(prompt) - 1 :].sum())

    expected = [total(answers[i]) > total(answers[j]) for i in range(4) for j in range(4) if i != j]
    assert found.tolist() == expected
