"""Pictures and mesh files of two hands, with numpy alone.

    hands.render("hands.png")      a PNG, a contact sheet for a batch; no display, no GPU, no graphics library
    hands.export("hands.glb")      .glb, .obj, .ply

Only labels in pictures need a library, Pillow: pip install "interhand_prior[viewer]".
"""

from .mesh_files import export_mesh
from .png import write_png
from .render import render
from .sheet import contact_sheet

__all__ = ["contact_sheet", "export_mesh", "render", "write_png"]
