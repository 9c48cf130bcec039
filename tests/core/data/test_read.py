"""Files of every type: the same rows come out, at the right lines, and damage is told."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.data import files
from align.core.data.rows import BadRow
from align.core.data.sources import GoodRow, Reading
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Source

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(str.strip)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)


def items(path: Path, **source: Any) -> list[Record | BadRow]:
    return [i.record if isinstance(i, GoodRow) else i for i in Reading(Source(path=str(path), **source)).rows()]


def faults(path: Path, **source: Any) -> list[tuple[int, str]]:
    return [(i.line, i.kind) for i in items(path, **source) if isinstance(i, BadRow)]


def zst(data: bytes) -> bytes:
    compressed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return compressed


def write_all(directory: Path, rows: list[dict[str, Any]]) -> list[Path]:
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    files = {
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.zst": zst(lines),
        "b.json": json.dumps(rows).encode(),
        "c.json": json.dumps(rows, indent=2, ensure_ascii=False).encode(),
        "d.json": lines,  # lines under another name, as many data sets have them
        "b.json.gz": gzip.compress(json.dumps(rows, indent=1).encode()),
        "e.csv": table.getvalue().encode(),
        "e.csv.zst": zst(table.getvalue().encode()),
    }
    for name, data in files.items():
        (directory / name).write_bytes(data)
    pq.write_table(pa.Table.from_pylist(rows), directory / "f.parquet", row_group_size=3)
    return [*(directory / name for name in files), directory / "f.parquet"]


@settings(max_examples=25, deadline=None)
@given(PAIRS)
def test_every_file_type_gives_the_same_rows(tmp_path_factory: pytest.TempPathFactory, pairs: list[Any]) -> None:
    pairs = [(a.replace("\r", "\n"), b.replace("\r", "\n")) for a, b in pairs]  # csv's writer and reader disagree on \r
    rows = [{"prompt": a, "completion": b, "id": f"{i}"} for i, (a, b) in enumerate(pairs)]
    directory = tmp_path_factory.mktemp("types")
    for path in write_all(directory, rows):
        found = items(path)
        assert [(r.prompt, r.completion, r.columns) for r in found if isinstance(r, Record)] == [
            (row["prompt"], row["completion"], {"id": row["id"]}) for row in rows
        ], path.name
        assert len(found) == len(rows)


GOOD = [b'{"text": "one"}', b'{"text": "two"}', b'{"text": "three"}']


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.from_regex(rb'\{"text": "[\x00-\xff]{0,8}"[\x00-\xff]?\}', fullmatch=True)))
def test_whatever_the_bytes_each_line_is_a_row_or_a_bad_row(
    tmp_path_factory: pytest.TempPathFactory, noise: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("noise") / "a.jsonl"
    data = b"\n".join([*GOOD, *noise])
    path.write_bytes(data)
    found = items(path)
    assert [item.text for item in found[:3] if isinstance(item, Record)] == ["one", "two", "three"]
    numbers = [i.line if isinstance(i, BadRow) else int(i.source.rpartition(":")[2]) for i in found]
    assert numbers == [n for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    for item in found:
        if isinstance(item, Record):
            assert item.text == json.loads(data.split(b"\n")[int(item.source.rpartition(":")[2]) - 1])["text"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.fixed_dictionaries({"text": TEXT, "more": VALUES}), min_size=1), st.sampled_from([None, 0, 1, 3]))
def test_json_arrays_are_cut_as_json_cuts_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    text = json.dumps(rows, indent=indent)
    path.write_text(text)
    found = items(path)
    assert [(r.text, r.columns["more"]) for r in found if isinstance(r, Record)] == [
        (row["text"], row["more"]) for row in rows
    ]
    if indent:  # an element begins on the line of its brace
        starts = [n for n, line in enumerate(text.split("\n"), 1) if line == " " * indent + "{"]
        assert [int(r.source.rpartition(":")[2]) for r in found if isinstance(r, Record)] == starts


class TestJSON:
    def test_one_bad_element_costs_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text('[\n{"text": "a"},\n{"text": oops},\n\n {"text": "b"} {"text": "c"},\n,{"text": "d"},\n7\n]\n')
        assert faults(path) == [(3, "malformed-json"), (5, "malformed-json"), (6, "malformed-json"), (7, "wrong-type")]
        assert [r.text for r in items(path) if isinstance(r, Record)] == ["a", "d"]

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ('[{"text": "a"}, {"text": "b"}', "the array is not closed"),
            ('[{"text": "a"}] []', "more follows the end of the array"),
            ('{\n"data": [\n{"text": "a"}]}', "one JSON object over several lines"),
        ],
    )
    def test_damaged(self, tmp_path: Path, text: str, what: str) -> None:
        path = tmp_path / "a.json"
        path.write_text(text)
        bad = items(path)[-1]
        assert isinstance(bad, BadRow) and bad.kind == "damaged-file" and what in bad.what

    def test_long_element(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text(f'[{{"text": "a"}},\n{{"text": "{"x" * 40_000_000}"}},\n{{"text": "b"}}]')
        assert faults(path) == [(2, "too-long")]
        assert len(items(path)) == 3


class TestCSV:
    def test_lines_quotes_and_faults(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(
            b"\xef\xbb\xbfprompt,completion,label\r\n"  # 1, with a byte order mark
            b'"two\nlines, ""quoted""",a,true\r\n'  # 2 and 3
            b"q,\xff,true\r\n"  # 4
            b"q,a\r\n"  # 5
            b"\r\n"  # 6 is no row
            b"q,a,true,more\r\n"  # 7
            b'q,"a"b,true\r\n'  # 8
            b"q,a\0,true\r\n"  # 9
            b"q,,true\r\n"  # 10
            b"q,a,perhaps\r\n"  # 11
            b"q," + b"x" * 2**24 + b",true\r\n"  # 12
            b"q,a,0\r\n"  # 13
            b'q,"never closed,true\r\nq,a,1\r\n'  # 14, 15
        )
        assert faults(path) == [
            (4, "invalid-utf8"),
            (5, "malformed-csv"),
            (7, "malformed-csv"),
            (8, "malformed-csv"),
            (9, "nul"),
            (10, "empty"),
            (11, "wrong-type"),
            (12, "too-long"),
            (14, "malformed-csv"),
        ]
        good = [r for r in items(path) if isinstance(r, Record)]
        assert [(r.prompt, r.label, r.source) for r in good] == [
            ('two\nlines, "quoted"', True, f"{path}:2"),
            ("q", False, f"{path}:13"),
        ]
        [bad] = [i for i in items(path) if isinstance(i, BadRow) and i.line == 14]
        assert "lines 14 to 15" in bad.what

    def test_conversations_as_json(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        says = [{"role": "user", "content": "a, b"}, {"role": "assistant", "content": "c"}]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["messages", "tools"], [json.dumps(says), ""]])
        [record] = items(path)
        assert isinstance(record, Record) and record.text == says and record.tools is None

    @pytest.mark.parametrize(("header", "what"), [(b"text,text", "names a column twice"), (b"te\xff", "no UTF-8")])
    def test_header(self, tmp_path: Path, header: bytes, what: str) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(header + b"\na,b\n")
        [bad] = items(path)
        assert isinstance(bad, BadRow) and bad.kind == "damaged-file" and what in bad.what


