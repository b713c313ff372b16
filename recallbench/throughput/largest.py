"""The largest number that fits, found by trying."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number from 1 that fits, 0 where none does: by doubling until one does not, then by bisecting.

    What it returns fits, and some number that is larger by at most an eighth, or by 1, does not.
    """
    if not fits(1):
        return 0
    best, too_large = 1, 2
    while fits(too_large):
        best, too_large = too_large, 2 * too_large
    while too_large - best > max(1, best // 8):
        middle = (best + too_large) // 2
        best, too_large = (middle, too_large) if fits(middle) else (best, middle)
    return best


def near(guess: int, fits: Callable[[int], bool]) -> int:
    """As `largest` where a try is dear: from a guess that is nearly right by an eighth up, or down, until it turns."""
    best = guess
    if best and fits(best):
        while fits(larger := best + max(1, best // 8)):
            best = larger
        return best
    while best:
        best -= max(1, best // 9)
        if best and fits(best):
            break
    return best
