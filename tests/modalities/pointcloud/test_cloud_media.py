"""Files of shapes made by trimesh and by hand, read as points, and everything that can be wrong with them."""

import base64
import builtins
import io
import json
import pickle
import re
import socket
import struct
import sys
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import EpsImagePlugin, Image
from scipy import stats

from mmdiff import DataError
from mmdiff_pointcloud import media
from mmdiff_pointcloud.media import Cloud, Limits

MESHES = [".obj", ".ply", ".stl", ".off", ".glb", ".gltf"]
HAS_LXML = find_spec("lxml") is not None
SIZES = np.array([2.0, 4.0, 6.0])
SHIFT = np.array([10.0, 20.0, 30.0])


def save(geometry: trimesh.parent.Geometry, path: Path) -> Path:
    """A file by trimesh; glTF with its buffers inside."""
    options = {"embed_buffers": True} if path.suffix == ".gltf" else {}
    exported = geometry if path.suffix == ".off" else trimesh.Scene(geometry)  # which a scene cannot be written as
    content = exported.export(file_type=path.suffix[1:], **options)
    content = content["model.gltf"] if isinstance(content, dict) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def box() -> trimesh.Trimesh:
    return trimesh.creation.box(SIZES, trimesh.transformations.translation_matrix(SHIFT))


def check_on_box(cloud: Cloud, sizes=SIZES, shift=SHIFT) -> None:
    """Every point lies on a side of the box and has the outward normal of that side."""
    place = (cloud.points.double().numpy() - shift) / (sizes / 2)
    side = abs(place).argmax(1)
    np.testing.assert_allclose(abs(place).max(1), 1, atol=1e-5)
    normals = np.zeros_like(place)
    normals[np.arange(len(place)), side] = np.sign(place[np.arange(len(place)), side])
    np.testing.assert_allclose(cloud.normals.numpy(), normals, atol=1e-6)


def gltf(tmp_path: Path, name: str = "box.gltf", **changes) -> tuple[Path, dict]:
    """A box as glTF, with some of its top-level entries replaced."""
    path = save(box(), tmp_path / name)
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(tree))
    return path, tree


def error_of(path: Path, **options) -> str:
    """The reason of the `DataError` that reading a file raises."""
    with pytest.raises(DataError) as caught:
        media.read(path, 100, **options)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.reason


@pytest.mark.parametrize(
    "suffix", [*MESHES, pytest.param(".3mf", marks=pytest.mark.skipif(not HAS_LXML, reason="lxml"))]
)
def test_samples_of_a_mesh_lie_on_it_with_outward_normals(tmp_path, suffix):
    cloud = media.read(save(box(), tmp_path / f"box{suffix}"), 2000)
    assert cloud.points.dtype == cloud.normals.dtype == torch.float32
    assert cloud.points.shape == (2000, 3)
    assert cloud.colors is None
    check_on_box(cloud)


def test_text_stl_and_upper_case_suffix(tmp_path):
    path = tmp_path / "box.STL"
    path.write_text(box().export(file_type="stl_ascii"))
    check_on_box(media.read(path, 100))


def test_places_are_uniform_over_faces_and_within_them(tmp_path):
    # Face k lies in the plane z = k and has legs of scale[k]: areas from 1 to 10000.
    scale = np.array([1.0, 100.0, 3.0, 30.0, 10.0])
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]) * scale[:, None, None]
    corners[:, :, 2] = np.arange(5)[:, None]
    path = save(
        trimesh.Trimesh(corners.reshape(-1, 3), np.arange(15).reshape(-1, 3), process=False), tmp_path / "t.ply"
    )
    points = media.read(path, 50000, torch.Generator().manual_seed(1)).points.double().numpy()
    face = points[:, 2].round().astype(int)
    expected = 50000 * scale**2 / (scale**2).sum()
    assert stats.chisquare(np.bincount(face, minlength=5), expected).pvalue > 0.01
    # The midpoints of the edges cut a triangle into four of the same area.
    x, y = points[:, :2].T / scale[face]
    quarter = np.select([x > 0.5, y > 0.5, x + y < 0.5], [0, 1, 2], 3)
    assert stats.chisquare(np.bincount(quarter, minlength=4)).pvalue > 0.01
    assert np.corrcoef(x, y)[0, 1] == pytest.approx(-0.5, abs=0.02)


def test_scenes_are_flattened_in_place_and_mirrored_parts_keep_their_outside(tmp_path):
    scene = trimesh.Scene()
    turn = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 0, 1])
    move = trimesh.transformations.translation_matrix([5, 0, 0])
    mirror = trimesh.transformations.translation_matrix([-5, 0, 0]) @ np.diag([-1.0, 1, 1, 1])
    scene.add_geometry(trimesh.creation.box([1, 2, 3]), node_name="parent", transform=move)
    scene.add_geometry(trimesh.creation.box([1, 2, 3]), parent_node_name="parent", transform=move @ turn)
    scene.add_geometry(trimesh.creation.box([1, 2, 3]), transform=mirror)
    (tmp_path / "scene.glb").write_bytes(scene.export(file_type="glb"))
    cloud = media.read(tmp_path / "scene.glb", 3000)
    for low, high, sizes in [(4, 6, (1, 2, 3)), (8, 12, (2, 1, 3)), (-6, -4, (1, 2, 3))]:
        part = (cloud.points[:, 0] > low) & (cloud.points[:, 0] < high)
        assert part.sum() == pytest.approx(1000, abs=100)
        shift = np.array([(low + high) / 2, 0, 0])
        check_on_box(Cloud(cloud.points[part], cloud.normals[part]), np.array(sizes), shift)


