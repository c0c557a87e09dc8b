"""The conformance kit: it passes what `mmdiff new` writes, and names the way in which anything else is broken."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from pydoc import locate
from types import ModuleType

import pytest
import torch
from torch import nn

from mmdiff import DataError, plugins
from mmdiff.cli.new import new
from mmdiff.conditioning import ClassEmbedder, Conditioner
from mmdiff.metrics.kernel import KernelDistance
from mmdiff.solvers import ancestral, dpmpp_2m, euler, heun
from mmdiff.testing import (
    check_conditioner,
    check_dataset,
    check_modality,
    check_network,
    check_plugin,
    check_solver,
)
from mmdiff.testing.expect import PAGE, message
from mmdiff.testing.plugin import results
from mmdiff.types import Context, Step

ROOT = Path(__file__).parents[1]


def test_every_rule_is_documented_where_the_message_says():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mmdiff" / "testing").glob("*.py"))
    names = set(re.findall(r'"(mmdiff\.[\w.]+)"', sources)) | {
        f"mmdiff.modality.Modality.{name}" for name in re.findall(r'\{RULES\}\.(\w+)"', sources)
    }
    assert len(names) > 15
    sections = re.findall("^### `(.*)`$", (ROOT / PAGE).read_text(encoding="utf-8"), re.MULTILINE)
    pages = {f"{PAGE}#{section.lower()}" for section in sections}
    told = {name: message("this", "that", name).rpartition(" and ")[2] for name in names}
    for name in names:
        assert (locate(name).__doc__ or "").strip(), name
        assert told[name] in pages, name
    assert set(told.values()) == pages
    assert len(set(told.values())) == len(sections) == len(names)


# What `mmdiff new` writes


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder on the search path of Python, in which the plugin ``tides`` that `mmdiff new` wrote is installed."""
    folder = tmp_path_factory.mktemp("site") / "mmdiff-tides"
    new("tides", folder)
    install(folder, "tides")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    for name in [name for name in sys.modules if name.startswith("mmdiff_tides")]:
        del sys.modules[name]


