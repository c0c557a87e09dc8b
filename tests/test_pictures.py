import matplotlib.image
import torch

from mmdiff.pictures import describe, save_grid


def test_grid_shows_every_picture(tmp_path):
    colors = torch.tensor([[200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=torch.uint8)
    save_grid([c[:, None, None].expand(3, 20, 30) for c in colors], ["red", "green", "blue"], tmp_path / "grid.png")
    image = matplotlib.image.imread(tmp_path / "grid.png")[..., :3]
    for color in colors:
        share = (abs(image - color.numpy() / 255) < 0.05).all(-1).mean()
        assert share > 0.1
    dark = (image < 0.3).all(-1).mean()
    assert dark > 0.0002, "labels are written"


def test_a_long_label_leaves_room_for_the_picture(tmp_path, recwarn):
    red = torch.tensor([200, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 20, 30)
    save_grid([red], ["a low organ note " * 200], tmp_path / "grid.png")
    assert not recwarn.list
    image = matplotlib.image.imread(tmp_path / "grid.png")[..., :3]
    assert (abs(image - torch.tensor([200, 0, 0]).numpy() / 255) < 0.05).all(-1).mean() > 0.3


def test_describe_names_numbers_and_leaves_unknown_out():
    assert describe({"pitch": 60.0, "timbre": "organ", "mood": None}) == "pitch 60  organ"
