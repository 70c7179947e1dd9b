"""Products by oneDNN equal those of torch for every stride, and give the same log-probs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from combinations import each_value
from meetlm.controls.kernels import fused_linear, products
from meetlm.controls.kernels.products import add_product, onednn_is_faster, product
from meetlm.data.batch import collate
from tiny import ARCHITECTURES, LENGTHS, gap, gradients, sequences, tiny_policy

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


By = Callable[[bool], None]


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> By:
    """Return a function that switches oneDNN on or off."""

    def choose(onednn: bool) -> None:
        for module in (fused_linear, products):
            monkeypatch.setattr(module, "onednn_is_faster", lambda: onednn)

    return choose


def matrices(rows: int, columns: int) -> dict[str, Tensor]:
    """Return matrices [rows, columns] with every kind of strides."""
    wide = torch.randn(2 * rows, 3 * columns)
    return {
        "plain": torch.randn(rows, columns),
        "transposed": torch.randn(columns, rows).T,
        "a chunk": wide[:rows, columns : 2 * columns],
        "every other row": wide[::2, :columns],
        "one row for all": torch.randn(1, columns).expand(rows, columns),
    }


@needs_onednn
@pytest.mark.parametrize("sizes", [(5, 4, 3), (1, 4, 3), (5, 1, 3), (0, 4, 3), (5, 0, 3), (33, 64, 96)])
def test_a_product_equals_torchs(sizes: tuple[int, int, int], by: By) -> None:
    by(True)
    torch.manual_seed(0)
    rows, inner, columns = sizes
    for x in matrices(rows, inner).values():
        for weight in matrices(columns, inner).values():
            for bias in (None, torch.randn(columns)):
                result, expected = product(x, weight, bias), functional.linear(x, weight, bias)
                assert result.shape == expected.shape and torch.allclose(result, expected, atol=1e-5)
            y = torch.randn(rows, columns)
            expected = y + x @ weight.T
            assert add_product(y, x, weight) is y and torch.allclose(y, expected, atol=1e-5)


@needs_onednn
def test_gaps_between_rows_of_a_weight_are_not_slow(by: By) -> None:
    by(True)
    weight = torch.randn(1536, 3 * 576)[:, 576 : 2 * 576]
    started = perf_counter()
    product(torch.randn(1036, 576), weight)
    assert perf_counter() - started < 2, "it is 10 s where oneDNN has no kernel for them"


@needs_onednn
@each_value(architecture=ARCHITECTURES, kind=("none", "soft-prompt", "lora"))
def test_a_policy_is_the_same_with_and_without_onednn(architecture: str, kind: str, by: By) -> None:
    outputs = []
    for onednn in (False, True):
        by(onednn)
        policy = tiny_policy(architecture, kind, dtype=torch.float32)
        plain = [layer for layer in policy.lm.modules() if type(layer) in fused_linear.LINEAR_LAYERS]
        assert plain and all("forward" in vars(layer) for layer in plain) or not onednn
        policy.lm.requires_grad_(True)
        batch = collate(sequences(policy, LENGTHS), policy.layout)
        values = policy(batch["blocks"], batch["num_completions"])
        values.sums().sum().backward()
        outputs.append((values.values.detach(), gradients(policy)))
    assert torch.allclose(outputs[0][0], outputs[1][0], atol=1e-5)
    assert gap(outputs[0][1], outputs[1][1]) < 1e-4


@needs_onednn
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_onednn_stores_no_more_for_backward(trained: bool, by: By) -> None:
    saved = []
    for onednn in (False, True):
        by(onednn)
        policy = tiny_policy("llama", "soft-prompt", dtype=torch.float32)
        policy.lm.requires_grad_(trained)
        batch = collate(sequences(policy, LENGTHS), policy.layout)
        blocks: dict[int, int] = {}

        def keep(tensor: Tensor, blocks: dict[int, int] = blocks) -> Tensor:
            blocks[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            values = policy(batch["blocks"], batch["num_completions"]).values
        saved.append(sum(blocks.values()))
        del values
    assert saved[1] <= saved[0]


@pytest.mark.parametrize(
    ("text", "capability", "faster"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", True),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", False),
        ("vendor_id\t: GenuineIntel\n", "AVX512", False),
    ],
)
def test_onednn_is_for_avx512_of_other_makers_than_intel(
    text: str, capability: str, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(products, "CPUINFO", file)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    onednn_is_faster.cache_clear()
    assert onednn_is_faster() is (faster and torch.backends.mkldnn.is_available())
    onednn_is_faster.cache_clear()
