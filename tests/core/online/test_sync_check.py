"""The sync gate against a generator that does, by definition, what it is told to do wrong."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from align.core.generation.generator_base import Floats, Generator, Request, Sample, Tokens
from align.core.models.policy import Policy
from align.core.online.sync_check import check_sync
from align.schemas.errors import AlignError
from align.schemas.run import Sampling
from tests.tiny import tiny_model

PROBE = [
    (np.array([5, 6, 7], np.int32), np.array([8, 9], np.int32)),
    (np.array([4], np.int32), np.arange(20, 60, dtype=np.int32)),
]


class Plain(Generator):
    """Full logits, one sequence at a time; greedy where it samples."""

    name = "plain"
    raw = False
    """Whether it leaves the temperature out of what it says of its own tokens."""

    def __init__(self, network: Any, temperature: float = 1.0, spoil: Callable[[Floats], Floats] = lambda x: x) -> None:
        super().__init__(Generator.Config())
        self.network, self.temperature, self.spoil = network, temperature, spoil

    @torch.no_grad()
    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        found = []
        for prompt, answer in sequences:
            ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
            logits = self.network(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / self.temperature
            logp = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
            found.append(self.spoil(logp))
        return found

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling, **_: Any) -> list[list[Sample]]:
        assert sampling.max_completion_length == 1
        made = []
        for request in requests:
            ids = torch.from_numpy(request.prompt.astype(np.int64))[None]
            token = self.network(input_ids=ids).logits[0, -1].argmax()
            answer, usual = np.array([int(token)], np.int32), self.temperature
            self.temperature = usual * (1.0 if self.raw else sampling.temperature)
            made.append([Sample(answer, self.logp([(request.prompt, answer)])[0], "length")])
            self.temperature = usual
        return made


def policy_of(dtype: torch.dtype = torch.float32) -> Policy:
    return Policy(tiny_model().to(dtype))


def changed(network: Any) -> Any:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[:8] += 0.5
    return other


def test_the_same_weights_pass_with_a_difference_of_rounding() -> None:
    policy = policy_of()
    assert check_sync(Plain(policy.model), policy, PROBE, 0) < 1e-5
    assert check_sync(Plain(policy.model), policy, [], 0) == 0.0


def test_the_policys_temperature_does_not_leak_in_and_is_put_back() -> None:
    policy = policy_of()
    policy.temperature = 0.3
    assert check_sync(Plain(policy.model), policy, PROBE, 0) < 1e-5
    assert policy.temperature == 0.3 and policy.training is True


def test_stale_weights_are_told_with_both_numbers_the_token_and_its_place() -> None:
    policy = policy_of()
    generator = Plain(changed(policy.model))
    with pytest.raises(AlignError) as error:
        check_sync(generator, policy, PROBE, 0)
    found = re.search(
        r"token (\d+) at position (\d+) of probe (\d) a log-probability of (-[\d.]+) and the trainer (-[\d.]+); "
        r"they differ by ([\d.]+), more than 0\.001",
        str(error.value),
    )
    assert found is not None
    token, position, probe = (int(found[i]) for i in (1, 2, 3))
    prompt, answer = PROBE[probe]
    if position < len(prompt) + len(answer):  # of the answers given; else of the token it went on with
        assert np.concatenate([prompt, answer])[position] == token
        (theirs,), (ours,) = generator.logp([(prompt, answer)]), Plain(policy.model).logp([(prompt, answer)])
        place = position - len(prompt)
        assert float(found[4]) == pytest.approx(float(theirs[place]), abs=1e-5)
        assert float(found[5]) == pytest.approx(float(ours[place]), abs=1e-5)
    assert float(found[6]) == pytest.approx(abs(float(found[4]) - float(found[5])), rel=1e-2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.9},
        {"spoil": lambda logp: logp + 0.01},
        {"spoil": lambda logp: np.roll(logp, 1)},
        {"spoil": lambda logp: logp * np.float32("nan")},
        {"spoil": lambda logp: np.where(np.arange(len(logp)) == len(logp) - 1, -np.inf, logp)},
    ],
    ids=["temperature", "shifted", "rolled", "nan", "infinite"],
)
def test_what_is_otherwise_wrong_is_caught(wrong: dict[str, Any]) -> None:
    policy = policy_of()
    with pytest.raises(AlignError, match="log-probability"):
        check_sync(Plain(policy.model, **wrong), policy, PROBE, 0)


def test_log_probabilities_that_leave_out_the_temperature_are_caught() -> None:
    policy = policy_of()
    generator = Plain(policy.model)
    generator.raw = True
    with pytest.raises(AlignError, match=r"position (5 of probe 0|41 of probe 1)"):
        check_sync(generator, policy, PROBE, 0)


def test_tolerance_is_wider_in_16_bits_and_can_be_set() -> None:
    policy, whole = policy_of(torch.bfloat16), policy_of()
    assert 1e-3 < check_sync(Plain(whole.model), policy, PROBE, 0) < 0.25
    with pytest.raises(AlignError, match=r"more than 0\.001"):
        check_sync(Plain(whole.model), policy, PROBE, 0, tolerance=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert check_sync(Plain(policy.model), whole, PROBE, 0) < 0.25
