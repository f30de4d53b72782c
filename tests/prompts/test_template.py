"""Prompt templates, and the names that they give to images."""

import pytest

from lad_pl.errors import UserError
from lad_pl.prompts.template import PromptSpec, identifiers


@pytest.mark.parametrize(
    ("style", "first", "last"),
    [("digits", "1", "26"), ("upper", "A", "Z"), ("lower", "a", "z"), ("roman", "I", "XXVI"), ("words", "first", None)],
)
def test_identifiers(style: str, first: str, last: str | None) -> None:
    names = identifiers(style, 26)
    assert names[0] == first
    assert names[-1] == (last or "twenty-sixth")
    assert len(set(names)) == 26
    assert identifiers("roman", 14)[8:] == ("IX", "X", "XI", "XII", "XIII", "XIV")


def test_identifiers_run_out() -> None:
    with pytest.raises(UserError, match="names at most 26 images, not 27"):
        identifiers("upper", 27)


def test_base_prompt_is_the_papers() -> None:
    assert PromptSpec().text("A dog {runs}.", 12) == (
        "Given 12 images indexed from 1 to 12, identify the image that best matches the provided caption. "
        "Respond with the index number only and nothing else.\nCaption: A dog {runs}.\nAnswer: "
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("What?", "must contain {caption}"),
        ("{caption} {count}", "it contains {caption}, {count}"),
        ("{caption", "no valid format string"),
    ],
)
def test_templates_that_cannot_work(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PromptSpec(template=template)
