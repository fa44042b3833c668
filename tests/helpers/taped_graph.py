"""A stand-in for CUDA graphs without a GPU: the calls of torch on CPU tensors, recorded once and made again.

As in a graph, a replay knows nothing of Python: it reads and writes the memory that was read and written while it was
recorded, with the numbers of that time. What a graph cannot hold is an error: waiting for a result, drawing noise.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edm_fast import backend
from edm_fast.plan import _capture, _gpu, _gpu_program


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func is not torch.ops.aten._local_scalar_dense.default, "a graph cannot wait for a number"
        draws = torch.Tag.nondeterministic_seeded in func.tags and "attention" not in str(func)  # that has no dropout
        assert not draws, f"{func} draws noise"
        result = func(*args, **kwargs)
        if not func.is_view:
            self.calls.append((func, args, kwargs, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


def _formula(op, args):
    return op.reference(args)  # torch does not see what native code does


class Captured:
    """In place of `_capture.Captured`."""

    made = 0

    def __init__(self, function, device, beside=None):
        for _ in range(_capture.WARMUPS):
            function()
        with torch.no_grad(), backend.recording(_formula), Tape() as self.tape:
            self.result = function()
        Captured.made += 1

    def __call__(self):
        with torch.no_grad():
            self.tape.replay()
        return self.result


def put_in_place(monkeypatch):
    """Plans for a GPU have graphs, without one these."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(_gpu_program, "Captured", Captured)
        monkeypatch.setattr(_gpu, "captures", lambda device: True)
