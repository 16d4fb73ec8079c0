"""The main job: a trained network and its data become a bundle.

    evaluate -> calibrate and mask -> reconstruct -> recalibrate BatchNorm -> fine-tune -> evaluate -> bundle

Each step's result is in the manifest, so that the bundle says what was saved and what it cost.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fineprune.calibrate.collect import CalibrationConfig, sample_order
from fineprune.calibrate.convolutions import ConvSite, Skipped
from fineprune.calibrate.statistics import FACTS, Statistics, fingerprint, masks_by_layer
from fineprune.common.copies import copied, working_copy
from fineprune.common.errors import RunError, UsageError
from fineprune.common.figures import written
from fineprune.common.files import check_writable
from fineprune.common.inputs import Inputs, Structured, told
from fineprune.common.processes import Group, joined
from fineprune.common.progress import Lines, Progress
from fineprune.common.wrappers import check_network, unwrapped, without_wrappers
from fineprune.compressor.attention import split
from fineprune.compressor.bake import bake
from fineprune.compressor.bundle import Bundle, check_target
from fineprune.compressor.config import PruneConfig
from fineprune.compressor.macs import MacReport, count_macs
from fineprune.compressor.masks import WEIGHTS
from fineprune.compressor.prune import CalibrationRun, Pruned, prunable, sharing
from fineprune.compressor.prune import prune as prune_network
from fineprune.compressor.reconstruct.run import reconstruct as reconstruct_network
from fineprune.compressor.search.levels import at_levels
from fineprune.export.machine import machine_facts, package_versions
from fineprune.models.data import ImageData
from fineprune.models.data.given import GivenData
from fineprune.models.objective import ACCURACY, Metric, objective_of, task_of
from fineprune.models.training.batchnorm import recalibrate_batchnorm
from fineprune.models.training.checks import check_engine, check_settings, check_task
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.device import resolve_device
from fineprune.models.training.evaluate import evaluate
from fineprune.models.training.interfaces import Beside
from fineprune.models.training.step import first_nonfinite, trainable_parameters
from fineprune.models.training.trainer import opened
from fineprune.models.zoo import ModelSpec, build

from .arguments import check_arguments, check_named, check_progress
from .asked import Asked
from .claims import beforehand, chance_level, few_samples, saved, shortfall, zero_weights
from .job import Job, training_settings
from .masking import MaskUpdates
from .networks import check_channels, completed, network_of, open_model
from .round_trip import check_before, check_restored
from .samples import data_of
from .schedules import Adaptive, Rounds, WhileTraining, at
from .search.drop import Drop
from .search.run import Found, Search
from .thresholds import AdaptiveThresholds
from .unlabelled import answered, check_criteria, check_training
from .work_folder import work_folder


def compress(
    model: nn.Module | ModelSpec | Bundle | str, data: Any, *, validation: Any = None, test: Any = None,
    loss: Callable[[Any, Any], Any] | None = None, metric: Metric | Callable[[Any, Any], Any] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    checkpoint: Path | str | None = None, model_args: Mapping[str, Any] | None = None,
    preset: str | None = None, prune: float | None = None, prune_split: str | None = None,
    method: str | None = None, rate: float | None = None,
    ffp: float | Mapping[str, Any] | None = None, fwp: float | Mapping[str, Any] | None = None,
    include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None,
    target_latency: str | None = None, target_macs: float | None = None, max_drop: float | None = None,
    int8: bool | None = None, threads: int | None = None, batch: int | None = None, times: Path | str | None = None,
    levels: Sequence[Any] | None = None, front: Path | str | None = None, point: int | None = None,
    prune_schedule: str | Mapping[str, Any] | None = None,
    epochs: int | None = None, lr: float | None = None, batch_size: int | None = None,
    distill: float | Mapping[str, Any] | None = None, qat_epochs: int | None = None,
    finetune: TrainConfig | Mapping[str, Any] | None = None, samples: int | None = None, calibration_batch_size: int | None = None,
    seed: int | None = None, statistics: Path | str | None = None, output: Path | str | None = None,
    reconstruct: bool | Mapping[str, Any] | None = None, compare_dense: bool = False,
    device: str = "auto", progress: Progress | None = None,
) -> Bundle:  # fmt: skip
    """Compress a trained network and return its bundle (also written to `output`, where given).

    model: a module, or a name with `model_args` and `checkpoint`, or a bundle, which keeps its masks and gets more on top (the accuracy
    that others stand beside is then the bundle's; `pruned_before` says by what it was pruned). data: a data set or its spec string, or your
    own samples as the network takes them: a DataLoader, a Dataset, (inputs, labels), or inputs alone; validation (samples, or a fraction of
    them) and test belong to these, and loss(outputs, targets) and metric, a function like it or a Metric, where they are no classes;
    forward(model, inputs) calls the network, where that is not model(tensor): inputs and outputs are then of any structure.
    prune: the fraction of the convolutions' multiply-adds to drop; prune_split: what divides it between blocks and weights, the "preset"
    or one "common" list of scores. method, rate: instead, weights or filters go as the source of that method has it ("fpgm", 0.4), and
    blocks on top (ffp). Or ffp, fwp: the fraction of blocks and of weights; each also takes a mapping with any field of
    FFPConfig and FWPConfig (per_layer={"layer3.*": 0.8}). include, exclude: globs of the layers that are pruned, or left dense.
    target_latency: "2.5ms", or "0.4x" of the dense network's time in ONNX Runtime; or target_macs: the fraction of multiply-adds that may
    stay; with one or alone, max_drop: points that may be lost: all ratios are searched for (docs/targets.md). int8, threads, batch: of the
    file that is timed; times: of another machine, from `fineprune profile`; levels: weight ratios, or pairs (blocks, weights), of a layer.
    front, point: a file of `fineprune.front` and a number there, whose settings are taken where others are not given.
    prune_schedule: when masks come, "one-shot", "rounds", "cubic", or a mapping with a name and settings.
    epochs, lr, batch_size: of fine-tuning (epochs=0: none); distill: the share of the loss that the dense network teaches (0: none), or a
    mapping (share, temperature, features, layers); qat_epochs: so many of the last ones compute on int8 grids; finetune: all settings (a
    TrainConfig) or others (a mapping). reconstruct: whether kept weights are refitted first, or a mapping (images, columns,
    memory_bytes). samples: calibrate on so many, calibration_batch_size at a time; seed: by which they are chosen, and of the fine-tuning.
    statistics: a folder of `fineprune calibrate`. progress: `Lines()`, the default, `Bars()` or `Silent()` of common.progress. Without a
    preset the epochs decide what else is left open, and a line says what.

    UsageError for other arguments, and (also RunError) for a network that a bundle would not give back: before any work.
    """
    ready = ready_for(locals())
    job = ready.asked.job(compare_dense=compare_dense, device=device)
    places: dict[str, Any] = {"before": ready.before, "statistics": statistics, "output": output}
    return compress_network(ready.model, ready.data, job, spec=ready.spec, **places, progress=ready.progress)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What arguments of `compress` name: the network, what builds it, the bundle that it comes from, its data, what is asked of it."""

    model: nn.Module
    spec: ModelSpec | None
    before: Bundle | None
    data: ImageData
    asked: Asked
    progress: Progress


def ready_for(given: Mapping[str, Any]) -> Ready:
    """given: all arguments of `compress`. UsageError for those that make no sense."""
    model, finetune, progress = given["model"], given["finetune"], given["progress"] or Lines()
    checked = ("model", "model_args", "finetune", "samples", "checkpoint", "statistics", "output")
    check_arguments(**{name: given[name] for name in checked})
    check_progress(given["progress"])
    check_named(model, checkpoint=given["checkpoint"], model_args=given["model_args"])
    task = task_of(given["loss"], given["metric"])
    short = {name: given[name] for name in ("epochs", "lr", "batch_size", "distill", "qat_epochs", "seed")}
    if task is not None and given["distill"] is None and finetune is None:
        short["distill"] = 0.0  # class scores are what a teacher tells
    asked = Asked.of(given, training_settings(finetune, **short), measured=given["statistics"] is not None)
    asked = asked.at_point(given["front"], given["point"])
    asked.job()  # before data are read
    of_samples = {name: given[name] for name in ("validation", "test", "forward")}
    data = data_of(given["data"], **of_samples, seed=asked.seed, objective=task, progress=progress)
    spec = ModelSpec(name=model, args=dict(given["model_args"] or {})) if isinstance(model, str) else model
    module, named, before = _opened(spec, given["checkpoint"], data, progress)
    return Ready(model=module, spec=named, before=before, data=data, asked=asked, progress=progress)


def _opened(
    spec: nn.Module | ModelSpec | Bundle, checkpoint: Path | str | None, data: ImageData, progress: Progress
) -> tuple[nn.Module, ModelSpec | None, Bundle | None]:
    """The network, what builds it, and the bundle that it comes from."""
    if isinstance(spec, Bundle):
        opened = network_of(spec)
        return opened.model, opened.spec, spec
    if isinstance(spec, ModelSpec):
        opened = open_model(spec, checkpoint=checkpoint, data=data, progress=progress)
        return opened.model, opened.spec, None
    if data.input_shape:
        check_channels(spec, data.input_shape)
    return spec, None, None


def calibration_run(
    data: ImageData, config: CalibrationConfig, device: torch.device, folder: Path | None, progress: Progress
) -> CalibrationRun:
    """Calibration on the training split, its statistics labelled with the data set that they belong to."""
    return CalibrationRun(
        source=data.train,
        input_shape=data.shape,
        config=replace(config, data=f"{data.name} {data.digest[:16]}"),
        device=device,
        folder=folder,
        progress=progress,
    )


def working_network(model: nn.Module, config: PruneConfig, progress: Progress) -> nn.Module:
    """A `working_copy` of `model` in which what `config` asks for is layers."""
    copy = working_copy(model, progress)
    return split(copy) if "linear" in config.fwp.layer_types else copy


def compress_network(
    model: nn.Module,
    data: ImageData,
    job: Job,
    *,
    spec: ModelSpec | None = None,
    before: Bundle | None = None,
    statistics: Path | str | None = None,
    output: Path | str | None = None,
    progress: Progress,
) -> Bundle:
    """`compress` with everything resolved; before: the bundle of `model`, if any.

    An interrupted run with the same settings goes on from `output`.work.
    Of several processes (`torchrun`) each calls this: calibration and fine-tuning are shared, all get the bundle, the first one writes it.
    """
    if output is not None:
        check_target(output)
        check_writable(output)
    check_network(unwrapped(model))
    model = working_network(without_wrappers(model, progress), job.config, progress)
    broken = first_nonfinite(model)
    if broken is not None:
        raise RunError(f"{broken} of the network is NaN or infinite; load a checkpoint of a training that did not diverge")
    device = resolve_device(job.device)
    check_criteria(data, job.config)
    check_training(data, job.finetune)
    if job.finetune is not None:
        check_task(objective_of(data.train), job.finetune)
        if isinstance(job.schedule, WhileTraining):
            job.schedule.check_steps(job.finetune, len(data.train))
        trainable_parameters(model)
        check_settings(data, job.finetune)
        check_engine(job.finetune)
    if job.target is not None and job.target.max_drop is not None:
        Drop.check(data.train)
    if job.schedule is not None and statistics is not None:
        raise UsageError("statistics belong to masks made at once; masks that come by a schedule are ranked anew each time")
    given = read_statistics(statistics)
    for kind in [part.method.collects for part in job.config.parts]:
        if given and kind is not None and kind not in given:
            progress.log(f"{statistics} holds no statistics of {kind}: they are collected now")
    carried = masks_by_layer(model, (name for name, _ in model.named_modules()))
    key = {"job": job.to_json(), "data": data.to_json(), "network": fingerprint(model, carried)} if output is not None else {}
    with ExitStack() as stack:
        group = stack.enter_context(joined())
        folder = group.on_first(lambda: stack.enter_context(work_folder(output, key)))
        speaker, objective = group.speaker(progress), objective_of(data.train)
        measure = (ACCURACY if objective is None else objective.metric).name
        if not data.labelled:
            data, metric = answered(data, model, device, speaker, training=job.finetune is not None)
            measure = metric.name
        run = _Run(model, data, job, device, speaker, folder, group, measure)
        if job.target is not None:
            run = run.searched(group)
        bundle = run.bundle(spec, given, before)
        if output is not None:
            group.on_first(lambda: bundle.save(output))
    return bundle


@dataclass(frozen=True)
class _Run:
    """The steps of one compression that train or measure."""

    model: nn.Module
    data: ImageData
    job: Job
    device: torch.device
    progress: Progress
    folder: Path | None
    group: Group
    measure: str
    """What stands for accuracy."""
    search: Search | None = None
    found: Found | None = None
    """Of a target: what searched, and the levels of all layers."""

    def searched(self, group: Group) -> "_Run":
        """With the ratios of single layers that keep the target. UsageError in one of several processes."""
        if group.size > 1:
            raise UsageError("a target is searched for by one process; search first (epochs=0), then train with the ratios that it found")
        assert self.job.target is not None
        self.say(f"searching for {self.job.target.text}")
        search = Search(
            model=self.model,
            data=self.data,
            config=self.job.config,
            target=self.job.target,
            run=calibration_run(self.data, self.job.calibration, self.device, None, self.progress),
            refit=self.job.reconstruct,
            folder=self.folder and self.folder / "search",
            progress=self.progress,
        )
        found = search.found()
        config = at_levels(self.job.config, found.levels, search.sites)
        return replace(self, job=replace(self.job, config=config), search=search, found=found)

    def bundle(self, spec: ModelSpec | None, statistics: Mapping[str, Statistics], before: Bundle | None = None) -> Bundle:
        """All steps in order."""
        report = count_macs(self.model, self.data.shape)
        where = self.folder and self.folder / "statistics"
        calibration = calibration_run(self.data, self.job.calibration, self.device, where, self.progress)
        found = prunable(self.model, self.job.config, calibration)
        check_before(self.model, self.fresh(spec), self.image())
        self.say(picked(self.job))
        self.say(beforehand(report, found[0]))
        accuracy = {"dense": self.accuracy(self.model, "dense")}
        if self.measure == ACCURACY.name:
            meanwhile = self.job.schedule is not None and self.job.schedule.while_training
            self.say(chance_level(accuracy["dense"], getattr(self.data, self.data.held_out).labels, on_the_fly=meanwhile))
            self.say(few_samples(self.calibration_labels(), len(self.data.classes)))
        history: dict[str, Any] = {}
        reconstruction: dict[str, Any] = {}
        schedule = self.job.schedule
        if isinstance(schedule, WhileTraining) and self.job.finetune is not None:
            masking = self.masking(schedule.over(self.job.finetune.epochs), self.job.finetune.lr, calibration, found)
            history["finetune"] = self.finetune(masking.model, "finetune", masking)
            pruned = masking.pruned
            masked_report = self.masked(pruned, report)
        else:
            pruned = self.pruned(calibration, found, statistics)
            masked_report = self.masked(pruned, report)
            reconstruction = self.untrained(pruned.model, calibration, accuracy)
            if self.job.finetune is not None:
                history["finetune"] = self.finetune(pruned.model, "finetune")
        if self.job.finetune is not None:
            accuracy["finetuned"] = self.accuracy(pruned.model, "fine-tuned")
            if self.job.compare_dense:
                dense = copied(self.model)
                history["dense_finetune"] = self.finetune(dense, "dense-finetune")
                accuracy["dense_finetuned"] = self.accuracy(dense, "dense, fine-tuned alike")
        measured = {} if self.measure == ACCURACY.name else {"measure": self.measure, **self.unit}
        facts = {
            **self.identity(spec),
            **pruned_before(before),
            **saved(self.job.config, pruned, report, masked_report),
            "accuracy": {**accuracy, **measured, "split": self.data.held_out, "samples": len(getattr(self.data, self.data.held_out))},
            **reconstruction,
            "training": history,
            **self.reached(pruned.model),
        }
        earlier = sharing(before.groups, pruned.masks[WEIGHTS.name]) if before else {}
        bundle = Bundle.of(pruned.model, facts, earlier | pruned.groups, graph=spec.graph if spec else None)
        check_restored(bundle, pruned.model, self.fresh(spec), self.image())
        return bundle

    def masking(
        self, schedule: WhileTraining, lr: float, calibration: CalibrationRun, found: tuple[list[ConvSite], list[Skipped]]
    ) -> MaskUpdates:
        """What gives a copy of the network its masks while it trains."""
        how: Any = copied(self.model), self.job.config, schedule, calibration, found
        return AdaptiveThresholds(*how, lr=lr) if isinstance(schedule, Adaptive) else MaskUpdates(*how)

    def pruned(
        self, calibration: CalibrationRun, found: tuple[list[ConvSite], list[Skipped]], statistics: Mapping[str, Statistics]
    ) -> Pruned:
        """The network under its final masks: at once, or in rounds, between which the kept weights are refitted."""
        schedule = self.job.schedule
        if not isinstance(schedule, Rounds):
            return prune_network(self.model, self.job.config, calibration, found=found, statistics=statistics)
        model, rounds = self.model, schedule.rounds
        for done in range(1, rounds + 1):
            folder, seed = self.folder and self.folder / f"round-{done}", calibration.config.seed + rounds - done
            run = replace(calibration, folder=folder, config=replace(calibration.config, seed=seed))
            config = at(self.job.config, partial(schedule.ratio, done))
            asked = " and ".join(f"{ratio:.0%} ({kind})" for kind, ratio in config.asked.items() if ratio)
            self.progress.log(f"round {done} of {rounds}: {asked or 'a share of each layer'} pruned")
            pruned = prune_network(model, config, run, found=found)
            if done < rounds:
                reconstruct_network(self.model, pruned.model, run, self.job.reconstruct)
            model = pruned.model
        return pruned

    def reached(self, model: nn.Module) -> dict[str, Any]:
        """What was searched for, and how far the network at the end keeps it, for the manifest."""
        if self.search is None or self.found is None:
            return {}
        facts, end = self.found.facts, self.search.end(model)
        for line in end.lines:
            self.say(line)
        return {"search": {**facts, "end": end.to_json()}}

    def masked(self, pruned: Pruned, dense: MacReport) -> MacReport:
        """What the masks leave to compute; says what there is to say of it."""
        for skipped in pruned.skipped:
            self.progress.log(f"left dense: {skipped.name}: {skipped.reason}")
        shape = self.data.shape
        report = count_macs(bake(self.model, pruned.masks, input_shape=shape), shape)  # zeros are those of the network given
        self.say(shortfall(self.job.config, pruned, report))
        self.say(zero_weights(dense, report))
        return report

    def untrained(self, model: nn.Module, calibration: CalibrationRun, accuracy: dict[str, float | None]) -> dict[str, Any]:
        """What goes before any training: kept weights are refitted, BatchNorm statistics chosen, and after each it is measured."""
        accuracy["masked"] = self.accuracy(model, "masked")
        reconstruction = self.reconstruct(model, calibration)
        if reconstruction:
            accuracy["reconstructed"] = self.accuracy(model, "reconstructed")
        if self.recalibrate(model):
            accuracy["batchnorm_recalibrated"] = self.accuracy(model, "BatchNorm chosen")
        return reconstruction

    def fresh(self, spec: ModelSpec | None) -> nn.Module:
        """The dense architecture as commands that read the bundle have it: built again by name, or the caller's module."""
        return build(completed(spec, self.data.input_shape, self.data), seed=1) if spec else self.model

    def image(self) -> Inputs:
        """One training sample."""
        return next(iter(self.data.train.batches(1, indices=torch.zeros(1, dtype=torch.int64)))).images

    def calibration_labels(self) -> torch.Tensor:
        """int64 [N]: classes of the samples that are calibrated on."""
        return self.data.train.labels[sample_order(len(self.data.train), self.job.calibration)]

    def say(self, line: str) -> None:
        """Log what there is to say."""
        if line:
            self.progress.log(line)

    def identity(self, spec: ModelSpec | None) -> dict[str, Any]:
        """What was run on what, and where, for the manifest."""
        return {
            "fineprune": package_versions()["fineprune"],
            "model": completed(spec, self.data.input_shape, self.data).to_json() if spec else None,
            "data": None if isinstance(self.data, GivenData) else self.data.to_json(),  # nobody else can load what is given
            **self.inputs,
            "settings": self.job.to_json(),
            "machine": machine_facts(),
            "packages": package_versions(),
        }

    @property
    def inputs(self) -> dict[str, Any]:
        """What the network is called on, for the manifest: the shape of its one tensor, or the structure, and by whose code."""
        shape = self.data.shape
        if isinstance(shape, Structured):
            return {"inputs": told(shape), "forward": getattr(shape.forward, "__qualname__", type(shape.forward).__name__)}
        return {"input_shape": list(shape)}

    @property
    def unit(self) -> dict[str, Any]:
        """Of the user's metric, for the manifest: its unit, and which way is better."""
        objective = objective_of(self.data.train)
        return {} if objective is None else {"unit": objective.metric.unit, "higher_is_better": objective.metric.higher_is_better}

    def named(self, result: dict[str, Any]) -> dict[str, Any]:
        """What a training reports, its accuracies under the name of figures where they are none."""
        if self.measure == ACCURACY.name:
            return result
        changed = {key: value for key, value in result.items() if key != "history"} | {"measure": self.measure}
        history = [{key.replace("_accuracy", "_figure"): value for key, value in record.items()} for record in result["history"]]
        return {key.replace("_accuracy", "_figure"): value for key, value in changed.items()} | {"history": history}

    def accuracy(self, model: nn.Module, description: str) -> float | None:
        split = getattr(self.data, self.data.held_out)
        if len(split) == 0:
            return None
        options: dict[str, Any] = {"device": self.device, "progress": self.progress, "group": self.group}
        result = evaluate(model, split, description=description, **options)
        self.progress.log(f"{description}: {self.data.held_out} {self.measure} {written(result.accuracy, self.unit.get('unit'))}")
        return result.accuracy

    def reconstruct(self, model: nn.Module, calibration: CalibrationRun) -> dict[str, Any]:
        """Refit the weights that masks left; what was done, for the manifest."""
        if self.job.reconstruct is None:
            return {}
        run = replace(calibration, folder=self.folder)
        done = reconstruct_network(self.model, model, run, self.job.reconstruct)
        others = [f"{skipped.name} ({skipped.reason})" for skipped in done.left]
        left = f"; the weights of others stay: {', '.join(others)}" if others else ""
        self.progress.log(f"reconstructed {len(done.layers)} layers on {done.images} images in {done.seconds:.0f} s{left}")
        return {"reconstruction": {**asdict(done), "left": [asdict(skipped) for skipped in done.left]}}

    def recalibrate(self, model: nn.Module) -> bool:
        """BatchNorm statistics of the masked network over training samples; the dense network's stay where they validate better.

        They do where masks leave a channel almost nothing: normalising that to unit variance blows up what little is left.
        """
        count = min(self.job.batchnorm_samples, len(self.data.train))
        if count < 2:
            return False
        chosen = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(self.job.calibration.seed))[:count]
        before, loss_before = deepcopy(model.state_dict()), self._validation_loss(model)
        batches = self.data.train.batches(self.job.calibration.batch_size, indices=chosen)
        if not recalibrate_batchnorm(model, batches, device=self.device, progress=self.progress):
            return False
        if self._validation_loss(model) > loss_before:
            model.load_state_dict(before)
        return True

    def _validation_loss(self, model: nn.Module) -> float:
        split = self.data.validation if len(self.data.validation) else self.data.train
        options: dict[str, Any] = {"device": self.device, "progress": self.progress, "group": self.group}
        return evaluate(model, split, description="choosing BatchNorm statistics", **options).loss

    def finetune(self, model: nn.Module, name: str, masking: MaskUpdates | None = None) -> dict[str, Any]:
        if self.job.finetune is None:
            raise UsageError("this job has no fine-tuning")
        distill = self.job.finetune.distill
        beside = Beside(teacher=None if distill is None else self.model, masking=masking)
        options: dict[str, Any] = {"device": self.device, "progress": self.progress, "beside": beside}
        with opened(model, self.data, self.job.finetune, output=self.folder / name if self.folder else None, **options) as run:
            result = self.named(run.finish().to_json())
        learned: dict[str, Any] = {} if distill is None else {"distill": distill.to_json()}
        if epochs := self.job.finetune.qat_epochs:
            learned["qat_epochs"] = epochs
        return {**result, **learned, **({} if masking is None else {"prune_schedule": masking.schedule.to_json()})}


