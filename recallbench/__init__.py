"""Tasks, training, evaluation, state measurement and the run record."""
