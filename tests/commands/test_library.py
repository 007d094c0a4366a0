"""The package exports the function of each command, and imports it at the first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import surgery


def test_every_name_is_found_and_none_is_loaded_before() -> None:
    assert set(surgery.__all__) == {*surgery._HOMES, "__version__", "register"}
    for name in surgery.__all__:
        assert getattr(surgery, name) is not None
    assert dir(surgery) == sorted(surgery.__all__), "public names alone"
    with pytest.raises(AttributeError, match="murge"):
        _ = surgery.murge
    program = "import sys, surgery; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
