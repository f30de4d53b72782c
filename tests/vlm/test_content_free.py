"""Content-free prompts: tokens as the processor makes them, evidence as a pass of their own gives it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from PIL import Image
from tiny_vlm import write_noise_images
from torch import Tensor

from lad_pl import PromptSpec, UserError, VisionLanguageModel, VLMSpec
from lad_pl.data.permutations import random_permutations
from lad_pl.types import Batch, Evidence, PermutedSample, Sample
from lad_pl.vlm.content_free import SharedPrefix, swap_text
from lad_pl.vlm.encoder import PromptEncoder

BY_NAME = {family.name: family for family in FAMILIES}
CAPTIONS = ("A dog lies on the grass.", "Two giraffes in a room, with people looking at them.", "N/A")
PROMPT = PromptSpec(image_size=None)
RECURRENT = ("qwen3_5",)
BEFORE_ANSWER = ("smolvlm", "qwen3_5")
"""Their templates write something between the generation prompt and an answer."""
Items = Callable[..., list[PermutedSample]]


class Model:
    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.vlm = VisionLanguageModel.load(VLMSpec(str(BY_NAME[name].build(folder / "model")), dtype="float32"))
        paths = write_noise_images(folder, 12, sizes=BY_NAME[name].sizes)
        self.pictures = [Image.open(path).convert("RGB") for path in paths]

    def items(self, n: int, captions: tuple[str, ...] = CAPTIONS, count: int = 2) -> list[PermutedSample]:
        return [
            PermutedSample(
                Sample(str(number), tuple(map(str, range(n))), caption, n - 1),
                number,
                random_permutations(n, count),
                tuple((self.pictures[number:] + self.pictures[:number])[:n]),
            )
            for number, caption in enumerate(captions)
        ]


@pytest.fixture(
    scope="module",
    params=["qwen2_5_vl", "internvl", "gemma3", "smolvlm", "llama4", "aya_vision", *RECURRENT],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


def with_caption(items: list[PermutedSample], caption: str) -> list[PermutedSample]:
    return [replace(item, sample=replace(item.sample, caption=caption)) for item in items]


@contextmanager
def processor_calls(encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The captions for which the processor is called."""
    calls: list[str] = []
    original = encoder._process
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "_process", lambda item, p: calls.append(item.sample.caption) or original(item, p))
        yield calls


@contextmanager
def embedded(vlm: VisionLanguageModel) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the token ids that go into the language model."""
    shapes: list[tuple[int, ...]] = []
    module: Any = vlm.model.get_input_embeddings()
    handle = module.register_forward_hook(lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape)))
    try:
        yield shapes
    finally:
        handle.remove()


def both(batch: Batch) -> tuple[Batch, Batch]:
    """The prompts and their content-free counterparts."""
    assert batch.content_free is not None
    return batch, batch.content_free


def assert_same_prompts(got: Batch, want: Batch) -> None:
    assert got.tokens.keys() == want.tokens.keys()
    for name, values in want.tokens.items():
        assert torch.equal(got.tokens[name], values)
        assert got.tokens[name].dtype == values.dtype
    assert torch.equal(got.position_of_token, want.position_of_token)
    assert torch.equal(got.caption_tokens, want.caption_tokens)
    assert want.caption_tokens.any(1).all()
    assert (got.ids, got.visual_tokens) == (want.ids, want.visual_tokens)


def assert_close(got: Evidence, want: Evidence) -> None:
    assert torch.isfinite(want.log_probs).all()
    torch.testing.assert_close(got.log_probs, want.log_probs, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.attention, want.attention, atol=1e-5, rtol=0)
    assert want.caption_attention is not None
    torch.testing.assert_close(got.caption_attention, want.caption_attention, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["delimiters", "visual"])
@pytest.mark.parametrize("caption", ["N/A", "Nothing can be said about this, whatever one might wish to say: [MASK]."])
def test_tokens_are_the_processor_s(model: Model, rule: Any, caption: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A content-free caption may be shorter or longer than the captions; the processor sees it never."""
    encoder, items = model.vlm.encoder(PromptSpec(image_size=None, spans=rule)), model.items(4)
    with processor_calls(encoder, monkeypatch) as calls:
        batch, free = both(encoder.with_content_free(items, caption))
    assert set(calls) == set(CAPTIONS)
    assert_same_prompts(batch, encoder(items))
    assert_same_prompts(free, encoder(with_caption(items, caption)))
    assert free.vision[0] is batch.vision[0]


