"""Figures: each has alt text, keeps to its size, shows its data, and leaves them as they are."""

import base64
import inspect
import json
import re
from io import BytesIO

import matplotlib
import numpy as np
import pytest
import torch
from figures import ALT, KINDS, PROMPT, TOKENIZER, a_record, data_of, draw, pictures, values
from PIL import Image
from tiny import picture_book

from minisd import viz
from minisd.viz.correspondence import in_order
from minisd.viz.features import liveliest
from minisd.viz.figure import WIDTH, as_pil, text_width, wrap
from minisd.viz.module_tree import rows as module_rows
from minisd.viz.run_map import mosaic
from minisd.viz.tokens import token_boxes


@pytest.fixture(scope="module")
def record():
    return a_record()


def png(figure):
    return figure.strip.png if isinstance(figure, viz.Animation) else figure.png


def test_every_figure_function_of_viz_is_tested_here():
    drawn = {
        name for name in viz.__all__
        if inspect.isfunction(getattr(viz, name))
        and "alt" in inspect.signature(getattr(viz, name)).parameters
    }  # fmt: skip
    assert drawn == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_shows_its_data_and_leaves_them_as_they_are(kind, record):
    call, shown = KINDS[kind][0], []
    for seed in (1, 2):
        data = data_of(kind, record, seed)
        before = values(data)
        figure = call(data, alt=ALT)
        assert values(data) == before
        image = Image.open(BytesIO(png(figure)))
        assert 200 <= image.width <= WIDTH == 900
        assert round(image.info["dpi"][0]) == 100
        assert ALT in figure.alt
        shown.append(image.convert("RGB").tobytes())
    assert shown[0] != shown[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alt", ["", "  ", None])
def test_a_figure_without_alt_text_is_refused(kind, alt, record):
    with pytest.raises(ValueError, match="alt is empty"):
        KINDS[kind][0](data_of(kind, record, 1), alt=alt)


@pytest.mark.parametrize("kind", KINDS)
def test_alt_is_required_and_by_keyword_alone(kind):
    parameter = inspect.signature(getattr(viz, kind)).parameters["alt"]
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert parameter.default is inspect.Parameter.empty


def test_the_notebook_output_carries_the_alt_text():
    data, metadata = viz.show(pictures(1)[0], alt=ALT)._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == ALT
    assert data["image/png"].startswith("iVBOR")  # PNG in base64
    assert ALT in data["text/plain"]


def copy_of(figure):
    return base64.b64decode(figure._repr_mimebundle_()[0]["image/png"])


def pixels_of(png):
    return np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(float)


def test_the_notebooks_copy_of_a_noisy_sheet_is_small_and_looks_the_same():
    blobs = torch.nn.functional.interpolate(draw(1, 12, 3, 9, 9), scale_factor=10, mode="bicubic")
    noisy = (blobs + 0.03 * draw(2, *blobs.shape)).clamp(-1, 1)
    figure = viz.grid(list(noisy), alt=ALT, size=90, caption="a caption")
    copy = copy_of(figure)
    assert len(copy) < 0.6 * len(figure.png)
    shown, full = pixels_of(copy), pixels_of(figure.png)
    white = (full == 255).all(axis=2)
    assert (shown[white] == 255).all()
    apart = torch.from_numpy(shown - full).permute(2, 0, 1)[None]
    assert torch.nn.functional.avg_pool2d(apart, 8).abs().mean() < 4  # of 255


def test_the_notebooks_copy_of_a_small_figure_is_exact():
    figure = viz.strip(list(pictures(1)), ["a", "b", "c"], alt=ALT)
    assert (pixels_of(copy_of(figure)) == pixels_of(figure.png)).all()


def test_a_palette_of_few_colours_keeps_the_paper_white(monkeypatch):
    monkeypatch.setattr("minisd.viz.figure.SMALL", 0)
    figure = viz.bars({f"bar {i}": i for i in range(9)}, alt=ALT)
    copy = Image.open(BytesIO(copy_of(figure)))
    assert copy.mode == "P"
    shown, full = pixels_of(copy_of(figure)), pixels_of(figure.png)
    assert (shown[(full == 255).all(axis=2)] == 255).all()


def test_the_notebooks_copy_is_exact_where_few_colours_would_spare_nothing():
    figure = viz.latent_channels(draw(1, 2, 4, 16, 16), alt=ALT)
    assert (pixels_of(copy_of(figure)) == pixels_of(figure.png)).all()


def test_a_saved_figure_is_a_whole_png_that_holds_its_alt_text(tmp_path):
    figure = viz.show(pictures(1)[0], alt=ALT, caption="a caption")
    figure.save(tmp_path / "figure.png")
    image = Image.open(tmp_path / "figure.png")
    assert image.convert("RGB").tobytes() == figure.image.tobytes()
    assert json.loads(image.info["minisd"]) == {"alt": ALT, "caption": "a caption"}
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_a_caption_is_drawn_below():
    plain, told = (viz.show(pictures(1)[0], alt=ALT, caption=c) for c in ("", "what to look at"))
    assert told.image.height > plain.image.height
    top = told.image.crop((0, 0, *plain.image.size))
    assert top.tobytes() == plain.image.tobytes()


def test_the_same_call_gives_the_same_figure_in_any_style():
    first = viz.lines([1, 2], {"x": [1, 2]}, alt=ALT).png
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9}):
        assert viz.lines([1, 2], {"x": [1, 2]}, alt=ALT).png == first


