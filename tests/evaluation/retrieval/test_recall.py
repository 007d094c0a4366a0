"""Recall: facts in one haystack, asked for one by one, after one pass over the text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer

from surgery.data import Document
from surgery.data.recall import MEASURING
from surgery.errors import UsageError
from surgery.evaluation import evaluate
from surgery.evaluation.retrieval import haystacks, questions
from surgery.evaluation.retrieval.haystacks import haystack_logits
from surgery.evaluation.retrieval.options import RetrievalPart
from surgery.evaluation.retrieval.probes import HaystackMaker, Probe, ProbeSet
from surgery.loading import RunOptions
from surgery.loading.caches import borrowed, new_cache, with_cache

CPU = RunOptions(device="cpu")
PROSE = "\n\n".join(f"Paragraph {number} speaks of rivers, and of mills beside them." for number in range(400))


def _save_characters(folder: Path) -> None:
    """A tokenizer with one token for each character of ASCII."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "\n", *map(chr, range(32, 127))]
    whole = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    whole.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>").save_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    _save_characters(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def models() -> list[Any]:
    """Full attention; and layers that forget, whose cache cannot be cut back."""
    from transformers import LlamaConfig, MistralConfig

    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    torch.manual_seed(0)
    configs = (LlamaConfig(**sizes), MistralConfig(**sizes, sliding_window=8))
    return [AutoModelForCausalLM.from_config(config).eval() for config in configs]


def _haystack(shared: int = 30) -> ProbeSet:
    draw = random.Random(1)
    text = tuple(draw.choices(range(3, 60), k=shared))
    ends = [tuple(draw.choices(range(3, 60), k=size)) for size in (3, 7, 1, 5)]
    probes = tuple(Probe((*text, *end), tuple(draw.choices(range(3, 60), k=2 + len(end))), None) for end in ends)
    return ProbeSet(shared, probes, (0.0, 0.5, 1.0, 0.5), tuple(range(shared)))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("chunk", "together"), [(16, 1), (64, 3), (64, 8), (16, None)])
