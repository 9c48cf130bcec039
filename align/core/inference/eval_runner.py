"""The runner of an eval: many items under way at once, whose queries share batches; each finished item is a row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from align.core.evaluation.eval import (
    Episode,
    Eval,
    Generate,
    Item,
    LogLikelihood,
    Query,
    Reply,
    Result,
    Row,
    by_hash,
    sha,
)
from align.core.evaluation.store import RowSink
from align.core.inference.eval_models import BadQuery, EvalModel
from align.core.util.error_line import error_line
from align.core.util.progress import Work
from align.schemas.errors import AlignError, Problem

WINDOW = 128
"""Items under way at once; a batch holds the queries of all of them."""
MOST_TURNS = 1000
"""Most rounds of queries of one item: an eval whose loop never ends is stopped."""


def choose_items(items: Sequence[Item], n: int | None) -> list[Item]:
    """Return ``n`` items (None: all) in the order of their ids' hashes, so that fewer are a part of more."""
    by_id = {item.id: item for item in items}
    return [by_id[each] for each in by_hash(by_id)[:n]]


def seed_of(seed: int, name: str, item: str, sample: int, turn: int, place: int) -> int:
    """Return the seed of one draw, in [0, 2**63); it does not depend on which other items are measured."""
    text = f"{seed}/{name}/{item}/{sample}/{turn}/{place}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


@dataclass(slots=True)
class _Running:
    """One item and sample under way. waiting: its queries without a reply yet. queries, replies: those before."""

    item: Item
    sample: int
    episode: Episode
    waiting: Sequence[Query] = ()
    queries: list[Query] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    turn: int = 0
    first: str = ""
    """Hash of the first queries: what two runs must have in common to be compared."""


