"""Readers: a model's logits after each row of a batch, of which one more token is read at a time.

Three of them, from the fastest to the most general; ``open_reader`` chooses.

``GroupedReader`` keeps keys and values itself and attends to them itself, through the attention interface of
transformers. Rows may start at any time, so finished rows make room for waiting prompts. ``CachedReader`` leaves
attention to the model, with a key-value cache, and ``UncachedReader`` reads whole rows again for each token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from align.core.generation.generator_base import Tokens
from align.core.models.policy import device_of
from align.schemas.engine import SHARE_FROM, SHARED_NUMBERS

Indices = NDArray[np.int64]
T = TypeVar("T")


class ReaderSize(NamedTuple):
    """The largest batch of a reader.

    rows, prompts: number at a time. longest: tokens of a prompt. room: tokens after it. context: positions of the
    model.
    """

    rows: int
    prompts: int
    longest: int
    room: int
    context: int


class Reader(Protocol):
    """The rows of a batch, each a prompt and the tokens after it."""

    network: PreTrainedModel

    def add(self, prompts: Sequence[Tokens], of_N: Indices) -> Tensor:
        """Read prompts, append a row for each index in ``of_N``, and return the logits [N, V] after its prompt."""
        ...

    def read(self, token_B: Tensor) -> Tensor:
        """Append one token to each row, and return the logits [B, V] after it."""
        ...

    def keep(self, rows_K: Indices) -> Indices:
        """Continue with these rows only, and return them in the order that they have from now on."""
        ...

    def skip(self, tokens: int) -> None:
        """Go on as if this number of tokens of each row had been read, to measure the memory of the last one."""
        ...

    def nbytes(self) -> int:
        """Return the bytes of keys and values."""
        ...


def open_reader(network: PreTrainedModel, size: ReaderSize) -> Reader:
    """Return the fastest reader that this model can have, without rows."""
    if can_group(network):
        return GroupedReader(network, size)
    return CachedReader(network, size) if can_cache(network) else UncachedReader(network, size)


def can_cache(network: PreTrainedModel) -> bool:
    """Return True if the model's cache is only keys and values.

    Recurrent states can be neither shared by the completions of a prompt nor reordered when rows leave the batch.
    """
    layers = DynamicCache(config=network.config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return plain and not network._is_stateful


def takes(network: PreTrainedModel, name: str) -> bool:
    """Return True if the model's forward pass has this parameter."""
    return name in inspect.signature(network.forward).parameters


# --- the cache with its own attention --------------------------------------------------------------------------------
#
# transformers repeats the keys and values of grouped heads for every query head, which copies the whole cache at every
# token. Here the queries of a group of heads are the queries of one attention, so nothing is copied.
#
# Long prompts are kept once for all rows that complete them. Attention to them takes the queries of all these rows at
# once, as Hydragen (2402.05099) and cascade attention do, and is merged with attention to the row's own tokens by the
# logarithms of their normalisers:
#
#     a = sum_i exp(s_i) v_i / exp(lse),  lse = log sum_i exp(s_i)        for each part
#     a = w a_own + (1 - w) a_prompt,     w = sigmoid(lse_own - lse_prompt)
#
# A sink (gpt-oss) is one more logit without a value: a sigmoid(lse - sink).
#
# Rows have as many columns as the longest needs now, rounded up, and attend to all of them under a mask: attention to
# the first 64 of 96 columns took twice the time of 64 columns that follow each other in memory (64 rows, 2 x 2 heads of
# width 32: 400 and 206 microseconds), and shapes that seldom change can be captured as a CUDA graph.
#
# Short prompts are copied to each row instead, in front of its own tokens: one attention where sharing takes two and
# a merge. Measured on one CPU core, microseconds for a layer of 3 x 3 heads of width 64 and 32 own tokens, copied and
# shared: 8 rows of one prompt of 32 tokens 77 and 125, of 200 tokens 223 and 173; 64 rows of eight prompts of 32 tokens
# 603 and 602, of 470 tokens 5,526 and 2,049.

ATTENTION = "align_decode"
"""The name of this attention in transformers."""

_OTHER_ATTENTION = ("position_bias", "indices", "block_indices")
"""Arguments of attention that is more than scaled products with a mask."""


