"""A learned word: in the vocabulary, in the table, in a prompt, in a file, and gone again."""

from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import picture_book

from minisd import StableDiffusionPipeline
from minisd.textual_inversion import add_token, added_tokens, vectors_of

PROMPT = "a <toy> on the sea"


@pytest.fixture
def pipe():
    return picture_book()


def vectors(n=1, width=24, seed=0):
    """The first n of a fixed list."""
    return torch.randn(64, width, generator=torch.Generator().manual_seed(seed))[:n].clone()


def draw(pipe, prompt=PROMPT):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=generator, output_type="pt").images


# The word


def test_the_ids_are_the_next_after_the_vocabulary_and_their_rows_the_vectors(pipe):
    before = pipe.tokenizer.vocab_size
    assert add_token(pipe, "<toy>", vectors(3)) == [before, before + 1, before + 2]
    assert add_token(pipe, "<other>", vectors(1, seed=1)) == [before + 3]
    table = pipe.text_encoder.token_embedding.weight
    assert torch.equal(table[before:], torch.cat([vectors(3), vectors(1, seed=1)]))
    assert table.shape[0] == pipe.text_encoder.config.vocab_size == pipe.tokenizer.vocab_size
    assert not table.requires_grad


def test_a_word_stands_for_all_its_vectors_in_order(pipe):
    ids = add_token(pipe, "<toy>", vectors(3))
    plain = pipe.tokenizer.ids("a on the sea")
    assert pipe.tokenizer.ids(PROMPT) == [plain[0], *ids, *plain[1:]]
    assert pipe.tokenizer(PROMPT)[0, 1:5].tolist() == [plain[0], *ids]
    assert pipe.tokenizer.tokens(PROMPT)[1:4] == ["<toy>", "<toy>_1", "<toy>_2"]


def test_the_text_encoder_sees_the_vectors(pipe):
    add_token(pipe, "<toy>", vectors(2))
    record = {}
    pipe.text_encoder(pipe.tokenizer("<toy>"), record=record)
    positions = pipe.text_encoder.position_embedding.weight
    torch.testing.assert_close(record["embeddings"][0, 1:3], vectors(2) + positions[1:3])


@pytest.mark.parametrize("n", [1, 3])
def test_a_learned_word_changes_pictures_of_itself_and_no_others(pipe, n):
    other, unknown = draw(pipe, "a red boat"), draw(pipe)
    add_token(pipe, "<toy>", vectors(n))
    assert torch.equal(draw(pipe, "a red boat"), other)
    assert (draw(pipe) - unknown).abs().max() > 1e-3


def test_the_vectors_of_a_known_word_draw_that_word(pipe):
    ids = pipe.tokenizer.ids("star")
    add_token(pipe, "<toy>", pipe.text_encoder.token_embedding.weight[ids])
    assert torch.equal(draw(pipe, "a <toy>"), draw(pipe, "a star"))


def test_a_word_is_found_in_any_case_and_inside_words_as_transformers_does(pipe):
    ids = add_token(pipe, "<Toy>", vectors(2))
    for text in ("<toy>", "<TOY>", "<Toy>"):
        assert pipe.tokenizer.ids(text) == ids
    assert pipe.tokenizer.ids("a<toy>boat") == [
        *pipe.tokenizer.ids("a"), *ids, *pipe.tokenizer.ids("boat")
    ]  # fmt: skip


def test_a_word_written_twice_stands_for_its_vectors_twice(pipe):
    ids = add_token(pipe, "<toy>", vectors(2))
    assert pipe.tokenizer.ids("<toy> <toy>") == [*ids, *ids]


def test_a_part_by_its_own_name_is_that_part_alone(pipe):
    ids = add_token(pipe, "<toy>", vectors(3))
    assert pipe.tokenizer.ids("<toy>_1") == [ids[1]]
    assert pipe.tokenizer.ids("<toy>_2 a") == [ids[2], *pipe.tokenizer.ids("a")]


def test_of_two_words_that_begin_alike_the_longer_one_is_read(pipe):
    short, long = add_token(pipe, "toy", vectors(2)), add_token(pipe, "toys.", vectors(2, seed=1))
    assert pipe.tokenizer.ids("toy toys.") == [*short, *long]


def test_signs_in_a_word_are_no_pattern(pipe):
    ids = add_token(pipe, "(a+b)*", vectors(2))
    assert pipe.tokenizer.ids("(a+b)*") == ids
    assert ids[0] not in pipe.tokenizer.ids("aab")