@pytest.mark.parametrize("name", ["box.ply", "cloud.npy"])
def test_the_generator_decides_alone(tmp_path, name):
    path = tmp_path / name
    save(box(), path) if path.suffix == ".ply" else np.save(path, np.random.default_rng(0).normal(size=(5000, 3)))
    state = torch.get_rng_state()
    first, again, other = (media.read(path, 1000, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)
    assert torch.equal(media.read(path, 1000).points, media.read(path, 1000).points)
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(media.read(path, 1000, generator).points, first.points)
    assert not torch.equal(media.read(path, 1000, generator).points, first.points)


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_points_of_a_cloud_are_chosen_without_replacement(tmp_path, generator):
    line = np.arange(3000.0).reshape(1000, 3)
    np.save(tmp_path / "line.npy", line)
    for count in (1000, 2000):
        assert torch.equal(media.read(tmp_path / "line.npy", count, generator).points, torch.tensor(line).float())
    chosen = media.read(tmp_path / "line.npy", 500, generator).points[:, 0] / 3
    assert len(chosen) == len(chosen.unique()) == 500
    assert stats.kstest(chosen.numpy() / 1000, "uniform").pvalue > 0.01
    assert not torch.equal(chosen, chosen.sort().values)


def test_one_choice_holds_for_normals_and_colors(tmp_path):
    cloud = Cloud(torch.randn(100, 3), torch.randn(100, 3), torch.randint(0, 256, (100, 3), dtype=torch.uint8))
    media.write(cloud._replace(normals=torch.nn.functional.normalize(cloud.normals)), tmp_path / "c.ply")
    part = media.read(tmp_path / "c.ply", 40)
    rows = (part.points[:, None] == cloud.points).all(2).nonzero()[:, 1]
    assert len(rows) == 40
    assert torch.equal(part.colors, cloud.colors[rows])
    torch.testing.assert_close(part.normals, torch.nn.functional.normalize(cloud.normals[rows]))


@pytest.mark.parametrize(("up", "axis"), [("x", [1.0, 0, 0]), ("y", [0.0, 1, 0]), ("z", [0.0, 0, 1])])
@pytest.mark.parametrize("suffix", [".npz", ".stl"])
def test_the_up_axis_is_turned_to_y(tmp_path, up, axis, suffix):
    path = tmp_path / f"arrow{suffix}"
    if suffix == ".npz":
        points = np.vstack([axis, np.eye(3), np.zeros((16, 3))])
        np.savez(path, points=points, normals=points)
    else:
        save(trimesh.creation.cone(0.1, 1, transform=trimesh.geometry.align_vectors([0, 0, 1], axis)), path)
    plain, turned = media.read(path, 100), media.read(path, 100, up=up)
    rotation = torch.linalg.lstsq(plain.points, turned.points).solution.T
    torch.testing.assert_close(rotation.det(), torch.tensor(1.0))
    torch.testing.assert_close(rotation @ torch.tensor(axis), torch.tensor([0.0, 1, 0]))
    torch.testing.assert_close(plain.normals @ rotation.T, turned.normals)


def square(tmp_path: Path, name: str, **visual) -> Path:
    """The unit square in the plane z = 0 as two triangles."""
    corners = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    return save(trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False, **visual), tmp_path / name)


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".gltf", ".obj"])
def test_colors_of_vertices_are_mixed(tmp_path, suffix):
    corners = np.array([[0, 0, 255], [255, 0, 255], [255, 255, 255], [0, 255, 255]], np.uint8)
    cloud = media.read(square(tmp_path, f"square{suffix}", vertex_colors=corners), 500)
    expected = torch.cat([cloud.points[:, :2], torch.ones(500, 1)], 1) * 255
    assert (cloud.colors.float() - expected).abs().max() < 0.51


def test_colors_of_faces(tmp_path):
    cloud = media.read(square(tmp_path, "square.ply", face_colors=np.uint8([[255, 0, 0], [0, 0, 255]])), 500)
    lower = cloud.points[:, 0] > cloud.points[:, 1]
    assert 200 < lower.sum() < 300
    assert torch.equal(cloud.colors, torch.where(lower[:, None], torch.tensor([255, 0, 0]), torch.tensor([0, 0, 255])))


def textured(image: Image.Image | None, **material) -> trimesh.visual.TextureVisuals:
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, **material)
    return trimesh.visual.TextureVisuals(uv=uv, material=material)


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_colors_of_an_embedded_texture_are_looked_up_at_every_point(tmp_path, suffix):
    stripes = np.zeros((8, 80, 3), np.uint8)
    stripes[:4] = (0, 255, 0)
    stripes[:, 20:40] = stripes[:, 60:] = (255, 0, 0)
    cloud = media.read(square(tmp_path, f"square{suffix}", visual=textured(Image.fromarray(stripes))), 500)
    x, y = cloud.points[:, 0], cloud.points[:, 1]
    for inside, color in [((x * 4 % 2) > 1, (255, 0, 0)), (((x * 4 % 2) < 1) & (y > 0.5), (0, 255, 0))]:
        clear = inside & ((x * 4) % 1 - 0.5).abs().lt(0.4) & ((y - 0.5).abs() > 0.1)
        assert clear.sum() > 50
        assert (cloud.colors[clear] == torch.tensor(color)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "EPS", "GIF"])
