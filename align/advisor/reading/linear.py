"""Linear models over hashed n-grams, and the file of their weights.

    score_k(x) = b_k + sum_j w_jk x_j,    x_j = (1 + ln n_j) idf_j / |x|,    n_j times feature j

idf is ``ln((1 + N) / (1 + N_j)) + 1`` over the N training texts, and 0 for a feature of a single one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.advisor.reading.features import Hashes

Array = np.ndarray[Any, np.dtype[np.float32]]
Row = tuple[np.ndarray[Any, np.dtype[np.int64]], Array]
"""A text as buckets and their values, of length 1 together."""

FILE = Path(__file__).with_name("weights.npz")
CHUNK = 1 << 15
"""Features scored at a time: bounds the memory that a long text takes."""


@dataclass(frozen=True, slots=True)
class LinearHeads:
    """Linear models that share features: one score for each name.

    idf: (buckets,). weights: int8 (buckets, names), times ``scale`` (names,). bias: (names,).
    """

    names: tuple[str, ...]
    idf: Array
    weights: np.ndarray[Any, np.dtype[np.int8]]
    scale: Array
    bias: Array

    def scores(self, texts: Sequence[Hashes]) -> Array:
        """Return the score of each text under each name: (texts, names). A positive one supports it."""
        scores = np.tile(self.bias, (len(texts), 1))
        for at, hashes in enumerate(texts):
            buckets, values = row(hashes, self.idf)
            for start in range(0, len(buckets), CHUNK):
                weights = self.weights[buckets[start : start + CHUNK]].astype(np.float32)
                weights *= values[start : start + CHUNK, None]
                scores[at] += np.add.reduce(weights, axis=0) * self.scale
        return scores


def row(hashes: Hashes, idf: Array) -> Row:
    """Return the buckets of a text's features and their values."""
    bits = len(idf).bit_length() - 1
    buckets, counts = np.unique(hashes >> np.uint32(32 - bits), return_counts=True)
    values = (1 + np.log(counts)).astype(np.float32) * idf[buckets]
    known = values > 0
    buckets, values = buckets[known].astype(np.int64), values[known]
    return buckets, values / np.float32(max(float(np.sqrt(np.square(values).sum())), 1e-9))


@dataclass(frozen=True, slots=True)
class Weights:
    """The learned weights: heads on the whole text, on sentences and on numbers, and what combines them.

    combined: arrays by name (see ``candidates`` and ``answers``). about: figures and hashes of the training.
    hash: sha256 of the file.
    """

    text: LinearHeads
    sentence: LinearHeads
    number: LinearHeads
    combined: dict[str, Array]
    about: dict[str, Any]
    hash: str


@functools.cache
def weights() -> Weights:
    """Return the shipped weights; read at the first call."""
    return load(FILE)


def load(file: Path) -> Weights:
    """Return the weights of a file."""
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    about = json.loads(bytes(arrays.pop("about")).decode())

    def heads(name: str) -> LinearHeads:
        idf, values, scale, bias = (arrays.pop(f"{name}.{part}") for part in ("idf", "weights", "scale", "bias"))
        return LinearHeads(tuple(about["names"][name]), idf.astype(np.float32), values, scale, bias)

    text, sentence, number = heads("text"), heads("sentence"), heads("number")
    hashed = hashlib.sha256(file.read_bytes()).hexdigest()
    return Weights(text, sentence, number, arrays, about, f"sha256:{hashed}")


def save(file: Path, heads: dict[str, LinearHeads], combined: dict[str, Array], about: dict[str, Any]) -> None:
    """Write weights; the same weights give the same bytes."""
    arrays: dict[str, Any] = {}
    for name, head in heads.items():
        parts = {"idf": head.idf.astype(np.float16), "weights": head.weights, "scale": head.scale, "bias": head.bias}
        arrays |= {f"{name}.{part}": value for part, value in parts.items()}
    about = about | {"names": {name: list(head.names) for name, head in heads.items()}}
    arrays["about"] = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    arrays |= combined
    np.savez_compressed(file, **arrays)
