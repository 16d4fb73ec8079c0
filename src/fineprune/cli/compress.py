"""`fineprune compress`."""

from pathlib import Path
from typing import Any

import click

from fineprune.common.errors import RunError

from .compression_options import compress_settings, compression_options, open_both
from .options import bundle_argument, check_named, json_option, warn_random
from .pruning_options import prune_options, target_options
from .sections import CALIBRATION, PRUNING, RESULT, TRAINING, Command, stack


@click.command(cls=Command, short_help="Prune and fine-tune a trained network into a bundle.")
@bundle_argument
@prune_options
@stack(
    click.option(
        "--front",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Take the settings of a point in this file of `fineprune front`; other options change them, e.g. --epochs 20.",
    ),
    click.option("--point", type=int, metavar="N", help="The number of that point."),
    section=PRUNING,
)
@target_options
@compression_options(epochs=10)
@stack(
    click.option(
        "--statistics",
        type=click.Path(path_type=Path),
        help="Use the statistics of `fineprune calibrate` in this folder instead of new ones.",
    ),
    section=CALIBRATION,
)
@stack(
    click.option("--compare-dense", is_flag=True, help="Fine-tune the dense network in the same way, too, and report its accuracy beside."),
    section=TRAINING,
)
@stack(
    click.option(
        "--output",
        required=True,
        type=click.Path(path_type=Path),
        help="Write the bundle into this folder, where `fineprune export` reads it.",
    ),
    json_option,
    section=RESULT,
)
def compress(as_json: bool, output: Path, device: str, **options: Any) -> None:
    """Prune --model with --checkpoint on --data: calibrate, mask, fine-tune, and write a bundle. Run it again to resume.

    BUNDLE is a folder that this command wrote before: in the place of --model it keeps its masks and gets more on top, on its own data
    where --data is not given. An ONNX file in its place is a network with its weights, of which no code is needed.

    The training options belong to the fine-tuning; --epochs 0 leaves it out.
    """
    from fineprune.common.files import check_writable
    from fineprune.common.processes import joined
    from fineprune.common.progress import Bars
    from fineprune.compressor.bundle import check_target

    from ..asked import Asked
    from ..compression import compress_network
    from ..networks import load_arguments
    from ..trust import named_again
    from .render import print_compression, print_json, say

    asked = Asked.of(*compress_settings(options), measured=options["statistics"] is not None).at_point(options["front"], options["point"])
    job = asked.job(compare_dense=options["compare_dense"], device=device)
    check_target(output)
    check_writable(output)
    check_named(options)
    if job.schedule is None or not job.schedule.while_training:  # else an untrained network is one that is pruned on the fly
        warn_random(options)
    network, data = open_both(options)
    given: dict[str, Any] = {"spec": network.spec, "before": network.bundle, "statistics": options["statistics"], "output": output}
    with joined() as group:
        bundle = compress_network(network.model, data, job, **given, progress=group.speaker(Bars()))
    if not group.first:
        return
    if as_json:
        print_json(bundle.facts)
    else:
        print_compression(bundle.facts)
        again = named_again(network.spec, load_arguments(data.to_json()))
        say(f"wrote {output}; next: fineprune export {output}{again} --output {output}.onnx")
    if job.target is not None and not bundle.facts["search"]["end"]["kept"]:
        raise RunError(f"{output} was written, but does not keep the target ({job.target.text}); the lines above say why")
