"""The records that the toolkit passes on, in the order of the data.

Axes have one letter everywhere: ``B`` prompts, ``N`` candidates (= images = positions), ``L`` captured layers,
``H`` attention heads, ``S`` prompt tokens, ``T`` permutations of one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lad_pl.errors import UserError

Rows = Literal["last", "caption", "both"]
"""Whose attention is read: the last prompt token's, that of the caption's tokens, or both."""


@dataclass(frozen=True)
class Sample:
    """One question: which of these images matches the caption?"""

    id: str
    """Name of the sample, unique within its annotation file."""
    images: tuple[str, ...]
    """The N image names, relative to the image folder, in the order of the annotation."""
    caption: str
    """The text that one of the images matches."""
    target: int | None
    """Index into ``images`` of the correct one (0-based), or None if it is unknown."""

    @property
    def num_candidates(self) -> int:
        """N."""
        return len(self.images)


@dataclass(frozen=True)
class PermutedSample:
    """A sample, the orders in which it is shown, and its decoded images."""

    sample: Sample
    index: int
    """Index of the sample in its split. Results are written in this order, whichever process computed them."""
    permutations: tuple[tuple[int, ...], ...]
    """T permutations; entry p of one is the original index of the image shown at position p."""
    images: tuple[Any, ...] = ()
    """The N images (``PIL.Image``, RGB) in the annotation's order, each decoded once for all T permutations."""


@dataclass(frozen=True)
class Batch:
    """The T permutations of one or more samples, tokenised, with every distinct image once.

    B prompts = samples x T; M distinct images = samples x N.
    """

    tokens: dict[str, Tensor]
    """Per-token model inputs, each (B, S), padded on the left: ``input_ids``, ``attention_mask``, ..."""
    position_of_token: Tensor
    """(B, S): the position (0..N-1) whose image span the token belongs to, or -1."""
    caption_tokens: Tensor
    """(B, S), boolean: whether the token holds characters of the caption. A row without one: they cannot be told."""
    vision: tuple[dict[str, Any], ...]
    """The image processor's output for each sample, every distinct image once: ``pixel_values``, ..."""
    visual_tokens: tuple[int, ...]
    """How many visual tokens each of the M distinct images has, in ``image_rows`` order."""
    image_rows: Tensor
    """(B, N): which of the M distinct images stands at each position."""
    permutations: Tensor
    """(B, N): original index of the image at each position."""
    targets: Tensor
    """(B,): position of the correct image, or -1 if it is unknown."""
    sample_index: Tensor
    """(B,): index of the sample in its split; prompts of one sample are neighbours."""
    ids: tuple[str, ...]
    """Sample id of each of the B prompts."""
    features: Any = None
    """The vision tower's output for the M images, once computed (lad_pl.vlm.features.PerImageFeatures)."""
    content_free: Batch | None = None
    """The same prompts with a caption that says nothing: other tokens, the same images."""

    def __len__(self) -> int:
        return self.targets.shape[0]

    def part(self, start: int, stop: int) -> Batch:
        """The prompts from ``start`` up to ``stop``, without columns that are padding for all of them.

        The images stay those of the whole batch: compute their features first.
        """
        rows = slice(start, stop)
        first = int(self.tokens["attention_mask"][rows].any(0).int().argmax())
        return replace(
            self,
            tokens={name: values[rows, first:] for name, values in self.tokens.items()},
            position_of_token=self.position_of_token[rows, first:],
            caption_tokens=self.caption_tokens[rows, first:],
            image_rows=self.image_rows[rows],
            permutations=self.permutations[rows],
            targets=self.targets[rows],
            sample_index=self.sample_index[rows],
            ids=self.ids[rows],
            content_free=None if self.content_free is None else self.content_free.part(start, stop),
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
            content_free=None if self.content_free is None else self.content_free.samples(start, stop),
        )

    def with_features(self, features: Any) -> Batch:
        """The batch with the vision tower's output, which its content-free prompts share."""
        free = None if self.content_free is None else replace(self.content_free, features=features)
        return replace(self, features=features, content_free=free)

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

        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "content_free"}
        moved = replace(self, **{name: move(value) for name, value in own.items()})
        if self.content_free is None:
            return moved
        free = replace(self.content_free, vision=()).to(device)  # the images are moved once
        return replace(moved, content_free=replace(free, vision=moved.vision))


