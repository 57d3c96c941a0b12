"""Other knobs and rates for some of the layers, and one part of an adapter alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapters.adapter_set import AdapterSet, LayerOverride
from adapters.errors import MismatchError, UnknownNameError, UserInputError
from adapters.files import AdapterCard, attach_file, read_header, save_adapter
from adapters.inject import attach, base_hash
from adapters.registry import make_spec
from tests.tolerances import same_bits
from trainers.config import TrainConfig
from trainers.engine import parameter_groups
from trainers.rules import RULES


class Blocks(nn.Module):
    """Named as SDXL's UNet names its layers, so that groups find them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        halves = nn.ModuleList([nn.ModuleDict({"proj_in": nn.Linear(12, 12)}) for _ in range(2)])
        self.up_blocks = nn.ModuleList([nn.ModuleDict({"attentions": halves})])
        self.conv_out = nn.Conv2d(12, 6, 1)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for half in self.up_blocks[0]["attentions"]:
            x = half["proj_in"](x).sin()
        return self.conv_out(x.mT[..., None])


X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
CONTENT, STYLE, CONV = (
    "unet.up_blocks.0.attentions.0.proj_in",
    "unet.up_blocks.0.attentions.1.proj_in",
    "unet.conv_out",
)
OVERRIDES = [
    LayerOverride(layers="conv", adapter={"rank": 2, "alpha": 8.0}, learning_rate=5e-5),
    LayerOverride(layers="style", adapter={"rank": 3}),
]


def attached(model: nn.Module, *overrides: LayerOverride, **knobs: object) -> AdapterSet:
    spec = make_spec("lora", **{"rank": 4, **knobs})
    adapter = attach({"unet": model}, spec, {"unet": "all"}, overrides=overrides)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return adapter


def config(*overrides: dict[str, object], **optim: object) -> TrainConfig:
    data = {"folder": "pictures", "captions": {"trigger": "sks"}}
    targets = {"unet": "all", "overrides": overrides}
    return TrainConfig.model_validate({"data": data, "targets": targets, "optim": {"learning_rate": 1e-4, **optim}})


def test_each_group_of_layers_has_the_knobs_of_its_override():
    adapter = attached(Blocks(), *OVERRIDES)
    ranks = {name: layer.get_parameter("down").shape[0] for name, layer in adapter.adapters.items()}
    assert ranks == {CONTENT: 4, STYLE: 3, CONV: 2}
    pair = adapter.adapters[CONV].gradient_pair()
    assert pair is not None and pair.scale == 4


def test_of_two_overrides_for_one_layer_the_later_wins_knob_by_knob():
    later = LayerOverride(layers="all", adapter={"alpha": 3.0})
    adapter = attached(Blocks(), *OVERRIDES, later)
    pair = adapter.adapters[CONV].gradient_pair()
    assert pair is not None and (pair.down.shape[0], pair.scale) == (2, 1.5)


def test_the_optimizer_has_a_group_for_each_rate():
    adapter = attached(Blocks(), *OVERRIDES)
    groups = parameter_groups(adapter, config(), RULES["none"](adapter, 1))
    sizes = {(group["name"], group["lr"]): len(group["params"]) for group in groups}
    assert sizes == {
        ("unet.down", 1e-4): 2,
        ("unet.up", 1e-4): 2,
        ("unet.down", 5e-5): 1,
        ("unet.up", 5e-5): 1,
    }


def test_the_file_says_its_overrides_and_attaches_by_them(tmp_path: Path):
    model = Blocks()
    adapter = attached(model, *OVERRIDES)
    expected = model(X)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter, AdapterCard())
    adapter.detach()
    assert list(read_header(path).overrides) == OVERRIDES
    attach_file({"unet": model}, path)
    assert same_bits(model(X), expected)


def test_a_file_without_the_overrides_it_was_made_with_does_not_fit(tmp_path: Path):
    model = Blocks()
    adapter = attached(model, *OVERRIDES)
    adapter.overrides = ()
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter, AdapterCard())
    with pytest.raises(MismatchError, match="proj_in"):
        attach_file({"unet": Blocks()}, path)


