"""Tensor-network diagrams as physicists draw them: a tensor is a shape, an index a leg, a sum a line between two."""

import math

import matplotlib.pyplot as plt
from matplotlib.patches import Circle, Polygon, RegularPolygon

from .figures import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILION
from .pictures import AS_IT_IS

# kind → colour, number of corners (none: a circle), size
KINDS = {
    "image": (ORANGE, None, 0.30), "kernel": (BLUE, None, 0.30), "core": (BLUE, 4, 0.36),
    "matrix": (SKY, None, 0.24), "isometry": (SKY, 3, 0.34), "vector": (GREEN, None, 0.24),
    "values": (VERMILION, "diamond", 0.26), "pattern": (GREEN, 4, 0.32), "copy": (BLACK, None, 0.07),
}


class Diagram:
    """A diagram on the axes `ax`, in units of one bond's length, x to the right and y up.

    The shapes are the same everywhere: a circle is a tensor (orange the image, blue the kernel, light blue a factor), a
    square a core, a triangle an isometry, a diamond a diagonal matrix, and a black dot a copy tensor: all its legs carry
    the same index.
    """

    def __init__(self, ax: plt.Axes, title: str = ""):
        self.ax = ax
        self._points: list[tuple[float, float]] = []
        ax.set_axis_off()
        ax.set_aspect("equal")
        ax.set_title(title)

    def tensor(self, x: float, y: float, label: str = "", kind: str = "matrix", turn: float = 0) -> tuple[float, float]:
        """A tensor at (x, y), `turn` in degrees; returns the place, for `bond` and `leg`. `kind`: one of `KINDS`."""
        color, corners, size = KINDS[kind]
        if corners is None:
            shape = Circle((x, y), size)
        elif corners == "diamond":
            shape = Polygon([(x - size, y), (x, y + size), (x + size, y), (x, y - size)])
        else:
            shape = RegularPolygon((x, y), corners, radius=size, orientation=math.radians(turn) + (math.pi / 4) * (corners == 4))
        shape.set(facecolor=color, edgecolor=BLACK, linewidth=0.8, zorder=3)
        if color != BLACK:
            shape.set(gid=AS_IT_IS)  # in the dark theme too: the label on it goes with its colour
        self.ax.add_patch(shape)
        self.ax.text(x, y, label, ha="center", va="center_baseline", fontsize=8, zorder=4, gid=AS_IT_IS,
                     color="white" if color in (BLUE, GREEN, VERMILION) else "black")
        self._reach((x - size, y - size), (x + size, y + size))
        return x, y

    def bond(self, a, b, label: str = "", bend: float = 0) -> None:
        """A line between two tensors: the sum over an index. `bend` draws an arc, its height in bonds' lengths."""
        (x0, y0), (x1, y1) = a, b
        middle = (x0 + x1) / 2 - bend * (y1 - y0), (y0 + y1) / 2 + bend * (x1 - x0)
        steps = [k / 24 for k in range(25)]
        control = 2 * middle[0] - (x0 + x1) / 2, 2 * middle[1] - (y0 + y1) / 2
        curve = [((1 - t) ** 2 * x0 + 2 * t * (1 - t) * control[0] + t ** 2 * x1,
                  (1 - t) ** 2 * y0 + 2 * t * (1 - t) * control[1] + t ** 2 * y1) for t in steps]
        self.ax.plot(*zip(*curve), color=BLACK, lw=1.2, zorder=1)
        length = math.hypot(x1 - x0, y1 - y0)
        side = 0.17 if bend >= 0 else -0.17
        place = middle[0] - side * (y1 - y0) / length, middle[1] + side * (x1 - x0) / length
        self.ax.text(*place, label, ha="center", va="center", fontsize=7.5, zorder=4)
        self._reach(*curve, *([(place[0], place[1] + math.copysign(0.15, bend))] if label and bend else []))

    def leg(self, a, dx: float, dy: float, label: str) -> None:
        """An open index that ends at (dx, dy) from the tensor, with its name at the end."""
        x, y = a[0] + dx, a[1] + dy
        self.ax.plot([a[0], x], [a[1], y], color=BLACK, lw=1.2, zorder=1)
        length = math.hypot(dx, dy)
        across, up = 0.1 * dx / length, 0.1 * dy / length
        horizontal = "center" if abs(dx) < 0.3 * length else ("left" if dx > 0 else "right")
        vertical = "center" if abs(dy) < 0.3 * length else ("bottom" if dy > 0 else "top")
        self.ax.text(x + across, y + up, label, ha=horizontal, va=vertical, fontsize=7.5, zorder=4)
        width = 0.17 * len(label.replace("$", ""))
        reach = {"center": width / 2, "left": width, "right": -width}[horizontal]
        self._reach((x, y), (x + across + reach, y + up + (0.25 if vertical == "bottom" else -0.25 if vertical == "top" else 0)))

    def divide(self, x: float, low: float, high: float) -> None:
        """A dashed line that cuts a tensor's legs into two groups."""
        self.ax.plot([x, x], [low, high], color=VERMILION, lw=1.2, ls="--", zorder=2)
        self._reach((x, low), (x, high))

    def _reach(self, *points) -> None:
        """The diagram holds these points too."""
        self._points += points

    @property
    def extent(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((left, right), (low, high)) of everything drawn."""
        xs, ys = zip(*self._points)
        return (min(xs) - 0.1, max(xs) + 0.1), (min(ys) - 0.1, max(ys) + 0.1)


def align(*diagrams: Diagram) -> None:
    """Show all diagrams at one scale, each in the middle of its axes."""
    width, height = (max(high - low for low, high in sides) for sides in zip(*(diagram.extent for diagram in diagrams)))
    for diagram in diagrams:
        (left, right), (low, high) = diagram.extent
        diagram.ax.set_xlim((left + right - width) / 2, (left + right + width) / 2)
        diagram.ax.set_ylim((low + high - height) / 2, (low + high + height) / 2)
