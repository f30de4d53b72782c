"""Corrected answers in a user's own ``model.generate``: a logits processor for the first tokens of the answer.

Inside the block of :func:`debiasing`, the model's forward pass over a prompt yields the same evidence as ``test`` and
``predict`` read. The logits of the identifiers' tokens then follow the readout's scores; later tokens are unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, PreTrainedModel, ProcessorMixin

from lad_pl.calibrate import load_calibration, warn_of_attention
from lad_pl.data.images import open_image, resize
from lad_pl.data.rgb import from_array, to_rgb
from lad_pl.errors import UserError, first_line
from lad_pl.generate.prefill_capture import PrefillCapture
from lad_pl.generate.prompt_registry import OFFSETS, PromptRegistry, watched
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import PromptSpec
from lad_pl.provenance import first_difference
from lad_pl.readouts import READOUTS, ReadoutSettings, check_names, check_top_layers, log_probabilities
from lad_pl.types import Evidence
from lad_pl.vlm import VisionLanguageModel

_UNKNOWN = (
    "The prompt of this generate call is not known: make it with this processor inside the debiasing block (or pass a "
    "data worker's output to remember), pad it on the left, and give generate the whole of it as input_ids, without "
    "assisted decoding."
)


@contextmanager
def debiasing(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    calibration: str | Path,
    readout: str = "agd",
    settings: ReadoutSettings = ReadoutSettings(),  # noqa: B008 (frozen)
    only_candidates: bool = True,
) -> Iterator[Debiasing]:
    """Corrected answers from ``model.generate``, for prompts that ``processor`` makes inside the ``with`` block.

    >>> with debiasing(model, processor, "checkpoints/mine/calibration.ckpt") as debias:  # doctest: +SKIP
    ...     inputs = debias.encode(images, "a dog on the beach").to(model.device)
    ...     output = model.generate(**inputs, logits_processor=[debias], max_new_tokens=debias.answer_length)

    Args:
        model: of an ``AutoModelForImageTextToText`` class.
        processor: the model's processor. Prompts made with it must be like those of the calibration: the same text,
            image sizes and options. :meth:`Debiasing.encode` makes such prompts, :meth:`Debiasing.text` their text.
        calibration: the file that ``fit`` wrote for this model.
        readout: name of the readout whose scores the answer follows.
        settings: the readout's settings.
        only_candidates: whether the answer can be nothing but an identifier. Otherwise all other tokens keep the
            model's probability.

    Yields:
        the logits processor, for any number of ``generate`` calls. At the end of the block, also after an exception,
        model and processor are as before.

    Raises:
        UserError: the calibration is of another model or processor, or cannot be read; the readout is unknown.
    """
    debias = Debiasing(VisionLanguageModel(model, processor), calibration, readout, settings, only_candidates)
    with watched(processor, debias.remember, debias.dated_template), debias.prefill_capture.watching():
        yield debias


class Debiasing(LogitsProcessor):
    """Gives the identifiers' tokens corrected scores; made by :func:`debiasing`.

    With P the readout's probabilities of the N candidates (:func:`lad_pl.readouts.log_probabilities`; for agd the
    softmax of its scores), a candidate's score becomes ``log M + log P``: relative to one another the candidates
    follow the readout, and the probability mass M that the model gives all of them together is unchanged. With
    ``only_candidates`` all other tokens are ruled out.

    Answers of several tokens (N > 9, or a blank before the identifier) are corrected at every step of their trie; the
    probability of a token is that of the best candidate below it. So greedy decoding writes the best candidate of the
    readout in :attr:`answer_length` tokens. Sampling draws from P if the identifiers differ in one token; otherwise it
    draws the first tokens in which they differ in proportion to their best candidates. Beam search and several
    sequences per prompt use the result like any other scores.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        calibration: str | Path,
        readout: str = "agd",
        settings: ReadoutSettings = ReadoutSettings(),  # noqa: B008 (frozen)
        only_candidates: bool = True,
    ) -> None:
        check_names([readout])
        if readout == "batch_calibration" and settings.batch == "test":
            raise UserError("readout.batch test needs all tested prompts at once; here it must be calibration.")
        if type(vlm.model).generate is not GenerationMixin.generate:
            raise UserError(
                f"{type(vlm.model).__name__} has a generate of its own, which ignores logits processors; use predict."
            )
        self.calibration, provenance = load_calibration(calibration)
        self.prompt = _prompt(str(calibration), provenance)
        """The calibration's prompt."""
        self.readout, self.settings, self.only_candidates = readout, settings, only_candidates
        self.evidence: Evidence | None = None
        """Of the B prompts of the latest ``generate`` call."""
        self.log_probs: Tensor | None = None
        """(B, N) log P of the candidates in the latest ``generate`` call, double precision."""
        self._vlm = vlm
        self._encoder = vlm.encoder(self.prompt, provenance.get("date"))
        self._layers: tuple[int, ...] = tuple(provenance["layers"])
        self._check(str(calibration), provenance)
        warn_of_attention(self.calibration, settings, [readout])
        self._trie = self._encoder.answer_trie(self.num_candidates)
        self._registry = PromptRegistry(self._encoder, self.num_candidates)
        self.prefill_capture = PrefillCapture(vlm, self._registry, self._trie, self._layers)
        """Reads the evidence from the model's forward passes."""

    def _check(self, source: str, provenance: Mapping[str, Any]) -> None:
        here = {"weights": self._vlm.fingerprint(), **self._encoder.fingerprints()}
        difference = first_difference({name: provenance.get(name) for name in here}, here)
        if difference:
            raise UserError(
                f"{source} is a calibration of another model or processor ({difference}); run fit with this."
            )
        check_top_layers(self.settings.top_layers, len(self._layers))

    @property
    def num_candidates(self) -> int:
        """N."""
        return self.calibration.num_candidates

    @property
    def answer_length(self) -> int:
        """Tokens of the longest answer, with what the chat template writes before it; for ``max_new_tokens``."""
        return max(map(len, self._trie.sequences))

    def text(self, caption: str) -> str:
        """The text of the calibration's prompt for a caption; it follows the N images.

        Where the caption may spell one of the model's own tokens, pass ``sanitize_control_tokens=True`` to
        ``apply_chat_template``, as :meth:`encode` does.
        """
        return self.prompt.text(caption, self.num_candidates)

    def encode(self, images: Sequence[Any], caption: str) -> Any:
        """The model's inputs for one prompt, made like the calibration's prompts.

        Args:
            images: N pictures, in the order in which the model sees them: paths, ``PIL.Image``, NumPy arrays
                (H x W gray, or H x W x 3, or x 4 with opacity) or tensors (the same with channels first), of uint8 or
                of floats from 0 to 1. Files and PIL images are turned upright by their EXIF orientation; what is
                transparent is shown on white.
            caption: the caption that one of them matches.

        Raises:
            UserError: the number of images is not N, one of them is something else, or the processor refuses them.
        """
        if isinstance(images, str | Path | Image.Image) or not hasattr(images, "__len__"):
            raise UserError(f"Give encode a list of {self.num_candidates} images, not {type(images).__name__}.")
        if len(images) != self.num_candidates:
            raise UserError(f"The calibration is for {self.num_candidates} images, the prompt has {len(images)}.")
        pictures = [resize(_picture(image, number), self.prompt.image_size) for number, image in enumerate(images)]
        inputs = self._encoder.tokenize([{"type": "image", "image": image} for image in pictures], self.text(caption))
        self.remember(inputs)
        inputs.pop(OFFSETS, None)
        return inputs

    def dated_template(self) -> str | None:
        """The chat template's text on the calibration's day; None if it asks for no date."""
        return self._encoder.template.dated()

    def remember(self, encoded: Mapping[str, Any]) -> None:
        """Register prompts, with the tokens that belong to each image.

        Prompts that this process makes inside the block are registered without this call. For those of a data worker,
        pass the processor's output of ``processor_kwargs={"return_text_replacement_offsets": True}``.

        Args:
            encoded: ``input_ids``, ``text_replacement_offsets`` and, where there is padding, ``attention_mask``.
        """
        self._registry.remember(encoded)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The corrected scores (B, V) of the token after ``input_ids`` (B, S).

        Raises:
            UserError: the prompts are not registered, or not like those of the calibration; or the model's output is
                not finite.
        """
        prefill = self.prefill_capture.prefill
        if prefill is None or not prefill.begins(input_ids) or prefill.steps != input_ids.shape[1] - prefill.length:
            raise UserError(_UNKNOWN)
        if prefill.steps == 0:
            self.evidence = prefill.evidence()
            _check_finite(self.evidence.is_finite())
            corrected = READOUTS[self.readout](self.evidence, self.calibration, self.settings)
            self.log_probs = log_probabilities(self.readout, corrected, self.settings)
        prefill.steps += 1
        assert self.log_probs is not None
        return candidate_logits(
            scores, input_ids[:, prefill.length :], self._trie, self.log_probs, self.only_candidates
        )


def _prompt(source: str, provenance: Mapping[str, Any]) -> PromptSpec:
    try:
        return PromptSpec(**provenance["prompt"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{source} does not record its prompt; run fit again.") from error


def _check_finite(finite: Tensor, first: int = 0) -> None:
    """Refuse the first of these prompts, numbered from ``first``, whose numbers are not finite."""
    if not finite.all():
        raise UserError(
            f"Prompt {first + int((~finite).nonzero()[0]) + 1}: the model's output is not finite; load the model in "
            "float32 or bfloat16, and give generate no other logits processor that rules out identifiers."
        )


def _picture(image: Any, number: int) -> Image.Image:
    """One of the images of :meth:`Debiasing.encode`, as RGB."""
    try:
        if isinstance(image, str | Path):
            return open_image(Path(image).expanduser(), as_seen=True)
        if isinstance(image, Tensor):
            values = image.detach().cpu()
            image = from_array((values.float() if values.is_floating_point() else values).numpy(), channels_first=True)
        elif isinstance(image, np.ndarray):
            image = from_array(image)
        if isinstance(image, Image.Image):
            return to_rgb(image, as_seen=True)
        raise ValueError(f"a value of type {type(image).__name__}")
    except UserError as error:
        raise UserError(f"images[{number}]: {error}") from error
    except Exception as error:  # Pillow raises many kinds for a file that it only decodes here
        raise UserError(
            f"images[{number}] cannot be used ({first_line(error)}); give a path, a PIL image, an array (H x W x 3, or "
            "H x W gray) or a tensor (3 x H x W), of uint8 or of floats from 0 to 1."
        ) from error


def candidate_logits(
    scores: Tensor, answer: Tensor, trie: AnswerTrie, log_probs: Tensor, only_candidates: bool = True
) -> Tensor:
    """Scores of the next token that follow the candidates' probabilities.

    >>> trie, nothing = AnswerTrie(((3,), (1,))), torch.empty(1, 0, dtype=torch.long)
    >>> candidate_logits(torch.zeros(1, 4), nothing, trie, torch.tensor([[0.9, 0.1]]).log()).softmax(-1)
    tensor([[0.0000, 0.1000, 0.0000, 0.9000]])

    Args:
        scores: (B, V) logits or log-probabilities of the next token.
        answer: (B, k) tokens of the answer so far.
        trie: the candidates' tokens.
        log_probs: (B, N) log-probabilities of the candidates.
        only_candidates: whether all other tokens are ruled out.

    Returns:
        (B, V). In rows whose answer so far is the beginning of a candidate, the tokens that continue one share their
        probability mass in proportion to their best candidates' probabilities. Other rows are unchanged.

    Raises:
        UserError: the candidates' scores in a row are not finite.
    """
    result = scores.clone()
    for row, prefix in enumerate(map(tuple, answer.tolist())):
        children = list(trie.children(prefix))
        if not children:  # a candidate is complete, or the answer is none of them
            continue
        reached = torch.tensor(
            [[sequence[: len(prefix) + 1] == (*prefix, c) for sequence in trie.sequences] for c in children]
        )
        best = log_probs[row].cpu().masked_fill(~reached, -torch.inf).amax(-1).to(scores)
        mass = scores[row, children].logsumexp(-1)
        _check_finite((mass.isfinite() & ~scores[row].isnan().any())[None], row)
        if only_candidates:
            result[row] = -torch.inf
        result[row, children] = mass + best.log_softmax(-1)
    return result
