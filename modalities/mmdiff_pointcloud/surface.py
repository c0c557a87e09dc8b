"""A closed surface from points alone, with no normals and nothing to tell inside from outside.

The unsigned distance u to the nearest point is sampled on a grid. Where u < level the grid is solid, and so are the
cavities behind a wall of points; the boundary of the solid is triangulated, and its vertices are moved to planes fitted
to the points near them, which takes back the thickness that the level added. The result is watertight and faces outward
by construction, at any density. A wall thinner than the level becomes two sheets that almost touch; gaps narrower than
twice the level are closed.

Letters: ``n`` points, ``v`` vertices, ``f`` faces, ``a`` the side of a square of surface that has one point on average.
"""

import itertools
import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

LEVEL = 1.7
"""In units of ``a``. A disc of that radius among points at random is empty with probability exp(-pi 1.7^2) = 1e-4."""

WIDEST = 2.3
"""In units of ``a``: the radius of the widest hole that keeps the cavity behind it closed."""

NEIGHBORS = 16
"""Points that a plane is fitted to."""

KEPT = 0.05
"""Share of the level that stays between a vertex and its plane, so that the two sheets of a thin wall do not cross."""

CORNERS = np.array(list(itertools.product((0, 1), repeat=3)))
"""Corners of a cell; corner i is binary i."""

PATHS = [(0, step[0], step[0] + step[1], 7) for step in itertools.permutations((1, 2, 4))]
"""Six tetrahedra that fill a cell: the ways along its edges from corner 0 to corner 7 (Kuhn 1960)."""


def reconstruct(points: Float[Tensor, "n 3"], resolution: int = 96) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]:
    """Watertight triangles around ``points``, counterclockwise seen from outside, on the CPU.

    Args:
        points: at least 4, finite and not all equal.
        resolution: cells along the longest side of the grid, at least 8. The time grows with its cube.
    """
    cloud = points.detach().double().cpu().numpy()
    finite, different = np.isfinite(cloud).all(1).sum(), len(np.unique(cloud, axis=0))
    if len(cloud) < 4 or finite < len(cloud) or different < 2:
        found = f"{len(cloud)}, {finite} finite and {different} different"
        raise ValueError(f"points must be at least 4, finite and not all equal, got {found}.")
    if resolution < 8:
        raise ValueError(f"resolution must be at least 8, got {resolution}.")
    tree = cKDTree(cloud)
    spacing = point_spacing(tree)
    cell = (np.ptp(cloud, axis=0).max() + 2 * WIDEST * spacing) / resolution
    level = max(LEVEL * spacing, 1.2 * cell)
    solid, origin = solid_field(tree, level, max(WIDEST * spacing, level + 2 * cell), cell)
    vertices, faces = marching_tetrahedra(solid)
    vertices = flatten(vertices * cell + origin, tree, level, spacing)
    return torch.from_numpy(vertices).float(), torch.from_numpy(faces)


def point_spacing(tree: cKDTree, k: int = 8) -> float:
    """``a`` = 1 / sqrt(points per area), from the median distance r of the k-th neighbor: k = pi r^2 / a^2."""
    k = min(k, tree.n - 1)
    distance = tree.query(tree.data, [k + 1])[0]
    return float(np.median(distance[distance > 0]) * np.sqrt(np.pi / k)) if distance.any() else 0.0


def solid_field(
    tree: cKDTree, level: float, widest: float, cell: float
) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "3"]]:
    """``level - u`` on a grid that is negative at its border, with the sign of cavities turned; its origin.

    Cavities are the regions of u > level that do not touch the border, and those of u > ``widest`` with what lies
    between them and the wall, which therefore may have holes of nearly that radius.
    """
    bound = widest + 2 * cell
    origin = tree.mins - bound
    size = np.ceil((tree.maxes + bound - origin) / cell).astype(int) + 1
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) * cell + origin
    distance = np.minimum(tree.query(grid, distance_upper_bound=bound)[0], bound)
    empty, steps = distance > level, math.ceil((widest - level) / cell) + 1
    hollow = ndimage.binary_dilation(enclosed(distance > widest), np.ones((3, 3, 3)), iterations=steps, mask=empty)
    hollow |= enclosed(empty & ~hollow)
    field = np.where(hollow, 1, -1) * (distance - level)
    return np.where(np.abs(field) < 1e-6 * cell, 1e-6 * cell, field), origin