class TestCSVOfOtherMakes:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
    def test_line_ends(self, tmp_path: Path, end: str) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(end.join(["prompt,completion", "q,a", '"two","b"', ""]).encode())
        assert [(r.prompt, r.completion) for r in items(path) if isinstance(r, Record)] == [("q", "a"), ("two", "b")]
        assert not faults(path)

    def test_a_carriage_return_alone_among_line_feeds(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(b"prompt,completion\nq,a\nq\rr,a\nq,b\n")
        assert faults(path) == [(3, "malformed-csv")] and "carriage return" in str(items(path)[1])
        assert [r.completion for r in items(path) if isinstance(r, Record)] == ["a", "b"]

    @pytest.mark.parametrize("mark", [";", "\t"], ids=["semicolon", "tab"])
    def test_other_separators(self, tmp_path: Path, mark: str) -> None:
        (tmp_path / "a.csv").write_text(f"prompt{mark}completion\nq{mark}a\n")
        with pytest.raises(AlignError, match="separate columns with commas"):
            items(tmp_path / "a.csv")

    @pytest.mark.parametrize("head", [b'"prompt,completion\nq,a\n', b'"prompt"x,completion\n', b'prompt,"comp\nq,a\n'])
    def test_broken_header(self, tmp_path: Path, head: bytes) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(head)
        [bad] = items(path)
        assert isinstance(bad, BadRow) and bad.kind == "damaged-file" and "its header" in bad.what


class TestText:
    WHOLE = "One\nline.\n\n\nTwo.\n \nThree\n"

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
    @pytest.mark.parametrize(
        ("documents", "rows"),
        [
            ("file", [(1, "One\nline.\n\n\nTwo.\n \nThree")]),
            ("blank_lines", [(1, "One\nline."), (5, "Two."), (7, "Three")]),
            ("lines", [(1, "One"), (2, "line."), (5, "Two."), (7, "Three")]),
        ],
    )
    def test_documents(self, tmp_path: Path, end: str, documents: str, rows: list[tuple[int, str]]) -> None:
        path = tmp_path / "a.txt"
        path.write_bytes(self.WHOLE.replace("\n", end).encode())
        found = [i for i in items(path, documents=documents) if isinstance(i, Record)]
        assert [(int(r.source.rpartition(":")[2]), r.text) for r in found] == rows

    def test_a_directory_of_documents(self, tmp_path: Path) -> None:
        for name in ("a.txt", "b.txt", "README.txt"):
            (tmp_path / name).write_text(name)
        assert [r.text for r in items(tmp_path) if isinstance(r, Record)] == ["a.txt", "b.txt"]
        (tmp_path / "rows.jsonl").write_text('{"text": "c"}\n')  # beside data, text files are notes
        assert [r.text for r in items(tmp_path) if isinstance(r, Record)] == ["c"]
        assert Reading(Source(path=str(tmp_path))).left_out == ["README.txt", "a.txt", "b.txt"]

    def test_faults(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_bytes(b"a\n\n\xff\n\n" + b"x" * (2**24 + 1) + b"\n\nb\n\n\0\n")
        assert faults(path, documents="blank_lines") == [(3, "invalid-utf8"), (5, "too-long"), (9, "nul")]
        [(_, kind)] = faults(path)
        assert kind == "too-long" and "documents: blank_lines" in str(items(path)[0])
        path.write_bytes(b"\n \n")
        assert faults(path) == [(0, "empty-file")]
        path.write_bytes("a".encode("utf-16"))
        assert "UTF-16" in str(items(path)[0])

    def test_compressed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt.gz"
        path.write_bytes(gzip.compress(b"\xef\xbb\xbfa\n", mtime=0))
        assert [r.text for r in items(path) if isinstance(r, Record)] == ["a"]


def conversation(arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "assistant", "content": "a", **more},
    ]
    return {
        "messages": said,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }


ROWS_WITH_NULLS: dict[str, list[dict[str, Any]]] = {
    "arguments of other names": [conversation({"content": "x"}), conversation({"city": "y"})],
    "arguments that are null": [conversation({"content": None, "city": "y"}), conversation({"content": "x"})],
    "arguments with objects in them": [conversation({"a": {"content": None, "b": 1}}), conversation({"a": {"c": [1]}})],
    "weights and reasons of some": [conversation({"a": 1}, weight=0.0), conversation({"a": 1}, reasoning_content="r")],
    "plain beside calls": [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": None}
    ],
    "parts": [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": p},
            ]
        }
        for p in ([{"type": "text", "text": "a"}], [{"type": "reasoning", "value": "r"}, {"type": "text", "text": "a"}])
    ],
    "columns of some": [
        {"prompt": "q", "completion": "a", "label": None},
        {"prompt": "q", "completion": "b", "n": 1.0},
    ],
}
ROWS_WITH_NULLS["plain beside calls"] += ROWS_WITH_NULLS["arguments of other names"]


