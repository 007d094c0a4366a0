"""A converted model in vLLM on a CPU, against its source in vLLM and against itself in transformers.

    make test-vllm                                      (makes .cache/vllm)
    surgery convert --to ssmax --form paper MODEL -o CONVERTED
    .cache/vllm/bin/python -m bench.vllm_throughput MODEL CONVERTED --text TEXT --out docs/results/data/vllm.json

The two engines take turns on the same prompts of the text. The log-probabilities of the prompts' tokens and the greedy
tokens are compared with transformers, without batches and caches.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

from bench.harness import arguments, report

PROMPTS = 4
FIRST = 32  # tokens of a prompt that new ones are decoded after


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--length", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="new tokens of a request")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    from transformers import AutoTokenizer

    from surgery.data import read_documents

    (document,) = read_documents([options.text])
    tokens = AutoTokenizer.from_pretrained(options.model)(document.text, verbose=False)["input_ids"]
    length = options.length
    if len(tokens) < PROMPTS * length:
        parser.error(f"{options.text} has {len(tokens)} tokens; {PROMPTS * length} are needed")
    prompts = [tokens[start : start + length] for start in range(0, PROMPTS * length, length)]
    folders = {"source": str(options.model), "converted": str(options.converted)}
    report("vllm_throughput", measure(folders, prompts, options), options.out)


def measure(folders: dict[str, str], prompts: list[list[int]], options: Any) -> list[dict[str, Any]]:
    short, decoded = [prompt[:FIRST] for prompt in prompts], options.new
    expected = {name: by_transformers(folder, prompts, short, decoded) for name, folder in folders.items()}

    from vllm import LLM, SamplingParams

    from surgery.evaluation.speed.stopwatch import interleaved, ratio

    engines = {
        name: LLM(
            model=folder,
            trust_remote_code=True,
            model_impl="transformers",
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=PROMPTS,
            enable_prefix_caching=False,
            enforce_eager=options.eager,
        )
        for name, folder in folders.items()
    }

    def asking(name: str, given: list[list[int]], **how: Any) -> Any:
        parameters = SamplingParams(temperature=0.0, ignore_eos=True, detokenize=False, **how)
        rows: Any = [{"prompt_token_ids": row} for row in given]
        return lambda: engines[name].generate(rows, parameters, use_tqdm=False)

    rows: list[dict[str, Any]] = []
    for work, given, new in (("prefill", prompts, 1), ("decode", short, decoded)):
        seconds = interleaved({name: asking(name, given, max_tokens=new) for name in folders}, options.repeats)
        each = PROMPTS * (options.length if work == "prefill" else new)
        rows.append(
            {
                "what": f"{work} of {PROMPTS} requests",
                "source, tokens/s": each / statistics.median(seconds["source"]),
                "converted, tokens/s": each / statistics.median(seconds["converted"]),
                "throughput, converted / source": 1 / ratio(seconds, "converted", "source"),
            }
        )
    for name, (of_prompts, greedy) in expected.items():
        scored = asking(name, prompts, max_tokens=1, prompt_logprobs=0)()
        written = asking(name, short, max_tokens=decoded)()
        rows.append({"what": f"{name}, vLLM against transformers", **agreement(scored, written, of_prompts, greedy)})
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, "") for column in columns} for row in rows]


def by_transformers(
    folder: str, prompts: list[list[int]], short: list[list[int]], decoded: int
) -> tuple[list[list[float]], list[list[int]]]:
    """Log-probabilities of the prompts' tokens, and the greedy tokens after the short prompts; one row at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    chances, greedy = [], []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            found = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
            chances.append(found.gather(1, ids[0, 1:, None])[:, 0].tolist())
        for prompt in short:
            new = {"max_new_tokens": decoded, "min_new_tokens": decoded, "do_sample": False}
            greedy.append(model.generate(torch.tensor([prompt]), **new)[0, len(prompt) :].tolist())
    return chances, greedy


def agreement(
    scored: list[Any], written: list[Any], chances: list[list[float]], greedy: list[list[int]]
) -> dict[str, Any]:
    """vLLM's answers against those of :func:`by_transformers`."""
    differences = [
        abs(value - found[token].logprob)
        for answer, values in zip(scored, chances, strict=True)
        for value, found, token in zip(values, answer.prompt_logprobs[1:], answer.prompt_token_ids[1:], strict=True)
    ]
    pairs = [
        (int(found), token)
        for answer, tokens in zip(written, greedy, strict=True)
        for found, token in zip(answer.outputs[0].token_ids, tokens, strict=True)
    ]
    equal = sum(found == token for found, token in pairs)
    return {
        "greatest difference of a log-probability": max(differences),
        "greedy tokens equal": f"{equal} of {len(pairs)}",
    }


if __name__ == "__main__":
    main()
