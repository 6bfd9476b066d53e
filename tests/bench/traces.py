"""Traces of a step, as CUPTI and Kineto would tell them."""

from __future__ import annotations

from collections import Counter

from fastuiat.bench.events import MARK, Event, Trace

CONV = ((2, 1), (1, 1), (1, 1), False, (0, 0), 1)
X, W, Y = (8, 4, 16, 16), (6, 4, 3, 3), (8, 6, 8, 16)
FPROP = (
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64__5x_cudnn"
)
DGRAD = FPROP.replace("fprop", "dgrad")
WGRAD = "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816wgrad_optimized_bf16_128x128>"
LAYOUT = "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, true>"
REDUCE = "void splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float>"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>"
FOREACH = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<{}>"
SGD = FOREACH.format("FusedOptimizerTensorListMetadata<3>, FusedSgdMathFunctor<float, 3>")
CAST = FOREACH.format("TensorListMetadata<2>, Copy<c10::BFloat16, float>")


def forward(id, begin, end):
    values = (None, None, None, *CONV)
    return Event("aten::convolution", begin, end, id=id, shapes=(X, W, *[()] * 7), values=values)


def backward(id, begin, end, *mask):
    values = (None, None, None, None, *CONV, (*mask, False))
    shapes = (Y, X, W, *[()] * 8)
    return Event("aten::convolution_backward", begin, end, id=id, shapes=shapes, values=values)


def host(name, id, begin, end, thread=0):
    return Event(name, begin, end, id=id, thread=thread)


def kernel(name, begin, end, operator=0):
    return Event(name, begin, end, on_device=True, operator=operator)


LAUNCHED = Trace(
    (
        host(MARK, 1, 0, 90),
        host("Torch-Compiled Region: 0/0", 2, 1, 60),
        forward(3, 2, 10),
        host("aten::cudnn_convolution", 4, 3, 9),
        host("triton_poi_fused_relu_0", 5, 11, 12),
        backward(6, 13, 20, True, True),
        host("aten::copy_", 7, 14, 15),
        backward(8, 21, 25, False, True),
        host("aten::add", 9, 26, 27),
        host("Optimizer.step#SGD.step", 10, 1, 50, thread=7),
        host("aten::_foreach_copy_", 11, 2, 3, thread=7),
        host("aten::_fused_sgd_", 12, 4, 5, thread=7),
        kernel(LAYOUT, 100, 110, 4),
        kernel(FPROP, 110, 150, 4),
        kernel("triton_poi_fused_relu_0", 150, 160, 5),
        kernel("Memset (Device)", 160, 161, 6),
        kernel(LAYOUT, 161, 171, 7),
        kernel(FPROP, 171, 201, 6),  # cuDNN's choice for an input gradient
        kernel(WGRAD, 201, 251, 6),
        kernel(REDUCE, 251, 261, 6),
        kernel(WGRAD, 261, 281, 8),
        kernel("_sign_step_kernel", 281, 290, 2),
        kernel(ADD, 290, 300, 9),
        kernel(CAST, 300, 310, 11),
        kernel(SGD, 310, 340, 12),
        kernel("Memcpy DtoD (Device -> Device)", 350, 352),
    ),
    begin=0,
    end=352,
    steps=1,
)


def ns_by_kind(found):
    sums = Counter()
    for piece in found:
        sums[piece.kind] += piece.ns
    return dict(sums)