@dataclass(slots=True)
class EvalRunner:
    """Measures one eval.

    name: the eval's in its rows. models: ``model``, and ``judge`` for evals that need one. seed: the suite's. window:
    items under way at once.
    """

    eval: Eval
    name: str
    models: Mapping[str, EvalModel]
    seed: int = 0
    window: int = WINDOW

    def __post_init__(self) -> None:
        judge = self.models.get("judge")
        self.eval.judge_likelihoods = judge is not None and judge.likelihoods

    def measure(self, items: Sequence[Item], samples: int, store: RowSink) -> list[Row]:
        """Measure what the store lacks, and return the rows of all items in their order.

        Rows are appended as items finish, so an interrupted run loses no more than the items under way. Raises
        AlignError where the eval breaks its contract, and where a model gives a likelihood that is not finite.
        """
        wanted = [(item, sample) for item in items for sample in range(samples)]
        left = iter([each for each in wanted if self._key(*each) not in store.rows])
        done = sum(self._key(*each) in store.rows for each in wanted)
        running: list[_Running] = []
        with Work(f"measuring {self.name}", len(wanted)) as work:
            work.update(done)
            while True:
                running += [self._start(*each) for each in islice(left, self.window - len(running))]
                if not running:
                    break
                finished = self._advance(running)
                store.append([row for _, row in finished])
                over = {id(each) for each, _ in finished}
                running = [each for each in running if id(each) not in over]
                done += len(finished)
                work.update(done)
        return [store.rows[self._key(*each)] for each in wanted]

    def _key(self, item: Item, sample: int) -> tuple[str, str, int]:
        return self.name, item.id, sample

    def _start(self, item: Item, sample: int) -> _Running:
        return _Running(item, sample, self.eval.run(item))

    def _advance(self, running: Sequence[_Running]) -> list[tuple[_Running, Row]]:
        """Send all waiting queries to their models and the replies to the episodes; return those that ended."""
        replies = self._replies(running)
        finished = []
        for each in running:
            own = list(islice(replies, len(each.waiting)))
            result = self._send(each, own)
            if result is not None:
                finished.append((each, self._row(each, result)))
        return finished

    def _send(self, each: _Running, replies: list[Reply]) -> Result | None:
        """Send replies to an episode, and take its next queries; return its result where it has ended."""
        each.queries += each.waiting
        each.replies += replies
        try:
            queries = each.episode.send(replies) if each.turn else next(each.episode)
        except StopIteration as end:
            return self._checked(end.value, each.item)
        except AlignError:
            raise
        except Exception as error:
            raise self._breach(each.item, f"failed: {error_line(error)}") from error
        if not isinstance(queries, list | tuple) or not all(isinstance(query, Query) for query in queries):
            raise self._breach(each.item, "yielded something else than a list of queries")
        each.turn += 1
        if each.turn == 1:
            each.first = sha([_text_of(query) for query in queries])
        if each.turn > MOST_TURNS:
            raise self._breach(each.item, f"yielded queries more than {MOST_TURNS} times")
        each.waiting = queries
        return None

    def _replies(self, running: Sequence[_Running]) -> Iterator[Reply]:
        """Return the replies to all waiting queries, in the order of the episodes and of their queries."""
        waiting = [(each, place, query) for each in running for place, query in enumerate(each.waiting)]
        replies: list[Reply | None] = [None] * len(waiting)
        for by, model in self.models.items():
            drawn = [n for n, (_, _, q) in enumerate(waiting) if q.by == by and isinstance(q, Generate)]
            scored = [n for n, (_, _, q) in enumerate(waiting) if q.by == by and isinstance(q, LogLikelihood)]
            if drawn:
                with self._naming([waiting[n][0].item for n in drawn]):
                    found = model.generate([self._seeded(*waiting[n]) for n in drawn])
                for n, reply in zip(drawn, found, strict=True):
                    replies[n] = self._checked_text(reply, waiting[n][0].item)
            if scored:
                queries = [query for n in scored if isinstance(query := waiting[n][2], LogLikelihood)]
                with self._naming([waiting[n][0].item for n in scored]):
                    found = model.loglikelihood(queries)
                for n, reply in zip(scored, found, strict=True):
                    replies[n] = self._checked_logp(reply, waiting[n][0].item)
        if None in replies:
            number = replies.index(None)
            each, _, query = waiting[number]
            raise self._breach(each.item, f"has a query for {query.by!r}, and there is none: name a judge in the suite")
        return iter([reply for reply in replies if reply is not None])

    @contextmanager
    def _naming(self, items: Sequence[Item]) -> Iterator[None]:
        """Name the item in the error of a query that its model cannot take."""
        try:
            yield
        except BadQuery as error:
            where = f"eval {self.name}: item {items[error.number].id!r}"
            raise AlignError.gather(Problem(where, each.what, each.fix) for each in error.problems) from error

    def _seeded(self, each: _Running, place: int, query: Query) -> tuple[Generate, int]:
        assert isinstance(query, Generate)
        return query, seed_of(self.seed, self.name, each.item.id, each.sample, each.turn, place)

    def _checked_text(self, reply: Reply, item: Item) -> Reply:
        if not isinstance(reply.text, str):
            raise self._breach(item, "got no text from the model")
        return reply

    def _checked_logp(self, reply: Reply, item: Item) -> Reply:
        """Refuse nan and infinity: a broken model would win TruthfulQA by them."""
        if not math.isfinite(reply.logp):
            what = f"item {item.id!r}: the model's log-probability is {reply.logp}"
            fix = "the model is damaged, or its precision too low: look at its weights"
            raise AlignError(what, fix, where=self.name)
        return reply

    def _checked(self, result: Any, item: Item) -> Result:
        """Return the result. Raises AlignError for one that breaks the contract."""
        if not isinstance(result, Result):
            raise self._breach(item, "returned no Result")
        low, high = self.eval.score_range
        if not (math.isfinite(result.score) and low <= result.score <= high):
            raise self._breach(item, f"scored {result.score}, outside [{low:g}, {high:g}]")
        if bad := [name for name, value in result.metrics.items() if not math.isfinite(value)]:
            raise self._breach(item, f"gave {bad[0]} = {result.metrics[bad[0]]}")
        return result

    def _breach(self, item: Item, fault: str) -> AlignError:
        return AlignError(f"item {item.id!r}: the eval {fault}", where=f"eval {self.name}")

    def _row(self, each: _Running, result: Result) -> Row:
        pairs = list(zip(each.queries, each.replies, strict=True))
        own = [(query, reply) for query, reply in pairs if query.by == "model"]
        judged = [(query, reply) for query, reply in pairs if query.by == "judge"]
        drawn = [reply for query, reply in own if isinstance(query, Generate)]
        # The first settings only: how many further queries there are may depend on the model's replies, and two models
        # on one item would then never count as measured alike.
        settings = [query.sampling.model_dump() for query, _ in pairs if isinstance(query, Generate)][:1]
        judge = self.models.get("judge")
        return Row(
            eval=self.name,
            eval_version=self.eval.version,
            item_id=each.item.id,
            cluster_id=each.item.cluster or each.item.id,
            sample_idx=each.sample,
            prompts=[_text_of(query) for query, _ in own],
            outputs=[reply.text if isinstance(query, Generate) else reply.logp for query, reply in own],
            judged=[reply.text if isinstance(query, Generate) else reply.logp for query, reply in judged],
            prompt_sha=each.first,
            target_sha=sha(each.item.target),
            target=each.item.target,
            extracted=result.extracted,
            score=float(result.score),
            metrics={name: float(value) for name, value in result.metrics.items()},
            valid=result.valid,
            error=result.error,
            n_tokens=sum(reply.tokens for reply in drawn),
            finish_reason="length" if any(reply.finish == "length" for reply in drawn) else "stop",
            judge_id=sha(judge.identity) if judge is not None and judged else "",
            judge_prompt_sha=sha(self.eval.judge_prompts()) if judged else "",
            seed=seed_of(self.seed, self.name, each.item.id, each.sample, 1, 0),
            gen_kwargs_sha=sha(settings),
            tags=list(each.item.tags),
        )


def _text_of(query: Query) -> Any:
    """Return a query's text as JSON, for the row and its hash."""
    if isinstance(query, Generate):
        return {"prompt": query.prompt, "tools": list(query.tools)} if query.tools else query.prompt
    return {"context": query.context, "continuation": query.continuation}
