"""One model whose weights several processes hold together: tensor parallelism, as transformers does it.

Every process computes some heads of every attention layer, so it reads the attention of these alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from lad_pl.errors import UserError, first_line
from lad_pl.types import Evidence

_AGREEMENT = 0.05
"""By how much the processes' log-probabilities may differ; they come from the same sums, so hardly at all."""
_PLAIN_LAYERS = ("qwen3_vl", "hunyuan_vl")
"""Families for which transformers has no plan, and whose layers are built as the plan below says."""
_PLAN = {
    **{f"layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"},
    "layers.*.self_attn.o_proj": "rowwise",
    **{f"layers.*.mlp.{name}_proj": "colwise" for name in ("gate", "up")},
    "layers.*.mlp.down_proj": "rowwise",
}


class TensorParallel:
    """What a model's processes hold of it; one process that holds everything is the usual case.

    Args:
        model: as ``from_pretrained`` gives it.

    Raises:
        UserError: its layers are not split, or their attention heads cannot be dealt out evenly.
    """

    def __init__(self, model: Any) -> None:
        shared = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
        words = [embeddings.weight for embeddings in _embeddings(model)]
        split = [parameter for parameter in shared if not any(parameter is weight for weight in words)]
        if shared and not split:
            raise UserError(
                f"transformers has no plan for splitting the layers of {type(model).__name__}; leave "
                "model.vlm.tensor_parallel at 1, and spread the model with model.vlm.device_map auto."
            )
        self.group: Any = split[0].device_mesh.get_group() if split else None
        self.size: int = split[0].device_mesh.size() if split else 1
        config = model.config.get_text_config()
        self.num_heads: int = config.num_attention_heads
        for name in ("num_attention_heads", "num_key_value_heads"):
            heads = getattr(config, name, None) or self.num_heads
            if heads % self.size:
                raise UserError(
                    f"model.vlm.tensor_parallel is {self.size}, but the model has {name} = {heads}; take a divisor."
                )

    def gather_heads(self, evidence: Evidence) -> Evidence:
        """The evidence with the attention of all processes' heads, in the model's order.

        Args:
            evidence: (B, N) log-probabilities, which all processes have alike, and the attention (B, L, H / size, N) of
                this process's heads.

        Raises:
            UserError: the processes do not agree, or the heads are not dealt out evenly.
        """
        if self.size == 1:
            return evidence
        theirs = self._gathered(evidence.log_probs)
        if any((log_probs - theirs[0]).abs().max() > _AGREEMENT for log_probs in theirs):
            raise UserError(
                "The processes that share the model's weights come to different answers: transformers cannot split "
                "this model. Leave model.vlm.tensor_parallel at 1."
            )
        attention = evidence.attention
        if attention.shape[2] * self.size == self.num_heads:
            attention = torch.cat(self._gathered(attention), 2)
        elif attention.shape[2] != self.num_heads:
            raise UserError(
                f"A process reads {attention.shape[2]} of {self.num_heads} attention heads, which is not its share; "
                "leave model.vlm.tensor_parallel at 1."
            )
        return Evidence.from_heads(evidence.log_probs, attention)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around a forward pass: says so where transformers' plan does not fit the model.

        Raises:
            UserError: whole and split tensors met.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or "DTensor" not in str(error):
                raise
            raise UserError(
                f"transformers cannot split this model ({first_line(error)}); leave model.vlm.tensor_parallel at 1."
            ) from error

    def _gathered(self, values: Tensor) -> list[Tensor]:
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values, group=self.group)
        return parts


def _embeddings(model: Any) -> list[Any]:
    """The modules that hold a vector per word, which every plan splits."""
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def with_plan(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with a plan for splitting the decoder's layers, where transformers has none of its own."""
    decoder = config.get_text_config()
    if config.model_type in _PLAIN_LAYERS and decoder.base_model_tp_plan is None:
        setattr(decoder, "base_model_tp_plan", dict(_PLAN))  # noqa: B010 (a class variable, overridden here)
    return config


def whole_tensor(parameter: Tensor) -> Tensor:
    """A parameter with the parts that other processes hold; all of them must ask for it."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
