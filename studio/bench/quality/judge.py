"""Pairwise judging by a vision-language model, behind an OpenAI-compatible endpoint (POST …/chat/completions).

Two pictures of one mix are shown in both orders, and the scores of both answers are averaged, since the picture that is
shown first tends to be favoured (Zhong et al. 2024, arXiv 2402.16843, appendix). The prompt is our own. Judging is off
by default, because it sends pictures to the endpoint that the user names.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.error import URLError
from urllib.parse import urlsplit

import numpy as np

from pipelines.errors import SetupError
from studio.bench.quality.cells import QualityCell
from studio.bench.quality.drawing import Shot
from studio.bench.quality.elements import Composition, spread

KEY = "LORA_STUDIO_JUDGE_KEY"
"""The environment variable with the endpoint's key, if it needs one."""
TRIES = 3
SECONDS = 120
AXES = ("composition", "quality")

PROMPT = """You compare two pictures, A and B, that were made for one description. Each should show all of these:
{elements}

Judge strictly, each picture by itself:
composition: 0 to 10 in steps of 0.5. Start at 10; take 3 for every listed thing that is missing or is another thing,
1 for every listed feature that is wrong, 1 where the things do not belong to one scene.
quality: 0 to 10 in steps of 0.5. Start at 10; take 3 for every deformed part, 2 for faults of texture, light or
colour, 1 for every small flaw.
Equal scores only where you can see no difference.

Answer with one line of JSON and nothing else:
{{"A": {{"composition": 7.5, "quality": 8}}, "B": {{"composition": 6, "quality": 8.5}}}}"""


@dataclass(frozen=True)
class Verdict:
    """Both pictures' scores in 0 … 10: (composition, quality)."""

    first: tuple[float, float]
    second: tuple[float, float]


class Judge(Protocol):
    """Looks at two pictures of one composition."""

    def compare(self, composition: Composition, first: Path, second: Path) -> Verdict: ...


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible endpoint. url: everything before /chat/completions."""

    url: str
    model: str
    key: str | None = None

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise SetupError(f"--judge {self.url}: write an address such as http://localhost:8000/v1")

    def compare(self, composition: Composition, first: Path, second: Path) -> Verdict:
        """Asks for a verdict, and asks again if the answer cannot be read. Raises SetupError."""
        elements = "\n".join(f"- {one.category}: {one.name} ({one.words})" for one in composition.elements)
        content: list[dict[str, Any]] = [{"type": "text", "text": PROMPT.format(elements=elements)}]
        for name, file in (("A", first), ("B", second)):
            data = base64.b64encode(file.read_bytes()).decode()
            content += [
                {"type": "text", "text": f"Picture {name}:"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            ]
        message = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        answer = ""
        for _ in range(TRIES):
            answer = self._ask(message)
            verdict = read_answer(answer)
            if verdict is not None:
                return verdict
        raise SetupError(
            f"the judge {self.model} does not answer with scores, {TRIES} times; it last said {answer!r:.200}"
        )

    def _ask(self, message: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(message).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                said = json.load(response)
            return str(said["choices"][0]["message"]["content"])
        except (URLError, TimeoutError, ValueError, KeyError, IndexError, TypeError) as error:
            raise SetupError(
                f"the judge at {self.url} does not answer as an OpenAI-compatible endpoint ({error}); check the "
                f"address, the model's name {self.model!r}, and {KEY} where it wants a key"
            ) from error


def endpoint(url: str, model: str | None) -> Endpoint:
    """The endpoint with that model. Raises SetupError if no model is named."""
    if not model:
        raise SetupError("--judge needs --judge-model too: the model's name at that endpoint")
    return Endpoint(url, model, os.environ.get(KEY))


def read_answer(text: str) -> Verdict | None:
    """The scores in an answer; None if it has none, or if they are outside 0 … 10."""
    for match in re.finditer(r"\{.*\}", text, re.DOTALL):
        try:
            said = json.loads(match[0])
            scores = [tuple(float(said[name][axis]) for axis in AXES) for name in "AB"]
        except (ValueError, KeyError, TypeError):
            continue
        if all(0 <= score <= 10 for pair in scores for score in pair):
            (a, b), (c, d) = scores
            return Verdict((a, b), (c, d))
    return None


def both_orders(judge: Judge, composition: Composition, first: Path, second: Path) -> Verdict:
    """The mean of the scores with `first` shown first and shown second."""
    one = judge.compare(composition, first, second)
    other = judge.compare(composition, second, first)

    def middle(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
        return ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)

    return Verdict(middle(one.first, other.second), middle(one.second, other.first))


@dataclass(frozen=True)
class Judged:
    """The judge's comparison of a method with the baseline: mean scores of both, and shares of wins, ties and
    losses."""

    method: str
    pairs: int
    scores: dict[str, tuple[float, float]]
    shares: dict[str, tuple[float, float, float]]


def judge_all(
    judge: Judge, shots: Mapping[QualityCell, Shot], cells: Sequence[QualityCell], baseline: str, most: int
) -> list[Judged]:
    """Compares every method with the baseline, on at most `most` evenly spaced compositions, at the lowest seed."""
    seed = min(cell.seed for cell in cells)
    here = {
        (cell.composition, cell.method.label): cell for cell in cells if cell.seed == seed and cell in shots
    }
    compositions = [one for one, method in here if method == baseline]
    found = []
    for method in dict.fromkeys(method for _, method in here):
        if method == baseline:
            continue
        verdicts = [
            both_orders(judge, one, shots[here[one, method]].file, shots[here[one, baseline]].file)
            for one in spread([one for one in compositions if (one, method) in here], most)
        ]
        if verdicts:
            found.append(_judged(method, verdicts))
    return found


def _judged(method: str, verdicts: Sequence[Verdict]) -> Judged:
    scores, shares = {}, {}
    for place, axis in enumerate(AXES):
        own = np.array([verdict.first[place] for verdict in verdicts])
        base = np.array([verdict.second[place] for verdict in verdicts])
        scores[axis] = (float(own.mean()), float(base.mean()))
        shares[axis] = (float((own > base).mean()), float((own == base).mean()), float((own < base).mean()))
    return Judged(method, len(verdicts), scores, shares)


def judged_text(found: Sequence[Judged], baseline: str) -> str:
    lines = [f"judged against {baseline}, both orders (method/{baseline}, wins/ties/losses %)"]
    for one in found:
        parts = [
            f"{axis} {one.scores[axis][0]:.2f}/{one.scores[axis][1]:.2f} "
            f"{'/'.join(f'{100 * share:.0f}' for share in one.shares[axis])}"
            for axis in AXES
        ]
        lines.append(f"  {one.method}: {', '.join(parts)} ({one.pairs} pairs)")
    return "\n".join(lines)
