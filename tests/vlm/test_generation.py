"""Generated texts against plain ``model.generate``: pixels in, one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from PIL import Image
from subject import Subject
from tiny_vlm import write_noise_images
from torch import Tensor
from transformers import GenerationConfig

from lad_pl import PromptSpec, VisionLanguageModel
from lad_pl.errors import UserError
from lad_pl.types import Batch, PermutedSample, Sample
from lad_pl.vlm.generation import Decoding, GumbelNoise, _generated, _generation_config, _Texts, generate

DIFFERENT = ("exaone4_5", "gemma3", "hunyuan_vl", "internvl", "janus", "lfm2_vl", "qwen3_5", "smolvlm")
"""Positions left to the model, masks in two directions, 4-D positions, tiles, a generate() of its own, convolutions,
a recurrence and an open thought, split images; Qwen2.5-VL is the model of the other tests."""
PLAIN = PromptSpec(image_size=None)
Items = Sequence[PermutedSample]


def ids(vlm: VisionLanguageModel, batch: Batch, decoding: Decoding) -> list[list[list[int]]]:
    with torch.no_grad():
        return _generated(vlm, batch, decoding, _generation_config(vlm, decoding)).tolist()


def plain_ids(subject: Subject, items: Items, length: int) -> list[list[int]]:
    """What a user of transformers would run, one prompt at a time."""
    rows = []
    for item in items:
        for permutation in item.permutations:
            inputs, _ = subject.plain_inputs(item, permutation)
            output = subject.vlm.model.generate(**inputs, max_new_tokens=length, do_sample=False)
            rows.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return rows


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Image.Image]]:
    def draw(sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
        paths = write_noise_images(tmp_path_factory.mktemp("images"), 12, sizes=sizes)
        return [Image.open(path).convert("RGB") for path in paths]

    return draw


@pytest.fixture(scope="module")
def items(pictures) -> Items:
    """Two samples under two orders and one, of different length."""
    drawn = pictures(((60, 90), (90, 60), (56, 56), (120, 40)))
    names = ("0", "1", "2")
    return (
        PermutedSample(Sample("a", names, "A dog.", 0), 0, ((0, 1, 2), (2, 0, 1)), tuple(drawn[:3])),
        PermutedSample(Sample("b", names, "Two giraffes, in a room.", 1), 1, ((0, 1, 2),), tuple(drawn[3:6])),
    )


@pytest.fixture(scope="module")
def batch(tiny_vlm: VisionLanguageModel, items: Items) -> Batch:
    batch = tiny_vlm.encoder(PLAIN)(items)
    assert (batch.tokens["attention_mask"] == 0).any()  # padded
    return batch


@contextmanager
def configured(model: Any, **settings: Any) -> Iterator[GenerationConfig]:
    own = model.generation_config
    model.generation_config = GenerationConfig.from_dict(own.to_dict() | settings)
    try:
        yield model.generation_config
    finally:
        model.generation_config = own


@pytest.mark.parametrize("name", DIFFERENT)
def test_greedy_tokens_are_those_of_plain_generate(name: str, tmp_path: Path, pictures) -> None:
    """Prompts of different length in one batch; chains as cold as greedy decoding share the prompt's cache."""
    family = next(family for family in FAMILIES if family.name == name)
    subject = Subject(family, family.build(tmp_path / "model"), pictures(family.sizes))
    items = [subject.entry(3, 2), subject.entry(3, 1, 1)]
    expected = plain_ids(subject, items, 5)
    assert len(set(map(tuple, expected))) > 1
    batch = subject.vlm.encoder(PLAIN)(items)
    assert ids(subject.vlm, batch, Decoding(5)) == [[row] for row in expected]
    cold = Decoding(5, chains=2, temperature=1e-6)
    assert ids(subject.vlm, batch, cold) == [[row, row] for row in expected]
    starts = "<think>\n" if name == "qwen3_5" else ""
    decode = subject.vlm.processor.tokenizer.decode
    written = [starts + decode(row, skip_special_tokens=True) for row in expected]
    assert [text for (text,) in generate(subject.vlm, batch, Decoding(5))] == written


