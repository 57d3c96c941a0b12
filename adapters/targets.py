"""Which layers of a model learn: named groups, blocks by number and patterns over module paths."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from torch import nn

from adapters.errors import UnknownNameError, UserInputError, nearest
from adapters.sites import Site, make_site

_SELF = r"(^|\.)(attn1\.(to_[qkv]|to_out\.0)|self_attn\.(q|k|v|out)_proj)$"
_CROSS = r"(^|\.)attn2\.(to_[qkv]|to_out\.0)$"


def _by_name(pattern: str) -> Callable[[Site, str], bool]:
    compiled = re.compile(pattern)
    return lambda _, path: compiled.search(path) is not None


def _is_linear(site: Site, path: str) -> bool:
    # text_projection maps the pooled state of a whole prompt; other programs refuse files that adapt it
    return site.kind == "linear" and path != "text_projection"


def _is_conv(site: Site, path: str) -> bool:
    return site.kind == "conv"


GROUPS: dict[str, Callable[[Site, str], bool]] = {
    "attention": _by_name(f"{_SELF}|{_CROSS}"),
    "self-attention": _by_name(_SELF),
    "cross-attention": _by_name(_CROSS),
    "feed-forward": _by_name(r"(^|\.)(ff\.net\.(0\.proj|2)|mlp\.fc[12])$"),
    "linear": _is_linear,
    "conv": _is_conv,
    "all": lambda site, path: _is_linear(site, path) or _is_conv(site, path),
    "time-embedding": _by_name(r"^time_embedding\.|\.time_emb_proj$"),
    "add-embedding": _by_name(r"^add_embedding\."),
    "down": _by_name(r"^down_blocks\."),
    "mid": _by_name(r"^mid_block\."),
    "up": _by_name(r"^up_blocks\."),
    "resnet": _by_name(r"(^|\.)resnets\."),
    # B-LoRA (arXiv 2403.14572): the two of SDXL's transformers that decide what is drawn, and how
    "content": _by_name(r"^up_blocks\.0\.attentions\.0\."),
    "style": _by_name(r"^up_blocks\.0\.attentions\.1\."),
}


def _predicate(word: str) -> Callable[[Site, str], bool]:
    if word in GROUPS:
        return GROUPS[word]
    if block := re.fullmatch(r"(down|up)\.(\d+)", word):
        return _by_name(rf"^{block[1]}_blocks\.{block[2]}\.")
    pattern = word.removeprefix("text_model.")
    return lambda _, path: fnmatch.fnmatchcase(path, pattern)


def layer_path(path: str) -> str:
    """A module path as our files spell it: transformers 5 dropped the text encoder's `text_model.` level."""
    return path.removeprefix("text_model.")


def select_sites(model: nn.Module, component: str, target: str) -> list[Site]:
    """The layers of `model` that `target` names, in the model's order.

    Args:
        component: what the model is in the pipeline ("unet", "text_encoder", …): prefixes the names.
        target: comma list of named groups (GROUPS; "down.1", "up.0" for one block) and patterns with * and ? over
            module paths ("down_blocks.*.to_q"); "&" between them takes what is in both ("cross-attention&up.0").

    Raises:
        UserInputError: the target is empty, or a word of it matched no layer (names the nearest).
    """
    words = [word.strip() for word in target.split(",") if word.strip()]
    if not words:
        raise UserInputError(f"No layers were chosen for {component}.", f"Name some: {', '.join(GROUPS)}.")
    candidates = _candidates(model, component)
    chosen: set[str] = set()
    for word in words:
        chosen |= _matched(word, candidates, component)
    return [site for path, site in candidates.items() if path in chosen]


def _matched(word: str, candidates: dict[str, Site], component: str) -> set[str]:
    """The paths that are in every part of a word such as "attention&up.0"."""
    matched = set(candidates)
    parts = [part.strip() for part in word.split("&")]
    for part in parts:
        if not part:
            raise UserInputError(f"The target {word!r} lacks a name beside its &.", 'Write it like "conv&up.0".')
        wanted = _predicate(part)
        found = {path for path, site in candidates.items() if wanted(site, path)}
        if not found:
            raise _nothing_matched(part, component, list(candidates))
        matched &= found
    if not matched:
        raise UserInputError(
            f"No layer of {component} is in {' and in '.join(parts)} at once.", "A comma takes what is in either."
        )
    return matched


def _candidates(model: nn.Module, component: str) -> dict[str, Site]:
    found: dict[str, Site] = {}
    for name, module in model.named_modules():
        path = layer_path(name)
        if site := make_site(f"{component}.{path}", module):
            found[path] = site
    return found


def _nothing_matched(word: str, component: str, paths: list[str]) -> UserInputError:
    if word in GROUPS or any(char in word for char in "*?["):
        like = nearest(word.replace("*", ""), paths)
        hint = f"A layer with a name like it: {like}. " if like else ""
        return UserInputError(
            f"The target {word!r} matches no layer of {component}.", f"{hint}Groups: {', '.join(GROUPS)}."
        )
    options = [*GROUPS, *(path for path in paths if path == nearest(word, paths))]
    return UnknownNameError(f"layer or group of layers in {component} called", word, options)