# --- refusals, all before a base is loaded but where its layers decide -------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"layers": "conv", "adapter": {"rnk": 4}}, "knob of lora called 'rnk'"),
        ({"layers": "conv", "adapter": {"rank": 0}}, "rank = 0 will not do"),
        ({"layers": "conv", "adapter": {"method": "dora"}}, "not the method"),
        ({"layers": "conv", "adapter": {"magnitude": True}}, "not the method"),
        ({"component": "text_encoder", "layers": "all"}, "for 'text_encoder', but what learns is unet"),
        ({"component": "unett", "layers": "all"}, "for 'unett'"),
    ],
)
def test_an_override_that_cannot_be_is_refused_before_anything_is_loaded(override: dict[str, object], said: str):
    with pytest.raises(UserInputError, match=said) as caught:
        config(override)
    assert caught.value.fix


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam"])
def test_a_rate_of_its_own_is_refused_where_the_optimizer_finds_the_rate(name: str):
    with pytest.raises(UserInputError, match="finds one learning rate for all layers"):
        config({"layers": "conv", "learning_rate": 1e-5}, name=name, learning_rate=1.0)
    config({"layers": "conv", "adapter": {"rank": 4}}, name=name, learning_rate=1.0)


def test_layers_that_the_base_does_not_have_are_named():
    with pytest.raises(UnknownNameError) as caught:
        attached(Blocks(), LayerOverride(layers="convv", adapter={"rank": 4}))
    assert caught.value.nearest == "conv"


def test_an_override_for_layers_that_do_not_learn_is_refused():
    override = LayerOverride(layers="conv", adapter={"rank": 4})
    with pytest.raises(UserInputError, match="meets no layer that learns"):
        attach({"unet": Blocks()}, make_spec("lora"), {"unet": "linear"}, overrides=[override])


# --- one part of an adapter alone ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, attached(Blocks()), AdapterCard())
    return path


def test_a_part_changes_what_it_names_and_nothing_else(saved: Path):
    model = Blocks()
    digest, bare = base_hash({"unet": model}), model(X)
    attach_file({"unet": model}, saved, part="style")
    style = model.get_submodule(STYLE.removeprefix("unet."))
    assert [name for name, module in model.named_modules() if module._forward_hooks] == [STYLE.removeprefix("unet.")]
    expected = Blocks()
    whole = attach_file({"unet": expected}, saved)
    for name, layer in whole.adapters.items():
        if name != STYLE:
            with torch.no_grad():
                layer.get_parameter("up").zero_()
    assert same_bits(model(X), expected(X)) and not same_bits(model(X), bare)
    assert style._forward_hooks and base_hash({"unet": model}) == digest


def test_the_parts_of_two_files_are_as_one_file_of_both(saved: Path):
    apart, together = Blocks(), Blocks()
    for part in ("content", "style, conv"):
        attach_file({"unet": apart}, saved, part=part)
    attach_file({"unet": together}, saved)
    assert same_bits(apart(X), together(X))


def test_a_part_merges_alone_and_leaves_no_trace(saved: Path):
    model = Blocks()
    digest, before = base_hash({"unet": model}), model.conv_out.weight.clone()
    adapter = attach_file({"unet": model}, saved, part="style")
    adapter.merge()
    assert same_bits(model.conv_out.weight, before) and base_hash({"unet": model}) != digest
    adapter.detach()
    assert base_hash({"unet": model}) == digest


@pytest.mark.parametrize(
    ("part", "said"),
    [("self-attention", "matches no layer"), ("stile", "called 'stile'"), ("style,conv", "meets no layer of this")],
)
def test_a_part_that_the_file_does_not_have_is_refused(tmp_path: Path, part: str, said: str):
    model = Blocks()
    adapter = attach({"unet": model}, make_spec("lora", rank=4), {"unet": "linear"})
    save_adapter(tmp_path / "a.safetensors", adapter, AdapterCard())
    adapter.detach()
    with pytest.raises(UserInputError, match=said):
        attach_file({"unet": model}, tmp_path / "a.safetensors", part=part)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_word_that_only_one_component_knows_is_enough(tmp_path: Path):
    """A text encoder has no style: it is left alone, not an error."""
    encoder = nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.Linear(4, 4)})})
    models = {"unet": Blocks(), "text_encoder": encoder}
    adapter = attach(models, make_spec("lora", rank=2), {"unet": "all", "text_encoder": "all"})
    save_adapter(tmp_path / "a.safetensors", adapter, AdapterCard())
    adapter.detach()
    attach_file(models, tmp_path / "a.safetensors", part="style")
    assert not encoder["mlp"]["fc1"]._forward_hooks
