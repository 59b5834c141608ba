"""Figures: what they show, read back from their axes."""

import numpy as np
import pytest

from fimlens import figure


@pytest.fixture
def matrices():
    return [np.diag([1.0, -4.0, 0.25]), np.ones((3, 3))]


def test_portraits_share_one_scale_that_is_white_at_zero(matrices):
    drawn = figure.portraits([{"first": matrices[0], "second": matrices[1]}, {"third": matrices[0]}], block=1)
    images = [axes.images[0] for axes in drawn.axes if axes.images]
    assert [axes.get_title() for axes in drawn.axes if axes.images] == ["first", "second", "third"]
    assert len({(image.norm.vmin, image.norm.vmax) for image in images}) == 1
    assert images[0].norm(0.0) == pytest.approx(0.5)
    assert images[0].norm(1.0) - 0.5 == pytest.approx(0.5 - images[0].norm(-1.0))


def test_numbers_are_written_with_their_notes():
    drawn = figure.numbers(np.array([[0.25, 1.0]]), ["row"], ["a", "b"], label="error", notes=[["adam", ""]])
    assert [text.get_text() for text in drawn.axes[0].texts] == ["0.250\nadam", "1.000"]


def test_curves_are_told_apart_without_colour():
    drawn = figure.curves({name: [2.0, 1.0] for name in "abcdef"}, x="step", y="loss")
    lines = drawn.axes[0].lines
    assert [line.get_label() for line in lines] == list("abcdef")
    assert len(set(figure.STYLES)) == len(lines)
