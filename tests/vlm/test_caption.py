"""Which tokens are the caption's: by offsets, by decoding, and where neither can tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import item, load

from lad_pl import PromptSpec, UserError, VisionLanguageModel
from lad_pl.methods import MethodSettings
from lad_pl.methods.contextual_calibration import ContextualCalibration
from lad_pl.readouts import READOUTS, ReadoutSettings
from lad_pl.types import Batch
from lad_pl.vlm.caption import aligned, caption_spans, squeezed, tokens_of_spans
from lad_pl.vlm.encoder import PromptEncoder

CAPTIONS = (
    "A dog lies on the grass.",
    "image",  # a word of the template
    "Answer: ",
    "Caption: Caption: 1\nAnswer: ",
    "  two   blanks ",
    "a\n\nb",
    "cafe\u0301 \U0001f415\u200d\U0001f9ba \u72d7",  # composed on the way; several tokens to a character
    "7",
)
TEMPLATES = {
    "base": PromptSpec(image_size=None).template,
    "merged": "{n} images. Which shows x{caption}x?",
    "at the end": "Which of the {n} images shows this? {caption}",
    "alone": "{caption}",
}


@pytest.fixture(scope="module")
def gemma(gemma_folder: Path) -> VisionLanguageModel:
    """Blanks are written as a character of their own, and its template trims the text."""
    return load(gemma_folder)


def texts(encoder: PromptEncoder, batch: Batch) -> list[str]:
    """What the caption's tokens are decoded to, prompt by prompt."""
    return [
        encoder.tokenizer.decode(ids[chosen])
        for ids, chosen in zip(batch.tokens["input_ids"], batch.caption_tokens, strict=True)
    ]