def test_all_vectors_count_where_a_prompt_is_cut(pipe, caplog):
    ids = add_token(pipe, "<toy>", vectors(40))
    full = pipe.tokenizer("<toy> <toy> a")[0].tolist()
    assert full[1:76] == [*ids, *ids[:35]]
    pipe.encode_prompt("<toy> <toy> a")
    assert "<toy>_35" in caplog.text


def test_added_words_are_listed_without_their_parts(pipe):
    add_token(pipe, "<toy>", vectors(3))
    add_token(pipe, "<sea>", vectors(1))
    assert added_tokens(pipe) == ["<toy>", "<sea>"]
    assert torch.equal(vectors_of(pipe, "<toy>")[1], vectors(3))
    with pytest.raises(ValueError, match=r"no token None was added; .* \['<toy>', '<sea>'\]"):
        vectors_of(pipe)


def test_the_vectors_take_the_precision_of_the_model(pipe):
    pipe.to(torch.bfloat16)
    add_token(pipe, "<toy>", vectors(2))
    assert pipe.text_encoder.token_embedding.weight.dtype == torch.bfloat16
    assert torch.equal(vectors_of(pipe)[1], vectors(2).bfloat16())


def test_rows_that_no_token_uses_stay_behind_the_new_ones(pipe):
    from minisd.textual_inversion import set_table

    spare = torch.full((5, 24), 7.0)
    before = pipe.text_encoder.token_embedding.weight
    set_table(pipe.text_encoder, torch.cat([before, spare]))
    ids = add_token(pipe, "<toy>", vectors(2))
    table = pipe.text_encoder.token_embedding.weight
    assert torch.equal(table[ids], vectors(2))
    assert torch.equal(table[-5:], spare)
    pipe.unload_textual_inversion()
    assert torch.equal(pipe.text_encoder.token_embedding.weight, torch.cat([before, spare]))


# The model with it


def test_unloading_leaves_the_model_as_it_was(pipe):
    plain, before, picture = picture_book(), pipe.hash, draw(pipe)
    add_token(pipe, "<toy>", vectors(3))
    assert pipe.hash != before
    pipe.unload_textual_inversion()
    assert pipe.hash == before
    assert pipe.text_encoder.config == plain.text_encoder.config
    assert torch.equal(pipe.tokenizer(PROMPT), plain.tokenizer(PROMPT))
    assert torch.equal(draw(pipe), picture)
    assert added_tokens(pipe) == []
    pipe.unload_textual_inversion()  # nothing to do


def test_unloading_one_word_leaves_the_others(pipe):
    for i, name in enumerate(("<one>", "<two>", "<three>")):
        add_token(pipe, name, vectors(2, seed=i))
    pictures = draw(pipe, "a <one>"), draw(pipe, "a <three>")
    pipe.unload_textual_inversion("<two>")
    assert added_tokens(pipe) == ["<one>", "<three>"]
    assert torch.equal(vectors_of(pipe, "<three>")[1], vectors(2, seed=2))
    assert pipe.tokenizer.ids("<three>") == list(pipe.tokenizer.added.values())[2:]
    assert torch.equal(draw(pipe, "a <one>"), pictures[0])
    assert torch.equal(draw(pipe, "a <three>"), pictures[1])
    add_token(pipe, "<two>", vectors(1, seed=5))
    assert torch.equal(vectors_of(pipe, "<two>")[1], vectors(1, seed=5))
    pipe.unload_textual_inversion(["<one>", "<two>"])
    assert added_tokens(pipe) == ["<three>"]


def test_a_saved_model_has_its_learned_words(pipe, tmp_path):
    add_token(pipe, "<toy>", vectors(3))
    pipe.save_pretrained(tmp_path)
    back = StableDiffusionPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    assert (back.hash, added_tokens(back)) == (pipe.hash, ["<toy>"])
    assert torch.equal(draw(back), draw(pipe))
    back.unload_textual_inversion()
    assert back.hash == picture_book().hash


# Files

