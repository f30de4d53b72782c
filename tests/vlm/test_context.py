"""Prompts that are longer than the model's context."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image
from tiny_models import item
from transformers import Qwen2_5_VLConfig

from lad_pl import PromptSpec, UserError, VisionLanguageModel
from lad_pl.vlm.context import context_length
from lad_pl.vlm.generation import Decoding, generate


def test_a_prompt_longer_than_the_context_names_sample_and_lengths(
    tiny_vlm: VisionLanguageModel, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    trie = encoder.answer_trie(4)
    entries = [item(pictures, 4, 1), item(pictures, 4, 1, "giraffe " * 9, 1)]
    batch, free = encoder(entries), encoder.with_content_free(entries)
    longest = int(batch.tokens["attention_mask"].sum(1).max())
    text_config = tiny_vlm.model.config.get_text_config()
    monkeypatch.setattr(text_config, "max_position_embeddings", longest)
    assert tiny_vlm.evidence(batch, trie, [1]).is_finite().all()
    with pytest.raises(UserError, match=rf"Sample 1: .* of 4 images has {longest} tokens and up to 8 of the answer"):
        generate(tiny_vlm, batch, Decoding(8))
    monkeypatch.setattr(text_config, "max_position_embeddings", longest - 1)
    for fails in (
        lambda: tiny_vlm.evidence(batch, trie, [1]),
        lambda: tiny_vlm.evidence_with_content_free(free, trie, [1]),
    ):
        with pytest.raises(UserError, match=rf"Sample 1: .* has {longest} tokens, but .* positions for {longest - 1};"):
            fails()


def test_the_context_of_a_configuration() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e4}
    for text, expected in (
        ({"max_position_embeddings": 2048}, 2048),
        ({"max_position_embeddings": 1024, "rope_parameters": yarn}, 4096),
        ({"max_position_embeddings": 4096, "rope_parameters": yarn}, 4096),
    ):
        assert context_length(Qwen2_5_VLConfig(text_config=text)) == expected
    text = SimpleNamespace(max_position_embeddings=None)
    assert context_length(SimpleNamespace(get_text_config=lambda decoder: text)) is None
