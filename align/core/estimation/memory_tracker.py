"""Count of the live bytes of tensors, in a real run or in one with fake tensors that computes nothing.

Each storage is counted when an operation first returns a tensor of it, until it is freed. So views count once, and
tensors that autograd saves count as long as it holds them. Memory that a kernel allocates and frees within itself is
not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that counts bytes while it is entered.

    live, peak: bytes. gradients: bytes of gradients now; at_peak: when the peak was reached.
    dry: a mode under which operations on fake tensors (and new floating tensors) compute nothing; if the program asks a
    fake tensor for its value, it gets 1. Integers stay real, so that a batch has its real layout.
    """

    def __init__(self, dry: FakeTensorMode | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dry = dry
        self.live = self.peak = self.gradients = self.at_peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def enter(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that were made before the mode was entered. Return the bytes that this adds."""
        before = self.live
        for tensor in tensors:
            self._enter(tensor)
        return self.live - before

    def watch_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count the gradients of these parameters separately, from when they are accumulated."""
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self.live, self.gradients

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            storage = parameter.grad.untyped_storage()
            if not getattr(storage, "_is_gradient", False):  # accumulation in place keeps the storage: count it once
                storage._is_gradient = True  # type: ignore[attr-defined]
                size = storage.nbytes()
                self.gradients += size
                weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.gradients -= size

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # the address of the C++ storage, the same for all its views
        if key in self._seen:
            return

        def gone(_: Any) -> None:
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, self.gradients

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs) if self.dry is None else self._dry(self.dry, func, args, kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._enter(leaf)
        return result

    def _dry(self, dry: FakeTensorMode, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if func is aten._local_scalar_dense.default and fake:  # tensor.item(), bool(tensor)
            dtype = args[0].dtype
            if dtype is torch.bool:
                return True
            return 1.0 if dtype.is_floating_point else 1
        if func is aten.index.Tensor and fake:
            args = (args[0], _places(args[1]))
        if not fake and (tensors or not _floats(kwargs)):
            return func(*args, **kwargs)
        with dry:
            return func(*args, **kwargs)


def _floats(kwargs: Any) -> bool:
    """Return True if a factory makes floating numbers other than float64: those tensors need not exist."""
    kind = kwargs.get("dtype") or torch.get_default_dtype()
    return bool(kind.is_floating_point and kind is not torch.float64)


def _places(indices: Any) -> list[Any]:
    """Replace real boolean masks by the indices of their True values, so that the size of the result is known."""
    found: list[Any] = []
    for index in indices:
        known = isinstance(index, Tensor) and not isinstance(index, FakeTensor) and index.dtype is torch.bool
        found += index.nonzero().unbind(1) if known else [index]
    return found
