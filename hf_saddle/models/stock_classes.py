"""The model classes of transformers that growable ones are made of, by name and by Auto class."""

import importlib
import re
from collections.abc import Iterator
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from .families import FAMILIES


def auto_classes(model_type: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the Auto classes that know a stock model type, each with the names of its model classes."""
    for name, kind in vars(modeling_auto).items():
        if isinstance(kind, type) and issubclass(kind, _BaseAutoModelClass):
            auto: Any = kind
            # The truth of a mapping would import all that it has.
            found = () if auto._model_mapping is None else auto._model_mapping._model_mapping.get(model_type, ())
            names = (found,) if isinstance(found, str) else tuple(found)
            if names:
                yield name, names


def stock_named(name: str) -> Any:
    """The stock model class of a name, of the families that are described; `None` if there is none."""
    for model_type in FAMILIES:
        config = CONFIG_MAPPING[model_type]
        if not name.startswith(re.sub("(Text|Vision)?Config$", "", config.__name__)):
            continue
        # Not all of them are exported by transformers itself.
        code = importlib.import_module(config.__module__.replace(".configuration_", ".modeling_"))
        found = vars(code).get(name)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    return None
