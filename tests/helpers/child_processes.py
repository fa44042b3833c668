"""What other processes are asked to do in tests; they import this by name, which they cannot do with a test file."""

import hashlib
import multiprocessing
import os

import torch


def answers(method, function, *args, count=1):
    """function(*args) in `count` processes at a time, started anew ("spawn") or forked from a clean one."""
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["edm_fast.plan"])
    with context.Pool(count) as pool:
        return pool.starmap_async(function, [args] * count, chunksize=1).get(timeout=120)


def digest_of_images(net, call, cache):
    """The bits of accelerate(net)(*call), with nothing measured but what lies in the cache folder."""
    from edm_fast import accelerate

    os.environ["EDM_FAST_CACHE_DIR"] = cache
    torch.set_num_threads(1)
    return hashlib.sha256(accelerate(net)(*call).numpy().tobytes()).hexdigest()


def evaluated(net, call, dataset):
    """net(*call), and all items of the data set."""
    torch.set_num_threads(1)
    return net(*call).numpy(), [dataset[i] for i in range(len(dataset))]
