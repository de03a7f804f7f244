"""How does a figure become a part of the page?

As SVG in the page's own text: letters stay letters, no fonts and no other files are needed, and colours are CSS
variables, so that the page can be dark. Eight hues at most, those of Okabe and Ito, which people of every colour vision
tell apart; systems differ by their markers as well. Same numbers, same bytes: nothing in the SVG depends on the day.
"""

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from msgspec import Struct

from launch.evaluation.report import words

INK, MUTED, GRID = "#222222", "#666666", "#d8d8d8"
SYSTEM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
STAGE_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#b5651d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

WIDTH = 900
"""Pixels of CSS; one unit of the drawing is one pixel."""
_UNITS_PER_INCH = 72
_LOG_FROM = 20.0
"""A range of more than so many times is drawn on a logarithmic axis."""

_STYLE: dict[Any, Any] = {  # Any: their type is one string for each of 300 names
    "svg.fonttype": "none",
    "svg.hashsalt": "kvrelay",
    "text.parse_math": False,  # a `$` in a name is a dollar
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; the widest of what a browser will take
    "font.size": 12,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "hatch.linewidth": 0.8,
    "hatch.color": MUTED,
}


class Plot(Struct, frozen=True, kw_only=True):
    """A figure as the page shows it."""

    name: str  # anchor
    title: str
    svg: str
    caption: str  # what is shown, of how many, and what the interval means
    note: str = ""  # how to read it, for those who see one for the first time


@contextmanager
def styled() -> Iterator[None]:
    """Figures have to be made and turned into SVG in here."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has it
        yield


def new(height: int) -> Figure:
    """An empty figure, `height` pixels high; without pyplot, which keeps figures in a global list."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.05)
    figure = Figure(figsize=(WIDTH / _UNITS_PER_INCH, height / _UNITS_PER_INCH), layout=layout)
    FigureCanvasSVG(figure)
    return figure


def plot(figure: Figure, *, name: str, title: str, caption: str, note: str = "") -> Plot:
    """A finished figure as the page shows it; call it inside `styled`."""
    return Plot(name=name, title=title, svg=inline(figure, name, title), caption=caption, note=note)


def inline(figure: Figure, name: str, title: str) -> str:
    """SVG without a namespace, as HTML has it, whose ids begin with `name`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    # Some of matplotlib's ids differ from one run of the program to the next.
    found = [element.get("id", "") for element in root.iter() if element.get("id")]
    ids = {old: f"{name}-{number}" for number, old in enumerate(found)}
    for element in root.iter():
        element.tag = _local(element.tag)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(_local(key), _adapted(_local(key), value, ids))
    for defs in list(root.iter("defs")):
        for sheet in defs.findall("style"):  # it would hold for the whole page
            defs.remove(sheet)
    size = dict(zip(("width", "height"), root.get("viewBox", "").split()[2:], strict=False))
    root.attrib.update(size)
    root.set("role", "img")
    root.set("aria-label", words.printable(title))
    return ElementTree.tostring(root, encoding="unicode")


def colour(position: int) -> str:
    return SYSTEM_COLOURS[position % len(SYSTEM_COLOURS)]


def marker(position: int) -> str:
    return MARKERS[position % len(MARKERS)]


def key_of(names: Sequence[str], *, line: bool = True) -> list[Line2D]:
    """Legend entries of systems, the same in every figure."""
    return [
        Line2D([], [], color=colour(at), marker=marker(at), linestyle="-" if line else "", label=words.short(name))
        for at, name in enumerate(names)
    ]


def legend(figure: Figure, handles: Sequence[Line2D], columns: int = 4) -> None:
    """Above the panels; as many columns as names of this length leave room for."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    room = max(int(WIDTH / (8.0 * longest + 60.0)), 1)
    figure.legend(handles=list(handles), loc="outside upper left", ncols=min(columns, room, len(handles)))


def is_wide(values: Iterable[float]) -> bool:
    """Whether the values ask for a logarithmic axis."""
    positive = [value for value in values if value > 0.0]
    return bool(positive) and max(positive) > _LOG_FROM * min(positive)


def scale_axis(axes: Axes, which: str, values: Iterable[float]) -> bool:
    """From 0, or logarithmic if the values range far; returns whether it is the latter."""
    positive = [value for value in values if value > 0.0]
    axis = axes.xaxis if which == "x" else axes.yaxis
    limit = axes.set_xlim if which == "x" else axes.set_ylim
    wide = is_wide(positive)
    if wide:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        low, high = min(positive) / 1.2, max(positive) * 1.2
        limit(low, high)
        if high / low < 300.0:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
    else:
        limit(0.0, 1.06 * max(positive, default=1.0))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    return wide


def unit(values: Iterable[float]) -> tuple[float, str]:
    """What to multiply seconds with, and what they are then called."""
    return (1000.0, "ms") if max(values, default=0.0) < 2.0 else (1.0, "s")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _adapted(key: str, value: str, ids: Mapping[str, str]) -> str:
    if key == "id":
        return ids[value]
    if key == "href":
        return f"#{ids[value.removeprefix('#')]}"
    if key not in {"style", "clip-path", "fill", "stroke"}:
        return value
    value = re.sub(r"font-family:[^;]*;?", "", value)
    value = re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{ids[match[1]]})", value)
    return re.sub(r"(?<!\()#([0-9a-f]{6})\b", r"var(--c\1, #\1)", value)
