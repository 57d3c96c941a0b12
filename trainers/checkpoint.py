"""Everything a run needs to go on as if it had never stopped, in one safetensors file, written atomically.

Tensors: adapter/…, optimizer/<parameter>/<name>, average/<n>. The header's JSON holds the rest: the step, what the run
must find unchanged, and the optimizer's, schedule's and scaler's plain numbers. No pickle.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapters.atomic import atomic_path
from adapters.errors import FileFormatError, MismatchError
from trainers.dataset import describe_change
from trainers.engine import Engine

Plain = dict[str, Any]


class RunIdentity(BaseModel):
    """What must be the same for a resume to mean anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: str
    base_hash: str
    config: Plain
    pictures: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    identity: RunIdentity
    plain: Plain
    tensors: dict[str, Tensor]


def checkpoint_path(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:06d}.safetensors"


def save_checkpoint(out: Path, step: int, engine: Engine, identity: RunIdentity, keep: int) -> Path:
    """Write step `step` and delete all but the newest `keep` checkpoints."""
    tensors, plain = _pack(engine)
    header = {"step": str(step), "identity": identity.model_dump_json(), "plain": json.dumps(plain)}
    path = checkpoint_path(out, step)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, header)
    for old in _all(out)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(path.stem.removeprefix("step-"))


def newest(out: Path) -> Path | None:
    """The newest checkpoint file of a run, if there is one."""
    return next(reversed(_all(out)), None)


def _all(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("step-*.safetensors"))


def load_latest(out: Path) -> Checkpoint | None:
    """The newest checkpoint of a run's folder; None where there is none."""
    paths = _all(out)
    if not paths:
        return None
    try:
        with safe_open(paths[-1], framework="pt") as file:
            header = cast("dict[str, str]", file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        identity = RunIdentity.model_validate_json(header["identity"])
        return Checkpoint(paths[-1], int(header["step"]), identity, json.loads(header["plain"]), tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise FileFormatError(
            f"The checkpoint {paths[-1]} cannot be read: {error}",
            "Delete it: the run then goes on from the checkpoint before it.",
        ) from error


def check_identity(found: Checkpoint, wanted: RunIdentity) -> None:
    """MismatchError, in words, where base, pictures or configuration are not those of the checkpoint."""
    changes: list[str] = []
    if found.identity.base_hash != wanted.base_hash:
        changes.append(f"the base was {found.identity.base} and is now {wanted.base} (their weights differ)")
    pictures = describe_change(found.identity.pictures, wanted.pictures)
    if pictures:
        changes.append(pictures)
    changes += _differences(found.identity.config, json.loads(wanted.model_dump_json())["config"])
    if changes:
        raise MismatchError(
            f"{found.path.parent.parent} cannot be resumed exactly: " + "; ".join(changes) + ".",
            "Undo the change, or start a new run with another --out.",
        )


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast(Plain, old), cast(Plain, new)
        names = sorted({*before, *after} - ({"base"} if not key else set()))
        return [
            text
            for name in names
            for text in _differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [f"{key} was {old} and is now {new}"]


def restore(engine: Engine, checkpoint: Checkpoint) -> int:
    """Put the checkpoint's state into the engine; returns the number of steps already done."""
    _unpack(engine, checkpoint.tensors, checkpoint.plain)
    return checkpoint.step


def _pack(engine: Engine) -> tuple[dict[str, Tensor], Plain]:
    tensors = {f"adapter/{name}": value for name, value in engine.adapter.state_dict().items()}
    state = engine.optimizer.state_dict()
    numbers: Plain = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                numbers[f"{index}/{name}"] = value
    if engine.average is not None:
        tensors |= {f"average/{n}": value for n, value in enumerate(engine.average.values)}
    plain: Plain = {
        "optimizer": numbers,
        "groups": [{name: _number(value) for name, value in group.items()} for group in state["param_groups"]],
        "schedule": {k: v for k, v in engine.schedule.state_dict().items() if _is_plain(v)},
        "scaler": engine.scaler.state_dict(),
    }
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, plain


def _number(value: Any) -> Any:
    """A learning rate that lives on a device, as a float."""
    return float(value) if isinstance(value, Tensor) else value


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str | bool | None) or (
        isinstance(value, list) and all(_is_plain(item) for item in cast("list[Any]", value))
    )


def _unpack(engine: Engine, tensors: dict[str, Tensor], plain: Plain) -> None:
    engine.adapter.load_state_dict(_under("adapter/", tensors))
    state: dict[int, Plain] = {}
    entries: dict[str, Any] = {**_under("optimizer/", tensors), **plain["optimizer"]}
    for path, value in entries.items():
        index, name = path.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    try:
        engine.optimizer.load_state_dict({"state": state, "param_groups": plain["groups"]})
    except ValueError as error:
        raise MismatchError(
            "The checkpoint keeps the optimizer's state in another form; an earlier version of the app made it.",
            "Finish the run with that version, or start a new one with another --out.",
        ) from error
    engine.rates.restored()
    engine.schedule.load_state_dict(plain["schedule"])
    engine.scaler.load_state_dict(plain["scaler"])
    if engine.average is not None:
        with torch.no_grad():
            for n, value in enumerate(engine.average.values):
                value.copy_(tensors[f"average/{n}"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
