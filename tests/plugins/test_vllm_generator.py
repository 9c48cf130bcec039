"""The vllm generator against the real engine on CPU, in process and as a server.

vLLM, align and pytest must share an interpreter: where this one has no vLLM, the one that ALIGN_VLLM_PYTHON names runs
this file (.ci/vllm-cpu makes one).
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from align.core.generation.generator_base import Floats, Interrupt, ModelHandle, Request, Tokens
from align.core.models.load_and_export import build_policy, end_tokens, load_tokenizer
from align.core.models.policy import Policy
from align.core.online.sync_check import check_sync
from align.core.training.launch import train
from align.plugins.generators.endpoint import Endpoint
from align.plugins.generators.vllm import VLLM
from align.plugins.generators.vllm.arguments import engine_arguments
from align.plugins.generators.vllm.child_server import BY_HAND, flags
from align.schemas.errors import AlignError
from align.schemas.run import Adapter, Model, Run, Sampling
from tests.online.probes import python
from tests.tiny import save_tiny

HERE = importlib.util.find_spec("vllm") is not None
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
CONTEXT = 160
BLOCK = 32
"""Tokens in one block of the prefix cache; prompts must be longer for it to matter."""
GREEDY = Sampling(temperature=0, max_completion_length=24)
needs_vllm = pytest.mark.usefixtures("vllm")
only_a_server = pytest.mark.parametrize("generator", ["server"], indirect=True)


@pytest.fixture(scope="module")
def vllm() -> None:
    if not HERE:
        pytest.skip("this interpreter has no vllm; set ALIGN_VLLM_PYTHON to one that has it and align")


def test_the_command_of_the_manual_is_the_one_that_is_advised(model_dir: Path, policy: Policy) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()
    assert f"```sh\n{BY_HAND}\n```" in manual
    arguments = engine_arguments(VLLM.Config(), handle_of(model_dir, policy))
    ours = flags({name: arguments[name] for name in ("logprobs_mode", "generation_config")})
    assert shlex.join(ours) in BY_HAND
    with pytest.raises(AlignError) as caught:
        generator_of(model_dir, policy, mode="server", url="http://127.0.0.1:9", timeout=1.0, weights="nccl")
    advice = caught.value.problems[0].fix
    assert advice.endswith(BY_HAND + """ \\\n    --weight-transfer-config '{"backend": "nccl"}'""")


def test_all_of_this_where_vllm_is() -> None:
    python = os.environ.get("ALIGN_VLLM_PYTHON")
    if HERE or python is None:
        return
    command = [python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-5000:]


# --- a policy and its generator --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # heads of 32, the least vLLM's attention takes on CPU; tied, so that a tied head is sent as well
    return save_tiny(tmp_path_factory.mktemp("vllm") / "model", hidden_size=128, tie_word_embeddings=True)


def policy_of(directory: Path, **overrides: Any) -> Policy:
    policy, _ = build_policy(Model(path=str(directory), **overrides), "language", seed=0, dropout=False)
    return policy


def handle_of(directory: Path, policy: Policy | None = None) -> ModelHandle:
    model = Model(path=str(directory))
    tokenizer = load_tokenizer(model)
    ends = (tokenizer.eos_token_id,) if policy is None else end_tokens(policy.unwrapped, tokenizer)
    return ModelHandle(directory, model, tokenizer, ends, CONTEXT, policy)


def generator_of(directory: Path, policy: Policy, **settings: Any) -> VLLM:
    engine = {"block_size": BLOCK} | settings.pop("engine", {})
    generator = VLLM(VLLM.Config(kv_cache=0.125, engine=engine, **settings))
    generator.open(handle_of(directory, policy))
    assert generator.engine is not None
    return generator


@pytest.fixture(scope="module")
def policy(model_dir: Path) -> Policy:
    return policy_of(model_dir)


@pytest.fixture(scope="module", params=["process", "server"])
def generator(request: pytest.FixtureRequest, vllm: None, model_dir: Path, policy: Policy) -> Iterator[VLLM]:
    made = generator_of(model_dir, policy, mode=request.param, timeout=300.0)
    yield made
    made.close()


def tokens_of(*lengths: int, seed: int = 0) -> list[Tokens]:
    draw = np.random.default_rng(seed)
    return [draw.integers(4, 320, n).astype(np.int32) for n in lengths]


PROMPTS = tokens_of(5, 20, BLOCK * 3 + 3, 40)
PROBE = [(tokens[:1], tokens[1:]) for tokens in PROMPTS]


@torch.no_grad()
def logp_at(policy: Policy, prompt: Tokens, answer: Tokens, temperature: float = 1.0) -> Floats:
    """From the full logits, by definition."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    logits = policy.unwrapped(input_ids=ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].float().numpy()


