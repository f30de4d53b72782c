"""Orders in which the N images of a sample are shown.

A permutation is a tuple whose entry p is the original index of the image at position p.
"""

from __future__ import annotations

import math
import random

from lad_pl.errors import UserError, check_at_least

Permutation = tuple[int, ...]


def cyclic_shifts(num_candidates: int) -> tuple[Permutation, ...]:
    """The N cyclic left shifts; under them every image visits every position exactly once.

    >>> cyclic_shifts(3)
    ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    """
    order = tuple(range(num_candidates))
    return tuple(order[shift:] + order[:shift] for shift in range(num_candidates))


def random_permutations(num_candidates: int, count: int, seed: int = 42) -> tuple[Permutation, ...]:
    """The identity, then ``count - 1`` further distinct permutations drawn from ``random.Random(seed)``.

    The draws are the published code's (``random.sample`` after ``random.seed(42)``), from a generator of our own.

    >>> random_permutations(4, 3)
    ((0, 1, 2, 3), (0, 3, 1, 2), (1, 0, 2, 3))

    Raises:
        UserError: ``count`` is less than 1 or exceeds N!.
    """
    check_at_least(1, num_permutations=count)
    if count > math.factorial(num_candidates):
        raise UserError(
            f"num_permutations is {count}, but {num_candidates} images have only {math.factorial(num_candidates)} "
            "orders; lower num_permutations."
        )
    generator = random.Random(seed)
    chosen = [tuple(range(num_candidates))]
    while len(chosen) < count:
        drawn = tuple(generator.sample(range(num_candidates), num_candidates))
        if drawn not in chosen:
            chosen.append(drawn)
    return tuple(chosen)
