"""Loading: options, placements, precisions, and folders that cannot be loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import item
from transformers import AutoModelForImageTextToText

from lad_pl import PromptSpec, UserError, VisionLanguageModel, VLMSpec

LAYERS = (1, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nobody/no-such-model"}, r"nobody/no-such-model.*--model\.vlm\.path path/to/folder"),
        ({"dtype": "float23"}, "vlm.dtype is 'float23'"),
        ({"attn_implementation": "telepathy"}, "telepathy"),
    ],
)
def test_models_that_cannot_be_loaded(tiny_folder: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VisionLanguageModel.load(replace(VLMSpec(str(tiny_folder)), **change))


def test_every_option_reaches_from_pretrained(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(path: str, **options: Any) -> None:
        seen.update(path=path, **options)
        raise OSError("enough")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", record)
    wanted: dict[str, Any] = {
        "dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "revision": "v1.0",
        "device_map": "auto",
        "local_files_only": True,
        "trust_remote_code": True,
    }
    extra = {"max_memory": {0: "20GiB", "cpu": "60GiB"}, "quantization_config": {"quant_method": "quanto"}}
    with pytest.raises(UserError, match="enough"):
        VLMSpec("somebody/model", **wanted, options=extra).load_model()
    assert seen.items() >= ({"path": "somebody/model", "use_safetensors": True} | wanted | extra).items()


@pytest.mark.parametrize(
    "placement",
    [
        {"device_map": "auto"},
        {"device_map": {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "cpu"}},
        {"device_map": "auto", "options": {"max_memory": {"cpu": "400KB"}}},
    ],
    ids=["auto", "language model on disk", "little memory"],
)
def test_a_model_spread_by_accelerate(
    tiny_folder: Path, tiny_vlm: VisionLanguageModel, pictures, tmp_path: Path, placement: dict[str, Any]
) -> None:
    options = {"offload_folder": str(tmp_path), **placement.get("options", {})}
    spread = VisionLanguageModel.load(
        VLMSpec(str(tiny_folder), dtype="float32", device_map=placement["device_map"], options=options)
    )
    encoder = tiny_vlm.encoder(PromptSpec(image_size=None))
    trie, batch = encoder.answer_trie(12), encoder([item(pictures, 12, 2)])
    expected = tiny_vlm.evidence(batch, trie, LAYERS)
    got = spread.to(torch.device("cpu")).evidence(batch, trie, LAYERS)
    torch.testing.assert_close(got.log_probs, expected.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.attention, expected.attention, atol=1e-6, rtol=0)
    assert spread.fingerprint() == tiny_vlm.fingerprint()


def test_a_quantised_model(tiny_folder: Path, tiny_vlm: VisionLanguageModel, pictures) -> None:
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    eight_bit = VLMSpec(
        str(tiny_folder), "float32", options={"quantization_config": {"quant_method": "quanto", "weights": "int8"}}
    )
    vlm = VisionLanguageModel.load(eight_bit).to(torch.device("cpu"))
    encoder = vlm.encoder(PromptSpec(image_size=None))
    trie, batch = encoder.answer_trie(4), encoder([item(pictures, 4, 4)])
    exact, rounded = (model.evidence(batch, trie, LAYERS) for model in (tiny_vlm, vlm))
    difference = (exact.attention - rounded.attention).abs().max()
    assert 0 < difference < 0.1
    assert vlm.fingerprint() != tiny_vlm.fingerprint()


def test_weights_with_a_hole_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tiny_folder / "model.safetensors")
    dropped = next(name for name in tensors if name.endswith("layers.3.self_attn.q_proj.weight"))
    save_file({name: value for name, value in tensors.items() if name != dropped}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lack 1 tensors"):
        VLMSpec(str(tmp_path)).load_model()


def test_an_incomplete_folder(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    with pytest.raises(UserError, match="copy the model's whole repository"):
        VisionLanguageModel.load(VLMSpec(str(tmp_path)))
