"""Refuse prompts that are longer than the language model's context: beyond it, answers mean nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lad_pl.errors import UserError


def context_length(config: Any) -> int | None:
    """The most tokens that a language model has positions for, with its rope scaling; None where it sets no limit.

    Args:
        config: the model's configuration.
    """
    text = config.get_text_config(decoder=True)
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    scalings = [item for item in (rope, *rope.values()) if isinstance(item, dict)]  # of all layers, or by their kind
    extended = [
        int(scaling["original_max_position_embeddings"] * scaling["factor"])
        for scaling in scalings
        if scaling.get("original_max_position_embeddings") and scaling.get("factor")
    ]
    return max(limit, *extended) if extended else limit


def check_context(
    config: Any, lengths: Tensor, num_candidates: int, names: tuple[str, ...] | None = None, new_tokens: int = 0
) -> None:
    """Check that B prompts, and the tokens that follow them, fit into the model's context.

    Args:
        config: the model's configuration.
        lengths: (B,) tokens of each prompt.
        num_candidates: N, for the message.
        names: of the B prompts' samples, for the message; None if they have none.
        new_tokens: how many tokens of an answer follow.

    Raises:
        UserError: a prompt does not fit.
    """
    limit = context_length(config)
    longest = int(lengths.argmax())
    tokens = int(lengths[longest])
    if limit is None or tokens + new_tokens <= limit:
        return
    prompt = f"Prompt {longest + 1}" if names is None else f"Sample {names[longest]}"
    answer = f" and up to {new_tokens} of the answer" if new_tokens else ""
    raise UserError(
        f"{prompt}: the prompt of {num_candidates} images has {tokens} tokens{answer}, but the model has positions for "
        f"{limit}; show fewer or smaller images (prompt.image_size, prompt.images_kwargs)"
        f"{', or lower method.thought_tokens or chain_tokens' if new_tokens > 9 else ''}."
    )
