"""The table that the contract suite runs over: methods × layers. A new method adds one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from adapters.sites import Site
from tests.contract.harness import LAYERS, Method, Promise


def low_rank(site: Site) -> int:
    """r(d + κ) at rank 4, the up factor split among groups."""
    return 4 * site.columns + site.rows * 4 // site.groups


def rotations(site: Site) -> int:
    """r(r − 1) angles of the two rotations at rank 4."""
    return 4 * (4 // site.groups - 1)


def _inputs(site: Site) -> tuple[int, int]:
    """c_in/g and kh·kw."""
    area = site.weight[0, 0].numel()
    return site.columns // area, area


def tucker(site: Site, core: int | None = None, kernel: int = 0) -> int:
    """r(d + c_in) with a core of r²·kh·kw at rank 4, or of `core` numbers for each pair, and kernel factors."""
    width, area = _inputs(site)
    return 4 * width + site.rows * 4 // site.groups + 16 // site.groups * (area if core is None else core) + kernel


def kernel_modes(site: Site) -> int:
    """Kernels of 3×3 have two 3×3 factors and keep a 3×3 core at rank 4."""
    return tucker(site, kernel=18 if _inputs(site)[1] == 9 else 0)


EVEN = {56: (7, 8), 24: (4, 6), 48: (6, 8), 40: (5, 8), 16: (4, 4), 32: (4, 8), 4: (2, 2)}
"""The most even split of the layers' outputs and inputs."""


def kronecker(site: Site) -> int:
    (a1, b1), (a2, b2) = EVEN[site.rows], EVEN[_inputs(site)[0]]
    return a1 * a2 + b1 * b2 * _inputs(site)[1]


def low_rank_kronecker(site: Site) -> int:
    """Rank 1 on both sides."""
    (a1, b1), (a2, b2) = EVEN[site.rows], EVEN[_inputs(site)[0]]
    return a1 + a2 + b1 + b2 * _inputs(site)[1]


def tucker_kronecker(site: Site) -> int:
    """Rank 2, and a core where there is a kernel."""
    (a1, b1), (a2, b2) = EVEN[site.rows], EVEN[_inputs(site)[0]]
    area = _inputs(site)[1]
    return a1 * a2 + 2 * (b1 + b2) + (4 * area if area > 1 else 0)


