"""What a benchmark has measured so far, on disk from its first row on."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from recallbench.disk import write_atomically
from recallbench.provenance import provenance


class BenchmarkFile:
    """Rows with where they come from, in OUT.partial until all are there and then in OUT; nowhere without `out`."""

    def __init__(self, out: Path | None, device: torch.device, members: int = 1):
        self.out, made = out, provenance(device, members)
        self.made = {key: made[key] for key in ("device", "code_version", "time")} | made["packages"]
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)

    @property
    def partial(self) -> Path | None:
        return None if self.out is None else self.out.with_name(f"{self.out.name}.partial")

    def keep(self, rows: pd.DataFrame | Sequence[dict[str, Any]]) -> None:
        """These rows so far. **Raises** `DiskTrouble`."""
        if self.partial is not None:
            content = io.BytesIO()
            pd.DataFrame(rows).assign(**self.made).to_parquet(content)
            write_atomically(self.partial, content.getbuffer())

    def finish(self) -> None:
        """What was kept is all."""
        if self.out is not None and self.partial is not None:
            os.replace(self.partial, self.out)
