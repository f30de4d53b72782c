"""Which layers a choice names, and which have attention to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import mistral3, qwen3_5
from tiny_models import edited, load

from lad_pl import UserError, VisionLanguageModel
from lad_pl.vlm.layers import DecoderLayers


def test_a_layer_beyond_the_model(tiny_vlm: VisionLanguageModel) -> None:
    with pytest.raises(UserError, match="names layer 6, but the model has layers 0 to 5"):
        tiny_vlm.layers.choose([3, 6])


@pytest.mark.parametrize(
    ("choice", "layers"), [([0, 4], (0, 4)), ("2-4", (2, 3, 4)), (0.58, (3, 4, 5)), (0.0, (0, 1, 2, 3, 4, 5))]
)
def test_layer_choices(tiny_vlm: VisionLanguageModel, choice, layers: tuple[int, ...]) -> None:
    assert tiny_vlm.layers.choose(choice) == layers


def test_the_default_is_the_published_layers_at_the_published_depth(tiny_vlm: VisionLanguageModel) -> None:
    deep = DecoderLayers(tiny_vlm.layers.attention * 6, tiny_vlm.layers.kinds * 6)
    assert deep.choose(0.58) == tuple(range(21, 36))


@pytest.mark.parametrize("choice", ["last", "3-", [], [1, 1], 1.5, "3-1", 0, 3])
def test_layer_choices_that_cannot_be_read(tiny_vlm: VisionLanguageModel, choice) -> None:
    with pytest.raises(UserError, match=r"model\.layers"):
        tiny_vlm.layers.choose(choice)


def test_a_window_that_the_config_does_not_tell_layer_by_layer(tmp_path: Path) -> None:
    folder = mistral3.FAMILY.build(tmp_path / "full")
    assert load(folder).layers.choose(0.0) == (0, 1, 2, 3)
    windowed = edited(folder, tmp_path / "windowed", lambda config: config["text_config"].update(sliding_window=16))
    with pytest.raises(UserError, match="None of the layers 0 to 3 has full attention"):
        load(windowed).layers.choose(0.0)


def test_layers_without_attention(tmp_path: Path) -> None:
    vlm = load(qwen3_5.FAMILY.build(tmp_path / "hybrid"))
    full = [layer for layer, kind in enumerate(vlm.layers.kinds) if kind == "full_attention"]
    assert vlm.layers.choose(0.0) == tuple(full)
    assert 0 not in full
    with pytest.raises(UserError, match=r"model\.layers names layer 0, which see no image: .*recurrent"):
        vlm.layers.choose([0, full[0]])
    with pytest.raises(UserError, match="has full attention; name the layers"):
        type(vlm.layers)(vlm.layers.attention[:1], vlm.layers.kinds[:1]).choose(0.0)
