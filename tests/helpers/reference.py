"""The method in plain NumPy (float64), written from its equations and never from the package it checks.

Loops rather than tricks: every function reads like its formula, so that a disagreement with the package can
be settled by reading. Axes: `P` calibration passes, `N` candidates (= images = positions), `L` captured
layers, `H` heads, `S` samples, `T` permutations of one sample. Positions, candidates and images count from 0.
`log_probs` are log-probabilities over the N candidates, `attention` is post-softmax attention mass.

A pass with shift `s` shows original image `(p + s) mod N` at position `p` (cyclic left shift). A permutation
`q` shows original image `q[p]` at position `p`.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np

# The published code adds 1e-20 inside every logarithm of an attention mass. Masses that matter are many
# orders of magnitude larger, so in float64 this is a guard against log(0) and nothing else; both recipes use
# it.
EPS = 1e-20


# ------------------------------------------------------------------------------------------------------------
# Small pieces
# ------------------------------------------------------------------------------------------------------------


def log_softmax(values: np.ndarray) -> np.ndarray:
    """Log-softmax of a vector of logits."""
    shifted = np.asarray(values, dtype=np.float64) - np.max(values)
    return shifted - math.log(np.exp(shifted).sum())


def softmax(values: np.ndarray) -> np.ndarray:
    """Softmax of a vector of logits."""
    return np.exp(log_softmax(values))


def log_mean_exp(rows: np.ndarray) -> np.ndarray:
    """Log of the mean over the first axis of probabilities given as logs: (M, N) -> (N,)."""
    return np.log(np.exp(np.asarray(rows, dtype=np.float64)).mean(axis=0))


# ------------------------------------------------------------------------------------------------------------
# Evidence: candidate log-probabilities (eq. 15-16)
# ------------------------------------------------------------------------------------------------------------


def trie_log_probs(
    identifier_tokens: Sequence[Sequence[int]],
    end_token: int,
    next_logits: Callable[[tuple[int, ...]], np.ndarray],
) -> np.ndarray:
    """Log-probability of each identifier, normalised over the valid tokens at every step (eq. 15-16).

    `next_logits(prefix)` returns the logits (vocabulary,) after the prompt followed by `prefix`. The valid
    tokens after a prefix are the next tokens of the identifiers that continue it, plus `end_token` when the
    prefix is itself an identifier and others continue it. An identifier that nothing continues needs no end
    token, so the probabilities of all identifiers sum to one. Returns (N,).
    """
    identifiers = [tuple(tokens) for tokens in identifier_tokens]
    if len(set(identifiers)) != len(identifiers):
        raise ValueError("two identifiers have the same tokens")
    if any(len(tokens) == 0 or end_token in tokens for tokens in identifiers):
        raise ValueError("an identifier is empty or holds the end token")

    result = []
    for identifier in identifiers:
        total = 0.0
        for step in range(len(identifier) + 1):
            prefix = identifier[:step]
            valid = {other[step] for other in identifiers if len(other) > step and other[:step] == prefix}
            if not valid:
                continue  # the identifier is complete and nothing continues it: no decision is left
            if prefix in identifiers:
                valid.add(end_token)
            wanted = identifier[step] if step < len(identifier) else end_token
            logits = np.asarray(next_logits(prefix), dtype=np.float64)
            order = sorted(valid)
            total += log_softmax(np.array([logits[token] for token in order]))[order.index(wanted)]
        result.append(total)
    return np.array(result)


# ------------------------------------------------------------------------------------------------------------
# Calibration (eq. 1, 4, 5, 7; PriDe; head information)
# ------------------------------------------------------------------------------------------------------------


def bias_matrix(log_p_obs: np.ndarray) -> tuple[float, np.ndarray]:
    """Visual gain and bias (eq. 4-5) of P_obs (N, N); row = truth i, column = candidate j.

    The gain compares the correct candidate with the wrong ones under the *same* truth, so within a row. The
    constant that the published code subtracts from the whole matrix is left out: no decision depends on it.
    """
    n = len(log_p_obs)
    log_gain = max(log_p_obs[i, i] - log_p_obs[i, j] for i in range(n) for j in range(n) if j != i)
    log_bias = np.array(log_p_obs, dtype=np.float64)
    for i in range(n):
        log_bias[i, i] -= log_gain
    return float(log_gain), log_bias


def centred_evidence(attention: np.ndarray, log_attention_mean: np.ndarray) -> np.ndarray:
    """`x_k^(l,h)` (L, H, N): log attention minus its calibration mean, centred over the positions."""
    x = np.log(np.asarray(attention, dtype=np.float64) + EPS) - log_attention_mean
    for layer in range(x.shape[0]):
        for head in range(x.shape[1]):
            x[layer, head] -= x[layer, head].mean()
    return x


def head_score(x: np.ndarray, information: np.ndarray) -> np.ndarray:
    """`sum g^2 x_k / sum g^2` over layers and heads: (L, H, N), (L, H) -> (N,).

    Ambiguous in the text: when no head has any information the quotient is 0/0. Taken here: equal weights,
    which is also where the label-free fit starts from.
    """
    weights = np.asarray(information, dtype=np.float64) ** 2
    if weights.sum() == 0:
        weights = np.ones_like(weights)
    total = np.zeros(x.shape[2])
    for layer in range(x.shape[0]):
        for head in range(x.shape[1]):
            total += weights[layer, head] * x[layer, head]
    return total / weights.sum()


def head_information(x: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """`g_(l,h) = max(0, log N + mean over passes of log p_target^(l,h))`, nats: (P, L, H, N) -> (L, H)."""
    passes, layers, heads, n = x.shape
    information = np.zeros((layers, heads))
    for layer in range(layers):
        for head in range(heads):
            mean = sum(log_softmax(x[p, layer, head])[targets[p]] for p in range(passes)) / passes
            information[layer, head] = max(0.0, math.log(n) + mean)
    return information


def qr_score(attention: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """Mean attention mass on the correct image (QRHead): (P, L, H, N) -> (L, H)."""
    return np.mean([masses[..., target] for masses, target in zip(attention, targets, strict=True)], axis=0)


def core_score(attention: np.ndarray, targets: Sequence[int], temperature: float = 1e-3) -> np.ndarray:
    """Mean of `exp(a_target / t) / sum_j exp(a_j / t)` (CoRe): (P, L, H, N) -> (L, H)."""
    passes, layers, heads, _ = attention.shape
    score = np.zeros((layers, heads))
    for p in range(passes):
        for layer in range(layers):
            for head in range(heads):
                score[layer, head] += softmax(attention[p, layer, head] / temperature)[targets[p]] / passes
    return score


def top_heads_score(x: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Mean of `x` over the heads with the highest scores; the first ones of equal scores: (L, H, N), (L, H) -> (N,)."""
    layers, heads, _ = x.shape
    order = sorted(
        ((layer, head) for layer in range(layers) for head in range(heads)), key=lambda place: -scores[place]
    )
    return np.mean([x[place] for place in order[:count]], axis=0)


