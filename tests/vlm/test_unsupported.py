"""Families that cannot be read are refused in one line: every reason that the README gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_idefics2
import torch
from families import UNSUPPORTED, internvl
from subject import Subject
from tiny_vlm import noise_image
from transformers import MllamaConfig, MllamaForConditionalGeneration

from lad_pl import PromptSpec, UserError, VisionLanguageModel, VLMSpec
from lad_pl.vlm.layers import DecoderLayers


def test_mllama_takes_no_image_features(tiny_vlm: VisionLanguageModel) -> None:
    assert "mllama" in UNSUPPORTED
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = MllamaConfig(
        text_config={**shape, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99, "pad_token_id": 0},
        vision_config={
            **shape,
            "attention_heads": 4,
            "num_global_layers": 1,
            "image_size": 28,
            "vision_output_dim": 64,
        },
    )
    with pytest.raises(UserError, match="MllamaForConditionalGeneration takes no precomputed image features"):
        VisionLanguageModel(MllamaForConditionalGeneration(config), tiny_vlm.processor)


def test_phi4_multimodal_is_no_image_text_to_text_model(tmp_path: Path) -> None:
    assert "phi4_multimodal" in UNSUPPORTED
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi4_multimodal"}))
    with pytest.raises(
        UserError, match="a Phi4MultimodalConfig, which transformers does not read as a model of images"
    ):
        VLMSpec(str(tmp_path)).load_model()


def test_idefics2_does_not_say_what_it_writes(tmp_path: Path) -> None:
    assert "idefics2" in UNSUPPORTED
    vlm = VisionLanguageModel.load(VLMSpec(str(tiny_idefics2.build(tmp_path / "model")), dtype="float32"))
    generator = np.random.default_rng(0)
    pictures = [noise_image(generator, (60, 90)) for _ in range(4)]
    entry = Subject(internvl.FAMILY, tmp_path, pictures).entry(4, 1)
    with pytest.raises(UserError, match="Sample 0: the processor announces 0 visual tokens for 0 images"):
        vlm.encoder(PromptSpec(image_size=None))([entry])


def test_attention_of_a_models_own(tiny_vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that does not go through transformers' table of backends cannot be read there."""
    own = DecoderLayers((torch.nn.Identity(),), ("full_attention",))
    monkeypatch.setattr(DecoderLayers, "of", classmethod(lambda cls, model: own))
    with pytest.raises(UserError, match=r"in a way of its own under 'sdpa'; set vlm\.attn_implementation to eager"):
        VisionLanguageModel(tiny_vlm.model, tiny_vlm.processor)
