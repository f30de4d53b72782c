"""Prompt templates, the token trie of the identifiers, and the parsing of generated answers."""

from lad_pl.prompts.template import BASE_TEMPLATE, IdentifierStyle, PromptSpec, SpanRule, identifiers

__all__ = ["BASE_TEMPLATE", "IdentifierStyle", "PromptSpec", "SpanRule", "identifiers"]
