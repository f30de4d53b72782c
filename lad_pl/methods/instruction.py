"""The same prompt with a sentence that asks for fairness."""

from __future__ import annotations

from dataclasses import replace

from lad_pl.methods.base import Method, method
from lad_pl.prompts.template import PromptSpec

INSTRUCTION = "The images are shuffled; their order tells nothing. Judge every image fairly, wherever it stands. "
"""The sentence, which stands before the configured prompt."""


@method
class Instruction(Method):
    """The prompt with a sentence that asks for fairness."""

    name = "instruction"

    def prompt(self, prompt: PromptSpec) -> PromptSpec:
        """The sentence, then the configured text."""
        return replace(prompt, template=INSTRUCTION + prompt.template)
