"""Ratings from a file of votes in Chatbot Arena's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import align
from align import AlignError
from align.cli import main
from tests.core.evaluation.test_ratings import GOLDEN

WINNERS = {1.0: "model_a", 0.0: "model_b", 0.5: "tie (bothbad)"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def golden() -> list[dict[str, Any]]:
    return [
        {"model_a": a, "model_b": b, "winner": WINNERS[score], "judge": "u", "turn": 1, "tstamp": float(n)}
        for n, (a, b, score) in enumerate(GOLDEN)
    ]


def test_the_golden_votes_from_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", golden())
    fitted = align.arena_ratings(path)
    assert {name: round(each.rating, 3) for name, each in fitted.items()} == {"x": 1114.234, "y": 1000.0, "z": 885.766}
    assert all(each.low <= each.rating <= each.high for each in fitted.values())
    assert fitted["x"].battles == 7 and align.arena_ratings(path) == fitted != align.arena_ratings(path, seed=1)
    online = align.arena_ratings(path, "elo")
    assert {name: round(each.rating, 3) for name, each in online.items()} == {
        "x": 1005.660,
        "y": 1000.110,
        "z": 994.229,
    }


def test_votes_are_taken_in_the_order_of_their_times_and_known_models_left_out(tmp_path: Path) -> None:
    rows = golden()
    path = write(tmp_path / "votes.jsonl", rows)
    seen = {"model_a": "z", "model_b": "x", "winner": "model_a", "tstamp": 0.5, "anony": False}
    mixed = write(tmp_path / "mixed.jsonl", [*reversed(rows), seen])
    found, expected = align.arena_ratings(mixed, "elo"), align.arena_ratings(path, "elo")
    assert {name: each.rating for name, each in found.items()} == {name: each.rating for name, each in expected.items()}


def test_an_anchor_holds_its_rating(tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", golden())
    assert align.arena_ratings(path, anchor=("y", 1200.0))["y"].rating == pytest.approx(1200)
    renamed = json.loads(json.dumps(golden()).replace('"z"', '"mixtral-8x7b-instruct-v0.1"'))
    fitted = align.arena_ratings(write(tmp_path / "renamed.jsonl", renamed))
    assert fitted["mixtral-8x7b-instruct-v0.1"].rating == pytest.approx(1114)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [{"left": row["model_a"], "right": row["model_b"], "winner": row["winner"]} for row in golden()]
    path = write(tmp_path / "votes.jsonl", rows)
    found = align.arena_ratings(path, columns={"model_a": "left", "model_b": "right"})
    assert round(found["x"].rating, 3) == 1114.234


@pytest.mark.parametrize(
    ("vote", "message"),
    [
        ({"model_a": "x", "model_b": "y", "winner": "A"}, "has the winner 'A'"),
        ({"model_a": "x", "model_b": "x", "winner": "tie"}, "has 'x' against itself"),
        ({"model_a": "x", "winner": "tie"}, "has no text 'model_b'"),
    ],
)
def test_a_vote_that_is_none_is_refused_with_its_place(tmp_path: Path, vote: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "votes.jsonl", [*golden(), vote])
    with pytest.raises(AlignError, match=f"votes.jsonl:{len(GOLDEN) + 1}\n    {message}"):
        align.arena_ratings(path)


def test_a_model_without_a_point_has_no_finite_rating(tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", [*golden(), {"model_a": "w", "model_b": "x", "winner": "model_b"}])
    with pytest.raises(AlignError, match="w took no point"):
        align.arena_ratings(path)
    assert align.arena_ratings(path, "elo", repeats=3)["w"].rating < 1000


def test_the_command(tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", golden())
    done = CliRunner().invoke(main, ["eval", "ratings", str(path)])
    assert done.exit_code == 0 and done.stdout.splitlines()[1].split()[:2] == ["x", "1114.2"]
    done = CliRunner().invoke(main, ["eval", "ratings", str(path), "--system", "elo", "--format", "json"])
    assert round(json.loads(done.stdout)["z"]["rating"], 3) == 994.229
