"""HTML that we write ourselves: every text that came from outside passes `esc`."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

esc = html.escape

_EVENTS = """
const told = (name, target, more) => trigger(name, {...target.dataset, ...more});
element.addEventListener('click', event => {
  const target = event.target.closest('[data-action]');
  if (target && element.contains(target) && !target.disabled) { event.preventDefault(); told('click', target, {}); }
});
element.addEventListener('change', event => {
  const target = event.target.closest('[data-field]');
  if (!target || !element.contains(target)) return;
  delete typed[target.dataset.key];
  told('input', target, {value: target.type === 'checkbox' ? String(target.checked) : target.value});
});
const typed = {};
element.addEventListener('input', event => {
  const {field, key} = event.target.dataset;
  if (field && key) typed[key] = event.target.value;
});
let last = null;
element.addEventListener('focusin', event => { last = event.target.dataset.key ?? null; });
element.addEventListener('focusout', event => { if (event.relatedTarget) last = null; });
watch('value', () => {
  for (const box of element.querySelectorAll('[type=checkbox]')) box.checked = box.defaultChecked;
  for (const [key, text] of Object.entries(typed)) {
    const field = element.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (field) field.value = text;
  }
  if (last && document.activeElement === document.body)
    element.querySelector(`[data-key="${CSS.escape(last)}"]`)?.focus();
});
"""
"""A click on what has data-action, and a change of what has data-field, reach Python with its data-… attributes.
Whoever had the focus when the markup was replaced gets it back, by data-key, and what was being typed stays."""


def live_html(value: str = "", *, elem_id: str, script: str = "", label: str | None = None) -> gr.HTML:
    """HTML whose buttons and fields are heard: `.click` and `.input`, read by `details`."""
    return gr.HTML(value, elem_id=elem_id, js_on_load=_EVENTS + script, label=label, padding=False)


def plain_html(value: str = "", *, elem_id: str | None = None) -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, js_on_load=None, padding=False)


def details(event: gr.EventData) -> dict[str, str]:
    """The data-… attributes that came with an event; from anybody, so texts alone are taken."""
    told: Any = event._data  # pyright: ignore[reportPrivateUsage]
    if not isinstance(told, dict):
        return {}
    return {str(key): value for key, value in told.items() if isinstance(value, str)}


def message(text: str, kind: str = "bad", *, elem_id: str = "") -> str:
    """A sentence that a screen reader says at once; empty: nothing."""
    named = f' id="{esc(elem_id)}"' if elem_id else ""
    return f'<p class="s-message s-{kind}" role="alert"{named}>{esc(text)}</p>' if text else ""


def button(text: str, action: str, *, kind: str = "", label: str = "", **data: str) -> str:
    attributes = "".join(f' data-{name}="{esc(value)}"' for name, value in data.items())
    said = f' aria-label="{esc(label)}"' if label else ""
    return (
        f'<button type="button" class="s-button {kind}" data-action="{action}"{attributes}{said}>{esc(text)}</button>'
    )


Handler = Callable[..., Any]
