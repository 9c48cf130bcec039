"""Export of a policy to an ordinary Hugging Face directory that transformers and vLLM load.

Adapters are merged and the result is checked. The directory appears as a whole or not at all.
"""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from align.core.models.adapter import merge
from align.core.models.architecture import (
    Head,
    Inventory,
    Loaded,
    add_tensors,
    copy_processors,
    quiet,
    read_tensors,
    recall,
    tensors_of,
)
from align.core.models.load_and_export import build_policy
from align.core.models.policy import Policy, nonfinite, set_dropout, without_gradient_or_dropout
from align.core.util.atomic_files import fsync_directory, fsync_tree
from align.schemas.errors import AlignError
from align.schemas.run import Model

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference between outputs of the merged and the adapted model, relative to the largest output."""


def export(policy: Policy, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write config, safetensors, tokenizer with its chat template, and generation config to ``directory``.

    An adapter is merged, and the merged model must give the same outputs (``TOLERANCE``); the adapter is written to
    ``adapter/`` too, if the location of its base is known. Tensors of the original checkpoint that its class does not
    load are copied unchanged, and so are the configs of image and sound processors. The policy is left unchanged, to
    the bit. Everything is written to a sibling directory and flushed to disk before it is renamed, and so replaces an
    older export only when it is complete.
    Raises AlignError for weights that are not finite, for a merge that changes the outputs, and if a tensor of the
    original checkpoint is missing.
    """
    if bad := nonfinite(policy.model):
        raise AlignError(f"{len(bad)} tensors hold NaN or infinity, such as {bad[0]}; nothing was exported")
    plain = plain_model(policy.model)
    if isinstance(policy.model, PeftModel):
        _check_merge(policy.model, plain)
    partial, older = (directory.with_name(f".{directory.name}.{word}") for word in ("partial", "older"))
    for stale in (partial, older):
        shutil.rmtree(stale, ignore_errors=True)
    _write(plain, partial)
    if (loaded := recall(policy.unwrapped)) is not None:
        _complete(plain, loaded, policy.head, partial)
    tokenizer.save_pretrained(partial)
    if isinstance(policy.model, PeftModel) and policy.model.active_peft_config.base_model_name_or_path:
        policy.model.save_pretrained(str(partial / "adapter"), save_embedding_layers=False)
        (partial / "adapter" / "README.md").unlink(missing_ok=True)  # peft's form for a model card, not filled in
    fsync_tree(partial)
    if directory.exists():
        directory.rename(older)
    partial.rename(directory)
    fsync_directory(directory.parent)
    shutil.rmtree(older, ignore_errors=True)


def export_from_state(state: Mapping[str, Tensor], model: Model, head: Head, directory: Path) -> None:
    """Export a policy given as a state dict (``Policy.state_dict``, whole tensors) over the model it started from.

    The state may leave out what training did not change. Raises AlignError where it does not fit the model.
    """
    policy, tokenizer = build_policy(model, head, seed=0, dropout=True)
    try:
        result = policy.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise AlignError(f"the trained weights do not fit {model.path}: {error}") from error
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if wrong := [*result.unexpected_keys, *sorted(trained & set(result.missing_keys))]:
        raise AlignError(f"the trained weights do not fit {model.path}: {len(wrong)} tensors, such as {wrong[0]}")
    export(policy, tokenizer, directory)


def plain_model(model: nn.Module) -> PreTrainedModel:
    """Return a copy of the model with its adapter merged and its dropout on; unchanged tensors are shared, not copied.

    A quantised base is dequantised before the merge: the adapter was trained on those values, not on the originals.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    quantised = isinstance(model, PeftModel) and getattr(model.get_base_model(), "is_quantized", False)
    changed = {id(t) for layer in layers for t in layer.get_base_layer().parameters() if not quantised}
    tensors = itertools.chain(model.parameters(), model.buffers())
    # deepcopy takes what its memo holds as already copied, so the tensors listed there are shared.
    twin = copy.deepcopy(model, {id(t): t for t in tensors if id(t) not in changed})
    set_dropout(twin, True)
    if not isinstance(twin, PeftModel):
        assert isinstance(twin, PreTrainedModel)
        return twin
    if quantised:
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        whole: Any = twin.unload()
        with quiet():
            whole = whole.dequantize(whole.dtype)
        twin = get_peft_model(whole, twin.active_peft_config)
        set_peft_model_state_dict(twin, state)
    return merge(twin)


def _check_merge(adapted: PeftModel, plain: PreTrainedModel) -> None:
    """Raise AlignError if the merged model's outputs on two rows of arbitrary tokens differ from the adapted one's.

    The weights' type decides the tolerance: in 16 bits the sum W + BA is rounded to fewer digits than its terms.
    """
    dtype = torch.bfloat16 if getattr(adapted.get_base_model(), "is_quantized", False) else plain.dtype
    embedding: Any = plain.get_input_embeddings()
    ids = (torch.arange(32, device=plain.device) * 7919 % embedding.weight.shape[0]).view(2, 16)
    outputs = []
    for model in (adapted, plain):
        with without_gradient_or_dropout(model):
            outputs.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float())
    gap, largest = (float(x.abs().max()) for x in (outputs[1] - outputs[0], outputs[0]))
    if not gap <= TOLERANCE[dtype] * largest:
        raise AlignError(
            f"merging the adapter changed the model: outputs of up to {largest:.4g} moved by up to {gap:.4g} "
            f"(tolerance {TOLERANCE[dtype]:g} of the largest); nothing was exported",
            "hold the weights in float32 (model.dtype), which loses nothing in the sum",
        )


def _complete(plain: PreTrainedModel, loaded: Loaded, head: str, directory: Path) -> None:
    """Add the files and tensors of the original checkpoint that the network has no place for.

    Raises AlignError if the export lacks a tensor that the network loaded.
    """
    if lost := loaded.inventory.lost(Inventory.of(plain, tensors_of(directory))):
        raise AlignError(
            f"the export lacks {len(lost)} tensors of {loaded.directory}, such as {lost[0]}; nothing was exported"
        )
    if loaded.inventory.not_loaded and head == "language":
        add_tensors(directory, read_tensors(loaded.directory, loaded.inventory.not_loaded))
    copy_processors(loaded.directory, directory)


def _write(plain: PreTrainedModel, directory: Path) -> None:
    generation_config = plain.generation_config if plain.can_generate() else None
    if generation_config is not None:
        # Many models ship one that save_pretrained refuses (sampling settings without do_sample); it is written below.
        plain.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    with quiet():
        plain.save_pretrained(directory, max_shard_size="5GB")
    if generation_config is not None:
        generation_config.to_json_file(directory / "generation_config.json")
