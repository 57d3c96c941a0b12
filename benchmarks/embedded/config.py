"""The embedded base's networks: every size that the recipe, the weights and the tests rely on."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PICTURE = 128
LATENT_CHANNELS = 16
LATENT_SIDE = 16
CONTEXT = 40
VOCABULARY = 8192
START_TOKEN, END_TOKEN = VOCABULARY - 2, VOCABULARY - 1
PAD_TOKEN_1, PAD_TOKEN_2 = END_TOKEN, 0  # SDXL pads its second tokenizer with "!", which is id 0
TEXT_WIDTH_1, TEXT_WIDTH_2 = 128, 192
TRAIN_TIMESTEPS = 1000


def build_vae() -> AutoencoderKL:
    """The autoencoder: 3×128×128 in −1…1 to 16×16×16.

    Groups of 4 channels or more: with one channel a group, GroupNorm would forget a plain background's colour.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=PICTURE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """The denoiser: SDXL's block plan and text_time conditioning at 64/128/192 channels."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH_1 + TEXT_WIDTH_2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 6),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=TEXT_WIDTH_2 + 6 * 32,
        norm_num_groups=32,
    )


def _text_config(width: int, layers: int, pad: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        projection_dim=width,
        max_position_embeddings=CONTEXT,
        hidden_act=act,
        bos_token_id=START_TOKEN,
        eos_token_id=END_TOKEN,
        pad_token_id=pad,
    )


def build_text_encoders() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Both text encoders; SDXL reads hidden_states[-2] of each and the second one's pooled projection."""
    first = CLIPTextModel(_text_config(TEXT_WIDTH_1, 3, PAD_TOKEN_1, "quick_gelu"))
    second = CLIPTextModelWithProjection(_text_config(TEXT_WIDTH_2, 4, PAD_TOKEN_2, "gelu"))
    return first, second


def build_scheduler() -> EulerDiscreteScheduler:
    """SDXL's own noise schedule and sampler."""
    return EulerDiscreteScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        interpolation_type="linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


def _byte_symbols() -> list[str]:
    """CLIP's 256 byte symbols in the order of its vocabulary (printable bytes first)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The first VOCABULARY tokens that CLIP's published merges make, and those merges (from open_clip_torch)."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise RuntimeError("open_clip_torch carries CLIP's merges: pip install open_clip_torch")
    with gzip.open(Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz") as file:
        lines = file.read().decode().splitlines()
    symbols = _byte_symbols()
    pairs = [tuple(line.split()) for line in lines[1 : 1 + VOCABULARY - 2 * len(symbols) - 2]]
    merges = [(left, right) for left, right in pairs]
    tokens = symbols + [s + "</w>" for s in symbols] + [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, merges


def build_tokenizers() -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Two CLIPTokenizers of one vocabulary; they differ only in the padding token, as SDXL's do."""
    vocabulary, merges = clip_vocabulary()
    first = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)
    second = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT, pad_token="!")
    return first, second
