"""A stage's data: mixtures, the held-out split, what happens to bad rows, and streams."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.data.mixture import Records, Window, load_records, stream_records
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Data


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def texts(records: Sequence[Record]) -> list[Any]:
    return [record.text for record in records]


def load(report_dir: Path | None = None, **data: Any) -> Records:
    return load_records(Data(**data), ("text",), report_dir)


class TestMixture:
    def test_sources_weights_and_names(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a.jsonl", [{"text": "a0"}, {"text": "a1"}])
        b = write(tmp_path / "b.jsonl", [{"text": "b0", "id": 1}])
        c = write(tmp_path / "c.jsonl", [{"text": "c0", "id": 1}])  # ids are unique in a source, not among sources
        data: dict[str, Any] = {
            "train": [{"path": a, "weight": 3}, b],
            "validation": [{"path": c, "name": "domain"}, {"path": b, "name": "general"}],
        }
        records = load(**data)
        assert texts(records.train) == ["a0", "a1", "b0"]
        assert records.train_sources.tolist() == [0, 0, 1]
        assert records.weights == (3.0, 1.0)
        assert texts(records.validation) == ["c0", "b0"]
        assert records.validation_sources.tolist() == [0, 1]
        assert records.validation_names == ("domain", "general")

    def test_fingerprint_is_of_the_content(self, tmp_path: Path) -> None:
        rows = [{"text": "a"}, {"text": "b"}]
        first = load(train=write(tmp_path / "a.jsonl", rows)).fingerprint
        (tmp_path / "b.json").write_text(json.dumps(rows, indent=2))
        assert load(train=str(tmp_path / "b.json")).fingerprint == first
        assert load(train=write(tmp_path / "a.jsonl", rows[::-1])).fingerprint != first
        assert load(train=write(tmp_path / "a.jsonl", [*rows, {"text": "c"}])).fingerprint != first
        both: dict[str, Any] = {"train": [write(tmp_path / f"{i}.jsonl", [row]) for i, row in enumerate(rows)]}
        assert load(**both).fingerprint != first

    def test_documents_of_a_text_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n\ntwo\n")
        path = str(tmp_path / "a.txt")
        assert texts(load(train=path).train) == ["one\n\ntwo"]
        assert texts(load(train={"path": path, "documents": "blank_lines"}).train) == ["one", "two"]
        with pytest.raises(ValueError, match="documents"):
            Data(train=[{"path": path, "documents": "pages"}])  # type: ignore[list-item]

    def test_no_row_is_left(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", ["{", '{"text": 1}'])
        with pytest.raises(
            AlignError, match=r"no row is left to learn from; 2 bad rows \(1 malformed-json, 1 wrong-type"
        ):
            load(train=path, on_bad_rows="skip")


class TestSplit:
    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.integers(0, 10**6), min_size=30, max_size=60, unique=True),
        st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
        st.sampled_from([0.2, 0.5, 0.8]),
        st.randoms(use_true_random=False),
    )
    def test_no_row_moves_when_others_come_and_go(
        self, tmp_path_factory: pytest.TempPathFactory, old: list[int], new: list[int], fraction: float, draw: Any
    ) -> None:
        path = tmp_path_factory.mktemp("split") / "a.jsonl"

        def sides(numbers: list[int]) -> dict[Any, bool]:
            rows = [{"text": f"row {n}", "id": place} for place, n in enumerate(numbers)]
            records = load(train=write(path, rows), validation_fraction=fraction)
            assert len(records.train) + len(records.validation) == len(numbers)
            held_out, kept = set(texts(records.validation)), set(texts(records.train))
            assert not held_out & kept  # the same row twice is on one side, whatever its id
            return {text: text in held_out for text in held_out | kept}

        before = sides(old)
        everything = old + new
        draw.shuffle(everything)
        after = sides(everything)
        assert {text: after[text] for text in before} == before

    def test_share_is_about_the_fraction(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": f"row {n}"} for n in range(4000)])
        held_out = len(load(train=path, validation_fraction=0.1).validation)
        assert abs(held_out - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5

    def test_by_a_hash_that_is_the_same_everywhere(self, tmp_path: Path) -> None:
        """By hand: blake2b over the length-prefixed fields of the record."""

        def said(text: str) -> bytes:
            fields = f"s4:texts{len(text)}:{text}" + "oNone;" * 7 + "d0:"
            return hashlib.blake2b(f"l10:{fields}".encode(), digest_size=8).digest()

        rows = [{"text": f"row {n} é"} for n in range(50)]
        held_out = texts(load(train=write(tmp_path / "a.jsonl", rows), validation_fraction=0.3).validation)
        assert held_out == [r["text"] for r in rows if int.from_bytes(said(r["text"])) / 2**64 < 0.3]

    def test_order_is_kept(self, tmp_path: Path) -> None:
        rows = [{"text": f"row {n}"} for n in range(100)]
        records = load(train=write(tmp_path / "a.jsonl", rows), validation_fraction=0.5)
        for side in (records.train, records.validation):
            numbers = [int(record.source.rpartition(":")[2]) for record in side]
            assert numbers == sorted(numbers)

    def test_nothing_held_out(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": "a"}])
        with pytest.raises(AlignError) as met:
            load(train=path, validation_fraction=1e-9)
        assert str(met.value).splitlines() == [
            "no row is left to be held out (data.validation_fraction: 1e-09 of 1); 0 bad rows",
            "    give more rows, raise data.validation_fraction, or leave it out to hold nothing out",
        ]

    def test_everything_held_out(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": "a"}])
        with pytest.raises(AlignError, match=r"left to learn from \(data.validation_fraction: 0.999999 of 1\)"):
            load(train=path, validation_fraction=0.999999)

    def test_fraction_beside_a_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": "a"}])
        with pytest.raises(AlignError, match=r"validation_fraction\n.*held-out rows are named by data.validation"):
            load(train=path, validation=path, validation_fraction=0.5)


class TestBadRows:
    def test_stops_with_all_named(self, tmp_path: Path) -> None:
        train = write(tmp_path / "train.jsonl", [{"text": "a"}, "{", {"text": ""}])
        held = write(tmp_path / "held.jsonl", [{"text": "a"}, {"txt": "a"}])
        with pytest.raises(AlignError) as caught:
            load(tmp_path / "run", train=train, validation=held)
        message = str(caught.value)
        for place in (f"{train}:2\n", f"{train}:3: text\n", f"{held}:2: text\n"):
            assert place in message
        assert "3 bad rows (1 malformed-json, 1 empty, 1 missing-field)" in message
        assert "data.on_bad_rows: skip" in message
        report = json.loads((tmp_path / "run" / "data_report.json").read_text())
        assert report["bad"] == 3  # kept although the run stops

    def test_listing_is_bounded_the_report_is_not(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": "a"}, *["{"] * 500])
        with pytest.raises(AlignError, match=r"500 bad rows \(500 malformed-json\); the first 20 are shown") as caught:
            load(tmp_path, train=path)
        assert len(caught.value.problems) == 21
        assert len(json.loads((tmp_path / "data_report.json").read_text())["bad_rows"]) == 500

    def test_skips_with_the_report_kept(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": "a"}, "{", {"text": 1}, {"text": "b"}])
        records = load(tmp_path, train={"path": path, "weight": 2}, on_bad_rows="skip")
        assert texts(records.train) == ["a", "b"]
        assert records.bad.counts == Counter({"malformed-json": 1, "wrong-type": 1})
        assert json.loads((tmp_path / "data_report.json").read_text()) == {
            "sources": [
                {
                    "path": path,
                    "name": None,
                    "weight": 2.0,
                    "form": "standard text rows (format text)",
                    "rows": 2,
                    "bad": 2,
                    "left_out": [],
                    "files": [{"path": path, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}],
                    "held_out": False,
                }
            ],
            "bad": 2,
            "bad_by_kind": {"malformed-json": 1, "wrong-type": 1},
            "bad_rows_listed": 2,
            "bad_rows": [
                {
                    "file": path,
                    "line": 2,
                    "kind": "malformed-json",
                    "field": "",
                    "what": "is no JSON: Expecting property name enclosed in double quotes at column 2",
                },
                {"file": path, "line": 3, "kind": "wrong-type", "field": "text", "what": "is a number, not a string"},
            ],
        }
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "data_report.json"]

    def test_bad_answers_and_pictures_can_be_skipped(self, tmp_path: Path) -> None:
        said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        shown = [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]
        rows = [{"messages": said, "label": label, "id": str(label)} for label in (True, False)]
        path = write(tmp_path / "a.jsonl", [*rows, {"messages": shown, "label": True}])
        with pytest.raises(AlignError, match=r"(?s)marked as a bad one.*has a place for a picture.*on_bad_rows: skip"):
            load(train=path)
        assert [record.columns for record in load(train=path, on_bad_rows="skip").train] == [
            {"label": True, "id": "True"}
        ]

    def test_clean_data_has_a_report_too(self, tmp_path: Path) -> None:
        load(tmp_path, train=write(tmp_path / "a.jsonl", [{"text": "a"}]))
        assert json.loads((tmp_path / "data_report.json").read_text())["bad"] == 0

    def test_damage_is_never_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": "b"}')
        with pytest.raises(AlignError, match="how many rows it has lost cannot be known"):
            load(train=str(tmp_path / "a.json"), on_bad_rows="skip")

    def test_text_of_the_file_is_made_safe_to_print(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "\x1b[31muser", "content": "a"}]}])
        with pytest.raises(AlignError) as caught:
            load(train=path)
        assert "\\x1b[31muser" in str(caught.value) and "\x1b" not in str(caught.value)


def stream(start: Any = None, report_dir: Path | None = None, **data: Any) -> Iterator[Window]:
    return stream_records(Data(stream=True, **data), ("text",), start, report_dir)


class TestStream:
    def windows(self, count: int, start: Any = None, **data: Any) -> list[Window]:
        return list(itertools.islice(stream(start, **data), count))

    def test_windows_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": str(n)} for n in range(10)])
        windows = self.windows(4, train=path, stream_window=4)
        assert [texts(w.records) for w in windows] == [list("0123"), list("4567"), list("8901"), list("2345")]
        assert [list(map(list, w.places)) for w in windows] == [[[0, 4, 4]], [[0, 8, 8]], [[1, 2, 12]], [[1, 6, 16]]]

    def test_mixture_by_weight(self, tmp_path: Path) -> None:
        main = write(tmp_path / "main.jsonl", [{"text": f"m{n}"} for n in range(1000)])
        replay = write(tmp_path / "replay.jsonl", [{"text": f"r{n}"} for n in range(7)])
        [first, second] = self.windows(
            2, train=[{"path": main, "weight": 9}, {"path": replay, "weight": 1}], stream_window=100
        )
        for window in (first, second):
            assert Counter(window.sources.tolist()) == {0: 90, 1: 10}
            assert [r.text[0] for r in window.records] == ["mr"[s] for s in window.sources]  # type: ignore[index]
        replayed = [t for w in (first, second) for t in texts(w.records) if t.startswith("r")]
        assert replayed == [f"r{n % 7}" for n in range(20)]
        assert [t for t in texts(first.records) if t.startswith("m")] == [f"m{n}" for n in range(90)]

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.lists(st.booleans(), min_size=1, max_size=30).filter(any), min_size=1, max_size=3),
        st.integers(1, 12),
        st.integers(1, 5),
    )
    def test_going_on_equals_not_having_stopped(
        self, tmp_path_factory: pytest.TempPathFactory, files: list[list[bool]], window: int, stop: int
    ) -> None:
        directory = tmp_path_factory.mktemp("stream")
        train = [
            {
                "path": write(
                    directory / f"{i}.jsonl", [{"text": f"{i} {n}"} if ok else "{" for n, ok in enumerate(rows)]
                ),
                "weight": i + 1,
            }
            for i, rows in enumerate(files)
        ]
        data: dict[str, Any] = {"train": train, "stream_window": window, "on_bad_rows": "skip"}
        whole = self.windows(7, **data)
        kept = json.loads(json.dumps(whole[stop - 1].places))  # as a checkpoint would
        rest = self.windows(7 - stop, kept, **data)
        assert [texts(w.records) for w in rest] == [texts(w.records) for w in whole[stop:]]
        assert [w.sources.tolist() for w in rest] == [w.sources.tolist() for w in whole[stop:]]
        assert [w.places for w in rest] == [w.places for w in whole[stop:]]

    def test_bad_rows(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": "0"}, {"text": "1"}, "{", {"text": "2"}])
        windows = stream(train=path, stream_window=2)
        assert texts(next(windows).records) == ["0", "1"]
        with pytest.raises(AlignError, match=f"{path}:3"):
            next(windows)
        windows = stream(report_dir=tmp_path, train=path, stream_window=2, on_bad_rows="skip")
        assert [len(next(windows).bad) for _ in range(4)] == [0, 1, 0, 0]  # once, though the file is read again
        assert json.loads((tmp_path / "stream_report.json").read_text())["bad"] == 1

    def test_report_goes_on_after_a_break(self, tmp_path: Path) -> None:
        rows = [{"text": "0"}, "{", {"text": "1"}, {"text": ""}, {"text": "2"}]
        data: dict[str, Any] = {"train": write(tmp_path / "a.jsonl", rows), "on_bad_rows": "skip", "stream_window": 1}
        windows = stream(None, tmp_path, **data)
        first, second = next(windows), next(windows)
        assert [len(first.bad), len(second.bad)] == [0, 1]
        again = stream(first.places, tmp_path, **data)  # the second window, once more, and the third
        assert [len(next(again).bad) for _ in range(2)] == [1, 1]
        report = json.loads((tmp_path / "stream_report.json").read_text())
        assert report["bad_by_kind"] == {"malformed-json": 1, "empty": 1}
        assert [row["line"] for row in report["bad_rows"]] == [2, 4]

    def test_nothing_good(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", ["{", '{"text": ""}'])
        with pytest.raises(AlignError, match="has no good row; 2 bad rows"):
            next(stream(train=path, on_bad_rows="skip"))

    def test_held_out_rows_come_from_a_file(self, tmp_path: Path) -> None:
        train = write(tmp_path / "a.jsonl", [{"text": "a"}])
        held = write(tmp_path / "b.jsonl", [{"text": "b"}])
        records = load(train=train, validation=held, stream=True)
        assert (texts(records.train), texts(records.validation)) == ([], ["b"])
        with pytest.raises(AlignError, match="a stream is never seen as a whole"):
            load(train=train, validation_fraction=0.1, stream=True)

    def test_sources_changed_since(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": "a"}])
        with pytest.raises(AlignError, match="left with 2 sources, now there are 1"):
            self.windows(1, [[0, 1, 1], [0, 1, 1]], train=path)
