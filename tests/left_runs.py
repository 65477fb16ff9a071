"""What training leaves behind, made without training, and what a report of it says."""

import dataclasses
import html.parser
import json

import numpy as np
from matplotlib.image import imsave

from psgjax.config import Config
from psgjax.schema import to_json
from psgjax.switches import METHODS

WARNING = "the packaged 5,000 images are used <b>instead</b>"


def metrics(generators, epoch, **changes):
    return {
        "epoch": epoch,
        "step": 70 * epoch,
        "images": 4480 * epoch,
        "seconds": 5.0 + 2.0 * epoch,
        "loss": {"discriminator": 1.0 + 1 / epoch, "generators": [1.1 + 0.1 * k for k in range(generators)]},
        "gated_loss": {"discriminator": 0.2, "generators": [0.5] * generators},
        "accuracy": 0.8,
        "pairwise_accuracy": 0.9,
        "held_out_accuracy": 0.75,
        "held_out_pairwise_accuracy": 0.85,
        "held_out_calibrated_loss": {"discriminator": 0.5, "generators": [1.5, 2.5][:generators]},
        "held_out_temperature": 0.25,
        "branches": [0.2 / generators] * generators + [0.8],
        "updates": {"discriminator": 0.2, "generators": [0.9] * generators},
    } | changes


def leave_run(
    folder,
    name="psg",
    epochs=12,
    planned=12,
    snapshots=(0, 1, 2, 3, 5, 8, 12),
    config=None,
    data=(),
    seed=None,
    **changes,
):
    """What training leaves behind; the samples are grids of 2 by 4 cells of 8 by 8 pixels, whose grey tells the generator."""
    config = config or Config(method_name=name, method=METHODS[name], steps=70 * planned)
    run, generators = folder / name, config.method.generators
    if seed is not None:
        run, config = run / f"seed-{seed}", dataclasses.replace(config, seed=seed)
    (run / "samples").mkdir(parents=True)
    (run / "config.json").write_text(to_json(config))
    data = {
        "source": "packaged",
        "name": "mnist",
        "description": "MNIST, a subset",
        "train_images": 4480,
        "held_out_images": 520,
        "canonical": False,
        "sha256": "ab" * 32,
        "warning": WARNING,
    } | dict(data)
    environment = {"command": ["python", "-m", "experiments.mnist"], "versions": {"jax": "0.10.2"}, "commit": None}
    (run / "env.json").write_text(json.dumps(environment | {"data": data, "steps_per_epoch": 70}))
    lines = [json.dumps(metrics(generators, epoch, **changes)) + "\n" for epoch in range(1, epochs + 1)]
    (run / "metrics.jsonl").write_text("".join(lines))
    for epoch in snapshots:
        grey = np.repeat(np.linspace(0.2, 1, generators), 16)[:, None] * np.ones((1, 32))
        imsave(run / "samples" / f"epoch-{epoch:04d}.png", grey, cmap="gray", vmin=0, vmax=1)
    return run


def summary(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "summary.json").read_text(), parse_constant=refuse)


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data
