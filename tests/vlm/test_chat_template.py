"""What a chat template writes before the answer.

The reference side renders, tokenises and runs everything in full with plain transformers: no trie, no cache.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from families import gemma3
from PIL import Image
from subject import Subject
from tiny_vlm import CHAT_TEMPLATE, TEXTS, build_tiny_qwen

from lad_pl import PromptSpec, UserError
from lad_pl.prompts.answer_parsing import read_choice
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import identifiers
from lad_pl.provenance import short_digest
from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.sofa import Sofa

N = 4
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
PARTS = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE + "{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}"
)
IDEFICS3 = (
    "{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}" + PARTS + "<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA_1_5 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '" + IMAGE + "\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] != 'assistant' %}{{ part['text'] + ' ' }}"
    "{% else %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
STRINGS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] " + PARTS + " [/INST]"
    "{% else %}{{ ' ' + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
PRINTED = STRINGS.replace("' ' + message['content'] + '<|im_end|>'", "' ' ~ message['content']")
TRIMMED = IDEFICS3.replace("part['text']", "part['text'] | trim")
LINE = IDEFICS3.replace("{{ ': ' }}", "{{ ':\n' }}")
OPEN_THOUGHT = CHAT_TEMPLATE.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}")
EMPTY_THOUGHT = CHAT_TEMPLATE.replace(
    "<|im_start|>{{ message['role'] }}\n",
    "<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}",
)
STRIPS = IDEFICS3.replace("'Assistant:'", "'Assistant: '").replace("{{ ': ' }}", "{{ ':' }}")
ENDS_BLANK = IDEFICS3.replace("'Assistant:'", "'Assistant: '")
LEADS = {
    "parts after a blank": (IDEFICS3, " "),
    "llava-1.5": (LLAVA_1_5, " "),
    "only a string": (STRINGS, " "),
    "prints whatever it is": (PRINTED, " "),
    "trims": (TRIMMED, " "),
    "a line break after a colon": (LINE, "\n"),
    "an empty thought": (EMPTY_THOUGHT, "<think>\n\n</think>\n\n"),
    "nothing": (CHAT_TEMPLATE, ""),
    "a thought left open": (OPEN_THOUGHT, ""),
    "a generation prompt of its own": (STRIPS, ""),
    "a generation prompt that ends in a blank": (ENDS_BLANK, ""),
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory, pictures: list[Image.Image]) -> Subject:
    """A tokenizer that merges a colon with a letter, and with a line break."""
    merged = [
        "Assistant:A Assistant:B :C :D :a :first :second :I :V ASSISTANT:A",
        "Assistant:\nAssistant:\nUser:\n",
    ] * 9
    folder = tmp_path_factory.mktemp("merging") / "model"
    subject = Subject(gemma3.FAMILY, build_tiny_qwen(folder, layers=2, texts=(*TEXTS, *merged)), pictures)
    assert len(ids_of(subject, ":A")) == len(ids_of(subject, ":\n")) == 1
    return subject


def full_forward(subject: Subject, prompt: PromptSpec, entry: Any, tokens: list[list[int]], end: int) -> np.ndarray:
    """Log-probabilities of N answers, each of its tokens from a pass over the prompt and all before it."""
    inputs, _ = subject.plain_inputs(entry, entry.permutations[0], prompt)
    shape = inputs["input_ids"].shape

    def next_logits(prefix: tuple[int, ...]) -> np.ndarray:
        more = torch.tensor([prefix], dtype=torch.long).reshape(1, -1)
        fill = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        longer = {
            name: torch.cat([value, fill.get(name, torch.zeros_like(more))], 1) if value.shape == shape else value
            for name, value in inputs.items()
        }
        with torch.no_grad():
            return subject.eager(**longer, use_cache=False).logits[0, -1].double().numpy()

    return reference.trie_log_probs(tokens, end, next_logits)


@pytest.mark.parametrize("name", LEADS)
@pytest.mark.parametrize("style", ["upper", "roman"])
def test_answers_begin_as_the_template_writes_them(subject: Subject, name: str, style: Any) -> None:
    template, lead = LEADS[name]
    vlm = subject.vlm
    vlm.processor.chat_template = template
    prompt = PromptSpec(image_size=None, identifiers=style)
    encoder, names = vlm.encoder(prompt), identifiers(style, N)
    assert encoder.template.before_answer(encoder.turns([], "x")) == lead
    assert (encoder.fingerprint() == fingerprint_of_old(encoder)) == (lead == "")
    chat = [{"role": "user", "content": [{"type": "text", "text": prompt.text("x", N)}]}]
    before = vlm.processor.apply_chat_template(chat, add_generation_prompt=True)
    opened, *answered = (ids_of(subject, before + text) for text in ("", *(lead + name for name in names)))
    kept = all(ids[: len(opened)] == opened for ids in answered)
    if kept:
        tokens = [ids[len(opened) :] for ids in answered]
    elif lead:
        tokens = [ids_of(subject, lead + name) for name in names]  # byte-level: a text begins like any other
    else:
        with pytest.raises(UserError, match=f"merges the identifier '{names[0]}' with the prompt"):
            encoder.answer_trie(N)
        return
    trie = encoder.answer_trie(N)
    end = trie.sequences[0][-1] if len(trie.sequences[0]) > len(tokens[0]) else -1
    assert [list(ids[: len(own)]) for ids, own in zip(trie.sequences, tokens, strict=True)] == tokens
    assert_equals_full_forward(subject, prompt, tokens, end)


def assert_equals_full_forward(subject: Subject, prompt: PromptSpec, tokens: list[list[int]], end: int = -1) -> None:
    encoder, entry = subject.vlm.encoder(prompt), subject.entry(N, 1)
    got = subject.vlm.evidence(encoder([entry]), encoder.answer_trie(N), [0, 1]).log_probs[0]
    np.testing.assert_allclose(got, full_forward(subject, prompt, entry, tokens, end), atol=1e-4)
    assert got.std() > 1e-3


def fingerprint_of_old(encoder: PromptEncoder) -> str:
    """As it was when answers began right after the generation prompt: such calibrations hold where they still do."""
    settings = encoder.processor.image_processor.to_dict()
    kept = {name: value for name, value in settings.items() if not name.startswith("_") and "class" not in name}
    return short_digest([encoder.chat(encoder.turns([], "x")), kept])


@pytest.mark.parametrize(("style", "blank"), [("digits", ["\u2581"]), ("upper", [])])
def test_a_tokenizer_that_writes_blanks_as_letters(gemma_folder: Path, pictures, style: Any, blank: list[str]) -> None:
    """SentencePiece, as llava-1.5 has it; its template, with this model's placeholder."""
    subject = Subject(gemma3.FAMILY, gemma_folder, pictures)
    subject.vlm.processor.chat_template = LLAVA_1_5.replace(IMAGE, "<start_of_image>")
    names = identifiers(style, N)
    words = [[*blank, name if blank else f"\u2581{name}"] for name in names]
    tokens = [subject.vlm.processor.tokenizer.convert_tokens_to_ids(word) for word in words]
    prompt = PromptSpec(image_size=None, identifiers=style)
    assert subject.vlm.encoder(prompt).answer_trie(N).sequences == tuple(map(tuple, tokens))
    assert_equals_full_forward(subject, prompt, tokens)


