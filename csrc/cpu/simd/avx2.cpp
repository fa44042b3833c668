// Eight floats: x86 with AVX2 and FMA.
#include "isas.h"

#if EDM_X86
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define EDM_ROW_avx2 EDM_CHOSEN
EDM_BEGIN
using V = __m256;
using I = __m256i;
constexpr int kLanes = 8, kRows = 6, kWide = 2;
static inline V load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
static inline V set1(float x) { return _mm256_set1_ps(x); }
static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
static inline V fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
static inline __m256i mask_of(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline V load_part(const float* p, int n) { return _mm256_maskload_ps(p, mask_of(n)); }
static inline void store_part(float* p, V v, int n) { _mm256_maskstore_ps(p, mask_of(n), v); }
static inline V larger(V largest, V v) { return _mm256_max_ps(largest, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v)); }
static inline I load_pairs(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
static inline I set_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    return _mm256_set1_epi32(pair);
}
static inline I dot(I sum, I x, I w) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)); }
static inline V to_float(I v) { return _mm256_cvtepi32_ps(v); }
static inline void store_int16(int16_t* p, V v) {
    const I i = _mm256_cvtps_epi32(v);
    const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
static inline V add_at(V b, const float* p) { return b + set1(*p); }
static inline V fma_at(V b, const float* p, V c) { return fma(b, set1(*p), c); }
static inline V load_thirds(const float* p) {
    const V ab = _mm256_blend_ps(load(p), load(p + 8), 0x92), abc = _mm256_blend_ps(ab, load_part(p + 16, 6), 0x24);
    return _mm256_permutevar8x32_ps(abc, _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5));
}
static inline V zip_low(V a, V b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
static inline V zip_high(V a, V b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}
static inline V max_of(V a, V b) { return _mm256_max_ps(a, b); }
static inline V shift_to_exponent(V z) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(z), 23)); }
static inline V minus_abs(V v) { return _mm256_or_ps(v, set1(-0.0f)); }
static inline V times_if_negative(V m, V e) { return _mm256_blendv_ps(m, m * e, m); }
static inline V quotient(V n, V d) { return n / d; }
EDM_END

#include "../kernels/table.h"
#endif
