"""Ranking any number of photos for one caption with a model that looks at N of them at a time.

The photos are laid out in groups of N: several rounds, each a random partition of all photos. In every group each
readout gives a probability to each photo. One strength per photo is then fitted to all groups at once (Plackett-Luce:
in a group, a photo is chosen with probability exp(s_i) / sum_j exp(s_j)), so that photos that never met can be
compared through those that met both. With no more than N photos there is one group, and the fit is exact.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from lad_pl.errors import UserError
from lad_pl.readouts import ReadoutSettings

RIDGE = 1e-4
"""Weight of a pull towards equal strengths: keeps the fit finite where a photo wins with probability 1."""

Group = tuple[int, ...]


def groups(num_photos: int, group_size: int, rounds: int = 3, seed: int = 42) -> tuple[Group, ...]:
    """Which photos are shown together.

    Every round deals all photos into groups of N; the last group of a round is filled up with photos from the
    round's beginning. Rounds are added until every photo can be compared with every other.

    >>> groups(3, 3)
    ((0, 1, 2),)
    >>> [len(group) for group in groups(5, 4, rounds=2)]
    [4, 4, 4, 4]

    Args:
        num_photos: M.
        group_size: N, from 2 to M.
        rounds: how many times every photo is shown at least.
        seed: of the deals.

    Raises:
        UserError: there are fewer photos than a group holds.
    """
    if not 2 <= group_size <= num_photos:
        raise UserError(f"{num_photos} photos do not make a group of {group_size}.")
    if num_photos == group_size:
        return (tuple(range(num_photos)),)
    generator = random.Random(seed)
    dealt: list[Group] = []
    while rounds > 0 or not _connected(dealt, num_photos):
        order = generator.sample(range(num_photos), num_photos)
        for start in range(0, num_photos, group_size):
            group = order[start : start + group_size]
            dealt.append(tuple(group + order[: group_size - len(group)]))
        rounds -= 1
    return tuple(dealt)


def log_probabilities(readout: str, scores: Tensor, settings: ReadoutSettings) -> Tensor:
    """A readout's scores as log-probabilities of the N images.

    Args:
        readout: its name; it decides what the scores are: log-probabilities up to a constant, a posterior, attention
            mass, or nats (sharpened by tau, as in eq. 12).
        scores: (..., N).
        settings: holds tau.

    Returns:
        (..., N); each row sums to probability 1.
    """
    if readout in ("raw_attention", "purified_attention"):
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log().log_softmax(-1)
    if readout.startswith("head_information"):
        return (settings.temperature * scores).log_softmax(-1)
    return scores.log_softmax(-1)


def strengths(dealt: Sequence[Group], log_probs: Tensor, num_photos: int) -> Tensor:
    """Log-probabilities of M photos that explain the groups' probabilities best.

    Minimises the Kullback-Leibler divergence from each group's probabilities to those of the Plackett-Luce model,
    summed over groups; a convex problem.

    Args:
        dealt: G groups of N photo indices.
        log_probs: (G, N) log-probabilities within each group, in the groups' order.
        num_photos: M.

    Returns:
        (M,) log-probabilities, double precision.
    """
    members = torch.tensor(dealt)
    target = log_probs.double().softmax(-1)
    if len(dealt) == 1:
        return torch.zeros(num_photos, dtype=torch.double).scatter(0, members[0], log_probs[0].double())
    strength = torch.zeros(num_photos, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([strength], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -(target * strength[members].log_softmax(-1)).sum() + RIDGE * strength.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return strength.detach().log_softmax(0)


def _connected(dealt: Sequence[Group], num_photos: int) -> bool:
    reached, waiting = {0}, [0]
    while waiting:
        photo = waiting.pop()
        met = {other for group in dealt if photo in group for other in group} - reached
        reached |= met
        waiting += met
    return len(reached) == num_photos
