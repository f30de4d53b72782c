"""Attention mass: hooks, backends, windows, and layers that do not see everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import gemma3, gemma4
from PIL import Image
from subject import CAPTIONS, Subject
from tiny_models import edited, item, load
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lad_pl import PromptSpec, UserError, VisionLanguageModel, VLMSpec
from lad_pl.vlm.attention import CaptionQueries
from lad_pl.vlm.capture import AttentionMass, capture

LAYERS = (1, 3, 5)


def hooks(vlm: VisionLanguageModel) -> int:
    return sum(len(module._forward_hooks) for module in vlm.model.modules())


def test_no_hook_is_left(tiny_vlm: VisionLanguageModel, pictures: list[Image.Image], monkeypatch) -> None:
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    trie, batch = encoder.answer_trie(4), encoder([item(pictures, 4, 1)])
    before, functions = hooks(tiny_vlm), dict(ALL_ATTENTION_FUNCTIONS)
    tiny_vlm.evidence(batch, trie, LAYERS)
    assert hooks(tiny_vlm) == before
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions

    def fail(*args: object, **kwargs: object) -> None:
        assert hooks(tiny_vlm) == before + len(LAYERS)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tiny_vlm.model.lm_head, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        tiny_vlm.evidence(batch, trie, LAYERS)
    assert hooks(tiny_vlm) == before
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions


def test_a_layer_that_yields_nothing_is_an_error(tiny_vlm: VisionLanguageModel) -> None:
    spans = torch.zeros(1, 3, dtype=torch.long)
    with (
        capture(tiny_vlm.layers.attention, [2], spans, 1, "sdpa") as mass,
        pytest.raises(UserError, match="Layer 2 yielded no attention"),
    ):
        mass.stacked()


def test_flash_attention_by_name(tiny_vlm: VisionLanguageModel, pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with flash attention's contract (2-D mask or none, no weights) is read like the real one."""

    def flash(module, query, key, value, attention_mask, scaling=None, **options):
        assert attention_mask is None or attention_mask.ndim == 2
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        if attention_mask is not None:
            causal = causal & attention_mask[:, None, None].bool()
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, causal, scale=scaling)
        return output.nan_to_num().transpose(1, 2), None

    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    trie = encoder.answer_trie(4)
    batch = encoder([item(pictures, 4, 2), item(pictures, 4, 2, "giraffe " * 9, 1)])
    expected = tiny_vlm.evidence(batch, trie, LAYERS)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash)
    text_config = tiny_vlm.model.config.get_text_config()
    monkeypatch.setattr(text_config, "_attn_implementation_internal", "flash_attention_2")
    monkeypatch.setattr(tiny_vlm, "backend", "flash_attention_2")
    got = tiny_vlm.evidence(batch, trie, LAYERS)
    torch.testing.assert_close(got.log_probs, expected.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.attention, expected.attention, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.caption_attention, expected.caption_attention, atol=1e-6, rtol=0)
    # Alone and without padding there is no mask at all, and a token sees those before it all the same.
    alone = tiny_vlm.evidence(batch.part(2, 4), trie, LAYERS)
    torch.testing.assert_close(alone.caption_attention, expected.caption_attention[2:], atol=1e-5, rtol=0)


def test_keys_that_a_cache_has_dropped_count_as_unseen() -> None:
    """Image 0 in tokens 0-1, image 1 in 2-3, and only the last three of five keys are left."""
    spans = torch.tensor([[[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]]]).float()
    weights = torch.tensor([0.25, 0.25, 0.5]).reshape(1, 1, 1, 3)
    mass = AttentionMass([0], spans)
    mass.add(0, weights, None)
    with pytest.raises(UserError, match="does not see the whole of image 1:"):
        mass.stacked()
    mass = AttentionMass([0], spans[:, :, 1:])
    mass.add(0, weights, None)
    assert mass.stacked().tolist() == [[[[0.5]]]]


def test_keys_outside_a_window_count_as_unseen() -> None:
    """Flash attention is given no mask, but the window: of five keys, the last three are in it."""
    spans = torch.tensor([[[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]]]).float()
    weights = torch.tensor([0.0, 0.0, 0.25, 0.25, 0.5]).reshape(1, 1, 1, 5)
    mass = AttentionMass([0], spans)
    mass.add(0, weights, None, window=3)
    with pytest.raises(UserError, match="does not see the whole of image 1:"):
        mass.stacked()
    mass.add(0, weights, None, window=5)
    assert mass.stacked().tolist() == [[[[0.0, 0.5]]]]


