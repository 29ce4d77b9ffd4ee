"""scripts/benchmark/trace.py: what a compiled program spends its time on."""

import time

import jax
import jax.numpy as jnp
import pytest

from scripts.benchmark import alternating, trace

GPU = """HloModule jit_step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %e.1 = f32[8]{0} exponential(%p), metadata={op_name="jit(step)/jvp(M)/encoder/block_7/gelu/exp"}
}

%triton (a: bf16[8,8], b: bf16[8,8]) -> bf16[8,8] {
  %a = bf16[8,8]{1,0} parameter(0)
  %n = bf16[8,8]{1,0} add(%a, %a), metadata={op_name="jit(step)/add"}
  ROOT %dot.3 = bf16[8,8]{1,0} dot(%n, %a), metadata={op_name="jit(step)/jvp(M)/head/dot_general"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %gemm.1 = (f32[8,8]{1,0}, s8[64]{0}) custom-call(%x, %x), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/transpose(jvp(M))/encoder/encoder/block_3/mlp/fc1/dot_general"}
  %gemm_fusion.2 = bf16[8,8]{1,0} fusion(%x, %x), kind=kCustom, calls=%triton, metadata={op_name="jit(step)/add"}
  %start = (f32[8]{0}, f32[8]{0}) all-reduce-start(%x), to_apply=%sum
  %turned = f32[8]{0:T(8,128)} copy(%x), metadata={op_name="jit(step)/mul"}
  ROOT %loop = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
}
"""  # noqa: E501


def test_an_instruction_is_what_is_fused_into_it():
    found = trace.instructions(GPU)
    names = "gemm.1", "gemm_fusion.2", "start", "loop", "turned"
    described = {name: found[name][1:] for name in names}
    assert described == {
        "gemm.1": ("matrix products", "encoder/block_#/mlp/fc1, backward"),
        "gemm_fusion.2": ("matrix products", "head, forward"),
        "start": ("between devices", "other"),
        "loop": ("values one by one", "encoder/block_#/gelu, forward"),
        "turned": ("moving", "optimiser and the rest"),
    }


@pytest.mark.parametrize("loops", [False, True])
def test_the_time_of_a_program_is_that_of_its_products(tmp_path, loops):
    """Nearly all its work are three products, which may be the body of a loop."""

    def program(a):
        if loops:
            return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ a), a)
        return jnp.tanh(jnp.tanh(jnp.tanh(a @ a) @ a) @ a)

    a = jax.device_put(jnp.ones((1000, 1000)), jax.devices()[0])
    compiled = jax.jit(program).lower(a).compile()
    contender = alternating.Contender("products", lambda: compiled(a), jax.block_until_ready)
    begin = time.perf_counter()
    path = trace.record(contender, str(tmp_path))
    taken = time.perf_counter() - begin
    spent = trace.shares(path, compiled.as_text())
    total = sum(spent["kind"].values())
    assert spent["kind"]["matrix products"] > 0.5 * total
    assert next(iter(spent["kind"])) == "matrix products"
    assert all(sum(table.values()) == pytest.approx(total) for table in spent.values())
    assert 0 < trace.STEPS * total < taken  # nothing is counted twice


def test_says_that_a_trace_has_nothing(tmp_path):
    with jax.profiler.trace(str(tmp_path)):
        pass
    (path,) = tmp_path.rglob("*.xplane.pb")
    with pytest.raises(ValueError, match="names no instructions"):
        trace.seconds(path)
