"""Sources of the project, parsed."""

import ast
import gc


def parse(source: str) -> ast.Module:
    """Parse a module's source.

    No garbage is collected meanwhile: code that a collection runs makes some releases of CPython 3.11 believe that the
    parser's own recursion went wrong ("AST constructor recursion depth mismatch").
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if was_enabled:
            gc.enable()
