"""A run folder as ``fit`` and ``test`` leave it, from made-up evidence with a planted position bias."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lad_pl.calibrate import calibrate, pack
from lad_pl.data.permutations import Permutation, cyclic_shifts, random_permutations
from lad_pl.evidence.store import EvidenceStore, read_prompts
from lad_pl.evidence.table import EvidenceRecords, as_stored
from lad_pl.readouts import ReadoutSettings
from lad_pl.run.scoring import choices_of, metrics_of, scores_of
from lad_pl.types import Evidence

READOUTS = ("vanilla", "pride", "raw_attention", "purified_attention", "agd", "head_information")


def synthetic_run(
    path: str | Path,
    n: int = 4,
    layers: int = 5,
    heads: int = 3,
    samples: int = 20,
    permutations: int = 5,
    calibration_samples: int = 6,
    seed: int = 0,
    first_layer: int = 21,
    readouts: Sequence[str] = READOUTS,
    methods: Sequence[str] = (),
    readout: ReadoutSettings = ReadoutSettings(),  # noqa: B008 (frozen)
    clarity: float = 1.0,
) -> Path:
    """Write a run folder and return it.

    Args:
        path: the folder.
        n: N.
        layers: L; they are called first_layer, first_layer + 1, ...
        heads: H.
        samples: tested samples.
        permutations: T.
        calibration_samples: each under its N cyclic shifts.
        seed: of the evidence; the bias of a model is that of its seed, in calibration and test alike.
        first_layer: number of the first stored layer.
        readouts: in metrics.json and predictions.jsonl.
        methods: names of methods with passes of their own that are to be there as well, a little better than vanilla.
        readout: the free choices of the correction.
        clarity: how clearly attention identifies the correct image; 0: not at all.
    """
    path = Path(path)
    shape = {"n": n, "layers": layers, "heads": heads, "bias_seed": seed, "clarity": clarity}
    _store(path / "calibration_evidence.parquet", synthetic_prompts(calibration_samples, cyclic_shifts(n), 1, **shape))
    _store(path / "evidence.parquet", synthetic_prompts(samples, random_permutations(n, permutations), 2, **shape))
    passes, prompts = (read_prompts(path / name) for name in ("calibration_evidence.parquet", "evidence.parquet"))
    calibration = calibrate(passes.evidence, passes.targets, passes.permutations, passes.sample_index)
    provenance = {"calibration_samples": sorted(set(passes.ids)), "num_samples": calibration_samples}
    torch.save(pack(calibration, provenance), path / "calibration.ckpt")

    scores = scores_of(prompts, calibration, readout, readouts)
    generator = torch.Generator().manual_seed(seed)
    for method in methods:
        noise = torch.rand(prompts.evidence.log_probs.shape, generator=generator, dtype=torch.float64)
        scores[method] = prompts.evidence.log_probs + 0.5 * noise
    choices = choices_of(scores)
    report = {
        "readouts": metrics_of(choices, prompts),
        "num_samples": samples,
        "num_permutations": permutations,
        "num_candidates": n,
        "num_calibration_samples": calibration_samples,
        "layers": list(range(first_layer, first_layer + layers)),
        "model": "synthetic",
        "calibration": str(path / "calibration.ckpt"),
        "settings": {
            "num_candidates": n,
            "readout": asdict(readout),
            "readouts": list(readouts),
            "methods": list(methods),
            "rank_by": "agd" if "agd" in readouts else readouts[0],
            "calibration_samples": provenance["calibration_samples"],
        },
    }
    costs = {name: {"forwards": n if name in methods else 1, "seconds": 0.01} for name in scores}
    _json(path / "metrics.json", report)
    _json(path / "costs.json", {"methods": costs})
    _predictions(path / "predictions.jsonl", prompts, scores, choices, report["settings"]["rank_by"])
    return path


def synthetic_prompts(
    samples: int,
    permutations: Sequence[Permutation],
    seed: int,
    n: int = 4,
    layers: int = 5,
    heads: int = 3,
    bias_seed: int = 0,
    clarity: float = 1.0,
) -> EvidenceRecords:
    """Prompts of ``samples`` samples, each under the given permutations.

    The log-probabilities prefer some positions to others more than they prefer the correct image. Attention prefers
    some positions as well, and identifies the correct image, more clearly in some heads and layers than in others.
    """
    fixed = torch.Generator().manual_seed(1000 + bias_seed)
    moving = torch.Generator().manual_seed(10_000 * (bias_seed + 1) + seed)
    bias, attention_bias = _normal(fixed, n), 0.7 * _normal(fixed, layers, heads, n)
    loudness, signal = _normal(fixed, layers, 1, 1), 0.5 + 2 * torch.rand(layers, heads, 1, generator=fixed).double()
    order = torch.tensor(permutations).repeat(samples, 1)
    sample_index = torch.arange(samples).repeat_interleave(len(permutations))
    correct = torch.randint(n, (samples,), generator=moving)[sample_index]
    is_correct = (order == correct[:, None]).double()
    strength = torch.rand(samples, generator=moving).double()[sample_index, None]
    # What belongs to the image travels with it; what belongs to the position stays.
    lure = _normal(moving, samples, n)[sample_index].gather(1, order)
    mood = 1 + _normal(moving, len(order), 1)  # how strongly this prompt feels the bias: no prior takes it off
    logits = mood * bias + 1.5 * strength * is_correct + 0.4 * lure
    marks = (
        (clarity * signal * (is_correct * (0.5 + strength) + 0.3 * lure)[:, None, None])
        + attention_bias
        + 0.5 * loudness
    )
    noise = 0.5 * _normal(moving, len(order), layers, heads, n)
    rows = torch.arange(len(order))
    masses = 0.004 / n * (marks + noise - 2).exp()
    captions = masses.roll(1, 2)  # the same of another head
    return EvidenceRecords(
        evidence=as_stored(Evidence.from_heads(logits.log_softmax(-1), masses, captions)),
        targets=is_correct.argmax(1),
        permutations=order,
        sample_index=sample_index,
        permutation_index=rows % len(permutations),
        ids=tuple(f"{'cal' if seed == 1 else 'test'}-{group}" for group in sample_index.tolist()),
        seconds=torch.full((len(order),), 0.01, dtype=torch.float64),
        forwards=torch.ones(len(order), dtype=torch.long),
    )


def _store(path: Path, prompts: EvidenceRecords) -> None:
    store = EvidenceStore(path, {"model": "synthetic"})
    store.append(prompts)
    store.close()
    store.finish(int(prompts.sample_index.max()) + 1, prompts.num_permutations)


def _predictions(
    path: Path, prompts: EvidenceRecords, scores: dict[str, Tensor], choices: dict[str, Tensor], rank_by: str
) -> None:
    order = prompts.permutations.gather(1, scores[rank_by].argsort(dim=-1, descending=True, stable=True))
    lines = []
    for row, sample in enumerate(prompts.ids):
        target = int(prompts.targets[row])
        record = {
            "id": sample,
            "caption": f"caption of {sample}",
            "images": [f"{sample}-{image}.jpg" for image in range(prompts.num_candidates)],
            "permutation": prompts.permutations[row].tolist(),
            "target": target if target >= 0 else None,
            "log_probs": prompts.evidence.log_probs[row].tolist(),
            "attention": prompts.evidence.layer_attention[row].tolist(),
            "scores": {name: values[row].tolist() for name, values in scores.items()},
            "choices": {name: int(values[row]) for name, values in choices.items()},
            "ranking": order[row].tolist(),
        }
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).double()
