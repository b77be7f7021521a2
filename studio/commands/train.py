"""`lora-studio train-blora` trains a B-LoRA on one picture; `train-flora` trains a FLoRA on several."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.commands import flags
from studio.commands.flags import Command
from studio.terminal.exits import OK

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from pipelines.adapters.writing import Naming
    from pipelines.flora.flora_training import TrainingReach
    from pipelines.home import Home
    from pipelines.training.recipe import Recipe
    from pipelines.training.run import Example, TrainingProgress
    from studio.rendering.opening import Opening
    from studio.terminal.progress import Teller


@dataclass(frozen=True)
class Training:
    """How to train, for both commands.

    prompt: names what is learned. out: the file to write. changes: fields that replace those of the model's standard
    recipe. resume: go on where an interrupted run stopped.
    """

    prompt: str
    out: Path
    opening: Opening
    changes: Mapping[str, Any]
    resume: bool = False
    force: bool = False

    def recipe(self, standard: Recipe) -> Recipe:
        """The standard recipe with the changes. Raises RequestError for values that cannot be used."""
        return standard.with_values(**self.changes)


@dataclass(frozen=True)
class TrainBLora:
    """What `train-blora` is to do. image: the picture to learn. sample_prompt: what samples show; None is the
    prompt."""

    training: Training
    image: Path
    sample_prompt: str | None
    naming: Naming


@dataclass(frozen=True)
class TrainFlora:
    """What `train-flora` is to do. images: the pictures; a text file of the same name beside one is its caption.
    reach: the layers that learn."""

    training: Training
    images: tuple[Path, ...]
    reach: TrainingReach


# -- flags -----------------------------------------------------------------------------------------------


def _blora_flags(command: ArgumentParser) -> None:
    command.add_argument("image", metavar="IMAGE", help="the picture")
    command.add_argument("--prompt", "-p", required=True, metavar="TEXT", help='names it, as in "A [v]"')
    _recipe_flags(command, rank="rank of the factors, which is also alpha")
    command.add_argument("--sample-prompt", metavar="TEXT", help="what samples show (default: the prompt)")
    flags.naming_flag(command)


def _flora_flags(command: ArgumentParser) -> None:
    command.add_argument("images", nargs="+", metavar="IMAGE", help="the pictures")
    command.add_argument("--prompt", "-p", required=True, metavar="TEXT", help='names it, as in "a nilo fox"')
    command.add_argument(
        "--reach",
        choices=("attention", "transformer"),
        default="attention",
        help="layers: attention projections (default), or feed-forward too",
    )
    _recipe_flags(command, rank="rank of the factors; the first is the base itself")


def _recipe_flags(command: ArgumentParser, *, rank: str) -> None:
    """The flags of both commands."""
    command.add_argument("--out", "-o", required=True, metavar="FILE", help="the .safetensors file to write")
    command.add_argument("--rank", type=int, metavar="N", help=rank)
    command.add_argument("--learning-rate", "--lr", type=float, metavar="X")
    command.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    command.add_argument("--batch", type=int, metavar="N", help="noisy copies of pictures in each step")
    command.add_argument("--size", type=int, metavar="PIXELS", help="side of the training square")
    command.add_argument("--seed", type=int, metavar="N")
    command.add_argument("--stretch", action="store_true", help="stretch the picture instead of cropping it")
    command.add_argument("--checkpoint-every", type=int, metavar="N", help="steps between resumable states")
    command.add_argument(
        "--sample-every", type=int, metavar="N", help="steps between sample pictures; 0: none"
    )
    command.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    flags.device_flags(command)
    command.add_argument("--model", "-m", metavar="M", help="name, folder, .safetensors file or hub id")
    command.add_argument("--force", action="store_true", help="overwrite the file")
    flags.quiet_flag(command)


def _read_training(args: Namespace) -> Training:
    from pipelines.home.paths import expanded
    from studio.rendering.opening import Opening

    changes = {
        "rank": args.rank,
        "learning_rate": args.learning_rate,
        "steps": args.steps,
        "batch": args.batch,
        "size": args.size,
        "seed": args.seed,
        "center_crop": False if args.stretch else None,
        "checkpoint_every": args.checkpoint_every,
        "sample_every": args.sample_every,
    }
    return Training(
        prompt=args.prompt,
        out=expanded(args.out),
        opening=Opening(args.model, args.device, args.dtype),
        changes={name: value for name, value in changes.items() if value is not None},
        resume=args.resume,
        force=args.force,
    )


def _read_blora(args: Namespace) -> TrainBLora:
    from pipelines.home.paths import expanded

    return TrainBLora(_read_training(args), expanded(args.image), args.sample_prompt, args.naming)


def _read_flora(args: Namespace) -> TrainFlora:
    from pipelines.home.paths import expanded

    return TrainFlora(_read_training(args), tuple(map(expanded, args.images)), args.reach)


# -- runs ------------------------------------------------------------------------------------------------


def run_blora(values: TrainBLora, home: Home, teller: Teller) -> int:
    """Trains a B-LoRA. Its file's name goes to stdout; sample pictures lie beside it. Raises StudioError for bad
    input."""
    from pipelines.adapters.writing import refuse_existing
    from pipelines.blora.blora_training import require_peft, train_blora
    from pipelines.blora.default_recipes import default_recipe
    from studio.rendering.opening import open_pipeline

    asked = values.training
    require_peft()
    refuse_existing(asked.out, asked.force)
    image = _read_image(values.image)
    with teller.waiting("loading the model …"):
        pipe = open_pipeline(asked.opening, home, teller.say)
    recipe = asked.recipe(default_recipe(pipe.model.unet))
    with _showing(teller, asked.out, recipe) as show_step:
        trained = train_blora(
            pipe,
            image,
            asked.prompt,
            asked.out,
            recipe=recipe,
            sample_prompt=values.sample_prompt,
            naming=values.naming,
            resume=asked.resume,
            force=asked.force,
            progress=show_step,
        )
    teller.say(f"{trained.layers} layers in {', '.join(trained.blocks)}")
    return _done(asked, teller)


def run_flora(values: TrainFlora, home: Home, teller: Teller) -> int:
    """Trains a FLoRA. Its file's name goes to stdout; sample pictures lie beside it. Raises StudioError for bad
    input."""
    from pipelines.adapters.writing import refuse_existing
    from pipelines.flora.flora_training import default_recipe, train_flora
    from studio.rendering.opening import open_pipeline

    asked = values.training
    refuse_existing(asked.out, asked.force)
    examples = [_example(file, asked.prompt) for file in values.images]
    with teller.waiting("loading the model …"):
        pipe = open_pipeline(asked.opening, home, teller.say)
    recipe = asked.recipe(default_recipe(pipe.model.unet))
    with _showing(teller, asked.out, recipe) as show_step:
        trained = train_flora(
            pipe,
            examples,
            asked.prompt,
            asked.out,
            recipe=recipe,
            reach=values.reach,
            resume=asked.resume,
            force=asked.force,
            progress=show_step,
        )
    teller.say(f"{trained.layers} layers from {len(examples)} pictures")
    return _done(asked, teller)


def _done(asked: Training, teller: Teller) -> int:
    from pipelines.training.run import literal

    if literal(asked.prompt) != asked.prompt:
        teller.say(f"brackets weigh words in prompts: write {literal(asked.prompt)}")
    print(asked.out)
    return OK


def _example(file: Path, prompt: str) -> Example:
    """A picture with its caption: the text file beside it, else the prompt. Raises RequestError for a picture or a
    caption that cannot be read, and PromptError for a caption that is no prompt."""
    from pipelines.bounds import LONGEST_PROMPT, check_text, check_words
    from pipelines.errors import RequestError
    from pipelines.home.files import exists, read_text
    from pipelines.home.plain import reading
    from pipelines.training.run import Example

    image, text = _read_image(file), prompt
    caption = file.with_suffix(".txt")
    if exists(caption):
        with reading(str(caption), RequestError, "save it as UTF-8 text"):
            text = read_text(caption, 4 * LONGEST_PROMPT).strip()
        check_text(str(caption), text, LONGEST_PROMPT)
        check_words(str(caption), text)
    return Example(image, text)


def _read_image(file: Path) -> Image.Image:
    from studio.drafts.picture_file import upright

    return upright(file, str(file))


@contextmanager
def _showing(teller: Teller, out: Path, recipe: Recipe) -> Iterator[Callable[[TrainingProgress], None]]:
    """While the block runs, a bar is shown. Call the result after every step: it moves the bar, writes sample pictures
    beside `out`, and raises KeyboardInterrupt after Ctrl+C."""
    from pipelines.home.files import write_whole
    from pipelines.training.run import state_file
    from studio.terminal.interruption import noting_interrupts

    with teller.training(recipe.steps) as show, noting_interrupts(at_once=False) as stopped:

        def show_step(progress: TrainingProgress) -> None:
            show(progress.step, progress.loss)
            if progress.sample is not None:
                file = out.with_name(f"{out.stem}-step{progress.step:06d}.png")
                sample = progress.sample
                write_whole(file, lambda path: sample.save(path, format="PNG"), force=True)
                teller.say(f"step {progress.step}: loss {progress.loss:.4f}, sample {file}")
            if stopped:
                raise KeyboardInterrupt

        try:
            yield show_step
        except KeyboardInterrupt:
            if state_file(out).exists():
                teller.say("stopped; the same command with --resume goes on from here")
            raise


COMMANDS = (
    Command(
        "train-blora",
        place=140,
        help="train a B-LoRA on one picture",
        description=(
            "Train the content and style blocks on one picture. By default, full-size models are trained as in the "
            "paper (rank 64, 1000 steps), and small models with less."
        ),
        epilog="An interrupted run goes on with --resume. Needs: pip install 'lora-studio[train]'.",
        abbreviations=True,
        add=_blora_flags,
        read=_read_blora,
        run=run_blora,
    ),
    Command(
        "train-flora",
        place=150,
        help="train a FLoRA on a few pictures",
        description=(
            "Train factors that multiply the UNet's weights (FLoRA, arXiv 2312.05677). A text file beside a picture, "
            "of the same name, is its caption; otherwise the prompt is."
        ),
        epilog="An interrupted run goes on with --resume.",
        abbreviations=True,
        add=_flora_flags,
        read=_read_flora,
        run=run_flora,
    ),
)
