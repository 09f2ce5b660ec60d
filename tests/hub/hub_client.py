"""What a user's process does with the Hub; runs in a process of its own, where `HF_ENDPOINT` is the stand-in."""

import os
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Failure:
    """An exception of the other process, by the names of its classes, its message and its traceback."""

    kinds: tuple[str, ...]
    message: str
    traceback: str


class Client:
    """
    A process with the real `huggingface_hub` client; `client(function, *args)` runs a function of this module there.

    Args:
        endpoint (`str`): URL of the stand-in.
        home (`Path`): `HF_HOME` of the process.
        without_saddle (`bool`): Whether importing hf_saddle fails in the process.
    """

    def __init__(self, endpoint: str, home: Path, without_saddle: bool = False):
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_write",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(without_saddle,))
        before = dict(os.environ)
        os.environ.update(settings)
        try:
            self.pool.submit(int).result(timeout=120)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def __call__(self, function, *args, **kwargs) -> Any:
        outcome = self.pool.submit(_attempt, function, args, kwargs).result(timeout=240)
        assert not isinstance(outcome, Failure), f"{outcome.kinds[0]}: {outcome.message}\n{outcome.traceback}"
        return outcome

    def failure(self, function, *args, **kwargs) -> Failure:
        """Run a function that must raise."""
        outcome = self.pool.submit(_attempt, function, args, kwargs).result(timeout=240)
        assert isinstance(outcome, Failure), f"{function.__name__} should have failed"
        return outcome

    def close(self) -> None:
        self.pool.shutdown()


def _start(without_saddle: bool) -> None:
    if without_saddle:
        sys.modules["hf_saddle"] = None  # type: ignore[assignment]
    import huggingface_hub.utils._http as http
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # The client waits up to 8 s between attempts; the attempts are the same without the waiting.
    http.time = type("NoWait", (), {"sleep": staticmethod(lambda seconds: None), "time": http.time.time})


def import_saddle() -> None:
    """What a user's process does first."""
    import hf_saddle  # noqa: F401


def _attempt(function, args, kwargs) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return Failure(tuple(kind.__name__ for kind in type(error).__mro__), str(error), traceback.format_exc())


# ------------------------------------------------------------------------------------------------------------- actions
def push(folder: str, repo_id: str, **kwargs) -> str:
    """Load a model from a folder and push it; the answer's URL."""
    from transformers import AutoModelForImageClassification

    options = {"trust_remote_code": True} if kwargs.pop("trust_remote_code", False) else {}
    model = AutoModelForImageClassification.from_pretrained(folder, **options)
    return str(model.push_to_hub(repo_id, **kwargs))


def logits(source: str, pixels, **kwargs) -> Any:
    """Logits of a model from the Hub, its history, and the module that its class is defined in."""
    import torch
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(source, **kwargs).eval()
    with torch.no_grad():
        output = model(torch.tensor(pixels)).logits.numpy()
    return output, model.growth_history, type(model).__module__


def features(source: str, pixels, **kwargs) -> Any:
    """Last hidden states of the bare encoder of a classifier, and of the classifier's own encoder."""
    import torch
    from transformers import AutoModel, AutoModelForImageClassification

    encoder = AutoModel.from_pretrained(source, **kwargs).eval()
    classifier = AutoModelForImageClassification.from_pretrained(source, **kwargs).eval()
    with torch.no_grad():
        return [model(torch.tensor(pixels)).last_hidden_state.numpy() for model in (encoder, classifier.base_model)]


def outputs(auto: str, source: str, inputs, folder: str | None = None, **kwargs) -> Any:
    """All floating point outputs of a model of any family, and its class; it is saved again if a folder is given."""
    import torch
    import transformers

    def tensors(value):
        if isinstance(value, torch.Tensor):
            return [value.numpy()]
        return [tensor for item in value for tensor in tensors(item)] if isinstance(value, (tuple, list)) else []

    model = getattr(transformers, auto).from_pretrained(source, **kwargs).eval()
    with torch.no_grad():
        found = model(**{key: torch.tensor(value) for key, value in inputs.items()}, return_dict=True)
    if folder is not None:
        model.save_pretrained(folder)
    return (
        [tensor for item in found.values() for tensor in tensors(item)],
        type(model).__module__,
        type(model).__name__,
    )


def save_again(source: str, folder: str, **kwargs) -> None:
    """Load a model and save it elsewhere."""
    from transformers import AutoModelForImageClassification

    AutoModelForImageClassification.from_pretrained(source, **kwargs).save_pretrained(folder)


