"""Joining a process group; the rest is tested where commands run on two processes."""

import torch

from edm_fast import distributed


def test_a_single_process_uses_the_device_it_is_given(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "2")
    for name in ("cpu", "cuda:1", "cuda"):
        distributed.init(name)
    assert current == [torch.device("cuda", 1), 2]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
