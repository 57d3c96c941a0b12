"""Linear layers that read the same x, with low-rank adapters on them, as one product and two rank-r updates.

`project` is what a fast block calls in the place of its layers. Weights that lie side by side are multiplied at once;
the factors' own products run on a second stream where nothing waits for them. Whatever does not fit (a method without
a chain, dropout, two adapters on a layer) goes through the layers and their hooks as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.bank import chained
from adapters.layer import AdaptedLayer
from adapters.magnitude import Magnitude
from adapters.quantized import QuantizedLinear
from adapters.row_gain import row_gain
from adapters.side_stream import side_stream

Weight = Tensor | QuantizedLinear
"""A weight [d, k], or the layer that computes it."""


class _Update(NamedTuple):
    """What an adapter adds to one layer: y + (x Aᵀ) Bᵀ, and then a gain a row."""

    up: Tensor
    """[d, r], scale included, in the base's dtype."""
    down: Tensor
    """[r, κ]"""
    gain: Tensor | None
    """m/c − 1, [d], or None."""


def hook_of(module: nn.Module) -> AdaptedLayer | None:
    """The adapters' hook on a layer."""
    hooks = module._forward_hooks  # pyright: ignore[reportPrivateUsage]  # torch offers no other reader
    return next((hook for hook in hooks.values() if isinstance(hook, AdaptedLayer)), None)


def is_plain(module: nn.Module) -> bool:
    """Whether the layer is what its weight says: nothing is added to it now, and the weight does not learn."""
    return not module._forward_hooks and not module._forward_pre_hooks and not _learns(module)  # pyright: ignore[reportPrivateUsage]


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def project(x: Tensor, layers: Sequence[nn.Linear], packed: Tensor | None = None) -> Sequence[Tensor]:
    """Every layer's output for the same x.

    Args:
        x: [..., k].
        layers: Linear layers of k inputs.
        packed: their weights one below the other, [Σd, k], where they lie so (`pack`); then they have no biases.
    """
    if packed is None or len(layers) == 1:
        return [_single(x, layer) for layer in layers]
    updates = [_update(layer) for layer in layers]
    if all(is_plain(layer) for layer in layers):
        return _columns(F.linear(x, packed), len(layers))
    known = [update for update in updates if update is not None]
    if len(known) < len(layers) or len({(u.up.shape, u.gain is None) for u in known}) > 1:
        return [_single(x, layer) for layer in layers]
    return _columns(_updated(x, packed, None, known), len(layers))


def pack(layers: Sequence[nn.Linear]) -> Tensor | None:
    """Moves the weights into one tensor, one below the other, of which they become views; None where they differ."""
    weights = [layer.weight for layer in layers]
    same = len({(w.shape, w.dtype, w.device) for w in weights}) == 1
    if not same or any(type(layer) is not nn.Linear or "bias" in dict(layer.named_parameters()) for layer in layers):
        return None
    packed = torch.cat([weight.detach() for weight in weights])
    for weight, rows in zip(weights, packed.split(weights[0].shape[0]), strict=True):
        weight.data = rows
    return packed


def unpack(layers: Sequence[nn.Linear]) -> None:
    """Gives each layer a weight of its own again."""
    for layer in layers:
        layer.weight.data = layer.weight.detach().clone()


def _single(x: Tensor, layer: nn.Linear) -> Tensor:
    update = _update(layer)
    if update is None:
        return layer(x)
    return _updated(x, layer if isinstance(layer, QuantizedLinear) else layer.weight, layer.bias, [update])


def _update(layer: nn.Linear) -> _Update | None:
    hook = hook_of(layer)
    if hook is None or type(layer) not in (nn.Linear, QuantizedLinear) or _learns(layer):
        return None
    active = [(adapter, switch) for adapter, switch in hook.entries if switch.strength != 0.0 and not switch.merged]
    if len(active) != 1 or active[0][1].place is not None or len(layer._forward_hooks) > 1:  # pyright: ignore[reportPrivateUsage]
        return None
    adapter, strength = active[0][0], active[0][1].strength
    low_rank = chained(adapter)
    if low_rank is None or low_rank.staged is None or (low_rank.dropout > 0 and low_rank.training):
        return None
    up, down = low_rank.staged
    if strength == 1.0:
        return _Update(up, down, adapter.staged_gain if isinstance(adapter, Magnitude) else None)
    if isinstance(adapter, Magnitude) or torch.is_grad_enabled():  # gradients made beside must reach `spread` first
        return None
    return _Update(strength * up, down, None)


