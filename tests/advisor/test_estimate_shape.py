"""Shapes of models, and the table of accelerators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.advisor.estimate import hardware
from align.advisor.estimate.shape import Shape, from_config, named_size, of_directory, typical
from align.schemas.errors import AlignError

QWEN25_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}


def test_a_config_gives_the_parameters_that_the_model_has() -> None:
    assert from_config(QWEN25_05B).params == 494_032_768  # the sum of its safetensors
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50_257, "n_positions": 1024}
    assert from_config(gpt2).params == pytest.approx(124_439_808, rel=0.001)  # biases of its mlps are left out


def test_experts_all_count_as_weights_and_few_as_work() -> None:
    shape = from_config(MIXTRAL)
    assert shape.params == 46_702_792_704
    assert shape.working == pytest.approx(12.9e9, rel=0.01)  # as Mistral says: 12.9B a token


def test_what_a_vision_model_says_of_its_text_counts() -> None:
    assert from_config({"model_type": "wrapped", "text_config": QWEN25_05B}).layers == 24


def test_a_config_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(AlignError, match="not a mapping"):
        of_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(AlignError, match="lacks num_attention_heads"):
        of_directory(tmp_path)
    with pytest.raises(AlignError, match="cannot be read"):
        of_directory(tmp_path / "nowhere")


@given(st.floats(0.2, 700))
def test_a_typical_shape_has_the_size_asked_for(size: float) -> None:
    shape = typical(size)
    assert shape.params == pytest.approx(size * 1e9, rel=0.15)
    assert not shape.exact and shape.heads % shape.kv_heads in range(shape.heads)


@given(st.integers(1, 64), st.integers(1, 64))
def test_an_adapter_grows_with_its_rank(small: int, more: int) -> None:
    shape = Shape(2, 64, 128, 1000, 4, 2, 16, tied=True)
    # by hand: q 64+64, k 64+32, v 64+32, o 64+64, and three linears of 64+128 in each of two layers
    assert shape.lora(small) == 2 * small * (128 + 96 + 96 + 128 + 3 * 192)
    assert shape.lora(small + more) > shape.lora(small)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("h100 pcie", "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("A100 40GB", "A100-40"),
        ("RTX4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("Tesla T4", "T4"),
        ("L4", "L4"),
    ],
)
def test_devices_are_found_by_what_people_call_them(said: str, name: str) -> None:
    assert hardware.named(said).name == name


def test_memory_tells_sizes_of_one_device_apart() -> None:
    small, large = hardware.find("A100", 40e9), hardware.find("A100", 80e9)
    assert small is not None and large is not None
    assert (small.name, large.name) == ("A100-40", "A100-80")


def test_an_unknown_device_is_said_with_the_nearest() -> None:
    with pytest.raises(AlignError, match="no accelerator is called 'H1000'"):
        hardware.named("H1000")


def test_every_device_is_complete_and_sourced() -> None:
    read = hardware._read()
    assert read["version"] == 1 and str(read["date"]) >= "2026"
    for row in read["gpus"]:
        assert row["source"] in read["sources"], row["name"]
        assert 8 <= row["memory"] <= 300 and 0.1 <= row["bandwidth"] <= 10 and 20 <= row["peak"] <= 3000, row["name"]
        assert row["fp32"] <= row["peak"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8),
        ("Qwen/Qwen2.5-0.5B", 0.5),
        ("models/llama-2-70b-chat-hf/", 70),
        ("8B/own", None),
        ("mistralai/Mixtral-8x7B-v0.1", None),
        ("Qwen/Qwen3-30B-A3B", None),
        ("gpt2", None),
        ("some/0B", None),
    ],
)
def test_a_name_tells_a_size(name: str, billions: float | None) -> None:
    assert named_size(name) == billions
