"""MoRA against a dense reference of its own, its balance term, its pool, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from adapters.errors import UserInputError
from adapters.inject import attach, base_hash
from adapters.methods.mora import Mora
from adapters.registry import make_spec
from tests.contract.harness import LAYERS, Base, Layer, Method, nudge
from tests.tolerances import FP32, FP64, FP64_GRADIENT, relative_error

EXPERTS, TOP = 6, 2
MORA = Method("mora", {"experts": EXPERTS, "top_k": TOP, "balance": 0.3}, lambda _: 0)
TAKEN = {name: layer for name, layer in LAYERS.items() if name != "conv grouped"}
each_layer = pytest.mark.parametrize("layer", TAKEN.values(), ids=TAKEN)


def mora(base: Base, **knobs: object) -> Mora:
    adapter_set = base.attach(MORA, **knobs)
    nudge(adapter_set, 0.5)
    found = adapter_set.adapters["unet.layer"]
    assert isinstance(found, Mora)
    return found


def tokens(layer: nn.Linear | nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every token or window as a row [N, κ], and the base's output as rows [N, d]."""
    y = layer(x)
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    padding = layer.padding
    if layer.padding_mode == "circular":
        assert padding == "same"
        reach = [layer.dilation[i] * (layer.kernel_size[i] - 1) // 2 for i in (1, 0)]
        x, padding = F.pad(x, [reach[0], reach[0], reach[1], reach[1]], mode="circular"), 0
    windows = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    return windows.mT.flatten(0, 1), y.flatten(2).mT.flatten(0, 1)


def reference(adapter: Mora, layer: nn.Linear | nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [N, d] and the balance term, token by token and expert by expert."""
    rows, base = tokens(layer, x)
    outputs, chosen, all_p = [], [], []
    for row, y in zip(rows, base, strict=True):
        logits = adapter.router @ row
        p = logits.exp() / logits.exp().sum()
        best = sorted(range(EXPERTS), key=lambda e: -p[e].item())[:TOP]
        outputs.append(y + sum(p[e] * (adapter.down[e] @ row) * adapter.up[:, e] for e in best))
        chosen += best
        all_p.append(p)
    shares = torch.tensor([chosen.count(e) / len(chosen) for e in range(EXPERTS)], dtype=torch.float64)
    return torch.stack(outputs), EXPERTS * (shares * torch.stack(all_p).mean(0)).sum()


def as_rows(layer: nn.Linear | nn.Conv2d, y: Tensor) -> Tensor:
    return y.reshape(-1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.flatten(2).mT.flatten(0, 1)


@each_layer
@pytest.mark.parametrize("balance", [0.0, 0.3])
def test_output_and_gradients_equal_a_dense_reference_with_the_balance_in_its_loss(layer: Layer, balance: float):
    base = Base(layer, torch.float64)
    adapter = mora(base, balance=balance)
    x, parameters = base.x.requires_grad_(), list(adapter.parameters())
    bare = Base(layer, torch.float64).layer
    found = as_rows(base.layer, base(x))
    expected, term = reference(adapter, bare, x)
    assert relative_error(found, expected) < FP64
    direction = torch.randn_like(found)
    ours = torch.autograd.grad((found * direction).sum(), [x, *parameters])
    theirs = torch.autograd.grad((expected * direction).sum() + balance * term, [x, *parameters])
    for our_gradient, their_gradient in zip(ours, theirs, strict=True):
        assert relative_error(our_gradient, their_gradient) < FP64_GRADIENT


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_balance_is_added_once_under_checkpointing(reentrant: bool):
    base = Base(LAYERS["linear"], torch.float64)
    adapter = mora(base)
    x = base.x.requires_grad_()
    expected = torch.autograd.grad(base(x).square().mean(), adapter.router)[0]
    adapter.balance = 0.0
    assert relative_error(torch.autograd.grad(base(x).square().mean(), adapter.router)[0], expected) > 0.01
    adapter.balance = 0.3
    checkpoint(base, x, use_reentrant=reentrant).square().mean().backward()
    assert adapter.router.grad is not None and relative_error(adapter.router.grad, expected) < FP64


def test_compiling_keeps_the_balance():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(32, 32))
    adapter_set = attach({"unet": model}, make_spec("mora", **MORA.knobs), {"unet": "linear"})
    nudge(adapter_set, 0.5)
    x = torch.randn(7, 32, requires_grad=True)
    parameters = adapter_set.parameters()
    expected = torch.autograd.grad(model(x).square().mean(), parameters)
    counter = CompileCounterWithBackend("aot_eager")
    model.compile(fullgraph=True, backend=counter)
    found = torch.autograd.grad(model(x).square().mean(), parameters)
    assert counter.frame_count > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < FP32


def test_the_balance_evens_out_a_router_that_prefers_a_few_experts():
    base = Base(LAYERS["conv 1x1"], torch.float32)
    base.x = base.x + 1
    adapter = mora(base, balance=1.0)
    rows, _ = tokens(base.layer, base.x)

    def largest_share() -> float:
        chosen = (rows @ adapter.router.T).topk(TOP).indices.flatten()
        return (chosen.bincount(minlength=EXPERTS) / len(chosen)).max().item()

    with torch.no_grad():
        adapter.router.mul_(0.1)
        adapter.router[0] += 0.1
    before = largest_share()
    optimizer = torch.optim.Adam([adapter.router], lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (0 * base()).sum().backward()
        optimizer.step()
    assert before > 0.4
    assert largest_share() < 0.3


def test_in_evaluation_nothing_is_balanced():
    base = Base(LAYERS["linear"], torch.float64)
    adapter = mora(base).eval()
    assert not torch.autograd.grad((0 * base()).sum(), adapter.router)[0].any()
    adapter.train()
    assert torch.autograd.grad((0 * base()).sum(), adapter.router)[0].any()


def test_a_token_uses_exactly_k_experts():
    base = Base(LAYERS["linear"], torch.float64)
    adapter = mora(base)
    used = []
    for expert in range(EXPERTS):
        with torch.no_grad():
            kept = adapter.up.clone()
            adapter.up.zero_()
            adapter.up[:, expert] = kept[:, expert]
            used.append((base() - Base(LAYERS["linear"], torch.float64)()).abs().amax(-1) > 1e-9)
            adapter.up.copy_(kept)
    assert (torch.stack(used).sum(0) == TOP).all()


def test_layers_of_one_shape_share_the_pool_and_have_routers_of_their_own():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 6)})
    adapter_set = attach({"unet": model}, make_spec("mora", experts=4, top_k=1), {"unet": "linear"})
    a, b, c = adapter_set.adapters.values()
    assert a.up is b.up and a.down is b.down and a.up is not c.up and a.down is not c.down
    assert not torch.equal(a.router, b.router)
    assert adapter_set.num_parameters() == (4 * 16 + 4 * 14) + 4 * 24


def test_components_do_not_share_a_pool():
    models = {"unet": nn.ModuleList([nn.Linear(8, 8)]), "text_encoder": nn.ModuleList([nn.Linear(8, 8)])}
    adapter_set = attach(models, make_spec("mora", experts=4, top_k=1), dict.fromkeys(models, "linear"))
    first, second = adapter_set.adapters.values()
    assert first.down is not second.down


@each_layer
def test_two_adapters_on_a_layer_add_up(layer: Layer):
    base = Base(layer, torch.float64)
    before, alone, sets = base(), [], []
    for size in (0.3, 0.6):
        sets.append(base.attach(MORA))
        nudge(sets[-1], size)
        alone.append(base() - before)
        sets[-1].strength = 0.0
    for adapter_set in sets:
        adapter_set.strength = 1.0
    assert relative_error(base() - before, alone[0] + alone[1]) < FP64


def test_merging_is_refused_in_words_and_leaves_the_base_alone():
    base = Base(LAYERS["linear"], torch.float32)
    digest = base_hash({"unet": base})
    adapter_set = base.attach(MORA)
    with pytest.raises(UserInputError, match="cannot be merged"):
        adapter_set.merge()
    assert base_hash({"unet": base}) == digest and not adapter_set.merged


def test_a_magnitude_over_it_is_refused_in_words():
    with pytest.raises(UserInputError, match="MoRA offers no row norm"):
        Base(LAYERS["linear"], torch.float32).attach(MORA, magnitude=True)


def test_more_choices_than_experts_are_refused_in_words():
    with pytest.raises(UserInputError, match="only 4 experts"):
        make_spec("mora", experts=4, top_k=5)