def test_a_logarithmic_axis_shows_small_and_large_values():
    """Limits taken from the linear axis, below 0, would push all lines to the upper edge."""
    figure = viz.lines(range(9), {"x": [10.0 ** (-i / 2) for i in range(9)]}, alt=ALT, log_y=True)
    blue = (np.abs(np.asarray(figure.image).astype(int) - (0, 0x72, 0xB2)) < 12).all(axis=2)
    rows = np.flatnonzero(blue.any(axis=1))
    assert rows.max() - rows.min() > 200  # of a plot 280 pixels high


def test_the_readers_settings_of_matplotlib_stay():
    before = dict(matplotlib.rcParams)
    viz.lines([1, 2], {"x": [1, 2]}, alt=ALT)
    assert dict(matplotlib.rcParams) == before


def test_a_tensor_an_array_and_a_pil_image_of_one_picture_look_the_same():
    array = (np.arange(5 * 7 * 3) % 256).astype("uint8").reshape(5, 7, 3)
    tensor = torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1
    for picture in (array, array / 255, tensor, Image.fromarray(array)):
        assert np.array_equal(np.asarray(as_pil(picture)), array)


def test_a_latent_given_as_a_picture_says_what_to_do():
    with pytest.raises(ValueError, match="latent_channels"):
        viz.show(draw(0, 4, 8, 8), alt=ALT)


def test_wide_rows_of_pictures_stay_within_900_pixels():
    assert viz.strip(list(pictures(1, 20)), alt=ALT).image.width <= 900


def test_the_wrong_number_of_titles_is_told():
    with pytest.raises(ValueError, match=r"2 column_titles were given, expected 3"):
        viz.strip(list(pictures(1)), ["a", "b"], alt=ALT)


def test_wrapped_lines_are_no_wider_than_asked():
    text = "a small yellow tree below a large white moon on a black background"
    lines = wrap(text, 120).split("\n")
    assert len(lines) > 2
    assert all(text_width(line) <= 120 for line in lines)
    assert " ".join(lines) == text


def test_latents_stand_between_what_was_encoded_and_what_was_decoded():
    z, x = draw(1, 2, 4, 8, 8), pictures(1, 2)
    alone = viz.latent_channels(z, alt=ALT).image
    figures = [
        viz.latent_channels(z, alt=ALT, before=x).image,
        viz.latent_channels(z, alt=ALT, after=x).image,
        viz.latent_channels(z, alt=ALT, before=x, after=x).image,
    ]
    assert alone.width < figures[0].width < figures[2].width
    assert len({image.tobytes() for image in figures}) == 3


