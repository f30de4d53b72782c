"""The records that travel through the toolkit, in the order in which they come to be.

Axes have one letter everywhere: ``B`` prompts, ``N`` candidates (= images = positions), ``L`` captured layers,
``H`` attention heads, ``S`` prompt tokens, ``T`` permutations of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One question: which of these images matches the caption?"""

    id: str
    """Name of the sample, unique within its annotation file."""
    images: tuple[str, ...]
    """The N image names, relative to the image folder, in the order of the annotation."""
    caption: str
    """The text to be matched."""
    target: int | None
    """Index into ``images`` of the right one (0-based), or None where nobody knows it."""

    @property
    def num_candidates(self) -> int:
        """N."""
        return len(self.images)


@dataclass(frozen=True)
class PermutedSample:
    """A sample, the permutations under which it is shown, and its decoded images."""

    sample: Sample
    index: int
    """Place of the sample in its split. Results are written in this order, whichever process computed them."""
    permutations: tuple[tuple[int, ...], ...]
    """T permutations; entry p of one is the original index of the image shown at position p."""
    images: tuple[Any, ...] = ()
    """The N images (``PIL.Image``, RGB) in the annotation's order, each decoded once for all T permutations."""


@dataclass(frozen=True)
class Batch:
    """The T permutations of one or more samples, tokenised, with every distinct image once."""

    tokens: dict[str, Tensor]
    """Per-token model inputs, each (B, S), padded on the left: ``input_ids``, ``attention_mask``, ..."""
    position_of_token: Tensor
    """(B, S): the position (0..N-1) whose image span the token belongs to, or -1."""
    vision: tuple[dict[str, Any], ...]
    """What the image processor made of the images of each sample, every distinct image once."""
    visual_tokens: tuple[int, ...]
    """How many visual tokens each of the M distinct images has, in ``image_rows`` order."""
    image_rows: Tensor
    """(B, N): which of the M distinct images stands at each position."""
    permutations: Tensor
    """(B, N): original index of the image at each position."""
    targets: Tensor
    """(B,): position of the right image, or -1 where it is unknown."""
    sample_index: Tensor
    """(B,): index of the sample within its split; prompts of one sample are neighbours."""
    ids: tuple[str, ...]
    """Sample id of each of the B prompts."""
    features: Any = None
    """What the vision tower made of the M images, once it has seen them (lad_pl.vlm.features.PerImageFeatures)."""

    def __len__(self) -> int:
        return self.targets.shape[0]

    def part(self, start: int, stop: int) -> Batch:
        """The prompts from ``start`` up to ``stop``, without columns that are padding for all of them.

        The images stay those of the whole batch: let the vision tower see them first.
        """
        rows = slice(start, stop)
        first = int(self.tokens["attention_mask"][rows].any(0).int().argmax())
        return replace(
            self,
            tokens={name: values[rows, first:] for name, values in self.tokens.items()},
            position_of_token=self.position_of_token[rows, first:],
            image_rows=self.image_rows[rows],
            permutations=self.permutations[rows],
            targets=self.targets[rows],
            sample_index=self.sample_index[rows],
            ids=self.ids[rows],
        )

    def samples(self, start: int, stop: int) -> Batch:
        """The prompts of the samples from ``start`` up to ``stop``, with their images."""
        prompts, images = (len(count) // len(self.vision) for count in (self.targets, self.visual_tokens))
        part = self.part(start * prompts, stop * prompts)
        return replace(
            part,
            image_rows=part.image_rows - start * images,
            vision=self.vision[start:stop],
            visual_tokens=self.visual_tokens[start * images : stop * images],
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, dict):
                return {key: move(item) for key, item in value.items()}
            if isinstance(value, tuple | list):
                return type(value)(move(item) for item in value)
            return value

        return replace(self, **{item.name: move(getattr(self, item.name)) for item in fields(self)})


@dataclass(frozen=True)
class Evidence:
    """All that one forward pass tells about B prompts; every readout is a pure function of it."""

    log_probs: Tensor
    """(B, N): log-probability of each identifier among the valid answers (paper's eq. 15-16)."""
    attention: Tensor
    """(B, L, H, N): attention mass from the last prompt token onto each image's span (post-softmax)."""
    layer_attention: Tensor = None  # type: ignore[assignment]  # filled in below
    """(B, L, N): its mean over the heads (eq. 6). Kept beside the heads because these are stored in half precision."""

    def __post_init__(self) -> None:
        if self.layer_attention is None:
            object.__setattr__(self, "layer_attention", self.attention.mean(2))

    def __len__(self) -> int:
        return self.log_probs.shape[0]

    def __getitem__(self, rows: Any) -> Evidence:
        return Evidence(self.log_probs[rows], self.attention[rows], self.layer_attention[rows])

    def cpu(self) -> Evidence:
        """The evidence on the CPU in double precision, where the readouts do their arithmetic."""
        return Evidence(*(getattr(self, item.name).detach().cpu().double() for item in fields(self)))

    @staticmethod
    def cat(parts: Sequence[Evidence]) -> Evidence:
        """The prompts of several, one after the other."""
        return Evidence(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Evidence)))


@dataclass(frozen=True)
class Calibration:
    """What the calibration passes say about this model under this prompt; no test sample enters.

    Made by :func:`lad_pl.calibrate.calibrate`. Rows i are ground-truth positions, columns j candidates.
    """

    log_p_obs_geometric: Tensor
    """(N, N) mean over the passes with truth at i of log P(c_j|x): the published code's estimator of eq. 1."""
    log_p_obs_arithmetic: Tensor
    """(N, N) log of the mean over the passes with truth at i of P(c_j|x): eq. 1 as printed."""
    attention_prior: Tensor
    """(L, N) mean attention mass per layer and position, heads averaged: eq. 7."""
    log_batch_prior: Tensor
    """(N,) log of the mean probability of each candidate: the prior of batch calibration."""
    log_pride_prior: Tensor
    """(N,) log of PriDe's prior: mean over samples of the softmax of the mean over shifts of log P(c_j|x)."""
    log_attention_mean: Tensor
    """(L, H, N) mean over the passes of log attention mass, per head."""
    head_information: Tensor
    """(L, H) nats that each head's attention tells about the target, measured with the labels."""
    head_information_label_free: Tensor
    """(L, H) the same with targets inferred from the attention itself."""
    num_samples: int = field(default=0)
    """Calibration samples, each shown under its N cyclic shifts."""

    @property
    def num_candidates(self) -> int:
        """N."""
        return self.log_p_obs_geometric.shape[0]

    def state(self) -> dict[str, Tensor | int]:
        """Plain tensors and numbers, as they are written into a checkpoint."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
