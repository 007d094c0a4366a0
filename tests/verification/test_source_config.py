"""The config.json of the source and of the converted checkpoint are compared, without a model being run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from surgery.conversion import convert
from surgery.errors import UsageError
from surgery.verification import verify
from tests.verification.test_failures import rewrite

SOURCE, OWN = "the source's config.json", "config.json is the conversion's"


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(source, output=tmp_path_factory.mktemp("converted") / "out").output


@pytest.fixture
def out(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "out"))


def failed(folder: Path, against: Path | None) -> dict[str, str]:
    return {check.name: check.detail for check in verify(folder, against=against, files_only=True).failed}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda config: config.update(rms_norm_eps=1e-3), "rms_norm_eps"),
        (lambda config: config.update(max_position_embeddings=128), "max_position_embeddings"),
        (lambda config: config["rope_parameters"].update(rope_theta=7.0), "rope_parameters.rope_theta"),
        (lambda config: config.pop("eos_token_id"), "eos_token_id"),
        (lambda config: config.update(use_cache=1), "use_cache"),
        (lambda config: config.update(added="yes"), "added"),
    ],
)
def test_another_source_is_not_the_converted_one(
    out: Path, source: Path, tmp_path: Path, change: Any, key: str
) -> None:
    other = Path(shutil.copytree(source, tmp_path / "other"))
    rewrite(other / "config.json", change)
    found = failed(out, other)
    assert set(found) == {SOURCE} and found[SOURCE].endswith(f" {key}")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda config: config.update(rms_norm_eps=1e-3), "rms_norm_eps"),
        (lambda config: config["surgery"]["locks"]["initializer_range"].update(was=9.0), "initializer_range"),
        (lambda config: config.update(initializer_range=0.02), "initializer_range"),
        (lambda config: config["auto_map"].pop("AutoModel"), "auto_map.AutoModel"),
        (lambda config: config.update(architectures=["LlamaForCausalLM"]), "architectures"),
        (lambda config: config["surgery"].update(attention="layers.{layer}.mlp"), "surgery.attention"),
    ],
)
def test_a_config_that_no_conversion_writes(out: Path, change: Any, key: str) -> None:
    rewrite(out / "config.json", change)
    found = failed(out, None)
    assert set(found) == {OWN} and key in found[OWN]


@pytest.mark.parametrize("operations", [["rope"], ["rope", "ssmax"]])
def test_operations_in_the_config_belong_to_it(source: Path, tmp_path: Path, operations: list[str]) -> None:
    options = {"rope": {"name": "rope", "type": "yarn", "factor": 2.0}, "ssmax": {"name": "ssmax"}}
    out = convert(source, [options[name] for name in operations], output=tmp_path / "out").output
    assert failed(out, source) == {} and failed(out, None) == {}
    rewrite(out / "config.json", lambda config: config["rope_parameters"].update(factor=3.0))
    assert set(failed(out, source)) == {OWN}


def test_a_record_that_is_gone(out: Path, source: Path) -> None:
    (out / "surgery" / "source" / "config.json").unlink()
    assert set(failed(out, source)) == {SOURCE}


def test_infinity_in_a_config_is_no_difference(source: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "time_step_limit": [0.0, float("inf")]}))
    assert failed(convert(other, output=tmp_path / "out").output, other) == {}


def test_another_family_is_still_a_wrong_call(out: Path, make_source: Any) -> None:
    with pytest.raises(UsageError, match="was converted"):
        failed(out, make_source("qwen2"))
