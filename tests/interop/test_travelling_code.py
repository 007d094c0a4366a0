"""Each set of operations with its own files, in a process that cannot import this package, offline."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import load_json
from surgery.conversion import convert
from surgery.operations.code import travelling_code
from tests.interop.conftest import load, logits, tokens
from tests.single_file import with_single_file

SSMAX = {"name": "ssmax", "form": "paper"}
GATED = {"name": "screening", "open": True, "start": {"threshold": 0.1}, "full_window": 64}
UNIT = {"name": "screening", "open": True, "form": "unit", "renormalisation": 0.5, "full_window": 64}
ROPE = {"name": "rope", "type": "yarn", "factor": 2}
SETS: dict[str, list[dict[str, Any]]] = {
    "ssmax": [SSMAX],
    "screening gated": [GATED],
    "screening unit": [UNIT],
    "ssmax and screening": [SSMAX, GATED],
    "ssmax and a unit in other layers": [{**SSMAX, "layers": "0"}, {**UNIT, "layers": "1,2"}],
    "ssmax and rope": [SSMAX, ROPE],
    "screening and rope": [GATED, ROPE],
    "all three": [ROPE, GATED, SSMAX],
}
# For every folder: what loads from it, and what loads from what that model saved.
STRANGER = """
import importlib.abc, json, pathlib, pickle, socket, sys, traceback
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "surgery":
            raise ImportError("surgery is not installed here")
sys.meta_path.insert(0, Blocked())
def no_network(*_, **__): raise OSError("no network here")
socket.socket.connect = no_network
import torch, transformers
transformers.logging.set_verbosity_error()
ids, found = torch.tensor(json.loads(sys.argv[2])), {}
def load(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    return model
def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits
for folder in map(pathlib.Path, json.loads(sys.argv[1])):
    try:
        model = load(folder)
        first, saved = logits(model), pathlib.Path(sys.argv[3]) / f"{folder.name} saved"
        model.save_pretrained(saved)
        assert torch.equal(logits(load(saved)), first), "saved and loaded again"
        assert torch.equal(logits(pickle.loads(pickle.dumps(model))), first), "pickled"
        torch.save(first, pathlib.Path(sys.argv[3]) / f"{folder.name}.pt")
        text = model.generate(ids[:, :8], max_new_tokens=4, do_sample=False)[0].tolist()
        model.config.windowed_cache = True
        try:
            windowed = model.generate(ids[:, :8], max_new_tokens=4, do_sample=False)[0].tolist()
        except ValueError as error:
            windowed = str(error)
        found[folder.name] = {"text": text, "windowed": windowed}
    except Exception:
        found[folder.name] = {"error": traceback.format_exc()}
print(json.dumps(found))
"""


def code_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


@pytest.fixture(scope="module")
def folders(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sets")
    made = {name: convert(make_source("llama"), sets, output=place / name).output for name, sets in SETS.items()}
    for number, name in enumerate(("ssmax", "ssmax and screening")):
        again = convert(make_source("llama"), SETS[name], output=place / f"single file {number}").output
        made[again.name] = with_single_file(again)
    return made


@pytest.mark.parametrize(
    "names",
    [("ssmax", "all three", "single file 0"), pytest.param(None, marks=pytest.mark.slow)],
    ids=["a few sets", "every set"],
)
def test_a_stranger_loads_generates_saves_and_pickles(
    folders: dict[str, Path], tmp_path: Path, names: tuple[str, ...] | None
) -> None:
    folders = {name: folders[name] for name in names or folders}
    command = [sys.executable, "-I", "-c", STRANGER, json.dumps([str(folder) for folder in folders.values()])]
    done = subprocess.run(
        [*command, json.dumps(tokens().tolist()), str(tmp_path)],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, folder in folders.items():
        assert "error" not in found[name], found[name]["error"]
        model = load(folder)
        assert torch.equal(torch.load(tmp_path / f"{name}.pt", weights_only=True), logits(model)), name
        text = model.generate(tokens()[:, :8], max_new_tokens=4, do_sample=False)[0].tolist()
        assert found[name]["text"] == text, name
        screened = any(options["name"] == "screening" for options in model.config.surgery["operations"])
        assert found[name]["windowed"] == text if screened else "windowed_cache needs" in found[name]["windowed"]
        assert code_in(tmp_path / f"{name} saved") == code_in(folder), name


def test_a_checkpoint_carries_what_its_operations_need_and_nothing_else(folders: dict[str, Path]) -> None:
    core = set(code_in(folders["ssmax and rope"])) - {"surgery_ssmax_multiplier.py"}
    for name, given in SETS.items():
        plan, code = load_json(folders[name] / "surgery" / "plan.json"), code_in(folders[name])
        assert set(code) == set(plan["code"])
        operations = {file.split("_")[1] for file in set(code) - core}
        assert operations == {options["name"] for options in given} - {"rope"}, name
    assert sum(content.count(b"\n") for content in code_in(folders["ssmax"]).values()) < 950
    assert all(content.count(b"\n") < 500 for content in code_in(folders["all three"]).values())


def test_the_card_lists_every_file_with_its_lines_and_hash(folders: dict[str, Path]) -> None:
    import hashlib

    for folder in folders.values():
        if folder.name.startswith("single"):
            continue
        card = (folder / "README.md").read_text()
        for name, content in code_in(folder).items():
            lines, value = content.count(b"\n"), hashlib.sha256(content).hexdigest()
            assert f"| `{name}` | {lines} | `{value}` |" in card


def test_a_model_of_the_installed_package_saves_the_same_files(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in SETS:
        load(folders[name]).save_pretrained(tmp_path / name)
        assert code_in(tmp_path / name) == code_in(folders[name])
        load(folders[name]).config.save_pretrained(tmp_path / f"{name} config")
        assert code_in(tmp_path / f"{name} config") == code_in(folders[name])


def test_travelling_code_imports_torch_transformers_and_its_own_files_alone() -> None:
    code = travelling_code(["ssmax", "screening", "rope"])
    for name, content in code.items():
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Import):
                found = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found = {str(node.module).partition(".")[0]}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and f"{node.module}.py" in code, (name, node.module)
                continue
            else:
                continue
            assert found <= {"torch", "transformers"} | sys.stdlib_module_names, (name, found)
        assert b"surgery." not in content.replace(b"config.surgery", b"").replace(b"surgery.locks", b""), name
