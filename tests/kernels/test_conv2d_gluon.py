"""The convolution in Gluon: its source, event by event on a machine in Python, and its machine code.

No interpreter runs Gluon. So the file itself runs on `helpers.gluon_machine`, in random orders of events and in all
that there are, against the reference; and what the compiler makes of it is looked at.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from helpers import gluon_machine, gluon_memory
from helpers.scripts import load

FILE = Path(__file__).parents[2] / "kernels/_conv2d_gluon.py"
machine_code = load(Path(__file__).with_name("machine_code.py"))


def at_random(seed):
    """Orders in which at times one actor, or what is in flight, is far ahead or behind."""
    generator = random.Random(seed)
    favourite = generator.choice(["", "_produce", "_consume", "fetch", "product 0", "product 1"])

    def choose(options, state):
        wanted = [i for i, name in enumerate(options) if favourite and favourite in name]
        often = wanted and generator.random() < 0.8
        return generator.choice(wanted) if often else generator.randrange(len(options))

    return choose


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(kernels, shape, outputs, padding=1, rows=1, residual=True, clip=None, dtype=torch.float16, device="cpu"):
    n, c, h, w = shape
    grow = 2 * padding - 2
    x, weight = drawn(*shape, seed=0).to(dtype), (drawn(outputs, c, 3, 3, seed=1) / (9 * c) ** 0.5).to(dtype)
    rows = drawn(rows, outputs, seed=2).to(dtype) if rows else None
    residual = drawn(n, outputs, h + grow, w + grow, seed=3).to(dtype) if residual else None
    assert kernels.shape_reason(x.shape, weight.shape, padding) is None
    packed = weight.permute(0, 2, 3, 1).contiguous()
    moved = [None if t is None else t.to(device) for t in (x, packed, rows, residual)]
    y = kernels.forward(*moved, 0.7, padding, clip=clip).cpu()
    exact = F.conv2d(x.double(), weight.double(), padding=padding)
    exact += 0 if rows is None else rows.double()[:, :, None, None]
    exact = 0.7 * (exact + (0 if residual is None else residual.double()))
    exact = exact if clip is None else exact.clip(-clip, clip)
    assert y.shape == exact.shape and y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert (y - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()


LAYERS = {
    "rows_of_32": ((4, 64, 4, 32), 128, {}),
    "odd_rows": ((2, 64, 3, 64), 128, {"rows": 2, "clip": 0.75}),
    "three_columns_of_boxes": ((3, 64, 2, 96), 128, {"rows": 0}),
    "more_channels": ((1, 192, 2, 128), 64, {"rows": 0, "residual": False}),
    "outputs_past_the_end": ((8, 64, 2, 16), 200, {"rows": 8}),
    "images_past_the_end": ((9, 64, 8, 8), 136, {"rows": 9}),
    "padding_0": ((4, 64, 6, 34), 64, {"padding": 0}),
    "padding_2": ((4, 64, 2, 30), 64, {"padding": 2}),
    "bfloat16": ((8, 64, 4, 16), 128, {"dtype": torch.bfloat16, "rows": 0}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_convolution(name):
    shape, outputs, kwargs = LAYERS[name]
    for seed in range(3):
        check(gluon_machine.load(FILE, at_random(seed)), shape, outputs, **kwargs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", LAYERS)
def test_on_a_gpu(name):
    from edm_fast.kernels import conv2d

    x = torch.ones(1, 64, 2, 128, dtype=torch.float16, device="cuda")
    if (reason := conv2d.boxes_reason(x, x.new_ones(64, 64, 3, 3), 1, proved=True)) is not None:
        pytest.skip(reason)
    from edm_fast.kernels import _conv2d_gluon

    shape, outputs, kwargs = LAYERS[name]
    check(_conv2d_gluon, shape, outputs, device="cuda", **kwargs)


RING = "PIXELS, CHANNELS, SLOTS, WARPS = 128, 64, 14, 8"
FEW = RING, RING.replace("14", "4")  # slots: as few as there may be
SHORT = FEW, ("right in range(3)", "right in range(2)"), ("groups = 3 *", "groups = 2 *")


def every_order(changes=(), most=20_000):
    """Runs until every event that can follow in any state has followed; the number of states."""
    tried, stack = {}, [[]]
    x, weight = torch.zeros(1, 64, 1, 128).half(), torch.zeros(64, 3, 3, 64).half()
    while stack:
        prefix = stack.pop()
        made = []

        def choose(options, state, prefix=prefix, made=made):
            place = len(made)
            done = tried.setdefault(state, set())
            if place < len(prefix):
                made.append(prefix[place])
            else:
                if done:
                    raise gluon_machine.Pruned
                stack.extend([*made, other] for other in range(1, len(options)))
                made.append(0)
            done.add(made[-1])
            return made[-1]

        try:
            gluon_machine.load(FILE, choose, changes).forward(x, weight, padding=1)
        except gluon_machine.Pruned:
            pass
        assert len(tried) < most
    return len(tried)


def test_every_order_of_events():
    """Of two groups of products. All ends, and no slot is touched while it is in use."""
    assert every_order(SHORT) > 2000


PLANTED = {
    "filled again without waiting": ("_turn(place, SLOTS) ^ 1)", "_turn(place, SLOTS))", "wait for ever"),
    "never waited for": (
        "    mbarrier.wait(empty.index(slot), _turn(place, SLOTS) ^ 1)\n", "", "overwritten|arrivals"
    ),
    "the wrong parity of a full slot": (
        "wait(full.index(slot), _turn(place, SLOTS))", "wait(full.index(slot), 1)", "before it is|overwritten"
    ),
    "too few bytes": ("desc.block_type.nbytes)", "desc.block_type.nbytes - 16)", "more bytes"),
    "a row released too early": ("2 * down - 2)  # the row", "2 * down)  # the row", "wait for ever|overwritten"),
    "a weight released too early": ("2 * down - 1)  # the", "2 * down + 1)  # the", "wait for ever|overwritten"),
    "a weight never released": ("SLOTS - 2, group > 0)", "SLOTS - 2, False)", "wait for ever"),
    "released by nobody": ("count=1, pred=pred", "count=1, pred=False", "wait for ever"),
    "released twice": ("count=1, pred=pred", "count=2, pred=pred", "arrivals|wait for ever|overwritten"),
    "results not waited for": ("    tma.store_wait(0)\n", "", "before its results are sent"),
    "results not fenced": ("    fence_async_shared()\n    _send", "    _send", "not fenced"),
    "barriers not fenced": ("    fence_async_shared()  # TMA sees them\n", "", "not fenced"),
    "results over operands": ("    _meet()  # all warps: the slots now serve for results\n", "", "all warps"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_errors_are_found(name):
    old, new, message = PLANTED[name]
    with pytest.raises(gluon_memory.Fault, match=message):
        every_order([*SHORT, (old, new)])


def test_boxes_and_reasons():
    kernels = gluon_machine.load(FILE, at_random(0))
    boxes = {
        32: (4, 32),
        64: (2, 64),
        128: (1, 128),
        256: (1, 128),
        16: (8, 16),
        8: (16, 8),
        96: (4, 32),
        4: None,
        12: None,
    }
    for width, want in boxes.items():
        assert kernels.box(width) == (None if want is None else kernels.Box(*want))

    def why(n=2, c=64, size=32, outputs=64, k=3, padding=1):
        return kernels.shape_reason(torch.Size([n, c, size, size]), torch.Size([outputs, c, k, k]), padding)

    assert why() is None and "whole boxes" in why(size=4) and "whole boxes" in why(padding=0) and "half" in why(n=1)
    assert "channels" in why(c=3) and "outputs" in why(outputs=3) and "1x1" in why(k=1)
    for x in (torch.ones(1, 64, 32, 32), torch.ones(1, 64, 32, 32).half()):
        assert "Gluon" in kernels.reason(x, x, 1) or "9.0" in kernels.reason(x, x, 1)


COMPILE = """
import sys, tempfile
sys.path.insert(0, sys.argv[1])
import resources
kernel = resources.compiled(resources.variants("conv2d")[sys.argv[2]], 90)
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(kernel.asm["cubin"])
    file.flush()
    print(resources.tool("nvdisasm", "-c", file.name))
