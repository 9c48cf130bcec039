from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.core.evaluation.statistics import mean, ratio
from align.core.evaluation.word_f1 import f1, words
from align.core.generation.generator_base import Sample
from align.core.inference.probe_material import Material, QuestionAnswer
from align.core.inference.probe_models import LocalProbeModel
from align.core.inference.probes import (
    PASSAGE,
    ProbeSettings,
    Retriever,
    measure,
    passages,
    with_examples,
    with_passages,
)
from align.core.inference.sampler import Completion
from align.core.rewards.reward_base import RewardContext
from align.core.rewards.scorer import Scorer
from align.schemas.errors import AlignError
from align.schemas.project import Measurement
from align.schemas.records import Record
from align.schemas.run import RewardChoice, Sampling
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


def test_f1_by_hand() -> None:
    # "the" stands twice in the second, once in the first: 3 words in common of 3 and 6, so 2 * 3 / 9
    assert f1("The cat sat.", "the cat sat on the mat") == pytest.approx(2 / 3)
    assert f1("巴黎是首都", "首都是巴黎") == 1.0  # characters, whose order does not count
    assert f1("ﬁve", "FIVE!") == 1.0
    assert (f1("", ""), f1("", "x"), f1("...", "x")) == (1.0, 0.0, 0.0)


@given(st.text(max_size=40), st.text(max_size=40))
def test_f1_is_a_symmetric_share(a: str, b: str) -> None:
    assert 0 <= f1(a, b) <= 1
    assert f1(a, b) == f1(b, a)
    assert f1(a, a) == 1


HUNDREDTHS = st.integers(-1000, 1000).map(lambda i: i / 100)


@given(st.lists(HUNDREDTHS, min_size=2, max_size=50).filter(lambda x: len(set(x)) > 1 and not set(x) <= {0, 1}))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    found = mean(values)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high), rel=1e-6, abs=1e-9)
    assert found.rows == len(values)


def test_shares_have_wilsons_interval_and_single_values_none_to_speak_of() -> None:
    oracle = stats.binomtest(9, 10).proportion_ci(0.95, method="wilson")
    found = mean([1.0] * 9 + [0.0])
    assert (found.value, found.low, found.high, found.rows) == pytest.approx((0.9, oracle.low, oracle.high, 10))
    assert mean([0.3]) == Measurement(value=0.3, low=0, high=1, rows=1)
    assert mean([1.5]) == Measurement(value=1.5, low=0, high=1.5, rows=1)
    with pytest.raises(ValueError, match="nothing"):
        mean([])


def test_ratio_by_hand() -> None:
    # R = 15 / 6; residuals -0.5, -1, 1.5, so s^2 = 3.5 / 2; t of 2 degrees is 4.302653; mean of b is 2
    half = 4.302653 * math.sqrt(1.75) / (math.sqrt(3) * 2)
    found = ratio([2, 4, 9], [1, 2, 3])
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-6)
    assert ratio([3], [2]) == Measurement(value=1.5, low=0, high=3, rows=1)
    for nothing in [([], []), ([1.0], [0.0])]:
        with pytest.raises(ValueError, match="nothing"):
            ratio(*nothing)


@given(st.lists(HUNDREDTHS, min_size=2, max_size=20).filter(lambda x: sum(x) > 0 and not set(x) <= {0, 1}))
def test_a_ratio_to_ones_is_a_mean(values: list[float]) -> None:
    a, b = ratio(values, [1.0] * len(values)), mean(values)
    assert (a.value, a.low, a.high) == pytest.approx((b.value, max(0.0, b.low), b.high), rel=1e-6, abs=1e-9)


def test_intervals_cover_what_they_say() -> None:
    dice = np.random.default_rng(0)
    sizes = dice.integers(1, 30, (800, 25))
    bits = sizes * dice.gamma(4, 0.3, (800, 25))  # 1.2 a byte, whatever the document's length
    covered = [(m := ratio(a, b)).low <= 1.2 <= m.high for a, b in zip(bits, sizes, strict=True)]
    assert 0.92 <= np.mean(covered) <= 0.98


