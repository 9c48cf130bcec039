"""Sampling outside training: a model's directory to a ``ModelHandle``, prompts to tokens, samples to scored rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from align.core.algorithm import contract
from align.core.data.chat_template import tokenize_record
from align.core.data.encode import Encoder, UnusableRow
from align.core.data.mixture import load_records
from align.core.data.template_checks import CATALOGUE, TokenizationSettings
from align.core.generation.decode import seed_of
from align.core.generation.generator_base import Generator, ModelHandle, Request, Sample, Tokens, TurnReader
from align.core.models.architecture import LOADING_FAULTS, base_of, is_adapter, not_loadable, resolve_model_path
from align.core.models.load_and_export import ends_of, load_tokenizer
from align.core.rewards.reward_base import Answer
from align.core.util.progress import Work
from align.schemas.errors import AlignError
from align.schemas.records import Content, Record
from align.schemas.run import Data, Model, Sampling, Source
from align.schemas.text import visible

if TYPE_CHECKING:
    from align.core.rewards.scorer import Scored, Scorer

CHUNK = 256
"""Prompts that are sampled, scored and written before the next ones."""

CONTEXT = 4096
"""Largest number of tokens in prompt and completion for a model whose config has no limit."""

_UNSEEN = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\uffff]")

_WHOLE = TokenizationSettings(
    ("prompt",), scores_prompt=False, reward=False, max_length=0, truncation="error", allow=frozenset()
)


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a record's prompt.

    text: of its turn, see ``TurnReader.text``. scored: its rewards, None without any. best_of: number of completions
    that it was chosen from.
    """

    record: Record
    sample: Sample
    text: str
    scored: Scored | None = None
    best_of: int = 1

    @property
    def completion(self) -> Content:
        """The text in the form of the prompt: a string, or messages."""
        return [{"role": "assistant", "content": self.text}] if self.record.conversational else self.text

    def answer(self, group: int) -> Answer:
        """Return the completion as rewards take it. group: the same number for all completions of a prompt."""
        record, sample = self.record, self.sample
        tokens = tuple(sample.tokens.tolist())
        return Answer(record.prompt or "", self.completion, self.text, tokens, sample.finish, record.columns, group)

    def row(self) -> dict[str, Any]:
        """Return the values of a line of JSONL: the row's own columns, overwritten by the completion's."""
        row = {**self.record.columns, "prompt": self.record.prompt, "completion": self.completion}
        row |= {"finish": self.sample.finish, "tokens": len(self.sample.tokens)}
        row["logp"] = float(self.sample.logp.sum(dtype=np.float64)) if len(self.sample.logp) else None
        if self.scored is not None:
            row |= {"reward": self.scored.reward, "parts": self.scored.parts, "outcomes": self.scored.outcomes}
        if self.best_of > 1:
            row["best_of"] = self.best_of
        return row

    def line(self) -> str:
        """Return ``row`` as JSON; characters that could control a terminal or hide text are escaped."""
        text = json.dumps(self.row(), ensure_ascii=False, default=str)
        return _UNSEEN.sub(lambda found: json.dumps(found.group())[1:-1], text)


class Stream:
    """A writer of a completion as it is sampled: whole characters only, with control characters made visible."""

    def __init__(self, turns: TurnReader, opening: str, write: Callable[[str], None]) -> None:
        self._turns, self._opening, self._write = turns, opening, write
        self._tokens: list[int] = []
        self._written = ""

    def on_token(self, token: int) -> None:
        """Take one more token, and write the text that it completes."""
        self._tokens.append(token)
        text = self._turns.text(self._tokens, self._opening)
        if not text.endswith("\ufffd"):  # U+FFFD: the bytes of the last character are not complete yet
            self.end(text)

    def end(self, text: str) -> None:
        """Write the part of ``text``, the completion so far, that has not been written yet."""
        self._write(visible(text[len(self._written) :]))
        self._written = text


@dataclass
class Sampler:
    """An open generator with its settings: ``n`` completions of each prompt, with seeds that follow from ``seed``."""

    generator: Generator
    handle: ModelHandle
    sampling: Sampling
    n: int = 1
    seed: int = 0
    _encoder: Encoder = field(init=False)
    _turns: TurnReader = field(init=False)

    def __post_init__(self) -> None:
        self._encoder = Encoder(self.handle.tokenizer)
        self._turns = TurnReader(self.handle.tokenizer, self._encoder)

    def stream(self, record: Record, write: Callable[[str], None]) -> Stream:
        """Return a ``Stream`` that writes the completion of ``record`` as it is sampled."""
        return Stream(self._turns, self._turns.opening(record), write)

    def sample(
        self, records: Sequence[Record], on_token: Callable[[int], None] | None = None, first: int = 0
    ) -> list[list[Completion]]:
        """Return the ``n`` completions of each record, in order.

        on_token: called with every token as it is sampled, if the generator streams. first: number of prompts sampled
        before. A completion's seed depends on its prompt's place among all, so it does not matter how they are divided
        over calls.
        """
        tokens = [tokens_of(record, self._encoder) for record in records]
        seeds = [tuple(seed_of(self.seed, first + i, k) for k in range(self.n)) for i in range(len(records))]
        requests = [Request(prompt, own) for prompt, own in zip(tokens, seeds, strict=True)]
        if on_token is None:
            groups = contract.generate(self.generator, requests, self.sampling)
        else:

            def pass_on(_request: int, _sample: int, token: int) -> None:
                on_token(token)

            groups = contract.generate(self.generator, requests, self.sampling, on_token=pass_on)
        return [
            self._read(record, self._turns.opening(record), group)
            for record, group in zip(records, groups, strict=True)
        ]

    def _read(self, record: Record, opening: str, group: Sequence[Sample]) -> list[Completion]:
        return [Completion(record, sample, self._turns.text(sample.tokens.tolist(), opening)) for sample in group]


