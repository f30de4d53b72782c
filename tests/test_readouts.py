"""Calibration and readouts against the plain NumPy reference."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import reference
import torch

from lad_pl.calibrate import calibrate
from lad_pl.errors import UserError
from lad_pl.readouts import (
    FACTORS,
    READOUTS,
    Readout,
    ReadoutSettings,
    agd,
    check_names,
    log_bias,
    log_probabilities,
    readout,
    scale_of,
    top_layer_masses,
)
from lad_pl.types import Calibration, Evidence

CASES = [(0, 4), (1, 3), (2, 8), (3, 12), (4, 2)]


def passes(seed: int, n: int, **options: float) -> dict[str, np.ndarray]:
    return reference.synthetic_evidence(seed, n=n, layers=5, heads=3, **options)


def ours(data: dict[str, np.ndarray], caption: np.ndarray | None = None) -> Calibration:
    rows = None if caption is None else torch.tensor(caption)
    return calibrate(
        Evidence.from_heads(torch.tensor(data["log_probs"]), torch.tensor(data["attention"]), rows),
        torch.tensor(data["targets"]),
        torch.tensor(np.array(data["permutations"])),
        torch.tensor(data["samples"]),
    )


def theirs(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return reference.calibrate(
        data["log_probs"], data["attention"], data["targets"], data["samples"], shifts=data["shifts"]
    )


@pytest.mark.parametrize(("seed", "n"), CASES)
def test_calibration_equals_the_reference(seed: int, n: int) -> None:
    data = passes(seed, n, signal=0.3)
    calibration, expected = ours(data), theirs(data)
    names = {
        "log_p_obs_geometric": "log_p_obs_geometric",
        "log_p_obs_arithmetic": "log_p_obs_arithmetic",
        "attention_prior": "attention_prior",
        "log_pride_prior": "pride_prior",
        "log_attention_mean": "log_attention_mean",
        "head_information": "head_information",
        "head_information_label_free": "head_information_label_free",
        **{name: name for name in ("head_qr", "head_core", "head_qr_label_free", "head_core_label_free")},
    }
    for name, reference_name in names.items():
        np.testing.assert_allclose(getattr(calibration, name), expected[reference_name], atol=1e-9, err_msg=name)
    assert calibration.num_samples == 5
    np.testing.assert_allclose(log_bias(calibration, "reference"), expected["log_bias_geometric"], atol=1e-9)
    np.testing.assert_allclose(log_bias(calibration, "paper"), expected["log_bias_arithmetic"], atol=1e-9)


@pytest.mark.parametrize("recipe", ["reference", "paper"])
@pytest.mark.parametrize(("k", "tau"), [(2, 5.0), (1, 1.0), (5, 9.0)])
@pytest.mark.parametrize(("seed", "n"), CASES)
def test_every_readout_equals_the_reference(seed: int, n: int, recipe: str, k: int, tau: float) -> None:
    data, test = passes(seed, n, signal=0.3), passes(seed + 100, n, signal=0.3)
    calibration, expected = ours(data), theirs(data)
    captions = passes(seed + 200, n, signal=0.3)["attention"]
    evidence = Evidence.from_heads(*map(torch.tensor, (test["log_probs"], test["attention"], captions)))
    heads = {"head_score": ("information", "qr", "core")[k % 3], "top_heads": 3 * k}
    settings = ReadoutSettings(recipe=recipe, top_layers=k, temperature=tau, head_fallback=False, **heads)
    compared = set()
    for row in range(len(evidence)):
        prompt = test["log_probs"][row], test["attention"][row]
        scores = reference.correct(
            *prompt, expected, recipe, k, tau, head_score_name=heads["head_score"], top_heads=heads["top_heads"]
        )
        for name, score in scores.items():
            got = READOUTS[name](evidence[row : row + 1], calibration, settings)[0].numpy()
            np.testing.assert_allclose(got, score, atol=1e-8, err_msg=name)
            compared.add(name)
    # Ours takes the mean over the calibration passes; the reference takes whatever prompts it is given.
    mean = np.log(np.exp(data["log_probs"]).mean(0))
    got = READOUTS["batch_calibration"](evidence, calibration, settings)
    np.testing.assert_allclose(got, test["log_probs"] - mean, atol=1e-8)
    got = READOUTS["caption_attention"](evidence, calibration, settings)
    np.testing.assert_allclose(got, np.array(captions).mean((1, 2)), atol=1e-8)
    assert compared | {"batch_calibration", "caption_attention", "auto"} == set(READOUTS)


@pytest.mark.parametrize("rows", ["caption", "both"])
def test_the_captions_rows_are_heads_like_others(rows: str) -> None:
    data, test, other, other_test = (passes(seed, 4, signal=1.0) for seed in (0, 100, 7, 107))
    both = [np.concatenate([of["attention"], more["attention"]], 2) for of, more in ((data, other), (test, other_test))]
    attention = {"caption": (other["attention"], other_test["attention"]), "both": both}[rows]
    expected = theirs({**data, "attention": attention[0]})
    calibration = ours(data, caption=other["attention"])
    evidence = Evidence.from_heads(*(torch.tensor(of) for of in (test["log_probs"], test["attention"], attention[1])))
    evidence = replace(evidence, caption_attention=torch.tensor(other_test["attention"]))
    settings = ReadoutSettings(rows=rows, head_fallback=False)
    for row in range(len(evidence)):
        scores = reference.correct(test["log_probs"][row], attention[1][row], expected)
        for name, score in scores.items():
            got = READOUTS[name](evidence[row : row + 1], calibration, settings)[0].numpy()
            np.testing.assert_allclose(got, score, atol=1e-8, err_msg=name)
    with pytest.raises(UserError, match="no attention of the captions"):
        READOUTS["agd"](replace(evidence, caption_attention=None), calibration, settings)
    with pytest.raises(UserError, match="run fit again"):
        READOUTS["agd"](evidence, ours(data), settings)


def test_the_recipes_differ() -> None:
    data = passes(0, 4, signal=0.3)
    calibration = ours(data)
    evidence = Evidence.from_heads(torch.tensor(data["log_probs"]), torch.tensor(data["attention"]))
    for name in ("purified_attention", "agd"):
        scores = [READOUTS[name](evidence, calibration, ReadoutSettings(recipe=r)) for r in ("reference", "paper")]
        assert not torch.allclose(*scores, atol=1e-3)


def test_no_head_knows_anything_all_count_the_same() -> None:
    data = passes(0, 4)
    calibration = ours(data)
    silent = replace(calibration, head_information=torch.zeros(5, 3).double())
    evidence = Evidence.from_heads(torch.tensor(data["log_probs"]), torch.tensor(data["attention"]))
    score = READOUTS["head_information"](evidence, silent, ReadoutSettings(head_fallback=False))
    x = evidence.attention.log() - calibration.log_attention_mean
    np.testing.assert_allclose(score, (x - x.mean(-1, keepdim=True)).mean((1, 2)), atol=1e-9)


def test_attention_of_zero_stays_finite() -> None:
    data = passes(0, 4)
    calibration = ours(data)
    attention = torch.tensor(data["attention"])
    attention[:, :, :, 1] = 0
    for recipe in ("reference", "paper"):
        for name, function in READOUTS.items():
            evidence = Evidence.from_heads(torch.tensor(data["log_probs"]), attention, attention)
            scores = function(evidence, calibration, ReadoutSettings(recipe))
            assert scores.isfinite().all(), name


def test_a_position_never_calibrated() -> None:
    data = passes(0, 4)
    keep = np.array(data["targets"]) != 2
    part = {name: np.array(data[name])[keep] for name in ("log_probs", "attention", "targets", "permutations")}
    with pytest.raises(UserError, match="correct image at position 2"):
        ours({**part, "samples": np.array(data["samples"])[keep]})


def test_settings_that_cannot_work() -> None:
    with pytest.raises(UserError, match="top_layers is 0"):
        ReadoutSettings(top_layers=0)
    with pytest.raises(UserError, match="temperature is 0"):
        ReadoutSettings(temperature=0)
    with pytest.raises(UserError, match="'agdd' is not a readout; choose from vanilla"):
        check_names(["agdd"])
    data = passes(0, 4)
    evidence = Evidence.from_heads(torch.tensor(data["log_probs"]), torch.tensor(data["attention"]))
    with pytest.raises(UserError, match="only 5 layers are captured"):
        READOUTS["agd"](evidence, ours(data), ReadoutSettings(top_layers=6))


# ------------------------------------------------------------------------------------------------------- the registry


@pytest.fixture
def registry() -> Iterator[dict[str, Readout]]:
    """The registry; what the test registers is removed again."""
    before = dict(READOUTS)
    yield READOUTS
    READOUTS.clear()
    READOUTS.update(before)


def test_a_readout_is_called_like_its_function(registry: dict[str, Readout]) -> None:
    data = passes(0, 4)
    calibration = ours(data)
    evidence = Evidence.from_heads(torch.tensor(data["log_probs"]), torch.tensor(data["attention"]))
    settings = ReadoutSettings()

    @readout
    def mine(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> torch.Tensor:
        return 2 * agd(evidence, calibration, settings)

    assert registry["agd"].function is agd
    expected = 2 * registry["agd"](evidence, calibration, settings)
    assert torch.equal(mine(evidence, calibration, settings), expected)
    assert torch.equal(registry["mine"](evidence, calibration, settings), expected)
    check_names(["mine"])


def test_a_bare_readout_has_safe_defaults(registry: dict[str, Readout]) -> None:
    @readout
    def mine(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> torch.Tensor:
        return evidence.log_probs

    registry["theirs"] = mine  # without the decorator
    for found in (registry["mine"], registry["theirs"]):
        assert (found.depends_on, found.per_head, found.scale) == (FACTORS, True, "log_probability")
        assert found.information is None


def test_a_readout_declares_what_it_is(registry: dict[str, Readout]) -> None:
    @readout(depends_on=["layers"], scale="attention_mass", per_head=False)
    def mine(evidence: Evidence, calibration: Calibration, settings: ReadoutSettings) -> torch.Tensor:
        return evidence.layer_attention.mean(1)

    found = registry["mine"]
    assert (found.depends_on, found.per_head, found.scale) == (("layers",), False, "attention_mass")
    mass = torch.tensor([0.3, 0.1, 0.2])
    torch.testing.assert_close(log_probabilities("mine", mass, ReadoutSettings()).exp(), mass / 0.6)


def test_a_declaration_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="Readout vanilla depends on 'layer'; choose from recipe, top_layers, temp"):
        readout(depends_on=["layer"])(READOUTS["vanilla"].function)
    with pytest.raises(UserError, match="Readout vanilla has scale 'logits'; choose from log_probability, posterior"):
        readout(scale="logits")(READOUTS["vanilla"].function)


def test_what_is_not_registered_scores_by_log_probabilities() -> None:
    assert scale_of("permutation_average") == "log_probability"
    assert scale_of("head_information") == "nats"


def test_masses_of_the_top_layers_and_of_others_in_the_same_layers() -> None:
    attention = torch.rand(6, 5, 4, generator=torch.Generator().manual_seed(0))
    other, prior = attention.flip(2), torch.arange(20.0).view(5, 4)
    masses, others, priors = top_layer_masses(attention, 2, other, prior)
    for row in range(6):
        layers = sorted(range(5), key=lambda layer: -float(attention[row, layer].sum()))[:2]
        assert torch.equal(masses[row], attention[row, layers])
        assert torch.equal(others[row], other[row, layers])
        assert torch.equal(priors[row], prior[layers])


def test_every_readout_becomes_a_probability_in_its_own_way() -> None:
    settings = ReadoutSettings(temperature=5.0)
    mass = torch.tensor([0.3, 0.1, 0.2])
    for name in READOUTS:
        assert log_probabilities(name, mass, settings).exp().sum() == pytest.approx(1)
    torch.testing.assert_close(log_probabilities("raw_attention", mass, settings).exp(), mass / 0.6)
    torch.testing.assert_close(log_probabilities("purified_attention", mass / 0.6, settings).exp(), mass / 0.6)
    torch.testing.assert_close(log_probabilities("agd", mass.log(), settings).exp(), mass / 0.6)
    torch.testing.assert_close(log_probabilities("head_information", mass, settings), (5 * mass).log_softmax(0))
    assert torch.isfinite(log_probabilities("raw_attention", torch.tensor([0.0, 1.0]), settings)).all()


def test_readouts_stay_functions() -> None:
    """They can be sent to a process, and their help is their own."""
    assert pickle.loads(pickle.dumps(agd)) is agd
    assert "eq. 13-14" in agd.__doc__
    assert READOUTS["agd"].function is agd


def test_a_function_can_be_put_into_the_registry_in_any_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lad_pl.readouts.READOUTS.data", dict(READOUTS.data))
    READOUTS.update(mine=lambda evidence, calibration, settings: evidence.log_probs)
    READOUTS.setdefault("other", READOUTS["mine"].function)
    assert READOUTS["mine"].per_head and READOUTS["other"].scale == "log_probability"
    with pytest.raises(UserError, match="has no name to register it by"):
        readout(partial(agd))
