# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Lines of figures by optimiser step."""

from peft_polyhistor.studies.results import mean_line, thin


def test_long_lines_are_thinned():
    line = [(step, float(step)) for step in range(1, 1000)]
    thinned = thin(line)
    assert len(thinned) <= 150 and thinned[-1][0] == 999
    assert thinned[0] == (7, 4.0)  # the mean of 1 to 7
    assert thin(line[:5]) == line[:5] and thin([]) == []


def test_the_mean_of_runs_is_over_the_steps_that_all_have():
    assert mean_line([[(1, 2.0), (2, 4.0)], [(2, 8.0), (3, 1.0)]]) == [(2, 6.0)]
    assert mean_line([]) == []
