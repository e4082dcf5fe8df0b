"""Textual inversion: one learned word, the same ids, vectors and picture as in the reference."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import weights_convert
from minisd.textual_inversion import added_tokens, vectors_of
from parity import models

CALL = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 64, "width": 64}
PROMPT = "a <toy> boat on the <toy>, at sunset"


def vectors(n=1, seed=0):
    return 0.3 * torch.randn(n, 32, generator=torch.Generator().manual_seed(seed))


def picture(pipe, prompt=PROMPT, **more):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, **CALL, **more, generator=generator, output_type="np").images


def assert_same_pictures(ours, theirs, plain=None, prompt=PROMPT, **more):
    """Within one of 255 levels of each other, and far from the picture without the word."""
    ours, theirs = (picture(pipe, prompt, **more) for pipe in (ours, theirs))
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.abs((ours * 255).round() - (theirs * 255).round()).max() <= 1
    if plain is not None:
        assert np.abs(ours - plain).max() > 0.02


def their_ids(pipe, prompt):
    """The ids that the reference's pipeline gives its text encoder."""
    text = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
    return pipe.tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids


@pytest.fixture(scope="module")
def plain(pipelines):
    return picture(pipelines[0])


@pytest.fixture
def both(pipelines):
    """The two pipelines, without learned words before and after each test."""
    yield pipelines
    for pipe in pipelines:
        pipe.unload_textual_inversion()


