"""Fine-tuning: what changes and what does not, resuming, and what people get wrong."""

import dataclasses
import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import UNET, picture_book, randomise

from minisd import DDIMScheduler, StableDiffusionPipeline
from minisd.__main__ import main as draw
from minisd.autoencoder import Autoencoder
from minisd.config import SD15, Defaults
from minisd.finetune import methods
from minisd.finetune.__main__ import main
from minisd.finetune.methods import NewWord, borrowed, recompute_stages, train_lora, train_word
from minisd.finetune.pictures import Captioned, Latents, read_folder
from minisd.text_encoder import TextEncoder
from minisd.training import TrainConfig, noise_prediction_loss
from minisd.unet import UNet

CONFIG = TrainConfig(4, 2, 1e-2, warmup_steps=1, save_every=2)
WORD = {"token": "<cat>", "init_word": "boat"}
METHODS = {"lora": (train_lora, {}), "textual-inversion": (train_word, WORD)}
FILES = {"lora": methods.LORA_FILE, "textual-inversion": methods.WORD_FILE}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_picture(seed, size=(32, 32)):
    pixels = torch.randint(0, 256, (*size[::-1], 3), generator=seeded(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture
def examples():
    return [Captioned(noise_picture(i), f"a red <cat> {i}") for i in range(3)]


@pytest.fixture
def folder(tmp_path):
    """Three pictures without captions."""
    where = tmp_path / "pictures"
    where.mkdir()
    for i in range(3):
        noise_picture(i).save(where / f"{i}.png")
    return where


@pytest.fixture
def model(tmp_path):
    picture_book().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_sheets(monkeypatch):
    monkeypatch.setattr(methods, "draw", lambda *arguments: None)


def train(method, pipe, examples, folder, config=CONFIG, **more):
    function, settings = METHODS[method]
    return function(pipe, examples, config, folder, **settings, **more)


def weights(pipe):
    return {
        f"{name}.{key}": value.clone()
        for name, network in pipe.networks.items()
        for key, value in network.state_dict().items()
    }


def latents(pipe, prompt="a red <cat>"):
    return pipe(prompt, generator=seeded(), output_type="latent").images


# The folder


def test_a_caption_is_the_files_own_or_the_lists_or_the_prompt(folder):
    (folder / "0.txt").write_text("a red boat\n", encoding="utf8")
    lines = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in (0, 1)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    captions = [example.caption for example in read_folder(folder, "a star")]
    assert captions == ["a red boat", "picture 1", "a star"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode_are_read(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (9, 5)).save(tmp_path / f"a.{suffix}")
    (example,) = read_folder(tmp_path, "a boat")
    assert (example.picture.mode, example.picture.size) == ("RGB", (9, 5))


def test_a_picture_is_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the right side of the file is the bottom of the picture
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_folder(tmp_path, "a boat")[0].picture.size == (20, 40)


def test_files_that_are_no_pictures_by_name_are_passed_over(folder):
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.md").write_text("x")
    assert len(read_folder(folder, "a boat")) == 3


BAD_FOLDERS = {
    "no folder": ({}, "not a folder"),
    "empty": ({"notes.md": "x"}, "holds no pictures"),
    "no picture": ({"a.png": "hello"}, "a.png is no picture"),
    "no caption": ({"a.gif": "GIF89a"}, "a.gif has no caption; give --prompt for all, or a.txt"),
    "bad line": ({"a.png": "", "metadata.jsonl": '\n{"file_name": "a.png"}'}, "line 2.*'text'"),
    "no JSON": ({"a.png": "", "metadata.jsonl": "a.png, a boat"}, "line 1.*expected a line"),
    "a list": ({"a.png": "", "metadata.jsonl": "[1]"}, "line 1.*expected a line"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_to_learn_nothing_from_is_named(tmp_path, case):
    files, message = BAD_FOLDERS[case]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    prompt = None if case == "no caption" else "a boat"
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path if files else tmp_path / "nowhere", prompt)


# The batches


def test_every_picture_comes_once_before_any_comes_again(examples):
    batches = Latents(picture_book(), examples, batch_size=2)
    order = [batches.position(i) for i in range(60)]
    rounds = [tuple(order[i : i + 3]) for i in range(0, 60, 3)]
    assert {tuple(sorted(one)) for one in rounds} == {(0, 1, 2)}
    assert len(set(rounds)) > 3
    assert batches[4][2] == [examples[i].caption for i in order[8:10]]
    other = Latents(picture_book(), examples, batch_size=2, seed=1)
    assert [other.position(i) for i in range(60)] != order


def test_a_batch_is_the_posterior_of_the_middle_of_its_pictures(examples):
    pipe = picture_book()
    wide = Image.new("RGB", (60, 32), "white")
    wide.paste(examples[0].picture, (14, 0))
    batches = Latents(pipe, [Captioned(wide, "wide"), *examples], batch_size=4)
    mean, logvar, captions = batches[0]
    by_caption = dict(zip(captions, mean))
    torch.testing.assert_close(by_caption["wide"], by_caption["a red <cat> 0"])
    x = torch.tensor(np.array(examples[1].picture)).movedim(-1, 0) / 127.5 - 1
    expected = pipe.vae.encode(x[None])
    torch.testing.assert_close(by_caption["a red <cat> 1"], expected.mean[0], atol=1e-5, rtol=1e-4)
    at = captions.index("a red <cat> 1")
    torch.testing.assert_close(logvar[at], expected.logvar[0], atol=1e-5, rtol=1e-4)


# What changes


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_lora_changes_no_weight_and_adapts_the_attention_alone(tmp_path, examples, text_encoder):
    pipe = picture_book()
    before = weights(pipe)
    train_lora(pipe, examples, CONFIG, tmp_path, rank=3, text_encoder=text_encoder)
    after = weights(pipe)
    assert all(torch.equal(before[key], after[key]) for key in before)
    loras = pipe.adapters.get("trained")
    expected = {
        f"{name}.{path}"
        for name in ("unet", "text_encoder")[: 1 + text_encoder]
        for path, module in pipe.networks[name].named_modules()
        if path.endswith((".q", ".k", ".v", ".out"))
    }
    assert set(loras) == expected
    assert {lora.A.shape[0] for lora in loras.values()} == {3}
    assert all(lora.B.abs().max() > 0 for lora in loras.values())


@pytest.mark.usefixtures("no_sheets")
def test_textual_inversion_changes_the_rows_of_its_word_alone(tmp_path, examples):
    pipe = picture_book()
    before = weights(pipe)
    train_word(pipe, examples, CONFIG, tmp_path, vectors=2, **WORD)
    after = weights(pipe)
    key = "text_encoder.token_embedding.weight"
    assert torch.equal(after[key][:-2], before[key])
    assert (after[key][-2:] - before[key][pipe.tokenizer.ids("boat")]).abs().min(dim=1)[0].max() > 0
    assert not torch.equal(after[key][-2], after[key][-1])
    assert all(torch.equal(before[k], after[k]) for k in before if k != key)
    assert not pipe.text_encoder.token_embedding._forward_hooks


def test_the_gradient_of_a_prompt_reaches_its_new_word_and_nothing_else():
    table = torch.nn.Embedding(10, 4)
    word = NewWord(7, torch.randn(2, 4))
    table.register_forward_hook(word)
    ids = torch.tensor([[1, 7, 8, 7, 9]])
    out = table.requires_grad_(False)(ids)
    expected = torch.stack([table.weight[1], *word.vectors, word.vectors[0], table.weight[9]])
    assert torch.equal(out[0], expected)
    out.sum().backward()
    assert table.weight.grad is None
    assert torch.equal(word.vectors.grad, torch.tensor([[2.0] * 4, [1.0] * 4]))


@pytest.mark.parametrize("method", METHODS)
def test_the_first_sheet_is_drawn_by_the_model_as_it_was(tmp_path, examples, method):
    pipe = picture_book()
    starts_as = "boat" if method == "textual-inversion" else "<cat>"
    prompts = [e.caption.replace("<cat>", starts_as) for e in examples]
    methods.draw(pipe, prompts, tmp_path / "before.png")
    train(method, pipe, examples, tmp_path, dataclasses.replace(CONFIG, steps=1))
    sheets = [Image.open(tmp_path / f"{name}.png") for name in ("look-000000", "look-000001")]
    assert sheets[0].tobytes() == Image.open(tmp_path / "before.png").tobytes()
    assert sheets[1].tobytes() != sheets[0].tobytes()


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_on_one_picture_falls(tmp_path, examples, method):
    config = TrainConfig(40, 2, 3e-2, warmup_steps=5, save_every=40)
    pipe = picture_book()
    train(method, pipe, examples[:1], tmp_path / "a", dataclasses.replace(config, steps=1))

    def loss(pipe):
        mean, _, captions = Latents(pipe, examples[:1], 64)[0]
        context = pipe.text_encoder(pipe.tokenizer(captions))
        return noise_prediction_loss(pipe.unet, pipe.scheduler, mean, context, seeded()).item()

    before, pipe = loss(pipe), picture_book()
    train(method, pipe, examples[:1], tmp_path / "b", config)
    assert loss(pipe) < {"lora": 0.9, "textual-inversion": 0.99}[method] * before


@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("method", METHODS)
def test_the_file_brings_the_same_picture_to_another_pipeline(tmp_path, examples, method):
    trained, fresh = picture_book(), picture_book()
    path = train(method, trained, examples, tmp_path)
    load = {"lora": fresh.load_lora_weights, "textual-inversion": fresh.load_textual_inversion}
    load[method](path)
    assert torch.equal(latents(trained), latents(fresh))
    assert not torch.equal(latents(fresh), latents(picture_book()))


@pytest.mark.parametrize("method", METHODS)
def test_the_last_sheet_shows_what_the_file_draws(tmp_path, examples, method):
    pipe = picture_book()
    path = train(method, picture_book(), examples, tmp_path)
    {"lora": pipe.load_lora_weights, "textual-inversion": pipe.load_textual_inversion}[method](path)
    methods.draw(pipe, [e.caption for e in examples], tmp_path / "after.png")
    assert (tmp_path / "after.png").read_bytes() == (tmp_path / "look-000004.png").read_bytes()


# Resuming, memory, precision


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_very_same_file(tmp_path, examples, method, monkeypatch):
    whole = train(method, picture_book(), examples, tmp_path / "whole")
    sheet = methods.draw

    def kill(pipe, captions, path):
        if path.name == "look-000002.png":
            raise KeyboardInterrupt
        sheet(pipe, captions, path)

    monkeypatch.setattr(methods, "draw", kill)
    with pytest.raises(KeyboardInterrupt):
        train(method, picture_book(), examples, tmp_path / "killed")
    monkeypatch.setattr(methods, "draw", sheet)
    resumed = train(method, picture_book(), examples, tmp_path / "killed")
    assert resumed.read_bytes() == whole.read_bytes()
    sheets = [(tmp_path / run / "look-000004.png").read_bytes() for run in ("whole", "killed")]
    assert sheets[0] == sheets[1]


def test_lent_parameters_are_given_back_even_after_an_error():
    mine, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    own = mine.weight.clone()

    def fail():
        with borrowed(mine, other):
            assert torch.equal(mine.weight, other.weight)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(mine.weight, own)


def test_recomputing_the_stages_gives_the_same_gradients():
    x, context = torch.randn(2, 4, 8, 8, generator=seeded()), torch.randn(2, 5, 24)
    found = []
    for prepare in (lambda unet: None, recompute_stages):
        unet = randomise(UNet(UNET), 0).requires_grad_(True)
        prepare(unet)
        unet(x, torch.tensor([3, 700]), context).square().mean().backward()
        found.append([value.grad for value in unet.parameters()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_bfloat16_trains_float32_parts(tmp_path, examples, method):
    pipe = picture_book().to(torch.bfloat16)
    path = train(method, pipe, examples, tmp_path, precision=torch.bfloat16)
    for value in torch.load(tmp_path / "state.pt")["average"].values():
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
    assert path.is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("no_sheets")
@pytest.mark.parametrize("method", METHODS)
def test_stable_diffusion_at_its_own_size_takes_a_step(tmp_path, examples, method):
    pipe = StableDiffusionPipeline(
        tokenizer=picture_book().tokenizer,
        text_encoder=TextEncoder(SD15.text_encoder),
        unet=UNet(SD15.unet),
        vae=Autoencoder(SD15.vae),
        scheduler=DDIMScheduler(SD15.schedule),
        defaults=Defaults(2, 7.5, 64, 64),
    ).to(torch.bfloat16)
    for network in pipe.networks.values():
        network.eval().requires_grad_(False)
    recompute_stages(pipe.unet)
    config = TrainConfig(1, 1, 1e-4, warmup_steps=1, save_every=1)
    state = load_file(train(method, pipe, examples, tmp_path, config, precision=torch.bfloat16))
    count = sum(value.numel() for value in state.values())
    # r (14 c + 2 * 768) for each of 5 transformers of width 320, 5 of 640, 6 of 1280; or one row.
    assert count == {"lora": 8 * 199_296, "textual-inversion": 768}[method]
    assert all(torch.isfinite(value).all() for value in state.values())


# What people get wrong


def test_a_word_that_the_tokenizer_splits_is_no_word_to_start_from(tmp_path, examples):
    with pytest.raises(ValueError, match=r"knows no word 'xyz': .* 3 pieces \(x, y, z</w>\)"):
        train_word(picture_book(), examples, CONFIG, tmp_path, token="<cat>", init_word="xyz")


def test_captions_have_to_contain_the_new_word(tmp_path, examples):
    examples = [*examples, Captioned(noise_picture(4), "a cat")]
    with pytest.raises(ValueError, match="'a cat' lacks the token '<cat>'"):
        train_word(picture_book(), examples, CONFIG, tmp_path, **WORD)


def test_a_model_for_inpainting_is_refused(tmp_path, examples):
    nine = randomise(UNet(dataclasses.replace(UNET, in_channels=9)), 0)
    pipe = dataclasses.replace(picture_book(), unet=nine)
    with pytest.raises(ValueError, match="inpaints"):
        train_lora(pipe, examples, CONFIG, tmp_path)


# The command line


def command(method, folder, model, out, *more):
    own = ["--token", "<cat>", "--init-word", "boat"] if method == "textual-inversion" else []
    options = ["--weights", model, "--out", out, "--steps", "2", "--batch-size", "2", *own, *more]
    return main([method, "--images", str(folder), "--prompt", "a <cat>", *map(str, options)])


@pytest.mark.parametrize("method", METHODS)
def test_one_command_trains_and_says_how_to_use_the_result(
    tmp_path, folder, model, method, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    more = ("--vectors", "2") if method == "textual-inversion" else ("--text-encoder",)
    assert command(method, folder, model, out, *more, "--gradient-checkpointing") == 0
    used = capsys.readouterr().out.splitlines()[-1]
    assert str(out / FILES[method]) in used
    names = {path.name for path in out.iterdir()}
    assert {"log.jsonl", "state.pt", "look-000000.png", "look-000002.png"} <= names
    assert draw([*shlex.split(used)[3:], "-o", str(tmp_path / "a.png")]) == 0
    assert Image.open(tmp_path / "a.png").size == (32, 32)
    if method == "textual-inversion":
        pipe = StableDiffusionPipeline.from_pretrained(model)
        assert pipe.load_textual_inversion(out / FILES[method]) == "<cat>"
        assert len(pipe.tokenizer.ids("<cat>")) == 2


def test_the_same_command_again_goes_on_and_other_settings_are_refused(
    tmp_path, folder, model, capsys
):
    out = tmp_path / "run"
    assert command("lora", folder, model, out) == 0
    first = (out / FILES["lora"]).read_bytes()
    assert command("lora", folder, model, out) == 0
    assert (out / FILES["lora"]).read_bytes() == first
    assert command("lora", folder, model, out, "--rank", "2") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "rank 8, now it is 2; choose another --out" in error
    assert command("lora", folder, model, out, "--steps", "3") == 0
    assert (out / FILES["lora"]).read_bytes() != first
    assert torch.load(out / "state.pt")["step"] == 3


def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path, folder, model, capsys, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(methods, "draw", stop)
    assert command("lora", folder, model, tmp_path / "run") == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora", "--images", "nowhere"], "nowhere is not a folder"),
        (["lora", "--images", "{folder}"], "has no caption; give --prompt"),
        (["lora", "--images", "{folder}", "--prompt", "a", "--weights", "no/where/"], "no/where/"),
        (["lora", "--images", "{folder}", "--prompt", "a", "--device", "x"], "device 'x'"),
    ],
)
def test_wrong_input_is_one_line_and_the_exit_code_2(folder, capsys, arguments, message):
    assert main([a.format(folder=folder) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [
    ["lora"],
    ["lora", "--images", "a", "--token", "<cat>"],
    ["lora", "--images", "a", "--rank", "0"],
    ["textual-inversion", "--images", "a", "--token", "<cat>"],
])  # fmt: skip
def test_options_that_do_not_fit_point_to_the_help(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert "`python -m minisd.finetune" in error
    assert "--help` lists all options" in error


def test_the_written_lora_has_diffusers_names(tmp_path, examples, no_sheets):
    names = load_file(train("lora", picture_book(), examples, tmp_path))
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight"
    assert names[name].shape[0] == 8
