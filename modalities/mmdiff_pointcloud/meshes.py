"""Meshes in scenes of trimesh, and samples of their surfaces."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float, Int, Num, UInt8
from numpy import ndarray
from torch import Generator

from mmdiff import DataError
from mmdiff_pointcloud.clouds import Cloud, Limits, cleaned

_WHITE = 255  # what glTF gives to a part without a color


class Surface(NamedTuple):
    """The triangles of a scene, in place, in float64.

    Attributes:
        vertices: of all parts.
        faces: counterclockwise indices into the vertices.
        cross: product of two edges of each face: its normal times twice its area; zero where it cannot be sampled.
        parts: meshes that the faces come from, with the first face and the first vertex of each.
    """

    vertices: Float[ndarray, "v 3"]
    faces: Int[ndarray, "f 3"]
    cross: Float[ndarray, "f 3"]
    parts: list[tuple[int, int, trimesh.Trimesh]]


def placed(
    path: Path, scene: trimesh.Scene, limits: Limits, with_faces: bool
) -> list[tuple[trimesh.parent.Geometry3D, Float[ndarray, "v 3"], bool]]:
    """The meshes with faces, or the point sets without, of a scene: geometry, vertices in place, if it is mirrored."""
    kinds = (trimesh.Trimesh,) if with_faces else (trimesh.Trimesh, trimesh.PointCloud)
    found = [(node, scene.geometry[scene.graph[node][1]]) for node in scene.graph.nodes_geometry]
    found = [(n, g) for n, g in found if isinstance(g, kinds) and bool(len(getattr(g, "faces", ()))) == with_faces]
    for what, most in (("faces", limits.faces), ("vertices", limits.points)):
        count = sum(len(getattr(geometry, what, ())) for _, geometry in found)
        if count > most:
            raise DataError(path, f"has {count} {what}, at most {most} are allowed")
    result = []
    for node, geometry in found:
        matrix = np.asarray(scene.graph[node][0], np.float64)
        vertices = np.asarray(geometry.vertices, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
        result.append((geometry, vertices, bool(np.linalg.det(matrix[:3, :3]) < 0)))
    return result


def surface(path: Path, scene: trimesh.Scene, limits: Limits) -> Surface | None:
    """The surface of a scene with at least one face of finite corners and some area, None without any faces."""
    vertices, faces, parts = [], [], []
    first_face = first_vertex = 0
    for mesh, corners, mirrored in placed(path, scene, limits, with_faces=True):
        indices = np.asarray(mesh.faces, np.int64)
        if indices.min() < 0 or indices.max() >= len(corners):
            raise DataError(path, f"has faces of vertices that do not exist: it has {len(corners)}")
        vertices.append(corners)
        faces.append((indices[:, ::-1] if mirrored else indices) + first_vertex)
        parts.append((first_face, first_vertex, mesh))
        first_face, first_vertex = first_face + len(indices), first_vertex + len(corners)
    if not parts:
        return None
    points, triangles = np.concatenate(vertices), np.concatenate(faces)
    points[~np.isfinite(points.astype(np.float32)).all(1)] = np.nan
    one, two = (points[triangles[:, k]] - points[triangles[:, 0]] for k in (1, 2))
    cross = np.cross(one, two)
    # Three points on a line span an area of rounding errors, at most about 1e-16 of the squared edges.
    spans = np.linalg.norm(cross, axis=1) > 1e-12 * (one**2 + two**2).sum(1)
    if not spans.any():
        raise DataError(path, f"has {len(triangles)} faces, but none with finite corners and an area")
    return Surface(points, triangles, np.where(spans[:, None], cross, 0.0), parts)


def sample(surface: Surface, count: int, generator: Generator) -> Cloud:
    """Points that are uniform on the surface, with the normals of their faces and the colors of their places.

    Faces are drawn in proportion to their areas, places by R. Osada et al., "Shape Distributions" (2002), equation 1.
    """
    area = np.linalg.norm(surface.cross, axis=1)
    usable = area.nonzero()[0]
    u, a, b = torch.rand(3, count, generator=generator, dtype=torch.float64).numpy()
    upper = area[usable].cumsum()
    face = usable[np.searchsorted(upper, u * upper[-1], side="right").clip(max=len(usable) - 1)]
    weights = np.stack([1 - np.sqrt(a), np.sqrt(a) * (1 - b), np.sqrt(a) * b], 1)
    points = _mix(surface.vertices[surface.faces[face]], weights)
    normals = surface.cross[face] / area[face, None]
    colors = _colors(surface, face, weights)
    fields = (points.astype(np.float32), normals.astype(np.float32), colors)
    return Cloud(*(None if field is None else torch.from_numpy(field) for field in fields))


def _mix(corners: Num[ndarray, "n 3 k"], weights: Float[ndarray, "n 3"]) -> Float[ndarray, "n k"]:
    return (corners * weights[:, :, None]).sum(1)


def _colors(surface: Surface, face: Int[ndarray, " n"], weights: Float[ndarray, "n 3"]) -> UInt8[ndarray, "n 3"] | None:
    """Colors of places on faces: white on parts without any, None if no part has any."""
    colors, found = np.full((len(face), 3), _WHITE, np.uint8), False
    firsts = np.array([first for first, _, _ in surface.parts])
    part = np.searchsorted(firsts, face, side="right") - 1
    for index in np.unique(part):
        rows: Bool[ndarray, " n"] = part == index
        first_face, first_vertex, mesh = surface.parts[index]
        corners = surface.faces[face[rows]] - first_vertex
        color = _part_colors(mesh, face[rows] - first_face, corners, weights[rows])
        if color is not None:
            colors[rows], found = np.round(color).astype(np.uint8), True
    return colors if found else None


def _part_colors(
    mesh: trimesh.Trimesh, face: Int[ndarray, " n"], corners: Int[ndarray, "n 3"], weights: Float[ndarray, "n 3"]
) -> Num[ndarray, "..."] | None:
    """RGB from 0 to 255 of faces, mixed between vertices, or of an embedded texture; one for all or one each."""
    visual = mesh.visual
    if visual.kind == "face":
        return visual.face_colors[face, :3]
    if visual.kind == "vertex":
        return _mix(visual.vertex_colors[corners, :3], weights)
    if visual.kind == "texture":
        mixed = visual.vertex_attributes.get("color")
        if mixed is not None:
            return _mix(trimesh.visual.color.to_rgba(mixed)[corners, :3], weights)
        uv = None if visual.uv is None else np.nan_to_num(_mix(visual.uv[corners], weights))
        color = visual.material.to_color(uv)
        return None if color is None else color[..., :3]
    return None


def points(path: Path, scene: trimesh.Scene, limits: Limits) -> Cloud:
    """The vertices of a scene without faces; colors if all its point sets have them."""
    sets = placed(path, scene, limits, with_faces=False)
    if not sets:
        raise DataError(path, "holds no faces and no points")
    # The colors of points without any are an empty list.
    colored = all(g.visual.kind == "vertex" and len(g.visual.vertex_colors) == len(v) for g, v, _ in sets)
    colors = np.concatenate([geometry.visual.vertex_colors[:, :3] for geometry, _, _ in sets]) if colored else None
    return cleaned(path, np.concatenate([vertices for _, vertices, _ in sets]), colors=colors)


def to_glb(cloud: Cloud) -> bytes:
    """Points of a binary glTF, with their colors."""
    colors = None if cloud.colors is None else cloud.colors.numpy()
    return trimesh.Scene(trimesh.PointCloud(cloud.points.numpy(), colors=colors)).export(file_type="glb")


def to_mesh_file(
    vertices: Float[ndarray, "v 3"], faces: Int[ndarray, "f 3"], suffix: str, colors: UInt8[ndarray, "v 3"] | None
) -> bytes:
    """A mesh file of the format of ``suffix``."""
    mesh = trimesh.Trimesh(vertices, faces, vertex_colors=colors, process=False)
    content = mesh.export(file_type=suffix[1:])
    return content.encode() if isinstance(content, str) else content
