"""Weights change what they should and nothing else; a long prompt is its parts, one by one."""

import pytest
import torch
from tiny import picture_book, pipeline

from minisd.prompts import chunks, encode, pair, parse

PROMPT = "a red boat on the sea"
LONG = " ".join(f"{color} boat {i} on the sea," for i in range(21) for color in ("red", "yellow"))


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def text_of(prompt):
    return "".join(text for text, _ in parse(prompt))


# The syntax


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red boat", [("a red boat", 1)]),
        ("", []),
        ("a (red) boat", [("a ", 1), ("red", 1.1), (" boat", 1)]),
        ("a [red] boat", [("a ", 1), ("red", 1 / 1.1), (" boat", 1)]),
        ("a (red:1.3) boat", [("a ", 1), ("red", 1.3), (" boat", 1)]),
        ("(red:.5)", [("red", 0.5)]),
        ("(red:-1)", [("red", -1)]),
        ("(red : 2 )", [("red ", 2)]),
        ("((red))", [("red", 1.21)]),
        ("((red):1.5)", [("red", 1.65)]),
        ("([red])", [("red", 1)]),
        ("(a (red:2) boat:0.5)", [("a ", 0.5), ("red", 1), (" boat", 0.5)]),
        ("(a [red] boat)", [("a ", 1.1), ("red", 1), (" boat", 1.1)]),
        ("(red:1.0) boat", [("red boat", 1)]),
        ("(a boat\non the sea)", [("a boat\non the sea", 1.1)]),
        # Plain brackets and other signs
        (r"\(red\)", [("(red)", 1)]),
        (r"\[red\] (boat\):2)", [("[red] ", 1), ("boat)", 2)]),
        (r"a\b \\(red)", [("a\\b \\", 1), ("red", 1.1)]),
        ("time: 9:30", [("time: 9:30", 1)]),
        ("(time: 9:30)", [("time: 9", 30)]),
        # Brackets that do not match
        ("a (red boat", [("a ", 1), ("red boat", 1.1)]),
        ("a ((red boat", [("a ", 1), ("red boat", 1.21)]),
        ("a [red boat", [("a ", 1), ("red boat", 1 / 1.1)]),
        ("red) boat]", [("red) boat]", 1)]),
        ("red:1.3) boat", [("red:1.3) boat", 1)]),
        ("[red:1.3]", [("red:1.3", 1 / 1.1)]),
        ("(red:1.3", [("red:1.3", 1.1)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("()[]", []),
        ("(", []),
    ],
)
def test_brackets_become_weights(prompt, expected):
    found = parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


def test_a_text_without_brackets_is_one_piece_of_weight_one():
    for prompt in (PROMPT, "a, b: c; \\d {e} <f> 'g' 50% ... 猫"):
        assert parse(prompt) == [(prompt, 1.0)]


# Weights


def test_without_brackets_the_embeddings_are_the_pipelines_bit_by_bit(pipe):
    prompts, negatives = [PROMPT, "", "a star"], ["night", "a boat", ""]
    for mine, plain in zip(
        encode(pipe, prompts, negatives), pipe.encode_prompt(prompts, negatives)
    ):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("prompt", ["a (red:1) boat on the sea", "([a red boat]) on (the:1.0) sea"])
def test_weights_of_one_change_nothing(pipe, prompt):
    mine, plain = encode(pipe, prompt)[0], pipe.encode_prompt(PROMPT)[0]
    torch.testing.assert_close(mine, plain, atol=1e-6, rtol=0)


