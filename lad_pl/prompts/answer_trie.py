"""Candidate log-probabilities from the identifiers' token trie (paper's eq. 15-16).

The identifiers' token sequences form a trie. At every node the log-softmax runs over the node's children only, so that
the probabilities of the N candidates sum to 1, whatever tokens their identifiers have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lad_pl.errors import UserError

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class AnswerTrie:
    """The N answers as token sequences, with an end-of-turn token after an identifier that begins another."""

    sequences: tuple[Prefix, ...]
    """Token ids of each candidate after the prompt: what the chat template writes before an answer, which all have in
    common, and the identifier; they end in the end token if and only if the candidate is a prefix of another."""

    @classmethod
    def build(cls, names: Sequence[str], tokens: Sequence[Sequence[int]], end_token: Callable[[], int]) -> AnswerTrie:
        """Build the trie of N identifiers.

        Args:
            names: the identifiers as text, for error messages.
            tokens: the token ids of each answer after the prompt.
            end_token: gives the token that ends the assistant's turn; called only if one identifier begins another.

        Raises:
            UserError: an identifier has no token, or two have the same tokens.
        """
        sequences = [tuple(ids) for ids in tokens]
        for name, sequence in zip(names, sequences, strict=True):
            if not sequence:
                raise UserError(f"The tokenizer makes no token of the identifier '{name}'; use other identifiers.")
            twin = names[sequences.index(sequence)]
            if twin != name:
                raise UserError(
                    f"The tokenizer cannot tell the identifiers '{twin}' and '{name}' apart; use other identifiers "
                    "(prompt.identifiers)."
                )
        inner = {sequence[:length] for sequence in sequences for length in range(len(sequence))}
        return cls(tuple((*sequence, end_token()) if sequence in inner else sequence for sequence in sequences))

    def children(self, prefix: Prefix) -> tuple[int, ...]:
        """The tokens that may follow ``prefix``, in ascending order."""
        depth = len(prefix)
        return tuple(sorted({s[depth] for s in self.sequences if len(s) > depth and s[:depth] == prefix}))

    def branchings(self) -> tuple[Prefix, ...]:
        """The prefixes after which more than one token is valid, shortest first; () is the end of the prompt.

        Only these need the model: a single valid token has probability 1.
        """
        inner = {s[:length] for s in self.sequences for length in range(len(s))}
        return tuple(sorted((p for p in inner if len(self.children(p)) > 1), key=lambda p: (len(p), p)))

    @property
    def depth(self) -> int:
        """The most tokens of an answer after which the model is asked for the next one."""
        return max(map(len, self.branchings()), default=0)

    @property
    def needs_continuation(self) -> bool:
        """Whether any score depends on more than the logits at the prompt's last token."""
        return any(self.branchings())

    def log_probs(self, next_logits: Callable[[Prefix], Tensor]) -> Tensor:
        """Log-probabilities of the candidates: sums of log-softmaxes over the valid tokens (eq. 15-16).

        Args:
            next_logits: gives the logits (B, V) after the prompts and a prefix; called once per branching.

        Returns:
            (B, N) log-probabilities in float32; the probabilities of each prompt sum to 1.
        """
        steps: dict[tuple[Prefix, int], Tensor] = {}
        for prefix in self.branchings():
            children = self.children(prefix)
            logits = next_logits(prefix)
            valid = logits[:, torch.tensor(children, device=logits.device)].float()
            for token, column in zip(children, valid.log_softmax(-1).unbind(-1), strict=True):
                steps[prefix, token] = column
        return torch.stack([self._path(sequence, steps) for sequence in self.sequences], -1)

    @staticmethod
    def _path(sequence: Prefix, steps: dict[tuple[Prefix, int], Tensor]) -> Tensor:
        taken = (steps.get((sequence[:depth], token)) for depth, token in enumerate(sequence))
        return torch.stack([step for step in taken if step is not None]).sum(0)
