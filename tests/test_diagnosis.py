"""What calibration samples that are left out tell about logits, attention and single heads, and what follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from paths import SHARED
from synthetic_run import synthetic_prompts

from lad_pl.calibrate import calibrate, lines, warning
from lad_pl.data.permutations import cyclic_shifts, random_permutations
from lad_pl.errors import UserError
from lad_pl.evidence.table import EvidenceRecords
from lad_pl.readouts import READOUTS, ReadoutSettings
from lad_pl.types import Calibration, Evidence

NO_INFORMATION = SHARED / "golden" / "no_information" / "n4.npz"
DRAWS = 8


def calibrated(records: EvidenceRecords, samples: list[int] | None = None) -> Calibration:
    if samples is not None:
        records = records[torch.isin(records.sample_index, torch.tensor(samples)).nonzero().flatten()]
    evidence = replace(records.evidence, caption_attention=None)
    return calibrate(evidence, records.targets, records.permutations, records.sample_index)


def accuracy(name: str, records: EvidenceRecords, calibration: Calibration) -> float:
    scores = READOUTS[name](records.evidence, calibration, ReadoutSettings())
    return float((scores.argmax(-1) == records.targets).double().mean())


def made_up(n: int = 4, **options: float) -> tuple[EvidenceRecords, EvidenceRecords]:
    """40 samples to calibrate on, and 60 to test."""
    shifts, orders = cyclic_shifts(n), random_permutations(n, 5)
    return synthetic_prompts(40, shifts, 1, n=n, **options), synthetic_prompts(60, orders, 2, n=n, **options)


def test_every_figure_equals_the_reference() -> None:
    data = reference.synthetic_evidence(3, samples=4, n=3, layers=3, heads=4)
    tensors = {name: torch.tensor(values) for name, values in data.items()}
    found = calibrate(
        Evidence.from_heads(tensors["log_probs"], tensors["attention"]),
        *(tensors[name] for name in ("targets", "permutations", "samples")),
    ).diagnosis
    assert found is not None
    scores: dict[str, list[np.ndarray]] = {name: [] for name in found.accuracy}
    for row, sample in enumerate(data["samples"]):
        rest = {name: values[data["samples"] != sample] for name, values in data.items() if name != "permutations"}
        made = reference.calibrate(**rest)
        for name, of in reference.correct(data["log_probs"][row], data["attention"][row], made).items():
            if name in scores:
                of = np.log(of) if name == "purified_attention" else 5 * of if name.startswith("head") else of
                scores[name].append(reference.log_softmax(of))
    for name, rows in scores.items():
        of, targets, samples = np.array(rows), data["targets"], data["samples"]
        assert found.accuracy[name] == pytest.approx((of.argmax(1) == targets).mean()), name
        assert found.log_likelihood[name] == pytest.approx(reference.told(of, targets, samples), abs=1e-9), name
        assert found.p_value[name] == pytest.approx(reference.exact_p_value(of, targets, samples), abs=0.05), name


@pytest.mark.parametrize("n", [4, 8])
def test_attention_that_knows(n: int) -> None:
    passes, prompts = made_up(n)
    calibration = calibrated(passes, [0, 1, 2, 3, 4])
    assert calibration.diagnosis is not None
    assert set(calibration.diagnosis.supported) == {"head_information", "head_top"}
    assert calibration.diagnosis.auto == "head_information"
    assert warning(calibration) is None
    assert accuracy("auto", prompts, calibration) == accuracy("head_information", prompts, calibration)
    assert accuracy("auto", prompts, calibration) > accuracy("agd", prompts, calibration) + 0.05


@pytest.mark.parametrize("seed", [2, 3])
def test_attention_that_knows_nothing(seed: int) -> None:
    """Many heads, of which some look informative by chance: agd stands in for them, and auto takes the logits."""
    passes, prompts = made_up(layers=12, heads=16, clarity=0.0, bias_seed=seed)
    found: dict[str, list[float]] = {name: [] for name in ("vanilla", "agd", "head_information", "head_top", "auto")}
    generator = np.random.default_rng(0)
    for _ in range(DRAWS):
        calibration = calibrated(passes, generator.choice(40, 5, replace=False).tolist())
        for name, values in found.items():
            values.append(accuracy(name, prompts, calibration))
        without = READOUTS["head_information"](prompts.evidence, calibration, ReadoutSettings(head_fallback=False))
        assert (without.argmax(-1) == prompts.targets).double().mean() < 0.35
    mean = {name: np.mean(values) for name, values in found.items()}
    assert min(mean["head_information"], mean["head_top"]) >= mean["agd"] - 0.01
    assert mean["auto"] >= max(mean["vanilla"], mean["agd"]) - 0.01


def test_one_head_in_many_knows() -> None:
    passes, prompts = made_up(layers=12, heads=16, clarity=1.5, knowing=1)
    calibration = calibrated(passes, list(range(8)))
    assert calibration.diagnosis is not None and calibration.diagnosis.supported
    assert warning(calibration)  # of the mean over heads, which drowns it
    assert accuracy("head_information", prompts, calibration) > accuracy("agd", prompts, calibration) + 0.2


@pytest.mark.skipif(not NO_INFORMATION.exists(), reason="the evidence of the model is not at hand")
@pytest.mark.parametrize("rows", ["attention", "caption_attention"])
def test_a_trained_model_whose_attention_knows_nothing(rows: str) -> None:
    stored = {name: torch.from_numpy(values) for name, values in np.load(NO_INFORMATION).items()}
    passes, prompts = (_records(stored, suffix, rows) for suffix in ("_calibration", ""))
    generator = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in ("vanilla", "agd", "head_information", "head_top", "auto")}
    warned = 0
    for _ in range(DRAWS):
        calibration = calibrated(passes, generator.choice(40, 5, replace=False).tolist())
        warned += warning(calibration) is not None
        for name, values in found.items():
            values.append(accuracy(name, prompts, calibration))
    mean = {name: np.mean(values) for name, values in found.items()}
    assert mean["auto"] >= max(mean["vanilla"], mean["agd"]) - 0.01
    assert min(mean["head_information"], mean["head_top"]) >= mean["agd"] - 0.01
    assert warned >= DRAWS - 2


def _records(stored: dict[str, torch.Tensor], suffix: str, rows: str) -> EvidenceRecords:
    log_probs = stored[f"log_probs{suffix}"].double()
    samples, orders = log_probs.shape[:2]
    evidence = Evidence.from_heads(log_probs.flatten(0, 1), stored[f"{rows}{suffix}"].double().flatten(0, 1))
    number = torch.arange(samples * orders)
    return EvidenceRecords(
        evidence=evidence,
        targets=stored[f"targets{suffix}"].long().flatten(),
        permutations=stored[f"permutations{suffix}"].long().flatten(0, 1),
        sample_index=number // orders,
        permutation_index=number % orders,
        ids=tuple(map(str, (number // orders).tolist())),
        seconds=torch.zeros(len(number)).double(),
        forwards=torch.ones(len(number)).long(),
    )


def test_one_sample_cannot_be_left_out() -> None:
    passes, prompts = made_up()
    calibration = calibrated(passes, [3])
    assert calibration.diagnosis is not None and not calibration.diagnosis.p_value
    assert "one calibration sample" in "".join(lines(calibration)) and warning(calibration) is None
    for name, other in {"auto": "vanilla", "head_information": "agd", "head_top": "agd", "agd_head": "agd"}.items():
        assert accuracy(name, prompts, calibration) == accuracy(other, prompts, calibration)


def test_many_samples_are_left_out_in_parts() -> None:
    passes, _ = made_up()
    found = calibrated(passes).diagnosis
    assert found is not None and found.accuracy["head_information"] > 0.95


def test_a_calibration_of_an_earlier_version_decides_nothing() -> None:
    passes, prompts = made_up(clarity=0.0)
    calibration = replace(calibrated(passes), diagnosis=None)
    settings = ReadoutSettings(head_fallback=False)
    expected = READOUTS["head_information"](prompts.evidence, calibration, settings)
    assert torch.equal(READOUTS["head_information"](prompts.evidence, calibration, ReadoutSettings()), expected)
    with pytest.raises(UserError, match="auto needs a calibration of this version of lad_pl; run fit again"):
        READOUTS["auto"](prompts.evidence, calibration, settings)


def test_what_is_printed() -> None:
    passes, _ = made_up()
    knows = lines(calibrated(passes, [0, 1, 2, 3, 4]))
    assert [line.split(":")[0] for line in knows] == ["Logits", "Attention", "Single heads"]
    assert "chance 25 %" in knows[0] and "auto takes head_information" in knows[2]
    passes, _ = made_up(clarity=0.0)
    calibration = calibrated(passes, [0, 1, 2, 3, 4])
    assert "no better than chance" in lines(calibration)[1]
    assert "no better than chance" in (warning(calibration) or "")
