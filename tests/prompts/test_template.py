import random

import pytest
import reference

from lad_pl.data.permutations import cyclic_shifts, random_permutations
from lad_pl.errors import UserError
from lad_pl.prompts.template import PromptSpec, identifiers


@pytest.mark.parametrize(("n", "count", "seed"), [(2, 2, 0), (3, 6, 1), (4, 5, 42), (8, 5, 42), (12, 20, 7)])
def test_permutations_equal_the_reference(n: int, count: int, seed: int) -> None:
    assert [list(p) for p in random_permutations(n, count, seed)] == reference.permutations(n, count, seed)
    assert [list(p) for p in cyclic_shifts(n)] == reference.cyclic_shifts(n)


def test_permutations_leave_the_global_generator_alone() -> None:
    before = random.getstate()
    random_permutations(5, 10)
    assert random.getstate() == before


def test_more_permutations_than_there_are() -> None:
    with pytest.raises(UserError, match="3 images have only 6 orders"):
        random_permutations(3, 7)
    with pytest.raises(UserError, match="at least 1"):
        random_permutations(3, 0)


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