def enclosed(empty: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """The regions of ``empty`` that are not connected with the corner of the grid."""
    regions, _ = ndimage.label(empty)
    return empty & (regions != regions[0, 0, 0])


def marching_tetrahedra(
    field: Float[np.ndarray, "x y z"],
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """The zero level of ``field`` in units of cells, counterclockwise seen from where it is negative.

    Each cell is six tetrahedra, in each of which the field is linear. Neighbors agree on the diagonals of their common
    faces, so the surface has no boundary inside the grid. ``field`` must have no zeros.
    """
    shape, flat = np.array(field.shape), field.ravel()
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    starts = (np.stack(np.meshgrid(*map(np.arange, shape - 1), indexing="ij"), -1) @ strides).ravel()
    inside = (flat > 0)[starts[:, None] + CORNERS @ strides]
    starts = starts[inside.any(1) & ~inside.all(1)]
    tetrahedra = np.concatenate([starts[:, None] + CORNERS[list(path)] @ strides for path in PATHS])
    corners = tetrahedra[np.arange(len(tetrahedra))[:, None], np.argsort(flat[tetrahedra] < 0, axis=1, kind="stable")]
    count = (flat[corners] > 0).sum(1)
    edges, owners = cut_edges(corners, count)
    edges = np.sort(edges, axis=-1).reshape(-1, 2)
    codes, faces = np.unique(edges[:, 0] * field.size + edges[:, 1], return_inverse=True)
    pairs = np.stack(np.divmod(codes, field.size), -1)
    ends = np.stack(np.unravel_index(pairs, field.shape), -1).astype(np.float64)
    first, second = flat[pairs[:, 0]], flat[pairs[:, 1]]
    vertices = ends[:, 0] + (first / (first - second))[:, None] * (ends[:, 1] - ends[:, 0])
    corner = np.stack(np.unravel_index(corners, field.shape), -1)
    mirrored = np.linalg.det(corner[:, 1:] - corner[:, :1]) < 0
    faces = faces.reshape(-1, 3)
    return vertices, np.where(mirrored[owners, None], faces[:, ::-1], faces)


def cut_edges(
    corners: Int[np.ndarray, "t 4"], count: Int[np.ndarray, "t"]
) -> tuple[Int[np.ndarray, "f 3 2"], Int[np.ndarray, "f"]]:
    """The edges on which triangles have their corners, as pairs of grid points, and the tetrahedra they are in.

    The first ``count`` corners of a tetrahedron are inside. The triangles face the others if the corners are
    right-handed.
    """
    triangles = {
        1: [[(0, 1), (0, 2), (0, 3)]],
        2: [[(0, 2), (0, 3), (1, 2)], [(1, 3), (1, 2), (0, 3)]],
        3: [[(0, 3), (1, 3), (2, 3)]],
    }
    owners = [(np.flatnonzero(count == inside), triangle) for inside in triangles for triangle in triangles[inside]]
    edges = [corners[owner[:, None, None], np.array(triangle)] for owner, triangle in owners]
    return np.concatenate(edges), np.concatenate([owner for owner, _ in owners])


def flatten(
    vertices: Float[np.ndarray, "v 3"], tree: cKDTree, level: float, spacing: float
) -> Float[np.ndarray, "v 3"]:
    """Move vertices to the plane of the points near them, and no farther than ``spacing`` from the nearest point.

    The planes are weighted principal components: weights fall off with the distance from the vertex.
    """
    distance, index = tree.query(vertices, min(NEIGHBORS, tree.n))
    near = tree.data[index]
    weight = np.exp(-((distance / (distance[:, :1] + spacing)) ** 2))[..., None]
    center = (weight * near).sum(1) / weight.sum(1)
    offset = near - center[:, None]
    _, axes = np.linalg.eigh(np.einsum("vki,vkj->vij", weight * offset, offset))
    normal = axes[..., 0]
    height = ((vertices - center) * normal).sum(1, keepdims=True)
    moved = vertices - (height - np.clip(height, -KEPT * level, KEPT * level)) * normal
    away = moved - near[:, 0]
    reach = np.linalg.norm(away, axis=1, keepdims=True)
    return near[:, 0] + away * np.minimum(1, spacing / np.maximum(reach, 1e-12))
