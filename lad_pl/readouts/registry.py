"""What a readout is, and the registry of all of them."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

from torch import Tensor

from lad_pl.errors import UserError
from lad_pl.readouts.equations import log_mass
from lad_pl.readouts.settings import ReadoutSettings
from lad_pl.types import Calibration, Evidence

Score = Callable[[Evidence, Calibration, ReadoutSettings], Tensor]
Factor = Literal[
    "recipe", "top_layers", "temperature", "layers", "head_exponent", "top_heads", "head_score", "num_calibration"
]
FACTORS: tuple[Factor, ...] = get_args(Factor)
"""What the choices of a readout may depend on: fields of :class:`ReadoutSettings`, which layers are captured, and how
many samples are calibrated on."""
Scale = Literal["log_probability", "posterior", "attention_mass", "nats"]
HeadInformation = Literal["head_information", "head_information_label_free"]


@dataclass(frozen=True)
class Readout:
    """A readout, called like its function, and what the analyses need to know about it.

    Raises:
        UserError: ``depends_on`` or ``scale`` names something unknown.
    """

    name: str
    function: Score
    depends_on: tuple[Factor, ...] = FACTORS
    """The factors that can change its choices; ``sweep`` varies no other."""
    scale: Scale = "log_probability"
    """What its scores are: log-probabilities up to a constant, a posterior, attention mass, or nats."""
    per_head: bool = True
    """Whether it reads the attention of every head; False: evidence with the mean over heads (H = 1) is enough."""
    captions: bool = False
    """Whether it reads the attention of the caption's tokens, which evidence of earlier versions lacks."""
    information: HeadInformation | None = None
    """The field of the calibration whose information weights the heads, where the score is :func:`head_score` (scale
    nats) or eq. 13-14 with softmax(tau * head_score) as posterior: ``sweep`` computes these together."""

    def __post_init__(self) -> None:
        unknown = [factor for factor in self.depends_on if factor not in FACTORS]
        if unknown:
            raise UserError(f"Readout {self.name} depends on '{unknown[0]}'; choose from {', '.join(FACTORS)}.")
        if self.scale not in get_args(Scale):
            raise UserError(f"Readout {self.name} has scale '{self.scale}'; choose from {', '.join(get_args(Scale))}.")

    def __call__(self, evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> Tensor:
        """Scores (B, N).

        Raises:
            UserError: ``settings.rows`` asks for attention that was not read, or as the function itself.
        """
        if settings.rows != "last" and "layers" in self.depends_on:  # it reads attention
            evidence, calibration = evidence.of_rows(settings.rows), calibration.of_rows(settings.rows)
        return self.function(evidence, calibration, settings)


class _Registry(UserDict[str, Readout]):
    def __setitem__(self, name: str, function: Score) -> None:
        """Wrap a plain function as a readout with the safe defaults."""
        super().__setitem__(name, function if isinstance(function, Readout) else Readout(name, function))


READOUTS: MutableMapping[str, Readout] = _Registry()
"""Every readout by its name."""


@overload
def readout(function: Score) -> Score: ...
@overload
def readout(
    *,
    depends_on: Sequence[Factor] = ...,
    scale: Scale = ...,
    per_head: bool = ...,
    captions: bool = ...,
    information: HeadInformation | None = ...,
) -> Callable[[Score], Score]: ...
def readout(
    function: Score | None = None,
    *,
    depends_on: Sequence[Factor] = FACTORS,
    scale: Scale = "log_probability",
    per_head: bool = True,
    captions: bool = False,
    information: HeadInformation | None = None,
) -> Score | Callable[[Score], Score]:
    """Register a function as a readout under its name, as ``@readout`` or with arguments: fields of :class:`Readout`.

    The function itself stays as it is. The defaults are safe for any readout, and slow in ``sweep``: it depends on
    every factor and reads every head.

    Raises:
        UserError: the function has no name, or an argument names something unknown.
    """

    def register(function: Score) -> Score:
        name = getattr(function, "__name__", None)
        if name is None:
            raise UserError(f"{function!r} has no name to register it by; write READOUTS['name'] = it.")
        READOUTS[name] = Readout(name, function, tuple(depends_on), scale, per_head, captions, information)
        return function

    return register if function is None else register(function)


def scale_of(name: str) -> Scale:
    """What the scores of a readout or method are; log-probabilities where no readout of that name is registered."""
    return READOUTS[name].scale if name in READOUTS else "log_probability"


def check_names(names: Sequence[str]) -> None:
    """Raise a UserError that lists the known readouts if a name is none of them or none is given."""
    unknown = [name for name in names if name not in READOUTS]
    if unknown or not names:
        what = f"'{unknown[0]}' is not a readout" if unknown else "No readout is chosen"
        raise UserError(f"{what}; choose from {', '.join(READOUTS)}.")


def log_probabilities(readout: str, scores: Tensor, settings: ReadoutSettings) -> Tensor:
    """A readout's scores as log-probabilities of the N images.

    Args:
        readout: its name; its scale decides: nats are sharpened by tau, as in eq. 12.
        scores: (..., N).
        settings: holds tau.

    Returns:
        (..., N); each row sums to probability 1.
    """
    scale = scale_of(readout)
    if scale in ("posterior", "attention_mass"):
        scores = log_mass(scores)
    elif scale == "nats":
        scores = settings.temperature * scores
    return scores.log_softmax(-1)
