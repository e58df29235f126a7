"""What all tests share: seeds, threads, slow tests, real images and made-up ones."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from headstart import methods
from headstart.backbones import build
from headstart.contracts import Batch, Method, Planned
from headstart.verbs import resolve

TINY_RESNET = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
TINY_TRANSFORMER = {"depth": 2, "embed_dim": 48, "num_heads": 3}
# of the methods' own parts: the tests do not get better by being slower
NARROW = {
    **dict.fromkeys(("projection_dim", "hidden_dim", "projector_dim", "predictor_dim", "bottleneck_dim"), 32),
    **{"prototypes": 24, "slices": 64, "decoder_dim": 48, "decoder_depth": 2},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that train for minutes, too")
    parser.addoption("--rewrite-golden", action="store_true", help="record the traces in tests/golden anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="trains for minutes; run with --slow"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the indexes of the tests' data out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return the folder of a real data set by its name; skip the test where it cannot be had."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("HEADSTART_TEST_DATA") or "~/.cache/headstart-test-data").expanduser() / name
        unpack = Path(__file__).parents[2] / "shared" / "data" / "unpack"
        if not folder.is_dir() and unpack.is_file():
            subprocess.run([unpack, name], check=True, capture_output=True)
        if not folder.is_dir():
            pytest.skip(f"no real images: {folder} is not there")
        return folder

    return find


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """Return a function that writes an image of noise, with a smooth part so that JPEG changes it little."""

    def save(path: Path, *, size: tuple[int, int] = (20, 16), seed: int = 0, **options: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(seed)
        small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize(size).save(path, **options)
        return path

    return save


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> str:
    """Return a file of weights, for the methods that learn from a teacher."""
    path = tmp_path_factory.mktemp("teacher") / "resnet18.safetensors"
    torch.manual_seed(5)
    safetensors.torch.save_file(build("torchvision/resnet18", image_size=32).net.state_dict(), path)
    return str(path)


@pytest.fixture
def make_method(teacher) -> Callable[..., Method]:
    """Return a function that builds a method by its name around a tiny backbone, as its recipe for small images has it.

    ``size`` is the side of the images, ``count`` how many there are in a batch; their labels are 0, 1, 2, 0, …
    """

    def make(name: str, *, size: int = 16, count: int = 16, seed: int = 0, **arguments: object) -> Method:
        method = methods.find(name)
        plan = Planned(1000, size, count, torch.arange(1000) % 3, ("a", "b", "c"))
        given = {"teacher": teacher, "teacher_size": size} if name == "distill" else {}
        recipe = resolve.recipe(method, 100_000, size)
        narrow = {key: value for key, value in NARROW.items() if key in methods.hyper_parameters(method)}
        arguments = {**recipe.method_args, **narrow, **given, **arguments}
        resolved = method.planned(methods.resolve(name, arguments), plan)
        torch.manual_seed(seed)
        model, model_args = ("timm/resnet18", TINY_RESNET)
        if "vit" in method.needs:
            model, model_args = ("timm/vit_tiny_patch16_224", TINY_TRANSFORMER)
        return methods.build(name, build(model, image_size=size, model_args=model_args), resolved)

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Return a function that makes the batch of noise that a method is to see; ``dtype`` is that of the views."""

    def make(method: Method, *, size: int = 16, count: int = 16, seed: int = 1, dtype: object = None) -> Batch:
        kind = type(method)
        views = resolve.recipe(kind, 100_000, size).views or kind.views
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64) for _ in views]
        labels = torch.arange(count) % 3
        if kind.sampling == "anchored":
            labels = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.arange(count - 1) % 2])
        return Batch(tuple(view.to(dtype or torch.float32) for view in drawn), labels, torch.arange(count))

    return make
