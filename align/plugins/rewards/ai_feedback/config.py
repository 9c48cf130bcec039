"""Settings of ``ai_feedback``, and the constitution that they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from align import AlignError, Config
from align.plugins.rewards.ai_feedback.verdict_store import Cap


class JudgeConfig(Config):
    """The judge, its principles and its limits. Limits are those of the whole run, shared out over its ranks."""

    model: str
    """The judge: the endpoint's name for it; without ``url`` a directory or hub id of a model that judges here."""
    url: str | None = None
    """An OpenAI-compatible endpoint, ``https://api.example.com/v1``; plain http is for this machine only."""
    key_env: str | None = None
    """Environment variable that holds the endpoint's key."""
    key_file: str | None = None
    """Or a file that holds it."""
    constitution: Annotated[str | list[str], Field(min_length=1)]
    """Principles to judge by: a text file, or a list of them here. A rubric is one too."""
    mode: Literal["pointwise", "pairwise"] = "pointwise"
    """``pointwise``: each answer gets a mark. ``pairwise``: answers of a group are compared, each two in both orders;
    the score is the mean win rate. For a group of n that is n (n - 1) requests."""
    marks: tuple[float, float] = (1.0, 10.0)
    """pointwise: the worst and the best mark. The mark is the score."""
    temperature: NonNegativeFloat = 0.0
    """The judge's."""
    max_tokens: PositiveInt = 512
    """Longest reply of the judge. One that is cut off has no verdict."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Further fields of a request's body; null takes one away (``{max_tokens: null, max_completion_tokens: 512}``)."""
    max_characters: Annotated[int, Field(ge=100)] = 20_000
    """Most characters of a prompt or answer that the judge sees; the last quarter of them are its end."""
    tries: PositiveInt = 3
    """Requests for one verdict, where a reply holds none; then the answer has no score (``unparsed``)."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Further tries of a request that fails (429, 5xx, time-out, broken connection, garbage)."""
    wait: PositiveFloat = 1.0
    """Seconds before the first of them; then twice as long each time, up to a minute, or what the server asks for."""
    request_timeout: PositiveFloat = 120.0
    """Seconds for one try."""
    concurrency: PositiveInt = 8
    """Requests under way at once."""
    requests_per_minute: PositiveInt | None = None
    """Most requests begun in a minute (null: no limit)."""
    max_requests: PositiveInt | None = None
    """Cap: requests, failed ones too."""
    max_total_tokens: PositiveInt | None = None
    """Cap: tokens read and written by the judge."""
    max_cost: PositiveFloat | None = None
    """Cap: money, in the currency of the prices."""
    prompt_price: NonNegativeFloat = 0.0
    """Price of a million tokens that the judge reads."""
    completion_price: NonNegativeFloat = 0.0
    """Price of a million tokens that it writes."""
    on_cap: Literal["abstain", "stop"] = "abstain"
    """The action at a cap: further answers have no score, or the run stops (``--resume`` goes on, with a higher
    cap)."""

    @field_validator("url")
    @classmethod
    def _bare(cls, url: str | None) -> str | None:
        """No secrets in it: a URL ends up in logs and manifests."""
        if url is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", url):
            raise ValueError("must be like https://host/v1, without user, password, query or fragment")
        return None if url is None else url.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _name(cls, name: str | None) -> str | None:
        """The key itself, given by mistake, is quoted in no message."""
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
            raise ValueError("must be the name of an environment variable, in capitals, and never the key itself")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.url is None and (self.key_env or self.key_file):
            raise ValueError("a key is for an endpoint: give its url")
        if taken := {"model", "messages", "stream", "n"} & set(self.parameters):
            raise ValueError(f"parameters: {min(taken)} is not yours to set")
        if self.parameters and self.url is None:
            raise ValueError("parameters are for an endpoint: give its url")
        if self.key_env and self.key_file:
            raise ValueError("give key_env or key_file, not both")
        if not self.marks[0] < self.marks[1]:
            raise ValueError("marks: the worst must be below the best")
        if self.max_cost is not None and not self.prompt_price + self.completion_price:
            raise ValueError("max_cost needs prompt_price and completion_price")
        return self

    @property
    def cap(self) -> Cap:
        """The limits on spending."""
        prices = self.prompt_price, self.completion_price
        return Cap(self.max_requests, self.max_total_tokens, self.max_cost, *prices)


def principles(constitution: str | list[str]) -> str:
    """A file's text, or a list as numbered lines. Raises AlignError where there is nothing to judge by."""
    where = "reward ai_feedback: constitution"
    if isinstance(constitution, list):
        text = "\n".join(f"{number}. {each.strip()}" for number, each in enumerate(constitution, 1))
        if not all(each.strip() for each in constitution):
            raise AlignError("has an empty principle", "remove it", where=where)
        return text
    try:
        text = Path(constitution).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        fix = "give the path of a text file, or the principles as a list"
        raise AlignError(f"{constitution!r} cannot be read: {why}", fix, where=where) from None
    if not text:
        raise AlignError(f"{constitution!r} is empty", "write down what makes an answer good", where=where)
    return text
