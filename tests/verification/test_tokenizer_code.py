"""A tokenizer that needs code of its own: it is named, it runs only when asked for, and the other checks go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint.tokenizer_code import tokenizer_code
from surgery.conversion import convert
from surgery.errors import CheckpointError
from surgery.loading import RunOptions, load_tokenizer
from surgery.verification import verify
from tests.verification.conftest import VOCABULARY

CODE = """
from pathlib import Path

from transformers import PreTrainedTokenizer

Path({trace!r}).touch()


class ByteTokenizer(PreTrainedTokenizer):
    vocab_size = 259

    def get_vocab(self):
        return {{str(number): number for number in range(self.vocab_size)}}

    def _tokenize(self, text, **_):
        return [str(3 + byte) for byte in text.encode()]

    def _convert_token_to_id(self, token):
        return int(token) if token.isdecimal() else 0

    def _convert_id_to_token(self, index):
        return str(index)

    def save_vocabulary(self, *_, **__):
        return ()
"""
CHECK = "tokenizer loads, nothing waits"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exists once the code has run."""
    return tmp_path_factory.mktemp("trace") / "ran"


@pytest.fixture(scope="module")
def with_code(make_source: Any, tmp_path_factory: pytest.TempPathFactory, trace: Path) -> Path:
    made = make_source("llama", vocab_size=VOCABULARY)
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("code") / "tiny"))
    (folder / "tokenization_bytes.py").write_text(CODE.format(trace=str(trace)))
    config = {
        "tokenizer_class": "ByteTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_bytes.ByteTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.fresh
def test_verify_goes_on_without_the_tokenizer(with_code: Path, trace: Path, tmp_path: Path) -> None:
    out = convert(with_code, form="paper", output=tmp_path / "out").output
    result = verify(out, against=with_code)
    (check,) = [check for check in result.checks if check.name == CHECK]
    assert check.status == "skipped"
    assert "needs code of its own (tokenization_bytes.py" in check.detail and "--trust-remote-code" in check.detail
    assert not result.failed and any(check.name == "n: multipliers" for check in result.checks)
    assert not trace.exists(), "nobody allowed the code to run"


@pytest.mark.slow
def test_verify_runs_the_code_when_told_to(with_code: Path, trace: Path, tmp_path: Path) -> None:
    out = convert(with_code, form="paper", output=tmp_path / "out").output
    trusted = verify(out, against=with_code, run=RunOptions(trust_remote_code=True))
    (check,) = [check for check in trusted.checks if check.name == CHECK]
    assert check.status == "passed" and "as the source's" in check.detail and trace.exists()


def test_the_error_names_the_code(with_code: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"needs code of its own \(tokenization_bytes.py, in its folder\)"
    ) as error:
        load_tokenizer(with_code)
    assert "--trust-remote-code" in str(error.value) and "Copy the tokenizer's files" not in str(error.value)
    assert load_tokenizer(with_code, trust_remote_code=True)("ab")["input_ids"] == [100, 101]

    # From the hub code does not come along.
    bare = Path(shutil.copytree(with_code, tmp_path / "bare"))
    (bare / "tokenization_bytes.py").unlink()
    with pytest.raises(CheckpointError, match="missing from its folder"):
        load_tokenizer(bare, trust_remote_code=True)
    plan = convert(bare, output=tmp_path / "out").plan
    assert any("'tokenization_bytes.py', which the folder does not have" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("file", "auto_map", "code"),
    [
        ("tokenizer_config.json", {"AutoTokenizer": ["a_b.C", None]}, "a_b.py"),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "org/x--fast.C"]}, "fast.py"),
        ("tokenizer_config.json", ["old.C", None], "old.py"),
        ("config.json", {"AutoTokenizer": "mine.C"}, "mine.py"),
        ("config.json", {"AutoConfig": "configuration.C"}, None),
        ("tokenizer_config.json", 3, None),
    ],
)
def test_the_file_of_code(file: str, auto_map: Any, code: str | None, tmp_path: Path) -> None:
    (tmp_path / file).write_text(json.dumps({"auto_map": auto_map}))
    assert tokenizer_code(tmp_path) == code


def test_broken_json_names_no_code(tmp_path: Path) -> None:
    assert tokenizer_code(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert tokenizer_code(tmp_path) is None
