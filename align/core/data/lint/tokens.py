"""Counting tokens with a model's tokenizer; loads transformers."""

from __future__ import annotations

from collections.abc import Sequence

from align.core.data.encode import MAX_CHARACTERS
from align.core.data.lint.text_statistics import Count
from align.core.models.loading import load_tokenizer
from align.schemas.run import Model


def counter(model: str) -> Count:
    """A function from texts to how many tokens each is, without special ones. Raises AlignError where there is none."""
    tokenizer = load_tokenizer(Model(path=model))

    def count(texts: Sequence[str]) -> list[int]:
        ready = [text[:MAX_CHARACTERS].encode("utf-8", "replace").decode() for text in texts]
        encoded = tokenizer(ready, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return [len(ids) for ids in encoded]

    return count
