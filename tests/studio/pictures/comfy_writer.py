"""What a graph of ComfyUI is written with: a recipe, and nodes for its numbers, texts and LoRAs, of different packs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Link = list[Any]


@dataclass(frozen=True)
class Recipe:
    """What a picture was made with, as ComfyUI says it. loras: (name, model's strength, text encoder's)."""

    prompt: str = "a fox on a hill, (red hat:1.2)"
    negative: str = "blurry"
    seed: int = 2**53 + 1
    steps: int = 25
    cfg: float = 5.5
    sampler: str = "dpmpp_2m"
    spacing: str = "karras"
    width: int = 640
    height: int = 512
    model: str = "sub/random-sdxl.safetensors"
    vae: str = ""
    loras: tuple[tuple[str, float, float], ...] = (("fox", 0.8, 0.4), ("hat", 1.0, 1.0))
    clip_skip: int = 0


@dataclass
class Writer:
    """A graph that is being written."""

    dice: random.Random
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, kind: str, **inputs: Any) -> str:
        number = f"{len(self.nodes) + 1}" if self.dice.random() < 0.8 else f"9:{len(self.nodes) + 1}"
        self.nodes[number] = {"class_type": kind, "inputs": inputs}
        return number

    def whole(self, value: int, name: str = "value") -> Any:
        """The number itself, or a link to a node that holds it."""
        way = self.dice.choice(
            ["self", "self", "primitive", "constant", "seed", "easy", "math", "switch", "reroute"]
        )
        if way == "primitive":
            return [self.add("PrimitiveInt", value=value), 0]
        if way == "constant":
            return [self.add("INTConstant", value=value), 0]
        if way == "seed" and name == "seed":
            return [self.add("Seed (rgthree)", seed=value), 0]
        if way == "easy":
            return [
                self.add(
                    "easy seed" if name == "seed" else "easy int",
                    **{"seed" if name == "seed" else "value": value},
                ),
                0,
            ]
        if way == "math":
            return [self.add("MathExpression|pysssss", expression="a + 3 * b - 3", a=value, b=1), 0]
        if way == "switch":
            return [self.add("Any Switch (rgthree)", any_02=[self.add("PrimitiveInt", value=value), 0]), 0]
        if way == "reroute":
            return [self.add("Reroute", **{"": [self.add("PrimitiveInt", value=value), 0]}), 0]
        return value

    def words(self, value: str) -> Any:
        """The text itself, or a link to nodes that make it."""
        way = self.dice.choice(
            ["self", "self", "primitive", "join", "was", "function", "show", "switch", "cr"]
        )
        head, mark, tail = value.partition(", ")
        if way == "primitive":
            return [self.add("PrimitiveStringMultiline", value=value), 0]
        if way == "join" and mark:
            return [
                self.add(
                    "StringConcatenate",
                    string_a=head,
                    string_b=[self.add("PrimitiveString", value=tail), 0],
                    delimiter=", ",
                ),
                0,
            ]
        if way == "was" and mark:
            first = self.add("Text Multiline", text=head)
            return [
                self.add(
                    "Text Concatenate",
                    delimiter=", ",
                    clean_whitespace="true",
                    text_a=[first, 0],
                    text_b=tail,
                ),
                0,
            ]
        if way == "function":
            return [
                self.add(
                    "StringFunction|pysssss",
                    action="append",
                    tidy_tags="yes",
                    text_a=head,
                    text_b=tail,
                    text_c="",
                ),
                0,
            ]
        if way == "show":
            return [
                self.add(
                    "ShowText|pysssss",
                    text=[self.add("String Literal", string=value), 0],
                    text_0="an older text",
                ),
                0,
            ]
        if way == "switch":
            texts = [[self.add("CR Text", text=one), 0] for one in ("something else", value)]
            return [self.add("CR Text Input Switch", Input=2, text1=texts[0], text2=texts[1]), 0]
        if way == "cr" and mark:
            return [self.add("CR Text Concatenate", text1=head, text2=tail, separator=", "), 0]
        return value


def lora_chain(write: Writer, recipe: Recipe, model: Link, clip: Link) -> tuple[Link, Link]:
    ways: list[Callable[[], tuple[Link, Link]]] = []
    loras = recipe.loras

    def one_each() -> tuple[Link, Link]:
        at, text = model, clip
        for name, strength, words in loras:
            if write.dice.random() < 0.3 and words == 0:
                at = [
                    write.add(
                        "LoraLoaderModelOnly",
                        lora_name=f"{name}.safetensors",
                        strength_model=strength,
                        model=at,
                    ),
                    0,
                ]
                continue
            called: Any = f"styles\\{name}.safetensors"
            kind = write.dice.choice(["LoraLoader", "LoraLoader|pysssss", "Load Lora", "CR Load LoRA"])
            if kind == "LoraLoader|pysssss":
                called = {"content": called, "image": None}
            more = {"switch": "On"} if kind == "CR Load LoRA" else {}
            node = write.add(
                kind,
                lora_name=called,
                strength_model=strength,
                strength_clip=words,
                model=at,
                clip=text,
                **more,
            )
            at, text = [node, 0], [node, 1]
        node = write.add(
            "LoraLoader", lora_name="zero.safetensors", strength_model=0, strength_clip=0, model=at, clip=text
        )
        return [node, 0], [node, 1]

    def power() -> tuple[Link, Link]:
        rows = {
            f"lora_{place}": {
                "on": True,
                "lora": f"{name}.safetensors",
                "strength": strength,
                "strengthTwo": words,
            }
            for place, (name, strength, words) in enumerate(loras, 1)
        }
        rows["lora_9"] = {"on": False, "lora": "off.safetensors", "strength": 1}
        node = write.add(
            "Power Lora Loader (rgthree)",
            PowerLoraLoaderHeaderWidget={"type": "x"},
            **rows,
            **{"Add Lora": ""},
            model=model,
            clip=clip,
        )
        return [node, 0], [node, 1]

    def manager() -> tuple[Link, Link]:
        rows = [
            {
                "name": name,
                "strength": str(strength),
                "active": True,
                "clipStrength": words,
                "expanded": False,
            }
            for name, strength, words in loras
        ]
        rows.append({"name": "off", "strength": 1, "active": False, "clipStrength": 1})
        text = " ".join(f"<lora:{row['name']}:{row['strength']}>" for row in rows)
        held = {"__value__": rows} if write.dice.random() < 0.5 else rows
        node = write.add("Lora Loader (LoraManager)", text=text, loras=held, model=model, clip=clip)
        return [node, 0], [node, 1]

    def stacked() -> tuple[Link, Link]:
        kind = write.dice.choice(["CR Apply LoRA Stack", "easy loraStackApply", "Lora Loader (LoraManager)"])
        more = {"text": "", "loras": {"__value__": []}} if "Manager" in kind else {}
        node = write.add(kind, model=model, clip=clip, lora_stack=stack(write, recipe), **more)
        return [node, 0], [node, 1]

    ways = [one_each, power, manager, stacked]
    if all(strength == words for _, strength, words in loras):

        def rgthree_stack() -> tuple[Link, Link]:
            rows: dict[str, Any] = {}
            for place, (name, strength, _) in enumerate((*loras, ("None", 1.0, 1.0)), 1):
                rows |= {
                    f"lora_0{place}": f"{name}.safetensors" if name != "None" else name,
                    f"strength_0{place}": strength,
                }
            node = write.add("Lora Loader Stack (rgthree)", **rows, model=model, clip=clip)
            return [node, 0], [node, 1]

        ways.append(rgthree_stack)
    return write.dice.choice(ways)()


def stack(write: Writer, recipe: Recipe) -> Link:
    """The LoRAs as a stack that another node applies."""
    way = write.dice.choice(["efficient", "cr", "easy", "manager"])
    rows: dict[str, Any] = {}
    last: Link | None = None
    if way == "manager":
        held = [
            {"name": name, "strength": a, "clipStrength": b, "active": True} for name, a, b in recipe.loras
        ]
        return [write.add("Lora Stacker (LoraManager)", text="", loras=held), 0]
    for place, (name, strength, words) in enumerate(recipe.loras, 1):
        file = f"{name}.safetensors"
        if way == "efficient":
            rows |= {
                f"lora_name_{place}": file,
                f"lora_wt_{place}": 0.123,
                f"model_str_{place}": strength,
                f"clip_str_{place}": words,
            }
        elif way == "easy":
            rows |= {
                f"lora_{place}_name": file,
                f"lora_{place}_strength": 0.123,
                f"lora_{place}_model_strength": strength,
                f"lora_{place}_clip_strength": words,
            }
        else:
            more = {"lora_stack": last} if last else {}
            last = [
                write.add(
                    "CR LoRA Stack",
                    switch_1="Off",
                    lora_name_1="off.safetensors",
                    model_weight_1=1.0,
                    clip_weight_1=1.0,
                    switch_2="On",
                    lora_name_2=file,
                    model_weight_2=strength,
                    clip_weight_2=words,
                    switch_3="On",
                    lora_name_3="None",
                    model_weight_3=1.0,
                    clip_weight_3=1.0,
                    **more,
                ),
                0,
            ]
    if last is not None:
        return last
    count = len(recipe.loras)
    if way == "efficient":
        rows |= {
            f"lora_name_{count + 1}": "beyond.safetensors",
            f"model_str_{count + 1}": 1.0,
            f"clip_str_{count + 1}": 1.0,
        }
        return [write.add("LoRA Stacker", input_mode="advanced", lora_count=count, **rows), 0]
    if way == "cr":  # no LoRA at all
        return [
            write.add(
                "CR LoRA Stack", switch_1="Off", lora_name_1="None", model_weight_1=1.0, clip_weight_1=1.0
            ),
            0,
        ]
    return [write.add("easy loraStack", toggle=True, mode="advanced", num_loras=max(count, 1), **rows), 0]
