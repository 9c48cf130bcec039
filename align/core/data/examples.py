"""Tokenised examples, in memory or in a memory-mapped Arrow file on disk.

An ``Example`` is the unit of sampling: one or more token sequences with a mask of the scored tokens. Needs no torch, so
that worker processes start quickly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from align.core.util.atomic_files import Damaged, difference, read_json, sha256, whole_file, write_json

Tokens = NDArray[np.int32]
"""Token ids of one prompt or completion, [T]."""
Floats = NDArray[np.float32]
"""Log-probabilities, or other numbers, of the tokens of one completion, [T]."""

MESSAGE_WEIGHT = "message_weight"
"""Key in ``TokenSequence.token_data``: the weight of each scored token by its message. Absent where all are 1."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One token sequence. ``scored[i]`` is True if token i carries loss; token 0 never does, as nothing predicts it.

    role: ``text``, ``completion``, ``chosen``, ``rejected``; the algorithm's Batch tells them apart by it.
    ref_logp: the reference's log-probability of each scored token, once computed; else None.
    token_data: other numbers for each scored token (``advantage``, ``old_logp``, ...), for the loss; ``message_weight``
    where not every message counts alike.
    """

    role: str
    tokens: NDArray[np.int32]
    scored: NDArray[np.bool_]
    ref_logp: NDArray[np.float32] | None = None
    token_data: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def counts(self) -> float:
        """The sum of the scored tokens' weights, which an average over tokens divides by; their number if all are 1."""
        if MESSAGE_WEIGHT not in self.token_data:
            return float(self.scored.sum())
        return float(self.weights.sum(dtype=np.float64))

    @property
    def weights(self) -> NDArray[np.float32]:
        """The weight of each scored token [scored tokens], float32."""
        return self.token_data.get(MESSAGE_WEIGHT, np.ones(int(self.scored.sum()), np.float32))


@dataclass(frozen=True, slots=True)
class Example:
    """The unit of sampling: sequences that must share a micro-batch, and numbers for the loss (``columns``)."""

    source: str
    """The place of its row (``train.jsonl:17``), for messages."""
    sequences: tuple[TokenSequence, ...]
    columns: Mapping[str, float] = field(default_factory=dict)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of each sequence."""
        return tuple(len(s) for s in self.sequences)


class Examples(Protocol):
    """A collection of tokenised examples, in memory or memory-mapped."""

    fingerprint: str
    """sha256 over content, tokenizer, template and settings: the same for the same data."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] the number of tokens of each example, over all its sequences."""
        ...

    @property
    def sources(self) -> NDArray[np.int32]:
        """[N] the index of each example's source in the mixture."""
        ...

    @property
    def weights(self) -> tuple[float, ...]:
        """The mixture weight of each source."""
        ...


class InMemory:
    """Examples in a list, all of one source."""

    fingerprint = ""
    weights = (1.0,)

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self.lengths: NDArray[np.int64] = np.array([sum(e.lengths) for e in examples], np.int64)
        self.sources: NDArray[np.int32] = np.zeros(len(examples), np.int32)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


# The store: a memory-mapped Arrow file, and a manifest that is written last and proves the file whole.

SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "which": pa.int32(),  # of the mixture's sources
        "columns": pa.string(),  # JSON
        "roles": pa.list_(pa.string()),
        "lengths": pa.list_(pa.int32()),
        "tokens": pa.list_(pa.int32()),  # of all the example's sequences, one after the other
        "scored": pa.list_(pa.uint8()),
        "weights": pa.list_(pa.float32()),  # of the scored tokens, by message; of an example that has none, empty
    }
)


