"""`--set NAME=VALUE`: YAML, read by the type of the field."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

pytest.importorskip("yaml")

from fgrl.cli import build_parser
from fgrl.cli._common import UsageError, apply_config
from fgrl.cli._settings import parse_settings


class Strategy(str, Enum):
    NO = "no"
    STEPS = "steps"


@dataclass
class Config:
    """One field of each kind that the configurations of the trainers have."""

    rate: float = 0.0
    bound: float | None = None
    count: int = 0
    limit: Optional[int] = None  # noqa: UP045
    flag: bool = False
    maybe: bool | None = None
    name: str = ""
    strategy: Strategy | str = "no"
    names: list[str] | None = None
    report: str | list[str] | None = None
    weights: list[float] | None = None
    options: dict[str, Any] | str | None = None
    level: Literal["token", "sequence"] = "token"
    hidden: int = field(default=0, init=False)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rate=1e-1", 0.1),  # text for YAML 1.1, which wants a point
        ("rate=0.5", 0.5),
        ("rate=2", 2),
        ("bound=1e-5", 1e-5),
        ("bound=null", None),
        ("count=3", 3),
        ("count='3'", 3),
        ("limit=", None),
        ("flag=true", True),
        ("maybe=no", False),
        ("maybe=null", None),
        ("name=run", "run"),
        ("name=007", "007"),  # a number for YAML
        ("name= 1e-1 ", "1e-1"),
        ("name=a=b", "a=b"),
        ("strategy=no", "no"),  # False for YAML
        ("strategy=steps", "steps"),
        ("names=[a, b]", ["a", "b"]),
        ("names=[1, b]", ["1", "b"]),
        ("report=none", "none"),
        ("report=[a]", ["a"]),
        ("weights=[1, 1e-1]", [1, 0.1]),
        ("options={top: 1}", {"top": 1}),
        ("options=file.json", "file.json"),
        ("level=sequence", "sequence"),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else "",
)
def test_value_of_the_type_of_the_field(setting: str, value: Any) -> None:
    name = setting.partition("=")[0]
    parsed = parse_settings([setting], Config)
    assert parsed == {name: value}
    assert type(parsed[name]) is type(value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rate=high", "rate must be float"),
        ("rate=null", "rate must be float"),
        ("rate=true", "rate must be float"),
        ("bound=[1]", "bound must be float | None"),
        ("count=1.5", "count must be int"),
        ("count=1e3", "count must be int"),
        ("count=true", "count must be int"),
        ("flag=1", "flag must be bool"),
        ("flag=maybe", "flag must be bool"),
        ("name=[a]", "name must be str"),
        ("weights=1", "weights must be list[float] | None"),
        ("weights=[a]", "weights must be list[float] | None"),
        ("level=word", "level must be Literal['token', 'sequence']"),
        ("hidden=1", "it must be NAME=VALUE with a field of Config"),
        ("nothing", "it must be NAME=VALUE with a field of Config"),
        ("options={", "its value must be YAML"),
    ],
    ids=lambda value: value if "must" not in value else "",
)
def test_a_value_that_the_field_cannot_hold(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings([setting], Config)
    assert str(caught.value).startswith(f"--set is {setting!r}; ")
    assert message in str(caught.value)


def test_dashes_and_the_last_of_several() -> None:
    assert parse_settings(["count=1", " count=2"], Config) == {"count": 2}
    assert parse_settings(None, Config) == {}


def test_an_old_name_in_a_configuration_file_is_the_new_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "ppo.yaml"
    config.write_text("kl-coef: 0.25\n", encoding="utf-8")
    _, parser = build_parser("train-ppo")
    assert parser is not None
    apply_config(["train-ppo", "--config", str(config)], parser)
    assert parser.get_default("reward_kl_coef") == 0.25
    assert "--kl-coef is deprecated; use --reward-kl-coef" in capsys.readouterr().err
