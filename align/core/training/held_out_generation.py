"""Completions of held-out prompts, sampled and scored while a stage learns from rows.

The loss measures how likely the rows' own answers are. Only sampling shows what the model answers itself, and if that
is right. All ranks take part, and nothing here moves the random numbers of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np

from align.core.data.encode import Encoder
from align.core.data.examples import Example, InMemory, TokenSequence
from align.core.engine import processes
from align.core.engine.steps import MicroBatcher
from align.core.generation.generator_base import Generator
from align.core.inference.sampler import tokens_of
from align.core.models.packing import longest_row
from align.core.online.monitor import score_metrics
from align.core.online.phases import Collector, Prompts, Round, completions_of, length_metrics
from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import RewardContext
from align.core.rewards.scorer import Scorer
from align.core.training.reward_stage import refuse_unusable_rows
from align.core.training.sample_log import sample_rows, write_samples
from align.core.training.stage import LoadedModel
from align.schemas.errors import AlignError
from align.schemas.records import Content, Message, Record
from align.schemas.run import Choice, Rollout, Stage


def prompt_of(row: Record) -> Record | None:
    """Return a row's prompt as a record, its own answer in the column ``completion``; None for a row without a prompt.

    Of a conversation the last assistant turn is the answer; of a preference without a prompt the prompt is what
    chosen and rejected begin with alike.
    """
    prompt, answer = row.prompt, row.completion
    if row.kind == "text" and isinstance(row.text, list):
        last = max((i for i, message in enumerate(row.text) if message.get("role") == "assistant"), default=0)
        prompt, answer = row.text[:last], row.text[last : last + 1]
    elif row.kind == "preference":
        answer = row.chosen
        if prompt is None and isinstance(row.chosen, list) and isinstance(row.rejected, list):
            prompt = _common(row.chosen, row.rejected)
            answer = row.chosen[len(prompt) :]
    if not prompt:
        return None
    columns = {"completion": _text(answer), **row.columns} if answer is not None else row.columns
    kept = {"tools": row.tools, "chat_template_kwargs": row.chat_template_kwargs}
    return Record("prompt", row.source, prompt=prompt, columns=columns, **kept)  # type: ignore[arg-type]


def _common(one: Sequence[Message], other: Sequence[Message]) -> list[Message]:
    common = []
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        common.append(left)
    return common


def _text(content: Content) -> str:
    return content if isinstance(content, str) else str(content[-1].get("content") or "") if content else ""


class HeldOutGeneration:
    """Completes the prompts of held-out sets by the policy and scores them; logs them by step. Collective."""

    def __init__(
        self,
        stage: Stage,
        model: LoadedModel,
        batcher: MicroBatcher,
        sets: Sequence[Sequence[Record]],
        directory: Path,
        accelerator: str,
        forward: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """sets: the rows of each held-out set. directory: of the stage. forward: makes the context of forward passes.

        Raises AlignError where no row has a prompt, a reward could never score one, or no answer fits.
        """
        self._validation, self._directory = stage.validation, directory
        self._sets = [_prompts(rows, model, stage) for rows in sets]
        records = [record for prompts in self._sets for record in prompts.rows.values()]
        if not records:
            fix = "hold out rows with a prompt and an answer, or leave it out"
            raise AlignError("no held-out row has a prompt", fix, where=f"{stage.name}: validation.generate")
        refuse_unusable_rows(records, stage.validation.rewards)
        place = RewardContext(
            rank=batcher.rank,
            world_size=batcher.world_size,
            seed=stage.seed,
            accelerator="cuda" if accelerator == "cuda" else "cpu",
            home=directory,
        )
        longest = max(int(prompts.examples.lengths.max()) for prompts in self._sets if len(prompts))
        context = longest + stage.validation.sampling.max_completion_length
        limit = longest_row(model.policy, context)
        if context > limit:
            most = max(1, limit - longest)
            raise AlignError(
                f"is {stage.validation.sampling.max_completion_length}: with the longest held-out prompt that is "
                f"{context} tokens, and the model has {limit} positions",
                f"take at most {most}",
                where=f"{stage.name}: validation.sampling.max_completion_length",
            )
        generator: Generator = registry.build("generator", Choice(type="local"))
        self._collector = Collector(
            Rollout.model_construct(sampling=stage.validation.sampling, rewards=stage.validation.rewards),
            generator,
            model.handle(stage, context),
            Scorer(stage.validation.rewards, place),
            None,
            None,
            None,
            batcher,
            stage.seed,
            forward,
            stop=lambda: False,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the rewards in the block, and close them whatever happens."""
        try:
            self._collector.scorer.open()
            self._collector.generator.open(self._collector.handle)
            yield
        finally:
            self._collector.generator.close()
            self._collector.scorer.close()

    def evaluate(self, index: int, step: int) -> dict[str, float]:
        """Return the metrics of the completions to a held-out set's prompts, and log them."""
        prompts = self._sets[index]
        if not len(prompts):
            return {}
        indices = range(len(prompts))
        wanted = Round(prompts, indices, indices, 1, self._validation.sampling)
        sampled = self._collector.sample(wanted, interruptible=False)
        completions = completions_of(sampled)
        scored = self._collector.scorer.combine([each.scores for each in completions], update=False)
        if processes.rank() == 0:
            name = f"held-out-{step:06d}" if len(self._sets) == 1 else f"held-out-{index + 1}-{step:06d}"
            write_samples(self._directory / "samples" / f"{name}.parquet", sample_rows(sampled, scored))
        return score_metrics(scored, [None] * len(scored)) | length_metrics(completions)


def _prompts(rows: Sequence[Record], model: LoadedModel, stage: Stage) -> Prompts:
    """Return the prompts of a held-out set: the first ones, in the order of the rows."""
    encoder = Encoder(model.tokenizer)
    records = [record for row in rows if (record := prompt_of(row)) is not None][: stage.validation.max_prompts]
    examples = []
    for record in records:
        tokens = tokens_of(record, encoder)
        sequence = TokenSequence("prompt", tokens, np.zeros(len(tokens), bool))
        examples.append(Example(record.source, (sequence,), {}))
    return Prompts(InMemory(examples), {record.source: record for record in records})
