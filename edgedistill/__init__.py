"""edgedistill: from a big model, a phone and data to a small quantized student that provably meets the budget.

>>> from edgedistill import Store, build, load_profile, load_target
>>> store, out = Store(Path("store")), Path("out")
>>> build(load_target("pixel8"), load_profile("default"), store=store, out=out, base=Path()).gate.verdict
<Verdict.UNMEASURED: 'UNMEASURED'>
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedistill.catalog import load_profile, load_target
    from edgedistill.pipeline import build
    from edgedistill.plan import make_plan
    from edgedistill.predict import predict
    from edgedistill.store import Store

__version__ = "0.1.0"
__all__ = ["Store", "__version__", "build", "load_profile", "load_target", "make_plan", "predict"]

_HOME = {
    "Store": "edgedistill.store",
    "build": "edgedistill.pipeline",
    "load_profile": "edgedistill.catalog",
    "load_target": "edgedistill.catalog",
    "make_plan": "edgedistill.plan",
    "predict": "edgedistill.predict",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import edgedistill` itself costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'edgedistill' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
