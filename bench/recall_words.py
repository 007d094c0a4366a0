"""A task of lm-evaluation-harness in the manner of LAMBADA, made from held-out texts.

An example is a passage whose last word stands in it before; the task is to continue with that word. So it asks for
what a model reads from its context in ordinary text, without questions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from surgery.data import read_documents

TASK = "surgery_last_word"
# Characters of a passage.
LENGTH = 1200
# Fewest letters of the last word.
LETTERS = 5
_WORD = re.compile(rf"[A-Za-z_]{{{LETTERS},}}")
_TASK_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: loglikelihood
doc_to_text: text
doc_to_target: " {{{{word}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
"""


def write_task(folder: Path, texts: Sequence[str], count: int) -> str:
    """Write the definition of the task and its examples, once.

    Args:
        folder: for both files.
        texts: files and folders of UTF-8 text.
        count: examples; as many from each document, as far as it has some.

    Returns:
        The name of the task.
    """
    rows = folder / "last_word.jsonl"
    if not (folder / "last_word.yaml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        documents = [[*_examples(document.text)] for document in read_documents(texts)]
        draw = random.Random(0)
        for examples in documents:
            draw.shuffle(examples)
        turns = max(map(len, documents))
        found = [examples[turn] for turn in range(turns) for examples in documents if turn < len(examples)][:count]
        rows.write_text("".join(f"{json.dumps(example)}\n" for example in found), encoding="utf-8")
        (folder / "last_word.yaml").write_text(_TASK_YAML.format(task=TASK, rows=rows.resolve()), encoding="utf-8")
    return TASK


def _examples(text: str) -> Iterator[dict[str, str]]:
    """One example of every stretch of the text, as far as a word fits."""
    for start in range(0, len(text) - 2 * LENGTH, 2 * LENGTH):
        stretch = text[start : start + 2 * LENGTH]
        for match in _WORD.finditer(stretch, LENGTH):
            before, word = stretch[match.start() - LENGTH : match.start()], match.group()
            if before.endswith(" ") and len(re.findall(rf"\b{word}\b", before)) in (1, 2):
                yield {"text": before.rstrip(), "word": word}
                break
