"""Sources of every kind: read in order, from any position, and with errors that name the key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from surgery.data import Document, draw_rows, make_rows
from surgery.data.held_out import is_held_out
from surgery.data.sources import DataSource, HubSource, JsonlSource, ParquetSource, SourceReader, TextSource
from surgery.data.stream import Mixture, RowStream
from surgery.errors import UsageError

CHAT = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "because"}]


def _write(folder: Path, kind: str, records: Sequence[dict[str, Any]], files: int = 3) -> str:
    """Records spread over several files, in order of their names."""
    folder.mkdir(exist_ok=True)
    share = -(-len(records) // files)
    for number in range(files):
        some = records[number * share : (number + 1) * share]
        if kind == "text":
            for place, record in enumerate(some):
                (folder / f"{number}-{place:02}.txt").write_text(record["text"])
        elif kind == "jsonl":
            (folder / f"{number}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in some))
        else:
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(some)), folder / f"{number}.parquet")
    return str(folder)


def _source(kind: str, path: str, **options: Any) -> DataSource:
    return {"text": TextSource, "jsonl": JsonlSource, "parquet": ParquetSource}[kind](kind=kind, path=path, **options)


def _reader(source: DataSource) -> SourceReader:
    return SourceReader(source, 0, "data.sources.0", stream=True)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_order_and_positions(tmp_path: Path, kind: str) -> None:
    texts = [f"document number {number}" for number in range(11)]
    path = _write(tmp_path / "data", kind, [{"text": text} for text in texts])
    reader = _reader(_source(kind, path))
    read = list(reader.documents())
    assert [document.text for document, _ in read] == texts
    assert [document.text for document, _ in reader.documents()] == texts
    for number, (_, position) in enumerate(read):
        kept = json.loads(json.dumps(position))  # as it is in a checkpoint
        rest = [document.text for document, _ in _reader(_source(kind, path)).documents(kept)]
        assert rest == texts[number + 1 :]
    before = reader.identity()
    assert before == _reader(_source(kind, path)).identity()
    next(Path(path).iterdir()).write_text("something else")
    assert before != _reader(_source(kind, path)).identity()


def test_separators_fields_and_what_has_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one%%two%% %%three")
    pieces = [document.text for document, _ in _reader(_source("text", str(tmp_path), separator="%%")).documents()]
    assert pieces == ["one", "two", "three"]
    records = [{"body": "x"}, {"body": None}, {"body": " "}, {"body": "y"}]
    path = _write(tmp_path / "lines", "jsonl", records, files=1)
    assert [document.text for document, _ in _reader(_source("jsonl", path, field="body")).documents()] == ["x", "y"]
    chats = _write(tmp_path / "chats", "jsonl", [{"messages": CHAT}, {"messages": []}], files=1)
    (document, _), *rest = _reader(_source("jsonl", chats, format="chat")).documents()
    assert document.messages == tuple(CHAT) and not rest


@pytest.mark.parametrize(
    ("content", "options", "part"),
    [
        ('{"text": "a"}\n', {"field": "body"}, "record 1 has no field 'body'"),
        ('{"text": "a"}\n{"text": 3}\n', {}, "JSON parse error|record 2: 'text' is int"),
        ('{"text": [1]}\n', {}, "'text' is list, not text"),
        ('{"text": broken\n', {}, "JSON parse error"),
        ('{"messages": "no list"}\n', {"format": "chat"}, "no list of messages"),
        ('{"messages": [{"role": "user"}]}\n', {"format": "chat"}, "no list of messages"),
    ],
)
def test_faulty_records(tmp_path: Path, content: str, options: dict[str, Any], part: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UsageError, match=rf"data\.sources\.0.*({part})") as caught:
        list(_reader(_source("jsonl", str(tmp_path), **options)).documents())
    assert caught.value.hint


def test_missing_files_and_an_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"data\.sources\.0: no file matches"):
        _reader(_source("parquet", str(tmp_path / "*.parquet")))
    from datasets import config as datasets_config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", True)
    for stream in (True, False):
        reader = SourceReader(HubSource(kind="hub", id="nobody/nothing"), 0, "data.sources.0", stream=stream)
        with pytest.raises(UsageError, match=r"data\.sources\.0: .*nobody/nothing") as caught:
            list(reader.documents())
        assert "while online" in str(caught.value.hint)


def test_hub_data_sets_go_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        found = datasets.Dataset.from_list([{"text": f"row {number}"} for number in range(4)])
        return found.to_iterable_dataset() if options["streaming"] else found

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = HubSource(kind="hub", id="a/b", config="en", split="validation", revision="abc")
    for stream in (True, False):
        read = list(SourceReader(source, 0, "data.sources.0", stream=stream).documents())
        assert [document.text for document, _ in read] == [f"row {number}" for number in range(4)]
        after = SourceReader(source, 0, "data.sources.0", stream=stream).documents(read[1][1])
        assert [document.text for document, _ in after] == ["row 2", "row 3"]
    expected = {"split": "validation", "revision": "abc", "streaming": True}
    assert asked[0] == (("a/b", "en"), expected)


# -------------------------------------------------------------------------------------------------------- mixing


def test_drawn_rows_keep_their_shares() -> None:
    short = make_rows([[1] * 4 for _ in range(3)], 8, packing=False)
    long = make_rows([[2] * 8 for _ in range(50)], 8, packing=False)
    drawn = draw_rows([short, long], [1.0, 3.0], 60, seed=0)
    for end in (10, 30, 60):
        tokens = [sum(row.tokens for row in drawn[:end] if row.documents[0][0] == kind) for kind in (1, 2)]
        assert abs(tokens[0] / sum(tokens) - 0.25) < 8 / sum(tokens)
    assert drawn == draw_rows([short, long], [1.0, 3.0], 60, seed=0)
    assert drawn[:20] == draw_rows([short, long], [1.0, 3.0], 20, seed=0), "the order does not depend on the length"


def test_each_pass_has_every_row_once() -> None:
    rows = make_rows([[number] * 4 for number in range(10)], 4, packing=False)
    drawn = draw_rows([rows], [1.0], 30, seed=3)
    passes = [drawn[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(some, key=str) == sorted(rows, key=str) for some in passes)
    assert passes[0] != passes[1] and drawn != draw_rows([rows], [1.0], 30, seed=4)


def _stream(paths: Sequence[str], weights: Sequence[float] = (1.0, 2.0), snapshot: Any = None) -> RowStream:
    readers = [
        SourceReader(_source("jsonl", path), n, f"data.sources.{n}", stream=True) for n, path in enumerate(paths)
    ]
    return RowStream(
        Mixture(readers, weights, lambda document: "held" not in document.text),
        lambda document: (list(document.text.encode()), None),
        lambda tokens: make_rows([ids for ids, _ in tokens], 24, packing=True),
        length=24,
        seed=1,
        snapshot=snapshot,
    )


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Two sources; one is small enough to be gone through several times in each window."""
    many = [{"text": f"{'held ' if number % 9 == 0 else ''}{number} " * (1 + number % 4)} for number in range(900)]
    few = [{"text": f"small source, document {number}"} for number in range(7)]
    return [_write(tmp_path / "few", "jsonl", few), _write(tmp_path / "many", "jsonl", many)]


