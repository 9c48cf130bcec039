"""Log-probabilities and other scores of given tokens without gradient; those of the reference are computed once.

``precompute`` runs the policy that training starts from over the examples that will be read, and caches the result on
disk. Processes joined by torch.distributed share the work. Values do not depend on the number of processes, since
micro-batches are made without regard to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from align.core.data.batch import MicroBatch, collate
from align.core.data.examples import Example, Examples, Floats, Tokens, TokenSequence
from align.core.data.step_plan import FORWARD, Layout, MicroPlan, plan_micro_batches
from align.core.models.policy import Policy, Scores, weights_hash, without_gradient_or_dropout
from align.core.util.atomic_files import making, whole_file
from align.core.util.profile import profiled
from align.core.util.progress import track
from align.schemas.errors import AlignError

WINDOW = 256
"""Number of examples, sorted by length, that are divided into micro-batches together."""


class WithReference:
    """Examples whose sequences carry ``ref_logp``.

    values: of all measured tokens, row after row. starts: [N] where the values of each row begin, -1 for a row that was
    not measured, which is returned as it is.
    """

    def __init__(self, examples: Examples, values: NDArray[np.float32], starts: NDArray[np.int64], key: str) -> None:
        self._examples, self._values, self._starts = examples, values, starts
        self.fingerprint = hashlib.sha256(f"{examples.fingerprint} {key}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example, start, sequences = self._examples[index], int(self._starts[index]), []
        if start < 0:
            return example
        for sequence in example.sequences:
            stop = start + int(sequence.scored.sum())
            sequences.append(replace(sequence, ref_logp=self._values[start:stop]))
            start = stop
        return replace(example, sequences=tuple(sequences))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example [N]."""
        return self._examples.lengths

    @property
    def sources(self) -> NDArray[np.int32]:
        """Index of each example's source [N]."""
        return self._examples.sources

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each source."""
        return self._examples.weights


@profiled("reference")
def detached_logp(policy: Policy, micro: MicroBatch) -> Tensor:
    """Return the log-probability of each scored token [T] under the policy, without gradient, dropout or randomness."""
    with without_gradient_or_dropout(policy):
        scores: Scores = policy(micro)
    return scores.logp_T


def completion_logprobs(
    policy: Policy, sequences: Sequence[tuple[Tokens, Tokens]], *, pad_id: int, batch_tokens: int
) -> list[Floats]:
    """Return the log-probability of each completion token at temperature 1: for (prompt, completion), [T] of each.

    One pass over each sequence, without a key-value cache. batch_tokens: most tokens in one pass, padding included.
    """
    examples = [_scored_completion(prompt, completion) for prompt, completion in sequences]
    device = policy.device
    found: list[Floats] = [np.empty(0, np.float32)] * len(examples)
    (micros,) = plan_micro_batches(examples, 1, batch_tokens, None, "padded", FORWARD[device.type])
    for micro, _ in micros:
        batch = collate([examples[i] for i in micro], "padded", pad_id).to(device)
        with policy.at_temperature(1.0):
            logp_T = detached_logp(policy, batch).float().cpu().numpy()
        ends = np.cumsum([len(sequences[i][1]) for i in micro])
        for i, part in zip(micro, np.split(logp_T, ends[:-1]), strict=True):
            found[i] = part
    return found


def _scored_completion(prompt: Tokens, completion: Tokens) -> Example:
    tokens = np.concatenate([prompt, completion]).astype(np.int32)
    return Example("", (TokenSequence("completion", tokens, np.arange(len(tokens)) >= len(prompt)),))


@profiled("reference")
def precompute(
    policy: Policy,
    examples: Examples,
    *,
    layout: Layout,
    pad_id: int,
    micro_tokens: int | None,
    micro_size: int | None = None,
    rows: NDArray[np.int64] | None = None,
    cache: Path | None = None,
    progress: bool | None = None,
) -> Examples:
    """Return the examples with the log-probability (``ref_logp``) of each scored token under the policy as it is now.

    Every joined process must call this. layout, micro_tokens, micro_size: how micro-batches are made. rows: indices of
    the examples to measure, ascending; None: all of them. The others are returned without ``ref_logp``. cache: a
    directory in which the values are kept under a hash of data, weights and all that affects their rounding; they are
    verified when they are read. progress: True shows a progress bar.
    Raises AlignError if a log-probability is not finite.
    """
    device = policy.device
    chosen = np.arange(len(examples)) if rows is None else rows
    parts = _Sequences(examples, chosen)
    starts = np.full(len(examples), -1, np.int64)
    starts[chosen] = parts.row_starts
    # A value is rounded by the shape of its micro-batch, which depends on the other rows that are measured. So the
    # values of another set of rows are other values, and are never taken for these: a resumed run repeats its own.
    rows_hash = hashlib.sha256(chosen.astype(np.int64).tobytes()).hexdigest()
    key = _key(policy, examples, device, [layout, micro_tokens, micro_size, rows_hash])
    values = _read(cache, key, parts.tokens)
    # All processes must agree, even if one cannot see the cache: those that compute wait for the others in all_reduce.
    if _everywhere(values is not None, device) and values is not None:
        return WithReference(examples, values, starts, key)

    # Joined processes share the work; else one computes, and the others read its result from the cache.
    with nullcontext(False) if cache is None or _joined() else making(cache / f"ref_logp-{key}") as waited:
        found = _read(cache, key, parts.tokens) if waited else None
        if found is not None:
            return WithReference(examples, found, starts, key)
        size = None if micro_size is None else micro_size * parts.most_in_a_row
        micros = _micros(parts, layout, micro_tokens, size, FORWARD[device.type])
        part_of = "" if len(chosen) == len(examples) else f" of {len(chosen):,} of {len(examples):,} rows"
        shown = track(micros, f"reference log-probabilities{part_of}", shown=progress)
        scores = [partial(detached_logp, policy)]
        (values,) = _flat_values(parts, shown, parts.starts, parts.counts, scores, layout, pad_id, device)
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            row = parts[int(np.searchsorted(parts.starts, bad[0], side="right")) - 1].source
            what = "has a log-probability under the reference that is not finite"
            raise AlignError(what, "check the model that training starts from", where=row)
        if cache is not None and (not _joined() or dist.get_rank() == 0):
            _write(cache, key, values)
    return WithReference(examples, values, starts, key)


class _Sequences:
    """The sequences of chosen rows, each as an example of its own.

    Micro-batches are cut by them: the two answers of a pair differ in length, and together the shorter one is padded.
    lengths, counts, starts: [S] tokens, scored tokens, and where the values of each sequence begin. row_starts: the
    same of each row [len(rows)].
    """

    def __init__(self, examples: Examples, rows: NDArray[np.int64]) -> None:
        self._examples = examples
        shapes = [
            (row, place, len(sequence), int(sequence.scored.sum()))
            for row in map(int, rows)
            for place, sequence in enumerate(examples[row].sequences)
        ]
        self._row, self._place, self.lengths, self.counts = np.array(shapes, np.int64).reshape(-1, 4).T
        self.tokens = int(self.counts.sum())
        self.starts = np.cumsum(self.counts) - self.counts
        self.row_starts = self.starts[self._place == 0]
        self.most_in_a_row = int(self._place.max(initial=0)) + 1

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[int(self._row[index])]
        return replace(example, sequences=(example.sequences[int(self._place[index])],))


def token_values(
    examples: Examples,
    scores: Sequence[Callable[[MicroBatch], Tensor]],
    *,
    device: torch.device,
    layout: Layout,
    pad_id: int,
    micro_tokens: int | None,
    micro_size: int | None = None,
) -> list[list[NDArray[np.float32]]]:
    """Return, for each function of ``scores``, its values at the scored tokens of every example: [T] per example.

    scores: functions from a micro-batch to one value [T] per scored token, such as log-probabilities or a critic's
    values. Every joined process must call this.
    """
    counts = np.array([sum(int(s.scored.sum()) for s in examples[i].sequences) for i in range(len(examples))], np.int64)
    starts = np.cumsum(counts) - counts
    micros = _micros(examples, layout, micro_tokens, micro_size, FORWARD[device.type])
    flats = _flat_values(examples, micros, starts, counts, scores, layout, pad_id, device)
    return [[flat[a : a + n] for a, n in zip(starts, counts, strict=True)] for flat in flats]


def _flat_values(
    examples: Examples | _Sequences,
    micros: Iterable[MicroPlan],
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    scores: Sequence[Callable[[MicroBatch], Tensor]],
    layout: Layout,
    pad_id: int,
    device: torch.device,
) -> list[NDArray[np.float32]]:
    """Return a flat array [all scored tokens] for each function of ``scores``."""
    flats = torch.zeros(len(scores), int(counts.sum()), device=device)
    for micro in micros:
        chosen = [examples[i] for i in micro.examples]
        batch = collate(chosen, layout, pad_id, trees=micro.trees).to(device)
        for flat, score in zip(flats, scores, strict=True):
            values_T = score(batch).float()
            by_example = torch.split(values_T, [int(counts[i]) for i in micro.examples])
            for i, part in zip(micro.examples, by_example, strict=True):
                flat[starts[i] : starts[i] + counts[i]] = part
    if _joined():
        dist.all_reduce(flats)  # a sum: each process filled in its own micro-batches and left the others at zero
    return list(flats.cpu().numpy())


def _micros(
    examples: Examples | _Sequences, layout: Layout, tokens: int | None, size: int | None, forward: int
) -> list[MicroPlan]:
    """Return the micro-batches of this process, as indices of ``examples``.

    They are made as if there were one process and then dealt out, so that values do not depend on the number of
    processes. Empty ones are added until all processes have as many, since each forward may be a collective (FSDP).
    """
    order = np.argsort(-examples.lengths, kind="stable")
    if layout.endswith("shared"):  # completions of one prompt are neighbours, which their lengths would part
        order = np.arange(len(examples))
    every = list[MicroPlan]()
    for start in range(0, len(order), WINDOW):
        window = [int(i) for i in order[start : start + WINDOW]]
        (micros,) = plan_micro_batches([examples[i] for i in window], 1, tokens, size, layout, forward)
        every += [MicroPlan([window[place] for place in micro.examples], micro.trees) for micro in micros]
    world, rank = (dist.get_world_size(), dist.get_rank()) if _joined() else (1, 0)
    every += [MicroPlan([], ())] * (-len(every) % world)
    return every[rank::world]


def _key(policy: Policy, examples: Examples, device: torch.device, settings: list[object]) -> str:
    autocast = str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else None
    attention = getattr(policy.unwrapped.config, "_attn_implementation", None)
    facts = [examples.fingerprint, weights_hash(policy), device.type, autocast, attention, *settings]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:32]


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _everywhere(here: bool, device: torch.device) -> bool:
    """Return True if ``here`` is true in every process."""
    flag = torch.tensor(int(here), device=device)
    if _joined():
        dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def _read(cache: Path | None, key: str, size: int) -> NDArray[np.float32] | None:
    """Return the cached values of a key, None if there are none.

    A damaged file is skipped: its name ends in the hash of its content.
    """
    for path in sorted(cache.glob(f"ref_logp-{key}-*.npy")) if cache is not None else ():
        try:
            values: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception:  # for a damaged header numpy lets errors of ast, tokenize and struct through
            continue
        if values.dtype == np.float32 and values.shape == (size,) and path.stem.endswith(_digest(values)):
            return values
    return None


def _write(cache: Path, key: str, values: NDArray[np.float32]) -> None:
    with whole_file(cache / f"ref_logp-{key}-{_digest(values)}.npy") as file:
        np.save(file, values, allow_pickle=False)


def _digest(values: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:32]