TEMPERATURES = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 8, 12)


def told(log_probs: np.ndarray, targets: Sequence[int], samples: Sequence[int]) -> float:
    """Mean over samples of the target's log-probability, at the best temperature: (P, N), (P,), (P,)."""
    best = -math.inf
    for factor in TEMPERATURES:
        by_sample: dict[int, list[float]] = {}
        for row, target, sample in zip(log_probs, targets, samples, strict=True):
            by_sample.setdefault(int(sample), []).append(log_softmax(factor * row)[target])
        best = max(best, float(np.mean([np.mean(values) for values in by_sample.values()])))
    return best


def exact_p_value(log_probs: np.ndarray, targets: Sequence[int], samples: Sequence[int]) -> float:
    """Share of all ways to move each sample's targets by the same number of places that are told as well."""
    n, names = log_probs.shape[1], sorted({int(sample) for sample in samples})
    here = told(log_probs, targets, samples)
    moves = list(itertools.product(range(n), repeat=len(names)))
    as_well = 0
    for move in moves:
        places = dict(zip(names, move, strict=True))
        moved = [(target + places[int(sample)]) % n for target, sample in zip(targets, samples, strict=True)]
        as_well += told(log_probs, moved, samples) >= here - 1e-9
    return as_well / len(moves)


def label_free_targets(
    x: np.ndarray, information: np.ndarray, samples: Sequence[int], shifts: Sequence[int]
) -> list[int]:
    """Target position of every pass, guessed from the attention alone: (P, L, H, N), (L, H), (P,), (P,) -> P.

    The scores of a sample's passes are mapped back from positions to images and averaged; its target is the
    image with the highest average. Ambiguous in the text: averaged are the scores themselves (logs), not
    their softmax; a tie goes to the lowest image number.
    """
    n = x.shape[3]
    sums: dict[int, np.ndarray] = {int(sample): np.zeros(n) for sample in samples}
    for p, sample in enumerate(samples):
        score = head_score(x[p], information)
        for position in range(n):
            # A sum orders the images as the mean does: every image is seen once in each pass of the sample.
            sums[int(sample)][(position + int(shifts[p])) % n] += score[position]
    return [int(np.argmax(sums[int(sample)]) - shifts[p]) % n for p, sample in enumerate(samples)]


