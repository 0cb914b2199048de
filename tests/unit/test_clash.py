"""PyPI's unrelated `agentd` beside this one is found, with what it takes and what cures it."""

import pytest

from agentd.clash import installed_clash


@pytest.fixture
def installed(tmp_path):
    """A function that installs a distribution into a folder, as pip leaves one."""

    def install(name, files=(), commands=()):
        info = tmp_path / f"{name.replace('-', '_')}-9.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.1\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        scripts = "".join(f"{command} = x:main\n" for command in commands)
        (info / "entry_points.txt").write_text(f"[console_scripts]\n{scripts}")
        return [str(tmp_path)]

    return install


def test_nothing_is_said_of_ours_alone(installed):
    """Also where other packages have similar names."""
    installed("agentd-recorder", ["agentd/__init__.py"], ["agentd"])
    assert installed_clash(installed("agentd-tools", ["agentd_tools/__init__.py"])) is None


@pytest.mark.parametrize("name", ["agentd", "AgentD"])
def test_theirs_is_named_with_what_it_takes(installed, name):
    """Module and command, and the two calls that put ours right."""
    installed("agentd-recorder", ["agentd/__init__.py"], ["agentd"])
    said = installed_clash(installed(name, ["agentd/__init__.py", "agentd/x.py"], ["agentd", "other"]))
    assert said == (
        "PyPI's unrelated package agentd 9.1 is installed beside agentd-recorder (the module agentd, the command agentd): "
        "pip uninstall agentd && pip install --force-reinstall --no-deps agentd-recorder"
    )


def test_this_environment_has_none():
    """What the tests run in is ours."""
    assert installed_clash() is None
