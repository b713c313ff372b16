"""Tasks, training, evaluation, state measurement and the run record."""

import time

STARTED = time.monotonic()
"""When this process began, near enough, for time budgets: nothing slow is imported before."""
