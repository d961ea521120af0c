"""From predictions to stored pseudo labels, with networks that say what the test wants."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from partial_oracle import dataset
from torch import Tensor
from training import SHORT, partial_block, trainer_for

from nnunet_mutual.annotation.cases import Case
from nnunet_mutual.annotation.codes import UNDECIDED, PseudoCodes
from nnunet_mutual.annotation.table import AnnotationTable
from nnunet_mutual.batches.decisions import Decision
from nnunet_mutual.batches.pseudo import PseudoDataset, PseudoStore
from nnunet_mutual.errors import MutualError
from nnunet_mutual.pseudo_labels import generate, opinions
from nnunet_mutual.pseudo_labels.filter import FilterSettings
from nnunet_mutual.pseudo_labels.generate import (
    Experts,
    in_voxels,
    make_pseudo_labels,
    true_volumes,
    voxel_volume,
)
from nnunet_mutual.pseudo_labels.labeller import PseudoLabeller
from nnunet_mutual.pseudo_labels.opinions import TwoOpinions
from nnunet_mutual.trainers import PartialTrainer

LABELS = {"liver": 1, "spleen": 2, "kidney": 3}
CONTENT = dataset(LABELS, {"l": {"annotated": ["liver"]}, "s": {"annotated": ["spleen"]}, "none": {"annotated": []}})
REGIONS = dataset({"whole": [1, 2], "core": [2]}, {"w": {"annotated": ["whole"]}})


class Says:
    """A predictor whose probabilities lie in the image: channel c of the image is the probability of output c.

    Args:
        second: added to the probability of output 2 of the mirrored images, which it tells apart then.
    """

    def __init__(self, regions: bool = False, second: float = 0.0):
        self.regions = regions
        self.second = second
        self.calls = 0

    def planes(self, image: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        self.calls += 1
        said = [image]
        if self.second:
            change = torch.zeros_like(image)
            change[2], change[0] = self.second, -self.second
            said.append(image + change)
        for i in range(image.shape[1]):  # one by one
            shown = [p[:, i : i + 1] for p in said]
            logits = [torch.logit(p, eps=1e-6) if self.regions else torch.log(p.clamp_min(1e-6)) for p in shown]
            yield slice(i, i + 1), logits


def labeller(content: dict[str, Any], predictors: list[Any], learnt: list[set[str]], **options: Any) -> PseudoLabeller:
    table = AnnotationTable.from_dataset_json(content)
    labels: Any = SimpleNamespace(ignore_label=None)
    mirror = options.pop("mirror", None)
    settings = FilterSettings(**{"label": False, **options})
    return PseudoLabeller(table, labels, mirror, predictors, [frozenset(own) for own in learnt], settings)


def labeller_of(trainer: Any, predictor: Any) -> PseudoLabeller:
    window, learnt = trainer.window, [frozenset(["liver"])]
    return PseudoLabeller(trainer.table, window.labels, window.mirror_axes, [predictor], learnt, FilterSettings())


def flat(*probabilities: list[float]) -> Tensor:
    """An image (C, 1, 1, n) of probabilities per voxel: one list per output but the background, which gets the rest."""
    labels = torch.tensor(probabilities)
    return torch.cat([1 - labels.sum(0, keepdim=True), labels])[:, None, None]


def labelled(made_by: PseudoLabeller, case: Case, image: Tensor, *drawn: Any) -> Any:
    """Codes, candidates and decisions of a case."""
    return made_by.judge(case, made_by.predict(case, image), *drawn)


def made(made_by: PseudoLabeller, key: str, image: Tensor, drawn: list[int]) -> tuple[list[int], list[Decision]]:
    values = np.array(drawn, np.int16)[None, None]
    codes, _, decisions = labelled(made_by, made_by.table.case(key), image, values, 1.0)
    np.testing.assert_array_equal(made_by.codes.true_values(codes), values)
    return made_by.codes.decided_values(codes).ravel().tolist(), decisions


def test_the_mean_over_the_networks_that_learnt_a_label() -> None:
    #            sure   not sure  background  liver was drawn
    image = flat([0.05, 0.0, 0.0, 0.9], [0.9, 0.5, 0.1, 0.05], [0.0, 0.0, 0.1, 0.0])
    both = labeller(CONTENT, [Says(), Says()], [{"spleen"}, {"spleen", "kidney"}])
    decided, decisions = made(both, "l", image, [0, 0, 0, 1])
    assert decided == [2, UNDECIDED, 0, UNDECIDED]
    assert [(d.label, d.networks, d.volume_ml, d.agreement) for d in decisions] == [
        ("spleen", "0+1", 1.0, 1.0),
        ("kidney", "1", 0.0, None),
    ]
    assert decisions[0].decided_share == pytest.approx(2 / 3), "three voxels were open"


def test_two_networks_that_are_sure_of_different_labels_decide_nothing() -> None:
    class Other(Says):
        def planes(self, image: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
            return super().planes(image[[0, 1, 3, 2]])

    image = flat([0.0, 0.0], [0.9, 0.1], [0.0, 0.8])
    decided, _ = made(labeller(CONTENT, [Says(), Other()], [{"spleen"}, {"kidney"}]), "l", image, [0, 0])
    assert decided == [UNDECIDED, 0], "the second network takes the first one's spleen for a kidney"


def test_mirrored_halves_give_the_second_opinion() -> None:
    image = flat([0.0] * 4, [0.9, 0.9, 0.35, 0.0], [0.0] * 4)
    says = Says(second=0.2)  # mirrored, the third voxel is spleen as well
    decided, decisions = made(labeller(CONTENT, [says], [{"spleen"}], mirror=(0, 1, 2)), "l", image, [0] * 4)
    assert says.calls == 1
    assert decisions[0].agreement == pytest.approx(2 * 2 / (2 + 3))
    assert decided[0] == 2 and decided[2] == UNDECIDED


def test_a_rejected_label_stays_possible() -> None:
    image = flat([0.0, 0.0, 0.0], [0.9, 0.0, 0.0], [0.0, 0.9, 0.0])
    strict = labeller(CONTENT, [Says()], [{"spleen", "kidney"}], label=True)
    strict.true_volumes = {"spleen": [1.0, 1.0, 1.0], "kidney": [50.0, 51.0, 49.0]}
    decided, decisions = made(strict, "l", image, [0, 0, 0])
    assert {d.label: d.accepted for d in decisions} == {"spleen": True, "kidney": False}
    assert decided == [2, 0, 0], "none of the accepted labels; the tables leave the kidney open there"


def test_what_was_drawn_in_part_is_completed_and_never_removed() -> None:
    content = dataset(LABELS, {"some": {"annotated": ["liver"], "incomplete": ["spleen"]}})
    #             drawn and not found, found beside it, found in a drawn liver, nothing found
    image = flat([0.0, 0.0, 0.1, 0.0], [0.0, 0.9, 0.9, 0.1], [0.0, 0.0, 0.0, 0.0])
    judging = labeller(content, [Says()], [{"spleen"}], label=True)
    judging.true_volumes = {"spleen": [2.0, 2.0, 2.0]}
    decided, decisions = made(judging, "some", image, [2, 0, 1, 0])
    assert decided == [UNDECIDED, 2, UNDECIDED, 0], "a drawn voxel is what it was drawn as"
    assert [(d.label, d.accepted, d.volume_ml) for d in decisions] == [("spleen", True, 2.0)], "with the drawn one"


def test_of_a_rejected_region_only_the_drawn_part_counts() -> None:
    content = dataset({"whole": [1, 2], "core": [2]}, {"w": {"annotated": ["whole"], "incomplete": ["core"]}})
    image = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0.1, 0.9, 0.1, 0.5]])[:, None, None]
    for usual, expected in ((2.0, [UNDECIDED, 2, 1, UNDECIDED]), (90.0, [UNDECIDED, UNDECIDED, 1, UNDECIDED])):
        judging = labeller(content, [Says(regions=True)], [{"whole", "core"}], label=True)
        judging.true_volumes = {"core": [usual] * 3}
        decided, decisions = made(judging, "w", image, [2, 1, 1, 1])
        assert decided == expected and decisions[0].accepted == (usual == 2.0) and decisions[0].volume_ml == 2.0


def test_candidates_are_the_likelier_values_whatever_the_filter_says() -> None:
    image = flat([0.0, 0.0, 0.0, 0.0], [0.9, 0.6, 0.4, 0.0], [0.0, 0.0, 0.0, 0.9])
    strict = labeller(CONTENT, [Says()], [{"spleen", "kidney"}], label=True)
    strict.true_volumes = {"spleen": [50.0, 51.0, 49.0], "kidney": [50.0, 51.0, 49.0]}
    drawn = np.array([[[0, 0, 0, 1]]], np.int16)
    codes, candidates, decisions = labelled(strict, strict.table.case("l"), image, drawn, 1.0)
    assert not any(decision.accepted for decision in decisions)
    assert not np.isin(strict.codes.decided_values(codes), (2, 3)).any()
    assert candidates.ravel().tolist() == [2, 2, 0, UNDECIDED], "a drawn liver leaves nothing open"


def test_unlabelled_cases_get_every_label() -> None:
    image = flat([0.9, 0.0, 0.0, 0.0], [0.0, 0.9, 0.0, 0.0], [0.0, 0.0, 0.9, 0.0])
    decided, decisions = made(labeller(CONTENT, [Says()], [set(LABELS)]), "none", image, [0] * 4)
    assert decided == [1, 2, 3, 0] and {d.label for d in decisions} == set(LABELS)


def test_small_pieces_of_single_labels() -> None:
    content = {**CONTENT, "mutual": {**CONTENT["mutual"], "labels": {"spleen": {"single": True}}}}
    spleen = [0.9] * 20 + [0.0] + [0.9] + [0.0] * 2
    image = flat([0.0] * 24, spleen, [0.0] * 24)
    decided, _ = made(labeller(content, [Says()], [{"spleen"}]), "l", image, [0] * 24)
    assert decided == [2] * 20 + [0, UNDECIDED, 0, 0]


def test_regions() -> None:
    image = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0.9, 0.1, 0.5, 0.9]])[:, None, None]
    decided, _ = made(labeller(REGIONS, [Says(regions=True)], [{"core"}]), "w", image, [1, 1, 1, 0])
    assert decided == [2, 1, UNDECIDED, UNDECIDED], "outside of the drawn whole there is no core to decide on"


def test_nobody_has_learnt_a_region() -> None:
    content = dataset({"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, {"w": {"annotated": ["whole"]}})
    image = torch.tensor([[0.9, 0.9], [0.9, 0.1], [0.1, 0.1]])[:, None, None]
    decided, decisions = made(labeller(content, [Says(regions=True)], [{"core"}]), "w", image, [1, 1])
    assert [d.label for d in decisions] == ["core"]
    assert decided == [2, 1], "of the enhancing part, about which nothing is accepted, the integers say nothing"


def both_of(predictor: Any, image: Tensor) -> list[Tensor]:
    """The logits of each opinion, as float32, of planes that come once each and in order."""
    planes, logits = zip(*predictor.planes(image), strict=True)
    assert [i for own in planes for i in range(own.start, own.stop)] == list(range(image.shape[1]))
    return [torch.cat(own, 1).float() for own in zip(*logits, strict=True)]


@pytest.mark.parametrize(("configuration", "patch"), [("3d_fullres", (16, 16, 16)), ("2d", (16, 16))])
def test_the_halves_are_nnunets_mirroring(nnunet_folders: Path, configuration: str, patch: tuple[int, ...]) -> None:
    preprocessed = tiny.make_dataset(
        nnunet_folders, block=partial_block(), settings=SHORT, configurations=(configuration,)
    )
    trainer = trainer_for(preprocessed, PartialTrainer, configuration)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = tuple(range(len(patch)))
    images = [
        torch.randn(1, *size, generator=torch.Generator().manual_seed(0)) for size in ((45, 20, 16), (10, 13, 35))
    ]
    with (
        trainer.window.around(trainer.network, mirroring=True, kind=TwoOpinions) as both,
        trainer.window.around(trainer.network, mirroring=False) as alone,
        trainer.window.around(trainer.network, mirroring=True) as stock,
    ):
        for image in images:  # several windows in each direction, and smaller than a window
            halves = both_of(both, image)
            number = 2 ** len(patch)
            mean = (halves[0] + (number - 1) * halves[1]) / number
            expected = stock.predict_sliding_window_return_logits(image).float()
            # nnU-Net weights and sums in float16, in which the corners of its Gaussian are all but 0.
            inner = (slice(None), *[slice(4, -4)] * 3)
            torch.testing.assert_close(mean[inner], expected[inner], atol=5e-3, rtol=5e-3)
            assert torch.equal(halves[0], alone.predict_sliding_window_return_logits(image).float())
            assert not torch.allclose(halves[0], halves[1])
    assert isinstance(stock, nnUNetPredictor)
    assert trainer.network.decoder.deep_supervision, "as before"


def test_without_axes_to_mirror_there_is_one_opinion(nnunet_folders: Path) -> None:
    trainer = trainer_for(tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT), PartialTrainer)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = None
    image = torch.randn(1, *(16,) * 3, generator=torch.Generator().manual_seed(0))
    with (
        trainer.window.around(trainer.network, mirroring=True, kind=TwoOpinions) as own,
        trainer.window.around(trainer.network, mirroring=True) as stock,
    ):
        (found,) = both_of(own, image)
        assert torch.equal(found, stock.predict_sliding_window_return_logits(image).float())
        trainer.network.decoder.seg_layers[-1].bias.data.fill_(1e6)
        with pytest.raises(MutualError, match="beyond those of float16"):
            both_of(own, image)


def most_bytes(call: Callable[[], Any]) -> int:
    """The most memory that tensors take at a time, what the call returns included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        found = call()
    del found
    results: Any = profile.profiler
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


