"""A run of score without a cluster: its folder, its receipts, its summary are as ever."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from bertray.config import ScoreConfig
from bertray.schema import NOT_FINITE, NULL_TEXT, OK, Predictions, append_predictions
from bertray.score import contract
from bertray.score.abstain import abstain_below
from bertray.score.commits import Receipt
from bertray.score.pool import PoolPlan
from bertray.score.run import finish, prepare, tally_of
from bertray.score.sink import ShardSink
from bertray.score.source import fault_of, read_block
from bertray.score.summary import Summary

Predict = Callable[[Sequence[str | None]], np.ndarray]
SECONDS = 75.0  # that a run says it took
STAGES = {"read_s": 4.0, "tokenize_s": 9.0, "transfer_s": 0.0, "compute_s": 131.0, "write_s": 6.0}


def score_here(config: ScoreConfig, predict: Predict) -> Summary:
    """What ``bertray score`` does, by a model of the test's own; nulls have no prediction.

    Texts of which the model says NaN have none either.
    """
    job = prepare(config)
    output, reading, bundle = job.config.output, job.reading, job.bundle
    contract.agree(output.path, job.contract, job.standing, replace=output.replace)
    if output.replace:
        contract.start_over(output.path, job.contract, job.standing)
    digests, task = job.contract.digests, bundle.task
    sink = ShardSink(output.path, digests, "cpu", output.prefix, True, None, task)
    tally = tally_of(job)
    for split in job.standing.pending:
        block = read_block(split, reading)
        if fault_of(block) is None:
            texts = block[reading.text].to_pylist()
            values = predict(texts).astype(np.float32)
            status = tuple(
                NULL_TEXT if text is None else NOT_FINITE if is_nan else OK
                for text, is_nan in zip(texts, np.isnan(values).any(axis=1), strict=True)
            )
            values[[one != OK for one in status]] = np.nan
            block = append_predictions(
                block,
                Predictions(values, status),
                labels=bundle.labels,
                task=task,
                abstain_below=abstain_below(config.abstain, bundle),
                prefix=output.prefix,
            )
        receipt = Receipt.from_table(sink(block))
        if receipt.fault is None:
            job.standing.index.add(split, receipt)
        tally.add(receipt, is_new=True)
    job.standing.index.close()
    tally.summary.pool = PoolPlan("cpu", 2, 2, 0, 0.8, 1, 1, 1, 2, 2)
    tally.summary.seconds = SECONDS
    tally.summary.stats = Counter(STAGES)  # whatever this machine took
    return finish(job, tally)