@pytest.mark.parametrize("rows", ROWS_WITH_NULLS.values(), ids=ROWS_WITH_NULLS)
@pytest.mark.parametrize("writer", ["json", "datasets", "pandas"])
def test_null_is_as_good_as_absent(tmp_path: Path, rows: list[dict[str, Any]], writer: str) -> None:
    """The same rows teach the same, by the digest over all that is tokenised, whoever wrote them into what file."""
    import datasets
    import pandas  # type: ignore[import-untyped]

    plain, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    if writer == "json":
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif writer == "datasets":
        datasets.Dataset(pa.Table.from_pylist(rows)).to_json(plain)
    else:
        pandas.DataFrame(rows).to_json(plain, orient="records", lines=True)
    first, second = (list(Reading(Source(path=str(path))).rows()) for path in (plain, table))
    good = [
        (one, two)
        for one, two in zip(first, second, strict=True)
        if isinstance(one, GoodRow) and isinstance(two, GoodRow)
    ]
    assert len(good) == len(rows), [*first, *second]
    for one, two in good:
        assert one.digest == two.digest
        assert (one.record.text, one.record.completion, one.record.tools) == (
            two.record.text,
            two.record.completion,
            two.record.tools,
        )
        assert "None" not in f"{one.record.text or ''}{one.record.tools or ''}"