def test_two_opinions_take_no_more_memory_than_one_prediction_and_a_label_map(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opinions, "SLAB", 2)  # of a patch of 16, as 16 of 128
    trainer = trainer_for(tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT), PartialTrainer)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0,)
    image = torch.randn(1, 96, 16, 16, generator=torch.Generator().manual_seed(0))
    label_map = 2 * image[0].numel()  # int16
    with (
        trainer.window.around(trainer.network, mirroring=True, kind=TwoOpinions) as both,
        trainer.window.around(trainer.network, mirroring=True) as stock,
    ):
        own, names = labeller_of(trainer, both), list(trainer.table.labels)  # of an image of which nothing is drawn
        own.learnt = [frozenset(names)]

        def predict() -> Tensor:
            logits = stock.predict_sliding_window_return_logits(image)
            return trainer.label_manager.convert_logits_to_segmentation(logits)

        asked, predicted = most_bytes(lambda: own._predict(names, image)), most_bytes(predict)
    assert asked <= predicted + label_map


def test_stored_cases(nnunet_folders: Path) -> None:
    preprocessed = tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT)
    trainer = trainer_for(preprocessed, PartialTrainer)
    trainer.initialize()
    training, _ = trainer.do_split()
    store = PseudoStore(nnunet_folders / "pseudo")
    settings = FilterSettings(label=False, voxel=False)
    networks, learnt = [trainer.network], [frozenset(["liver", "spleen"])]
    decisions = make_pseudo_labels(trainer.window, trainer.fold_cases, store, Experts(networks, learnt, settings))
    assert {(d.case, d.label) for d in decisions} == {
        (key, label) for key in training for label in learnt[0] - trainer.table.case(key).annotated
    }
    dataset_of = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(training))
    codes = PseudoCodes.from_table(trainer.table)
    accepted = store.accepted(training)
    for key in training:
        stored, drawn = np.asarray(store.codes(key)[:]), np.asarray(dataset_of.load_case(key)[1][:])
        np.testing.assert_array_equal(codes.true_values(stored), drawn)
        decided = codes.decided_values(stored)
        merged = np.where(decided == UNDECIDED, drawn, decided)
        names = trainer.table.case(key).annotated | accepted[key]
        for label, value in tiny.PLAIN.items():
            if label == "background":
                continue
            places = store.locations(key)[value]
            assert (len(places) > 0) == bool(label in names and (merged == value).any())
            assert all(merged[tuple(place)] == value for place in places)
    data: Any = pickle.loads(pickle.dumps(PseudoDataset(dataset_of, store)))
    assert data.identifiers == sorted(training)
    np.testing.assert_array_equal(np.asarray(data[training[0]][1][:]), np.asarray(store.codes(training[0])[:]))

    assert store.claim({"weights": "others"}), "of other networks: thrown away"
    assert not any(store.has(key) for key in training)
    again = make_pseudo_labels(trainer.window, trainer.fold_cases, store, Experts(networks, learnt, settings))
    assert again == decisions


