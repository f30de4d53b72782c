"""Orders of the images, against a plain reference."""

import random

import pytest
import reference

from lad_pl.data.permutations import cyclic_shifts, random_permutations
from lad_pl.errors import UserError


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
