"""Methods that have forward passes of their own, beside the readouts, which share the pass of DirectAnswer.

A method says which prompts in which orders are shown to the model, what is read from the forward pass, and how scores
or choices follow from the stored evidence. ``@method`` registers one, a user's own as well.
"""

from lad_pl.methods.base import (
    METHODS,
    DirectAnswer,
    Method,
    MethodOutput,
    MethodSettings,
    check_methods,
    method,
)
from lad_pl.methods.chain_of_thought import ChainOfThought, SelfConsistency
from lad_pl.methods.contextual_calibration import ContextualCalibration
from lad_pl.methods.instruction import Instruction
from lad_pl.methods.permutation_average import PermutationAverage, RandomPermutationAverage
from lad_pl.methods.runner import MethodRunner
from lad_pl.methods.sofa import SofaPaper, SofaPublished

__all__ = [
    "METHODS",
    "ChainOfThought",
    "ContextualCalibration",
    "DirectAnswer",
    "Instruction",
    "Method",
    "MethodOutput",
    "MethodRunner",
    "MethodSettings",
    "PermutationAverage",
    "RandomPermutationAverage",
    "SelfConsistency",
    "SofaPaper",
    "SofaPublished",
    "check_methods",
    "method",
]
