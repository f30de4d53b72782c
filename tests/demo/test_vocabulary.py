"""The demo's tokenizer loses nothing, and its processor makes the prompt."""

import string
from string import Formatter

import pytest
from PIL import Image

from lad_pl.demo.pairs import HARD
from lad_pl.demo.scenes import STANDARD, Scene
from lad_pl.demo.vocabulary import INDEX_QUESTION, build_processor
from lad_pl.demo.worlds import WORLDS


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def prompt_text(processor, candidates, caption):
    content = [*[{"type": "image"}] * candidates]
    content.append({"type": "text", "text": INDEX_QUESTION.format(N=candidates, caption=caption)})
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


@pytest.mark.parametrize(
    "text",
    ["", "hundred red redder  a\n\n x", "ünï 漢字 🙂 \t12", "Red, given Given", " system users", "e\u0301"],
)
def test_any_text_comes_back(processor, text):
    tokens = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(tokens) == text


def test_prompt_comes_back(processor):
    prompt = prompt_text(processor, 12, "a large plain pink triangle at the left on slate")
    assert processor.tokenizer.decode(processor.tokenizer(prompt).input_ids) == prompt
    assert prompt.endswith("\nAnswer: <|im_end|>\n<|im_start|>assistant\n")


def test_words_are_tokens_only_as_words(processor):
    pieces = [processor.tokenizer.decode([token]) for token in processor.tokenizer(" red hundred").input_ids]
    assert pieces == [" red", " ", *"hundred"]


def test_letters_and_digits_are_distinct_single_tokens(processor):
    characters = string.ascii_letters + string.digits
    tokens = [processor.tokenizer(character).input_ids for character in characters]
    assert all(len(token) == 1 for token in tokens)
    assert len({token[0] for token in tokens}) == len(characters)
    assert processor.tokenizer("10").input_ids == [
        *tokens[characters.index("1")],
        *tokens[characters.index("0")],
    ]


def test_tokenizer_ends_turns_and_pads_left(processor):
    tokenizer = processor.tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == (
        "<|im_end|>",
        "<|endoftext|>",
        "left",
    )


def test_assistant_turn_renders(processor):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "2"}]
    text = processor.apply_chat_template(messages)
    assert text.endswith("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n")


def test_four_visual_tokens_per_image(processor):
    scene = Scene.from_index(4031)
    images = [STANDARD.render(scene, 1), STANDARD.render(scene, 2), Image.new("RGB", (336, 336))]
    prompt = prompt_text(processor, 3, scene.caption(0))
    inputs = processor(text=[prompt], images=[images], return_tensors="pt")
    assert inputs.image_grid_thw.tolist() == [[1, 4, 4]] * 3
    assert (inputs.input_ids == processor.image_token_id).sum() == 12


@pytest.mark.parametrize("edge", [1, 20, 28, 30, 56, 57, 84, 336, 1000])
def test_square_images_become_56_pixels(processor, edge):
    grid = processor.image_processor(images=[Image.new("RGB", (edge, edge))], return_tensors="pt").image_grid_thw
    assert grid.tolist() == [[1, 4, 4]]


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_the_templates_words_are_the_ones_with_tokens(world):
    literals = [literal for template in world.scene.TEMPLATES for literal, *_ in Formatter().parse(template)]
    assert set(" ".join(literals).split()) == set(world.template_words)


@pytest.mark.parametrize("template", range(len(HARD.scene.TEMPLATES)))
def test_a_caption_of_the_hard_world_has_one_token_a_word(template):
    caption = HARD.scene.from_index(4031).caption(template)
    tokens = build_processor(HARD).tokenizer(" " + caption).input_ids
    assert len(tokens) == len(caption.split())
