"""What `import lad_pl` offers, and what it leaves alone until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lad_pl
import lad_pl.data


@pytest.mark.parametrize("package", [lad_pl, lad_pl.data])
def test_every_public_name_is_there(package) -> None:
    assert set(package.__all__) == set(package._MODULES) <= set(dir(package))
    for name in package.__all__:
        value = getattr(package, name)
        assert getattr(value, "__name__", name) == name
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'no_such'"):
        _ = package.no_such


def test_the_import_loads_nothing_heavy_and_submodules_follow() -> None:
    code = (
        "import lad_pl, lad_pl.data, sys; assert not {'torch', 'numpy', 'lightning'} & set(sys.modules); "
        "lad_pl.readouts.READOUTS, lad_pl.calibrate.calibrate; "
        "assert 'torch' in sys.modules and not {'lightning', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
