"""HTML pages that are one file each: templates of edm_fast/assets, whatever is filled in escaped, pictures inside."""

from __future__ import annotations

import base64
import importlib.resources
from typing import Any


def render(template: str, **values: Any) -> str:
    """The text of a page. Every value that the template names must be there."""
    import jinja2

    folder = importlib.resources.files("edm_fast") / "assets"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)


def inline(data: bytes, kind: str = "png") -> str:
    """A picture as the address of an <img>."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()