def step(policy: Policy, rate: float = 0.1) -> None:
    """One optimizer step on made-up tokens, away from them."""
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], rate)
    ids = torch.from_numpy(tokens_of(64, seed=5)[0].astype(np.int64))[None]
    policy.unwrapped(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def gap(generator: VLLM, policy: Policy, tolerance: float | None = None) -> float:
    return check_sync(generator, policy, PROBE, 0, tolerance)


# --- answers ---------------------------------------------------------------------------------------------------------


@needs_vllm
def test_greedy_answers_and_their_log_probabilities_are_transformers(generator: VLLM, policy: Policy) -> None:
    generator.sync(policy, 0)
    for prompt, (sample,) in zip(
        PROMPTS, generator.generate([Request(prompt, (1,)) for prompt in PROMPTS], GREEDY), strict=True
    ):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        whole = policy.unwrapped.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=[3])
        assert sample.tokens.tolist() == whole[0, len(prompt) :].tolist()
        assert sample.tokens.dtype == np.int32 and sample.logp.dtype == np.float32
        np.testing.assert_allclose(sample.logp, logp_at(policy, prompt, sample.tokens), atol=1e-4)


@needs_vllm
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_sampled_log_probabilities_are_of_the_distribution_drawn_from(
    generator: VLLM, policy: Policy, temperature: float
) -> None:
    generator.sync(policy, 0)
    (samples,) = generator.generate(
        [Request(PROMPTS[1], (3, 4, 5))], Sampling(temperature=temperature, max_completion_length=16)
    )
    for sample in samples:
        np.testing.assert_allclose(sample.logp, logp_at(policy, PROMPTS[1], sample.tokens, temperature), atol=1e-4)


@needs_vllm
def test_an_answer_follows_from_its_seed_alone(generator: VLLM, policy: Policy) -> None:
    generator.sync(policy, 0)
    sampling = Sampling(max_completion_length=12)
    seeds = (7, 2**63 - 1, 8)
    alone = [generator.generate([Request(PROMPTS[0], (seed,))], sampling)[0][0].tokens.tolist() for seed in seeds]
    among = generator.generate([Request(PROMPTS[2], (1, 2)), Request(PROMPTS[0], seeds)], sampling)
    assert [len(group) for group in among] == [2, 3]
    assert [sample.tokens.tolist() for sample in among[1]] == alone
    assert len({tuple(tokens) for tokens in alone}) == 3


@needs_vllm
def test_truncated_sampling_is_normalised_over_what_is_left(generator: VLLM, policy: Policy) -> None:
    generator.sync(policy, 0)
    sampling = Sampling(max_completion_length=1, top_k=2)
    samples = generator.generate([Request(PROMPTS[1], tuple(range(24)))], sampling)[0]
    chance = {int(sample.tokens[0]): float(np.exp(sample.logp[0])) for sample in samples}
    assert len(chance) == 2 and sum(chance.values()) == pytest.approx(1, abs=1e-5)


@needs_vllm
def test_what_ends_an_answer(generator: VLLM, policy: Policy) -> None:
    generator.sync(policy, 0)
    request = [Request(PROMPTS[1], (1,))]
    ((free,),) = generator.generate(request, GREEDY)
    assert (free.finish, len(free.tokens)) == ("length", 24)
    # a token that ends an answer, kept
    end = int(free.tokens[5])
    first = free.tokens.tolist().index(end)
    ((by_token,),) = generator.generate(request, GREEDY.model_copy(update={"stop_token_ids": [end]}))
    assert (by_token.finish, by_token.tokens.tolist()) == ("stop", free.tokens[: first + 1].tolist())
    # text that ends an answer: the tokens up to where it is complete, and no more
    tokenizer = handle_of(Path(str(policy.unwrapped.name_or_path))).tokenizer
    text = tokenizer.decode(free.tokens.tolist(), skip_special_tokens=True)
    stop = text[6:9]
    ((by_text,),) = generator.generate(request, GREEDY.model_copy(update={"stop": [stop]}))
    spoken = [tokenizer.decode(free.tokens[: n + 1].tolist(), skip_special_tokens=True) for n in range(24)]
    enough = next(n for n, said in enumerate(spoken) if stop in said)
    assert (by_text.finish, by_text.tokens.tolist()) == ("stop", free.tokens[: enough + 1].tolist())
    assert len(by_text.logp) == len(by_text.tokens)


