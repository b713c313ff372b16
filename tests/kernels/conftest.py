"""What the tests of kernels share."""

import dataclasses
import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned(request):
    """What a kernel shall write holds NaN before: by this setting torch fills tensors that it does not initialise."""
    if not request.module.__name__.endswith("_triton"):
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def _interpreted_without_detours():
    """What Triton's interpreter does at every operation and takes more than half of its time, with nothing lost."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter

    replace_language, replaced = interpreter._patch_lang, set()

    def replace_once(function):
        """Kernels, and whatever they call, find the interpreter's operations; they stay, as nothing else is run."""
        if function.__module__ not in replaced:
            replaced.add(function.__module__)
            replace_language(function)
        return interpreter._LangPatchScope()  # of no changes, so that none is taken back

    interpreter._patch_lang = replace_once
    # whether an integer overflows is computed for each sum and product, and then told to nobody but in debug mode
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
