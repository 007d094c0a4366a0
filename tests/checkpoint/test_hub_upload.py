"""Uploads to the hub, and downloads by branch, tag and commit, against a small stand-in for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from surgery.checkpoint import hub_client, resolve
from surgery.checkpoint.hub_upload import check_push, plan_push, push
from surgery.conversion import convert
from surgery.errors import CheckpointError, UsageError
from tests.anatomy.builders import bare_source
from tests.checkpoint.builders import listing
from tests.hub import Hub

NAME = "me/tiny-ssmax"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return convert(bare_source(tmp_path / "tiny"), output=tmp_path / "out").output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_repository_is_private_and_holds_the_output_in_one_commit(hub: Hub, output: Path) -> None:
    before = listing(output)
    result = push(output, NAME)
    repository = hub.repositories[NAME]
    assert result.private and repository.private and len(repository.commits) == 2
    commit, files = repository.commits[-1]
    assert {name: content for name, content in files.items() if name != ".gitattributes"} == contents(output)
    assert result.commit == commit and result.url == f"{hub.url}/{NAME}"
    assert listing(output) == before, "nothing is left in the folder"


def test_a_planned_upload_lists_what_is_sent_and_sends_nothing(hub: Hub, output: Path) -> None:
    (output / ".hidden").write_text("")
    plan = plan_push(output, NAME)
    assert NAME not in hub.repositories and not plan.exists and plan.private
    push(output, NAME)
    files = hub.repositories[NAME].commits[-1][1]
    sent = {name: len(content) for name, content in files.items() if name != ".gitattributes"}
    assert plan.files == sent
    with pytest.raises(UsageError, match="an earlier output of surgery"):
        plan_push(output, NAME)
    assert plan_push(output, NAME, force=True).exists


def test_public_and_in_an_organization(hub: Hub, output: Path) -> None:
    assert not push(output, "team/tiny", private=False).private
    assert not hub.repositories["team/tiny"].private


def test_what_is_there_is_replaced_with_force_only_and_only_our_own(hub: Hub, output: Path, tmp_path: Path) -> None:
    push(output, NAME)
    with pytest.raises(UsageError, match="an earlier output of surgery") as error:
        push(output, NAME)
    assert "--force" in str(error.value.hint)
    other = convert(bare_source(tmp_path / "other", "qwen2"), output=tmp_path / "out2").output
    push(other, NAME, force=True)
    files = hub.repositories[NAME].commits[-1][1]
    assert (
        set(files) == {*contents(other), ".gitattributes"} and files["config.json"] != contents(output)["config.json"]
    )
    hub.repositories[NAME].commit({"thesis.txt": b"x"})
    with pytest.raises(UsageError, match=r"holds 'thesis.txt', which surgery did not write"):
        push(output, NAME, force=True)


def test_an_interrupted_upload_is_repeated_without_what_has_arrived(hub: Hub, output: Path) -> None:
    hub.refuse_uploads_after = 1
    with pytest.raises(CheckpointError, match="could not be uploaded") as error:
        push(output, NAME)
    assert "Run the same command again" in str(error.value.hint)
    assert len(hub.uploads) == 1 and set(hub.repositories[NAME].commits[-1][1]) == {".gitattributes"}, "all or nothing"
    hub.refuse_uploads_after = None
    push(output, NAME)
    assert len(hub.uploads) == len(set(hub.uploads)) == 2, "source's shard and new tensors, each sent once"


@pytest.mark.parametrize(
    ("token", "repository", "message"),
    [
        (None, NAME, "there is no token"),
        ("wrong", NAME, "rejects the token"),
        ("reader", NAME, "no write access to me/tiny-ssmax"),
        ("mine", "you/tiny", "account 'me' cannot write to 'you'"),
        ("mine", "tiny", "is not a hub id"),
        ("mine", "../x", "is not a hub id"),
    ],
)
def test_what_the_hub_refuses(
    hub: Hub, output: Path, token: str | None, repository: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises((CheckpointError, UsageError), match=message) as error:
        push(output, repository)
    assert error.value.hint and not hub.repositories


def test_no_hub_at_all(hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
        check_push(NAME)


def test_only_outputs_with_a_card_are_pushed(hub: Hub, output: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was not written by surgery"):
        push(tmp_path / "tiny", NAME)
    (output / "README.md").unlink()
    with pytest.raises(CheckpointError, match="no card"):
        push(output, NAME)
    assert not hub.repositories


def test_branches_tags_and_commits_are_fetched(hub: Hub, output: Path) -> None:
    push(output, NAME)
    repository = hub.repositories[NAME]
    first, files = repository.commits[-1]
    repository.tags["v1"] = first
    repository.commit({**files, "config.json": b"{}"})
    for revision, commit in ((None, repository.commits[-1][0]), ("main", repository.commits[-1][0]), ("v1", first)):
        source = resolve(NAME, revision)
        assert (source.commit, source.hub_id, source.name) == (commit, NAME, NAME)
    whole = {**contents(output), ".gitattributes": files[".gitattributes"]}
    fetched = contents(resolve(NAME, first).folder)
    assert fetched == {name: content for name, content in whole.items() if not name.endswith(".py")}
    with pytest.raises(UsageError, match="no revision 'v2'"):
        resolve(NAME, "v2")
    with pytest.raises(CheckpointError, match="no such model"):
        resolve("me/nothing")


@pytest.mark.slow
def test_the_commands(hub: Hub, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "mine",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }

    def surgery(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "surgery", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    source, out = bare_source(tmp_path / "tiny"), str(tmp_path / "out")
    done = surgery("convert", "--to", "ssmax", str(source), "-o", out, "--push", NAME)
    assert done.returncode == 0 and f"pushed to {hub.url}/{NAME} (private)" in done.stdout, done.stderr
    again = surgery("convert", "--to", "ssmax", str(source), "-o", f"{out}2", "--push", NAME)
    assert again.returncode == 2 and "earlier output" in again.stderr and not Path(f"{out}2").exists(), "asked first"
    said = json.loads(surgery("push", out, "team/other", "--public", "--json").stdout)
    assert (said["kind"], said["repository"], said["private"]) == ("push", "team/other", False)


def test_a_hub_that_accepts_and_never_answers_is_not_waited_for_long(
    hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "LONGEST_SILENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        began = time.monotonic()
        with pytest.raises(CheckpointError, match="write access to me could not be checked: ReadTimeout"):
            push(output, NAME)
        with pytest.raises(CheckpointError, match="the hub cannot be reached"):
            resolve(NAME)
        assert time.monotonic() - began < 20