def picked(job: Job) -> str:
    """What is done that was left open, in one line."""
    epochs = 0 if job.finetune is None else job.finetune.epochs
    budget = f"{epochs} epoch{'s' * (epochs != 1)} of fine-tuning" if epochs else "no fine-tuning"
    return f"no preset is named; picked for {budget}: {', '.join(job.picked)}" if job.picked else ""


def pruned_before(bundle: Bundle | None) -> dict[str, Any]:
    """For the manifest of a network that carried masks: what the bundle says of them, and of those before."""
    if bundle is None:
        return {}
    earlier = bundle.facts.get("pruned_before", [])
    return {"pruned_before": [*earlier, {key: bundle.facts[key] for key in ("ratios", "settings") if key in bundle.facts}]}


def read_statistics(folder: Path | str | None) -> dict[str, Statistics]:
    """Statistics that `fineprune calibrate` left in `folder`, as arguments of `prune`."""
    if folder is None:
        return {}
    found = {kind: Statistics.load(Path(folder) / kind) for kind in ("blocks", "weights") if (Path(folder) / kind).is_dir()}
    if not found:
        above = f" ({Path(folder).parent})" if (Path(folder) / FACTS).is_file() else ""  # blocks or weights of one were named
        raise UsageError(f"{folder} holds no statistics; name the output folder of `fineprune calibrate`{above}")
    return found
