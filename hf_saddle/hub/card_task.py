"""What a model is for, as the Hub and its card say it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..growth.counting import sample_of
from ..models.modeling_saddle import GrowablePreTrainedModel
from ..models.stock_classes import auto_classes


MODALITIES = {"pixel_values": "vision", "input_features": "audio"}
# By Auto class: the Hub's name of the task, its title, and the metric that the Hub compares models by.
_TASKS = {
    "AutoModelForImageClassification": ("image-classification", "Image Classification", "accuracy"),
    "AutoModelForSequenceClassification": ("text-classification", "Text Classification", "accuracy"),
    "AutoModelForTokenClassification": ("token-classification", "Token Classification", None),
    "AutoModelForQuestionAnswering": ("question-answering", "Question Answering", None),
    "AutoModelForMultipleChoice": ("multiple-choice", "Multiple Choice", None),
    "AutoModelForMaskedLM": ("fill-mask", "Masked Language Modeling", "perplexity"),
    "AutoModelForCausalLM": ("text-generation", "Text Generation", "perplexity"),
    "AutoModelForSeq2SeqLM": ("text2text-generation", "Text to Text Generation", None),
    "AutoModelForSpeechSeq2Seq": ("automatic-speech-recognition", "Speech Recognition", None),
    "AutoModelForAudioClassification": ("audio-classification", "Audio Classification", "accuracy"),
}
_FEATURES = {
    "vision": ("image-feature-extraction", "Image Features", None),
    "text": ("feature-extraction", "Text Features", None),
    "audio": ("feature-extraction", "Sound Features", None),
}
_DATA = {"vision": "images", "text": "texts", "audio": "recordings"}
_PROCESSORS = {"vision": "AutoImageProcessor", "text": "AutoTokenizer", "audio": "AutoProcessor"}
_GENERATING = ("text-generation", "text2text-generation", "automatic-speech-recognition")
_PROCESSOR_FILES = {
    "vision": "preprocessor_config.json",
    "text": "tokenizer_config.json",
    "audio": "processor_config.json",
}


@dataclass(frozen=True)
class CardTask:
    """
    What a model is for.

    Attributes:
        auto_class (`str`): The Auto class that loads it.
        pipeline (`str`): The Hub's name of the task.
        title (`str`): The task for people.
        metric (`str`, *optional*): The metric that the Hub compares models by.
        modality (`str`): `"vision"`, `"text"` or `"audio"`.
        generates (`bool`): Whether it answers with tokens.
    """

    auto_class: str
    pipeline: str
    title: str
    metric: str | None
    modality: str
    generates: bool

    @property
    def data(self) -> str:
        """What it takes, for sentences."""
        return _DATA[self.modality]

    @property
    def processor(self) -> str:
        """What makes its inputs, as code names it."""
        return "tokenizer" if self.modality == "text" else "processor"

    @property
    def processor_class(self) -> str:
        """The Auto class of what makes its inputs."""
        return _PROCESSORS[self.modality]

    @property
    def labels_whole(self) -> bool:
        """Whether it has one label for each sample."""
        return self.pipeline in ("image-classification", "text-classification", "audio-classification")

    @property
    def labelled(self) -> bool:
        """Whether it answers with labels."""
        return self.pipeline.endswith("-classification")


def card_task(model: GrowablePreTrainedModel) -> CardTask:
    """The task of a model, by its class."""
    modality = MODALITIES.get(model.main_input_name, "text")
    known = dict(auto_classes(model.config.model_type.removeprefix("saddle_")))
    found = [auto for auto in _TASKS if model.stock_class.__name__ in known.get(auto, ())]
    if not found:
        return CardTask("AutoModel", *_FEATURES[modality], modality, generates=False)
    generates = model.can_generate() and _TASKS[found[0]][0] in _GENERATING
    return CardTask(found[0], *_TASKS[found[0]], modality, generates)


def has_processor(folder: Path, model: GrowablePreTrainedModel) -> bool:
    """Whether the image processor, tokenizer or processor of a model is in a folder."""
    return (folder / _PROCESSOR_FILES[card_task(model).modality]).is_file()


def sample_name(model: GrowablePreTrainedModel) -> str:
    """One sample, as multiply-accumulates are counted for: `"image"`, `"sequence of 128 tokens"`."""
    if model.main_input_name in MODALITIES:
        return {"vision": "image", "audio": "recording"}[MODALITIES[model.main_input_name]]
    sample = meta_sample(model)
    tokens = sample[model.main_input_name].shape[-1]
    return f"{'pair of sequences' if 'decoder_input_ids' in sample else 'sequence'} of {tokens} tokens"


def meta_sample(model: GrowablePreTrainedModel) -> dict[str, torch.Tensor]:
    """One sample as the model takes it, without values."""
    with torch.device("meta"):
        return sample_of(model)
