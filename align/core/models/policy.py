"""The policy: a Hugging Face causal or sequence-classification model that scores ragged tokens.

The head runs inside the model's own forward, at the scored positions only and in chunks (``token_logprobs``). So
every computation of the model before its head takes place, sharded parameters are gathered when the head reads them,
and full logits never exist. The model's operations on logits after the head (a scale, a soft cap) are measured once.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, cast

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from align.core.data.batch import Batch, MicroBatch
from align.core.models.architecture import score_head
from align.core.models.logprobs import TokenScores, token_logprobs
from align.schemas.engine import LOGITS
from align.schemas.errors import AlignError


class Scores(NamedTuple):
    """The output of ``Policy.forward``. Only ``logp_T``, ``score_B``, ``value_T`` and ``anchor`` carry gradient.

    logp_T, entropy_T, correct_T, logit_T: of each scored token, see ``TokenScores``. Under a reward or value head
    ``logp_T`` is NaN, so that a loss which reads it by mistake is not finite. score_B: a reward head's score of each
    sequence. value_T: a value head's estimate for the state before each scored token.
    anchor: 0.0, tied to the graph: added to a loss without tokens, it gives every parameter a zero gradient.
    """

    logp_T: Tensor
    entropy_T: Tensor | None
    correct_T: Tensor | None
    logit_T: Tensor | None
    score_B: Tensor | None
    anchor: Tensor
    value_T: Tensor | None = None


class Tail(NamedTuple):
    """The model's map from head output x to logits: ``softcap * tanh(scale * x / softcap)``, or ``scale * x``."""

    scale: float
    softcap: float | None


