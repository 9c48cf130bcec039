"""What to know of a model before its first step: which of its tensors are not trained, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align.core.data.examples import Example, Examples
from align.core.model.architecture import parameters_of, recall
from align.core.model.policy import Policy
from align.schemas.errors import Problem

NAMED = 4
"""Names that a sentence gives."""

SCANNED = 4096
"""Examples that are searched for added tokens."""

SAMPLE = 4096
"""Embeddings that the mean is taken of."""

NEAR = 0.1
"""Distance from the mean of all embeddings, as a share of the usual one, below which an embedding was never trained:
transformers gives new tokens the mean, other tools zeros."""


def notes(policy: Policy, tokenizer: PreTrainedTokenizerBase, examples: Examples | Sequence[Example]) -> list[Problem]:
    """Warnings about a policy and the examples that it is to learn from."""
    found = [*_left_out(policy), *_not_loaded(policy), *_experts(policy), *_added_tokens(policy, tokenizer, examples)]
    return [Problem("model", what, fix, "warning") for what, fix in found]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _left_out(policy: Policy) -> Iterator[tuple[str, str]]:
    loaded, network = recall(policy.unwrapped), policy.unwrapped
    if loaded is None or not loaded.left_out:
        return
    numbers = sum(parameter.numel() for parameter in parameters_of(network, loaded.left_out))
    yield (
        f"rows of text do not reach {_listed(loaded.left_out)} ({numbers:,} parameters): they are not trained, and "
        f"exported as they are; {type(network).__name__} loads the export with all its tensors",
        "",
    )


def _not_loaded(policy: Policy) -> Iterator[tuple[str, str]]:
    loaded = recall(policy.unwrapped)
    if loaded is None or not loaded.inventory.not_loaded:
        return
    names, kind = loaded.inventory.not_loaded, type(policy.unwrapped).__name__
    fate = "copied to the export as they are" if policy.head == "language" else "not in the export"
    yield f"{kind} does not use {_listed(names)} of the checkpoint: not trained, and {fate}", ""


def _experts(policy: Policy) -> Iterator[tuple[str, str]]:
    """Fused experts that no adapter is on: they are parameters, and adapters go on linear layers."""
    if not isinstance(policy.model, PeftModel):
        return
    wrapped = [m for m in policy.model.modules() if isinstance(m, ParamWrapper)]
    adapted = {id(getattr(m.get_base_layer(), m.parameter_name)) for m in wrapped}
    network = policy.unwrapped
    left = {
        name: parameter.numel()
        for name, parameter in network.named_parameters()
        if "expert" in name and parameter.ndim >= 3 and not parameter.requires_grad and id(parameter) not in adapted
    }
    if left:
        ends = sorted({".".join(name.split(".")[-2:]) for name in left})
        share = sum(left.values()) / sum(p.numel() for p in network.parameters())
        yield (
            f"the adapter is on no expert: {', '.join(ends)} ({share:.0%} of the parameters) are fused, not linear "
            "layers, and stay as they are",
            f"model.adapter.target_parameters: [{', '.join(ends)}] adapts them",
        )


def _added_tokens(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, examples: Examples | Sequence[Example]
) -> Iterator[tuple[str, str]]:
    """Added tokens in the examples whose embeddings, or rows of the head, are neither trained nor look trained."""
    if not isinstance(policy.model, PeftModel):
        return
    added = tokenizer.added_tokens_decoder
    known = np.array(sorted(added), np.int64)
    used = {int(i) for e in _first(examples) for s in e.sequences for i in np.intersect1d(s.tokens, known)}
    frozen = dict[int, list[str]]()
    network: Any = policy.unwrapped
    layers = {"embeddings": network.get_input_embeddings()}
    if policy.head == "language":
        layers["rows of the head"] = network.get_output_embeddings()
    for what, layer in layers.items():
        if layer is None or hasattr(layer, "modules_to_save"):
            continue
        trained = (
            set[int](i for ids in layer.token_adapter.token_indices.values() for i in ids)
            if hasattr(layer, "token_adapter")
            else set[int]()
        )
        weight_VD = (layer.token_adapter.get_base_layer() if trained else layer).weight
        for token in _untouched(weight_VD, sorted(used - trained), sorted(added), tokenizer):
            frozen.setdefault(token, []).append(what)
    if frozen:
        names = [str(added[token]) for token in sorted(frozen)]
        yield (
            f"the rows hold added tokens that nothing trains: {_listed(names)}; their "
            f"{' and '.join(w for w in layers if any(w in each for each in frozen.values()))} stay as they were added",
            f"model.adapter.trainable_token_indices: {names} trains them (or modules_to_save: the embeddings whole)",
        )


def _first(examples: Examples | Sequence[Example]) -> Iterator[Example]:
    return (examples[i] for i in range(min(SCANNED, len(examples))))


def _untouched(
    weight_VD: Tensor, tokens: Sequence[int], added: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Those of some added tokens whose rows look as they did when they were added.

    Rows near the mean of all, or near zero; and of tokens past the tokenizer's own vocabulary all that neither its
    chat template nor its special roles know, whatever their rows.
    """
    if not tokens:
        return []
    others = np.setdiff1d(np.arange(len(weight_VD)), added)
    others = others[:: max(1, len(others) // SAMPLE)]
    with torch.no_grad():
        sample = weight_VD[torch.from_numpy(others).to(weight_VD.device)].float()
        rows = weight_VD[list(tokens)].float()
        mean_D = sample.mean(0)
        usual = float((sample - mean_D).norm(dim=1).median())
        near = torch.minimum((rows - mean_D).norm(dim=1), rows.norm(dim=1)) < NEAR * usual
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    known = " ".join(map(str, (tokenizer.chat_template, *roles)))
    spelt = tokenizer.added_tokens_decoder
    return [
        token
        for token, new in zip(tokens, near.tolist(), strict=True)
        if new or (token >= tokenizer.vocab_size and str(spelt[token]) not in known)
    ]
