"""The one face of Linear and Conv2d, and the choice of layers by name."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from adapters.errors import UnknownNameError, UserInputError
from adapters.inject import attach
from adapters.registry import make_spec
from adapters.sites import Site, make_site
from adapters.targets import select_sites
from tests.tolerances import FP64, relative_error

LAYERS = {
    "linear": (lambda: nn.Linear(6, 8), (2, 3, 6)),
    "conv": (lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "oblong kernel": (lambda: nn.Conv2d(4, 8, (3, 1), padding=(1, 0)), (2, 4, 5, 5)),
    "same padding": (lambda: nn.Conv2d(4, 8, (5, 3), padding="same"), (2, 4, 6, 6)),
    "valid padding": (lambda: nn.Conv2d(4, 8, 3, padding="valid", padding_mode="reflect"), (2, 4, 6, 6)),
    "same circular": (lambda: nn.Conv2d(4, 8, (4, 3), padding="same", padding_mode="circular"), (2, 4, 6, 6)),
    "reflect": (lambda: nn.Conv2d(4, 8, 3, padding=(2, 1), padding_mode="reflect"), (2, 4, 6, 6)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2, dilation=2), (2, 4, 6, 6)),
    "not batched": (lambda: nn.Conv2d(4, 8, 3), (4, 6, 6)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def site_and_input(name: str) -> tuple[Site, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    site = make_site(name, make().double())
    assert site is not None
    return site, torch.randn(shape).double()


@every_layer
def test_down_with_the_base_weight_is_the_base_layer_without_its_bias(name: str):
    site, x = site_and_input(name)
    assert site.bias is not None
    expected = site.module(x) - site.per_output(site.bias)
    assert relative_error(site.apply_down(x, site.matricise(site.weight)), expected) < FP64


@every_layer
def test_down_then_up_is_the_layer_of_their_product(name: str):
    site, x = site_and_input(name)
    down, up = torch.randn(4, site.columns).double(), torch.randn(site.rows, 4 // site.groups).double()
    expected = site.apply_down(x, site.product(up, down))
    assert relative_error(site.apply_up(site.apply_down(x, down), up), expected) < FP64


@every_layer
def test_project_is_the_weight_times_the_factor_within_each_group(name: str):
    site, _ = site_and_input(name)
    down = torch.randn(4, site.columns).double()
    whole = site.matricise(site.weight) @ down.mT
    rows, ranks = site.rows // site.groups, 4 // site.groups
    blocks = [whole[g * rows : (g + 1) * rows, g * ranks : (g + 1) * ranks] for g in range(site.groups)]
    assert relative_error(site.project(down), torch.cat(blocks)) < FP64


@every_layer
def test_matricising_shares_memory_and_turns_back(name: str):
    site, _ = site_and_input(name)
    matrix = site.matricise(site.weight)
    assert matrix.data_ptr() == site.weight.data_ptr()
    assert torch.equal(site.as_weight(matrix), site.weight)


# --- the choice of layers ----------------------------------------------------------------------------------------


def unet(
    channels: tuple[int, ...], layers: tuple[int, ...], heads: tuple[int, ...], context: int
) -> UNet2DConditionModel:
    """SDXL's architecture in any size, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=channels,
            transformer_layers_per_block=layers,
            attention_head_dim=heads,
            cross_attention_dim=context,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=1280 + 6 * 256,
            use_linear_projection=True,
        )


@pytest.fixture(scope="module")
def small() -> UNet2DConditionModel:
    return unet((32, 32, 64), (1, 1, 1), (2, 2, 4), 48)


@pytest.fixture(scope="module")
def sdxl() -> dict[str, nn.Module]:
    clip_l = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    big_g = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
    )
    with torch.device("meta"):
        encoders = {"text_encoder": CLIPTextModel(clip_l), "text_encoder_2": CLIPTextModelWithProjection(big_g)}
    return {"unet": unet((320, 640, 1280), (1, 2, 10), (5, 10, 20), 2048), **encoders}


