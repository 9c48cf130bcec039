"""The likeliest answers of a model to a list of conversations, by ``transformers``' own generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from align.schemas.records import Content


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Content],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[str]:
    """Greedy answers, in the order of the prompts: text as it is continued, conversations through the chat template.

    Decoded without special tokens. The model's own generation settings are not used, save where it ends a turn.
    """
    asked = [_tokens(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i]))
    answers = [""] * len(asked)
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=_ends(model, tokenizer)
    )
    was_training = model.training
    model.train(False)
    speak: Any = model.generate
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(asked[i]) for i in batch)
        # Padded on the left, so that every answer starts in the same column.
        ids = torch.tensor([[pad] * (width - len(asked[i])) + asked[i] for i in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(asked[i])) + [1] * len(asked[i]) for i in batch], device=model.device)
        with torch.inference_mode():
            out = speak(input_ids=ids, attention_mask=mask, generation_config=settings)
        texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        for i, text in zip(batch, texts, strict=True):
            answers[i] = text
    model.train(was_training)
    return answers


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: Content) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    told = getattr(model.generation_config, "eos_token_id", None)
    ends = told if isinstance(told, list) else [told]
    return sorted({int(end) for end in [*ends, tokenizer.eos_token_id] if end is not None})