def krona(site: Site, terms: int = 1) -> int:
    """a1 = a2 = 4."""
    width, area = _inputs(site)
    return terms * (16 + site.rows // 4 * (width // 4) * area)


def krona_in_parts(site: Site) -> int:
    """a1 = a2 = 2, two terms, a core of rank 3 where there is a kernel."""
    width, area = _inputs(site)
    return 2 * (4 + 3 * (site.rows // 2 + width // 2) + (9 * area if area > 1 else 0))


def loha(site: Site) -> int:
    """2r(d + κ) at rank 2."""
    return 4 * (site.rows + site.columns)


def tucker_loha(site: Site) -> int:
    width, area = _inputs(site)
    return 4 * (site.rows + width) + (8 * area if area > 1 else 0)


ONE_COLUMN = {"conv grouped": "which does nothing"}
RANK_4: Mapping[str, object] = {"rank": 4, "alpha": 6.0}
BAT: Mapping[Promise, str] = {
    "allocations": "each block of outputs transforms x in its own way, so ΔW is built; test_bat: it is not saved",
    "compile": "the suite's shape checks append to a list inside what is recomputed; test_bat compiles without them",
}

DASH: Mapping[str, object] = {**RANK_4, "directions": 4, "start_step": 1}
# three prunings, and from step 5 on the settled budget: within what the resume test trains
ADALORA: Mapping[str, object] = {**RANK_4, "target_rank": 2, "initial": 0.05, "final": 0.75, "interval": 1}
ROSA: Mapping[str, object] = {**RANK_4, "density": 0.02, "calibration_draws": 2}
ROUTED: Mapping[Promise, str] = {
    "merge": "the experts depend on x: there is no W′",
    "autograd": "there is no W′ (test_mora.py has a dense reference)",
    "sum": "it merges (test_mora.py tests the unmerged sum)",
}


def rosa(site: Site) -> int:
    """A LoRA of rank 4 and 2 % of the weight's entries."""
    return low_rank(site) + round(0.02 * site.rows * site.columns)


def mora(site: Site) -> int:
    """A pool of 6 experts, and a router."""
    return 6 * (site.columns + site.rows) + 6 * site.columns


METHODS = (
    Method("lora", RANK_4, low_rank),
    Method("lora", {**RANK_4, "init": "pissa"}, low_rank, variant="pissa"),
    Method("lora", {**RANK_4, "init": "milora"}, low_rank, variant="milora"),
    Method("lora", {**RANK_4, "init": "olora"}, low_rank, variant="olora"),
    Method("lora", {**RANK_4, "init": "lora-ga", "calibration_draws": 2}, low_rank, variant="lora-ga"),
    Method("dora", RANK_4, lambda site: low_rank(site) + site.rows, low_rank=False),
    Method(
        "dora",
        {**RANK_4, "init": "pissa", "rank_stabilized": True},
        lambda site: low_rank(site) + site.rows,
        low_rank=False,
        variant="pissa rslora",
    ),
    Method("spectral-a", {"rank": 4}, low_rank),
    Method(
        "spectral-a",
        {"rank": 4, "learn_sigma": True, "normalised": False, "columns": "comb", "slot": 1},
        lambda site: low_rank(site) + 4,
        variant="comb with sigma",
    ),
    Method("spectral-a", {"rank": 4, "magnitude": True}, lambda s: low_rank(s) + s.rows, False, variant="magnitude"),
    Method("spectral-r", {"rank": 4}, rotations, refuses=ONE_COLUMN),
    Method(
        "spectral-r",
        {"rank": 8, "learn_scale": True, "slot": 0, "columns": "comb"},
        lambda site: 8 * (8 // site.groups - 1) + 8,
        variant="comb with scale",
    ),
    Method(
        "spectral-r",
        {"rank": 4, "magnitude": True},
        lambda s: rotations(s) + s.rows,
        False,
        variant="magnitude",
        refuses=ONE_COLUMN,
    ),
    Method("lotr", RANK_4, kernel_modes),
    Method("lotr", {**RANK_4, "share": "layer"}, kernel_modes, variant="layer"),
    Method(
        "lotr",
        {"rank": 4, "alpha": 0.1, "magnitude": True},
        lambda site: kernel_modes(site) + site.rows,
        False,
        variant="magnitude",
    ),
    Method("flora", {"rank": 4, "alpha": 24.0}, tucker),
    Method("flora", {"rank": 4, "alpha": 400.0, "kernel_modes": True}, kernel_modes, variant="kernel modes"),
    Method(
        "flora",
        {"rank": 4, "alpha": 24.0, "magnitude": True},
        lambda site: tucker(site) + site.rows,
        False,
        variant="magnitude",
    ),
    Method("krona", {"rank": 4, "alpha": 6.0, "factor": 4}, krona, False),
    Method("krona", {"factor": 4, "terms": 2}, lambda site: krona(site, 2), False, variant="two terms"),
    Method(
        "krona",
        {"factor": 2, "terms": 2, "second": "tucker", "rank": 3, "alpha": 30.0},
        krona_in_parts,
        False,
        variant="tucker",
    ),
    Method(
        "krona",
        {"factor": 4, "terms": 2, "magnitude": True},
        lambda site: krona(site, 2) + site.rows,
        False,
        variant="magnitude",
    ),
    Method("lokr", {"rank": 16, "alpha": 24.0}, kronecker, False),
    Method("lokr", {"rank": 1, "decompose_both": True}, low_rank_kronecker, False, variant="low rank"),
    Method("lokr", {"rank": 2, "tucker": True, "alpha": 20.0}, tucker_kronecker, False, variant="tucker"),
    Method(
        "lokr",
        {"rank": 16, "magnitude": True},
        lambda site: kronecker(site) + site.rows,
        False,
        variant="magnitude",
    ),
    Method("loha", {"rank": 2, "alpha": 3.0}, loha),
    Method("loha", {"rank": 2, "tucker": True}, tucker_loha, variant="tucker"),
    Method("loha", {"rank": 2, "magnitude": True}, lambda s: loha(s) + s.rows, False, variant="magnitude"),
    Method("lora-dash", DASH, lambda site: low_rank(site) + 4),
    Method("lora-dash", {**DASH, "relative_epsilon": True}, lambda s: low_rank(s) + 4, variant="relative epsilon"),
    Method("lora-dash", {**DASH, "init": "pissa"}, lambda site: low_rank(site) + 4, variant="pissa"),
    Method("lora-dash", {**DASH, "magnitude": True}, lambda s: low_rank(s) + 4 + s.rows, False, variant="magnitude"),
    Method("adalora", ADALORA, lambda site: low_rank(site) + 4),
    Method(
        "adalora",
        {**ADALORA, "orthogonal_weight": 0.0, "rank_stabilized": True},
        lambda site: low_rank(site) + 4,
        variant="unpenalised rslora",
    ),
    Method(
        "adalora",
        {**ADALORA, "magnitude": True},
        lambda site: low_rank(site) + 4 + site.rows,
        False,
        variant="magnitude",
    ),
    Method("sora", {**RANK_4, "sparsity": 0.5}, lambda site: low_rank(site) + 4),
    Method("sora", {**RANK_4, "magnitude": True}, lambda s: low_rank(s) + 4 + s.rows, False, variant="magnitude"),
    Method("rosa", ROSA, rosa, False),
    Method("rosa", {**ROSA, "init": "pissa"}, rosa, False, variant="pissa"),
    Method("rosa", {**ROSA, "magnitude": True}, lambda s: rosa(s) + s.rows, False, variant="magnitude"),
    Method("mora", {"experts": 6, "top_k": 3}, mora, False, exempt=ROUTED, refuses={"conv grouped": "all of a layer"}),
    Method(
        "mora",
        {"experts": 6, "top_k": 2, "balance": 0.0},
        mora,
        False,
        variant="unbalanced",
        exempt=ROUTED,
        refuses={"conv grouped": "all of a layer"},
    ),
    Method("vera", {"rank": 8}, lambda s: s.rows + 8),
    Method("vera", {"rank": 8, "magnitude": True}, lambda s: 2 * s.rows + 8, low_rank=False, variant="magnitude"),
    Method("dvora", {"rank": 8}, lambda s: 2 * s.rows + 8, low_rank=False),
    Method("bone", {"rank": 4}, lambda s: s.rows * 4 // s.groups),
    Method("bone", {"rank": 12, "shards": "strided"}, lambda s: s.rows * 12 // s.groups, variant="strided uneven"),
    Method("bone", {"rank": 4, "magnitude": True}, lambda s: s.rows * 4 // s.groups + s.rows, False, "magnitude"),
    Method("bat", {"rank": 4}, lambda s: 4 * s.rows, low_rank=False, exempt=BAT),
    Method("oft", {"block_size": 4}, lambda s: s.channels * 3 // 2, low_rank=False),
    Method("oft", {"block_size": 4, "magnitude": True}, lambda s: s.channels * 3 // 2 + s.rows, False, "magnitude"),
    Method("oft", {"block_size": 2, "side": "output"}, lambda s: s.rows // 2, False, "output"),
    Method(
        "oft",
        {"block_size": 2, "side": "output", "magnitude": True},
        lambda s: s.rows // 2 + s.rows,
        False,
        "output magnitude",
    ),
    Method("boft", {"block_size": 4, "factors": 1}, lambda s: s.channels * 3 // 2 + s.rows, low_rank=False),
    Method("boft", {"block_size": 2, "factors": 2}, lambda s: s.channels + s.rows, False, "butterfly"),
    Method(
        "boft",
        {"block_size": 2, "factors": 2, "side": "output"},
        lambda s: 2 * s.rows,
        False,
        "output",
        refuses={"conv grouped": "span of 4 does not divide"},
    ),
    Method("glora", RANK_4, lambda s: low_rank(s) + 2 * 4 * s.columns),
    Method("glora", {**RANK_4, "magnitude": True}, lambda s: low_rank(s) + 8 * s.columns + s.rows, False, "magnitude"),
    Method("ia3", {}, lambda s: s.rows, low_rank=False),
    Method("ia3", {"side": "input"}, lambda s: s.channels, low_rank=False, variant="input"),
)


VARIANT_LAYERS = ("linear", "conv strided", "conv grouped")
"""What the further rows of a method run on: its first one runs on every kind of layer."""


def promised(promise: Promise) -> pytest.MarkDecorator:
    """Runs a test over every method and layer but those that the table exempts."""
    kept = [
        pytest.param(method, layer, id=f"{method}-{name}")
        for method in METHODS
        if promise not in method.exempt
        for name, layer in LAYERS.items()
        if name not in method.refuses and (not method.variant or name in VARIANT_LAYERS)
    ]
    return pytest.mark.parametrize(("method", "layer"), kept)


def refusals() -> Iterator[object]:
    for method in METHODS:
        for name, words in method.refuses.items():
            yield pytest.param(method, LAYERS[name], words, id=f"{method}-{name}")
