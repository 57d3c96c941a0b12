"""What a job is asked to do: one model a kind, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainRequest(_Request):
    """Teach a subject."""

    kind: Literal["train"] = "train"
    config: dict[str, Any]
    """A validated trainers.config.TrainConfig, dumped as JSON; its paths are absolute."""
    resume: bool = False
    """Whether the first attempt, too, goes on from a checkpoint that lies in the folder."""

    @property
    def base(self) -> str:
        return str(self.config["base"])

    @property
    def what(self) -> str:
        return str(self.config["adapter"]["method"])


class Use(_Request):
    """An adapter and how strongly it acts."""

    adapter: str
    """lib:ID of the library, or an absolute path."""
    strength: float = Field(default=1.0, allow_inf_nan=False)
    part: str | None = None
    """The layers that it is kept to (`studio sample --part`)."""


class Drawing(_Request):
    """One picture."""

    prompt: str
    seed: int = Field(ge=0, lt=2**63)
    uses: tuple[Use, ...] = ()


class SampleRequest(_Request):
    """Draw pictures, each by adapters of its own; `size` is width, height in pixels (None: the base's own)."""

    kind: Literal["sample"] = "sample"
    base: str
    drawings: tuple[Drawing, ...] = Field(min_length=1, max_length=1000)
    negative: str = ""
    size: tuple[int, int] | None = None
    steps: int = Field(default=25, ge=1, le=1000)
    guidance: float = Field(default=5.0, ge=0, le=100)
    scheduler: str = "euler"
    regions: tuple[str, ...] = ()
    """As `studio sample --region` takes them."""
    scored: bool = Field(default=False, exclude_if=lambda scored: not scored)  # keys stay what they were
    """Whether each picture is then compared with its subject's training pictures (studio.scores)."""

    @property
    def what(self) -> str:
        return f"{len(self.drawings)} picture{'s' if len(self.drawings) > 1 else ''}"


class FuseRequest(_Request):
    """Make one adapter of several."""

    kind: Literal["fuse"] = "fuse"
    base: str
    adapters: tuple[str, ...] = Field(min_length=1, max_length=100)
    """Each lib:ID of the library, or an absolute path."""
    how: str
    weights: tuple[float, ...] = ()
    options: dict[str, Any] = {}
    """Knobs of the ways (adapters.fusion.way.FusionOptions)."""

    @property
    def what(self) -> str:
        return f"fused by {self.how}"


JobRequest = Annotated[TrainRequest | SampleRequest | FuseRequest, Field(discriminator="kind")]
