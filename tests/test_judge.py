"""The judge: its training batches, its loss, and what it reads off its own answers."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from minisd import machine
from minisd.picturebook import evaluate, exam, judge, world
from minisd.picturebook.judge import GRID, Judge, Marked, judge_loss, look
from minisd.picturebook.marking import mark


class Oracle(nn.Module):
    """Answers with the truth about the batch it was made for."""

    def __init__(self, batch):
        super().__init__()
        self.batch, self.unused = batch, nn.Parameter(torch.zeros(1))

    def forward(self, pictures):
        _, heat, marks, settings = self.batch
        b = len(heat)
        colors, radii = torch.zeros(b, 2, len(judge.COLORS), GRID, GRID), torch.zeros(b, 2, 16, 16)
        for i, g, r, c, color, radius in marks.tolist():
            place = int(i), int(g), int(r), int(c)
            colors[place[0], place[1], int(color), place[2], place[3]] = 20
            radii[place] = radius
        setting = 20 * torch.nn.functional.one_hot(settings, len(judge.SETTINGS)).float()
        return torch.where(heat == 1, 20.0, -20.0), colors, radii, setting


def test_a_batch_marks_every_thing_where_it_is():
    pictures, heat, marks, settings = Marked(6)[0]
    assert pictures.shape == (6, 3, 128, 128)
    assert heat.shape == (6, 2, len(judge.OBJECTS), GRID, GRID)
    assert (heat == 1).sum() == len(marks)
    assert settings.shape == (6,)
    again = Marked(6)[0]
    assert all(torch.equal(a, b) for a, b in zip((pictures, heat, marks, settings), again))


def test_the_truth_has_almost_no_loss():
    batch = Marked(4)[1]
    loss, parts = judge_loss(Oracle(batch), batch, torch.Generator().manual_seed(0))
    assert loss < 0.01
    assert set(parts) == {"centres", "color", "radius", "setting"}


def test_what_is_read_off_the_truth_earns_full_marks():
    examples = [world.example(i, 0, "train") for i in range(40)]
    for example in examples:
        scene, marks = example.scene, []
        heat = torch.zeros(1, 2, len(judge.OBJECTS), GRID, GRID)
        for j, thing in enumerate(scene.things):
            holds = int(scene.relation == "inside" and j == 1)
            _, (row, column) = judge.peak(thing.x, thing.y)
            heat[0, holds, judge.OBJECTS.index(thing.object), row, column] = 1
            color = judge.COLORS.index(thing.color)
            marks.append((0, holds, row, column, color, thing.radius))
        setting = torch.tensor([judge.SETTINGS.index(scene.setting)])
        batch = (None, heat, torch.tensor(marks), setting)
        (seen,) = look(Oracle(batch), exam.pictures_of([example]))
        assert mark(scene, seen)["all"], (scene, seen)


def test_the_loss_of_one_batch_falls_in_a_few_steps():
    torch.manual_seed(0)
    network, generator = Judge(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    batch = Marked(4)[0]
    for _ in range(5):
        loss, _ = judge_loss(network, batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_every_row_has_its_kind_of_scene():
    for kind, split in exam.ROWS.values():
        examples = exam.choose(kind, split, 5)
        assert [e.scene.kind for e in examples] == 5 * [kind]
        assert examples[0].caption == exam.choose(kind, split, 1)[0].caption


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(evaluate, "open_judge", lambda path: Judge().eval())
    monkeypatch.setattr(evaluate, "GUIDANCES", (4.0,))
    monkeypatch.setattr(evaluate, "STEPS", (2,))
    monkeypatch.setattr(exam, "ROWS", {r: exam.ROWS[r] for r in [*exam.ROWS][:1]} | {
        "two objects, seen": exam.ROWS["two objects, seen"]})  # fmt: skip


def test_the_evaluation_prints_its_tables_keeps_them_and_goes_on(quick, tmp_path, capsys):
    options = ["--out", str(tmp_path), "--prompts", "2", "--steps", "1", "--threads", "1"]
    options += ["--precision", "bfloat16"]
    assert evaluate.main(["ceiling", "samples", *options]) == 0
    first = capsys.readouterr().out
    assert "## samples" in first
    assert "| two objects, seen |" in first
    kept = json.loads((tmp_path / "evaluation.json").read_text())
    kept["samples"]["two objects, seen"]["all"] = 0.125
    (tmp_path / "evaluation.json").write_text(json.dumps(kept))
    assert evaluate.main(["samples", "guidance", *options]) == 0
    assert "0.125" in capsys.readouterr().out, "what was measured before is not measured again"
    assert "guidance 4" in (tmp_path / "evaluation.md").read_text()
    assert (tmp_path / "failures.png").exists()


def test_without_a_judge_the_evaluation_says_how_to_get_one(tmp_path, capsys):
    argv = ["ceiling", "--out", str(tmp_path), "--judge", str(tmp_path / "none.safetensors")]
    assert evaluate.main(argv) == 2
    assert "train a judge" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--judge", "--clip"])
def test_weights_of_something_else_are_told_by_their_file(option, tmp_path, capsys):
    unet = machine.shipped_weights() / "unet.safetensors"
    argv = ["parts", "--out", str(tmp_path), option, str(unet)]
    assert evaluate.main(argv) == 2
    error = capsys.readouterr().err
    assert f"{unet} does not fit a {'CLIP' if option == '--clip' else 'Judge'}" in error


def test_the_evaluation_of_another_model_wants_another_folder(quick, tmp_path, capsys):
    options = ["ceiling", "--out", str(tmp_path), "--steps", "1", "--threads", "1"]
    assert evaluate.main([*options, "--prompts", "1"]) == 0
    assert evaluate.main([*options, "--prompts", "2"]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_a_fifth_of_a_batch_has_one_thing_inside_another():
    assert judge.something_inside(np.random.default_rng(0)).scene.relation == "inside"
    marked = [Marked(40)[step] for step in range(3)]
    holding = sum(int((heat[:, 1] == 1).sum()) for _, heat, _, _ in marked)
    assert 0.15 < holding / 120 < 0.4  # and those that come by themselves


def test_the_shipped_judge_is_right_on_renders():
    examples = [world.example(i, exam.SEED) for i in range(100)]
    shares, _ = exam.marks(judge.open_judge(), exam.pictures_of(examples), examples)
    assert shares["all"] >= 0.97
