"""Models of known behaviour, for tests of evals: what a model says is a function of what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.core.evaluation.eval import Generate, LogLikelihood, Reply
from align.schemas.records import Content


class ScriptedModel:
    """A model whose completions and likelihoods are functions.

    answer: from a prompt (a string or messages) and a seed to the completion's text. logp: from context and
    continuation to the log-probability. finish: of every completion.
    """

    def __init__(
        self,
        answer: Callable[[Content, int], str] | None = None,
        logp: Callable[[Content, str], float] | None = None,
        *,
        finish: Any = "stop",
        name: str = "scripted",
    ) -> None:
        self.identity: Mapping[str, Any] = {"scripted": name}
        self.likelihoods = logp is not None
        self.asked: list[Generate | LogLikelihood] = []
        self._answer, self._logp, self._finish = answer, logp, finish

    def generate(self, wanted: Sequence[tuple[Generate, int]]) -> list[Reply]:
        """Answer each query; a completion's tokens are its words."""
        assert self._answer is not None, "this model answers no prompts"
        self.asked += [query for query, _ in wanted]
        texts = [self._answer(query.prompt, seed) for query, seed in wanted]
        return [Reply(text, len(text.split()) if isinstance(text, str) else 0, self._finish) for text in texts]

    def loglikelihood(self, wanted: Sequence[LogLikelihood]) -> list[Reply]:
        """Score each continuation."""
        assert self._logp is not None, "this model scores no text"
        self.asked += list(wanted)
        return [Reply(logp=self._logp(query.context, query.continuation), tokens=1) for query in wanted]
