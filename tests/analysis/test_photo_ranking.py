"""Laying photos out in groups and putting the groups' answers together."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from lad_pl import UserError
from lad_pl.analysis.photo_ranking import strengths
from lad_pl.data.photos import groups
from lad_pl.provenance import short_digest


def digests(count: int) -> list[str]:
    return [short_digest(number) for number in range(count)]


@pytest.mark.parametrize(("m", "n", "rounds"), [(5, 4, 1), (12, 4, 3), (13, 4, 2), (100, 8, 1), (9, 2, 1), (30, 7, 4)])
def test_every_photo_is_shown_in_every_round_and_can_be_compared(m: int, n: int, rounds: int) -> None:
    dealt = groups(digests(m), n, rounds)
    assert all(len(set(group)) == len(group) == n for group in dealt)
    shown = Counter(photo for group in dealt for photo in group)
    assert set(shown) == set(range(m))
    assert min(shown.values()) >= rounds
    linked = np.zeros((m, m), dtype=bool)
    for group in dealt:
        for one, other in itertools.product(group, group):
            linked[one, other] = True
    assert (np.linalg.matrix_power(linked.astype(float), m) > 0).all()
    assert max(shown.values()) <= 2 * min(shown.values())


@pytest.mark.parametrize(("m", "n"), [(30, 4), (200, 4), (200, 8), (300, 2)])
def test_a_photo_more_or_less_changes_few_groups(m: int, n: int) -> None:
    """Whichever it is, and whatever the order in which the photos come: in each round part of one stretch of 8 N."""
    photos = digests(m + 1)
    for gone in range(0, m + 1, 29):
        fewer, more = photos[:gone] + photos[gone + 1 :], photos[::-1]
        without, whole = (
            {tuple(names[photo] for photo in group) for group in groups(names, n)} for names in (fewer, more)
        )
        assert len(whole - without) <= 3 * 9
        assert len(without - whole) <= 3 * 9
        assert len(whole) <= 1.3 * 3 * -(-(m + 1) // n)


def test_copies_of_a_photo_do_not_keep_each_other_company() -> None:
    dealt = groups([*digests(60), digests(1)[0]], 4)
    assert sum(0 in group and 60 in group for group in dealt) < 3


def test_as_many_photos_as_a_group_holds_are_one_group() -> None:
    assert groups(digests(4), 4) == ((0, 1, 2, 3),)
    with pytest.raises(UserError, match="3 photos do not make a group of 4"):
        groups(digests(3), 4)


@pytest.mark.parametrize("scale", [1, 10, 50])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (9, 4), (40, 6)])
def test_strengths_that_made_the_groups_come_back(m: int, n: int, scale: float) -> None:
    """Also where every group has a photo of probability one: the log-odds of the others still say who is next."""
    true = scale * torch.randn(m, generator=torch.Generator().manual_seed(m), dtype=torch.double)
    dealt = groups(digests(m), n)
    observed = torch.stack([true[list(group)].log_softmax(0) for group in dealt])
    torch.testing.assert_close(strengths(dealt, observed, m), true.log_softmax(0), atol=1e-8, rtol=0)


def test_contradicting_groups_meet_in_least_squares() -> None:
    """Against NumPy's solver on the equations written out one by one."""
    dealt = groups(digests(7), 3, rounds=2)
    observed = torch.randn(len(dealt), 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    rows, values = [np.ones(7)], [0.0]  # the strengths' mean is free; any value will do
    for group, row in zip(dealt, observed.numpy().astype(float), strict=True):
        for photo, value in zip(group, row, strict=True):
            rows.append(np.array([(i == photo) - (i in group) / 3 for i in range(7)]))
            values.append(value - row.mean())
    expected, *_ = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)
    expected -= np.log(np.exp(expected).sum())
    np.testing.assert_allclose(strengths(dealt, observed, 7).numpy(), expected, atol=1e-6)


def test_a_photo_that_always_wins_comes_first() -> None:
    dealt = groups(digests(5), 3, rounds=2)
    certain = torch.tensor([[0.0 if photo == min(group) else -800.0 for photo in group] for group in dealt])
    found = strengths(dealt, certain, 5)
    assert torch.isfinite(found).all()
    assert found.argmax() == 0