def write(folder, kind, n):
    """One word of n vectors as each program writes it."""
    v = vectors(n)
    if kind == "diffusers":
        save_file({"<toy>": v}, folder / "learned_embeds.safetensors")
        return {}
    if kind == "diffusers, one vector by itself":
        save_file({"<toy>": v[0]}, folder / "learned_embeds.safetensors")
        return {}
    if kind == "diffusers, older":
        torch.save({"<toy>": v}, folder / "learned_embeds.bin")
        return {}
    if kind == "web UI":
        state = {"string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "<toy>"}
        torch.save({**state, "step": 500, "sd_checkpoint": None}, folder / "toy.pt")
        return {"weight_name": "toy.pt"}
    save_file({"emb_params": v}, folder / "toy.safetensors")
    return {"weight_name": "toy.safetensors", "token": "<toy>"}


KINDS = ["diffusers", "diffusers, older", "web UI", "web UI, safetensors"]


@pytest.mark.parametrize(
    ("kind", "n"),
    [*((kind, n) for kind in KINDS for n in (1, 3)), ("diffusers, one vector by itself", 1)],
)
def test_the_same_file_gives_the_same_ids_vectors_and_picture(both, plain, tmp_path, kind, n):
    ours, theirs = both
    more = write(tmp_path, kind, n)
    for pipe in both:
        pipe.load_textual_inversion(tmp_path, **more)
    assert ours.tokenizer(PROMPT)[0].tolist() == their_ids(theirs, PROMPT)
    table = theirs.text_encoder.get_input_embeddings().weight
    assert torch.equal(ours.text_encoder.token_embedding.weight, table)
    assert_same_pictures(ours, theirs, plain)


@pytest.mark.parametrize("prompt", [
    "<toy>", "a<toy>boat", "<toy>s", "the<toy>'s sea", "<toy>, <toy>", "  <toy>\n!", "<TOY>",
    "<toy> " * 40, "boat " * 73 + "<toy> a", "boat " * 74 + "<toy>", "toy", "<toy", "uneasy <sea>",
    "a sea <toy> easy", "EASY", "un easy\u00e9", "<toy>_9", "<toy>_1",
])  # fmt: skip
def test_a_word_is_found_where_the_reference_finds_it(both, prompt):
    ours, theirs = both
    for pipe in both:
        pipe.load_textual_inversion({"<toy>": vectors(2)})
        pipe.load_textual_inversion({"<sea>": vectors(1, seed=1)})
        pipe.load_textual_inversion({"easy": vectors(1, seed=2)})
    reference = their_ids(theirs, prompt)
    if prompt == "<TOY>":  # the reference reads the first of its vectors alone
        reference = their_ids(theirs, prompt.lower())
    assert ours.tokenizer(prompt)[0].tolist() == reference


def test_a_name_with_capitals_has_all_its_vectors_here(both):
    """The reference looks the name up in lower case, does not find it, and reads one vector."""
    ours, theirs = both
    for pipe in both:
        pipe.load_textual_inversion({"EasyToy": vectors(3)})
    mine, reference = ours.tokenizer.ids("a EasyToy"), their_ids(theirs, "a EasyToy")
    first = ours.tokenizer.vocab_size - 3
    assert mine[-3:] == [first, first + 1, first + 2]
    assert reference[1 : len(mine) - 1] == mine[:-2]
    assert first + 1 not in reference


def test_two_words_and_a_negative_prompt_give_the_references_picture(both):
    for pipe in both:
        pipe.load_textual_inversion({"<toy>": vectors(3)})
        pipe.load_textual_inversion({"<bad>": vectors(2, seed=1)})
    assert_same_pictures(*both, negative_prompt="a <bad> horse")


def test_the_reference_refuses_what_we_refuse(both):
    for pipe in both:
        pipe.load_textual_inversion({"<toy>": vectors(2)})
        for state in ({"<toy>": vectors(1)}, {"a": vectors(1)}, {"<x>": torch.zeros(1, 7)},
                      {"clip_l": vectors(1), "clip_g": vectors(1)}):  # fmt: skip
            with pytest.raises(ValueError, match=r"vocabulary|made for|incorrect|expected one"):
                pipe.load_textual_inversion(state)


def test_unloading_one_of_two_words_leaves_the_references_ids(both):
    ours, theirs = both
    for pipe in both:
        pipe.load_textual_inversion({"<one>": vectors(1)})
        pipe.load_textual_inversion({"<two>": vectors(1, seed=1)})
        pipe.unload_textual_inversion("<one>")
    assert ours.tokenizer("a <two>")[0].tolist() == their_ids(theirs, "a <two>")
    table = theirs.text_encoder.get_input_embeddings().weight
    assert torch.equal(ours.text_encoder.token_embedding.weight, table)


@pytest.mark.parametrize("n", [1, 3])
def test_what_we_save_the_reference_loads(both, plain, tmp_path, n):
    ours, theirs = both
    ours.load_textual_inversion({"<toy>": vectors(n)})
    ours.save_textual_inversion(tmp_path)
    theirs.load_textual_inversion(tmp_path)
    assert_same_pictures(ours, theirs, plain)


def test_a_folder_written_with_learned_words_opens_with_them_in_the_reference(both, tmp_path):
    ours, _ = both
    ours.load_textual_inversion({"<toy>": vectors(3)})
    weights_convert.save(ours, tmp_path / "model", layout="diffusers")
    theirs = models.diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    theirs.set_progress_bar_config(disable=True)
    assert their_ids(theirs, PROMPT) == ours.tokenizer(PROMPT)[0].tolist()
    assert_same_pictures(ours, theirs)
    back = weights_convert.open(tmp_path / "model")
    assert (back.hash, added_tokens(back)) == (ours.hash, ["<toy>"])


@pytest.mark.parametrize("fast", [True, False], ids=["tokenizer.json", "vocab.json"])
def test_a_folder_that_the_reference_wrote_with_learned_words_opens_with_them(both, tmp_path, fast):
    ours, theirs = both
    theirs.load_textual_inversion({"<toy>": vectors(2)})
    theirs.load_textual_inversion({"<sea>": vectors(1, seed=1)})
    theirs.save_pretrained(tmp_path)
    if not fast:  # as transformers before 5
        ours.load_textual_inversion({"<toy>": vectors(2)})
        ours.load_textual_inversion({"<sea>": vectors(1, seed=1)})
        (tmp_path / "tokenizer" / "tokenizer.json").unlink()
        weights_convert.diffusers.write_tokenizer(ours.tokenizer, tmp_path / "tokenizer")
        reader = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
        assert reader("a <toy> boat").input_ids == theirs.tokenizer("a <toy> boat").input_ids
    back = weights_convert.open(tmp_path)
    back.set_progress_bar_config(disable=True)
    assert added_tokens(back) == ["<toy>", "<sea>"]
    assert torch.equal(vectors_of(back, "<toy>")[1], vectors(2))
    assert_same_pictures(back, theirs)