def _updated(x: Tensor, weight: Weight, bias: Tensor | None, updates: list[_Update]) -> Tensor:
    factors = [u.up for u in updates] + [u.down for u in updates]
    y: Tensor = _LowRankLinear.apply(x, weight, bias, len(updates), *factors)  # pyright: ignore[reportAssignmentType]
    gains = [u.gain for u in updates if u.gain is not None]
    if not gains:
        return y
    return row_gain(y, gains[0] if len(gains) == 1 else torch.cat(gains), bias)


def _columns(y: Tensor, count: int) -> Sequence[Tensor]:
    return _Columns.apply(y, count)  # pyright: ignore[reportReturnType]


class _Columns(torch.autograd.Function):
    """y in `count` equal runs of columns; a plain chunk would build as many gradients of y's size."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, count: int) -> tuple[Tensor, ...]:
        return y.chunk(count, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.cat(gradients, -1), None


class _LowRankLinear(torch.autograd.Function):
    """x Wᵀ + b + (x Aᵀ) Bᵀ for n pairs side by side: W [n·d, k], y [..., n·d], pairs [d, r] and [r, k]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None, count: int, *factors: Tensor) -> Tensor:
        up = torch.stack(factors[:count]) if count > 1 else factors[0][None]
        down = torch.cat(factors[count:]) if count > 1 else factors[1]
        rows = x.reshape(-1, x.shape[-1])
        z = rows.new_empty(len(rows), len(down))
        ready = _beside(rows, lambda: torch.mm(rows, down.t(), out=z))
        ctx.quantized = weight if isinstance(weight, QuantizedLinear) else None  # dequantised again on the way back
        y = F.linear(rows, _dense(weight), bias)
        _wait(ready)
        _add_products(y, z, up)
        ctx.again = getattr(x, "again", None)  # x is cheaper to make again than to keep (trainers.fast.norms)
        ctx.save_for_backward(None if ctx.again else rows, z, None if ctx.quantized else weight, up, down)
        ctx.shape = x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        kept, z, weight, up, down = ctx.saved_tensors
        again, ctx.again = ctx.again, None
        count, needs = len(up), ctx.needs_input_grad
        g = gradient.reshape(-1, gradient.shape[-1])
        gz = torch.empty_like(z)
        ready = _beside(g, lambda: _into_columns(gz, g, up))
        dx = g @ _dense(ctx.quantized or weight) if needs[0] else None
        _wait(ready)
        if dx is not None:
            dx.addmm_(gz, down)
        d_up, d_down = torch.empty_like(up), torch.empty_like(down)

        def factors() -> None:
            rows = again().reshape(-1, ctx.shape[-1]) if kept is None else kept
            torch.mm(gz.t(), rows, out=d_down)
            if count == 1:
                torch.mm(g.t(), z, out=d_up[0])
            else:
                torch.bmm(_blocks(g, count).mT, _blocks(z, count), out=d_up)

        if g.is_cuda:
            side_stream(g.device).later(factors, again, g, gz, kept, z, d_up, d_down)
        else:
            factors()
        return (
            None if dx is None else dx.view(ctx.shape),
            *(None, None, None),
            *d_up.unbind(),
            *(d_down.chunk(count) if count > 1 else (d_down,)),
        )


def _dense(weight: Weight) -> Tensor:
    return weight.weight if isinstance(weight, QuantizedLinear) else weight


def _blocks(matrix: Tensor, count: int) -> Tensor:
    """[N, n·m] as [n, N, m]; a view."""
    return matrix.unflatten(1, (count, -1)).transpose(0, 1)


def _add_products(y: Tensor, z: Tensor, up: Tensor) -> None:
    """y += z Bᵀ, block by block."""
    if len(up) == 1:
        y.addmm_(z, up[0].t())
    else:
        _blocks(y, len(up)).baddbmm_(_blocks(z, len(up)), up.mT)


def _into_columns(gz: Tensor, g: Tensor, up: Tensor) -> None:
    """gz = g B, block by block."""
    if len(up) == 1:
        torch.mm(g, up[0], out=gz)
    else:
        _blocks(gz, len(up)).copy_(torch.bmm(_blocks(g, len(up)), up))


def _beside(like: Tensor, work: Any) -> torch.cuda.Event | None:
    if like.is_cuda:
        return side_stream(like.device).fork(work)
    work()
    return None


def _wait(event: torch.cuda.Event | None) -> None:
    if event is not None:
        torch.cuda.current_stream().wait_event(event)
