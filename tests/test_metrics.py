import numpy as np
import pytest
import reference
import torch
from sklearn.metrics import confusion_matrix, recall_score

from lad_pl.metrics import METRICS, UNREADABLE, count, finite, position_metrics, recall_std


def answers(seed: int, samples: int, t: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    permutations = np.array([[generator.permutation(n) for _ in range(t)] for _ in range(samples)])
    truth = generator.integers(n, size=samples)
    targets = (permutations == truth[:, None, None]).argmax(-1)
    correct = generator.random((samples, t)) < 0.6
    return np.where(correct, targets, generator.integers(n, size=(samples, t))), targets, permutations


@pytest.mark.parametrize(("samples", "t", "n"), [(40, 5, 4), (25, 3, 8), (60, 2, 12)])
def test_metrics_equal_the_reference_however_they_are_batched(samples: int, t: int, n: int) -> None:
    choices, targets, permutations = answers(0, samples, t, n)
    metrics = position_metrics(n, t)
    for rows in np.array_split(np.arange(samples), 4):
        metrics.update(*(torch.tensor(values[rows]) for values in (choices, targets, permutations)))
    got = {name: value.numpy() for name, value in metrics.compute().items()}
    mean, std = reference.accuracy(choices, targets)
    np.testing.assert_allclose(got["accuracy"], mean)
    np.testing.assert_allclose(got["accuracy_std"], std)
    np.testing.assert_allclose(got["rstd"], reference.rstd(choices, targets, n))
    np.testing.assert_allclose(got["consistency"], reference.consistency(choices, permutations))
    np.testing.assert_allclose(got["circular_accuracy"], reference.circular_accuracy(choices, targets))
    labels = list(range(n))
    np.testing.assert_array_equal(got["confusion"], confusion_matrix(targets.ravel(), choices.ravel(), labels=labels))
    recall = recall_score(targets.ravel(), choices.ravel(), labels=labels, average=None, zero_division=np.nan)
    np.testing.assert_allclose(got["recall_by_position"], recall)
    assert [set(group) for group in metrics.compute_groups.values()] == [set(got)]  # one state, updated once


def test_what_is_undefined_is_nan() -> None:
    metrics = position_metrics(3, 1)
    metrics.update(torch.tensor([[0]]), torch.tensor([[0]]), torch.tensor([[[0, 1, 2]]]))
    got = metrics.compute()
    assert got["accuracy"] == 1
    assert got["accuracy_std"].isnan()
    assert got["recall_by_position"].tolist()[0] == 1
    assert got["recall_by_position"][1:].isnan().all()


def test_settings_counted_together_are_those_counted_one_by_one() -> None:
    choices, targets, permutations = (torch.tensor(values) for values in answers(1, 30, 5, 4))
    several = torch.stack([choices, targets, choices.flip(0), (choices + 1) % 4]).view(2, 2, 30, 5)
    several[0, 0, 3, 1] = several[1, 1, 0, 0] = UNREADABLE
    together = count(several, targets, permutations)
    assert together.unreadable.sum(-1).tolist() == [[1, 0], [0, 1]]
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        alone = position_metrics(4, 5)
        alone.update(several[i, j], targets, permutations)
        for name, value in alone.compute().items():
            assert torch.equal(METRICS[name](together)[i, j], value), name


def test_an_unreadable_answer_is_wrong_and_no_image() -> None:
    targets, permutations = torch.tensor([[0, 0], [1, 1]]), torch.tensor([[[0, 1], [0, 1]], [[0, 1], [0, 1]]])
    counts = count(torch.tensor([[0, UNREADABLE], [1, 1]]), targets, permutations)
    got = {name: metric(counts).tolist() for name, metric in METRICS.items()}
    assert got == {
        "accuracy": 0.75,
        "accuracy_std": pytest.approx(np.std([1, 0.5], ddof=1)),
        "rstd": pytest.approx(np.std([0.5, 1], ddof=1)),
        "consistency": 0.5,
        "circular_accuracy": 0.5,
        "success_rate": 0.75,
        "recall_by_position": [0.5, 1],
        "confusion": [[1, 0], [0, 2]],
    }


def test_rstd_leaves_out_positions_that_never_held_the_truth() -> None:
    confusion = torch.tensor([[[2, 2, 0], [0, 0, 0], [0, 0, 4]], [[3, 0, 0], [0, 0, 0], [0, 0, 0]]])
    first, second = recall_std(confusion).tolist()
    assert first == pytest.approx(np.std([0.5, 1], ddof=1))
    assert finite(second) is None
