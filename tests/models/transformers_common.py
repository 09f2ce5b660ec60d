"""
transformers' common model and config tests, for the stock, ungrown and grown models of every family.

`test_transformers_common.py` fetches those tests, and runs this file in a process where they are the package
`upstream`. The models are those of the table in `upstream_cases.py`.
"""

import unittest
from typing import Any

import torch
import transformers
from families_cases import grown_shapes, input_kinds
from torch import Tensor
from upstream import test_modeling_common
from upstream.generation.test_utils import GenerationTesterMixin
from upstream.test_configuration_common import ConfigTester
from upstream.test_modeling_common import ModelTesterMixin
from upstream_cases import ROWS, UNITS, VARIANTS, WITHOUT_LOSS

import hf_saddle
from hf_saddle.models import FAMILIES


# So that the tests treat the growable classes as the stock classes that they replace.
_values = test_modeling_common.get_values
test_modeling_common.get_values = lambda names: [name for one in _values(names) for name in (one, f"Saddle{one}")]
test_modeling_common.MODEL_MAPPING_NAMES = {
    **test_modeling_common.MODEL_MAPPING_NAMES,
    **{f"saddle_{kind}": f"Saddle{test_modeling_common.MODEL_MAPPING_NAMES[kind]}" for kind in FAMILIES},
}


class ModelTester:
    """Sizes, config and inputs under the names that the common tests look for."""

    batch_size = 3
    num_channels = 3
    num_choices = 2
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    image_size = 16
    patch_size = 4
    seq_length = 12
    is_training = True

    def __init__(self, config_class: type, fields: dict[str, Any], kind: str, sizes: dict[str, Any]):
        self.config_class, self.fields, self.inputs = config_class, fields, input_kinds[kind]
        for name, value in sizes.items():
            setattr(self, name, value)
        self.mask_length = (self.image_size // self.patch_size) ** 2
        self.num_masks = self.mask_length // 2

    def get_config(self):
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.inputs()


class CommonTests(ModelTesterMixin, GenerationTesterMixin):
    """The common tests with what every family needs of them."""

    fields: dict[str, Any]
    kind: str
    sizes: dict[str, Any]
    unit: str | None
    # Else it depends on the year in the file of a config's class.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        if "training" in self._testMethodName:
            self.all_model_classes = tuple(
                kind for kind in self.all_model_classes if not kind.__name__.endswith(WITHOUT_LOSS)
            )
        config_class, fields = self.all_model_classes[0].config_class, self.fields
        if self.unit is not None:
            stock = self.all_model_classes[0].stock_class
            plain = hf_saddle.growable(stock(stock.config_class(**fields)))
            fields = fields | grown_shapes(plain) | {"skip_unit": self.unit}
        self.model_tester = ModelTester(config_class, fields, self.kind, self.sizes)
        own = {name: value for name, value in fields.items() if name != "num_labels"}
        self.config_tester = ConfigTester(
            self, config_class=config_class, has_text_modality=False, common_properties=list(own), **own
        )

    def _prepare_for_class(self, inputs_dict: dict[str, Tensor], model_class: Any, return_labels: bool = False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        speech = test_modeling_common.get_values(test_modeling_common.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES)
        if return_labels and model_class.__name__ in speech:
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, self.model_tester.seq_length).long()
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()


def _add(row: str, variant: str, unit: str | None) -> None:
    start, ends, fields, kind, sizes = ROWS[row]
    place: Any = transformers if variant == "Stock" else hf_saddle
    classes = tuple(getattr(place, f"{'' if place is transformers else 'Saddle'}{start}{end}") for end in ends.split())
    body = {"all_model_classes": classes, "fields": fields, "kind": kind, "sizes": sizes, "unit": unit}
    body |= {name: sizes[name] for name in ("has_attentions", "is_encoder_decoder") if name in sizes}
    body |= {"__module__": __name__, "test_resize_embeddings": "vocab_size" in fields}
    name = f"{row}_{variant}"
    globals()[name] = type(name, (CommonTests, unittest.TestCase), body)


for _row in ROWS:
    for _variant, _unit in (VARIANTS | UNITS if _row == "deit" else VARIANTS).items():
        _add(_row, _variant, _unit)
