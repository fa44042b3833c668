"""The inputs of one evaluation: arguments by name, and the parts of a batch."""

from __future__ import annotations

import inspect
import itertools
import re

import pytest
import torch

from edm_fast.plan._batches import by_name, in_parts


def published(x, noise_labels, class_labels, augment_labels=None):
    raise NotImplementedError


def by_position_or_by_name_alone(x, noise_labels, /, class_labels=None, *, augment_labels=None):
    raise NotImplementedError


@pytest.mark.parametrize(("forward", "calls"), [(published, 9), (by_position_or_by_name_alone, 6)])
def test_arguments_by_name_are_those_of_inspect(forward, calls):
    signature = inspect.signature(forward)
    names = "x", "noise_labels", "class_labels", "augment_labels", "other"
    fits = 0
    for count, some in itertools.product(range(6), itertools.product((False, True), repeat=len(names))):
        args, kwargs = tuple(range(count)), {name: name for name, there in zip(names, some) if there}
        try:
            expected = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            with pytest.raises(TypeError, match=re.escape(str(error))):
                by_name(signature)(args, kwargs)
        else:
            assert by_name(signature)(args, kwargs) == expected
            fits += 1
    assert fits == calls


@pytest.mark.parametrize(("n", "sizes"), {1: [1], 3: [3], 4: [2, 2], 7: [3, 3, 1]}.items())
def test_parts_have_every_image_once_and_what_all_share(n, sizes):
    seen = []

    def run(inputs):
        seen.append(len(inputs["x"]))
        return inputs["x"] + inputs["each"] * inputs["one"]

    x, each, one = torch.arange(n), torch.arange(n), torch.tensor([10])
    assert torch.equal(in_parts(run, {"x": x, "each": each, "one": one}, 3), 11 * x) and seen == sizes
