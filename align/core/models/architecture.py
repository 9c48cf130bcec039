"""The choice of the transformers class that a checkpoint is loaded into, and the parts that rows of text cannot reach.

A checkpoint is loaded into the class that wrote it wherever that class can be trained on text, so that an export holds
every tensor and the same class loads it again. Parts that no token passes through (the vision tower of a model that
also reads images) are frozen.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from align.core.model.source import LOADING_FAULTS, first_line, not_loadable, trust
from align.core.model.tensors import Inventory
from align.schemas.errors import AlignError
from align.schemas.run import Model

Head = Literal["language", "reward"]

FAMILIES: dict[Head, tuple[Any, ...]] = {
    "language": (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM),
    "reward": (AutoModelForSequenceClassification,),
}
"""transformers' families of classes that have such a head, the plainest first."""

LENGTH = 4
"""Tokens of the rows that ``freeze_unread`` runs."""

CAUSALITY = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest change of a logit that rounding alone explains, relative to the largest logit."""


def read_config(directory: Path, model: Model) -> Any:
    """Return a checkpoint's config. Raises AlignError if transformers cannot read it."""
    try:
        return AutoConfig.from_pretrained(str(directory), **trust(model))
    except LOADING_FAULTS as error:
        raise not_loadable(error, directory, "model") from error


def choose_family(config: Any, head: Head, directory: Path) -> Any:
    """Return the family (an ``AutoModelFor...``) whose class the checkpoint was written by, else the first that fits.

    Raises AlignError where transformers has no class for this checkpoint that reads text one token after another.
    """
    where, name = str(directory), _class_name(config)
    if getattr(config, "is_encoder_decoder", False):
        raise AlignError(
            f"holds {name}, an encoder with a decoder: align trains models that read a text once, from left to right",
            "take a decoder-only model (Llama, Qwen, Gemma, Mistral, ...)",
            where=where,
        )
    remote = getattr(config, "auto_map", None) or {}
    fitting = [f for f in FAMILIES[head] if type(config) in f._model_mapping or f.__name__ in remote]
    if not fitting:
        raise _unfit(config, head, name, where)
    return next((family for family in fitting if _class_in(family, config) == name), fitting[0])


def _class_name(config: Any) -> str:
    """Return the name of the class that wrote the checkpoint, as its config says."""
    return next(iter(config.architectures or []), f"a model of type {config.model_type}")


def _class_in(family: Any, config: Any) -> str:
    found = family._model_mapping.get(type(config), None)
    return found.__name__ if isinstance(found, type) else ""


