"""What may know what: the layers of the core, and that no modality is known to any of them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODALITIES = (
    "audio|sounds?|waveforms?|wav|mel|spectrograms?|stft|speech|music|mmdiff_audio"
    "|videos?|mmdiff_video|point ?clouds?|mesh|meshes|voxels?|mmdiff_pointcloud"
)
"""Words that only a modality would say."""


def test_layers(environment):
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_no_modality_is_named():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for folder in ("mmdiff", "conf")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".yaml")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in re.finditer(rf"(?<!\w)({MODALITIES})(?!\w)", line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_modalities_is_no_package():
    assert not (ROOT / "modalities" / "__init__.py").exists()


def test_a_modality_can_be_deleted(environment, tmp_path):
    """The core in a tree without modalities, though the installed metadata still name one."""
    for folder in ("mmdiff", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    code = f"""
import sys
sys.path = [{str(tmp_path)!r}, *(p for p in sys.path if p not in ("", {str(ROOT)!r}, {str(ROOT / "modalities")!r}))]
sys.argv = ["mmdiff", "info"]
from mmdiff.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "mmdiff_audio (mmdiff " in done.stdout
    assert "BROKEN, ModuleNotFoundError" in done.stdout
    assert "solver       adams_bashforth, adaptive, ancestral" in done.stdout
    assert "audio/" not in done.stdout
