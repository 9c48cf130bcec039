"""A run file's ``model`` in, a policy and its tokenizer out: complete, as asked for, or an error that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.core.model.source import (
    LOADING_FAULTS,
    Origin,
    base_of,
    is_adapter,
    not_loadable,
    quiet,
    refuse_pickles,
    resolve_model_path,
    trust,
)
from align.core.model.tensors import Inventory, names_to_export, tensors_of
from align.core.model.tokenizer import fit, load_tokenizer
from align.core.model.weights import set_dropout
from align.core.models.adapter import REWARD_HEAD, add_adapter, merge, quantisation, read_adapter, token_ids
from align.core.models.architecture import Head, Loaded, choose_family, freeze_unread, read_config, remember
from align.core.models.policy import Policy
from align.schemas.errors import AlignError
from align.schemas.run import Model

__all__ = ["build_policy", "load_network", "load_tokenizer", "resolve_model_path"]


def build_policy(model: Model, head: Head, *, seed: int, dropout: bool) -> tuple[Policy, PreTrainedTokenizerBase]:
    """The policy to train, in training mode on the CPU (quantised: on the current GPU), and its tokenizer.

    What is newly made (a reward head, an adapter) follows from ``seed`` alone; torch's generator is left as it was.
    ``dropout`` is about the model's own; an adapter's dropout is as its settings say.
    Raises AlignError for everything about the weights that would silently train something else.
    """
    directory = resolve_model_path(model.path, model.revision, model.trust_remote_code)
    tokenizer = load_tokenizer(model, head)
    tokens = token_ids(model.adapter, tokenizer) if model.adapter is not None else []
    network = _load_adapted(directory, model, head, seed, tokens)
    whole: Any = network.get_base_model() if isinstance(network, PeftModel) else network
    fit(whole, tokenizer, directory)
    set_dropout(network, dropout)
    if model.gradient_checkpointing:
        # Non-reentrant checkpoints work with inputs that need no gradient, hence with frozen embeddings.
        try:
            whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise AlignError(f"{type(whole).__name__} cannot", where="model.gradient_checkpointing") from error
    return Policy(network, head).train(), tokenizer


def load_network(directory: Path, model: Model, head: Head, seed: int) -> PreTrainedModel:
    """A whole model from a directory, complete or not at all.

    Only a reward head may be missing, where the directory holds a language model: it is then drawn from
    N(0, initializer_range) with ``seed``. Parts that rows of text do not reach are frozen. Raises AlignError for
    weights that are missing, left over, of another shape, pickled, or in need of code that the run file does not
    trust, and for weights that an export could not hold.
    """
    refuse_pickles(directory)
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype), "use_safetensors": True, **trust(model)}
    if model.attn_implementation != "auto":
        options["attn_implementation"] = model.attn_implementation
    if model.adapter is not None and model.adapter.quantize is not None:
        options |= quantisation(model.adapter.quantize, options["dtype"])
    if head == "reward":
        options["num_labels"] = 1
    family = choose_family(read_config(directory, model), head, directory)
    try:
        with quiet():
            network, info = family.from_pretrained(str(directory), output_loading_info=True, **options)
    except LOADING_FAULTS as error:
        raise not_loadable(error, directory, "model") from error
    # torch gives the row of padding_idx no gradient: where padding is the end token, that would never be learned
    network.get_input_embeddings().padding_idx = None
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if head == "reward" and f"{REWARD_HEAD}.weight" in missing:
        _draw_head(getattr(network, REWARD_HEAD), network.config, seed)
        missing = {name for name in missing if not name.startswith(f"{REWARD_HEAD}.")}
        unexpected = {name for name in unexpected if name.startswith(f"{network.base_model_prefix}.")}
    wrong = [f"it lacks {_some(missing)}"] * bool(missing) + [f"it also holds {_some(unexpected)}"] * bool(unexpected)
    if wrong:
        needed = "a causal language model" if head == "language" else "a language model or a one-label classifier"
        raise AlignError(
            f"does not hold the weights of {type(network).__name__}: {'; '.join(wrong)}",
            f"give the directory of {needed}, as save_pretrained writes it",
            where=str(directory),
        )
    inventory = Inventory.of(network, tensors_of(directory))
    remember(network, Loaded(directory, freeze_unread(network, head, directory), inventory))
    quantised = getattr(network, "is_quantized", False)
    if not quantised and (lost := inventory.lost(Inventory.of(network, names_to_export(network)))):
        raise AlignError(
            f"holds tensors that an export of {type(network).__name__} would lose: {_some(set(lost))}",
            "load and save it once with transformers (from_pretrained, save_pretrained), and start from that directory",
            where=str(directory),
        )
    return network  # type: ignore[no-any-return]


def _load_adapted(
    directory: Path, model: Model, head: Head, seed: int, tokens: Sequence[int]
) -> PreTrainedModel | PeftModel:
    """The network with the adapter that the run file asks for or the directory holds, if any."""
    local = Path(model.path).expanduser().is_dir()
    origin: Origin | None = Origin(str(directory)) if local else Origin(model.path, model.revision)
    if not is_adapter(directory):
        network = load_network(directory, model, head, seed)
    else:
        below = resolve_model_path(*base_of(directory), model.trust_remote_code)
        if is_adapter(below):
            raise AlignError("is an adapter upon an adapter", "merge the lower one first", where=str(directory))
        if model.adapter is not None and model.adapter.quantize is not None:
            raise AlignError(
                "is an adapter, which cannot be merged into a quantised base",
                "give the merged model as model.path, or leave model.adapter.quantize out",
                where=f"model.path: {model.path}",
            )
        old = read_adapter(load_network(below, model, head, seed), directory, head)
        if model.adapter is None:
            return old
        network, origin = merge(old), None
    if model.adapter is None:
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return add_adapter(network, model.adapter, head, origin, tokens)


def _draw_head(score: nn.Linear, config: Any, seed: int) -> None:
    # drawn in float32 by its own generator: the same seed is the same head, whatever the dtype and device
    drawn = torch.randn(score.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        score.weight.copy_(drawn * getattr(config.get_text_config(), "initializer_range", 0.02))
        if score.bias is not None:
            score.bias.zero_()


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