def snapshot(repo_id: str, **kwargs) -> str:
    """Download a whole repo."""
    from huggingface_hub import snapshot_download

    return snapshot_download(repo_id, **kwargs)


def save_and_push(folder: str, repo_id: str) -> str:
    """Load a model, save it and push in one call, as `save_pretrained(push_to_hub=True)`."""
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder)
    model.save_pretrained(folder, push_to_hub=True, repo_id=repo_id)
    return folder


def train_and_push(folder: str, repo_id: str, strategy: str, *, again: bool = False, **arguments) -> dict[str, Any]:
    """
    Six steps of a `GrowthTrainer` with an event after the third, saved and pushed after every second one.

    Returns the logits of the trained model for fixed pixels, and the message of the last push's failure, if any.
    """
    import torch
    from hub_cases import build
    from transformers import TrainerCallback, TrainingArguments, ViTImageProcessorPil

    from hf_saddle import GrowthCallback, GrowthConfig, GrowthTrainer

    class Wait(TrainerCallback):
        """A push that takes longer than the steps to the next one would upload the files of that one."""

        def on_step_begin(self, args, state, control, **kwargs):
            if trainer.push_in_progress is not None:
                trainer.push_in_progress.wait_until_done()

    growth = GrowthConfig(
        at=[3],
        unit="steps",
        significance=0,
        probe_samples=12,
        max_growth=1.2,
        selection="gain",
        natural_step=0.0,
    )

    def accuracy(prediction) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    torch.manual_seed(0)
    data = [{"pixel_values": torch.randn(3, 16, 16), "labels": index % 3} for index in range(12)]
    settings = {
        "output_dir": folder,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "push_to_hub": True,
        "hub_model_id": repo_id,
        "hub_strategy": strategy,
        "hub_always_push": True,
    }
    trainer = GrowthTrainer(
        model=build("deit-ungrown"),
        args=TrainingArguments(**settings | arguments),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=accuracy,
        processing_class=ViTImageProcessorPil(size={"height": 16, "width": 16}),
        callbacks=[GrowthCallback(growth), Wait()],
    )
    trainer.card_facts = {"dataset": "tester/pictures", "license": "apache-2.0"}
    trainer.train()
    trainer.evaluate(data, metric_key_prefix="test")
    message = ""
    try:
        trainer.push_to_hub()
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if again:
            trainer.push_to_hub()
    with torch.no_grad():
        output = trainer.model.eval()(data[0]["pixel_values"][None]).logits.numpy()
    return {"pixels": data[0]["pixel_values"][None].numpy(), "logits": output, "message": message}


def train_text_and_push(folder: str, repo_id: str) -> dict[str, Any]:
    """Six steps of a small Llama on text, with an event after the third, pushed with its tokenizer."""
    import torch
    from transformers import DataCollatorForLanguageModeling, TrainingArguments

    from hf_saddle import GrowthCallback, GrowthConfig, GrowthTrainer
    from hf_saddle.demo.text import train_tokenizer
    from hf_saddle.models import SaddleLlamaForCausalLM

    torch.manual_seed(0)
    texts = ["the small model grows", "where the loss bends", "and goes on with another word", "once upon a time"]
    tokenizer = train_tokenizer(texts, 270, enclose=False)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    tokens = {"vocab_size": 270, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = SaddleLlamaForCausalLM(SaddleLlamaForCausalLM.config_class(**sizes, **tokens))
    ranked = {"selection": "gain", "natural_step": 0.0, "significance": 0}
    growth = GrowthConfig(at=[3], unit="steps", probe_samples=12, max_growth=1.2, **ranked)
    settings = {"max_steps": 6, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True}
    settings |= {"disable_tqdm": True, "push_to_hub": True, "hub_model_id": repo_id, "logging_steps": 1}
    trainer = GrowthTrainer(
        model=model,
        args=TrainingArguments(folder, **settings),
        train_dataset=[dict(tokenizer(text)) for text in texts * 3],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=[GrowthCallback(growth)],
    )
    trainer.train()
    trainer.push_to_hub()
    given = {"input_ids": [[5, 60, 7, 9]]}
    with torch.no_grad():
        output = trainer.model.eval()(input_ids=torch.tensor(given["input_ids"])).logits.numpy()
    return {"inputs": given, "logits": output}


def run_code(code: str, folder: str) -> str:
    """What a reader sees who runs the code of a card."""
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output):
        exec(code, {})
    return output.getvalue()


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `hf-saddle`."""
    import contextlib
    import io

    from hf_saddle_cli import main

    output, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main(list(arguments))
        except SystemExit as exit:
            code = int(exit.code or 0)
    return code, output.getvalue(), errors.getvalue()
