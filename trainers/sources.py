"""Where a base model comes from: the embedded one, a hub id, a diffusers folder or a single SDXL checkpoint file."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import StableDiffusionXLPipeline
from safetensors import SafetensorError, safe_open
from transformers import CLIPTokenizer

from adapters.errors import FileFormatError, MismatchError, MissingError

EMBEDDED = Path(__file__).parent / "embedded" / "base"
SDXL_LAYOUT = Path(__file__).parent / "sdxl_layout"
VOCABULARY = SDXL_LAYOUT / "bpe_simple_vocab_16e6.txt.gz"
TRAINED_PARTS = ("unet", "text_encoder", "text_encoder_2")
_SINGLE_FILE_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_SINGLE_FILE_SDXL = "conditioner.embedders.1.model.positional_embedding"
_FIX = 'Use "embedded", a hub id (owner/name), a diffusers folder or an SDXL .safetensors file as the base.'


@dataclass(frozen=True)
class Source:
    """A base on this disk: a diffusers folder, or a single checkpoint file and the folder with its layout."""

    path: Path
    layout: Path
    variant: str | None = None

    @property
    def weight_files(self) -> list[Path]:
        """What decides the base's hash: UNet and text encoders (of a single file, everything)."""
        if self.path.is_file():
            return [self.path]
        suffix = f".{self.variant}.safetensors" if self.variant else ".safetensors"
        return [f for part in TRAINED_PARTS for f in sorted((self.path / part).glob(f"*{suffix}"))]


def find_source(name: str) -> Source:
    """Where the base `name` lies, downloaded first if it is a hub id.

    Raises MissingError where nothing is found, MismatchError where it is not SDXL, FileFormatError where it cannot
    be read.
    """
    path = EMBEDDED if name == "embedded" else Path(name).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _single_file(path)
    if path.suffix == ".safetensors" or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise MissingError(f"There is no base model at {name}.", _FIX)
    return _folder(_download(name))


def load_pipeline(source: Source, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """Every component in `dtype`, the VAE in fp32 where fp16 would overflow it."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    dtypes = {"default": dtype, "vae": torch.float32 if dtype == torch.float16 else dtype}
    try:
        if source.path.is_dir():
            return StableDiffusionXLPipeline.from_pretrained(
                source.path, dtype=dtypes, variant=source.variant, local_files_only=True, use_safetensors=True
            )
        return _load_single_file(source, dtypes)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FileFormatError(f"The base {source.path} could not be loaded: {_first_line(error)}", _FIX) from error


def with_schedule(scheduler: Any, prediction_type: str, zero_terminal_snr: bool) -> Any:
    """The scheduler with another prediction type ("auto": its own) and, where asked, pure noise at the end.

    With pure noise at the end the first step must start there: trailing timesteps (arXiv 2305.08891, sec. 3.3).
    """
    changes: dict[str, Any] = {} if prediction_type == "auto" else {"prediction_type": prediction_type}
    if zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return type(scheduler).from_config(scheduler.config, **changes)


def _folder(folder: Path) -> Source:
    index = folder / "model_index.json"
    if not index.is_file():
        raise MissingError(f"The folder {folder} holds no diffusers model (model_index.json is missing).", _FIX)
    try:
        kind = str(json.loads(index.read_text())["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{index} cannot be read.", _FIX) from error
    if not kind.startswith("StableDiffusionXL"):
        raise MismatchError(f"The base {folder} is a {kind}, not Stable Diffusion XL.", "Choose an SDXL base.")
    for variant, suffix in (("fp16", ".fp16.safetensors"), (None, ".safetensors")):
        if all(any((folder / part).glob(f"*{suffix}")) for part in TRAINED_PARTS):
            return Source(folder, folder, variant)
    raise FileFormatError(
        f"The base {folder} lacks .safetensors weights for {', '.join(TRAINED_PARTS)}.",
        "Get the version with safetensors (.bin files can run code when they are opened).",
    )


def _single_file(path: Path) -> Source:
    if path.suffix != ".safetensors":
        raise FileFormatError(
            f"{path.name} is not a .safetensors file; other checkpoints can run code when they are opened.",
            "Convert it to .safetensors, or get the .safetensors version.",
        )
    try:
        return Source(path, _layout_of(path))
    except SafetensorError as error:
        raise FileFormatError(f"{path.name} is damaged or no safetensors file: {error}", "Get it again.") from error


def _load_single_file(source: Source, dtypes: dict[str, torch.dtype]) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(source.path),
        config=str(source.layout),
        dtype=dtypes["default"],
        local_files_only=True,
        tokenizer=_tokenizer(source.layout, "tokenizer", "<|endoftext|>"),
        tokenizer_2=_tokenizer(source.layout, "tokenizer_2", "!"),
    )
    pipeline.vae.to(dtypes["vae"])
    with safe_open(source.path, framework="pt") as file:
        marks = {"v_pred", "ztsnr"} & set(file.keys())  # how v-prediction checkpoints say what they are
    if marks:
        pipeline.scheduler = with_schedule(pipeline.scheduler, "v_prediction", "ztsnr" in marks)
    return pipeline


def _layout_of(path: Path) -> Path:
    """The folder of configurations whose first UNet convolution has this file's shape."""
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        if _SINGLE_FILE_UNET not in keys:
            raise MismatchError(f"{path.name} holds no Stable Diffusion UNet.", "Choose an SDXL checkpoint.")
        if _SINGLE_FILE_SDXL not in keys:
            raise MismatchError(
                f"{path.name} is a Stable Diffusion checkpoint, but not SDXL (its second text encoder is missing).",
                "Choose an SDXL checkpoint.",
            )
        shape = tuple(file.get_slice(_SINGLE_FILE_UNET).get_shape()[:2])
    for layout in (SDXL_LAYOUT, EMBEDDED):
        config = json.loads((layout / "unet" / "config.json").read_text())
        if shape == (config["block_out_channels"][0], config["in_channels"]):
            return layout
    raise MismatchError(
        f"{path.name} has an SDXL-like UNet of unknown size {shape} (an inpainting or refiner model?).",
        "Choose an SDXL base checkpoint, or a diffusers folder.",
    )


def _tokenizer(layout: Path, name: str, pad_token: str) -> CLIPTokenizer:
    if (layout / name).is_dir():
        return CLIPTokenizer.from_pretrained(layout / name)
    return clip_tokenizer(VOCABULARY, pad_token)


def clip_tokenizer(vocabulary: Path, pad_token: str, *, max_length: int = 77, size: int = 49408) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, or its prefix of `size` tokens, from OpenAI's list of merges.

    Rows: 256 bytes, 256 bytes that end a word, the merges in order, <|startoftext|>, <|endoftext|>.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    lines = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : size - 2 * len(letters) - 2 + 1]]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: row for row, token in enumerate(tokens)},
        merges=cast(Any, merges),
        pad_token=pad_token,
        model_max_length=max_length,
    )


def _download(name: str) -> Path:
    """The folder of a hub model, its fp16 variant (half the download) where there is one."""
    failure: Exception | None = None
    for variant in ("fp16", None):
        try:
            return Path(StableDiffusionXLPipeline.download(name, variant=variant))
        except (OSError, ValueError) as error:
            failure = error
    raise MissingError(
        f"The base {name} could not be had from the hub: {_first_line(failure)}",
        "Check the name and the connection (a gated model needs `hf auth login`), or give a local folder or file.",
    ) from failure


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
