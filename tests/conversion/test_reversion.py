"""The source of a converted checkpoint, byte for byte, or a refusal."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import surgery.commands.revert  # noqa: F401
from surgery.anatomy import read_anatomy
from surgery.checkpoint import NewTensor, open_checkpoint, sha256_file, sha256_json, write_safetensors
from surgery.checkpoint.record import HISTORY_NAME, SHARDS_NAME
from surgery.commands import console
from surgery.commands.app import app
from surgery.conversion import PLAN_NAME, convert, revert
from surgery.conversion.plan import NEW_SHARD
from surgery.errors import CheckpointError, PlanRefusedError, SurgeryError, UsageError
from tests.checkpoint.builders import listing
from tests.conversion.conftest import MakeKind, tree


@pytest.fixture
def converted(make_kind: MakeKind, tmp_path: Path) -> Path:
    return convert(make_kind("adorned"), output=tmp_path / "out").output


def record_training(folder: Path, *trained: str) -> None:
    entries = [{"trained": what, "tokens": 1000} for what in trained]
    (folder / HISTORY_NAME).write_text(json.dumps({"schema": 1, "entries": entries}))


@pytest.mark.parametrize("form", ["anchored", "logn"])
def test_the_source_comes_back(source: Path, form: str, tmp_path: Path) -> None:
    out = convert(source, form=form, output=tmp_path / "out").output
    result = revert(out, output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)
    assert result.files == sum(path.is_file() for path in source.rglob("*"))


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_the_source_comes_back_however_files_are_placed(make_kind: MakeKind, mode: Any, tmp_path: Path) -> None:
    source = Path(shutil.copytree(make_kind("adorned"), tmp_path / "source"))
    out = convert(source, output=tmp_path / "out", mode=mode).output
    revert(out, output=tmp_path / "back", mode=mode)
    assert tree(tmp_path / "back") == tree(source)


def test_the_source_comes_back_after_the_scales_were_trained(
    converted: Path, make_kind: MakeKind, tmp_path: Path
) -> None:
    names = [name for name, shard in index(converted).items() if shard == NEW_SHARD]
    (converted / NEW_SHARD).unlink()
    learned = NewTensor("F32", (4,), bytes(range(16)))
    write_safetensors(converted / NEW_SHARD, dict.fromkeys(names, learned), {"format": "pt"})
    (converted / "surgery" / "recipe.yaml").write_text("model: x\n")
    record_training(converted, "scale", "scale")
    revert(converted, output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(make_kind("adorned"))


def index(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


def refused(folder: Path, tmp_path: Path) -> SurgeryError:
    before = listing(tmp_path)
    with pytest.raises(SurgeryError) as caught:
        revert(folder, output=tmp_path / "back")
    assert listing(tmp_path) == before
    return caught.value


def test_a_folder_that_cannot_be_made_is_said(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def full(path: Path, *arguments: Any, **keywords: Any) -> None:
        if path.name == "assets":
            raise OSError(errno.ENOSPC, "No space left on device")
        make(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(CheckpointError, match=r"cannot be placed as .*No space left"):
        revert(converted, output=tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("trained", [["full"], ["scale+lora"], ["scale", "full", "scale"]])
def test_after_weights_were_trained_it_refuses(converted: Path, trained: list[str], tmp_path: Path) -> None:
    record_training(converted, *trained)
    error = refused(converted, tmp_path)
    assert isinstance(error, PlanRefusedError) and "were trained" in error.message
    assert error.hint is not None and "before the training" in error.hint


@pytest.mark.parametrize("content", ["[]", "{}", '{"entries": 3}', '{"entries": ["full"]}', '{"entries": [{}]}', "{"])
def test_a_history_that_cannot_be_read_is_no_licence_to_revert(converted: Path, content: str, tmp_path: Path) -> None:
    (converted / HISTORY_NAME).write_text(content)
    assert refused(converted, tmp_path).exit_code in (2, 3)


def test_a_shard_that_is_gone_was_trained(converted: Path, tmp_path: Path) -> None:
    for path in converted.glob("source-*"):
        path.rename(path.with_name(path.name.replace("source-", "trained-")))
    assert "source shards are gone" in refused(converted, tmp_path).message


def test_a_kept_file_that_is_gone_is_named(converted: Path, tmp_path: Path) -> None:
    (converted / "LICENSE").unlink()
    error = refused(converted, tmp_path)
    assert isinstance(error, CheckpointError) and "LICENSE" in error.message


def test_a_folder_that_was_never_converted(make_kind: MakeKind, tmp_path: Path) -> None:
    error = refused(make_kind("single"), tmp_path)
    assert isinstance(error, PlanRefusedError) and "not a converted checkpoint" in error.message
    assert isinstance(refused(tmp_path / "nowhere", tmp_path), CheckpointError)


def change_plan(folder: Path, *, rehash: bool, **changes: Any) -> None:
    plan = {**json.loads((folder / PLAN_NAME).read_text()), **changes}
    if rehash:
        plan["hash"] = sha256_json({name: value for name, value in plan.items() if name != "hash"})
    (folder / PLAN_NAME).write_text(json.dumps(plan))


def test_a_changed_plan_is_refused(converted: Path, tmp_path: Path) -> None:
    change_plan(converted, rehash=False, kept_files=[])
    assert "was changed" in refused(converted, tmp_path).message


def test_a_newer_format_is_refused(converted: Path, tmp_path: Path) -> None:
    change_plan(converted, rehash=True, format_version=2)
    assert "newer" in refused(converted, tmp_path).message


def test_a_newer_format_in_the_config_is_refused_everywhere(converted: Path, tmp_path: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    config["surgery"]["format_version"] = 99
    (converted / "config.json").write_text(json.dumps(config))
    assert "99 is newer" in refused(converted, tmp_path).message
    with pytest.raises(CheckpointError, match="99 is newer"):
        read_anatomy(open_checkpoint(converted))


@pytest.mark.parametrize(
    "changes",
    [
        {"kept_files": ["../LICENSE"]},
        {"kept_files": ["/etc/hostname"]},
        {"shards": {"../x.safetensors": "source-model-00001-of-00002.safetensors"}},
        {"shards": {"x.safetensors": "../../x.safetensors"}},
        {"shards": None},
        {"kept_files": [3]},
        {"format_version": "one"},
    ],
)
def test_a_hostile_plan_writes_nothing(converted: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    change_plan(converted, rehash=True, **changes)
    assert refused(converted, tmp_path).exit_code in (2, 3)


def test_links_that_leave_the_folder_are_not_followed(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (converted / "LICENSE").unlink()
    (converted / "LICENSE").symlink_to(tmp_path / "secret")
    assert isinstance(refused(converted, tmp_path), CheckpointError)


def test_an_output_is_replaced_with_force_only(converted: Path, make_kind: MakeKind, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        revert(converted, output=tmp_path / "back")
    with pytest.raises(UsageError, match="mine"):
        revert(converted, output=tmp_path / "back", force=True)
    (tmp_path / "back" / "mine").unlink()
    revert(converted, output=tmp_path / "back")
    (tmp_path / "back" / "config.json").write_text("spoilt")
    revert(converted, output=tmp_path / "back", force=True)
    assert tree(tmp_path / "back") == tree(make_kind("adorned"))
    with pytest.raises(UsageError):
        revert(converted, output=converted, force=True)


@pytest.mark.parametrize("mode", ["copy", "hub"])
def test_bytes_are_compared_where_they_were_recorded(make_kind: MakeKind, mode: Any, tmp_path: Path) -> None:
    source = make_kind("sharded")
    if mode == "hub":
        source = _in_the_hub_cache(source, tmp_path / "models--org--name")
    out = convert(source, output=tmp_path / "out", mode="copy" if mode == "copy" else "link").output
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    result = revert(out, output=tmp_path / "back")
    assert sorted(result.compared) == shards and sorted(result.placed) == shards
    assert revert(out, output=tmp_path / "linked", mode="link").compared == ()
    shard = out / f"source-{shards[-1]}"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    shutil.rmtree(tmp_path / "back")
    error = refused(out, tmp_path)
    assert shard.name in error.message and "is not as converted" in error.message


def _in_the_hub_cache(source: Path, repository: Path) -> Path:
    """Large files lie in blobs that are named by their SHA-256."""
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in source.iterdir():
        blob = repository / "blobs" / (sha256_file(path) if path.suffix == ".safetensors" else "1" * 40 + path.name)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_what_is_not_read_when_converting_is_not_recorded(make_kind: MakeKind, tmp_path: Path) -> None:
    for mode in ("auto", "link"):
        out = convert(make_kind("single"), output=tmp_path / mode, mode=mode).output  # type: ignore[arg-type]
        assert not (out / SHARDS_NAME).exists()
    assert revert(tmp_path / "auto", output=tmp_path / "back").compared == ()


def test_hashes_that_cannot_be_read_are_an_error(make_kind: MakeKind, tmp_path: Path) -> None:
    out = convert(make_kind("single"), output=tmp_path / "out", mode="copy").output
    (out / SHARDS_NAME).write_text('{"sha256": 3}')
    assert SHARDS_NAME in refused(out, tmp_path).message


def test_the_command_says_that_bytes_were_not_compared(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.run(app, ["revert", str(converted), "-o", str(tmp_path / "back"), "-q"]) == 0
    printed = capsys.readouterr().out
    assert "not compared" in printed and "surgery verify" in printed and "convert --copy" in printed
    assert console.run(app, ["revert", str(converted), "-o", str(tmp_path / "linked"), "--link"]) == 0
    printed = capsys.readouterr().out
    assert "linked files are not read" in printed and printed.endswith(f"Next: surgery inspect {tmp_path / 'linked'}\n")
