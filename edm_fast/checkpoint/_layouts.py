"""State dicts of other projects by the names of their tensors: guided-diffusion, score_sde and deepinv.

A layout says for each tensor of a network which ones of the file it is made of, and how. Nothing of the projects is
needed or run; what has no place on either side is refused by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from edm_fast.checkpoint._records import CheckpointError, quote
from edm_fast.networks import Conv2d, DhariwalUNet, GroupNorm, SongUNet, UNetBlock

Make = Callable[..., torch.Tensor]
# published model -> whether its attention was trained with use_new_attention_order, of which a file tells nothing
NEW_ORDER = {"baseline-imagenet-64x64-cond-adm": True}
ORDER = "use_new_attention_order"
PREFIX = "model."  # of the raw network inside of its preconditioner


class Source(NamedTuple):
    """The tensors of a file that one of ours is made of."""

    names: tuple[str, ...]
    make: Make = lambda tensor: tensor


Sources = Iterator[tuple[str, Source]]


def _layer(own: str, theirs: str) -> Sources:
    yield f"{own}.weight", Source((f"{theirs}.weight",))
    yield f"{own}.bias", Source((f"{theirs}.bias",))


def _layers(own: str, theirs: str, names: Mapping[str, str]) -> Sources:
    for name, other in names.items():
        yield from _layer(f"{own}.{name}", f"{theirs}.{other}")


def _score_sde(model: Any, new_order: bool | None) -> Sources:
    """Song et al. 2021: `all_modules` numbers what SongUNet calls by name, in the same order."""
    units = (f"all_modules.{number}" for number in itertools.count())
    if hasattr(model.map_noise, "freqs"):
        yield "map_noise.freqs", Source((f"{next(units)}.W",))
    for name in ("map_layer0", "map_layer1"):
        yield from _layer(name, next(units))
    for part in ("enc", "dec"):
        for name, module in getattr(model, part).items():
            own, unit = f"{part}.{name}", next(units)
            role = name.partition("_")[2]
            if isinstance(module, UNetBlock):
                names = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0"}
                names |= {"norm1": "GroupNorm_1", "conv1": "Conv_1", **({"skip": "Conv_2"} if module.skip else {})}
                yield from _layers(own, unit, names)
                if module.num_heads:
                    yield from _score_sde_attention(own, next(units))
            elif isinstance(module, Conv2d) and module.weight is None:
                continue  # a filter alone
            else:
                inner = {"aux_residual": ".Conv2d_0", "aux_skip": ".Conv_0"}.get(role, "")
                yield from _layer(own, unit + inner)


def _score_sde_attention(own: str, unit: str) -> Sources:
    """Its matrices are (in, out), one for each of q, k and v, which interleave in ours."""
    yield from _layer(f"{own}.norm2", f"{unit}.GroupNorm_0")
    three = [f"{unit}.NIN_{i}" for i in range(3)]

    def rows(*parts: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.mT if part.ndim == 2 else part for part in parts], 1).flatten(0, 1)

    yield f"{own}.qkv.weight", Source(tuple(f"{name}.W" for name in three), lambda *W: rows(*W)[:, :, None, None])
    yield f"{own}.qkv.bias", Source(tuple(f"{name}.b" for name in three), rows)
    yield f"{own}.proj.weight", Source((f"{unit}.NIN_3.W",), lambda W: W.mT[:, :, None, None].contiguous())
    yield f"{own}.proj.bias", Source((f"{unit}.NIN_3.b",))


def _guided_diffusion(model: Any, new_order: bool | None) -> Sources:
    """Dhariwal & Nichol 2021: numbered blocks of parts; one that upsamples is the last part of the block before."""
    yield from _layer("map_layer0", "time_embed.0")
    yield from _layer("map_layer1", "time_embed.2")
    if model.map_label is not None:
        yield "map_label.weight", Source(("label_emb.weight",), lambda rows: rows.mT.contiguous())
    places = _guided_places(model)
    for part in ("enc", "dec"):
        for name, module in getattr(model, part).items():
            own, (block, index) = f"{part}.{name}", places[f"{part}.{name}"]
            if not isinstance(module, UNetBlock):
                yield from _layer(own, f"{block}.{index}")
                continue
            names = {"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1"}
            names |= {"norm1": "out_layers.0", "conv1": "out_layers.3"}
            if module.skip is not None and module.skip.weight is not None:
                names["skip"] = "skip_connection"
            yield from _layers(own, f"{block}.{index}", names)
            if module.num_heads:
                yield from _guided_attention(own, f"{block}.{index + 1}", module.num_heads, new_order)
    yield from _layer("out_norm", "out.0")
    count = model.out_conv.out_channels  # the variances of the original are of no use here
    for kind in ("weight", "bias"):
        yield f"out_conv.{kind}", Source((f"out.2.{kind}",), lambda tensor: tensor[:count].contiguous())


def _guided_places(model: Any) -> dict[str, tuple[str, int]]:
    """Our block -> (their block, number of the part in it)."""
    places = {f"enc.{name}": (f"input_blocks.{i}", 0) for i, name in enumerate(model.enc)}
    count, parts = 0, 0
    for name, module in model.dec.items():
        role = name.partition("_")[2]
        if role in ("in0", "in1"):
            places[f"dec.{name}"] = ("middle_block", 0 if role == "in0" else 2)
        elif role == "up":
            places[f"dec.{name}"] = (f"output_blocks.{count - 1}", parts)
        else:
            places[f"dec.{name}"] = (f"output_blocks.{count}", 0)
            count, parts = count + 1, 1 + bool(module.num_heads)
    return places


def _guided_attention(own: str, theirs: str, heads: int, new_order: bool | None) -> Sources:
    """Rows of theirs: head, which of q, k and v, channel; or in the new order which, head, channel. Of ours: head,
    channel, which.
    """
    first = f"{theirs}.qkv.weight"
    if new_order is None:
        raise CheckpointError(
            f"{quote(first)} may be in either order of guided-diffusion; expected a preset, or in its .json file "
            f'"{ORDER}": true or false'
        )

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        tail = tensor.shape[1:]
        if new_order:
            return tensor.reshape(3, heads, -1, *tail).movedim(0, 2).flatten(0, 2)
        return tensor.reshape(heads, 3, -1, *tail).movedim(1, 2).flatten(0, 2)

    yield from _layer(f"{own}.norm2", f"{theirs}.norm")
    yield f"{own}.qkv.weight", Source((first,), lambda W: rows(W)[..., None])
    yield f"{own}.qkv.bias", Source((f"{theirs}.qkv.bias",), rows)
    yield f"{own}.proj.weight", Source((f"{theirs}.proj_out.weight",), lambda W: W[..., None])
    yield f"{own}.proj.bias", Source((f"{theirs}.proj_out.bias",))


def _deepinv(model: Any, new_order: bool | None) -> Sources:
    """The names of the raw network, with nothing around it."""
    for name in model.state_dict():
        yield name, Source((name,))


class Layout(NamedTuple):
    project: str
    begins: str  # a name of every file
    network: tuple[type[torch.nn.Module], ...]  # what it is loaded into
    sources: Callable[[Any, bool | None], Sources]
    groups: int | None = None  # of every norm, where that is not the rule of ours
    beside: tuple[str, ...] = ()  # tensors that hold nothing that a network needs


LAYOUTS = (
    Layout("score_sde", "all_modules.", (SongUNet,), _score_sde, beside=("sigmas",)),
    Layout("guided-diffusion", "input_blocks.", (DhariwalUNet,), _guided_diffusion, groups=32),
    Layout("deepinv", "enc.", (SongUNet, DhariwalUNet), _deepinv, groups=32),
)


def find_sources(
    net: Any, stored: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], new_order: bool | None
) -> dict[str, Source] | None:
    """Name of a tensor of `net` -> what it is made of, for a file of another project; None for files of other layouts.

    stored: name without wrappers -> name in the file, shapes: by the latter. new_order: of the attention of
    guided-diffusion, None if nobody says. CheckpointError with the first name that has no place.
    """
    layout = next((layout for layout in LAYOUTS if any(name.startswith(layout.begins) for name in stored)), None)
    model: Any = getattr(net, "model", None)
    if layout is None or model is None:
        return None
    first = next(name for name in stored if name.startswith(layout.begins))
    if not isinstance(model, layout.network):
        kinds = " or ".join(kind.__name__ for kind in layout.network)
        raise CheckpointError(
            f"{quote(first)} is a name of {layout.project}; expected a preset of {kinds}, not {type(model).__name__}"
        )
    found = dict(layout.sources(model, new_order))
    _check_groups(layout, model, found)
    parameters = {name for name, _ in model.named_parameters()}
    for name in model.state_dict():
        if name in parameters and name not in found:
            raise CheckpointError(f"{layout.project} has no tensor for {quote(name)}; expected a preset without it")
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name in found}
    named = dict.fromkeys(name for source in found.values() for name in source.names)
    missing = [name for name in named if name not in stored]
    if missing:
        raise CheckpointError(f"misses {len(missing)} tensors of {layout.project}, the first is {quote(missing[0])}")
    extra = [name for name in stored if name not in named and name not in layout.beside]
    if extra:
        raise CheckpointError(
            f"holds {len(extra)} tensors of {layout.project} too many, the first is {quote(extra[0])}"
        )
    for name, source in found.items():
        sizes = [shapes[stored[part]] for part in source.names]
        if _made_shape(source, sizes) != tuple(wanted[name].shape):
            raise CheckpointError(
                f"{quote(source.names[0])} has shape {list(sizes[0])}, of which {quote(name)} cannot be made: its "
                f"keywords imply {list(wanted[name].shape)}"
            )
    return {f"{PREFIX}{name}": Source(tuple(map(stored.__getitem__, s.names)), s.make) for name, s in found.items()}


def _made_shape(source: Source, sizes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    try:
        return tuple(source.make(*(torch.empty(size, device="meta") for size in sizes)).shape)
    except (RuntimeError, IndexError):
        return None


def _check_groups(layout: Layout, model: torch.nn.Module, found: Mapping[str, Source]) -> None:
    for name, module in model.named_modules():
        if layout.groups and isinstance(module, GroupNorm) and module.num_groups != layout.groups:
            channels = len(module.weight)
            raise CheckpointError(
                f"{quote(found[f'{name}.weight'].names[0])} is a norm of {channels} channels, which {layout.project} "
                f"takes in {layout.groups} groups and edm-fast in {module.num_groups}; expected at least 128 channels"
            )