def install(place: Path, name: str, needs: str = "mmdiff>=0.1") -> None:
    """Give a package the metadata of an installed distribution."""
    metadata = place / f"mmdiff_{name}-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: mmdiff-{name}\nVersion: 0.1.0\nRequires-Dist: {needs}\n"
    (metadata / "METADATA").write_text(text)
    (metadata / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = mmdiff_{name}\n")


@pytest.fixture(scope="module")
def tides(place) -> ModuleType:
    return import_module("mmdiff_tides.modality")


@pytest.fixture(scope="module")
def waves(place):
    return import_module("mmdiff_tides.data").Waves(size=16)


@pytest.fixture(scope="module")
def media(waves) -> list[torch.Tensor]:
    return [waves[i][0] for i in range(len(waves))]


@pytest.fixture(scope="module")
def modality(tides, media):
    return tides.Tides(**tides.Tides().fit(media))


def test_the_new_plugin_passes(place):
    found = list(results("tides"))
    assert [result.failure for result in found] == [None] * len(found)
    assert [result.check for result in found][:4] == [
        "package",
        "options",
        "tides/waves: configuration",
        "tides/waves: dataset",
    ]
    measured = {result.check: result.measured for result in found}
    assert measured["tides/waves: network"]["loss lowered"] >= 10
    assert measured["tides/waves: modality"].keys() == {"decode", "write and read"}
    assert measured["tides/waves: conditions"] == {"conditions": 2}
    assert "tides/folder: samples" in measured


def test_network_of_the_new_plugin_is_told_a_level_for_each_number(place):
    network = import_module("mmdiff_tides.network").Network((1, 64), 4, width=16, depth=2)
    nn.init.normal_(network.out.weight)
    x, noise, context = torch.randn(3, 1, 64), torch.randn(3), Context(vector=torch.randn(3, 4))
    alike, other = noise[:, None, None].repeat(1, 1, 64), noise[:, None, None].repeat(1, 1, 64)
    other[..., -1] += 1
    assert torch.allclose(network(x, alike, context), network(x, noise, context), atol=1e-5)
    change = (network(x, other, context) - network(x, alike, context)).abs().amax((0, 1))
    assert change[-1] > 10 * change[:32].max()


# Broken modalities: the method, what stands in its place (given the right one), and what the kit says


def short(media):
    return media.shape[-1] < 64


def decoded(change):
    return lambda old: lambda self, x: change(old(self, x))


def encoded(change):
    return lambda old: lambda self, media: change(old(self, media))


def bad_files(change):
    """Reads good files well; ``change`` gets what is wrong with others."""

    def read(old):
        def read(self, path, generator=None):
            try:
                return old(self, path, generator)
            except DataError as error:
                return change(path, error)

        return read

    return read


def strict(old):
    def read(self, path, generator=None):
        media = old(self, path, generator)
        if short(media):
            raise RuntimeError("an index out of range")
        return media

    return read


def throw(error):
    raise error


class Falling(KernelDistance):
    def compute(self):
        return {name: -value for name, value in super().compute().items()}


class Nothing(KernelDistance):
    def compute(self):
        return None


CALLS = count()
MODALITIES = {
    "shape": (
        "encode",
        encoded(lambda x: x[..., :-1]),
        r"encode keeps the batch and gives \(1, 64\); seen: \(16, 1, 63",
    ),
    "type": ("encode", encoded(lambda x: x.double()), r"encode gives float32; seen: torch\.float64"),
    "not finite": ("encode", encoded(lambda x: x / 0), "encode gives finite numbers; seen: inf or nan"),
    "scale": ("encode", encoded(lambda x: 100 * x), r"deviation near 1 \(0.2 to 5\); seen: 100"),
    "changes media": ("encode", lambda old: lambda s, m: old(s, m.add_(0.1)), "encode leaves the media as they are"),
    "one example": (
        "encode",
        lambda old: lambda s, m: old(s, m)[None] if m.ndim == 2 else old(s, m),
        r"encode of one example gives \(1, 64\); seen: \(1, 1, 64\)",
    ),
    "depends on batch": (
        "encode",
        encoded(lambda x: x - x.mean(0) / 10 if x.ndim > 2 else x),
        "encode treats an example alone as in a batch",
    ),
    "batch dimensions": (
        "encode",
        encoded(lambda x: x.flatten(0, 1) if x.ndim > 3 else x),
        r"encode passes any leading batch dimensions through; seen: \(16, 1, 64\)",
    ),
    "shape of media": ("decode", decoded(lambda m: m[..., :-1]), "decode gives the shape of media"),
    "type of media": ("decode", decoded(lambda m: m.double()), "decode gives the type of media"),
    "random decoder": ("decode", decoded(lambda m: m + 1e-3 * torch.randn_like(m)), "decode is deterministic"),
    "decoder's dimensions": (
        "decode",
        decoded(lambda m: m[0] if m.ndim > 3 else m),
        "decode passes any leading batch dimensions through",
    ),
    "wild output": (
        "decode",
        decoded(lambda m: torch.where(m.abs() > 8, torch.inf, m)),
        "decode gives finite media for any model output",
    ),
    "no inverse": (
        "decode",
        decoded(lambda m: -m),
        "decode and encode lose less than 0.8 standard deviations; seen: 2",
    ),
    "no padding": (
        "encode",
        lambda old: lambda s, m: old(s, m)[..., : m.shape[-1]],
        r"encode pads media of shape \(1, 32\) to \(1, 64\); seen: \(1, 32\)",
    ),
    "padding of nan": (
        "encode",
        lambda old: lambda s, m: old(s, m) / (torch.arange(64) < m.shape[-1]),
        "encode pads with finite numbers",
    ),
    "no mask": ("mask", lambda old: lambda s, m: None, "mask tells where padded media are padding; seen: None"),
    "mask's shape": (
        "mask",
        lambda old: lambda s, m: old(s, m)[0] if short(m) else None,
        r"mask is bool, \(1, 64\); seen: .*\[64\]",
    ),
    "mask's type": ("mask", lambda old: lambda s, m: old(s, m).float() if short(m) else None, "mask is bool"),
    "mask of nothing": (
        "mask",
        lambda old: lambda s, m: old(s, m).fill_(True) if short(m) else None,
        "mask of padded media has true and false elements",
    ),
    "mask in the middle": (
        "mask",
        lambda old: lambda s, m: old(s, m).flip(-1) if short(m) else None,
        "mask of padded media ends early along ragged=-1; seen: data at the end",
    ),
    "mask of full media": (
        "mask",
        lambda old: lambda s, m: torch.arange(64)[None] < m.shape[-1] - 1,
        "mask of full-size media is None or all true",
    ),
    "place elsewhere": (
        "place",
        lambda old: lambda s, m, known=None: (old(s, m, known)[0].flip(-1), old(s, m)[1]),
        "place gives the given media in model space",
    ),
    "place without channel": (
        "place",
        lambda old: lambda s, m, known=None: (old(s, m, known)[0], old(s, m)[1][0]),
        "place gives the known elements as bool with one channel",
    ),
    "place takes any word": ("place", lambda old: lambda s, m, known=None: old(s, m), "for a word .*; seen: no error"),
    "place raises another error": (
        "place",
        lambda old: lambda s, m, known=None: throw(KeyError(known)) if known else old(s, m),
        "place raises ValueError for a word that it does not know; seen: KeyError",
    ),
    "preview's type": ("preview", lambda old: lambda s, m: old(s, m).float(), r"preview is a uint8 picture of shape"),
    "preview's shape": ("preview", lambda old: lambda s, m: old(s, m)[:1], r"preview is a uint8 picture of shape"),
    "empty preview": ("preview", lambda old: lambda s, m: old(s, m) * 0, "preview shows something; seen: one color"),
    "fit's names": ("fit", lambda old: lambda s, m: {"level": 1.0}, "fit gives arguments of the .*; seen: level"),
    "fit's values": ("fit", lambda old: lambda s, m: {"mean": torch.ones(1)}, "fit gives plain numbers and lists"),
    "not picklable": (
        "__getstate__",
        lambda old: lambda s: {"x": lambda: 0},
        "a modality can be pickled, for workers; seen: .*pickle",
    ),
    "pickled without state": (
        "__getstate__",
        lambda old: lambda s: s.__dict__ | {"mean": 1.0},
        r"a pickled modality \(a worker's\) encodes alike",
    ),
    "suffix": ("suffix", lambda old: ".csv", r"suffix is one of suffixes.*; seen: \('\.csv', \('\.txt',\)\)"),
    "writes nothing": ("write", lambda old: lambda s, m, path: None, "write writes the file; seen: none"),
    "writes badly": (
        "write",
        lambda old: lambda s, m, path: old(s, m.round(), path),
        "write and read lose less than 0.3",
    ),
    "random read": (
        "read",
        lambda old: lambda s, path, g=None: old(s, path) + 1e-4 * torch.rand(()),
        "read without a generator is deterministic",
    ),
    "generator not used": (
        "read",
        lambda old: lambda s, path, g=None: old(s, path) + (1e-4 * next(CALLS) if g else 0.0),
        "read gives the same for generators of the same seed",
    ),
    "bad file read": ("read", bad_files(lambda path, e: torch.zeros(1, 64)), "DataError for a file that holds nothing"),
    "bad file with another error": (
        "read",
        bad_files(lambda path, e: throw(e if path.stat().st_size == 0 else UnicodeError("no text"))),
        "DataError for a file that holds noise; seen: UnicodeError: no text",
    ),
    "cut file": (
        "read",
        strict,
        "DataError for a file that holds half a file; seen: RuntimeError: an index out of range",
    ),
    "missing file": (
        "read",
        bad_files(lambda path, e: throw(e if path.exists() else FileNotFoundError(path))),
        "DataError for a file that is missing; seen: FileNotFoundError",
    ),
    "error without a name": (
        "read",
        bad_files(lambda path, e: throw(DataError("a file", "is bad"))),
        "a DataError names its file; seen: a file: is bad",
    ),
    "metric that falls": (
        "metrics",
        lambda old: lambda s: {"far": Falling(lambda m: m[:, 0])},
        "metric far, a distance, is larger for corrupted media; seen: ",
    ),
    "metric of nothing": (
        "metrics",
        lambda old: lambda s: {"far": Nothing(lambda m: m[:, 0])},
        "metric far computes; seen: None",
    ),
}


def test_good_modality(modality, media, tmp_path):
    lost = check_modality(modality, media, tmp_path)
    assert lost["decode"] < 1e-6
    assert 0 < lost["write and read"] < 1e-4


def test_two_media_are_enough_but_one_is_not(modality, media, tmp_path):
    check_modality(modality, media[:2], tmp_path)
    with pytest.raises(AssertionError, match="media holds at least two examples; seen: 1"):
        check_modality(modality, media[:1], tmp_path)


@pytest.mark.parametrize("way", MODALITIES)
def test_broken_modality(way, tides, modality, media, monkeypatch, tmp_path):
    name, broken, message = MODALITIES[way]
    monkeypatch.setattr(tides.Tides, name, broken(getattr(tides.Tides, name)))
    with pytest.raises(AssertionError, match=rf"expected: .*{message}.*; documented in mmdiff\.modality\.Modality"):
        check_modality(modality, [m.clone() for m in media], tmp_path)


# Broken data sets


def changed(change):
    return lambda old: lambda self, i: change(i, *old(self, i))


DATASETS = {
    "no pair": (changed(lambda i, m, c: m), "an example is a pair of a tensor and a dictionary; seen: Tensor"),
    "no tensor": (changed(lambda i, m, c: (m.tolist(), c)), "of a tensor and a dictionary; seen: list and dict"),
    "no names": (changed(lambda i, m, c: (m, {0: 1})), r"conditions have names; seen: \[0\]"),
    "random": (changed(lambda i, m, c: (m + 0.001 * next(CALLS), c)), "the same index and seed of torch"),
    "random conditions": (changed(lambda i, m, c: (m, {"call": next(CALLS)})), "the same index and seed of torch"),
    "one example": (lambda old: lambda self, i: old(self, 0), "indices give different examples; seen: 4 equal ones"),
    "size": (changed(lambda i, m, c: (m.repeat(1, 2), c)), r"media encode to \(1, 64\); seen: \(1, 128\)"),
}


def test_good_dataset(waves, modality):
    assert check_dataset(waves, modality) == {"examples": 16}


@pytest.mark.parametrize("way", DATASETS)
def test_broken_dataset(way, waves, modality, monkeypatch):
    broken, message = DATASETS[way]
    monkeypatch.setattr(type(waves), "__getitem__", broken(type(waves).__getitem__))
    if way == "size":  # the padding of this modality would cut it off
        monkeypatch.setattr(type(modality), "encode", lambda self, media: media)
    with pytest.raises(AssertionError, match=rf"{message}.*; documented in mmdiff\.types\.MediaSet"):
        check_dataset(waves, modality)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda self: {"open": lambda: 0}, "a data set can be pickled, for workers; seen: "),
        (lambda self: self.__dict__ | {"seed": 7}, "the same index and pickled copy's index give the same example"),
    ],
)
def test_dataset_of_a_worker(state, message, waves, modality, monkeypatch):
    monkeypatch.setattr(type(waves), "__getstate__", state)
    with pytest.raises(AssertionError, match=message):
        check_dataset(waves, modality)


