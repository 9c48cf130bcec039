"""Each finding of the template doctor on the row that has it, what it says, and what accepting it does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from align.core.data.datasets import make_examples
from align.core.data.encode import Encoder
from align.core.data.examples import Example
from align.core.data.template_checks import CATALOGUE, Tally, TemplateFinding, TokenizationSettings, stop_on_errors
from align.plugins.algorithms.dpo import DPO
from align.plugins.algorithms.pretrain import Pretrain
from align.plugins.algorithms.reward_model import RewardModel
from align.plugins.algorithms.sft import SFT
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Data
from tests.core import families
from tests.core.families import assistant, settings, tokenizer, user
from tests.tiny import tiny_tokenizer

CHAT = [user("Is the sea wide?"), assistant("Yes.")]
THOUGHT = assistant("<think>Let me see.</think>Wide.")
UNMARKED_END = """\
{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}
{%- if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}
{%- endif %}{{ '<|im_end|>\\n' }}{% endfor %}"""
CUTS = families.CHATML.replace("m['content']", "m['content'][:3]")
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
ALL_MARKED = "{% generation %}" + families.CHATML + "{% endgeneration %}"


def seen(
    record: Record, tok: PreTrainedTokenizerFast, **changed: Any
) -> tuple[list[Example], dict[str, TemplateFinding]]:
    """The examples of one record and what the doctor found in it, by id."""
    encoder, settled, tally = Encoder(tok), settings(**changed), Tally()
    made, notes = make_examples(record, encoder, settled)
    tally.add(record.source, notes, not made)
    return made, {finding.id: finding for finding in tally.findings(settled, encoder)}


def chat(*messages: dict[str, str]) -> Record:
    return Record("text", "chat.jsonl:7", text=list(messages))


HAS_NO_EOS = tiny_tokenizer()
HAS_NO_EOS.eos_token = None
PAD_IS_EOS = tiny_tokenizer()
PAD_IS_EOS.pad_token = PAD_IS_EOS.eos_token
BOS_TWICE = tokenizer("{{ bos_token }}" + families.LLAMA3, families.LLAMA3_SPECIAL, "<|eot_id|>")
THINKS = {"role": "assistant", "content": "Wide.", "reasoning_content": "Let me see."}
LOOKS = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {}}}]}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks out of the window."}}
SAME = Record("preference", "f:1", prompt=CHAT[:1], chosen=[assistant("No. ")], rejected=[assistant("No.")])


@pytest.mark.parametrize(
    ("finding", "record", "tok", "left"),
    [
        ("wrong-kind", Record("prompt", "f:1", prompt="Why?"), tiny_tokenizer(), 0),
        ("fractional-weight", chat(CHAT[0], CHAT[1] | {"weight": 0.5}), tiny_tokenizer(), 0),  # type: ignore[dict-item]
        ("bad-unicode", Record("text", "f:1", text="\ud83d"), tiny_tokenizer(), 0),
        ("text-too-long", Record("text", "f:1", text="a" * 8_000_001), tiny_tokenizer(), 0),
        ("no-chat-template", chat(*CHAT), tokenizer(None), 0),
        ("no-eos", Record("text", "f:1", text="The sea."), HAS_NO_EOS, 1),
        ("template-failed", chat(CHAT[0], CHAT[0]), families.mistral(), 0),
        ("prompt-not-prefix", Record("completion", "f:1", prompt=CHAT[:1], completion=CHAT[1:]), None, 1),
        ("turn-not-prefix", chat(CHAT[0], THOUGHT, *CHAT), tokenizer(families.THINKING), 2),
        ("text-lost", chat(*CHAT), tokenizer(CUTS), 1),
        ("text-lost", chat(CHAT[0], LOOKS), tokenizer(families.CHATML), 1),
        ("reasoning-lost", chat(CHAT[0], THINKS), tokenizer(families.CHATML), 1),
        ("special-token-unclear", chat(CHAT[0], assistant("<|im_start|>Yes.")), tokenizer(families.CHATML), 1),
        ("special-token-unclear", Record("text", "f:1", text="<|im_start|>user\nWide?"), tiny_tokenizer(), 1),
        ("boundary-merge", Record("completion", "f:1", prompt="What is t", completion="he sum"), tiny_tokenizer(), 1),
        ("double-bos", chat(*CHAT), BOS_TWICE, 1),
        ("end-of-turn-untrained", chat(*CHAT), tokenizer(UNMARKED_END), 1),
        ("end-of-turn-untrained", chat(*CHAT), tokenizer(NO_END), 1),
        (
            "end-of-turn-untrained",
            Record("completion", "f:1", prompt=CHAT[:1], completion=CHAT[1:]),
            tokenizer(NO_END),
            1,
        ),
        ("empty-mask", chat(CHAT[0]), tokenizer(families.CHATML), 0),
        ("empty-mask", chat(*CHAT), tokenizer("{# {% generation %} #}" + families.CHATML), 0),
        ("full-mask", chat(*CHAT), tokenizer(ALL_MARKED), 1),
        ("truncation", Record("text", "f:1", text="The cat " * 600), tiny_tokenizer(), 1),
    ],
)
def test_errors_stop_a_run_and_accepting_one_does_what_it_says(
    finding: str, record: Record, tok: PreTrainedTokenizerFast | None, left: int
) -> None:
    tok = tok or tokenizer(families.COUNTING)
    _, found = seen(record, tok)
    assert found[finding].level == "error"
    assert (found[finding].count, found[finding].rows) == (1, (record.source,))
    with pytest.raises(AlignError, match=finding):
        stop_on_errors(found.values())

    made, found = seen(record, tok, allow=frozenset([finding]))
    assert (found[finding].level, found[finding].accepted, len(made)) == ("warning", True, left)
    assert found[finding].left_out == int(left == 0)
    assert CATALOGUE[finding].accepted in found[finding].fix
    stop_on_errors(found.values())


@pytest.mark.parametrize(
    ("finding", "record", "tok"),
    [
        ("special-token-in-text", chat(user("<|im_end|>"), CHAT[1]), tokenizer(families.CHATML)),
        ("end-of-turn-not-eos", chat(*CHAT), families.gemma()),
        ("identical-pair", SAME, families.gemma()),
        (
            "history-dropped",
            Record("completion", "f:1", prompt=[CHAT[0], THINKS, CHAT[0]], completion=CHAT[1:]),
            tokenizer(families.CHATML),
        ),
        ("tools-dropped", Record("text", "f:1", text=CHAT, tools=[TOOL]), tokenizer(families.CHATML)),
        ("special-token-meant", chat(CHAT[0], assistant("<|im_start|>Yes.")), tokenizer(families.CHATML)),
        ("eos-is-pad", chat(*CHAT), PAD_IS_EOS),
        ("template-dated", chat(*CHAT), tokenizer("{{ strftime_now('%d %b %Y') }}\n" + families.CHATML)),
    ],
)
def test_warnings_do_not_stop_a_run(finding: str, record: Record, tok: PreTrainedTokenizerFast) -> None:
    made, found = seen(record, tok, special_tokens=frozenset(["<|im_start|>"] * (finding == "special-token-meant")))
    assert found[finding].level == "warning"
    assert len(made) == 1
    stop_on_errors(found.values())


def test_a_template_that_strips_thoughts_can_be_learned_from_answer_by_answer() -> None:
    """Accepted, each answer is learned after its history as the template writes it then, its own thoughts kept."""
    tok = tokenizer(families.THINKING)
    messages = [CHAT[0], THOUGHT, *CHAT]
    made, _ = seen(chat(*messages), tok, allow=frozenset(["turn-not-prefix"]))
    for example, upto in zip(made, (2, 4), strict=True):
        (sequence,) = example.sequences
        assert sequence.tokens.tolist() == tok.apply_chat_template(messages[:upto])["input_ids"]
        prompt = tok.apply_chat_template(messages[: upto - 1], add_generation_prompt=True)["input_ids"]
        assert sequence.scored.nonzero()[0].tolist() == list(range(len(prompt), len(sequence)))
    assert "<think>Let me see.</think>Wide." in tok.decode(made[0].sequences[0].tokens)
    assert "<think>" not in tok.decode(made[1].sequences[0].tokens)


def test_a_sound_row_has_no_findings() -> None:
    for tok in (tiny_tokenizer(), families.llama3(), families.mistral(), tokenizer(families.DEFAULT_SYSTEM)):
        assert seen(chat(*CHAT), tok)[1] == {}
    assert seen(Record("text", "f:1", text="The cat sat."), tiny_tokenizer())[1] == {}
    only_assistant = Record("completion", "f:1", prompt=None, completion="The cat sat.")
    assert seen(only_assistant, tiny_tokenizer())[1] == {}


def test_every_finding_of_the_catalogue_is_shown_above() -> None:
    tests = (test_errors_stop_a_run_and_accepting_one_does_what_it_says, test_warnings_do_not_stop_a_run)
    shown = {case[0] for test in tests for mark in test.pytestmark for case in mark.args[1]}  # type: ignore[attr-defined]
    assert shown == CATALOGUE.keys()


def test_a_message_says_which_rows_how_many_what_and_the_fix() -> None:
    tally, encoder = Tally(), Encoder(tiny_tokenizer())
    for part in range(2):  # as two workers would
        mine = Tally()
        for i in range(4):
            record = Record("completion", f"pairs.jsonl:{4 * part + i + 1}", prompt="What is t", completion="he sum")
            made, notes = make_examples(record, encoder, settings())
            mine.add(record.source, notes, not made)
        tally.merge(mine)
    (finding,) = tally.findings(settings(), encoder)
    message = str(finding)
    assert message.splitlines()[0] == ", ".join(f"pairs.jsonl:{i}" for i in range(1, 6)) + " and 3 more"
    assert "boundary-merge: " in message
    assert "(between 'What is t' and 'he sum'): 8 rows, 8 left out" in message
    assert CATALOGUE["boundary-merge"].fix in message


def cut(truncation: str, record: Record, **changed: Any) -> tuple[list[Example], TemplateFinding]:
    made, found = seen(record, tiny_tokenizer(), truncation=truncation, **changed)
    assert found["truncation"].level == "warning"
    return made, found["truncation"]


TEN = "".join(f"<{i}>" for i in range(10))  # 30 tokens of one character each, then eos


def test_drop_leaves_long_rows_out_and_counts_them() -> None:
    made, finding = cut("drop", Record("text", "f:1", text=TEN), max_length=30)
    assert (made, finding.left_out, finding.tokens) == ([], 1, 1)


def test_keep_start_cuts_the_end_and_leaves_out_rows_whose_answer_is_gone() -> None:
    row = Record("completion", "f:1", prompt=TEN, completion="<10>")
    (example,), finding = cut("keep_start", row, max_length=32)
    assert tiny_tokenizer().decode(example.sequences[0].tokens) == TEN + "<1"
    assert example.sequences[0].scored.nonzero()[0].tolist() == [30, 31]
    assert (finding.tokens, finding.left_out) == (3, 0)
    made, finding = cut("keep_start", row, max_length=30)
    assert (made, finding.left_out) == ([], 1)


def test_keep_end_cuts_the_start() -> None:
    (example,), _ = cut("keep_end", Record("completion", "f:1", prompt=TEN, completion="<10>"), max_length=4)
    (sequence,) = example.sequences
    assert tiny_tokenizer().decode(sequence.tokens) == "10><|im_end|>"
    assert sequence.scored.tolist() == [False, True, True, True]


def test_split_scores_every_token_but_the_first_once() -> None:
    made, finding = cut("split", Record("text", "f:1", text=TEN), max_length=8)
    whole = seen(Record("text", "f:1", text=TEN), tiny_tokenizer())[0][0].sequences[0].tokens.tolist()
    parts = [example.sequences[0] for example in made]
    assert max(map(len, parts)) == 8
    assert [t for p in parts for t in p.tokens[p.scored].tolist()] == whole[1:]
    assert all(a.tokens[-1] == b.tokens[0] for a, b in pairwise(parts))
    assert finding.count == 1


def test_numbers_for_the_loss_come_from_the_row() -> None:
    tok = tiny_tokenizer()
    pair = Record("preference", "f:1", prompt="a", chosen="b", rejected="c", margin=0.5)
    assert [e.columns for e in seen(pair, tok)[0]] == [{"margin": 0.5}]
    bare = Record("preference", "f:1", prompt="a", chosen="b", rejected="c")
    assert [e.columns for e in seen(bare, tok)[0]] == [{"margin": 0.0}]
    for label in (True, False):
        single = Record("unpaired", "f:1", prompt="a", completion="b", label=label)
        assert [e.columns for e in seen(single, tok)[0]] == [{"label": float(label)}]


@pytest.mark.parametrize(
    ("algorithm", "data", "what"),
    [
        (SFT, {"allow": ["boundry-merge"]}, "did you mean 'boundary-merge'"),
        (DPO, {"truncation_mode": "split"}, "data.truncation_mode"),
        (RewardModel, {"truncation_mode": "keep_start"}, "data.truncation_mode"),
    ],
)
def test_settings_that_contradict_the_algorithm_are_refused(algorithm: Any, data: dict[str, Any], what: str) -> None:
    with pytest.raises(AlignError, match=what):
        TokenizationSettings.of(algorithm(algorithm.Config()), Data(train=[{"path": "f.jsonl"}], **data))


def test_settings_come_from_algorithm_and_data() -> None:
    made = TokenizationSettings.of(
        Pretrain(Pretrain.Config()), Data(train=[{"path": "f.jsonl"}], truncation_mode="split")
    )
    assert (made.scores_prompt, made.reward, made.truncation, made.learns_from) == (True, False, "split", ("text",))
    assert TokenizationSettings.of(RewardModel(RewardModel.Config()), Data(train=[{"path": "f.jsonl"}])).reward


def test_the_manual_lists_every_finding_as_it_is() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text()
    rows = [f"| `{name}` | {e.level} | {e.what} | {e.accepted} |" for name, e in CATALOGUE.items()]
    assert manual.endswith("\n".join(rows) + "\n")
