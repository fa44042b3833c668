// Bit-identical to the plain formula: this library is compiled without contraction, and a factor of 1 rounds nothing.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../solver_update.h"
#include "../simd/isas.h"

EDM_BEGIN
constexpr int64_t kUpdateBlock = 512;  // elements whose partial sums stay in the first-level cache

template <typename T>
EDM_INLINE void slope(T* EDM_RESTRICT d, const T* x, const T* D, T p, T q, T t, int64_t n) {
    if (t == T(1)) {
        for (int64_t i = 0; i < n; ++i) d[i] = p * x[i] - q * D[i];
    } else {
        for (int64_t i = 0; i < n; ++i) d[i] = (p * x[i] - q * D[i]) / t;
    }
}

// the first term starts the sum: 0 + x would lose the sign of a zero
template <typename T>
EDM_INLINE bool accumulate(T* EDM_RESTRICT total, const T* x, T weight, bool started, int64_t n) {
    if (started) {
        for (int64_t i = 0; i < n; ++i) total[i] = total[i] + weight * x[i];
    } else {
        for (int64_t i = 0; i < n; ++i) total[i] = weight * x[i];
    }
    return true;
}

template <typename T>
static void update(const SolverUpdate& s, int64_t begin, int64_t end) {
    const T a = T(s.a), h = T(s.h), c = T(s.c);
    T total[kUpdateBlock];
    for (int64_t i0 = begin; i0 < end; i0 += kUpdateBlock) {
        const int64_t n = std::min(kUpdateBlock, end - i0);
        bool started = false;
        for (int k = 0; k < s.num_terms; ++k)
            started = accumulate(total, static_cast<const T*>(s.terms_ptr[k]) + i0, T(s.weights[k]), started, n);
        if (s.D_ptr) {
            T* d = static_cast<T*>(s.d_ptr) + i0;
            const T *x = static_cast<const T*>(s.x_ptr) + i0, *D = static_cast<const T*>(s.D_ptr) + i0;
            slope(d, x, D, T(s.p), T(s.q), T(s.t), n);
            started = accumulate(total, d, T(s.w), started, n);
        }
        T* EDM_RESTRICT y = static_cast<T*>(s.y_ptr) + i0;
        const T* base = static_cast<const T*>(s.base_ptr) + i0;
        if (started) {
            for (int64_t i = 0; i < n; ++i) y[i] = a * base[i] + h * total[i];
        } else {
            for (int64_t i = 0; i < n; ++i) y[i] = a * base[i];
        }
        if (s.noise_ptr) {
            const T* noise = static_cast<const T*>(s.noise_ptr) + i0;
            for (int64_t i = 0; i < n; ++i) y[i] = y[i] + c * noise[i];
        }
    }
}

static int solver_update_fwd(const SolverUpdate& s, int threads) {
    if (!fits(s)) return kBadArgument;
    if (s.dtype != kFloat64 && s.dtype != kFloat32) return kBadType;
    const auto run = s.dtype == kFloat64 ? update<double> : update<float>;
    // fewer elements are not worth a thread
    parallel_for(s.size, 4096, threads, [&](int64_t begin, int64_t end) { run(s, begin, end); });
    return kOk;
}
EDM_END