def test_mask_of_a_dataset(waves, modality, monkeypatch):
    monkeypatch.setattr(type(modality), "mask", lambda self, media: torch.zeros(1, 64, dtype=torch.bool))
    with pytest.raises(AssertionError, match="the mask is bool of shape"):
        check_dataset(waves, modality)


# Broken conditioners


class Broken(ClassEmbedder):
    def __init__(self, change):
        super().__init__(8, ["low", "high"])
        self.change = change

    def forward(self, values):
        known = [value is not None for value in values]
        return self.change(super().forward(values), known)


CONDITIONERS = {
    "nothing when unknown": (
        lambda c, known: c if any(known) else Context(),
        "keeps the context's vector; seen: one, then none",
    ),
    "smaller when unknown": (
        lambda c, known: c if any(known) else Context(vector=c.vector[:, :4]),
        "keeps the shape of the context's vector",
    ),
    "nan when unknown": (
        lambda c, known: c if any(known) else Context(vector=c.vector * torch.nan),
        "leaves the context's vector finite",
    ),
    "random null": (lambda c, known: Context(vector=c.vector + torch.randn(())), "None gives the vector of null"),
}


def test_good_conditioner():
    conditioner = Conditioner(8, {"level": ClassEmbedder(8, ["low", "high"])})
    assert check_conditioner(conditioner, {"level": ["low", "high"]}) == {"conditions": 1}
    assert check_conditioner(Conditioner(8), {}) == {"conditions": 0}


