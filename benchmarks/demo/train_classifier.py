"""Train the classifier of digits whose features judge the demo model (`edm-fast study quality`).

Data: the 4,000 digits that the demo model was trained on (edm_fast.data.demo_digits), each turned, sheared, scaled and
shifted a little at random in every epoch. AdamW, cosine learning rate. About two minutes on one core.

    python benchmarks/demo/train_classifier.py --log benchmarks/demo/classifier.log
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F

from edm_fast.checkpoint.native import write_safetensors
from edm_fast.data import demo_digits
from edm_fast.evaluation.quality import DigitsClassifier
from edm_fast.files import atomic_write

DEST = "edm_fast/assets/demo-classifier.safetensors"


def read(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 32, 32) in [0, 1] and their digits (N,)."""
    images, labels = demo_digits(part)  # type: ignore[arg-type]
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels)


def warp(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image turned by up to 12 degrees, sheared and scaled by up to 0.15 and shifted by up to 2 pixels."""
    angle, shear, wide, high, right, down = 2 * torch.rand([6, len(images)], generator=generator) - 1
    angle, shear = angle * 12 * torch.pi / 180, shear * 0.15
    wide, high = 1 + 0.15 * wide, 1 + 0.15 * high
    first = torch.stack([wide * angle.cos(), high * (shear * angle.cos() - angle.sin()), right / 8], 1)
    second = torch.stack([wide * angle.sin(), high * (shear * angle.sin() + angle.cos()), down / 8], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def accuracy(classifier: DigitsClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((classifier(images).argmax(1) == labels).double().mean())


@torch.no_grad()
def normalise(classifier: DigitsClassifier, images: torch.Tensor) -> None:
    """Scale the features, and the logits' weights back, so that the mean square of a feature of `images` is 1."""
    scale = classifier.features(images).square().mean().rsqrt()
    last = classifier.convolutions[-1]
    last.weight *= scale
    last.bias *= scale
    classifier.logits.weight /= scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dest", default=DEST, help="file to write the weights to")
    parser.add_argument("--log", help="file to write the lines of progress to")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = read("train")
    heldout = read("heldout")
    classifier = DigitsClassifier()
    for convolution in classifier.convolutions:
        torch.nn.init.kaiming_normal_(convolution.weight)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=args.lr, weight_decay=0.01)
    steps = args.epochs * -(-len(images) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps)
    lines, start = [], time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for part in torch.randperm(len(images), generator=generator).split(args.batch):
            loss = F.cross_entropy(classifier(warp(images[part], generator)), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(part)
        lines.append(
            f"epoch {epoch:2d}  loss {total / len(images):.4f}  held-out digits {accuracy(classifier, *heldout):.1%}  "
            f"training digits {accuracy(classifier, images, labels):.1%}  {time.perf_counter() - start:.0f} s"
        )
        print(lines[-1], flush=True)
    normalise(classifier, images)
    with atomic_write(args.dest, kind="safetensors") as file:
        write_safetensors(file, classifier.state_dict(), {"format": "pt"})
    if args.log:
        with atomic_write(args.log, "w") as log:
            log.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
