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


@pytest.mark.parametrize(("m", "n", "rounds"), [(5, 4, 1), (12, 4, 3), (13, 4, 2), (100, 8, 1), (9, 2, 1), (30, 7, 4)])
def test_every_photo_is_shown_in_every_round_and_can_be_compared(m: int, n: int, rounds: int) -> None:
    dealt = groups(m, n, rounds)
    assert all(len(set(group)) == len(group) == n for group in dealt)
    per_round = -(-m // n)
    assert len(dealt) % per_round == 0
    assert len(dealt) >= rounds * per_round
    for start in range(0, len(dealt), per_round):
        assert {photo for group in dealt[start : start + per_round] for photo in group} == set(range(m))
    linked = np.zeros((m, m), dtype=bool)
    for group in dealt:
        for one, other in itertools.product(group, group):
            linked[one, other] = True
    assert (np.linalg.matrix_power(linked.astype(float), m) > 0).all()
    shown = Counter(photo for group in dealt for photo in group)
    assert max(shown.values()) <= 2 * min(shown.values())


def test_as_many_photos_as_a_group_holds_are_one_group() -> None:
    assert groups(4, 4) == ((0, 1, 2, 3),)
    with pytest.raises(UserError, match="3 photos do not make a group of 4"):
        groups(3, 4)


@pytest.mark.parametrize("scale", [1, 10, 50])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (9, 4), (40, 6)])
def test_strengths_that_made_the_groups_come_back(m: int, n: int, scale: float) -> None:
    """Also where every group has a photo of probability one: the log-odds of the others still say who is next."""
    true = scale * torch.randn(m, generator=torch.Generator().manual_seed(m), dtype=torch.double)
    dealt = groups(m, n)
    observed = torch.stack([true[list(group)].log_softmax(0) for group in dealt])
    torch.testing.assert_close(strengths(dealt, observed, m), true.log_softmax(0), atol=1e-8, rtol=0)


def test_contradicting_groups_meet_in_least_squares() -> None:
    """Against NumPy's solver on the equations written out one by one."""
    dealt = groups(7, 3, rounds=2)
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
    dealt = groups(5, 3, rounds=2)
    certain = torch.tensor([[0.0 if photo == min(group) else -800.0 for photo in group] for group in dealt])
    found = strengths(dealt, certain, 5)
    assert torch.isfinite(found).all()
    assert found.argmax() == 0
