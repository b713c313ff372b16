"""Many runs: expanding a study into runs, grouping them, launching what is left."""
