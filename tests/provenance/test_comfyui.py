"""Graphs of ComfyUI: what made the picture that was saved, and not what else stands in the graph."""

import json

import pytest

from provenance.generators import find, table
from utils.contracts import Field, Metadata

LOAD = {"class_type": "LoadImage", "inputs": {"image": "IMG_2041.jpg"}}
SAMPLER = {"class_type": "KSampler", "inputs": {"seed": 7, "steps": 20, "model": ["4", 0], "latent_image": ["5", 0]}}
MODEL = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}}
LATENT = {"class_type": "EmptyLatentImage", "inputs": {"width": 512}}


def node(kind: str, **inputs: object) -> dict[str, object]:
    return {"class_type": kind, "inputs": inputs}


def save(source: str) -> dict[str, object]:
    return node("SaveImage", images=[source, 0], filename_prefix="x")


def kinds(value: object, place: tuple[str, str] = ("png_text", "prompt"), prefix: str = "") -> list[tuple[str, str]]:
    text = value if isinstance(value, str) else json.dumps(value)
    return [(hit.kind, hit.generator) for hit in find(Metadata((Field(*place, prefix + text),)))]


TEXT_TO_IMAGE = {
    "3": SAMPLER,
    "4": MODEL,
    "5": LATENT,
    "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
    "9": save("8"),
}
SCALED = {"1": LOAD, "2": node("ImageScale", image=["1", 0], width=1024), "3": save("2")}


@pytest.mark.parametrize(
    "graph",
    [
        TEXT_TO_IMAGE,
        {"3": SAMPLER, "4": MODEL},  # a part of a graph
        {**TEXT_TO_IMAGE, "10": node("PreviewImage", images=["8", 0])},
        {"1": node("SamplerCustomAdvanced", guider=["2", 0], noise=["3", 0]), "9": save("1")},
        {"1": node("easy fullkSampler", pipe=["2", 0], steps=20), "9": save("1")},
        {"1": node("WanVideoSampler", model=["2", 0]), "9": node("VHS_VideoCombine", images=["1", 0])},
        {
            "1": LOAD,
            "2": node("VAEEncode", pixels=["1", 0]),
            "3": node("KSampler", latent_image=["2", 0]),
            "9": save("3"),
        },
    ],
)
def test_a_picture_that_a_sampler_made_is_generated(graph):
    assert kinds(graph) == [("generated", "ComfyUI")]


@pytest.mark.parametrize("name", ["GeminiImageNode", "KlingImageGenerationNode", *table().comfyui.hosted_examples])
def test_a_hosted_model_generates_from_a_prompt_and_edits_a_picture(name):
    assert kinds({"1": node(name, prompt="a cat", seed=1), "2": save("1")}) == [("generated", "ComfyUI")]
    edited = {"0": LOAD, "1": node(name, prompt="a cat", image=["0", 0]), "2": save("1")}
    assert kinds(edited) == [("edited_with_ai", "ComfyUI")]


def test_a_node_of_an_unknown_service_that_needs_only_a_prompt_generates():
    assert kinds({"1": node("PaintBotImage", prompt="a cat"), "2": save("1")}) == [("generated", "ComfyUI")]
    assert kinds({"1": node("DrawTextImage", text="a cat"), "2": save("1")}) == [("edited", "ComfyUI")]


@pytest.mark.parametrize(
    "graph",
    [
        SCALED,
        {**SCALED, "7": SAMPLER, "4": MODEL},  # not connected to what was saved
        {**SCALED, "7": SAMPLER, "8": node("PreviewImage", images=["7", 0])},  # only shown
        {**SCALED, "2": node("ImageUpscaleWithModel", image=["1", 0])},
        {"1": LOAD, "2": node("ColorSampler", image=["1", 0]), "3": save("2")},  # only named alike
        {"1": LOAD, "2": node("KSamplerSelect", sampler_name="euler", image=["1", 0]), "3": save("2")},
        {"1": node("LoadImage", image="KSampler.png"), "3": save("1")},
        {"1": LOAD, "2": node("RecraftRemoveBackgroundNode", image=["1", 0]), "3": save("2")},
        {"1": LOAD, "2": node("StabilityUpscaleFastNode", image=["1", 0]), "3": save("2")},
    ],
)
def test_a_photograph_that_was_only_worked_on_is_not_generated(graph):
    assert kinds(graph) == [("edited", "ComfyUI")]


def canvas(mode: int = 0, linked: bool = True, **more: object) -> dict[str, object]:
    """A drawn graph in which a sampler stands between what is loaded and what is saved."""
    source = 7 if linked else 1
    return {
        "last_node_id": 9,
        "links": [[1, 1, 0, 7, 0, "IMAGE"], [2, source, 0, 3, 0, "IMAGE"]],
        "nodes": [
            {"id": 1, "type": "LoadImage", "mode": 0},
            {"id": 7, "type": "KSampler", "mode": mode, "inputs": [{"name": "latent_image", "link": 1}]},
            {"id": 3, "type": "SaveImage", "mode": 0, "inputs": [{"name": "images", "link": 2}]},
        ],
        **more,
    }


def test_on_a_canvas_muted_bypassed_and_loose_nodes_do_not_count():
    place = ("png_text", "workflow")
    assert kinds(canvas(), place) == [("generated", "ComfyUI")]
    for graph in (canvas(mode=2), canvas(mode=4), canvas(linked=False)):
        assert kinds(graph, place) == [("edited", "ComfyUI")]
    newer = canvas(links=[{"id": 1, "origin_id": 1}, {"id": 2, "origin_id": 7}])
    assert kinds(newer, place) == [("generated", "ComfyUI")]


def test_the_graph_that_ran_counts_before_the_canvas_wherever_they_stand():
    fields = Field("png_text", "workflow", json.dumps(canvas())), Field("png_text", "prompt", json.dumps(SCALED))
    assert [hit.kind for hit in find(Metadata(fields))] == ["edited"]


def test_a_sampler_inside_of_a_subgraph_is_found():
    part = {"id": "abc", "nodes": [{"id": 1, "type": "KSampler", "mode": 0}], "links": []}
    graph = canvas(definitions={"subgraphs": [part]})
    graph["nodes"][1]["type"] = "abc"
    assert kinds(graph, ("png_text", "workflow")) == [("generated", "ComfyUI")]


@pytest.mark.parametrize("prefix", ["", "prompt:", "Prompt: ", "workflow: "])
@pytest.mark.parametrize(
    "place",
    [("exif", "Make"), ("exif", "ImageDescription"), ("exif", "UserComment"), ("exif", "0x9999"), ("comment", "COM"),
     ("comment", "GIF"), ("png_text", "Prompt")],
)  # fmt: skip
def test_a_graph_is_found_in_every_place_that_savers_use(place, prefix):
    assert kinds(TEXT_TO_IMAGE, place, prefix) == [("generated", "ComfyUI")]


def test_a_wrapped_graph_is_found():
    wrapped = {"prompt": json.dumps(TEXT_TO_IMAGE), "workflow": canvas(mode=4)}
    assert kinds(wrapped, ("exif", "UserComment")) == [("generated", "ComfyUI")]


@pytest.mark.parametrize(
    "text", ['{"class_type": ', '{"nodes": []}', "[" * 50_000 + '"class_type"', '{"class_type": 1}']
)
def test_what_is_no_graph_says_nothing(text):
    assert kinds(text) == []