def inferred_targets(x: np.ndarray, samples: Sequence[int], shifts: Sequence[int], rounds: int = 3) -> list[int]:
    """The targets that the last of three rounds guesses, starting from equal weights: (P, L, H, N) -> P.

    Ambiguous in the text: "repeat 3 times" is read as three rounds in all, each of which guesses the targets
    with the current weights (equal ones in the first) and then measures the information against them.
    """
    information, guessed = np.ones(x.shape[1:3]), []
    for _ in range(rounds):
        guessed = label_free_targets(x, information, samples, shifts)
        information = head_information(x, guessed)
    return guessed


def calibrate(
    log_probs: np.ndarray,
    attention: np.ndarray,
    targets: Sequence[int],
    samples: Sequence[int],
    shifts: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Everything that the calibration passes yield.

    Args:
        log_probs: (P, N) log-probabilities of the candidates.
        attention: (P, L, H, N) attention mass of the last prompt token on each image.
        targets: (P,) position of the correct image in each pass.
        samples: (P,) number of the sample that each pass shows.
        shifts: (P,) cyclic left shift of each pass; without it the label-free fit is left out.

    Returns:
        `log_p_obs_*` and `log_bias_*` (N, N), `log_gain_*` (scalar), each `geometric` and `arithmetic`;
        `attention_prior` (L, N); `pride_prior` (N,), a log; `log_attention_mean` (L, H, N);
        `head_information` (L, H) and, with shifts, `head_information_label_free` (L, H).
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    attention = np.asarray(attention, dtype=np.float64)
    passes, n = log_probs.shape

    result: dict[str, np.ndarray] = {}
    geometric, arithmetic = np.zeros((n, n)), np.zeros((n, n))
    for i in range(n):
        rows = [log_probs[p] for p in range(passes) if targets[p] == i]
        if not rows:
            raise ValueError(f"no calibration pass has its truth at position {i}")
        geometric[i] = np.mean(rows, axis=0)  # mean of the logs: not normalised over j, and need not be
        arithmetic[i] = log_mean_exp(np.array(rows))  # eq. 1
    for name, log_p_obs in (("geometric", geometric), ("arithmetic", arithmetic)):
        log_gain, log_bias = bias_matrix(log_p_obs)
        result[f"log_p_obs_{name}"] = log_p_obs
        result[f"log_gain_{name}"] = np.array(log_gain)
        result[f"log_bias_{name}"] = log_bias

    # Eq. 7 on head-averaged attention (eq. 6): the mean over heads comes before any logarithm.
    result["attention_prior"] = attention.mean(axis=2).mean(axis=0)

    per_sample = []
    for sample in sorted({int(s) for s in samples}):
        rows = [log_probs[p] for p in range(passes) if samples[p] == sample]
        per_sample.append(softmax(np.mean(rows, axis=0)))
    result["pride_prior"] = np.log(np.mean(per_sample, axis=0))

    result["log_attention_mean"] = np.log(attention + EPS).mean(axis=0)
    x = np.array([centred_evidence(attention[p], result["log_attention_mean"]) for p in range(passes)])
    result["head_information"] = head_information(x, targets)
    result["head_qr"], result["head_core"] = qr_score(attention, targets), core_score(attention, targets)
    if shifts is not None:
        guessed = inferred_targets(x, samples, shifts)
        result["head_information_label_free"] = head_information(x, guessed)
        result["head_qr_label_free"], result["head_core_label_free"] = (
            qr_score(attention, guessed),
            core_score(attention, guessed),
        )
    return result


# ------------------------------------------------------------------------------------------------------------
# Correction (eq. 8-14) and the other readouts
# ------------------------------------------------------------------------------------------------------------


def chosen_layers(layer_attention: np.ndarray, k: int) -> list[int]:
    """The k captured layers with the largest mass on the images (eq. 8-9), most first: (L, N) -> k indices.

    Ambiguous in the text: a tie goes to the earlier layer.
    """
    if k > len(layer_attention):
        raise ValueError(f"{k} layers asked for, {len(layer_attention)} captured")
    mass = [float(row.sum()) for row in layer_attention]
    return sorted(range(len(mass)), key=lambda layer: (-mass[layer], layer))[:k]


def log_purified_attention(layer_attention: np.ndarray, prior: np.ndarray, recipe: str, k: int) -> np.ndarray:
    """`log pi~` (eq. 11): (L, N), (L, N) -> (N,)."""
    layers = chosen_layers(layer_attention, k)
    log_prior = np.mean([np.log(prior[layer] + EPS) for layer in layers], axis=0)
    if recipe == "reference":  # log of the mean over layers
        return np.log(np.mean([layer_attention[layer] for layer in layers], axis=0) + EPS) - log_prior
    return np.mean([np.log(layer_attention[layer] + EPS) for layer in layers], axis=0) - log_prior


def expected_bias(pi: np.ndarray, log_bias: np.ndarray, recipe: str) -> np.ndarray:
    """`log P_prior(j|x)` (eq. 13): (N,) over truths k, (N, N) with row = truth -> (N,) over candidates j."""
    n = len(pi)
    if recipe == "reference":  # mixture of logs
        return np.array([sum(pi[k] * log_bias[k, j] for k in range(n)) for j in range(n)])
    return np.array([math.log(sum(pi[k] * math.exp(log_bias[k, j]) for k in range(n))) for j in range(n)])


def correct(
    log_probs: np.ndarray,
    attention: np.ndarray,
    calibration: dict[str, np.ndarray],
    recipe: str = "reference",
    k: int = 2,
    tau: float = 5.0,
    head_score_name: str = "information",
    top_heads: int = 8,
) -> dict[str, np.ndarray]:
    """Scores (N,) of every readout of one prompt; the choice is the argmax (the first one on a tie).

    `log_probs` (N,), `attention` (L, H, N), `calibration` from `calibrate`. Readouts whose part of the
    calibration is absent are left out. `batch_calibration` needs the whole set and is a function of its own.
    """
    if recipe not in ("reference", "paper"):
        raise ValueError(f"unknown recipe {recipe!r}")
    log_probs = np.asarray(log_probs, dtype=np.float64)
    attention = np.asarray(attention, dtype=np.float64)
    log_bias = calibration["log_bias_geometric" if recipe == "reference" else "log_bias_arithmetic"]
    layer_attention = attention.mean(axis=1)  # eq. 6

    pi = softmax(tau * log_purified_attention(layer_attention, calibration["attention_prior"], recipe, k))
    layers = chosen_layers(layer_attention, k)
    scores = {
        "vanilla": log_probs.copy(),
        # Ambiguous in the text: which estimator under recipe "paper". The matrix of the recipe is taken.
        "pride_reference": log_probs - log_bias.mean(axis=0),
        "raw_attention": np.mean([layer_attention[layer] for layer in layers], axis=0),
        "purified_attention": pi,
        "agd": log_probs - expected_bias(pi, log_bias, recipe),
    }
    if "pride_prior" in calibration:
        scores["pride"] = log_probs - calibration["pride_prior"]
    for suffix in ("", "_label_free"):
        information = calibration.get(f"head_information{suffix}")
        if information is None:
            continue
        score = head_score(centred_evidence(attention, calibration["log_attention_mean"]), information)
        scores[f"head_information{suffix}"] = score
        # The text says softmax(5 * score); 5 is taken to be tau.
        scores[f"agd_head{suffix}"] = log_probs - expected_bias(softmax(tau * score), log_bias, recipe)
        by = calibration[f"head_{head_score_name}{suffix}"]
        x = centred_evidence(attention, calibration["log_attention_mean"])
        scores[f"head_top{suffix}"] = top_heads_score(x, by, top_heads)
    return scores


def batch_calibration(log_probs: np.ndarray) -> np.ndarray:
    """Scores (M, N) of a whole set of prompts (M, N): `log_probs - log mean_x P(c_j|x)`, no labels."""
    log_probs = np.asarray(log_probs, dtype=np.float64)
    return log_probs - log_mean_exp(log_probs)


def permutation_average(log_probs: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Mean over passes of log-probabilities mapped back to images: (T, N), (T, N) -> (N,) over images."""
    count, n = np.shape(log_probs)
    total = np.zeros(n)
    for t in range(count):
        for position in range(n):
            total[permutations[t][position]] += log_probs[t][position]
    return total / count


# ------------------------------------------------------------------------------------------------------------
# Permutations
# ------------------------------------------------------------------------------------------------------------


def permutations(n: int, count: int, seed: int) -> list[list[int]]:
    """`count` distinct permutations of range(n): the identity, then draws of an own seeded generator."""
    if not 1 <= count <= math.factorial(n):
        raise ValueError(f"{count} distinct permutations of {n} asked for, there are {math.factorial(n)}")
    generator = random.Random(seed)
    result = [list(range(n))]
    while len(result) < count:
        draw = generator.sample(range(n), n)
        if draw not in result:
            result.append(draw)
    return result


def cyclic_shifts(n: int) -> list[list[int]]:
    """The n cyclic left shifts; shift s shows original image (p + s) mod n at position p."""
    return [[(position + shift) % n for position in range(n)] for shift in range(n)]


# ------------------------------------------------------------------------------------------------------------
# Metrics. `choices` (S, T) chosen position or -1 where no valid answer was read, `targets` (S, T) position of
# the correct image, `permutations` (S, T, N). An unread answer is a wrong one.
# ------------------------------------------------------------------------------------------------------------


def accuracy(choices: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (ddof 1) of the accuracy over the T permutations; nan spread if T = 1."""
    samples, count = np.shape(choices)
    values = [sum(choices[s][t] == targets[s][t] for s in range(samples)) / samples for t in range(count)]
    mean = sum(values) / count
    if count == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))