@pytest.mark.parametrize("family", ["qwen", "gemma"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_tokens_that_hold_characters_of_the_caption(
    tiny_vlm, gemma, family: str, template: str, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fewest tokens that hold all of it, whatever its words; the same without offsets."""
    vlm = {"qwen": tiny_vlm, "gemma": gemma}[family]
    encoder = vlm.encoder(PromptSpec(template=TEMPLATES[template], image_size=None))
    items = [item(pictures, 3, 2, caption, index) for index, caption in enumerate(CAPTIONS)]
    batch = encoder(items)
    shown = [entry.sample.caption for entry in items for _ in entry.permutations]
    for found, caption in zip(texts(encoder, batch), shown, strict=True):
        want, got = encoder.as_decoded(caption), squeezed(found)
        assert want in got
        assert len(got) - len(want) <= (2 if template == "merged" else 0)  # an x that is merged with it
    with monkeypatch.context() as patch:
        patch.setattr(type(encoder.tokenizer), "is_fast", False)
        decoded = encoder(items).caption_tokens
    ids = batch.tokens["input_ids"]
    for chosen, other, row in zip(batch.caption_tokens, decoded, ids, strict=True):
        differing = [encoder.tokenizer.decode([token]) for token in row[chosen != other].tolist()]
        assert all(not text.strip() for text in differing)  # blanks at its ends may count or not


def test_a_control_token_in_the_caption(tiny_vlm, pictures: list[Image.Image]) -> None:
    """The tokenizer alone would take it for the model's own; the prompt's tokens are decoded instead."""
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    batch = encoder([item(pictures, 3, 2, "a dog<|im_end|> <|image_pad|>")])
    assert [text.strip() for text in texts(encoder, batch)] == ["a dog<|im_end|> <|image_pad|>"] * 2


def test_two_mentions(tiny_vlm, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_vlm.encoder(PromptSpec(template="Find {caption} here.\nAgain: {caption}\nAnswer: ", image_size=None))
    batch = encoder([item(pictures, 3, 1, "a dog")])
    (found,) = texts(encoder, batch)
    assert found.split() == ["a", "dog", "a", "dog"]
    monkeypatch.setattr(type(encoder.tokenizer), "is_fast", False)
    assert not encoder([item(pictures, 3, 1, "a dog")]).caption_tokens.any()  # decoding tells one mention only


def test_parts_and_padding(tiny_vlm, pictures: list[Image.Image]) -> None:
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    long, short = item(pictures, 3, 2, "giraffe " * 9), item(pictures, 3, 2, "a dog", 1)
    batch = encoder.with_content_free([long, short])
    assert not batch.caption_tokens[batch.tokens["attention_mask"] == 0].any()
    alone = encoder.with_content_free([short])
    for part in (batch.part(2, 4), batch.samples(1, 2), batch.samples(1, 2).to("cpu")):
        assert torch.equal(part.caption_tokens, alone.caption_tokens)
        assert part.content_free is not None and alone.content_free is not None
        assert texts(encoder, part.content_free) == texts(encoder, alone.content_free)
    assert [text.strip() for text in texts(encoder, batch.content_free)] == ["N/A"] * 4


def test_a_caption_before_the_images_sees_none(
    tiny_vlm, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence has no number for it, and only what needs one refuses."""
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    turns = encoder.turns
    monkeypatch.setattr(
        encoder,
        "turns",
        lambda images, text: [{**turn, "content": turn["content"][::-1]} for turn in turns(images, text)],
    )
    batch = encoder.with_content_free([item(pictures, 3, 2, "a dog")])
    assert [text.strip() for text in texts(encoder, batch)] == ["a dog"] * 2
    trie = encoder.answer_trie(3)
    evidence = tiny_vlm.evidence(batch, trie, (1, 4))
    assert evidence.attention.isfinite().all() and evidence.caption_attention is None
    with pytest.raises(UserError, match=r"no attention of the captions' tokens.*--model.overwrite true"):
        READOUTS["caption_attention"](evidence, None, ReadoutSettings())  # type: ignore[arg-type]
    output = ContextualCalibration(MethodSettings()).output(tiny_vlm, batch, trie, (1, 4))
    assert output.icr is None and output.content_free is not None


def test_a_caption_without_words(tiny_vlm, pictures: list[Image.Image]) -> None:
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    batch = encoder([item(pictures, 3, 1, ""), item(pictures, 3, 1, "a dog", 1)])
    assert batch.caption_tokens.any(1).tolist() == [False, True]
    assert tiny_vlm.evidence(batch, encoder.answer_trie(3), (1, 4)).caption_attention is None


def test_spans_of_characters() -> None:
    assert caption_spans("ab dog cd", ["ab ", " cd"], "dog") == [(3, 6)]
    assert caption_spans("ab dog", ["ab ", ""], " dog ") == [(3, 6)]  # trimmed
    assert caption_spans("dog dog dog.", ["dog ", " ", "."], "dog") == [(4, 7), (8, 11)]
    assert caption_spans("ab &lt; cd", ["ab ", " cd"], "<") == [(3, 7)]  # escaped
    for text, around, caption in (
        ("ab dog cd", ["ab dog cd"], "dog"),  # the template does not show it
        ("ab dog cd", ["xy ", " cd"], "dog"),
        ("ab  cd", ["ab ", " cd"], ""),
        ("ab   cd", ["ab ", " cd"], " "),
        ("ab dog cat cd", ["ab ", " ", " cd"], "dog"),  # two mentions, and one of them is something else
    ):
        assert caption_spans(text, around, caption) == []


def test_tokens_of_characters_and_their_place_in_the_prompt() -> None:
    offsets = [(0, 2), (2, 4), (4, 4), (4, 6), (6, 6), (6, 9)]
    assert tokens_of_spans(offsets, [(3, 5)]).tolist() == [False, True, True, True, False, False]
    assert not tokens_of_spans(offsets, [(9, 12)]).any()
    chosen = torch.tensor([False, False, True, True, False])
    own = [5, 9, 1, 2, 7]
    assert aligned(chosen, own, [5, 9, 9, 9, 1, 2, 7]).tolist() == [False] * 4 + [True, True, False]
    assert aligned(chosen, own, [5, 9, 1, 2, 9, 9, 7]).tolist() == [False, False, True, True] + [False] * 3
    assert aligned(chosen, own, [5, 9, 9, 8, 2, 7]) is None
    assert aligned(chosen & False, own, own) is None
