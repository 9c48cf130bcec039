"""A checkpoint's files, where they come from, and the transformers class that they are loaded into.

Local directories and hub ids are resolved here; only safetensors are read. A checkpoint is loaded into the class that
wrote it wherever that class can be trained on text, so that an export holds every tensor and the same class loads it
again. Parts that no token passes through (the vision tower of a model that also reads images) are frozen.
"""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key, revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING
from transformers.utils import logging

from align.core.util.error_line import first_line
from align.schemas.errors import AlignError
from align.schemas.run import Model

if TYPE_CHECKING:
    from peft import PeftModel
    from typing_extensions import TypeIs

# --- tensors of a checkpoint -----------------------------------------------------------------------------------------
#
# Some tensors of a checkpoint are not loaded by its class; an export must not lose them.

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
"""Config files of image and sound processors; ``tokenizer.save_pretrained`` does not write them."""


class TensorEntry(NamedTuple):
    """Metadata of a tensor in a file."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def tensors_of(directory: Path) -> dict[str, TensorEntry]:
    """Return the metadata of every tensor in the files that ``from_pretrained`` reads, by name.

    Only the headers of the files are read.
    """
    files = [SINGLE]
    if not (directory / SINGLE).is_file() and (directory / INDEX).is_file():
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    found = dict[str, TensorEntry]()
    for file in files:
        if not (directory / file).is_file():
            continue
        with safe_open(directory / file, "pt") as held:
            for name in held.keys():  # noqa: SIM118  # no mapping
                part = held.get_slice(name)
                found[name] = TensorEntry(file, part.get_dtype(), tuple(part.get_shape()))
    return found


def read_tensors(directory: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, on the CPU."""
    entries, read = tensors_of(directory), dict[str, Tensor]()
    for name in names:
        with safe_open(directory / entries[name].file, "pt") as held:
            read[name] = held.get_tensor(name)
    return read


@dataclass(frozen=True, slots=True)
class Inventory:
    """The tensors of a checkpoint, and the tensor of a network that each becomes.

    not_loaded: names for which the network has no place. transformers ignores some without a warning
    (``_keys_to_ignore_on_load_unexpected``): layers that predict several tokens ahead, buffers of older versions.
    becomes: for all others the name in the network, except copies of a tied tensor. Many tensors may become one (the
    experts of a mixture, fused).
    """

    not_loaded: tuple[str, ...]
    becomes: Mapping[str, str]

    @classmethod
    def of(cls, network: PreTrainedModel, names: Iterable[str]) -> Inventory:
        """Follow each name through the conversions that the network was loaded with."""
        state, tied = network.state_dict(), network.all_tied_weights_keys
        # rename_source_key marks the conversions it has used, and the network needs its own for saving.
        conversions = copy.deepcopy(getattr(network, "_weight_conversions", None) or [])
        renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        converters = [each for each in conversions if isinstance(each, WeightConverter)]
        prefix, missed, becomes = network.base_model_prefix, list[str](), dict[str, str]()
        for name in sorted(names):
            renamed, _ = rename_source_key(name, renamings, converters, prefix, state)
            if renamed not in state:  # a name that the conversions would spoil may be right as it is
                renamed, _ = rename_source_key(name, [], [], prefix, state)
            if renamed not in state:
                missed.append(name)
            elif renamed not in tied:
                becomes[name] = renamed
        return cls(tuple(missed), becomes)

    def lost(self, exported: Inventory) -> list[str]:
        """Return the network's tensors that have fewer source tensors in an export than in the checkpoint."""
        before, after = Counter(self.becomes.values()), Counter(exported.becomes.values())
        return sorted(name for name, count in before.items() if after[name] < count)


def names_to_export(network: PreTrainedModel) -> list[str]:
    """Return the name of each tensor that ``save_pretrained`` would write, without copying any values."""
    state = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    for name in network._keys_to_ignore_on_save or ():
        state.pop(name, None)
    return list(revert_weight_conversion(network, remove_tied_weights_from_state_dict(state, network)))