@pytest.mark.parametrize("way", CONDITIONERS)
def test_broken_conditioner(way):
    change, message = CONDITIONERS[way]
    with pytest.raises(AssertionError, match=rf"{message}.*; documented in mmdiff\.conditioning"):
        check_conditioner(Conditioner(8, {"level": Broken(change)}), {"level": ["low", "high"]})


# Broken networks


class Net(nn.Module):
    """A small network; ``change`` stands between its output and its input."""

    def __init__(self, change=lambda y, x, noise, context: y):
        super().__init__()
        self.change = change
        self.into = nn.Linear(6 + 1 + 4, 512)
        self.out = nn.Linear(512, 6)
        self.spare = nn.Parameter(torch.zeros(()))

    def forward(self, x, noise, context):
        told = torch.cat([x.flatten(1), noise[:, None], context.vector], 1)
        y = self.out(self.into(told).tanh()).reshape(x.shape) + self.spare
        return self.change(y, x, noise, context)


def blind(part):
    """The network with one of its inputs set to zero."""

    def change(y, x, noise, context):
        inputs = {"x": x, "noise": noise, "context": context.vector}
        inputs[part] = torch.zeros_like(inputs[part])
        return NET(inputs["x"], inputs["noise"], Context(vector=inputs["context"])) + 0 * y

    return change


