"""A tiny real model and tokenizer, made here: nothing is downloaded, and the same seed gives the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD, START = "<|bos|>", "<|im_end|>", "<|pad|>", "<|im_start|>"

CHAT_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TEXT = """\
The cat sat on the mat and the dog sat on the cat. What is the sum of two and three? The sum of two and three is five.
Write one sentence about the sea. The sea is wide and the sea is blue, and the wind over the sea is cold.
user assistant system. Is the answer right? Yes, the answer is right. No, that answer is wrong. \
Thank you for the answer.
"""

SMALL: dict[str, Any] = {"vocab_size": 320, "eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 1}
"""Configuration of a model with the tiny tokenizer."""
LLAMA: dict[str, Any] = SMALL | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}
"""The same of a kind of Llama, with grouped heads."""


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE, add_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens whose bos, eos (which ends a turn) and pad are three different tokens.

    add_bos: put bos before every encoded text, as Llama's tokenizer does; the default adds nothing, as Qwen's.
    """
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXT.splitlines(keepends=True),
        BpeTrainer(
            vocab_size=320,
            special_tokens=[PAD, BOS, START, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A Llama of two layers in float32 whose weights depend only on ``seed``; overrides go to its config.

    The caller's random state is left as it was. The model is in evaluation mode.
    """
    settings = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,  # wide enough for attention and head to matter in comparisons
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | overrides)))
    return model.float().eval()


def save_tiny(directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """The tiny model and tokenizer as an ordinary Hugging Face directory."""
    tiny_model(seed, **overrides).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
