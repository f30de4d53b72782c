"""SoFA against plain transformers: eager, one prompt at a time, every layer's 4-D mask edited by hand in hooks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from PIL import Image
from tiny_vlm import write_noise_images
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lad_pl import PromptSpec, UserError, VisionLanguageModel, VLMSpec
from lad_pl.data.permutations import random_permutations
from lad_pl.types import Batch, PermutedSample, Sample
from lad_pl.vlm import sofa as sofa_file
from lad_pl.vlm.layers import DecoderLayers
from lad_pl.vlm.sofa import Sofa, hidden_image_cells

BY_NAME = {family.name: family for family in FAMILIES}
PROMPT = PromptSpec(image_size=None)
READ = (2, 3)  # layer 2 is softened, layer 3 is not


class Model:
    """A tiny checkpoint as lad_pl loads it and as a user of transformers would, with two samples to show it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = BY_NAME[name].build(folder / "model")
        self.pictures = [
            Image.open(path).convert("RGB") for path in write_noise_images(folder, 12, sizes=BY_NAME[name].sizes)
        ]
        self.vlm = {backend: self.load(backend) for backend in ("sdpa", "eager")}
        self.encoder = self.vlm["sdpa"].encoder(PROMPT)
        self.eager: Any = AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager"
        )

        self.every_second = tuple(range(0, len(self.vlm["sdpa"].layers), 2))

    def load(self, backend: str) -> VisionLanguageModel:
        return VisionLanguageModel.load(VLMSpec(str(self.folder), dtype="float32", attn_implementation=backend))

    def entries(self, n: int = 4) -> list[PermutedSample]:
        captions = ("A dog lies on the grass.", "Two giraffes in a room, with people looking at them.")
        names = tuple(map(str, range(n)))
        return [
            PermutedSample(
                Sample(str(number), names, caption, 0), number, random_permutations(n, 2)[1:], tuple(self.pictures[:n])
            )
            for number, caption in enumerate(captions)
        ]

    def plain_inputs(self, entry: PermutedSample, permutation: tuple[int, ...]) -> dict[str, Tensor]:
        text = PROMPT.text(entry.sample.caption, len(permutation))
        content = [{"type": "image", "image": entry.images[p]} for p in permutation] + [{"type": "text", "text": text}]
        return self.encoder.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


