"""Tokenising as a whole: the same in one process or many, kept and found again, damage noticed, errors stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from align.core.data.batch import Batch, collate
from align.core.data.datasets import TokenizedData, tokenize_chunk, tokenize_records
from align.core.data.encode import Encoder
from align.core.data.examples import Example, Store, TokenSequence, to_record_batch
from align.core.data.step_plan import denominators
from align.core.data.template_checks import TokenizationSettings
from align.core.util.child_processes import ordered_map
from align.plugins.algorithms.dpo import DPO
from align.plugins.algorithms.sft import SFT
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Data
from tests.core import families, work
from tests.core.families import assistant, settings, user
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SFT_ = SFT(SFT.Config())
ROWS = [
    Record("text", f"chat.jsonl:{i + 1}", text=[user(f"Is {i} right?"), assistant("Yes. " * (1 + i % 7))])
    for i in range(1200)
]


def data(**changed: Any) -> Data:
    return Data(train=[{"path": "chat.jsonl"}], **changed)


def same(a: Example, b: Example) -> bool:
    return (a.source, dict(a.columns), len(a.sequences)) == (b.source, dict(b.columns), len(b.sequences)) and all(
        s.role == t.role and np.array_equal(s.tokens, t.tokens) and np.array_equal(s.scored, t.scored)
        for s, t in zip(a.sequences, b.sequences, strict=True)
    )


def test_examples_are_those_of_the_records_in_order(tmp_path: Path) -> None:
    rows = [*ROWS[:600], Record("completion", "pairs.jsonl:1", prompt="What is", completion=" the sum")]
    done = tokenize_records(rows, TOKENIZER, SFT_, data(), sources=[0] * 600 + [1], weights=(3, 1), cache=tmp_path)
    encoder, settled = Encoder(TOKENIZER), TokenizationSettings.of(SFT_, data())
    (batch, _) = tokenize_chunk((encoder, settled), (rows, [0] * 600 + [1]))
    memory = Store([batch], "x")
    assert len(done.examples) == len(rows)
    assert all(same(done.examples[i], memory[i]) for i in range(len(rows)))
    assert [done.examples[i].source for i in (0, 599, 600, -1)] == [rows[i].source for i in (0, 599, 600, -1)]
    assert done.examples.lengths.tolist() == [sum(done.examples[i].lengths) for i in range(len(rows))]
    assert done.examples.sources.tolist() == [0] * 600 + [1]
    assert done.examples.weights == (3, 1)
    with pytest.raises(IndexError):
        done.examples[601]


HALF = [user("Is it right?"), assistant("Yes.") | {"weight": 0.5}, user("Is it?"), assistant("No, no.")]


def test_weights_of_messages_are_kept_with_their_tokens(tmp_path: Path) -> None:
    """Weights pass through the store, also next to rows without any and where rows are cut; 0 is as if not scored."""
    rows = [
        Record("text", "f:1", text=HALF),
        ROWS[0],
        Record("completion", "f:2", prompt=HALF[:1], completion=HALF[1:2]),
    ]
    done = tokenize_records(rows, TOKENIZER, SFT_, data(), cache=tmp_path)
    again = tokenize_records(rows, TOKENIZER, SFT_, data(), cache=tmp_path)
    first, later = TOKENIZER("Yes.<|im_end|>")["input_ids"], TOKENIZER("No, no.<|im_end|>")["input_ids"]
    for found in (done.examples, again.examples):
        (sequence,) = found[0].sequences
        assert sequence.tokens[sequence.scored].tolist() == [*first, *later]
        assert sequence.token_data["message_weight"].tolist() == [0.5] * len(first) + [1.0] * len(later)
        assert not found[1].sequences[0].token_data
        assert found[2].sequences[0].token_data["message_weight"].tolist()[: len(first)] == [0.5] * len(first)
    start = int(sequence.scored.argmax())
    short = tokenize_records(rows[:1], TOKENIZER, SFT_, data(truncation_mode="keep_start", max_length=start + 1))
    assert short.examples[0].sequences[0].token_data["message_weight"].tolist() == [0.5]
    batch = collate([done.examples[0], done.examples[1]], "packed", 0)
    plain = int(done.examples[1].sequences[0].scored.sum())
    assert batch.token_data["message_weight"].tolist() == [0.5] * len(first) + [1.0] * (len(later) + plain)
    nought = [message | {"weight": 0} if "weight" in message else message for message in HALF]
    (sequence,) = tokenize_records([Record("text", "f:1", text=nought)], TOKENIZER, SFT_, data()).examples[0].sequences
    assert sequence.tokens[sequence.scored].tolist() == later
    assert not sequence.token_data


def test_the_loss_of_weighed_messages_is_the_weighted_mean_however_the_step_is_cut() -> None:
    """sum of w l over sum of w, in float64 by hand."""
    rows = [Record("text", "f:1", text=HALF), ROWS[0], ROWS[1]]
    examples = tokenize_records(rows, TOKENIZER, SFT_, data()).examples
    step = [examples[i] for i in range(3)]
    weights = np.concatenate([example.sequences[0].weights.astype(float) for example in step])
    logp = -np.random.default_rng(0).random(len(weights))
    expected = -(weights * logp).sum() / weights.sum()
    slope = -weights / weights.sum()
    counts = denominators(step)
    for cut in ([step], [step[:1], step[1:]], [[each] for each in step]):
        leaf, start, loss = torch.tensor(logp, requires_grad=True), 0, torch.zeros((), dtype=torch.float64)
        for micro in cut:
            made = collate(micro, "padded", 0, like=step)
            end = start + len(made.target_T)
            shared = ("sequence_T", "position_T", "example_B", "role_B", "roles", "examples", "token_data")
            batch = Batch(logp_T=leaf[start:end], **{name: getattr(made, name) for name in shared})
            loss, start = loss + SFT_.loss(batch).loss_contribution(counts), end
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
        assert leaf.grad is not None
        assert leaf.grad.numpy() == pytest.approx(slope, rel=1e-12)


def test_weights_between_0_and_1_are_refused_by_who_compares_answers() -> None:
    row = Record("preference", "f:1", prompt=HALF[:1], chosen=HALF[1:2], rejected=[assistant("No.")])
    with pytest.raises(AlignError, match=r"(?s)message 2 has weight 0\.5.*give each message weight 0 .* or 1"):
        tokenize_records([row], TOKENIZER, DPO(DPO.Config()), data())


def test_processes_change_nothing() -> None:
    state = (Encoder(TOKENIZER), settings(allow=frozenset(["boundary-merge"])))
    bad = [Record("completion", f"f:{i}", prompt="What is t", completion="he sum") for i in range(20)]
    items = [(ROWS[:300], [0] * 300), (bad, [1] * 20), (ROWS[300:400], [0] * 100)]
    here, there = (list(ordered_map(tokenize_chunk, state, items, workers)) for workers in (0, 2))
    assert [batch for batch, _ in here] == [batch for batch, _ in there]
    assert [tally.findings(state[1], state[0]) for _, tally in here] == [
        tally.findings(state[1], state[0]) for _, tally in there
    ]


def test_a_worker_that_dies_is_an_error_with_a_fix() -> None:
    with pytest.raises(AlignError, match=r"data\.dataset_num_proc: 1"):
        list(ordered_map(work.fall, 1, range(8), 1))


def test_workers_do_not_outlive_a_killed_parent() -> None:
    script = """
