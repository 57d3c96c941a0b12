"""Builds emoji_rgba128.tar from the published packages: `python -m benchmarks.embedded.packages OUT.tar WORKDIR`.

Needs npm on the path and resvg-py. Nothing else is downloaded.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.embedded.config import PICTURE
from benchmarks.embedded.data import decode

EMOJIBASE = "emojibase-data@17.0.0"
FOLDER_PACKAGES = {"fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0"}  # WebP files named by code point
ICON_PACKAGES = {  # iconify sets: SVG bodies by name
    "fluent-color": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
}
LICENSES = dict.fromkeys(("fluent-3d", "fluent-color", "fluent-flat"), "MIT")
LICENSES |= {"noto": "Apache-2.0", "noto-v1": "Apache-2.0", "twemoji": "CC-BY-4.0", "emojione": "CC-BY-4.0"}
LEFT_OUT_GROUPS = ("component", "symbols", "flags")


def unpack(package: str, work: Path) -> Path:
    """Downloads one published package with `npm pack` and unpacks it; returns its folder."""
    target = work / re.sub(r"\W+", "-", package)
    if not target.exists():
        command = ["npm", "pack", "--silent", package]
        out = subprocess.run(command, cwd=work, check=True, capture_output=True, text=True)
        with tarfile.open(work / out.stdout.strip().splitlines()[-1]) as tar:
            tar.extractall(target, filter="data")
    return target / "package"


def point_of(name: str) -> str:
    """A code point sequence as the tar writes it: lower case, without variation selectors."""
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")


def icon_names(folders: Mapping[str, Path]) -> dict[str, list[str]]:
    """Code point → the names that any of the sets gives it: some sets publish no table of their own."""
    names: dict[str, list[str]] = {}
    for folder in folders.values():
        for point, name in json.loads((folder / "chars.json").read_text()).items():
            names.setdefault(point_of(point), []).append(name)
    return names


def draw(icons: Mapping[str, Any], name: str) -> bytes:
    """One icon as a PNG of 128 px."""
    import resvg_py

    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    drawn: Any = resvg_py.svg_to_bytes(svg_string=svg, width=PICTURE, height=PICTURE)
    return base64.b64decode(drawn) if isinstance(drawn, str) else bytes(drawn)


def icon_pictures(folder: Path, names: Mapping[str, list[str]], points: list[str]) -> dict[str, bytes]:
    """Code point → PNG for those of `points` that one iconify set draws."""
    icons = json.loads((folder / "icons.json").read_text())
    aliases = {alias: entry["parent"] for alias, entry in icons.get("aliases", {}).items()}
    pictures: dict[str, bytes] = {}
    for point in points:
        known = [aliases.get(n, n) for n in names.get(point, []) if aliases.get(n, n) in icons["icons"]]
        if known:
            pictures[point] = draw(icons, known[0])
    return pictures


def emojibase(work: Path) -> dict[str, dict[str, object]]:
    """Code point → label, tags, group and subgroup of the emoji that the tar may hold."""
    folder = unpack(EMOJIBASE, work)
    groups = json.loads((folder / "meta" / "groups.json").read_text())
    entries: dict[str, dict[str, object]] = {}
    for entry in json.loads((folder / "en" / "data.json").read_text()):
        group = groups["groups"].get(str(entry.get("group")), "component")
        if group not in LEFT_OUT_GROUPS:
            subgroup = groups["subgroups"].get(str(entry.get("subgroup")), "")
            point = point_of(entry["hexcode"])
            entries[point] = {"hex": point, "label": entry["label"], "tags": entry.get("tags", [])}
            entries[point] |= {"group": group, "subgroup": subgroup}
    return entries


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds one file to the tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def as_webp(content: bytes) -> bytes:
    """A picture file as a WebP of 128 px."""
    out = io.BytesIO()
    Image.fromarray(decode(content)).save(out, "WEBP", quality=92, method=4)
    return out.getvalue()


def build_tar(path: Path, work: Path) -> None:
    """Downloads the packages into `work`, draws every emoji of two styles or more, and writes the tar."""
    work.mkdir(parents=True, exist_ok=True)
    entries = emojibase(work)
    drawn: dict[str, dict[str, bytes]] = {}
    for style, package in FOLDER_PACKAGES.items():
        files = {point_of(f.stem): f for f in unpack(package, work).rglob("*.webp")}
        drawn[style] = {point: files[point].read_bytes() for point in entries if point in files}
    folders = {style: unpack(package, work) for style, package in ICON_PACKAGES.items()}
    names = icon_names(folders)
    drawn |= {style: icon_pictures(folder, names, list(entries)) for style, folder in folders.items()}
    for point, entry in list(entries.items()):
        entry["styles"] = [style for style in LICENSES if point in drawn[style]]
        if len(entry["styles"]) < 2:
            del entries[point]
    with tarfile.open(path, "w") as tar:
        add(tar, "meta.json", json.dumps({"licenses": LICENSES, "emoji": list(entries.values())}).encode())
        for point in entries:
            for style in [s for s in LICENSES if point in drawn[s]]:
                add(tar, f"{style}/{point}.webp", as_webp(drawn[style][point]))


if __name__ == "__main__":
    build_tar(Path(sys.argv[1]), Path(sys.argv[2]))
