"""Low-rank adapters: made new, read from a directory, merged; and a frozen base in 4 or 8 bits.

A directory that holds an adapter (``adapter_config.json``) names its base model. Without ``model.adapter`` in the
run file the training of that adapter is continued; with it, the old adapter is merged into its base and a new one is
trained on the result.

Importing this imports peft, which takes a sixth of a second: it is imported where an adapter is met, and recognised
without it (``align.core.models.architecture.is_adapted``).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from align.core.models.architecture import (
    LOADING_FAULTS,
    REWARD_HEAD,
    Head,
    ModelLocation,
    base_of,
    not_loadable,
    recall,
)
from align.schemas.errors import AlignError, Problem, did_you_mean
from align.schemas.run import Adapter

TASKS: dict[Head, TaskType] = {"language": TaskType.CAUSAL_LM, "reward": TaskType.SEQ_CLS}


def add_adapter(
    network: PreTrainedModel, spec: Adapter, head: Head, base: ModelLocation | None, tokens: Sequence[int] = ()
) -> PeftModel:
    """Put a new adapter on a network. Its B is 0, so outputs do not change yet; a reward head is trained whole with it.

    base: location of the network's weights, for the adapter's own config; None if they are nowhere on disk. tokens: ids
    whose rows are trained (``token_ids``). A is drawn from torch's global generator.
    Raises AlignError for names that match nothing, and for settings whose result could not be merged at the end.
    """
    if missed := _match_nothing(network, spec):
        raise AlignError.gather(missed)
    tied, rows = _shared(network), _rows(network, head, tokens)
    _refuse_twice(network, spec, rows, tied)
    saved = [*spec.modules_to_save, REWARD_HEAD] if head == "reward" else spec.modules_to_save
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.lora_alpha,  # type: ignore[arg-type]  # peft only divides it by the rank: a float works
        lora_dropout=spec.lora_dropout,
        use_dora=spec.type == "dora",
        target_modules=spec.target_modules,
        target_parameters=spec.target_parameters or None,
        exclude_modules=_not_adapted(network),
        modules_to_save=saved or None,
        trainable_token_indices=rows or None,
        ensure_weight_tying=bool(spec.modules_to_save or tokens),  # else a tied head would part from its embeddings
        task_type=TASKS[head],
    )
    try:
        adapted = get_peft_model(network, config)
    except ValueError as error:
        linear = sorted({name.rsplit(".", 1)[-1] for name, m in network.named_modules() if isinstance(m, nn.Linear)})
        raise AlignError(
            f"model.adapter.target_modules: {error}", f"linear layers of this model: {', '.join(linear)}"
        ) from error
    _refuse_parted(adapted, tied)
    _record(config, base)
    return adapted


def token_ids(spec: Adapter, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of ``trainable_token_indices``, ascending. Raises AlignError for a token that does not exist."""
    vocabulary = tokenizer.get_vocab()
    known, where = set(vocabulary.values()), "model.adapter.trainable_token_indices"
    found = set[int]()
    for token in spec.trainable_token_indices:
        number = token if isinstance(token, int) else vocabulary.get(token)
        if number not in known:
            raise AlignError(
                f"{token!r} is no token of this tokenizer",
                "give ids, or tokens as tokenizer.json has them; a new one is added with tokenizer.add_tokens and "
                "model.resize_token_embeddings, and both are saved",
                where=where,
            )
        found.add(number)
    return sorted(found)


def _rows(network: PreTrainedModel, head: Head, tokens: Sequence[int]) -> dict[str, list[int]]:
    """Return the rows to train, by layer name: in the embeddings, and in a head that is not tied to them."""
    if not tokens:
        return {}
    whole: Any = network
    inner, outer = whole.get_input_embeddings(), whole.get_output_embeddings()
    layers = [inner]
    if head == "language" and outer is not None and outer.weight is not inner.weight:
        layers.append(outer)
    found = {id(layer) for layer in layers}
    return {name: list(tokens) for name, module in network.named_modules() if id(module) in found}


