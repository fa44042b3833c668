"""What a preconditioned network may be given, plain and accelerated; everything else is one line."""

import pytest
import torch

from edm_fast import UserError, accelerate, edm_sampler, native
from edm_fast.training import EDMLoss, VELoss, VPLoss
from helpers.tiny_networks import tiny

CLASSES = ("VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond")
N, K, A = 4, 4, 3  # as many images as classes, so that a vector of class numbers has the length of a row
X, SIGMA = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(1.0)
EYE = torch.eye(K)

BAD_LABELS = {
    "class numbers": torch.arange(N),
    "class numbers as floats": torch.arange(4.0),
    "an integer row as a vector": torch.eye(K, dtype=torch.int64)[0],
    "one class number": torch.tensor(3),
    "a Python number": 3,
    "a list": EYE.tolist(),
    "an array": EYE.numpy(),
    "half as many": EYE[:2],
    "twice as many": EYE.repeat(2, 1),
    "too narrow": EYE[:, :3],
    "too wide": torch.zeros(N, K + 1),
    "folded": torch.zeros(2, 2 * K),
    "three axes": EYE[None],
    "complex": EYE.to(torch.complex64),
    "another device": EYE.to("meta"),
}
BAD_INPUTS = {
    "x is an array": ("x", {"x": X.numpy()}),
    "x without a batch": ("x", {"x": X[0]}),
    "x of five axes": ("x", {"x": X[None]}),
    "x of two channels": ("x", {"x": X[:, :2]}),
    "x channels last in shape": ("x", {"x": X.permute(0, 2, 3, 1)}),
    "x complex": ("x", {"x": X.to(torch.complex64)}),
    "x of an odd size": ("images of 9x8", {"x": torch.zeros(N, 3, 9, 8)}),
    "sigma of another count": ("sigma", {"sigma": torch.ones(3)}),
    "sigma for more images": ("sigma", {"x": X[:1], "sigma": torch.ones(N)}),
    "sigma for pixels": ("sigma", {"sigma": torch.ones(X.shape)}),
    "no sigma": ("sigma", {"sigma": torch.ones(0)}),
    "sigma is None": ("sigma is of type NoneType", {"sigma": None}),
    "sigma is text": ("sigma is of type str", {"sigma": "80"}),
    "sigma of lists of two lengths": ("sigma is of type list", {"sigma": [[1.0], [1.0, 2.0]]}),
    "sigma complex": ("sigma", {"sigma": torch.ones(N, dtype=torch.complex64)}),
    "augment_labels of another count": ("augment_labels", {"augment_labels": torch.zeros(2, A)}),
    "augment_labels of another width": ("augment_labels", {"augment_labels": torch.zeros(N, A + 1)}),
    "augment_labels as a vector": ("augment_labels", {"augment_labels": torch.zeros(A)}),
    "augment_labels as an array": ("augment_labels", {"augment_labels": torch.zeros(N, A).numpy()}),
}


@pytest.fixture(scope="module", params=CLASSES)
def nets(request):
    """The network and, where that is possible, its accelerated copy."""
    net = tiny(request.param, label_dim=K, augment_dim=A)
    return [net, accelerate(net)] if native.cpu_reason() is None else [net]


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_labels_that_are_no_rows_for_the_batch(nets):
    for net in nets:
        for labels in BAD_LABELS.values():
            refused(lambda net=net, labels=labels: net(X, SIGMA, labels), "class_labels", "one_hot(numbers, 4)")
        refused(
            lambda net=net: net(X.repeat(40, 1, 1, 1), SIGMA, torch.zeros(81, K)),
            "(81, 4) on cpu for 160 images; expected a row of 4 numbers for each, or one for all",
        )
        refused(lambda net=net: net(X[:1], SIGMA, EYE), "for 1 images")


def test_other_inputs(nets):
    for net in nets:
        for word, changes in BAD_INPUTS.values():
            inputs = {"x": X, "sigma": SIGMA, "class_labels": EYE, **changes}
            refused(lambda net=net, inputs=inputs: net(**inputs), word)


def test_what_may_be_given(nets):
    row = EYE[2]
    for net in nets:
        with torch.no_grad():
            want = net(X, SIGMA, row.expand(N, K))
            for labels in (row[None], row[None].double(), row[None].bool(), row[None].to(torch.int64)):
                torch.testing.assert_close(net(X, SIGMA, labels), want, rtol=1e-4, atol=1e-5)
            # a vector is one row for all, as published, where it cannot be class numbers
            torch.testing.assert_close(net(X[:3], SIGMA, row), want[:3], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(net(X[:1], SIGMA, row), want[:1], rtol=1e-4, atol=1e-5)
            for sigma in (1.0, 1, [1.0] * N, torch.ones(N, 1, 1, 1), torch.ones(N, dtype=torch.float64)):
                torch.testing.assert_close(net(X, sigma, row[None]), want, rtol=1e-4, atol=1e-5)
            assert net(X.repeat(1, 1, 2, 1), SIGMA).shape == (N, 3, 16, 8)  # other sizes that can be halved
            assert net(X[:0], SIGMA, EYE[:0]).shape == (0, 3, 8, 8)
            assert net(X, SIGMA, EYE, augment_labels=torch.zeros(1, A)).shape == X.shape


@pytest.mark.parametrize(
    "changes", [{"class_labels": torch.arange(N)}, BAD_INPUTS["augment_labels as a vector"][1]], ids=lambda c: [*c][0]
)
def test_compiled_networks_refuse_them_in_the_same_words(changes):
    net = tiny(label_dim=K, augment_dim=A)
    inputs = {"x": X, "sigma": SIGMA, "class_labels": EYE, **changes}
    with pytest.raises(UserError) as caught:
        net(**inputs)
    # sizes as symbols, as they are from the second shape on
    refused(lambda: torch.compile(net, backend="eager", dynamic=True)(**inputs), str(caught.value))


def test_a_network_without_classes_passes_over_labels():
    net = tiny()
    with torch.no_grad():
        assert torch.equal(net(X, SIGMA, torch.arange(N)), net(X, SIGMA))


@pytest.mark.parametrize("loss", [VPLoss(), VELoss(), EDMLoss()], ids=lambda loss: type(loss).__name__)
def test_losses_refuse_them_too(loss):
    net = tiny(label_dim=K)
    refused(lambda: loss(net, X, torch.arange(N)), "class_labels")
    refused(lambda: loss(net, (X * 127.5 + 128).to(torch.uint8), EYE), "images", "127.5")
    assert loss(net, X, EYE).shape == X.shape


def test_samplers_refuse_them_too():
    refused(lambda: edm_sampler(tiny(label_dim=K), X, torch.arange(N), num_steps=2), "class_labels", "one_hot")
