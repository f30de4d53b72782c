"""Every supported family against plain transformers: eager maps, one prompt at a time, pixels in, no cache.

Each family is a tiny checkpoint of the real class with a real processor (tests/helpers/families). The reference side
of every check is what a user of transformers would write by hand; it shares no code with lad_pl but the words of the
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from families import FAMILIES, Family
from PIL import Image
from subject import Subject, decoder_layers
from tiny_vlm import write_noise_images
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lad_pl import PromptSpec, VisionLanguageModel
from lad_pl.types import PermutedSample

ENDS_TURN = {
    "<|im_end|>": (
        "aria fast_vlm internvl kimi_k25 lfm2_vl llava llava_next llava_onevision llavaonevision1_5 "
        "minicpmv4_6 molmo2 ovis2 qwen2_5_vl qwen2_vl qwen3_5 qwen3_vl qwen3_vl_moe video_llama_3"
    ),
    "<|END_RESPONSE|>": "aya_vision",
    "<|END_OF_TURN_TOKEN|>": "cohere2_vision",
    "<｜end▁of▁sentence｜>": "deepseek_vl janus",
    "<|end_of_sentence|>": "ernie4_5_vl_moe",
    "<|endofturn|>": "exaone4_5",
    "<end_of_turn>": "gemma3 gemma3n",
    "<turn|>": "gemma4",
    "<|user|>": "glm4v",
    "<｜hy_Assistant｜>": "hunyuan_vl",
    "<end_of_utterance>": "idefics3 smolvlm",
    "<|eot|>": "llama4",
    "</s>": "mistral3 paddleocr_vl",
    "<|eot_id|>": "perception_lm",
}
"""What an assistant of each family writes after its answer, as the published templates have it."""
BEFORE_ANSWER = {
    " ": "deepseek_vl idefics3 janus smolvlm",
    "\n": "fast_vlm llava",
    "</think>": "kimi_k25",
    "\n</think>\n\n": "qwen3_5",
}
"""What these templates write between the generation prompt and an answer; the others write nothing."""


@contextmanager
def full_maps(model: Any) -> Iterator[dict[int, Tensor]]:
    """The eager attention map (B, H, S, S) of every decoder layer that has one."""
    maps: dict[int, Tensor] = {}
    handles = [
        layer.self_attn.register_forward_hook(lambda _m, _i, output, n=number: maps.__setitem__(n, output[1]))
        for number, layer in enumerate(decoder_layers(model))
        if hasattr(layer, "self_attn")
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], list[Image.Image]]:
    def draw(family: Family) -> list[Image.Image]:
        paths = write_noise_images(tmp_path_factory.mktemp("images"), 12, sizes=family.sizes)
        return [Image.open(path).convert("RGB") for path in paths]

    return draw


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pictures) -> Subject:
    family = request.param
    return Subject(family, family.build(tmp_path_factory.mktemp(family.name) / "model"), pictures(family))


@pytest.mark.parametrize("rule", ["visual", "delimiters"])
def test_evidence_equals_plain_eager_forwards(subject: Subject, rule: str, measured) -> None:
    """Prompts of two samples with images of different size, so padding; features computed once per distinct image."""
    vlm, family = subject.vlm, subject.family
    encoder = vlm.encoder(PromptSpec(image_size=None, spans=rule))
    entries = [subject.entry(4, 3), subject.entry(4, 3, 1)]
    batch = encoder(entries)
    trie = encoder.answer_trie(4)
    evidence = vlm.evidence(batch, trie, subject.readable)
    assert torch.isfinite(evidence.log_probs).all()
    eager = VisionLanguageModel(subject.eager, vlm.processor)
    assert (vlm.backend, eager.backend) == ("sdpa", "eager")
    both = {"sdpa": evidence, "eager": eager.evidence(batch, trie, subject.readable)}
    masses = {name: found.attention for name, found in both.items()}
    masses |= {f"caption, {name}": found.caption_attention for name, found in both.items()}
    row, logit_error, mass_error = 0, 0.0, dict.fromkeys(masses, 0.0)
    lengths = set()
    for entry in entries:
        for permutation in entry.permutations:
            inputs, written, caption = subject.plain_prompt(entry, permutation)
            ids = inputs["input_ids"][0]
            kept = batch.tokens["attention_mask"][row].bool()
            assert batch.tokens["input_ids"][row][kept].tolist() == ids.tolist()
            assert batch.caption_tokens[row][kept].nonzero().flatten().tolist() == caption
            visual = [[token for token in span if ids[token] == encoder.spans.image_token] for span in written]
            lengths |= {len(span) for span in visual}
            spans = visual if rule == "visual" else [delimited(vlm, family, ids, span) for span in visual]
            with torch.no_grad(), full_maps(subject.eager) as maps:
                logits = subject.eager(**inputs).logits[0, -1]
            assert sorted(maps) == subject.readable
            for place, layer in enumerate(subject.readable):
                last, mean = maps[layer][0, :, -1], maps[layer][0, :, caption].mean(1)
                for kind, seen in (("", last), ("caption, ", mean)):
                    expected = torch.stack([seen[:, span].sum(-1) for span in spans], -1)
                    assert expected.std() > 1e-4  # a model that looks everywhere alike would pass with any spans
                    for backend in both:
                        error = float((masses[kind + backend][row, place] - expected).abs().max())
                        mass_error[kind + backend] = max(mass_error[kind + backend], error)
            if lead(family):
                expected = trie.log_probs(partial(plain_logits, subject, inputs))[0]
            else:
                expected = logits[[sequence[0] for sequence in trie.sequences]].log_softmax(-1)
            logit_error = max(logit_error, float((evidence.log_probs[row] - expected).abs().max()))
            row += 1
    assert len(lengths) > 1 or family.one_length
    assert evidence.log_probs.std(0).max() > 1e-3  # the images and their order matter to this model
    for backend, error in mass_error.items():
        assert measured(family, f"mass, {backend}", error) < 1e-5
    assert measured(family, "features", logit_error) < 1e-4


def test_the_captions_attention_to_every_token(subject: Subject, measured) -> None:
    """What In-Context Re-ranking reads: of the prompts, and of their content-free ones on the same keys and values."""
    encoder = subject.vlm.encoder(PromptSpec(image_size=None))
    entries = [subject.entry(4, 1), subject.entry(4, 1, 1)]
    batch = encoder.with_content_free(entries)
    assert batch.content_free is not None
    passes = subject.vlm.passes_with_content_free(batch, encoder.answer_trie(4), subject.readable)
    worst = 0.0
    for text, prompts, found in zip((None, "N/A"), (batch, batch.content_free), passes, strict=True):
        assert found.caption_on_tokens is not None
        for row, entry in enumerate(entries):
            shown = entry if text is None else replace(entry, sample=replace(entry.sample, caption=text))
            inputs, _, caption = subject.plain_prompt(shown, entry.permutations[0])
            with torch.no_grad(), full_maps(subject.eager) as maps:
                subject.eager(**inputs)
            expected = sum(maps[layer][0, :, caption].mean(1).sum(0) for layer in subject.readable)
            kept = prompts.tokens["attention_mask"][row].bool()
            assert prompts.caption_tokens[row][kept].nonzero().flatten().tolist() == caption
            worst = max(worst, float((found.caption_on_tokens[row][kept] - expected).abs().max()))
    assert measured(subject.family, "caption on tokens", worst / len(subject.readable)) < 1e-5


def lead(family: Family) -> str:
    return next((text for text, names in BEFORE_ANSWER.items() if family.name in names.split()), "")


def plain_logits(subject: Subject, inputs: dict[str, Tensor], prefix: tuple[int, ...]) -> Tensor:
    """Next-token logits (1, V) of one forward pass over a prompt and the beginning of an answer."""
    length = inputs["input_ids"].shape[1]
    more = torch.tensor([prefix], dtype=torch.long).reshape(1, -1)
    fill = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    extended = {
        name: torch.cat([value, fill.get(name, torch.zeros_like(more))], 1) if value.shape == (1, length) else value
        for name, value in inputs.items()
    }
    with torch.no_grad():
        return subject.eager(**extended).logits[:, -1]


def delimited(vlm: VisionLanguageModel, family: Family, ids: Tensor, visual: list[int]) -> list[int]:
    """From the token that opens an image to the one that closes it."""
    text = vlm.processor.tokenizer.convert_ids_to_tokens(ids.tolist())
    first, last = visual[0], visual[-1]
    closes = family.closes if isinstance(family.closes, tuple) else (family.closes,)
    while family.opens and text[first] != family.opens:
        first -= 1
    while family.closes and text[last] not in closes:
        last += 1
    return list(range(first, last + 1))


def test_the_batch_does_not_matter(subject: Subject, measured) -> None:
    encoder = subject.vlm.encoder(PromptSpec(image_size=None))
    trie = encoder.answer_trie(4)
    entries = [subject.entry(4, 2), subject.entry(4, 2, 1)]
    batch = encoder(entries)
    assert (batch.tokens["attention_mask"] == 0).any()
    together = subject.vlm.evidence(batch, trie, subject.readable)
    log_prob_error, mass_error = 0.0, 0.0
    for i, entry in enumerate(entries):
        for j, permutation in enumerate(entry.permutations):
            only = PermutedSample(entry.sample, entry.index, (permutation,), entry.images)
            alone = subject.vlm.evidence(encoder([only]), trie, subject.readable)
            other = together[2 * i + j : 2 * i + j + 1]
            log_prob_error = max(log_prob_error, float((alone.log_probs - other.log_probs).abs().max()))
            mass_error = max(mass_error, float((alone.attention - other.attention).abs().max()))
            assert alone.caption_attention is not None and other.caption_attention is not None
            caption_error = float((alone.caption_attention - other.caption_attention).abs().max())
            mass_error = max(mass_error, caption_error)
    assert measured(subject.family, "batch, log-probability", log_prob_error) < 1e-4
    assert measured(subject.family, "batch, mass", mass_error) < 1e-5


@pytest.mark.parametrize(("style", "n"), [("digits", 4), ("digits", 12), ("roman", 8)])
def test_candidates_equal_a_plain_forward_each(subject: Subject, style: str, n: int, measured) -> None:
    """The prompt and a candidate's earlier tokens in one uncached forward, for every node of the trie.

    Roman numerals branch at several nodes, so that the cache is rolled back and used again.
    """
    vlm = subject.vlm
    prompt = PromptSpec(image_size=None, identifiers=style)
    encoder = vlm.encoder(prompt)
    trie = encoder.answer_trie(n)
    between = lead(subject.family)
    assert encoder.template.before_answer(encoder.turns([], "x")) == between
    assert trie.needs_continuation == (between != "" or (style, n) != ("digits", 4))
    if n == 12:  # "1" begins "10", so it needs the token that ends the turn
        end = vlm.processor.tokenizer.convert_ids_to_tokens(trie.sequences[0][-1])
        assert subject.family.name in ENDS_TURN[end].split()
    entries = [subject.entry(n, 1), subject.entry(n, 1, 1)]
    got = vlm.evidence(encoder(entries), trie, vlm.layers.choose(0.0)).log_probs
    worst = 0.0
    for row, entry in enumerate(entries):
        inputs, _ = subject.plain_inputs(entry, entry.permutations[0], prompt)
        expected = trie.log_probs(partial(plain_logits, subject, inputs))[0]
        worst = max(worst, float((got[row] - expected).abs().max()))
    assert measured(subject.family, f"candidates, {style}, N = {n}", worst) < 1e-4


def test_no_hook_is_left(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = subject.vlm
    encoder = vlm.encoder(PromptSpec(image_size=None))
    trie, batch = encoder.answer_trie(4), encoder([subject.entry(4, 1)])

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in vlm.model.modules())

    before, functions = hooks(), dict(ALL_ATTENTION_FUNCTIONS)
    vlm.evidence(batch, trie, subject.readable)
    assert hooks() == before
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions

    def fail(*args: object, **kwargs: object) -> None:
        assert hooks() == before + len(subject.readable)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(vlm.model.get_output_embeddings(), "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        vlm.evidence(batch, trie, subject.readable)
    assert hooks() == before
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions
