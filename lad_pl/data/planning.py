"""Which samples travel together: as many as fit, and samples of like length, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], prompts_per_sample: int, size: int | None, tokens: int) -> list[list[int]]:
    """Lay samples out in batches, the longest first: what does not fit into memory shows at once.

    Args:
        lengths: tokens of each sample's prompts, as far as they are known.
        prompts_per_sample: how many orders each sample is shown in.
        size: samples per batch; None fills batches up to ``tokens``.
        tokens: the most tokens of a batch, padding included; a single sample may have more.

    >>> plan_batches([10, 30, 20, 30], prompts_per_sample=2, size=2, tokens=0)
    [[1, 3], [2, 0]]
    >>> plan_batches([10, 30, 20, 30], prompts_per_sample=2, size=None, tokens=120)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda sample: -lengths[sample])  # stable: else the samples' own order
    batches: list[list[int]] = []
    for sample in order:
        if batches and _fits(batches[-1], lengths, prompts_per_sample, size, tokens):
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


def _fits(batch: list[int], lengths: Sequence[int], prompts: int, size: int | None, tokens: int) -> bool:
    """Whether one more sample, no longer than the first, may travel with a batch."""
    if size is not None:
        return len(batch) < size
    return (len(batch) + 1) * prompts * lengths[batch[0]] <= tokens