def paths(model: nn.Module, target: str) -> list[str]:
    return [site.name.removeprefix("unet.") for site in select_sites(model, "unet", target)]


@pytest.mark.parametrize(
    ("target", "count"),
    [("linear", 743), ("attention", 560), ("self-attention", 280), ("cross-attention", 280), ("feed-forward", 140),
     ("conv", 51), ("all", 794), ("time-embedding", 19), ("add-embedding", 2), ("resnet", 62),
     ("down", 270), ("down.0", 7), ("down.1", 52), ("down.2", 211), ("mid", 108), ("up", 410), ("up.0", 319),
     ("up.1", 79), ("up.2", 12), ("content", 102), ("style", 102), ("cross-attention&up.0", 120),
     ("content & attention, style&attention", 160), ("feed-forward&mid", 20), ("conv&up&resnet", 27)],
)  # fmt: skip
def test_sdxls_unet_has_the_layers_of_the_inventory(sdxl: dict[str, nn.Module], target: str, count: int):
    assert len(select_sites(sdxl["unet"], "unet", target)) == count


@pytest.mark.parametrize(
    ("component", "target", "total"),
    [
        ("unet", "attention", 5_806_080),
        ("unet", "linear", 10_824_704),
        ("text_encoder", "attention", 294_912),
        ("text_encoder", "linear", 663_552),
        ("text_encoder_2", "attention", 1_310_720),
        ("text_encoder_2", "linear,text_projection", 2_959_360),
    ],
)
def test_rank_4_on_sdxl_has_the_published_number_of_parameters(
    sdxl: dict[str, nn.Module], component: str, target: str, total: int
):
    adapter_set = attach(sdxl, make_spec("lora", rank=4), {component: target})
    assert adapter_set.num_parameters() == total
    adapter_set.detach()


def test_rank_4_on_sdxls_3x3_convolutions_has_the_published_number_of_parameters(sdxl: dict[str, nn.Module]):
    sites = [site for site in select_sites(sdxl["unet"], "unet", "conv") if site.module.kernel_size == (3, 3)]
    assert len(sites) == 40
    assert sum(4 * (site.columns + site.rows) for site in sites) == 1_436_320


def test_blocks_are_chosen_by_their_number(small: UNet2DConditionModel):
    assert set(paths(small, "down.1")) == {p for p in paths(small, "all") if p.startswith("down_blocks.1.")}
    assert set(paths(small, "mid")) == {p for p in paths(small, "all") if p.startswith("mid_block.")}
    assert len(paths(small, "down")) == sum(len(paths(small, f"down.{i}")) for i in range(3))


@pytest.mark.parametrize(
    ("component", "target", "count"),
    [("text_encoder", "attention", 48), ("text_encoder", "self-attention", 48), ("text_encoder", "feed-forward", 24),
     ("text_encoder", "linear", 72), ("text_encoder", "all", 72), ("text_encoder_2", "attention", 128),
     ("text_encoder_2", "self-attention", 128), ("text_encoder_2", "feed-forward", 64), ("text_encoder_2", "all", 192)],
)  # fmt: skip
def test_sdxls_text_encoders_have_the_layers_of_the_inventory(
    sdxl: dict[str, nn.Module], component: str, target: str, count: int
):
    assert len(select_sites(sdxl[component], component, target)) == count


def test_every_layer_of_the_unet_is_in_a_block_or_at_an_end_of_it(sdxl: dict[str, nn.Module]):
    blocks = paths(sdxl["unet"], "down, mid, up, time-embedding, add-embedding")
    assert set(paths(sdxl["unet"], "all")) - set(blocks) == {"conv_in", "conv_out"}


def test_b_loras_halves_are_the_first_two_transformers_of_the_first_up_block(sdxl: dict[str, nn.Module]):
    for word, number in (("content", 0), ("style", 1)):
        whole = paths(sdxl["unet"], f"up_blocks.0.attentions.{number}.*")
        assert paths(sdxl["unet"], word) == whole
        assert len(paths(sdxl["unet"], f"{word}&attention")) == 80