class Waiting(Says):
    """A predictor that ends only when the next image is read and the last case is written, as far as there are any."""

    def __init__(self, reads: list[threading.Event], writes: list[threading.Event]):
        super().__init__()
        self.reads, self.writes = reads, writes

    def planes(self, image: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        for event in [*self.reads[self.calls + 1 : self.calls + 2], *self.writes[max(0, self.calls - 1) : self.calls]]:
            assert event.wait(60), "nothing happened while the networks were asked"
        self.calls += 1
        said = torch.stack([torch.full(image.shape[1:], value) for value in (0.0, -5.0, 5.0, -5.0)])
        yield slice(None), [said]


def test_files_are_read_and_written_while_networks_are_asked(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT), PartialTrainer)
    dataset = nnUNetDatasetBlosc2(trainer.preprocessed_dataset_folder)
    keys = [key for key in dataset.identifiers if "spleen" not in trainer.table.case(key).annotated][:3]
    assert len(keys) == 3
    reads, writes = ([threading.Event() for _ in keys] for _ in range(2))
    store = PseudoStore(nnunet_folders / "store")
    store.claim({})
    read, write = generate._read_image, store.write

    def reading(dataset: Any, key: str) -> Tensor:
        found = read(dataset, key)
        reads[keys.index(key)].set()
        return found

    def writing(key: str, *arguments: Any, **options: Any) -> None:
        write(key, *arguments, **options)
        writes[keys.index(key)].set()

    monkeypatch.setattr(generate, "_read_image", reading)
    monkeypatch.setattr(store, "write", writing)
    made_by = PseudoLabeller(
        trainer.table, trainer.window.labels, None, [Waiting(reads, writes)], [frozenset(["spleen"])], FilterSettings()
    )
    assert list(generate.label_cases(made_by, dataset, store, keys)) == keys
    assert all(store.has(key) for key in keys)


