"""Labels of any points beside any line: they cover neither the points, nor the line, nor each other."""

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.transforms import Bbox

from analysis.placement import label_points
from analysis.style import axes_at, column_figure, print_style

unit = st.floats(0, 1)
places = st.lists(st.tuples(unit, unit), min_size=1, max_size=20)


@settings(max_examples=25)
@given(places, st.lists(st.tuples(unit, unit), min_size=2, max_size=4))
@print_style()
def test_labels_are_clear_of_points_lines_and_each_other(points, line):
    points, line = np.array(points), np.array(line)
    figure = column_figure(2.5)
    axes = axes_at(figure, 0.3, 0.3, 3, 2)
    axes.set(xlim=(-0.1, 1.1), ylim=(-0.1, 1.1))
    label_points(axes, points, [f"K={i}" for i in range(len(points))], spans=points[:, 1:].repeat(2, 1), lines=[line])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert boxes or len(points) > 1
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    along = np.concatenate([np.linspace(a, b, 500) for a, b in pairwise(line)])
    for box in boxes:
        assert not box.count_contains(axes.transData.transform(points))
        assert not box.count_contains(axes.transData.transform(along))
        assert Bbox.intersection(box, axes.bbox).size.tolist() == box.size.tolist()
