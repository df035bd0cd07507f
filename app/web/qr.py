"""QR codes, by which a second device joins a session."""

from io import BytesIO
from typing import Final

import segno

_QUIET_MODULES: Final = 4
"""The width of the white border that scanners need around the code."""


def qr_svg(text: str) -> str:
    """The QR code of a text as SVG, black on white in any colour scheme, without styles or a size of its own."""
    svg = BytesIO()
    segno.make_qr(text, error="m").save(
        svg,
        kind="svg",
        border=_QUIET_MODULES,
        dark="#000",
        light="#fff",
        xmldecl=False,
        nl=False,
        omitsize=True,
        svgclass=None,
        lineclass=None,
    )
    return svg.getvalue().decode("utf-8")
