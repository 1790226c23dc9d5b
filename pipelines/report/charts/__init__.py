"""Small charts as inline SVG: lines, bars, histograms, values with intervals, shifts, a calibration diagram.

Pure functions from numbers to markup. They draw their arguments and nothing else; every text is escaped; colours come from
the page's style sheet by class (`model`, `kept`, ...; all of them in `pages/base.py`), so that they follow light, dark
and print, and no class differs from another by colour alone.
"""

from __future__ import annotations

from pipelines.report.charts.bins import Counts, histogram
from pipelines.report.charts.drawing import Mark, Reference, Series, round_ticks
from pipelines.report.charts.lines import calibration_chart, line_chart
from pipelines.report.charts.rows import Bar, bar_rows, dot_pairs, interval_chart

__all__ = [
    "Bar",
    "Counts",
    "Mark",
    "Reference",
    "Series",
    "bar_rows",
    "calibration_chart",
    "dot_pairs",
    "histogram",
    "interval_chart",
    "line_chart",
    "round_ticks",
]
