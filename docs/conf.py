"""Sphinx reads this: `make docs` builds docs/ into out/docs, and fails on any warning."""

from __future__ import annotations

import importlib.metadata

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import swnet

project = "swcompile"
author = "The swcompile maintainers"
release = importlib.metadata.version("swcompile")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_heading_anchors = 3
default_role = "code"  # what stands in single backticks in our docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures show none either: docstrings say what arguments are
smartquotes = False  # p="auto" is code, in brackets or not
html_theme = "furo"
html_title = "swcompile"
html_show_copyright = False
html_copy_source = False


def public() -> set[str]:
    """Return the names that `import swnet` offers, and those of the public methods and properties of its classes."""
    names = {f"swnet.{name}" for name in swnet.__all__}
    for name in swnet.__all__:
        found = getattr(swnet, name)
        if isinstance(found, type) and found.__module__.startswith("swcompile"):
            names |= {f"swnet.{name}.{member}" for member in vars(found) if _is_method(found, member)}
    return names


def _is_method(kind: type, member: str) -> bool:
    found = vars(kind)[member]
    return not member.startswith("_") and (callable(found) or isinstance(found, property | staticmethod | classmethod))


def undocumented(_: Sphinx, environment: BuildEnvironment) -> None:
    """Warn of public names that no page documents: what is left out of a page, and what has no docstring."""
    described = environment.get_domain("py").objects  # type: ignore[attr-defined]
    for name in sorted(public() - set(described)):
        logging.getLogger(__name__).warning("%s is public and is documented on no page", name)


def setup(app: Sphinx) -> None:
    app.connect("env-check-consistency", undocumented)
