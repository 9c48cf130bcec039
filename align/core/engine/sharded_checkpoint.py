"""Checkpoints whose sharded tensors are written by the ranks that hold them, and read again by any number of ranks.

The directory of ``align.core.engine.checkpoint`` with one more file for each rank, ``rank-00001-of-00008.safetensors``.
``state.pt`` has everything else, and a marker in the place of each sharded tensor. The manifest says which box of which
tensor is in which file, and has every file's sha256. So no process ever holds a whole copy, and a group of another size
reads of each tensor the boxes that overlap its own. Nothing of it is pickled but ``state.pt``, which is read by torch's
``weights_only`` unpickler.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from align.core.util import atomic_files
from align.schemas.errors import AlignError

MARK = "align.sharded"
"""The only key of what stands in ``state.pt`` for a sharded tensor; its value is the tensor's name."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
"""The names of types in the header of a safetensors file."""
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor: where it begins and how far it goes, in each dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: DTensor) -> Box:
        """Return the part that this process holds; an empty one has a 0 in its shape."""
        shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return cls(tuple(offset), tuple(shape))

    @property
    def empty(self) -> bool:
        """True if it holds no number."""
        return 0 in self.shape

    def within(self, other: Box) -> tuple[slice, ...] | None:
        """Return where the part that two boxes share lies in the other, or None if they share nothing."""
        slices = []
        for start, size, begin, length in zip(self.offset, self.shape, other.offset, other.shape, strict=True):
            low, high = max(start, begin), min(start + size, begin + length)
            if low >= high:
                return None
            slices.append(slice(low - begin, high - begin))
        return tuple(slices)


def split(state: Any, path: str = "") -> tuple[Any, dict[str, DTensor]]:
    """Return a state with markers in the place of its sharded tensors, and those by name: their path in the state."""
    if isinstance(state, DTensor):
        return {MARK: path}, {path: state}
    if not isinstance(state, dict | list):
        return state, {}
    sharded: dict[str, DTensor] = {}
    pairs = state.items() if isinstance(state, dict) else enumerate(state)
    plain = {}
    for key, value in pairs:
        plain[key], found = split(value, f"{path}/{key}" if path else str(key))
        sharded |= found
    return (plain if isinstance(state, dict) else list(plain.values())), sharded


def join(state: Any, read: Callable[[str], Tensor]) -> Any:
    """Return a state with what ``read`` gives for a name in the place of each marker."""
    if isinstance(state, dict):
        if (name := ShardReader.name_of(state)) is not None:
            return read(name)
        return {key: join(value, read) for key, value in state.items()}
    return [join(value, read) for value in state] if isinstance(state, list) else state


def write_own(tensors: Mapping[str, DTensor], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write this process's parts of sharded tensors as a safetensors file, flushed to the disk.

    Returns the file's size and sha256, and of each tensor its type, whole shape and the box in this file. Of replicas
    the first writes. Tensors are copied from the device one at a time. Raises AlignError for a type of numbers that is
    not written here, OSError where the disk refuses.
    """
    own, pieces = dict[str, DTensor](), dict[str, Any]()
    for name, tensor in sorted(tensors.items()):
        box = Box.of(tensor)
        coordinates: Sequence[int] = tensor.device_mesh.get_coordinate() or []
        replica = any(isinstance(p, Replicate) and at for p, at in zip(tensor.placements, coordinates, strict=True))
        whole = {"dtype": _dtype_name(name, tensor), "shape": list(tensor.shape)}
        if box.empty or replica:
            pieces[name] = {**whole, "box": None}
        else:
            own[name] = tensor
            pieces[name] = {**whole, "box": [list(box.offset), list(box.shape)]}
    with open(path, "wb") as file:
        hashed = atomic_files.HashingWriter(file)
        _write_safetensors({name: tensor.to_local() for name, tensor in own.items()}, hashed)
        file.flush()
        os.fsync(file.fileno())
    return hashed.sums(), pieces


def _write_safetensors(tensors: Mapping[str, Tensor], file: atomic_files.HashingWriter | IO[bytes]) -> None:
    """Write the format of https://github.com/huggingface/safetensors: the header's length, the header, the numbers."""
    header, position = dict[str, Any](), 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _dtype_name(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)  # the numbers begin at a multiple of eight bytes
    file.write(len(described).to_bytes(8, "little"))
    file.write(described)
    for tensor in tensors.values():
        numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        file.write(numbers.data)


def _dtype_name(name: str, tensor: Tensor) -> str:
    """Return the name of a tensor's type in a safetensors file. Raises AlignError for one that is not written here."""
    if tensor.dtype not in _DTYPES:
        raise AlignError(
            f"the tensor {name} is {tensor.dtype}, which ranks cannot write by themselves",
            "set checkpoints: whole for the strategy (devices.strategy), or hold it in another type",
        )
    return _DTYPES[tensor.dtype]


def merge(own: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return what the manifest says of sharded tensors. own: of each rank its file, and what ``write_own`` returned."""
    tensors: dict[str, Any] = {}
    for file, pieces in own:
        for name, piece in pieces.items():
            tensor = tensors.setdefault(name, {"dtype": piece["dtype"], "shape": piece["shape"], "pieces": []})
            if piece["box"] is not None:
                tensor["pieces"].append([file, *piece["box"]])
    return tensors


class ShardReader:
    """The sharded tensors of a checkpoint, read in part or whole. tensors: as the manifest has them.

    Raises OSError and safetensors' errors for files that are not what the manifest says; verify the checkpoint first.
    """

    def __init__(self, directory: Path, tensors: Mapping[str, Any]) -> None:
        self._directory, self._tensors = directory, tensors

    @staticmethod
    def name_of(value: Any) -> str | None:
        """Return the name of the tensor that a value of the state stands for, None if it is no marker."""
        return str(value[MARK]) if isinstance(value, dict) and set(value) == {MARK} else None

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> Iterator[str]:
        """Yield the names of all sharded tensors."""
        yield from self._tensors

    def empty(self, name: str) -> Tensor:
        """Return a tensor of the type and whole shape, without numbers (on the device ``meta``)."""
        entry = self._tensors[name]
        return torch.empty(entry["shape"], dtype=_BY_NAME[entry["dtype"]], device="meta")

    def whole(self, name: str) -> Tensor:
        """Return a tensor whole, on the CPU."""
        shape = tuple(self._tensors[name]["shape"])
        return self.box(name, Box((0,) * len(shape), shape))

    def box(self, name: str, wanted: Box) -> Tensor:
        """Return a part of a tensor, on the CPU: of each file only what overlaps it is read."""
        entry = self._tensors[name]
        result = torch.empty(wanted.shape, dtype=_BY_NAME[entry["dtype"]])
        for file, offset, shape in entry["pieces"]:
            piece = Box(tuple(offset), tuple(shape))
            there, here = wanted.within(piece), piece.within(wanted)
            if there is None or here is None:
                continue
            with safe_open(self._directory / file, "pt") as opened:
                # A tensor without dimensions has no slice.
                read = opened.get_slice(name)[there] if there else opened.get_tensor(name)
            result[here] = read
        return result

    def like(self, name: str, tensor: DTensor) -> DTensor:
        """Return a tensor split as another one is: this process reads its own part."""
        local = self.box(name, Box.of(tensor)).to(tensor.to_local().device, self.empty(name).dtype)
        mesh, placements = tensor.device_mesh, tensor.placements
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())
