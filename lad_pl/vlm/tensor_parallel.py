"""Tensor parallelism: gather the attention of all heads.

transformers splits every layer over the processes, so that each computes, and can read, some of the attention heads.
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
"""Largest tolerated difference between the processes' log-probabilities, which come from the same reduced sums."""
_PLAIN_LAYERS = ("qwen3_vl", "hunyuan_vl")
"""Families for which transformers has no tensor-parallel plan, and which the plan below fits."""
_PLAN = {
    **{f"layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"},
    "layers.*.self_attn.o_proj": "rowwise",
    **{f"layers.*.mlp.{name}_proj": "colwise" for name in ("gate", "up")},
    "layers.*.mlp.down_proj": "rowwise",
}


class TensorParallel:
    """The process group over which a model is split; of size 1 for a model that is not.

    Args:
        model: as ``from_pretrained`` gives it.

    Raises:
        UserError: only the embeddings are split, or the number of heads is no multiple of the number of processes.
    """

    def __init__(self, model: Any) -> None:
        distributed = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
        embeddings = [module.weight for module in _embeddings(model)]
        split = [parameter for parameter in distributed if not any(parameter is weight for weight in embeddings)]
        if distributed and not split:
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
            evidence: log-probabilities (B, N), the same in all processes, and the attention mass (B, L, H / size, N) of
                this process's heads.

        Raises:
            UserError: the processes' log-probabilities differ, or this process has not H / size heads.
        """
        if self.size == 1:
            return evidence
        gathered = self._gathered(evidence.log_probs)
        if any((log_probs - gathered[0]).abs().max() > _AGREEMENT for log_probs in gathered):
            raise UserError(
                "The processes over which the model is split come to different answers: transformers cannot "
                "split this model. Leave model.vlm.tensor_parallel at 1."
            )
        attention, caption = evidence.attention, evidence.caption_attention
        if self._is_share(attention.shape[2]):
            attention = torch.cat(self._gathered(attention), 2)
            caption = None if caption is None else torch.cat(self._gathered(caption), 2)
        return Evidence.from_heads(evidence.log_probs, attention, caption)

    def sum_of_heads(self, values: Tensor, num_heads: int) -> Tensor:
        """What is a sum over this process's heads as the sum over all heads of the model.

        Args:
            values: the sum, of any shape.
            num_heads: how many heads this process reads.

        Raises:
            UserError: they are not H / size.
        """
        if self.size == 1 or not self._is_share(num_heads):
            return values
        return torch.stack(self._gathered(values)).sum(0)

    def _is_share(self, num_heads: int) -> bool:
        """Whether a process with so many heads has a part of them, and not all."""
        if num_heads * self.size != self.num_heads and num_heads != self.num_heads:
            raise UserError(
                f"A process reads {num_heads} of {self.num_heads} attention heads, which is not its share; "
                "leave model.vlm.tensor_parallel at 1."
            )
        return num_heads * self.size == self.num_heads

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Wrap a forward pass, to report a model that transformers' plan does not fit.

        Raises:
            UserError: an operation mixed split and plain tensors.
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
    """Input and output embeddings, which every plan splits."""
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def with_plan(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration, with a tensor-parallel plan for its decoder if transformers lacks one for the family."""
    decoder = config.get_text_config()
    if config.model_type in _PLAIN_LAYERS and decoder.base_model_tp_plan is None:
        setattr(decoder, "base_model_tp_plan", dict(_PLAN))  # noqa: B010 (a class variable, overridden here)
    return config


def whole_tensor(parameter: Tensor) -> Tensor:
    """The full tensor of a parameter; if it is split, a collective operation that every process must call."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
