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
    """What Triton's interpreter does at every operation and takes two thirds of its time, with nothing lost."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton import language
    from triton.language.semantic import TritonSemantic
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

    interpreter._get_np_dtype = _known_by(lambda kind: kind.scalar.name, interpreter._get_np_dtype)
    block = language.core.block_type
    block.to_ir = lambda self, builder: self  # which it was, made anew
    block.with_element_ty = _known_by(lambda self, element: (self.name, element.name), block.with_element_ty)

    broadcast = TritonSemantic.broadcast_impl_value

    def broadcast_where_it_matters(self, a, b):
        if a.type.is_block() and b.type.is_block() and list(a.type.shape) == list(b.type.shape):
            return a, b
        return broadcast(self, a, b)

    TritonSemantic.broadcast_impl_value = broadcast_where_it_matters


def _known_by(key, function):
    """The function, called once for all arguments with the same key."""
    known = {}

    def lookup(*arguments):
        name = key(*arguments)
        if name not in known:
            known[name] = function(*arguments)
        return known[name]

    return lookup