@pytest.fixture(scope="module", params=["qwen2_5_vl", "internvl", "gemma3", "gemma4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp(request.param))


@contextmanager
def edited_masks(model: Any, image_of: list[int], settings: Sofa, layers: tuple[int, ...]) -> Iterator[None]:
    """The definition, cell by cell: a key after its query, both of images, hidden by the model's own mask."""
    layers_of_text = model.get_decoder().layers
    pairs = [(query, key) for query in range(len(image_of)) for key in range(query + 1, len(image_of))]
    chosen = [
        (query, key)
        for query, key in pairs
        if image_of[query] >= 0
        and image_of[key] >= 0
        and (settings.variant == "published" or image_of[query] != image_of[key])
    ]
    rows, columns = torch.tensor(chosen).T

    def edited(mask: Tensor) -> Tensor:
        mask = mask.clone()
        cells = mask[0, 0, rows, columns]
        softened = math.log(settings.sigma) if settings.variant == "published" else 0.0
        mask[0, 0, rows, columns] = torch.where(cells < -1e30, softened, cells)
        return mask

    def publish(module: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, options | {"attention_mask": edited(options["attention_mask"])}

    def mix(module: nn.Module, args: Any, options: dict[str, Any], output: Any) -> Any:
        both_ways = module.forward(*args, **options | {"attention_mask": edited(options["attention_mask"])})
        both = zip(output, both_ways, strict=True)
        return tuple((1 - settings.sigma) * causal + settings.sigma * other for causal, other in both)

    handles = []
    for layer in layers:
        attention = layers_of_text[layer].self_attn
        if settings.variant == "published":
            handles.append(attention.register_forward_pre_hook(publish, with_kwargs=True))
        else:
            handles.append(attention.register_forward_hook(mix, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attention_map(model: Any, inputs: dict[str, Tensor], layer: int) -> Tensor:
    """(B, H, S, S), as it comes out of the layer and of whatever hooks stand there already."""
    maps: list[Tensor] = []
    module = model.get_decoder().layers[layer].self_attn
    handle = module.register_forward_hook(lambda _module, _inputs, output: maps.append(output[1]))
    model(**inputs, use_cache=False)
    handle.remove()
    return maps[-1]


def images_in(row: int, batch: Batch) -> list[int]:
    return batch.position_of_token[row][batch.tokens["attention_mask"][row].bool()].tolist()


@pytest.mark.parametrize("settings", [Sofa(), Sofa("paper", 0.3)], ids=["published", "paper"])
def test_evidence_equals_hand_edited_masks(model: Model, settings: Sofa) -> None:
    """A batch padded on the left, under both backends, against single prompts."""
    entries = model.entries()
    batch, trie = model.encoder(entries), model.encoder.answer_trie(4)
    assert (batch.tokens["attention_mask"] == 0).any()
    got = {backend: vlm.evidence(batch, trie, READ, settings) for backend, vlm in model.vlm.items()}
    plain = model.vlm["sdpa"].evidence(batch, trie, READ)
    assert (got["sdpa"].log_probs - plain.log_probs).abs().max() > 1e-3
    assert (got["sdpa"].attention - plain.attention).abs().max() > 1e-5
    prompts = [(entry, permutation) for entry in entries for permutation in entry.permutations]
    for row, (entry, permutation) in enumerate(prompts):
        images = images_in(row, batch)
        with torch.no_grad(), edited_masks(model.eager, images, settings, model.every_second):
            output = model.eager(**model.plain_inputs(entry, permutation), output_attentions=True, use_cache=False)
        log_probs = output.logits[0, -1, [sequence[0] for sequence in trie.sequences]].log_softmax(-1)
        spans = torch.tensor(images)[:, None] == torch.arange(4)
        for evidence in got.values():
            torch.testing.assert_close(evidence.log_probs[row], log_probs, atol=1e-4, rtol=0)
            for place, layer in enumerate(READ):
                mass = output.attentions[layer][0, :, -1] @ spans.float()
                torch.testing.assert_close(evidence.attention[row, place], mass, atol=1e-5, rtol=0)


def test_candidates_of_several_tokens_equal_full_forwards(model: Model) -> None:
    """Continuations run on the softened prompt's cache and soften nothing themselves: they are text."""
    entry, vlm = model.entries(12)[0], model.vlm["sdpa"]
    batch, trie = model.encoder([entry]), model.encoder.answer_trie(12)
    got = vlm.evidence(batch, trie, vlm.layers.choose(0.0), Sofa()).log_probs[0]
    inputs, images = model.plain_inputs(entry, entry.permutations[0]), images_in(0, batch)

    def next_logits(prefix: tuple[int, ...]) -> Tensor:
        more = torch.tensor([prefix], dtype=torch.long).reshape(1, -1)
        longer = {
            name: torch.cat([values, {"input_ids": more}.get(name, torch.full_like(more, name == "attention_mask"))], 1)
            if values.shape == (1, len(images))
            else values
            for name, values in inputs.items()
        }
        with torch.no_grad(), edited_masks(model.eager, images + [-1] * len(prefix), Sofa(), model.every_second):
            return model.eager(**longer, use_cache=False).logits[:, -1]

    assert trie.needs_continuation
    torch.testing.assert_close(got, trie.log_probs(next_logits)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [Sofa(), Sofa("paper", 0.3)], ids=["published", "paper"])
def test_the_map_of_a_softened_layer(model: Model, settings: Sofa) -> None:
    """Under eager attention the whole map is softened, not only the output."""
    entry = model.entries()[0]
    inputs = model.plain_inputs(entry, entry.permutations[0])
    batch = model.encoder([entry])
    images, vlm = images_in(0, batch), model.vlm["eager"]
    with torch.no_grad(), sofa_file.soft_attention(vlm.layers, batch.position_of_token, settings, "eager"):
        got = attention_map(vlm.model, inputs, 2)
    with torch.no_grad(), edited_masks(model.eager, images, settings, model.every_second):
        want = attention_map(model.eager, inputs, 2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.sum(-1), torch.ones_like(got.sum(-1)), atol=1e-5, rtol=0)
    assert want[0, 0].triu(1).max() > 1e-3


def test_the_causal_end_is_the_plain_pass(model: Model) -> None:
    batch, trie, vlm = model.encoder(model.entries()), model.encoder.answer_trie(4), model.vlm["sdpa"]
    plain = vlm.evidence(batch, trie, READ)
    for settings in (Sofa("published", 1e-12), Sofa("paper", 0.0)):
        causal = vlm.evidence(batch, trie, READ, settings)
        torch.testing.assert_close(causal.log_probs, plain.log_probs, atol=1e-4, rtol=0)
        torch.testing.assert_close(causal.attention, plain.attention, atol=1e-5, rtol=0)


def test_layers_of_one_kind_share_one_mask(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    original = sofa_file.soft_mask
    monkeypatch.setattr(sofa_file, "soft_mask", lambda *args: built.append(1) or original(*args))
    vlm = model.vlm["sdpa"]
    vlm.evidence(model.encoder(model.entries()[:1]), model.encoder.answer_trie(4), READ, Sofa(every=1))
    assert len(built) == len(set(vlm.layers.kinds))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_nothing_is_left(
    tiny_folder: Path, small_prompt: PromptSpec, backend: str, monkeypatch, tmp_path: Path
) -> None:
    vlm = VisionLanguageModel.load(VLMSpec(str(tiny_folder), dtype="float32", attn_implementation=backend))
    pictures = tuple(Image.open(path).convert("RGB") for path in write_noise_images(tmp_path, 4))
    encoder = vlm.encoder(small_prompt)
    item = PermutedSample(Sample("0", tuple("0123"), "A dog.", 0), 0, ((0, 1, 2, 3),), pictures)
    batch, trie = encoder([item]), encoder.answer_trie(4)
    functions = dict(ALL_ATTENTION_FUNCTIONS)
    before = vlm.evidence(batch, trie, READ)
    vlm.evidence(batch, trie, READ, Sofa())
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions

    def fail(*args: object, **kwargs: object) -> None:
        assert dict(ALL_ATTENTION_FUNCTIONS) != functions
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(vlm.model.lm_head, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            vlm.evidence(batch, trie, READ, Sofa())
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vlm.model.modules())
    assert torch.equal(vlm.evidence(batch, trie, READ).log_probs, before.log_probs)


def test_images_that_see_each_other_already_are_an_error(tmp_path: Path) -> None:
    folder = BY_NAME["molmo2"].build(tmp_path / "model")
    vlm = VisionLanguageModel.load(VLMSpec(str(folder), dtype="float32"))
    pictures = tuple(Image.open(path).convert("RGB") for path in write_noise_images(tmp_path, 4))
    encoder = vlm.encoder(PromptSpec(image_size=None, spans="visual"))
    item = PermutedSample(Sample("0", tuple("0123"), "A dog.", 0), 0, ((0, 1, 2, 3),), pictures)
    with pytest.raises(UserError, match="see each other in both directions already"):
        vlm.evidence(encoder([item]), encoder.answer_trie(4), [0], Sofa())


def test_a_backend_without_masks_of_numbers_is_an_error(tiny_vlm: VisionLanguageModel) -> None:
    with (
        pytest.raises(UserError, match="which 'flash_attention_2' does not take"),
        sofa_file.soft_attention(tiny_vlm.layers, torch.zeros(1, 3), Sofa(), "flash_attention_2"),
    ):
        pass


def test_a_layer_out_of_reach_is_an_error(tiny_vlm: VisionLanguageModel) -> None:
    with (
        pytest.raises(UserError, match="Layer 0 computes its attention in a way of its own"),
        sofa_file.soft_attention(tiny_vlm.layers, torch.zeros(1, 3), Sofa(), "sdpa"),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "soft"}, r"sofa\.variant is 'soft'"),
        ({"sigma": 1.5}, r"sofa\.sigma is 1\.5"),
        ({"sigma": 0.0}, "takes its logarithm"),
        ({"every": 0}, r"sofa\.every is 0"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sofa(**change)


def test_every_second_layer_of_those_with_attention(tiny_vlm: VisionLanguageModel) -> None:
    attention = [None, None, None, nn.Identity()] * 4
    hybrid = DecoderLayers(tuple(attention), ("linear_attention",) * 16)
    assert Sofa().choose(hybrid) == (3, 11)
    assert Sofa(every=1).choose(hybrid) == (3, 7, 11, 15)
    with pytest.raises(UserError, match=r"sofa\.layers names layer 4, which"):
        Sofa(layers=[3, 4]).choose(hybrid)
    with pytest.raises(UserError, match=r"sofa\.layers names layer 6, but"):
        Sofa(layers=[6]).choose(tiny_vlm.layers)


def test_a_window_bounds_the_past_only() -> None:
    """Image 0 in tokens 0-1, image 1 in 3-4; a window of 2; token 5 is padding of no image."""
    positions = torch.tensor([[0, 0, -1, 1, 1, -1]])
    index = torch.arange(6)
    visible = ((index[:, None] >= index) & (index[:, None] - index < 2))[None, None]
    cells = hidden_image_cells(visible, positions, "published")[0, 0].nonzero().tolist()
    assert cells == [[0, 1], [0, 3], [0, 4], [1, 3], [1, 4], [3, 4]]
    cells = hidden_image_cells(visible, positions, "paper")[0, 0].nonzero().tolist()
    assert cells == [[0, 3], [0, 4], [1, 3], [1, 4]]