def _unfit(config: Any, head: Head, name: str, where: str) -> AlignError:
    """Return the reason why no class fits, and a fix."""
    if head == "reward":
        text = config.get_text_config()
        sibling = "" if text is config else f" for text alone (model_type {text.model_type})"
        return AlignError(
            f"holds {name}, and transformers has no sequence-classification class for {config.model_type} models, "
            "which a reward model or a critic needs",
            f"start from a language model{sibling} that has one, such as Llama, Qwen3 or Mistral",
            where=where,
        )
    reason = "is no causal language model that transformers knows"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        reason = "is an encoder: each token sees those after it, so it cannot learn to predict them"
    return AlignError(
        f"holds {name}, which {reason}",
        "take a decoder-only language model (Llama, Qwen, Gemma, Mistral, ...)",
        where=where,
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """The origin of a network. left_out: names of its modules and parameters that text does not reach."""

    directory: Path
    left_out: tuple[str, ...]
    inventory: Inventory


def remember(network: PreTrainedModel, loaded: Loaded) -> None:
    """Attach this to the network; its copies carry it too."""
    network.__dict__["_loaded_by_align"] = loaded


def recall(network: nn.Module) -> Loaded | None:
    """Return what ``remember`` attached; None for a network that was not loaded from files."""
    return network.__dict__.get("_loaded_by_align")


def freeze_unread(network: PreTrainedModel, head: Head, directory: Path) -> tuple[str, ...]:
    """Freeze and name the parts that text does not reach, by running two short rows.

    Only models of a kind that may not read text from left to right are run. Raises AlignError for one that needs more
    than text, in which a token sees those after it, or that scores rows instead of tokens.
    """
    config, where, name = network.config, str(directory), type(network).__name__
    multimodal = config.get_text_config() is not config or any(
        type(config) in family._model_mapping for family in FAMILIES["language"][1:]
    )
    if not (multimodal or type(config) in MODEL_FOR_MASKED_LM_MAPPING or network.is_remote_code()):
        return ()
    try:
        outputs, reached = _run(network, score_head(network) if head == "reward" else None)
    except Exception as error:  # a model that lacks an input may raise anything
        raise AlignError(
            f"holds {name}, which cannot read text alone: {first_line(error)}",
            "take a language model, or one for images that also reads plain text (Qwen-VL, Gemma 3, Llava, ...)",
            where=where,
        ) from error
    if outputs.shape[:2] != (2, LENGTH):
        raise AlignError(
            f"holds {name}, which gives one score for a whole row; align reads a score at each token",
            "start from a decoder (algorithm reward_model trains one from a language model)",
            where=where,
        )
    before, after = outputs[:, :-1]  # the two rows differ in the last token only, which these must not depend on
    if head == "language" and not (before - after).abs().max() <= CAUSALITY[network.dtype] * outputs.abs().max():
        raise AlignError(
            f"holds {name}, in which a token sees those after it: it would learn to copy them, and could not write one "
            "after another",
            "take a decoder-only model (Llama, Qwen, Gemma, Mistral, ...)",
            where=where,
        )
    unread = tuple(_unreached(network, "", reached)) if multimodal else ()
    for parameter in parameters_of(network, unread):
        parameter.requires_grad_(False)
    return unread


def parameters_of(network: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """Return the parameters in modules of these names, and those that have such a name themselves."""
    prefixes = tuple(f"{name}." for name in names)
    return [p for name, p in network.named_parameters() if f"{name}.".startswith(prefixes)]


def score_head(network: nn.Module) -> Any:
    """Return the layer that computes a sequence-classification model's scores."""
    return getattr(network, "score", getattr(network, "classifier", None))


def _run(network: PreTrainedModel, head: nn.Module | None) -> tuple[Tensor, set[int]]:
    """Return outputs [2, LENGTH, ...] of two rows that differ in their last token, and ids of what they depend on.

    head: the layer that computes scores; None for logits. The ids are of the parameters in the graph of the outputs,
    and of those in modules that ran.
    """
    ran = list[nn.Module]()
    hooks = [m.register_forward_pre_hook(lambda module, _inputs: ran.append(module)) for m in network.modules()]
    ids = torch.full((2, LENGTH), 4, device=next(network.parameters()).device)
    ids[1, -1] = 5
    given = {"position_ids": torch.arange(LENGTH, device=ids.device).expand(2, -1), "attention_mask": ids > 0}
    takes = inspect.signature(network.forward).parameters
    scores = list[Tensor]()
    if head is not None:  # a classifier's logits are those of one token, its head's output those of all
        hooks.append(head.register_forward_hook(lambda _module, _inputs, output: scores.append(output)))
    training = network.training
    network.train(False)
    try:
        with torch.enable_grad():
            outputs: Tensor = network(input_ids=ids, **{k: v for k, v in given.items() if k in takes}).logits
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    outputs = scores[-1] if scores else outputs
    reached = {id(parameter) for module in ran for parameter in module.parameters(recurse=False)}
    # Hooks miss weights used without calling their module (F.linear); the graph misses frozen ones.
    waiting, seen = [outputs.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(id(getattr(node, "variable", None)))
        waiting += [following for following, _ in node.next_functions]
    return outputs.detach().float(), reached


def _unreached(module: nn.Module, prefix: str, reached: set[int]) -> Iterator[str]:
    """Yield the names of the largest parts below ``module`` none of whose parameters is reached.

    Two short rows reach only some of a list of like modules (experts), by chance: one that is reached stands for all.
    """

    def reaches(part: nn.Module) -> bool:
        return any(id(parameter) in reached for parameter in part.parameters())

    yield from (f"{prefix}{n}" for n, p in module.named_parameters(recurse=False) if id(p) not in reached)
    alike = {type(child) for child in module.children() if reaches(child)} if isinstance(module, nn.ModuleList) else ()
    for name, child in module.named_children():
        if reaches(child):
            yield from _unreached(child, f"{prefix}{name}.", reached)
        elif any(True for _ in child.parameters()) and type(child) not in alike:
            yield f"{prefix}{name}"
