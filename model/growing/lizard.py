"""The picture that the shipped Growing NCA grows into: a lizard, seen from above."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Side of the picture in pixels, and how many points across each pixel is averaged over.
SIDE, FINE = 24, 8

Colour = tuple[float, float, float]
Point = tuple[float, float]

GREEN: Colour = (0.20, 0.62, 0.25)
DARK: Colour = (0.10, 0.42, 0.22)
YELLOW: Colour = (0.98, 0.84, 0.25)
BLACK: Colour = (0.07, 0.07, 0.09)
WHITE: Colour = (1.0, 1.0, 1.0)

#: Where the backbone runs, from the snout to the tip of the tail, and its radius there.
SPINE: Sequence[tuple[float, float, float]] = (
    (5.6, 1.9, 1.3),
    (6.6, 4.2, 3.0),
    (7.9, 7.0, 1.8),
    (9.2, 9.2, 2.6),
    (11.0, 12.0, 3.0),
    (12.4, 14.8, 2.6),
    (13.0, 17.2, 1.9),
    (13.8, 19.5, 1.6),
    (15.8, 21.4, 1.4),
    (18.6, 21.7, 1.3),
    (20.9, 20.3, 1.2),
    (21.6, 17.8, 1.1),
    (20.2, 16.0, 1.0),
    (18.2, 16.8, 0.9),
)

#: Shoulder or hip, elbow or knee, foot.
LEGS: Sequence[tuple[Point, Point, Point]] = (
    ((8.4, 8.8), (4.4, 10.6), (2.2, 8.6)),
    ((9.6, 8.8), (13.6, 7.2), (14.6, 4.0)),
    ((12.0, 14.8), (7.6, 15.6), (6.0, 19.2)),
    ((12.6, 14.0), (17.0, 12.6), (18.6, 9.4)),
)


def lizard() -> NDArray[np.float32]:
    """Draw the lizard.

    Returns
    -------
    (4, 24, 24) red, green, blue, each times alpha, and alpha, in [0, 1].
    """
    points = (np.arange(SIDE * FINE) + 0.5) / FINE
    y, x = np.meshgrid(points, points, indexing="ij")
    canvas = np.zeros((4, SIDE * FINE, SIDE * FINE))

    def paint(inside: NDArray[np.bool_], colour: Colour) -> None:
        canvas[:, inside] = np.array([*colour, 1.0])[:, None]

    def capsule(a: Point, b: Point, start: float, end: float) -> NDArray[np.bool_]:
        """Points within a radius of the line from a to b, which changes from start to end."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        along = ((x - a[0]) * dx + (y - a[1]) * dy) / (dx**2 + dy**2)
        along = np.clip(along, 0, 1)
        away = np.hypot(x - a[0] - along * dx, y - a[1] - along * dy)
        return np.asarray(away <= start + along * (end - start))

    def ellipse(centre: Point, radii: Point) -> NDArray[np.bool_]:
        return np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1]) <= 1

    for joints in LEGS:
        for a, b in itertools.pairwise(joints):
            paint(capsule(a, b, 1.1, 1.0), DARK)
        foot = joints[-1]
        for dx, dy in ((-1.2, 0.0), (0.0, -1.2), (1.2, 0.0), (0.0, 1.2)):
            paint(capsule(foot, (foot[0] + dx, foot[1] + dy), 0.7, 0.5), DARK)
    for (ax, ay, start), (bx, by, end) in itertools.pairwise(SPINE):
        paint(capsule((ax, ay), (bx, by), start, end), GREEN)
    for (ax, ay, start), (bx, by, end) in itertools.pairwise(SPINE):
        paint(capsule((ax, ay), (bx, by), 0.45 * start, 0.45 * end), YELLOW)
    for px, py, r in SPINE[8:13:2]:
        paint(ellipse((px, py), (0.7 * r, 0.7 * r)), YELLOW)
    for px, py in ((4.5, 5.5), (8.5, 4.5)):
        paint(ellipse((px, py), (1.5, 1.5)), WHITE)
        paint(ellipse((px, py), (0.9, 0.9)), BLACK)
    shape = 4, SIDE, FINE, SIDE, FINE
    picture: NDArray[np.float32] = canvas.reshape(shape).mean((2, 4)).astype(np.float32)
    return picture
