// Four floats: ARM in 64 bits, all of which have NEON.
#include "isas.h"

#if EDM_ARM64
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#define EDM_ROW_neon EDM_CHOSEN
EDM_BEGIN
using V = float32x4_t;
using I = int32x4_t;
constexpr int kLanes = 4, kRows = 12, kWide = 2;
static inline V load(const float* p) { return vld1q_f32(p); }
static inline void store(float* p, V v) { vst1q_f32(p, v); }
static inline V set1(float x) { return vdupq_n_f32(x); }
static inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
static inline V fnma(V a, V b, V c) { return vfmsq_f32(c, a, b); }
static inline V load_part(const float* p, int n) {
    V v = {};
    std::memcpy(&v, p, size_t(n) * sizeof(float));
    return v;
}
static inline void store_part(float* p, V v, int n) { std::memcpy(p, &v, size_t(n) * sizeof(float)); }
// the instructions for a maximum would keep what is not a number
static inline V max_of(V a, V b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline V larger(V largest, V v) { return max_of(largest, vabsq_f32(v)); }
static inline I load_pairs(const int16_t* p) { return vreinterpretq_s32_s16(vld1q_s16(p)); }
static inline I set_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    return vdupq_n_s32(pair);
}
static inline I dot(I sum, I x, I w) {
    const int16x8_t a = vreinterpretq_s16_s32(x), b = vreinterpretq_s16_s32(w);
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
}
static inline V to_float(I v) { return vcvtq_f32_s32(v); }
static inline void store_int16(int16_t* p, V v) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(v))); }
static inline V add_at(V b, const float* p) { return b + vld1q_dup_f32(p); }
static inline V fma_at(V b, const float* p, V c) { return fma(b, vld1q_dup_f32(p), c); }
static inline V load_thirds(const float* p) { return V{p[0], p[3], p[6], p[9]}; }
static inline V zip_low(V a, V b) { return vzip1q_f32(a, b); }
static inline V zip_high(V a, V b) { return vzip2q_f32(a, b); }
static inline V shift_to_exponent(V z) { return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(z), 23)); }
static inline V minus_abs(V v) { return -vabsq_f32(v); }
static inline V times_if_negative(V m, V e) { return vbslq_f32(vcltzq_f32(m), m * e, m); }
static inline V quotient(V n, V d) { return n / d; }
EDM_END

#include "../kernels/table.h"
#endif
