"""`lora-studio train-blora`: one picture in, one B-LoRA out; `train-flora`: pictures in, one FLoRA out."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipelines.adapters.writing import refuse_existing
from pipelines.blora.recipe import default_recipe as blora_recipe
from pipelines.blora.training import require_peft, train_blora
from pipelines.errors import RequestError
from pipelines.flora.training import default_recipe as flora_recipe
from pipelines.flora.training import train_flora
from pipelines.home import Home
from pipelines.home.files import write_whole
from pipelines.training.recipe import Recipe
from pipelines.training.run import Example, Progress, literal, state_file
from studio.rendering.opening import Opening, open_pipeline
from studio.terminal.interruption import noted
from studio.terminal.progress import Teller


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """`train-blora`. The file's name on stdout; sample pictures beside it. Raises StudioError for bad input."""
    require_peft()
    out = Path(args.out).expanduser()
    refuse_existing(out, args.force)
    image = _read_image(Path(args.image).expanduser())
    with teller.waiting("loading the model …"):
        pipe = open_pipeline(Opening(args.model, args.device, args.dtype), home, teller.say)
    recipe = _asked(blora_recipe(pipe.model.unet), args)
    with _told(teller, out, recipe) as told:
        trained = train_blora(
            pipe,
            image,
            args.prompt,
            out,
            recipe=recipe,
            sample_prompt=args.sample_prompt,
            naming=args.naming,
            resume=args.resume,
            force=args.force,
            progress=told,
        )
    teller.say(f"{trained.layers} layers in {', '.join(trained.blocks)}")
    return _done(args, out, teller)


def run_flora(args: Namespace, home: Home, teller: Teller) -> int:
    """`train-flora`. A text file beside a picture, of the same name, is its caption; otherwise the prompt is."""
    out = Path(args.out).expanduser()
    refuse_existing(out, args.force)
    examples = [_example(Path(name).expanduser(), args.prompt) for name in args.images]
    with teller.waiting("loading the model …"):
        pipe = open_pipeline(Opening(args.model, args.device, args.dtype), home, teller.say)
    recipe = _asked(flora_recipe(pipe.model.unet), args)
    with _told(teller, out, recipe) as told:
        trained = train_flora(
            pipe,
            examples,
            args.prompt,
            out,
            recipe=recipe,
            reach=args.reach,
            resume=args.resume,
            force=args.force,
            progress=told,
        )
    teller.say(f"{trained.layers} layers from {len(examples)} pictures")
    return _done(args, out, teller)


def _asked(recipe: Recipe, args: Namespace) -> Recipe:
    """The recipe with what was said on the command line."""
    return recipe.with_values(
        rank=args.rank,
        learning_rate=args.learning_rate,
        steps=args.steps,
        batch=args.batch,
        size=args.size,
        seed=args.seed,
        center_crop=False if args.stretch else None,
        checkpoint_every=args.checkpoint_every,
        sample_every=args.sample_every,
    )


def _done(args: Namespace, out: Path, teller: Teller) -> int:
    if literal(args.prompt) != args.prompt:
        teller.say(f"brackets weigh words in prompts: write {literal(args.prompt)}")
    print(out)
    return 0


def _example(file: Path, prompt: str) -> Example:
    caption = file.with_suffix(".txt")
    try:
        text = caption.read_text(encoding="utf-8").strip() if caption.is_file() else prompt
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{caption} is no text that can be read; save it as UTF-8") from error
    return Example(_read_image(file), text)


@contextmanager
def _told(teller: Teller, out: Path, recipe: Recipe) -> Iterator[Callable[[Progress], None]]:
    """Within: a bar, sample pictures beside `out`, and Ctrl+C between steps."""
    with _bar(teller) as bar, noted(at_once=False) as stopped:
        task = bar.add_task("training", total=recipe.steps, loss="")

        def told(progress: Progress) -> None:
            bar.update(task, completed=progress.step, loss=f"loss {progress.loss:.4f}")
            if progress.sample is not None:
                file = out.with_name(f"{out.stem}-step{progress.step:06d}.png")
                sample = progress.sample
                write_whole(file, lambda path: sample.save(path, format="PNG"), force=True)
                teller.say(f"step {progress.step}: loss {progress.loss:.4f}, sample {file}")
            if stopped:
                raise KeyboardInterrupt

        try:
            yield told
        except KeyboardInterrupt:
            if state_file(out).exists():
                teller.say("stopped; the same command with --resume goes on from here")
            raise


def _read_image(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except FileNotFoundError as error:
        raise RequestError(f"{file} does not exist; check the path of the picture") from error
    except (OSError, UnidentifiedImageError) as error:
        raise RequestError(f"{file} is no picture that can be read; use a PNG, JPEG or WebP file") from error
    return image


def _bar(teller: Teller) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=teller.console,
        transient=True,
        disable=teller.quiet or not teller.console.is_terminal,
    )
