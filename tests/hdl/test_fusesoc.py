import yaml

from scotopia.hdl.fusesoc import fusesoc_core


def test_core_names_its_sources_and_top() -> None:
    text = fusesoc_core(["retina.v", "pixel_row.v"], "an array")
    assert text.startswith("CAPI=2:\n")
    core = yaml.safe_load(text.split("\n", 1)[1])
    assert core["name"].startswith("scotopia:array:retina:")
    assert core["description"] == "an array"
    assert core["filesets"]["rtl"]["files"] == ["retina.v", "pixel_row.v"]
    assert core["targets"]["default"] == {"filesets": ["rtl"], "toplevel": "retina"}
    assert core["targets"]["lint"]["toplevel"] == "retina"
