import numpy as np
import pytest
import reference
import torch

from lad_pl.errors import UserError
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import identifiers

END, VOCABULARY = 99, 100


def spelled(style: str, n: int) -> tuple[tuple[str, ...], list[list[int]]]:
    """Identifiers cut into single characters, the hardest a tokenizer can do."""
    names = identifiers(style, n)
    alphabet = sorted(set("".join(names)))
    return names, [[alphabet.index(character) for character in name] for name in names]


def table_logits(prefix: tuple[int, ...], batch: int = 3) -> torch.Tensor:
    """Logits (B, V) that depend on the prefix alone."""
    generator = torch.Generator().manual_seed(hash(prefix) % 2**31)
    return torch.randn(batch, VOCABULARY, generator=generator, dtype=torch.float64) * 3


@pytest.mark.parametrize("style", ["digits", "upper", "lower", "roman", "words"])
@pytest.mark.parametrize("n", [2, 4, 9, 10, 12, 20, 26])
def test_log_probs_equal_the_brute_force_trie(style: str, n: int) -> None:
    names, tokens = spelled(style, n)
    ours = AnswerTrie.build(names, tokens, lambda: END).log_probs(table_logits)
    for row in range(3):
        theirs = reference.trie_log_probs(tokens, END, lambda prefix, row=row: table_logits(prefix)[row].numpy())
        np.testing.assert_allclose(ours[row].numpy(), theirs, atol=2e-6)
    np.testing.assert_allclose(ours.exp().sum(-1).numpy(), 1.0, atol=1e-6)


def test_single_tokens_need_no_continuation() -> None:
    trie = AnswerTrie.build(("1", "2", "3"), [[5], [6], [7]], lambda: END)
    assert not trie.needs_continuation
    assert trie.branchings() == ((),)


def test_only_the_one_is_looked_at_again_up_to_nineteen() -> None:
    names, tokens = spelled("digits", 19)
    trie = AnswerTrie.build(names, tokens, lambda: END)
    one = (tokens[0][0],)
    assert trie.branchings() == ((), one)
    assert END in trie.children(one)
    assert END not in {token for name, s in zip(names, trie.sequences, strict=True) if name != "1" for token in s}


def test_identifiers_that_look_alike_are_refused() -> None:
    with pytest.raises(UserError, match="cannot tell the identifiers 'a' and 'b' apart"):
        AnswerTrie.build(("a", "b"), [[0], [0]], lambda: END)
    with pytest.raises(UserError, match="makes no token"):
        AnswerTrie.build(("a", "b"), [[0], []], lambda: END)
