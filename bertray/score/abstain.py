"""Which rows are to get no label because no label is sure enough."""

from bertray.config import Abstain
from bertray.errors import ConfigError
from bertray.model.bundle import Bundle


def abstain_below(abstain: Abstain, bundle: Bundle) -> float | None:
    """The least probability of a label that is given; None where every row gets one.

    Raises:
        ConfigError: rows have no one label, or the bundle does not know the precision.
    """
    if abstain.below is None and abstain.precision is None:
        return None
    if bundle.task != "single_label":
        raise ConfigError(
            f"abstain.*: {bundle.source} is a {bundle.task} model, and rows abstain from one label "
            "alone; leave it out"
        )
    if abstain.precision is None:
        return abstain.below
    for cutoff in sorted(bundle.cutoffs, key=lambda cutoff: cutoff.precision):
        if cutoff.precision >= abstain.precision:
            return cutoff.threshold
    known = ", ".join(f"{cutoff.precision:g}" for cutoff in bundle.cutoffs) or "none"
    raise ConfigError(
        f"abstain.precision={abstain.precision:g}: the labelled rows that {bundle.source} was "
        f"trained or calibrated with bear out no such precision (of those they do: {known}); set "
        "abstain.below, or calibrate a copy with more rows (`bertray evaluate "
        "calibration.method=temperature ...`)"
    )
