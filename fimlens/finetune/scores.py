"""The scores of predictions: those of GLUE's tasks, by SciPy."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int, Shaped
from scipy.spatial.distance import dice
from scipy.stats import pearsonr, spearmanr

Classes = Int[np.ndarray, " rows"]
Numbers = Shaped[np.ndarray, " rows"]


def accuracy(labels: Classes, predicted: Classes) -> float:
    """Return the share of rows whose class is predicted."""
    return float(np.mean(labels == predicted))


def f1(labels: Classes, predicted: Classes, of: int = 1) -> float:
    """Return the harmonic mean of precision and recall of one class; 0 where it neither occurs nor is predicted."""
    is_class, is_predicted = labels == of, predicted == of
    # 2 TP / (2 TP + FP + FN) is the coefficient of Dice, and SciPy has its distance from 1.
    return 1.0 - float(dice(is_class, is_predicted)) if (is_class | is_predicted).any() else 0.0


def macro_f1(labels: Classes, predicted: Classes) -> float:
    """Return the mean of `f1` over the classes that occur or are predicted."""
    return float(np.mean([f1(labels, predicted, int(of)) for of in np.union1d(labels, predicted)]))


def pearson(labels: Numbers, predicted: Numbers) -> float:
    """Return Pearson's correlation; 0 where either side is constant. Of two classes it is Matthews's."""
    return _correlation(pearsonr, labels, predicted)


def spearman(labels: Numbers, predicted: Numbers) -> float:
    """Return the correlation of the ranks; 0 where either side is constant."""
    return _correlation(spearmanr, labels, predicted)


def _correlation(of: Callable[..., tuple[float, float]], labels: Numbers, predicted: Numbers) -> float:
    if np.ptp(labels) == 0 or np.ptp(predicted) == 0:  # SciPy returns NaN and warns
        return 0.0
    return float(of(labels.astype(float), predicted.astype(float))[0])


SCORES: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro-f1": macro_f1,
    "matthews": pearson,
    "pearson": pearson,
    "spearman": spearman,
}
