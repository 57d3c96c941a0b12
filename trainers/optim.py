"""Optimizers and learning-rate schedules by name; none is written here.

A name is looked up in torch.optim, prodigyopt, pytorch-optimizer and bitsandbytes, in that order.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adapters.errors import MissingError, UnknownNameError, UserInputError
from trainers.rules import NONE, RULES, known_rule

_SOURCES = ("torch.optim", "prodigyopt", "pytorch_optimizer", "bitsandbytes.optim")
_OPTIONAL = {"prodigyopt", "pytorch_optimizer", "bitsandbytes.optim"}
_ELEMENTWISE = {
    *("adam", "adamw", "adamax", "nadam", "radam", "adagrad", "adadelta", "rmsprop", "rprop", "sgd", "asgd"),
    *("lion", "prodigy", "schedulefreeadamw", "schedulefreesgd", "adabelief", "adan"),
}
"""Optimizers by name, in small letters, that treat each number by itself (or all of them together, as Prodigy does)."""
Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


class OptimConfig(BaseModel):
    """Optimizer, learning rates and their schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(
        default="AdamW", description="a class of torch.optim, prodigyopt, pytorch-optimizer or bitsandbytes"
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="learning rate of the UNet's adapter")
    text_encoder_learning_rate: float | None = Field(
        default=None, gt=0, description="learning rate of the first text encoder; left out: half the UNet's"
    )
    text_encoder_2_learning_rate: float | None = Field(
        default=None, gt=0, description="learning rate of the second text encoder; left out: the first one's"
    )
    weight_decay: float = Field(default=0.01, ge=0, description="weight decay, where the optimizer has it")
    schedule: Schedule = Field(default="constant", description="learning-rate schedule")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradient norm is clipped to this; 0: no clipping")
    rule: Annotated[str, AfterValidator(known_rule)] = Field(
        default=NONE, description="what is done to factors' gradients and rates: none, lora+, lora-fa or lora-pro"
    )
    rule_ratio: float = Field(
        default=16.0, gt=0, description="lora+: how many times faster the up factors learn than the others"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of the optimizer's class")

    @property
    def finds_its_rate(self) -> bool:
        """Prodigy and D-Adaptation estimate one rate for all groups; a learning rate only multiplies it."""
        return self.name.lower().startswith(("prodigy", "dadapt"))

    @model_validator(mode="after")
    def _one_rate_where_it_is_found(self) -> OptimConfig:
        own = {self.text_encoder_learning_rate, self.text_encoder_2_learning_rate} - {None, self.learning_rate}
        if self.finds_its_rate and own:
            raise ValueError(f"{self.name} finds one learning rate for all parts: leave the text encoders' out")
        if self.finds_its_rate and RULES[self.rule].sets_rates:
            raise ValueError(f"{self.name} finds one learning rate for all factors: leave rule={self.rule} out")
        return self

    @property
    def depends_on_steps(self) -> bool:
        """Whether the learning rate at a step depends on how many steps there are in all."""
        return self.schedule not in ("constant", "constant_with_warmup")

    def rate_for(self, component: str) -> float:
        """Base learning rate of "unet", "text_encoder" or "text_encoder_2"."""
        if self.finds_its_rate:
            return self.learning_rate
        first = self.text_encoder_learning_rate or self.learning_rate / 2
        rates = {"unet": self.learning_rate, "text_encoder": first}
        return rates.get(component, self.text_encoder_2_learning_rate or first)


def _candidates(module_name: str) -> Iterator[tuple[str, type[Optimizer]]]:
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        if module_name not in _OPTIONAL:
            raise
        return
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer:
            yield name, value


def find_optimizer(name: str) -> type[Optimizer]:
    """The optimizer class of that name, in whatever case it is written."""
    known: list[str] = []
    for source in _SOURCES:
        for candidate, value in _candidates(source):
            if candidate.lower() == name.lower():
                return value
            known.append(candidate)
    if name.lower().endswith("8bit"):
        raise MissingError(
            f"The optimizer {name} comes with bitsandbytes, which is not installed.",
            'Install it (pip install "spectral-studio[optimizers]") or choose AdamW.',
        )
    raise UnknownNameError("optimizer", name, known)


def is_elementwise(name: str) -> bool:
    """Whether the update of a number depends on that number's history alone: tensors may then be stacked."""
    return name.lower() in _ELEMENTWISE


def is_capturable(name: str) -> bool:
    """Whether torch's implementation can keep all its state on the device (a recorded step needs that)."""
    return "capturable" in inspect.signature(find_optimizer(name).__init__).parameters


class Rates:
    """Learning rates: floats on the host for schedules and reports, tensors on the device for a recorded step."""

    def __init__(self, optimizer: Optimizer, *, on_device: bool) -> None:
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._optimizer = optimizer
        self.host = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(()))], "lr": rate} for rate in rates])
        device = optimizer.param_groups[0]["params"][0].device
        self._tensors = [torch.tensor(rate, device=device) for rate in rates] if on_device else None
        self._applied: list[float] = []
        self.apply()

    def apply(self) -> None:
        """Makes the host's rates those of the next update."""
        rates = [float(group["lr"]) for group in self.host.param_groups]
        for n, (group, rate) in enumerate(zip(self._optimizer.param_groups, rates, strict=True)):
            if self._tensors is None:
                group["lr"] = rate
                continue
            group["lr"] = self._tensors[n]
            if not self._applied or self._applied[n] != rate:
                self._tensors[n].fill_(rate)
        self._applied = rates

    def advance(self, schedule: LRScheduler) -> None:
        """After an update: the schedule's next rates."""
        self.host.step()  # has nothing to update, but schedules warn where an optimizer is never stepped
        schedule.step()
        self.apply()

    def restored(self) -> None:
        """After a checkpoint's groups were loaded into the optimizer: their rates are the host's."""
        for mine, group in zip(self.host.param_groups, self._optimizer.param_groups, strict=True):
            mine["lr"] = float(group["lr"])
        self._applied = []
        self.apply()