def confusion(choices: np.ndarray, targets: np.ndarray, n: int) -> np.ndarray:
    """Counts (N, N): ground-truth position by chosen position. Unread answers are in no cell."""
    counts = np.zeros((n, n), dtype=int)
    for chosen, target in zip(np.ravel(choices), np.ravel(targets), strict=True):
        if chosen >= 0:
            counts[target, chosen] += 1
    return counts


def recall_by_position(choices: np.ndarray, targets: np.ndarray, n: int) -> np.ndarray:
    """Share of correct answers among prompts with the truth at each position, all T pooled: (N,).

    nan for a position that never held the truth. Unread answers stay in the denominator.
    """
    pairs = list(zip(np.ravel(choices), np.ravel(targets), strict=True))
    recall = np.full(n, math.nan)
    for position in range(n):
        hits = [chosen == position for chosen, target in pairs if target == position]
        if hits:
            recall[position] = sum(hits) / len(hits)
    return recall


def rstd(choices: np.ndarray, targets: np.ndarray, n: int) -> float:
    """Standard deviation (ddof 1) of the recall over positions.

    Ambiguous in the text: a position that never held the truth has no recall and is left out; with fewer than
    two positions left the value is nan.
    """
    recall = [value for value in recall_by_position(choices, targets, n) if not math.isnan(value)]
    if len(recall) < 2:
        return math.nan
    mean = sum(recall) / len(recall)
    return math.sqrt(sum((value - mean) ** 2 for value in recall) / (len(recall) - 1))


