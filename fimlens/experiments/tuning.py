"""Which learning rates to try: the same rule and the same budget for every optimizer.

Rates are powers of two times a usual one. Three are tried at first, the usual one and its neighbours, and then one more beyond
whichever end is best, up to a number of tries; the first seed chooses, and the others are trained at the best rate alone.
"""

import math
from collections.abc import Callable

Losses = dict[tuple[int, int], float]  # by the power of two of the rate, and the seed; infinite where a training diverged


def tuned(loss: Callable[[int, int], float], tries: int, seeds: int) -> Losses:
    """All losses that the rule asks for; `loss` trains at a power and a seed.

    Examples:
        >>> from fimlens.experiments.tuning import best_power, tuned
        >>> losses = tuned(lambda power, seed: float((power - 2) ** 2 + seed), tries=5, seeds=2)
        >>> sorted(losses), best_power(losses)
        ([(-1, 0), (0, 0), (1, 0), (2, 0), (2, 1), (3, 0)], 2)
    """
    losses: Losses = {}
    while lacking := wanted(losses, tries, seeds):
        for power, seed in lacking:
            losses[power, seed] = loss(power, seed)
    return losses


def wanted(losses: Losses, tries: int, seeds: int) -> list[tuple[int, int]]:
    """What is lacking next, from what is known; with fewer than three tries, the usual rate's seeds alone."""
    tried = sorted(power for power, seed in losses if seed == 0)
    lacking = [(power, 0) for power in ((0, -1, 1) if tries > 2 else (0,)) if power not in tried]
    if lacking:
        return lacking
    best = best_power(losses)
    if best in (tried[0], tried[-1]) and len(tried) < tries and tries > 2:
        return [(best + (1 if best == tried[-1] else -1), 0)]
    if math.isinf(losses[best, 0]):
        return []
    return [(best, seed) for seed in range(seeds) if (best, seed) not in losses]


def best_power(losses: Losses) -> int:
    """Of the rate at which the first seed ended lowest; of equals, such as all that diverged, the smallest."""
    return min(sorted(power for power, seed in losses if seed == 0), key=lambda power: losses[power, 0])
