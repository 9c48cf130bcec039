"""The conformance kit fails wrong algorithms, each for what is wrong with it, and the engine names the plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from align.core.algorithm import contract
from align.core.algorithm.contract import Advantages, Algorithm, Group, LossOutput, LossTerm, Metric, Online
from align.core.algorithm.policy_gradient import broadcast_to_tokens, center, loss_mask, rewards
from align.core.data.batch import Batch
from align.core.data.examples import Example
from align.core.generation.generator_base import Generator, Request, Sample
from align.core.training.launch import train
from align.plugins.algorithms.best_of_n import BestOfN
from align.plugins.algorithms.grpo import GRPO
from align.plugins.algorithms.sft import SFT
from align.plugins.loggers.csv import CSV
from align.schemas.errors import AlignError
from align.schemas.run import Sampling
from align.testing import check_algorithm, toy_experience, toy_policy
from tests.core.runs import run_for, write_rows


class Pairs(Algorithm):
    """A slot for losses over pairs: −log σ of how much better the chosen answer became than the rejected one."""

    name = "pairs"
    paper = "none"
    learns_from = ("preference",)
    learning_rate = 1.0

    @property
    def uses_reference(self) -> bool:
        return True

    def margin(self, batch: Batch) -> Tensor:
        assert batch.ref_logp_T is not None
        gain_B = batch.sum_per_sequence(batch.logp_T - batch.ref_logp_T)
        return batch.select("chosen", gain_B) - batch.select("rejected", gain_B)

    def loss(self, batch: Batch) -> LossOutput:
        """DPO's, whole."""
        return LossOutput([LossTerm(-torch.nn.functional.logsigmoid(self.margin(batch)), "example")], {})


class Rescaling(Pairs):
    def loss(self, batch: Batch) -> LossOutput:
        """Scales the reference where it stands: the margin of a first step is then not 0."""
        assert batch.ref_logp_T is not None
        batch.ref_logp_T.mul_(0.9)
        return super().loss(batch)


class Unseen(Pairs):
    def loss(self, batch: Batch) -> LossOutput:
        """The same by a way that autograd does not see."""
        assert batch.ref_logp_T is not None
        batch.ref_logp_T.data.mul_(0.9)
        return super().loss(batch)


class Overflowing(Pairs):
    def loss(self, batch: Batch) -> LossOutput:
        """log(1 + exp(−m)), right until exp(−m) is infinite."""
        return LossOutput([LossTerm((1 + (-self.margin(batch)).exp()).log(), "example")], {})


class Averaging(Pairs):
    def loss(self, batch: Batch) -> LossOutput:
        """A metric that is a mean over the micro-batch already."""
        margin_E = self.margin(batch).detach()
        return super().loss(batch)._replace(metrics={"margin": margin_E.sum() / max(1, len(margin_E))})


class Dropping(Pairs):
    def loss(self, batch: Batch) -> LossOutput:
        """Leaves pairs out at random."""
        keep_E = torch.rand(batch.examples, dtype=batch.logp_T.dtype)
        return LossOutput([LossTerm(-keep_E * torch.nn.functional.logsigmoid(self.margin(batch)), "example")], {})


class Counting(Pairs):
    calls = 0

    def loss(self, batch: Batch) -> LossOutput:
        """Remembers how often it was asked."""
        self.calls += 1
        return LossOutput(
            [LossTerm(-torch.nn.functional.logsigmoid(self.margin(batch)), "example", 1 / self.calls)], {}
        )


class PerPair(Pairs):
    def loss(self, batch: Batch) -> LossOutput:
        """Counted by a unit that there is not."""
        return LossOutput([LossTerm(-torch.nn.functional.logsigmoid(self.margin(batch)), "pair")], {})


class Plain(Pairs):
    def loss(self, batch: Batch) -> LossOutput:
        """A number for a metric."""
        return super().loss(batch)._replace(metrics={"margin": 0.5})  # type: ignore[dict-item]