class Policy(nn.Module):
    """A model with a head that scores tokens.

    model        a ``*ForCausalLM`` (head ``language``) or ``*ForSequenceClassification`` with one label (``reward``,
                 read at each sequence's last token, or ``value``, read before every scored token), wrapped by peft or
                 not
    metrics      True computes entropy, correctness and mean logit too
    temperature  divides the logits

    Raises AlignError for a model without a linear head of the right width.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Literal["language", "reward", "value"] = "language",
        *,
        metrics: bool = True,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.head, self.metrics, self.temperature = model, head, metrics, temperature
        self._takes = frozenset(inspect.signature(self.unwrapped.forward).parameters)
        self._head_layers()  # a model without a head that can be used is refused here, not at the first step

    @property
    def unwrapped(self) -> PreTrainedModel:
        """The transformers model itself, without peft around it. Its adapters, if any, are inside its layers."""
        model: Any = self.model
        return cast(PreTrainedModel, model.get_base_model() if hasattr(model, "get_base_model") else model)

    @contextmanager
    def at_temperature(self, temperature: float) -> Iterator[None]:
        """Score at another temperature than training does."""
        before, self.temperature = self.temperature, temperature
        try:
            yield
        finally:
            self.temperature = before

    @property
    def takes_positions(self) -> bool:
        """True if the model takes ``position_ids``, which packing needs."""
        return "position_ids" in self._takes

    def forward(self, micro: MicroBatch) -> Scores:
        """Score a micro-batch. The network runs even if no token is scored, so that all ranks join its collectives."""
        if self.head != "language":
            return self._scores(micro)
        tail = self.tail
        found: list[TokenScores] = []

        def head(layer: nn.Linear | TrainableTokensLayer, hidden_RLD: Tensor) -> Tensor:
            weight_VD, bias_V = _weights(layer)
            scores = token_logprobs(
                hidden_RLD.flatten(0, -2)[micro.predict_T],
                weight_VD,
                bias_V,
                micro.target_T,
                LOGITS[hidden_RLD.device.type] // len(weight_VD),
                logit_scale=tail.scale,
                softcap=tail.softcap,
                temperature=self.temperature,
                metrics=self.metrics,
            )
            # The loss must use the layer's own output: FSDP2's hooks on that output start the gather for backward.
            output = scores.logp_T.view(1, -1, 1)
            found.append(scores._replace(logp_T=output.view(-1)))
            return output

        with self._head_as(head):
            self._run(micro.input_ids_RL, micro.position_ids_RL, micro.attention_mask_RL)
        (scores,) = found
        return Scores(*scores, score_B=None, anchor=scores.logp_T[:0].sum())

    def _scores(self, micro: MicroBatch) -> Scores:
        found: list[Tensor] = []
        hook = self._head_module().register_forward_hook(lambda _module, _inputs, output: found.append(output))
        try:
            self._run(micro.input_ids_RL, micro.position_ids_RL, micro.attention_mask_RL)
        finally:
            hook.remove()
        (score_RL1,) = found
        score = score_RL1.flatten()
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        nothing_T, anchor = score.new_full(micro.target_T.shape, math.nan), score[:0].sum()
        if self.head == "value":
            return Scores(nothing_T, None, None, None, None, anchor, value_T=score[micro.predict_T])
        return Scores(nothing_T, None, None, None, score[micro.last_B], anchor)

    def batch(
        self,
        micro: MicroBatch,
        scores: Scores,
        step: Mapping[str, Tensor] | None = None,
        ref_logp_T: Tensor | None = None,
        value_T: Tensor | None = None,
    ) -> Batch:
        """Return the batch that an algorithm's loss gets.

        step: scalars of the optimizer step. ref_logp_T [T]: replaces that of the micro-batch. value_T [T]: a critic's.
        """
        return Batch(
            logp_T=scores.logp_T,
            sequence_T=micro.sequence_T,
            position_T=micro.position_T,
            example_B=micro.example_B,
            role_B=micro.role_B,
            roles=micro.roles,
            examples=micro.examples,
            columns=micro.columns,
            ref_logp_T=micro.ref_logp_T if ref_logp_T is None else ref_logp_T,
            token_data=micro.token_data,
            value_T=value_T,
            score_B=scores.score_B,
            entropy_T=scores.entropy_T,
            correct_T=scores.correct_T,
            logit_T=scores.logit_T,
            step=step or {},
        )

    @cached_property
    def tail(self) -> Tail:
        """The scale and soft cap after the head, measured by running the model with known numbers as head output.

        Configs name these differently from model to model, so they are not read from there.
        Raises AlignError if the measured function is neither a scale nor a soft cap.
        """
        device = next(self.model.parameters()).device
        tiny, huge = 2.0**-30, 2.0**30  # tanh is linear at the first (gives scale), saturated at the second (gives cap)
        points = torch.tensor([tiny, huge, -8.0, -1.0, 0.0, 0.5, 8.0], dtype=torch.float64, device=device)
        one = torch.zeros(1, 1, dtype=torch.long, device=device)
        random = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with torch.no_grad(), random, self._head_as(lambda _layer, _hidden: points.view(1, -1, 1)):
            seen = self._run(one, one, None).logits.flatten().double()
        scale, top = float(seen[0]) / tiny, float(seen[1])
        scale = 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale
        tail = Tail(scale, None if math.isclose(top, scale * huge, rel_tol=1e-3) else top)
        expected = points * scale if tail.softcap is None else top * torch.tanh(points * scale / top)
        if not torch.allclose(seen, expected, rtol=1e-4, atol=1e-6):
            raise AlignError(
                f"{type(self.unwrapped).__name__} changes its logits in a way that align does not know",
                "use a model whose logits are its head's output, scaled or soft-capped",
            )
        return tail

    def _run(self, input_ids_RL: Tensor, position_ids_RL: Tensor, attention_mask_RL: Tensor | None) -> Any:
        """Call the model's own forward, without a key-value cache."""
        given = {"position_ids": position_ids_RL, "attention_mask": attention_mask_RL, "use_cache": False}
        return self.model(input_ids=input_ids_RL, **{k: v for k, v in given.items() if k in self._takes})

    def _head_module(self) -> Any:
        model: Any = self.unwrapped
        if self.head == "language":
            return model.get_output_embeddings()
        return score_head(model)

    def _head_layers(self) -> list[nn.Linear | TrainableTokensLayer]:
        """Return the layers one of which runs as the head: a single one, or the original and the trained one.

        The trained one is peft's copy under ``modules_to_save``, or its layer with some rows replaced
        (``trainable_token_indices``).
        """
        module, name = self._head_module(), type(self.unwrapped).__name__
        layers: list[Any] = [module]
        if isinstance(module, ModulesToSaveWrapper):
            layers = [module.original_module, *module.modules_to_save.values()]
        elif isinstance(module, TrainableTokensWrapper):
            layers = [module.token_adapter]  # which runs when its adapter is off too
        if not all(_is_linear(layer) for layer in layers):
            fix = "take a sequence-classification model with num_labels=1"
            if self.head == "language":
                fix = (
                    "take a causal language model, and leave its head out of model.adapter.target_modules; "
                    "model.adapter.modules_to_save trains it whole"
                )
            raise AlignError(f"the head of {name} is {type(module).__name__}, not a plain linear layer", fix)
        if self.head != "language" and any(layer.out_features != 1 for layer in layers):
            raise AlignError(f"the head of {name} gives {layers[0].out_features} scores", "set num_labels=1")
        return layers

    @contextmanager
    def _head_as(self, head: Callable[[Any, Tensor], Tensor]) -> Iterator[None]:
        """Replace the forward of the head's layers by ``head``. Hooks on the layers still run."""
        layers = self._head_layers()
        for layer in layers:
            layer.forward = partial(head, layer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _is_linear(layer: Any) -> bool:
    if isinstance(layer, TrainableTokensLayer):  # its forward drops a bias, so only a head without one is exact
        layer = layer.get_base_layer()
        return isinstance(layer, nn.Linear) and layer.bias is None
    return isinstance(layer, nn.Linear) and not isinstance(layer, BaseTunerLayer)


def _weights(layer: nn.Linear | TrainableTokensLayer) -> tuple[Tensor, Tensor | None]:
    """Return a head's weight [V, D], with the rows of trained tokens in place, and its bias [V] or None."""
    if isinstance(layer, TrainableTokensLayer):
        active = [] if layer.disable_adapters else layer.active_adapters
        return layer.get_merged_weights(active), None
    return _whole(layer.weight), None if layer.bias is None else _whole(layer.bias)


def _whole(parameter: Tensor) -> Tensor:
    """Gather a sharded parameter, differentiably; return any other as it is."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


# --- helpers for any module ------------------------------------------------------------------------------------------


def weights_hash(module: nn.Module) -> str:
    """Return the sha256 over every named tensor of a module; see ``tensors_hash``."""
    return tensors_hash({n: v for n, v in module.state_dict().items() if isinstance(v, Tensor)})


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over named tensors: name, type, shape and bytes of each, in the order of the names.

    Sharded tensors are gathered first, so with them every rank must call this.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        whole = whole.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(whole.dtype), list(whole.shape)]).encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def nonfinite(module: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers that hold a NaN or an infinity."""
    floating = ((n, v) for n, v in module.state_dict().items() if isinstance(v, Tensor) and v.is_floating_point())
    return [name for name, value in floating if not bool(torch.isfinite(value).all())]


@contextmanager
def without_gradient_or_dropout(module: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and without a graph; afterwards every module is back in its own mode.

    The 16-bit copies of weights that autocast caches are dropped at both ends: copies that are made here have no
    gradient, and a later training step would use them and leave the weights without one.
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
    """Switch the model's own dropout on or off without leaving training mode.

    transformers keeps the rates in ``nn.Dropout`` modules, in plain attributes of a module (Llama's attention) and in
    the config (Falcon). Off sets them to 0 and remembers them; on restores them. Evaluation mode would not do, since
    gradient checkpointing works only in training mode. An adapter's dropout has a setting of its own and is not
    changed.
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
    """Return the positive dropout rates among an object's attributes, by name."""
    is_dropout = isinstance(holder, nn.modules.dropout._DropoutNd)  # which calls its rate ``p``
    rates = dict[str, float]()
    for name, value in getattr(holder, "__dict__", {}).items():
        names_rate = "drop" in name or (is_dropout and name == "p")
        if names_rate and isinstance(value, float) and value > 0:
            rates[name] = value
    return rates
