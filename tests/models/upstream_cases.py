"""The models that transformers' common tests are run for, and where growable ones differ from stock."""

from collections.abc import Collection
from typing import Any

from families_cases import BOTTLENECK, CAUSAL, CONVNEXT, DINO, DISTILBERT, GPT2, IMAGE, SWIN, T5, TEXT, TOKENS, WHISPER


BACKBONE = {"out_features": ["stage1", "stage2"]}
HEADS = "Model ForCausalLM ForSequenceClassification ForQuestionAnswering ForTokenClassification"
# A row is enough for a family; rows of their own have the classes of a family that lack a part of its blocks.
# row -> (the start and the ends of the classes' names, config, inputs, the lengths and sizes that the tests ask for)
ROWS: dict[str, tuple[str, str, dict[str, Any], str, dict[str, Any]]] = {
    "bert": (
        "Bert",
        "Model ForMaskedLM ForMultipleChoice ForNextSentencePrediction ForPreTraining ForQuestionAnswering "
        "ForSequenceClassification ForTokenClassification",
        TEXT,
        "text",
        {},
    ),
    "bert_decoder": ("Bert", "LMHeadModel", TEXT | TOKENS | {"is_decoder": True}, "text", {}),
    "clip_vision_model": ("CLIPVision", "Model ModelWithProjection", IMAGE, "pixels", {"seq_length": 17}),
    "convnext": (
        "ConvNext",
        "Model ForImageClassification Backbone",
        CONVNEXT | BACKBONE,
        "large_pixels",
        {"has_attentions": False, "seq_length": 8, "hidden_size": 8},
    ),
    "deit": (
        "DeiT",
        "Model ForImageClassification ForImageClassificationWithTeacher ForMaskedImageModeling",
        IMAGE | {"encoder_stride": 4},
        "pixels",
        {"seq_length": 18},
    ),
    "dinov2": ("Dinov2", "Model ForImageClassification Backbone", DINO, "pixels", {"seq_length": 17}),
    "dinov2_with_registers": (
        "Dinov2WithRegisters",
        "Model ForImageClassification Backbone",
        DINO,
        "pixels",
        {"seq_length": 21},
    ),
    "distilbert": (
        "DistilBert",
        "Model ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification ForTokenClassification",
        DISTILBERT,
        "text",
        {},
    ),
    "gemma3_text": (
        "Gemma3",
        "TextModel ForCausalLM TextForSequenceClassification",
        CAUSAL | {"head_dim": 8},
        "text",
        {},
    ),
    "gpt2": (
        "GPT2",
        "Model LMHeadModel DoubleHeadsModel ForQuestionAnswering ForSequenceClassification ForTokenClassification",
        GPT2,
        "text",
        {},
    ),
    "llama": ("Llama", HEADS, CAUSAL, "text", {}),
    "mistral": ("Mistral", HEADS, CAUSAL, "text", {}),
    "olmo2": ("Olmo2", "Model ForCausalLM ForSequenceClassification", CAUSAL, "text", {}),
    "qwen2": ("Qwen2", HEADS, CAUSAL, "text", {}),
    "qwen3": ("Qwen3", HEADS, CAUSAL | {"head_dim": 8}, "text", {}),
    "resnet": (
        "ResNet",
        "Model ForImageClassification Backbone",
        BOTTLENECK | BACKBONE,
        "large_pixels",
        {"has_attentions": False, "seq_length": 8, "hidden_size": 8},
    ),
    "roberta": (
        "Roberta",
        "Model ForMaskedLM ForMultipleChoice ForQuestionAnswering ForSequenceClassification ForTokenClassification",
        TEXT | TOKENS,
        "text",
        {},
    ),
    "swin": (
        "Swin",
        "Model ForImageClassification ForMaskedImageModeling Backbone",
        SWIN | {"encoder_stride": 4},
        "pixels",
        {"seq_length": 64, "hidden_size": 16, "patch_size": 2},
    ),
    "t5": (
        "T5",
        "Model ForConditionalGeneration ForQuestionAnswering",
        T5 | TOKENS,
        "sequences",
        {"is_encoder_decoder": True, "encoder_seq_length": 12, "seq_length": 6},
    ),
    "t5_encoder": ("T5", "EncoderModel ForTokenClassification", T5 | TOKENS, "text", {}),
    "vit": (
        "ViT",
        "Model ForImageClassification ForMaskedImageModeling",
        IMAGE | {"encoder_stride": 4},
        "pixels",
        {"seq_length": 17},
    ),
    "whisper": (
        "Whisper",
        "Model ForConditionalGeneration",
        WHISPER,
        "speech",
        {"is_encoder_decoder": True, "encoder_seq_length": 20, "seq_length": 6},
    ),
    "whisper_encoder": ("Whisper", "ForAudioClassification", WHISPER, "sound", {"seq_length": 20}),
    "whisper_decoder": ("Whisper", "ForCausalLM", WHISPER | {"is_decoder": True}, "text", {}),
}
# Classes that have no loss, or one that asks for more than the tests give.
WITHOUT_LOSS = ("DoubleHeadsModel", "EncoderModel", "ForPreTraining", "ModelWithProjection", "WithTeacher")
# The kinds of models that are tested, with the kind of the branches' units of those that have grown.
VARIANTS = {"Stock": None, "Ungrown": None, "Grown": "gain"}
UNITS = {"Paired": "residual_pair", "Residual": "residual"}
# Tests with another outcome than for the stock models of the same row, with the reason, and the rows where it is so.
CLASSIFIERS = ("convnext", "deit", "dinov2", "dinov2_with_registers", "resnet", "swin", "vit", "whisper_encoder")
TEXT_CLASSIFIERS = (
    "bert",
    "distilbert",
    "gemma3_text",
    "gpt2",
    "llama",
    "mistral",
    "olmo2",
    "qwen2",
    "qwen3",
    "roberta",
)
RENAMED = ("clip_vision_model", "deit", "dinov2", "dinov2_with_registers", "swin", "vit")
DIFFERENCES: dict[str, tuple[str, Collection[str]]] = {
    "test_model_weights_reload_no_missing_tied_weights": (
        "a checkpoint that lacks the tensors of layers is refused; stock starts them anew",
        tuple(ROWS),
    ),
    "test_can_load_ignoring_mismatched_shapes": (
        "a head of another shape raises a ValueError that names it, unless it is asked for; stock a RuntimeError",
        (*CLASSIFIERS, *TEXT_CLASSIFIERS),
    ),
    "test_load_with_mismatched_shapes": ("the same", TEXT_CLASSIFIERS),
    "test_reverse_loading_mapping": (
        "names on disk are those in memory, there is no mapping",
        [row for row in RENAMED if row != "clip_vision_model"],  # of whose names stock changes prefixes only
    ),
    "test_can_load_from_already_mapped_keys": ("the same", RENAMED),
}
