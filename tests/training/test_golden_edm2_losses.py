"""EDM2's loss and learning rate against the golden data."""

import numpy as np
import pytest
import torch

from edm_fast import networks
from edm_fast.errors import UserError
from edm_fast.training import AugmentPipe, EDM2Loss, inverse_sqrt_rate
from helpers import golden_cases as g
from helpers.golden_samplers import loaded


class StandIn:
    """D(x; s) = x / 2, u(s) = 0.3 ln s - 0.2; keeps what it was called with."""

    def __call__(self, x, sigma, labels, return_logvar):
        assert return_logvar
        self.noisy, self.sigma = x, sigma
        return x / 2, 0.3 * sigma.log() - 0.2


@pytest.mark.parametrize("entry", g.edm2("losses", lambda e: "runs" in e["config"]), ids=g.entry_id)
def test_golden_edm2_loss(entry):
    images = torch.from_numpy(g.arrays(entry)["in/images"])
    for run in entry["config"]["runs"]:
        net = StandIn()
        torch.manual_seed(run["torch_manual_seed"])
        found = {"loss": EDM2Loss(**run["kwargs"])(net, images), "noisy": net.noisy, "sigma": net.sigma}
        for name, got in found.items():
            g.check(entry, f"{run['name']}/{name}", got)
    with pytest.raises(UserError, match="no augmentation"):
        EDM2Loss()(StandIn(), images, None, AugmentPipe(p=0.1))


@pytest.mark.parametrize("entry", g.edm2("losses", lambda e: "mode" in e["config"]), ids=g.entry_id)
def test_golden_edm2_loss_of_a_network(entry):
    config, arrays = entry["config"], g.arrays(entry)
    if config["dropout"] and not g.same_dropout():
        pytest.skip(f"torch {torch.__version__} draws other dropout masks than the torch that made the data")
    source = g.index("edm2.json")[config["network"]]
    net = loaded(source).requires_grad_(True).train(config["mode"] == "train")
    assert {m.dropout for m in net.modules() if isinstance(m, networks.Block)} == {config["dropout"]}
    images, labels = (torch.from_numpy(arrays[f"in/{name}"]) for name in ("images", "labels"))
    torch.manual_seed(config["torch_manual_seed"])
    loss = EDM2Loss(**config["loss"])(net, images, labels)
    (loss.sum() / len(images)).backward()
    g.check(entry, "out/loss", loss)
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    for name in arrays:
        if name.startswith("grad/"):
            g.check(entry, name, grads[name.removeprefix("grad/")])
    for rows, tensors in (("gradhead", grads), ("after", dict(net.named_parameters()))):
        keys = [str(key) for key in arrays[f"{rows}_keys"]]
        for key, want in zip(keys, arrays[f"{rows}_rows"], strict=True):
            (got,) = g.heads([tensors[key]], len(want))
            g.check(entry, f"{rows}_rows of {key}", got, want)


@pytest.mark.parametrize("entry", g.edm2("schedules"), ids=g.entry_id)
def test_golden_edm2_learning_rate(entry):
    for point in entry["config"]["points"]:
        lr = inverse_sqrt_rate(point["cur_nimg"], point["batch_size"], **point["kwargs"])
        g.check(entry, "lr", np.float64(lr), np.float64(point["lr"]))