def test_a_right_one_passes() -> None:
    check_algorithm(Pairs)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Rescaling, "changed batch.ref_logp_T in place"),
        (Unseen, "changed batch.ref_logp_T in place"),
        (Overflowing, "not finite where log-probabilities are hundreds of nats apart"),
        (Averaging, "the metric 'margin' is .*, in one micro-batch"),
        (Dropping, "differs from run to run"),
        (Counting, "differs from run to run"),
        (PerPair, "counts a term per 'pair'; there is token, sequence, example, token:chosen, token:rejected"),
        (Plain, "gave the metric 'margin' as a float"),
    ],
)
def test_a_wrong_loss_fails(algorithm: type[Algorithm], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_algorithm(algorithm)


# --- online --------------------------------------------------------------------------------------------------------


class Centred(Online):
    """A slot for credit: R less its group's mean, and −A log π."""

    name = "centred"
    paper = "none"
    learning_rate = 1.0

    class Config(Online.Config):
        num_generations: int = 4
        """Answers to each prompt."""

    def advantages(self, group: Group) -> np.ndarray[Any, Any]:
        return center(rewards(group))

    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """Every token its answer's advantage."""
        return broadcast_to_tokens(groups, [self.advantages(group) for group in groups])

    def loss(self, batch: Batch) -> LossOutput:
        """Over tokens."""
        return LossOutput([LossTerm(-batch.token_data["advantage"] * batch.logp_T, "token")], {})


class Short(Centred):
    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """One value too few."""
        whole = super().compute_advantages(groups)
        return Advantages({"advantage": whole.token_data["advantage"][:-1]}, whole.keep)


class ShortAnswer(Centred):
    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """One token too few."""
        whole = super().compute_advantages(groups)
        return Advantages({"advantage": [values[1:] for values in whole.token_data["advantage"]]}, whole.keep)


class NotANumber(Centred):
    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """NaN for answers that nobody scored, as the means give it."""
        answers = [e for group in groups for e in group]
        values = np.concatenate([self.advantages(group) for group in groups])
        spread = [np.full(len(e.tokens), a, np.float32) for e, a in zip(answers, values, strict=True)]
        return Advantages({"advantage": spread}, loss_mask(groups))


class Zeroed(Centred):
    def advantages(self, group: Group) -> np.ndarray[Any, Any]:
        """Abstaining as 0: in the mean, but not in the loss."""
        return np.array([e.reward or 0.0 for e in group]) - sum(e.reward or 0.0 for e in group) / len(group)


class ZeroedWhole(Zeroed):
    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """The same by arrays of whole groups, which no smaller group fits."""
        np.array([[e.reward or 0.0 for e in group] for group in groups]).reshape(-1, 4)
        return super().compute_advantages(groups)


class Wordy(Centred):
    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """A metric in words."""
        whole = super().compute_advantages(groups)
        return Advantages(whole.token_data, whole.keep, {"mood": "good"})  # type: ignore[dict-item]


class Keeping(Centred):
    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """Nothing left out."""
        whole = super().compute_advantages(groups)
        return Advantages(whole.token_data, np.ones_like(whole.keep))


class Noisy(Centred):
    def advantages(self, group: Group) -> np.ndarray[Any, Any]:
        """A little noise of its own."""
        return super().advantages(group) + np.random.default_rng().normal(size=len(group))


class Forgetful(Centred):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.mean = 0.0

    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """A running mean over phases."""
        known = [e.reward for group in groups for e in group if e.reward is not None]
        baseline, self.mean = self.mean, 0.9 * self.mean + 0.1 * float(np.mean(known))
        return broadcast_to_tokens(groups, [rewards(group) - baseline for group in groups])


class Remembering(Forgetful):
    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"]


class Pickling(Remembering):
    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "path": Path("x")}


class Overwriting(Centred):
    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """Forgets what the generator said."""
        for group in groups:
            for e in group:
                e.sampled_logp *= 0
        return super().compute_advantages(groups)


class Replacing(Centred):
    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """The same with new arrays."""
        for group in groups:
            for e in group:
                e.sampled_logp = np.zeros_like(e.sampled_logp)
        return super().compute_advantages(groups)


class Rewarding(Centred):
    def compute_advantages(self, groups: Sequence[Group]) -> Advantages:
        """Writes its shaped reward back."""
        given = super().compute_advantages(groups)
        for group in groups:
            for e in group:
                e.reward = None if e.reward is None else e.reward * 2
        return given


