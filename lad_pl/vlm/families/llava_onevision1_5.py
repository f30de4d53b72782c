"""LLaVA-OneVision-1.5: a RICE-ViT vision tower and a Qwen3 decoder.

The published checkpoints come with Python code for transformers 4 that transformers 5 cannot run; these classes load
the same files. Unlike that code, the tower gives an image the same features whatever other images are in the call.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoVideoProcessor,
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3Model,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from lad_pl.vlm.families.rice_vit import RiceViT, RiceViTConfig


class LLaVAOneVision1_5TextConfig(Qwen3Config):
    """Qwen3's configuration, under the model type of the published files."""

    model_type = "LLaVAOneVision1_5_text"
    base_config_key = "text_config"


class LLaVAOneVision1_5Config(PreTrainedConfig):
    """Configuration of vision tower and decoder, and the ids of the image tokens."""

    model_type = "llavaonevision1_5"
    sub_configs_defaults = {  # noqa: RUF012
        "text_config": SubConfigSpec(LLaVAOneVision1_5TextConfig),
        "vision_config": SubConfigSpec(RiceViTConfig),
    }
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    text_config: Any = None
    vision_config: Any = None
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # Published files have transformers 4's default (tied) here; the text model's setting is the correct one.
        self.tie_word_embeddings = self.text_config.tie_word_embeddings


class LLaVAOneVision1_5_PreTrainedModel(PreTrainedModel):
    """Attributes of both model classes that transformers reads."""

    config: LLaVAOneVision1_5Config
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class LLaVAOneVision1_5_Model(LLaVAOneVision1_5_PreTrainedModel):
    """Vision tower and decoder, without the output layer."""

    def __init__(self, config: LLaVAOneVision1_5Config) -> None:
        super().__init__(config)
        self.visual = RiceViT._from_config(config.vision_config)
        self.language_model = Qwen3Model._from_config(config.text_config)
        self.post_init()

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> BaseModelOutputWithPooling:
        """Encode images; ``pooler_output`` holds one (tokens, text width) tensor per image."""
        output = self.visual(pixel_values, image_grid_thw)
        num_tokens = image_grid_thw.prod(-1) // self.config.vision_config.spatial_merge_size**2
        output.pooler_output = output.pooler_output.split(num_tokens.tolist())
        return output

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder over prompts (B, S) whose image tokens show ``pixel_values``.

        Args:
            input_ids: (B, S) prompts; the alternative ``inputs_embeds`` (B, S, D) is for text alone.
            attention_mask: (B, S) one where there is a token, or a mask that transformers has prepared.
            position_ids: (B, S), counted per token whether text or image.
            past_key_values: cache of the tokens before.
            inputs_embeds: embedded tokens in place of ``input_ids``.
            pixel_values, image_grid_thw: the images of all prompts in reading order, as the processor makes them.
            mm_token_type_ids: unused; the processor makes them for models whose positions depend on the modality.
            mm_encoder_outputs: ``{"image": get_image_features(...)}`` in place of ``pixel_values``.
            kwargs: for the decoder.

        Raises:
            ValueError: the inputs exclude each other, or the images do not fill the image tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        image_output: Any = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if image_output is not None or image_grid_thw is None:
                raise ValueError("pixel_values go with image_grid_thw and without mm_encoder_outputs.")
            image_output = self.get_image_features(pixel_values, image_grid_thw, return_dict=True)
        images = () if image_output is None else tuple(image_output.pooler_output)
        if input_ids is not None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            # Tokens that follow a cached prompt are generated, and may be any token.
            if images or past_key_values is None or past_key_values.get_seq_length() == 0:
                inputs_embeds = self._show_images(input_ids, inputs_embeds, images)
        elif images:
            raise ValueError("Images need input_ids, whose image tokens they replace.")
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )

    def _show_images(self, input_ids: Tensor, embeds: Tensor, images: tuple[Tensor, ...]) -> Tensor:
        """``embeds`` (B, S, D) with the image features in place of the image tokens'."""
        if (input_ids == self.config.video_token_id).any():
            raise ValueError("The prompt holds video tokens; LLaVA-OneVision-1.5 is implemented for images only.")
        is_image = input_ids == self.config.image_token_id
        num_tokens, num_features = int(is_image.sum()), sum(len(image) for image in images)
        if num_tokens != num_features:
            raise ValueError(
                f"The prompts hold {num_tokens} image tokens, but their {len(images)} images fill {num_features}."
            )
        if not images:
            return embeds
        features = torch.cat(images).to(embeds.device, embeds.dtype)
        return embeds.masked_scatter(is_image[..., None].to(embeds.device), features)


class LLaVAOneVision1_5_ForConditionalGeneration(LLaVAOneVision1_5_PreTrainedModel, GenerationMixin):
    """The published model: :class:`LLaVAOneVision1_5_Model` and the output layer."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LLaVAOneVision1_5Config) -> None:
        super().__init__(config)
        self.model = LLaVAOneVision1_5_Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits for the last ``logits_to_keep`` positions, or for all of them where that is 0.

        The other arguments are those of :meth:`LLaVAOneVision1_5_Model.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        return CausalLMOutputWithPast(
            logits=self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def register() -> None:
    """Register the classes with transformers' Auto classes, so that published folders load without their Python code.

    Does nothing if the model type is registered already: by an earlier call, or by a version of transformers that has
    the model itself.
    """
    if LLaVAOneVision1_5Config.model_type in CONFIG_MAPPING:
        return
    config, model = LLaVAOneVision1_5Config, LLaVAOneVision1_5_ForConditionalGeneration
    AutoConfig.register(config.model_type, config)
    AutoModelForImageTextToText.register(config, model)
    AutoProcessor.register(config, Qwen2_5_VLProcessor)
    AutoImageProcessor.register(config, image_processor_classes={"torchvision": Qwen2VLImageProcessor})
    AutoVideoProcessor.register(config, Qwen2VLVideoProcessor)
    register_checkpoint_conversion_mapping(
        model.__name__,
        [
            WeightRenaming(r"^visual", "model.visual"),
            WeightRenaming(r"^model(?!\.(language_model|visual))", "model.language_model"),
        ],
    )
