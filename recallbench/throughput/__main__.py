"""`python -m recallbench.throughput`: one measurement, or with `-m` or `+study=NAME` many."""

from recallbench.__main__ import main

if __name__ == "__main__":
    main("throughput")
