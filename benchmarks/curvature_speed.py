"""What the curvature analysis costs, in forward+backward passes, and which of the truly extreme neurons it finds.

    python benchmarks/curvature_speed.py                    # everything, about ten minutes on two cores
    python benchmarks/curvature_speed.py --parts block scaling model families event memory others --seeds 8

Writes benchmarks/results/curvature_speed.json (and .md). Times are ratios of alternating measurements of one run.
With --threads 1 they are processor times, for machines that others use too.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_saddle.curvature import ACTIVATIONS, CurvatureOperator, SolverOptions, analyze_curvature
from hf_saddle.curvature.ranks import Ranks
from hf_saddle.curvature.solving.lanczos import lanczos


RESULTS = Path(__file__).parent / "results"
IMAGES, TOKENS, WIDTH, HIDDEN, CLASSES, TOP = 64, 197, 384, 768, 100, 64
ALL = 10**9  # more tokens than any block here has
KINDS = ("analysis", "whitened")


class Block(nn.Module):
    """One residual MLP block and a classifier on the mean token."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.activation, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.fc2(self.activation(self.fc1(x)))).mean(dim=1))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean loss of a batch."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class TokenSource:
    """
    Images of tokens with class-dependent means.

    "correlated" tokens look like those of a trained transformer: a decaying spectrum, an image's own component,
    neighbours that resemble each other, layer norm. "gaussian" tokens are white noise around the class mean, the
    hardest case: the extreme eigenvalues of the sample are almost all noise.
    """

    def __init__(self, kind: str, width: int, seed: int):
        self.kind, self.width = kind, width
        self.generator = torch.Generator().manual_seed(seed)
        spectrum = torch.arange(1, width + 1).float() ** -0.5
        self.spectrum = spectrum / spectrum.norm() * math.sqrt(width)
        self.rotation = torch.linalg.qr(torch.randn(width, width, generator=self.generator))[0]
        self.means = torch.randn(CLASSES, width, generator=self.generator)

    def batch(self, images: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Tokens `(images, tokens, width)` and labels `(images,)`."""
        labels = torch.randint(CLASSES, (images,), generator=self.generator)
        noise = torch.randn(images, tokens, self.width, generator=self.generator)
        if self.kind == "gaussian":
            return noise + 0.3 * self.means[labels][:, None], labels
        for token in range(1, tokens):
            noise[:, token] = 0.8 * noise[:, token - 1] + 0.6 * noise[:, token]
        common = 0.7 * torch.randn(images, 1, self.width, generator=self.generator) + 0.5 * self.means[labels][:, None]
        return nn.functional.layer_norm((noise + common) * self.spectrum @ self.rotation, (self.width,)), labels


def trained_block(kind: str, seed: int = 0, steps: int = 60) -> tuple[Block, tuple[Tensor, Tensor]]:
    """A briefly trained block and its probe batch of 64 images of 197 tokens."""
    torch.manual_seed(seed)
    source, model = TokenSource(kind, WIDTH, seed), Block(WIDTH, HIDDEN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = cross_entropy(model, source.batch(32, TOKENS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, source.batch(IMAGES, TOKENS)


def seconds(function: Callable[[], Any]) -> float:
    """Duration of one call: processor time with one thread, which other processes do not disturb, else wall time."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()
    return clock() - start


def ratios(functions: dict[str, Callable[[], Any]], reference: str, rounds: int) -> dict[str, float]:
    """Median over rounds of each duration divided by the reference's duration in the same round."""
    for function in functions.values():
        function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(seconds(function))
    base = taken[reference]
    result = {
        name: statistics.median(t / b for t, b in zip(times, base, strict=True)) for name, times in taken.items()
    }
    return result | {f"{reference}_ms": 1e3 * statistics.median(base)}


def forward_backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """One forward and backward pass with the gradient of the input, as inside of a network."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        cross_entropy(model, (batch[0].detach().requires_grad_(), batch[1])).backward()

    return run


def splitting_operator(model: Block, batch: tuple[Tensor, Tensor]) -> CurvatureOperator:
    """The splitting matrices of fc1, built by hand as an oracle that does not use the probe."""
    z = model.fc1(batch[0])
    hidden = model.activation(z)
    loss = nn.functional.cross_entropy(model.head((batch[0] + model.fc2(hidden)).mean(dim=1)), batch[1])
    (gradient,) = torch.autograd.grad(loss, hidden)
    inputs = nn.functional.pad(batch[0].flatten(0, 1), (0, 1), value=1.0)
    coefficients = (gradient * ACTIVATIONS["gelu"].second(z.detach())).flatten(0, 1)
    return CurvatureOperator([(inputs, coefficients)], 1.0, Ranks())


def dense_extremes(operator: CurvatureOperator, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """Smallest eigenvalues `(n,)` and vectors `(d + 1, n)` of the dense matrices, some neurons at a time."""
    (inputs, coefficients), values, vectors = operator.segments[0], [], []
    for columns in coefficients.split(chunk, dim=1):
        matrices = torch.stack([(inputs * column[:, None]).t() @ inputs for column in columns.t()])
        value, vector = torch.linalg.eigh(matrices)
        values.append(value[:, 0])
        vectors.append(vector[:, :, 0])
    return torch.cat(values), torch.cat(vectors).t()


def overlap(scores: Tensor, others: Tensor) -> int:
    """How many of the 64 largest entries two rankings share."""
    return len(set(scores.topk(TOP).indices.tolist()) & set(others.topk(TOP).indices.tolist()))


def share_of_gain(scores: Tensor, others: Tensor) -> float:
    """What the 64 largest by another ranking sum up to, as a share of what the 64 largest do."""
    return float(scores[others.topk(TOP).indices].sum() / scores.topk(TOP).values.sum())


def analyzer(model: nn.Module, batch: tuple[Tensor, Tensor], max_tokens: int = ALL) -> Callable[..., Any]:
    """The analysis of fc1 of one block as a function of criterion and seed, by default of all its tokens."""

    def run(criterion: str = "width", seed: int = 0, whiten: bool = False) -> Any:
        return analyze_curvature(
            model,
            [batch],
            criterion,
            loss=cross_entropy,
            linears=["fc1"],
            whiten=whiten,
            seed=seed,
            max_tokens=max_tokens,
        )

    return run


def whitened_extremes(operator: CurvatureOperator) -> Tensor:
    """Smallest eigenvalues of the dense matrices relative to the second moments of all inputs, `(n,)`."""
    ((inputs, coefficients),) = operator.segments
    moments = (inputs.t() @ inputs / len(inputs)).double()
    ridge = 1e-3 * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    inverse = torch.linalg.inv(torch.linalg.cholesky(moments + ridge)).to(inputs.dtype)
    return dense_extremes(CurvatureOperator([(inputs @ inverse.t(), coefficients)], 1.0, Ranks()))[0]


def block_part(seeds: int) -> dict[str, Any]:
    """The 384-768-384 block: cost of the whole analysis, and which of the true top 64 it finds."""
    result: dict[str, Any] = {}
    for kind in ("correlated", "gaussian"):
        model, batch = trained_block(kind)
        operator = splitting_operator(model, batch)
        dense: list[tuple[Tensor, Tensor]] = []
        dense_seconds = seconds(lambda dense=dense, operator=operator: dense.append(dense_extremes(operator)))
        values, vectors = dense[0]
        rows = torch.cat([model.fc1.weight, model.fc1.bias[:, None]], dim=1).detach().norm(dim=1)
        response = (operator.segments[0][0] @ vectors).square().mean(dim=0)
        square = model.fc1(batch[0]).detach().flatten(0, 1).square().mean(dim=0)
        steps = torch.minimum(0.1 * rows, 0.5 * (square / response).sqrt())

        analysis, capped = analyzer(model, batch), analyzer(model, batch, 4096)
        whitened = -whitened_extremes(operator) * square
        found = []
        for seed in range(seeds):
            layer, other = analysis(seed=seed)["fc1", "width"], capped(seed=seed)["fc1", "width"]
            fitted = torch.where(layer.refined, -layer.fit_eigenvalue, -torch.inf)
            fitted_other = torch.where(other.refined, -other.fit_eigenvalue, -torch.inf)
            gains = []
            for analyze in (analysis, capped):
                relative = analyze(seed=seed, whiten=True)["fc1", "width"]
                gain = -relative.fit_eigenvalue * relative.step.square()
                gains.append(torch.where(relative.refined, gain, -torch.inf))
            found.append(
                {
                    "by_gain_whitened": overlap(whitened, gains[0]),
                    "by_gain_whitened_4096_tokens": overlap(whitened, gains[1]),
                    "by_eigenvalue": overlap(-values, fitted),
                    "by_gain": overlap(-values * steps.square(), fitted * layer.step.square()),
                    "in_shortlist": int(layer.refined[values.argsort()[:TOP]].sum()),
                    "by_eigenvalue_4096_tokens": overlap(-values, fitted_other),
                    "significant": layer.candidates,
                }
            )
        start_vectors = torch.randn(WIDTH + 1, HIDDEN, generator=torch.Generator().manual_seed(0))
        low = torch.zeros(HIDDEN, dtype=torch.bool)
        plain = lanczos(operator, start_vectors, 12).ritz(low).value
        cost = ratios(
            {
                "fb": forward_backward(model, batch),
                "analysis_width": analysis,
                "analysis_depth": lambda analysis=analysis: analysis("depth"),
                "analysis_width_whitened": lambda analysis=analysis: analysis(whiten=True),
                "analysis_depth_whitened": lambda analysis=analysis: analysis("depth", whiten=True),
                "analysis_width_4096_tokens": capped,
                "analysis_width_whitened_4096_tokens": lambda capped=capped: capped(whiten=True),
                "probe_only": lambda analysis=analysis: analysis("paper_score"),
                "one_product": lambda operator=operator, v=start_vectors: operator(v),
                "plain_lanczos_12": lambda operator=operator, v=start_vectors, low=low: lanczos(operator, v, 12).ritz(
                    low
                ),
            },
            "fb",
            rounds=5,
        )
        cost["dense"] = dense_seconds / (cost["fb_ms"] / 1e3)
        result[kind] = {"ratio_to_fb": cost, "top64": found, "plain_lanczos_12_top64": overlap(-values, -plain)}
    return result


def scaling_part() -> dict[str, Any]:
    """Milliseconds of the analysis and of fb with up to 40 times the tokens, inputs or neurons."""
    result = {}
    base = {"images": 16, "width": 192, "hidden": 512}
    for name in ("images", "width", "hidden"):
        rows = []
        for factor in (1, 4, 12, 40):
            sizes = base | {name: base[name] * factor}
            torch.manual_seed(0)
            model = Block(sizes["width"], sizes["hidden"])
            batch = TokenSource("correlated", sizes["width"], 0).batch(sizes["images"], TOKENS)
            analysis = analyzer(model, batch)
            functions = {
                "fb": forward_backward(model, batch),
                "analysis": analysis,
                "whitened": lambda analysis=analysis: analysis(whiten=True),
            }
            cost = ratios(functions, "fb", rounds=5 if factor <= 4 else 1)
            rows.append({"factor": factor, "fb_ms": cost["fb_ms"]} | {f"{kind}_to_fb": cost[kind] for kind in KINDS})
        result[name] = rows
    return result


def deit_small() -> tuple[nn.Module, dict[str, Tensor]]:
    """A DeiT-S with q, k, v and fc1 of half the width, and a batch of 64 images."""
    from transformers import DeiTConfig, DeiTForImageClassification

    torch.manual_seed(0)
    config = DeiTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=768, num_labels=CLASSES)
    config.head_dim = 32
    model = DeiTForImageClassification(config)
    for parameter in (model.deit.embeddings.cls_token, model.deit.embeddings.position_embeddings):
        nn.init.trunc_normal_(parameter, std=0.02)
    batch = {"pixel_values": torch.randn(IMAGES, 3, 224, 224), "labels": torch.randint(CLASSES, (IMAGES,))}
    return model, batch


def training_step(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Forward, backward and AdamW in train mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        model.train()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def model_part(rounds: int = 1) -> dict[str, Any]:
    """The whole DeiT-S, with default options: analysis in units of one training step of the same 64 images."""
    model, batch = deit_small()
    shapes = [
        tuple(module.weight.shape)
        for name, module in model.named_modules()
        if name.startswith("deit.layers.0.") and isinstance(module, nn.Linear)
    ]
    functions: dict[str, Callable[[], Any]] = {"training_step": training_step(model, batch)}
    for name, criterion in {"depth": "depth", "width": "width", "depth_and_width": ("depth", "width")}.items():
        functions[name] = lambda criterion=criterion: analyze_curvature(model, [batch], criterion)
        functions[f"{name}_whitened"] = lambda criterion=criterion: analyze_curvature(
            model, [batch], criterion, whiten=True
        )
    report = analyze_curvature(model, [batch], ("depth", "width"))
    return ratios(functions, "training_step", rounds) | {
        "linear_shapes": shapes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "entries": len(report),
        "neurons": sum(layer.neurons for layer in report),
        "significant": sum(layer.candidates for layer in report),
    }


def llama_like() -> tuple[nn.Module, dict[str, Tensor]]:
    """A causal language model of 6 layers and a batch of 48 sequences of 256 tokens, about as many as of DeiT-S."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "vocab_size": 2048}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4))
    ids = torch.randint(2048, (48, 256))
    return model, {"input_ids": ids, "labels": ids}


def resnet_like() -> tuple[nn.Module, dict[str, Tensor]]:
    """A ResNet-18 with SiLU and a batch of 32 images of 112 x 112."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=CLASSES))
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return model, {"pixel_values": torch.randn(32, 3, 112, 112), "labels": torch.randint(CLASSES, (32,))}


def whole_gains(model: nn.Module, batch: dict[str, Tensor], criterion: str, **options: Any) -> Tensor:
    """What all neurons of a model gain by their fitted eigenvalues, along whitened directions; 0 if not refined."""
    report = analyze_curvature(model, [batch], criterion, whiten=True, **options)
    sizes = [
        layer.refined * layer.step.square() * (-layer.fit_eigenvalue if criterion == "width" else layer.fit_eigenvalue)
        for layer in report
    ]
    return torch.cat(sizes if criterion == "width" else [size.abs() for size in sizes])


def families_part(rounds: int = 3, seeds: int = 3) -> dict[str, Any]:
    """
    Whole models with gates and with convolutions, default options: analysis in units of a forward and backward, how
    many of the 64 neurons with the largest gains by all tokens and many Lanczos steps it finds, and what share of the
    gain of these its own 64 have. Untrained models on random labels have near ties only: the count is a hard test.
    """
    exact = SolverOptions(screen_tokens=1, shortlist=1, screen_steps=15, refine_steps=1, polish_steps=4)
    result = {}
    for name, make in {"Llama-like": llama_like, "ResNet-like": resnet_like}.items():
        model, batch = make()

        def both(model: nn.Module = model, batch: dict[str, Tensor] = batch) -> None:
            model.train().zero_grad(set_to_none=True)
            model(**batch).loss.backward()

        functions: dict[str, Callable[[], Any]] = {"fb": both}
        for criterion in ("depth", "width"):
            for whiten in (False, True):
                functions[f"{criterion}{'_whitened' if whiten else ''}"] = (
                    lambda model=model, batch=batch, criterion=criterion, whiten=whiten: analyze_curvature(
                        model, [batch], criterion, whiten=whiten
                    )
                )
        # Training mode has moved the running statistics of the model, which the gains are measured with, too.
        cost, found = ratios(functions, "fb", rounds), {}
        report = analyze_curvature(model, [batch], ("depth", "width"))
        for criterion in ("depth", "width"):
            true = whole_gains(model, batch, criterion, solver=exact, max_tokens=10**9)
            gains = [whole_gains(model, batch, criterion, seed=seed) for seed in range(seeds)]
            found[criterion] = {
                "count": [overlap(true, each) for each in gains],
                "share": [share_of_gain(true, each) for each in gains],
            }
        result[name] = cost | {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "entries": len(report),
            "neurons": sum(layer.neurons for layer in report),
            "top64": found,
        }
    return result


def event_part() -> dict[str, Any]:
    """
    Analyses of the same models on what the default options of an event give them: 512 samples that choose, in batches
    of 64, texts of 64 tokens and images of 112 x 112. In units of a forward and backward pass over all of these, the
    mean of one before and one after.
    """
    result = {}
    for name, make in {"Llama-like": llama_like, "ResNet-like": resnet_like}.items():
        model, example = make()
        batches = []
        for _ in range(8):
            if "input_ids" in example:
                ids = torch.randint(2048, (64, 64))
                batches.append({"input_ids": ids, "labels": ids})
            else:
                images = torch.randn(64, 3, 112, 112)
                batches.append({"pixel_values": images, "labels": torch.randint(CLASSES, (64,))})

        def both(model: nn.Module = model, batches: list[dict[str, Tensor]] = batches) -> None:
            model.train()
            for batch in batches:
                model.zero_grad(set_to_none=True)
                model(**batch).loss.backward()

        cost, before = {}, seconds(both)
        for criteria in (("depth",), ("width",), ("depth", "width")):
            taken = seconds(
                lambda model=model, batches=batches, criteria=criteria: analyze_curvature(
                    model, batches, criteria, whiten=True
                )
            )
            after = seconds(both)
            cost["_and_".join(criteria)] = taken / ((before + after) / 2)
            before = after
        result[name] = cost | {"fb_ms": 1e3 * before}
    return result


def memory_of(mode: str) -> float:
    """Peak memory in MiB above that of the loaded model and batch, in this process."""
    model, batch = deit_small()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if mode == "training_step":
        step = training_step(model, batch)
        step()
        step()
    elif mode == "forward_backward":
        model.eval()
        anchor = model.deit.embeddings.cls_token
        torch.autograd.grad(model(**batch).loss, anchor)
    elif mode == "several_batches":
        halves = [{name: value[half] for name, value in batch.items()} for half in (slice(0, 32), slice(32, 64))]
        analyze_curvature(model, halves, ("depth", "width"))
    else:
        analyze_curvature(model, [batch], ("depth", "width"), whiten=mode == "analysis_whitened")
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory_part() -> dict[str, float]:
    """Peaks of separate processes, as a process's peak never falls."""
    result = {}
    for mode in ("training_step", "forward_backward", "analysis", "analysis_whitened", "several_batches"):
        command = [sys.executable, __file__, "--memory-of", mode]
        result[mode] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    result["extra_share"] = (result["analysis"] - result["forward_backward"]) / result["training_step"]
    return result


def others_part() -> dict[str, Any]:
    """curvlinops' lowest Hessian eigenvalue and GroMo's first-order statistics on the same block, where installed."""
    result: dict[str, Any] = {}
    model, batch = trained_block("correlated")
    fb = statistics.median(seconds(forward_backward(model, batch)) for _ in range(5))
    if importlib.util.find_spec("curvlinops"):
        from curvlinops import HessianLinearOperator
        from scipy.sparse.linalg import eigsh

        parameters = list(model.fc1.parameters())
        hessian = HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, [batch]).to_scipy()
        result["curvlinops_lowest_eigenvalue"] = (
            seconds(lambda: eigsh(hessian, k=1, which="SA", tol=1e-2, maxiter=50)) / fb
        )
    else:
        result["curvlinops_lowest_eigenvalue"] = None
    if importlib.util.find_spec("gromo"):
        from gromo.modules.linear_growing_module import LinearGrowingModule

        first = LinearGrowingModule(WIDTH, HIDDEN, post_layer_function=nn.GELU())
        second = LinearGrowingModule(HIDDEN, WIDTH, previous_module=first)
        first.layer.load_state_dict(model.fc1.state_dict())
        second.layer.load_state_dict(model.fc2.state_dict())

        def statistics_pass() -> None:
            x, labels = batch
            out = second(first(x))
            nn.functional.cross_entropy(model.head((x + out).mean(dim=1)), labels).backward()
            second.update_computation()

        second.init_computation()
        statistics_pass()
        result["gromo_first_order_statistics"] = statistics.median(seconds(statistics_pass) for _ in range(5)) / fb
    else:
        result["gromo_first_order_statistics"] = None
    return result


