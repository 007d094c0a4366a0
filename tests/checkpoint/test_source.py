"""Finding a model: folders, hub ids, and each way the hub can fail. No network is used."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from surgery.checkpoint import open_checkpoint, resolve
from surgery.errors import CheckpointError, SurgeryError, UsageError

from .builders import COMMIT, hub_snapshot, single


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and the client cut off from the network."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = single(tmp_path / "org" / "model")
    for given in (folder, str(folder)):
        source = resolve(given)
        assert (source.folder, source.name, source.commit, source.hub_id) == (folder, "model", None, None)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model").name == "model", "a folder comes before a hub id of the same spelling"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org/model").folder == folder
    monkeypatch.chdir(folder)
    assert resolve(".").name == "model"
    (tmp_path / "alias").symlink_to(folder)
    assert resolve(tmp_path / "alias").name == "alias", "the name that was given"
    assert resolve("../model").name == "model"
    assert resolve(tmp_path / "alias" / "..").name == "org", "the folder above the link's target"


def test_snapshot_folder_knows_its_id_and_commit(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path, "org/a-name")
    source = resolve(snapshot)
    assert (source.name, source.hub_id, source.commit) == ("org/a-name", "org/a-name", COMMIT)
    assert resolve(hub_snapshot(tmp_path / "2", "gpt2")).hub_id == "gpt2"


@pytest.mark.parametrize(
    "given", ["./gone", "../gone", "/gone/model", "~/gone-model", "a/b/c", "~nobody-here/x", "C:\\x", "~\0"]
)
def test_path_like_but_missing(given: str) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        resolve(given)


@pytest.mark.parametrize(
    "given", ["", " ", "a b", "org/", "-x", "a..b", "a--b", "org/x.git", "a\0b", "é", "x" * 300, "a:b"]
)
def test_neither_folder_nor_id(given: str, hub: Path) -> None:
    with pytest.raises(UsageError, match="neither an existing folder nor a hub id"):
        resolve(given)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(CheckpointError, match="not a folder"):
        resolve(tmp_path / "model.safetensors")


def test_revision_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder has no revision 'main'"):
        resolve(single(tmp_path / "m"), "main")


@pytest.fixture
def no_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *(("smoll", "smol"), ("Smol", "smol"), ("smol-ssmx", "smol-ssmax"), ("adaptr", "adapter"), ("./smoll", "smol")),
        *(("smoll/", "smol"), ("sub/../smoll/", "sub/../smol"), ("{here}/smoll", "{here}/smol")),
    ],
)
def test_a_mistyped_folder_is_not_asked_of_the_hub(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_requests: None
) -> None:
    for name in ("smol", "smol-ssmax", "sub"):
        single(tmp_path / name)
    (single(tmp_path / "adapter") / "config.json").rename(tmp_path / "adapter" / "adapter_config.json")
    (tmp_path / "smoll.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SurgeryError) as error:
        resolve(given.format(here=tmp_path))
    assert f"Did you mean '{meant.format(here=tmp_path)}'?" in str(error.value)


def test_names_that_are_asked_of_the_hub(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no model folder resembles, one with a slash, and one with a revision."""
    single(tmp_path / "smol-ssmax")
    (tmp_path / "smoll").mkdir()  # no model
    single(tmp_path / "org" / "model-4B")
    monkeypatch.chdir(tmp_path)
    for given, revision in (("smol", None), ("gpt2", None), ("org/model-8B", None), ("smol-ssmx", "main")):
        with pytest.raises(CheckpointError, match="the hub cannot be reached"):
            resolve(given, revision)
    with pytest.raises(CheckpointError, match="Did you mean 'org/model-4B'"):
        resolve("org/model-8B")
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        resolve("smol-ssmax", is_hub_id=True)


