"""Carrying out a plan: every byte where it was planned, the source never touched, nothing half done."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import open_checkpoint, same_tensor_bytes, sha256_file
from surgery.checkpoint.record import SHARDS_NAME
from surgery.conversion import convert, execution
from surgery.conversion.execution import execute
from surgery.conversion.plan import NEW_SHARD, SHARD_PREFIX, make_plan
from surgery.errors import CheckpointError, UsageError
from tests.checkpoint.builders import listing
from tests.conversion.conftest import FILES, MakeKind, tree

SSMAX = [{"name": "ssmax"}]


def test_two_conversions_give_equal_bytes(source: Path, tmp_path: Path) -> None:
    before = listing(source)
    moved = shutil.copytree(source, tmp_path / "moved" / source.name)
    first, again = (
        tree(convert(place, output=tmp_path / name).output) for name, place in zip("12", (source, moved), strict=True)
    )
    copied = tree(convert(source, output=tmp_path / "a", mode="copy").output)
    assert first == again
    # What was read while it was copied is in the record, and nothing else differs.
    assert {name: content for name, content in copied.items() if name != SHARDS_NAME} == first
    assert copied == tree(convert(moved, output=tmp_path / "b", mode="copy").output)
    hashes = json.loads(copied[SHARDS_NAME])["sha256"]
    assert hashes == {name: sha256_file(tmp_path / "a" / name) for name in hashes} and len(hashes) >= 1
    assert listing(source) == before


def test_shards_are_unchanged_and_every_tensor_is_in_the_index(source: Path, tmp_path: Path) -> None:
    out = convert(source, form="bias", output=tmp_path / "out").output
    old, new = open_checkpoint(source), open_checkpoint(out)
    for shard in old.shards:
        assert (out / f"{SHARD_PREFIX}{shard}").read_bytes() == (source / shard).read_bytes()
    assert new.index is not None and set(new.index["weight_map"]) == set(new.tensors) > set(old.tensors)
    assert new.index["metadata"]["total_size"] == new.total_bytes
    for name, info in old.tensors.items():
        own = new.tensors[name]
        assert (own.dtype, own.shape) == (info.dtype, info.shape)
        assert same_tensor_bytes(source / info.shard, info, out / own.shard, own)


def test_new_tensors_are_float32_beside_bfloat16(make_kind: MakeKind, tmp_path: Path) -> None:
    new = open_checkpoint(convert(make_kind("bf16"), output=tmp_path / "out").output)
    dtypes = {(info.shard == NEW_SHARD, info.dtype) for info in new.tensors.values()}
    assert dtypes == {(True, "F32"), (False, "BF16")}


@pytest.mark.parametrize("mode", ["auto", "copy", "link"])
def test_other_files_are_copied_byte_for_byte(make_kind: MakeKind, mode: Any, tmp_path: Path) -> None:
    source = Path(shutil.copytree(make_kind("adorned"), tmp_path / "source"))
    out = convert(source, output=tmp_path / "out", mode=mode).output
    for name, content in FILES.items():
        assert (out / name).read_bytes() == content
        assert not (out / name).samefile(source / name)
    assert (out / "surgery" / "source" / "README.md").read_bytes() == (source / "README.md").read_bytes()
    for shard in open_checkpoint(source).shards:
        assert (out / f"{SHARD_PREFIX}{shard}").samefile(source / shard) == (mode == "link")


def test_files_of_a_read_only_source_can_be_replaced_in_the_output(make_kind: MakeKind, tmp_path: Path) -> None:
    source = Path(shutil.copytree(make_kind("adorned"), tmp_path / "source"))
    for path in source.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    out = convert(source, output=tmp_path / "out").output
    assert all(path.stat().st_mode & 0o200 for path in out.rglob("*"))


@pytest.mark.parametrize("shards", ["40KB", "1GB"])
def test_saving_into_a_linked_output_never_reaches_the_source(make_kind: MakeKind, shards: str, tmp_path: Path) -> None:
    """transformers writes and deletes files in the very folder whose shards are links to the source's."""
    import torch
    from transformers import AutoModelForCausalLM

    source = Path(shutil.copytree(make_kind("bf16"), tmp_path / "source"))
    before = (tree(source), listing(source))
    out = convert(source, form="paper", output=tmp_path / "out", mode="link").output
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    for _ in range(2):  # the second time over what the first has written
        model.save_pretrained(out, max_shard_size=shards)
        assert (tree(source), listing(source)) == before
    again = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    shutil.rmtree(out)
    assert tree(source) == before[0]


