"""Which learning rates to try: one rule and one budget for every optimizer.

Rates are a usual one times powers of two. The rule first tries the usual rate and both neighbours, then continues beyond
the best end, until the best rate lies between two others or the budget is spent. The first seed chooses the rate;
other seeds are trained at the best rate only. A fixed grid would favour the optimizer that it was drawn around.
"""

import math
from collections.abc import Callable

Losses = dict[tuple[int, int], float]  # keys: (power of two of the rate, seed); infinite if the training diverged


def tuned(loss: Callable[[int, int], float], tries: int, seeds: int) -> Losses:
    """Tune a learning rate by the rule above. For a fair comparison, tune every optimizer with the same budget.

    Args:
        loss: trains at a power of two of the rate and a seed, and returns the loss.
        tries: rates to try at most; with fewer than three, only the usual rate is trained.
        seeds: seeds to train at the best rate.

    Returns:
        All losses by power and seed. `best_power` finds the best rate among them.

    Examples:
        >>> from fimlens.experiments.tuning import best_power, tuned
        >>> losses = tuned(lambda power, seed: float((power - 2) ** 2 + seed), tries=5, seeds=2)
        >>> sorted(losses), best_power(losses)
        ([(-1, 0), (0, 0), (1, 0), (2, 0), (2, 1), (3, 0)], 2)
    """
    losses: Losses = {}
    while missing := next_runs(losses, tries, seeds):
        for power, seed in missing:
            losses[power, seed] = loss(power, seed)
    return losses


def next_runs(losses: Losses, tries: int, seeds: int) -> list[tuple[int, int]]:
    """Return the (power, seed) pairs to train next, given the losses so far; an empty list when tuning is done."""
    tried = sorted(power for power, seed in losses if seed == 0)
    missing = [(power, 0) for power in ((0, -1, 1) if tries > 2 else (0,)) if power not in tried]
    if missing:
        return missing
    best = best_power(losses)
    if best in (tried[0], tried[-1]) and len(tried) < tries and tries > 2:
        return [(best + (1 if best == tried[-1] else -1), 0)]
    if math.isinf(losses[best, 0]):
        return []  # every rate diverged: more seeds would tell nothing
    return [(best, seed) for seed in range(seeds) if (best, seed) not in losses]


def best_power(losses: Losses) -> int:
    """Return the power of two of the rate at which the first seed has the lowest loss."""
    # Sorted, so that among equals the smallest rate wins: if all rates diverged, the search goes towards smaller ones.
    return min(sorted(power for power, seed in losses if seed == 0), key=lambda power: losses[power, 0])
