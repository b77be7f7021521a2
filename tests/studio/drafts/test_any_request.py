"""Whatever is given as a request, on whichever road: it becomes a draft that can be kept, or a short StudioError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from composers.plan import Use
from composers.registry import build, parse
from pipelines.request import Request
from studio.drafts.draft import Draft, counted
from studio.drafts.entries import plain_draft, plain_request, read_draft, read_requests
from studio.drafts.fields import FIELDS
from studio.drafts.flags import parse_lora

from ...fuzzing import cases
from ...odd_values import anything, changed_texts, changed_values, json_of, one_of, only_refused, plain, texts

ENTRY = {
    "prompt": "a fox <lora:hat:0.5>",
    "negative_prompt": "",
    "composer": {"method": "switch", "interval": 3},
    "seed": 7,
    "adapters": [
        {
            "adapter": "fox",
            "weight": 0.8,
            "text_weight": 0.5,
            "blocks": {"mid_block": 1},
            "pinned": False,
            "schedule": [[0.0, 1.0], [3, 0.2]],
            "band": "high",
        },
        "owl",
    ],
    "steps": 4,
    "guidance_scale": 3.5,
    "width": 64,
    "height": 64,
    "scheduler": "Euler",
    "strength": 0.5,
    "clip_skip": 1,
    "text_mode": "first",
    "crop": [0, 0],
    "original_size": [64, 64],
    "init_image": "~/a.png",
    "mask": "data:image/png;base64,AAAA",
    "mask_content": "fill",
    "reuse": 2,
    "cut": "early",
}
entries = st.one_of(
    changed_values(ENTRY, anything),
    st.dictionaries(one_of(list(ENTRY)), anything, max_size=3),
    anything,
)


@cases(ci=100, entry=entries)
def test_an_entry_becomes_a_draft_or_is_refused(entry: Any) -> None:
    with only_refused():
        draft = read_draft(entry, "it", Path("/somewhere"))
        kept = json.dumps(plain_draft(draft))
        assert read_draft(json.loads(kept), "it").wanted == draft.wanted
        for one in counted(draft, 2, draft.values.get("seed", 0)):
            request = one.build(lambda wanted: wanted.use(wanted.adapter, None), lambda name, source: None)  # type: ignore[arg-type, return-value]
            json.dumps(plain_request(request), allow_nan=False).encode()


@cases(
    ci=100, text=st.one_of(changed_values([ENTRY]).map(json_of), changed_texts([json.dumps([ENTRY])]), texts)
)
def test_a_requests_file_is_read_or_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "requests.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with only_refused():
        assert read_requests(file)


@cases(ci=100, values=st.dictionaries(one_of([field.name for field in FIELDS]), anything, max_size=3))
def test_a_request_made_in_python_is_complete_or_refused(values: dict[str, Any]) -> None:
    with only_refused():
        Request(**{"prompt": "", **values})


@cases(ci=100, adapter=anything, weight=anything, blocks=anything, text=anything)
def test_a_use_made_in_python_is_sound_or_refused(adapter: Any, weight: Any, blocks: Any, text: Any) -> None:
    with only_refused():
        Request("", adapters=[Use(adapter, weight, text, blocks)])


@cases(
    ci=100,
    text=st.one_of(
        texts, changed_texts(["switch:interval=3", "blora:content=a\\,b,style=c", "fox=0.8:0.5", "1,2"])
    ),
)
def test_a_flags_text_is_read_or_refused(text: str) -> None:
    readers = [parse, parse_lora, *(field.read for field in FIELDS)]
    for read in readers:
        with only_refused():
            read(text)


@cases(
    ci=100,
    name=st.one_of(one_of(["switch", "merge", "blora", "cmlora", "composite"]), texts),
    settings=st.dictionaries(
        st.one_of(one_of(["interval", "convention", "content", "alpha_mode", "refresh"]), texts),
        plain,
        max_size=3,
    ),
)
def test_a_method_is_made_or_refused(name: str, settings: dict[str, Any]) -> None:
    with only_refused():
        draft = Draft({"composer": build(name, settings)})
        draft.build(lambda wanted: wanted.use(wanted.adapter, None))
        json.dumps(plain_draft(draft))
