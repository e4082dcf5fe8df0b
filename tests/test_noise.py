"""The rules of random numbers, and the arc between two draws of them."""

import pytest
import torch
from tiny import picture_book

from minisd.noise import draw_noise, seeded, slerp


def rows(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def angle(a, b):
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double())
    return torch.acos(cosine.clamp(-1, 1))


def test_a_list_of_generators_gives_each_row_its_own_numbers():
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 8)]
    both = draw_noise((2, 4, 3), generators)
    assert torch.equal(both, torch.cat([rows(3, 1, 4, 3), rows(8, 1, 4, 3)]))


def test_a_wrong_number_of_generators_is_an_error():
    with pytest.raises(ValueError, match="1 generators were given for 2 pictures"):
        draw_noise((2, 3), [torch.Generator()])


def test_a_fresh_seed_is_that_of_the_generator_it_comes_with():
    generator, seed = seeded()
    assert torch.equal(torch.randn(5, generator=generator), rows(seed, 5))
    given = torch.Generator()
    assert seeded(given) == (given, None)


def test_slerp_starts_at_the_first_and_ends_at_the_second():
    a, b = rows(0, 2, 4, 8, 8), rows(1, 2, 4, 8, 8)
    torch.testing.assert_close(slerp(a, b, 0), a)
    torch.testing.assert_close(slerp(a, b, 1), b)


def test_slerp_turns_at_a_steady_angle():
    a, b = rows(0, 3, 40), rows(1, 3, 40)
    b = b / b.norm(dim=1, keepdim=True) * a.norm(dim=1, keepdim=True)
    for share in (0.1, 0.25, 0.5, 0.9):
        torch.testing.assert_close(angle(a, slerp(a, b, share)), share * angle(a, b))
        torch.testing.assert_close(slerp(a, b, share).norm(dim=1), a.norm(dim=1))


def test_slerp_keeps_the_size_of_noise_where_the_straight_line_loses_it():
    a, b = rows(0, 1, 4, 64, 64), rows(1, 1, 4, 64, 64)
    assert slerp(a, b, 0.5).std().item() == pytest.approx(1, abs=0.02)
    assert torch.lerp(a, b, 0.5).std().item() == pytest.approx(0.5**0.5, abs=0.02)


def test_each_row_of_slerp_is_on_its_own():
    a, b = rows(0, 3, 4, 2, 2), rows(1, 3, 4, 2, 2)
    b[1] = a[1]  # no arc
    whole = slerp(a, b, 0.3)
    for i in range(3):
        torch.testing.assert_close(whole[i : i + 1], slerp(a[i : i + 1], b[i : i + 1], 0.3))


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_without_an_arc_slerp_takes_the_straight_line(factor):
    a = rows(0, 2, 30)
    torch.testing.assert_close(slerp(a, factor * a, 0.25), torch.lerp(a, factor * a, 0.25))


def test_slerp_of_different_shapes_is_an_error():
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(2, 4\), expected one shape"):
        slerp(torch.ones(1, 4), torch.ones(2, 4), 0.5)


def test_pictures_vary_from_one_seed_and_prompt_to_the_next():
    pipe = picture_book()
    starts = rows(0, 1, 4, 4, 4), rows(1, 1, 4, 4, 4)
    (first, empty), (second, _) = pipe.encode_prompt("a red boat"), pipe.encode_prompt("a bird")

    def draw(share):
        return pipe(
            prompt_embeds=slerp(first, second, share), negative_prompt_embeds=empty,
            latents=slerp(*starts, share), output_type="latent",
        ).images  # fmt: skip

    a, between, b = draw(0), draw(0.5), draw(1)
    torch.testing.assert_close(
        a, pipe("a red boat", latents=starts[0], output_type="latent").images, atol=1e-5, rtol=0
    )
    assert (a - between).norm() < (a - b).norm()
