"""Warnings about a model before its first step: tensors that are not trained, and what the export does with them."""

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
from align.core.models.architecture import parameters_of, recall
from align.core.models.policy import Policy
from align.schemas.errors import Problem

NAMED = 4
"""Most names in one sentence."""

SCANNED = 4096
"""Most examples that are searched for added tokens."""

SAMPLE = 4096
"""About how many embeddings the mean is taken over: float32 copies of all of them may need gigabytes."""

NEAR = 0.1
"""Distance from the mean embedding, relative to the median distance, below which an embedding counts as never trained:
transformers initialises new tokens to the mean, other tools to zeros."""


def notes(policy: Policy, tokenizer: PreTrainedTokenizerBase, examples: Examples | Sequence[Example]) -> list[Problem]:
    """Return warnings about a policy and the examples that it is to learn from."""
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
    """Yield a warning about fused experts without an adapter: they are parameters, and adapters go on linear layers."""
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
    """Yield a warning about added tokens whose embeddings or rows of the head are not trained and never were."""
    if not isinstance(policy.model, PeftModel):
        return
    added = tokenizer.added_tokens_decoder
    known = np.array(sorted(added), np.int64)
    sequences = (sequence for example in _first(examples) for sequence in example.sequences)
    used = {int(token) for sequence in sequences for token in np.intersect1d(sequence.tokens, known)}
    frozen = dict[int, list[str]]()
    network: Any = policy.unwrapped
    layers = {"embeddings": network.get_input_embeddings()}
    if policy.head == "language":
        layers["rows of the head"] = network.get_output_embeddings()
    for what, layer in layers.items():
        if layer is None or hasattr(layer, "modules_to_save"):
            continue  # trained whole
        trained = set[int]()
        if hasattr(layer, "token_adapter"):
            trained = {token for ids in layer.token_adapter.token_indices.values() for token in ids}
        weight_VD = (layer.token_adapter.get_base_layer() if trained else layer).weight
        for token in _untouched(weight_VD, sorted(used - trained), sorted(added), tokenizer):
            frozen.setdefault(token, []).append(what)
    if frozen:
        names = [str(added[token]) for token in sorted(frozen)]
        untrained = [what for what in layers if any(what in each for each in frozen.values())]
        yield (
            f"the rows hold added tokens that nothing trains: {_listed(names)}; their "
            f"{' and '.join(untrained)} stay as they were added",
            f"model.adapter.trainable_token_indices: {names} trains them (or modules_to_save: the embeddings whole)",
        )


def _first(examples: Examples | Sequence[Example]) -> Iterator[Example]:
    return (examples[i] for i in range(min(SCANNED, len(examples))))


def _untouched(
    weight_VD: Tensor, tokens: Sequence[int], added: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Return those of ``tokens`` whose rows look as they did when the tokens were added.

    These are rows near the mean of all, or near zero. Of tokens past the tokenizer's own vocabulary, they are all that
    neither its chat template nor its special roles use, however their rows look.
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