def test_texts_of_the_tiny_qwen(tiny_vlm: VisionLanguageModel, tiny_folder: Path, items: Items, batch: Batch) -> None:
    family = next(family for family in FAMILIES if family.name == "qwen2_5_vl")
    subject = Subject(family, tiny_folder, [])
    subject.__dict__.update(vlm=tiny_vlm, eager=tiny_vlm.model)
    expected = plain_ids(subject, items, 12)
    assert ids(tiny_vlm, batch, Decoding(12)) == [[row] for row in expected]


def test_images_are_encoded_once_and_prompts_read_once(
    tiny_vlm: VisionLanguageModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, read = [], []
    model = tiny_vlm.model

    def watch(owner: Any, name: str, note: Callable[[dict[str, Any]], None]) -> None:
        plain = getattr(owner, name)

        @wraps(plain)
        def watched(**inputs: Any) -> Any:
            note(inputs)
            return plain(**inputs)

        monkeypatch.setattr(owner, name, watched)

    watch(model.model, "get_image_features", lambda inputs: encoded.append(len(inputs["image_grid_thw"])))
    watch(model, "forward", lambda inputs: read.append(tuple(inputs["input_ids"].shape)))
    generate(tiny_vlm, batch, Decoding(3, chains=4, temperature=1.0))
    length = batch.tokens["input_ids"].shape[1]
    assert encoded == [3, 3]
    assert read == [(3, length - 1), *[(12, 1)] * 3]


def first_token_probabilities(vlm: VisionLanguageModel, batch: Batch, temperature: float, top_k: int | None) -> Tensor:
    with torch.no_grad():
        logits = vlm.model(**vlm.inputs(batch)).logits[0, -1].double() / temperature
    if top_k is not None:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    return logits.softmax(-1)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.7, 6), (0.25, None)])
def test_sampled_tokens_follow_the_softmax(
    tiny_vlm: VisionLanguageModel, items: Items, temperature: float, top_k: int | None
) -> None:
    alone = tiny_vlm.encoder(PLAIN)([replace(items[0], permutations=((0, 1, 2),))])
    probabilities = first_token_probabilities(tiny_vlm, alone, temperature, top_k)
    draws = 1500
    decoding = Decoding(1, chains=draws, temperature=temperature, top_k=top_k)
    tokens = torch.tensor(ids(tiny_vlm, alone, decoding)).flatten()
    counts = tokens.bincount(minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0
    assert_chi_square(counts, probabilities * draws)


def assert_chi_square(counts: Tensor, expected: Tensor) -> None:
    """Below the 99.9 % point (Wilson and Hilferty); what is expected fewer than 10 times counts as one kind."""
    rare = expected < 10
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert freedom >= 3
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert float(((counts - expected) ** 2 / expected).sum()) < limit


def test_successive_draws_of_a_row_are_fresh_and_rows_are_their_own() -> None:
    scores = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0]).log_softmax(-1)
    noise = GumbelNoise([1, 2])
    tokens = torch.stack([noise(torch.empty(0), scores.expand(2, -1)).argmax(-1) for _ in range(3000)], 1)
    pairs = 5 * tokens[:, :-1:2] + tokens[:, 1::2]
    joint = torch.outer(scores.exp(), scores.exp()).flatten().double()
    for row in pairs:
        assert_chi_square(row.bincount(minlength=25).double(), joint * len(row))
    other = GumbelNoise([2])
    assert [int(other(torch.empty(0), scores[None]).argmax()) for _ in range(50)] == tokens[1, :50].tolist()


def test_a_text_does_not_depend_on_the_rest_of_the_batch(tiny_vlm: VisionLanguageModel, items: Items) -> None:
    encoder = tiny_vlm.encoder(PLAIN)
    decoding = Decoding(8, chains=2, temperature=1.0, top_k=40)
    state = torch.get_rng_state()
    together = generate(tiny_vlm, encoder(items), decoding)
    assert len({text for texts in together for text in texts}) == 6
    shown = [replace(item, permutations=(order,)) for item in items for order in item.permutations]
    for item, texts in zip(shown, together, strict=True):
        assert generate(tiny_vlm, encoder([item]), decoding) == (texts,)
    assert generate(tiny_vlm, encoder(shown[::-1]), decoding) == together[::-1]
    # Fewer chains are the first ones, another seed gives others.
    assert generate(tiny_vlm, encoder(items), replace(decoding, chains=1)) == tuple((first,) for first, _ in together)
    assert not {*sum(together, ())} & {*sum(generate(tiny_vlm, encoder(items), replace(decoding, seed=1)), ())}
    assert torch.equal(torch.get_rng_state(), state)


