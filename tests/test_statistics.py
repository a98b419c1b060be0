"""Intervals, tests and resampling against scipy, scikit-learn, formulas written out, and plain loops."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from fine_tune.data import statistics

A = {1: 90.91, 2: 91.04, 3: 90.83, 4: 90.95, 5: 91.05, 6: 90.88}
B = {1: 90.60, 2: 90.71, 3: 90.66, 4: 90.49, 5: 90.75, 6: 90.93}


def first(scores: dict[int, float], n: int) -> dict[int, float]:
    return dict(list(scores.items())[:n])


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_interval_of_a_mean(n: int) -> None:
    values = list(A.values())[:n]
    found = statistics.mean_of(values)
    assert (found.n, found.mean) == (n, pytest.approx(sum(values) / n))
    if n == 1:
        assert math.isnan(found.sd)
    else:
        assert found.sd == pytest.approx(math.sqrt(sum((v - found.mean) ** 2 for v in values) / (n - 1)))
    if n < 3:
        assert found.interval is None
    else:
        assert found.interval == pytest.approx(stats.t.interval(0.95, n - 1, found.mean, stats.sem(values)))


@pytest.mark.parametrize("n", [3, 6])
def test_shared_seeds_are_compared_in_pairs(n: int) -> None:
    own, base = first(A, n), first(B, n)
    found = statistics.compare(own, dict(reversed(base.items())))  # the order of a dict is no pairing
    known = stats.ttest_rel(list(own.values()), list(base.values()))
    assert (found.test, found.n) == ("paired t", (n, n))
    assert found.p == pytest.approx(known.pvalue)
    assert found.interval == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert found.difference == pytest.approx(np.mean([own[seed] - base[seed] for seed in own]))
    assert found.same_sign == sum(own[seed] > base[seed] for seed in own)
    assert (found.sign_flip is None) == (n < 6)


@pytest.mark.parametrize(
    ("own", "base"),
    [
        (first(A, 2), first(B, 2)),
        (first(A, 3), {7: 90.6, 8: 90.7, 9: 90.2, 10: 90.5}),
        ({1: 90.9, 2: 91.0, 7: 91.2}, first(B, 3)),
    ],
    ids=["two seeds", "other seeds", "two of three shared"],
)
def test_other_seeds_are_compared_by_welch(own: dict[int, float], base: dict[int, float]) -> None:
    found = statistics.compare(own, base)
    a, b = np.array(list(own.values())), np.array(list(base.values()))
    u, v = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    df = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    t = (a.mean() - b.mean()) / math.sqrt(u + v)
    half = stats.t.ppf(0.975, df) * math.sqrt(u + v)
    assert (found.test, found.n, found.same_sign, found.sign_flip) == ("Welch", (len(a), len(b)), None, None)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), df))
    assert found.interval == pytest.approx((a.mean() - b.mean() - half, a.mean() - b.mean() + half))


@pytest.mark.parametrize(
    ("own", "base"),
    [(first(A, 1), B), ({1: 0.5, 2: 0.5, 3: 0.5}, {1: 0.2, 2: 0.2, 3: 0.2}), ({1: 0.5, 2: 0.5}, {3: 0.4, 4: 0.4})],
    ids=["one seed", "equal differences", "equal scores"],
)
def test_where_no_test_is_possible_there_is_none(own: dict[int, float], base: dict[int, float]) -> None:
    found = statistics.compare(own, base)
    assert (found.test, found.interval, found.needed) == ("", None, None)
    assert math.isnan(found.p)


def test_the_sign_flip_test_is_exact() -> None:
    differences = np.array([A[seed] - B[seed] for seed in A])
    flipped = [abs(np.mean(differences * signs)) for signs in itertools.product((1, -1), repeat=6)]
    expected = np.mean(np.array(flipped) >= abs(differences.mean()) - 1e-12)
    assert statistics.sign_flip(differences) == pytest.approx(expected)
    assert statistics.sign_flip(np.full(6, 0.3) + np.arange(6) / 100) == pytest.approx(2 / 64)


def test_holm() -> None:
    assert statistics.holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_power_is_the_noncentral_ts() -> None:
    for df, effect in itertools.product((2, 4, 9.5), (0.0, 1.0, 3.0, 5.0)):
        critical = stats.t.ppf(0.975, df)
        expected = stats.nct.sf(critical, df, effect) + stats.nct.cdf(-critical, df, effect)
        assert statistics.power(effect, df) == pytest.approx(expected, abs=2e-4)


def test_smallest_difference_and_sample_size_belong_together() -> None:
    """What n seeds just show needs n seeds; a hair less needs one more."""
    for n in (3, 5, 12):
        shown = statistics.smallest_shown(0.3 / math.sqrt(n), n - 1)
        assert statistics.seeds_needed(1.001 * shown, 0.09, 1) == n
        assert statistics.seeds_needed(0.999 * shown, 0.09, 1) == n + 1
    assert statistics.seeds_needed(1e-6, 0.09, 1) is None


def test_mcnemar() -> None:
    own = np.array([True] * 12 + [False] * 3 + [True] * 20 + [False] * 5)
    base = np.array([False] * 12 + [True] * 3 + [True] * 20 + [False] * 5)
    p = 2 * sum(math.comb(15, k) for k in range(4)) / 2**15
    assert statistics.mcnemar(own, base) == (12, 3, pytest.approx(p))
    assert statistics.mcnemar(own, own) == (0, 0, 1.0)


# --- seeds and examples together --------------------------------------------------------------------------------------

LIBRARY = {
    "accuracy": metrics.accuracy_score,
    "f1_score": lambda labels, guesses: metrics.f1_score(labels, guesses, zero_division=0),
    "matthews": metrics.matthews_corrcoef,
    "pearson": lambda labels, guesses: stats.pearsonr(labels, guesses).statistic,
    "spearman": lambda labels, guesses: stats.spearmanr(labels, guesses).statistic,
}


def examples(metric: str, runs: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (n,) and the predictions (R, n) of runs that are mostly right; scores come with ties."""
    rng = np.random.default_rng(len(metric))
    if metric in ("pearson", "spearman"):
        labels = rng.integers(0, 26, n) / 5
        return labels, np.round(labels + rng.normal(0, 1 + np.arange(runs)[:, None] / 5, (runs, n)), 1)
    labels = rng.integers(0, 2 if metric == "f1_score" else 3, n)
    return labels, np.where(rng.random((runs, n)) < 0.25, rng.integers(0, labels.max() + 1, (runs, n)), labels)


