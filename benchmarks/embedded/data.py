"""The emoji pictures: read from the tar, or rendered again from the published npm packages."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.embedded.config import PICTURE

STYLES = ("fluent-3d", "fluent-color", "fluent-flat", "noto", "noto-v1", "twemoji")
HELD_OUT_STYLE = "emojione"
# npm package, icon set inside it and the style it gives; None: a folder of PNG pictures named by code point.
PACKAGES = {
    "fluent-3d": ("@lobehub/fluent-emoji-3d@1.1.0", None),
    "fluent-color": ("@iconify-json/fluent-emoji@1.2.7", "fluent-emoji"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat@1.2.6", "fluent-emoji-flat"),
    "noto": ("@iconify-json/noto@1.2.9", "noto"),
    "noto-v1": ("@iconify-json/noto-v1@1.2.5", "noto-v1"),
    "twemoji": ("@iconify-json/twemoji@1.2.5", "twemoji"),
    "emojione": ("@iconify-json/emojione@1.2.3", "emojione"),
}


@dataclass(frozen=True)
class Emoji:
    """One code point: its English label, tags and place in Unicode's grouping."""

    hex: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


@dataclass(frozen=True)
class EmojiSet:
    """Pictures of every style: RGBA uint8 [N, 128, 128, 4] with (style, code point) of each row."""

    emoji: dict[str, Emoji]
    keys: list[tuple[str, str]]
    pixels: np.ndarray


def _decode(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    if image.size != (PICTURE, PICTURE):
        image = image.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def load_tar(path: Path, keep: set[str] | None = None) -> EmojiSet:
    """Reads `<style>/<code point>.webp` and meta.json; `keep` limits the code points."""
    with tarfile.open(path) as tar:
        contents: dict[str, bytes] = {}
        for member in tar.getmembers():
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                contents[member.name.removeprefix("./")] = file.read()
    meta = json.loads(contents.pop("meta.json"))["emoji"]
    emoji = {
        e["hex"]: Emoji(e["hex"], e["label"], tuple(e["tags"]), e["group"], e["subgroup"])
        for e in meta
        if keep is None or e["hex"] in keep
    }
    names = sorted(n for n in contents if n.endswith(".webp") and Path(n).stem in emoji)
    with ThreadPoolExecutor(16) as pool:
        pixels = list(pool.map(_decode, (contents[n] for n in names)))
    return EmojiSet(emoji, [(n.split("/")[-2], Path(n).stem) for n in names], np.stack(pixels))


def _pack(package: str, folder: Path) -> Path:
    """Downloads one published package with `npm pack` and unpacks it."""
    target = folder / package.replace("/", "_")
    if not target.exists():
        out = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
        )
        with tarfile.open(folder / out.stdout.strip().splitlines()[-1]) as tar:
            tar.extractall(target, filter="data")
    return target / "package"


def _icon_pictures(package: Path, name_of: dict[str, str]) -> dict[str, bytes]:
    """Renders an iconify set's SVG bodies to PNG; `name_of` maps the set's icon names to code points."""
    import resvg_py

    icons = json.loads((package / "icons.json").read_text())
    size = (icons.get("width", 16), icons.get("height", 16))
    pictures: dict[str, bytes] = {}
    for name, icon in icons["icons"].items():
        if name not in name_of:
            continue
        width, height = icon.get("width", size[0]), icon.get("height", size[1])
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        rendered = resvg_py.svg_to_bytes(svg_string=svg, width=PICTURE, height=PICTURE)
        pictures[name_of[name]] = rendered if isinstance(rendered, bytes) else base64.b64decode(rendered)
    return pictures


def _icon_names(package: Path) -> dict[str, str]:
    """Icon name → code point, from the set's own chars.json (iconify publishes one with every emoji set)."""
    chars = json.loads((package / "chars.json").read_text())
    return {name: point for point, name in chars.items()}


def build_tar(path: Path, work: Path) -> None:
    """Builds the tar from the packages that PACKAGES names and emojibase-data 17.0.0; needs npm and resvg-py."""
    base = json.loads((_pack("emojibase-data@17.0.0", work) / "en" / "data.json").read_text())
    groups = json.loads((_pack("emojibase-data@17.0.0", work) / "meta" / "groups.json").read_text())
    drawn: dict[str, dict[str, bytes]] = {}
    for style, (package, icon_set) in PACKAGES.items():
        folder = _pack(package, work)
        if icon_set is None:
            drawn[style] = {f.stem: f.read_bytes() for f in folder.rglob("*.webp")}
        else:
            drawn[style] = _icon_pictures(folder, _icon_names(folder))
    with tarfile.open(path, "w") as tar:
        entries: list[dict[str, object]] = []
        for entry in base:
            point = entry["hexcode"].lower()
            styles = [s for s in drawn if point in drawn[s]]
            group = groups["groups"].get(str(entry.get("group")))
            if len(styles) < 2 or group in (None, "component", "symbols", "flags"):
                continue
            entries.append(_meta(entry, point, group, groups, styles))
            for style in styles:
                _add(tar, f"{style}/{point}.webp", _as_webp(drawn[style][point]))
        _add(tar, "meta.json", json.dumps({"emoji": entries}).encode())


def _meta(
    entry: dict[str, object], point: str, group: str, groups: dict[str, dict[str, str]], styles: list[str]
) -> dict[str, object]:
    subgroup = groups["subgroups"].get(str(entry.get("subgroup")), "")
    return {"hex": point, "label": entry["label"], "tags": entry.get("tags", []), "group": group,
            "subgroup": subgroup, "styles": styles}  # fmt: skip


def _as_webp(content: bytes) -> bytes:
    out = io.BytesIO()
    Image.fromarray(_decode(content)).save(out, "WEBP", quality=92, method=4)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
