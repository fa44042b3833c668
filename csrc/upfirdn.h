// upfirdn: y[i] = gain sum_k x[factor i - padding + k] f[k] (down), or its adjoint (up), per axis, zeros outside.
#pragma once

#include "arguments.h"

namespace edm {

struct Upfirdn {
    int dtype;
    void* y_ptr;                      // (n, c, out_h, out_w)
    const void *x_ptr, *f_ptr;        // (n, c, h, w); (taps, taps)
    int64_t n, c, h, w, out_h, out_w, taps, factor, padding;
    double gain;
    bool up;                          // y[i] = gain sum_j x[j] f[i + padding - factor j]
    bool channels_last;               // of x and y
    int64_t x_pitch;                  // channels last: elements from pixel to pixel of x, c or more
};

template <>
inline std::vector<Field> fields<Upfirdn>() {
    using S = Upfirdn;
    return {MUST(kAny, dtype), MUST(kAny, y_ptr), MUST(kAny, x_ptr), MUST(kAny, f_ptr), MUST(kAny, n), MUST(kAny, c),
            MUST(kAny, h), MUST(kAny, w), MUST(kAny, out_h), MUST(kAny, out_w), MUST(kAny, taps), MUST(kAny, factor),
            MUST(kAny, padding), MUST(kAny, gain), MUST(kAny, up), MUST(kAny, channels_last), MUST(kAny, x_pitch)};
}

int upfirdn_fwd_cuda(const Upfirdn& s, int device, void* stream);

}  // namespace edm
