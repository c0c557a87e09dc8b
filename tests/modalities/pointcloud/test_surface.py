"""Surfaces judged by trimesh: closed, facing outward, near the shape that the points were drawn from."""

import functools

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from mmdiff_pointcloud.surface import marching_tetrahedra, point_spacing, reconstruct


def box(extents, center=(0.0, 0.0, 0.0)):
    return trimesh.creation.box(extents, trimesh.transformations.translation_matrix(center))


def chair():
    legs = [box((0.05, 0.45, 0.05), (x, 0.225, z)) for x in (-0.2, 0.2) for z in (-0.2, 0.2)]
    slats = [box((0.04, 0.5, 0.04), (x, 0.72, -0.205)) for x in (-0.2, 0.0, 0.2)]
    return [box((0.45, 0.04, 0.45), (0, 0.45, 0)), *legs, *slats]


SHAPES = {
    "sphere": [trimesh.creation.icosphere(4, radius=0.5)],
    "box": [box((1.0, 0.6, 0.8), (3.0, -2.0, 1.0))],
    "plate": [box((1.0, 0.02, 1.0))],
    "chair": chair(),
    "two spheres": [trimesh.creation.icosphere(3, radius=0.3), trimesh.creation.icosphere(3, radius=0.3)],
}
SHAPES["two spheres"][1].apply_translation((1.0, 0, 0))


def sample(parts, count, seed=0):
    return trimesh.sample.sample_surface(trimesh.util.concatenate(parts), count, seed=seed)[0]


def rebuild(points, resolution=40):
    vertices, faces = reconstruct(torch.from_numpy(points).float(), resolution)
    return trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)


@functools.cache
def rebuilt(shape, count):
    return rebuild(sample(SHAPES[shape], count))


def chamfer(x, y):
    return (cKDTree(y).query(x)[0] ** 2).mean() + (cKDTree(x).query(y)[0] ** 2).mean()


def floor(parts, count):
    """The Chamfer distance between two samples of the true surface."""
    return chamfer(sample(parts, count, 1), sample(parts, count, 2))


def assert_closed(mesh):
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0
    assert np.isfinite(mesh.vertices).all()


@pytest.mark.parametrize("count", [1024, 4096])
@pytest.mark.parametrize("shape", SHAPES)
def test_surface_is_closed_and_near_the_true_one(shape, count):
    parts = SHAPES[shape]
    mesh = rebuilt(shape, count)
    assert_closed(mesh)
    error = chamfer(sample([mesh], 4000), sample(parts, 4000, 1))
    assert error < floor(parts, 4000) + 0.5 / count * trimesh.util.concatenate(parts).area


@pytest.mark.parametrize("count", [1024, 4096])
@pytest.mark.parametrize("shape", ["sphere", "box", "two spheres"])
def test_solids_are_filled(shape, count):
    mesh = rebuilt(shape, count)
    assert mesh.volume == pytest.approx(sum(part.volume for part in SHAPES[shape]), rel=0.05)
    assert mesh.body_count == len(SHAPES[shape])


def test_a_thin_plate_keeps_two_sheets_that_face_away_from_each_other():
    mesh = rebuild(sample(SHAPES["plate"], 2048))
    assert 0.3 * 0.02 < mesh.volume < 2 * 0.02
    flat = mesh.area_faces * mesh.face_normals[:, 1]
    assert flat[flat > 0].sum() == pytest.approx(1, abs=0.15)
    assert flat[flat < 0].sum() == pytest.approx(-1, abs=0.15)


def test_noise_and_a_hole_in_the_wall_do_no_harm():
    points = sample(SHAPES["sphere"], 4096)
    points = points[np.linalg.norm(points - [0, 0.5, 0], axis=1) > 2 * point_spacing(cKDTree(points))]
    mesh = rebuild(points + np.random.default_rng(0).normal(0, 0.005, points.shape))
    assert_closed(mesh)
    assert mesh.body_count == 1
    assert mesh.volume == pytest.approx(SHAPES["sphere"][0].volume, rel=0.07)


