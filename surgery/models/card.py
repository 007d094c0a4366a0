"""The card of a new model: what it is, and how to train and load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from surgery.markdown import escape_markdown

if TYPE_CHECKING:
    from surgery.models.creation import NewPlan

_TEXT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- model-surgery
---

# {title}

A model with random weights ({architecture}, {parameters:,} parameters), made by `surgery new`.

| | |
|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM{tokenizer}

model = AutoModelForCausalLM.from_pretrained("PATH_OR_ID")
```

`surgery/new.json` has every option. The same options and seed give the same weights.
"""


def write_new_card(path: Path, plan: NewPlan, *, has_tokenizer: bool) -> None:
    """Write README.md of a new model."""
    rows = {"vocabulary": plan.vocabulary, **plan.sizes}
    text = _TEXT.format(
        title=f"A new {plan.architecture} model",
        architecture=plan.architecture,
        parameters=plan.parameters,
        rows="\n".join(f"| {name} | {escape_markdown(value)} |" for name, value in rows.items()),
        tokenizer=", AutoTokenizer" if has_tokenizer else "",
    )
    path.write_text(text, encoding="utf-8")
