"""Triton's interpreter, with the same results on every machine, faster, and with an eye on every address."""

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
    check_addresses(interpreter)
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


def check_addresses(interpreter):
    """An address that a mask lets through must lie in a tensor of the launch. Elsewhere a GPU would read or overwrite
    what is another's, mostly without a word, as here."""
    memory, launch, live = interpreter._interpreter, interpreter.GridExecutor._init_args_hst, []

    def init_args_hst(self, args, kwargs):
        found = launch(self, args, kwargs)
        live[:] = _extents([*found[0], *found[1].values()])
        return found

    def load(addresses, mask, other, dtype):
        _check("loads", addresses, mask, np.dtype(dtype).itemsize, live)
        return memory.load(addresses, mask, other, dtype)

    def store(addresses, values, mask):
        _check("stores", addresses, mask, values.itemsize, live)
        return memory.store(addresses, values, mask)

    def refused(*args):
        raise NotImplementedError("addresses of atomic operations are not checked yet")

    checked = {"load": load, "store": store, "atomic_rmw": refused, "atomic_cas": refused}
    interpreter._interpreter = types.SimpleNamespace(**{**vars(memory), **checked})
    interpreter.GridExecutor._init_args_hst = init_args_hst


def _extents(arguments):
    """First address and end of the tensors among arguments, in order; those that overlap as one."""
    found = []
    tensors = (x for x in arguments if hasattr(x, "data_ptr") and x.numel())
    for tensor in sorted(tensors, key=lambda tensor: tensor.data_ptr()):
        start = tensor.data_ptr()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        end = start + (last + 1) * tensor.element_size()
        if found and start < found[-1][1]:
            start, end = found[-1][0], max(end, found.pop()[1])
        found.append((start, end))
    return found


def _check(kind, addresses, mask, size, live):
    if not mask.all():
        addresses = addresses[mask]
    if not addresses.size:
        return
    first, end = int(addresses.min()), int(addresses.max()) + size
    if any(start <= first and end <= stop for start, stop in live):
        return
    inside = sum((addresses >= start) & (addresses + np.uint64(size) <= stop) for start, stop in live)
    if not np.all(inside):
        at = int(addresses[inside == 0].flat[0])
        nearest, stop = min(live, key=lambda extent: max(extent[0] - at, at - extent[1]))
        where = f"{nearest - at} before" if at < nearest else f"{at - stop} behind the end of"
        raise IndexError(
            f"{np.sum(inside == 0)} of {addresses.size} {kind} of {size} bytes lie outside of all tensors of a launch,"
            f" the first of them {where} one of {stop - nearest} bytes"
        )


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
