"""The eval ``perplexity``: how well a model predicts held-out text.

    bits per byte = -log p(text) / (bytes ln 2)        word perplexity = exp(-log p(text) / words)

Bytes and words do not depend on the tokenizer, so models with different ones compare; perplexities of tokens do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from align import AlignError, Eval
from align.evals import Episode, EvalSettings, Item, LogLikelihood, Result, Row, load_rows, sha

WORST = 8.0
"""Bits per byte of a model that knows nothing: text as it is on disk."""
LARGEST_EXPONENT = 700.0
"""exp of more is no float64."""


class Perplexity(Eval):
    """The score is the mean of the documents' bits per byte, at most 8 for each; lower is better.

    A mean over documents is what the gate can pair; lm-eval's figures, which weigh documents by length, stand next to
    it (``word_perplexity``, ``byte_perplexity``, ``bits_per_byte``) and are not capped.
    """

    name: ClassVar[str] = "perplexity"
    score_range: ClassVar[tuple[float, float]] = (0.0, WORST)
    higher_is_better: ClassVar[bool] = False
    has_targets: ClassVar[bool] = False
    likelihoods: ClassVar[bool] = True

    class Config(EvalSettings, Eval.Config):
        """Settings of ``perplexity``."""

        column: str = "text"
        """The column with the text."""
        clusters: str | None = None
        """A column whose equal values mark dependent rows: parts of one book, pages of one site. By default each row is
        a document of its own."""
        documents: Literal["file", "blank_lines", "lines"] = "file"
        """The unit that is a document of a .txt file: the whole file, a block between blank lines, or a line."""

    config: Config

    def load(self) -> Sequence[Item]:
        """Return the documents. Raises AlignError for a row without text."""
        source = self.config.source.model_copy(update={"documents": self.config.documents})
        return [self._item(row, where) for where, row in load_rows(source)]

    def run(self, item: Item) -> Episode:
        """Score the document from its first token to its last."""
        text = item.columns["text"]
        (reply,) = yield [LogLikelihood("", text)]
        size = len(text.encode())
        bits = -reply.logp / (size * math.log(2))
        # Words are counted as lm-eval counts them, empty ones at the ends included.
        words = len(re.split(r"\s+", text))
        metrics = {"nats": -reply.logp, "bytes": size, "words": words, "tokens": reply.tokens}
        return Result(min(max(bits, 0.0), WORST), metrics)

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean over documents, and the perplexities of all text together."""
        nats, size, words, tokens = (sum(row.metrics[name] for row in rows) for name in _COUNTS)
        return {
            "score": self.headline(rows),
            "bits_per_byte": nats / (size * math.log(2)),
            "byte_perplexity": _exp(nats / size),
            "word_perplexity": _exp(nats / words),
            "token_perplexity": _exp(nats / tokens),
        }

    def headline(self, rows: Sequence[Row]) -> float:
        """Return the mean of the documents' bits per byte."""
        return sum(row.score for row in rows) / len(rows)

    def _item(self, row: dict[str, Any], where: str) -> Item:
        text = row.get(self.config.column)
        if not isinstance(text, str) or not text:
            fix = "name the text's column as `column`"
            raise AlignError(f"has no text in {self.config.column!r}", fix, where=where)
        cluster = ""
        if self.config.clusters is not None:
            cluster = str(row.get(self.config.clusters) or "")
            if not cluster:
                raise AlignError(f"has no {self.config.clusters!r}", "the setting `clusters` names it", where=where)
        name = str(row["id"]) if row.get("id") is not None else sha(text)
        return Item(name, cluster=cluster, columns={"text": text})


_COUNTS = ("nats", "bytes", "words", "tokens")


def _exp(value: float) -> float:
    return math.exp(min(value, LARGEST_EXPONENT))