def add_tensors(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Add a shard with more tensors to a checkpoint that ``save_pretrained`` wrote, and rewrite its index."""
    files = sorted({entry.file for entry in tensors_of(directory).values()})
    total, where, size = len(files) + 1, dict[str, str](), 0
    named = [f"model-{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)]
    # Shards say how many there are in their names, so all are renamed; a single file has no index yet.
    for old, new in zip(files, named, strict=False):
        (directory / old).rename(directory / new)
        size += (directory / new).stat().st_size
        with safe_open(directory / new, "pt") as held:
            where |= dict.fromkeys(held.keys(), new)
    save_file(dict(tensors), directory / named[-1], metadata={"format": "pt"})
    where |= dict.fromkeys(tensors, named[-1])
    index = {"metadata": {"total_size": size + sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


def copy_processors(source: Path, directory: Path) -> None:
    """Copy the config files of a model's image and sound processors into ``directory``."""
    for name in PROCESSORS:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


# --- location of a model's files -------------------------------------------------------------------------------------
#
# A local directory, or a hub id that is fetched into the hub's cache. Pickles are refused, since loading one can run
# code; code that came with the weights runs only if the run file trusts it.

FETCHED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
"""Files of a hub repository that are fetched: no pickles, and no code unless it is trusted."""

LOADING_FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""Exceptions that transformers and peft raise for files that they cannot load."""


def resolve_model_path(path: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Return the local directory of a model: the path itself, or the snapshot of a hub id, fetched if needed.

    Raises AlignError when there is no such directory, the id is unknown or closed, or the network cannot be reached.
    """
    where, local = f"model.path: {path}", Path(path).expanduser()
    if local.is_dir():
        if revision is not None:
            raise AlignError("is a local directory, which has no revisions", "leave model.revision out", where=where)
        return local.absolute()
    if local.exists():
        raise AlignError("is a file", "give the directory with config.json and *.safetensors", where=where)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise AlignError("does not exist", "give a directory, or a hub id such as owner/name", where=where)
    wanted = [*FETCHED, "*.py"] if trust_remote_code else FETCHED
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise AlignError(*_hub_problem(error, revision), where=where) from error


def _hub_problem(error: Exception, revision: str | None) -> tuple[str, str]:
    """Return the message and the fix for an error of the hub's client."""
    match error:
        case GatedRepoError():
            return "is gated on the hub", "ask for access on its page, then `hf auth login`"
        case RepositoryNotFoundError():
            return "is neither a local directory nor a model on the hub", "check the spelling; private: `hf auth login`"
        case RevisionNotFoundError():
            return f"has no revision {revision!r} on the hub", "give a branch, tag or commit that exists"
        case HFValidationError():
            return "is neither a local directory nor a possible hub id", "a hub id looks like owner/name"
        case LocalEntryNotFoundError():
            return (
                "is not a local directory, and the hub cannot be reached (offline, or HF_HUB_OFFLINE is set)",
                "give a local directory, or fetch it while online: `hf download ID`",
            )
        case _:
            return f"cannot be fetched: {first_line(error)}", "try again, or give a local directory"


def refuse_pickles(directory: Path) -> None:
    """Raise AlignError unless a directory holds a config and safetensors."""
    where = str(directory)
    if not (directory / "config.json").is_file():
        raise AlignError("holds no config.json", "give the directory that save_pretrained wrote", where=where)
    if any(directory.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in directory.glob(pattern))
    if not pickled:
        raise AlignError("holds no *.safetensors", "give a directory with weights", where=where)
    raise AlignError(
        f"holds its weights only as {pickled[0]}, a pickle: loading one can run code, so align never does",
        "convert it where you trust it: load it with transformers and call save_pretrained",
        where=where,
    )


def trust(model: Model) -> dict[str, bool]:
    """Return the arguments of ``from_pretrained`` about code that comes with the weights.

    ``trust_remote_code`` is always given: if it is unset, transformers asks on the terminal. Trusted code may import
    from another repository, so ``local_files_only`` is off for it.
    """
    return {"trust_remote_code": model.trust_remote_code, "local_files_only": not model.trust_remote_code}


def not_loadable(error: Exception, directory: Path, what: str) -> AlignError:
    """Return a loading error in the user's terms. what: the part that failed, such as ``"tokenizer"``."""
    where = str(directory)
    if "trust_remote_code" in str(error):
        return AlignError(
            f"the {what} needs code that came with it",
            "read that code; if you trust it, set model.trust_remote_code: true",
            where=where,
        )
    return AlignError(f"the {what} cannot be loaded: {first_line(error)}", where=where)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and its report of missing weights, which ``load_network`` checks itself."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class ModelLocation(NamedTuple):
    """Location of a model: a path, or a hub id and its revision."""

    path: str
    revision: str | None = None


def is_adapter(directory: Path) -> bool:
    """Return True if a directory holds an adapter instead of a whole model."""
    return (directory / "adapter_config.json").is_file()


def from_peft(module: nn.Module) -> bool:
    """Return True if a module's class, or one that it derives from, is peft's."""
    # Asked by name: without an adapter peft is never imported, and an isinstance would import it.
    return any(base.__module__.partition(".")[0] == "peft" for base in type(module).__mro__)


def is_adapted(network: nn.Module) -> TypeIs[PeftModel]:
    """Return True if a network is wrapped by peft, and so has an adapter."""
    if not from_peft(network):
        return False
    from peft import PeftModel

    return isinstance(network, PeftModel)


def base_of(directory: Path) -> ModelLocation:
    """Return the base model that an adapter's directory names. Raises AlignError if it names none."""
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, AttributeError) as error:
        raise AlignError(f"adapter_config.json cannot be read: {error}", where=str(directory)) from error
    if not base:
        raise AlignError(
            "the adapter does not say which model it belongs to",
            "set base_model_name_or_path in its adapter_config.json",
            where=str(directory),
        )
    near = directory / base  # a relative path is relative to the adapter; an absolute one is itself
    return ModelLocation(str(near)) if near.is_dir() else ModelLocation(base, revision)


