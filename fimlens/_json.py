"""What JSON can hold of results: null for a number that is not finite."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """The value, or None for a float that is infinite or not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
