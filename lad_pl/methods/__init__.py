"""The ways of asking a model: what a method needs from it beyond, or in place of, the prompt as configured.

A pass says which prompt in which orders is put to the model, what is measured, and what that makes of a stored answer:
scores or choices. Readouts share the plain pass; each of the other methods rests on one of its own.
"""

from collections.abc import Sequence

from lad_pl.errors import UserError
from lad_pl.methods.base import PLAIN, MethodSettings, Pass, counted, plain_batch
from lad_pl.methods.chain_of_thought import ChainOfThought, SelfConsistency
from lad_pl.methods.contextual_calibration import Contextual
from lad_pl.methods.instruction import Instruction
from lad_pl.methods.permutation_average import PermutationAverage, RandomPermutationAverage
from lad_pl.methods.sofa import SofaPaper, SofaPublished
from lad_pl.readouts import READOUTS

_KINDS: tuple[type[Pass], ...] = (
    Pass,
    Instruction,
    ChainOfThought,
    SelfConsistency,
    PermutationAverage,
    RandomPermutationAverage,
    SofaPublished,
    SofaPaper,
    Contextual,
)
PASSES: dict[str, type[Pass]] = {kind.name: kind for kind in _KINDS}
"""Every pass by its name."""
METHODS: dict[str, str] = {method: kind.name for kind in _KINDS for method in kind.methods}
"""The name of the pass that each method rests on."""


def check_methods(names: Sequence[str]) -> None:
    """Raise a UserError that lists the known methods if a name is none of them."""
    unknown = [name for name in names if name not in METHODS]
    if unknown and unknown[0] in READOUTS:
        raise UserError(f"'{unknown[0]}' needs no passes of its own; name it in model.readouts.")
    if unknown:
        raise UserError(f"'{unknown[0]}' is not a method; choose from {', '.join(METHODS)}.")


__all__ = ["METHODS", "PASSES", "PLAIN", "MethodSettings", "Pass", "check_methods", "counted", "plain_batch"]
