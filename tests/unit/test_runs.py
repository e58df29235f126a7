"""The run folder: refused when it is not empty, locked, never half-written."""

import json

import pytest

from headstart import runs
from headstart.config import Pretrain
from headstart.errors import UserError

SETTINGS = Pretrain.create(data="digits", epochs=200)


def create(folder, **how):
    return runs.create(folder, SETTINGS, {"verb": "pretrain"}, **{"resume": False, "overwrite": False, **how})


def test_a_finished_run_has_its_config_environment_and_result(tmp_path):
    run = create(tmp_path / "run")
    assert runs.read_result(run.folder) is None
    run.finish(SETTINGS, {"loss": 1.0}, seconds=2.0)
    result = json.loads((run.folder / "result.json").read_text())
    assert result["scores"] == {"loss": 1.0}
    assert Pretrain.create(**result["config"]) == SETTINGS
    assert Pretrain.read(run.folder / "config.yaml") == SETTINGS
    assert json.loads((run.folder / "environment.json").read_text())["versions"]["torch"]


def test_a_folder_with_a_run_is_refused_unless_resumed_or_overwritten(tmp_path):
    create(tmp_path).release()
    with pytest.raises(UserError, match=r"out: .* is not empty \(allowed: .*--resume or --overwrite\)"):
        create(tmp_path)
    create(tmp_path, resume=True).release()
    (tmp_path / "metrics.jsonl").write_text("from before")
    create(tmp_path, overwrite=True).release()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_overwriting_deletes_nothing_but_runs_of_the_same_verb(tmp_path):
    create(tmp_path / "mixed").release()
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds notes\.txt.*nothing was deleted"):
        create(tmp_path / "mixed", overwrite=True)
    foreign = tmp_path / "app"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("my: app")
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    for folder in (foreign, tmp_path / "repository"):
        with pytest.raises(UserError, match="holds no run"):
            create(folder, overwrite=True)
    assert (foreign / "config.yaml").read_text() == "my: app"
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="holds a pretrain, not a study"):
            runs.create(tmp_path / "mixed", SETTINGS, {"verb": "study"}, **{"resume": False, "overwrite": False, **how})


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="out: "):
            create(folder)


def test_a_folder_of_the_users_own_is_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("three years")
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="holds no run"):
            create(tmp_path, **how)
    assert (tmp_path / "thesis.tex").read_text() == "three years"
    with pytest.raises(UserError, match="is a file"):
        create(tmp_path / "thesis.tex")


def test_two_processes_do_not_write_to_one_run(tmp_path):
    run = create(tmp_path)
    with pytest.raises(UserError, match="another process is writing"):
        create(tmp_path, resume=True)
    run.release()
    create(tmp_path, resume=True).release()


def test_what_a_kill_leaves_behind_does_no_harm(tmp_path):
    run = create(tmp_path)
    for step in range(1, 6):
        run.append(step=step, loss=1.0 / step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    (tmp_path / ".result.json.1.part").write_text("{")
    run.release()
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    run = create(tmp_path, resume=True)
    run.rewind(3)
    run.release()
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 2, 3]
    assert not list(tmp_path.rglob("*.part"))


def test_a_process_killed_before_its_config_was_written_can_be_started_again(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".config.yaml.1.part").write_text("data: di")
    create(tmp_path).release()
    assert Pretrain.read(tmp_path / "config.yaml") == SETTINGS
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_fails_to_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        runs.replace(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_resume_with_other_settings_names_the_first_that_differs(tmp_path):
    create(tmp_path).release()
    assert runs.stored_settings(Pretrain, tmp_path, {"data": "digits", "epochs": 200}) == SETTINGS
    with pytest.raises(UserError, match="epochs: 7 differs from 200"):
        runs.stored_settings(Pretrain, tmp_path, {"epochs": 7})
