"""Nothing outside a folder goes in or out by a name or a link that the folder's author chose."""

import os
import stat
from pathlib import Path

import pytest

from hf_progressive import storage
from hf_progressive.config import LadderConfig, StudyConfig, strict_yaml
from hf_progressive.evaluation.core.bundle import load_bundle
from hf_progressive.hub.fetch import fetch_files
from hf_progressive.records.ladder import read_run

OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "..", "", ".", "a\\..\\..\\x", "C:\\x", "\\\\host\\x", "a\nb", "a\x00b"]
OUTSIDE += ["a\x1b[31m", "a\u202eb"]


@pytest.mark.parametrize("name", [*OUTSIDE, 3, None, ["a"], {"a": 1}], ids=repr)
def test_a_name_that_leads_out_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="which is no file inside the folder") as caught:
        storage.require_inside_name(name, "manifest.json")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "x").write_text("secret")
    storage.write_json(tmp_path / "inner/manifest.json", {"files": {name: {"size": 6}}})
    with pytest.raises(ValueError, match=r"manifest\.json: names"):
        storage.check_manifest(tmp_path / "inner")


@pytest.mark.parametrize("name", ["model.safetensors", "phi/fisher.safetensors", "übung.txt", ".eval_results/x.yaml"])
def test_names_within_pass(name: str) -> None:
    assert storage.require_inside_name(name, "here") == name


def test_a_link_that_leaves_is_refused_and_one_that_stays_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "own").write_text("own")
    (folder / "inward").symlink_to("own")
    (folder / "outward").symlink_to("../secret")
    storage.require_own_file(folder / "inward", folder)
    (tmp_path / "other_name").symlink_to(folder)
    storage.require_own_file(tmp_path / "other_name" / "own", tmp_path / "other_name")
    with pytest.raises(ValueError, match="outward: is a link to .*secret, outside its checkpoint; put a copy"):
        storage.require_own_file(folder / "outward", folder)
    storage.write_json(folder / "manifest.json", {"files": {"outward": {"size": 6}}})
    with pytest.raises(ValueError, match="outward: is a link"):
        storage.check_manifest(folder)


def test_snapshots_of_the_hub_s_cache_are_links_to_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--o--x/snapshots/abc", tmp_path / "models--o--x/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / ("0" * 64)).write_text("{}")
    (snapshot / "config.json").symlink_to(f"../../blobs/{'0' * 64}")
    storage.require_own_file(snapshot / "config.json", snapshot)
    (blobs / "readable").write_text("{}")
    (snapshot / "other.json").symlink_to("../../blobs/readable")
    with pytest.raises(ValueError, match="outside its checkpoint"):
        storage.require_own_file(snapshot / "other.json", snapshot)


@pytest.mark.parametrize("name", ["a/b", "../a", "/a", ".hidden", "a\\b", "", "a\nb", "a\x1b[1m"])
def test_the_name_of_a_ladder_or_a_study_is_one_folder(name: str) -> None:
    ladder = {"rungs": ["d2", "d3"]}
    for cls, given in ((LadderConfig, ladder), (StudyConfig, {"ladder": ladder, "recipes": [{"name": "x"}]})):
        with pytest.raises(ValueError, match="name") as caught:
            strict_yaml.build(cls, {**given, "name": name})
        assert "\n" not in str(caught.value)


def test_a_run_s_rungs_are_folders_of_the_run(tmp_path: Path) -> None:
    record = {"format": 1, "name": "x", "family": "gpt2", "seed": 0, "rungs": ["../a"], "config": {"data": {}}}
    storage.write_json(tmp_path / "ladder.json", record)
    with pytest.raises(ValueError, match=r"ladder\.json: rungs: names '\.\./a', which is no file inside"):
        read_run(tmp_path)


def test_a_bundle_s_data_are_in_the_bundle(tmp_path: Path) -> None:
    task = "{label: x, dataset_uri: ../../secret, num_fewshot: [0], icl_task_type: schema}"
    (tmp_path / "core.yaml").write_text(f"icl_tasks:\n- {task}\n")
    with pytest.raises(ValueError, match=r"core\.yaml: task 1: dataset_uri: names '\.\./\.\./secret'"):
        load_bundle(tmp_path)


def test_a_revision_is_no_path() -> None:
    with pytest.raises(ValueError, match=r"o/x: its revision: names '\.\./\.\./refs'"):
        fetch_files("o/x", ["config.json"], revision="../../refs")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_what_a_writer_kept_to_itself_gets_the_permissions_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with storage.atomic_folder(tmp_path / "folder") as folder:
            (folder / "weights").write_text("1")
            (folder / "weights").chmod(0o600)
        with storage.atomic_file(tmp_path / "file") as file:
            file.write_text("1")
            file.chmod(0o600)
    finally:
        os.umask(before)
    for path in (tmp_path / "folder/weights", tmp_path / "file"):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["manifest.json", "weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
