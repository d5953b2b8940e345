"""List all packages of this Python's environment, with versions and licences, as CycloneDX 1.6.

python deploy/sbom.py FILE
"""

import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL


def main() -> None:
    """Write the list."""
    bom = Bom(components=[component(package) for package in distributions()])
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n", encoding="utf-8")


def component(package: Distribution) -> Component:
    """What an installed package says of itself."""
    name, version = package.metadata["Name"], package.version
    expression = package.metadata.get("License-Expression")
    licence = package.metadata.get("License", "").partition("\n")[0]
    make = LicenseFactory()
    return Component(
        name=name,
        version=version,
        purl=PackageURL("pypi", name=name.lower().replace("_", "-"), version=version),
        licenses=[make.make_from_string(expression or licence)] if expression or licence else [],
    )


if __name__ == "__main__":
    main()
