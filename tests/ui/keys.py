"""Somebody without a mouse."""

from __future__ import annotations

from typing import Any

FAR = 90
"""Stops on the way to anything, at most: a form with its settings open has about sixty."""
_SEEN = """target => {
  if (target !== document.activeElement) return null;
  for (let one = target, level = 0; one && level < 4; one = one.parentElement, level++) {
    const {outlineStyle, outlineWidth} = getComputedStyle(one);
    if (outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2) return true;
  }
  return false;
}"""
"""Whether the element has the focus (else null), and it or the card around it shows that."""


class Keys:
    """Comes to what a page holds by Tab alone, and sees where it is."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def reach(self, target: Any, key: str = "Tab") -> None:
        """Goes on until `target` has the focus."""
        for _ in range(FAR):
            if (seen := target.evaluate(_SEEN)) is not None:
                assert seen, f"{target} has the focus, and nothing shows it"
                return
            self.page.keyboard.press(key)
        raise AssertionError(f"{target} is not reached by {key}")

    def press(self, target: Any, key: str = "Enter", by: str = "Tab") -> None:
        self.reach(target, by)
        self.page.keyboard.press(key)

    def write(self, target: Any, text: str, by: str = "Tab") -> None:
        """In the place of what stands there, and leaves the field."""
        self.reach(target, by)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Tab")

    def choose(self, radio: Any) -> None:
        """One of a group of radio buttons: Tab comes to the group, arrows go on in it."""
        group = radio.evaluate("one => one.name")
        for _ in range(FAR):
            if self.page.evaluate("document.activeElement.name") == group:
                break
            self.page.keyboard.press("Tab")
        if not radio.is_checked():
            self.page.keyboard.press("Space")
        while not radio.is_checked():
            self.reach(radio, "ArrowDown")