@pytest.mark.parametrize("sofa", ["published", "paper"])
def test_softened_attention_ends_with_the_prompt(subject: Subject, sofa: Any) -> None:
    """What stands before an answer is text: the same as if the prompt ended with it."""
    subject.vlm.processor.chat_template = IDEFICS3
    encoder, settings = subject.vlm.encoder(PromptSpec(image_size=None)), Sofa(sofa, every=1)
    trie, batch = encoder.answer_trie(N), encoder([subject.entry(N, 1)])
    (blank,) = {sequence[0] for sequence in trie.sequences}
    got = subject.vlm.evidence(batch, trie, [0, 1], settings)
    longer = {
        "input_ids": torch.tensor([[blank]]),
        "attention_mask": torch.ones(1, 1, dtype=torch.long),
        "mm_token_type_ids": torch.zeros(1, 1, dtype=torch.long),
    }
    batch = replace(
        batch,
        tokens={name: torch.cat([values, longer[name]], 1) for name, values in batch.tokens.items()},
        position_of_token=torch.nn.functional.pad(batch.position_of_token, (0, 1), value=-1),
        caption_tokens=torch.nn.functional.pad(batch.caption_tokens, (0, 1), value=False),
    )
    digits = AnswerTrie(tuple(sequence[1:] for sequence in trie.sequences))
    want = subject.vlm.evidence(batch, digits, [0, 1], settings)
    torch.testing.assert_close(got.log_probs, want.log_probs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("style", ["digits", "upper", "lower", "roman", "words"])
@pytest.mark.parametrize("before", [" ", "\n", "\n</think>\n\n", "<think></think>"])
def test_generated_answers_may_begin_so_too(style: Any, before: str) -> None:
    names = identifiers(style, N)
    assert [read_choice(before + name, names, style) for name in names] == [0, 1, 2, 3]


def ids_of(subject: Subject, text: str) -> list[int]:
    return subject.vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
