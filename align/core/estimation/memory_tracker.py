"""Live bytes, tensor storage by tensor storage: of a real run, or of one under fake tensors that computes nothing.

Every operation's results are entered when they first appear and leave when their storage dies, so views count once and
what autograd keeps counts as long as it is kept. What a kernel allocates and frees within itself is not seen.
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


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered. live, peak: bytes. at_peak: bytes of gradients when the peak was reached.

    dry: with it, operations on fake tensors (and new floating ones) compute nothing, and what a program then asks for a
    value gets 1. Integers stay real, so that a batch's layout is what it will be.
    """

    def __init__(self, dry: FakeTensorMode | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dry = dry
        self.live = self.peak = self.gradients = self.at_peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def enter(self, tensors: Iterable[Tensor]) -> int:
        """Count what was made before; how many bytes that adds."""
        before = self.live
        for tensor in tensors:
            self._enter(tensor)
        return self.live - before

    def watch_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Know gradients from other tensors as they are accumulated."""
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self.live, self.gradients

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            storage = parameter.grad.untyped_storage()
            if not getattr(storage, "_is_gradient", False):
                storage._is_gradient = True  # type: ignore[attr-defined]
                size = storage.nbytes()
                self.gradients += size
                weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.gradients -= size

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
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
        if func is aten._local_scalar_dense.default and fake:
            kind = args[0].dtype
            return True if kind is torch.bool else 1.0 if kind.is_floating_point else 1
        if func is aten.index.Tensor and fake:
            args = (args[0], _places(args[1]))
        if not fake and (tensors or not _floats(kwargs)):
            return func(*args, **kwargs)
        with dry:
            return func(*args, **kwargs)


def _floats(kwargs: Any) -> bool:
    """Whether a factory makes floating numbers, and more than a few: those need not exist."""
    kind = kwargs.get("dtype") or torch.get_default_dtype()
    return bool(kind.is_floating_point and kind is not torch.float64)


def _places(indices: Any) -> list[Any]:
    """Masks that are known as the places that they name: how many of them there are is then known too."""
    found: list[Any] = []
    for index in indices:
        known = isinstance(index, Tensor) and not isinstance(index, FakeTensor) and index.dtype is torch.bool
        found += index.nonzero().unbind(1) if known else [index]
    return found
