"""Data of every kind through a whole run: mixed, streamed, resumed, and never on both sides."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import UsageError
from surgery.recovery import finetune, read_recipe
from surgery.recovery.api import read_rows
from tests.data.test_chat import CHATML
from tests.recovery.conftest import WORDS, Converted, MakeRecipe, crash


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """JSONL and Parquet; every fifth record of one is also in the other."""
    import pyarrow
    import pyarrow.parquet

    chance = random.Random(1)
    texts = [" ".join(chance.choice(WORDS) for _ in range(chance.randint(4, 24))) for _ in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:200]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"body": t} for t in texts[180:]]), tmp_path / "b.parquet")
    return tmp_path


def _sources(files: Path) -> dict[str, Any]:
    return {
        "text": None,
        "sources": [
            {"kind": "jsonl", "path": str(files / "a.jsonl"), "weight": 2.0},
            {"kind": "parquet", "path": str(files / "b.parquet"), "field": "body"},
        ],
    }


def _pieces(rows: Any) -> set[tuple[int, ...]]:
    return {document for row in rows for document in row.documents}


@pytest.mark.parametrize("streaming", [False, True])
def test_no_document_on_both_sides(make_recipe: MakeRecipe, files: Path, streaming: bool) -> None:
    recipe = read_recipe(make_recipe(data={**_sources(files), "streaming": streaming, "sequence_length": 400}))
    data = read_rows(recipe, lambda texts: [list(text.encode()) for text in texts])
    held = _pieces(data.held_out)
    if data.stream is None:
        train = _pieces(data.train)
        assert data.weights == (2.0, 1.0)
    else:
        stream = data.stream(400, 0, None)
        train = _pieces(stream[number] for number in range(300))
    assert held and train and not held & train
    again = read_rows(recipe, lambda texts: [list(text.encode()) for text in texts])
    assert again.fingerprint == data.fingerprint and again.held_out == data.held_out


@pytest.mark.parametrize("at", [3, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 5))])
def test_a_streamed_run_resumes_exactly(make_recipe: MakeRecipe, files: Path, tmp_path: Path, at: int) -> None:
    recipe = make_recipe(
        data={**_sources(files), "streaming": True},
        checkpoints={"every": 2},
        stages=[{"budget": {"steps": 3}}, {"budget": {"steps": 3}, "data": {"sequence_length": 24}}],
    )
    plain = finetune({**recipe, "output": str(tmp_path / "plain")})
    assert plain.steps == 6

    crash(recipe, step=at)
    finetune(recipe, resume=True)

    def rows(name: str) -> list[dict[str, Any]]:
        log = (tmp_path / name / "surgery" / "log.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in log]

    assert rows("out") == rows("plain")
    shard = "surgery-ssmax.safetensors"
    assert (tmp_path / "out" / shard).read_bytes() == (tmp_path / "plain" / shard).read_bytes()


def test_a_changed_file_is_not_resumed(make_recipe: MakeRecipe, files: Path) -> None:
    recipe = make_recipe(data={**_sources(files), "streaming": True}, checkpoints={"every": 1})

    crash(recipe, step=2)
    with (files / "a.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UsageError, match="another data"):
        finetune(recipe, resume=True)


def test_chat_trains_on_answers(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = shutil.copytree(converted(), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(model)
    chats = [
        [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"answer {number}"}]
        for number in range(30)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    source = {"kind": "jsonl", "path": str(tmp_path / "chats.jsonl"), "format": "chat"}
    result = finetune(make_recipe(model, data={"text": None, "sources": [source], "sequence_length": 96}))
    assert result.comparison is not None and result.held_out_loss_after is not None
    # "answer 7<|end|>\n" has 16 characters, and each is a token of this tokenizer.
    assert 15 * 5 <= result.comparison.tokens <= 17 * 7
    with pytest.raises(UsageError, match="has none"):
        finetune(make_recipe(output=str(tmp_path / "o"), data={"text": None, "sources": [source]}))


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"text": None}, "data.text: missing"),
        ({"sources": [{"kind": "text", "path": "x"}]}, "either text or sources"),
        ({"text": None, "separator": "%", "sources": [{"kind": "text", "path": "x"}]}, "separator has no effect"),
        (
            {"text": None, "sources": [{"kind": "jsonl", "path": "x", "separator": "%"}]},
            "only with `kind: text` or `kind: recall`",
        ),
        ({"text": None, "sources": [{"kind": "json", "path": "x"}]}, "unknown kind 'json'; did you mean `jsonl`"),
        ({"text": None, "sources": [{"kind": "hub", "id": "a/b", "weight": 0}]}, "greater than 0"),
        ({"text": None, "sources": [{"kind": "hub", "splt": "x", "id": "a/b"}]}, "did you mean `split`"),
        ({"text": None, "sources": [{"kind": "text", "path": []}]}, "at least one"),
        ({"long_documents": "keep"}, "'cut', 'start' or 'drop'"),
    ],
)
def test_faults_of_data(make_recipe: MakeRecipe, data: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        read_recipe(make_recipe(data=data))


def test_placeholders_of_sources_are_named(make_recipe: MakeRecipe) -> None:
    sources = [{"kind": "jsonl", "path": "path/to/file.jsonl"}]
    with pytest.raises(UsageError, match=r"data\.sources\.0 \(path/to/"):
        finetune(make_recipe(data={"text": None, "sources": sources}), dry_run=True)
