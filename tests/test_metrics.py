import numpy as np
import pytest
import reference
import torch
from sklearn.metrics import confusion_matrix, recall_score

from lad_pl.metrics import position_metrics


def answers(seed: int, samples: int, t: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    permutations = np.array([[generator.permutation(n) for _ in range(t)] for _ in range(samples)])
    truth = generator.integers(n, size=samples)
    targets = (permutations == truth[:, None, None]).argmax(-1)
    right = generator.random((samples, t)) < 0.6
    return np.where(right, targets, generator.integers(n, size=(samples, t))), targets, permutations


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
