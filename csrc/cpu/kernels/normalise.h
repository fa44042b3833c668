// The last pass of the norm over pixels whose channels lie side by side.
#pragma once

#include <cstdint>

#include "../simd/vector.h"
#include "exp.h"

EDM_BEGIN
template <int N>
static EDM_INLINE void silu_of(V* m) {
    V e[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) e[i] = minus_abs(m[i]);
    exponentials<N>(e);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) m[i] = quotient(times_if_negative(m[i], e[i]), set1(1.0f) + e[i]);
}

// y = m or m sigmoid(m), m = (x - mean) a + b, of N vectors of channels, the last with `left` elements
template <int N>
static EDM_INLINE void normalise(float* y, const float* x, const float* mean, const float* a,
                                                            const float* b, bool silu, int64_t left = kLanes) {
    V m[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
        const int64_t at = i * kLanes, n = i + 1 < N ? kLanes : left;
        m[i] = fma(load_upto(x + at, n) - load_upto(mean + at, n), load_upto(a + at, n), load_upto(b + at, n));
    }
    if (silu) silu_of<N>(m);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store_upto(y + i * kLanes, m[i], i + 1 < N ? kLanes : left);
}

// of all channels of one pixel
static void normalise_pixel(float* y, const float* x, const float* mean, const float* a, const float* b,
                            int64_t channels, bool silu) {
    int64_t c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes) normalise<4>(y + c, x + c, mean + c, a + c, b + c, silu);
    for (; c + 2 * kLanes <= channels; c += 2 * kLanes) normalise<2>(y + c, x + c, mean + c, a + c, b + c, silu);
    for (; c < channels; c += kLanes) normalise<1>(y + c, x + c, mean + c, a + c, b + c, silu, channels - c);
}
EDM_END
