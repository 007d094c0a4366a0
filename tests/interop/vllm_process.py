"""The real vLLM and plain transformers on the same checkpoints, in a process that does not import this package.

    python vllm_process.py JOBS.json ANSWERS.json

JOBS.json lists ``{"name", "folder", "dtype", "prompts", "new", "transformers", "vllm"}``: whether transformers answers,
and the options of each vLLM that does, by name. ANSWERS.json has the answers by name of the job.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # an error keeps its words, and the model can be looked at
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

import torch


def by_transformers(job: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of each prompt's tokens, and the greedy tokens after it with theirs, one prompt at a time."""
    from transformers import AutoModelForCausalLM

    how: dict[str, Any] = {"dtype": getattr(torch, job["dtype"]), "trust_remote_code": True}
    # Dense attention: before 5.21, transformers loses Gemma 2's soft cap under sdpa.
    model = AutoModelForCausalLM.from_pretrained(job["folder"], attn_implementation="eager", **how).eval()
    answers = []
    for prompt in job["prompts"]:
        ids, cache, unread = list(prompt), None, list(prompt)
        with torch.no_grad():
            for _ in range(job["new"]):
                found = model(input_ids=torch.tensor([unread]), past_key_values=cache, use_cache=True)
                cache, unread = found.past_key_values, [int(found.logits[0, -1].argmax())]
                ids += unread
            chances = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
        of_next = [chances[place, ids[place + 1]].item() for place in range(len(ids) - 1)]
        answers.append(
            {
                "prompt": of_next[: len(prompt) - 1],
                "tokens": ids[len(prompt) :],
                "chances": of_next[len(prompt) - 1 :],
            }
        )
    return {"transformers": {"answers": answers}}


def by_vllm(job: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The same by vLLM, and once more without the prompts' log-probabilities, which keep vLLM from cached prefixes."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    engine: Any = LLM(
        model=job["folder"],
        trust_remote_code=True,
        model_impl="transformers",
        dtype=job["dtype"],
        skip_tokenizer_init=True,
        disable_log_stats=True,
        **{"max_model_len": 128, "max_num_seqs": 4, "block_size": 32, **options},
    )
    greedy = {"temperature": 0.0, "max_tokens": job["new"], "ignore_eos": True, "detokenize": False, "logprobs": 0}
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]

    def chances(tokens: list[int], each: list[Any]) -> list[float]:
        return [found[token].logprob for token, found in zip(tokens, each, strict=False)]

    def ask(**more: Any) -> list[dict[str, Any]]:
        found = engine.generate(prompts, SamplingParams(**greedy, **more), use_tqdm=False)
        return [
            {
                "prompt": chances(answer.prompt_token_ids[1:], (answer.prompt_logprobs or [])[1:]),
                "tokens": list(answer.outputs[0].token_ids),
                "chances": chances(answer.outputs[0].token_ids, answer.outputs[0].logprobs),
                "cached": answer.num_cached_tokens,
            }
            for answer in found
        ]

    def dtypes(model: torch.nn.Module) -> dict[str, str]:
        return {name: str(value.dtype) for name, value in model.named_parameters() if ".ssmax." in name}

    try:
        return {"answers": ask(prompt_logprobs=0), "again": ask(), "dtypes": engine.apply_model(dtypes)[0]}
    finally:
        engine = None
        gc.collect()
        cleanup_dist_env_and_memory()


def engine_answers(job: dict[str, Any]) -> dict[str, Any]:
    """The answers of each vLLM of a job; one that fails gives its error's words."""
    found: dict[str, Any] = {}
    for name, options in job["vllm"].items():
        print(time.strftime("%X"), job["name"], name, file=sys.stderr, flush=True)
        try:
            found[name] = by_vllm(job, options)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    return found


if __name__ == "__main__":
    jobs, place = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    # First: vLLM changes transformers' own classes in its process.
    answers = {job["name"]: by_transformers(job) if job["transformers"] else {} for job in jobs}
    for job in jobs:
        answers[job["name"]] |= engine_answers(job)
    assert not any(name.partition(".")[0] == "surgery" for name in sys.modules)
    place.write_text(json.dumps(answers), encoding="utf-8")