TEXTS = ["The cat sat on the mat.", "Die Straße ist naß – 東京は雨だ。", "x", "the wind over the sea " * 40]


@pytest.mark.parametrize("add_bos", [False, True])
def test_bits_per_byte_is_what_a_plain_loop_says(tmp_path: Path, add_bos: bool) -> None:
    tiny_model(3, max_position_embeddings=64).save_pretrained(tmp_path)
    tiny_tokenizer(add_bos=add_bos).save_pretrained(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    bits = size = 0.0
    counted = 0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :64]
        with torch.no_grad():
            logp = model(ids).logits.double().log_softmax(-1)[0]
        told = sum(float(logp[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1))
        first = "" if add_bos else tokenizer.decode(ids[0, :1])
        length = len(tokenizer.decode(ids[0], skip_special_tokens=True).encode()) - len(first.encode())
        if length:
            bits, size, counted = bits - told / math.log(2), size + length, counted + 1
    found = LocalProbeModel.load(tmp_path).bits_per_byte(
        [Record("text", f"t:{i}", text=t) for i, t in enumerate(TEXTS, 1)]
    )
    assert found.rows == counted == len(TEXTS) - (not add_bos)
    assert found.value == pytest.approx(bits / size, rel=1e-5)
    assert found.low < found.value < found.high


def test_text_too_short_to_predict_is_told(tiny_model_dir: Path) -> None:
    with pytest.raises(AlignError, match="longer than a token"):
        LocalProbeModel.load(tiny_model_dir).bits_per_byte([Record("text", "a.jsonl:1", text="x")])


def test_a_domain_that_was_learned_costs_fewer_bits(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(0), tiny_tokenizer()
    domain = "The sea is wide and the sea is blue, and the wind over the sea is cold."
    ids = tokenizer(domain, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(25):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    probed = LocalProbeModel.load(tmp_path)
    near = [Record("text", f"a:{i}", text=domain[i:]) for i in (0, 4, 8)]
    far = [Record("text", f"b:{i}", text="".join(reversed(domain[i:]))) for i in (0, 4, 8)]
    held = Material(texts=near)
    found = measure(probed, held, ProbeSettings(), reference=far)
    assert found.corpus_bits is not None and found.reference_bits is not None
    assert found.corpus_bits.high < found.reference_bits.low


@given(st.lists(st.text("ab c", min_size=0, max_size=900), max_size=3))
def test_passages_leave_no_word_out_and_are_short(documents: list[str]) -> None:
    found = passages(documents)
    assert all(len(passage.split()) <= PASSAGE for passage in found)
    assert {w for d in documents for w in d.split()} <= {w for p in found for w in p.split()} or any(
        len(d.split()) * 12 < len(d) for d in documents
    )


def test_neighbouring_passages_share_a_third() -> None:
    document = " ".join(f"w{i}" for i in range(400))
    a, b, c = (passage.split() for passage in passages([document]))
    assert (a[0], b[0], c[0], c[-1]) == ("w0", "w120", "w240", "w399")
    assert len(set(a) & set(b)) == PASSAGE // 3


def test_the_planted_passage_is_found() -> None:
    noise = [
        f"Note {i}: the machine in hall {i % 7} was oiled on day {i}, and nothing else was seen." for i in range(300)
    ]
    planted = "The torque of the zephyr valve is forty newton metres."
    finder = Retriever(passages([*noise[:150], planted, *noise[150:]]))
    assert finder.find("What torque does a zephyr valve want?", 3)[0] == planted
    assert Retriever(passages(["天気は晴れです。" * 3, "弁のトルクは四十です。"])).find("弁のトルク?", 1) == [
        "弁のトルクは四十です。"
    ]
    assert finder.find("qwertz", 5) == []
    assert finder.find("?!", 5) == []
    assert Retriever(["...", ""]).find("anything", 5) == []


def question(asked: str, wanted: str, **columns: object) -> QuestionAnswer:
    return QuestionAnswer(Record("prompt", "q:1", prompt=asked, columns=columns), wanted)


def chat(asked: str, wanted: str) -> QuestionAnswer:
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": asked}]
    return QuestionAnswer(Record("prompt", "q:1", prompt=turns), wanted)


def test_worked_examples_stand_before_the_question() -> None:
    shown = [question("Q: 1+1\nA:", " 2"), question("Q: 2+2\nA:", " 4")]
    asked = question("Q: 3+3\nA:", " 6").record
    assert with_examples(asked, shown, lambda record: True).prompt == "Q: 1+1\nA: 2\n\nQ: 2+2\nA: 4\n\nQ: 3+3\nA:"
    said = with_examples(chat("3+3", "6").record, [chat("1+1", "2")], lambda record: True).prompt
    assert said == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3+3"},
    ]


def test_what_does_not_fit_is_left_out_from_the_end() -> None:
    shown = [question("a", "1"), question("b", "2"), question("c", "3")]
    asked = question("d", "4").record
    fits: Callable[[Record], bool] = lambda record: len(str(record.prompt)) <= 9  # noqa: E731
    assert with_examples(asked, shown, fits).prompt == "a1\n\nb2\n\nd"
    assert with_examples(asked, shown, lambda record: False).prompt == "d"
    finder = Retriever(["d is here and long", "d"])
    best = finder.find("d", 2)[0]
    assert with_passages(asked, finder, lambda record: str(record.prompt).count("d") <= 2).prompt == f"{best}\n\nd"


def said(record: Record, text: str) -> Completion:
    return Completion(record, Sample(np.array([3], np.int32), np.zeros(1, np.float32), "stop"), text)


@dataclass
class Reader:
    """A model that knows nothing, but reads: it says what stands behind ``code:`` in its prompt."""

    context: int = 10**9
    asked: list[str] = field(default_factory=list)
    samples: Sequence[Sequence[str]] = ()

    def sample(
        self, records: Sequence[Record], sampling: Sampling, n: int = 1, seed: int = 0
    ) -> list[list[Completion]]:
        if n > 1:
            return [[said(r, text) for text in texts] for r, texts in zip(records, self.samples, strict=True)]
        self.asked += [str(record.prompt) for record in records]
        return [[said(r, str(r.prompt).partition("code: ")[2].partition(".")[0])] for r in records]

    def room(self, record: Record) -> int:
        return self.context - len(str(record.prompt))

    def prefers(self, pairs: Sequence[Record]) -> list[bool]:
        return [len(str(pair.chosen)) < len(str(pair.rejected)) for pair in pairs]

    def bits_per_byte(self, texts: Sequence[Record]) -> Measurement:
        return Measurement(value=1, low=1, high=1, rows=len(texts))


LAMPS = [f"lamp{i}" for i in range(40)]


def test_an_open_book_helps_a_model_that_reads() -> None:
    held = Material(
        questions=[question(f"Which one opens {lamp}?", f"k{i}") for i, lamp in enumerate(LAMPS)],
        texts=[Record("text", f"t:{i}", text=f"For {lamp} see code: k{i}.") for i, lamp in enumerate(LAMPS)],
        pairs=[Record("preference", "p:1", prompt="a", chosen="b", rejected="bb")] * 3,
    )
    found = measure(Reader(), held, ProbeSettings(shots=0))
    assert found.closed_book == found.zero_shot
    assert found.closed_book is not None and found.open_book is not None
    assert (found.closed_book.value, found.open_book.value) == (0, 1)
    assert found.closed_book.high < found.open_book.low
    assert found.score == "word F1"
    assert found.few_shot is None
    assert found.prefers_chosen is not None and found.prefers_chosen.value == 1


def test_examples_are_not_asked_and_the_same_rows_are_asked_every_way() -> None:
    model = Reader()
    held = Material(questions=[question(f"{lamp}?", "x") for lamp in LAMPS])
    found = measure(model, held, ProbeSettings(rows=10, shots=3, seed=5))
    assert found.zero_shot is not None and found.few_shot is not None
    assert found.zero_shot.rows == found.few_shot.rows == 10
    zero, few = model.asked[:10], model.asked[10:]
    shown = few[0].split("\n\n")[:3]
    assert [text.split("\n\n")[-1] for text in few] == zero
    assert not {text.removesuffix("x") for text in shown} & set(zero)
    again = Reader()
    measure(again, held, ProbeSettings(rows=10, shots=3, seed=5))
    assert again.asked == model.asked
    other = Reader()
    measure(other, held, ProbeSettings(rows=10, shots=3, seed=6))
    assert other.asked != model.asked


@pytest.mark.parametrize(("held", "shown", "asked"), [(1, 0, 1), (4, 1, 3), (14, 3, 11), (15, 3, 12), (40, 4, 12)])
def test_few_questions_are_mostly_asked(held: int, shown: int, asked: int) -> None:
    model = Reader()
    found = measure(
        model, Material(questions=[question(f"{lamp}?", "x") for lamp in LAMPS[:held]]), ProbeSettings(rows=12)
    )
    assert found.zero_shot is not None and found.zero_shot.rows == asked
    assert len(model.asked) == asked * (1 + bool(shown))
    assert model.asked[-1].count("\n\n") == shown


def test_strings_are_asked_as_chat_on_demand() -> None:
    model = Reader()
    measure(model, Material(questions=[question("a?", "x")]), ProbeSettings(chat=True))
    assert model.asked == ["[{'role': 'user', 'content': 'a?'}]"]


def test_prompts_that_leave_no_room_are_left_out_or_told() -> None:
    held = Material(questions=[question("a" * 50, "x"), question("b", "x")])
    told: list[str] = []
    found = measure(Reader(context=60), held, ProbeSettings(max_completion_length=20, shots=0), report=told.append)
    assert found.zero_shot is not None and found.zero_shot.rows == 1
    assert told[0] == "without 1 of 2 rows, whose prompts leave no room for an answer"
    with pytest.raises(AlignError, match="no prompt leaves room") as stopped:
        measure(Reader(context=60), held, ProbeSettings(max_completion_length=60, shots=0))
    assert "--max-completion-length" in str(stopped.value)


@pytest.fixture
def right(tmp_path: Path) -> RewardChoice:
    """1 for "yes", 0 for others, and nothing to say of "?"."""
    file = tmp_path / "right.py"
    file.write_text(
        "def right(prompts, completions, **columns):\n"
        "    return [None if c == '?' else float(c == 'yes') for c in completions]\n"
    )
    return RewardChoice(type="python", settings={"file": str(file), "function": "right", "settings": {}})


def test_pass_at_k_is_the_mean_over_subsets(tmp_path: Path, right: RewardChoice) -> None:
    samples = [["yes", "no", "no", "no"], ["no"] * 4, ["yes"] * 4, ["yes", "no", "yes", "no"], ["yes", "?", "no", "no"]]
    held = Material(prompts=[Record("prompt", f"p:{i}", prompt="?") for i in range(5)])
    with Scorer([right], RewardContext(tmp_path)) as scorer:
        found = measure(Reader(samples=samples), held, ProbeSettings(k=4), scorer=scorer)
    scored = [[float(s == "yes") for s in row] for row in samples[:4]]  # one answer of the fifth cannot be scored
    best_of_one = [np.mean([max(c) for c in itertools.combinations(row, 1)]) for row in scored]
    assert found.pass_1 is not None and found.pass_k is not None and found.flat_groups is not None
    assert found.pass_1.value == pytest.approx(np.mean(best_of_one)) == pytest.approx((0.25 + 0 + 1 + 0.5) / 4)
    assert found.pass_k.value == pytest.approx(np.mean([max(row) for row in scored])) == 0.75
    assert found.flat_groups.value == 0.5
    assert {found.pass_1.rows, found.pass_k.rows, found.flat_groups.rows} == {4}
    assert found.score == "python"


def test_a_reward_scores_the_answers_to_questions_too(tmp_path: Path, right: RewardChoice) -> None:
    held = Material(questions=[question("code: yes.", "n"), question("code: no.", "n"), question("code: ?.", "n")])
    model = Reader(samples=[["yes", "no"]] * 3)
    with Scorer([right], RewardContext(tmp_path)) as scorer:
        found = measure(model, held, ProbeSettings(shots=0, k=2), scorer=scorer)
    assert found.zero_shot is not None and (found.zero_shot.value, found.zero_shot.rows) == (0.5, 2)
    assert found.pass_k is not None and found.pass_k.value == 1


ROWS = [
    {"prompt": "2+2=", "completion": "4", "level": 1},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    {"messages": [{"role": "user", "content": "hi"}]},
    {"prompt": "say", "chosen": "a", "rejected": "b"},
    {"prompt": "solve", "solution": "7"},
    {"text": "A page."},
]


def test_rows_are_told_by_what_they_can_show(tmp_path: Path) -> None:
    paths = []
    for i, row in enumerate(ROWS):
        paths.append(str(tmp_path / f"{i}.jsonl"))
        Path(paths[-1]).write_text(json.dumps(row) + "\n")
    held = Material.read([path for i, path in enumerate(paths) if i != 2])
    sums, greeting = held.questions
    assert (sums.record.kind, sums.record.prompt, sums.wanted) == ("prompt", "2+2=", "4")
    assert sums.record.columns == {"solution": "4", "level": 1}
    assert (greeting.record.prompt, greeting.wanted) == (ROWS[1]["messages"][:1], "hello")  # type: ignore[index]
    assert [len(held.pairs), len(held.prompts), len(held.texts)] == [1, 1, 1]
    assert held.prompts[0].columns["solution"] == "7"


def test_pages_of_plain_text_are_documents_and_others_are_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Lamp 4\nIt is on.")
    (tmp_path / "b.TXT").write_text("Lamp 5 is off.")
    (tmp_path / "blank.md").write_text("\n")
    held = Material.read([str(tmp_path), str(tmp_path / "b.TXT")])
    assert [record.text for record in held.texts] == ["# Lamp 4\nIt is on.", "Lamp 5 is off.", "Lamp 5 is off."]
    (tmp_path / "c.pdf").write_bytes(b"%PDF")
    with pytest.raises(AlignError, match="convert it") as stopped:
        Material.read([str(tmp_path)])
    assert str(tmp_path / "c.pdf") in str(stopped.value)


def test_a_real_model_answers_every_way_within_its_context(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "m", max_position_embeddings=64)
    held = Material(
        questions=[question(f"What is {i}?", "five") for i in range(8)],
        texts=[Record("text", "t:1", text="What is five? " * 30)],
        pairs=[Record("preference", "p:1", prompt="a ", chosen="b", rejected="c")],
    )
    found = measure(LocalProbeModel.load(model), held, ProbeSettings(rows=4, shots=2, max_completion_length=4))
    for name in ("zero_shot", "few_shot", "closed_book", "open_book"):
        score = getattr(found, name)
        assert score.rows == 4 and 0 <= score.value <= 1
    assert found.corpus_bits is not None and found.corpus_bits.value > 0
    assert found.prefers_chosen is not None and found.prefers_chosen.value in (0, 1)
    assert words("What's 5?") == ["what", "s", "5"]