@needs_vllm
def test_the_context_ends_an_answer(generator: VLLM, policy: Policy) -> None:
    (prompt,) = tokens_of(CONTEXT - 10)
    ((sample,),) = generator.generate([Request(prompt, (1,))], Sampling(max_completion_length=100, temperature=0))
    assert (sample.finish, len(sample.tokens)) == ("length", 10)


@needs_vllm
def test_what_the_engine_refuses_is_said_in_its_words(generator: VLLM) -> None:
    (prompt,) = tokens_of(CONTEXT + 1)
    with pytest.raises(AlignError, match=str(CONTEXT)):
        generator.generate([Request(prompt, (1,))], GREEDY)
    with pytest.raises(AlignError, match=r"0 and 0\.01 or more"):
        generator.generate([Request(PROMPTS[0], (1,))], Sampling(temperature=1e-3))
    assert generator.generate([Request(PROMPTS[0], (1,))], GREEDY)[0][0].finish == "length"  # and it lives on


@needs_vllm
def test_it_can_be_interrupted(generator: VLLM) -> None:
    with pytest.raises(Interrupt):
        generator.generate(
            [Request(PROMPTS[0], tuple(range(64)))], Sampling(max_completion_length=128), stop=lambda: True
        )
    assert len(generator.generate([Request(PROMPTS[0], (1,))], GREEDY)[0][0].tokens) == 24


# --- weights and the gate --------------------------------------------------------------------------------------------


@needs_vllm
def test_after_an_optimizer_step_the_gate_fails_until_the_weights_are_sent(generator: VLLM, model_dir: Path) -> None:
    learner = policy_of(model_dir)
    generator.sync(learner, 0)
    assert gap(generator, learner) < 1e-4
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    step(learner)
    with pytest.raises(AlignError) as error:
        gap(generator, learner)
    stated = [float(word.rstrip(";,")) for word in str(error.value).split() if word.startswith("-")]
    assert len(stated) == 2 and abs(stated[0] - stated[1]) > 1e-3  # both numbers
    generator.sync(learner, 1)
    assert gap(generator, learner) < 1e-4
    learner.load_state_dict(before)
    generator.sync(learner, 2)
    assert gap(generator, learner) < 1e-4


@needs_vllm
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_is_sent_merged_and_the_policy_left_as_it_was(generator: VLLM, model_dir: Path, kind: Any) -> None:
    learner = policy_of(model_dir, adapter=Adapter(r=4, type=kind))
    step(learner, 0.5)
    step(learner, 0.5)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    generator.sync(learner, 1)
    assert gap(generator, learner) < 1e-4
    with learner.model.disable_adapter(), pytest.raises(AlignError, match="log-probability"):
        gap(generator, learner)  # the base alone is something else
    after = learner.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@needs_vllm
