"""The adapter against plain transformers: eager maps, one prompt at a time, pixels in, a full forward per prefix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import item
from torch import Tensor
from transformers import AutoModelForImageTextToText

from lad_pl import PromptSpec, VisionLanguageModel, VLMSpec
from lad_pl.types import PermutedSample

LAYERS = (1, 3, 5)


@pytest.fixture(scope="module")
def eager_model(tiny_folder: Path):
    return AutoModelForImageTextToText.from_pretrained(tiny_folder, dtype=torch.float32, attn_implementation="eager")


def plain_inputs(vlm: VisionLanguageModel, entry: PermutedSample, permutation: tuple[int, ...]):
    """What a user of transformers would feed for one permutation: all images processed anew, in this order."""
    text = PromptSpec().text(entry.sample.caption, len(permutation))
    turn = {"role": "user", "content": [*[{"type": "image"}] * len(permutation), {"type": "text", "text": text}]}
    prompt = vlm.processor.apply_chat_template([turn], add_generation_prompt=True)
    images = [entry.images[p] for p in permutation]
    return vlm.processor(text=[prompt], images=images, return_tensors="pt")


def plain_spans(vlm: VisionLanguageModel, input_ids: Tensor, rule: str) -> list[list[int]]:
    """Walk over the tokens: an image opens at vision_start and closes at vision_end."""
    spans, opened = [], -1
    for place, token in enumerate(input_ids.tolist()):
        if token == vlm.model.config.vision_start_token_id:
            opened = place
        elif token == vlm.model.config.vision_end_token_id:
            spans.append(list(range(opened, place + 1) if rule == "delimiters" else range(opened + 1, place)))
    return spans


@pytest.mark.parametrize("rule", ["delimiters", "visual"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_evidence_equals_plain_eager_forwards(
    tiny_folder: Path, eager_model, pictures: list[Image.Image], backend: str, rule: str
) -> None:
    """Images of different size, captions of different length (so padding), features computed once per image."""
    vlm = VisionLanguageModel.load(VLMSpec(str(tiny_folder), dtype="float32", attn_implementation=backend))
    encoder = vlm.encoder(PromptSpec(image_size=None, spans=rule))
    entries = [item(pictures, 4, 3), item(pictures[4:], 4, 3, "Two giraffes in a room, with people looking.", 1)]
    batch = encoder(entries)
    assert (batch.tokens["attention_mask"] == 0).any()
    evidence = vlm.evidence(batch, encoder.answer_trie(4), LAYERS)
    digits = [vlm.processor.tokenizer.convert_tokens_to_ids(str(number)) for number in range(1, 5)]
    row = 0
    for entry in entries:
        for permutation in entry.permutations:
            inputs = plain_inputs(vlm, entry, permutation)
            kept = batch.tokens["attention_mask"][row].bool()
            assert batch.tokens["input_ids"][row][kept].tolist() == inputs["input_ids"][0].tolist()
            spans = plain_spans(vlm, inputs["input_ids"][0], rule)
            positions = batch.position_of_token[row][kept]
            assert [positions.eq(p).nonzero().flatten().tolist() for p in range(4)] == spans
            with torch.no_grad():
                output = eager_model(**inputs, output_attentions=True)
            expected = output.logits[0, -1, digits].log_softmax(-1)
            torch.testing.assert_close(evidence.log_probs[row], expected, atol=1e-5, rtol=0)
            for place, layer in enumerate(LAYERS):
                last = output.attentions[layer][0, :, -1]
                masses = torch.stack([last[:, span].sum(-1) for span in spans], -1)
                torch.testing.assert_close(evidence.attention[row, place], masses, atol=1e-6, rtol=0)
            assert batch.targets[row] == permutation.index(3)
            row += 1


@pytest.mark.parametrize(
    ("style", "n"),
    [("digits", 12), ("digits", 26), ("upper", 26), ("lower", 4), ("roman", 8), ("roman", 26), ("words", 26)],
)
def test_candidates_of_several_tokens_equal_full_forwards(
    tiny_vlm: VisionLanguageModel, pictures: list[Image.Image], style: str, n: int
) -> None:
    """Continuations share the prompt's cache; a full forward of prompt + prefix must give the same."""
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None, identifiers=style))
    trie = encoder.answer_trie(n)
    entries = [item(pictures, n, 2), item(pictures[::-1], n, 2, "Two giraffes in a room, with people looking.", 1)]
    got = tiny_vlm.evidence(encoder(entries), trie, LAYERS).log_probs
    if style in ("digits", "roman", "words"):
        assert trie.needs_continuation
    row = 0
    for entry in entries:
        for permutation in entry.permutations:

            def next_logits(prefix: tuple[int, ...], entry=entry, permutation=permutation) -> Tensor:
                content = [{"type": "image", "image": entry.images[p]} for p in permutation]
                text = encoder.prompt.text(entry.sample.caption, n)
                turn = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
                inputs = dict(
                    tiny_vlm.processor.apply_chat_template(
                        [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
                    )
                )
                more = torch.tensor([prefix], dtype=torch.long).reshape(1, -1)
                inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
                for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
                    inputs[name] = torch.cat([inputs[name], torch.full_like(more, value)], 1)
                with torch.no_grad():
                    return tiny_vlm.model(**inputs).logits[:, -1]

            torch.testing.assert_close(got[row], trie.log_probs(next_logits)[0], atol=1e-4, rtol=0)
            row += 1


def test_the_batch_does_not_matter(tiny_vlm: VisionLanguageModel, pictures: list[Image.Image]) -> None:
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    trie = encoder.answer_trie(4)
    entries = [item(pictures[2 * i :], 4, 2, "giraffe " * (1 + 5 * i), i) for i in range(3)]
    together = tiny_vlm.evidence(encoder(entries), trie, LAYERS)
    for i, entry in enumerate(entries):
        alone = tiny_vlm.evidence(encoder([entry]), trie, LAYERS)
        torch.testing.assert_close(together.log_probs[2 * i : 2 * i + 2], alone.log_probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.attention[2 * i : 2 * i + 2], alone.attention, atol=1e-6, rtol=0)


def test_images_are_encoded_once(tiny_vlm: VisionLanguageModel, pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    seen = []
    handle = tiny_vlm.model.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    tiny_vlm.evidence(encoder([item(pictures, 4, 5)]), encoder.answer_trie(4), LAYERS)
    handle.remove()
    assert seen == [4]  # 4 distinct images, though 5 prompts show 20


@pytest.mark.parametrize(("side", "times"), [(84, 2), (None, 6)])
def test_positions_are_made_once_for_prompts_that_are_alike(
    tiny_vlm: VisionLanguageModel, pictures, monkeypatch: pytest.MonkeyPatch, side: int | None, times: int
) -> None:
    """Two samples under three orders of images of one size, or of several; every prompt has transformers' positions."""
    made, calls = tiny_vlm.model._prepare_position_ids_for_generation, []
    monkeypatch.setattr(
        tiny_vlm.model, "_prepare_position_ids_for_generation", lambda *given: calls.append(given) or made(*given)
    )
    shown = [picture.resize((side, side)) if side else picture for picture in pictures[:4]]
    entries = [item(shown, 4, 3), item(shown, 4, 3, "Two giraffes in a room, with people looking.", 1)]
    batch = tiny_vlm.encoder(PromptSpec(image_size=None))(entries)
    positions = tiny_vlm._position_ids(batch)
    assert len(calls) == times
    prompts = [plain_inputs(tiny_vlm, entry, permutation) for entry in entries for permutation in entry.permutations]
    for row, prompt in enumerate(prompts):
        expected, _ = tiny_vlm.model.model.get_rope_index(**{k: v for k, v in prompt.items() if k != "pixel_values"})
        kept = batch.tokens["attention_mask"][row].bool()
        assert torch.equal(positions[1:, row, kept], expected[:, 0])  # the first axis counts the tokens of the text


def test_fingerprint_knows_the_weights_not_the_dtype(tiny_vlm: VisionLanguageModel, tiny_folder: Path) -> None:
    half = VisionLanguageModel.load(VLMSpec(str(tiny_folder), dtype="bfloat16"))
    assert half.fingerprint() == tiny_vlm.fingerprint()
    half.model.lm_head.weight.data[0, 0] += 1
    assert half.fingerprint() != tiny_vlm.fingerprint()
