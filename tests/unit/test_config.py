"""Settings: strict, frozen, written to YAML and read back; errors in one line that names field and allowed values."""

import pytest
import yaml
from pydantic import ValidationError

from headstart.config import Finetune, Pretrain, Probe, Study
from headstart.errors import UserError
from headstart.settings import identity

STUDY = {"data": "digits", "arms": {"scratch": None, "simclr": {"method": "simclr"}}}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Pretrain, {"data": "x", "method_args": {"temperature": 0.5}, "include": "val,test"}),
        (Finetune, {"data": "x", "labels": "20%", "learning_rate": 1e-4}),
        (Probe, {"data": "x", "init": "none", "labels": "1,5,all", "seeds": 3}),
        (Study, {**STUDY, "grid": {"finetune.learning_rate": [1e-4, 3e-4]}, "labels": [1, "20%", "all"]}),
    ],
)
def test_yaml_round_trip(kind, values, tmp_path):
    settings = kind.create(**values)
    path = tmp_path / "config.yaml"
    path.write_text(settings.to_yaml())
    assert kind.read(path) == settings
    assert identity(kind.read(path).model_dump(mode="json")) == identity(settings.model_dump(mode="json"))


def test_given_settings_win_over_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: somewhere\nepochs: 5\n")
    assert Pretrain.read(path, epochs=7).epochs == 7
    assert Pretrain.read(path).epochs == 5


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Pretrain.create(data="x").epochs = 3


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Pretrain, {"data": "x", "epoch": 3}, "option: unknown 'epoch', did you mean 'epochs'?"),
        (Pretrain, {}, "data: is needed"),
        (Pretrain, {"data": "x", "epochs": 0}, "epochs: input should be greater than or equal to 1"),
        (Pretrain, {"data": "x", "epochs": "many"}, "epochs:"),
        (
            Pretrain,
            {"data": "x", "optimizer": "adagrad"},
            "optimizer: input should be 'sgd', 'lars', 'adamw' or 'adam', not 'adagrad'",
        ),
        (
            Pretrain,
            {"data": "x", "batch_size": 10, "accumulate": 3},
            "batch_size: 10 cannot be cut into accumulate = 3",
        ),
        (Pretrain, {"data": "x", "learning_rate": float("nan")}, "learning_rate:"),
        (Finetune, {"data": "x", "transfer": "probe"}, "transfer: input should be 'head' or 'finetune', not 'probe'"),
        (Study, {"data": "x", "arms": {"a": {}, "b": {}}}, "exactly one arm must be none"),
        (Study, {**STUDY, "grid": {"finetune.learning_rat": [1]}}, "did you mean 'finetune.learning_rate'"),
        (Study, {**STUDY, "grid": {"finetune.learning_rate": []}}, "finetune.learning_rate: no values"),
        (Study, {**STUDY, "seeds": 0}, "seeds:"),
        (Study, {**STUDY, "transfers": ["probes"]}, "transfers"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(kind, values, message):
    with pytest.raises(UserError) as caught:
        kind.create(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_no_settings_is_refused(text, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config: .*broken\.yaml"):
        Pretrain.read(path)
    with pytest.raises(UserError, match="config: no file"):
        Pretrain.read(tmp_path / "missing.yaml")


def test_text_of_the_command_line_and_numbers_of_yaml_mean_the_same():
    typed = Study.create(**STUDY, labels="1,5,all", seeds="3")
    written = Study.create(**yaml.safe_load("{labels: [1, 5, all], seeds: 3}"), **STUDY)
    assert typed == written
    assert Finetune.create(data="x", labels=5).labels == "5"


def test_identity_depends_on_what_decides_and_on_nothing_else():
    settings = Pretrain.create(data="a").model_dump(mode="json")
    assert identity(settings) == identity({**settings, "workers": 7, "checkpoint_every": 1.0, "data": "b"})
    assert identity(settings) == identity(dict(reversed(settings.items())))
    assert identity(settings) != identity({**settings, "epochs": 199})
    assert identity(settings, "one fingerprint") != identity(settings, "another")


def test_identity_is_the_same_in_every_version():
    # a changed value here makes every unfinished study of every user start again
    assert identity({"epochs": 3, "method": "simclr"}, "0123") == "5c7f74ceed6efc19"
