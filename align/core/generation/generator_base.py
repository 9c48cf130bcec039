"""The interface of generators: prompts in, sampled completions with their log-probabilities out.

``TurnReader`` makes the text of a completion from its tokens, whichever generator sampled them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from align.core.data.chat_template import common_length, render_prompt
from align.core.data.encode import Encoder, UnusableRow
from align.core.data.examples import Floats as Floats
from align.core.data.examples import Tokens as Tokens
from align.core.data.template_checks import TokenizationSettings
from align.schemas.base import Config
from align.schemas.records import Record
from align.schemas.run import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.core.models.policy import Policy
    from align.schemas.run import Model


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete ``len(seeds)`` times.

    prompt: token ids [P]. seeds: one for each completion's random numbers, in [0, 2**63). A completion depends only on
    weights, prompt, sampling settings and its seed (beyond rounding), not on the other requests or the number of
    processes.
    """

    prompt: Tokens
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    tokens: the generated ids [T], T >= 1, up to and with the end token or the stop string's last token.
    logp:   log-probability of each [T] under the distribution that it was drawn from (temperature and truncation
            applied; at temperature 0 the model's own). Empty if a generator that is not trainable does not know it.
    finish: ``stop`` (an end token or a stop string) or ``length`` (cut off at max_completion_length).
    """

    tokens: Tokens
    logp: Floats
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """The model that a generator samples from.

    directory: a Hugging Face directory with the weights to begin with. ends: token ids that end a completion. context:
    largest number of tokens in prompt and completion together. policy: the trainer's own network, None outside
    training.
    """

    directory: Path
    model: Model
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    context: int
    policy: Policy | None = None


class CompletionGroups:
    """The completions of all requests as they are finished, in any order; ``on_group`` is called for each whole group.

    For generators: ``add`` each completion, return ``samples``.
    """

    def __init__(
        self, requests: Sequence[Request], on_group: Callable[[int, Sequence[Sample]], None] | None = None
    ) -> None:
        self._groups: list[list[Sample | None]] = [[None] * len(request.seeds) for request in requests]
        self._on_group = on_group

    def add(self, request: int, number: int, sample: Sample) -> None:
        """Note a finished completion. number: its index among the request's seeds."""
        group = self._groups[request]
        group[number] = sample
        whole = [each for each in group if each is not None]
        if self._on_group is not None and len(whole) == len(group):
            self._on_group(request, whole)

    @property
    def samples(self) -> list[list[Sample]]:
        """Return the finished completions of each request, in the order of its seeds."""
        return [[sample for sample in group if sample is not None] for group in self._groups]


class Interrupt(Exception):
    """Raised by ``generate`` when it was asked to stop."""


class Generator:
    """Base class of generators: subclass, set ``name``, write the five methods.

    Call order: ``open`` once, then any number of ``sync``, ``generate`` and ``logp``, then ``close`` (also after a
    failure). Every wait must have a limit; an engine's failure is raised as AlignError with the engine's own message.
    """

    name: ClassVar[str]
    """The name in a run file."""
    shares_weights: ClassVar[bool] = False
    """True if it samples from the trainer's own tensors, so that ``sync`` has nothing to do."""
    trainable: ClassVar[bool] = True
    """True if it can follow a policy in training; False: for judging, best-of-n and evaluation only."""

    @property
    def generates_in_background(self) -> bool:
        """True if ``generate`` may run in a thread while the trainer computes (``rollout.max_staleness``).

        It then has weights of its own, and touches nothing that training uses: random states, numbers of threads.
        """
        return False

    @property
    def engines(self) -> Sequence[Generator]:
        """Return a view of each part that has weights of its own: the sync gate asks every one. Else itself alone."""
        return (self,)

    @property
    def title(self) -> str:
        """The name for messages; a view's says which part it is."""
        return self.name

    decisive: ClassVar[frozenset[str]] = frozenset()
    """Settings that affect completions: a run cannot be resumed with other values of them."""

    class Config(Config):
        """Settings in the run file."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, handle: ModelHandle) -> None:
        """Get ready to sample from a model. Raises AlignError if that cannot work."""
        raise NotImplementedError

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_token: Callable[[int, int, int], None] | None = None,
        on_group: Callable[[int, Sequence[Sample]], None] | None = None,
    ) -> list[list[Sample]]:
        """Return the completions of each request, in the order of its seeds.

        stop: polled at least every few seconds; when it returns True, ``Interrupt`` is raised. on_token: called with
        (request index, completion index, token id) for every token as it is sampled, if the generator streams.
        on_group: called from this thread with (request index, its completions) once for each request, in any order, as
        soon as all completions of the request are finished: rewards begin then. A generator without this argument, or
        that leaves requests out, has the engine call it for them at the end.
        """
        raise NotImplementedError

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """Return the log-probability at temperature 1 of each completion token: [T] for each (prompt, completion)."""
        raise NotImplementedError

    def sync(self, policy: Policy, version: int) -> None:
        """Take over the policy's current weights, and drop caches that the old ones made.

        version: number of optimizer steps that made these weights. Every rank calls this.
        """
        raise NotImplementedError

    @property
    def has_fallback(self) -> bool:
        """True if weights can be sent in another way (``fall_back``); the same on every rank."""
        return False

    def fall_back(self, why: str) -> None:
        """Send weights in another way from now on: on some rank the sync gate found a difference. Every rank calls it.

        why: the gate's message, "" on a rank that found none.
        """

    def close(self) -> None:
        """Release all resources; safe to call twice."""


# The text of an assistant's turn: the part that the chat template has already written, then the sampled tokens.
#
# A template may open a thought in its generation prompt, after the header of the turn. The model continues from there,
# so its tokens hold ``</think>`` and no ``<think>``. A reward that looks for thoughts must see both.

_PROBE = "align-looks-for-where-an-answer-begins"
"""The content of an assistant message that is rendered to find the header of the turn: the text before it."""
_ANY = TokenizationSettings(
    ("prompt",), scores_prompt=False, reward=False, max_length=0, truncation="error", allow=frozenset()
)

_SECTION = re.compile(
    r"<(?P<tag>[A-Za-z_][\w-]*)>|\[(?P<bracket>[A-Z_]+)\]|(?P<harmony><\|channel\|>)|(?P<gemma><\|channel>)"
)
"""The opening of a part of a turn: ``<think>``, Mistral's ``[THINK]``, gpt-oss's and Gemma's channels."""
_EMPTY = re.compile(r"\s*(?:<([A-Za-z_][\w-]*)>\s*</\1>|\[([A-Z_]+)\]\s*\[/\2\]|</[A-Za-z_][\w-]*>)\s*")
"""A part that is closed again and is empty, with which templates turn thinking off."""


class TurnReader:
    """A reader of the assistant's turns under one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: Encoder | None = None) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder or Encoder(tokenizer)
        # Control tokens are hidden. Tags such as <think> and </think> are not, though they often are special tokens:
        # rewards look for them. Tags come in pairs; so do <s> and </s>, which are recognised by their roles instead.
        named = {self._encoder.variables.get(f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
        special = {text: i for text, i in self._encoder.special.items() if text not in named}
        tags = {i for text, i in special.items() if _partner(text) in special}
        self._hidden = frozenset(self._encoder.special.values()) - tags

    def opening(self, record: Record) -> str:
        """Return the part of the completion that the generation prompt for ``record`` has already written, or "".

        An empty thought that the template closes itself is no part of the completion, which begins after it.
        """
        if not record.conversational:
            return ""
        try:
            prompt, before = (render_prompt(record, self._encoder, _ANY, opens=opens) for opens in (True, False))
        except UnusableRow:  # then there are no tokens of this prompt either
            return ""
        try:
            answer = [{"role": "assistant", "content": _PROBE}]
            header = render_prompt(record, self._encoder, _ANY, added=answer).rpartition(_PROBE)[0]
        except UnusableRow:  # some templates take no conversation that ends with the assistant
            header = ""
        return self._visible(opening_of(prompt, before, header))

    def text(self, tokens: Sequence[int], opening: str = "") -> str:
        """Return the text of a turn: the opening, then the sampled tokens, without control tokens."""
        sampled = [i for i in tokens if i not in self._hidden]
        if not opening:
            return self._decode(sampled)
        # Decoded together with the opening: some tokenizers drop a leading space from the first token of a text.
        before = self._encoder.encode(opening).tolist()
        head, whole = self._decode(before), self._decode([*before, *sampled])
        return opening + (whole[len(head) :] if whole.startswith(head) else self._decode(sampled))

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def _visible(self, text: str) -> str:
        """Return a template's text without the control tokens, as ``text`` does for sampled ones."""

        def visible(found: re.Match[str]) -> str:
            return "" if self._encoder.special[found[0]] in self._hidden else found[0]

        return self._encoder.special_token_pattern.sub(visible, text)


def opening_of(prompt: str, before: str, header: str) -> str:
    """Return the part of a rendered prompt that belongs to the completion.

    prompt: with the generation prompt. before: without it. header: the text before the content of an assistant message
    without thoughts; "" if it is not known. Some templates write an empty thought there, so a part that begins both in
    ``header`` and in ``prompt`` belongs to the completion too.
    """
    base, start = common_length(prompt, before), common_length(prompt, header)
    if not header or (start < len(header) and start < base):
        # The header is unknown, or earlier turns are rendered differently with it: take only what ends the prompt.
        found = [match for match in _SECTION.finditer(prompt, base) if not prompt[match.end() :].strip()]
        start = found[0].start() if found else len(prompt)
    elif start < len(header):
        # The two differ within the header, maybe inside a part's name (analysis, final): go back to that part's start.
        for match in _SECTION.finditer(prompt, base):
            cut_in_two = match.start() < start < match.end()
            if cut_in_two or (match.start() <= start and _closing(match) in header[match.start() :]):
                start = match.start()
                break
    answer = prompt[start:]
    while empty := _EMPTY.match(answer):
        answer = answer[empty.end() :]
    return answer if answer.strip() else ""


def _closing(section: re.Match[str]) -> str:
    """Return the closing mark of a part of a turn; for gpt-oss's channels the one that ends the channel's name."""
    if section["tag"]:
        return f"</{section['tag']}>"
    if section["bracket"]:
        return f"[/{section['bracket']}]"
    return "<|message|>" if section["harmony"] else "<channel|>"


def _partner(text: str) -> str:
    """Return the closing tag of an opening one, and the other way round; "" for what is no tag."""
    match = re.fullmatch(r"<(/?)([A-Za-z_][\w-]*)>|\[(/?)(THINK)\]", text)
    if match is None:
        return ""
    slash, name = match[1] or match[3] or "", match[2] or match[4]
    return text.replace(slash + name, name if slash else f"/{name}")
