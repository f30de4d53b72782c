"""The answers of two runs, matched prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lad_pl.analysis.stored_run import StoredRun, chosen_positions
from lad_pl.errors import UserError
from lad_pl.metrics import same_image
from lad_pl.run.folder import Record

Question = tuple[str, str, tuple[str, ...]]
"""A sample without the order of its images: its id, its caption and its images."""
Order = tuple[str, ...]
"""The images of a prompt as they were shown."""


@dataclass(frozen=True)
class Answers:
    """One run's answers to G samples under T permutations."""

    run: StoredRun
    records: Sequence[Record]
    """The G x T lines of predictions.jsonl, sample by sample."""
    num_samples: int
    """G."""

    @cached_property
    def targets(self) -> Tensor:
        """(G, T) position of the correct image."""
        return self._shaped([record["target"] for record in self.records])

    def choices(self, method: str) -> Tensor:
        """(G, T) position that a readout or method chose, -1 where its answer could not be read."""
        return chosen_positions(self.records, method).view(self.num_samples, -1)

    def consistent(self, method: str) -> Tensor:
        """(G,) whether every permutation of a sample led to the same image."""
        permutations = self._shaped([record["permutation"] for record in self.records])
        return same_image(self.choices(method), permutations)

    @property
    def methods(self) -> tuple[str, ...]:
        """Readouts, and methods with forward passes of their own."""
        return tuple(self.records[0]["choices"])

    def _shaped(self, values: Sequence[object]) -> Tensor:
        flat = torch.tensor(values)
        return flat.view(self.num_samples, -1, *flat.shape[1:])


def answers_of(run: StoredRun) -> Answers:
    """All answers of a run.

    Raises:
        UserError: the run is not finished, or its correct answers are unknown.
    """
    samples = _samples(run)
    if len({len(prompts) for prompts in samples.values()}) > 1:
        raise UserError(f"{run.path} does not hold every sample under as many permutations; run {run.stage} again.")
    return Answers(run, [record for prompts in samples.values() for record in prompts.values()], len(samples))


def matched_answers(first: StoredRun, second: StoredRun, shared: bool = False) -> tuple[Answers, Answers]:
    """The answers of two runs to the prompts that both have, in one order.

    A prompt is the same if sample id, caption and the images in the order shown are; a sample is shared if all of its
    prompts are.

    Args:
        first: a run.
        second: another.
        shared: compare on the shared samples where the runs have other prompts as well.

    Raises:
        UserError: the prompts are not the same ones and ``shared`` is not set; no sample is shared; or the runs do not
            agree on a correct answer.
    """
    ours, theirs = _samples(first), _samples(second)
    both = [question for question, prompts in ours.items() if prompts.keys() == theirs.get(question, {}).keys()]
    if not both or (not shared and len(both) < max(len(ours), len(theirs))):
        raise UserError(_unlike(first, second, ours, theirs, len(both)))
    pairs = [(ours[question][order], theirs[question][order]) for question in both for order in ours[question]]
    for one, other in pairs:
        if one["target"] != other["target"]:
            raise UserError(
                f"Sample {one['id']}: {first.path} and {second.path} do not agree which image is correct; were the "
                "annotations changed?"
            )
    return tuple(  # type: ignore[return-value]  # two
        Answers(run, records, len(both)) for run, records in zip((first, second), zip(*pairs, strict=True), strict=True)
    )


def _samples(run: StoredRun) -> dict[Question, dict[Order, Record]]:
    """The prompts of every sample."""
    samples: dict[Question, dict[Order, Record]] = {}
    for record in run.records():
        if record["target"] is None:
            raise UserError(f"{run.path} holds predictions without known correct answers; compare runs of test.")
        images = record["images"]
        question = (record["id"], record["caption"], tuple(sorted(images)))
        samples.setdefault(question, {})[tuple(images[index] for index in record["permutation"])] = record
    if not samples:
        raise UserError(f"{run.path} holds no predictions; run {run.stage} with that run folder first.")
    return samples


def _unlike(
    first: StoredRun,
    second: StoredRun,
    ours: Mapping[Question, Mapping[Order, Record]],
    theirs: Mapping[Question, Mapping[Order, Record]],
    num_shared: int,
) -> str:
    """The error message where the prompts are not the same ones."""
    prompts = sum(len(orders.keys() & theirs.get(question, {}).keys()) for question, orders in ours.items())
    counts = [sum(map(len, samples.values())) for samples in (ours, theirs)]
    found = (
        f"{first.path} and {second.path} share {prompts} prompts of {counts[0]} and {counts[1]}, and {num_shared} "
        f"whole samples of {len(ours)} and {len(theirs)}"
    )
    if num_shared:
        return f"{found}; compare on these with --shared true."
    if prompts:
        return f"{found}; test both with the same data.num_permutations and data.permutation_seed."
    return f"{first.path} and {second.path} share no prompt; compare runs on the same annotations."
