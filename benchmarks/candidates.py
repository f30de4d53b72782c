"""What more than nine candidates cost: scoring "1" to "12" beside the same prompts scored at their first token."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure import Clock, Figure, interleaved, more_than, run
from benchmarks.models import workspace
from benchmarks.ours import Bench, Pass
from lad_pl.answers import AnswerTrie
from lad_pl.prompts import identifiers


def candidates(
    shape: str = "0.4b",
    num_candidates: Sequence[int] = (12,),
    image_size: int = 336,
    permutations: int = 1,
    repeats: int = 5,
    clock: Clock = "wall",
    dtype: str = "float32",
    device: str = "cpu",
    folder: str | None = None,
) -> list[Figure]:
    """Time of a pass whose candidates have several tokens, over one whose candidates have one.

    Args:
        shape: of the model: tiny, 0.4b, 3b or 8b.
        num_candidates: values of N, above 9.
        image_size: side in pixels of every image.
        permutations: T, the prompts of the batch.
        repeats: how often everything is measured, in turns.
        clock: wall, or cpu: seconds of this process's threads, for a machine that others use too (OMP_NUM_THREADS=1).
        dtype: number format of the weights.
        device: cpu or cuda.
        folder: where model and photographs are kept; a temporary one if unset.
    """
    figures = []
    with workspace(folder) as path:
        for n in num_candidates:
            shown = Pass(Bench.build(path, shape, n, 1, permutations, dtype, device, image_size))
            batch = shown.batch()
            letters = first_tokens(shown, n)
            ways = {
                "digits": lambda: shown.vlm.evidence(batch, shown.trie, shown.layers),  # noqa: B023 (called here)
                "one token": lambda: shown.vlm.evidence(batch, letters, shown.layers),  # noqa: B023
            }
            interleaved(ways, 1)  # warm
            seconds = interleaved(ways, repeats, clock)
            branchings = len(shown.trie.branchings()) - 1
            figures += [
                Figure(
                    f"several tokens over one, N={n}",
                    more_than(seconds["digits"], seconds["one token"]),
                    " %",
                    at_most=5.0,
                    note=f"{branchings} continuations of the prompt",
                ),
                Figure(f"one token, N={n}", seconds["one token"], " s", note=f"{len(batch)} prompts"),
            ]
    return figures


def first_tokens(shown: Pass, n: int) -> AnswerTrie:
    """A trie of N letters, one token each."""
    names = identifiers("upper", n)
    tokens = [[shown.vlm.processor.tokenizer.convert_tokens_to_ids(name)] for name in names]
    return AnswerTrie.build(names, tokens, lambda: 0)


if __name__ == "__main__":
    run(candidates)