def test_one_pass_over_the_text_gives_what_a_pass_for_each_question_gives(
    models: list[Any], number: int, chunk: int, together: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if together is None:  # a cache that holds more than keys and values
        monkeypatch.setattr(haystacks, "keeps_keys_alone", lambda cache: False)
    else:
        monkeypatch.setattr(questions, "TOGETHER", together)
    haystack = _haystack()
    counts: list[int] = []
    continued = haystack_logits(models[number], haystack, chunk, counts.append)
    alone = haystack_logits(models[number], haystack, chunk, lambda count: None, once=False)
    for own, other, probe in zip(continued, alone, haystack.probes, strict=True):
        assert own.shape == (len(probe.answer), 64)
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    assert sum(counts) == haystack.tokens
    # And both are the model's own logits.
    probe = haystack.probes[1]
    with torch.no_grad():
        plain = models[number](input_ids=torch.tensor([(*probe.prompt, *probe.answer)])).logits[0]
    torch.testing.assert_close(continued[1], plain[len(probe.prompt) - 1 : -1], atol=1e-5, rtol=1e-5)


def test_questions_about_a_long_text_take_turns_so_that_their_caches_fit() -> None:
    asked = [len(group) for group in questions.groups(_haystack().probes * 5, shared=1300)]
    assert asked == [3] * 6 + [2]
    assert [len(group) for group in questions.groups(_haystack().probes, shared=10**6)] == [1] * 4


@pytest.mark.parametrize("number", [0, 1])
def test_a_borrowed_cache_is_given_back_as_it_was(models: list[Any], number: int) -> None:
    model, cache = models[number], new_cache(models[number])
    with torch.no_grad():
        model(input_ids=torch.arange(3, 23)[None], **with_cache(cache))
        before = [layer.keys.clone() for layer in cache.layers]
        with pytest.raises(KeyError), borrowed(cache) as lent:
            model(input_ids=torch.arange(3, 9)[None], **with_cache(lent))
            raise KeyError
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
    assert cache.get_seq_length() == 20


@pytest.mark.parametrize("sample", range(len(MEASURING)))
def test_a_haystack_holds_every_fact_once_at_its_depth(tokenizer: Any, sample: int) -> None:
    depths = [0.0, 0.5, 1.0]
    length = 1500
    haystack = HaystackMaker(tokenizer, [Document("a", PROSE)], 6, depths).make(length, sample, "seed")
    assert len(haystack.probes) == 6 and sorted(haystack.depths) == sorted(depths * 2)
    family = list(MEASURING.values())[sample]
    start = family.question.partition("{name}")[0]
    sizes = [len(probe.prompt) + len(probe.answer) for probe in haystack.probes]
    assert max(sizes) <= length and max(sizes) > length - 60
    assert len({probe.prompt[: haystack.shared] for probe in haystack.probes}) == 1
    assert haystack.shared > 0.9 * length
    for probe, depth in zip(haystack.probes, haystack.depths, strict=True):
        text = tokenizer.decode(probe.prompt)
        question = text[text.rindex("\n") + 1 :]
        assert question.startswith(start) and probe.text is not None
        whole = f"{question.rstrip()}{probe.text}"
        assert text.count(whole) == 1  # the question stands there without its answer
        place = text.index(whole) / (len(text) - len(question))
        assert abs(place - depth) < 0.15


@pytest.mark.parametrize("prefix", [[], [2, 3]])
@pytest.mark.parametrize("sample", range(len(MEASURING)))
def test_a_haystack_knows_which_tokens_are_text(tokenizer: Any, sample: int, prefix: list[int]) -> None:
    maker = HaystackMaker(tokenizer, [Document("a", PROSE)], 6, [0.0, 0.5, 1.0])
    maker._prefix = prefix
    haystack = maker.make(1500, sample, "seed")
    prompt = haystack.probes[0].prompt
    assert haystack.text == tuple(sorted(set(haystack.text))) and haystack.text[-1] < haystack.shared
    lines = tokenizer.decode([prompt[position] for position in haystack.text]).split()
    prose = [line for line in tokenizer.decode(prompt[len(prefix) :]).split("\n") if line.startswith("Paragraph")]
    assert lines == " ".join(prose).split() and PROSE.startswith("\n\n".join(prose))


def test_haystacks_are_seeded_and_differ(tokenizer: Any) -> None:
    maker = HaystackMaker(tokenizer, [], 4, [0.0, 1.0])
    one, same, other = maker.make(900, 0, "a"), maker.make(900, 0, "a"), maker.make(900, 0, "b")
    assert one == same != other


def test_texts_take_turns_and_are_counted_once_for_each_length(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document(name, name * 60 + PROSE) for name in "ABC"] + [Document("short", "short")]
    maker = HaystackMaker(tokenizer, documents, 4, [0.5])
    counted: list[str] = []
    plain = HaystackMaker._ids
    monkeypatch.setattr(HaystackMaker, "_ids", lambda own, text: counted.append(text) or plain(own, text))
    found = [maker.make(900, sample, "a").probes[0].prompt for sample in range(4)]
    starts = [tokenizer.decode(prompt[:40])[0] for prompt in found]
    assert starts == ["A", "B", "C", "A"]
    assert sum(text == "short" for text in counted) == 1


def test_lengths_that_do_not_fit_are_refused(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="task recall needs more than 100 tokens for 8 facts"):
        HaystackMaker(tokenizer, [], 8, [0.5]).make(100, 0, "a")
    with pytest.raises(UsageError, match="no text has 900 tokens"):
        HaystackMaker(tokenizer, [Document("a", "short")], 4, [0.5]).make(900, 0, "a")
    with pytest.raises(UsageError, match="needles: 2000 is more than the limit"):
        HaystackMaker(tokenizer, [], 2000, [0.5])


def test_a_tokenizer_that_does_not_know_its_characters_is_refused() -> None:
    maker = HaystackMaker(ByT5Tokenizer(), [Document("a", "Line after line. " * 400)], 4, [0.5])
    with pytest.raises(UsageError, match="this tokenizer does not give them"):
        maker.make(3000, 0, "a")


def test_every_depth_has_a_fact() -> None:
    with pytest.raises(ValidationError, match="3 facts cannot lie at 5 depths"):
        RetrievalPart(kind="retrieval", task="recall", lengths=[700], needles=3)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights and a tokenizer that can write the facts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("small")
    _save_characters(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_answers_of_one_haystack_are_one_group(small: Path, tmp_path: Path) -> None:
    part = {"kind": "retrieval", "task": "recall", "lengths": [700], "depths": [0.2, 0.8], "samples": 3, "needles": 4}
    suite = {"name": "own", "parts": [part]}
    found = evaluate(small, suite=suite, run=CPU, against=small)
    section = found.section("retrieval")
    assert section.prompts == 12 and section.title == "Recall (many facts in a text)"
    (own,) = section.results
    score = own.overall
    assert score.prompts == 12 and len(own.right) == 1 and len(own.right[0]) == 2
    assert score.log_probability.value < 0 and score.log_probability == score.base_log_probability
    assert score.log_probability_difference is not None and score.log_probability_difference.value == 0
    # Three haystacks: the interval's ends are means of haystacks, drawn with repetition.
    alone = evaluate(small, suite={"name": "own", "parts": [{**part, "samples": 1}]}, run=CPU)
    assert alone.section("retrieval").results[0].overall.right.low is None  # one haystack has no interval
    (tmp_path / "text.txt").write_text(PROSE)
    other = evaluate(small, suite=suite, run=CPU, text=tmp_path / "text.txt").section("retrieval").results[0]
    assert other.overall.log_probability != score.log_probability


def test_log_probability_is_the_sum_of_the_losses(small: Path) -> None:
    suite = {"name": "own", "parts": [{"kind": "retrieval", "task": "passkey", "lengths": [400], "samples": 1}]}
    own = evaluate(small, suite=suite, run=CPU).section("retrieval").results[0].overall
    assert own.log_probability.value == pytest.approx(-6 * own.loss.value)  # a space and five digits
