"""Small-world networks from the models you have: `import swnet; better = swnet.transform(model)`."""

from swcompile.api import analyze, apply, ledger, load, plan, save, transform
from swcompile.errors import SwnetError

__all__ = ["SwnetError", "analyze", "apply", "ledger", "load", "plan", "save", "transform"]
