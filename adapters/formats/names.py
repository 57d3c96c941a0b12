"""What other programs call SDXL's layers.

kohya's sd-scripts, and with them A1111, Forge, ComfyUI and InvokeAI, go by the names of Stability's own code (sgm).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from adapters.formats.sgm import sgm_names

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}
DIFFUSERS = {
    "unet": "unet.",
    "text_encoder": "text_encoder.text_model.",
    "text_encoder_2": "text_encoder_2.text_model.",
}


def layers_of(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every Linear and Conv2d of a model by our path: text encoders' without the "text_model." that some have."""
    return {path: module for path, module in _by_path(model) if isinstance(module, nn.Linear | nn.Conv2d)}


def _by_path(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm):
            yield path.removeprefix("text_model."), module


def is_norm(model: nn.Module, path: str) -> bool:
    """Whether our path is a norm's."""
    return isinstance(dict(_by_path(model)).get(path), nn.LayerNorm | nn.GroupNorm)


def kohya_names(component: str, model: nn.Module) -> dict[str, str]:
    """Layer's or norm's path → kohya's stem, "lora_unet_input_blocks_4_1_…"; what kohya does not know is left out."""
    paths = [path for path, _ in _by_path(model)]
    if component == "unet":
        return {path: KOHYA["unet"] + name.replace(".", "_") for path, name in sgm_names(paths).items()}
    return {path: KOHYA[component] + path.replace(".", "_") for path in paths if path.startswith("encoder.layers.")}


def diffusers_names(component: str, model: nn.Module) -> dict[str, str]:
    """Layer's path → its stem in a file of diffusers' (PEFT's)."""
    return {path: DIFFUSERS[component] + path for path in layers_of(model)}


def known_modules(components: Mapping[str, nn.Module]) -> dict[str, tuple[str, nn.Module]]:
    """Every stem by which some program names a layer or norm → our name of it, "unet.down_blocks.…", and itself."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for component, model in components.items():
        modules = dict(_by_path(model))
        sgm = sgm_names(modules) if component == "unet" else {}
        for path, module in modules.items():
            for stem in _stems(component, path, sgm.get(path)):
                found.setdefault(stem, (f"{component}.{path}", module))
    return found


def _stems(component: str, path: str, sgm: str | None) -> Iterator[str]:
    flat = path.replace(".", "_")
    if component == "unet":
        if sgm is not None:
            yield from (f"{prefix}_{sgm.replace('.', '_')}" for prefix in ("lora_unet", "oft_unet"))
            yield from (f"diffusion_model.{sgm}", f"model.diffusion_model.{sgm}")
        yield from (f"unet.{path}", f"lora_unet_{flat}", f"base_model.model.{path}", f"lycoris_{flat}", path)
        return
    yield from (f"{KOHYA[component]}{flat}", f"{component}.text_model.{path}", f"{component}.{path}")
    if component == "text_encoder":
        yield f"lora_te_text_model_{flat}"