def test_moving_vertices_to_planes_brings_them_to_the_surface():
    mesh = rebuilt("sphere", 4096)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.5).mean() < 0.005


def test_shape_does_not_depend_on_unit_or_place():
    points = sample(SHAPES["chair"], 1024)
    mesh, moved = rebuilt("chair", 1024), rebuild(1000 * points + 5000)
    assert_closed(moved)
    assert moved.volume == pytest.approx(1e9 * mesh.volume, rel=0.02)
    assert moved.area == pytest.approx(1e6 * mesh.area, rel=0.02)


POINTS = {
    "four": np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "two places": np.repeat([[0.0, 0, 0], [1, 0, 0]], 8, 0),
    "a line": np.linspace(0, 1, 50)[:, None] * [1.0, 2.0, 0.0],
    "a plane": np.random.default_rng(0).uniform(size=(300, 3)) * [1.0, 0.0, 1.0],
    "stray points": np.concatenate([sample(SHAPES["sphere"], 500), [[9.0, 9, 9], [-9, 0, 0]]]),
    "Gaussian": np.random.default_rng(0).normal(size=(500, 3)),
}


@pytest.mark.parametrize("points", POINTS)
def test_any_points_have_a_closed_surface(points):
    assert_closed(rebuild(POINTS[points]))


@pytest.mark.parametrize("points", [torch.rand(3, 3), torch.ones(9, 3), torch.full((9, 3), torch.nan)])
def test_points_without_a_surface_are_named(points):
    with pytest.raises(
        ValueError, match=r"points must be at least 4, finite and not all equal, got \d, \d finite and \d"
    ):
        reconstruct(points)


def test_resolution_is_at_least_eight():
    with pytest.raises(ValueError, match="resolution must be at least 8, got 7"):
        reconstruct(torch.rand(20, 3), resolution=7)


def grid(size):
    return np.stack(np.meshgrid(*3 * [np.linspace(-1, 1, size)], indexing="ij"))


def torus(size):
    x, y, z = grid(size)
    return 0.25 - np.hypot(np.hypot(x, y) - 0.6, z)


@pytest.mark.parametrize(
    ("field", "volume", "euler"),
    [
        (0.8 - np.linalg.norm(grid(50), axis=0), 4 / 3 * np.pi * 0.8**3, 2),
        (torus(50), 2 * np.pi**2 * 0.6 * 0.25**2, 0),
        (np.minimum(0.8 - np.linalg.norm(grid(50), axis=0), np.linalg.norm(grid(50), axis=0) - 0.4), 1.8766, 4),
    ],
    ids=["ball", "torus", "hollow ball"],
)
def test_zero_level_of_a_known_field(field, volume, euler):
    vertices, faces = marching_tetrahedra(field)
    mesh = trimesh.Trimesh(vertices * 2 / 49, faces, process=False)
    assert_closed(mesh)
    assert mesh.volume == pytest.approx(volume, rel=0.01)
    assert mesh.euler_number == euler


def test_a_linear_field_is_cut_exactly():
    """The half space below a tilted plane; inside the grid the surface has a border on the grid's alone."""
    direction, points = np.array([0.3, -0.8, 0.52]), np.stack(np.meshgrid(*3 * [np.arange(9.0)], indexing="ij"), -1)
    vertices, faces = marching_tetrahedra(0.1234 - (points - 4) @ direction)
    np.testing.assert_allclose((vertices - 4) @ direction, 0.1234, atol=1e-12)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert (mesh.face_normals[mesh.area_faces > 1e-9] @ direction > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_random_fields_have_closed_surfaces(seed):
    field = np.pad(np.random.default_rng(seed).normal(size=(12, 9, 10)), 1, constant_values=-1.0)
    mesh = trimesh.Trimesh(*marching_tetrahedra(field), process=False)
    assert_closed(mesh)
    assert (np.bincount(mesh.edges_unique_inverse) == 2).all()