def test_a_peaked_layer_sees_all_images(
    tiny_vlm: VisionLanguageModel, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights round to zero on most keys, which is no window; batch size and backend make no difference."""
    query = tiny_vlm.layers.attention[3].q_proj.weight
    monkeypatch.setattr(query, "data", query.data * 300)
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    trie, entries = encoder.answer_trie(4), [item(pictures, 4, 1, "giraffe " * count) for count in (1, 4)]
    alone = [tiny_vlm.evidence(encoder([entry]), trie, LAYERS) for entry in entries]
    assert (alone[0].attention == 0).any()
    together = tiny_vlm.evidence(encoder(entries), trie, LAYERS)
    for name in ("attention", "caption_attention"):
        joined = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(joined, getattr(together, name), atol=1e-5, rtol=0)
    monkeypatch.setattr(tiny_vlm.model.config.get_text_config(), "_attn_implementation_internal", "eager")
    monkeypatch.setattr(tiny_vlm, "backend", "eager")
    eager = tiny_vlm.evidence(encoder(entries), trie, LAYERS)
    torch.testing.assert_close(eager.attention, together.attention, atol=1e-5, rtol=0)
    torch.testing.assert_close(eager.caption_attention, together.caption_attention, atol=1e-5, rtol=0)


def test_a_caption_that_an_image_follows() -> None:
    """Image 0 in tokens 0-1, the caption in 1-2, image 1 in 3-4: no number is better than one of half an image."""
    spans = torch.tensor([[[1, 0], [1, 0], [0, 0], [0, 1], [0, 1], [0, 0]]]).float()
    marks = torch.tensor([[False, True, True, False, False, False]])
    weights = torch.ones(6, 6).tril()[None, None]
    weights = weights / weights.sum(-1, keepdim=True)
    for images, mask, want in (
        (slice(0, 1), None, None),  # token 1 sees token 0 and itself, token 2 both as well
        (slice(0, 1), torch.ones(6, 6, dtype=torch.bool).tril()[None, None], None),
        (slice(0, 2), None, "unseen"),
        (slice(0, 2), torch.ones(6, 6, dtype=torch.bool).tril()[None, None], "unseen"),
        (slice(0, 2), torch.ones(1, 1, 6, 6, dtype=torch.bool), None),
    ):
        mass = AttentionMass([3], spans[..., images], CaptionQueries.of(marks))
        mass.add(3, weights, mask)
        mass.stacked()
        found, on_tokens = mass.of_captions(), mass.of_captions_on_tokens()
        assert (found is None) == (on_tokens is None) == (want == "unseen")
        if found is not None and on_tokens is not None:
            mean = weights[0, 0, 1:3].mean(0)
            torch.testing.assert_close(on_tokens, mean[None])
            torch.testing.assert_close(found[0, 0], (mean @ spans[0, :, images])[None])


def test_queries_that_a_layer_does_not_compute_have_no_rows() -> None:
    spans = torch.tensor([[[1], [0], [0], [0]]]).float()
    mass = AttentionMass([0], spans, CaptionQueries.of(torch.tensor([[False, True, False, False]])))
    mass.add(0, torch.full((1, 2, 1, 4), 0.25), None)
    assert mass.stacked().shape == (1, 1, 2, 1)
    assert mass.of_captions() is mass.of_captions_on_tokens() is None


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_window_that_hides_an_image(
    gemma_folder: Path, tmp_path: Path, pictures: list[Image.Image], backend: str
) -> None:
    short = edited(gemma_folder, tmp_path / "short", lambda config: config["text_config"].update(sliding_window=16))
    vlm = load(short, backend)
    encoder = vlm.encoder(PromptSpec(image_size=None))
    entries = [Subject(gemma3.FAMILY, short, pictures).entry(12, 2, number) for number in range(len(CAPTIONS))]
    trie, batch = encoder.answer_trie(12), encoder(entries)
    with pytest.raises(UserError, match=r"Layer 0 does not see the whole of image 1: .*Leave out layers 0, 1, 3, 4"):
        vlm.evidence(batch, trie, [0, 1, 2, 3, 4, 5])
    assert vlm.layers.choose(0.0) == (2, 5)
    # The window's cache is rolled back after each continuation, which must leave no trace.
    together = vlm.evidence(batch, trie, [2, 5])
    again = trie.log_probs(lambda prefix: uncached(vlm, batch, prefix))
    torch.testing.assert_close(together.log_probs, again, atol=1e-4, rtol=0)


def uncached(vlm: VisionLanguageModel, batch, prefix: tuple[int, ...]) -> torch.Tensor:
    inputs = vlm.inputs(batch)
    more = torch.tensor([prefix] * len(batch), dtype=torch.long).reshape(len(batch), -1)
    for name, value in batch.tokens.items():
        fill = {"input_ids": more, "attention_mask": torch.ones_like(more)}.get(name, torch.zeros_like(more))
        inputs[name] = torch.cat([value, fill], 1)
    last = inputs["position_ids"][..., -1:]
    inputs["position_ids"] = torch.cat([inputs["position_ids"], last + torch.arange(1, len(prefix) + 1)], -1)
    with torch.no_grad():
        return vlm.model(**inputs).logits[:, -1]


def test_an_image_cut_by_the_window_is_an_error_too(
    gemma_folder: Path, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    """Hiding one token of one image is enough: its mass would be too small without anybody noticing."""
    vlm = load(gemma_folder)
    encoder = vlm.encoder(PromptSpec(image_size=None, spans="visual"))
    entry = Subject(gemma3.FAMILY, gemma_folder, pictures).entry(4, 1)
    batch = encoder([entry])
    length = batch.tokens["input_ids"].shape[1]
    first = int((batch.position_of_token[0] == 0).nonzero()[0])
    for visible, hidden in ((length - first, False), (length - first - 1, True)):
        folder = edited(
            gemma_folder,
            tmp_path / str(visible),
            lambda config, window=visible: config["text_config"].update(sliding_window=window),
        )
        model = load(folder)
        if hidden:
            with pytest.raises(UserError, match="Layer 0 does not see the whole of image 1"):
                model.evidence(batch, encoder.answer_trie(4), [0])
        else:
            model.evidence(batch, encoder.answer_trie(4), [0])


def test_half_precision_hides_nothing(tmp_path: Path, pictures: list[Image.Image]) -> None:
    """Eager attention in float16 rounds small weights to zero; what the mask shows is seen all the same."""
    folder = gemma4.FAMILY.build(tmp_path / "model")
    vlm = VisionLanguageModel.load(VLMSpec(str(folder), dtype="float16", attn_implementation="eager"))
    encoder = vlm.encoder(PromptSpec(image_size=None))
    entry = Subject(gemma4.FAMILY, folder, pictures).entry(4, 2)
    evidence = vlm.evidence(encoder([entry]), encoder.answer_trie(4), vlm.layers.choose(0.0))
    assert torch.isfinite(evidence.log_probs).all()
