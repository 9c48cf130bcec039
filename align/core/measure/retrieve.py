"""Passages for a question out of somebody's own documents: BM25, the baseline that retrieval is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.core.measure.agreement import words

PASSAGE = 180
"""Words of a passage; neighbours overlap by a third, so that a sentence at a border is whole in one of them."""


def passages(documents: Sequence[str]) -> list[str]:
    """Documents cut into pieces of ``PASSAGE`` words; where writing has no spaces, two characters count as a word."""
    found: list[str] = []
    for document in documents:
        pieces = document.split()
        if len(pieces) * 12 < len(document):  # hardly any spaces
            pieces = [document[i : i + 2] for i in range(0, len(document), 2)]
            joint = ""
        else:
            joint = " "
        step = PASSAGE * 2 // 3
        found += [joint.join(pieces[i : i + PASSAGE]) for i in range(0, max(1, len(pieces) - PASSAGE // 3), step)]
    return [text for text in found if text]


class Retriever:
    """BM25 (Robertson and Zaragoza 2009; Lucene's form, k1 1.5, b 0.75) over passages, by the library ``bm25s``."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._texts = [text for text in texts if words(text)]
        if self._texts:
            self._index: Any = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
            self._index.index([words(text) for text in self._texts], show_progress=False)

    def find(self, question: str, k: int) -> list[str]:
        """The ``k`` best passages, best first; fewer where fewer share a word with the question."""
        asked = words(question)
        if not asked or not self._texts:
            return []
        places, scores = self._index.retrieve([asked], k=min(k, len(self._texts)), show_progress=False)
        return [self._texts[i] for i, score in zip(places[0].tolist(), scores[0].tolist(), strict=True) if score > 0]
