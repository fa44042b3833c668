// conv2d: y = (weight * x + bias + residual) scale, square kernel 1 or 3, zero padding, channels last.
#pragma once

#include "common.h"

namespace edm {

// How the products are taken. Winograd (Lavin & Gray 2016): tiles of 2x2, 4x4 or 4x8 outputs from 16, 36 or 60 products
// a channel pair, where the direct sum takes 36, 144 or 288. Int16: the products are those of scaled 16-bit integers,
// twice as many at a time where the processor has AVX512-VNNI, and exact; what is lost is the rounding to them, less
// than to bfloat16. Up: each pixel of x stands for 2x2 of them, padded by 1; y (n, 2 h, 2 w, out) comes from four 2x2
// convolutions of x, in tiles of 2x2 or 4x4 outputs from 9 or 25 products. Plain: the weight lies as networks hold it,
// and its transform is taken at each call; the bits are those of the packed weight's. Paired: the products are taken in
// pairs of terms (csrc/cpu/_pairs.h), half as many multiplications for two thirds of the channels; sums with infinities
// may be NaN.
enum ConvAlgorithm : int {
    kDirect = 0,
    kWinograd2 = 2,
    kWinograd4 = 4,
    kInt16 = 10,
    kWinograd4Int16 = 14,
    kWinograd2Up = 22,
    kWinograd4Up = 24,
    kWinograd4UpInt16 = 34,
    kPlain = 100,
    kWinograd2Plain = kPlain + kWinograd2,
    kWinograd4Plain = kPlain + kWinograd4,
    kWinograd2UpPlain = kPlain + kWinograd2Up,
    kWinograd4UpPlain = kPlain + kWinograd4Up,
    kWinograd4x8Plain = kPlain + 48,
    kPaired = 1000,  // with a kernel of 1, or with the kPlain ones
};

struct Conv2d {
    int dtype;                    // float32
    int algorithm;
    void* y_ptr;                  // (n, h + 2 padding - kernel + 1, likewise w, out)
    const void* x_ptr;            // (n, h, w, in)
    const void* weight_ptr;       // as conv2d_pack_cpu leaves it for this algorithm; Plain: (out, in, 3, 3), contiguous
    const void* bias_ptr;         // (bias_rows, out), or null: one row for all images, or one for each
    const void* residual_ptr;     // as y, or null
    int64_t n, h, w, in, out;
    int64_t kernel, padding;
    int64_t bias_rows;
    int64_t y_pitch, x_pitch, residual_pitch;  // elements from pixel to pixel: an image may be part of a wider one
    double scale;
    void* workspace_ptr;          // conv2d_fwd_workspace floats
    bool transposed;              // Plain: the weight is (in, out, 3, 3), to be flipped in both axes
    const void* affine_ptr;       // Plain, or null: as group_norm_silu_fwd_cpu leaves it; the norm of x is convolved
    bool silu;                    // the SiLU of the norm
    const void* balance_ptr;      // Paired with Plain: as conv2d_pack_cpu leaves it for this algorithm
};

struct Conv2dPack {
    int dtype;
    int algorithm;
    void* packed_ptr;             // conv2d_packed_size elements
    const void* weight_ptr;       // (out, in, kernel, kernel), contiguous
    int64_t out, in, kernel;
    bool transposed;              // pack the adjoint, as if weight[i, o] had been flipped in both axes: (in, out) swap
};

// The gradient of a 3x3 weight by the same tiles as kWinograd4: a sum over tiles of products in the transformed space.
struct Conv2dBwd {
    int dtype;                    // float32
    void* dweight_ptr;            // (out, in, 3, 3), contiguous
    const void* x_ptr;            // (n, h, w, in)
    const void* dy_ptr;           // (n, h + 2 padding - 2, likewise w, out)
    void* workspace_ptr;          // conv2d_bwd_workspace floats
    int64_t n, h, w, in, out, padding;
};

int64_t conv2d_bwd_workspace(const Conv2dBwd& s);
int conv2d_bwd_cpu(const Conv2dBwd& s, int isa, int threads);

// Floats of a packed weight, for Plain 0 or, Paired, those that balance the channels of image and weight; -1 where the
// algorithm has none for this kernel
int64_t conv2d_packed_size(const Conv2dPack& s);
int conv2d_pack_cpu(const Conv2dPack& s, int isa, int threads);
int64_t conv2d_fwd_workspace(const Conv2d& s);
int conv2d_fwd_cpu(const Conv2d& s, int isa, int threads);

}  // namespace edm