def test_an_ampersand_takes_what_is_in_both(small: UNet2DConditionModel):
    both = [path for path in paths(small, "cross-attention") if path.startswith("up_blocks.0.")]
    assert paths(small, "cross-attention&up.0") == paths(small, " up.0 & cross-attention ") == both != []
    assert paths(small, "*.to_q&mid&self-attention") == ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert set(paths(small, "conv&down.0, conv_in")) == {*paths(small, "conv&down.0"), "conv_in"}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("conv&feed-forward", "No layer of unet is in conv and in feed-forward at once"),
        ("conv&", "lacks a name beside its &"),
        ("&", "lacks a name beside its &"),
        ("conv&upp", "called 'upp'"),
        ("conv&up.7", "'up.7'"),
    ],
)
def test_an_intersection_that_is_empty_or_misspelt_is_refused(small: UNet2DConditionModel, target: str, said: str):
    with pytest.raises(UserInputError) as caught:
        select_sites(small, "unet", target)
    assert said in caught.value.what


def test_a_list_of_targets_is_their_union_in_the_models_order(small: UNet2DConditionModel):
    wanted = {*paths(small, "up"), *paths(small, "self-attention"), *paths(small, "mid")}
    assert paths(small, "up, self-attention,mid") == [path for path in paths(small, "all") if path in wanted]


def test_patterns_match_whole_module_paths(small: UNet2DConditionModel):
    found = paths(small, "down_blocks.*.to_q")
    assert found and all(p.startswith("down_blocks.") and p.endswith(".to_q") for p in found)
    assert paths(small, "conv_in") == ["conv_in"]


def test_text_encoders_are_named_alike_whatever_level_transformers_puts_them_on(sdxl: dict[str, nn.Module]):
    for component in ("text_encoder", "text_encoder_2"):
        first = select_sites(sdxl[component], component, "attention")[0]
        assert first.name.startswith(f"{component}.encoder.layers.0.self_attn.")
    assert select_sites(sdxl["text_encoder_2"], "te", "text_model.encoder.layers.3.mlp.fc1")


def test_the_text_projection_is_in_no_group(sdxl: dict[str, nn.Module]):
    assert len(select_sites(sdxl["text_encoder_2"], "text_encoder_2", "all")) == 192


@pytest.mark.parametrize(("word", "near"), [("atention", "attention"), ("conv_inn", "conv_in"), ("Linear", "linear")])
def test_an_unknown_target_names_the_nearest(small: UNet2DConditionModel, word: str, near: str):
    with pytest.raises(UnknownNameError) as caught:
        select_sites(small, "unet", f"linear,{word}")
    assert caught.value.nearest == near


@pytest.mark.parametrize("word", ["down_blocks.*.to_z", "down.7", "cross-attentions.*"])
def test_a_pattern_that_matches_nothing_is_named(small: UNet2DConditionModel, word: str):
    with pytest.raises(UserInputError) as caught:
        select_sites(small, "unet", word)
    assert word in caught.value.what


def test_a_group_that_a_text_encoder_lacks_is_refused(sdxl: dict[str, nn.Module]):
    with pytest.raises(UserInputError, match=r"conv.* matches no layer of text_encoder"):
        select_sites(sdxl["text_encoder"], "text_encoder", "conv")


@pytest.mark.parametrize("target", ["", " , "])
def test_an_empty_target_is_refused(small: UNet2DConditionModel, target: str):
    with pytest.raises(UserInputError, match="No layers were chosen"):
        select_sites(small, "unet", target)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "grouped"])
def test_patches_times_the_matrix_are_the_layers_output(name: str):
    site, x = site_and_input(name)
    patches = site.patches(x).flatten(-3) if site.kind == "conv" else site.patches(x)
    expected = site.apply_weight(x)
    found = patches @ site.matricise(site.weight).mT
    assert relative_error(found.movedim(-1, -3) if site.kind == "conv" else found, expected) < FP64
