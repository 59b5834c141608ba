"""The learning-rate schedule that all trainings of the package share."""

import optax


def warmup_cosine(rate: float, steps: int) -> optax.Schedule:
    """Return the learning-rate schedule in [G]: linear warm-up, then a cosine decay to a tenth of the peak.

    Args:
        rate: the peak, reached after a tenth of the steps.
        steps: the length of the training.
    """
    # Optax requires at least one step of decay after the warm-up, and a run may have a single step.
    return optax.warmup_cosine_decay_schedule(0.0, rate, warm_up(steps), max(steps, 2), rate / 10)


def warm_up(steps: int) -> int:
    """Return the number of steps until `warmup_cosine` is at its peak."""
    return max(steps // 10, 1)
