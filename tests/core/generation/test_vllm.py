"""Exports load in real vLLM and give there what they give in transformers: the same tokens, the same log-probs.

vLLM and align need not share an environment: the test asks the interpreter that ALIGN_VLLM_PYTHON names, or this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.core.training.launch import train
from tests.core.runs import rows, run_for, write_rows
from tests.tiny import save_tiny

PROBE = Path(__file__).parents[1] / "vllm_probe.py"
CHATS = [row["prompt"] for row in rows("dpo", count=8, seed=1)]
NEW_TOKENS = 24
VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the probe's own process
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, where it would take a share of the machine's memory
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def vllm_python() -> str:
    """An interpreter that has vLLM."""
    python = os.environ.get("ALIGN_VLLM_PYTHON", sys.executable)
    found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    if subprocess.run([python, "-P", "-c", found]).returncode:
        pytest.skip(f"{python} has no vllm; set ALIGN_VLLM_PYTHON to an interpreter that has it")
    return python


def by_vllm(python: str, export: Path, scratch: Path) -> list[dict[str, Any]]:
    asked, answered = scratch / "request.json", scratch / "answer.json"
    asked.write_text(json.dumps({"chats": CHATS, "max_tokens": NEW_TOKENS}))
    command = [python, "-P", str(PROBE), str(export), str(asked), str(answered)]
    done = subprocess.run(command, env=os.environ | VLLM, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(answered.read_text())


@torch.no_grad()
def logps(model: Any, ids: list[int]) -> Tensor:
    """Of every token but the first, given those before it, from the full logits."""
    logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize(
    ("algorithm", "sections"),
    [("sft", {}), ("dpo", {"model": {"adapter": {"r": 4}}})],
    ids=["sft-full", "dpo-lora"],
)
def test_an_export_in_vllm_is_what_it_is_in_transformers(
    vllm_python: str, algorithm: str, sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    start = save_tiny(tmp_path / "start", hidden_size=128)  # heads of 32, the least vLLM's attention takes on CPU
    data = write_rows(algorithm, tmp_path / "rows.jsonl")
    (result,) = train(run_for(algorithm, start, data, tmp_path / "run", **sections), progress=False)

    tokenizer = AutoTokenizer.from_pretrained(result.export)
    model, untrained = (AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in (result.export, start))
    for chat, found in zip(CHATS, by_vllm(vllm_python, result.export, tmp_path), strict=True):
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        whole = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS)[0].tolist()
        assert (found["prompt"], found["completion"]) == (prompt, whole[len(prompt) :])
        expected = logps(model, whole)
        torch.testing.assert_close(torch.tensor(found["logps"]), expected, atol=1e-4, rtol=0)
        assert (logps(untrained, whole) - expected).abs().max() > 0.01  # else this would show nothing of training