def answers(
    sampler: Sampler, records: Sequence[Record], scorer: Scorer | None = None, choose: bool = False
) -> Iterator[Completion]:
    """Yield the completions of all records, scored by ``scorer``; with ``choose`` only the best of each prompt."""
    with Work("answering prompts", len(records)) as work:
        for start in range(0, len(records), CHUNK):
            groups = sampler.sample(records[start : start + CHUNK], first=start)
            if scorer is not None:
                groups = score(groups, scorer, start)
            for group in groups:
                if choose:
                    yield best(group)
                else:
                    yield from group
            work.update(min(len(records), start + CHUNK))


def handle_for(model: Model, context: int | None = None) -> ModelHandle:
    """Return the handle of a model to sample from outside training; its weights are not loaded here.

    context: largest number of tokens in prompt and completion; None: as many as the model's config allows.
    Raises AlignError if tokenizer or config cannot be loaded.
    """
    directory = resolve_model_path(model.path, model.revision, model.trust_remote_code)
    base = resolve_model_path(*base_of(directory), model.trust_remote_code) if is_adapter(directory) else directory
    tokenizer = load_tokenizer(model)
    has_settings = (base / "generation_config.json").exists()
    try:
        config: Any = AutoConfig.from_pretrained(base, trust_remote_code=model.trust_remote_code)
        config = config.get_text_config()
        settings: Any = GenerationConfig.from_pretrained(base) if has_settings else config
    except LOADING_FAULTS as error:
        raise not_loadable(error, base, "model") from error
    limit = context or getattr(config, "max_position_embeddings", None) or CONTEXT
    # An end token may be in one of the three only: chat models often have their end of turn in generation_config.json.
    ends = [tokenizer.eos_token_id, config.eos_token_id, settings.eos_token_id]
    return ModelHandle(directory, model, tokenizer, ends_of(*ends), int(limit))


def tokens_of(record: Record, encoder: Encoder) -> Tokens:
    """Return a prompt's tokens [P]: text as it is, messages through the chat template with its generation prompt.

    Raises AlignError for a prompt that cannot be tokenized.
    """
    try:
        ((draft,),), _ = tokenize_record(record, encoder, _WHOLE)
    except UnusableRow as refusal:
        entry = CATALOGUE[refusal.finding]
        raise AlignError(f"{entry.what}: {refusal.detail}", entry.fix, where=record.source) from None
    return draft.ids


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> str:
    """Return only the sampled text, without special tokens; ``TurnReader.text`` gives a turn with its opening."""
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def prompts_for(
    prompts: str | Path | Sequence[Content], tokenizer: PreTrainedTokenizerBase, chat: bool | None
) -> list[Record]:
    """Return records of one prompt, of several, or of the rows of a file or directory, which is a Path.

    chat: True takes strings as a user's messages, False continues them; None: messages if there is a chat template,
    but rows of a file are continued. Raises AlignError for a file that cannot be read, or has no prompts.
    """
    if isinstance(prompts, Path):
        records = load_records(Data(train=[Source(path=str(prompts))]), ("prompt",)).train
        return [as_message(record) for record in records] if chat else records
    as_user = tokenizer.chat_template is not None if chat is None else chat
    if isinstance(prompts, str):
        given = [Record("prompt", "the prompt", prompt=prompts)]
    else:
        given = [Record("prompt", f"prompt {number}", prompt=each) for number, each in enumerate(prompts, 1)]
    return [as_message(record) for record in given] if as_user else given


def as_message(record: Record) -> Record:
    """Return a record whose prompt is a string with it as a user's message; others unchanged."""
    if isinstance(record.prompt, str):
        return replace(record, prompt=[{"role": "user", "content": record.prompt}])
    return record


def token_ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Return the ids of tokens, each given as a number or as in the vocabulary. Raises AlignError for unknown ones."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    for token in tokens:
        if token not in vocabulary and not token.isdecimal():
            raise AlignError(f"{token!r} is no token of this model", "give an id, or the token as in its vocabulary")
    return [int(token) if token.isdecimal() else vocabulary[token] for token in tokens]


def score(groups: Sequence[Sequence[Completion]], scorer: Scorer, first: int = 0) -> list[list[Completion]]:
    """Return the same completions with their rewards. first: number of the first group."""
    answers = [each.answer(number) for number, group in enumerate(groups, first) for each in group]
    scored: Iterator[Scored] = iter(scorer.score(answers))
    return [[replace(each, scored=next(scored)) for each in group] for group in groups]


def best(group: Sequence[Completion]) -> Completion:
    """Return the completion with the highest reward, of equal ones the first; the first of all if none was scored."""
    rewards = [-np.inf if s.scored is None or s.scored.reward is None else s.scored.reward for s in group]
    return replace(group[int(np.argmax(rewards))], best_of=len(group))