# --- class of a checkpoint -------------------------------------------------------------------------------------------

Head = Literal["language", "reward"]
REWARD_HEAD = "score"
"""The name of the head in every decoder for sequence classification in transformers."""

FAMILIES: dict[Head, tuple[Any, ...]] = {
    "language": (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM),
    "reward": (AutoModelForSequenceClassification,),
}
"""The ``AutoModelFor...`` classes of transformers that have such a head, the plainest first."""

LENGTH = 4
"""Number of tokens in each row that ``freeze_unread`` runs."""

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
    """The files that a network was loaded from.

    directory: of the checkpoint. left_out: names of the network's modules and parameters that text does not reach.
    inventory: the checkpoint's tensors.
    """

    directory: Path
    left_out: tuple[str, ...]
    inventory: Inventory


def remember(network: PreTrainedModel, loaded: Loaded) -> None:
    """Attach ``loaded`` to the network, so that copies of the network carry it too."""
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
    of_multimodal_family = any(type(config) in family._model_mapping for family in FAMILIES["language"][1:])
    multimodal = config.get_text_config() is not config or of_multimodal_family
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
    # The two rows differ in their last token only. Outputs at earlier positions must not depend on it.
    first, second = outputs[:, :-1]
    change, tolerance = (first - second).abs().max(), CAUSALITY[network.dtype] * outputs.abs().max()
    if head == "language" and not change <= tolerance:  # "not <=" also refuses NaN
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
    ran = list[nn.Module]()  # modules whose forward was called
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
            accepted = {name: value for name, value in given.items() if name in takes}
            outputs: Tensor = network(input_ids=ids, **accepted).logits
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    outputs = scores[-1] if scores else outputs
    reached = {id(parameter) for module in ran for parameter in module.parameters(recurse=False)}
    # Hooks miss weights used without calling their module (F.linear); the graph misses frozen ones.
    waiting, seen = [outputs.grad_fn], set[Any]()
    while waiting:  # walk the autograd graph; a leaf's node has the parameter as its ``variable``
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
    alike = set[type]()
    if isinstance(module, nn.ModuleList):
        alike = {type(child) for child in module.children() if reaches(child)}
    for name, child in module.named_children():
        has_parameters = next(child.parameters(), None) is not None
        if reaches(child):
            yield from _unreached(child, f"{prefix}{name}.", reached)
        elif has_parameters and type(child) not in alike:
            yield f"{prefix}{name}"