def versions() -> dict[str, str]:
    """What the figures depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "threads": str(torch.get_num_threads())}
    for package in ("transformers", "gromo", "curvlinops-for-pytorch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return found | {"cpu": f"{len(cpu)} x {cpu[0]}"}


# Of the block: what is told, the figure of its cost, and that of the true top 64.
BLOCK_ROWS = (
    ("whole analysis, width (its own forward and backward pass included)", "analysis_width", "by_eigenvalue"),
    ("the same, ranked by gain", None, "by_gain"),
    ("the same from 4,096 of the tokens (`max_tokens`)", "analysis_width_4096_tokens", "by_eigenvalue_4096_tokens"),
    ("whole analysis, depth", "analysis_depth", None),
    ("whole analysis, width, whitened, ranked by gain", "analysis_width_whitened", "by_gain_whitened"),
    (
        "the same from 4,096 of the tokens",
        "analysis_width_whitened_4096_tokens",
        "by_gain_whitened_4096_tokens",
    ),
    ("whole analysis, depth, whitened", "analysis_depth_whitened", None),
    ("probe and a first-order score only", "probe_only", None),
    ("one product with all matrices", "one_product", None),
    ("plain batched Lanczos, 12 steps", "plain_lanczos_12", "plain_lanczos_12_top64"),
    ("dense matrices and `eigh`", "dense", "dense_top64"),
)


def block_lines(kind: str, part: dict[str, Any]) -> list[str]:
    """The table of one kind of tokens."""
    cost, found = part["ratio_to_fb"], {name: [each[name] for each in part["top64"]] for name in part["top64"][0]}
    found |= {"plain_lanczos_12_top64": part["plain_lanczos_12_top64"], "dense_top64": TOP}
    head = f"## Block 384-768-384, 12,608 {kind} tokens (fb = {cost['fb_ms']:.0f} ms)"
    rows = []
    for what, key, top in BLOCK_ROWS:
        # Results of an earlier run may lack a row.
        price = f"{cost[key]:.{0 if cost[key] >= 10 else 2}f}" if key in cost else ""
        rows.append(f"| {what} | {price} | {found.get(top, '')} |")
    return [head, "", "| what | cost / fb | of the true top 64 |", "|---|---|---|", *rows, ""]


def scaling_line(name: str, rows: list[dict[str, float]], kind: str) -> str:
    """How the time of one kind of analysis grows with one of the sizes."""
    cells = [f"x{row['factor']}: fb {row['fb_ms']:.0f} ms, {row[f'{kind}_to_fb']:.2f} fb" for row in rows]
    first, last = (row["fb_ms"] * row[f"{kind}_to_fb"] for row in (rows[0], rows[-1]))
    exponent = math.log(last / first) / math.log(rows[-1]["factor"])
    return f"* {kind}, growth with {name}: time ~ {name}^{exponent:.2f} (linear: 1); {'; '.join(cells)}"


def section(head: str, values: dict[str, Any]) -> list[str]:
    """A heading and its figures."""
    return ["", f"## {head}", "", *(f"* {name}: {value}" for name, value in values.items())]


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    made = "Made by `benchmarks/curvature_speed.py`; details in the JSON file."
    lines = ["# Cost of the curvature analysis", "", made, ""]
    for kind, part in results.get("block", {}).items():
        lines += block_lines(kind, part)
    for kind in KINDS:
        lines += [scaling_line(name, rows, kind) for name, rows in results.get("scaling", {}).items()]
    if "model" in results:
        part = results["model"]
        names = [f"{name}{end}" for end in ("", "_whitened") for name in ("depth", "width", "depth_and_width")]
        head = f"DeiT-S, reduced widths, 64 images (training step {part['training_step_ms'] / 1e3:.1f} s)"
        lines += section(head, {name: f"{part[name]:.2f} training steps" for name in names})
    for kind, part in results.get("families", {}).items():
        head = f"{kind}, {part['parameters']:,} parameters (forward and backward {part['fb_ms']:.0f} ms)"
        names = [f"{name}{end}" for end in ("", "_whitened") for name in ("depth", "width")]
        cells = {name: f"{part[name]:.2f} forward and backward passes" for name in names}
        top = {
            f"of the true 64 largest whitened gains, {name}": f"{found['count']}; share of their gain "
            + ", ".join(f"{share:.2f}" for share in found["share"])
            for name, found in part["top64"].items()
        }
        lines += section(head, cells | top)
    for kind, part in results.get("event", {}).items():
        head = f"{kind}, the probe of an event: 512 samples, whitened (forward and backward {part['fb_ms']:.0f} ms)"
        lines += section(head, {name: f"{part[name]:.2f} passes" for name in ("depth", "width", "depth_and_width")})
    if "memory" in results:
        cells = {name: f"{value:.{2 * name.endswith('share')}f}" for name, value in results["memory"].items()}
        lines += section("Peak memory, DeiT-S, 64 images (MiB above model and batch)", cells)
    if "others" in results:
        cells = {name: "not installed" if v is None else f"{v:.1f}" for name, v in results["others"].items()}
        lines += section("Other packages on the correlated block, ratio to fb", cells)
    return "\n".join(lines) + "\n"


def main() -> None:
    parts = {
        "block": block_part,
        "scaling": scaling_part,
        "model": model_part,
        "families": families_part,
        "event": event_part,
        "memory": memory_part,
        "others": others_part,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(memory_of(arguments.memory_of))
        return
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "curvature_speed.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    # Parts may be run in several environments: what one of them lacks keeps the version of the run that had it.
    found = {name: version for name, version in versions().items() if version != "not installed"}
    results["versions"], results["seeds"] = results.get("versions", {}) | found, list(range(arguments.seeds))
    for name in arguments.parts:
        results[name] = parts[name](arguments.seeds) if name == "block" else parts[name]()
        print(json.dumps({name: results[name]}, indent=1))
        file.write_text(json.dumps(results, indent=1) + "\n")
    text = table(results)
    file.with_suffix(".md").write_text(text)
    file.write_text(json.dumps(results, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
