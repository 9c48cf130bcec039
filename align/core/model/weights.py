"""What can be said of any module's weights and noise: their hash, whether they are finite, dropout on or off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def weights_hash(module: nn.Module) -> str:
    """sha256 over every named tensor of a module; see ``tensors_hash``."""
    return tensors_hash({n: v for n, v in module.state_dict().items() if isinstance(v, Tensor)})


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over named tensors: name, type, shape and bytes of each, in the order of the names.

    Sharded tensors are gathered first, so then every rank must call it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        whole = whole.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(whole.dtype), list(whole.shape)]).encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def nonfinite(module: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold a NaN or an infinity."""
    floating = ((n, v) for n, v in module.state_dict().items() if isinstance(v, Tensor) and v.is_floating_point())
    return [name for name, value in floating if not bool(torch.isfinite(value).all())]


@contextmanager
def without_gradient_or_dropout(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no graph; afterwards every module is in the mode that it was in.

    Under autocast the 16-bit copies of weights that it caches go, at both ends: those made here know no gradient.
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    torch.clear_autocast_cache()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()
        for part in training:
            part.training = True


def set_dropout(module: nn.Module, on: bool) -> None:
    """Switch the model's own dropout, wherever transformers keeps its rate, without leaving training mode.

    Rates live in ``nn.Dropout`` modules, in plain numbers of a module (Llama's attention) and in the config
    (Falcon). Off sets them to 0 and remembers them; on puts them back. Evaluation mode would not do: gradient
    checkpointing works only in training mode. An adapter's dropout is the adapter's setting and stays as it is.
    """
    for name, part in module.named_modules():
        if "lora_dropout" in name:
            continue
        if on:
            for holder, rates in part.__dict__.pop("_dropout_rates", ()):
                holder.__dict__.update(rates)
            continue
        holders = (part, getattr(part, "config", None))
        if found := [(holder, rates) for holder in holders if (rates := _rates(holder))]:
            part.__dict__["_dropout_rates"] = found
            for holder, rates in found:
                holder.__dict__.update(dict.fromkeys(rates, 0.0))


def _rates(holder: object) -> dict[str, float]:
    """The positive rates of dropout that an object holds under its attributes' names."""
    plain = isinstance(holder, nn.modules.dropout._DropoutNd)
    attributes = getattr(holder, "__dict__", {}).items()
    return {k: v for k, v in attributes if ((plain and k == "p") or "drop" in k) and isinstance(v, float) and v > 0}
