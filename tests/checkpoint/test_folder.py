"""Opening a model folder: whole ones, and each kind of broken one by name."""

import importlib.util
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.checkpoint import open_checkpoint, resolve, write_safetensors
from surgery.errors import CheckpointError

from .builders import COMMIT, f32, hub_snapshot, listing, reindex, sharded, single

SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def refused(folder: Path, message: str) -> str:
    before = listing(folder) if folder.is_dir() else None
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(folder)
    assert error.value.exit_code == 2
    assert before is None or listing(folder) == before
    return str(error.value)


def test_single_file(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / "sub").mkdir()
    (folder / "sub" / "x.txt").write_text("x")
    (folder / ".gitattributes").write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    (folder / "sub" / ".cache").mkdir()
    model = open_checkpoint(folder)
    assert model.config["model_type"] == "llama" and model.index is None and model.commit is None
    assert model.shards == ("model.safetensors",)
    assert list(model.tensors) == ["a", "b"]
    assert model.other_files == (".gitattributes", "sub/x.txt", "tokenizer.json")
    assert model.skipped == (".git", "sub/.cache")
    assert (model.total_parameters, model.total_bytes) == (7, 28)
    assert model.metadata == {"model.safetensors": {"format": "pt"}}
    assert model.disk_bytes == sum((folder / name).stat().st_size for name in model.file_sizes)


def test_sharded(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    write_safetensors(folder / "consolidated.safetensors", {"x": f32(1)})
    model = open_checkpoint(folder)
    assert model.shards == (SHARD_1, SHARD_2)
    assert {name: info.shard for name, info in model.tensors.items()} == {"a": SHARD_1, "b": SHARD_2, "c": SHARD_2}
    # The same weights for another program: carried along, not part of the model.
    assert model.other_files == ("consolidated.safetensors",)


def test_shards_in_a_subfolder(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "sub").mkdir()
    (folder / SHARD_1).rename(folder / "sub" / SHARD_1)
    reindex(folder, a=f"sub/{SHARD_1}")
    assert open_checkpoint(folder).tensors["a"].shard == f"sub/{SHARD_1}"


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "there is no folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is not a folder")


def test_no_config(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / "config.json").unlink()
    refused(folder, "m has no config.json")


def test_a_folder_that_is_no_model_is_not_walked(tmp_path: Path) -> None:
    """The first error of any other folder is that it is no model."""
    folder = tmp_path / "work"
    single(folder / "smol")
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "inside").symlink_to("smol")
    (folder / "nothing").symlink_to("gone")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    (folder / "deep").joinpath(*["d"] * 40).mkdir(parents=True)
    message = refused(folder, "work has no config.json")
    assert "'inside', 'smol'" in message and "link" not in message
    # A folder of another program, with a config.json of its own.
    (folder / "config.json").write_text("{}")
    assert "link" not in refused(folder, "no weights")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, "work has no config.json")


def test_a_hidden_link_to_a_folder_is_skipped(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / ".venv").symlink_to(tmp_path)
    assert open_checkpoint(folder).skipped == (".venv",)


def test_adapter(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "surgery merge " in refused(folder, "adapter")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("pytorch_model.bin", "save_pretrained('m x-safetensors')"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained('m x-safetensors')"),
        ("model-q4.GGUF", "gguf_file='model-q4.GGUF'"),
        ("consolidated.00.pth", "weights_only=True"),
        ("model.pt", "weights_only=True"),
        ("weights.bin", "save_pretrained"),
    ],
)
def test_other_formats_get_the_command_that_converts_them(name: str, line: str, tmp_path: Path) -> None:
    folder = single(tmp_path / "m x")
    (folder / "model.safetensors").rename(folder / name)
    message = refused(folder, name)
    command = shlex.split(message.splitlines()[-1])
    assert command[:2] == ["python", "-c"] and line in command[2]
    compile(command[2], "hint", "exec")  # what is offered for pasting is at least Python
    assert "'\"'" not in message  # a quoted quote is right for the shell, and nothing that a person can read


