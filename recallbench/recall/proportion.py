"""A share of yes among yes and no, with its confidence interval."""

import math

Z = 1.959963984540054
"""The 97.5th percentile of the normal distribution: intervals of 95%."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95% score interval of a proportion; it stays within 0 and 1, and is sound for few trials and for 0 or all.

    Source: Wilson 1927, Journal of the American Statistical Association 22 (158), 209-212.
    """
    if not trials:
        return 0.0, 1.0
    p = successes / trials
    middle = (p + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * math.sqrt(p * (1 - p) / trials + Z**2 / (4 * trials**2))
    return middle - half if successes else 0.0, middle + half if successes < trials else 1.0


def proportion(right: list[bool]) -> dict[str, float]:
    """Accuracy, its interval, and how many examples it is of. `right` has one at least."""
    low, high = wilson(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "accuracy_low": low, "accuracy_high": high, "examples": len(right)}
