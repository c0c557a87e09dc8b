"""Files that trimesh reads, made safe.

trimesh gets bytes without a name, so that it has nowhere to look for other files: textures and buffers count only
if the file holds them itself. What a file claims is compared with what it holds before anything is made of it.
"""

import io
import json
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import trimesh
from PIL import Image

from mmdiff import DataError
from mmdiff_pointcloud.clouds import Limits, check_unpacked_size

SUFFIXES = (".obj", ".ply", ".stl", ".off", ".glb", ".gltf", ".3mf")
_IMAGES = ("PNG", "JPEG", "WEBP")  # Pillow runs a program, Ghostscript, for some of the other formats.
_DEEPEST, _MOST_INSTANCES = 8, 2000  # of a 3MF


@contextmanager
def guarded() -> Iterator[None]:
    """Keep warnings and the log of trimesh to itself, and let it decode pictures of three formats only.

    Warnings that tell of damage and of pictures too big become errors. All of this holds for the whole process.
    """
    log, opener = trimesh.util.log, Image.open
    disabled = log.disabled
    log.disabled, Image.open = True, partial(opener, formats=_IMAGES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "string or file could not be read")  # numpy 2.4 raises by itself
            warnings.filterwarnings("error", "Image size")
            yield
    finally:
        log.disabled, Image.open = disabled, opener


def load(path: Path, data: bytes, suffix: str, limits: Limits) -> trimesh.Scene:
    """The scene in a file, whose bytes are given."""
    if suffix == ".3mf":
        if find_spec("lxml") is None:
            raise DataError(path, "needs lxml to be read: pip install lxml")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_unpacked_size(path, archive, limits)
            _check_3mf(path, archive)
    elif suffix in (".glb", ".gltf"):
        _check_gltf(path, data, suffix, limits)
    elif suffix in (".obj", ".off"):
        if data.count(b"\n") > limits.faces + limits.points:
            raise DataError(path, f"has more than {limits.faces} faces or {limits.points} points, all that is allowed")
        data = data.decode(errors="replace").encode()  # Names and comments in old files are often in Latin-1.
    return trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], process=False)


def _check_gltf(path: Path, data: bytes, suffix: str, limits: Limits) -> None:
    """Raise ``DataError`` for a glTF that names other files or claims more than it holds (glTF 2.0, 3.6 and 4.4)."""
    if suffix == ".glb":
        data, whole = data[20 : 20 + int.from_bytes(data[12:16], "little")], data
    tree = json.loads(data)
    for kind in ("buffers", "images"):
        for item in tree.get(kind, []):
            if not item.get("uri", "data:").startswith("data:"):
                raise DataError(path, f"refers to {item['uri'][:200]!r}: other files are never opened, embed it")
    held = len(whole if suffix == ".glb" else data)
    accessors = tree.get("accessors", [])
    claims = {
        "bytes in buffer views": sum(view["byteLength"] for view in tree.get("bufferViews", [])),
        "items in accessors": sum(accessor["count"] for accessor in accessors),
    }
    for what, claimed in claims.items():
        # Accessors and views may overlap; none that an exporter writes adds up to more than the file.
        if claimed > 4 * held:
            raise DataError(path, f"claims {claimed} {what}, it has {held} bytes")
    primitives = [primitive for mesh in tree.get("meshes", []) for primitive in mesh["primitives"]]
    used = [accessors[i] for p in primitives for i in (*p["attributes"].values(), p.get("indices", -1)) if i >= 0]
    # trimesh takes both for zeros.
    if any("bufferView" not in accessor or "sparse" in accessor for accessor in used):
        raise DataError(path, "holds sparse or compressed geometry, which is not supported: export it plain")
    if sum(accessor["count"] for accessor in used) > 3 * limits.faces + limits.points:
        raise DataError(path, f"has more than {limits.faces} faces or {limits.points} points, all that is allowed")


def _check_3mf(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise ``DataError`` for objects made of others so deeply nested or so often that trimesh needs minutes or more.

    60 objects that each hold the one before twice, 10 kB in all, keep it busy for 90 s.
    """
    from lxml import etree

    inner, level = {}, Counter()
    for name in archive.namelist():
        if name.lower().endswith(".model"):
            tags = ("{*}object", "{*}build")
            for _, item in etree.iterparse(archive.open(name), tag=tags, resolve_entities=False, no_network=True):
                if item.tag.endswith("build"):
                    level.update(child.get("objectid") for child in item.iter("{*}item"))
                else:
                    inner[item.get("id")] = [child.get("objectid") for child in item.iter("{*}component")]
                item.clear()
    for _ in range(_DEEPEST):
        if level.total() > _MOST_INSTANCES:
            raise DataError(path, f"places its objects {level.total()} times, at most {_MOST_INSTANCES} are allowed")
        next_level = Counter()
        for name, count in level.items():
            for child in inner.get(name, ()):
                next_level[child] += count
        level = next_level
    if level:
        raise DataError(path, f"nests its objects more than {_DEEPEST} deep")