def test_weights_of_exactly_one_are_bit_by_bit_the_plain_picture(pipe):
    cond, uncond = encode(pipe, "a (red:1.0) (boat:1) on the sea")
    pictures = [
        pipe(**call, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for call in (
            {"prompt": PROMPT}, {"prompt_embeds": cond, "negative_prompt_embeds": uncond}
        )
    ]  # fmt: skip
    assert torch.equal(*pictures)


def test_a_weight_multiplies_the_embeddings_of_its_tokens_and_no_others(pipe):
    plain = pipe.encode_prompt(PROMPT)[0]
    weighted = encode(pipe, "a (red boat:1.5) on the sea")[0]
    before = 1 + len(pipe.tokenizer.ids("a"))
    inside = slice(before, before + len(pipe.tokenizer.ids("red boat")))
    torch.testing.assert_close(weighted[:, inside], 1.5 * plain[:, inside])
    plain[:, inside] = weighted[:, inside]
    assert torch.equal(weighted, plain)


def test_the_frame_and_the_padding_have_weight_one(pipe):
    plain, weighted = pipe.encode_prompt(PROMPT)[0], encode(pipe, f"({PROMPT}:2)")[0]
    end = 1 + len(pipe.tokenizer.ids(PROMPT))
    assert torch.equal(weighted[:, 0], plain[:, 0])
    assert torch.equal(weighted[:, end:], plain[:, end:])
    torch.testing.assert_close(weighted[:, 1:end], 2 * plain[:, 1:end])


def test_brackets_do_not_change_the_ids(pipe):
    for prompt in ("a (red:1.3) boat, [on ((the))] sea", r"a \(red\) (boat"):
        [(ids, _)] = chunks(pipe.tokenizer, prompt)
        assert ids == pipe.tokenizer(text_of(prompt))[0].tolist()


def test_a_negative_prompt_has_weights_too(pipe):
    uncond = encode(pipe, PROMPT, "a (star:1.4)")[1]
    assert torch.equal(uncond, encode(pipe, "a (star:1.4)")[0])
    assert not torch.equal(uncond, pipe.encode_prompt("a star")[0])


def test_a_prompt_does_not_depend_on_its_neighbours(pipe):
    prompts = ["a (red:1.5) boat", LONG, "[star]"]
    together = encode(pipe, prompts)[0]
    for i, prompt in enumerate(prompts):
        alone = encode(pipe, prompt, LONG)[0]  # the negative prompt makes it as long
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


def test_clip_skip_applies_before_the_weights_and_to_the_positive_prompt_alone(pipe):
    plain = pipe.encode_prompt(PROMPT, "night", clip_skip=1)
    for mine, reference in zip(encode(pipe, PROMPT, "night", clip_skip=1), plain):
        assert torch.equal(mine, reference)
    weighted = encode(pipe, f"({PROMPT}:3)", clip_skip=1)[0]
    torch.testing.assert_close(weighted[:, 1], 3 * plain[0][:, 1])


def test_weights_keep_the_precision_of_the_model():
    pipe = pipeline().to(torch.bfloat16)
    assert encode(pipe, "a (red:1.3) boat")[0].dtype == torch.bfloat16


# Length


def test_a_prompt_of_75_tokens_is_one_chunk_and_of_76_two(pipe):
    word = "a"
    assert len(pipe.tokenizer.ids(word)) == 1
    for count, expected in ((0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3)):
        found = chunks(pipe.tokenizer, " ".join([word] * count))
        assert len(found) == expected
        assert sum(ids.count(pipe.tokenizer.ids(word)[0]) for ids, _ in found) == count


def test_every_chunk_has_its_own_start_end_and_padding(pipe):
    start, end = pipe.tokenizer.start_id, pipe.tokenizer.end_id
    for ids, weights in chunks(pipe.tokenizer, LONG):
        assert len(ids) == len(weights) == 77
        assert (ids[0], ids[-1]) == (start, end)
        assert start not in ids[1:]


def test_the_padding_is_the_tokenizers_own(pipe):
    tables = pipe.tokenizer.tables()
    tokenizer = type(pipe.tokenizer).from_tables(*tables, pad_token="!")
    [(ids, _)] = chunks(tokenizer, PROMPT)
    assert ids == tokenizer(PROMPT)[0].tolist()
    assert ids[-1] == tokenizer.pad_id != tokenizer.end_id


def test_the_chunks_hold_every_token_in_order(pipe):
    found = chunks(pipe.tokenizer, LONG)
    frame = {pipe.tokenizer.start_id, pipe.tokenizer.end_id}
    assert [i for ids, _ in found for i in ids if i not in frame] == pipe.tokenizer.ids(LONG)
    assert len(found) > 2


def test_the_first_chunk_is_the_truncated_prompt_bit_by_bit(pipe):
    cut = pipe.encode_prompt(LONG)[0]
    assert torch.equal(encode(pipe, LONG)[0][:, :77], cut)


def test_the_second_chunk_is_encoded_as_a_prompt_of_its_own(pipe):
    text = pipe.tokenizer.cut(LONG)
    assert pipe.tokenizer.ids(LONG)[75:] == pipe.tokenizer.ids(text)
    torch.testing.assert_close(encode(pipe, LONG)[0][:, 77:], encode(pipe, text)[0])


def test_weights_reach_the_later_chunks(pipe):
    plain, weighted = encode(pipe, LONG)[0], encode(pipe, f"{LONG} (star:2)")[0]
    chunk, place = divmod(len(pipe.tokenizer.ids(LONG)), 75)
    last = 77 * chunk + 1 + place
    assert torch.equal(weighted[:, :last], plain[:, :last])
    star = encode(pipe, f"{LONG} star")[0]
    torch.testing.assert_close(weighted[:, last], 2 * star[:, last])


def test_the_shorter_of_prompt_and_negative_is_filled_up_with_empty_chunks(pipe):
    empty = pipe.encode_prompt("")[0]
    cond, uncond = encode(pipe, LONG, "night")
    assert cond.shape == uncond.shape
    assert torch.equal(uncond[:, :77], pipe.encode_prompt("night")[0])
    for at in range(77, uncond.shape[1], 77):
        assert torch.equal(uncond[:, at : at + 77], empty)
    cond, uncond = encode(pipe, "night", LONG)
    assert cond.shape == uncond.shape
    assert torch.equal(cond[:, 77:154], empty)


def test_a_long_prompt_draws_and_its_end_matters(pipe):
    def draw(prompt):
        cond, uncond = encode(pipe, prompt)
        return pipe(
            prompt_embeds=cond, negative_prompt_embeds=uncond, output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    assert draw(LONG).shape == (1, 3, 64, 64)
    assert (draw(LONG) - draw(f"{LONG} night")).abs().max() > 1e-3


def test_a_long_prompt_has_no_warning_and_the_plain_path_has_one(pipe, caplog):
    encode(pipe, LONG)
    assert caplog.text == ""
    pipe.encode_prompt(LONG)
    assert "its end was cut" in caplog.text


def test_the_plain_path_takes_brackets_for_text(pipe):
    ids = pipe.tokenizer("a (red:1.3) boat")[0].tolist()
    assert ids != chunks(pipe.tokenizer, "a (red:1.3) boat")[0][0]
    assert "(</w>" in pipe.tokenizer.tokens("a (red:1.3) boat")


# Prompts and negative prompts


def test_one_negative_prompt_serves_all_prompts():
    assert pair("a", None) == (["a"], [""])
    assert pair(["a", "b"], "c") == (["a", "b"], ["c", "c"])
    assert pair(("a", "b"), ("c", "")) == (["a", "b"], ["c", ""])


@pytest.mark.parametrize("read", [encode, lambda pipe, *texts: pipe.encode_prompt(*texts)])
def test_numbers_of_prompts_that_differ_are_an_error(read):
    pipe = picture_book()
    with pytest.raises(ValueError, match="2 prompts and 3 negative prompts given"):
        read(pipe, ["a", "b"], ["c"] * 3)
    with pytest.raises(ValueError, match="0 prompts"):
        read(pipe, [])