@pytest.mark.parametrize("mode", ["process", "server"])
def test_an_adapter_is_sent_by_itself_where_the_engine_was_started_for_it(
    mode: str, vllm: None, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is anything merged; the gate and the log-probabilities of answers are those of base and adapter."""

    def merged(_: Policy) -> Any:
        raise AssertionError("all weights are sent")

    for module in ("process", "server"):
        monkeypatch.setattr(f"align.plugins.generators.vllm.{module}.checkpoint_tensors", merged)
    learner = policy_of(model_dir, adapter=Adapter(r=4))
    generator = generator_of(model_dir, learner, mode=mode)
    try:
        for version in range(3):
            generator.sync(learner, version)
            assert gap(generator, learner) < 1e-4
            ((sample,),) = generator.generate([Request(PROMPTS[1], (1,))], GREEDY)
            np.testing.assert_allclose(sample.logp, logp_at(learner, PROMPTS[1], sample.tokens), atol=1e-4)
            step(learner, 0.5)
            step(learner, 0.5)
            with pytest.raises(AlignError, match="log-probability"):
                gap(generator, learner)
    finally:
        generator.close()


@needs_vllm
def test_an_adapter_that_arrives_otherwise_is_sent_merged(
    vllm: None, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The gate of the second phase finds it: in the first one an adapter changes nothing yet."""
    import align.plugins.generators.vllm.process as process

    save, saved = process.save_adapter, []

    def damaged(adapter: LoraConfig, tensors: Mapping[str, torch.Tensor], directory: Path) -> None:
        save(adapter, tensors, directory)
        config = json.loads((directory / "adapter_config.json").read_text())
        (directory / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
        saved.append(directory)

    monkeypatch.setattr(process, "save_adapter", damaged)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"the sea {i}"}) + "\n" for i in range(8)))
    stage = {
        "name": "only",
        "model": {"path": str(model_dir), "adapter": {"r": 4}},
        "data": {"train": str(tmp_path / "prompts.jsonl"), "dataset_num_proc": 1},
        "algorithm": {"type": "grpo", "num_generations": 4},
        "optimizer": {"learning_rate": 0.05},
        "train": {"batch_size": 16, "max_steps": 3},
        "rollout": {
            "rewards": [python("low_ids")],
            "generator": {"type": "vllm", "kv_cache": 0.125},
            "sampling": {"max_completion_length": 6},
        },
    }
    train(Run.model_validate({"output": str(tmp_path / "run"), "stages": [stage]}), progress=False)
    assert len(saved) == 2
    assert "vLLM gets the adapter merged into the weights: " in capfd.readouterr().err
    with open(tmp_path / "run" / "only" / "metrics.csv", newline="") as file:
        assert all(float(row["sampling/sync_gap"]) < 1e-3 for row in csv.DictReader(file))


