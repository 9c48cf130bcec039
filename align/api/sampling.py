"""Sampling from a model outside training: prompts in, completions out, scored by rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.api.input_types import RewardLike, as_reward, plugin_choice, sampling_settings
from align.core.generation.generator_base import ModelHandle
from align.core.inference.sampler import Completion, Sampler, answers, handle_for, prompts_for, token_ids
from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import RewardContext
from align.core.rewards.scorer import Scorer
from align.core.util.progress import working
from align.core.util.system_errors import explaining
from align.schemas.errors import AlignError
from align.schemas.records import Content, Record
from align.schemas.run import Choice, Model, Sampling

Prompts = str | Path | Sequence[Content]
"""One prompt, a file whose rows have a ``prompt`` (a Path), or several prompts: strings or lists of messages."""


@explaining()
def sample(
    model: str | Path,
    prompts: Prompts,
    *,
    n: int = 1,
    best_of: int | None = None,
    rewards: Sequence[RewardLike] = (),
    chat: bool | None = None,
    context: int | None = None,
    generator: str | Choice = "local",
    seed: int = 0,
    trust_remote_code: bool = False,
    stop_tokens: Sequence[int | str] = (),
    **sampling: Any,
) -> list[Completion]:
    """Return a model's completions of prompts, in the prompts' order, ``n`` of each.

    model: a directory or hub id; an adapter is one too. prompts: one, several, or a Path to a file of them. best_of: of
    so many completions only the one with the best reward. rewards: what scores each completion, summed by their weight.
    chat: strings are a user's message, or are continued; None: messages where the model has a chat template, but rows
    of a file are continued. context: most tokens of prompt and completion; None: the model's. seed: all draws follow
    from it, and a completion does not depend on the other prompts. stop_tokens: ids, or tokens as the tokenizer spells
    them. sampling: settings of ``sampling`` in a run file, such as ``temperature=0``.

    Imports torch. Raises AlignError for a model, a file, a reward or a setting that does not work.
    """
    request = SampleRequest(
        str(model),
        prompts,
        sampling_settings(sampling),
        n=n,
        best_of=best_of,
        rewards=rewards,
        chat=chat,
        context=context,
        generator=generator,
        seed=seed,
        trust_remote_code=trust_remote_code,
        stop_tokens=stop_tokens,
    )
    with request.opened() as session:
        return list(session.completions())


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Arguments of ``align.sample``, for callers that want completions one by one."""

    model: str
    prompts: Prompts
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    best_of: int | None = None
    rewards: Sequence[RewardLike] = ()
    chat: bool | None = None
    context: int | None = None
    generator: str | Choice = "local"
    seed: int = 0
    trust_remote_code: bool = False
    stop_tokens: Sequence[int | str] = ()

    @contextmanager
    def opened(self) -> Iterator[SampleSession]:
        """Load the model and open the rewards; both are closed at the end. Raises as ``align.sample`` does."""
        if self.n < 1 or (self.best_of is not None and self.best_of < 1):
            raise AlignError("n and best_of are at least 1", where="sample")
        if self.best_of is not None and (self.n != 1 or not self.rewards):
            raise AlignError("best_of takes the place of n, and needs a reward", where="sample")
        handle = handle_for(Model(path=self.model, trust_remote_code=self.trust_remote_code), self.context)
        stops = token_ids(handle.tokenizer, [str(token) for token in self.stop_tokens])
        sampling = self.sampling.model_copy(update={"stop_token_ids": [*self.sampling.stop_token_ids, *stops]})
        records = prompts_for(self.prompts, handle.tokenizer, self.chat)
        rewards = [as_reward(reward) for reward in self.rewards]
        generator = plugin_choice(self.generator)
        with ExitStack() as opened:
            # Rewards first: their errors are reported before the weights are loaded.
            scorer = opened.enter_context(Scorer(rewards, RewardContext(seed=self.seed))) if rewards else None
            number = self.best_of or self.n
            sampler = opened.enter_context(open_sampler(handle, sampling, generator, n=number, seed=self.seed))
            yield SampleSession(sampler, records, scorer, choose=self.best_of is not None)


@contextmanager
def open_sampler(handle: ModelHandle, sampling: Sampling, generator: Choice, *, n: int, seed: int) -> Iterator[Sampler]:
    """Load a model's weights into a generator, which is closed at the end. n: completions of each prompt."""
    backend = registry.build("generator", generator)
    try:
        with working(f"loading the model {handle.model.path}"):
            backend.open(handle)
        yield Sampler(backend, handle, sampling, n, seed)
    finally:
        backend.close()


@dataclass(frozen=True, slots=True)
class SampleSession:
    """An open model with its prompts. choose: of each prompt's completions only the best is kept."""

    sampler: Sampler
    records: Sequence[Record]
    scorer: Scorer | None
    choose: bool

    def completions(self) -> Iterator[Completion]:
        """Yield the completions, in the prompts' order; some hundred prompts are sampled at once."""
        return answers(self.sampler, self.records, self.scorer, choose=self.choose)

    def stream(self, write: Callable[[str], None]) -> Completion:
        """Return one completion of the only prompt; its text is written as it is sampled.

        With rewards it is written at its end, since only the best of several is shown.
        """
        (record,) = self.records
        stream = self.sampler.stream(record, write)
        if self.scorer is None:
            ((completion,),) = self.sampler.sample([record], on_token=stream.on_token)
        else:
            (completion,) = answers(self.sampler, [record], self.scorer, choose=True)
        stream.end(completion.text)
        return completion
