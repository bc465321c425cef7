"""What a ComfyUI graph says of the image that carries it: walked from the node that saved, so only what ran counts.

Reads the graph that ran ("prompt": node -> class_type, inputs) and the one on the canvas ("workflow": nodes and links),
which is asked only when the first is missing. Names of nodes are rows of signatures.toml. Knows no container.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel

from utils.contracts import ClaimKind, Field, Json

# A graph may stand in any text, behind a name: 'prompt:{', 'Workflow: {'.
_START: Final = re.compile(r"\s*(?:[A-Za-z_]{1,20}\s?:\s?)?(?=\{)")
_SIGNS: Final = ('"class_type"', '"nodes"')
_SAVES: Final = re.compile(r"(?i)save|export|VideoCombine|output")
_SHOWS: Final = re.compile(r"(?i)preview|show")
_LOADS: Final = re.compile(r"(?i)^(?:VHS_)?load_?(?:image|video)|(?:image|video)_?load(?:er)?\b|^LoadImage")
_PROMPTS: Final = ("prompt", "positive", "positive_prompt", "text_prompt", "prompt_text")
_MUTED, _BYPASSED = 2, 4  # modes of a node on the canvas
_MAX_NODES: Final = 20_000


class Names(BaseModel):
    """What tells nodes apart by their class: a part of signatures.toml, which explains each."""

    samplers: re.Pattern[str]
    other_samplers: re.Pattern[str]
    sampler_inputs: tuple[str, ...]
    hosted: re.Pattern[str]
    hosted_examples: tuple[str, ...]
    retouchers: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Node:
    kind: str
    inputs: Mapping[str, Json]
    sources: tuple[str, ...]  # the nodes that it takes something from


Graph = Mapping[str, _Node]


def find(fields: Iterable[Field], names: Names) -> tuple[Field, ClaimKind] | None:
    """The field with the graph that made the image, and what the graph did; None when there is no graph."""
    canvas = None
    for field in fields:
        if field.source in ("iptc", "app", "trailer") or not any(sign in field.value for sign in _SIGNS):
            continue
        for found, ran in _graphs(_parsed(field.value)):
            if ran:
                return field, _judge(found, names)
            canvas = canvas or (field, found)
    return (canvas[0], _judge(canvas[1], names)) if canvas else None


def _parsed(text: str) -> Json:
    match = _START.match(text)
    try:
        return json.JSONDecoder().raw_decode(text, match.end())[0] if match else None
    except (ValueError, RecursionError):
        return None


def _graphs(value: Json, depth: int = 0) -> Iterator[tuple[Graph, bool]]:
    """Every graph in a JSON value, and whether it is the one that ran; savers wrap them, as JSON or as text."""
    if isinstance(value, str) and any(sign in value for sign in _SIGNS):
        value = _parsed(value)
    if not isinstance(value, dict) or depth > 3:
        return
    nodes = [(str(key), node) for key, node in value.items() if isinstance(node, dict) and "class_type" in node]
    if any(isinstance(node.get("inputs"), dict) for _, node in nodes):
        yield {key: _ran(node) for key, node in nodes[:_MAX_NODES]}, True
    elif isinstance(value.get("nodes"), list) and _is_canvas(value):
        yield _drawn(value), False
    else:
        for key in ("prompt", "workflow", "extra_pnginfo", "extraMetadata", "comfyui", "extra_data"):
            yield from _graphs(value.get(key), depth + 1)


def _ran(node: Mapping[str, Json]) -> _Node:
    inputs = node.get("inputs")
    inputs = inputs if isinstance(inputs, dict) else {}
    links = (value[0] for value in inputs.values() if isinstance(value, list) and len(value) == 2)
    return _Node(str(node["class_type"]), inputs, tuple(str(link) for link in links if isinstance(link, str | int)))


def _is_canvas(value: Mapping[str, Json]) -> bool:
    return "last_node_id" in value or "last_link_id" in value or ("links" in value and "version" in value)


def _drawn(canvas: Mapping[str, Json], within: str = "", depth: int = 0) -> dict[str, _Node]:
    """The nodes of a canvas that are switched on; a subgraph's own nodes hang on the node that stands for it."""
    parts = {str(part.get("id")): part for part in _dicts(_dict(canvas.get("definitions")).get("subgraphs"))}
    links = dict(_links(canvas.get("links")))
    drawn: dict[str, _Node] = {}
    for node in _dicts(canvas.get("nodes"))[:_MAX_NODES]:
        mode, kind = node.get("mode"), str(node.get("type"))
        if mode == _MUTED:
            continue
        number = within + str(node.get("id"))
        sources = [
            links[str(each.get("link"))] for each in _dicts(node.get("inputs")) if str(each.get("link")) in links
        ]
        found = tuple(within + source for source in sources)
        if kind in parts and depth < 3 and mode != _BYPASSED:
            inner = _drawn({**parts[kind], "definitions": canvas.get("definitions")}, number + ":", depth + 1)
            drawn |= inner
            found = (*found, *inner)
        named = {str(each.get("name")): None for each in _dicts(node.get("inputs"))}
        drawn[number] = _Node("" if mode == _BYPASSED else kind, named, found)
    return drawn


def _links(links: Json) -> Iterator[tuple[str, str]]:
    """Number of each link and of the node it comes from: lists in the older form, objects in the newer."""
    for link in links if isinstance(links, list) else ():
        if isinstance(link, list) and len(link) >= 5:
            yield str(link[0]), str(link[1])
        elif isinstance(link, dict):
            yield str(link.get("id")), str(link.get("origin_id"))


def _dicts(value: Json) -> list[dict[str, Json]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _dict(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _judge(graph: Graph, names: Names) -> ClaimKind:
    """What made the picture: a sampler, a hosted model without or with a picture to start from, or neither."""
    made = [graph[number] for number in _ancestry(graph, _ends(graph))]
    if any(_is_sampler(node, names) for node in made):
        return "generated"
    hosted = [node for node in made if _is_hosted(node, names)]
    if hosted:
        return "edited_with_ai" if any(_LOADS.search(node.kind) for node in made) else "generated"
    return "edited_with_ai" if any(names.retouchers.search(node.kind) for node in made) else "edited"


def _ends(graph: Graph) -> list[str]:
    """The nodes that saved; else those that only showed; else, of a part of a graph, those that nobody takes from."""
    used = {source for node in graph.values() for source in node.sources}
    for pattern in (_SAVES, _SHOWS):
        if ends := [number for number, node in graph.items() if number not in used and pattern.search(node.kind)]:
            return ends
    return [number for number in graph if number not in used] or list(graph)


def _ancestry(graph: Graph, ends: Iterable[str]) -> set[str]:
    pending, seen = [end for end in ends if end in graph], set[str]()
    while pending:
        number = pending.pop()
        if number not in seen:
            seen.add(number)
            pending.extend(source for source in graph[number].sources if source in graph)
    return seen


def _is_sampler(node: _Node, names: Names) -> bool:
    """A node that denoises; of a node that is only called a sampler, its inputs tell."""
    if names.samplers.search(node.kind):
        return True
    return bool(names.other_samplers.search(node.kind)) and any(name in node.inputs for name in names.sampler_inputs)


def _is_hosted(node: _Node, names: Names) -> bool:
    """A node of a known service that makes pictures, or one that makes a picture from nothing but a prompt."""
    if names.hosted.search(node.kind):
        return True
    has_prompt = any(node.inputs.get(name) for name in _PROMPTS)
    return has_prompt and not node.sources and bool(re.search(r"(?i)image|t2i|txt2img|imagine", node.kind))
