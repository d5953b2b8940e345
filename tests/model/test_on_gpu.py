"""One CUDA card: the packed forward and its engine, held against the CPU's float32."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import random_texts

from bertray.model.engine import Engine, EngineStats
from bertray.model.operations import attend_by_length, attend_fused
from bertray.model.settings import resolve_settings
from bertray.schema import OK, UNKNOWN_ID

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
kernels = pytest.importorskip("bertray.model.kernels", exc_type=ImportError)

# Of a probability; the models are random, and their logits larger than a trained one's.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.06, "float16": 0.01}


def make_engine(bundle, device="cuda", **wanted):
    return Engine(bundle, resolve_settings(bundle, device=device, **wanted), num_threads=1)


def test_probabilities_are_those_of_the_cpu(make_bundle, family, caplog):
    bundle, texts, pairs = make_bundle(family), random_texts(40), random_texts(40, seed=1)
    wanted = make_engine(bundle, "cpu", backend="torch").predict(texts, pairs).probabilities
    for dtype, tolerance in TOLERANCES.items():
        engine = make_engine(bundle, dtype=dtype)
        found = engine.predict(texts, pairs).probabilities
        np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)
        packed = engine._backend._packed
        if packed is not None and dtype != "float32":
            attend = attend_by_length if packed.has_bias else attend_fused
            assert packed.operations.attend is attend
            assert packed.operations.add_norm is kernels.add_norm
    said = [record.message for record in caplog.records if record.name.startswith("bertray")]
    assert not said, "something fell back to what is slower"


def test_the_same_rows_give_the_same_bits(make_bundle):
    bundle, texts = make_bundle("bert"), random_texts(3_000)
    first, again, other = make_engine(bundle), make_engine(bundle), make_engine(bundle)
    other.predict(random_texts(500, seed=2))
    wanted = first.predict(texts).probabilities
    for engine in (first, again, other):
        assert engine.predict(texts).probabilities.tobytes() == wanted.tobytes()


def test_two_threads_at_once_get_their_own_rows(make_bundle):
    engine = make_engine(make_bundle("bert"))
    batches = [random_texts(400, seed=seed) for seed in range(8)]
    wanted = [engine.predict(texts).probabilities for texts in batches]
    with ThreadPoolExecutor(2) as pool:
        for one, other in zip(wanted, pool.map(engine.predict, batches), strict=True):
            assert one.tobytes() == other.probabilities.tobytes()


def test_memory_that_runs_out_halves_the_budget_and_loses_no_row(make_bundle):
    bundle, texts = make_bundle("bert"), random_texts(60_000)
    wanted = make_engine(bundle).predict(texts).probabilities
    engine, stats = make_engine(bundle, max_batch_tokens=10_000_000), EngineStats()
    torch.cuda.empty_cache()
    few = (torch.cuda.memory_allocated() + 200 * 2**20) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(few)
    try:
        found = engine.predict(texts, stats=stats)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert stats.num_halvings > 0
    assert set(found.status) == {OK}
    np.testing.assert_allclose(found.probabilities, wanted, atol=0.03, rtol=0)


BREAK = """
import sys
import numpy as np
from bertray.model.bundle import open_bundle
from bertray.model.engine import Engine
from bertray.model.settings import resolve_settings

bundle = open_bundle(sys.argv[1])
engine = Engine(bundle, resolve_settings(bundle, device="cuda"), num_threads=1)
gather = engine._backend.gather
def with_an_id_that_is_none(encoded, rows):
    encoded.input_ids[3] = 30_000  # behind the back of what looks for such
    return gather(encoded, rows)
engine._backend.gather = with_an_id_that_is_none
try:
    print(engine.predict(["a good film", "a bad film"]).status)
except Exception as error:
    print("gave up:", type(error).__name__)
"""


def test_a_token_that_the_model_does_not_have_costs_its_row_alone(make_bundle):
    engine = make_engine(make_bundle("bert"))
    encode = engine._encoder

    def with_an_id_that_is_none(*columns):
        rows = encode(*columns)
        rows.encoded.input_ids[1] = 30_000
        return rows

    engine._encoder = with_an_id_that_is_none
    assert engine.predict(["good", "a bad film"]).status == (UNKNOWN_ID, OK)


def test_a_card_that_is_lost_is_blamed_on_no_row(make_bundle):
    """A device-side assertion ends the process's use of the card: another is to take the split."""
    command = [sys.executable, "-c", BREAK, str(make_bundle("bert").folder)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "gave up: AcceleratorError" in found.stdout, found.stdout + found.stderr[-2000:]


def test_the_time_of_the_card_is_told_apart(make_bundle):
    stats = EngineStats()
    make_engine(make_bundle("bert")).predict(random_texts(5_000), stats=stats)
    assert stats.seconds["compute"] > 0
    assert stats.num_padded_tokens == stats.num_tokens


def test_a_budget_changes_no_more_than_last_bits(make_bundle):
    bundle, texts = make_bundle("bert"), random_texts(2_000)
    settings = resolve_settings(bundle, device="cuda", dtype="float32")
    few, many = (
        Engine(bundle, replace(settings, max_batch_tokens=tokens)) for tokens in (300, 50_000)
    )
    np.testing.assert_allclose(
        few.predict(texts).probabilities, many.predict(texts).probabilities, atol=1e-5, rtol=0
    )
