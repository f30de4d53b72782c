"""The decoder's layers: which have attention to read, and which of them a run reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lad_pl.errors import UserError

LayerChoice = list[int] | int | float | str
"""A list, a range ('21-35', inclusive), or the fraction of the depth to start from. A bare integer is an error."""

_LATE = 0.58  # the fraction that chooses the published layers of the published model


@dataclass(frozen=True)
class DecoderLayers:
    """One entry per decoder layer."""

    attention: tuple[nn.Module | None, ...]
    """The self-attention module; None where a layer mixes tokens by recurrence or convolution."""
    kinds: tuple[str, ...]
    """full_attention, sliding_attention, chunked_attention, linear_attention, ...: the config's ``layer_types``, or
    full or sliding attention throughout where the config has none."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> DecoderLayers:
        """Read the layers of a vision-language model.

        Raises:
            UserError: the language model has no list of decoder layers.
        """
        decoder: Any = model.get_decoder()
        if not hasattr(decoder, "layers"):  # the language model with its head
            decoder = getattr(decoder, "model", decoder)
        layers = getattr(decoder, "layers", None)
        if layers is None:
            raise UserError(f"{type(model).__name__} has no decoder layers that can be found; it is not supported.")
        attention = tuple(getattr(layer, "self_attn", None) for layer in layers)
        window = getattr(decoder.config, "sliding_window", None)
        alike = "full_attention" if window is None else "sliding_attention"
        kinds = getattr(decoder.config, "layer_types", None) or [alike] * len(attention)
        return cls(attention, tuple(kinds))

    def __len__(self) -> int:
        return len(self.attention)

    def choose(self, choice: LayerChoice) -> tuple[int, ...]:
        """The indices of a layer choice.

        A fraction selects layers with full attention only, without the sliding-window, recurrent or convolutional
        layers between them.

        Raises:
            UserError: the choice cannot be read, lies beyond the model, or holds a layer without attention.
        """
        if isinstance(choice, list | tuple):
            chosen = tuple(choice)
        elif isinstance(choice, float):
            chosen = self._from_fraction(choice)
        elif isinstance(choice, int):
            raise UserError(
                f"model.layers is {choice}; write [{choice}] for that one layer, or a range such as 21-35, or a "
                "fraction of the depth such as 0.58."
            )
        else:
            chosen = parse_range(choice)
        check_layers(chosen, self.attention)
        return chosen

    def _from_fraction(self, fraction: float) -> tuple[int, ...]:
        if not 0 <= fraction < 1:
            raise UserError(f"model.layers is {fraction}; a fraction of the depth lies between 0 and 1.")
        late = range(round(fraction * len(self)), len(self))
        chosen = tuple(
            layer for layer in late if self.attention[layer] is not None and self.kinds[layer] == "full_attention"
        )
        if not chosen:
            raise UserError(
                f"None of the layers {late.start} to {late.stop - 1} has full attention; name the layers to read "
                "(model.layers: [...])."
            )
        return chosen


def parse_range(choice: str) -> tuple[int, ...]:
    """The layers of an inclusive range such as ``21-35``.

    Raises:
        UserError: it is none.
    """
    first, dash, last = choice.partition("-")
    if not (first.strip().isdigit() and dash and last.strip().isdigit()):
        raise UserError(
            f"model.layers is '{choice}'; give a list [21, 22], a range '21-35' or a fraction such as 0.58."
        )
    chosen = tuple(range(int(first), int(last) + 1))
    if not chosen:
        raise UserError(f"model.layers is '{choice}', which is no layer; a range runs from low to high.")
    return chosen


def check_layers(
    layers: Sequence[int], attention_modules: Sequence[nn.Module | None], setting: str = "model.layers"
) -> None:
    """Check the layers that ``setting``, an option, names.

    Raises:
        UserError: there is none, or one is named twice, lies beyond the decoder or has no attention.
    """
    depth = len(attention_modules)
    beyond = [layer for layer in layers if not 0 <= layer < depth]
    if beyond:
        remedy = f"name layers among these with {setting}"
        if setting == "model.layers":
            late = f"{round(_LATE * depth)} to {depth - 1}"
            remedy = f"--model.layers {_LATE} reads the late ones of every model: {late} here, 21 to 35 of 36"
        raise UserError(f"{setting} names layer {beyond[0]}, but the model has layers 0 to {depth - 1}; {remedy}.")
    if not layers or len(set(layers)) < len(layers):
        raise UserError(f"{setting} must name at least one layer, and each once.")
    without = [layer for layer in layers if attention_modules[layer] is None]
    if without:
        others = [layer for layer, module in enumerate(attention_modules) if module is not None]
        raise UserError(
            f"{setting} names {layer_names(without)}, which see no image: they have no self-attention (as "
            f"recurrent and convolutional ones). This model's attention is in {layer_names(others)}."
        )


def layer_names(layers: Sequence[int]) -> str:
    """``layer 3``, or ``layers 3, 5``."""
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
