"""Ranking any number of photos for one caption with a model that looks at N of them at a time.

The photos are laid out in groups of N: several rounds, each a random partition of all photos. In every group each
readout gives a probability to each photo. In the Plackett-Luce model a photo of a group is chosen with probability
exp(s_i) / sum_j exp(s_j), so that the log-odds of two photos are the difference of their strengths; one strength per
photo is fitted to the log-odds of all groups. Photos that never met are compared through those that met both. With no
more than N photos there is one group, and the fit is exact.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from lad_pl.errors import UserError
from lad_pl.readouts import EPS, ReadoutSettings

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
        return scores.clamp_min(EPS).log().log_softmax(-1)
    if readout.startswith("head_information"):
        return (settings.temperature * scores).log_softmax(-1)
    return scores.log_softmax(-1)


def strengths(dealt: Sequence[Group], log_probs: Tensor, num_photos: int) -> Tensor:
    """Log-probabilities of M photos that explain the groups' log-odds best.

    Least squares: within every group, strengths less their mean against log-probabilities less their mean.

    Args:
        dealt: G groups of N photo indices that link all photos.
        log_probs: (G, N) log-probabilities within each group, in the groups' order; finite.
        num_photos: M.

    Returns:
        (M,) log-probabilities, double precision.
    """
    members = torch.tensor(dealt)
    size = members.shape[1]
    centred = log_probs.double() - log_probs.double().mean(-1, keepdim=True)
    # Normal equations: the graph's Laplacian, made regular by fixing the mean of the strengths.
    laplacian = torch.full((num_photos, num_photos), 1 / num_photos, dtype=torch.double)
    laplacian.diagonal().add_(torch.bincount(members.flatten(), minlength=num_photos))
    pairs = (members[:, :, None].expand(-1, -1, size), members[:, None].expand(-1, size, -1))
    laplacian.index_put_(pairs, torch.tensor(-1 / size, dtype=torch.double), accumulate=True)
    evidence = torch.zeros(num_photos, dtype=torch.double).index_add(0, members.flatten(), centred.flatten())
    return torch.linalg.solve(laplacian, evidence).log_softmax(0)


def _connected(dealt: Sequence[Group], num_photos: int) -> bool:
    reached, waiting = {0}, [0]
    while waiting:
        photo = waiting.pop()
        met = {other for group in dealt if photo in group for other in group} - reached
        reached |= met
        waiting += met
    return len(reached) == num_photos