import time
from tests.core.work import pid
from align.core.util.child_processes import ordered_map
if __name__ == "__main__":
    pids = ordered_map(pid, 0, range(99), 1)
    print(next(pids), flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail("the worker is still there")


# Kept and found again.


def test_the_same_data_are_found_again_and_read_in_place(tmp_path: Path) -> None:
    warned = [replace(ROWS[0], text=[user("<|im_end|>"), assistant("No.")]), *ROWS[1:50]]
    first, second = (tokenize_records(warned, TOKENIZER, SFT_, data(), cache=tmp_path) for _ in range(2))
    assert all(same(first.examples[i], second.examples[i]) for i in range(50))
    assert first.findings == second.findings != []
    assert first.examples.fingerprint == second.examples.fingerprint
    (kept,) = tmp_path.glob("*.arrow")
    kept.with_suffix(".json").touch()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{first.examples.fingerprint}{end}" for end in (".arrow", ".json")
    }
    assert not second.examples[0].sequences[0].tokens.flags.owndata


def test_the_fingerprint_tells_whatever_could_make_a_difference() -> None:
    other_template, with_bos = tiny_tokenizer(families.CHATML), tiny_tokenizer(add_bos=True)
    rows = ROWS[:3]
    variants: list[TokenizedData] = [
        tokenize_records(rows, TOKENIZER, SFT_, data()),
        tokenize_records(rows[::-1], TOKENIZER, SFT_, data()),
        tokenize_records([*rows[:2], replace(rows[2], source="b:1")], TOKENIZER, SFT_, data()),
        tokenize_records([*rows[:2], replace(rows[2], tools=[{"name": "clock"}])], TOKENIZER, SFT_, data()),
        tokenize_records([*rows[:2], replace(rows[2], chat_template_kwargs={"mood": 1})], TOKENIZER, SFT_, data()),
        tokenize_records(rows, other_template, SFT_, data()),
        tokenize_records(rows, with_bos, SFT_, data()),
        tokenize_records(rows, TOKENIZER, SFT_, data(max_length=1000)),
        tokenize_records(rows, TOKENIZER, SFT_, data(truncation_mode="drop")),
        tokenize_records(rows, TOKENIZER, SFT_, data(allow=["full-mask"])),
        tokenize_records(rows, TOKENIZER, SFT_, data(), sources=[0, 0, 1]),
        tokenize_records(rows, TOKENIZER, SFT_, data(), weights=(2,)),
    ]
    assert len({v.examples.fingerprint for v in variants}) == len(variants)
    again = tokenize_records(rows, tiny_tokenizer(), SFT(SFT.Config()), data(dataset_num_proc=2, on_bad_rows="skip"))
    assert again.examples.fingerprint == variants[0].examples.fingerprint


