"""Features of images without labels: what they are called, what they can tell, how they order good, worse and bad images."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from psgjax.commands import evaluate
from psgjax.config import ConfigError
from psgjax.data.dataset import Dataset
from psgjax.evaluation import features, fitting
from psgjax.evaluation.score import CLASSIFIED, reference_of, score

SIDE, COUNT = 20, 600


def shape_of(kind, random):
    """A picture [20, 20, 3] that has an up and a down: an arrow, a house or a cup, bright on dark, of any size and place."""
    ground, body, mark = (tuple(map(int, random.integers(*ends, 3))) for ends in ((0, 60), (170, 256), (90, 140)))
    image = Image.new("RGB", (SIDE, SIDE), ground)
    draw, size = ImageDraw.Draw(image), int(random.integers(4, 7))
    x, y = (int(each) for each in random.integers(6, 14, 2))
    if kind == 0:
        draw.polygon([(x, y - size), (x - size, y), (x + size, y)], body)
        draw.rectangle((x - 1, y, x + 1, y + size), mark)
    elif kind == 1:
        draw.rectangle((x - size, y, x + size, y + size), body)
        draw.polygon([(x - size, y), (x + size, y), (x, y - size // 2)], mark)
    else:
        draw.pieslice((x - size, y - size, x + size, y + size), 0, 180, body)
        draw.line((x, y - size, x, y), mark, 2)
    return np.asarray(image)


def shapes(count, kinds, seed):
    random = np.random.default_rng(seed)
    return np.stack([shape_of(kinds[i % len(kinds)], random) for i in range(count)])


@pytest.fixture(scope="module")
def data():
    images = shapes(2 * COUNT, (0, 1, 2), 0)
    return Dataset.from_arrays(images[:COUNT], held_out=images[COUNT : COUNT + 300], name="shapes", range="0..255")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(fitting, "_PIXELS", SIDE**2 * 20 * COUNT)
        yield folder


@pytest.fixture(scope="module")
def real(data, cache):
    return reference_of(data, lambda line: None)


@pytest.mark.uncovered
def test_rotation_features_order_real_blurred_and_noise_and_see_a_missing_class(real):
    assert (real.embedding.name, real.classifier) == ("rotations", None)
    others = shapes(300, (0, 1, 2), 5)
    blurred = np.stack([np.asarray(Image.fromarray(each).filter(ImageFilter.GaussianBlur(1))) for each in others])
    noise = np.random.default_rng(0).integers(0, 256, others.shape, np.uint8)
    scores = {
        name: score(images[None], real) for name, images in (("real", others), ("blurred", blurred), ("noise", noise))
    }
    distances = [scores[name]["fd_rotations"] for name in ("real", "blurred", "noise")]
    assert 2 * distances[0] < distances[1]
    assert distances[1] < distances[2]
    assert scores["real"]["recall"] > scores["noise"]["recall"]
    lacking = score(shapes(300, (0, 1), 5)[None], real)
    assert lacking["fd_rotations"] > 2 * distances[0]


def test_a_score_says_by_what_features_and_what_is_left_out_and_why(real):
    scores = score(shapes(40, (0, 1, 2), 5).reshape(2, 20, SIDE, SIDE, 3), real)
    assert scores["features"] == "rotations"
    assert scores["features_sha256"] == real.embedding.sha256
    assert "fcd" not in scores
    assert "classifier" not in scores
    assert {"fd_rotations", "kid", "precision", "c2st", "generators"} <= scores.keys()
    assert scores["left_out"] == dict.fromkeys((*CLASSIFIED, "histogram_divergence"), "there are no labels")
    assert "tells four rotations of held-out images apart in" in real.embedding.note


def test_the_network_is_kept_and_read_again(data, cache, real, monkeypatch):
    monkeypatch.setattr(fitting, "fit", None)
    assert features.of_data(data, print)[1].sha256 == real.embedding.sha256
    assert [path.parent.name for path in cache.rglob("*.safetensors")] == ["rotations"]


def test_features_that_tell_nothing_are_said_to_be_useless(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fitting, "_PIXELS", 64 * 200)
    noise = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    real = reference_of(Dataset.from_arrays(noise, held_out=0.5), lambda line: None)
    assert real.embedding is None
    left_out = score(noise[None, :40], real)["left_out"]
    assert left_out["fcd"] == left_out["histogram"]
    assert "apart in 2" in left_out["fcd"]
    assert "(chance: 25%) are useless" in left_out["fcd"]
    flat = Dataset.from_arrays(noise[:, :4], held_out=0.5)
    assert "8x4 cannot be turned" in features.of_data(flat)[2]


def means(images):
    return np.asarray(images, np.float32).mean((1, 2))


def test_anyones_features_are_used_under_their_name(data, cache):
    real = reference_of(data, lambda line: None, means)
    scores = score(data.held_out_images[None], real)
    assert scores["fd_means"] == pytest.approx(0, abs=1e-3)
    assert (scores["features"], len(scores["features_sha256"])) == ("means", 64)
    for wrong in (lambda images: images, lambda images: means(images)[:1], lambda images: means(images) * np.nan):
        with pytest.raises(ConfigError, match="features _?lambda"):
            reference_of(data, lambda line: None, wrong)


def exported(path, count, function=None, dtype=jnp.uint8):
    symbol = jax.export.symbolic_shape("n")[0] if count is None else count
    shape = jax.ShapeDtypeStruct((symbol, 8, 8, 1), dtype)
    made = jax.export.export(jax.jit(function or (lambda images: images.astype(jnp.float32).mean((1, 2)))))(shape)
    path.write_bytes(made.serialize())
    return path


@pytest.mark.parametrize("count", [None, 7])
def test_features_of_a_file_are_those_of_its_function(tmp_path, count):
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
    found = features.read(exported(tmp_path / "my net-1.stablehlo", count))
    np.testing.assert_allclose(found.of(images), means(images), rtol=1e-5)
    assert found.distance == "fd_my_net_1"
    with pytest.raises(ConfigError, match="takes images of 8x8x1, and these are 4x8x1"):
        found.of(images[:, :4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_bytes(b"x" * 100), "not what jax.export wrote"),
        (lambda path: exported(path, 4, dtype=jnp.float32), "must be one of images uint8"),
    ],
)
def test_other_files_are_refused(tmp_path, make, message):
    make(tmp_path / "a.stablehlo")
    with pytest.raises(ConfigError, match=message):
        features.read(tmp_path / "a.stablehlo")


def test_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"^{tmp_path}/none.stablehlo cannot be read"):
        features.chosen("~/none.stablehlo", np.zeros((1, 8, 8, 1), np.uint8))


def test_images_without_labels_are_scored_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "_PIXELS", 64 * 2000)
    tracked = []
    monkeypatch.setattr(evaluate, "tracker", lambda console: lambda items, count, what: tracked.append(what) or items)
    ramp = np.linspace(0, 200, 64).reshape(8, 8, 1)
    images = (ramp + np.random.default_rng(0).integers(0, 50, (120, 8, 8, 1))).astype(np.uint8)
    np.save(tmp_path / "real.npy", images[:80])
    np.save(tmp_path / "fake.npy", images[80:])
    arguments = [
        str(tmp_path / "fake.npy"),
        "--reference",
        str(tmp_path / "real.npy"),
        "--json",
        str(tmp_path / "out.json"),
    ]
    assert evaluate.main(arguments) == 0
    told, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert tracked == ["training what images are measured by"]
    assert "fd_rotations" in found
    assert found["notes"] == [line for line in told.splitlines() if line.startswith("features of a network")]
    assert f"on the features rotations, SHA-256 {found['features_sha256'][:12]}" in told
    assert "left out: histogram" in told
    own = exported(tmp_path / "own.stablehlo", None)
    assert evaluate.main([*arguments, "--features", str(own)]) == 0
    assert "fd_own" in json.loads((tmp_path / "out.json").read_text())
