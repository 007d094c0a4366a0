"""Checkpoints as they were when one file of 2,082 lines travelled in each of them, whatever its operations."""

from __future__ import annotations

import gzip
from pathlib import Path

from surgery.checkpoint import dump_json, load_json, sha256_json
from surgery.checkpoint.record import PLAN_NAME
from surgery.conversion.records import refresh_card

CODE = gzip.decompress((Path(__file__).parent / "conversion" / "single_file.py.gz").read_bytes())


def with_single_file(folder: Path) -> Path:
    """Turn a converted checkpoint into one of that time: its code, and a plan that does not speak of code."""
    plan, config = load_json(folder / PLAN_NAME), load_json(folder / "config.json")
    for name in plan.pop("code"):
        (folder / name).unlink()
    (folder / "modeling_surgery.py").write_bytes(CODE)
    content = {name: value for name, value in plan.items() if name != "hash"}
    config["surgery"]["plan_hash"] = sha256_json(content)
    (folder / PLAN_NAME).write_text(dump_json({**content, "hash": sha256_json(content)}))
    (folder / "config.json").write_text(dump_json(config))
    refresh_card(folder)
    return folder
