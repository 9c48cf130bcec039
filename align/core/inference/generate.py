"""The likeliest answers of a model to a list of conversations, by the loop that rollouts are sampled with."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.core.data.encode import Encoder
from align.core.generation.assistant_turn import Turns
from align.core.generation.base import Request
from align.core.generation.decode import Voice
from align.core.inference.sampler import CONTEXT, tokens_of
from align.core.models.loading import end_tokens
from align.schemas.records import Content, Record
from align.schemas.run import Sampling


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Content],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[str]:
    """Greedy answers, in the order of the prompts: text as it is continued, conversations through the chat template.

    Each is the text of its turn (``Turns.text``). Of the model's own generation settings only the tokens that end a
    turn are used.
    """
    encoder = Encoder(tokenizer)
    turns = Turns(tokenizer, encoder)
    records = [Record("prompt", f"prompt {i}", prompt=prompt) for i, prompt in enumerate(prompts, 1)]
    asked = [tokens_of(record, encoder) for record in records]
    ends = end_tokens(model, tokenizer)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", CONTEXT)
    tokens = batch_size * (max(map(len, asked), default=0) + max_new_tokens)
    said = Voice(model, tokenizer, ends, context, tokens).answer(
        [Request(tokens_P, (0,)) for tokens_P in asked], Sampling(max_completion_length=max_new_tokens, temperature=0)
    )
    return [
        turns.text(sample.tokens.tolist(), turns.opening(record))
        for record, (sample,) in zip(records, said, strict=True)
    ]
