"""Triton's interpreter, with the same results on every machine, and faster."""

import dataclasses
import types

import numpy as np


def prepare():
    """Set the interpreter up for all tests of this process."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return  # the tests that need it skip
    index_of_one_number(interpreter)
    sum_in_one_order(interpreter)
    patch_once(interpreter)
    skip_overflow_checks(interpreter.interpreter_builder)


def index_of_one_number(interpreter):
    """Take a tensor of one number for an index. Triton 3.6 asks NumPy for int(array), which 2.4 and later refuse."""
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor, scope):
        patch(tensor, scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor


def sum_in_one_order(interpreter):
    """Sum tl.dot in one order. NumPy's BLAS picks it by size and processor, so that on some machines the bits of an
    image would depend on its place in the batch, which on a GPU they do not."""

    def matmul(a, b, dtype=None):
        a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)  # einsum converts number by number
        return np.einsum("...ij,...jk->...ik", a, b)

    interpreter.np = types.SimpleNamespace(**{**vars(np), "matmul": matmul})


def patch_once(interpreter):
    """Have a launch patch each module of the language once. As published each call of a function inside a kernel does
    so again, which takes a quarter of the time and changes nothing."""
    tl = interpreter.tl
    patch, patched = interpreter._patch_lang, {}  # of the running launch: its modules, and the scope that restores them

    class Scope(interpreter._LangPatchScope):
        def restore(self):
            super().restore()
            patched.clear()

    def patch_lang(fn):
        modules = frozenset(value.__name__ for value in fn.__globals__.values() if value is tl or value is tl.core)
        if modules not in patched:
            scope = next(iter(patched.values()), Scope())
            scope._changes += patch(fn)._changes
            patched[modules] = scope
        return patched[modules]

    interpreter._patch_lang = patch_lang


def skip_overflow_checks(builder):
    """Do not check each sum and product of integers: it takes a third of the time, and small tests cannot overflow."""
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
