"""A step as a CUDA graph: its kernels asked for at once.

At small batches and short prompts the kernels of a step take microseconds, less than Python takes to ask for them, and
a serving system would not let that be the limit.
"""

from collections.abc import Callable

import torch

WARM_UP = 3
"""Steps before a graph is recorded: they compile, and choose among kernels, which a recording may not."""


def recorded(step: Callable[[], None], restart: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """The graph of `step`, which reads and writes tensors that stay where they are.

    The steps before it is recorded each begin with a `restart`. What a recorded step allocates belongs to the graph.
    """
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            restart()
            step()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
