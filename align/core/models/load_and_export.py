"""Loading of the model that a run file names: tokenizer, network, adapter, policy; and export of what was trained.

A model is loaded completely and as its settings say, or an AlignError gives the reason. ``notes`` warns before the
first step about tensors that will not be trained.
"""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from align.core.data.examples import Example, Examples
from align.core.models.architecture import (
    LOADING_FAULTS,
    REWARD_HEAD,
    Head,
    Inventory,
    Loaded,
    ModelLocation,
    add_tensors,
    base_of,
    choose_family,
    copy_processors,
    freeze_unread,
    is_adapted,
    is_adapter,
    names_to_export,
    not_loadable,
    parameters_of,
    quiet,
    read_config,
    read_tensors,
    recall,
    refuse_pickles,
    remember,
    resolve_model_path,
    tensors_of,
    trust,
)
from align.core.models.policy import Policy, nonfinite, set_dropout, without_gradient_or_dropout
from align.core.util.atomic_files import fsync_directory, fsync_tree
from align.schemas.errors import AlignError, Problem
from align.schemas.run import Model

if TYPE_CHECKING:
    from peft import PeftModel

# --- tokenizer -------------------------------------------------------------------------------------------------------


def load_tokenizer(model: Model, head: Head = "language") -> PreTrainedTokenizerBase:
    """Return a model's tokenizer with a padding token and the run file's chat template, if it has one.

    An adapter's own tokenizer is preferred to that of its base. ``choose_pad`` chooses the padding token. Raises
    AlignError for a tokenizer or a template that cannot be read.
    """
    directory = resolve_model_path(model.path, model.revision, model.trust_remote_code)
    if is_adapter(directory) and not any(directory.glob("tokenizer*")):
        directory = resolve_model_path(*base_of(directory), model.trust_remote_code)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=model.trust_remote_code
        )
    except LOADING_FAULTS as error:
        raise not_loadable(error, directory, "tokenizer") from error
    if model.chat_template is not None:
        try:
            tokenizer.chat_template = Path(model.chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AlignError(f"cannot be read: {error}", where=f"model.chat_template: {model.chat_template}") from error
    choose_pad(tokenizer, head)
    return tokenizer


def choose_pad(tokenizer: PreTrainedTokenizerBase, head: Head) -> None:
    """Give a tokenizer a padding token without adding one to the vocabulary.

    Its own is kept, if it has one. Otherwise it gets the first special token whose name has "pad", "reserved" or
    "unused" in it; else the unknown token; else, for a language head, the end-of-sequence token. That is safe there,
    because align masks padding by length and never by id, so end tokens keep their loss.

    transformers reads a reward at the last token that is *not* padding, so for a reward head padding may not be the
    end token: the beginning-of-sequence token is the last choice instead. Raises AlignError if that is the end token
    too.
    """
    end = tokenizer.eos_token
    if tokenizer.pad_token is not None and (head == "language" or tokenizer.pad_token != end):
        return
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    choices = [token for word in ("pad", "reserved", "unused") for token in special if word in token.lower()]
    choices += [token for token in (tokenizer.unk_token, tokenizer.bos_token) if token is not None]
    choices = [token for token in choices if token != end]
    if head == "language":
        choices = [token for token in choices if token != tokenizer.bos_token] + ([end] if end is not None else [])
    if not choices:
        raise AlignError(
            "the tokenizer has no token to pad with but the one that ends sequences, where a reward is read",
            "set pad_token in tokenizer_config.json to a token of the vocabulary that no sequence ends with",
        )
    tokenizer.pad_token = choices[0]


def set_padding(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the padding token into the model's config. Raises AlignError if the tokenizer has ids without embedding."""
    embedding: Any = network.get_input_embeddings()
    rows = embedding.weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise AlignError(
            f"the tokenizer has ids up to {largest}, the model has embeddings for {rows} tokens",
            "use the tokenizer that belongs to the model, or resize the model's embeddings and save it",
            where=str(directory),
        )
    network.config.pad_token_id = network.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if network.can_generate():
        network.generation_config.pad_token_id = tokenizer.pad_token_id


def end_tokens(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the token ids that end a completion: the tokenizer's, and those of the model's generation config."""
    return ends_of(getattr(network.generation_config, "eos_token_id", None), tokenizer.eos_token_id)


def ends_of(*end_ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """Merge end tokens from tokenizer and configs, each an id, several or None, into a sorted tuple."""
    found = set[int]()
    for ids in end_ids:
        if isinstance(ids, Sequence):
            found.update(map(int, ids))
        elif ids is not None:
            found.add(int(ids))
    return tuple(sorted(found))


# --- network and policy ----------------------------------------------------------------------------------------------

__all__ = ["build_policy", "load_network", "load_tokenizer", "resolve_model_path"]


def build_policy(model: Model, head: Head, *, seed: int, dropout: bool) -> tuple[Policy, PreTrainedTokenizerBase]:
    """Return the policy to train, in training mode on the CPU (quantised: on the current GPU), and its tokenizer.

    seed: decides a new reward head's and a new adapter's weights; torch's global generator is left as it was.
    dropout: False switches the model's own dropout off; that of an adapter is always as its settings say.
    Raises AlignError for weights that do not fit, and so would silently train another model.
    """
    directory = resolve_model_path(model.path, model.revision, model.trust_remote_code)
    tokenizer = load_tokenizer(model, head)
    tokens = []
    if model.adapter is not None:
        from align.core.models.adapter import token_ids

        tokens = token_ids(model.adapter, tokenizer)
    network = _load_adapted(directory, model, head, seed, tokens)
    whole: Any = network.get_base_model() if is_adapted(network) else network
    set_padding(whole, tokenizer, directory)
    set_dropout(network, dropout)
    if model.gradient_checkpointing:
        # Non-reentrant checkpoints work with inputs that need no gradient, hence with frozen embeddings.
        try:
            whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise AlignError(f"{type(whole).__name__} cannot", where="model.gradient_checkpointing") from error
    return Policy(network, head).train(), tokenizer


def load_network(directory: Path, model: Model, head: Head, seed: int, *, empty: bool = False) -> PreTrainedModel:
    """Return the whole model that a directory holds. empty: without its numbers, on the device ``meta``.

    Only a reward head may be missing, if the directory holds a language model: it is then drawn from
    N(0, initializer_range) with ``seed``. Parts that rows of text do not reach are frozen. Raises AlignError for
    weights that are missing, left over, of another shape, pickled, or in need of code that the run file does not
    trust, and for weights that an export could not hold.
    """
    refuse_pickles(directory)
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype), "use_safetensors": True, **trust(model)}
    if empty:
        options["device_map"] = {"": "meta"}
    if model.attn_implementation != "auto":
        options["attn_implementation"] = model.attn_implementation
    if model.adapter is not None and model.adapter.quantize is not None:
        from align.core.models.adapter import quantisation

        options |= quantisation(model.adapter.quantize, options["dtype"])
    if head == "reward":
        options["num_labels"] = 1
    family = choose_family(read_config(directory, model), head, directory)
    try:
        with quiet():
            network, info = family.from_pretrained(str(directory), output_loading_info=True, **options)
    except LOADING_FAULTS as error:
        raise not_loadable(error, directory, "model") from error
    # torch gives the row of padding_idx no gradient: if padding is the end token, its embedding would never be trained.
    network.get_input_embeddings().padding_idx = None
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if head == "reward" and f"{REWARD_HEAD}.weight" in missing:
        _draw_head(getattr(network, REWARD_HEAD), network.config, seed)
        missing = {name for name in missing if not name.startswith(f"{REWARD_HEAD}.")}
        unexpected = {name for name in unexpected if name.startswith(f"{network.base_model_prefix}.")}
    wrong = [f"it lacks {_some(missing)}"] if missing else []
    wrong += [f"it also holds {_some(unexpected)}"] if unexpected else []
    if wrong:
        needed = "a causal language model" if head == "language" else "a language model or a one-label classifier"
        raise AlignError(
            f"does not hold the weights of {type(network).__name__}: {'; '.join(wrong)}",
            f"give the directory of {needed}, as save_pretrained writes it",
            where=str(directory),
        )
    inventory = Inventory.of(network, tensors_of(directory))
    remember(network, Loaded(directory, freeze_unread(network, head, directory), inventory))
    # The names of quantised tensors differ from the checkpoint's; the export compares them after dequantising.
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
    """Return the network with the adapter that the run file asks for or the directory holds, if any.

    An adapter in the directory is merged into its base first if the run file asks for a new one.
    """
    local = Path(model.path).expanduser().is_dir()
    origin: ModelLocation | None = ModelLocation(str(directory)) if local else ModelLocation(model.path, model.revision)
    holds_adapter = is_adapter(directory)
    if not holds_adapter and model.adapter is None:
        return load_network(directory, model, head, seed)
    from align.core.models.adapter import add_adapter, merge, read_adapter

    if holds_adapter:
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
    else:
        network = load_network(directory, model, head, seed)
    assert model.adapter is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return add_adapter(network, model.adapter, head, origin, tokens)


def _draw_head(score: nn.Linear, config: Any, seed: int) -> None:
    # Drawn in float32 on the CPU by a generator of its own: one seed gives one head, whatever the dtype and device.
    drawn = torch.randn(score.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        score.weight.copy_(drawn * getattr(config.get_text_config(), "initializer_range", 0.02))
        if score.bias is not None:
            score.bias.zero_()


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- warnings before the first step ----------------------------------------------------------------------------------

MAX_NAMED = 4
"""Largest number of names in one sentence."""

SCANNED = 4096
"""Largest number of examples that are searched for added tokens."""

SAMPLE = 4096
"""Approximate number of embeddings that the mean is taken over: float32 copies of all of them may need gigabytes."""

NEAR = 0.1
"""Distance from the mean embedding, relative to the median distance, below which an embedding counts as never trained:
transformers initialises new tokens to the mean, other tools to zeros."""


def notes(policy: Policy, tokenizer: PreTrainedTokenizerBase, examples: Examples | Sequence[Example]) -> list[Problem]:
    """Return warnings about a policy and the examples that it will be trained on."""
    found = [*_left_out(policy), *_not_loaded(policy), *_experts(policy), *_added_tokens(policy, tokenizer, examples)]
    return [Problem("model", what, fix, "warning") for what, fix in found]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


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
    if not is_adapted(policy.model):
        return
    from peft.tuners.lora.layer import ParamWrapper

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
    if not is_adapted(policy.model):
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
        trained, plain_layer = set[int](), layer
        if hasattr(layer, "token_adapter"):
            trained = {token for ids in layer.token_adapter.token_indices.values() for token in ids}
            plain_layer = layer.token_adapter.get_base_layer()
        weight_VD = plain_layer.weight
        for token in _untouched(weight_VD, sorted(used - trained), sorted(added), tokenizer):
            frozen.setdefault(token, []).append(what)
    if frozen:
        names = [str(added[token]) for token in sorted(frozen)]
        parts = {what for each in frozen.values() for what in each}
        untrained = [what for what in layers if what in parts]
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
    """Return the tokens whose rows look as they did when the tokens were added: near the mean of all, or near zero.

    A token past the tokenizer's own vocabulary counts as untouched however its row looks, unless the chat template or
    a special role uses it.
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
    found = list[int]()
    for token, looks_new in zip(tokens, near.tolist(), strict=True):
        unused = token >= tokenizer.vocab_size and str(tokenizer.added_tokens_decoder[token]) not in known
        if looks_new or unused:
            found.append(token)
    return found


# --- export ----------------------------------------------------------------------------------------------------------

# Export of a policy to an ordinary Hugging Face directory that transformers and vLLM load.
#
# Adapters are merged and the result is checked. The directory appears as a whole or not at all.

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference between outputs of the merged and the adapted model, relative to the largest output."""


SHARD = "5GB"
"""Largest size of a file of weights, in 10^9 bytes."""


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
    if is_adapted(policy.model):
        _check_merge(policy.model, plain)
    _export_to(plain, recall(policy.unwrapped), tokenizer, policy.head, directory, adapted=policy.model)


def _export_to(
    plain: PreTrainedModel,
    loaded: Loaded | None,
    tokenizer: PreTrainedTokenizerBase,
    head: str,
    directory: Path,
    *,
    adapted: nn.Module | None = None,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write all files to a sibling directory, then rename it. adapted: the model with its adapter, if it has one.

    state: the tensors to write in place of the model's own.
    """
    unfinished, older = (directory.with_name(f".{directory.name}.{word}") for word in ("partial", "older"))
    for stale in (unfinished, older):
        shutil.rmtree(stale, ignore_errors=True)
    _write(plain, unfinished, state)
    if loaded is not None:
        _complete(plain, loaded, head, unfinished)
    tokenizer.save_pretrained(unfinished)
    if adapted is not None and is_adapted(adapted) and adapted.active_peft_config.base_model_name_or_path:
        adapted.save_pretrained(str(unfinished / "adapter"), save_embedding_layers=False)
        (unfinished / "adapter" / "README.md").unlink(missing_ok=True)  # peft's form for a model card, not filled in
    fsync_tree(unfinished)
    if directory.exists():
        directory.rename(older)
    unfinished.rename(directory)
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


class SavedTensor(Tensor):
    """A tensor on the device ``meta`` that is read when ``save_pretrained`` comes to write it."""

    read: Callable[[], Tensor]

    @staticmethod
    def of(like: Tensor, read: Callable[[], Tensor]) -> SavedTensor:
        """Return a stand-in for a tensor of the type and shape of ``like``, which ``read`` returns."""
        made: SavedTensor = Tensor._make_subclass(SavedTensor, torch.empty_like(like, device="meta"))
        made.read = read
        return made

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Read the tensor. Raises AlignError for NaN or infinity."""
        found = self.read().to(self.dtype)
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise AlignError("a tensor holds NaN or infinity; nothing was exported")
        return found.contiguous(memory_format=memory_format)


def export_by_tensor(trained: Mapping[str, Callable[[], Tensor]], model: Model, head: Head, directory: Path) -> bool:
    """Export a model trained in full, reading each tensor when it is written; return False if it cannot be done so.

    trained: reads a tensor of the network by its name; all others are those of the model that training started from.
    No more than one file's tensors (``SHARD``) are in memory at a time. The files are those of ``export``, to the byte.
    It cannot be done where an adapter is merged, or where one tensor of a file is made of several of the network's
    (experts, which transformers fuses when it loads them). Raises AlignError as ``export`` does.
    """
    source = resolve_model_path(model.path, model.revision, model.trust_remote_code)
    if model.adapter is not None or is_adapter(source):
        return False
    network = load_network(source, model, head, seed=0, empty=True)
    tokenizer = load_tokenizer(model, head)
    set_padding(network, tokenizer, source)
    loaded = recall(network)
    assert loaded is not None
    state, files = network.state_dict(), {ours: name for name, ours in loaded.inventory.becomes.items()}
    wanted = names_to_export(network)
    if not set(wanted) <= set(state) or not set(wanted) <= trained.keys() | files.keys():
        return False

    def original(name: str) -> Tensor:
        return read_tensors(source, [files[name]])[files[name]]

    tied = set(state) - set(wanted)
    lazy = {
        name: value if name in tied else SavedTensor.of(value, trained.get(name) or partial(original, name))
        for name, value in state.items()
    }
    _export_to(network, loaded, tokenizer, head, directory, state=lazy)
    return True


def plain_model(model: nn.Module) -> PreTrainedModel:
    """Return a copy of the model with its adapter merged and its dropout on; unchanged tensors are shared, not copied.

    A quantised base is dequantised before the merge: the adapter was trained on those values, not on the originals.
    """
    changed, quantised = set[int](), False
    if is_adapted(model):
        from align.core.models.adapter import merged_into

        quantised = getattr(model.get_base_model(), "is_quantized", False)
        changed = {id(t) for t in merged_into(model) if not quantised}
    tensors = itertools.chain(model.parameters(), model.buffers())
    # deepcopy takes what its memo holds as already copied, so the tensors listed there are shared.
    twin = copy.deepcopy(model, {id(t): t for t in tensors if id(t) not in changed})
    set_dropout(twin, True)
    if not is_adapted(twin):
        assert isinstance(twin, PreTrainedModel)
        return twin
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    from align.core.models.adapter import merge

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


def _write(plain: PreTrainedModel, directory: Path, state: dict[str, Tensor] | None = None) -> None:
    generation_config = plain.generation_config if plain.can_generate() else None
    if generation_config is not None:
        # Many models ship one that save_pretrained refuses (sampling settings without do_sample); it is written below.
        plain.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    with quiet():
        plain.save_pretrained(directory, state_dict=state, max_shard_size=SHARD)
    if generation_config is not None:
        generation_config.to_json_file(directory / "generation_config.json")
