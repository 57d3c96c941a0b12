"""The whole configuration of a training run, composed of the parts that live beside their owners."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from adapters.adapter_set import LayerOverride
from adapters.base import AdapterSpec
from adapters.errors import UserInputError
from adapters.inject import overridden_spec
from adapters.registry import layer_type, make_spec, parse_spec
from trainers.dataset import DataConfig
from trainers.fast.attention import Backend
from trainers.objective import ObjectiveConfig
from trainers.optim import OptimConfig
from trainers.rules import RULES

_SHOWN = (
    *("capture", "attention", "sample", "tracking"),
    *("save_every", "keep_checkpoints", "validate_every", "validation_levels"),
)
"""Fields that decide how a run is computed, shown or kept, not what it learns."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Tracker = Literal[
    "auto", "none", "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "clearml", "swanlab", "aim", "dvclive"
]


class TargetConfig(BaseModel):
    """Which layers learn: named groups or name patterns, comma separated; "none" leaves a part alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    unet: str = Field(
        default="attention", description="UNet layers: attention, linear, all (linear + conv), or patterns"
    )
    text_encoder: str = Field(default="none", description="layers of the first text encoder (CLIP-L)")
    text_encoder_2: str = Field(default="none", description="layers of the second text encoder (OpenCLIP bigG)")
    overrides: tuple[LayerOverride, ...] = Field(
        default=(),
        description="other knobs or learning rates for some of these layers; a later one wins",
    )

    @model_validator(mode="after")
    def _something_learns(self) -> TargetConfig:
        if not self.chosen():
            raise ValueError("nothing would learn: name layers of unet, text_encoder or text_encoder_2")
        return self

    def chosen(self) -> dict[str, str]:
        """Component name → target, without the parts that stay frozen."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: target for name, target in parts.items() if target != "none"}

    @property
    def text_encoders_train(self) -> bool:
        return self.text_encoder != "none" or self.text_encoder_2 != "none"


class PriorConfig(BaseModel):
    """Prior preservation (DreamBooth, arXiv 2208.12242, eq. 2): pictures of the class keep the class as it was."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    weight: float = Field(
        default=0.0, ge=0, description="weight of the class pictures' loss; 0 turns prior preservation off"
    )
    pictures: int = Field(default=24, ge=1, description="class pictures wanted; the base makes those that are missing")
    folder: str | None = Field(default=None, description="folder of class pictures of your own")
    prompt: str | None = Field(
        default=None,
        description="prompt of the class pictures ({class} is filled in); left out: the captions' template",
    )


class SampleConfig(BaseModel):
    """Pictures made while it trains, always from the same noise, so that they compare."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    every: int = Field(default=0, ge=0, description="sample pictures every so many steps; 0: only at the end")
    prompts: tuple[str, ...] = Field(default=(), description="sample prompts ({trigger} and {class} are filled in)")
    inference_steps: int = Field(default=25, ge=1, description="denoising steps of a sample")
    guidance: float = Field(default=5.0, ge=0, description="classifier-free guidance scale of a sample")
    batch_size: int = Field(default=4, ge=1, description="pictures drawn at once, samples and class pictures")
    count: int = Field(default=4, ge=0, description="pictures at the end when no prompts are given; 0: none")


class TrackingConfig(BaseModel):
    """Which services are told of a run (studio.tracking); their keys and addresses are not our affair."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    to: tuple[Tracker, ...] = Field(
        default=("auto",),
        description="who is told numbers and sample pictures; auto: TensorBoard where it is installed",
    )
    project: str = Field(default="spectral-studio", description="the project that services put the run under")


class TrainConfig(BaseModel):
    """Everything that decides what a run computes. Same config, base, pictures and seed: the same adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: str = Field(default="embedded", description="embedded, a hub id, a diffusers folder or a .safetensors file")
    data: DataConfig
    prior: PriorConfig = Field(default_factory=PriorConfig)
    adapter: SerializeAsAny[AdapterSpec] = Field(default_factory=lambda: make_spec("lora"))
    targets: TargetConfig = Field(default_factory=TargetConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    sample: SampleConfig = Field(default_factory=SampleConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    steps: int = Field(default=500, ge=1, description="optimizer steps")
    batch_size: int = Field(
        default=1, ge=1, description="pictures in one pass of all processes together (class pictures come on top)"
    )
    gradient_accumulation: int = Field(default=1, ge=1, description="forward passes summed into one optimizer step")
    gradient_checkpointing: bool = Field(default=False, description="less memory, about a third more time")
    capture: Literal["auto", "off"] = Field(
        default="auto", description="auto: a step on a GPU is recorded once (CUDA graph) and replayed"
    )
    attention: Backend = Field(default="sdpa", description="who computes attention: sdpa, flash, cudnn or xformers")
    quantization: Literal["none", "nf4", "int8", "fp8"] = Field(
        default="none", description="the UNet's frozen weights in fewer bits: nf4 and int8 (bitsandbytes), fp8"
    )
    vae_tiling: bool = Field(default=False, description="pictures pass the VAE in tiles: less memory, a bit slower")
    precision: Precision = Field(default="auto", description="auto: bf16 or fp16 on a GPU, fp32 on a CPU")
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="moving average of the adapter that is saved; 0: off")
    seed: int = Field(default=0, ge=0, description="decides noise, order, crops and the adapter's start")
    save_every: int = Field(default=100, ge=0, description="checkpoint every so many steps; 0: only at the end")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints kept")
    validate_every: int = Field(default=0, ge=0, description="validation loss every so many steps; 0: start and end")
    validation_levels: int = Field(default=4, ge=0, description="timesteps of the validation loss; 0: no validation")

    @field_validator("adapter", mode="before")
    @classmethod
    def _adapter_by_method(cls, value: Any) -> Any:
        return parse_spec(value) if isinstance(value, dict) else value  # pyright: ignore[reportUnknownArgumentType]

    @model_validator(mode="after")
    def _parts_fit_together(self) -> TrainConfig:
        """What can be refused before a base is loaded."""
        RULES[self.optim.rule].check(self.adapter)
        if getattr(self.adapter, "init", None) == "loftq" and self.quantization == "none":
            raise UserInputError(
                "loftq starts at what quantisation lost, and the base is not quantised.",
                "Choose quantization=nf4 (or int8, fp8), or another adapter.init.",
            )
        learning = list(self.targets.chosen())
        for override in self.targets.overrides:
            if override.component not in learning:
                raise UserInputError(
                    f"An override is for {override.component!r}, but what learns is {' and '.join(learning)}.",
                    f"Set targets.{override.component}, too, or correct the override's component."
                    if override.component in TargetConfig.model_fields
                    else "An override's component is unet, text_encoder or text_encoder_2.",
                )
            overridden_spec(self.adapter, override)
            if override.learning_rate is not None and self.optim.finds_its_rate:
                raise UserInputError(
                    f"{self.optim.name} finds one learning rate for all layers.",
                    f"Leave learning_rate out of the override for {override.layers!r}.",
                )
        return self

    def decisive(self) -> dict[str, Any]:
        """What a resume must find unchanged: all but where pictures lie and how often things are saved or shown."""
        whole = self.model_dump(mode="json")
        for name in _SHOWN:
            del whole[name]
        del whole["data"]["folder"], whole["prior"]["folder"]
        if not (self.optim.depends_on_steps or layer_type(self.adapter).depends_on_steps):
            del whole["steps"]
        return whole

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.decisive(), sort_keys=True).encode()).hexdigest()