def _match_nothing(network: PreTrainedModel, spec: Adapter) -> list[Problem]:
    """Return a problem for each name in the settings that matches no module or parameter: peft ignores such names."""
    modules = [name for name, _ in network.named_modules()]
    parameters = [name for name, _ in network.named_parameters()]
    targets = spec.target_modules if isinstance(spec.target_modules, list) else []
    linear = {name.rsplit(".", 1)[-1] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    problems = []
    for field, names, known in (
        ("target_modules", targets, modules),
        ("target_parameters", spec.target_parameters, parameters),
        ("modules_to_save", spec.modules_to_save, modules),
    ):
        ends = {name.rsplit(".", 1)[-1] for name in known}
        for wanted in names:
            if not any(_ends_with(name, wanted) for name in known):
                # Suggest no list positions: a part of ``layers.0`` is called "0".
                likely = linear if field == "target_modules" else {end for end in ends if not end.isdecimal()}
                near = did_you_mean(wanted, likely)
                problems.append(Problem(f"model.adapter.{field}", f"{wanted!r} is the name of nothing in it", near))
    return problems


def _ends_with(name: str, wanted: str) -> bool:
    return f".{name}".endswith(f".{wanted}")


def _refuse_twice(network: nn.Module, spec: Adapter, rows: Iterable[str], tied: Iterable[Sequence[str]]) -> None:
    """Raise AlignError if two settings would train the same weight, each in its own way."""
    chosen = {
        "target_modules": spec.target_modules if isinstance(spec.target_modules, list) else [],
        "modules_to_save": spec.modules_to_save,
        "trainable_token_indices": list(rows),
    }
    first = {name: names[0] for names in tied for name in names}  # modules that share a weight count as one
    trained_by = dict[str, str]()
    for field, wanted in chosen.items():
        names = [name for name, _ in network.named_modules() if any(_ends_with(name, one) for one in wanted)]
        for name in {first.get(name, name) for name in names}:
            if (other := trained_by.setdefault(name, field)) != field:
                raise AlignError(
                    f"{other} and {field} both train {name}", "name it in one of the two", where="model.adapter"
                )


def _shared(network: nn.Module) -> list[list[str]]:
    """Return, for each parameter that several modules share, the names of these modules."""
    holders = dict[int, list[str]]()
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    return [names for names in holders.values() if len(names) > 1]


def _refuse_parted(adapted: PeftModel, shared: Iterable[Sequence[str]]) -> None:
    """Raise AlignError if the adapter gives modules that share a weight different weights.

    Merging would change the weight for all of them, and an export can hold it only once.
    """
    base = adapted.get_base_model()
    for names in shared:
        trained = {_trained_instead(base.get_submodule(name)) for name in names}
        if len(trained) > 1 or "adapter" in trained:
            parts = [name for name in names if _trained_instead(base.get_submodule(name)) is not None]
            raise AlignError(
                f"{parts[0]} is adapted, but shares its weight with "
                f"{', '.join(name for name in names if name != parts[0])} (tie_word_embeddings): the two would part, "
                "and no export could hold both",
                "leave it out of model.adapter.target_modules. To train the embeddings whole: "
                f"model.adapter.modules_to_save: [{names[0].rsplit('.', 1)[-1]}]; to train the rows of single tokens: "
                "model.adapter.trainable_token_indices",
                where="model.adapter",
            )


def _trained_instead(module: nn.Module) -> int | str | None:
    """Return what is trained in place of a module's weight: a parameter's id (tied ones share it) or ``"adapter"``."""
    if isinstance(module, ModulesToSaveWrapper):
        return id(module.modules_to_save[module.active_adapters[0]].weight)
    if isinstance(module, TrainableTokensWrapper):
        return id(module.token_adapter.trainable_tokens_delta[module.active_adapters[0]])
    return "adapter" if isinstance(module, BaseTunerLayer) else None


def _not_adapted(network: PreTrainedModel) -> str | None:
    """Return a pattern of modules to leave without an adapter: unread parts, and layers that only look linear.

    A router may be a subclass of nn.Linear whose forward returns more than the product, which LoRA would drop.
    """
    loaded = recall(network)
    names = [*(loaded.left_out if loaded else ())]
    names += [name for name, m in network.named_modules() if isinstance(m, nn.Linear) and not _is_plain(m)]
    return "|".join(rf"{re.escape(name)}(\..*)?" for name in names) or None


def _is_plain(layer: nn.Linear) -> bool:
    return type(layer).forward is nn.Linear.forward or type(layer).__module__.startswith("bitsandbytes")


def read_adapter(network: PreTrainedModel, directory: Path, head: Head) -> PeftModel:
    """Put the adapter of a directory on its base network, so that its training can go on.

    Raises AlignError unless the directory holds a LoRA adapter for this head as safetensors, and each of its tensors
    fits the network.
    """
    weights = directory / "adapter_model.safetensors"
    if not weights.is_file():
        raise AlignError(
            "holds no adapter_model.safetensors (pickled weights such as adapter_model.bin are never loaded)",
            "convert it where you trust it: load it with peft and call save_pretrained",
            where=str(directory),
        )
    base, tied = base_of(directory), _shared(network)
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (*LOADING_FAULTS, TypeError) as error:
        raise not_loadable(error, directory, "adapter's config") from error
    if not isinstance(config, LoraConfig) or config.task_type not in (TASKS[head], None):
        raise AlignError(
            f"holds an adapter of type {config.peft_type} for {config.task_type}; needed: LORA for {TASKS[head].value}",
            "merge it into its model first and give the merged directory as model.path",
            where=str(directory),
        )
    config.inference_mode, config.task_type, config.base_model_name_or_path = False, TASKS[head], None
    config.megatron_config = None  # peft would import whatever module a downloaded config names here
    try:
        adapted = get_peft_model(network, config)
        result: Any = set_peft_model_state_dict(adapted, load_file(weights))
    except LOADING_FAULTS as error:
        raise AlignError(f"does not fit its base model {base.path}: {error}", where=str(directory)) from error
    _refuse_parted(adapted, tied)
    _record(config, base)
    own = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    wrong = sorted(own & set(result.missing_keys)) + sorted(result.unexpected_keys)
    if wrong:
        raise AlignError(
            f"does not fit its base model {base.path}: {len(wrong)} tensors missing or left over, such as {wrong[0]}",
            "the adapter belongs to another model",
            where=str(directory),
        )
    return adapted


def merged_into(adapted: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that a merge changes: those of the layers that the adapter is on."""
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            yield from layer.get_base_layer().parameters()


def merge(adapted: PeftModel) -> PreTrainedModel:
    """Add the adapter to the base's weights and return the base; ``adapted`` cannot be used afterwards.

    Raises AlignError if a merged weight is not finite.
    """
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # safe_merge: peft checks the sums before it keeps them
        raise AlignError(
            f"merging the adapter gives weights that are not finite: {error}",
            "hold the weights in float32 or bfloat16 (model.dtype)",
        ) from error
    return merged


def _record(config: LoraConfig, base: ModelLocation | None) -> None:
    """Write the base's location into the adapter's config, and sort its targets."""
    config.base_model_name_or_path, config.revision = base or (None, None)
    if not isinstance(config.target_modules, str | None):
        config.target_modules = sorted(config.target_modules)  # a set's order would differ between two exports


def quantisation(kind: Literal["nf4", "int8"], dtype: torch.dtype) -> dict[str, Any]:
    """Return arguments of ``from_pretrained`` for a frozen base in 4 bits (QLoRA, 2305.14314 section 3) or 8 bits.

    dtype: of the computations. Raises AlignError without bitsandbytes or a CUDA GPU.
    """
    what = f"model.adapter.quantize: {kind}"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise AlignError(f"{what} needs bitsandbytes", "pip install 'align-llm[quant]', or leave quantize out")
    if not torch.cuda.is_available():
        raise AlignError(f"{what} needs a CUDA GPU; none is visible", "leave quantize out to train on this machine")
    return {
        "quantization_config": BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=kind == "nf4",
            load_in_8bit=kind == "int8",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        "device_map": {"": torch.cuda.current_device()},
    }