def rounded(columns: int) -> int:
    """Return a number of columns with room for more, at most a sixteenth or 16 of them unused."""
    step = max(16, columns // 16)
    return -(-columns // step) * step


class NotGrouped(Exception):
    """Raised by attention that this cache cannot do for the model."""


class _State:
    """The part of a step that is the same for all layers.

    reading: the prompt of each new row, while prompts are read; None while tokens are. rows: number B. width: columns
    of the rows' own keys. column_B: the column of each row's token; ``column`` if all are equal. position_B: of the
    token. length_P: of the prompts that are kept once; none unless they are shared. prompt_B: of each row. plain:
    softcap and sinks are passed over.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reading: Tensor | None = None
        self.rows = self.prompts = self.width = 0
        self.plain = False
        self.column: int | None = None
        self.column_B = self.position_B = np.zeros(0, np.int64)
        self.length_P = self.prompt_B = np.zeros(0, np.int64)
        self.column_B1 = torch.zeros(0)
        self._kept: dict[Any, Any] = {}
        self._now: dict[Any, Any] = {}

    def begin(self, column_B: Indices) -> None:
        """Set the columns of one token of each row."""
        self.column_B, self.column_B1 = column_B, self.tensor(column_B)[:, None]
        least, most = int(column_B.min()), int(column_B.max())
        self.column = most if least == most else None
        self._now = {}
        if most >= self.width:
            self.widen(most + 1)
        for key, mask in self._kept.items():
            if key[0] == "own":
                mask.view(self.rows, self.width).scatter_(1, self.column_B1, 0)

    def widen(self, columns: int) -> None:
        """Make room for this number of columns."""
        if columns > self.width:
            self.width = rounded(columns)
            self._kept = {key: value for key, value in self._kept.items() if key[0] != "own"}

    def regroup(self) -> None:
        """Forget what follows from which rows there are."""
        self._kept, self._now = {}, {}

    def tensor(self, values: Any) -> Tensor:
        """Return an array on the device."""
        return torch.from_numpy(values).to(self.device)

    def flat(self, heads: int) -> Tensor:
        """Return the places [B x heads] of the tokens in keys [rows x heads x width, ...]."""

        def make() -> Tensor:
            first_BH = np.arange(self.rows * heads).reshape(self.rows, heads) * self.width
            return self.tensor((first_BH + self.column_B[:, None]).ravel())

        return self._once(self._now, ("flat", heads), make)

    def own_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the mask [B, 1, 1, width] of own keys to add to scores."""
        bound = window is not None and int(self.column_B.max()) >= window

        def make() -> Tensor:
            at_W, column_B1 = np.arange(self.width), self.column_B[:, None]
            seen_BW = at_W <= column_B1
            if bound:
                assert window is not None
                seen_BW &= at_W > column_B1 - window
            return _additive(self.tensor(seen_BW), dtype)[:, None, None]

        if bound:
            return self._once(self._now, ("own", window, dtype), make)
        return self._once(self._kept, ("own", dtype), make)

    def prompt_mask(self, window: int | None, width: int, group: int, dtype: torch.dtype) -> Tensor | None:
        """Return the mask of prompts' keys to add to scores; None if all rows attend to all.

        [P, 1, 1, width], or [P, 1, rows of a prompt x group, width] where a sliding window ends for some row.
        """
        bound = window is not None and int(self.position_B.max()) >= window
        if not bound:
            if (self.length_P == width).all():
                return None

            def make() -> Tensor:
                seen_PL = np.arange(width) < self.length_P[:, None]
                return _additive(self.tensor(seen_PL), dtype)[:, None, None]

            return self._once(self._kept, ("prompt", width, dtype), make)

        def make_bound() -> Tensor:
            assert window is not None
            rows_PN = self._places()[0]
            first_PN = self.position_B[rows_PN] - window
            at_L = np.arange(width)
            seen_PNL = (at_L < self.length_P[:, None, None]) & (at_L > first_PN[..., None])
            return _additive(self.tensor(seen_PNL), dtype).repeat_interleave(group, 1)[:, None]

        return self._once(self._now, ("prompt", window, width, group, dtype), make_bound)

    def by_prompt(self, query_BHGD: Tensor) -> Tensor:
        """Return the queries [P, heads, rows of a prompt x group, D]; prompts with fewer rows repeat the first row."""
        rows_PN, row_tensor, _ = self._places()
        _, heads, group, width = query_BHGD.shape
        query = query_BHGD if row_tensor is None else query_BHGD[row_tensor]
        count, most = rows_PN.shape
        return query.view(count, most, heads, group, width).transpose(1, 2).reshape(count, heads, most * group, width)

    def by_row(self, found: Tensor, group: int) -> Tensor:
        """Return [B, heads, group, D] of [P, heads, rows of a prompt x group, D]: the inverse of ``by_prompt``."""
        rows_PN, _, place_tensor = self._places()
        count, most = rows_PN.shape
        heads, width = found.shape[1], found.shape[3]
        found = found.view(count, heads, most, group, width).transpose(1, 2).reshape(-1, heads, group, width)
        return found if place_tensor is None else found[place_tensor]

    def _places(self) -> tuple[Indices, Tensor | None, Tensor | None]:
        """Return the rows [P, N] of each prompt; flat, as a tensor; and the place of each row [B] in it.

        The tensors are None if rows lie in this order already.
        """

        def make() -> tuple[Indices, Tensor | None, Tensor | None]:
            count_P = np.bincount(self.prompt_B, minlength=self.prompts)
            order_B = np.argsort(self.prompt_B, kind="stable")
            within_B = np.arange(self.rows) - np.repeat(count_P.cumsum() - count_P, count_P)
            rows_PN = np.zeros((self.prompts, int(count_P.max())), np.int64)
            rows_PN[self.prompt_B[order_B], within_B] = order_B
            place_B = np.empty(self.rows, np.int64)
            place_B[order_B] = self.prompt_B[order_B] * rows_PN.shape[1] + within_B
            if rows_PN.size == self.rows and (rows_PN.ravel() == np.arange(self.rows)).all():
                return rows_PN, None, None
            return rows_PN, self.tensor(rows_PN.ravel()), self.tensor(place_B)

        return self._once(self._kept, ("places",), make)

    @staticmethod
    def _once(made: dict[Any, Any], key: Any, make: Callable[[], T]) -> T:
        if key not in made:
            made[key] = make()
        found: T = made[key]
        return found


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where True, elsewhere a number that leaves no weight.

    It is finite, so that a part without any key to attend to has a finite normaliser, and loses all weight in the
    merge.
    """
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min / 2)


class _GroupedLayer(CacheLayerMixin):
    """Keys and values [rows, heads, width, D] of one layer; with shared prompts also [prompts, heads, longest, D]."""

    def __init__(self, state: _State, size: ReaderSize, window: int | None, shared: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state, self.size, self.window, self.shared = state, size, window, shared
        self.is_sliding = window is not None
        self.own: list[Tensor] = []
        self.prompt: list[Tensor] = []
        self.live: list[Tensor] = []  # the part of ``own`` that has rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate. Zeros, since a weight of 0 would not hide a NaN in a column that no token has been written to."""
        rows, prompts, longest = self.size[:3]
        kind = key_states.device.type
        for states in (key_states, value_states):
            # Under autocast keys may be wider than values; attention would round them.
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
            heads, width = states.shape[1], states.shape[3]
            self.own.append(states.new_zeros(rows, heads, self.state.width, width, dtype=dtype))
            if self.shared:
                self.prompt.append(states.new_zeros(prompts, heads, longest, width, dtype=dtype))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values of new prompts, or of one token of each row."""
        state = self.state
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.own[0].shape[2] != state.width:
            self.own = [_widened(own, state.rows, state.width) for own in self.own]
            self.live = []
        if state.reading is not None:
            self._store(state.reading, (key_states, value_states))
            return key_states, value_states
        if not self.live or len(self.live[0]) != state.rows:
            self.live = [own[: state.rows] for own in self.own]
        keys, values = self.live
        if state.column is not None:
            keys.narrow(2, state.column, 1).copy_(key_states)
            values.narrow(2, state.column, 1).copy_(value_states)
        else:
            places = state.flat(keys.shape[1])
            for live, states in ((keys, key_states), (values, value_states)):
                live.view(-1, live.shape[3]).index_copy_(0, places, states.reshape(-1, live.shape[3]).to(live.dtype))
        key_states.align_layer = self  # type: ignore[attr-defined]  # how ``_attend`` finds the cache
        return key_states, value_states

    def _store(self, reading: Tensor, both: tuple[Tensor, Tensor]) -> None:
        """Store keys and values [prompts, heads, L, D] of new prompts."""
        first, length = self.state.prompts, both[0].shape[2]
        if self.shared:
            for prompt, states in zip(self.prompt, both, strict=True):
                prompt[first : first + len(states), :, :length] = states
            return
        first = self.state.rows
        for own, states in zip(self.own, both, strict=True):
            own[first : first + len(reading), :, :length] = states[reading]

    def attend(self, query: Tensor, scale: float, softcap: float | None, sink: Tensor | None) -> Tensor:
        """Return attention [B, 1, query heads, D] of queries [B, query heads, 1, D], one token of each row."""
        state, (keys, values) = self.state, self.live
        softcap, sink = (None, None) if state.plain else (softcap, sink)
        rows, heads, _, width = keys.shape
        group = query.shape[1] // heads
        query = query.reshape(rows, heads, group, width).to(keys.dtype)
        mask = state.own_mask(self.window, keys.dtype)
        if not self.shared and softcap is None and sink is None:
            found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
            return found.reshape(rows, 1, heads * group, -1)
        found, lse = _partial(query, keys, values, mask, scale, softcap)
        if self.shared:
            keys, values = (prompt[: state.prompts] for prompt in self.prompt)
            mask_PL = state.prompt_mask(self.window, keys.shape[2], group, keys.dtype)
            of_prompt, lse_prompt = _partial(state.by_prompt(query), keys, values, mask_PL, scale, softcap)
            of_prompt, lse_prompt = (state.by_row(part, group) for part in (of_prompt, lse_prompt))
            found = torch.lerp(of_prompt, found, (lse - lse_prompt).sigmoid().to(found.dtype))
            lse = torch.logaddexp(lse, lse_prompt) if sink is not None else lse
        if sink is not None:
            found = found * (lse - sink.view(heads, group, 1).to(lse.dtype)).sigmoid().to(found.dtype)
        return found.reshape(rows, 1, heads * group, -1)

    def move(self, rows: tuple[Indices, Indices], prompts: tuple[Indices, Indices]) -> None:
        """Move rows and prompts: each to the places of the first of a pair, from those of the second."""
        for tensors, (to, source) in ((self.own, rows), (self.prompt, prompts)):
            if len(to):
                to_tensor, source_tensor = self.state.tensor(to), self.state.tensor(source)
                for tensor in tensors:
                    tensor[to_tensor] = tensor[source_tensor]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that new prompts attend to, and the first: each to itself only."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of tokens before the next one."""
        return 0 if self.state.reading is not None else int(self.state.column_B.max())

    def get_max_length(self) -> int:
        """Return the size."""
        return self.size.longest + self.size.room


def _widened(own: Tensor, rows: int, width: int) -> Tensor:
    """Return keys or values with this number of columns."""
    wide = own.new_zeros(len(own), own.shape[1], width, own.shape[3])
    wide[:rows, :, : own.shape[2]] = own[:rows]
    return wide


def _partial(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Return attention [N, heads, M, D] to one part of the keys, and the logarithm of its normaliser [N, heads, M, 1].

    query: [N, heads, M, D]. keys, values: [N, heads, L, D].
    """
    if query.device.type == "cpu" and softcap is None and keys.shape[3] == values.shape[3]:
        # The public function would not return the normaliser.
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        found, lse = flash(query, keys, values, 0.0, False, attn_mask=mask, scale=scale)
        return found, lse[..., None]
    score = torch.matmul(query, keys.transpose(2, 3))
    score = score.to(torch.promote_types(score.dtype, torch.float32)) * scale
    if softcap is not None:
        score = (score / softcap).tanh_() * softcap
    if mask is not None:
        score = score + mask
    lse = score.logsumexp(-1, keepdim=True)
    return torch.matmul((score - lse).exp_().to(values.dtype), values), lse


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do, for one token of each row of a ``GroupedReader``.

    Raises NotGrouped if the keys are not those that the cache returned, or attention needs more than the cache has.
    """
    layer: _GroupedLayer | None = getattr(key, "align_layer", None)
    more = attention_mask is not None or any(others.get(name) is not None for name in _OTHER_ATTENTION)
    if layer is None or more or query.shape[2] != 1:
        raise NotGrouped
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return layer.attend(query, scale, softcap, s_aux), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)


def shares_prompts(network: PreTrainedModel, size: ReaderSize) -> bool:
    """Return True if prompts are kept once: where that is faster, see above."""
    config: Any = network.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * size.rows * size.longest * heads * width
    return size.prompts < size.rows and size.longest >= SHARE_FROM and numbers >= SHARED_NUMBERS


def cache_bytes(network: PreTrainedModel, tokens: int) -> int:
    """Return the bytes of keys and values of so many tokens, in the type of computing; 0 for a model without them."""
    if not can_cache(network):
        return 0
    config: Any = network.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    device = device_of(network).type
    autocast = torch.is_autocast_enabled(device)
    number = (torch.get_autocast_dtype(device) if autocast else network.dtype).itemsize
    return int(2 * tokens * config.num_hidden_layers * heads * width * number)


class GroupedReader:
    """A reader with its own attention; rows may be added at any time, in place of those that were not kept.

    Prompts are padded on the right, which a causal model needs no mask for.
    """

    def __init__(self, network: PreTrainedModel, size: ReaderSize, shared: bool | None = None) -> None:
        self.network, self.size = network, size
        self.shared = shares_prompts(network, size) if shared is None else shared
        self._state = _State(device_of(network))
        windows = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=network.config).layers]
        layers: Any = [_GroupedLayer(self._state, size, window, self.shared) for window in windows]
        self._cache = Cache(layers=layers)
        self._length_B = np.zeros(0, np.int64)  # of each row's prompt
        # Layers look up the attention function here. Past the config's own setter, which takes longer than a layer.
        self._config: dict[str, Any] = vars(network.config.get_text_config())

    def add(self, prompts: Sequence[Tokens], of_N: Indices) -> Tensor:
        """Read prompts, append a row for each index in ``of_N``, and return the logits [N, V] after its prompt."""
        state = self._state
        length_P = np.array([len(prompt) for prompt in prompts])
        ids_PL = np.zeros((len(prompts), int(length_P.max())), np.int64)
        ids_PL[np.arange(ids_PL.shape[1]) < length_P[:, None]] = np.concatenate(prompts)
        position_1L = state.tensor(np.arange(ids_PL.shape[1]))[None]
        of = state.reading = state.tensor(of_N)
        state.widen(1 if self.shared else ids_PL.shape[1] + 1)
        with _last_only(self.network, state.tensor(length_P - 1)):
            logits_PV = self._run(state.tensor(ids_PL), position_1L)
        state.reading = None
        state.prompt_B = np.concatenate([state.prompt_B, state.prompts + of_N])
        state.length_P = np.concatenate([state.length_P, length_P])
        state.prompts += len(prompts)
        state.rows += len(of_N)
        state.regroup()
        self._length_B = np.concatenate([self._length_B, length_P[of_N]])
        state.position_B = np.concatenate([state.position_B, length_P[of_N] - 1])
        return logits_PV[of]

    def read(self, token_B: Tensor) -> Tensor:
        """Append one token to each row, and return the logits [B, V] after it."""
        state = self._state
        position_B = state.position_B + 1
        state.position_B = position_B
        state.begin(self._column_B())
        position_B1 = state.tensor(position_B.clip(max=self.size.context - 1))[:, None]
        before = self._config["_attn_implementation_internal"]
        # transformers' own function for sdpa passes over what it has no argument for (Gemma 2's softcap), in training
        # too, and the sampler's log-probabilities must be the trainer's.
        state.plain = before == "sdpa"
        self._config["_attn_implementation_internal"] = ATTENTION
        try:
            return self._run(token_B[:, None], position_B1)
        finally:
            self._config["_attn_implementation_internal"] = before

    def keep(self, rows_K: Indices) -> Indices:
        """Continue with these rows only, and return them in the order that they have from now on.

        Rows at the end move to places that became free, so no other row is copied.
        """
        state = self._state
        row_order, row_moves = _fill_holes(rows_K, state.rows)
        used, prompt_K = np.unique(state.prompt_B[row_order], return_inverse=True)
        prompt_order, prompt_moves = _fill_holes(used, state.prompts)
        place_P = np.empty(len(used), np.int64)
        place_P[np.searchsorted(used, prompt_order)] = np.arange(len(used))
        layers: Any = self._cache.layers
        for layer in layers:
            layer.move(row_moves, prompt_moves)
        state.prompt_B, state.length_P = place_P[prompt_K], state.length_P[prompt_order]
        state.rows, state.prompts = len(row_order), len(prompt_order)
        state.position_B, self._length_B = state.position_B[row_order], self._length_B[row_order]
        state.regroup()
        return row_order

    def skip(self, tokens: int) -> None:
        """Go on as if this number of tokens of each row had been read, to measure the memory of the last one."""
        self._state.position_B = self._state.position_B + tokens

    def nbytes(self) -> int:
        """Return the bytes of keys and values."""
        layers: Any = self._cache.layers
        return sum(part.nbytes for layer in layers for part in (*layer.own, *layer.prompt))

    def _column_B(self) -> Indices:
        """Return the place of each row's last token among its own keys, -1 for a shared prompt's.

        A finished row goes on until the batch is compacted; it may not write behind the end of its keys.
        """
        position_B = self._state.position_B
        if self.shared:
            return (position_B - self._length_B).clip(max=self.size.room - 1)
        return position_B.clip(max=self.size.longest + self.size.room - 1)

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        output: Any = self.network(
            input_ids=ids, position_ids=positions, past_key_values=self._cache, use_cache=True, return_dict=True
        )
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


