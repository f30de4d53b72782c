"""What more than nine candidates cost: scoring "1" to "12" beside the same prompts scored at their first token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import DynamicCache

from benchmarks.measure import Clock, Figure, Stopwatch, interleaved, more_than, ratios, run
from benchmarks.models import workspace
from benchmarks.ours import Bench, Pass
from lad_pl import VisionLanguageModel
from lad_pl.answers import AnswerTrie
from lad_pl.prompts import identifiers

OWN_WORK = ((VisionLanguageModel, "_logits_after"), (DynamicCache, "update"))
"""What further tokens cost: their passes, and keeping the prompt's keys and values for them."""


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
) -> Iterator[Figure]:
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
    with workspace(folder) as path:
        for n in num_candidates:
            shown = Pass(Bench.build(path, shape, n, 1, permutations, dtype, device, image_size))
            batch = shown.batch()
            letters = first_tokens(shown, n)
            own: list[float] = []

            def digits() -> None:
                with Stopwatch(clock).inside(*OWN_WORK) as stopwatch:
                    shown.vlm.evidence(batch, shown.trie, shown.layers)  # noqa: B023 (called here)
                own.append(stopwatch.seconds)  # noqa: B023

            ways = {
                "digits": digits,
                "one token": lambda: shown.vlm.evidence(batch, letters, shown.layers),  # noqa: B023
            }
            interleaved(ways, 1)  # warm
            seconds = interleaved(ways, repeats, clock)
            branchings = len(shown.trie.branchings()) - 1
            share = tuple(100 * part for part in ratios(own[-repeats:], seconds["one token"]))
            more = more_than(seconds["digits"], seconds["one token"])
            note = f"{branchings} continuations of the prompt"
            yield Figure(f"the continuations' own work, share of one token's time, N={n}", share, " %", at_most=5.0)
            yield Figure(f"several tokens over one, N={n}", more, " %", at_most=5.0, note=note)
            yield Figure(f"one token, N={n}", seconds["one token"], " s", note=f"{len(batch)} prompts")


def first_tokens(shown: Pass, n: int) -> AnswerTrie:
    """A trie of N letters, one token each."""
    names = identifiers("upper", n)
    tokens = [[shown.vlm.processor.tokenizer.convert_tokens_to_ids(name)] for name in names]
    return AnswerTrie.build(names, tokens, lambda: 0)


if __name__ == "__main__":
    run(candidates)