@dataclass(frozen=True)
class Evidence:
    """The result of one forward pass over B prompts; every readout is a pure function of it."""

    log_probs: Tensor
    """(B, N): log-probability of each identifier among the valid answers (paper's eq. 15-16)."""
    attention: Tensor
    """(B, L, H, N): attention mass from the last prompt token onto each image's span (post-softmax)."""
    layer_attention: Tensor
    """(B, L, N): its mean over the heads (eq. 6). Kept beside the heads because these are stored in half precision."""
    caption_attention: Tensor | None = None
    """(B, L, H, N): attention mass from the caption's tokens onto each image's span, the mean over these tokens
    (post-softmax). None where it was not read: by an earlier version, without the heads, or because a token of some
    caption does not see the whole of every image."""

    @classmethod
    def from_heads(cls, log_probs: Tensor, attention: Tensor, caption_attention: Tensor | None = None) -> Evidence:
        """Evidence from log-probabilities (B, N) and the attention mass of every head (B, L, H, N)."""
        return cls(log_probs, attention, attention.mean(2), caption_attention)

    def __len__(self) -> int:
        return self.log_probs.shape[0]

    def __getitem__(self, rows: Any) -> Evidence:
        return self._each(lambda values: values[rows])

    def is_finite(self) -> Tensor:
        """(B,): whether all numbers of a prompt are."""
        masses = (self.attention, self.caption_attention)
        finite = [mass.isfinite().flatten(1).all(1) for mass in masses if mass is not None]
        return torch.stack([self.log_probs.isfinite().all(1), *finite]).all(0)

    def cpu(self) -> Evidence:
        """The evidence on the CPU in double precision, the precision of the readouts."""
        return self._each(lambda values: values.detach().cpu().double())

    def of_layers(self, places: Any) -> Evidence:
        """The evidence of some of the captured layers, by their places among the L."""
        caption = None if self.caption_attention is None else self.caption_attention[:, places]
        return Evidence(self.log_probs, self.attention[:, places], self.layer_attention[:, places], caption)

    def of_rows(self, rows: Rows) -> Evidence:
        """The evidence with the attention of other tokens in place of the last one's.

        Args:
            rows: last for the last prompt token, caption for the caption's tokens, both for the heads of both: 2 H.

        Raises:
            UserError: the attention of the captions' tokens was not read.
        """
        if rows == "last":
            return self
        if self.caption_attention is None:
            raise UserError(
                "The evidence has no attention of the captions' tokens. If an earlier version of lad_pl stored it, run "
                "the command that did again (fit, test, validate or predict) with --model.overwrite true; otherwise "
                "some caption's tokens cannot be told from the text around it or see no later image: choose other "
                "readouts, and readout.rows last."
            )
        masses = [self.caption_attention] if rows == "caption" else [self.attention, self.caption_attention]
        return Evidence.from_heads(self.log_probs, torch.cat(masses, 2), self.caption_attention)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Evidence:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})

    @staticmethod
    def concat(parts: Sequence[Evidence]) -> Evidence:
        """The prompts of several, one after the other; without the captions' attention where one of them has none."""

        def join(values: list[Tensor | None]) -> Any:
            known = [value for value in values if value is not None]
            return torch.cat(known) if len(known) == len(values) else None

        return Evidence(*(join([getattr(part, item.name) for part in parts]) for item in fields(Evidence)))


@dataclass(frozen=True)
class Diagnosis:
    """How much readouts tell about calibration samples that were left out of their own calibration.

    Made by :func:`lad_pl.calibrate.diagnose`; empty where there is one sample only, and none can be left out.
    """

    accuracy: dict[str, float] = field(default_factory=dict)
    """Share of the passes in which the readout chooses the correct image, by readout."""
    log_likelihood: dict[str, float] = field(default_factory=dict)
    """Mean log-probability of the correct image under the readout's scores, sharpened by one temperature, in nats;
    chance gives -log N."""
    p_value: dict[str, float] = field(default_factory=dict)
    """How often randomly assigned targets are told as well as the correct ones."""
    supported: tuple[str, ...] = ()
    """The readouts of single heads that tell the correct image beyond chance, and better than agd."""
    auto: str = "vanilla"
    """The readout that these figures support."""


@dataclass(frozen=True)
class Calibration:
    """Statistics of the calibration passes, of one model under one prompt; no test sample enters.

    Made by :func:`lad_pl.calibrate.calibrate`. Rows i are positions of the correct image, columns j candidates.
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
    """(L, H) information of each head's attention about the target, in nats, measured with the labels."""
    head_information_label_free: Tensor
    """(L, H) the same with targets inferred from the attention itself."""
    num_samples: int = field(default=0)
    """Calibration samples, each shown under its N cyclic shifts."""
    head_qr: Tensor | None = None
    """(L, H) mean attention mass of each head on the correct image: QRHead's score. This and what follows is None in
    calibrations of earlier versions."""
    head_core: Tensor | None = None
    """(L, H) contrastive score of each head: CoRe's."""
    head_qr_label_free: Tensor | None = None
    """(L, H) ``head_qr`` with inferred targets."""
    head_core_label_free: Tensor | None = None
    """(L, H) ``head_core`` with inferred targets."""
    diagnosis: Diagnosis | None = None
    """What the readouts tell about samples that are left out."""
    caption: Calibration | None = None
    """The same statistics of the attention of the captions' tokens; None where it was not read."""
    both: Calibration | None = None
    """The same statistics with the heads of both: 2 H."""

    def of_rows(self, rows: Rows) -> Calibration:
        """The calibration that fits :meth:`Evidence.of_rows`.

        Raises:
            UserError: it was made without the attention of the captions' tokens.
        """
        chosen = {"last": self, "caption": self.caption, "both": self.both}[rows]
        if chosen is None:
            raise UserError(
                f"readout.rows is {rows}, but the calibration was made without the attention of the captions' tokens; "
                "run fit again with --model.overwrite true."
            )
        return chosen

    @property
    def num_candidates(self) -> int:
        """N."""
        return self.log_p_obs_geometric.shape[0]

    def state(self) -> dict[str, Any]:
        """Plain tensors, numbers and dictionaries of them, as they are written into a checkpoint."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        nested = {"diagnosis": self.diagnosis and asdict(self.diagnosis)}
        nested |= {name: values[name] and values[name].state() for name in ("caption", "both")}
        return {name: value for name, value in {**values, **nested}.items() if value is not None}
