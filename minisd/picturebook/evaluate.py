"""What the picture-book model can do, judged: python -m minisd.picturebook.evaluate --out DIR

Prints markdown tables and writes them to DIR, with a sheet of the failures. Every section is kept
as it is finished: a run that was stopped goes on with the next.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minisd import images
from minisd.checkpoint import write_json
from minisd.memory import pick_device, pick_dtype, reuse_memory
from minisd.picturebook import exam
from minisd.picturebook.clip import SIZE, open_clip
from minisd.picturebook.judge import open_judge, pictures_of
from minisd.pipeline import StableDiffusionPipeline
from minisd.schedulers import by_name
from minisd.viz import grid

GUIDANCES = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0)
SAMPLERS = ("ddim", "dpm++", "pndm")
STEPS = (5, 10, 15, 20, 30, 50)
COPIES = 4  # pictures of each prompt, for the diversity
Table = dict[str, dict[str, float]]  # row -> column -> number


class Evaluation:
    """One model, one judge, and how many prompts a row has."""

    def __init__(self, args: argparse.Namespace):
        self.out, self.prompts = args.out, args.prompts
        self.pipe = StableDiffusionPipeline.from_pretrained(args.weights).to(args.device)
        self.painter = StableDiffusionPipeline.from_pretrained(args.weights)
        self.painter.to(args.device, pick_dtype(args.precision, pick_device(args.device)))
        self.judge = open_judge(args.judge)
        alone = args.weights and not args.clip  # another text encoder, no image encoder for it
        self.clip = None if alone else open_clip(self.pipe.text_encoder, args.clip)
        self.settings = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}

    def examples(self, row: str) -> list:
        return exam.choose(*exam.ROWS[row], self.prompts)

    def ceiling(self) -> Table:
        """The judge on true renders, and on them after the autoencoder: no model can do better."""
        table = {}
        for row in exam.ROWS:
            examples = self.examples(row)
            pictures = pictures_of(examples)
            table[row] = exam.marks(self.judge, pictures, examples)[0]
            after = exam.reconstruct(self.pipe.vae, pictures)
            table[row]["all, autoencoded"] = exam.marks(self.judge, after, examples)[0]["all"]
        return table

    def samples(self) -> Table:
        """What the model draws, by kind of prompt; failures.png shows what went wrong."""
        table, wrong = {}, []
        for row in exam.ROWS:
            examples = self.examples(row)
            pictures = exam.draw(self.painter, examples, **self.settings)
            table[row], right = exam.marks(self.judge, pictures, examples)
            failed = [(p, e.caption) for p, e, ok in zip(pictures, examples, right) if not ok]
            wrong += failed[:8]
        if wrong:
            shown, captions = zip(*wrong)
            alt = "Pictures that the judge found wrong, the prompt over each"
            grid(shown, captions, alt=alt, columns=8, size=104).save(self.out / "failures.png")
        return table

    def guidance(self) -> Table:
        """Accuracy and diversity against the guidance scale, on prompts of two objects."""
        examples, table = self.examples("two objects, seen"), {}
        several = [e for e in examples[: max(1, self.prompts // 10)] for _ in range(COPIES)]
        for scale in GUIDANCES:
            settings = {**self.settings, "guidance_scale": scale}
            pictures = exam.draw(self.painter, examples, **settings)
            row = exam.marks(self.judge, pictures, examples)[0]
            spread = exam.diversity(exam.draw(self.painter, several, **settings), COPIES)
            table[f"guidance {scale:g}"] = {**row, "diversity": spread}
        return table

    def steps(self) -> Table:
        """Accuracy against the number of steps, on prompts of two objects, for three samplers."""
        examples, table = self.examples("two objects, seen"), {}
        for name in SAMPLERS:
            pipe = replace(self.painter, scheduler=by_name(name, self.painter.scheduler.config))
            for n in STEPS:
                settings = {**self.settings, "num_inference_steps": n}
                pictures = exam.draw(pipe, examples, **settings)
                table[f"{name}, {n} steps"] = exam.marks(self.judge, pictures, examples)[0]
        return table

    def parts(self) -> Table:
        """The autoencoder and the text encoder by themselves."""
        table = {"autoencoder": exam.autoencoder(self.pipe.vae, 256)}
        if self.clip is not None:
            tokens = self.pipe.tokenizer
            table["retrieval"] = exam.retrieval(self.clip, tokens, SIZE)
            table["zero-shot"] = exam.zero_shot(self.clip, tokens, SIZE, self.prompts)
        return table

    def maps(self) -> Table:
        """The AUC of the word maps of each cross-attention layer against the true masks."""
        return exam.word_maps(self.pipe, max(8, self.prompts // 5))

    def speed(self) -> Table:
        """Seconds of one picture with the model's own settings, the model warm."""
        example, seconds = self.examples("one object, seen")[:1], []
        for _ in range(6):
            began = time.perf_counter()
            exam.draw(self.pipe, example, **self.settings)
            seconds.append(time.perf_counter() - began)
        median = sorted(seconds[1:])[2]
        return {"one picture": {"seconds": median, "threads": torch.get_num_threads()}}

    def sheet(self) -> Table:
        """64 pictures, seeds 0 to 63, prompts as the grammar makes them: none selected."""
        examples = [exam.world.example(i, exam.SEED) for i in range(64)]
        pictures = exam.draw(self.painter, examples, **self.settings)
        images.save_png(images.grid(images.to_pil(pictures), 8), self.out / "sheet.png")
        captions = "\n".join(f"{i}. {e.caption}" for i, e in enumerate(examples))
        (self.out / "sheet.txt").write_text(captions + "\n", encoding="utf8")
        return {"sheet": exam.marks(self.judge, pictures, examples)[0]}


