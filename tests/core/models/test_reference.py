"""References: the policy that training starts from, to the bit, whatever happens to the policy meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.core.data.batch import collate
from align.core.data.examples import Example, TokenSequence
from align.core.models.policy import Policy, weights_hash
from align.core.models.precompute import precompute
from align.core.models.reference import AdapterOff, assert_zero_kl, make_reference
from align.schemas import run
from align.schemas.errors import AlignError
from align.schemas.run import Adapter
from tests.core.models.references import DORA, LORA, Held, evaluated, example, learn, reference_to, rows, stage, start
from tests.core.ranks import torchrun
from tests.tiny import tiny_model

KINDS = ["copy", "adapter-off", "adapter-snapshot", "moving-average"]


@contextmanager
def nothing_drawn() -> Iterator[None]:
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.fixture(scope="module")
def dropping_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The tiny model with dropout in its attention."""
    directory = tmp_path_factory.mktemp("dropping") / "model"
    tiny_model(attention_dropout=0.5).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """An adapter that has learned something."""
    policy = start(tiny_model_dir, LORA)
    learn(policy)
    directory = tmp_path_factory.mktemp("adapter") / "adapter"
    policy.model.save_pretrained(str(directory))  # type: ignore[operator]
    return directory


@pytest.mark.parametrize("adapter", [None, LORA, DORA], ids=["full", "lora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_stays_where_training_started(dropping_dir: Path, kind: str, adapter: Adapter | None) -> None:
    if adapter is None and kind.startswith("adapter"):
        with pytest.raises(AlignError, match="no adapter is trained"):
            reference_to(start(dropping_dir), dropping_dir, kind)
        return
    policy = start(dropping_dir, adapter)
    at_start = evaluated(policy)
    reference = reference_to(policy, dropping_dir, kind, adapter)
    assert reference.kind == kind or (kind == "copy" and reference.kind == "adapter-snapshot")
    assert_zero_kl(reference, policy, rows())
    learn(policy)
    with nothing_drawn():
        logp_T = reference.logp(rows())
    assert not logp_T.requires_grad
    assert policy.training  # and yet its dropout did not reach the reference
    assert (evaluated(policy) - at_start).abs().max() > 0.1
    # with the adapter off the network has its base's weights; DoRA at its start is them up to rounding
    exact = not (kind == "adapter-off" and adapter is DORA)
    assert torch.equal(logp_T, at_start) if exact else torch.allclose(logp_T, at_start, atol=1e-5)


@pytest.mark.parametrize("adapter", [None, LORA, DORA], ids=["full", "lora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_pass_between_forward_and_backward_leaves_no_trace(
    dropping_dir: Path, kind: str, adapter: Adapter | None
) -> None:
    if adapter is None and kind.startswith("adapter"):
        return
    gradients, hashes = [], []
    for passes in (0, 2):
        policy = start(dropping_dir, adapter)
        reference = reference_to(policy, dropping_dir, kind, adapter)
        torch.manual_seed(2)
        learn(policy, rate=0.1)
        policy.zero_grad()
        wanted = {name: p.requires_grad for name, p in policy.named_parameters()}
        before = weights_hash(policy)
        torch.manual_seed(3)
        for _ in range(passes // 2):
            reference.logp(rows())
        logp_T = policy(rows()).logp_T
        for _ in range(passes // 2):
            reference.logp(rows())
        assert all(p.grad is None for p in policy.parameters())
        logp_T.sum().backward()
        assert weights_hash(policy) == before
        assert wanted == {name: p.requires_grad for name, p in policy.named_parameters()}
        gradients.append([p.grad for p in policy.parameters()])
        hashes.append(before)
    assert hashes[0] == hashes[1]
    for one, other in zip(*gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_a_copy_changes_places_with_the_policy_without_copying(tiny_model_dir: Path, adapter: Adapter | None) -> None:
    policy = start(tiny_model_dir, adapter)
    reference = reference_to(policy, tiny_model_dir, "copy", adapter)
    parameters = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    own = {n: p.data_ptr() for n, p in parameters.items()}
    kept = {n: v.data_ptr() for n, v in reference.values.items()}
    during: list[dict[str, int]] = []
    policy.register_forward_hook(lambda *_: during.append({n: p.data_ptr() for n, p in parameters.items()}))
    reference.logp(rows())
    assert during == [kept] and not own.keys() ^ kept.keys()
    assert own == {n: p.data_ptr() for n, p in policy.named_parameters() if p.requires_grad}
    assert kept == {n: v.data_ptr() for n, v in reference.values.items()}


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_a_reference_pass_that_fails_restores_the_policy(tiny_model_dir: Path, adapter: Adapter | None) -> None:
    policy = start(tiny_model_dir, adapter)
    reference = reference_to(policy, tiny_model_dir, "copy", adapter)
    learn(policy)
    before, kept = weights_hash(policy), {n: v.clone() for n, v in reference.values.items()}

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    hook = policy.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        reference.logp(rows())
    hook.remove()
    # A value that does not fit is found before the first of them has changed places.
    last = list(reference.values)[-1]
    whole = reference.values[last]
    reference.values[last] = None
    with pytest.raises(AttributeError):
        reference.logp(rows())
    reference.values[last] = whole
    assert weights_hash(policy) == before and policy.training and policy.metrics
    assert all(torch.equal(v, kept[n]) for n, v in reference.values.items())


def test_an_optimizer_trains_the_same_parameters_after_a_reference_pass(tiny_model_dir: Path) -> None:
    found = []
    for passes in (0, 1):
        policy = start(tiny_model_dir)
        reference = reference_to(policy, tiny_model_dir, "copy")
        optimizer = torch.optim.AdamW(policy.parameters(), lr=0.01, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(passes):
                reference.logp(rows())
            (-policy(rows()).logp_T.mean()).backward()
            optimizer.step()
        found.append(weights_hash(policy))
    assert found[0] == found[1]


def test_a_reference_computes_no_metrics_and_training_goes_on_with_them(tiny_model_dir: Path) -> None:
    policy = start(tiny_model_dir)
    reference = reference_to(policy, tiny_model_dir, "copy")
    seen: list[Any] = []
    policy.register_forward_hook(lambda _module, _inputs, scores: seen.append(scores))
    assert torch.equal(reference.logp(rows()), evaluated(policy))
    of_reference, of_policy = seen
    assert of_reference[1:4] == (None, None, None)
    assert of_policy.entropy_T is not None and of_policy.correct_T is not None and of_policy.logit_T is not None


def test_adapter_off_is_the_base_model(tiny_model_dir: Path) -> None:
    policy = start(tiny_model_dir, LORA)
    learn(policy)
    plain = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir), "language")
    assert torch.equal(AdapterOff(policy).logp(rows()), evaluated(plain))


@pytest.mark.parametrize(
    ("adapter", "known_ahead", "kind"),
    [(None, True, "precomputed"), (None, False, "copy"), (LORA, True, "adapter-off"), (LORA, False, "adapter-off")],
)
def test_auto(tiny_model_dir: Path, adapter: Adapter | None, known_ahead: bool, kind: str) -> None:
    policy = start(tiny_model_dir, adapter)
    made = make_reference(run.Reference(), policy, stage(tiny_model_dir, adapter), known_ahead=known_ahead)
    assert made.kind == kind


def test_an_adapter_that_is_trained_on_is_its_own_reference(adapter_dir: Path) -> None:
    policy = start(adapter_dir)
    at_start = evaluated(policy)
    reference = reference_to(policy, adapter_dir, "auto")
    assert reference.kind == "adapter-snapshot"
    assert_zero_kl(reference, policy, rows())
    learn(policy)
    assert torch.equal(reference.logp(rows()), at_start)


def test_its_base_would_be_the_wrong_reference_and_is_refused(adapter_dir: Path) -> None:
    policy = start(adapter_dir)
    with pytest.raises(AlignError, match="not the model that training starts from") as caught:
        reference_to(policy, adapter_dir, "adapter-off")
    assert caught.value.problems[0].fix == "use adapter-snapshot"


def test_a_reference_that_differs_is_refused_with_both_numbers(adapter_dir: Path) -> None:
    policy = start(adapter_dir)
    wrong = AdapterOff(policy)
    own, other = evaluated(policy), wrong.logp(rows())
    worst = int((own - other).abs().argmax())
    with pytest.raises(AlignError) as caught:
        assert_zero_kl(wrong, policy, rows())
    told = str(caught.value)
    assert f"{float(own[worst]):.4f} under the policy" in told
    assert f"{float(other[worst]):.4f} under the reference" in told
    assert "tolerance 0.001" in told


def test_nan_is_never_zero_kl(tiny_model_dir: Path) -> None:
    policy = start(tiny_model_dir)
    reference = reference_to(policy, tiny_model_dir, "copy")
    with torch.no_grad():
        policy.unwrapped.model.norm.weight[0] = float("nan")  # type: ignore[union-attr,index]
    with pytest.raises(AlignError, match="nan under the policy"):
        assert_zero_kl(reference, policy, rows())


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_a_moving_average_by_hand(tiny_model_dir: Path, adapter: Adapter | None) -> None:
    """alpha = 0.25, tau = 2: after steps 2 and 4 ref <- 0.25 policy + 0.75 ref, after 1 and 3 nothing."""
    policy = start(tiny_model_dir, adapter)
    reference = reference_to(
        policy, tiny_model_dir, "moving-average", adapter, ref_model_mixup_alpha=0.25, ref_model_sync_steps=2
    )
    expected = {n: p.detach().clone() for n, p in policy.named_parameters()}
    for step in (1, 2, 3, 4):
        learn(policy, steps=1)
        reference.after_step(policy, step)
        if step % 2 == 0:
            for name, parameter in policy.named_parameters():
                expected[name] = 0.25 * parameter.detach() + 0.75 * expected[name]
    other = start(tiny_model_dir, adapter)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(expected[name])
    assert torch.allclose(reference.logp(rows()), evaluated(other), atol=1e-5)

    resumed = reference_to(start(tiny_model_dir, adapter), tiny_model_dir, "moving-average", adapter)
    resumed.policy = policy
    resumed.load_state_dict(reference.state_dict())
    assert torch.equal(resumed.logp(rows()), reference.logp(rows()))


def test_a_copy_knows_when_the_start_has_changed(tiny_model_dir: Path, tmp_path: Path) -> None:
    state = reference_to(start(tiny_model_dir), tiny_model_dir, "copy").state_dict()
    reference_to(start(tiny_model_dir), tiny_model_dir, "copy").load_state_dict(state)
    tiny_model(seed=1).save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "m")
    with pytest.raises(AlignError, match="has changed"):
        reference_to(start(tmp_path / "m"), tmp_path / "m", "copy").load_state_dict(state)


# ---- precomputed --------------------------------------------------------------------------------------------------


def forward_passes(policy: Policy) -> list[int]:
    seen: list[int] = []
    policy.register_forward_hook(lambda *_: seen.append(1))
    return seen


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(1, 24), min_size=1, max_size=2), min_size=1, max_size=9),
    layout=st.sampled_from(["padded", "packed"]),
    micro_tokens=st.sampled_from([None, 16, 64]),
)
def test_precomputed_is_what_the_policy_says_of_each_sequence(
    tiny_model_dir: Path, shapes: list[list[int]], layout: Any, micro_tokens: int | None
) -> None:
    policy = start(tiny_model_dir)
    examples = Held([example(f"rows:{i}", *shape, seed=i) for i, shape in enumerate(shapes)])
    known = precompute(policy, examples, layout=layout, pad_id=0, micro_tokens=micro_tokens)
    assert len(known) == len(examples) and known.fingerprint != examples.fingerprint
    for i, plain in enumerate(examples.examples):
        assert known[i].source == plain.source
        for mine, sequence in zip(known[i].sequences, plain.sequences, strict=True):
            with torch.no_grad():
                alone = policy(collate([Example("alone", (sequence,))], "padded", 0)).logp_T
            assert mine.ref_logp is not None and mine.ref_logp.dtype == np.float32
            assert np.allclose(mine.ref_logp, alone, atol=1e-4)


def test_precomputed_is_zero_kl_and_travels_with_the_examples(dropping_dir: Path) -> None:
    policy = start(dropping_dir)
    examples = Held([example("rows:1", 7, 11), example("rows:2", 4, 9), example("rows:3", 5, 5)])
    with nothing_drawn():
        known = precompute(policy, examples, layout="padded", pad_id=0, micro_tokens=32)
    reference = reference_to(policy, dropping_dir, "auto")
    assert reference.kind == "precomputed"
    micro = collate([known[0], known[2]], "padded", 0)
    assert_zero_kl(reference, policy, micro)
    learn(policy)
    with pytest.raises(AlignError, match="is not the policy that training starts from"):
        assert_zero_kl(reference, policy, micro)
    with pytest.raises(ValueError, match="not precomputed"):
        reference.logp(collate([examples[0]], "padded", 0))


def test_precomputed_is_computed_once_and_kept_whole(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy = start(tiny_model_dir)
    seen = forward_passes(policy)
    examples = Held([example(f"rows:{i}", 5 + i, 9) for i in range(6)])

    def compute(data: Held, **settings: Any) -> np.ndarray[Any, Any]:
        given: dict[str, Any] = {"layout": "padded", "pad_id": 0, "micro_tokens": 64, "cache": tmp_path} | settings
        known = precompute(policy, data, **given)
        return np.concatenate([s.ref_logp for i in range(len(data)) for s in known[i].sequences])  # type: ignore[misc]

    first = compute(examples)
    assert seen
    seen.clear()
    assert np.array_equal(compute(examples), first) and not seen
    (kept,) = tmp_path.iterdir()

    content = bytearray(kept.read_bytes())
    content[-1] ^= 1  # one flipped bit, which neither numpy nor the file system notices
    kept.write_bytes(bytes(content))
    assert np.array_equal(compute(examples), first) and seen

    for change in ("data", "weights", "layout"):
        seen.clear()
        if change == "weights":
            learn(policy, steps=1)
            seen.clear()
        data = Held(examples.examples, "g") if change == "data" else examples
        compute(data, **({"layout": "packed"} if change == "layout" else {}))
        assert seen, change
    assert len(list(tmp_path.iterdir())) == 4


def test_only_the_rows_that_are_read_are_measured(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The values are those of all rows to rounding, and to the bit those that the same rows always give."""
    policy = start(tiny_model_dir)
    read: list[int] = []
    policy.register_forward_hook(lambda _, given, __: read.append(given[0].last_B.numel()))
    examples = Held([example(f"rows:{i}", 5 + i, 9 + 2 * i, seed=i) for i in range(9)])
    chosen = np.array([1, 4, 8])

    def compute(rows: np.ndarray[Any, Any] | None, cache: Path | None) -> list[Any]:
        read.clear()
        known = precompute(policy, examples, layout="padded", pad_id=0, micro_tokens=64, rows=rows, cache=cache)
        return [[s.ref_logp for s in known[i].sequences] for i in range(9)]

    some = compute(chosen, tmp_path)
    assert sum(read) == 2 * len(chosen)
    assert all(part is None for i in range(9) if i not in chosen for part in some[i])
    every = compute(None, tmp_path)
    assert sum(read) == 2 * 9, "values of some rows were taken for those of all"
    for i in chosen:
        for mine, theirs in zip(some[i], every[i], strict=True):
            assert np.allclose(mine, theirs, atol=1e-5)
    for cache in (tmp_path, None):  # a cache of all rows that lies beside changes nothing
        again = compute(chosen, cache)
        assert bool(read) is (cache is None)
        for i in chosen:
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(some[i], again[i], strict=True))
    with pytest.raises(ValueError, match="some rows of the step have reference"):
        known = precompute(policy, examples, layout="padded", pad_id=0, micro_tokens=64, rows=chosen)
        collate([known[1], known[2]], "padded", 0)


def test_a_pair_s_shorter_answer_is_not_padded_to_the_longer_one(tiny_model_dir: Path) -> None:
    policy = start(tiny_model_dir)
    positions: list[int] = []
    policy.register_forward_hook(lambda _, given, __: positions.append(given[0].input_ids_RL.numel()))
    examples = Held([example(f"rows:{i}", 12, 200, seed=i) for i in range(8)])
    precompute(policy, examples, layout="padded", pad_id=0, micro_tokens=4096)
    assert sum(positions) == 8 * (12 + 200)


def test_a_reference_that_is_not_finite_names_the_row(tiny_model_dir: Path) -> None:
    policy = start(tiny_model_dir)
    unscored = Example("rows:0", (TokenSequence("chosen", np.array([5, 6], np.int32), np.zeros(2, bool)),))
    bad = Example("rows:2", (TokenSequence("chosen", np.array([5, 319, 7], np.int32), np.array([False, True, True])),))
    with torch.no_grad():
        policy.unwrapped.model.embed_tokens.weight[319] = float("inf")  # type: ignore[union-attr,index]
    good = Example("rows:1", (TokenSequence("chosen", np.array([5, 6], np.int32), np.array([False, True])),))
    with pytest.raises(AlignError, match="not finite") as caught:
        precompute(
            policy, Held([unscored, good, unscored, bad]), layout="padded", pad_id=0, micro_tokens=8, micro_size=1
        )
    assert caught.value.problems[0].where == "rows:2"


# ---- over ranks ---------------------------------------------------------------------------------------------------

RANKS = """
import sys
from pathlib import Path
import numpy as np, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from align.core.models.precompute import precompute
from align.core.models.reference import assert_zero_kl
from align.core.models.policy import weights_hash
from tests.core.models.references import LORA, Held, evaluated, example, learn, reference_to, rows, start

directory, place = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()

# precomputed: the work is shared, the values are those of one process
policy = start(directory)
examples = Held([example(f"rows:{i}", 5 + i % 3, 9, seed=i) for i in range(7)])
known = precompute(policy, examples, layout="padded", pad_id=0, micro_tokens=40)
np.save(place / f"{rank}.npy", np.concatenate([s.ref_logp for i in range(7) for s in known[i].sequences]))
some = precompute(policy, examples, layout="padded", pad_id=0, micro_tokens=40, rows=np.array([0, 3, 5]))
np.save(place / f"some-{rank}.npy", np.concatenate([s.ref_logp for i in (0, 3, 5) for s in some[i].sequences]))

# a copy of sharded parameters, in whatever order the passes come; its hash is that of the whole
at_start, whole = evaluated(policy), weights_hash(policy)
reference = reference_to(policy, directory, "moving-average", ref_model_mixup_alpha=0.5, ref_model_sync_steps=1)
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
for layer in policy.unwrapped.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(policy, mesh=mesh)
assert weights_hash(policy) == whole
assert_zero_kl(reference, policy, rows())
unsharded = start(directory)
for learner in (unsharded, policy):
    learn(learner, steps=1)
moved = evaluated(unsharded)
for _ in range(2):
    assert torch.allclose(reference.logp(rows()), at_start, atol=1e-5), "the reference moved"
    assert torch.allclose(evaluated(policy), moved, atol=1e-5), "the policy moved"
reference.mixing = 1.0
reference.after_step(policy, 1)
assert torch.allclose(reference.logp(rows()), moved, atol=1e-5), "the reference did not follow"
state = reference.state_dict()["values"]
assert state["model.model.norm.weight"].shape == (32,)

# adapter off under DistributedDataParallel: gradients flow as if there were no reference
policy = start(directory, LORA)
wrapped = DistributedDataParallel(policy)
reference = reference_to(policy, directory, "adapter-off", LORA)
wrapped(rows()).logp_T
reference.logp(rows())
logp = wrapped(rows()).logp_T
reference.logp(rows())
(logp.sum() * (rank + 1)).backward()
other = start(directory, LORA)
(other(rows()).logp_T.sum() * 1.5).backward()
for (name, mine), theirs in zip(policy.named_parameters(), other.parameters()):
    if mine.requires_grad:
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-5, rtol=1e-5), name
dist.destroy_process_group()
"""


def test_two_ranks(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    done = torchrun(str(tmp_path / "ranks.py"), str(tiny_model_dir), str(tmp_path), tmp=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    examples = Held([example(f"rows:{i}", 5 + i % 3, 9, seed=i) for i in range(7)])
    known = precompute(start(tiny_model_dir), examples, layout="padded", pad_id=0, micro_tokens=40)
    alone = np.concatenate([s.ref_logp for i in range(7) for s in known[i].sequences])  # type: ignore[misc]
    assert np.array_equal(np.load(tmp_path / "0.npy"), alone)
    assert np.array_equal(np.load(tmp_path / "1.npy"), alone)
    chosen = np.array([0, 3, 5])
    known = precompute(start(tiny_model_dir), examples, layout="padded", pad_id=0, micro_tokens=40, rows=chosen)
    alone = np.concatenate([s.ref_logp for i in chosen for s in known[i].sequences])  # type: ignore[misc]
    for rank in range(2):
        assert np.array_equal(np.load(tmp_path / f"some-{rank}.npy"), alone)