def test_a_case_that_cannot_be_written_ends_it(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(tiny.make_dataset(nnunet_folders, block=partial_block(), settings=SHORT), PartialTrainer)
    dataset = nnUNetDatasetBlosc2(trainer.preprocessed_dataset_folder)
    keys = [key for key in dataset.identifiers if "spleen" not in trainer.table.case(key).annotated][:2]
    store = PseudoStore(nnunet_folders / "store")

    def full(*arguments: Any, **options: Any) -> None:
        raise MutualError("the disk is full")

    monkeypatch.setattr(store, "write", full)
    made_by = PseudoLabeller(
        trainer.table, trainer.window.labels, None, [Waiting([], [])], [frozenset(["spleen"])], FilterSettings()
    )
    with pytest.raises(MutualError, match="the disk is full"):
        list(generate.label_cases(made_by, dataset, store, keys))


def test_a_case_is_there_when_all_of_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PseudoStore(tmp_path / "pseudo")
    store.claim({"made": "by"})
    codes = np.zeros((1, 3, 4, 5), np.int16)
    decision = Decision("case", "a", "liver", True, "plausible: yes", 1.0, 0.9, None, 0.5, "0")

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("nnunet_mutual.batches.pseudo.write_json", broken)
        with pytest.raises(OSError, match="disk full"):
            store.write("case", codes, {1: np.zeros((1, 4), int), (1, 2): []}, [decision])
    assert not store.has("case")
    store.write("case", codes, {1: np.zeros((1, 4), int), (1, 2): []}, [decision])
    assert store.has("case") and store.accepted(["case", "other"]) == {"case": frozenset({"liver"})}
    assert {key: value.shape for key, value in store.locations("case").items()} == {1: (1, 4), (1, 2): (0,)}
    assert not list(store.folder.glob(".*")), "no temporary file is left"
    assert not store.claim({"made": "by"}) and store.has("case")


def test_volumes_are_in_millilitres(tmp_path: Path) -> None:
    properties = {"spacing": [3.0, 0.5, 0.5], "shape_after_cropping_and_before_resampling": (10, 40, 40)}
    assert voxel_volume(properties, (10, 40, 40)) == pytest.approx(0.75e-3)
    assert voxel_volume(properties, (30, 20, 20)) == pytest.approx(0.75e-3 * 16000 / 12000)
    seg = np.zeros((1, 10, 40, 40), np.int16)
    seg[:, :2, :10, :10] = 1
    table = AnnotationTable.from_dataset_json(CONTENT)
    for key in ("l", "s"):
        nnUNetDatasetBlosc2.save_case(seg.astype(np.float32), seg, properties, str(tmp_path / key))
    cases = nnUNetDatasetBlosc2(str(tmp_path), ["l", "s"])
    assert true_volumes(table, cases) == {"liver": [pytest.approx(0.15)], "spleen": [0.0], "kidney": []}


@pytest.mark.parametrize(
    ("spacing", "sized"), [([999.0, 1.0, 1.0], False), ([3.0, 0.5, 0.5], True), ((1, 1, 1), False), ([1, 1, 1], True)]
)
def test_images_without_a_size_have_no_millilitres(spacing: Sequence[float], sized: bool) -> None:
    """The reader's spacing of a 2d image, or of a tif of which nothing says it, is a placeholder."""
    properties = {"spacing": spacing, "shape_after_cropping_and_before_resampling": (1, 1, 6)}  # twice as fine
    strict = labeller(CONTENT, [Says()], [{"spleen", "kidney"}], label=True)
    strict.true_volumes = dict.fromkeys(("spleen", "kidney"), [float(np.prod(spacing)) / 1000] * 3)
    image = flat([0.0] * 3, [0.9, 0.9, 0.0], [0.0] * 3)
    size = voxel_volume(properties, (1, 1, 3))
    drawn = np.zeros((1, 1, 3), np.int16)
    spleen, kidney = labelled(strict, strict.table.case("l"), image, drawn, size, in_voxels(properties))[2]
    assert spleen.volume_ml == (pytest.approx(2 * size) if sized else None) and kidney.volume_ml == 0
    usual = f"{np.prod(spacing) / 1000:.3g} ml" if sized else "1 voxels"
    assert f"usual {usual} in 3" in spleen.reason and (sized or spleen.reason.startswith("too large: 4 voxels"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", r"case.json must be a list"),
        ("[3]", r'"\[0\]" in .*case.json must be an object'),
        ('[{"case": "a"}]', r'case.json has no "source" in "\[0\]"'),
        ("[", r"case.json is not valid JSON"),
    ],
)
def test_damaged_decisions_of_a_case_are_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "case.json").write_text(content)
    with pytest.raises(MutualError, match=sentence):
        PseudoStore(tmp_path).accepted(["case"])
