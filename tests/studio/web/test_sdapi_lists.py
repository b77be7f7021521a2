"""What A1111's front ends are told of what there is."""

from __future__ import annotations

from studio.web.sdapi import lists


def test_what_listed_loras_say_of_themselves_is_short() -> None:
    said = {"ss_tag_frequency": "x" * 1_000_000, "y" * 40_000: "long name", "small": "ü"}
    said |= {f"text {n}": "z" * 2000 for n in range(100)} | {"last": "1"}
    short = lists.shortened(said)
    assert short["ss_tag_frequency"] == "x" * 1999 + "…"
    assert (short["small"], short["last"]) == ("ü", "1")
    assert max(map(len, short.values())) == 2000
    assert sum(len(name) + len(value) for name, value in short.items()) <= 32_000
    assert lists.shortened({"ss_network_dim": "8"}) == {"ss_network_dim": "8"}
