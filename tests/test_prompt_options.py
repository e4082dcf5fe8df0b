"""The command line's --weighted and --textual-inversion, and both again from the picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from minisd import StableDiffusionPipeline, prompts
from minisd.images import read_settings
from minisd.options import embedding_file

LONG = "a red boat on the sea, " * 20


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def write_word(name="<toy>.safetensors", n=2, key="emb_params"):
    vectors = torch.randn(n, 24, generator=torch.Generator().manual_seed(0))
    save_file({key: vectors}, name)
    return {key: vectors}


# --weighted


def test_weighted_draws_what_prompts_encode_draws(minisd, weights):
    minisd(
        "a (red:1.8) boat", "--weighted", "--negative-prompt", "[star]", "--seed", "7", "-o", "x"
    )
    pipe = StableDiffusionPipeline.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    cond, uncond = prompts.encode(pipe, "a (red:1.8) boat", "[star]")
    image = pipe(
        prompt_embeds=cond, negative_prompt_embeds=uncond,
        generator=torch.Generator().manual_seed(7),
    ).images[0]  # fmt: skip
    assert abs(pixels("x.png") - np.asarray(image)).max() <= 1


def test_without_it_brackets_are_text(minisd):
    for name, more in (("plain", []), ("weighted", ["--weighted"])):
        minisd("a (red:1.8) boat", "-o", name, "--seed", "0", *more)
    assert (pixels("plain.png") != pixels("weighted.png")).any()
    assert "weighted" not in read_settings("plain.png")


def test_weighted_changes_nothing_where_there_are_no_brackets(minisd):
    for name, more in (("plain", []), ("weighted", ["--weighted"])):
        minisd("a red boat", "--negative-prompt", "night", "-o", name, "--seed", "0", *more)
    assert (pixels("plain.png") == pixels("weighted.png")).all()


def test_a_weighted_picture_is_drawn_again_from_its_png(minisd):
    minisd("a (red:1.8) boat", "--weighted", "--seed", "3", "-o", "x.png")
    settings = read_settings("x.png")
    assert (settings["prompt"], settings["weighted"]) == ("a (red:1.8) boat", True)
    code, _, err = minisd("--from-png", "x.png", "-o", "y.png")
    assert (code, "warning" in err) == (0, False)
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()


def test_weighted_reads_long_prompts_to_their_end(minisd):
    for end in ("star", "night"):
        minisd(LONG + end, "-o", f"{end}-cut", "--seed", "0")
        minisd(LONG + end, "-o", end, "--seed", "0", "--weighted")
    assert (pixels("star-cut.png") == pixels("night-cut.png")).all()
    assert (pixels("star.png") != pixels("night.png")).any()


def test_weights_serve_pictures_drawn_from_pictures_too(minisd):
    Image.new("RGB", (32, 32), "red").save("source.png")
    for prompt in ("a boat", "a (boat:3)"):
        minisd(prompt, "--weighted", "--image", "source.png", "--seed", "0", "-o", prompt[2:5])
    assert (pixels("boa.png") != pixels("(bo.png")).any()


def test_brackets_and_weights_are_no_unknown_words(minisd):
    assert "warning" not in minisd("a (red:1.8) [[boat]]", "--weighted", "-o", "x.png")[2]
    assert '"cat" is not in' in minisd("a (cat:1.8)", "--weighted", "-o", "x.png")[2]


# --textual-inversion


@pytest.mark.parametrize(
    ("argument", "token"),
    [("<toy>.safetensors", "<toy>"), ("<toy>.safetensors:my-toy", "my-toy")],
)
def test_a_learned_word_is_drawn_and_again_from_the_png(minisd, weights, argument, token):
    state = write_word()
    prompt = f"a {token} on the sea"
    _, out, err = minisd(prompt, "--textual-inversion", argument, "--seed", "3", "-o", "x.png")
    assert f"<toy>.safetensors is {token} in prompts" in out
    assert "warning" not in err
    pipe = StableDiffusionPipeline.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_textual_inversion(state, token)
    image = pipe(prompt, generator=torch.Generator().manual_seed(3)).images[0]
    assert abs(pixels("x.png") - np.asarray(image)).max() <= 1
    settings = read_settings("x.png")
    assert (settings["textual_inversion"], settings["model"]) == ([argument], pipe.hash)
    code, _, err = minisd("--from-png", "x.png", "-o", "y.png")
    assert (code, "warning" in err) == (0, False)
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()


def test_several_learned_words_and_a_changed_file_is_noticed(minisd):
    write_word("one.safetensors", key="<one>")
    write_word("two.safetensors", n=1, key="<two>")
    argv = ("--textual-inversion", "one.safetensors", "--textual-inversion", "two.safetensors")
    minisd("a <one> and a <two>", *argv, "--seed", "3", "-o", "x.png")
    assert read_settings("x.png")["textual_inversion"] == ["one.safetensors", "two.safetensors"]
    write_word("two.safetensors", n=2, key="<two>")
    _, _, err = minisd("--from-png", "x.png", "-o", "y.png")
    assert "this picture will differ" in err


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("toy.pt", ("toy.pt", None)),
        ("toy.pt:<toy>", ("toy.pt", "<toy>")),
        ("C:\\words\\toy.pt", ("C:\\words\\toy.pt", None)),
        ("C:\\words\\toy.pt:<toy>", ("C:\\words\\toy.pt", "<toy>")),
        ("some/folder:with/toy.pt", ("some/folder:with/toy.pt", None)),
        ("a:b:c", ("a:b", "c")),
    ],
)
def test_the_name_comes_after_the_last_colon(argument, expected):
    assert embedding_file(argument) == expected


def test_a_file_with_a_colon_in_its_name_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toy:1.pt").touch()
    assert embedding_file("toy:1.pt") == ("toy:1.pt", None)


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("none.pt", "none.pt does not exist"),
        ("text.pt", "text.pt is text"),
        ("wide.safetensors", "made for another model"),
        ("<toy>.safetensors:a", "'a' is in the vocabulary already"),
    ],
)
def test_a_wrong_file_is_one_clear_line_and_exit_code_2(minisd, argument, part):
    write_word()
    Path("text.pt").write_text("text")
    save_file({"<toy>": torch.zeros(1, 7)}, "wide.safetensors")
    code, _, err = minisd("a <toy>", "--textual-inversion", argument)
    assert code == 2
    assert err.startswith("minisd: error: ")
    assert err.count("\n") == 1
    assert part in err