def test_the_pt_command_makes_a_folder_that_opens(tmp_path: Path) -> None:
    """The hint is run as printed, on a folder whose name has a space and a quote."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    folder = single(tmp_path / "it's m")
    (folder / "model.safetensors").unlink()
    (folder / "model.pt").touch()
    command = shlex.split(refused(folder, "pickled").splitlines()[-1])
    save = f"import torch; torch.save({{'a': torch.zeros(2, 2)}}, {str(folder / 'model.pt')!r}); "
    subprocess.run([sys.executable, "-c", save + command[2]], check=True, timeout=120)
    assert open_checkpoint(folder).total_parameters == 4


def test_gguf_without_config(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "q.gguf").write_bytes(b"GGUF")
    refused(folder, "only GGUF")


def test_no_weights(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights")


def test_shards_without_index(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / INDEX).unlink()
    refused(folder, "neither model.safetensors nor")


@pytest.mark.parametrize(
    "shard",
    [
        "../m2/x.safetensors",
        "/etc/x.safetensors",
        "..\\x.safetensors",
        "C:/x.safetensors",
        "a\0.safetensors",
        "",
        3,
        None,
    ],
)
def test_index_entry_that_leaves_the_folder(shard: object, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    single(tmp_path / "m2")
    reindex(folder)
    text = (folder / INDEX).read_text().replace('"b": "model-00002-of-00002.safetensors"', f'"b": {_json(shard)}')
    (folder / INDEX).write_text(text)
    assert INDEX in refused(folder, "the file name|must be text")


def _json(value: object) -> str:
    import json

    return json.dumps(value)


def test_index_naming_something_else(tmp_path: Path) -> None:
    refused(reindex(sharded(tmp_path / "m"), b="config.json"), "not a safetensors file")


def test_index_without_map(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    for content in ("{}", '{"weight_map": {}}', '{"weight_map": []}'):
        (folder / INDEX).write_text(content)
        refused(folder, "no weight_map")


def test_missing_shard(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / SHARD_2).unlink()
    refused(folder, f"names '{SHARD_2}', missing")


def test_index_lists_a_tensor_no_shard_holds(tmp_path: Path) -> None:
    refused(reindex(sharded(tmp_path / "m"), ghost=SHARD_1), "lists 'ghost', which no shard holds")


def test_shard_holds_a_tensor_the_index_does_not_list(tmp_path: Path) -> None:
    refused(reindex(sharded(tmp_path / "m"), c=None), "hold 'c', which .* does not list")


def test_index_puts_a_tensor_in_the_wrong_shard(tmp_path: Path) -> None:
    refused(reindex(sharded(tmp_path / "m"), b=SHARD_1), f"puts tensor 'b' in '{SHARD_1}', but it is in {SHARD_2}")


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / SHARD_1).unlink()
    write_safetensors(folder / SHARD_1, {"a": f32(1), "b": f32(1)})
    refused(folder, "'b' is in two shards")


def test_single_file_beside_an_index_of_others(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    write_safetensors(folder / "model.safetensors", {"a": f32(1)})
    refused(folder, "programs disagree")


def test_single_file_with_its_index(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / INDEX).write_text('{"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}')
    model = open_checkpoint(folder)
    assert model.index is not None and model.other_files == ("tokenizer.json",)


def test_no_tensors(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"\2" + b"\0" * 7 + b"{}")
    refused(folder, "holds no tensors")


@pytest.mark.parametrize("content", ["[]", '{"a": NaN}', '{"a": 1, "a": 1}', "{"])
def test_broken_config(content: str, tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / "config.json").write_text(content)
    refused(folder, r"config\.json")


def test_symlinks(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (tmp_path / "secret").write_text("x")
    link = folder / "link.txt"
    link.symlink_to("tokenizer.json")
    assert "link.txt" in open_checkpoint(folder).other_files
    for target, message in [
        ("../secret", "leaves the model folder"),
        (tmp_path / "secret", "leaves the model folder"),
        ("/etc/passwd", "leaves the model folder"),
        ("../gone", "leaves the model folder"),
        ("gone", "does not exist"),
        ("link.txt", "link.txt|cannot be read"),
        (".", "link to a folder"),
        ("../../blobs/secret", "leaves the model folder"),
    ]:
        link.unlink()
        link.symlink_to(target)
        refused(folder, message)


def test_symlinked_shard_leaving(tmp_path: Path) -> None:
    folder, other = single(tmp_path / "m"), single(tmp_path / "other")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(other / "model.safetensors")
    refused(folder, "'model.safetensors' is a link that leaves")


def test_special_files(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    os.mkfifo(folder / "pipe")
    refused(folder, "'pipe' is a special file")
    (folder / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as endpoint:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path must be short
        try:
            endpoint.bind("sock")
        finally:
            os.chdir(here)
        refused(folder, "'sock' is a special file")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    try:
        (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    except OSError:
        pytest.skip("the file system takes only UTF-8 names")
    refused(folder, "not valid UTF-8")


def test_deep_folders(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    folder.joinpath(*["d"] * 40).mkdir(parents=True)
    refused(folder, "deeper than 32")


def test_hub_snapshot(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path)
    for model in (open_checkpoint(snapshot), open_checkpoint(resolve(snapshot))):
        assert model.commit == COMMIT and model.total_parameters == 7


def test_hub_snapshot_linking_elsewhere(tmp_path: Path) -> None:
    """The exception is for the repository's own blobs, not for any folder called blobs."""
    snapshot = hub_snapshot(tmp_path)
    blobs = snapshot.parents[1] / "blobs"
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b").write_text("x")
    (snapshot.parents[1] / "refs" / "b").write_text("x")
    link = snapshot / "extra.txt"
    for target in ("../../../blobs/b", "../../refs/b", "../../blobs/../refs/b", "/etc/passwd"):
        link.symlink_to(target)
        refused(snapshot, "'extra.txt' is a link that leaves")
        link.unlink()
    (blobs / "evil").symlink_to(tmp_path / "blobs" / "b")
    link.symlink_to("../../blobs/evil")
    refused(snapshot, "leaves the model folder")
    link.unlink()
    # The whole of blobs being a link is the same escape one level up.
    blobs.rename(tmp_path / "moved")
    blobs.symlink_to(tmp_path / "moved")
    refused(snapshot, "leaves the model folder")