def test_an_output_is_replaced_with_force_and_only_then(make_kind: MakeKind, tmp_path: Path) -> None:
    source, out = make_kind("single"), tmp_path / "out"
    first = tree(convert(source, output=out).output)
    with pytest.raises(UsageError, match="not empty"):
        convert(source, form="paper", output=out)
    assert tree(out) == first
    (out / "stale").write_text("of an earlier time")
    expected = tree(convert(source, form="paper", output=tmp_path / "other").output)
    convert(source, form="paper", output=out, force=True)
    assert tree(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_the_default_output_lies_beside_the_name_that_was_given(make_kind: MakeKind, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    source = Path(shutil.copytree(make_kind("single"), tmp_path / "far" / "smol"))
    (tmp_path / "here" / "model").symlink_to(source)
    assert convert(tmp_path / "here" / "model").output == tmp_path / "here" / "model-ssmax"
    inside = source / "sub"
    inside.mkdir()
    (tmp_path / "here" / "deep").symlink_to(inside)
    assert convert(tmp_path / "here" / "deep" / "..").output == tmp_path / "far" / "smol-ssmax"


@pytest.mark.parametrize("where", [".", "inside", "assets/inside", ".."])
@pytest.mark.parametrize("force", [False, True])
def test_an_output_in_or_around_the_source_is_refused(
    make_kind: MakeKind, where: str, force: bool, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(make_kind("adorned"), tmp_path / "around" / "source"))
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="source"):
        convert(source, output=source / where, force=force)
    assert listing(tmp_path) == before


def test_too_little_space_leaves_nothing(make_kind: MakeKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def require_space(path: Path, needed: int) -> None:
        asked.append(needed)
        raise CheckpointError(f"{needed} bytes are needed")

    monkeypatch.setattr(execution, "require_space", require_space)
    for mode in ("copy", "link"):
        with pytest.raises(CheckpointError, match="needed"):
            convert(make_kind("sharded"), output=tmp_path / "new" / "out", mode=mode)
    assert list(tmp_path.iterdir()) == []
    copied, linked = asked
    assert copied - linked == sum(path.stat().st_size for path in make_kind("sharded").glob("*.safetensors"))


def test_the_space_asked_for_is_enough(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(execution, "require_space", lambda _, needed: asked.append(needed))
    out = convert(source, form="bias", output=tmp_path / "out").output
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) <= asked[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
@pytest.mark.parametrize("limit", [0, 300, 1000, 5000, 30_000])
def test_a_disk_that_takes_no_more_leaves_nothing(make_kind: MakeKind, limit: int, tmp_path: Path) -> None:
    """The kernel refuses to let any file grow beyond the limit: shards, index, code and plan in turn."""
    prepared = make_plan(make_kind("sharded"), SSMAX)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            execute(prepared, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert os.strerror(errno.EFBIG) in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", ["travelling_code", "write_card", "write_json", "write_index", "write_safetensors"])
def test_any_write_that_fails_is_an_expected_error(
    make_kind: MakeKind, writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(execution, writer, full)
    with pytest.raises(CheckpointError, match="No space left"):
        convert(make_kind("single"), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_byte_once(make_kind: MakeKind, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(make_kind("adorned"), output=tmp_path / "out", on_bytes=lambda done, total: seen.append((done, total)))
    done = [entry[0] for entry in seen]
    assert done == sorted(done) and len({total for _, total in seen}) == 1
    assert 0.9 < done[-1] / seen[0][1] <= 1


def test_the_default_output_lies_beside_the_source(make_kind: MakeKind, tmp_path: Path) -> None:
    source = Path(shutil.copytree(make_kind("single"), tmp_path / "model"))
    assert convert(f"{source}/").output.resolve() == tmp_path / "model-ssmax"


def test_a_last_check_sees_the_whole_folder_and_can_refuse_it(source: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    out = tmp_path / "out"

    def refuse(folder: Path) -> None:
        assert not out.exists()
        seen.append(tree(folder))
        raise CheckpointError("not good enough")

    with pytest.raises(CheckpointError, match="not good enough"):
        execute(make_plan(source, SSMAX), out, check=refuse)
    assert list(tmp_path.iterdir()) == []
    execute(make_plan(source, SSMAX), out, check=lambda folder: None)
    assert seen == [tree(out)]
