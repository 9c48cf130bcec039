"""A model asked outside training: its directory to a ``Subject``, prompts to tokens, samples to rows with rewards."""

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
from align.core.generation.assistant_turn import TurnReader
from align.core.generation.base import Generator, ModelHandle, Request, Sample, Tokens
from align.core.generation.decode import seed_of
from align.core.models.architecture import LOADING_FAULTS, base_of, is_adapter, not_loadable, resolve_model_path
from align.core.models.loading import ends_of, load_tokenizer
from align.core.rewards.base import Answer
from align.core.util.progress import Work
from align.schemas.errors import AlignError
from align.schemas.records import Content, Record
from align.schemas.run import Data, Model, Sampling, Source
from align.schemas.text import visible

if TYPE_CHECKING:
    from align.core.rewards.scorer import Scored, Scorer

CHUNK = 256
"""Prompts that are answered, scored and written before the next ones."""

CONTEXT = 4096
"""Most tokens of prompt and answer for a model whose config does not tell."""

_UNSEEN = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\uffff]")

_WHOLE = TokenizationSettings(
    ("prompt",), scores_prompt=False, reward=False, max_length=0, truncation="error", allow=frozenset()
)


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a record's prompt. scored: what the rewards say of it, where there are any."""

    record: Record
    sample: Sample
    text: str
    scored: Scored | None = None
    best_of: int = 1

    @property
    def completion(self) -> Content:
        """As the prompt is: a string, or messages."""
        return [{"role": "assistant", "content": self.text}] if self.record.conversational else self.text

    def answer(self, group: int) -> Answer:
        """As rewards are asked about it."""
        record, sample = self.record, self.sample
        tokens = tuple(sample.tokens.tolist())
        return Answer(record.prompt or "", self.completion, self.text, tokens, sample.finish, record.columns, group)

    def row(self) -> dict[str, Any]:
        """A line of JSONL: the row's own columns, and over them what was said."""
        row = {**self.record.columns, "prompt": self.record.prompt, "completion": self.completion}
        row |= {"finish": self.sample.finish, "tokens": len(self.sample.tokens)}
        row["logp"] = float(self.sample.logp.sum(dtype=np.float64)) if len(self.sample.logp) else None
        if self.scored is not None:
            row |= {"reward": self.scored.reward, "parts": self.scored.parts, "outcomes": self.scored.outcomes}
        return row | ({"best_of": self.best_of} if self.best_of > 1 else {})

    def line(self) -> str:
        """``row`` as JSON in which nothing can command a terminal."""
        text = json.dumps(self.row(), ensure_ascii=False, default=str)
        return _UNSEEN.sub(lambda found: json.dumps(found.group())[1:-1], text)


class Stream:
    """An answer written as it comes, a whole character at a time and harmless to look at."""

    def __init__(self, turns: TurnReader, opening: str, write: Callable[[str], None]) -> None:
        self._turns, self._opening, self._write = turns, opening, write
        self._tokens: list[int] = []
        self._written = ""

    def on_token(self, token: int) -> None:
        """One more token."""
        self._tokens.append(token)
        text = self._turns.text(self._tokens, self._opening)
        if not text.endswith("\ufffd"):  # else half a character
            self.end(text)

    def end(self, text: str) -> None:
        """What of the answer so far is not written yet."""
        self._write(visible(text[len(self._written) :]))
        self._written = text


@dataclass
class Sampler:
    """An open generator and how it is asked. ``n`` answers to each prompt, all seeds following from ``seed``."""

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
        """Return a ``Stream`` that writes the answer to ``record`` as it is sampled."""
        return Stream(self._turns, self._turns.opening(record), write)

    def sample(
        self, records: Sequence[Record], on_token: Callable[[int], None] | None = None, first: int = 0
    ) -> list[list[Completion]]:
        """Return the answers to each record, in order.

        on_token: called with every token as it comes, if the generator streams.

        first: how many prompts were asked before; an answer depends on its prompt's place, not on how they are cut.
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
    """The answers to all records, scored; with ``choose`` only each prompt's best."""
    with Work("answering prompts", len(records)) as work:
        for start in range(0, len(records), CHUNK):
            groups = sampler.sample(records[start : start + CHUNK], first=start)
            if scorer is not None:
                groups = score(groups, scorer, start)
            for group in groups:
                yield from [best(group)] if choose else group
            work.update(min(len(records), start + CHUNK))


def handle_for(model: Model, context: int | None = None) -> ModelHandle:
    """The model at a path, to be spoken for outside training; its weights are not loaded here.

    context: most tokens of prompt and answer; by default as many as the model's config allows.
    """
    directory = resolve_model_path(model.path, model.revision, model.trust_remote_code)
    base = resolve_model_path(*base_of(directory), model.trust_remote_code) if is_adapter(directory) else directory
    tokenizer = load_tokenizer(model)
    speaks = (base / "generation_config.json").exists()
    try:
        config: Any = AutoConfig.from_pretrained(base, trust_remote_code=model.trust_remote_code)
        config = config.get_text_config()
        settings: Any = GenerationConfig.from_pretrained(base) if speaks else config
    except LOADING_FAULTS as error:
        raise not_loadable(error, base, "model") from error
    told = context or getattr(config, "max_position_embeddings", None) or CONTEXT
    wanted = [tokenizer.eos_token_id, config.eos_token_id, settings.eos_token_id]
    return ModelHandle(directory, model, tokenizer, ends_of(*wanted), int(told))


def tokens_of(record: Record, encoder: Encoder) -> Tokens:
    """A prompt as the model is asked it: text as it is continued, messages through the chat template.

    Raises AlignError for a prompt that no tokens can be made of.
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

    chat: whether strings are a user's messages; None: where there is a chat template, but never a file's rows.
    Raises AlignError for a file that cannot be read, or holds no prompts.
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
    """A prompt that is a string as a user's message."""
    said = record.prompt
    return replace(record, prompt=[{"role": "user", "content": said}]) if isinstance(said, str) else record


def token_ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Ids of tokens given as numbers or as the tokenizer spells them. Raises AlignError for others."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    for token in tokens:
        if token not in vocabulary and not token.isdecimal():
            raise AlignError(f"{token!r} is no token of this model", "give an id, or the token as it is spelt there")
    return [int(token) if token.isdecimal() else vocabulary[token] for token in tokens]


def score(groups: Sequence[Sequence[Completion]], scorer: Scorer, first: int = 0) -> list[list[Completion]]:
    """The same answers with what the rewards say of them."""
    answers = [said.answer(first + group) for group, members in enumerate(groups) for said in members]
    scored: Iterator[Scored] = iter(scorer.score(answers))
    return [[replace(said, scored=next(scored)) for said in members] for members in groups]


def best(group: Sequence[Completion]) -> Completion:
    """The answer with the highest reward, the first among equals; where no reward scored any, the first of all."""
    rewards = [-np.inf if s.scored is None or s.scored.reward is None else s.scored.reward for s in group]
    return replace(group[int(np.argmax(rewards))], best_of=len(group))