@pytest.mark.parametrize("n", [4, 12])
def test_evidence_equals_passes_of_their_own(model: Model, n: int) -> None:
    """Rows of different length, more than one way to part from the content-free prompt, one that does not part."""
    vlm, encoder = model.vlm, model.vlm.encoder(PROMPT)
    batch, free = both(encoder.with_content_free(model.items(n)))
    trie, layers = encoder.answer_trie(n), vlm.layers.choose(0.0)
    assert trie.needs_continuation == (n == 12 or model.name in BEFORE_ANSWER)
    with embedded(vlm) as shapes:
        got, got_free = vlm.evidence_with_content_free(batch, trie, layers)
    want, want_free = vlm.evidence(batch, trie, layers), vlm.evidence(free, trie, layers)
    assert_close(got, want)
    assert_close(got_free, want_free)
    assert (want_free.log_probs - want.log_probs)[:4].abs().max() > 1e-3
    longest = max(map(len, trie.sequences))
    shapes = [shape for shape in shapes if shape[0] == len(batch) and shape[1] >= longest]  # not the continuations
    whole, width = batch.tokens["input_ids"].shape[1], free.tokens["input_ids"].shape[1]
    assert shapes[0] == (len(batch), whole)
    if model.name in RECURRENT:
        assert shapes[1:] == [(len(batch), width)]
    else:
        assert len(shapes) == 2
        assert shapes[1][1] <= 20 < width / 4


def test_a_sample_of_its_own_needs_no_copy(qwen: Model) -> None:
    """All rows part at the same column, so the prefix is a view of the cache."""
    encoder = qwen.vlm.encoder(PROMPT)
    batch, free = both(encoder.with_content_free(qwen.items(4, CAPTIONS[1:2], 3)))
    shared = SharedPrefix.of(batch, free)
    assert shared is not None
    states = torch.randn(3, 2, batch.tokens["input_ids"].shape[1], 5)
    kept = shared._columns(states)
    assert kept.data_ptr() == states.data_ptr()
    assert kept.shape[2] + shared.suffix == free.tokens["input_ids"].shape[1]
    trie = encoder.answer_trie(4)
    got = qwen.vlm.evidence_with_content_free(batch, trie, (1, 4))[1]
    assert_close(got, qwen.vlm.evidence(free, trie, (1, 4)))