def test_what_was_encoded_is_drawn_on_the_left_and_what_was_decoded_on_the_right():
    red, blank = torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 8, 8), torch.ones(3, 8, 8)
    for rows in ([red, blank], [blank, red]):
        for name, side in (("before", 0), ("after", 2)):
            image = viz.latent_channels(torch.zeros(2, 4, 8, 8), alt=ALT, **{name: rows}).image
            y, x = np.nonzero((np.asarray(image) == (255, 0, 0)).all(axis=2))
            assert set(3 * x // image.width) == {side}
            assert (y.mean() > image.height / 2) == (rows[1] is red)


@pytest.mark.parametrize("name", ["before", "after", "row_titles"])
def test_another_number_of_pictures_than_latents_is_told(name):
    with pytest.raises(ValueError, match=f"3 {name} were given for 2 latents"):
        viz.latent_channels(draw(1, 2, 4, 8, 8), alt=ALT, **{name: ["a", "b", "c"]})


def test_latent_maps_of_one_limit_have_one_scale():
    z = draw(1, 4, 8, 8)
    alone = viz.latent_channels(z, alt=ALT, limit=3).image
    doubled = viz.latent_channels(2 * z, alt=ALT, limit=6).image
    assert alone.crop((0, 0, 600, 170)).tobytes() == doubled.crop((0, 0, 600, 170)).tobytes()


def test_a_linear_preview_recovers_a_linear_decoder():
    z, weight, bias = draw(1, 5, 4, 6, 8), 0.1 * draw(2, 4, 3), torch.tensor([0.1, 0, -0.2])
    small = torch.einsum("bchw,cr->brhw", z, weight) + bias[:, None, None]
    images = torch.nn.functional.interpolate(small, scale_factor=8, mode="nearest")
    preview = viz.fit_preview(z, images)
    assert torch.allclose(preview.weight, weight, atol=1e-5)
    assert torch.allclose(preview.bias, bias, atol=1e-5)
    assert preview.explained > 0.9999
    assert torch.allclose(preview(z), images.clamp(-1, 1), atol=1e-4)


def test_a_preview_of_noise_explains_next_to_nothing():
    assert viz.fit_preview(draw(1, 50, 4, 8, 8), draw(2, 50, 3, 64, 64)).explained < 0.01


def test_the_token_strip_shows_all_77_places_and_what_was_cut():
    short, long = (token_boxes(TOKENIZER, text) for text in (PROMPT, f"{PROMPT} " * 30))
    pieces = len(TOKENIZER.tokens(PROMPT))
    assert [kind for _, _, kind in short].count("text") == pieces
    assert short[-1][0] == f"padding x {75 - pieces}"
    assert [kind for _, _, kind in long].count("text") == 75
    assert [kind for _, _, kind in long].count("cut") == 30 * pieces - 75


def test_a_merge_tree_of_what_is_no_merge_is_refused():
    with pytest.raises(ValueError, match=r"'ea</w>' is not made of 's' and 'e'"):
        viz.merge_tree([["s", "e", "a</w>"], ["ea</w>"]], alt=ALT)


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 3), (2, 5, 5)])
def test_heads_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="4 labels"):
        viz.attention_heads(draw(1, *shape), list("abcd"), alt=ALT)


def test_a_words_positions_are_those_of_its_pieces():
    ids = TOKENIZER(PROMPT)[0]
    places = viz.word_positions(TOKENIZER, PROMPT, "boat")
    assert TOKENIZER.backend.decode(ids[places].tolist()).replace("</w>", "") == "boat"
    with pytest.raises(ValueError, match="is not a word of"):
        viz.word_positions(TOKENIZER, PROMPT, "house")


def test_a_word_map_is_the_mean_over_heads_and_the_sum_over_pieces():
    p = draw(1, 2, 3, 6, 77).softmax(-1)
    expected = (p[1, :, :, 4] + p[1, :, :, 5]).mean(dim=0).reshape(2, 3)
    assert torch.allclose(viz.word_map(p, [4, 5], shape=(2, 3)), expected)
    with pytest.raises(ValueError, match="6 image tokens"):
        viz.word_map(p, [4])


def test_an_unknown_layer_lists_those_of_the_record(record):
    with pytest.raises(ValueError, match=r"down\.0\.attentions\.0"):
        viz.attention_words(pictures(0)[0], record, "down.9", {"red": [2]}, alt=ALT)


def test_the_shape_walk_is_the_record_in_order(record):
    walk = viz.shape_walk(record)
    assert walk[:2] == [("conv_in", (2, 16, 8, 8)), ("down.0.resnets.0", (2, 16, 8, 8))]
    assert walk[-1] == ("conv_out", (2, 4, 8, 8))
    assert not any(path.endswith(("probabilities", "skip")) for path, _ in walk)


def test_every_skip_of_the_way_up_is_an_output_of_the_way_down_the_last_made_first_read(record):
    sources = viz.skip_sources(record)
    assert list(sources) == [path for path in record if re.fullmatch(r"up\.\d\.resnets\.\d", path)]
    order = list(record)
    places = [order.index(source) for source in sources.values()]
    assert places == sorted(places, reverse=True)
    assert sources["up.0.resnets.0"].startswith("down.1.")
    assert list(sources.values())[-1] == "conv_in"


def test_a_map_of_a_record_without_skips_says_what_is_missing():
    record = {"conv_in": torch.zeros(1, 4, 8, 8)}
    with pytest.raises(ValueError, match="no skips"):
        viz.module_map(record, record, record, steps=1, alt=ALT)


def test_the_rows_of_a_module_tree_hold_every_parameter_of_the_network():
    unet = picture_book().unet
    rows = module_rows(unet)
    assert sum(row.size for row in rows) == sum(p.numel() for p in unet.parameters())
    assert ("down", f"{len(unet.down)} x DownStage") in [row[:2] for row in rows]


