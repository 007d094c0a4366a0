"""Operate on the attention of existing language-model checkpoints.

The functions have the names of the commands, take the same values, and return typed results that print as tables:

    inspect, try_model      what a model's attention is; which operation helps it
    convert, calibrate      write a converted checkpoint; choose its numbers on texts
    verify, evaluate        check a checkpoint; measure it against its source
    finetune, merge         train by a recipe; write what was learned into the weights
    revert, refresh, push   restore the source; update the code; upload
    new                     a model from random weights
    open_zoo, run_zoo       many checkpoints from one manifest
    sweep, make_plan        the loss against what screening saves; a plan of a conversion

    >>> import surgery
    >>> surgery.convert("model/", "ssmax", form="anchored", output="model-ssmax/")
    >>> surgery.verify("model-ssmax/", against="model/").verdict

``help(surgery.convert)`` explains one. ``RunOptions`` says how a model is run: device, dtype, batch size.

Importing this package is fast (no torch), and registers converted checkpoints, so that
``AutoModelForCausalLM.from_pretrained`` loads them, even if transformers is imported later.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from surgery.anatomy.registration import register
from surgery.runtime.registration import register_own
from surgery.version import __version__

if TYPE_CHECKING:
    from surgery.checkpoint.hub_upload import push
    from surgery.conversion import convert, make_plan, refresh, revert
    from surgery.conversion.calibration import calibrate
    from surgery.evaluation import evaluate
    from surgery.loading import RunOptions
    from surgery.models import new
    from surgery.models.inspection import inspect
    from surgery.operations.screening.calibration import CalibrationSettings, Sweep, sweep
    from surgery.recovery import finetune, merge
    from surgery.trial import try_model
    from surgery.verification import verify
    from surgery.zoo.run import run_zoo
    from surgery.zoo.zoo import open_zoo

# Imported on first use, so that `import surgery` stays fast.
_HOMES = {
    "CalibrationSettings": "surgery.operations.screening.calibration",
    "RunOptions": "surgery.loading",
    "Sweep": "surgery.operations.screening.calibration",
    "calibrate": "surgery.conversion.calibration",
    "convert": "surgery.conversion",
    "evaluate": "surgery.evaluation",
    "finetune": "surgery.recovery",
    "inspect": "surgery.models.inspection",
    "make_plan": "surgery.conversion",
    "merge": "surgery.recovery",
    "new": "surgery.models",
    "open_zoo": "surgery.zoo.zoo",
    "push": "surgery.checkpoint.hub_upload",
    "refresh": "surgery.conversion",
    "revert": "surgery.conversion",
    "run_zoo": "surgery.zoo.run",
    "sweep": "surgery.operations.screening.calibration",
    "try_model": "surgery.trial",
    "verify": "surgery.verification",
}

__all__ = [
    "CalibrationSettings",
    "RunOptions",
    "Sweep",
    "__version__",
    "calibrate",
    "convert",
    "evaluate",
    "finetune",
    "inspect",
    "make_plan",
    "merge",
    "new",
    "open_zoo",
    "push",
    "refresh",
    "register",
    "revert",
    "run_zoo",
    "sweep",
    "try_model",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgery' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    if isinstance(found, type):
        return found
    from surgery.library import as_library

    globals()[name] = wrapped = as_library(found)
    return wrapped


def __dir__() -> list[str]:
    return list(__all__)


def _own_config(model_type: str) -> Any:
    from surgery.models.registration import own_config

    return own_config(model_type)


register()
register_own(_own_config)
