"""Where the shipped constitution and the examples are: in the wheel under _share/, in a checkout beside the package.

It only finds them; reading and copying is its callers' business.
"""

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def share_folder(name: Literal["examples", "policies", "schema"]) -> Path:
    """The folder of that name.

    Raises:
        FileNotFoundError: the installation is not whole.
    """
    installed = _PACKAGE / "_share" / name
    if installed.is_dir():
        return installed
    # Only a checkout has the build hook beside the package; in site-packages that place belongs to other projects.
    checkout = _PACKAGE.parent / ("pdp/schema" if name == "schema" else name)
    if (_PACKAGE.parent / "hatch_build.py").is_file() and checkout.is_dir():
        return checkout
    raise FileNotFoundError(f"{installed} is missing: install opa-agent-bus again")
