"""Files of shapes: points of any of them, and new ones.

Shapes are right-handed, y points up once read, lengths are in the units of the file. A bad file is a ``DataError``.
"""

import os
import stat
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from mmdiff import DataError
from mmdiff.errors import check_at_least
from mmdiff_pointcloud import clouds, meshes, ply, scenes
from mmdiff_pointcloud.clouds import Cloud, Limits

SUFFIXES = (*scenes.SUFFIXES, ".xyz", ".npy", ".npz")
_TABLES = {".xyz": clouds.read_xyz, ".npy": clouds.read_npy, ".npz": clouds.read_npz}
_WRITERS = {".ply": ply.to_ply, ".xyz": clouds.to_xyz, ".npz": clouds.to_npz, ".glb": meshes.to_glb}
_MESH_SUFFIXES = (".glb", ".ply", ".obj", ".stl")
# Rotations that turn an axis to y: which column goes where, with which sign.
_UP = {"y": ([0, 1, 2], [1, 1, 1]), "z": ([0, 2, 1], [1, 1, -1]), "x": ([1, 0, 2], [-1, 1, 1])}
_LIMITS = Limits()


def read(
    path: str | os.PathLike[str],
    points: int,
    generator: Generator | None = None,
    up: str = "y",
    limits: Limits = _LIMITS,
) -> Cloud:
    """At most ``points`` points of a shape, float32.

    A mesh gives that many samples, uniform on its surface (all meshes of a scene, in place), with the normals of the
    faces and the colors that the file itself holds. A file of points gives as many of them without replacement, or
    all in its order if it has no more; points that are not finite are left out, and faces with them.

    Args:
        path: a file of `SUFFIXES`; it is the only one opened, whatever others it names.
        points: how many.
        generator: of the choice; the same choice every time without one.
        up: axis of the file, "x", "y" or "z", that is turned to y.
        limits: what the file may hold at most.
    """
    check_at_least(1, points=points)
    if up not in _UP:
        raise ValueError(f"up must be one of {list(_UP)}, got {up!r}.")
    path, generator = Path(path), generator or torch.Generator().manual_seed(0)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(path, f"is not a shape: its name ends in none of {', '.join(SUFFIXES)}")
    data = _content(path, limits.size)
    try:
        with scenes.guarded():
            cloud = _parsed(path, data, suffix, points, generator, limits)
    except DataError:
        raise
    except Exception as error:  # trimesh raises ten types of exceptions on bad files, among them UnboundLocalError.
        what = (str(error).splitlines() or [""])[0][:200]
        raise DataError(path, f"cannot be read as {suffix} ({type(error).__name__}: {what})") from error
    columns, signs = _UP[up]
    turned = [v if v is None else v[:, columns] * torch.tensor(signs).to(v) for v in (cloud.points, cloud.normals)]
    return Cloud(*turned, cloud.colors)


def _content(path: Path, most: int) -> bytes:
    """The bytes of a file, at most ``most``."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(path, "is not a file")
        if not 0 < status.st_size <= most:
            raise DataError(path, f"has {status.st_size} bytes, from 1 to {most} are allowed")
        return path.read_bytes()
    except OSError as error:
        raise DataError(path, f"cannot be opened ({error.strerror})") from error


def _parsed(path: Path, data: bytes, suffix: str, points: int, generator: Generator, limits: Limits) -> Cloud:
    """At most ``points`` points of the bytes of a file, in the axes of the file."""
    if suffix in _TABLES:
        return _some(_TABLES[suffix](path, data, limits), points, generator)
    if suffix == ".ply" and not (header := ply.read_header(path, data, limits)).count("face"):
        return _some(ply.read_points(path, data, header), points, generator)
    scene = scenes.load(path, data, suffix, limits)
    surface = meshes.surface(path, scene, limits)
    if surface is None:
        return _some(meshes.points(path, scene, limits), points, generator)
    return meshes.sample(surface, points, generator)


def _some(cloud: Cloud, points: int, generator: Generator) -> Cloud:
    """A random choice of ``points`` points, or all if there are no more."""
    if len(cloud.points) <= points:
        return cloud
    chosen = torch.randperm(len(cloud.points), generator=generator)[:points]
    return Cloud(*(field if field is None else field[chosen] for field in cloud))


def write(cloud: Cloud, path: str | os.PathLike[str]) -> None:
    """Write points as .ply or .npz (all they have), .xyz (normals, or else colors) or .glb (colors), by suffix."""
    path = Path(path)
    if path.suffix.lower() not in _WRITERS or not len(cloud.points):
        raise ValueError(f"Can write points as {list(_WRITERS)}, got {len(cloud.points)} for {path.name!r}.")
    cloud = Cloud(*(field if field is None else field.detach().cpu() for field in cloud))
    _save(path, _WRITERS[path.suffix.lower()](cloud))


def write_mesh(
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    path: str | os.PathLike[str],
    colors: UInt8[Tensor, "v 3"] | None = None,
) -> None:
    """Write triangles, counterclockwise from outside, as .glb, .ply, .obj or .stl; the last one has no colors."""
    path = Path(path)
    if path.suffix.lower() not in _MESH_SUFFIXES:
        raise ValueError(f"Can write meshes as {list(_MESH_SUFFIXES)}, got {path.name!r}.")
    if not len(faces) or faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"faces must be indices of the {len(vertices)} vertices, at least one face, got {faces}.")
    arrays = [field if field is None else field.detach().cpu().numpy() for field in (vertices, faces, colors)]
    with scenes.guarded():
        content = meshes.to_mesh_file(arrays[0], arrays[1], path.suffix.lower(), arrays[2])
    _save(path, content)


def _save(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise DataError(path, f"cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


def normalize(
    points: Float[Tensor, "n 3"],
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "3"], Float[Tensor, ""]]:
    """Points in [-1, 1], the center of their bounding box and half of its longest side, 1 if that is zero.

    The inverse is ``points * scale + center``.
    """
    low, high = points.amin(0) / 2, points.amax(0) / 2
    center, half = low + high, (high - low).amax()
    scale = torch.where(half > 0, half, 1.0)
    return ((points - center) / scale).clamp(-1, 1), center, scale
