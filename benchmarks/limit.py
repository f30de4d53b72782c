"""How close ``test`` comes to the limit: each distinct image through the vision tower once, each prompt through the
language model once. The bare passes of the same batches run in the same process, in turns with ``test``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Clock, Figure, interleaved, ratios, run, timed
from benchmarks.models import workspace
from benchmarks.ours import Bench, BenchOptions, LoadedModel, Test
from lad_pl.types import Batch


@dataclass(frozen=True)
class Options(BenchOptions):
    shape: str = "0.4b"
    """Of the model: tiny, 0.4b, 3b or 8b."""
    num_candidates: int = 4
    """N."""
    samples: int = 2
    """Test samples."""
    batch_size: int = 1
    """Samples per batch."""
    num_workers: int = 1
    """data.num_workers."""
    clock: Clock = "wall"
    """wall, or cpu: seconds of this process's threads, for a machine that others use too (OMP_NUM_THREADS=1)."""


def limit(options: Options) -> list[Figure]:
    """Time of ``test`` beside the bare vision-tower and language-model passes of the same batches."""
    with workspace(options.folder) as path:
        bench = Bench.build(path, options, options.shape, options.num_candidates, options.samples)
        test = Test(bench, options.batch_size, options.num_workers)
        loaded = LoadedModel(bench)
        encoding: list[float] = []
        bare = []
        for start in range(0, options.samples, options.batch_size):
            batches: list[Batch] = []
            encoding.append(timed(lambda: batches.append(loaded.batch(start, options.batch_size))))  # noqa: B023
            bare.append(BarePasses(loaded, batches[0]))
        test()  # warm
        variants: dict[str, Callable[[], Any]] = {
            "test": test,
            "vision": lambda: [passes.vision() for passes in bare],
            "language": lambda: [passes.language() for passes in bare],
        }
        seconds = interleaved(variants, options.repeats, options.clock)
    floor = tuple(map(sum, zip(seconds["vision"], seconds["language"], strict=True)))
    prompts = f"{options.samples * options.permutations} prompts of {options.num_candidates} images"
    return [
        Figure("test / bare passes", ratios(seconds["test"], floor), at_most=1.15),
        Figure("test", seconds["test"], " s", note=prompts),
        Figure("bare vision tower", seconds["vision"], " s"),
        Figure("bare language model", seconds["language"], " s"),
        Figure("decoding and encoding, in the data workers", (sum(encoding),), " s", note="all samples, main process"),
    ]


class BarePasses:
    """The calls of the vision tower and the language model for one batch, to be made again without anything else.

    Raises:
        RuntimeError: the forward pass that is recorded saw an image or a prompt more than once: it is not the limit.
    """

    def __init__(self, loaded: LoadedModel, batch: Batch) -> None:
        model = loaded.vlm.model
        self.tower, self.decoder, self.head = model.model.visual, model.model.language_model, model.lm_head
        seen: dict[nn.Module, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {self.tower: [], self.decoder: []}
        listeners = [
            part.register_forward_pre_hook(lambda module, args, kw: seen[module].append((args, kw)), with_kwargs=True)
            for part in seen
        ]
        loaded.evidence(batch)
        for listener in listeners:
            listener.remove()
        length = batch.tokens["input_ids"].shape[1]
        self.images = seen[self.tower]
        # Continuations of the prompt are not part of the limit, nor is keeping a cache for them.
        self.prompts = [
            (args, {**kw, "past_key_values": None, "use_cache": False})
            for args, kw in seen[self.decoder]
            if kw["inputs_embeds"].shape[1] == length
        ]
        patches = sum(len(args[0]) for args, _ in self.images)
        rows = sum(len(kw["inputs_embeds"]) for _, kw in self.prompts)
        if patches != sum(batch.visual_tokens) * self.tower.spatial_merge_unit or rows != len(batch):
            raise RuntimeError(f"{patches} patches and {rows} prompts were passed; each should be once.")

    @torch.no_grad()
    def vision(self) -> None:
        """Each distinct image once."""
        for args, kw in self.images:
            self.tower(*args, **kw)

    @torch.no_grad()
    def language(self) -> None:
        """Each prompt once, and the logits of its last token."""
        for args, kw in self.prompts:
            self.head(self.decoder(*args, **kw).last_hidden_state[:, -1:])


if __name__ == "__main__":
    run(limit)
