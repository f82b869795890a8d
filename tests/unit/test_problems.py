"""Everything wrong with an inventory is said at once, with file, host, field, value and cure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from gpurack import problems
from gpurack.inventory import InventoryError, load
from gpurack.settings import Layer, Location, RoleSettings, merge


class Volume(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: str = "/srv"


class EngineSettings(RoleSettings):
    source: Literal["debian", "docker"] = "debian"
    log_max_size_mib: int = Field(default=10, gt=0)
    registry_token: SecretStr | None = None
    volumes: tuple[Volume, ...] = ()
    data_root: Volume = Volume()

    def problems_on(self, host: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        if data.get("ssh_user") == "nobody":
            yield ("source",), f"{host} is connected to as nobody"


MakeProblems = Callable[..., list[str]]


@pytest.fixture
def problems_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeProblems:
    """Return a function that writes an inventory and returns its problems as text."""
    monkeypatch.setattr(problems, "role_models", lambda: {"engine": EngineSettings})
    monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})  # pyinfra's cache of files, by relative name
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "inventories/prod"
    (folder / "group_data").mkdir(parents=True)

    def write(hosts: str, **groups: str) -> list[str]:
        (folder / "hosts.py").write_text(hosts)
        for name, text in groups.items():
            (folder / "group_data" / f"{name}.py").write_text(text)
        inventory = load("inventories/prod")
        return [str(problem) for problem in problems.problems_in(inventory, "inventories/prod/hosts.py")]

    return write


ONE_HOST = 'gpu = [("gpu1", {})]'


def test_right_inventory_has_no_problems(problems_of: MakeProblems) -> None:
    assert problems_of(ONE_HOST, gpu='engine = {"source": "docker", "registry_token": "x"}') == []


def test_every_problem_is_reported_with_its_own_place(problems_of: MakeProblems) -> None:
    found = problems_of(
        'gpu = [("gpu1", {"engine": {"log_max_size_mib": -1}}), "gpu2"]',
        all='engine = {"sauce": "debian"}\nengin = {}\nssh_prot = 22\n_sodu = True',
        gpu='engine = {"source": "redhat"}',
    )
    assert len(found) == 6
    assert sum(line.startswith("inventories/prod/group_data/all.py [gpu1, gpu2]: ") for line in found) == 4
    text = "\n".join(found)
    assert "engine.sauce: unknown setting; did you mean source?" in text
    assert "engin: no role of this name; did you mean engine?" in text
    assert "ssh_prot: unknown connection setting; did you mean ssh_port?" in text
    assert "_sodu: unknown pyinfra argument; did you mean _sudo?" in text
    assert "group_data/gpu.py [gpu1, gpu2]: engine.source = 'redhat': Input should be 'debian' or 'docker'" in text
    assert "hosts.py [gpu1]: engine.log_max_size_mib = -1: Input should be greater than 0" in text


def test_secrets_are_masked(problems_of: MakeProblems) -> None:
    found = problems_of(ONE_HOST, gpu='engine = {"registry_token": ["hunter2"]}')
    assert "hunter2" not in "".join(found)
    assert "engine.registry_token = ********" in found[0]


def test_secret_inside_an_object_of_the_wrong_type_is_masked(problems_of: MakeProblems) -> None:
    found = problems_of(ONE_HOST, gpu='engine = {"volumes": {"password": "hunter2"}, "data_root": [{"p": "hunter2"}]}')
    assert len(found) == 2
    assert "hunter2" not in "".join(found)


def test_unknown_field_of_a_nested_entry_names_the_nearest(problems_of: MakeProblems) -> None:
    [line] = problems_of(ONE_HOST, gpu='engine = {"volumes": [{"path": "/a"}, {"pth": "/b"}]}')
    assert "engine.volumes[1].pth: unknown setting; did you mean path?" in line


def test_role_with_something_else_than_a_dictionary(problems_of: MakeProblems) -> None:
    [line] = problems_of(ONE_HOST, gpu='engine = "docker"')
    assert "engine = 'docker': the settings of role engine are a dictionary" in line


def test_group_file_that_no_group_uses(problems_of: MakeProblems) -> None:
    [line] = problems_of(ONE_HOST, gpuu="engine = {}")
    assert "has no hosts in a group of this name; did you mean gpu?" in line


def test_connection_settings_are_looked_at(problems_of: MakeProblems) -> None:
    found = problems_of(
        'gpu = [("gpu1", {"ssh_port": "ssh", "ssh_key": "/nowhere/key", "ssh_strict_host_key_checking": "maybe"})]'
    )
    assert len(found) == 3
    assert any("ssh_key = '/nowhere/key': no such file on this machine" in line for line in found)


def test_role_can_look_at_the_connection(problems_of: MakeProblems) -> None:
    [line] = problems_of('gpu = [("gpu1", {"ssh_user": "nobody"})]')
    assert "engine.source: gpu1 is connected to as nobody" in line


def test_inventory_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyinfra_cli.util.PYTHON_CODES", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts.py").write_text("gpu = [\n")
    with pytest.raises(InventoryError, match=r"hosts\.py:1: .*never closed"):
        load("hosts.py")
    (tmp_path / "h2.py").write_text("gpu = []\n\nx = 1 / 0\n")
    with pytest.raises(InventoryError, match=r"h2\.py:3: ZeroDivisionError"):
        load("h2.py")
    (tmp_path / "h3.py").write_text("gpu = []\n")
    with pytest.raises(InventoryError, match="no hosts in it"):
        load("h3.py")
    with pytest.raises(InventoryError, match="no such inventory"):
        load("inventories/nowhere")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELD = st.sampled_from(["source", "log_max_size_mib", "registry_token", "volumes", "data_root", "nonsense"])


@given(st.lists(st.dictionaries(FIELD, VALUES, max_size=4), min_size=1, max_size=3))
def test_last_layer_wins_and_every_value_has_an_origin(layers: list[dict[str, Any]]) -> None:
    merged = merge([Layer(f"group {n}", {"engine": data}) for n, data in enumerate(layers)], "engine")
    assert set(merged.values) == {key for data in layers for key in data}
    for key, value in merged.values.items():
        last = next(data[key] for data in reversed(layers) if key in data)
        if not isinstance(last, dict):
            assert value == last
        assert merged.origin((key,)) is not None


@given(st.dictionaries(FIELD, VALUES, max_size=5))
def test_no_input_makes_a_traceback(values: dict[str, Any]) -> None:
    merged = merge([Layer("group all", {"engine": values})], "engine")
    try:
        EngineSettings.model_validate(merged.values)
    except ValueError as errors:
        for error in errors.errors(include_url=False):  # type: ignore[attr-defined]
            line = str(problems._from_pydantic(error, "engine", EngineSettings, merged, Path("hosts.py")))
            assert "engine" in line


def test_command_says_everything_and_exits_with_2(tmp_path: Path) -> None:
    """The real commands, on the repository's own roles."""
    (tmp_path / "hosts.py").write_text(
        'gpu = [("gpu1.invalid", {"docker": {"log_max_sise_mib": 1}, "base": {"timezone": "Mars/Base"}})]'
    )
    root = Path(__file__).parents[2]
    folder = Path(sys.executable).parent
    for command in (
        [str(folder / "pyinfra"), str(tmp_path), "deploys/", "-y"],
        [str(folder / "gpurack"), "check", str(tmp_path)],
    ):
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert "docker.log_max_sise_mib" in result.stderr
        assert "base.timezone = 'Mars/Base'" in result.stderr
        assert "2 problems" in result.stderr
        assert "Connecting" not in result.stderr
