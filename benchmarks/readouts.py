"""Accuracy and consistency of every readout of attention where attention knows the answer, and where it does not.

The demo models' sets, made-up evidence in which a few of many heads know, and, where it is at hand, evidence of a
trained model whose attention knows nothing: 20 draws of 5 out of 40 calibration samples each. The tables are written
into docs/readouts.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Figure, run
from benchmarks.models import workspace
from lad_pl import UserError
from lad_pl.calibrate import calibrate
from lad_pl.cli import main
from lad_pl.data.permutations import Permutation, cyclic_shifts, random_permutations
from lad_pl.evidence import read_prompts
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.files import atomic_write
from lad_pl.readouts import READOUTS, ReadoutSettings
from lad_pl.run.scoring import metrics_of
from lad_pl.types import Evidence

STORED, DRAWN = 40, 5
"""Calibration samples that are stored, and how many of them are drawn."""
LAYERS, HEADS = 36, 16
"""Of the made-up evidence in which few heads know."""
COLUMNS: Mapping[str, tuple[str, ReadoutSettings]] = {
    "vanilla": ("vanilla", ReadoutSettings()),
    "pride": ("pride", ReadoutSettings()),
    "agd": ("agd", ReadoutSettings()),
    "head_information": ("head_information", ReadoutSettings()),
    "without fallback": ("head_information", ReadoutSettings(head_fallback=False)),
    "head_top": ("head_top", ReadoutSettings()),
    "by qr": ("head_top", ReadoutSettings(head_score="qr", head_fallback=False)),
    "by core": ("head_top", ReadoutSettings(head_score="core", head_fallback=False)),
    "by information": ("head_top", ReadoutSettings(head_fallback=False)),
    "caption_attention": ("caption_attention", ReadoutSettings()),
    "auto": ("auto", ReadoutSettings()),
}
"""The readout and settings of each column; icr and the average over the tested orders have no draws."""
_BEGIN, _END = "<!-- written by python -m benchmarks.readouts -->\n", "<!-- end -->"


@dataclass(frozen=True)
class Options:
    sets: Sequence[str] = ("demo", "demo-hard", "few heads", "all heads", "no information")
    """Which of them."""
    samples: int | None = None
    """Test samples of each demo set; all that are not calibrated on if unset."""
    draws: int = 20
    """Calibrations of each set."""
    no_information: str | None = None
    """An .npz file with the evidence of a model whose attention knows nothing."""
    folder: str | None = None
    """Where the demo runs are kept; a temporary folder if unset."""
    out: str | None = None
    """The Markdown file whose tables are replaced, docs/readouts.md; none if unset."""


@dataclass(frozen=True)
class Evidences:
    """The evidence of one set."""

    passes: EvidenceRecords
    """The calibration passes."""
    prompts: EvidenceRecords
    """The tested prompts."""
    icr: Tensor | None = None
    """(P, N) scores of In-Context Re-ranking."""


def readouts(options: Options) -> Iterator[Figure]:
    """One line per set while they are computed; then the tables."""
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with workspace(options.folder) as path:
        for name, make in chosen_sets(options, path).items():
            rows[name] = found = measured(make(), options.draws)
            best = max(found, key=lambda column: fmean(accuracy for accuracy, _ in found[column]))
            yield Figure(f"{name}: agd", tuple(accuracy for accuracy, _ in found["agd"]), " %", note=f"best: {best}")
    if options.out is not None:
        write_tables(Path(options.out), rows)


def chosen_sets(options: Options, path: Path) -> dict[str, Callable[[], Evidences]]:
    """What makes the evidence of each set, by its name in the table."""
    sets: dict[str, Callable[[], Evidences]] = {}
    for config in ("demo", "demo-hard"):
        for n in (4, 8, 12):
            for difficulty in ("random", "adversarial"):
                if config in options.sets:
                    make = partial(demo_evidence, path, config, n, difficulty, options.samples)
                    sets[f"{config}, N = {n} {difficulty}"] = make
    if "few heads" in options.sets:
        for knowing, clarity in (
            (0, 0.0),
            (1, 0.6),
            (1, 1.0),
            (1, 2.0),
            (2, 0.3),
            (2, 1.0),
            (6, 0.3),
            (6, 1.0),
            (20, 0.3),
        ):
            make = partial(made_up_evidence, 4, LAYERS, HEADS, knowing, clarity)
            sets[f"{knowing} of {LAYERS * HEADS} heads know, strength {clarity:g}"] = make
    if "all heads" in options.sets:
        for n, clarity in ((4, 0.0), (4, 0.1), (4, 0.2), (4, 0.3), (4, 1.0), (8, 0.0), (8, 0.3)):
            make = partial(made_up_evidence, n, 5, 3, 15, clarity)
            sets[f"all of 15 heads, N = {n}, strength {clarity:g}"] = make
    if "no information" in options.sets and options.no_information is not None:
        for rows in ("attention", "caption_attention"):
            token = "last token" if rows == "attention" else "caption tokens"
            sets[f"no information, {token}"] = partial(npz_evidence, Path(options.no_information), rows)
    if not sets:
        raise UserError(f"--sets {list(options.sets)} names no set; see --help.")
    return sets


# ------------------------------------------------------------------------------------------------------- measurements


def measured(evidences: Evidences, draws: int) -> dict[str, list[tuple[float, float]]]:
    """Accuracy and consistency, in %, of every column in every draw."""
    prompts, found = evidences.prompts, dict[str, list[tuple[float, float]]]()

    def add(name: str, scores: Tensor) -> None:
        metrics = metrics_of({name: scores.argmax(-1)}, prompts)[name]
        found.setdefault(name, []).append((100 * metrics["accuracy"], 100 * metrics["consistency"]))

    columns = dict(COLUMNS)
    if prompts.evidence.caption_attention is None:
        del columns["caption_attention"]
    passes = replace(evidences.passes, evidence=replace(evidences.passes.evidence, caption_attention=None))
    for draw in range(draws):
        chosen = torch.tensor(random.Random(draw).sample(passes.sample_index.unique().tolist(), DRAWN))
        drawn = passes[torch.isin(passes.sample_index, chosen).nonzero().flatten()]
        calibration = calibrate(drawn.evidence, drawn.targets, drawn.permutations, drawn.sample_index)
        for name, (readout, settings) in columns.items():
            add(name, READOUTS[readout](prompts.evidence, calibration, settings))
    if evidences.icr is not None:
        add("icr", evidences.icr)
    add("average of the orders", averaged(prompts))
    return found


def averaged(prompts: EvidenceRecords) -> Tensor:
    """(P, N): mean of the log-probabilities over the T tested orders of the sample, by image."""
    order, t = prompts.permutations, prompts.num_permutations
    by_image = torch.zeros_like(prompts.evidence.log_probs).scatter(1, order, prompts.evidence.log_probs)
    mean = by_image.view(-1, t, order.shape[1]).mean(1, keepdim=True).expand(-1, t, -1).flatten(0, 1)
    return mean.gather(1, order)


def write_tables(path: Path, rows: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> None:
    """Replace the tables of a page, between its two marks."""
    before, _, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    if not rest:
        raise UserError(f"{path} has no line {_BEGIN.strip()} to write the tables after.")
    columns = [*COLUMNS, "icr", "average of the orders"]
    parts = []
    for number, title in enumerate(("Accuracy", "Consistency")):
        head = f"| {title}, % | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1)
        lines = [
            f"| {name} | "
            + " | ".join(_cell([pair[number] for pair in found.get(column, ())]) for column in columns)
            + " |"
            for name, found in rows.items()
        ]
        parts.append("\n".join((head, *lines)))
    with atomic_write(path) as partial_file:
        partial_file.write_text(f"{before}{_BEGIN}\n" + "\n\n".join(parts) + f"\n\n{_END}{after}", encoding="utf-8")


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.1f} ± {spread:.1f}" if spread >= 0.05 else f"{fmean(values):.1f}"


# ----------------------------------------------------------------------------------------------------------- evidence


def demo_evidence(path: Path, config: str, n: int, difficulty: str, samples: int | None) -> Evidences:
    """Of a demo model, from a run of fit and test; its files are found again in the same folder."""
    folder = path / f"{config}-{n}-{difficulty}"
    options = [
        f"--config=configs/{config}.yaml",
        f"--data.num_candidates={n}",
        f"--data.difficulty={difficulty}",
        f"--data.num_calibration={STORED}",
        f"--trainer.default_root_dir={folder}",
        "--trainer.enable_progress_bar=false",
    ]
    tested = [] if samples is None else [f"--data.num_test={samples}"]
    with redirect_stdout(StringIO()):
        for command in (["fit"], ["test", "--model.methods=[icr]", *tested]):
            if main([*command, *options]):
                raise UserError(f"{' '.join(command)} with {config} failed; see above.")
    passes, prompts, contextual = (
        read_prompts(folder / f"{name}.parquet") for name in ("calibration_evidence", "evidence", "evidence-contextual")
    )
    return Evidences(passes, prompts, contextual.icr)


def made_up_evidence(n: int, layers: int, heads: int, knowing: int, clarity: float, seed: int = 101) -> Evidences:
    """Biased log-probabilities, and attention of which ``knowing`` heads find the correct image."""
    sizes = (STORED, cyclic_shifts(n), 1), (100, random_permutations(n, 5), 2)
    passes, prompts = (made_up_prompts(*size, layers, heads, knowing, clarity, seed) for size in sizes)
    return Evidences(passes, prompts)


def made_up_prompts(
    samples: int,
    orders: Sequence[Permutation],
    stream: int,
    layers: int,
    heads: int,
    knowing: int,
    clarity: float,
    seed: int,
) -> EvidenceRecords:
    """Prompts of ``samples`` samples, each in the given orders.

    A bias for positions, the same for a ``seed``, and lures, which travel with an image, are in logits and heads alike.
    """
    fixed, moving = (torch.Generator().manual_seed(number) for number in (seed, 1000 * seed + stream))
    order = torch.tensor(orders).repeat(samples, 1)
    n, sample = order.shape[1], torch.arange(samples).repeat_interleave(len(orders))
    normal = partial(torch.randn, dtype=torch.float64)
    bias, head_bias = normal(n, generator=fixed), 0.7 * normal(layers, heads, n, generator=fixed)
    strength = 0.5 + 2 * torch.rand(layers, heads, 1, generator=fixed, dtype=torch.float64)
    strength *= (torch.randperm(layers * heads, generator=fixed) < knowing).view(layers, heads, 1)
    target = torch.randint(n, (samples,), generator=moving)[sample]
    correct = (order == target[:, None]).double()
    clear = torch.rand(samples, generator=moving, dtype=torch.float64)[sample, None]
    lure = normal(samples, n, generator=moving)[sample].gather(1, order)
    mood = 1 + normal(len(order), 1, generator=moving)
    log_probs = (mood * bias + 1.5 * clear * correct + 0.4 * lure).log_softmax(-1)
    seen = (correct * (0.5 + clear) + 0.3 * lure)[:, None, None]
    noise = 0.5 * normal(len(order), layers, heads, n, generator=moving)
    attention = 1e-3 / n * (clarity * strength * seen + head_bias + noise).exp()
    return records_of(Evidence.from_heads(log_probs, attention), correct.argmax(1), order, len(orders))


def npz_evidence(path: Path, rows: str) -> Evidences:
    """Stored arrays: log_probs (K, T, N), attention (K, T, L, H, N), targets and permutations, and ..._calibration."""
    stored = {name: torch.from_numpy(values) for name, values in np.load(path).items()}

    def records(suffix: str) -> EvidenceRecords:
        arrays = (stored[f"{name}{suffix}"].flatten(0, 1) for name in ("log_probs", rows, "targets", "permutations"))
        log_probs, attention, targets, order = arrays
        evidence = Evidence.from_heads(log_probs.double(), attention.double())
        return records_of(evidence, targets.long(), order.long(), stored[f"log_probs{suffix}"].shape[1])

    return Evidences(records("_calibration"), records(""))


def records_of(evidence: Evidence, targets: Tensor, order: Tensor, per_sample: int) -> EvidenceRecords:
    rows = torch.arange(len(targets))
    return EvidenceRecords(
        evidence=evidence,
        targets=targets,
        permutations=order,
        sample_index=rows // per_sample,
        permutation_index=rows % per_sample,
        ids=tuple(map(str, (rows // per_sample).tolist())),
        seconds=torch.zeros(len(rows), dtype=torch.float64),
        forwards=torch.ones(len(rows), dtype=torch.long),
    )


if __name__ == "__main__":
    run(readouts)