@pytest.mark.parametrize("revision", ["", "../../../../etc/passwd", "/x", "a b", "-x", "a\0", "x" * 300])
def test_malformed_revision(revision: str, hub: Path) -> None:
    with pytest.raises(UsageError, match="is not a valid revision"):
        resolve("org/name", revision)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
@pytest.mark.parametrize("local_only", [True, False])
def test_hub_id_from_the_cache(hub: Path, revision: str | None, local_only: bool) -> None:
    """The real client, offline: a model in the cache is found, with its commit."""
    snapshot = hub_snapshot(hub)
    source = resolve("org/name", revision, local_only=local_only)
    assert source.folder.resolve() == snapshot.resolve()
    assert (source.name, source.hub_id, source.commit) == ("org/name", "org/name", COMMIT)
    model = open_checkpoint(source)
    assert model.commit == COMMIT and model.total_parameters == 7


@pytest.mark.parametrize("local_only", [True, False])
def test_offline_and_not_in_the_cache(hub: Path, local_only: bool) -> None:
    with pytest.raises(CheckpointError, match="the cache does not hold all files of it at revision 'v2'") as error:
        resolve("org/name", "v2", local_only=local_only)
    assert "HF_HUB_OFFLINE" in str(error.value) and "hf download org/name" in str(error.value)


def _http(kind: type[Exception]) -> Exception:
    return kind("the server said no", response=SimpleNamespace(headers={}, request=None, status_code=403))  # type: ignore[call-arg]


FAILURES: list[tuple[Any, type[SurgeryError], str]] = [
    (errors.GatedRepoError, CheckpointError, "https://huggingface.co/org/name"),
    (errors.RepositoryNotFoundError, CheckpointError, "no such model, or it is private"),
    (errors.RevisionNotFoundError, UsageError, "has no revision 'v2'"),
    (errors.HfHubHTTPError, CheckpointError, "the server said no"),
    (errors.HFValidationError("bad"), UsageError, "not a valid hub id"),
    (errors.LocalEntryNotFoundError("x"), CheckpointError, "cannot be reached"),
    (errors.OfflineModeIsEnabled("x"), CheckpointError, "cannot be reached"),
    (ConnectionError("no route"), CheckpointError, "no route"),
    (OSError(28, "No space left on device"), CheckpointError, "No space left"),
    (RuntimeError(""), CheckpointError, "RuntimeError: no further detail"),
]


@pytest.mark.parametrize(("failure", "kind", "message"), FAILURES, ids=lambda value: getattr(value, "__name__", None))
def test_each_hub_failure(
    failure: Any, kind: type[SurgeryError], message: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise _http(failure) if isinstance(failure, type) else failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(kind, match=message) as error:
        resolve("org/name", "v2")
    assert type(error.value) is kind and error.value.exit_code == 2


def test_what_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in safetensors and the small files, no code, no pickles, not the same weights twice."""
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}
    snapshot = hub_snapshot(tmp_path)

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/name", "v2", local_only=True).commit == COMMIT
    assert (asked["repo_id"], asked["revision"], asked["local_files_only"]) == ("org/name", "v2", True)
    assert "token" not in asked, "HF_TOKEN is the client's own business"
    wanted = ["model-1.safetensors", "config.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "README.md"]
    wanted += ["LICENSE", "LICENSE.txt", "USE_POLICY.md", ".gitattributes", "qwen.tiktoken"]
    unwanted = ["modeling_x.py", "pytorch_model.bin", "x.pt", "x.gguf", "original/params.json", "onnx/config.json"]
    unwanted += ["consolidated.safetensors", "tf_model.h5", "training_args.bin", "optimizer.pkl"]
    kept = filter_repo_objects(
        [*wanted, *unwanted], allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == wanted


def test_a_folder_needs_no_hub_client_and_no_torch(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    code = (
        "import sys; from surgery.checkpoint import open_checkpoint, resolve; "
        f"open_checkpoint(resolve({str(folder)!r})); "
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'numpy', 'safetensors') "
        "if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"
