// group_norm_silu: u = (x - mean) rstd weight + bias; m = shift + u (scale + 1); y = m sigmoid(m), and its backward.
#pragma once

#include "arguments.h"

namespace edm {

struct GroupNormSilu {
    int dtype;
    void* y_ptr;                        // (n, c, space): output of forward; null on the CPU if affine_ptr is not
    void* stats_ptr;                    // (3, n, groups): output of forward, input of backward. Mean, what its
                                        // rounding lost, 1 / sqrt(var + eps). CUDA: float32, float64 for float64; may
                                        // be null
    const void* x_ptr;                  // (n, c, space)
    const void *weight_ptr, *bias_ptr;  // (c)
    const void *scale_ptr, *shift_ptr;  // (n or 1, c), or null
    const void* dy_ptr;                 // (n, c, space): input of backward
    void* dx_ptr;                       // (n, c, space): output of backward
    void* dparams_ptr;                  // (rows, c): dweight, dbias, and the rows of dscale and dshift: likewise
    int64_t n, c, space, groups;
    int64_t scale_rows, shift_rows;     // n, 1, or 0 for none
    double eps;
    bool silu;
    bool channels_last;                 // of x, y, dy and dx: (n, space, c)
    int64_t x_pitch;                    // channels last, forward: elements from pixel to pixel of x, c or more
    void* workspace_ptr;                // CUDA: group_norm_silu_fwd_workspace_cuda bytes, or null where they are 0
    void* affine_ptr;                   // CPU, channels last, or null: (n, 3, c), output of forward: mean, a and b of
                                        // y = m or m sigmoid(m), m = (x - mean) a + b
};

template <>
inline std::vector<Field> fields<GroupNormSilu>() {
    using S = GroupNormSilu;
    return {MUST(kAny, dtype), MUST(kAny, x_ptr), BOTH(kCuda, kForward, y_ptr),
            BOTH(kForward | kBackward, kCuda, stats_ptr), MUST(kAny, weight_ptr), MUST(kAny, bias_ptr),
            MAY(kAny, scale_ptr), MAY(kAny, shift_ptr), MUST(kBackward, dy_ptr), MUST(kBackward, dx_ptr),
            MUST(kBackward, dparams_ptr), MUST(kAny, n), MUST(kAny, c), MUST(kAny, space), MUST(kAny, groups),
            MAY(kAny, scale_rows), MAY(kAny, shift_rows), MUST(kAny, eps), MUST(kAny, silu), MUST(kAny, channels_last),
            MUST(kForward | kCuda, x_pitch), MAY(kCuda, workspace_ptr), MAY(kForward, affine_ptr)};
}

int group_norm_silu_fwd_cuda(const GroupNormSilu& s, int device, void* stream);
int64_t group_norm_silu_fwd_workspace_cuda(const GroupNormSilu& s);  // as the sizes and the alignment of x and y ask

}  // namespace edm
