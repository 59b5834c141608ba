"""Figures: their contents, read back from the axes."""

import jax
import numpy as np
import pytest

import fimlens as fl
from fimlens import plotting
from fimlens.lens import figure
from fimlens.lens.estimate_figure import errors_over_steps
from fimlens.lens.estimates import Estimates, make_estimate


@pytest.fixture
def matrices():
    return [np.diag([1.0, -4.0, 0.25]), np.ones((3, 3))]


def test_portraits_share_one_scale_that_is_white_at_zero(matrices):
    drawn = plotting.portraits([{"first": matrices[0], "second": matrices[1]}, {"third": matrices[0]}], block=1)
    images = [axes.images[0] for axes in drawn.axes if axes.images]
    assert [axes.get_title() for axes in drawn.axes if axes.images] == ["first", "second", "third"]
    assert len({(image.norm.vmin, image.norm.vmax) for image in images}) == 1
    assert images[0].norm(0.0) == pytest.approx(0.5)
    assert images[0].norm(1.0) - 0.5 == pytest.approx(0.5 - images[0].norm(-1.0))
    assert [axes.lines[0].get_xydata().tolist() for axes in drawn.axes if axes.images] == [[[1, 1]], [], [[1, 1]]]  # a minus


def test_numbers_are_written_with_their_notes():
    drawn = plotting.numbers(np.array([[0.25, 1.0]]), ["row"], ["a", "b"], label="error", notes=[["adam", ""]])
    assert [text.get_text() for text in drawn.axes[0].texts] == ["0.250\nadam", "1.000"]


def test_curves_differ_without_colour():
    drawn = plotting.curves({name: [2.0, 1.0] for name in "abcdef"}, x="step", y="loss")
    lines = drawn.axes[0].lines
    assert [line.get_label() for line in lines] == list("abcdef")
    assert len(set(plotting.STYLES)) == len(lines)


def test_the_lens_has_a_bar_in_two_parts_for_each_structure_and_the_smallest_first():
    fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (16, 3, 4)))
    comparisons = [fl.compare([fl.Diagonal(), fl.Rows()], fisher, matrix=name, solve_up_to=0) for name in ("a $", "b")]
    drawn = figure.error_against_memory(comparisons)
    drawn.draw_without_rendering()
    assert [axes.get_title() for axes in drawn.axes] == ["a \\$\n3 x 4", "b\n3 x 4"]
    axes, rows = drawn.axes[0], {row.name: row for row in comparisons[0].rows}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Rows()  3", "Diagonal()  12"]
    basis, spectrum = axes.containers
    ends = [bar.get_x() + bar.get_width() for bar in spectrum]
    assert ends == pytest.approx([rows["Rows()"].relative, rows["Diagonal()"].relative])
    assert basis[0].get_width() == pytest.approx(rows["Rows()"].basis)
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlim()[1] > max(ends)


def test_errors_over_steps_are_lines_with_intervals_without_what_is_infinite():
    def estimates(**pseudo):
        rows = {name: make_estimate(np.array(x), np.array(x), 0.0, 0.0, 12, None) for name, x in pseudo.items()}
        return Estimates(rows, {}, {}, "LogDet()", (3, 4), 16, 4, (1.0, 0.1))

    by_step = {100: estimates(soap=[0.3, 0.5], adam=[0.7, 0.9]), 25: estimates(soap=[np.inf, np.inf], adam=[0.8, 1.0])}
    (axes,) = errors_over_steps({"a $": by_step}).axes
    adam, soap = sorted(axes.containers, key=lambda bars: bars.get_label())
    assert [bars.get_label() for bars in (adam, soap)] == ["adam", "soap"]
    assert adam.lines[0].get_xydata().tolist() == [[25, 0.9], [100, 0.8]]
    assert soap.lines[0].get_xydata().tolist() == [[100, 0.4]]
    row = by_step[100].rows["soap"]
    assert soap.lines[2][0].get_segments()[0][:, 1] == pytest.approx([row.low, row.high])
    assert axes.get_title() == "a \\$\n3 x 4"
