"""The same question in other words, or with other attention: instruction and SoFA."""

from __future__ import annotations

from dataclasses import replace

from lad_pl.methods.base import Pass
from lad_pl.prompts.template import PromptSpec

INSTRUCTION = "The images are shuffled; their order tells nothing. Judge every image fairly, wherever it stands. "
"""What the instruction baseline says before the prompt."""


class Instruction(Pass):
    """The prompt with a sentence that asks for fairness."""

    name = "instruction"
    methods = ("instruction",)

    def prompt(self, prompt: PromptSpec) -> PromptSpec:
        """The sentence, then the prompt's own words."""
        return replace(prompt, template=INSTRUCTION + prompt.template)
