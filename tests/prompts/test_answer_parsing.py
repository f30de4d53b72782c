"""Reading a choice out of text: a table of what models write, rule by rule. Choices are written as identifiers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lad_pl.prompts.answer_parsing import majority, read_choice
from lad_pl.prompts.template import IdentifierStyle, identifiers

DIGITS_OF_4 = {
    # the identifier and its markup
    "3": "3",
    " 3.\n": "3",
    "**4**": "4",
    "(2)": "2",
    "#1": "1",
    "_2_": "2",
    "Image 3": "3",
    "image_3": "3",
    "Image-3": "3",
    "IMAGE3": "3",
    "The 3rd image": "3",
    "`2`": "2",
    "$\\boxed{2}$": "2",
    "\\(\\boxed{\\text{2}}\\)": "2",
    # answer phrases
    "The answer is 3": "3",
    "The answer is <3>": "3",
    "Answer: 3": "3",
    "**Answer:** 3": "3",
    "Answer:\n\nImage 3": "3",
    "Final Answer\n\n**3**": "3",
    "<answer>2</answer>": "2",
    "The correct answer would be image number 2, since 3 dogs are in it.": "2",
    "The answer to your question is therefore the image 2. It has 4 dogs.": "2",
    "The answer is 2. There is 1 dog, 3 cats.": "2",
    "The answer is 2. No, wait. The answer is 4.": "4",
    "Answer: 2\nAnswer: \\boxed{1} as 3 shows": "1",
    "The answer is 3. Let me check. The answer is not 2.": "3",
    "The answer cannot be 2. It is image 4.": "4",
    "The answer isn't 1, so image 4": "4",
    # mentions: the last valid one
    "Image 2 shows a cat, image 3 the dog": "3",
    "Image 2 is the best match. It is better than image 3.": "2",
    "image 2, not image 3": "2",
    "Image 2 rather than image 3": "2",
    "I choose 2 instead of 3.": "2",
    "Image 2 matches; image 3 does not.": "2",
    "Image 2 matches. Image 3 doesn't.": "2",
    "It isn't image 2 or anything; 1": "1",
    "not 2": None,
    "2 not 3": "2",
    "It shows image 2, of 12 in all": "2",
    # not an identifier
    "": None,
    "...": None,
    "3.5": None,
    "The answer is 3.5": None,
    "12": None,
    "0": None,
    "-3": None,
    "03": None,
    "1,200": None,
    "3/10": None,
    "10%": None,
    "2 %": None,
    "10.5%": None,
    "images 1-4": None,
    "Images 1–4 are cats.": None,
    "3D": None,
    "I cannot tell.": None,
    "Image 3 isn’t it, 2 is": "2",
    "Image 2 is fine. The answer is 12.": None,  # what it chose is no image
    "Image 2 shows a dog, but the answer is none of them.": None,
    # thoughts
    "</think> 3": "3",
    "<think> ... 2 ... </think>\n3.": "3",
    "<think> The answer is 2. </think>\n3.": "3",
    "Image 1 <think>2</think> so <think>3</think> 4": "4",
    "<think>The answer is 2.</think>": None,
    "<think>2</think>\n\n": None,
    "<think> Image 2 has a dog, image 3": None,
    "<think> Image 2 has a dog. The answer is 2. Image 3": "2",
    "<THINK> Image 2": None,
    "3 <think> But 2": "3",
    "[THINK]2[/THINK]3": "3",
    "◁think▷ image 2": None,
    "◁think▷ image 2 ◁/think▷ image 1": "1",
    "<|channel>thought\n2<channel|>4": "4",
}

DIGITS_OF_12 = {
    "10": "10",
    "Image 10": "10",
    "The answer is 12.": "12",
    "1 or 11": "11",
    "13": None,
    "Answer: 1": "1",
}

UPPER_OF_4 = {
    "B": "B",
    "b": "B",
    "(B)": "B",
    "**A**": "A",
    "A": "A",
    "A.": "A",
    "(A)": "A",
    "Answer: A": "A",
    "The answer is A.": "A",
    "The answer is A because of the dog.": "A",
    "the answer is b": "B",
    "\\boxed{A}": "A",
    "\\boxed{\\text{C}}": "C",
    "Image A": "A",
    "Image A shows the dog": "A",
    "Image C shows A dog": "C",
    "A dog lies on the grass.": None,
    "Answer: A dog lies on the grass.": None,
    "The answer is a dog, so D": "D",
    "I see a dog in B, and I like it.": "B",
    "It's D, isn't it?": "D",
    "It’s D": "D",
    "“A”": "A",
    "option c": "C",
    "There is a c in it": None,
    "E": None,
    "Image B is good. Answer: E": None,
    "U.S. A.D. B.C.": None,
}

UPPER_OF_10 = {"I": "I", "Answer: I": "I", "I think": None, "Answer: I think B": "B", "Image I.": "I", "**I**": "I"}

LOWER_OF_9 = {
    "b": "b",
    "a": "a",
    "a.": "a",
    "(a)": "a",
    "C": "c",
    "a dog": None,
    "In this image a dog lies": None,
    "image a, as it has a dog": "a",
    "The answer is a.": "a",
    "The answer is a dog.": None,
    "It's c": "c",
    "e.g. a dog, i.e. a pet": None,
    "don't": None,
    "Answer: B": "b",
}

ROMAN_OF_8 = {
    "III": "III",
    "iii": "III",
    "I": "I",
    "(I)": "I",
    "The answer is IV.": "IV",
    "The answer is I.": "I",
    "The answer is vi": "VI",
    "Image VIII matches": "VIII",
    "I think that it is VII": "VII",
    "I think so": None,
    "In this image I see a dog": None,
    "Image I is the one": "I",
    "IX": None,
    "Image II is good, the answer is IX": None,
    "vi": "VI",
    "mix": None,
}

WORDS_OF_4 = {
    "first": "first",
    "First.": "first",
    "The second image": "second",
    "**Third**": "third",
    "Answer: the fourth image": "fourth",
    "The answer is the Second one.": "second",
    "First, I look at the dog. The third image has it.": "third",
    "First, nothing matches.": None,
    "At first glance nothing matches.": None,
    "The second, not the third image": "second",
    "fifth": None,
    "twenty-first": None,
    "twenty first": None,
    "The first image is good, but the answer is the fifth.": None,
    "seconds": None,
}

WORDS_OF_22 = {
    "twenty-first": "twenty-first",
    "Twenty first": "twenty-first",
    "The twenty-second image": "twenty-second",
}

TABLE: list[tuple[IdentifierStyle, int, dict[str, str | None]]] = [
    ("digits", 4, DIGITS_OF_4),
    ("digits", 12, DIGITS_OF_12),
    ("upper", 4, UPPER_OF_4),
    ("upper", 10, UPPER_OF_10),
    ("lower", 9, LOWER_OF_9),
    ("roman", 8, ROMAN_OF_8),
    ("words", 4, WORDS_OF_4),
    ("words", 22, WORDS_OF_22),
]


@pytest.mark.parametrize(
    ("style", "n", "text", "chosen"),
    [(style, n, text, chosen) for style, n, rows in TABLE for text, chosen in rows.items()],
)
def test_what_a_text_chooses(style: IdentifierStyle, n: int, text: str, chosen: str | None) -> None:
    names = identifiers(style, n)
    got = read_choice(text, names, style)
    assert (None if got is None else names[got]) == chosen


@pytest.mark.parametrize("style", ["digits", "upper", "lower", "roman", "words"])
@pytest.mark.parametrize("template", ["{}", " {}.\n", "**{}**", "The answer is {}", "<think>x</think>\n\\boxed{{{}}}"])
def test_every_identifier_is_read(style: IdentifierStyle, template: str) -> None:
    names = identifiers(style, 26)
    assert [read_choice(template.format(name), names, style) for name in names] == list(range(26))


def test_long_texts_are_read_in_linear_time() -> None:
    """Nested repetition in the expressions would never come back from these."""
    for piece in ("answer ", "the image ", "** ", "1-", "not the ", "answer is the ", "<think> "):
        assert read_choice(piece * 5000 + "x", identifiers("digits", 4), "digits") is None


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        ([1, 2, 2], 2),
        ([None, None, 3], 3),
        ([2, 0, 0, 2], 0),  # both twice, 0 first
        ([0, 2, 2, 0], 2),
        ([3, 1], 3),
        ([0], 0),
        ([None], None),
        ([], None),
    ],
)
def test_majority(votes: Sequence[int | None], winner: int | None) -> None:
    assert majority(votes) == winner
