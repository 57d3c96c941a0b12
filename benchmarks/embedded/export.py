"""Writes the trained networks as a StableDiffusionXLPipeline folder in fp16 safetensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load, save
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.embedded.config import build_scheduler, build_text_encoders, build_tokenizers, build_unet, build_vae

PIECE = 2**24 - 2**16  # bytes: what a device machine sends back in one file is limited


def assemble(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    text_encoder_2: CLIPTextModelWithProjection,
    tokenizer_folder: Path | None = None,
) -> StableDiffusionXLPipeline:
    """The stock pipeline around the four networks; the tokenizers come from a folder or from open_clip_torch."""
    if tokenizer_folder is None:
        tokenizer, tokenizer_2 = build_tokenizers()
    else:
        tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder / "tokenizer")
        tokenizer_2 = CLIPTokenizer.from_pretrained(tokenizer_folder / "tokenizer_2")
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_base(pipe: StableDiffusionXLPipeline, folder: Path) -> int:
    """Writes the folder in fp16; returns the bytes of all weights."""
    pipe.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2"):
        # transformers loads in the type that config.json names, diffusers in fp32: name fp32, so that a plain
        # from_pretrained gives networks of one type.
        path = folder / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def random_base(folder: Path, seed: int = 0) -> int:
    """A base of random weights in the final configuration, to develop on; returns the bytes of all weights."""
    torch.manual_seed(seed)
    return save_base(assemble(build_vae(), build_unet(), *build_text_encoders()), folder)


PIECE = 2**24 - 2**16


def pack(parts: dict[str, nn.Module], folder: Path) -> None:
    """Writes all networks as one fp16 safetensors file, cut into pieces that a device machine can send back."""
    tensors = {
        f"{name}/{key}": value.detach()
        .to("cpu", torch.float16 if value.is_floating_point() else value.dtype)
        .contiguous()
        for name, module in parts.items()
        for key, value in module.state_dict().items()
    }
    content = save(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    for number, begin in enumerate(range(0, len(content), PIECE)):
        (folder / f"base.part{number}").write_bytes(content[begin : begin + PIECE])


def unpack(parts: dict[str, nn.Module], folder: Path) -> None:
    """Loads what `pack` wrote. transformers moved CLIPTextModel's layers out of `text_model.`: both names load."""
    pieces = sorted(folder.glob("base.part*"))
    tensors = load(b"".join(piece.read_bytes() for piece in pieces))
    for name, module in parts.items():
        state = {key.removeprefix(f"{name}/"): t.float() for key, t in tensors.items() if key.startswith(f"{name}/")}
        if not state:
            continue  # an earlier slice may hand on the autoencoder alone
        wanted = set(module.state_dict())
        renamed: dict[str, torch.Tensor] = {}
        for key, tensor in state.items():
            choices = (key, key.removeprefix("text_model."), f"text_model.{key}")
            renamed[next(choice for choice in choices if choice in wanted)] = tensor
        module.load_state_dict(renamed)


def main() -> None:
    """`python -m benchmarks.embedded.export PIECES FOLDER`: from a run's pieces to the shipped folder."""
    pieces, folder = Path(sys.argv[1]), Path(sys.argv[2])
    vae, unet, (text_1, text_2) = build_vae(), build_unet(), build_text_encoders()
    unpack({"vae": vae, "unet": unet, "text_1": text_1, "text_2": text_2}, pieces)
    print("bytes of weights:", save_base(assemble(vae, unet, text_1, text_2), folder))


if __name__ == "__main__":
    main()