def test_a_string_of_json_keeps_its_nulls(tmp_path: Path) -> None:
    row = conversation({})
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"city": null}'
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        [record] = items(tmp_path / name)
        assert isinstance(record, Record) and isinstance(record.text, list)
        assert record.text[1]["tool_calls"][0]["function"]["arguments"] == {"city": None}


class TestNaN:
    def test_where_nobody_reads_it_is_null(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a", "score": NaN, "more": [{"x": NaN}]}\n{"text": "NaN", "score": 1}\n')
        first, second = items(path)
        assert isinstance(first, Record) and first.columns == {"score": None, "more": [{"x": None}]}
        assert isinstance(second, Record) and second.text == "NaN"

    @pytest.mark.parametrize(
        ("row", "kind", "field"),
        [
            ('{"text": NaN}', "number", "text"),
            ('{"text": "a", "tools": [{"name": "f", "parameters": {"x": NaN}}]}', "number", "tools[0].parameters.x"),
            ('{"text": "a", "score": Infinity}', "number", "score"),
            ('{"text": "a", "score": [NaN, -Infinity]}', "number", "score[1]"),
            ('{"text": NaN x}', "malformed-json", ""),
            ('{"text": "a", "score": NaN', "malformed-json", ""),
            ('{"text": "a", "score": nan}', "malformed-json", ""),
            ('{"text": Infinity x', "malformed-json", ""),
            ('{"text": NaN, "text": "a"}', "duplicate-key", "text"),
            ('{"text": Infinity, "n": ' + "1" * 5000 + "}", "number", ""),
            ('{"text": "a", "n": 1e999, "m": ' + "[" * 5000, "too-deep", ""),
        ],
    )
    def test_elsewhere_it_is_told(self, tmp_path: Path, row: str, kind: str, field: str) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(f'{{"text": "a"}}\n{row}\n{{"text": "b"}}\n')
        [bad] = [i for i in items(path) if isinstance(i, BadRow)]
        assert (bad.line, bad.field) == (2, field)
        assert bad.kind == kind or kind == "too-deep"


class TestSize:
    """A file of a kilobyte may unpack to gigabytes: what is read of it is bounded by bytes, not by rows."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "UNPACKED", 2**22)
        monkeypatch.setattr(files, "CHUNK", 2**20)
        monkeypatch.setattr(files, "BLOCK", 2**16)

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
    @pytest.mark.parametrize("compress", [lambda data: gzip.compress(data, mtime=0), zst], ids=["gz", "zst"])
    def test_compressed(self, tmp_path: Path, name: str, compress: Any) -> None:
        row = b'{"text": "%b"}\n' % (b"a" * 20_000) if "json" in name else b"a" * 20_000 + b"\n"
        head = {"a.csv": b"text\n", "a.json": b"["}.get(name, b"")
        data = compress(head + (row[:-1] + b",\n" if name == "a.json" else row) * 1000)
        path = tmp_path / (name + (".gz" if data[0] == 0x1F else ".zst"))
        path.write_bytes(data)
        *good, bad = items(path, documents="lines")
        assert isinstance(bad, BadRow) and bad.kind == "damaged-file" and "it unpacks to more than" in bad.what
        assert len(good) * 20_000 <= 2**22 + 200 * len(data)

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_value_that_stands_in_every_row(self, tmp_path: Path, nested: bool) -> None:
        path = tmp_path / "a.parquet"
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array(["a" * 300_000]))
        if nested:
            roles = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 32, pa.int32()), pa.array(["user", "assistant"]))
            says = pa.StructArray.from_arrays([roles, column], names=["role", "content"])
            column = pa.ListArray.from_arrays(pa.array(range(0, 65, 2), pa.int32()), says)
        pq.write_table(pa.table({"messages" if nested else "text": column}), path, store_schema=False)
        sizes = [chunk.batch.nbytes for chunk, _ in files.chunks(path) if hasattr(chunk, "batch")]
        assert sizes and max(sizes) < 2 * 2**20  # 64 rows are 19 MB
        *good, bad = items(path)
        assert good and isinstance(bad, BadRow) and "it unpacks to more than" in bad.what and len(good) < 40

    def test_one_row_too_large(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        inner = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array(["a" * 300_000]))
        lists = pa.ListArray.from_arrays(pa.array([0, 1, 63, 64], pa.int32()), inner)
        pq.write_table(pa.table({"text": ["a", "b", "c"], "more": lists}), path, store_schema=False)
        assert faults(path) == [(2, "too-long")]
        assert [r.text for r in items(path) if isinstance(r, Record)] == ["a", "c"]

    def test_what_is_said_to_be_large_is_not_even_begun(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        texts = [f"{i:03}" + "a" * 100_000 for i in range(100)]
        pq.write_table(pa.table({"text": texts}), path, use_dictionary=False, compression="zstd")
        [bad] = items(path)
        assert isinstance(bad, BadRow) and bad.kind == "damaged-file" and "it unpacks to more than" in bad.what

    def test_large_rows_are_not_many_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "UNPACKED", 2**28)
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": [f"{i:03}" + "a" * 100_000 for i in range(64)]}), path, use_dictionary=False)
        (tmp_path / "a.csv").write_text("text\n" + "".join("a" * 100_000 + "\n" for _ in range(64)))
        for name in ("a.parquet", "a.csv"):
            assert all(len(chunk) <= 2**20 // 100_000 + 1 for chunk, _ in files.chunks(tmp_path / name))
            assert len(items(tmp_path / name)) == 64


class TestPlaces:
    """An error of the machine (no room, no permission) is not reported as a damaged file."""

    def test_no_room_to_unpack(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import tempfile

        path = tmp_path / "a.json.gz"
        path.write_bytes(gzip.compress(b'[{"text": "a"}]', mtime=0))
        assert len(items(path)) == 1
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        with pytest.raises(AlignError, match=r"gone\n.*no room to unpack.*No such file.*\n.*TMPDIR"):
            items(path)
        full = Path("/dev/full")
        if full.exists():
            monkeypatch.setattr(tempfile, "tempdir", None)
            monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full.open("wb", buffering=0))
            with pytest.raises(AlignError, match="no room to unpack a file in: No space left"):
                items(path)

    def test_an_unpacked_array_needs_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import tempfile

        path = tmp_path / "a.json"
        path.write_text('[{"text": "a"}]')
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        assert len(items(path)) == 1

    @pytest.mark.parametrize(
        ("name", "data", "what"),
        [
            ("a.jsonl", gzip.compress(b"{}", mtime=0), "gzip"),
            ("a.csv", zst(b"text\na\n"), "zstd"),
            ("a.json", b"PAR1....", "Parquet"),
            ("a.txt", b"PK\x03\x04....", "zip"),
        ],
        ids=["gzip", "zstd", "parquet", "zip"],
    )
    def test_another_type_than_the_name_says(self, tmp_path: Path, name: str, data: bytes, what: str) -> None:
        (tmp_path / name).write_bytes(data)
        [bad] = items(tmp_path / name)
        assert isinstance(bad, BadRow) and bad.kind == "damaged-file" and f"it is {what}" in bad.what


class TestParquet:
    def test_nulls_of_arrow_are_no_keys(self, tmp_path: Path) -> None:
        """Arrow gives every message every key that any message has; a template would see them."""
        call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Paris"}}}
        other = {"type": "function", "function": {"name": "f", "arguments": {"unit": "K"}}}
        rows: list[dict[str, Any]] = [
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [c]}]}
            for c in (call, other)
        ]
        rows[0]["note"] = {"x": 1}
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        found = items(path)
        for row in rows:
            row["messages"][1]["content"] = ""  # beside a call null is no text
        assert [r.text for r in found if isinstance(r, Record)] == [row["messages"] for row in rows]
        assert [r.columns for r in found if isinstance(r, Record)] == [{"note": {"x": 1}}, {"note": None}]

    def test_faults(self, tmp_path: Path) -> None:
        raw = pa.array([b"a", b"\xff", b"c", b"d\0", None, b"f"])
        text = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:], raw.buffers()[0])
        score = pa.array([1.0, 2.0, float("nan"), 4.0, 5.0, 6.0])
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": text, "score": score}), path)
        assert faults(path) == [(2, "invalid-utf8"), (4, "nul"), (5, "null")]
        third = items(path)[2]
        assert isinstance(third, Record) and third.columns == {"score": None}  # nobody reads this NaN

    def test_a_column_twice(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
        [bad] = items(path)
        assert isinstance(bad, BadRow) and bad.kind == "damaged-file" and "names a column twice" in bad.what

    def test_values_that_python_has_none_of(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        days = pa.array([0, 10**9, 1], pa.int32()).cast(pa.date32())  # the second is past the year 9999
        pq.write_table(pa.table({"text": ["a", "b", "c"], "day": days}), path)
        assert faults(path) == [(2, "wrong-type")] and len(items(path)) == 3

    def test_damaged(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": ["a" * 1000] * 1000}), path)
        path.write_bytes(path.read_bytes()[:-100])
        assert faults(path) == [(0, "damaged-file")]


class TestDamage:
    @pytest.mark.parametrize("compress", [gzip.compress, zst])
    def test_cut_off(self, tmp_path: Path, compress: Any) -> None:
        path = tmp_path / ("a.jsonl.gz" if compress is gzip.compress else "a.jsonl.zst")
        data = compress(b"".join(b'{"text": "%b"}\n' % os.urandom(100).hex().encode() for _ in range(20_000)))
        path.write_bytes(data[: len(data) // 2])
        found = items(path)
        *good, bad = found
        assert len(good) > 1000 and all(isinstance(item, Record) for item in good)
        assert isinstance(bad, BadRow) and (bad.line, bad.kind) == (len(good) + 1, "damaged-file")

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
    def test_utf16(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_bytes('{"text": "a"}\n'.encode("utf-16"))
        [bad] = items(path)
        assert isinstance(bad, BadRow) and bad.kind == "damaged-file" and "UTF-16" in bad.what

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("a.jsonl", b""),
            ("a.jsonl", b"\n \n"),
            ("a.jsonl.gz", gzip.compress(b"", mtime=0)),  # the header holds the time, and a test id may not
            ("a.json", b""),
            ("a.json", b"[]"),
            ("a.csv", b""),
            ("a.csv", b"text\n"),
        ],
    )
    def test_empty(self, tmp_path: Path, name: str, data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        assert faults(tmp_path / name) == [(0, "empty-file")]

    def test_byte_order_mark_at_the_start_is_none_of_the_rows(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
        (tmp_path / "b.json").write_bytes(b'\xef\xbb\xbf[{"text": "a"}]')
        assert [r.text for n in ("a.jsonl", "b.json") for r in items(tmp_path / n) if isinstance(r, Record)] == [
            "a"
        ] * 2


class TestDirectory:
    def test_all_files_in_order(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        for name in ("b.jsonl", "a.json", "sub/c.jsonl", ".hidden.jsonl", "README.md"):
            (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
        (tmp_path / "z.jsonl").write_text("")
        found = items(tmp_path)
        assert [r.text for r in found if isinstance(r, Record)] == ["a.json", "b.jsonl", "sub/c.jsonl"]
        assert faults(tmp_path) == [(0, "empty-file")]
        assert Reading(Source(path=str(tmp_path))).left_out == ["README.md"]

    def test_splits_by_name(self, tmp_path: Path) -> None:
        for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
            pq.write_table(pa.table({"text": [name]}), tmp_path / f"{name}.parquet")
        assert len(items(tmp_path)) == 2
        assert [r.text for r in items(tmp_path, split="test") if isinstance(r, Record)] == ["test-00000-of-00001"]
        with pytest.raises(AlignError, match=r"no files of the split 'validation'\n.*test, train"):
            items(tmp_path, split="validation")
        (tmp_path / "more.jsonl").write_text('{"text": "a"}')
        with pytest.raises(AlignError, match=r"files of the splits test, train, and more.jsonl that names none"):
            items(tmp_path)

    def test_ids_are_unique_in_all_of_it(self, tmp_path: Path) -> None:
        for name in "ab":
            (tmp_path / f"{name}.jsonl").write_text('{"text": "a", "id": 1}\n{"text": "b", "id": "1"}\n')
        assert faults(tmp_path) == [(1, "duplicate-id"), (2, "duplicate-id")]
        assert f"as in {tmp_path / 'a.jsonl'}:1" in str(items(tmp_path)[2])

    def test_nothing_in_it(self, tmp_path: Path) -> None:
        with pytest.raises(AlignError, match=r"has no data files in it\n.*\.jsonl"):
            items(tmp_path)


class TestNotFound:
    def test_near_name(self, tmp_path: Path) -> None:
        (tmp_path / "train.jsonl").write_text("")
        with pytest.raises(AlignError, match=r"tarin.jsonl\n.*is no file or directory\n.*did you mean 'train.jsonl'"):
            items(tmp_path / "tarin.jsonl")

    def test_unknown_type(self, tmp_path: Path) -> None:
        (tmp_path / "train.xlsx").write_text("")
        with pytest.raises(AlignError, match=r"unknown type\n.*\.jsonl"):
            items(tmp_path / "train.xlsx")


class TestDatasets:
    def test_saved_to_disk(self, tmp_path: Path) -> None:
        import datasets

        says = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        rows = datasets.Dataset.from_list([{"messages": says, "id": 1}, {"messages": says, "id": 1}])
        rows.save_to_disk(tmp_path / "one")
        datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "all")
        for name in ("one", "all"):
            first, second = items(tmp_path / name)
            assert isinstance(first, Record) and first.text == says and first.source == f"{tmp_path / name}[train]:1"
            assert isinstance(second, BadRow) and (second.line, second.kind) == (2, "duplicate-id")
        assert len(items(tmp_path / "all", split="test")) == 1
        with pytest.raises(AlignError, match=r"has no split 'dev'\n.*train, test"):
            items(tmp_path / "all", split="dev")

    def test_hub_cannot_be_reached(self) -> None:
        with pytest.raises(AlignError, match="cannot be loaded as a hub data set") as caught:
            items(Path("nobody/nothing"))
        assert "connection" in str(caught.value) and "\n" not in caught.value.problems[0].what

    def test_hub_is_asked_for_what_the_source_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        asked: list[Any] = []

        def load_dataset(*what: Any, **how: Any) -> Any:
            asked.append((what, how))
            return datasets.Dataset.from_list([{"text": "a"}])

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert len(items(Path("nobody/nothing"), subset="en", split="test")) == 1
        assert asked == [(("nobody/nothing", "en"), {"split": "test", "streaming": False})]


def test_starting_later_gives_the_rest(tmp_path: Path) -> None:
    for name, count in (("a", 700), ("b", 0), ("c", 300)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": f"{name}{i}"}) for i in range(count)))
    pq.write_table(pa.table({"text": [f"d{i}" for i in range(600)]}), tmp_path / "d.parquet")
    reading = Reading(Source(path=str(tmp_path)))
    rows = [i for i in reading.rows() if isinstance(i, GoodRow)]
    assert len(rows) == 1600
    for start in (0, 1, 699, 700, 701, 999, 1000, 1256, 1257, 1600, 2000):
        assert [i for i in reading.rows(start=start) if isinstance(i, GoodRow)] == rows[start:]


def test_no_torch() -> None:
    code = (
        "import sys, align.core.data.sources, align.core.data.lint.linter, align.cli.data;"
        "from align.core.plugin_system import registry; [registry.get('format', n) for n in registry.names('format')];"
        "assert not {'torch', 'transformers', 'datasets', 'pyarrow'} & sys.modules.keys(), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_killed_reader_leaves_no_worker(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{i}"}) for i in range(100)))
    code = """
import multiprocessing, sys
from align.core.data import sources
from align.schemas.run import Source
sources.WORTH_PROCESSES = 0
if __name__ == "__main__":
    for _ in sources.Reading(Source(path=sys.argv[1])).rows(workers=2):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        sys.stdin.read()
"""
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    workers = [int(word) for word in reader.stdout.readline().split()]
    assert len(workers) == 2
    reader.send_signal(signal.SIGKILL)
    reader.wait()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
