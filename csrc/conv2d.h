// conv2d: y = (weight * x + bias + residual) scale, square kernel 1 or 3, zero padding, channels last.
#pragma once

#include "arguments.h"

namespace edm {

struct Conv2d {
    int dtype;                    // float32
    int algorithm;                // its place in kAlgorithms (cpu/algorithms.h)
    void* y_ptr;                  // (n, h + 2 padding - kernel + 1, likewise w, out), h and w perhaps doubled
    const void* x_ptr;            // (n, h, w, in)
    const void* weight_ptr;       // packed: as conv2d_pack_cpu leaves it; unpacked: (out, in, 3, 3), contiguous
    const void* bias_ptr;         // (bias_rows, out), or null: one row for all images, or one for each
    const void* residual_ptr;     // as y, or null
    int64_t n, h, w, in, out;
    int64_t kernel, padding;
    int64_t bias_rows;
    int64_t y_pitch, x_pitch, residual_pitch;  // elements from pixel to pixel: an image may be part of a wider one
    double scale;
    void* workspace_ptr;          // conv2d_fwd_workspace floats
    bool transposed;              // unpacked: the weight is (in, out, 3, 3), to be flipped in both axes
    const void* affine_ptr;       // unpacked, or null: as group_norm_silu_fwd_cpu leaves it; the norm of x is convolved
    bool silu;                    // the SiLU of the norm
    const void* balance_ptr;      // paired and unpacked: as conv2d_pack_cpu leaves it
    double clip;                  // the largest size of y; 0: any
};

template <>
inline std::vector<Field> fields<Conv2d>() {
    using S = Conv2d;
    return {MUST(kForward, dtype), MUST(kAny, algorithm), MUST(kForward, y_ptr), MUST(kForward, x_ptr),
            MUST(kForward, weight_ptr), MAY(kForward, bias_ptr), MAY(kForward, residual_ptr),
            MUST(kAny, n), MUST(kAny, h), MUST(kAny, w), FIELD(kAny, kNone, in, "inputs"),
            FIELD(kForward, kNone, out, "outputs"), MUST(kAny, kernel), MUST(kAny, padding), MAY(kForward, bias_rows),
            MUST(kForward, y_pitch), MUST(kForward, x_pitch), MAY(kForward, residual_pitch), MUST(kForward, scale),
            MAY(kForward, workspace_ptr), MAY(kForward, transposed), MAY(kForward, affine_ptr), MAY(kForward, silu),
            MAY(kForward, balance_ptr), MAY(kForward, clip)};
}

struct Conv2dPack {
    int dtype;
    int algorithm;
    void* packed_ptr;             // conv2d_packed_size elements
    const void* weight_ptr;       // (out, in, kernel, kernel), contiguous
    int64_t out, in, kernel;
    bool transposed;              // pack the adjoint, as if weight[i, o] had been flipped in both axes: (in, out) swap
};

template <>
inline std::vector<Field> fields<Conv2dPack>() {
    using S = Conv2dPack;
    return {MUST(kForward, dtype), MUST(kAny, algorithm), MUST(kForward, packed_ptr), MUST(kForward, weight_ptr),
            FIELD(kAny, kNone, out, "outputs"), FIELD(kAny, kNone, in, "inputs"), MUST(kAny, kernel),
            MAY(kAny, transposed)};
}

// The gradient of a 3x3 weight by tiles of F(4x4, 3x3): a sum over tiles of products in the transformed space.
struct Conv2dBwd {
    int dtype;                    // float32
    void* dweight_ptr;            // (out, in, 3, 3), contiguous
    const void* x_ptr;            // (n, h, w, in)
    const void* dy_ptr;           // (n, h + 2 padding - 2, likewise w, out)
    void* workspace_ptr;          // conv2d_bwd_workspace floats
    int64_t n, h, w, in, out, padding;
};

template <>
inline std::vector<Field> fields<Conv2dBwd>() {
    using S = Conv2dBwd;
    return {MUST(kBackward, dtype), MUST(kBackward, dweight_ptr), MUST(kBackward, x_ptr), MUST(kBackward, dy_ptr),
            MUST(kBackward, workspace_ptr), MUST(kAny, n), MUST(kAny, h), MUST(kAny, w),
            FIELD(kAny, kNone, in, "inputs"), FIELD(kAny, kNone, out, "outputs"), MUST(kAny, padding)};
}

int64_t conv2d_bwd_workspace(const Conv2dBwd& s);
int conv2d_bwd_cpu(const Conv2dBwd& s, int isa, int threads);

// Floats of a packed weight; unpacked: 0 or, paired, those that balance the channels of image and weight; -1 where the
// algorithm has no such kernel
int64_t conv2d_packed_size(const Conv2dPack& s);
int conv2d_pack_cpu(const Conv2dPack& s, int isa, int threads);
// floats; -1 where the algorithm does not compute such a layer
int64_t conv2d_fwd_workspace(const Conv2d& s);
int conv2d_fwd_cpu(const Conv2d& s, int isa, int threads);

}  // namespace edm
