"""What more than nine candidates cost: scoring "1" to "12" beside the same prompts scored at their first token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import DynamicCache

from benchmarks.measure import Clock, Figure, Stopwatch, interleaved, more_than, ratios, run
from benchmarks.models import workspace
from benchmarks.ours import Bench, Pass
from lad_pl import VisionLanguageModel
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import identifiers
from lad_pl.types import Batch

OWN_WORK = ((VisionLanguageModel, "logits_after"), (DynamicCache, "update"))
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
            yield from several_over_one(shown, shown.batch(), repeats, clock)


def several_over_one(shown: Pass, batch: Batch, repeats: int, clock: Clock) -> Iterator[Figure]:
    n = shown.bench.num_candidates
    letters = first_tokens(shown, n)
    stopwatch = Stopwatch(clock)

    def digits() -> None:
        shown.vlm.evidence(batch, shown.trie, shown.layers)

    # On a GPU looking at the clock means waiting for the card, which would itself cost time.
    watch = shown.bench.device == "cpu"
    ways = {
        "digits": stopwatch.lapped(digits, *OWN_WORK) if watch else digits,
        "one token": lambda: shown.vlm.evidence(batch, letters, shown.layers),
    }
    interleaved(ways, 1)  # warm
    seconds = interleaved(ways, repeats, clock)
    if watch:
        share = tuple(100 * part for part in ratios(stopwatch.laps[-repeats:], seconds["one token"]))
        yield Figure(f"the continuations' own work, share of one token's time, N={n}", share, " %", at_most=5.0)
    more = more_than(seconds["digits"], seconds["one token"])
    note = f"{len(shown.trie.branchings()) - 1} continuations of the prompt"
    yield Figure(f"several tokens over one, N={n}", more, " %", at_most=5.0, note=note)
    yield Figure(f"one token, N={n}", seconds["one token"], " s", note=f"{len(batch)} prompts")


def first_tokens(shown: Pass, n: int) -> AnswerTrie:
    """A trie of N letters, one token each."""
    names = identifiers("upper", n)
    tokens = [[shown.vlm.processor.tokenizer.convert_tokens_to_ids(name)] for name in names]
    return AnswerTrie.build(names, tokens, lambda: 0)


if __name__ == "__main__":
    run(candidates)
