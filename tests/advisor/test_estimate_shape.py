"""Shapes of models, and the table of accelerators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.advisor.estimate.model_shape import ModelShape, from_config, shape_of_directory, typical_shape
from align.schemas import gpus
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
        shape_of_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(AlignError, match="lacks num_attention_heads"):
        shape_of_directory(tmp_path)
    with pytest.raises(AlignError, match="cannot be read"):
        shape_of_directory(tmp_path / "nowhere")


@given(st.floats(0.2, 700))
def test_a_typical_shape_has_the_size_asked_for(size: float) -> None:
    shape = typical_shape(size)
    assert shape.params == pytest.approx(size * 1e9, rel=0.15)
    assert not shape.exact and shape.heads % shape.kv_heads in range(shape.heads)


@given(st.integers(1, 64), st.integers(1, 64))
def test_an_adapter_grows_with_its_rank(small: int, more: int) -> None:
    shape = ModelShape(2, 64, 128, 1000, 4, 2, 16, tied=True)
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
    assert gpus.named(said).name == name


def test_memory_tells_sizes_of_one_device_apart() -> None:
    small, large = gpus.find("A100", 40e9), gpus.find("A100", 80e9)
    assert small is not None and large is not None
    assert (small.name, large.name) == ("A100-40", "A100-80")


def test_an_unknown_device_is_said_with_the_nearest() -> None:
    with pytest.raises(AlignError, match="no accelerator is called 'H1000'"):
        gpus.named("H1000")


def test_every_gpu_is_sourced_and_what_is_known_of_it_is_sane() -> None:
    read = gpus.read()
    assert read["version"] == 2 and str(read["date"]) >= "2026"
    names = [row["name"] for row in read["gpus"]]
    assert len(names) == len(set(names)) and set(read["checked"]) <= set(read["sources"])
    assert {row["source"] for row in read["gpus"]} == set(read["sources"])
    for row in read["gpus"]:
        assert set(row) == {"name", "family", "aliases", "memory", "bandwidth", "peak", "fp32", "bf16", "source"}
        assert 6 <= row["memory"] <= 300, row["name"]
        for key, low, high in (("bandwidth", 0.1, 10), ("peak", 4, 3000), ("fp32", 4, 200)):
            assert row[key] is None or low <= row[key] <= high, row["name"]
        assert gpus.named(row["name"]).name == row["name"]
        assert all(gpus.named(alias).name == row["name"] for alias in row["aliases"]), row["name"]


def test_advice_and_estimates_read_the_same_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from align.advisor.text import read

    for word, sizes in gpus.sizes_by_word().items():
        said = f"We have 4 NVIDIA {word.upper()} cards to train on."
        found = {each.field: each.value for each in read(said).evidence}
        device = gpus.named(str(found["hardware.gpu"]))
        assert found["hardware.memory_gb"] == sizes[0], said
        same = gpus.find(str(found["hardware.gpu"]), sizes[0] * 1e9)
        assert same is not None and (same.family, same.memory) == (device.family, sizes[0] * 1e9), said

    # A GPU that is written into the file is known to both, and one that is struck out to neither.
    text = Path(gpus.__file__).with_name("gpus.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "{name: B300," not in line]
    lines.append(
        "  - {name: Z900, family: Z900, aliases: [], memory: 77, bandwidth: null, peak: null, fp32: null, "
        "bf16: true, source: b300}"
    )
    (tmp_path / "gpus.yaml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(gpus, "__file__", str(tmp_path / "gpus.py"))
    caches = (gpus.devices, gpus._listed, gpus._names, gpus.sizes_by_word)
    for cache in caches:
        cache.cache_clear()
    try:
        found = {each.field: each.value for each in read("We have 4 Z900 cards to train on.").evidence}
        assert (found["hardware.gpu"], found["hardware.memory_gb"]) == ("Z900", 77)
        assert gpus.named("Z900").memory == 77e9
        assert "hardware.gpu" not in {each.field for each in read("We have 4 B300 cards to train on.").evidence}
        assert gpus.find("B300") is None
    finally:
        for cache in caches:
            cache.cache_clear()


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("T4", False),
        ("V100-32", False),
        ("RTX 2080", False),
        ("RTX 1080", False),
        ("GTX 1660", False),
        ("RTX 2060 Super", False),
        ("A100", True),
        ("RTX 3090", True),
        ("B300", True),
        ("", True),
        ("some GPU", True),
    ],
)
def test_which_gpus_have_bfloat16(name: str, has: bool) -> None:
    assert gpus.has_bfloat16(name) is has