NET = Net()
NETWORKS = {
    "shape": (lambda y, *_: y.flatten(1), r"returns the shape of x, \(4, 2, 3\); seen: \(4, 6\)"),
    "type": (lambda y, *_: y.double(), r"returns the type of x, torch\.float32; seen: torch\.float64"),
    "nan": (lambda y, *_: y / 0, "returns finite numbers; seen: inf or nan"),
    "changes x": (lambda y, x, *_: y + x.add_(1), "leaves x as it is"),
    "random": (lambda y, *_: y + 0.1 * torch.randn_like(y), "in eval mode is deterministic"),
    "mixes examples": (lambda y, *_: y - y.mean(0), "treats an example alone as in a batch"),
    "blind": (blind("x"), "the output depends on x"),
    "ignores noise": (blind("noise"), "it depends on noise"),
    "ignores conditions": (blind("context"), "depends on the context's vector"),
    "infinite gradient": (lambda y, *_: y + (y - y).abs().sqrt(), "gets a finite gradient; seen: inf or nan"),
    "cannot learn": (lambda y, *_: 1e-6 * y, "500 steps on one batch lower the loss 10 times; seen: "),
}


@pytest.fixture
def batch():
    return torch.randn(4, 2, 3), Context(vector=torch.randn(4, 4))


def test_good_network(batch):
    network = Net()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measured = check_network(network, *batch)
    assert measured["loss lowered"] >= 10
    assert 1 < measured["steps"] < 500
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(AssertionError, match=r"lower the loss 1e[+]15 times"):
        check_network(network, *batch, factor=1e15)


@pytest.mark.parametrize("way", NETWORKS)
def test_broken_network(way, batch):
    change, message = NETWORKS[way]
    with pytest.raises(AssertionError, match=rf"{message}.*; documented in mmdiff\."):
        check_network(Net(change), *batch)


def test_unused_parameter(batch):
    network = Net()
    network.forgotten = nn.Parameter(torch.zeros(3))
    with pytest.raises(AssertionError, match="parameter forgotten gets a finite gradient; seen: none"):
        check_network(network, *batch)


# Broken solvers


def steps_of(change):
    """Euler's method whose steps are changed."""

    def solver(denoise, x, sigmas, noise):
        for step in euler(denoise, x, sigmas, noise):
            yield change(step)

    return solver


def skipping(denoise, x, sigmas, noise):
    yield from list(euler(denoise, x, sigmas, noise))[1:]


def in_place(denoise, x, sigmas, noise):
    for step in euler(denoise, x, sigmas, noise):
        x.copy_(step.x)
        yield step


def halfway(denoise, x, sigmas, noise):
    """Believes that the denoiser is half as sure as it is."""
    yield from euler(lambda x, sigma: 0.9 * denoise(x, sigma), x, sigmas, noise)


def everywhere(denoise, x, sigmas, noise):
    for step in euler(denoise, x, sigmas, noise):
        yield step._replace(x=step.x + 1e-6)


class Remembering:
    def __init__(self):
        self.calls = 0

    def __call__(self, denoise, x, sigmas, noise):
        self.calls += 1
        for step in euler(denoise, x, sigmas, noise):
            yield step._replace(x=step.x + 0.001 * self.calls)