def test_the_models_own_settings_play_no_part(tiny_vlm: VisionLanguageModel, batch: Batch) -> None:
    expected = ids(tiny_vlm, batch, Decoding(6))
    settings = {
        "do_sample": True,
        "temperature": 9.0,
        "top_k": 3,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 5,
        "max_length": 4,
        "num_beams": 2,
        "num_return_sequences": 2,
        "forced_eos_token_id": 7,
        "begin_suppress_tokens": [row[0][0] for row in expected],
        "use_cache": False,
    }
    with configured(tiny_vlm.model, **settings) as own:
        assert ids(tiny_vlm, batch, Decoding(6)) == expected
        assert tiny_vlm.model.generation_config is own


def test_the_models_own_ends_and_forbidden_tokens_hold(tiny_vlm: VisionLanguageModel, batch: Batch) -> None:
    greedy = ids(tiny_vlm, batch, Decoding(6))
    first, second = greedy[0][0][:2]
    assert first != second
    decode = tiny_vlm.processor.tokenizer.decode
    with configured(tiny_vlm.model, eos_token_id=[second, 3]):
        assert generate(tiny_vlm, batch, Decoding(6))[0] == (decode([first]),)
    with configured(tiny_vlm.model, suppress_tokens=[first]):
        assert ids(tiny_vlm, batch, Decoding(6))[0][0][0] != first
    with configured(tiny_vlm.model, bad_words_ids=[[first, second]]):
        assert ids(tiny_vlm, batch, Decoding(2))[0][0][0] == first
        assert ids(tiny_vlm, batch, Decoding(2))[0][0][1] != second


def test_an_exception_leaves_the_model_as_it_was(
    tiny_vlm: VisionLanguageModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tiny_vlm.model.generation_config

    def fail(*args: Any, **kwargs: Any) -> None:
        assert tiny_vlm.model.generation_config is not own
        raise RuntimeError("out of memory")

    monkeypatch.setattr(GumbelNoise, "__call__", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(tiny_vlm, batch, Decoding(2, temperature=1.0))
    assert tiny_vlm.model.generation_config is own


class WordTokens:
    """Just enough of a tokenizer: a word per id."""

    words = ("<think>", "</think>", "<|im_end|>", "2", "3", "<|box|>", "\n", "<think>\n")
    all_special_ids = (0, 1, 2)
    all_special_tokens = words[:3]

    def __init__(self) -> None:
        added = type("AddedToken", (str,), {"special": True})
        self.added_tokens_decoder = {number: added(self.words[number]) for number in (0, 1, 2, 5)}

    def decode(self, ids: Sequence[int], **options: bool) -> str:
        assert options == {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return "".join(self.words[number] for number in ids)


def test_thinking_tags_stay_where_they_are_special_tokens() -> None:
    texts = _Texts(WordTokens(), [2])
    assert texts([0, 3, 1, 5, 4, 2, 3, 3]) == "<think>2</think>3"
    assert texts([3, 4]) == "23"
    assert texts.opened_thought([3, 0, 6]) == "<think>\n"
    assert texts.opened_thought([3, 7]) == "<think>\n"
    assert texts.opened_thought([0, 3]) == ""  # words of the prompt, not its end
    assert texts.opened_thought([0, 1]) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"chains": 0}, "chains is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0"),
        ({"chains": 2}, "nothing is sampled"),
        ({"top_k": 5}, "nothing is sampled"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Decoding(**{"max_new_tokens": 4} | settings)


def test_a_model_without_a_cache_is_refused(
    tiny_vlm: VisionLanguageModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_vlm.model), "_supports_default_dynamic_cache", lambda *args: False)
    with pytest.raises(UserError, match="cannot generate text"):
        generate(tiny_vlm, batch, Decoding(2))
