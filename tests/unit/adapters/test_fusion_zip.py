"""ZipLoRA's mergers against dense formulas in fp64, and the inputs that they are learnt from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapters.errors import UserInputError
from adapters.files import AdapterCard, attach_file, save_adapter
from adapters.fusion.deltas import LayerDelta
from adapters.fusion.fuse import changes_of, fused_deltas
from adapters.fusion.grams import Sample, hashed
from adapters.fusion.report import report_on
from adapters.fusion.way import FusionLayer, FusionOptions, LayerGrams, find_way
from adapters.fusion.ways.zip import Zipped
from adapters.sites import Site, make_site
from tests.fusing import ALL, Net, concept, fused, loras, observed, prompts, small_net, weights
from tests.tolerances import FP64, FP64_GRADIENT, relative_error

LAYERS = {"linear": lambda: nn.Linear(12, 10), "conv": lambda: nn.Conv2d(6, 10, 3)}
every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture
def net() -> Net:
    return small_net()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(name: str) -> Site:
    site = make_site("a", LAYERS[name]().double())
    assert site is not None
    return site


def changes(site: Site, count: int = 2) -> list[LayerDelta]:
    return [
        LayerDelta(draw(site.rows, 2 + number, seed=number), draw(2 + number, site.columns, seed=9 + number))
        for number in range(count)
    ]


def dense(site: Site, delta: LayerDelta, merger: Tensor | None = None) -> Tensor:
    """ΔW·diag(m), all taps of an input channel times the same number."""
    weight = site.as_weight(site.product(delta.up, delta.down))
    if merger is not None:
        weight = weight * merger.reshape(1, -1, *[1] * (weight.ndim - 2))
    return site.matricise(weight)


def loss(site: Site, deltas: list[LayerDelta], inputs: list[Tensor], mergers: Tensor, similarity: float) -> Tensor:
    """The objective as its docstring says it, over dense changes."""
    merged = torch.stack([dense(site, delta, m) for delta, m in zip(deltas, mergers, strict=True)]).sum(0)
    total = torch.zeros((), dtype=torch.float64)
    for delta, x in zip(deltas, inputs, strict=True):
        own = x @ dense(site, delta).mT
        total = total + (x @ merged.mT - own).square().sum() / own.square().sum()
    pairs = [(mergers[i] * mergers[j]).abs().mean() for i in range(len(mergers)) for j in range(i)]
    return total + similarity * torch.stack(pairs).sum()


@every_layer
def test_the_objective_and_its_gradient_are_those_of_dense_changes(name: str):
    site = layer_of(name)
    deltas = changes(site, 3)
    inputs = [draw(7 + number, site.columns, seed=20 + number) for number in range(3)]
    mergers = draw(3, site.channels, seed=5).requires_grad_()
    expected = loss(site, deltas, inputs, mergers, 0.3)
    (slope,) = torch.autograd.grad(expected, mergers)
    problem = Zipped(site, deltas, inputs, 0.3)
    assert relative_error(problem.objective(mergers), expected) < FP64
    assert relative_error(problem.gradient(mergers.detach()), slope) < FP64_GRADIENT


@every_layer
def test_the_objective_falls(name: str):
    site = layer_of(name)
    problem = Zipped(site, changes(site), [draw(40, site.columns, seed=seed) for seed in (3, 4)], 0.01)
    values = [float(problem.objective(problem.learnt(steps, 0.01))) for steps in (0, 10, 100)]
    assert values[0] > values[1] > values[2]


@every_layer
def test_subjects_that_look_at_columns_of_their_own_are_both_kept(name: str):
    site = layer_of(name)
    deltas = changes(site)
    half = torch.arange(site.channels) < site.channels // 2
    columns = half.repeat_interleave(site.columns // site.channels)
    inputs = [draw(40, site.columns, seed=1) * columns, draw(40, site.columns, seed=2) * ~columns]
    grams = LayerGrams([], torch.zeros(0), [*inputs, inputs[0]])
    options = FusionOptions(steps=300, learning_rate=0.05, similarity=0.0)
    found = find_way("zip").fuse(FusionLayer(site, site.weight, deltas, ["a", "b"], 2, options, grams))
    for delta, x in zip(deltas, inputs, strict=True):
        assert relative_error(x @ dense(site, found).mT, x @ dense(site, delta).mT) < 1e-3


def test_without_a_step_it_is_the_sum(net: Net):
    pair = loras(net)
    summed, start = (weights(fused(net, pair, how, steps=0)[0]) for how in ("sum", "zip"))
    assert all(relative_error(start[name], summed[name]) < FP64 for name in summed)


def test_similarity_parts_the_columns(net: Net):
    site = layer_of("linear")
    inputs = [draw(40, site.columns, seed=seed) for seed in (3, 4)]
    shared: list[float] = []
    for similarity in (0.0, 1.0):
        mergers = Zipped(site, changes(site), inputs, similarity).learnt(100, 0.01)
        shared.append(float(mergers.prod(0).abs().mean()))
    assert shared[1] < 0.8 * shared[0]


def test_a_change_of_nothing_asks_for_nothing():
    site = layer_of("linear")
    still = LayerDelta(torch.zeros(site.rows, 2, dtype=torch.float64), draw(2, site.columns))
    mergers = Zipped(site, [changes(site)[0], still], [draw(9, site.columns)] * 2, 0.0).learnt(20, 0.01)
    assert relative_error(mergers[0], torch.ones(site.channels).double()) < 1e-9


def test_it_loses_less_of_each_subject_than_the_sum(net: Net):
    pair = loras(net)
    summed, zipped = (fused(net, pair, how)[1] for how in ("sum", "zip"))
    for before, after in zip(summed.concepts, zipped.concepts, strict=True):
        assert before.lost is not None and after.lost is not None
        assert after.lost < 0.8 * before.lost


def test_the_file_holds_each_change_with_its_columns_scaled(net: Net, tmp_path):
    pair = loras(net)
    result, _ = fused(net, pair, "zip")
    save_adapter(tmp_path / "f.safetensors", result, AdapterCard())
    loaded = attach_file({"unet": net}, tmp_path / "f.safetensors")
    for name, found in weights(loaded).items():
        site = loaded.adapters[name].site
        one, two = (site.matricise(weights(each.adapters)[name]) for each in pair)
        columns = torch.stack([one, two], dim=-1).movedim(1, 0)  # of each column: [d, 2]
        mergers = torch.linalg.lstsq(columns, site.matricise(found).mT[:, :, None]).solution
        assert relative_error((columns @ mergers)[..., 0].mT, site.matricise(found)) < 1e-5
        taps = mergers.reshape(site.channels, -1, 2)
        assert relative_error(taps, taps[:, :1].expand_as(taps)) < 1e-4


def test_it_asks_for_prompts(net: Net):
    found = changes_of(loras(net), FusionOptions())
    with pytest.raises(UserInputError, match="--no-prompts"):
        fused_deltas(found, find_way("zip"), FusionOptions())


@pytest.mark.parametrize("how", ["zip", "ties", "dare"])
def test_the_report_of_a_way_with_rows_of_its_own_is_of_real_inputs(net: Net, how: str):
    """Against the layer's outputs themselves: second moments of A x alone do not tell them."""
    pair, options = [concept(net, 0, rank=2), concept(net, 1, rank=2)], FusionOptions(rank=3)
    found = changes_of(pair, options)
    grams = observed(net, found, ALL)
    deltas = fused_deltas(found, find_way(how), options, grams)
    layer = next(layer for layer in report_on(how, found, deltas, grams).layers if layer.layer == "unet.conv")
    x, site = prompts(0), found.sites["unet.conv"]
    single, whole = found.deltas["unet.conv"][0], deltas["unet.conv"]
    own, merged = (site.apply_down(x, site.product(delta.up, delta.down)) for delta in (single, whole))
    assert layer.concepts[0].lost == pytest.approx(float((merged - own).norm() / own.norm()), rel=1e-4)


def test_samples_are_the_same_however_the_calls_are_cut():
    site = layer_of("conv")
    x = draw(6, 6, 8, 8)
    whole, parts = Sample(site, 20), Sample(site, 20)
    whole.add(x)
    for part in x.split([1, 3, 2]):
        parts.add(part)
    assert torch.equal(whole.taken(), parts.taken()) and len(whole.taken()) == 20


def test_samples_are_inputs_and_no_more_than_there_are():
    site = layer_of("conv")
    x = draw(1, 6, 4, 5)
    sample = Sample(site, 20)
    sample.add(x)
    expected = nn.functional.unfold(x, 3)[0].mT
    assert torch.equal(sample.taken()[:, 0].sort().values, expected[:, 0].sort().values)


def test_hashes_are_one_to_one_and_even():
    mixed = hashed(torch.arange(4096))
    assert len(mixed.unique()) == 4096 and int(mixed.min()) >= 0 and int(mixed.max()) < 2**32
    first = (mixed < 2**31).float().reshape(64, 64)
    assert abs(float(first.mean()) - 0.5) < 0.03
    assert float((first.mean(0) - 0.5).abs().max()) < 0.25 and float((first.mean(1) - 0.5).abs().max()) < 0.25
