"""A training step as a CUDA graph: its some hundred kernels launched at once, members on streams side by side.

At the sizes of recall studies, and of language models of some ten million parameters, a kernel takes less time than
Python takes to ask for it. A graph is recorded once for each shape of batch and then replayed, with nothing left to do
for Python but to say which rows are next.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Replay:
    """Steps by the shape of their batch, each called the first time, recorded, and replayed from then on.

    A step reads and writes tensors that stay where they are; its one argument, a tensor of one shape, is copied to a
    place of its own. **Arguments:** `branches`: how many streams a step may use beside its own.
    """

    def __init__(self, device: torch.device, branches: int):
        self.device = device
        self.main = torch.cuda.Stream(device)
        self.streams = [torch.cuda.Stream(device) for _ in range(branches)]
        self.recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.pool = None

    def __call__(self, shape: Hashable, step: Callable[[Tensor], None], argument: Tensor) -> None:
        if shape in self.recorded:
            graph, place = self.recorded[shape]
            place.copy_(argument)
            graph.replay()
            return
        # The first time is a step like any other; it compiles what is to be compiled, which a recording may not.
        self.main.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.main):
            step(argument)
        torch.cuda.current_stream(self.device).wait_stream(self.main)
        place, graph = argument.clone(), torch.cuda.CUDAGraph()
        # Graphs are replayed one after the other and leave nothing behind, so that they share one pool of memory.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.main, capture_error_mode="thread_local"):
            step(place)
        self.pool = graph.pool()
        self.recorded[shape] = graph, place

    @contextmanager
    def branch(self, i: int) -> Iterator[None]:
        """Within a step: what is launched here runs beside the other branches, until `join`."""
        stream = self.streams[i]
        stream.wait_stream(self.main)
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """The end of all branches."""
        for stream in self.streams:
            self.main.wait_stream(stream)
