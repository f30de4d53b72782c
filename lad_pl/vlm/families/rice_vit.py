"""RICE-ViT, the vision tower of LLaVA-OneVision-1.5: images of any size, attention within one image."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention
from transformers.vision_utils import get_vision_position_ids

ROTARY_BASE = 10000.0


class RiceViTConfig(PreTrainedConfig):
    """Shape of the tower; ``text_hidden_size`` is the width of its output features."""

    model_type = "rice_vit"
    base_config_key = "vision_config"

    depth: int = 24
    hidden_size: int = 1024
    hidden_act: str = "gelu"
    intermediate_size: int = 4096
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    text_hidden_size: int = 4096


class RicePatchEmbed(nn.Module):
    """One linear map per patch, stored as a convolution."""

    def __init__(self, config: RiceViTConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, kernel_size=size, stride=size, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed flattened patches (P, channels * size * size) as (P, D)."""
        patches = pixel_values.to(self.proj.weight.dtype).unflatten(-1, self.proj.weight.shape[1:])
        return self.proj(patches).flatten(1)


class RiceBlock(nn.Module):
    """Attention and MLP, each after a LayerNorm and around a residual."""

    def __init__(self, config: RiceViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Qwen2_5_VLVisionAttention(config)  # type: ignore[arg-type]  # ours has what it reads
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(
        self, hidden: Tensor, cu_seqlens: Tensor, max_seqlen: int, position_embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Hidden states (S, D) of all images in a row to the next (S, D); images begin at ``cu_seqlens``."""
        hidden = hidden + self.attn(self.norm1(hidden), cu_seqlens, position_embeddings, max_seqlen)
        return hidden + self.mlp(self.norm2(hidden))


class RicePatchMerger(nn.Module):
    """Makes one feature for the language model of each 2x2 group of patches."""

    def __init__(self, config: RiceViTConfig) -> None:
        super().__init__()
        self.merged_size = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged_size, self.merged_size),
            nn.GELU(),
            nn.Linear(self.merged_size, config.text_hidden_size),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (P, D), the four of a group in a row, to features (P / 4, text width)."""
        return self.mlp(self.ln_q(patches).view(-1, self.merged_size))


class RiceViT(PreTrainedModel):
    """The vision tower. Every image is encoded independently of the others in the call."""

    config: RiceViTConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    # Not split over devices: the class token's parameters belong to no block, and the tower is small.
    _no_split_modules = ["RiceViT"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: RiceViTConfig) -> None:
        super().__init__(config)
        self.head_dim = config.hidden_size // config.num_heads
        self.patch_embed = RicePatchEmbed(config)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.class_pos_emb = nn.Parameter(torch.empty(1, self.head_dim // 2))
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(RiceBlock(config) for _ in range(config.depth))
        self.merger = RicePatchMerger(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RiceViT):
            init.normal_(module.class_embedding, std=self.config.initializer_range)
            init.normal_(module.class_pos_emb, std=self.config.initializer_range)

    def forward(self, pixel_values: Tensor, grid_thw: Tensor) -> BaseModelOutputWithPooling:
        """Encode M images.

        Args:
            pixel_values: (P, channels * size * size) flattened patches of all images in a row, those of each image
                in the order of its 2x2 groups.
            grid_thw: (M, 3) one frame, rows and columns of patches per image.

        Returns:
            The last block's patches (P, D) and, as ``pooler_output``, the merged features (P / 4, text width).
        """
        num_patches = grid_thw.prod(-1).tolist()
        lengths = [count + 1 for count in num_patches]
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=pixel_values.device)
        angles = _prepend(self.class_pos_emb.float(), self._rotary_angles(grid_thw).split(num_patches)).repeat(1, 2)
        rotation = (angles.cos(), angles.sin())
        hidden = _prepend(self.class_embedding[None], self.patch_embed(pixel_values).split(num_patches))
        hidden = self.pre_layernorm(hidden)
        for block in self.blocks:
            hidden = block(hidden, cu_seqlens, max(lengths), rotation)
        patches = torch.cat([image[1:] for image in hidden.split(lengths)])
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=self.merger(patches))

    def _rotary_angles(self, grid_thw: Tensor) -> Tensor:
        """(P, head_dim / 2) rotation by the row in the first half of the channels and by the column in the second."""
        positions = get_vision_position_ids(grid_thw, self.config.spatial_merge_size)
        steps = torch.arange(self.head_dim // 4, dtype=torch.float32, device=positions.device)
        return (positions[..., None] * ROTARY_BASE ** (-4 * steps / self.head_dim)).flatten(1)


def _prepend(class_token: Tensor, images: Sequence[Tensor]) -> Tensor:
    """All images in a row, each with the class token (1, D) in front."""
    return torch.cat([part for image in images for part in (class_token, image)])
