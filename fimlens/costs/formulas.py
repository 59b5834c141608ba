"""The five formulas of a run's cost: memory, devices, hours, money and the saving against Adam.

They take numbers, and SymPy's symbols too: `page` turns them into the JavaScript of the interactive page, so that the page
and the command compute the same.
"""

import sympy

Quantity = int | float | sympy.Expr


def devices_needed(held: Quantity, working: Quantity, usable: Quantity) -> Quantity:
    """The smallest number of devices that a run fits on.

    `held` bytes are shared evenly among the devices, and each has `working` bytes of its own in its `usable` bytes.
    """
    return -(-held // (usable - working))


def memory(held: Quantity, working: Quantity, devices: Quantity) -> Quantity:
    """Bytes on each device."""
    return held / devices + working


def hours(
    tokens: Quantity, speed_up: Quantity, flops_per_token: Quantity, devices: Quantity, peak: Quantity, utilisation: Quantity
) -> Quantity:
    """Hours of training; `tokens` is the number for Adam, and `peak` the FLOP/s of one device."""
    return tokens / speed_up * flops_per_token / (devices * peak * utilisation) / 3600


def money(hours: Quantity, devices: Quantity, price: Quantity) -> Quantity:
    """The price of a run in dollars, given the `price` of one device for an hour."""
    return hours * devices * price


def saving(flops_per_token: Quantity, speed_up: Quantity, adams_flops_per_token: Quantity) -> Quantity:
    """The share of Adam's money that the optimizer saves; tokens, devices, their speed and their price cancel."""
    return 1 - flops_per_token / speed_up / adams_flops_per_token
