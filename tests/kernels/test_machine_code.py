"""The model of main loops: of small programs in the text of nvdisasm, and what the table has of real ones."""

import json
from pathlib import Path

import pytest

from helpers.scripts import load

HERE = Path(__file__).parent
machine_code = load(HERE / "machine_code.py")

PRODUCT = "HGMMA.64x256x16.F32 R24, gdesc[UR4], R24"


def program(*lines):
    """Instructions and labels as nvdisasm prints them."""
    text = [f"        /*{16 * i:04x}*/                   {line} ;" for i, line in enumerate(lines)]
    return "\n".join(f"{line}:" if line.startswith(".L") else text[i] for i, line in enumerate(lines))


def loop(*body):
    """A kernel with this main loop, a loop beside it, and the padding that ends every kernel."""
    beside = [".L_x_7", *["IADD3 R1, R1, R2, RZ"] * 40, "@P1 BRA `(.L_x_7)"]
    return program(*beside, ".L_x_1", *body, "@!P0 BRA `(.L_x_1)", "EXIT", ".L_x_2", "BRA `(.L_x_2)", "NOP")


def test_classes_of_instructions():
    body = [PRODUCT, "MUFU.EX2 R1, R2", "LDS.128 R4, [R1]", "LDGSTS.E.BYPASS.128 [R1], desc[UR2][R4.64]"]
    body += ["@P3 LDG.E R1, desc[UR2][R4.64]", "BAR.SYNC.DEFER_BLOCKING 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"]
    found = machine_code.model(loop(*body, "IMAD R1, R2, R3, R4"), 90)
    kinds = {name: found["loop"][name] for name in (*machine_code.CLASSES, "other")}
    assert kinds == {"matrix": 1, "special": 1, "shared": 1, "copies": 1, "global": 1, "waits": 2, "other": 2}
    assert found["slots"] == 41 + 9 + 2 and found["special"] == 1


@pytest.mark.parametrize(
    "instruction, rate, clocks, operands",
    [
        (PRODUCT, 90, 128, "shared memory"),
        ("HGMMA.64x256x16.F32 R24, R120, gdesc[UR4], R24", 90, 128, "registers"),
        ("HGMMA.64x256x8.F32.TF32 R24, gdesc[UR4], R24", 90, 128, "shared memory"),
        ("QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], R24", 90, 64, "shared memory"),
        ("HMMA.16816.F32 R4, R8, R12, R4", 80, 8, "registers"),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", 80, 8, "registers"),
        ("HMMA.16816.F32 R4, R8, R12, R4", 90, 4, "registers"),
    ],
)
def test_clocks_of_products(instruction, rate, clocks, operands):
    found = machine_code.model(loop(*[instruction] * 10), rate)["loop"]
    assert found["clocks"] == 10 * clocks and found["operands"] == operands


@pytest.mark.parametrize(
    "beside, bound",
    [
        (["FADD R1, R2, R3"] * 63, 1.0),
        (["FADD R1, R2, R3"] * (256 - 2), 0.5),  # the product and the branch are issued, too
        (["MUFU.EX2 R1, R2"] * 20, 0.8),
        (["LDS.128 R4, [R1]"] * 16, 0.711),  # 8,192 bytes, and 2,560 of the product's own operands, 32 at a time
    ],
)
def test_bounds(beside, bound):
    found = machine_code.model(loop(PRODUCT, *beside), 90)["loop"]
    assert found["bound"] == (pytest.approx(128 / (10752 / 32), abs=1e-3) if bound == 0.711 else bound)


def test_the_loop_with_most_products_and_of_two_the_inner_one():
    inner = [".L_x_4", PRODUCT, PRODUCT, "BRA.U `(.L_x_4)"]
    assert machine_code.model(loop("FADD R1, R2, R3", *inner), 90)["loop"]["other"] == 1
    assert machine_code.model(loop("FADD R1, R2, R3", *inner, PRODUCT), 90)["loop"]["matrix"] == 3
    longest = machine_code.model(loop("FADD R1, R2, R3"), 90)["loop"]
    assert longest["other"] == 41 and "bound" not in longest
    assert "loop" not in machine_code.model(program("FADD R1, R2, R3", "EXIT", ".L_x_2", "BRA `(.L_x_2)"), 90)


def test_accesses_before_the_wait():
    lines = ["LDC R1, c[0x0][0x28]", "LDG.E R2, desc[UR4][R2.64]", "LDGSTS.E.BYPASS.128 [R1], desc[UR2][R4.64]", "EXIT"]
    for place, count in enumerate((0, 0, 1, 2)):
        assert machine_code.before_wait(program(*lines[:place], "ACQBULK", *lines[place:])) == count
    assert machine_code.before_wait(program(*lines)) == 2


def test_what_the_table_has_of_convolutions():
    """Their blocks of 128 x 256 feed the matrix units from shared memory; a norm in the loop halves what they reach."""
    for rows in json.loads((HERE / "resources.json").read_text()).values():
        plain, normed = rows["conv2d"]["fwd_fp16_c256_b64_32"], rows["conv2d"]["fwd_fp16_c256_b64_32_prologue"]
        products = rows["conv2d"]["winograd_products_c256_t832"]
        for found in (plain["sm_90a"]["loop"], products["sm_90a"]["loop"]):
            assert found["operands"] == "shared memory" and found["bound"] > 0.9
        assert plain["sm_80"]["loop"]["bound"] > 0.9 and normed["sm_90a"]["loop"]["bound"] < 0.5
