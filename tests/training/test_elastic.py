"""torchrun's elastic agents: of two nodes one is killed and started again, and the run ends at the same bits."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from edm_fast.checkpoint import load_state_file
from helpers import tiny_training as tiny

KIMG = 4
OPTIONS = ["--cbase=4", "--cres=1", "--num-blocks=1", "--batch=20", "--tick=1", "--dump=1", "--device=cpu", "--seed=3"]
OPTIONS += [f"--duration={KIMG / 1000}", "--augment=0", "--preview=0", "--nosubdir", "--resume=auto"]
# agents that share a store do not tell a node that comes later where it is (torch 2.13)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
DEADLINE = 250  # seconds, on a machine that does much else


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition, process):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the run has ended, or does not get on"
        time.sleep(0.02)


def train(folder, data, *launch):
    command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "edm_fast", "train", *OPTIONS]
    with open(f"{folder}.txt", "a") as log:
        return subprocess.Popen(
            [*command, f"--outdir={folder}", f"--data={data}"],
            stdout=log,
            stderr=log,
            env={**os.environ, **ENVIRONMENT},
        )


def family(pid):
    """A process and all that it has started, which are in sessions of their own."""
    started = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return [pid, *(pid for child in started for pid in family(child))]


def kill(process):
    """The agent with its workers, at once, as a machine dies."""
    if process.poll() is None:
        for pid in family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the workers of an agent")
def test_a_node_that_is_killed(tmp_path):
    data, port = tiny.write_dataset(tmp_path / "digits.zip"), free_port()
    elastic, whole = tmp_path / "elastic", tmp_path / "whole"
    launch = ["--nnodes=2", "--nproc_per_node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    launch += ["--rdzv-id=1", "--max-restarts=3", "--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=3"]
    first = train(elastic, data, *launch)
    nodes = [first]
    try:
        until(lambda: listens(port), first)  # the one that is not killed keeps the meeting place
        nodes.append(train(elastic, data, *launch))
        until((elastic / "training-state-000001.safetensors").exists, first)
        kill(nodes[1])
        # the other node waits meanwhile
        nodes.append(train(whole, data, "--standalone", "--nproc_per_node=2"))
        assert nodes[2].wait(timeout=DEADLINE) == 0
        assert not (elastic / f"training-state-{KIMG:06d}.safetensors").exists(), "killed too late to tell"
        nodes.append(train(elastic, data, *launch))
        for node in (nodes[3], first):
            assert node.wait(timeout=DEADLINE) == 0, Path(f"{elastic}.txt").read_text()[-3000:]
    finally:
        for node in nodes:
            kill(node)
    assert "Resuming from" in (elastic / "log.txt").read_text()
    tiny.same_state(*(load_state_file(run / f"training-state-{KIMG:06d}.safetensors") for run in (elastic, whole)))
    name = f"network-snapshot-{KIMG:06d}.safetensors"
    assert (elastic / name).read_bytes() == (whole / name).read_bytes()