FORMATS = {
    "diffusers": ("learned_embeds.safetensors", lambda v: {"<toy>": v}),
    "diffusers, older": ("learned_embeds.bin", lambda v: {"<toy>": v}),
    "web UI": ("name-of-file.pt", lambda v: {
        "string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "<toy>",
        "step": 500, "sd_checkpoint": "81761151", "sd_checkpoint_name": "v1-5",
    }),
    "web UI, a parameter": ("x.pt", lambda v: {
        "string_to_param": {"*": torch.nn.Parameter(v)}, "name": "<toy>"}),
    "the first programs": ("<toy>.pt", lambda v: {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(v)})}),
    "web UI, by its file's name": ("<toy>.pt", lambda v: {"string_to_param": {"*": v}}),
    "web UI, safetensors": ("<toy>.safetensors", lambda v: {"emb_params": v}),
    "a bare tensor": ("<toy>.pt", lambda v: v),
    "an OrderedDict": ("x.bin", lambda v: OrderedDict({"<toy>": v})),
}  # fmt: skip


def write(folder, kind, v):
    name, build = FORMATS[kind]
    if name.endswith(".safetensors"):
        save_file(build(v), folder / name)
    else:  # PyTorch's older container is older than the first programs
        older = v.ndim == 2 and kind != "the first programs"
        torch.save(build(v), folder / name, _use_new_zipfile_serialization=not older)
    return folder / name


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 24)], ids=str)
@pytest.mark.parametrize("whole_folder", [False, True], ids=["file", "folder"])
def test_every_kind_of_file_is_read(pipe, tmp_path, kind, shape, whole_folder):
    expected = vectors(shape[0] if len(shape) == 2 else 1)
    path = write(tmp_path, kind, expected.reshape(shape))
    assert pipe.load_textual_inversion(tmp_path if whole_folder else str(path)) == "<toy>"
    assert torch.equal(vectors_of(pipe, "<toy>")[1], expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_given_token_takes_the_place_of_the_files(pipe, tmp_path, kind):
    path = write(tmp_path, kind, vectors(2))
    assert pipe.load_textual_inversion(path, token="<mine>") == "<mine>"
    assert added_tokens(pipe) == ["<mine>"]


def test_state_dicts_and_tensors_are_read_as_files_are(pipe):
    pipe.load_textual_inversion({"<a>": vectors(2)})
    pipe.load_textual_inversion(vectors(1), token="<b>")
    pipe.load_textual_inversion({"string_to_param": {"*": vectors(1)}, "name": "<c>"})
    assert added_tokens(pipe) == ["<a>", "<b>", "<c>"]
    with pytest.raises(ValueError, match=r"the state dict says no name for its vectors; .*token="):
        pipe.load_textual_inversion({"emb_params": vectors(1)})


def test_a_weight_name_chooses_a_file(pipe, tmp_path):
    for name in ("<a>", "<b>"):
        save_file({"emb_params": vectors()}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"2 embedding files .* choose one by weight_name"):
        pipe.load_textual_inversion(tmp_path)
    assert pipe.load_textual_inversion(tmp_path, weight_name="<b>.safetensors") == "<b>"


@pytest.mark.parametrize(("weight_name", "asked"), [
    (None, ["learned_embeds.safetensors", "learned_embeds.bin"]), ("cat.pt", ["cat.pt"]),
])  # fmt: skip
def test_of_a_hub_id_only_the_embeddings_file_is_downloaded(
    pipe, tmp_path, monkeypatch, weight_name, asked
):
    torch.save({"<cat>": vectors(2)}, tmp_path / (weight_name or "learned_embeds.bin"))
    calls = []

    def download(hub_id, allow_patterns):
        calls.append((hub_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert pipe.load_textual_inversion("concepts/cat-toy", weight_name=weight_name) == "<cat>"
    assert torch.equal(vectors_of(pipe)[1], vectors(2))
    assert calls == [("concepts/cat-toy", asked)]


def test_the_file_is_not_changed_by_what_happens_to_the_model(pipe):
    given = {"<toy>": vectors(2)}
    pipe.load_textual_inversion(given)
    pipe.text_encoder.token_embedding.weight.data.zero_()
    assert torch.equal(given["<toy>"], vectors(2))


@pytest.mark.parametrize("n", [1, 4])
def test_what_is_saved_is_loaded_again(pipe, tmp_path, n):
    add_token(pipe, "<toy>", vectors(n))
    pipe.save_textual_inversion(tmp_path / "new" / "folder")
    [path] = (tmp_path / "new" / "folder").iterdir()
    assert path.name == "learned_embeds.safetensors"
    assert torch.equal(load_file(path)["<toy>"], vectors(n))
    other = picture_book()
    other.load_textual_inversion(tmp_path / "new" / "folder")
    assert torch.equal(draw(other), draw(pipe))


# Errors


def test_vectors_for_another_model_are_an_error_and_change_nothing(pipe):
    before = pipe.hash
    for wrong in (vectors(2, width=32), torch.zeros(2, 3, 24), torch.zeros(0, 24)):
        with pytest.raises(ValueError, match=r"'<toy>' is \(.*expected \(n, 24\): .*another model"):
            pipe.load_textual_inversion({"<toy>": wrong})
    assert pipe.hash == before
    assert pipe.tokenizer.added == {}


@pytest.mark.parametrize(
    ("first", "n", "second", "m"),
    [
        ("<toy>", 1, "<toy>", 1),
        ("<toy>", 1, "<TOY>", 1),
        ("<toy>", 2, "<toy>_1", 1),
        ("<toy>_2", 1, "<toy>", 2),
        ("<toy>_1", 1, "<toy>", 3),
    ],
)
def test_a_token_that_is_there_already_is_an_error(pipe, first, n, second, m):
    add_token(pipe, first, vectors(n))
    before = pipe.hash
    with pytest.raises(ValueError, match="is in the vocabulary already; choose another name"):
        add_token(pipe, second, vectors(m))
    assert (pipe.hash, added_tokens(pipe)) == (before, [first])


def test_a_token_that_would_become_a_part_of_another_is_an_error(pipe):
    add_token(pipe, "<toy>", vectors(1))
    with pytest.raises(ValueError, match="would be read as a part of '<toy>'"):
        add_token(pipe, "<toy>_1", vectors(1))


@pytest.mark.parametrize("token", ["a", "!", "the</w>", "<|endoftext|>"])
def test_a_piece_of_the_vocabulary_is_no_name(pipe, token):
    with pytest.raises(ValueError, match="is in the vocabulary already"):
        add_token(pipe, token, vectors())


@pytest.mark.parametrize("token", ["", " "])
def test_an_empty_name_is_an_error(pipe, token):
    with pytest.raises(ValueError, match="expected letters"):
        add_token(pipe, token, vectors())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "holds 0 embeddings"),
        ({"step": 3}, "holds 0 embeddings"),
        ({"string_to_param": {}}, "holds 0 embeddings"),
        ({"clip_g": torch.zeros(1, 40), "clip_l": torch.zeros(1, 24)}, "2 embeddings .'clip_g'"),
        ([1, 2], "holds 0 embeddings"),
    ],
)
def test_a_file_without_an_embedding_is_an_error(pipe, tmp_path, state, message):
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt .*{message}.*expected one"):
        pipe.load_textual_inversion(tmp_path / "x.pt")