def _fill_holes(kept: Indices, count: int) -> tuple[Indices, tuple[Indices, Indices]]:
    """Return an order of the kept of ``count`` places, and the moves (to, from) that make it.

    The kept beyond the first ``len(kept)`` places move to those of the dropped before it.
    """
    stays = np.zeros(count, bool)
    stays[kept] = True
    holes = np.flatnonzero(~stays[: len(kept)])
    movers = len(kept) + np.flatnonzero(stays[len(kept) :])
    order = np.arange(len(kept))
    order[holes] = movers
    return order, (holes, movers)


@contextmanager
def _last_only(network: PreTrainedModel, last_P: Tensor) -> Iterator[None]:
    """Let the model's head see the state at one place [P] of each row only; logits are [P, 1, V]."""

    def select(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        state_PLW, *others = given
        rows_P = torch.arange(len(last_P), device=last_P.device)
        return (state_PLW[rows_P, last_P][:, None], *others)

    head = _head(network)
    assert head is not None
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _head(network: PreTrainedModel) -> torch.nn.Module | None:
    head: torch.nn.Module | None = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head


_GROUPED: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def can_group(network: PreTrainedModel) -> bool:
    """Return True if a ``GroupedReader`` gives this model's logits.

    Tried out once for each network, on a few tokens with shared prompts of two lengths: nothing in a model says that
    all of its attention goes through the interface, or that its keys are unchanged between cache and attention.
    """
    if network not in _GROUPED:
        _GROUPED[network] = _may_group(network) and _groups(network)
    return _GROUPED[network]


def _may_group(network: PreTrainedModel) -> bool:
    config: Any = network.config.get_text_config()
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    interface = network._can_set_attn_implementation() and takes(network, "position_ids")
    return can_cache(network) and interface and not chunked and _head(network) is not None


@torch.no_grad()
def _groups(network: PreTrainedModel) -> bool:
    """Return True if the logits after two prompts and one more token are those of a pass without a cache."""
    vocabulary = int(network.config.get_text_config().vocab_size)
    ids = np.random.default_rng(0).integers(0, vocabulary, 9)
    prompts, token = [ids[:5].astype(np.int32), ids[5:8].astype(np.int32)], ids[8]
    device = device_of(network)
    size = ReaderSize(rows=3, prompts=2, longest=5, room=1, context=16)
    reader = GroupedReader(network, size, shared=True)
    try:
        first_BV = reader.add(prompts, np.array([0, 0, 1]))
        then_BV = reader.read(torch.full((3,), int(token), device=device))
    except (NotGrouped, RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return False  # the model does something else with the cache, or with attention
    for row, prompt in ((0, prompts[0]), (2, prompts[1])):
        whole = torch.from_numpy(np.append(prompt, token).astype(np.int64)).to(device)[None]
        output: Any = network(input_ids=whole, use_cache=False)
        found, wanted = torch.stack([first_BV[row], then_BV[row]]).float(), output.logits[0, -2:].float()
        exact = output.logits.dtype in (torch.float32, torch.float64)
        if not (found - wanted).abs().max() <= (1e-4 if exact else 5e-2) * wanted.abs().max():
            return False
    return True


# --- the model's own attention ---------------------------------------------------------------------------------------
#
# For models whose attention does not go through the interface. Prompts are padded on the left, rows start together.
# The cache is allocated for the longest completion at once. Measured on one CPU core, milliseconds per token step for
# 64 rows of 32 + 96 tokens, four layers of width 128: cache grown by concatenation 7.1, allocated beforehand 6.0;
# padded rows cost 5 % more, with grouped heads 40 %.


class CachedReader:
    """A reader with the model's own attention and a key-value cache. Prompts are added once, to a reader without rows.

    Prompts are padded on the left, which needs a model with ``position_ids``: without them it would count the padding.
    """

    def __init__(self, network: PreTrainedModel, size: ReaderSize) -> None:
        self.network, self.size = network, size
        self._takes = frozenset(inspect.signature(network.forward).parameters)

    def add(self, prompts: Sequence[Tokens], of_N: Indices) -> Tensor:
        """Read prompts, make a row for each index in ``of_N``, and return the logits [N, V] after its prompt."""
        of_B, room = self._tensor(of_N), self.size.room
        length_P, longest = np.array([len(prompt) for prompt in prompts]), max(map(len, prompts))
        padding_P1 = (longest - length_P)[:, None]
        real_PL = np.arange(longest) >= padding_P1
        ids_PL = np.zeros(real_PL.shape, np.int64)
        ids_PL[real_PL] = np.concatenate(prompts)
        position_PL = np.maximum(np.arange(longest) - padding_P1, 0)
        self._cache = DynamicCache(config=self.network.config)
        self._mask_BL: Tensor | None = None
        # Without a mask attention can use its fast causal kernel, so none is made for prompts of one length.
        mask_PL = None if real_PL.all() else self._tensor(real_PL.astype(np.int64))
        logits_PV = self._run(self._tensor(ids_PL), self._tensor(position_PL), mask_PL)
        if mask_PL is not None:
            self._mask_BL = torch.cat([mask_PL[of_B], mask_PL.new_ones(len(of_B), room)], 1)
        self._position_B, self._read = self._tensor(length_P)[of_B], longest
        self._cache.layers = [self._expanded(layer, of_B, longest + room) for layer in self._cache.layers]
        return logits_PV[of_B]

    @staticmethod
    def _expanded(layer: Any, of_B: Tensor, size: int) -> Any:
        """Return a layer of the prompts' cache with one row for each completion.

        A sliding-window layer is bounded already, so only layers of full attention are allocated at their final size.
        """
        if type(layer) is DynamicLayer:
            return _PreallocatedLayer(layer, of_B, size)
        layer.batch_select_indices(of_B)
        return layer

    def read(self, token_B: Tensor) -> Tensor:
        """Append one token to each row, and return the logits [B, V] after it."""
        self._read += 1
        mask_BL = None if self._mask_BL is None else self._mask_BL[:, : self._read]
        # A finished row stays until the batch is compacted; its position may not run past a learned table's end.
        position_B1 = self._position_B[:, None].clamp(max=self.size.context - 1)
        self._position_B = self._position_B + 1
        return self._run(token_B[:, None], position_B1, mask_BL)

    def keep(self, rows_K: Indices) -> Indices:
        """Continue with these rows only, and return them in the order that they have from now on."""
        kept = self._tensor(rows_K)
        self._cache.batch_select_indices(kept)
        self._position_B = self._position_B[kept]
        self._mask_BL = None if self._mask_BL is None else self._mask_BL[kept]
        return rows_K

    def skip(self, tokens: int) -> None:
        """Go on as if this number of tokens of each row had been read, to measure the memory of the last one."""
        for layer in self._cache.layers:
            if isinstance(layer, _PreallocatedLayer):
                layer.skip(tokens)

    def nbytes(self) -> int:
        """Return the bytes of keys and values."""
        layers: Any = self._cache.layers
        return sum(part.untyped_storage().nbytes() for layer in layers for part in (layer.keys, layer.values))

    def _run(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        given = {"position_ids": positions, "attention_mask": mask, "logits_to_keep": 1}
        given = {name: value for name, value in given.items() if name in self._takes and value is not None}
        output: Any = self.network(input_ids=ids, past_key_values=self._cache, use_cache=True, **given)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(values).to(device_of(self.network))


class UncachedReader:
    """A reader without a cache, for models with other states: each token costs a pass over the whole row.

    All rows have one length, since such a model would carry its state through padding. Prompts are added once.
    """

    def __init__(self, network: PreTrainedModel, size: ReaderSize) -> None:
        self.network = network
        self._keep = {"logits_to_keep": 1} if takes(network, "logits_to_keep") else {}

    def add(self, prompts: Sequence[Tokens], of_N: Indices) -> Tensor:
        """Read prompts, make a row for each index in ``of_N``, and return the logits [N, V] after its prompt."""
        device = device_of(self.network)
        of_B = torch.from_numpy(of_N).to(device)
        self._ids_BL = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(device)
        logits_BV = self._run()[of_B]
        self._ids_BL = self._ids_BL[of_B]
        return logits_BV

    def read(self, token_B: Tensor) -> Tensor:
        """Append one token to each row, and return the logits [B, V] after it."""
        self._ids_BL = torch.cat([self._ids_BL, token_B[:, None]], 1)
        return self._run()

    def keep(self, rows_K: Indices) -> Indices:
        """Continue with these rows only, and return them in the order that they have from now on."""
        self._ids_BL = self._ids_BL[torch.from_numpy(rows_K).to(self._ids_BL.device)]
        return rows_K

    def skip(self, tokens: int) -> None:
        """Go on as if this number of tokens of each row had been read, to measure the memory of the last one."""
        added_B = self._ids_BL.new_zeros(len(self._ids_BL), tokens)
        self._ids_BL = torch.cat([self._ids_BL, added_B], 1)

    def nbytes(self) -> int:
        """Return the bytes of keys and values: none are kept."""
        return 0

    def _run(self) -> Tensor:
        output: Any = self.network(input_ids=self._ids_BL, use_cache=False, **self._keep)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


class _PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values [B, heads, room, width], allocated at their final size.

    A new token is written behind the filled part; ``DynamicLayer`` copies the whole cache to append one.
    """

    def __init__(self, layer: Any, rows_B: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(layer.keys, layer.values)
        self._whole = [_with_room(part, rows_B, layer.keys.shape[2], room) for part in (layer.keys, layer.values)]
        self._show(layer.keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens, and return all of them so far."""
        start, end = self._filled, self._filled + key_states.shape[2]
        for whole, states in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, start:end] = states
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        self._whole = [_with_room(whole, indices, self._filled, whole.shape[2]) for whole in self._whole]
        self._show(self._filled)

    def skip(self, tokens: int) -> None:
        """Go on as if this number of tokens had been appended."""
        self._show(self._filled + tokens)

    def _show(self, filled: int) -> tuple[Tensor, Tensor]:
        self._filled = filled
        keys, values = (whole[:, :, :filled] for whole in self._whole)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(part: Tensor, rows_B: Tensor, filled: int, room: int) -> Tensor:
    """Return a new tensor of size ``room`` along axis 2, with the filled part of these rows copied into it."""
    whole = part.new_empty(len(rows_B), part.shape[1], room, part.shape[3])
    whole[:, :, :filled] = part[rows_B, :, :filled]
    return whole
