"""Names from datasets, plans and the command line never leave their folder, wherever they enter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raw_dataset import RawDataset
from tiny import NAME
from training import partial_block, trainer_for
from unlabelled_images import DATA, Tiny

from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.cli.parser import main
from nnunet_mutual.datasets.raw import training_cases
from nnunet_mutual.disk.host_files import require_safe_names
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels.review.preprocessed import data_of

HOSTILE = ["../../../x", "/etc/x", "..", "a/../../b", "..\\..\\x", "C:x", "x\n", "", "x\0", "é" * 200, "\ud800", ".. ."]
UNSAFE = "cannot be used as a file name"
CONTENT: dict[str, Any] = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "T1"}, "file_ending": ".nii"}


def block(**more: Any) -> dict[str, Any]:
    return {"mutual": {"version": 1, "sources": {"a": {"annotated": ["liver"]}}, "cases": {}, **more}}


IN_DATASET_JSON: dict[str, Callable[[str], dict[str, Any]]] = {
    "file_ending": lambda name: {"file_ending": name},
    "case": lambda name: block(cases={name: {"source": "a"}}),
    "modality group": lambda name: block(modality_groups={name: ["T1"]}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", IN_DATASET_JSON)
def test_dataset_json(kind: str, name: str) -> None:
    with pytest.raises(MutualError, match=f"{kind}.*({UNSAFE}|letters and digits)"):
        AnnotationTable.from_dataset_json({**CONTENT, **IN_DATASET_JSON[kind](name)})


IN_SENTENCES: dict[str, Callable[[str], dict[str, Any]]] = {
    "label": lambda name: {"labels": {"background": 0, name: 1}},
    "channel": lambda name: {"channel_names": {"0": name}},
    "source": lambda name: block(sources={name: {"annotated": []}}),
    "patient": lambda name: block(cases={"c": {"source": "a", "patient": name}}),
}


@pytest.mark.parametrize("name", ["liver\nNo errors. Next: sh evil", "\x1b[2Jliver", "\u202eliver", "a\rb", "\udce9"])
@pytest.mark.parametrize("kind", IN_SENTENCES)
def test_what_is_printed_forges_no_line(kind: str, name: str) -> None:
    with pytest.raises(MutualError, match=f"{kind}.*is no text of one line") as caught:
        AnnotationTable.from_dataset_json({**CONTENT, **IN_SENTENCES[kind](name)})
    assert str(caught.value).isprintable()


def test_names_in_any_language_are_fine() -> None:
    labels = {"background": 0, "Leber/肝 (links)": 1, "ré\xa0nal": 2}
    assert AnnotationTable.from_dataset_json({**CONTENT, "labels": labels}).labels == ("Leber/肝 (links)", "ré\xa0nal")


@pytest.mark.parametrize("name", HOSTILE)
def test_cases_that_dataset_json_lists(name: str, tmp_path: Path) -> None:
    content = {**CONTENT, "dataset": {name: {"images": ["imagesTr/a.nii"], "label": "labelsTr/a.nii"}}}
    with pytest.raises(MutualError, match=UNSAFE):
        training_cases(tmp_path, content)


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    content = {**CONTENT, "dataset": {"case_1": {"images": ["/data/a.nii"], "label": "../other/labelsTr/a.nii"}}}
    assert training_cases(tmp_path, content)[0]["case_1"].images[0] == Path("/data/a.nii")


PLANS: dict[str, Callable[[str], dict[str, Any]]] = {
    "dataset_name": lambda name: {"dataset_name": name, "configurations": {}},
    "plans_name": lambda name: {"plans_name": name, "configurations": {}},
    "configuration": lambda name: {"configurations": {name: {}}},
    "data_identifier": lambda name: {"configurations": {"2d": {"data_identifier": name}}},
    "previous_stage": lambda name: {"configurations": {"2d": {"previous_stage": name}}},
    "next_stage": lambda name: {"configurations": {"2d": {"next_stage": name}}},
    "one of the next stages": lambda name: {"configurations": {"2d": {"next_stage": ["3d", name]}}},
}


@pytest.mark.parametrize("name", [*HOSTILE, 3])
@pytest.mark.parametrize("kind", PLANS)
def test_plans(kind: str, name: Any) -> None:
    with pytest.raises(MutualError, match=f"in plans.json|of plans.json.*{UNSAFE}"):
        require_safe_names(PLANS[kind](name), "plans.json")


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..\\x"])
def test_simulate_writes_nothing_outside(nnunet_folders: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    toy = RawDataset(nnunet_folders, {f"toy_{i:03d}": ["liver"] for i in range(3)})
    files = {f"toy_{i:03d}": (f"imagesTr/toy_{i:03d}_0000.nii.gz", f"labelsTr/toy_{i:03d}.nii.gz") for i in range(3)}
    files = {name if key == "toy_001" else key: paths for key, paths in files.items()}
    toy.save(dataset={key: {"images": [image], "label": label} for key, (image, label) in files.items()})
    before = sorted(nnunet_folders.rglob("*"))
    assert main(["simulate", toy.folder.name, "Dataset778_Simulated", "--labelled", "2"]) == 2
    assert f"{toy.json}" in (shown := capsys.readouterr().err) and repr(name) in shown and UNSAFE in shown
    assert sorted(nnunet_folders.rglob("*")) == before


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"), images=1, block=partial_block())


@pytest.fixture()
def folders(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tiny.root / name))
    return tiny


@pytest.fixture()
def hostile_plans(folders: Tiny) -> Any:
    """Plans whose preprocessed data are a folder beside the dataset, which holds something dear."""
    file = folders.preprocessed / "nnUNetPlans.json"
    before = file.read_bytes()
    precious = folders.preprocessed.parent / "precious"
    precious.mkdir(exist_ok=True)
    (precious / "mine.b2nd").write_text("mine")
    (precious / "mine.pkl").write_text("mine")
    folders.change_plans(data_identifier="../../precious")
    yield folders
    file.write_bytes(before)
    assert sorted(path.name for path in precious.iterdir()) == ["mine.b2nd", "mine.pkl"]


def test_data_identifier_steers_no_deletion(hostile_plans: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert hostile_plans.run("-c", "3d_fullres") == 2
    assert '"data_identifier of 3d_fullres" in ' in (shown := capsys.readouterr().err) and UNSAFE in shown
    with pytest.raises(MutualError, match=UNSAFE):
        data_of(hostile_plans.preprocessed)
    with pytest.raises(MutualError, match=UNSAFE):
        trainer_for(hostile_plans.preprocessed)
    assert main(["plan", "-d", "901", "--name", "x", "--set", "num_epochs=2"]) == 2


def test_a_link_steers_no_deletion(folders: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    precious = folders.root / "precious"
    (precious / DATA).mkdir(parents=True)
    (precious / DATA / "mine").write_text("mine")
    link = folders.preprocessed / "unlabelled"
    link.symlink_to(precious)
    try:
        assert folders.run("-c", "3d_fullres") == 2
    finally:
        link.unlink()
    assert f"leads out of {folders.preprocessed}" in capsys.readouterr().err
    assert (precious / DATA / "mine").read_text() == "mine"


def test_a_split_names_cases_of_the_dataset(folders: Tiny) -> None:
    file = folders.preprocessed / "splits_final.json"
    file.write_text(json.dumps([{"train": ["case_00"], "val": ["../../case_01"]}]))
    try:
        with pytest.raises(
            MutualError, match=r"splits_final.json names 1 case.s. that are not preprocessed \(../../case_01"
        ):
            trainer_for(folders.preprocessed).do_split()
    finally:
        file.unlink()


@pytest.mark.parametrize(
    "words",
    [
        ["export", "901", "../x", "-tr", "PartialTrainer", "-f", "0"],
        ["export", "901", "3d_fullres", "-tr", "PartialTrainer", "-f", "0", "../0"],
        ["export", "901", "3d_fullres", "-tr", "PartialTrainer", "-f", "0", "-chk", "../../x.pth"],
        ["pseudo_label", "901", "3d_fullres", "0", "-tr", "../x"],
        ["review", "901", "3d_fullres", "/0", "-tr", "PartialTrainer", "-o", "x"],
        ["report", "901", "3d_fullres", "-tr", "PartialTrainer", "-f", "0\\x"],
        ["preprocess_unlabelled", "-d", "901", "-p", "../nnUNetPlans"],
        ["plan", "-d", "901", "-p", "", "--name", "x", "--set", "num_epochs=2"],
    ],
)
def test_words_of_commands(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert UNSAFE in shown or "a fold is a number such as 0, or 'all'" in shown


@pytest.mark.parametrize("name", ["../x", "..", "/"])
def test_datasets(folders: Tiny, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["check", name]) == 2
    assert f"no dataset is called {name!r}" in capsys.readouterr().err
    assert NAME in folders.preprocessed.name
