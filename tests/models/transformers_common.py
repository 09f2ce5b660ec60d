"""
transformers' common model and config tests, for stock, ungrown and grown models.

`test_transformers_common.py` fetches those tests, and runs this file in a process where they are the package
`upstream`. What does not apply is skipped in the table below.
"""

import unittest
from typing import Any

import torch
from model_cases import GROWN, SHAPE, UNITS
from transformers import PreTrainedModel
from upstream import test_modeling_common
from upstream.test_configuration_common import ConfigTester
from upstream.test_modeling_common import ModelTesterMixin

from hf_saddle.models import (
    SaddleDeiTForImageClassification,
    SaddleDeiTForImageClassificationWithTeacher,
    SaddleDeiTModel,
    SaddleViTForImageClassification,
    SaddleViTModel,
)


DEIT = (SaddleDeiTModel, SaddleDeiTForImageClassification, SaddleDeiTForImageClassificationWithTeacher)
VIT = (SaddleViTModel, SaddleViTForImageClassification)

# So that the tests treat the growable classes as the stock classes that they replace.
test_modeling_common.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES = {
    **test_modeling_common.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "saddle_deit": "SaddleDeiTForImageClassification",
    "saddle_vit": "SaddleViTForImageClassification",
}

# Tests that cannot apply, with the reason; the second table is for growable models only.
SKIPPED = {
    "test_model_get_set_embeddings": "the input embedding of an image model is a convolution",
}
SKIPPED_FOR_GROWABLE = {
    "test_model_weights_reload_no_missing_tied_weights": "a checkpoint that lacks the tensors of a layer is refused",
    "test_can_load_ignoring_mismatched_shapes": "another shape raises a ValueError with its name, not a RuntimeError",
    "test_reverse_loading_mapping": "names on disk are those in memory, there is no mapping",
    "test_can_load_from_already_mapped_keys": "names on disk are those in memory, there is no mapping",
}


class ModelTester:
    """Sizes, config and inputs under the names that the common tests look for."""

    batch_size = 2
    num_channels = 3
    is_training = True

    def __init__(self, config_class: type, per_layer_config: dict[int, dict[str, Any]] | None, **config: Any):
        self.config_class = config_class
        self.config_fields = SHAPE | config
        if per_layer_config is not None:
            self.config_fields["per_layer_config"] = per_layer_config
        for name, value in SHAPE.items():
            setattr(self, name, value)
        self.mask_length = (self.image_size // self.patch_size) ** 2
        self.num_masks = self.mask_length // 2
        self.seq_length = self.mask_length + (2 if "deit" in config_class.model_type else 1)

    def get_config(self):
        return self.config_class(**self.config_fields)

    def prepare_config_and_inputs_for_common(self):
        pixels = torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": pixels}


class CommonTests(ModelTesterMixin):
    """The common tests with what every vision model needs of them."""

    config_fields: dict[str, Any] = {}
    per_layer_config: dict[int, dict[str, Any]] | None = None
    test_resize_embeddings = False

    def setUp(self):
        name = self._testMethodName
        reason = SKIPPED.get(name) or (SKIPPED_FOR_GROWABLE.get(name) if "Saddle" in type(self).__name__ else None)
        if reason:
            self.skipTest(reason)
        if "training" in name or "problem_types" in name:
            # The others have no loss.
            heads = [c for c in self.all_model_classes if c.__name__.endswith("ForImageClassification")]
            self.all_model_classes = tuple(heads)
        config_class = self.all_model_classes[0].config_class
        self.model_tester = ModelTester(config_class, self.per_layer_config, **self.config_fields)
        self.config_tester = ConfigTester(
            self, config_class=config_class, has_text_modality=False, hidden_size=37, num_attention_heads=1
        )

    def test_config(self):
        self.config_tester.run_common_tests()


def _add(name: str, classes: tuple[type[PreTrainedModel], ...], **attributes: Any) -> None:
    body = {"all_model_classes": classes, "__module__": __name__, **attributes}
    globals()[name] = type(name, (CommonTests, unittest.TestCase), body)


for _family, _classes in (("DeiT", DEIT), ("ViT", VIT)):
    _add(f"Stock{_family}Test", tuple(model_class.stock_class for model_class in _classes))
    _add(f"Saddle{_family}UngrownTest", _classes)
    for _unit in UNITS if _family == "DeiT" else UNITS[:1]:
        _fields = {"skip_unit": _unit}
        _name = f"Saddle{_family}Grown{_unit.title().replace('_', '')}Test"
        _add(_name, _classes, per_layer_config=GROWN, config_fields=_fields)
