"""Uploads of a zoo: each output once, after any interruption, and a row for each failed upload."""

from __future__ import annotations

import json
from typing import Any

import pytest

from surgery.checkpoint.hub_upload import check_owner, push
from surgery.errors import CheckpointError, UsageError
from surgery.reporting.zoo import headline, render_zoo_page
from surgery.zoo.ledger import Ledger, read_ledger
from surgery.zoo.run import run_zoo
from surgery.zoo.uploads import push_zoo
from surgery.zoo.zoo import Zoo
from tests.hub import Hub
from tests.zoo.conftest import MakeZoo


def rows(summary: dict[str, Any], key: str) -> dict[str, Any]:
    return {item["item"]: item[key] for item in summary["items"]}


def refused_by_the_hub(zoo: Zoo, **given: Any) -> dict[str, Any]:
    return {name: why for name, why in rows(push_zoo(zoo, "me", **given), "push_reason").items() if why}


def test_what_is_done_is_uploaded_once(make_zoo: MakeZoo, hub: Hub) -> None:
    zoo = make_zoo(["llama", "qwen2"], broken=["cut"])
    run_zoo(zoo)
    summary = push_zoo(zoo, "me")
    assert sorted(hub.repositories) == ["me/llama-ssmax", "me/qwen2-ssmax"]
    for name, repository in hub.repositories.items():
        commit, files = repository.commits[-1]
        assert repository.private and "README.md" in files and len(repository.commits) == 2
        item = name.removeprefix("me/")
        assert rows(summary, "pushed")[item] == commit and rows(summary, "repository")[item] == name
    assert rows(summary, "pushed")["broken-cut-ssmax"] is None and summary["pushed"] == 2
    assert "2 uploaded" in headline(summary) and "me/llama-ssmax @ " in render_zoo_page(summary)
    sent = list(hub.uploads)
    assert push_zoo(zoo, "me") == summary and hub.uploads == sent
    assert all(len(repository.commits) == 2 for repository in hub.repositories.values())
    push_zoo(zoo, "team", private=False)
    assert not hub.repositories["team/llama-ssmax"].private, "another owner is another upload"


def test_one_that_cannot_be_uploaded_costs_its_row(make_zoo: MakeZoo, hub: Hub) -> None:
    zoo = make_zoo(["llama", "qwen2"])
    run_zoo(zoo)
    push(zoo.items[0].output, "me/llama-ssmax")
    hub.repositories["me/llama-ssmax"].commit({"thesis.txt": b"x"})
    for force in (False, True):
        assert "thesis.txt" in refused_by_the_hub(zoo, force=force)["llama-ssmax"]
    assert hub.repositories["me/llama-ssmax"].commits[-1][1] == {"thesis.txt": b"x"}
    assert rows(zoo.summary(), "pushed")["qwen2-ssmax"] and zoo.summary()["not_pushed"] == 1
    assert "1 not uploaded" in headline(zoo.summary())


def test_an_upload_that_was_not_written_down_is_gone_on_with(make_zoo: MakeZoo, hub: Hub) -> None:
    zoo = make_zoo(["llama"])
    run_zoo(zoo)
    fingerprint = read_ledger(zoo.ledger).entries["llama-ssmax"].fingerprint
    push(zoo.items[0].output, "me/llama-ssmax")
    assert "an earlier output of surgery" in refused_by_the_hub(zoo)["llama-ssmax"]
    assert "an earlier output of surgery" in refused_by_the_hub(zoo)["llama-ssmax"], "once refused, always refused"
    with Ledger(zoo.ledger) as ledger:
        ledger.write("pushing", item="llama-ssmax", repository="me/llama-ssmax", fingerprint=fingerprint)
    assert "interrupted" in rows(zoo.summary(), "push_reason")["llama-ssmax"]
    assert not refused_by_the_hub(zoo) and zoo.summary()["pushed"] == 1


def test_what_was_made_anew_is_uploaded_anew_where_that_is_asked_for(make_zoo: MakeZoo, hub: Hub) -> None:
    run_zoo(make_zoo(["llama"]))
    push_zoo(make_zoo(["llama"]), "me")
    zoo = make_zoo(["llama"], operations=[{"name": "ssmax", "form": "bias"}])
    run_zoo(zoo, force=True)
    assert rows(zoo.summary(), "pushed") == {"llama-ssmax": None}, "what is there is of the one before"
    assert "--force" in refused_by_the_hub(zoo)["llama-ssmax"]
    assert not refused_by_the_hub(zoo, force=True)
    config = json.loads(hub.repositories["me/llama-ssmax"].commits[-1][1]["config.json"])
    assert config["surgery"]["operations"][0]["form"] == "bias"


@pytest.mark.parametrize(
    ("owner", "token", "message"),
    [
        ("you", "mine", "cannot write to 'you'"),
        ("me/x", "mine", "not an account or organization"),
        ("me", "wrong", "rejects the token"),
    ],
)
def test_an_owner_is_checked_before_anything(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, owner: str, token: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises((CheckpointError, UsageError), match=message):
        check_owner(owner)