SOLVERS = {
    "too few steps": (skipping, "65 levels give 64 steps; seen: 63"),
    "numbers": (steps_of(lambda s: s._replace(index=s.index + 1)), "steps are numbered from 0"),
    "levels": (steps_of(lambda s: s._replace(sigma=s.sigma + 1)), "a step tells the level that it reached"),
    "in place": (in_place, "leaves the state that it is given as it is"),
    "not finite": (steps_of(lambda s: s._replace(x=s.x / 0)), "the last state is finite"),
    "type": (steps_of(lambda s: s._replace(x=s.x.double())), "the last state is finite, torch.float32"),
    "remembers": (Remembering(), "the same noise gives the same samples in a second call"),
    "another law": (halfway, r"samples of N\(0\.7, 0\.4\^2\) within 0\.05; seen: N\("),
    "moves what is given": (everywhere, "parts whose level is 0 come out bitwise as they went in"),
}


@pytest.mark.parametrize("solver", [ancestral, dpmpp_2m, euler, heun])
def test_solvers_that_ship(solver):
    assert max(check_solver(solver).values()) < 0.05


@pytest.mark.parametrize("way", SOLVERS)
def test_broken_solver(way):
    solver, message = SOLVERS[way]
    with pytest.raises(AssertionError, match=rf"{message}.*; documented in mmdiff\."):
        check_solver(solver)


def test_solver_that_leaves_the_rest_alone():
    def solver(denoise, x, sigmas, noise):
        if sigmas.ndim == 1:
            yield from euler(denoise, x, sigmas, noise)
        for i in range(64 if sigmas.ndim > 1 else 0):
            yield Step(i, sigmas[i + 1], x, x)

    with pytest.raises(AssertionError, match="parts whose level is not 0 are solved beside them; seen: std"):
        check_solver(solver)


# Broken plugins


def failure(name: str, *overrides: str) -> str:
    """What the first failing check of a plugin says."""
    return next(f"{result.check}: {result.failure}" for result in results(name, overrides) if result.failure)


@pytest.fixture
def plugin(place, tmp_path, monkeypatch):
    """``plugin({file: (old, new)})`` installs ``brine``, made by `mmdiff new`, with texts of its files replaced."""

    def make(replaced: dict[str, tuple[str, str]] | None = None, needs: str = "mmdiff>=0.1") -> Path:
        folder = tmp_path / "mmdiff-brine"
        new("brine", folder)
        install(folder, "brine", needs)
        for file, (old, text) in (replaced or {}).items():
            (path,) = (path for path in folder.rglob("*") if path.as_posix().endswith(file))
            content = path.read_text()
            assert old in content
            path.write_text(content.replace(old, text))
        monkeypatch.syspath_prepend(str(folder))
        return folder / "mmdiff_brine"

    yield make
    for name in [name for name in sys.modules if name.startswith("mmdiff_brine")]:
        del sys.modules[name]


def test_plugin_that_is_not_installed():
    with pytest.raises(ValueError, match="'adio' is not an installed plugin; did you mean audio"):
        check_plugin("adio")


def test_plugin_that_does_not_import(plugin):
    plugin({"mmdiff_brine/__init__.py": ('"""brine for mmdiff."""', "import a_module_that_is_not_there")})
    assert "package: expected: mmdiff_brine can be imported" in failure("brine")
    with pytest.raises(AssertionError, match="seen: ModuleNotFoundError: No module named 'a_module_that_is_not_there'"):
        check_plugin("brine")


def test_plugin_for_a_newer_mmdiff(plugin):
    plugin(needs="mmdiff>=99")
    assert "fits this mmdiff; seen: it needs mmdiff>=99, this is " in failure("brine")


def test_plugin_without_configurations(plugin):
    conf = plugin() / "conf"
    conf.rename(conf.with_name("settings"))
    assert "package: expected: mmdiff_brine has a folder conf; seen: none" in failure("brine")


def test_option_without_prefix(plugin):
    conf = plugin() / "conf"
    (conf / "network" / "brine" / "tiny.yaml").rename(conf / "network" / "small.yaml")
    assert "options: expected: options begin with brine/; seen: network=small" in failure("brine")


def test_option_of_another_plugin(plugin, place):
    plugin()
    other = place / "mmdiff_tides" / "conf" / "network" / "brine" / "tiny.yaml"
    other.parent.mkdir()
    other.touch()
    try:
        said = failure("brine")
    finally:
        other.unlink()
        other.parent.rmdir()
    assert "options that no other package brings; seen: network=brine/tiny in mmdiff_brine and mmdiff_tides" in said


