"""One class for every open vision-language model, driven by what its config and processor declare."""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin
from transformers.utils import ModelOutput

from lad_pl.errors import UserError
from lad_pl.prompts.answer_trie import AnswerTrie, Prefix
from lad_pl.prompts.template import PromptSpec
from lad_pl.types import Batch, Evidence
from lad_pl.vlm.capture import AttentionMass, capture
from lad_pl.vlm.content_free import SharedPrefix, can_be_cut
from lad_pl.vlm.context import check_context
from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.features import PerImageFeatures
from lad_pl.vlm.layers import DecoderLayers
from lad_pl.vlm.loading import VLMSpec
from lad_pl.vlm.sequences import joined_sequences, sequence_attention
from lad_pl.vlm.sofa import Sofa, soft_attention
from lad_pl.vlm.tensor_parallel import TensorParallel, whole_tensor


@dataclass(frozen=True)
class Pass:
    """What is read from one forward pass over B prompts."""

    evidence: Evidence
    caption_on_tokens: Tensor | None
    """(B, S) attention of the caption's tokens to every prompt token: the mean over the caption's tokens, the sum over
    captured layers and heads. None as ``evidence.caption_attention`` is."""


class VisionLanguageModel:
    """A frozen model with its processor. Not an ``nn.Module``: its weights go into no checkpoint and no optimiser.

    Args:
        model: of an ``AutoModelForImageTextToText`` class.
        processor: the model's processor.

    Raises:
        UserError: the model's attention cannot be read, or it takes no precomputed image features.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model: Any = model
        self.processor = processor
        self.layers = DecoderLayers.of(model)
        self.tensor_parallel = TensorParallel(model)
        self._in_sequences = sequence_attention(model)
        self.backend: str = self.model.config.get_text_config()._attn_implementation
        if self.backend != "eager" and not all(map(_uses_attention_interface, filter(None, self.layers.attention))):
            raise UserError(
                f"{type(model).__name__} computes its attention in a way of its own under '{self.backend}'; set "
                "vlm.attn_implementation to eager."
            )
        if not _takes_image_features(model):
            raise UserError(
                f"{type(model).__name__} takes no precomputed image features; this model family is not supported."
            )

    @classmethod
    def load(cls, spec: VLMSpec) -> VisionLanguageModel:
        """Load model and processor."""
        return cls(spec.load_model(), spec.load_processor())

    def to(self, device: torch.device) -> VisionLanguageModel:
        """Move the weights to ``device``, unless loading has placed them (``device_map``, ``tensor_parallel``).

        Raises:
            UserError: the weights are split over devices of another kind (``tensor_parallel``).
        """
        if self.tensor_parallel.size > 1:
            if self.device.type != device.type:
                raise UserError(
                    f"model.vlm.tensor_parallel places the model on {self.device.type}; set trainer.accelerator to it."
                )
            return self
        if getattr(self.model, "hf_device_map", None) is None and self.device != device:
            self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Device of the model's inputs."""
        placed = getattr(self.model, "hf_device_map", None)
        embeddings = self.model.get_input_embeddings()
        if placed is None:
            return embeddings.weight.device
        name = next(name for name, module in self.model.named_modules() if module is embeddings)
        parts = sorted((part for part in placed if f"{name}.".startswith(f"{part}." if part else "")), key=len)
        return torch.device("cpu" if placed[parts[-1]] == "disk" else placed[parts[-1]])

    def encoder(self, prompt: PromptSpec, date: str | None = None) -> PromptEncoder:
        """The encoder of this model's prompts, for the data workers.

        Args:
            prompt: template, identifiers and image processing.
            date: the day that a chat template which asks for the date is given, as YYYY-MM-DD; None for today.

        Raises:
            UserError: the model's config names no visual token.
        """
        names = ("image_token_id", "image_token_index", "image_patch_id")
        tokens = [token for name in names if (token := getattr(self.model.config, name, None)) is not None]
        if not tokens:
            raise UserError(f"The config of {type(self.model).__name__} names no visual token (image_token_id).")
        return PromptEncoder(self.processor, tokens[0], prompt, date)

    @torch.no_grad()
    def evidence(self, batch: Batch, trie: AnswerTrie, layers: Sequence[int], sofa: Sofa | None = None) -> Evidence:
        """One forward pass: candidate log-probabilities and attention mass per image.

        Every distinct image goes through the vision tower once, whatever the number of permutations; candidates of
        several tokens share the prompt's key-value cache.

        Args:
            batch: B prompts.
            trie: the candidates' tokens.
            layers: indices of the decoder layers to read attention from.
            sofa: soft attention between images; None for the model's own attention.

        Raises:
            UserError: a layer yields no attention or lies beyond the model, SoFA cannot act on this model, or a prompt
                is longer than the model's context.
        """
        batch = batch.to(self.device)
        self.check_context(batch, trie.depth)
        inputs = self.inputs(batch)
        cache = self._cache() if trie.needs_continuation else None
        with soft_attention(self.layers, batch.position_of_token, sofa, self.backend):
            output, mass = self._read(inputs, cache, batch, layers)
        return self._scored(trie, output, mass, inputs)

    def evidence_with_content_free(
        self, batch: Batch, trie: AnswerTrie, layers: Sequence[int]
    ) -> tuple[Evidence, Evidence]:
        """Evidence of the prompts, and of their content-free prompts; as :meth:`passes_with_content_free`."""
        own, free = self.passes_with_content_free(batch, trie, layers)
        return own.evidence, free.evidence

    @torch.no_grad()
    def passes_with_content_free(self, batch: Batch, trie: AnswerTrie, layers: Sequence[int]) -> tuple[Pass, Pass]:
        """The forward pass of the prompts, and that of their content-free prompts.

        The second pass runs over the tokens from the caption on; what stands before it is in the first one's cache.
        Where a cache cannot go back (recurrent and convolutional layers), or an image follows the caption, it is a pass
        over the whole prompt. The vision tower runs once in any case.

        Args:
            batch: B prompts with ``content_free``, from :meth:`PromptEncoder.with_content_free`.
            trie: the candidates' tokens.
            layers: indices of the decoder layers to read attention from.

        Raises:
            UserError: a layer yields no attention or lies beyond the model, or a prompt is longer than its context.
        """
        batch = batch.to(self.device)
        free = batch.content_free
        assert free is not None
        for prompts in (batch, free):
            self.check_context(prompts, trie.depth)
        inputs = self.inputs(batch)
        shared, cache = SharedPrefix.of(batch, free), self._cache()
        if shared is not None and can_be_cut(cache):
            cache.activate_past_recording()  # sliding windows keep what the content-free prompts go back to
            output, mass = self._read(inputs, cache, batch, layers)
            prefix: DynamicCache | None = shared.cut(cache)  # before continuations roll the cache back to its window
            free_inputs = self._suffix_inputs(free, shared.suffix)
        else:
            output, mass = self._read(inputs, cache if trie.needs_continuation else None, batch, layers)
            prefix = self._cache() if trie.needs_continuation else None
            free_inputs = self.inputs(free, inputs["mm_encoder_outputs"])
        own = self._passed(trie, output, mass, inputs)
        del output, cache
        output, mass = self._read(free_inputs, prefix, free, layers)
        return own, self._passed(trie, output, mass, free_inputs)

    def check_context(self, batch: Batch, new_tokens: int) -> None:
        """Check that B prompts, and ``new_tokens`` tokens of an answer, fit into the model's context.

        Raises:
            UserError: a prompt does not.
        """
        lengths = batch.tokens["attention_mask"].sum(1)
        check_context(self.model.config, lengths, batch.image_rows.shape[1], batch.ids, new_tokens)

    def _cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config.get_text_config())

    def _read(
        self, inputs: dict[str, Any], cache: DynamicCache | None, batch: Batch, layers: Sequence[int]
    ) -> tuple[Any, AttentionMass]:
        """Forward pass: the model's output, and the attention mass."""
        reading = self.capture(layers, batch.position_of_token, batch.image_rows.shape[1], batch.caption_tokens)
        with self.tensor_parallel.computing(), reading as mass:
            output = self.model(**inputs, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)
        if cache is not None:
            cache.activate_past_recording()  # lets sliding windows be rolled back
        return output, mass

    def capture(
        self, layers: Sequence[int], position_of_token: Tensor, num_candidates: int, caption_tokens: Tensor
    ) -> AbstractContextManager[AttentionMass]:
        """Read attention from this model's forward passes; see :func:`lad_pl.vlm.capture.capture`."""
        decoder = self.model.get_decoder()
        modules = self.layers.attention
        return capture(modules, layers, position_of_token, num_candidates, self.backend, caption_tokens, decoder)

    def _scored(self, trie: AnswerTrie, output: Any, mass: AttentionMass, inputs: dict[str, Any]) -> Evidence:
        attention, caption = mass.stacked(), mass.of_captions()
        log_probs = trie.log_probs(lambda prefix: self.logits_after(prefix, output, inputs))
        device = log_probs.device
        caption = None if caption is None else caption.to(device)
        return self.tensor_parallel.gather_heads(Evidence.from_heads(log_probs, attention.to(device), caption))

    def _passed(self, trie: AnswerTrie, output: Any, mass: AttentionMass, inputs: dict[str, Any]) -> Pass:
        tokens = mass.of_captions_on_tokens()
        whole = None if tokens is None else self.tensor_parallel.sum_of_heads(tokens, mass.stacked().shape[2])
        return Pass(self._scored(trie, output, mass, inputs), whole)

    @torch.no_grad()
    def with_features(self, batch: Batch) -> Batch:
        """The batch, on the model's device, with its image features: one pass of the vision tower per sample."""
        batch = batch.to(self.device)
        outputs = [self.image_features(vision) for vision in batch.vision]
        return batch.with_features(PerImageFeatures.of(outputs, batch.visual_tokens))

    def image_features(self, vision: dict[str, Any]) -> ModelOutput:
        """The vision tower's output for one sample's images, in the family's own layout.

        Args:
            vision: the image processor's output for these images.
        """
        encode = self.model.base_model.get_image_features
        accepted = inspect.signature(encode).parameters
        pixels = {name: self._in_model_dtype(values) for name, values in vision.items() if name in accepted}
        with joined_sequences(self._in_sequences):
            return encode(**pixels, return_dict=True)

    def _in_model_dtype(self, values: Any) -> Any:
        if isinstance(values, list | tuple):
            return type(values)(map(self._in_model_dtype, values))
        return values.to(self.model.dtype) if isinstance(values, Tensor) and values.is_floating_point() else values

    def inputs(self, batch: Batch, features: dict[str, Any] | None = None) -> dict[str, Any]:
        """Keyword arguments of the model's forward pass over B prompts, with image features in place of pixels.

        Args:
            batch: B prompts, on the model's device.
            features: ``mm_encoder_outputs`` of an earlier call with the same images; computed if None.
        """
        inputs: dict[str, Any] = dict(batch.tokens)
        inputs["position_ids"] = self._position_ids(batch)
        inputs["mm_encoder_outputs"] = self._features(batch) if features is None else features
        return inputs

    def _features(self, batch: Batch) -> dict[str, Any]:
        features = batch.features or self.with_features(batch).features
        return {"image": features.shown(batch.image_rows.flatten().tolist())}

    def _suffix_inputs(self, batch: Batch, length: int) -> dict[str, Any]:
        """Keyword arguments for the prompts' last tokens, which are plain text and continue a cache."""
        return {
            "input_ids": batch.tokens["input_ids"][:, -length:],
            "attention_mask": batch.tokens["attention_mask"],
            "position_ids": self._position_ids(batch)[..., -length:],
        }

    def _position_ids(self, batch: Batch) -> Tensor:
        """Position ids as ``generate`` makes them: 1-D or multimodal rope, without counting the padding on the left.

        Made prompt by prompt, because one family numbers the images across the prompts of a batch; prompts that differ
        in pixels only, as the permutations of images of one size do, share them.
        """
        rope = inspect.signature(getattr(self.model.base_model, "get_rope_index", _no_fields)).parameters
        grids = {
            name: torch.cat([vision[name] for vision in batch.vision])[batch.image_rows]
            for name in rope
            if all(name in vision for vision in batch.vision)
        }
        compared = [values.cpu().numpy() for values in (*batch.tokens.values(), *grids.values())]
        made: dict[bytes, Tensor] = {}
        positions = []
        for row in range(len(batch)):
            alike = b"".join(values[row].tobytes() for values in compared)
            if alike not in made:
                tokens = {name: values[row : row + 1] for name, values in batch.tokens.items()}
                input_ids = tokens.pop("input_ids")
                others = tokens | {name: values[row] for name, values in grids.items()}
                made[alike] = self.model._prepare_position_ids_for_generation(input_ids, others)
            positions.append(made[alike])
        return torch.cat(positions, dim=-2)  # (B, S), or (axes, B, S)

    def logits_after(self, prefix: Prefix, output: Any, inputs: dict[str, Any]) -> Tensor:
        """Next-token logits (B, V) after the prompts followed by ``prefix``.

        Args:
            prefix: tokens of the answer so far; none is the prompts' end.
            output: the model's output for the prompts, with a key-value cache, which is left as it was.
            inputs: the prompts' ``attention_mask`` (B, S) and ``position_ids`` (B, S) or (axes, B, S).
        """
        if not prefix:
            return output.logits[:, -1]
        mask, last = inputs["attention_mask"], inputs["position_ids"][..., -1:]
        steps = torch.arange(1, len(prefix) + 1, device=last.device)
        tokens = mask.new_tensor(prefix).expand(len(mask), -1)
        cache = output.past_key_values
        croppable = cache.is_croppable
        if not croppable:  # recurrent layers keep no past
            cache = copy.deepcopy(cache)
        continued = self.model(
            input_ids=tokens,
            attention_mask=torch.cat([mask, torch.ones_like(tokens)], 1),
            position_ids=last + steps,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if croppable:
            cache.crop(-len(prefix))
        return continued.logits[:, -1]

    @property
    def revision(self) -> str | None:
        """Commit hash on the hub; None for a local folder."""
        return getattr(self.model.config, "_commit_hash", None)

    def fingerprint(self) -> str:
        """A short digest of the weights: the same for a hub id and its local copy, another for other weights.

        Reads the first and last values of every tensor, rounded to bfloat16, so that loading the same files in
        float32 or in bfloat16, on one device, spread or offloaded, makes no difference.
        """
        ends = {}
        for prefix, module in self.model.named_modules():
            with align_module_device(module):  # fetches weights that are offloaded
                for name, parameter in module.named_parameters(prefix, recurse=False):
                    ends[name] = _ends(whole_tensor(parameter.detach()))
        digest = hashlib.sha256()
        for name in sorted(ends):
            digest.update(name.encode())
            digest.update(ends[name])
        return digest.hexdigest()[:16]


def _uses_attention_interface(attention: nn.Module) -> bool:
    """Whether the module calls transformers' registry of attention functions, where it can be read."""
    return hasattr(sys.modules[type(attention).__module__], "ALL_ATTENTION_FUNCTIONS")


def _takes_image_features(model: Any) -> bool:
    return model._supports_mm_encoder_outputs() and hasattr(model.base_model, "get_image_features")


def _ends(parameter: Tensor) -> bytes:
    """Shape, and the first and last values."""
    flat = parameter.flatten()
    values = torch.cat([flat[:8], flat[-8:]])
    values = values.to(torch.bfloat16).view(torch.int16) if values.is_floating_point() else values
    return str(tuple(parameter.shape)).encode() + values.cpu().numpy().tobytes()


def _no_fields() -> None:
    """Signature of ``get_rope_index`` for models that have none."""