def test_a_missing_or_damaged_file_is_an_error_that_names_it(pipe, tmp_path):
    for name in ("x.pt", "x.safetensors", "learned_embeds.bin"):
        with pytest.raises(ValueError, match=rf"{name} does not exist"):
            pipe.load_textual_inversion(tmp_path / name)
        for damage, reason in (
            (b"no such thing", "is text"), (b"", "is empty"), (b"PK\x03\x04 cut", "is damaged"),
            (b"\x80\x02cos\nsystem\n", "is damaged"), (b"\x09" + bytes(30), "is damaged"),
        ):  # fmt: skip
            (tmp_path / name).write_bytes(damage)
            with pytest.raises(ValueError, match=rf"{name} {reason}"):
                pipe.load_textual_inversion(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds 0 embedding files"):
        pipe.load_textual_inversion(tmp_path / "empty")


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_is_not_executed(pipe, tmp_path, capsys):
    torch.save({"<toy>": vectors(), "x": Trap()}, tmp_path / "x.pt")
    pipe.load_textual_inversion(tmp_path / "x.pt")
    assert torch.equal(vectors_of(pipe, "<toy>")[1], vectors())
    torch.save(Trap(), tmp_path / "y.pt")
    with pytest.raises(ValueError, match=r"y\.pt holds 0 embeddings"):
        pipe.load_textual_inversion(tmp_path / "y.pt")
    assert "executed" not in capsys.readouterr().out


def test_unloading_a_word_that_is_not_there_is_an_error(pipe):
    add_token(pipe, "<toy>", vectors(2))
    for name in ("<cat>", "<toy>_1"):
        with pytest.raises(ValueError, match=rf"no token '{name}' was added"):
            pipe.unload_textual_inversion(["<toy>", name])
    assert added_tokens(pipe) == ["<toy>"]
