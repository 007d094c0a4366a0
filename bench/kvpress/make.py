"""The cases: texts to continue, pass keys, and texts with many facts."""

from __future__ import annotations

from typing import Any

from bench.harness import passages
from bench.kvpress.case import Case, Continuation

PROMPT, CONTINUED = 3584, 512
DEPTHS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.75, 0.85, 0.95)
FACTS = 16
QUESTION = " What is the pass key? The pass key is"


def cases(tokenizer: Any, texts: list[str], haystacks: list[str], count: int) -> list[Case]:
    """All cases; ``count`` pass keys, and ``count`` texts with :data:`FACTS` facts each."""
    found = []
    for name, tokens in passages(tokenizer, texts, PROMPT + CONTINUED + 1):
        # The first token after the prompt is only read, so that every scored token is predicted from the small cache.
        found.append(Case(f"loss-{name}", "loss", tokens[:PROMPT], [Continuation(tokens[PROMPT:], CONTINUED)]))
    return [*found, *pass_keys(tokenizer, count), *many_facts(tokenizer, haystacks, count)]


def pass_keys(tokenizer: Any, count: int) -> list[Case]:
    """One key in each prompt; the question comes after the prompt, so that a press does not know it."""
    from surgery.evaluation.retrieval.probes import make_probe

    asked = len(tokenizer(QUESTION, add_special_tokens=False)["input_ids"])
    found = []
    for number in range(count):
        depth = DEPTHS[number % len(DEPTHS)]
        seed = f"kvpress/{number}"
        probe = make_probe("passkey", PROMPT, depth, seed=seed, tokenizer=tokenizer, vocabulary=len(tokenizer))
        own = Continuation([*probe.prompt[-asked:], *probe.answer], len(probe.answer))
        found.append(Case(f"passkey-{number}", "passkey", list(probe.prompt[:-asked]), [own]))
    return found


def many_facts(tokenizer: Any, texts: list[str], count: int) -> list[Case]:
    """Facts in a text, each with its own question after it."""
    from surgery.data import read_documents
    from surgery.evaluation.retrieval.probes import HaystackMaker

    maker = HaystackMaker(tokenizer, read_documents(texts), FACTS, DEPTHS)
    found = []
    for number in range(count):
        made = maker.make(PROMPT, number, seed=f"kvpress/{number}")
        asked = [
            Continuation([*probe.prompt[made.shared :], *probe.answer], len(probe.answer)) for probe in made.probes
        ]
        found.append(Case(f"recall-{number}", "recall", list(made.probes[0].prompt[: made.shared]), asked))
    return found
