"""Statistics for the few seeds that people can afford: intervals, comparisons, and resampling of seeds and examples.

Shapes: n values or examples, R runs, B draws, C classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8  # of the tests for which sample sizes and smallest differences are given
QUANTILES = 500
MOST_SEEDS = 1000  # where the search for a sample size ends

Interval = tuple[float, float]


# --- means and differences of seeds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds, its standard deviation (ddof 1, nan for one seed), and its t interval from n = 3 on."""

    n: int
    mean: float
    sd: float
    interval: Interval | None


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of a score over seeds with its 95 % t interval.

    Two seeds get none: it would be about nine standard deviations wide on each side.
    """
    found = np.asarray(values, float)
    n, mean = len(found), float(found.mean())
    sd = float(found.std(ddof=1)) if n > 1 else math.nan
    if n < 3:
        return Mean(n, mean, sd, None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Mean(n, mean, sd, (mean - half, mean + half))


@dataclass(frozen=True)
class Difference:
    """The difference of two groups' means, and what a test says of it.

    test: "paired t", "Welch" or "" where there are too few seeds or none differs from another. n: the seeds of each
    group that it uses. same_sign: how many pairs differ in the direction of the mean. sign_flip: the exact p of paired
    seeds, from 6 on. shown: the smallest difference that so many seeds show with a power of 80 %. needed: the seeds a
    group with which this difference would be shown, None above 1,000.
    """

    test: str
    n: tuple[int, int]
    difference: float
    interval: Interval | None = None
    p: float = math.nan
    same_sign: int | None = None
    sign_flip: float | None = None
    shown: float | None = None
    needed: int | None = None


def compare(own: dict[int, float], base: dict[int, float]) -> Difference:
    """Compare two groups' scores by seed: paired t where they share at least 3 seeds, else Welch's t.

    Pairs mean something: the order of the examples and the start of a student depend on the seed alone.
    """
    shared = sorted(own.keys() & base.keys())
    if len(shared) >= 3:
        return paired(np.array([own[seed] - base[seed] for seed in shared]))
    return welch(np.array(list(own.values())), np.array(list(base.values())))


def paired(differences: np.ndarray) -> Difference:
    """Compare by the differences of pairs, at least 3: a t test, and from 6 on the exact sign-flip test too."""
    n, mean = len(differences), float(differences.mean())
    same_sign = int((np.sign(differences) == np.sign(mean)).sum()) if mean else 0
    variance = float(differences.var(ddof=1))
    if is_zero(variance, differences):
        return Difference("", (n, n), mean, same_sign=same_sign)
    found = stats.ttest_1samp(differences, 0)
    interval = found.confidence_interval(LEVEL)
    return Difference(
        "paired t",
        (n, n),
        mean,
        (float(interval.low), float(interval.high)),
        float(found.pvalue),
        same_sign,
        sign_flip(differences) if n >= 6 else None,
        smallest_shown(math.sqrt(variance / n), n - 1),
        seeds_needed(mean, variance, 1.0),
    )


def welch(own: np.ndarray, base: np.ndarray) -> Difference:
    """Compare two independent groups by Welch's t test, which needs two seeds of each."""
    n, mean = (len(own), len(base)), float(own.mean() - base.mean())
    if min(n) < 2:
        return Difference("", n, mean)
    a, b = float(own.var(ddof=1)), float(base.var(ddof=1))
    if is_zero(a + b, np.concatenate([own, base])):
        return Difference("", n, mean)
    found = stats.ttest_ind(own, base, equal_var=False)
    interval = found.confidence_interval(LEVEL)
    shown = smallest_shown(math.sqrt(a / n[0] + b / n[1]), float(found.df))
    needed = seeds_needed(mean, a + b, (a + b) ** 2 / (a**2 + b**2))
    return Difference(
        "Welch", n, mean, (float(interval.low), float(interval.high)), float(found.pvalue), None, None, shown, needed
    )


def is_zero(variance: float, values: np.ndarray) -> bool:
    """Tell whether a variance is nothing but rounding: equal scores are a coarse measure, not a certain one."""
    return variance <= (1e-12 * max(1.0, float(np.abs(values).max()))) ** 2


def sign_flip(differences: np.ndarray) -> float:
    """Return the two-sided p of the mean when every sign may be flipped; exact up to 16 pairs (Fisher, 1935)."""
    found = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=2**16, vectorized=True, axis=-1, rng=0
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, 1979); nan, where no test was made, stays and does not count."""
    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def power(effect: float, df: float) -> float:
    """Return how often a two-sided t test at 5 % shows a difference of so many standard errors.

    The noncentral t's tails, as a mean of the normal's over the quantiles of the estimated standard error:
    scipy.stats.nct is nan for some of the values that few degrees of freedom need.
    """
    critical = stats.t.ppf((1 + LEVEL) / 2, df)
    errors = np.sqrt(stats.chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, df) / df)
    return float((stats.norm.cdf(effect - critical * errors) + stats.norm.cdf(-effect - critical * errors)).mean())


def smallest_shown(error: float, df: float) -> float:
    """Return the smallest difference that a t test with this standard error shows with a power of 80 %."""
    critical = float(stats.t.ppf((1 + LEVEL) / 2, df))
    return error * float(optimize.brentq(lambda effect: power(effect, df) - POWER, 0, 5 * critical))


def seeds_needed(difference: float, variance: float, df_per_seed: float) -> int | None:
    """Return how many seeds a group show `difference` with a power of 80 %, None when 1,000 do not.

    The difference's standard error is sqrt(variance / n), with df_per_seed * (n - 1) degrees of freedom.
    """
    low, high = 2, MOST_SEEDS  # `high` shows it; no pairs are compared below 3
    if not shows(difference, variance, df_per_seed, high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(difference, variance, df_per_seed, middle) else (middle, high)
    return high


def shows(difference: float, variance: float, df_per_seed: float, n: int) -> bool:
    """Tell whether n seeds a group show a difference with a power of 80 %."""
    return power(abs(difference) / math.sqrt(variance / n), df_per_seed * (n - 1)) >= POWER


def mcnemar(own: np.ndarray, base: np.ndarray) -> tuple[int, int, float]:
    """Return how many examples only one of two runs gets right, and McNemar's exact p; both (n,) tell what is right."""
    only_own, only_base = int((own & ~base).sum()), int((base & ~own).sum())
    both = only_own + only_base
    return only_own, only_base, float(stats.binomtest(only_own, both, 0.5).pvalue) if both else 1.0