@pytest.mark.parametrize("extension", [False, True])
def test_no_program_is_run_for_a_picture(tmp_path, monkeypatch, kind, extension):
    stream, ran = io.BytesIO(), []
    Image.new("RGB", (4, 4), (0, 255, 0)).save(stream, kind)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: ran.append(a))
    path = square(tmp_path, "square.gltf", visual=textured(Image.new("RGB", (4, 4))))
    tree = json.loads(path.read_text())
    tree["images"] = [{"uri": "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()}]
    if extension:
        texture = {"diffuseTexture": tree["materials"][0].pop("pbrMetallicRoughness")["baseColorTexture"]}
        texture["specularFactor"] = [0, 0, 0]
        tree["materials"][0]["extensions"] = {"KHR_materials_pbrSpecularGlossiness": texture}
    path.write_text(json.dumps(tree))
    colors = media.read(path, 20).colors
    assert not ran
    if kind in ("PNG", "JPEG", "WEBP"):
        assert (colors - torch.tensor([0.0, 255, 0])).abs().max() < 3
    else:
        assert (colors == 255).all() if extension else colors is None
    assert Image.open(io.BytesIO(stream.getvalue())).format == kind


def test_a_part_without_color_is_white_among_others(tmp_path):
    plain = trimesh.creation.box(transform=trimesh.transformations.translation_matrix([5, 0, 0]))
    colored = trimesh.creation.box()
    colored.visual = textured(None, baseColorFactor=[255, 0, 0, 255])
    cloud = media.read(save([plain, colored], tmp_path / "two.glb"), 500)
    right = cloud.points[:, 0] > 2
    assert (cloud.colors[right] == 255).all()
    assert (cloud.colors[~right] == torch.tensor([255, 0, 0])).all()


def ply_file(path: Path, encoding: str, kinds: dict[str, str], rows: np.ndarray, after: str = "") -> Path:
    """A PLY file written here, byte by byte."""
    header = f"ply\nformat {encoding} 1.0\ncomment by hand\nelement vertex {len(rows)}\n"
    header += "".join(f"property {kind} {name}\n" for name, kind in kinds.items()) + after + "end_header\n"
    codes = {"float": "f", "double": "d", "uchar": "B", "short": "h", "int32": "i"}
    pattern = {"binary_big_endian": ">", "binary_little_endian": "<"}.get(encoding)
    packed = "".join(codes[kind] for kind in kinds.values())
    values = [[v if codes[k] in "fd" else int(v) for v, k in zip(row, kinds.values(), strict=True)] for row in rows]
    if pattern is None:
        path.write_text(header + "".join(" ".join(map(str, row)) + "\n" for row in values))
    else:
        path.write_bytes(header.encode() + b"".join(struct.pack(pattern + packed, *row) for row in values))
    return path


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("color", ["uchar", "float"])
def test_points_of_ply_files_by_hand(tmp_path, encoding, color):
    rng = np.random.default_rng(0)
    points, normals = rng.normal(size=(2, 50, 3))
    colors = rng.integers(0, 256, (50, 3))
    kinds = {"x": "double", "nx": "float", "y": "double", "z": "float", "ny": "float", "nz": "double", "label": "short"}
    kinds |= {"red": color, "green": color, "blue": color, "row": "int32"}
    written = colors / 255 if color == "float" else colors
    columns = [points[:, 0], normals[:, 0], points[:, 1], points[:, 2], normals[:, 1], normals[:, 2]]
    rows = np.column_stack([*columns, -np.arange(50), written, np.arange(50)])
    path = ply_file(
        tmp_path / "c.ply", encoding, kinds, rows, "element face 0\nproperty list uchar int vertex_indices\n"
    )
    cloud = media.read(path, 50)
    torch.testing.assert_close(cloud.points, torch.tensor(points).float())
    torch.testing.assert_close(cloud.normals, torch.nn.functional.normalize(torch.tensor(normals)).float())
    assert torch.equal(cloud.colors, torch.tensor(colors, dtype=torch.uint8))


def test_trimesh_reads_a_written_ply_as_we_do(tmp_path):
    cloud = Cloud(torch.randn(30, 3), None, torch.randint(0, 256, (30, 3), dtype=torch.uint8))
    media.write(cloud, tmp_path / "c.ply")
    (other,) = trimesh.load_scene(tmp_path / "c.ply").geometry.values()
    assert np.array_equal(other.vertices.astype(np.float32), cloud.points.numpy())
    assert np.array_equal(other.colors[:, :3], cloud.colors.numpy())


UNIT = [[0.6, 0.8, 0], [0, 0, 1], [0, 0, 0], [-1, 0, 0]]
TABLES = {
    "three": ([[]] * 4, None),
    "normals": (UNIT, "normals"),
    "colors": ([[0, 128, 255]] * 4, "colors"),
    "whole numbers of unit length": ([[0, 1, 0]] * 4, "normals"),
    "black": ([[0, 0, 0]] * 4, "colors"),
    "neither": ([[0.5, 0.5, 0.1]] * 4, None),
    "beyond 255": ([[0, 128, 256]] * 4, None),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("suffix", [".xyz", ".npy"])
def test_columns_of_tables(tmp_path, case, suffix):
    more, kind = np.array(TABLES[case][0] * 5, float), TABLES[case][1]
    points = np.random.default_rng(0).normal(size=(20, 3))
    path = tmp_path / f"table{suffix}"
    np.save(path, np.hstack([points, more])) if suffix == ".npy" else np.savetxt(path, np.hstack([points, more]))
    cloud = media.read(path, 20)
    torch.testing.assert_close(cloud.points, torch.tensor(points).float())
    assert [name for name in ("normals", "colors") if getattr(cloud, name) is not None] == [kind] * (kind is not None)
    if kind is not None:
        assert np.allclose(getattr(cloud, kind).numpy(), more)


@pytest.mark.parametrize("suffix", [".obj", ".off"])
def test_comments_in_latin_1_are_no_obstacle(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)  # which trimesh would ask, but need not be there
    path = save(box(), tmp_path / f"box{suffix}")
    path.write_bytes(b"# cr\xe9\xe9\n" + path.read_bytes())
    check_on_box(media.read(path, 100))


def test_text_as_people_write_it(tmp_path):
    path = tmp_path / "table.xyz"
    lines = "".join(f"{k},\t{k / 2};{-k}e0\r\n".replace(";", " , ") for k in range(20))
    path.write_bytes("\ufeff# x, y, z of a café\n\n".encode() + lines.encode() + b"# end\xe9")
    k = torch.arange(20.0)
    assert torch.equal(media.read(path, 20).points, torch.stack([k, k / 2, -k], 1))


@pytest.mark.parametrize(("suffix", "kept"), [(".obj", None), (".off", None), (".glb", "colors")])
def test_files_of_other_formats_without_faces_are_clouds(tmp_path, suffix, kept):
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    colors = np.full((40, 4), (1, 2, 3, 255), np.uint8) if kept else None
    path = tmp_path / f"cloud{suffix}"
    if suffix == ".off":
        path.write_text("OFF\n40 0 0\n" + "".join("{} {} {}\n".format(*point) for point in points))
    else:
        save(trimesh.PointCloud(points, colors), path)
    cloud = media.read(path, 40)
    torch.testing.assert_close(cloud.points, torch.tensor(points), rtol=0, atol=1e-6)
    assert (cloud.colors is None) if kept is None else (cloud.colors == torch.tensor([1, 2, 3])).all()


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".off", ".stl", ".npy", ".xyz"])
@pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
def test_places_that_are_not_finite_are_left_out(tmp_path, suffix, value):
    path = tmp_path / f"hole{suffix}"
    vertices = box().vertices.copy()
    if suffix in (".npy", ".xyz"):
        points = np.random.default_rng(0).normal(size=(40, 3))
        points[7, 1] = float(value)
        np.save(path, points) if suffix == ".npy" else np.savetxt(path, points)
        expected = torch.tensor(np.delete(points, 7, 0)).float()
        assert torch.equal(media.read(path, 40).points, expected)
        return
    rows = [" ".join(map(str, row)) for row in vertices]
    rows[0] = f"{value} 0 0"
    faces = box().faces
    if suffix == ".obj":
        path.write_text("\n".join([*(f"v {row}" for row in rows), *("f {} {} {}".format(*(f + 1)) for f in faces)]))
    elif suffix == ".stl":
        facets = ["outer loop\n" + "\n".join(f"vertex {rows[k]}" for k in f) + "\nendloop" for f in faces]
        path.write_text("solid a\n" + "".join(f"facet normal 0 0 0\n{f}\nendfacet\n" for f in facets) + "endsolid a\n")
    else:
        body = "\n".join([*rows, *("3 {} {} {}".format(*f) for f in faces)])
        ply = "ply\nformat ascii 1.0\nelement vertex 8\nproperty double x\nproperty double y\nproperty double z\n"
        ply += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
        path.write_text((ply if suffix == ".ply" else f"OFF\n8 {len(faces)} 0\n") + body)
    cloud = media.read(path, 500)
    check_on_box(cloud)
    touching = [face for face in faces if 0 in face]
    assert 0 < len(touching) < len(faces)
    for face in touching:
        center = torch.tensor(vertices[face].mean(0)).float()
        assert (cloud.points - center).norm(dim=1).min() > 0.01


def test_faces_without_area_are_never_sampled(tmp_path):
    corners = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9], [0.1, 0.2, 0.3], [0.2, 0.4, 0.6], [0.3, 0.6, 0.9]]
    faces = [[3, 3, 3], [4, 5, 6], [0, 1, 2], [1, 1, 3], [6, 5, 4]]
    path = save(trimesh.Trimesh(corners, faces, process=False), tmp_path / "flat.obj")
    cloud = media.read(path, 1000)
    assert (cloud.points[:, 2] == 0).all()
    assert (cloud.points[:, :2].sum(1) < 1 + 1e-6).all()
    assert (cloud.normals == torch.tensor([0.0, 0, 1])).all()
    path = save(trimesh.Trimesh(corners, np.array(faces)[[0, 1, 3, 4]], process=False), tmp_path / "flat.obj")
    assert error_of(path) == "has 4 faces, but none with finite corners and an area"


