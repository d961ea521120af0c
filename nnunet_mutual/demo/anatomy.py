"""An upper abdomen as a set of shapes: what is where, and how it differs from patient to patient.

Coordinates in mm as in :mod:`nnunet_mutual.demo.solids`; the origin lies in front of the first lumbar vertebra. Values
are Hounsfield units, each tissue with its value without contrast medium and its gain in the portal-venous phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_mutual.demo.solids import Array, Canvas, Space, blend, column, ellipsoid, grid, rod, smooth_field, without

SHAPE = (24, 40, 56)
SPACING = (8.0, 5.25, 5.25)
LABELS = {"liver": 1, "spleen": 2, "right_kidney": 3, "left_kidney": 4, "aorta": 5, "spine": 6}

AIR = -1000.0
LUNG = -830.0
FAT = -105.0
# tissue: (without contrast medium, gain in the portal-venous phase)
TISSUES: Mapping[str, tuple[float, float]] = {
    "muscle": (52, 10),
    "liver": (58, 52),
    "liver vessels": (42, 115),
    "spleen": (48, 72),
    "renal cortex": (33, 150),
    "renal medulla": (30, 105),
    "aorta": (42, 118),
    "vena cava": (42, 85),
    "cancellous bone": (165, 12),
    "cortical bone": (420, 0),
    "disc": (85, 5),
    "spinal canal": (25, 5),
    "gallbladder": (8, 0),
    "stomach": (22, 6),
    "bowel": (32, 22),
    "pancreas": (40, 50),
}


@dataclass(frozen=True)
class Body:
    """The parts of a patient that others are placed by.

    Attributes:
        space: coordinates after the patient's own smooth deformation, so that all shapes bend together.
        cavity: inside of the abdominal wall.
        hu: Hounsfield units of each tissue in this patient.
    """

    space: Space
    cavity: Array
    hu: Mapping[str, float]


def draw_abdomen(rng: np.random.Generator, enhancement: float) -> tuple[Array, Array]:
    """Draws one patient.

    Args:
        rng: source of all variation.
        enhancement: contrast medium, 1 = a good portal-venous phase, 0 = none.

    Returns:
        Hounsfield units (Z, Y, X) float32 without noise, and the label map (Z, Y, X) uint8 of :data:`LABELS`.
    """
    space = _deformed(rng)
    hu = {
        name: native + enhancement * gain + rng.normal(0, 2 + 0.03 * gain) for name, (native, gain) in TISSUES.items()
    }
    hu["liver"] -= max(0.0, rng.normal(-5, 12))  # some livers are fatty
    canvas = Canvas(space, AIR, edge=SPACING[1])
    body = Body(space, _trunk(canvas, space, rng, hu), hu)
    _bowel(canvas, body, rng)
    _stomach_and_spleen(canvas, body, rng)
    _liver(canvas, body, rng)
    _kidneys(canvas, body, rng)
    _spine_and_vessels(canvas, body, rng)
    return canvas.image, canvas.labels


def _deformed(rng: np.random.Generator) -> Space:
    """Returns coordinates of a patient of another size, slightly rotated, smoothly deformed."""
    space = grid(SHAPE, SPACING)
    size = rng.normal(1, 0.035, 3)
    sigma = [38 / s for s in SPACING]
    x, y, z = (
        axis / scale + 3.5 * smooth_field(rng, SHAPE, sigma)
        for axis, scale in zip((space.x, space.y, space.z), size, strict=True)
    )
    angle = rng.normal(0, 0.035)
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return Space(x + rng.normal(0, 4), y + rng.normal(0, 3), z + rng.normal(0, 5))


def _trunk(canvas: Canvas, space: Space, rng: np.random.Generator, hu: Mapping[str, float]) -> Array:
    """Paints skin fat, muscle wall, ribs and the fat of the cavity; returns the cavity."""
    fat = rng.uniform(9, 18)
    trunk = column(space, 0, 0, 128, 93 + 0.25 * fat)
    wall = column(space, 0, 2, 128 - fat, 91 - 0.8 * fat)
    cavity = blend(column(space, -42, -3, 70, 76 - 0.8 * fat), column(space, 42, -3, 70, 76 - 0.8 * fat), 40)
    canvas.paint(trunk, FAT + 8 * smooth_field(rng, SHAPE, (1, 1.5, 1.5)))
    canvas.paint(wall, hu["muscle"])
    angle = np.arctan2(space.x, -space.y)  # 0 in front, so that ribs fall from the back to the front
    rib = (space.z - 24 * np.cos(angle) + rng.uniform(0, 30)) % 30 - 15
    ribs = np.sqrt((rib * 0.9) ** 2 + (wall + 9) ** 2) - 5
    canvas.paint(np.maximum(ribs, 20 - space.z - 35 * np.abs(np.sin(angle))), 0.55 * hu["cortical bone"])
    canvas.paint(cavity, FAT + 7 * smooth_field(rng, SHAPE, (1, 1.5, 1.5)))
    for side in (-1, 1):
        canvas.paint(ellipsoid(space, (side * 34, 66, -5), (26, 17, 160)), hu["muscle"])
        canvas.paint(ellipsoid(space, (side * 36, 42, -45), (14, 17, 75), tilt=-side * 0.1), hu["muscle"])
        dome = ellipsoid(space, (side * 58, 5, 20), (80, 92, 62 if side < 0 else 57))
        lung = np.maximum(np.maximum(cavity, -dome), 40 - space.z)
        canvas.paint(np.maximum(lung, 16 - side * space.x), LUNG + 25 * smooth_field(rng, SHAPE, (1, 1, 1)))
    return cavity


def _bowel(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
    """Paints loops of bowel in the front and lower abdomen, some with gas on top."""
    for side, lower in ((-1, -40), (1, 0)):  # ascending and descending colon
        colon = np.maximum(ellipsoid(body.space, (side * 84, 12, -110), (19, 22, 110 + lower)), body.cavity + 4)
        canvas.paint(colon, body.hu["bowel"])
        canvas.paint(colon + 5, -40 + 60 * smooth_field(rng, SHAPE, (0.8, 1, 1)))
    canvas.paint(ellipsoid(body.space, (8, -12, 6), (52, 11, 12), tilt=0.35), body.hu["pancreas"])
    for _ in range(28):
        centre = (rng.uniform(-80, 80), rng.uniform(-62, 8), rng.uniform(-110, 10))
        radius = rng.uniform(9, 18)
        loop = ellipsoid(body.space, centre, (radius * rng.uniform(1, 1.9), radius, radius * rng.uniform(1, 1.6)))
        loop = np.maximum(loop, body.cavity + 5)
        canvas.paint(loop, body.hu["bowel"] + rng.normal(0, 8))
        canvas.paint(loop + 4, body.hu["stomach"] + rng.normal(0, 8))
        if rng.random() < 0.3:  # gas rises to the front of a patient who lies on the back
            canvas.paint(np.maximum(loop + 5, body.space.y - centre[1] + 2), -700.0)


def _liver(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
    space, hu = body.space, body.hu
    shift = rng.normal(0, 4, 3)
    right = ellipsoid(space, (-66 + shift[0], 2 + shift[1], 18 + shift[2]), (60, 72, 68 + rng.normal(0, 6)), tilt=0.12)
    reach = rng.uniform(48, 70)  # how far the left lobe crosses the midline
    left = ellipsoid(space, (-8 + shift[0], -46 + shift[1], 34 + shift[2]), (reach, 25, 34), tilt=0.15)
    liver = np.maximum(blend(right, left, 30), body.cavity + 3)
    dome = ellipsoid(space, (-58, 5, 20), (78, 90, 59))
    liver = np.maximum(liver, np.where(space.z > 20, dome, -1e3))
    hilum = ellipsoid(space, (-12 + shift[0], 16 + shift[1], 8 + shift[2]), (30, 34, 46))
    liver = without(liver, hilum)
    canvas.paint(liver, hu["liver"] + 5 * smooth_field(rng, SHAPE, (0.8, 1.2, 1.2)), LABELS["liver"])
    gate = np.array([-36.0, -8.0, 22.0]) + shift
    for _ in range(7):
        end = gate + rng.normal(0, 1, 3) * (14, 16, 14) + rng.uniform(20, 45) * np.array([-1, rng.normal(0, 0.6), 0.4])
        vessel = np.maximum(rod(space, gate, end, rng.uniform(2.5, 4.5)), liver + 4)
        canvas.paint(vessel, hu["liver vessels"], None)
    bladder = ellipsoid(space, np.array([-46, -42, -18]) + shift, (13, 15, 20), tilt=0.3)
    canvas.paint(np.maximum(bladder, body.cavity + 4), hu["gallbladder"])


def _stomach_and_spleen(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
    space, hu = body.space, body.hu
    shift = rng.normal(0, 4, 3)
    middle = np.array([48, -22, 34]) + shift
    stomach = ellipsoid(space, middle, (30 + rng.normal(0, 4), 34, 34), tilt=0.3, turn=0.4)
    stomach = np.maximum(stomach, body.cavity + 6)
    canvas.paint(stomach, hu["bowel"])
    canvas.paint(stomach + 5, hu["stomach"])
    canvas.paint(np.maximum(stomach + 6, space.y - middle[1] + rng.uniform(8, 22)), -850.0)
    size = rng.normal(1, 0.08)
    spleen = ellipsoid(
        space,
        np.array([86, 30, 30]) + rng.normal(0, 4, 3),
        (30 * size, 46 * size, 46 * size),
        turn=-0.45 + rng.normal(0, 0.1),
    )
    hollow = ellipsoid(space, (48 + shift[0], 6 + shift[1], 24 + shift[2]), (30, 36, 42))
    spleen = np.maximum(without(spleen, hollow), body.cavity + 4)
    spleen = np.maximum(spleen, ellipsoid(space, (58, 5, 20), (80, 92, 54)))
    canvas.paint(spleen, hu["spleen"] + 4 * smooth_field(rng, SHAPE, (0.8, 1, 1)), LABELS["spleen"])


def _kidneys(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
    """Paints both kidneys; the right one lies against the liver, the left one against the spleen."""
    for name, side, height in (("right_kidney", -1, -18), ("left_kidney", 1, -6)):
        shift = rng.normal(0, 3, 3)
        centre = (side * 58 + shift[0], 38 + shift[1], height + 1.5 * shift[2])
        size = rng.normal(1, 0.06)
        radii = (25 * size, 24 * size, 50 * size)
        pose = {"tilt": -side * 0.16 + rng.normal(0, 0.04), "turn": side * 0.35}
        kidney = ellipsoid(body.space, centre, radii, **pose)
        sinus = ellipsoid(body.space, (centre[0] - side * 15, centre[1] - 4, centre[2]), (14, 9, 22), **pose)
        canvas.paint(kidney, body.hu["renal cortex"] + 4 * smooth_field(rng, SHAPE, (0.8, 1, 1)), LABELS[name])
        canvas.paint(kidney + 8, body.hu["renal medulla"], LABELS[name])
        canvas.paint(sinus, FAT + 40)


def _spine_and_vessels(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
    """Paints the vertebral column, and in front of it aorta and vena cava."""
    space, hu, spine = body.space, body.hu, LABELS["spine"]
    sway = 3 * np.sin(space.z / 60 + rng.uniform(0, 6))
    vertebrae = column(space, sway, 46, 23, 17)
    arch = without(
        blend(ellipsoid(space, (0, 68, 0), (17, 14, 400)), ellipsoid(space, (0, 82, 0), (5, 14, 400)), 8),
        column(space, sway, 67, 9, 8),
    )
    canvas.paint(arch, 0.6 * hu["cortical bone"], spine)
    canvas.paint(column(space, sway, 67, 9, 8), hu["spinal canal"], spine)
    canvas.paint(vertebrae, 0.75 * hu["cortical bone"], spine)
    canvas.paint(vertebrae + 4, hu["cancellous bone"] + 12 * smooth_field(rng, SHAPE, (0.7, 0.8, 0.8)), spine)
    level = (space.z + rng.uniform(0, 34)) % 34 - 17
    canvas.paint(np.maximum(vertebrae + 1, np.abs(level) - 4), hu["disc"], spine)
    aorta = column(space, 9 + sway + 4 * np.sin(space.z / 45), 19 + rng.normal(0, 1.5), *(2 * [rng.uniform(10.5, 13)]))
    cava = column(space, -20 + sway, 18 + rng.normal(0, 2), rng.uniform(10, 13), rng.uniform(7, 10))
    canvas.paint(cava, hu["vena cava"])
    canvas.paint(aorta, hu["aorta"], LABELS["aorta"])