def build_optimizer(config: OptimConfig, groups: list[dict[str, Any]], *, capturable: bool = False) -> Optimizer:
    """The optimizer over parameter groups; unknown options are refused by name."""
    optimizer = find_optimizer(config.name)
    accepted = inspect.signature(optimizer.__init__).parameters
    options = dict(config.options)
    for option in options:
        if option not in accepted:
            raise UnknownNameError(f"option of {optimizer.__name__}", option, list(accepted))
    if "weight_decay" in accepted:
        options.setdefault("weight_decay", config.weight_decay)
    if _needs_closure(optimizer):
        raise UserInputError(
            f"{optimizer.__name__} evaluates the loss several times a step, which this trainer does not do.",
            "Choose another optimizer, such as AdamW or Prodigy.",
        )
    if capturable and "capturable" in accepted:
        options.setdefault("capturable", True)
    if "fused" in accepted and not {"foreach", "differentiable"} & set(options):
        options.setdefault("fused", True)
    make = cast(Any, optimizer)
    try:
        return make(groups, lr=config.learning_rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserInputError(
            f"{optimizer.__name__} refused its options: {error}", "Check --set optim.options.…"
        ) from error


def _needs_closure(optimizer: type[Optimizer]) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def rate_warning(config: OptimConfig) -> str | None:
    """A sentence where an optimizer that finds its own rate is given a rate that stops it."""
    if not config.finds_its_rate or config.learning_rate >= 0.1:
        return None
    return (
        f"{config.name} finds its learning rate itself and multiplies it by {config.learning_rate:g}; "
        "use --set optim.learning_rate=1.0 with it."
    )


def build_schedule(config: OptimConfig, optimizer: Optimizer, steps: int) -> LRScheduler:
    """diffusers' schedule of that name over `steps` optimizer steps."""
    from diffusers.optimization import get_scheduler

    return get_scheduler(config.schedule, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps)


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clip in place (0: only measure) and return the total norm before clipping, a scalar left on the device."""
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))