def test_three_faces_at_one_edge_are_fine(tmp_path):
    fins = [[0, 0, 0], [0, 0, 1], [1, 0, 0], [-1, 1, 0], [-1, -1, 0]]
    path = save(trimesh.Trimesh(fins, [[0, 1, 2], [0, 1, 3], [0, 1, 4]], process=False), tmp_path / "fins.ply")
    angles = torch.atan2(*media.read(path, 500).points[:, [1, 0]].T).rad2deg().round()
    assert set(angles.tolist()) == {0.0, 135.0, -135.0}


RANDOM = np.random.default_rng(0).bytes(5000)
TEXT = b"The quick brown fox jumps over the lazy dog.\n" * 50
PLY = b"ply\nformat ascii 1.0\nelement vertex %s\nproperty float x\nproperty float y\nproperty float z\n%send_header\n"
FACES = b"element face %s\nproperty list uchar int vertex_indices\n"


def archive(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An npy file, whose header may lie about the shape."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    content = stream.getvalue()
    return content if shape is None else content.replace(str(array.shape).encode(), str(shape).encode())


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


BROKEN = {
    "ten_vertices.obj": (b"v 1 2 3\n" * 10, "holds 10 finite points, at least 16 are needed"),
    "no_such_vertex.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 7\n", "cannot be read as .obj"),
    "words_as_faces.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf a b c\n", "cannot be read as .obj"),
    "words_after_faces.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\nf a b c\n", "cannot be read as .obj"),
    "empty.off": (b"OFF\n0 0 0\n", "holds 0 finite points"),
    "no_such_vertex.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "cannot be read as .off"),
    "no_faces.stl": (bytes(84), "holds no faces and no points"),
    "text.stl": (b"solid\nendsolid\n", "holds no faces and no points"),
    "no_end.ply": (PLY[:-11] % (b"20", b""), "no PLY header"),
    "no_format.ply": (b"ply\nelement vertex 0\nend_header\n", "without a format"),
    "no_type.ply": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty text x\nend_header\n", "no meaning"),
    "no_points.ply": (PLY % (b"0", b""), "holds 0 finite points|is cut off"),
    "no_z.ply": ((PLY % (b"20", b"")).replace(b"float z", b"float w") + b"1 2 3\n" * 20, "x, y and z"),
    "lists.ply": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list int int x\nend_header\n1 1\n", "of lists"),
    "cut_text.ply": (PLY % (b"20", b"") + b"1.0 2.0 3.0\n" * 19, "is cut off"),
    "words.ply": (PLY % (b"20", b"") + b"a b c\n" * 20, "not a table of numbers"),
    "claim.ply": (PLY % (b"1000000000", b"") + b"1 2 3\n" * 20, "1000000000 of vertex, at most 50000000"),
    "small_claim.ply": (PLY % (b"1000000", b"") + b"1 2 3\n" * 20, "is cut off"),
    "huge_claim.ply": (PLY % (b"9" * 30, b"") + b"1 2 3\n" * 20, "no meaning"),
    "claim_of_faces.ply": (PLY % (b"3", FACES % b"999999999") + b"1 2 3\n" * 3, "999999999 of face, at most 20000000"),
    "no_such_vertex.ply": (PLY % (b"3", FACES % b"1") + b"0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "do not exist"),
    "negative_vertex.ply": (PLY % (b"3", FACES % b"1") + b"0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n", "do not exist"),
    "four_columns.xyz": (b"1 2 3 4\n" * 20, "has 4 numbers per line, not 3 or 6"),
    "uneven.xyz": (b"1 2 3\n" * 20 + b"1 2\n", "not a table of numbers"),
    "few.xyz": (b"1 2 3\n" * 15, "holds 15 finite points"),
    "nan.xyz": (b"nan 2 3\n" * 30, "holds 0 finite points"),
    "comment.xyz": (b"# nothing\n", "numbers per line|holds 0"),
    "objects.npy": (npy(np.array([[Bomb()] * 3] * 20)), "Python objects, which are never loaded"),
    "pickle.npy": (pickle.dumps(Bomb()), "cannot be read as .npy"),
    "text_array.npy": (npy(np.array([["a"] * 3] * 20)), "not \\(points, 3 or more\\) and numbers"),
    "flat.npy": (npy(np.zeros(60)), "not \\(points, 3 or more\\)"),
    "false_shape.npy": (
        npy(np.zeros((20, 3)), (40000000, 3)),
        "is cut off: the header of its array promises 960000000",
    ),
    "false_count.npy": (npy(np.zeros((20, 3)), (10**18, 3)), f"has {10**18} points, at most 50000000"),
    "negative_shape.npy": (npy(np.zeros((20, 3)), (-20, 3)), ""),
    "cut.npy": (npy(np.zeros((20, 3)))[:-8], "is cut off"),
    "objects.npz": (archive({"points.npy": npy(np.array([[Bomb()] * 3] * 20))}), "Python objects"),
    "no_points.npz": (archive({"a.npy": npy(np.zeros((20, 3))), "b.npy": npy(np.zeros((20, 3)))}), "but a, b"),
    "nothing.npz": (archive({}), "but nothing"),
    "normals.npz": (
        archive({"points.npy": npy(np.ones((20, 3))), "normals.npy": npy(np.ones((19, 3)))}),
        "normals of shape \\(19, 3\\) for 20 points",
    ),
    "colors.npz": (
        archive({"points.npy": npy(np.ones((20, 3))), "colors.npy": npy(np.full((20, 3), 300))}),
        "colors from 300 to 300, not from 0 to 255",
    ),
    "no_mesh.gltf": (b'{"asset": {"version": "2.0"}}', ""),
    "deep.gltf": (b"[" * 100000, ""),
    "list.gltf": (b"[1, 2]", ""),
    "no_mesh.glb": (struct.pack("<4sIII4s", b"glTF", 2, 49, 29, b"JSON") + b'{"asset": {"version": "2.0"}}', ""),
    "letters.txt": (TEXT, "is not a shape: its name ends in none of .obj, .ply,"),
    "archive.zip": (archive({"box.obj": b"v 0 0 0"}), "is not a shape"),
}
BROKEN |= {f"zero{suffix}": (b"", "has 0 bytes") for suffix in media.SUFFIXES}
BROKEN |= {f"random{suffix}": (RANDOM, "") for suffix in media.SUFFIXES}
BROKEN |= {f"letters{suffix}": (TEXT, "") for suffix in media.SUFFIXES}


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_file_is_a_data_error_that_names_it(tmp_path, monkeypatch, capfd, caplog, name):
    monkeypatch.chdir(tmp_path)
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    found = error_of(tmp_path / name)
    assert re.search(reason, found)
    assert len(found) > 10
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("suffix", [".stl", ".ply", ".glb", ".gltf", ".npz", ".npy"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_files_that_are_cut_off(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    if suffix in (".npz", ".npy"):
        points = np.random.default_rng(0).normal(size=(100, 3))
        np.savez(path, points=points) if suffix == ".npz" else np.save(path, points)
    else:
        save(trimesh.creation.icosphere(3), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    error_of(path)


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "folder.obj").mkdir()
    assert error_of(tmp_path / "folder.obj") == "is not a file"
    assert error_of(tmp_path / "missing.obj") == "cannot be opened (No such file or directory)"
    assert error_of(Path("/dev/null")).startswith("is not a shape")
    (tmp_path / "endless.xyz").symlink_to("/dev/zero")
    assert error_of(tmp_path / "endless.xyz") == "is not a file"


@pytest.mark.parametrize("suffix", [*MESHES, ".npz", ".npy", ".xyz"])
def test_random_damage_raises_nothing_but_data_errors(tmp_path, suffix):
    path = tmp_path / f"damaged{suffix}"
    if suffix in MESHES:
        save(trimesh.creation.icosphere(1), path)
    else:
        points = torch.randn(100, 3)
        np.save(path, points.numpy()) if suffix == ".npy" else media.write(Cloud(points), path)
    intact, random = np.fromfile(path, np.uint8), np.random.default_rng(0)
    for changes in [1, 3, 10] * 10:
        damaged = intact.copy()
        damaged[random.integers(0, len(damaged), changes)] = random.integers(0, 256, changes)
        damaged.tofile(path)
        with suppress(DataError):
            cloud = media.read(path, 50)
            assert cloud.points.isfinite().all()
            assert cloud.normals is None or (cloud.normals.norm(dim=1) - 1).abs().max() < 1e-5


REFERENCES = ["other.bin", "../secret.bin", "/etc/passwd", "http://127.0.0.1:9/b.bin", "file:///etc/passwd", "%2e%2e/s"]


@pytest.mark.parametrize("uri", REFERENCES)
@pytest.mark.parametrize("kind", ["buffers", "images"])
@pytest.mark.parametrize("suffix", [".gltf", ".glb"])
def test_gltf_that_names_another_file(tmp_path, uri, kind, suffix):
    folder = tmp_path / "folder"
    folder.mkdir()
    path, tree = gltf(folder)
    buffer = base64.b64decode(tree["buffers"][0]["uri"].split(",")[1])
    for place in (folder / "other.bin", tmp_path / "secret.bin"):
        place.write_bytes(buffer)
    tree[kind] = [tree.get(kind, [{}])[0] | {"uri": uri}]
    path = path.with_suffix(suffix)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON") if suffix == ".glb" else b""
    path.write_bytes(head + text)
    assert error_of(path) == f"refers to {uri!r}: other files are never opened, embed it"


def test_gltf_that_claims_more_than_it_holds(tmp_path):
    _, tree = gltf(tmp_path)
    many = [accessor | {"count": 10**9} for accessor in tree["accessors"]]
    assert "items in accessors" in error_of(gltf(tmp_path, accessors=many)[0])
    large = [view | {"byteLength": 10**9} for view in tree["bufferViews"]]
    assert "bytes in buffer views" in error_of(gltf(tmp_path, bufferViews=large)[0])
    for change in [{"sparse": {}}, {"bufferView": None}]:
        some = [{k: v for k, v in (a | change).items() if v is not None} for a in tree["accessors"]]
        assert error_of(gltf(tmp_path, accessors=some)[0]).startswith("holds sparse or compressed geometry")


def test_gltf_whose_nodes_go_in_circles(tmp_path):
    path, tree = gltf(tmp_path)
    nodes = [node | {"children": [(k + 1) % len(tree["nodes"])]} for k, node in enumerate(tree["nodes"])]
    path.write_text(json.dumps(tree | {"nodes": nodes}))
    with suppress(DataError):
        check_on_box(media.read(path, 100))


@pytest.mark.parametrize(
    ("suffix", "limits", "reason"),
    [
        (".obj", Limits(size=100), "bytes, from 1 to 100 are allowed"),
        *(
            (suffix, Limits(faces=11), "faces|promises 12 of face")
            for suffix in MESHES
            if suffix not in (".obj", ".gltf")
        ),
        (".obj", Limits(faces=11), "12 faces, at most 11"),
        (".gltf", Limits(faces=1, points=2), "more than 1 faces"),
        (".glb", Limits(points=7), "vertices, at most 7"),
        (".ply", Limits(points=7), "promises 8 of vertex, at most 7"),
        (".npy", Limits(points=7), "has 20 points, at most 7"),
        (".xyz", Limits(points=7), "more lines than the 7 points"),
        (".npz", Limits(size=500), "unpacks to|bytes, from 1 to 500"),
    ],
)
def test_limits(tmp_path, suffix, limits, reason):
    path = tmp_path / f"file{suffix}"
    if suffix in MESHES:
        save(box(), path)
    else:
        points = np.zeros((20, 3))
        {".npy": np.save, ".xyz": np.savetxt, ".npz": np.savez_compressed}[suffix](path, points)
    assert media.read(path, 20).points.shape == (20, 3)
    assert re.search(reason, error_of(path, limits=limits))


@pytest.mark.parametrize(
    ("suffix", "member"), [(".npz", "points.npy"), (".npz", "other"), (".3mf", "3D/3dmodel.model")]
)
def test_archives_are_not_unpacked_beyond_the_limit(tmp_path, suffix, member):
    if suffix == ".3mf" and not HAS_LXML:
        pytest.skip("needs lxml")
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(archive({"points.npy": npy(np.ones((20, 3))), member: npy(np.zeros((10**6, 3)))}))
    assert path.stat().st_size < 10**5
    assert re.match(r"unpacks to 2400\d+ bytes, at most 1000000", error_of(path, limits=Limits(size=10**6)))


def test_instances_count(tmp_path):
    scene = trimesh.Scene()
    sphere = trimesh.creation.icosphere(2)
    for k in range(10):
        matrix = trimesh.transformations.translation_matrix([3 * k, 0, 0])
        scene.add_geometry(sphere, geom_name="sphere", node_name=f"n{k}", transform=matrix)
    (tmp_path / "many.glb").write_bytes(scene.export(file_type="glb"))
    assert media.read(tmp_path / "many.glb", 1000).points[:, 0].max() > 27
    assert error_of(tmp_path / "many.glb", limits=Limits(faces=1000)).startswith("has 3200 faces, at most 1000")


OPENED: list[str] = []
WATCHING = False


def _watch(event: str, arguments: tuple) -> None:
    if WATCHING and (event == "open" or event.startswith(("socket.", "subprocess.", "os.exec", "urllib."))):
        OPENED.append(f"{event} {arguments[0]}")


sys.addaudithook(_watch)


@pytest.mark.parametrize("suffix", [*MESHES, ".ply texture", ".obj folder", ".npz", ".npy", ".xyz"])
def test_nothing_but_the_file_is_opened(tmp_path, monkeypatch, caplog, suffix):
    suffix, _, variant = suffix.partition(" ")
    path = tmp_path / f"file{suffix}"
    (tmp_path / "lure.mtl").write_text("newmtl lure\nKd 1 0 0\nmap_Kd http://127.0.0.1:9/lure.png\n")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "lure.png")
    visual = {"visual": textured(Image.new("RGB", (4, 4), "red"))} if suffix in (".glb", ".gltf") else {}
    if suffix in MESHES:
        square(tmp_path, path.name, **visual)
        if suffix == ".obj":
            library = "lure.mtl" if variant else "/etc/passwd"
            path.write_text(f"mtllib {library}\nmtllib http://127.0.0.1:9/a.mtl\nusemtl lure\n{path.read_text()}")
        if variant == "texture":
            path.write_bytes(path.read_bytes().replace(b"1.0\n", b"1.0\ncomment TextureFile lure.png\n", 1))
    else:
        media.write(Cloud(torch.randn(30, 3)), path) if suffix != ".npy" else np.save(path, np.ones((30, 3)))
    media.read(path, 30)  # imports what it needs

    def refuse(*_, **__):
        raise AssertionError("a socket was used")

    for name in ("socket", "getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    plain_open = builtins.open
    monkeypatch.setattr(builtins, "open", lambda *a, **k: OPENED.append(f"builtins {a[0]}") or plain_open(*a, **k))
    OPENED.clear()
    monkeypatch.setattr(sys.modules[__name__], "WATCHING", True)
    cloud = media.read(path, 30)
    monkeypatch.setattr(sys.modules[__name__], "WATCHING", False)
    assert [f"open {path}"] == OPENED
    assert (cloud.colors is None) == (not visual)
    assert not caplog.records


def model(resources: str, build: str) -> bytes:
    """A 3MF file."""
    space = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
    text = f'<model xmlns="{space}"><resources>{resources}</resources><build>{build}</build></model>'
    return archive({"3D/3dmodel.model": text.encode()})


TRIANGLE = """<object id="0"><mesh><vertices><vertex x="0" y="0" z="0"/><vertex x="1" y="0" z="0"/>
<vertex x="0" y="1" z="0"/></vertices><triangles><triangle v1="0" v2="1" v3="2"/></triangles></mesh></object>"""


@pytest.mark.skipif(not HAS_LXML, reason="needs lxml")
def test_3mf_places_objects_within_bounds(tmp_path):
    def twice(levels: int) -> str:
        holders = (f'<component objectid="{k - 1}"/>' * 2 for k in range(1, levels + 1))
        nested = (f'<object id="{k}"><components>{c}</components></object>' for k, c in enumerate(holders, 1))
        return TRIANGLE + "".join(nested)

    path = tmp_path / "nested.3mf"
    path.write_bytes(model(twice(3), '<item objectid="3" transform="1 0 0 0 1 0 0 0 1 5 0 0"/>'))
    assert media.read(path, 100).points[:, 0].min() >= 5
    for content, reason in [
        (model(twice(60), '<item objectid="60"/>'), "nests its objects more than 8 deep"),
        (model(TRIANGLE, '<item objectid="0"/>' * 3000), "places its objects 3000 times, at most 2000"),
        (model(twice(7), '<item objectid="7"/>' * 100), "places its objects 3200 times, at most 2000"),
        (model(TRIANGLE.replace('d="0"', 'd="0" name="&a;"'), '<item objectid="0"/>'), "cannot be read as .3mf"),
    ]:
        path.write_bytes(content)
        assert error_of(path).startswith(reason)


@pytest.mark.skipif(HAS_LXML, reason="lxml is installed")
def test_3mf_without_lxml_says_what_to_install(tmp_path):
    (tmp_path / "box.3mf").write_bytes(archive({"3D/3dmodel.model": b"<model/>"}))
    assert error_of(tmp_path / "box.3mf") == "needs lxml to be read: pip install lxml"


@pytest.mark.parametrize("suffix", [".ply", ".xyz", ".npz", ".glb", ".PLY"])
@pytest.mark.parametrize("fields", [(), ("normals",), ("colors",), ("normals", "colors")])
def test_written_points_read_back(tmp_path, suffix, fields):
    full = {
        "normals": torch.nn.functional.normalize(torch.randn(50, 3)),
        "colors": torch.randint(0, 256, (50, 3), dtype=torch.uint8),
    }
    cloud = Cloud(1e3 * torch.randn(50, 3), **{name: full[name] for name in fields})
    media.write(cloud, tmp_path / f"cloud{suffix}")
    assert len(list(tmp_path.iterdir())) == 1
    back = media.read(tmp_path / f"cloud{suffix}", 50)
    assert torch.equal(back.points, cloud.points)
    kept = {".glb": fields[-1:] if "colors" in fields else (), ".xyz": fields[:1]}.get(suffix, fields)
    for name in full:
        if name in kept:
            torch.testing.assert_close(getattr(back, name), full[name], rtol=0, atol=1e-6)
        else:
            assert getattr(back, name) is None


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".obj", ".stl"])
@pytest.mark.parametrize("colored", [False, True])
def test_written_meshes_read_back(tmp_path, suffix, colored, caplog):
    vertices, faces = torch.tensor(box().vertices).float(), torch.tensor(box().faces)
    colors = torch.full((8, 3), 7, dtype=torch.uint8) if colored else None
    media.write_mesh(vertices, faces, tmp_path / f"box{suffix}", colors)
    assert [file.name for file in tmp_path.iterdir()] == [f"box{suffix}"]
    cloud = media.read(tmp_path / f"box{suffix}", 300)
    check_on_box(cloud)
    assert (cloud.colors == 7).all() if colored and suffix != ".stl" else cloud.colors is None
    assert not caplog.records


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "folder.ply").mkdir()
    for path in (tmp_path / "folder.ply", tmp_path / "nowhere" / "cloud.ply"):
        with pytest.raises(DataError, match="cannot be written"):
            media.write(Cloud(torch.randn(20, 3)), path)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.ply"]