@pytest.mark.parametrize(
    ("adapter", "fault"),
    [
        ({"r": 4}, ""),
        ({"r": 513}, "ranks above 512"),
        ({"type": "dora", "r": 4}, "DoRA"),
        ({"r": 4, "modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_vllm_cannot_take_by_itself_is_merged_or_refused(adapter: Any, fault: str, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model")
    learner = policy_of(directory, adapter=Adapter(**adapter))
    there = {"mode": "server", "url": "http://127.0.0.1:9"}
    chosen = {}
    for wanted, settings in (("auto", {"mode": "server"}), ("merged", {"mode": "server"}), ("elsewhere", there)):
        lora = "auto" if wanted == "elsewhere" else wanted
        generator = VLLM(VLLM.Config(lora=lora, **settings))
        generator.open(handle_of(directory, learner))
        chosen[wanted] = generator._adapter is not None
    assert chosen == {"auto": not fault, "merged": False, "elsewhere": False}
    wants = VLLM(VLLM.Config(lora="adapter", mode="server"))
    if fault:
        with pytest.raises(AlignError, match=fault):
            wants.open(handle_of(directory, learner))
    else:
        wants.open(handle_of(directory, learner))


@needs_vllm
def test_the_gate_sees_what_is_cached_of_old_weights(
    generator: VLLM, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = policy_of(model_dir)
    generator.sync(learner, 0)
    gap(generator, learner)  # the probe's prompts are cached now
    step(learner)
    if generator.config.mode == "process":
        monkeypatch.setattr(generator.engine.llm, "reset_prefix_cache", lambda: True)
    else:
        post = generator.engine.servers[0].client.post
        kept = lambda path, *rest: {"success": True} if path == "/reset_prefix_cache" else post(path, *rest)  # noqa: E731
        monkeypatch.setattr(generator.engine.servers[0].client, "post", kept)
    generator.sync(learner, 1)
    with pytest.raises(AlignError, match="position 99 of probe 2"):
        gap(generator, learner)
    monkeypatch.undo()
    generator.sync(learner, 2)
    assert gap(generator, learner) < 1e-4


@needs_vllm
def test_the_gate_is_blind_to_the_policys_own_temperature(generator: VLLM, policy: Policy) -> None:
    generator.sync(policy, 0)
    policy.temperature = 0.5
    try:
        assert gap(generator, policy) < 1e-4
        assert policy.temperature == 0.5
    finally:
        policy.temperature = 1.0


@needs_vllm
def test_logp_is_at_temperature_1_and_of_the_answers_tokens(generator: VLLM, policy: Policy) -> None:
    generator.sync(policy, 0)
    pairs = [(PROMPTS[1], PROMPTS[0]), (PROMPTS[3][:1], PROMPTS[3][1:])]
    for (prompt, answer), found in zip(pairs, generator.logp(pairs), strict=True):
        np.testing.assert_allclose(found, logp_at(policy, prompt, answer), atol=1e-4)


# --- in process ------------------------------------------------------------------------------------------------------


@needs_vllm
def test_the_engine_is_not_noticed_by_the_process_it_lives_in(model_dir: Path, policy: Policy) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [random.random(), np.random.random(), torch.rand(1).item()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    environment, threads, set_threads = dict(os.environ), torch.get_num_threads(), torch.set_num_threads
    generator = generator_of(model_dir, policy)
    generator.sync(policy, 0)
    generator.generate([Request(PROMPTS[0], (1, 2))], Sampling(max_completion_length=4))
    generator.close()
    generator.close()
    assert [random.random(), np.random.random(), torch.rand(1).item()] == expected
    assert (torch.get_num_threads(), torch.set_num_threads) == (threads, set_threads)
    assert not torch.distributed.is_initialized()
    changed = {name for name in os.environ.keys() - environment.keys() if "VLLM" not in name}
    assert changed <= {"TORCHINDUCTOR_COMPILE_THREADS"}


@needs_vllm
def test_bfloat16(model_dir: Path) -> None:
    learner = policy_of(model_dir, dtype="bfloat16")
    generator = generator_of(model_dir, learner)
    try:
        generator.sync(learner, 0)
        assert gap(generator, learner) < 0.25
        step(learner, 1.0)
        with pytest.raises(AlignError):
            gap(generator, learner)
        generator.sync(learner, 1)
        assert gap(generator, learner) < 0.25
    finally:
        generator.close()


# --- a server --------------------------------------------------------------------------------------------------------


@needs_vllm
@only_a_server
def test_a_server_asks_for_its_key_on_every_path(generator: VLLM) -> None:
    from align.core.util.http import Client, Refused

    with Client(generator.engine.servers[0].url, key="guessed", retries=0) as stranger:
        for path in ("/collective_rpc", "/reset_prefix_cache", "/update_weights", "/inference/v1/generate", "/pause"):
            with pytest.raises(Refused, match="401"):
                stranger.post(path, {"method": "align_load", "args": []})


@needs_vllm
@only_a_server
def test_a_server_with_other_weights_than_the_last_sent_gets_them_before_its_answers_count(
    generator: VLLM, policy: Policy, model_dir: Path
) -> None:
    learner = policy_of(model_dir)
    step(learner)
    generator.sync(learner, 3)
    assert gap(generator, learner) < 1e-4
    ((right,),) = generator.generate([Request(PROMPTS[0], (1,))], GREEDY)
    (server,) = generator.engine.servers
    before = generator.engine.update
    generator.sync(policy, 4)
    ((other,),) = generator.generate([Request(PROMPTS[0], (1,))], GREEDY)
    assert other.logp.tolist() != right.logp.tolist() and not before.directory.exists()
    server.client.post("/update_weight_version", {"new_version": before.label})  # as if it had missed the last ones
    ((again,),) = generator.generate([Request(PROMPTS[0], (1,))], GREEDY)
    assert again.tokens.tolist() == other.tokens.tolist() and server.current_label() == generator.engine.label
    server.client.post("/update_weight_version", {"new_version": "theirs"})
    with pytest.raises(AlignError, match="labelled theirs"):
        generator.generate([Request(PROMPTS[0], (1,))], GREEDY)


@needs_vllm
@only_a_server
def test_damaged_weights_are_not_taken(generator: VLLM, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    import align.plugins.generators.vllm.server as server

    generator.sync(policy, 5)
    monkeypatch.setattr(server, "sha256", lambda _path: "0" * 64)
    with pytest.raises(AlignError, match=r"00000\.safetensors is damaged"):
        generator.sync(policy, 6)
    with pytest.raises(AlignError, match="did not arrive"):
        generator.generate([Request(PROMPTS[0], (1,))], GREEDY)
    monkeypatch.undo()
    generator.sync(policy, 7)
    assert gap(generator, policy) < 1e-4


@needs_vllm
@only_a_server
def test_a_server_that_runs_already(generator: VLLM, policy: Policy, model_dir: Path, tmp_path: Path) -> None:
    generator.sync(policy, 8)
    (tmp_path / "key").write_text(generator.engine.servers[0].child.key)
    there = {"mode": "server", "url": generator.engine.servers[0].url, "key_file": str(tmp_path / "key")}
    second = generator_of(model_dir, policy, **there)
    try:
        learner = policy_of(model_dir)
        step(learner)
        second.sync(learner, 1)
        assert gap(second, learner) < 1e-4
        with pytest.raises(AlignError, match="somebody else uses it"):
            generator.generate([Request(PROMPTS[0], (1,))], GREEDY)
    finally:
        second.close()
    generator.sync(policy, 9)  # the server lives on
    assert gap(generator, policy) < 1e-4


@needs_vllm
@only_a_server
def test_endpoint_says_what_the_server_says(generator: VLLM, policy: Policy, model_dir: Path, tmp_path: Path) -> None:
    generator.sync(policy, 10)
    (tmp_path / "key").write_text(generator.engine.servers[0].child.key)
    address = {"url": generator.engine.servers[0].url + "/v1", "model": str(model_dir)}
    endpoint = Endpoint(Endpoint.Config(**address, key_file=str(tmp_path / "key"), extra={"ignore_eos": True}))
    handle = handle_of(model_dir)
    endpoint.open(handle)
    try:
        tokens = np.array(handle.tokenizer("The cat sat on the")["input_ids"], np.int32)
        (group,) = endpoint.generate([Request(tokens, (1, 2))], GREEDY)
        ((expected,),) = generator.generate([Request(tokens, (1,))], GREEDY)
        said = handle.tokenizer.decode(expected.tokens.tolist(), skip_special_tokens=True)
        assert [handle.tokenizer.decode(sample.tokens.tolist()) for sample in group] == [said, said]
    finally:
        endpoint.close()


@needs_vllm
@pytest.mark.parametrize("victim", ["server", "engine"])
def test_a_server_killed_while_it_answers(victim: str, model_dir: Path, policy: Policy) -> None:
    generator = generator_of(model_dir, policy, mode="server", timeout=60.0, restarts=0)
    try:
        generator.sync(policy, 0)
        (group,) = _children(generator.engine.servers[0].child.process.pid)
        target = group if victim == "server" else _engine_of(group)
        threading.Timer(0.5, os.kill, (target, signal.SIGKILL)).start()
        began = time.monotonic()
        with pytest.raises(AlignError) as error:
            while True:
                generator.generate([Request(PROMPTS[0], tuple(range(32)))], Sampling(max_completion_length=100))
        assert time.monotonic() - began < 60
        if victim == "server":
            assert "the server was killed by SIGKILL" in str(error.value)
        else:
            assert "Engine" in str(error.value)
    finally:
        generator.close()
    for _ in range(100):  # a killed process takes a moment to go
        if not _group(group):
            break
        time.sleep(0.05)
    assert _group(group) == []


@needs_vllm
def test_one_of_two_servers_killed_in_a_phase_changes_no_sample(
    vllm: None, model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    learner = policy_of(model_dir)
    step(learner)
    requests = [Request(prompt, tuple(range(24))) for prompt in PROMPTS]
    sampling = Sampling(max_completion_length=32)
    waves = {"max_num_seqs": 4}  # else all completions end at the same time, and none is under way after the first
    generator = generator_of(model_dir, learner, mode="server", servers=2, timeout=120.0, engine=waves)
    try:
        generator.sync(learner, 0)
        assert gap(generator, learner) < 1e-4
        undisturbed = generator.generate(requests, sampling)
        victim, other = generator.engine.servers
        (server,) = _children(victim.child.process.pid)
        done: list[int] = []

        def kill(*_: object) -> None:
            done.append(1)
            if len(done) == 1:
                os.kill(server, signal.SIGKILL)

        disturbed = generator.generate(requests, sampling, on_token=kill)
        assert "killed by SIGKILL" in (capfd.readouterr().err + str(victim.out))
        for group, same in zip(undisturbed, disturbed, strict=True):
            assert [sample.tokens.tolist() for sample in group] == [sample.tokens.tolist() for sample in same]
            for a, b in zip(group, same, strict=True):
                np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
        # The replaced one has the weights that were sent before it was started, by the gate's own measure.
        for _ in range(1200):
            if victim.child.process.poll() is None and not victim.gone and victim.out is not None:
                victim.is_back()
            if victim.out is None:
                break
            time.sleep(0.1)
        assert [each.title for each in generator.engines] == [f"vllm at {each.url}" for each in (victim, other)]
        assert gap(generator, learner) < 1e-4
    finally:
        generator.close()


@needs_vllm
def test_a_server_does_not_outlive_whoever_started_it(model_dir: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from align.plugins.generators.vllm import VLLM
from align.plugins.generators.vllm.child_server import ChildServer
arguments = dict(model={str(model_dir)!r}, dtype="float32", max_model_len=64, kv_cache_memory_bytes=2**27)
started = ChildServer(VLLM.Config(mode="server"), arguments)
started.wait_until_ready(600)
print(Path(f"/proc/{{started.process.pid}}/task/{{started.process.pid}}/children").read_text(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    group = int(done.stdout)
    for _ in range(400):
        if not _group(group):
            break
        time.sleep(0.05)
    assert _group(group) == []


@needs_vllm
def test_a_server_that_cannot_start_says_why(model_dir: Path, policy: Policy) -> None:
    with pytest.raises(AlignError, match=r"max_model_len \(100000\)") as error:
        generator_of(model_dir, policy, mode="server", context=100_000)
    assert "the server ended with status 1" in str(error.value) and "Traceback" not in str(error.value)


# --- whole runs ------------------------------------------------------------------------------------------------------


def run_of(model_dir: Path, output: Path, generator: dict[str, Any], steps: int, processes: int = 1) -> Run:
    prompts = output.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"row {i}"}) + "\n" for i in range(32)))
    stage = {
        "name": "only",
        "model": {"path": str(model_dir)},
        "data": {"train": str(prompts), "dataset_num_proc": 1},
        "algorithm": {"type": "grpo", "num_generations": 4},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"type": "constant"},
        "train": {"batch_size": 32, "max_steps": steps},
        "checkpoint": {"save_steps": 1},
        "devices": {"accelerator": "cpu", "count": processes},
        "rollout": {
            "generator": {"type": "vllm", "kv_cache": 0.125, **generator},
            "rewards": [python("low_ids")],
            "sampling": {"max_completion_length": 12},
        },
    }
    return Run.model_validate({"output": str(output), "stages": [stage]})


def measured(run: Run) -> list[tuple[float, float]]:
    """(reward, gap at the gate) of each step."""
    with open(Path(run.output) / "only" / "metrics.csv") as file:
        lines = list(csv.DictReader(file))
    return [(float(line["reward"]), float(line["sampling/sync_gap"])) for line in lines if line.get("reward")]


@needs_vllm
def test_grpo_learns_and_two_ranks_see_what_one_sees(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    alone = run_of(model_dir, tmp_path / "alone", {}, 8)
    train(alone, progress=False)
    rewards, gaps = zip(*measured(alone), strict=True)
    assert len(rewards) == 8 and rewards[-1] > rewards[0] + 0.2
    assert max(gaps) < 1e-4
    together = run_of(model_dir, tmp_path / "together", {}, 3, processes=2)
    train(together, progress=False)
    assert [reward for reward, _ in measured(together)] == pytest.approx(rewards[:3], abs=1e-9)


@needs_vllm
def test_a_run_whose_server_is_killed_stops_with_the_reason_and_goes_on(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    run = run_of(model_dir, tmp_path / "run", {"mode": "server", "timeout": 60.0, "restarts": 0}, 6)
    checkpoints = tmp_path / "run" / "only" / "checkpoints"
    killed: list[int] = []
    others = _servers()

    def kill() -> None:
        while len(list(checkpoints.glob("step-*"))) < 2:
            time.sleep(0.05)
        for server in set(_servers()) - set(others):
            killed.append(server)
            os.kill(server, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(AlignError, match="killed by SIGKILL"):
        train(run, progress=False)
    assert len(killed) == 1
    done = len(measured(run))
    assert 2 <= done < 6
    train(run, resume=True, progress=False)
    assert len(measured(run)) == 6 and _servers() == others


def _servers() -> list[int]:
    """Servers that were started here and that live; each has a supervisor between it and us."""
    return [server for supervisor in _children(os.getpid()) for server in _children(supervisor)]


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in found for child in children.read_text().split()]


def _group(group: int) -> list[int]:
    """Processes of a group that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def _engine_of(group: int) -> int:
    (engine,) = [pid for pid in _group(group) if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return engine
