"""What a model is for, as the Hub and the code example of its card say it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..growth.macs import sample_of
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
_PROCESSORS = {"vision": "AutoImageProcessor", "text": "AutoTokenizer", "audio": "AutoProcessor"}
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
        data (`str`): What it takes, for sentences: `"images"`, `"texts"` or `"recordings"`.
    """

    auto_class: str
    pipeline: str
    title: str
    metric: str | None
    modality: str

    @property
    def data(self) -> str:
        return {"vision": "images", "text": "texts", "audio": "recordings"}[self.modality]

    @property
    def labelled(self) -> bool:
        """Whether it answers with labels."""
        return self.pipeline.endswith("-classification")


def card_task(model: GrowablePreTrainedModel) -> CardTask:
    """The task of a model, by its class."""
    modality = MODALITIES.get(model.main_input_name, "text")
    known = dict(auto_classes(model.config.model_type.removeprefix("saddle_")))
    found = [auto for auto in _TASKS if model.stock_class.__name__ in known.get(auto, ())]
    return (
        CardTask(found[0], *_TASKS[found[0]], modality)
        if found
        else CardTask("AutoModel", *_FEATURES[modality], modality)
    )


def has_processor(folder: Path, model: GrowablePreTrainedModel) -> bool:
    """Whether the image processor, tokenizer or processor of a model is in a folder."""
    return (folder / _PROCESSOR_FILES[card_task(model).modality]).is_file()


def sample_name(model: GrowablePreTrainedModel) -> str:
    """One sample, as multiply-accumulates are counted for: `"image"`, `"sequence of 128 tokens"`."""
    if model.main_input_name in MODALITIES:
        return {"vision": "image", "audio": "recording"}[MODALITIES[model.main_input_name]]
    sample = _meta_sample(model)
    tokens = sample[model.main_input_name].shape[-1]
    return f"{'pair of sequences' if 'decoder_input_ids' in sample else 'sequence'} of {tokens} tokens"


def usage(model: GrowablePreTrainedModel, source: str, processed: bool) -> str:
    """
    Python code that loads a model from a `source`, the Python literal of a folder or repo id, and lets it answer;
    `processed` tells whether its image processor or tokenizer is there too.
    """
    task = card_task(model)
    processor = _PROCESSORS[task.modality]
    imports = ["import numpy as np"] if task.modality == "vision" and not processed else []
    imports += ["import torch", *(["from PIL import Image"] if task.modality == "vision" else [])]
    names = sorted([task.auto_class, *([processor] if processed else [])])
    load = [f"model = {task.auto_class}.from_pretrained({source}, trust_remote_code=True)"]
    if processed:
        load.append(
            f"{'tokenizer' if task.modality == 'text' else 'processor'} = {processor}.from_pretrained({source})"
        )
    lines = [*imports, f"from transformers import {', '.join(names)}", "", *load]
    lines += _inputs(model, task, processed)
    return "\n".join([*lines, *_answer(model, task, processed)])


def _inputs(model: GrowablePreTrainedModel, task: CardTask, processed: bool) -> list[str]:
    text = {"fill-mask": 'f"The {tokenizer.mask_token} of the year."'}.get(task.pipeline, '"Once upon a time"')
    if task.modality == "vision":
        opened = 'image = Image.open("image.png").convert("RGB")'
        if processed:
            return [opened, 'inputs = processor(image, return_tensors="pt")']
        height, width = _meta_sample(model)["pixel_values"].shape[-2:]
        return [
            opened,
            "# No image processor was saved: scale pixels as you did for training. Here: [0, 1].",
            f"image = image.resize(({width}, {height}))",
            'inputs = {"pixel_values": torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255}',
        ]
    if task.modality == "audio":
        shape = tuple(_meta_sample(model)[model.main_input_name].shape)
        if processed:
            return [
                "sound = torch.zeros(16_000)  # one second",
                'inputs = processor(sound.numpy(), sampling_rate=16_000, return_tensors="pt")',
            ]
        return [
            "# No processor was saved: features of a recording as in training.",
            f'inputs = {{"input_features": torch.zeros{shape}}}',
        ]
    if processed:
        return [f'inputs = tokenizer({text}, return_tensors="pt")']
    return [
        "# No tokenizer was saved: numbers of tokens as in training.",
        'inputs = {"input_ids": torch.tensor([[5, 6, 7]])}',
    ]


def _answer(model: GrowablePreTrainedModel, task: CardTask, processed: bool) -> list[str]:
    if model.can_generate() and task.pipeline in (
        "text-generation",
        "text2text-generation",
        "automatic-speech-recognition",
    ):
        decoder = "tokenizer" if task.modality == "text" else "processor"
        shown = f"{decoder}.decode(tokens[0], skip_special_tokens=True)" if processed else "tokens"
        return ["tokens = model.eval().generate(**inputs, max_new_tokens=40)", f"print({shown})"]
    head = ["with torch.no_grad():"]
    if task.auto_class == "AutoModel":
        return [*head, "    features = model.eval()(**inputs).last_hidden_state", "print(features.shape)"]
    if task.pipeline in ("image-classification", "text-classification", "audio-classification"):
        shown = "print(model.config.id2label[logits.argmax(-1).item()])"
        return [*head, "    logits = model.eval()(**inputs).logits", shown]
    if task.pipeline == "fill-mask" and processed:
        place = 'logits[inputs["input_ids"] == tokenizer.mask_token_id].argmax(-1)'
        return [*head, "    logits = model.eval()(**inputs).logits", f"print(tokenizer.decode({place}))"]
    return [
        *head,
        "    outputs = model.eval()(**inputs)",
        "print({name: value.shape for name, value in outputs.items() if torch.is_tensor(value)})",
    ]


def _meta_sample(model: GrowablePreTrainedModel) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return sample_of(model)