def consistency(choices: np.ndarray, permutations: np.ndarray) -> float:
    """Share of samples for which all T permutations choose the same image.

    Ambiguous in the text: an unread answer chose no image, so its sample is not consistent.
    """
    samples, count = np.shape(choices)
    same = 0
    for s in range(samples):
        if any(choices[s][t] < 0 for t in range(count)):
            continue
        same += len({int(permutations[s][t][choices[s][t]]) for t in range(count)}) == 1
    return same / samples


def circular_accuracy(choices: np.ndarray, targets: np.ndarray) -> float:
    """Share of samples answered correctly under every permutation."""
    samples, count = np.shape(choices)
    return sum(all(choices[s][t] == targets[s][t] for t in range(count)) for s in range(samples)) / samples


# ------------------------------------------------------------------------------------------------------------
# Made-up evidence, for tests that compare two implementations
# ------------------------------------------------------------------------------------------------------------


def synthetic_evidence(
    seed: int, samples: int = 5, n: int = 4, layers: int = 3, heads: int = 4, signal: float = 1.0
) -> dict[str, np.ndarray]:
    """Evidence of `samples` samples under their N cyclic left shifts, with a position bias and a signal.

    Every head has its own position bias; heads differ in how strongly they see the target, half of them not
    at all. Returns `log_probs` (P, N), `attention` (P, L, H, N), `targets`, `samples`, `shifts` (P,),
    `permutations` (P, N) with P = samples * N.
    """
    generator = np.random.default_rng(seed)
    answer_bias = generator.normal(0, 1.5, n)
    head_bias = generator.normal(0, 0.5, (layers, heads, n))
    sight = generator.uniform(0, 2, (layers, heads)) * (generator.uniform(size=(layers, heads)) > 0.5)
    mass = generator.uniform(0.2, 0.9, (layers, heads))
    rows: dict[str, list] = {
        name: [] for name in ("log_probs", "attention", "targets", "samples", "shifts", "permutations")
    }
    for sample in range(samples):
        truth = int(generator.integers(n))
        for shift, permutation in enumerate(cyclic_shifts(n)):
            target = permutation.index(truth)
            seen = np.eye(n)[target] * signal
            logits = answer_bias + seen + generator.normal(0, 0.5, n)
            attention = np.zeros((layers, heads, n))
            for layer in range(layers):
                for head in range(heads):
                    noise = generator.normal(0, 0.3, n)
                    values = head_bias[layer, head] + sight[layer, head] * seen + noise
                    attention[layer, head] = mass[layer, head] * softmax(values)
            rows["log_probs"].append(log_softmax(logits))
            rows["attention"].append(attention)
            rows["targets"].append(target)
            rows["samples"].append(sample)
            rows["shifts"].append(shift)
            rows["permutations"].append(permutation)
    return {name: np.array(values) for name, values in rows.items()}
