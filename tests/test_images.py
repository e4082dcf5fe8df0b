"""Pictures as tensors, PIL images and PNG files."""

import numpy as np
import pytest
import torch
from PIL import Image

from minisd import images


def every_byte():
    """A 16 x 16 picture with each of the 256 values in each channel."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return Image.fromarray(np.stack([values, values[::-1], values.T], axis=-1))


def test_pil_to_tensor_and_back_is_exact_for_every_byte():
    picture = every_byte()
    (back,) = images.to_pil(images.from_pil(picture))
    assert (np.asarray(back) == np.asarray(picture)).all()


def test_a_tensor_is_in_minus_one_to_one_and_channels_first():
    tensor = images.from_pil([Image.new("RGB", (5, 3), (255, 0, 0))] * 2)
    assert tensor.shape == (2, 3, 3, 5)
    assert tensor.dtype == torch.float32
    assert tensor[0, :, 0, 0].tolist() == [1, -1, -1]


def test_overshoot_is_cut_off_and_values_are_rounded_not_floored():
    levels = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 7.0]).expand(1, 3, 1, 6)
    assert np.asarray(images.to_pil(levels)[0])[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]


def test_the_output_types_show_the_same_picture():
    tensor = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    as_np, as_pt = images.to_output(tensor, "np"), images.to_output(tensor, "pt")
    as_pil = images.to_output(tensor, "pil")
    assert as_np.shape == (2, 4, 6, 3)
    assert as_pt.shape == (2, 3, 4, 6)
    assert (as_np.transpose(0, 3, 1, 2) == as_pt.numpy()).all()
    assert (np.stack([np.asarray(p) for p in as_pil]) == (as_np * 255).round()).all()


def test_an_unknown_output_type_is_an_error():
    with pytest.raises(ValueError, match="'jpeg', expected one of"):
        images.check_output_type("jpeg")


def test_half_precision_becomes_float32_before_it_is_rounded():
    tensor = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4).to(torch.bfloat16)
    assert images.to_numpy(tensor).dtype == np.float32


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "RGB", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_read(mode):
    assert images.from_pil(Image.new(mode, (4, 2))).shape == (1, 3, 2, 4)


def test_what_is_transparent_becomes_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    assert images.from_pil(picture)[0, :, 0].T.tolist() == [[1, 1, 1], [1, -1, -1]]


def test_a_photograph_is_opened_as_the_camera_was_held(tmp_path):
    picture, exif = every_byte().crop((0, 0, 16, 8)), Image.Exif()
    exif[0x0112] = 6  # Orientation: held a quarter turn to the right
    picture.save(tmp_path / "photo.png", exif=exif)
    turned = images.open_picture(tmp_path / "photo.png")
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(picture), -1))


def test_a_file_that_is_no_picture_or_cut_short_is_named(tmp_path):
    every_byte().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.png", "text.png"):
        with pytest.raises(ValueError, match=f"{name} is no picture or damaged"):
            images.open_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        images.open_picture(tmp_path / "none.png")


def test_pictures_of_different_sizes_are_an_error():
    with pytest.raises(ValueError, match="expected one size"):
        images.from_pil([Image.new("RGB", (2, 2)), Image.new("RGB", (2, 3))])


def test_a_grid_shows_the_pictures_row_by_row_on_white():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sheet = images.grid([Image.new("RGB", (8, 6), color) for color in colors])
    assert sheet.size == (20, 16)
    assert [sheet.getpixel(at) for at in ((0, 0), (12, 0), (0, 10))] == colors
    assert {sheet.getpixel(at) for at in ((9, 3), (3, 7), (19, 15))} == {(255, 255, 255)}
    assert images.grid([Image.new("RGB", (8, 6))] * 3, columns=3).size == (32, 6)


def test_the_settings_in_a_png_come_back(tmp_path):
    settings = {"prompt": 'été "船" \\n', "seed": 0, "guidance_scale": 4.5, "none": None}
    images.save_png(every_byte(), tmp_path / "x.png", settings)
    assert images.read_settings(tmp_path / "x.png") == settings
    assert (np.asarray(Image.open(tmp_path / "x.png")) == np.asarray(every_byte())).all()


def test_a_png_without_settings_or_with_damaged_ones_is_an_error(tmp_path):
    images.save_png(every_byte(), tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png holds no settings"):
        images.read_settings(tmp_path / "x.png")
    for text in ("{", "7"):
        info = images.PngInfo()
        info.add_text(images.SETTINGS_KEY, text)
        every_byte().save(tmp_path / "y.png", pnginfo=info)
        with pytest.raises(ValueError, match=r"y\.png are damaged"):
            images.read_settings(tmp_path / "y.png")


def test_a_failed_save_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    images.save_png(every_byte(), tmp_path / "x.png")
    before = (tmp_path / "x.png").read_bytes()

    def half_a_save(self, path, **_):
        path.write_bytes(before[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half_a_save)
    with pytest.raises(KeyboardInterrupt):
        images.save_png(Image.new("RGB", (4, 4)), tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == before
