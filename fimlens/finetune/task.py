"""A task: which columns hold the texts and the label, what the labels are, and how predictions are scored."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from fimlens.finetune.scores import SCORES

REGRESSION_SCORES, CLASS_SCORES = ("pearson", "spearman"), ("accuracy", "macro-f1")


@dataclass(frozen=True)
class Task:
    """A classification or a regression of texts.

    Args:
        name: the name, or the path of a file.
        texts: the columns of the texts: one, or two for a pair of sentences.
        classes: the labels, as the data have them or as words; none for a regression, whose labels are numbers.
        scores: names in `fimlens.finetune.scores.SCORES`; the first counts.
        label: the column of the label.
        held_out: the split that is held out, where data have splits by name.

    Raises:
        ValueError: there are not one or two columns of text, or only one class.
    """

    name: str
    texts: tuple[str, ...]
    classes: tuple[str, ...] = ()
    scores: tuple[str, ...] = CLASS_SCORES
    label: str = "label"
    held_out: str = "validation"

    def __post_init__(self) -> None:
        if len(self.texts) not in (1, 2):
            raise ValueError(f"finetune: a task has one column of text or two; got {', '.join(self.texts) or 'none'}.")
        if len(self.classes) == 1:
            raise ValueError(f"finetune: all labels are {self.classes[0]!r}. Give data of two classes or more.")

    @property
    def width(self) -> int:
        """The number of outputs for a text."""
        return len(self.classes) or 1

    def score(self, labels: Shaped[np.ndarray, " rows"], outputs: Float[np.ndarray, "rows width"]) -> dict[str, float]:
        """Return each score of a model's outputs."""
        predicted = outputs.argmax(axis=1) if self.classes else outputs[:, 0]
        return {name: SCORES[name](labels, predicted) for name in self.scores}

    def read_label(self, value: Any) -> int | float:
        """Return a label as a number: that of its class, or its value.

        Raises:
            ValueError: the label is missing, or none of the classes, or no finite number.
        """
        if is_missing(value) or (self.classes and value == -1 and "-1" not in self.classes):  # -1 as in GLUE's test splits
            raise ValueError("has no label")
        if self.classes:
            if word(value) not in self.classes:
                raise ValueError(f"has the label {value!r}, which is none of {', '.join(self.classes)}")
            return self.classes.index(word(value))
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"has the label {value!r}, which is no number") from error
        if not math.isfinite(number):
            raise ValueError(f"has the label {value!r}, which is not finite")
        return number


def is_missing(label: Any) -> bool:
    """Whether a row has no label: nothing, an empty text, or a number that is none."""
    return label is None or label == "" or label != label


def word(label: Any) -> str:
    """Return the name of a class."""
    # A column of whole numbers becomes one of floats where a label is missing.
    return str(int(label) if isinstance(label, float) and label.is_integer() else label)


SENTENCES = ("sentence1", "sentence2")
TWO, THREE = ("0", "1"), ("0", "1", "2")
# GLUE (Wang et al., 2019), with the columns and the numbers of classes that its data have on the hub.
GLUE = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), TWO, ("matthews",)),
        Task("sst2", ("sentence",), TWO, ("accuracy",)),
        Task("mrpc", SENTENCES, TWO, ("f1", "accuracy")),
        Task("qqp", ("question1", "question2"), TWO, ("f1", "accuracy")),
        Task("stsb", SENTENCES, (), REGRESSION_SCORES),
        Task("mnli", ("premise", "hypothesis"), THREE, ("accuracy",), held_out="validation_matched"),
        Task("qnli", ("question", "sentence"), TWO, ("accuracy",)),
        Task("rte", SENTENCES, TWO, ("accuracy",)),
        Task("wnli", SENTENCES, TWO, ("accuracy",)),
    )
}
