"""How to learn: a card a preset, with what it would take here."""

from __future__ import annotations

from typing import Any

from ui.components.markup import esc


def presets_markup(cards: list[dict[str, Any]], chosen: str) -> str:
    """Radio buttons that look like cards; those that cannot work here are greyed and say why."""
    rows = "".join(_card(card, card["name"] == chosen) for card in cards)
    return f'<fieldset class="s-presets"><legend class="s-hidden">How to learn</legend>{rows}</fieldset>'


def _card(card: dict[str, Any], chosen: bool) -> str:
    name = esc(card["name"])
    state = (" checked" if chosen else "") + ("" if card["fits"] else " disabled")
    return (
        f'<label class="s-preset"><input type="radio" name="preset" value="{name}" data-field="preset"'
        f' data-key="preset-{name}"{state}><b>{esc(title(card["name"]))}</b>'
        f'<span class="s-quiet">{esc(card["meaning"])}</span><span class="s-facts">{esc(_facts(card))}</span></label>'
    )


def title(name: str) -> str:
    return "B-LoRA" if name == "b-lora" else name.replace("-", " ").capitalize().replace("gpu", "GPU")


def _facts(card: dict[str, Any]) -> str:
    if not card["fits"]:
        return f"Not here: {card['reason']}."
    size = card["size_mib"]
    file = f"{size:.1f} MiB file" if size < 10 else f"{size:.0f} MiB file"
    return f"{_time(card['minutes'])} · {card['memory_gib']:g} GiB memory · {file}"


def _time(minutes: float) -> str:
    if minutes < 1:
        return "Under a minute"
    return f"About {round(minutes)} min" if minutes < 90 else f"About {minutes / 60:.1f} h"
