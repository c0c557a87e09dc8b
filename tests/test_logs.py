"""Pictures in the loggers that show them."""

import io

import numpy as np
import pytest
from matplotlib.image import imread


def test_previews_in_tensorboard(tiny, train, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(*tiny, "data.batch_size=4", "logger=tensorboard", folder=tmp_path).err == ""
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (shown,) = events.Images("previews")
    assert shown.step == 2
    picture = imread(io.BytesIO(shown.encoded_image_string))
    np.testing.assert_allclose(picture, imread(tmp_path / "run" / "previews" / "step_0000002.png"), atol=0.01)
    assert {"val/loss", "val/loss_q1", "val/loss_q4"} <= set(events.Tags()["scalars"])


def test_previews_in_wandb(tiny, train, tmp_path):
    pytest.importorskip("wandb")
    assert train(*tiny, "logger=wandb", "logger.wandb.offline=true", folder=tmp_path).status == 0
    (shown,) = (tmp_path / "run").glob("wandb/offline-run-*/files/media/images/previews_*.png")
    written = imread(tmp_path / "run" / "previews" / "step_0000002.png")
    np.testing.assert_allclose(imread(shown), written, atol=0.01)
