"""What may know what: the layers of the core, and that no modality is known to any of them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.name for path in (ROOT / "modalities").glob("mmdiff_*"))
MODALITIES = (
    "audio|sounds?|waveforms?|wav|mel|spectrograms?|stft|speech|music|mmdiff_audio"
    "|videos?|mmdiff_video|point ?clouds?|mesh(?!=)|meshes|voxels?|mmdiff_pointcloud"
)
"""Words that only a modality would say; `mesh=` is also an argument of torch, of devices."""


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


def in_a_copy(tmp_path: Path, environment: dict[str, str], modalities: Iterable[str], code: str) -> str:
    """What code prints in a tree with those modalities alone, though the installed metadata still name all."""
    for folder in ("mmdiff", "conf", *(f"modalities/{name}" for name in modalities)):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    start = f"""
import sys
from pathlib import Path
ours = {["mmdiff", *PACKAGES]!r}
elsewhere = [path for path in sys.path if path and not any(Path(path, name, "__init__.py").exists() for name in ours)]
sys.path = [{str(tmp_path)!r}, {str(tmp_path / "modalities")!r}, *elsewhere]
"""
    environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_all_modalities_can_be_deleted(environment, tmp_path):
    code = """
sys.argv = ["mmdiff", "info"]
from mmdiff.cli import main
main()
"""
    told = in_a_copy(tmp_path, environment, [], code)
    assert "mmdiff_audio (mmdiff " in told
    assert "BROKEN, ModuleNotFoundError" in told
    assert "solver       adams_bashforth, adaptive, ancestral" in told
    assert "audio/" not in told


@pytest.mark.slow
@pytest.mark.parametrize("deleted", PACKAGES)
def test_a_modality_can_be_deleted(deleted, environment, tmp_path):
    """Every module of the others imports, and every experiment of theirs still makes a model."""
    code = """
import importlib
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from mmdiff import plugins
from mmdiff.checkpoint import build_denoiser
plugins.register()
for path in sorted(Path("modalities").rglob("*.py")):
    importlib.import_module(".".join(path.relative_to("modalities").with_suffix("").parts))
with initialize_config_dir(str(plugins.core_conf()), version_base="1.3"):
    for option in plugins.options("experiment"):
        config = compose("train", [f"experiment={option}", "conditioner.embedders=null"])
        print(option, build_denoiser(config, instantiate(config.modality)).network is not None)
"""
    others = [name for name in PACKAGES if name != deleted]
    told = in_a_copy(tmp_path, environment, others, code).splitlines()
    experiments = {
        f"{name.removeprefix('mmdiff_')}/{path.stem}"
        for name in others
        for path in (ROOT / "modalities" / name / "conf" / "experiment").rglob("*.yaml")
    }
    assert len(experiments) >= 4
    assert {line.split()[0] for line in told if line.endswith(" True")} == experiments