def test_a_mosaic_of_latents_keeps_every_channel_where_it_can_be_seen():
    z = draw(1, 4, 3, 5)
    whole = mosaic(z)
    assert whole.shape == (7, 11)
    assert np.allclose(whole[4:, :5], z[2])
    assert np.isnan(whole[3]).all()
    assert np.isnan(whole[:, 5]).all()


def test_a_feature_walk_draws_the_channels_that_vary_most_in_their_order():
    maps = torch.stack([scale * draw(0, 6, 6) + 9 for scale in (1, 5, 0.1, 3, 2)])
    assert liveliest(maps, 3).tolist() == [1, 3, 4]
    assert len(liveliest(maps, 9)) == 5


def test_a_feature_walk_of_a_record_without_skips_says_what_is_missing():
    with pytest.raises(ValueError, match="no skips"):
        viz.feature_walk({"conv_in": torch.zeros(1, 4, 8, 8)}, alt=ALT)


def test_the_guidance_plane_keeps_lengths_and_angles():
    u, c = draw(1, 2), draw(2, 2)
    a, b = viz.guidance_plane(u, c)
    assert np.linalg.norm(a) == pytest.approx(u.norm().item(), rel=1e-5)
    assert np.linalg.norm(b) == pytest.approx(c.norm().item(), rel=1e-5)
    assert a @ b == pytest.approx((u @ c).item(), rel=1e-4)


@pytest.mark.parametrize(("given", "kept"), [(1, 1), (10, 10), (25, 25), (60, 25)])
def test_an_animation_has_at_most_25_frames_and_says_what_it_left_out(given, kept):
    frames = [np.full((8, 8, 3), i * 4, dtype=np.uint8) for i in range(given)]
    made = viz.animation(frames, alt=ALT, size=8)
    assert Image.open(BytesIO(made.gif)).n_frames == kept
    assert (f"25 of {given}" in made.caption) == (given > 25)


def test_an_animation_shows_its_film_strip_beside_it_and_stops_by_itself(tmp_path):
    made = viz.animation(list(pictures(1, 4)), alt='a "red" boat', size=24)
    assert isinstance(made.strip, viz.Figure)
    assert 'alt="a &quot;red&quot; boat"' in made._repr_html_()
    made.save(tmp_path / "run.gif")
    assert Image.open(tmp_path / "run.gif").info["loop"] == 2  # twice more, then still


def test_pictures_of_one_frame_play_side_by_side_and_have_a_row_of_the_strip_each():
    frames = [list(pictures(seed, 2)) for seed in range(4)]
    made = viz.animation(frames, row_titles=["left", "right"], alt=ALT, size=12)
    assert Image.open(BytesIO(made.gif)).size == (12 + 4 + 12, 12)
    one = viz.animation([frame[0] for frame in frames], alt=ALT, size=12)
    assert made.strip.image.height > 1.5 * one.strip.image.height


def test_frames_of_different_numbers_of_pictures_are_told():
    with pytest.raises(ValueError, match=r"\[2, 1\] pictures"):
        viz.animation([list(pictures(1, 2)), pictures(1, 1)[0]], alt=ALT)


def test_names_of_one_stem_come_in_the_order_of_their_numbers():
    names = [("vae", name) for name in ("in", "up.10", "mid", "up.9", "up.9", "out.0")]
    assert [name for _, name in in_order(names)] == ["in", "up.9", "up.10", "mid", "out.0"]


def test_a_correspondence_of_nothing_is_refused():
    with pytest.raises(ValueError, match="rows is empty"):
        viz.correspondence([], alt=ALT)


def test_examples_with_texts_have_a_row_each_and_as_many_of_everything():
    x, texts = draw(1, 2, 4, 8, 8), draw(2, 2, 7, 5)
    rows = ([1, 500], x, texts, ["a boat", "a bird"])
    two = viz.text_examples(*rows, {"the noise": x}, alt=ALT).image
    one = viz.text_examples(*(part[:1] for part in rows), {"the noise": x[:1]}, alt=ALT).image
    assert one.width == two.width
    assert one.height < two.height
    with pytest.raises(ValueError, match="1 captions were given for 2 latents"):
        viz.text_examples(*rows[:3], ["a boat"], {"the noise": x}, alt=ALT)
    with pytest.raises(ValueError, match="1 the noise were given"):
        viz.text_examples(*rows, {"the noise": x[:1]}, alt=ALT)


def test_a_cloud_can_lie_over_the_data():
    cloud, data = draw(1, 30, 2), draw(2, 30, 2)
    plain, over = (viz.clouds({"a": cloud}, x, alt=ALT, limit=3) for x in (None, data))
    assert plain.png != over.png
    with pytest.raises(ValueError, match=r"'data' has shape \(30, 3\)"):
        viz.clouds({"a": cloud}, draw(1, 30, 3), alt=ALT)
