"""What more than nine candidates cost: scoring "1" to "12" beside the same prompts scored at their first token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import DynamicCache

from benchmarks.measure import Clock, Figure, Stopwatch, interleaved, more_than, ratios, run
from benchmarks.models import workspace
from benchmarks.ours import Bench, BenchOptions, LoadedModel
from lad_pl import VisionLanguageModel
from lad_pl.prompts.answer_trie import AnswerTrie
from lad_pl.prompts.template import identifiers
from lad_pl.types import Batch

OWN_WORK = ((VisionLanguageModel, "logits_after"), (DynamicCache, "update"))
"""What further tokens cost: their forward passes, and keeping the prompt's keys and values for them."""


@dataclass(frozen=True)
class Options(BenchOptions):
    shape: str = "0.4b"
    """Of the model: tiny, 0.4b, 3b or 8b."""
    num_candidates: Sequence[int] = (12,)
    """Values of N, above 9."""
    permutations: int = 1
    """T, the prompts of the batch."""
    repeats: int = 5
    """How often everything is measured, in turns."""
    clock: Clock = "wall"
    """wall, or cpu: seconds of this process's threads, for a machine that others use too (OMP_NUM_THREADS=1)."""


def candidates(options: Options) -> Iterator[Figure]:
    """Time of a forward pass whose candidates have several tokens, over one whose candidates have one."""
    with workspace(options.folder) as path:
        for n in options.num_candidates:
            loaded = LoadedModel(Bench.build(path, options, options.shape, n))
            yield from several_over_one(loaded, loaded.batch(), options.repeats, options.clock)


def several_over_one(loaded: LoadedModel, batch: Batch, repeats: int, clock: Clock) -> Iterator[Figure]:
    n = loaded.bench.num_candidates
    letters = first_tokens(loaded, n)
    stopwatch = Stopwatch(clock)

    def digits() -> None:
        loaded.vlm.evidence(batch, loaded.trie, loaded.layers)

    # On a GPU looking at the clock means waiting for the card, which would itself cost time.
    on_gpu = loaded.bench.on_gpu
    variants = {
        "digits": digits if on_gpu else stopwatch.lapped(digits, *OWN_WORK),
        "one token": lambda: loaded.vlm.evidence(batch, letters, loaded.layers),
    }
    interleaved(variants, 1)  # warm
    seconds = interleaved(variants, repeats, clock)
    if not on_gpu:
        share = tuple(100 * part for part in ratios(stopwatch.laps[-repeats:], seconds["one token"]))
        yield Figure(f"the continuations' own work, share of one token's time, N={n}", share, " %", at_most=5.0)
    more = more_than(seconds["digits"], seconds["one token"])
    note = f"{len(loaded.trie.branchings()) - 1} continuations of the prompt"
    yield Figure(f"several tokens over one, N={n}", more, " %", at_most=5.0, note=note)
    yield Figure(f"one token, N={n}", seconds["one token"], " s", note=f"{len(batch)} prompts")


def first_tokens(loaded: LoadedModel, n: int) -> AnswerTrie:
    """A trie of N letters, one token each."""
    names = identifiers("upper", n)
    tokens = [[loaded.vlm.processor.tokenizer.convert_tokens_to_ids(name)] for name in names]
    return AnswerTrie.build(names, tokens, lambda: 0)


if __name__ == "__main__":
    run(candidates)
