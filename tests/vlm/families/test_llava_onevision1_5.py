"""LLaVA-OneVision-1.5: the published model's numbers, and what transformers expects of a model."""

from __future__ import annotations

import builtins
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import infer_auto_device_map
from paths import SHARED
from safetensors.torch import load_file
from tiny_llava_onevision1_5 import build_tiny_llava_onevision1_5
from tiny_vlm import noise_image
from torch import Tensor
from torch.nn.functional import gelu, layer_norm
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    Qwen2_5_VLProcessor,
    Qwen3Model,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lad_pl.vlm.families.llava_onevision1_5 import (
    LLaVAOneVision1_5_ForConditionalGeneration,
    LLaVAOneVision1_5Config,
    LLaVAOneVision1_5TextConfig,
    register,
)

GOLDEN = SHARED / "golden" / "llava_ov15"
SIZES = ((84, 84), (56, 112), (112, 56))  # width, height
register()


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **options).eval()


def encode(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output


def encode_one_by_one(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    grids = inputs["image_grid_thw"]
    patches = inputs["pixel_values"].split(grids.prod(-1).tolist())
    pairs = zip(patches, grids, strict=True)
    return tuple(encode(model, {"pixel_values": p, "image_grid_thw": g[None]})[0] for p, g in pairs)


def run(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def ask(processor: Any, *groups: int) -> dict[str, Tensor]:
    """One prompt per group, with so many images of different sizes; padded on the left."""
    generator = np.random.default_rng(3)
    images = [[noise_image(generator, SIZES[number % len(SIZES)]) for number in range(count)] for count in groups]
    texts = ["Caption: A dog lies on the grass.\nAnswer: ", "Which image?", "Answer: "]
    chats = [
        [{"role": "user", "content": [{"type": "image"}] * count + [{"type": "text", "text": text}]}]
        for count, text in zip(groups, texts, strict=False)
    ]
    prompts = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return dict(processor(text=prompts, images=images, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, Tensor]]:
    if not GOLDEN.is_dir():
        pytest.skip("the published code's results (../shared/golden/llava_ov15) are not here")
    return {name: load_file(GOLDEN / f"{name}.safetensors") for name in ("inputs", "expected", "model")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava_onevision1_5(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def inputs(processor: Any) -> dict[str, Tensor]:
    return ask(processor, 3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_published_models_numbers(golden: Any, attention: str) -> None:
    model = load(GOLDEN, attn_implementation=attention)
    inputs, expected = golden["inputs"], golden["expected"]
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(torch.cat(encode(model, inputs)), expected["image_features"], **close)
    torch.testing.assert_close(torch.cat(encode_one_by_one(model, inputs)), expected["image_features"], **close)
    torch.testing.assert_close(run(model, **inputs), expected["logits"], **close)
    if attention == "eager":
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
        torch.testing.assert_close(
            torch.stack([layer[0, :, -1] for layer in attentions]), expected["last_row_attention"], **close
        )


def test_published_names_load_and_come_back(golden: Any, tmp_path: Path) -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(GOLDEN, output_loading_info=True)
    assert not any(report.values())
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == golden["model"].keys()
    assert all(torch.equal(saved[name], golden["model"][name]) for name in saved)


def test_tiny_folder_has_the_published_names(folder: Path) -> None:
    names = set(load_file(folder / "model.safetensors"))
    linear = ("weight", "bias")
    block = [
        f"{part}.{kind}"
        for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for kind in linear
    ]
    visual = ["class_embedding", "class_pos_emb", "patch_embed.proj.weight"]
    visual += [
        f"{part}.{kind}" for part in ("pre_layernorm", "merger.ln_q", "merger.mlp.0", "merger.mlp.2") for kind in linear
    ]
    visual += [f"blocks.{number}.{name}" for number in range(2) for name in block]
    attention = [f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    layer = [*attention, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    text = ["embed_tokens", "norm", *(f"layers.{number}.{name}" for number in range(4) for name in layer)]
    assert names == {f"visual.{name}" for name in visual} | {f"model.{name}.weight" for name in text} | {
        "lm_head.weight"
    }


def test_tiny_folder_survives_a_round_trip(folder: Path, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


@pytest.mark.parametrize("trust_remote_code", [None, False])
def test_auto_classes_run_no_remote_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trust_remote_code: bool | None
) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("asked whether to run remote code")

    monkeypatch.setattr(builtins, "input", refuse)
    assert json.loads((folder / "config.json").read_text())["auto_map"]
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    assert isinstance(config, LLaVAOneVision1_5Config)
    model = load(folder, trust_remote_code=trust_remote_code)
    assert type(model) is LLaVAOneVision1_5_ForConditionalGeneration
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    assert type(processor) is Qwen2_5_VLProcessor


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "Qwen2VLImageProcessorFast"},
        {"image_processor_type": None, "processor_class": None},
        {
            "auto_map": {
                "AutoProcessor": "processing_llavaonevision1_5.Processor",
                "AutoImageProcessor": "image_processing_llavaonevision1_5.ImageProcessor",
            }
        },
    ],
    ids=["fast", "no classes named", "auto_map"],
)
def test_processor_files_of_other_makes(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    for path in folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "preprocessor_config.json"
    described = {name: value for name, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(described))
    template = (folder / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(processor) is Qwen2_5_VLProcessor
    assert processor.chat_template == template
    assert ask(processor, 1)["pixel_values"].shape == (36, 3 * 14 * 14)


def test_config_reads_both_styles_of_rope(folder: Path) -> None:
    text = AutoConfig.from_pretrained(folder).text_config
    assert isinstance(text, LLaVAOneVision1_5TextConfig)
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    new_style = LLaVAOneVision1_5Config(text_config={"rope_parameters": text.rope_parameters})
    assert new_style.text_config.rope_parameters == text.rope_parameters
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    scaled = LLaVAOneVision1_5Config(text_config={"rope_theta": 1e6, "rope_scaling": scaling}).text_config
    assert scaled.rope_parameters["rope_type"] == "yarn" and scaled.rope_parameters["rope_theta"] == 1e6


def test_the_text_model_says_whether_words_are_tied() -> None:
    assert not LLaVAOneVision1_5Config(tie_word_embeddings=True).tie_word_embeddings
    assert LLaVAOneVision1_5Config(text_config={"tie_word_embeddings": True}).tie_word_embeddings


def test_register_keeps_a_class_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    assert CONFIG_MAPPING["llavaonevision1_5"] is LLaVAOneVision1_5Config

    class Theirs(PreTrainedConfig):
        model_type = "llavaonevision1_5"

    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "llavaonevision1_5", Theirs)
    register()
    assert CONFIG_MAPPING["llavaonevision1_5"] is Theirs


def test_parts_are_where_transformers_looks(model: Any) -> None:
    assert type(model.get_decoder()) is Qwen3Model
    assert len(model.get_decoder().layers) == 4
    assert model.get_encoder("image") is model.model.visual
    assert model.get_input_embeddings() is model.model.language_model.embed_tokens
    assert model._no_split_modules == {"RiceViT", "Qwen3DecoderLayer"}


def test_a_new_model_is_initialised() -> None:
    text = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "text_hidden_size": 16}
    config = LLaVAOneVision1_5Config(text_config=text, vision_config=vision)
    with torch.random.fork_rng(devices=[]):
        visual = AutoModelForImageTextToText.from_config(config).model.visual
    for token in (visual.class_embedding, visual.class_pos_emb):
        assert 0 < token.abs().max() < 6 * visual.config.initializer_range


def test_processor_makes_the_towers_patches(inputs: dict[str, Tensor]) -> None:
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 6], [1, 8, 4], [1, 4, 8]]
    assert inputs["pixel_values"].shape == (36 + 32 + 32, 3 * 14 * 14)


def plain_tower(weights: dict[str, Tensor], patches: Tensor, rows: int, columns: int, heads: int) -> Tensor:
    """The tower on one image, written down step by step, from the published tensors."""
    weights = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}

    def linear(hidden: Tensor, name: str) -> Tensor:
        return hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(hidden: Tensor, name: str) -> Tensor:
        return layer_norm(hidden, hidden.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def rotate(vector: Tensor, angles: Tensor) -> Tensor:
        first, second = vector.chunk(2)
        return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])

    width = weights["class_embedding"].shape[0]
    size = width // heads
    places = [
        (row + down, column + right)
        for row in range(0, rows, 2)
        for column in range(0, columns, 2)
        for down in range(2)
        for right in range(2)
    ]
    rates = [10000.0 ** (-4 * number / size) for number in range(size // 4)]
    angles = [weights["class_pos_emb"][0]]
    angles += [
        torch.tensor([row * rate for rate in rates] + [column * rate for rate in rates]) for row, column in places
    ]
    embedded = patches @ weights["patch_embed.proj.weight"].reshape(width, -1).T
    hidden = norm(torch.cat([weights["class_embedding"][None], embedded]), "pre_layernorm")
    for block in range(2):
        queries, keys, values = linear(norm(hidden, f"blocks.{block}.norm1"), f"blocks.{block}.attn.qkv").chunk(3, -1)
        mixed = torch.zeros_like(hidden)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            turned = [
                torch.stack([rotate(vector, angle) for vector, angle in zip(side[:, part], angles, strict=True)])
                for side in (queries, keys)
            ]
            scores = turned[0] @ turned[1].T / math.sqrt(size)
            mixed[:, part] = scores.softmax(-1) @ values[:, part]
        hidden = hidden + linear(mixed, f"blocks.{block}.attn.proj")
        inner = gelu(linear(norm(hidden, f"blocks.{block}.norm2"), f"blocks.{block}.mlp.fc1"))
        hidden = hidden + linear(inner, f"blocks.{block}.mlp.fc2")
    groups = norm(hidden[1:], "merger.ln_q").reshape(len(patches) // 4, 4 * width)
    return linear(gelu(linear(groups, "merger.mlp.0")), "merger.mlp.2")


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_in_name"])
def test_tower_is_the_plain_tower_whatever_shares_the_call(
    folder: Path, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    model = load(folder)
    if attention == "flash_in_name":  # flash kernels are given all images at once, and where each begins
        monkeypatch.setitem(AttentionInterface._global_mapping, attention, varlen_attention)
    monkeypatch.setattr(model.model.visual.config, "_attn_implementation", attention)
    weights = load_file(folder / "model.safetensors")
    grids = inputs["image_grid_thw"]
    patches = inputs["pixel_values"].split(grids.prod(-1).tolist())
    joint, single = encode(model, inputs), encode_one_by_one(model, inputs)
    for image, (_, rows, columns) in enumerate(grids.tolist()):
        plain = plain_tower(weights, patches[image], rows, columns, heads=2)
        torch.testing.assert_close(joint[image], plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(joint[image], single[image], atol=1e-5, rtol=1e-5)


def varlen_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
    """What a flash kernel does with `cu_seq_lens_q`: a block-diagonal mask."""
    starts = options["cu_seq_lens_q"]
    assert options["max_length_q"] == int(starts.diff().max())
    image = torch.bucketize(torch.arange(query.shape[2]), starts[1:], right=True)
    mask = (image[:, None] == image[None, :])[None, None]
    return sdpa_attention_forward(module, query, key, value, mask, is_causal=False, scaling=options["scaling"])


def test_precomputed_features_stand_for_pixels(model: Any, inputs: dict[str, Tensor]) -> None:
    features = encode(model, inputs)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    precomputed = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    assert torch.equal(run(model, **rest, mm_encoder_outputs=precomputed), run(model, **inputs))
    swapped = {"image": BaseModelOutputWithPooling(pooler_output=(features[0], features[2], features[1]))}
    assert not torch.allclose(run(model, **rest, mm_encoder_outputs=swapped), run(model, **inputs), atol=1e-3)


def test_generation_is_repeated_forwards(model: Any, inputs: dict[str, Tensor]) -> None:
    calls = []
    with model.model.visual.register_forward_hook(lambda *_: calls.append(1)):
        generated = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=10**6)
    assert len(calls) == 1
    ids = inputs["input_ids"]
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    for _ in range(6):
        ids = torch.cat([ids, run(model, input_ids=ids, **images)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, ids)
    assert len(ids[0, -6:].unique()) > 1


def test_generation_from_precomputed_features_and_in_beams(model: Any, inputs: dict[str, Tensor]) -> None:
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 10**6}
    expected = model.generate(**inputs, **settings)
    rest = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    output = BaseModelOutputWithPooling(pooler_output=encode(model, inputs))
    assert torch.equal(model.generate(**rest, mm_encoder_outputs={"image": output}, **settings), expected)
    assert model.generate(**inputs, **settings, num_beams=2, num_return_sequences=2).shape == (2, expected.shape[1])


def test_cache_continues_the_prompt(model: Any, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        start = model(**inputs, use_cache=True, logits_to_keep=1)
        # An image token that the model itself wrote is a word like any other.
        ids = torch.tensor([[5, model.config.image_token_id]])
        continued = model(input_ids=ids, past_key_values=start.past_key_values)
    assert start.logits.shape[1] == 1
    assert continued.logits.shape[:2] == (1, 2)
    ids = torch.cat([inputs["input_ids"], ids[:, :1]], 1)
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    full = run(model, input_ids=ids, **images)
    torch.testing.assert_close(continued.logits[:, 0], full[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_batch_is_each_prompt_by_itself(folder: Path, processor: Any, attention: str) -> None:
    model = load(folder, attn_implementation=attention)
    batch = ask(processor, 3, 1, 2)
    mask = batch["attention_mask"].bool()
    assert not mask.all()
    positions = model._prepare_position_ids_for_generation(
        batch["input_ids"], {"attention_mask": batch["attention_mask"]}
    )
    logits = run(model, **batch, position_ids=positions)
    without_positions = run(model, **batch)
    sizes = batch["image_grid_thw"].prod(-1)
    first = 0
    for row, count in enumerate((3, 1, 2)):
        grids = batch["image_grid_thw"][first : first + count]
        before = int(sizes[:first].sum())
        pixels = batch["pixel_values"][before : before + int(sizes[first : first + count].sum())]
        ids = batch["input_ids"][row][mask[row]][None]
        alone = run(model, input_ids=ids, pixel_values=pixels, image_grid_thw=grids)[0]
        torch.testing.assert_close(logits[row][mask[row]], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(without_positions[row][mask[row]], alone, atol=1e-4, rtol=1e-4)
        first += count


def test_text_needs_no_image(model: Any, processor: Any) -> None:
    ids = processor.tokenizer("A small kitchen", return_tensors="pt").input_ids
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(run(model, input_ids=ids), run(model, inputs_embeds=embedded))


def test_logits_to_keep(model: Any, inputs: dict[str, Tensor]) -> None:
    torch.testing.assert_close(run(model, **inputs, logits_to_keep=1), run(model, **inputs)[:, -1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(
    folder: Path, model: Any, inputs: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    half = load(folder, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    exact, near = run(model, **inputs), run(half, **inputs)
    assert near.dtype == dtype
    allowed = 8 * torch.finfo(dtype).eps
    assert (near.float() - exact).norm() < allowed * exact.norm()
    half.save_pretrained(tmp_path)
    for asked, got in (("auto", dtype), (torch.float32, torch.float32)):
        assert {parameter.dtype for parameter in load(tmp_path, dtype=asked).parameters()} == {got}


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map(folder: Path, model: Any, inputs: dict[str, Tensor], device_map: Any) -> None:
    torch.testing.assert_close(run(load(folder, device_map=device_map), **inputs), run(model, **inputs))


def test_tower_stays_on_one_device(model: Any) -> None:
    size = sum(parameter.nbytes for parameter in model.parameters())
    tower = sum(parameter.nbytes for parameter in model.model.visual.parameters())
    split = infer_auto_device_map(
        model, {0: tower + size // 3, 1: size, "cpu": size}, no_split_module_classes=model._no_split_modules
    )
    assert len(set(split.values())) > 1
    assert "model.visual" in split


def test_errors_say_what_is_wrong(model: Any, inputs: dict[str, Tensor]) -> None:
    ids, config = inputs["input_ids"], model.config
    num_tokens = int((ids == config.image_token_id).sum())
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    first = int((ids[0] == config.image_token_id).nonzero()[0])
    one_less = torch.cat([ids[:, :first], ids[:, first + 1 :]], 1)
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    with pytest.raises(ValueError, match=f"hold {num_tokens - 1} image tokens, but their 3 images fill {num_tokens}"):
        run(model, input_ids=one_less, **images)
    with pytest.raises(ValueError, match=f"hold {num_tokens} image tokens, but their 0 images fill 0"):
        run(model, input_ids=ids)
    video = ids.clone()
    video[0, 0] = config.video_token_id
    with pytest.raises(ValueError, match="video tokens"):
        run(model, **rest, input_ids=video)
    with pytest.raises(ValueError, match="not used by the model"):
        model.generate(**inputs, pixel_values_videos=inputs["pixel_values"], max_new_tokens=1)
    with pytest.raises(ValueError, match="image_grid_thw"):
        run(model, input_ids=ids, pixel_values=inputs["pixel_values"])
    features = {"image": BaseModelOutputWithPooling(pooler_output=encode(model, inputs))}
    with pytest.raises(ValueError, match="without mm_encoder_outputs"):
        run(model, **inputs, mm_encoder_outputs=features)
    embedded = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        run(model, input_ids=ids, inputs_embeds=embedded)
    with pytest.raises(ValueError, match="Images need input_ids"):
        run(model, inputs_embeds=embedded, **images)
