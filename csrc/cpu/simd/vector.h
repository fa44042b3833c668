// What the kernels work with: the vectors and operations that a file of this folder defines for its instruction set,
// and below what follows from them.
//   V, I                        kLanes floats, and as many 32-bit integers or pairs of int16
//   kRows, kWide                kRows x kWide vectors are the accumulators of a matrix product that the registers hold
//   load, store, load_part, store_part, set1        at any address; _part: the first n < kLanes, zeros in the others
//   fma(a, b, c), fnma(a, b, c)                     a b + c and c - a b
//   add_at(b, p), fma_at(b, p, c)                   b + *p and c + b *p
//   max_of(a, b), larger(a, b)                      the larger of a and b, of a and |b|; the latter where one is NaN
//   minus_abs(v), times_if_negative(m, e)           -|v|; m e where m < 0 and m elsewhere
//   quotient(n, d)                                  n / d within 2 ulp for d in [1, 2]
//   shift_to_exponent(z)                            the bits of z, 23 places to the left
//   zip_low(a, b), zip_high(a, b)                   a0 b0 a1 b1 ... of the first and of the last halves
//   load_thirds(p)                                  every third of p[0]...p[3 kLanes - 3]; reads nothing after that
//   load_pairs(p), set_pair(p)                      kLanes pairs of int16; the pair at p in all lanes
//   dot(sum, x, w)                                  sum + x0 w0 + x1 w1 in each lane of pairs, modulo 2^32
//   to_float(i), store_int16(p, v)                  nearest integers, ties to even, saturated to 16 bits
#pragma once

#include <cstdint>

#include "isas.h"

EDM_BEGIN
static_assert(kRows * kWide + kWide < EDM_ISAS(EDM_REGISTERS_OF), "registers for accumulators, columns and a row");

#if defined(__GNUC__)
// always inline: GCC takes a call that only prefetches for one without effect, and drops it
static EDM_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
static EDM_INLINE void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1); }
#else
static inline void prefetch(const void*) {}
static inline void prefetch_to_write(const void*) {}
#endif

static inline float sum_of(V v) {
    float lanes[kLanes], sum = 0;
    store(lanes, v);
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
    return sum;
}
static inline float largest_of(V v) {
    float lanes[kLanes], largest = 0;
    store(lanes, v);
    for (int i = 0; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}

// n >= kLanes: the whole vector
static inline V load_upto(const float* p, int64_t n) { return n >= kLanes ? load(p) : load_part(p, int(n)); }
static inline void store_upto(float* p, V v, int64_t n) { n >= kLanes ? store(p, v) : store_part(p, v, int(n)); }

// rows become columns: each round turns the bits of (row, lane), read as one index, by one place
static EDM_INLINE void transpose(V* t) {
#pragma GCC unroll 4
    for (int round = 1; round < kLanes; round *= 2) {
        V u[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            u[2 * i] = zip_low(t[i], t[i + kLanes / 2]);
            u[2 * i + 1] = zip_high(t[i], t[i + kLanes / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) t[i] = u[i];
    }
}
EDM_END
