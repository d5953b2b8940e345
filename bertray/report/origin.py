"""Where the model that scored comes from, as a page lists it."""

from bertray.model import versions
from bertray.model.bundle import Bundle
from bertray.model.manifest import read_manifest


def origin_of(bundle: Bundle, *, root: str | None) -> list[tuple[str, str]]:
    """What the model went through, from its base to its being put in use: what, and how it was.

    Args:
        bundle: one that bertray has trained, or another, of which less is known.
        root: of the store or the registry that it is from.
    """
    lines = []
    manifest = read_manifest(str(bundle.folder))
    if manifest is not None:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in manifest.metrics.items())
        lines = [
            ("fine-tuned from", manifest.base),
            ("training data digest", manifest.lineage.get("data", "")),
            ("trained", f"{manifest.created} by bertray {manifest.versions.get('bertray', '')}"),
            ("validation", metrics),
        ]
    if root is not None and versions.is_reference(bundle.source):
        version = versions.find(root, bundle.source)
        parent = "" if version.parent is None else f", after version {version.parent}"
        lines.append(("put into the store", f"{version.added} by {version.added_by}{parent}"))
        promotion = versions.promotion_of(root, version)
        if promotion is not None:
            lines.append(("put in use", f"{promotion.at} by {promotion.by}: {promotion.why}"))
    return [(name, value) for name, value in lines if value]
