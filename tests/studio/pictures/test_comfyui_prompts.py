"""The words of ComfyUI's graphs: from the sampler's conditionings back to the texts, in our syntax."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.text.editing import pieces_of
from pipelines.text.prompt import parse
from studio.pictures.comfyui_prompts import plain_words

from .comfy_graphs import node, read

CLIP = ["4", 1]


def encoded(text: Any) -> dict[str, Any]:
    return node("CLIPTextEncode", text=text, clip=CLIP)


def words(more: dict[str, Any], **sampler: Any) -> tuple[str, tuple[str, ...]]:
    said = read(more, **sampler)
    return said.values["prompt"], said.notes


# -- texts of other nodes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "inputs", "right"),
    [
        ("PrimitiveStringMultiline", {"value": "a hat"}, "a hat"),
        ("String Literal", {"string": "a hat"}, "a hat"),
        ("Text Multiline", {"text": "a hat"}, "a hat"),
        ("CR Prompt Text", {"prompt": "a hat"}, "a hat"),
        ("easy positive", {"positive": "a hat"}, "a hat"),
        ("ttN text", {"text": "a hat"}, "a hat"),
        ("ShowText|pysssss", {"text": ["21", 0], "text_0": "old"}, "one"),
        ("StringConcatenate", {"string_a": ["21", 0], "string_b": "two", "delimiter": ", "}, "one, two"),
        (
            "Text Concatenate",
            {
                "delimiter": "\\n",
                "clean_whitespace": "true",
                "text_a": " one ",
                "text_b": ["21", 0],
                "text_c": "",
                "text_d": "x",
            },
            "one\none\nx",
        ),
        ("Text Concatenate", {"text_b": "two", "text_a": ["21", 0], "linebreak_addition": "false"}, "onetwo"),
        ("JoinStrings", {"string1": ["21", 0], "string2": "two", "delimiter": " "}, "one two"),
        ("CR Text Concatenate", {"text1": "two", "text2": ["21", 0], "separator": "|"}, "two|one"),
        ("ttN concat", {"text1": "a", "text2": "b", "text3": "c", "delimiter": ","}, "a,b,c"),
        (
            "StringFunction|pysssss",
            {"action": "append", "tidy_tags": "yes", "text_a": "a ,, b", "text_b": ["21", 0]},
            "a, b, one",
        ),
        (
            "StringFunction|pysssss",
            {"action": "replace", "tidy_tags": "no", "text_a": "a cat", "text_b": "cat", "text_c": "hat"},
            "a hat",
        ),
        ("StringSubstring", {"string": "a hat in snow", "start": 0, "end": 5}, "a hat"),
        ("StringConstantMultiline", {"string": "a hat", "strip_newlines": True}, "a hat"),
        ("Text Find and Replace", {"text": "a cat", "find": "cat", "replace": "hat"}, "a hat"),
        (
            "ImpactWildcardProcessor",
            {"wildcard_text": "{a|b}", "populated_text": "a hat", "mode": "fixed", "seed": 3},
            "a hat",
        ),
        ("CR Text Input Switch", {"Input": 2, "text1": ["21", 0], "text2": "two"}, "two"),
        ("Text Input Switch", {"text_a": ["21", 0], "text_b": "two", "boolean": False}, "two"),
        ("Any Switch (rgthree)", {"any_02": ["21", 0], "any_03": "two"}, "one"),
        (
            "ImpactSwitch",
            {"select": ["22", 0], "sel_mode": True, "input1": ["21", 0], "input2": "two"},
            "two",
        ),
        (
            "TriggerWord Toggle (LoraManager)",
            {
                "group_mode": True,
                "toggle_trigger_words": {
                    "__value__": [{"text": "foxy", "active": True}, {"text": "no", "active": False}]
                },
            },
            "foxy",
        ),
        ("Reroute", {"": ["21", 0]}, "one"),
    ],
)
def test_texts(kind: str, inputs: dict[str, Any], right: str) -> None:
    more = {
        "20": node(kind, **inputs),
        "21": node("PrimitiveString", value="one"),
        "22": node("PrimitiveInt", value=2),
    }
    assert words(more | {"6": encoded(["20", 0])}) == (right, ())


def test_the_outputs_of_a_node_with_several_texts() -> None:
    more = {"20": node("Text String", text="one", text_b="two", text_c="", text_d="")}
    assert words(more | {"6": encoded(["20", 1])})[0] == "two"
    styled = node(
        "SDXLPromptStyler", text_positive="a fox", text_negative="bad", style="enhance", log_prompt=True
    )
    said = read({"20": styled, "6": encoded(["20", 0]), "7": encoded(["20", 1])})
    assert (said.values["prompt"], said.values["negative_prompt"]) == ("a fox", "bad")
    assert said.notes == ("the style 'enhance' of SDXLPromptStyler (node 20) is not added to the prompt",)


def test_what_is_not_understood_is_told() -> None:
    assert words({"6": encoded(["20", 0]), "20": node("Ask A Model", own={"x": 1})}) == (
        "",
        ("prompt not understood: it comes from Ask A Model (node 20)",),
    )
    assert words({"6": node("Somebody's Encoder", own={"x": 1})}) == (
        "",
        ("prompt not understood: it comes from Somebody's Encoder (node 6)",),
    )
    assert words({}, positive=["99", 0]) == (
        "",
        ("prompt not understood: KSampler (node 3) is given none that is known",),
    )
    part = node("Text Concatenate", delimiter=", ", text_a="a", text_b=["21", 0])
    assert words({"6": encoded(["20", 0]), "20": part, "21": node("Ask A Model", own={"x": 1})}) == (
        "a",
        ("prompt not understood in part: input 'text_b' of Text Concatenate (node 20)",),
    )
    said = read({"7": encoded(["20", 0]), "20": node("Ask A Model", own={"x": 1})})
    assert said.values["negative_prompt"] is None
    assert said.notes == ("negative prompt not understood: it comes from Ask A Model (node 20)",)


@pytest.mark.parametrize(
    "kind", ["RegexReplace", "RegexExtract", "Text Random Line", "String Split", "easy promptLine"]
)
def test_a_text_of_which_a_node_makes_another_is_told(kind: str) -> None:
    said = words({"6": encoded(["20", 0]), "20": node(kind, text="a hat", index=1)})
    assert said == (
        "a hat",
        (f"the prompt's text is what goes into {kind} (node 20), which may have changed it",),
    )


def test_impact_pack_divides_at_break_and_comfyui_does_not() -> None:
    own = node(
        "ImpactWildcardEncode", wildcard_text="x", populated_text="a BREAK b", clip=CLIP, model=["4", 0]
    )
    assert words({"6": own}) == ("a BREAK b", ())
    assert words({"6": encoded("a BREAK b")}) == ("a break b", ())


def test_sizes_of_an_encoder_that_leaves_them_out_have_no_say() -> None:
    for more in ({"with_SDXL": False, "width": 1024, "height": 1024}, {"width": 0, "height": 0}):
        own = node(
            "smZ CLIPTextEncode", text="a", parser="comfy", text_g="", crop_w=0, crop_h=0, clip=CLIP, **more
        )
        assert "original_size" not in read({"6": own}).values


@pytest.mark.parametrize(
    "passing",
    [
        node("ConditioningSetProperties", cond_NEW=["6", 0], strength=1.0, set_cond_area="default"),
        node("PairConditioningSetProperties", positive_NEW=["6", 0], negative_NEW=["7", 0], strength=1.0),
    ],
)
def test_newer_nodes_of_conditionings_are_passed_and_told(passing: dict[str, Any]) -> None:
    said = read({"31": passing}, positive=["31", 0])
    assert said.values["prompt"] == "a fox"
    assert said.notes == (f"left out: {passing['class_type']} (node 31)",)


def test_words_that_another_node_may_have_changed_are_told() -> None:
    assert words({"6": encoded(["20", 0]), "20": node("Beautify", text="a hat")}) == (
        "a hat",
        ("the prompt's text is what goes into Beautify (node 20), which may have changed it",),
    )
    wild = node("CLIPTextEncodeDynamic Wildcard", text="a {red|blue} hat", clip=CLIP)
    assert words({"6": encoded(["20", 0]), "20": wild}) == (
        "a {red|blue} hat",
        (
            "the wildcards of CLIPTextEncodeDynamic Wildcard (node 20) stand in the prompt as they were written",
        ),
    )


# -- encoders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoder",
    [
        node("CLIPTextEncodeSDXL", text_g="a hat", text_l="a hat", clip=CLIP),
        node("CLIPTextEncodeSDXL", text_g="a hat", text_l="", clip=CLIP),
        node("CLIPTextEncodeSDXLRefiner", ascore=6, text="a hat", clip=CLIP),
        node("BNK_CLIPTextEncodeAdvanced", text="a hat", token_normalization="none", clip=CLIP),
        node(
            "smZ CLIPTextEncode",
            text="a hat",
            parser="comfy",
            text_g="",
            text_l="",
            with_SDXL=False,
            clip=CLIP,
        ),
        node(
            "ImpactWildcardEncode",
            wildcard_text="{a|b}",
            populated_text="a hat",
            clip=CLIP,
            model=["4", 0],
            seed=1,
        ),
        node(
            "Wildcard Encode //Inspire",
            wildcard_text="{a|b}",
            populated_text="a hat",
            clip=CLIP,
            model=["4", 0],
        ),
        node("Text to Conditioning", text="a hat", clip=CLIP),
        node("Power Prompt (rgthree)", prompt="a hat", opt_clip=CLIP, opt_model=["4", 0]),
        node("Prompt (LoraManager)", text="a hat", clip=CLIP),
        node("CLIPTextEncodeFlux", clip_l="a hat", t5xxl="a hat", guidance=3.5, clip=CLIP),
    ],
    ids=lambda encoder: encoder["class_type"],
)
def test_encoders(encoder: dict[str, Any]) -> None:
    assert words({"6": encoder}) == ("a hat", ())


def test_words_for_each_of_two_encoders_are_joined_and_told() -> None:
    own = {"width": 4096, "height": 4096, "crop_w": 0, "crop_h": 8, "target_width": 640, "target_height": 512}
    said = read({"6": node("CLIPTextEncodeSDXL", text_g="a fox", text_l="red", clip=CLIP, **own)})
    assert said.values["prompt"] == "a fox, red"
    assert said.notes == (
        "CLIPTextEncodeSDXL (node 6) gave each text encoder words of its own; here they are one prompt",
    )
    assert (said.values["original_size"], said.values["crop"]) == ((4096, 4096), (8, 0))
    assert "target_size" not in said.values


def test_trigger_words_stand_before_the_prompt() -> None:
    words_of = node(
        "TriggerWord Toggle (LoraManager)", toggle_trigger_words=[{"text": "foxy", "active": True}]
    )
    prompt = node("Prompt (LoraManager)", text="a hat", clip=CLIP, trigger_words1=["20", 0])
    assert words({"6": prompt, "20": words_of}) == ("foxy, a hat", ())
    rows = [{"name": "a", "strength": 1, "active": True}]
    loader = node("Lora Loader (LoraManager)", text="", loras=rows, model=["4", 0], clip=CLIP)
    joined = node("JoinStrings", string1=["10", 2], string2="a hat", delimiter=", ")
    both = {
        "6": node("CLIPTextEncode", text=["20", 0], clip=["10", 1]),
        "7": node("CLIPTextEncode", text="", clip=["10", 1]),
    }
    said = read({"10": loader, "20": joined, **both}, model=["10", 0])
    assert "a hat" in said.values["prompt"]
    assert said.notes == (
        "the trigger words that Lora Loader (LoraManager) (node 10) adds to the prompt are not in the picture",
    )


# -- conditionings ---------------------------------------------------------------------------------------


TWO = {"11": encoded("a hat")}


def test_combined_prompts_are_joined_by_and() -> None:
    both = node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["11", 0])
    assert words(TWO | {"10": both}, positive=["10", 0]) == ("a fox :0.5 AND a hat :0.5", ())
    third = node("ConditioningCombine", conditioning_1=["10", 0], conditioning_2=["7", 0])
    assert words(TWO | {"10": both, "12": third}, positive=["12", 0])[0] == (
        "a fox :0.3333 AND a hat :0.3333 AND blurry :0.3333"
    )
    said = read(TWO | {"10": both}, negative=["10", 0])
    assert said.values["negative_prompt"] == "a fox, a hat"
    assert said.notes == ("the negative prompt is joined of 2, which acted apart from each other",)


def test_areas_are_told_and_their_strengths_count() -> None:
    more = {
        "10": node("ConditioningCombine", conditioning_1=["12", 0], conditioning_2=["13", 0]),
        "12": node("ConditioningSetArea", conditioning=["6", 0], width=64, height=64, x=0, y=0, strength=3.0),
        "13": node(
            "ConditioningSetArea", conditioning=["11", 0], width=64, height=64, x=64, y=0, strength=1.0
        ),
    }
    assert words(TWO | more, positive=["10", 0]) == (
        "a fox :0.75 AND a hat :0.25",
        ("left out: ConditioningSetArea (node 12), ConditioningSetArea (node 13)",),
    )


def test_concatenated_prompts_have_break_between_them() -> None:
    both = node("ConditioningConcat", conditioning_to=["6", 0], conditioning_from=["11", 0])
    assert words(TWO | {"10": both}, positive=["10", 0]) == ("a fox BREAK a hat", ())


@pytest.mark.parametrize(("share", "right"), [(0.7, "a fox"), (0.3, "a hat")])
def test_of_averaged_prompts_the_stronger_one_is_taken(share: float, right: str) -> None:
    both = node(
        "ConditioningAverage",
        conditioning_to=["6", 0],
        conditioning_from=["11", 0],
        conditioning_to_strength=share,
    )
    assert words(TWO | {"10": both}, positive=["10", 0]) == (
        right,
        ("ConditioningAverage (node 10) mixed two prompts; the stronger one is taken",),
    )


def test_what_lies_on_the_way_is_told() -> None:
    control = node(
        "ControlNetApplyAdvanced",
        positive=["6", 0],
        negative=["7", 0],
        control_net=["20", 0],
        image=["21", 0],
        strength=1.0,
    )
    more = {
        "10": control,
        "20": node("ControlNetLoader", control_net_name="c"),
        "21": node("LoadImage", image="x.png"),
    }
    said = read(more, positive=["10", 0], negative=["10", 1])
    assert (said.values["prompt"], said.values["negative_prompt"]) == ("a fox", "blurry")
    assert (said.from_picture, said.notes) == (False, ("left out: ControlNetApplyAdvanced (node 10)",))
    said = read({"7": node("ConditioningZeroOut", conditioning=["6", 0])})
    assert (said.values["negative_prompt"], said.notes) == ("", ("left out: ConditioningZeroOut (node 7)",))


def test_an_empty_negative_prompt_is_one() -> None:
    assert read({"7": encoded("")}).values["negative_prompt"] == ""


# -- syntax ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["[a:b:0.5]", "[fox|cat]", "a [soft] light", "x AND y :2", "((a)) [b", "1 | 2", "a BREAK b"]
)
def test_what_has_no_meaning_there_has_none_here(text: str) -> None:
    found = plain_words(text)
    [piece] = pieces_of(found)
    assert isinstance(piece, str)
    parsed = parse(found)
    assert len(parsed.sections) == 1
    assert parsed.words.lower() == text.replace("((a))", "a").lower()
    assert {run.weight for run in parsed.sections[0]} <= {1, 1.1 * 1.1}


def test_weights_and_embeddings_are_shared() -> None:
    text = r"(red:1.2) \(x\) embedding:style, ((b))"
    assert plain_words(text) == text


def test_an_encoder_of_the_other_syntax_keeps_it() -> None:
    theirs = node("smZ CLIPTextEncode", text="[a:b:0.5]", parser="A1111", clip=CLIP)
    assert words({"6": theirs})[0] == "[a:b:0.5]"


def test_a_tag_has_the_models_strength_first_there() -> None:
    said = read({"6": encoded("a <lora:styles\\fox.safetensors:0.8:0.4> <lora:hat:0.5> <lora:x>")})
    assert said.values["prompt"] == "a <lora:fox:te=0.4:unet=0.8> <lora:hat:0.5> <lora:x>"
