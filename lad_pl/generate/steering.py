"""Candidates' probabilities, put onto the tokens of which the candidates' names are made."""

from __future__ import annotations

import torch
from torch import Tensor

from lad_pl.prompts.answer_trie import AnswerTrie


def steered(
    scores: Tensor, answer: Tensor, trie: AnswerTrie, log_probs: Tensor, only_candidates: bool = True
) -> Tensor:
    """Let the next token follow the candidates' probabilities.

    >>> trie, nothing = AnswerTrie(((3,), (1,))), torch.empty(1, 0, dtype=torch.long)
    >>> steered(torch.zeros(1, 4), nothing, trie, torch.tensor([[0.9, 0.1]]).log()).softmax(-1)
    tensor([[0.0000, 0.1000, 0.0000, 0.9000]])

    Args:
        scores: (B, V) logits or log-probabilities of the next token.
        answer: (B, k) tokens of the answer so far.
        trie: the candidates' tokens.
        log_probs: (B, N) log-probabilities of the candidates.
        only_candidates: whether all other tokens are ruled out.

    Returns:
        (B, V). Where the answer so far begins a candidate, the tokens that go on to one have scores that differ as
        their best candidates' log-probabilities do, and together weigh what they weighed. Other rows are as they were.
    """
    result = scores.clone()
    for row, prefix in enumerate(map(tuple, answer.tolist())):
        children = list(trie.children(prefix))
        if not children:  # a candidate is complete, or something else is being said
            continue
        reached = torch.tensor(
            [[sequence[: len(prefix) + 1] == (*prefix, c) for sequence in trie.sequences] for c in children]
        )
        best = log_probs[row].cpu().masked_fill(~reached, -torch.inf).amax(-1).to(scores)
        mass = scores[row, children].logsumexp(-1)
        if only_candidates:
            result[row] = -torch.inf
        result[row, children] = mass + best.log_softmax(-1)
    return result