def test_target_that_is_not_there(plugin):
    plugin({"network/brine/tiny.yaml": ("network.Network", "network.Netwrk")})
    assert "options: expected: network=brine/tiny composes, and its targets exist; seen: " in failure("brine")


def test_option_that_does_not_compose(plugin):
    plugin({"experiment/brine/waves.yaml": ("brine/tiny", "brine/tinny")})
    assert "options: expected: experiment=brine/waves composes" in failure("brine")


def test_plugin_without_experiments(plugin):
    conf = plugin() / "conf" / "experiment"
    conf.rename(conf.with_name("modality_of_old"))
    assert "options: expected: an option experiment=brine/...; seen: none" in failure("brine")


def test_experiment_that_needs_files(plugin):
    plugin()
    said = failure("brine", "experiment=brine/folder")
    assert said.startswith("brine/folder: configuration: expected: data.root=DIR for an experiment without data")


@pytest.mark.slow
def test_each_kind_of_file_is_left_for_an_experiment_that_needs_files(plugin):
    """The first experiment writes other files than those that the last one reads."""
    package = plugin()
    (package / "rows.py").write_text(
        "from mmdiff_brine.modality import Brine\n\nclass Rows(Brine):\n    suffix, suffixes = '.row', ('.row',)\n"
    )
    conf = package / "conf"
    series = (conf / "modality/brine/series.yaml").read_text()
    (conf / "modality/brine/rows.yaml").write_text(series.replace("modality.Brine", "rows.Rows"))
    waves = (conf / "experiment/brine/waves.yaml").read_text()
    (conf / "experiment/brine/another.yaml").write_text(waves.replace("brine/series", "brine/rows"))
    found = list(results("brine", ["network.width=8", "network.depth=1"], 1.0))
    assert [result.failure for result in found] == [None] * 23
    assert found[2].check.startswith("brine/another")
    assert found[-1].check == "brine/folder: samples"


def test_any_error_is_a_failure_with_its_place(plugin):
    plugin({"mmdiff_brine/data.py": ("phase = (1", "phase = nosuch + (1")})
    said = failure("brine")
    assert "brine/waves: dataset: expected: no error; seen: " in said
    assert "NameError: name 'nosuch' is not defined" in said
    assert "data.py" in said
    assert said.endswith("documented in mmdiff.testing.check_plugin and docs/rules.md#check_plugin")


def test_solver_of_a_plugin(plugin):
    conf = plugin() / "conf" / "solver" / "brine"
    conf.mkdir(parents=True)
    (conf / "still.yaml").write_text("{_target_: mmdiff_brine.still, _partial_: true}")
    still = (
        "from mmdiff.types import Step\n\ndef still(denoise, x, sigmas, noise):\n    yield Step(0, sigmas[1], x, x)\n"
    )
    (conf.parents[2] / "__init__.py").write_text(still)
    assert "solver brine/still: expected: 65 levels give 64 steps; seen: 1" in failure("brine")


def test_checkpoint_that_does_not_hold_everything(plugin):
    """Frequencies drawn by the constructor, as a plain attribute."""
    plugin(
        {
            "mmdiff_brine/network.py": (
                "        self.level = ",
                "        self.shift = torch.randn(1, 1, 1)\n        self.level = ",
            )
        }
    )
    network = sys.path[0] + "/mmdiff_brine/network.py"
    text = Path(network).read_text().replace("h = self.into(x)", "h = self.into(x) + self.shift")
    Path(network).write_text(text.replace("import torch.nn.functional", "import torch\nimport torch.nn.functional"))
    said = failure("brine", "experiment=brine/waves", "data.dataset.size=32", "data.held_out=4")
    assert "brine/waves: training: expected: a checkpoint and its export hold all that the output depends on" in said


def test_sample_that_cannot_be_read(plugin):
    """Samples have numbers for names."""
    plugin(
        {
            "mmdiff_brine/modality.py": (
                "if not numbers or",
                "if path.stem.isdigit() or not numbers or",
            )
        }
    )
    said = failure("brine", "experiment=brine/waves", "data.dataset.size=32", "data.held_out=4")
    assert "brine/waves: samples: expected: no error; seen: DataError" in said
