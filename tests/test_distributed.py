"""Joining a process group; the rest is tested where commands run on two processes."""

import socket
import threading

import pytest
import torch
from click.testing import CliRunner

from edm_fast import distributed
from edm_fast.cli import main
from edm_fast.cli._device import own_gpu
from edm_fast.errors import UserError

ARRAY = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX")]
LOCAL = ["LOCAL_RANK", "SLURM_LOCALID"]
GROUP = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Sets the variables given, and none of the others that tell of a group."""
    numbered = (*distributed.NUMBERED, *distributed.NUMBERED.values(), *ARRAY, *LOCAL)
    for name in (*GROUP, *numbered, "TORCHELASTIC_USE_AGENT_STORE", "EDM_FAST_JOIN_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)

    def use(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return use


def test_a_single_process_uses_the_device_it_is_given(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "2")
    for name in ("cpu", "cuda:1", "cuda"):
        distributed.init(name)
    assert current == [torch.device("cuda", 1), 2]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"RANK": ""},
            "the environment has WORLD_SIZE, MASTER_ADDR, MASTER_PORT but no RANK; expected all that torchrun sets",
        ),
        ({"WORLD_SIZE": ""}, "no WORLD_SIZE"),
        ({"WORLD_SIZE": "", "MASTER_ADDR": "", "MASTER_PORT": ""}, "the environment has RANK but no WORLD_SIZE;"),
        ({"MASTER_ADDR": ""}, "no MASTER_ADDR"),
        ({"MASTER_PORT": ""}, "no MASTER_PORT"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'; expected an integer from 1 to 65535"),
        ({"RANK": "two"}, "RANK is 'two'; expected an integer from 0 to 1"),
        ({"RANK": "2"}, "RANK is '2'; expected an integer from 0 to 1"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; expected an integer of at least 1"),
        ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE is '1.5'"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK is '1'; expected an integer from 0 to 0"),
        ({"EDM_FAST_JOIN_TIMEOUT": "soon"}, "EDM_FAST_JOIN_TIMEOUT is 'soon'; expected an integer of at least 1"),
    ],
)
def test_half_a_group_is_refused(environment, changes, message):
    environment(**{**GROUP, **changes})
    with pytest.raises(UserError) as caught:
        distributed.init("cpu")
    assert message in str(caught.value)
    assert "EDM_FAST" not in message or "torchrun" not in str(caught.value), "a variable of our own"


@pytest.mark.parametrize("values", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"SLURM_NTASKS": "1"}])
def test_one_process_needs_no_group(environment, values):
    environment(**values)
    distributed.init("cpu")
    assert distributed.world_size() == 1


def test_a_gpu_of_several_needs_its_number(environment):
    environment(**GROUP)
    with pytest.raises(UserError, match="no LOCAL_RANK, which chooses the GPU"):
        distributed.local_rank()
    environment(LOCAL_RANK="x")
    with pytest.raises(UserError, match="LOCAL_RANK is 'x'"):
        distributed.local_rank()


COPIES = [{"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, {"OMPI_COMM_WORLD_SIZE": "2"}, {"PMI_SIZE": "4"}]
VERBS = {
    "generate": ["--outdir=o", "--device=cpu"],
    "train": ["--outdir=o", "--data=d", "--device=cpu"],
    "fid calc": ["--images=i", "--ref=r", "--device=cpu"],
    "fid ref": ["--data=d", "--dest=x", "--device=cpu"],
}


@pytest.mark.parametrize("values", COPIES, ids=lambda values: next(iter(values)))
@pytest.mark.parametrize("verb", VERBS)
def test_copies_that_know_nothing_of_each_other(environment, verb, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment(**values)
    result = CliRunner().invoke(main, [*verb.split(), *VERBS[verb]])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert f"{next(iter(values))} is " in result.stderr and "expected torchrun" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_step_of_slurm_may_be_smaller_than_its_job(environment):
    environment(SLURM_NTASKS="8", SLURM_STEP_NUM_TASKS="1")
    distributed.init("cpu")
    environment(**{**GROUP, "SLURM_NTASKS": "8", "WORLD_SIZE": "1"})  # srun has started torchrun
    distributed.init("cpu")


def array(*values):
    return dict(zip(ARRAY, map(str, values)))


@pytest.mark.parametrize(
    ("values", "want"),
    [
        (array(5, 4, 3, 6), (2, 4)),
        (array(20, 3, 10, 30), (1, 3)),
        (array(7, 1, 7, 7), (0, 1)),
        (array(1, 4), (1, 4)),  # of old versions
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
            (1, 2),
        ),  # srun has started torchrun
        ({**array(2, 3, 1, 3), "RANK": "1", "WORLD_SIZE": "4"}, (5, 12)),
        ({**array(2, 3, 1, 3), "SLURM_PROCID": "0"}, (1, 3)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({}, "no variables of Slurm, MPI or torchrun; expected --shard=I/N"),
        ({"WORLD_SIZE": "2"}, "the environment has WORLD_SIZE but no RANK; expected both, or --shard=I/N"),
        ({"RANK": "2"}, "the environment has RANK but no WORLD_SIZE; expected both, or --shard=I/N"),
        ({"SLURM_NTASKS": "2"}, "has SLURM_NTASKS but no SLURM_PROCID"),
        ({"SLURM_ARRAY_TASK_ID": "2"}, "has SLURM_ARRAY_TASK_ID but no SLURM_ARRAY_TASK_COUNT"),
        (array(1, 3, 0, 5), "3 tasks of the job array are not evenly spaced; expected --shard=I/N"),
        (array(1, 3, 0, 4), "not evenly spaced"),
        (array(9, 3), "not evenly spaced"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is '2'; expected an integer from 0 to 1"),
    ],
)
def test_shards_of_launchers(environment, values, want):
    environment(**values)
    if isinstance(want, tuple):
        *numbers, names = distributed.shard()
        assert tuple(numbers) == want and values.keys() >= set(names.split(", "))
    else:
        with pytest.raises(UserError, match=want):
            distributed.shard()


def test_a_shard_has_a_gpu_of_its_own(environment, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    environment(SLURM_LOCALID="6")
    for name in ("auto", "cuda", "cuda:1"):
        own_gpu(torch.device("cuda", 0 if name != "cuda:1" else 1), name)
    assert current == [torch.device("cuda", number) for number in (2, 2, 1)]
    assert own_gpu(torch.device("cpu"), "auto").type == "cpu"


def test_other_verbs_do_not_mind(environment, tmp_path):
    environment(SLURM_NTASKS="8", WORLD_SIZE="x")
    for args in (["convert", "none.pkl", "x"], ["dataset", "check", "none"], ["verify", "--network=none"]):
        assert "none" in CliRunner().invoke(main, args).stderr


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_never_comes(environment, rank, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "NOTICE", 0.1)
    environment(**{**GROUP, "MASTER_PORT": free_port(), "RANK": rank, "EDM_FAST_JOIN_TIMEOUT": "1"})
    missing = "1 of 2 processes (RANK 1)" if rank == "0" else "the process with RANK=0, at 127.0.0.1:"
    with pytest.raises(UserError) as caught:
        distributed.init("cpu")
    assert f"waited 1 s for {missing}" in str(caught.value)
    assert capsys.readouterr().err.count(f"waiting for {missing}") == 1


def test_a_port_in_use(environment):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        environment(**{**GROUP, "MASTER_PORT": str(other.getsockname()[1])})
        with pytest.raises(UserError, match="port .* it is in use; expected another MASTER_PORT"):
            distributed.init("cpu")


def test_two_processes_of_one_rank(environment):
    environment(**{**GROUP, "WORLD_SIZE": "3", "MASTER_PORT": free_port(), "EDM_FAST_JOIN_TIMEOUT": "1"})
    errors = []

    def join(rank):
        try:
            distributed._meet(rank, 3)
        except UserError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("two processes have RANK=1" in error for error in errors) == 1


def test_what_an_earlier_start_has_left():
    """torchrun's store outlives the processes; a rank of the earlier start is not taken for one of the new."""
    store = torch.distributed.HashStore()

    def start(rank):
        return distributed._Start(store, rank, 2)

    def meet(*ranks):
        for _ in range(4):
            words = [rank.absent() for rank in ranks]
        return words

    old = [start(0), start(1)]
    assert meet(*old) == [None, None] and old[0].name == old[1].name
    assert meet(start(1)) == ["1 of 2 processes (RANK 0)"]
    assert meet(first := start(0)) == ["1 of 2 processes (RANK 1)"], "the other one has not answered, and may be dead"
    assert meet(first, second := start(1)) == [None, None]
    assert first.name == second.name != old[0].name
