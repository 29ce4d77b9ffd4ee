"""What is read from the text of compiled programs, recorded ones and some of this jax."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mae_jax.distributed import device_mesh
from mae_jax.planning import hlo

TPU = """HloModule jit_step, is_scheduled=true

%cond.1 (p: (s32[], bf16[8,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %p = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%all-reduce-scatter.1 (a: bf16[64,64]) -> bf16[16,64] {
  %a = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %sum = bf16[64,64]{1,0} all-reduce(%a), channel_id=7, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %mine = bf16[16,64]{1,0:T(8,128)(2,1)} dynamic-slice(%sum), dynamic_slice_sizes={16,64}
}

%async_collective_fusion.1 (b: bf16[8,64]) -> bf16[64,64] {
  %b = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[64,64]{1,0} all-gather(%b), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}
}

%async_collective_fusion.2 (b: bf16[8,64]) -> bf16[64,64] {
  %b = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g.1 = bf16[64,64]{1,0} all-gather(%b), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}
}

%sliced.1 (all: f32[12,1024], i: s32[]) -> f32[1024] {
  %all = f32[12,1024]{1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  ROOT %one = f32[1024]{0:T(1024)S(1)} dynamic-slice(%all, %i), dynamic_slice_sizes={1,1024}
}

%body.1 (p: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %p = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}, f32[12,1024]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,64]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all = f32[12,1024]{1,0:T(8,128)} get-tuple-element(%p), index=2
  %gathered = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} fusion(%x), calls=%async_collective_fusion.1
  %again = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} fusion(%x), calls=%async_collective_fusion.2
  %one = f32[1024]{0:T(1024)S(1)} fusion(%all, %i), kind=kLoop, calls=%sliced.1
  ROOT %t = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) tuple(%i, %x)
}

ENTRY %main.1 (w: bf16[64,64], p: (s32[], bf16[8,64])) -> bf16[16,64] {
  %w = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %p = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}, f32[12,1024]{1,0:T(8,128)}) parameter(1)
  %loop = (s32[]{:T(128)}, bf16[8,64]{1,0}) while(%p), condition=%cond.1, body=%body.1
  %sums = (f32[32]{0:T(256)S(1)}, /*index=1*/f32[]{:T(128)}) all-reduce(%c, %d), channel_id=3, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}, use_global_device_ids=true
  ROOT %r = bf16[16,64]{1,0:T(8,128)(2,1)} fusion(%w), kind=kCustom, \