@pytest.mark.parametrize("damage", ["flip", "cut", "manifest"])
def test_damage_is_seen_and_fixed(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    first = tokenize_records(ROWS[:50], TOKENIZER, SFT_, data(), cache=tmp_path)
    expected = [first.examples[i] for i in range(50)]
    expected = [replace(e, sequences=tuple(replace(s, tokens=s.tokens.copy()) for s in e.sequences)) for e in expected]
    (path,) = tmp_path.glob("*.json" if damage == "manifest" else "*.arrow")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # the first store still maps the old file
    path.write_bytes(content[: len(content) // 3] if damage == "cut" else content)
    if damage == "manifest":
        path.write_bytes(b"{")
    with pytest.raises(AlignError, match="damaged"):
        Store.open(tmp_path, first.examples.fingerprint)
    again = tokenize_records(ROWS[:50], TOKENIZER, SFT_, data(), cache=tmp_path)
    assert "damaged" in caplog.text
    assert all(same(again.examples[i], expected[i]) for i in range(50))
    assert Store.open(tmp_path, first.examples.fingerprint) is not None


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield to_record_batch(
            [Example("f:1", (TokenSequence("text", np.arange(3, dtype=np.int32), np.ones(3, bool)),))], [0]
        )
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store.write(tmp_path, "x", (1.0,), batches())
    assert list(tmp_path.iterdir()) == []
    assert Store.open(tmp_path, "x") is None


def test_data_without_a_manifest_do_not_exist(tmp_path: Path) -> None:
    first = tokenize_records(ROWS[:5], TOKENIZER, SFT_, data(), cache=tmp_path)
    (tmp_path / f"{first.examples.fingerprint}.json").unlink()
    assert Store.open(tmp_path, first.examples.fingerprint) is None


# What stops it.


def test_errors_stop_before_anything_is_kept_and_name_the_rows(tmp_path: Path) -> None:
    bad = [replace(ROWS[i], text=ROWS[i].text[:1]) for i in (3, 900)]  # type: ignore[index]
    rows = [bad[0] if i == 3 else bad[1] if i == 900 else row for i, row in enumerate(ROWS)]
    with pytest.raises(AlignError) as caught:
        tokenize_records(rows, TOKENIZER, SFT_, data(), cache=tmp_path)
    assert caught.value.problems[0].where == "chat.jsonl:4, chat.jsonl:901"
    assert "empty-mask" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    done = tokenize_records(rows, TOKENIZER, SFT_, data(allow=["empty-mask"]), cache=tmp_path)
    assert len(done.examples) == 1198
    assert [(f.id, f.count, f.left_out) for f in done.findings] == [("empty-mask", 2, 2)]


def test_all_errors_are_told_at_once() -> None:
    rows = [ROWS[0], replace(ROWS[1], text="\ud800"), Record("prompt", "f:9", prompt="Why?")]
    with pytest.raises(AlignError) as caught:
        tokenize_records(rows, TOKENIZER, SFT_, data())
    assert {"bad-unicode", "wrong-kind"} <= {problem.what.split(":")[0] for problem in caught.value.problems}


def test_a_prompt_alone_teaches_an_offline_algorithm_nothing() -> None:
    with pytest.raises(AlignError, match=r"prompts.jsonl:1\n.*wrong-kind.*a prompt row"):
        tokenize_records([Record("prompt", "prompts.jsonl:1", prompt="Why?")], TOKENIZER, DPO(DPO.Config()), data())


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(AlignError, match="no row is left"):
            tokenize_records(ROWS[:3], TOKENIZER, SFT_, data(max_length=2, truncation_mode="drop"), cache=tmp_path)
    with pytest.raises(AlignError, match="no row is left"):
        tokenize_records([], TOKENIZER, SFT_, data())


def test_a_slow_tokenizer_is_refused_with_a_fix() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(AlignError, match=r"tokenizer\.json"):
        Encoder(Slow())  # type: ignore[arg-type]
