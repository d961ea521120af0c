"""The facts about nnU-Net that the package relies on, for every supported nnunetv2."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from nnunetv2.inference import export_prediction
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run import run_training
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_mutual.trainers import PartialTrainer
from nnunet_mutual.trainers.base import MutualTrainer

pytestmark = pytest.mark.host


def test_every_hook_that_we_override_exists_with_its_arguments() -> None:
    hooks = [
        name for name, item in vars(MutualTrainer).items() if inspect.isfunction(item) and hasattr(nnUNetTrainer, name)
    ]
    assert {"train_step", "run_training", "save_checkpoint", "load_checkpoint", "do_split", "initialize"} <= set(hooks)
    for name in hooks:
        stock, ours = (list(inspect.signature(getattr(c, name)).parameters) for c in (nnUNetTrainer, MutualTrainer))
        if name != "load_checkpoint":  # its parameter was renamed after 2.8.1; it is passed by position
            assert stock == ours, name


def test_every_hook_in_our_docstrings_is_one() -> None:
    said = [
        n for n, f in vars(MutualTrainer).items() if inspect.isfunction(f) and "(nnU-Net's hook)" in (f.__doc__ or "")
    ]
    assert said
    assert [name for name in said if not hasattr(nnUNetTrainer, name)] == []


def test_init_may_have_only_nnunets_arguments() -> None:
    for trainer in (MutualTrainer, PartialTrainer):
        assert list(inspect.signature(trainer).parameters) == list(inspect.signature(nnUNetTrainer).parameters)


def test_stock_reads_these_checkpoint_keys() -> None:
    source = inspect.getsource(nnUNetTrainer.save_checkpoint)
    for key in ("network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch"):
        assert f"'{key}'" in source
    prediction = inspect.getsource(nnUNetPredictor.initialize_from_trained_model_folder)
    for key in ("trainer_name", "init_args", "inference_allowed_mirroring_axes", "network_weights"):
        assert key in prediction


def test_training_starts_from_a_dict_that_says_whether_it_continues() -> None:
    assert 'plans["continue_training"]' in inspect.getsource(run_training.get_trainer_from_args)
    assert "load_checkpoint(expected_checkpoint_file)" in inspect.getsource(run_training.maybe_load_checkpoint)


def test_the_loader_draws_cases_by_probability() -> None:
    assert "sampling_probabilities" in inspect.signature(nnUNetDataLoader).parameters
    loader = DataLoader(["a", "b"], 4, 1, None, True, False, True, [0.0, 1.0])
    loader.indices = ["a", "b"]
    assert list(loader.get_indices()) == ["b"] * 4


def test_the_loader_says_which_cases_a_batch_holds() -> None:
    assert "'keys': selected_keys" in inspect.getsource(nnUNetDataLoader.generate_train_batch)


@pytest.mark.parametrize(
    ("labels", "regions"), [({"a": 1}, False), ({"a": [1]}, False), ({"a": [1, 2]}, True), ({"a": [1, 1]}, True)]
)
def test_what_makes_a_region_dataset(labels: dict, regions: bool) -> None:
    order = [1] if regions else None
    assert LabelManager({"background": 0, **labels}, order).has_regions is regions


def test_the_ignore_label_is_the_last_region_channel() -> None:
    source = inspect.getsource(nnUNetTrainer.get_training_transforms)
    assert "list(regions) + [ignore_label] if ignore_label is not None" in source


def test_plans_merge_shallowly() -> None:
    base, child = {"mutual": {"num_epochs": 5, "seed": 1}}, {"inherits_from": "base", "mutual": {"seed": 2}}
    manager = PlansManager({"configurations": {"base": base, "child": child}})
    merged = manager._internal_resolve_configuration_inheritance("child")
    assert merged["mutual"] == {"seed": 2}, "nnU-Net merges deeply now: config.merged_block may be simplified"


def test_the_moving_average_of_the_logger_keeps_a_nan(tmp_path: object) -> None:
    logger = MetaLogger(str(tmp_path), False)
    logger.log("mean_fg_dice", float("nan"), 0)
    logger.log("mean_fg_dice", 0.5, 1)
    assert np.isnan(logger.get_value("ema_fg_dice", 1))


def test_export_functions_take_these_arguments_in_this_order() -> None:
    first = list(inspect.signature(export_prediction.export_prediction_from_logits).parameters)[:7]
    assert first[0] == "predicted_array_or_file" and first[1] == "properties_dict"
    assert first[2:6] == [
        "configuration_manager",
        "plans_manager",
        "dataset_json_dict_or_file",
        "output_file_truncated",
    ]
    convert = export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape
    assert list(inspect.signature(convert).parameters)[1:5] == [
        "plans_manager",
        "configuration_manager",
        "label_manager",
        "properties_dict",
    ]
    resample = list(inspect.signature(export_prediction.resample_and_save).parameters)
    assert resample[1:7] == [
        "target_shape",
        "output_file",
        "plans_manager",
        "configuration_manager",
        "properties_dict",
        "dataset_json_dict_or_file",
    ]


def test_summary_keys_of_labels_and_regions() -> None:
    assert [label_or_region_to_key(key) for key in (1, (1, 2), (3,))] == ["1", "(1, 2)", "(3,)"]


def test_a_network_without_torch_compile_on_the_cpu() -> None:
    trainer = object.__new__(nnUNetTrainer)
    trainer.device = torch.device("cpu")
    trainer.local_rank = 1
    assert nnUNetTrainer._do_i_compile(trainer) is False