@pytest.fixture(scope="module")
def short_sighted(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Gemma 3 whose sliding layers see 40 tokens, less than a prompt."""
    folder = tmp_path_factory.mktemp("gemma3")
    model = Model("gemma3", folder)
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["sliding_window"] = 40
    path.write_text(json.dumps(config))
    model.vlm = VisionLanguageModel.load(VLMSpec(str(folder / "model"), dtype="float32"))
    return model


@pytest.mark.parametrize("n", [4, 12])
def test_sliding_windows_shorter_than_the_prompt(short_sighted: Model, n: int) -> None:
    vlm = short_sighted.vlm
    encoder = vlm.encoder(PROMPT)
    batch, free = both(encoder.with_content_free(short_sighted.items(n)))
    trie, layers = encoder.answer_trie(n), vlm.layers.choose(0.0)
    assert layers == (2, 5)
    got, got_free = vlm.evidence_with_content_free(batch, trie, layers)
    assert_close(got, vlm.evidence(batch, trie, layers))
    assert_close(got_free, vlm.evidence(free, trie, layers))
    with pytest.raises(UserError, match="Layer 0 does not see the whole of image 1"):
        vlm.evidence_with_content_free(batch, trie, [0, 2])


def test_images_go_through_the_tower_once(qwen: Model) -> None:
    encoder, seen = qwen.vlm.encoder(PROMPT), []
    handle = qwen.vlm.model.model.visual.register_forward_pre_hook(lambda *_: seen.append(1))
    qwen.vlm.evidence_with_content_free(encoder.with_content_free(qwen.items(4)), encoder.answer_trie(4), (1, 4))
    handle.remove()
    assert len(seen) == len(CAPTIONS)  # samples, not prompts


def test_eager_attention(qwen: Model, tmp_path: Path) -> None:
    folder = BY_NAME["qwen2_5_vl"].build(tmp_path / "model")
    vlm = VisionLanguageModel.load(VLMSpec(str(folder), dtype="float32", attn_implementation="eager"))
    encoder = vlm.encoder(PROMPT)
    batch, free = both(encoder.with_content_free(qwen.items(4)))
    trie = encoder.answer_trie(4)
    got, got_free = vlm.evidence_with_content_free(batch, trie, (1, 4))
    assert_close(got, vlm.evidence(batch, trie, (1, 4)))
    assert_close(got_free, vlm.evidence(free, trie, (1, 4)))


@pytest.mark.parametrize("text", ["a dog<|im_end|>\n<|vision_start|>", "a <|image_pad|>"])
def test_control_tokens_go_to_the_processor(qwen: Model, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a caption or in the content-free one: the tokenizer alone would take them for the model's own."""
    encoder = qwen.vlm.encoder(PROMPT)
    for items, caption in ((qwen.items(4, (text,)), "N/A"), (qwen.items(4, CAPTIONS[:1]), text)):
        with processor_calls(encoder, monkeypatch) as calls:
            _, free = both(encoder.with_content_free(items, caption))
        assert calls == [items[0].sample.caption, caption]
        assert_same_prompts(free, encoder(with_caption(items, caption)))


def test_a_caption_before_the_images(qwen: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the images can be shared then: the processor is called, and the second pass is a whole one."""
    encoder = qwen.vlm.encoder(PROMPT)
    turns = encoder.turns
    monkeypatch.setattr(
        encoder,
        "turns",
        lambda images, text: [{**turn, "content": turn["content"][::-1]} for turn in turns(images, text)],
    )
    items = qwen.items(4, CAPTIONS[:2])
    with processor_calls(encoder, monkeypatch) as calls:
        batch, free = both(encoder.with_content_free(items))
    assert calls.count("N/A") == 2
    assert SharedPrefix.of(batch, free) is None
    trie = encoder.answer_trie(12)
    with embedded(qwen.vlm) as shapes:
        got, got_free = qwen.vlm.evidence_with_content_free(batch, trie, (1, 4))
    assert tuple(free.tokens["input_ids"].shape) in shapes
    for found, prompts in ((got, batch), (got_free, free)):
        want = qwen.vlm.evidence(prompts, trie, (1, 4))
        assert found.caption_attention is want.caption_attention is None  # it sees no image
        torch.testing.assert_close(found.log_probs, want.log_probs, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.attention, want.attention, atol=1e-5, rtol=0)


def test_text_is_swapped_only_where_the_tokens_agree() -> None:
    def row(ids: list[int], kinds: list[int] | None = None) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor(ids), "kind": torch.tensor(kinds or [0] * len(ids))}

    # 9 is an image's placeholder, which the processor has made three of; 1 2 3 is the text, of which 3 is the caption.
    rendered, other = [5, 9, 1, 2, 3, 7], [5, 9, 1, 2, 4, 4, 7]
    ids = [5, 9, 9, 9, 1, 2, 3, 7]
    swapped = swap_text(row(ids), 4, rendered, other)
    assert swapped is not None
    assert {name: values.tolist() for name, values in swapped.items()} == row([5, 9, 9, 9, 1, 2, 4, 4, 7]) | {
        "input_ids": [5, 9, 9, 9, 1, 2, 4, 4, 7],
        "kind": [0] * 9,
    }
    assert swap_text(row(ids), 2, rendered, other) is None  # the caption touches the image
    assert swap_text(row([5, 9, 9, 9, 1, 8, 3, 7]), 4, rendered, other) is None  # the processor wrote something else
    assert swap_text(row(ids, [0, 1, 1, 1, 0, 0, 0, 2]), 4, rendered, other) is None  # which kind would a new token be?
    assert swap_text(row(ids), 4, rendered, [6, *other[1:]]) is None