calls=%all-reduce-scatter.1, backend_config={"window_config":{"estimated_cycles":"1824"}}
}
"""


def test_collectives_of_a_recorded_tpu_program():
    """Its own forms: three ways to write groups, fusions, one gather named by two of them."""
    found = {x.kind: x for x in hlo.parse(TPU).collectives()}
    assert found["reduce-scatter"] == hlo.Collective("reduce-scatter", 64 * 64 * 2, 4, 1)
    assert found["all-gather"] == hlo.Collective("all-gather", 64 * 64 * 2, 8, 12)  # in the loop
    assert found["all-reduce"] == hlo.Collective("all-reduce", 33 * 4, 8, 1)
    assert len(found) == len(hlo.parse(TPU).collectives())
    assert found["all-gather"].sent == 12 * 64 * 64 * 2 * 7 / 8
    assert found["all-reduce"].sent == 2 * 33 * 4 * 7 / 8


def test_collectives_that_start_and_are_done():
    """As for GPUs: the start holds what goes in and what comes out, the done is no second one."""
    text = """ENTRY %main (a: f32[4], b: f32[2]) -> (f32[16], f32[8]) {
  %a = f32[4]{0} parameter(0)
  %b = f32[2]{0} parameter(1)
  %s = ((f32[4]{0}, f32[2]{0}), (f32[16]{0}, f32[8]{0})) all-gather-start(%a, %b), channel_id=1, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %p = (f32[4]{0}, f32[4]{0}) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  %q = f32[4]{0} collective-permute-done(%p)
  ROOT %d = (f32[16]{0}, f32[8]{0}) all-gather-done(%s)
}
"""
    gather, permute = hlo.parse(text).collectives()
    assert gather == hlo.Collective("all-gather", 24 * 4, 4, 1)
    assert permute.kind == "collective-permute" and permute.sent == 4 * 4


def test_loops_of_a_tpu_that_count_in_twos():
    """A product with its scatter, in a loop; a gather that goes on meanwhile starts outside."""
    text = """%cond (p: (f32[4], u32[])) -> pred[] {
  %p = (f32[4]{0}, u32[]) parameter(0)
  %n = u32[] constant(8)
  %i = u32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
%async_collective_fusion.1 (b: f32[4]) -> f32[16] {
  %b = f32[4]{0} parameter(0)
  ROOT %g = f32[16]{0} all-gather(%b), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
}
%body (p: (f32[4], u32[])) -> (f32[4], u32[]) {
  %p = (f32[4]{0}, u32[]) parameter(0)
  %two = u32[] constant(2)
  %x = f32[4]{0} get-tuple-element(%p), index=0
  %i = u32[] get-tuple-element(%p), index=1
  %s = (f32[4]{0}, f32[4]{0}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %d = f32[4]{0} collective-permute-done(%s)
  %m = f32[16]{0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.1
  %next = u32[] add(%i, %two)
  ROOT %t = (f32[4]{0}, u32[]) tuple(%d, %next)
}
ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %zero = u32[] constant(0)
  %first = f32[16]{0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.1.clone
  %p = (f32[4]{0}, u32[]) tuple(%x, %zero)
  %w = (f32[4]{0}, u32[]) while(%p), condition=%cond, body=%body
  ROOT %r = f32[4]{0} get-tuple-element(%w), index=0
}
"""
    fusion = text[text.index("%async") : text.index("%body")]
    program = hlo.parse(fusion.replace("fusion.1", "fusion.1.clone") + text)
    assert program.times["body"] == 4
    found = {x.kind: x for x in program.collectives()}
    assert found["collective-permute"].sent == 4 * 16
    assert found["all-gather"] == hlo.Collective("all-gather", 64, 4, 1)


def test_traffic_of_a_recorded_tpu_program():
    """What stays on the chip moves nothing, a slice is not its array, a loop counts its turns."""
    program = hlo.parse(TPU)
    x, w, slice_of_w, one = 8 * 64 * 2, 64 * 64 * 2, 16 * 64 * 2, 1024 * 4
    once = 2 * x + one + 4  # both gathers read x; the slice reads a row and the counter
    outside = 4 + w + slice_of_w  # of the sums one is on the chip
    assert program.traffic(loops=False) == once + outside
    assert program.traffic() == 12 * once + outside
    assert program.traffic(everywhere=True) > 12 * (2 * w + once)
    assert program.cycles() == 1824


def test_loops_of_a_compiled_program_are_counted():
    weights = jnp.zeros((7, 256, 256))

    def looped(x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    def unrolled(x):
        for w in weights:
            x = x @ w
        return x

    text = lambda f: jax.jit(f).lower(jnp.zeros((256, 256))).compile().as_text()
    program = hlo.parse(text(looped))
    assert 7 in program.times.values()
    expected = hlo.parse(text(unrolled)).traffic()
    assert program.traffic(loops=False) < 0.5 * expected
    assert 0.9 * expected < program.traffic() < 3 * expected  # a loop copies what it slices


def test_bytes_sent_of_compiled_collectives():
    mesh = device_mesh.make_mesh(2, 2)
    place = lambda *axes: NamedSharding(mesh, P(*axes))

    def sent(f, out, *into):
        x = jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=place(*into))
        text = jax.jit(f, out_shardings=place(*out)).lower(x).compile().as_text()
        return {x.kind: (x.sent, x.group) for x in hlo.parse(text).collectives()}

    whole = 8 * 1024 * 4
    assert sent(lambda x: x, (), ("data", "fsdp")) in (
        {"all-gather": (whole * 3 / 4, 4)},
        {"all-gather": (whole / 2, 2)},
    )
    assert sent(lambda x: x.sum(0), (), ("data",)) == {"all-reduce": (2 * 1024 * 4 / 2, 2)}
