// What the files of the AVX-512 sets have in common: all operations but the dot product of integers.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "isas.h"

EDM_BEGIN
using V = __m512;
using I = __m512i;
constexpr int kLanes = 16, kRows = 12, kWide = 2;
static inline V load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
static inline V set1(float x) { return _mm512_set1_ps(x); }
static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static inline V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
static inline V load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
static inline void store_part(float* p, V v, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v); }
static inline V larger(V largest, V v) { return _mm512_max_ps(largest, _mm512_abs_ps(v)); }  // of absolute values
static inline I load_pairs(const int16_t* p) { return _mm512_loadu_si512(p); }
static inline I set_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    return _mm512_set1_epi32(pair);
}
static inline V to_float(I v) { return _mm512_cvtepi32_ps(v); }
// nearest integers, ties to even, saturated to 16 bits
static inline void store_int16(int16_t* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
}
// The number is an operand in memory: the compiler would rather load it once for all columns, to a register that is not
// there.
static inline V add_at(V b, const float* p) {
    V sum;
    asm("vaddps %2%{1to16%}, %1, %0" : "=v"(sum) : "v"(b), "m"(*p));
    return sum;
}
static inline V fma_at(V b, const float* p, V c) {
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(b), "m"(*p));
    return c;
}
static inline V load_thirds(const float* p) {
    const V c = load_part(p + 32, 14);
    const V ab = _mm512_mask_blend_ps(0x4924, load(p), load(p + 16)), abc = _mm512_mask_blend_ps(0x2492, ab, c);
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 3, 6, 9, 12, 15, 2, 5, 8, 11, 14, 1, 4, 7, 10, 13), abc);
}
static inline V zip_low(V a, V b) {
    const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(a, order, b);
}
static inline V zip_high(V a, V b) {
    const __m512i order = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(a, order, b);
}
static inline V max_of(V a, V b) { return _mm512_max_ps(a, b); }
static inline V shift_to_exponent(V z) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(z), 23)); }
static inline V minus_abs(V v) { return _mm512_or_ps(v, set1(-0.0f)); }
static inline V times_if_negative(V m, V e) {
    return _mm512_mask_mul_ps(m, _mm512_movepi32_mask(_mm512_castps_si512(m)), m, e);
}
// n / d within 2 ulp for d in [1, 2]: a division takes as long as all the rest
static inline V quotient(V n, V d) {
    const V q = _mm512_rcp14_ps(d);
    return n * (q * fnma(d, q, set1(2.0f)));
}
EDM_END