def test_a_stream_goes_on_from_any_row(paths: list[str]) -> None:
    stream = _stream(paths)
    rows = [stream[number] for number in range(400)]
    other = _stream(paths)
    for number in (0, 100, 127, 128, 257, 399):
        assert other[number] == rows[number]
        snapshot = json.loads(json.dumps(other.snapshot(number)))
        assert snapshot["row"] <= number
        again = _stream(paths, snapshot=snapshot)
        assert [again[place] for place in range(number, 400)] == rows[number:]
    assert stream.snapshot(399)["row"] > 200, "not from the beginning"
    texts = {bytes(document) for row in rows for document in row.documents}
    assert not any(b"held" in text for text in texts)


def test_a_stream_keeps_its_shares(paths: list[str]) -> None:
    rows = _stream(paths).window()
    small = sum(len(d) for row in rows for d in row.documents if b"small" in bytes(d) or b"document" in bytes(d))
    assert small / sum(row.tokens for row in rows) == pytest.approx(1 / 3, abs=0.06)


def test_a_stream_of_nothing(tmp_path: Path) -> None:
    path = _write(tmp_path / "held", "jsonl", [{"text": "held out"}], files=1)
    with pytest.raises(UsageError, match=r"data\.sources\.0 leaves nothing to train on"):
        _stream([path], [1.0])


def test_held_out_by_the_text_alone() -> None:
    documents = [Document(str(number), f"text {number}") for number in range(2000)]
    held = [document for document in documents if is_held_out(document, 0.1, 0)]
    assert 150 < len(held) < 250
    same = [Document("elsewhere", "  " + document.text + "\n", 3) for document in documents]
    assert [is_held_out(a, 0.1, 0) for a in documents] == [is_held_out(b, 0.1, 0) for b in same]
    assert [is_held_out(a, 0.1, 0) for a in documents] != [is_held_out(a, 0.1, 1) for a in documents]
    assert all(is_held_out(document, 0.2, 0) for document in held), "a larger share holds out the same and more"


def test_long_documents() -> None:
    documents = [[1] * 10, [2] * 3, [3] * 4]

    def lengths(long: Any) -> list[int]:
        return [len(row.documents[0]) for row in make_rows(documents, 4, packing=False, long=long)]

    assert lengths("cut") == [4, 4, 2, 3, 4]
    assert lengths("start") == [4, 3, 4]
    assert lengths("drop") == [3, 4]


def test_a_fault_in_a_folder_called_empty_is_no_empty_file(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xff\xfe")
    reader = _reader(_source("text", str(folder)))
    with pytest.raises(UsageError, match="not UTF-8"):
        list(reader.documents())
