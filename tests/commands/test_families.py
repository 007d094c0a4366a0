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


def test_what_is_known_is_shown_before_the_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "llama", "gemma2", "minimax", "nowhere")
    assert code == 3 and "2 families" in out and "gemma2" in out and "refused" not in out
    assert REFUSED["minimax"] in err and "'nowhere' is not supported" in err and "gemma2" not in err
    code, out, _ = run(capsys, "llama", "minimax", "--json")
    document = json.loads(out)
    assert code == 3 and [entry["model_type"] for entry in document["families"]] == ["llama"]
    code, out, err = run(capsys, "llama", "minimax", "--markdown")
    assert code == 3 and "| llama |" in out and REFUSED["minimax"] in err
    code, out, _ = run(capsys, "minimax", "--json")
    assert code == 3 and json.loads(out)["kind"] == "error"


@pytest.mark.parametrize(
    ("given", "model_type"),
    [
        ("LLAMA", "llama"),
        ("LlamaForCausalLM", "llama"),
        ("llamaforcausallm", "llama"),
        ("LlamaConfig", "llama"),
        ("GPT2LMHeadModel", "gpt2"),
        ("Gemma3ForCausalLM", "gemma3_text"),
        ("ModernBertDecoder", "modernbert-decoder"),
    ],
)
def test_other_spellings_of_a_name(capsys: pytest.CaptureFixture[str], given: str, model_type: str) -> None:
    code, out, _ = run(capsys, given, "--json")
    assert code == 0 and [entry["model_type"] for entry in json.loads(out)["families"]] == [model_type]


def test_a_class_of_a_refused_family_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "DeepseekV3ForCausalLM")
    assert code == 3 and REFUSED["deepseek_v3"] in err


def test_a_page_of_one_family_has_no_empty_parts(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "llama", "--markdown")
    assert code == 0 and "\n1 family, verified" in out and "## Refused" not in out and "## What to know" not in out


def test_presentations_are_quoted_since_a_name_may_hold_a_comma(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "llama4_text")
    assert "of the input: 'left-padded', 'left-padded, no position_ids', " in out


def test_no_other_page_counts_the_families_otherwise() -> None:
    """A number that is written down stays behind; docs/reference/families.md is generated."""
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        counts = re.findall(r"all (\d\d)\b|\b(\d\d) families|^(\d\d), from llama", text, re.MULTILINE)
        found = {number for match in counts for number in match if number}
        # The table of results is of the families that there were when it was measured.
        assert found - ({"12"} if page.parent.name == "results" or page == ROOT / "README.md" else set()) <= {
            str(len(FAMILIES))
        }, page


def test_the_page_in_docs_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--markdown")
    assert code == 0
    assert out == (ROOT / "docs" / "reference" / "families.md").read_text(encoding="utf-8"), "run: make reference"


def test_what_is_claimed_was_run_with_the_newest_and_the_oldest() -> None:
    """`make families` runs both; a family that an older transformers lacks says since when."""
    pinned = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    oldest = re.search(r'"transformers>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pinned is not None and oldest is not None
    assert VERIFIED_WITH[-1] == pinned[1].strip() and f"{VERIFIED_WITH[0]}.0".startswith(f"{oldest[1]}.")
    for name, row in FAMILIES.items():
        able = [version for version in VERIFIED_WITH if version not in row.fails]
        assert VERIFIED[name] == tuple(able if row.since is None else able[1:]), name
