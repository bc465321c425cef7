"""The table of what a second look costs and catches."""

from __future__ import annotations

from scripts.measure_stability import Judged, table_of


def test_the_table_counts_flips_and_errors_apart() -> None:
    found = [
        Judged("real", True, False, ("real", "real"), (1.0, 4.0)),
        Judged("real", False, True, ("likely_ai", "inconclusive"), (1.0, 6.0)),
        Judged("ai", False, False, ("likely_real", "likely_real"), (1.0, 5.0)),
        Judged("ai", True, True, ("ai", "inconclusive"), (1.0, 5.0)),
    ]
    lines = table_of(found).splitlines()
    assert lines[2:4] == [
        "| 2 real | 0 of 1 | 1 of 1 | 1 of 2 | 0 of 1 |",
        "| 2 ai | 1 of 1 | 0 of 1 | 1 of 2 | 1 of 1 |",
    ]
    assert lines[-1] == "With it an image takes 5.0 times as long."