# --- seeds and examples together --------------------------------------------------------------------------------------


def draw_scores(
    metric: str, labels: np.ndarray, predictions: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return a metric (B, R) of R runs' predictions (R, n) on B samples of the examples, the same for every run.

    Examples that no run tells apart are drawn as one: how often each kind comes is multinomial.
    """
    kinds, counts = np.unique(np.vstack([labels, predictions]), axis=1, return_counts=True)
    total = len(labels)
    at_once = max(1, 20_000_000 // len(counts))
    parts = []
    for start in range(0, draws, at_once):
        weights = rng.multinomial(total, counts / total, min(at_once, draws - start))
        parts.append(weighted_scores(metric, kinds[0], kinds[1:], weights))
    return np.concatenate(parts)


def weighted_scores(metric: str, labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return a metric (B, R) of predictions (R, n) where example i counts weights[b, i] times, (B, n)."""
    return METRICS[metric](labels, predictions, weights.astype(np.float64))


def multi_bootstrap(own: np.ndarray, base: np.ndarray, is_paired: bool, rng: np.random.Generator) -> Interval:
    """Return the 95 % interval of a difference of means when seeds and examples are drawn anew together.

    own (B, n), base (B, m): scores by draw of examples and seed; paired runs share the draw of seeds. (Sellam et al.,
    The MultiBERTs, ICLR 2022.)
    """
    draws = len(own)
    seeds = rng.integers(own.shape[1], size=own.shape)
    others = seeds if is_paired else rng.integers(base.shape[1], size=base.shape)
    lines = np.arange(draws)[:, None]
    differences = own[lines, seeds].mean(1) - base[lines, others].mean(1)
    low, high = np.nanquantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, 0 where that is 0 / 0, as scikit-learn has it for F1 and Matthews."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def accuracy(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of right predictions (B, R)."""
    return weights @ (predictions == labels).T / weights.sum(1, keepdims=True)


def f1_score(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return F1 of class 1 (B, R)."""
    real, guessed = labels == 1, predictions == 1
    return ratio(2 * (weights @ (guessed & real).T), weights @ guessed.T + (weights @ real)[:, None])


def matthews(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation (B, R), for any number of classes (Gorodkin, 2004)."""
    total, right = weights.sum(1, keepdims=True), weights @ (predictions == labels).T
    both = real_squares = guessed_squares = 0.0
    for label in np.union1d(labels, predictions):
        real, guessed = (weights @ (labels == label))[:, None], weights @ (predictions == label).T
        both = both + real * guessed
        real_squares, guessed_squares = real_squares + real**2, guessed_squares + guessed**2
    return ratio(right * total - both, np.sqrt((total**2 - real_squares) * (total**2 - guessed_squares)))


def pearson(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation (B, R), nan where one side is constant."""
    x, y = (values - values.mean(-1, keepdims=True) for values in (predictions.astype(float), labels.astype(float)))
    total = weights.sum(1)
    mean_x, mean_y = weights @ x.T / total[:, None], (weights @ y / total)[:, None]
    both = weights @ (x * y).T / total[:, None] - mean_x * mean_y
    spread = (weights @ (x**2).T / total[:, None] - mean_x**2) * ((weights @ y**2 / total)[:, None] - mean_y**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-20, both / np.sqrt(np.maximum(spread, 0)), math.nan)


def spearman(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation (B, R): Pearson's of the ranks within each sample."""
    y = weighted_ranks(labels, weights)
    total = weights.sum(1)
    columns = []
    for run in predictions:
        x = weighted_ranks(run, weights)
        both, xx, yy = ((weights * a * b).sum(1) / total for a, b in ((x, y), (x, x), (y, y)))
        with np.errstate(invalid="ignore", divide="ignore"):
            columns.append(np.where((xx > 0) & (yy > 0), both / np.sqrt(xx * yy), math.nan))
    return np.stack(columns, axis=1)


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the ranks (B, n), less their mean, of values (n,) of which weights (B, n) are there; ties share theirs."""
    _, tied, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    groups = np.add.reduceat(weights[:, np.argsort(values, kind="stable")], first, axis=1)
    middle = np.cumsum(groups, axis=1) - groups / 2 - weights.sum(1, keepdims=True) / 2
    return middle[:, tied]


Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1_score": f1_score,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
