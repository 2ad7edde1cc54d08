"""A transformer block with the parts that a method inserts or trains, as SVG."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape

GREY, TEAL, AMBER, INK = "#e4e7ea", "#00897b", "#ffb300", "#37474f"
BAR = 6
"""Thickness of an inserted module."""
READS = "reads the input of"
"""The place of what only passes an input on to a module further up."""


@dataclasses.dataclass(frozen=True)
class Inserted:
    """A module that a method inserted.

    Attributes:
        role: of the site.
        place: where, as `methods.PLACES` says, or `READS`.
    """

    role: str
    place: str


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of the picture."""

    x: float
    y: float
    w: float
    h: float

    def svg(self, fill: str, stroke: str = INK, dashed: bool = False) -> str:
        """As an element."""
        dash = ' stroke-dasharray="3 2"' if dashed else ""
        return (
            f'<rect x="{self.x:g}" y="{self.y:g}" width="{self.w:g}" height="{self.h:g}" rx="3" '
            f'fill="{fill}" stroke="{stroke}"{dash}/>'
        )

    def label(self, text: str) -> str:
        """Its text, in the middle."""
        x, y = self.x + self.w / 2, self.y + self.h / 2 + 3
        return f'<text x="{x:g}" y="{y:g}">{text}</text>'


BLOCK, MHSA, FFN = Box(66, 10, 352, 134), Box(116, 30, 118, 96), Box(308, 48, 86, 60)
PARTS = {
    "tokens": (Box(8, 56, 44, 44), "embed"),
    "norm.mhsa": (Box(76, 63, 30, 30), "norm"),
    "attn.q": (Box(132, 38, 32, 18), "q"),
    "attn.k": (Box(132, 68, 32, 18), "k"),
    "attn.v": (Box(132, 98, 32, 18), "v"),
    "attn.o": (Box(192, 68, 30, 18), "o"),
    "norm.ffn": (Box(266, 63, 30, 30), "norm"),
    "ffn.up": (Box(318, 69, 28, 18), "up"),
    "ffn.down": (Box(356, 69, 28, 18), "down"),
    "norm": (Box(434, 63, 34, 30), "norm"),
}
FRAMES = {"block": BLOCK, "mhsa": MHSA, "ffn": FFN}
LINE = 78
"""Where tokens flow."""


def draw(title: str, inserted: Sequence[Inserted], unfrozen: Mapping[str, str]) -> str:
    """The picture.

    Args:
        title: for readers who do not see it.
        inserted: what is inserted, and where.
        unfrozen: the roles whose stock tensors train.
    """
    replaced = {item.role for item in inserted if item.place == "in place of"}
    body = [Box(0, 0, 476, 156).svg("#ffffff", "#ffffff"), _flow()]
    body += [FRAMES[role].svg("none", INK, dashed=role == "block") for role in FRAMES]
    for role, (box, text) in PARTS.items():
        fill = TEAL if role in replaced else AMBER if role in unfrozen else GREY
        body += [box.svg(fill), box.label(text)]
    body += [bar.svg(TEAL, TEAL) for item in inserted for bar in _bars(item)]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 476 156" width="476" height="156" '
        'font-family="sans-serif" font-size="9" text-anchor="middle" role="img">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>\n"
    )


def _flow() -> str:
    """The tokens' way through the block, with its two residual connections."""
    pluses = "".join(
        f'<circle cx="{x}" cy="{LINE}" r="6" fill="#fff" stroke="{INK}"/>'
        f'<text x="{x}" y="{LINE + 3}">+</text>'
        for x in (250, 406)
    )
    paths = f"M52 {LINE} H434 M70 {LINE} V20 H250 V72 M257 {LINE} V38 H406 V72"
    paths += f" M122 {LINE} V47 H178 V{LINE} M122 {LINE} V107 H178 V{LINE}"  # queries, values
    return f'<path d="{paths}" fill="none" stroke="{INK}"/>{pluses}'


def _bars(item: Inserted) -> list[Box]:
    """The inserted module beside its site's box."""
    if item.place == "keys and values of":
        return [_beside(PARTS[role][0], "before") for role in ("attn.k", "attn.v")]
    box = FRAMES.get(item.role) or PARTS[item.role][0]
    places = {"before and beside": ["before", "beside"], "in place of": []}
    return [_beside(box, place) for place in places.get(item.place, [item.place])]


def _beside(box: Box, place: str) -> Box:
    if place == "beside":
        return Box(box.x, box.y + box.h + 3, box.w, BAR)
    if place == READS:
        return Box(box.x - 2, box.y, 2, box.h)
    x = box.x - BAR - 2 if place == "before" else box.x + box.w + 2
    return Box(x, box.y, BAR, box.h)
