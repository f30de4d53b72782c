"""Prompt templates, the identifiers' token trie, and the reading of generated answers."""

from lad_pl.prompts.answer_parsing import majority, read_choice
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import BASE_TEMPLATE, IdentifierStyle, PromptSpec, SpanRule, identifiers

__all__ = [
    "BASE_TEMPLATE",
    "AnswerTrie",
    "IdentifierStyle",
    "PromptSpec",
    "SpanRule",
    "identifiers",
    "majority",
    "read_choice",
]
