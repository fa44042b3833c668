import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edm_fast.cli import _options as opt
from edm_fast.errors import UserError


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)) | st.integers(-50, 50)).filter(bool))
def test_int_lists(parts):
    text = ",".join(f"{part[0]}-{part[1]}" if isinstance(part, tuple) else str(part) for part in parts)
    want = []
    for part in parts:
        want.extend(range(part[0], part[1] + 1) if isinstance(part, tuple) else [part])
    assert opt.parse_int_list(text) == want
    assert opt.parse_int_list(opt.int_list_text(want)) == want if want else opt.int_list_text(want) == ""


@pytest.mark.parametrize("text", ["a", "", "1,,2", "1-2-3", "1.5", "0-99999999999", "0-9999999,5"])
def test_bad_int_lists(text):
    with pytest.raises(UserError) as caught:
        opt.parse_int_list(text)
    assert "\n" not in str(caught.value)


def test_a_list_passes():
    assert opt.parse_int_list([3, 1]) == [3, 1]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (opt.POSITIVE, "1e-9", ["0", "-1", "nan", "inf", "x"]),
        (opt.NON_NEGATIVE, "0", ["-1e-9", "nan", "inf"]),
        (opt.NON_NEGATIVE_OR_INF, "inf", ["-1", "nan"]),
        (opt.FINITE, "-3", ["nan", "-inf"]),
        (opt.PROBABILITY, "1", ["1.1", "-0.1", "nan"]),
        (opt.POSITIVE_INT, "1", ["0", "1.5"]),
    ],
)
def test_numbers(kind, good, bad):
    assert kind.convert(good, None, None) == float(good)
    for text in bad:
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)
