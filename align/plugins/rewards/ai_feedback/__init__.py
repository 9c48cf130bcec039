"""The reward ``ai_feedback`` (RLAIF): a model judges the answers by written principles."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import ClassVar

from align import AlignError, Answer, Reward, Score
from align.plugins.rewards.ai_feedback.config import JudgeConfig, principles
from align.plugins.rewards.ai_feedback.endpoint_judge import EndpointJudge
from align.plugins.rewards.ai_feedback.judge import Judge
from align.plugins.rewards.ai_feedback.prompts import JudgeTask, plain
from align.plugins.rewards.ai_feedback.verdict_store import Ledger, VerdictStore
from align.plugins.rewards.ai_feedback.verdicts import Winner, read_mark, read_winner, standings
from align.rewards import Outcome, RewardContext


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict (a mark or a winner, as text), or why there is none."""

    verdict: str | None
    outcome: Outcome = "scored"
    why: str = ""


class AIFeedback(Reward):
    """A model judges the answers by a constitution, each by itself or each against the others of its group.

    Constitutional AI, 2212.08073; RLAIF, 2309.00267. An answer without a verdict has no score, never a default one.
    """

    name: ClassVar[str] = "ai_feedback"

    limits = frozenset(
        {
            *("key_env", "key_file", "request_timeout", "retries", "wait", "concurrency", "requests_per_minute"),
            *("max_requests", "max_total_tokens", "max_cost", "prompt_price", "completion_price", "on_cap"),
        }
    )

    reads = frozenset({"constitution", "model"})

    class Config(JudgeConfig, Reward.Config):
        """Settings in the run file."""

    config: Config

    @property
    def compares(self) -> bool:
        """Return True in pairwise mode, where an answer is scored against its group."""
        return self.config.mode == "pairwise"

    @property
    def overlaps(self) -> bool:
        """True where the judge is a server; one in this process takes turns with the generator."""
        return self.config.url is not None

    def open(self, place: RewardContext) -> None:
        """Open memory and judge. Raises AlignError where constitution, key or model cannot be had."""
        self._principles, self._seed = principles(self.config.constitution), place.seed
        self._counts = Counter[str]()
        self._pending = dict[str, Future[Judgement]]()  # by key, those that a call of this process has requested
        self._lock = threading.Lock()
        owner = json.dumps([self.config.url, self.config.model, self.config.mode, self._principles])
        spent = None if place.home is None else Path(place.home) / "ai_feedback.sqlite"
        self._memory = VerdictStore(place.cache / "ai_feedback.sqlite")
        self._ledger = Ledger(spent, hashlib.sha256(owner.encode()).hexdigest(), self.config.cap)
        self._judge: Judge
        if self.config.url:
            self._judge = EndpointJudge(self.config, self._ledger, place.world_size)
        else:
            from align.plugins.rewards.ai_feedback.local_judge import LocalJudge  # torch

            self._judge = LocalJudge(self.config, self._ledger, self._seed)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """A mark, or a mean win rate. Raises AlignError where the judge cannot work, or the cap is to stop the run."""
        return self._marks(answers) if self.config.mode == "pointwise" else self._rates(answers)

    def counts(self) -> Mapping[str, float]:
        """Return counts of verdicts by outcome in this process, and the whole run's spending."""
        spent = self._ledger.spent
        return {**self._counts, **asdict(spent), "cost": self.config.cap.price(spent)}

    def close(self) -> None:
        """Release the judge and the files."""
        for part in ("_judge", "_memory", "_ledger"):
            if hasattr(self, part):
                getattr(self, part).close()

    def _marks(self, answers: Sequence[Answer]) -> list[Score]:
        marks = self.config.marks

        def read(reply: str, tag: str) -> str | None:
            mark = read_mark(reply, tag, marks)
            return None if mark is None else str(mark)

        tasks = [JudgeTask(self._principles, plain(a.prompt), (a.text,), marks) for a in answers]
        judged = self._judgements(tasks, read)
        scores = []
        for each in judged:
            value = None if each.verdict is None else float(each.verdict)
            scores.append(Score(value, each.outcome, why=each.why))
        return scores

    def _rates(self, answers: Sequence[Answer]) -> list[Score]:
        groups = defaultdict[tuple[int, str], list[int]](list)
        for place, answer in enumerate(answers):
            groups[answer.group, plain(answer.prompt)].append(place)
        # Judges prefer a position (2306.05685 Section 3.3): each pair is shown in both orders.
        bouts = [(prompt, a, b) for (_, prompt), group in groups.items() for a, b in permutations(group, 2)]
        unlike = [bout for bout in bouts if answers[bout[1]].text != answers[bout[2]].text]
        tasks = [JudgeTask(self._principles, prompt, (answers[a].text, answers[b].text)) for prompt, a, b in unlike]
        judged = {(a, b): j for (_, a, b), j in zip(unlike, self._judgements(tasks, read_winner), strict=True)}
        scores = dict[int, Score]()
        for group in groups.values():
            scores |= self._of_group(group, judged)
        return [scores[place] for place in range(len(answers))]

    def _of_group(self, group: Sequence[int], judged: Mapping[tuple[int, int], Judgement]) -> dict[int, Score]:
        same = Judgement("TIE")  # equal answers need no request
        verdicts = {(i, j): judged.get((group[i], group[j]), same) for i, j in permutations(range(len(group)), 2)}
        table = standings(len(group), {pair: _winner(each.verdict) for pair, each in verdicts.items()})
        ties, disagreed = (sum(getattr(standing, name) for standing in table) // 2 for name in ("ties", "disagreed"))
        self._count({"ties": ties, "disagreed": disagreed})
        scores = {}
        for i, standing in enumerate(table):
            if standing.rate is None:
                faults = [each for pair, each in verdicts.items() if i in pair and each.verdict is None]
                fault = faults[0] if faults else Judgement(None, "abstained", "has no other answer to be compared with")
                scores[group[i]] = Score(None, fault.outcome, why=fault.why)
            else:
                parts = {k: float(v) for k, v in asdict(standing).items()}
                scores[group[i]] = Score(standing.rate, parts=parts)
        return scores

    def _judgements(self, questions: Sequence[JudgeTask], read: Callable[[str, str], str | None]) -> list[Judgement]:
        """Return a judgement of each task: stored, requested, or from another thread that is requesting it now."""
        depends = self._judge.identity, str(self.config.max_characters)
        keys = [question.digest(*depends) for question in questions]
        found, mine, others = dict[str, Judgement](), dict[str, JudgeTask](), dict[str, Future[Judgement]]()
        # Claimed under one lock: two calls with an equal answer pay for it once, and give it one mark.
        with self._lock:
            for digest, question in dict(zip(keys, questions, strict=True)).items():
                verdict = self._memory.get(digest)
                if verdict is not None:
                    found[digest] = Judgement(verdict)
                elif digest in self._pending:
                    others[digest] = self._pending[digest]
                else:
                    mine[digest] = question
            claimed = {digest: Future[Judgement]() for digest in mine}
            self._pending |= claimed
        self._count({"cached": len(found) + len(others)})
        lost = Judgement(None, "unparsed", f"the judge gave no verdict in {self.config.tries} tries")
        try:
            self._request(mine, read, found)
        finally:  # others wait for them, whatever has happened here
            with self._lock:
                for digest, future in claimed.items():
                    del self._pending[digest]
                    future.set_result(found.get(digest, lost))
        found |= {digest: future.result() for digest, future in others.items()}
        return [found.get(digest, lost) for digest in keys]

    def _request(
        self,
        tasks: Mapping[str, JudgeTask],
        read: Callable[[str, str], str | None],
        found: dict[str, Judgement],
    ) -> None:
        """Request judgements, until there is a verdict or ``tries`` are over, and add them to ``found``.

        Raises AlignError where the cap is reached and is to stop the run.
        """
        open_, counts, capped = dict(tasks), Counter[str](), ""
        for attempt in range(self.config.tries):
            pending = list(open_.items())
            # A new tag for each attempt: a judge at temperature 0 would repeat its unreadable reply.
            tags = [task.tag(self._seed, attempt) for _, task in pending]
            longest, special = self.config.max_characters, self._judge.special
            conversations = [
                task.conversation(tag, longest=longest, special=special)
                for (_, task), tag in zip(pending, tags, strict=True)
            ]
            for place, reply in self._judge.ask(conversations):
                digest = pending[place][0]
                verdict = read(reply.text, tags[place]) if reply.text else None
                if verdict is not None:
                    found[digest] = Judgement(self._memory.put(digest, verdict))
                elif reply.text is None:
                    found[digest] = Judgement(None, reply.outcome, reply.why)
                    capped = reply.why if reply.capped else capped
                if digest in found:
                    del open_[digest]
                    counts["capped" if reply.capped else found[digest].outcome] += 1
        self._count({**counts, "unparsed": len(open_)})
        if capped and self.config.on_cap == "stop":
            fix = "what was judged is kept: raise the cap and go on with --resume"
            raise AlignError(capped, fix, where="reward ai_feedback")

    def _count(self, counts: Mapping[str, int]) -> None:
        with self._lock:
            self._counts.update(counts)


def _winner(verdict: str | None) -> Winner | None:
    match verdict:
        case "A" | "B" | "TIE":
            return verdict
    return None
