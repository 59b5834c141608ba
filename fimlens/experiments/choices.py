"""The scalar choices of each optimizer of a comparison as it ran: rate, decay, averages, eps, warm-up and clipping."""

from fimlens import optimizers
from fimlens.experiments.comparison import Entry
from fimlens.pretrain.recipe import Recipe, known_options

# Arguments and their headings; an optimizer without an argument has an empty cell.
SCALARS = {
    "weight_decay": "decay", "b1": "b1", "b2": "b2", "beta": "beta", "eps": "eps", "adam_learning_rate": "Adam's rate",
}  # fmt: skip


CHOICE_HEADINGS = ("optimizer", "rate", *SCALARS.values(), "warm-up", "clip")


def choice_cells(entries: list[Entry], rates: list[float], base: Recipe) -> list[tuple[str, ...]]:
    """Return the cells below CHOICE_HEADINGS, in the order of the entries.

    Adam's rate is that of the leaves that an optimizer leaves to Adam.

    Args:
        entries: the optimizers.
        rates: the rate of each.
        base: the plan of every run, apart from model, optimizer, rate and seed.
    """
    cells = []
    for each, rate in zip(entries, rates, strict=True):
        known = known_options(each.optimizer)
        values = known | each.options
        if "adam_learning_rate" in known and values["adam_learning_rate"] is None:
            values["adam_learning_rate"] = getattr(optimizers, each.optimizer).adam_factor * rate
        scalars = (_word(values.get(name, "")) for name in SCALARS)
        cells.append((each.name, _word(rate), *scalars, _word(base.warm_up), _word(each.clip)))
    return cells


def _word(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float | int) else str(value)
