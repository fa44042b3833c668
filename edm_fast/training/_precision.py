"""The precision in which networks are trained: autocast (Micikevicius et al. 2018), and the scale of gradients."""

from __future__ import annotations

import torch

from edm_fast.errors import UserError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """What products run in. Weights, averages, the optimizer and the loss are float32 in all of them.

    fp32: as published. tf32: products of 10 bits on NVIDIA GPUs, float32 in memory. bf16, fp16: products and what lies
    between them; with fp16 gradients are scaled up, by as much as they bear: a step in which one overflows is skipped.
    """

    def __init__(self, name: str, device: torch.device, use_fp16: bool = False) -> None:
        if name not in PRECISIONS:
            raise UserError(f"precision {name!r}; expected one of {', '.join(PRECISIONS)}")
        if name == "tf32" and device.type != "cuda":
            raise UserError("precision tf32 is one of NVIDIA GPUs; expected fp32 or bf16 on other devices")
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):  # not emulated
            raise UserError("precision bf16 needs a GPU that computes in it; expected fp16, tf32 or fp32 on this one")
        if name in AUTOCAST and use_fp16:
            raise UserError(f"precision {name} does not go with a network in half precision; expected use_fp16=False")
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """The context in which the network and its loss are evaluated."""
        dtype = AUTOCAST.get(self.name)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def laid_out(self, net: torch.nn.Module) -> torch.nn.Module:
        """The network with its weights channels last, and its images after them, where matrix units read them so: on
        GPUs, in all but fp32."""
        last = self.device.type == "cuda" and self.name != "fp32"
        return net.to(memory_format=torch.channels_last) if last else net  # type: ignore[call-overload]

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """A step of the optimizer, whose gradients are unscaled; whether it was skipped."""
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() < before
