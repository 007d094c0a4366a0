"""``surgery families`` and the page that it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from surgery.anatomy import FAMILIES, REFUSED
from surgery.anatomy.families import VERIFIED, VERIFIED_WITH
from surgery.commands import main

ROOT = Path(__file__).resolve().parents[2]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["families", *arguments])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_json_holds_every_family_and_every_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--json")
    document = json.loads(out)
    assert code == 0 and document["kind"] == "families"
    found = {entry["model_type"]: entry for entry in document["families"]}
    assert found.keys() == FAMILIES.keys() and document["refused"] == dict(REFUSED)
    assert found["llama"]["operations"] == {"ssmax": None, "screening": None, "rope": None}
    assert found["gpt2"]["operations"]["rope"] == "it has no rotary positions"
    assert "carry their state" in " ".join(found["lfm2"]["caveats"])
    assert found["llama"]["verified_with"] == list(VERIFIED_WITH)


def test_the_table_names_what_applies_and_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0 and "MLA" in out and f"{len(FAMILIES)} families" in out
    rotary = [line for line in out.splitlines() if line.endswith(": no rope: it has no rotary positions")]
    assert len(rotary) == 1 and "gpt2" in rotary[0], "said once for all families that share it"
    table = out.splitlines()[1 : len(FAMILIES) + 1]
    assert [line.split()[0] for line in table] == sorted(FAMILIES), "one line a family"
    code, out, _ = run(capsys, "gpt2", "llama")
    assert code == 0 and "refused" not in out and "2 families" in out
    assert "\n1 family, verified" in run(capsys, "llama")[1]


def test_a_name_that_is_refused_or_unknown_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "deepseek_v3")
    assert code == 3 and "latent attention" in err
    code, _, err = run(capsys, "lama")
    assert code == 3 and "'llama'" in err


def test_the_page_in_docs_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--markdown")
    assert code == 0
    assert out == (ROOT / "docs" / "families.md").read_text(encoding="utf-8"), (
        "run: surgery families --markdown > docs/families.md"
    )


def test_what_is_claimed_was_run_with_the_newest_and_the_oldest() -> None:
    """`make families` runs both; a family that an older transformers lacks says since when."""
    pinned = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    oldest = re.search(r'"transformers>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pinned is not None and oldest is not None
    assert VERIFIED_WITH[-1] == pinned[1].strip() and f"{VERIFIED_WITH[0]}.0".startswith(f"{oldest[1]}.")
    for name, row in FAMILIES.items():
        able = [version for version in VERIFIED_WITH if version not in row.fails]
        assert VERIFIED[name] == tuple(able if row.since is None else able[1:]), name
