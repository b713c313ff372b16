"""The constructor's signature is the schema: settings are checked against it before anything is built."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")


class SettingError(ValueError):
    """One setting that cannot be used: its name, its value, and what would be right, in one sentence."""

    def __init__(self, setting: str, value: object, expected: str):
        super().__init__(f"{setting} is {value!r}: {expected}")
        self.setting, self.value, self.expected = setting, value, expected

    def within(self, prefix: str) -> "SettingError":
        """The same error seen from outside, e.g. `window_size` within `mixer` is `mixer.window_size`."""
        return SettingError(f"{prefix}.{self.setting}", self.value, self.expected)


class SettingErrors(ValueError):
    """Every wrong setting of a configuration at once, one sentence a line."""

    def __init__(self, errors: list[SettingError]):
        self.errors = list({str(error): error for error in errors}.values())
        super().__init__("\n".join(str(error) for error in self.errors))


def attempt(errors: list[SettingError], prefix: str, build: Callable[[], T]) -> T | None:
    """What `build` gives, or None with its errors collected, each under `prefix`."""
    try:
        return build()
    except SettingErrors as found:
        errors += [error.within(prefix) for error in found.errors]
    except SettingError as error:
        errors.append(error.within(prefix))
    return None


def require(config: Mapping[str, Any], groups: Sequence[str]) -> None:
    """**Raises** `SettingErrors` where a configuration lacks a group."""
    if errors := [SettingError(group, None, "it must be given") for group in groups if config.get(group) is None]:
        raise SettingErrors(errors)


@cache
def schema(target: Callable[..., Any]) -> type[BaseModel]:
    """A strict pydantic model of the keyword settings of a class or function, built from its annotations.

    `d_model` counts as a setting like any other.
    """
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default)
        for p in inspect.signature(target).parameters.values()
    }
    return create_model(
        target.__name__, __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields
    )


def check(model: type[Model], settings: Mapping[str, Any]) -> Model:
    """Check `settings` against a pydantic model, e.g. a constructor's `schema`.

    **Raises** `SettingErrors`, which names each unknown, ill-typed or out-of-range setting.
    """
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        raise SettingErrors([_sentence(e, model) for e in error.errors()]) from None


def construct(target: Callable[..., T], settings: Mapping[str, Any]) -> T:
    """Call `target` with settings checked against its signature. **Raises** `SettingErrors` or `SettingError`."""
    checked = check(schema(target), settings)
    return target(**{name: getattr(checked, name) for name in type(checked).model_fields})


def _sentence(error: Any, model: type[BaseModel]) -> SettingError:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = sorted(set(model.model_fields) - {"d_model"})
        close = difflib.get_close_matches(path, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        return SettingError(path, error["input"], f"there is no such setting; {hint}")
    if error["type"] == "missing":
        return SettingError(path, None, "it must be given")
    message = re.sub("^(Input|Value|String|List) should", "it should", error["msg"])
    return SettingError(path, error["input"], message.removesuffix(" after validation, not 0"))
