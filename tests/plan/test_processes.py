"""Networks and data sets in other processes, and processes that measure at the same time."""

import numpy as np
import pytest
import torch

from edm_fast import accelerate
from edm_fast.data import ImageFolderDataset
from edm_fast.evaluation._networks import inputs, relative_error
from helpers import child_processes, tiny_training
from helpers import native_conv as nc
from helpers.planned_networks import network

pytestmark = nc.needs_native


def test_processes_that_start_on_an_empty_cache_draw_the_same_bits(tmp_path):
    net = network("ddpmpp", num_blocks=0)
    args = net, inputs(net, 2, 0.7), str(tmp_path)
    found = child_processes.answers("forkserver", child_processes.digest_of_images, *args, count=3)
    (later,) = child_processes.answers("forkserver", child_processes.digest_of_images, *args)
    assert set(found) == {later}
    assert sorted(path.suffix for path in (tmp_path / "plans").iterdir()) == [".json", ".lock"]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_networks_and_data_sets_reach_other_processes(tmp_path, method):
    net, data = network("ddpmpp"), ImageFolderDataset(tiny_training.write_dataset(tmp_path / "a.zip"), use_labels=True)
    fast, call = accelerate(net), inputs(net, 2, 0.7)
    items = [data[i] for i in range(len(data))]
    fast(*call)  # with a plan and an open file, which stay here
    ((images, found),) = child_processes.answers(method, child_processes.evaluated, fast, call, data)
    assert relative_error([torch.from_numpy(images)], [net(*call)]) <= 1e-5
    for item, there in zip(items, found, strict=True):
        assert all(map(np.array_equal, item, there))
