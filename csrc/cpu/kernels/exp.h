// Exponentials. e^-|x| for loops that the compiler vectorises: no calls, no branches, no contraction, and so one result
// on every instruction set. e^x for vectors with multiply-adds.
#pragma once

#include <cstdint>
#include <cstring>

#include "../simd/vector.h"

EDM_BEGIN
template <typename T>
struct Float;

// q[j]: exp(r) = 1 + r + r^2 q(r) on |r| <= ln(2)/2, minimax by Remez (relative error 3e-9 and 4e-18).
// ln2_hi has few bits, so that k ln2_hi is exact. Adding `magic` rounds to an integer k and leaves k + the exponent's
// bias in the last bits. At kLargest that sum is 0: the power of two, and the result, vanish.
template <>
struct Float<float> {
    using Bits = int32_t;
    static constexpr int kMantissa = 23, kTerms = 5;
    static constexpr Bits kSign = INT32_MIN, kLargest = 0x42b00000;  // 88
    static constexpr float log2e = 0x1.715476p+0f, ln2_hi = 0x1.62e4p-1f, ln2_lo = 0x1.7f7d1cp-20f;
    static constexpr float magic = 0x1.8p+23f + 127;
    static constexpr float q[kTerms] = {0x1.fffffb97a5fddp-2f, 0x1.55549104290d9p-3f, 0x1.5558f2f627353p-5f,
                                        0x1.123a1f4696842p-7f, 0x1.6a23cf4eb56d8p-10f};
};

template <>
struct Float<double> {
    using Bits = int64_t;
    static constexpr int kMantissa = 52, kTerms = 10;
    static constexpr Bits kSign = INT64_MIN, kLargest = 0x4086280000000000;  // 709
    static constexpr double log2e = 0x1.71547652b82fep+0, ln2_hi = 0x1.62e42feep-1, ln2_lo = 0x1.a39ef35793c76p-33;
    static constexpr double magic = 0x1.8p+52 + 1023;
    static constexpr double q[kTerms] = {0x1.000000000000ap-1,  0x1.55555555554f9p-3,  0x1.555555555083ep-5,
                                         0x1.1111111127d0ep-7,  0x1.6c16c18438b08p-10, 0x1.a01a012a0f351p-13,
                                         0x1.a01999e2633fdp-16, 0x1.71df25b3100a2p-19, 0x1.28ad9b8551757p-22,
                                         0x1.ad7f3ee016e7dp-26};
};

template <typename To, typename From>
EDM_INLINE To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

constexpr int64_t kStage = 128;  // numbers that go through one stage before the next

// e = e^-|x| within 1 ulp, in [0, 1]; 0 where that is below the normal numbers, and for NaN. n <= kStage.
// In stages: as one loop the chain of dependent operations is longer than what a core holds ready at a time, and the
// whole runs at half of the speed.
template <typename T>
EDM_INLINE void exp_minus_abs(T* EDM_RESTRICT e, const T* EDM_RESTRICT x, int64_t n) {
    using F = Float<T>;
    using Bits = typename F::Bits;
    constexpr Bits lowest = F::kLargest | F::kSign;
    T r[kStage], power[kStage];
    for (int64_t i = 0; i < n; ++i) {
        const Bits negative = bits_as<Bits>(x[i]) | F::kSign;  // a clamp of floats would become a branch
        const T t = bits_as<T>(negative < lowest ? negative : lowest);
        const T z = t * F::log2e + F::magic, k = z - F::magic;
        r[i] = (t - k * F::ln2_hi) - k * F::ln2_lo;
        power[i] = bits_as<T>(Bits(uint64_t(bits_as<Bits>(z)) << F::kMantissa));
    }
    for (int64_t i = 0; i < n; ++i) {
        const T r2 = r[i] * r[i];
        T odd = F::q[F::kTerms - 1], even = F::q[F::kTerms - 2];  // two chains, of every second term
#pragma GCC unroll 16
        for (int j = F::kTerms - 3; j >= 0; j -= 2) odd = odd * r2 + F::q[j];
#pragma GCC unroll 16
        for (int j = F::kTerms - 4; j >= 0; j -= 2) even = even * r2 + F::q[j];
        // kTerms - 1 and 0 have the same parity or not
        const T q = F::kTerms % 2 ? odd + r[i] * even : even + r[i] * odd;
        e[i] = ((r2 * q + r[i]) + T(1)) * power[i];
    }
}

// x = e^x for N vectors x <= 88.3, within 1 ulp; 0 where it is below the normal numbers; NaN stays.
template <int N>
static EDM_INLINE void exponentials(V* x) {
    using F = Float<float>;
    V power[N], r[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
        const V t = max_of(set1(-88.0f), x[i]), z = fma(t, set1(F::log2e), set1(F::magic)), k = z - set1(F::magic);
        r[i] = fnma(k, set1(F::ln2_lo), fnma(k, set1(F::ln2_hi), t));
        power[i] = shift_to_exponent(z);
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
        V q = set1(F::q[F::kTerms - 1]);
#pragma GCC unroll 8
        for (int j = F::kTerms - 2; j >= 0; --j) q = fma(q, r[i], set1(F::q[j]));
        x[i] = (fma(r[i] * r[i], q, r[i]) + set1(1.0f)) * power[i];
    }
}
EDM_END