SECTIONS = ("ceiling", "parts", "samples", "maps", "speed", "sheet", "guidance", "steps")


def markdown(title: str, table: Table) -> str:
    """A table of numbers; a number that a row lacks is a dash."""
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = [f"## {title}", "", "| |" + "|".join(f" {c} " for c in columns) + "|"]
    lines.append("|---|" + "---:|" * len(columns))
    for name, row in table.items():
        cells = [shown(row[c]) if c in row else "-" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's arguments; another section than SECTIONS is an error."""
    parser = argparse.ArgumentParser(
        prog="python -m minisd.picturebook.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("section", nargs="*", default=[], help=f"of {', '.join(SECTIONS)}; or all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", type=Path, help="a native folder (default: the shipped model)")
    parser.add_argument("--judge", type=Path, help="its weights (default: the shipped ones)")
    parser.add_argument(
        "--clip",
        type=Path,
        help="clip_image.safetensors of the recipe (default: of the shipped model, for it alone)",
    )
    parser.add_argument("--prompts", type=int, default=500, help="prompts a row")
    parser.add_argument("--steps", type=int, help="(default: the model's own)")
    parser.add_argument("--guidance-scale", type=float, help="(default: the model's own)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32",
                        help="in which the pictures are drawn")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    args = parser.parse_args(argv)
    if wrong := set(args.section) - set(SECTIONS):
        parser.error(f"{', '.join(sorted(wrong))}: no such section, expected {SECTIONS}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code: 0, or 2 for wrong input."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    reuse_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "evaluation.json"
    done: dict[str, Any] = json.loads(kept.read_text(encoding="utf8")) if kept.exists() else {}
    try:
        evaluation = Evaluation(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about = {
        "model": evaluation.pipe.hash,
        "prompts": args.prompts,
        "precision": args.precision,
        **{k: v or getattr(evaluation.pipe.defaults, k) for k, v in evaluation.settings.items()},
    }
    if done.setdefault("about", about) != about:
        print(f"error: {kept} is of {done['about']}, now {about}; choose another --out",
              file=sys.stderr)  # fmt: skip
        return 2
    for section in args.section or SECTIONS:
        measure: Callable[[], Table] = getattr(evaluation, section)
        if section not in done:
            done[section] = measure()
            write_json(kept, done)
        title = f"{section}: {measure.__doc__.splitlines()[0]}"
        print(markdown(title, done[section]), end="\n\n", flush=True)
    parts = [markdown(name, done[name]) for name in SECTIONS if name in done]
    (args.out / "evaluation.md").write_text("\n\n".join(parts) + "\n", encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
