"""Figures as text."""

from fineprune.common.figures import milliseconds, setting, size, written


def test_figures_are_as_long_as_they_are_known() -> None:
    assert [milliseconds(value) for value in (0.00512, 1.6, 99.94, 123.4, None)] == ["0.00512", "1.60", "99.9", "123", ""]
    assert [size(count) for count in (47_300, 999_000, 1_230_000, None)] == ["47.3 kB", "999 kB", "1.23 MB", ""]
    assert (written(0.5), written(0.5, "mm"), written(0.5, "")) == ("50.00%", "0.5 mm", "0.5")
    assert (setting(2, 1), setting(1, 4)) == ("batch 2, 1 thread", "batch 1, 4 threads")