def to_record_batch(examples: Sequence[Example], which: Sequence[int]) -> pa.RecordBatch:
    """Return examples as one Arrow record batch. which: the index of each example's source in the mixture."""

    def ragged(rows: list[list[NDArray[Any]]], kind: Any) -> pa.Array:
        flat = [part for row in rows for part in row]
        values = np.concatenate(flat) if flat else np.zeros(0)
        offsets = np.cumsum([0, *(sum(map(len, row)) for row in rows)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values.astype(kind)))

    columns = [
        pa.array([e.source for e in examples], pa.string()),
        pa.array(which, pa.int32()),
        pa.array([json.dumps(dict(e.columns)) for e in examples], pa.string()),
        pa.array([[s.role for s in e.sequences] for e in examples], pa.list_(pa.string())),
        pa.array([list(e.lengths) for e in examples], pa.list_(pa.int32())),
        ragged([[s.tokens for s in e.sequences] for e in examples], np.int32),
        ragged([[s.scored for s in e.sequences] for e in examples], np.uint8),
        ragged([_weights(e) for e in examples], np.float32),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _weights(example: Example) -> list[NDArray[Any]]:
    """Return the weights of each sequence's scored tokens; no arrays where all are 1, so most rows store none."""
    weighed = any(MESSAGE_WEIGHT in s.token_data for s in example.sequences)
    return [s.weights for s in example.sequences] if weighed else []


@dataclass(frozen=True)
class _Ragged:
    """A list column as numpy views: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: NDArray[Any]
    offsets: NDArray[np.int32]

    @classmethod
    def of(cls, column: Any) -> _Ragged:
        return cls(column.values.to_numpy(zero_copy_only=True), column.offsets.to_numpy(zero_copy_only=True))

    def __getitem__(self, i: int) -> NDArray[Any]:
        return self.values[self.offsets[i] : self.offsets[i + 1]]


class Store:
    """Examples held in Arrow record batches, in memory or memory-mapped; no array is copied.

    content_hash: a hash of the examples' content without the names of their rows; the fingerprint covers both.
    """

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        fingerprint: str,
        weights: Sequence[float] = (1.0,),
        content_hash: str | None = None,
    ) -> None:
        self.fingerprint, self.content_hash = fingerprint, content_hash or fingerprint
        self.weights = tuple(weights)
        batches = [batch for batch in batches if len(batch)]
        self._firsts = np.cumsum([0, *map(len, batches)])
        self._fields = [[batch[name] for name in ("source", "roles", "columns")] for batch in batches]
        self._tokens = [_Ragged.of(batch["tokens"]) for batch in batches]
        self._scored = [_Ragged.of(batch["scored"]) for batch in batches]
        self._weights = [_Ragged.of(batch["weights"]) for batch in batches]
        self._parts = [_Ragged.of(batch["lengths"]) for batch in batches]
        empty = np.zeros(0, np.int64)
        self.lengths: NDArray[np.int64] = np.concatenate([empty, *(np.diff(t.offsets) for t in self._tokens)])
        which = [batch["which"].to_numpy() for batch in batches]
        self.sources: NDArray[np.int32] = np.concatenate([empty, *which]).astype(np.int32)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]  # raises IndexError, and counts from the end where negative
        part = int(np.searchsorted(self._firsts, index, "right")) - 1
        i = index - int(self._firsts[part])
        source, roles, columns = (column[i].as_py() for column in self._fields[part])
        edges = [0, *accumulate(self._parts[part][i].tolist())]
        tokens, scored = self._tokens[part][i], self._scored[part][i].view(np.bool_)
        weights, seen, sequences = self._weights[part][i], 0, list[TokenSequence]()
        for role, (a, b) in zip(roles, pairwise(edges), strict=True):
            count = int(scored[a:b].sum()) if len(weights) else 0
            token_data = {MESSAGE_WEIGHT: weights[seen : seen + count]} if count else {}
            sequences.append(TokenSequence(role, tokens[a:b], scored[a:b], token_data=token_data))
            seen += count
        return Example(source, tuple(sequences), json.loads(columns))

    @classmethod
    def write(
        cls,
        directory: Path,
        fingerprint: str,
        weights: Sequence[float],
        batches: Iterable[pa.RecordBatch],
        notes: Callable[[], Any] = lambda: None,
        content_hash: str | None = None,
    ) -> Store:
        """Write the batches as they come and, once they are all there, a manifest with ``notes()``.

        Each file is written under a temporary name, flushed and renamed, the manifest last: data without a manifest
        count as absent. An exception from ``batches`` or ``notes`` leaves nothing behind.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{fingerprint}.arrow"
        with whole_file(path) as file:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            # The key "taught" is the one that caches of earlier versions have.
            manifest = {"weights": list(weights), "notes": notes(), "taught": content_hash}
        manifest["files"] = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)}}
        write_json(path.with_suffix(".json"), manifest)
        store, _ = cls.open(directory, fingerprint) or (None, None)
        assert store is not None
        return store

    @classmethod
    def open(cls, directory: Path, fingerprint: str) -> tuple[Store, Any] | None:
        """Return a store and its notes, or None where there is none. Raises AlignError where the files are damaged."""
        path = directory / f"{fingerprint}.arrow"
        try:
            manifest = read_json(path.with_suffix(".json"), "delete it")
        except FileNotFoundError:
            return None
        if (why := difference(directory, manifest["files"])) is not None:
            raise Damaged(path, why, "delete it")
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        return cls(batches, fingerprint, manifest["weights"], manifest["taught"]), manifest["notes"]