@pytest.mark.parametrize("metric", LIBRARY)
def test_weighted_scores_are_those_of_repeated_examples(metric: str) -> None:
    labels, predictions = examples(metric, 3, 30)
    weights = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), 6)
    found = statistics.weighted_scores(metric, labels, predictions, weights)
    for line, times in zip(found, weights, strict=True):
        drawn = np.repeat(np.arange(30), times)
        expected = [LIBRARY[metric](labels[drawn], run[drawn]) for run in predictions]
        assert line == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["accuracy", "matthews"])
def test_as_many_classes_as_a_task_may_have(metric: str) -> None:
    """1,000 labels: a table of label, prediction, label and prediction would take 8 TB."""
    labels = np.random.default_rng(0).permutation(1000)
    predictions = np.where(labels % 3 == 0, 7, labels)[None]
    found = statistics.weighted_scores(metric, labels, predictions, np.ones((1, 1000), int))
    assert found[0, 0] == pytest.approx(LIBRARY[metric](labels, predictions[0]))


def test_a_run_that_predicts_one_class_scores_as_in_scikit_learn() -> None:
    labels, weights = np.array([0, 1, 1, 0]), np.ones((1, 4))
    for metric in ("accuracy", "f1_score", "matthews"):
        for only in (0, 1):
            found = statistics.weighted_scores(metric, labels, np.full((1, 4), only), weights)
            assert found[0, 0] == pytest.approx(LIBRARY[metric](labels, np.full(4, only)))
    assert statistics.weighted_scores("f1_score", np.zeros(4, int), np.zeros((1, 4), int), weights)[0, 0] == 0
    assert np.isnan(statistics.weighted_scores("pearson", labels, np.full((1, 4), 2.5), weights)[0, 0])


def f1(labels: np.ndarray, guesses: np.ndarray) -> float:
    right = sum(1 for label, guess in zip(labels, guesses, strict=True) if label == guess == 1)
    return 2 * right / (sum(labels) + sum(guesses))


def correlation(labels: np.ndarray, guesses: np.ndarray) -> float:
    """Pearson's; of two classes it is Matthews'."""
    return float(np.corrcoef(labels, guesses)[0, 1])


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize(("metric", "plain"), [("f1_score", f1), ("matthews", correlation), ("pearson", correlation)])
def test_the_multi_bootstrap_against_a_plain_double_loop(metric: str, plain: Any, is_paired: bool) -> None:
    """Two ways to draw the same thing: their intervals agree within what so many draws leave open."""
    labels, predictions = examples("pearson" if metric == "pearson" else "f1_score", 5, 60)
    own, base = (3, 2) if not is_paired else (2, 2)
    scores = statistics.draw_scores(metric, labels, predictions[: own + base], 4000, np.random.default_rng(2))
    found = statistics.multi_bootstrap(scores[:, :own], scores[:, own:], is_paired, np.random.default_rng(3))

    rng = np.random.default_rng(4)
    differences = []
    for _ in range(1000):
        drawn = rng.integers(60, size=60)
        seeds = rng.integers(own, size=own)
        others = seeds if is_paired else rng.integers(base, size=base)
        a = [plain(labels[drawn], predictions[seed][drawn]) for seed in seeds]
        b = [plain(labels[drawn], predictions[own + seed][drawn]) for seed in others]
        differences.append(np.mean(a) - np.mean(b))
    tolerance = 0.3 * np.std(differences)  # four standard errors of these quantiles
    assert found == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), abs=tolerance)


def test_pairs_of_seeds_stay_pairs() -> None:
    """The negative control: seeds that differ a lot, but alike in both groups, leave no doubt only when paired."""
    luck = np.array([0.0, 1.0, 2.0])
    own, base = np.tile(luck + 0.5, (500, 1)), np.tile(luck, (500, 1))
    assert statistics.multi_bootstrap(own, base, True, np.random.default_rng(0)) == pytest.approx((0.5, 0.5))
    low, high = statistics.multi_bootstrap(own, base, False, np.random.default_rng(0))
    assert low < 0 < high
