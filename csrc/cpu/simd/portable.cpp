// Four floats on any processor; multiply-adds are rounded twice.
#include "isas.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#define EDM_ROW_portable EDM_CHOSEN
EDM_BEGIN
#if defined(__GNUC__)
typedef float V __attribute__((vector_size(16)));
#else
struct V {
    float f[4];
    float& operator[](int i) { return f[i]; }
    float operator[](int i) const { return f[i]; }
    friend V operator+(V a, V b) { for (int i = 0; i < 4; ++i) a.f[i] += b.f[i]; return a; }
    friend V operator-(V a, V b) { for (int i = 0; i < 4; ++i) a.f[i] -= b.f[i]; return a; }
    friend V operator*(V a, V b) { for (int i = 0; i < 4; ++i) a.f[i] *= b.f[i]; return a; }
    friend V operator/(V a, V b) { for (int i = 0; i < 4; ++i) a.f[i] /= b.f[i]; return a; }
};
#endif
constexpr int kLanes = 4, kRows = 4, kWide = 2;
static inline V load_part(const float* p, int n) {
    V v = {};
    std::memcpy(&v, p, size_t(n) * sizeof(float));
    return v;
}
static inline void store_part(float* p, V v, int n) { std::memcpy(p, &v, size_t(n) * sizeof(float)); }
static inline V load(const float* p) { return load_part(p, 4); }
static inline void store(float* p, V v) { store_part(p, v, 4); }
static inline V set1(float x) { return V{x, x, x, x}; }
static inline V fma(V a, V b, V c) { return c + a * b; }
static inline V fnma(V a, V b, V c) { return c - a * b; }
struct I {
    int32_t lane[4];
};
static inline V larger(V largest, V v) {
    for (int i = 0; i < 4; ++i) {
        const float size = v[i] < 0 ? -v[i] : v[i];
        largest[i] = largest[i] > size ? largest[i] : size;
    }
    return largest;
}
static inline I load_pairs(const int16_t* p) {
    I pairs;
    std::memcpy(&pairs, p, sizeof(pairs));
    return pairs;
}
static inline I set_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    return I{{pair, pair, pair, pair}};
}
static inline I dot(I sum, I x, I w) {
    int16_t a[8], b[8];
    std::memcpy(a, &x, sizeof(a));
    std::memcpy(b, &w, sizeof(b));
    // unsigned: rows that are not finite, whose factor is NaN, may wrap around as they do in vector registers
    for (int i = 0; i < 4; ++i) {
        const uint32_t first = uint32_t(a[2 * i] * b[2 * i]), second = uint32_t(a[2 * i + 1] * b[2 * i + 1]);
        sum.lane[i] = int32_t(uint32_t(sum.lane[i]) + first + second);
    }
    return sum;
}
static inline V to_float(I v) { return V{float(v.lane[0]), float(v.lane[1]), float(v.lane[2]), float(v.lane[3])}; }
static inline void store_int16(int16_t* p, V v) {
    for (int i = 0; i < 4; ++i) {
        const float clamped = v[i] > 32767.0f ? 32767.0f : v[i] >= -32768.0f ? v[i] : -32768.0f;
        p[i] = int16_t(std::nearbyintf(clamped));
    }
}
static inline V add_at(V b, const float* p) { return b + set1(*p); }
static inline V fma_at(V b, const float* p, V c) { return fma(b, set1(*p), c); }
static inline V load_thirds(const float* p) {
    return V{p[0], p[3], p[6], p[9]};
}
static inline V zip_low(V a, V b) { return V{a[0], b[0], a[1], b[1]}; }
static inline V zip_high(V a, V b) { return V{a[2], b[2], a[3], b[3]}; }
static inline V max_of(V a, V b) {
    for (int i = 0; i < kLanes; ++i) b[i] = a[i] > b[i] ? a[i] : b[i];
    return b;
}
static inline V shift_to_exponent(V z) {
    uint32_t bits[kLanes];
    std::memcpy(bits, &z, sizeof(bits));
    for (int i = 0; i < kLanes; ++i) bits[i] <<= 23;
    std::memcpy(&z, bits, sizeof(bits));
    return z;
}
static inline V minus_abs(V v) {
    for (int i = 0; i < kLanes; ++i) v[i] = -std::fabs(v[i]);
    return v;
}
static inline V times_if_negative(V m, V e) {
    for (int i = 0; i < kLanes; ++i) m[i] = m[i] < 0 ? m[i] * e[i] : m[i];
    return m;
}
static inline V quotient(V n, V d) { return n / d; }
EDM_END

#include "../kernels/table.h"