class Presuming(Centred):
    def loss(self, batch: Batch) -> LossOutput:
        """Reads what a phase of one step does not measure."""
        ratio_T = (batch.logp_T - batch.token_data["old_logp"]).exp()
        return LossOutput([LossTerm(-ratio_T * batch.token_data["advantage"], "token")], {})


class Mistyped(Centred):
    def loss(self, batch: Batch) -> LossOutput:
        """Reads what nobody gives."""
        return LossOutput([LossTerm(-batch.token_data["advantages"] * batch.logp_T, "token")], {})


class Uneven(Centred):
    def examples(self, groups: Sequence[Group], advantages: Advantages) -> list[list[Example]]:
        """Drops groups without examples, so that the rest stand in the wrong places."""
        return [made for made in super().examples(groups, advantages) if made]


def test_right_ones_pass() -> None:
    check_algorithm(Centred)
    check_algorithm(Remembering)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Short, r"gave 35 arrays of 'advantage' for 36 answers"),
        (ShortAnswer, r"gave 'advantage' of shape \(\d+,\) for an answer of \d+ tokens"),
        (NotANumber, "gave a 'advantage' that is not finite for an answer to toy:0, which no reward scored"),
        (Zeroed, "an answer that no reward scored changes the advantage of the others"),
        (ZeroedWhole, "an answer that no reward scored changes the advantage of the others"),
        (Wordy, "gave the metric 'mood' as a str"),
        (Keeping, "keeps an answer to toy:0 that no reward scored"),
        (Noisy, "credit differs from run to run"),
        (Forgetful, "credit after resuming differs"),
        (Pickling, "state_dict has more than plain values and tensors"),
        (Overwriting, "compute_advantages changed the sampled_logp of an answer"),
        (Replacing, "compute_advantages changed the sampled_logp of an answer"),
        (Rewarding, "compute_advantages changed the reward of an answer"),
        (Presuming, r"failed in loss: KeyError: 'old_logp' \(test_kit.py, line \d+\)"),
        (Mistyped, "failed in loss: KeyError: 'advantages'"),
        (Uneven, "gave 8 lists of examples for 9 groups"),
    ],
)
def test_wrong_credit_fails(algorithm: type[Online], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_algorithm(algorithm)


# --- the engine ----------------------------------------------------------------------------------------------------


def failing(error: Exception) -> Callable[..., Any]:
    def method(*_: object) -> Any:
        raise error

    return method


@pytest.mark.parametrize(
    ("name", "plugin", "method", "stand_in", "message"),
    [
        ("sft", SFT, "loss", failing(KeyError("advantage")), "failed in loss: KeyError: 'advantage'"),
        ("sft", SFT, "loss", lambda *_: None, "loss returned a NoneType; return align.LossOutput(terms, metrics)"),
        ("sft", SFT, "derived", failing(KeyError("loss")), "failed in derived: KeyError: 'loss'"),
        ("sft", SFT, "auxiliary", failing(IndexError("x")), "failed in auxiliary: IndexError: x"),
        (
            "grpo",
            GRPO,
            "compute_advantages",
            failing(ValueError("zip() argument 2 is longer")),
            "failed in compute_advantages: ValueError: zip()",
        ),
        (
            "grpo",
            GRPO,
            "compute_advantages",
            lambda *_: Advantages({}, np.ones(3, bool)),
            "compute_advantages gave keep of shape (3,)",
        ),
        ("grpo", GRPO, "state_dict", failing(TypeError("x")), "failed in state_dict: TypeError: x"),
        ("grpo", GRPO, "examples", lambda *_: [], "examples gave 0 lists of examples for"),
        ("best_of_n", BestOfN, "rows", failing(TypeError("x")), "failed in rows: TypeError: x"),
        ("best_of_n", BestOfN, "curves", failing(TypeError("x")), "failed in curves: TypeError: x"),
    ],
)
def test_a_breach_stops_a_run_with_the_plugins_name(
    name: str,
    plugin: type[Algorithm],
    method: str,
    stand_in: Callable[..., Any],
    message: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plugin, method, stand_in)
    rows, sections = write_rows(name, tmp_path / "rows.jsonl"), {"train": {"batch_size": 16}}
    run = run_for(name, tiny_model_dir, rows, tmp_path / "out", **sections)
    with pytest.raises(AlignError) as raised:
        train(run, progress=False)
    (problem,) = raised.value.problems
    assert problem.where.startswith(f"algorithm '{name}' of plugin 'builtin' (align-llm")
    assert problem.what.startswith(message)
    assert "align.testing.check_algorithm" in problem.fix


def test_a_metric_of_the_whole_step_is_the_mean_over_its_tokens() -> None:
    """The kit reduces metrics as the engine does: by hand, over two micro-batches of 1 and 3 tokens."""

    class Fixed(Centred):
        def loss(self, batch: Batch) -> LossOutput:
            """A metric that is the position of each token."""
            return LossOutput([LossTerm(-batch.logp_T, "token")], {"place": Metric(batch.position_T.double())})

    from align.testing import step

    algorithm = Fixed(Fixed.Config())
    examples = sorted(toy_experience(algorithm, toy_policy()), key=lambda e: e.lengths)
    lengths = [int(e.sequences[0].scored.sum()) for e in examples]
    by_hand = sum(n * (n - 1) / 2 for n in lengths) / sum(lengths)
    made = step(algorithm, toy_policy(), None, examples, [[0], range(1, len(examples))])
    assert made.metrics["place"] == pytest.approx(by_hand)


def samples(tokens: int = 3, numbers: int = 3, count: int = 1, **changes: Any) -> list[list[Sample]]:
    made = Sample(np.arange(tokens, dtype=np.int32), np.zeros(numbers, np.float32), "stop")
    return [[replace(made, **changes)] * count]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "generate gave answers to 0 prompts of 1"),
        (samples(count=2), "generate gave 2 answers to a prompt that has 1 seeds"),
        (samples(numbers=2), "generate gave 2 log-probabilities for an answer of 3 tokens"),
        (samples(numbers=0), "generate gave 0 log-probabilities for an answer of 3 tokens"),
        (samples(tokens=0, numbers=0), "generate gave an answer of 0 tokens; it may have 1 to 8"),
        (samples(tokens=9, numbers=9), "generate gave an answer of 9 tokens; it may have 1 to 8"),
        (samples(logp=np.full(3, -np.inf, np.float32)), "generate gave a log-probability that is not finite"),
        (samples(finish="eos"), "generate gave the finish 'eos'; it is 'stop' or 'length'"),
        ([["text"]], "generate gave a str; give align.Sample"),
        (KeyError("x"), "failed in generate: KeyError: 'x'"),
    ],
)
def test_a_generators_breach_has_its_name(given: Any, message: str) -> None:
    class Odd(Generator):
        name = "odd"

        def generate(self, *_: Any, **__: Any) -> Any:
            if isinstance(given, Exception):
                raise given
            return given

        def logp(self, sequences: Any) -> Any:
            return [np.zeros(1, np.float32)]

    odd, request = Odd(Odd.Config()), Request(np.arange(2, dtype=np.int32), (1,))
    with pytest.raises(AlignError) as raised:
        contract.generate(odd, [request], Sampling(max_completion_length=8))
    (problem,) = raised.value.problems
    assert problem.where == f"generator 'odd' of {__name__}" and problem.what.startswith(message)
    with pytest.raises(AlignError, match=r"logp gave \[1\] numbers for answers of \[2\] tokens"):
        contract.logp(odd, [(request.prompt, request.prompt)])


def test_a_generator_that_only_judges_may_have_no_log_probabilities() -> None:
    class Mute(Generator):
        name, trainable = "mute", False

        def generate(self, *_: Any, **__: Any) -> Any:
            return samples(numbers=0)

    request = Request(np.arange(2, dtype=np.int32), (1,))
    ((sample,),) = contract.generate(Mute(Mute.Config()), [request], Sampling(max_completion_length=8))
    assert (len(sample.tokens), len(sample.logp)) == (3, 0)


def test_a_loggers_failure_has_its_name(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(CSV, "open", failing(ValueError("x")))
    run = run_for("sft", tiny_model_dir, write_rows("sft", tmp_path / "rows.jsonl"), tmp_path / "out")
    with pytest.raises(AlignError, match=r"logger 'csv' of plugin 'builtin' .*\n.*failed in open: ValueError: x"):
        train(run, progress=False)
