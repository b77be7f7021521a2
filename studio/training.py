"""`lora-studio train-blora`: one picture in, one B-LoRA out."""

from __future__ import annotations

import signal
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from PIL import Image, UnidentifiedImageError
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipelines.blora.recipe import default_recipe
from pipelines.blora.splitting import refuse_existing
from pipelines.blora.training import Progress, literal, require_peft, state_file, train_blora
from pipelines.errors import RequestError
from pipelines.home import Home
from studio.opening import Opening, open_pipeline
from studio.outputs import write_whole
from studio.progress import Teller


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """The file's name on stdout; sample pictures beside it. Raises StudioError for bad input."""
    require_peft()
    out = Path(args.out).expanduser()
    refuse_existing(out, args.force)
    image = _read_image(Path(args.image).expanduser())
    with teller.waiting("loading the model …"):
        pipe = open_pipeline(Opening(args.model, args.device, args.dtype), home, teller.say)
    recipe = default_recipe(pipe.model.unet).with_values(
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
    with _bar(teller) as bar, _between_steps() as stopped:
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
        except KeyboardInterrupt:
            if state_file(out).exists():
                teller.say("stopped; the same command with --resume goes on from here")
            raise
    teller.say(f"{trained.layers} layers in {', '.join(trained.blocks)}")
    if literal(args.prompt) != args.prompt:
        teller.say(f"brackets weigh words in prompts: write {literal(args.prompt)}")
    print(out)
    return 0


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


@contextmanager
def _between_steps() -> Iterator[list[bool]]:
    """Within: Ctrl+C fills the list instead of breaking a step in the middle; a second one breaks at once."""
    stopped: list[bool] = []

    def note(number: int, frame: FrameType | None) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
