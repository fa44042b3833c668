"""The digits that come with the package."""

import numpy as np

from edm_fast.data import demo_digits


def test_both_parts_are_balanced_and_share_no_image():
    (train, classes), (heldout, others) = demo_digits(), demo_digits("heldout")
    assert train.shape == (4000, 1, 32, 32) and heldout.shape == (1000, 1, 32, 32) and train.dtype == np.uint8
    assert np.bincount(classes).tolist() == [400] * 10 and np.bincount(others).tolist() == [100] * 10
    assert not train[:, :, :2].any() and not train[..., -2:].any() and train.max() == 255
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in heldout}
