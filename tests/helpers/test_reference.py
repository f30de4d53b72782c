"""The NumPy reference against the recorded output of the published code and numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
import reference
from paths import SHARED

GOLDEN = SHARED / "golden" / "agd_reference"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"the recorded case {GOLDEN} is not here")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "expected_n4.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def golden_scores(golden: dict[str, np.ndarray], t: int, s: int) -> dict[str, np.ndarray]:
    """Readouts of one recorded prompt; the recorded attention is already averaged over heads."""
    calibration = {"log_bias_geometric": golden["bias_matrix"], "attention_prior": golden["attention_prior"]}
    return reference.correct(golden["joint"][t, s], golden["layer"][t, s][:, None, :], calibration)


@needs_golden
def test_recipe_reference_is_the_published_code(golden: dict[str, np.ndarray]) -> None:
    count, samples, _ = golden["joint"].shape
    for t in range(count):
        for s in range(samples):
            scores = golden_scores(golden, t, s)
            np.testing.assert_allclose(scores["purified_attention"], golden["pi"][t, s], rtol=0, atol=1e-12)
            np.testing.assert_allclose(scores["agd"], golden["final"][t, s], rtol=0, atol=1e-12)
            assert scores["agd"].argmax() + 1 == golden["pred_agd"][t, s]
            assert scores["pride_reference"].argmax() + 1 == golden["pred_pride"][t, s]


@needs_golden
def test_permutations_are_the_published_code_s(golden: dict[str, np.ndarray]) -> None:
    shuffles = golden["shuffles"]
    assert reference.permutations(4, len(shuffles), seed=42) == shuffles.tolist()
    annotations = json.loads((GOLDEN / "annotations_4_1_random.json").read_text())[: golden["gt"].shape[1]]
    for shuffle, targets in zip(shuffles.tolist(), golden["gt"].tolist(), strict=True):
        assert [shuffle.index(a["index"]) + 1 for a in annotations] == targets


@needs_golden
def test_bias_takes_one_gain_off_the_diagonal(golden: dict[str, np.ndarray]) -> None:
    """Undoing eq. 5 on the recorded matrix gives the observation back: its gain is what was taken off."""
    recorded = golden["bias_matrix"]
    off_diagonal = ~np.eye(4, dtype=bool)
    # With the gain gone no correct candidate leads a wrong one, and one pair is exactly level.
    margins = recorded.diagonal()[:, None] - recorded
    assert margins[off_diagonal].max() == pytest.approx(0, abs=1e-12)
    log_gain, log_bias = reference.bias_matrix(recorded + 3.5 * np.eye(4))
    assert log_gain == pytest.approx(3.5)
    np.testing.assert_allclose(log_bias, recorded, atol=1e-12)


# --- candidate log-probabilities ----------------------------------------------------------------------------


def table_logits(prefix: tuple[int, ...], vocabulary: int = 20) -> np.ndarray:
    """Logits that depend on the prefix, for a language model of `vocabulary` tokens."""
    return np.random.default_rng([7, *prefix]).normal(0, 2, vocabulary)


def test_single_tokens_are_one_log_softmax() -> None:
    log_probs = reference.trie_log_probs([[1], [2], [3], [4]], end_token=19, next_logits=table_logits)
    np.testing.assert_allclose(log_probs, reference.log_softmax(table_logits(())[1:5]))


def test_two_digit_identifiers_branch_after_the_one() -> None:
    identifiers = [[d] for d in range(1, 10)] + [[1, 0], [1, 1], [1, 2]]
    log_probs = reference.trie_log_probs(identifiers, end_token=19, next_logits=table_logits)
    assert np.exp(log_probs).sum() == pytest.approx(1)
    first = reference.log_softmax(table_logits(())[1:10])
    second = reference.log_softmax(table_logits((1,))[[0, 1, 2, 19]])
    np.testing.assert_allclose(log_probs[1:9], first[1:])
    np.testing.assert_allclose(log_probs[9:], first[0] + second[:3])
    assert log_probs[0] == pytest.approx(first[0] + second[3])


def test_an_inner_node_that_is_no_identifier_has_no_end() -> None:
    log_probs = reference.trie_log_probs([[5, 1], [5, 2]], end_token=19, next_logits=table_logits)
    np.testing.assert_allclose(log_probs, reference.log_softmax(table_logits((5,))[[1, 2]]))


@pytest.mark.parametrize("identifiers", [[[1], [1]], [[1], []], [[1], [2, 19]]])
def test_identifiers_that_cannot_be_told_apart(identifiers: list[list[int]]) -> None:
    with pytest.raises(ValueError):
        reference.trie_log_probs(identifiers, end_token=19, next_logits=table_logits)


# --- calibration and correction -----------------------------------------------------------------------------


def fitted(seed: int = 0, **options: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    evidence = reference.synthetic_evidence(seed, **options)
    fields = ("log_probs", "attention", "targets", "samples", "shifts")
    return evidence, reference.calibrate(*(evidence[name] for name in fields))


def test_calibration_by_hand() -> None:
    """N = 2, one layer, one head, two samples of two shifts."""
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4], [0.5, 0.5], [0.9, 0.1]])
    attention = np.array([[0.4, 0.1], [0.2, 0.2], [0.1, 0.4], [0.3, 0.3]])[:, None, None, :]
    # Sample 0 has image 0 as its truth, sample 1 image 1.
    found = reference.calibrate(np.log(probabilities), attention, [0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1])

    np.testing.assert_allclose(np.exp(found["log_p_obs_arithmetic"]), [[0.85, 0.15], [0.55, 0.45]])
    geometric = np.sqrt([[0.8 * 0.9, 0.2 * 0.1], [0.6 * 0.5, 0.4 * 0.5]])
    np.testing.assert_allclose(np.exp(found["log_p_obs_geometric"]), geometric)
    assert found["log_gain_arithmetic"] == pytest.approx(math.log(0.85 / 0.15))
    bias = [[0.15, 0.15], [0.55, 0.45 * 0.15 / 0.85]]
    np.testing.assert_allclose(np.exp(found["log_bias_arithmetic"]), bias)
    np.testing.assert_allclose(found["attention_prior"], [[0.25, 0.25]])

    first, second = math.sqrt(0.8 * 0.6), math.sqrt(0.2 * 0.4)
    third, fourth = math.sqrt(0.5 * 0.9), math.sqrt(0.5 * 0.1)
    pride = (first / (first + second) + third / (third + fourth)) / 2
    np.testing.assert_allclose(np.exp(found["pride_prior"]), [pride, 1 - pride])

    # The two positions share one mean log, so p_target is the share of the attention: 0.8, 0.5, 0.8, 0.5.
    information = math.log(2) + (math.log(0.8) + math.log(0.5)) / 2
    assert found["head_information"][0, 0] == pytest.approx(information)
    assert found["head_information_label_free"][0, 0] == pytest.approx(information)


def test_calibration_without_a_position_is_refused() -> None:
    with pytest.raises(ValueError, match="position 1"):
        reference.calibrate(np.log(np.full((2, 2), 0.5)), np.full((2, 1, 1, 2), 0.1), [0, 0], [0, 1])


@pytest.mark.parametrize("recipe", ["reference", "paper"])
def test_correction_by_hand(recipe: str) -> None:
    """N = 2, three layers of which the first is passed over, k = 2, tau = 1."""
    attention = np.array([[0.01, 0.02], [0.4, 0.2], [0.1, 0.3]])[:, None, :]
    prior = np.array([[0.1, 0.9], [0.2, 0.2], [0.1, 0.4]])
    log_bias = np.log([[0.5, 0.1], [0.2, 0.3]])
    calibration = {
        "log_bias_geometric": log_bias,
        "log_bias_arithmetic": log_bias,
        "attention_prior": prior,
    }
    scores = reference.correct(np.log([0.7, 0.3]), attention, calibration, recipe, k=2, tau=1.0)

    np.testing.assert_allclose(scores["raw_attention"], [0.25, 0.25])
    mean = [0.25, 0.25] if recipe == "reference" else [math.sqrt(0.04), math.sqrt(0.06)]
    unnormalised = np.array(mean) / np.sqrt([0.02, 0.08])
    pi = unnormalised / unnormalised.sum()
    np.testing.assert_allclose(scores["purified_attention"], pi)
    if recipe == "reference":
        prior_of_answer = np.array([0.5 ** pi[0] * 0.2 ** pi[1], 0.1 ** pi[0] * 0.3 ** pi[1]])
    else:
        prior_of_answer = np.array([0.5 * pi[0] + 0.2 * pi[1], 0.1 * pi[0] + 0.3 * pi[1]])
    np.testing.assert_allclose(scores["agd"], np.log([0.7, 0.3] / prior_of_answer))
    pride = np.log([0.7 / math.sqrt(0.5 * 0.2), 0.3 / math.sqrt(0.1 * 0.3)])
    np.testing.assert_allclose(scores["pride_reference"], pride)


@pytest.mark.parametrize("recipe", ["reference", "paper"])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_every_readout_finds_a_strong_signal(recipe: str, n: int) -> None:
    evidence, calibration = fitted(seed=n, samples=8, n=n, layers=4, heads=6, signal=4.0)
    hits = {}
    for p, target in enumerate(evidence["targets"]):
        scores = reference.correct(evidence["log_probs"][p], evidence["attention"][p], calibration, recipe)
        for name, values in scores.items():
            assert values.shape == (n,) and np.isfinite(values).all()
            hits[name] = hits.get(name, 0) + (values.argmax() == target)
    assert set(hits) == {
        "vanilla",
        "pride",
        "pride_reference",
        "raw_attention",
        "purified_attention",
        "agd",
        "head_information",
        "agd_head",
        "head_information_label_free",
        "agd_head_label_free",
        "head_top",
        "head_top_label_free",
    }
    heads = ("head_information", "agd_head", "head_top")
    for name in (*heads, *(f"{name}_label_free" for name in heads)):
        assert hits[name] >= 0.95 * len(evidence["targets"]), name


def test_label_free_equals_labelled_where_the_signal_is_strong() -> None:
    _, calibration = fitted(seed=3, samples=5, n=4, signal=4.0)
    np.testing.assert_allclose(calibration["head_information"], calibration["head_information_label_free"])


def test_reference_decisions_ignore_a_constant_per_prompt() -> None:
    """Raw logits (the published code for N <= 9) and log-probabilities lead to the same decisions."""
    evidence, calibration = fitted(seed=5)
    constants = np.random.default_rng(0).normal(0, 3, len(evidence["targets"]))
    logits = evidence["log_probs"] + constants[:, None]
    of_logits = reference.calibrate(logits, evidence["attention"], evidence["targets"], evidence["samples"])
    np.testing.assert_allclose(of_logits["log_gain_geometric"], calibration["log_gain_geometric"])
    for p in range(len(logits)):
        ours = reference.correct(evidence["log_probs"][p], evidence["attention"][p], calibration)
        theirs = reference.correct(logits[p], evidence["attention"][p], of_logits)
        for name in ("agd", "pride", "pride_reference", "vanilla"):
            difference = ours[name] - theirs[name]
            np.testing.assert_allclose(difference, difference[0], atol=1e-9)


def test_no_information_means_equal_weights() -> None:
    x = np.random.default_rng(1).normal(size=(2, 3, 4))
    np.testing.assert_allclose(reference.head_score(x, np.zeros((2, 3))), x.mean(axis=(0, 1)))


def test_batch_calibration_by_hand() -> None:
    scores = reference.batch_calibration(np.log([[0.8, 0.2], [0.6, 0.4]]))
    np.testing.assert_allclose(np.exp(scores), [[0.8 / 0.7, 0.2 / 0.3], [0.6 / 0.7, 0.4 / 0.3]])


def test_permutation_average_maps_back_to_images() -> None:
    log_probs = np.array([[1.0, 2.0, 3.0], [20.0, 30.0, 10.0]])
    mean = reference.permutation_average(log_probs, [[0, 1, 2], [1, 2, 0]])
    np.testing.assert_allclose(mean, [5.5, 11.0, 16.5])


# --- permutations and metrics -------------------------------------------------------------------------------


def test_cyclic_shifts_go_left() -> None:
    assert reference.cyclic_shifts(3) == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]


def test_permutations_are_distinct_and_bounded() -> None:
    drawn = reference.permutations(3, 6, seed=0)
    assert drawn[0] == [0, 1, 2] and len({tuple(q) for q in drawn}) == 6
    with pytest.raises(ValueError):
        reference.permutations(3, 7, seed=0)


def test_metrics_by_hand() -> None:
    """Two samples, two permutations (identity and a swap of the first two of three), truths 0 and 2."""
    swap = [[0, 1, 2], [1, 0, 2]]
    permutations = np.array([swap, swap])
    targets = np.array([[0, 1], [2, 2]])
    choices = np.array([[0, 1], [2, 0]])
    mean, spread = reference.accuracy(choices, targets)
    assert mean == pytest.approx(0.75) and spread == pytest.approx(math.sqrt(2 * 0.25**2))
    np.testing.assert_allclose(reference.recall_by_position(choices, targets, 3), [1, 1, 0.5])
    assert reference.rstd(choices, targets, 3) == pytest.approx(np.std([1, 1, 0.5], ddof=1))
    assert reference.consistency(choices, permutations) == 0.5
    assert reference.circular_accuracy(choices, targets) == 0.5
    assert reference.confusion(choices, targets, 3).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_an_unread_answer_is_wrong_everywhere() -> None:
    permutations = np.array([[[0, 1], [1, 0]]])
    choices, targets = np.array([[-1, -1]]), np.array([[0, 1]])
    assert reference.accuracy(choices, targets) == (0, 0)
    assert reference.consistency(choices, permutations) == 0
    assert reference.confusion(choices, targets, 2).sum() == 0
    np.testing.assert_allclose(reference.recall_by_position(choices, targets, 2), [0, 0])
