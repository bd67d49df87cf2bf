"""Small-world networks from the models you have: `import swnet; better = swnet.transform(model)`."""

from swcompile.api import analyze, apply, ledger, load, lower, plan, report, save, transform
from swcompile.check import Ledger
from swcompile.errors import SwnetError
from swcompile.plan import Plan
from swcompile.rewirer import Rewirer

__all__ = [
    "Ledger",
    "Plan",
    "Rewirer",
    "SwnetError",
    "analyze",
    "apply",
    "ledger",
    "load",
    "lower",
    "plan",
    "report",
    "save",
    "transform",
]
