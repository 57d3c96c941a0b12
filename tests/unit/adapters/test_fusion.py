"""Ways to fuse on a small net in fp64: their formulas, what they promise, and what the report says of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapters.errors import UnknownNameError, UserInputError
from adapters.files import AdapterCard, attach_file, save_adapter
from adapters.fusion.deltas import LayerDelta, compress, inner, truncated
from adapters.fusion.fuse import Concept, changes_of, fused_deltas
from adapters.fusion.report import report_on
from adapters.fusion.way import WAYS, FusionOptions, find_way
from adapters.inject import attach
from adapters.registry import make_spec
from adapters.sites import make_site
from tests.fusing import Net, concept, fused, loras, observed, prompts, small_net, weights, with_adapters
from tests.tolerances import FP64, relative_error


@pytest.fixture
def net() -> Net:
    return small_net()


def test_the_sum_is_the_adapters_side_by_side(net: Net):
    pair = [concept(net, 0, rank=3), concept(net, 1, "lokr")]
    result, _ = fused(net, pair, "sum")
    expected = with_adapters(net, prompts(0), *(one.adapters for one in pair))
    assert relative_error(with_adapters(net, prompts(0), result), expected) < FP64


def test_weights_are_strengths(net: Net):
    pair = [concept(net, 0, rank=3, weight=0.5), concept(net, 1, rank=2, weight=-2.0)]
    result, _ = fused(net, pair, "sum")
    for name, found in weights(result).items():
        one, two = (weights(c.adapters)[name] for c in pair)
        assert relative_error(found, 0.5 * one - 2.0 * two) < FP64


def test_the_mean_divides_by_the_concepts(net: Net):
    trio = loras(net, 3)
    summed, mean = (weights(fused(net, trio, how)[0]) for how in ("sum", "mean"))
    assert all(relative_error(3 * mean[name], summed[name]) < FP64 for name in summed)


def test_svd_is_the_nearest_of_its_rank(net: Net):
    pair = loras(net)
    summed, cut = (weights(fused(net, pair, how, rank=rank)[0]) for how, rank in (("sum", None), ("svd", 4)))
    for name in summed:
        u, s, vt = torch.linalg.svd(summed[name].flatten(1), full_matrices=False)
        assert relative_error(cut[name].flatten(1), u[:, :4] * s[:4] @ vt[:4]) < 1e-9


def test_ties_keeps_agreement_and_drops_what_is_outvoted():
    site = make_site("a", nn.Linear(4, 4, bias=False).double())
    assert site is not None
    one, two = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    one[0, 0], one[1, 1], one[2, 2], one[3, 0] = 4.0, 3.0, 5.0, 0.1
    two[0, 0], two[1, 1], two[3, 3], two[3, 0] = 2.0, -4.0, 6.0, 0.1
    from adapters.fusion.way import FusionLayer

    layer = FusionLayer(
        site, site.weight, [compress(site, m, 4) for m in (one, two)], ["a", "b"], 2, FusionOptions(density=3 / 16)
    )
    delta = find_way("ties").fuse(layer)
    found = site.product(delta.up, delta.down)
    expected = torch.diag(torch.tensor([3.0, -4.0, 5.0, 6.0], dtype=torch.float64))
    assert relative_error(found, expected) < 1e-9


def test_dare_is_the_sum_in_the_mean(net: Net):
    pair = loras(net)
    summed = weights(fused(net, pair, "sum")[0])["unet.first"]
    drawn = [weights(fused(net, pair, "dare", rank=16, seed=seed)[0])["unet.first"] for seed in range(200)]
    assert (torch.stack(drawn).mean(0) - summed).norm() < 0.15 * summed.norm()
    assert not torch.equal(drawn[0], drawn[1])


def test_null_space_leaves_the_first_alone_where_it_looks(net: Net):
    pair = loras(net)
    result = weights(fused(net, pair, "null-space", energy=1.0)[0])
    for name, found in result.items():
        first = weights(pair[0].adapters)[name].flatten(1)
        looked_at = torch.linalg.svd(first, full_matrices=False).Vh[:3]
        assert relative_error(found.flatten(1) @ looked_at.T, first @ looked_at.T) < 1e-9


def test_a_soft_null_space_lies_between_the_sum_and_the_hard_one(net: Net):
    pair = loras(net)
    summed = weights(fused(net, pair, "sum")[0])["unet.first"]
    hard, soft = (
        weights(fused(net, pair, "null-space", energy=1.0, softness=mu)[0])["unet.first"] for mu in (None, 3.0)
    )
    assert relative_error(soft, summed + 0.75 * (hard - summed)) < 1e-9


def test_least_squares_is_the_dense_ridge_solution_over_these_rows(net: Net):
    """Against the normal equations of the same problem, written out over activations in the place of moments."""
    pair = loras(net)
    options = FusionOptions(background=0.7, ridge=1e-2)
    changes = changes_of(pair, options)
    grams = observed(net, changes)
    found = fused_deltas(changes, find_way("least-squares"), options, grams)["unet.first"]
    roots = [torch.linalg.cholesky(g + 1e-14 * torch.eye(6)).mT for g in grams["unet.first"].own]
    neutral = torch.linalg.cholesky(grams["unet.first"].neutral + 1e-14 * torch.eye(6)).mT
    ups = [changes.deltas["unet.first"][number].up for number in (0, 1)]
    whole = sum(g.diagonal().sum() for g in grams["unet.first"].own) + 0.7 * grams["unet.first"].neutral.trace()
    level = (options.ridge * whole / 6).sqrt()
    rows = torch.cat([*roots, 0.7**0.5 * neutral, level * torch.eye(6, dtype=torch.float64)])
    wanted = torch.cat(
        [roots[0][:, :3] @ ups[0].mT, roots[1][:, 3:] @ ups[1].mT, torch.zeros(6, 24), level * torch.cat(ups, 1).mT]
    )
    assert relative_error(found.up, torch.linalg.lstsq(rows, wanted).solution.mT) < 1e-6


def test_least_squares_loses_less_of_each_subject_than_the_sum(net: Net):
    pair = loras(net)
    lost = {how: fused(net, pair, how, background=0.0)[1] for how in ("sum", "least-squares")}
    for summed, kept in zip(lost["sum"].concepts, lost["least-squares"].concepts, strict=True):
        assert kept.lost is not None and summed.lost is not None
        assert kept.lost < 0.8 * summed.lost


def test_the_background_term_lessens_drift(net: Net):
    pair = loras(net)
    plain, careful = (fused(net, pair, "least-squares", background=b)[1] for b in (0.0, 3.0))
    assert plain.drift is not None and careful.drift is not None
    assert careful.drift < 0.9 * plain.drift


@pytest.mark.parametrize("method", ["spectral-r", "spectral-a"])
def test_spectral_columns_add_up_without_cross_terms(net: Net, method: str):
    pair = [concept(net, slot, method, rank=3, slot=slot) for slot in (0, 1)]
    result, report = fused(net, pair, "spectral")
    for name, found in weights(result).items():
        assert relative_error(found, sum(weights(c.adapters)[name] for c in pair)) < FP64
    assert report.pairs[0].shared_columns == 0


def test_rotations_on_disjoint_columns_are_orthogonal(net: Net):
    pair = [concept(net, slot, "spectral-r", rank=3, slot=slot) for slot in (0, 1)]
    _, report = fused(net, pair, "spectral")
    assert abs(report.pairs[0].overlap) < FP64 and report.pairs[0].angle < 1e-9


def test_the_same_columns_are_refused_and_reported(net: Net):
    pair = [concept(net, number, "spectral-r", rank=3, slot=1) for number in (0, 1)]
    with pytest.raises(UserInputError, match="--with"):
        fused(net, pair, "spectral")
    _, report = fused(net, pair, "sum")
    assert report.pairs[0].shared_columns == 9  # three in each of three layers
    assert "same columns" in report.verdict


def test_an_adapter_without_columns_is_moved_off_those_that_are_taken_and_repaired(net: Net):
    own, foreign = concept(net, 0, "spectral-r", rank=3), concept(net, 1, rank=3)
    options = FusionOptions()
    changes = changes_of([own, foreign], options)
    moved = fused_deltas(changes, find_way("spectral"), options)
    for name, delta in moved.items():
        site, columns = changes.sites[name], changes.deltas[name][0].columns
        assert columns is not None
        strange = site.product(delta.up, delta.down) - site.product(*own.adapters.adapters[name].factors())
        assert (strange @ columns.right.mT).abs().max() < 1e-12
        assert (columns.left.mT @ strange).abs().max() < 1e-12
    grams = observed(net, changes)
    before = report_on("spectral", changes, moved, grams)
    after = report_on("spectral", changes, fused_deltas(changes, find_way("spectral"), options, grams), grams)
    assert sum(c.lost or 0 for c in after.concepts) < sum(c.lost or 0 for c in before.concepts)


def test_spectral_fusion_needs_columns(net: Net):
    with pytest.raises(UserInputError, match="spectral-a"):
        fused(net, loras(net), "spectral")


@pytest.mark.parametrize("how", ["sum", "mean", "svd", "ties", "dare", "null-space", "least-squares", "zip"])
def test_every_way_gives_a_file_that_attaches_again(net: Net, how: str, tmp_path):
    mixed = [concept(net, 0, rank=2), concept(net, 1, "oft"), concept(net, 2, "lora", rank=4, magnitude=True)]
    result, _ = fused(net, mixed, how, rank=8)
    save_adapter(tmp_path / "f.safetensors", result, AdapterCard())
    expected = with_adapters(net, prompts(1), result)
    loaded = attach_file({"unet": net}, tmp_path / "f.safetensors")
    assert relative_error(net(prompts(1)), expected) < 1e-6
    loaded.detach()


def test_layers_of_one_adapter_alone_are_kept(net: Net):
    one = concept(net, 0, rank=3)
    other = attach({"unet": net}, make_spec("lora", rank=2), {"unet": "second"}, seed=5)
    other.detach()
    result, _ = fused(net, [one, Concept("other", other)], "sum")
    assert set(result.adapters) == set(one.adapters.adapters)


def test_crosstalk_is_what_the_other_does_to_the_outputs(net: Net):
    pair = loras(net)
    _, report = fused(net, pair, "sum")
    layer = next(layer for layer in report.layers if layer.layer == "unet.conv")
    x = prompts(0)
    first, second = (a.adapters.adapters["unet.conv"].delta(x, net.conv(x)) for a in pair)
    assert layer.pairs[0].crosstalk == pytest.approx(float(second.norm() / first.norm()), rel=1e-5)


def test_one_adapter_is_no_fusion(net: Net):
    with pytest.raises(UserInputError, match="two adapters"):
        changes_of([concept(net, 0, rank=2)], FusionOptions())


def test_an_unknown_way_is_told_the_nearest():
    with pytest.raises(UnknownNameError, match="least-squares"):
        find_way("least-square")
    assert len(WAYS) >= 8


def test_inner_products_and_truncation_need_no_dense_matrix():
    site = make_site("a", nn.Linear(20, 14).double())
    assert site is not None
    draws = torch.Generator().manual_seed(0)
    one, two = (
        LayerDelta(*(torch.randn(shape, generator=draws, dtype=torch.float64) for shape in ((14, 3), (3, 20))))
        for _ in range(2)
    )
    dense = [site.product(d.up, d.down) for d in (one, two)]
    assert inner(site, one, two) == pytest.approx(float((dense[0] * dense[1]).sum()))
    cut = truncated(site, one, 2)
    assert cut.error == pytest.approx(float((dense[0] - cut.up @ cut.down).norm() / dense[0].norm()))
