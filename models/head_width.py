"""The width of a head where a setting gives that of all heads together in multiples of the model's width."""

import math

from models.settings import SettingError


def head_width(setting: str, expand: float, d_model: int, num_heads: int, multiple_of: int = 1) -> int:
    """`expand` * D / H. **Raises** `SettingError` on `setting` where that is no whole multiple of `multiple_of`."""
    width = expand * d_model / num_heads
    if round(width) < 1 or not math.isclose(width, round(width)) or round(width) % multiple_of:
        kind = "an even" if multiple_of == 2 else "a whole"
        expected = f"{setting} * d_model / num_heads must be {kind} number, and it is {width:g}"
        raise SettingError(setting, expand, expected)
    return round(width)