def test_wrong_arguments_name_what_is_allowed(tmp_path):
    cloud, triangle = Cloud(torch.randn(20, 3)), torch.tensor([[0, 1, 2]])
    with pytest.raises(ValueError, match=r"\.ply.*\.xyz.*20 for 'cloud\.obj'"):
        media.write(cloud, tmp_path / "cloud.obj")
    with pytest.raises(ValueError, match=r"got 0 for 'cloud\.ply'"):
        media.write(Cloud(torch.zeros(0, 3)), tmp_path / "cloud.ply")
    with pytest.raises(ValueError, match=r"\.glb.*'mesh\.xyz'"):
        media.write_mesh(cloud.points, triangle, tmp_path / "mesh.xyz")
    for faces in (triangle - 1, triangle + 18, triangle[:0]):
        with pytest.raises(ValueError, match="indices of the 20 vertices"):
            media.write_mesh(cloud.points, faces, tmp_path / "mesh.ply")
    with pytest.raises(ValueError, match="points must be a whole number of at least 1, got 0"):
        media.read(tmp_path / "cloud.ply", 0)
    with pytest.raises(ValueError, match=r"up must be one of \['y', 'z', 'x'\], got 'w'"):
        media.read(tmp_path / "cloud.ply", 10, up="w")
    with pytest.raises(ValueError, match="faces must be a whole number of at least 1, got 0"):
        Limits(faces=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 5.0), (1e4, -7e5), (3e37, 0.0)])
def test_normalized_points_fill_the_box_and_come_back(dtype, scale, shift):
    points = (scale * torch.tensor([1.0, 2.0, 0.5]) * torch.randn(500, 3) + shift).to(dtype)
    unit, center, half = media.normalize(points)
    assert (unit.dtype, center.dtype, half.dtype) == (dtype,) * 3
    assert unit.abs().amax(0)[1] == pytest.approx(1, abs=1e-6)
    assert unit.abs().max() <= 1
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close((unit.amax(0) + unit.amin(0)) / 2, torch.zeros(3, dtype=dtype), rtol=0, atol=0.01)
    assert (unit * half + center - points).abs().max() <= 4 * eps * points.abs().max()
    ratios = (points[1:] - points[0]).double().norm(dim=1) / (unit[1:] - unit[0]).double().norm(dim=1)
    torch.testing.assert_close(ratios, half.double().expand_as(ratios), rtol=1e-2, atol=0)


def test_normalized_points_that_are_all_the_same():
    unit, center, half = media.normalize(torch.full((20, 3), 7.0))
    assert torch.equal(unit, torch.zeros(20, 3))
    assert torch.equal(center, torch.full((3,), 7.0))
    assert half == 1
