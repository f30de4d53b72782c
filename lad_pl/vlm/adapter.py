"""One class for every open vision-language model, driven by what its config and processor declare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lad_pl.answers import AnswerTrie, Prefix
from lad_pl.capture import capture, check_layers
from lad_pl.errors import UserError
from lad_pl.prompts import PromptSpec
from lad_pl.types import Batch, Evidence
from lad_pl.vlm.encoder import PromptEncoder
from lad_pl.vlm.spec import VLMSpec

LayerChoice = list[int] | str | float


class VisionLanguageModel:
    """A frozen model with its processor. Not an ``nn.Module``: its weights belong to no checkpoint and no optimiser.

    Args:
        model: of an ``AutoModelForImageTextToText`` class.
        processor: the model's processor.

    Raises:
        UserError: the model's attention cannot be read, or it takes no precomputed image features.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model: Any = model
        self.processor = processor
        self.attention_modules = _attention_modules(model)
        self.backend: str = model.config.get_text_config()._attn_implementation
        if self.backend != "eager" and not model._supports_attention_backend:
            raise UserError(
                f"{type(model).__name__} has no attention backend to read from under '{self.backend}'; "
                "set vlm.attn_implementation to eager."
            )

    @classmethod
    def load(cls, spec: VLMSpec) -> VisionLanguageModel:
        """Load model and processor."""
        return cls(spec.load_model(), spec.load_processor())

    def to(self, device: torch.device) -> VisionLanguageModel:
        """Move the weights to ``device``, unless accelerate has placed them (``device_map``)."""
        if getattr(self.model, "hf_device_map", None) is None:
            self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def num_layers(self) -> int:
        """Depth of the decoder."""
        return len(self.attention_modules)

    def layers(self, choice: LayerChoice) -> tuple[int, ...]:
        """Resolve a layer choice: a list, a range ('21-35', inclusive), or the fraction of the depth to start from.

        Raises:
            UserError: the choice cannot be read or lies beyond the model.
        """
        if isinstance(choice, list | tuple):
            chosen = tuple(choice)
        elif isinstance(choice, float):
            if not 0 <= choice < 1:
                raise UserError(f"model.layers is {choice}; a fraction of the depth lies between 0 and 1.")
            chosen = tuple(range(round(choice * self.num_layers), self.num_layers))
        else:
            first, dash, last = str(choice).partition("-")
            if not (first.strip().isdigit() and dash and last.strip().isdigit()):
                raise UserError(
                    f"model.layers is '{choice}'; give a list [21, 22], a range '21-35' or a fraction such as 0.58."
                )
            chosen = tuple(range(int(first), int(last) + 1))
        check_layers(chosen, self.num_layers)
        return chosen

    def encoder(self, prompt: PromptSpec) -> PromptEncoder:
        """The input side of this model, for the data workers."""
        config = self.model.config
        image_tokens = getattr(self.processor, "image_token_ids", None) or [getattr(config, "image_token_id", None)]
        names = ("vision_start_token_id", "vision_end_token_id")
        delimiters = [token for name in names if (token := getattr(config, name, None)) is not None]
        return PromptEncoder(self.processor, [token for token in image_tokens if token is not None], delimiters, prompt)

    @torch.no_grad()
    def evidence(self, batch: Batch, trie: AnswerTrie, layers: Sequence[int]) -> Evidence:
        """One forward pass: candidate log-probabilities and attention mass per image.

        Every distinct image goes through the vision tower once, whatever the number of permutations; candidates of
        several tokens share the prompt's key-value cache.

        Raises:
            UserError: a layer yields no attention or lies beyond the model.
        """
        batch = batch.to(self.device)
        num_candidates = batch.image_rows.shape[1]
        inputs = self._inputs(batch)
        cache = DynamicCache(config=self.model.config.get_text_config()) if trie.needs_continuation else None
        with capture(self.attention_modules, layers, batch.position_of_token, num_candidates, self.backend) as mass:
            output = self.model(**inputs, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)
        attention = mass.stacked()
        log_probs = trie.log_probs(lambda prefix: self._logits_after(prefix, output, inputs))
        return Evidence(log_probs, attention.to(log_probs.device))

    def image_features(self, vision: dict[str, Tensor]) -> Sequence[Tensor] | Tensor:
        """What the language model gets to see of M distinct images: one entry (tokens, width) each."""
        return self.model.model.get_image_features(**vision, return_dict=True).pooler_output

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Model inputs of the B prompts, with the images' features in place of their pixels."""
        features = self.image_features(batch.vision)
        rows = batch.image_rows.flatten()
        num_images = int(rows.max()) + 1
        if len(features) != num_images:
            raise UserError(
                f"{type(self.model).__name__} made {len(features)} feature blocks of {num_images} images; this model "
                "family is not supported yet."
            )
        inputs: dict[str, Any] = dict(batch.tokens)
        inputs |= {
            name: values[rows]
            for name, values in batch.vision.items()
            if len(values) == num_images and not name.startswith("pixel_")
        }
        inputs["position_ids"] = self._position_ids(inputs)
        inputs["mm_encoder_outputs"] = {"image": _reordered(features, rows)}
        return inputs

    def _position_ids(self, inputs: dict[str, Any]) -> Tensor:
        """Positions as ``generate`` makes them: 1-D or multimodal rope, blind to the padding on the left."""
        others = {name: values for name, values in inputs.items() if name != "input_ids"}
        return self.model._prepare_position_ids_for_generation(inputs["input_ids"], others)

    def _logits_after(self, prefix: Prefix, output: Any, inputs: dict[str, Any]) -> Tensor:
        """Next-token logits (B, V) after the prompt and ``prefix``, from the prompt's cache, which stays as it was."""
        if not prefix:
            return output.logits[:, -1]
        mask, last = inputs["attention_mask"], inputs["position_ids"][..., -1:]
        steps = torch.arange(1, len(prefix) + 1, device=last.device)
        tokens = mask.new_tensor(prefix).expand(len(mask), -1)
        continued = self.model(
            input_ids=tokens,
            attention_mask=torch.cat([mask, torch.ones_like(tokens)], 1),
            position_ids=last + steps,
            past_key_values=output.past_key_values,
            use_cache=True,
            logits_to_keep=1,
        )
        output.past_key_values.crop(-len(prefix))
        return continued.logits[:, -1]

    @property
    def revision(self) -> str | None:
        """The hub's commit, where the model came from there."""
        return getattr(self.model.config, "_commit_hash", None)

    def fingerprint(self) -> str:
        """A short digest of the weights: the same for a hub id and its local copy, another for other weights.

        Reads the first and last values of every tensor, rounded to bfloat16, so that loading the same files in
        float32 or in bfloat16 makes no difference.
        """
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            if parameter.is_meta or not parameter.is_floating_point():
                continue
            flat = parameter.detach().flatten()
            ends = torch.cat([flat[:8], flat[-8:]]).to(torch.bfloat16).view(torch.int16)
            digest.update(ends.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def _attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's attention modules in layer order."""
    decoder: Any = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise UserError(f"{type(model).__name__} has no decoder layers that this toolkit knows of.")
    modules: list[Any] = [getattr(layer, "self_attn", None) for layer in layers]
    if None in modules:
        raise UserError(f"Layer {modules.index(None)} of {type(model).__name__} has no attention to read.")
    return modules


def _reordered(features: Sequence[Tensor] | Tensor, rows: Tensor) -> BaseModelOutputWithPooling:
    """The features of the images that the prompts show, in prompt order."""
    chosen: Any = features[rows] if isinstance(features, Tensor) else tuple(features[row] for row in rows.tolist())
    return BaseModelOutputWithPooling(pooler_output=chosen)
