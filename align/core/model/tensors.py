"""Tensors in a checkpoint's files, and those of them that its class does not load: an export must not lose any."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import remove_tied_weights_from_state_dict

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
"""Configs of what turns images and sound into a model's inputs: the tokenizer does not save them."""


class Entry(NamedTuple):
    """Metadata of a tensor in a file."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def tensors_of(directory: Path) -> dict[str, Entry]:
    """Return every tensor in the files that ``from_pretrained`` reads, by name; only the headers are read."""
    files = [SINGLE]
    if not (directory / SINGLE).is_file() and (directory / INDEX).is_file():
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    found = dict[str, Entry]()
    for file in files:
        if not (directory / file).is_file():
            continue
        with safe_open(directory / file, "pt") as held:
            for name in held.keys():  # noqa: SIM118  # no mapping
                part = held.get_slice(name)
                found[name] = Entry(file, part.get_dtype(), tuple(part.get_shape()))
    return found


def read_tensors(directory: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint."""
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
            if renamed not in state:
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
