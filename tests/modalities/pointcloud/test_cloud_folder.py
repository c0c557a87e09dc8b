"""``mmdiff train experiment=pointcloud/folder`` on shapes as people have them."""

import base64
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from mmdiff.checkpoint import load_dict
from mmdiff_pointcloud import media

TINY = [
    "experiment=pointcloud/folder",
    "debug=fast",
    "network.width=16",
    "network.cells=4",
    "network.cell_width=16",
    "network.stages=1",
    "network.depth=1",
    "conditioner.features=16",
    "modality.points=64",
]
BAD = (
    "empty.obj",
    "nan.ply",
    "flat.off",
    "text.obj",
    "elsewhere.gltf",
    "address.gltf",
)


def gltf(uri: str) -> str:
    """A triangle whose buffer is somewhere else."""
    return json.dumps(
        {
            "asset": {"version": "2.0"},
            "buffers": [{"byteLength": 36, "uri": uri}],
            "bufferViews": [{"buffer": 0, "byteLength": 36}],
            "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
            "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
            "nodes": [{"mesh": 0}],
            "scenes": [{"nodes": [0]}],
        }
    )


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Meshes and clouds in many formats, and files that are broken or that point elsewhere."""
    root = tmp_path_factory.mktemp("shapes") / "root"
    for folder in ("round", "square"):
        (root / folder).mkdir(parents=True)
    ball, box = trimesh.creation.icosphere(2), trimesh.creation.box()
    for suffix in ("obj", "ply", "stl", "glb"):
        ball.export(root / "round" / f"ball.{suffix}")
        box.export(root / "square" / f"box.{suffix}")
    box.export(root / "square" / "box.off")
    points = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    np.savetxt(root / "round" / "points.xyz", points)
    np.save(root / "round" / "points.npy", points)
    np.savez(root / "round" / "points.npz", points=points)
    # three faces on one edge: no manifold, but a surface
    fan = "v 0 0 0\nv 0 1 0\nv 1 0 0\nv 0 0 1\nv -1 0 0\nf 1 2 3\nf 1 2 4\nf 1 2 5\n"
    (root / "square" / "fan.obj").write_text(fan)
    triangle = base64.b64encode(struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0)).decode()
    (root / "square" / "inside.gltf").write_text(gltf(f"data:application/octet-stream;base64,{triangle}"))

    (root / "empty.obj").touch()
    header = (
        "ply\nformat ascii 1.0\nelement vertex 20\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    (root / "nan.ply").write_text(header + "nan nan nan\n" * 20)
    (root / "flat.off").write_text("OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n")
    (root / "text.obj").write_text("no shape at all\n" * 100)
    (root.parent / "secret.bin").write_bytes(struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0))
    (root / "elsewhere.gltf").write_text(gltf("../secret.bin"))
    (root / "address.gltf").write_text(gltf("http://127.0.0.1:9/secret.bin"))
    return root


@pytest.fixture(scope="module")
def run(shapes, command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    ran = command("train", *TINY, f"data.root={shapes}", "data.num_workers=0", "hydra.run.dir=run", folder=folder)
    assert ran.status == 0, ran.err
    lines = ran.err.splitlines()
    assert len(lines) == len(BAD), ran.err
    for name in BAD:
        assert sum(bool(re.match(rf"warning: skipped {shapes}/{re.escape(name)}: ", line)) for line in lines) == 1
    assert "secret" in next(line for line in lines if "elsewhere" in line)
    return folder / "run"


def test_a_folder_of_real_shapes(run):
    content = load_dict(run / "checkpoints" / "last.ckpt")
    assert content["global_step"] == 2
    assert content["config"]["conditioner"]["embedders"]["label"]["classes"] == ["round", "square"]
    assert (run / "previews" / "step_0000002.png").is_file()


def test_a_partial_cloud_is_completed_in_its_own_units(run, command, tmp_path):
    part = torch.rand(20, 3) * torch.tensor([4.0, 2.0, 1.0]) + 100
    media.write(media.Cloud(part), tmp_path / "part.xyz")
    ran = command(
        "sample", f"checkpoint={run}/checkpoints/last.ckpt", "given=part.xyz", "count=2", "mesh=true", folder=tmp_path
    )
    assert (ran.status, ran.err) == (0, "")
    made = media.read(tmp_path / "samples" / "00001.ply", 64).points
    assert made.shape == (64, 3)
    torch.testing.assert_close(made[:20], part, rtol=1e-6, atol=1e-4)
    assert (tmp_path / "samples" / "00001.glb").is_file()


def test_more_points_than_in_training(run, command, tmp_path):
    ran = command("sample", f"checkpoint={run}/checkpoints/last.ckpt", "points=200", "count=1", folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert media.read(tmp_path / "samples" / "00000.ply", 1000).points.shape == (200, 3)


def test_an_option_that_nothing_has(run, command, tmp_path):
    ran = command("sample", f"checkpoint={run}/checkpoints/last.ckpt", "pionts=200", folder=tmp_path)
    assert ran.status == 1
    assert ran.err.startswith(
        "mmdiff sample: pionts is not an option; did you mean points? the command takes checkpoint"
    )
