"""The tokenizer of a model: its chat template, its padding, and whether it fits the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from align.core.model.source import LOADING_FAULTS, base_of, is_adapter, not_loadable, resolve_model_path
from align.core.models.architecture import Head
from align.schemas.errors import AlignError
from align.schemas.run import Model


def load_tokenizer(model: Model, head: Head = "language") -> PreTrainedTokenizerBase:
    """The tokenizer of a model, its chat template replaced if the run file says so, and with a padding token.

    An adapter's own tokenizer goes before its base's. ``choose_pad`` has the rule about padding.
    """
    directory = resolve_model_path(model.path, model.revision, model.trust_remote_code)
    if is_adapter(directory) and not any(directory.glob("tokenizer*")):
        directory = resolve_model_path(*base_of(directory), model.trust_remote_code)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=model.trust_remote_code
        )
    except LOADING_FAULTS as error:
        raise not_loadable(error, directory, "tokenizer") from error
    if model.chat_template is not None:
        try:
            tokenizer.chat_template = Path(model.chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AlignError(f"cannot be read: {error}", where=f"model.chat_template: {model.chat_template}") from error
    choose_pad(tokenizer, head)
    return tokenizer


def choose_pad(tokenizer: PreTrainedTokenizerBase, head: Head) -> None:
    """Give a tokenizer a padding token without adding one to the vocabulary.

    The tokenizer's own, if it has one. Else the first special token whose name says padding, reserved or unused;
    else the unknown token; else, for a language head, the end-of-sequence token: align never tells padding by its
    id, so no end token loses its training by that. transformers reads a reward at the last token that is *not*
    padding, so for a reward head padding may not be the end token: the beginning-of-sequence token comes last
    instead, and an error when that is the end token too.
    """
    end = tokenizer.eos_token
    if tokenizer.pad_token is not None and (head == "language" or tokenizer.pad_token != end):
        return
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    choices = [token for word in ("pad", "reserved", "unused") for token in special if word in token.lower()]
    choices += [token for token in (tokenizer.unk_token, tokenizer.bos_token) if token is not None]
    choices = [token for token in choices if token != end]
    if head == "language":
        choices = [token for token in choices if token != tokenizer.bos_token] + ([end] if end is not None else [])
    if not choices:
        raise AlignError(
            "the tokenizer has no token to pad with but the one that ends sequences, where a reward is read",
            "set pad_token in tokenizer_config.json to a token of the vocabulary that no sequence ends with",
        )
    tokenizer.pad_token = choices[0]


def fit(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Tell the model's config the padding token; raise AlignError when the tokenizer has ids without embedding."""
    embedding: Any = network.get_input_embeddings()
    rows = embedding.weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise AlignError(
            f"the tokenizer has ids up to {largest}, the model has embeddings for {rows} tokens",
            "use the tokenizer that belongs to the model, or resize the model's embeddings and save it",
            where=str(directory),
        )
    network.config.pad_token_id = network.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if network.can_generate():
        network.generation_config.pad_token_id = tokenizer.pad_token_id


def end_tokens(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids that end an answer: the tokenizer's end token, and those of the model's generation settings."""
    return ends_of(getattr(network.generation_config, "eos_token_id", None), tokenizer.eos_token_id)


def ends_of(*told: int | Sequence[int] | None) -> tuple[int, ...]:
    """End tokens out of what tokenizer and configs call so: an id, several, or none."""
    each = [one for ids in told for one in (ids if isinstance(ids, Sequence) else [ids])]
    return tuple(sorted({int(one) for one in each if one is not None}))