"""


def machine_code_of(name):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(Path(__file__).parent), name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return machine_code.instructions(done.stdout)


def places(program, *names):
    """Of the first instruction of each of these names, every one after the one before."""
    found = [-1]
    for name in names:
        found.append(next(i for i, step in enumerate(program) if i > found[-1] and step.name.startswith(name)))
    return found[1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["boxes_fp16_32", "boxes_bf16_64"])
def test_machine_code(name):
    """What the machine of this file takes for granted: who waits for what, in which order; and Hopper's own units."""
    program, labels = machine_code_of(name)
    names = [step.name for step in program]
    assert not [step for step in names if step.startswith(("LDL", "STL"))]
    given = {int(step.operands.split()[-1], 16) for step in program if step.name.startswith("USETMAXREG")}
    assert min(given) == 24 and max(given) == 240  # registers of the producer, and of those that multiply
    assert {"UTMALDG.4D", "UTMALDG.2D", "UTMASTG.4D"} <= {*names}
    loop = machine_code.main_loop(program, labels)
    matrix = [step for step in loop if step.kind() == "matrix"]
    assert len(matrix) == 6 * 4 and all(machine_code.products(step)[2] for step in matrix)
    # six times: full, four steps of a product, the product before, all warps, empty
    order = ["SYNCS.PHASECHK", *["HGMMA"] * 4, "WARPGROUP.DEPBAR", "BAR.SYNC", "SYNCS.ARRIVE"]
    places(loop, *order * 6)
    depths = [step.operands for step in loop if step.name.startswith("WARPGROUP.DEPBAR")]
    assert len(depths) == 6 and all(depth.endswith("0x1") for depth in depths)
    counts = {kind: sum(step.name.startswith(kind) for step in loop) for kind in ("SYNCS.ARRIVE", "SYNCS.PHASECHK")}
    assert counts == {"SYNCS.ARRIVE": 7, "SYNCS.PHASECHK": 7}
    # the producer: empty, expected bytes, box
    fetches = [i for i, step in enumerate(names) if step.startswith("UTMALDG")]
    assert [names[i].split(".")[1] for i in fetches] == ["4D", "2D"] * 3 + ["4D"]
    for i in fetches:
        before = [step.split(".")[1] for step in names[:i] if step.startswith("SYNCS")][-2:]
        assert before == ["PHASECHK", "ARRIVE"]
    # results: written, seen by TMA, all warps, sent; waited for at the end
    sends = [i for i, step in enumerate(names) if step.startswith("UTMASTG")]
    for start, end in zip([0, *sends], sends):
        places(program[start : end + 1], "STSM", "FENCE.VIEW.ASYNC", "BAR.SYNC", "UTMASTG")
    places(program[sends[-1] :], "DEPBAR")
